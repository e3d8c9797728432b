"""The software endpoint in a process of its own, over vfio-user: what only a real client shows."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rcdrv.address import open_device
from rcdrv.cli import build_parser
from rcdrv.cli import sim as sim_command
from rcdrv.device import IrqKind
from rcdrv.errors import DeviceLost, Interrupted, UsageError
from rcdrv.function import Function
from rcdrv.sim.epf_test.function import crc32_le
from rcdrv.sim.epf_test.registers import NO_BAR, USE_DMA, SimCommand, SimRegister, SimStatus
from rcdrv.sim.layout import load_layout
from rcdrv.sim.serve import serve
from rcdrv.vfio_user.client import Client
from rcdrv.wait import Cancel, Deadline
from tests.access_log import count, entries
from tests.unavailable import unavailable

from .conftest import LIMIT, Endpoint

Start = Callable[..., "Board"]


class Board:
    """A process that serves one endpoint on one end of a socket pair; this is the other end."""

    def __init__(self, spec: str, *options: str) -> None:
        """:param options: of ``rcdrv sim``; without any, it is as ``sim:`` addresses start it"""
        ours, theirs = socket.socketpair()
        fd = str(theirs.fileno())
        program = (
            ["rcdrv", "sim", spec, "--fd", fd, *options] if options else ["rcdrv.sim", spec, fd]
        )
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *program],
                pass_fds=[theirs.fileno()],
                stderr=subprocess.PIPE,
                text=True,
            )
        self.client = Client(ours, f"sim:{spec}", timeout=LIMIT)
        self.function = Function(self.client)
        self.registers = self.function.bar(load_layout(spec).register_bar)

    def command(self, command: SimCommand, **registers: int) -> SimStatus:
        """STATUS, once the endpoint has answered; by polling."""
        for name, value in registers.items():
            self.registers.write32(SimRegister[name.upper()], value & 0xFFFF_FFFF)
            if name.endswith("_addr"):
                self.registers.write32(SimRegister[name.upper()] + 4, value >> 32)
        self.registers.write32(SimRegister.STATUS, 0)
        self.registers.write32(SimRegister.COMMAND, command)
        deadline = Deadline(LIMIT)
        while not self.registers.read32(SimRegister.STATUS) & SimStatus.IRQ_RAISED:
            assert not deadline.expired
            time.sleep(0.0005)
        return SimStatus(self.registers.read32(SimRegister.STATUS))

    def end(self) -> tuple[int, str]:
        self.function.close()
        _, said = self.process.communicate(timeout=LIMIT)
        return self.process.returncode, said


@pytest.fixture
def board() -> Iterator[Start]:
    running: list[Board] = []

    def start(*arguments: str) -> Board:
        running.append(Board(*arguments))
        return running[-1]

    yield start
    for one in running:
        if one.process.poll() is None:
            one.process.kill()
        one.function.close()
        one.process.communicate()


def test_a_mapping_follows_the_inbound_window(board: Start) -> None:
    """Client and endpoint share the memory; only the doorbell's page is a message."""
    rcar = board("rcar-s4")
    bar = rcar.function.bar(2)
    contents = os.urandom(bar.size)
    bar.write_block(0, contents)
    for _ in range(3):
        assert rcar.command(SimCommand.ENABLE_DOORBELL) & SimStatus.DOORBELL_ENABLE_SUCCESS
        assert bar.read_block(0, 0xD5000) == bytes(0xD5000)
        assert rcar.command(SimCommand.DISABLE_DOORBELL) & SimStatus.DOORBELL_DISABLE_SUCCESS
        assert bar.read_block(0, bar.size) == contents
    rcar.command(SimCommand.BAR_SUBRANGE_SETUP, size=2)
    half = bar.size // 2
    assert bar.read_block(0, bar.size) == b"\x60" * half + b"\x61" * half
    bar.write_block(0, contents)
    rcar.command(SimCommand.BAR_SUBRANGE_CLEAR, size=2)
    assert bar.read_block(0, bar.size) == contents[half:] + contents[:half]


