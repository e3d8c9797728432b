"""D3hot and back to D0: the state that the function retains.

Under kernel VFIO a write of PMCSR's power state does not reach the device: the kernel changes the
state itself, and saves and restores config space if No_Soft_Reset is 0 (vfio_pm_config_write() and
vfio_pci_set_power_state() in drivers/vfio/pci/). No BAR is accessed in D3hot: the access would be
an unsupported request, or SIGBUS if the BAR is mapped.
"""

from __future__ import annotations

from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.more.case import Progress, case, during, list_judged, skip
from rcdrv.epf_test.more.state import Snapshot, use, working
from rcdrv.mmio import Window
from rcdrv.pci import CapId
from rcdrv.verdict import NotPassed, Reason

_PMCSR = 4
_HEADERS = 0x100
"""End of the capability list's range; extended capabilities follow."""
_STATE, _D3HOT, _NO_SOFT_RESET = 0x3, 0x3, 1 << 3
_SETTLES = 0.010
"""Seconds that a function may take for either transition (PCIe 5.9, PCI_PM_D3HOT_WAIT)."""


@case(
    "destructive.D3HOT",
    "config space, BARs, interrupts, transfers and the doorbell outlive D3hot, and"
    " No_Soft_Reset says the truth",
    risk="puts the function to sleep: an endpoint that resets itself then loses its set-up",
    needs="a Power Management capability",
)
def d3hot(driver: EpfTest, progress: Progress) -> str:
    """Enter D3hot and return to D0, compare config space, then use all features."""
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
