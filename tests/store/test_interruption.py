"""A writer that is interrupted anywhere, by a handler that logs, flushes, closes or raises, loses and doubles nothing.

Two ways: real threads and real signals (`programs/interrupted.py`), and every single bytecode in turn.
"""

import errno
import itertools
import mmap
import os
import pathlib
import random
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from py_chronolog_client.clock import ClockModel, SystemClock
from py_chronolog_client.engine.base import Durability, WriterOptions
from py_chronolog_client.engine.embedded import EmbeddedEngine
from py_chronolog_client.errors import ClosedError
from py_chronolog_client.identity import new_client_id
from py_chronolog_client.store import appender, pen, segment, tail
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
POINTS = soak(60, 10**9)
"""At how many bytecodes an operation is interrupted at most."""


# -- real threads, real signals --


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kinds", ["", "signals", "raises", "threads", "threads signals", "threads signals raises"])
def test_every_returned_event_is_there_once_whoever_interrupted_whom(tmp_path: pathlib.Path, kinds: str) -> None:
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
            self.returned += [(time_ns if place >= whole else 0, record) for place, record in enumerate(records)]
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
        self._note(self.writer.log_events(records), records)

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
    "raises ValueError": lambda s: (_ for _ in ()).throw(ValueError("operation forbidden on released memoryview")),
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
    subject: Subject, operation: str, action: str, due: Callable[[int], bool]
) -> Interruption:
    """Prepare and do an operation, interrupt it, and check everything; return the interruption."""
    prepare, operate = OPERATIONS[operation]
    prepare(subject)
    interruption = Interruption(lambda: ACTIONS[action](subject), due)
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
        raise AssertionError(f"{operation}, interrupted before bytecode {interruption.count}: {interruption.where}") from error
    return interruption


def check_after(subject: Subject) -> None:
    """Check that a writer which was interrupted has lost nothing, goes on, and closes."""
    writer, client_id = subject.writer, subject.writer._client_id
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
    assert subject.closed or len(writer._pens) == len(writer._epochs) == 1
    writer.close()
    check(read(subject.engine, clients=[client_id]), subject.returned, subject.attempted)
    assert read(subject.engine, clients=[client_id]) == found
    assert [path.name for path in _files(subject)] == [f"{client_id:016x}.log"]


def _files(subject: Subject) -> list[pathlib.Path]:
    return list(subject.engine.directory.glob(f"chronicles/*/stories/*/{subject.writer._client_id:016x}.*"))


def bytecodes(engine: EmbeddedEngine, operation: str, points: int = POINTS) -> Iterator[int]:
    """Yield the numbers of the bytecodes at which an operation is interrupted, evenly spread from the first on."""
    subject = Subject(engine)
    total = run_interrupted(subject, operation, "raises", lambda count: False).count
    step = -(-total // points)
    yield from range(1 + total % step, total + 1, step)


@pytest.mark.slow
@pytest.mark.timeout(soak(300, 3000))
@pytest.mark.parametrize("action", [name for name in ACTIONS if name != "looks"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_interrupted_at_every_bytecode(engine: EmbeddedEngine, operation: str, action: str) -> None:
    fired = 0
    for number in bytecodes(engine, operation):
        fired += run_interrupted(Subject(engine), operation, action, at(number)).fired
    assert fired
