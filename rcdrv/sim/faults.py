"""Faults of the endpoint, by name, to test drivers against.

A fault is written NAME or NAME=ARGUMENT, in a layout's ``faults`` or on the command line. Several
can be active at once. This module defines names and arguments; the code that a fault affects asks
``faults.get(...)``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from rcdrv.errors import UsageError, did_you_mean


@dataclass(frozen=True)
class Fault:
    summary: str
    argument: str = ""
    """Meaning of the argument; empty if there is none."""
    default: int | None = None
    """Default of the argument; None: the endpoint chooses a value that fits its layout."""
    choices: tuple[str, ...] = ()
    """Words for the argument, whose value is the index; empty: a number."""
    function: str = ""
    """The only endpoint function with this fault; empty: all."""
    traps: bool = False
    """Requires that all BARs are trapped, so that every access reaches the endpoint."""
    more: bool = False
    """For cases of the second suite (``rcdrv test --more``); fuzzing omits it."""


COMMANDS, DOORBELL, BOTH = 0, 1, 2
"""Values of the irq-... arguments: interrupts of commands, of rings, or both."""

_WHICH = ("commands", "doorbell", "all")

WINDOW_OFF = ("page", "half")
"""Distance: 4 KiB, but at most half of the BAR; or half of the BAR."""

_PAGE = 4096

CAP_LISTS = ("standard", "extended")

RESET_LOSES = ("bars", "msi")

FAULTS: dict[str, Fault] = {
    # commands
    "silent": Fault("no command is ever taken"),
    "swallow": Fault("commands are taken and not answered"),
    "contradiction": Fault("every answer says both success and failure"),
    "stuck-command": Fault("commands are answered, but COMMAND is not cleared"),
    "slow": Fault("each command is answered late", "milliseconds", 200),
    "enable-silent": Fault("ENABLE_DOORBELL is taken and not answered"),
    "enable-fail": Fault("ENABLE_DOORBELL answers DOORBELL_ENABLE_FAIL"),
    "disable-silent": Fault("DISABLE_DOORBELL is taken and not answered"),
    "disable-fail": Fault("DISABLE_DOORBELL answers DOORBELL_DISABLE_FAIL and frees nothing"),
    "disable-clears-bar": Fault(
        "DISABLE_DOORBELL clears the doorbell's BAR, and with it the host's address", traps=True
    ),
    # where the doorbell is said to be
    "wrong-bar": Fault("DB_BAR names another BAR", "BAR"),
    "db-bar-absent": Fault("DB_BAR names a BAR that does not exist", "DB_BAR value"),
    "bad-offset": Fault("DB_OFFSET is past the end of the BAR", "DB_OFFSET value"),
    "unaligned-offset": Fault("DB_OFFSET is not a multiple of 4", "bytes added", 2),
    "offset-changes": Fault("DB_OFFSET grows by 4 with each read", traps=True),
    # what a ring does
    "doorbell-dead": Fault("a doorbell write reaches nothing"),
    "doorbell-late": Fault("the handler of a ring runs late", "milliseconds", 3),
    "no-status": Fault("a ring raises its interrupt without DOORBELL_SUCCESS"),
    # interrupts; STATUS says IRQ_RAISED in all cases
    "irq-lost": Fault("interrupts do not arrive", "of", BOTH, _WHICH),
    "irq-twice": Fault("interrupts arrive twice", "of", DOORBELL, _WHICH),
    "irq-wrong-vector": Fault("interrupts arrive at the next vector", "of", BOTH, _WHICH),
    "msix-dead": Fault("MSI-X interrupts do not arrive, MSI and INTx do"),
    # vNTB
    "command-error": Fault("commands are answered with COMMAND_STATUS_ERROR", function="epf_vntb"),
    "link-drops": Fault(
        "pci-epf-vntb is bound again after so many doorbells", "n", 3, function="epf_vntb"
    ),
    "sequence-gap": Fault(
        "ntb_transport leaves out the number of a packet", "number", 3, function="epf_vntb"
    ),
    # data
    "bad-data": Fault("one byte of every transfer is wrong"),
    "bad-checksum": Fault("WRITE reports a wrong CHECKSUM, READ expects one"),
    "src-invalid": Fault("no outbound window for SRC"),
    "dst-invalid": Fault("no outbound window for DST"),
    "dma-hangs": Fault("a DMA completion is lost: the command never ends"),
    "bar-alias": Fault("two BARs show the same memory", "BAR"),
    "bar-empty": Fault("a BAR that the endpoint uses has no size for the host", "BAR"),
    "window-off": Fault(
        "inbound windows of doorbells and of subranges begin too late", "by", 0, WINDOW_OFF
    ),
    "subrange-straight": Fault("BAR_SUBRANGE_SETUP does not swap the halves"),
    "no-resource": Fault("BAR_SUBRANGE_SETUP finds no free inbound window"),
    # the whole device
    "all-ones": Fault(
        "BARs read all ones and take no writes, config space works", "after", 0, traps=True
    ),
    "vanish": Fault("everything reads all ones, for good", "after accesses", 100, traps=True),
    "cap-loop": Fault("a capability list loops", "which", 0, CAP_LISTS),
    "rebar-empty": Fault("the Resizable BAR capability advertises no size"),
    "reset-loses": Fault(
        "a reset that the host asks for disables the BARs, or MSI and MSI-X",
        "what",
        0,
        RESET_LOSES,
        traps=True,
    ),
}


def _more(
    summary: str,
    argument: str = "",
    default: int | None = None,
    choices: tuple[str, ...] = (),
    *,
    traps: bool = False,
) -> Fault:
    return Fault(summary, argument, default, choices, "epf_test", traps, more=True)


FAULTS |= {
    # BARs but that of the registers
    "data-line": _more("a data line of the BARs is stuck at 0", "bit", 30, traps=True),
    "address-line": _more("the highest address line of the BARs has no effect", traps=True),
    "byte-enables": _more("a write of 8 or 16 bits clears the rest of its 32-bit word", traps=True),
    "wide-torn": _more("of a 64-bit access to a BAR, only the low half arrives", traps=True),
    "write-order": _more("a 32-bit read overtakes the write before it", traps=True),
    "bar-crosstalk": _more(
        "32-bit writes to several BARs in turns each reach the BAR before", traps=True
    ),
    "bar-forgets": _more("a command clears the start of the BARs", traps=True),
    # config space
    "id-writable": _more("DEVICE_ID takes writes"),
    "bar-mask": _more("the BARs size as twice of what they are"),
    "msix-outside": _more("the MSI-X capability puts the table behind its BAR"),
    "master-ignored": _more("COMMAND's BUS_MASTER has no effect"),
    "intx-disable-ignored": _more("COMMAND's INTX_DISABLE has no effect"),
    "msix-mask-ignored": _more("masked MSI-X vectors are sent"),
    "msix-pending-stuck": _more("a pending MSI-X vector is not sent when unmasked"),
    # the link
    "link-slows": _more("transfers make the link fall back to 2.5 GT/s"),
    "link-errors": _more("transfers log a correctable error: Bad TLP"),
    # resets and power states
    "reset-wears": _more("so many resets in a row disable the BARs", "resets", 3, traps=True),
    "d3-resets": _more("D3hot resets the function, and No_Soft_Reset denies it"),
    "d3-loses": _more(
        "D3hot disables the BARs, or MSI and MSI-X", "what", 0, RESET_LOSES, traps=True
    ),
    # the doorbell
    "ring-overrun": _more("a ring before STATUS is cleared ends the doorbell"),
    "ring-vector": _more("a ring is always answered by the first vector"),
    "ring-while-busy": _more("a ring while a command runs is lost"),
    "disable-races": _more(
        "rings are handled late, and DISABLE_DOORBELL fails meanwhile", "milliseconds", 25
    ),
    "doorbell-leaks": _more("so many ENABLE_DOORBELL use up all doorbells", "times", 8),
    # transfers
    "writes-beside": _more("transfers of more than 1 KiB write 4 bytes too many"),
    "crosses-4k": _more("from an unaligned address, what crosses 4 KiB wraps around"),
    "one-translation": _more(
        "what a transfer does beyond the host's mapping of its first byte is lost"
    ),
    "high-address-cut": _more("outbound windows reach 32-bit addresses only"),
}


def parse_fault(text: str, path: str = "fault") -> tuple[str, int | None]:
    """Parse ``NAME`` or ``NAME=ARGUMENT`` into (name, argument).

    :raises UsageError: no such fault, or an invalid argument
    """
    name, equals, argument = text.partition("=")
    fault = FAULTS.get(name)
    if fault is None:
        close = did_you_mean(name, FAULTS)
        raise UsageError(f"{path}: no fault {name!r}", hint=close or f"one of {', '.join(FAULTS)}")
    if not equals:
        return name, fault.default
    if fault.choices:
        if argument not in fault.choices:
            raise UsageError(f"{path}: {argument!r} is not one of {', '.join(fault.choices)}")
        return name, fault.choices.index(argument)
    if not fault.argument:
        raise UsageError(f"{path}: {name} has no argument")
    try:
        value = int(argument, 0)
    except ValueError:
        value = -1
    if value < 0:
        raise UsageError(f"{path}: {argument!r} is not a number ({fault.argument})")
    return name, value


class Faults:
    """The active faults of one endpoint."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._active = dict(map(parse_fault, texts))

    def __contains__(self, name: str) -> bool:
        return name in self._active

    def __len__(self) -> int:
        return len(self._active)

    def get(self, name: str, default: int) -> int:
        """Return the argument of an active fault; ``default`` if the endpoint is to choose."""
        value = self._active[name]
        return default if value is None else value

    def hits(self, name: str, which: int) -> bool:
        """Return whether an irq-... fault is active for interrupts of kind ``which``."""
        return name in self._active and self._active[name] in (which, BOTH)

    def said_place(
        self, place: tuple[int, int], sizes: Sequence[int], register_bar: int
    ) -> tuple[int, int]:
        """Return the announced DB_BAR and DB_OFFSET of a doorbell, not yet truncated to 32 bits.

        :param sizes: bytes of each BAR, 0 if there is none
        """
        bar, offset = place
        said = bar
        present = [index for index, size in enumerate(sizes) if size]
        if "wrong-bar" in self:
            others = [index for index in present if index not in (bar, register_bar)]
            said = self.get("wrong-bar", (others or present)[0])
        elif "db-bar-absent" in self:
            absent = next(index for index in range(7) if index not in present)
            said = self.get("db-bar-absent", absent)
        if "bad-offset" in self:
            offset = self.get("bad-offset", sizes[bar])
        elif "unaligned-offset" in self:
            offset += self.get("unaligned-offset", 0)
        return said, offset

    def empty_bar(self, sizes: Sequence[int], register_bar: int) -> int | None:
        """Return the BAR that bar-empty hides, by default the last without the registers.

        :param sizes: as for :meth:`said_place`
        """
        if "bar-empty" not in self:
            return None
        present = [index for index, size in enumerate(sizes) if size]
        others = [index for index in present if index != register_bar]
        return self.get("bar-empty", (others or present)[-1])

    def aliases(self, sizes: Sequence[int], register_bar: int) -> tuple[int, int] | None:
        """Return two BARs of one size, if any, of which the second shows the first one's memory.

        :param sizes: as for :meth:`said_place`
        """
        if "bar-alias" not in self:
            return None
        bars = [index for index, size in enumerate(sizes) if size and index != register_bar]
        pairs = [pair for pair in combinations(bars, 2) if sizes[pair[0]] == sizes[pair[1]]]
        chosen = self.get("bar-alias", pairs[0][1] if pairs else -1)
        return next((pair for pair in pairs if pair[1] == chosen), None)

    def window_off(self, size: int) -> int:
        """Return the bytes by which windows into a BAR of ``size`` begin too late."""
        if "window-off" not in self:
            return 0
        by = WINDOW_OFF[self.get("window-off", 0)]
        return min(_PAGE, size // 2) if by == "page" else size // 2

    @property
    def traps(self) -> bool:
        """Whether a fault needs every BAR access to be trapped."""
        return any(FAULTS[name].traps for name in self._active)
