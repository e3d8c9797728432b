"""The endpoint's doorbell: enable it, validate its location, ring it, disable it.

The endpoint's side is ``pci_epf_test_enable_doorbell()``, ``..._disable_doorbell()`` and
``..._doorbell_handler()``; ``drivers/pci/endpoint/pci-ep-msi.c`` allocates the doorbell.
"""

from __future__ import annotations

import contextlib

from rcdrv.device import IrqKind
from rcdrv.epf_test.answer import Answer
from rcdrv.epf_test.block import ALL_ONES, stale_doorbell
from rcdrv.epf_test.driver import MESSAGES, SETTLE, EpfTest
from rcdrv.epf_test.explain import explain
from rcdrv.epf_test.probe import check_caps_order
from rcdrv.epf_test.registers import NO_BAR, Caps, Command, Reg, Status
from rcdrv.errors import RcdrvError, UsageError
from rcdrv.function import Function
from rcdrv.mmio import Register, Window, barrier
from rcdrv.record import record
from rcdrv.verdict import NotPassed, Reason, skip

LEFT_ENABLED_HINT = (
    "DISABLE_DOORBELL has to free it: ring once, which tries that. Do not unbind pci-epf-test while"
    " it is enabled: a ring would crash the endpoint, and no doorbell could be enabled until it"
    " reboots. If DISABLE fails, reboot the endpoint"
)

NOT_MEMORY_HINT = "unbind and bind pci-epf-test on the endpoint, which sets up its BARs again"


# Plain integers, as in the driver: DISABLE should meet the endpoint's next look at COMMAND.
_DOORBELL_SUCCESS, _IRQ_RAISED = int(Status.DOORBELL_SUCCESS), int(Status.IRQ_RAISED)
_ENABLE_SUCCESS = int(Status.DOORBELL_ENABLE_SUCCESS)

# pci_epf_test_disable_doorbell() says why it does not call pci_epc_clear_bar().
LOST_BAR_HINT = (
    "pci_epc_clear_bar() on the endpoint clears the address that this host gave the BAR: DISABLE"
    " has to map the BAR's own memory with pci_epc_set_bar() instead. rcdrv rescan gives the BAR an"
    " address again"
)


@record
class Location:
    """Location of a doorbell, and the value that rings it."""

    bar: int
    offset: int
    """Bytes from the start of the BAR; a multiple of 4."""
    data: int
    """32-bit value; may be 0, as for embedded doorbells."""

    def __str__(self) -> str:
        return f"BAR{self.bar}+{self.offset:#x} data {self.data:#010x}"

    def window(self, function: Function) -> Window:
        """Return the BAR after checking that it takes a 32-bit write of the data there.

        :raises UsageError: it does not
        """
        window = function.bar(self.bar)
        if self.offset < 0 or self.offset % 4 or self.offset + 4 > window.size:
            raise UsageError(
                f"no 32-bit write at {self.offset:#x} of BAR{self.bar} ({window.size:#x} bytes)"
            )
        if not 0 <= self.data < 1 << 32:  # the register's own error would not be a UsageError
            raise UsageError(f"a doorbell takes 32 bits, unsigned, and not {self.data:#x}")
        return window


