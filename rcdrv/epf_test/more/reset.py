"""Resets and D3hot: compare the function's state and its features before and after."""

from __future__ import annotations

from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.more.case import Progress, case, during, list_judged, skip
from rcdrv.epf_test.more.state import Snapshot, use, working
from rcdrv.errors import HostError
from rcdrv.host.kernel import reset_by
from rcdrv.mmio import Window
from rcdrv.pci import CapId
from rcdrv.sysfs import canonical_address, is_address
from rcdrv.verdict import NotPassed, Reason

_RESETS = 8
_RISK = "resets the function: many endpoints lose their set-up and have to be restarted"
_NEEDS = "a reset that the kernel offers"

_PMCSR = 4
_HEADERS = 0x100
"""End of the capability list's range; extended capabilities follow."""
_STATE, _D3HOT, _NO_SOFT_RESET = 0x3, 0x3, 1 << 3
_SETTLES = 0.010
"""Seconds that a function may take for either transition (PCIe 5.9, PCI_PM_D3HOT_WAIT)."""


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


@case(
    "destructive.D3HOT",
    "config space, BARs, interrupts, transfers and the doorbell outlive D3hot, and"
    " No_Soft_Reset says the truth",
    risk="puts the function to sleep: an endpoint that resets itself then loses its set-up",
    needs="a Power Management capability",
)
def d3hot(driver: EpfTest, progress: Progress) -> str:
    """Enter D3hot and return to D0, compare config space, then use all features.

    Under kernel VFIO a write of PMCSR's power state does not reach the device: the kernel changes
    the state itself, and saves and restores config space if No_Soft_Reset is 0
    (vfio_pm_config_write() and vfio_pci_set_power_state() in drivers/vfio/pci/). No BAR is accessed
    in D3hot: the access would be an unsupported request, or SIGBUS if the BAR is mapped.
    """
    function, config = driver.function, driver.function.config
    with list_judged():
        found = config.find(CapId.PM)
    if found is None:
        raise skip(Reason.NO_CAPS, "no Power Management capability")
    at = found.offset + _PMCSR
    if at + 2 > _HEADERS:
        raise skip(Reason.BAD_CONFIG, "CAPABILITIES_TEST judges the place of the capability")
    if config.window.read16(at) & _STATE:
        raise skip(Reason.BAD_CONFIG, "the function is not in D0 to begin with")
    checks = working(driver, progress)
    driver.disarm()
    before = Snapshot(driver)
    keeps = bool(config.window.read16(at) & _NO_SOFT_RESET)
    begun = function.clock.now()
    with function.cancel.deferred():
        try:
            slept = _move(driver, config.window, at, _D3HOT)
        finally:
            woke = _move(driver, config.window, at, 0)
    took = function.clock.now() - begun
    function.check_alive()
    if not slept:
        raise NotPassed(
            Reason.BAD_CONFIG,
            "PMCSR does not take D3hot",
            hint="D3hot is required of every function (PCIe 5.3.1.4); under kernel VFIO the kernel"
            " may keep the function in D0 (d3_allowed in sysfs, pcie_port_pm=off)",
        )
    if not woke:
        raise NotPassed(
            Reason.LOST_BY_RESET,
            "the function does not leave D3hot: PMCSR still says so",
            hint="rcdrv reset may wake it up, else the endpoint has to be restarted",
        )
    lost = before.lost()
    if lost is not None:
        before.put_back()
        if not keeps:  # it may reset itself, after which the host restores config space
            lost = before.lost()
    if lost is not None:
        denied = " although No_Soft_Reset is set" if keeps else ""
        lost.message = f"after D3hot{denied}: {lost.message}"
        if keeps:
            lost.hint += "; a host that believes No_Soft_Reset restores nothing: the endpoint's"
            lost.hint += " controller has to clear the bit, or to keep what it promises"
        raise lost
    with during("after D3hot"):
        use(driver, checks)
    kept = "keeps everything (No_Soft_Reset)" if keeps else "config space was restored by the host"
    return f"all is there after {took * 1e3:.0f} ms in D3hot; {kept}"


def _move(driver: EpfTest, window: Window, at: int, state: int) -> bool:
    """Request a power state; return whether PMCSR confirms it."""
    control = window.read16(at)
    # Writing 1 to PME_Status would clear it.
    window.write16(at, control & ~(_STATE | 1 << 15) | state)
    driver.function.pause(_SETTLES)
    return window.read16(at) & _STATE == state


CASES = (reset, resets, bus_reset)
