"""Run sequences of steps until one shows a fault; shorten it and write it as a script."""

from __future__ import annotations

import json
import random
import re
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path

from rcdrv.epf_test.answer import IrqChoice
from rcdrv.errors import HostError, Interrupted, RcdrvError, UsageError
from rcdrv.files import make_folder, replace_file
from rcdrv.function import Function
from rcdrv.fuzz.device.draw import Draw
from rcdrv.fuzz.device.facts import STEPS as STEPS
from rcdrv.fuzz.device.facts import Options as Options
from rcdrv.fuzz.device.facts import Wrong
from rcdrv.fuzz.device.harm import harm_of, nonsense
from rcdrv.fuzz.device.model import Model
from rcdrv.fuzz.device.session import DeviceSession, Opener
from rcdrv.fuzz.device.steps import Irq, Step
from rcdrv.fuzz.direct import Direct, Hang
from rcdrv.fuzz.finding import slug
from rcdrv.fuzz.trial import describe_crash
from rcdrv.sim.access_log import AccessLog
from rcdrv.sim.description import Layout
from rcdrv.verdict import NotPassed, classify
from rcdrv.wait import Cancel

LONGEST = 600.0
"""Virtual seconds after which a sequence counts as hung: all its waits are bounded."""

_CONFIRM = 5
"""Number of attempts to reproduce a finding."""

_MOST_TRIES = 400
"""Maximum number of sequences tried to shorten a finding."""

_MOST_SECONDS = 120.0
"""The same in real time."""


_PAIRS_UP_TO = 12
"""Limit of steps for dropping pairs, whose number is quadratic."""

Shows = Callable[[Sequence[Step]], "Found | None"]
"""Runs the steps; returns whether they show the same fault."""


@dataclass(frozen=True)
class Found:
    """A sequence whose last step has a wrong outcome."""

    steps: tuple[Step, ...]
    """Empty if the endpoint could not be prepared for the first step."""
    kind: str
    """Kind of fault in a word or two; equal for equal faults."""
    message: str
    dead: bool = False
    """Whether the endpoint takes no command any more."""

    @property
    def key(self) -> tuple[str, str]:
        """Identity: the last step's verb and the kind of fault."""
        return self.steps[-1].verb if self.steps else "", self.kind

    @property
    def lost(self) -> bool:
        return self.kind == "device-lost"


class Software:
    """A software endpoint in this process, on virtual time; one for each sequence."""

    def __init__(
        self, layout: Layout, cancel: Cancel | None = None, log: AccessLog | None = None
    ) -> None:
        self._layout = layout
        self._cancel = cancel
        self._log = log
        self.device = Direct(layout, log)

    def open(self) -> Function:
        return Function(self.device.attach(), self._cancel, self.device.clock)

    def renew(self) -> None:
        """Replace the endpoint by a new one."""
        self.close()
        self.device = Direct(self._layout, self._log)
        self.device.clock.limit = self.device.clock.time + LONGEST

    def close(self) -> None:
        self.device.endpoint.close()


@dataclass
class Campaign:
    sequences: int = 0
    steps: int = 0
    found: Found | None = None
    flaky: bool = False
    """Whether the finding was not reproduced."""


