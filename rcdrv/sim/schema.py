"""Keys of a layout file, with the type and range of each."""

from __future__ import annotations

from rcdrv.errors import UsageError
from rcdrv.sim.checks import Check, boolean, choice, integer, power_of_two, text
from rcdrv.sim.description import (
    BarType,
    Dma,
    DoorbellBackend,
    G,
    Intx,
    K,
    MaskedVector,
    Reset,
    T,
    Trap,
)
from rcdrv.sim.faults import parse_fault
from rcdrv.sim.functions import FUNCTIONS


def _function(value: object, path: str) -> str:
    if not isinstance(value, str) or value not in FUNCTIONS:
        raise UsageError(f"{path}: {value!r} is not one of {', '.join(FUNCTIONS)}")
    return str(value)


def _faults(value: object, path: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise UsageError(f"{path}: {value!r} is not a list of strings")
    for index, fault in enumerate(value):
        parse_fault(text(fault, f"{path}[{index}]"), f"{path}[{index}]")
    return tuple(value)


_LARGEST_BAR = 64 * T
BAR_KEYS = [f"bar{index}" for index in range(6)]
BAR_SCHEMA: dict[str, Check] = {
    "type": choice(BarType),
    "size": power_of_two(16, _LARGEST_BAR),
    "wide": boolean,
    "prefetchable": boolean,
}
_ADDRESS = integer(0, (1 << 64) - 1)
DOORBELL_SCHEMA: dict[str, Check] = {
    "backend": choice(DoorbellBackend),
    "address": _ADDRESS,
    "iova": _ADDRESS,
    "data": integer(0, 0xFFFF_FFFF),
    "bar": integer(0, 5),
    "offset": integer(0, 0xFFFF_FFFC),
}
SCHEMA: dict[str, Check] = {
    "description": text,
    "function": _function,
    "vendor": integer(0, 0xFFFE),
    "device": integer(0, 0xFFFF),
    "class_code": integer(0, 0xFFFF),
    "intx_pin": integer(0, 4),
    "link_speed": integer(1, 6),
    "link_width": power_of_two(1, 16),
    # pci_epc_set_msi(), pci_epc_set_msix()
    "msi": integer(0, 32),
    "msix": integer(0, 2048),
    "msix_bar": integer(-1, 5),
    "msix_table": integer(-1, 0xFFFF_FFF8),
    "msix_pba": integer(-1, 0xFFFF_FFF8),
    "msix_masked": choice(MaskedVector),
    "intx": choice(Intx),
    "announce_intx": boolean,
    "register_bar": integer(-1, 5),
    "align": power_of_two(4, 1 * G),
    "inbound_windows": integer(1, 256),
    "dynamic_inbound": boolean,
    "subrange": boolean,
    "unaligned_access": boolean,
    "outbound_align": power_of_two(4, 1 * G),
    "outbound_size": integer(4 * K, 1 * T),
    "dma": choice(Dma),
    "ats": boolean,
    "reset": choice(Reset),
    "caps": integer(-1, 0xFFFF_FFFF),
    "ep_iommu": boolean,
    # The kernel's choices are 100, 250, 300 and 1000 (kernel/Kconfig.hz).
    "hz": integer(1, 10_000),
    "trap": choice(Trap),
    "faults": _faults,
}
