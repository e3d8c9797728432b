"""Config space: the first checks of a compliance test. Every write is undone.

Under kernel VFIO BARs, IDs and COMMAND's INTX_DISABLE and MEMORY are the kernel's virtual copies
(drivers/vfio/pci/vfio_pci_config.c); capabilities are read from the device.
"""

from __future__ import annotations

from rcdrv import parts, pci
from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.more.case import Progress, case, list_judged, skip
from rcdrv.epf_test.registers import BLOCK_SIZE
from rcdrv.verdict import NotPassed, Reason

_READ_ONLY = {
    0x00: "VENDOR_ID",
    0x02: "DEVICE_ID",
    0x0A: "class",
    0x2C: "SUBSYSTEM_VENDOR_ID",
    0x2E: "SUBSYSTEM_ID",
}


_PUT_BACK = "nothing: what is written is read-only, or put back at once"


def _bad(message: str, hint: str) -> NotPassed:
    return NotPassed(Reason.BAD_CONFIG, message, hint=hint)


@case("config.CAPABILITIES", "both capability lists end, and what is in them fits")
def capabilities(driver: EpfTest, _progress: Progress) -> str:
    """Walk both capability lists, and decode the known capabilities.

    :raises EndpointError: a list loops or leaves its range, or a capability does not fit
    """
    config = driver.function.config
    found = list(config.capabilities())
    config.msi_vectors(), config.msix(), config.resizable_bars()
    express = config.express()
    if express is None or not express.is_endpoint:
        raise _bad(
            "no PCI Express capability of an endpoint",
            "a PCIe function must have one (7.5.3): is the controller in endpoint mode?",
        )
    return ", ".join(cap.name for cap in found)


@case("config.READ_ONLY", "read-only registers take no write", risk=_PUT_BACK)
def read_only(driver: EpfTest, _progress: Progress) -> str:
    """Write the complement to registers that a host must not change."""
    window = driver.function.config.window
    for offset, name in _READ_ONLY.items():
        before = window.read16(offset)
        window.write16(offset, before ^ 0xFFFF)
        after = window.read16(offset)
        if after != before:
            window.write16(offset, before)
            raise _bad(
                f"{name} took a write: {before:#06x} became {after:#06x} (put back)",
                "the controller leaves its DBI write enable on (dw_pcie_dbi_ro_wr_en())",
            )
    return ", ".join(_READ_ONLY.values())


@case("config.BAR_SIZE", "BARs size as what the host has found", risk=_PUT_BACK)
def bar_sizes(driver: EpfTest, _progress: Progress) -> str:
    """Size each BAR by writing all ones, and compare the size with the host's."""
    sized = []
    for bar in driver.function.bars:
        if bar is None or not bar.is_memory:
            continue
        mask = driver.function.config.bar_mask(bar.index, is_64bit=bar.is_64bit)
        bits = 64 if bar.is_64bit else 32
        size = (1 << bits) - (mask & ~0xF)
        if size != bar.size:
            raise _bad(
                f"BAR{bar.index} sizes as {size:#x} bytes, and the host has found {bar.size:#x}",
                "the BAR's mask was changed after the host enumerated it: rcdrv rescan",
            )
        sized.append(f"BAR{bar.index} {size:#x}")
    return ", ".join(sized)


@case(
    "config.MSIX_PLACE",
    "the MSI-X table and PBA are in their BAR, apart and not over the registers",
    needs="MSI-X",
)
def msix_place(driver: EpfTest, _progress: Progress) -> str:
    msix = driver.function.config.msix()
    if msix is None:
        raise skip(Reason.NO_VECTORS, "no MSI-X")
    pba_size = -(-msix.vectors // 64) * 8
    areas = {
        "table": (*msix.place, msix.table_size),
        "PBA": (msix.pba_bar, msix.pba_offset, pba_size),
    }
    for name, (index, offset, size) in areas.items():
        bar = driver.function.bars[index] if index < 6 else None
        if bar is None or offset + size > bar.size:
            what = f"which has {bar.size:#x}" if bar is not None else "which is not there"
            raise _bad(
                f"the MSI-X {name} is at BAR{index}+{offset:#x}, {size:#x} bytes, {what}",
                "msix_table_offset of pci-epf-test, or another BAR is smaller than it asked for",
            )
        if index == driver.reg_bar and offset < BLOCK_SIZE:
            raise _bad(
                f"the MSI-X {name} at BAR{index}+{offset:#x} is over the test registers",
                "a host that arms MSI-X overwrites COMMAND and STATUS",
            )
    (bar_of_table, table, length), (bar_of_pba, pba, _) = areas["table"], areas["PBA"]
    if bar_of_table == bar_of_pba and table < pba + pba_size and pba < table + length:
        raise _bad(
            f"the MSI-X table at {table:#x} and the PBA at {pba:#x} overlap in BAR{bar_of_pba}",
            "the host's writes to the table set pending bits",
        )
    place = f"table BAR{bar_of_table}+{table:#x}, PBA BAR{bar_of_pba}+{pba:#x}"
    # Inherent to some parts, and not a fault of this endpoint's set-up.
    note = driver.part.misplaces(msix.place)
    return f"{place}; {driver.part.msix_note(msix.place)}" if note else place


@case("config.ATS", "ATS is not announced where it does not work")
def ats(driver: EpfTest, _progress: Progress) -> str:
    with list_judged():
        found = driver.function.config.find(pci.ExtCapId.ATS)
    if found is None:
        return "ATS is not announced"
    if driver.part.broken_ats:
        raise _bad(driver.part.ats_note, parts.ATS_CURE)
    return "ATS is announced"


CASES = (capabilities, read_only, bar_sizes, msix_place, ats)
