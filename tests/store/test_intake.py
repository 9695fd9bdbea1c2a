"""What arrives at a keeper is there once, in order and whole, whenever the keeper dies and whatever is sent."""

import errno
import os
import pathlib
import random
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from py_chronolog_client.errors import ClosedError, DamageError, InvalidArgumentError
from py_chronolog_client.store import segment as segments
from py_chronolog_client.store.catalog import Catalog
from py_chronolog_client.store.intake import Intake
from py_chronolog_client.store.root import StoreRoot
from tests.store import independent, reading
from tests.store.programs import taken
from tests.store.shipping import CLIENT, MANY, Client
from tests.support import processes
from tests.support.counts import soak

FOREIGN = CLIENT + 1
EVENTS = [(10, b"one"), (11, b"two"), (11, b"three")]


@pytest.fixture
def store(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "store"


def take(store: pathlib.Path, client_id: int = CLIENT) -> Intake:
    directory = store / "chronicles"
    if not directory.exists():
        reading.make_story(store)
    (directory,) = store.glob("chronicles/*/stories/*")
    return Intake(StoreRoot.open(store, create=False), directory, client_id)


def story(store: pathlib.Path) -> pathlib.Path:
    (directory,) = store.glob("chronicles/*/stories/*")
    return directory


def check(store: pathlib.Path, expected: list[tuple[int, int, int, bytes]]) -> None:
    """Check that both readers find exactly these events and nothing wrong."""
    found = reading.replay(store)
    assert found.rows == expected
    assert not found.report.damages
    assert not found.report.missing
    assert not found.report.left_out()
    assert independent.read_story(story(store), bytes(16)) == sorted(expected)


def refused(intake: Intake, block: bytes, match: str) -> None:
    before = intake.sequence
    with pytest.raises(InvalidArgumentError, match=match):
        intake.append(block)
    assert intake.sequence == before


def test_a_client_from_its_first_record_to_its_goodbye(store: pathlib.Path) -> None:
    intake, client = take(store), Client(CLIENT, 1, 20)
    assert (intake.sequence, intake.is_empty) == (0, True)
    expected = 0
    for number, block in enumerate(client.blocks_from(0, has_client=False)):
        sequence = intake.append(block)
        check(store, client.rows[:sequence])
        assert sequence >= expected
        expected = sequence
        is_closed = number == len(client.blocks) + 1
        assert reading.tail(story(store), CLIENT).exists() is not is_closed
    assert not intake.is_empty
    assert intake.sync() == intake.sequence == len(client.events)
    intake.close()
    with pytest.raises(ClosedError):
        intake.append(client.blocks[0][1])
    check(store, client.rows)


@pytest.mark.parametrize("kind", ["events", "client", "close"])
def test_every_truncation_of_the_last_block_is_recovered(store: pathlib.Path, kind: str) -> None:
    """A sender goes on from what the intake then says, with a shorter block as well."""
    client = Client(CLIENT, 2, 3, events=4, record_bytes=30)
    blocks = list(client.blocks_from(0, has_client=False))
    count = {"client": 1, "events": 4, "close": 5}[kind]
    take(store).close()
    path, tail = reading.segment(story(store), CLIENT), reading.tail(story(store), CLIENT)
    whole, before = b"".join(blocks[:count]), b"".join(blocks[: count - 1])
    start = len(before)
    known = client.blocks[count - 2][0] if kind == "events" else len(client.events) if kind == "close" else 0
    for length in range(start, len(whole)):
        path.write_bytes(whole[:length])
        tail.unlink(missing_ok=True)
        if kind == "close":
            tail.write_bytes(independent.tail(CLIENT, 0, [], bytes(16), capacity=1))
        intake = take(store)
        assert (intake.sequence, intake.is_empty) == (known, kind == "client")
        assert path.exists() is (kind != "client")
        if kind != "client":
            check(store, client.rows[:known])
        for block in client.blocks_from(intake.sequence, has_client=not intake.is_empty):
            intake.append(block)
        intake.close()
        check(store, client.rows)
        assert not tail.exists()


def test_what_an_unfinished_block_has_left_is_never_taken_for_a_block(store: pathlib.Path) -> None:
    """A long block that holds a copy of another is cut off, and a shorter one is written in its place."""
    inner = independent.events_block(CLIENT, 1, [(99, b"never logged")])
    take(store).close()
    start = independent.client_record(CLIENT)
    filler = b"x" * (64 * 4 - (128 + 16) % 64)
    unfinished = independent.events_block(CLIENT, 0, [(5, filler + inner + b"y" * 1000)])[:-64]
    assert (start + unfinished).find(inner) % 64 == 0
    path = reading.segment(story(store), CLIENT)
    path.write_bytes(start + unfinished)
    intake = take(store)
    assert intake.sequence == 0
    intake.append(independent.events_block(CLIENT, 0, [(5, b"short")]))
    check(store, [(5, CLIENT, 0, b"short")])
    intake.append(independent.close_record(CLIENT, 1))
    check(store, [(5, CLIENT, 0, b"short")])
    again = take(store)
    assert again.sequence == 1


def test_damage_in_the_middle_is_left_for_readers_to_report(store: pathlib.Path) -> None:
    client = Client(CLIENT, 3, 4)
    blocks = list(client.blocks_from(0, has_client=False))
    take(store).close()
    path = reading.segment(story(store), CLIENT)
    second = len(blocks[0]) + len(blocks[1])
    for place in (second, second + 200):
        data = bytearray(b"".join(blocks[:4]))
        data[place] ^= 1
        path.write_bytes(data)
        intake = take(store)
        assert intake.sequence == client.blocks[3][0]
        intake.append(blocks[4])
        found = reading.replay(store)
        lost = range(client.blocks[1][0], client.blocks[2][0])
        assert found.rows == [row for row in client.rows if row[2] not in lost]
        assert found.report.damages
        intake.close()


def test_a_segment_that_begins_with_damage_takes_nothing(store: pathlib.Path) -> None:
    take(store).close()
    path = reading.segment(story(store), CLIENT)
    blocks = list(Client(CLIENT, 3, 2).blocks_from(0, has_client=False))
    data = bytes(64) + b"".join(blocks)
    path.write_bytes(data)
    with pytest.raises(DamageError):
        take(store)
    assert path.read_bytes() == data
    path.write_bytes(bytes(100_000))  # a power cut before the first sync
    assert take(store).is_empty


def test_duplicates_are_acknowledged_and_not_there_twice(store: pathlib.Path) -> None:
    intake, client = take(store), Client(CLIENT, 4, 10)
    clock = independent.record_block(
        CLIENT, client.blocks[3][0], {"type": "clock", "first_sequence": 0, "models": b""}
    )
    blocks = list(client.blocks_from(0, has_client=False))
    blocks.insert(7, clock)  # its place is behind, which is where it came from a tail
    numbers = random.Random(4)
    for place, block in enumerate(blocks):
        sequence = intake.append(block)
        size_bytes = reading.segment(story(store), CLIENT).stat().st_size
        for _ in range(3):
            assert intake.append(blocks[numbers.randrange(place + 1)]) == sequence
            if numbers.random() < 0.3:
                intake.close()
                intake = take(store)
        assert reading.segment(story(store), CLIENT).stat().st_size == size_bytes
    assert reading.segment(story(store), CLIENT).read_bytes() == b"".join(blocks)
    check(store, client.rows)


def test_what_does_not_follow_is_refused(store: pathlib.Path) -> None:
    intake = take(store)
    refused(intake, independent.events_block(CLIENT, 0, EVENTS), "before the client's record")
    refused(intake, independent.close_record(CLIENT, 0), "before the client's")
    refused(intake, independent.client_record(FOREIGN), "is client")
    for fields in ({"client_id": FOREIGN, "first_sequence": 0}, {"client_id": CLIENT, "first_sequence": 1}):
        record = independent.record_block(CLIENT, 0, {"type": "client", **fields})
        refused(intake, record, "names another client or place")
    assert intake.is_empty
    assert not list(story(store).glob("*.log"))
    intake.append(independent.client_record(CLIENT))
    refused(intake, independent.client_record(CLIENT, opened_ns=7), "has not left")
    intake.append(independent.events_block(CLIENT, 0, EVENTS))
    refused(intake, independent.events_block(CLIENT, 4, EVENTS), "events 3 to 3 are missing")
    refused(intake, independent.events_block(CLIENT, 2, EVENTS), "events 2 to 4 repeats those below 3")
    refused(intake, independent.events_block(CLIENT, 3, [(9, b"")]), "earlier")
    refused(intake, independent.events_block(FOREIGN, 3, EVENTS), "is client")
    refused(intake, independent.close_record(CLIENT, 4), "before event 4, not 3")
    refused(intake, independent.close_record(CLIENT, 2), "before event 2, not 3")
    refused(
        intake,
        independent.record_block(CLIENT, 3, {"type": "close", "next_sequence": 2}),
        "names another place",
    )
    refused(intake, independent.record_block(CLIENT, 4, {"type": "clock"}), "before event 4, not 3")
    refused(intake, independent.block(3, CLIENT, 3, [], [], b""), "unknown kind")
    check(store, reading.rows(CLIENT, 0, EVENTS))
    intake.append(independent.close_record(CLIENT, 3))
    refused(intake, independent.events_block(CLIENT, 3, [(20, b"")]), "before the client's record")
    check(store, reading.rows(CLIENT, 0, EVENTS))


def test_what_makes_no_sense_is_refused(store: pathlib.Path) -> None:
    intake = take(store)
    intake.append(independent.client_record(CLIENT))
    for times, ends in (
        ([2, 1], [1, 3]),
        ([1, 2], [3, 1]),
        ([1, 2], [1, 2]),
        ([1, 2], [1, 4]),
        ([], []),
    ):
        block = independent.block(independent.EVENTS, CLIENT, 0, times, ends, b"abc")
        refused(intake, block, "make no sense")
    refused(intake, independent.block(independent.RECORD, CLIENT, 0, [], [], b"\xc1"), "cannot be read")
    refused(intake, independent.block(independent.RECORD, CLIENT, 0, [1], [3], b"abc"), "unknown kind")
    large = {"type": "clock", "models": bytes(5 * 2**20)}
    refused(intake, independent.record_block(CLIENT, 0, large), "is over")
    huge = independent.block(independent.EVENTS, CLIENT, 0, [1], [2**26 + 1], bytes(2**26 + 1))
    refused(intake, huge, "over the limit")
    check(store, [])


def test_every_flipped_bit_and_every_length_is_refused(store: pathlib.Path) -> None:
    intake = take(store)
    intake.append(independent.client_record(CLIENT))
    block = independent.events_block(CLIENT, 0, EVENTS)
    for bit in range(8 * len(block)):
        flipped = bytearray(block)
        flipped[bit // 8] ^= 1 << bit % 8
        refused(intake, bytes(flipped), ".")
    for length in range(len(block)):
        refused(intake, block[:length], ".")
    refused(intake, block + bytes(64), "came with")
    intake.append(block)
    check(store, reading.rows(CLIENT, 0, EVENTS))


def test_a_client_that_comes_back_goes_on_in_the_same_segment(store: pathlib.Path) -> None:
    intake = take(store)
    first = [
        independent.client_record(CLIENT),
        independent.events_block(CLIENT, 0, EVENTS),
        independent.close_record(CLIENT, 3),
    ]
    second = [
        independent.client_record(CLIENT, 3, opened_ns=8),
        independent.events_block(CLIENT, 3, [(12, b"four")]),
        independent.close_record(CLIENT, 4),
    ]
    for block in first:
        intake.append(block)
    refused(intake, independent.client_record(CLIENT, 4), "left before event 3, not 4")
    for block in [*first, *second[:1]]:  # a sender that begins again at its last number repeats its records
        intake.append(block)
    assert reading.tail(story(store), CLIENT).exists()
    intake = take(store)
    for block in [*first, *second]:
        intake.append(block)
    assert [path.name for path in story(store).glob("*[0-9].log")] == [f"{CLIENT:016x}.log"]
    assert reading.segment(story(store), CLIENT).read_bytes() == b"".join(first + second)
    assert not reading.tail(story(store), CLIENT).exists()
    check(store, reading.rows(CLIENT, 0, [*EVENTS, (12, b"four")]))


def test_a_new_client_may_begin_with_any_number(store: pathlib.Path) -> None:
    intake = take(store)
    assert intake.append(independent.client_record(CLIENT, 2**40)) == 2**40
    intake.append(independent.events_block(CLIENT, 2**40, EVENTS))
    assert take(store).sequence == 2**40 + 3
    check(store, reading.rows(CLIENT, 2**40, EVENTS))


def failing(monkeypatch: pytest.MonkeyPatch, name: str, error: int, *, times: int = 1) -> Callable[[], bool]:
    """Let the next calls of a function of the operating system fail; return what tells whether they have."""
    real, left = getattr(os, name), [times]

    def fail(*args: object, **options: object) -> object:
        if left[0]:
            left[0] -= 1
            raise OSError(error, os.strerror(error))
        return real(*args, **options)

    monkeypatch.setattr(segments.os, name, fail)
    return lambda: not left[0]


def test_a_failing_disk_refuses_and_the_intake_goes_on(
    store: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    intake, client = take(store), Client(CLIENT, 5, 20)
    for block in client.blocks_from(0, has_client=False):
        for error in (errno.ENOSPC, errno.EIO):
            has_failed = failing(monkeypatch, "pwritev", error)
            with pytest.raises(OSError, match=os.strerror(error)):
                intake.append(block)
            assert has_failed()
        intake.append(block)
    check(store, client.rows)


def test_a_failed_sync_goes_on_in_a_new_segment(store: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    intake, client = take(store), Client(CLIENT, 6, 12)
    for number, block in enumerate(client.blocks_from(0, has_client=False)):
        sequence = intake.append(block)
        if number % 8 == 3:
            failing(monkeypatch, "fdatasync", errno.EIO)
        if number % 8 == 7:  # the new segment as well
            failing(monkeypatch, "fdatasync", errno.EIO, times=2)
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                intake.sync()
        assert intake.sync() == sequence
        check(store, client.rows[:sequence])
        if number % 3 == 2:
            intake.close()
            intake = take(store)
            assert intake.sequence == sequence
    assert len(list(story(store).glob("*.log"))) > 2


def test_a_story_that_is_destroyed_takes_nothing(store: pathlib.Path) -> None:
    """Nobody holds a story because of an intake; what comes after is refused, and nothing appears again."""
    intake = take(store)
    for block in list(Client(CLIENT, 7, 3).blocks_from(0, has_client=False))[:3]:
        intake.append(block)
    Catalog(StoreRoot.open(store, create=False)).destroy_story(reading.CHRONICLE, reading.STORY)
    with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
        intake.append(Client(CLIENT, 7, 3).blocks[2][1])
    assert not list(store.glob("chronicles/*/stories/*"))


@pytest.mark.slow
@pytest.mark.timeout(soak(60, 1200))
def test_sigkill_at_a_random_moment(store: pathlib.Path) -> None:
    """What was acknowledged is there, once, and the next process goes on behind it."""
    seed = random.randrange(2**32)
    numbers = random.Random(seed)
    print(f"seed {seed}")
    client = Client(CLIENT, seed, MANY)
    take(store).close()
    for _ in range(soak(5, 400)):
        reader, writer = os.pipe()
        argv = [sys.executable, taken.__file__, str(store), str(seed), str(writer)]
        with subprocess.Popen(argv, env=processes.child_environment(), pass_fds=[writer]) as process:
            os.close(writer)
            patience = numbers.randrange(MANY // 4)
            data = b""
            while len(data) < patience * taken.NOTE.size and (more := os.read(reader, 4096)):
                data += more
            process.kill()
            code = process.wait()
        while more := os.read(reader, 4096):
            data += more
        os.close(reader)
        assert code in (-signal.SIGKILL, 0)
        told = [number for (number,) in taken.NOTE.iter_unpack(data)]
        intake = take(store)
        assert intake.sequence >= max(told, default=0)
        if intake.is_empty:
            continue
        check(store, client.rows[: intake.sequence])
        intake.close()
    intake = take(store)
    for block in client.blocks_from(intake.sequence, has_client=not intake.is_empty):
        intake.append(block)
    check(store, client.rows)


def test_a_store_with_chunks_is_none_for_a_keeper(tmp_path: pathlib.Path) -> None:
    """It would go on in segments that may be deleted at any moment."""
    root = StoreRoot.open(tmp_path / "store", create=True, new_format=2)
    with pytest.raises(InvalidArgumentError, match="a store of format 2 does not allow"):
        Intake(root, root.path, 1)
