"""One client's events in a story: which stretches there are, and where each sequence number is.

A log is built by hopping from block header to block header, so its cost is the number of blocks, not of bytes. `refresh` continues
where it stopped. The tail is always read *before* the blocks: an event that leaves the tail in between is then found in a block.
"""

from __future__ import annotations

import errno
import os
import resource
from bisect import bisect_right
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from py_chronolog_client.engine.base import ScanReport
from py_chronolog_client.errors import DamageError, StoreError
from py_chronolog_client.page import U64
from py_chronolog_client.store.blocks import complete_block, read_exactly, read_header
from py_chronolog_client.store.format import ALIGNMENT, HEADER_BYTES, KIND_EVENTS, KIND_RECORD, BlockHeader, decode_map
from py_chronolog_client.store.stretch import BlockStretch, Descriptor, Stretch, TailStretch
from py_chronolog_client.store.tailcopy import copy_tail

_SEARCH_BYTES = 2**20


@dataclass(slots=True)
class _File:
    """A segment, and how far its headers have been read."""

    descriptor: Descriptor
    offset: int = 0
    blocks: dict[int, tuple[int, BlockHeader]] = field(default_factory=dict)
    """first sequence -> (offset, header)"""


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
        self._base_path = str(directory / f"{client_id:016x}")
        self._files: list[_File] = []
        self._stretches: list[Stretch] = []
        self._starts: list[int] = []

    def refresh(self, report: ScanReport) -> None:
        """Learn what the client has written since the last time."""
        if self.closing is not None:
            return
        tail: TailStretch | None = None
        tail_end, disbelieved = -1, False
        try:
            copy = copy_tail(f"{self._base_path}.tail", self.end_sequence if self._stretches else -1)
        except DamageError as error:
            report.damages.append(error)
            copy = None
        if copy is not None:
            tail, tail_end, disbelieved = copy.events, copy.end_sequence, copy.disbelieved
            if tail is None and tail_end == self.end_sequence and self._stretches and not disbelieved:
                return
        grown = self._open_files()
        for file in self._files:
            grown = self._read_headers(file, report) or grown
        if disbelieved:
            blocks_end = max((header.end_sequence for file in self._files for _, header in file.blocks.values()), default=0)
            report.disbelieved += max(0, tail_end - blocks_end)
            tail, tail_end = None, -1
        if grown or tail is not None:
            self._arrange(tail, tail_end, report)

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

    def records(self, sequences: U64) -> list[bytes]:
        """Return the records of rising sequence numbers."""
        records: list[bytes] = []
        place, count = 0, len(sequences)
        while place < count:
            sequence = int(sequences[place])
            stretch = self.stretch_of(sequence)
            stop = place + int(np.searchsorted(sequences[place:], np.uint64(stretch.end_sequence)))
            wanted = sequences[place:stop]
            found = stretch.records(sequence, int(wanted[-1]) + 1)
            if len(found) == len(wanted):
                records += found
            else:
                records += [found[int(number) - sequence] for number in wanted]
            place = stop
        return records

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

    def _open_files(self) -> bool:
        """Open the segments that are new; say whether there are any."""
        before = len(self._files)
        while True:
            number = len(self._files)
            path = f"{self._base_path}.{number}.log" if number else f"{self._base_path}.log"
            try:
                self._files.append(_File(_open(path)))
            except FileNotFoundError:
                return number > before

    def _read_headers(self, file: _File, report: ScanReport) -> bool:
        """Read the headers behind those already read; say whether there are new blocks."""
        descriptor = file.descriptor
        size_bytes = os.fstat(descriptor.number).st_size
        grown = False
        while file.offset + HEADER_BYTES <= size_bytes:
            header = read_header(descriptor.number, file.offset)
            if header is None or header.client_id != self.client_id or file.offset + header.block_bytes > size_bytes:
                found = self._search(file, size_bytes)
                if found is None:
                    break
                report.damages.append(DamageError(descriptor.path, file.offset, "no valid block header"))
                file.offset = found
                continue
            if header.kind == KIND_EVENTS and header.count:
                file.blocks[header.first_sequence] = (file.offset, header)
                grown = True
            elif header.kind == KIND_RECORD:
                self._read_record(file, header, report)
                grown = True
            file.offset += header.block_bytes
        return grown

    def _read_record(self, file: _File, header: BlockHeader, report: ScanReport) -> None:
        descriptor, offset = file.descriptor, file.offset
        try:
            if complete_block(descriptor.number, offset, self.client_id) is None:
                raise ValueError("a checksum does not hold")
            data = read_exactly(descriptor.number, header.payload_bytes, offset + HEADER_BYTES)
            fields = decode_map(data or b"")
        except ValueError as error:
            report.damages.append(DamageError(descriptor.path, offset, f"damaged record block: {error}"))
            return
        if fields.get("type") == "client":
            self.description = fields
        elif fields.get("type") == "close":
            self.closing = fields

    def _search(self, file: _File, size_bytes: int) -> int | None:
        """Return the offset of the next valid header behind a place where there is none."""
        descriptor, start = file.descriptor.number, file.offset + ALIGNMENT
        for at in range(start, size_bytes, _SEARCH_BYTES):
            piece = os.pread(descriptor, _SEARCH_BYTES + HEADER_BYTES, at)
            for place in range(0, min(len(piece), _SEARCH_BYTES), ALIGNMENT):
                header = BlockHeader.unpack(piece[place : place + HEADER_BYTES])
                if header is not None and header.client_id == self.client_id:
                    return at + place
        return None

    def _arrange(self, tail: TailStretch | None, tail_end: int, report: ScanReport) -> None:
        """Put blocks and tail in the order of their sequence numbers, each number once, and look for gaps."""
        chosen: dict[int, tuple[_File, int, BlockHeader]] = {}
        for file in self._files:  # a later segment repeats what an earlier one may have lost
            chosen |= {first: (file, offset, header) for first, (offset, header) in file.blocks.items()}
        stretches: list[Stretch] = []
        expected = int(self.description.get("first_sequence", 0))
        for first in sorted(chosen):
            file, offset, header = chosen[first]
            if tail is not None and tail.first_sequence <= first and header.end_sequence <= tail.end_sequence:
                continue
            if first < expected:
                continue
            last = self.closing is None and header.end_sequence > tail_end and first == max(chosen)
            if last and complete_block(file.descriptor.number, offset, self.client_id) is None:
                del file.blocks[first]
                file.offset = offset  # an append that has not finished: look again next time
                continue
            self._note_gap(expected, first, report)
            stretches.append(BlockStretch(file.descriptor, offset, header))
            expected = header.end_sequence
        if tail is not None and tail.end_sequence > expected:
            self._note_gap(expected, tail.first_sequence, report)
            stretches.append(tail.behind(expected))
            expected = tail.end_sequence
        self.end_sequence = max(expected, tail_end)
        self._note_gap(expected, self.end_sequence, report)
        self._stretches, self._starts = stretches, [stretch.first_sequence for stretch in stretches]

    def _note_gap(self, expected: int, found: int, report: ScanReport) -> None:
        if found > expected:
            report.missing += found - expected
            reason = f"the events {expected} to {found - 1} are missing"
            report.damages.append(DamageError(f"{self._base_path}.log", 0, reason))


def _open(path: str) -> Descriptor:
    try:
        return Descriptor(path)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        raise StoreError(path, f"too many open files: a story needs one for each client, the limit is {hard} (ulimit -n)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return Descriptor(path)
