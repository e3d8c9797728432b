"""The BAR tests against endpoints that misbehave."""

from __future__ import annotations

import pytest

from rcdrv.sim.access_log import AccessLog
from tests.unit.epf_test.virtual import endpoint, run


class Events(AccessLog):
    """Keeps the endpoint's events."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, object]]] = []

    def event(self, event: str, **details: object) -> None:
        self.seen.append((event, details))


@pytest.mark.parametrize("fault", ["irq-lost", "irq-lost=commands", "irq-wrong-vector"])
def test_subrange_without_interrupts_fails_and_is_cleared(fault: str) -> None:
    events = Events()
    with endpoint(f"generic,fault={fault}", events) as device:
        results = run(device, "pci_ep_bar.BAR2.BAR_SUBRANGE_TEST")
    assert list(results.values()) == [("fail", "irq-lost")]
    shown = [details["shows"] for event, details in events.seen if event == "inbound"]
    assert shown == ["parts", "memory"]
