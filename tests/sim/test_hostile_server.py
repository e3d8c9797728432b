"""A vfio-user server that lies, floods and truncates: commands end with a status and a sentence.

``finish`` fails on every traceback and on exit status 70 (issue 11, A2, B5, B7).
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .conftest import LIMIT, finish, listening, rcdrv, start

Serve = Callable[..., str]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """A function that starts hostile_server.py and gives its address."""
    running: list[subprocess.Popen[bytes]] = []
    socket = tmp_path / "hostile.sock"

    def start_server(*mode: str, spec: str = "rk3588") -> str:
        program = Path(__file__).with_name("hostile_server.py")
        with (tmp_path / "server.out").open("wb") as out:
            command = [sys.executable, str(program), str(socket), spec, *mode]
            running.append(subprocess.Popen(command, stdout=out))
        deadline = time.monotonic() + LIMIT
        while not listening(socket):
            assert running[-1].poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        return f"vfio-user:{socket}"

    yield start_server
    for process in running:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    "arguments",
    ["test pci_ep_bar.BAR2.BAR_TEST", "--json test pci_ep_bar.BAR2.BAR_TEST"],
)
def test_a_mapped_bar_whose_file_shrinks(serve: Serve, arguments: str) -> None:
    address = serve("truncate", spec="rk3588,bar2.size=64M")
    result = rcdrv("--device", address, *arguments.split())
    assert result.status == 5
    assert "the server truncated its file" in result.err + result.out


def test_a_bar_whose_file_shrinks_before_it_is_mapped(serve: Serve) -> None:
    result = rcdrv("--device", serve("truncate-early"), "peek", "2", "0")
    assert result.status == 3
    assert "mapping region 2 failed" in result.err


def test_dma_memory_cannot_be_truncated(serve: Serve, tmp_path: Path) -> None:
    result = rcdrv(
        "--device", serve("truncate-dma"), "test", "pci_ep_data_transfer.memcpy.READ_TEST"
    )
    assert result.status == 0, result.out
    said = (tmp_path / "server.out").read_text().splitlines()
    assert said
    assert set(said) == {"truncating: EPERM"}


@pytest.mark.parametrize(
    ("command", "arguments", "status"),
    [
        *((command, "ring", 3) for command in ("VERSION", "DEVICE_GET_INFO", "DEVICE_SET_IRQS")),
        *((command, "ring", 3) for command in ("REGION_READ", "REGION_WRITE")),
        ("DMA_MAP", "test pci_ep_data_transfer.memcpy.WRITE_TEST", 1),
        ("DMA_UNMAP", "test pci_ep_data_transfer.memcpy.WRITE_TEST", 1),
    ],
)
def test_an_errno_of_32_bits(serve: Serve, command: str, arguments: str, status: int) -> None:
    """``os.strerror`` takes no number of 2^31 or more."""
    result = rcdrv("--device", serve("errno", command), *arguments.split())
    assert result.status == status
    assert "error 0x80000001" in result.err + result.out


@pytest.mark.parametrize("mode", ["messages", "interrupts"])
def test_a_flood_while_an_interrupt_is_awaited(serve: Serve, mode: str) -> None:
    """Each wait took the transport's 5 s whatever ``--timeout`` said, 50 s in all here."""
    address = serve(mode, spec="rk3588,fault=doorbell-dead")
    begun = time.monotonic()
    result = rcdrv("--timeout", "0.2", "--device", address, "ring", "--count", "8")
    # Silent; or, on a busy host, given up because each answer comes late behind the flood.
    assert result.status in (1, 5)
    assert time.monotonic() - begun < 35


def test_a_server_that_answers_everything_late(serve: Serve, tmp_path: Path) -> None:
    """A ring has about 60 messages, and each answer had the transport's 5 s of its own."""
    result = rcdrv("--timeout", "1", "--device", serve("late"), "ring")
    assert result.status == 5
    assert "the server's replies are too slow" in result.err
    # 5 s of lateness, then 2 s for the clean-up. A slower host makes it fewer.
    assert len((tmp_path / "server.out").read_text().splitlines()) <= 10


@pytest.mark.parametrize("limit", [None, 40])
def test_descriptors_that_nobody_asked_for(serve: Serve, limit: int | None) -> None:
    def restrict() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

    address = serve("descriptors")
    result = finish(start("--device", address, "ring", preexec_fn=restrict))
    assert result.status == 0
