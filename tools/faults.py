"""Which case of ``rcdrv test`` catches which fault of the software endpoint, as Markdown.

python3 -m tools.faults > docs/faults.md
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import defaultdict

from rcdrv.epf_test.more import DESTRUCTIVE_MORE
from rcdrv.sim.faults import FAULTS

PRESET = "generic"
COMMAND = (sys.executable, "-m", "rcdrv")
TIMEOUT = 300.0

HEAD = f"""\
# Faults: what catches them

Every fault of the software endpoint (`rcdrv sim --list`) on the preset `{PRESET}`, with the cases
of `rcdrv test --timeout 0.5` that do not pass because of it; those of pci-epf-vntb are not here.
Made by

    python3 -m tools.faults > docs/faults.md

The last rows, from `data-line` on, are of `rcdrv test --more --timeout 0.5` with every class of
`--destructive`, and its cases.

Cases that are skipped without any fault are left out. What no case catches is said with its reason.

| fault | what it does | caught by |
| --- | --- | --- |
"""

UNCAUGHT = {
    "slow": "nothing: within the time-out, as it must be",
    "doorbell-late": "nothing: within the time-out, as it must be",
    "offset-changes": "nothing: DB_OFFSET is read once, and what was read is checked and used",
    "no-resource": "nothing fails: the subrange cases skip, as in the kselftest",
    "cap-loop": "`rcdrv info`, exit 1; with `--more`: CAPABILITIES",
    "rebar-empty": "`rcdrv info`, exit 1; with `--more`: CAPABILITIES",
    "reset-loses": "`rcdrv reset`, exit 1; with `--more --destructive reset`: RESET",
}


def main() -> int:
    argparse.ArgumentParser(prog="python3 -m tools.faults", description=__doc__).parse_args()
    print(HEAD, end="")
    healthy = {more: run(PRESET, more) for more in (False, True)}
    for fault, what in FAULTS.items():
        if what.function in ("", "epf_test"):
            print(row(fault, healthy[what.more]))
    return 0


def row(fault: str, healthy: dict[str, str]) -> str:
    """What a fault does, and the cases that catch it."""
    what = FAULTS[fault]
    caught: dict[str, list[str]] = defaultdict(list)
    for case, reason in run(f"{PRESET},fault={fault}", what.more).items():
        # Of the second suite a case has the same name for each BAR.
        name = short(case).rpartition(".")[2] if what.more else short(case)
        if healthy.get(case) != reason and name not in caught[reason]:
            caught[reason].append(name)
    cells = [f"`{reason}`: {shortened(cases)}" for reason, cases in caught.items() if cases]
    return f"| `{fault}` | {what.summary} | {'; '.join(cells) or UNCAUGHT[fault]} |"


def run(spec: str, more: bool) -> dict[str, str]:
    """{case: reason} of the cases that did not pass."""
    suite = ["--more", *(f"--destructive={name}" for name in DESTRUCTIVE_MORE)] if more else []
    arguments = ("test", *suite, "--json", "--timeout", "0.5", "--device", f"sim:{spec}")
    done = subprocess.run(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, check=False, timeout=TIMEOUT
    )
    results = json.loads(done.stdout)["results"]
    return {one["name"]: one["reason"] for one in results if one["verdict"] != "pass"}


def short(case: str) -> str:
    return case.partition(".")[2].removesuffix("_TEST")


def shortened(cases: list[str]) -> str:
    """The names, or only how many where the list says nothing more."""
    return f"{len(cases)} cases" if len(cases) > 8 else ", ".join(cases)


if __name__ == "__main__":
    sys.exit(main())
