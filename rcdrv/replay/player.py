"""Replay a recording as a device, and report where a driver departs from it.

Time is virtual. The driver must act in the recorded order, except that

* a polled register may be read more or less often than in the recording;
* config space may be read at any time, from its last known contents;
* an interrupt is delivered when the driver waits, or continues without waiting for it;
* what cannot matter to the endpoint may differ: :mod:`rcdrv.replay.order`.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
from collections.abc import Callable, Sequence

from rcdrv.device import CONFIG_REGION, Area, Device, IrqKind, RegionFlag, RegionInfo, SetIrqs
from rcdrv.errors import Departed, DeviceLost, HostError, UsageError
from rcdrv.replay.buffers import Buffer, Buffers
from rcdrv.replay.contents import Written, cut, digest, pieces, unpack
from rcdrv.replay.order import Order
from rcdrv.replay.recording import Event, Place, Recording, error_of, register, told
from rcdrv.wait import Clock

_ACCESS_TIME = 20e-6  # seconds per access beyond the recording, so that a busy loop ends
_COMMAND = 4
_CUT_OFF = {(): "at its largest size", ("killed",): "as the run was killed, or the disk was full"}
_GRAIN = 1 << 16  # largest page size: buffers are whole pages


class VirtualClock(Clock):
    """Clock that advances with recorded events, and with waits without an event."""

    def __init__(self, wait: Callable[[select.epoll, float, int], list[tuple[int, int]]]) -> None:
        self.time = 0.0
        self.now = lambda: self.time
        self.now_ns = lambda: int(self.time * 1e9)
        self.sleep = self.advance
        self.poll = wait

    def advance(self, seconds: float) -> None:
        """Advance by ``seconds``, at least by the time of an access."""
        self.time += max(seconds, _ACCESS_TIME)


class Player(Device):
    """A :class:`~rcdrv.device.Device` that replays a recording.

    :param address: name of the device in messages
    """

    backend = "replay"
    messages = True

    def __init__(self, address: str, recording: Recording) -> None:
        self.address = address
        self.recording = recording
        self.clock = VirtualClock(self.wait)
        self._events = recording.events
        self._order = Order(recording.events)
        self._config = bytearray(recording.config)
        self._eventfds: dict[tuple[int, int], int] = {}
        self._buffers = Buffers(recording.seed)
        self._written = Written()
        self._polled: tuple[Place, int] | None = None
        self._case = ""
        self._used = False
        self._departed: Departed | None = None
        self._unseen = False

    @property
    def summary(self) -> dict[str, object]:
        return self.recording.summary()

    # -- the recorded order ---------------------------------------------------------------------

    def _take(self, op: str, *fields: int | str) -> Event:
        """Advance to the event of this call of the driver, and return the event.

        :raises Departed: the recording has a different event
        """
        self._check()
        at = self._order.find(op, fields)
        if at is None:
            raise self._depart(told(op, fields))
        return self._reach(at)

    def _reach(self, at: int) -> Event:
        self._pass(at)
        event = self._events[at]
        if event.acts:
            self._compare_parameters(event)
        self._order.next = at + 1
        self.clock.time = max(self.clock.time, event.time)
        self._polled = None
        if event.acts or event.error:
            self._order.happen(event)
        if event.error:
            raise error_of(event.error, self.address)
        return event

    def _compare_parameters(self, event: Event) -> None:
        """Before something is done: what it depends on must have come to the same."""
        order = self._order
        missed = order.missed()
        if missed is not None:
            raise self._depart(told(event.op, event.fields), missed)
        if event.op == "w" and order.is_parameter(event):
            return
        place = order.difference()
        if place is not None:
            raise self._depart(
                f"{told(event.op, event.fields)} with {register(place, order.driven.get(place))}",
                expected=f"expected {register(place, order.recorded.get(place))}",
            )

    def _pass(self, end: int) -> None:
        """Perform the device's events before the event ``end``."""
        order = self._order
        while order.next < end:
            event = self._events[order.next]
            order.next += 1
            if event.op == "n":
                order.memory.moment += 1
                self.clock.time = max(self.clock.time, event.time)
                kind, vector, count = event.fields
                fd = self._eventfds.get((kind, vector))
                if fd is not None:
                    os.eventfd_write(fd, count)
            elif event.op == "d":
                order.memory.moment += 1
                self._fill(event)
            elif event.op == "h":
                self._compare(event)
            elif event.op == "t" and event.fields[0] == "case":
                self._case = " ".join(event.fields[1:])
            elif event.op == "l":
                raise DeviceLost(f"{self.address}: the device was lost here in the recording")
            elif event.op == "r" and event.of_config and not event.error:
                self._learn(event)
            elif event.op in "rw":
                order.leave_out(order.next - 1)

    def _check(self) -> None:
        if self._departed is not None:
            raise self._departed

    def _depart(self, came: str, at: int | None = None, expected: str = "") -> Departed:
        """Return the error for a driver that does ``came`` instead of the expected event.

        :param at: the expected event; default the next one
        :param expected: words for what was expected; default those of that event
        """
        if at is None:
            at = self._order.next
            while at < len(self._events) and self._events[at].transparent:
                at += 1
        if at == len(self._events):
            expected, time = expected or "the recording has ended", self.clock.time
        else:
            event = self._events[at]
            time = event.time
            expected = expected or f"expected {told(event.op, event.fields)}"
            if event.op == "x":
                expected = f"the recording is cut off here, {_CUT_OFF[event.fields]}"
        where = f", in {self._case}" if self._case else ""
        self._departed = Departed(
            f"{self.address}: the driver departs from the recording at line"
            f" {self.recording.line(at)}, {time:.3f} s after its start{where}: {expected},"
            f" got {came}",
            hint="use the recorded command and options (rcdrv info shows them); if the driver was"
            " changed on purpose, record again",
        )
        return self._departed

    def _spoiled(self, event: Event, error: Exception) -> UsageError:
        line = self.recording.line(self._order.next - 1)
        return UsageError(f"{self.address}: line {line} of the recording ({event.op}): {error}")

    # -- regions --------------------------------------------------------------------------------

    def region(self, index: int) -> RegionInfo:
        known = self.recording.regions
        size, flags = known[index] if 0 <= index < len(known) else (0, 0)
        return RegionInfo(index, size, RegionFlag(flags))

    def irq_count(self, kind: IrqKind) -> int:
        return self.recording.irqs[kind]

    def read(self, region: int, offset: int, size: int) -> bytes:
        if region == CONFIG_REGION:
            return self._read_config(offset, size)
        self._check()
        self._used = True
        if size in (1, 2, 4, 8) and offset % size == 0:
            return self._read_register((region, offset, size))
        parts = pieces(offset, size) if self.recording.is_cut else [(offset, size)]
        return b"".join([self._read_block((region, *part)) for part in parts])

    def _read_register(self, place: Place) -> bytes:
        size = place[2]
        event = self._order.take_owed(place)
        if event is None:
            at = self._order.find("r", place)
            if self._is_early(at) or self._order.skips(at):
                known = self._order.value(place)
                if self._polled is not None and self._polled[0] == place:
                    known = self._polled[1]
                if known is not None:
                    self.clock.advance(0)
                    return known.to_bytes(size, "little")
            event = self._take("r", *place)
        if self._order.recorded.get(place) != self._order.driven.get(place):
            raise self._depart(
                f"{told('r', place)}, which the driver has made another value,",
                expected="expected the recorded value",
            )
        value: int = event.value
        if value >> 8 * size:
            raise self._spoiled(event, OverflowError("int too big"))
        self._order.see(event)
        self._polled = place, value
        return value.to_bytes(size, "little")

    def _is_early(self, at: int | None) -> bool:
        """Return whether an event of the device is still to come before the event ``at``."""
        return at is None or any(
            event.op in "nl" and event.time > self.clock.time
            for event in self._events[self._order.next : at]
        )

    def _read_block(self, place: Place) -> bytes:
        known = self._written.known(place)
        if known and self._order.find("R", place) is None and self._order.shows_block(place):
            self.clock.advance(0)
            return known["w"]
        return self._contents(self._take("R", *place), known)

    def _contents(self, event: Event, known: dict[str, bytes]) -> bytes:
        *_, size, contents = event.fields
        try:
            return unpack(contents, size, known)
        except (ValueError, OverflowError) as error:
            raise self._spoiled(event, error) from None

    def write(self, region: int, offset: int, data: bytes) -> None:
        size, value = len(data), int.from_bytes(data, "little")
        if region == CONFIG_REGION:
            self._write_config(offset, size, value)
            return
        self._used = True
        if size in (1, 2, 4, 8) and offset % size == 0:
            self._check()
            order, place = self._order, (region, offset, size)
            spelled = self._buffers.spell(*place, value)
            if order.find("w", (*place, spelled)) is None and (
                order.set_parameter(place, spelled) or order.changes_nothing(place, value)
            ):
                self.clock.advance(0)
            else:
                self._take("w", *place, spelled)
            return
        for first, piece in cut(offset, data) if self.recording.is_cut else [(offset, data)]:
            place = region, first, len(piece)
            self._take("W", *place, digest(piece))
            self._written.keep(place, piece)

    def explain(self, region: int, parameters: Sequence[int], constants: Sequence[int]) -> None:
        """See :meth:`rcdrv.function.Function.explain`."""
        self._order.parameters.update((region, offset, 4) for offset in parameters)
        self._order.constants.update((region, offset, 4) for offset in constants)

    def _write_config(self, offset: int, size: int, value: int) -> None:
        fields = CONFIG_REGION, offset, size, value
        is_command = (offset, size) == (_COMMAND, 2)
        if is_command and value == self._order.command and self._order.find("w", fields) is None:
            return
        self._take_quietly("w", *fields)
        if is_command:
            self._order.command = value

    def _take_quietly(self, op: str, *fields: int) -> Event:
        """Advance as :meth:`_take` in clean-up, whose suppressed errors :meth:`close` reports."""
        before = self._departed
        try:
            return self._take(op, *fields)
        except Departed:
            self._unseen = self._unseen or before is None
            raise

    def _read_config(self, offset: int, size: int) -> bytes:
        if not 0 <= offset <= offset + size <= len(self._config):
            raise UsageError(f"{self.address}: no {size} bytes at {offset:#x} of config space")
        self._check()
        at = self._order.find("r", (CONFIG_REGION, offset, size))
        if at is not None and not self._is_early(at):
            self._learn(self._reach(at))
        return bytes(self._config[offset : offset + size])

    def _learn(self, event: Event) -> None:
        offset, size, value = event.fields[1:]
        if offset + size <= len(self._config) and value >> 8 * size == 0:
            self._config[offset : offset + size] = value.to_bytes(size, "little")
            if offset <= _COMMAND < offset + size:
                self._order.command = None

    def map(self, region: int, area: Area) -> mmap.mmap:
        raise HostError(f"{self.address}: region {region} has no {area.size:#x} bytes to map")

    # -- interrupts -----------------------------------------------------------------------------

    def set_irqs(
        self, kind: IrqKind, flags: SetIrqs, start: int, count: int, eventfds: Sequence[int] = ()
    ) -> int:
        if not count:
            for key in [key for key in self._eventfds if key[0] == kind]:
                del self._eventfds[key]
        event = self._take_quietly("i", int(kind), int(flags), start, count)
        result: int = event.fields[4]
        if not result:
            for vector, fd in enumerate(eventfds, start):
                if fd >= 0:
                    self._eventfds[int(kind), vector] = fd
        return result

    def wait(self, epoll: select.epoll, seconds: float, most: int) -> list[tuple[int, int]]:
        """Deliver the device's next events at once, or advance to the end of the wait."""
        ready = epoll.poll(0, most)
        if ready:
            return ready
        if self._departed is None:
            at = self._due(self.clock.time + seconds)
            if at is not None:
                self._pass(at + 1)
                self.clock.time = max(self.clock.time, self._events[at].time)
                self.clock.advance(0)
                return epoll.poll(0, most)
            if self._order.next < len(self._events) and self._events[self._order.next].op == "p":
                self._order.next += 1
        self.clock.advance(seconds)
        return []

    def _due(self, end: float) -> int | None:
        """Return the last of the device's events to deliver now.

        These came when the recorded driver waited here, or before the time ``end``.
        """
        found, direct = None, True
        for at, event in self._order.ahead(self._order.next):
            if event.of_device:
                if not direct and event.time > end:
                    break
                found = at
            elif event.op == "p" or self._order.superseded(at):
                direct = False
            elif not event.transparent or event.op == "h":
                break
        return found

    # -- DMA ------------------------------------------------------------------------------------

    def dma_ranges(self) -> Sequence[tuple[int, int]]:
        return ((0, (1 << 64) - 1),)

    def dma_map(self, iova: int, memory: mmap.mmap, size: int, fd: int) -> None:
        del fd
        recorded = self._take("m", self._buffers.count).fields[1]
        if -(-recorded // _GRAIN) != -(-size // _GRAIN):
            self._order.next -= 1
            raise self._depart(f"a DMA buffer of {size:#x} bytes")
        self._buffers.add(Buffer(iova, memory, size))

    def dma_unmap(self, iova: int, size: int) -> None:
        del size
        self._take_quietly("u", self._buffers.remove(iova))

    def random_bytes(self, size: int) -> bytes:
        """Return the data that the recorded driver used."""
        return self._buffers.random_bytes(size)

    def _fill(self, event: Event) -> None:
        """Write to a DMA buffer as the device did."""
        number, first, size, word = event.fields
        buffer = self._buffers.mapped.get(number)
        if buffer is None or first + size > buffer.size:
            return  # this host has smaller pages, or the driver has unmapped it
        known = self._buffers.known(number, first, size)
        if word.startswith("=s"):
            with contextlib.suppress(ValueError):
                at = int(word[2:], 16)
                known[word[1:]] = self._buffers.random[at : at + size]
        buffer.memory[first : first + size] = self._contents(event, known)

    def _compare(self, event: Event) -> None:
        number, recorded = event.fields
        buffer = self._buffers.mapped.get(number)
        if buffer is not None and digest(buffer.contents) != recorded:
            self._order.next -= 1
            raise self._depart(f"different data in DMA buffer {number}")

    # -- the whole device -----------------------------------------------------------------------

    def can_reset(self) -> bool:
        return self.recording.can_reset

    def reset(self) -> None:
        self._take("z")

    def close(self) -> None:
        """Check that a driver that used the device did all that the recorded one did.

        :raises Departed: it did not, and that was not reported yet
        """
        used, self._used = self._used, False
        if not used:
            return
        if self._departed is not None:
            if self._unseen:
                raise self._departed
        else:
            left = self._order.remaining()
            if left is not None:
                raise self._depart("the end of the driver", left)


def open_replay(address: str) -> Player:
    """Open a recording by its address, ``replay:FILE``.

    :raises UsageError: it cannot be read, or is no recording
    """
    return Player(address, Recording.read(address.partition(":")[2]))
