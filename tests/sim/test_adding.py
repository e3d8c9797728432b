"""Add what docs/architecture.md says can be added to a copy of the package, and run it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIMIT = 120


class Copy:
    """A copy of the package, to be changed and run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.package = folder / "rcdrv"
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "rcdrv", self.package, ignore=ignored)

    def change(self, file: str, before: str, after: str) -> None:
        path = self.package / file
        text = path.read_text()
        assert text.count(before) == 1, f"{file}: {before}"
        path.write_text(text.replace(before, after))

    def run(self, *arguments: str, **environment: str) -> str:
        """Run the copy's rcdrv, which has to succeed; return what it prints."""
        done = subprocess.run(
            [sys.executable, "-m", "rcdrv", *arguments],
            cwd=self.folder,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path)


def test_a_subcommand(copy: Copy) -> None:
    (copy.package / "cli/vendor.py").write_text(
        '"""Print the vendor ID."""\n'
        "from rcdrv.cli.common import open_function\n"
        "def add_arguments(parser): pass\n"
        "def run(args, cancel):\n"
        "    with open_function(args, cancel) as function:\n"
        "        print(hex(function.config.vendor_id))\n"
        "    return 0\n"
    )
    copy.change("cli/__init__.py", "COMMANDS = {\n", 'COMMANDS = {\n    "vendor": "show it",\n')
    assert copy.run("--device", "sim:rk3588", "vendor") == "0x1d87\n"
    assert "vendor" in copy.run("--help")
    assert "Print the vendor ID." in copy.run("vendor", "--help")


def test_a_transport(copy: Copy) -> None:
    copy.change(
        "address.py",
        "SCHEMES = (\n",
        "SCHEMES = (\n"
        '    Scheme("alias", {"alias:PRESET": "like sim:"}, lambda a: _spawn("sim" + a[5:])),\n',
    )
    assert "alias:PRESET" in copy.run("ring", "--help")
    copy.run("--device", "alias:rk3588", "ring")


def test_a_backend_of_kernel_vfio(copy: Copy) -> None:
    (copy.package / "vfio/echo.py").write_text(
        "def open_echo(bdf, paths, vf_token):\n"
        "    from rcdrv.address import open_device\n"
        '    return open_device("sim:rk3588")\n'
    )
    copy.change("vfio/__init__.py", "BACKENDS = (", 'BACKENDS = ("echo", ')
    copy.run("--device", "01:00.0", "ring", RCDRV_BACKEND="echo")


def test_a_preset(copy: Copy) -> None:
    preset = (copy.package / "sim/presets/rk3588.toml").read_text()
    (copy.package / "sim/presets/rk9999.toml").write_text(preset)
    assert "rk9999" in copy.run("sim", "--list")
    copy.run("--device", "sim:rk9999", "ring")


def test_a_case(copy: Copy) -> None:
    copy.change(
        "epf_test/suite.py",
        "    return tuple(found)\n",
        '    name = CaseName("rcdrv_extra", "", "MAGIC_TEST")\n'
        "    body = lambda driver, progress: hex(driver.read(Reg.MAGIC))\n"
        '    found.append(Case(name, body, "read MAGIC"))\n'
        "    return tuple(found)\n",
    )
    assert "MAGIC_TEST" in copy.run("--device", "sim:rk3588", "test", "MAGIC_TEST")


FUNCTION = '''
"""An endpoint function with one register, which counts its reads."""
from rcdrv.results.layout import Region
from rcdrv.sim.checks import integer
from rcdrv.sim.function import EndpointFunction, SimFunction

class Counter(EndpointFunction):
    name = table = "counter"
    runs = "rcdrv.sim.counter:SimCounter"
    defaults = {"device": 0xC0DE}
    schema = {"first": integer(0, 9)}
    def registers_size(self, layout): return 4
    def bar_size(self, layout, index): return 4096
    def doorbell_place(self, layout): return None
    def regions(self, layout, doorbell):
        return {layout.register_bar: [Region(0, 4, "counter", "registers")]}

class SimCounter(SimFunction):
    idle = True
    def __init__(self, controller, *rest):
        self.count = controller.layout.tables["counter"]["first"]
        controller.map_memory(controller.layout.register_bar)
    def set_up(self): pass
    def start(self): pass
    def stop(self): pass
    def next_event(self): return None
    def run(self): pass
    def answer(self, bar, offset, data):
        self.count += 1
        return self.count.to_bytes(4, "little")
'''


def test_an_endpoint_function(copy: Copy) -> None:
    (copy.package / "sim/counter").mkdir()
    (copy.package / "sim/counter/__init__.py").write_text(FUNCTION)
    copy.change(
        "sim/functions.py",
        "from rcdrv.sim.description",
        "from rcdrv.sim.counter import Counter\nfrom rcdrv.sim.description",
    )
    copy.change(
        "sim/functions.py",
        "    EpfTestFunction(),\n",
        "    EpfTestFunction(), Counter(),\n",
    )
    (copy.folder / "board.toml").write_text(
        'function = "counter"\ntrap = "all"\nbar0 = {}\ncounter = { first = 6 }\n'
    )
    assert "00000007" in copy.run("--device", "sim:board.toml", "peek", "0", "0")
    assert "c0de" in copy.run("--device", "sim:board.toml", "info")
