"""A run as one JSON document."""

from __future__ import annotations

from typing import Any

from rcdrv.results.result import CaseResult, Change, Run


def to_document(run: Run) -> dict[str, Any]:
    """Return the document, of plain JSON types. Keys are stable; new ones may be added.

    ``device``, ``description``
        The endpoint: its address as given, and its part.
    ``results``
        A list, in the order of the run. ``name`` is the full name, ``fixture``, ``variant`` (or
        ``""``) and ``test`` its parts. ``verdict``; ``reason`` (null when it passed);
        ``message``, ``hint`` (may be ``""``); ``diagnostics``, a list of lines; ``seconds``.
    ``not_run``
        Full names of the planned cases that did not run.
    ``totals``
        Numbers of results that are ``pass``, ``fail``, ``skip``, ``lost`` and ``error``.
    ``verdict``
        ``pass`` if no case failed and all ran; otherwise the worst: ``lost``, then
        ``error`` (also when cases did not run), then ``fail``. A failure that the baseline has
        does not count.

    With a baseline also: ``baseline`` with its ``name`` and the full names of the
    cases that are ``worse``, ``better``, ``new`` (not in it), ``missing`` (only in it) and
    ``known_failures``; and in each result ``change`` (``same``, ``better``, ``worse``, ``new``),
    ``before`` (verdict and reason in the baseline, or null) and ``known_failure``.
    """
    document = {
        "device": run.device,
        "description": run.description,
        "results": [_result(result) for result in run.results],
        "not_run": [str(name) for name in run.not_run],
        "totals": {verdict.value: count for verdict, count in run.totals.items()},
        "verdict": run.verdict.value,
    }
    if run.baseline is not None:
        names = {
            change.value: [str(one.name) for one in run.results if one.change is change]
            for change in (Change.WORSE, Change.BETTER, Change.NEW)
        }
        document["baseline"] = {
            "name": run.baseline.name,
            **names,
            "missing": list(run.baseline.missing(run)),
            "known_failures": [str(one.name) for one in run.results if one.known_failure],
        }
    return document


def _result(result: CaseResult) -> dict[str, Any]:
    document = {
        "name": str(result.name),
        "fixture": result.name.fixture,
        "variant": result.name.variant,
        "test": result.name.test,
        "verdict": result.verdict.value,
        "reason": result.reason.value if result.reason else None,
        "message": result.message,
        "hint": result.hint,
        "diagnostics": list(result.diagnostics),
        "seconds": result.seconds,
    }
    if result.change is not None:
        document["change"] = result.change.value
        document["before"] = result.before or None
        document["known_failure"] = result.known_failure
    return document
