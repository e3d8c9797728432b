"""Layouts as hypothesis strategies: tables as in a TOML file.

A plausible layout may belong to some controller; a hostile one adds a fault, contradictory CAPS, or
a misplaced doorbell. A table has no redundant key, so that findings are short from the start.

Related values are one draw from a precomputed list: a draw costs hypothesis more time than the
endpoint needs for a command.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from hypothesis.internal.conjecture.providers import AVAILABLE_PROVIDERS, HypothesisProvider
from hypothesis.strategies import DrawFn, SearchStrategy

from rcdrv.fuzz.finding import Table
from rcdrv.sim.faults import FAULTS

T = TypeVar("T")
_BACKEND = "rcdrv"

K, M, G = 1 << 10, 1 << 20, 1 << 30

SMALLEST, LARGEST = 16, 64 * G
_LARGEST_32BIT = 2 * G
_REGISTERS = 0x80
_WORDWISE = 4 * K
"""Size limit of a BAR with an exposed doorbell, which the endpoint handles word by word."""


def _bar_choices() -> list[Table]:
    """Return one BAR of every kind. Most are small, as in the field and for speed."""
    small = [1 << bit for bit in range(4, 18)]
    sizes = [128 * K, *3 * small, *(1 << bit for bit in range(18, 37))]
    by_type = [
        *((kind, size) for kind in ("programmable", "programmable", "fixed") for size in sizes),
        *(("reserved", size) for size in sizes),
        *(("resizable", 1 << bit) for bit in range(20, 37) for _ in range(len(sizes) // 17)),
    ]
    choices = []
    for (kind, size), widths, prefetch in product(by_type, range(5), range(5)):
        bar: Table = {"type": kind, "size": size}
        if size > _LARGEST_32BIT or not widths:
            bar["wide"] = True
        if not prefetch:
            bar["prefetchable"] = True
        choices.append(bar)
    return choices


_BAR_CHOICES = _bar_choices()


@lru_cache(None)
def _bars_up_to(largest: int) -> SearchStrategy[Table]:
    return st.sampled_from([bar for bar in _BAR_CHOICES if bar["size"] <= largest])


_PRESENT = st.sampled_from([mask for mask in range(1, 64) for _ in range(mask.bit_count())])
"""Sets of BARs, one bit each; more often many than few."""

_IDS = st.sampled_from(
    [
        {},  # the ID that everyone configures by hand
        {"vendor": 0x1AF4, "device": 0x1100},  # one that no table has
        {"vendor": 0x1D87, "device": 0x3588},
        {"vendor": 0x104C, "device": 0xB00C},
        {"vendor": 0x104C, "device": 0xB00D},
    ]
)

_VECTORS = st.sampled_from(list(product([0, 1, 2, 3, 8, 32], [0, 0, 1, 3, 32, 2048])))


def _combined(**choices: list[Any]) -> list[Table]:
    """Return every combination of the keys' values; None leaves a key out."""
    return [
        {key: value for key, value in zip(choices, values, strict=True) if value is not None}
        for values in product(*choices.values())
    ]


_INTX = st.sampled_from(
    _combined(
        intx=[None, "pulse", "level"],
        announce_intx=[None, None, None, True],
        intx_pin=[*[None] * 21, 0, 2, 4],
    )
)

_TRANSFERS = st.sampled_from(
    [
        keys
        for keys in _combined(
            dma=["slave", "slave", None, "memcpy"],
            outbound_align=[None, None, 4, 256, 1 * K, 64 * K],
            unaligned_access=[None, None, None, False],
        )
        # Without a required alignment, coarser windows depend on the buffers' addresses.
        if not (keys.get("outbound_align") == 64 * K and "unaligned_access" in keys)
    ]
)

_OPTIONS: SearchStrategy[tuple[str, Any]] = st.sampled_from(
    [
        *[("", None)] * 16,
        *(("align", align) for align in (4, 256, 64 * K, 1 * M)),
        *(("inbound_windows", more) for more in (0, 0, 1, 2)),  # than there are BARs
        *[("dynamic_inbound", False)] * 3,
        *[("subrange", False)] * 3,
        *(("outbound_size", size) for size in (4 * K, 8 * K, 64 * K)),
        *(("reset", kind) for kind in ("none", "bus")),
        *[("ep_iommu", True)] * 3,
        *(("hz", hz) for hz in (100, 250, 300)),
    ]
)

