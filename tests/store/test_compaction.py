"""Merging segments: the story stays what it was, whoever dies, reads, comes back or does the same at the same time."""

import itertools
import os
import pathlib
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from py_chronolog_client.clock import ClockModel
from py_chronolog_client.engine.base import ScanReport, Snapshot, Writer, WriterOptions
from py_chronolog_client.engine.embedded import EmbeddedEngine
from py_chronolog_client.errors import AcquiredError, InvalidArgumentError, NotFoundError
from py_chronolog_client.page import Page
from py_chronolog_client.store import acquisition, chunking, compaction, files, growth
from py_chronolog_client.store.archive import Archive
from py_chronolog_client.store.chunkformat import chunk_names
from py_chronolog_client.store.compaction import Compaction, compact
from py_chronolog_client.store.retention import expire
from py_chronolog_client.store.root import StoreRoot
from py_chronolog_client.testing.contract.base import Row, rows_of
from py_chronolog_client.testing.manual_clock import ManualClock
from tests.store import independent, reading
from tests.store.dying import dying
from tests.support.counts import soak

CHRONICLE, STORY = reading.CHRONICLE, reading.STORY
BOOT_ID = bytes(16)


class Store:
    """A store of format 2 with one story, and what has been logged to it."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.engine = EmbeddedEngine(path, new_format=2)
        self.engine.create_chronicle(CHRONICLE, {})
        self.root = StoreRoot.open(path, create=False)
        self.clock = ManualClock(1000)
        self.writers: dict[int, Writer] = {}
        self.ends: dict[int, int] = {}
        self.rows: list[Row] = []
        self.open(0)
        self.close(0)

    @property
    def story(self) -> pathlib.Path:
        return self.engine.story_directory(CHRONICLE, STORY)

    def open(self, client_id: int, first_sequence: int | None = None) -> None:
        first = self.ends.get(client_id, 0) if first_sequence is None else first_sequence
        options = WriterOptions(client_id, self.clock, description={"rank": client_id}, first_sequence=first)
        self.writers[client_id] = self.engine.open_writer(CHRONICLE, STORY, {}, options)
        self.ends[client_id] = first

    def log(self, client_id: int, record: bytes = b"", step: int = 1) -> None:
        self.clock.now_ns += step
        sequence = self.ends[client_id]
        record = record or b"%d %d" % (client_id, sequence)
        self.rows.append((self.writers[client_id].log_event(record), client_id, sequence, record))
        self.ends[client_id] += 1

    def close(self, client_id: int) -> None:
        self.writers.pop(client_id).close()

    def compact(self) -> Compaction | None:
        return compact(self.root, self.story)

    def names(self, suffix: str = "") -> list[str]:
        return sorted(
            path.name for path in self.story.iterdir() if path.name.endswith(suffix) and path.name != "meta"
        )

    def replay(self, **options: object) -> list[Row]:
        report = ScanReport()
        rows = rows_of(self.engine.scan(CHRONICLE, STORY, verify=True, report=report, **options))  # type: ignore[arg-type]
        assert (report.damages, report.missing, report.disbelieved, report.unseen) == ([], 0, 0, 0)
        return rows

    def check(self) -> None:
        """Compare everything with what was logged."""
        assert self.replay() == sorted(self.rows)
        assert self.engine.snapshot(CHRONICLE, STORY) == self.ends
        described = self.engine.clients(CHRONICLE, STORY)
        assert {client_id: said["rank"] for client_id, said in described.items()} == {n: n for n in self.ends}


def make_store(path: pathlib.Path) -> Store:
    """Make a store to which three clients have logged."""
    made = Store(path)
    for client_id in (1, 2, 3):
        made.open(client_id)
    for number in range(30):
        made.log(1 + number % 3, step=number % 2)
        if number % 7 == 0:
            made.writers[1].flush()
    return made


@pytest.fixture
def store(tmp_path: pathlib.Path) -> Iterator[Store]:
    made = make_store(tmp_path / "store")
    yield made
    closed(made)


def closed(store: Store) -> Store:
    for client_id in list(store.writers):
        store.close(client_id)
    return store


# -- what it does --


def test_closed_clients_become_one_chunk(store: Store) -> None:
    store.close(1)
    store.close(2)
    before = store.engine.clients(CHRONICLE, STORY)
    done = store.compact()
    assert done is not None
    assert (done.client_ids, done.events) == ((0, 1, 2), 20)
    assert store.names() == [f"{3:016x}.log", f"{3:016x}.tail", done.path.name]
    assert done.size_bytes == done.path.stat().st_size
    store.check()
    assert store.engine.clients(CHRONICLE, STORY) == before
    assert store.compact() is None
    store.log(3)
    store.close(3)
    store.check()
    assert store.compact() is not None
    assert len(store.names()) == 2
    store.check()
    independent.read_story(store.story, BOOT_ID)
    assert independent.read_story(store.story, BOOT_ID) == sorted(store.rows)


def test_ranges_marks_and_clients(store: Store) -> None:
    store.close(1)
    store.close(2)
    store.compact()
    rows = sorted(store.rows)
    times = sorted({row[0] for row in rows})
    for start, end in itertools.combinations_with_replacement(times, 2):
        found = store.replay(start_ns=start, end_ns=end)
        assert found == [row for row in rows if start <= row[0] <= end]
    marks = {1: 4, 3: 7}
    assert store.replay(snapshot=marks) == [row for row in rows if row[2] < marks.get(row[1], 0)]
    assert store.replay(since=marks) == [row for row in rows if row[2] >= marks.get(row[1], 0)]
    assert store.replay(clients=[2, 3]) == [row for row in rows if row[1] in (2, 3)]


def test_a_client_comes_back_and_is_merged_again(store: Store) -> None:
    closed(store)
    segments = set(store.names(".log"))
    first = store.compact()
    assert first is not None
    for number in (1, 2, 3):
        with pytest.raises(InvalidArgumentError, match="this client id is taken"):
            store.open(1, 0)
        with pytest.raises(
            InvalidArgumentError, match=r"was closed before event .* cannot come back with event 99"
        ):
            store.open(1, 99)
        store.ends[1] = sum(row[1] == 1 for row in store.rows)
        store.clock.now_ns -= 500  # yet no time is before that of the close record
        store.open(1)
        assert store.names(".log") == [f"{1:016x}.{number}.log"]
        assert f"{1:016x}.{number}.log" not in segments
        for _ in range(3):
            store.log(1)
        store.check()
        store.close(1)
        store.check()
        done = store.compact()
        assert done is not None
        assert done.client_ids == (1,)
        store.check()
    chunks = Archive(store.story, store.names()).chunks.values()
    assert sorted(chunk.events for chunk in chunks) == [3, 6, 30]
    assert independent.read_story(store.story, BOOT_ID) == sorted(store.rows)


def test_a_client_that_comes_back_before_it_is_merged_makes_its_next_segment(store: Store) -> None:
    store.close(1)
    before = (store.story / f"{1:016x}.log").read_bytes()
    store.open(1)
    store.log(1)
    assert (store.story / f"{1:016x}.log").read_bytes() == before
    assert f"{1:016x}.1.log" in store.names()
    done = store.compact()
    assert done is not None
    assert done.client_ids == (0,), "it has a tail"
    with pytest.raises(InvalidArgumentError, match="this client is not closed"):
        store.engine.open_writer(CHRONICLE, STORY, {}, WriterOptions(1, store.clock, first_sequence=11))
    closed(store)
    store.check()
    assert store.compact() is not None
    store.check()


def test_sequences_of_64_bits_and_empty_and_large_records(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunking, "PAGE_BYTES", 2**12)
    for client_id, first in ((7, 2**32 - 1), (8, 2**64 - 9)):
        store.open(client_id, first)
        for record in (b"\0", b"x" * 70_000, os.urandom(5000), b"end"):
            store.log(client_id, record)
            store.rows.append((*store.rows.pop()[:3], record))
    options = WriterOptions(9, store.clock, description={"rank": 9})
    writer = store.engine.open_writer(CHRONICLE, STORY, {}, options)
    store.rows += [(writer.log_event(b""), 9, number, b"") for number in range(3)]
    store.ends[9] = 3
    writer.close()
    closed(store).compact()
    assert store.names(".log") == []
    store.check()


def test_a_store_of_format_1_has_no_chunks(tmp_path: pathlib.Path) -> None:
    engine = EmbeddedEngine(tmp_path / "store")
    engine.create_chronicle("c", {})
    engine.open_writer("c", "s", {}, WriterOptions(1, ManualClock(1))).close()
    root = StoreRoot.open(tmp_path / "store", create=False)
    assert root.format == 1
    with pytest.raises(
        InvalidArgumentError, match="a store of format 1 holds no chunks: make the store with format 2"
    ):
        compact(root, engine.story_directory("c", "s"))


def test_only_so_many_clients_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "MAX_CLIENTS", 2)
    closed(store)
    done = [store.compact() for _ in range(3)]
    assert [each and each.client_ids for each in done] == [(0, 1), (2, 3), None]
    store.check()
    monkeypatch.setattr(compaction, "MAX_LIST_BYTES", 0)
    for client_id in (1, 2):
        store.open(client_id)
        store.close(client_id)
    done = [store.compact() for _ in range(3)]
    assert [each and each.client_ids for each in done] == [(1,), (2,), None]
    store.check()


# -- clocks --


def models(seed: int) -> list[ClockModel]:
    numbers = random.Random(seed)
    return [
        ClockModel(
            model_id,
            model_id * 1000,
            10**9 + numbers.randrange(40),
            numbers.random() * 1e-3,
            20 + model_id,
            1e-6,
        )
        for model_id in range(1, 6)
    ]


@pytest.mark.parametrize("seed", range(6))
def test_windows_and_aligned_replays_are_what_they_were(tmp_path: pathlib.Path, seed: int) -> None:
    """Exactly: keys, order and windows, in whole and in part, with clock records, without them, and superseded."""
    directory = independent.make_story(tmp_path / "store", CHRONICLE, STORY, 2)
    numbers = random.Random(seed)
    for client_id in range(1, 6):
        own = models(seed * 10 + client_id)
        data, sequence, time_ns = independent.client_record(client_id), 0, 10**9 + 900
        for number, model in enumerate(own):
            for _ in range(numbers.randrange(1, 4)):
                events = []
                for _ in range(numbers.randrange(1, 6)):
                    time_ns += numbers.randrange(0, 200)
                    events.append((time_ns, b"%d" % sequence))
                data += independent.events_block(client_id, sequence, events, clock=model.pack())
                sequence += len(events)
            if client_id % 2:
                since = 0 if number < 3 else 5
                packed = b"".join(each.pack() for each in own[: number + 1])
                fields = {"type": "clock", "first_sequence": since, "models": packed}
                data += independent.record_block(client_id, sequence, fields)
        if client_id == 4:
            data += independent.events_block(client_id, sequence, [(2**62 + 5, b"late")])
            sequence += 1
        data += independent.close_record(client_id, sequence)
        reading.segment(directory, client_id).write_bytes(data)
    engine = EmbeddedEngine(tmp_path / "store")

    def everything() -> list[object]:
        found: list[object] = []
        for options in ({}, {"start_ns": 10**9 + 1500, "end_ns": 10**9 + 3000}, {"clients": [1, 4]}):
            for aligned in (False, True):
                pages = list(engine.scan(CHRONICLE, STORY, aligned=aligned, **options))  # type: ignore[arg-type]
                columns = [np.concatenate([getattr(page, name) for page in pages]).tolist()
                           for name in ("keys", "times", "client_ids", "sequences")]  # fmt: skip
                windows = np.concatenate([page.windows_ns() for page in pages]).tolist()
                found.append((columns, windows, [record for page in pages for record in page.records()]))
        return found

    before = everything()
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(chunking, "PAGE_EVENTS", 7)
        done = compact(StoreRoot.open(tmp_path / "store", create=False), directory)
    assert done is not None
    assert done.client_ids == (1, 2, 3, 4, 5)
    assert everything() == before
    independent.read_story(directory, BOOT_ID)


# -- what is damaged stays --


def test_a_client_with_damage_keeps_its_segments(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    closed(store)
    path = reading.segment(store.story, 2)
    data = bytearray(path.read_bytes())
    data[data.index(b"2 3")] ^= 1
    path.write_bytes(data)
    done = store.compact()
    assert done is not None
    assert done.client_ids == (0, 1, 3)
    assert path.read_bytes() == data
    assert "the segments of client 0000000000000002 are left as they are" in caplog.text
    report = ScanReport()
    rows = rows_of(store.engine.scan(CHRONICLE, STORY, verify=True, report=report))
    assert rows == [row for row in sorted(store.rows) if row[1] != 2]
    assert [damage.path for damage in report.damages] == [str(path)]


@pytest.mark.parametrize("what", ["gap", "cut", "no close record"])
def test_a_client_of_whom_something_is_missing_keeps_its_segments(tmp_path: pathlib.Path, what: str) -> None:
    directory = independent.make_story(tmp_path / "store", CHRONICLE, STORY, 2)
    data = independent.client_record(1) + independent.events_block(1, 0, [(1, b"a")])
    end = independent.close_record(1, 3)
    middle = independent.events_block(1, 1, [(2, b"b"), (3, b"c")])
    data += {"gap": end, "cut": middle[:-64] + end, "no close record": middle}[what]
    reading.segment(directory, 1).write_bytes(data)
    assert compact(StoreRoot.open(tmp_path / "store", create=False), directory) is None
    assert reading.segment(directory, 1).read_bytes() == data
    assert chunk_names(directory) == frozenset()


def test_an_error_of_the_disk_while_it_is_written_changes_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed(store)
    before = store.names()
    for name in ("fsync", "link"):
        with monkeypatch.context() as patch:
            patch.setattr(files.os, name, failing)
            with pytest.raises(OSError, match="No space left"):
                store.compact()
        assert store.names() == before
        store.check()


def failing(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


# -- readers --


def test_a_snapshot_stays_valid_and_pages_go_on(store: Store) -> None:
    snapshot = store.engine.snapshot(CHRONICLE, STORY)
    rows = sorted(store.rows)
    pages = list(store.engine.scan(CHRONICLE, STORY))
    running = store.engine.scan(CHRONICLE, STORY)
    first = next(running)
    for client_id in (1, 2, 3):
        store.log(client_id)
    closed(store).compact()
    assert store.names(".log") == []
    assert store.replay(snapshot=snapshot) == rows
    assert rows_of(iter(pages)) == rows, "its segments are deleted and still open"
    assert rows_of(iter([first, *running])) == rows
    assert store.replay(since=snapshot) == sorted(store.rows)[len(rows) :]


@pytest.mark.parametrize("comes_back", [False, True])
def test_a_follower_goes_on(store: Store, comes_back: bool) -> None:
    pages, cursor = store.engine.follow(CHRONICLE, STORY, {}, 0)
    assert rows_of(iter(pages)) == sorted(store.rows)
    seen = len(store.rows)
    for round_number in range(3):
        for client_id in (1, 2, 3):
            store.log(client_id)
        closed(store).compact()
        if comes_back:
            for client_id in (1, 2, 3):
                store.open(client_id)
                store.log(client_id)
                store.writers[client_id].flush()
        pages, cursor = store.engine.follow(CHRONICLE, STORY, cursor, 0)
        assert rows_of(iter(pages)) == sorted(store.rows[seen:]), round_number
        assert cursor == store.ends
        seen = len(store.rows)
        if not comes_back:
            for client_id in (1, 2, 3):
                store.open(client_id)


@pytest.mark.parametrize("moment", ["listed", "opened", "read", "chunks listed"])
@pytest.mark.parametrize("comes_back", [False, True])
def test_segments_that_go_at_any_moment_of_a_reader(
    store: Store, monkeypatch: pytest.MonkeyPatch, moment: str, comes_back: bool
) -> None:
    """They are merged between any two steps of a reader, and their client may have come back since."""
    from py_chronolog_client.store import clientlog, storylog

    closed(store)
    place = {
        "listed": (acquisition, "segments"),
        "opened": (clientlog.ClientLog, "_open_files"),
        "read": (clientlog.ClientLog, "_read_headers"),
        "chunks listed": (storylog, "chunk_names"),
    }[moment]
    real = getattr(*place)
    done: list[object] = []

    def merging(*arguments: object) -> object:
        found = real(*arguments)
        if not done:
            done.append(True)
            done.append(store.compact())
            if comes_back:
                for client_id in (1, 2):
                    store.open(client_id)
                    store.log(client_id)
                    store.writers[client_id].flush()
                    store.log(client_id)
        return found

    monkeypatch.setattr(*place, merging)
    rows = store.replay()
    assert done[1:], "it was not merged"
    ours = [row for row in sorted(store.rows) if row in rows]
    assert rows == ours
    assert len(rows) >= 30
    store.check()


@pytest.mark.parametrize("merged", [False, True])
def test_a_client_that_comes_back_between_the_listing_and_its_tail(
    store: Store, monkeypatch: pytest.MonkeyPatch, merged: bool
) -> None:
    """Its tail is that of a segment that was not listed, in which there are events already."""
    from py_chronolog_client.store import clientlog

    store.close(1)
    if merged:
        store.compact()
    real, done = clientlog.copy_tail, []

    def copying(path: str, client_id: int, known_end: int = -1) -> object:
        if client_id == 1 and not done:
            done.append(True)
            store.open(1)
            store.log(1)
            store.writers[1].flush()
            store.log(1)
        return real(path, client_id, known_end)

    monkeypatch.setattr(clientlog, "copy_tail", copying)
    store.check()
    assert done


def test_many_readers_during_compactions(tmp_path: pathlib.Path) -> None:
    """Threads that replay and follow while clients log, close, come back and are merged."""
    store = Store(tmp_path / "store")
    stop = threading.Event()
    troubles: list[BaseException] = []

    def replay() -> None:
        engine = EmbeddedEngine(store.path, create=False)
        marks: Snapshot = {}
        try:
            while not stop.is_set():
                report = ScanReport()
                rows = rows_of(engine.scan(CHRONICLE, STORY, verify=True, report=report))
                assert (report.damages, report.missing) == ([], 0)
                assert rows == sorted(rows)
                now: dict[int, int] = {}
                for _, client_id, sequence, record in sorted(rows, key=lambda row: row[1:3]):
                    assert sequence == now.get(client_id, 0)
                    assert record == b"%d %d" % (client_id, sequence)
                    now[client_id] = sequence + 1
                assert all(now[client_id] >= mark for client_id, mark in marks.items())
                marks = now
        except BaseException as error:
            troubles.append(error)

    def follow() -> None:
        engine = EmbeddedEngine(store.path, create=False)
        cursor: Snapshot = {}
        following: dict[int, int] = {}
        try:
            while True:
                over = stop.is_set()
                pages, cursor = engine.follow(CHRONICLE, STORY, cursor, 0.01)
                for _, client_id, sequence, _ in sorted(rows_of(iter(pages)), key=lambda row: row[1:3]):
                    assert sequence == following.get(client_id, 0)
                    following[client_id] = sequence + 1
                if over and not pages:
                    assert following == {client_id: end for client_id, end in store.ends.items() if end}
                    return
        except BaseException as error:
            troubles.append(error)

    threads = [threading.Thread(target=target) for target in (replay, follow, follow)]
    for thread in threads:
        thread.start()
    numbers = random.Random(5)
    end = time.monotonic() + soak(2, 60)
    while time.monotonic() < end and not troubles:
        client_id = numbers.randrange(1, 6)
        if client_id not in store.writers:
            store.open(client_id)
        for _ in range(numbers.randrange(1, 20)):
            store.log(client_id)
        if numbers.random() < 0.5:
            store.close(client_id)
        if numbers.random() < 0.3:
            store.compact()
    closed(store).compact()
    stop.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert not troubles, troubles[0]
    store.check()


# -- two at once --


def test_one_wins_and_the_other_notices(store: Store) -> None:
    closed(store)
    with acquisition.claimed(store.root, store.story, 0.0, acquisition.MERGING):
        with pytest.raises(AcquiredError, match="is already merging it"):
            store.compact()
        store.check()
    assert store.compact() is not None
    store.check()


def test_many_at_once(store: Store) -> None:
    closed(store)
    outcomes: list[object] = []

    def work() -> None:
        try:
            outcomes.append(store.compact())
        except AcquiredError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(outcomes) == 6
    assert sum(isinstance(outcome, Compaction) for outcome in outcomes) == 1
    assert len(store.names()) == 1
    store.check()


def test_two_chunks_of_the_same_events(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """One was stopped for so long that it was taken for dead; it could still let its chunk appear."""
    closed(store)
    segments = {path: path.read_bytes() for path in store.story.glob("*.log")}
    store.compact()
    first = store.names()
    for path, data in segments.items():
        path.write_bytes(data)
    for name in first:
        (store.story / name).rename(store.story / f".{name}")
    store.open(4)
    store.log(4)
    store.close(4)
    store.compact()
    for name in first:
        (store.story / f".{name}").rename(store.story / name)
    assert len(store.names(".chunk")) == 2
    store.check()
    for path, data in segments.items():
        path.write_bytes(data)
    store.check()
    assert store.compact() is None
    assert store.names(".log") == []
    store.check()


def test_whose_claim_was_taken_stops(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    closed(store)
    before = store.names(".log")
    real = chunking.files.appear

    def scan(*arguments: object, **options: object) -> Iterator[Page]:
        for path in store.story.glob("merging/*"):
            path.unlink()
        return pages(*arguments, **options)

    pages = compaction.merged
    monkeypatch.setattr(compaction, "merged", scan)
    with pytest.raises(NotFoundError, match="destroyed"):
        store.compact()
    monkeypatch.undo()
    assert real is chunking.files.appear
    assert store.names(".log") == before
    assert chunk_names(store.story) == frozenset()
    store.check()


def test_a_story_that_is_destroyed_meanwhile(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """And made again under the same name, with the same client: nothing of it is touched."""
    closed(store)
    pages = compaction.merged

    def scan(*arguments: object, **options: object) -> Iterator[Page]:
        found = list(pages(*arguments, **options))
        store.engine.destroy_story(CHRONICLE, STORY)
        store.ends, store.rows = {}, []
        store.open(1)
        store.log(1)
        store.close(1)
        return iter(found)

    monkeypatch.setattr(compaction, "merged", scan)
    with pytest.raises(NotFoundError, match="destroyed"):
        store.compact()
    monkeypatch.undo()
    assert store.names() == [f"{1:016x}.log"]
    store.check()


# -- deaths --

PROGRAM = """
import pathlib, sys, time
from py_chronolog_client.store.compaction import compact
from py_chronolog_client.store import chunking
from py_chronolog_client.store.root import StoreRoot
chunking.PAGE_EVENTS = 50
root = StoreRoot.open(sys.argv[1], create=False)
print("ready", flush=True)
sys.stdin.readline()
compact(root, pathlib.Path(sys.argv[2]))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_deaths_at_any_moment(tmp_path: pathlib.Path) -> None:
    store = Store(tmp_path / "store")
    numbers = random.Random()
    longest_s = 0.05
    for _ in range(soak(8, 300)):
        for client_id in range(1, 8):
            store.open(client_id)
            for _ in range(200):
                store.log(client_id)
            store.close(client_id)
        command = [sys.executable, "-c", PROGRAM, store.path, store.story]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            begin = time.monotonic()
            process.stdin.write("\n")
            process.stdin.flush()
            try:
                process.wait(numbers.uniform(0, longest_s))
                longest_s = max(0.01, time.monotonic() - begin)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                longest_s *= 1.1
        store.check()
    while store.compact() is not None:
        pass
    assert store.names(".log") == []
    assert not [name for name in store.names() if name.startswith(".tmp-") and name.endswith(".chunk")]
    store.check()
    assert independent.read_story(store.story, BOOT_ID) == sorted(store.rows)


