"""What a keeper hands over to the grapher: the sealed segments of its clients, which are final (docs/format.md).

A part of a client is what was written between one sealing and the next: one segment, or several, if a sync has failed.
All parts but the last are sealed. They are handed over in their order, and each is deleted when the receiver has it on
its device. The order of things is what lets readers see every event: it is at the receiver before it is gone here, so who
asks here first, from where this client begins here, and then there, up to that place, misses nothing; and what goes first
from here is always the beginning, so what is left has no gap.

A hand-over may be repeated from any point, as often as it takes: a receiver that has a part already says so.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from py_chronolog_client.errors import DamageError, InvalidArgumentError
from py_chronolog_client.store import acquisition
from py_chronolog_client.store.blocks import find_header, whole_block
from py_chronolog_client.store.files import sync_directory
from py_chronolog_client.store.format import ALIGNMENT
from py_chronolog_client.store.incoming import FOLLOWS
from py_chronolog_client.store.records import read_client_record
from py_chronolog_client.store.stretch import Descriptor


class Part(NamedTuple):
    """The segments of a client from one sealing to the next."""

    first_sequence: int
    numbers: tuple[int, ...]


class Sealed(NamedTuple):
    """A part that is sealed: it never changes again, and holds events.

    Durability: it may not be on the device.
    """

    client_id: int
    paths: tuple[Path, ...]
    """Its segments; more than one where a sync has failed."""
    number: int
    """Of the first one."""
    first_sequence: int
    end_sequence: int
    """Number of the event behind its last one, as what follows on it says."""
    size_bytes: int
    age_s: float
    """Since when it has not changed, by the clock of the file system's machine."""

    def blocks(self) -> Iterator[bytes]:
        """Yield its blocks as they stand there; some of them twice where a sync has failed.

        Raises:
            DamageError: it holds something else. Nobody may delete it then.
            FileNotFoundError: it is gone.
        """
        for path in self.paths:
            yield from _blocks(path, self.client_id)

    def remove(self) -> None:
        """Delete it, after somebody else has it on his device; it is harmless to do it twice.

        Durability: what comes next of this client is on the device before.

        Raises:
            InvalidArgumentError: what is before it is still there.
            OSError: it cannot be deleted.
        """
        directory = self.paths[0].parent
        before = acquisition.segment_path(directory, self.client_id, max(0, self.number - 1))
        if self.number and before.exists():
            raise InvalidArgumentError(f"{self.paths[0]}: hand over {before.name} first, and remove it")
        sync_directory(directory)  # the next segment's bytes are there since before it had its name
        for path in reversed(self.paths):
            with suppress(FileNotFoundError):
                path.unlink()


def sealed(directory: Path) -> list[Sealed]:
    """Return what can be handed over of a story, of each client in the order in which that is to be done.

    Raises:
        FileNotFoundError: the story is gone.
        OSError: its directory cannot be read.
    """
    found: list[Sealed] = []
    now_s = time.time()
    for client_id, numbers in acquisition.segments(directory).items():
        several = parts(directory, client_id, numbers) if len(numbers) > 1 else []
        for part, following in pairwise(several):
            paths = tuple(acquisition.segment_path(directory, client_id, number) for number in part.numbers)
            with suppress(FileNotFoundError):  # somebody else has handed it over
                stats = [path.stat() for path in paths]
                size_bytes, age_s = sum(stat.st_size for stat in stats), now_s - stats[-1].st_mtime
                extent = part.numbers[0], part.first_sequence, following.first_sequence
                found.append(Sealed(client_id, paths, *extent, size_bytes, age_s))
    return found


def parts(directory: Path, client_id: int, numbers: Sequence[int]) -> list[Part]:
    """Return the parts of a client, in order.

    Args:
        directory: of a story in the store of a keeper.
        client_id: whose.
        numbers: of the client's segments, rising; there is one. One whose beginning is damaged belongs to those before it.
    """
    found: list[Part] = []
    for number in numbers:
        record = read_client_record(acquisition.segment_path(directory, client_id, number), client_id) or {}
        first_sequence = record.get("first_sequence")
        if found and first_sequence in (None, found[-1].first_sequence):
            found[-1] = found[-1]._replace(numbers=(*found[-1].numbers, number))
        else:
            found.append(Part(first_sequence or 0, (number,)))
    return found


def first_that_counts(directory: Path, client_id: int, numbers: Sequence[int], known: int) -> int:
    """Return the number of a client's first segment that was not handed over, as a reader finds it.

    Args:
        directory: of the story.
        client_id: whose.
        numbers: of the client's segments that are there, rising.
        known: the number of the first one, if nothing has been handed over.
    """
    first = len(numbers) - 1
    while first > 0 and numbers[first - 1] == numbers[first] - 1:
        first -= 1
    if not numbers or numbers[first] == known:
        return known
    for number in numbers[first:]:  # those above the highest missing one
        path = acquisition.segment_path(directory, client_id, number)
        if FOLLOWS in (read_client_record(path, client_id) or {}):
            return number
    return known


def _blocks(path: Path, client_id: int) -> Iterator[bytes]:
    """Yield the blocks of a segment; what an append has left that did not finish is passed over."""
    file = Descriptor(str(path))
    size_bytes, offset = os.fstat(file.number).st_size, 0
    while offset < size_bytes:
        found = whole_block(file.number, offset, client_id)
        if found is None:
            if find_header(file.number, offset + ALIGNMENT, size_bytes, client_id) is not None:
                raise DamageError(
                    path, offset, "no whole block, and others behind it: it cannot be handed over"
                )
            return
        yield found[1]
        offset += len(found[1])
