"""The driver against a software endpoint, in this process and on virtual time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.suite import cases, run_cases, select
from rcdrv.epf_test.transfer import Placement
from rcdrv.function import Function
from rcdrv.fuzz.direct import Direct
from rcdrv.results.observer import Observer
from rcdrv.results.result import Run
from rcdrv.sim.access_log import AccessLog
from rcdrv.sim.layout import load_layout


@contextmanager
def endpoint(spec: str, log: AccessLog | None = None) -> Iterator[Direct]:
    device = Direct(load_layout(spec), log)
    try:
        yield device
    finally:
        device.endpoint.close()


def run(device: Direct, *names: str) -> dict[str, tuple[str, str | None]]:
    """{case: (verdict, reason)} of a session with these cases; transfers are of 1024 bytes."""
    every = cases(lambda _driver: [Placement(1024)])
    with Function(device.attach(), clock=device.clock) as function:
        result = run_cases(EpfTest(function), select(names, (), every), Run("test"), Observer())
    return {
        str(case.name): (case.verdict.value, case.reason and case.reason.value)
        for case in result.results
    }
