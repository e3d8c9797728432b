"""The fault bad-data damages each kind of transfer, COPY too."""

from __future__ import annotations

import pytest

from tests.unit.epf_test.virtual import endpoint, run


@pytest.mark.parametrize(
    ("direction", "reason"),
    [("READ", "data-mismatch"), ("WRITE", "transfer-failed"), ("COPY", "data-mismatch")],
)
def test_every_transfer_is_damaged(direction: str, reason: str) -> None:
    name = f"pci_ep_data_transfer.memcpy.{direction}_TEST"
    with endpoint("generic,fault=bad-data") as device:
        assert run(device, name) == {name: ("fail", reason)}
