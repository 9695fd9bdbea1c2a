"""Stores of known content, and what a reader makes of them."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from py_chronolog_client.engine.base import ScanReport
from py_chronolog_client.engine.embedded import EmbeddedEngine
from py_chronolog_client.testing.contract.base import Row, rows_of
from tests.store import independent

CHRONICLE, STORY = "c", "s"


class Found(NamedTuple):
    """What a replay delivered and reported."""

    rows: list[Row]
    report: ScanReport

    @property
    def places(self) -> list[tuple[str, int]]:
        """Names of damaged files, and where."""
        return [(pathlib.Path(damage.path).name, damage.offset) for damage in self.report.damages]


def replay(store: pathlib.Path, *, verify: bool = True, clients: Sequence[int] | None = None) -> Found:
    """Replay the one story of a store, as `Client.ReplayStory` does it."""
    engine = EmbeddedEngine(store, create=False)
    report = ScanReport()
    rows = rows_of(engine.scan(CHRONICLE, STORY, verify=verify, clients=clients, report=report))
    engine.close()
    assert rows == sorted(rows), "not in the order of the story"
    return Found(rows, report)


def make_story(store: pathlib.Path) -> pathlib.Path:
    return independent.make_story(store, CHRONICLE, STORY)


def segment(directory: pathlib.Path, client_id: int, number: int = 0) -> pathlib.Path:
    return directory / (f"{client_id:016x}.{number}.log" if number else f"{client_id:016x}.log")


def tail(directory: pathlib.Path, client_id: int) -> pathlib.Path:
    return directory / f"{client_id:016x}.tail"


def rows(client_id: int, first_sequence: int, events: Sequence[tuple[int, bytes]]) -> list[Row]:
    """Return the rows of consecutive events of a client."""
    return [(time, client_id, first_sequence + place, record) for place, (time, record) in enumerate(events)]


def closed(client_id: int, blocks: Sequence[Sequence[tuple[int, bytes]]], first_sequence: int = 0) -> bytes:
    """Return a segment of these blocks of events, from the client record to the close record."""
    data, sequence = independent.client_record(client_id, first_sequence), first_sequence
    for events in blocks:
        data += independent.events_block(client_id, sequence, events)
        sequence += len(events)
    return data + independent.close_record(client_id, sequence)
