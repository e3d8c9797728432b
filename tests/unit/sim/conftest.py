"""Endpoints do not outlive their test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from . import host


@pytest.fixture(autouse=True)
def _close_endpoints() -> Iterator[None]:
    yield
    while host.alive:
        host.alive[-1].close()
