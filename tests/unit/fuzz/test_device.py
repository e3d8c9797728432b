"""Commands in every order on one endpoint: what is found, what is done, what never is."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from rcdrv.device import IrqKind
from rcdrv.epf_test.answer import IrqChoice
from rcdrv.errors import UsageError
from rcdrv.fuzz.device.campaign import (
    Campaign,
    DeviceFuzzer,
    Found,
    Options,
    Software,
    save,
    script,
    shorten,
)
from rcdrv.fuzz.device.draw import Draw
from rcdrv.fuzz.device.facts import Facts, Seen
from rcdrv.fuzz.device.harm import CLASSES
from rcdrv.fuzz.device.model import Model
from rcdrv.fuzz.device.session import DeviceSession
from rcdrv.fuzz.device.steps import VERBS, Step, parse_step
from rcdrv.sim.access_log import AccessLog
from rcdrv.sim.epf_test.function import SimEpfTest
from rcdrv.sim.faults import FAULTS
from rcdrv.sim.layout import load_layout, preset_names
from tests.unit.fuzz.planted import BUGS
from tests.unit.fuzz.watch import HarmWatch

EPF_TEST_PRESETS = [name for name in preset_names() if load_layout(name).function == "epf_test"]
SPECS = [*EPF_TEST_PRESETS, "generic,reset=bus", "generic,reset=none", "generic,caps=0"]
DEFAULT = Options()
REPOSITORY = Path(__file__).parents[3]


@contextmanager
def fuzzer(
    spec: str, options: Options = DEFAULT, log: AccessLog | None = None
) -> Iterator[DeviceFuzzer]:
    software = Software(load_layout(spec), log=log)

    def renew() -> None:
        software.renew()
        if isinstance(log, HarmWatch):
            log.renew()

    try:
        yield DeviceFuzzer(software.open, options, renew)
    finally:
        software.close()


def campaign(spec: str, examples: int, **more: object) -> Campaign:
    with fuzzer(spec) as fuzz:
        return fuzz.run(0, examples=examples, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("spec", SPECS)
def test_nothing_is_found(spec: str) -> None:
    done = campaign(spec, 5)
    assert done.found is None, script(done.found, spec, Options(), "a test")
    assert done.sequences == 5
    assert done.steps > 5 * 30


def test_the_interrupt_of_a_polled_command_may_come_after_its_status(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """pci_epf_test_raise_irq() raises it after STATUS; here, just before the next command."""
    late: list[bool] = []
    at_once, handler = SimEpfTest._raise_irq, SimEpfTest._cmd_handler

    def later(self: SimEpfTest, *, doorbell: bool = False) -> None:
        polled = not any(map(self._controller.vectors, (IrqKind.MSI, IrqKind.MSIX)))
        at_once(self, doorbell=doorbell)
        late[:] = [True] * (polled and not doorbell)

    def take(self: SimEpfTest, command: int, irq_type: int) -> Iterator[float]:
        if late and late.pop():
            at_once(self)
        return handler(self, command, irq_type)

    monkeypatch.setattr(SimEpfTest, "_raise_irq", later)
    monkeypatch.setattr(SimEpfTest, "_cmd_handler", take)
    done = campaign("rk3588", 20)
    assert done.found is None, script(done.found, "rk3588", Options(), "a test")


@pytest.mark.parametrize("device", [0x1AD4, 0x229B], ids=["tegra194", "tegra234"])
def test_an_older_tegra_keeps_its_msix_ram_and_dma_registers(device: int) -> None:
    """pci_epf_test_set_capabilities() had no BARn_RESERVED for BAR2 and BAR4, which must not be
    written to all the same."""
    stream = io.StringIO()
    with fuzzer(f"tegra194,caps=3,device={device:#x}", log=AccessLog(stream)) as fuzz:
        assert fuzz.run(1, examples=20).sequences == 20
    lines = map(json.loads, stream.getvalue().splitlines())
    written = {line.get("region") for line in lines if line.get("op") == "write"}
    assert "BAR0" in written
    assert not written & {"BAR2", "BAR4"}


def test_everything_is_drawn() -> None:
    """Every verb; accesses of every width, also where there is none; every kind of interrupt, its
    last number, and the one past it."""
    steps: list[Step] = []
    done = campaign("generic", 60, on_sequence=lambda _number, some, _found: steps.extend(some))
    assert done.found is None
    assert set(VERBS) - {"db_bar"} == {step.verb for step in steps}
    accesses = [step for step in steps if step.verb in ("peek", "poke")]
    bars = load_layout("generic").bars
    sizes = {index: bar.size for index, bar in enumerate(bars) if bar is not None}
    for width in (8, 16, 32, 64):
        mine = [step for step in accesses if step.width == width]
        bytes_of = width // 8
        ends = {step.bar for step in mine if step.offset + bytes_of == sizes[step.bar]}
        assert ends >= {1, 2, 3, 4, 5}
        assert {step.bar for step in mine if step.offset == 0} >= {0, 1, 2, 3, 4, 5}
        assert any(step.offset + bytes_of > sizes[step.bar] for step in mine)
        assert width == 8 or any(step.offset % bytes_of for step in mine)
    irqs = {(step.irq.choice, step.irq.number) for step in steps if step.irq}
    for choice, count in ((IrqChoice.INTX, 1), (IrqChoice.MSI, 32), (IrqChoice.MSIX, 32)):
        assert {(choice, 1), (choice, count), (choice, count + 1)} <= irqs
    assert {step.count for step in steps if step.verb == "ring"} >= {1, 2, 8}
    assert any(step.type > 2 for step in steps)
    assert any(step.bad for step in steps)
    assert any(not step.size for step in steps if step.verb == "copy")
    counts = Counter(step.verb for step in steps)
    assert min(counts.values()) >= 20, counts


def test_the_same_seed_is_the_same_campaign() -> None:
    def drawn(seed: int) -> list[str]:
        kept: list[str] = []
        with fuzzer("imx8m") as fuzz:
            fuzz.run(
                seed,
                examples=2,
                on_sequence=lambda _number, steps, _found: kept.extend(map(str, steps)),
            )
        return kept

    assert drawn(1) == drawn(1) != drawn(2)


def test_every_step_is_written_and_read_back() -> None:
    """All that a campaign draws, what is harmful included."""
    with DeviceSession(Software(load_layout("generic")).open) as session:
        model = Model(session.facts, session.registers())
    model.doorbell_bar = 1
    draw = Draw(random.Random(0), CLASSES)
    steps = [draw.next(model) for _ in range(2000)]
    assert {step.verb for step in steps} >= {"db_bar", "disable", "copy", "poke"}
    for step in steps:
        assert parse_step(str(step)) == step


@pytest.mark.parametrize(
    "text",
    [
        "",
        "dance",
        "ring,count=",
        "ring,count=two",
        "ring,count=-1",
        "ring,tempo=3",
        "peek,bar=1",
        "raise,irq=nmi:1",
        "read,size=1,dma=yes",
        "read,size=1,shift",
    ],
)
def test_what_is_no_step(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_step(text)
    assert repr(text) in caught.value.message


@pytest.mark.parametrize(
    "step",
    ["poke,bar=0,offset=4,width=32,value=1", "ring,count=1", "expect,bar=0", "command,value=8"],
)
def test_what_makes_no_sense_is_not_done(step: str) -> None:
    with fuzzer("generic") as fuzz, pytest.raises(UsageError):
        fuzz.replay([parse_step(step)])


class Accesses(AccessLog):
    """Those to one BAR."""

    def __init__(self, bar: int) -> None:
        super().__init__()
        self._bar = bar
        self.seen: list[tuple[str, int, int]] = []

    def access(self, op: str, region: int, offset: int, data: bytes) -> None:
        if region == self._bar:
            self.seen.append((op, offset, len(data)))


@pytest.mark.parametrize("verb", ["peek", "poke"])
def test_an_access_that_cannot_be_does_not_reach_the_endpoint(verb: str) -> None:
    """Not aligned to its own width, across the end, behind it, of no width; others are one."""
    size = load_layout("imx8m").bar(4).size
    more = ",value=1" if verb == "poke" else ""
    there, not_there = [], []
    for width in (8, 16, 32, 64):
        step = width // 8
        there += [(offset, width) for offset in (0, size // 2 - step, size // 2, size - step)]
        not_there += [(size - step + 1, width), (size, width), (size + 8, width)]
        not_there += [(offset, width) for offset in range(1, step)]
    not_there.append((0, 24))
    log = Accesses(4)
    with fuzzer("imx8m", log=log) as fuzz:
        for offset, width in (*not_there, *there):
            step_ = parse_step(f"{verb},bar=4,offset={offset:#x},width={width}{more}")
            assert fuzz.replay([step_]) is None, step_
    op = "read" if verb == "peek" else "write"
    assert log.seen == [(op, offset, width // 8) for offset, width in there]


@pytest.mark.parametrize("verb", ["read", "write", "copy"])
def test_large_transfers(verb: str) -> None:
    with fuzzer("generic") as fuzz:
        for size in (1024001, 4 << 20):
            assert fuzz.replay([Step(verb, size=size, shift=1), Step(verb, size=1)]) is None


# -- what harms ----------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS)
def test_nothing_harmful_reaches_an_endpoint(spec: str) -> None:
    watch = HarmWatch(load_layout(spec))
    with fuzzer(spec, log=watch) as fuzz:
        assert fuzz.run(1, examples=12).found is None
    assert watch.harm == {}
    assert watch.noticed == set()
    assert watch.writes > 100


@pytest.mark.parametrize("name", CLASSES)
def test_what_is_named_is_done(name: str) -> None:
    """And nothing of another class; so the test above can fail. An endpoint that dies of it, as
    the kernel does, is a finding."""
    watch = HarmWatch(load_layout("generic"))
    with fuzzer("generic", Options(destructive=[name]), watch) as fuzz:
        found = fuzz.run(1, examples=16).found
    assert set(watch.harm) == {name}
    assert (found is not None) == ("oops" in watch.noticed), found
    if name in ("disable-without-enable", "write-db-bar"):
        assert found is not None
    if found is not None:
        assert found.dead
        text = script(found, "sim:generic", Options(destructive=[name]), "")
        assert f"--destructive={name}" in text


def test_an_interrupt_that_cannot_come_is_not_waited_for() -> None:
    """pci_epf_test_raise_irq() refuses IRQ_NUMBER 33; the first INTx shows that rk3588 has none."""
    software = Software(load_layout("rk3588"))
    clock = software.device.clock
    raises = ("irq=msi:33", "irq=msix:33", "irq=msi:1,type=2", *["irq=intx:1"] * 8, "irq=msi:1")
    with DeviceSession(software.open, Options(timeout=5.0)) as session:
        before = clock.time
        seen = [session.do(parse_step(f"raise,{one}")) for one in raises]
    assert [bool(one.vectors) for one in seen] == [False] * 11 + [True]
    assert clock.time - before < 1.0
    software.close()


def replayed(steps: str, spec: str = "generic", *destructive: str) -> Found | None:
    with fuzzer(spec, Options(destructive=destructive)) as fuzz:
        return fuzz.replay([parse_step(text) for text in steps.split()])


@pytest.mark.parametrize("irq", ["msi:1", "poll:1"])
def test_slow_rings_that_are_not_merged_are_no_strays(
    monkeypatch: pytest.MonkeyPatch, irq: str
) -> None:
    """pci_epf_test_doorbell_handler() is a thread: a busy processor may run it at any pace."""

    def later(self: SimEpfTest) -> None:
        last = self._late_rings[-1] if self._late_rings else self.clock()
        self._late_rings.append(last + 0.03)

    monkeypatch.setattr(SimEpfTest, "_doorbell_handler", later)
    assert replayed(f"enable ring,count=8,irq={irq} raise disable") is None


@pytest.mark.parametrize("seed", range(21, 27))
def test_the_crash_behind_an_overwritten_db_bar_is_found(seed: int) -> None:
    """pci_epf_test_disable_doorbell(): &epf->bar[bar], with any bar that is not negative."""
    with fuzzer("generic", Options(destructive=["write-db-bar"])) as fuzz:
        found = fuzz.run(seed, examples=10).found
    assert found is not None
    if found.dead:
        assert [step.verb for step in found.steps] == ["enable", "db_bar", "disable"]
        assert "the endpoint is dead" in found.message
    else:
        assert found.kind == "doorbell lost"


@pytest.mark.parametrize("value", [0xFFFFFFFF, 0x80000000])
def test_a_lost_doorbell_is_noticed_and_disabled_all_the_same(value: int) -> None:
    """pci_epf_test_disable_doorbell(): if (bar < BAR_0) goto set_status_err"""
    software = Software(load_layout("generic"))
    fuzz = DeviceFuzzer(software.open, Options(destructive=["write-db-bar"]), software.renew)
    found = fuzz.replay([Step("enable"), Step("db_bar", value=value), Step("disable")])
    assert found is not None
    assert (found.kind, found.dead) == ("doorbell lost", False)
    assert not software.device.endpoint.doorbell_enabled
    software.close()


@pytest.mark.parametrize("end", ["", " disable", " disable raise enable disable"])
def test_a_bar_that_another_was_taken_for_is_given_back(end: str) -> None:
    """DISABLE maps the memory of the BAR that DB_BAR names, whichever shows the doorbell."""
    software = Software(load_layout("generic"))
    fuzz = DeviceFuzzer(software.open, Options(destructive=["write-db-bar"]), software.renew)
    steps = f"enable db_bar,value=3{end}".split()
    assert fuzz.replay([parse_step(text) for text in steps]) is None
    endpoint = software.device.endpoint
    assert not endpoint.doorbell_enabled
    assert all(memory.order == (0,) for memory in endpoint.controller._memory.values())
    software.close()


@pytest.mark.parametrize(
    "end", ["", " raise enable disable", " cycle", " clear,bar=1 peek,bar=1,offset=0,width=8"]
)
def test_a_doorbell_cannot_always_give_its_window_back(end: str) -> None:
    """dw_pcie_ep_ib_atu_addr(): -ENOSPC, so DISABLE fails, and the doorbell is free."""
    few = "generic,inbound_windows=7"
    assert replayed(f"setup,bar=1 enable setup,bar=2 disable{end}", few) is None
    assert replayed("setup,bar=1 enable setup,bar=2 cycle", few) is None


def test_a_board_that_died_is_called_dead() -> None:
    """It is not there to be shown the same again."""
    software = Software(load_layout("generic"))
    fuzz = DeviceFuzzer(software.open, Options(destructive=["write-db-bar"], timeout=0.1))
    done = fuzz.run(21, examples=10)
    assert done.found is not None
    assert done.found.dead
    assert not done.flaky
    assert "the endpoint is dead" in done.found.message
    software.close()


@pytest.mark.parametrize(
    ("steps", "name"),
    [
        (["disable"], "disable-without-enable"),
        (["setup,bar=0x80000000"], "subrange-index"),
        (["read,size=4194305"], "large-size"),
        (["raise,irq=msix:0"], "irq-zero"),
        (["db_bar,value=1"], "write-db-bar"),
        (["enable", "poke,bar=1,offset=0,width=8,value=1"], "doorbell-bar"),
        (["write,size=1,unmapped"], "iommu-fault"),
    ],
)
def test_a_harmful_step_is_refused_and_its_class_named(steps: list[str], name: str) -> None:
    watch = HarmWatch(load_layout("generic"))
    with fuzzer("generic", log=watch) as fuzz, pytest.raises(UsageError) as caught:
        fuzz.replay([parse_step(text) for text in steps])
    assert name in caught.value.hint
    assert watch.harm == {}


def test_disable_is_harmless_behind_another() -> None:
    with fuzzer("generic") as fuzz:
        assert fuzz.replay([Step("enable"), Step("disable"), Step("disable")]) is None


# -- nothing is left behind ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "steps", [["enable"], ["setup,bar=2"], ["enable", "setup,bar=3", "reopen"]]
)
def test_doorbell_and_mappings_are_given_back(steps: list[str]) -> None:
    software = Software(load_layout("generic"))
    fuzz = DeviceFuzzer(software.open, renew=software.renew)
    assert fuzz.replay([parse_step(text) for text in steps]) is None
    endpoint = software.device.endpoint
    assert not endpoint.doorbell_enabled
    assert all(memory.order == (0,) for memory in endpoint.controller._memory.values())
    assert software.device.left_behind() == []
    software.close()


def test_what_an_earlier_run_left_does_not_confuse() -> None:
    """A board is not new at the beginning."""
    software = Software(load_layout("generic"))
    with DeviceSession(software.open) as session:
        session.do(parse_step("enable"))
        session.do(parse_step("setup,bar=2"))
        session.close = lambda: None  # type: ignore[method-assign]  # it is killed
    fuzz = DeviceFuzzer(software.open)
    assert fuzz.run(3, examples=3).found is None
    software.close()


# -- what is found -------------------------------------------------------------------------------

# Faults that an endpoint may have, for all that the protocol says.
ALLOWED = {
    "slow": "within the time-out",
    "doorbell-late": "within the time-out",
    "enable-fail": "as an endpoint without any doorbell answers",
    "bar-empty": "as a host that has no room for a BAR sees it",
    "no-resource": "as a controller with few inbound windows answers",
    "rebar-empty": "the capability is not for commands: rcdrv info reports it",
}
# Found, by the kind of finding; the least steps that show it.
FOUND = {
    "silent": ("silent", 0),
    "swallow": ("silent", 0),
    "stuck-command": ("stuck-command", 0),
    "all-ones": ("all-ones", 0),
    "vanish": ("device-lost", 0),
    "cap-loop": ("bad-config", 0),
    "dma-hangs": ("", 2),
    "bar-alias": ("memory", 3),
    "subrange-straight": ("memory", 2),
    "irq-lost": ("interrupt", 1),
    "irq-wrong-vector": ("interrupt", 1),
    "offset-changes": ("register DB_OFFSET", 1),
    "disable-fail": ("left enabled", 1),
    "disable-silent": ("left enabled", 1),
}
EXAMPLES = 20


@pytest.mark.parametrize(
    "fault",
    [n for n, fault in FAULTS.items() if fault.function in ("", "epf_test") and not fault.more],
)
def test_every_fault_is_found(fault: str) -> None:
    done = campaign(f"generic,fault={fault}", EXAMPLES)
    if fault in ALLOWED:
        assert done.found is None
        return
    assert done.found is not None
    assert not done.flaky
    kind, steps = FOUND.get(fault, ("", 2))
    assert not kind or done.found.kind == kind, done.found.message
    assert len(done.found.steps) <= steps, done.found


# Steps of the shortest sequence that shows a bug; all others take no more than two.
SHORTEST = {
    "endpoint_keeps_subrange": 3,
    "endpoint_forgets_on_reset": 3,
    "endpoint_forgets_hidden_memory": 4,
}


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found_and_its_script_shows_it(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Bounded by sequences, not by time: 20 of them take about 3 s on one core."""
    with monkeypatch.context() as patch:
        BUGS[name](patch)
        done = campaign("generic", EXAMPLES)
    found = done.found
    assert found is not None
    assert not done.flaky
    assert len(found.steps) <= SHORTEST.get(name, 2), found.steps
    path = save(tmp_path, found, script(found, "sim:generic", Options(), "a test"))
    assert found.message in path.read_text()
    planted = run_script(path, name)
    assert planted.returncode == 1, planted
    assert found.message in planted.stdout
    with fuzzer("generic") as fuzz:
        assert fuzz.replay(found.steps) is None


