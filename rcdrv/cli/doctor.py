"""Find what prevents rcdrv from driving the endpoint, and name the fix.

Every row is OK, not OK (with the fix), or not applicable (--). The last row opens the function if
possible, as every other command does, upon which VFIO resets it. The exit status is 3 if a row is
not OK.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict

from rcdrv.cli.common import drive, open_function, print_json
from rcdrv.cli.host import add_address, named_address
from rcdrv.epf_test.registers import Reg, decode
from rcdrv.errors import HostError
from rcdrv.host.doctor import examine
from rcdrv.host.function import HostFunction, candidates
from rcdrv.host.subject import Diagnosis, State, Subject, User
from rcdrv.pci import CLASS_MEMORY_RAM
from rcdrv.sysfs import Paths, lockable_memory
from rcdrv.wait import Cancel

_SHOWN = {State.OK: "OK", State.NOT_OK: "not OK", State.NOT_APPLICABLE: "--"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_address(parser)


def run(args: argparse.Namespace, cancel: Cancel) -> int:
    paths = Paths()
    named = args.address or args.device or os.environ.get("RCDRV_DEVICE")
    function = None
    if named or candidates(paths):
        function = HostFunction(named_address(args), paths)

    def read_caps(address: str) -> str:
        args.device = address
        with open_function(args, cancel) as opened:
            if opened.config.class_code >> 8 == CLASS_MEMORY_RAM:
                return "a pci-epf-vntb has none; rcdrv ntb info shows what it has"
            driver = drive(args, opened)
            return decode(Reg.CAPS, int(driver.caps)) or "none announced"

    user = User(
        os.environ.get("USER") or str(os.getuid()),
        lambda node: os.access(node, os.R_OK | os.W_OK),
        lockable_memory(),
    )
    rows = []
    bad = False
    for name, found in examine(Subject(paths, os.uname().machine, user, function, read_caps)):
        rows.append({"name": name, **asdict(found), "state": found.state.value})
        bad = bad or found.state is State.NOT_OK
        if not args.json:
            _show(name, found)
    if args.json:
        print_json({"device": function.address if function else None, "rows": rows})
    return HostError.exit_status if bad else 0


def _show(name: str, found: Diagnosis) -> None:
    print(f"{_SHOWN[found.state]:6}  {name:20} {found.detail}", flush=True)
    if found.cure:
        print(f"{'':29}cure: {found.cure}", flush=True)
