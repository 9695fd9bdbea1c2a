"""The bytes of a store, as docs/format.md defines them, and nothing else: no files, no policy."""

from __future__ import annotations

import struct
import sys
from typing import Any, NamedTuple

import msgpack

from py_chronolog_client.clock import MODEL_BYTES, ClockModel
from py_chronolog_client.store.crc import crc32

FORMAT = 2
"""The newest format that this software knows."""
NEW_FORMAT = 1
"""The format of a new store, unless somebody asks for another."""
CHUNK_FORMAT = 2
"""The first format whose stores may hold chunks, and whose segments are never written to again once they are closed."""
ALIGNMENT = 64

MAX_RECORD_BYTES = 64 * 2**20
"""Largest record of one event."""
MAX_PAYLOAD_BYTES = 128 * 2**20
"""Largest payload of one block."""
MAX_BLOCK_EVENTS = 2**20
"""Largest number of events in one block."""
MAX_SEQUENCE = 2**64 - 1
"""No event has a number above this; the number behind the last one fits 64 bits too."""

BLOCK_MAGIC = b"CLOGBLK1"
KIND_EVENTS = 1
KIND_RECORD = 2

if sys.byteorder != "little":  # pragma: no cover - the columns are mapped as they are
    raise ImportError("a ChronoLog store is little-endian, this machine is not: use a remote engine")


class BlockHeader(NamedTuple):
    """The header of a block; `docs/format.md` explains every field."""

    kind: int
    client_id: int
    first_sequence: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody wants of a header
    columns_crc: int
    payload_crc: int
    payload_bytes: int
    origin: int
    first_time: int
    last_time: int
    clock: ClockModel

    @property
    def end_sequence(self) -> int:
        """Sequence number behind the last event."""
        return self.first_sequence + self.count

    @property
    def columns_bytes(self) -> int:
        """Size of the two index columns."""
        return 16 * self.count

    @property
    def block_bytes(self) -> int:
        """Size of the whole block, padding included."""
        return padded(HEADER_BYTES + self.columns_bytes + self.payload_bytes)

    def pack(self) -> bytes:
        """Return the 128 bytes of the header."""
        body = _HEADER.pack(*self[:6], 0, *self[6:10]) + self.clock.pack()
        return BLOCK_MAGIC + _CRC.pack(crc32(body)) + body

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> BlockHeader | None:
        """Read a header, or return None where the bytes are not a valid one."""
        if len(data) < HEADER_BYTES or bytes(data[:8]) != BLOCK_MAGIC:
            return None
        (crc,) = _CRC.unpack_from(data, 8)
        head = _HEADER.unpack_from(data, 12)
        if crc != crc32(data[12:HEADER_BYTES]):
            return None
        clock = ClockModel.unpack(data[12 + _HEADER.size : HEADER_BYTES])
        return cls._make((*head[:6], *head[7:], clock)).checked()

    def checked(self) -> BlockHeader | None:
        """Return the header if it keeps the limits of the format, else None."""
        sound = (
            self.count <= MAX_BLOCK_EVENTS
            and self.payload_bytes <= MAX_PAYLOAD_BYTES
            and self.end_sequence <= MAX_SEQUENCE
            and self.origin + self.payload_bytes < 2**64
        )
        return self if sound else None


_HEADER = struct.Struct("<IQQIIIIQQQQ")
_CRC = struct.Struct("<I")
HEADER_BYTES = 12 + _HEADER.size + MODEL_BYTES


