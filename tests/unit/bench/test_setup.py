"""What the numbers depend on is read from where the kernel says it, and null where it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from rcdrv.bench import setup


@pytest.fixture
def sys(tmp_path: Path) -> Path:
    """Two CPUs with governors, on node 1, and a function on node 1 and one on none."""
    for cpu, governor in enumerate(("performance", "powersave")):
        folder = tmp_path / f"devices/system/cpu/cpu{cpu}"
        (folder / "cpufreq").mkdir(parents=True)
        (folder / "cpufreq/scaling_governor").write_text(f"{governor}\n")
        (folder / "node1").mkdir()
    for address, node in (("0000:01:00.0", "1"), ("0000:02:00.0", "-1")):
        folder = tmp_path / "bus/pci/devices" / address
        folder.mkdir(parents=True)
        (folder / "numa_node").write_text(f"{node}\n")
    return tmp_path


def test_governors_of_these_cpus(sys: Path) -> None:
    assert setup.governor([0], sys) == "performance"
    assert setup.governor([0, 1], sys) == "performance,powersave"
    assert setup.governor([7], sys) is None


def test_nodes(sys: Path) -> None:
    assert setup.cpu_nodes([0, 1], sys) == [1]
    assert setup.cpu_nodes([7], sys) == []
    assert setup.function_node("0000:01:00.0", sys) == 1
    assert setup.function_node("01:00.0", sys) == 1
    assert setup.function_node("0000:02:00.0", sys) is None  # the kernel's -1: it has no node
    assert setup.function_node("0000:03:00.0", sys) is None
    assert setup.function_node("sim:rk3588", sys) is None
