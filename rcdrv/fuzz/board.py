"""Fuzz layouts on a board: set them in its configfs, over a shell on the endpoint.

configfs has the sizes of pci-epf-test's BARs and the numbers of vectors
(``Documentation/PCI/endpoint/pci-test-howto.rst``). The controller is unknown, so no oracle covers
everything: a layout is compared with the request, and with the board's original outcome.
"""

from __future__ import annotations

import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from rcdrv.epf_test.answer import IrqChoice
from rcdrv.epf_test.driver import EpfTest
from rcdrv.epf_test.registers import Caps
from rcdrv.epf_test.suite import Case, cases, run_cases
from rcdrv.errors import DeviceLost, HostError, UsageError
from rcdrv.function import Function
from rcdrv.fuzz.finding import Finding, Table
from rcdrv.results.observer import Observer
from rcdrv.results.result import Run
from rcdrv.wait import Cancel, Deadline

CONFIGFS = "/sys/kernel/config/pci_ep"
"""configfs folder of endpoint functions and controllers."""

SHELL_TIMEOUT = 60.0
"""Seconds for one script on the endpoint, with log-in."""
LINK_TIMEOUT = 30.0
"""Seconds for the function to reappear after a start."""
_LOOK_AGAIN = 0.2

_DONE = "rcdrv: done"

Settings = Mapping[str, int]
"""Values of configfs: ``barN_size`` in bytes, ``msi_interrupts``, ``msix_interrupts``."""

KEYS = (*(f"bar{index}_size" for index in range(6)), "msi_interrupts", "msix_interrupts")

# POSIX, for busybox's shell. Only the root is filled in on this side.
_HEAD = """\
set -eu
fail() {{ printf 'rcdrv: %s\\n' "$1" >&2; exit 1; }}
put() {{ printf '%s\\n' "$2" >"$1" || fail "cannot write $2 to $PWD/$1"; }}
cd {root} || fail 'no pci_ep in configfs: is it mounted, and CONFIG_PCI_ENDPOINT_CONFIGFS set?'
set -- functions/pci_epf_test/*/
[ $# = 1 ] && [ -d "$1" ] || fail "$PWD/functions/pci_epf_test has not exactly one function"
function=${{1%/}}
name=${{function##*/}}
set --
for one in controllers/*/; do
    if [ -L "$one$name" ]; then set -- "$@" "$one"; fi
done
[ $# = 1 ] || fail "$name is not linked to exactly one of $PWD/controllers"
controller=${{1%/}}
set -- "$function"/pci_epf_test.*/
[ -d "$1" ] || fail "$PWD/$function has no BAR sizes: this kernel's pci-epf-test is too old"
bars=${{1%/}}
"""

# Sizes can be set only while no controller is bound, links only while it is stopped.
_APPLY = """\
read -r started <"$controller/start"
if [ "$started" != 0 ]; then put "$controller/start" 0; fi
rm "$controller/$name" || fail "cannot unlink $name"
relink() {{ ln -s "$PWD/$function" "$controller/$name" && put "$controller/start" 1; }}
trap 'relink || :' EXIT
{puts}
trap - EXIT
relink || fail "cannot link and start $name: see dmesg there"
"""

_SHOW = """\
for key in {keys}; do
    case $key in *_size) file=$bars/$key ;; *) file=$function/$key ;; esac
    read -r value <"$file" || fail "cannot read $PWD/$file"
    printf '%s %s\\n' "$key" "$value"
done
"""


def show_script(root: str) -> str:
    """Return a POSIX shell script that prints every setting as ``KEY VALUE``."""
    return _script(root, _SHOW.format(keys=" ".join(KEYS)))


def apply_script(settings: Settings, root: str) -> str:
    """Return a POSIX shell script that stops, unlinks, sets up and restarts the function.

    After a refused value the function is still linked and started.
    """
    lines = []
    for key, value in settings.items():
        folder = "$bars" if key.endswith("_size") else "$function"
        lines.append(f'put "{folder}/{key}" {value}')
    return _script(root, _APPLY.format(puts="\n".join(lines) or ":"))


def _script(root: str, body: str) -> str:
    return _HEAD.format(root=shlex.quote(root)) + body + f"echo {shlex.quote(_DONE)}\n"


