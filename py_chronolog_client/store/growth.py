"""Which chunks a new one takes along, so that a story never has many small ones.

Those that hold the latest events of their clients are tried first: the longest run of them in which none has
more events than the others and the new segments together. So whenever an event is written once more, its chunk has at least
doubled: that happens log2(n) times to one of n events, at most. And of the chunks that stay, each has more events than all
that are younger, so there are about as many as that. A chunk of `MAX_BYTES` stays as it is from then on.

A chunk holds one range of each client, so one is taken only with all that hold later events of its clients, and if nothing
is missing in between. One that is damaged stays as it is, and so does one that says what has expired.
"""

from __future__ import annotations

import heapq
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from py_chronolog_client.errors import DamageError
from py_chronolog_client.store.archive import Archive
from py_chronolog_client.store.chunk import Chunk
from py_chronolog_client.store.chunkformat import ChunkClient

MAX_BYTES = 64 * 2**20
"""A chunk of this size is not written again."""
MAX_LIST_BYTES = 2**24
"""About the size of what a chunk says of its clients, at which it takes no more along."""

logger = logging.getLogger("py_chronolog_client")


def taken_along(archive: Archive, clients: Mapping[int, ChunkClient], span_ns: int) -> list[Chunk]:
    """Return the chunks whose events are to be written once more.

    Args:
        archive: the chunks of the story.
        clients: what there is new of each client.
        span_ns: only those that do not begin longer than this before the last new event.
    """
    ends_ns = [run.last_time for client in clients.values() for run in client.runs]
    begin_ns = max(ends_ns, default=0) - span_ns
    left = {held.chunk for several in archive.clients.values() for held in several if held.client.expired}

    def may_go(chunk: Chunk) -> bool:
        is_young = not chunk.pages or chunk.pages[0].entry.first_time >= begin_ns
        return chunk not in left and chunk.size_bytes < MAX_BYTES and is_young

    while True:
        chunks = _longest_run(_latest_first(archive, clients, may_go), clients)
        damaged = [chunk for chunk in chunks if not _is_whole(chunk)]
        if not damaged:
            return chunks
        left.update(damaged)


def _longest_run(chunks: Iterator[Chunk], clients: Mapping[int, ChunkClient]) -> list[Chunk]:
    """Return the longest beginning in which no chunk is larger than all else that will be in the new one."""
    events = sum(client.count for client in clients.values())
    list_bytes = sum(client.list_bytes for client in clients.values())
    largest = wanted = 0
    run: list[Chunk] = []
    for chunk in chunks:
        list_bytes += sum(client.list_bytes for client in chunk.clients.values())
        if list_bytes > MAX_LIST_BYTES:
            break
        run.append(chunk)
        events += chunk.events
        largest = max(largest, chunk.events)
        if largest <= events - largest:
            wanted = len(run)
    return run[:wanted]


def _latest_first(
    archive: Archive, clients: Mapping[int, ChunkClient], may_go: Callable[[Chunk], bool]
) -> Iterator[Chunk]:
    """Yield chunks that may go, each behind all that hold later events of its clients, the smallest of them first."""
    rest = {client_id: list(several) for client_id, several in archive.clients.items()}
    below = Counter(held.chunk for several in rest.values() for held in several)
    ready: list[tuple[int, str, Chunk]] = []

    def uncover(client_id: int, next_sequence: int) -> None:
        """Take note that all later events of a client go along, from a certain one on."""
        if rest[client_id] and rest[client_id][-1].end_sequence >= next_sequence:
            chunk = rest[client_id][-1].chunk
            below[chunk] -= 1
            if not below[chunk] and may_go(chunk):
                heapq.heappush(ready, (chunk.events, chunk.path, chunk))

    for client_id in rest:
        uncover(client_id, clients[client_id].first_sequence if client_id in clients else 0)
    while ready:
        chunk = heapq.heappop(ready)[-1]
        yield chunk
        for client_id in chunk.clients:
            if rest[client_id] and rest[client_id][-1].chunk is chunk:
                uncover(client_id, rest[client_id].pop().first_sequence)


def _is_whole(chunk: Chunk) -> bool:
    try:
        chunk.check()
    except DamageError as error:
        logger.warning("a chunk is left as it is: %s", error)
        return False
    return True