def run_script(path: Path, bug: str) -> subprocess.CompletedProcess[str]:
    """As a user runs it, with a ``rcdrv`` that has the bug."""
    shim = path.with_name("rcdrv")
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} -m tests.unit.fuzz.planted {bug} "$@"\n')
    shim.chmod(0o755)
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("RCDRV_")},
        "PATH": f"{path.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
    }
    return subprocess.run(
        [str(path)], capture_output=True, text=True, env=environment, timeout=100, check=False
    )


def test_what_is_not_seen_again_is_said_and_kept_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint that fails once and never again."""
    software = Software(load_layout("generic"))
    fuzz = DeviceFuzzer(software.open, renew=software.renew)
    do, once = DeviceSession.do, [True]

    def fail_once(session: DeviceSession, step: Step) -> Seen:
        seen = do(session, step)
        if step.verb == "clear" and once:
            once.clear()
            raise RuntimeError("only this time")
        return seen

    monkeypatch.setattr(DeviceSession, "do", fail_once)
    done = fuzz.run(0, examples=5)
    assert done.flaky
    assert done.found is not None
    assert done.found.steps[-1].verb == "clear"
    software.close()


def test_what_only_goes_together_is_left_out_together() -> None:
    """The two commands of a doorbell in between: neither may go alone."""

    def shows(steps: Sequence[Step]) -> Found | None:
        verbs = [step.verb for step in steps]
        together = verbs.count("enable") == verbs.count("disable")
        shown = together and "setup" in verbs and verbs[-1] == "peek"
        return Found(tuple(steps), "memory", "") if shown else None

    texts = ["raise", "setup,bar=5", "enable,irq=msi:7", "raise", "disable", "raise"]
    steps = [parse_step(text) for text in [*texts, "peek,bar=5,offset=8,width=64"]]
    found = shows(steps)
    assert found is not None
    short = shorten(found, shows).steps
    assert [str(step) for step in short] == ["setup,bar=1", "peek,bar=1,offset=0,width=8"]


def test_facts_of_a_preset() -> None:
    with DeviceSession(Software(load_layout("rk3588")).open) as session:
        facts: Facts = session.facts
    assert facts.bars == dict.fromkeys((0, 1, 2, 3, 5), 1 << 20) | {
        4: load_layout("rk3588").bar(4).size
    }
    assert facts.reserved == {4}
    assert facts.writable == [1, 2, 3, 5]
    assert facts.vectors == {
        IrqChoice.POLL: 1,
        IrqChoice.MSI: 32,
        IrqChoice.MSIX: 32,
        IrqChoice.INTX: 1,
    }
    assert facts.keeps_state


def test_the_manual_lists_every_step_and_every_class() -> None:
    page = (REPOSITORY / "docs" / "commands" / "fuzz.md").read_text()
    for verb in set(VERBS) - {"db_bar"}:
        assert f"`{verb}" in page, verb
    for name, what in CLASSES.items():
        assert f"| `{name}` | {what} |" in page
