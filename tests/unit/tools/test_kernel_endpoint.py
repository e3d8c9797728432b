"""What the kernel's endpoint needs of the host, without a guest."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rcdrv.device import CONFIG_REGION, Area, RegionFlag, sealed_memory
from rcdrv.epf_test.registers import Reg
from rcdrv.sim.access_log import AccessLog
from rcdrv.sim.layout import load_layout
from tools.lab.kernel_endpoint import function as function_module
from tools.lab.kernel_endpoint.endpoint import KernelEndpoint
from tools.lab.kernel_endpoint.function import Function
from tools.lab.kernel_endpoint.hardware import Hardware
from tools.lab.kernel_endpoint.shadow import Shadow

BUG = "[    1.500000] BUG: kernel NULL pointer dereference\n[    1.500001] Oops: 0000\n"


def test_a_crash_is_told_once_also_where_the_console_is_cut() -> None:
    endpoint = KernelEndpoint("rk3588")
    guest = SimpleNamespace(console="[    0.000000] Linux\n" + BUG)
    endpoint._guest = cast(Any, guest)
    assert endpoint.crash() == BUG.strip()
    assert endpoint.crash() == ""
    guest.console = guest.console[30:] + "[    2.000000] fine\n"
    assert endpoint.crash() == ""
    guest.console += "[    2.500000] UBSAN: shift-out-of-bounds\n"
    assert endpoint.crash().startswith("[    2.500000] UBSAN")


def test_what_a_client_was_too_slow_for_is_not_done_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory may be another transfer's by then; but a stop is a stop, whenever it is seen."""
    monkeypatch.setattr(function_module, "PATIENCE", 0.01)
    function = Function(cast(Any, None), AccessLog())
    function._peer = cast(Any, object())  # a client whose thread does not run
    done: list[str] = []
    function._call(lambda: done.append("write"), None)
    function._call(lambda: done.append("stop"), None, late=True)
    function.run()
    assert done == ["stop"]


# -- what a client maps ---------------------------------------------------------------------------

PAGE = mmap.PAGESIZE
MIB = 1 << 20
DOORBELL = 0x100D_50A0  # in the guest's BAR of the controller


def test_both_sides_of_a_shadow_change_it() -> None:
    shadow = Shadow(2 * PAGE)
    pushed: list[tuple[int, bytes]] = []
    shadow.write(4, b"host")
    shadow.pull(bytes(PAGE) + b"\1" * PAGE)
    assert shadow.read(4, 4) == b"host"
    assert shadow.read(PAGE, 1) == b"\1"
    shadow.push(lambda offset, data: pushed.append((offset, data)))
    assert pushed == [(0, b"\0\0\0\0host".ljust(PAGE, b"\0"))]
    shadow.push(lambda offset, data: pushed.append((offset, data)))
    assert len(pushed) == 1


class Guest:
    """The endpoint's guest, whose memory begins at 0."""

    def __init__(self) -> None:
        self.fd = sealed_memory("guest", 2 * MIB)
        self.memory = mmap.mmap(self.fd, 2 * MIB)

    def dma_file(self, address: int, size: int) -> tuple[int, int]:
        return self.fd, address

    def trigger(self, kind: object, vector: int) -> bool:
        return True


@pytest.fixture
def guest() -> Iterator[Guest]:
    one = Guest()
    yield one
    os.close(one.fd)


def hardware(guest: Guest, spec: str = "rcar-s4") -> Hardware:
    """The controller with BAR2 at the beginning of the guest's memory."""
    one = Hardware(load_layout(spec), AccessLog(), lambda _started: None)
    one.attach(cast(Any, guest))
    one._place([DOORBELL & 0xFFFF_FFFF, DOORBELL >> 32])
    set_bar(one, (0, MIB))
    one._set_started(True)
    return one


def set_bar(one: Hardware, *parts: tuple[int, int], bar: int = 2) -> None:
    words = [word for part in parts for number in part for word in (number, 0)]
    assert one._set_bar([bar, 0, MIB, 0, len(parts), *words]) == 0


def mapped(one: Hardware, bar: int = 2) -> mmap.mmap:
    region = one.function.regions()[bar]
    assert region.flags & RegionFlag.MMAP
    return mmap.mmap(region.fd, region.size)


def test_doorbells_page_is_not_mapped(guest: Guest) -> None:
    regions = hardware(guest).function.regions()
    place = load_layout("rcar-s4").doorbell_place()
    assert place is not None
    assert place[0] == 2
    page = place[1] // PAGE * PAGE
    assert regions[2].areas == (Area(0, page), Area(page + PAGE, MIB - page - PAGE))


@pytest.mark.parametrize("spec", ["rcar-s4,trap=all", "rcar-s4-vntb,trap=all"])
def test_nothing_is_mapped_where_every_access_has_to_be_seen(guest: Guest, spec: str) -> None:
    assert not any(region.areas for region in hardware(guest, spec).function.regions())


def test_mapping_follows_the_bar(guest: Guest) -> None:
    one = hardware(guest)
    client = mapped(one)
    client[:4] = b"host"
    half = MIB // 2
    set_bar(one, (half, half), (0, half))  # the halves swapped, as BAR_SUBRANGE_SETUP does
    assert guest.memory[:4] == b"host"
    assert client[half : half + 4] == b"host"
    guest.memory[half : half + 4] = b"part"  # the endpoint writes when it has set the BAR
    assert client[:4] == bytes(4)
    one.pull()
    assert client[:4] == b"part"
    client[:4] = b"more"
    one.push()
    assert guest.memory[half : half + 4] == b"more"

    set_bar(one, (DOORBELL & ~(MIB - 1), MIB))  # ENABLE_DOORBELL
    assert client[:4] == bytes(4)
    client[:4] = b"lost"
    set_bar(one, (0, MIB))
    assert client[:4] == b"host"


def test_mapping_of_a_stopped_endpoint_reads_all_ones(guest: Guest) -> None:
    one = hardware(guest)
    client = mapped(one)
    client[:4] = b"host"
    one._stop([])
    assert client[:4] == b"\xff" * 4
    one._start([])
    assert client[:4] == b"host"


def test_mapping_is_brought_up_to_date_at_the_registers(guest: Guest) -> None:
    """At COMMAND, for the endpoint; and where a register changes, for the root complex."""
    one = hardware(guest)
    set_bar(one, (MIB, MIB), bar=0)
    one._set_started(False)
    one._set_started(True)
    client, function = mapped(one), one.function
    function.write(CONFIG_REGION, 4, b"\2\0")
    client[:4] = b"host"
    function.write(0, Reg.SIZE, bytes(4))
    assert guest.memory[:4] == bytes(4)
    function.write(0, Reg.COMMAND, b"\1\0\0\0")
    assert guest.memory[:4] == b"host"

    function.read(0, Reg.STATUS, 4)
    guest.memory[:4] = b"part"
    function.read(0, Reg.STATUS, 4)
    assert client[:4] == b"host"
    guest.memory[MIB + Reg.STATUS] = 1
    function.read(0, Reg.STATUS, 4)
    assert client[:4] == b"part"
