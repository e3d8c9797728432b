"""Requirements of tests, and why an endpoint lacks them. PCI capabilities: rcdrv.pci."""

from __future__ import annotations

from collections.abc import Callable

from rcdrv.device import IrqKind
from rcdrv.epf_test.bars import is_reserved
from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.registers import Caps
from rcdrv.errors import UsageError
from rcdrv.function import Function

CAPABILITIES = {
    "doorbell": "CAPS announces DYNAMIC_INBOUND_MAPPING, which doorbells need",
    "subrange": "CAPS announces SUBRANGE_MAPPING",
    "unaligned": "CAPS announces UNALIGNED_ACCESS",
    "intx": "CAPS announces INTX",
    "msi": "the function has MSI vectors",
    "msix": "the function has MSI-X vectors",
    "reset": "the function can be reset on its own",
    **{
        f"bar{index}": f"the function has BAR{index}, it is memory, and CAPS does not reserve it"
        for index in range(6)
    },
}
"""Names that :func:`lacks` takes, and the meaning of each."""

_CAPS = {
    "doorbell": Caps.DYNAMIC_INBOUND_MAPPING,
    "subrange": Caps.SUBRANGE_MAPPING,
    "unaligned": Caps.UNALIGNED_ACCESS,
    "intx": Caps.INTX,
}
_VECTORS = {"msi": IrqKind.MSI, "msix": IrqKind.MSIX}


def lacks(
    address: str, function: Function, capability: str, driver: Callable[[], EpfTest]
) -> str | None:
    """Return why a capability is not there; None if it is.

    :param capability: a key of :data:`CAPABILITIES`
    :param driver: makes the driver, for what CAPS announces
    :raises UsageError: no such capability
    """
    if capability in _VECTORS:
        count = function.device.irq_count(_VECTORS[capability])
        return None if count else f"{address} has no {capability.upper()} vectors"
    if capability == "reset":
        return None if function.device.can_reset() else f"{address} has no function reset"
    if capability in _CAPS:
        cap, caps = _CAPS[capability], driver().caps
        missing = f"{address} does not announce {cap.name} (CAPS {int(caps):#010x})"
        return None if caps & cap else missing
    if capability not in CAPABILITIES:
        raise UsageError(
            f"{capability!r} is no capability", hint=f"one of {', '.join(CAPABILITIES)}"
        )
    index = int(capability[-1])
    bar = function.bars[index]
    if bar is None or not bar.is_memory:
        return f"{address} has no memory BAR{index}"
    return f"{address} reserves BAR{index}" if is_reserved(driver(), index) else None