_BACKENDS = st.sampled_from(["embedded", "msi", "exposed", "exposed", "none"])

_ADDRESSES = st.sampled_from(
    list(
        product(
            [
                0,
                0x4805_0000,
                0xE65D_5000,
                0xFFFF_F000,
                0x8_0000_0000,
                0xFF_FFFF_F000,
                0xFFFF_FFFF_0000_0000,
            ],
            [0, 1, 8192],
        )
    )
)
"""Places of a doorbell's registers, and first event numbers."""

_ONE_IN = {number: st.sampled_from([True] + [False] * (number - 1)) for number in (2, 6, 8)}

_FAULT_ARGUMENTS: dict[str, tuple[int, ...]] = {
    "slow": (1, 20, 200),
    "doorbell-late": (1, 3, 40),
    "wrong-bar": tuple(range(7)),
    "db-bar-absent": (6, 7, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF),
    "bad-offset": (0, 4, 0x1000, 0x8000_0000, 0xFFFF_FFFC, 0xFFFF_FFFF),
    "unaligned-offset": (1, 2, 3, 4, 0x1002),
    "bar-alias": tuple(range(6)),
    "bar-empty": tuple(range(6)),
    "all-ones": tuple(range(0, 300, 7)),
    "vanish": tuple(range(0, 300, 7)),
}


def _arguments(name: str) -> list[str]:
    choices = FAULTS[name].choices
    if choices:
        return [f"{name}={choice}" for choice in choices]
    return [f"{name}={value}" for value in _FAULT_ARGUMENTS.get(name, ())]


_FAULTS = {
    name: st.sampled_from([name] * max(1, len(_arguments(name))) + _arguments(name))
    for name, fault in FAULTS.items()
    if fault.function in ("", "epf_test") and not fault.more
}
_OF_DOORBELLS = ("unaligned-offset", "bad-offset", "disable-fail", "disable-silent", "wrong-bar")
_FAULT_NAMES = st.sampled_from([*_OF_DOORBELLS * 2, *sorted(_FAULTS)])
"""Faults; those that need an enabled doorbell are more frequent."""

_ODD_CAPS = st.sampled_from(list(product(range(64), [0, 0x80, 0xFC0])))


@st.composite
def tables(draw: DrawFn, *, hostile: bool = True, largest: int = LARGEST) -> Table:
    """Draw a layout's table. parse_layout() refuses contradictory ones.

    :param hostile: include layouts of no real controller
    :param largest: size limit of a BAR in bytes, at least 1 MiB
    """
    table: Table = dict(draw(_IDS))
    bars = _bars(draw, _bars_up_to(largest))
    usable = [index for index, bar in bars.items() if bar["type"] != "reserved"]
    if not usable:
        bars = {0: {"type": "programmable", "size": _REGISTERS}}
        usable = [0]
    register_bar = draw(_one_of(tuple(usable)))
    if register_bar != usable[0]:
        table["register_bar"] = register_bar
    bars[register_bar]["size"] = max(_REGISTERS, bars[register_bar]["size"])
    _interrupts(draw, table, bars, register_bar)
    table.update(draw(_TRANSFERS))
    _options(draw, table, len(usable))
    doorbell = _doorbell(draw, bars, register_bar, hostile)
    if hostile:
        _hostility(draw, table, bars)
    table.update((f"bar{index}", bar) for index, bar in bars.items())
    if doorbell:
        table["doorbell"] = doorbell
    return table


@lru_cache(None)
def _one_of(indexes: tuple[int, ...]) -> SearchStrategy[int]:
    return st.sampled_from(indexes)


def _bars(draw: DrawFn, one: SearchStrategy[Table]) -> dict[int, Table]:
    bars: dict[int, Table] = {}
    present = draw(_PRESENT)
    index = 0
    while index < 6:
        if present >> index & 1:
            bar = dict(draw(one))
            if index == 5:
                bar.pop("wide", None)
                bar["size"] = min(_LARGEST_32BIT, bar["size"])
            bars[index] = bar
            index += bar.get("wide", False)
        index += 1
    return bars


