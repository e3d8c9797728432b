"""What virtual time says is what a socket, a thread and the real tick say."""

from __future__ import annotations

import pytest

from rcdrv.fuzz.campaign import Plan, run_block
from rcdrv.fuzz.finding import Table
from rcdrv.fuzz.trial import run_layout
from rcdrv.sim.layout import load_layout, parse_layout, preset_names

# Each of these waits is a second at the real tick; the test of the whole is a campaign
# (rcdrv fuzz layout --real-time), this is a sample.
_SLOW_FAULTS = ("silent", "swallow", "stuck", "slow", "dma-hangs", "all-ones", "vanish", "irq")


def sample() -> list[Table]:
    found = []
    for example in run_block(Plan(seed=7), 3):
        faults = example.table.get("faults", [""])
        if example.outcomes and not faults[0].startswith(_SLOW_FAULTS):
            found.append(example.table)
    return found


EPF_TEST_PRESETS = [name for name in preset_names() if load_layout(name).function == "epf_test"]


@pytest.mark.parametrize("preset", EPF_TEST_PRESETS)
def test_presets(preset: str) -> None:
    layout = load_layout(preset)
    fast, real = run_layout(layout), run_layout(layout, real_time=True)
    assert fast.findings == real.findings == []
    assert fast.outcomes == real.outcomes


def test_generated_layouts() -> None:
    tables = [table for table in sample() if "dma" in table][:16]
    assert len(tables) == 16
    for table in tables:
        layout = parse_layout(table)
        fast, real = run_layout(layout), run_layout(layout, real_time=True)
        assert (fast.outcomes, fast.findings) == (real.outcomes, real.findings), table
