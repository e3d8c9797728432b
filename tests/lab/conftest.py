"""Guests for the tests: booted once a session, each with all presets as endpoints.

Where the lab cannot start, CI fails and a developer's run skips, both with the reason.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests.unavailable import unavailable
from tools.lab.errors import LabError
from tools.lab.guest import Guest

# Endpoints of the x86-64 guest besides the presets: one with more vectors, one with a fault. They
# are two functions of one device.
VECTORS_64, FAULTY = "generic,trap=sparse,msix=64", "generic,trap=sparse,fault=subrange-straight"
PRESETS = ("rk3588", "rcar-s4", "imx95", "imx8m", "am654", "tegra194", "j721e", "generic")
# Emulation is slow, and the first test that uses a guest may also have to build the lab.
TIMEOUT = 900


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder needs the lab."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.lab)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(TIMEOUT))


@pytest.fixture(scope="session")
def guest_x86_64() -> Iterator[Guest]:
    """An x86-64 guest with the presets as endpoints, two more, and a device with SR-IOV."""
    endpoints = (*PRESETS, VECTORS_64, f"+{FAULTY}")
    with booted("x86_64", endpoints=endpoints, devices=["igb"]) as guest:
        yield guest


@pytest.fixture(scope="session")
def guest_aarch64() -> Iterator[Guest]:
    """An arm64 guest with the presets as endpoints."""
    with booted("aarch64", endpoints=PRESETS) as guest:
        yield guest


@pytest.fixture(scope="session", params=["x86_64", "aarch64"])
def bare_guest(request: pytest.FixtureRequest) -> Iterator[Guest]:
    """A guest with no endpoint, but a device of QEMU's own."""
    with booted(request.param, devices=["edu"]) as guest:
        yield guest


@contextlib.contextmanager
def booted(
    arch: str,
    *,
    endpoints: Sequence[str] = (),
    devices: Sequence[str] = (),
    log_accesses: bool = True,
    append: Sequence[str] = (),
    files: Mapping[str, Path] | None = None,
    bind: bool = True,
    iommufd: bool = False,
    links_up: bool = False,
) -> Iterator[Guest]:
    """A guest; where it does not start, the test fails in CI and is skipped elsewhere.

    With ``log_accesses`` every access traps, and each is in ``endpoint.access_log``.
    """
    guest = Guest(
        arch,
        endpoints=endpoints,
        devices=devices,
        log_accesses=log_accesses,
        append=append,
        files=files,
        bind=bind,
        iommufd=iommufd,
        links_up=links_up,
    )
    try:
        guest.__enter__()
    except LabError as error:
        unavailable(f"the lab does not start: {error}")
    with contextlib.closing(guest):
        yield guest
