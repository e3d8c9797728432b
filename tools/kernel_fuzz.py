"""Fuzz the kernel's own endpoint functions: ``python3 -m tools.kernel_fuzz --minutes 40``.

Guests come one after the other; one that has crashed is left for a new one. On pci-epf-test,
``rcdrv fuzz device`` with some of its classes of harm takes turns with pokes: random registers,
random commands, rings. pci-epf-vntb has pokes alone. A campaign leaves out at random what may
crash, so that a known crash does not hide what lies behind it. What pokes crash, or make the kernel
warn of, is made short on fresh guests, and printed as a script. The exit status is 1 if anything
was found.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import cycle, takewhile
from typing import NamedTuple

from rcdrv.address import open_function
from rcdrv.cli.common import positive
from rcdrv.epf_test.registers import Reg
from rcdrv.epf_vntb.registers import Reg as VntbReg
from rcdrv.epf_vntb.registers import db_data, db_offset
from rcdrv.errors import RcdrvError
from rcdrv.function import Function
from rcdrv.fuzz.device.harm import CLASSES
from tools.lab.endpoint import environment
from tools.lab.errors import LabError
from tools.lab.kernel_endpoint.endpoint import KernelEndpoint

SPECS = (
    *("rcar-s4", "rcar-s4-vntb,vntb.peer_delay_ms=0", "rk3588"),
    *("rcar-s4-vntb-polled,vntb.peer_delay_ms=0", "generic", "imx95"),
)
"""A doorbell that is mapped on demand, one that is always exposed, a polled one, MSI-X."""
ROUND = 240.0
"""Seconds of fuzzing in one guest."""
CAMPAIGN = 40.0
"""Seconds with the same choice of what may crash."""
HANG = 20.0
"""Seconds after which a command counts as never taken. The longest transfer is done by then."""
SETTLE = 1.5
"""Seconds in which a crash shows after the last poke."""
_SHORT = (1, 2, 4, 8, 16, 32)
"""How many of the last pokes are tried alone, in this order."""
_EXTREMES = (0, 1, 2, 5, 6, 7, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF)
_SIZES = (0, 1, 3, 4096, 4097, 65536, 1 << 20, 4 << 20, 1 << 28, 0xFFFF_F000)
_WARNING = re.compile(
    r"^(?:.*\[ cut here \].*\n(?:.*\n)?)?.*(?P<name>WARNING: [\w/.-]+:\d+ at \w+)"
    r"(?P<trace>(?:.*\n)*?.*\[ end trace |)",
    re.M,
)


class Poke(NamedTuple):
    """One write of 32 bits, and whether the endpoint is waited for."""

    bar: int
    offset: int
    value: int
    command: bool = False

    def __str__(self) -> str:
        return f"rcdrv poke {self.bar} {self.offset:#x} {self.value:#x}"


class Finding(NamedTuple):
    """A crash, or an answer that is wrong."""

    what: str
    spec: str
    script: str
    report: str = ""


class Tally:
    """How much was done, and each finding once."""

    def __init__(self, *, debug: bool = False) -> None:
        self.debug = debug  # The kernel of the guests.
        self.guests = self.sequences = self.steps = self.pokes = 0
        self.fuzzed = 0.0
        self.found: dict[str, list[Finding]] = {}

    def add(self, finding: Finding) -> None:
        first = finding.what not in self.found
        self.found.setdefault(finding.what, []).append(finding)
        if first:
            print(f"\n{finding.spec}: {finding.what}\n{finding.script}\n{finding.report}\n")
            sys.stdout.flush()

    def summary(self) -> str:
        lines = [f"{len(found):4}  {what}" for what, found in self.found.items()]
        lines.append(
            f"{self.fuzzed / 60:.0f} minutes of fuzzing in {self.guests} guests: {self.sequences}"
            f" sequences of {self.steps} steps, {self.pokes} pokes; findings: {len(self.found)}"
        )
        return "\n".join(lines)


def name_of(report: str) -> str:
    """What crashed, without what differs from one time to the next."""
    first = re.sub(r"^\[ *[\d.]+\] ", "", report.splitlines()[0])
    first = re.sub(r"(?:address: )?\b(?:0x)?[0-9a-f]{8,16}\b|\+0x[0-9a-f]+/0x[0-9a-f]+", "", first)
    # UBSAN's has its line; the crash that may follow is of the same.
    place = None if "UBSAN" in first else re.search(r"RIP: 0010:(\w+)", report)
    return " ".join(f"{first} ({place[1]})".split()) if place else " ".join(first.split())


class Warnings:
    """The kernel's warnings after which it goes on, as it says them. Some it says once a boot."""

    def __init__(self, endpoint: KernelEndpoint) -> None:
        self._guest = endpoint.guest
        self._mark = self._guest.console_since(0)[1]

    def new(self) -> dict[str, str]:
        """Reports of the warnings since the last call, by name."""
        text, end = self._guest.console_since(self._mark)
        found = list(_WARNING.finditer(text))
        if not all(one["trace"] for one in found):
            return {}  # One has only begun: it is told with its end.
        self._mark = end
        return {one["name"]: one[0] for one in found}


