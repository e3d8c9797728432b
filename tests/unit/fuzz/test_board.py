"""Layouts set through configfs: a directory stands for it, and a real shell works on it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rcdrv.cli import fuzz, main
from rcdrv.errors import HostError, Interrupted, UsageError
from rcdrv.function import Function
from rcdrv.fuzz import board
from rcdrv.fuzz.board import Board, Shell, apply_script, draw_settings, show_script
from rcdrv.fuzz.direct import Direct
from rcdrv.sim.layout import load_layout
from rcdrv.wait import Cancel


class Configfs:
    """What the endpoint's kernel has, and the endpoint that it makes of it."""

    def __init__(self, root: Path, preset: str = "imx95") -> None:
        self.root = root
        self.function = root / "functions" / "pci_epf_test" / "func1"
        self.bars = self.function / "pci_epf_test.0"
        self.controller = root / "controllers" / "4c300000.pcie-ep"
        self.link = self.controller / "func1"
        self.preset = preset
        self.bars.mkdir(parents=True)
        self.controller.mkdir(parents=True)
        for index in range(6):
            self._put(self.bars / f"bar{index}_size", 1 << 20 if index == 5 else 128 << 10)
        self._put(self.function / "msi_interrupts", 32)
        self._put(self.function / "msix_interrupts", 1)
        self.link.symlink_to(self.function)
        self._put(self.controller / "start", 1)
        self.ignored: tuple[int, ...] = ()
        """BARs whose size this kernel does not take."""
        self._open: list[Direct] = []

    @staticmethod
    def _put(path: Path, value: int) -> None:
        path.write_text(f"{value}\n")

    def values(self) -> dict[str, int]:
        files = [*self.bars.iterdir(), *self.function.glob("msi*")]
        return {path.name: int(path.read_text()) for path in files}

    def returned(self) -> Function:
        """The function as the root complex finds it."""
        assert (self.controller / "start").read_text() == "1\n"
        assert self.link.resolve() == self.function
        values = self.values()
        plain = load_layout(self.preset)
        spec = f"{self.preset},msi={values['msi_interrupts']}"
        for index, bar in enumerate(plain.bars):
            ours = index in self.ignored or index == plain.register_bar
            if bar is not None and bar.type.value == "programmable" and not ours:
                spec += f",bar{index}.size={values[f'bar{index}_size']}"
        device = Direct(load_layout(spec))
        self._open.append(device)
        return Function(device.attach(), clock=device.clock)

    def close(self) -> None:
        for device in self._open:
            device.endpoint.close()


@pytest.fixture
def configfs(tmp_path: Path) -> Iterator[Configfs]:
    # The root's name must not be read by the shell.
    one = Configfs(tmp_path / "it's a $(board)")
    yield one
    one.close()


def board_of(configfs: Configfs, command: str = "dash") -> Board:
    return Board(Shell(command), configfs.returned, root=str(configfs.root))


@pytest.mark.parametrize("shell", ["dash", "bash --posix"])
def test_settings_are_written_and_read(configfs: Configfs, shell: str) -> None:
    one = board_of(configfs, shell)
    one.apply({"bar2_size": 4096, "msi_interrupts": 8})
    assert one.settings() == configfs.values()
    assert configfs.values()["bar2_size"] == 4096
    assert configfs.values()["msi_interrupts"] == 8
    assert configfs.link.is_symlink()
    assert (configfs.controller / "start").read_text() == "1\n"


def test_the_scripts_are_posix(configfs: Configfs) -> None:
    root = str(configfs.root)
    for script in (show_script(root), *(apply_script(one, root) for one in draw_settings(0, 30))):
        subprocess.run(["dash", "-n"], input=script.encode(), check=True, timeout=100)


def test_a_value_that_is_refused_leaves_the_function_linked(configfs: Configfs) -> None:
    (configfs.bars / "bar3_size").unlink()
    (configfs.bars / "bar3_size").mkdir()
    with pytest.raises(HostError, match=r"cannot write 4096 to .*bar3_size"):
        board_of(configfs).apply({"bar3_size": 4096})
    assert configfs.link.resolve() == configfs.function
    assert (configfs.controller / "start").read_text() == "1\n"


