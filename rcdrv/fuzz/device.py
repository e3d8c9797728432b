"""Commands in every order on an endpoint whose layout is what it is.

Nothing is known of the layout, so the order is the oracle: a command has to come to the same as it
did at first, what was poked has to be there when it is peeked, and what a doorbell hides has to
come back. No command can harm an endpoint: the driver's own checks stand before each, and nothing
is poked into the registers, a reserved BAR, or one that holds an enabled doorbell. Each step is one
rcdrv command, so that a finding is a script.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rcdrv.epf_test.bars import is_reserved
from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.registers import Reg
from rcdrv.epf_test.ring import RingPlan, RingRun
from rcdrv.epf_test.suite import Case, Options, cases, run_cases
from rcdrv.epf_test.transfer import Placement
from rcdrv.errors import RcdrvError
from rcdrv.function import Function
from rcdrv.fuzz.direct import Direct
from rcdrv.fuzz.sampling import sample
from rcdrv.report.observer import Observer
from rcdrv.report.result import Run
from rcdrv.sim.layout import Layout
from rcdrv.verdict import NotPassed
from rcdrv.wait import Cancel

Opener = Callable[[], Function]
"""Opens the function; every command does so once, as the command line does."""

STEPS = 30
"""Commands in a sequence."""

_TRANSFER = 1024
_WIDTHS = (8, 16, 32)
_EDGE = 16
"""Bytes at both ends of a BAR that are poked and peeked."""


@dataclass(frozen=True)
class Step:
    """One command line, without ``rcdrv``."""

    words: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join(self.words)


_RINGS = (Step(("ring",)), Step(("ring", "--cycles", "2")))


@dataclass
class Found:
    """A sequence of steps that ends with what must not be."""

    steps: list[Step]
    message: str

    def script(self, address: str) -> str:
        """It, for a shell."""
        lines = [f"# {self.message}", f"export RCDRV_DEVICE={address}"]
        return "\n".join([*lines, *(f"rcdrv {step}" for step in self.steps)]) + "\n"


@dataclass
class Campaign:
    """How far it is."""

    sequences: int = 0
    steps: int = 0
    found: Found | None = None


class Software:
    """A software endpoint of this process, on virtual time."""

    def __init__(self, layout: Layout, cancel: Cancel | None = None) -> None:
        self._layout = layout
        self._cancel = cancel
        self._device = Direct(layout)

    def open(self) -> Function:
        return Function(self._device.attach(), self._cancel, self._device.clock)

    def renew(self) -> None:
        """Start it again: nothing is left of what was done with it."""
        self.close()
        self._device = Direct(self._layout)

    def close(self) -> None:
        self._device.endpoint.close()


class DeviceFuzzer:
    """Runs sequences on the function that ``opener`` opens.

    :param renew: makes the endpoint as it was at first, before each sequence; a board cannot
    :param timeout: seconds, the bound of every wait
    :param reg_bar: where the test registers are, if the driver is to be told
    """

    def __init__(
        self,
        opener: Opener,
        *,
        renew: Callable[[], None] = lambda: None,
        timeout: float = 1.0,
        reg_bar: int | None = None,
    ) -> None:
        self._opener = opener
        self._renew = renew
        self._timeout = timeout
        self._reg_bar = reg_bar
        every = cases(Options(lambda _driver: [Placement(_TRANSFER)], sample))
        self._cases: dict[Step, Case] = {_test_step(case): case for case in every}
        self._bars: dict[int, int] = {}
        self._first: dict[Step, str] = {}
        self._memory: dict[tuple[int, int], int] = {}

    def learn(self) -> None:
        """Each command once, to know what it comes to; and which BARs may be written."""
        with self._opener() as function:
            driver = self._drive(function)
            self._bars = {
                bar.index: bar.size
                for bar in function.bars
                if bar is not None
                and bar.is_memory
                and bar.index != driver.reg_bar
                and not is_reserved(driver, bar.index)
            }
        for step in [*self._cases, *_RINGS]:
            self._first[step] = self._outcome(step)

    def run(
        self, seed: int, *, sequences: int | None = None, seconds: float | None = None
    ) -> Campaign:
        """Sequences until something is found, which is made short then."""
        campaign = Campaign()
        begun = time.monotonic()
        while sequences is None or campaign.sequences < sequences:
            if seconds is not None and time.monotonic() - begun > seconds:
                break
            steps = self._draw(random.Random(f"{seed}/{campaign.sequences}"))
            campaign.sequences += 1
            campaign.steps += len(steps)
            found = self.try_steps(steps)
            if found is not None:
                campaign.found = self._shorten(found)
                break
        return campaign

    def try_steps(self, steps: Sequence[Step]) -> Found | None:
        """Run them; what the first one that goes wrong came to."""
        self._renew()
        self._memory.clear()
        for number, step in enumerate(steps, 1):
            message = self._check(step)
            if message:
                return Found(list(steps[:number]), f"{step}: {message}")
        return None

    def _shorten(self, found: Found) -> Found:
        """Leave out every step without which it is found too."""
        index = len(found.steps) - 2
        while index >= 0:
            fewer = self.try_steps(found.steps[:index] + found.steps[index + 1 :])
            if fewer is not None and fewer.steps[-1] == found.steps[-1]:
                found = fewer
            index = min(index, len(found.steps) - 1) - 1
        return found

    # -- steps ------------------------------------------------------------------------------------

    def _draw(self, rng: random.Random) -> list[Step]:
        commands = list(self._first)
        steps = []
        for _ in range(STEPS):
            choice = rng.random()
            if choice < 0.2:
                steps.append(rng.choice(_RINGS))
                continue
            if choice < 0.5 or not self._bars:
                steps.append(rng.choice(commands))
                continue
            bar = rng.choice(sorted(self._bars))
            width = rng.choice(_WIDTHS)
            inside = rng.randrange(0, _EDGE, width // 8)
            offset = inside if rng.random() < 0.5 else self._bars[bar] - _EDGE + inside
            place = (f"{bar}", f"{offset:#x}")
            value = f"{rng.getrandbits(width):#x}"
            steps.append(Step(("poke", *place, value, "--width", str(width))))
            steps.append(Step(("peek", *place, "--width", str(width))))
        # Whatever happened, what was poked last is still there.
        return steps + [step for step in steps if step.words[0] == "peek"]

    def _check(self, step: Step) -> str:
        """What is wrong with what a step came to; empty when nothing is."""
        if step.words[0] in ("poke", "peek"):
            try:
                return self._access(step)
            except RcdrvError as error:
                return error.message
        self._forget(step)
        outcome = self._outcome(step)
        return "" if outcome == self._first[step] else f"{outcome}, at first {self._first[step]}"

    def _forget(self, step: Step) -> None:
        """What was poked into the BARs that a test writes is gone."""
        case = self._cases.get(step)
        if case is not None and case.name.test == "CONSECUTIVE_BAR_TEST":
            self._memory.clear()
        elif case is not None and case.name.fixture == "pci_ep_bar":
            index = int(case.name.variant.removeprefix("BAR"))
            for place in [place for place in self._memory if place[0] == index]:
                del self._memory[place]

    def _access(self, step: Step) -> str:
        bar, offset = int(step.words[1]), int(step.words[2], 0)
        width = int(step.words[-1])
        with self._opener() as function:
            driver = self._drive(function)
            if driver.read(Reg.DB_BAR) == bar:
                return ""  # a doorbell is enabled there
            window = function.bar(bar)
            if step.words[0] == "poke":
                value = int(step.words[3], 0)
                window.write(width, offset, value)
                for index, byte in enumerate(value.to_bytes(width // 8, "little")):
                    self._memory[bar, offset + index] = byte
                return ""
            got = window.read(width, offset).to_bytes(width // 8, "little")
        for index, byte in enumerate(got):
            wanted = self._memory.get((bar, offset + index), byte)
            if byte != wanted:
                return f"reads {byte:#04x} at {offset + index:#x}, {wanted:#04x} was written"
        return ""

    def _outcome(self, step: Step) -> str:
        try:
            with self._opener() as function:
                driver = self._drive(function)
                if step in self._cases:
                    run = run_cases(driver, [self._cases[step]], Run(""), Observer())
                    result = run.results[0]
                    reason = f" {result.reason.value}" if result.reason else ""
                    return f"{result.verdict.value}{reason}"
                cycles = int(step.words[-1]) if len(step.words) > 1 else 1
                failure = RingRun(driver, RingPlan(cycles=cycles)).run().failure()
        except RcdrvError as error:
            failure = error if isinstance(error, NotPassed) else None
            if failure is None:
                return type(error).__name__
        if failure is None:
            return "pass"
        return f"{failure.verdict.value} {failure.reason.value}"

    def _drive(self, function: Function) -> EpfTest:
        return EpfTest(function, reg_bar=self._reg_bar, timeout=self._timeout)


def _test_step(case: Case) -> Step:
    size = ("--size", str(_TRANSFER)) if case.name.fixture == "pci_ep_data_transfer" else ()
    return Step(("test", *size, str(case.name)))