# -- pokes ----------------------------------------------------------------------------------------


def draw_test(rng: random.Random, function: Function) -> Iterator[Poke]:
    """Draw pokes for pci-epf-test: registers, then a command or a ring."""
    window = function.bar(0)
    registers = [register for register in Reg if register not in (Reg.COMMAND, Reg.CAPS)]
    registers = rng.sample(registers, rng.randint(1, len(registers)))
    bits = rng.sample(range(10), rng.randint(2, 10))
    while True:
        for register in rng.choices(registers, k=rng.randrange(4)):
            sizes = _SIZES if register is Reg.SIZE and rng.random() < 0.7 else _EXTREMES
            yield Poke(0, register, rng.choice(sizes))
        yield Poke(0, Reg.COMMAND, 1 << rng.choice(bits), command=True)
        bar, offset = window.read32(Reg.DB_BAR), window.read32(Reg.DB_OFFSET)
        known = function.bars[bar] if bar < 6 else None
        if known and offset % 4 == 0 and offset < known.size and rng.random() < 0.5:
            yield Poke(bar, offset, window.read32(Reg.DB_DATA))


def draw_vntb(rng: random.Random, function: Function) -> Iterator[Poke]:
    """Draw pokes for pci-epf-vntb, of which BAR0 has the control block and BAR4 the doorbells."""
    window, doorbells = function.bar(0), function.bar(4)
    words = [register for register in VntbReg if register % 4 == 0 and register > VntbReg.COMMAND]
    words = rng.sample(words, rng.randint(1, len(words)))
    commands = rng.sample(range(1, 8), rng.randint(2, 7))
    largest = rng.choice((0, 3, 0x7FFF_FFFF, 0xFFFF_FFFF))
    while True:
        for word in rng.choices(words, k=rng.randrange(4)):
            values = [value for value in _EXTREMES if value <= largest]
            if word is not VntbReg.ARGUMENT:  # it is an index
                values += _SIZES
            yield Poke(0, word, rng.choice(values))
        if rng.random() < 0.3:
            yield Poke(0, window.read32(VntbReg.SPAD_OFFSET) % 0x1000 & ~3, rng.getrandbits(32))
        if rng.random() < 0.5:
            yield Poke(0, VntbReg.COMMAND, rng.choice(commands), command=True)
        slot = rng.randint(2, 3)
        offset = window.read32(VntbReg.DB_ENTRY_SIZE) * slot + window.read32(db_offset(slot))
        if offset % 4 == 0 and offset < doorbells.size:
            yield Poke(4, offset, window.read32(db_data(slot)))


def poke(endpoint: KernelEndpoint, function: Function, one: Poke) -> str:
    """Do it, and wait until a command is taken. Return the report of a crash, or of a hang."""
    window = function.bar(one.bar)
    window.write32(one.offset, one.value)
    deadline = time.monotonic() + HANG
    while one.command and window.read32(one.offset):
        if report := endpoint.crash():
            return report
        if time.monotonic() > deadline:
            return f"takes no command for {HANG:.0f} s"
        time.sleep(0.01)
    return ""


def poke_for(one: KernelEndpoint, rng: random.Random, seconds: float, tally: Tally) -> str:
    """Poke for so long, or until it crashes: return its report then."""
    vntb = one.layout.function == "epf_vntb"
    done: list[Poke] = []
    until = time.monotonic() + seconds
    report = ""
    warnings = Warnings(one)

    def found(what: str, report: str) -> None:
        script = done if what in tally.found else shorten(one.spec, done, what, debug=tally.debug)
        tally.add(Finding(what, one.spec, "\n".join(map(str, script)), report))

    with open_function(f"vfio-user:{one.socket}") as function:
        pokes = draw_vntb(rng, function) if vntb else draw_test(rng, function)
        for each in takewhile(lambda _: time.monotonic() < until, pokes):
            done.append(each)
            tally.pokes += 1
            if report := poke(one, function, each) or one.crash():
                break
            for what, warning in warnings.new().items():
                found(what, warning)
    if report := report or one.crash():
        found(name_of(report), report)
    return report


