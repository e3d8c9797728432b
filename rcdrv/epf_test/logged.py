"""Errors logged by the function: the status registers of Advanced Error Reporting (AER)."""

from __future__ import annotations

from rcdrv.errors import EndpointError, RcdrvError
from rcdrv.pci import ConfigSpace, ExtCapId

_UNCORRECTABLE, _CORRECTABLE = 0x04, 0x10
_NAMES = {
    # Bits of include/uapi/linux/pci_regs.h, names of PCIe 7.8.4.
    _CORRECTABLE: {
        0: "Receiver Error",
        6: "Bad TLP",
        7: "Bad DLLP",
        8: "REPLAY_NUM Rollover",
        12: "Replay Timer Timeout",
        13: "Advisory Non-Fatal Error",
        14: "Corrected Internal Error",
        15: "Header Log Overflow",
    },
    _UNCORRECTABLE: {
        4: "Data Link Protocol Error",
        5: "Surprise Down",
        12: "Poisoned TLP",
        13: "Flow Control Protocol Error",
        14: "Completion Timeout",
        15: "Completer Abort",
        16: "Unexpected Completion",
        17: "Receiver Overflow",
        18: "Malformed TLP",
        19: "ECRC Error",
        20: "Unsupported Request",
        21: "ACS Violation",
        22: "Uncorrectable Internal Error",
    },
}


class LoggedErrors:
    """Errors newly logged since the last look.

    Clears nothing: the host's kernel does that where it handles errors, and they are evidence
    otherwise. So an error whose bit is already set is not seen again.
    """

    def __init__(self, config: ConfigSpace) -> None:
        self._window = config.window
        try:
            found = config.find(ExtCapId.AER)
        except EndpointError:  # CAPABILITIES_TEST reports it
            found = None
        self._at = found.offset if found and found.offset + 0x14 <= config.window.size else 0
        self._seen = self._read()

    @property
    def available(self) -> bool:
        """Whether the function has the capability."""
        return bool(self._at)

    @property
    def names(self) -> tuple[str, ...]:
        """Errors whose bits were set at the last look."""
        return _decode(self._seen)

    def risen(self) -> tuple[str, ...]:
        """Return the errors logged since the last look."""
        before, self._seen = self._seen, self._read()
        if self._seen == before:
            return ()
        return _decode({at: now & ~before[at] for at, now in self._seen.items()})

    def _read(self) -> dict[int, int]:
        found = dict.fromkeys(_NAMES, 0)
        if self._at:
            try:
                values = {at: self._window.read32(self._at + at) for at in _NAMES}
            except RcdrvError:  # the device is lost, which the running case reports
                return found
            found.update((at, now) for at, now in values.items() if now != 0xFFFF_FFFF)
        return found


def _decode(status: dict[int, int]) -> tuple[str, ...]:
    return tuple(
        name for at, names in _NAMES.items() for bit, name in names.items() if status[at] >> bit & 1
    )
