"""Chunks that take others along: few of them, and no event is written often."""

import math
import pathlib
import random

import pytest

from py_chronolog_client.clock import ClockModel
from py_chronolog_client.engine.base import MAX_TIME_NS, ScanReport
from py_chronolog_client.store import growth
from py_chronolog_client.store.archive import Archive
from py_chronolog_client.store.chunk import Chunk
from py_chronolog_client.store.chunkformat import chunk_names
from py_chronolog_client.store.compaction import Compaction, compact
from py_chronolog_client.store.root import StoreRoot
from py_chronolog_client.testing.contract.base import Row
from tests.store import independent, reading
from tests.support.counts import soak

BOOT_ID = bytes(16)
MODELS = [ClockModel(number, number, 0, 0.0, 9, 0.0).pack() for number in (1, 2)]


class Growing:
    """A story whose clients go on while their sealed segments arrive."""

    def __init__(self, path: pathlib.Path) -> None:
        self.directory = independent.make_story(path, reading.CHRONICLE, reading.STORY, 2)
        self.path = path
        self.root = StoreRoot.open(path, create=False)
        self.rows: list[Row] = []
        self.time_ns = 1000
        self.next: dict[int, tuple[int, int]] = {}

    def arrive(self, client_id: int, count: int, clock: bytes = MODELS[0]) -> pathlib.Path:
        """Let a sealed segment appear."""
        number, first = self.next.get(client_id, (0, 0))
        more = {"follows_ns": 1} if number else {}
        data = independent.client_record(client_id, first, **more)
        events = [(self.time_ns + place, b"%d %d" % (client_id, first + place)) for place in range(count)]
        if events:
            data += independent.events_block(client_id, first, events, clock=clock)
        self.rows += [(time, client_id, first + place, text) for place, (time, text) in enumerate(events)]
        self.time_ns += count
        data += independent.record_block(
            client_id, first + count, {"type": "roll", "next_sequence": first + count}
        )
        self.next[client_id] = number + 1, first + count
        path = reading.segment(self.directory, client_id, number)
        path.write_bytes(data)
        return path

    def compact(self, span_ns: int = MAX_TIME_NS) -> Compaction:
        done = compact(self.root, self.directory, span_ns)
        assert done is not None
        return done

    def chunks(self) -> list[Chunk]:
        """Return the chunks, the largest first."""
        archive = Archive(self.directory, chunk_names(self.directory))
        assert not archive.damages
        return sorted(archive.chunks.values(), key=lambda chunk: -chunk.events)

    def events(self) -> list[int]:
        return [chunk.events for chunk in self.chunks()]

    def check(self) -> None:
        assert reading.replay(self.path) == (sorted(self.rows), ScanReport())
        assert independent.read_story(self.directory, BOOT_ID) == sorted(self.rows)


@pytest.fixture
def story(tmp_path: pathlib.Path) -> Growing:
    return Growing(tmp_path / "store")


@pytest.mark.parametrize("seed", range(2))
def test_how_many_chunks_and_how_often_an_event_is_written(story: Growing, seed: int) -> None:
    numbers = random.Random(seed)
    written = 0
    for _ in range(soak(60, 1000)):
        for client_id in (1, 2):
            story.arrive(client_id, numbers.randrange(1, 4 + 40 * seed))
        written += story.compact().events
        events = story.events()
        assert all(count > sum(events[place + 1 :]) for place, count in enumerate(events)), events
        doublings = math.log2(len(story.rows))
        assert len(events) <= doublings + 1
        assert written <= len(story.rows) * (doublings + 1)
    story.check()
    for chunk in story.chunks():
        for client in chunk.clients.values():
            assert len(client.records) == 2, "those between segments say nothing"
            assert len(client.runs) == 1


def test_clock_runs_are_joined_where_the_clock_is_the_same(story: Growing) -> None:
    for clock in (0, 0, 1, 1):
        story.arrive(1, 2, MODELS[clock])
        story.compact()
    (chunk,) = story.chunks()
    assert [(run.first_sequence, run.first_time, run.last_time) for run in chunk.clients[1].runs] == [
        (0, 1000, 1003),
        (4, 1004, 1007),
    ]
    story.check()


