"""The limits of processes, as `ulimit` shows them."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from chronolog_hpc.clientlib import TAIL_BYTES
from chronolog_hpc.doctor.finding import Finding, error, ok, warning

_FILES_LEAST, _FILES_MANY = 64, 4096
_LOCKED_BYTES = 64 * 2**20
_FILE_BYTES_LEAST = 2 * TAIL_BYTES
_PROCESSES_FEW = 256
_FABRICS = (Path("/sys/class/infiniband"), Path("/sys/class/cxi"))


def open_files() -> Finding:
    """Check RLIMIT_NOFILE: two files for each story, and a replay needs several for each client."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{_shown(soft)}, at most {_shown(hard)}"
    if _below(hard, _FILES_LEAST):
        return error("open files", found, f"ask for more: ulimit -Hn {_FILES_MANY}")
    if _below(hard, _FILES_MANY):
        return warning(
            "open files", found, "a replay of many clients on few ranks needs more: ulimit -Hn 65536"
        )
    return ok("open files", found)


def locked_memory() -> Finding:
    """Check RLIMIT_MEMLOCK, which this software does not need, and MPI over a fast network does."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    found = _shown(soft, " bytes")
    if _below(soft, _LOCKED_BYTES) and any(fabric.is_dir() and os.listdir(fabric) for fabric in _FABRICS):
        return warning("locked memory", found, "MPI over this node's network needs more: ulimit -l unlimited")
    return ok("locked memory", found)


def file_size() -> Finding:
    """Check RLIMIT_FSIZE: a client's events are one file."""
    soft, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    found = _shown(soft, " bytes")
    if _below(soft, _FILE_BYTES_LEAST):
        return error("file size", found, "ulimit -f unlimited")
    if soft != resource.RLIM_INFINITY:
        return warning("file size", found, "a client's events beyond it are refused: ulimit -f unlimited")
    return ok("file size", found)


def processes() -> Finding:
    """Check RLIMIT_NPROC, which counts threads as well."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    found = f"{_shown(soft)} of this user, threads included"
    if _below(soft, _PROCESSES_FEW):
        return warning("processes", found, "clients and MPI start threads: ulimit -u 4096")
    return ok("processes", found)


LIMITS = (open_files, locked_memory, file_size, processes)


def _below(limit: int, wanted: int) -> bool:
    return limit != resource.RLIM_INFINITY and limit < wanted


def _shown(limit: int, unit: str = "") -> str:
    return "unlimited" if limit == resource.RLIM_INFINITY else f"{limit}{unit}"
