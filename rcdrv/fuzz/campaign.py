"""Many layouts, in blocks: findings depend on the seed alone, not on the worker.

Block n of a seed has always the same examples. Workers take blocks, and blocks are looked at in
their order; so a campaign can be split over processes and machines, stopped and taken up again.
Workers share nothing: what they get is a plan and a number, what they give is a block's examples.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rcdrv import __version__
from rcdrv.errors import HostError, UsageError
from rcdrv.files import (
    LARGEST_RESULT,
    make_folder,
    open_output,
    parse_json,
    read_text,
    replace_file,
)
from rcdrv.fuzz.coverage import Coverage
from rcdrv.fuzz.saved import save
from rcdrv.fuzz.shrink import shrink
from rcdrv.fuzz.trial import Finding, Report, run_layout
from rcdrv.sim.layout import parse_layout

Table = dict[str, Any]

BLOCK = 50
"""Examples in a block."""

DASK_TIMEOUT = 10.0
"""Seconds to wait for a scheduler."""

LARGEST_WHOLE = 4 << 20
"""Bytes; the largest BAR of a campaign that tests every byte of every BAR."""


@dataclass(frozen=True)
class Plan:
    """What to run."""

    seed: int = 0
    examples: int | None = None
    """At most so many, rounded up to whole blocks."""
    seconds: float | None = None
    """No block is begun after so long."""
    workers: int = 1
    dask: str = ""
    """The address of a dask.distributed scheduler: its workers are used, and no processes here."""
    real_time: bool = False
    """At the endpoint's own tick, BARs up to :data:`LARGEST_WHOLE` and all of them tested; and
    what comes out is compared with virtual time."""
    hostile: bool = True
    folder: Path | None = None
    """Where findings and the record of every example go, and where a campaign is resumed."""

    @property
    def identity(self) -> dict[str, object]:
        """Properties that a resumed campaign must share with this one."""
        return {
            "seed": self.seed,
            "block": BLOCK,
            "real_time": self.real_time,
            "hostile": self.hostile,
        }


@dataclass(frozen=True)
class Example:
    """One layout and what came of it."""

    table: Table
    outcomes: dict[str, str]
    findings: list[Finding]


@dataclass
class Shrunk:
    """A finding of the campaign, made small."""

    finding: Finding
    table: Table
    path: Path | None = None


@dataclass
class Progress:
    """How far a campaign is."""

    examples: int = 0
    resumed: int = 0
    """Of these, taken from the record of an earlier run."""
    seconds: float = 0.0
    coverage: Coverage = field(default_factory=Coverage)
    findings: list[Shrunk] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Examples a second."""
        return (self.examples - self.resumed) / self.seconds if self.seconds else 0.0


def try_table(table: Table, *, real_time: bool = False) -> Example:
    """Run one table. An invalid layout has no outcome and no finding.

    :param real_time: as in :class:`Plan`
    """
    try:
        layout = parse_layout(table)
    except UsageError:
        return Example(table, {}, [])
    report = run_layout(layout, real_time=real_time, whole=real_time)
    if real_time:
        _compare(report, run_layout(layout))
    return Example(table, report.outcomes, report.findings)


def _compare(real: Report, virtual: Report) -> None:
    """Note where virtual time had an unacceptable outcome. It leaves out some cases of large
    BARs."""
    for name, outcome in virtual.outcomes.items():
        if name not in virtual.open and real.outcomes.get(name) != outcome:
            real.find(
                "agreement",
                name,
                f"{name}: {real.outcomes.get(name)} at the real tick, {outcome} on virtual time",
            )


