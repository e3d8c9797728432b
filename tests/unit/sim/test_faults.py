"""Each fault does what it says, and nothing else goes wrong with it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rcdrv.device import IrqKind
from rcdrv.sim.epf_test.function import crc32_le
from rcdrv.sim.epf_test.registers import USE_DMA, SimCommand, SimRegister, SimStatus
from rcdrv.sim.faults import FAULTS, Faults, parse_fault

from .host import MEMORY_BASE, Host


def enable(host: Host) -> SimStatus:
    return host.command(SimCommand.ENABLE_DOORBELL)


def rung(host: Host) -> int:
    enable(host)
    host.ring()
    return len(host.fired)


def silent(host: Host) -> bool:
    host.command(SimCommand.RAISE_MSI)
    return host.get(SimRegister.COMMAND) != 0 and host.get(SimRegister.STATUS) == 0


def swallowed(host: Host) -> bool:
    status = host.command(SimCommand.RAISE_MSI)
    return host.get(SimRegister.COMMAND) == 0 and status == 0 and not host.fired


def stuck(host: Host) -> bool:
    host.command(SimCommand.RAISE_MSI, seconds=1.0)
    left = host.get(SimRegister.COMMAND) == SimCommand.RAISE_MSI
    return left and host.get(SimRegister.STATUS) == SimStatus.IRQ_RAISED and len(host.fired) == 1


def slow(host: Host) -> bool:
    early = host.command(SimCommand.RAISE_MSI, seconds=0.15)
    host.advance(0.1)
    return early == 0 and host.get(SimRegister.STATUS) == SimStatus.IRQ_RAISED


def late_ring(host: Host) -> bool:
    early = rung(host)
    host.advance(0.005)
    return (early, len(host.fired)) == (0, 1)


def late_ring_at_disable(host: Host) -> bool:
    """free_irq() waits for the handler, so the ring is answered before the doorbell goes."""
    early = rung(host)
    status = host.command(SimCommand.DISABLE_DOORBELL)
    return early == 0 and bool(status & SimStatus.DOORBELL_SUCCESS)


def enable_silent(host: Host) -> bool:
    return enable(host) == 0 and host.command(SimCommand.RAISE_MSI) != 0


def disable_silent(host: Host) -> bool:
    return rung(host) == 1 and host.command(SimCommand.DISABLE_DOORBELL) == 0


def disable_fail(host: Host) -> bool:
    enable(host)
    failed = host.command(SimCommand.DISABLE_DOORBELL) & SimStatus.DOORBELL_DISABLE_FAIL
    return bool(failed) and host.get(SimRegister.DB_BAR) == 2


def says(register: SimRegister, value: int) -> Callable[[Host], bool]:
    def check(host: Host) -> bool:
        enable(host)
        said = host.get(register) == value
        # What is said is false; the doorbell works, and is given back whole.
        host.write(2, 0xD50A0, 0)
        heard = bool(host.get(SimRegister.STATUS) & SimStatus.DOORBELL_SUCCESS)
        host.command(SimCommand.DISABLE_DOORBELL)
        return (
            said
            and heard
            and host.events("inbound")[-1]
            == {
                "t": host.events("inbound")[-1]["t"],
                "event": "inbound",
                "bar": 2,
                "shows": "memory",
            }
        )

    return check


def offset_changes(host: Host) -> bool:
    enable(host)
    return [host.get(SimRegister.DB_OFFSET) for _ in range(3)] == [0xD50A0, 0xD50A4, 0xD50A8]


def dead(host: Host) -> bool:
    return rung(host) == 0 and host.get(SimRegister.STATUS) == 0


def no_status(host: Host) -> bool:
    return rung(host) == 1 and host.get(SimRegister.STATUS) == SimStatus.IRQ_RAISED


def lost(host: Host) -> bool:
    return enable(host) & SimStatus.IRQ_RAISED != 0 and not host.fired and rung(host) == 0


def lost_rings(host: Host) -> bool:
    return enable(host) != 0 and len(host.fired) == 1 and rung(host) == 0


def twice(host: Host) -> bool:
    return enable(host) != 0 and len(host.fired) == 1 and rung(host) == 2


def wrong_vector(host: Host) -> bool:
    host.command(SimCommand.RAISE_MSI, number=3)
    return host.fired == [(IrqKind.MSI, 3)]


def transfer(command: SimCommand, **registers: int) -> Callable[[Host], SimStatus]:
    def run(host: Host) -> SimStatus:
        addresses = {"src_addr": MEMORY_BASE, "dst_addr": MEMORY_BASE + 4096, "size": 64}
        return host.command(command, checksum=crc32_le(bytes(64)), **{**addresses, **registers})

    return run


def bad_data(host: Host) -> bool:
    read = transfer(SimCommand.READ)(host)
    written = transfer(SimCommand.WRITE)(host)
    checksum = host.get(SimRegister.CHECKSUM)
    wrong = crc32_le(bytes(host.memory[4096 : 4096 + 64])) != checksum
    return bool(read & SimStatus.READ_FAIL) and bool(written & SimStatus.WRITE_SUCCESS) and wrong


def bad_checksum(host: Host) -> bool:
    return bool(transfer(SimCommand.READ)(host) & SimStatus.READ_FAIL) and bad_checksum_of_write(
        host
    )


def bad_checksum_of_write(host: Host) -> bool:
    transfer(SimCommand.WRITE)(host)
    return crc32_le(bytes(host.memory[4096 : 4096 + 64])) != host.get(SimRegister.CHECKSUM)


def invalid(bit: SimStatus) -> Callable[[Host], bool]:
    def check(host: Host) -> bool:
        return bool(transfer(SimCommand.COPY)(host) & bit)

    return check


def dma_hangs(host: Host) -> bool:
    fine = transfer(SimCommand.WRITE)(host) & SimStatus.WRITE_SUCCESS
    host.command(SimCommand.WRITE, flags=USE_DMA, dst_addr=MEMORY_BASE, size=4)
    return bool(fine) and host.command(SimCommand.RAISE_MSI) == 0


def alias(host: Host) -> bool:
    host.write(1, 0x40, 0xCAFE)
    return [host.read(bar, 0x40) for bar in (2, 3)] == [0xCAFE, 0]


def straight(host: Host) -> bool:
    status = host.command(SimCommand.BAR_SUBRANGE_SETUP, size=2)
    return bool(status & SimStatus.BAR_SUBRANGE_SETUP_SUCCESS) and host.read(2, 0) == 0x6161_6161


def contradicts(host: Host) -> bool:
    enabled = SimStatus.DOORBELL_ENABLE_SUCCESS | SimStatus.DOORBELL_ENABLE_FAIL
    read = SimStatus.READ_SUCCESS | SimStatus.READ_FAIL
    return enable(host) & enabled == enabled and transfer(SimCommand.READ)(host) & read == read


def empty(bar: int) -> Callable[[Host], bool]:
    def check(host: Host) -> bool:
        unseen = host.endpoint.regions()[bar].size == 0
        host.write_config(0x10 + 4 * bar, 4, 0xFFFF_FFFF)
        return unseen and host.read_config(0x10 + 4 * bar, 4) == 0

    return check


def window_off(by: int) -> Callable[[Host], bool]:
    """By so many bytes, a doorbell's window and the halves of a subrange, in a BAR2 of 1 MiB."""

    def check(host: Host) -> bool:
        rings = rung(host)
        host.write(2, (0xD50A0 - by), 0)
        moved = bool(host.get(SimRegister.STATUS) & SimStatus.DOORBELL_SUCCESS)
        host.command(SimCommand.DISABLE_DOORBELL)
        host.command(SimCommand.BAR_SUBRANGE_SETUP, size=2)
        seen = [host.read(2, offset) for offset in (0, 0x8_0000 - 4, 0x8_0000, 0x10_0000 - 4)]
        first, second = 0x6060_6060, 0x6161_6161
        halves = [first, second, second, first] if by == 4096 else [second] * 2 + [first] * 2
        return rings == 0 and moved and seen == halves

    return check


