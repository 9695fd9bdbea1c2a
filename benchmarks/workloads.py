"""What the benchmarks do, and processes to do it in: a first replay needs a process that has done none."""

from __future__ import annotations

import itertools
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from chronolog_hpc.bench.records import GeneratedRecords
from chronolog_hpc.clientlib import Client, ClientPortalServiceConf, ClientQueryServiceConf, open_client


def _events(text: str) -> int:
    """Return the number in CHRONOLOG_BENCH_EVENTS."""
    if not text.isdecimal() or not int(text):
        raise ValueError(f"CHRONOLOG_BENCH_EVENTS={text}: give a whole number from 1")
    return int(text)


EVENTS = _events(os.environ.get("CHRONOLOG_BENCH_EVENTS", "20000"))
"""Events in each measurement; 2 to 10 million for figures that count."""
SIZE_BYTES = 128
CLIENTS = 4
CHRONICLE = "benchmarks"
_DEPLOYMENT = "deployment:"

ROOT = Path(__file__).resolve().parents[1]
_POOL_EVENTS = 2**16


def pool(rank: int = 0, size_bytes: int = SIZE_BYTES, count: int = _POOL_EVENTS) -> list[str]:
    """Return records to log again and again."""
    return [str(text) for text in GeneratedRecords(0, size_bytes).texts(rank, range(count))]


def turns(records: Sequence[Any], events: int) -> list[Sequence[Any]]:
    """Return the records as often as it takes to have `events` of them."""
    whole, rest = divmod(events, len(records))
    return [records] * whole + [records[:rest]]


def new_client(place: str | os.PathLike[str], **options: Any) -> Client:
    """Return a connected client that has the chronicle of the benchmarks.

    Args:
        place: directory of a store, or what `deployment_at` returned.
        options: as for `Client`.
    """
    client = _client_of(os.fspath(place), **options)
    client.CreateChronicle(CHRONICLE)
    return client


def deployment_at(port: int, query_port: int) -> str:
    """Return the place that means a deployment on this machine."""
    return f"{_DEPLOYMENT}{port}:{query_port}"


def _client_of(place: str, **options: Any) -> Client:
    if not place.startswith(_DEPLOYMENT):
        return open_client(Path(place), **options)
    port, query_port = map(int, place.removeprefix(_DEPLOYMENT).split(":"))
    portal = ClientPortalServiceConf("ofi+tcp", "127.0.0.1", port, 55)
    client = Client(portal, ClientQueryServiceConf("ofi+tcp", "127.0.0.1", query_port, 57), **options)
    assert client.Connect() == 0, client.last_error
    return client


def acquire(client: Client, story: str, **attributes: str) -> Any:
    """Return the handle of a story, which is made with these attributes if it is not there."""
    code, handle = client.AcquireStory(CHRONICLE, story, attributes)
    assert code == 0, client.last_error
    return handle


def log_all(call: Any, turns: Any, end: Any) -> None:
    """Call something with every argument of all turns, and then `end`."""
    for turn in turns:
        for argument in turn:
            call(argument)
    end()


