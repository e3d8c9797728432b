from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator

import pytest

from rcdrv.vfio_user.client import Client

from .fake import FakeDevice, RawClient, connected, open_fds, served


def _opened_since(before: dict[str, str]) -> dict[str, str]:
    # /proc/self/fd lists the descriptor that lists it.
    now = {fd: what for fd, what in open_fds().items() if not what.endswith("/fd")}
    return {fd: what for fd, what in now.items() if before.get(fd) != what}


@pytest.fixture(autouse=True)
def _no_descriptor_leaks() -> Iterator[None]:
    before = open_fds()
    yield
    if _opened_since(before):
        gc.collect()  # a traceback may hold a socket
        assert not _opened_since(before)


@pytest.fixture
def device() -> Iterator[FakeDevice]:
    with contextlib.closing(FakeDevice()) as device:
        yield device


@pytest.fixture
def client(device: FakeDevice) -> Iterator[Client]:
    with connected(device) as client:
        yield client


@pytest.fixture
def raw(device: FakeDevice) -> Iterator[RawClient]:
    with served(device) as sock:
        raw = RawClient(sock)
        yield raw
        raw.connection.close()


@pytest.fixture
def eventfds() -> Iterator[list[int]]:
    fds = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(40)]
    yield fds
    for fd in fds:
        os.close(fd)
