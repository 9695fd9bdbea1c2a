"""A segment: it appears whole, goes on where its client left, and after a failed sync has a successor with all that counts."""

import errno
import os
import pathlib

import pytest

from py_chronolog_client.errors import DamageError, InvalidArgumentError
from py_chronolog_client.store import segment as module
from py_chronolog_client.store.root import StoreRoot
from py_chronolog_client.store.segment import Segment
from tests.store import independent

CLIENT_ID = 7
NAME = f"{CLIENT_ID:016x}"
FIRST = independent.client_record(CLIENT_ID)
AGAIN = independent.client_record(CLIENT_ID, 2)
EVENTS = independent.events_block(CLIENT_ID, 0, [(5, b"a"), (6, b"b")])
MORE = independent.events_block(CLIENT_ID, 2, [(7, b"c" * 5000)])
CLOSE = independent.close_record(CLIENT_ID, 2)


@pytest.fixture
def root(tmp_path: pathlib.Path) -> StoreRoot:
    return StoreRoot.open(tmp_path / "store", create=True)


@pytest.fixture
def path(root: StoreRoot) -> pathlib.Path:
    (root.path / "story").mkdir()
    return root.path / "story" / f"{NAME}.log"


def names(path: pathlib.Path) -> list[str]:
    return sorted(os.listdir(path.parent))


def failing(_descriptor: int) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


# -- appearing --


def test_it_appears_with_its_first_block_and_nothing_else(root: StoreRoot, path: pathlib.Path) -> None:
    segment = Segment(root, path, FIRST)
    assert (segment.path, segment.number, segment.start, segment.closed_ns) == (path, 0, len(FIRST), 0)
    assert path.read_bytes() == FIRST
    assert os.fstat(segment.descriptor).st_nlink == 1
    assert names(path) == [path.name]
    segment.close()


def test_a_name_that_is_taken_is_left_alone(root: StoreRoot, path: pathlib.Path) -> None:
    path.write_bytes(b"somebody's")
    with pytest.raises(InvalidArgumentError, match="this client id is taken"):
        Segment(root, path, FIRST)
    assert path.read_bytes() == b"somebody's"
    assert names(path) == [path.name]


def test_a_write_that_fails_leaves_nothing(
    root: StoreRoot, path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.os, "pwritev", lambda *_: 3)
    with pytest.raises(OSError, match="No space left"):
        Segment(root, path, FIRST)
    assert names(path) == []


# -- coming back --


@pytest.mark.parametrize("number", [0, 1, 12])
def test_a_client_that_left_goes_on_in_its_last_segment(
    root: StoreRoot, path: pathlib.Path, number: int
) -> None:
    for earlier in range(number):
        path.with_suffix(f".{earlier}.log" if earlier else ".log").write_bytes(FIRST + EVENTS)
    last = path.with_suffix(f".{number}.log") if number else path
    last.write_bytes(FIRST + EVENTS + CLOSE)
    segment = Segment(root, path, AGAIN, returning=True)
    assert (segment.path, segment.number, segment.closed_ns) == (last, number, 6)
    assert last.read_bytes() == FIRST + EVENTS + CLOSE + AGAIN
    assert segment.start == last.stat().st_size
    segment.discard()
    assert last.exists(), "what was there before is never removed"


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (FIRST + EVENTS, "is not closed: take a new client id"),
        (FIRST + EVENTS + CLOSE + AGAIN, "is not closed"),
        (FIRST + EVENTS + CLOSE[:-64], "is not closed"),
        (b"", "is not closed"),
        (
            FIRST + independent.close_record(CLIENT_ID, 0),
            "closed before event 0 and cannot come back with event 2",
        ),
        (FIRST + EVENTS + MORE + independent.close_record(CLIENT_ID, 3), "closed before event 3 and cannot"),
    ],
)
def test_a_client_that_has_not_left_so_does_not_come_back(
    root: StoreRoot, path: pathlib.Path, data: bytes, sentence: str
) -> None:
    path.write_bytes(data)
    with pytest.raises(InvalidArgumentError, match=sentence):
        Segment(root, path, AGAIN, returning=True)
    assert path.read_bytes() == data


def test_a_client_that_comes_back_to_nothing_is_new(root: StoreRoot, path: pathlib.Path) -> None:
    segment = Segment(root, path, AGAIN, returning=True)
    assert path.read_bytes() == AGAIN
    segment.discard()
    assert names(path) == []


