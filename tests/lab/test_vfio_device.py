"""The kernel's VFIO with QEMU's own devices. The cases run in a guest: vfio_cases.py.

Each runs once a backend: group on the stock kernel, iommufd and noiommu on what the lab builds, the
latter in a guest without an IOMMU.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.lab.test_guest_functions import DISABLE, ENABLE, TOKENS
from tests.unavailable import unavailable
from tests.unit.test_api import blocks
from tools.lab.errors import LabError
from tools.lab.guest import Device, Guest

ROOT = Path(__file__).parents[2]
CASES = Path(__file__).with_name("vfio_cases.py")
INSIDE = "opt/vfio_cases.py"


XHCI = "qemu-xhci,msi=on,msix=off"
EVERYWHERE = [
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
WITHOUT_MSI = [
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
IOMMUFD = ("edu_descriptor", "igb_tokens")
# Removes the device and brings it back, so it comes last.
LAST = "edu_wanted_back"


BUSY = 300
"""Seconds for one case; a busy machine takes minutes for the start of a Python in a guest."""


class Way(NamedTuple):
    """A way to the devices, and what runs there."""

    arch: str
    backend: str
    cases: Sequence[str]


WAYS = {
    "group": Way("x86_64", "group", (*EVERYWHERE, *AS_USER, LAST)),
    "iommufd": Way("x86_64", "iommufd", (*EVERYWHERE, *AS_USER, "edu_chosen", *IOMMUFD, LAST)),
    "noiommu": Way(
        "x86_64",
        "noiommu",
        (
            *(case for case in EVERYWHERE if case not in NOT_WITHOUT_IOMMU),
            *("edu_noiommu_dma", "edu_noiommu_refusals", "edu_not_for_this_user"),
        ),
    ),
    "noiommu by group": Way("x86_64", "noiommu", BY_GROUP),
    "arm64 group": Way("aarch64", "group", WITHOUT_MSI),
    "arm64 iommufd": Way("aarch64", "iommufd", (*EVERYWHERE, *AS_USER, "edu_chosen", LAST)),
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
        unavailable(f"the lab does not start: {error}")
    with contextlib.closing(guest):
        yield guest


def run(guest: Guest, case: str, backend: str = "group") -> None:
    device = next(one for one in guest.devices if case.split("_")[0] in one.spec)
    user = "user" if case in AS_USER else "root"
    result = guest.run(
        ["python3", f"/{INSIDE}", case, device.address],
        user=user,
        env={"RCDRV_BACKEND": backend},
        timeout=BUSY,
    )
    assert result.status == 0, f"{result.stderr}\n{guest.console[-2000:]}"
    if backend == "noiommu" and user == "root":
        assert "can read and write all of this host's memory" in result.stderr


@contextlib.contextmanager
def toy() -> Iterator[str]:
    """The device of docs/vfio-user.md, served; what QEMU calls it."""
    with tempfile.TemporaryDirectory(prefix="toy-") as folder:
        path = f"{folder}/s"
        code = blocks(ROOT / "docs/vfio-user.md")[0]
        server = subprocess.Popen(
            [sys.executable, "-c", code, path], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        try:
            while not Path(path).exists() and server.poll() is None:
                time.sleep(0.02)
            socket = {"type": "unix", "path": path}
            yield json.dumps({"driver": "vfio-user-pci", "socket": socket})
        finally:
            server.terminate()
            _, complaint = server.communicate()
            assert not complaint


class Guests:
    """The guest for a way: the one that there is, or a fresh one in its place."""

    def __init__(self) -> None:
        self._way = ""
        self._booted = contextlib.ExitStack()
        self._guest: Guest | None = None

    def have(self, way: str) -> Guest:
        if self._guest is None or way != self._way:
            if self._guest is None or (self._way, way) != ("noiommu", "noiommu by group"):
                self.close()
                self._guest = self._boot(WAYS[way])
            if way == "noiommu by group":
                assert self._guest.run(["rm", "/dev/iommu"]).status == 0
            self._way = way
        return self._guest

    def _boot(self, way: Way) -> Guest:
        if way.backend != "noiommu":
            with_iommufd = way.backend == "iommufd"
            devices = ["edu", "igb", XHCI]
            if way is WAYS["group"]:
                devices.append(self._booted.enter_context(toy()))
            return self._booted.enter_context(booted(*devices, arch=way.arch, iommufd=with_iommufd))
        # The engine of edu reaches 256 MiB unless told otherwise, and nothing moves addresses here.
        devices = ["edu,dma_mask=0xffffffff", "igb"]
        options = ["intel_iommu=off"]
        guest = self._booted.enter_context(
            booted(*devices, append=options, bind=False, iommufd=True)
        )
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


@pytest.mark.parametrize(("name", "block"), [("edu", "vfio.md"), ("vfio-user-pci", "vfio-user.md")])
def test_the_programs_of_the_manual(guests: Guests, name: str, block: str) -> None:
    """As they are written: on QEMU's edu, and on a device of thirty lines of Python."""
    guest = guests.have("group")
    (address,) = (device.address for device in guest.devices if name in device.spec)
    page = ROOT / "docs" / block
    result = guest.run(["python3", "-c", blocks(page)[-1], address])
    assert result.status == 0, f"{result.stderr}\n{guest.console[-2000:]}"
    assert len(result.stdout.splitlines()) == 3
    for line in result.stdout.splitlines():
        assert f"`{line}`" in page.read_text(), line


@pytest.mark.parametrize(
    ("way", "case"), [(name, case) for name, way in WAYS.items() for case in way.cases]
)
def test_device(guests: Guests, way: str, case: str) -> None:
    guest, backend = guests.have(way), WAYS[way].backend
    if case == "igb_tokens":
        tokens(guest, backend)
        return
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


def tokens(guest: Guest, backend: str) -> None:
    """A virtual function and its physical one on vfio-pci share a VF token."""
    (physical,) = (one.address for one in guest.devices if one.spec == "igb")
    made = guest.run(["sh", "-e", "-c", ENABLE, "enable", physical, "vfio-pci"])
    assert made.status == 0, made
    try:
        shared = guest.run(["python3", "-c", TOKENS, physical, made.stdout.strip(), backend])
        assert (shared.status, shared.stdout) == (0, "done\n"), shared
    finally:
        assert guest.run(["sh", "-e", "-c", DISABLE, "disable", physical]).status == 0


@pytest.mark.parametrize("backend", ["group", "iommufd"])
def test_without_interrupt_remapping(backend: str) -> None:
    with booted("edu", XHCI, append=["intremap=off"], iommufd=backend == "iommufd") as guest:
        run(guest, "edu_unsafe_interrupts", backend)
        run(guest, "xhci_fewer_vectors", backend)
