"""A deployment on this machine for the benchmarks: what it costs, and the bare socket that it is compared with."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from benchmarks import workloads

_ARCHIVE_S = 600.0
_STUB_BYTES = 4096


_SETTLING_S = 120.0
_QUIET_S, _QUIET_SHARE = 1.2, 0.05
"""Services that take less than this share of a core for so long, which is longer than they pause, have nothing to do."""


class Running(NamedTuple):
    """A deployment.

    Attributes:
        place: what clients of this process and its children are given.
        pids: role -> process.
    """

    place: str
    pids: dict[str, int]


@contextmanager
def deployment(scratch: Path, *, tls: bool = False) -> Iterator[Running]:
    """Run visor, keeper, grapher and player."""
    directory = scratch / "deployment"
    variables = {
        "CHRONOLOG_TOKEN_FILE": str(directory / "run" / "tokens"),
        "CHRONOLOG_CERTIFICATE": str(directory / "run" / "certificate.pem") if tls else "",
        "CHRONOLOG_SPOOL": str(scratch / "spool"),
    }
    with mock.patch.dict(os.environ, variables):
        options = ("--port", "0", "--query-port", "0", "--directory", directory, *(["--tls"] if tls else []))
        _chronolog("up", "--background", *options)
        try:
            status = json.loads(_chronolog("status", "--json", "--directory", directory))
            ports = {process["role"]: process["port"] for process in status["processes"]}
            place = workloads.deployment_at(ports["visor"], ports["player"])
            yield Running(place, {process["role"]: process["pid"] for process in status["processes"]})
        finally:
            _chronolog("down", "--directory", directory)


def archive(scratch: Path, place: str, events: int) -> None:
    """Let the grapher of a new deployment have as many events of a story "segments" in these as of "chunks" in those."""
    for story, tier in (("segments", "hot"), ("chunks", "cold")):
        with workloads.new_client(place) as client, workloads.acquire(client, story, TieringPolicy=tier):
            pass
        workloads.fill(place, story, events, clients=2)
    deadline = time.monotonic() + _ARCHIVE_S
    while not _is_archived(scratch / "deployment"):
        if time.monotonic() > deadline:
            raise RuntimeError(f"the grapher has not got everything within {_ARCHIVE_S} s")
        time.sleep(0.1)


def _is_archived(directory: Path) -> bool:
    """Tell whether keepers have nothing but stubs of clients, and the grapher one story in chunks and one in segments."""
    at_keepers = directory.glob("keeper*/chronicles/*/stories/*/*.log")
    kinds = [
        sorted({path.suffix for path in story.iterdir() if path.suffix in (".log", ".chunk")})
        for story in directory.glob("grapher/chronicles/*/stories/*")
    ]
    return all(path.stat().st_size <= _STUB_BYTES for path in at_keepers) and sorted(kinds) == [
        [".chunk"],
        [".log"],
    ]


def _chronolog(*arguments: object) -> str:
    argv = [sys.executable, "-m", "chronolog_hpc", *map(str, arguments)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=workloads.ROOT)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)} has ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def sink(events: int, senders: int) -> float:
    """Take in events from several processes over sockets, and do nothing with them; return the seconds that it took."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        processes = [workloads.start("send", port, events // senders, rank) for rank in range(senders)]
        connections = [listener.accept()[0] for _ in processes]
    for process in processes:
        workloads.answer(process)
    threads = [threading.Thread(target=_swallow, args=(connection,)) for connection in connections]
    for thread in threads:
        thread.start()
    start_s = time.monotonic()
    for process in processes:
        workloads.say(process)
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - start_s
    for process in processes:
        workloads.end(process)
    return seconds


def _swallow(connected: socket.socket) -> None:
    buffer = bytearray(2**20)
    with connected:
        while connected.recv_into(buffer):
            pass


def crowd(place: str, clients: int, processes: int, events: int) -> float:
    """Let many clients connect, acquire a story and log at once; return the seconds until all is journalled and released.

    Raises:
        RuntimeError: something of it is not in the story.
    """
    workloads.new_client(place).Disconnect()
    members = [
        workloads.start("crowd", place, "crowd", clients // processes, events) for _ in range(processes)
    ]
    for member in members:
        workloads.answer(member)
    start_s = time.monotonic()
    for member in members:
        workloads.say(member)
    for member in members:
        workloads.end(member)
    seconds = time.monotonic() - start_s
    with workloads.new_client(place) as client:
        found = sum(map(len, client.replay(workloads.CHRONICLE, "crowd")))
    if found != clients * events:
        raise RuntimeError(f"{clients} clients have logged {events} events each, and {found} are there")
    return seconds


def idle_shares(running: Running, handles: int, seconds: float) -> dict[str, float]:
    """Return the share of a core that each process takes while nothing happens.

    Args:
        running: the deployment.
        handles: so many stories a client has acquired and logged into.
        seconds: how long to look.
    """
    client = workloads.start("idle", running.place, handles)
    workloads.answer(client)
    pids = {**running.pids, "client": client.pid}
    before, start_s = {role: cpu_s(pid) for role, pid in pids.items()}, time.monotonic()
    time.sleep(seconds)
    taken_s = time.monotonic() - start_s
    shares = {role: (cpu_s(pid) - before[role]) / taken_s for role, pid in pids.items()}
    workloads.say(client)
    workloads.end(client)
    return shares


def settle(running: Running) -> None:
    """Wait until the services have done what earlier measurements have left them: handing over, merging.

    Raises:
        RuntimeError: they go on for minutes.
    """
    deadline_s = time.monotonic() + _SETTLING_S
    while time.monotonic() < deadline_s:
        before_s = sum(map(cpu_s, running.pids.values()))
        time.sleep(_QUIET_S)
        if sum(map(cpu_s, running.pids.values())) - before_s < _QUIET_SHARE * _QUIET_S:
            return
    raise RuntimeError(f"the services are still busy after {_SETTLING_S:.0f} s")


def cpu_s(pid: int) -> float:
    """Return the CPU time that the threads of a process have used."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) * 1e-9


def latencies(place: str | os.PathLike[str], story: str, events: int, gap_s: float) -> dict[str, float]:
    """Return quantiles of what a call of log_event takes, in us: p50, p99, p99.9 and max.

    Args:
        place: of a store or a deployment.
        story: a new one.
        events: how many to log.
        gap_s: to sleep between two; 0 for one right after the other.
    """
    records = workloads.pool()
    taken_ns: list[int] = []
    with workloads.new_client(place) as client, workloads.acquire(client, story) as handle:
        log_event: Any = handle.log_event
        for turn in workloads.turns(records, events):
            for record in turn:
                if gap_s:
                    time.sleep(gap_s)
                start_ns = time.perf_counter_ns()
                log_event(record)
                taken_ns.append(time.perf_counter_ns() - start_ns)
    taken_ns.sort()
    places = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
    return {name: taken_ns[round(at * (events - 1))] * 1e-3 for name, at in places.items()}
