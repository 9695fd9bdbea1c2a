"""A copy of a tail is what the tail held at one moment, whatever its writer does meanwhile."""

import pathlib
import platform
import struct
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from py_chronolog_client.clock import ClockModel
from py_chronolog_client.errors import DamageError
from py_chronolog_client.store import owner, tailcopy
from py_chronolog_client.store.format import TAIL_FILE_OFFSET
from py_chronolog_client.store.tailcopy import TailCopy, copy_tail
from tests.store import independent
from tests.store.tails import CAPACITY, CLIENT_ID, TailWriter
from tests.store.writing import acquire, connect
from tests.support import processes
from tests.support.tracing import run_injected

MAX_TIME_NS = 2**64 - 1
EVENTS = st.lists(st.tuples(st.integers(0, MAX_TIME_NS), st.binary(max_size=20)), max_size=8)


@pytest.fixture
def writer(tmp_path: pathlib.Path) -> Iterator[TailWriter]:
    writer = TailWriter(tmp_path)
    yield writer
    writer.close()


def copied(writer: TailWriter, known_end: int = -1) -> TailCopy:
    copy = copy_tail(str(writer.tail.path), CLIENT_ID, known_end)
    assert copy is not None
    return copy


def events_of(copy: TailCopy) -> dict[int, tuple[int, bytes]]:
    """Return sequence number -> (time, record)."""
    if copy.events is None:
        return {}
    first, end = copy.events.first_sequence, copy.events.end_sequence
    pairs = zip(copy.events.times().tolist(), copy.events.payload(first, end).records(), strict=True)
    return dict(zip(range(first, end), pairs, strict=True))


# -- a tail that nobody writes to --


@given(
    base=st.integers(0, 2**64 - 9), events=EVENTS, gap=st.sampled_from([0, 8, 64]), known=st.integers(0, 8)
)
def test_what_is_in_a_tail_is_copied(
    tmp_path_factory: pytest.TempPathFactory,
    base: int,
    events: list[tuple[int, bytes]],
    gap: int,
    known: int,
) -> None:
    path = tmp_path_factory.getbasetemp() / f"{CLIENT_ID:016x}.tail"
    events = sorted(events, key=lambda event: event[0])
    path.write_bytes(independent.tail(CLIENT_ID, base, events, owner.boot_id(), gap_bytes=gap))
    copy = copy_tail(str(path), CLIENT_ID)
    assert copy is not None
    assert copy.end_sequence == base + len(events)
    assert events_of(copy) == {base + place: event for place, event in enumerate(events)}
    assert (copy.disbelieved, copy.unchanged) == (False, False)
    again = copy_tail(str(path), CLIENT_ID, base + known)
    assert again is not None
    assert again.end_sequence == copy.end_sequence
    assert again.unchanged == (known == len(events) > 0)
    assert (again.events is None) == (again.unchanged or not events)


def test_where_there_is_none(tmp_path: pathlib.Path) -> None:
    assert copy_tail(str(tmp_path / f"{CLIENT_ID:016x}.tail"), CLIENT_ID) is None


def test_a_dangling_link_is_none(tmp_path: pathlib.Path) -> None:
    path = tmp_path / f"{CLIENT_ID:016x}.tail"
    path.symlink_to("/nowhere/at/all")
    assert copy_tail(str(path), CLIENT_ID) is None


def test_a_full_tail_and_the_largest_numbers(tmp_path: pathlib.Path) -> None:
    path = tmp_path / f"{CLIENT_ID:016x}.tail"
    events = [(0, b""), (0, b"a"), (2**63 - 1, b""), (2**63, b"b"), (MAX_TIME_NS, b"c"), (MAX_TIME_NS, b"")]
    base = 2**64 - 1 - len(events)
    path.write_bytes(independent.tail(CLIENT_ID, base, events, owner.boot_id(), capacity=len(events)))
    copy = copy_tail(str(path), CLIENT_ID)
    assert copy is not None
    assert copy.end_sequence == 2**64 - 1
    assert list(events_of(copy).values()) == events
    path.write_bytes(independent.tail(CLIENT_ID, base + 1, events, owner.boot_id(), capacity=len(events)))
    with pytest.raises(DamageError, match="impossible"):
        copy_tail(str(path), CLIENT_ID)


@pytest.mark.parametrize(
    ("offset", "word"),
    [
        (4096, 9),  # the first time is behind the second
        (4096 + 8 * 8, 1),  # the first end is before the payload
        (4096 + 8 * 8, 8192),  # and behind the second
        (4096 + 8 * 9, 8193),  # the second leaves the file
    ],
)
def test_columns_that_cannot_be_are_damage(tmp_path: pathlib.Path, offset: int, word: int) -> None:
    path = tmp_path / f"{CLIENT_ID:016x}.tail"
    data = independent.tail(CLIENT_ID, 0, [(5, b"a"), (6, b"b")], owner.boot_id())
    data[offset : offset + 8] = struct.pack("<Q", word)
    path.write_bytes(data)
    with pytest.raises(DamageError, match="decrease or leave the file") as caught:
        copy_tail(str(path), CLIENT_ID)
    assert caught.value.path == str(path)


