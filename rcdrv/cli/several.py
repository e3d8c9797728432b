"""Run a command on several devices in parallel, a process each, with one exit status.

Separate processes, because an access to a lost function may raise SIGBUS, which ends only its own
process, and because threads of one interpreter would block each other. Functions of one IOMMU group
take turns: the kernel gives a group to one process (iommu_device_claim_dma_owner() in
drivers/iommu/iommu.c). Descriptors cannot take turns: every process here has a copy, which keeps
the function open, and its group with it.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import selectors
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import IO, Any, NoReturn

from rcdrv.address import descriptors_of, scheme_of
from rcdrv.cli import answer, complain, program, say_cleanup
from rcdrv.cli.common import print_json
from rcdrv.cli.guard import end_with, outcome
from rcdrv.cli.options import spell_document
from rcdrv.epf_test.outcome import rank
from rcdrv.errors import DeviceLost, HostError, RcdrvError, UsageError
from rcdrv.sysfs import Paths, canonical_address, group_of
from rcdrv.verdict import EXIT_STATUS, verdict_document
from rcdrv.wait import Cancel, Deadline

Body = Callable[[argparse.Namespace, Cancel], int]
Receive = Callable[[int, str], None]

_LOOK = 0.01
_LONGEST = 10.0
"""Seconds in which processes must end after the user has cut their clean-up short."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_VERDICTS = {status: verdict.value for verdict, status in EXIT_STATUS.items()} | {0: "pass"}


def labels(addresses: Sequence[str]) -> list[str]:
    """Return a unique name for each device.

    :raises UsageError: not an address, or the same device twice that cannot be opened twice
    """
    found: list[str] = []
    for address in addresses:
        scheme = scheme_of(address)
        label = canonical_address(address) if scheme.is_local else address
        if label in found and not scheme.is_started:
            raise UsageError(f"{label} is named twice: one program at a time can drive a function")
        number = sum(one.partition(" #")[0] == label for one in found)
        found.append(f"{label} #{number + 1}" if number else label)
    return found


def lanes(addresses: Sequence[str], paths: Paths, *, one_bus: bool = False) -> list[list[int]]:
    """Return lists of device numbers: lists may run in parallel, the devices of a list take turns.

    :param one_bus: functions of one bus also take turns, as a reset of the bus affects all of them
    :raises UsageError: a descriptor shares its group with another device
    """
    held: dict[str, str] = {}
    found: list[tuple[set[str], list[int]]] = []
    for number, address in enumerate(addresses):
        keys, lane = {f"#{number}"}, [number]
        bdf, by_descriptor = _function(address, paths)
        if bdf is not None:
            group = group_of(paths, bdf)
            for before in [one for one in held if held[one] == group]:
                if by_descriptor or before.startswith("fd:"):
                    raise UsageError(
                        f"{before} and {address} are of one IOMMU group ({group}), and a function"
                        " that came as a descriptor does not take turns",
                        hint="run one command after the other, each with its descriptor alone",
                    )
            if group is not None:
                held[address] = group
                keys |= {f"group {group}"}
            keys |= {bdf.rpartition(":")[0]} if one_bus else set()
        # A group may span buses, and a bus has many groups behind a port with ACS.
        for other in [one for one in found if one[0] & keys]:
            found.remove(other)
            keys, lane = keys | other[0], other[1] + lane
        found.append((keys, lane))
    return sorted(sorted(lane) for _, lane in found)


def _function(address: str, paths: Paths) -> tuple[str | None, bool]:
    """Return the function of this host that an address names, and whether by a descriptor."""
    scheme = scheme_of(address)
    if scheme.is_local:
        return canonical_address(address), False
    if not scheme.is_vfio:
        return None, False
    from rcdrv.vfio.descriptor import function_of

    try:
        return function_of(descriptors_of(address)[0], paths), True
    except UsageError:  # its process says so
        return None, True


