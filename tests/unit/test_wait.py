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

import pytest

from rcdrv.errors import Interrupted
from rcdrv.wait import Cancel, Clock, Deadline, await_readable


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
