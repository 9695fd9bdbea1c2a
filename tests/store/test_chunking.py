"""Writing chunks: the second implementation understands them, pages are bounded, and other events are refused."""

import os
import pathlib
import random
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from py_chronolog_client.clock import ClockModel
from py_chronolog_client.errors import InvalidArgumentError
from py_chronolog_client.page import MemoryPage, Page, Payload
from py_chronolog_client.store import chunkformat, chunking
from py_chronolog_client.store.chunk import Chunk
from py_chronolog_client.store.chunkformat import ChunkClient, ClockRun
from py_chronolog_client.store.root import StoreRoot
from tests.store import independent
from tests.store.independent import Row
from tests.support.counts import soak


def page_of(rows: Sequence[Row]) -> MemoryPage:
    times, client_ids, sequences = (
        np.array(column, np.uint64) for column in list(zip(*rows, strict=True))[:3]
    )
    return MemoryPage(times, client_ids, sequences, Payload.of([row[3] for row in rows]))


def clients_of(rows: Sequence[Row]) -> list[ChunkClient]:
    clients = []
    for client_id in sorted({row[1] for row in rows}):
        own = [row for row in rows if row[1] == client_id]
        run = ClockRun(own[0][2], own[0][0], own[-1][0], ClockModel())
        clients.append(ChunkClient(client_id, own[0][2], len(own), 3, ((9, b"\x80"),), (run,)))
    return clients


def write(
    path: pathlib.Path, clients: list[ChunkClient], pages: Iterator[Page] | list[Page]
) -> tuple[pathlib.Path, bytes]:
    root = StoreRoot.open(path / "store", create=True, new_format=2)
    written = chunking.write_chunk(root, root.path, clients, pages, lambda: None)
    data = written.path.read_bytes()
    assert (written.size_bytes, written.events) == (len(data), sum(client.count for client in clients))
    assert written.path.stat().st_mode & 0o777 == 0o600
    assert not list(root.path.glob(".tmp-*"))
    return written.path, data


def story(seed: int, sizes: Sequence[int]) -> list[Row]:
    """Return events of a few clients with many equal times."""
    numbers = random.Random(seed)
    following = {1: 0, 2: 2**32 - 2, 3: 2**63, 2**64 - 1: 7}
    times = numbers.choices([0, 1, 2, 300, 70_000, 2**64 - 1], k=len(sizes))
    rows = sorted((time, numbers.choice(list(following))) for time in times)
    found: list[Row] = []
    for (time, client_id), size in zip(rows, sizes, strict=True):
        found.append((time, client_id, following[client_id], numbers.randbytes(1) * size))
        following[client_id] += 1
    return found


@given(
    seed=st.integers(0, 2**32),
    sizes=st.lists(st.sampled_from([0, 1, 10, 255, 256, 5000]), min_size=1, max_size=40),
    cut=st.integers(1, 12),
    page_events=st.sampled_from([1, 3, 100]),
    page_bytes=st.sampled_from([1, 400, 2**20]),
)
def test_what_is_written_is_what_was_given(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    sizes: list[int],
    cut: int,
    page_events: int,
    page_bytes: int,
) -> None:
    rows = story(seed, sizes)
    clients = clients_of(rows)
    pages = [page_of(rows[start : start + cut]) for start in range(0, len(rows), cut)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunking, "PAGE_EVENTS", page_events)
        patch.setattr(chunking, "PAGE_BYTES", page_bytes)
        patch.setattr(chunking, "_FIRST_STEP", 2)
        path, data = write(tmp_path_factory.mktemp("store"), clients, pages)
    found = independent.read_chunk(data)
    assert independent.chunk_rows(found) == rows
    assert {each.client_id for each in found} == {row[1] for row in rows}
    assert all((each.segments, each.records) == (3, [(9, {})]) for each in found)
    assert path.name.startswith(f"{rows[0][0]:016x}-")
    chunk = Chunk(path)
    assert list(chunk.clients.values()) == clients
    for page in chunk.pages:
        assert page.entry.events <= page_events
        assert page.entry.payload_size <= max(page_bytes, *sizes, 0)


def test_pages_are_filled_from_small_ones(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunking, "PAGE_EVENTS", 10)
    rows = [(time, 1, time, b"x") for time in range(95)]
    path, _ = write(tmp_path, clients_of(rows), [page_of(rows[at : at + 7]) for at in range(0, 95, 7)])
    assert [page.entry.events for page in Chunk(path).pages] == [10] * 9 + [5]


