"""An endpoint as data: what one TOML file says about a controller and its endpoint function.

The presets in ``presets/`` are such files, and so is whatever a user or the fuzzer writes. A
file is checked completely when it is loaded: every unknown key, wrong type and impossible value
is a :class:`UsageError` that names the key and the cure. A :class:`Layout` that exists can be
built.

Keys that a file leaves out have the defaults of :class:`Layout`, and BAR sizes those of the
kernel's pci-epf-test. Integers may be given as strings with a K, M, G or T suffix.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from importlib import import_module
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from rcdrv.errors import UsageError
from rcdrv.files import read_text
from rcdrv.sim.faults import parse_fault

K, M, G, T = 1 << 10, 1 << 20, 1 << 30, 1 << 40

REGISTERS_SIZE = 0x80
"""The test registers, padded (pci_epf_test_alloc_space); the MSI-X table follows."""

MSIX_ENTRY_SIZE = 16

VNTB_CONTROL_SIZE = 0x134
"""struct epf_ntb_ctrl of pci-epf-vntb; the scratchpads of both sides follow."""

DEFAULT_BAR_SIZES = (128 * K, 128 * K, 128 * K, 128 * K, 128 * K, 1 * M)
"""pci-epf-test.c, default_bar_size."""

SMALLEST_EPF_BAR = 128
"""pci-epf-core.c, pci_epf_get_required_bar_size."""

EP_PAGE = 4 * K
"""The page size of the endpoint's kernel and IOMMU."""

_IOVA_TOP = 0xFFFF_F000
"""Where dma_map_resource() puts a lone page: the last one below 4 GiB (drivers/iommu/iova.c)."""


class BarType(str, Enum):
    """enum pci_epc_bar_type."""

    PROGRAMMABLE = "programmable"
    FIXED = "fixed"
    RESIZABLE = "resizable"
    """Has the Resizable BAR capability and at least 1 MiB."""
    RESERVED = "reserved"
    """Shows the controller's own registers; no endpoint function may use it."""
    DISABLED = "disabled"
    """The same as leaving it out: there is no such BAR."""


class Intx(str, Enum):
    """What the controller's raise_irq does for INTx."""

    NONE = "none"
    """It answers an error (dw_pcie_ep_raise_intx_irq)."""
    PULSE = "pulse"
    """It asserts the line for 1-2 ms."""
    LEVEL = "level"
    """It holds the line until the host has handled the interrupt."""


class Dma(str, Enum):
    """What kind of channels the endpoint's DMA engine has."""

    NONE = "none"
    SLAVE = "slave"
    """Between local and PCI memory, one direction a channel: DesignWare eDMA."""
    MEMCPY = "memcpy"


class Reset(str, Enum):
    """How the function can be reset."""

    FLR = "flr"
    """Function level reset: config space only; the endpoint's software does not notice."""
    BUS = "bus"
    """The link is bounced, and the endpoint's software sets the function up again."""
    NONE = "none"


class DoorbellBackend(str, Enum):
    """Where ENABLE_DOORBELL finds a doorbell (drivers/pci/endpoint/pci-ep-msi.c)."""

    NONE = "none"
    MSI = "msi"
    """The endpoint's own MSI controller (GIC ITS), mapped into a BAR on demand."""
    EMBEDDED = "embedded"
    """An interrupt-emulation register of the DMA engine, mapped into a BAR on demand."""
    EXPOSED = "exposed"
    """The same register, in a reserved BAR that always shows it."""


class VntbPeer(str, Enum):
    """What runs on the endpoint, on top of pci-epf-vntb (one client a device, as in the kernel)."""

    NONE = "none"
    PINGPONG = "pingpong"
    """ntb_pingpong: answers a doorbell with a scratchpad and a doorbell."""
    NETDEV = "netdev"
    """ntb_transport with ntb_netdev and a network stack that answers ARP and ICMP echo."""
    TOOL = "tool"
    """As ntb_tool with a translation set for every memory window."""


