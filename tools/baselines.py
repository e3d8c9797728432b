"""Known limits of the presets' boards, as the baselines that rcdrv brings along.

python3 -m tools.baselines PRESET...

Writes rcdrv/results/baselines/PRESET.json from what ``rcdrv test`` says of ``sim:PRESET``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "rcdrv/results/baselines"
KEYS = ("name", "verdict", "reason")
TIMEOUT = 300.0


def main() -> int:
    for preset in sys.argv[1:]:
        command = (sys.executable, "-m", "rcdrv", "test", "--json", "--device", f"sim:{preset}")
        done = subprocess.run(command, stdout=subprocess.PIPE, check=False, timeout=TIMEOUT)
        results = json.loads(done.stdout)["results"]
        lines = [json.dumps({key: one[key] for key in KEYS}) for one in results]
        listed = ",\n".join(lines)
        text = f'{{"device": "sim:{preset}", "results": [\n{listed}\n]}}\n'
        FOLDER.joinpath(f"{preset}.json").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
