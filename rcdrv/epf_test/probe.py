"""Find the BAR with the test registers."""

from __future__ import annotations

from rcdrv import parts
from rcdrv.epf_test.registers import BLOCK_SIZE, KNOWN_CAPS, NO_BAR, Command, IrqType, Reg
from rcdrv.function import Function
from rcdrv.mmio import Window


def find_register_bar(function: Function) -> int:
    """Return the BAR with the test registers.

    That is the BAR of the part's ID (default BAR0) if its contents fit, else the only other BAR
    whose contents fit, else the BAR of the ID. An endpoint can have any ID, and on another part the
    controller's own registers may be there. Costs one to four reads a BAR, and no write.
    """
    usual = parts.part_of(function.config.vendor_id, function.config.device_id).reg_bar
    fitting = [
        bar.index
        for bar in function.bars
        if bar is not None and bar.is_memory and bar.size >= BLOCK_SIZE
    ]
    # Leftovers of an earlier run in the other registers do not matter here.
    if usual in fitting and _has_caps_and_db_bar(function.bar(usual)):
        return usual
    others = [
        index for index in fitting if index != usual and _looks_like_registers(function.bar(index))
    ]
    return others[0] if len(others) == 1 else usual


def _has_caps_and_db_bar(window: Window) -> bool:
    """Whether CAPS and DB_BAR have values that only pci-epf-test writes; zeroed memory has not."""
    caps = window.read32(Reg.CAPS)
    known = caps != 0 and not caps & ~KNOWN_CAPS
    return known and window.read32(Reg.DB_BAR) in (*range(6), NO_BAR)


def _looks_like_registers(window: Window) -> bool:
    """Whether all registers fit a pci-epf-test that is idle, or stuck at a command."""
    return (
        _has_caps_and_db_bar(window)
        and window.read32(Reg.COMMAND) in (0, *Command)
        and window.read32(Reg.IRQ_TYPE) <= IrqType.MSIX
    )
