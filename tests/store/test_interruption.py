"""A writer that is interrupted anywhere, by a handler that logs, flushes, closes or raises, loses and doubles nothing.

Two ways: real threads and real signals (`programs/interrupted.py`), and every single bytecode in turn.
"""

import errno
import itertools
import math
import os
import pathlib
import random
import sys
from array import array
from collections.abc import Callable, Iterator
from pickle import PickleBuffer
from types import FunctionType

import pytest

from py_chronolog_client.clock import ClockModel, SystemClock
from py_chronolog_client.engine.base import Durability, WriterOptions
from py_chronolog_client.engine.embedded import EmbeddedEngine
from py_chronolog_client.errors import ClosedError
from py_chronolog_client.identity import new_client_id
from py_chronolog_client.store import appender, journal, pen, rights, segment, tail
from py_chronolog_client.store.appender import Appender
from py_chronolog_client.store.format import TailHeader, TailState
from py_chronolog_client.store.root import StoreRoot
from tests.store.opcodes import Interruption, Thrown, at
from tests.store.writing import (
    CHRONICLE,
    SMALL_CAPACITY,
    SMALL_RESERVE_EVENTS,
    STORY,
    check,
    read,
    seeded,
    small,
)
from tests.support import processes
from tests.support.counts import soak

__all__ = ["small"]

PROGRAM = pathlib.Path(__file__).parent / "programs" / "interrupted.py"
ROOM = SMALL_CAPACITY - SMALL_RESERVE_EVENTS
BLOCK_EVENTS = 64
POINTS = soak(100, 2_000)
"""How many interruptions of an operation are tried at most, of all pairs of a bytecode and an action."""


# -- real threads, real signals --


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "kinds", ["", "signals", "raises", "threads", "threads signals", "threads signals raises"]
)
def test_every_returned_event_is_there_once_whoever_interrupted_whom(
    tmp_path: pathlib.Path, kinds: str
) -> None:
    events = soak(30_000, 400_000) // (8 if "threads" in kinds else 1)
    argv = [sys.executable, str(PROGRAM), str(tmp_path / "store"), str(events), *kinds.split()]
    done = processes.run(argv, timeout=soak(60, 500))
    assert done.returncode == 0, processes.describe(done)
    assert done.stdout, "the program has checked nothing"


# -- every bytecode --


class Subject:
    """A writer with a small tail, and an account of what it was given."""

    def __init__(self, engine: EmbeddedEngine, durability: Durability = "process") -> None:
        self.engine = engine
        self.returned: list[tuple[int, bytes]] = []
        self.attempted: list[bytes] = []
        self.refused: list[bytes] = []
        self.closed = False
        self._names = itertools.count()
        options = WriterOptions(new_client_id(), _CLOCK, durability)
        writer = engine.open_writer(CHRONICLE, STORY, {}, options)
        assert isinstance(writer, Appender)
        self.writer = writer

    def _record(self, size_bytes: int) -> bytes:
        name = f"{next(self._names)}:".encode()
        record = name + b"x" * (size_bytes - len(name))
        self.attempted.append(record)
        return record

    def _note(self, time_ns: int, records: list[bytes]) -> None:
        if time_ns:  # a batch of several blocks has several times, of which this is the last
            whole = len(records) - len(records) % BLOCK_EVENTS
            self.returned += [
                (time_ns if place >= whole else 0, record) for place, record in enumerate(records)
            ]
        else:
            self.refused += records

    def log(self, size_bytes: int = 30) -> None:
        record = self._record(size_bytes)
        self._note(self.writer.log_event(record.decode()), [record])

    def log_bytes(self) -> None:
        record = self._record(30)
        self._note(self.writer.log_event(record), [record])

    def log_named(self) -> None:
        record = self._record(30)
        self._note(self.writer.log_event(log_string=record.decode()), [record])

    def log_batch(self, count: int = 5, size_bytes: int = 30) -> None:
        records = [self._record(size_bytes) for _ in range(count)]
        self._note(self.writer.log_events([record.decode() for record in records]), records)

    def close(self) -> None:
        self.closed = True
        self.writer.close()

    def look(self) -> None:
        """Check what a reader finds at this moment, which is also what is left if the process dies now."""
        check(read(self.engine, clients=[self.writer.client_id]), self.returned, self.attempted)