def test_another_boots_tail_is_disbelieved_unless_it_is_trusted(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"{CLIENT_ID:016x}.tail"
    path.write_bytes(independent.tail(CLIENT_ID, 3, [(5, b"a")], bytes(range(16))))
    copy = copy_tail(str(path), CLIENT_ID)
    assert copy is not None
    assert (copy.disbelieved, copy.end_sequence) == (True, 4)
    monkeypatch.setenv("CHRONOLOG_TRUST_TAILS", "1")
    copy = copy_tail(str(path), CLIENT_ID)
    assert copy is not None
    assert not copy.disbelieved
    assert events_of(copy) == {3: (5, b"a")}


@pytest.mark.parametrize(("offset", "word"), [(4096, 9), (4096 + 8 * 8, 1), (4096 + 8 * 9, 8193)])
def test_a_copied_tail_of_several_moments_is_counted_and_no_damage(
    tmp_path: pathlib.Path, offset: int, word: int
) -> None:
    path = tmp_path / f"{CLIENT_ID:016x}.tail"
    data = independent.tail(CLIENT_ID, 3, [(5, b"a"), (6, b"b")], owner.boot_id())
    data[offset : offset + 8] = struct.pack("<Q", word)
    data[TAIL_FILE_OFFSET : TAIL_FILE_OFFSET + 8] = struct.pack("<Q", path.parent.stat().st_ino)
    path.write_bytes(data)
    copy = copy_tail(str(path), CLIENT_ID)
    assert copy is not None
    assert (copy.events, copy.disbelieved, copy.end_sequence) == (None, True, 5)


# -- a tail whose writer does something between two reads --


def _append(writer: TailWriter) -> None:
    writer.append(50 + writer.end_sequence, b"new %d" % writer.end_sequence)


def _roll(writer: TailWriter) -> None:
    writer.roll(ClockModel(model_id=writer.end_sequence))


def _roll_and_append(writer: TailWriter) -> None:
    _roll(writer)
    _append(writer)


def _roll_and_fill(writer: TailWriter) -> None:
    _roll(writer)
    for _ in range(CAPACITY):
        _append(writer)


@pytest.mark.parametrize("action", [_append, _roll, _roll_and_append, _roll_and_fill])
@pytest.mark.parametrize("filled", [0, 1, 3, CAPACITY - 1])
@pytest.mark.parametrize("behind", [-1, 0, 1])
def test_what_the_writer_does_meanwhile_tears_nothing(
    writer: TailWriter,
    monkeypatch: pytest.MonkeyPatch,
    action: Callable[[TailWriter], None],
    filled: int,
    behind: int,
) -> None:
    real, truth, reads = tailcopy._read, {}, [0, -1]

    def note() -> None:
        truth.update({writer.base + place: event for place, event in enumerate(writer.events)})

    def read(*arguments: object) -> bytes:
        if reads[0] == reads[1] and len(writer.events) < CAPACITY:
            action(writer)
            note()
        reads[0] += 1
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(tailcopy, "_read", read)
    for _ in range(filled):
        _append(writer)
    place = 0
    while True:
        note()
        before = writer.end_sequence
        reads[:] = 0, place
        copy = copied(writer, known_end=before - behind if behind >= 0 else -1)
        if reads[0] <= place:
            assert place > 2, "nothing was interrupted"
            return
        found = events_of(copy)
        assert found.items() <= truth.items(), "torn"
        if found:
            assert before <= copy.end_sequence <= writer.end_sequence, (
                "an event that had returned is not seen"
            )
            assert max(found) + 1 == copy.end_sequence
            assert copy.events is not None
            assert copy.events.clock.model_id in (0, copy.events.first_sequence), "the clock of other events"
        elif not copy.unchanged:  # there is nothing in the tail: the blocks have it all
            assert copy.end_sequence <= writer.end_sequence
            assert before <= writer.base or copy.end_sequence in (writer.base, before)
        _roll(writer)
        for _ in range(filled):
            _append(writer)
        place += 1


def test_a_writer_that_recycles_at_every_try_leaves_it_all_to_the_blocks(
    writer: TailWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tailcopy._words

    def words(*arguments: object) -> object:
        _roll_and_append(writer)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(tailcopy, "_words", words)
    _append(writer)
    copy = copied(writer)
    assert copy.events is None
    assert not copy.unchanged


# -- processors that show stores in another order --

PROGRAM = """
    import sys
    import py_chronolog_client as chronolog
    from py_chronolog_client.store import tailcopy
    tailcopy._IN_ORDER = False
    portal = chronolog.ClientPortalServiceConf("file", sys.argv[1], 0, 0)
    with chronolog.Client(portal, chronolog.ClientQueryServiceConf()) as client:
        series = chronolog.EventList()
        code = client.ReplayStory("chronicle", "story", 0, 2**64 - 1, series)
        print(code, [event.record_bytes().decode() for event in series], dict(client.snapshot("chronicle", "story")))
"""


@pytest.mark.skipif(
    platform.machine() not in tailcopy._NUMBERS, reason="the number of membarrier(2) is not known here"
)
@pytest.mark.parametrize("error", ["ENOSYS", "EPERM", None])
def test_without_a_memory_barrier_only_blocks_are_read_and_the_rest_is_counted(
    tmp_path: pathlib.Path, error: str | None
) -> None:
    client = connect(tmp_path / "store", client_id=5)
    handle = acquire(client)
    assert handle.log_event("in a block")
    handle.flush()
    assert handle.log_event("in the tail")
    injection = f"membarrier:error={error}" if error else "getppid:error=EIO"
    done = run_injected(injection, "-c", PROGRAM, tmp_path / "store")
    assert done.returncode == 0, processes.describe(done)
    if error is None:
        assert done.stdout.strip() == "0 ['in a block', 'in the tail'] {5: 2}"
        assert "left out" not in done.stderr
    else:
        assert done.stdout.strip() == "0 ['in a block'] {5: 1}"
        assert "the newest 1 events" in done.stderr
        assert "membarrier" in done.stderr
    assert client.Disconnect() == 0


def test_a_processor_without_a_known_barrier_is_not_trusted(
    writer: TailWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tailcopy, "_IN_ORDER", False)
    monkeypatch.setattr(tailcopy, "_MEMBARRIER", None)
    _append(writer)
    assert copied(writer).disbelieved
