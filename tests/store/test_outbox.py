"""An outbox ships every event once, in blocks that a keeper can append as they are, wherever it begins again."""

import pathlib
import random
import subprocess
import sys
import time

import pytest

from py_chronolog_client.client import Client
from py_chronolog_client.clock import SystemClock
from py_chronolog_client.engine.base import WriterOptions
from py_chronolog_client.engine.embedded import EmbeddedEngine
from py_chronolog_client.errors import DamageError
from py_chronolog_client.store import outbox as outbox_module
from py_chronolog_client.store.format import HEADER_BYTES, KIND_EVENTS, BlockHeader, decode_map, encode_record
from py_chronolog_client.store.outbox import Outbox
from tests.store.writing import (  # noqa: F401  `small` is a fixture
    CHRONICLE,
    STORY,
    Logged,
    acquire,
    connect,
    files,
    read,
    seeded,
    small,
)
from tests.support import processes
from tests.support.counts import soak
from tests.support.launch import python_argv

CLIENT_ID = 7


class Receiver:
    """A keeper as simple as can be: whole blocks one after another, events in order and without a gap, records once."""

    def __init__(self) -> None:
        self.segment = bytearray()
        self.sequence = 0
        self.kinds: list[str] = []
        self.records: set[bytes] = set()

    def receive(self, pieces: list[bytes | memoryview]) -> None:
        block = b"".join(pieces)
        header = BlockHeader.unpack(block)
        assert header is not None
        assert len(block) == header.block_bytes
        assert header.client_id == CLIENT_ID
        if header.kind == KIND_EVENTS:
            assert header.first_sequence == self.sequence, "a gap, or something twice"
            self.sequence = header.end_sequence
        elif block in self.records:
            return
        else:
            self.records.add(block)
            payload = block[HEADER_BYTES : HEADER_BYTES + header.payload_bytes]
            self.kinds.append(decode_map(payload)["type"])
            if not self.segment:
                self.sequence = header.first_sequence
        self.segment += block

    def stored_at(self, directory: pathlib.Path) -> list[Logged]:
        """Write everything as a segment of a store, and read that."""
        with connect(directory, client_id=CLIENT_ID) as client:
            acquire(client)
        (path,) = files(directory, "*.log")
        path.write_bytes(self.segment)
        return read(directory)


def story_directory(store: pathlib.Path) -> pathlib.Path:
    return EmbeddedEngine(store, create=False).story_directory(CHRONICLE, STORY)


def drain(outbox: Outbox, receiver: Receiver, blocks: int = 10**6) -> int:
    for taken in range(blocks):
        pieces = outbox.take()
        if pieces is None:
            return taken
        receiver.receive(pieces)
    return blocks


def act(chance: random.Random, client: Client, number: int, logged: list[bytes]) -> None:
    """Do something that a writer does."""
    handle = acquire(client)
    match chance.randrange(8):
        case 0:
            handle.flush()
        case 1:
            batch = [b"%d.%d" % (number, part) for part in range(chance.randrange(1, 60))]
            assert handle.log_events(batch)
            logged += batch
        case 2:
            logged.append(b"%d." % number + b"x" * chance.choice([0, 100, 3000, 20_000]))
            assert handle.log_event(logged[-1])
        case 3:
            client.ReleaseStory(CHRONICLE, STORY)
        case _:
            for part in range(chance.randrange(1, 30)):
                logged.append(f"{number}.{part} ü".encode())
                assert handle.log_event(logged[-1])


@pytest.mark.parametrize("round_number", range(soak(20, 500)))
@pytest.mark.parametrize("reclaims", [False, True])
@pytest.mark.usefixtures("small")
def test_everything_is_shipped_once_wherever_it_begins_again(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, round_number: int, reclaims: bool
) -> None:
    monkeypatch.setattr(outbox_module, "_RECLAIM_BYTES", 4096)
    chance = seeded("outbox", round_number)
    receiver, logged = Receiver(), [b"first"]
    with connect(tmp_path / "store", client_id=CLIENT_ID) as client:
        acquire(client).log_event("first")
        outbox = Outbox(story_directory(tmp_path / "store"), CLIENT_ID)
        for number in range(60):
            act(chance, client, number, logged)
            drain(outbox, receiver, chance.choice([0, 1, 2, 10**6]))
            if reclaims:
                outbox.reclaim(receiver.sequence)
            if chance.random() < 0.2:  # the connection was lost, and the receiver says how far it is
                if chance.random() < 0.5:  # and so was the sender
                    outbox = Outbox(story_directory(tmp_path / "store"), CLIENT_ID)
                outbox.rewind(receiver.sequence, has_client=bool(receiver.segment))
        acquire(client).log_event("last")
        logged.append(b"last")
    drain(outbox, receiver)
    assert outbox.ended
    assert receiver.kinds[-1] == "close"
    found = receiver.stored_at(tmp_path / "copy")
    assert [event.record for event in found] == logged
    if not reclaims:
        assert found == read(tmp_path / "store")