@dataclass
class DeviceFuzzer:
    """Run sequences on the endpoint that ``open`` opens."""

    open: Opener
    options: Options = field(default_factory=Options)
    renew: Callable[[], None] = lambda: None
    """Restore the initial state. A board cannot; it is cleaned up before each sequence."""

    def run(
        self,
        seed: int,
        *,
        examples: int | None = None,
        seconds: float | None = None,
        on_sequence: Callable[[int, Sequence[Step], Found | None], None] = lambda *_: None,
    ) -> Campaign:
        """Run sequences until one shows a fault, and shorten that one.

        :param examples: maximum number of sequences
        :param seconds: start none after this
        :param on_sequence: called with the number, steps and finding of each
        """
        campaign = Campaign()
        begun = time.monotonic()
        while examples is None or campaign.sequences < examples:
            if seconds is not None and time.monotonic() - begun > seconds:
                break
            draw = Draw(random.Random(f"{seed}/{campaign.sequences}"), self.options.destructive)
            steps: list[Step] = []
            found = self._sequence(partial(self._drawn, draw), steps)
            on_sequence(campaign.sequences, steps, found)
            campaign.sequences += 1
            campaign.steps += len(steps)
            if found is not None:
                campaign.found, campaign.flaky = self._shorten(found)
                break
        return campaign

    def replay(self, steps: Sequence[Step]) -> Found | None:
        """Run these steps only.

        :raises UsageError: a step is senseless, or does harm without consent
        """
        return self._sequence(lambda _model: iter(steps), [])

    # -- one sequence -----------------------------------------------------------------------------

    def _drawn(self, draw: Draw, model: Model) -> Iterator[Step]:
        for _ in range(self.options.steps):
            yield draw.next(model)
            if model.tainted:  # its effect shows now or never
                yield Step("disable")
                yield Step("raise")
        # Hidden memory reappears with its contents.
        if model.enabled:
            yield Step("disable", irq=Irq(IrqChoice.POLL))
        for bar, memory in model.memory.items():
            if bar in model.hidden:
                continue
            for offset in memory.known():
                yield Step("peek", bar=bar, offset=offset, width=8)

    def _sequence(
        self, choose: Callable[[Model], Iterator[Step]], done: list[Step]
    ) -> Found | None:
        """Run the steps that ``choose`` returns up to the first fault; add them to ``done``."""
        options, dead = self.options, False
        self.renew()
        try:
            with DeviceSession(self.open, options) as session:
                model = Model(session.facts, session.registers())
                for step in choose(model):
                    self._check(step, model)
                    done.append(step)
                    if options.trace is not None:
                        options.trace(f"step  {step}")
                    try:
                        seen = session.do(step)
                        model.judge(step, seen)
                    except (Wrong, NotPassed):
                        dead = session.takes_nothing()
                        raise
                    if step.verb in ("reset", "reopen") and not session.facts.keeps_state:
                        model.restart(seen.registers)
        except Wrong as wrong:
            return _found(done, wrong.kind, str(wrong), dead)
        except (Interrupted, HostError, UsageError):
            raise
        except RcdrvError as error:
            reason = classify(error)[1]
            return _found(done, reason.value if reason else "", error.message, dead)
        except Hang as hang:
            return _found(done, "hang", f"hangs: {hang}")
        except Exception as error:
            return _found(done, *describe_crash(error))
        return None

    def _check(self, step: Step, model: Model) -> None:
        harm = harm_of(step, model)
        if harm and harm not in self.options.destructive:
            raise UsageError(
                f"{step} may harm the endpoint here",
                hint=f"`destructive={harm}` permits it",
            )
        why = nonsense(step, model)
        if why:
            raise UsageError(f"{step}: {why}")

    # -- shortening -------------------------------------------------------------------------------

    def _shorten(self, found: Found) -> tuple[Found, bool]:
        """Return the shortened sequence, and whether it was not reproduced."""
        tries, begun, repeats = 0, time.monotonic(), 1 if found.dead else _CONFIRM

        def once(steps: Sequence[Step]) -> Found | None:
            nonlocal tries
            tries += 1
            if tries > _MOST_TRIES or time.monotonic() - begun > _MOST_SECONDS:
                return None
            try:
                again = self.replay(steps)
            except UsageError:
                return None  # senseless or harmful without the dropped steps
            return again if again is not None and again.key == found.key else None

        def shows(steps: Sequence[Step]) -> Found | None:
            return next(filter(None, (once(steps) for _ in range(repeats))), None)

        first = shows(found.steps)
        if first is None:
            return found, not found.dead  # a dead board cannot repeat the fault
        # An intermittent fault needs as many attempts as its first occurrence took.
        found, repeats = first, tries
        return shorten(found, shows), False


def _found(steps: Sequence[Step], kind: str, message: str, dead: bool = False) -> Found:
    where = str(steps[-1]) if steps else "before the first step"
    if dead:
        message += "; the endpoint is dead: it takes no command any more, so reboot it"
    return Found(tuple(steps), kind, f"{where}: {' '.join(message.split())}", dead)


