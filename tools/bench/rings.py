"""Latency from ring to acknowledgement: an endpoint as fast as memory, and a software one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median
from time import perf_counter_ns

from rcdrv.address import open_function
from rcdrv.bench.ring import Method, measure
from rcdrv.device import IrqKind, SetIrqs
from rcdrv.epf_test.answer import IrqChoice
from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.registers import Reg
from rcdrv.results.bench import Result
from tools.bench import ideal
from tools.bench.measure import Kind, Row, Target, calls, compared, in_turns
from tools.bench.native import Native

_ECHO = """
import socket, sys
sock = socket.socket(fileno=int(sys.argv[1]))
answer = bytes(36)
while sock.recv(64):
    sock.send(answer)
"""
_ARM = SetIrqs.DATA_EVENTFD | SetIrqs.ACTION_TRIGGER


def rows(native: Native, *, quick: bool) -> Iterator[Row]:
    """Measure medians of a few hundred rings per round, by each method of waiting."""
    count, rounds = (100, 3) if quick else (300, 9)
    yield from _ideal(native, count, rounds)
    yield from _simulated(native, count, rounds)


def _ideal(native: Native, count: int, rounds: int) -> Iterator[Row]:
    """Measure rings of rcdrv and of C; an endpoint in C answers on another processor."""
    with ideal.function(native) as function:
        driver = EpfTest(function, irq=IrqChoice.MSI)
        device = function.device
        result = Result("ring", function.address, {})
        registers, bar = (device.map(index, device.region(index).areas[0]) for index in (0, 1))
        eventfd = os.eventfd(0, os.EFD_NONBLOCK)

        def ours(method: Method) -> float:
            series = measure(driver, method, count, result)
            return series.distribution.percentile(50) / 1e3

        def theirs(how: int) -> float:
            driver.disarm()
            device.set_irqs(IrqKind.MSI, _ARM, 0, 1, [eventfd])
            return median(native.rings(bar, 0, 1, registers, eventfd, how, count)) / 1e3

        ways = {
            Method.INTERRUPT: Native.SLEEP,
            Method.SPIN: Native.SPIN,
            Method.POLL: Native.POLL,
        }
        found = in_turns(
            {
                **{method.value: partial(ours, method) for method in ways},
                **{f"C {method.value}": partial(theirs, how) for method, how in ways.items()},
            },
            rounds,
        )
        os.close(eventfd)
    for method in ways:
        yield compared(
            f"ring to answer, {method.value}, ideal endpoint",
            "us",
            found[method.value],
            "C, the same",
            found[f"C {method.value}"],
        )


@contextmanager
def _python_echo() -> Iterator[socket.socket]:
    """Yield a socket to a process in Python that answers each message with as many bytes as a
    register read has."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        fd = theirs.fileno()
        process = subprocess.Popen([sys.executable, "-c", _ECHO, str(fd)], pass_fds=[fd])
        theirs.close()
        try:
            yield ours
        finally:
            ours.close()
            process.wait()


def _simulated(native: Native, count: int, rounds: int) -> Iterator[Row]:
    with open_function("sim:rk3588") as function, _python_echo() as echo:
        driver = EpfTest(function)
        result = Result("ring", function.address, {})

        def rung(method: Method) -> float:
            series = measure(driver, method, count, result)
            return series.distribution.percentile(50) / 1e3

        def message(send: Callable[[], object]) -> float:
            samples = []
            for _ in range(count):
                start = perf_counter_ns()
                send()
                samples.append(perf_counter_ns() - start)
            return median(samples) / 1e3

        def echoed() -> None:
            echo.send(bytes(32))
            echo.recv(64)

        ways = (Method.INTERRUPT, Method.SPIN, Method.POLL, Method.WRITE)
        found = in_turns(
            {
                "message": partial(message, partial(driver.read, Reg.MAGIC)),
                "python": partial(message, echoed),
                "echo": lambda: median(native.echo(count)) / 1e3,
                **{way.value: partial(rung, way) for way in ways},
            },
            rounds,
        )
        made = calls(partial(driver.read, Reg.MAGIC))
    yield compared(
        "one vfio-user message, sim:rk3588",
        "us",
        found["message"],
        "C echo over a socket",
        found["echo"],
        Target(Kind.TIMES, 1.5),
        f"an echo in Python without any check took {min(found['python']):.1f} us in this run; the"
        f" rest are checks, {made} calls of Python functions at the client alone, and the looks of"
        " both ends before they sleep",
    )
    yield compared(
        "the same",
        "us",
        found["message"],
        "Python echo over a socket",
        found["python"],
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
