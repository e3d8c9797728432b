"""Known limits of the presets' boards, as the baselines that rcdrv brings along.

python3 -m tools.baselines PRESET...

Writes rcdrv/results/baselines/PRESET.json from what both suites, ``rcdrv test`` and
``rcdrv test --more``, say of ``sim:PRESET``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "rcdrv/results/baselines"
KEYS = ("name", "verdict", "reason")
TIMEOUT = 300.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tools.baselines", description=__doc__)
    parser.add_argument("presets", nargs="+", metavar="PRESET")
    for preset in parser.parse_args().presets:
        results = [one for suite in ((), ("--more",)) for one in run(preset, *suite)]
        lines = [json.dumps({key: one[key] for key in KEYS}) for one in results]
        listed = ",\n".join(lines)
        text = f'{{"device": "sim:{preset}", "results": [\n{listed}\n]}}\n'
        FOLDER.joinpath(f"{preset}.json").write_text(text)
    return 0


def run(preset: str, *suite: str) -> list[dict[str, str | None]]:
    """The results of one suite."""
    command = [sys.executable, "-m", "rcdrv", "test", *suite, "--json", "--device", f"sim:{preset}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False, timeout=TIMEOUT)
    results: list[dict[str, str | None]] = json.loads(done.stdout)["results"]
    return results


if __name__ == "__main__":
    sys.exit(main())
