"""The layers of an endpoint, on virtual time."""

from __future__ import annotations

import pytest

from rcdrv.device import IrqKind
from rcdrv.epf_test.check import check_endpoint
from rcdrv.epf_test.driver import EpfTest
from rcdrv.function import Function
from rcdrv.fuzz.direct import Direct
from rcdrv.sim.controller import SimController

from .virtual import endpoint


def test_the_interrupt_of_a_polled_command_may_come_after_its_status(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """pci_epf_test_raise_irq() raises it after STATUS: seen on the kernel's endpoint as one too
    many."""
    missed: list[tuple[IrqKind, int]] = []
    came = []
    trigger = Direct.trigger

    def late(self: Direct, kind: IrqKind, vector: int) -> bool:
        done = trigger(self, kind, vector)
        if not done:
            missed.append((kind, vector))
        elif missed:
            came.append(trigger(self, *missed.pop()))
        return done

    monkeypatch.setattr(Direct, "trigger", late)
    # The host enables MSI between STATUS and pci_epc_get_msi().
    vectors = SimController.vectors
    monkeypatch.setattr(
        SimController, "vectors", lambda self, kind: vectors(self, kind) or int(kind is IrqKind.MSI)
    )
    with (
        endpoint("rk3588") as device,
        Function(device.attach(), clock=device.clock) as function,
    ):
        check = check_endpoint(function, lambda: EpfTest(function), reset=True)
    assert check.broken is None, check.broken
    assert came == [True, True]  # before the interrupts, and after the reset
