"""A stretch gives the times and records of its events, in any part, or says that they are not what was written."""

import os
import pathlib
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from py_chronolog_client.clock import UNKNOWN_WINDOW_NS, ClockModel
from py_chronolog_client.errors import DamageError
from py_chronolog_client.store.blocks import read_header
from py_chronolog_client.store.stretch import BlockStretch, Descriptor, Stretch, TailStretch
from tests.store import independent
from tests.support import processes

CLIENT_ID = 3
EVENTS = st.lists(st.tuples(st.integers(0, 2**64 - 1), st.binary(max_size=9)), min_size=1, max_size=9)


def block_stretch(path: pathlib.Path, data: bytes, offset: int = 0) -> BlockStretch:
    path.write_bytes(data)
    file = Descriptor(str(path))
    header = read_header(file.number, offset)
    assert header is not None
    return BlockStretch(file, offset, header)


def tail_stretch(first: int, events: list[tuple[int, bytes]], origin: int) -> TailStretch:
    times = np.array([time for time, _ in events], np.uint64)
    ends = np.cumsum([len(record) for _, record in events]).astype(np.uint64) + np.uint64(origin)
    payload = b"".join(record for _, record in events)
    return TailStretch(first, ClockModel(), times, ends, payload, origin)


def check(stretch: Stretch, first: int, events: list[tuple[int, bytes]]) -> None:
    assert (stretch.first_sequence, stretch.end_sequence) == (first, first + len(events))
    assert (stretch.first_time, stretch.last_time) == (events[0][0], events[-1][0])
    assert stretch.times().tolist() == [time for time, _ in events]
    stretch.check()
    for start in range(len(events)):
        for stop in range(start + 1, len(events) + 1):
            expected = [record for _, record in events[start:stop]]
            assert stretch.payload(first + start, first + stop).records() == expected


@given(
    events=EVENTS, first=st.sampled_from([0, 1, 2**32 - 3, 2**64 - 11]), origin=st.sampled_from([0, 1, 2**40])
)
def test_every_part_of_a_stretch(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[int, bytes]], first: int, origin: int
) -> None:
    events.sort(key=lambda event: event[0])
    block = independent.events_block(CLIENT_ID, first, events, origin=origin)
    check(block_stretch(tmp_path_factory.getbasetemp() / "block", bytes(64) + block, 64), first, events)
    tail = tail_stretch(first, events, origin)
    check(tail, first, events)
    assert tail.behind(first) is tail
    for skipped in range(1, len(events)):
        check(tail.behind(first + skipped), first + skipped, events[skipped:])


def test_records_are_checked_before_anybody_gets_them(tmp_path: pathlib.Path) -> None:
    block = bytearray(independent.events_block(CLIENT_ID, 0, [(5, b"good"), (6, b"bad")]))
    block[128 + 32 + 4] ^= 1
    stretch = block_stretch(tmp_path / "block", bytes(block))
    assert stretch.times().tolist() == [5, 6], "the columns are sound"
    with pytest.raises(DamageError, match="checksum of the payload"):
        stretch.payload(0, 1)
    with pytest.raises(DamageError, match="checksum of the payload"):
        stretch.check()


@pytest.mark.parametrize(
    ("times", "ends", "payload"),
    [([6, 5], [1, 2], b"ab"), ([5, 6], [2, 1], b"a"), ([5, 6], [1, 3], b"ab"), ([5, 6], [1, 1], b"ab")],
)
def test_columns_that_cannot_be_are_damage_though_their_checksum_holds(
    tmp_path: pathlib.Path, times: list[int], ends: list[int], payload: bytes
) -> None:
    block = independent.block(independent.EVENTS, CLIENT_ID, 0, times, ends, payload)
    stretch = block_stretch(tmp_path / "block", block)
    for look in (stretch.times, lambda: stretch.payload(0, 2)):
        with pytest.raises(DamageError, match="decrease, or disagree"):
            look()


def test_a_file_that_is_cut_is_damage_at_its_place(tmp_path: pathlib.Path) -> None:
    block = independent.events_block(CLIENT_ID, 0, [(5, b"x" * 100)])
    stretch = block_stretch(tmp_path / "block", bytes(64) + block, 64)
    for size in (64 + 128 + 20, 64 + 10, 0):
        os.truncate(tmp_path / "block", size)
        with pytest.raises(DamageError, match="the file ends inside the block") as caught:
            stretch.payload(0, 1)
        assert (caught.value.path, caught.value.offset) == (str(tmp_path / "block"), 64)


@pytest.mark.parametrize(
    ("model", "times", "windows"),
    [
        (ClockModel(), [0, 5], [UNKNOWN_WINDOW_NS] * 2),
        (ClockModel(window_ns=0), [0, 2**64 - 1], [0, 0]),
        (
            ClockModel(base_ns=60, offset_ns=40, window_ns=7, window_rate=0.5),
            [90, 100, 101, 110],
            [12, 7, 8, 12],
        ),
        (ClockModel(base_ns=-60, offset_ns=100, window_ns=7, window_rate=0.5), [40, 60], [7, 17]),
        (ClockModel(window_ns=7, window_rate=-0.5), [0, 2**63], [7, 7]),
        (ClockModel(window_ns=7, window_rate=float("nan")), [10], [7]),
        (ClockModel(window_ns=7, window_rate=float("inf")), [0, 10], [UNKNOWN_WINDOW_NS] * 2),
        (ClockModel(window_ns=2**64 - 2, window_rate=1.0), [0, 100], [2**64 - 2, UNKNOWN_WINDOW_NS]),
    ],
    ids=str,
)
def test_windows_grow_with_the_distance_from_where_the_model_was_made(
    model: ClockModel, times: list[int], windows: list[int]
) -> None:
    stretch = TailStretch(0, model, np.array([0], np.uint64), np.array([0], np.uint64), b"", 0)
    assert stretch.windows_ns(np.array(times, np.uint64)).tolist() == windows


# -- descriptors --


def test_a_descriptor_closes_itself(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    file = Descriptor(str(tmp_path / "file"))
    number = file.number
    assert not os.get_inheritable(number)
    del file
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def test_what_is_no_file(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name in ("fifo", "."):
        with pytest.raises(DamageError, match="no regular file"):
            Descriptor(str(tmp_path / name))
    with pytest.raises(FileNotFoundError):
        Descriptor(str(tmp_path / "nothing"))
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(DamageError, match="cannot be read: Too many levels"):
        Descriptor(str(tmp_path / "loop"))


def test_the_limit_of_open_files_is_raised_and_then_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    code = f"""
import resource
from py_chronolog_client.errors import StoreError
from py_chronolog_client.store.stretch import Descriptor
resource.setrlimit(resource.RLIMIT_NOFILE, (20, 60))
files = []
try:
    while len(files) < 100:
        files.append(Descriptor({str(tmp_path / "file")!r}))
except StoreError as error:
    assert "while its EventList lives, and the limit is 60: raise it (ulimit -n)" in str(error), error
    assert files[-1].number == 59
    print("said")
"""
    done = processes.run([sys.executable, "-c", code], timeout=30)
    assert done.stdout == "said\n", processes.describe(done)
