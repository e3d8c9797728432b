"""Modules of the standard library that rcdrv uses, as distributions split the library."""

from __future__ import annotations

from importlib.util import find_spec

USED = """
    __future__ abc argparse array base64 binascii bisect collections concurrent contextlib copy
    ctypes dataclasses datetime difflib enum fcntl fnmatch functools hashlib html importlib io
    ipaddress json logging math mmap multiprocessing operator os pathlib pickle pkgutil platform
    random re resource select selectors shlex shutil signal socket stat statistics struct
    subprocess textwrap threading traceback types typing xml zlib
"""
"""All except those built into every interpreter; a test compares it with the source."""


def missing_modules() -> tuple[str, ...]:
    """Return the modules that this Python lacks."""
    return tuple(name for name in USED.split() if find_spec(name) is None)
