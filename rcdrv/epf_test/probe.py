"""Find the BAR with the test registers, and check their byte order."""

from __future__ import annotations

from rcdrv import parts
from rcdrv.epf_test.registers import (
    BLOCK_SIZE,
    KNOWN_CAPS,
    NO_BAR,
    Caps,
    Command,
    IrqType,
    Reg,
    decode,
    swapped_caps,
)
from rcdrv.errors import UsageError
from rcdrv.function import Function
from rcdrv.mmio import Window
from rcdrv.verdict import Reason, skip


def find_registers(function: Function) -> tuple[int, int | None]:
    """Return the BAR with the test registers, and CAPS if it was recognised there.

    This is the BAR of the part's ID (default BAR0) if its contents fit, else the only other BAR
    whose contents fit, else the BAR of the ID. An endpoint may carry any ID, and the ID's BAR may
    hold the controller's own registers. Takes one to four reads per BAR, and no write.
    """
    part = parts.part_of(function.config.vendor_id, function.config.device_id)
    usual = part.reg_bar
    fitting = [
        bar.index
        for bar in function.bars
        if bar is not None and bar.is_memory and bar.size >= BLOCK_SIZE
    ]
    # Leftovers of an earlier run in the other registers do not matter here.
    if usual in fitting:
        window = function.bar(usual)
        value = window.read32(Reg.CAPS)
        # For a known ID, CAPS alone is sufficient evidence.
        if _fits(value) and (part is not parts.UNKNOWN_PART or _has_db_bar(window)):
            return usual, value
    others = [
        (index, found)
        for index in fitting
        if index != usual and (found := _caps_of_registers(function.bar(index)))
    ]
    return others[0] if len(others) == 1 else (usual, None)


def check_registers(function: Function, reg_bar: int, caps: int) -> None:
    """Refuse the user's BAR if its CAPS does not fit and another BAR holds the registers.

    BAR tests would overwrite the registers in that other BAR, including DB_BAR. A CAPS of 0 proves
    nothing: older versions of pci-epf-test have it, and empty memory too.

    :raises UsageError: names both BARs
    """
    if _fits(caps):
        return
    for bar in function.bars:
        if bar is None or not bar.is_memory or bar.size < BLOCK_SIZE or bar.index == reg_bar:
            continue
        # All registers must fit: an address test leaves 0x30 at the offset of CAPS.
        seen = _caps_of_registers(function.bar(bar.index))
        if seen:
            raise UsageError(
                f"BAR{reg_bar} does not look like the test registers (CAPS {caps:#010x}),"
                f" BAR{bar.index} does (CAPS {seen:#010x})",
                hint="leave `reg_bar` out",
            )


def _fits(caps: int) -> bool:
    """Return whether CAPS has a value that pci-epf-test writes; zeroed memory does not."""
    return caps != 0 and not caps & ~KNOWN_CAPS


def _has_db_bar(window: Window) -> bool:
    return window.read32(Reg.DB_BAR) in (*range(6), NO_BAR)


def _caps_of_registers(window: Window) -> int | None:
    """Return CAPS if all registers fit a pci-epf-test that is idle or stuck at a command."""
    caps = window.read32(Reg.CAPS)
    fits = (
        _fits(caps)
        and _has_db_bar(window)
        and window.read32(Reg.COMMAND) in (0, *Command)
        and window.read32(Reg.IRQ_TYPE) <= IrqType.MSIX
    )
    return caps if fits else None


def check_caps_order(caps: Caps) -> None:
    """Reject CAPS in the wrong byte order, before a missing bit is reported.

    :raises NotPassed: ``no-caps``, a skip: CAPS looks byte-swapped
    """
    swapped = swapped_caps(caps)
    if swapped is not None:
        raise skip(
            Reason.NO_CAPS,
            f"CAPS look byte-swapped: {int(caps):#010x} for {int(swapped):#010x}"
            f" {decode(Reg.CAPS, swapped)}",
            hint="a big-endian endpoint whose pci-epf-test writes the registers in its own byte"
            " order; newer kernels convert each with cpu_to_le32()",
        )
