"""rcdrv ntb against software vNTB endpoints over vfio-user."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Endpoint, finish, rcdrv, start

PROMPT = "vntb.peer_delay_ms=0"
POLLED, EMBEDDED = f"sim:rcar-s4-vntb-polled,{PROMPT}", f"sim:rcar-s4-vntb,{PROMPT}"
FAST = ("--count", "3", "--interval", "0")
MANY = ("--count", "100", "--interval", "0")
QUICK = f"{POLLED},hz=1000"
"""Takes commands within 6 ms; the embedded doorbell's endpoint takes 500."""
NETDEV = f"{QUICK},vntb.peer=netdev"


@pytest.mark.parametrize(("device", "polled"), [(POLLED, True), (EMBEDDED, False)])
def test_info(device: str, polled: bool) -> None:
    result = rcdrv("-d", device, "ntb", "info", "--json")
    assert result.status == 0, result.err
    document = result.document
    assert document["polled"] is polled
    assert (document["doorbells"], document["scratchpads"]) == (2, 128)
    assert document["window_bars"] == [2]
    assert not document["link_up"]
    assert document["registers"]["SPAD_OFFSET"] == 0x134


def test_scratchpads_and_link_stay(endpoint: Callable[..., Endpoint]) -> None:
    device = endpoint("rcar-s4-vntb-polled,vntb.peer=none").address
    assert rcdrv("-d", device, "ntb", "link", "up").out == "link up\n"
    assert rcdrv("-d", device, "ntb", "spad", "write", "5", "0x1234").status == 0
    read = rcdrv("-d", device, "ntb", "spad", "read", "5", "--peer", "--json").document
    assert read["scratchpads"] == {"5": 0x1234}
    assert rcdrv("-d", device, "ntb", "spad", "read", "5").out == "   5 0x00000000\n"
    assert rcdrv("-d", device, "ntb", "spad", "read", "128").status == 2
    assert rcdrv("-d", device, "ntb", "info", "--json").document["link_up"] is True
    assert rcdrv("-d", device, "ntb", "link", "down").out == "link down\n"


def test_sixteen_bit_fields_get_sixteen_bit_accesses(endpoint: Callable[..., Endpoint]) -> None:
    served = endpoint(f"rcar-s4-vntb-polled,{PROMPT}")
    assert rcdrv("-d", served.address, "ntb", "ping", *FAST).status == 0
    accesses = [line for line in served.log() if line.get("region") == "BAR0"]
    narrow = {line["size"] for line in accesses if line["offset"] in (8, 10)}
    wide = {line["size"] for line in accesses if line["offset"] not in (8, 10)}
    assert (narrow, wide) == ({2}, {4})


def test_a_ping_that_never_was_has_no_statistics() -> None:
    result = rcdrv("-d", QUICK, "ntb", "ping", "--db", "7")
    assert (result.status, result.out) == (2, "")
    assert "no doorbell 7" in result.err


def test_a_ping_names_the_device_that_was_found() -> None:
    environment = {**os.environ, "RCDRV_DEVICE": QUICK}
    command = [sys.executable, "-m", "rcdrv", "ntb", "ping", *FAST, "--json"]
    run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    assert json.loads(run.stdout)["device"] == QUICK


@pytest.mark.parametrize("device", [POLLED, EMBEDDED, f"sim:rk3588-vntb,{PROMPT}"])
def test_ping(device: str) -> None:
    document = rcdrv("-d", device, "ntb", "ping", *FAST, "--json").document
    assert document["verdict"] == "pass"
    assert (document["transmitted"], document["received"]) == (3, 3)
    reported = {trip["reported"] for trip in document["trips"]}
    assert reported == {1 if device == POLLED else 2}
    spread = document["rtt_ms"]
    assert spread["minimum"] <= spread["p50"] <= spread["maximum"]


def test_ping_looks_like_ping() -> None:
    result = rcdrv("-d", EMBEDDED, "ntb", "ping", *FAST)
    assert result.status == 0
    lines = result.out.splitlines()
    assert lines[0].startswith("PING sim:rcar-s4-vntb,")
    assert "seq=1 time=" in lines[1]
    assert lines[-3].startswith("3 packets transmitted, 3 received, 0% packet loss")
    assert lines[-2].startswith("rtt min/avg/max/mdev = ")


@pytest.mark.parametrize("device", [NETDEV, f"{EMBEDDED},vntb.peer=netdev"])
@pytest.mark.parametrize("size", ["0", "1473"])
def test_ping_over_the_transport(device: str, size: str) -> None:
    # More packets than the ring has slots.
    arguments = ("--transport", "--size", size, "--count", "40", "--interval", "0", "--json")
    document = rcdrv("-d", device, "ntb", "ping", *arguments).document
    assert document["message"] == ""
    assert document["received"] == 40


