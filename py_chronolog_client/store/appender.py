"""The appender: one client's writer to one story.

The fast path is `appends` in tail.py (read its essay first). This module is what happens around it: every
call that the fast path cannot serve claims the tail, does its work alone, and publishes a new fast path. The
work may be undone at any moment by somebody who needs the tail more urgently (a signal handler, say); then it
has not happened, and is done again.
"""

from __future__ import annotations

import atexit
import errno
import logging
import os
import sys
import threading
import time
import weakref
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, TypeVar

from py_chronolog_client.clock import Clock
from py_chronolog_client.engine.base import Writer, WriterOptions, WriterStatistics
from py_chronolog_client.errors import ChronoLogError, ClosedError
from py_chronolog_client.identity import new_client_id
from py_chronolog_client.records import MISSING, Record, encode, encode_batch, pieces, the_one
from py_chronolog_client.store import owner
from py_chronolog_client.store.catalog import Catalog
from py_chronolog_client.store.format import (
    MAX_PAYLOAD_BYTES,
    MAX_RECORD_BYTES,
    TAIL_OPEN,
    TailHeader,
    TailState,
    encode_record,
)
from py_chronolog_client.store.losses import Losses
from py_chronolog_client.store.pen import Pen, Stored
from py_chronolog_client.store.segment import Segment
from py_chronolog_client.store.tail import (
    RESERVE_BYTES,
    RESERVE_EVENTS,
    TAIL_BYTES,
    TAIL_CAPACITY,
    Claim,
    Epoch,
    Handover,
    Tail,
    appends,
    is_own,
    is_revocation,
)

logger = logging.getLogger("py_chronolog_client")

RETRY_S = 0.05
"""After the file system refused a block, events are refused for so long before it is asked again."""
PATIENCE_S = 5.0
"""How long a call waits for another thread that is inside a system call, before its event is refused."""

_POLITENESS_S = 0.1
_HANDOVER_S = 0.01
_BLOCK_EVENTS = 2**17


