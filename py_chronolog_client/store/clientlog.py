"""One client's events in a story: which stretches there are, and where each sequence number is.

A log is built by hopping from block header to block header, so its cost is the number of blocks, not of
bytes. `refresh` continues where it stopped. The tail is always read *before* the blocks: an event that leaves
the tail in between is then found in a block.
"""

from __future__ import annotations

import copy
import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from py_chronolog_client.clock import UNKNOWN_WINDOW_NS, ClockModel, unpack_models
from py_chronolog_client.engine.base import ScanReport
from py_chronolog_client.errors import DamageError
from py_chronolog_client.page import U64, Payload
from py_chronolog_client.store.aligned import aligned_stretches
from py_chronolog_client.store.blocks import complete_block, find_header, read_exactly, read_header
from py_chronolog_client.store.format import (
    ALIGNMENT,
    HEADER_BYTES,
    KIND_EVENTS,
    KIND_RECORD,
    BlockHeader,
    decode_map,
)
from py_chronolog_client.store.stretch import BlockStretch, Descriptor, Stretch, TailStretch
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


class ClientLog:
    """The events of one client, up to the last `refresh`.

    Attributes:
        client_id: whose.
        description: the client record.
        closing: the close record, or None.
        end_sequence: the high-water mark.
    """

    def __init__(self, directory: Path, client_id: int) -> None:
        self.client_id = client_id
        self.description: dict[str, Any] = {}
        self.closing: dict[str, Any] | None = None
        self.end_sequence = 0
        self._models: dict[int, tuple[ClockModel, ...]] = {}
        self._base_path = str(directory / f"{client_id:016x}")
        self._tail_path = f"{self._base_path}.tail"
        self._first_sequence = self._announced = 0
        self._files: list[_File] = []
        self._next_number = 0
        self._stretches: list[Stretch] = []
        self._starts: list[int] = []

    def refresh(self, numbers: Sequence[int], report: ScanReport) -> None:
        """Learn what the client has written since the last time.

        Args:
            numbers: of the segments that there are now, rising.
            report: where to note what is wrong.
        """
        if self.closing is not None and not self._came_back(numbers):
            return
        tail: TailStretch | None = None
        tail_end, disbelieved = -1, False
        try:
            copy = copy_tail(self._tail_path, self.client_id, self.end_sequence if self._stretches else -1)
        except DamageError as error:
            report.caught(error)
            copy = None
        if copy is not None:
            tail, tail_end, disbelieved = copy.events, copy.end_sequence, copy.disbelieved
            if copy.unchanged and not disbelieved:
                return
        grown = self._open_files(numbers, report)
        for file in self._files:
            grown = self._read_headers(file, report) or grown
            if not file.offset:
                reason = "this is no segment of this client, or it was cut short"
                report.damages.append(DamageError(file.descriptor.path, 0, reason))
        if copy is None:
            grown = self._look_for_an_end(report) or grown
            report.unseen += self.closing is None and os.path.islink(self._tail_path)
        if disbelieved:
            blocks_end = max(
                (header.end_sequence for file in self._files for _, header in file.blocks.values()), default=0
            )
            report.disbelieved += max(0, tail_end - blocks_end)
            tail, tail_end = None, -1
        if grown or tail is not None:
            self._arrange(tail, tail_end, report)

    def _came_back(self, numbers: Sequence[int]) -> bool:
        """Tell whether there is something behind the close record."""
        file = self._files[-1]
        return os.fstat(file.descriptor.number).st_size > file.offset or numbers[-1] >= self._next_number

    def stretches(self, start: int, stop: int) -> list[Stretch]:
        """Return the stretches that hold events from `start` up to `stop` (not included), in order."""
        first = max(0, bisect_right(self._starts, start) - 1)
        return [s for s in self._stretches[first:] if s.end_sequence > start and s.first_sequence < stop]

    def stretch_of(self, sequence: int) -> Stretch:
        """Return the stretch that holds an event.

        Raises:
            DamageError: no stretch does.
        """
        place = bisect_right(self._starts, sequence) - 1
        if place < 0 or sequence >= self._stretches[place].end_sequence:
            raise DamageError(f"{self._base_path}.log", 0, f"event {sequence} is missing")
        return self._stretches[place]

    def _models_at(self, sequence: int, of_blocks: tuple[ClockModel, ...]) -> tuple[ClockModel, ...]:
        """Return what is known of the synchronisations of the clock under which an event was logged.

        A client that died before it noted any has left those of its blocks.
        """
        since = max((first for first in self._models if first <= sequence), default=None)
        return of_blocks if since is None else self._models[since]

    def aligned(self) -> ClientLog:
        """Return the same events, where all synchronisations of the client's clock say that they belong."""
        log = copy.copy(self)
        clocks = {stretch.clock.base_ns: stretch.clock for stretch in self._stretches}
        of_blocks = tuple(
            clocks[base_ns] for base_ns in sorted(clocks) if clocks[base_ns].window_ns != UNKNOWN_WINDOW_NS
        )
        log._stretches = aligned_stretches(
            self._stretches, lambda sequence: self._models_at(sequence, of_blocks)
        )
        return log

    def payload(self, sequences: U64) -> Payload:
        """Return the records of rising sequence numbers."""
        parts: list[Payload] = []
        place, count = 0, len(sequences)
        while place < count:
            sequence = int(sequences[place])
            stretch = self.stretch_of(sequence)
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
        windows = []
        place = 0
        while place < len(sequences):
            stretch = self.stretch_of(int(sequences[place]))
            stop = place + int(np.searchsorted(sequences[place:], np.uint64(stretch.end_sequence)))
            windows.append(stretch.windows_ns(times[place:stop]))
            place = stop
        return np.concatenate(windows)

    def _path(self, number: int) -> str:
        return f"{self._base_path}.{number}.log" if number else f"{self._base_path}.log"

    def _open_files(self, numbers: Sequence[int], report: ScanReport) -> bool:
        """Open the segments that are new; say whether there are any. A number that is missing is damage."""
        before = len(self._files)
        for number in range(self._next_number, numbers[-1] + 1):
            try:
                self._files.append(_File(Descriptor(self._path(number))))
            except FileNotFoundError:
                report.damages.append(DamageError(self._path(number), 0, "this segment is missing"))
            except DamageError as error:
                report.caught(error)
        self._next_number = numbers[-1] + 1
        return len(self._files) > before

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
        self._announced = max(self._announced, header.first_sequence)
        file.unended = file.unended and fields.get("type") not in ("client", "close")
        if fields.get("type") == "client":
            if file is self._files[0] and not offset:
                self._first_sequence = header.first_sequence
            self.description = self.description or fields
            self.closing = None  # the client came back
        elif fields.get("type") == "close":
            self.closing = fields
        elif fields.get("type") == "clock":
            try:
                self._models[int(fields["first_sequence"])] = unpack_models(fields["models"])
            except (KeyError, TypeError, ValueError) as error:
                report.damages.append(DamageError(descriptor.path, offset, f"no clock models: {error}"))

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
        """Put blocks and tail in the order of their sequence numbers, each number once, and look for gaps."""
        chosen: dict[int, tuple[_File, int, BlockHeader]] = {}
        for file in self._files:  # a later segment repeats what an earlier one may have lost
            chosen |= {first: (file, offset, header) for first, (offset, header) in file.blocks.items()}
        if tail is not None and max(chosen, default=0) >= tail.end_sequence:
            tail = None  # it was copied before it rolled: now blocks have all of it
        stretches: list[Stretch] = []
        expected = min(self._first_sequence, *chosen, self._announced)
        for first in sorted(chosen):
            file, offset, header = chosen[first]
            if tail is not None and tail.first_sequence <= first and header.end_sequence <= tail.end_sequence:
                continue
            if first < expected:
                continue
            last = self.closing is None and header.end_sequence > tail_end
            last = last and file.offset == offset + header.block_bytes
            if last and complete_block(file.descriptor.number, offset, self.client_id) is None:
                del file.blocks[first]
                file.offset = offset  # an append that has not finished: look again next time
                continue
            if stretches and header.first_time < stretches[-1].last_time:
                reason = "its times are before those of the events before it"
                report.damages.append(DamageError(file.descriptor.path, offset, reason))
                continue
            self._note_gap(expected, first, report)
            stretches.append(BlockStretch(file.descriptor, offset, header))
            expected = header.end_sequence
        if tail is not None and tail.end_sequence > expected:
            newest = tail.behind(expected)
            if stretches and newest.first_time < stretches[-1].last_time:
                reason = "its times are before those of the blocks"
                report.damages.append(DamageError(self._tail_path, 0, reason))
            else:
                self._note_gap(expected, tail.first_sequence, report)
                stretches.append(newest)
                expected = tail.end_sequence
        self.end_sequence = max(expected, tail_end, self._announced)
        self._note_gap(expected, self.end_sequence, report)
        self._stretches, self._starts = stretches, [stretch.first_sequence for stretch in stretches]

    def _note_gap(self, expected: int, found: int, report: ScanReport) -> None:
        if found > expected:
            report.missing += found - expected
            reason = f"the events {expected} to {found - 1} are missing"
            report.damages.append(DamageError(f"{self._base_path}.log", 0, reason))