_CLOCK = SystemClock()


def _fill(count: int) -> Callable[[Subject], None]:
    def prepare(subject: Subject) -> None:
        for _ in range(count):
            subject.log()

    return prepare


OPERATIONS: dict[str, tuple[Callable[[Subject], None], Callable[[Subject], object]]] = {
    "append": (_fill(3), Subject.log),
    "append of bytes": (_fill(3), Subject.log_bytes),
    "append by the other name": (_fill(3), Subject.log_named),
    "first append": (_fill(0), Subject.log),
    "append that rolls": (_fill(ROOM), Subject.log),
    "append that rolls for want of bytes": (lambda s: s.log(2500), lambda s: s.log(1500)),
    "batch": (_fill(3), Subject.log_batch),
    "batch that rolls": (_fill(ROOM - 2), Subject.log_batch),
    "big record": (_fill(3), lambda s: s.log(10_000)),
    "big record behind an empty tail": (_fill(0), lambda s: s.log(10_000)),
    "big batch": (_fill(3), lambda s: s.log_batch(100)),
    "batch of several blocks": (_fill(1), lambda s: s.log_batch(70)),
    "flush": (_fill(5), lambda s: s.writer.flush()),
    "statistics": (_fill(5), lambda s: s.writer.statistics()),
    "new clock": (_fill(5), lambda s: s.writer.use_clock(SystemClock())),
    "close": (_fill(5), Subject.close),
}


def _throw(subject: Subject) -> None:
    raise Thrown


def _time_out(subject: Subject) -> None:
    raise TimeoutError(errno.ETIMEDOUT, "a handler's own")


def _log_and_throw(subject: Subject) -> None:
    subject.log()
    raise Thrown


def _log_a_lot(subject: Subject) -> None:
    for _ in range(2 * ROOM):
        subject.log()


ACTIONS: dict[str, Callable[[Subject], object]] = {
    "raises": _throw,
    "raises ValueError": lambda s: (_ for _ in ()).throw(
        ValueError("operation forbidden on released memoryview")
    ),
    "raises TimeoutError": _time_out,
    "logs": Subject.log,
    "logs and raises": _log_and_throw,
    "logs a batch": Subject.log_batch,
    "logs a big record": lambda s: s.log(10_000),
    "logs until the tail has rolled": _log_a_lot,
    "flushes": lambda s: s.writer.flush(),
    "asks": lambda s: s.writer.statistics(),
    "closes": Subject.close,
    "looks": Subject.look,
}


@pytest.fixture
def engine(tmp_path: pathlib.Path, small: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedEngine]:
    monkeypatch.setattr(appender, "_BLOCK_EVENTS", BLOCK_EVENTS)
    engine = EmbeddedEngine(tmp_path / "store")
    engine.create_chronicle(CHRONICLE, {})
    yield engine
    engine.close()


def run_interrupted(
    subject: Subject,
    operation: str,
    action: str,
    due: Callable[[int], bool],
    *,
    where_signals_are: bool = False,
) -> Interruption:
    """Prepare and do an operation, interrupt it, and check everything; return the interruption."""
    prepare, operate = OPERATIONS[operation]
    prepare(subject)
    interruption = Interruption(lambda: ACTIONS[action](subject), due, where_signals_are=where_signals_are)
    try:
        with interruption:
            operate(subject)
        assert not (interruption.fired and "raises" in action), "what the handler has raised is lost"
    except (Thrown, ValueError, TimeoutError):
        assert "raises" in action
    except ClosedError:
        assert (operation, action) == ("new clock", "closes")
    try:
        check_after(subject)
    except BaseException as error:
        raise AssertionError(
            f"{operation}, interrupted before bytecode {interruption.count}: {interruption.where}"
        ) from error
    return interruption


