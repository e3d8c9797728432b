"""Open a :class:`~rcdrv.function.Function` by its address, through one table of schemes.

To add a transport, write its :class:`~rcdrv.device.Device` and a row of :data:`SCHEMES`.
"""

from __future__ import annotations

import contextlib
import os
import sys

from rcdrv.device import Device
from rcdrv.errors import HostError, RcdrvError, UsageError, did_you_mean
from rcdrv.function import Function
from rcdrv.record import record
from rcdrv.wait import MONOTONIC, Cancel, Deadline, await_readable

TYPE_CHECKING = False  # without importing typing: see rcdrv.record
if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Mapping

# Starting a software endpoint starts a Python interpreter, which takes long on a busy host.
_SIM_START = 20.0
_SIM_REPLY = 5.0
_SIM_END = 5.0


@record
class Scheme:
    """A form of address, and how to open it."""

    name: str
    """Text before the colon; empty for PCI addresses."""
    forms: Mapping[str, str]
    """Form and meaning of an address, for manual and help."""
    open: Callable[..., Device]
    """Opens the device of an address; takes ``vf_token`` if :attr:`is_vfio`."""
    is_local: bool = False
    """Whether it is a PCI function of this host, which can be bound, rescanned and removed."""
    is_vfio: bool = False
    """Whether the kernel's VFIO opens it: it may take a VF token, and accesses may be SIGBUS."""
    is_started: bool = False
    """Whether each open starts a software endpoint, which seals its memory and is not a board."""


def open_function(
    address: str | None = None,
    *,
    cancel: Cancel | None = None,
    vf_token: str | None = None,
    record: str | os.PathLike[str] | None = None,
) -> Function:
    """Open a function; the caller closes it, best with ``with``.

    :param address: see :data:`SCHEMES`; default ``$RCDRV_DEVICE``, else the only endpoint here
    :param cancel: ends every wait on the function
    :param vf_token: see :func:`rcdrv.vfio.open_device`
    :param record: keep in this file what passes between driver and device, for ``replay:FILE``
    :raises UsageError: not an address, or no such preset or file
    :raises HostError: the host is not ready; the hint names the fix
    :raises DeviceLost: the device does not answer
    """
    address = address or default_address()
    if record is not None and scheme_of(address).open is _replay:
        raise UsageError(
            f"{address} is a recording already, and is not recorded", hint="leave `record` out"
        )
    device = open_device(address, vf_token=vf_token)
    if record is not None:
        from rcdrv.replay.recorder import record_device

        device = record_device(device, record)
    return Function(device, cancel, getattr(device, "clock", MONOTONIC))


def open_device(address: str, *, vf_token: str | None = None) -> Device:
    """Open the backend alone, for an address that is not None. See :func:`open_function`."""
    scheme = scheme_of(address)
    if vf_token is None:
        return scheme.open(address)
    if not scheme.is_vfio:
        raise UsageError(
            f"{address} takes no VF token: it is not opened through the kernel's VFIO",
            hint="leave `vf_token` out",
        )
    return scheme.open(address, vf_token=vf_token)


def scheme_of(address: str) -> Scheme:
    """Return the row of :data:`SCHEMES` for an address.

    :raises UsageError: it is not a device address
    """
    name, _, rest = address.partition(":")
    for scheme in SCHEMES:
        if name and scheme.name == name and rest:
            return scheme
    from rcdrv.sysfs import is_address

    if is_address(address):
        return PCI
    near = did_you_mean(f"{name}:", [one for one in prefixes() if one != f"{name}:"])
    raise UsageError(
        f"{address!r} is not a device address", hint=near or f"it is one of: {forms()}"
    )


def forms() -> str:
    """Return what an address looks like, for help and hints."""
    return ", ".join(form for scheme in SCHEMES for form in scheme.forms)


def prefixes(*, started: bool | None = None) -> tuple[str, ...]:
    """Return ``NAME:`` of the schemes that start a software endpoint, of the others, or of all."""
    named = (scheme for scheme in SCHEMES if scheme.name)
    return tuple(f"{scheme.name}:" for scheme in named if started in (None, scheme.is_started))


def default_address() -> str:
    """Return ``$RCDRV_DEVICE``, else the only function on this host that may be an endpoint.

    :raises HostError: none, or more than one; a software endpoint is never chosen
    """
    named = os.environ.get("RCDRV_DEVICE")
    if named:
        return named
    from rcdrv.host.function import candidates

    found = candidates()
    if len(found) == 1:
        return found[0].address
    listed = "".join(f"\n  {candidate}" for candidate in found)
    raise HostError(
        "no endpoint found on this host" if not found else f"more than one endpoint here:{listed}",
        hint="name one: `address=ADDRESS`; `address=sim:rk3588` starts a software endpoint",
    )


# The backends are imported where they are used: `ring` starts for one of them only.