def test_compare() -> None:
    arguments = ("--compare", POLLED, EMBEDDED, "--count", "50", "--json")
    document = rcdrv("ntb", "ping", *arguments).document
    polled, embedded = (one["rtt_ms"] for one in document["endpoints"])
    assert document["model"] is True
    # The poll's period is 12 ms, which no host makes shorter; how fast the other is, a busy one
    # decides: the figure is for `rcdrv ntb ping --compare` on an idle one.
    # Of 50 pings at any time in it, all take less than 9 ms once in a million runs.
    assert polled["maximum"] > 9
    assert polled["p50"] > 4
    assert document["ratio"]["median"] == pytest.approx(polled["p50"] / embedded["p50"])


def test_compare_says_that_it_is_a_model() -> None:
    result = rcdrv("ntb", "ping", "--compare", QUICK, QUICK, "--count", "3", "--interval", "0")
    assert result.status == 0
    assert "not of a board" in result.out


def test_windows() -> None:
    tool = f"{POLLED},vntb.peer=tool"
    result = rcdrv("-d", tool, "ntb", "mw", "test")
    assert (result.status, "pointed at 0x100000 bytes" in result.out) == (0, True)
    assert rcdrv("-d", tool, "ntb", "mw", "read", "0").status == 2
    assert rcdrv("-d", tool, "ntb", "mw", "test", "--mw", "1").status == 2


def test_a_translated_window(endpoint: Callable[..., Endpoint]) -> None:
    served = endpoint("rcar-s4-vntb-polled,vntb.peer=tool,trap=sparse")
    address = served.address
    assert rcdrv("-d", address, "ntb", "link", "up").status == 0
    write = ("mw", "write", "0x40", "0xabcd", "--translated")
    assert rcdrv("-d", address, "ntb", *write).status == 0
    assert rcdrv("-d", address, "ntb", "mw", "test", "--translated").status == 0
    read = rcdrv("-d", address, "ntb", "mw", "read", "0x40", "--translated", "--json").document
    assert read["words"] == [0xABCD]
    assert not [line for line in served.log() if line.get("event") in ("stray", "harm")]


def test_nothing_is_touched_that_may_harm(endpoint: Callable[..., Endpoint]) -> None:
    served = endpoint("rcar-s4-vntb-polled,vntb.peer=netdev,trap=sparse")
    assert rcdrv("-d", served.address, "ntb", "info").status == 0
    assert rcdrv("-d", served.address, "ntb", "mw", "test").status == 0
    assert rcdrv("-d", served.address, "ntb", "ping", "--transport", *FAST).status == 0
    bad = ("stray", "harm", "dma-fault", "doorbell-unheard")
    assert not [line for line in served.log() if line.get("event") in bad]


def test_ring_and_watch(endpoint: Callable[..., Endpoint]) -> None:
    served = endpoint("rcar-s4-vntb,vntb.peer=none")
    ring = rcdrv("-d", served.address, "ntb", "ring", "--db", "1", "--json").document
    assert ring["verdict"] == "unverified"
    rung = [line["db"] for line in served.log() if line.get("event") == "doorbell"]
    assert rung == [0, 1]
    watch = rcdrv("-d", served.address, "ntb", "link", "watch", "--seconds", "0.2")
    assert (watch.status, "link down" in watch.out) == (0, True)


# -- what can go wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize("device", [POLLED, EMBEDDED])
@pytest.mark.parametrize("number", ["2", "14"])
def test_a_doorbell_beyond_the_count(device: str, number: str) -> None:
    result = rcdrv("-d", device, "ntb", "ring", "--db", number)
    assert result.status == 2
    assert f"no doorbell {number}" in result.err


