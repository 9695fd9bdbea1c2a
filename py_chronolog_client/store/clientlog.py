"""One client's events in a story: which spans there are, and where each sequence number is.

A log is built by hopping from block header to block header, so its cost is the number of blocks, not of
bytes. `refresh` continues where it stopped. The tail is always read *before* the blocks: an event that leaves
the tail in between is then found in a block. What chunks hold is given: an event that is in a chunk is not taken from
a block, and segments for which a chunk stands are not looked at. Nor are those that a keeper has handed over, or is about
to: a log that was begun when they were there is of no use any more, because its open files keep their space, so `refresh`
says that it has to be begun again.
"""

from __future__ import annotations

import copy
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from py_chronolog_client.clock import UNKNOWN_WINDOW_NS, ClockModel, unpack_models
from py_chronolog_client.engine.base import ScanReport
from py_chronolog_client.errors import DamageError
from py_chronolog_client.page import U64, Payload
from py_chronolog_client.store.aligned import aligned_spans
from py_chronolog_client.store.archive import Held
from py_chronolog_client.store.blocks import complete_block, find_header, read_exactly, read_header
from py_chronolog_client.store.format import (
    ALIGNMENT,
    HEADER_BYTES,
    KIND_EVENTS,
    KIND_RECORD,
    BlockHeader,
    decode_map,
)
from py_chronolog_client.store.handover import first_that_counts
from py_chronolog_client.store.incoming import FOLLOWS
from py_chronolog_client.store.stretch import (
    BlockStretch,
    Descriptor,
    PartStretch,
    Span,
    Stretch,
    TailStretch,
)
from py_chronolog_client.store.tailcopy import copy_tail


@dataclass(slots=True)
class _File:
    """A segment, and how far its headers have been read."""

    descriptor: Descriptor
    offset: int = 0
    blocks: dict[int, tuple[int, BlockHeader]] = field(default_factory=dict)
    """first sequence -> (offset, header)"""
    unended: bool = False
    """Whether there are events behind the last client or close record."""


_Block = tuple[_File, int, BlockHeader]
"""Where a block is, and its header."""