class Trap(str, Enum):
    """Which BAR accesses reach the endpoint as messages."""

    AUTO = "auto"
    """``all`` when there is an access log, else ``sparse``."""
    SPARSE = "sparse"
    """Those of the doorbell's and the MSI-X structures' pages, and BARs that cannot be mapped."""
    ALL = "all"


@dataclass(frozen=True)
class BarLayout:
    """One BAR. ``size`` is in bytes, a power of two from 16."""

    type: BarType = BarType.PROGRAMMABLE
    size: int = 0
    wide: bool = False
    """A 64-bit BAR: the next BAR register is its upper half."""
    prefetchable: bool = False


@dataclass(frozen=True)
class DoorbellLayout:
    """The doorbell register, in the endpoint's own address space or in a reserved BAR."""

    backend: DoorbellBackend = DoorbellBackend.NONE
    address: int = 0
    """On demand: the endpoint's physical address of the 32-bit register."""
    iova: int = 0
    """On demand with ``ep_iommu``: the address instead; 0 takes the last page below 4 GiB."""
    data: int = 0
    """What rings it: the MSI data (the first event number), or 0 for an embedded one."""
    bar: int = 0
    """Exposed: the BAR and the offset in it."""
    offset: int = 0


@dataclass(frozen=True)
class VntbLayout:
    """What is set in configfs of pci-epf-vntb, under the names that it has there."""

    db_count: int = 4
    """Slots: 0 and 1 are no doorbells, so these are ``db_count - 2`` doorbells."""
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

    @property
    def mw_sizes(self) -> tuple[int, ...]:
        return (self.mw1, self.mw2, self.mw3, self.mw4)[: self.num_mws]

    @property
    def mw_bars(self) -> tuple[int, ...]:
        """-1 for a window that pci-epf-vntb leaves without a BAR."""
        return (self.mw1_bar, self.mw2_bar, self.mw3_bar, self.mw4_bar)[: self.num_mws]


