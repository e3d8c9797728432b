"""The JUnit report: valid by its schema, and in its file whole or not at all."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import xmlschema
from hypothesis import given

from rcdrv.errors import HostError, UsageError
from rcdrv.report.junit import JUnit, to_junit
from rcdrv.results.result import Run
from rcdrv.verdict import Verdict

from .samples import a_run, play, runs

SCHEMA = xmlschema.XMLSchema(Path(__file__).with_name("junit.xsd"))


def read(report: bytes) -> ET.Element:
    """The test suite of a report that is valid."""
    root = ET.fromstring(report)
    SCHEMA.validate(root)
    return root[0]


def test_each_verdict_has_its_element() -> None:
    suite = read(to_junit(a_run()))
    assert suite.attrib == {
        "name": "rcdrv",
        "tests": "5",
        "failures": "1",
        "errors": "1",
        "skipped": "1",
        "time": "2.251000",
    }
    shown = [
        (case.attrib["classname"], case.attrib["name"], [(child.tag, child.text) for child in case])
        for case in suite.iter("testcase")
    ]
    assert shown == [
        ("pci_ep_bar.BAR0", "BAR_TEST", []),
        ("pci_ep_basic", "MSI_TEST", [("system-out", "32 vectors")]),
        ("pci_ep_basic", "MSIX_TEST", [("skipped", None)]),
        (
            "pci_ep_data_transfer.dma",
            "READ_TEST",
            [
                ("failure", "look at the inbound window of the endpoint"),
                (
                    "system-out",
                    "+0x10: expected 0xdf, got 0xff\nAER: 1 receiver error\n1 bad TLP",
                ),
            ],
        ),
        ("pci_ep_data_transfer.dma", "COPY_TEST", [("error", None)]),
    ]
    failure = next(suite.iter("failure"))
    assert failure.attrib == {"type": "data-mismatch", "message": "1024 B: 4 bytes differ"}


def test_cases_that_were_not_run_are_errors() -> None:
    suite = read(to_junit(a_run(finished=3)))
    assert (suite.attrib["tests"], suite.attrib["errors"]) == ("5", "2")
    errors = [child.attrib for child in suite.iter("error")]
    assert errors == [{"type": "not-run", "message": "not run"}] * 2


@given(runs())
def test_no_text_can_break_it(run: Run) -> None:
    suite = read(to_junit(run))
    cases = list(suite.iter("testcase"))
    assert len(cases) == len(run.planned)
    for case, result in zip(cases, run.results, strict=False):
        # Only what XML cannot hold, and no letter of the rest, is missing from the message.
        if result.verdict is not Verdict.PASS:
            said = re.sub(
                "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "", result.message
            )
            assert case[0].attrib["message"] == said


def test_the_file_holds_a_report_from_start_to_end(tmp_path: Path) -> None:
    path = tmp_path / "report.xml"
    observer = JUnit(path)
    observer.start(a_run(finished=0))
    assert read(path.read_bytes()).attrib["errors"] == "5"
    observer.finish(a_run())
    assert path.read_bytes() == to_junit(a_run())
    assert list(tmp_path.iterdir()) == [path]


def test_a_report_that_cannot_be_written_is_known_at_the_start(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "missing/report.xml", "No such file"), (tmp_path, "Is a dir")):
        with pytest.raises(UsageError, match=rf"cannot write {path}: {why}"):
            JUnit(path).start(a_run())


def test_a_failed_write_leaves_the_old_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.xml"
    observer = JUnit(path)
    observer.start(a_run())
    before = path.read_bytes()

    def full_disk(_fd: int, _data: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full_disk)
    with pytest.raises(HostError, match="No space left"):
        observer.finish(a_run())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "target.xml", tmp_path / "link.xml"
    target.touch()
    link.symlink_to(target)
    play(a_run(), JUnit(link))
    assert link.is_symlink()
    assert target.read_bytes() == to_junit(a_run())


def test_a_pipe_gets_one_report() -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as pipe:
        play(a_run(), JUnit(Path(f"/dev/fd/{writer}")))
        os.close(writer)
        assert pipe.read() == to_junit(a_run())


def test_a_folder_that_may_not_be_looked_into_is_an_error_of_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may look everywhere, so the refusal is played."""

    def refuse(path: Path, **_more: object) -> object:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "lstat", refuse)
    with pytest.raises(HostError, match="cannot write"):
        JUnit(tmp_path / "theirs" / "report.xml").start(a_run())
