"""Campaigns over layouts, in blocks: findings depend on the seed, not on the worker.

Block n of a seed always has the same examples, and blocks are evaluated in order. So a campaign can
be split over processes and machines, stopped and resumed. Workers share nothing: a worker gets a
plan and a number, and returns a block's examples.
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
    read_text,
    replace_file,
)
from rcdrv.fuzz.coverage import Coverage
from rcdrv.fuzz.finding import Finding, Table, save, shrink
from rcdrv.fuzz.trial import Report, run_layout
from rcdrv.results.node import Node, parse
from rcdrv.sim.layout import BAR_KEYS, parse_layout

BLOCK = 50
"""Examples per block."""

DASK_TIMEOUT = 10.0
"""Seconds to wait for a dask scheduler."""

LARGEST_WHOLE = 4 << 20
"""Size in bytes of the largest BAR when every byte is tested."""

_HINT = "choose another `folder`"


@dataclass(frozen=True)
class Plan:
    seed: int = 0
    examples: int | None = None
    """Maximum number of examples, rounded up to whole blocks."""
    seconds: float | None = None
    """Seconds after which no block is started."""
    workers: int = 1
    dask: str = ""
    """Address of a dask.distributed scheduler, whose workers are used instead of processes."""
    real_time: bool = False
    """Use the endpoint's real tick, test whole BARs (up to :data:`LARGEST_WHOLE`), and compare the
    outcome with virtual time."""
    hostile: bool = True
    folder: Path | None = None
    """Folder of findings and of the record from which a campaign is resumed."""

    @property
    def identity(self) -> dict[str, object]:
        """Return the properties that a resumed campaign must share."""
        return {
            "seed": self.seed,
            "block": BLOCK,
            "real_time": self.real_time,
            "hostile": self.hostile,
        }


@dataclass(frozen=True)
class Example:
    table: Table
    outcomes: dict[str, str]
    findings: list[Finding]


@dataclass
class Shrunk:
    finding: Finding
    table: Table
    path: Path | None = None


@dataclass
class Progress:
    examples: int = 0
    resumed: int = 0
    """Examples taken from the record of an earlier run."""
    seconds: float = 0.0
    coverage: Coverage = field(default_factory=Coverage)
    findings: list[Shrunk] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Examples per second."""
        return (self.examples - self.resumed) / self.seconds if self.seconds else 0.0


