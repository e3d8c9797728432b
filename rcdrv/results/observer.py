"""Observer of a run: the five calls that every display and report implements."""

from __future__ import annotations

from contextlib import ExitStack

from rcdrv.results.result import CaseName, CaseResult, Run


class Observer:
    """Listens to one run. Does nothing itself: an observer overrides what it wants to hear.

    A runner calls :meth:`start` once, then for each case :meth:`case_started`, perhaps
    :meth:`progress`, and :meth:`case_finished`; and :meth:`finish` at the end, also when the run
    ended early. ``run.planned`` is complete from the start, ``run.results`` at the finish.
    """

    def start(self, run: Run) -> None:
        """The run begins. Raises where the report cannot be made; nothing needs a finish then."""

    def case_started(self, name: CaseName) -> None:
        """A case begins."""

    def progress(self, name: CaseName, done: int, total: int, what: str) -> None:
        """A long case has come so far: ``done`` of ``total`` ``what``, such as vectors."""

    def case_finished(self, result: CaseResult) -> None:
        """A case is finished."""

    def finish(self, run: Run) -> None:
        """The run is over."""


class Observers(Observer):
    """Several at once, called in order. Whoever takes over the terminal comes last."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def start(self, run: Run) -> None:
        for observer in self._observers:
            observer.start(run)

    def case_started(self, name: CaseName) -> None:
        for observer in self._observers:
            observer.case_started(name)

    def progress(self, name: CaseName, done: int, total: int, what: str) -> None:
        for observer in self._observers:
            observer.progress(name, done, total, what)

    def case_finished(self, result: CaseResult) -> None:
        for observer in self._observers:
            observer.case_finished(result)

    def finish(self, run: Run) -> None:
        # A full disk under one report is no reason to leave another unfinished, or the terminal
        # without its cursor: the stack calls all of them, and raises afterwards.
        with ExitStack() as stack:
            for observer in reversed(self._observers):
                stack.callback(observer.finish, run)
