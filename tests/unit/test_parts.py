"""What is known of parts agrees with what the software endpoint knows of them."""

from __future__ import annotations

import pytest

from rcdrv import parts
from rcdrv.pci import Bar
from rcdrv.sim.description import BarType, Layout
from rcdrv.sim.layout import load_layout, preset_names

PRESETS = [
    (name, layout)
    for name in preset_names()
    if (layout := load_layout(name)).function == "epf_test"
]


@pytest.mark.parametrize(("preset", "layout"), PRESETS, ids=[name for name, _ in PRESETS])
def test_a_preset_is_its_part(preset: str, layout: Layout) -> None:
    part = parts.part_of(layout.vendor, layout.device)
    assert part is not parts.UNKNOWN_PART
    assert part.reg_bar == layout.register_bar
    bars = {index: bar for index, bar in enumerate(layout.bars) if bar is not None}
    reserved = {index for index, bar in bars.items() if bar.type is BarType.RESERVED}
    assert reserved == set(part.untestable_bars)
    # The kernel does not say whether AM654 shows its reserved BARs; one ID is two i.MX.
    own = set(part.bars)
    assert own <= set(bars)
    if preset not in ("am654", "imx95", "generic"):
        assert own == set(bars)
    if preset == "imx8m":  # of those two it alone has a fixed BAR4
        return
    for index, size in part.bars.items():
        assert size == (bars[index].size if bars[index].type is BarType.FIXED else 0)


def bar(index: int, *, wide: bool = False) -> Bar:
    return Bar(index, 4096, True, wide, False, 0)


def test_the_upper_half_of_a_64_bit_bar_is_not_missing() -> None:
    part = parts.part_of(0x1D87, 0x3588)
    six = [bar(index) for index in range(6)]
    assert part.missing(six) == ()
    assert part.missing([*six[:4], None, six[5]]) == (4,)
    assert part.missing([six[0], six[1], bar(2, wide=True), None, *six[4:]]) == ()
    assert parts.UNKNOWN_PART.missing([None] * 6) == ()
