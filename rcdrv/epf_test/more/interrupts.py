"""Interrupts and data that must not arrive."""

from __future__ import annotations

from rcdrv.device import IrqKind
from rcdrv.epf_test.answer import IrqChoice
from rcdrv.epf_test.block import ALL_ONES
from rcdrv.epf_test.driver import SETTLE, EpfTest
from rcdrv.epf_test.explain import explain
from rcdrv.epf_test.irqs import raise_vector
from rcdrv.epf_test.more.case import Progress, case, judged, skip
from rcdrv.epf_test.more.state import transfer
from rcdrv.epf_test.registers import Command, Reg
from rcdrv.epf_test.transfer import address_registers, dma_buffer
from rcdrv.errors import HostError
from rcdrv.pci import Command as ConfigCommand
from rcdrv.verdict import NotPassed, Reason

_VECTOR_CONTROL = 12
"""Offset in an entry of the MSI-X table; bit 0 masks the vector."""
_UNMASKED = 0.05
"""Seconds in which an unmasked pending vector must fire."""
_WRITTEN = 1024
"""Bytes that the endpoint is to write while it must not."""


def _arrives(driver: EpfTest, choice: IrqChoice, otherwise: str) -> None:
    """Raise an interrupt of this kind, whatever kind the user chose.

    :raises NotPassed: a skip: it does not arrive, or this host cannot take it
    """
    driver.use_irq(choice)
    try:
        with judged(otherwise):
            raise_vector(driver, choice, 0)
    except HostError as why:
        raise skip(Reason.HOST, why.message) from None


@case(
    "irq.INTX_DISABLE",
    "INTX_DISABLE keeps INTx from arriving",
    risk="raises INTx, as LEGACY_IRQ_TEST does",
    needs="INTx that arrives",
)
def intx_disable(driver: EpfTest, _progress: Progress) -> str:
    """Raise INTx while COMMAND has INTX_DISABLE, and again without.

    Under kernel VFIO the bit is virtual: the kernel masks the interrupt with it.
    """
    config = driver.function.config
    _arrives(driver, IrqChoice.INTX, "no INTx arrives at all, which LEGACY_IRQ_TEST judges")
    config.command |= ConfigCommand.INTX_DISABLE
    try:
        answer = driver.command(Command.RAISE_INTX_IRQ)
    finally:
        with driver.function.cancel.deferred():
            config.command &= ~ConfigCommand.INTX_DISABLE
    if not answer.good:
        raise explain(driver, answer, "RAISE_INTX_IRQ with INTX_DISABLE")
    if answer.interrupted:
        raise NotPassed(
            Reason.BAD_CONFIG,
            "an INTx interrupt arrived although COMMAND has INTX_DISABLE",
            hint="the controller sends Assert_INTx whatever COMMAND says",
        )
    driver.drop_interrupts()
    raise_vector(driver, IrqChoice.INTX, 0)
    return "none while disabled, one before and one after"


