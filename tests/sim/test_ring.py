"""`rcdrv ring` on software endpoints: where each doorbell is, and every way in which it fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.sim.conftest import LIMIT, Endpoint, Result, bound, finish, rcdrv, start

EPF_PRESETS = ("rk3588", "rcar-s4", "imx95", "imx8m", "am654", "tegra194", "j721e", "generic")


def ring(spec: str, *arguments: str) -> Result:
    return rcdrv("ring", "--device", f"sim:{spec}", *arguments)


# -- the main job --------------------------------------------------------------------------------


def test_the_main_job() -> None:
    result = rcdrv("ring", "--bar", "4", "--device", "sim:rk3588")
    assert result.status == 0
    lines = result.out.splitlines()
    assert lines[0] == "doorbell BAR4+0xa0 data 0x00000000"
    assert lines[1].startswith("ring 1: acknowledged in ")
    assert lines[1].endswith(" us, status 0x00000240 DOORBELL_SUCCESS|IRQ_RAISED, msi 1")
    assert len(lines) == 2
    assert result.err == ""


@pytest.mark.parametrize(
    ("spec", "bar", "offset", "data"),
    [
        ("rk3588", 4, 0xA0, 0),
        ("rcar-s4", 2, 0xD50A0, 0),
        ("imx8m", 2, 0xA0, 0),
    ],
)
def test_where_the_doorbell_is(spec: str, bar: int, offset: int, data: int) -> None:
    document = ring(spec, "--json").document
    assert document["doorbell"] == {"bar": bar, "offset": offset, "data": data}
    assert (document["verdict"], document["reason"]) == ("pass", None)
    assert document["device"] == f"sim:{spec}"
    assert document["irq"] == "msi"
    (only,) = document["rings"]
    assert only["acknowledged"] is True
    assert only["status"] == 0x240
    assert 0 < only["latency_ns"] < 1e9


def test_an_its_doorbell_has_the_data_of_its_event() -> None:
    doorbell = ring("imx95", "--json").document["doorbell"]
    assert (doorbell["bar"], doorbell["offset"]) == (1, 0x40)
    assert doorbell["data"] != 0


def test_behind_an_iommu_the_offset_is_another_one() -> None:
    doorbell = ring("rcar-s4,ep_iommu=true", "--json").document["doorbell"]
    assert doorbell["bar"] == 2
    assert doorbell["offset"] != 0xD50A0
    assert doorbell["offset"] & 0xFFF == 0xA0


@pytest.mark.parametrize("irq", ["msi", "msix", "intx", "poll", "auto"])
def test_every_way_to_learn_of_the_acknowledgement(irq: str) -> None:
    result = ring("generic", "--irq", irq, "--count", "5", "--json")
    assert result.status == 0, result
    assert result.document["irq"] == ("msi" if irq == "auto" else irq)
    assert [one["acknowledged"] for one in result.document["rings"]] == [True] * 5


def test_several_rings_have_a_summary() -> None:
    result = ring("rk3588", "--count", "20")
    assert result.status == 0
    assert result.out.splitlines()[-1].startswith("20 rings, 20 acknowledged, min/avg/max ")


# -- endpoints that cannot -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "arguments", "status", "verdict", "reason"),
    [
        ("am654", [], 1, "fail", "enable-failed"),
        ("tegra194", [], 1, "fail", "enable-failed"),
        ("j721e", [], 4, "skip", "no-caps"),
        ("j721e", ["--force"], 1, "fail", "enable-failed"),
        ("rcar-s4", ["--bar", "4"], 1, "fail", "wrong-bar"),
        ("rk3588", ["--irq", "intx"], 1, "fail", "irq-lost"),
        ("rcar-s4", ["--irq", "msix"], 4, "skip", "no-vectors"),
    ],
)
def test_what_an_endpoint_cannot_do_has_its_verdict(
    spec: str, arguments: list[str], status: int, verdict: str, reason: str
) -> None:
    result = ring(spec, "--json", *arguments)
    document = result.document
    assert (result.status, document["verdict"], document["reason"]) == (status, verdict, reason)
    assert document["message"]
    text = ring(spec, *arguments)
    assert text.status == status
    assert text.err.startswith("rcdrv: ")
    assert "hint: " in text.err


def accesses(log: list[dict[str, Any]], region: str, kind: str) -> list[dict[str, Any]]:
    return [line for line in log if line.get("region") == region and line.get("op") == kind]


def test_the_wrong_bar_is_named_and_nothing_is_written_there(
    endpoint: Callable[..., Endpoint],
) -> None:
    board = endpoint("rcar-s4")
    result = rcdrv("ring", "--bar", "4", "--device", board.address)
    assert result.status == 1
    assert "BAR2" in result.err
    assert "BAR4" in result.err
    log = board.log()
    assert not accesses(log, "BAR2", "write")
    assert not accesses(log, "BAR4", "write")
    commands = [line["value"] for line in accesses(log, "BAR0", "write") if line["offset"] == 4]
    assert commands == [0x40, 0x80]  # enabled, and disabled again


# -- one access is one access --------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["rk3588", "rcar-s4", "imx95", "imx8m", "generic"])
def test_a_ring_is_one_write_of_32_bits(endpoint: Callable[..., Endpoint], spec: str) -> None:
    board = endpoint(spec)
    result = rcdrv("ring", "--count", "7", "--json", "--device", board.address)
    assert result.status == 0
    where = result.document["doorbell"]
    log = board.log()
    rung = accesses(log, f"BAR{where['bar']}", "write")
    assert [(line["offset"], line["size"], line["value"]) for line in rung] == [
        (where["offset"], 4, where["data"])
    ] * 7
    assert not accesses(log, f"BAR{where['bar']}", "read")
    registers = accesses(log, "BAR0", "read") + accesses(log, "BAR0", "write")
    assert {line["size"] for line in registers} == {4}
    assert max(line["offset"] for line in registers) < 0x40


@pytest.mark.parametrize("width", [8, 16, 32, 64])
def test_peek_and_poke_are_one_access_each(endpoint: Callable[..., Endpoint], width: int) -> None:
    board = endpoint("generic")
    poke = rcdrv("poke", "1", "0x1008", "0x5a", "--width", str(width), "--device", board.address)
    peek = rcdrv(
        "peek", "BAR1", "0x1008", "--width", str(width), "--json", "--device", board.address
    )
    assert (poke.status, peek.status) == (0, 0)
    assert peek.document["values"] == [0x5A]
    log = board.log()
    for kind in ("read", "write"):
        (only,) = accesses(log, "BAR1", kind)
        assert (only["offset"], only["size"], only["value"]) == (0x1008, width // 8, 0x5A)


# -- faults --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "status", "reason"),
    [
        ("silent", 1, "silent"),
        ("stuck-command", 1, "stuck-command"),
        ("contradiction", 1, "wrong-status"),
        ("enable-silent", 1, "silent"),
        ("enable-fail", 1, "enable-failed"),
        ("disable-silent", 1, "silent"),
        ("disable-fail", 1, "disable-failed"),
        ("wrong-bar", 1, "wrong-bar"),
        ("db-bar-absent", 1, "bad-bar"),
        ("bad-offset", 1, "bad-offset"),
        ("bad-offset=0xfffffffc", 1, "bad-offset"),
        ("unaligned-offset", 1, "bad-offset"),
        ("doorbell-dead", 1, "silent"),
        ("no-status", 1, "wrong-status"),
        ("cap-loop", 0, None),  # nothing here needs the list
        ("cap-loop=extended", 0, None),
        ("irq-lost", 1, "irq-lost"),
        ("irq-lost=doorbell", 1, "irq-lost"),
        ("irq-twice", 1, "irq-twice"),
        ("irq-wrong-vector", 1, "irq-lost"),
        ("all-ones=20", 1, "all-ones"),
        ("vanish=20", 5, "device-lost"),
        ("slow=100", 0, None),
        ("doorbell-late=20", 0, None),
        ("doorbell-late=9000", 1, "silent"),
        ("slow=9000", 1, "silent"),
    ],
)
@pytest.mark.parametrize("preset", ["rk3588", "generic"])
def test_each_fault_has_its_verdict(
    preset: str, fault: str, status: int, reason: str | None
) -> None:
    expected_bar = {"rk3588": "4", "generic": "1"}[preset]
    begun = time.monotonic()
    timeout = bound(reason in ("silent", "stuck-command", "all-ones") or fault == "no-status")
    result = ring(f"{preset},fault={fault}", "--json", "--timeout", timeout, "--bar", expected_bar)
    assert (result.status, result.document["reason"]) == (status, reason), result
    assert time.monotonic() - begun < LIMIT / 2


def test_all_ones_are_not_a_list_of_bits() -> None:
    told = []
    for accesses in range(20, 44, 3):  # one of them is a ring's look at STATUS
        result = ring(f"rk3588,fault=all-ones={accesses}", "--count", "5", "--timeout", "0.3")
        assert "DOORBELL_DISABLE_FAIL" not in result.out + result.err
        told.append("status 0xffffffff all ones\n" in result.out)
    assert any(told)


def test_a_doubled_interrupt_is_reported_with_its_count() -> None:
    result = ring("rk3588,fault=irq-twice", "--count", "10")
    assert result.status == 1
    assert "interrupts" in result.err


def test_an_unanswered_disable_is_the_last_line() -> None:
    result = ring("rk3588,fault=disable-silent", "--timeout", bound(True))
    assert result.status == 1
    assert result.err.splitlines()[-1].endswith("its doorbell may still be enabled")


@pytest.mark.parametrize("accesses_before", [1, 5, 12, 13, 14, 15, 16, 17, 18, 20, 25, 30])
def test_an_endpoint_that_vanishes_at_any_moment_is_lost(accesses_before: int) -> None:
    result = ring(
        f"rk3588,fault=vanish={accesses_before}", "--timeout", bound(False), "--count", "3"
    )
    assert result.status == 5, result
    assert result.err.startswith("rcdrv: ")


def test_an_endpoint_whose_process_ends_is_lost_at_once(
    endpoint: Callable[..., Endpoint],
) -> None:
    board = endpoint("rk3588")
    run = start("ring", "--count", "0", "--timeout", "1000", "--device", board.address)
    assert run.stdout is not None
    assert run.stdout.readline().startswith("doorbell ")
    board.process.kill()
    assert finish(run).status == 5


# -- nothing is left behind ----------------------------------------------------------------------


def db_bar(address: str) -> int:
    registers = rcdrv("regs", "--json", "--device", address).document["registers"]
    value: int = registers["DB_BAR"]["value"]
    return value


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("lines", [1, 2, 5])
def test_a_signal_at_any_moment_leaves_the_doorbell_disabled(
    endpoint: Callable[..., Endpoint], signum: signal.Signals, lines: int
) -> None:
    board = endpoint("rcar-s4")
    run = start("ring", "--count", "0", "--device", board.address)
    assert run.stdout is not None
    for _ in range(lines):
        assert run.stdout.readline()
    run.send_signal(signum)
    result = finish(run)
    assert result.status == 128 + signum
    assert db_bar(board.address) in (0, 0xFFFFFFFF)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_the_shell_ignores_stays_ignored(
    endpoint: Callable[..., Endpoint], signum: signal.Signals
) -> None:
    """POSIX, 2.11 Signals and Error Handling; and nohup(1)."""
    board = endpoint("rcar-s4")
    run = start(
        *("ring", "--count", "0", "--device", board.address),
        preexec_fn=lambda: signal.signal(signum, signal.SIG_IGN),
    )
    assert run.stdout is not None
    assert run.stdout.readline()
    run.send_signal(signum)
    for _ in range(100):
        assert run.stdout.readline().startswith("ring ")
    run.send_signal(signal.SIGTERM)
    assert finish(run).status == 128 + signal.SIGTERM
    assert db_bar(board.address) in (0, 0xFFFFFFFF)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_between_the_first_line_and_main(signum: signal.Signals) -> None:
    """While the rest is imported: quiet, with the status of one that comes later."""
    code = (
        "import os, signal, sys\n"
        "class Stop:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == 'rcdrv.cli': os.kill(os.getpid(), {int(signum)})\n"
        "sys.meta_path.insert(0, Stop())\n"
        "import rcdrv.__main__\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (128 + signum, "", "")


def test_a_second_ctrl_c_ends_the_wait_for_a_silent_endpoint() -> None:
    """The first says at once what it waits for; the second leaves the doorbell as it is."""
    device = "sim:rk3588,fault=disable-silent"
    run = start("ring", "--count", "0", "--timeout", "1000", "--device", device)
    assert run.stdout is not None
    assert run.stdout.readline().startswith("doorbell ")
    assert run.stdout.readline()
    assert run.stdout.readline()
    run.send_signal(signal.SIGINT)
    assert run.stderr is not None
    said = run.stderr.readline()
    assert said.startswith("rcdrv: stopping: waiting for the endpoint")
    assert "Ctrl-C once more" in said
    time.sleep(0.5)
    run.send_signal(signal.SIGINT)
    result = finish(run)
    assert result.status == 130
    assert result.out.splitlines()[-1].endswith(" us")  # the summary
    assert result.err.splitlines()[-1].endswith("its doorbell may still be enabled")


def test_a_second_ctrl_c_ends_the_wait_for_a_stopped_server(
    endpoint: Callable[..., Endpoint],
) -> None:
    board = endpoint("rk3588")
    run = start("ring", "--count", "0", "--device", board.address)
    assert run.stdout is not None
    assert run.stderr is not None
    assert run.stdout.readline().startswith("doorbell ")
    assert run.stdout.readline()
    board.process.send_signal(signal.SIGSTOP)
    try:
        run.send_signal(signal.SIGINT)
        assert "Ctrl-C once more" in run.stderr.readline()
        time.sleep(0.5)  # sooner, it is taken for the same one (_ONE_REQUEST)
        run.send_signal(signal.SIGINT)
        result = finish(run)
    finally:
        board.process.send_signal(signal.SIGCONT)
    assert result.status == 130
    assert "stopped while the server owed an answer" in result.err
    assert "its doorbell may still be enabled" in result.err


def test_signals_throughout_the_enable(endpoint: Callable[..., Endpoint]) -> None:
    """The signal falls before, into and behind the ENABLE, which takes 100 ms here."""
    board = endpoint("rcar-s4,fault=slow=100")
    for step in range(12):
        run = start("ring", "--count", "0", "--verbose", "--device", board.address)
        assert run.stderr is not None
        assert run.stderr.readline()
        time.sleep(step * 0.015)
        run.send_signal(signal.SIGINT)
        assert finish(run).status == 130
        assert db_bar(board.address) in (0, 0xFFFFFFFF), f"step {step}"


def test_a_reader_that_goes_away_leaves_the_doorbell_disabled(
    endpoint: Callable[..., Endpoint],
) -> None:
    board = endpoint("rcar-s4")
    run = start("ring", "--count", "0", "--device", board.address)
    assert run.stdout is not None
    run.stdout.readline()
    os.close(run.stdout.fileno())
    run.stdout = None
    result = finish(run)
    assert result.status == 128 + signal.SIGPIPE
    assert db_bar(board.address) == 0xFFFFFFFF


def test_an_earlier_run_that_died_does_not_stop_the_next(
    endpoint: Callable[..., Endpoint],
) -> None:
    board = endpoint("rcar-s4")
    run = start("ring", "--count", "0", "--device", board.address)
    assert run.stdout is not None
    run.stdout.readline()
    run.kill()
    finish(run)
    assert db_bar(board.address) == 2
    assert rcdrv("ring", "--device", board.address).status == 0
    assert db_bar(board.address) == 0xFFFFFFFF


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - only counted


def test_a_thousand_cycles_leave_nothing_behind(endpoint: Callable[..., Endpoint]) -> None:
    board = endpoint("rcar-s4", "--set", "hz=1000", "--set", "trap=sparse")
    pattern = ["poke", "2", "0xd5000", "0xdeadbeef", "--device", board.address]
    assert rcdrv(*pattern).status == 0
    before = open_files(board.process.pid)
    result = rcdrv("ring", "--cycles", "1000", "--json", "--device", board.address)
    assert result.status == 0, result.err
    assert len(result.document["rings"]) == 1000
    assert result.document["stray_interrupts"] == 0
    peek = rcdrv("peek", "2", "0xd5000", "--json", "--device", board.address)
    assert peek.document["values"] == [0xDEADBEEF]
    assert open_files(board.process.pid) == before
    assert board.stop().status == 0


@pytest.mark.parametrize("irq", ["msi", "poll"])
@pytest.mark.parametrize("late", [1, 3, 8, 30])
def test_a_late_acknowledgement_is_not_the_answer_to_disable(
    endpoint: Callable[..., Endpoint], irq: str, late: int
) -> None:
    board = endpoint(f"rcar-s4,fault=doorbell-late={late},hz=100")
    result = rcdrv("ring", "--no-wait", "--count", "3", "--irq", irq, "--device", board.address)
    assert (result.status, result.err) == (0, "")
    assert db_bar(board.address) == 0xFFFFFFFF
    run = start("ring", "--count", "0", "--irq", irq, "--device", board.address)
    assert run.stdout is not None
    for _ in range(3):
        run.stdout.readline()
    run.send_signal(signal.SIGINT)
    stopped = finish(run)
    assert stopped.status == 130
    assert "may still be enabled" not in stopped.err
    assert db_bar(board.address) == 0xFFFFFFFF


def test_a_lost_reader_of_the_trace_leaves_the_doorbell_disabled(
    endpoint: Callable[..., Endpoint],
) -> None:
    board = endpoint("rcar-s4")
    for lines in (12, 14, 16, 40):
        run = start("ring", "--count", "200", "--verbose", "--device", board.address)
        assert run.stderr is not None
        for _ in range(lines):
            run.stderr.readline()
        os.close(run.stderr.fileno())
        run.stderr = None
        finish(run)
        assert db_bar(board.address) == 0xFFFFFFFF, lines


def test_all_ones_in_status_is_no_reason_to_disable(endpoint: Callable[..., Endpoint]) -> None:
    """DISABLE without an ENABLE that succeeded ends a real endpoint's command handler."""
    board = endpoint("generic,fault=all-ones=14")
    rcdrv("ring", "--timeout", "0.3", "--device", board.address)
    assert not [line for line in board.log() if line.get("event") in ("oops", "harm")]