def no_resource(host: Host) -> bool:
    return bool(host.command(SimCommand.BAR_SUBRANGE_SETUP, size=2) & SimStatus.NO_RESOURCE)


def all_ones(host: Host) -> bool:
    return host.read(0, 0x30) == 0xFFFF_FFFF and host.read_config(0, 2) == 0x1912


def vanish(host: Host) -> bool:
    alive = [host.read_config(0, 2) for _ in range(110)]
    host.endpoint.reset()
    gone = host.read_config(0, 4) == host.read(0, 0x30) == 0xFFFF_FFFF
    return alive[0] == 0x1912 and alive[-1] == 0xFFFF and gone and not host.endpoint.next_event()


def cleared(host: Host) -> bool:
    enable(host)
    host.command(SimCommand.DISABLE_DOORBELL)
    rings = rung(host)
    return rings == 0 and host.read(2, 0) == 0xFFFF_FFFF and host.read(4, 0) != 0xFFFF_FFFF


def dead_msix(host: Host) -> bool:
    """Of MSI-X; MSI arrives."""
    host.command(SimCommand.RAISE_MSIX, irq=2)
    return not host.fired and host.command(SimCommand.RAISE_MSI) != 0 and len(host.fired) == 1


def rebar_without_sizes(host: Host) -> bool:
    return host.read_config(0x154, 4) == 0


def loses_bars(host: Host) -> bool:
    before = host.read(0, SimRegister.CAPS)
    host.endpoint.reset()
    host.write_config(4, 2, 6)
    host.write_config(0x10, 4, 0xFFFF_FFFF)
    gone = host.read(0, SimRegister.CAPS) == 0xFFFF_FFFF != before
    return gone and host.read_config(0x10, 4) == 0 and host.read_config(0, 2) == 0x1912


