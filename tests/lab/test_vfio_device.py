"""The kernel's VFIO with QEMU's own devices. The cases run in a guest: vfio_cases.py."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tools.lab.errors import LabError
from tools.lab.guest import Guest

CASES = Path(__file__).with_name("vfio_cases.py")
INSIDE = "opt/vfio_cases.py"


XHCI = "qemu-xhci,msi=on,msix=off"
ON_X86 = [
    "edu_description",
    "edu_exact_width",
    "edu_refusals",
    "edu_msi",
    "edu_intx",
    "edu_intx_by_function",
    "edu_irq_refusals",
    "edu_dma",
    "edu_iova_ranges",
    "edu_reset",
    "edu_nothing_left",
    "edu_held_by_another",
    "edu_driver_gone",
    "igb_msix",
    "igb_bars",
    "xhci_all_vectors",
]
ON_ARM64 = [
    "edu_description",
    "edu_exact_width",
    "edu_refusals",
    "edu_intx",
    "edu_intx_by_function",
    "edu_dma",
    "edu_reset",
    "edu_no_msi",
]


@contextlib.contextmanager
def booted(
    *devices: str,
    arch: str = "x86_64",
    append: Sequence[str] = (),
    bind: bool = True,
    files: Mapping[str, Path] | None = None,
) -> Iterator[Guest]:
    """A guest with QEMU's own devices; skips where the lab does not start, but not in CI."""
    guest = Guest(
        arch, devices=devices, append=append, bind=bind, files={INSIDE: CASES, **(files or {})}
    )
    try:
        guest.__enter__()
    except LabError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"the lab does not start: {error}")
    with contextlib.closing(guest):
        yield guest


def run(guest: Guest, case: str, *, user: str = "root") -> None:
    device = next(one for one in guest.devices if case.split("_")[0] in one.spec)
    result = guest.run(["python3", f"/{INSIDE}", case, device.address], user=user)
    assert result.status == 0, f"{result.stderr}\n{guest.console[-2000:]}"


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with booted("edu", "igb", XHCI) as guest:
        yield guest


@pytest.fixture(scope="module")
def arm64() -> Iterator[Guest]:
    with booted("edu", arch="aarch64") as guest:
        yield guest


@pytest.mark.parametrize("case", ON_X86)
def test_device(guest: Guest, case: str) -> None:
    run(guest, case)


@pytest.mark.parametrize("case", ON_ARM64)
def test_device_on_arm64(arm64: Guest, case: str) -> None:
    run(arm64, case)


def test_user_without_rights(guest: Guest) -> None:
    run(guest, "edu_not_for_this_user", user="user")


def test_memory_limit(guest: Guest) -> None:
    node = f"/dev/vfio/{guest.devices[0].group}"
    guest.run(["chown", "user", node])
    try:
        run(guest, "edu_memory_limit", user="user")
    finally:
        guest.run(["chown", "root", node])


def test_without_interrupt_remapping() -> None:
    with booted("edu", XHCI, append=["intremap=off"]) as guest:
        run(guest, "edu_unsafe_interrupts")
        run(guest, "xhci_fewer_vectors")


def test_removal_while_open() -> None:
    # In a guest of its own: it takes the device away and brings it back.
    with booted("edu") as guest:
        run(guest, "edu_wanted_back")