def used_bytes(store: pathlib.Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in files(store, "*.log"))


def test_what_was_received_takes_no_space(tmp_path: pathlib.Path) -> None:
    receiver = Receiver()
    with connect(tmp_path / "store", client_id=CLIENT_ID) as client:
        handle = acquire(client)
        outbox = Outbox(story_directory(tmp_path / "store"), CLIENT_ID)
        for number in range(16):
            handle.log_events([b"%d" % number + bytes(100_000) for _ in range(10)])
            handle.flush()
            drain(outbox, receiver)
            outbox.reclaim(receiver.sequence)
            assert used_bytes(tmp_path / "store") < 4 * 2**20
        (path,) = files(tmp_path / "store", "*.log")
        assert path.stat().st_size > 15 * 2**20
        again = Outbox(story_directory(tmp_path / "store"), CLIENT_ID)
        again.rewind(receiver.sequence, has_client=True)
        assert again.take() is None
        handle.log_event("goes on")
        assert drain(again, receiver) == 1


def test_a_store_with_a_limit_refuses_events_until_there_is_room(tmp_path: pathlib.Path) -> None:
    engine = EmbeddedEngine(tmp_path / "store", segment_limit_bytes=4 * 2**20)
    engine.create_chronicle(CHRONICLE, {})
    writer = engine.open_writer(CHRONICLE, STORY, {}, WriterOptions(CLIENT_ID, SystemClock()))
    outbox, receiver = Outbox(engine.story_directory(CHRONICLE, STORY), CLIENT_ID), Receiver()
    accepted = sum(writer.log_event(bytes(100_000)) > 0 for _ in range(200))
    assert 40 < accepted < 80
    assert dict(writer.statistics().lost) == {"EDQUOT": 200 - accepted}
    drain(outbox, receiver)
    outbox.reclaim(receiver.sequence)
    writer.flush()
    assert writer.log_event("there is room again")
    writer.close()
    drain(outbox, receiver)
    assert receiver.sequence == accepted + 1
    assert outbox.ended


def test_a_tail_is_shipped_without_the_writers_doing(tmp_path: pathlib.Path) -> None:
    receiver = Receiver()
    with connect(tmp_path / "store", client_id=CLIENT_ID) as client:
        handle = acquire(client)
        outbox = Outbox(story_directory(tmp_path / "store"), CLIENT_ID)
        assert drain(outbox, receiver) == 1, "the client record"
        for number in range(5):
            handle.log_event(str(number))
            assert drain(outbox, receiver) == 1
            assert receiver.sequence == number + 1
        assert not outbox.ended
        handle.flush()
        assert drain(outbox, receiver) == 0, "its events were shipped out of the tail"
    assert drain(outbox, receiver) == 1
    assert outbox.ended


def test_a_client_that_begins_somewhere(tmp_path: pathlib.Path) -> None:
    engine = EmbeddedEngine(tmp_path / "store")
    engine.create_chronicle(CHRONICLE, {})
    writer = engine.open_writer(
        CHRONICLE, STORY, {}, WriterOptions(CLIENT_ID, SystemClock(), first_sequence=2**40)
    )
    writer.log_event("a")
    receiver = Receiver()
    drain(Outbox(story_directory(tmp_path / "store"), CLIENT_ID), receiver)
    assert receiver.sequence == 2**40 + 1
    writer.close()


