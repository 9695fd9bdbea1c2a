"""The records at the two ends of a segment: whose it is, and how he left it."""

from __future__ import annotations

import os
import stat
from typing import Any

from py_chronolog_client.store.crc import crc32
from py_chronolog_client.store.format import (
    ALIGNMENT,
    BLOCK_MAGIC,
    HEADER_BYTES,
    KIND_RECORD,
    BlockHeader,
    decode_map,
)

MAX_RECORD_BLOCK_BYTES = 2**20
"""Longest record that is read here."""


def read_client_record(path: str | os.PathLike[str], client_id: int) -> dict[str, Any] | None:
    """Return the client record at the start of a segment, or None where none can be believed.

    Args:
        path: the segment.
        client_id: whose it is by its name.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return _read_client_record(descriptor, client_id)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def read_close_record(descriptor: int, client_id: int) -> dict[str, Any] | None:
    """Return the close record that is the last block of a segment, or None where the last block is none.

    Raises:
        OSError: the segment cannot be read.
    """
    end = os.fstat(descriptor).st_size
    start = max(0, end - MAX_RECORD_BLOCK_BYTES)
    data = os.pread(descriptor, end - start, start)
    place = data.rfind(BLOCK_MAGIC)
    while place >= 0:
        header = BlockHeader.unpack(data[place : place + HEADER_BYTES])
        if (
            header is not None
            and (start + place) % ALIGNMENT == 0
            and place + header.block_bytes == len(data)
        ):
            return _fields(data[place:], client_id, "close")
        place = data.rfind(BLOCK_MAGIC, 0, place)
    return None


def _read_client_record(descriptor: int, client_id: int) -> dict[str, Any] | None:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        return None
    header = BlockHeader.unpack(os.pread(descriptor, HEADER_BYTES, 0))
    if header is None or header.block_bytes > MAX_RECORD_BLOCK_BYTES:
        return None
    return _fields(os.pread(descriptor, header.block_bytes, 0), client_id, "client")


def _fields(block: bytes, client_id: int, kind: str) -> dict[str, Any] | None:
    """Return what a record block says, or None where it is none of that kind and client, or damaged."""
    header = BlockHeader.unpack(block[:HEADER_BYTES])
    if header is None or header.kind != KIND_RECORD or header.client_id != client_id:
        return None
    payload = block[HEADER_BYTES:][: header.payload_bytes]
    if len(payload) < header.payload_bytes or crc32(payload) != header.payload_crc:
        return None
    try:
        fields = decode_map(payload)
    except ValueError:
        return None
    return fields if fields.get("type") == kind else None
