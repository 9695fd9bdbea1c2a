"""The journal: a client's own files in one process, and what may be done to them by whoever has the right.

A `Claim` is the sole right to the tail. It is got by ending the fast path between two events or, where that
is not possible, by revoking it from whoever has it, who then meets a released view and starts again. Blocks are
written with a `Pen` in the same way. So every operation here may break off at any step because somebody needed
the tail more urgently; then it has not happened.

An event goes through three states: in the tail, in a block as well, in a block only (the tail was recycled). The
sequence numbers of tail and block say which of two copies is one too many, at any moment, also after a crash.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from types import FrameType
from typing import Any

from py_chronolog_client.clock import Clock, ClockModel, Reading, pack_models
from py_chronolog_client.store import owner
from py_chronolog_client.store.catalog import Catalog
from py_chronolog_client.store.comeback import open_segment
from py_chronolog_client.store.format import CHUNK_FORMAT, TAIL_OPEN, TailHeader, TailState, encode_record
from py_chronolog_client.store.pen import Pen, Stored
from py_chronolog_client.store.rights import Right, is_own, is_revocation, supplant
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
)

logger = logging.getLogger("py_chronolog_client")

RETRY_S = 0.05
"""After the file system refused a block, events are refused for so long before it is asked again."""


class Journal:
    """The tail and the segments of one client, opened by one process.

    Attributes:
        pid: the process.
        client_id: the client; nobody else writes these files.
        first_sequence: number of its first event in this process.
        tail: the newest events.
        segments: the files of blocks that were opened, the newest last.
        clock: where times come from.
        reading: the clock's for now; under its model are the times of the tail.
        epochs: rights to the tail; all but the last are about to be revoked.
        pens: rights to the segments, likewise.
        next_sequence: behind its last event, known when it is closed.
        acknowledged: events below this number are on the device.
    """

    def __init__(
        self,
        catalog: Catalog,
        directory: Path,
        tail_directory: Path | None,
        client_id: int,
        description: Mapping[str, Any],
        clock: Clock,
        first_sequence: int = 0,
    ) -> None:
        """Acquire the story in `directory`: make the files, or reopen the segment of a client that comes back."""
        self.pid, self.client_id, self.first_sequence = os.getpid(), client_id, first_sequence
        self.clock, self._clock_since, self._noted = clock, first_sequence, 0
        self._given = clock.reading()
        self.reading = self._given.not_before(1)
        self.next_sequence = self.acknowledged = first_sequence
        self._retry_at_ns = 0
        self._refused_errno = 0
        root, path = catalog.root, directory / f"{client_id:016x}.log"
        fields = {**description, **owner.describe_process(), "type": "client", "client_id": client_id}
        fields |= {"first_sequence": first_sequence, "opened_ns": self.now()}
        first_block = encode_record(client_id, first_sequence, fields)
        if root.format < CHUNK_FORMAT:
            segment = Segment(root, path, first_block, returning=first_sequence > 0)
        else:
            segment = open_segment(root, directory, client_id, first_block, first_sequence)
        self.reading = self.reading.not_before(segment.closed_ns)
        try:
            layout = TailHeader.layout(client_id, TAIL_BYTES, TAIL_CAPACITY, owner.boot_id())
            state = TailState(first_sequence, TAIL_OPEN, self.reading.model)
            self.tail = Tail(root, path.with_suffix(".tail"), tail_directory, layout, state)
            try:
                catalog.confirm_acquisition(directory, client_id)
            except BaseException:
                self.tail.remove()
                raise
        except BaseException:
            segment.discard()
            raise
        owner.heartbeat.watch(segment.path)
        self.segments = [segment]
        self.pens = {Pen(Stored(first_sequence, segment, segment.start)): None}
        self.epochs = {Epoch(self.tail): None}

    def let_go(self) -> None:
        """Give up the mapping and the files, not the events. Doing it twice is harmless."""
        owner.heartbeat.unwatch(self.segments[0].path)
        rights: list[Right] = [*self.pens, *self.epochs]
        for right in rights:
            # One view may be in use by a thread that was not inherited, or by one that is about to find out.
            with suppress(BufferError):
                right.revoke()
        with suppress(BufferError):
            self.tail.unmap()
        for segment in self.segments:
            segment.close()

    def discard(self) -> None:
        """Undo the opening: nothing was ever logged."""
        self.let_go()
        self.tail.remove()
        self.segments[0].discard()

    def now(self) -> int:
        """Return the time of an event that is logged now, at the latest the last for which the reading is right.

        No event's time is after that.
        """
        return min(self.reading.tick(), self.reading.until) + self.reading.offset_ns

    # -- the right to the tail --

    def claim(self, claim: Claim | None, patience_s: float) -> Claim:
        """Return the sole right to write to the tail: by asking for it, or by revoking it from whoever has it.

        Args:
            claim: the right that the caller has, if it still holds.
            patience_s: how long to wait for another thread that is inside the fast path.
        """
        if claim is not None and not claim.epoch.revoked:
            return claim
        for epoch in list(self.epochs):
            claim = _ask(epoch, patience_s)
            if claim is not None and not epoch.revoked:
                return claim
        epoch = Epoch(self.tail)
        supplant(self.epochs, epoch)
        if os.getpid() != self.pid:  # forked before this was registered, so nobody has revoked it
            epoch.revoke()
        return Claim(epoch, self.settle(epoch), urgent=True)

    def settle(self, epoch: Epoch) -> int:
        """Finish what was left half done by who had the tail before; return the first free slot."""
        if any(pen.direct for pen in list(self.pens)):
            self._new_pen().busy = False
        slot = self.tail.first_free(epoch)
        stored = self._progress().sequence
        if self.tail.base(epoch) + slot <= stored:
            self.tail.recycle(epoch, stored, self.reading.model)
            return 0
        self.tail.clear(epoch, slot)
        return slot

    def fast_path(self, claim: Claim) -> Callable[[bytes], int]:
        """Return the `send` of a new fast path behind the last event; the claim is given up.

        Raises:
            ValueError: the claim was revoked; whoever did it has made a fast path.
        """
        tail, epoch = self.tail, claim.epoch
        slot = tail.first_free(epoch, claim.slot)
        capacity = tail.layout.capacity - RESERVE_EVENTS
        reading = self.reading
        run = appends(epoch, slot, capacity, tail.end(epoch, slot), reading.bounded(), reading.offset_ns)
        run.send(None)  # type: ignore[arg-type]
        epoch.run = run
        return run.send

    # -- the right to the segments --

    def _progress(self) -> Stored:
        """Return how far the events are in blocks, as far as anybody has noted it."""
        known = [pen.stored for pen in list(self.pens) if pen.stored is not None]
        return max(known, key=lambda stored: (stored.sequence, stored.segment.number, stored.offset))

    @contextmanager
    def pen(self) -> Iterator[Pen]:
        """Take the pen, or a new one if somebody else has it in his hands."""
        pen = list(self.pens)[-1]
        if pen.busy or pen.revoked:
            pen = self._new_pen()
        pen.busy = True
        yield pen
        pen.busy = False

    def _new_pen(self) -> Pen:
        pen = Pen(None)
        supplant(self.pens, pen, lambda pen: pen.look(self._progress(), self.client_id))
        return pen

    # -- what is done with a claim --

    def count(self, claim: Claim) -> int:
        """Return the sequence number of the next event."""
        return self.tail.base(claim.epoch) + self.tail.first_free(claim.epoch, claim.slot)

    def put(self, claim: Claim, payload: bytes, records: Sequence[Sized]) -> int:
        """Store a batch that fits a block; return its time. The commit is the last thing that can fail.

        Raises:
            OSError: the file system refused a block; the batch is not stored.
        """
        tail, epoch, count = self.tail, claim.epoch, len(records)
        capacity, limit = tail.layout.capacity, tail.layout.tail_bytes
        if not claim.urgent:
            capacity, limit = capacity - RESERVE_EVENTS, limit - RESERVE_BYTES
        slot = tail.first_free(epoch, claim.slot)
        end = tail.end(epoch, slot)
        if slot + count > capacity or end + len(payload) > limit:
            self.roll(claim)
            slot, end = 0, tail.layout.payload_offset
        if count > capacity or end + len(payload) > limit:
            return self._put_block(epoch, payload, records)
        time_ns = self.now()
        if count:
            epoch.memory[end : end + len(payload)] = payload
            epoch.times[slot : slot + count] = array("Q", [time_ns]) * count
            ends = _ends(records, end)
            epoch.ends[slot + 1 : slot + count] = ends[2:]
            epoch.ends[slot] = ends[1]
            claim.slot = slot + count
        return time_ns

    def _put_block(self, epoch: Epoch, payload: bytes, records: Sequence[Sized]) -> int:
        """Store a batch as a block of its own, behind an empty tail."""
        self._be_patient()
        time_ns = self.now()
        times, ends = array("Q", [time_ns]) * len(records), _ends(records, 0)
        columns = memoryview(times), memoryview(ends)[1:], memoryview(payload)
        with self.pen() as pen:
            pen.direct = True
            self._write(pen, *columns, 0, self.reading.model, tokens=(epoch.token,))
            pen.direct = False
            assert pen.stored is not None
            sequence = pen.stored.sequence
        try:
            self.tail.recycle(epoch, sequence, self.reading.model)
        except ValueError as error:
            if not is_revocation(error):  # otherwise the revoker has seen the block and recycled the tail
                raise
        return time_ns

    def ask_again(self) -> None:
        """Let the next block go to the file system, even if it has just refused one."""
        self._retry_at_ns = 0

    def roll(self, claim: Claim) -> None:
        """Move the tail's events to a block and recycle the tail.

        Raises:
            OSError: the file system refused; the events are still in the tail.
        """
        tail, epoch = self.tail, claim.epoch
        slot, base = tail.first_free(epoch, claim.slot), tail.base(epoch)
        if not slot:
            self._progress().segment.require_name()
            return
        self._be_patient()
        with self.pen() as pen:
            assert pen.stored is not None
            done = pen.stored.sequence - base
            if done < slot:
                start, stop = tail.end(epoch, done), tail.end(epoch, slot)
                columns = epoch.times[done:slot], epoch.ends[done:slot], epoch.memory[start:stop]
                self._write(pen, *columns, start, tail.model(epoch))
        claim.slot = 0
        tail.recycle(epoch, base + slot, self.reading.model)

    def _be_patient(self) -> None:
        """Refuse a block that the file system would refuse again, before anything costly is done for it."""
        if time.monotonic_ns() < self._retry_at_ns:
            raise OSError(self._refused_errno, os.strerror(self._refused_errno))

    def _write(
        self,
        pen: Pen,
        times: memoryview,
        ends: memoryview,
        payload: memoryview,
        origin: int,
        model: ClockModel,
        tokens: Sequence[memoryview] = (),
    ) -> None:
        """Write a block."""
        try:
            pen.write(self.client_id, times, ends, payload, origin, model, tokens)
        except OSError as error:
            if not is_own(error):
                raise
            self._refused_errno = error.errno or errno.EIO
            self._retry_at_ns = time.monotonic_ns() + int(RETRY_S * 1e9)
            raise

    def use_clock(self, claim: Claim, clock: Clock) -> None:
        """Let the times come from another clock."""
        if clock is not self.clock:
            self.note_models()
        self._use_reading(claim, clock.reading())
        if clock is not self.clock:
            self.clock, self._clock_since, self._noted = clock, self.tail.base(claim.epoch), 0

    def note_models(self) -> None:
        """Store what the clock has learned since the last time, for aligned replays."""
        models = list(self.clock.models)
        if len(models) > self._noted:
            fields = {"type": "clock", "first_sequence": self._clock_since}
            with self.pen() as pen:
                pen.write_record(self.client_id, {**fields, "models": pack_models(models)})
            self._noted = len(models)

    def renew(self, claim: Claim) -> None:
        """Ask the clock again if the time of its last reading is over.

        Only a new model ends a block, or a window that was wider for the time that stood still, when it goes on. Where the
        file system refuses that, times are made under the old model for a while longer, which needs a fresh offset as
        well: its window counts on that.
        """
        if self.reading.tick() <= self.reading.until:
            return
        reading = self.clock.reading()
        goes_on = reading.not_before(self.now()).model == reading.model
        if reading.model != (self.reading.model if goes_on else self._given.model):
            try:
                self._use_reading(claim, reading)
                return
            except OSError as error:
                if not is_own(error):
                    raise
                reading = self._given.refreshed()
        self.reading = replace(reading.not_before(self.now()), model=self.reading.model)

    def _use_reading(self, claim: Claim, reading: Reading) -> None:
        """Let the times come from another reading; the events so far go to a block with the present model."""
        self.roll(claim)
        self._given, self.reading = reading, reading.not_before(self.now())
        self.tail.recycle(claim.epoch, self.tail.base(claim.epoch), self.reading.model)

    def sync(self) -> None:
        """Bring all blocks to the device. A segment whose sync failed is never trusted again: see `Segment.successor`."""
        synced = False
        while not synced:
            with self.pen() as pen:
                synced = self._sync(pen)

    def _sync(self, pen: Pen) -> bool:
        """Return whether it is done; not if somebody has revoked the pen, who then goes on in a segment of his own."""
        assert pen.stored is not None
        sequence, segment, offset = pen.stored
        try:
            segment.sync(offset)
        except OSError as error:
            if not is_own(error):
                raise
            logger.warning("%s: sync failed (%s), going on in a new segment", segment.path, error)
            successor = segment.successor(offset, lambda: not pen.revoked)
            if successor is None:
                return False
            segment, offset = successor
            self.segments.append(segment)
            pen.stored = Stored(sequence, segment, offset)
            segment.sync(offset)
        self.acknowledged = max(self.acknowledged, sequence)
        return True

    def write_goodbye(self, reason: str, lost: dict[str, int], durable: bool) -> None:
        """Note how the client ended, behind its last block."""
        fields = {"type": "close", "reason": reason, "closed_ns": self.now()}
        fields |= {"next_sequence": self.next_sequence, "lost": lost}
        with self.pen() as pen:
            pen.write_record(self.client_id, fields)
            if durable:
                assert pen.stored is not None
                pen.stored.segment.sync(pen.stored.offset)


def _ends(records: Sequence[Sized], start: int) -> array[int]:
    """Return where the first record starts and where each one ends. A list on the way is the fastest."""
    return array("Q", list(accumulate(map(len, records), initial=start)))


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
            return claim_in(end)
        except ValueError as error:
            if not is_own(error):
                raise
            if _is_below(run.gi_frame) or time.monotonic() > deadline:  # type: ignore[attr-defined]
                return None
            time.sleep(0)  # another thread is inside, for less than a microsecond if it gets the GIL
    return None


def claim_in(trouble: Exception) -> Claim | None:
    """Return the claim with which the fast path ended, if this is how it ended."""
    return trouble.value if isinstance(trouble, StopIteration) else None


def _is_below(frame: object) -> bool:
    """Tell whether `frame` is on this thread's stack."""
    here: FrameType | None = sys._getframe()
    while here is not None and here is not frame:
        here = here.f_back
    return here is not None