def each(args: argparse.Namespace, cancel: Cancel, body: Body, *, mixed: bool = True) -> int:
    """Run a command's ``body`` for each of ``args.devices``; return the worst exit status.

    Each line is prefixed with its device's name; with ``--json`` there is one document for all.

    :param mixed: print lines at once; else all lines of a device at its end, without the prefix
    """
    names = labels(args.devices)
    width = max(map(len, names))
    kept: list[list[str]] = [[] for _ in names]

    def show(number: int, line: str) -> None:
        if args.json or not mixed:
            kept[number].append(line)
        else:
            print(f"{names[number]:{width}}  {line}".rstrip(), flush=True)

    def ended(number: int) -> None:
        if not args.json and not mixed:
            print(*kept[number], "", sep="\n", flush=True)

    statuses = side_by_side(args, cancel, body, show, ended)
    if args.json:
        found = [
            _document(name, "".join(lines), status)
            for name, lines, status in zip(names, kept, statuses, strict=True)
        ]
        print_json(together(found))
    else:
        if mixed:
            print()
        for name, status in zip(names, statuses, strict=True):
            print(f"{name:{width}}  {_VERDICTS.get(status, 'error')}")
    return worst_of(statuses, cancel)


_BY_RANK = ("pass", "unverified", "skip", "fail", "error", "lost")


