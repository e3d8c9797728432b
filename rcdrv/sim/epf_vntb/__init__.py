"""pci-epf-vntb in a layout; :mod:`rcdrv.sim.epf_vntb.function` runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from ipaddress import IPv4Address
from typing import Any, ClassVar

from rcdrv.errors import UsageError
from rcdrv.results.layout import Region
from rcdrv.sim.checks import Check, choice, integer, text
from rcdrv.sim.description import EP_PAGE, SMALLEST_EPF_BAR, G, Layout, M
from rcdrv.sim.function import EndpointFunction
from rcdrv.tap import check_name

VNTB_CONTROL_SIZE = 0x134
"""struct epf_ntb_ctrl of pci-epf-vntb; the scratchpads of both sides follow."""


class VntbPeer(str, Enum):
    """Client of pci-epf-vntb on the endpoint; as in the kernel, one per device."""

    NONE = "none"
    PINGPONG = "pingpong"
    """ntb_pingpong: answers a doorbell with a scratchpad and a doorbell."""
    NETDEV = "netdev"
    """ntb_transport with ntb_netdev and a network stack that answers ARP and ICMP echo."""
    TAP = "tap"
    """ntb_transport with ntb_netdev, as a TAP interface of the serving machine."""
    TOOL = "tool"
    """ntb_tool with a translation set for every memory window."""


@dataclass(frozen=True)
class VntbLayout:
    """Settings of pci-epf-vntb in configfs, by their names there, and of its client."""

    db_count: int = 4
    """Slots. 0 and 1 are no doorbells, so there are ``db_count - 2`` doorbells."""
    spad_count: int = 64
    num_mws: int = 1
    mw1: int = 1 * M
    mw2: int = 0
    mw3: int = 0
    mw4: int = 0
    ctrl_bar: int = -1
    """-1, here and below: the next BAR that is free, as epf_ntb_find_bar() looks for it."""
    db_bar: int = -1
    mw1_bar: int = -1
    mw2_bar: int = -1
    mw3_bar: int = -1
    mw4_bar: int = -1
    peer: VntbPeer = VntbPeer.PINGPONG
    peer_delay_ms: int = 1000
    """ntb_pingpong's ``delay_ms``."""
    peer_ip: str = "192.0.2.2"
    """The IPv4 address of the endpoint's ntb_netdev."""
    peer_prefix: int = 24
    """Length of its network's prefix; this and the following are for ``peer = "tap"``."""
    peer_name: str = "ntb-ep"
    """Name of the interface. It is created if missing; else it keeps address, MTU and state."""
    peer_netns: str = ""
    """Network namespace (ip netns) of the interface; empty: that of the endpoint's process."""
    peer_queues: int = 1
    """Queues of ntb_netdev (``ethtool -L``), for ``peer = "netdev"`` and ``"tap"``."""
    peer_queues_delay_ms: int = 0
    """How long after the link came up; 0: before that."""
    peer_max_clients: int = 0
    """ntb_transport's ``max_num_clients``."""

    @property
    def mw_sizes(self) -> tuple[int, ...]:
        return (self.mw1, self.mw2, self.mw3, self.mw4)[: self.num_mws]

    @property
    def mw_bars(self) -> tuple[int, ...]:
        """BARs of the windows; -1 for a window that pci-epf-vntb leaves without one."""
        return (self.mw1_bar, self.mw2_bar, self.mw3_bar, self.mw4_bar)[: self.num_mws]

    @property
    def transport_windows(self) -> int:
        """mw_count of ntb_transport_probe(); 0 where that fails for lack of scratchpads."""
        for_windows = self.spad_count - 4  # MW0_SZ_HIGH
        return min(self.num_mws, for_windows // 2) if for_windows >= 2 else 0

    @property
    def queue_pairs(self) -> int:
        """qp_count of ntb_transport_probe(), without use_msi.

        A ``max_num_clients`` that is not below the doorbells' limit counts for nothing, and the
        number of windows is the limit.
        """
        windows = self.transport_windows
        count = self.db_count - 2 - 1  # ilog2(vntb_epf_db_valid_mask())
        if 0 < self.peer_max_clients < count and windows:
            return self.peer_max_clients
        return min(count, windows)


def settings(layout: Layout) -> VntbLayout:
    """Return the settings of pci-epf-vntb in ``layout``."""
    found: VntbLayout = layout.tables.get("vntb", VntbLayout())
    return found


def _ipv4(value: object, path: str) -> str:
    address = text(value, path)
    try:
        return str(IPv4Address(address))
    except ValueError:
        raise UsageError(f"{path}: {address!r} is not an IPv4 address") from None


def _interface(value: object, path: str) -> str:
    try:
        return check_name(text(value, path))
    except UsageError as error:
        raise UsageError(f"{path}: {error.message}", hint=error.hint) from None


def _netns(value: object, path: str) -> str:
    name = text(value, path)
    if "/" in name or "\0" in name or name in (".", ".."):
        raise UsageError(f"{path}: {name!r} is not a name of ip netns")
    return name


_MW_SIZE = integer(0, 1 * G)
_BAR_NUMBER = integer(-1, 5)
VNTB_SCHEMA: dict[str, Check] = {
    "db_count": integer(3, 32),  # MIN_DB_COUNT, MAX_DB_COUNT
    "spad_count": integer(1, 1024),
    "num_mws": integer(1, 4),  # MAX_MW; without one, pci-epf-vntb still takes a BAR for it
    **{f"mw{number}": _MW_SIZE for number in range(1, 5)},
    "ctrl_bar": _BAR_NUMBER,
    "db_bar": _BAR_NUMBER,
    **{f"mw{number}_bar": _BAR_NUMBER for number in range(1, 5)},
    "peer": choice(VntbPeer),
    "peer_delay_ms": integer(0, 60_000),
    "peer_ip": _ipv4,
    "peer_prefix": integer(0, 32),
    "peer_name": _interface,
    "peer_netns": _netns,
    "peer_queues": integer(1, 64),  # NTB_NETDEV_MAX_QUEUES
    "peer_queues_delay_ms": integer(0, 60_000),
    "peer_max_clients": integer(0, 255),
}


class EpfVntbFunction(EndpointFunction):
    name = "epf_vntb"
    runs = "rcdrv.sim.epf_vntb.function:SimEpfVntb"
    # PCI_BASE_CLASS_MEMORY; HZ decides how long a ring waits, so it is what arm64 has by default.
    defaults: ClassVar[Mapping[str, Any]] = {"class_code": 0x0500, "hz": 250}
    table = "vntb"
    schema = VNTB_SCHEMA
    settings = VntbLayout

    def place(self, layout: Layout, source: str) -> Layout:
        """Assign a BAR to each construct without one (epf_ntb_init_epc_bar()); then the sizes."""
        vntb = settings(layout)
        names = ["ctrl_bar", "db_bar", *(f"mw{n}_bar" for n in range(1, vntb.num_mws + 1))]
        bars = {name: getattr(vntb, name) for name in names}
        start = 0
        # The kernel's second loop begins with the first window again, and never reaches the last.
        for number, name in enumerate([*names[:3], *names[2:-1]]):
            if bars[name] >= 0:
                continue
            free = layout.next_free_bar(start)
            while free is not None and free in bars.values():
                free = layout.next_free_bar(free + 1)
            if free is None and number > 2:
                vntb = replace(vntb, num_mws=number - 2)
                break
            if free is None:
                raise UsageError(f"{source}: vntb.{name}: no BAR is left for it")
            bars[name], start = free, free + 1
        placed = {name: bar for name, bar in bars.items() if bar >= 0}
        for name, bar in placed.items():
            if layout.bars[bar] is None:
                raise UsageError(f"{source}: vntb.{name}: BAR{bar} is absent")
        if len(set(placed.values())) < len(placed):
            raise UsageError(f"{source}: vntb: two of {', '.join(names)} are the same BAR")
        vntb = replace(vntb, **bars)
        if vntb.peer_queues > max(vntb.queue_pairs, 1):
            raise UsageError(
                f"{source}: vntb.peer_queues is {vntb.peer_queues}, and ntb_transport makes"
                f" {vntb.queue_pairs} queue pairs",
                hint="as many as vntb.num_mws, or as vntb.peer_max_clients if that is less than"
                " vntb.db_count - 3; vntb.db_count - 3 at most",
            )
        for bar, size in zip(vntb.mw_bars, vntb.mw_sizes, strict=True):
            if bar < 0:
                continue
            entry = layout.bar(bar)
            if size < EP_PAGE or size & (size - 1):
                raise UsageError(
                    f"{source}: vntb: a window of {size:#x} bytes", hint="a power of two"
                )
            if entry.size not in (0, size):
                raise UsageError(
                    f"{source}: vntb: BAR{bar} has {entry.size:#x} bytes, its window {size:#x}",
                    hint=f"leave bar{bar}.size out",
                )
            layout = replace(
                layout,
                bars=tuple(
                    replace(entry, size=size) if index == bar else other
                    for index, other in enumerate(layout.bars)
                ),
            )
        return replace(layout, tables={**layout.tables, "vntb": vntb}, register_bar=vntb.ctrl_bar)

    def registers_size(self, layout: Layout) -> int:
        return VNTB_CONTROL_SIZE + 8 * settings(layout).spad_count

    def bar_size(self, layout: Layout, index: int) -> int:
        """epf_ntb_config_spad_bar_alloc(), epf_ntb_db_bar_init(); a window has its size already."""
        vntb = settings(layout)
        sizes = {layout.register_bar: self.registers_size(layout), vntb.db_bar: 4 * vntb.db_count}
        return sizes.get(index, SMALLEST_EPF_BAR)

    def doorbell_place(self, layout: Layout) -> tuple[int, int]:
        bar = settings(layout).db_bar
        return bar, layout.doorbell_address % layout.bar(bar).size

    def regions(self, layout: Layout, doorbell: tuple[int, int] | None) -> dict[int, list[Region]]:
        vntb = settings(layout)
        # A shared register of the endpoint, or a word for each if it polls.
        start, size = (0, 4 * vntb.db_count) if doorbell is None else (doorbell[1], 4)
        doorbells = Region(start, size, "doorbells", "doorbell")
        spads = 4 * vntb.spad_count
        found = {
            layout.register_bar: [
                Region(0, VNTB_CONTROL_SIZE, "control block", "registers"),
                Region(VNTB_CONTROL_SIZE, spads, "own scratchpads", "window"),
                Region(VNTB_CONTROL_SIZE + spads, spads, "peer's", "window"),
            ],
            vntb.db_bar: [doorbells],
        }
        for number, (bar, size) in enumerate(zip(vntb.mw_bars, vntb.mw_sizes, strict=True), 1):
            if bar >= 0:
                found.setdefault(bar, []).append(
                    Region(0, size, f"memory window {number}", "window")
                )
        return found
