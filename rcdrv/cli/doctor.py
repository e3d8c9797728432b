"""Find what prevents rcdrv from driving the endpoint, and name the fix.

Every row is OK, not OK (with the fix), or not applicable (--). The last row opens the function if
possible, as every other command does, upon which VFIO resets it. The exit status is 3 if a row is
not OK.
"""

from __future__ import annotations

import argparse
import os
import resource
from pathlib import Path

from rcdrv.cli.common import drive, open_function, print_json
from rcdrv.cli.host import add_address, named_address
from rcdrv.epf_test.registers import Reg, decode
from rcdrv.errors import HostError
from rcdrv.host import find
from rcdrv.host.doctor import examine
from rcdrv.host.function import HostFunction
from rcdrv.host.modules import missing_modules
from rcdrv.host.subject import Row, State, Subject, User
from rcdrv.pci import CLASS_MEMORY_RAM
from rcdrv.sysfs import Paths
from rcdrv.wait import Cancel

_SHOWN = {State.OK: "OK", State.NOT_OK: "not OK", State.NOT_APPLICABLE: "--"}
_CAP_IPC_LOCK = 1 << 14  # as in the CapEff line of /proc/<pid>/status


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_address(parser)


def run(args: argparse.Namespace, cancel: Cancel) -> int:
    paths = Paths()
    named = args.address or args.device or os.environ.get("RCDRV_DEVICE")
    function = None
    if named or find.candidates(paths):
        function = HostFunction(named_address(args), paths)

    def read_caps(address: str) -> str:
        args.device = address
        with open_function(args, cancel) as opened:
            if opened.config.class_code >> 8 == CLASS_MEMORY_RAM:
                return "a pci-epf-vntb has none; rcdrv ntb info shows what it has"
            driver = drive(args, opened)
            return decode(Reg.CAPS, int(driver.caps)) or "none announced"

    subject = Subject(paths, os.uname().machine, _user(), function, read_caps, missing_modules())
    rows: list[Row] = []
    for row in examine(subject):
        rows.append(row)
        if not args.json:
            _show(row)
    bad = [row for row in rows if row.diagnosis.state is State.NOT_OK]
    if args.json:
        print_json(
            {
                "device": function.address if function else None,
                "rows": [
                    {
                        "name": row.name,
                        "state": row.diagnosis.state.value,
                        "detail": row.diagnosis.detail,
                        "cure": row.diagnosis.cure,
                    }
                    for row in rows
                ],
            }
        )
    return HostError.exit_status if bad else 0


def _show(row: Row) -> None:
    found = row.diagnosis
    print(f"{_SHOWN[found.state]:6}  {row.name:20} {found.detail}", flush=True)
    if found.cure:
        print(f"{'':29}cure: {found.cure}", flush=True)


def _user() -> User:
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    may_lock_all = limit == resource.RLIM_INFINITY or int(status["CapEff"], 16) & _CAP_IPC_LOCK
    return User(
        os.environ.get("USER") or str(os.getuid()),
        lambda node: os.access(node, os.R_OK | os.W_OK),
        None if may_lock_all else limit,
    )