@dataclass(frozen=True)
class Layout:
    """A whole endpoint. Build one with :func:`load_layout` or :func:`parse_layout`."""

    description: str = ""
    function: str = "epf_test"
    """The endpoint function behind the controller."""

    vendor: int = 0x104C
    device: int = 0xB500
    class_code: int = 0xFF00
    """Base class and subclass."""
    intx_pin: int = 1
    """Config space INTERRUPT_PIN: 0 none, 1-4 INTA-INTD. pci-epf-test announces INTA always."""
    link_speed: int = 3
    """PCIe generation."""
    link_width: int = 1

    msi: int = 0
    """MSI vectors; 0 leaves the capability out. The host sees the next power of two."""
    msix: int = 0
    """MSI-X vectors, likewise."""
    msix_bar: int = -1
    """BAR of the MSI-X table and PBA; -1: behind the registers, in the register BAR."""
    msix_table: int = -1
    msix_pba: int = -1
    intx: Intx = Intx.NONE
    announce_intx: bool = False
    """CAPS has INTX (struct pci_epc_features.intx_capable)."""

    bars: tuple[BarLayout | None, ...] = (None,) * 6
    register_bar: int = -1
    """-1: the first that an endpoint function may use, as pci-epf-test does."""
    align: int = 4 * K
    """Granularity of inbound windows: their targets and sizes are multiples of it."""
    inbound_windows: int = 16
    """One for each BAR that is not reserved, two while it is mapped in halves."""
    dynamic_inbound: bool = True
    """CAPS has DYNAMIC_INBOUND_MAPPING."""
    subrange: bool = True
    """A BAR can be mapped in pieces; CAPS has SUBRANGE_MAPPING."""
    unaligned_access: bool = True
    """The controller driver aligns outbound addresses itself; CAPS has UNALIGNED_ACCESS."""
    outbound_align: int = 4 * K
    """Granularity of outbound windows; where ``unaligned_access`` is off, address bits below it
    are lost."""
    outbound_size: int = 64 * M
    """The endpoint's address space for all its outbound windows together."""
    dma: Dma = Dma.NONE
    ats: bool = False
    """Config space announces Address Translation Services."""
    reset: Reset = Reset.FLR
    caps: int = -1
    """-1: CAPS follows from the rest. Else its value, for endpoints with older kernels."""

    doorbell: DoorbellLayout = field(default_factory=DoorbellLayout)
    vntb: VntbLayout = field(default_factory=VntbLayout)
    """Only for the function ``epf_vntb``."""
    ep_iommu: bool = False
    """The endpoint's own IOMMU translates what its PCIe controller accesses."""

    hz: int = 1000
    """CONFIG_HZ of the endpoint's kernel. A 1 ms delayed work takes one to two jiffies, so a
    command is taken within 2 ms at 1000 and within 8 ms at 250, the default of arm64."""
    trap: Trap = Trap.AUTO
    faults: tuple[str, ...] = ()
    """NAME or NAME=ARGUMENT, as :mod:`rcdrv.sim.faults` lists them."""

    def bar(self, index: int) -> BarLayout:
        """The BAR at ``index``, which must exist."""
        bar = self.bars[index]
        if bar is None:
            raise UsageError(f"the layout has no BAR{index}")
        return bar

    def next_free_bar(self, start: int) -> int | None:
        """The first BAR from ``start`` on that an endpoint function may use.

        As pci_epc_get_next_free_bar(), but the upper half of any 64-bit BAR is passed over: the
        kernel looks for one only before ``start``, and the hardware has no BAR there.
        """
        for index in range(start, 6):
            bar = self.bars[index]
            if bar is not None and bar.type is not BarType.RESERVED:
                return index
        return None

    @property
    def msi_capable(self) -> int:
        """MSI vectors that config space announces."""
        return 1 << (self.msi - 1).bit_length() if self.msi else 0

    @property
    def doorbell_address(self) -> int:
        """The endpoint's bus address of an on-demand doorbell."""
        doorbell = self.doorbell
        if not self.ep_iommu:
            return doorbell.address
        return doorbell.iova or _IOVA_TOP | doorbell.address % EP_PAGE

    def doorbell_place(self) -> tuple[int, int] | None:
        """(BAR, offset) at which an enabled doorbell is, or None where ENABLE must fail."""
        doorbell = self.doorbell
        if doorbell.backend is DoorbellBackend.NONE:
            return None
        if doorbell.backend is DoorbellBackend.EXPOSED:
            return doorbell.bar, doorbell.offset
        if self.function == "epf_vntb":
            bar = self.vntb.db_bar
            return bar, self.doorbell_address % self.bar(bar).size
        index = self.next_free_bar(self.register_bar + 1)
        if index is None:
            return None
        # pci_epf_align_inbound_addr(): the BAR's base is aligned to its size.
        return index, self.doorbell_address % self.bar(index).size


# -- reading ----------------------------------------------------------------------------------


def preset_names() -> list[str]:
    """The presets that are part of this package."""
    from importlib.resources import files

    names = (entry.name for entry in files("rcdrv.sim").joinpath("presets").iterdir())
    return sorted(name[: -len(".toml")] for name in names if name.endswith(".toml"))


def load_layout(spec: str, overrides: Mapping[str, object] | None = None) -> Layout:
    """Load ``PRESET`` or ``FILE.toml``, with ``,key=value`` appended any number of times.

    :param overrides: more keys, applied last. A key of a table is dotted (``bar2.size``);
        ``fault`` adds one fault, ``faults`` replaces all. Values may be text, as on a command line.
    :raises UsageError: no such preset or file, or the first thing wrong with the contents
    """
    name, *assignments = spec.split(",")
    table = _read(name)
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not key or not equals:
            raise UsageError(
                f"{spec!r}: {assignment!r} is not key=value", hint="for example rk3588,hz=250"
            )
        _override(table, key, value)
    for key, override in (overrides or {}).items():
        _override(table, key, override)
    return parse_layout(table, name)


