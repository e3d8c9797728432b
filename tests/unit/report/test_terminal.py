"""What a person sees, on a real pseudo-terminal and as a terminal emulator draws it."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyte
import pytest
from hypothesis import given

from rcdrv.report.live import Live
from rcdrv.report.terminal import Coloured, Plain
from rcdrv.results.result import Run

from .samples import a_run, play, runs

HEIGHT = 50

PLAIN = """\
sim:rk3588  Rockchip RK3588, msi
PASS  pci_ep_bar.BAR0.BAR_TEST  0.25s
PASS  pci_ep_basic.MSI_TEST  1.50s  32 vectors
SKIP  pci_ep_basic.MSIX_TEST  0.00s  the function has no MSI-X
FAIL  pci_ep_data_transfer.dma.READ_TEST  0.50s  data-mismatch: 1024 B: 4 bytes differ
LOST  pci_ep_data_transfer.dma.COPY_TEST  0.00s  device-lost: all registers read 0xffffffff

FAIL  pci_ep_data_transfer.dma.READ_TEST
      data-mismatch: 1024 B: 4 bytes differ
      +0x10: expected 0xdf, got 0xff
      AER: 1 receiver error
      1 bad TLP
      hint: look at the inbound window of the endpoint

LOST  pci_ep_data_transfer.dma.COPY_TEST
      device-lost: all registers read 0xffffffff

