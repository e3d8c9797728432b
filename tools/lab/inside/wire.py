"""Messages between the lab and the agent in its guest: a header and a payload."""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from typing import NamedTuple, TypedDict

# Name of the virtio-serial port for the messages.
PORT = "rcdrv.lab"

_HEADER = struct.Struct("!BII")


class Kind(enum.IntEnum):
    """Kind of a message; its payload is raw bytes or the JSON of a class below."""

    # to the guest
    START = 1  # Start
    STDIN = 2  # bytes; none at the end of input
    SIGNAL = 3  # the number, in decimal
    RESIZE = 4  # [rows, columns]
    # to the host
    READY = 5  # Ready
    STDOUT = 6  # bytes
    STDERR = 7  # bytes
    EXIT = 8  # Exit


class Start(TypedDict):
    """A command to run."""

    argv: list[str]
    env: dict[str, str]
    cwd: str
    user: str
    timeout: float
    terminal: list[int] | None  # rows and columns, or no terminal but three pipes


class Exit(TypedDict):
    """End of a command; ``status`` as of ``subprocess``, negative for a signal."""

    status: int
    timed_out: bool
    error: str


class Function(TypedDict):
    """A PCI function behind one of the guest's root ports."""

    port: str
    address: str
    group: str
    driver: str


class Ready(TypedDict):
    """The guest is up."""

    functions: list[Function]
    error: str


class Message(NamedTuple):
    """One message; ``command`` is the number of the command, assigned by the host."""

    kind: int
    command: int
    payload: bytes


def encode(kind: Kind, command: int, payload: bytes = b"") -> bytes:
    """Return the bytes of one message."""
    return _HEADER.pack(kind, command, len(payload)) + payload


class Decoder:
    """Splits a stream of bytes into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """Add received bytes; yield the messages that they complete."""
        self._buffer += data
        while len(self._buffer) >= _HEADER.size:
            kind, command, length = _HEADER.unpack_from(self._buffer)
            end = _HEADER.size + length
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[_HEADER.size : end])
            del self._buffer[:end]
            yield Message(kind, command, payload)
