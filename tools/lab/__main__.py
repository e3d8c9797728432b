"""The command line: ``python3 -m tools.lab build|run|shell|endpoint|exec|replay``."""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import shutil
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from rcdrv.errors import UsageError
from rcdrv.fuzz.finding import saved_files
from tools.lab.channel import Process
from tools.lab.debug_kernel import debug_kernel
from tools.lab.errors import CommandTimeout, LabError
from tools.lab.guest import BOOT_TIMEOUT, Guest
from tools.lab.image import image
from tools.lab.iommufd import iommufd
from tools.lab.iommufd_kernel import iommufd_kernel
from tools.lab.kernel_driver import kernel_driver
from tools.lab.kernel_endpoint.build import kernel_endpoint_modules
from tools.lab.kernel_endpoint.endpoint import KernelEndpoint
from tools.lab.kernel_endpoint.setup import FUNCTIONS
from tools.lab.kernel_endpoint.shell import run_script, shell_server, shell_socket
from tools.lab.kernel_ntb import kernel_ntb
from tools.lab.machine import MACHINES
from tools.lab.replay import replay
from tools.lab.toolbox import toolbox

# As of timeout(1) and container runtimes, distinct from usual statuses of commands.
STATUS_TIMEOUT = 124
STATUS_LAB = 125
FOR_EVER = 30 * 86400.0  # for shells, which have no timeout


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the lab's commands and return the exit status."""
    options = _parser().parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    try:
        status: int = options.command(options)
    except CommandTimeout as error:
        print(f"lab: {str(error).splitlines()[0]}", file=sys.stderr)
        return STATUS_TIMEOUT
    except (LabError, UsageError) as error:
        print(f"lab: {error}", file=sys.stderr)
        return STATUS_LAB
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return status


def build(options: argparse.Namespace) -> int:
    """Build what the cache lacks."""
    toolbox(rebuild=options.rebuild)
    for arch in MACHINES if options.arch == "all" else (options.arch,):
        print(f"{arch}: Linux {image(arch, rebuild=options.rebuild).release}")
    if options.kernel_driver:
        print(f"the kernel's driver and test: {kernel_driver(rebuild=options.rebuild)}")
    if options.kernel_endpoint:
        print(
            f"the kernel's endpoint functions: {kernel_endpoint_modules(rebuild=options.rebuild)}"
        )
    if options.debug_kernel:
        print(f"a kernel that sees its faults: {debug_kernel(rebuild=options.rebuild)}")
    if options.iommufd:
        print(f"VFIO with iommufd and no-IOMMU mode: {iommufd(rebuild=options.rebuild)}")
        print(f"an arm64 kernel with iommufd: {iommufd_kernel(rebuild=options.rebuild)}")
    return 0


def run(options: argparse.Namespace) -> int:
    """Run one command in a fresh guest, and print its output as it arrives."""
    with _guest(options) as guest:
        process = guest.start(
            options.argv,
            timeout=options.timeout,
            user=options.user,
            sinks=(_sink(sys.stdout.buffer), _sink(sys.stderr.buffer)),
        )
        process.close_stdin()
        with _first_interrupt(process):
            result = guest.wait(process)
        return _shell_status(result.status)


