"""Bus mastering off: the function must send neither data nor MSIs, which are writes too."""

from __future__ import annotations

from rcdrv.epf_test.driver import SETTLE, EpfTest
from rcdrv.epf_test.explain import explain
from rcdrv.epf_test.more.case import Progress, case
from rcdrv.epf_test.more.state import transfer
from rcdrv.epf_test.registers import Command, Reg
from rcdrv.epf_test.transfer import address_registers, dma_buffer
from rcdrv.pci import Command as ConfigCommand
from rcdrv.verdict import NotPassed, Reason

_SIZE = 1024


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
    with dma_buffer(driver, _SIZE) as buffer:
        driver.arm()
        config.command &= ~ConfigCommand.BUS_MASTER
        driver.must_not_interrupt = True
        try:
            address = address_registers(Reg.DST_ADDR_LOW, buffer.iova)
            answer = driver.command(Command.WRITE, {**address, Reg.SIZE: _SIZE, Reg.CHECKSUM: 0})
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