def parse_layout(table: Mapping[str, object], source: str = "layout") -> Layout:
    """Check what a TOML document says.

    :param table: the document, as tomllib reads it
    :param source: how errors name it
    :raises UsageError: the first thing that is wrong, with its key
    """
    values: dict[str, Any] = {}
    bars: list[BarLayout | None] = [None] * 6
    for key, value in table.items():
        path = f"{source}: {key}"
        if key in _BAR_KEYS:
            bar = BarLayout(**_parse_table(value, path, _BAR_SCHEMA))
            bars[_BAR_KEYS.index(key)] = None if bar.type is BarType.DISABLED else bar
        elif key == "doorbell":
            values[key] = DoorbellLayout(**_parse_table(value, path, _DOORBELL_SCHEMA))
        elif key == "vntb":
            values[key] = VntbLayout(**_parse_table(value, path, _VNTB_SCHEMA))
        elif key in _SCHEMA:
            values[key] = _SCHEMA[key](value, path)
        else:
            raise _unknown(path, [*_SCHEMA, *_BAR_KEYS, "doorbell", "vntb"])
    values = {**_FUNCTIONS.get(values.get("function", ""), {}), **values}
    return _resolve(Layout(**values, bars=tuple(bars)), source)


def dump_layout(layout: Layout) -> str:
    """The layout as a TOML document that :func:`parse_layout` turns into an equal one."""
    lines = _dump_fields(layout, Layout(**_FUNCTIONS[layout.function]))
    if layout.function != Layout.function:
        lines.insert(0, f'function = "{layout.function}"')
    for index, bar in enumerate(layout.bars):
        if bar is not None:
            lines += [
                f"\n[bar{index}]",
                f'type = "{bar.type.value}"',
                *_dump_fields(bar, BarLayout()),
            ]
    lines += ["\n[doorbell]", *_dump_fields(layout.doorbell, DoorbellLayout())]
    if layout.vntb != VntbLayout():
        lines += ["\n[vntb]", *_dump_fields(layout.vntb, VntbLayout())]
    return "\n".join(lines) + "\n"


def _dump_fields(one: Any, default: Any) -> list[str]:
    lines = []
    for entry in fields(one):
        value = getattr(one, entry.name)
        if value == getattr(default, entry.name) or isinstance(value, DoorbellLayout | VntbLayout):
            continue
        if entry.name not in ("bars", "function", "type"):
            lines.append(f"{entry.name} = {_dump_value(value)}")
    return lines


def _dump_value(value: object) -> str:
    if isinstance(value, Enum):
        return _dump_value(value.value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value) if value < 1024 else hex(value)
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_dump_value, value)) + "]"
    # JSON's escapes are a subset of TOML's, which has to escape DEL too.
    import json

    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _read(name: str) -> dict[str, object]:
    if name.endswith(".toml"):
        return _parse_toml(read_text(Path(name)), name)
    presets = preset_names()
    if name not in presets:
        raise UsageError(
            f"no preset {name!r}", hint=f"one of {', '.join(presets)}, or the path of a .toml file"
        )
    from importlib.resources import files

    resource = files("rcdrv.sim").joinpath("presets").joinpath(f"{name}.toml")
    return _parse_toml(resource.read_text(encoding="utf-8"), name)


def _parse_toml(text: str, name: str) -> dict[str, object]:
    # The same library under two names: it joined the standard library in Python 3.11.
    toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        document: dict[str, object] = toml.loads(text)
    except ValueError as error:
        raise UsageError(f"{name}: not TOML: {error}") from None
    except RecursionError:
        raise UsageError(f"{name}: nested too deeply") from None
    return document


