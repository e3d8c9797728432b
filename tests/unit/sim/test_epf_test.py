"""pci-epf-test's protocol, command by command."""

from __future__ import annotations

import os
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rcdrv.device import IrqKind
from rcdrv.sim.description import K, M
from rcdrv.sim.epf_test.function import crc32_le
from rcdrv.sim.epf_test.registers import NO_BAR, USE_DMA, SimCommand, SimRegister, SimStatus
from rcdrv.sim.layout import parse_layout

from .host import MEMORY_BASE, Host, epf_test

KNOWN = [int(command) for command in SimCommand]


def test_the_checksum_has_no_final_inversion() -> None:
    # Computed with a bitwise crc32_le(~0, ...), polynomial 0xedb88320.
    assert crc32_le(b"") == 0xFFFF_FFFF
    assert crc32_le(b"123456789") == 0xCBF4_3926 ^ 0xFFFF_FFFF


# -- taking commands ------------------------------------------------------------------------------


@given(st.integers(1, 0xFFFF_FFFF), st.integers(0, 4))
@settings(max_examples=60)
def test_a_command_is_one_known_bit_or_swallowed(command: int, irq: int) -> None:
    host = Host("generic")
    if command == SimCommand.DISABLE_DOORBELL:
        return  # crashes a fresh endpoint, below
    status = host.command(command, irq=irq)
    assert host.get(SimRegister.COMMAND) == 0
    answered = command in KNOWN and irq <= 2
    assert bool(status) == answered
    assert bool(status & SimStatus.IRQ_RAISED) == answered
    assert len(host.fired) == answered
    assert bool(host.events("swallowed")) != answered
    host.close()


@pytest.mark.parametrize("command", [c for c in KNOWN if c != SimCommand.DISABLE_DOORBELL])
@pytest.mark.parametrize("irq", [0, 1, 2])
def test_every_answer_raises_the_interrupt_that_was_asked_for(command: int, irq: int) -> None:
    host = Host("generic")
    number = 0 if irq == 0 else 7
    assert host.command(command, irq=irq, number=number) & SimStatus.IRQ_RAISED
    assert host.fired == [(IrqKind(irq), max(0, number - 1))]


def test_a_command_clears_the_status_of_the_last() -> None:
    host = Host("generic")
    host.set(SimRegister.STATUS, 0xFFFF_FFFF)
    assert host.command(0x1000) == 0


def test_irq_type_is_read_before_command() -> None:
    """A stale IRQ_TYPE swallows the next command even if it is put right in the same tick."""
    host = Host("generic")
    host.set(SimRegister.IRQ_TYPE, 3)
    reads: list[int] = []
    window = host.endpoint.controller.window(0)
    plain = window.read32

    def read32(offset: int) -> int:
        reads.append(offset)
        return plain(offset)

    window.read32 = read32  # type: ignore[method-assign]
    host.set(SimRegister.COMMAND, SimCommand.RAISE_MSI)
    host.advance(0.01)
    assert reads.index(SimRegister.IRQ_TYPE) < reads.index(SimRegister.COMMAND)
    assert host.get(SimRegister.STATUS) == 0


@pytest.mark.parametrize("hz", [100, 250, 300, 1000])
def test_the_tick_is_that_of_the_kernel(hz: int) -> None:
    """msecs_to_jiffies(1) is one jiffy, and a timer takes up to one more."""
    host = Host("generic", hz=hz)
    host.advance(0.1)
    delays = []
    for step in range(50):
        host.advance(0.0137 * step % 0.031)
        start = host.now
        host.set(SimRegister.COMMAND, SimCommand.RAISE_MSI)
        while host.get(SimRegister.COMMAND):
            due = host.endpoint.next_event()
            assert due is not None
            host.now = due
            host.endpoint.run()
        delays.append(host.now - start)
    assert 0 <= min(delays) < 0.5 / hz
    assert 1.5 / hz < max(delays) <= 2.001 / hz


def test_no_tick_without_a_client() -> None:
    host = Host("rk3588")
    host.endpoint.detach()
    assert host.endpoint.next_event() is None


