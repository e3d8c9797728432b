"""``--reconnect``: continue with a lost endpoint as soon as it is back.

This does not change the host: the function returns by its port's hot-plug with the udev rule, or by
`rcdrv rescan` in another terminal.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from rcdrv.address import default_address
from rcdrv.address import open_function as open_address
from rcdrv.cli import print_error
from rcdrv.cli.common import open_function
from rcdrv.errors import DeviceLost, HostError, RcdrvError
from rcdrv.function import Function
from rcdrv.wait import Cancel, Deadline

WITHIN = 600.0
"""Seconds; an endpoint that takes longer to boot has a problem."""
_LOOK_AGAIN = 0.5


def add_reconnect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--reconnect",
        action="store_true",
        help="if the endpoint is lost, wait until it is back and continue"
        f" (at most {WITHIN / 60:g} minutes)",
    )


def persist(args: argparse.Namespace, cancel: Cancel, use: Callable[[Function], None]) -> None:
    """Open the endpoint and use it; with ``--reconnect``, again after each loss.

    :raises DeviceLost: lost, without ``--reconnect``
    :raises HostError: it did not come back
    """
    if args.reconnect:
        args.device = args.device or default_address()  # a lost one could not be found later
    while True:
        try:
            with open_function(args, cancel) as function:
                try:
                    return use(function)
                except DeviceLost:
                    _announce_release(function)
                    raise
        except DeviceLost as lost:
            if not args.reconnect:
                raise
            wait_until_back(args.device, cancel, lost, vf_token=args.vf_token)


def _announce_release(function: Function) -> None:
    """Announce the wait: the kernel tries every reset on a function that is closed, and waits up to
    a minute for each while the link is up (pci_dev_wait() in drivers/pci/pci.c).
    """
    if function.device.backend not in ("vfio-user", "replay"):
        print(f"rcdrv: lost {function.address}; closing it", file=sys.stderr, flush=True)


def wait_until_back(
    address: str,
    cancel: Cancel,
    lost: DeviceLost,
    *,
    within: float = WITHIN,
    vf_token: str | None = None,
) -> None:
    """Wait until a function can be opened again, and say so.

    :raises HostError: the time is up; has the reason of the last attempt
    """
    print_error(lost)
    print(f"rcdrv: waiting for {address}", file=sys.stderr, flush=True)
    deadline = Deadline(within)
    while True:
        try:
            with open_address(address, cancel=cancel, vf_token=vf_token) as function:
                _check_addresses(function)
            print(f"rcdrv: {address} is back", file=sys.stderr, flush=True)
            return
        except (HostError, DeviceLost) as error:
            last: RcdrvError = error
        if deadline.expired:
            raise HostError(
                f"waited {within:g} s for {address}: {last.message}", hint=last.hint
            ) from lost
        cancel.sleep(_LOOK_AGAIN)


def _check_addresses(function: Function) -> None:
    """Check the BARs' addresses, which a rebooted endpoint gets some time after it answers."""
    if function.device.backend != "vfio-user" and any(
        bar is not None and not bar.address for bar in function.bars
    ):
        raise HostError(
            f"{function.address}: its BARs have lost their addresses",
            hint=f"rcdrv rescan {function.address}",
        )
