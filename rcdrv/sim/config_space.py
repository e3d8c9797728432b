"""Configuration space (4 KiB) of the endpoint's function.

Every byte has masks of writable bits and of write-1-to-clear bits; other bits are read-only.
Offsets and bits are those of the PCI Express Base Specification (chapter 7.5) and
``include/uapi/linux/pci_regs.h``; capabilities have the places of DesignWare controllers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from rcdrv.sim.description import BarLayout, BarType, Layout, Reset
from rcdrv.sim.faults import CAP_LISTS, Faults

SIZE = 4096

COMMAND, STATUS = 0x04, 0x06
COMMAND_MEMORY, COMMAND_MASTER, COMMAND_INTX_DISABLE = 1 << 1, 1 << 2, 1 << 10
STATUS_INTERRUPT, STATUS_CAPABILITIES = 1 << 3, 1 << 4
BAR0 = 0x10
CAPABILITIES = 0x34
INTERRUPT_PIN = 0x3D

PM, MSI, EXPRESS, MSIX = 0x40, 0x50, 0x70, 0xB0
AER, REBAR, ATS = 0x100, 0x150, 0x1A0

_PM_CONTROL = PM + 4
_DEVICE_CONTROL = EXPRESS + 8
_INITIATE_FLR = 1 << 15
_LINK_STATUS = EXPRESS + 0x12


_NONE = Faults()


class SimConfigSpace:
    """Config space of a layout; offsets and sizes in bytes, data little endian."""

    def __init__(self, layout: Layout, faults: Faults = _NONE) -> None:
        loop = CAP_LISTS[faults.get("cap-loop", 0)] if "cap-loop" in faults else ""
        self._data = bytearray(SIZE)
        self._writable = bytearray(SIZE)
        self._clears = bytearray(SIZE)
        self._flr = layout.reset is Reset.FLR
        self._header(layout)
        compose = {PM: self._power_management, EXPRESS: self._express}
        if layout.msi:
            compose[MSI] = self._msi
        if layout.msix:
            compose[MSIX] = self._msix
        chain = [*sorted(compose), PM if loop == "standard" else 0]
        self._set(CAPABILITIES, 1, PM)
        for offset, following in pairwise(chain):
            compose[offset](layout)
            self._set(offset + 1, 1, following)
        resizable = [
            (index, bar.size)
            for index, bar in enumerate(layout.bars)
            if bar is not None and bar.type is BarType.RESIZABLE
        ]
        rebar_empty = "rebar-empty" in faults
        if rebar_empty and not resizable:
            resizable = [(layout.register_bar, 1 << 20)]
        end = AER if loop == "extended" else 0
        last_but_ats = ATS if layout.ats else end
        self._aer(REBAR if resizable else last_but_ats)
        if resizable:
            self._rebar(resizable, last_but_ats, empty=rebar_empty)
        if layout.ats:
            self._set(ATS, 4, 0x000F | 1 << 16 | end << 20)
            self._set(ATS + 4, 2, 1 << 5)  # page-aligned requests
            self._set(ATS + 6, 2, 0, writable=0x801F)
        self._ignores = ("master-ignored" in faults, "intx-disable-ignored" in faults)
        if "id-writable" in faults:
            self._writable[2:4] = b"\xff\xff"
        if "bar-mask" in faults:
            for index, bar in enumerate(layout.bars):
                if bar is not None:
                    self._bar(index, replace(bar, size=2 * bar.size))
        if "msix-outside" in faults and layout.msix:
            # Behind 4 GiB no offset reaches: there the first entry already ends outside.
            behind = min(layout.bar(layout.msix_bar).size, (1 << 32) - 8)
            self._set(MSIX + 4, 4, behind | layout.msix_bar)
        self._power_on = bytearray(self._data)
        self._decode()

    # -- accesses -----------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self._data[offset : offset + size])

    def write(self, offset: int, data: bytes) -> bool:
        """Write on behalf of the host; read-only bits do not change.

        :returns: whether it requests a function level reset
        """
        for index, byte in enumerate(data, offset):
            writable = self._writable[index]
            if index == _PM_CONTROL and byte & 3 in (1, 2):
                # A write of an unsupported power state is discarded.
                writable = 0
            kept = self._data[index] & ~writable & ~(byte & self._clears[index])
            self._data[index] = kept | byte & writable
        self._decode()
        high = _DEVICE_CONTROL + 1 - offset
        return self._flr and 0 <= high < len(data) and bool(data[high] & _INITIATE_FLR >> 8)

    def disable_bars(self) -> None:
        """Make the BAR registers read-only zeros, also after a reset."""
        self._set(BAR0, 24, 0)
        self._power_on = self._power_on[:BAR0] + bytes(24) + self._power_on[BAR0 + 24 :]

    def slow_link(self) -> None:
        """Let the link run at 2.5 GT/s from now on, also after a function reset."""
        for data in (self._data, self._power_on):
            data[_LINK_STATUS] = data[_LINK_STATUS] & 0xF0 | 1

    def log_bad_tlp(self) -> None:
        """Set Bad TLP in AER's Correctable Error Status."""
        self._data[AER + 0x10] |= 1 << 6

    def reset(self) -> None:
        """Restore the power-on state."""
        self._data[:] = self._power_on
        self._decode()

    def set_bar(self, index: int, bar: BarLayout, *, present: bool) -> None:
        """Present a BAR to an enumerating host, or hide it (__dw_pcie_ep_reset_bar())."""
        if present:
            self._bar(index, bar)
        else:
            self._set(BAR0 + 4 * index, 8 if bar.wide else 4, 0)
        first, end = BAR0 + 4 * index, BAR0 + 4 * index + (8 if bar.wide else 4)
        self._power_on[first:end] = self._data[first:end]

    # -- state used by the controller ----------------------------------------------

    def _decode(self) -> None:
        """Cache what COMMAND and the power state allow."""
        command = self._get(COMMAND, 2)
        awake = self.awake = self._get(_PM_CONTROL, 2) & 3 == 0
        """D0, and not D3hot."""
        self.responds = bool(command & COMMAND_MEMORY) and awake
        """Whether BARs are decoded: COMMAND has MEMORY, and the function is in D0."""
        masters, intx = self._ignores
        self.masters = (masters or bool(command & COMMAND_MASTER)) and awake
        """Whether the function may access host memory, which includes MSI and MSI-X."""
        pin = self._get(INTERRUPT_PIN, 1)
        self.intx_enabled = bool(pin) and awake and (intx or not command & COMMAND_INTX_DISABLE)

    def set_interrupt_status(self, asserted: bool) -> None:
        """Set STATUS bit 3, by which a host finds the function behind a shared INTx line."""
        status = self._get(STATUS, 2) & ~STATUS_INTERRUPT
        self._set(STATUS, 2, status | (STATUS_INTERRUPT if asserted else 0))

    # -- composition --------------------------------------------------------------------------

    def _get(self, offset: int, size: int) -> int:
        return int.from_bytes(self._data[offset : offset + size], "little")

    def _set(
        self, offset: int, size: int, value: int, *, writable: int = 0, clears: int = 0
    ) -> None:
        end = offset + size
        self._data[offset:end] = value.to_bytes(size, "little")
        self._writable[offset:end] = writable.to_bytes(size, "little")
        self._clears[offset:end] = clears.to_bytes(size, "little")

    def _header(self, layout: Layout) -> None:
        self._set(0x00, 2, layout.vendor)
        self._set(0x02, 2, layout.device)
        parity_serr = 1 << 6 | 1 << 8
        self._set(
            COMMAND,
            2,
            0,
            writable=COMMAND_MEMORY | COMMAND_MASTER | COMMAND_INTX_DISABLE | parity_serr,
        )
        self._set(STATUS, 2, STATUS_CAPABILITIES, clears=0xF900)
        self._set(0x0A, 2, layout.class_code)
        self._set(0x0C, 1, 0, writable=0xFF)  # CACHE_LINE_SIZE
        for index, bar in enumerate(layout.bars):
            if bar is not None:
                self._bar(index, bar)
        self._set(0x3C, 1, 0xFF, writable=0xFF)  # INTERRUPT_LINE
        self._set(INTERRUPT_PIN, 1, layout.intx_pin)

    def _bar(self, index: int, bar: BarLayout) -> None:
        flags = (0x4 if bar.wide else 0) | (0x8 if bar.prefetchable else 0)
        # Writing all ones and reading back must give the size: those bits are read-only.
        width = 8 if bar.wide else 4
        mask = (1 << 8 * width) - bar.size & ~0xF
        self._set(BAR0 + 4 * index, width, flags, writable=mask)

    def _power_management(self, _layout: Layout) -> None:
        self._set(PM, 1, 0x01)
        self._set(PM + 2, 2, 0x0003)  # version 3; no D1, D2, no PME
        # NO_SOFT_RESET: D3hot keeps everything.
        self._set(_PM_CONTROL, 2, 1 << 3, writable=0x3)

    def _msi(self, layout: Layout) -> None:
        self._set(MSI, 1, 0x05)
        capable = layout.msi_capable.bit_length() - 1
        self._set(MSI + 2, 2, capable << 1 | 1 << 7, writable=0x0071)  # 64-bit, no masking
        self._set(MSI + 4, 4, 0, writable=0xFFFF_FFFC)
        self._set(MSI + 8, 4, 0, writable=0xFFFF_FFFF)
        self._set(MSI + 12, 2, 0, writable=0xFFFF)

    def _msix(self, layout: Layout) -> None:
        self._set(MSIX, 1, 0x11)
        self._set(MSIX + 2, 2, layout.msix - 1, writable=0xC000)
        self._set(MSIX + 4, 4, layout.msix_table | layout.msix_bar)
        self._set(MSIX + 8, 4, layout.msix_pba | layout.msix_bar)

    def _express(self, layout: Layout) -> None:
        self._set(EXPRESS, 1, 0x10)
        self._set(EXPRESS + 2, 2, 0x0002)  # version 2, endpoint
        role_based_errors = 1 << 15
        flr = 1 << 28 if self._flr else 0
        self._set(EXPRESS + 4, 4, 0x1 | role_based_errors | flr)  # payloads up to 256 bytes
        # INITIATE_FLR always reads 0, so it is not among the writable bits.
        self._set(_DEVICE_CONTROL, 2, 0x2810, writable=0x7FFF)
        self._set(EXPRESS + 0x0A, 2, 0, clears=0x000F)
        link = layout.link_speed | layout.link_width << 4
        self._set(EXPRESS + 0x0C, 4, link)
        self._set(EXPRESS + 0x10, 2, 0, writable=0x01CB)
        self._set(_LINK_STATUS, 2, link | 1 << 12)  # slot clock
        self._set(EXPRESS + 0x24, 4, 0x1F)  # completion time-outs can be set and disabled
        self._set(EXPRESS + 0x28, 2, 0, writable=0x001F)
        self._set(EXPRESS + 0x2C, 4, (1 << layout.link_speed) - 1 << 1)
        self._set(EXPRESS + 0x30, 2, layout.link_speed, writable=0x000F)

    def _aer(self, following: int) -> None:
        self._set(AER, 4, 0x0001 | 2 << 16 | following << 20)
        self._set(AER + 0x04, 4, 0, clears=0x01FF_F030)
        self._set(AER + 0x08, 4, 0x0040_0000, writable=0x01FF_F030)
        self._set(AER + 0x0C, 4, 0x0046_2030, writable=0x01FF_F030)
        self._set(AER + 0x10, 4, 0, clears=0x0000_F1C1)
        self._set(AER + 0x14, 4, 0x0000_E000, writable=0x0000_F1C1)

    def _rebar(self, bars: Sequence[tuple[int, int]], following: int, *, empty: bool) -> None:
        """Compose Resizable BAR: one size per BAR, as by dw_pcie_ep_set_bar_resizable()."""
        self._set(REBAR, 4, 0x0015 | 1 << 16 | following << 20)
        for slot, (index, size) in enumerate(bars):
            exponent = size.bit_length() - 1 - 20
            entry = REBAR + 4 + 8 * slot
            self._set(entry, 4, 0 if empty else 1 << 4 + exponent)
            count = len(bars) << 5 if slot == 0 else 0
            self._set(entry + 4, 4, index | count | exponent << 8)