def test_registers_in_mapped_memory_are_polled() -> None:
    host = Host("rcar-s4", trap="sparse")
    window = host.endpoint.controller.window(0)
    assert host.endpoint.regions()[0].areas
    window.write32(SimRegister.IRQ_TYPE, 1)
    window.write32(SimRegister.IRQ_NUMBER, 1)
    window.write32(SimRegister.COMMAND, SimCommand.RAISE_MSI)
    host.advance(0.01)
    assert window.read32(SimRegister.STATUS) == SimStatus.IRQ_RAISED


# -- interrupts -----------------------------------------------------------------------------------


def test_above_the_armed_count_nothing_is_raised() -> None:
    host = Host("generic")
    for irq, kind in ((1, IrqKind.MSI), (2, IrqKind.MSIX)):
        host.vectors[kind] = 4
        for number in range(1, 6):
            assert (
                host.command(SimCommand.RAISE_MSI, irq=irq, number=number) == SimStatus.IRQ_RAISED
            )
            assert host.fired == ([(kind, number - 1)] if number <= 4 else [])
    assert len(host.events("irq-failed")) == 2


def test_irq_number_0_is_harm() -> None:
    host = Host("generic")
    assert host.command(SimCommand.RAISE_MSIX, irq=2, number=0) == SimStatus.IRQ_RAISED
    assert not host.fired
    assert host.events("harm")


def test_messages_need_bus_mastering() -> None:
    host = Host("generic")
    host.write_config(4, 2, 0x2)
    assert host.command(SimCommand.RAISE_MSI) == SimStatus.IRQ_RAISED
    assert not host.fired
    assert host.command(SimCommand.RAISE_INTX, irq=0) == SimStatus.IRQ_RAISED
    assert host.fired


# -- transfers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 3, 1024, 1025, 1024000, 1024001])
@pytest.mark.parametrize("flags", [0, USE_DMA])
@pytest.mark.parametrize("offset", [0, 1, 0xFFD])
def test_transfers(size: int, flags: int, offset: int) -> None:
    host = Host("generic")
    source, target = MEMORY_BASE + offset, MEMORY_BASE + 2 * M + offset
    data = os.urandom(size)
    host.memory[offset : offset + size] = data
    common = {"src_addr": source, "dst_addr": target, "size": size, "flags": flags}

    right = crc32_le(data)
    status = host.command(SimCommand.READ, checksum=right, **common)
    assert status == SimStatus.READ_SUCCESS | SimStatus.IRQ_RAISED
    status = host.command(SimCommand.READ, checksum=right ^ 1, **common)
    assert status == SimStatus.READ_FAIL | SimStatus.IRQ_RAISED

    status = host.command(SimCommand.COPY, **common)
    assert status == SimStatus.COPY_SUCCESS | SimStatus.IRQ_RAISED
    start = 2 * M + offset
    assert host.memory[start : start + size] == data
    assert not any(host.memory[start + size : start + size + 64])

    status = host.command(SimCommand.WRITE, **common)
    assert status == SimStatus.WRITE_SUCCESS | SimStatus.IRQ_RAISED
    written = host.memory[start : start + size]
    assert host.get(SimRegister.CHECKSUM) == zlib.crc32(written) ^ 0xFFFF_FFFF
    assert size < 8 or written != data


def test_write_settles_before_it_answers() -> None:
    host = Host("generic")
    host.set(SimRegister.DST_ADDR, MEMORY_BASE & 0xFFFF_FFFF)
    host.write(0, SimRegister.DST_ADDR + 4, MEMORY_BASE >> 32)
    host.set(SimRegister.SIZE, 4)
    host.set(SimRegister.COMMAND, SimCommand.WRITE)
    while host.get(SimRegister.COMMAND):
        host.now = host.endpoint.next_event() or 0
        host.endpoint.run()
    assert host.dma
    assert host.get(SimRegister.STATUS) == 0
    host.advance(0.002)
    assert host.get(SimRegister.STATUS) & SimStatus.WRITE_SUCCESS


