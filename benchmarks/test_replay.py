"""What a replay costs: all columns, Event objects, a range, one client and several."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import workloads
from chronolog_hpc.clientlib import Client, EventList

EVENTS = workloads.EVENTS


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store with a story of one client and one of several."""
    directory = tmp_path_factory.mktemp("replay")
    for clients in (1, workloads.CLIENTS):
        workloads.fill(directory, f"of-{clients}", EVENTS, clients)
    return directory


@pytest.fixture
def reader(store: Path) -> Iterator[Client]:
    """Return a client on that store."""
    with workloads.new_client(store) as client:
        yield client


def replay(client: Client, story: str, start_ns: int = 0, end_ns: int = 2**64 - 1) -> EventList:
    events = EventList()
    assert client.ReplayStory(workloads.CHRONICLE, story, start_ns, end_ns, events) == 0
    return events


def expected(clients: int) -> int:
    return EVENTS // clients * clients


@pytest.mark.parametrize("clients", [1, workloads.CLIENTS])
def test_columns(reader: Client, rounds: Any, clients: int) -> None:
    def columns() -> int:
        events = replay(reader, f"of-{clients}")
        return len(events.times) + len(events.client_ids) + len(events.sequences)

    assert rounds(columns) == 3 * expected(clients)


@pytest.mark.parametrize("clients", [1, workloads.CLIENTS])
def test_event_objects(reader: Client, rounds: Any, clients: int) -> None:
    events = replay(reader, f"of-{clients}")
    assert rounds(lambda: sum(1 for _ in events)) == expected(clients)


def test_one_percent(reader: Client, rounds: Any, benchmark: Any) -> None:
    story = f"of-{workloads.CLIENTS}"
    times = replay(reader, story).times
    start_ns, end_ns = int(times[len(times) // 2]), int(times[len(times) // 2 + len(times) // 100])

    def read(start_ns: int, end_ns: int) -> dict[str, int]:
        with workloads.CountedReads() as reads:
            records = list(replay(reader, story, start_ns, end_ns).records())
        return {"events": len(records), **reads.summary()}

    whole, part = read(0, 2**64 - 1), read(start_ns, end_ns)
    assert part["events"] >= len(times) // 100
    benchmark.extra_info["read"] = {name: part[name] / whole[name] for name in part}
    assert (
        len(rounds(lambda: list(replay(reader, story, start_ns, end_ns).records()), part["events"]))
        == part["events"]
    )
