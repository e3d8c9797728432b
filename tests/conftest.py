"""What holds for all tests."""

import signal

from hypothesis import settings

# Tests send Ctrl-C to programs that they start. Where the runner was started in the background of
# a script, SIGINT is ignored, and so it would be in those (POSIX, 2.11 Signals and Error Handling).
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No test may fail because the machine is busy: pytest's own timeout ends what hangs.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
