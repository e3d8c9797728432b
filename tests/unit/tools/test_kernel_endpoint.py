"""What the kernel's endpoint needs of the host, without a guest."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from rcdrv.device import CONFIG_REGION, Area, RegionFlag, sealed_memory
from rcdrv.epf_test.registers import Reg
from rcdrv.sim.access_log import AccessLog
from rcdrv.sim.functions import doorbell_place
from rcdrv.sim.layout import load_layout
from tools.lab import __main__ as command
from tools.lab.channel import Result
from tools.lab.child import Log
from tools.lab.errors import CommandTimeout, LabError
from tools.lab.kernel_endpoint import build, shell
from tools.lab.kernel_endpoint import endpoint as endpoint_module
from tools.lab.kernel_endpoint import function as function_module
from tools.lab.kernel_endpoint.endpoint import KernelEndpoint
from tools.lab.kernel_endpoint.function import Function
from tools.lab.kernel_endpoint.hardware import INBOUND_USED, OUTBOUND_USED, TRAPPED_BAR, Hardware
from tools.lab.kernel_endpoint.shadow import Shadow


class Console:
    """A guest that writes more at each look."""

    def __init__(self, *pieces: str) -> None:
        self.pieces = list(pieces)
        self.text = ""

    def console_since(self, mark: int) -> tuple[str, int]:
        self.text += self.pieces.pop(0) if self.pieces else ""
        end = self.text.rfind("\n") + 1
        return self.text[mark:end], end


def test_a_crash_is_told_once_and_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "_QUIET", 0.0)
    endpoint = KernelEndpoint("rk3588")
    # Looked at in the middle of a line, and of the report.
    console = Console("[    0.000000] Linux\n[    1.500000] BUG", ": bad\n", "Oops: 0\n")
    endpoint._guest = cast(Any, console)
    assert endpoint.crash() == ""
    assert endpoint.crash() == "[    1.500000] BUG: bad\nOops: 0"
    assert endpoint.crash() == ""
    console.pieces = ["[    1.500000] UBSAN: shift-out-of-bounds\n"]
    assert endpoint.crash().startswith("[    1.500000] UBSAN")


def test_console_is_read_on_from_a_byte_also_where_it_is_cut(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb", buffering=0) as stream:
        log = Log(stream, tmp_path / "log")
        os.write(writer, b"one\ntw")
        wait_for(lambda: log.since(0) == ("one\n", 4))
        os.write(writer, b"o\r\n")
        wait_for(lambda: log.since(4) == ("two\n", 9))
        for _ in range(3):
            os.write(writer, b"x" * 65535 + b"\n")
        wait_for(lambda: log.since(9)[1] == 9 + 3 * 65536)
        assert 65536 <= len(log.since(9)[0]) < 3 * 65536
        assert log.since(9 + 3 * 65536) == ("", 9 + 3 * 65536)
        os.close(writer)
        log.finish()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_what_a_client_was_too_slow_for_is_not_done_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory may be another transfer's by then; but a stop is a stop, whenever it is seen."""
    monkeypatch.setattr(function_module, "PATIENCE", 0.01)
    function = Function(cast(Any, None), AccessLog())
    function._peer = cast(Any, object())  # a client whose thread does not run
    done: list[str] = []
    function._call(lambda: done.append("write"), None)
    function._call(lambda: done.append("stop"), None, late=True)
    function.run()
    assert done == ["stop"]


# -- what a client maps ---------------------------------------------------------------------------

PAGE = mmap.PAGESIZE
MIB = 1 << 20
DOORBELL = 0x100D_50A0  # in the guest's BAR of the controller


def test_both_sides_of_a_shadow_change_it() -> None:
    shadow = Shadow(2 * PAGE)
    pushed: list[tuple[int, bytes]] = []
    shadow.write(4, b"host")
    shadow.pull(bytes(PAGE) + b"\1" * PAGE)
    assert shadow.read(4, 4) == b"host"
    assert shadow.read(PAGE, 1) == b"\1"
    shadow.push(lambda offset, data: pushed.append((offset, data)))
    assert pushed == [(0, b"\0\0\0\0host".ljust(PAGE, b"\0"))]
    shadow.push(lambda offset, data: pushed.append((offset, data)))
    assert len(pushed) == 1


class Guest:
    """The endpoint's guest, whose memory begins at 0."""

    def __init__(self) -> None:
        self.fd = sealed_memory("guest", 2 * MIB)
        self.memory = mmap.mmap(self.fd, 2 * MIB)

    def dma_file(self, address: int, size: int) -> tuple[int, int]:
        return self.fd, address

    def trigger(self, kind: object, vector: int) -> bool:
        return True


@pytest.fixture
def guest() -> Iterator[Guest]:
    one = Guest()
    yield one
    os.close(one.fd)