@contextlib.contextmanager
def _first_interrupt(process: Process) -> Iterator[None]:
    """Forward the first Ctrl-C to the command; the second ends the lab.

    A thread forwards it: an exception could break the lock of an interrupted wait, and a signal
    handler must not wait for a lock.
    """
    before = signal.getsignal(signal.SIGINT)

    def hand_over() -> None:
        with contextlib.suppress(LabError):  # the wait reports that the guest is gone
            process.signal(signal.SIGINT)

    def interrupted(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        threading.Thread(target=hand_over, daemon=True).start()

    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def replay_saved(options: argparse.Namespace) -> int:
    """Replay the fuzzer's saved layouts; return 1 if one shows a finding."""
    found = False
    for one in replay(list(saved_files(options.where))):
        found = found or bool(one.findings)
        what = "; ".join(one.findings) or "nothing wrong"
        print(f"{one.path}: {what if one.presented else f'not presentable: {one.reason}'}")
    return 1 if found else 0


def shell(options: argparse.Namespace) -> int:
    """Run a command, by default a shell, on this terminal."""
    with _guest(options) as guest:
        return _shell_in(guest, options.argv, options.user, options.arch)


def endpoint(options: argparse.Namespace) -> int:
    """Run the kernel's own endpoint until Ctrl-C, or until a command in it ends."""
    crashed = False
    with (
        KernelEndpoint(
            options.spec,
            socket=options.socket,
            function=options.function,
            settings=dict(options.set),
            source=options.kernel_source,
            debug=options.debug_kernel,
            access_log=options.access_log,
            logs=options.logs,
            boot_timeout=options.boot_timeout,
        ) as one,
        shell_server(one.guest, shell_socket(one.socket)),
    ):
        print(f"{one.spec}: started, --device vfio-user:{one.socket}", flush=True)
        try:
            if options.shell or options.run:
                argv = ["sh", "-c", options.run] if options.run else []
                return _shell_in(one.guest, argv, "root", "endpoint")
            while not one.deaths():
                if crash := one.crash():
                    crashed = True
                    print(f"lab: the endpoint's kernel crashed:\n{crash}", file=sys.stderr)
                time.sleep(0.2)
        except KeyboardInterrupt:
            return 1 if crashed else 0
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            for problem in (one.crash(), *one.deaths()):
                if problem:
                    print(f"lab: the endpoint: {problem}", file=sys.stderr)
    return STATUS_LAB


def execute(options: argparse.Namespace) -> int:
    """Run a script in an endpoint that runs."""
    script = options.script.encode() if options.script is not None else sys.stdin.buffer.read()
    done = run_script(shell_socket(options.socket), script)
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    return _shell_status(done.status)


def _shell_in(guest: Guest, argv: Sequence[str], user: str, name: str) -> int:
    fd = sys.stdin.fileno()
    size = tuple(shutil.get_terminal_size()[::-1]) if os.isatty(fd) else None
    process = guest.start(
        argv or ["sh", "-l"],
        timeout=FOR_EVER,
        user=user,
        cwd="/root" if user == "root" else "/",
        env={"TERM": os.environ.get("TERM", "linux"), "PS1": f"{name}:\\w\\$ "},
        terminal=(size[0], size[1]) if size else None,
        sinks=(_sink(sys.stdout.buffer), _sink(sys.stderr.buffer)),
    )
    with _raw(fd, process) if size else contextlib.nullcontext():
        _forward(fd, process, lambda: bool(guest.deaths()))
    if process.poll() is None and guest.powered_off:
        return 0  # "poweroff" in the guest is as good as "exit"
    return _shell_status(guest.wait(process).status)


@contextlib.contextmanager
def _guest(options: argparse.Namespace) -> Iterator[Guest]:
    files = dict(options.file)
    if options.kernel_source and not any("kernel:" in spec for spec in options.endpoint):
        raise LabError("--kernel-source is for a kernel's endpoint: give --endpoint kernel:SPEC")
    if options.kernel_ntb:
        files["opt/ntb"] = kernel_ntb(options.arch)
    if options.kernel_driver:
        files["opt/kernel"] = kernel_driver(options.arch)
    guest = Guest(
        options.arch,
        endpoints=options.endpoint,
        devices=options.device,
        append=options.append,
        files=files,
        bind=options.bind,
        iommufd=options.iommufd,
        kernel_source=options.kernel_source,
        log_accesses=options.log_accesses,
        logs=options.logs,
        boot_timeout=options.boot_timeout,
    )
    with guest:
        try:
            yield guest
        finally:
            # The rest is quick, and another Ctrl-C would leave processes and files behind.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            for death in guest.deaths():
                if not guest.powered_off:
                    print(f"lab: {death}", file=sys.stderr)


def _forward(fd: int, process: Process, guest_died: Callable[[], bool]) -> None:
    """Copy standard input to the command, until either ends."""
    while process.poll() is None and not guest_died():
        if select.select([fd], [], [], 0.1)[0]:
            data = os.read(fd, 4096)
            if not data:
                process.close_stdin()
                return
            process.write(data)


@contextlib.contextmanager
def _raw(fd: int, process: Process) -> Iterator[None]:
    """Pass all keys and changes of the terminal's size to the guest's terminal."""

    def resized(_number: int, _frame: FrameType | None) -> None:
        columns, rows = shutil.get_terminal_size()
        process.resize(rows, columns)

    before = termios.tcgetattr(fd)
    handler = signal.signal(signal.SIGWINCH, resized)
    try:
        tty.setraw(fd)
        yield
    finally:
        signal.signal(signal.SIGWINCH, handler)
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _sink(stream: BinaryIO) -> Callable[[bytes], None]:
    def write(data: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):
            stream.write(data)
            stream.flush()

    return write


def _shell_status(status: int) -> int:
    return 128 - status if status < 0 else status


def _leave(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _file(text: str) -> tuple[str, Path]:
    inside, separator, outside = text.partition("=")
    if not separator or not Path(outside).exists():
        raise argparse.ArgumentTypeError(f"{text!r} is not GUEST_PATH=EXISTING_HOST_PATH")
    return inside, Path(outside)


def _setting(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m tools.lab", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    one = commands.add_parser("build", help="build what the cache lacks (run and shell do it too)")
    one.add_argument("--arch", choices=[*MACHINES, "all"], default="all")
    x86 = "for the x86_64 guest, too"
    _switch(one, "--kernel-driver", f"build the kernel's own driver and test {x86}")
    vfio = "modules for the x86_64 guest, a kernel for aarch64"
    _switch(one, "--iommufd", f"build VFIO with iommufd, too: {vfio}")
    _switch(one, "--kernel-endpoint", f"build the kernel's own endpoint functions {x86}")
    _switch(one, "--debug-kernel", "build the kernel of 'endpoint --debug-kernel', too")
    _switch(one, "--rebuild", "build it even if it is there")
    one.set_defaults(command=build)

    booted = argparse.ArgumentParser(add_help=False)
    booted.add_argument(
        "--kernel-source",
        type=Path,
        metavar="DIR",
        help="build the kernel's endpoint core and functions from this kernel tree",
    )
    booted.add_argument("--logs", type=Path, metavar="FOLDER", help="keep the logs there")
    booted.add_argument("--boot-timeout", type=float, default=BOOT_TIMEOUT, metavar="SECONDS")

    guest = argparse.ArgumentParser(add_help=False, parents=[booted])
    guest.add_argument("--arch", choices=list(MACHINES), default="x86_64")
    _several(guest, "--endpoint", "SPEC", "a software endpoint, as for 'rcdrv sim'")
    _several(guest, "--device", "QEMU_DEVICE", "a device of QEMU, such as edu or igb")
    _several(guest, "--append", "KERNEL_ARGUMENT", "an argument for the guest's kernel")
    files = "a further file or folder for the guest"
    _several(guest, "--file", "GUEST_PATH=HOST_PATH", files, _file)
    where = "in the guest's /opt/"
    _switch(guest, "--kernel-driver", f"put the kernel's own driver and test {where}kernel")
    _switch(guest, "--iommufd", "offer iommufd, on x86_64 the no-IOMMU mode too")
    _switch(guest, "--kernel-ntb", f"put the kernel's own NTB modules {where}ntb")
    guest.add_argument(
        "--no-bind", dest="bind", action="store_false", help="leave the functions without a driver"
    )
    logged = "let the endpoints log each access, which keeps their BARs from being mapped"
    _switch(guest, "--log-accesses", logged)
    guest.add_argument("--user", choices=["root", "user"], default="root")

    one = commands.add_parser("run", parents=[guest], help="run a command in a fresh guest")
    one.add_argument("--timeout", type=float, default=300.0, metavar="SECONDS")
    one.add_argument("argv", nargs="+", metavar="CMD")
    one.set_defaults(command=run)

    one = commands.add_parser(
        "endpoint", parents=[booted], help="the kernel's own endpoint, in a guest"
    )
    one.add_argument("spec", metavar="SPEC", help="its controller, as for 'rcdrv sim'")
    one.add_argument("--socket", type=Path, required=True, metavar="PATH")
    one.add_argument("--function", choices=list(FUNCTIONS.values()), default="")
    attribute = "an attribute of the function in configfs"
    _several(one, "--set", "NAME=VALUE", attribute, _setting)
    _switch(one, "--debug-kernel", "use a kernel with KASAN, UBSAN and lockdep, which is slower")
    _switch(one, "--shell", "run a shell in the endpoint, which ends with it")
    one.add_argument("--access-log", type=Path, metavar="FILE")
    one.add_argument("--run", metavar="COMMAND", help="run this in it instead of a shell")
    one.set_defaults(command=endpoint)

    one = commands.add_parser("exec", help="run a shell script in an endpoint that runs")
    one.add_argument("socket", type=Path, metavar="PATH", help="the endpoint's --socket")
    one.add_argument("script", nargs="?", help="instead of the one on standard input")
    one.set_defaults(command=execute)

    one = commands.add_parser("replay", help="replay saved layouts of 'rcdrv fuzz' in a guest")
    one.add_argument("where", type=Path, metavar="FILE|DIR")
    one.set_defaults(command=replay_saved)

    one = commands.add_parser("shell", parents=[guest], help="a shell in a fresh guest")
    one.add_argument("argv", nargs="*", metavar="CMD")
    one.set_defaults(command=shell)
    return parser


def _switch(parser: argparse.ArgumentParser, name: str, what: str) -> None:
    parser.add_argument(name, action="store_true", help=what)


def _several(
    parser: argparse.ArgumentParser,
    name: str,
    metavar: str,
    what: str,
    parse: Callable[[str], object] = str,
) -> None:
    parser.add_argument(
        name,
        action="append",
        default=[],
        type=parse,
        metavar=metavar,
        help=f"{what}; may be repeated",
    )


if __name__ == "__main__":
    sys.exit(main())