def test_a_bar_with_a_stale_doorbell_is_not_written_to(
    endpoint: Callable[..., Endpoint],
) -> None:
    board = endpoint("rcar-s4,fault=disable-fail")
    assert rcdrv("ring", "--device", board.address).status == 1
    start_of_tests = len(board.log())
    for command in (
        ["test", "BAR2", "CONSECUTIVE_BAR_TEST"],
        ["pcitest", "-b", "2", "-B"],
    ):
        result = rcdrv(*command, "--device", board.address)
        assert result.status == 1
    assert not accesses(board.log()[start_of_tests:], "BAR2", "write")


# -- options -------------------------------------------------------------------------------------


def test_without_waiting_it_is_unverified() -> None:
    document = ring("rk3588", "--no-wait", "--count", "3", "--json").document
    assert document["verdict"] == "unverified"
    assert [one["acknowledged"] for one in document["rings"]] == [None] * 3


def test_ringing_elsewhere_shows_what_the_endpoint_says(
    endpoint: Callable[..., Endpoint],
) -> None:
    board = endpoint("rk3588")
    result = rcdrv(
        *("ring", "--bar", "4", "--offset", "0xa0", "--data", "7"),
        *("--no-enable", "--device", board.address),
    )
    assert result.status == 0
    log = board.log()
    assert [(w["offset"], w["value"]) for w in accesses(log, "BAR4", "write")] == [(0xA0, 7)]
    assert not accesses(log, "BAR0", "write")
    shown = rcdrv(
        *("ring", "--bar", "1", "--offset", "0x40", "--data", "1", "--timeout", "0.2"),
        *("--device", board.address),
    )
    assert shown.status == 1  # nothing is there that could acknowledge
    assert "BAR4+0xa0" in shown.out
    assert "BAR1+0x40" in shown.out


