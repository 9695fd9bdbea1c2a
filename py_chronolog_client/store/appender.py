"""The appender: one client's writer to one story.

The fast path is `appends` in tail.py (read its essay first). This module is what happens around it: every call that the fast path
cannot serve claims the tail, does its work alone, and publishes a new fast path. The work may be undone at any moment by somebody who
needs the tail more urgently (a signal handler, say); then it has not happened, and is done again.
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
import zlib
from array import array
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

from py_chronolog_client.clock import Clock
from py_chronolog_client.engine.base import Writer, WriterOptions, WriterStatistics
from py_chronolog_client.errors import ChronoLogError
from py_chronolog_client.identity import new_client_id
from py_chronolog_client.records import MISSING, Record, encode, encode_batch, pieces, the_one
from py_chronolog_client.store import owner
from py_chronolog_client.store.blocks import complete_block
from py_chronolog_client.store.catalog import Catalog
from py_chronolog_client.store.format import (
    KIND_EVENTS,
    MAX_PAYLOAD_BYTES,
    MAX_RECORD_BYTES,
    TAIL_OPEN,
    BlockHeader,
    TailHeader,
    TailState,
    encode_record,
    padding,
)
from py_chronolog_client.store.losses import Losses
from py_chronolog_client.store.segment import Segment, write_whole
from py_chronolog_client.store.tail import (
    TAIL_BYTES,
    TAIL_CAPACITY,
    Claim,
    Epoch,
    Handover,
    Stored,
    Tail,
    appends,
    is_own,
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

    Thread safety: everything, from any thread, signal handler or forked child. In a child the events go to a client of its own.

    Durability: an event whose `log_event` returned survives the death of its process. With durability "node" the events below
    the number that `flush` returned survive a power cut too.
    """

    def __init__(
        self, catalog: Catalog, directory: Path, options: WriterOptions, tail_directory: Path | None = None
    ) -> None:
        """Acquire the story in `directory` for a new client."""
        self._catalog = catalog
        self._directory = directory
        self._tail_directory = tail_directory
        self._options = options
        self._reading = options.clock.reading().not_before(0)
        self._politeness = threading.RLock()
        self._losses = Losses()
        self._closed = self._finished = False
        self._retry_at_ns = 0
        self._refused_errno = 0
        self.log_event, self._publish = _fast_path(self._resume)  # type: ignore[method-assign]
        self._open(options.client_id, options.description)
        _writers.add(self)

    # -- the contract --------------------------------------------------------------------------------------------------

    @property
    def client_id(self) -> int:
        if self._forked:
            self._transact(lambda claim: 0)
        return self._client_id

    def log_event(self, event_string: str | bytes = MISSING, log_string: str | bytes = MISSING) -> int:
        raise AssertionError("replaced by the fast path of each appender")  # pragma: no cover

    def log_events(self, batch: Sequence[str | bytes]) -> int:
        return self._append(*encode_batch(batch, MAX_RECORD_BYTES))

    def flush(self, timeout_s: float | None = None) -> int:
        if not self._closed:
            try:
                self._transact(self._flush)
            except OSError as error:
                logger.warning("%s: flush failed, the events stay in the tail: %s", self._tail.path, error)
        return self._first_sequence + self.statistics().acknowledged

    def use_clock(self, clock: Clock) -> None:
        def operation(claim: Claim) -> int:
            self._roll(claim)
            self._reading = clock.reading().not_before(self._now())
            self._tail.recycle(claim.epoch, self._tail.base(claim.epoch), self._reading.model)
            return 0

        self._transact(operation)

    def statistics(self) -> WriterStatistics:
        next_sequence = self._next_sequence if self._closed else self._transact(self._count)
        acknowledged = next_sequence if self._options.durability == "process" else self._acknowledged
        first = self._first_sequence
        return WriterStatistics(next_sequence - first, acknowledged - first, self._losses.by_reason())

    def close(self, reason: str = "released") -> None:
        if self._finished:
            return
        if not self._forked:
            self._transact(lambda claim: self._say_goodbye(claim, reason))
            self._let_go()
        self._closed = self._finished = True

    # -- opening and closing -------------------------------------------------------------------------------------------

    def _open(self, client_id: int, description: Mapping[str, Any]) -> None:
        root, first = self._catalog.root, self._options.first_sequence
        path = self._directory / f"{client_id:016x}.log"
        fields = {**description, **owner.describe_process(), "type": "client", "client_id": client_id}
        fields |= {"first_sequence": first, "opened_ns": self._now()}
        segment = Segment(root, path, encode_record(client_id, first, fields))
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
        owner.heartbeat.watch(path)
        self._tail = tail
        self._client_id = client_id
        self._first_sequence = self._next_sequence = self._acknowledged = first
        self._segments = [segment]
        self._epochs: dict[Epoch, None] = {}
        self._forked = False
        epoch = Epoch(tail, Stored(first, segment, segment.start))
        self._epochs[epoch] = None
        self._free(Claim(epoch, 0))

    def _say_goodbye(self, claim: Claim, reason: str) -> int:
        """Move everything to blocks, note the reason, and remove the tail; keep it where the file system refuses.

        Closing comes first: who claims the tail from now on appends nothing, and who did so just before has revoked this claim, so
        that the next step fails and everything is done again, with his events.
        """
        self._closed = True
        try:
            self._flush(claim)
            self._next_sequence = self._count(claim)
            stored = claim.epoch.stored
            fields = {"type": "close", "reason": reason, "closed_ns": self._now()}
            fields |= {"next_sequence": stored.sequence, "lost": self._losses.by_reason()}
            block = encode_record(self._client_id, stored.sequence, fields)
            write_whole(stored.segment.descriptor, [block], stored.offset)
            if self._options.durability == "node":
                stored.segment.sync(stored.offset)
        except OSError as error:
            logger.warning("%s: closed, but the last events stay in the tail: %s", self._tail.path, error)
            self._next_sequence = self._count(claim)
            self._tail.mark_closed(claim.epoch)
        else:
            self._tail.remove()
        return 0

    def _let_go(self) -> None:
        """Give up the mapping and the files, not the events."""
        owner.heartbeat.unwatch(self._segments[0].path)
        for epoch in list(self._epochs):
            # One view may be in use by a thread that was not inherited, or by one that is about to find out.
            with suppress(BufferError):
                epoch.revoke()
        with suppress(BufferError):
            self._tail.unmap()
        for segment in self._segments:
            segment.close()

    def after_fork_in_child(self) -> None:
        """Make everything that was inherited useless; the next call opens a client of this process."""
        self._politeness = threading.RLock()
        if not self._closed and not self._forked:
            self._forked = True
            self._let_go()

    # -- the way of a call that the fast path cannot serve -------------------------------------------------------------

    def _resume(self, event_string: Record, log_string: Record, trouble: Exception) -> int:
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
        if isinstance(trouble, AttributeError):  # no text in the first parameter, so the fast path has not seen it
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

        if self._finished:
            self._losses.add("closed", left)
            return 0
        try:
            return self._transact(operation, claim)
        except OSError as error:
            self._losses.add(errno.errorcode.get(error.errno or 0, "EIO"), left)
        except ChronoLogError:
            self._losses.add("story gone", left)
        return 0

    def _transact(self, operation: Callable[[Claim], int], claim: Claim | None = None) -> int:
        """Run `operation` with the tail to itself, again whenever it was revoked before it was done."""
        polite = self._politeness.acquire(timeout=_POLITENESS_S)
        try:
            while True:
                if self._forked:
                    self._open(new_client_id(), {**self._options.description, "parent_client_id": self._client_id})
                try:
                    claim = self._claim(claim)
                    try:
                        return operation(claim)
                    finally:
                        self._free(claim)
                except ValueError as error:
                    if claim is None or not claim.epoch.revoked or not is_own(error):
                        raise
        finally:
            if polite:
                self._politeness.release()

    def _claim(self, claim: Claim | None) -> Claim:
        """Return the sole right to write: by asking for it, or by revoking it from whoever has it."""
        if claim is not None and not claim.epoch.revoked:
            return claim
        for epoch in list(self._epochs):
            claim = _ask(epoch)
            if claim is not None and not epoch.revoked:
                return claim
        epoch = Epoch(self._tail, Stored(-1, self._segments[0], 0))
        self._epochs[epoch] = None
        others = [other for other in self._epochs if other is not epoch]
        deadline = time.monotonic() + PATIENCE_S
        for other in others:
            while not _revoke(other):
                if time.monotonic() > deadline:
                    self._epochs.pop(epoch, None)
                    raise OSError(errno.EBUSY, "another call is held up in the file system")
                time.sleep(0.001)
        epoch.stored = max((other.stored for other in others), key=_progress)
        for other in others:
            self._epochs.pop(other, None)
        return Claim(epoch, self._settle(epoch))

    def _settle(self, epoch: Epoch) -> int:
        """Finish what a revoked epoch may have left half done; return the first free slot."""
        sequence, segment, offset = epoch.stored
        while header := complete_block(segment.descriptor, offset, self._client_id):
            if header.first_sequence != sequence:
                break
            offset += header.block_bytes
            sequence = header.end_sequence
        epoch.stored = Stored(sequence, segment, offset)
        tail = self._tail
        if sequence > tail.base(epoch):
            tail.recycle(epoch, sequence, self._reading.model)
            return 0
        slot = tail.first_free(epoch)
        tail.clear(epoch, slot)
        return slot

    def _free(self, claim: Claim) -> None:
        """Let the fast path go on behind the last event."""
        tail, epoch, reading = self._tail, claim.epoch, self._reading
        try:
            slot = tail.first_free(epoch, claim.slot)
            end = tail.end(epoch, slot)
        except ValueError as error:
            if epoch.revoked and is_own(error):
                return
            raise
        if self._closed:
            return
        run = appends(epoch, slot, tail.layout.capacity, end, reading.tick, reading.offset_ns)
        run.send(None)  # type: ignore[arg-type]
        epoch.run = run
        self._send = run.send
        self._publish(run.send)

    # -- what is done with a claim -------------------------------------------------------------------------------------

    def _now(self) -> int:
        return self._reading.tick() + self._reading.offset_ns

    def _count(self, claim: Claim) -> int:
        """Return the sequence number of the next event."""
        return self._tail.base(claim.epoch) + self._tail.first_free(claim.epoch, claim.slot)

    def _flush(self, claim: Claim) -> int:
        """Move the tail to a block and, for durability "node", bring it to the device."""
        self._roll(claim)
        stored = claim.epoch.stored
        if self._options.durability == "node":
            try:
                stored.segment.sync(stored.offset)
            except OSError as error:
                logger.warning("%s: sync failed (%s), going on in a new segment", stored.segment.path, error)
                segment, offset = stored.segment.successor(stored.offset)
                self._segments.append(segment)
                claim.epoch.stored = Stored(stored.sequence, segment, offset)
        self._acknowledged = max(self._acknowledged, stored.sequence)
        return stored.sequence

    def _put(self, claim: Claim, payload: bytes, sizes_bytes: Sequence[int]) -> int:
        """Store a batch that fits a block; return its time. The commit is the last thing that can fail."""
        tail, epoch, count = self._tail, claim.epoch, len(sizes_bytes)
        layout = tail.layout
        slot = claim.slot = tail.first_free(epoch, claim.slot)
        end = tail.end(epoch, slot)
        if slot + count > layout.capacity or end + len(payload) > layout.tail_bytes:
            self._roll(claim)
            slot, end = 0, layout.payload_offset
        time_ns = self._now()
        if count > layout.capacity or end + len(payload) > layout.tail_bytes:
            times, ends = array("Q", [time_ns]) * count, array("Q", accumulate(sizes_bytes))
            self._write_block(epoch, memoryview(times), memoryview(ends), memoryview(payload), origin=0)
            tail.recycle(epoch, epoch.stored.sequence, self._reading.model)
        elif count:
            epoch.memory[end : end + len(payload)] = payload
            epoch.times[slot : slot + count] = array("Q", [time_ns]) * count
            ends = array("Q", accumulate(sizes_bytes, initial=end))
            epoch.ends[slot + 1 : slot + count] = ends[2:]
            epoch.ends[slot] = ends[1]
        return time_ns

    def _roll(self, claim: Claim) -> None:
        """Move the tail's events to a block and recycle the tail.

        Raises:
            OSError: the file system refused; the events are still in the tail.
        """
        tail, epoch = self._tail, claim.epoch
        slot = tail.first_free(epoch, claim.slot)
        if slot:
            start, end = tail.layout.payload_offset, tail.end(epoch, slot)
            self._write_block(epoch, epoch.times[:slot], epoch.ends[:slot], epoch.memory[start:end], start)
            tail.recycle(epoch, epoch.stored.sequence, self._reading.model)
            claim.slot = 0

    def _write_block(
        self, epoch: Epoch, times: memoryview, ends: memoryview, payload: memoryview, origin: int
    ) -> None:
        if time.monotonic_ns() < self._retry_at_ns:
            raise OSError(self._refused_errno, os.strerror(self._refused_errno))
        sequence, segment, offset = epoch.stored
        header = BlockHeader(
            kind=KIND_EVENTS,
            client_id=self._client_id,
            first_sequence=sequence,
            count=len(times),
            columns_crc=zlib.crc32(ends, zlib.crc32(times)),
            payload_crc=zlib.crc32(payload),
            payload_bytes=payload.nbytes,
            origin=origin,
            first_time=times[0],
            last_time=times[-1],
            clock=self._reading.model,
        )
        header.pack_into(epoch.header)
        zeros = padding(epoch.header.nbytes + header.columns_bytes + header.payload_bytes)
        try:
            size_bytes = write_whole(segment.descriptor, [epoch.header, times, ends, payload, zeros], offset)
        except OSError as error:
            self._refused_errno = error.errno or errno.EIO
            self._retry_at_ns = time.monotonic_ns() + int(RETRY_S * 1e9)
            raise
        epoch.stored = Stored(header.end_sequence, segment, offset + size_bytes)