def shorten(spec: str, done: Sequence[Poke], what: str, *, debug: bool) -> Sequence[Poke]:
    """The fewest of the last pokes that do the same in a fresh guest."""
    for count in _SHORT:
        with booted(spec, debug=debug) as one:
            report = ""
            warnings = Warnings(one)
            with contextlib.suppress(RcdrvError), open_function(f"vfio-user:{one.socket}") as host:
                for each in done[-count:]:
                    report = report or poke(one, host, each)
            time.sleep(SETTLE)
            report = report or one.crash()
            if what in warnings.new() or (report and name_of(report) == what):
                return done[-count:]
    return done[-_SHORT[-1] :]


# -- rcdrv fuzz device ----------------------------------------------------------------------------


def fuzz_for(one: KernelEndpoint, rng: random.Random, seconds: float, tally: Tally) -> str:
    """Run ``rcdrv fuzz device`` for so long, or until it finds something."""
    classes = [f"--destructive={name}" for name in CLASSES if rng.random() < 0.3]
    command = ["fuzz", "device", "--json", "--timeout", "20", *classes]
    command += ["--seed", str(rng.randrange(1 << 30)), "--seconds", str(seconds)]
    warnings = Warnings(one)
    done = subprocess.run(
        [sys.executable, "-m", "rcdrv", "-d", f"vfio-user:{one.socket}", *command],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    for what, warning in warnings.new().items():
        tally.add(Finding(what, one.spec, " ".join(["rcdrv", *command]), warning))
    report = one.crash()
    try:
        document = json.loads(done.stdout)
    except ValueError:
        document = {"sequences": 0, "steps": 0, "finding": done.stderr.strip(), "script": ""}
    tally.sequences += document["sequences"]
    tally.steps += document["steps"]
    finding = document["finding"]
    if report:
        tally.add(Finding(name_of(report), one.spec, document["script"], report))
    elif finding:
        # A step's numbers differ each time; its verb and the fault do not.
        what = re.sub(r"(?:0x)?\b[0-9a-f]*\d[0-9a-f]*\b", "N", finding)
        tally.add(Finding(what, one.spec, document["script"], finding))
    return report or ("dead" if done.returncode == 5 else "")


# -- the whole ------------------------------------------------------------------------------------


def booted(spec: str, *, debug: bool) -> KernelEndpoint:
    """An endpoint in a guest, not yet booted."""
    return KernelEndpoint(spec, debug=debug)


def fuzz_guest(spec: str, rng: random.Random, end: float, tally: Tally) -> None:
    """Fuzz one guest until it crashes, or its round ends."""
    with booted(spec, debug=tally.debug) as one:
        tally.guests += 1
        end = min(end, time.monotonic() + ROUND)
        while (left := end - time.monotonic()) > 0:
            vntb = one.layout.function == "epf_vntb"
            way = poke_for if vntb or rng.random() < 0.4 else fuzz_for
            begun = time.monotonic()
            try:
                crashed = way(one, rng, min(CAMPAIGN, left), tally)
            except RcdrvError as error:
                crashed = one.crash()
                what = name_of(crashed) if crashed else f"{type(error).__name__}: {error.message}"
                tally.add(Finding(what, spec, "", crashed))
                crashed = crashed or "lost"
            tally.fuzzed += min(time.monotonic() - begun, CAMPAIGN)
            if crashed:
                return


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz, and print what was found."""
    parser = argparse.ArgumentParser(prog="python3 -m tools.kernel_fuzz", description=__doc__)
    parser.add_argument("--minutes", type=positive, default=40, metavar="N")
    parser.add_argument(
        "--debug-kernel",
        action="store_true",
        help="a kernel with KASAN, UBSAN and lockdep, built at the first use",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("specs", nargs="*", metavar="SPEC", help=f"default: {' '.join(SPECS)}")
    options = parser.parse_args(arguments)
    rng, tally = random.Random(options.seed), Tally(debug=options.debug_kernel)
    end = time.monotonic() + 60 * options.minutes
    try:
        for spec in cycle(options.specs or SPECS):
            if time.monotonic() > end:
                break
            fuzz_guest(spec, rng, end, tally)
    except LabError as error:
        print(f"kernel_fuzz: {error}", file=sys.stderr)
        return 125
    except KeyboardInterrupt:
        pass
    finally:
        print(tally.summary(), flush=True)
    return 1 if tally.found else 0


if __name__ == "__main__":
    sys.exit(main())
