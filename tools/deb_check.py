"""Does the Debian package do what it should in a clean Debian root? And the single file?

python3 -m tools.deb_check [ROOT]

Makes a bare root with python3-minimal alone (or takes the one at ROOT), where rcdrv.pyz has to work
or to name the package that is missing. Then it installs the package that tools.deb builds, rings a
software endpoint, looks for the group, manual pages and completion, runs lintian, and purges it.
Needs what tools.fresh needs; two minutes.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from rcdrv.cli import COMMANDS
from tools import deb, fresh, pyz
from tools.lab.errors import LabError

PACKAGE, SINGLE = "/tmp/rcdrv.deb", "/tmp/rcdrv.pyz"
RING = "--device sim:rk3588 ring --bar 4"
APT = "DEBIAN_FRONTEND=noninteractive apt-get -qqy --no-install-recommends"

CHECKS = {
    "the single file, with python3-minimal": f"""
cd /
for command in '{RING}' {" ".join(f"'{name} --help'" for name in COMMANDS)}; do
    said=$(python3 {SINGLE} $command 2>&1) && continue
    echo "$command: $said" | head -n 2
    echo "$said" | grep -q "apt install python3" || exit 1
done
""",
    "the package installs": f"apt-get -qq update && {APT} install {PACKAGE} >/dev/null",
    "it rings": f"cd / && rcdrv {RING}",
    "group, pages, completion, rule": """
getent group rcdrv && cd /usr && ls share/man/man1/rcdrv-ring.1.gz \\
    share/bash-completion/completions/rcdrv share/zsh/vendor-completions/_rcdrv \\
    share/fish/vendor_completions.d/rcdrv.fish lib/udev/rules.d/70-rcdrv.rules
""",
    "the single file, with python3": f"cd / && python3 {SINGLE} {RING}",
    "lintian": f"""
{APT} install lintian >/dev/null && lintian --fail-on error,warning,info {PACKAGE}
""",
    "it goes": f"""
{APT} purge rcdrv >/dev/null && ! ls /usr/bin/rcdrv /usr/lib/python3/dist-packages/rcdrv
""",
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tools.deb_check", description=__doc__)
    parser.add_argument("root", type=Path, nargs="?")
    root = parser.parse_args().root
    try:
        with tempfile.TemporaryDirectory(prefix="rcdrv-deb-") as folder:
            if root is None:
                root = Path(folder) / "root"
                fresh.bootstrap(root, "python3-minimal")
            pyz.build(root / SINGLE[1:])
            shutil.copy(deb.build(Path(folder)), root / PACKAGE[1:])
            failed = [
                name for name, command in CHECKS.items() if fresh.timed(root, command.strip(), name)
            ]
    except LabError as error:
        print(f"deb_check: {error}", file=sys.stderr)
        return 1
    print(f"deb_check: {', '.join(failed) or 'nothing'} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
