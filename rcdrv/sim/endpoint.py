"""The software endpoint: one PCI function that a vfio-user server can serve."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

from rcdrv.device import CONFIG_REGION, IrqKind, RegionFlag
from rcdrv.sim import config_space
from rcdrv.sim.access_log import AccessLog
from rcdrv.sim.controller import SimController
from rcdrv.sim.description import Layout, Reset
from rcdrv.sim.faults import RESET_LOSES
from rcdrv.sim.functions import FUNCTIONS
from rcdrv.vfio_user.served import Peer, ServedDevice, ServedRegion


class SimEndpoint(ServedDevice):
    """The endpoint that ``layout`` describes.

    :param log: log of accesses and events
    :param clock: monotonic clock in seconds. A virtual one is to be set to :meth:`next_event`
        before :meth:`run` is called
    """

    def __init__(
        self,
        layout: Layout,
        log: AccessLog | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.layout = layout
        self._log = log if log is not None else AccessLog()
        self._log.clock = clock
        self.controller = SimController(layout, self._log, clock)
        faults = self._faults = self.controller.faults
        self.function = FUNCTIONS[layout.function].build(self.controller)
        self._attached = False
        self._vanished = False
        self._accesses = 0
        self._resets = 0
        never = sys.maxsize
        self._vanishes = faults.get("vanish", 0) if "vanish" in faults else never
        self._goes_silent = faults.get("all-ones", 0) if "all-ones" in faults else never
        self._first_lost = min(self._vanishes, self._goes_silent)

    # -- identity -----------------------------------------------------------------------

    def regions(self) -> Sequence[ServedRegion]:
        access = RegionFlag.READ | RegionFlag.WRITE
        regions = [ServedRegion()] * 9
        for index, bar in enumerate(self.controller.seen_bars):
            if bar is not None:
                areas = self.controller.areas(index)
                flags = access | RegionFlag.MMAP if areas else access
                fd = self.controller.fd(index) if areas else -1
                regions[index] = ServedRegion(bar.size, flags, areas, fd)
        regions[CONFIG_REGION] = ServedRegion(config_space.SIZE, access)
        return regions

    def irq_counts(self) -> Sequence[int]:
        return (1 if self.layout.intx_pin else 0, self.layout.msi_capable, self.layout.msix, 0, 0)

    def can_reset(self) -> bool:
        return self.layout.reset is not Reset.NONE

    @property
    def doorbell_enabled(self) -> bool:
        return self.controller.doorbells.allocated

    # -- the client -------------------------------------------------------------------------------

    def attach(self, peer: Peer) -> None:
        """Attach a client. Resets the function if it has a reset, as VFIO does at every open."""
        self._log.event("attach")
        self._attached = True
        self.controller.connect(peer)
        self._reset()

    def detach(self) -> None:
        self._attached = False
        self.controller.connect(None)
        self._log.event("detach")

    def reset(self) -> None:
        self._reset()
        if self.layout.reset is Reset.NONE:
            return
        self._resets += 1
        if "reset-loses" in self._faults:
            self.controller.lose(RESET_LOSES[self._faults.get("reset-loses", 0)])
        if "reset-wears" in self._faults and self._resets >= self._faults.get("reset-wears", 0):
            self.controller.lose("bars")

    def _reset(self) -> None:
        if self.layout.reset is Reset.NONE or self._vanished:
            return
        self._log.event("reset", kind=self.layout.reset.value)
        self.controller.reset()
        if self.layout.reset is Reset.BUS:
            self.function.stop()
            self.function.set_up()
            self.function.start()

    def irqs_changed(self, kind: IrqKind) -> None:
        self.controller.irqs_changed(kind)

    def intx_masked(self, masked: bool) -> None:
        self.controller.intx_masked(masked)

    # -- accesses ---------------------------------------------------------------------------------

    def read(self, region: int, offset: int, size: int) -> bytes:
        self._accesses += 1
        if self._accesses > self._first_lost and self._lost(region):
            data = b"\xff" * size
        elif region == CONFIG_REGION:
            data = self.controller.config.read(offset, size)
        else:
            data = self.controller.read_bar(region, offset, size)
            data = self.function.answer(region, offset, data)
        self._log.access("read", region, offset, data)
        return data

    def write(self, region: int, offset: int, data: bytes) -> None:
        self._log.access("write", region, offset, data)
        self._accesses += 1
        if self._accesses > self._first_lost and self._lost(region):
            return
        if region != CONFIG_REGION:
            self.controller.write_bar(region, offset, data)
        else:
            self._write_config(offset, data)

    def _write_config(self, offset: int, data: bytes) -> None:
        config = self.controller.config
        slept = not config.awake
        if config.write(offset, data):
            self.reset()
        elif slept and config.awake:
            if "d3-resets" in self._faults:
                self.controller.reset()
            if "d3-loses" in self._faults:
                self.controller.lose(RESET_LOSES[self._faults.get("d3-loses", 0)])

    def _lost(self, region: int) -> bool:
        """Return whether a fault drops this access."""
        if self._accesses > self._vanishes:
            self._vanished = True
            self.function.stop()
            return True
        return self._accesses > self._goes_silent and region != CONFIG_REGION

    # -- time -------------------------------------------------------------------------------------

    def next_event(self) -> float | None:
        if not self._attached:
            return None
        one, other = self.controller.next_event(), self.function.next_event()
        if one is None or other is None:
            return other if one is None else one
        return min(one, other)

    @property
    def idle(self) -> bool:
        """Whether nothing happens until the host acts."""
        return self.controller.next_event() is None and self.function.idle

    def run(self) -> None:
        self.controller.run()
        self.function.run()

    def close(self) -> None:
        """Free the BARs' memory and the function's resources."""
        self.function.close()
        self.controller.close()
