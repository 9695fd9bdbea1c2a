"""Blocks are believed where their checksums hold, whatever stands around them and wherever the file ends."""

import os
import pathlib
import zlib
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from py_chronolog_client.store import blocks
from py_chronolog_client.store.records import read_close_record
from tests.store import independent

CLIENT_ID = 5
EVENTS = [(1, b"one"), (2, b""), (2, b"three")]
BLOCK = independent.events_block(CLIENT_ID, 7, EVENTS, origin=100)
BODY_BYTES = 128 + 16 * len(EVENTS) + sum(len(record) for _, record in EVENTS)


@pytest.fixture
def descriptor(tmp_path: pathlib.Path) -> Iterator[int]:
    number = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield number
    os.close(number)


def put(descriptor: int, data: bytes) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, data, 0)


def test_a_whole_block_is_complete_wherever_it_stands(descriptor: int) -> None:
    put(descriptor, b"\xff" * 192 + BLOCK + b"behind")
    header = blocks.complete_block(descriptor, 192, CLIENT_ID)
    assert header is not None
    assert header == blocks.read_header(descriptor, 192)
    assert (header.first_sequence, header.end_sequence, header.block_bytes) == (7, 10, len(BLOCK))
    assert blocks.complete_block(descriptor, 192, CLIENT_ID + 1) is None
    for offset in (0, 128, 191, 193, 192 + len(BLOCK), 10_000):
        assert blocks.complete_block(descriptor, offset, CLIENT_ID) is None


def test_a_block_that_ends_early_is_none(descriptor: int) -> None:
    for size in range(len(BLOCK)):
        put(descriptor, BLOCK[:size])
        found = blocks.complete_block(descriptor, 0, CLIENT_ID)
        assert (found is not None) == (size >= BODY_BYTES), size  # the padding means nothing


def test_a_block_with_any_byte_changed_is_none(descriptor: int) -> None:
    for place in range(len(BLOCK)):
        put(descriptor, BLOCK[:place] + bytes([BLOCK[place] ^ 0x40]) + BLOCK[place + 1 :])
        found = blocks.complete_block(descriptor, 0, CLIENT_ID)
        assert (found is not None) == (place >= BODY_BYTES), place


@given(
    data=st.binary(max_size=200),
    offset=st.integers(0, 220),
    size=st.integers(0, 220),
    piece=st.integers(1, 50),
)
def test_pieces_add_up(data: bytes, offset: int, size: int, piece: int) -> None:
    """Also where the file system gives less than it was asked for."""
    part, real = data[offset : offset + size], os.pread
    descriptor = os.memfd_create("file")
    try:
        os.pwrite(descriptor, data, 0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "pread", lambda number, count, at: real(number, min(count, piece), at))
            whole = len(part) == size
            assert blocks.read_exactly(descriptor, size, offset) == (part if whole else None)
            assert blocks.checksum(descriptor, size, offset) == (zlib.crc32(part) if whole else None)
    finally:
        os.close(descriptor)


# -- the close record --

CLOSE = independent.close_record(CLIENT_ID, 10, reason="x" * 300)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (independent.client_record(CLIENT_ID) + BLOCK + CLOSE, True),
        (CLOSE, True),
        (CLOSE + BLOCK, False),
        (CLOSE + independent.client_record(CLIENT_ID, 10), False),
        (CLOSE + bytes(64), False),
        (CLOSE[:-1], False),
        (CLOSE[:-64], False),
        (bytes(1) + CLOSE, False),
        (independent.close_record(CLIENT_ID + 1, 10), False),
        (independent.client_record(CLIENT_ID), False),
        (independent.record_block(CLIENT_ID, 10, {"reason": "no type"}), False),
        (independent.block(independent.RECORD, CLIENT_ID, 10, [], [], b"\xc1 no msgpack"), False),
        (CLOSE[:150] + b"!" + CLOSE[151:], False),
        (b"", False),
        (b"CLOGBLK1", False),
        (b"CLOGBLK1" * 8 + CLOSE, True),
        (independent.close_record(CLIENT_ID, 10, note=CLOSE), True),
        (independent.close_record(CLIENT_ID, 10, note=b"CLOGBLK1" * 100), True),
        (independent.close_record(CLIENT_ID, 10, note="x" * 2**20), False),
        (bytes(2**20) + CLOSE, True),
    ],
    ids=str,
)
def test_the_close_record_is_the_last_block_or_none(descriptor: int, data: bytes, found: bool) -> None:
    put(descriptor, data)
    record = read_close_record(descriptor, CLIENT_ID)
    assert (record is not None) == found
    if record is not None:
        assert (record["type"], record["next_sequence"]) == ("close", 10)


@pytest.mark.parametrize("at", [0, 64, 256, 1024])
def test_the_next_header_is_found_on_the_grid_alone(
    descriptor: int, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "_SEARCH_BYTES", 192)
    damaged = bytearray(BLOCK)
    damaged[60] ^= 1
    foreign = independent.events_block(CLIENT_ID + 1, 7, EVENTS)
    before = bytes(32) + BLOCK + bytes(32) + damaged + foreign
    put(descriptor, before + bytes(at) + BLOCK + BLOCK)
    place = len(before) + at
    size_bytes = os.fstat(descriptor).st_size
    assert blocks.find_header(descriptor, 0, size_bytes, CLIENT_ID) == place
    assert blocks.find_header(descriptor, place, size_bytes, CLIENT_ID) == place
    assert blocks.find_header(descriptor, place + 64, size_bytes, CLIENT_ID) == place + len(BLOCK)
    assert blocks.find_header(descriptor, place + len(BLOCK) + 64, size_bytes, CLIENT_ID) is None
    assert blocks.find_header(descriptor, 0, place, CLIENT_ID) is None
