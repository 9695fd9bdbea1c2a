"""What may be logged, and the bytes that stand for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from collections.abc import Set as AbstractSet
from typing import Any

from py_chronolog_client.errors import RecordTooLargeError

MISSING: Any = object()
"""Default of a parameter that was not given."""

Record = str | bytes | bytearray | memoryview


def encode(record: Record, limit_bytes: int) -> bytes:
    """Return the bytes of one record: a text's UTF-8, or bytes as they are.

    Raises:
        TypeError: the record is neither, or a text with lone surrogates, which has no UTF-8.
        RecordTooLargeError: it is larger than `limit_bytes`.
    """
    if isinstance(record, str):
        try:
            data = record.encode()
        except UnicodeEncodeError as error:
            raise TypeError(
                f"a text with the lone surrogate {error.object[error.start]!r} cannot be logged: log bytes instead"
            ) from error
    elif isinstance(record, (bytes, bytearray, memoryview)):
        data = bytes(record)
    else:
        raise TypeError(f"a record is text or bytes, not {type(record).__name__}")
    if len(data) > limit_bytes:
        raise RecordTooLargeError(len(data), limit_bytes)
    return data


def the_one(event_string: Record, log_string: Record | None) -> Record:
    """Return the argument of a `log_event` that was given under either of its two names."""
    if log_string is None or log_string is MISSING:
        if event_string is MISSING:
            raise TypeError("log_event() takes one record, none was given")
        return event_string
    if event_string is not MISSING:
        raise TypeError("log_event() takes one record, two were given")
    return log_string


def encode_batch(batch: Iterable[Record], limit_bytes: int) -> tuple[bytes, Sequence[Sized]]:
    """Return the records of a batch one after another, and objects whose lengths are their sizes in bytes.

    The sizes are not counted yet: who needs where the records end makes one pass over them instead of two.

    Raises:
        TypeError: the batch is a single record, or one of its items is no record; nothing is to be logged
        then. RecordTooLargeError: an item is larger than `limit_bytes`.
    """
    if isinstance(batch, (str, bytes, bytearray, memoryview)):
        raise TypeError("log_events() takes a sequence of records, not one record")
    if isinstance(batch, (Mapping, AbstractSet)):
        raise TypeError(
            f"log_events() takes a sequence of records, which has an order, not a {type(batch).__name__}"
        )
    items: Sequence[Any] = tuple(batch)  # the caller's list may change meanwhile
    try:
        text = "".join(items)
    except TypeError:
        text = None
    if text is not None and text.isascii():
        payload = text.encode()
        if len(payload) > limit_bytes and (largest := max(map(len, items))) > limit_bytes:
            raise RecordTooLargeError(largest, limit_bytes)
        return payload, items
    records = [encode(item, limit_bytes) for item in items]
    return b"".join(records), records


def pieces(
    payload: bytes, records: Sequence[Sized], start: int, limit_events: int, limit_bytes: int
) -> Iterator[tuple[bytes, Sequence[Sized]]]:
    """Cut a batch, from record number `start` on, into batches within both limits.

    A single record always fits: `limit_bytes` is at least the limit of a record.
    """
    if not start and len(records) <= limit_events and len(payload) <= limit_bytes:
        yield payload, records
        return
    offset = sum(map(len, records[:start]))
    while start < len(records):
        stop, end = start, offset
        while (
            stop < len(records)
            and stop - start < limit_events
            and end + len(records[stop]) - offset <= limit_bytes
        ):
            end += len(records[stop])
            stop += 1
        yield payload[offset:end], records[start:stop]
        start, offset = stop, end
