"""Pages of events as the body of a message: the columns one after another, then the records.

    times, client_ids, sequences, ends, windows_ns   u64[count] each
    aligned                                          u64[count], in an aligned replay
    records                                          bytes

Columns are little-endian. `ends` says where each record ends, counted from the first. The columns and records of a
page that was received are views of the body, which nobody copies, and nobody can change through them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from py_chronolog_client.errors import ProtocolError
from py_chronolog_client.page import U64, MemoryPage, Page, Payload
from py_chronolog_client.wire import messages

MAX_PAGE_BYTES = 4 * 2**20
"""A page is cut before its body takes more, but holds at least one event."""

_COLUMNS = 5


def pack_page(page: Page) -> Iterator[tuple[messages.Page, list[bytes | memoryview]]]:
    """Yield the messages, with the pieces of their bodies, that carry a page: several where one would be large."""
    payload = page.payload()
    columns = [page.times, page.client_ids, page.sequences, payload.ends, page.windows_ns()]
    if page.aligned is not None:
        columns.append(page.aligned)
    for start, stop in _cuts(payload.ends, 8 * len(columns)):
        part = payload.part(start, stop)
        cut = [part.ends if column is payload.ends else column[start:stop] for column in columns]
        yield messages.Page(stop - start, page.aligned is not None), [*map(_bytes_of, cut), part.data]


def unpack_page(message: messages.Page, body: bytes | bytearray | memoryview) -> Page:
    """Return the page that a message carries.

    Raises:
        ProtocolError: the body is none.
    """
    count, columns = message.count, _COLUMNS + message.aligned
    columns_bytes = 8 * columns * count
    if count < 1 or len(body) < columns_bytes:
        raise ProtocolError(f"a page of {count} events in {len(body)} bytes")
    words = np.frombuffer(body, "<u8", columns * count).reshape(columns, count)
    words.flags.writeable = False
    times, client_ids, sequences, ends, windows = words[:_COLUMNS]
    records = memoryview(body).toreadonly()[columns_bytes:]
    if int(ends[-1]) != len(records) or bool(np.any(ends[1:] < ends[:-1])):
        raise ProtocolError("a page whose records do not fill it")
    aligned = words[_COLUMNS] if message.aligned else None
    if not _in_order(times if aligned is None else aligned, client_ids, sequences):
        raise ProtocolError("a page whose events are not in order")
    return MemoryPage(times, client_ids, sequences, Payload(ends, records), windows, aligned)


def _in_order(keys: U64, client_ids: U64, sequences: U64) -> bool:
    """Tell whether each event comes behind the one before it, by (key, client id, sequence)."""
    if bool(np.any(keys[1:] < keys[:-1])):
        return False
    ties = np.flatnonzero(keys[1:] == keys[:-1])
    ids, next_ids = client_ids[ties], client_ids[ties + 1]
    in_turn = (ids < next_ids) | ((ids == next_ids) & (sequences[ties] < sequences[ties + 1]))
    return bool(np.all(in_turn))


def _cuts(ends: U64, columns_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield the parts of a page whose bodies are not too large.

    Args:
        ends: where each record ends.
        columns_bytes: what an event takes in the columns.
    """
    count = len(ends)
    sizes = ends + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(columns_bytes)
    start = 0
    while start < count:
        before = int(sizes[start - 1]) if start else 0
        stop = int(np.searchsorted(sizes, np.uint64(before + MAX_PAGE_BYTES), "right"))
        stop = max(stop, start + 1)
        yield start, stop
        start = stop


def _bytes_of(column: U64) -> memoryview:
    return np.ascontiguousarray(column, "<u8").view(np.uint8).data