class Doorbell:
    """Context in which the endpoint's doorbell is enabled.

    :param driver: the endpoint
    :param expect_bar: fail if the endpoint reports another BAR
    :param override: ring there; the location that the endpoint reports is not checked then
    :param force: try even if CAPS does not announce doorbells: kernels 6.17 to 6.19 support
        doorbells without announcing them

    Entering raises :class:`NotPassed`: ``no-caps`` (a skip), ``enable-failed``, ``wrong-bar``,
    ``bad-bar``, ``bad-offset`` or a verdict of :func:`~rcdrv.epf_test.explain.explain`. A doorbell
    that the endpoint has enabled is always disabled again; :attr:`left_enabled` is true where this
    is not confirmed.
    """

    def __init__(
        self,
        driver: EpfTest,
        *,
        expect_bar: int | None = None,
        override: Location | None = None,
        force: bool = False,
    ) -> None:
        if driver.reg_bar in (expect_bar, override.bar if override else None):
            raise UsageError(
                f"BAR{driver.reg_bar} holds the test registers; a doorbell is never there"
            )
        self._driver = driver
        self._override = override
        self._expect_bar = expect_bar
        self._force = force
        self._enabled = False
        self._rung = False
        self._place: Location
        self._register: Register
        self.said: Location | None = None
        """Location that the endpoint reports."""
        self.location: Location | None = None
        """Location that is rung."""
        self.left_enabled = False

    # -- enable and disable -------------------------------------------------------------------

    def __enter__(self) -> Doorbell:
        driver = self._driver
        if driver.doorbell_held:
            raise UsageError("this program holds the doorbell already, enabled")
        driver.count_strays()
        driver.distrust()
        if not driver.caps & Caps.DYNAMIC_INBOUND_MAPPING and not self._force:
            check_caps_order(driver.caps)
            raise skip(
                Reason.NO_CAPS,
                f"the endpoint does not announce doorbells (CAPS {int(driver.caps):#010x} lacks"
                " DYNAMIC_INBOUND_MAPPING)",
                hint="kernels 6.17 to 6.19 can do them without saying so: `force` tries",
            )
        driver.doorbell_held = True
        try:
            if self._override:
                self._override.window(driver.function)
            self._enable()
            self.said = Location(
                driver.read(Reg.DB_BAR), driver.read(Reg.DB_OFFSET), driver.read(Reg.DB_DATA)
            )
            if self._override is None:
                self._check(self.said)
            self.location = self._place = self._override or self.said
            self._register = self._place.window(driver.function).register32(self._place.offset)
        except BaseException:
            self._leave(failing=True)
            raise
        return self

    def __exit__(self, exc_type: object, exc: BaseException | None, traceback: object) -> None:
        self._leave(failing=exc is not None)

    def _enable(self) -> None:
        driver = self._driver
        before = driver.db_bar if driver.free_db_bar is None else driver.free_db_bar
        answer = self._send_enable()
        refused = answer.answered and not self._enabled and not answer.contradicts
        if refused and stale_doorbell(driver) is not None:
            # An earlier run died with its doorbell enabled, so ENABLE fails with EBUSY. DISABLE
            # is safe only because DB_BAR names a doorbell: on an endpoint that has never enabled
            # one, it dereferences a null pointer.
            driver.trace("doorbell left enabled by an earlier run: disable it and try again")
            self._send_disable()
            answer = self._send_enable()
            if not self._enabled and stale_doorbell(driver) is not None:
                self.left_enabled = True
                raise NotPassed(
                    Reason.DISABLE_FAILED,
                    "the doorbell of an earlier run is still enabled: DISABLE_DOORBELL does not"
                    " free it",
                    hint=LEFT_ENABLED_HINT,
                )
        if self._enabled and answer.good:
            return
        if answer.good:
            after = driver.read(Reg.DB_BAR)
            if after == NO_BAR and driver.read(Reg.STATUS) == ALL_ONES:
                raise driver.all_ones()
            raise self._enable_failed(before, after)
        if not answer.command_left and stale_doorbell(driver) is not None:
            # Only the answer was lost: ENABLE has succeeded, or was refused because of an earlier
            # run's doorbell. That run has ended, so either is to be disabled.
            self._enabled = True
        raise explain(driver, answer, "ENABLE_DOORBELL")

    def _enable_failed(self, before: int | None, after: int) -> NotPassed:
        """Return the verdict for DOORBELL_ENABLE_FAIL.

        pci_epf_test_doorbell_cleanup() writes NO_BAR only if pci_epf_alloc_doorbell() succeeded.

        :param before: DB_BAR before ENABLE; None if unknown
        """
        from rcdrv.epf_test.causes import Symptom, hint

        message = "the endpoint could not enable its doorbell (DOORBELL_ENABLE_FAIL)"
        # If before is NO_BAR, from an earlier DISABLE, a doorbell could at least be allocated then.
        symptom = Symptom.REFUSED if after != NO_BAR else Symptom.NOT_MAPPED
        if symptom is Symptom.REFUSED:
            message += ": it got none"
        elif before != NO_BAR:
            probably = "probably " if before is None else ""
            message += f": it {probably}got one and could not map it into a BAR"
        return NotPassed(Reason.ENABLE_FAILED, message, hint=hint(symptom, self._driver.part))

    def _send_enable(self) -> Answer:
        answer = self._driver.command(Command.ENABLE_DOORBELL)
        self._note(answer)
        return answer

    def _note(self, answer: Answer) -> None:
        """Update the doorbell's state from the answer to ENABLE."""
        success = int(answer.status) & _ENABLE_SUCCESS != 0
        self._enabled = answer.answered and success and not answer.contradicts
        # Without an answer, the endpoint may still have enabled it.
        self.left_enabled = (not answer.answered and not answer.command_left) or answer.contradicts

    def _check(self, said: Location) -> None:
        """Reject a location that cannot be the doorbell, so that nothing is written there."""
        driver = self._driver
        bar, offset = said.bar, said.offset
        if ALL_ONES in (bar, offset, said.data) and driver.read(Reg.STATUS) == ALL_ONES:
            raise driver.all_ones()
        bars = driver.function.bars
        bar_info = bars[bar] if bar < len(bars) else None
        if bar_info is None or not bar_info.is_memory:
            what = "no BAR (NO_BAR)" if bar == NO_BAR else f"BAR{bar}" if bar < 6 else f"{bar:#x}"
            raise NotPassed(
                Reason.BAD_BAR,
                f"the endpoint says its doorbell is in {what}: there is no such memory BAR",
                hint="the BARs are shown by: rcdrv info",
            )
        if bar == driver.reg_bar:
            raise NotPassed(
                Reason.BAD_BAR,
                f"the endpoint says its doorbell is in BAR{bar}, which holds the test registers",
            )
        if self._expect_bar is not None and bar != self._expect_bar:
            raise NotPassed(
                Reason.WRONG_BAR,
                f"the endpoint's doorbell is in BAR{bar}, not in BAR{self._expect_bar}",
                hint=f"ring it there with `bar={bar}`, or leave `bar` out",
            )
        size = driver.function.bar(bar).size
        if offset % 4 or offset + 4 > size:
            raise NotPassed(
                Reason.BAD_OFFSET,
                f"the endpoint says its doorbell is at {offset:#x} of BAR{bar}, "
                + ("not a multiple of 4" if offset % 4 else f"which has {size:#x} bytes"),
                hint="nothing was written: DB_OFFSET is wrong, or of a BAR with another size",
            )

    def _leave(self, failing: bool) -> None:
        """Disable the doorbell. With ``failing``, suppress rcdrv's own errors in favour of the
        first one."""
        with self._driver.function.cancel.deferred():
            try:
                self._disable()
            except BaseException as error:
                # If only DISABLE's interrupt was lost, the doorbell is disabled nevertheless.
                self.left_enabled = self._enabled or self._driver.in_flight is not None
                if not failing or not isinstance(error, RcdrvError):
                    raise
            finally:
                self._driver.doorbell_held = False

    def _disable(self) -> None:
        driver = self._driver
        if driver.in_flight is Command.ENABLE_DOORBELL:
            # ENABLE was interrupted while waiting: find out whether the endpoint took it.
            answer = driver.settle()
            assert answer is not None
            self._note(answer)
        if not self._enabled:
            return
        answer = self._send_disable()
        if answer.answered and answer.status & Status.DOORBELL_DISABLE_SUCCESS:
            self._enabled = self.left_enabled = False
            if answer.good and not answer.irq_lost:
                driver.free_db_bar = NO_BAR  # pci_epf_test_doorbell_cleanup()
                return
        elif answer.answered:
            message = "the endpoint could not disable its doorbell (DOORBELL_DISABLE_FAIL)"
            if driver.db_bar != NO_BAR:
                raise NotPassed(Reason.DISABLE_FAILED, message, hint=LEFT_ENABLED_HINT)
            self._enabled = self.left_enabled = False
            raise NotPassed(
                Reason.DISABLE_FAILED,
                f"{message}: it is freed, but its BAR does not show memory again",
                hint=NOT_MEMORY_HINT,
            )
        raise explain(driver, answer, "DISABLE_DOORBELL")

    def _send_disable(self) -> Answer:
        """Send DISABLE, and note whether the doorbell's BAR shows memory again.

        pci_epf_test_disable_doorbell() frees doorbell and interrupt before pci_epc_set_bar().
        """
        driver = self._driver
        bar = driver.db_bar if driver.db_bar is not None else stale_doorbell(driver)
        answer = driver.command(Command.DISABLE_DOORBELL)
        if not answer.answered:
            return answer
        if answer.status & Status.DOORBELL_DISABLE_SUCCESS:
            driver.not_memory.discard(NO_BAR if bar is None else bar)
        elif driver.read(Reg.DB_BAR) == NO_BAR and bar is not None:
            driver.not_memory.add(bar)
        return answer

    # -- ring ---------------------------------------------------------------------------------

    def write(self) -> None:
        """Ring: one 32-bit write, no other access."""
        self._rung = True
        self._driver.unanswered += 1
        self._register[0] = self._place.data

    def burst(self, count: int) -> None:
        """Ring ``count`` times as fast as possible without waiting for answers. Not interruptible.

        The endpoint may acknowledge several rings at once: its interrupt is a single pending bit.
        """
        self._rung = True
        self._driver.unanswered += count
        window = self._place.window(self._driver.function)
        barrier()
        window.burst32(self._place.offset, self._place.data, count)

    def ring(self, vector: int = 0) -> Answer:
        """Ring once and wait for the acknowledgement, by this vector, from 0.

        :raises DeviceLost: the device is gone
        """
        driver = self._driver
        # The endpoint's handler reads these registers when it raises the interrupt.
        driver.request_irq(vector)
        # Before the first ring STATUS holds the answer to ENABLE, which no ring's is mistaken for.
        # Polling needs IRQ_RAISED cleared too: the handler sets it after DOORBELL_SUCCESS. INTx may
        # still be asserted for ENABLE.
        left, told = driver.status, driver.irq_kind in MESSAGES and not self._rung
        if left is None or left & _DOORBELL_SUCCESS or not told:
            driver.write(Reg.STATUS, 0)
            left = 0
        driver.drop_interrupts()  # of ENABLE, late or twice
        barrier()
        driver.trace("ring  {}", self._place)
        start = driver.function.clock.now_ns()
        self.write()
        answer = driver.wait_answer(start, Status.DOORBELL_SUCCESS)
        if left and answer.status != ALL_ONES:  # show what is new
            old = left & ~_IRQ_RAISED if answer.answered else left
            answer.status = Status(int(answer.status) & ~old)
        if answer.answered and not answer.irq_lost:
            driver.unanswered -= 1
        return answer

    def acknowledged(self, what: str = "") -> Answer:
        """Ring once, return the acknowledgement, and wait for a second interrupt.

        :param what: the ring, in the message of a failure
        :raises NotPassed: there is none
        """
        answer = self.ring()
        failure = self.judge(answer)
        if failure is not None:
            failure.message = f"{what}: {failure.message}" if what else failure.message
            raise failure
        self.settle()
        return answer

    def settle(self) -> None:
        """Wait for a second interrupt of the last ring, which :attr:`EpfTest.stray` counts."""
        self._driver.function.pause(SETTLE)
        self._driver.drop_interrupts()

    def bar_is_lost(self) -> bool:
        """Return whether the doorbell's BAR reads all ones after DISABLE.

        :raises DeviceLost: the whole device is gone
        """
        window = self._place.window(self._driver.function)
        if window.read32(self._place.offset) != ALL_ONES or window.read32(0) != ALL_ONES:
            return False
        self._driver.function.check_alive()
        return True

    def judge(self, answer: Answer) -> NotPassed | None:
        """Return the failure in a ring's answer; None if it is an acknowledgement."""
        driver = self._driver
        if not answer.answered or answer.irq_lost:
            failure = explain(driver, answer, "doorbell")
            if failure.reason is Reason.SILENT:
                failure.hint = self._cut_off() or (
                    "does the endpoint's /proc/interrupts count pci-ep-test-doorbell up? If not,"
                    " the write does not arrive: is the BAR mapped where the endpoint thinks?"
                )
            return failure
        if not answer.vectors:  # polled
            return None
        if min(answer.vectors) or len(answer.vectors) > 1:
            message = f"doorbell: {driver.irq_name} vector {answer.fired} fired, not 1"
            return NotPassed(Reason.WRONG_VECTOR, message)
        if sum(answer.vectors.values()) > 1 and driver.irq_kind is not IrqKind.INTX:
            return NotPassed(
                Reason.IRQ_TWICE,
                f"doorbell: {sum(answer.vectors.values())} interrupts for one ring",
                hint="is the endpoint's interrupt level-triggered and acknowledged too late?",
            )
        return None

    def _cut_off(self) -> str:
        """Return the hint for silence in a BAR above 4 GiB: the endpoint truncates the offset to 32
        bits (cpu_to_le32() in pci_epf_test_enable_doorbell())."""
        bar = self._place.bar
        size = self._driver.function.bar(bar).size
        if self._override is not None or size <= 1 << 32:
            return ""
        return (
            f"BAR{bar} has {size >> 30} GiB, and DB_OFFSET only 32 bits: the endpoint silently"
            f" truncates an offset beyond 4 GiB. Give its BAR{bar} 4 GiB or less"
        )


