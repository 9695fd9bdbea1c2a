"""An engine in memory that keeps the contract as differently from a file as it can.

An event is first *sent* and later *kept*: `flush`, `close` or `ToyEngine.deliver` move it. Only what is
kept is acknowledged, and only that is read. Pages are tiny, a replay merges lists, nothing survives the
process. A program that is right with this engine assumes no mapping, no instant acknowledgement and no page
size.

It is also meant for tests of programs that log: it can be told to be slow (do not deliver), to refuse
events (`refuse`) and to lose them (`spoil`).

**Why writers need no lock.** A writer must also work in a signal handler that interrupted it, where its own
lock would wait for ever. So both lists of a client are dicts with the keys 0, 1, 2, ..., and a call claims
the next key with `dict.setdefault`, one step that nothing interrupts; whoever finds the key taken starts
over. A value is a whole call of `log_event` or `log_events`, so a batch appears at once. The lock is for
the catalog alone.
"""

from __future__ import annotations

import heapq
import os
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from py_chronolog_client.clock import UNKNOWN_WINDOW_NS, Clock, ClockModel, Reading
from py_chronolog_client.engine.base import (
    MAX_TIME_NS,
    Capabilities,
    Engine,
    ScanReport,
    Snapshot,
    Writer,
    WriterOptions,
    WriterStatistics,
)
from py_chronolog_client.errors import (
    AcquiredError,
    ChronicleExistsError,
    ClosedError,
    DamageError,
    InvalidArgumentError,
    NotFoundError,
    ReplayTimeoutError,
)
from py_chronolog_client.records import MISSING, encode, encode_batch, the_one

if TYPE_CHECKING:
    from py_chronolog_client.page import Page

_POLL_S = 0.001
_Event = tuple[int, int, int, bytes, int, int]
"""key, client id, sequence, record, window, time: sorts in story order."""


