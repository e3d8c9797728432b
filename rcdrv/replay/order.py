"""The recorded order, and what of a changed driver cannot have mattered to the recorded endpoint.

What is assumed of a BAR: a read has no effect, and a write of the value that is there has none,
if the register was seen to keep a value and no write to it to have an effect. All else follows from
the recording: a register that the endpoint was never seen to change holds its value until another
than such a register is written; of one that it did change, the value is known until anything
happens. And from what a driver says of its endpoint: registers that it reads only with a command,
and registers that it never changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

from rcdrv.replay.recording import Event, Place

FARTHEST = 1000
"""Events that one call may pass over."""

_GRAIN = 16  # bits; blocks are looked up by their pieces of 64 KiB
_MANY = 16  # pieces; a larger block stands for its whole BAR

Word = tuple[int, int]


def _word(place: Place) -> Word:
    return place[0], place[1] >> 3


def _shift(place: Place) -> int:
    return 8 * (place[1] & 7)


def _mask(place: Place) -> int:
    return (1 << 8 * place[2]) - 1 << _shift(place)


def _pieces(place: Place) -> list[Word]:
    region, offset, size = place
    first, last = offset >> _GRAIN, offset + max(size, 1) - 1 >> _GRAIN
    return (
        [(region, -1)] if last - first >= _MANY else [(region, n) for n in range(first, last + 1)]
    )


class _Bytes:
    """Eight bytes of a BAR; masks have the bits of bytes."""

    __slots__ = ("fresh", "known", "moment", "seen", "since", "value")

    def __init__(self) -> None:
        self.value = self.known = self.fresh = 0
        self.moment = -1
        """When bytes were read last."""
        self.seen = 0
        """Number of registers written before the bytes were read or written last."""
        self.since = 0
        """Number of blocks written before."""


class Memory:
    """Registers of BARs, as far as single accesses tell."""

    def __init__(self) -> None:
        self.moment = 0
        """Number of things that happened: writes, interrupts, transfers."""
        self.writes: list[Place] = []
        """The registers written, one by one."""
        self._words: dict[Word, _Bytes] = {}
        self._blocks: dict[Word, int] = {}
        self._count = 0

    def _at(self, word: Word) -> _Bytes:
        found = self._words.setdefault(word, _Bytes())
        piece = word[0], word[1] << 3 >> _GRAIN
        written = max(self._blocks.get(piece, 0), self._blocks.get((word[0], -1), 0))
        if written > found.since:
            found.known = found.fresh = 0
        found.since = self._count
        return found

    def see(self, place: Place, value: int) -> bool:
        """Keep what was read. Return whether it contradicts what was known."""
        found, mask = self._at(_word(place)), _mask(place)
        value = value << _shift(place) & mask
        contradicts = bool((found.value ^ value) & found.known & mask)
        if found.moment != self.moment:
            found.moment, found.fresh = self.moment, 0
        found.value = found.value & ~mask | value
        found.known |= mask
        found.fresh |= mask
        found.seen = len(self.writes)
        return contradicts

    def write(self, place: Place, value: int | str) -> None:
        """Keep what was written; an address, which each host has its own of, is not known."""
        self.moment += 1
        self.writes.append(place)
        found, mask = self._at(_word(place)), _mask(place)
        found.fresh &= ~mask
        if isinstance(value, str):
            found.known &= ~mask
            return
        found.value = found.value & ~mask | value << _shift(place) & mask
        found.known |= mask

    def write_block(self, place: Place) -> None:
        self.moment += 1
        self._count += 1
        for piece in _pieces(place):
            self._blocks[piece] = self._count

    def last_value(self, place: Place) -> int | None:
        """What was last read or written there; None if that is not known."""
        last = self.last(place)
        return last and last[0]

    def last(self, place: Place) -> tuple[int, bool, int] | None:
        """What was last read or written there; whether it was read, and nothing happened since;
        and how many registers had been written by then.

        None if that is not known.
        """
        found, mask = self._at(_word(place)), _mask(place)
        if mask & ~found.known:
            return None
        fresh = found.moment == self.moment and not mask & ~found.fresh
        return (found.value & mask) >> _shift(place), fresh, found.seen


class _Survey:
    """What the whole recording tells of each register."""

    def __init__(self, events: Sequence[Event]) -> None:
        self._moving: dict[Word, int] = {}
        self.first_write = len(events)
        """The first event that may have had an effect on the endpoint."""
        self.quiet: set[Place] = set()
        """Registers that were seen to take a new value, and of which no write was the last before
        the endpoint did something."""
        loud: set[Place] = set()
        memory, last, before = Memory(), None, None
        for at, event in enumerate(events):
            if event.of_config:
                continue
            moved = event.of_device or bool(event.error)
            if event.op == "r" and not event.error:
                place, value = event.place, event.value
                moved = memory.see(place, value)
                if moved:
                    word = _word(place)
                    self._moving[word] = self._moving.get(word, 0) | _mask(place)
                elif place == last and before not in (None, value):
                    self.quiet.add(place)
            if moved and last is not None:
                loud.add(last)
            if not event.acts:
                continue
            self.first_write = min(self.first_write, at)
            last = None
            if event.op == "w" and not event.error:
                last = event.place
                before = memory.last_value(last)
                memory.write(last, event.value)
            elif event.op == "W":
                memory.write_block(event.place)
        self.quiet -= loud

    def moves(self, place: Place) -> bool:
        """Whether the endpoint was seen to change the register."""
        return bool(self._moving.get(_word(place), 0) & _mask(place))


class Order:
    """The events, how far the driver has come, and which of them it may leave out."""

    def __init__(self, events: Sequence[Event]) -> None:
        self.events = events
        self.next = 0
        self.memory = Memory()
        self.owed: list[int] = []
        """Reads that the driver has passed over, and may still make."""
        self.command: int | None = None
        """COMMAND of config space, as last read or written."""
        self.parameters: set[Place] = set()
        """Registers that the endpoint reads only when something else is written."""
        self.constants: set[Place] = set()
        """Registers that the endpoint never changes."""
        self._searched, self._loudest = 0, -1
        self.recorded: dict[Place, int | str] = {}
        self.driven: dict[Place, int | str] = {}
        """What parameters are in the recording, and what the driver has made of them."""
        # What a search finds stays so until something happens: a register is polled often.
        self._found_at = (0, 0, 0)
        self._found: dict[tuple[str, tuple[int | str, ...]], int | None] = {}

    @cached_property
    def _survey(self) -> _Survey:
        """Made when a driver first does something else."""
        return _Survey(self.events)

    def ahead(self, start: int) -> Iterator[tuple[int, Event]]:
        """The events from ``start`` on, as far as one call may look, each with its number."""
        for at in range(start, min(start + FARTHEST, len(self.events))):
            yield at, self.events[at]

    # -- where a call of the driver is ----------------------------------------------------------

    def find(self, op: str, fields: tuple[int | str, ...]) -> int | None:
        """Return the next event that this call can be, if all before it may be left out."""
        now = self.next, self.memory.moment, len(self.owed)
        if self._found_at != now:
            self._found_at = now
            self._found.clear()
        key = op, fields
        if key not in self._found:
            self._found[key] = self._look_for(op, fields)
        return self._found[key]

    def _look_for(self, op: str, fields: tuple[int | str, ...]) -> int | None:
        polled: set[Place] = set()
        calm = True
        for at, event in self.ahead(self.next):
            if event.op == op and event.fields[: len(fields)] == fields:
                return at
            if event.transparent:
                calm = calm and not event.of_device
            elif event.place in polled:
                return None
            elif self.superseded(at):
                polled.add(event.place)
            elif not self._is_idle(at, calm) and not (op in "rimu" and self._can_wait(at)):
                return None
        return None

    def skips(self, at: int | None) -> bool:
        """Whether the driver leaves something out if its call is this event."""
        return any(not event.transparent for event in self.events[self.next : at])

    def superseded(self, at: int) -> bool:
        """Whether the same register is read again before anything else is done."""
        event = self.events[at]
        if event.op != "r" or event.error or event.transparent:
            return False
        for _, other in self.ahead(at + 1):
            if not other.transparent:
                return other.op == "r" and other.place == event.place
        return False

    def _is_idle(self, at: int, calm: bool = True) -> bool:
        """Whether a driver that leaves this out does the same to the endpoint, and misses no news
        of it.

        :param calm: the endpoint has done nothing since the last event that came
        """
        event = self.events[at]
        if event.error or event.op not in "rwR":
            return False
        if event.op == "R":
            return bool(event.value == "=w")
        place, value = event.place, event.value
        if event.of_config:
            return place[1:] == (4, 2) and bool(value == self.command)
        if place in self.parameters:
            return event.op == "w"
        if event.op == "w":
            return place in self._survey.quiet and value == self.value(place, calm=calm)
        return value == self.value(place, calm=calm) or (
            self._can_wait(at)
            and (at < self._survey.first_write or value == self.memory.last_value(place))
        )

    def _can_wait(self, at: int) -> bool:
        """Whether this is a read that would have found the same a little later."""
        event = self.events[at]
        return event.op == "r" and not event.error and not self._survey.moves(event.place)

    def remaining(self) -> int | None:
        """The first event that a driver which ends here has left out wrongly."""
        missed = self.missed()
        if missed is not None:
            return missed
        rest = range(self.next, len(self.events))
        return next(
            (at for at in rest if not self.events[at].transparent and not self._is_idle(at)), None
        )

    def missed(self) -> int | None:
        """A read that was passed over, and has to come before anything is done."""
        return next((at for at in self.owed if at >= self._survey.first_write), None)

    def leave_out(self, at: int) -> None:
        """Go on past a read or a write that the driver has not made."""
        event = self.events[at]
        if event.error:
            return
        if event.op == "w":
            if self.is_parameter(event):
                self.recorded[event.place] = event.value
        elif self._is_idle(at):
            self.see(event)
        elif not self.superseded(at):
            self.owed.append(at)

    def take_owed(self, place: Place) -> Event | None:
        """A read that was passed over, and is made now."""
        for at in self.owed:
            if self.events[at].place == place:
                self.owed.remove(at)
                return self.events[at]
        return None

    def _is_undisturbed(self) -> bool:
        """Whether the endpoint does nothing before the driver does what it did."""
        for at, event in self.ahead(self.next):
            if event.of_device:
                return False
            if not event.transparent and not self._is_idle(at):
                return event.op != "r" or self._can_wait(at)
        return True

    # -- what is in the registers ---------------------------------------------------------------

    def value(self, place: Place, *, calm: bool = True) -> int | None:
        """What a read here finds that is not in the recording; None if that cannot be told.

        :param calm: the endpoint has done nothing since the last event that came
        """
        last = self.memory.last(place)
        if last is None:
            return None
        value, fresh, seen = last
        if fresh and calm:
            return value
        if self._survey.moves(place):
            return None
        return value if place in self.constants or self._last_loud() < seen else None

    def _last_loud(self) -> int:
        """The last write that may have made the endpoint do something; -1 if there is none."""
        writes = self.memory.writes
        for at in range(self._searched, len(writes)):
            if writes[at] not in self.parameters and writes[at] not in self._survey.quiet:
                self._loudest = at
        self._searched = len(writes)
        return self._loudest

    def changes_nothing(self, place: Place, value: int) -> bool:
        """Whether a write that is not in the recording is of the value that is there."""
        return place in self._survey.quiet and self.value(place) == value

    def see(self, event: Event) -> None:
        """Keep what the driver has read."""
        self.memory.see(event.place, event.value)

    def happen(self, event: Event) -> None:
        """Keep what the driver has done."""
        if event.op not in "wW" or event.error or event.of_config:
            self.memory.moment += 1
        elif event.op == "W":
            self.memory.write_block(event.place)
        else:
            place = event.place
            self.memory.write(place, event.value)
            if place in self.parameters:
                self.recorded[place] = self.driven[place] = event.value

    def is_parameter(self, event: Event) -> bool:
        return not event.error and event.place in self.parameters

    def set_parameter(self, place: Place, value: int | str) -> bool:
        """Let the driver set a parameter where the recorded one did not.

        :returns: False: it is none, or the endpoint may look at it meanwhile
        """
        if place not in self.parameters or not self._is_undisturbed():
            return False
        self.driven[place] = value
        self.memory.write(place, value)
        return True

    def shows_block(self, place: Place) -> bool:
        """Whether a block is read as it was written, before it is written again."""
        for _, event in self.ahead(self.next):
            if event.op in "RW" and event.place == place:
                return event.op == "R" and not event.error and bool(event.value == "=w")
        return False

    def difference(self) -> Place | None:
        """A parameter that is not what it was in the recording."""
        if self.recorded == self.driven:
            return None
        every = self.recorded.keys() | self.driven.keys()
        return min(at for at in every if self.recorded.get(at) != self.driven.get(at))
