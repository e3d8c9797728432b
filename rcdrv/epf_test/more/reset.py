"""Resets of the function: compare its state and its features before and after."""

from __future__ import annotations

from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.more.case import Progress, case, during, skip
from rcdrv.epf_test.more.state import Snapshot, use, working
from rcdrv.errors import HostError
from rcdrv.host.kernel import reset_by
from rcdrv.sysfs import canonical_address, is_address
from rcdrv.verdict import Reason

_RESETS = 8
_RISK = "resets the function: many endpoints lose their set-up and have to be restarted"
_NEEDS = "a reset that the kernel offers"


def _resets(count: int, driver: EpfTest, progress: Progress, *, doubtful: bool = False) -> str:
    """Reset and compare config space ``count`` times; then use BARs, interrupts, DMA and doorbell.

    :param doubtful: continue if the kernel reports a failed reset
    :returns: the duration of each reset, as text
    :raises NotPassed: ``lost-by-reset``, with what was lost
    """
    refused: HostError | None = None
    function = driver.function
    if not function.device.can_reset():
        raise skip(Reason.HOST, "the function has no reset")
    checks = working(driver, progress)
    driver.disarm()
    before = Snapshot(driver)
    took = []
    for number in range(1, count + 1):
        begun = function.clock.now()
        with during(f"after reset {number} of {count}" if count > 1 else "after the reset"):
            try:
                function.reset()
            except HostError as error:
                if not doubtful:
                    raise
                refused = error
            took.append(f"{(function.clock.now() - begun) * 1e3:.0f}")
            before.compare(put_back=True)
        progress(number, count)
    with during("after the reset" if count == 1 else f"after {count} resets"):
        use(driver, checks)
    said = f"all is there after {', '.join(took)} ms"
    if refused is not None:
        raise skip(Reason.HOST, f"{said}, but the kernel takes it for failed: {refused.message}")
    return said


@case(
    "destructive.RESET",
    "config space, BARs, interrupts, transfers and the doorbell outlive a reset",
    risk=_RISK,
    needs=_NEEDS,
)
def reset(driver: EpfTest, progress: Progress) -> str:
    """Reset once, by the method that the kernel chooses (VFIO_DEVICE_RESET): FLR, else the bus."""
    return _resets(1, driver, progress)


@case(
    "destructive.RESETS",
    f"they outlive {_RESETS} resets in a row; each is timed",
    risk=_RISK,
    needs=_NEEDS,
)
def resets(driver: EpfTest, progress: Progress) -> str:
    return _resets(_RESETS, driver, progress)


@case(
    "destructive.BUS_RESET",
    "they outlive a reset of the link",
    risk="takes the link down: many endpoints lose their set-up and have to be restarted",
    needs="kernel VFIO, root, and no other function on the bus",
)
def bus_reset(driver: EpfTest, progress: Progress) -> str:
    """Reset the link by a secondary bus reset of its port, which an FLR of the part supersedes.

    pci_reset_bus_function() refuses if another function is on the bus.
    """
    function = driver.function
    if not is_address(function.address):
        raise skip(Reason.HOST, "vfio-user has DEVICE_RESET only, which RESET_TEST asks for")
    with reset_by(canonical_address(function.address), "bus") as why:
        if why:
            raise skip(Reason.HOST, f"no bus reset on this host: {why}")
        # pci_bridge_wait_for_secondary_bus() waits for the port to report an active link, which
        # QEMU's port does not.
        return _resets(1, driver, progress, doubtful=True)


CASES = (reset, resets, bus_reset)
