"""The chunks of a story: which there are, and which of them counts for which event.

Chunks may overlap: two that were made at once may hold the same events, and so do a chunk and those that were merged into
it, until they are deleted. They then hold the same of them, and each event is taken from one: of several, from the one that
begins earlier, then from the first by name. What a chunk holds of a client counts for nothing if another one stands for it: it
has these events and the one before their end, and stands for as many segments.

What has expired of a client (`retention`) is told by the chunk that says so, whatever older ones hold: they are about to be
deleted.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from py_chronolog_client.engine.base import ScanReport
from py_chronolog_client.errors import DamageError
from py_chronolog_client.store.chunk import Chunk, ChunkSpan
from py_chronolog_client.store.chunkformat import ChunkClient


class Held(NamedTuple):
    """Events of one client that are taken from a chunk."""

    chunk: Chunk
    client: ChunkClient
    first_sequence: int
    end_sequence: int

    def spans(self) -> list[ChunkSpan]:
        """Return the events by the clock models under which their times were made."""
        spans = [
            ChunkSpan(run, max(run.first_sequence, self.first_sequence), min(end, self.end_sequence))
            for run, end in self.client.ranges()
        ]
        return [span for span in spans if span.first_sequence < span.end_sequence]


class Archive:
    """The chunks that a story had at one moment.

    Attributes:
        names: of their files.
        chunks: those that can be believed, sorted by name.
        damages: what is wrong with the others.
        clients: what is taken from them: client id -> in the order of the sequence numbers; first of all what has expired.
        superseded: those of which nothing counts any more.
    """

    def __init__(self, directory: Path, names: Iterable[str], known: Archive | None = None) -> None:
        """Open the chunks of a story.

        Args:
            directory: of the story.
            names: of the chunks.
            known: an archive of the same story; what it has open is not opened again.

        Raises:
            StoreError: this process may not open any more files.
        """
        self.names = frozenset(names)
        self.chunks: dict[str, Chunk] = {}
        self.damages: list[DamageError] = []
        report = ScanReport()
        for name in sorted(self.names):
            try:
                self.chunks[name] = (known and known.chunks.get(name)) or Chunk(directory / name)
            except FileNotFoundError:
                continue  # whoever lists the directory again will know
            except DamageError as error:
                report.caught(error)
        self.damages = report.damages
        self.clients = self._by_client()
        used = {held.chunk for several in self.clients.values() for held in several}
        self.superseded = [chunk for chunk in self.chunks.values() if chunk not in used]

    def _by_client(self) -> dict[int, list[Held]]:
        ranges: dict[int, list[Held]] = {}
        for chunk in self.chunks.values():
            for client_id, client in chunk.clients.items():
                ranges.setdefault(client_id, []).append(
                    Held(chunk, client, client.first_sequence, client.end_sequence)
                )
        latest_first = sorted(self.chunks.values(), key=_extent_of_expired, reverse=True)
        said = {chunk: number for number, chunk in enumerate(latest_first)}
        for client_id, several in ranges.items():
            expired = min(
                (held for held in several if held.client.expired),
                key=lambda held: said[held.chunk],
                default=None,
            )
            expected, kept = (expired.first_sequence, [expired]) if expired else (0, [])
            counting = [held for held in several if expired is None or _is_behind(held, expired)]
            for held in _not_contained(counting):
                first = max(held.first_sequence, expected)
                kept.append(held._replace(first_sequence=min(first, held.end_sequence)))
                expected = max(expected, held.end_sequence)
            ranges[client_id] = kept
        return ranges


def _extent_of_expired(chunk: Chunk) -> int:
    """Return a number that rises from each chunk that says what has expired to the next one."""
    return sum(client.first_sequence + client.segments for client in chunk.clients.values() if client.expired)


def _is_behind(held: Held, expired: Held) -> bool:
    """Tell whether something is not among what has expired."""
    return not held.client.expired and held.client.segments > expired.client.segments


def _not_contained(several: Iterable[Held]) -> list[Held]:
    """Leave out those for which others stand, and sort the rest by their sequence numbers."""
    kept: list[Held] = []
    widest: Held | None = None
    for held in sorted(
        several, key=lambda each: (each.first_sequence, -each.end_sequence, -each.client.segments)
    ):
        if (
            widest is None
            or held.end_sequence > widest.end_sequence
            or held.end_sequence <= widest.first_sequence
            or held.client.segments > widest.client.segments
        ):
            kept.append(held)
        if widest is None or held.end_sequence > widest.end_sequence:
            widest = held
    return sorted(kept, key=lambda each: (each.first_sequence, each.end_sequence, each.client.segments))