def test_a_record_of_the_largest_size(tmp_path: pathlib.Path) -> None:
    """Has a page of its own, of whatever size it is: here 64 KiB where a page takes 1 KiB; the real limit in soak."""
    size = soak(2**16, 2**26)
    rows = [(1, 1, 0, b"a"), (2, 1, 1, os.urandom(size)), (3, 1, 2, b""), (3, 1, 3, b"b")]
    with pytest.MonkeyPatch.context() as patch:
        if size == 2**16:
            patch.setattr(chunking, "PAGE_BYTES", 2**10)
        path, data = write(tmp_path, clients_of(rows), [page_of(rows)])
    assert [page.entry.events for page in Chunk(path).pages] == [1, 1, 2]
    assert independent.chunk_rows(independent.read_chunk(data)) == rows


def test_a_chunk_of_clients_without_events(tmp_path: pathlib.Path) -> None:
    path, data = write(tmp_path, [ChunkClient(5, 9, 0, 1, (), ())], [])
    assert path.name.startswith("0" * 16)
    (client,) = independent.read_chunk(data)
    assert (client.client_id, client.first_sequence, client.events) == (5, 9, [])


def test_records_are_fetched_in_steps_that_follow_their_size(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunking, "PAGE_BYTES", 1000)
    fetched: list[int] = []

    class Watched(MemoryPage):
        def payload(self, start: int = 0, stop: int | None = None) -> Payload:
            found = super().payload(start, stop)
            fetched.append(len(found.data))
            return found

    rows = [(time, 1, time, b"x" * 100) for time in range(5000)]
    page = page_of(rows)
    write(tmp_path, clients_of(rows), [Watched(page.times, page.client_ids, page.sequences, page.payload())])
    assert fetched[0] == 100 * chunking._FIRST_STEP
    assert set(fetched[1:-1]) == {1000}


ROWS = [(1, 1, 0, b"a"), (1, 2, 0, b"b"), (2, 1, 1, b"c"), (3, 2, 1, b"d"), (3, 3, 0, b"e")]


@pytest.mark.parametrize(
    "rows",
    [
        ROWS[:-1],
        ROWS[1:],
        [*ROWS, (4, 3, 1, b"f")],
        [*ROWS, (4, 4, 0, b"f")],
        [*ROWS, (4, 0, 0, b"f")],
        [ROWS[1], ROWS[0], *ROWS[2:]],
        [*ROWS[:2], ROWS[3], ROWS[2], ROWS[4]],
        [*ROWS[:2], ROWS[2], ROWS[2], *ROWS[3:]],
        [*ROWS[:2], (2, 1, 2, b"c"), *ROWS[3:]],
        [],
    ],
)
@pytest.mark.parametrize("page_events", [1, 2, 100])
def test_other_events_are_refused_and_nothing_appears(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, rows: list[Row], page_events: int
) -> None:
    monkeypatch.setattr(chunking, "PAGE_EVENTS", page_events)
    write(tmp_path, clients_of(ROWS), [page_of(ROWS)])
    for path in (tmp_path / "store").glob("*.chunk"):
        path.unlink()
    with pytest.raises(InvalidArgumentError, match="not the events that the chunk shall hold"):
        write(tmp_path, clients_of(ROWS), [page_of(rows)] if rows else [])
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["CHRONOLOG"]


def test_too_many_clients_are_refused(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunking, "MAX_CLIENTS_BYTES", 100)
    with pytest.raises(
        InvalidArgumentError, match=r"what a chunk says of its 3 clients takes .* limit of 100"
    ):
        write(tmp_path, clients_of(ROWS), [page_of(ROWS)])


def test_it_appears_only_when_it_is_confirmed(tmp_path: pathlib.Path) -> None:
    root = StoreRoot.open(tmp_path / "store", create=True, new_format=2)
    seen: list[frozenset[str]] = []

    def confirm() -> None:
        seen.append(chunkformat.chunk_names(root.path))
        if len(seen) == 2:
            raise FileNotFoundError("the claim is gone")

    with pytest.raises(FileNotFoundError, match="the claim is gone"):
        chunking.write_chunk(root, root.path, clients_of(ROWS), [page_of(ROWS)], confirm)
    assert seen == [frozenset(), frozenset()]
    assert [path.name for path in root.path.iterdir()] == ["CHRONOLOG"]


def test_names_sort_by_time_and_have_one_length() -> None:
    names = [chunkformat.chunk_name(time, "0" * 32) for time in (0, 1, 255, 2**32, 2**64 - 1)]
    assert names == sorted(names)
    assert {len(name) for name in names} == {55}
    assert all(map(chunkformat.CHUNK_NAME.fullmatch, names))
