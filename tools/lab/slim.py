"""Initramfs of a guest in which shell scripts run and no rcdrv: the image's, less than half.

A guest spends a third of its boot unpacking the whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tools.lab import cache
from tools.lab.image import Image

_HEADER = 110
_SUPERFLUOUS = re.compile(
    r"^usr/lib/modules/[^/]+/(?!configfs\.ko|modules\.dep)"
    r"|^usr/lib/[^/]+-linux-gnu/(?!ld-linux-|lib(c|m|z|expat|gcc_s)\.)"
    r"|^usr/lib/python3[^/]*/lib-dynload/(?!_json|_posixsubprocess|fcntl|select|termios)"
    r"|^usr/lib/python3[^/]*/encodings/(__pycache__/)?(?!__init__|aliases|ascii|latin_1|utf_8)\w+\."
    r"|^usr/lib/python3[^/]*/(__pycache__/)?(?:_pydatetime|_pydecimal|_pyio|_strptime|argparse|ast"
    r"|bdb|calendar|cgi|cmd|configparser|csv|dataclasses|datetime|decimal|difflib|dis|doctest"
    r"|fractions|ftplib|getpass|gettext|gzip|imaplib|inspect|ipaddress|mailbox|mimetypes|nntplib"
    r"|optparse|pdb|pickle\w*|plistlib|poplib|pprint|profile|pstats|py_compile|pyclbr|pydoc"
    r"|smtplib|socketserver|ssl|statistics|symtable|tabnanny|tarfile|timeit|trace|tracemalloc"
    r"|turtle|uuid|webbrowser|zipapp)\."
    r"|^usr/lib/python3[^/]*/(_pyrepl|asyncio|concurrent|ctypes|curses|dbm|email|html|http|logging"
    r"|multiprocessing|sqlite3|sysconfig|tomllib|unittest|urllib|venv|wsgiref|xml|xmlrpc|zipfile"
    r"|zoneinfo)(/|$)"
)


def slim(image: Image) -> Path:
    """The initramfs, without what no shell script needs."""

    def build(folder: Path) -> None:
        data = image.initramfs.read_bytes()
        with (folder / "initramfs").open("wb") as stream:
            for name, entry in entries(data):
                if not _SUPERFLUOUS.search(name):
                    stream.write(entry)

    part = cache.part("slim", ("slim.py",), build, content=image.folder.name.encode())
    return part / "initramfs"


def entries(data: bytes) -> Iterator[tuple[str, memoryview]]:
    """The entries of a cpio archive, the trailer included, as they are."""
    at = 0
    while at < len(data):
        size, length = (int(data[at + field : at + field + 8], 16) for field in (54, 94))
        name = data[at + _HEADER : at + _HEADER + length - 1].decode()
        end = _aligned(_aligned(at + _HEADER + length) + size)
        yield name, memoryview(data)[at:end]
        at = end


def _aligned(offset: int) -> int:
    return (offset + 3) & ~3
