"""What an endpoint function is to a layout, and to the endpoint that runs it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pkgutil import resolve_name
from typing import Any, ClassVar

from rcdrv.results.layout import Region
from rcdrv.sim.checks import Check
from rcdrv.sim.description import Layout


class EndpointFunction(ABC):
    """An endpoint function in a layout: its keys, defaults, rules, BARs and picture."""

    name: ClassVar[str]
    """The value of the layout's ``function``."""
    runs: ClassVar[str]
    """The :class:`SimFunction` that does its work, as MODULE:CLASS. It is imported when an endpoint
    is built: it needs the controller, which needs layouts."""
    defaults: ClassVar[Mapping[str, Any]] = {}
    """Defaults of the layout's keys that differ from those of :class:`Layout`."""
    table: ClassVar[str] = ""
    """The TOML table of its settings; empty: it has none."""
    schema: ClassVar[Mapping[str, Check]] = {}
    """The keys of that table."""
    settings: ClassVar[Callable[..., Any]] = dict
    """The dataclass that holds them, in ``Layout.tables``."""

    doorbell_words: ClassVar[str] = ""
    """What a reader should know of a doorbell that is mapped on demand."""

    def place(self, layout: Layout, source: str) -> Layout:
        """Choose the BARs that the settings leave open.

        :raises UsageError: the settings do not fit the BARs
        """
        return layout

    def windows(self, layout: Layout) -> int:
        """Return how many inbound windows it cannot do without; ``register_bar`` is set."""
        return len(layout.usable_bars)

    @abstractmethod
    def registers_size(self, layout: Layout) -> int:
        """Return the bytes of the register BAR that its registers take."""

    @abstractmethod
    def bar_size(self, layout: Layout, index: int) -> int:
        """Return the bytes that it needs of a BAR whose size the layout leaves out."""

    @abstractmethod
    def doorbell_place(self, layout: Layout) -> tuple[int, int] | None:
        """Return (BAR, offset) of a doorbell that is mapped on demand; None: ENABLE fails."""

    @abstractmethod
    def regions(self, layout: Layout, doorbell: tuple[int, int] | None) -> dict[int, list[Region]]:
        """Return the known regions of each BAR, for a picture."""

    def build(self, *parts: Any) -> SimFunction:
        """Build and start the function.

        :param parts: the controller, the doorbells, the faults, the log and the clock
        """
        function: SimFunction = resolve_name(self.runs)(*parts)
        return function


class SimFunction(ABC):
    """A running endpoint function. Times are seconds of the endpoint's clock."""

    @property
    def wake_fd(self) -> int:
        """A descriptor that is readable when :meth:`next_event` may have come forward by itself;
        -1: the host alone brings it forward."""
        return -1

    def close(self) -> None:  # noqa: B027 - most have nothing
        """Give back what it has of this machine."""

    @abstractmethod
    def set_up(self) -> None:
        """Configure the function again after a bus reset."""

    @abstractmethod
    def start(self) -> None:
        """Begin to look for commands."""

    @abstractmethod
    def stop(self) -> None:
        """Stop looking for commands; one in progress is dropped."""

    @abstractmethod
    def next_event(self) -> float | None:
        """Return when :meth:`run` has something to do."""

    @abstractmethod
    def run(self) -> None:
        """Do what is due. May call the host's DMA methods."""

    @property
    @abstractmethod
    def idle(self) -> bool:
        """Whether nothing happens until the host does something."""

    def answer(self, bar: int, offset: int, data: bytes) -> bytes:
        """Return what the host gets for a read of ``data``."""
        return data