def check_after(subject: Subject) -> None:
    """Check that a writer which was interrupted has lost nothing, goes on, and closes."""
    writer, client_id = subject.writer, subject.writer._own.client_id
    found = read(subject.engine, clients=[client_id])
    check(found, subject.returned, subject.attempted)
    refused = len(subject.refused)
    subject.log()
    subject.log_batch()
    subject.log(5000)
    writer.flush()
    for _ in range(ROOM + 1):
        subject.log_bytes()
    if not subject.closed:
        assert len(subject.refused) == refused, "the writer does not work any more"
    found = read(subject.engine, clients=[client_id])
    check(found, subject.returned, subject.attempted)
    statistics = writer.statistics()
    stored = {event.record for event in found}  # of a batch of several blocks some blocks may be
    assert sum(statistics.lost.values()) == len(set(subject.refused) - stored)
    assert statistics.logged == len(found)
    assert not writer._politeness.locked(), "a lock stayed behind"
    # What was thrown into the making of a right may have left it, in nobody's hands, until the next is made.
    for registered in () if subject.closed else (writer._own.pens, writer._own.epochs):
        assert any(not right.revoked for right in registered)
        assert len(registered) < 10
    writer.close()
    check(read(subject.engine, clients=[client_id]), subject.returned, subject.attempted)
    assert read(subject.engine, clients=[client_id]) == found
    assert {path.suffix for path in _files(subject)} == {".log"}


def _files(subject: Subject) -> list[pathlib.Path]:
    return list(
        subject.engine.directory.glob(f"chronicles/*/stories/*/{subject.writer._own.client_id:016x}.*")
    )


def bytecodes(engine: EmbeddedEngine, operation: str) -> int:
    """Return how many bytecodes an operation takes."""
    return run_interrupted(Subject(engine), operation, "looks", lambda count: False).count