@pytest.mark.parametrize(
    "arguments",
    [
        ["--bar", "6"],
        ["--bar", "0"],
        ["--bar", "0", "--offset", "0x34", "--data", "7", "--no-enable"],
        ["--offset", "0xa0", "--bar", "4"],
        ["--data", "0", "--bar", "4"],
        ["--offset", "0xa0", "--data", "0"],
        ["--offset", "0xa2", "--data", "0", "--bar", "4"],
        ["--offset", "0x100000000", "--data", "0", "--bar", "4"],
        ["--offset", "0x40000000", "--data", "0", "--bar", "4"],
        ["--no-enable"],
        ["--count", "-1"],
        ["--cycles", "0"],
        ["--timeout", "0"],
        ["--irq", "smoke"],
    ],
)
def test_bad_usage_is_status_2(arguments: list[str]) -> None:
    result = ring("rk3588", *arguments)
    assert result.status == 2
    assert result.err.startswith("rcdrv: ")
    assert "unrecognized" not in result.err
    document = ring("rk3588", "--json", *arguments).document
    assert (document["verdict"], document["reason"]) == ("error", "usage")


@pytest.mark.parametrize(
    ("redirect", "status"), [(">&-", 0), (">/dev/full", 3), ("| true", 0), ("2>&-", 0)]
)
def test_odd_streams_end_without_a_traceback(redirect: str, status: int) -> None:
    shell = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m rcdrv info --device sim:rk3588 {redirect}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert shell.returncode == status
    assert "Traceback" not in shell.stderr
    assert "bug" not in shell.stderr