def try_table(table: Table, *, real_time: bool = False) -> Example:
    """Run one table. An invalid layout has neither outcomes nor findings.

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
    """Add the outcomes that are unacceptable on virtual time only."""
    for name, outcome in virtual.outcomes.items():
        if name not in virtual.open and real.outcomes.get(name) != outcome:
            real.find(
                "agreement",
                name,
                f"{name}: {real.outcomes.get(name)} at the real tick, {outcome} on virtual time",
            )


def _require_hypothesis() -> None:
    try:
        import hypothesis  # noqa: F401 - only whether it is installed
    except ImportError:
        raise HostError(
            "fuzz layout needs hypothesis, which is not installed", hint="pip install 'rcdrv[fuzz]'"
        ) from None


def run_block(plan: Plan, number: int) -> list[Example]:
    """Return the examples of one block; they depend on seed and number alone."""
    _require_hypothesis()  # on a worker, too
    from rcdrv.fuzz.strategies import LARGEST, draw, tables

    layouts = tables(hostile=plan.hostile, largest=LARGEST_WHOLE if plan.real_time else LARGEST)
    drawn = draw(layouts, f"{plan.seed}/{number}", BLOCK)
    return [try_table(table, real_time=plan.real_time) for table in drawn]


def run(plan: Plan, on_block: Callable[[Progress], None] = lambda _progress: None) -> Progress:
    """Run a campaign, or resume the one in ``plan.folder``.

    :param on_block: called after every block
    :raises UsageError: the folder holds another campaign
    :raises HostError: hypothesis is not installed
    """
    _require_hypothesis()  # before the folder is made
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
    if any(known.finding.key == finding.key for known in progress.findings):
        return

    def shown(candidate: Table) -> Finding | None:
        found = try_table(candidate, real_time=plan.real_time).findings
        return next((other for other in found if other.key == finding.key), None)

    small = shrink(table, lambda candidate: shown(candidate) is not None)
    shrunk = Shrunk(shown(small) or finding, small)
    if plan.folder is not None:
        shrunk.path = save(plan.folder, shrunk.finding, small)
    progress.findings.append(shrunk)


def _blocks(plan: Plan, record: _Record, begun: float) -> Iterator[tuple[int, list[Example]]]:
    """Yield all blocks in order, those of the record first."""

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
    pool = _dask_executor(plan.dask) if plan.dask else _pool(plan.workers)
    with pool as (executor, most):
        running: list[tuple[int, Future[list[Example]]]] = []
        for number in numbers:
            if wanted(number):
                running.append((number, executor.submit(run_block, plan, number)))
            if not running:
                return
            # A short queue, so that little is discarded at the end of the time.
            if len(running) > 2 * most or not wanted(number):
                first, future = running.pop(0)
                yield first, future.result()


@contextmanager
def _pool(workers: int) -> Iterator[tuple[Executor, int]]:
    """Return the executor of blocks, and its number of workers."""
    pool = _Pool(workers)
    try:
        yield pool, workers
    finally:
        pool.shutdown(cancel_futures=True)


class _Pool(ProcessPoolExecutor):
    """Process pool that imports nothing from the working directory."""

    def __init__(self, workers: int) -> None:
        here = Path.cwd()
        # Not forked: a child must not share this process's descriptors.
        context = get_context("spawn")
        with _in_root():  # starts multiprocessing's resource tracker
            super().__init__(workers, context, initializer=_begin_worker, initargs=(here,))

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        with _in_root():  # starts the workers
            return super().submit(*args, **kwargs)


@contextmanager
def _in_root() -> Iterator[None]:
    """Change to / while multiprocessing starts ``python -c``.

    That searches the working directory for modules first; Python 3.10 has no option against it.
    """
    here = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    os.chdir("/")
    try:
        yield
    finally:
        os.fchdir(here)
        os.close(here)


def _begin_worker(folder: Path) -> None:
    os.chdir(folder)
    # Ctrl-C reaches it too, but the campaign ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _dask_executor(address: str) -> Iterator[tuple[Executor, int]]:
    """Return the workers of a dask.distributed scheduler. Each needs this version of rcdrv[fuzz].

    :raises HostError: dask.distributed is not installed, or no scheduler or worker is there
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
    """``examples.jsonl``: the campaign's identity, then one example per line."""

    def __init__(self, plan: Plan) -> None:
        self.blocks: list[list[Example]] = []
        self._path = plan.folder / "examples.jsonl" if plan.folder is not None else None
        if self._path is None:
            return
        make_folder(self._path.parent)
        if self._path.exists():
            self._read(self._path, plan)
        else:
            replace_file(self._path, f"{json.dumps(plan.identity)}\n".encode())

    def _read(self, path: Path, plan: Plan) -> None:
        head, *lines = read_text(path, LARGEST_RESULT).splitlines() or [""]
        if _parsed(path, 1, head).value != plan.identity:
            raise UsageError(f"{path} is of another campaign: {head}", hint=_HINT)
        whole = len(lines) // BLOCK * BLOCK
        examples = [_example(_parsed(path, at, line)) for at, line in enumerate(lines[:whole], 2)]
        self.blocks = [examples[start : start + BLOCK] for start in range(0, whole, BLOCK)]
        # A truncated block is run again.
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


def _parsed(path: Path, number: int, line: str) -> Node:
    return parse(line, f"{path}: line {number}", _HINT)


def _example(entry: Node) -> Example:
    """Return an example of the record, checked as far as a campaign looks at it."""
    layout = entry["layout"]
    for key, part in layout.items():
        if key in BAR_KEYS:
            part.said("type")
            if part.has("size"):
                _ = part["size"].integer
        elif key == "doorbell":
            part.said("backend")
        elif key == "faults":
            _ = [fault.text for fault in part]
    outcomes = {name: outcome.text for name, outcome in entry["outcomes"].items()}
    findings = [Finding(*(word.text for word in found.entries(3))) for found in entry["findings"]]
    return Example(layout.value, outcomes, findings)