@pytest.mark.parametrize("flags", [0, USE_DMA])
def test_transfers(board: Start, flags: int) -> None:
    generic = board("generic")
    size = 1024001
    with generic.function.dma_buffer(2 * size) as buffer:
        source, target = buffer.iova + 3, buffer.iova + size + 5
        data = os.urandom(size - 8)
        buffer.memory[3 : 3 + len(data)] = data
        common = {"src_addr": source, "dst_addr": target, "size": len(data), "flags": flags}
        read = generic.command(SimCommand.READ, checksum=crc32_le(data), **common)
        assert read == SimStatus.READ_SUCCESS | SimStatus.IRQ_RAISED
        assert generic.command(SimCommand.COPY, **common) & SimStatus.COPY_SUCCESS
        assert buffer.memory[size + 5 : size + 5 + len(data)] == data
        assert generic.command(SimCommand.WRITE, **common) & SimStatus.WRITE_SUCCESS
        written = bytes(buffer.memory[size + 5 : size + 5 + len(data)])
        assert generic.registers.read32(SimRegister.CHECKSUM) == crc32_le(written)


@pytest.mark.parametrize("preset", ["am654", "tegra194", "j721e", "generic"])
def test_intx(board: Start, preset: str) -> None:
    one = board(preset)
    with one.function.interrupts(IrqKind.INTX) as interrupts:
        for _ in range(5):
            one.command(SimCommand.RAISE_INTX, irq_type=0)
            assert interrupts.wait(Deadline(LIMIT))
            # A pulse that is still up fires again, as a level-triggered line does.
            time.sleep(0.01)
            interrupts.take()


@pytest.mark.parametrize("kind", [IrqKind.MSI, IrqKind.MSIX])
def test_each_vector(board: Start, kind: IrqKind) -> None:
    generic = board("generic")
    with generic.function.interrupts(kind, 32) as interrupts:
        for number in (1, 2, 31, 32):
            generic.command(SimCommand.RAISE_MSI, irq_type=kind, irq_number=number)
            assert interrupts.wait(Deadline(LIMIT)) == {number - 1: 1}


def test_2048_vectors(board: Start) -> None:
    # One eventfd a vector at either end.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        unavailable("too few file descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, hard))
    try:
        rk3588 = board("rk3588,msix=2048")
        with rk3588.function.interrupts(IrqKind.MSIX, 2048) as interrupts:
            for number in (1, 1000, 2048):
                rk3588.command(SimCommand.RAISE_MSIX, irq_type=2, irq_number=number)
                assert interrupts.wait(Deadline(LIMIT)) == {number - 1: 1}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_log_has_every_access_of_a_ring(board: Start, tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    rk3588 = board("rk3588", "--access-log", str(path))
    rk3588.command(SimCommand.ENABLE_DOORBELL)
    before = count(path)
    rk3588.registers.write32(SimRegister.STATUS, 0)
    rk3588.function.bar(4).write32(0xA0, 0)
    assert rk3588.registers.read32(SimRegister.STATUS) & SimStatus.DOORBELL_SUCCESS
    lines = entries(path, before)
    accesses = [
        (line["op"], line["region"], line["offset"], line["size"]) for line in lines if "op" in line
    ]
    assert accesses == [
        ("write", "BAR0", SimRegister.STATUS, 4),
        ("write", "BAR4", 0xA0, 4),
        ("read", "BAR0", SimRegister.STATUS, 4),
    ]
    assert [line["event"] for line in lines if "event" in line][:1] == ["doorbell"]
    times = [line["t"] for line in lines]
    assert times == sorted(times)


def test_the_doorbell_outlives_its_client(endpoint: Callable[..., Endpoint]) -> None:
    one = endpoint("imx95")
    for expected in (SimStatus.DOORBELL_ENABLE_SUCCESS, SimStatus.DOORBELL_ENABLE_FAIL):
        client = Client.connect(one.socket)
        with Function(client) as function:
            registers = function.bar(0)
            registers.write32(SimRegister.STATUS, 0)
            registers.write32(SimRegister.COMMAND, SimCommand.ENABLE_DOORBELL)
            deadline = Deadline(LIMIT)
            while not registers.read32(SimRegister.STATUS):
                assert not deadline.expired
            assert registers.read32(SimRegister.STATUS) & expected
            assert registers.read32(SimRegister.DB_BAR) not in (0, NO_BAR)


# -- the process ----------------------------------------------------------------------------------


def test_it_ends_with_its_owner(board: Start) -> None:
    assert board("rk3588").end() == (0, "")


def test_ctrl_c_is_its_owners_business() -> None:
    """The terminal sends SIGINT to the processes of its session."""

    def children() -> set[int]:
        return set(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()))

    before = children()
    with contextlib.closing(open_device("sim:rk3588")):
        (child,) = children() - before
        assert os.getsid(child) == child != os.getsid(0)


