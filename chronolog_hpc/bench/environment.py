"""What a result depends on beside its parameters: the machine, the software, the memory of the process."""

from __future__ import annotations

import os
import platform
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import chronolog_hpc
from chronolog_hpc.mpi import library_name
from chronolog_hpc.slurm import JobEnvironment

if TYPE_CHECKING:
    from chronolog_hpc.bench.ranks import Ranks

_TIMER_SAMPLES = 10_000
_JOB_FACTS = ("scheduler", "job", "array_task", "node_count", "cpus_per_task", "plugin")


def describe(ranks: Ranks, directory: str, command: str) -> dict[str, Any]:
    """Return the block `env` of a report.

    Collective: over the ranks.

    Args:
        ranks: all of them.
        directory: where the store is.
        command: the command line.
    """
    import numpy as np

    from py_chronolog_client.store.crc import CRC_LIBRARY

    timers_ns = ranks.all(timer_overhead_ns())
    cpus = ranks.all(len(os.sched_getaffinity(0)))
    facts = JobEnvironment().facts()
    return {
        "command": command,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "ranks": ranks.size,
        "hosts": sorted(set(ranks.hosts)),
        "cpu": _cpu_model(),
        "cpus_of_rank_0": cpus[0],
        "memory_bytes": memory_bytes_of_host(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "numpy": np.__version__,
        "crc": CRC_LIBRARY,
        "mpi": _mpi_version(ranks),
        "chronolog_hpc": chronolog_hpc.__version__,
        "file_system": file_system(directory),
        "job": {name: facts[name] for name in _JOB_FACTS if name in facts},
        "timer_overhead_ns": max(timers_ns),
        "timer_resolution_ns": round(time.get_clock_info("perf_counter").resolution * 1e9),
    }


def memory_bytes_of_host() -> int:
    """Return the size of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def timer_overhead_ns() -> int:
    """Return the median time between two readings of perf_counter_ns that follow each other."""
    clock = time.perf_counter_ns
    samples = []
    for _ in range(_TIMER_SAMPLES):
        begin_ns = clock()
        samples.append(clock() - begin_ns)
    return sorted(samples)[_TIMER_SAMPLES // 2]


def memory_bytes() -> dict[str, int | None]:
    """Return the memory of this process: `anonymous` now, and the `high_water` of all that was ever resident.

    None where the system does not say.
    """
    found: dict[str, int | None] = {"anonymous": None, "high_water": None}
    names = {"RssAnon:": "anonymous", "VmHWM:": "high_water"}
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        words = line.split()
        if words and words[0] in names:
            found[names[words[0]]] = int(words[1]) * 1024
    return found


def file_system(directory: str) -> str:
    """Return the type of the file system of a directory, "unknown" where the system does not say."""
    place, kind = "", "unknown"
    path = os.path.realpath(directory)
    try:
        lines = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return kind
    for line in lines:
        _, mounted_at, this_kind = line.split(" ")[:3]
        mounted_at = mounted_at.replace("\\040", " ")
        if (path + "/").startswith(mounted_at.rstrip("/") + "/") and len(mounted_at) >= len(place):
            place, kind = mounted_at, this_kind
    return kind


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _mpi_version(ranks: Ranks) -> str:
    if ranks.comm is None:
        return "none"
    import mpi4py

    return f"{library_name()}, mpi4py {mpi4py.__version__}"
