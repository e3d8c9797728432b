"""Bounded waits: the deadline of every wait, and cancellation by the user.

Python raises KeyboardInterrupt between any two bytecodes, also inside the clean-up that has to
disable a doorbell. So the command line prevents it: :class:`Cancel` records the signal, and every
wait checks it (:meth:`Cancel.check`) or sleeps on its file descriptor.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from rcdrv.errors import Interrupted


class Clock:
    """Source of time: the machine's monotonic clock.

    A device in this process may bring a virtual one (see :mod:`rcdrv.fuzz.direct`): waits for it
    then take no time.
    """

    now: Callable[[], float] = staticmethod(time.monotonic)
    """Seconds, never going back."""
    now_ns: Callable[[], int] = staticmethod(time.perf_counter_ns)
    """Nanoseconds, monotonic; for latencies."""
    sleep: Callable[[float], None] = staticmethod(time.sleep)

    poll: Callable[[select.epoll, float, int], list[tuple[int, int]]] = staticmethod(
        select.epoll.poll
    )
    """Sleep until a descriptor is ready, at most so many seconds; return so many at most."""


MONOTONIC = Clock()

# One Ctrl-C may come twice: from the terminal and from a parent that passes it on, such as ours
# (rcdrv.cli.guard) or timeout(1). Clean-up of an endpoint that answers takes milliseconds.
_ONE_REQUEST = 0.5
_NOTICED = 0.3


class Deadline:
    """A moment on the clock, ``seconds`` from now."""

    __slots__ = ("_end", "_now", "seconds")

    def __init__(self, seconds: float, clock: Clock = MONOTONIC) -> None:
        self.seconds = seconds
        self._now = clock.now
        self._end = self._now() + seconds

    @property
    def remaining(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self._end - self._now())

    @property
    def expired(self) -> bool:
        return self._now() >= self._end


def await_readable(descriptors: Iterable[int], seconds: float | None = None) -> list[int]:
    """Sleep until a descriptor is readable, or has ended; return those that are.

    :param seconds: limit, kept to microseconds where the descriptors' numbers are small
    """
    watched = list(descriptors)
    try:
        # poll(2) and epoll_wait(2) round up to milliseconds, select(2) to microseconds.
        return select.select(watched, [], [], seconds)[0]
    except ValueError:  # one is beyond FD_SETSIZE: 2048 vectors are 2048 descriptors
        poll = select.poll()
        for descriptor in watched:
            poll.register(descriptor, select.POLLIN)
        return [one for one, _ in poll.poll(None if seconds is None else seconds * 1000)]


# To sleep and to be woken on another processor costs some 55 us more than to be awake (measured: a
# message takes 73 us, or 18), so a look that fails no more than doubles the cost of a sleep.
_LOOK = 50e-6
# Two busy programs on one of two processors lose each look: at 16, rings took up to 1.4 of the
# time without looks.
_MOST_SKIPPED = 256


class Readable:
    """Wait for descriptors as :func:`await_readable` does, and look at them for a moment before.

    Two programs that answer each other then stay awake. Each look that fails doubles the number of
    waits that sleep at once, so one that often waits long takes next to no processor time.
    """

    def __init__(self, *descriptors: int) -> None:
        self._watched = descriptors
        # On one processor the other program can only run while this one sleeps.
        self._looks = len(os.sched_getaffinity(0)) > 1
        self._skip, self._pause = 0, 1

    def wait(self, seconds: float | None = None) -> list[int]:
        """Return those that are readable, or have ended, after at most ``seconds``."""
        if self._skip:
            self._skip -= 1
        elif self._looks and (seconds is None or seconds > 0):
            now = start = time.monotonic()
            look = _LOOK if seconds is None else min(_LOOK, seconds)
            while now - start < look:
                if ready := await_readable(self._watched, 0):
                    self._pause = 1
                    return ready
                now = time.monotonic()
            self._skip, self._pause = self._pause, min(2 * self._pause, _MOST_SKIPPED)
            if seconds is not None:
                seconds = max(0.0, seconds - (now - start))
        return await_readable(self._watched, seconds)


def heeded(signums: Iterable[int]) -> list[int]:
    """Those that this program may take over.

    A shell without job control starts background jobs with SIGINT ignored (POSIX, 2.11 Signals and
    Error Handling), and nohup has SIGHUP ignored: whoever started us so means it. SIGTERM is always
    taken, as it has to disable a doorbell.
    """
    return [
        number
        for number in signums
        if number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN
    ]


class Cancel:
    """Set once, by a signal or by a caller; ends every wait that watches :attr:`fd`."""

    def __init__(self) -> None:
        self.fd = self.hurry_fd = -1
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        """Readable as soon as a stop is requested."""
        try:
            self.hurry_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            """Readable as soon as clean-up must not wait any more."""
        except OSError:  # what reports it needs a descriptor
            self.close()
            raise
        self.signal = 0
        self.hurried = False
        """Clean-up must not wait any more either."""
        self.on_slow_cleanup: Callable[[], None] = lambda: None
        """Called once, when clean-up after a stop has taken as long as a person notices."""
        self._since = 0.0
        self._deferred = 0

    def request(self, signum: int = signal.SIGINT) -> None:
        """Ask to stop. Safe in a signal handler, and harmless when repeated."""
        if not self.signal:
            self.signal = signum
            self._since = time.monotonic()
            os.eventfd_write(self.fd, 1)

    def hurry(self) -> None:
        """Ask to end clean-up too, where it waits. Likewise safe and harmless."""
        self.request()
        self.hurried = True
        os.eventfd_write(self.hurry_fd, 1)

    @property
    def pending(self) -> bool:
        """Whether a wait must end now: a stop is requested, and not inside :meth:`deferred`, or
        :attr:`hurried`."""
        return bool(self.signal) and (self.hurried or not self._deferred)

    @property
    def is_deferred(self) -> bool:
        """Whether this is clean-up (see :meth:`deferred`)."""
        return bool(self._deferred)

    def check(self) -> None:
        """Raise :class:`Interrupted` if a stop is requested."""
        if self.pending:
            raise Interrupted(f"stopped by {signal.Signals(self.signal).name}")

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """For clean-up: waits inside run to their own (short) bounds."""
        self._deferred += 1
        try:
            yield
        finally:
            self._deferred -= 1

    def notice(self) -> None:
        """Called by each wait of clean-up: say once that it takes long, after a stop."""
        if self.signal and time.monotonic() - self._since > _NOTICED:
            call, self.on_slow_cleanup = self.on_slow_cleanup, lambda: None
            call()

    def sleep(self, seconds: float) -> None:
        """Sleep; raise :class:`Interrupted` as soon as a stop is requested."""
        await_readable([self.hurry_fd if self._deferred else self.fd], seconds)
        self.check()

    def close(self) -> None:
        """Release the descriptors. Closing twice is harmless."""
        held, self.fd, self.hurry_fd = (self.fd, self.hurry_fd), -1, -1
        for fd in held:
            if fd >= 0:
                os.close(fd)

    def __del__(self) -> None:
        """A program that opens many functions must not run out of descriptors."""
        self.close()

    @contextmanager
    def on_signals(self, *signums: int) -> Iterator[Cancel]:
        """While inside, ``signums`` only set this instead of interrupting the program.

        A later SIGINT ends the waits of clean-up too (:meth:`hurry`). Those that were ignored stay
        so: see :func:`heeded`.
        """

        def note(signum: int, _frame: FrameType | None) -> None:
            late = time.monotonic() - self._since > _ONE_REQUEST
            if self.signal and signum == signal.SIGINT and late:
                self.hurry()
            self.request(signum)

        before = {number: signal.signal(number, note) for number in heeded(signums)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
