"""Log of accesses and events at the endpoint, one JSON object per line.

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
    """Writes to ``stream``, line by line; without a stream it does nothing."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self.clock: Callable[[], float] = lambda: 0.0
        """The endpoint's clock in seconds."""

    @property
    def enabled(self) -> bool:
        return self._stream is not None

    def access(self, op: str, region: int, offset: int, data: bytes) -> None:
        """Log a trapped access; ``op`` is ``read`` or ``write``."""
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
        """Log an action or observation of the endpoint.

        ``attach``, ``detach``: of a client. ``command``: COMMAND was taken.
        ``answer``: its STATUS was written. ``swallowed``: a command that gets no answer, and why.
        ``doorbell``: a doorbell interrupt was handled. ``interrupt``: one was raised;
        ``irq-failed``: one failed, and why. ``inbound``: a BAR was redirected.
        ``stray``: a misplaced write: beside a doorbell, or into a BAR whose memory was hidden.
        ``doorbell-unheard``: the doorbell's register was written without effect. ``dma``: a
        transfer; ``dma-fault``: the host refused one. ``reset``: the function was reset.
        ``harm``: an input that harms a kernel. ``oops``: it crashed.
        """
        if self._stream is not None:
            self._write({"event": event, **details})

    def _write(self, entry: dict[str, object]) -> None:
        assert self._stream is not None
        self._stream.write(json.dumps({"t": int(self.clock() * 1e9), **entry}) + "\n")
        self._stream.flush()