def test_what_a_killed_client_left_is_shipped_by_another_process(tmp_path: pathlib.Path) -> None:
    code = f"""
        import os, signal
        from tests.store.writing import acquire, connect
        handle = acquire(connect({str(tmp_path / "store")!r}, client_id={CLIENT_ID}))
        for number in range(10_000):
            handle.log_event(str(number))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = processes.run([sys.executable, "-B", *python_argv("-c", code)], timeout=30)
    assert done.returncode == -9, processes.describe(done)
    receiver = Receiver()
    outbox = Outbox(story_directory(tmp_path / "store"), CLIENT_ID)
    drain(outbox, receiver)
    assert receiver.sequence == 10_000
    assert not outbox.ended


def test_events_that_are_missing_are_damage_and_not_skipped(tmp_path: pathlib.Path) -> None:
    with connect(tmp_path / "store", client_id=CLIENT_ID) as client:
        handle = acquire(client)
        for number in range(3):
            handle.log_event(str(number))
            handle.flush()
    (path,) = files(tmp_path / "store", "*.log")
    data = path.read_bytes()
    places = [place for place in range(0, len(data), 64) if data[place:].startswith(b"CLOGBLK1")]
    path.write_bytes(data[: places[2]] + data[places[3] :])
    receiver = Receiver()
    with pytest.raises(DamageError, match="the events 1 to 1 are missing"):
        drain(Outbox(story_directory(tmp_path / "store"), CLIENT_ID), receiver)
    assert receiver.sequence == 1


def test_remove_leaves_the_files_of_others(tmp_path: pathlib.Path) -> None:
    for client_id in (CLIENT_ID, 8):
        with connect(tmp_path / "store", client_id=client_id) as client:
            acquire(client).log_event("x")
    Outbox(story_directory(tmp_path / "store"), CLIENT_ID).remove()
    assert [path.name for path in files(tmp_path / "store")] == [f"{8:016x}.log"]


def test_what_a_clock_has_learned_is_shipped_although_events_behind_it_were_shipped_before(
    tmp_path: pathlib.Path,
) -> None:
    receiver = Receiver()
    with connect(tmp_path / "store", client_id=CLIENT_ID) as client:
        handle = acquire(client)
        outbox = Outbox(story_directory(tmp_path / "store"), CLIENT_ID)
        drain(outbox, receiver)
        (segment,) = files(tmp_path / "store", "*.log")
        record = encode_record(CLIENT_ID, 0, {"type": "clock", "first_sequence": 0, "models": b""})
        handle.log_event("shipped out of the tail")
        drain(outbox, receiver)
        with segment.open("ab") as file:
            file.write(record)
        assert drain(outbox, receiver) == 1
        assert receiver.kinds[-1] == "clock"


def test_a_tail_that_is_full_soon_is_held_back_until_it_is_a_block_or_the_writer_pauses(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "_SOON_S", 3600.0)
    receiver = Receiver()
    with connect(tmp_path / "store", client_id=CLIENT_ID) as client:
        handle = acquire(client)
        outbox = Outbox(story_directory(tmp_path / "store"), CLIENT_ID)

        def sent_after(events: int) -> tuple[int, bool]:
            for _ in range(events):
                assert handle.log_event("x" * 100)
            drain(outbox, receiver)
            return receiver.sequence, outbox.holds_back

        assert sent_after(10) == (10, False)
        assert sent_after(10) == (20, False), "nobody knows yet how fast it fills"
        assert sent_after(1000) == (20, True)
        assert sent_after(1000) == (20, True)
        assert sent_after(0) == (2020, False), "it does not fill any more"
        assert sent_after(1) == (2020, True)
        sequence, holds_back = sent_after(8000)
        assert 2021 < sequence < 10_021
        assert holds_back, "the block was sent, and what is behind it was not"
    drain(outbox, receiver)
    assert (receiver.sequence, outbox.ended, outbox.holds_back) == (10_021, True, False)


@pytest.mark.slow
@pytest.mark.parametrize("round_number", range(soak(2, 50)))
def test_blocks_that_are_being_written_are_waited_for(tmp_path: pathlib.Path, round_number: int) -> None:
    """A block is not whole, a moment later there is one behind it: the first was not skipped."""
    count = 20_000
    code = f"""
        from tests.store.writing import acquire, connect, small_tails
        small_tails()
        with connect({str(tmp_path / "store")!r}, client_id={CLIENT_ID}) as client:
            log = acquire(client).log_event
            print("begun", flush=True)
            for number in range({count}):
                log(str(number))
    """
    receiver = Receiver()
    with subprocess.Popen(
        [sys.executable, "-B", *python_argv("-c", code)],
        env=processes.child_environment(),
        stdout=subprocess.PIPE,
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"begun\n"
        outbox = Outbox(story_directory(tmp_path / "store"), CLIENT_ID)
        deadline = time.monotonic() + 60
        while not outbox.ended:
            drain(outbox, receiver)
            assert time.monotonic() < deadline
    assert writer.returncode == 0
    assert receiver.sequence == count