2 pass, 1 fail, 1 skip, 1 lost in 2.25s
"""


pytestmark = pytest.mark.usefixtures("pseudo_terminals")


class Terminal:
    """A process on a pseudo-terminal, and the screen that its output draws."""

    def __init__(self, width: int, *args: str, **environment: str) -> None:
        self._screen = pyte.Screen(width, HEIGHT)
        self._stream = pyte.ByteStream(self._screen)
        self.output = b""
        self._terminal, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, width, 0, 0))
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES")
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.unit.report.on_terminal", *args],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env={**inherited, "TERM": "xterm-256color", "LANG": "C.UTF-8", **environment},
        )
        os.close(theirs)

    @property
    def lines(self) -> list[str]:
        """The screen as far as it is used, without the spaces at the right."""
        lines = [line.rstrip() for line in self._screen.display]
        return "\n".join(lines).rstrip().split("\n")

    @property
    def cursor_shown(self) -> bool:
        return not self._screen.cursor.hidden

    def color_of(self, line: str) -> str:
        """The colour in which a line begins."""
        return self._screen.buffer[self.lines.index(line)][0].fg

    def until(self, seen: Callable[[], bool]) -> None:
        """Draw what comes until something is seen on the screen."""
        deadline = time.monotonic() + 30
        while not seen():
            assert time.monotonic() < deadline, self.lines
            self._draw()

    def until_it_waits(self, text: str = "12/32 vectors") -> None:
        self.until(lambda: text in self.lines[-1])

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGUSR1)

    def type(self, keys: bytes) -> None:
        os.write(self._terminal, keys)

    def until_the_end(self) -> None:
        while self._draw():
            pass
        assert self._process.wait(30) == 0, self.lines

    def _draw(self) -> bool:
        """Wait a moment for output; whether there can be more."""
        if not select.select([self._terminal], [], [], 0.1)[0]:
            return True
        try:
            data = os.read(self._terminal, 65536)
        except OSError:  # EIO: nobody has the other side open
            return False
        self.output += data
        self._stream.feed(data)
        return True

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._terminal)


@contextmanager
def terminal(width: int, *args: str, **environment: str) -> Iterator[Terminal]:
    terminal = Terminal(width, *args, **environment)
    try:
        yield terminal
    finally:
        terminal.close()


@pytest.mark.parametrize("width", [40, 120])
def test_the_running_case_is_shown(width: int) -> None:
    with terminal(width) as shown:
        shown.until_it_waits()
        *_, case, progress = shown.lines
        assert case.startswith("2/5 pci_ep_basic.MSI_TEST ")
        assert progress.endswith("12/32 vectors")
        assert not shown.cursor_shown
        # How long it has been running goes on though the case says nothing.
        shown.until(lambda: shown.lines[-2].startswith("2/5 ") and shown.lines[-2] != case)
        assert shown.lines[-2].startswith("2/5 pci_ep_basic.MSI_TEST ")


def test_a_wide_terminal_shows_all_in_few_lines() -> None:
    with terminal(120) as shown:
        shown.until_it_waits()
        shown.go_on()
        shown.until_the_end()
        before, summary = shown.lines[:-5], shown.lines[-5:]
        assert before == PLAIN.splitlines()[:-1]
        assert summary == [
            "fixture               pass  fail  skip  lost",
            "pci_ep_bar               1",
            "pci_ep_basic             1           1",
            "pci_ep_data_transfer           1           1",
            "2 pass, 1 fail, 1 skip, 1 lost in 2.25s",
        ]
        assert shown.cursor_shown
        assert shown.color_of("PASS  pci_ep_bar.BAR0.BAR_TEST  0.25s") == "green"
        assert shown.color_of("FAIL  pci_ep_data_transfer.dma.READ_TEST") == "red"


def test_a_narrow_terminal_wraps_beside_the_marks() -> None:
    with terminal(40) as shown:
        shown.until_it_waits()
        shown.go_on()
        shown.until_the_end()
        start = shown.lines.index("      data-mismatch: 1024 B: 4 bytes")
        assert shown.lines[start - 1 : start + 7] == [
            "FAIL  pci_ep_data_transfer.dma.READ_TEST",
            "      data-mismatch: 1024 B: 4 bytes",
            "      differ",
            "      +0x10: expected 0xdf, got 0xff",
            "      AER: 1 receiver error",
            "      1 bad TLP",
            "      hint: look at the inbound window",
            "      of the endpoint",
        ]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_ctrl_c_leaves_the_terminal_in_order(width: int) -> None:
    with terminal(width) as shown:
        shown.until_it_waits()
        shown.type(b"\x03")
        shown.until_the_end()
        assert shown.cursor_shown
        assert shown.lines[-1] == "1 pass, 4 not run in 0.25s"
        # What was live is gone, and nothing that was to stay went with it.
        assert not any("2/5" in line or "12/32" in line for line in shown.lines)
        assert "PASS  pci_ep_bar.BAR0.BAR_TEST  0.25s" in shown.lines


def test_no_color() -> None:
    with terminal(120, NO_COLOR="1") as shown:
        shown.until_it_waits()
        shown.go_on()
        shown.until_the_end()
        assert shown.color_of("FAIL  pci_ep_data_transfer.dma.READ_TEST") == "default"


@pytest.mark.parametrize("arguments", [["--without-rich"], []])
def test_lines_suffice_where_there_is_no_more(arguments: list[str]) -> None:
    """Without rich, or on a terminal that can only print; rich takes that to be 80 wide."""
    with terminal(80, *arguments, TERM="dumb") as shown:
        shown.until_it_waits("PASS  pci_ep_bar.BAR0.BAR_TEST")
        shown.go_on()
        shown.until_the_end()
        assert b"\x1b" not in shown.output
        assert shown.lines[:4] == PLAIN.splitlines()[:4]
        assert shown.lines[-1] == PLAIN.splitlines()[-1]


def test_colours_and_progress_need_no_rich() -> None:
    with terminal(120, "--without-rich") as shown:
        shown.until_it_waits()
        assert shown.lines[-1].startswith("2/")
        shown.go_on()
        shown.until_the_end()
        assert shown.lines == PLAIN.splitlines()
        assert shown.color_of(PLAIN.splitlines()[1]) == "green"
        assert shown.color_of(PLAIN.splitlines()[4]) == "red"
    with terminal(80, "--without-rich", NO_COLOR="1") as shown:
        shown.until_it_waits("PASS  pci_ep_bar.BAR0.BAR_TEST")
        shown.go_on()
        shown.until_the_end()
        assert b"\x1b" not in shown.output


def test_plain_lines() -> None:
    stream = io.StringIO()
    play(a_run(), Plain(stream))
    assert stream.getvalue() == PLAIN


@given(runs())
def test_no_text_reaches_the_terminal_as_control(run: Run) -> None:
    for observer in (Plain, Coloured, Live):
        stream = io.StringIO()
        play(run, observer(stream))
        text = stream.getvalue()
        if observer is Coloured:  # what it writes by itself
            text = re.sub(r"\r\x1b\[K|\x1b\[[0-9;]*m", "", text)
        text.encode("utf-8")
        assert all(line.isprintable() for line in text.split("\n"))