@pytest.mark.parametrize("redirect", ["2>/dev/full", "2>&-"])
def test_the_status_stands_where_stderr_takes_nothing(redirect: str) -> None:
    """A diagnostic that nobody can read is no other outcome."""
    for arguments, status in (("--bar 9", 2), ("--bar 2", 1), ("", 0)):
        command = f"{sys.executable} -m rcdrv ring --device sim:rk3588 {arguments} {redirect}"
        assert subprocess.run(["sh", "-c", command], check=False).returncode == status


def test_short_options_of_the_top_are_explained_behind_the_command() -> None:
    result = rcdrv("ring", "-d", "sim:rk3588")
    assert result.status == 2
    assert "--device" in result.err


@pytest.mark.parametrize(
    ("address", "status", "word"),
    [
        ("sim:nosuch", 2, "nosuch"),
        ("nonsense", 2, "nonsense"),
        ("sim:", 2, "'sim:' is not a device address"),
        ("vfio-user:", 2, "'vfio-user:' is not a device address"),
        ("vfio-user:/nonexistent/x.sock", 3, "rcdrv sim"),
        ("0000:ff:1f.7", 3, "0000:ff:1f.7"),
    ],
)
def test_an_address_that_leads_nowhere(address: str, status: int, word: str) -> None:
    result = rcdrv("ring", "--device", address)
    assert result.status == status
    assert word in result.err


