"""Deadlines end, and a request to stop ends every wait but the clean-up's."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from rcdrv.errors import Interrupted
from rcdrv.wait import Cancel, Clock, Deadline, Readable, await_readable


@pytest.fixture
def cancel() -> Iterator[Cancel]:
    cancel = Cancel()
    yield cancel
    cancel.close()


def test_a_deadline_counts_down_and_stays_at_zero() -> None:
    class Stopped(Clock):
        time = 5.0
        now = staticmethod(lambda: Stopped.time)

    deadline = Deadline(0.01, Stopped())
    assert deadline.remaining == pytest.approx(0.01)
    assert not deadline.expired
    Stopped.time += 0.02
    assert deadline.expired
    assert deadline.remaining == 0.0


def test_a_request_ends_a_sleep_at_once(cancel: Cancel) -> None:
    threading.Timer(0.02, cancel.request).start()
    started = time.monotonic()
    with pytest.raises(Interrupted):
        cancel.sleep(100)
    assert time.monotonic() - started < 50


def test_a_request_stays(cancel: Cancel) -> None:
    cancel.request(signal.SIGTERM)
    cancel.request(signal.SIGINT)
    assert await_readable([cancel.fd], 0)
    for _ in range(2):
        with pytest.raises(Interrupted, match="SIGTERM"):
            cancel.check()


def test_clean_up_is_not_disturbed(cancel: Cancel) -> None:
    cancel.request()
    with cancel.deferred():
        cancel.check()
        cancel.sleep(0.001)
        with cancel.deferred():
            cancel.check()
        cancel.check()
    with pytest.raises(Interrupted):
        cancel.check()


def test_signals_only_set_it_and_handlers_come_back(cancel: Cancel) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with cancel.on_signals(signal.SIGTERM):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    assert cancel.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.fixture
def handled(cancel: Cancel, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """SIGINT goes to ``cancel``; the list holds the time, which a test sets."""
    now = [100.0]
    monkeypatch.setattr("rcdrv.wait.time.monotonic", lambda: now[0])
    with cancel.on_signals(signal.SIGINT, signal.SIGTERM):
        yield now


def test_a_second_ctrl_c_ends_clean_up_too(cancel: Cancel, handled: list[float]) -> None:
    signal.raise_signal(signal.SIGINT)
    with cancel.deferred():
        handled[0] += 0.2
        signal.raise_signal(signal.SIGINT)  # the same one, passed on by a parent
        cancel.check()
        handled[0] += 1
        signal.raise_signal(signal.SIGTERM)  # as from timeout(1), which sends it twice
        cancel.check()
        assert not await_readable([cancel.hurry_fd], 0)
        signal.raise_signal(signal.SIGINT)
        assert await_readable([cancel.hurry_fd], 0)
        for _ in range(2):
            with pytest.raises(Interrupted, match="SIGINT"):
                cancel.sleep(100)


def test_slow_clean_up_is_said_once(cancel: Cancel, handled: list[float]) -> None:
    said: list[float] = []
    cancel.on_slow_cleanup = lambda: said.append(handled[0])
    cancel.notice()
    signal.raise_signal(signal.SIGTERM)
    for _ in range(10):
        cancel.notice()
        handled[0] += 0.125
    assert said == [100.375]


def test_a_wait_works_beyond_fd_setsize() -> None:
    """2048 vectors are 2048 descriptors, and select(2) takes none from 1024 on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2000:
        pytest.fail("the hard limit of open files is too low for this test")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
    low = os.eventfd(0)
    high = fcntl.fcntl(low, fcntl.F_DUPFD, 1500)
    try:
        assert not await_readable([high], 0.0)
        os.eventfd_write(low, 1)
        assert await_readable([high], 0.0)
        assert await_readable([high])
    finally:
        os.close(low)
        os.close(high)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_cancel_that_is_forgotten_leaves_no_descriptors() -> None:
    def held() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    before = held()
    for _ in range(10):
        Cancel().request()
    assert held() == before


class Looks:
    """Descriptors that are readable from a given look on; each look takes 20 us."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, processors: int = 2) -> None:
        self.time, self.ready_at, self.waits = 0.0, 0, list[float | None]()
        monkeypatch.setattr("rcdrv.wait.await_readable", self._await)
        monkeypatch.setattr("rcdrv.wait.time", SimpleNamespace(monotonic=lambda: self.time))
        monkeypatch.setattr("rcdrv.wait.os.sched_getaffinity", lambda _pid: range(processors))
        self.readable = Readable(3)

    def _await(self, watched: tuple[int, ...], seconds: float | None) -> list[int]:
        self.waits.append(seconds)
        self.time += 20e-6 if seconds == 0 else 0
        return [*watched] if len(self.waits) > self.ready_at or seconds != 0 else []

    def wait(self, ready_at: int, seconds: float | None = None) -> list[float | None]:
        """Return the time-out of each look at the descriptors."""
        self.ready_at, self.waits = ready_at, []
        found = self.readable.wait(seconds)
        assert found == ([3] if len(self.waits) > ready_at or self.waits[-1] != 0 else [])
        return self.waits


NEVER = 1000


def test_an_answer_that_comes_at_once_is_not_slept_for(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Looks(monkeypatch)
    assert [looks.wait(2) for _ in range(40)] == [[0, 0, 0]] * 40


def test_looks_in_vain_are_few_and_short(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Looks(monkeypatch)
    waits = [looks.wait(NEVER) for _ in range(1100)]
    assert max(len(one) for one in waits) == 4  # three looks of 20 us, and the sleep
    looked = [number for number, one in enumerate(waits) if len(one) > 1]
    assert looked == [0, 2, 5, 10, 19, 36, 69, 134, 263, 520, 777, 1034]
    assert all(one[-1] is None for one in waits)
    while looks.wait(0) != [0]:
        pass
    assert len(looks.wait(NEVER)) == 4, "one that succeeds makes them worth while again"
    assert looks.wait(NEVER) == [None]
    assert len(looks.wait(NEVER)) == 4


def test_a_look_keeps_the_limit_of_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Looks(monkeypatch).wait(NEVER, 0.001) == [0, 0, 0, pytest.approx(0.00094)]
    assert Looks(monkeypatch).wait(NEVER, 10e-6) == [0, 0.0]
    assert Looks(monkeypatch).wait(0, 0) == [0]


def test_one_processor_sleeps_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Looks(monkeypatch, processors=1).wait(0) == [None]