class Stories:
    """A fresh story for each round; the one before it is destroyed, so that its memory is used again."""

    def __init__(self, client: Client, method: str, turns: Any) -> None:
        self._client = client
        self._method = method
        self._turns = turns
        self._names = (f"story-{number}" for number in itertools.count())
        self._name: str | None = None

    def setup(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        self.destroy()
        self._name = next(self._names)
        handle = acquire(self._client, self._name)
        return (getattr(handle, self._method), self._turns, handle.flush), {}

    def destroy(self) -> None:
        if self._name is not None:
            assert self._client.ReleaseStory(CHRONICLE, self._name) == 0
            assert self._client.DestroyStory(CHRONICLE, self._name) == 0


# -- processes ---------------------------------------------------------------------------------------------


def start(role: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a process that plays a role of this module; it answers in lines of JSON."""
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.workloads", role, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))},
    )


def answer(process: subprocess.Popen[str]) -> Any:
    """Return the next answer of a process."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"the process {process.args} has ended with {process.wait()}"
    return json.loads(line)


def say(process: subprocess.Popen[str]) -> None:
    """Let a process go on."""
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def end(process: subprocess.Popen[str]) -> None:
    """Wait for the end of a process."""
    process.communicate()
    assert process.returncode == 0, f"the process {process.args} has ended with {process.returncode}"


def fill(
    directory: str | os.PathLike[str], story: str, events: int, clients: int = CLIENTS, batch: int = 1
) -> float:
    """Log `events` events from `clients` processes at the same time, so many at once; return the seconds that it took."""
    new_client(directory).Disconnect()
    writers = [start("write", directory, story, events // clients, rank, batch) for rank in range(clients)]
    for writer in writers:
        answer(writer)
    start_s = time.monotonic()
    for writer in writers:
        say(writer)
    for writer in writers:
        end(writer)
    return time.monotonic() - start_s


def _tell(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def _write(directory: str, story: str, events: str, rank: str, batch: str) -> None:
    """Log events when told."""
    records, size = pool(int(rank)), int(batch)
    with new_client(directory) as client, acquire(client, story) as handle:
        _tell(ready=True)
        sys.stdin.readline()
        for turn in turns(records, int(events)):
            if size == 1:
                for record in turn:
                    handle.log_event(record)
            else:
                for first in range(0, len(turn), size):
                    handle.log_events(turn[first : first + size])


def _crowd(place: str, story: str, clients: str, events: str) -> None:
    """Be many clients when told, each in a thread: connect, acquire, log, release."""
    records = pool(count=int(events))

    def take_part() -> None:
        with new_client(place) as client, acquire(client, story) as handle:
            for record in records:
                handle.log_event(record)

    with ThreadPoolExecutor(int(clients)) as threads:
        _tell(ready=True)
        sys.stdin.readline()
        for done in [threads.submit(take_part) for _ in range(int(clients))]:
            done.result()


def _idle(place: str, handles: str) -> None:
    """Acquire stories, log into each, and do nothing until told."""
    with new_client(place) as client, ExitStack() as stack:
        for number in range(int(handles)):
            stack.enter_context(acquire(client, f"idle-{number}")).log_event("the only one")
        _tell(ready=True)
        sys.stdin.readline()


def _replay(directory: str, story: str, start_ns: str = "0", end_ns: str = str(2**64 - 1)) -> None:
    """Replay a range when told: columns, then Event objects; count what is read of files meanwhile."""
    from chronolog_hpc.clientlib import EventList

    with new_client(directory) as client, ExitStack() as stack:
        reads = stack.enter_context(CountedReads())
        _tell(ready=True)
        sys.stdin.readline()
        begin_ns = time.monotonic_ns()
        events = EventList()
        for page in client.replay(CHRONICLE, story, int(start_ns), int(end_ns)):
            events.add_page(page)
        columns = (events.times, events.client_ids, events.sequences)
        columns_s = (time.monotonic_ns() - begin_ns) * 1e-9
        columns_reads = reads.summary()
        size_bytes = sum(column.nbytes for column in columns)
        _tell(events=len(events), columns_s=columns_s, columns_bytes=size_bytes, **columns_reads)
        sys.stdin.readline()
        begin_ns = time.monotonic_ns()
        for _ in events:
            pass
        objects_s = (time.monotonic_ns() - begin_ns) * 1e-9
        middle = len(events) // 2
        one_percent = [int(events.times[middle]), int(events.times[middle + len(events) // 100])]
        _tell(objects_s=objects_s, one_percent_ns=one_percent, **reads.summary())


def _trickle(directory: str, story: str, events: str, gap_ms: str) -> None:
    """Log events at random distances when told, and tell for each when `log_event` had returned."""
    rng = random.Random(0)
    records = pool(count=int(events))
    returned_ns = []
    with new_client(directory) as client, acquire(client, story) as handle:
        _tell(ready=True)
        sys.stdin.readline()
        for record in records:
            time.sleep(rng.random() * 2e-3 * float(gap_ms))
            handle.log_event(record)
            returned_ns.append(time.monotonic_ns())
        _tell(returned_ns=returned_ns)
        sys.stdin.readline()


class CountedReads:
    """Counts what this process reads of files at given offsets, while it is entered: calls, bytes, and parts.

    A part is a place from which more than the header of a block was read: a block's index columns or its
    payload, or a piece of 1 MiB of them.
    """

    _HEADER_BYTES = 128

    def __init__(self) -> None:
        self._pread, self._preadv = os.pread, os.preadv
        self._bytes = self._calls = 0
        self._places: set[tuple[int, int]] = set()

    def __enter__(self) -> CountedReads:
        os.pread, os.preadv = self._counted, self._counted_into  # type: ignore[assignment]
        return self

    def __exit__(self, *exception: object) -> None:
        os.pread, os.preadv = self._pread, self._preadv

    def _counted(self, descriptor: int, length: int, offset: int, /) -> bytes:
        data = self._pread(descriptor, length, offset)
        self._count(descriptor, len(data), offset)
        return data

    def _counted_into(self, descriptor: int, buffers: Sequence[memoryview], offset: int, /) -> int:
        size_bytes = self._preadv(descriptor, buffers, offset)
        self._count(descriptor, size_bytes, offset)
        return size_bytes

    def _count(self, descriptor: int, size_bytes: int, offset: int) -> None:
        self._bytes += size_bytes
        self._calls += 1
        if size_bytes > self._HEADER_BYTES:
            self._places.add((os.fstat(descriptor).st_ino, offset))

    def summary(self) -> dict[str, int]:
        """Return what was read so far."""
        return {"read_bytes": self._bytes, "reads": self._calls, "parts": len(self._places)}


def _send(port: str, events: str, rank: str) -> None:
    """Write events into a socket when told: what the raw baseline does with a file."""
    records = pool(int(rank))
    with (
        socket.create_connection(("127.0.0.1", int(port))) as connected,
        connected.makefile("wb", buffering=2**20) as file,
    ):
        write, time_ns = file.write, time.time_ns

        def log(record: str) -> int:
            now_ns = time_ns()
            write(record.encode())
            return now_ns

        _tell(ready=True)
        sys.stdin.readline()
        log_all(log, turns(records, int(events)), file.flush)


_ROLES = {
    "send": _send,
    "write": _write,
    "replay": _replay,
    "trickle": _trickle,
    "crowd": _crowd,
    "idle": _idle,
}

if __name__ == "__main__":
    _ROLES[sys.argv[1]](*sys.argv[2:])