class ToyEngine(Engine):
    """Keeps stories in memory, in the order of events and with acknowledgements that wait to be asked for.

    Thread safety: all methods may be called from any thread.
    """

    capabilities = Capabilities(survives_kill=False, node_durability=False)

    def __init__(self, page_events: int = 7, record_limit_bytes: int = 2**20) -> None:
        """Make an empty engine.

        Args:
            page_events: largest number of events in a page.
            record_limit_bytes: largest record that is accepted.
        """
        self.page_events = page_events
        self.record_limit_bytes = record_limit_bytes
        self._memory = _Memory()
        self._closed = False

    def beside(self) -> ToyEngine:
        """Return another engine on the same memory, as another process has it with a store."""
        other = type(self)(self.page_events, self.record_limit_bytes)
        other._memory = self._memory
        return other

    def deliver(self, count: int | None = None) -> None:
        """Acknowledge the next `count` events of every writer, all of them if None. A batch stays whole."""
        for log in self._memory.logs():
            log.keep_until(None if count is None else log.kept_end + count)

    def refuse(self, reason: str | None) -> None:
        """Refuse all events for `reason` from now on: `log_event` returns 0 and counts. None ends that."""
        self._memory.refusal = reason

    def spoil(self, chronicle: str, story: str, client_id: int, sequence: int) -> None:
        """Damage one event: scans report it and leave it out."""
        self._story(chronicle, story).logs[client_id].spoilt.add(sequence)

    def create_chronicle(self, chronicle: str, attributes: Mapping[str, str]) -> None:
        _check_name(chronicle)
        with self._memory.lock:
            if chronicle in self._chronicles():
                raise ChronicleExistsError(f"chronicle {chronicle!r} exists already")
            self._memory.chronicles[chronicle] = _Chronicle(dict(attributes))

    def destroy_chronicle(self, chronicle: str) -> None:
        _check_name(chronicle)
        with self._memory.lock:
            for name, story in self._chronicle(chronicle).stories.items():
                story.check_released(chronicle, name)
            del self._memory.chronicles[chronicle]

    def chronicles(self) -> list[str]:
        with self._memory.lock:
            return sorted(self._chronicles())

    def chronicle_attributes(self, chronicle: str) -> dict[str, str]:
        return dict(self._chronicle(chronicle).attributes)

    def destroy_story(self, chronicle: str, story: str) -> None:
        _check_name(chronicle)
        _check_name(story)
        with self._memory.lock:
            self._story(chronicle, story).check_released(chronicle, story)
            del self._chronicle(chronicle).stories[story]

    def stories(self, chronicle: str) -> list[str]:
        with self._memory.lock:
            return sorted(self._chronicle(chronicle).stories)

    def story_attributes(self, chronicle: str, story: str) -> dict[str, str]:
        return dict(self._story(chronicle, story).attributes)

    def open_writer(
        self, chronicle: str, story: str, attributes: Mapping[str, str], options: WriterOptions
    ) -> Writer:
        _check_name(chronicle)
        _check_name(story)
        if options.durability != "process":
            raise InvalidArgumentError(f"durability {options.durability!r}: a toy keeps nothing on its node")
        if not 0 <= options.client_id < 2**63:
            raise InvalidArgumentError(f"client id {options.client_id} is not in 0 to 2**63 - 1")
        with self._memory.lock:
            kept = self._chronicle(chronicle).stories.setdefault(story, _Story(dict(attributes)))
            log = kept.logs.get(options.client_id)
            if log is None:
                log = _Log(options.client_id, dict(options.description), options.first_sequence)
                kept.logs[options.client_id] = log
            elif log.is_open or options.first_sequence != log.sent_end or not options.first_sequence:
                raise InvalidArgumentError(
                    f"client {options.client_id} wrote to {story!r} before: take a new id, or go on with event "
                    f"{log.sent_end} after it was closed"
                )
            log.is_open = True
        return _ToyWriter(self._memory, kept, log, options, self.record_limit_bytes)

    def clients(self, chronicle: str, story: str) -> dict[int, dict[str, Any]]:
        logs = list(self._story(chronicle, story).logs.values())
        return {log.client_id: dict(log.description) for log in logs}

    def snapshot(self, chronicle: str, story: str) -> Snapshot:
        return self._story(chronicle, story).marks()

    def scan(
        self,
        chronicle: str,
        story: str,
        start_ns: int = 0,
        end_ns: int = MAX_TIME_NS,
        *,
        clients: Sequence[int] | None = None,
        snapshot: Snapshot | None = None,
        since: Snapshot | None = None,
        timeout_s: float | None = None,
        verify: bool = False,
        aligned: bool = False,
        report: ScanReport | None = None,
    ) -> Iterator[Page]:
        kept = self._story(chronicle, story)
        marks = kept.marks() if snapshot is None else dict(snapshot)
        since = {} if since is None else since
        runs = [
            log.events((start_ns, end_ns), since.get(log.client_id, 0), marks.get(log.client_id, 0), aligned)
            for log in list(kept.logs.values())
            if clients is None or log.client_id in clients
        ]
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        return self._pages(kept, heapq.merge(*runs), deadline_s, report)

    def follow(
        self, chronicle: str, story: str, cursor: Snapshot, timeout_s: float
    ) -> tuple[list[Page], Snapshot]:
        deadline_s = time.monotonic() + timeout_s
        while True:
            marks = self.snapshot(chronicle, story)
            if any(mark > cursor.get(client, 0) for client, mark in marks.items()):
                pages = self.scan(chronicle, story, snapshot=marks, since=cursor, report=ScanReport())
                if delivered := list(pages):
                    return delivered, _later(cursor, marks)
                cursor = _later(cursor, marks)
            if time.monotonic() >= deadline_s:
                return [], dict(cursor)
            time.sleep(_POLL_S)

    def close(self) -> None:
        self._closed = True

    def _pages(
        self, story: _Story, events: Iterator[_Event], deadline_s: float | None, report: ScanReport | None
    ) -> Iterator[Page]:
        damages: list[DamageError] = []
        page: list[_Event] = []
        for event in events:
            _, client_id, sequence, *_ = event
            if sequence in story.logs[client_id].spoilt:
                damages.append(DamageError(f"toy/{client_id}", sequence, "the event was spoilt"))
                continue
            page.append(event)
            if len(page) == self.page_events:
                _check_deadline(deadline_s)
                yield _make_page(page)
                page = []
        if page:
            _check_deadline(deadline_s)
            yield _make_page(page)
        if report is not None:
            report.damages += damages
            report.missing += len(damages)
        elif damages:
            raise damages[0]

    def _chronicles(self) -> dict[str, _Chronicle]:
        if self._closed:
            raise ClosedError("the engine was closed")
        return self._memory.chronicles

    def _chronicle(self, chronicle: str) -> _Chronicle:
        try:
            return self._chronicles()[chronicle]
        except KeyError:
            raise NotFoundError(f"no chronicle {chronicle!r}") from None

    def _story(self, chronicle: str, story: str) -> _Story:
        try:
            return self._chronicle(chronicle).stories[story]
        except KeyError:
            raise NotFoundError(f"no story {story!r} in chronicle {chronicle!r}") from None


