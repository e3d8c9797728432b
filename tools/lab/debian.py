"""Trees of Debian packages, unpacked by the host's own apt and dpkg-deb.

apt resolves the packages for any architecture against an empty status file and downloads them; then
they are unpacked, never installed: no maintainer script runs, so this needs neither root nor a
foreign bootstrap, and what runs from such a tree runs through the tree's own dynamic loader.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tools.lab import cache
from tools.lab.errors import LabError

RELEASE = "trixie"
# QEMU learned vfio-user in 10.1, and the kernel of interest is newer than the release's.
BACKPORTS = f"{RELEASE}-backports"
KERNEL_SERIES = (7, 3)
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class Archive:
    """The package archive as seen by one architecture (Debian's name of it, such as ``arm64``)."""

    def __init__(self, architecture: str, home: Path) -> None:
        self.architecture = architecture
        self._home = home / architecture
        self._downloads = self._home / "cache" / "archives"
        self._config = self._home / "apt.conf"
        for folder in ("lists/partial", "cache/archives/partial", "parts"):
            (self._home / folder).mkdir(parents=True, exist_ok=True)
        (self._home / "status").write_text("")  # nothing is installed: apt must fetch everything
        signed = f" signed-by={KEYRING}" if KEYRING.exists() else ""
        (self._home / "sources.list").write_text(
            "".join(
                f"deb [arch={architecture}{signed}] {mirror()} {suite} main\n"
                for suite in (RELEASE, BACKPORTS)
            )
        )
        # The host's way to the network (proxies, certificates) is kept; its hooks are not.
        network = output(["apt-config", "dump", "--format", '%F "%v";%n', "Acquire"])
        self._config.write_text(
            network
            + f"""
APT::Architecture "{architecture}";
APT::Architectures {{ "{architecture}"; }};
APT::Default-Release "{BACKPORTS}";
APT::Install-Recommends "false";
APT::Sandbox::User "";
Dir::Etc::sourcelist "{self._home}/sources.list";
Dir::Etc::sourceparts "{self._home}/parts";
Dir::Etc::preferences "{self._home}/preferences";
Dir::Etc::preferencesparts "{self._home}/parts";
Dir::Etc::parts "{self._home}/parts";
Dir::Etc::main "{self._home}/parts/none";
Dir::State "{self._home}";
Dir::State::lists "{self._home}/lists";
Dir::State::status "{self._home}/status";
Dir::Cache "{self._home}/cache";
"""
        )
        self._apt("apt-get", "-qq", "update")

    def kernel_release(self) -> str:
        """The newest kernel of the wanted series, or the newest of all, as ``uname -r`` says it.

        The archive keeps only the last few versions, so the exact one cannot be written down.
        """
        pattern = r"linux-(binary|modules)-((\d+)\.(\d+)\.(\d+)\+\w+-" + self.architecture + ")$"
        found: dict[tuple[int, ...], set[str]] = {}
        names: dict[tuple[int, ...], str] = {}
        search = self._apt("apt-cache", "search", "--names-only", "^linux-(binary|modules)-[0-9]")
        for line in search.splitlines():
            if match := re.match(pattern, line.split()[0]):
                version = (int(match[3]), int(match[4]), int(match[5]))
                found.setdefault(version, set()).add(match[1])
                names[version] = match[2]
        complete = [version for version, halves in found.items() if len(halves) == 2]
        if not complete:
            raise LabError(f"no kernel for {self.architecture} in {BACKPORTS}")
        wanted = [version for version in complete if version[:2] == KERNEL_SERIES]
        return names[max(wanted or complete)]

    def unpack(self, packages: Sequence[str], tree: Path) -> None:
        """Unpack ``packages`` and all that they depend on into ``tree``."""
        command = ("apt-get", "-qq", "--yes", "--download-only", "install", *packages)
        self._apt(*command)
        for name in self._closure(command):
            output(["dpkg-deb", "--extract", str(self._downloads / name), str(tree)])

    def unpack_one(self, package: str, tree: Path) -> None:
        """Unpack ``package`` alone."""
        with tempfile.TemporaryDirectory(dir=self._home) as folder:
            self._apt("apt-get", "-qq", "download", package, folder=Path(folder))
            for deb in Path(folder).glob("*.deb"):
                output(["dpkg-deb", "--extract", str(deb), str(tree)])

    def _closure(self, command: Sequence[str]) -> Iterator[str]:
        # With everything downloaded apt prints no URI; a second, empty download folder shows all.
        with tempfile.TemporaryDirectory(dir=self._home) as empty:
            (Path(empty) / "partial").mkdir()
            listing = self._apt(*command, "--print-uris", "-o", f"Dir::Cache::archives={empty}")
        for line in listing.splitlines():
            yield line.split()[1]

    def _apt(self, *command: str, folder: Path | None = None) -> str:
        environment = {**os.environ, "APT_CONFIG": str(self._config), "LC_ALL": "C"}
        return output(command, env=environment, folder=folder)


def archive(architecture: str) -> Archive:
    """The package archive, with its lists and downloads kept in the cache."""
    return Archive(architecture, cache.directory() / "apt")


def host_architecture() -> str:
    """Debian's name for this machine's architecture."""
    return output(["dpkg", "--print-architecture"]).strip()


def mirror() -> str:
    """The Debian mirror to use: the host's own, unless the user names another."""
    if chosen := os.environ.get("RCDRV_LAB_MIRROR"):
        return chosen
    # apt reads its own sources, in whatever format and place they are.
    targets = output(["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)"])
    releases = "bullseye|bookworm|trixie|forky|duke|oldstable|stable|testing|unstable|sid"
    for line in targets.splitlines():
        if match := re.fullmatch(rf"(\S+) (?:{releases}) main", line.strip()):
            return match[1]
    raise LabError(
        "no Debian mirror among this host's apt sources: name one in RCDRV_LAB_MIRROR "
        f"(the archive's keys are expected in {KEYRING}, package debian-archive-keyring)"
    )


def output(
    command: Sequence[str], *, env: dict[str, str] | None = None, folder: Path | None = None
) -> str:
    """Run a tool that should succeed, and return what it says."""
    try:
        done = subprocess.run(
            command,
            env=env,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise LabError(f"the lab needs {command[0]}, found on Debian and its relatives") from error
    if done.returncode:
        raise LabError(f"{' '.join(command[:4])} failed:\n{(done.stderr or done.stdout).strip()}")
    return done.stdout
