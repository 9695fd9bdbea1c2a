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

MAX_PAGE_BYTES = 8 * 2**20
"""A page is cut before its records take more, but holds at least one event."""

_COLUMNS = 5
_FIRST_EVENTS, _GROWTH = 256, 8


def pack_page(page: Page) -> Iterator[tuple[messages.Page, list[bytes | memoryview]]]:
    """Yield the messages, with the pieces of their bodies, that carry a page: several if its records are large.

    The records are fetched a few at a time, as many as those before let expect to fit a message.
    """
    windows = page.windows_ns()
    start, step = 0, _FIRST_EVENTS
    while start < len(page):
        payload = page.payload(start, start + step)
        for first, stop in _cuts(payload.ends):
            part = payload.part(first, stop)
            cut = slice(start + first, start + stop)
            columns = [page.times[cut], page.client_ids[cut], page.sequences[cut], part.ends, windows[cut]]
            if page.aligned is not None:
                columns.append(page.aligned[cut])
            body: list[bytes | memoryview] = [_bytes_of(column) for column in columns]
            body.append(part.data)
            yield messages.Page(stop - first, page.aligned is not None), body
        start += len(payload)
        fitting = len(payload) * MAX_PAGE_BYTES // max(1, len(payload.data))
        step = max(1, min(_GROWTH * step, fitting))


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
