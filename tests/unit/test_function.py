"""What an open function leaves behind, and a device that goes away while it is looked at."""

from __future__ import annotations

from pathlib import Path

from rcdrv.function import Function
from tests.unit.epf_test.virtual import endpoint


def test_no_descriptor_is_left() -> None:
    with endpoint("imx8m") as device:
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(3):
            Function(device.attach(), clock=device.clock).close()
        assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_device_that_vanishes_midway_has_no_looping_capabilities() -> None:
    for accesses in range(16, 40):
        with (
            endpoint(f"imx8m,fault=vanish={accesses}") as device,
            Function(device.attach(), clock=device.clock) as function,
        ):
            list(function.config.capabilities())
