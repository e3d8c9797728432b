"""Judge a change of the kernel's endpoint functions: ``python3 -m tools.patch_check DIR``.

Runs the same checks on the functions of a kernel tree and on those of Debian's unpatched kernel,
whose results are cached. Exits with 1 if a check ends worse than unpatched.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tools.lab import cache
from tools.lab.endpoint import REPOSITORY, environment
from tools.lab.errors import LabError
from tools.lab.kernel_endpoint.build import kernel_endpoint_modules
from tools.lab.kernel_endpoint.endpoint import KernelEndpoint

TEST, VNTB = "rk3588", "rcar-s4-vntb,vntb.peer_delay_ms=0"
RING = ("ring", "--cycles", "1000")
_DOORBELL = "test pcie_ep_doorbell.DOORBELL_TEST"
FUZZ = ("fuzz", "device", "--examples", "10", "--seed", "0")
PING = ("ntb", "ping", "--count", "3")
# Enough for a working endpoint on a busy machine, without long waits for a broken one.
TIMEOUT = ("--timeout", "5")
LIMIT = 300.0
"""Limit of a command in seconds; a thousand rings take 10 to 20, or 100 on a busy host."""

PASS, FAIL, CRASH = "pass", "fail", "CRASH"
_RANK = {CRASH: 0, FAIL: 1}
_STATUS = {0: PASS, 4: "skip"}

Verdict = tuple[str, str]
"""Verdict and reason."""


def check(source: Path | None) -> dict[str, Verdict]:
    """Run all checks on the functions of a kernel tree, by default Debian's.

    In three guests side by side: each spends much of its time waiting.
    """
    with ThreadPoolExecutor() as pool:
        running = [pool.submit(one, source) for one in (_check_test, _check_fuzz, _check_vntb)]
        return {name: verdict for one in running for name, verdict in one.result().items()}


def _check_test(source: Path | None) -> dict[str, Verdict]:
    found: dict[str, Verdict] = {}
    with KernelEndpoint(TEST, source=source) as one:
        done = _rcdrv(one, "--json", "test", *TIMEOUT)
        try:
            cases = json.loads(done.stdout)["results"]
        except (ValueError, KeyError):
            cases = []
        for case in cases:
            found[f"test {case['name']}"] = (case["verdict"], case["reason"] or "")
        status, reason = _outcome(one, done)
        found["test, all cases"] = (status, reason if status == CRASH else "")
        doorbell = found.get(_DOORBELL, (PASS, ""))
        if status != CRASH:
            # A thousand rings of a doorbell that is broken are a thousand time-outs.
            broken = doorbell[0] == FAIL
            rung = doorbell if broken else _outcome(one, _rcdrv(one, *RING, *TIMEOUT))
            found[" ".join(RING)] = rung
    return found


def _check_fuzz(source: Path | None) -> dict[str, Verdict]:
    with KernelEndpoint(TEST, source=source) as one:
        return {" ".join(FUZZ): _outcome(one, _rcdrv(one, *FUZZ, *TIMEOUT))}


def _check_vntb(source: Path | None) -> dict[str, Verdict]:
    with KernelEndpoint(VNTB, source=source) as one:
        return {" ".join(PING): _outcome(one, _rcdrv(one, *PING, *TIMEOUT))}


def unpatched() -> dict[str, Verdict]:
    """Return the results of Debian's kernel, cached while rcdrv and the lab are unchanged."""
    modules = kernel_endpoint_modules()
    digest = hashlib.sha256(str(modules).encode())
    for top in ("rcdrv", "tools/lab"):
        for path in sorted((REPOSITORY / top).rglob("*")):
            if path.suffix in {".py", ".toml"}:
                digest.update(path.read_bytes())

    def build(folder: Path) -> None:
        for _ in range(2):  # as of a patch
            found = check(None)
            failed = [
                f"{name} ({reason})"
                for name in map(" ".join, (RING, FUZZ, PING))
                for verdict, reason in [found.get(name, (FAIL, "not reached"))]
                if verdict != PASS
            ]
            if not failed:
                break
        else:  # in the cache it would hide the same failure of every patch
            raise LabError(
                f"the unpatched kernel does not pass {failed[0]}: is this host too busy? Try again;"
                " nothing was cached"
            )
        (folder / "verdicts.json").write_text(json.dumps(found))

    recipe = ("../patch_check.py",)
    part = cache.part("unpatched-verdicts", recipe, build, content=digest.digest())
    loaded = json.loads((part / "verdicts.json").read_text())
    return {name: (verdict, reason) for name, (verdict, reason) in loaded.items()}


