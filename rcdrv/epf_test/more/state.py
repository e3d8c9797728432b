"""State and features of a function, compared before and after a reset, a sleep or a new link."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from rcdrv.epf_test.answer import IrqChoice
from rcdrv.epf_test.bars import bar_test, outline
from rcdrv.epf_test.doorbell import Doorbell, check_may_reset
from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.explain import explain
from rcdrv.epf_test.irqs import raise_vector
from rcdrv.epf_test.more.case import Progress, skip
from rcdrv.epf_test.registers import Command, Reg
from rcdrv.epf_test.transfer import Direction, Placement, transfer_test
from rcdrv.errors import EndpointError
from rcdrv.pci import Capability, CapId, ConfigSpace, ExtCapId
from rcdrv.verdict import NotPassed, Reason, Verdict

_BACK = 5.0
"""Seconds after which an endpoint whose link was down must take commands."""

LINK = "the link's speed and width"
"""Name of a part of :class:`Snapshot`."""

Check = tuple[str, Callable[[EpfTest], object]]
"""Name of a feature, and a function that uses it."""


@dataclass(frozen=True)
class _Field:
    """A register or a part of one."""

    name: str
    offset: int
    width: int
    """Bits."""
    by_host: bool = True
    """Written by the host at enumeration, so ``rcdrv rescan`` restores it."""
    mask: int = 0xFFFF_FFFF


_FIELDS: dict[tuple[bool, int], tuple[_Field, ...]] = {
    (False, CapId.MSI): (
        _Field("MSI's control", 2, 16),
        _Field("MSI's address", 4, 32),
        _Field("MSI's upper address, or its data", 8, 32),
    ),
    (False, CapId.MSIX): (
        _Field("MSI-X's control", 2, 16),
        _Field("the place of MSI-X's table", 4, 32, by_host=False),
        _Field("the place of MSI-X's PBA", 8, 32, by_host=False),
    ),
    (False, CapId.EXP): (
        _Field("PCIe's device control", 0x08, 16),
        _Field("PCIe's link control", 0x10, 16),
        # Without link training (PCI_EXP_LNKSTA_LT) and bandwidth notifications.
        _Field(LINK, 0x12, 16, by_host=False, mask=0x03FF),
        _Field("PCIe's device control 2", 0x28, 16),
    ),
    (True, ExtCapId.AER): (
        _Field("AER's uncorrectable mask", 0x08, 32),
        _Field("AER's severity", 0x0C, 32),
        _Field("AER's correctable mask", 0x14, 32),
    ),
    # One entry for each BAR.
    (True, ExtCapId.REBAR): tuple(
        field
        for entry in range(6)
        for field in (
            _Field(f"Resizable BAR's sizes, entry {entry}", 4 + 8 * entry, 32, by_host=False),
            _Field(f"Resizable BAR's choice, entry {entry}", 8 + 8 * entry, 32),
        )
    ),
}
"""Fields of a capability, by whether it is extended, and its ID."""
_HEADER = (
    *(_Field(f"BAR{index}'s address", 0x10 + 4 * index, 32) for index in range(6)),
    _Field("COMMAND", 0x04, 16),
)


class Snapshot:
    """The parts of a function's config space that a reset must not change."""

    def __init__(self, driver: EpfTest) -> None:
        self._config = driver.function.config
        self._bars = [bar for bar in driver.function.bars if bar is not None]
        self._fields = list(_fields(self._config))
        self._values = self._read()
        self._shape = self._look()

    def _read(self) -> list[int]:
        window = self._config.window
        return [window.read(one.width, one.offset) & one.mask for one in self._fields]

    def _look(self) -> dict[str, object]:
        """Return the properties beyond single registers: BAR sizes and the capability list."""
        config = self._config
        found: dict[str, object] = {
            f"BAR{bar.index}'s size": config.bar_mask(bar.index, is_64bit=bar.is_64bit)
            for bar in self._bars
            if bar.is_memory
        }
        found["the capability list"] = [(cap.offset, cap.id) for cap in _capabilities(config)]
        return found

    def lost(self, *, but: str = "") -> NotPassed | None:
        """Return the verdict for what differs now, except for ``but``; None if nothing does."""
        named, cured = [], True
        for one, before, now in zip(self._fields, self._values, self._read(), strict=True):
            if now != before and one.name != but:
                named.append(f"{one.name} {before:#x} became {now:#x}")
                cured = cured and one.by_host
        for name, shape in self._look().items():
            if shape != self._shape[name]:
                named.append(name)
                cured = False
        if not named:
            return None
        hint = (
            "rcdrv rescan cures that: a host writes those when it enumerates"
            if cured
            else "rcdrv rescan alone does not cure that: the endpoint's controller driver has to"
            " set it up again after a reset of the link; restart the endpoint, then rescan"
        )
        return NotPassed(Reason.LOST_BY_RESET, f"lost: {', '.join(named)}", hint=hint)

    def compare(self, *, but: str = "", put_back: bool = False) -> None:
        """Raise what :meth:`lost` returns, and with ``put_back`` restore it first."""
        lost = self.lost(but=but)
        if lost is not None:
            if put_back:
                self.put_back()
            raise lost

    def put_back(self) -> None:
        """Restore the fields that the host writes, as pci_restore_state() does: COMMAND last."""
        for one, before in zip(reversed(self._fields), reversed(self._values), strict=True):
            now = self._config.window.read(one.width, one.offset) & one.mask
            if one.by_host and now != before:
                self._config.window.write(one.width, one.offset, before)


