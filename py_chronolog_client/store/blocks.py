"""Reading blocks from a descriptor, believing nothing that a checksum does not confirm.

Everything is read with pread: a file that is cut short or sits on a failing disk is then an error that can be
reported, where a mapping would be a SIGBUS.
"""

from __future__ import annotations

import os

from py_chronolog_client.store.crc import crc32
from py_chronolog_client.store.format import ALIGNMENT, BLOCK_MAGIC, HEADER_BYTES, KIND_EVENTS, BlockHeader

_PIECE_BYTES = 2**20
_SEARCH_BYTES = 2**20


def read_header(descriptor: int, offset: int) -> BlockHeader | None:
    """Read the header at `offset`, or return None where there is no valid one."""
    return BlockHeader.unpack(os.pread(descriptor, HEADER_BYTES, offset))


def read_exactly(descriptor: int, size_bytes: int, offset: int) -> bytes | None:
    """Read `size_bytes` at `offset`, or return None where the file is shorter."""
    data = os.pread(descriptor, size_bytes, offset)
    while len(data) < size_bytes:
        more = os.pread(descriptor, size_bytes - len(data), offset + len(data))
        if not more:
            return None
        data += more
    return data


def checksum(descriptor: int, size_bytes: int, offset: int) -> int | None:
    """Return the CRC-32 of a stretch of the file in bounded memory, or None where the file is shorter."""
    crc = 0
    while size_bytes:
        piece = os.pread(descriptor, min(size_bytes, _PIECE_BYTES), offset)
        if not piece:
            return None
        crc = crc32(piece, crc)
        offset += len(piece)
        size_bytes -= len(piece)
    return crc


def complete_block(descriptor: int, offset: int, client_id: int) -> BlockHeader | None:
    """Return the header of the block at `offset` if the whole block is there and its checksums hold."""
    header = read_header(descriptor, offset)
    if header is None or header.client_id != client_id:
        return None
    columns_at = offset + HEADER_BYTES
    if checksum(descriptor, header.columns_bytes, columns_at) != header.columns_crc:
        return None
    if checksum(descriptor, header.payload_bytes, columns_at + header.columns_bytes) != header.payload_crc:
        return None
    return header


def is_sound(header: BlockHeader, block: bytes | bytearray | memoryview) -> bool:
    """Tell whether the checksums of a block that was read whole hold."""
    body = memoryview(block)[HEADER_BYTES:]
    columns, payload = body[: header.columns_bytes], body[header.columns_bytes :][: header.payload_bytes]
    return crc32(columns) == header.columns_crc and crc32(payload) == header.payload_crc


def whole_block(
    descriptor: int, offset: int, client_id: int, known: int = 0
) -> tuple[BlockHeader, bytes] | None:
    """Read the block at `offset`, or return None where no whole one of this client stands.

    Of a block all of whose events are below the sequence number `known` only the header is read; its bytes are b"".
    """
    header = read_header(descriptor, offset)
    if header is None or header.client_id != client_id:
        return None
    if header.kind == KIND_EVENTS and header.end_sequence <= known:
        return header, b""
    block = read_exactly(descriptor, header.block_bytes, offset)
    return (header, block) if block is not None and is_sound(header, block) else None


def find_header(descriptor: int, start: int, size_bytes: int, client_id: int) -> int | None:
    """Return the offset of the first valid header of a client between `start` and `size_bytes`."""
    for at in range(start, size_bytes, _SEARCH_BYTES):
        piece = os.pread(descriptor, _SEARCH_BYTES + HEADER_BYTES, at)
        place = piece.find(BLOCK_MAGIC)
        while 0 <= place < min(_SEARCH_BYTES, size_bytes - at):
            if (at + place) % ALIGNMENT == 0:
                header = BlockHeader.unpack(piece[place : place + HEADER_BYTES])
                if header is not None and header.client_id == client_id:
                    return at + place
            place = piece.find(BLOCK_MAGIC, place + 1)
    return None
