"""What a client has written and a keeper has not: its blocks and its tail, as blocks to be shipped.

An outbox reads the files of a client that may be writing to them at this moment, or may be dead. It keeps one
number, the sequence of the next event that is to be sent, and yields what follows: whole blocks as they stand in
the segments, and the events of the tail as a block that it makes. Where the receiver has a part of a block
already, because it came out of the tail before, only the rest is sent. So a sender may begin again anywhere.

What was received need not be kept: its space is given back to the file system, as a hole in the segment. So a segment
of an outbox may begin with its client record, a hole, and what the edges of the hole have left of blocks that were
received. Whoever begins again looks for the next whole block; the sequence numbers say whether that is the right one.
"""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress
from pathlib import Path

import numpy as np

from py_chronolog_client.errors import DamageError
from py_chronolog_client.store import acquisition
from py_chronolog_client.store.blocks import find_header, whole_block
from py_chronolog_client.store.files import punch_hole
from py_chronolog_client.store.format import (
    ALIGNMENT,
    HEADER_BYTES,
    KIND_EVENTS,
    KIND_RECORD,
    BlockHeader,
    decode_map,
)
from py_chronolog_client.store.stretch import Descriptor, TailStretch
from py_chronolog_client.store.tailcopy import TailWatch, copy_tail

Pieces = list[bytes | memoryview]

_PAGE_BYTES = 4096
_RECLAIM_BYTES = 2**20
_SOON_S = 0.01
"""A tail that is full so soon is not copied: its events are read when they are a block."""


