"""`rcdrv check`: the first broken layer, and the side to look at."""

from __future__ import annotations

from pathlib import Path

import pytest

import rcdrv
from rcdrv.epf_test.check import Layer
from rcdrv.sim.faults import parse_fault
from tests.sim.conftest import rcdrv as run
from tests.verdicts import EXPECTED

EP, EITHER = "endpoint", "either side"
LAYERS = [layer.value for layer in Layer]

BROKEN = {
    # fault: (layer, reason, side)
    "vanish=0": ("link", "device-lost", EITHER),
    "vanish": ("link", "device-lost", EITHER),
    "cap-loop": ("config space", "bad-config", EP),
    "cap-loop=extended": ("config space", "bad-config", EP),
    "rebar-empty": ("config space", "bad-config", EP),
    "all-ones": ("BARs", "all-ones", EP),
    "bar-alias": ("BARs", "data-mismatch", EP),
    "bar-empty": ("BARs", "bar-disabled", EP),
    "silent": ("commands", "silent", EP),
    "swallow": ("commands", "silent", EP),
    "stuck-command": ("commands", "stuck-command", EP),
    "irq-lost": ("interrupts", "irq-lost", EITHER),
    "irq-twice=all": ("interrupts", "irq-twice", EP),
    "irq-wrong-vector": ("interrupts", "wrong-vector", EP),
    "msix-dead": ("interrupts", "irq-lost", EP),
    "bad-data": ("transfers", "data-mismatch", EP),
    "bad-checksum": ("transfers", "data-mismatch", EP),
    "contradiction": ("transfers", "wrong-status", EP),
    "src-invalid": ("transfers", "address-invalid", EP),
    "dst-invalid": ("transfers", "address-invalid", EP),
    "enable-silent": ("doorbell", "silent", EP),
    "enable-fail": ("doorbell", "enable-failed", EP),
    "disable-fail": ("doorbell", "disable-failed", EP),
    "disable-clears-bar": ("doorbell", "disable-failed", EP),
    "wrong-bar": ("doorbell", "silent", EP),
    "db-bar-absent": ("doorbell", "bad-bar", EP),
    "bad-offset": ("doorbell", "bad-offset", EP),
    "doorbell-dead": ("doorbell", "silent", EP),
    "no-status": ("doorbell", "wrong-status", EP),
    "irq-twice": ("doorbell", "irq-twice", EP),
    "reset-loses": ("reset", "lost-by-reset", EP),
    "reset-loses=msi": ("reset", "lost-by-reset", EP),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_each_fault_breaks_its_layer(fault: str) -> None:
    parse_fault(fault)
    layer, reason, side = BROKEN[fault]
    device = f"sim:rk3588,fault={fault}"
    result = run("check", "--destructive", "--json", "--timeout", "0.5", "--device", device)
    document = result.document
    assert (document["broken"], document["reason"], document["side"]) == (layer, reason, side)
    assert result.status == (5 if layer == "link" else 1)
    assert document["hint"]
    verdicts = {one["name"]: one["verdict"] for one in document["layers"]}
    before, after = list(verdicts.values()), []
    if layer != "link":
        index = list(verdicts).index(layer)
        before, after = before[:index], before[index + 1 :]
        assert set(before) <= {"pass", "skip"}
    assert set(after) <= {None}


@pytest.mark.parametrize("preset", EXPECTED)
def test_a_healthy_board_has_no_broken_layer(preset: str) -> None:
    result = run("check", "--destructive", "--json", "--device", f"sim:{preset}")
    assert result.status == 0, result
    document = result.document
    assert (document["verdict"], document["broken"], document["side"]) == ("pass", None, None)
    assert len(document["layers"]) == 8
    skipped = [one["name"] for one in document["layers"] if one["verdict"] == "skip"]
    no_doorbell = "pcie_ep_doorbell.DOORBELL_TEST" in EXPECTED[preset]
    assert skipped == (["doorbell"] if no_doorbell else [])


def test_the_picture() -> None:
    result = run("check", "--device", "sim:generic,fault=irq-lost")
    assert result.status == 1
    lines = result.out.splitlines()
    assert [line.split()[0] for line in lines[1:6]] == ["ok", "ok", "ok", "ok", "BROKEN"]
    assert lines[-3] == (
        "RC == link == config space == BARs == commands =X= interrupts .. transfers"
        " .. doorbell .. reset .. EP"
    )
    assert lines[-2] == "look at: either side"
    assert lines[-1].startswith("hint: ")


def test_a_link_that_is_lost_later_has_one_line() -> None:
    result = run("check", "--device", "sim:rk3588,fault=vanish", "--timeout", "0.5")
    rows = [(line[:8].strip(), line[8:20].strip()) for line in result.out.splitlines()]
    rows = [(mark, name) for mark, name in rows if name in LAYERS]
    assert [name for _, name in rows] == LAYERS
    assert [mark for mark, _ in rows] == ["ok", "ok", "lost", *[""] * 5]
    with rcdrv.open("sim:rk3588,fault=vanish", timeout=0.5) as endpoint:
        layers = endpoint.check().layers
    assert [one.layer.value for one in layers] == ["config space", "link"]
    assert layers[-1].noticed is not None


def test_a_recording_of_another_command_is_no_broken_link(tmp_path: Path) -> None:
    recording = str(tmp_path / "ring")
    assert run("--record", recording, "ring", "--device", "sim:rk3588").status == 0
    result = run("check", "--device", f"replay:{recording}")
    assert result.status == 5
    assert "departs from the recording" in result.err
    assert [line[:6].strip() for line in result.out.splitlines()[1:3]] == ["ok", "ok"]
    assert "lost" not in result.out
    assert "look at" not in result.out


def test_a_reset_is_made_only_when_asked_for() -> None:
    result = run("check", "--device", "sim:generic,fault=reset-loses")
    assert result.status == 0
    assert "(reset) == EP" in result.out


def test_polling_skips_the_interrupts() -> None:
    result = run("check", "--irq", "poll", "--json", "--device", "sim:generic,fault=irq-lost")
    assert result.status == 0
    verdicts = {one["name"]: one["verdict"] for one in result.document["layers"]}
    assert (verdicts["interrupts"], verdicts["doorbell"]) == ("skip", "pass")


@pytest.mark.parametrize("irq", ["msi", "msix"])
@pytest.mark.parametrize("command", ["check", "ring", "test"])
def test_an_interrupt_that_the_function_lacks(command: str, irq: str) -> None:
    """No layer is to blame: it is the caller's choice, and no command goes on."""
    result = run(command, "--irq", irq, "--device", f"sim:generic,{irq}=0")
    assert result.status == 4
    assert f"has no {irq.upper()}" in result.err
    assert "--irq auto" in result.err


def test_no_endpoint_of_pci_epf_test() -> None:
    result = run("check", "--device", "sim:rcar-s4-vntb")
    assert result.status == 2
    assert "is no pci-epf-test" in result.err


def test_the_python_api() -> None:
    with rcdrv.open("sim:generic,fault=doorbell-dead", timeout=0.5) as endpoint:
        seen: list[str] = []
        result = endpoint.check(done=lambda layer: seen.append(layer.layer.value))
        assert seen[0] == "link"
        assert seen[-1] == "doorbell"
        assert result.broken is not None
        assert result.broken.layer.value == "doorbell"
        with pytest.raises(rcdrv.NotPassed):
            result.check()
    with rcdrv.open("sim:generic") as endpoint:
        assert endpoint.check().check().passed
