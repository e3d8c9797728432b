"""A root complex for one endpoint, without a socket and without waiting: time is a number."""

from __future__ import annotations

import io
import json
from enum import Enum
from typing import Any

from rcdrv.device import CONFIG_REGION, IrqKind
from rcdrv.sim.access_log import AccessLog
from rcdrv.sim.config_space import COMMAND, COMMAND_MASTER, COMMAND_MEMORY
from rcdrv.sim.description import Layout
from rcdrv.sim.endpoint import SimEndpoint
from rcdrv.sim.epf_test.function import SimEpfTest
from rcdrv.sim.epf_test.registers import SimRegister, SimStatus
from rcdrv.sim.layout import load_layout
from rcdrv.vfio_user.served import DmaFault

MEMORY_BASE = 0x1_4000_0000

alive: list[Host] = []
"""Their endpoints are closed after each test."""


def epf_test(endpoint: SimEndpoint) -> SimEpfTest:
    """Its pci-epf-test, which somebody at the endpoint may unbind and bind again."""
    assert isinstance(endpoint.function, SimEpfTest)
    return endpoint.function


def _text(value: object) -> str:
    """A key's value as in a layout's address."""
    if isinstance(value, list | tuple):
        return "+".join(value)
    value = value.value if isinstance(value, Enum) else value
    return str(value).lower() if isinstance(value, bool) else str(value)


class Host:
    """Attached to the endpoint of ``layout``, as a client would be; bus mastering is on."""

    def __init__(self, layout: Layout | str, **overrides: object) -> None:
        if isinstance(layout, str):
            changes = "".join(f",{key}={_text(value)}" for key, value in overrides.items())
            layout = load_layout(layout + changes)
        self.layout = layout
        self.now = 1000.0
        self._log = io.StringIO()
        self.endpoint = SimEndpoint(layout, AccessLog(self._log), lambda: self.now)
        self.vectors = {IrqKind.INTX: 1, IrqKind.MSI: layout.msi, IrqKind.MSIX: layout.msix}
        self.intx_masked = False
        self.fired: list[tuple[IrqKind, int]] = []
        self.memory = bytearray(1 << 22)
        self.dma: list[tuple[str, int, int]] = []
        self.during_dma: Any = None
        alive.append(self)
        self.attach()

    def attach(self) -> None:
        self.endpoint.attach(self)
        self.write_config(COMMAND, 2, COMMAND_MEMORY | COMMAND_MASTER)

    def close(self) -> None:
        self.endpoint.close()
        alive.remove(self)

    # -- Peer -------------------------------------------------------------------------------------

    def armed(self, kind: IrqKind) -> int:
        return self.vectors[kind]

    def trigger(self, kind: IrqKind, vector: int) -> bool:
        if vector >= self.vectors[kind] or (kind is IrqKind.INTX and self.intx_masked):
            return False
        self.fired.append((kind, vector))
        if kind is IrqKind.INTX:
            self.mask_intx(True)
        return True

    def mask_intx(self, masked: bool) -> None:
        self.intx_masked = masked
        self.endpoint.intx_masked(masked)

    def dma_read(self, address: int, size: int) -> bytes:
        start = self._dma("read", address, size)
        return bytes(self.memory[start : start + size])

    def dma_write(self, address: int, data: bytes | memoryview) -> None:
        start = self._dma("write", address, len(data))
        self.memory[start : start + len(data)] = data

    def dma_file(self, address: int, size: int) -> tuple[int, int] | None:
        self._dma("file", address, size)
        return None  # it is no file's

    def dma_view(self, address: int, size: int) -> memoryview | None:
        start = self._dma("view", address, size)
        return memoryview(self.memory)[start : start + size]

    def dma_reach(self, address: int, size: int) -> int:
        self._dma("reach", address, size)
        return size

    def _dma(self, op: str, address: int, size: int) -> int:
        self.dma.append((op, address, size))
        if self.during_dma:
            self.during_dma()
        start = address - MEMORY_BASE
        if not 0 <= start <= start + size <= len(self.memory):
            raise DmaFault(f"{address:#x}")
        return start

    # -- accesses ---------------------------------------------------------------------------------

    def read(self, bar: int, offset: int, size: int = 4) -> int:
        return int.from_bytes(self.endpoint.read(bar, offset, size), "little")

    def write(self, bar: int, offset: int, value: int, size: int = 4) -> None:
        self.endpoint.write(bar, offset, value.to_bytes(size, "little"))

    def read_config(self, offset: int, size: int) -> int:
        return self.read(CONFIG_REGION, offset, size)

    def write_config(self, offset: int, size: int, value: int) -> None:
        self.write(CONFIG_REGION, offset, value, size)

    def get(self, register: SimRegister) -> int:
        return self.read(self.layout.register_bar, register)

    def set(self, register: SimRegister, value: int) -> None:
        self.write(self.layout.register_bar, register, value)

    # -- time -------------------------------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        """Let everything happen that falls within ``seconds``."""
        end = self.now + seconds
        while True:
            due = self.endpoint.next_event()
            if due is None or due > end:
                break
            self.now = max(self.now, due)
            self.endpoint.run()
        self.now = end

    # -- what a driver does -----------------------------------------------------------------------

    def command(
        self,
        command: int,
        *,
        irq: int = 1,
        number: int = 1,
        flags: int = 0,
        seconds: float = 0.05,
        **registers: int,
    ) -> SimStatus:
        """Write the registers, then COMMAND; STATUS after ``seconds``."""
        self.fired.clear()
        if self.intx_masked:
            self.mask_intx(False)
        for name, value in registers.items():
            register = SimRegister[name.upper()]
            self.set(register, value & 0xFFFF_FFFF)
            if register in (SimRegister.SRC_ADDR, SimRegister.DST_ADDR):
                self.write(self.layout.register_bar, register + 4, value >> 32)
        self.set(SimRegister.IRQ_TYPE, irq)
        self.set(SimRegister.IRQ_NUMBER, number)
        self.set(SimRegister.FLAGS, flags)
        self.set(SimRegister.COMMAND, command)
        self.advance(seconds)
        return SimStatus(self.get(SimRegister.STATUS))

    def ring(self) -> None:
        """Write what DB_DATA says where DB_BAR and DB_OFFSET say."""
        self.fired.clear()
        self.set(SimRegister.STATUS, 0)
        bar = self.get(SimRegister.DB_BAR)
        self.write(bar, self.get(SimRegister.DB_OFFSET), self.get(SimRegister.DB_DATA))

    def events(self, name: str = "") -> list[dict[str, Any]]:
        """Events of the access log, of one kind or all."""
        lines = [json.loads(line) for line in self._log.getvalue().splitlines()]
        return [line for line in lines if "event" in line and name in ("", line["event"])]

    @property
    def log_lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log.getvalue().splitlines()]
