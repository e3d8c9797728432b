"""The VERSION message of vfio-user: protocol version and capabilities."""

from __future__ import annotations

import json
from struct import Struct

from rcdrv.record import record
from rcdrv.vfio_user.wire import MAX_DATA_XFER_SIZE, MAX_MSG_FDS, ProtocolError

MAJOR, MINOR = 0, 0
"""Protocol version, that of QEMU. Additions of later minors are capabilities."""

MAX_DMA_MAPS = 65535
PAGE_SIZE = 4096
"""Granularity of DMA mappings in bytes: the specification's default, on every host."""

PAGE_SIZES = -PAGE_SIZE & (1 << 64) - 1
"""All page sizes that are multiples of that granularity, or'ed."""

MAX_VERSION_DATA = 16384

_VERSION = Struct("=HH")
_NUMBERS = ("max_msg_fds", "max_data_xfer_size", "max_dma_maps", "pgsizes")


@record
class Capabilities:
    """Capabilities of client or server, with the specification's defaults."""

    max_msg_fds: int = 1
    max_data_xfer_size: int = 1 << 20
    max_dma_maps: int = MAX_DMA_MAPS
    pgsizes: int = PAGE_SIZE
    write_multiple: bool = False
    unknown: frozenset[str] = frozenset()
    """Capabilities that it did not name, and may not know."""

    @classmethod
    def unpack(cls, text: bytes) -> Capabilities:
        try:
            document = json.loads(text.decode())
        except (ValueError, RecursionError) as error:
            raise ProtocolError("VERSION: the version data is not JSON") from error
        found = document.get("capabilities", {}) if isinstance(document, dict) else None
        if not isinstance(found, dict):
            raise ProtocolError("VERSION: capabilities is not a JSON object")
        numbers = {}
        for name in _NUMBERS:
            value = found.get(name, getattr(_DEFAULTS, name))
            if type(value) is not int or not 0 <= value < 1 << 64:
                raise ProtocolError(f"VERSION: {name} is not a number of 64 bits")
            numbers[name] = value
        multiple = found.get("write_multiple", False)
        if type(multiple) is not bool:
            raise ProtocolError("VERSION: write_multiple is not a boolean")
        return cls(
            **numbers, write_multiple=multiple, unknown=frozenset(_NUMBERS) - frozenset(found)
        )

    def pack(self) -> bytes:
        capabilities: dict[str, int | bool] = {
            name: getattr(self, name) for name in _NUMBERS if name not in self.unknown
        }
        if self.write_multiple:
            capabilities["write_multiple"] = True
        return json.dumps({"capabilities": capabilities}).encode()


_DEFAULTS = Capabilities()

OURS = Capabilities(
    max_msg_fds=MAX_MSG_FDS, max_data_xfer_size=MAX_DATA_XFER_SIZE, write_multiple=True
)
"""Capabilities of rcdrv's client and server."""


@record
class Version:
    """VERSION, request and reply."""

    major: int = MAJOR
    minor: int = MINOR
    capabilities: Capabilities = OURS

    @property
    def unusable(self) -> tuple[str, str] | None:
        """Reason why a client cannot use a server with this reply, and the fix; None if it can."""
        theirs, room = f"{self.major}.{self.minor}", self.capabilities.max_data_xfer_size
        if self.major != MAJOR or self.minor > MINOR:
            return (
                f"the server speaks vfio-user {theirs}, not {MAJOR}.{MINOR}",
                "use a server of the same major version",
            )
        if room < 8:  # a 64-bit register could not be read with one access
            return (
                f"the server accepts only {room} bytes in a message",
                "max_data_xfer_size must be 8 or more",
            )
        if not self.capabilities.pgsizes:
            return (
                "the server supports no page size",
                "pgsizes must have a bit set for each size, 4096 by default",
            )
        return None

    def pack(self) -> bytes:
        return _VERSION.pack(self.major, self.minor) + self.capabilities.pack() + b"\0"

    @classmethod
    def unpack(cls, data: bytes) -> Version:
        if not _VERSION.size <= len(data) <= MAX_VERSION_DATA:
            raise ProtocolError(f"VERSION has {len(data)} bytes")
        major, minor = _VERSION.unpack_from(data)
        text = data[_VERSION.size :]
        if text and not text.endswith(b"\0"):
            raise ProtocolError("VERSION: the version data does not end with NUL")
        text = text.rstrip(b"\0")
        return cls(major, minor, Capabilities.unpack(text or b"{}"))