# -- writing and losing --


def test_a_file_without_a_name_is_not_written_to(
    root: StoreRoot, path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    segment = Segment(root, path, FIRST)
    end = segment.start + segment.write([EVENTS], segment.start)
    os.link(path, path.with_name("another name"))
    path.unlink()
    end += segment.write([MORE], end)
    path.with_name("another name").unlink()
    for _ in range(2):
        with pytest.raises(OSError, match="Stale file handle") as caught:
            segment.write([MORE], end)
        assert (caught.value.errno, caught.value.filename) == (errno.ESTALE, str(path))
    assert segment.deleted
    assert os.fstat(segment.descriptor).st_size == end
    assert len(caplog.records) == 1
    segment.close()


@pytest.mark.parametrize("synced", ["nothing", "some", "all"])
@pytest.mark.parametrize("taken", [0, 2])
def test_a_successor_has_all_blocks_since_the_last_good_sync(
    root: StoreRoot, path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, synced: str, taken: int
) -> None:
    monkeypatch.setattr(module, "_COPY_BYTES", 1000)
    for number in range(1, taken + 1):
        path.with_suffix(f".{number}.log").write_bytes(FIRST)
    segment = Segment(root, path, FIRST)
    middle = segment.start + segment.write([EVENTS], segment.start)
    if synced != "nothing":
        segment.sync(middle)
    end = middle + segment.write([MORE], middle)
    if synced == "all":
        segment.sync(end)
    with monkeypatch.context() as patch:
        patch.setattr(module.os, "fdatasync", failing)
        with pytest.raises(OSError, match="Input/output error"):
            segment.sync(end)
    with pytest.raises(OSError, match="an earlier sync of this file failed"):
        segment.sync(end)  # whatever the kernel says from now on
    made = segment.successor(end, lambda: True)
    assert made is not None
    successor, target = made
    blocks = {"nothing": EVENTS + MORE, "some": MORE, "all": b""}[synced]
    assert (successor.number, successor.path.name) == (taken + 1, f"{NAME}.{taken + 1}.log")
    assert successor.path.read_bytes() == FIRST + blocks
    assert target == len(FIRST + blocks)
    assert path.read_bytes() == FIRST + EVENTS + MORE, "the first stays as it is"
    assert len(names(path)) == taken + 2
    for each in (segment, successor):
        each.close()


@pytest.mark.parametrize("trouble", ["unwanted", "failing"])
def test_a_successor_that_comes_to_nothing_leaves_nothing(
    root: StoreRoot, path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    segment = Segment(root, path, FIRST)
    if trouble == "unwanted":
        assert segment.successor(segment.start, lambda: False) is None
    else:
        monkeypatch.setattr(module.os, "fdatasync", failing)
        with pytest.raises(OSError, match="Input/output error"):
            segment.successor(segment.start, lambda: True)
    assert names(path) == [path.name]
    segment.close()


# -- opening what another process has left --


def test_who_goes_on_in_a_segment_that_is_there_knows_its_first_block(
    root: StoreRoot, path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(FIRST + EVENTS)
    segment = Segment.reopened(root, path, 0, CLIENT_ID)
    assert (segment.path, segment.number, segment.start) == (path, 0, len(FIRST))
    end = len(FIRST + EVENTS)
    end += segment.write([MORE], end)
    monkeypatch.setattr(module.os, "fdatasync", failing)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        segment.sync(end)
    monkeypatch.undo()
    made = segment.successor(end, lambda: True)
    assert made is not None
    successor, _ = made
    assert successor.path.read_bytes() == FIRST + EVENTS + MORE
    successor.close()
    segment.close()
    again = Segment.reopened(root, path, 1, CLIENT_ID)
    assert again.path == successor.path
    again.discard()
    assert successor.path.exists(), "it was made elsewhere"


@pytest.mark.parametrize("data", [b"", FIRST[:-64], bytes(64) + FIRST, EVENTS[:-1], FIRST[:-1]])
def test_what_begins_with_no_whole_block_of_the_client_is_not_gone_on_with(
    root: StoreRoot, path: pathlib.Path, data: bytes
) -> None:
    path.write_bytes(data)
    with pytest.raises(DamageError):
        Segment.reopened(root, path, 0, CLIENT_ID)
    path.write_bytes(independent.client_record(CLIENT_ID + 1))
    with pytest.raises(DamageError):
        Segment.reopened(root, path, 0, CLIENT_ID)