def together(documents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the one document of several devices: ``devices``, and the worst ``verdict``."""
    verdicts = [one.get("verdict") for one in documents]
    return {
        "devices": list(documents),
        "verdict": max(
            (one if isinstance(one, str) and one in _BY_RANK else "error" for one in verdicts),
            key=_BY_RANK.index,
            default="error",
        ),
    }


def _document(name: str, text: str, status: int) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        found = json.loads(text)
        if isinstance(found, dict):
            return {**found, "device": name}
    error: RcdrvError = HostError(f"{name}: its process ended with status {status}")
    if status == DeviceLost.exit_status:
        error = DeviceLost(f"{name}: the device is gone")
    return {"device": name, **spell_document(verdict_document(error))}


def worst_of(statuses: Sequence[int], cancel: Cancel) -> int:
    """Return the exit status for all devices; a signal takes precedence."""
    if cancel.signal:
        return 128 + cancel.signal
    return max(statuses, key=rank)


def side_by_side(
    args: argparse.Namespace,
    cancel: Cancel,
    body: Body,
    receive: Receive,
    ended: Callable[[int], None] = lambda _number: None,
) -> list[int]:
    """Run ``body`` in a process for each of ``args.devices``; return the exit statuses.

    A signal is forwarded, and every process cleans up and ends by itself.

    :param receive: called with device number and line of output; diagnostics go to stderr, with
        the device's name
    :param ended: called with the device number when its process has ended
    """
    names = labels(args.devices)
    one_bus = bool(getattr(args, "destructive", False))
    queues = lanes(args.devices, Paths(), one_bus=one_bus)
    statuses = [HostError.exit_status] * len(names)
    running: dict[int, _Process] = {}
    with selectors.DefaultSelector() as selector:
        for stop in (cancel.fd, cancel.hurry_fd):
            selector.register(stop, selectors.EVENT_READ)

        def begin(queue: list[int]) -> None:
            if queue and not cancel.signal:
                process = _Process(args, queue.pop(0), names, body, receive, running.values())
                running[process.number] = process
                process.queue = queue
                for stream in process.streams:
                    read = partial(process.read, stream, selector)
                    selector.register(stream, selectors.EVENT_READ, read)

        end: Deadline | None = None
        try:
            for queue in queues:
                begin(queue)
            while running:
                if end is not None and end.expired:
                    for process in running.values():
                        process.leave()
                    running.clear()
                    break
                for key, _ in selector.select(None if end is None else end.remaining):
                    if key.data is not None:
                        key.data()
                        continue
                    selector.unregister(key.fd)  # it stays readable
                    if cancel.hurried and end is None:
                        end = Deadline(_LONGEST)
                    for process in running.values():
                        process.stop(signal.SIGINT if cancel.hurried else cancel.signal)
                for process in [one for one in running.values() if not one.streams]:
                    statuses[process.number] = process.end()
                    del running[process.number]
                    ended(process.number)
                    begin(process.queue)
        finally:
            for process in running.values():  # our output is closed
                process.abandon()
    return statuses


class _Process:
    """Process of one device, and its output."""

    def __init__(
        self,
        args: argparse.Namespace,
        number: int,
        names: Sequence[str],
        body: Body,
        receive: Receive,
        others: Any,
    ) -> None:
        self.number = number
        self.queue: list[int] = []
        self._address = args.devices[number]
        self._mark = f"{names[number]:{max(map(len, names))}}  "
        self._receive = receive
        self._rest: dict[int, bytes] = {}
        (out, child_out), (err, child_err) = os.pipe(), os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        # Until the child has installed its own handlers, it would call the parent's.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            self._pid = os.fork()
            if not self._pid:
                inherited = [stream.fileno() for one in others for stream in one.streams]
                for fd in (out, err, *inherited):
                    os.close(fd)
                mine = copy.copy(args)
                mine.device, mine.devices, mine.in_child = self._address, [self._address], True
                mine.number = number
                _run_child(mine, body, child_out, child_err, parent, mask)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(child_out)
        os.close(child_err)
        self._out = os.fdopen(out, "rb", buffering=0)
        self.streams: list[IO[bytes]] = [self._out, os.fdopen(err, "rb", buffering=0)]

    def read(self, stream: IO[bytes], selector: selectors.BaseSelector) -> None:
        """Deliver the received lines; remove a stream at its end from the selector."""
        data = stream.read(1 << 16)
        lines = (self._rest.pop(stream.fileno(), b"") + (data or b"")).split(b"\n")
        rest = lines.pop()
        if data:
            self._rest[stream.fileno()] = rest
        elif rest:
            lines.append(rest)
        for line in lines:
            text = line.decode("utf-8", "backslashreplace")
            if stream is self._out:
                self._receive(self.number, text)
            else:
                complain(f"{self._mark}{text}")
        if not data:
            self.streams.remove(stream)
            selector.unregister(stream)
            stream.close()

    def stop(self, signum: int) -> None:
        """Forward a signal. The process exists, perhaps as a zombie, until :meth:`end`."""
        os.kill(self._pid, signum)

    def leave(self) -> None:
        """Report that it does not end; it gets SIGTERM when this one ends (:func:`end_with`)."""
        complain(
            f"{self._mark}rcdrv: process {self._pid} does not end: it is stopped, or waits in the"
            " kernel; its doorbell may still be enabled"
        )
        for stream in self.streams:
            stream.close()

    def abandon(self) -> None:
        """Have it clean up and end, and wait for that. Its output is discarded."""
        for stream in self.streams:
            stream.close()
        self.stop(signal.SIGTERM)
        end = Deadline(_LONGEST)
        while not os.waitpid(self._pid, os.WNOHANG)[0] and not end.expired:
            time.sleep(_LOOK)  # a stopped process, or one blocked in the kernel, is left behind

    def end(self) -> int:
        status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        ended = outcome(self._address, status)
        if isinstance(ended, DeviceLost):
            complain(f"{self._mark}rcdrv: {ended.message}\nhint: {ended.hint}")
            return ended.exit_status
        if status < 0:
            complain(f"{self._mark}rcdrv: its process was ended by signal {-status}")
        assert isinstance(ended, SystemExit)
        return int(ended.code or 0)


def _run_child(
    args: argparse.Namespace,
    body: Body,
    out: int,
    err: int,
    parent: int,
    mask: set[signal.Signals | int],
) -> NoReturn:
    status = 70
    try:
        os.dup2(out, 1)
        os.dup2(err, 2)
        for fd in (out, err):
            os.close(fd)
        sys.stdout = open(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        cancel = Cancel()
        cancel.on_slow_cleanup = say_cleanup
        with cancel.on_signals(*_SIGNALS):
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            end_with(parent)
            status = program(lambda: answer(lambda: args, cancel, lambda: body(args, cancel)))
        sys.stdout.flush()
        sys.stderr.flush()
    except SystemExit as ended:
        status = int(ended.code or 0)
    except Exception:  # a bug, with RCDRV_TRACEBACK set
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)
