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


@contextmanager
def deployment(scratch: Path, *, tls: bool = False) -> Iterator[str]:
    """Run visor, keeper and player; yield the place that clients of this process and its children are given."""
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
            yield workloads.deployment_at(ports["visor"], ports["player"])
        finally:
            _chronolog("down", "--directory", directory)


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
