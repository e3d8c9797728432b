"""The ``rcdrv`` command, and ``python3 -m rcdrv``."""

# First of all: until main() takes signals over, Ctrl-C ends the program without a traceback. It
# takes tens of milliseconds to import the rest, in which people do press it.
import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)

import sys  # noqa: E402

from rcdrv.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
