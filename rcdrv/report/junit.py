"""JUnit XML, for CI systems."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

from rcdrv.files import is_stream, replace_file
from rcdrv.report.text import headline
from rcdrv.results.baseline import differences
from rcdrv.results.observer import Observer
from rcdrv.results.result import CaseName, CaseResult, Change, Run
from rcdrv.verdict import Verdict

_OUTCOME = {
    Verdict.SKIP: "skipped",
    Verdict.LOST: "error",
    Verdict.ERROR: "error",
}

_NOT_XML = re.compile("[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 forbids, and the other control characters."""


class JUnit(Observer):
    """Write the report to a file atomically.

    A first report, with every case as not run, is written at the start: an unwritable path shows
    before the tests, and a run that is killed leaves a report that says so.

    :param runs: the runs of several devices, a test suite each, instead of the one observed
    """

    def __init__(self, path: Path, runs: Sequence[Run] = ()) -> None:
        self._path = path
        self._runs = runs
        # A pipe takes one report and cannot be replaced by a file.
        self._once = is_stream(path)

    def start(self, run: Run) -> None:
        if not self._once:
            self._write(run)

    def finish(self, run: Run) -> None:
        self._write(run)

    def _write(self, run: Run) -> None:
        replace_file(self._path, to_junit(*(self._runs or [run])))


def to_junit(*runs: Run) -> bytes:
    """The report of runs: a test suite each; cases that were not run are errors in it."""
    root = ET.Element("testsuites")
    for run in runs:
        _add_run(root, run, "rcdrv" if len(runs) == 1 else f"rcdrv {run.device}")
    ET.indent(root)
    report: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return report + b"\n"


def _add_run(root: ET.Element, run: Run, name: str) -> None:
    missing = run.not_run
    count = run.count
    suite = _add(
        root,
        "testsuite",
        name=name,
        tests=str(len(run.results) + len(missing)),
        failures=str(sum(map(_is_failure, run.results))),
        errors=str(count(Verdict.LOST, Verdict.ERROR) + len(missing)),
        skipped=str(sum(map(_is_skipped, run.results))),
        time=_time(sum(result.seconds for result in run.results)),
    )
    properties = _add(suite, "properties")
    _add(properties, "property", name="device", value=run.device)
    _add(properties, "property", name="description", value=run.description)
    if run.baseline is not None:
        _add(properties, "property", name="baseline", value=run.baseline.name)
        for line in differences(run):
            _add(properties, "property", name="difference", value=line)
    for result in run.results:
        _add_result(suite, result)
    for case in missing:
        _add(_add_case(suite, case, 0.0), "error", type="not-run", message="not run")


def _is_failure(result: CaseResult) -> bool:
    """Return whether it failed; a skip of a case that passes in the baseline is a failure too."""
    return result.failed and result.verdict not in (Verdict.LOST, Verdict.ERROR)


def _is_skipped(result: CaseResult) -> bool:
    return result.known_failure or (result.verdict is Verdict.SKIP and not result.failed)


def _add_result(suite: ET.Element, result: CaseResult) -> None:
    case = _add_case(suite, result.name, result.seconds)
    output = list(result.diagnostics)
    if result.verdict is Verdict.PASS:
        if result.message:
            output.insert(0, result.message)
    elif result.known_failure:
        # As pytest reports a test that is marked xfail.
        message = f"expected failure: {headline(result)}"
        _add(case, "skipped", type="xfail", message=message).text = _xml_text(result.hint)
    else:
        kind = result.reason.value if result.reason else result.verdict.value
        tag = "failure" if _is_failure(result) else _OUTCOME[result.verdict]
        _add(case, tag, type=kind, message=result.message).text = _xml_text(result.hint)
    if result.change not in (None, Change.SAME):
        output.append(f"before: {result.before or 'not in the baseline'}")
    if output:
        _add(case, "system-out").text = _xml_text("\n".join(output))


def _add_case(suite: ET.Element, name: CaseName, seconds: float) -> ET.Element:
    classname = ".".join(part for part in (name.fixture, name.variant) if part)
    return _add(suite, "testcase", classname=classname, name=name.test, time=_time(seconds))


def _add(parent: ET.Element, tag: str, **attributes: str) -> ET.Element:
    legal = {key: _xml_text(value) for key, value in attributes.items()}
    return ET.SubElement(parent, tag, legal)


def _time(seconds: float) -> str:
    return f"{seconds:.6f}"


def _xml_text(text: str) -> str:
    return _NOT_XML.sub("", text)
