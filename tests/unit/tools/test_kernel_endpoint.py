"""What the kernel's endpoint needs of the host, without a guest."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from rcdrv.sim.access_log import AccessLog
from tools.lab.kernel_endpoint import function as function_module
from tools.lab.kernel_endpoint.endpoint import KernelEndpoint
from tools.lab.kernel_endpoint.function import Function

BUG = "[    1.500000] BUG: kernel NULL pointer dereference\n[    1.500001] Oops: 0000\n"


def test_a_crash_is_told_once_also_where_the_console_is_cut() -> None:
    endpoint = KernelEndpoint("rk3588")
    guest = SimpleNamespace(console="[    0.000000] Linux\n" + BUG)
    endpoint._guest = cast(Any, guest)
    assert endpoint.crash() == BUG.strip()
    assert endpoint.crash() == ""
    guest.console = guest.console[30:] + "[    2.000000] fine\n"
    assert endpoint.crash() == ""
    guest.console += "[    2.500000] UBSAN: shift-out-of-bounds\n"
    assert endpoint.crash().startswith("[    2.500000] UBSAN")


def test_what_a_client_was_too_slow_for_is_not_done_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory may be another transfer's by then; but a stop is a stop, whenever it is seen."""
    monkeypatch.setattr(function_module, "PATIENCE", 0.01)
    function = Function(cast(Any, None), AccessLog())
    function._peer = cast(Any, object())  # a client whose thread does not run
    done: list[str] = []
    function._call(lambda: done.append("write"), None)
    function._call(lambda: done.append("stop"), None, late=True)
    function.run()
    assert done == ["stop"]
