"""One event: who logged what, when."""

from __future__ import annotations

from functools import total_ordering
from typing import Any

_INDEX_MASK = 2**32 - 1
_MAX_64 = 2**64 - 1


@total_ordering
class Event:
    """An event of a story. Immutable; ordered as a story is: by time, client id, sequence number, record."""

    __slots__ = ("_client_id", "_record", "_sequence", "_time")

    def __init__(
        self, event_time: int = 0, client_id: int = 0, index: int = 0, log_record: str | bytes = ""
    ) -> None:
        """Make an event.

        Args:
            event_time: ns since 1970 UTC, 0 to 2**64 - 1.
            client_id: 0 to 2**64 - 1.
            index: sequence number; `index()` returns its low 32 bits.
            log_record: text or bytes.
        """
        for name, value in (("event_time", event_time), ("client_id", client_id), ("index", index)):
            if not isinstance(value, int):
                raise TypeError(f"{name} is a whole number, not {type(value).__name__}")
            if not 0 <= value <= _MAX_64:
                raise ValueError(f"{name} {value} is not between 0 and 2**64 - 1")
        if not isinstance(log_record, (str, bytes)):
            raise TypeError(f"log_record is text or bytes, not {type(log_record).__name__}")
        self._time = event_time
        self._client_id = client_id
        self._sequence = index
        try:
            self._record = log_record.encode() if isinstance(log_record, str) else log_record
        except UnicodeEncodeError as error:
            raise TypeError("log_record has a lone surrogate, which has no UTF-8: use bytes") from error

    def time(self) -> int:
        """Return the time that `log_event` returned, ns since 1970 UTC."""
        return self._time

    def client_id(self) -> int:
        """Return the id of the client that logged the event."""
        return self._client_id

    def index(self) -> int:
        """Return the low 32 bits of the event's sequence number in its client."""
        return self._sequence & _INDEX_MASK

    def log_record(self) -> str:
        """Return the record as text.

        Raises:
            UnicodeDecodeError: it was logged as bytes that are no UTF-8; see `record_bytes`.
        """
        return self._record.decode()

    def record_bytes(self) -> bytes:
        """Return the record as bytes. An extension of the ChronoLog API."""
        return self._record

    def sequence(self) -> int:
        """Return the event's number in its client: 0, 1, 2, ... (64 bits). An extension of the ChronoLog API."""
        return self._sequence

    def _key(self) -> tuple[int, int, int, bytes]:
        return self._time, self._client_id, self._sequence, self._record

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Event) else NotImplemented

    def __lt__(self, other: Any) -> bool:
        return self._key() < other._key() if isinstance(other, Event) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        record = self._record.decode(errors="backslashreplace")
        return f"Event({self._time}, {self._client_id}, {self._sequence}, {record!r})"

    def __reduce__(self) -> tuple[type[Event], tuple[int, int, int, bytes]]:
        return Event, self._key()


def make_events(
    times: list[int], client_ids: list[int], sequences: list[int], records: list[bytes]
) -> list[Event]:
    """Make many events at once from columns that are known to be good."""
    new = object.__new__
    events = []
    for time, client_id, sequence, record in zip(times, client_ids, sequences, records, strict=True):
        event = new(Event)
        event._time = time
        event._client_id = client_id
        event._sequence = sequence
        event._record = record
        events.append(event)
    return events
