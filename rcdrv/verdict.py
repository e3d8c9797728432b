"""Outcome of a test or a ring: a verdict and a reason from a fixed list."""

from __future__ import annotations

from enum import Enum

from rcdrv.errors import DeviceLost, EndpointError, HostError, Interrupted, RcdrvError

TYPE_CHECKING = False  # without importing typing: see rcdrv.record
if TYPE_CHECKING:
    from typing import Any


class Verdict(str, Enum):
    """The result of one check."""

    PASS = "pass"
    FAIL = "fail"
    """The endpoint failed."""
    SKIP = "skip"
    """The endpoint does not support it, and says so."""
    LOST = "lost"
    """The device went away."""
    ERROR = "error"
    """Not tried: the host or the request is at fault."""
    UNVERIFIED = "unverified"
    """Done as asked, without verifying that the endpoint noticed."""


class Reason(str, Enum):
    """Why a verdict is not ``pass``. The values are part of the command line's contract."""

    SILENT = "silent"
    """The endpoint took the command and never answered."""
    STUCK_COMMAND = "stuck-command"
    """The COMMAND register stays set: the endpoint's command handler does not run."""
    IRQ_LOST = "irq-lost"
    """STATUS has the answer, but its interrupt never arrived."""
    IRQ_TWICE = "irq-twice"
    """More interrupts than answers."""
    WRONG_VECTOR = "wrong-vector"
    """Another vector fired than the one asked for."""
    WRONG_STATUS = "wrong-status"
    """An answer came, but not with the bit that belongs to it."""
    ALL_ONES = "all-ones"
    """The registers read all ones although the device is there."""
    ENABLE_FAILED = "enable-failed"
    DISABLE_FAILED = "disable-failed"
    WRONG_BAR = "wrong-bar"
    """The endpoint's doorbell is in another BAR than the one that was asked for."""
    BAD_BAR = "bad-bar"
    """The endpoint names a BAR that cannot hold a doorbell."""
    BAD_OFFSET = "bad-offset"
    """The endpoint names an offset that is unaligned or outside the BAR."""
    NO_CAPS = "no-caps"
    """The endpoint does not announce what this needs."""
    NO_VECTORS = "no-vectors"
    """The function has no interrupt of the kind asked for."""
    DATA_MISMATCH = "data-mismatch"
    TRANSFER_FAILED = "transfer-failed"
    """The endpoint says that its transfer failed."""
    ADDRESS_INVALID = "address-invalid"
    """The endpoint could not map the bus address it was given (its outbound window)."""
    SUBRANGE_FAILED = "subrange-failed"
    """The endpoint could not set up or clear a BAR's subrange mapping."""
    NO_RESOURCE = "no-resource"
    """The endpoint has no inbound window left."""
    BAR_DISABLED = "bar-disabled"
    BAR_RESERVED = "bar-reserved"
    REGISTER_BAR = "register-bar"
    """The BAR holds the test registers, and must not be remapped."""
    COMMAND_REFUSED = "command-refused"
    """vNTB: the endpoint answered a command with an error."""
    BAD_CONTROL = "bad-control"
    """vNTB: the control block contradicts itself."""
    LINK_DOWN = "link-down"
    """vNTB: the link, or a queue pair on it, did not come up."""
    LINK_LOST = "link-lost"
    """vNTB: the link went down midway."""
    SEQUENCE_GAP = "sequence-gap"
    """vNTB: a packet of the transport has another number than the next."""
    DEVICE_LOST = "device-lost"
    LOST_BY_RESET = "lost-by-reset"
    """After a reset, something that the function had is gone."""
    BAD_LINK = "bad-link"
    """The link changed its speed or width, or logged errors, while it was used."""
    NOT_VERIFIED = "not-verified"
    """Not waited for, as requested."""
    BAD_CONFIG = "bad-config"
    """The endpoint's config space, or its transport, contradicts itself."""
    HOST = "host"
    """The host is not ready."""
    USAGE = "usage"
    INTERRUPTED = "interrupted"


EXIT_STATUS = {
    Verdict.PASS: 0,
    Verdict.UNVERIFIED: 0,
    Verdict.FAIL: 1,
    Verdict.SKIP: 4,
    Verdict.LOST: 5,
}
"""Exit status by verdict. ERROR has none: each error has its own."""


class NotPassed(RcdrvError):
    """Raised where a check ends early; carries verdict and reason."""

    def __init__(
        self, reason: Reason, message: str, *, verdict: Verdict = Verdict.FAIL, hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.verdict = verdict
        self.reason = reason

    @property
    def exit_status(self) -> int:  # type: ignore[override]  # here it depends on the verdict
        return EXIT_STATUS[self.verdict]


def skip(reason: Reason, message: str, *, hint: str = "") -> NotPassed:
    """Return the verdict for what this endpoint or this host does not have."""
    return NotPassed(reason, message, verdict=Verdict.SKIP, hint=hint)


def classify(error: RcdrvError | None) -> tuple[Verdict, Reason | None]:
    """Return the verdict and the reason of an error; PASS for None."""
    if error is None:
        return Verdict.PASS, None
    if isinstance(error, NotPassed):
        return error.verdict, error.reason
    if isinstance(error, EndpointError):
        return Verdict.FAIL, Reason.BAD_CONFIG
    if isinstance(error, DeviceLost):
        return Verdict.LOST, Reason.DEVICE_LOST
    if isinstance(error, HostError):
        return Verdict.ERROR, Reason.HOST
    if isinstance(error, Interrupted):
        return Verdict.ERROR, Reason.INTERRUPTED
    return Verdict.ERROR, Reason.USAGE


def verdict_document(error: RcdrvError | None) -> dict[str, Any]:
    """Return the keys with which every JSON document says how an operation ended.

    ``verdict`` and ``reason`` are values of :class:`Verdict` and :class:`Reason`; ``reason`` is
    null on a pass. ``message`` and ``hint`` may be empty.
    """
    verdict, reason = classify(error)
    return {
        "verdict": verdict.value,
        "reason": None if reason is None else reason.value,
        "message": "" if error is None else error.message,
        "hint": "" if error is None else error.hint,
    }