def _interrupts(draw: DrawFn, table: Table, bars: dict[int, Table], register_bar: int) -> None:
    msi, msix = draw(_VECTORS)
    if msi:
        table["msi"] = msi
    if msix:
        table["msix"] = msix
        needed = 1 << (0x80 + msix * 16 + -(-msix // 64) * 8 - 1).bit_length()
        bar = draw(_one_of((register_bar, *bars)))
        if bar != register_bar:
            table["msix_bar"] = bar
        bars[bar]["size"] = max(needed, bars[bar]["size"])
    table.update(draw(_INTX))


def _options(draw: DrawFn, table: Table, usable: int) -> None:
    for _ in range(3):
        key, value = draw(_OPTIONS)
        if key:
            table[key] = usable + value if key == "inbound_windows" else value


def _doorbell(draw: DrawFn, bars: dict[int, Table], register_bar: int, hostile: bool) -> Table:
    backend = draw(_BACKENDS)
    if backend == "none":
        return {}
    if backend != "exposed":
        target = next((i for i in sorted(bars) if i > register_bar), register_bar)
        base, event = draw(_ADDRESSES)
        return {
            "backend": backend,
            "address": base | draw(_offsets(min(bars[target]["size"], G))),
            "data": event if backend == "msi" else 0,
        }
    candidates = [index for index, bar in bars.items() if bar["type"] == "reserved"]
    if hostile and draw(_ONE_IN[6]):
        candidates += [i for i, bar in bars.items() if _REGISTERS <= bar["size"] <= _WORDWISE]
    if not candidates:
        return {}
    bar = draw(_one_of(tuple(candidates)))
    offset = draw(_offsets(min(bars[bar]["size"], 4 * G)))
    if bar == register_bar:
        offset = max(offset, _REGISTERS - 4)  # sharing its page with the registers, not its words
    return {"backend": "exposed", "bar": bar, "offset": offset}


@lru_cache(None)
def _offsets(size: int) -> SearchStrategy[int]:
    """Draw the offset of a word: the first, the last, at page edges, or any other."""
    edges = {0, 4, 0x40, 0x80, 0xA0, 0xFFC, 0x1000, 0xD50A0, size // 2, size - 4}
    inside = sorted(offset for offset in edges if 0 <= offset <= size - 4)
    return st.sampled_from(inside) | st.integers(0, size // 4 - 1).map(lambda word: 4 * word)


def _hostility(draw: DrawFn, table: Table, bars: dict[int, Table]) -> None:
    if draw(_ONE_IN[2]):
        table["faults"] = [draw(_FAULTS[draw(_FAULT_NAMES)])]
    if draw(_ONE_IN[8]):
        # CAPS of another kernel, or of none. Reserved BARs stay announced: an endpoint that hides
        # one is responsible for the harm itself.
        reserved = sum(0x40 << i for i, bar in bars.items() if bar["type"] == "reserved")
        low, high = draw(_ODD_CAPS)
        table["caps"] = low | high | reserved


# -- draws that depend on the seed alone -----------------------------------------------------------


class SeededProvider(HypothesisProvider):
    """Hypothesis's provider of draws, without constants.

    Hypothesis mixes constants into its draws, some from the source of every imported module outside
    ``site-packages``. A seed would thus give different examples in another process or an installed
    rcdrv, while a campaign must give the same ones anywhere.
    """

    def _maybe_draw_constant(self, *_what: Any, **_how: Any) -> None:
        return None


AVAILABLE_PROVIDERS[_BACKEND] = f"{__name__}.{SeededProvider.__name__}"


def draw(strategy: SearchStrategy[T], seed: int | str, examples: int) -> list[T]:
    """Return up to ``examples`` draws of a strategy, which depend on the seed alone."""
    drawn: list[T] = []

    @seeded(seed)
    @settings(
        max_examples=examples,
        backend=_BACKEND,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(example: T) -> None:
        drawn.append(example)

    collect()
    return drawn
