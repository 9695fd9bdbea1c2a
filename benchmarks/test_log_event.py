"""What one event costs: the raw buffered file, log_event and log_events; flush included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import workloads
from chronolog_hpc.bench.baseline import open_raw
from chronolog_hpc.bench.phases import batches
from chronolog_hpc.clientlib import Client

EVENTS = workloads.EVENTS


def test_raw_baseline(tmp_path: Path, rounds: Any) -> None:
    turns = workloads.turns(workloads.pool(), EVENTS)

    def setup() -> tuple[tuple[Any, ...], dict[str, Any]]:
        path = tmp_path / "raw"
        path.unlink(missing_ok=True)
        log, close = open_raw(path)
        return (log, turns, close), {}

    rounds(workloads.log_all, setup=setup)


@pytest.mark.parametrize("kind", ["text", "bytes"])
def test_log_event(client: Client, rounds: Any, kind: str) -> None:
    records: list[Any] = workloads.pool()
    if kind == "bytes":
        records = [record.encode() for record in records]
    rounds(
        workloads.log_all,
        setup=workloads.Stories(client, "log_event", workloads.turns(records, EVENTS)).setup,
    )


@pytest.mark.parametrize("size_bytes", [16, 1024, 16384])
def test_log_event_of_size(client: Client, rounds: Any, size_bytes: int) -> None:
    events = max(1, EVENTS * workloads.SIZE_BYTES // max(size_bytes, workloads.SIZE_BYTES))
    records = workloads.pool(size_bytes=size_bytes, count=1024)
    rounds(
        workloads.log_all,
        events,
        setup=workloads.Stories(client, "log_event", workloads.turns(records, events)).setup,
    )


@pytest.mark.parametrize("batch", [10, 100, 1000])
def test_log_events(client: Client, rounds: Any, batch: int) -> None:
    turns = [batches(turn, batch) for turn in workloads.turns(workloads.pool(), EVENTS)]
    rounds(workloads.log_all, setup=workloads.Stories(client, "log_events", turns).setup)
