"""The table of schemes: what names a device, and what follows from it."""

from __future__ import annotations

import sys

import pytest

from rcdrv import address
from rcdrv.address import PCI, SCHEMES, Scheme, forms, open_function, scheme_of
from rcdrv.errors import HostError, UsageError
from rcdrv.manual.topics import ADDRESSES
from tests.unit.test_function import FakeDevice


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("0000:01:00.0", ""),
        ("1:0.7", ""),
        ("vfio-user:/run/ep.sock", "vfio-user"),
        ("sim:rk3588,fault=irq-lost", "sim"),
        ("sim:a:b.toml", "sim"),
    ],
)
def test_the_scheme_of_an_address(text: str, name: str) -> None:
    assert scheme_of(text).name == name


@pytest.mark.parametrize("text", ["", "sim", "sim:", "vfio-user:", ":rk3588", "1:0", "PCI:1:0.0"])
def test_no_address(text: str) -> None:
    with pytest.raises(UsageError, match="is not a device address") as failed:
        scheme_of(text)
    assert "vfio-user:PATH" in failed.value.hint


def test_a_row_is_a_transport(monkeypatch: pytest.MonkeyPatch) -> None:
    device, opened = FakeDevice(), []

    def open_fake(text: str) -> FakeDevice:
        opened.append(text)
        return device

    row = Scheme("fake", {"fake:NUMBER": "a device of this test"}, open_fake)
    monkeypatch.setattr(address, "SCHEMES", (*SCHEMES, row))
    with open_function("fake:7") as function:
        assert function.device is device
    assert opened == ["fake:7"]
    assert "fake:NUMBER" in forms()


def test_a_pci_address_is_the_only_local_one() -> None:
    assert [scheme for scheme in SCHEMES if scheme.is_local] == [PCI]
    assert [scheme.name for scheme in SCHEMES if scheme.is_vfio] == ["", "fd"]
    assert [scheme.name for scheme in SCHEMES if scheme.is_started] == ["sim"]


def test_the_manual_has_every_form() -> None:
    assert [form for form, _ in ADDRESSES] == forms().split(", ")


def test_a_python_that_cannot_be_run_is_the_hosts_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python3")
    with pytest.raises(HostError, match="cannot start a software endpoint: /nowhere/python3"):
        open_function("sim:rk3588")
