"""An intake: how the blocks of one client that arrive at a keeper become the client's segment there.

A sender ships blocks in order and may begin again anywhere behind what the intake has; it may have been killed, or an
answer may have been lost. So the intake takes every event once, by its number, and every record once, by what is in
it (`incoming`). What it has is told by the segment alone: nothing beside it could be lost or be newer than it.

**Sealing.** `roll` makes what is there final, so that it can be handed over (`handover`), and goes on in another segment
that says all that has to be known of what was before (`Incoming.beginning`). It is done in this order: the `roll` record
is the last block of the one segment; what was promised to be on the device is there; the next segment is written, is on
the device, and then appears. A death between any two steps leaves one segment that goes on behind its last block, or
two of which the first is sealed. Where there is no room for the next one, a segment that ends with a `roll` record waits
for it: nothing may be written behind that record, so whatever comes makes the next segment first. Of a client that has
left there is nothing to be said by a `roll` record. The next segment ends with its goodbye as well, and it comes back there.

While the client has not said goodbye, a tail without events stands beside the segment, as docs/format.md demands it
of a segment that is still being written. It belongs to nobody, so it keeps nobody from destroying the story: who
holds it is the visor's affair.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from py_chronolog_client.clock import ClockModel
from py_chronolog_client.errors import ClosedError, DamageError, InvalidArgumentError
from py_chronolog_client.store import acquisition, owner
from py_chronolog_client.store.blocks import complete_block, find_header, read_exactly, read_header
from py_chronolog_client.store.files import publish_file, sync_file, temporary_beside
from py_chronolog_client.store.format import (
    ALIGNMENT,
    CHUNK_FORMAT,
    HEADER_BYTES,
    KIND_RECORD,
    TAIL_CLOSED,
    TAIL_HEADER_BYTES,
    TAIL_STATE_OFFSET,
    BlockHeader,
    TailHeader,
    TailState,
    decode_map,
)
from py_chronolog_client.store.handover import Part, parts
from py_chronolog_client.store.incoming import FOLLOWS, Arrival, Incoming, roll_record
from py_chronolog_client.store.root import StoreRoot
from py_chronolog_client.store.segment import Segment, write_whole

_TAIL_BYTES = TAIL_HEADER_BYTES + 64
_ZEROS = bytes(2**16)

logger = logging.getLogger("py_chronolog_client")


class Intake:
    """One client's segment at a keeper.

    Thread safety: everything. A sync and appends may go on at the same time.

    Attributes:
        client_id: whose.
        sequence: number of the next event that it takes.
        is_empty: whether it has not even the client's first record.
        taken: how many events it has appended.
    """

    def __init__(self, root: StoreRoot, directory: Path, client_id: int) -> None:
        """Find out what is there of a client.

        Args:
            root: the store.
            directory: the story's.
            client_id: whose blocks will come; there is one intake of a client at a time.

        Raises:
            InvalidArgumentError: the store has format 2.
            DamageError: the segment does not begin with a record of this client.
            OSError: it cannot be read.
        """
        if root.format >= CHUNK_FORMAT:
            raise InvalidArgumentError(
                f"{root.path}: a keeper goes on in segments that were closed, which a store of format {root.format} does "
                "not allow: give it a directory of its own"
            )
        self.client_id = client_id
        self.taken = 0
        self._root = root
        self._path = directory / f"{client_id:016x}.log"
        self._tail_path = self._path.with_suffix(".tail")
        numbers = acquisition.segments(directory).get(client_id)
        part = parts(directory, client_id, numbers)[-1] if numbers else Part(0, ())
        self._incoming = Incoming(self._path, client_id, records_from=part.first_sequence)
        self._lock, self._syncing = threading.RLock(), threading.Lock()
        self._segment: Segment | None = None
        self._offset = self._durable = 0
        self._synced_before = numbers[0] if numbers else 0
        self._remains = self._is_durable = False
        self._given_up = False
        try:
            self._recover(part.numbers)
        except BaseException:
            self.close()
            raise

    @property
    def sequence(self) -> int:
        return self._incoming.sequence

    @property
    def is_empty(self) -> bool:
        return self._incoming.is_empty

    @property
    def is_synchronised(self) -> bool:
        """Whether the client has just said what is known of its clock: the best moment to seal what is there."""
        return self._incoming.is_synchronised

    def append(self, block: bytes | bytearray | memoryview) -> int:
        """Append a block, unless it is there already; return the number behind the last event that is there.

        Durability: in the page cache; on the device after `sync`.

        Raises:
            ClosedError: the intake was closed.
            InvalidArgumentError: it is no block that follows on what is there.
            OSError: the file system refused it, or (ESTALE) somebody has deleted the segment. It may be tried again.
        """
        arrival = self._incoming.checked(block)
        if arrival.fields is not None and (arrival.kind == "roll" or FOLLOWS in arrival.fields):
            raise self._incoming.refusal("a client says what only its keeper knows")
        while True:
            with self._lock:
                self._require_open()
                if not self._incoming.is_rolled:
                    if not self._incoming.has(arrival):
                        self._incoming.require(arrival)
                        self._put(arrival)
                        self.taken += arrival.header.count
                        self._settle_tail()
                    return self.sequence
            self.roll()

    def roll(self) -> None:
        """Seal what is there and go on in another segment, unless there are no events.

        Durability: the other segment is on the device, and what was before as far as it was promised.

        Raises:
            ClosedError: the intake was closed.
            OSError: the file system refused it. It may be tried again.
        """
        if self._is_durable:
            self.sync()  # most of it, while blocks can come
        with self._syncing, self._lock:
            self._require_open()
            if not self._incoming.has_events:
                return
            if not (self._incoming.is_closed or self._incoming.is_rolled):
                self._put(self._incoming.checked(roll_record(self.client_id, self.sequence)))
            if self._is_durable:
                self._sync()
            self._go_on()

    def sync(self) -> int:
        """Bring what is there to the device; return the number behind the last event that is on it.

        Raises:
            OSError: nothing can be promised. It may be tried again: the blocks then go to another segment.
        """
        self._is_durable = True
        with self._syncing:  # of two syncs at a time only one is told of an error
            return self._sync()

    def close(self) -> None:
        """Let go of the files, when what is being appended is there. Nothing can be appended any more."""
        with self._lock:
            self._given_up = True
            if self._segment is not None:
                self._segment.close()

    def _require_open(self) -> None:
        if self._given_up:
            raise ClosedError(f"{self._path}: the intake was closed")

    # -- what is there --

    def _recover(self, numbers: Sequence[int]) -> None:
        """Read the headers of all segments that are not sealed, and be ready to go on behind the last whole block."""
        for number in numbers:
            try:
                segment = Segment.reopened(self._root, self._path, number, self.client_id)
            except DamageError as error:
                if number not in (0, numbers[-1]) or not self._is_worthless(error.path):
                    raise
                os.unlink(error.path)
                continue
            if self._segment is not None:
                self._segment.close()
            self._segment = segment
            self._offset = self._read(segment)
        if self._segment is not None:
            self._settle_tail()

    def _is_worthless(self, path: str) -> bool:
        """Tell whether no block stands behind the damaged first one: a power cut came before the first sync."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            return find_header(descriptor, ALIGNMENT, os.fstat(descriptor).st_size, self.client_id) is None
        finally:
            os.close(descriptor)

    def _read(self, segment: Segment) -> int:
        """Note all blocks of a segment; return the offset behind the last whole one.

        What is damaged in the middle is left to readers, which report it. Only the last block can be unfinished.
        """
        descriptor = segment.descriptor
        size_bytes = os.fstat(descriptor).st_size
        found: list[tuple[int, BlockHeader]] = []
        offset: int | None = 0
        while offset is not None:
            header = read_header(descriptor, offset)
            if header is None or header.client_id != self.client_id:
                offset = find_header(descriptor, offset + ALIGNMENT, size_bytes, self.client_id)
            elif offset + header.block_bytes > size_bytes:
                break
            else:
                found.append((offset, header))
                offset += header.block_bytes
        while complete_block(descriptor, found[-1][0], self.client_id) is None:
            found.pop()
        for offset, header in found:
            self._incoming.note(_arrival(descriptor, offset, header))
        offset, header = found[-1]
        self._remains = size_bytes > offset + header.block_bytes
        return offset + header.block_bytes

    # -- what is written --

    def _put(self, arrival: Arrival) -> None:
        """Write a block behind the last one."""
        if self._segment is None:
            self._segment = Segment(self._root, self._path, bytes(arrival.block))
            self._offset = self._segment.start
        else:
            self._segment.require_name()  # before a tail is made, perhaps in a later story of that name
            if arrival.fields is None:
                self._settle_tail()
            if self._remains:
                self._clear_remains(self._segment)
            self._remains = True
            self._offset += self._segment.write([arrival.block], self._offset)
            self._remains = False
        self._incoming.note(arrival)

    def _clear_remains(self, segment: Segment) -> None:
        """Write zeros over what an unfinished append has left: a shorter block would not cover it."""
        offset, size_bytes = self._offset, os.fstat(segment.descriptor).st_size
        while offset < size_bytes:
            offset += write_whole(segment.descriptor, [_ZEROS[: size_bytes - offset]], offset)

    def _settle_tail(self) -> None:
        """Let a tail stand beside the segment exactly as long as the client has not said goodbye."""
        if self._incoming.is_closed:
            with suppress(FileNotFoundError):
                os.unlink(self._tail_path)
        elif not os.path.lexists(self._tail_path):
            layout = TailHeader.layout(self.client_id, _TAIL_BYTES, 1, owner.boot_id())
            data = bytearray(_TAIL_BYTES)
            for offset, part in (
                (0, layout.pack()),
                (TAIL_STATE_OFFSET, TailState(0, TAIL_CLOSED, ClockModel()).pack()),
            ):
                data[offset : offset + len(part)] = part
            publish_file(self._tail_path, bytes(data), self._root.file_mode)

    def _sync(self) -> int:
        """Bring what is there to the device, or to another segment if that fails, as the only one."""
        with self._lock:
            segment, offset, sequence = self._segment, self._offset, self.sequence
        if segment is None or offset == self._durable:
            return sequence
        for number in range(
            self._synced_before, segment.number
        ):  # sealed by somebody to whom nobody had promised that
            with suppress(FileNotFoundError):
                sync_file(acquisition.segment_path(self._path.parent, self.client_id, number))
        self._synced_before = segment.number
        try:
            segment.sync(offset)
        except OSError as error:
            logger.warning("%s: sync failed (%s), going on in a new segment", segment.path, error)
            with self._lock:
                sequence, offset = self.sequence, self._replace(segment)
        self._durable = offset
        return sequence

    def _replace(self, segment: Segment) -> int:
        """Go on in a new segment, because a sync of the present one has failed; return how much of it is on the device."""
        successor = segment.successor(self._offset, lambda: True)
        assert successor is not None
        self._go_on_in(*successor)
        self._synced_before = successor[0].number
        successor[0].sync(self._offset)
        return self._offset

    def _go_on(self) -> None:
        """Begin a segment behind the present one, which is sealed by that."""
        assert self._segment is not None
        number = self._segment.number + 1
        segment = Segment(self._root, temporary_beside(self._path), self._incoming.beginning())
        try:
            segment.sync(segment.start)
            segment.become(self._path, number)
        except BaseException:
            segment.discard()
            raise
        self._go_on_in(segment, segment.start)
        self._incoming.follow()

    def _go_on_in(self, segment: Segment, offset: int) -> None:
        if self._segment is not None:
            self._segment.close()
        self._segment, self._offset = segment, offset
        self._durable, self._remains = 0, False


def _arrival(descriptor: int, offset: int, header: BlockHeader) -> Arrival:
    """Return a block that is there; of events the header is enough."""
    if header.kind != KIND_RECORD:
        return Arrival(header, b"", None)
    block = read_exactly(descriptor, header.block_bytes, offset) or b""
    fields = None
    with suppress(ValueError):
        fields = decode_map(block[HEADER_BYTES:][: header.payload_bytes])
    return Arrival(header, block, fields)
