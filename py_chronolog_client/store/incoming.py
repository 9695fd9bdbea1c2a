"""What comes from a client block by block: whether it is what was sent, and whether it may follow on what came before.

A block is believed only when all its checksums hold and its columns are what a reader expects: what comes over a
network is not always what was sent, and not always sent by a friend.

An event came before if its number is below that of the next one. A record came before if one with its content did, at
its place; a sender that begins again repeats the records of a client, and they are not to be there twice. That would take
a memory of all records since the beginning, were it not for sealed segments (docs/format.md): a segment behind one
begins with all that has to be known, and what is for an earlier place certainly came before.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from py_chronolog_client.errors import InvalidArgumentError
from py_chronolog_client.store.blocks import is_sound
from py_chronolog_client.store.format import (
    HEADER_BYTES,
    KIND_EVENTS,
    KIND_RECORD,
    MAX_RECORD_BYTES,
    BlockHeader,
    decode_map,
    encode_record,
)
from py_chronolog_client.store.stretch import are_sound

FOLLOWS = "follows_ns"
"""In the first record of a segment behind a sealed one: the time of the last event before."""

_LONGEST_RECORD_BYTES = 2**22
"""Of a record of a client about itself; what it may say of its clock in two months, once a minute."""


class Arrival(NamedTuple):
    """A block that is sound."""

    header: BlockHeader
    block: bytes | bytearray | memoryview
    fields: dict[str, Any] | None
    """What a record says; None for events."""

    @property
    def kind(self) -> object:
        """The type of a record; None for events."""
        return None if self.fields is None else self.fields.get("type")

    @property
    def _identity(self) -> tuple[int, int, int]:
        """What tells a record from all others of its client."""
        return self.header.first_sequence, self.header.payload_crc, self.header.payload_bytes


class Incoming:
    """What has come from one client.

    Attributes:
        client_id: whose blocks.
        sequence: number of the next event.
        is_empty: whether not even the client's first record has come.
        is_closed: whether the client has left, or has not come yet.
        is_rolled: whether the last record was a `roll`, behind which nothing may come.
        is_synchronised: whether the last record says what is known of the client's clock, and no event came since.
        has_events: whether events have come since the last `roll`.
    """

    def __init__(self, path: Path, client_id: int, sequence: int = 0, records_from: int = 0) -> None:
        """Expect the blocks of a client.

        Args:
            path: named in errors.
            client_id: whose blocks.
            sequence: events below this came before.
            records_from: so did records for a place before the event with this number.
        """
        self.client_id = client_id
        self.sequence = sequence
        self.is_empty = self.is_closed = True
        self.is_rolled = self.is_synchronised = self.has_events = False
        self._path = path
        self._last_time = 0
        self._records: set[tuple[int, int, int]] = set()
        self._records_from = records_from
        self._client: dict[str, Any] = {}
        self._clock: Arrival | None = None
        self._here: list[Arrival] = []

    def checked(self, block: bytes | bytearray | memoryview) -> Arrival:
        """Return what a block is.

        Raises:
            InvalidArgumentError: it is none of this client's, or not what was sent.
        """
        view = memoryview(block)
        header = BlockHeader.unpack(view[:HEADER_BYTES])
        if header is None:
            raise self.refusal("a block has no valid header")
        if header.client_id != self.client_id:
            raise self.refusal(f"a block is client {header.client_id:016x}'s")
        if len(view) != header.block_bytes:
            raise self.refusal(f"a block of {header.block_bytes} bytes came with {len(view)}")
        payload_at = HEADER_BYTES + header.columns_bytes
        if any(view[payload_at + header.payload_bytes :]):
            raise self.refusal(f"the block at event {header.first_sequence} does not end with zeros")
        if not is_sound(header, view):
            raise self.refusal(f"a checksum of the block at event {header.first_sequence} does not hold")
        if header.kind == KIND_EVENTS:
            self._check_events(header, view[HEADER_BYTES:payload_at])
            return Arrival(header, block, None)
        if header.kind != KIND_RECORD or header.count:
            raise self.refusal(f"a block is of the unknown kind {header.kind}")
        if header.payload_bytes > _LONGEST_RECORD_BYTES:
            raise self.refusal(f"a record of {header.payload_bytes} bytes is over {_LONGEST_RECORD_BYTES}")
        try:
            fields = decode_map(bytes(view[payload_at:][: header.payload_bytes]))
        except ValueError as error:
            raise self.refusal(f"a record cannot be read: {error}") from None
        return Arrival(header, block, fields)

    def has(self, arrival: Arrival) -> bool:
        """Tell whether a block came before."""
        if self.is_empty:
            return False
        if arrival.fields is not None:
            return arrival.header.first_sequence < self._records_from or arrival._identity in self._records
        return arrival.header.end_sequence <= self.sequence

    def require(self, arrival: Arrival) -> None:
        """Make sure that a block that did not come before may follow.

        Raises:
            InvalidArgumentError: it may not.
        """
        if self.is_rolled:
            raise self.refusal("a block comes behind the end of a sealed segment")
        if arrival.fields is None:
            self._require_next(arrival.header)
        else:
            self._require_fitting(arrival.header, arrival.fields)

    def note(self, arrival: Arrival) -> None:
        """Take note of a block that has come."""
        header, fields = arrival.header, arrival.fields
        if header.kind == KIND_EVENTS:
            self.sequence = max(self.sequence, header.end_sequence)
            self._last_time = max(self._last_time, header.last_time)
            self.is_closed = self.is_synchronised = False
            self.has_events = True
            self._here = []
            return
        if header.first_sequence > self.sequence:
            self.sequence, self._here = header.first_sequence, []
        if fields is None:
            return
        self._records.add(arrival._identity)
        kind = arrival.kind
        if header.first_sequence == self.sequence and kind != "roll" and not self.is_empty:
            self._here.append(arrival._replace(block=bytes(arrival.block)))
        self.is_synchronised = kind == "clock"
        if kind == "client":
            self._note_client(fields)
        elif kind == "clock":
            self._clock = arrival._replace(block=bytes(arrival.block))
        elif kind == "close":
            self.is_closed = True
        elif kind == "roll":
            self.is_rolled = True

    def beginning(self) -> bytes:
        """Return the blocks with which a segment begins behind what has come, if that is sealed (docs/format.md)."""
        fields = {**self._client, "first_sequence": self.sequence, FOLLOWS: self._last_time}
        blocks = [encode_record(self.client_id, self.sequence, fields)]
        return b"".join([*blocks, *(arrival.block for arrival in self._repeated())])

    def follow(self) -> None:
        """Take note that a segment with this beginning is there."""
        self._records = {arrival._identity for arrival in self._repeated()}
        self._records_from = self.sequence
        self.is_rolled = self.has_events = False

    def _repeated(self) -> list[Arrival]:
        clock = [] if self._clock is None or self._clock in self._here else [self._clock]
        return clock + self._here

    def refusal(self, sentence: str) -> InvalidArgumentError:
        """Return an error that says why a block is not taken."""
        return InvalidArgumentError(f"{self._path}: {sentence}; nothing of it was taken")

    def _note_client(self, fields: dict[str, Any]) -> None:
        follows_ns = fields.get(FOLLOWS)
        if self.is_empty and isinstance(follows_ns, int):
            self._last_time = follows_ns
        self.is_empty = self.is_closed = False
        self._client = self._client or fields

    def _check_events(self, header: BlockHeader, columns: memoryview) -> None:
        words = np.frombuffer(columns, "<u8")
        times, ends = words[: header.count], words[header.count :]
        if not header.count or not are_sound(header, times, ends):
            raise self.refusal(f"times or ends of the block at event {header.first_sequence} make no sense")
        longest = max(int(ends[0]) - header.origin, int(np.max(ends[1:] - ends[:-1], initial=0)))
        if longest > MAX_RECORD_BYTES:
            raise self.refusal(f"a record of {longest} bytes is over the limit of {MAX_RECORD_BYTES}")

    def _require_next(self, header: BlockHeader) -> None:
        """Make sure that an events block follows on what came before."""
        if self.is_closed:
            raise self.refusal("events come before the client's record")
        if header.first_sequence > self.sequence:
            raise self.refusal(
                f"the events {self.sequence} to {header.first_sequence - 1} are missing before a block"
            )
        if header.first_sequence < self.sequence:
            raise self.refusal(
                f"a block with the events {header.first_sequence} to {header.end_sequence - 1} repeats those "
                f"below {self.sequence}: send only what follows"
            )
        if header.first_time < self._last_time:
            raise self.refusal(f"the block at event {header.first_sequence} is earlier than the one before")

    def _require_fitting(self, header: BlockHeader, fields: dict[str, Any]) -> None:
        """Make sure that a record may stand behind what came before."""
        kind, sequence = fields.get("type"), header.first_sequence
        if kind == "client":
            if (fields.get("client_id"), fields.get("first_sequence")) != (self.client_id, sequence):
                raise self.refusal("the client's record names another client or place")
            if not self.is_closed:
                raise self.refusal("the client comes back and has not left")
            if not self.is_empty and sequence != self.sequence:
                raise self.refusal(f"the client left before event {self.sequence}, not {sequence}")
        elif self.is_closed:
            raise self.refusal(f"a record {kind!r:.40} comes before the client's")
        elif sequence > self.sequence or (kind in ("close", "roll") and sequence != self.sequence):
            raise self.refusal(
                f"a record {kind!r:.40} is for the place before event {sequence}, not {self.sequence}"
            )
        elif kind in ("close", "roll") and fields.get("next_sequence") != sequence:
            raise self.refusal(f"a record {kind!r:.40} at event {sequence} names another place")
