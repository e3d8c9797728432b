"""Endpoint function: its interface to layouts, and to the endpoint that runs it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pkgutil import resolve_name
from typing import Any, ClassVar

from rcdrv.results.layout import Region
from rcdrv.sim.access_log import AccessLog
from rcdrv.sim.checks import Check
from rcdrv.sim.description import Layout
from rcdrv.sim.faults import Faults


class EndpointFunction(ABC):
    """An endpoint function in a layout: its keys, defaults, rules, BARs and picture."""

    name: ClassVar[str]
    """The value of the layout's ``function``."""
    runs: ClassVar[str]
    """The :class:`SimFunction` that runs it, as MODULE:CLASS. It is imported when an endpoint is
    built, as it needs the controller, which needs layouts."""
    defaults: ClassVar[Mapping[str, Any]] = {}
    """Defaults of the layout's keys that differ from those of :class:`Layout`."""
    table: ClassVar[str] = ""
    """The TOML table of its settings; empty if it has none."""
    schema: ClassVar[Mapping[str, Check]] = {}
    """The keys of that table."""
    settings: ClassVar[Callable[..., Any]] = dict
    """The dataclass that holds them, in ``Layout.tables``."""

    doorbell_words: ClassVar[str] = ""
    """Description of a doorbell that is mapped on demand."""

    def place(self, layout: Layout, source: str) -> Layout:
        """Choose the BARs that the settings do not name.

        :raises UsageError: the settings do not fit the BARs
        """
        return layout

    def windows(self, layout: Layout) -> int:
        """Return the number of inbound windows that it needs; ``register_bar`` is set."""
        return len(layout.usable_bars)

    @abstractmethod
    def registers_size(self, layout: Layout) -> int:
        """Return the size of its registers in the register BAR, in bytes."""

    @abstractmethod
    def bar_size(self, layout: Layout, index: int) -> int:
        """Return the bytes that it needs of a BAR without a size in the layout."""

    @abstractmethod
    def doorbell_place(self, layout: Layout) -> tuple[int, int] | None:
        """Return (BAR, offset) of a doorbell that is mapped on demand; None: ENABLE fails."""

    @abstractmethod
    def regions(self, layout: Layout, doorbell: tuple[int, int] | None) -> dict[int, list[Region]]:
        """Return the known regions of each BAR, for a picture."""

    def build(self, controller: Any) -> SimFunction:
        """Build and start the function."""
        function: SimFunction = resolve_name(self.runs)(controller)
        return function


class SimFunction(ABC):
    """A running endpoint function. Times are seconds of the endpoint's clock."""

    def __init__(self, controller: Any) -> None:  # SimController, which imports this module
        self._controller = controller
        self._layout: Layout = controller.layout
        self._doorbells = controller.doorbells
        self.faults: Faults = controller.faults
        self._log: AccessLog = controller.log
        self.clock: Callable[[], float] = controller.clock
        self._due: float | None = None

    @property
    def wake_fd(self) -> int:
        """Descriptor that is readable when :meth:`next_event` may be sooner than before.

        -1 if only the host causes that.
        """
        return -1

    def close(self) -> None:  # noqa: B027 - most have nothing
        """Free its resources on this machine."""

    @abstractmethod
    def set_up(self) -> None:
        """Configure the function again after a bus reset."""

    @abstractmethod
    def start(self) -> None:
        """Start polling for commands."""

    @abstractmethod
    def stop(self) -> None:
        """Stop polling for commands; one in progress is dropped."""

    @abstractmethod
    def next_event(self) -> float | None:
        """Return the time of the next :meth:`run`; None if there is none."""

    @abstractmethod
    def run(self) -> None:
        """Do the work that is due. May call the host's DMA methods."""

    @property
    @abstractmethod
    def idle(self) -> bool:
        """Whether nothing happens until the host acts."""

    def answer(self, bar: int, offset: int, data: bytes) -> bytes:
        """Return the data that the host gets for a read of ``data``."""
        return data
