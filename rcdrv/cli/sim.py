"""Serve a software endpoint on a socket, for rcdrv (--device vfio-user:PATH) and for QEMU
(-device vfio-user-pci), until SIGTERM or Ctrl-C. --socket-path and --fd follow vfio-user's
conventions for backend programs.

SPEC is a preset or a TOML file, optionally with changes: rcar-s4,ep_iommu=true,fault=irq-lost.
"""

from __future__ import annotations

import argparse
import sys

from rcdrv.cli.common import HOST, file_name, number, show
from rcdrv.errors import UsageError
from rcdrv.sim.faults import FAULTS
from rcdrv.sim.layout import load_layout, preset_names
from rcdrv.sim.serve import serve
from rcdrv.wait import Cancel

COMMON_OPTIONS = HOST


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("spec", nargs="?", metavar="SPEC", help="preset or FILE.toml")
    parser.add_argument(
        "--socket", "--socket-path", type=file_name, metavar="PATH", help="where to listen"
    )
    parser.add_argument(
        "--fd",
        type=number,
        metavar="N",
        help="use an inherited socket instead: a listening one, or one connected to the only "
        "client",
    )
    parser.add_argument(
        "--access-log",
        type=file_name,
        metavar="FILE",
        help="write every access as a line of JSON; traps all BARs unless --set trap=sparse",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of SPEC"
    )
    parser.add_argument(
        "--fault", action="append", default=[], metavar="NAME[=ARGUMENT]", help="inject a fault"
    )
    parser.add_argument("--list", action="store_true", help="list the presets and the faults")


def run(args: argparse.Namespace, cancel: Cancel) -> int:
    if args.list:
        return _list(args)
    if args.socket is not None and args.fd is not None:
        raise UsageError("--socket and --fd are two places to serve at", hint="give one of them")
    if args.spec is None or (args.socket is None and args.fd is None):
        raise UsageError(
            "rcdrv sim needs a SPEC and --socket PATH (or --fd N)", hint="rcdrv sim --list"
        )
    spec = ",".join([args.spec, *args.set, *(f"fault={fault}" for fault in args.fault)])
    layout = load_layout(spec)

    def ready() -> None:
        # The server's signal handlers are installed by now.
        cancel.check()
        where = args.socket if args.fd is None else f"descriptor {args.fd}"
        print(f"serving {args.spec} on {where}", file=sys.stderr, flush=True)

    where = args.socket if args.fd is None else args.fd
    serve(layout, where, access_log=args.access_log, ready=ready)
    return 0


def _list(args: argparse.Namespace) -> int:
    presets = {name: load_layout(name).description for name in preset_names()}
    faults = {}
    for name, fault in FAULTS.items():
        argument = f" (={fault.argument})" if fault.argument else ""
        only = " (of pci-epf-vntb)" if fault.function == "epf_vntb" else ""
        faults[name] = f"{fault.summary}{argument}{only}"
    lists = {"presets": presets, "faults": faults}
    lines = []
    for title, entries in lists.items():
        width = max(map(len, entries))
        lines += [f"{title}:", *(f"  {name:{width}} {said}" for name, said in entries.items())]
    return show(args, lists, lines)