class _ToyWriter(Writer):
    """Appends to one log."""

    def __init__(
        self, memory: _Memory, story: _Story, log: _Log, options: WriterOptions, limit_bytes: int
    ) -> None:
        self._memory = memory
        self._story = story
        self._own_log = log
        self._first_sequence = options.first_sequence
        self._pid = os.getpid()
        self._limit_bytes = limit_bytes
        self._lost: list[tuple[str, int]] = []
        self.use_clock(options.clock)

    @property
    def client_id(self) -> int:
        return self._log.client_id

    def log_event(self, event_string: str | bytes = MISSING, log_string: str | bytes | None = None) -> int:
        return self._append((encode(the_one(event_string, log_string), self._limit_bytes),))

    def log_events(self, batch: Sequence[str | bytes]) -> int:
        payload, records = encode_batch(batch, self._limit_bytes)
        ends = accumulate(map(len, records), initial=0)
        return self._append(tuple(payload[start:end] for start, end in pairwise(ends)))

    def flush(self, timeout_s: float | None = None) -> int:
        log = self._log
        log.keep_until(None)
        return log.kept_end

    def use_clock(self, clock: Clock) -> None:
        self._clock = clock
        self._reading = clock.reading().not_before(1)

    def statistics(self) -> WriterStatistics:
        log = self._log
        lost: Counter[str] = Counter()
        for reason, count in list(self._lost):
            lost[reason] += count
        first = self._first_sequence
        return WriterStatistics(log.sent_end - first, log.kept_end - first, dict(lost))

    def close(self, reason: str = "released") -> None:
        log = self._log
        if log.is_open:
            log.is_open = False
            log.description["close_reason"] = reason
        log.keep_until(None)

    def _append(self, records: tuple[bytes, ...]) -> int:
        log = self._log
        refusal = self._memory.refusal if log.is_open else "closed"
        if refusal is not None:
            if records:
                self._lost.append((refusal, len(records)))
            return 0
        if self._reading.tick() > self._reading.until:
            self.use_clock(self._clock)
        time_ns = log.send(records, self._clock, self._reading)
        if not log.is_open:  # closed by another thread just now: nobody will flush after us
            log.keep_until(None)
        return time_ns

    @property
    def _log(self) -> _Log:
        if self._pid != os.getpid():  # a forked child is a client of its own
            child = _Log(secrets.randbits(63), dict(self._own_log.description), 0)
            child.is_open = self._own_log.is_open
            self._story.logs[child.client_id] = self._own_log = child
            self._first_sequence = 0
            self._lost = []
            self._pid = os.getpid()
        return self._own_log


class _Call(NamedTuple):
    """The events of one call of `log_event` or `log_events`."""

    first_sequence: int
    time_ns: int
    records: tuple[bytes, ...]
    clock: Clock
    model: ClockModel

    @property
    def end_sequence(self) -> int:
        return self.first_sequence + len(self.records)

    def window_ns(self) -> int:
        model = self.model
        if model.window_ns == UNKNOWN_WINDOW_NS:
            return UNKNOWN_WINDOW_NS
        distance_ns = abs(self.time_ns - model.base_ns - model.offset_ns)
        return model.window_ns + int(model.window_rate * distance_ns)

    def aligned(self) -> tuple[int, int]:
        """Return the aligned time and its window."""
        import numpy as np

        from py_chronolog_client.timeline import align

        times, windows = align(self.clock.models, self.model, np.array([self.time_ns], np.uint64))
        return int(times[0]), int(windows[0])