def _fast_path(
    resume: Callable[[Record, Record, Exception], int],
) -> tuple[Callable[..., int], Callable[[Callable[[bytes], int]], None]]:
    """Return `log_event`, and the function that tells it where the events go from now on."""
    send: Callable[[bytes], int]

    def log_event(event_string: str | bytes = MISSING, log_string: str | bytes = MISSING) -> int:
        try:
            return send(event_string.encode())  # type: ignore[union-attr]
        except (StopIteration, ValueError, AttributeError) as trouble:
            return resume(event_string, log_string, trouble)

    def publish(new_send: Callable[[bytes], int]) -> None:
        nonlocal send
        send = new_send

    log_event.__doc__ = Writer.log_event.__doc__
    return log_event, publish


def _claim_in(trouble: Exception) -> Claim | None:
    """Return the claim with which the fast path ended, if this is how it ended."""
    return trouble.value if isinstance(trouble, StopIteration) else None


def _ask(epoch: Epoch) -> Claim | None:
    """Ask the fast path of an epoch for its claim; None if somebody else has it, or will not give it."""
    run = epoch.run
    deadline = time.monotonic() + _HANDOVER_S
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


def _is_below(frame: object) -> bool:
    """Tell whether `frame` is on this thread's stack."""
    here = sys._getframe()
    while here is not None:
        if here is frame:
            return True
        here = here.f_back  # type: ignore[assignment]
    return False


def _revoke(epoch: Epoch) -> bool:
    """Revoke an epoch; False while a system call of another thread still uses it."""
    try:
        epoch.revoke()
    except BufferError:
        return False
    return True


def _progress(stored: Stored) -> tuple[int, int, int]:
    """Order what several epochs know of the same client."""
    return stored.sequence, stored.segment.number, stored.offset


_writers: weakref.WeakSet[Appender] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for writer in list(_writers):
        writer.after_fork_in_child()


def _at_exit() -> None:
    for writer in list(_writers):
        writer.close("exit")


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_at_exit)