def _open_vfio(address: str, vf_token: str | None = None) -> Device:
    from rcdrv.vfio import open_device as open_vfio

    return open_vfio(address, os.environ.get("RCDRV_BACKEND"), vf_token=vf_token)


def _take_descriptor(address: str, vf_token: str | None = None) -> Device:
    from rcdrv.vfio import open_descriptor

    return open_descriptor(*descriptors_of(address), vf_token=vf_token)


def descriptors_of(address: str) -> tuple[int, int]:
    """Return the descriptors that ``fd:N`` or ``fd:N,M`` names; -1 for M that is not there.

    :raises UsageError: it names none
    """
    device, comma, iommufd = address.partition(":")[2].partition(",")
    numbers = [device, iommufd] if comma else [device]
    if not all(one.isdecimal() and len(one) < 10 for one in numbers):  # more is no C int
        raise UsageError(
            f"{address!r} names no descriptors", hint="fd:3, or fd:3,4 with one of /dev/iommu"
        )
    return int(device), int(iommufd) if comma else -1


def _connect(address: str) -> Device:
    from rcdrv.vfio_user.client import Client

    return Client.connect(address.partition(":")[2])


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
    """Return the command, without arguments, that runs :mod:`rcdrv.sim.__main__` as a process."""
    flags = ["-I", "-S", *(["-B"] if sys.dont_write_bytecode else [])]
    return [sys.executable, *flags, "-c", _SIM_MAIN, _ROOT]


def _replay(address: str) -> Device:
    from rcdrv.replay.player import open_replay

    return open_replay(address)


def _spawn(address: str) -> Device:
    """Start a software endpoint and connect to it over a socket that has no name."""
    import socket
    import subprocess

    from rcdrv.vfio_user.client import Client

    spec = address.partition(":")[2]

    class Spawned(Client):
        """Client of an endpoint whose process ends with it."""

        def close(self) -> None:
            super().close()
            _end(process)

    ours, theirs = socket.socketpair()
    # Its output goes to memory: a full pipe could stop it.
    printed = os.memfd_create("rcdrv-sim-stderr", os.MFD_CLOEXEC)
    with theirs, os.fdopen(printed, "r+", errors="replace") as output:
        try:
            process = subprocess.Popen(
                [*_sim_command(), spec, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for us; it ends when our socket does
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=output,
            )
        except (PermissionError, FileNotFoundError) as error:
            ours.close()
            raise HostError(
                f"cannot start a software endpoint: {error.filename}: {error.strerror}",
                hint="may this user execute that Python, and enter its folders?",
            ) from None
        theirs.close()  # the child's end: when it dies, ours must see that
        try:
            client = Spawned(ours, address, timeout=_SIM_START)
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
    """Return why a software endpoint did not start, from its output."""
    for kind in (UsageError, HostError):
        if status == kind.exit_status:
            message, _, hint = said.removeprefix("rcdrv: ").partition("\nhint: ")
            return kind(message, hint=hint)
    if not said:
        return error
    return HostError(
        f"the software endpoint did not start: {said.splitlines()[-1]}",
        hint=f"by hand: rcdrv sim {spec} --socket /tmp/endpoint.sock",
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait for its end after the close of its socket, then kill it: nothing is left behind."""
    from subprocess import TimeoutExpired

    limit = Deadline(_SIM_END)
    # wait() with a limit sleeps up to 50 ms between two looks.
    with contextlib.suppress(OSError, AttributeError):  # before Linux 5.3
        ended = os.pidfd_open(process.pid)
        try:
            await_readable([ended], limit.remaining)
        finally:
            os.close(ended)
    try:
        process.wait(limit.remaining)
    except TimeoutExpired:
        process.kill()
        process.wait()


PCI = Scheme(
    "",
    {"0000:01:00.0": "a PCI function of this host, through kernel VFIO; 01:00.0 is the same"},
    _open_vfio,
    is_local=True,
    is_vfio=True,
)
SCHEMES = (
    PCI,
    Scheme(
        "fd",
        {
            "fd:N": "a PCI function of this host, by the descriptor N of its"
            " /dev/vfio/devices/vfio<n>, which another program has opened; fd:N,M with the"
            " descriptor M of /dev/iommu"
        },
        _take_descriptor,
        is_vfio=True,
    ),
    Scheme(
        "vfio-user",
        {"vfio-user:PATH": "an endpoint that is served over vfio-user on the UNIX socket PATH"},
        _connect,
    ),
    Scheme(
        "sim",
        {
            "sim:PRESET": "a software endpoint, started for this command and ended with it; with"
            " changes behind commas: sim:rk3588,hz=250,fault=irq-lost. rcdrv sim --list names"
            " presets and faults",
            "sim:FILE.toml": "the same from a layout of your own",
        },
        _spawn,
        is_started=True,
    ),
    Scheme(
        "replay",
        {"replay:FILE": "a recorded session, served again: the same driver finds the same"},
        _replay,
    ),
)
"""Every way to name a device. Help, manual and the commands' rules derive from it."""