def test_without_bus_mastering_or_mapping_the_data_is_lost() -> None:
    for spoil in ("master", "unmapped"):
        host = Host("generic")
        address = MEMORY_BASE
        if spoil == "master":
            host.write_config(4, 2, 0x2)
        else:
            address = 0x10_0000
        common = {"src_addr": address, "dst_addr": address, "size": 64}
        read = host.command(SimCommand.READ, checksum=crc32_le(bytes(64)), **common)
        assert read == SimStatus.READ_FAIL | SimStatus.IRQ_RAISED
        ones = host.command(SimCommand.READ, checksum=crc32_le(b"\xff" * 64), **common)
        assert ones & SimStatus.READ_SUCCESS
        assert host.command(SimCommand.WRITE, **common) & SimStatus.WRITE_SUCCESS
        assert not any(host.memory)
        assert len(host.events("dma-fault")) == 3


def test_no_outbound_window() -> None:
    host = Host("generic", outbound_size=1 * M)
    common = {"src_addr": MEMORY_BASE, "dst_addr": MEMORY_BASE, "size": M + 1}
    invalid_source = SimStatus.SRC_ADDR_INVALID | SimStatus.IRQ_RAISED
    invalid_target = SimStatus.DST_ADDR_INVALID | SimStatus.IRQ_RAISED
    assert host.command(SimCommand.READ, **common) == SimStatus.READ_FAIL | invalid_source
    assert host.command(SimCommand.WRITE, **common) == SimStatus.WRITE_FAIL | invalid_target
    assert host.command(SimCommand.COPY, **common) == SimStatus.COPY_FAIL | invalid_source
    # Each fits alone, the two of a copy do not.
    common["size"] = M
    assert host.command(SimCommand.COPY, **common) == SimStatus.COPY_FAIL | invalid_target
    assert host.command(SimCommand.WRITE, **common) & SimStatus.WRITE_SUCCESS
    assert not [entry for entry in host.dma if entry[0] == "read"]


def test_the_largest_allocation() -> None:
    host = Host("generic")
    status = host.command(SimCommand.READ, src_addr=MEMORY_BASE, size=(4 << 20) + 1)
    assert status == SimStatus.READ_FAIL | SimStatus.IRQ_RAISED
    assert host.events("harm")
    assert not host.dma


def test_lost_address_bits_where_the_controller_does_not_align() -> None:
    host = Host("j721e")
    host.memory[0:4] = b"data"
    read = {"size": 4, "checksum": crc32_le(b"data")}
    assert host.command(SimCommand.READ, src_addr=MEMORY_BASE, **read) & SimStatus.READ_SUCCESS
    assert (
        host.command(SimCommand.READ, src_addr=MEMORY_BASE + 255, **read) & SimStatus.READ_SUCCESS
    )
    assert host.command(SimCommand.READ, src_addr=MEMORY_BASE + 256, **read) & SimStatus.READ_FAIL


def test_a_ring_during_a_transfer_is_answered_at_once() -> None:
    host = Host("rk3588")
    host.command(SimCommand.ENABLE_DOORBELL)
    rung: list[int] = []

    def ring() -> None:
        if not rung:
            host.write(4, 0xA0, 0)
            rung.append(host.get(SimRegister.STATUS))

    host.during_dma = ring
    common = {"src_addr": MEMORY_BASE, "size": 4096, "checksum": crc32_le(bytes(4096))}
    status = host.command(SimCommand.READ, **common)
    assert rung == [SimStatus.DOORBELL_SUCCESS | SimStatus.IRQ_RAISED]
    # pci_epf_test_read() writes STATUS anew, as the kernel's does.
    assert status == SimStatus.READ_SUCCESS | SimStatus.IRQ_RAISED
    assert len(host.fired) == 2


