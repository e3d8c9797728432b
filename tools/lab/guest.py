"""A guest: a booted stock kernel with the working tree's rcdrv and software endpoints."""

from __future__ import annotations

import json
import shutil
import socket
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.lab.channel import Channel, Process, Result, Sink
from tools.lab.child import Child
from tools.lab.cpio import Writer
from tools.lab.endpoint import REPOSITORY, Endpoint
from tools.lab.errors import LabError
from tools.lab.image import image
from tools.lab.inside.wire import PORT
from tools.lab.iommufd import MODULES, iommufd
from tools.lab.iommufd_kernel import iommufd_kernel
from tools.lab.machine import LINKS_UP, MACHINES, SLOTS, root_port
from tools.lab.slim import slim
from tools.lab.toolbox import toolbox

BOOT_TIMEOUT = 300.0
KERNEL_PREFIX = "kernel:"
TREE = "opt/rcdrv"  # the working tree in the guest
# The last two save a second per boot, without effect on VFIO.
KERNEL = ("loglevel=7", "panic=-1", "cryptomgr.notests", "rcupdate.rcu_expedited=1")


@dataclass(frozen=True)
class Device:
    """A device emulated by QEMU, as the guest sees it."""

    spec: str
    address: str
    group: str


def _places(specs: Sequence[str]) -> list[tuple[int, int]]:
    """Return (root port, function number) of each function."""
    places: list[tuple[int, int]] = []
    for spec in specs:
        slot, function = places[-1] if places else (-1, 0)
        joins = spec.startswith("+") and bool(places)
        places.append((slot, function + 1) if joins else (slot + 1, 0))
    return places


def json_device(spec: str) -> dict[str, object]:
    """Parse a device in QEMU's JSON syntax."""
    try:
        device = json.loads(spec)
    except ValueError as error:
        raise LabError(f"device {spec}: not JSON: {error}") from None
    if not isinstance(device, dict) or not isinstance(device.get("driver"), str):
        raise LabError(f'device {spec}: no "driver"')
    return device


