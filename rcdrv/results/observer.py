"""Observer of a run: the five calls that displays and reports implement."""

from __future__ import annotations

from contextlib import ExitStack

from rcdrv.results.result import CaseName, CaseResult, Run


class Observer:
    """Listener of one run. The methods do nothing; override those of interest.

    The runner calls :meth:`start` once; for each case :meth:`case_started`, any number of
    :meth:`progress`, and :meth:`case_finished`; and :meth:`finish` at the end, also of a run that
    ended early. ``run.planned`` is complete from the start, ``run.results`` at the finish.
    """

    def start(self, run: Run) -> None:
        """Start the run. If it raises (the report cannot be made), finish is not called."""

    def case_started(self, name: CaseName) -> None:
        """Start a case."""

    def progress(self, name: CaseName, done: int, total: int, what: str) -> None:
        """Report progress of a long case: ``done`` of ``total`` ``what``, such as vectors."""

    def case_finished(self, result: CaseResult) -> None:
        """Take the result of a case."""

    def finish(self, run: Run) -> None:
        """Finish the run."""


class Observers(Observer):
    """Several observers, called in order. One that takes over the terminal comes last."""

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
        # A full disk under one report must not leave another unfinished, or the terminal without
        # its cursor: the stack calls all of them, then raises.
        with ExitStack() as stack:
            for observer in reversed(self._observers):
                stack.callback(observer.finish, run)
