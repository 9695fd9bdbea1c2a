"""Who has written to a story: its clients, in segments and in chunks.

Segments come first and chunks second, because that is the way that events go.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from py_chronolog_client.store import acquisition
from py_chronolog_client.store.chunkformat import chunk_names
from py_chronolog_client.store.format import decode_map
from py_chronolog_client.store.records import read_client_record


class Known(NamedTuple):
    """What can be told of a client without reading its events."""

    description: dict[str, Any]
    """Its client record; empty where none can be believed."""
    size_bytes: int
    """About the space that its events take."""


def client_ids(directory: Path) -> list[int]:
    """Return the ids of all clients that ever wrote to the story in a directory, sorted.

    Raises:
        OSError: the directory cannot be read.
    """
    written = acquisition.clients(directory)
    return sorted({*written, *_of_chunks(directory, None)})


def census(directory: Path, wanted: Collection[int] | None = None) -> dict[int, Known]:
    """Return what is known of the clients of the story in a directory, by rising client id.

    Args:
        directory: of the story.
        wanted: only these; None: all.

    Raises:
        OSError: the directory cannot be read.
    """
    found: dict[int, Known] = {}
    for client_id, numbers in acquisition.segments(directory).items():
        if wanted is None or client_id in wanted:
            paths = [acquisition.segment_path(directory, client_id, number) for number in numbers]
            records = (read_client_record(path, client_id) for path in paths)
            description = next((record for record in records if record is not None), {})
            found[client_id] = Known(description, _size_bytes(paths[0]))
    for client_id, known in _of_chunks(directory, wanted).items():
        also = found.get(client_id)
        found[client_id] = (
            known if also is None else Known(known.description, known.size_bytes + also.size_bytes)
        )
    return dict(sorted(found.items()))


def _of_chunks(directory: Path, wanted: Collection[int] | None) -> dict[int, Known]:
    names = chunk_names(directory)
    if not names:
        return {}
    from py_chronolog_client.store.archive import Archive

    found: dict[int, Known] = {}
    for client_id, several in Archive(directory, names).clients.items():
        if wanted is None or client_id in wanted:
            records = [payload for held in several for _, payload in held.client.records]
            sizes = [
                held.chunk.size_bytes * held.client.count // max(1, held.chunk.events) for held in several
            ]
            found[client_id] = Known(_description(records), sum(sizes))
    return found


def _description(records: list[bytes]) -> dict[str, Any]:
    """Return the first client record among some records."""
    for payload in records:
        with suppress(ValueError):
            fields = decode_map(payload)
            if fields.get("type") == "client":
                return fields
    return {}


def _size_bytes(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0
