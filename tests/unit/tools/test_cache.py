"""What the lab builds once and keeps."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tools.lab import cache

OLD, NEW = ("errors.py",), ("errors.py", "cpio.py")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RCDRV_LAB_CACHE", str(tmp_path))
    return tmp_path


def write(text: str = "x") -> cache.Build:
    def build(folder: Path) -> None:
        (folder / "file").write_text(text)

    return build


def parts(home: Path) -> list[str]:
    return sorted(path.name.rpartition("-")[0] for path in home.iterdir() if path.is_dir())


def test_a_part_is_built_once_unless_asked_for() -> None:
    first = cache.part("one", OLD, write("first"))
    assert cache.part("one", OLD, write("second")) == first
    assert (first / "file").read_text() == "first"
    assert cache.part("one", OLD, write("third"), rebuild=True) == first
    assert (first / "file").read_text() == "third"


def test_an_interrupted_build_leaves_nothing(home: Path) -> None:
    def fail(folder: Path) -> None:
        write()(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.part("one", OLD, fail)
    assert parts(home) == []


def test_what_a_killed_build_left_is_removed(home: Path) -> None:
    (home / ".building-dead" / "part").mkdir(parents=True)
    cache.part("one", OLD, write())
    assert parts(home) == ["one"]


def test_a_build_may_ask_for_further_parts(home: Path) -> None:
    """In a process of its own, as the failure would be to wait for oneself."""
    script = (
        "from tools.lab import cache\n"
        "def outer(folder):\n"
        f"    inner = cache.part('inner', {OLD}, lambda one: (one / 'file').touch())\n"
        "    (folder / 'file').write_text(inner.name)\n"
        f"cache.part('outer', {OLD}, outer)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    assert parts(home) == ["inner", "outer"]
    (file,) = home.glob("outer-*/file")
    assert file.read_text().startswith("inner-")


def test_threads_build_one_after_the_other(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second would remove what the first is building: .building-* with nobody at the lock."""
    begun, waits = threading.Event(), threading.Event()
    monkeypatch.setattr(cache, "say", lambda said: waits.set() if "waiting" in said else None)

    def slow(folder: Path) -> None:
        begun.set()
        assert waits.wait(30)
        write()(folder)

    with ThreadPoolExecutor() as pool:
        first = pool.submit(cache.part, "one", OLD, slow)
        assert begun.wait(30)
        second = pool.submit(cache.part, "two", OLD, write())
        assert first.result(60).is_dir()
        assert second.result(60).is_dir()
    assert parts(home) == ["one", "two"]


def test_versions_of_a_part_live_side_by_side_while_they_are_used() -> None:
    old = cache.part("one", OLD, write())
    new = cache.part("one", NEW, write())
    assert old != new
    assert old.is_dir()

    long_ago = time.time() - cache.KEPT_FOR - 60
    os.utime(old, (long_ago, long_ago))
    cache.part("one", OLD, write())  # used again
    cache.part("one", NEW, write(), rebuild=True)
    assert old.is_dir()

    os.utime(old, (long_ago, long_ago))
    cache.part("one", NEW, write(), rebuild=True)
    assert not old.exists()
    assert new.is_dir()