# -- shortening ----------------------------------------------------------------------------------


def shorten(found: Found, shows: Shows) -> Found:
    """Drop steps and arguments while the fault remains; the last step stays.

    :param shows: called with sensible sequences only, not with ``found`` itself
    """
    size = len(found.steps) // 2
    while size > 1:
        found = _leave_out(found, size, shows)
        size //= 2
    before: tuple[Step, ...] = ()
    while found.steps != before:
        before = found.steps
        found = _leave_out(found, 1, shows)
        found = _leave_out_pairs(found, shows)
        found = _simplify(found, shows)
    return found


def _leave_out(found: Found, size: int, shows: Shows) -> Found:
    """Drop each run of ``size`` steps, the last ones first."""
    end = len(found.steps) - 1
    while end > 0:
        start = max(0, end - size)
        fewer = shows(found.steps[:start] + found.steps[end:])
        if fewer is not None:
            found = fewer
        end = min(start, len(found.steps) - 1)
    return found


def _leave_out_pairs(found: Found, shows: Shows) -> Found:
    """Drop pairs, such as an ENABLE and its DISABLE."""
    if len(found.steps) > _PAIRS_UP_TO:
        return found
    for pair in combinations(range(len(found.steps) - 1), 2):
        fewer = shows([step for index, step in enumerate(found.steps) if index not in pair])
        if fewer is not None:
            return _leave_out_pairs(fewer, shows)
    return found


def _simplify(found: Found, shows: Shows) -> Found:
    index = 0
    while index < len(found.steps):
        for simpler in _simpler(found.steps[index]):
            plainer = shows([*found.steps[:index], simpler, *found.steps[index + 1 :]])
            if plainer is not None and len(plainer.steps) <= len(found.steps):
                found = plainer
                break
        else:
            index += 1
    return found


def _simpler(step: Step) -> Iterator[Step]:
    """Yield the step with one argument dropped or simplified."""
    if step.irq is not None:
        yield step.but(irq=None)
        if step.irq.number > 1:
            yield step.but(irq=Irq(step.irq.choice))
    for key, plain in (("stale", 0), ("flags", 0), ("dma", False), ("shift", 0), ("bad", False)):
        if getattr(step, key) != plain:
            yield step.but(**{key: plain})
    simple = {"count": (1, 2), "size": (1, 64, 1024), "value": (1,), "bar": (1, 2, 6)}
    for key, values in simple.items():
        yield from (step.but(**{key: v}) for v in values if v < getattr(step, key))
    if step.verb in ("peek", "poke"):
        if step.offset:
            yield step.but(offset=0)
        for width in (8, 16, 32):
            if width < step.width:
                yield step.but(width=width, value=step.value & (1 << width) - 1)
    for key in ("stale", "flags"):
        bits = getattr(step, key)
        if bits & (bits - 1):
            yield step.but(**{key: bits & -bits})


# -- files of a finding ----------------------------------------------------------------------------


def script(found: Found, address: str, options: Options, origin: str) -> str:
    """Return a shell script that repeats the steps; it exits with 1 if the fault shows."""
    device = '"${RCDRV_DEVICE:-' + re.sub(r'(["$`\\])', r"\\\1", address) + '}"'
    words = ["exec rcdrv fuzz device --device", device, *map(shlex.quote, options.words())]
    # If not even the first step was reached, any step will do.
    steps = found.steps or (Step("raise", irq=Irq(IrqChoice.POLL)),)
    lines = [" ".join(words), *(f"    {shlex.quote(str(step))}" for step in steps)]
    return f"#!/bin/sh\n# {found.message}\n# Found by {origin}\n" + " \\\n".join(lines) + "\n"


def save(folder: Path, found: Found, text: str) -> Path:
    """Write a script, named after the fault."""
    make_folder(folder)
    path = folder / f"{slug(*found.key)}.sh"
    replace_file(path, text.encode(), mode=0o755)
    return path


def record(number: int, steps: Sequence[Step], found: Found | None) -> str:
    return json.dumps(
        {
            "sequence": number,
            "steps": [str(step) for step in steps],
            "finding": found.message if found else None,
        }
    )
