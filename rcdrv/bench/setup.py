"""Conditions of a measurement."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any

from rcdrv import __version__
from rcdrv.epf_test.driver import EpfTest
from rcdrv.sysfs import canonical_address, is_address, text_of

_SYS = Path("/sys")


def describe(driver: EpfTest, sys: Path = _SYS) -> dict[str, Any]:
    """Return the conditions that figures depend on, in plain JSON types; null if unknown.

    ``backend``, ``irq``, ``part``
        Backend, interrupt kind and part of the function.
    ``governor``
        CPU frequency governors in use, joined by commas.
    ``numa_node``, ``cpu_nodes``
        NUMA node of the function, and those of the CPUs that this process may use.
    ``cpu``, ``cpus``, ``load``
        Processor's name, number of CPUs that this process may use, and load of the last minute.
    ``clock_ns``
        Time that reading the clock adds to each duration: the shortest of many.
    ``python``, ``kernel``, ``machine``, ``rcdrv``
        Versions.
    """
    function = driver.function
    cpus = sorted(os.sched_getaffinity(0))
    return {
        "backend": function.device.backend,
        "irq": driver.irq_name,
        "part": driver.part.name,
        "governor": governor(cpus, sys),
        "numa_node": function_node(function.address, sys),
        "cpu_nodes": cpu_nodes(cpus, sys),
        "cpu": processor(),
        "cpus": len(cpus),
        "load": os.getloadavg()[0],
        "clock_ns": clock_overhead(),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "rcdrv": __version__,
    }


def governor(cpus: list[int], sys: Path = _SYS) -> str | None:
    """Return the governors of these CPUs; None in most virtual machines."""
    found = {
        text
        for cpu in cpus
        if (text := text_of(sys / f"devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor"))
    }
    return ",".join(sorted(found)) or None


def function_node(address: str, sys: Path = _SYS) -> int | None:
    """Return the NUMA node of a function of this host; None if there is only one node."""
    if not is_address(address):
        return None
    text = text_of(sys / f"bus/pci/devices/{canonical_address(address)}/numa_node")
    return int(text) if text and int(text) >= 0 else None


def cpu_nodes(cpus: list[int], sys: Path = _SYS) -> list[int]:
    """Return the NUMA nodes of these CPUs."""
    nodes = {
        int(node.name.removeprefix("node"))
        for cpu in cpus
        for node in (sys / f"devices/system/cpu/cpu{cpu}").glob("node[0-9]*")
    }
    return sorted(nodes)


def processor() -> str | None:
    """Return the processor's name; unknown on arm64."""
    for line in text_of(Path("/proc/cpuinfo")).splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return None


def clock_overhead() -> int:
    """Return the nanoseconds between two readings of the clock, the minimum of many."""
    now = time.perf_counter_ns
    return min(-now() + now() for _ in range(1000))
