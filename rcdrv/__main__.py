"""The ``rcdrv`` command, and ``python3 -m rcdrv``."""

# First of all: until main() takes signals over, one of them ends the program without a traceback.
# The imports take tens of milliseconds, in which people do press Ctrl-C. The module signal would
# import enum, so this is the one below it. A shell has the jobs in its background ignore SIGINT,
# and nohup SIGHUP: that stays so (see rcdrv.wait.heeded).
import _signal  # type: ignore[import-not-found]
import os


def _leave(signum: int, _frame: object) -> None:
    os._exit(128 + signum)


for _number in (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP):
    if _number == _signal.SIGTERM or _signal.getsignal(_number) != _signal.SIG_IGN:
        _signal.signal(_number, _leave)

import sys  # noqa: E402

from rcdrv.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
