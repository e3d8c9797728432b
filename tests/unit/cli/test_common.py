"""What the commands have in common."""

from __future__ import annotations

import argparse
import shutil

import pytest

from rcdrv.cli import common, main, whole_parser
from rcdrv.manual.grammar import Kind, command_tree
from rcdrv.results.units import parse_duration, period_text


@pytest.mark.parametrize("columns", ["100", "1", "0", "", "-5", "wide", "8²", "²"])
def test_the_width_is_that_of_shutil(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert common._terminal_width.__wrapped__() == shutil.get_terminal_size().columns


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("rnig", "ring"),
        ("--jsno info", "--json"),
        ("ring --cuont 3", "--count"),
        ("ring --cuont=3", "--count"),
        ("bench rign", "ring"),
        ("bench ring --metod spin", "--method"),
        ("fuzz layuot", "layout"),
        ("ring --irq mssi", "msi"),
        ("test --destructive rest", "reset"),
        ("ring --device sim:rk3558", "rk3588"),
        ("sim rk3558 --socket /tmp/none.sock", "rk3588"),
        ("ring --device smi:rk3588", "sim:"),
        ("ring --device sim:rk3588,fault=irq-lots", "irq-lost"),
        ("ring --device sim:rk3588,vendro=1", "vendor"),
        ("test DORBELL_TEST", "DOORBELL_TEST"),
        ("test pci_ep_bar.BAR4.BAR_TSET", "pci_ep_bar.BAR4.BAR_TEST"),
        ("test --more BRUST_TEST", "BURST_TEST"),
        ("test -f pci_ep_basik", "pci_ep_basic"),
    ],
)
def test_a_mistyped_word_is_named_as_it_was_meant(
    line: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.split()) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"hint: did you mean {meant}?"


@pytest.mark.parametrize("line", ["xyzzy", "ring --xyzzy", "test XYZZY", "ring --device sim:xyzzy"])
def test_what_is_like_nothing_has_the_hint_that_it_had(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.split()) == 2
    hint = capsys.readouterr().err.splitlines()[-1]
    assert hint.startswith("hint: ")
    assert "did you mean" not in hint


def test_an_address_alone_is_told_its_option(capsys: pytest.CaptureFixture[str]) -> None:
    for address in ("01:00.0", "sim:rk3588", "vfio-user:/a"):
        assert main(["info", address]) == 2
        assert f"--device {address}" in capsys.readouterr().err


def test_pcitest_without_a_test_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    for line in ([], ["-d"], ["-s", "4K"]):
        assert main(["pcitest", "-D", "sim:rk3588", *line]) == 2
        assert "no test is asked for" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0.5", "500ms", "1h30m", "90s", "2d", "1.5m", "20min"])
def test_times_take_units(text: str) -> None:
    expected = {"0.5": 0.5, "500ms": 0.5, "1h30m": 5400, "90s": 90, "2d": 172800, "1.5m": 90}
    assert common.period(text) == pytest.approx(expected.get(text, 1200))
    assert parse_duration(period_text(common.period(text))) == pytest.approx(common.period(text))


@pytest.mark.parametrize("text", ["", "s", "-1", "0", "1x", "1h-2m", "nan", "inf", "1e99", "1 h"])
def test_what_is_no_time(text: str) -> None:
    for parse in (common.seconds, common.period):
        with pytest.raises(argparse.ArgumentTypeError):
            parse(text)


@pytest.mark.parametrize("name", ["", "-"])
def test_no_option_takes_a_name_that_is_no_file(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = [
        (" ".join(command.path[1:]), parameter.flags[0])
        for command in command_tree(whole_parser()).walk()
        for parameter in (*command.options, *command.common)
        if parameter.kind is Kind.FILE and command.path[-1] != "report"  # - is its stream
    ]
    assert len(commands) > 10
    for command, flag in commands:
        assert main([*command.split(), f"{flag}={name}"]) == 2, (command, flag)
        assert f"{flag}" in capsys.readouterr().err
