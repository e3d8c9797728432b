"""The controller: doorbell pages in BARs, INTx, resets."""

from __future__ import annotations

import mmap
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rcdrv.device import IrqKind
from rcdrv.sim.config_space import COMMAND_INTX_DISABLE, STATUS, STATUS_INTERRUPT
from rcdrv.sim.description import K, M
from rcdrv.sim.epf_test.registers import SimCommand, SimRegister, SimStatus
from rcdrv.sim.functions import doorbell_place

from .host import MEMORY_BASE, Host

ON_DEMAND = ["rcar-s4", "imx95", "imx8m", "generic"]


# -- the doorbell's BAR ---------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ON_DEMAND)
@pytest.mark.parametrize("trap", ["sparse", "all"])
def test_contents_after_any_number_of_cycles(preset: str, trap: str) -> None:
    host = Host(preset, trap=trap)
    place = doorbell_place(host.layout)
    assert place is not None
    bar = place[0]
    size = host.layout.bar(bar).size
    contents = os.urandom(size)
    host.endpoint.write(bar, 0, contents)
    descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(20):
        host.command(SimCommand.ENABLE_DOORBELL, seconds=0.005)
        assert host.endpoint.read(bar, 0, size) != contents
        host.ring()
        assert host.fired
        host.command(SimCommand.DISABLE_DOORBELL, seconds=0.005)
        assert host.endpoint.read(bar, 0, size) == contents
    assert len(os.listdir("/proc/self/fd")) == descriptors  # noqa: PTH208
    assert not host.events("stray")


@pytest.mark.parametrize("preset", ON_DEMAND)
def test_writes_beside_an_enabled_doorbell_are_noticed(preset: str) -> None:
    host = Host(preset, trap="sparse")
    place = doorbell_place(host.layout)
    assert place is not None
    bar, offset = place
    area = host.endpoint.regions()[bar].areas[-1]
    host.write(bar, area.offset, 0x1111_1111)
    host.command(SimCommand.ENABLE_DOORBELL)
    host.write(bar, offset ^ 4, 0xBAD)
    assert [entry["offset"] for entry in host.events("stray")] == [offset ^ 4]
    with mmap.mmap(host.endpoint.regions()[bar].fd, host.layout.bar(bar).size) as client:
        client[area.offset + 8] = 3
    host.command(SimCommand.DISABLE_DOORBELL)
    assert [entry["offset"] for entry in host.events("stray")][1:] == [area.offset + 8]
    assert host.read(bar, area.offset) == 0x1111_1111


def test_the_exposed_register_is_always_there() -> None:
    host = Host("rk3588")
    host.write(4, 0xA0, 0)
    assert not host.fired
    assert host.events("doorbell-unheard")
    assert host.read(4, 8) == 4 | 4 << 16  # DMA_CTRL: channels of the eDMA
    host.write(4, 0xA4, 1)
    assert host.events("stray")
    host.write(4, 0x8000, 0x1234)
    assert host.read(4, 0x8000) == 0x1234


@pytest.mark.parametrize("offset", [0x40, 0x7C, 0x200, 0x3FC])
def test_a_doorbell_among_the_registers(offset: int) -> None:
    host = Host(f"generic,doorbell.backend=exposed,doorbell.bar=0,doorbell.offset={offset}")
    assert host.command(SimCommand.ENABLE_DOORBELL) & SimStatus.DOORBELL_ENABLE_SUCCESS
    assert (host.get(SimRegister.DB_BAR), host.get(SimRegister.DB_OFFSET)) == (0, offset)
    host.ring()
    assert host.fired
    host.write(0, offset - 4, 0xCAFE)
    assert host.read(0, offset - 4) == 0xCAFE
    assert not host.events("stray")


@given(st.sampled_from([1, 2, 4, 8]), st.integers(0, 0xFFFF_FFFF))
@settings(max_examples=40)
def test_any_write_to_the_edma_register_rings(size: int, value: int) -> None:
    host = Host("rk3588")
    host.command(SimCommand.ENABLE_DOORBELL)
    host.set(SimRegister.STATUS, 0)
    host.write(4, 0xA0, value & (1 << 8 * size) - 1, size)
    assert host.get(SimRegister.STATUS) & SimStatus.DOORBELL_SUCCESS
    assert len(host.events("doorbell")) == 1
    assert bool(host.events("doorbell-unheard")) == (size < 4)
    host.close()