def test_sigterm_ends_it(board: Start) -> None:
    one = board("rk3588")
    one.process.send_signal(signal.SIGTERM)
    assert one.process.wait(LIMIT) == 0
    with pytest.raises(DeviceLost):
        one.registers.read32(SimRegister.STATUS)


def test_it_idles(board: Start) -> None:
    """The tick of an attached endpoint costs a few percent of a core, no more."""
    one = board("rk3588")

    def seconds() -> float:
        stat = Path(f"/proc/{one.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")

    before = seconds()
    time.sleep(1.0)
    assert seconds() - before < 0.15


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("rcdrv.sim nosuch 0", "no preset 'nosuch'"),
        ("rcdrv.sim rk3588,hz=x 0", "hz"),
        ("rcdrv sim rk3588 --set hz=0 --fd 0", "hz"),
        ("rcdrv sim rk3588 --fault sillent --fd 0", "sillent"),
        ("rcdrv sim rk3588", "--socket"),
        ("rcdrv sim rk3588 --fd 0 --socket x", "two places"),
        ("rcdrv sim rk3588 --fd 0 --access-log /nonexistent/log", "/nonexistent/log"),
    ],
)
def test_errors(arguments: str, says: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", *arguments.split()],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert run.returncode == 2
    assert says in run.stderr
    assert run.stderr.startswith("rcdrv: ")
    assert "Traceback" not in run.stderr


def test_it_starts_with_the_standard_library_alone() -> None:
    code = "import sys, rcdrv.sim.__main__; print(*{m.partition('.')[0] for m in sys.modules})"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT, check=True
    )
    foreign = set(run.stdout.split()) - sys.stdlib_module_names - {"rcdrv"}
    assert not {name for name in foreign if not name.startswith(("_", "sitecustomize"))}


def test_a_stop_before_it_serves_is_not_lost(tmp_path: Path) -> None:
    """The handlers of the command line took the signal, before the server set its own."""
    path = tmp_path / "ep.sock"
    cancel = Cancel()
    cancel.request(signal.SIGTERM)
    arguments = build_parser(["sim"]).parse_args(["sim", "rk3588", "--socket", str(path)])
    with contextlib.closing(cancel), pytest.raises(Interrupted):
        sim_command.run(arguments, cancel)
    assert not path.exists()


# -- conventions of vfio-user for backend programs -------------------------------------------------


def ring_over(sock: socket.socket) -> None:
    with Function(Client(sock, "fd", timeout=LIMIT)) as function:
        assert function.config.device_id == 0x3588


def test_an_inherited_socket_serves_its_one_client() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        fd = theirs.fileno()
        command = [sys.executable, "-m", "rcdrv", "sim", "rk3588", f"--fd={fd}"]
        process = subprocess.Popen(command, pass_fds=[fd], stderr=subprocess.PIPE, text=True)
    ring_over(ours)
    _, said = process.communicate(timeout=LIMIT)
    assert (process.returncode, said) == (0, f"serving rk3588 on descriptor {fd}\n")


def test_an_inherited_socket_that_listens_serves_until_sigterm(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        fd = listener.fileno()
        command = [sys.executable, "-m", "rcdrv", "sim", "rk3588", "--fd", str(fd)]
        process = subprocess.Popen(command, pass_fds=[fd])
    try:
        for _ in range(2):
            client = socket.socket(socket.AF_UNIX)
            client.connect(str(tmp_path / "s"))
            ring_over(client)
    finally:
        process.terminate()
    assert process.wait(LIMIT) == 0


def test_what_is_no_socket_to_serve_at(tmp_path: Path) -> None:
    """In this process: the descriptors are its own."""
    unconnected = socket.socket(socket.AF_UNIX)
    datagrams = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with unconnected, datagrams[0], datagrams[1], (tmp_path / "file").open("w") as file:
        for fd in (unconnected.fileno(), datagrams[0].fileno(), file.fileno(), 987):
            with pytest.raises(UsageError, match="is not a UNIX stream socket"):
                serve(load_layout("rk3588"), os.dup(fd) if fd != 987 else fd)
