"""Expected outcome of each case, derived from the layout alone.

Written from the protocol (``pci-epf-test.c``, ``pci-epc-core.c``, ``pcie-designware-ep.c``), not
from the code of the two sides that it judges. Where a faulty endpoint allows several outcomes, all
are listed; an access out of bounds is never allowed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property, lru_cache

from rcdrv import parts
from rcdrv.epf_test import bars
from rcdrv.epf_test.suite import Case
from rcdrv.sim.description import BarLayout, BarType, Dma, DoorbellBackend, Intx, Layout, Reset
from rcdrv.sim.faults import COMMANDS, DOORBELL, Faults

Outcome = str
"""``pass``, or verdict and reason: ``fail data-mismatch``."""

Outcomes = frozenset[Outcome]

PASS: Outcomes = frozenset({"pass"})
ANY: Outcomes = frozenset()
"""No prediction: any outcome is right."""

UNALIGNED, MSI, MSIX, INTX, SUBRANGE, DYNAMIC_INBOUND = (1 << bit for bit in range(6))
BAR0_RESERVED = 1 << 6

TRANSFER_SIZES = (1, 1024)

LARGEST_SUBRANGE = 256 << 20
"""Limit of the software endpoint's fills in bytes."""

_PAGE = 4096

WHOLE = 1 << 20
"""Limit in bytes of a BAR that is tested as a whole."""

_EDGE = 64
_RANDOM_WORDS = 8

DOORBELL_TEST = "pcie_ep_doorbell.DOORBELL_TEST"
CONSECUTIVE_TEST = "pci_ep_basic.CONSECUTIVE_BAR_TEST"

_UNPREDICTABLE = ("all-ones", "vanish", "dma-hangs")
_NO_COMMANDS = {
    "silent": frozenset({"fail silent", "fail stuck-command"}),
    "swallow": frozenset({"fail silent"}),
    "stuck-command": frozenset({"fail silent", "fail stuck-command"}),
    "contradiction": frozenset({"fail wrong-status"}),
}
"""Faults after which no command is answered correctly."""

STAYS_ENABLED = ("disable-silent", "disable-fail", "stuck-command", *_UNPREDICTABLE)
"""Faults with which a doorbell cannot be disabled."""

LIES = (
    "wrong-bar",
    "db-bar-absent",
    "bad-offset",
    "unaligned-offset",
    "offset-changes",
    "window-off",
)
"""Faults that may misdirect a ring without a sign."""


def fail(reason: str) -> Outcomes:
    return frozenset({f"fail {reason}"})


def skip(reason: str) -> Outcomes:
    return frozenset({f"skip {reason}"})


@lru_cache(256)
def sample(size: int) -> tuple[tuple[int, int], ...]:
    """Return (offset, length) of both edges, one word at each power of two, and random words.

    A stuck address line shows at a power of two. BARs of one size have the same random words, so
    that aliases show.
    """
    if size <= WHOLE:
        return tuple(bars.chunks(size))
    words = {1 << bit for bit in range(_EDGE.bit_length(), size.bit_length() - 1)}
    rng = random.Random(size)
    words |= {rng.randrange(_EDGE, size - _EDGE, 4) for _ in range(_RANDOM_WORDS)}
    inside = ((word, 4) for word in sorted(words) if _EDGE <= word < size - _EDGE)
    return ((0, _EDGE), *inside, (size - _EDGE, _EDGE))


def covers(size: int, start: int, end: int) -> bool:
    """Return whether the sample has any byte of ``start`` to ``end``."""
    return any(offset < end and start < offset + length for offset, length in sample(size))


@dataclass(frozen=True)
class Place:
    """Announced place of a doorbell, and whether a write there rings it."""

    bar: int
    offset: int
    rings: bool


