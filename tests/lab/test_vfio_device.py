"""The kernel's VFIO with QEMU's own devices. The cases run in a guest: vfio_cases.py.

Each runs once a backend: group on the stock kernel, iommufd and noiommu on the lab's VFIO modules,
the latter in a guest without an IOMMU.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tools.lab.errors import LabError
from tools.lab.guest import Device, Guest

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


# Which of them do not make sense or are different without an IOMMU.
NOT_WITHOUT_IOMMU = ("edu_iova_ranges", "xhci_all_vectors")
# The kernel without iommufd in no-IOMMU mode, which is any before Linux 7.3.
BY_GROUP = ["edu_description", "edu_msi", "edu_dma", "edu_noiommu_dma", "edu_noiommu_refusals"]
AS_USER = ("edu_not_for_this_user", "edu_memory_limit")
CASES_OF = {
    "group": [*ON_X86, *AS_USER],
    "iommufd": [*ON_X86, *AS_USER, "edu_chosen"],
    "noiommu": [
        *(case for case in ON_X86 if case not in NOT_WITHOUT_IOMMU),
        *("edu_noiommu_dma", "edu_noiommu_refusals", "edu_not_for_this_user"),
    ],
    "noiommu by group": BY_GROUP,
}


@contextlib.contextmanager
def booted(
    *devices: str,
    endpoints: Sequence[str] = (),
    arch: str = "x86_64",
    append: Sequence[str] = (),
    bind: bool = True,
    iommufd: bool = False,
    files: Mapping[str, Path] | None = None,
) -> Iterator[Guest]:
    """A guest with devices of QEMU's own or endpoints.

    Where the lab does not start, CI fails and a developer's run skips.
    """
    guest = Guest(
        arch,
        endpoints=endpoints,
        devices=devices,
        append=append,
        bind=bind,
        iommufd=iommufd,
        files={INSIDE: CASES, **(files or {})},
    )
    try:
        guest.__enter__()
    except LabError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"the lab does not start: {error}")
    with contextlib.closing(guest):
        yield guest


def run(guest: Guest, case: str, backend: str = "group") -> None:
    device = next(one for one in guest.devices if case.split("_")[0] in one.spec)
    user = "user" if case in AS_USER else "root"
    name = backend.split()[0]
    result = guest.run(
        ["python3", f"/{INSIDE}", case, device.address], user=user, env={"RCDRV_BACKEND": name}
    )
    assert result.status == 0, f"{result.stderr}\n{guest.console[-2000:]}"
    if name == "noiommu" and user == "root":
        assert "can read and write all of this host's memory" in result.stderr


class Guests:
    """The guest for a backend: the one that there is, or a fresh one in its place."""

    def __init__(self) -> None:
        self._backend = ""
        self._booted = contextlib.ExitStack()
        self._guest: Guest | None = None

    def have(self, backend: str) -> Guest:
        if self._guest is None or backend != self._backend:
            self.close()
            self._guest = self._boot(backend)
            self._backend = backend
        return self._guest

    def _boot(self, backend: str) -> Guest:
        if not backend.startswith("noiommu"):
            with_iommufd = backend == "iommufd"
            return self._booted.enter_context(booted("edu", "igb", XHCI, iommufd=with_iommufd))
        # The engine of edu reaches 256 MiB unless told otherwise, and nothing moves addresses here.
        devices = ("edu,dma_mask=0xffffffff", "igb")
        options = ["intel_iommu=off"]
        guest = self._booted.enter_context(
            booted(*devices, append=options, bind=False, iommufd=True)
        )
        if backend == "noiommu by group":
            assert guest.run(["rm", "/dev/iommu"]).status == 0
        for device in guest.devices:
            follow_the_cure(guest, device)
        return guest

    def close(self) -> None:
        self._guest = None
        self._booted.close()


@pytest.fixture(scope="module")
def guests() -> Iterator[Guests]:
    with contextlib.closing(Guests()) as guests:
        yield guests


def follow_the_cure(guest: Guest, device: Device) -> None:
    """Do what rcdrv says about a function without an IOMMU, to the letter, until it can be had."""
    command = ["rcdrv", "--device", device.address, "peek", "0", "0"]
    result = guest.run(command, env={"RCDRV_BACKEND": "noiommu"})
    assert result.status == 3, result
    _, _, steps = result.stderr.partition("hint: allow it, as root:\n")
    assert steps, result.stderr
    assert guest.run(["sh", "-e", "-c", steps]).status == 0, steps
    assert guest.run(command, env={"RCDRV_BACKEND": "noiommu"}).status == 0


@pytest.fixture(scope="module")
def arm64() -> Iterator[Guest]:
    with booted("edu", arch="aarch64") as guest:
        yield guest


@pytest.mark.parametrize(
    ("backend", "case"),
    [(backend, case) for backend, cases in CASES_OF.items() for case in cases],
)
def test_device(guests: Guests, backend: str, case: str) -> None:
    guest = guests.have(backend)
    if case != "edu_memory_limit":
        run(guest, case, backend)
        return
    nodes = {
        "group": [f"/dev/vfio/{guest.devices[0].group}"],
        "iommufd": ["/dev/iommu", "/dev/vfio/devices/vfio0"],
    }[backend]
    guest.run(["chown", "user", *nodes])
    try:
        run(guest, case, backend)
    finally:
        guest.run(["chown", "root", *nodes])


@pytest.mark.parametrize("case", ON_ARM64)
def test_device_on_arm64(arm64: Guest, case: str) -> None:
    run(arm64, case)


@pytest.mark.parametrize("backend", ["group", "iommufd"])
def test_without_interrupt_remapping(backend: str) -> None:
    with booted("edu", XHCI, append=["intremap=off"], iommufd=backend == "iommufd") as guest:
        run(guest, "edu_unsafe_interrupts", backend)
        run(guest, "xhci_fewer_vectors", backend)


@pytest.mark.parametrize("backend", ["group", "iommufd"])
def test_removal_while_open(backend: str) -> None:
    # In a guest of its own: it takes the device away and brings it back.
    with booted("edu", iommufd=backend == "iommufd") as guest:
        run(guest, "edu_wanted_back", backend)
