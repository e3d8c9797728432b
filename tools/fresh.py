"""Do the README's two commands work on a fresh machine?

python3 -m tools.fresh [COMMAND]...

Makes a bare Debian root (debootstrap's minbase, python3, ca-certificates, the tree as committed)
and runs each command in it: by default tools/demo, then tools/check. A test that lacks something
fails. Of the host only the way to the network is taken over: proxies, certificates, the
configuration of apt and pip. The root is a chroot, which forbids user namespaces, as most
containers do. Needs a Debian-like host, root, 6 GB in $TMPDIR, and half an hour.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tools.lab.debian import KEYRING, RELEASE, mirror, output
from tools.lab.errors import LabError

REPOSITORY = Path(__file__).parents[1]
TREE = "root/rcdrv"
# What leads to the network: names of variables, and files.
VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")
PREFIXES = ("PIP_", "SSL_CERT_", "REQUESTS_CA_", "CURL_CA_", "RCDRV_LAB_MIRROR")
FILES = ("/etc/resolv.conf", "/etc/hosts", "/etc/ssl/certs/ca-certificates.crt")
PIP = ("/etc/pip.conf", "/etc/xdg/pip/pip.conf", str(Path.home() / ".config/pip/pip.conf"))
# In a mount and a PID namespace: with them all mounts and all processes go.
ENTER = """
mount -t proc proc "$1/proc"
mount --rbind /sys "$1/sys"
mount --rbind /dev "$1/dev"
root=$1
for folder in $2; do
    mkdir -p "$root$folder"
    [ -n "$(ls -A "$root$folder")" ] || mount --bind -o ro "$folder" "$root$folder"
done
shift 2
exec chroot "$root" "$@"
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python3 -m tools.fresh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", nargs="*", default=["tools/demo", "tools/check"])
    commands = parser.parse_args().command
    if os.geteuid():
        os.execvp("sudo", ["sudo", "-E", sys.executable, "-m", "tools.fresh", *commands])
    try:
        with tempfile.TemporaryDirectory(prefix="rcdrv-fresh-") as folder:
            root = Path(folder) / "root"  # mkdtemp's own folder lets root alone in
            bootstrap(root)
            return int(any(timed(root, command) for command in commands))
    except LabError as error:
        print(f"fresh: {error}", file=sys.stderr)
        return 1


def bootstrap(root: Path, python: str = "python3") -> None:
    """Fill ``root``; ``python`` is Debian's package of it."""
    started = time.monotonic()
    if shutil.which("debootstrap") is None:
        output(["apt-get", "install", "-qy", "--no-install-recommends", "debootstrap"])
    keyring = [f"--keyring={KEYRING}"] if KEYRING.exists() else []
    wanted = ["--variant=minbase", f"--include={python},ca-certificates"]
    apts = output(["apt-config", "dump", "--format", '%F "%v";%n', "Acquire"])
    proxy = output(["apt-config", "shell", "http_proxy", "Acquire::http::Proxy"])
    known = dict(word.partition("=")[::2] for word in shlex.split(proxy))
    # debootstrap downloads with wget, which does not read apt's configuration.
    output(
        ["debootstrap", *keyring, *wanted, RELEASE, str(root), mirror()],
        env={**os.environ, **known},
    )
    (root / "etc/apt/apt.conf.d/99host").write_text(apts)
    for path in [*map(Path, FILES), *named()]:
        if path.is_file():
            copy = root / path.relative_to("/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.unlink(missing_ok=True)
            shutil.copy(path, copy)
    (root / TREE).mkdir()
    packed = Path(root / "tmp/tree.tar")
    output(["git", "archive", "-o", str(packed), "HEAD"], folder=REPOSITORY)
    output(["tar", "-xf", str(packed), "-C", str(root / TREE)])
    packed.unlink()
    say(f"a bare Debian {RELEASE} with {python}", started)


def network() -> dict[str, str]:
    """The variables that say how to reach package registries."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.upper() in VARIABLES or name.startswith(PREFIXES)
    }


def named() -> list[Path]:
    """Files and folders of this host that pip's configuration names."""
    files = [Path(name) for name in PIP if Path(name).is_file()]
    texts = [*(file.read_text() for file in files), *network().values()]
    found = re.findall(r"(?:(?<=file://)|(?<![\w/:.]))/[^\s'\"]+", "\n".join(texts))
    # The pages of a package index, in "simple", lead to files beside that folder.
    return sorted({*files, *(Path(re.sub(r"/simple/?$", "", path)) for path in found)})


def timed(root: Path, command: str, name: str = "") -> int:
    """Run a shell command in ``root`` and say how long it took."""
    environment = {
        "CI": "true",  # a skip would hide what is missing
        "HOME": "/root",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        **network(),
    }
    started = time.monotonic()
    namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
    folders = " ".join(str(path) for path in named() if path.is_dir())
    inside = ["sh", "-c", f"cd /{TREE} && {command}"]
    status = subprocess.run(
        [*namespaces, "sh", "-ec", ENTER, "enter", str(root), folders, *inside],
        env=environment,
        check=False,
    ).returncode
    say(f"{name or command}: status {status}", started)
    return status


def say(what: str, started: float) -> None:
    """Print what was done, with the time it took."""
    print(f"fresh: {what}, {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