@pytest.mark.parametrize(
    ("change", "action", "status", "reason"),
    [
        ("fault=silent", ("link", "up"), 1, "silent"),
        ("fault=swallow", ("link", "up"), 1, "silent"),
        ("fault=command-error", ("link", "up"), 1, "command-refused"),
        (
            "doorbell.backend=embedded,doorbell.address=0xe65d50a0,fault=bad-offset",
            ("ring", "--db", "0"),
            1,
            "bad-offset",
        ),
        (
            "doorbell.backend=embedded,doorbell.address=0xe65d50a0,fault=unaligned-offset",
            ("ring", "--db", "0"),
            1,
            "bad-offset",
        ),
        ("fault=doorbell-dead", ("ping", *FAST), 1, "silent"),
        ("fault=irq-lost", ("ping", *FAST), 1, "irq-lost"),
        ("fault=link-drops=1", ("ping", *MANY), 1, "link-lost"),
        ("vntb.peer=none", ("ping", *FAST), 1, "silent"),
        ("vntb.peer=pingpong", ("ping", "--transport", *FAST), 1, "link-down"),
        # A ring may tell of several packets, so three pings need not be three rings.
        ("vntb.peer=netdev,fault=link-drops=2", ("ping", "--transport", *MANY), 1, "link-lost"),
        ("vntb.peer=netdev,fault=sequence-gap", ("ping", "--transport", *FAST), 1, "sequence-gap"),
        ("vntb.peer=netdev,fault=irq-lost", ("ping", "--transport", *FAST), 1, "irq-lost"),
        ("vntb.peer=netdev,vntb.peer_ip=192.0.2.9", ("ping", "--transport", *FAST), 1, "silent"),
        ("msi=2", ("ping", *FAST), 4, "no-vectors"),
        ("device=0x1234", ("info",), 2, "usage"),
    ],
)
def test_verdicts(change: str, action: tuple[str, ...], status: int, reason: str) -> None:
    # A busy host may take long for what does come; only what is missing is waited for in full.
    bound = {"silent": "0.3", "irq-lost": "3", "link-lost": "5"}.get(reason, "10")
    result = rcdrv("-d", f"{QUICK},{change}", "ntb", *action, "--json", "--timeout", bound)
    assert result.status == status, result.out
    assert result.document["reason"] == reason
    assert result.document["message"]
    assert result.document["hint"]


def test_a_polled_vntb_may_have_more_doorbells_than_vectors() -> None:
    """db_count is 3 to 32, and pci-epf-vntb announces 16 MSI vectors."""
    many = f"{POLLED},vntb.db_count=32"
    document = rcdrv("-d", many, "ntb", "info", "--json").document
    assert (document["doorbells"], len(document["slots"])) == (30, 30)
    result = rcdrv("-d", many, "ntb", "ring", "--db", "20")
    assert (result.status, "a slot needs a vector" in result.err) == (2, True)


def test_the_delay_of_pingpong_is_named() -> None:
    result = rcdrv("-d", "sim:rcar-s4-vntb", "ntb", "ping", "--count", "1", "--interval", "0")
    assert result.status == 0, result.err
    assert "is ntb_pingpong's delay_ms 1000" in result.out


def test_two_windows_of_an_rk3588() -> None:
    """Its controller maps in units of 64 KiB, which no register tells."""
    device = "sim:rk3588-vntb,vntb.peer=netdev,vntb.num_mws=2,bar5.type=resizable"
    device += ",vntb.mw2_bar=5,vntb.mw2=0x100000"
    bars = ("--ctrl-bar", "0", "--db-bar", "4", "--mw-bar", "2", "--mw-bar", "5")
    result = rcdrv("-d", device, "ntb", "ping", "--transport", *bars, *FAST)
    assert result.status == 0, result.err


