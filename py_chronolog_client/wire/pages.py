"""Pages of events as the body of a message: the columns one after another, then the records.

    times, client_ids, sequences, ends, windows_ns   u64[count] each
    aligned                                          u64[count], in an aligned replay
    records                                          bytes

Columns are little-endian. `ends` says where each record ends, counted from the first. The columns of a page that
was received are views of the body, which nobody copies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from py_chronolog_client.errors import ProtocolError
from py_chronolog_client.page import U64, MemoryPage, Page, Payload
from py_chronolog_client.wire import messages

MAX_PAGE_BYTES = 4 * 2**20
"""A page is cut before its records take more, but holds at least one event."""

_COLUMNS = 5


def pack_page(page: Page) -> Iterator[tuple[messages.Page, list[bytes | memoryview]]]:
    """Yield the messages, with the pieces of their bodies, that carry a page: several if its records are large."""
    payload = page.payload()
    windows = page.windows_ns()
    for start, stop in _cuts(payload.ends):
        part = payload.part(start, stop)
        columns = [page.times, page.client_ids, page.sequences, part.ends, windows]
        if page.aligned is not None:
            columns.append(page.aligned)
        cut = [column if column is part.ends else column[start:stop] for column in columns]
        body: list[bytes | memoryview] = [_bytes_of(column) for column in cut]
        body.append(part.data)
        yield messages.Page(stop - start, page.aligned is not None), body


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
    times, client_ids, sequences, ends, windows = words[:_COLUMNS]
    records = memoryview(body)[columns_bytes:]
    if int(ends[-1]) != len(records) or bool(np.any(ends[1:] < ends[:-1])):
        raise ProtocolError("a page whose records do not fill it")
    aligned = words[_COLUMNS] if message.aligned else None
    keys = times if aligned is None else aligned
    if bool(np.any(keys[1:] < keys[:-1])):
        raise ProtocolError("a page whose events are not in order")
    for column in words:
        column.setflags(write=False)
    return MemoryPage(times, client_ids, sequences, Payload(ends, records), windows, aligned)


def size_bytes(body: Sequence[bytes | memoryview]) -> int:
    """Return the size of a body that is given in pieces."""
    return sum(memoryview(piece).nbytes for piece in body)


def _cuts(ends: U64) -> Iterator[tuple[int, int]]:
    """Yield the parts of a page whose records take no more than a body may."""
    start, count = 0, len(ends)
    while start < count:
        before = int(ends[start - 1]) if start else 0
        stop = int(np.searchsorted(ends, np.uint64(before + MAX_PAGE_BYTES), "right"))
        stop = max(stop, start + 1)
        yield start, stop
        start = stop


def _bytes_of(column: U64) -> memoryview:
    return np.ascontiguousarray(column, "<u8").view(np.uint8).data
