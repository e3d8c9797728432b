"""Recordings of endpoints that people have: the driver still does with each what it did then."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rcdrv.cli import main
from rcdrv.replay.recording import Recording

FILES = sorted(Path(__file__).parent.glob("*.gz"))
LARGEST = 200 << 10
"""Bytes of a file here: this is a repository."""


def arguments(recording: Recording) -> list[str]:
    """The command line that was recorded, of numbers and switches."""
    command, *options = recording.summary()["command"]
    assert command in ("ring", "test", "check")
    line = [command]
    for option in options:
        name, _, value = option.partition("=")
        name = {"bulk": "width"}.get(name, name)  # an option that is kept by another name
        line += [f"--{name.replace('_', '-')}", *([value] if value != "True" else [])]
    if command == "test":
        for name, _, _ in recording.verdicts():
            line += ["-r", name]
    return line


def verdicts(command: str, document: dict[str, object]) -> list[tuple[object, ...]]:
    """What a document says, as the notes in a recording have it."""
    parts = document.get({"test": "results", "check": "layers"}.get(command, ""), [document])
    assert isinstance(parts, list)
    return [
        (one.get("name", one.get("layer", "")), one["verdict"], one.get("reason") or "")
        for one in parts
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_driver_does_what_it_did(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert path.stat().st_size <= LARGEST
    recording = Recording.read(str(path))
    line = arguments(recording)
    main(["--json", "--device", f"replay:{path}", *line])
    document = json.loads(capsys.readouterr().out)
    assert verdicts(line[0], document) == recording.verdicts(), (
        "was the driver changed on purpose? python3 -m tools.boards records what needs no board"
    )


def test_there_are_boards() -> None:
    assert {path.name for path in FILES} >= {"rcar-s4.gz", "rk3588.gz", "kernel-rk3588.gz"}