def test_a_refused_window_is_called_so() -> None:
    device = f"{QUICK},vntb.peer=netdev,align=0x200000,bar0.size=0x200000"
    result = rcdrv("-d", device, "ntb", "ping", "--transport", *FAST)
    assert (result.status, "CONFIGURE_MW: CMD_STATUS is 0x0002" in result.err) == (1, True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("delay", [1.2, 1.35, 1.5])
def test_a_signal_during_the_hand_shake_is_no_bug(number: int, delay: float) -> None:
    device = "sim:rcar-s4-vntb,vntb.peer=netdev"
    process = start("-d", device, "ntb", "ping", "--transport", "--count", "0")
    time.sleep(delay)
    process.send_signal(number)
    result = finish(process)
    assert result.status == 128 + number, result.err
    assert "bug" not in result.err


def test_an_unknown_id_with_its_bars() -> None:
    bars = ("--ctrl-bar", "0", "--db-bar", "4", "--mw-bar", "2")
    assert rcdrv("-d", f"{POLLED},device=0x1234", "ntb", "info", *bars).status == 0


MX8 = """
function = "epf_vntb"
vendor = 0x1957
device = 0x0809
msi = 16
bar0.type = "programmable"
bar2.type = "programmable"
bar4.type = "programmable"
bar5.type = "programmable"
[vntb]
ctrl_bar = 0
db_bar = 2
db_count = 4
spad_count = 16
num_mws = 2
peer_delay_ms = 0
mw1 = 0x100000
mw1_bar = 4
mw2 = 0x10000
mw2_bar = 5
"""
"""The BARs of mx8_map in drivers/ntb/hw/epf/ntb_hw_epf.c."""


def test_the_bars_of_another_part_are_known_by_its_id(tmp_path: Path) -> None:
    layout = tmp_path / "mx8.toml"
    layout.write_text(MX8)
    device = f"sim:{layout}"
    assert "BAR2+0x8" in rcdrv("-d", device, "ntb", "info").out
    assert rcdrv("-d", device, "ntb", "ping", "--count", "3").status == 0
    for window, bar in ("0", "0x100000"), ("1", "0x10000"):
        result = rcdrv("-d", device, "ntb", "mw", "test", "--mw", window)
        assert (result.status, f"pointed at {bar} bytes" in result.out) == (0, True)


def test_a_bar_without_a_control_block() -> None:
    result = rcdrv("-d", f"{POLLED},vntb.peer=tool", "ntb", "info", "--ctrl-bar", "2", "--json")
    assert (result.status, result.document["reason"]) == (1, "bad-control")


def test_a_control_block_that_cannot_be(endpoint: Callable[..., Endpoint]) -> None:
    device = endpoint(f"rcar-s4-vntb-polled,{PROMPT}").address
    for offset, bad, good in ((0x20, 5, 1), (0x28, 0xFFFFFFFC, 0x134), (0x30, 8, 4)):
        assert rcdrv("-d", device, "poke", "0", hex(offset), hex(bad)).status == 0
        result = rcdrv("-d", device, "ntb", "ring", "--db", "0", "--json")
        assert (result.status, result.document["reason"]) == (1, "bad-control")
        assert rcdrv("-d", device, "poke", "0", hex(offset), hex(good)).status == 0


def test_endless_pings_end_well(endpoint: Callable[..., Endpoint]) -> None:
    served = endpoint(f"rcar-s4-vntb-polled,{PROMPT}")
    process = start("-d", served.address, "ntb", "ping", "--count", "0", "--interval", "0")
    assert process.stdout is not None
    assert any("seq=1 " in line for line in process.stdout)
    process.send_signal(signal.SIGINT)
    result = finish(process)
    assert result.status == 130, result.err
    assert "0% packet loss" in result.out
    assert rcdrv("-d", served.address, "ntb", "info", "--json").document["link_up"] is False


def test_perf(endpoint: Callable[..., Endpoint]) -> None:
    """perf_copy_chunk() of ntb_perf.c, in every width, and reads too."""
    served = endpoint("rcar-s4-vntb-polled,hz=1000,vntb.peer=netdev,trap=sparse")
    perf = ("-d", served.address, "ntb", "perf", "--seconds", "10ms")
    document = rcdrv(*perf, "--chunk", "4K", "--json").document
    assert (document["verdict"], document["window"], document["chunk"]) == ("pass", 0, 4096)
    found = [(one["mapping"], one["width"], one["direction"]) for one in document["rates"]]
    ways = [("mapped", 32), ("mapped", 64), ("messages", None)]
    assert found == [(*way, direction) for way in ways for direction in ("write", "read")]
    for one in document["rates"]:
        assert one["bytes"] % 4096 == 0
        assert one["seconds"] >= 0.01
        assert one["megabytes_per_second"] == one["bytes"] / one["seconds"] / 1e6
    assert "64 bits" not in rcdrv(*perf, "--width", "32").out
    assert not [line for line in served.log() if line.get("event") == "harm"]


def test_perf_puts_back_what_was_there(endpoint: Callable[..., Endpoint]) -> None:
    address = endpoint("rcar-s4-vntb-polled,hz=1000,vntb.peer=tool").address
    assert rcdrv("-d", address, "ntb", "link", "up").status == 0
    write = ("mw", "write", "0x40", "0xabcd", "--translated")
    assert rcdrv("-d", address, "ntb", *write).status == 0
    assert rcdrv("-d", address, "ntb", "perf", "--translated", "--seconds", "10ms").status == 0
    read = rcdrv("-d", address, "ntb", "mw", "read", "0x40", "--translated", "--json").document
    assert read["words"] == [0xABCD]
    # Nothing sets a translation there on the way: ntb_tool is not ntb_transport.
    refused = rcdrv("-d", address, "ntb", "perf")
    assert (refused.status, "ntb_transport" in refused.err) == (1, True), refused


@pytest.mark.parametrize(
    ("option", "message"),
    [(("--chunk", "12"), "--chunk 0xc is no multiple of 8"), (("--mw", "1"), "no memory window 1")],
)
def test_perf_refuses(option: tuple[str, str], message: str) -> None:
    result = rcdrv("-d", NETDEV, "ntb", "perf", *option)
    assert (result.status, result.out, message in result.err) == (2, "", True), result
