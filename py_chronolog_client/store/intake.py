"""An intake: how the blocks of one client that arrive at a keeper become the client's segment there.

A sender ships blocks in order and may begin again anywhere behind what the intake has; it may have been killed, or an
answer may have been lost. So the intake takes every event once, by its number, and every record once, by what is in
it. What it has is told by the segment alone: nothing beside it could be lost or be newer than it.

A block is believed only when all its checksums hold and its columns are what a reader expects: what comes over a
network is not always what was sent, and not always sent by a friend.

While the client has not said goodbye, a tail without events stands beside the segment, as docs/format.md demands it
of a segment that is still being written. It belongs to nobody, so it keeps nobody from destroying the story: who
holds it is the visor's affair.
"""

from __future__ import annotations

import logging
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from py_chronolog_client.clock import ClockModel
from py_chronolog_client.errors import ClosedError, DamageError, InvalidArgumentError
from py_chronolog_client.store import acquisition, owner
from py_chronolog_client.store.blocks import complete_block, find_header, read_exactly, read_header
from py_chronolog_client.store.crc import crc32
from py_chronolog_client.store.files import publish_file
from py_chronolog_client.store.format import (
    ALIGNMENT,
    CHUNK_FORMAT,
    HEADER_BYTES,
    KIND_EVENTS,
    KIND_RECORD,
    MAX_RECORD_BYTES,
    TAIL_CLOSED,
    TAIL_HEADER_BYTES,
    TAIL_STATE_OFFSET,
    BlockHeader,
    TailHeader,
    TailState,
    decode_map,
)
from py_chronolog_client.store.root import StoreRoot
from py_chronolog_client.store.segment import Segment, write_whole
from py_chronolog_client.store.stretch import are_sound

_LONGEST_RECORD_BYTES = 2**22
"""Of a record of a client about itself; what it may say of its clock in two months, once a minute."""
_TAIL_BYTES = TAIL_HEADER_BYTES + 64
_ZEROS = bytes(2**16)

logger = logging.getLogger("py_chronolog_client")


