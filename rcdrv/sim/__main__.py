"""The program that ``sim:`` addresses start (``_spawn`` in rcdrv/address.py).

Users start an endpoint with ``rcdrv sim``.
"""

from __future__ import annotations

# Set before the imports: the terminal sends SIGINT to the parent too, which ends this process.
import _signal  # type: ignore[import-not-found]
import sys

if "--fd" in sys.argv:
    _signal.signal(_signal.SIGINT, _signal.SIG_IGN)

from rcdrv.errors import RcdrvError, UsageError
from rcdrv.sim.layout import load_layout
from rcdrv.sim.serve import serve

_USAGE = "SPEC (--fd N | --socket PATH) [--access-log FILE] [--set KEY=VALUE]... [--fault NAME]..."


def _run(arguments: list[str]) -> None:
    # argparse would take longer than the rest of the start.
    spec, fd, path, log = "", -1, None, None
    options = iter(arguments)
    for option in options:
        if not option.startswith("--"):
            spec = option
            continue
        value = next(options, None)
        if value is None:
            raise UsageError(f"{option} without a value", hint=_USAGE)
        if option == "--fd" and value.isdecimal():
            fd = int(value)
        elif option == "--socket":
            path = value
        elif option == "--access-log":
            log = value
        elif option == "--set":
            spec += f",{value}"
        elif option == "--fault":
            spec += f",fault={value}"
        else:
            raise UsageError(f"{option} {value}: not understood", hint=_USAGE)
    if not spec or (fd < 0) == (path is None):
        raise UsageError("what to serve, and where?", hint=_USAGE)
    serve(load_layout(spec), path=path, fd=fd, access_log=log)


def main() -> int:
    try:
        _run(sys.argv[1:])
    except RcdrvError as error:
        hint = f"\nhint: {error.hint}" if error.hint else ""
        print(f"rcdrv: {error.message}{hint}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
