"""A software endpoint in this process, on virtual time.

No socket, no process, no sleep: an access is a method call, and a wait sets the clock to the
endpoint's next event. This is a minimal replacement of the server of :mod:`rcdrv.vfio_user`; a test
compares the two.
"""

from __future__ import annotations

import math
import mmap
import os
import select
from collections.abc import Sequence

from rcdrv.device import Area, Device, IrqKind, RegionInfo, SetIrqs
from rcdrv.errors import HostError
from rcdrv.sim.access_log import AccessLog
from rcdrv.sim.description import Layout
from rcdrv.sim.endpoint import SimEndpoint
from rcdrv.vfio_user.served import DmaFault
from rcdrv.wait import Clock

ACCESS_TIME = 20e-6
"""Virtual seconds per access, about as over a socket, so that a loop without a pause ends too."""

_IOVA_LAST = (1 << 48) - 1


class Hang(BaseException):
    """A wait that would not end. Not an Exception: no handler may take it for a device error."""


class EventClock(Clock):
    """Clock that advances with a wait or an access only, from one event to the next."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.endpoint: SimEndpoint
        """Endpoint whose events this clock runs."""
        self.limit = math.inf
        """End of time: a wait beyond it raises :class:`Hang`."""
        self.signals = 0
        """Number of times that the endpoint made a descriptor readable."""
        self._unready = -1
        """Value of ``signals`` when no descriptor was readable."""
        self.now = lambda: self.time
        self.now_ns = lambda: int(self.time * 1e9)
        self.sleep = self.advance

    def advance(self, seconds: float) -> None:
        """Run the events of the next ``seconds``."""
        end = self.time + seconds
        while self._step(end):
            pass

    def poll(self, epoll: select.epoll, seconds: float, most: int) -> list[tuple[int, int]]:
        end = self.time + seconds
        while True:
            # Only the endpoint can make a descriptor readable, and it counts that.
            seen = self.signals
            if seen != self._unready:
                ready = epoll.poll(0, most)
                if ready:
                    return ready
                self._unready = seen
            while seen == self.signals:
                if not self._step(end):
                    return []

    def _step(self, end: float) -> bool:
        """Advance to the next event; if there is none by ``end``, to ``end``, and return False."""
        if self.time > self.limit:
            raise Hang(f"{self.time - self.limit:.0f} s too long on virtual time")
        endpoint = self.endpoint
        due = endpoint.next_event()
        if due is None or due > end:
            self.time = end
            return False
        # An idle endpoint only polls; only its last poll before a write matters.
        self.time = end if endpoint.idle else max(self.time, due)
        endpoint.run()
        return True


class Direct(Device):
    """The endpoint of ``layout``: a :class:`~rcdrv.device.Device` and the endpoint's Peer.

    Nothing can be mapped, so ``log`` sees every access. Closing ends the session but not the
    endpoint; :meth:`attach` begins another session.
    """

    backend = "direct"
    messages = True

    def __init__(self, layout: Layout, log: AccessLog | None = None) -> None:
        self.address = "the endpoint"
        self.clock = EventClock()
        self.endpoint = SimEndpoint(layout, log, self.clock.now)
        self.clock.endpoint = self.endpoint
        self._regions = self.endpoint.regions()
        self._irq_counts = self.endpoint.irq_counts()
        self._vectors: dict[IrqKind, dict[int, int]] = {kind: {} for kind in IrqKind}
        self._intx_masked = False
        self._memory: dict[int, tuple[mmap.mmap, int]] = {}
        self._attached = False

    def attach(self) -> Direct:
        """Begin a session, like opening the device."""
        self._attached = True
        self.endpoint.attach(self)
        return self

    # -- Device -----------------------------------------------------------------------------------

    def region(self, index: int) -> RegionInfo:
        served = self._regions[index]
        return RegionInfo(index, served.size, served.flags)

    def irq_count(self, kind: IrqKind) -> int:
        return self._irq_counts[kind]

    def read(self, region: int, offset: int, size: int) -> bytes:
        data = self.endpoint.read(region, offset, size)
        self.clock.advance(ACCESS_TIME)
        return data

    def write(self, region: int, offset: int, data: bytes) -> None:
        self.endpoint.write(region, offset, data)
        self.clock.advance(ACCESS_TIME)

    def map(self, region: int, area: Area) -> mmap.mmap:
        raise HostError(f"region {region} cannot be mapped at {area.offset:#x}")

    def set_irqs(
        self, kind: IrqKind, flags: SetIrqs, start: int, count: int, eventfds: Sequence[int] = ()
    ) -> int:
        if flags & SetIrqs.ACTION_UNMASK:
            self._mask_intx(False)
            return 0
        vectors = self._vectors[kind]
        if not count:
            vectors.clear()
            if kind is IrqKind.INTX:
                self._mask_intx(False)
        for vector, fd in enumerate(eventfds, start):
            vectors[vector] = fd
        self.endpoint.irqs_changed(kind)
        return 0

    def dma_ranges(self) -> Sequence[tuple[int, int]]:
        return [(0, _IOVA_LAST)]

    def dma_map(self, iova: int, memory: mmap.mmap, size: int, fd: int) -> None:
        self._memory[iova] = memory, size

    def dma_unmap(self, iova: int, size: int) -> None:
        del self._memory[iova]

    def can_reset(self) -> bool:
        return self.endpoint.can_reset()

    def reset(self) -> None:
        self.endpoint.reset()

    def close(self) -> None:
        if self._attached:
            self._attached = False
            self.endpoint.detach()

    def left_behind(self) -> list[str]:
        """Return resources that a closed session did not release."""
        armed = [kind.name for kind, vectors in self._vectors.items() if vectors]
        left = [f"{' and '.join(armed)} still armed"] if armed else []
        if self._memory:
            left.append(f"{len(self._memory)} DMA buffers still mapped")
        return left

    # -- Peer -------------------------------------------------------------------------------------

    def armed(self, kind: IrqKind) -> int:
        return max(self._vectors[kind], default=-1) + 1

    def trigger(self, kind: IrqKind, vector: int) -> bool:
        fd = self._vectors[kind].get(vector)
        if fd is None or (kind is IrqKind.INTX and self._intx_masked):
            return False
        os.eventfd_write(fd, 1)
        self.clock.signals += 1
        if kind is IrqKind.INTX:
            self._mask_intx(True)
        return True

    def _mask_intx(self, masked: bool) -> None:
        if masked != self._intx_masked:
            self._intx_masked = masked
            self.endpoint.intx_masked(masked)

    def dma_read(self, address: int, size: int) -> bytes:
        return b"".join(memory[at : at + part] for memory, at, part in self._pieces(address, size))

    def dma_write(self, address: int, data: bytes | memoryview) -> None:
        done = 0
        for memory, at, part in self._pieces(address, len(data)):
            memory[at : at + part] = data[done : done + part]
            done += part

    def dma_file(self, address: int, size: int) -> tuple[int, int] | None:
        return None  # its memory is not in a file

    def dma_view(self, address: int, size: int) -> memoryview | None:
        return None

    def dma_reach(self, address: int, size: int) -> int:
        return min(size, self._find(address)[2])

    def _pieces(self, address: int, size: int) -> list[tuple[mmap.mmap, int, int]]:
        """(memory, offset, length) of each mapping that an access reaches."""
        found = []
        while size:
            memory, offset, reach = self._find(address)
            found.append((memory, offset, min(size, reach)))
            address, size = address + found[-1][2], size - found[-1][2]
        return found

    def _find(self, address: int) -> tuple[mmap.mmap, int, int]:
        """Return memory, the offset there, and how far the mapping goes."""
        for iova, (memory, length) in self._memory.items():
            if iova <= address < iova + length:
                return memory, address - iova, iova + length - address
        raise DmaFault(f"{address:#x} is not mapped")