# -- doorbell -------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["rk3588", "rcar-s4", "imx95", "imx8m", "generic"])
def test_enable_and_disable_in_every_order(preset: str) -> None:
    host = Host(preset)
    assert host.command(SimCommand.ENABLE_DOORBELL) & SimStatus.DOORBELL_ENABLE_SUCCESS
    bar = host.get(SimRegister.DB_BAR)
    assert host.command(SimCommand.ENABLE_DOORBELL) & SimStatus.DOORBELL_ENABLE_FAIL
    assert host.get(SimRegister.DB_BAR) == bar
    host.ring()
    assert host.fired
    assert host.command(SimCommand.DISABLE_DOORBELL) & SimStatus.DOORBELL_DISABLE_SUCCESS
    assert host.get(SimRegister.DB_BAR) == NO_BAR
    assert host.command(SimCommand.DISABLE_DOORBELL) & SimStatus.DOORBELL_DISABLE_FAIL
    assert host.command(SimCommand.ENABLE_DOORBELL) & SimStatus.DOORBELL_ENABLE_SUCCESS
    assert host.get(SimRegister.DB_BAR) == bar


def test_disable_without_enable_is_a_null_pointer() -> None:
    host = Host("rk3588")
    assert host.command(SimCommand.DISABLE_DOORBELL) == 0
    assert host.get(SimRegister.COMMAND) == 0
    assert host.events("oops")
    for command in (SimCommand.RAISE_MSI, SimCommand.ENABLE_DOORBELL):
        assert host.command(command) == 0
        assert host.get(SimRegister.COMMAND) == command
    host.endpoint.reset()
    host.attach()
    assert host.command(SimCommand.RAISE_MSI) == 0


def test_a_failed_enable_leaves_db_bar_as_the_kernel_does() -> None:
    # No backend: nothing is written. No BAR: NO_BAR is.
    assert Host("am654").command(SimCommand.ENABLE_DOORBELL) & SimStatus.DOORBELL_ENABLE_FAIL
    layout = parse_layout(
        {"bar0": {}, "msi": 1, "doorbell": {"backend": "embedded", "address": 0x1000}}
    )
    host = Host(layout)
    assert host.command(SimCommand.ENABLE_DOORBELL) & SimStatus.DOORBELL_ENABLE_FAIL
    assert host.get(SimRegister.DB_BAR) == NO_BAR
    assert host.command(SimCommand.DISABLE_DOORBELL) & SimStatus.DOORBELL_DISABLE_FAIL
    assert not host.events("oops")


def test_a_page_that_the_controller_cannot_map() -> None:
    table = {
        "bar0": {},
        "bar1": {"type": "fixed", "size": 256},
        "msi": 1,
        "align": "64K",
        "doorbell": {"backend": "embedded", "address": 0x33B8_10A0},
    }
    host = Host(parse_layout(table))
    assert host.command(SimCommand.ENABLE_DOORBELL) & SimStatus.DOORBELL_ENABLE_FAIL
    assert host.get(SimRegister.DB_BAR) == NO_BAR
    table["doorbell"] = {"backend": "embedded", "address": 0x33B8_00A0}
    assert Host(parse_layout(table)).command(SimCommand.ENABLE_DOORBELL) & 1 << 10


def test_rings_interrupt_as_the_registers_stand_then() -> None:
    host = Host("rk3588")
    host.command(SimCommand.ENABLE_DOORBELL)
    host.set(SimRegister.IRQ_TYPE, 2)
    host.set(SimRegister.IRQ_NUMBER, 9)
    host.ring()
    assert host.fired == [(IrqKind.MSIX, 8)]
    host.set(SimRegister.IRQ_TYPE, 7)
    host.ring()
    assert not host.fired
    assert host.get(SimRegister.STATUS) == SimStatus.DOORBELL_SUCCESS | SimStatus.IRQ_RAISED


def test_overwriting_db_bar_restores_the_wrong_bar() -> None:
    host = Host("rcar-s4")
    host.write(2, 0, 0x1234_5678)
    host.command(SimCommand.ENABLE_DOORBELL)
    host.set(SimRegister.DB_BAR, 4)
    assert host.command(SimCommand.DISABLE_DOORBELL) & SimStatus.DOORBELL_DISABLE_SUCCESS
    assert host.read(2, 0) == 0  # still the registers'
    host = Host("rcar-s4")
    host.command(SimCommand.ENABLE_DOORBELL)
    host.set(SimRegister.DB_BAR, 1000)
    assert host.command(SimCommand.DISABLE_DOORBELL) == 0
    assert host.events("oops")
    host = Host("rcar-s4")
    host.command(SimCommand.ENABLE_DOORBELL)
    host.set(SimRegister.DB_BAR, 6)  # after epf->bar[] a size is 0: pci_epc_set_bar() refuses
    assert host.command(SimCommand.DISABLE_DOORBELL) & SimStatus.DOORBELL_DISABLE_FAIL
    assert not host.events("oops")