def test_what_is_wrong_over_there_is_said(configfs: Configfs) -> None:
    with pytest.raises(HostError, match="no pci_ep in configfs"):
        Shell("dash").run(show_script("/nonexistent"))
    with pytest.raises(HostError, match="status 7"):
        Shell("dash -c 'exit 7'").run("")
    with pytest.raises(HostError, match="Permission denied"):
        Shell("dash -c 'echo root@board: Permission denied >&2; exit 255'").run("")
    with pytest.raises(HostError, match=r"it did not end within 0\.2 s"):
        Shell("sleep 30", timeout=0.2).run("")
    with pytest.raises(UsageError, match="No such file"):
        Shell("no-such-command-anywhere").run("")
    for command in ("", "'"):
        with pytest.raises(UsageError):
            Shell(command)
    configfs.link.unlink()
    with pytest.raises(HostError, match="func1 is not linked to exactly one"):
        board_of(configfs).settings()


def test_ctrl_c_that_reaches_the_shell_too(configfs: Configfs) -> None:
    """A terminal sends it to ssh as well; the board is set up as it was all the same."""
    before = configfs.values()
    cancel = Cancel()
    one = Board(Shell("dash", cancel=cancel), configfs.returned, root=str(configfs.root))

    def stopped() -> None:
        with one.restored():
            one.apply({"bar2_size": 4096})
            cancel.request()
            Shell("dash -c 'kill -INT $$'", cancel=cancel).run("")

    with pytest.raises(Interrupted):
        stopped()
    assert configfs.values() == before
    with pytest.raises(HostError, match="ended by SIGINT"):
        Shell("dash -c 'kill -INT $$'").run("")


def test_a_good_board_has_no_finding_and_is_left_as_it_was(configfs: Configfs) -> None:
    before = configfs.values()
    report = board.campaign(board_of(configfs), draw_settings(1, 12))
    assert report.settings == 12
    assert report.findings == []
    assert configfs.values() == before


def test_a_bar_that_does_not_follow_is_found(configfs: Configfs) -> None:
    """Its size changes with another BAR's, which no controller has to do."""
    returned = configfs.returned

    def careless() -> Function:
        (configfs.bars / "bar3_size").write_text((configfs.bars / "bar2_size").read_text())
        return returned()

    one = Board(Shell("dash"), careless, root=str(configfs.root))
    report = board.campaign(one, [{"bar3_size": 4096, "bar2_size": 8192, "msi_interrupts": 2}])
    ((finding, table),) = report.findings
    assert (finding.kind, finding.what) == ("size", "BAR3")
    assert table == {"bar3": {"size": 4096}, "bar2": {"size": 8192}}


def test_a_case_that_fails_with_a_layout_is_found(
    configfs: Configfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    returned = configfs.returned

    def careless() -> Function:
        broken = configfs.values()["bar2_size"] < 4096
        configfs.preset = "imx95,fault=bad-data" if broken else "imx95"
        return returned()

    one = Board(Shell("dash"), careless, root=str(configfs.root))
    report = board.campaign(one, [{"bar2_size": 2048, "msi_interrupts": 2}])
    assert {finding.what.split()[0] for finding, _ in report.findings} == {
        f"pci_ep_data_transfer.memcpy.{direction}_TEST:" for direction in ("READ", "WRITE", "COPY")
    }
    assert all(table == {"bar2": {"size": 2048}} for _, table in report.findings)


def test_settings_are_the_same_for_a_seed() -> None:
    one, two, other = draw_settings(3, 20), draw_settings(3, 20), draw_settings(4, 20)
    assert one == two != other
    assert len(one) == 20
    assert {key for settings in one for key in settings} == set(board.KEYS)


def test_command_line(
    configfs: Configfs,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    arguments = ["fuzz", "layout", "--configfs", str(configfs.root), "--examples", "3"]
    assert main([*arguments, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert shown == "\n# --- a script of its own\n\n".join(
        [show_script(str(configfs.root))]
        + [apply_script(settings, str(configfs.root)) for settings in draw_settings(0, 3)]
    )
    monkeypatch.setattr(fuzz, "open_function", lambda *_args, **_more: configfs.returned())
    there = ["--ep", "dash", "--device", "vfio-user:/board", "--json"]
    assert main([*arguments, *there]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (document["examples"], document["findings"]) == (3, [])
    assert main([*arguments, "--ep", "dash", "--device", "sim:generic"]) == 2
    assert main([*arguments, "--ep", "false", "--device", "vfio-user:/board"]) == 3