def free_stale_doorbell(driver: EpfTest) -> None:
    """Disable a doorbell that an earlier run left enabled, if the endpoint permits.

    Until then its BAR may show the endpoint's interrupt controller instead of memory.
    """
    if stale_doorbell(driver) is not None:
        with contextlib.suppress(NotPassed), Doorbell(driver, force=True):
            driver.trace("an earlier run had left the doorbell enabled")


def check_may_reset(driver: EpfTest) -> None:
    """Free a doorbell that is still enabled, or refuse to reset the function with it.

    What loses its set-up by a reset has to be restarted, and pci_epf_test_unbind() leaves the
    doorbell's handler behind, on registers that are free: a ring crashes it. Neither does
    pci_epf_test_epc_deinit() free a doorbell: where the reset comes with PERST#,
    dw_pcie_ep_cleanup() gives the eDMA's interrupt away (dw_edma_emul_irq_free()) while the handler
    has it.

    :raises NotPassed: ``disable-failed``
    """
    free_stale_doorbell(driver)
    bar = stale_doorbell(driver)
    if bar is not None:
        raise NotPassed(
            Reason.DISABLE_FAILED,
            f"a doorbell is still enabled in BAR{bar}, so nothing is reset: an endpoint that"
            " loses its set-up has to be restarted, and could crash with a doorbell enabled",
            hint=LEFT_ENABLED_HINT,
        )