# -- subrange mapping -----------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["rk3588", "imx95", "generic"])
def test_the_halves_come_back_swapped(preset: str) -> None:
    host = Host(preset)
    index = 3
    half = host.layout.bar(index).size // 2
    assert host.command(SimCommand.BAR_SUBRANGE_SETUP, size=index) & (
        SimStatus.BAR_SUBRANGE_SETUP_SUCCESS
    )
    read = host.endpoint.read
    for part in range(2):
        assert read(index, part * half, half) == bytes([0x50 + 8 * index + part]) * half
        host.endpoint.write(index, part * half, bytes([0xA0 + 8 * index + part]) * half)
    assert host.command(SimCommand.BAR_SUBRANGE_CLEAR, size=index) & (
        SimStatus.BAR_SUBRANGE_CLEAR_SUCCESS
    )
    for part in range(2):
        assert read(index, part * half, half) == bytes([0xA0 + 8 * index + (part ^ 1)]) * half
    assert (
        host.command(SimCommand.BAR_SUBRANGE_CLEAR, size=index) & SimStatus.BAR_SUBRANGE_CLEAR_FAIL
    )


@pytest.mark.parametrize("bar", [0, 6, 0xFFFF_FFFF])
def test_subrange_of_no_such_bar(bar: int) -> None:
    host = Host("rk3588")
    for command, fail in (
        (SimCommand.BAR_SUBRANGE_SETUP, SimStatus.BAR_SUBRANGE_SETUP_FAIL),
        (SimCommand.BAR_SUBRANGE_CLEAR, SimStatus.BAR_SUBRANGE_CLEAR_FAIL),
    ):
        assert host.command(command, size=bar) == fail | SimStatus.IRQ_RAISED
    assert bool(host.events("harm")) == (bar >= 0x8000_0000)


@pytest.mark.parametrize("command", [SimCommand.BAR_SUBRANGE_SETUP, SimCommand.BAR_SUBRANGE_CLEAR])
def test_a_bar_number_of_0x80000000_is_an_oops(command: SimCommand) -> None:
    """pci_epf_test_bar_subrange_setup() and _clear() index epf->bar[] with it, signed."""
    host = Host("rk3588")
    assert host.command(command, size=0x8000_0000) == 0
    assert host.events("oops")
    assert host.command(SimCommand.RAISE_MSI) == 0


def test_a_bus_reset_between_setup_and_clear_costs_the_bar() -> None:
    """dw_pcie_ep_set_bar() refuses a submap in the first call, and neither
    pci_epf_test_epc_deinit() nor pci_epf_free_space() clears epf->bar[].submap."""
    host = Host("rk3588", reset="bus")
    host.command(SimCommand.BAR_SUBRANGE_SETUP, size=1)
    host.endpoint.reset()
    host.attach()
    assert host.read(1, 0) == 0xFFFF_FFFF
    assert host.read_config(0x14, 4) == 0
    assert host.endpoint.regions()[1].size == 0
    assert host.command(SimCommand.BAR_SUBRANGE_CLEAR, size=1) & SimStatus.BAR_SUBRANGE_CLEAR_FAIL
    epf_test(host.endpoint).unbind()
    epf_test(host.endpoint).bind()
    host.attach()
    assert host.endpoint.regions()[1].size == 0  # a rebind has the same struct pci_epf
    assert host.endpoint.regions()[2].size


def test_a_bus_reset_after_clear_costs_nothing() -> None:
    host = Host("rk3588", reset="bus")
    host.command(SimCommand.BAR_SUBRANGE_SETUP, size=1)
    host.command(SimCommand.BAR_SUBRANGE_CLEAR, size=1)
    host.endpoint.reset()
    host.attach()
    host.write(1, 0, 0xCAFE)
    assert host.read(1, 0) == 0xCAFE


