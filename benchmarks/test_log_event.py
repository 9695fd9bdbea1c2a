"""What one event costs: the raw buffered file, log_event and log_events; flush included."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from benchmarks import workloads
from chronolog_hpc.bench.baseline import open_raw
from chronolog_hpc.bench.phases import batches
from chronolog_hpc.clientlib import Client

EVENTS = workloads.EVENTS


def log_all(call: Any, turns: Any, end: Any) -> None:
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
        handle = workloads.acquire(self._client, self._name)
        return (getattr(handle, self._method), self._turns, handle.flush), {}

    def destroy(self) -> None:
        if self._name is not None:
            assert self._client.ReleaseStory(workloads.CHRONICLE, self._name) == 0
            assert self._client.DestroyStory(workloads.CHRONICLE, self._name) == 0


def test_raw_baseline(tmp_path: Path, rounds: Any) -> None:
    turns = workloads.turns(workloads.pool(), EVENTS)

    def setup() -> tuple[tuple[Any, ...], dict[str, Any]]:
        path = tmp_path / "raw"
        path.unlink(missing_ok=True)
        log, close = open_raw(path)
        return (log, turns, close), {}

    rounds(log_all, setup=setup)


@pytest.mark.parametrize("kind", ["text", "bytes"])
def test_log_event(client: Client, rounds: Any, kind: str) -> None:
    records: list[Any] = workloads.pool()
    if kind == "bytes":
        records = [record.encode() for record in records]
    rounds(log_all, setup=Stories(client, "log_event", workloads.turns(records, EVENTS)).setup)


@pytest.mark.parametrize("size_bytes", [16, 1024, 16384])
def test_log_event_of_size(client: Client, rounds: Any, size_bytes: int) -> None:
    events = max(1, EVENTS * workloads.SIZE_BYTES // max(size_bytes, workloads.SIZE_BYTES))
    records = workloads.pool(size_bytes=size_bytes, count=1024)
    rounds(log_all, events, setup=Stories(client, "log_event", workloads.turns(records, events)).setup)


@pytest.mark.parametrize("batch", [10, 100, 1000])
def test_log_events(client: Client, rounds: Any, batch: int) -> None:
    turns = [batches(turn, batch) for turn in workloads.turns(workloads.pool(), EVENTS)]
    rounds(log_all, setup=Stories(client, "log_events", turns).setup)
