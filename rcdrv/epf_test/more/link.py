"""The link: unchanged speed and width after a load, and no errors."""

from __future__ import annotations

from rcdrv.epf_test.bars import is_reserved, testable_size
from rcdrv.epf_test.doorbell import stale_doorbell
from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.logged import LoggedErrors
from rcdrv.epf_test.more.case import MoreCase, Progress, case, skip
from rcdrv.epf_test.transfer import Direction, Placement, transfer_test
from rcdrv.errors import EndpointError
from rcdrv.pci import Express
from rcdrv.verdict import NotPassed, Reason

_SIZE = 1 << 16
_ROUNDS = 4
_CURE = (
    "signal integrity first: cable, riser, connector, reference clock, PHY; a slower"
    " max-link-speed in the endpoint's device tree tells"
)


def load(driver: EpfTest, progress: Progress) -> str:
    """Read BARs and transfer both ways; compare the link and the log of errors before and after."""
    config = driver.function.config
    try:
        before = config.express()
    except EndpointError as error:
        message = f"CAPABILITIES_TEST judges the list: {error.message}"
        raise skip(Reason.BAD_CONFIG, message) from None
    if before is None or not before.speed:
        raise skip(Reason.NO_CAPS, "the function does not say what its link does")
    errors = LoggedErrors(config)
    known = errors.names
    for done in range(_ROUNDS):
        for bar in driver.function.bars:
            driver.function.check()
            if bar is None or not bar.is_memory or is_reserved(driver, bar.index):
                continue
            if stale_doorbell(driver) != bar.index:  # it would show an interrupt controller
                size = min(_SIZE, testable_size(driver, bar.index))
                driver.function.bar(bar.index).read_block(0, size)
        for direction in (Direction.READ, Direction.WRITE):
            try:
                transfer_test(direction, False, lambda _: [Placement(_SIZE)], driver)
            except NotPassed as why:
                message = f"transfers fail, which {direction.value}_SIZES_TEST judges"
                raise skip(why.reason, message) from None
        progress(done + 1, _ROUNDS)
    after, risen = config.express(), errors.risen()
    driver.function.check_alive()
    if after is not None and (after.speed, after.width) != (before.speed, before.width):
        raise NotPassed(
            Reason.BAD_LINK,
            f"the link ran at {_rate(before)}, and now at {_rate(after)}",
            hint=_CURE,
        )
    if risen:
        raise NotPassed(Reason.BAD_LINK, f"the function logged {', '.join(risen)}", hint=_CURE)
    logged = "no error" if errors.available else "no log of errors (AER)"
    logged += f"; logged before: {', '.join(known)}" if known else ""
    most = Express(True, False, before.max_speed, before.max_width, 0, 0)
    return f"{_rate(before)} of {_rate(most)}, {logged}"


def _rate(link: Express) -> str:
    return f"{link.speed:g} GT/s x{link.width}"


CASES: tuple[MoreCase, ...] = (
    case(
        "link",
        "LOAD",
        load,
        "the link keeps its speed and width under load, and no error is logged (AER)",
        risk="reads the BARs but those that are reserved, and reads and writes this host's buffers",
        needs="a PCI Express capability that names the link's speed",
    ),
)
