"""A real systemd-udevd in a guest, with udev/70-rcdrv.rules, and a user in the rules' group."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tools.lab import cache
from tools.lab.channel import Result
from tools.lab.debian import archive
from tools.lab.guest import Guest
from tools.lab.image import DEBIAN_NAME

RULES = Path(__file__).parents[2] / "udev" / "70-rcdrv.rules"

_START = """
echo rcdrv:x:999: >>/etc/group
ln -s udevadm /opt/udev/systemd-udevd
mkdir -p /run/udev
/opt/udev/systemd-udevd --daemon
"""
# As the rules' first lines say it.
_TRIGGER = """
/opt/udev/udevadm control --reload
/opt/udev/udevadm trigger --action=add --subsystem-match=pci --subsystem-match=vfio \
    --subsystem-match=vfio-dev --subsystem-match=misc
/opt/udev/udevadm settle
"""
# A login would do this.
_AS_USER = """
import os, sys
os.setgroups([999]); os.setgid(1000); os.setuid(1000)
os.environ["USER"] = "user"
os.execvp(sys.argv[1], sys.argv[1:])
"""


def udev_files(rules: Path | None = RULES) -> Mapping[str, Path]:
    """What an x86-64 guest needs for :func:`start`, with these rules in place, or none yet."""

    def build(folder: Path) -> None:
        archive(DEBIAN_NAME["x86_64"]).unpack(["udev"], folder)

    tree = cache.part("udev", ["debian.py"], build) / "usr"
    files = {
        "opt/udev/udevadm": tree / "bin" / "udevadm",
        "opt/udev/lib": tree / "lib" / "x86_64-linux-gnu",
        "opt/70-rcdrv.rules": RULES,
    }
    return files if rules is None else {**files, "etc/udev/rules.d/70-rcdrv.rules": rules}


def must(guest: Guest, script: str) -> str:
    """Run a script of which no command may fail; returns what it says."""
    environment = {"LD_LIBRARY_PATH": "/opt/udev/lib:/opt/udev/lib/systemd"}
    result = guest.run(["sh", "-e", "-c", script], env=environment)
    assert result.status == 0, f"{result.stdout}\n{result.stderr}"
    return result.stdout.strip()


def start(guest: Guest) -> None:
    """Start udevd, and let it handle what is there, as at the boot."""
    must(guest, _START + _TRIGGER)


def trigger(guest: Guest) -> None:
    """Let udevd handle what is there once more."""
    must(guest, _TRIGGER)


def as_user(guest: Guest, *command: str, setup: str = "true", backend: str = "") -> Result:
    """Run rcdrv as a user in the group ``rcdrv``; before it ``setup``, as root in its shell."""
    become = ["python3", "-c", _AS_USER, "rcdrv", *command]
    environment = {"RCDRV_BACKEND": backend} if backend else {}
    argv = ["sh", "-c", f'{setup}; exec "$@"', "as_user", *become]
    return guest.run(argv, timeout=240, env=environment)
