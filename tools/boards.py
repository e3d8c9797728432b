"""Make the recordings of tests/boards/ that need no board again.

python3 -m tools.boards [ENDPOINT...]

ENDPOINT is ``sim:PRESET`` or ``kernel:PRESET``, the lab's (default: those that are there). For
a driver that was changed on purpose: a replay holds it to the accesses that were recorded.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from tools.lab.kernel_endpoint.endpoint import KernelEndpoint

FOLDER = Path(__file__).parents[1] / "tests/boards"
ENDPOINTS = {"sim:rk3588": "rk3588", "sim:rcar-s4": "rcar-s4", "kernel:rk3588": "kernel-rk3588"}
TIMEOUT = 300.0


def record(address: str, name: str) -> None:
    path = FOLDER / f"{name}.gz"
    command = (sys.executable, "-m", "rcdrv", "--record", str(path), "test", "--device", address)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, timeout=TIMEOUT)
    print(f"{path.name}: {path.stat().st_size} bytes; {done.stdout.splitlines()[-1]}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tools.boards", description=__doc__)
    parser.add_argument("endpoints", nargs="*", metavar="ENDPOINT")
    for endpoint in parser.parse_args().endpoints or ENDPOINTS:
        kind, _, preset = endpoint.partition(":")
        name = ENDPOINTS.get(endpoint, endpoint.replace(":", "-"))
        if kind == "kernel":
            with KernelEndpoint(preset) as kernel:
                record(f"vfio-user:{kernel.socket}", name)
        else:
            record(endpoint, name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