def padded(size_bytes: int) -> int:
    """Round up to where the next block may start."""
    return -(-size_bytes // ALIGNMENT) * ALIGNMENT


def padding(size_bytes: int) -> bytes:
    """Return the zeros that follow `size_bytes` of a block."""
    return bytes(-size_bytes % ALIGNMENT)


def encode_record(client_id: int, next_sequence: int, fields: dict[str, Any]) -> bytes:
    """Return a whole record block: `fields` with the key "type" as one msgpack map."""
    payload: bytes = msgpack.packb(fields)
    header = BlockHeader(
        kind=KIND_RECORD,
        client_id=client_id,
        first_sequence=next_sequence,
        count=0,
        columns_crc=0,
        payload_crc=crc32(payload),
        payload_bytes=len(payload),
        origin=0,
        first_time=0,
        last_time=0,
        clock=ClockModel(),
    )
    return header.pack() + payload + padding(HEADER_BYTES + len(payload))


def events_header(
    client_id: int,
    first_sequence: int,
    times: memoryview,
    ends: memoryview,
    payload: bytes | memoryview,
    origin: int,
    clock: ClockModel,
) -> BlockHeader:
    """Return the header of an events block.

    Args:
        client_id: whose events.
        first_sequence: number of the first one; there is one.
        times: "Q", times in ns.
        ends: "Q", where each record ends, counted as `origin` is.
        payload: the records.
        origin: what `ends` calls the start of the payload.
        clock: the model of the times.
    """
    return BlockHeader(
        kind=KIND_EVENTS,
        client_id=client_id,
        first_sequence=first_sequence,
        count=len(times),
        columns_crc=crc32(ends, crc32(times)),
        payload_crc=crc32(payload),
        payload_bytes=len(payload),
        origin=origin,
        first_time=times[0],
        last_time=times[-1],
        clock=clock,
    )


def decode_map(payload: bytes) -> dict[str, Any]:
    """Read one msgpack map with text keys; raise ValueError where the bytes are not one."""
    try:
        fields = msgpack.unpackb(payload, strict_map_key=True, max_ext_len=0)
    except Exception as error:  # msgpack raises its own, ValueError, UnicodeDecodeError and StackError
        raise ValueError(f"no msgpack map: {error}") from error
    if not isinstance(fields, dict) or not all(isinstance(key, str) for key in fields):
        raise ValueError("no msgpack map with text keys")
    return fields


class TailHeader(NamedTuple):
    """The constant part of a tail's header."""

    client_id: int
    capacity: int
    times_offset: int
    ends_offset: int
    payload_offset: int
    tail_bytes: int
    boot_id: bytes

    def pack(self) -> bytes:
        """Return the first 80 bytes of a tail."""
        body = _TAIL_BODY.pack(0, *self)
        return _TAIL_MAGIC + _CRC.pack(crc32(body)) + body

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> TailHeader | None:
        """Read a header, or return None where the bytes are not a valid one."""
        if len(data) < TAIL_STATIC_BYTES or bytes(data[:8]) != _TAIL_MAGIC:
            return None
        (crc,) = _CRC.unpack_from(data, 8)
        if crc != crc32(data[12:TAIL_STATIC_BYTES]):
            return None
        return cls(*_TAIL_BODY.unpack_from(data, 12)[1:]).checked()

    def checked(self) -> TailHeader | None:
        """Return the header if its offsets describe a tail, else None."""
        column_bytes = 8 * self.capacity
        sound = (
            0 < self.capacity <= MAX_TAIL_BYTES // 16
            and self.times_offset >= TAIL_HEADER_BYTES
            and self.times_offset + column_bytes <= self.ends_offset
            and self.ends_offset + column_bytes <= self.payload_offset < self.tail_bytes <= MAX_TAIL_BYTES
            and self.times_offset % 8 == self.ends_offset % 8 == 0
        )
        return self if sound else None

    @classmethod
    def layout(cls, client_id: int, tail_bytes: int, capacity: int, boot_id: bytes) -> TailHeader:
        """Return the header of a tail of the given size."""
        ends_offset = TAIL_HEADER_BYTES + 8 * capacity
        return cls(
            client_id,
            capacity,
            TAIL_HEADER_BYTES,
            ends_offset,
            ends_offset + 8 * capacity,
            tail_bytes,
            boot_id,
        )


_TAIL_MAGIC = b"CLOGTAL1"
_TAIL_BODY = struct.Struct("<IQQQQQQ16s")
TAIL_STATIC_BYTES = 12 + _TAIL_BODY.size

TAIL_FILE_OFFSET = TAIL_STATIC_BYTES
"""Where a tail says which file it is (u64, its inode's number; 0: it does not), so that a copy can be told from it."""
TAIL_HEADER_BYTES = 4096
MAX_TAIL_BYTES = 64 * 2**20
TAIL_STATE_OFFSET = 256
"""Where the changing part of a tail's header starts: base, state, clock."""
TAIL_STATE_BYTES = 16 + MODEL_BYTES
TAIL_OPEN = 0
TAIL_CLOSED = 1


class TailState(NamedTuple):
    """The changing part of a tail's header."""

    base: int
    state: int
    clock: ClockModel

    def pack(self) -> bytes:
        """Return the 64 bytes at `TAIL_STATE_OFFSET`."""
        return struct.pack("<QQ", self.base, self.state) + self.clock.pack()

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> TailState:
        """Read the 64 bytes at `TAIL_STATE_OFFSET`."""
        base, state = struct.unpack_from("<QQ", data)
        return cls(base, state, ClockModel.unpack(data[16:TAIL_STATE_BYTES]))