class ClientLog:
    """The events of one client, up to the last `refresh`.

    Attributes:
        client_id: whose.
        description: the client record.
        closing: the close record, or None.
        end_sequence: the high-water mark.
        has_windows: whether the hard window around the time of any event is known.
    """

    def __init__(self, directory: Path, client_id: int, held: Sequence[Held] = ()) -> None:
        """Begin with what chunks hold of a client.

        Args:
            directory: of the story.
            client_id: whose events.
            held: what is taken from chunks, in the order of the sequence numbers.
        """
        self.client_id = client_id
        self.description: dict[str, Any] = {}
        self.closing: dict[str, Any] | None = None
        self.end_sequence = 0
        self.has_windows = False
        self._models: dict[int, tuple[ClockModel, ...]] = {}
        self._base_path = str(directory / f"{client_id:016x}")
        self._tail_path = f"{self._base_path}.tail"
        self._first_sequence = self._announced = 0
        self._files: list[_File] = []
        self._held: list[Span] = [span for each in held for span in each.spans()]
        self._first_number = self._next_number = max((each.client.segments for each in held), default=0)
        self._begins_at: int | None = None
        self._has_beginning = True
        self._expired = held[0].first_sequence if held and held[0].client.expired else 0
        self._held_ends = [span.end_sequence for span in self._held]
        self._spans: list[Span] = []
        self._starts: list[int] = []
        self._held_records = [(each.chunk.path, *record) for each in held for record in each.client.records]
        self._is_new = True

    def refresh(self, numbers: Sequence[int], report: ScanReport) -> bool:
        """Learn what the client has written since the last time.

        Args:
            numbers: of the segments that there are now, rising.
            report: where to note what is wrong.

        Returns:
            Whether that is all; otherwise segments have gone, and a new log has to be begun with those there are now.
        """
        numbers = [number for number in numbers if number >= self._first_number]
        if not self._begins_as(numbers):
            return False
        self._read_held_records(report)
        if self.closing is not None and not self._is_new and not self._came_back(numbers):
            return True
        tail: TailStretch | None = None
        tail_end, disbelieved = -1, False
        try:
            copy = copy_tail(self._tail_path, self.client_id, self.end_sequence if self._spans else -1)
        except DamageError as error:
            report.caught(error)
            copy = None
        if copy is not None:
            tail, tail_end, disbelieved = copy.events, copy.end_sequence, copy.disbelieved
            if copy.unchanged and not disbelieved:
                return True
        known = len(self._files)
        if not self._open_files(numbers, report):
            return False
        grown = len(self._files) > known
        for file in self._files:
            grown = self._read_headers(file, report) or grown
            if not file.offset:
                reason = "this is no segment of this client, or it was cut short"
                report.damages.append(DamageError(file.descriptor.path, 0, reason))
        if copy is None:
            grown = self._look_for_an_end(report) or grown
            report.unseen += self.closing is None and os.path.islink(self._tail_path)
        if disbelieved:
            ends = [header.end_sequence for file in self._files for _, header in file.blocks.values()]
            report.disbelieved += max(0, tail_end - max([*ends, *self._held_ends], default=0))
            tail, tail_end = None, -1
        if grown or tail is not None or self._is_new:
            self._arrange(tail, tail_end, report)
        return True

    def _begins_as(self, numbers: Sequence[int]) -> bool:
        """Tell whether the first segment that counts is the same as before."""
        known = self._first_number if self._begins_at is None else self._begins_at
        beginning = first_that_counts(Path(self._base_path).parent, self.client_id, numbers, known)
        if self._begins_at is None:
            self._begins_at = self._next_number = beginning
        return beginning == self._begins_at

    def _came_back(self, numbers: Sequence[int]) -> bool:
        """Tell whether there is something behind the close record."""
        if numbers and numbers[-1] >= self._next_number:
            return True
        file = self._files[-1] if self._files else None
        return file is not None and os.fstat(file.descriptor.number).st_size > file.offset

    @property
    def first_sequence(self) -> int:
        """Number of the client's first event, as its first record says."""
        return self._first_sequence

    @property
    def start_sequence(self) -> int:
        """Number of the first event that is here, if earlier ones may be elsewhere, because they were handed over; else 0."""
        return 0 if self._has_beginning else self._first_sequence

    @property
    def next_number(self) -> int:
        """Number of the client's next segment."""
        return self._next_number

    @property
    def clock_starts(self) -> frozenset[int]:
        """The numbers of the events from which on another clock is known to have been used."""
        return frozenset(self._models)

    def stretches(self, start: int, stop: int) -> list[Stretch]:
        """Return the spans from `start` up to `stop` (not included), in order, that are no chunks'."""
        return [span for span in self.spans(start, stop) if isinstance(span, Stretch)]

    def spans(self, start: int, stop: int) -> list[Span]:
        """Return the spans that hold events from `start` up to `stop` (not included), in order."""
        first = max(0, bisect_right(self._starts, start) - 1)
        return [
            span for span in self._spans[first:] if span.end_sequence > start and span.first_sequence < stop
        ]

    def span_of(self, sequence: int) -> Span:
        """Return the span that holds an event.

        Raises:
            DamageError: no span does.
        """
        place = bisect_right(self._starts, sequence) - 1
        if place < 0 or sequence >= self._spans[place].end_sequence:
            raise DamageError(f"{self._base_path}.log", 0, f"event {sequence} is missing")
        return self._spans[place]

    def _models_at(self, sequence: int, of_blocks: tuple[ClockModel, ...]) -> tuple[ClockModel, ...]:
        """Return what is known of the synchronisations of the clock under which an event was logged.

        A client that died before it noted any has left those of its blocks.
        """
        since = max((first for first in self._models if first <= sequence), default=None)
        return of_blocks if since is None else self._models[since]

    def aligned(self) -> ClientLog:
        """Return the same events, where all synchronisations of the client's clock say that they belong."""
        log = copy.copy(self)
        clocks = {span.clock.base_ns: span.clock for span in self._spans}
        of_blocks = tuple(
            clocks[base_ns] for base_ns in sorted(clocks) if clocks[base_ns].window_ns != UNKNOWN_WINDOW_NS
        )
        log._spans = aligned_spans(self._spans, lambda sequence: self._models_at(sequence, of_blocks))
        return log

    def payload(self, sequences: U64) -> Payload:
        """Return the records of rising sequence numbers, which no chunk holds."""
        parts: list[Payload] = []
        place, count = 0, len(sequences)
        while place < count:
            sequence = int(sequences[place])
            stretch = self.span_of(sequence)
            assert isinstance(stretch, Stretch)
            stop = place + int(np.searchsorted(sequences[place:], np.uint64(stretch.end_sequence)))
            wanted = sequences[place:stop]
            found = stretch.payload(sequence, int(wanted[-1]) + 1)
            if len(found) > len(wanted):
                found = found.take((wanted - wanted[0]).astype(np.intp))
            parts.append(found)
            place = stop
        return Payload.join(parts)

    def windows_ns(self, sequences: U64, times: U64) -> U64:
        """Return the half-widths of the hard windows around the times of rising sequence numbers, in ns."""
        return np.concatenate([span.windows_ns(part) for span, part in self._by_span(sequences, times)])

    def keys(self, sequences: U64, times: U64) -> U64:
        """Return what the events with these rising sequence numbers, and these times, are ordered by."""
        return np.concatenate([span.keys(part) for span, part in self._by_span(sequences, times)])

    def _by_span(self, sequences: U64, times: U64) -> Iterator[tuple[Span, U64]]:
        place = 0
        while place < len(sequences):
            span = self.span_of(int(sequences[place]))
            stop = place + int(np.searchsorted(sequences[place:], np.uint64(span.end_sequence)))
            yield span, times[place:stop]
            place = stop

    def _path(self, number: int) -> str:
        return f"{self._base_path}.{number}.log" if number else f"{self._base_path}.log"

    def _open_files(self, numbers: Sequence[int], report: ScanReport) -> bool:
        """Open the segments that are new; say whether all are there that were listed. Another that is missing is damage.

        The numbers were listed before the tail was read, so there may be more by now: those of a tail that is as new.
        """
        stop = max(numbers, default=-1) + 1
        while True:
            try:
                self._files.append(_File(Descriptor(self._path(self._next_number))))
            except FileNotFoundError:
                if self._next_number >= stop:
                    break
                if self._next_number in numbers and not os.path.lexists(self._path(self._next_number)):
                    return False
                reason = "this segment is missing"
                report.damages.append(DamageError(self._path(self._next_number), 0, reason))
            except DamageError as error:
                report.caught(error)
            self._next_number += 1
        return True

    def _read_headers(self, file: _File, report: ScanReport) -> bool:
        """Read the headers behind those already read; say whether there are new blocks."""
        try:
            return self._read_on(file, report)
        except OSError as error:
            reason = f"cannot be read: {error.strerror}"
            report.damages.append(DamageError(file.descriptor.path, file.offset, reason))
            return True

    def _read_on(self, file: _File, report: ScanReport) -> bool:
        descriptor = file.descriptor
        size_bytes = os.fstat(descriptor.number).st_size
        grown = False
        while file.offset + HEADER_BYTES <= size_bytes:
            header = self._header(file, size_bytes)
            if header is None:
                found = find_header(descriptor.number, file.offset + ALIGNMENT, size_bytes, self.client_id)
                if found is None:
                    break
                # Something stands behind it: if it was being written a moment ago, it is whole by now.
                size_bytes = os.fstat(descriptor.number).st_size
                header = self._header(file, size_bytes)
                if header is None:
                    report.damages.append(DamageError(descriptor.path, file.offset, "no valid block header"))
                    file.offset = found
                    continue
            if header.kind == KIND_EVENTS and header.count:
                file.blocks[header.first_sequence] = (file.offset, header)
                file.unended = True
                grown = True
            elif header.kind == KIND_RECORD:
                self._read_record(file, header, report)
                grown = True
            file.offset += header.block_bytes
        return grown

    def _header(self, file: _File, size_bytes: int) -> BlockHeader | None:
        """Return the next header, or None where no block of this client begins that fits the file."""
        header = read_header(file.descriptor.number, file.offset)
        if header is None or header.client_id != self.client_id:
            return None
        return header if file.offset + header.block_bytes <= size_bytes else None

    def _read_record(self, file: _File, header: BlockHeader, report: ScanReport) -> None:
        descriptor, offset = file.descriptor, file.offset
        try:
            if complete_block(descriptor.number, offset, self.client_id) is None:
                raise ValueError("a checksum does not hold")
            payload_at = offset + HEADER_BYTES + header.columns_bytes
            fields = decode_map(read_exactly(descriptor.number, header.payload_bytes, payload_at) or b"")
        except ValueError as error:
            report.damages.append(DamageError(descriptor.path, offset, f"damaged record block: {error}"))
            return
        file.unended = file.unended and fields.get("type") not in ("client", "close", "roll")
        is_first = file is self._files[0] and not offset and not self._first_number
        try:
            self._learn(fields, header.first_sequence, is_first)
        except ValueError as error:
            report.damages.append(DamageError(descriptor.path, offset, str(error)))

    def _read_held_records(self, report: ScanReport) -> None:
        """Read the records that are in chunks, once."""
        for place, (path, next_sequence, payload) in enumerate(self._held_records):
            try:
                self._learn(decode_map(payload), next_sequence, is_first=not place)
            except ValueError as error:
                reason = f"a record of client {self.client_id:016x}: {error}"
                report.damages.append(DamageError(path, 0, reason))
        self._held_records = []

    def _learn(self, fields: dict[str, Any], next_sequence: int, is_first: bool) -> None:
        """Take note of a record.

        Args:
            fields: what it says.
            next_sequence: number of the next event behind it.
            is_first: whether it is the client's first.

        Raises:
            ValueError: it says it in a way that cannot be understood.
        """
        self._announced = max(self._announced, next_sequence)
        if fields.get("type") == "client":
            if is_first:
                self._first_sequence = next_sequence
                self._has_beginning = FOLLOWS not in fields
            self.description = self.description or fields
            self.closing = None  # the client came back
        elif fields.get("type") == "close":
            self.closing = fields
        elif fields.get("type") == "clock":
            try:
                self._models[int(fields["first_sequence"])] = unpack_models(fields["models"])
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"no clock models: {error}") from error

    def _look_for_an_end(self, report: ScanReport) -> bool:
        """Report a segment that says less than its client left: without a tail it ends with a close record.

        Returns:
            Whether there are new blocks after all.
        """
        if not self._files or not self._files[-1].offset or os.path.lexists(self._tail_path):
            return False
        file = self._files[-1]
        grown = self._read_headers(file, report)  # it may have been closed a moment ago
        status = os.fstat(file.descriptor.number)
        if file.unended or (self.closing is None and file.offset < status.st_size):
            reason = "the end is missing: there is neither a close record nor a tail"
            report.damages.append(DamageError(file.descriptor.path, file.offset, reason))
        return grown

    def _arrange(self, tail: TailStretch | None, tail_end: int, report: ScanReport) -> None:
        """Put chunks, blocks and tail in the order of their sequence numbers, each number once, and look for gaps."""
        chosen: dict[int, _Block] = {}
        for file in self._files:  # a later segment repeats what an earlier one may have lost
            chosen |= {first: (file, offset, header) for first, (offset, header) in file.blocks.items()}
        newest_first = max([*chosen, *(span.first_sequence for span in self._held)], default=0)
        if tail is not None and newest_first >= tail.end_sequence:
            tail = None  # it was copied before it rolled: now blocks or chunks have all of it
        spans: list[Span] = []
        firsts = [*chosen, *(span.first_sequence for span in self._held)]
        expected = max(self._expired, min(self._first_sequence, self._announced, *firsts))
        for first, span, block in self._in_order(chosen.values(), tail):
            if first < expected:
                continue
            if block is not None:
                file, offset, header = block
                last = self.closing is None and header.end_sequence > tail_end
                last = last and file.offset == offset + header.block_bytes
                if last and complete_block(file.descriptor.number, offset, self.client_id) is None:
                    del file.blocks[header.first_sequence]
                    file.offset = offset  # an append that has not finished: look again next time
                    continue
                if spans and _is_before(span, spans[-1]):
                    reason = "its times are before those of the events before it"
                    report.damages.append(DamageError(file.descriptor.path, offset, reason))
                    continue
            self._note_gap(expected, first, report)
            spans.append(span)
            expected = span.end_sequence
        if tail is not None and tail.end_sequence > expected:
            newest = tail.behind(expected)
            if spans and _is_before(newest, spans[-1]):
                reason = "its times are before those of the blocks"
                report.damages.append(DamageError(self._tail_path, 0, reason))
            else:
                self._note_gap(expected, tail.first_sequence, report)
                spans.append(newest)
                expected = tail.end_sequence
        self.end_sequence = max(expected, tail_end, self._announced)
        self._note_gap(expected, self.end_sequence, report)
        self._spans, self._starts = spans, [span.first_sequence for span in spans]
        self.has_windows = any(span.clock.window_ns != UNKNOWN_WINDOW_NS for span in spans)
        self._is_new = False

    def _in_order(
        self, blocks: Iterable[_Block], tail: TailStretch | None
    ) -> list[tuple[int, Span, _Block | None]]:
        """Return what chunks hold, and what is only in blocks and not in the tail, by first sequence number."""
        found: list[tuple[int, Span, _Block | None]] = [
            (span.first_sequence, span, None) for span in self._held
        ]
        for block in blocks:
            file, offset, header = block
            in_tail = tail is not None and (
                tail.first_sequence <= header.first_sequence and header.end_sequence <= tail.end_sequence
            )
            if not in_tail:
                stretch = BlockStretch(file.descriptor, offset, header)
                found += ((part.first_sequence, part, block) for part in self._beside_chunks(stretch))
        return sorted(found, key=itemgetter(0))

    def _beside_chunks(self, stretch: Stretch) -> Iterator[Stretch]:
        """Yield the parts of a stretch that no chunk holds."""
        start, stop = stretch.first_sequence, stretch.end_sequence
        for span in self._held[bisect_right(self._held_ends, start) :]:
            if span.first_sequence >= stop:
                break
            if span.first_sequence > start:
                yield PartStretch(stretch, start, span.first_sequence)
            start = span.end_sequence
        if start == stretch.first_sequence:
            yield stretch
        elif start < stop:
            yield PartStretch(stretch, start, stop)

    def _note_gap(self, expected: int, found: int, report: ScanReport) -> None:
        if found > expected:
            report.missing += found - expected
            reason = f"the events {expected} to {found - 1} are missing"
            report.damages.append(DamageError(f"{self._base_path}.log", 0, reason))


def _is_before(span: Span, other: Span) -> bool:
    """Tell whether a span, behind another by its numbers, is before it by its times, which cannot be."""
    known = not isinstance(span, PartStretch) and not isinstance(other, PartStretch)
    return known and span.first_time < other.last_time