def test_without_an_address_no_endpoint_is_made_up() -> None:
    result = rcdrv("ring")
    assert result.status == 3
    assert "sim:rk3588" in result.err


@pytest.mark.parametrize("preset", EPF_PRESETS)
def test_info_and_regs_work_on_every_preset(preset: str) -> None:
    info = rcdrv("info", "--device", f"sim:{preset}")
    assert info.status == 0, info.err
    regs = rcdrv("regs", "--device", f"sim:{preset}")
    assert regs.status == 0, regs.err
    assert "CAPS" in regs.out


def test_core_commands_import_the_standard_library_only(
    endpoint: Callable[..., Endpoint],
) -> None:
    board = endpoint("rk3588")
    script = (
        "import sys\n"
        "from rcdrv.cli import main\n"
        f"assert main(['ring', '--device', {board.address!r}]) == 0\n"
        "tops = {name.partition('.')[0] for name in sys.modules}\n"
        "extra = tops - set(sys.stdlib_module_names) - {'rcdrv', '__main__'}\n"
        "print(sorted(n for n in extra if not n.startswith('_')), file=sys.stderr)\n"
    )
    # -S: site-packages with their start-up hooks are not what is under test.
    run = subprocess.run(
        [sys.executable, "-S", "-c", script], capture_output=True, text=True, check=True
    )
    assert run.stderr.strip() == "[]", json.dumps(run.stderr)
