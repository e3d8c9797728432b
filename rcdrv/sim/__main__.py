"""The program that ``sim:`` addresses start (``_spawn`` in rcdrv/address.py): SPEC DESCRIPTOR.

Users start an endpoint with ``rcdrv sim``.
"""

from __future__ import annotations

import sys

from rcdrv.errors import RcdrvError
from rcdrv.sim.layout import load_layout
from rcdrv.sim.serve import serve


def main() -> int:
    spec, fd = sys.argv[1:]
    try:
        serve(load_layout(spec), int(fd))
    except RcdrvError as error:
        hint = f"\nhint: {error.hint}" if error.hint else ""
        print(f"rcdrv: {error.message}{hint}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
