"""Deposits: what a grapher takes in of a story, a sealed segment at a time.

A deposit checks every block as a keeper does (`incoming`), writes it to a file that readers ignore, and lets that
appear when it is complete and on the device, as the client's next segment. What is taken is all or nothing, so it may be
tried again as often as it takes, and what is there already is not taken again. In a store of format 2 such a segment is
final, so whoever merges segments into chunks, or deletes them when they are old, may do that at the same time.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import NamedTuple

from py_chronolog_client.engine.base import ScanReport
from py_chronolog_client.errors import InvalidArgumentError
from py_chronolog_client.store import files
from py_chronolog_client.store.format import CHUNK_FORMAT, encode_record
from py_chronolog_client.store.incoming import FOLLOWS, Arrival, Incoming
from py_chronolog_client.store.root import StoreRoot
from py_chronolog_client.store.segment import Segment
from py_chronolog_client.store.storylog import StoryLog

_MAKING = ".deposit"
"""Names that begin with `files.TEMPORARY` and end so are deposits that are being made."""


class _End(NamedTuple):
    """How far a client has got."""

    sequence: int
    next_number: int


class Deposits:
    """What there is of the clients of a story, and comes next. Nobody else takes anything in there.

    Thread safety: everything.
    """

    def __init__(self, root: StoreRoot, directory: Path) -> None:
        """Find out what is there; delete what a process that died has left half-done.

        Args:
            root: the store.
            directory: of the story.

        Raises:
            InvalidArgumentError: the store has format 1, in which segments may not be merged.
            NotFoundError: the story is gone.
            StoreError: this process may not open as many files as there are segments.
        """
        if root.format < CHUNK_FORMAT:
            raise InvalidArgumentError(
                f"{root.path}: a store of format {root.format} cannot merge what is deposited: make the store with "
                f"format {CHUNK_FORMAT}"
            )
        self.root = root
        self.directory = directory
        for path in directory.glob(f"{files.TEMPORARY}*{_MAKING}"):
            path.unlink()
        log = StoryLog(directory)
        log.refresh(ScanReport())
        self._lock = threading.Lock()
        self._ends = {
            client_id: _End(client.end_sequence, client.next_number)
            for client_id, client in log.clients.items()
        }

    def open(self, client_id: int) -> Deposit:
        """Begin a deposit of a client."""
        return Deposit(self, client_id, self._end(client_id).sequence)

    def publish(self, client_id: int, segment: Segment, before: int, after: int) -> None:
        """Let the segment of a deposit appear.

        Raises:
            InvalidArgumentError: another deposit of the client was first.
            OSError: it cannot.
        """
        with self._lock:
            end = self._end(client_id)
            if end.sequence != before:
                raise InvalidArgumentError(
                    f"{self.directory}: another deposit of client {client_id:016x} was first, up to event {end.sequence}: "
                    "begin again"
                )
            segment.become(self.directory / f"{client_id:016x}.log", end.next_number)
            try:
                files.sync_directory(self.directory)
            except OSError:
                segment.discard()
                raise
            self._ends[client_id] = _End(after, segment.number + 1)

    def _end(self, client_id: int) -> _End:
        return self._ends.get(client_id, _End(0, 0))


class Deposit:
    """A sealed segment on its way in.

    Attributes:
        sequence: number of the first event that is not there yet, when the deposit began.
    """

    def __init__(self, deposits: Deposits, client_id: int, sequence: int) -> None:
        self.sequence = sequence
        self._deposits = deposits
        self._incoming = Incoming(deposits.directory / f"{client_id:016x}.log", client_id, sequence)
        self._segment: Segment | None = None
        self._offset = 0

    def append(self, block: bytes | bytearray | memoryview) -> None:
        """Append the next block of the segment, unless its events are there already.

        Raises:
            InvalidArgumentError: it is no block, or does not follow on those before.
            OSError: the file system refused it.
        """
        arrival = self._incoming.checked(block)
        if self._incoming.has(arrival):
            return
        self._incoming.require(arrival)
        if self._segment is None:
            making = self._deposits.directory / f"{files.TEMPORARY}{files.unique_name()}{_MAKING}"
            self._segment = Segment(self._deposits.root, making, self._beginning(arrival))
            self._offset = self._segment.start
        else:
            self._offset += self._segment.write([arrival.block], self._offset)
        self._incoming.note(arrival)

    def publish(self) -> int:
        """Let the segment appear, if there is anything new in it; return the number behind the client's last event.

        Durability: on the device, and so is its name.

        Raises:
            InvalidArgumentError: it does not end as a sealed segment does; or another deposit of the client was first.
            OSError: it cannot; it may be tried again from the beginning, with another deposit.
        """
        incoming, segment = self._incoming, self._segment
        try:
            if segment is None or not (incoming.is_rolled or incoming.is_closed):
                raise incoming.refusal(
                    "a segment is not complete: its last record is no 'roll' and no 'close'"
                )
            if incoming.has_events:
                segment.sync(self._offset)
                self._deposits.publish(incoming.client_id, segment, self.sequence, incoming.sequence)
                segment.close()
        finally:
            self.abandon()
        return incoming.sequence

    def abandon(self) -> None:
        """Give up what has not been published; it is harmless to do it twice."""
        if self._segment is not None and self._segment.path.name.endswith(_MAKING):
            self._segment.discard()

    def _beginning(self, arrival: Arrival) -> bytes:
        """Return the client record as it is kept here, where nothing goes unless that is said: a gap before it is a loss."""
        header, fields = arrival.header, {**(arrival.fields or {})}
        if fields.pop(FOLLOWS, None) is None:
            return bytes(arrival.block)
        return encode_record(header.client_id, self.sequence, {**fields, "first_sequence": self.sequence})
