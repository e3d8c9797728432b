"""``python3 -m rcdrv``: the same as the ``rcdrv`` command."""

import sys

from rcdrv.cli import main

if __name__ == "__main__":
    sys.exit(main())
