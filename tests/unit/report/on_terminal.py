"""Shows a run on the terminal that is its stdout; run by test_terminal.py as a process.

The second case stays at 12 of 32 vectors until SIGUSR1 lets it go on, or Ctrl-C ends the run.
"""

from __future__ import annotations

import fcntl
import signal
import sys
import termios

from rcdrv.report import for_terminal
from rcdrv.results.result import Run

from .samples import a_run


def main() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that ^C is a signal, as at a shell
    awaited = {signal.SIGINT, signal.SIGUSR1}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    every = a_run()
    run = Run(every.device, every.description, every.planned)
    observer = for_terminal(sys.stdout)
    observer.start(run)
    for number, result in enumerate(every.results):
        observer.case_started(result.name)
        if number == 1:
            observer.progress(result.name, 12, 32, "vectors")
            if signal.sigwait(awaited) == signal.SIGINT:
                break
        run.results.append(result)
        observer.case_finished(result)
    observer.finish(run)


if __name__ == "__main__":
    if "--without-rich" in sys.argv:
        sys.modules["rich"] = None  # type: ignore[assignment]  # as if it were not installed
    main()
