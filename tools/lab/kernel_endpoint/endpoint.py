"""The kernel's own endpoint: a guest, its controller on the host, and a socket."""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from rcdrv.sim.epf_vntb import VntbPeer
from rcdrv.sim.epf_vntb import settings as vntb_settings
from rcdrv.sim.layout import load_layout
from tools.lab.channel import Result
from tools.lab.child import Child, wait_listening
from tools.lab.debug_kernel import debug_kernel
from tools.lab.endpoint import Endpoint, environment
from tools.lab.errors import LabError
from tools.lab.guest import BOOT_TIMEOUT, Guest
from tools.lab.kernel_endpoint.build import kernel_endpoint_modules
from tools.lab.kernel_endpoint.setup import FOLDER, FUNCTIONS, START, STOP, script

_CRASH = re.compile(
    r"^.*(?:BUG: |Oops: |general protection fault|Kernel panic|kernel BUG at |UBSAN: |KASAN: "
    r"|ODEBUG: |list_(?:add|del) corruption|WARNING: possible |suspicious RCU usage"
    r"|inconsistent lock state|INFO: task .* blocked for more than)",
    re.M,
)
_QUIET, _LONGEST_REPORT = 0.3, 3.0
"""Seconds without output that end a crash report of the kernel, and the limit for all of it."""


