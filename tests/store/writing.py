"""What the tests of writers share: clients on a store, small tails, and what must hold of everything that was logged."""

import os
import pathlib
import random
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import pytest

import py_chronolog_client as chronolog
from py_chronolog_client.client import StoryHandle
from py_chronolog_client.engine.base import Durability, ScanReport
from py_chronolog_client.engine.embedded import EmbeddedEngine
from py_chronolog_client.store import journal, tail

CHRONICLE, STORY = "chronicle", "story"

SMALL_CAPACITY = 24
SMALL_PAYLOAD_BYTES = 4096
SMALL_RESERVE_EVENTS = 8
SMALL_RESERVE_BYTES = 1024
"""A small tail: rolls after 16 events or 3 KiB, and leaves 8 events to who interrupts a roll."""


class Logged(NamedTuple):
    """An event as a reader finds it."""

    time_ns: int
    client_id: int
    sequence: int
    record: bytes


def small_tails(
    capacity: int = SMALL_CAPACITY,
    payload_bytes: int = SMALL_PAYLOAD_BYTES,
    reserve_events: int = SMALL_RESERVE_EVENTS,
    reserve_bytes: int = SMALL_RESERVE_BYTES,
) -> None:
    """Make the tails of all writers that this process opens from now on small, so that they roll often."""
    for name, value in (
        ("TAIL_CAPACITY", capacity),
        ("TAIL_BYTES", 4096 + 16 * capacity + payload_bytes),
        ("RESERVE_EVENTS", reserve_events),
        ("RESERVE_BYTES", reserve_bytes),
    ):
        for module in (tail, journal):
            assert hasattr(module, name)
            setattr(module, name, value)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every writer of a test a small tail."""
    for module in (tail, journal):
        for name in ("TAIL_CAPACITY", "TAIL_BYTES", "RESERVE_EVENTS", "RESERVE_BYTES"):
            monkeypatch.setattr(module, name, getattr(module, name))
    small_tails()


def connect(
    store: str | os.PathLike[str], durability: Durability = "process", client_id: int | None = None
) -> chronolog.Client:
    """Return a connected client of the store, which has the chronicle."""
    portal = chronolog.ClientPortalServiceConf("file", os.fspath(store), 0, 0)
    query = chronolog.ClientQueryServiceConf()
    client = chronolog.Client(portal, query, durability=durability, client_id=client_id)
    assert client.Connect() == 0, client.last_error
    assert client.CreateChronicle(CHRONICLE) in (0, -6), client.last_error
    return client


def acquire(client: chronolog.Client, story: str = STORY) -> StoryHandle:
    code, handle = client.AcquireStory(CHRONICLE, story)
    assert code == 0, client.last_error
    assert handle is not None
    return handle


def read(
    store: str | os.PathLike[str] | EmbeddedEngine,
    *,
    clients: Sequence[int] | None = None,
    story: str = STORY,
) -> list[Logged]:
    """Return the events of a story as a new reader finds them, which must be undamaged."""
    engine = store if isinstance(store, EmbeddedEngine) else EmbeddedEngine(store, create=False)
    report = ScanReport()
    found: list[Logged] = []
    for page in engine.scan(CHRONICLE, story, clients=clients, verify=True, report=report):
        columns = page.times.tolist(), page.client_ids.tolist(), page.sequences.tolist(), page.records()
        found += map(Logged, *columns)
    assert not report.damages, report.damages
    assert not report.missing
    assert not report.disbelieved
    return found


def check(
    found: Iterable[Logged],
    returned: Iterable[tuple[int, bytes]],
    attempted: Iterable[bytes] | None = None,
) -> None:
    """Check what was read against what was logged.

    Args:
        found: the events of one client or of many, in the order in which a reader got them. Records are different.
        returned: time (0 where it is unknown) and record of every event whose call returned.
        attempted: every record that was ever given to a call; None where nobody knows.
    """
    found = list(found)
    assert found == sorted(found, key=lambda event: event[:3]), "not in the order of the story"
    sequences: dict[int, list[int]] = {}
    times: dict[int, list[int]] = {}
    for event in found:
        sequences.setdefault(event.client_id, []).append(event.sequence)
        times.setdefault(event.client_id, []).append(event.time_ns)
    for client_id, numbers in sequences.items():
        assert numbers == list(range(len(numbers))), f"client {client_id:x}: a gap or a double in {numbers}"
    records = [event.record for event in found]
    twice = (
        {record for record in records if records.count(record) > 1}
        if len(set(records)) < len(records)
        else ()
    )
    assert not twice, f"logged once and found twice: {sorted(twice)[:3]}"
    pairs = {(event.time_ns, event.record) for event in found} | {(0, record) for record in records}
    missing = set(returned) - pairs
    assert not missing, f"{len(missing)} returned events are missing, for instance {sorted(missing)[:3]}"
    if attempted is not None:
        foreign = set(records) - set(attempted)
        assert not foreign, f"nobody has logged {sorted(foreign)[:3]}"


def files(store: str | os.PathLike[str], pattern: str = "*") -> list[pathlib.Path]:
    """Return the files of all stories of the store, without their `meta`."""
    found = pathlib.Path(store).glob(f"chronicles/*/stories/*/{pattern}")
    return sorted(path for path in found if path.name != "meta")


def seeded(name: str, default: int = 0) -> random.Random:
    """Return random numbers that CHRONOLOG_TEST_SEED can repeat; the seed is printed, for a failure."""
    seed = int(os.environ.get("CHRONOLOG_TEST_SEED", default))
    print(f"{name}: CHRONOLOG_TEST_SEED={seed}")
    return random.Random(f"{name} {seed}")
