"""What can be told of a deployment: by the files in its run directory, by the kernel, and by its processes themselves.

A service that lives is asked for its counters, as a service of the same deployment. One that does not answer within
`ASK_S` is said to be silent, and the kernel tells of it what it can. Beside the processes stand the spools of this
user on this machine: which events in them no keeper has yet, and whose they are if their process is dead.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from chronolog_hpc.services.counting import TOTALS, rss_bytes
from chronolog_hpc.services.rundir import PLAYER, UP, VISOR, Process, RunDirectory
from py_chronolog_client.engine.backlog import Marks, Waiting, backlog, spools_of
from py_chronolog_client.engine.connection import Address, Connection
from py_chronolog_client.errors import ChronoLogError, NotFoundError
from py_chronolog_client.wire import messages
from py_chronolog_client.wire.handshake import Identity
from py_chronolog_client.wire.messages import Counters, unpack_ids, unpack_marks

ASK_S = 2.0
"""So long a service may take to say how it is."""

_AT_ONCE = 32


def inspect(run: RunDirectory, *, here_only: bool = False) -> dict[str, Any]:
    """Return the state of a deployment, as plain values.

    A role that somebody looks after and that has no process yet counts as dead.

    Args:
        run: of the deployment.
        here_only: leave out what runs on other machines.

    Raises:
        ChronoLogError: its token file cannot be used.
    """
    processes = [process for process in run.processes() if process.is_here or not here_only]
    alive = {process for process in processes if run.is_alive(process)}
    with ThreadPoolExecutor(_AT_ONCE, "chronolog-inspect") as pool:
        asked = [process for process in processes if process in alive and process.role != UP]
        identity = run.service_identity() if asked else None
        told = dict(zip(asked, pool.map(lambda process: _ask(process, identity), asked), strict=True))
    rows = [_told(process, process in alive, told.get(process)) for process in processes]
    there = {(process.role, process.node) for process in processes}
    for process in alive:
        rows += [_missing(role, process.node) for role in process.runs if (role, process.node) not in there]
    return {
        "directory": str(run.deployment),
        "alive": bool(rows) and all(row["alive"] and row["answers"] is not False for row in rows),
        "processes": rows,
        "spools": _spools(processes, [process for process in asked if told[process]], identity),
    }


# -- processes --


def _ask(process: Process, identity: Identity | None) -> Counters | None:
    """Return what a service says of itself, or None if it says nothing."""
    assert identity is not None
    try:
        connection = Connection(Address(process.host, process.port), identity, process.role, ASK_S)
    except ChronoLogError:
        return None
    try:
        return connection.ask(messages.ReadCounters(), Counters, ASK_S)
    except ChronoLogError:
        return None
    finally:
        connection.close()


def _told(process: Process, alive: bool, told: Counters | None) -> dict[str, Any]:
    counters = {} if told is None else dict(zip(told.names, unpack_ids(told.now), strict=True))
    kernel = rss_bytes(process.pid) if alive and process.is_here else None
    return {
        "role": process.role,
        "node": process.node,
        "host": process.host or None,
        "port": process.port or None,
        "pid": process.pid,
        "alive": alive,
        "answers": None if not alive or process.role == UP else told is not None,
        "uptime_s": round(max(0, time.time_ns() - process.started_ns) / 1e9, 1) if alive else None,
        "rss_bytes": counters.get("rss_bytes", kernel),
        "connections": counters.get("connections"),
        "counters": counters,
        "rates_per_s": {} if told is None else _rates(told),
        "version": process.version,
    }


def _missing(role: str, node: str) -> dict[str, Any]:
    names = ("host", "port", "pid", "answers", "uptime_s", "rss_bytes", "connections", "version")
    return {
        "role": role,
        "node": node,
        "alive": False,
        **dict.fromkeys(names),
        "counters": {},
        "rates_per_s": {},
    }


def _rates(told: Counters) -> dict[str, float]:
    """Return what the totals have grown by in a second, in the last 10 to 20 s."""
    interval_s = max(told.interval_ms, 1) / 1000
    columns = zip(told.names, unpack_ids(told.now), unpack_ids(told.before), strict=True)
    return {name: round((now - before) / interval_s, 1) for name, now, before in columns if name in TOTALS}


# -- spools --


def _spools(
    processes: Iterable[Process], answering: Iterable[Process], identity: Identity | None
) -> list[dict[str, Any]]:
    """Return what waits in the spools of this user on this machine for this deployment."""
    visor = next((process for process in processes if process.role == VISOR), None)
    player = next((process for process in answering if process.role == PLAYER), None)
    if visor is None:
        return []
    found = []
    with _Marks(player, identity) as marks:
        for path in spools_of(Address(visor.host, visor.port)):
            try:
                waiting = list(backlog(path, marks.of))
            except (ChronoLogError, OSError):  # it is removed at this moment
                continue
            found.append(_spool(path, waiting, known=marks.are_known))
    return found


def _spool(path: Path, waiting: list[Waiting], *, known: bool) -> dict[str, Any]:
    return {
        "directory": str(path),
        "known": known,
        "clients": len(waiting),
        "events": sum(client.left.events for client in waiting),
        "bytes": sum(client.left.size_bytes for client in waiting),
        "orphans": [
            {
                "client_id": f"{client.client_id:016x}",
                "chronicle": client.chronicle,
                "story": client.story,
                "events": client.left.events,
                "bytes": client.left.size_bytes,
            }
            for client in waiting
            if client.is_dead and client.left.events
        ],
    }


class _Marks:
    """What keepers have of stories, asked of a player.

    Attributes:
        are_known: whether it has told all that it was asked; otherwise nothing is taken to be there.
    """

    def __init__(self, player: Process | None, identity: Identity | None) -> None:
        self.are_known = player is not None
        self._player = player
        self._identity = identity
        self._connection: Connection | None = None

    def __enter__(self) -> _Marks:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._connection is not None:
            self._connection.close()

    def of(self, chronicle: str, story: str) -> Marks:
        """Return what there is of a story."""
        if not self.are_known:
            return {}
        assert self._player is not None
        assert self._identity is not None
        try:
            if self._connection is None:
                address = Address(self._player.host, self._player.port)
                self._connection = Connection(address, self._identity, PLAYER, ASK_S)
            told = self._connection.ask(messages.TakeSnapshot(chronicle, story, 0), messages.Marks, ASK_S)
        except NotFoundError:
            return {}
        except ChronoLogError:  # a keeper is away, or the player
            self.are_known = False
            return {}
        return unpack_marks(told.marks)