class Outbox:
    """The blocks of one client from a certain event on.

    Attributes:
        client_id: whose.
        directory: where its files are.
        sequence: number of the next event to be sent.
        ended: whether what was sent last is the client's goodbye.
        holds_back: whether the tail has something new that is not sent yet, because it fills so fast that it is a block soon.
    """

    def __init__(self, directory: Path, client_id: int) -> None:
        """Read the client's files in `directory`, a story's."""
        self.client_id = client_id
        self.directory = directory
        self._base_path = str(directory / f"{client_id:016x}")
        self._tail_path = f"{self._base_path}.tail"
        self.rewind(0, has_client=False)

    def rewind(self, sequence: int, *, has_client: bool) -> None:
        """Begin again with what a receiver does not have.

        Args:
            sequence: number of the first event that it has not.
            has_client: whether it has the client's first record.
        """
        self.sequence = sequence
        self.ended = self.holds_back = False
        self._has_client = has_client
        self._file: Descriptor | None = None
        self._number = self._offset = 0
        self._sent: deque[tuple[int, int]] = deque()
        self._kept_from = 0
        self._watch: TailWatch | None = None

    def take(self) -> Pieces | None:
        """Return the next block, in pieces, or None if there is nothing new, or nothing yet.

        Raises:
            DamageError: the files are not what was written; nothing behind this place can be sent.
        """
        wanted = self._next_wanted()
        if wanted is not None or not self._has_to_copy_the_tail():
            return wanted
        tail = copy_tail(self._tail_path, self.client_id, self.sequence)
        wanted = self._next_wanted()  # it may have rolled before it was copied
        if wanted is not None or tail is None or tail.events is None:
            return wanted
        if not tail.events.first_sequence <= self.sequence < tail.end_sequence:
            return None
        newest = tail.events.behind(self.sequence)
        self.sequence = newest.end_sequence
        return newest.block(self.client_id)

    def _has_to_copy_the_tail(self) -> bool:
        self.holds_back = False
        slot = None if self._watch is None else self._watch.slot_of(self.sequence)
        if self._watch is None or slot is None:
            self._watch = None
            with suppress(FileNotFoundError):
                self._watch = TailWatch(self._tail_path, self.client_id)
            return True
        if not self._watch.holds(slot):
            return False
        self.holds_back = self._watch.full_in_s() < _SOON_S
        return not self.holds_back

    def remove(self) -> None:
        """Delete the client's files, after everything was received."""
        for path in self.directory.glob(f"{self.client_id:016x}.*"):
            with suppress(FileNotFoundError):
                path.unlink()

    def _next_wanted(self) -> Pieces | None:
        """Return the next block of the segments that holds something new."""
        while (found := self._next_block()) is not None:
            header, block = found
            if header.kind == KIND_RECORD:
                if self._is_wanted(header, block):
                    return [block]
            elif header.kind == KIND_EVENTS and header.end_sequence > self.sequence:
                if header.first_sequence > self.sequence:
                    raise self._damage(
                        f"the events {self.sequence} to {header.first_sequence - 1} are missing"
                    )
                pieces: Pieces = [block]
                if header.first_sequence < self.sequence:
                    pieces = self._rest(header, block)
                self.sequence = header.end_sequence
                self.ended = False
                return pieces
        return None

    def reclaim(self, acknowledged: int) -> None:
        """Give back the space of the blocks whose events are all below `acknowledged`.

        Raises:
            OSError: the file system cannot.
        """
        stop = 0
        while self._sent and self._sent[0][0] <= acknowledged:
            stop = self._sent.popleft()[1]
        stop -= stop % _PAGE_BYTES
        if stop - self._kept_from >= _RECLAIM_BYTES:
            punch_hole(self._path(self._number), self._kept_from, stop)
            self._kept_from = stop

    def _next_block(self) -> tuple[BlockHeader, bytes] | None:
        """Return the next whole block of the segments."""
        while True:
            file = self._open()
            if file is None:
                return None
            found = self._block(file)
            if found is None:
                size_bytes = os.fstat(file.number).st_size
                following = find_header(file.number, self._offset + ALIGNMENT, size_bytes, self.client_id)
                # Where something stands behind it, what was being written a moment ago is whole by now.
                found = None if following is None else self._block(file)
            if found is not None:
                self._offset += found[0].block_bytes
                self._note(found[0])
                return found
            if following is not None:
                self._offset = following
            elif os.path.exists(self._path(self._number + 1)):
                self._file, self._number, self._offset = None, self._number + 1, 0
                self._sent.clear()
            else:
                return None

    def _block(self, file: Descriptor) -> tuple[BlockHeader, bytes] | None:
        """Return the block where the reading stands; of events that were sent when they were in the tail only the header."""
        return whole_block(file.number, self._offset, self.client_id, self.sequence)

    def _note(self, header: BlockHeader) -> None:
        """Note where a block ends, for `reclaim`; the first of a segment is kept, and a goodbye while it is the last."""
        if self._offset == header.block_bytes:
            self._kept_from = -(-self._offset // _PAGE_BYTES) * _PAGE_BYTES
        elif header.kind == KIND_EVENTS:
            self._sent.append((header.end_sequence, self._offset))

    def _open(self) -> Descriptor | None:
        if self._file is None:
            try:
                self._file = Descriptor(self._path(self._number))
            except FileNotFoundError:
                return None
        return self._file

    def _path(self, number: int) -> str:
        return f"{self._base_path}.{number}.log" if number else f"{self._base_path}.log"

    def _is_wanted(self, header: BlockHeader, block: bytes) -> bool:
        """Tell whether a record is sent: the first of all once, the others always, as a keeper knows them by content."""
        if self._number == 0 and self._offset == header.block_bytes:
            if self._has_client:
                return False
            self._has_client, self.sequence = True, header.first_sequence
            return True
        kind = decode_map(block[HEADER_BYTES : HEADER_BYTES + header.payload_bytes]).get("type")
        self.ended = kind == "close"
        return True

    def _rest(self, header: BlockHeader, block: bytes) -> Pieces:
        """Return the events of a block from `sequence` on, as a block."""
        skipped = self.sequence - header.first_sequence
        columns = np.frombuffer(block, np.uint64, 2 * header.count, HEADER_BYTES)
        times, ends = columns[skipped : header.count], columns[header.count + skipped :]
        origin = int(columns[header.count + skipped - 1])
        payload_at = HEADER_BYTES + header.columns_bytes + origin - header.origin
        payload = block[payload_at : HEADER_BYTES + header.columns_bytes + header.payload_bytes]
        rest = TailStretch(self.sequence, header.clock, times, ends, payload, origin)
        return rest.block(self.client_id)

    def _damage(self, reason: str) -> DamageError:
        return DamageError(self._path(self._number), self._offset, reason)


def clients_in(directory: Path) -> list[int]:
    """Return the ids of the clients that have files in a story's directory."""
    try:
        return acquisition.clients(directory)
    except FileNotFoundError:
        return []
