"""The pytest plugin: fixtures and a marker for tests of a board.

Fixtures ``endpoint``, ``function`` and ``doorbell`` for the device that ``--rcdrv-device`` names,
opened for each test and closed after it; the marker ``rcdrv_needs``. pytest loads this module in
every run in an environment with rcdrv, so it imports no part of rcdrv until a fixture is used.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from rcdrv import Doorbell, Endpoint, Function, RcdrvError

SOFTWARE = "sim:rk3588"
"""Default device, so that a suite can be tried without a board."""

_FIXTURES = {"endpoint", "function", "doorbell"}
_SHOWN = 100
"""Number of last register accesses that a failed test shows."""
_ACCESSES = pytest.StashKey["deque[str]"]()
_DEVICE_PROPERTY = "rcdrv_device"
_CHOSEN_PROPERTY = "rcdrv_device_chosen_by"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("rcdrv", "PCIe endpoints (rcdrv)")
    group.addoption(
        "--rcdrv-device",
        metavar="ADDRESS",
        help="0000:01:00.0, vfio-user:/path/to.sock or sim:PRESET"
        f" (default: $RCDRV_DEVICE, else the software endpoint {SOFTWARE})",
    )
    group.addoption(
        "--rcdrv-timeout",
        metavar="SECONDS",
        type=float,
        default=1.0,
        help="bound of every wait for the endpoint (default 1.0)",
    )
    group.addoption(
        "--rcdrv-irq",
        choices=["auto", "msi", "msix", "intx", "poll"],
        default="auto",
        help="how the endpoint answers (default auto)",
    )
    group.addoption(
        "--rcdrv-reg-bar",
        metavar="N",
        type=int,
        help="the BAR with the test registers (default: by the part's ID, else by looking)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "rcdrv_needs(capability, ...): skip where the endpoint has not all of these, such as"
        ' "msix", "doorbell" or "bar2"; rcdrv.CAPABILITIES lists them',
    )


def pytest_report_header(config: pytest.Config) -> str:
    address, chosen_by = _device(config)
    return f"rcdrv: {address} ({chosen_by})"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse markers that can have no effect, before the first test."""
    for item in items:
        needs = _needs(item)
        if not needs:
            continue
        from rcdrv.needs import CAPABILITIES

        unknown = [need for need in needs if need not in CAPABILITIES]
        if unknown:
            raise pytest.UsageError(
                f"{item.nodeid}: rcdrv_needs: {unknown[0]!r} is no capability;"
                f" one of {', '.join(CAPABILITIES)}"
            )
        if not _FIXTURES.intersection(getattr(item, "fixturenames", ())):
            raise pytest.UsageError(
                f"{item.nodeid}: rcdrv_needs is for tests with one of the fixtures"
                f" {', '.join(sorted(_FIXTURES))}"
            )


@pytest.fixture
def endpoint(request: pytest.FixtureRequest) -> Iterator[Endpoint]:
    """Newly opened endpoint: an ``rcdrv.Endpoint`` (docs/api.md).

    After the test, passed or failed, an enabled doorbell is disabled and the device is closed.
    """
    import rcdrv

    config = request.config
    address, chosen_by = _device(config)
    request.node.user_properties += [(_DEVICE_PROPERTY, address), (_CHOSEN_PROPERTY, chosen_by)]
    accesses = request.node.stash[_ACCESSES] = deque[str](maxlen=_SHOWN)
    with contextlib.ExitStack() as stack:
        try:
            opened = rcdrv.open(
                address,
                timeout=config.getoption("--rcdrv-timeout"),
                irq=config.getoption("--rcdrv-irq"),
                reg_bar=config.getoption("--rcdrv-reg-bar"),
                trace=accesses.append,
            )
            stack.enter_context(opened)
            missing = [(need, opened.lacks(need)) for need in _needs(request.node)]
        except rcdrv.RcdrvError as error:
            _give_up(address, error)
        for need, why in missing:
            if why is not None:
                pytest.skip(f"needs {need}: {why}")
        yield opened
        if not opened.disable_doorbell():
            pytest.fail(f"{address}: its doorbell is still enabled after the test", pytrace=False)


@pytest.fixture
def function(endpoint: Endpoint) -> Function:
    """PCI function of the endpoint: an ``rcdrv.Function`` (config space, BARs, interrupts, DMA)."""
    return endpoint.function


@pytest.fixture
def doorbell(endpoint: Endpoint) -> Iterator[Doorbell]:
    """Doorbell, enabled for this test: an ``rcdrv.Doorbell``.

    The test is skipped if the endpoint does not announce doorbells.
    """
    import rcdrv

    with contextlib.ExitStack() as stack:
        try:
            enabled = stack.enter_context(endpoint.doorbell())
        except rcdrv.RcdrvError as error:
            if isinstance(error, rcdrv.NotPassed) and error.verdict is rcdrv.Verdict.SKIP:
                pytest.skip(f"needs doorbell: {error.message}")
            _give_up(endpoint.address, error)
        yield enabled


@pytest.hookimpl(hookwrapper=True)  # not wrapper=True, which older releases of pytest lack
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Add the hint and the last register accesses to a failed test."""
    report = (yield).get_result()
    if not report.failed or call.excinfo is None:
        return
    error = call.excinfo.value
    errors = sys.modules.get("rcdrv.errors")
    if errors is not None and isinstance(error, errors.RcdrvError) and error.hint:
        report.sections.append(("rcdrv: what to look at next", error.hint))
    accesses = item.stash.get(_ACCESSES, None)
    if accesses:
        report.sections.append(("rcdrv: last register accesses", "\n".join(accesses)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say so if the tests ran on a software endpoint and not on a board."""
    reports = [report for many in terminalreporter.stats.values() for report in many]
    chosen = {
        value
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == _CHOSEN_PROPERTY
    }
    if _BY_DEFAULT in chosen:
        terminalreporter.write_line(
            f"rcdrv: no board was tested, but the software endpoint {SOFTWARE};"
            " --rcdrv-device ADDRESS names a board"
        )


_BY_DEFAULT = "a software endpoint, as neither --rcdrv-device nor RCDRV_DEVICE names a device"


def _device(config: pytest.Config) -> tuple[str, str]:
    """Return the device's address and its origin."""
    named = config.getoption("--rcdrv-device")
    if named:
        return named, "--rcdrv-device"
    named = os.environ.get("RCDRV_DEVICE")
    if named:
        return named, "RCDRV_DEVICE"
    return SOFTWARE, _BY_DEFAULT


def _needs(item: pytest.Item) -> list[str]:
    return [need for marker in item.iter_markers("rcdrv_needs") for need in marker.args]


def _give_up(address: str, error: RcdrvError) -> None:
    hint = f"\nhint: {error.hint}" if error.hint else ""
    pytest.fail(f"{address}: {error.message}{hint}", pytrace=False)