@pytest.mark.parametrize("preset", ["rk3588", "rcar-s4", "imx95"])
def test_unbinding_with_a_doorbell_on_costs_the_doorbell(preset: str) -> None:
    """pci_epf_test_unbind() does not call pci_epf_free_doorbell(): -EBUSY from then on, and the
    new registers have a DB_BAR of 0."""
    host = Host(preset)
    host.command(SimCommand.ENABLE_DOORBELL)
    epf_test(host.endpoint).unbind()
    assert host.get(SimRegister.DB_BAR) == 0xFFFF_FFFF  # no BAR
    epf_test(host.endpoint).bind()
    host.attach()
    for _ in range(2):
        assert host.command(SimCommand.ENABLE_DOORBELL) & SimStatus.DOORBELL_ENABLE_FAIL
        assert host.get(SimRegister.DB_BAR) == 0
    assert not host.events("oops")


def test_a_ring_while_nothing_is_bound_is_a_null_pointer() -> None:
    """pci_epf_test_doorbell_handler() with epf_test->reg[] NULL."""
    host = Host("rk3588")
    host.command(SimCommand.ENABLE_DOORBELL)
    epf_test(host.endpoint).unbind()
    host.fired.clear()
    host.write(4, 0xA0, 0)
    assert host.events("oops")
    assert not host.fired


def test_unbinding_after_disable_costs_nothing() -> None:
    host = Host("rk3588")
    host.command(SimCommand.ENABLE_DOORBELL)
    host.command(SimCommand.DISABLE_DOORBELL)
    epf_test(host.endpoint).unbind()
    epf_test(host.endpoint).bind()
    host.attach()
    assert host.command(SimCommand.ENABLE_DOORBELL) & SimStatus.DOORBELL_ENABLE_SUCCESS
    host.ring()
    assert host.fired


def test_bars_without_a_window_are_left_out() -> None:
    """pci_epf_test_set_bar() goes on without a BAR; only that of the registers is an error."""
    host = Host("rk3588", inbound_windows=3)
    assert [bool(region.size) for region in host.endpoint.regions()[:6]] == [
        *[True] * 3,
        False,
        True,  # reserved: no endpoint function configures it
        False,
    ]
    assert host.command(SimCommand.BAR_SUBRANGE_SETUP, size=3) & SimStatus.BAR_SUBRANGE_SETUP_FAIL
    assert not SimStatus(host.get(SimRegister.STATUS)) & SimStatus.NO_RESOURCE


def test_too_few_windows() -> None:
    host = Host("rk3588", inbound_windows=6)
    assert (
        host.command(SimCommand.BAR_SUBRANGE_SETUP, size=1) & SimStatus.BAR_SUBRANGE_SETUP_SUCCESS
    )
    host.write(2, 0, 0xCAFE)
    assert host.command(SimCommand.BAR_SUBRANGE_SETUP, size=2) == (
        SimStatus.BAR_SUBRANGE_SETUP_FAIL | SimStatus.NO_RESOURCE | SimStatus.IRQ_RAISED
    )
    assert host.read(2, 0) == 0xCAFE
    host.command(SimCommand.BAR_SUBRANGE_CLEAR, size=1)
    assert (
        host.command(SimCommand.BAR_SUBRANGE_SETUP, size=2) & SimStatus.BAR_SUBRANGE_SETUP_SUCCESS
    )


def test_a_doorbell_over_swapped_halves() -> None:
    host = Host("rcar-s4")
    host.command(SimCommand.BAR_SUBRANGE_SETUP, size=2)
    host.write(2, 0, 0x1111_1111)
    host.command(SimCommand.ENABLE_DOORBELL)
    assert host.read(2, 0) == 0
    host.ring()
    assert host.fired
    host.command(SimCommand.DISABLE_DOORBELL)
    assert host.read(2, 0) == 0x1111_1111
    host.command(SimCommand.BAR_SUBRANGE_CLEAR, size=2)
    assert host.read(2, 512 * K) == 0x1111_1111