def test_a_death_before_every_step(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """In front of every call that changes the directory, while all chunks are taken along."""
    monkeypatch.setattr(growth, "_longest_run", lambda chunks, _: list(chunks))
    calls = ("link", "unlink", "rename", "fsync", "utime", "rmdir", "mkdir")
    closed(store)
    for left in itertools.count():
        for client_id in (1, 2):
            store.open(client_id)
            store.log(client_id)
            store.close(client_id)
        done = None
        with dying(left, *calls):
            done = store.compact()
        for claim in store.story.glob("merging/*"):
            claim.unlink()  # its process is this one, which lives
        store.check()
        if done is not None:
            break
    assert left >= 15
    assert done.chunks > 0
    assert store.compact() is None
    assert len(store.names(".chunk")) == 1
    assert independent.read_story(store.story, BOOT_ID) == sorted(store.rows)
    assert store.names(".log") == []
    assert not [name for name in store.names() if name.endswith(".chunk") and name.startswith(".tmp-")]
    store.check()


# -- anything, in any order --


class StoryMachine(RuleBasedStateMachine):
    """Clients log, flush, close, come back, are merged and expire; a list says what there must be."""

    path: pathlib.Path
    numbers = itertools.count()

    @initialize()
    def begin(self) -> None:
        self.store = Store(self.path / f"{next(self.numbers)}")
        self.cursor: Snapshot = {}
        self.followed: list[Row] = []
        self.snapshots: list[tuple[Snapshot, list[Row]]] = []
        self.gone: set[Row] = set()

    @rule(client_id=st.integers(1, 3), count=st.integers(1, 5), step=st.integers(0, 2), flush=st.booleans())
    def log(self, client_id: int, count: int, step: int, flush: bool) -> None:
        if client_id not in self.store.writers:
            self.store.open(client_id)
        for _ in range(count):
            self.store.log(client_id, step=step)
        if flush:
            self.store.writers[client_id].flush()

    @rule(client_id=st.integers(1, 3))
    def close(self, client_id: int) -> None:
        if client_id in self.store.writers:
            self.store.close(client_id)

    @rule(span_ns=st.sampled_from([3, 2**63]))
    def compact(self, span_ns: int) -> None:
        compact(self.store.root, self.store.story, span_ns)

    @rule(left=st.integers(0, 25))
    def die_in_a_compaction(self, left: int) -> None:
        with dying(left, "link", "unlink", "rename", "fsync", "utime"):
            self.store.compact()
        for claim in self.store.story.glob("merging/*"):
            claim.unlink()

    @rule()
    def follow(self) -> None:
        pages, self.cursor = self.store.engine.follow(CHRONICLE, STORY, self.cursor, 0)
        self.followed += rows_of(iter(pages))
        assert {*self.followed} | self.gone == {*self.store.rows} | self.gone

    @rule(age=st.integers(0, 10))
    def expire(self, age: int) -> None:
        before_ns = self.store.clock.now_ns - age
        rows = sorted(self.store.rows)
        expired = expire(self.store.root, self.store.story, before_ns)
        self.store.rows = self.store.replay()
        gone = {*rows} - {*self.store.rows}
        assert expired.events == len(gone)
        assert all(row[0] < before_ns for row in gone)
        self.gone |= gone

    @rule()
    def take_a_snapshot(self) -> None:
        self.snapshots.append((self.store.engine.snapshot(CHRONICLE, STORY), sorted(self.store.rows)))

    @rule(start=st.integers(990, 1030), length=st.integers(0, 20))
    def range(self, start: int, length: int) -> None:
        found = self.store.replay(start_ns=start, end_ns=start + length)
        assert found == [row for row in sorted(self.store.rows) if start <= row[0] <= start + length]

    @invariant()
    def everything_is_there(self) -> None:
        if hasattr(self, "store"):
            self.store.check()
            for snapshot, rows in self.snapshots:
                assert self.store.replay(snapshot=snapshot) == [row for row in rows if row not in self.gone]

    def teardown(self) -> None:
        if hasattr(self, "store"):
            closed(self.store)
            self.store.check()


def test_whatever_happens(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunking, "PAGE_EVENTS", 4)

    class Machine(StoryMachine):
        path = tmp_path

    run_state_machine_as_test(
        Machine, settings=settings(max_examples=soak(15, 500), stateful_step_count=20, deadline=None)
    )
