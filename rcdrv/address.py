"""From what a user calls a device to an open :class:`~rcdrv.function.Function`.

* ``0000:01:00.0`` or ``01:00.0``: a PCI function of this host, through kernel VFIO;
* ``vfio-user:/path/to.sock``: one that is served over vfio-user;
* ``sim:PRESET`` or ``sim:FILE.toml``: a software endpoint, started for this use and ended with it.
"""

from __future__ import annotations

import os
import sys

from rcdrv import pci
from rcdrv.device import Device
from rcdrv.errors import HostError, RcdrvError, UsageError
from rcdrv.function import Function
from rcdrv.wait import Cancel

TYPE_CHECKING = False  # without importing typing: see rcdrv.record
if TYPE_CHECKING:
    import subprocess

# Starting a software endpoint starts a Python interpreter, which a busy host may take long for.
_SIM_START = 20.0
_SIM_REPLY = 5.0
_SIM_END = 5.0


def open_function(address: str | None = None, *, cancel: Cancel | None = None) -> Function:
    """Open a function; the caller closes it, best with ``with``.

    :param address: see above; default ``$RCDRV_DEVICE``, else the only endpoint on this host
    :param cancel: ends every wait on the function
    :raises UsageError: this is not an address, or there is no such preset or file
    :raises HostError: the host is not ready; the hint says the cure
    :raises DeviceLost: the device does not answer
    """
    return Function(open_device(address or default_address()), cancel)


def open_device(address: str) -> Device:
    """The backend alone, for an address that is not None. See :func:`open_function`."""
    # The backends are imported where they are used: `ring` starts for one of them only.
    scheme, _, rest = address.partition(":")
    if scheme == "sim" and rest:
        return _spawn(rest)
    if scheme == "vfio-user" and rest:
        from rcdrv.vfio_user.client import Client

        return Client.connect(rest)
    if pci.is_address(address):
        from rcdrv.vfio import open_device as open_vfio

        return open_vfio(address, os.environ.get("RCDRV_BACKEND"))
    raise UsageError(
        f"{address!r} is not a device address",
        hint="a PCI address (0000:01:00.0), vfio-user:/path/to.sock, or sim:rk3588",
    )


def default_address() -> str:
    """``$RCDRV_DEVICE``, else the only function on this host that may be an endpoint.

    :raises HostError: there is none, or more than one; a software endpoint is never chosen
    """
    named = os.environ.get("RCDRV_DEVICE")
    if named:
        return named
    from rcdrv.host import find

    found = find.candidates()
    if len(found) == 1:
        return found[0].address
    listed = "".join(f"\n  {candidate}" for candidate in found)
    raise HostError(
        "no endpoint found on this host" if not found else f"more than one endpoint here:{listed}",
        hint="name one with --device ADDRESS; --device sim:rk3588 starts a software endpoint",
    )


_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120

# ``-m`` would look for modules in the working directory first, and Python 3.10 has no -P. So the
# child is isolated (-I) and without site (-S): it has the standard library, then the folder of the
# very rcdrv that starts it. Only tomli, which Python 3.10 needs, is found through site.
_SIM_MAIN = (
    "import sys; sys.path.append(sys.argv.pop(1)); import rcdrv\n"
    "if sys.version_info < (3, 11): import site; site.main()\n"
    "from rcdrv.sim.__main__ import main; sys.exit(main())"
)


def _sim_command() -> list[str]:
    """The start of the command that runs :mod:`rcdrv.sim.__main__` as a process of its own."""
    flags = ["-I", "-S", *(["-B"] if sys.dont_write_bytecode else [])]
    return [sys.executable, *flags, "-c", _SIM_MAIN, _ROOT]


def _spawn(spec: str) -> Device:
    """Start a software endpoint and connect to it over a socket that has no name."""
    import socket
    import subprocess

    from rcdrv.vfio_user.client import Client

    class Spawned(Client):
        """The client of an endpoint that ends with it."""

        def close(self) -> None:
            super().close()
            _end(process)

    ours, theirs = socket.socketpair()
    # What it prints goes to memory: a pipe that nobody empties could stop it.
    printed = os.memfd_create("rcdrv-sim-stderr", os.MFD_CLOEXEC)
    with theirs, os.fdopen(printed, "r+", errors="replace") as output:
        process = subprocess.Popen(
            [*_sim_command(), spec, "--fd", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # Ctrl-C at a terminal is for us; it ends when our socket does
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=output,
        )
        theirs.close()  # the child's end: when it dies, ours must see that
        try:
            client = Spawned(ours, f"sim:{spec}", timeout=_SIM_START)
        except BaseException as error:
            ours.close()
            _end(process)
            if not isinstance(error, RcdrvError):
                raise
            output.seek(0)
            raise _start_failure(spec, process.returncode, output.read().strip(), error) from None
    client.timeout = _SIM_REPLY
    return client


def _start_failure(spec: str, status: int, said: str, error: RcdrvError) -> RcdrvError:
    """Why a software endpoint did not start: what it printed knows better than we do."""
    if status == UsageError.exit_status:
        message, _, hint = said.removeprefix("rcdrv: ").partition("\nhint: ")
        return UsageError(message, hint=hint)
    if not said:
        return error
    return HostError(
        f"the software endpoint did not start: {said.splitlines()[-1]}",
        hint=f"by hand: rcdrv sim {spec} --socket /tmp/endpoint.sock",
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Its socket is closed, so it ends by itself; nothing may be left behind if it does not."""
    from subprocess import TimeoutExpired

    try:
        process.wait(_SIM_END)
    except TimeoutExpired:
        process.kill()
        process.wait()
