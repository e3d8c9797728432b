"""Bandwidth of a window of a software vNTB in this process."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rcdrv.epf_vntb.driver import Vntb
from rcdrv.epf_vntb.perf import Rate, measure
from rcdrv.epf_vntb.registers import Reg, choose_map
from rcdrv.function import Function
from rcdrv.verdict import NotPassed, Reason

from .test_virtual import POLLED, endpoint


def rates(messages: bool, width: int, then: Callable[[Vntb], None] = lambda _vntb: None) -> str:
    """Return the ways in which a window was accessed, both directions each."""
    found: list[Rate] = []
    with endpoint(f"{POLLED},vntb.peer=netdev") as device:
        device.messages = messages
        with Function(device.attach(), clock=device.clock) as function:
            function.width = width
            vntb = Vntb(function, choose_map(function.config.vendor_id, function.config.device_id))

            def done(rate: Rate) -> None:
                found.append(rate)
                then(vntb)

            try:
                measure(vntb, 0, done, chunk=4096, seconds=0.001)
            finally:
                vntb.close()
    assert [rate.direction for rate in found] == ["write", "read"] * (len(found) // 2)
    return " ".join(f"{rate.mapping}-{rate.width}" for rate in found[::2])


@pytest.mark.parametrize(
    ("messages", "width", "ways"),
    [
        (True, 64, "messages-None"),
        (False, 64, "calls-32 calls-64"),  # as with the kernel's VFIO
        (False, 32, "calls-32"),
    ],
)
def test_every_way_to_the_window_is_measured(messages: bool, width: int, ways: str) -> None:
    assert rates(messages, width) == ways


def test_it_ends_with_the_link() -> None:
    """Behind it the window shows memory that the endpoint has freed (vntb_epf_mw_clear_trans)."""
    with pytest.raises(NotPassed) as error:
        rates(True, 64, lambda vntb: vntb.write(Reg.LINK_STATUS, 0))
    assert error.value.reason is Reason.LINK_LOST
