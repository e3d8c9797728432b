"""The keys of a layout file: the type and the range of each, checked one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from ipaddress import IPv4Address
from typing import Any

from rcdrv.errors import UsageError
from rcdrv.results.units import parse_size
from rcdrv.sim.description import (
    BarType,
    Dma,
    DoorbellBackend,
    G,
    Intx,
    K,
    Reset,
    T,
    Trap,
    VntbPeer,
)
from rcdrv.sim.faults import parse_fault

Check = Callable[[object, str], Any]


def _integer(low: int, high: int) -> Check:
    def check(value: object, path: str) -> int:
        if isinstance(value, str):
            value = parse_integer(value, path)
        if isinstance(value, bool) or not isinstance(value, int):
            raise UsageError(f"{path}: {value!r} is not an integer")
        if not low <= value <= high:
            raise UsageError(f"{path}: {value:#x} is not within {low:#x} and {high:#x}")
        return value

    return check


def _power_of_two(low: int, high: int) -> Check:
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


def _choice(enum: type[Enum]) -> Check:
    def check(value: object, path: str) -> Enum:
        if isinstance(value, enum):
            return value
        for member in enum:
            if member.value == value:
                return member
        choices = ", ".join(str(member.value) for member in enum)
        raise UsageError(f"{path}: {value!r} is not one of {choices}")

    return check


FUNCTIONS: dict[str, dict[str, Any]] = {
    "epf_test": {},
    # PCI_BASE_CLASS_MEMORY; HZ decides how long a ring waits, so it is what arm64 has by default.
    "epf_vntb": {"class_code": 0x0500, "hz": 250},
}
"""The endpoint functions, and which defaults are theirs."""


def _function(value: object, path: str) -> str:
    if not isinstance(value, str) or value not in FUNCTIONS:
        raise UsageError(f"{path}: {value!r} is not one of {', '.join(FUNCTIONS)}")
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
    try:
        return parse_size(text)
    except ValueError:
        raise UsageError(f"{path}: {text!r} is not an integer") from None


_LARGEST_BAR = 64 * T
BAR_KEYS = [f"bar{index}" for index in range(6)]
BAR_SCHEMA: dict[str, Check] = {
    "type": _choice(BarType),
    "size": _power_of_two(16, _LARGEST_BAR),
    "wide": _boolean,
    "prefetchable": _boolean,
}
_ADDRESS = _integer(0, (1 << 64) - 1)
DOORBELL_SCHEMA: dict[str, Check] = {
    "backend": _choice(DoorbellBackend),
    "address": _ADDRESS,
    "iova": _ADDRESS,
    "data": _integer(0, 0xFFFF_FFFF),
    "bar": _integer(0, 5),
    "offset": _integer(0, 0xFFFF_FFFC),
}
_MW_SIZE = _integer(0, 1 * G)
_BAR_NUMBER = _integer(-1, 5)
VNTB_SCHEMA: dict[str, Check] = {
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
SCHEMA: dict[str, Check] = {
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


def parse_table(value: object, path: str, schema: Mapping[str, Check]) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise UsageError(f"{path}: {value!r} is not a table")
    for key in value:
        if key not in schema:
            raise unknown_key(f"{path}.{key}", list(schema))
    return {key: schema[key](entry, f"{path}.{key}") for key, entry in value.items()}


def unknown_key(path: str, known: Sequence[str]) -> UsageError:
    from difflib import get_close_matches

    close = get_close_matches(path.rpartition(".")[2].rpartition(" ")[2], known, 1)
    hint = f"did you mean {close[0]}?" if close else f"the keys are {', '.join(known)}"
    return UsageError(f"{path}: no such key", hint=hint)
