"""Replay saved layouts of the fuzzer through the kernel's VFIO in a guest.

Not every layout can be presented there: QEMU may refuse the function, and the firmware or the
guest's PCI core may have no address space for a BAR. The result names the cause.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tools.lab.child import Child
from tools.lab.endpoint import Endpoint
from tools.lab.errors import LabError
from tools.lab.guest import Guest
from tools.lab.machine import MACHINES, SLOTS, root_port
from tools.lab.toolbox import toolbox

_START = 15.0
"""Seconds for an endpoint to start, and for QEMU and the firmware to accept or refuse it."""
_NOT_READY = 3
"""Exit status of rcdrv if the host is not ready."""
_REPLAY = 180.0
"""Seconds for one layout in the emulated guest."""
_FIRMWARE_SAYS = {"PCI: out of ": "refused", "enter handle_19": "taken"}
"""Messages of SeaBIOS: it hangs without address space for a BAR, else it boots (INT 19h)."""


class Replayed(NamedTuple):
    """Result of one layout."""

    path: Path
    presented: bool
    reason: str
    """Why it could not be presented, and by what; empty if it could."""
    outcomes: dict[str, str]
    """Outcome by case, as in ``rcdrv fuzz replay --json``."""
    findings: list[str]


def refused(path: Path) -> str:
    """Return why QEMU's x86-64 machine or its firmware refuses a layout; empty if it does not."""
    folder = Path(tempfile.mkdtemp(prefix="rcdrv-lab-"))
    endpoint = Endpoint(str(path), 0, folder, log_accesses=False)
    qemu = None
    try:
        deadline = time.monotonic() + _START
        endpoint.wait_ready(deadline)
        port, _ = root_port(0)
        command = [
            *toolbox().qemu("x86_64"),
            *("-accel", "tcg", "-m", "256M", "-nodefaults", "-display", "none", "-no-reboot"),
            *("-object", "memory-backend-memfd,id=memory,size=256M,share=on"),
            *MACHINES["x86_64"].options,
            *("-debugcon", "stdio", "-global", "isa-debugcon.iobase=0x402", "-device", port),
            *("-device", json.dumps({**endpoint.qemu_device(), "bus": "rp0"})),
        ]
        qemu = Child("qemu", command, folder)
        while time.monotonic() < deadline:
            for line in qemu.out.text().splitlines():
                for begin, meaning in _FIRMWARE_SAYS.items():
                    if line.startswith(begin):
                        return "" if meaning == "taken" else f"the firmware: {line}"
            if qemu.died:
                return f"QEMU: {qemu.err.tail(1) or qemu.epitaph()}"
            time.sleep(0.05)
        return f"QEMU does not start with it within {_START:g} s"
    finally:
        if qemu is not None:
            qemu.stop()
        endpoint.child.stop()
        shutil.rmtree(folder)


def replay(paths: Sequence[Path]) -> Iterator[Replayed]:
    """Replay saved layouts; yield those that cannot be presented first."""
    taken = []
    for path in paths:
        reason = refused(path)
        if reason:
            yield Replayed(path, False, reason, {}, [])
        else:
            taken.append(path)
    for start in range(0, len(taken), SLOTS):
        batch = taken[start : start + SLOTS]
        with Guest(endpoints=specs(batch), files=files(batch)) as guest:
            for path in batch:
                yield replay_one(guest, path)


def specs(paths: Sequence[Path]) -> list[str]:
    """Return the endpoints that a guest needs for :func:`replay_one`."""
    return [str(path.resolve()) for path in paths]


def files(paths: Sequence[Path]) -> dict[str, Path]:
    """Return the files that a guest needs for :func:`replay_one`."""
    return {f"layouts/{path.name}": path for path in paths}


def replay_one(guest: Guest, path: Path, env: Mapping[str, str] | None = None) -> Replayed:
    """Replay a layout on its endpoint in the guest.

    :raises LabError: rcdrv reports an error
    """
    (endpoint,) = [one for one in guest.endpoints if one.spec == str(path.resolve())]
    address = endpoint.address
    command = ["rcdrv", "fuzz", "replay", f"/layouts/{path.name}", "--device", address, "--json"]
    result = guest.run(command, timeout=_REPLAY, env=env)
    try:
        document: dict[str, Any] = json.loads(result.stdout)
    except ValueError:
        raise LabError(f"{path}: {result.stderr.strip() or result.stdout}") from None
    if result.status == _NOT_READY:
        # The guest sees a different layout, or VFIO does not open the function.
        reason = document.get("message") or document["reason"]
        said = [reason, *_said_by_pci_core(guest, address)]
        return Replayed(path, False, "; ".join(said), {}, [])
    if "outcomes" not in document:
        raise LabError(f"{path}: {document['message']}")
    return Replayed(path, True, "", document["outcomes"], document["findings"])


def _said_by_pci_core(guest: Guest, address: str) -> list[str]:
    """Return messages of the guest's kernel about BARs without an address."""
    lines = guest.run(["dmesg"]).stdout.splitlines()
    found = [
        re.sub(r"^\[[^]]*\] *", "", line)
        for line in lines
        if address in line and ("can't assign" in line or "failed to assign" in line)
    ]
    return list(dict.fromkeys(found))