def _capabilities(config: ConfigSpace) -> Iterator[Capability]:
    try:
        yield from config.capabilities()
    except EndpointError:  # CAPABILITIES_TEST reports it
        return


def _fields(config: ConfigSpace) -> Iterator[_Field]:
    """Yield the fields that the function has. COMMAND is first, so that it is restored last."""
    yield _HEADER[-1]
    yield from _HEADER[:-1]
    for cap in _capabilities(config):
        key = (cap.extended, cap.id)
        fields = _FIELDS.get(key, ())
        if key == (True, ExtCapId.REBAR) and cap.offset + 12 <= config.window.size:
            count = config.window.read32(cap.offset + 8) >> 5 & 7
            fields = fields[: 2 * count]
        for one in fields:
            at = cap.offset + one.offset
            if at + one.width // 8 <= config.window.size:
                yield replace(one, offset=at)


def working(driver: EpfTest, progress: Progress) -> list[Check]:
    """Return the features that work now; other cases report those that do not.

    :raises NotPassed: a skip: commands do not work; ``disable-failed``: a doorbell is still enabled
    """
    checks = [one for one in _checks(driver, progress) if _fails(driver, one[1]) is None]
    if not any(check is _command for _, check in checks):
        raise skip(Reason.SILENT, "no command is answered to begin with, so nothing can be lost")
    check_may_reset(driver)
    return checks


def use(driver: EpfTest, checks: Sequence[Check]) -> None:
    """Use all features that worked before.

    :raises NotPassed: ``lost-by-reset``: the first that no longer works
    """
    for name, check in checks:
        why = _fails(driver, check)
        if why is not None:
            hint = f"{why.hint}; " if why.hint else ""
            raise NotPassed(
                Reason.LOST_BY_RESET,
                f"{name}: {why.message}",
                hint=f"{hint}config space is as before, so that rcdrv rescan does not cure it",
            )


def _checks(driver: EpfTest, progress: Progress) -> list[Check]:
    return [
        *(
            (f"BAR{bar.index}", partial(_bar, bar.index, progress))
            for bar in driver.function.bars
            if bar is not None
        ),
        ("commands", _command),
        ("interrupts", _interrupt),
        ("transfers", transfer),
        ("the doorbell", _ring),
    ]


def _fails(driver: EpfTest, check: Callable[[EpfTest], object]) -> NotPassed | None:
    try:
        check(driver)
    except NotPassed as error:
        return None if error.verdict is Verdict.SKIP else error
    return None


def _bar(index: int, progress: Progress, driver: EpfTest) -> None:
    bar_test(index, driver, progress, stretches=outline)


def _command(driver: EpfTest) -> None:
    driver.write(Reg.COMMAND, 0)  # a command may be left over from before the link went down
    answer = driver.command(Command.RAISE_MSI_IRQ, timeout=max(_BACK, driver.timeout))
    if not answer.answered:
        raise explain(driver, answer, "RAISE_MSI_IRQ")


def _interrupt(driver: EpfTest) -> None:
    """Raise the first and the last vector."""
    choice = IrqChoice(driver.irq_name)
    if choice in (IrqChoice.MSI, IrqChoice.MSIX):
        assert driver.irq_kind is not None
        ready = driver.arm(driver.function.device.irq_count(driver.irq_kind))
        for vector in sorted({0, ready - 1}):
            raise_vector(driver, choice, vector)


def transfer(driver: EpfTest) -> str:
    """Run one READ by the endpoint's processor."""
    return transfer_test(Direction.READ, False, lambda _: [Placement(1024)], driver)


def _ring(driver: EpfTest) -> None:
    with Doorbell(driver) as doorbell:
        doorbell.acknowledged()