def hardware(guest: Guest, spec: str = "rcar-s4") -> Hardware:
    """The controller with BAR2 at the beginning of the guest's memory."""
    one = Hardware(load_layout(spec), AccessLog(), lambda _started: None)
    one.attach(cast(Any, guest))
    one._place([DOORBELL & 0xFFFF_FFFF, DOORBELL >> 32])
    set_bar(one, (0, MIB))
    one._set_started(True)
    return one


def set_bar(one: Hardware, *parts: tuple[int, int], bar: int = 2, size: int = MIB) -> None:
    words = [word for part in parts for number in part for word in (number, 0)]
    assert one._set_bar([bar, 0, size, 0, len(parts), *words]) == 0


def mapped(one: Hardware, bar: int = 2) -> mmap.mmap:
    region = one.function.regions()[bar]
    assert region.flags & RegionFlag.MMAP
    return mmap.mmap(region.fd, region.size)


def test_doorbells_page_is_not_mapped(guest: Guest) -> None:
    regions = hardware(guest).function.regions()
    place = doorbell_place(load_layout("rcar-s4"))
    assert place is not None
    assert place[0] == 2
    page = place[1] // PAGE * PAGE
    assert regions[2].areas == (Area(0, page), Area(page + PAGE, MIB - page - PAGE))


@pytest.mark.parametrize("spec", ["rcar-s4,trap=all", "rcar-s4-vntb,trap=all"])
def test_nothing_is_mapped_where_every_access_has_to_be_seen(guest: Guest, spec: str) -> None:
    assert not any(region.areas for region in hardware(guest, spec).function.regions())


def test_mapping_follows_the_bar(guest: Guest) -> None:
    one = hardware(guest)
    client = mapped(one)
    client[:4] = b"host"
    half = MIB // 2
    set_bar(one, (half, half), (0, half))  # the halves swapped, as BAR_SUBRANGE_SETUP does
    assert guest.memory[:4] == b"host"
    assert client[half : half + 4] == b"host"
    guest.memory[half : half + 4] = b"part"  # the endpoint writes when it has set the BAR
    assert client[:4] == bytes(4)
    one.pull()
    assert client[:4] == b"part"
    client[:4] = b"more"
    one.push()
    assert guest.memory[half : half + 4] == b"more"

    set_bar(one, (DOORBELL & ~(MIB - 1), MIB))  # ENABLE_DOORBELL
    assert client[:4] == bytes(4)
    client[:4] = b"lost"
    set_bar(one, (0, MIB))
    assert client[:4] == b"host"


def test_bar_that_became_too_small_to_map_is_the_endpoints_memory(guest: Guest) -> None:
    """``rcdrv fuzz layout --ep`` binds the function anew with BARs from 128 bytes on."""
    one = hardware(guest, "generic")
    one._stop([])
    one._clear_bar([2])
    set_bar(one, (MIB, 128), size=128)
    one._start([])
    one.function.write(CONFIG_REGION, 4, b"\2\0")
    assert not one.function.regions()[2].areas
    one.function.write(2, 0, b"host")
    assert guest.memory[MIB : MIB + 4] == b"host"
    set_bar(one, (MIB + 64, 64), (MIB, 64), size=128)
    assert one.function.read(2, 64, 4) == b"host"


def test_mapping_of_a_stopped_endpoint_reads_all_ones(guest: Guest) -> None:
    one = hardware(guest)
    client = mapped(one)
    client[:4] = b"host"
    one._stop([])
    assert client[:4] == b"\xff" * 4
    one._start([])
    assert client[:4] == b"host"


def test_mapping_is_brought_up_to_date_at_the_registers(guest: Guest) -> None:
    """At COMMAND, for the endpoint; and where a register changes, for the root complex."""
    one = hardware(guest)
    set_bar(one, (MIB, MIB), bar=0)
    one._set_started(False)
    one._set_started(True)
    client, function = mapped(one), one.function
    function.write(CONFIG_REGION, 4, b"\2\0")
    client[:4] = b"host"
    function.write(0, Reg.SIZE, bytes(4))
    assert guest.memory[:4] == bytes(4)
    function.write(0, Reg.COMMAND, b"\1\0\0\0")
    assert guest.memory[:4] == b"host"

    function.read(0, Reg.STATUS, 4)
    guest.memory[:4] = b"part"
    function.read(0, Reg.STATUS, 4)
    assert client[:4] == b"host"
    guest.memory[MIB + Reg.STATUS] = 1
    function.read(0, Reg.STATUS, 4)
    assert client[:4] == b"part"


