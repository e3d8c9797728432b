"""What reached the endpoint and what it did, one JSON object a line.

An access::

    {"t": 81236712345, "op": "write", "region": "BAR4", "offset": 160, "size": 4, "value": 0}

``t`` is nanoseconds on the endpoint's clock. ``value`` is the little-endian number of an access of
up to 8 bytes; longer ones have ``data``, in hexadecimal, instead. An event of the endpoint::

    {"t": 81236714000, "event": "doorbell", "bar": 4, "offset": 160, "data": 0}

The events are listed at :meth:`AccessLog.event`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TextIO

REGIONS = ("BAR0", "BAR1", "BAR2", "BAR3", "BAR4", "BAR5", "ROM", "CONFIG", "VGA")


class AccessLog:
    """Writes to ``stream``, each line at once; without a stream it does nothing."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self.clock: Callable[[], float] = lambda: 0.0
        """Seconds; the endpoint puts its own clock here."""

    @property
    def enabled(self) -> bool:
        return self._stream is not None

    def access(self, op: str, region: int, offset: int, data: bytes) -> None:
        """One trapped access; ``op`` is ``read`` or ``write``, ``data`` what was moved."""
        if self._stream is None:
            return
        entry: dict[str, object] = {
            "op": op,
            "region": REGIONS[region],
            "offset": offset,
            "size": len(data),
        }
        if len(data) <= 8:
            entry["value"] = int.from_bytes(data, "little")
        else:
            entry["data"] = data.hex()
        self._write(entry)

    def event(self, event: str, **details: object) -> None:
        """Something the endpoint did or noticed.

        ``attach``, ``detach``: a client came or went. ``command``: COMMAND was taken.
        ``answer``: its STATUS was written. ``swallowed``: a command that gets no answer, and why.
        ``doorbell``: a doorbell interrupt was handled. ``interrupt``: one was raised;
        ``irq-failed``: one could not be, and why. ``inbound``: what a BAR shows was changed.
        ``stray``: a write where none belongs: beside a doorbell, or into a BAR whose memory was
        hidden. ``doorbell-unheard``: the doorbell's register was written in vain. ``dma``: a
        transfer; ``dma-fault``: the host let none through. ``reset``: the function was reset.
        ``harm``: something that a kernel would not take well. ``oops``: it crashed.
        """
        if self._stream is not None:
            self._write({"event": event, **details})

    def _write(self, entry: dict[str, object]) -> None:
        assert self._stream is not None
        self._stream.write(json.dumps({"t": int(self.clock() * 1e9), **entry}) + "\n")
        self._stream.flush()