class _Record(NamedTuple):
    """What tells a record from all others of its client."""

    sequence: int
    payload_crc: int
    payload_bytes: int


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
        self.sequence = self.taken = 0
        self._root = root
        self._path = directory / f"{client_id:016x}.log"
        self._tail_path = self._path.with_suffix(".tail")
        self._lock, self._syncing = threading.Lock(), threading.Lock()
        self._segment: Segment | None = None
        self._offset = self._durable = 0
        self._remains = False
        self._records: set[_Record] = set()
        self._last_time = 0
        self._closed = True
        self._given_up = False
        try:
            self._recover(acquisition.segments(directory).get(client_id, []))
        except BaseException:
            self.close()
            raise

    @property
    def is_empty(self) -> bool:
        return self._segment is None

    def append(self, block: bytes | bytearray | memoryview) -> int:
        """Append a block, unless it is there already; return the number behind the last event that is there.

        Durability: in the page cache; on the device after `sync`.

        Raises:
            ClosedError: the intake was closed.
            InvalidArgumentError: it is no block that follows on what is there.
            OSError: the file system refused it, or (ESTALE) somebody has deleted the segment. It may be tried again.
        """
        header, fields = self._checked(block)
        with self._lock:
            if self._given_up:
                raise ClosedError(f"{self._path}: the intake was closed")
            if not self._has(header):
                if fields is None:
                    self._require_next(header)
                else:
                    self._require_fitting(header, fields)
                self._put(header, bytes(block) if self._segment is None else block)
                self._note(header, fields)
                self.taken += header.count
                self._settle_tail()
            return self.sequence

    def sync(self) -> int:
        """Bring what is there to the device; return the number behind the last event that is on it.

        Raises:
            OSError: nothing can be promised. It may be tried again: the blocks then go to another segment.
        """
        with self._syncing:  # of two syncs at a time only one is told of an error
            with self._lock:
                segment, offset, sequence = self._segment, self._offset, self.sequence
            if segment is None or offset == self._durable:
                return sequence
            try:
                segment.sync(offset)
            except OSError as error:
                logger.warning("%s: sync failed (%s), going on in a new segment", segment.path, error)
                with self._lock:
                    sequence, offset = self.sequence, self._replace(segment)
            self._durable = offset
            return sequence

    def close(self) -> None:
        """Let go of the files, when what is being appended is there. Nothing can be appended any more."""
        with self._lock:
            self._given_up = True
            if self._segment is not None:
                self._segment.close()

    # -- what is there --

    def _recover(self, numbers: list[int]) -> None:
        """Read the headers of all segments, and be ready to go on behind the last whole block of the last one."""
        for number in numbers:
            try:
                segment = Segment.reopened(self._root, self._path, number, self.client_id)
            except DamageError:
                if number or not self._is_worthless():
                    raise
                os.unlink(self._path)
                continue
            if self._segment is not None:
                self._segment.close()
            self._segment = segment
            self._offset = self._read(segment)
        if self._segment is not None:
            self._settle_tail()

    def _is_worthless(self) -> bool:
        """Tell whether no block stands behind the damaged first one: a power cut came before the first sync."""
        descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
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
            fields = None
            if header.kind == KIND_RECORD:
                payload = read_exactly(descriptor, header.payload_bytes, offset + HEADER_BYTES)
                with suppress(ValueError):
                    fields = decode_map(payload or b"")
            self._note(header, fields)
        offset, header = found[-1]
        self._remains = size_bytes > offset + header.block_bytes
        return offset + header.block_bytes

    def _note(self, header: BlockHeader, fields: dict[str, object] | None) -> None:
        """Take note of a block that is there."""
        self.sequence = max(self.sequence, header.end_sequence)
        if header.kind == KIND_EVENTS:
            self._last_time = max(self._last_time, header.last_time)
            self._closed = False
        elif fields is not None:
            self._records.add(_record(header))
            if fields.get("type") in ("client", "close"):
                self._closed = fields["type"] == "close"

    # -- what may come --

    def _checked(self, block: bytes | bytearray | memoryview) -> tuple[BlockHeader, dict[str, object] | None]:
        """Return the header of a block, and the fields of a record.

        Raises:
            InvalidArgumentError: it is none of this client's, or not what was sent.
        """
        view = memoryview(block)
        header = BlockHeader.unpack(view[:HEADER_BYTES])
        if header is None:
            raise self._refusal("a block has no valid header")
        if header.client_id != self.client_id:
            raise self._refusal(f"a block is client {header.client_id:016x}'s")
        if len(view) != header.block_bytes:
            raise self._refusal(f"a block of {header.block_bytes} bytes came with {len(view)}")
        columns = view[HEADER_BYTES:][: header.columns_bytes]
        payload = view[HEADER_BYTES + header.columns_bytes :][: header.payload_bytes]
        if any(view[HEADER_BYTES + header.columns_bytes + header.payload_bytes :]):
            raise self._refusal(f"the block at event {header.first_sequence} does not end with zeros")
        if crc32(columns) != header.columns_crc or crc32(payload) != header.payload_crc:
            raise self._refusal(f"a checksum of the block at event {header.first_sequence} does not hold")
        if header.kind == KIND_EVENTS:
            self._check_events(header, columns)
            return header, None
        if header.kind != KIND_RECORD or header.count:
            raise self._refusal(f"a block is of the unknown kind {header.kind}")
        if header.payload_bytes > _LONGEST_RECORD_BYTES:
            raise self._refusal(f"a record of {header.payload_bytes} bytes is over {_LONGEST_RECORD_BYTES}")
        try:
            fields: dict[str, object] = decode_map(bytes(payload))
        except ValueError as error:
            raise self._refusal(f"a record cannot be read: {error}") from None
        return header, fields

    def _check_events(self, header: BlockHeader, columns: memoryview) -> None:
        words = np.frombuffer(columns, "<u8")
        times, ends = words[: header.count], words[header.count :]
        if not header.count or not are_sound(header, times, ends):
            raise self._refusal(f"times or ends of the block at event {header.first_sequence} make no sense")
        longest = max(int(ends[0]) - header.origin, int(np.max(ends[1:] - ends[:-1], initial=0)))
        if longest > MAX_RECORD_BYTES:
            raise self._refusal(f"a record of {longest} bytes is over the limit of {MAX_RECORD_BYTES}")

    def _has(self, header: BlockHeader) -> bool:
        """Tell whether a block is there already."""
        if self._segment is None:
            return False
        if header.kind == KIND_RECORD:
            return _record(header) in self._records
        return header.end_sequence <= self.sequence

    def _require_next(self, header: BlockHeader) -> None:
        """Make sure that an events block follows on what is there."""
        if self._closed:
            raise self._refusal("events come before the client's record")
        if header.first_sequence > self.sequence:
            raise self._refusal(
                f"the events {self.sequence} to {header.first_sequence - 1} are missing before a block"
            )
        if header.first_sequence < self.sequence:
            raise self._refusal(
                f"a block with the events {header.first_sequence} to {header.end_sequence - 1} repeats those "
                f"below {self.sequence}: send only what follows"
            )
        if header.first_time < self._last_time:
            raise self._refusal(f"the block at event {header.first_sequence} is earlier than the one before")

    def _require_fitting(self, header: BlockHeader, fields: dict[str, object]) -> None:
        """Make sure that a record may stand behind what is there."""
        kind, sequence = fields.get("type"), header.first_sequence
        if kind == "client":
            if (fields.get("client_id"), fields.get("first_sequence")) != (self.client_id, sequence):
                raise self._refusal("the client's record names another client or place")
            if not self._closed:
                raise self._refusal("the client comes back and has not left")
            if self._segment is not None and sequence != self.sequence:
                raise self._refusal(f"the client left before event {self.sequence}, not {sequence}")
        elif self._closed:
            raise self._refusal(f"a record {kind!r:.40} comes before the client's")
        elif sequence > self.sequence or (kind == "close" and sequence != self.sequence):
            raise self._refusal(
                f"a record {kind!r:.40} is for the place before event {sequence}, not {self.sequence}"
            )
        elif kind == "close" and fields.get("next_sequence") != sequence:
            raise self._refusal(f"the client's goodbye at event {sequence} names another place")

    def _refusal(self, sentence: str) -> InvalidArgumentError:
        return InvalidArgumentError(f"{self._path}: {sentence}; nothing of it was taken")

    # -- what is written --

    def _put(self, header: BlockHeader, block: bytes | bytearray | memoryview) -> None:
        """Write a block behind the last one."""
        if self._segment is None:
            self._segment = Segment(self._root, self._path, bytes(block))
            self._offset = self._segment.start
            return
        self._segment.require_name()  # before a tail is made, perhaps in a later story of that name
        if header.kind == KIND_EVENTS:
            self._settle_tail()
        if self._remains:
            self._clear_remains(self._segment)
        self._remains = True
        self._offset += self._segment.write([block], self._offset)
        self._remains = False

    def _clear_remains(self, segment: Segment) -> None:
        """Write zeros over what an unfinished append has left: a shorter block would not cover it."""
        offset, size_bytes = self._offset, os.fstat(segment.descriptor).st_size
        while offset < size_bytes:
            offset += write_whole(segment.descriptor, [_ZEROS[: size_bytes - offset]], offset)

    def _settle_tail(self) -> None:
        """Let a tail stand beside the segment exactly as long as the client has not said goodbye."""
        if self._closed:
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

    def _replace(self, segment: Segment) -> int:
        """Go on in a new segment, because a sync of the present one has failed; return how much of it is on the device."""
        successor = segment.successor(self._offset, lambda: True)
        assert successor is not None
        self._segment, self._offset = successor
        self._durable, self._remains = 0, False
        segment.close()
        self._segment.sync(self._offset)
        return self._offset


def _record(header: BlockHeader) -> _Record:
    return _Record(header.first_sequence, header.payload_crc, header.payload_bytes)