class Guest:
    """A guest, booted on entry and ended on exit, with all that it started.

    Each endpoint and device is behind its own root port, in the order of the arguments. With the
    prefix ``+`` it is a further function of the device before it, and shares its IOMMU group.

    :param endpoints: presets or TOML files as for ``rcdrv sim``; with the prefix ``kernel:`` a
        KernelEndpoint
    :param devices: devices of QEMU, such as ``edu``, or in QEMU's JSON syntax
    :param append: further arguments for the kernel
    :param files: paths in the guest, with the host's file or folder for each
    :param bind: bind the functions to vfio-pci
    :param iommufd: let VFIO offer iommufd, on x86-64 also the no-IOMMU mode, with different modules
        or a different kernel
    :param links_up: keep the links of root ports up at all times, so that their buses can be reset
    :param kernel: kernel to boot instead of the stock one
    :param kernel_source: kernel tree from which to build the functions of KernelEndpoints
    :param log_accesses: let each endpoint write an ``access_log``; its BARs cannot be mapped then,
        unless its spec permits it
    :param rcdrv: have rcdrv and its needs in the guest; without, it boots sooner
    :param logs: folder in which to keep all logs
    """

    def __init__(
        self,
        arch: str = "x86_64",
        *,
        endpoints: Sequence[str] = (),
        devices: Sequence[str] = (),
        append: Sequence[str] = (),
        files: Mapping[str, Path] | None = None,
        bind: bool = True,
        iommufd: bool = False,
        links_up: bool = False,
        kernel: Path | None = None,
        kernel_source: Path | None = None,
        log_accesses: bool = False,
        rcdrv: bool = True,
        logs: Path | None = None,
        boot_timeout: float = BOOT_TIMEOUT,
    ) -> None:
        if arch not in MACHINES:
            raise LabError(f"no machine {arch!r}: there are {', '.join(MACHINES)}")
        self._places = _places((*endpoints, *devices))
        if self._places and self._places[-1][0] >= SLOTS:
            raise LabError(f"at most {SLOTS} endpoints and devices fit")
        self.arch = arch
        self.endpoints: list[Endpoint] = []
        self.devices: list[Device] = []
        self._endpoint_specs = tuple(spec.removeprefix("+") for spec in endpoints)
        self._device_specs = tuple(spec.removeprefix("+") for spec in devices)
        self._append = tuple(append)
        self._files = dict(files or {})
        self._bind = bind
        self._iommufd = iommufd
        self._links_up = links_up
        self._kernel = kernel
        self._kernel_source = kernel_source
        self._log_accesses = log_accesses
        self._rcdrv = rcdrv
        self._logs = logs
        self._boot_timeout = boot_timeout
        self._folder: Path | None = None
        self._qemu: Child | None = None
        self._channel: Channel | None = None

    def __enter__(self) -> Guest:
        try:
            self._boot()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float = 120.0,
        user: str = "root",
        cwd: str = "/",
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
    ) -> Result:
        """Run a command to its end.

        :param user: ``root`` or ``user``
        :raises CommandTimeout: it exceeded ``timeout`` and was killed
        :raises LabError: the guest hangs, and was ended
        """
        process = self.start(argv, timeout=timeout, user=user, cwd=cwd, env=env)
        process.write(stdin)
        process.close_stdin()
        return self.wait(process)

    def start(
        self,
        argv: Sequence[str],
        *,
        timeout: float = 120.0,
        user: str = "root",
        cwd: str = "/",
        env: Mapping[str, str] | None = None,
        terminal: tuple[int, int] | None = None,
        sinks: tuple[Sink, Sink] | None = None,
    ) -> Process:
        """Start a command; see :meth:`Channel.start`."""
        return self._agent().start(
            argv, timeout=timeout, user=user, cwd=cwd, env=env, terminal=terminal, sinks=sinks
        )

    def wait(self, process: Process) -> Result:
        """Wait for a command. A hanging guest is ended, so that no later call waits for it."""
        try:
            return process.wait()
        except LabError as error:
            if process.poll() is None:
                problem = self._report(str(error))
                self.close()
                raise LabError(problem) from error
            raise

    def put(self, path: str, data: bytes) -> None:
        """Write a file in the guest; create its folder."""
        script = 'mkdir -p "$(dirname "$1")" && cat >"$1"'
        self._must(self.run(["sh", "-c", script, "put", path], stdin=data), f"write {path}")

    def get(self, path: str) -> bytes:
        """Read a file in the guest."""
        process = self.start(["cat", path])
        self._must(self.wait(process), f"read {path}")
        return bytes(process.stdout)

    @property
    def console(self) -> str:
        """Output of the kernel's console, the last 64 KiB or more."""
        return self._qemu.out.text() if self._qemu else ""

    def console_since(self, mark: int) -> tuple[str, int]:
        """Return complete lines of the console from byte ``mark`` on, and the next mark."""
        return self._qemu.out.since(mark) if self._qemu else ("", mark)

    def deaths(self) -> list[str]:
        """Return a description of each process that ended unexpectedly, QEMU or endpoints."""
        ended = [death for endpoint in self.endpoints for death in endpoint.deaths()]
        if self._qemu and self._qemu.died:
            ended.append(self._qemu.epitaph())
        return ended

    @property
    def powered_off(self) -> bool:
        """Whether the guest has powered itself off."""
        return self._qemu is not None and self._qemu.status == 0

    def close(self) -> None:
        """End the guest and its endpoints, and remove their files."""
        if self._qemu:
            self._qemu.stop()
        if self._channel:
            self._channel.close()
            self._channel = None
        for endpoint in self.endpoints:
            endpoint.terminate()  # all, before waiting for each
        for endpoint in self.endpoints:
            endpoint.close()
        if self._folder:
            self._keep_logs(self._folder)
            shutil.rmtree(self._folder)
            self._folder = None

    def _boot(self) -> None:
        parts = image(self.arch)
        tools = toolbox()
        kernel, modules = parts.kernel, None
        if self._iommufd and self.arch == "aarch64":
            kernel = iommufd_kernel()
        elif self._iommufd:
            modules = iommufd(self.arch)
        kernel = self._kernel or kernel
        deadline = time.monotonic() + self._boot_timeout
        folder = self._folder = Path(tempfile.mkdtemp(prefix="rcdrv-lab-"))
        for number, spec in enumerate(self._endpoint_specs):
            self.endpoints.append(self._endpoint(spec, number, folder))
        initramfs = folder / "initramfs"
        base = parts.initramfs if self._rcdrv else slim(parts)
        self._write_initramfs(initramfs, base, modules)
        for endpoint in self.endpoints:
            endpoint.wait_ready(deadline)

        ours, qemus = socket.socketpair()
        with qemus:
            command = [
                *tools.qemu(self.arch),
                *self._machine_options(qemus.fileno()),
                *("-kernel", str(kernel), "-initrd", str(initramfs)),
            ]
            for number, (slot, function) in enumerate(self._places):
                if not function:
                    command += ["-device", root_port(slot)[0]]
                command += ["-device", self._qemu_device(number)]
            self._qemu = Child("qemu", command, folder, pass_fds=[qemus.fileno()])
        self._channel = Channel(ours, self._why_gone)
        try:
            self._channel.wait_until(self._is_ready, deadline, "the guest did not boot in time")
        except LabError as error:
            raise LabError(self._report(str(error))) from error
        initramfs.unlink()  # QEMU has read it
        self._note_functions()

    def _endpoint(self, spec: str, number: int, folder: Path) -> Endpoint:
        if not spec.startswith(KERNEL_PREFIX):
            return Endpoint(spec, number, folder, log_accesses=self._log_accesses)
        from tools.lab.kernel_endpoint.endpoint import KernelEndpoint  # imports this module

        log = folder / f"ep{number}.access" if self._log_accesses else None
        return KernelEndpoint(
            spec.removeprefix(KERNEL_PREFIX), source=self._kernel_source, access_log=log
        )

    def _machine_options(self, agent: int) -> list[str]:
        machine = MACHINES[self.arch]
        return [
            *("-accel", "tcg", "-m", "1G", "-nodefaults", "-no-reboot", "-display", "none"),
            # Shared, so that endpoints can map the guest's memory.
            *("-object", "memory-backend-memfd,id=memory,size=1G,share=on"),
            *machine.options,
            *(LINKS_UP if self._links_up and self.arch == "x86_64" else ()),
            *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
            *("-device", "virtio-serial-pci", "-chardev", f"socket,id=agent,fd={agent}"),
            *("-device", f"virtserialport,chardev=agent,name={PORT}"),
            *("-append", " ".join((*machine.kernel, *KERNEL, *self._append))),
        ]

    def _write_initramfs(self, path: Path, base: Path, modules: Path | None) -> None:
        """Write the cached initramfs, followed by the working tree and the agent."""
        shutil.copyfile(base, path)
        with path.open("ab") as stream:
            writer = Writer(stream)
            inside = Path(__file__).parent / "inside"
            writer.file("init", (inside / "init").read_bytes(), 0o755)
            for source in inside.glob("*.py"):
                writer.file(f"lab/tools/lab/inside/{source.name}", source.read_bytes())
            places = [(root_port(slot)[1], function) for slot, function in self._places]
            settings = {"functions": places, "bind": self._bind}
            writer.file("lab/settings.json", json.dumps(settings).encode())
            if self._rcdrv:
                for source in (REPOSITORY / "rcdrv").rglob("*"):
                    if source.is_file() and "__pycache__" not in source.parts:
                        inner = source.relative_to(REPOSITORY)
                        writer.file(f"{TREE}/{inner}", source.read_bytes())
                script = b'#!/bin/sh\nexec python3 -m rcdrv "$@"\n'
                writer.file("usr/bin/rcdrv", script, 0o755)
            if modules is not None:
                for number, name in enumerate(MODULES):
                    writer.file(f"lab/modules/{number}-{name}", (modules / name).read_bytes())
            for name, source in self._files.items():
                if source.is_dir():
                    writer.tree(source, name)
                else:
                    writer.file(name, source.read_bytes(), source.stat().st_mode & 0o755)
            writer.close()

    def _qemu_device(self, number: int) -> str:
        slot, function = self._places[number]
        many = (slot, 1) in self._places
        if number >= len(self.endpoints):
            spec = self._device_specs[number - len(self.endpoints)]
            if not spec.startswith("{"):
                switch = "on" if many else "off"
                return f"{spec},bus=rp{slot},addr=0.{function},multifunction={switch}"
            options = {**json_device(spec), "bus": f"rp{slot}"}
        else:
            options = {**self.endpoints[number].qemu_device(), "bus": f"rp{slot}"}
        if many:
            options.update(addr=f"0.{function}", multifunction=True)
        return json.dumps(options)

    def _is_ready(self) -> bool:
        return self._channel is not None and self._channel.ready is not None

    def _note_functions(self) -> None:
        ready = self._agent().ready
        assert ready is not None
        if ready["error"]:
            raise LabError(self._report(ready["error"]))
        functions = ready["functions"]
        for endpoint, function in zip(self.endpoints, functions, strict=False):
            endpoint.address, endpoint.group = function["address"], function["group"]
        for spec, function in zip(
            self._device_specs, functions[len(self.endpoints) :], strict=True
        ):
            self.devices.append(Device(spec, function["address"], function["group"]))
        for function in functions:
            if self._bind and function["driver"] != "vfio-pci":
                raise LabError(self._report(f"vfio-pci did not take {function['address']}"))

    def _agent(self) -> Channel:
        if self._channel is None:
            raise LabError("the guest has ended")
        return self._channel

    def _why_gone(self) -> str:
        if self._qemu:
            self._qemu.wait_end(1.0)  # QEMU closes the connection shortly before it ends
        return "\n".join(self.deaths())

    def _must(self, result: Result, purpose: str) -> None:
        if result.status:
            raise LabError(f"cannot {purpose} in the guest: {result.stderr.strip()}")

    def _report(self, problem: str) -> str:
        """Return a problem with everything that may explain it."""
        parts = [problem, *(death for death in self.deaths() if death not in problem)]
        if self._qemu:
            parts.append(f"the end of the guest's console:\n{self._qemu.out.tail(60)}")
        return "\n".join(parts)

    def _keep_logs(self, folder: Path) -> None:
        if self._logs:
            self._logs.mkdir(parents=True, exist_ok=True)
            for pattern in ("*.log", "*.err", "*.access"):
                for path in folder.glob(pattern):
                    shutil.copy(path, self._logs)