class Appender(Writer):
    """Writes the events of one client. See `Writer` for the contract.

    Thread safety: everything, from any thread, signal handler or forked child. In a child the events go to a
    client of its own.

    Durability: an event whose `log_event` returned survives the death of its process. With durability "node"
    the events below the number that `flush` returned survive a power cut too.
    """

    def __init__(
        self, catalog: Catalog, directory: Path, options: WriterOptions, tail_directory: Path | None = None
    ) -> None:
        """Acquire the story in `directory` for a new client."""
        self._catalog = catalog
        self._directory = directory
        self._tail_directory = tail_directory
        self._options = options
        self._reading = options.clock.reading().not_before(1)
        self._politeness = threading.Lock()
        self._losses = Losses()
        self._closed = False
        self._retry_at_ns = 0
        self._refused_errno = 0
        self.log_event, self._publish = _fast_path(self._resume)  # type: ignore[method-assign]
        self._released = False
        self._opened: dict[int, _Opened] = {}
        self._open(options.client_id, options.description, options.first_sequence)
        _writers.add(self)

    # -- the contract --

    @property
    def client_id(self) -> int:
        if self._own.pid != os.getpid():
            self._transact(lambda claim: 0)
        return self._own.client_id

    def log_event(self, event_string: str | bytes = MISSING, log_string: str | bytes | None = None) -> int:
        raise AssertionError("replaced by the fast path of each appender")  # pragma: no cover

    def log_events(self, batch: Sequence[str | bytes]) -> int:
        return self._append(*encode_batch(batch, MAX_RECORD_BYTES))

    def flush(self, timeout_s: float | None = None) -> int:
        try:
            self._transact(self._flush)
        except ClosedError:
            pass
        except OSError as error:
            if not is_own(error):
                raise
            logger.warning("%s: flush failed, the events stay in the tail: %s", self._own.tail.path, error)
        return self._own.first_sequence + self.statistics().acknowledged

    def use_clock(self, clock: Clock) -> None:
        def operation(claim: Claim) -> int:
            self._roll(claim)
            self._reading = clock.reading().not_before(self._now())
            self._own.tail.recycle(claim.epoch, self._own.tail.base(claim.epoch), self._reading.model)
            return 0

        self._transact(operation)

    def statistics(self) -> WriterStatistics:
        try:
            next_sequence = self._transact(self._count)
        except ClosedError:
            next_sequence = self._own.next_sequence
        acknowledged = next_sequence if self._options.durability == "process" else self._own.acknowledged
        first = self._own.first_sequence
        return WriterStatistics(next_sequence - first, acknowledged - first, self._losses.by_reason())

    def close(self, reason: str = "released") -> None:
        if self._own.pid == os.getpid():
            try:
                self._transact(lambda claim: self._say_goodbye(claim, reason))
            except ClosedError:
                return
            self._released = True
            self._own.let_go()
        self._closed = self._released = True

    # -- opening and closing --

    def _open(self, client_id: int, description: Mapping[str, Any], first: int = 0) -> None:
        pid, root = os.getpid(), self._catalog.root
        path = self._directory / f"{client_id:016x}.log"
        fields = {**description, **owner.describe_process(), "type": "client", "client_id": client_id}
        fields |= {"first_sequence": first, "opened_ns": self._now()}
        segment = Segment(root, path, encode_record(client_id, first, fields), returning=first > 0)
        try:
            layout = TailHeader.layout(client_id, TAIL_BYTES, TAIL_CAPACITY, owner.boot_id())
            state = TailState(first, TAIL_OPEN, self._reading.model)
            tail = Tail(root, path.with_suffix(".tail"), self._tail_directory, layout, state)
            try:
                self._catalog.confirm_acquisition(self._directory, client_id)
            except BaseException:
                tail.remove()
                raise
        except BaseException:
            segment.discard()
            raise
        owner.heartbeat.watch(segment.path)
        epoch, pen = Epoch(tail), Pen(Stored(first, segment, segment.start))
        opened = _Opened(pid, client_id, first, tail, [segment], {pen: None}, {epoch: None})
        winner = self._opened.setdefault(pid, opened)
        if pid != os.getpid():  # a signal handler has forked: all this is the parent's
            opened.let_go()
            return
        if winner is not opened:  # a signal handler has come in between, and has opened one as well
            opened.let_go()
            tail.remove()
            segment.discard()
        self._own = winner
        self._free(Claim(epoch, 0))

    def _say_goodbye(self, claim: Claim, reason: str) -> int:
        """Move everything to blocks, note the reason, and remove the tail; keep it where the file system refuses.

        Closing comes first: who claims the tail from now on appends nothing, and who did so just before has
        revoked this claim, so that the next step fails and everything is done again, with his events.
        """
        self._closed = True
        try:
            self._flush(claim)
            self._own.next_sequence = self._count(claim)
            with self._pen() as pen:
                fields = {"type": "close", "reason": reason, "closed_ns": self._now()}
                fields |= {"next_sequence": self._own.next_sequence, "lost": self._losses.by_reason()}
                pen.write_record(self._own.client_id, fields)
                if self._options.durability == "node":
                    assert pen.stored is not None
                    pen.stored.segment.sync(pen.stored.offset)
        except OSError as error:
            if not is_own(error):
                raise
            logger.warning("%s: closed, but the last events stay in the tail: %s", self._own.tail.path, error)
            self._own.next_sequence = self._count(claim)
            self._own.tail.mark_closed(claim.epoch)
        else:
            self._own.tail.remove()
        return 0

    def after_fork_in_child(self) -> None:
        """Make everything that was inherited useless; the next call opens a client of this process."""
        self._politeness = threading.Lock()
        self._losses = Losses()
        self._released = self._closed
        for opened in self._opened.values():
            opened.let_go()
        self._opened = {}

    # -- the way of a call that the fast path cannot serve --

    def _resume(self, event_string: Record, log_string: Record | None, trouble: Exception) -> int:
        """Do a `log_event` whose fast path raised `trouble`."""
        if not is_own(trouble):
            raise trouble
        claim = _claim_in(trouble)
        try:
            record = encode(the_one(event_string, log_string), MAX_RECORD_BYTES)
        except BaseException:
            if claim is not None:
                self._free(claim)
            raise
        if isinstance(
            trouble, AttributeError
        ):  # no text in the first parameter, so the fast path has not seen it
            try:
                return self._send(record)
            except (StopIteration, ValueError) as again:
                if not is_own(again):
                    raise
                claim = _claim_in(again)
        return self._append(record, (len(record),), claim)

    def _append(self, payload: bytes, sizes_bytes: Sequence[int], claim: Claim | None = None) -> int:
        left = len(sizes_bytes)

        def operation(claim: Claim) -> int:
            nonlocal left
            time_ns = self._now()
            done = len(sizes_bytes) - left
            for piece, piece_sizes in pieces(payload, sizes_bytes, done, _BLOCK_EVENTS, MAX_PAYLOAD_BYTES):
                if self._closed:
                    self._losses.add("closed", left)
                    return 0
                time_ns = self._put(claim, piece, piece_sizes)
                left -= len(piece_sizes)
            return time_ns

        try:
            return self._transact(operation, claim)
        except (OSError, ChronoLogError) as error:
            if not is_own(error):
                raise
            self._losses.add(_reason(error), left)
        return 0

    def _transact(self, operation: Callable[[Claim], int], claim: Claim | None = None) -> int:
        """Run `operation` with the tail to itself, again whenever it was revoked before it was done.

        Threads queue up for that, but only out of politeness: who interrupted his own thread in here must not
        wait at all.
        """
        queue, interrupting = self._politeness, _is_running(Appender._transact.__code__)
        polite = False
        try:
            if not interrupting:
                polite = queue.acquire(timeout=_POLITENESS_S)
                if not polite:  # its holder takes long, or was interrupted for good just before the release
                    self._politeness = threading.Lock()
            while True:
                if self._released:
                    raise ClosedError(f"{self._own.segments[0].path}: this handle was released")
                if self._own.pid != os.getpid():
                    parent = {"parent_client_id": self._own.client_id}
                    self._open(new_client_id(), {**self._options.description, **parent})
                    claim = None
                try:
                    claim = self._claim(claim, 0.0 if interrupting else _HANDOVER_S)
                    result = operation(claim)
                except BaseException as error:
                    if is_revocation(error) or self._is_in_vain(error):
                        continue
                    if claim is not None:
                        self._recover(claim)
                    raise
                self._free(claim)
                return result
        finally:
            if polite:
                queue.release()

    def _is_in_vain(self, error: BaseException) -> bool:
        """Tell whether an operation failed because its files were closed meanwhile."""
        useless = self._released or self._own.pid != os.getpid()
        return useless and isinstance(error, OSError) and is_own(error)

    def _claim(self, claim: Claim | None, patience_s: float) -> Claim:
        """Return the sole right to write to the tail: by asking for it, or by revoking it from whoever has it."""
        if claim is not None and not claim.epoch.revoked:
            return claim
        for epoch in list(self._own.epochs):
            claim = _ask(epoch, patience_s)
            if claim is not None and not epoch.revoked:
                return claim
        epoch = Epoch(self._own.tail)
        _replace(self._own.epochs, epoch)
        return Claim(epoch, self._settle(epoch), urgent=True)

    def _recover(self, claim: Claim) -> None:
        """Let the fast path go on after an operation that broke off anywhere; if this does too, the next call does it."""
        with suppress(OSError, ValueError):
            claim.slot = self._settle(claim.epoch)
            self._free(claim)

    def _settle(self, epoch: Epoch) -> int:
        """Finish what was left half done by who had the tail before; return the first free slot."""
        tail = self._own.tail
        if any(pen.direct for pen in list(self._own.pens)):
            self._new_pen().busy = False
        slot = tail.first_free(epoch)
        stored = self._progress().sequence
        if tail.base(epoch) + slot <= stored:
            tail.recycle(epoch, stored, self._reading.model)
            return 0
        tail.clear(epoch, slot)
        return slot

    def _free(self, claim: Claim) -> None:
        """Let the fast path go on behind the last event."""
        tail, epoch, reading = self._own.tail, claim.epoch, self._reading
        try:
            slot = tail.first_free(epoch, claim.slot)
            end = tail.end(epoch, slot)
        except ValueError as error:
            if is_revocation(error):
                return  # whoever did it has let the fast path go on
            raise
        if self._closed:
            return
        capacity = tail.layout.capacity - RESERVE_EVENTS
        run = appends(epoch, slot, capacity, end, reading.tick, reading.offset_ns)
        run.send(None)  # type: ignore[arg-type]
        epoch.run = run
        self._send = run.send
        self._publish(run.send)

    def _progress(self) -> Stored:
        """Return how far the events are in blocks, as far as anybody has noted it."""
        known = [pen.stored for pen in list(self._own.pens) if pen.stored is not None]
        return max(known, key=lambda stored: (stored.sequence, stored.segment.number, stored.offset))

    @contextmanager
    def _pen(self) -> Iterator[Pen]:
        """Take the pen, or a new one if somebody else has it in his hands."""
        pen = list(self._own.pens)[-1]
        if pen.busy or pen.revoked:
            pen = self._new_pen()
        pen.busy = True
        yield pen
        pen.busy = False

    def _new_pen(self) -> Pen:
        pen = Pen(None)
        _replace(self._own.pens, pen, self._look)
        return pen

    def _look(self, pen: Pen) -> None:
        pen.look(self._progress(), self._own.client_id)

    # -- what is done with a claim --

    def _now(self) -> int:
        return self._reading.tick() + self._reading.offset_ns

    def _count(self, claim: Claim) -> int:
        """Return the sequence number of the next event."""
        return self._own.tail.base(claim.epoch) + self._own.tail.first_free(claim.epoch, claim.slot)

    def _flush(self, claim: Claim) -> int:
        """Move the tail to a block and, for durability "node", bring it to the device."""
        self._roll(claim)
        if self._options.durability == "process":
            return 0
        with self._pen() as pen:
            assert pen.stored is not None
            sequence, segment, offset = pen.stored
            try:
                segment.sync(offset)
            except OSError as error:
                if not is_own(error):
                    raise
                logger.warning("%s: sync failed (%s), going on in a new segment", segment.path, error)
                successor = segment.successor(offset, lambda: not pen.revoked)
                if successor is None:  # who has revoked the pen goes on in a segment of his own
                    return self._flush(claim)
                segment, offset = successor
                self._own.segments.append(segment)
                pen.stored = Stored(sequence, segment, offset)
        self._own.acknowledged = max(self._own.acknowledged, sequence)
        return 0

    def _put(self, claim: Claim, payload: bytes, sizes_bytes: Sequence[int]) -> int:
        """Store a batch that fits a block; return its time. The commit is the last thing that can fail."""
        tail, epoch, count = self._own.tail, claim.epoch, len(sizes_bytes)
        capacity, limit = tail.layout.capacity, tail.layout.tail_bytes
        if not claim.urgent:
            capacity, limit = capacity - RESERVE_EVENTS, limit - RESERVE_BYTES
        slot = tail.first_free(epoch, claim.slot)
        end = tail.end(epoch, slot)
        if slot + count > capacity or end + len(payload) > limit:
            self._roll(claim)
            slot, end = 0, tail.layout.payload_offset
        if count > capacity or end + len(payload) > limit:
            return self._put_block(epoch, payload, sizes_bytes)
        time_ns = self._now()
        if count:
            epoch.memory[end : end + len(payload)] = payload
            epoch.times[slot : slot + count] = array("Q", [time_ns]) * count
            ends = array("Q", accumulate(sizes_bytes, initial=end))
            epoch.ends[slot + 1 : slot + count] = ends[2:]
            epoch.ends[slot] = ends[1]
            claim.slot = slot + count
        return time_ns

    def _put_block(self, epoch: Epoch, payload: bytes, sizes_bytes: Sequence[int]) -> int:
        """Store a batch as a block of its own, behind an empty tail."""
        time_ns = self._now()
        times, ends = array("Q", [time_ns]) * len(sizes_bytes), array("Q", accumulate(sizes_bytes))
        columns = memoryview(times), memoryview(ends), memoryview(payload)
        with self._pen() as pen:
            pen.direct = True
            self._write(pen, *columns, origin=0, tokens=(epoch.token,))
            pen.direct = False
            assert pen.stored is not None
            sequence = pen.stored.sequence
        try:
            self._own.tail.recycle(epoch, sequence, self._reading.model)
        except ValueError as error:
            if not is_revocation(error):  # otherwise the revoker has seen the block and recycled the tail
                raise
        return time_ns

    def _roll(self, claim: Claim) -> None:
        """Move the tail's events to a block and recycle the tail.

        Raises:
            OSError: the file system refused; the events are still in the tail.
        """
        tail, epoch = self._own.tail, claim.epoch
        slot, base = tail.first_free(epoch, claim.slot), tail.base(epoch)
        if not slot:
            return
        with self._pen() as pen:
            assert pen.stored is not None
            done = pen.stored.sequence - base
            if done < slot:
                start, stop = tail.end(epoch, done), tail.end(epoch, slot)
                self._write(
                    pen, epoch.times[done:slot], epoch.ends[done:slot], epoch.memory[start:stop], start
                )
        claim.slot = 0
        tail.recycle(epoch, base + slot, self._reading.model)

    def _write(
        self,
        pen: Pen,
        times: memoryview,
        ends: memoryview,
        payload: memoryview,
        origin: int,
        tokens: Sequence[memoryview] = (),
    ) -> None:
        """Write a block, unless the file system has just refused one."""
        if time.monotonic_ns() < self._retry_at_ns:
            raise OSError(self._refused_errno, os.strerror(self._refused_errno))
        try:
            pen.write(self._own.client_id, times, ends, payload, origin, self._reading.model, tokens)
        except OSError as error:
            if not is_own(error):
                raise
            self._refused_errno = error.errno or errno.EIO
            self._retry_at_ns = time.monotonic_ns() + int(RETRY_S * 1e9)
            raise


