"""What holds for all tests."""

import os
import pty
import signal

import pytest
from hypothesis import settings

from tests.unavailable import unavailable

# Tests send Ctrl-C to programs that they start. Where the runner was started in the background of
# a script, SIGINT is ignored, and so it would be in those (POSIX, 2.11 Signals and Error Handling);
# with nohup, SIGHUP is.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# No test may fail because the machine is busy: pytest's own timeout ends what hangs.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture(scope="session")
def pseudo_terminals() -> None:
    """For a test that makes pseudo-terminals, which a bare chroot or container may lack."""
    try:
        for terminal in pty.openpty():
            os.close(terminal)
    except OSError as error:
        unavailable(f"no pseudo-terminal here ({error}): mount -t devpts devpts /dev/pts")