class Shell:
    """Run scripts on the endpoint.

    :param command: reads a script from standard input, such as ``ssh root@board``
    :param cancel: ends the wait; the terminal ends the command itself
    :raises UsageError: not a command
    """

    def __init__(
        self, command: str, *, timeout: float = SHELL_TIMEOUT, cancel: Cancel | None = None
    ) -> None:
        self.cancel = cancel or Cancel()
        try:
            self._command = shlex.split(command)
        except ValueError as error:
            raise UsageError(f"`command` {command!r}: {error}") from None
        if not self._command:
            raise UsageError("`command` is empty", hint="for instance ssh root@board")
        self._timeout = timeout

    def run(self, script: str) -> list[str]:
        """Run a script and return its output by line.

        :raises HostError: failure, time-out, or not read by a shell
        """
        name = shlex.join(self._command)
        try:
            done = subprocess.run(
                self._command,
                input=script.encode(),
                capture_output=True,
                timeout=self._timeout,
                check=False,
            )
        except OSError as error:
            raise UsageError(f"`command`: {self._command[0]}: {error.strerror}") from None
        except subprocess.TimeoutExpired:
            raise HostError(
                f"{name}: it did not end within {self._timeout:g} s",
                hint="does it ask for a password? Try it by hand with a script on its input",
            ) from None
        said = done.stderr.decode(errors="replace").strip().splitlines()
        lines = done.stdout.decode(errors="replace").splitlines()
        if done.returncode or lines[-1:] != [_DONE]:
            # In the same session: ssh asks for a password on the terminal.
            self.cancel.check()
            # The messages of the shell and of the script.
            last = "; ".join(line.removeprefix("rcdrv: ") for line in said[-2:])
            status = f"status {done.returncode}"
            if done.returncode < 0:
                status = f"ended by {signal.Signals(-done.returncode).name}"
            raise HostError(
                f"{name}: {last or status}",
                hint="rcdrv fuzz layout --ep COMMAND --dry-run shows what is run there",
            )
        return lines[:-1]


class Seen(NamedTuple):
    """Endpoint as the root complex sees it, with the outcomes of the cases."""

    sizes: tuple[int, ...]
    """Bytes of each BAR; 0 if absent."""
    msi: int
    msix: int
    reg_bar: int
    reserved: tuple[int, ...]
    outcomes: dict[str, str]


@dataclass
class BoardReport:
    settings: int = 0
    """Number of layouts set."""
    findings: list[tuple[Finding, Table]] = field(default_factory=list)


@dataclass
class Board:
    """A board, set up again for each layout."""

    shell: Shell
    """Runs scripts on the endpoint."""
    returned: Callable[[], Function]
    """Waits for the function to reappear, and opens it."""
    root: str = CONFIGFS
    """configfs folder."""
    reg_bar: int | None = None
    irq: IrqChoice = IrqChoice.AUTO
    timeout: float = 1.0

    def settings(self) -> dict[str, int]:
        found = {}
        for line in self.shell.run(show_script(self.root)):
            key, _, value = line.partition(" ")
            try:
                found[key] = int(value, 0)
            except ValueError:
                raise HostError(f"the endpoint's configfs reads {line!r}") from None
        return found

    def apply(self, settings: Settings) -> None:
        self.shell.run(apply_script(settings, self.root))

    def look(self) -> Seen:
        with self.returned() as function:
            driver = EpfTest(function, reg_bar=self.reg_bar, irq=self.irq, timeout=self.timeout)
            run = run_cases(driver, _cases(), Run("fuzz"), Observer())
            msix = function.config.msix()
            return Seen(
                tuple(bar.size if bar else 0 for bar in function.bars),
                function.config.msi_vectors(),
                msix.vectors if msix else 0,
                driver.reg_bar,
                tuple(i for i in range(6) if driver.caps & Caps.BAR0_RESERVED << i),
                {str(result.name): result.outcome for result in run.results},
            )

    @contextmanager
    def restored(self) -> Iterator[dict[str, int]]:
        """Yield the settings, and restore them at the end."""
        before = self.settings()
        try:
            yield before
        finally:
            with self.shell.cancel.deferred():
                self.apply(before)


def _cases() -> Sequence[Case]:
    """Return the cases that depend on the layout and that cannot hang an endpoint without DMA."""
    wanted = ("BAR_TEST", "BAR_SUBRANGE_TEST", "CONSECUTIVE_BAR_TEST", "MSI_TEST", "DOORBELL_TEST")
    return [c for c in cases() if c.name.test in wanted or c.name.variant == "memcpy"]