@case(
    "irq.MSIX_MASK",
    "a masked MSI-X vector does not arrive; if its pending bit is set, it does when unmasked",
    risk="masks one vector in the MSI-X table and unmasks it",
    needs="MSI-X whose table this host shows",
)
def msix_mask(driver: EpfTest, _progress: Progress) -> str:
    """Raise a vector that is masked in the MSI-X table, read its pending bit, and unmask it.

    Table and pending bits are in a BAR. If the host denies access to the table, as vfio_pci_rw()
    does unless it is mapped, no vector can be masked.
    """
    function = driver.function
    found = function.config.msix()
    if found is None or not function.device.irq_count(IrqKind.MSIX):
        raise skip(Reason.NO_VECTORS, "no MSI-X")
    _arrives(driver, IrqChoice.MSIX, "no MSI-X arrives at all, which MSIX_TEST judges")
    table, pba = function.bar(found.table_bar), function.bar(found.pba_bar)
    control = found.table_offset + _VECTOR_CONTROL
    if control + 4 > table.size or found.pba_offset + 4 > pba.size:
        raise skip(Reason.BAD_CONFIG, "MSIX_PLACE_TEST judges where the table and the PBA are")
    before = table.read32(control)
    if before == ALL_ONES:
        raise skip(Reason.HOST, "this host does not let programs at the MSI-X table")
    driver.count_strays()
    try:
        table.write32(control, before | 1)
        if not table.read32(control) & 1:
            raise skip(Reason.HOST, "the MSI-X table takes no mask from here")
        driver.must_not_interrupt = not driver.part.ignores_msix_mask
        answer = driver.command(Command.RAISE_MSIX_IRQ)
        pending = bool(pba.read32(found.pba_offset) & 1)
    finally:
        driver.must_not_interrupt = False
        with function.cancel.deferred():
            table.write32(control, before)
    if not answer.answered or not answer.good:
        raise explain(driver, answer, "RAISE_MSIX_IRQ 1, masked")
    if answer.interrupted and not driver.part.ignores_msix_mask:
        raise NotPassed(
            Reason.BAD_CONFIG,
            "MSI-X vector 1 arrived although it is masked in the table",
            hint="the controller's driver has to look at Vector Control, as"
            " dw_pcie_ep_raise_msix_irq() does",
        )
    function.pause(_UNMASKED)
    driver.drop_interrupts()
    late = driver.stray
    still = bool(pba.read32(found.pba_offset) & 1)
    if (pending and not late) or still:
        what = "is not sent" if not late else "is sent"
        left = ", and that stays so" if still else ""
        raise NotPassed(
            Reason.IRQ_LOST,
            f"MSI-X vector 1 was pending while masked; it {what} when unmasked{left}",
            hint="a pending vector is sent when it is unmasked, which clears its bit (PCIe 6.1.4)",
        )
    raise_vector(driver, IrqChoice.MSIX, 0)
    if answer.interrupted:
        return f"sent although masked, as the hardware of {driver.part.name} always does"
    if late and not pending:  # the device's PBA may hide QEMU's copy
        return "sent when unmasked, though its pending bit was not seen"
    if pending:
        return "pending while masked, and sent when unmasked"
    return "dropped while masked (dw_pcie_ep_raise_msix_irq() does that), and sent again unmasked"


@case(
    "destructive.BUS_MASTER",
    "nothing leaves the function while bus mastering is off",
    risk="a write of the endpoint's processor may end in an external abort there: its kernel may"
    " crash",
)
def bus_master(driver: EpfTest, _progress: Progress) -> str:
    """Have the endpoint write to this host's memory while COMMAND lacks BUS_MASTER."""
    function = driver.function
    config = function.config
    with dma_buffer(driver, _WRITTEN) as buffer:
        driver.arm()
        config.command &= ~ConfigCommand.BUS_MASTER
        driver.must_not_interrupt = True
        try:
            address = address_registers(Reg.DST_ADDR_LOW, buffer.iova)
            answer = driver.command(Command.WRITE, {**address, Reg.SIZE: _WRITTEN, Reg.CHECKSUM: 0})
            function.pause(SETTLE)
            arrived = any(bytes(buffer.memory))
        finally:
            driver.must_not_interrupt = False
            with function.cancel.deferred():
                config.command |= ConfigCommand.BUS_MASTER
    what = "data" if arrived else f"{driver.irq_name}" if answer.interrupted else ""
    if what and (arrived or driver.irq_name != "intx"):
        raise NotPassed(
            Reason.BAD_CONFIG,
            f"{what} arrived although bus mastering is off in COMMAND",
            hint="the controller does not look at BUS_MASTER, and a host cannot stop its DMA",
        )
    if not answer.good:
        raise explain(driver, answer, "WRITE with bus mastering off")
    transfer(driver)
    return "nothing arrived, and all does since it is on again"


CASES = (intx_disable, msix_mask)