def is_worse(before: Verdict | None, after: Verdict | None) -> bool:
    """Return whether a check of the patched kernel ended worse, or in a different failure."""
    if after is None:
        return True
    if before is None:
        return after[0] in _RANK
    if before[0] in _RANK and after[0] in _RANK:
        return after != before and _RANK[after[0]] <= _RANK[before[0]]
    return after[0] != before[0] and after[0] != PASS and before[0] not in _RANK


def repeated(
    source: Path, before: dict[str, Verdict]
) -> tuple[dict[str, Verdict], dict[str, Verdict]]:
    """Check a patched tree, a second time if anything is worse; a crash needs no second time.

    :returns: the verdicts, where worse means both times, or a crash in either; and those that were
        worse once: a busy host, or a race in the patch
    """
    runs = [check(source)]
    worse = [
        name for name in {**before, **runs[0]} if is_worse(before.get(name), runs[0].get(name))
    ]
    if not worse or any(runs[0].get(name, (FAIL,))[0] == CRASH for name in worse):
        return runs[0], {}
    runs.append(check(source))
    found, once = {}, {}
    for name in {**before, **runs[0], **runs[1]}:
        verdicts = [run.get(name) for run in runs]
        bad = [verdict for verdict in verdicts if is_worse(before.get(name), verdict)]
        good = [verdict for verdict in verdicts if verdict not in bad]
        crashed = [verdict for verdict in bad if verdict and verdict[0] == CRASH]
        if bad and good and not crashed:
            once[name] = bad[0] or (FAIL, "not reached")
        if chosen := (crashed or good or bad)[0]:
            found[name] = chosen
    return found, once


def table(before: dict[str, Verdict], after: dict[str, Verdict]) -> str:
    """Return the verdicts side by side, with the reasons of differences."""
    names = list(dict.fromkeys((*before, *after)))
    width = max(map(len, names))
    lines = [f"{'':{width}}  {'unpatched':10}  patched"]
    for name in names:
        one, two = before.get(name), after.get(name)
        line = f"{name:{width}}  {one[0] if one else '-':10}  {two[0] if two else '-':10}"
        if is_worse(one, two):
            line += f"  WORSE: {two[1]}" if two else "  WORSE: not reached"
        elif one and two and one[0] != two[0]:
            line += "  better"
        lines.append(line.rstrip())
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status."""
    parser = argparse.ArgumentParser(prog="python3 -m tools.patch_check", description=__doc__)
    parser.add_argument("source", type=Path, metavar="DIR", help="a kernel tree; it is only read")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    try:
        kernel_endpoint_modules(options.source)  # first: most errors are found by the compiler
        before = unpatched()
        after, once = repeated(options.source, before)
    except LabError as error:
        print(f"patch_check: {error}", file=sys.stderr)
        return 125
    print(table(before, after))
    for name, (_, reason) in once.items():
        print(f"worse in one run of two: {name}: {reason}")
    worse = sum(is_worse(before.get(name), after.get(name)) for name in {**before, **after})
    print(f"{len(after)} checks, {worse} worse, {time.monotonic() - started:.0f} s")
    return 1 if worse else 0


def _rcdrv(one: KernelEndpoint, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rcdrv", "--device", f"vfio-user:{one.socket}", *arguments]
    try:
        return subprocess.run(
            command, env=environment(), capture_output=True, text=True, timeout=LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        said = f"did not end in {LIMIT:.0f} s"
        return subprocess.CompletedProcess(command, 1, "", said)


def _outcome(one: KernelEndpoint, done: subprocess.CompletedProcess[str]) -> Verdict:
    if crash := one.crash():
        return CRASH, crash.splitlines()[0].partition("] ")[2]
    if deaths := one.deaths():
        return CRASH, deaths[0].splitlines()[0]
    said = (done.stderr if done.returncode else "") or done.stdout
    comments = [line[2:] for line in said.splitlines() if line.startswith("# ")]
    reason = (comments or said.strip().splitlines() or [""])[0]
    return _STATUS.get(done.returncode, FAIL), reason if done.returncode else ""


if __name__ == "__main__":
    sys.exit(main())
