"""Bugs to plant in driver or endpoint, which ``rcdrv fuzz device`` has to find.

As a program it plants the one that it is told first, and is rcdrv then: so a finding's script can
be run with the bug in place.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from rcdrv.device import IrqKind
from rcdrv.epf_test.doorbell import Doorbell
from rcdrv.epf_test.driver import EpfTest as Driver
from rcdrv.epf_test.registers import Command, Flags, Reg
from rcdrv.sim.config_space import SimConfigSpace
from rcdrv.sim.controller import SWAPPED, SimController
from rcdrv.sim.doorbell import SimDoorbells
from rcdrv.sim.epf_test.function import SimEpfTest
from rcdrv.sim.epf_test.registers import SimRegister
from rcdrv.sim.memory import REGISTERS, STRAIGHT, BarMemory

Patch = pytest.MonkeyPatch


# -- in the driver -------------------------------------------------------------------------------


def driver_leaves_stale_flags(patch: Patch) -> None:
    def careless(self: Driver, _command: Command, flags: Flags, vector: int) -> None:
        if flags:
            self.write(Reg.FLAGS, flags)
        self.request_irq(vector)

    patch.setattr(Driver, "_write_request", careless)


def driver_leaves_doorbell_after_failure(patch: Patch) -> None:
    leave = Doorbell._leave

    def careless(self: Doorbell, failing: bool) -> None:
        if not failing:
            leave(self, failing)

    patch.setattr(Doorbell, "_leave", careless)


def driver_numbers_vectors_from_0(patch: Patch) -> None:
    def careless(self: Driver, vector: int = 0) -> None:
        self.write(Reg.IRQ_NUMBER, max(vector, 1))
        self.write(Reg.IRQ_TYPE, self.irq_type)

    patch.setattr(Driver, "request_irq", careless)


def driver_ignores_expected_bar(patch: Patch) -> None:
    before = Doorbell.__init__

    def careless(self: Doorbell, driver: Driver, **more: Any) -> None:
        before(self, driver, **{**more, "expect_bar": None})

    patch.setattr(Doorbell, "__init__", careless)


# -- in the endpoint -----------------------------------------------------------------------------


def endpoint_keeps_status(patch: Patch) -> None:
    """STATUS is not cleared when a command is taken."""
    handler, swallows = SimEpfTest._cmd_handler, SimEpfTest._swallows

    def note(self: Any, command: int, irq_type: int) -> Iterator[float]:
        self.kept = self._regs.read32(SimRegister.STATUS)
        return handler(self, command, irq_type)

    def restore(self: Any, command: int, irq_type: int) -> str:
        self._set_status(self.kept)
        return swallows(self, command, irq_type)

    patch.setattr(SimEpfTest, "_cmd_handler", note)
    patch.setattr(SimEpfTest, "_swallows", restore)


def endpoint_keeps_subrange(patch: Patch) -> None:
    """BAR_SUBRANGE_CLEAR answers, and the halves stay swapped."""
    map_memory = SimController.map_memory

    def forgetful(self: SimController, bar: int, order: tuple[int, ...] = STRAIGHT) -> None:
        if not (order == STRAIGHT and self._memory[bar].order == SWAPPED):
            map_memory(self, bar, order)

    patch.setattr(SimController, "map_memory", forgetful)


def endpoint_misses_the_last_vector(patch: Patch) -> None:
    vectors = SimController.vectors

    def fewer(self: SimController, kind: IrqKind) -> int:
        count = vectors(self, kind)
        return count - 1 if count > 1 else count

    patch.setattr(SimController, "vectors", fewer)


def endpoint_forgets_hidden_memory(patch: Patch) -> None:
    """What a doorbell hid is gone when the BAR shows its memory again."""
    show = BarMemory.show

    def forget(self: BarMemory, order: Sequence[int]) -> int | None:
        before = self.order
        stray = show(self, order)
        if before == REGISTERS:
            self.fill(0, self.size, 0)
        return stray

    patch.setattr(BarMemory, "show", forget)


def endpoint_enables_twice(patch: Patch) -> None:
    """A second ENABLE is not refused as busy."""
    allocate = SimDoorbells.allocate

    def again(self: SimDoorbells, handlers: Sequence[Any]) -> Any:
        self.free()
        return allocate(self, handlers)

    patch.setattr(SimDoorbells, "allocate", again)


def endpoint_remembers_ring_irq(patch: Patch) -> None:
    """A ring is answered with the interrupt that ENABLE had asked for."""
    enable, raise_irq = SimEpfTest._enable_doorbell, SimEpfTest._raise_irq

    def note(self: Any) -> Any:
        self.asked = self._regs.read32(SimRegister.IRQ_NUMBER)
        return enable(self)

    def old(self: Any, *, doorbell: bool = False) -> None:
        now = self._regs.read32(SimRegister.IRQ_NUMBER)
        if doorbell:
            self._regs.write32(SimRegister.IRQ_NUMBER, self.asked)
        raise_irq(self, doorbell=doorbell)
        self._regs.write32(SimRegister.IRQ_NUMBER, now)

    patch.setattr(SimEpfTest, "_enable_doorbell", note)
    patch.setattr(SimEpfTest, "_raise_irq", old)


def endpoint_forgets_on_reset(patch: Patch) -> None:
    """A function level reset disables the doorbell, and DB_BAR does not say so."""
    reset = SimConfigSpace.reset
    doorbells: list[SimDoorbells] = []
    before = SimDoorbells.__init__

    def note(self: SimDoorbells, *arguments: Any) -> None:
        before(self, *arguments)
        doorbells[:] = [self]

    def forget(self: SimConfigSpace) -> None:
        reset(self)
        for one in doorbells:
            one.free()

    patch.setattr(SimDoorbells, "__init__", note)
    patch.setattr(SimConfigSpace, "reset", forget)


def endpoint_copies_whole_words(patch: Patch) -> None:
    """A transfer spoils what is behind the last whole word.

    Left out, one random byte in 256 would be right by chance, in a buffer of zeros.
    """
    store = SimEpfTest._store

    def short(self: SimEpfTest, address: int, data: bytes) -> Any:
        whole = len(data) // 4 * 4 if len(data) > 1024 else len(data)
        spoilt = bytes(byte ^ 0xFF for byte in data[whole:])
        return store(self, address, data[:whole] + spoilt)

    patch.setattr(SimEpfTest, "_store", short)


def endpoint_merges_everything(patch: Patch) -> None:
    """Rings that come close together lose the answer to all of them."""
    handle = SimEpfTest._handle_ring

    def lose(self: Any) -> None:
        now = self.clock()
        if now - getattr(self, "rung", 0.0) > 1e-3:
            handle(self)
        else:
            self._set_status(0)
        self.rung = now

    patch.setattr(SimEpfTest, "_handle_ring", lose)


BUGS = {
    function.__name__: function
    for function in (
        driver_leaves_stale_flags,
        driver_leaves_doorbell_after_failure,
        driver_numbers_vectors_from_0,
        driver_ignores_expected_bar,
        endpoint_keeps_status,
        endpoint_keeps_subrange,
        endpoint_misses_the_last_vector,
        endpoint_forgets_hidden_memory,
        endpoint_enables_twice,
        endpoint_remembers_ring_irq,
        endpoint_forgets_on_reset,
        endpoint_copies_whole_words,
        endpoint_merges_everything,
    )
}


if __name__ == "__main__":
    from rcdrv.cli import main

    if sys.argv[1] in BUGS:
        BUGS[sys.argv[1]](pytest.MonkeyPatch())
    sys.exit(main(sys.argv[2:]))