@dataclass(eq=False, slots=True)
class _Opened:
    """What an appender has opened in one process: a client of its own."""

    pid: int
    client_id: int
    first_sequence: int
    tail: Tail
    segments: list[Segment]
    pens: dict[Pen, None]
    epochs: dict[Epoch, None]
    next_sequence: int = field(init=False)
    """Behind its last event, known when it is closed."""
    acknowledged: int = field(init=False)

    def __post_init__(self) -> None:
        self.next_sequence = self.acknowledged = self.first_sequence

    def let_go(self) -> None:
        """Give up the mapping and the files, not the events. Doing it twice is harmless."""
        owner.heartbeat.unwatch(self.segments[0].path)
        rights: list[Pen | Epoch] = [*self.pens, *self.epochs]
        for right in rights:
            # One view may be in use by a thread that was not inherited, or by one that is about to find out.
            with suppress(BufferError):
                right.revoke()
        with suppress(BufferError):
            self.tail.unmap()
        for segment in self.segments:
            segment.close()


def _fast_path(
    resume: Callable[[Record, Record | None, Exception], int],
) -> tuple[Callable[..., int], Callable[[Callable[[bytes], int]], None]]:
    """Return `log_event`, and the function that tells it where the events go from now on."""
    send: Callable[[bytes], int]

    def log_event(event_string: str | bytes = MISSING, log_string: str | bytes | None = None) -> int:
        try:
            if log_string is None:
                return send(event_string.encode())  # type: ignore[union-attr]
            return resume(event_string, log_string, AttributeError())
        except (StopIteration, ValueError, AttributeError) as trouble:
            return resume(event_string, log_string, trouble)

    def publish(new_send: Callable[[bytes], int]) -> None:
        nonlocal send
        send = new_send

    log_event.__doc__ = Writer.log_event.__doc__
    return log_event, publish