@pytest.mark.slow
@pytest.mark.timeout(soak(120, 3600))
@pytest.mark.parametrize("operation", OPERATIONS)
def test_interrupted_at_every_bytecode_by_everything(engine: EmbeddedEngine, operation: str) -> None:
    pairs = list(itertools.product(range(1, bytecodes(engine, operation) + 1), ACTIONS))
    step = -(-len(pairs) // POINTS)
    while step > 1 and math.gcd(step, len(ACTIONS)) > 1:
        step += 1  # so that every action has its turn
    fired = 0
    for number, action in pairs[len(pairs) % step :: step]:
        fired += run_interrupted(Subject(engine), operation, action, at(number)).fired
    assert fired


@pytest.mark.slow
@pytest.mark.timeout(soak(120, 3600))
@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_is_there_at_every_bytecode_is_whole(engine: EmbeddedEngine, operation: str) -> None:
    # A process that is killed leaves exactly what a reader finds at that moment.
    step = max(1, bytecodes(engine, operation) // soak(100, 2_000))
    done = run_interrupted(Subject(engine), operation, "looks", lambda count: count % step == 0)
    assert done.fired


@pytest.mark.slow
def test_a_batch_is_seen_whole_or_not_at_all(engine: EmbeddedEngine) -> None:
    subject, seen = Subject(engine), []
    subject.log()
    number = subject.writer.client_id
    with Interruption(
        lambda: seen.append(len(read(engine, clients=[number]))), lambda count: count % soak(3, 1) == 0
    ):
        subject.log_batch(5)
    assert set(seen) == {1, 6}
    assert seen == sorted(seen)
    subject.close()


@pytest.mark.slow
@pytest.mark.timeout(soak(120, 3600))
def test_interrupted_again_and_again(engine: EmbeddedEngine) -> None:
    random = seeded("again and again")
    for _ in range(soak(60, 5000)):
        subject = Subject(engine)
        for operation in random.choices(
            [name for name in OPERATIONS if name != "close"], k=random.randrange(1, 6)
        ):
            interrupt_often(subject, operation, random)
        check_after(subject)


def interrupt_often(subject: Subject, operation: str, random: random.Random) -> None:
    """Do an operation that is interrupted up to five times."""
    actions = [action for name, action in ACTIONS.items() if name not in ("closes", "raises ValueError")]
    mean, left = random.choice((20, 100, 500)), 5

    def due(count: int) -> bool:
        nonlocal left
        if not left or random.randrange(mean):
            return False
        left -= 1
        return True

    prepare, operate = OPERATIONS[operation]
    prepare(subject)
    try:
        with Interruption(lambda: random.choice(actions)(subject), due):
            operate(subject)
    except (Thrown, TimeoutError):
        pass


def of_the_store(function: FunctionType) -> FunctionType:
    """Return a function whose errors look like the store's own, as those of a system call do."""
    names = {**function.__globals__, "__name__": segment.__name__}
    return FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )


@pytest.mark.parametrize("action", ["logs", "raises", "flushes"])
def test_a_failed_sync_that_is_interrupted_is_still_final(
    engine: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    monkeypatch.setattr(journal.logger, "disabled", True)  # logging swallows what is thrown into it
    failing: set[int] = set()

    def fdatasync(descriptor: int) -> None:
        if descriptor in failing:  # the kernel says so once; who asks again is lied to
            failing.remove(descriptor)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(segment.os, "fdatasync", of_the_store(fdatasync))
    monkeypatch.setattr(segment, "sync_directory", lambda directory: None)

    def prepare(subject: Subject) -> None:
        _fill(5)(subject)
        subject.writer.flush()
        _fill(5)(subject)
        failing.add(subject.writer._own.segments[0].descriptor)

    monkeypatch.setitem(OPERATIONS, "failing flush", (prepare, OPERATIONS["flush"][1]))
    number = 1
    while True:
        subject = Subject(engine, "node")
        # Nothing can come between a system call and the bytecode that notes that it failed.
        interruption = run_interrupted(subject, "failing flush", action, at(number), where_signals_are=True)
        names = sorted(path.name for path in _files(subject))
        assert len(names) > 1, "the segment whose sync failed was trusted again"
        assert not failing
        if not interruption.fired:
            return
        number += soak(5, 1)


# -- the rights --


def make_tail(directory: pathlib.Path) -> tail.Tail:
    layout = TailHeader.layout(7, 4096 + 16 * 16 + 1024, 16, bytes(16))
    root = StoreRoot.open(directory / "store", create=True)
    return tail.Tail(
        root, directory / "store" / "0000000000000007.tail", None, layout, TailState(0, 0, ClockModel())
    )


@pytest.fixture
def small_tail(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> tail.Tail:
    monkeypatch.setattr(tail, "RESERVE_BYTES", 256)
    return make_tail(tmp_path)


def store_word(view: memoryview) -> None:
    view[0] = 1


def store_bytes(view: memoryview) -> None:
    view[0:4] = b"torn"


STORES: dict[str, Callable[[memoryview], None]] = {
    "times": store_word,
    "ends": store_word,
    "words": store_word,
    "memory": store_bytes,
    "room": store_bytes,
}


@pytest.mark.parametrize("name", STORES)
def test_no_view_of_a_revoked_epoch_writes(small_tail: tail.Tail, name: str) -> None:
    epoch = tail.Epoch(small_tail)
    STORES[name](getattr(epoch, name))
    epoch.revoke()
    before = bytes(small_tail.mapping)
    with pytest.raises(ValueError, match="released") as caught:
        STORES[name](getattr(epoch, name))
    assert not rights.is_revocation(caught.value), "it was not raised in the store"
    assert bytes(small_tail.mapping) == before
    assert epoch.revoked
    epoch.revoke()


def test_every_view_of_an_epoch_is_revoked(small_tail: tail.Tail) -> None:
    epoch = tail.Epoch(small_tail)
    views = [getattr(epoch, name) for name in tail.Epoch.__slots__]
    views = [view for view in views if isinstance(view, memoryview)]
    assert len(views) == len(STORES) + 1
    epoch.revoke()
    for view in views:
        with pytest.raises(ValueError, match="released"):
            len(view)


def test_a_revoked_token_stops_a_system_call(small_tail: tail.Tail, tmp_path: pathlib.Path) -> None:
    epoch = tail.Epoch(small_tail)
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    try:
        segment.write_whole(descriptor, [b"first", epoch.token], 0)
        epoch.revoke()
        with pytest.raises(ValueError, match="released"):
            segment.write_whole(descriptor, [b"later", epoch.token], 0)
        assert os.pread(descriptor, 9, 0) == b"first"
    finally:
        os.close(descriptor)


def test_an_epoch_in_a_system_call_is_not_revoked_under_it(small_tail: tail.Tail) -> None:
    epoch = tail.Epoch(small_tail)
    held = PickleBuffer(epoch.memory)  # as a system call holds it
    with pytest.raises(BufferError):
        epoch.revoke()
    assert epoch.revoked
    held.release()
    epoch.revoke()
    with pytest.raises(ValueError, match="released"):
        epoch.memory[0]


def test_the_fast_path_of_a_revoked_epoch_ends_and_stores_nothing(small_tail: tail.Tail) -> None:
    epoch = tail.Epoch(small_tail)
    run = tail.appends(epoch, 0, 8, small_tail.layout.payload_offset, lambda: 5, 0)
    run.send(None)  # type: ignore[arg-type]
    assert run.send(b"stored") == 5
    epoch.revoke()
    before = bytes(small_tail.mapping)
    with pytest.raises(StopIteration) as caught:
        run.send(b"too late")
    assert caught.value.value.epoch is epoch
    assert bytes(small_tail.mapping) == before
    fresh = tail.Epoch(small_tail)
    assert small_tail.first_free(fresh) == 1


def test_a_revoked_pen_writes_nothing(tmp_path: pathlib.Path) -> None:
    root = StoreRoot.open(tmp_path / "store", create=True)
    file = segment.Segment(root, tmp_path / "store" / "0000000000000007.log", b"x" * 64)
    times, ends = memoryview(array("Q", [5])), memoryview(array("Q", [3]))
    columns = times, ends, memoryview(b"abc")
    first, second = pen.Pen(pen.Stored(0, file, file.start)), pen.Pen(pen.Stored(0, file, file.start))
    first.revoke()
    assert first.revoked
    assert not second.revoked
    token = memoryview(b"")
    token.release()
    for writes in (
        lambda: first.write(7, *columns, 0, ClockModel()),
        lambda: first.write_record(7, {"type": "close"}),
        lambda: second.write(7, *columns, 0, ClockModel(), tokens=[token]),
    ):
        with pytest.raises(ValueError, match="released"):
            writes()
        assert os.fstat(file.descriptor).st_size == 64
    second.write(7, *columns, 0, ClockModel())
    third = pen.Pen(None)
    third.look(pen.Stored(0, file, file.start), 7)
    assert third.stored == second.stored
    file.close()


def test_a_closed_segment_names_no_descriptor(tmp_path: pathlib.Path) -> None:
    # Its number may soon be that of another file, into which a call that was interrupted must not write.
    root = StoreRoot.open(tmp_path / "store", create=True)
    file = segment.Segment(root, tmp_path / "store" / "0000000000000007.log", b"x" * 64)
    file.close()
    file.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        segment.write_whole(file.descriptor, [b"foreign"], 0)


def test_errors_of_handlers_are_told_from_own_ones(small_tail: tail.Tail) -> None:
    epoch = tail.Epoch(small_tail)
    epoch.revoke()
    try:
        small_tail.base(epoch)
    except ValueError as error:
        assert rights.is_revocation(error)
    with pytest.raises(ValueError, match="released") as caught:
        epoch.words[0]
    assert not rights.is_own(caught.value)
    assert not rights.is_revocation(caught.value)
