"""The file of a tail: reserved whole, appearing whole, recycled in the right order. Rights: test_interruption.py."""

import errno
import os
import pathlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from py_chronolog_client.clock import ClockModel
from py_chronolog_client.errors import InvalidArgumentError
from py_chronolog_client.store import owner
from py_chronolog_client.store import tail as module
from py_chronolog_client.store.tail import Claim, appends
from tests.store import independent
from tests.store.tails import CAPACITY, CLIENT_ID, TailWriter


def files(directory: pathlib.Path) -> list[str]:
    return sorted(name for name in os.listdir(directory / "store") if name != "CHRONOLOG")


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_tail_appears_whole_and_goes_whole(tmp_path: pathlib.Path, elsewhere: bool) -> None:
    real = tmp_path / "tails"
    real.mkdir()
    writer = TailWriter(tmp_path, base=2**32 - 1, elsewhere=real if elsewhere else None)
    assert files(tmp_path) == [writer.tail.path.name]
    assert writer.tail.path.is_symlink() == elsewhere
    status = writer.tail.path.stat()
    assert status.st_blocks * 512 >= status.st_size == writer.tail.layout.tail_bytes, (
        "its space is not reserved"
    )
    found = independent.read_tail(writer.tail.path.read_bytes())
    assert (found.client_id, found.boot_id) == (CLIENT_ID, owner.boot_id())
    assert (found.base, found.state, found.events) == (2**32 - 1, 0, [])
    assert struct.unpack_from("<Q", writer.tail.path.read_bytes(), 80) == (status.st_ino,)
    assert len(os.listdir(real)) == elsewhere
    writer.tail.remove()
    writer.tail.remove()
    assert files(tmp_path) == os.listdir(real) == []
    writer.close()


def test_tails_of_two_stories_lie_beside_each_other(tmp_path: pathlib.Path) -> None:
    (tmp_path / "tails").mkdir()
    first = TailWriter(tmp_path, elsewhere=tmp_path / "tails")
    with pytest.raises(InvalidArgumentError, match="still holds events: take a new client id"):
        TailWriter(tmp_path, elsewhere=tmp_path / "tails")
    assert len(os.listdir(tmp_path / "tails")) == 1
    first.append(1, b"kept")
    assert independent.read_tail(first.tail.path.read_bytes()).events == [(1, b"kept")]
    first.close()


@given(
    steps=st.lists(
        st.one_of(st.just("roll"), st.tuples(st.integers(0, 2**64 - 1), st.binary(max_size=30))), max_size=25
    ),
    base=st.sampled_from([0, 7, 2**32 - 2, 2**63]),
)
def test_what_is_written_is_what_the_document_says(
    tmp_path_factory: pytest.TempPathFactory, steps: list, base: int
) -> None:
    writer, latest = TailWriter(tmp_path_factory.mktemp("tail"), base), 0
    for number, step in enumerate(steps):
        if step == "roll" or len(writer.events) == CAPACITY:
            writer.roll(ClockModel(model_id=number, base_ns=-number, rate=0.5))
            assert writer.tail.first_free(writer.epoch) == 0
        else:
            latest = max(latest, step[0])
            writer.append(latest, step[1])
        found = independent.read_tail(writer.tail.path.read_bytes())
        assert (found.base, found.events) == (writer.base, writer.events)
        slot = len(writer.events)
        for hint in range(slot + 1):
            assert writer.tail.first_free(writer.epoch, hint) == slot
        assert writer.tail.base(writer.epoch) == writer.base
    writer.close()


def test_a_batch_that_broke_off_is_forgotten(tmp_path: pathlib.Path) -> None:
    writer = TailWriter(tmp_path)
    writer.append(1, b"a")
    writer.epoch.ends[2] = writer.epoch.ends[3] = writer.tail.layout.payload_offset + 9
    writer.tail.clear(writer.epoch, 1)
    assert writer.epoch.ends.tolist() == [writer.tail.layout.payload_offset + 1] + [0] * (CAPACITY - 1)
    assert independent.read_tail(writer.tail.path.read_bytes()).events == [(1, b"a")]
    writer.close()


def test_a_closed_tail_says_so(tmp_path: pathlib.Path) -> None:
    writer = TailWriter(tmp_path)
    writer.append(1, b"a")
    writer.tail.mark_closed(writer.epoch)
    found = independent.read_tail(writer.tail.path.read_bytes())
    assert (found.state, found.events) == (1, [(1, b"a")])
    writer.close()


def test_the_fast_path_ends_where_room_or_slots_end_and_stores_nothing_then(tmp_path: pathlib.Path) -> None:
    writer = TailWriter(tmp_path)
    tail, ticks = writer.tail, iter(range(100))

    def start() -> module.Appends:
        slot = tail.first_free(writer.epoch)
        run = appends(writer.epoch, slot, CAPACITY, tail.end(writer.epoch, slot), lambda: next(ticks), 1000)
        assert next(run) == 0
        return run

    def ends(run: module.Appends, record: bytes) -> None:
        with pytest.raises(StopIteration) as ended:
            run.send(record)
        claim = ended.value.value
        assert isinstance(claim, Claim)
        assert claim.epoch is writer.epoch

    run = start()
    assert [run.send(b"%d" % number) for number in range(3)] == [1000, 1001, 1002]
    ends(run, bytes(tail.layout.tail_bytes))
    run = start()
    for _ in range(CAPACITY - 3):
        assert run.send(b"last")
    ends(run, b"too many")
    ends(start(), b"too many")
    assert tail.first_free(writer.epoch) == CAPACITY
    events = independent.read_tail(tail.path.read_bytes()).events
    assert [record for _, record in events] == [b"0", b"1", b"2", b"last", b"last", b"last"]
    writer.close()


@pytest.mark.parametrize("error", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_where_space_cannot_be_allocated_zeros_are_written(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(module.os, "posix_fallocate", refuse)
    for size in (1, 2**16 - 1, 2**16, 2**16 + 1, 200_000):
        path = tmp_path / f"{size}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        module.reserve(descriptor, size)
        os.close(descriptor)
        assert path.read_bytes() == bytes(size)
        assert path.stat().st_blocks * 512 >= size


def test_a_tail_for_which_there_is_no_room_leaves_nothing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module.os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        TailWriter(tmp_path)
    assert files(tmp_path) == []
