"""A deployment on this machine for the benchmarks, and the bare socket that it is compared with."""

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
from unittest import mock

from benchmarks import workloads

_ARCHIVE_S = 600.0
_STUB_BYTES = 4096


@contextmanager
def deployment(scratch: Path) -> Iterator[str]:
    """Run visor, keeper, grapher and player; yield the place that clients of this process and its children are given."""
    directory = scratch / "deployment"
    tokens = {
        "CHRONOLOG_TOKEN_FILE": str(directory / "run" / "tokens"),
        "CHRONOLOG_SPOOL": str(scratch / "spool"),
    }
    with mock.patch.dict(os.environ, tokens):
        _chronolog("up", "--background", "--port", "0", "--query-port", "0", "--directory", directory)
        try:
            status = json.loads(_chronolog("status", "--json", "--directory", directory))
            ports = {process["role"]: process["port"] for process in status["processes"]}
            yield workloads.deployment_at(ports["visor"], ports["player"])
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