def _override(table: dict[str, object], key: str, value: object) -> None:
    if isinstance(value, str):
        value = _from_text(key, value)
    if key == "fault":
        faults = table.get("faults", [])
        table["faults"] = [*(faults if isinstance(faults, list | tuple) else []), value]
        return
    *tables, leaf = key.split(".")
    for name in tables:
        inner = table.setdefault(name, {})
        if not isinstance(inner, dict):
            raise UsageError(f"{key}: {name} is not a table")
        table = inner
    table[leaf] = value


def _from_text(key: str, text: str) -> object:
    if key in ("fault", "description"):
        return text
    if key == "faults":
        return [name for name in text.split("+") if name]
    return {"true": True, "false": False}.get(text, text)


# -- the schema -------------------------------------------------------------------------------

_Check = Callable[[object, str], Any]


def _integer(low: int, high: int) -> _Check:
    def check(value: object, path: str) -> int:
        if isinstance(value, str):
            value = parse_integer(value, path)
        if isinstance(value, bool) or not isinstance(value, int):
            raise UsageError(f"{path}: {value!r} is not an integer")
        if not low <= value <= high:
            raise UsageError(f"{path}: {value:#x} is not within {low:#x} and {high:#x}")
        return value

    return check


def _power_of_two(low: int, high: int) -> _Check:
    integer = _integer(low, high)

    def check(value: object, path: str) -> int:
        number: int = integer(value, path)
        if number & (number - 1):
            raise UsageError(
                f"{path}: {number:#x} is not a power of two",
                hint=f"the next one is {1 << number.bit_length():#x}",
            )
        return number

    return check


def _boolean(value: object, path: str) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{path}: {value!r} is not true or false")
    return value


def _text(value: object, path: str) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{path}: {value!r} is not a string")
    return value


def _choice(enum: type[Enum]) -> _Check:
    def check(value: object, path: str) -> Enum:
        if isinstance(value, enum):
            return value
        for member in enum:
            if member.value == value:
                return member
        choices = ", ".join(str(member.value) for member in enum)
        raise UsageError(f"{path}: {value!r} is not one of {choices}")

    return check


_FUNCTIONS: dict[str, dict[str, Any]] = {
    "epf_test": {},
    # PCI_BASE_CLASS_MEMORY; HZ decides how long a ring waits, so it is what arm64 has by default.
    "epf_vntb": {"class_code": 0x0500, "hz": 250},
}
"""The endpoint functions, and which defaults are theirs."""


def _function(value: object, path: str) -> str:
    if not isinstance(value, str) or value not in _FUNCTIONS:
        raise UsageError(f"{path}: {value!r} is not one of {', '.join(_FUNCTIONS)}")
    return str(value)


def _ipv4(value: object, path: str) -> str:
    text = _text(value, path)
    try:
        return str(IPv4Address(text))
    except ValueError:
        raise UsageError(f"{path}: {text!r} is not an IPv4 address") from None