@pytest.mark.parametrize(
    ("size", "value", "rings"),
    [(4, 0x2A, 1), (2, 0x2A, 1), (1, 0x2A, 0), (4, 0x2B, 0), (4, 0, 0), (8, 0x2A, 1)],
)
def test_the_its_wants_the_event_number(size: int, value: int, rings: int) -> None:
    host = Host("imx95")
    host.command(SimCommand.ENABLE_DOORBELL)
    host.write(1, 0x40, value, size)
    assert len(host.events("doorbell")) == rings
    assert bool(host.events("doorbell-unheard")) != bool(rings)
    assert host.read(1, 0x40) == 0


def test_a_bulk_write_over_the_doorbell_rings_once() -> None:
    host = Host("imx95", trap="all")
    host.command(SimCommand.ENABLE_DOORBELL)
    host.endpoint.write(1, 0x3E, bytes(2) + (0x2A).to_bytes(4, "little") + bytes(5))
    assert len(host.events("doorbell")) == 1


# -- INTx -----------------------------------------------------------------------------------------


def interrupt_status(host: Host) -> bool:
    return bool(host.read_config(STATUS, 2) & STATUS_INTERRUPT)


def test_a_level_is_held_until_the_host_has_handled_it() -> None:
    host = Host("generic")
    host.command(SimCommand.RAISE_INTX, irq=0, seconds=1.0)
    assert host.fired == [(IrqKind.INTX, 0)]
    assert interrupt_status(host)
    host.mask_intx(False)
    assert not interrupt_status(host)
    assert len(host.fired) == 1


def test_a_level_that_was_masked_fires_on_unmask() -> None:
    host = Host("generic")
    host.set(SimRegister.IRQ_TYPE, 0)
    host.mask_intx(True)
    host.set(SimRegister.COMMAND, SimCommand.RAISE_INTX)
    host.advance(1.0)
    assert not host.fired
    assert interrupt_status(host)
    host.mask_intx(False)
    assert host.fired == [(IrqKind.INTX, 0)]


def test_a_pulse_that_nobody_takes_is_gone() -> None:
    host = Host("tegra194")
    host.set(SimRegister.IRQ_TYPE, 0)
    host.mask_intx(True)
    host.set(SimRegister.COMMAND, SimCommand.RAISE_INTX)
    host.advance(0.1)
    assert not interrupt_status(host)
    host.mask_intx(False)
    assert not host.fired


def test_a_pulse_fires_again_while_it_lasts() -> None:
    host = Host("tegra194")
    host.set(SimRegister.IRQ_TYPE, 0)
    host.set(SimRegister.COMMAND, SimCommand.RAISE_INTX)
    while not host.fired:
        host.now = host.endpoint.next_event() or 0
        host.endpoint.run()
    start = host.now
    host.mask_intx(False)
    assert len(host.fired) == 2
    host.advance(0.01)
    # The host is still at it, and looks at STATUS to find out which function interrupted.
    assert interrupt_status(host)
    host.mask_intx(False)
    assert len(host.fired) == 2
    assert not interrupt_status(host)
    assert host.now - start > 0.001


def test_intx_disabled_in_command() -> None:
    host = Host("generic")
    host.write_config(4, 2, 0x6 | COMMAND_INTX_DISABLE)
    assert host.command(SimCommand.RAISE_INTX, irq=0) == SimStatus.IRQ_RAISED
    assert not host.fired
    assert not interrupt_status(host)


# -- when it does not respond ---------------------------------------------------------------------


@pytest.mark.parametrize("how", ["memory", "d3"])
def test_bars_are_not_decoded(how: str) -> None:
    host = Host("generic")
    host.write(2, 0, 0x1234)
    offset, off, on = (4, 0x4, 0x6) if how == "memory" else (0x44, 0x3, 0x0)
    host.write_config(offset, 2, off)
    assert host.read(2, 0) == 0xFFFF_FFFF
    host.write(2, 0, 0)
    host.write_config(offset, 2, on)
    assert host.read(2, 0) == 0x1234


# -- resets ---------------------------------------------------------------------------------------


def flr(host: Host) -> None:
    host.write_config(0x78, 2, 0x8000)


def device_reset(host: Host) -> None:
    host.endpoint.reset()


