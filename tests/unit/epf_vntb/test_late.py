"""Answers that come late, and links that go down during a wait, on virtual time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest

from rcdrv.epf_vntb.driver import Vntb
from rcdrv.epf_vntb.echo import TransportPinger
from rcdrv.epf_vntb.ping import DoorbellPinger
from rcdrv.epf_vntb.registers import RCAR_MAP, Command, CommandStatus, Reg
from rcdrv.epf_vntb.transport import QueuePair, Transport
from rcdrv.errors import Interrupted
from rcdrv.function import Function
from rcdrv.fuzz.direct import Direct
from rcdrv.sim.layout import load_layout
from rcdrv.verdict import NotPassed, Reason

QUICK = "rcar-s4-vntb-polled,hz=1000"
US, THEM, NOBODY = (bytes([192, 0, 2, last]) for last in (1, 2, 9))


class SlowHandler(Direct):
    """epf_ntb_cmd_handler(): take a command, work on it, then answer. LINK_UP takes long; every
    other command is refused at once."""

    command = 0
    takes_at = 0.0
    answers_at = math.inf

    def __init__(self, work: float) -> None:
        super().__init__(load_layout(QUICK))
        self.work = work
        self.sent: list[int] = []
        self._answer = CommandStatus.OK

    def ask(self, command: int) -> None:
        self.sent.append(command)
        self.command = command
        self.takes_at = self.clock.now() + 0.005

    def _handle(self) -> None:
        now = self.clock.now()
        if now >= self.answers_at:
            super().write(0, Reg.CMD_STATUS, self._answer.to_bytes(2, "little"))
            self.answers_at = math.inf
        if self.command and now >= self.takes_at and self.answers_at == math.inf:
            slow = self.command == Command.LINK_UP
            self._answer = CommandStatus.OK if slow else CommandStatus.ERROR
            self.answers_at = now + (self.work if slow else 0)
            self.command = 0

    def read(self, region: int, offset: int, size: int) -> bytes:
        self._handle()
        if (region, offset) == (0, Reg.COMMAND):
            self.clock.advance(1e-6)
            return self.command.to_bytes(size, "little")
        return super().read(region, offset, size)

    def write(self, region: int, offset: int, data: bytes) -> None:
        self._handle()
        if (region, offset) == (0, Reg.COMMAND):
            self.ask(int.from_bytes(data, "little"))
        else:
            super().write(region, offset, data)


@pytest.mark.parametrize("own", [True, False], ids=["of-this-run", "of-a-run-before"])
def test_a_late_answer_is_not_the_next_commands(own: bool) -> None:
    """The OK of LINK_UP passed for the answer to TEARDOWN_MW, which is refused."""
    device = SlowHandler(work=1.5 if own else 0.5)
    with Function(device.attach(), clock=device.clock) as function:
        vntb = Vntb(function, RCAR_MAP, timeout=1.0)
        if own:
            with pytest.raises(NotPassed, match="LINK_UP: the endpoint took it"):
                vntb.command(Command.LINK_UP)
        else:
            device.ask(Command.LINK_UP)
        for _ in range(2):
            with pytest.raises(NotPassed) as caught:
                vntb.command(Command.TEARDOWN_MW)
            assert caught.value.reason is Reason.COMMAND_REFUSED
    device.endpoint.close()


def test_no_command_is_sent_while_an_answer_is_owed() -> None:
    device = SlowHandler(work=10.0)
    with Function(device.attach(), clock=device.clock) as function:
        vntb = Vntb(function, RCAR_MAP, timeout=1.0)
        with pytest.raises(NotPassed):
            vntb.command(Command.LINK_UP)
        with pytest.raises(NotPassed, match="owes the answer to LINK_UP") as caught:
            vntb.command(Command.TEARDOWN_MW)
        assert caught.value.reason is Reason.SILENT
        assert device.sent == [Command.LINK_UP]
    device.endpoint.close()


class Unplugged(Direct):
    """LINK_STATUS reads 0 from a moment on, as after an unbind (epf_ntb_bind)."""

    down_at = math.inf

    def read(self, region: int, offset: int, size: int) -> bytes:
        data = super().read(region, offset, size)
        down = (region, offset) == (0, Reg.LINK_STATUS) and self.clock.now() >= self.down_at
        return bytes(size) if down else data


@pytest.fixture
def unplugged(request: pytest.FixtureRequest) -> Iterator[tuple[Unplugged, Vntb]]:
    device = Unplugged(load_layout(f"{QUICK},{request.param}"))
    with Function(device.attach(), clock=device.clock) as function:
        yield device, Vntb(function, RCAR_MAP, timeout=5.0)
    device.endpoint.close()


@pytest.mark.parametrize(
    ("unplugged", "pinger"),
    [
        ("vntb.peer=none", TransportPinger),
        ("vntb.peer=netdev", TransportPinger),
        ("vntb.peer=none", DoorbellPinger),
    ],
    indirect=["unplugged"],
    ids=["hand-shake", "ARP", "doorbell"],
)
def test_a_link_that_goes_down_ends_a_wait_at_once(
    unplugged: tuple[Unplugged, Vntb], pinger: type[Any]
) -> None:
    device, vntb = unplugged
    names = {"ip": US, "peer_ip": NOBODY} if pinger is TransportPinger else {}
    begun = device.clock.now()
    device.down_at = begun + 1.0
    ping = pinger(vntb, **names)
    with pytest.raises(NotPassed) as caught:
        ping.open()
    assert caught.value.reason is Reason.LINK_LOST
    assert device.clock.now() - begun < 1.5
    ping.close()


@pytest.mark.parametrize("stopped", [False, True], ids=["time-out", "Ctrl-C"])
@pytest.mark.parametrize("unplugged", ["vntb.peer=netdev"], indirect=True)
def test_packets_of_others_without_end(
    unplugged: tuple[Unplugged, Vntb], stopped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ring that is never empty was read for ever."""
    device, vntb = unplugged
    ping = TransportPinger(vntb, ip=US, peer_ip=NOBODY)
    begun = device.clock.now()
    seen = 0

    def receive(_queue: QueuePair) -> bytes:
        nonlocal seen
        seen += 1
        device.clock.advance(0.001)
        if stopped and seen == 3:
            vntb.function.cancel.request()
        return b"\xff" * 60

    monkeypatch.setattr(QueuePair, "receive", receive)
    with pytest.raises(Interrupted if stopped else NotPassed) as caught:
        ping.open()
    assert stopped or (isinstance(caught.value, NotPassed) and caught.value.reason is Reason.SILENT)
    assert device.clock.now() - begun < 15
    monkeypatch.undo()
    ping.close()


@pytest.mark.parametrize("unplugged", ["vntb.peer=netdev"], indirect=True)
def test_a_full_ring_behind_a_lost_link(unplugged: tuple[Unplugged, Vntb]) -> None:
    """The ring stays full because the endpoint is gone, which is the cause to report."""
    device, vntb = unplugged
    transport = Transport(vntb)
    queue = transport.open()
    queue.rings.tx_index = queue.rings.reader
    with pytest.raises(NotPassed) as caught:
        queue.send(b"x")
    assert caught.value.reason is Reason.SILENT
    device.down_at = 0.0
    with pytest.raises(NotPassed) as caught:
        queue.send(b"x")
    assert caught.value.reason is Reason.LINK_LOST
    transport.close()


@pytest.mark.parametrize("unplugged", ["vntb.peer=netdev"], indirect=True)
def test_packets_are_written_in_words_of_64_bits(unplugged: tuple[Unplugged, Vntb]) -> None:
    """Whoever fills the ring, `ntb ping` or `ntb tap`: half the accesses of ntb_transport."""
    _, vntb = unplugged
    assert vntb.window(0).bulk == 32
    transport = Transport(vntb)
    transport.open()
    assert vntb.window(0).bulk == 64
    transport.close()
