"""Shorten a sequence that shows a finding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from rcdrv.fuzz.device.steps import Irq, Step

_PAIRS_UP_TO = 12
"""Limit of steps for dropping pairs, whose number is quadratic."""


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


Shows = Callable[[Sequence[Step]], "Found | None"]
"""Runs the steps; returns whether they show the same fault."""


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