class Oracle:
    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.faults = Faults(layout.faults)
        self._part = parts.part_of(layout.vendor, layout.device)
        self.bars = self._visible()
        """The BARs as the host sees them."""

    def _visible(self) -> tuple[BarLayout | None, ...]:
        layout = self.layout
        hidden = {*self._without_window, self.faults.empty_bar(layout.sizes, layout.register_bar)}
        return tuple(None if index in hidden else bar for index, bar in enumerate(layout.bars))

    @cached_property
    def _without_window(self) -> list[int]:
        """Return the BARs without an inbound window: the last ones, which pci_epf_test_set_bar()
        skips."""
        return self.layout.usable_bars[self.layout.inbound_windows :]

    @property
    def reachable(self) -> bool:
        """Return whether the host sees the register BAR."""
        return self.bars[self.layout.register_bar] is not None

    # -- options of the root complex ---------------------------------------------------

    @property
    def reg_bar(self) -> int | None:
        """Return the required ``reg_bar``; None if the driver must find it."""
        layout = self.layout
        if self._part is not parts.UNKNOWN_PART:
            return None if self._part.reg_bar == layout.register_bar else layout.register_bar
        recognizable = 0 < self.caps < 1 << 12
        lost = self.unpredictable
        known = recognizable and not lost and self.reachable
        return None if known else layout.register_bar

    @cached_property
    def caps(self) -> int:
        """pci_epf_test_set_capabilities()"""
        layout = self.layout
        if layout.caps >= 0:
            return layout.caps
        caps = UNALIGNED if layout.unaligned_access else 0
        caps |= MSI if layout.msi else 0
        caps |= MSIX if layout.msix else 0
        caps |= INTX if layout.announce_intx else 0
        if layout.dynamic_inbound:
            caps |= DYNAMIC_INBOUND | (SUBRANGE if layout.subrange else 0)
        for index, bar in enumerate(layout.bars):
            if bar is not None and bar.type is BarType.RESERVED:
                caps |= BAR0_RESERVED << index
        return caps

    def is_reserved(self, index: int) -> bool:
        """Return whether the root complex must not touch the BAR."""
        return bool(self.caps & BAR0_RESERVED << index) or index in self._part.untestable_bars

    # -- outcomes -----------------------------------------------------------------------

    def expect(self, case: Case, *, again: bool = False) -> Outcomes:
        """Return the acceptable outcomes of a case.

        :param again: in a second session with the same endpoint
        """
        if self.unpredictable:
            return ANY
        name = str(case.name)
        if case.name.fixture == "pci_ep_bar":
            index = int(case.name.variant[3:])
            of_bar = self._bar_test if case.name.test == "BAR_TEST" else self._subrange_test
            return of_bar(index)
        if name == CONSECUTIVE_TEST:
            stays = any(fault in self.faults for fault in STAYS_ENABLED)
            return ANY if again and stays else self._consecutive_test()
        if case.name.fixture == "pci_ep_data_transfer":
            return self._transfer(case.name.test.split("_")[0], case.name.variant == "dma")
        if name == DOORBELL_TEST:
            return self._doorbell_again() if again else self._doorbell_test()
        raise ValueError(f"no prediction for {name}")

    # -- interrupts -------------------------------------------------------------------------------

    @cached_property
    def irq(self) -> str:
        """Return pci_endpoint_test's IRQ_TYPE_AUTO, or polling if the function has no interrupt."""
        layout = self.layout
        has = {MSI: layout.msi, MSIX: layout.msix, INTX: layout.intx_pin}
        names = {MSI: "msi", MSIX: "msix", INTX: "intx"}
        announced = [bit for bit in names if self.caps & bit]
        for bit in (*announced, MSI, MSIX):
            if has[bit]:
                return names[bit]
        return "poll"

    @cached_property
    def unpredictable(self) -> bool:
        """Return whether the device or a BAR may vanish at any time."""
        layout, faults = self.layout, self.faults
        # Nothing restores the BAR; it may be that of the registers.
        stays_lost = layout.reset is Reset.NONE and "disable-clears-bar" in faults
        # A subrange that seems not to be set up is followed by a reset, which loses the BAR.
        meets_reset = layout.reset is Reset.BUS and layout.subrange and "stuck-command" in faults
        return stays_lost or meets_reset or any(name in faults for name in _UNPREDICTABLE)

    def _heard(self, which: int) -> bool:
        """Return whether interrupts of commands, or of rings, arrive."""
        if self.irq == "poll":
            return True
        if self.irq == "intx" and self.layout.intx is Intx.NONE:
            return False
        if self.irq != "intx" and self.faults.hits("irq-wrong-vector", which):
            return False
        if self.irq == "msix" and "msix-dead" in self.faults:
            return False
        return not self.faults.hits("irq-lost", which)

    def _command(self, outcome: Outcomes) -> Outcomes:
        """Return the outcomes of a command, given that of one with answer and interrupt."""
        for fault, instead in _NO_COMMANDS.items():
            if fault in self.faults:
                return instead
        # The driver checks data after a complete answer only.
        if outcome in (PASS, fail("data-mismatch")) and not self._heard(COMMANDS):
            return fail("irq-lost")
        return outcome

    # -- BARs -------------------------------------------------------------------------------------

    def _shows_registers(self, index: int) -> bool:
        """Return whether a BAR's test touches the page, or word, of an always exposed doorbell."""
        layout, doorbell = self.layout, self.layout.doorbell
        if doorbell.backend is not DoorbellBackend.EXPOSED or doorbell.bar != index:
            return False
        bar = layout.bar(index)
        start, end = doorbell.offset, doorbell.offset + 4
        if bar.type is BarType.RESERVED:
            start -= start % _PAGE
            end = start + _PAGE
        return covers(4 if index == layout.register_bar else bar.size, start, end)

    def _bar_test(self, index: int) -> Outcomes:
        if self.is_reserved(index):
            return skip("bar-reserved")
        if self.bars[index] is None:
            return skip("bar-disabled")
        return fail("data-mismatch") if self._shows_registers(index) else PASS

    def _subrange_test(self, index: int) -> Outcomes:
        layout, faults = self.layout, self.faults
        if self.is_reserved(index):
            return skip("bar-reserved")
        if not self.caps & SUBRANGE:
            return skip("no-caps")
        if index == layout.register_bar:
            return skip("register-bar")
        bar = self.bars[index]
        if bar is None:
            return skip("bar-disabled")
        able = layout.dynamic_inbound and layout.subrange and bar.type is not BarType.RESERVED
        if not able or bar.size > LARGEST_SUBRANGE:
            return self._command(fail("subrange-failed"))
        if "no-resource" in faults:
            return self._command(skip("no-resource"))
        if bar.size // 2 % layout.align:
            return self._command(fail("subrange-failed"))
        if len(layout.usable_bars) + 1 > layout.inbound_windows:
            return self._command(skip("no-resource"))
        outcome = self._command(PASS)
        wrong = "subrange-straight" in faults or "window-off" in faults
        wrong = wrong or self._shows_registers(index)
        return fail("data-mismatch") if wrong and outcome == PASS else outcome

    def _consecutive_test(self) -> Outcomes:
        tested = [
            index
            for index, bar in enumerate(self.bars)
            if bar is not None and not self.is_reserved(index)
        ]
        wrong = any(self._shows_registers(index) for index in tested)
        aliases = self.faults.aliases(self.layout.sizes, self.layout.register_bar)
        wrong = wrong or (aliases is not None and set(aliases) <= set(tested))
        return fail("data-mismatch") if wrong else PASS

    # -- transfers --------------------------------------------------------------------------------

    def _transfer(self, direction: str, dma: bool) -> Outcomes:
        layout, faults = self.layout, self.faults
        uses_source, uses_target = direction != "READ", direction != "WRITE"
        if dma and layout.dma is Dma.NONE:
            return frozenset(self._command(fail("silent")) | fail("silent"))
        if dma and direction == "COPY" and layout.dma is not Dma.MEMCPY:
            return self._command(fail("transfer-failed"))
        if not layout.unaligned_access and layout.outbound_align > max(_PAGE, self._part.align):
            return ANY  # address bits are lost, and it depends on where the buffers are
        invalid = (uses_source and "src-invalid" in faults) or (
            uses_target and "dst-invalid" in faults
        )
        windows = uses_source + uses_target
        if invalid or any(windows * self._window(s) > layout.outbound_size for s in TRANSFER_SIZES):
            return self._command(fail("address-invalid"))
        damaged = {"READ": "data-mismatch", "WRITE": "transfer-failed"}
        if "bad-checksum" in faults and direction in damaged:
            return self._command(fail(damaged[direction]))
        if "bad-data" in faults:
            return self._command(fail(damaged.get(direction, "data-mismatch")))
        return self._command(PASS)

    def _window(self, size: int) -> int:
        """Return the outbound space for ``size`` bytes at the start of a page."""
        pages = -(-size // self.layout.outbound_align)
        return self.layout.outbound_align << (pages - 1).bit_length()

    # -- the doorbell -----------------------------------------------------------------------------

    def place(self) -> tuple[int, int] | None:
        """Return (BAR, offset) of an enabled doorbell, or None if ENABLE must fail."""
        layout, doorbell = self.layout, self.layout.doorbell
        if doorbell.backend is DoorbellBackend.NONE:
            return None
        if doorbell.backend is DoorbellBackend.EXPOSED:
            return doorbell.bar, doorbell.offset
        for index in range(layout.register_bar + 1, 6):
            bar = layout.bars[index]
            if bar is not None and bar.type is not BarType.RESERVED:
                if index in self._without_window:
                    return None  # pci_epc_set_bar() refuses a size of 0
                address = layout.doorbell_address
                offset = address % bar.size
                # The window's target must be a multiple of the controller's granularity.
                return None if (address - offset) % layout.align else (index, offset)
        return None

    def names_bar(self, bar: int) -> bool:
        """Return whether DB_BAR proves an enabled doorbell: 0 may also mean never enabled."""
        return bar not in (0, self.layout.register_bar)

    def _said(self, bar: int, offset: int) -> Place:
        """Return DB_BAR and DB_OFFSET, which faults falsify."""
        layout, faults = self.layout, self.faults
        sizes = layout.sizes
        said, where = faults.said_place((bar, offset), sizes, layout.register_bar)
        # pci_epf_test_enable_doorbell(): cpu_to_le32() truncates an offset beyond 4 GiB.
        where &= 0xFFFF_FFFF
        if layout.doorbell.backend is not DoorbellBackend.EXPOSED:
            offset -= faults.window_off(sizes[bar])
        return Place(said, where, (said, where) == (bar, offset))

    def _location_fault(self, said: Place) -> Outcomes:
        """Return why the announced place must not be written; PASS if it may."""
        layout = self.layout
        if said.bar > 5 or said.bar == layout.register_bar:
            return fail("bad-bar")
        bar = self.bars[said.bar]
        if bar is None:
            return fail("bad-bar")
        if said.offset % 4 or said.offset + 4 > bar.size:
            return fail("bad-offset")
        return PASS

    def _doorbell_test(self) -> Outcomes:
        faults = self.faults
        if not self.caps & DYNAMIC_INBOUND:
            return skip("no-caps")
        for fault, instead in _NO_COMMANDS.items():
            if fault in faults:
                return instead
        if "enable-silent" in faults:
            return fail("silent")
        place = self.place()
        if place is None or "enable-fail" in faults:
            return fail("enable-failed")
        said = self._said(*place)
        outcome = self._location_fault(said)
        if outcome == PASS:
            outcome = self._ring(said)
        if outcome == PASS:
            if "disable-silent" in faults:
                return fail("silent")
            if "disable-fail" in faults:
                return fail("disable-failed")
            if not self._heard(COMMANDS):
                return fail("irq-lost")
            if "disable-clears-bar" in faults:
                return fail("disable-failed")
        return outcome

    def _ring(self, said: Place) -> Outcomes:
        faults = self.faults
        if not said.rings or "doorbell-dead" in faults:
            return fail("silent")
        if "no-status" in faults:  # the driver checks STATUS first
            return fail("wrong-status")
        if not self._heard(DOORBELL):
            return fail("irq-lost")
        if self.irq in ("msi", "msix") and faults.hits("irq-twice", DOORBELL):
            return fail("irq-twice")
        return PASS

    def _doorbell_again(self) -> Outcomes:
        first = self._doorbell_test()
        if "offset-changes" in self.faults and first not in (skip("no-caps"),):
            return ANY
        stays = any(name in self.faults for name in ("disable-silent", "disable-fail"))
        place = self.place()
        if stays and place and first not in (skip("no-caps"), fail("enable-failed")):
            # Busy for good: reported if DB_BAR names the doorbell of the first session.
            named = self._said(*place).bar
            told = 1 <= named <= 5 and named != self.layout.register_bar
            return fail("disable-failed" if told else "enable-failed")
        return first
