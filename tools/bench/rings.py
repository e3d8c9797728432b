"""Ring to acknowledgement on the software endpoint, held against one message over its socket."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from statistics import median
from time import perf_counter_ns

from rcdrv.address import open_function
from rcdrv.bench.result import Result
from rcdrv.bench.ring import Method, measure
from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.registers import Reg
from tools.bench.measure import Row, compared, in_turns


def rows(*, quick: bool) -> Iterator[Row]:
    """Medians of a few hundred rings a round, by each way to learn of the answer."""
    count, rounds = (100, 3) if quick else (300, 9)
    with open_function("sim:rk3588") as function:
        driver = EpfTest(function)
        result = Result("ring", function.address, {})

        def rung(method: Method) -> float:
            series = measure(driver, method, count, result)
            return series.distribution.percentile(50) / 1e3

        def message() -> float:
            samples = []
            for _ in range(count):
                start = perf_counter_ns()
                driver.read(Reg.MAGIC)
                samples.append(perf_counter_ns() - start)
            return median(samples) / 1e3

        ways = (Method.INTERRUPT, Method.SPIN, Method.POLL, Method.WRITE)
        found = in_turns(
            {"message": message, **{way.value: partial(rung, way) for way in ways}}, rounds
        )
    for way in ways:
        what = "ring without wait" if way is Method.WRITE else f"ring to answer, {way.value}"
        yield compared(
            f"{what}, sim:rk3588",
            "us",
            found[way.value],
            "one vfio-user message",
            found["message"],
        )
