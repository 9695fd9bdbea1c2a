"""The client record, which says whose a segment is."""

from __future__ import annotations

import os
import stat
import zlib
from typing import Any

from py_chronolog_client.store.format import HEADER_BYTES, KIND_RECORD, BlockHeader, decode_map

MAX_CLIENT_RECORD_BYTES = 2**20
"""Longest client record that is read."""


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
    except (OSError, ValueError):
        return None
    finally:
        os.close(descriptor)


def _read_client_record(descriptor: int, client_id: int) -> dict[str, Any] | None:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        return None
    header = BlockHeader.unpack(os.pread(descriptor, HEADER_BYTES, 0))
    if header is None or header.kind != KIND_RECORD or header.client_id != client_id:
        return None
    if header.payload_bytes > MAX_CLIENT_RECORD_BYTES:
        return None
    payload = os.pread(descriptor, header.payload_bytes, HEADER_BYTES)
    if len(payload) < header.payload_bytes or zlib.crc32(payload) != header.payload_crc:
        return None
    fields = decode_map(payload)
    return fields if fields.get("type") == "client" else None