def _reason(error: OSError | ChronoLogError) -> str:
    """Return what `statistics` calls the reason of a refusal."""
    if isinstance(error, OSError):
        return errno.errorcode.get(error.errno or 0, "EIO")
    return "closed" if isinstance(error, ClosedError) else "story gone"


def _claim_in(trouble: Exception) -> Claim | None:
    """Return the claim with which the fast path ended, if this is how it ended."""
    return trouble.value if isinstance(trouble, StopIteration) else None


def _ask(epoch: Epoch, patience_s: float) -> Claim | None:
    """Ask the fast path of an epoch for its claim; None if somebody else has it, or will not give it."""
    run = epoch.run
    deadline = time.monotonic() + patience_s
    while run is not None:
        try:
            run.throw(Handover())
        except Handover:
            return None
        except StopIteration as end:
            return _claim_in(end)
        except ValueError as error:
            if not is_own(error):
                raise
            if _is_below(run.gi_frame) or time.monotonic() > deadline:  # type: ignore[attr-defined]
                return None
            time.sleep(0)  # another thread is inside, for less than a microsecond if it gets the GIL
    return None


def _is_running(code: CodeType) -> bool:
    """Tell whether the caller was called, however indirectly, by `code`: from a signal handler, say."""
    here: FrameType | None = sys._getframe(2)
    while here is not None and here.f_code is not code:
        here = here.f_back
    return here is not None


def _is_below(frame: object) -> bool:
    """Tell whether `frame` is on this thread's stack."""
    here: FrameType | None = sys._getframe()
    while here is not None and here is not frame:
        here = here.f_back
    return here is not None


Right = TypeVar("Right", Epoch, Pen)


def _replace(
    rights: dict[Right, None], new: Right, before_use: Callable[[Right], None] = lambda right: None
) -> None:
    """Put a right in the place of all others: register it, revoke the others, prepare it, and only then forget them.

    Raises:
        OSError: another thread is stuck in a system call with one of them.
    """
    rights[new] = None
    others = [right for right in list(rights) if right is not new]
    deadline = time.monotonic() + PATIENCE_S
    for other in others:
        while True:
            try:
                other.revoke()
                break
            except BufferError:
                if time.monotonic() > deadline:
                    rights.pop(new, None)
                    raise OSError(errno.EBUSY, "another call is stuck in the file system") from None
                time.sleep(0.001)
    before_use(new)
    for other in others:
        rights.pop(other, None)


_writers: weakref.WeakSet[Appender] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for writer in list(_writers):
        writer.after_fork_in_child()


def _at_exit() -> None:
    for writer in list(_writers):
        writer.close("exit")


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_at_exit)