def _faults(value: object, path: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise UsageError(f"{path}: {value!r} is not a list of strings")
    for index, fault in enumerate(value):
        parse_fault(_text(fault, f"{path}[{index}]"), f"{path}[{index}]")
    return tuple(value)


def parse_integer(text: str, path: str) -> int:
    """An integer as a user writes it: decimal, 0x, 0o or 0b, with K, M, G or T for powers of 1024.

    :raises UsageError: it is none
    """
    scale = {"K": K, "M": M, "G": G, "T": T}.get(text[-1:].upper(), 1)
    try:
        return int(text[:-1] if scale > 1 else text, 0) * scale
    except ValueError:
        raise UsageError(f"{path}: {text!r} is not an integer") from None


_LARGEST_BAR = 64 * T
_BAR_KEYS = [f"bar{index}" for index in range(6)]
_BAR_SCHEMA: dict[str, _Check] = {
    "type": _choice(BarType),
    "size": _power_of_two(16, _LARGEST_BAR),
    "wide": _boolean,
    "prefetchable": _boolean,
}
_ADDRESS = _integer(0, (1 << 64) - 1)
_DOORBELL_SCHEMA: dict[str, _Check] = {
    "backend": _choice(DoorbellBackend),
    "address": _ADDRESS,
    "iova": _ADDRESS,
    "data": _integer(0, 0xFFFF_FFFF),
    "bar": _integer(0, 5),
    "offset": _integer(0, 0xFFFF_FFFC),
}
_MW_SIZE = _integer(0, 1 * G)
_BAR_NUMBER = _integer(-1, 5)
_VNTB_SCHEMA: dict[str, _Check] = {
    "db_count": _integer(3, 32),  # MIN_DB_COUNT, MAX_DB_COUNT
    "spad_count": _integer(1, 1024),
    "num_mws": _integer(1, 4),  # MAX_MW; without one, pci-epf-vntb still takes a BAR for it
    **{f"mw{number}": _MW_SIZE for number in range(1, 5)},
    "ctrl_bar": _BAR_NUMBER,
    "db_bar": _BAR_NUMBER,
    **{f"mw{number}_bar": _BAR_NUMBER for number in range(1, 5)},
    "peer": _choice(VntbPeer),
    "peer_delay_ms": _integer(0, 60_000),
    "peer_ip": _ipv4,
}
_SCHEMA: dict[str, _Check] = {
    "description": _text,
    "function": _function,
    "vendor": _integer(0, 0xFFFE),
    "device": _integer(0, 0xFFFF),
    "class_code": _integer(0, 0xFFFF),
    "intx_pin": _integer(0, 4),
    "link_speed": _integer(1, 6),
    "link_width": _power_of_two(1, 16),
    # pci_epc_set_msi(), pci_epc_set_msix()
    "msi": _integer(0, 32),
    "msix": _integer(0, 2048),
    "msix_bar": _integer(-1, 5),
    "msix_table": _integer(-1, 0xFFFF_FFF8),
    "msix_pba": _integer(-1, 0xFFFF_FFF8),
    "intx": _choice(Intx),
    "announce_intx": _boolean,
    "register_bar": _integer(-1, 5),
    "align": _power_of_two(4, 1 * G),
    "inbound_windows": _integer(1, 256),
    "dynamic_inbound": _boolean,
    "subrange": _boolean,
    "unaligned_access": _boolean,
    "outbound_align": _power_of_two(4, 1 * G),
    "outbound_size": _integer(4 * K, 1 * T),
    "dma": _choice(Dma),
    "ats": _boolean,
    "reset": _choice(Reset),
    "caps": _integer(-1, 0xFFFF_FFFF),
    "ep_iommu": _boolean,
    # The kernel's choices are 100, 250, 300 and 1000 (kernel/Kconfig.hz).
    "hz": _integer(1, 10_000),
    "trap": _choice(Trap),
    "faults": _faults,
}


def _parse_table(value: object, path: str, schema: Mapping[str, _Check]) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise UsageError(f"{path}: {value!r} is not a table")
    for key in value:
        if key not in schema:
            raise _unknown(f"{path}.{key}", list(schema))
    return {key: schema[key](entry, f"{path}.{key}") for key, entry in value.items()}


def _unknown(path: str, known: Sequence[str]) -> UsageError:
    from difflib import get_close_matches

    close = get_close_matches(path.rpartition(".")[2].rpartition(" ")[2], known, 1)
    hint = f"did you mean {close[0]}?" if close else f"the keys are {', '.join(known)}"
    return UsageError(f"{path}: no such key", hint=hint)


# -- what follows from other keys, and what cannot go together --------------------------------


def _resolve(layout: Layout, source: str) -> Layout:
    """Fill in what the kernel would derive, then check that all of it fits together."""
    if layout.function == "epf_vntb":
        layout = _place_vntb(layout, source)
    register_bar = layout.register_bar
    if register_bar < 0:
        first = layout.next_free_bar(0)
        if first is None:
            raise UsageError(
                f"{source}: no BAR for the registers",
                hint="give at least one BAR another type than reserved",
            )
        register_bar = first
    layout = replace(layout, register_bar=register_bar)
    usable = [bar for bar in layout.bars if bar is not None and bar.type is not BarType.RESERVED]
    # pci_epf_test_set_bar() goes on without a BAR that gets no window, unless it is that of the
    # registers.
    needed = len(usable)
    if layout.function == "epf_test":
        needed = sum(
            bar is not None and bar.type is not BarType.RESERVED
            for bar in layout.bars[: register_bar + 1]
        )
    if needed > layout.inbound_windows:
        raise UsageError(
            f"{source}: inbound_windows: {layout.inbound_windows} are too few for {needed} BARs",
            hint=f"at least {needed}, or fewer BARs",
        )
    bars = [
        bar if bar is None or bar.size else replace(bar, size=_default_size(layout, index, source))
        for index, bar in enumerate(layout.bars)
    ]
    layout = replace(layout, bars=tuple(bars))
    if layout.msix:
        layout = _place_msix(layout)
    for index, bar in enumerate(bars):
        if bar is not None:
            _check_bar(layout, index, bar, f"{source}: bar{index}")
    _check_registers(layout, source)
    _check_doorbell(layout, source)
    return layout


def _place_vntb(layout: Layout, source: str) -> Layout:
    """epf_ntb_init_epc_bar(): a BAR for each construct that has none. Then their sizes."""
    vntb = layout.vntb
    names = ["ctrl_bar", "db_bar", *(f"mw{n}_bar" for n in range(1, vntb.num_mws + 1))]
    bars = {name: getattr(vntb, name) for name in names}
    start = 0
    # The kernel's second loop begins with the first window once more, so it never gets to the last.
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
    for bar, size in zip(vntb.mw_bars, vntb.mw_sizes, strict=True):
        if bar < 0:
            continue
        entry = layout.bar(bar)
        if size < EP_PAGE or size & (size - 1):
            raise UsageError(f"{source}: vntb: a window of {size:#x} bytes", hint="a power of two")
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
    return replace(layout, vntb=vntb, register_bar=vntb.ctrl_bar)


def _default_size(layout: Layout, index: int, source: str) -> int:
    """pci_epf_get_required_bar_size() of what pci_epf_test_alloc_space() asks for."""
    bar = layout.bar(index)
    if bar.type in (BarType.FIXED, BarType.RESERVED):
        raise UsageError(
            f"{source}: bar{index}.size is missing",
            hint=f"the hardware decides the size of a {bar.type.value} BAR, so it must be given",
        )
    size = DEFAULT_BAR_SIZES[index]
    if layout.function == "epf_vntb":
        # epf_ntb_config_spad_bar_alloc(), epf_ntb_db_bar_init(); a window has its size already.
        control = VNTB_CONTROL_SIZE + 8 * layout.vntb.spad_count
        size = {layout.register_bar: control, layout.vntb.db_bar: 4 * layout.vntb.db_count}.get(
            index, SMALLEST_EPF_BAR
        )
    elif index == layout.register_bar:
        size = REGISTERS_SIZE
        if layout.msix and layout.msix_bar < 0:
            size += layout.msix * MSIX_ENTRY_SIZE + _pba_size(layout.msix)
    size = max(size, SMALLEST_EPF_BAR, 1 * M if bar.type is BarType.RESIZABLE else 0)
    return 1 << (size - 1).bit_length()


def _pba_size(vectors: int) -> int:
    return -(-vectors // 64) * 8


def _place_msix(layout: Layout) -> Layout:
    bar = layout.register_bar if layout.msix_bar < 0 else layout.msix_bar
    table = layout.msix_table
    if table < 0:
        table = REGISTERS_SIZE if bar == layout.register_bar else 0
    pba = layout.msix_pba
    if pba < 0:
        pba = table + layout.msix * MSIX_ENTRY_SIZE
    return replace(layout, msix_bar=bar, msix_table=table, msix_pba=pba)


def _check_bar(layout: Layout, index: int, bar: BarLayout, path: str) -> None:
    if bar.type is BarType.RESIZABLE and bar.size < 1 * M:
        raise UsageError(f"{path}.size: a resizable BAR has at least 1M, not {bar.size:#x}")
    if not bar.wide and bar.size > 2 * G:
        raise UsageError(
            f"{path}.size: {bar.size:#x} does not fit a 32-bit BAR",
            hint="set wide = true, or make it 2G at most",
        )
    if bar.wide and index == 5:
        raise UsageError(f"{path}.wide: BAR5 has no next BAR for its upper half")
    if bar.wide and layout.bars[index + 1] is not None:
        raise UsageError(
            f"{path}.wide: BAR{index + 1} is its upper half",
            hint=f"remove bar{index + 1} or set bar{index}.wide = false",
        )


def _check_registers(layout: Layout, source: str) -> None:
    bar = layout.bars[layout.register_bar]
    path = f"{source}: register_bar"
    if bar is None or bar.type is BarType.RESERVED:
        state = "absent" if bar is None else "reserved"
        raise UsageError(f"{path}: BAR{layout.register_bar} is {state}")
    needed = REGISTERS_SIZE
    if layout.function == "epf_vntb":
        needed = VNTB_CONTROL_SIZE + 8 * layout.vntb.spad_count
    if bar.size < needed:
        raise UsageError(
            f"{source}: bar{layout.register_bar}.size: the registers need {needed:#x} bytes"
        )
    if not layout.msix:
        return
    table_bar = layout.bars[layout.msix_bar]
    if table_bar is None:
        raise UsageError(f"{source}: msix_bar: BAR{layout.msix_bar} is absent")
    parts = (
        ("msix_table", layout.msix_table, layout.msix * MSIX_ENTRY_SIZE),
        ("msix_pba", layout.msix_pba, _pba_size(layout.msix)),
    )
    for key, start, size in parts:
        if start % 8:
            raise UsageError(f"{source}: {key}: {start:#x} is not a multiple of 8")
        if start + size > table_bar.size:
            raise UsageError(
                f"{source}: msix: {layout.msix} vectors do not fit BAR{layout.msix_bar}: {key} ends"
                f" at {start + size:#x}, the BAR at {table_bar.size:#x}",
                hint=f"make bar{layout.msix_bar}.size larger or msix smaller",
            )
        if layout.msix_bar == layout.register_bar and start < 0x40:
            raise UsageError(f"{source}: {key}: {start:#x} is inside the registers")


def _check_doorbell(layout: Layout, source: str) -> None:
    doorbell = layout.doorbell
    path = f"{source}: doorbell"
    if doorbell.backend is DoorbellBackend.EXPOSED:
        bar = layout.bars[doorbell.bar]
        if bar is None:
            raise UsageError(f"{path}.bar: BAR{doorbell.bar} is absent")
        if doorbell.offset % 4 or doorbell.offset + 4 > bar.size:
            raise UsageError(
                f"{path}.offset: {doorbell.offset:#x} is no 32-bit register of BAR{doorbell.bar}",
                hint=f"a multiple of 4 below {bar.size:#x}",
            )
    elif doorbell.backend is not DoorbellBackend.NONE:
        # pci_epf_alloc_doorbell_embedded() refuses an unaligned register.
        for key, address in (("address", doorbell.address), ("iova", doorbell.iova)):
            if address % 4:
                raise UsageError(f"{path}.{key}: {address:#x} is not a multiple of 4")
