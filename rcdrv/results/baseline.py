"""Baselines: earlier runs to compare a run with, and the differences."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rcdrv.errors import UsageError, did_you_mean
from rcdrv.files import read_file
from rcdrv.results import node
from rcdrv.results.node import Node
from rcdrv.results.result import CASE_VERDICTS, Baseline, Before, Change, Run
from rcdrv.wait import Cancel

if TYPE_CHECKING:
    from importlib.abc import Traversable

_LARGEST = 4 << 20
"""Limit of a baseline file in bytes, far above a run of every case."""
_LONGEST = 200
"""Limit of a case's name or reason in characters."""


def shipped() -> tuple[str, ...]:
    """Return the names of the shipped baselines: the presets' boards."""
    names = (entry.name for entry in _folder().iterdir())
    return tuple(sorted(name[:-5] for name in names if name.endswith(".json")))


def _folder() -> Traversable:
    """Where they are. importlib.resources takes 15 modules with it, which most starts need not."""
    folder = Path(__file__).with_name("baselines")
    if folder.is_dir():
        return folder
    from importlib.resources import files  # the package is in an archive

    return files("rcdrv.results").joinpath("baselines")


def load(name: str, cancel: Cancel | None = None) -> Baseline:
    """Read a baseline: one of :func:`shipped` by its name, or a file of ``rcdrv test --json``.

    :param cancel: allow pipes too; ends the wait for them
    :raises UsageError: unreadable, or not such a document
    """
    names = shipped()
    if name in names:
        data = _folder().joinpath(f"{name}.json").read_bytes()
    else:
        try:
            data = read_file(Path(name), _LARGEST, cancel)
        except UsageError as error:
            hint = f"a file of rcdrv test --json, or one of {', '.join(names)}"
            raise UsageError(error.message, hint=did_you_mean(name, names) or hint) from None
    return parse(data, name)


def parse(data: bytes, name: str) -> Baseline:
    """Check the document of ``rcdrv test --json``. Only its ``results`` are used.

    :raises UsageError: not such a document; the message names the place
    """
    hint = "rcdrv test --json > FILE makes a baseline"
    results = node.parse(data, name, hint)["results"]
    cases: dict[str, Before] = {}
    for entry in results:
        case, reason = _short(entry["name"]), entry.find("reason")
        if case in cases:
            entry["name"].wrong("the name of one case only")
        if entry["verdict"].verdict not in CASE_VERDICTS:
            entry["verdict"].wrong("the verdict of a case")
        cases[case] = Before(entry["verdict"].verdict, "" if reason is None else _short(reason))
    if not cases:
        results.wrong("a list with results")
    return Baseline(name, cases)


def _short(text: Node) -> str:
    if not 0 < len(text.text) <= _LONGEST:
        text.wrong(f"a text of 1 to {_LONGEST} characters")
    return text.text


def differences(run: Run) -> Iterator[str]:
    """Describe how a run differs from its baseline, one line each; none without a baseline."""
    baseline = run.baseline
    if baseline is None:
        return
    known = 0
    for result in run.results:
        if result.change in (Change.WORSE, Change.BETTER):
            assert result.change is not None
            yield f"{result.change.value}: {result.name}: {result.outcome}, before {result.before}"
        elif result.change is Change.NEW:
            yield f"new: {result.name}: {result.outcome}, not in the baseline"
        elif result.known_failure:
            known += 1
    missing = baseline.missing(run)
    if missing:
        yield f"missing: {len(missing)} of the baseline were not run: {', '.join(missing)}"
    worse = sum(result.failed for result in run.results) + len(run.not_run)
    said = f"{worse} worse" if worse else "nothing is worse"
    yield f"baseline {baseline.name}: {said}, known failures: {known}"
