"""The error counters that are named beside a case which failed."""

from __future__ import annotations

from pathlib import Path

import pytest

from rcdrv.host.aer import ErrorCounters

FUNCTION, PORT = "0000:01:00.0", "0000:00:02.0"


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    """A function behind a port, as sysfs shows them, with AER at both."""
    real = tmp_path / "devices/pci0000:00" / PORT / FUNCTION
    real.mkdir(parents=True)
    listed = tmp_path / "bus/pci/devices"
    listed.mkdir(parents=True)
    (listed / FUNCTION).symlink_to(real)
    for place in (real, real.parent):
        for kind, total in (("correctable", "COR"), ("nonfatal", "NONFATAL"), ("fatal", "FATAL")):
            text = f"RxErr 0\nBad TLP 2\nTOTAL_ERR_{total} 2\n"
            (place / f"aer_dev_{kind}").write_text(text)
    return tmp_path


def test_only_what_rose_since_the_last_look_is_named(sysfs: Path) -> None:
    counters = ErrorCounters(FUNCTION, sysfs)
    assert counters.risen() == []
    function = sysfs / "bus/pci/devices" / FUNCTION
    (function / "aer_dev_correctable").write_text("RxErr 3\nBad TLP 2\nTOTAL_ERR_COR 5\n")
    port = function.resolve().parent
    (port / "aer_dev_nonfatal").write_text("RxErr 0\nBad TLP 4\nTOTAL_ERR_NONFATAL 4\n")
    assert counters.risen() == [
        f"AER: {FUNCTION} correctable RxErr rose by 3",
        f"AER: {PORT} nonfatal Bad TLP rose by 2",
    ]
    assert counters.risen() == []


def test_a_function_that_left_has_none(sysfs: Path) -> None:
    counters = ErrorCounters(FUNCTION, sysfs)
    (sysfs / "bus/pci/devices" / FUNCTION / "aer_dev_fatal").unlink()
    assert counters.risen() == []


def test_an_endpoint_elsewhere_has_none(sysfs: Path) -> None:
    assert ErrorCounters("sim:rk3588", sysfs).risen() == []
