"""The link: unchanged speed and width after a load or a training, and no errors."""

from __future__ import annotations

import contextlib

from rcdrv.epf_test.bars import testable_bars, testable_size
from rcdrv.epf_test.block import stale_doorbell
from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.logged import LoggedErrors
from rcdrv.epf_test.more.case import Progress, case, during, list_judged, skip
from rcdrv.epf_test.more.state import LINK, Snapshot, use, working
from rcdrv.epf_test.more.transfers import pass_plainly
from rcdrv.epf_test.transfer import Direction, Placement
from rcdrv.errors import EndpointError, HostError
from rcdrv.host.port import port_above
from rcdrv.pci import ConfigSpace, Express
from rcdrv.sysfs import canonical_address, is_address
from rcdrv.verdict import NotPassed, Reason

_SIZE = 1 << 16
_ROUNDS = 4


def _bad(message: str) -> NotPassed:
    return NotPassed(
        Reason.BAD_LINK,
        message,
        hint="signal integrity first: cable, riser, connector, reference clock, PHY; a slower"
        " max-link-speed in the endpoint's device tree tells",
    )


@case(
    "link.LOAD",
    "the link keeps its speed and width under load, and no error is logged (AER)",
    risk="reads the BARs but those that are reserved, and reads and writes this host's buffers",
    needs="a PCI Express capability that names the link's speed",
)
def load(driver: EpfTest, progress: Progress) -> str:
    """Read BARs and transfer both ways; compare the link and the log of errors before and after."""
    config = driver.function.config
    with list_judged():
        before = config.express()
    if before is None or not before.speed:
        raise skip(Reason.NO_CAPS, "the function does not say what its link does")
    errors = LoggedErrors(config)
    known = errors.names
    for done in range(_ROUNDS):
        for index in testable_bars(driver):
            driver.function.check()
            # It would show an interrupt controller or a DMA engine.
            if index not in {stale_doorbell(driver), *driver.not_memory}:
                size = min(_SIZE, testable_size(driver, index))
                driver.function.bar(index).read_block(0, size)
        for direction in (Direction.READ, Direction.WRITE):
            pass_plainly(driver, direction, [Placement(_SIZE)])
        progress(done + 1, _ROUNDS)
    after, risen = config.express(), errors.risen()
    driver.function.check_alive()
    if after is not None and (after.speed, after.width) != (before.speed, before.width):
        raise _bad(f"the link ran at {before}, and now at {after}")
    if risen:
        raise _bad(f"the function logged {', '.join(risen)}")
    logged = "no error" if errors.available else "no log of errors (AER)"
    logged += f"; logged before: {', '.join(known)}" if known else ""
    return f"{before} of {before.most}, {logged}"


@case(
    "destructive.RETRAIN",
    f"the link, config space, BARs, interrupts, transfers and the doorbell outlive {_ROUNDS}"
    " trainings of the link",
    risk="a link that does not come back is lost, with all that is on it; the endpoint then has"
    " to be restarted",
    needs="kernel VFIO, root, a PCI Express port above, and no other driver on the link",
)
def retrain(driver: EpfTest, progress: Progress) -> str:
    """Have the port above train the link anew, then compare config space and use everything.

    The kernel does so itself when it sets up ASPM or another speed, so a board has to bear it.
    """
    function, config = driver.function, driver.function.config
    if not is_address(function.address):
        raise skip(Reason.HOST, "over vfio-user there is no port above the endpoint")
    with contextlib.ExitStack() as stack:
        try:
            port = stack.enter_context(port_above(canonical_address(function.address)))
            settled = port.settled(function.clock)
        except HostError as why:
            raise skip(Reason.HOST, f"no retrained link on this host: {why.message}") from None
        if not settled:
            raise skip(Reason.HOST, f"{port.address}, the port above it, does not show a link")
        checks = working(driver, progress)
        driver.disarm()
        before, link = Snapshot(driver), _link(config)
        for done in range(1, _ROUNDS + 1):
            with function.cancel.deferred():
                back = port.retrain(function.clock)
            function.check_alive()
            with during(f"after training {done} of {_ROUNDS}"):
                if not back:
                    raise _bad("the link does not come back within a second")
                now = _link(config)
                if link and now and (now.speed < link.speed or now.width < link.width):
                    raise _bad(f"the link ran at {link}, and now at {now}")
                before.compare(but=LINK)
            progress(done, _ROUNDS)
    with during(f"after {_ROUNDS} trainings"):
        use(driver, checks)
    said = "" if port.seen else ", of which the port showed none"
    return f"all is there after {_ROUNDS} trainings by {port.address}{said}"


def _link(config: ConfigSpace) -> Express | None:
    """The link, unless the capabilities are broken, which CAPABILITIES_TEST judges."""
    try:
        return config.express()
    except EndpointError:
        return None