@dataclass(slots=True)
class _Log:
    """What one client sent, and what of it is kept. Both only grow, by `setdefault` of the next key."""

    client_id: int
    description: dict[str, Any]
    first_sequence: int
    sent: dict[int, _Call] = field(default_factory=dict)
    kept: dict[int, _Call] = field(default_factory=dict)
    spoilt: set[int] = field(default_factory=set)
    is_open: bool = True

    @property
    def sent_end(self) -> int:
        return self._end(self.sent)

    @property
    def kept_end(self) -> int:
        return self._end(self.kept)

    def send(self, records: tuple[bytes, ...], clock: Clock, reading: Reading) -> int:
        while True:
            key = len(self.sent)
            last_ns = self.sent[key - 1].time_ns if key else 0
            time_ns = max(reading.tick() + reading.offset_ns, last_ns)
            if not records:
                return time_ns
            first_sequence = self.sent[key - 1].end_sequence if key else self.first_sequence
            call = _Call(first_sequence, time_ns, records, clock, reading.model)
            if self.sent.setdefault(key, call) is call:
                return time_ns

    def keep_until(self, sequence: int | None) -> None:
        """Keep what was sent, at least up to `sequence` if there is so much, all if None."""
        for key in range(len(self.kept), len(self.sent)):
            if sequence is not None and self.kept_end >= sequence:
                break
            self.kept.setdefault(key, self.sent[key])

    def events(self, bounds_ns: tuple[int, int], first: int, end: int, aligned: bool) -> Iterator[_Event]:
        """Generate the kept events within the bounds with sequences from `first` to below `end`."""
        floor_ns = 0
        for number in range(len(self.kept)):
            call = self.kept[number]
            found_ns, window_ns = call.aligned() if aligned else (call.time_ns, call.window_ns())
            key_ns = floor_ns = max(floor_ns, found_ns)
            if bounds_ns[0] <= key_ns <= bounds_ns[1]:
                if window_ns != UNKNOWN_WINDOW_NS:
                    window_ns += key_ns - found_ns
                for sequence, record in enumerate(call.records, call.first_sequence):
                    if first <= sequence < end:
                        yield key_ns, self.client_id, sequence, record, window_ns, call.time_ns

    def _end(self, calls: dict[int, _Call]) -> int:
        count = len(calls)
        return calls[count - 1].end_sequence if count else self.first_sequence


@dataclass(slots=True)
class _Story:
    attributes: dict[str, str]
    logs: dict[int, _Log] = field(default_factory=dict)

    def marks(self) -> dict[int, int]:
        return {log.client_id: log.kept_end for log in list(self.logs.values())}

    def check_released(self, chronicle: str, name: str) -> None:
        for log in list(self.logs.values()):
            if log.is_open:
                raise AcquiredError(f"client {log.client_id} holds story {name!r} of chronicle {chronicle!r}")


@dataclass(slots=True)
class _Chronicle:
    attributes: dict[str, str]
    stories: dict[str, _Story] = field(default_factory=dict)


@dataclass(slots=True)
class _Memory:
    """What engines that are `beside` each other share."""

    chronicles: dict[str, _Chronicle] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    refusal: str | None = None

    def logs(self) -> list[_Log]:
        with self.lock:
            stories = [
                story for chronicle in self.chronicles.values() for story in chronicle.stories.values()
            ]
            return [log for story in stories for log in list(story.logs.values())]


def _check_name(name: str) -> None:
    try:
        if name.encode():
            return
    except UnicodeEncodeError:
        raise InvalidArgumentError(f"the name {name!r} has lone surrogates") from None
    raise InvalidArgumentError("a name may not be empty")


def _check_deadline(deadline_s: float | None) -> None:
    if deadline_s is not None and time.monotonic() >= deadline_s:
        raise ReplayTimeoutError("the replay did not finish in time")


def _later(cursor: Snapshot, marks: Snapshot) -> dict[int, int]:
    return {client: max(cursor.get(client, 0), marks.get(client, 0)) for client in {*cursor, *marks}}


def _make_page(events: list[_Event]) -> Page:
    import numpy as np  # writing needs none of this

    from py_chronolog_client.page import MemoryPage, Payload

    keys, client_ids, sequences, records, windows_ns, times = zip(*events, strict=True)
    return MemoryPage(
        np.array(times, np.uint64),
        np.array(client_ids, np.uint64),
        np.array(sequences, np.uint64),
        Payload.of(records),
        np.array(windows_ns, np.uint64),
        None if keys == times else np.array(keys, np.uint64),
    )
