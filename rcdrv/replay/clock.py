"""The time of a replay."""

from __future__ import annotations

import select
from collections.abc import Callable

from rcdrv.wait import Clock

_ACCESS_TIME = 20e-6  # seconds per access beyond the recording, so that a busy loop ends


class VirtualClock(Clock):
    """Clock that advances with recorded events, and with waits without an event."""

    def __init__(self, wait: Callable[[select.epoll, float, int], list[tuple[int, int]]]) -> None:
        self.time = 0.0
        self.now = lambda: self.time
        self.now_ns = lambda: int(self.time * 1e9)
        self.sleep = self.advance
        self.poll = wait

    def advance(self, seconds: float) -> None:
        """Advance by ``seconds``, at least by the time of an access."""
        self.time += max(seconds, _ACCESS_TIME)