def test_windows_in_use_are_counted(guest: Guest) -> None:
    """Of BARs, one for each part; of the host's memory, one for each mapping."""
    one = hardware(guest)

    def used() -> tuple[int, int]:
        words = (one.read(0, where, 4) for where in (INBOUND_USED, OUTBOUND_USED))
        inbound, outbound = (int.from_bytes(word, "little") for word in words)
        return inbound, outbound

    assert used() == (1, 0)
    set_bar(one, (MIB // 2, MIB // 2), (0, MIB // 2))
    assert used() == (2, 0)
    set_bar(one, (0, MIB))
    set_bar(one, (MIB, MIB), bar=0)
    assert one._map([TRAPPED_BAR, 0, 0, 0x1000, 0, 0x1000, 0]) == 0
    assert used() == (2, 1)
    assert one._unmap([TRAPPED_BAR, 0, 0]) == 0
    one._clear_bar([0])
    assert used() == (1, 0)


# -- a shell in a running endpoint ----------------------------------------------------------------


class Script:
    """A guest whose shell does not run what it is given, but says it."""

    def __init__(self, problem: LabError | None = None) -> None:
        self.problem = problem
        self.given = b""

    def start(self, argv: list[str], *, timeout: float) -> Script:
        assert argv == ["sh"]
        self.given = b""
        return self

    def write(self, data: bytes) -> None:
        self.given += data

    def close_stdin(self) -> None:
        pass

    def wait(self) -> Result:
        if self.problem is not None:
            raise self.problem
        return Result(7, self.given.decode(), "no")


def test_script_goes_to_the_guest_and_its_end_comes_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    where = shell.shell_socket(tmp_path / "ep.sock")
    guest = Script()
    monkeypatch.setattr(shell, "_LONGEST", 10)
    with shell.shell_server(cast(Any, guest), where):
        assert where.stat().st_mode & 0o777 == 0o600
        assert command.main(["exec", str(tmp_path / "ep.sock"), "echo"]) == 7
        assert capsys.readouterr() == ("echo", "no")
        # One that is refused leaves the next one its turn.
        with pytest.raises(LabError):
            shell.run_script(where, b"x" * 11)
        guest.problem = CommandTimeout("the command did not end in 1 s")
        with pytest.raises(LabError, match=r"did not end in 1 s$"):
            shell.run_script(where, b"")
        with pytest.raises(LabError, match="a server is listening"):
            shell.shell_server(cast(Any, guest), where).__enter__()
    assert not where.exists()
    assert command.main(["exec", str(tmp_path / "ep.sock"), "echo"]) == command.STATUS_LAB
    assert "does the endpoint run?" in capsys.readouterr().err


# -- a developer's kernel tree ------------------------------------------------------------------

CORE = "drivers/pci/endpoint"
MEMBERS = (
    *(f"{CORE}/{name}" for name in (*build.CHANGED, "pci-epc-mem.c", "pci-ep-msi.c")),
    *(f"{CORE}/functions/pci-epf-{name}.c" for name in ("test", "vntb")),
    *("drivers/ntb/core.c", "drivers/ntb/ntb_transport.c", "drivers/net/ntb_netdev.c"),
    *(f"drivers/ntb/test/ntb_{name}.c" for name in ("pingpong", "tool")),
)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(build, "_release", lambda: "7.3.4")
    for name in (*MEMBERS, "include/linux/pci-epc.h", "include/linux/pci.h", "drivers/net/tun.c"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def test_source_is_the_endpoints_and_its_headers(tree: Path) -> None:
    assert set(build._read(tree)) == {*MEMBERS, "include/linux/pci-epc.h"}


def test_tree_that_lacks_a_file_is_named(tree: Path) -> None:
    (tree / CORE / "pci-ep-msi.c").unlink()
    with pytest.raises(LabError, match=r"functions of Linux 7\.3\.4: it lacks pci-ep-msi\.c$"):
        build._read(tree)


def test_no_file_of_another_folder_is_read(tree: Path, tmp_path_factory: Any) -> None:
    secret = tmp_path_factory.mktemp("elsewhere") / "secret"
    secret.write_text("secret")
    (tree / CORE / "pci-ep-more.c").symlink_to(secret)
    with pytest.raises(LabError, match=r"pci-ep-more\.c is not a file in this tree"):
        build._read(tree)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "chroot /x failed:\n/build/endpoint/pci-epf-test.c: In function 'f':\n"
            "/build/endpoint/pci-epf-test.c:12:9: error: implicit declaration of 'g'\n",
            "pci-epf-test.c:12:9: implicit declaration of 'g'\n(unless it is",
        ),
        (
            "x\npci-epf-test.c:9:10: fatal error: linux/pci-new.h: No such file or directory\n",
            "pci-epf-test.c:9:10: linux/pci-new.h: No such file or directory\n(unless it is",
        ),
        (
            'ERROR: modpost: "pci_new" [/build/endpoint/pci-epf-test.ko] undefined!\nmake: ***\n',
            'modpost: "pci_new" [/build/endpoint/pci-epf-test.ko] undefined!\n(the guest\'s kernel',
        ),
    ],
)
def test_first_error_of_a_build_is_told_with_its_cure(tree: Path, said: str, told: str) -> None:
    error = build._explained(tree, LabError(said))
    assert f"{tree} does not build for the guest's Linux 7.3.4: {told}" in str(error)


def test_kernel_source_without_a_kernels_endpoint_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = ["run", "--endpoint", "rk3588", "--kernel-source", str(tmp_path), "true"]
    assert command.main(given) == command.STATUS_LAB
    assert "give --endpoint kernel:SPEC" in capsys.readouterr().err
