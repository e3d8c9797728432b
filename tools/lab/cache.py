"""Cache of built parts, one folder each, named after the recipe that made it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

Build = Callable[[Path], None]
"""Fills a folder."""

KEPT_FOR = 7 * 86400.0
"""Seconds after its last use that an older version of a part is kept."""


def directory() -> Path:
    """Return the folder of the cache."""
    if chosen := os.environ.get("RCDRV_LAB_CACHE"):
        return Path(chosen).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).absolute() / "rcdrv" / "lab"


def say(message: str) -> None:
    """Print progress on stderr, separate from the output of a command."""
    print(f"lab: {message}", file=sys.stderr, flush=True)


def part(
    name: str,
    recipe: Sequence[str],
    build: Build,
    *,
    rebuild: bool = False,
    content: bytes = b"",
) -> Path:
    """Return the folder of part ``name``, built if the cache lacks it.

    A part is built under a temporary name and renamed when complete, so an interrupted build leaves
    no part. Working trees of several versions share the cache, so an older version is removed only
    when it was not used for :data:`KEPT_FOR`.

    :param recipe: source files of the lab that determine the part; a change makes a new version
    :param build: fills the folder; may request further parts
    :param content: further input that determines the part
    """
    home = directory()
    digest = hashlib.sha256(
        b"".join((Path(__file__).parent / file).read_bytes() for file in recipe) + content
    )
    final = home / f"{name}-{digest.hexdigest()[:12]}"
    if final.is_dir() and not rebuild:
        with contextlib.suppress(OSError):
            os.utime(final)
        return final
    home.mkdir(parents=True, exist_ok=True)
    with _only_builder(home):
        if final.is_dir() and not rebuild:
            return final  # built by another process meanwhile
        started = time.monotonic()
        say(f"building {name}")
        with tempfile.TemporaryDirectory(prefix=".building-", dir=home) as temporary:
            fresh = Path(temporary) / "part"
            fresh.mkdir()
            build(fresh)
            for old in home.glob(f"{name}-????????????"):
                if old == final or old.stat().st_mtime < time.time() - KEPT_FOR:
                    shutil.rmtree(old)
            fresh.rename(final)
        say(f"built {name} in {time.monotonic() - started:.0f} s")
    return final


_builder = 0  # thread of this process that holds the lock


@contextlib.contextmanager
def _only_builder(home: Path) -> Iterator[None]:
    global _builder
    if _builder == threading.get_ident():
        yield
        return
    with (home / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another builder to finish")
            fcntl.flock(lock, fcntl.LOCK_EX)
        for abandoned in home.glob(".building-*"):
            shutil.rmtree(abandoned)  # this process holds the lock, so no build uses it
        _builder = threading.get_ident()
        try:
            yield
        finally:
            _builder = 0
