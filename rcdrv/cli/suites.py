"""``rcdrv test`` on several devices in parallel: one table, and reports by device."""

from __future__ import annotations

import argparse
import base64
import os
import pickle
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TextIO

from rcdrv.cli.common import print_json
from rcdrv.cli.several import labels, lanes, side_by_side, together, worst_of
from rcdrv.report.tap import Tap
from rcdrv.report.terminal import Coloured, Plain, has_colours
from rcdrv.report.terminal import side_by_side as table
from rcdrv.report.text import one_line
from rcdrv.results.baseline import differences
from rcdrv.results.document import to_document
from rcdrv.results.observer import Observer, Observers
from rcdrv.results.result import Baseline, CaseName, CaseResult, Run
from rcdrv.sysfs import Paths
from rcdrv.wait import Cancel

_MARK = f"\0{os.urandom(8).hex()} "
"""Prefix of a line that is a pickled event; other lines are text. It is random and drawn before the
forks, so that no text of an endpoint can pass for an event."""


class Sender(Observer):
    """Sends each event to the parent as a line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def start(self, run: Run) -> None:
        self._send("start", run.description)

    def case_started(self, name: CaseName) -> None:
        self._send("case_started", name)

    def progress(self, name: CaseName, done: int, total: int, what: str) -> None:
        self._send("progress", name, done, total, what)

    def case_finished(self, result: CaseResult) -> None:
        self._send("case_finished", result)

    def _send(self, *event: Any) -> None:
        text = base64.b64encode(pickle.dumps(event)).decode()
        self._stream.write(f"{_MARK}{text}\n")
        self._stream.flush()


class _Runs:
    """The run of each device, and the combined run, which the observers see."""

    def __init__(
        self, names: Sequence[str], planned: Sequence[CaseName], baseline: Baseline | None
    ) -> None:
        self.each = [Run(name, "", tuple(planned), baseline=baseline) for name in names]
        every = tuple(replace(case, device=name) for name in names for case in planned)
        self.all = Run(", ".join(names), "", every)
        self.observer: Observer = Observer()

    def receive(self, number: int, line: str) -> None:
        """Receive a line from the process of device ``number``."""
        run = self.each[number]
        if not line.startswith(_MARK):
            print(f"{run.device}  {line}", file=sys.stderr, flush=True)
            return
        # The line comes from a fork of this process, so it may be truncated but not forged.
        try:
            what, *values = pickle.loads(base64.b64decode(line[len(_MARK) :], validate=True))
        except (ValueError, EOFError, pickle.UnpicklingError):
            return
        if what == "start":
            run.description = values[0]
        elif what == "case_finished":
            (result,) = values
            run.results.append(result)
            result = replace(result, name=replace(result.name, device=run.device))
            self.all.results.append(result)
            self.observer.case_finished(result)
        else:
            name, *rest = values
            getattr(self.observer, what)(replace(name, device=run.device), *rest)


class _Table(Observer):
    """End of a run on a terminal or in TAP: the changes, and the table of all devices."""

    def __init__(self, runs: Sequence[Run], mark: str) -> None:
        self._runs = runs
        self._mark = mark

    def finish(self, run: Run) -> None:
        for one in self._runs:
            for line in differences(one):
                print(f"{self._mark}{one_line(one.device)}: {one_line(line)}")
        print(f"{self._mark}".rstrip())
        for line in table(self._runs):
            print(f"{self._mark}{line}".rstrip())
        sys.stdout.flush()


def run_suites(
    args: argparse.Namespace,
    cancel: Cancel,
    planned: Sequence[CaseName],
    baseline: Baseline | None,
    body: Callable[[argparse.Namespace, Cancel, Observer], int],
) -> int:
    """Run the cases on each of ``args.devices``; return the worst exit status.

    :param body: runs them on one device, in its own process
    """
    runs = _Runs(labels(args.devices), planned, baseline)
    shown: list[Observer] = []
    if args.junit:
        from rcdrv.report.junit import JUnit

        shown.append(JUnit(args.junit, runs.each))
    if not args.json:
        if args.tap or not sys.stdout.isatty():
            shown += [_Table(runs.each, "# "), Tap(sys.stdout)]  # its totals come last
        else:
            lines = Coloured if has_colours(sys.stdout) else Plain
            shown += [lines(sys.stdout), _Table(runs.each, "")]
    runs.observer = Observers(*shown)
    runs.observer.start(runs.all)

    args.meeting = None
    if args.more:
        from rcdrv.epf_test.more.several import Meeting  # the second suite is not for everybody

        queues = lanes(args.devices, Paths(), one_bus=bool(args.destructive))
        turns = [number for queue in queues if len(queue) > 1 for number in queue]
        args.meeting = Meeting(len(args.devices), turns)

    def ended(number: int) -> None:
        if args.meeting is not None:
            args.meeting.leave(number)

    def send(one: argparse.Namespace, stop: Cancel) -> int:
        one.json = False  # errors are printed as text; the parent makes the document
        return body(one, stop, Sender(sys.stdout))

    try:
        statuses = side_by_side(args, cancel, send, runs.receive, ended)
    finally:
        runs.observer.finish(runs.all)
        if args.json:
            print_json(together([to_document(run) for run in runs.each]))
    return worst_of(statuses, cancel)
