"""The udev rules and rcdrv know the same endpoints. What the rules do is tested in the lab."""

from __future__ import annotations

import re
from pathlib import Path

from rcdrv.parts import KNOWN_PARTS

RULES = Path(__file__).parents[3] / "udev" / "70-rcdrv.rules"
VNTB_ONLY = {(0x1957, 0x0809), (0x1912, 0x0030)}


def test_same_ids() -> None:
    found = re.findall(r"\*v0000(\w{4})d0000(\w{4})sv", RULES.read_text())
    ids = [(int(vendor, 16), int(device, 16)) for vendor, device in found]
    assert len(ids) == len(set(ids))
    assert set(ids) == set(KNOWN_PARTS) | VNTB_ONLY


def test_digits_are_written_as_the_kernel_does() -> None:
    # modalias has upper-case digits (drivers/pci/pci-sysfs.c), and udev compares exactly.
    assert not re.search(r"v0000\w*[a-f]\w*d0000|d0000\w*[a-f]\w*sv", RULES.read_text())