class KernelEndpoint(Endpoint):
    """An endpoint, booted on entry and ended on exit. ``socket`` exists while it is started.

    :param spec: preset or TOML file, as for ``rcdrv sim``: describes the controller and the
        function's attributes in configfs
    :param socket: path of the root complex's socket; by default in a temporary folder
    :param function: ``pci_epf_test`` or ``pci_epf_vntb`` instead of the layout's
    :param settings: further attributes of the function in configfs, by name
    :param source: kernel tree from which to build the endpoint core and functions
    :param debug: boot a kernel with KASAN, UBSAN and lockdep
    :param access_log: file for the actions of the root complex and of the controller's driver
    """

    def __init__(
        self,
        spec: str,
        *,
        socket: Path | None = None,
        function: str = "",
        settings: Mapping[str, str] | None = None,
        source: Path | None = None,
        debug: bool = False,
        access_log: Path | None = None,
        logs: Path | None = None,
        boot_timeout: float = BOOT_TIMEOUT,
    ) -> None:
        names = {name: key for key, name in FUNCTIONS.items()}
        if function:
            if function not in names:
                raise LabError(f"no function {function!r}: there are {', '.join(names)}")
            spec += f",function={names[function]}"
        self.layout = load_layout(spec)
        peer = vntb_settings(self.layout).peer if self.layout.function == "epf_vntb" else None
        if debug and peer is VntbPeer.NETDEV:
            raise LabError("the debug kernel has no network for ntb_netdev: choose another peer")
        if peer is VntbPeer.TAP:
            raise LabError("vntb.peer=tap is the software endpoint's; here netdev is ntb_netdev")
        if vntb_settings(self.layout).peer_queues > 1:
            raise LabError("vntb.peer_queues is the software endpoint's; here it is ethtool -L's")
        self.spec = spec
        self.address = ""
        self.group = ""
        self._settings = dict(settings or {})
        self._source = source
        self._debug = debug
        self._logs = logs
        self._boot_timeout = boot_timeout
        self._folder = Path(tempfile.mkdtemp(prefix="rcdrv-lab-"))
        self._log_accesses = access_log is not None
        self.access_log = access_log.absolute() if access_log else self._folder / "access"
        self.socket = socket.absolute() if socket else self._folder / "ep.sock"
        self._bridge: Child | None = None
        self._guest: Guest | None = None
        self._mark = 0  # end of the part of the console that was examined

    def __enter__(self) -> KernelEndpoint:
        try:
            self.wait_ready(time.monotonic() + self._boot_timeout)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    @property
    def guest(self) -> Guest:
        """The endpoint's guest."""
        if self._guest is None:
            raise LabError("the endpoint has ended")
        return self._guest

    def shell(self, command: str, *, timeout: float = 60.0) -> Result:
        """Run a shell command in the endpoint."""
        return self.guest.run(["sh", "-c", command], timeout=timeout)

    def dmesg(self) -> str:
        """Return the log of the endpoint's kernel."""
        return self._must("dmesg")

    def usage(self) -> dict[str, int]:
        """Return used pages, vmalloc areas, and objects by slab cache, of the endpoint's kernel."""
        # The free pages that each processor keeps by itself ("count") are not in MemFree.
        lines = self._must(
            "sync; echo 3 >/proc/sys/vm/drop_caches;"
            "awk '/MemTotal/ {used += $2 / 4} /MemFree/ {used -= $2 / 4}"
            ' $1 == "count:" {used -= $2}'
            ' END {print "pages", used}\' /proc/meminfo /proc/zoneinfo;'
            "echo vmalloc $(wc -l </proc/vmallocinfo);"
            "tail -n +3 /proc/slabinfo"
        ).splitlines()
        return {line.split()[0]: int(float(line.split()[1])) for line in lines}

    def windows(self) -> tuple[int, int]:
        """Inbound and outbound windows of the controller in use."""
        script = "cd /sys/bus/pci/drivers/rcdrv-epc/*:*/ && cat inbound_windows outbound_windows"
        inbound, outbound = map(int, self._must(script).split())
        return inbound, outbound

    def start(self) -> None:
        """Start the endpoint after :meth:`stop`."""
        self._must(START)

    def stop(self) -> None:
        """Stop the endpoint: the socket disappears, and connected clients read all ones."""
        self._must(STOP)

    def crash(self) -> str:
        """Return the report of a crash of the endpoint's kernel since the last call, or nothing."""
        if self._guest is None:
            return ""
        text, end = self._guest.console_since(self._mark)
        deadline = time.monotonic() + _LONGEST_REPORT
        while (found := _CRASH.search(text)) and time.monotonic() < deadline:
            # Wait for the rest of the report, which must not count as another crash.
            time.sleep(_QUIET)
            before = end
            text, end = self._guest.console_since(self._mark)
            if end == before:
                break
        self._mark = end
        return "\n".join(text[found.start() :].splitlines()[:60]) if found else ""

    def deaths(self) -> list[str]:
        """Return a description of each process that ended unexpectedly."""
        ended = self._guest.deaths() if self._guest else []
        if self._bridge is not None and self._bridge.died:
            ended.append(self._bridge.epitaph())
        return ended

    def close(self) -> None:
        """End the guest and the controller, and remove their files."""
        if self._guest is not None:
            self._guest.close()
            self._guest = None
        if self._bridge is not None:
            self._bridge.stop()
            self._bridge = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def terminate(self) -> None:
        """Do nothing: :meth:`close` ends the guest before its controller."""

    def wait_ready(self, deadline: float) -> None:
        """Boot and start the endpoint."""
        modules = kernel_endpoint_modules(self._source, debug=self._debug)
        controller = self._folder / "controller.sock"
        command = [sys.executable, "-m", "tools.lab.kernel_endpoint.bridge"]
        command += [self.spec, str(controller), str(self.socket)]
        if self._log_accesses:
            command += ["--access-log", str(self.access_log)]
        self._bridge = Child("controller", command, self._folder, env=environment())
        if problem := wait_listening(self._bridge, controller, deadline):
            raise LabError(f"endpoint {self.spec}: {problem}")
        guest = Guest(
            devices=[json.dumps(_qemu_device(controller))],
            files={FOLDER.lstrip("/"): modules},
            append=["intel_iommu=off"],
            bind=False,
            rcdrv=False,
            kernel=debug_kernel() / "kernel" if self._debug else None,
            logs=self._logs,
            boot_timeout=max(1.0, deadline - time.monotonic()),
        )
        self._guest = guest.__enter__()
        self._must(script(self.layout, self._settings))
        if not self.socket.is_socket():
            raise LabError(
                f"the endpoint started, but {self.socket} is not there:\n{self._bridge.err.tail()}"
            )

    def _must(self, command: str) -> str:
        result = self.shell(command)
        if result.status:
            problem = result.stderr.strip() or f"status {result.status}"
            said = self._bridge.err.tail() if self._bridge else ""
            log = self.shell("dmesg | tail -n 15").stdout
            parts = (f"the endpoint refuses: {problem}", said, "the end of its log:", log)
            raise LabError("\n".join(filter(None, parts)))
        return result.stdout


def _qemu_device(path: Path) -> dict[str, object]:
    return {"driver": "vfio-user-pci", "socket": {"type": "unix", "path": str(path)}}
