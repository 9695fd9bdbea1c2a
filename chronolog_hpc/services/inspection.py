"""What can be told of the processes of a deployment from outside: they are asked nothing."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from chronolog_hpc.services.rundir import UP, Process, RunDirectory

_ESTABLISHED = "01"


def inspect(run: RunDirectory) -> dict[str, Any]:
    """Return the state of a deployment, as plain values.

    A role that somebody looks after and that has no process yet counts as dead.
    """
    found = [_told(run, process) for process in run.processes()]
    there = {(row["role"], row["node"]) for row in found}
    for process in run.processes():
        if process.role == UP and run.is_alive(process):
            found += [
                _missing(role, process.node) for role in process.runs if (role, process.node) not in there
            ]
    return {
        "directory": str(run.deployment),
        "alive": bool(found) and all(row["alive"] for row in found),
        "processes": found,
    }


def _told(run: RunDirectory, process: Process) -> dict[str, Any]:
    alive = run.is_alive(process)
    here = alive and process.is_here
    return {
        "role": process.role,
        "node": process.node,
        "host": process.host or None,
        "port": process.port or None,
        "pid": process.pid,
        "alive": alive,
        "uptime_s": round(max(0, time.time_ns() - process.started_ns) / 1e9, 1) if alive else None,
        "rss_bytes": _rss_bytes(process.pid) if here else None,
        "connections": _connections(process.port) if here and process.port else None,
        "version": process.version,
    }


def _missing(role: str, node: str) -> dict[str, Any]:
    names = ("host", "port", "pid", "uptime_s", "rss_bytes", "connections", "version")
    return {"role": role, "node": node, "alive": False, **dict.fromkeys(names)}


def _rss_bytes(pid: int) -> int | None:
    with suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return None


def _connections(port: int) -> int | None:
    """Return how many connections to a port of this machine are open."""
    count = None
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError, ValueError, IndexError):
            for line in Path(table).read_text("ascii").splitlines()[1:]:
                _, local, _, state = line.split()[:4]
                if state == _ESTABLISHED and int(local.rpartition(":")[2], 16) == port:
                    count = (count or 0) + 1
            count = count or 0
    return count