def judge(settings: Settings, base: Seen, seen: Seen) -> list[Finding]:
    """Return the findings of a layout.

    :param base: outcome of the board in its original settings
    """
    found = []
    for index in range(6):
        wanted = settings.get(f"bar{index}_size")
        size, before = seen.sizes[index], base.sizes[index]
        # The controller decides on fixed, resizable, reserved and absent BARs, and pci-epf-test
        # of the one with the registers.
        if wanted is None or index in (seen.reg_bar, *seen.reserved) or size == before:
            continue
        if size != wanted:
            found.append(
                Finding(
                    "size", f"BAR{index}", f"BAR{index} was set to {wanted:#x}, but has {size:#x}"
                )
            )
    for name, wanted, count, before in (
        ("MSI", _next_power(settings.get("msi_interrupts", 0)), seen.msi, base.msi),
        ("MSI-X", settings.get("msix_interrupts", 0), seen.msix, base.msix),
    ):
        if wanted and before and count != wanted:
            found.append(
                Finding("vectors", name, f"{name}: {wanted} vectors were set, but it has {count}")
            )
    for case, outcome in seen.outcomes.items():
        before_outcome = base.outcomes.get(case, "")
        if outcome.split()[0] in ("pass", "skip") or outcome == before_outcome:
            continue
        if outcome == "fail subrange-failed":
            continue  # its halves may be less than the controller can map
        message = f"{case}: {outcome}, but {before_outcome} with the original settings"
        found.append(Finding("verdict", f"{case}: {outcome}", message))
    return found


def _next_power(number: int) -> int:
    return 1 << (number - 1).bit_length() if number else 0


def draw_settings(seed: int, examples: int) -> list[dict[str, int]]:
    """Draw plausible settings: BARs from 128 B to 1 MiB, and numbers of vectors.

    Absent keys keep their original value.
    """
    from hypothesis import strategies as st

    from rcdrv.fuzz.strategies import draw

    sizes = st.sampled_from([1 << bit for bit in range(7, 21)])
    optional: dict[str, st.SearchStrategy[int]] = {
        **{f"bar{index}_size": sizes for index in range(6)},
        "msi_interrupts": st.sampled_from([1, 2, 3, 8, 32]),
        "msix_interrupts": st.sampled_from([1, 3, 32, 2048]),
    }
    drawn = draw(st.fixed_dictionaries({}, optional=optional).filter(bool), seed, examples)
    return [dict(sorted(found.items())) for found in drawn]


def campaign(
    board: Board,
    layouts: Sequence[Settings],
    on_layout: Callable[[BoardReport], None] = lambda _report: None,
) -> BoardReport:
    """Set and judge each layout, and restore the board.

    :raises HostError: the board's shell fails, or the function does not come back
    """
    report = BoardReport()
    with board.restored() as before:
        base = board.look()

        def try_it(settings: Settings) -> list[Finding]:
            board.apply({**before, **settings})
            return judge(settings, base, board.look())

        for settings in layouts:
            findings = try_it(settings)
            report.settings += 1
            known = {found.key for found, _ in report.findings}
            for finding in findings:
                if finding.key not in known:
                    small = _shrink(settings, finding.key, try_it)
                    report.findings.append((finding, as_table(small)))
            on_layout(report)
    return report


def _shrink(
    settings: Settings, key: tuple[str, str], try_it: Callable[[Settings], list[Finding]]
) -> Settings:
    """Drop keys that do not matter: each once, as a try takes a restart of the link."""
    for name in list(settings):
        without = {other: value for other, value in settings.items() if other != name}
        if any(found.key == key for found in try_it(without)):
            settings = without
    return settings


def as_table(settings: Settings) -> Table:
    table: Table = {}
    for key, value in settings.items():
        if key.endswith("_size"):
            table[key.removesuffix("_size")] = {"size": value}
        else:
            table[key.removesuffix("_interrupts")] = value
    return table


def wait_open(opened: Callable[[], Function], cancel: Cancel) -> Function:
    """Open a function that is about to reappear.

    :raises HostError: not within :data:`LINK_TIMEOUT`
    """
    deadline = Deadline(LINK_TIMEOUT)
    while True:
        try:
            return opened()
        except (HostError, DeviceLost) as error:
            if deadline.expired:
                raise HostError(
                    f"the function is not back after {LINK_TIMEOUT:g} s: {error.message}",
                    hint="does its link train? See dmesg on the endpoint",
                ) from error
        cancel.sleep(_LOOK_AGAIN)