def test_a_large_chunk_is_not_written_again(story: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "MAX_BYTES", 900)
    for _ in range(24):
        story.arrive(1, 10)
        story.compact()
    large = [chunk for chunk in story.chunks() if chunk.size_bytes >= 900]
    assert len(large) > 2
    assert all(chunk.size_bytes < 2 * 900 for chunk in large)
    assert len(story.chunks()) - len(large) <= 4
    story.check()


def test_a_chunk_does_not_hold_more_time_than_it_may(story: Growing) -> None:
    for _ in range(40):
        story.arrive(1, 10)
        story.compact(span_ns=100)
    chunks = story.chunks()
    assert all(chunk.pages[-1].entry.last_time - chunk.pages[0].entry.first_time <= 100 for chunk in chunks)
    assert len(chunks) <= 2 * 400 // 100 + 3
    story.check()


def test_a_damaged_chunk_stays_and_so_does_what_is_before_it(
    story: Growing, caplog: pytest.LogCaptureFixture
) -> None:
    for count in (40, 20, 10):
        story.arrive(1, count)
        story.compact()
    _, damaged, _ = story.chunks()
    path = pathlib.Path(damaged.path)
    data = bytearray(path.read_bytes())
    data[data.index(b"1 45")] ^= 1
    path.write_bytes(data)
    story.arrive(1, 100)
    assert story.compact().chunks == 1
    assert story.events() == [110, 40, 20]
    assert path.read_bytes() == data
    assert "a chunk is left as it is" in caplog.text
    rows, report = reading.replay(story.path)
    assert rows == [row for row in story.rows if not 40 <= row[2] < 60]
    assert [damage.path for damage in report.damages] == [str(path)]


def test_nothing_is_joined_over_a_gap(story: Growing) -> None:
    for count in (40, 20, 10):
        story.arrive(1, count)
        story.compact()
    pathlib.Path(story.chunks()[1].path).unlink()
    story.arrive(2, 100)
    assert story.compact().chunks == 1
    assert story.events() == [110, 40]
    rows, report = reading.replay(story.path)
    assert rows == [row for row in story.rows if row[1] == 2 or not 40 <= row[2] < 60]
    assert report.missing == 20


def test_a_chunk_waits_for_those_with_later_events_of_its_clients(story: Growing) -> None:
    story.arrive(1, 3)
    story.arrive(2, 3)
    story.compact()
    story.arrive(2, 500)
    story.arrive(3, 1)
    story.compact()
    assert story.events() == [507]
    story.arrive(1, 5)
    story.compact()
    story.arrive(2, 700)
    story.compact()
    assert story.events() == [1212]
    story.check()


def test_a_client_whose_segment_is_damaged_keeps_it_while_its_chunks_go_along(story: Growing) -> None:
    story.arrive(1, 3)
    story.compact()
    path = story.arrive(1, 3)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"1 4", b"1 _"))
    story.arrive(2, 9)
    assert story.compact().chunks == 1
    assert path.exists()
    path.write_bytes(data)
    story.check()
    story.compact()
    assert not path.exists()
    story.check()


def test_what_chunks_say_of_clients_is_bounded(story: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "MAX_LIST_BYTES", 2500)
    for client_id in range(1, 17):
        story.arrive(client_id, 1)
        story.compact()
    assert 1 < len(story.chunks()) < 16
    story.check()


def test_a_chunk_with_empty_parts(story: Growing) -> None:
    """A client that closes at once after it has rolled, and one that never logged anything."""
    story.arrive(1, 4)
    story.compact()
    reading.segment(story.directory, 1, 1).write_bytes(
        independent.client_record(1, 4, follows_ns=1) + independent.close_record(1, 4)
    )
    reading.segment(story.directory, 2).write_bytes(
        independent.client_record(2) + independent.close_record(2, 0)
    )
    assert story.compact().chunks == 0
    assert story.events() == [4, 0]
    story.check()
    story.arrive(3, 4)
    assert story.compact().chunks == 2
    (chunk,) = story.chunks()
    kinds = [independent.msgpack.unpackb(payload)["type"] for _, payload in chunk.clients[1].records]
    assert kinds == ["client", "close"]
    story.check()