@pytest.mark.parametrize("preset", ["rk3588", "rcar-s4"])
@pytest.mark.parametrize("trigger", [flr, device_reset])
def test_flr_spares_everything_but_config_space(preset: str, trigger: object) -> None:
    host = Host(preset)
    host.write(2, 0x10, 0xCAFE)
    host.write_config(0x10, 4, 0xE000_0000)
    host.command(SimCommand.ENABLE_DOORBELL)
    assert callable(trigger)
    trigger(host)
    assert host.read_config(4, 2) == 0
    assert host.read_config(0x10, 4) == 0
    host.write_config(4, 2, 0x6)
    host.ring()
    assert host.fired
    host.command(SimCommand.DISABLE_DOORBELL)
    assert host.read(2, 0x10) == 0xCAFE


def test_a_bus_reset_sets_the_function_up_again() -> None:
    host = Host("rcar-s4", reset="bus")
    assert host.read_config(0x74, 4) >> 28 & 1 == 0
    assert host.endpoint.can_reset()
    host.write(2, 0x10, 0xCAFE)
    host.command(SimCommand.ENABLE_DOORBELL)
    host.set(SimRegister.COMMAND, 0x10000)
    host.endpoint.reset()
    host.write_config(4, 2, 0x6)
    # The BARs show their memory again, but the doorbell was never freed.
    assert host.read(2, 0x10) == 0xCAFE
    assert host.command(SimCommand.ENABLE_DOORBELL) & SimStatus.DOORBELL_ENABLE_FAIL
    assert host.command(SimCommand.DISABLE_DOORBELL) & SimStatus.DOORBELL_DISABLE_SUCCESS
    assert host.command(SimCommand.ENABLE_DOORBELL) & SimStatus.DOORBELL_ENABLE_SUCCESS


def test_a_bus_reset_ends_a_transfer() -> None:
    host = Host("generic", reset="bus")

    def reset() -> None:
        host.during_dma = None
        host.endpoint.reset()
        host.write_config(4, 2, 0x6)

    host.during_dma = reset
    assert host.command(SimCommand.READ, src_addr=MEMORY_BASE, size=64) == 0
    assert not host.fired
    assert host.command(SimCommand.RAISE_MSI) == SimStatus.IRQ_RAISED


def test_no_reset() -> None:
    host = Host("rcar-s4", reset="none")
    assert not host.endpoint.can_reset()
    host.write_config(0x10, 4, 0xE000_0000)
    host.endpoint.reset()
    flr(host)
    assert host.read_config(0x10, 4) == 0xE000_0000


@pytest.mark.parametrize("reset", ["flr", "bus", "none"])
def test_a_client_that_vanished_leaves_its_doorbell_to_the_next(reset: str) -> None:
    host = Host("rk3588", reset=reset)
    host.command(SimCommand.ENABLE_DOORBELL)
    host.endpoint.detach()
    host.attach()
    assert host.get(SimRegister.DB_BAR) == 4
    assert host.command(SimCommand.ENABLE_DOORBELL) & SimStatus.DOORBELL_ENABLE_FAIL
    assert host.command(SimCommand.DISABLE_DOORBELL) & SimStatus.DOORBELL_DISABLE_SUCCESS
    assert host.command(SimCommand.ENABLE_DOORBELL) & SimStatus.DOORBELL_ENABLE_SUCCESS


def test_the_host_turns_the_function_off_when_it_goes() -> None:
    host = Host("generic", reset="none")
    host.command(SimCommand.RAISE_INTX, irq=0)
    host.endpoint.detach()
    assert host.read_config(4, 2) == 0
    assert not interrupt_status(host)


def test_huge_bars_are_sparse() -> None:
    host = Host(
        "generic,bar3.wide=true,bar3.size=64G,bar4.type=disabled,trap=sparse,doorbell.address=0x4000000000"
    )
    host.write(3, (64 << 30) - 4, 0xCAFE)
    assert host.read(3, (64 << 30) - 4) == 0xCAFE
    assert os.fstat(host.endpoint.regions()[3].fd).st_blocks * 512 <= M
    assert host.command(SimCommand.BAR_SUBRANGE_SETUP, size=3) & SimStatus.BAR_SUBRANGE_SETUP_FAIL


def test_many_vectors() -> None:
    host = Host("rk3588", msix=2048)
    for number in (1, 1024, 2048, 2049):
        host.command(SimCommand.RAISE_MSIX, irq=2, number=number)
        assert host.fired == ([(IrqKind.MSIX, number - 1)] if number <= 2048 else [])
    assert host.layout.msix_pba == 0x80 + 32 * K