def loses_msi(host: Host) -> object:
    host.command(SimCommand.RAISE_MSI)
    before = len(host.fired)
    host.endpoint.reset()
    host.write_config(4, 2, 6)
    return host.command(SimCommand.RAISE_MSI) == SimStatus.IRQ_RAISED and before and not host.fired


CHECKS: list[tuple[str, Callable[[Host], object]]] = [
    ("silent", silent),
    ("swallow", swallowed),
    ("contradiction", contradicts),
    ("stuck-command", stuck),
    ("slow", slow),
    ("enable-silent", enable_silent),
    ("enable-fail", lambda host: enable(host) & SimStatus.DOORBELL_ENABLE_FAIL),
    ("disable-silent", disable_silent),
    ("disable-fail", disable_fail),
    ("wrong-bar", says(SimRegister.DB_BAR, 4)),
    ("wrong-bar=0", says(SimRegister.DB_BAR, 0)),
    ("db-bar-absent", says(SimRegister.DB_BAR, 1)),
    ("db-bar-absent=0xfffffffe", says(SimRegister.DB_BAR, 0xFFFF_FFFE)),
    ("bad-offset", says(SimRegister.DB_OFFSET, 0x10_0000)),
    ("bad-offset=0xfffffffc", says(SimRegister.DB_OFFSET, 0xFFFF_FFFC)),
    ("unaligned-offset", says(SimRegister.DB_OFFSET, 0xD50A2)),
    ("offset-changes", offset_changes),
    ("doorbell-dead", dead),
    ("doorbell-late", late_ring),
    ("doorbell-late=500", late_ring_at_disable),
    ("no-status", no_status),
    ("irq-lost", lost),
    ("irq-lost=doorbell", lost_rings),
    ("irq-twice", twice),
    ("irq-wrong-vector", wrong_vector),
    ("bad-data", bad_data),
    ("bad-checksum", bad_checksum),
    ("src-invalid", invalid(SimStatus.SRC_ADDR_INVALID)),
    ("dst-invalid", invalid(SimStatus.DST_ADDR_INVALID)),
    ("dma-hangs", dma_hangs),
    ("bar-empty", empty(4)),
    ("bar-empty=2", empty(2)),
    ("window-off", window_off(4096)),
    ("window-off=half", window_off(0x8_0000)),
    ("subrange-straight", straight),
    ("no-resource", no_resource),
    ("disable-clears-bar", cleared),
    ("rebar-empty", rebar_without_sizes),
    ("reset-loses", loses_bars),
    ("reset-loses=msi", loses_msi),
    ("all-ones", all_ones),
    ("vanish", vanish),
]


@pytest.mark.parametrize(("fault", "check"), CHECKS, ids=[fault for fault, _ in CHECKS])
def test_fault(fault: str, check: Callable[[Host], object]) -> None:
    preset = "rcar-s4"
    assert check(Host(preset, fault=fault))
    if fault not in ("wrong-bar=0", "db-bar-absent=0xfffffffe"):
        assert not check(Host(preset)), "it looks the same without the fault"


def test_bar_alias() -> None:
    assert alias(Host("generic", fault="bar-alias"))
    assert not alias(Host("generic"))
    host = Host("generic,fault=bar-alias=3,trap=sparse")
    host.write(1, 0, 0xCAFE)
    assert host.read(3, 0) == 0xCAFE
    assert host.endpoint.regions()[1].fd == host.endpoint.regions()[3].fd


def test_msix_dead() -> None:
    assert dead_msix(Host("generic", fault="msix-dead"))
    assert not dead_msix(Host("generic"))


def test_irq_twice_by_intx() -> None:
    host = Host("generic,fault=irq-twice=all")
    host.command(SimCommand.RAISE_INTX, irq=0)
    for count in (1, 2, 2):
        assert len(host.fired) == count
        host.mask_intx(False)


def test_all_of_them_are_tested() -> None:
    tested = {fault.partition("=")[0] for fault, _ in CHECKS}
    # test_epf_vntb.py, test_ntb.py
    vntb = {name for name, fault in FAULTS.items() if fault.function == "epf_vntb"}
    # tests/unit/epf_test/test_more.py
    more = {name for name, fault in FAULTS.items() if fault.more}
    assert tested | vntb | more | {"bar-alias", "cap-loop", "msix-dead"} == set(FAULTS)


@pytest.mark.parametrize("name", FAULTS)
def test_what_cannot_be_mapped_is_trapped(name: str) -> None:
    host = Host("rk3588", fault=name, trap="sparse")
    mapped = any(region.areas for region in host.endpoint.regions())
    assert mapped != FAULTS[name].traps


def test_arguments() -> None:
    assert parse_fault("slow") == ("slow", 200)
    assert parse_fault("slow=0x10") == ("slow", 16)
    faults = Faults(["wrong-bar", "irq-lost=commands"])
    assert faults.get("wrong-bar", 5) == 5
    assert "silent" not in faults
    assert faults.hits("irq-lost", 0)
    assert not faults.hits("irq-lost", 1)
