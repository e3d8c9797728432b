"""Ask polkitd about the rule of docs/guide/any-host.md, as it stands there.

sudo python3 -m tools.polkit_rule

polkitd and a bus of its own run in a mount namespace, with that rule alone and a group ``rcdrv``. A
member may run the one command, and neither another command nor another user may. Debian: polkitd,
dbus-daemon, util-linux. ``pkexec`` itself is not run.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs/guide/any-host.md"
RULES = Path("/etc/polkit-1/rules.d")
POLKITD = Path("/usr/lib/polkit-1/polkitd")
BUS = """<busconfig><type>system</type><listen>unix:path={}</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/>
<allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/></policy>
</busconfig>"""
COMMAND = "/usr/sbin/rcdrv-bind"
ASKED = (  # user, program, whether it may run
    ("nobody", COMMAND, True),
    ("nobody", "/usr/bin/rcdrv", False),
    ("nobody", "/bin/sh", False),
    ("daemon", COMMAND, False),
)
LIMIT = 20.0


def run(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True, timeout=LIMIT)


def prepare(folder: Path) -> None:
    """Show polkitd the rule and the group, in this process's mount namespace only."""
    folder.chmod(0o755)
    run("mount", "--make-rprivate", "/")
    run("mount", "-t", "tmpfs", "-o", "mode=755", "none", RULES)
    rule = re.search(r"```js\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert rule is not None
    (RULES / "50-rcdrv.rules").write_text(rule[1])
    group = folder / "group"
    group.write_text(Path("/etc/group").read_text() + "rcdrv:x:4242:nobody\n")
    run("mount", "--bind", group, "/etc/group")
    (folder / "bus.conf").write_text(BUS.format(folder / "bus"))


def allowed(user: str, program: str) -> bool:
    """Ask whether a process of this user may run a program as root."""
    who = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "sleep", "60"]
    if user == "nobody":
        who[2] = "--regid=nogroup"
    with subprocess.Popen(who) as subject:
        time.sleep(0.2)  # until it is that user
        question = ["--action-id", "org.freedesktop.policykit.exec", "--process", str(subject.pid)]
        command = ["pkcheck", *question, "--detail", "program", program]
        try:
            done = subprocess.run(command, capture_output=True, check=False, timeout=LIMIT)
        finally:
            subject.kill()
    if done.returncode not in (0, 2):  # 2: it would ask for a password
        raise SystemExit(f"pkcheck: {done.stderr.decode().strip()}")
    return done.returncode == 0


def quietly(*command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def ask(folder: Path) -> int:
    prepare(folder)
    os.environ["DBUS_SYSTEM_BUS_ADDRESS"] = f"unix:path={folder / 'bus'}"
    bus = quietly("dbus-daemon", f"--config-file={folder / 'bus.conf'}", "--nofork")
    polkitd = None
    wrong = 0
    try:
        deadline = time.monotonic() + LIMIT
        while not (folder / "bus").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        polkitd = quietly(str(POLKITD))
        owned = ["dbus-send", "--system", "--print-reply", "--dest=org.freedesktop.DBus", "/"]
        owned += ["org.freedesktop.DBus.NameHasOwner", "string:org.freedesktop.PolicyKit1"]
        while time.monotonic() < deadline:
            told = subprocess.run(owned, capture_output=True, text=True, check=False, timeout=LIMIT)
            if "true" in told.stdout:
                break
            time.sleep(0.1)
        for user, program, expected in ASKED:
            found = allowed(user, program)
            wrong += found is not expected
            answer = "may run" if found else "is asked for a password for"
            print(f"{'ok' if found is expected else 'WRONG'}: {user} {answer} {program}")
    finally:
        for process in (polkitd, bus):
            if process is not None:
                process.kill()
                process.wait()
    return 1 if wrong else 0


def main() -> int:
    argparse.ArgumentParser(
        prog="python3 -m tools.polkit_rule",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    missing = [name for name in ("dbus-daemon", "dbus-send", "pkcheck") if not shutil.which(name)]
    missing += [] if POLKITD.exists() else [str(POLKITD)]
    if os.geteuid() or missing:
        print(f"needs root{', and: ' if missing else ''}{', '.join(missing)}", file=sys.stderr)
        return 3
    if "RCDRV_POLKIT" not in os.environ:
        inner = {**os.environ, "RCDRV_POLKIT": "1"}
        command = ["unshare", "--mount", sys.executable, "-m", "tools.polkit_rule"]
        return subprocess.run(command, env=inner, check=False).returncode
    with tempfile.TemporaryDirectory() as folder:
        return ask(Path(folder))


if __name__ == "__main__":
    sys.exit(main())