def run_block(plan: Plan, number: int) -> list[Example]:
    """The examples of one block, the same ones whenever and wherever it runs."""
    try:
        from hypothesis import HealthCheck, Phase, given, seed, settings
    except ImportError:
        raise HostError(
            "fuzz layout needs hypothesis, which is not installed", hint="pip install 'rcdrv[fuzz]'"
        ) from None
    from rcdrv.fuzz.draws import BACKEND
    from rcdrv.fuzz.strategies import LARGEST, tables

    examples: list[Example] = []

    @seed(f"{plan.seed}/{number}")
    @settings(
        max_examples=BLOCK,
        backend=BACKEND,
        database=None,
        deadline=None,
        derandomize=False,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(tables(hostile=plan.hostile, largest=LARGEST_WHOLE if plan.real_time else LARGEST))
    def block(table: Table) -> None:
        examples.append(try_table(table, real_time=plan.real_time))

    block()
    return examples


def run(plan: Plan, on_block: Callable[[Progress], None] = lambda _progress: None) -> Progress:
    """Run a campaign, or go on with the one in ``plan.folder``.

    :param on_block: called after every block
    :raises UsageError: the folder has another campaign
    """
    progress = Progress()
    begun = time.monotonic()
    record = _Record(plan)
    for number, examples in _blocks(plan, record, begun):
        if number < len(record.blocks):
            progress.resumed += len(examples)
        for example in examples:
            progress.examples += 1
            progress.coverage.add(example.table)
            for finding in example.findings:
                _take(plan, progress, finding, example.table)
        record.add(number, examples)
        progress.seconds = time.monotonic() - begun
        on_block(progress)
    return progress


def _take(plan: Plan, progress: Progress, finding: Finding, table: Table) -> None:
    key = finding.kind, finding.what
    if any((known.finding.kind, known.finding.what) == key for known in progress.findings):
        return

    def shown(candidate: Table) -> Finding | None:
        found = try_table(candidate, real_time=plan.real_time).findings
        return next((other for other in found if (other.kind, other.what) == key), None)

    small = shrink(table, lambda candidate: shown(candidate) is not None)
    shrunk = Shrunk(shown(small) or finding, small)
    if plan.folder is not None:
        shrunk.path = save(plan.folder, shrunk.finding, small)
    progress.findings.append(shrunk)


def _blocks(plan: Plan, record: _Record, begun: float) -> Iterator[tuple[int, list[Example]]]:
    """All blocks in order, those of the record first."""

    def wanted(number: int) -> bool:
        if plan.examples is not None and number * BLOCK >= plan.examples:
            return False
        return plan.seconds is None or time.monotonic() - begun < plan.seconds

    yield from enumerate(record.blocks)
    numbers = count(len(record.blocks))
    if plan.workers == 1 and not plan.dask:
        for number in numbers:
            if not wanted(number):
                return
            yield number, run_block(plan, number)
    with _executor(plan) as (executor, most):
        running: list[tuple[int, Future[list[Example]]]] = []
        for number in numbers:
            if wanted(number):
                running.append((number, executor.submit(run_block, plan, number)))
            if not running:
                return
            # The queue is short, so that little is thrown away when the time is up.
            if len(running) > 2 * most or not wanted(number):
                first, future = running.pop(0)
                yield first, future.result()


@contextmanager
def _executor(plan: Plan) -> Iterator[tuple[Executor, int]]:
    """What runs blocks elsewhere, and how many at once."""
    if plan.dask:
        with _dask_executor(plan.dask) as found:
            yield found
        return
    pool = _Pool(plan.workers)
    try:
        yield pool, plan.workers
    finally:
        pool.shutdown(cancel_futures=True)


class _Pool(ProcessPoolExecutor):
    """Processes of this host that import nothing from the working directory."""

    def __init__(self, workers: int) -> None:
        here = Path.cwd()
        # Not forked: a child shall not share what this process has open.
        context = get_context("spawn")
        with _in_root():  # starts multiprocessing's resource tracker
            super().__init__(workers, context, initializer=_begin_worker, initargs=(here,))

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        with _in_root():  # starts the workers
            return super().submit(*args, **kwargs)


@contextmanager
def _in_root() -> Iterator[None]:
    """For the start of ``python -c``, as multiprocessing does: it looks for modules in the working
    directory before all others, and Python 3.10 has no option against that."""
    here = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    os.chdir("/")
    try:
        yield
    finally:
        os.fchdir(here)
        os.close(here)


def _begin_worker(folder: Path) -> None:
    os.chdir(folder)
    # Ctrl-C reaches it too, and it is for the campaign to end it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _dask_executor(address: str) -> Iterator[tuple[Executor, int]]:
    """The workers of a dask.distributed scheduler. Each needs this version of rcdrv[fuzz].

    :raises HostError: dask.distributed is not installed, no such scheduler, or it has no workers
    """
    try:
        distributed: Any = import_module("distributed")  # it has no types
    except ImportError:
        raise HostError(
            "`dask` needs dask.distributed, which is not installed",
            hint="pip install 'rcdrv[dask]'",
        ) from None
    try:
        client = distributed.Client(address, timeout=DASK_TIMEOUT)
    except (OSError, ValueError) as error:
        raise HostError(
            f"no dask scheduler at {address}: {error}",
            hint="dask scheduler starts one and prints its address, such as tcp://10.0.0.1:8786",
        ) from None
    with client:
        versions = client.run(_version)
        if not versions:
            raise HostError(
                f"the dask scheduler at {address} has no workers",
                hint=f"on each machine: dask worker {address}",
            )
        for worker, version in versions.items():
            if version != __version__:
                raise HostError(
                    f"the dask worker {worker} has rcdrv {version}, not {__version__}",
                    hint="the same layouts come only of the same version",
                )
        yield client.get_executor(), sum(client.nthreads().values())


def _version() -> str:
    return __version__


class _Record:
    """``examples.jsonl``: the campaign's identity, then every example, a line each."""

    def __init__(self, plan: Plan) -> None:
        self.blocks: list[list[Example]] = []
        self._path = plan.folder / "examples.jsonl" if plan.folder is not None else None
        self._kept = 0
        if self._path is None:
            return
        make_folder(self._path.parent)
        if self._path.exists():
            self._read(self._path, plan)
        else:
            replace_file(self._path, f"{json.dumps(plan.identity)}\n".encode())

    def _read(self, path: Path, plan: Plan) -> None:
        head, *lines = read_text(path, LARGEST_RESULT).splitlines() or [""]
        whole = len(lines) // BLOCK * BLOCK
        try:
            identity = parse_json(head)
            examples = [_example(parse_json(line)) for line in lines[:whole]]
        except (ValueError, TypeError, LookupError, AttributeError):
            identity = None
        if identity != plan.identity:
            raise UsageError(
                f"{path} is of another campaign: {head}", hint="choose another `folder`"
            )
        self.blocks = [examples[start : start + BLOCK] for start in range(0, whole, BLOCK)]
        # A block that was cut off is run again.
        replace_file(path, ("\n".join([head, *lines[:whole]]) + "\n").encode())

    def add(self, number: int, examples: list[Example]) -> None:
        if self._path is None or number < len(self.blocks):
            return
        with open_output(self._path, append=True) as stream:
            for example in examples:
                entry = {
                    "layout": example.table,
                    "outcomes": example.outcomes,
                    "findings": [[f.kind, f.what, f.message] for f in example.findings],
                }
                stream.write(json.dumps(entry) + "\n")


def _example(entry: dict[str, Any]) -> Example:
    findings = [Finding(*finding) for finding in entry["findings"]]
    return Example(entry["layout"], entry["outcomes"], findings)
