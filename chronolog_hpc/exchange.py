"""Moving events to the ranks whose slices they belong to, each of them once, in rounds of bounded size.

A sender reads the records of its run only when it sends them, a piece for each receiver in each round. A
receiver merges what has come (`Inbox`): up to the smallest of the last keys of all senders that have not
finished, nothing can come any more that belongs in between, so everything up to there becomes a page of the
result. The rest waits for the next round. A receiver says how much it takes from whom, nothing from senders
that are ahead of the others. So beyond its result a rank holds the index columns of its run and a few times
`ROUND_BYTES`, whatever the size of the story; only a record that is larger than its share of a round goes over
it, alone.
"""

from __future__ import annotations

import functools
import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from chronolog_hpc.clientlib import MemoryPage, Page, Payload, ReplayTimeoutError, story_order
from chronolog_hpc.splitters import I64, Columns

if TYPE_CHECKING:
    from chronolog_hpc.clientlib import U64
    from chronolog_hpc.mpi import Team

ROUND_BYTES = 32 * 2**20
"""About what a rank sends, and receives, in one round."""

_EVENT_BYTES = 40
_CHUNK_EVENTS = 2**15
_FIRST_MEAN_BYTES = 4096
_UNKNOWN_NS = 2**64 - 1


class Piece(NamedTuple):
    """Consecutive events of one sender's run."""

    columns: Columns
    payload: Payload
    windows_ns: U64 | None
    """Half-width of the window around each key; None where nobody knows any."""
    times: U64 | None = None
    """What `log_event` returned; None where that is the key."""

    def __len__(self) -> int:
        return len(self.payload)

    @property
    def size_bytes(self) -> int:
        """About what the piece takes in memory."""
        return len(self.payload.data) + _EVENT_BYTES * len(self)

    def part(self, start: int, stop: int) -> Piece:
        """Return the events from `start` up to `stop` (not included), without copying them."""
        columns = Columns(*(column[start:stop] for column in self.columns))
        more = (None if column is None else column[start:stop] for column in self[2:])
        return Piece(columns, self.payload.part(start, stop), *more)

    def copy(self) -> Piece:
        """Return the same events in memory of their own, so that what they were cut from can go."""
        columns = Columns(*(column.copy() for column in self.columns))
        more = (None if column is None else column.copy() for column in self[2:])
        return Piece(columns, Payload(self.payload.ends.copy(), bytes(self.payload.data)), *more)

    def words(self) -> U64:
        """Return everything but the records' bytes: uint64, shape (4 n,), (5 n,) with windows, (6 n,) with times too."""
        windows_ns = self.windows_ns
        if windows_ns is None and self.times is not None:
            windows_ns = _unknown(len(self))
        more = [column for column in (windows_ns, self.times) if column is not None]
        return np.concatenate([*self.columns, self.payload.ends, *more])


NOTHING = Piece(Columns(*[np.empty(0, np.uint64)] * 3), Payload.of([]), None)


class Run:
    """A rank's share of a story, in order: columns in memory, records in the store.

    Attributes:
        columns: the keys.
        windows_ns: half-width of the window around each key; None where nobody knows any.
        times: what `log_event` returned; None where that is the key.
    """

    def __init__(self, pages: Iterable[Page], *, aligned: bool = False) -> None:
        """Make a run of the pages of a replay, which may belong to nobody else and are all `aligned` or not."""
        self._pages = [page for page in pages if len(page)]
        self._starts: list[int] = np.cumsum([0, *map(len, self._pages)]).tolist()
        self._mean_bytes = _FIRST_MEAN_BYTES
        self.windows_ns = self._join_windows()
        self.times = self._join("times") if aligned else None
        key = "aligned" if aligned else "times"
        self.columns = Columns(*(self._join(name) for name in (key, *Columns._fields[1:])))

    def __len__(self) -> int:
        return self._starts[-1]

    def piece(self, start: int, stop: int, limit_bytes: int) -> Piece:
        """Read events from `start` on: as many as fit `limit_bytes`, at least one, and none from `stop` on.

        Raises:
            DamageError: the store no longer holds what it held.
        """
        parts: list[Payload] = []
        place, left_bytes = start, limit_bytes
        while place < stop and left_bytes > 0:
            number = bisect_right(self._starts, place) - 1
            first = place - self._starts[number]
            count = min(_CHUNK_EVENTS, max(1, left_bytes // self._mean_bytes), stop - place)
            got = self._pages[number].payload(first, first + count)
            costs = got.ends + np.arange(1, len(got) + 1, dtype=np.uint64) * np.uint64(_EVENT_BYTES)
            self._mean_bytes = int(costs[-1]) // len(got)
            fitting = max(int(np.searchsorted(costs, np.uint64(left_bytes), "right")), 0 if parts else 1)
            parts.append(got.part(0, fitting))
            place += fitting
            left_bytes = left_bytes - int(costs[-1]) if fitting == len(got) else 0
        columns = Columns(*(column[start:place] for column in self.columns))
        more = (None if column is None else column[start:place] for column in (self.windows_ns, self.times))
        return Piece(columns, Payload.join(parts), *more)

    def _join(self, name: str) -> U64:
        """Put one column of all pages into one array, of which the pages keep views."""
        whole = np.empty(len(self), np.uint64)
        for page, start in zip(self._pages, self._starts, strict=False):
            part = whole[start : start + len(page)]
            part[:] = getattr(page, name)
            setattr(page, name, part)
        return whole

    def _join_windows(self) -> U64 | None:
        known = None
        for page, start in zip(self._pages, self._starts, strict=False):
            windows_ns = page.windows_ns()
            if known is None and not np.all(windows_ns == _UNKNOWN_NS):
                known = _unknown(len(self))
            if known is not None:
                known[start : start + len(page)] = windows_ns
        return known


class Inbox:
    """What has come from each sender and is not yet part of the result."""

    def __init__(self, incoming: I64) -> None:
        """Expect so many events from each sender: int64, shape (size,)."""
        self._left = incoming.copy()
        self._waiting: list[list[Piece]] = [[] for _ in incoming]

    @property
    def left(self) -> int:
        """How many events are still to come."""
        return int(self._left.sum())

    def room_bytes(self) -> I64:
        """Return how many bytes each sender may send now: int64, shape (size,)."""
        share = max(1, ROUND_BYTES // max(1, int(np.count_nonzero(self._left))))
        held = np.array([sum(piece.size_bytes for piece in waiting) for waiting in self._waiting])
        return np.where((self._left > 0) & (held < share), share, 0)

    def receive(self, sender: int, piece: Piece) -> None:
        """Take in a piece, which continues what has come from this sender before."""
        if len(piece):
            self._waiting[sender].append(piece)
            self._left[sender] -= len(piece)

    def merge(self) -> MemoryPage | None:
        """Return the events that nothing can come before any more, or None if there are none."""
        unfinished = [sender for sender, left in enumerate(self._left) if left]
        if any(not self._waiting[sender] for sender in unfinished):
            return None
        last = [self._waiting[sender][-1].columns.take(np.array([-1]))[0] for sender in unfinished]
        cut = min(last, key=lambda key: key.tolist()) if last else None
        ready: list[Piece] = []
        for waiting in self._waiting:
            while waiting:
                piece = waiting[0]
                count = len(piece) if cut is None else piece.columns.up_to(cut)
                if count:
                    ready.append(piece.part(0, count))
                if count < len(piece):
                    waiting[0] = piece.part(count, len(piece)).copy()
                    break
                del waiting[0]
        return _merge(ready) if ready else None


def exchange(team: Team, run: Run, cuts: I64, deadline_s: float | None) -> Iterator[MemoryPage]:
    """Send every event of every run to the rank whose slice it is in; yield this rank's slice, in order.

    Collective: over the team; synchronises. Every rank must take all pages.

    Args:
        team: the ranks.
        run: this rank's share of the story.
        cuts: int64, shape (size,): where each rank's slice begins in the run.
        deadline_s: by `time.monotonic()`.

    Raises:
        ReplayTimeoutError: the deadline is over.
        DamageError: the store no longer holds what it held.
    """
    sender = _Sender(team.rank, run, cuts)
    inbox = Inbox(team.alltoall(sender.left))
    while team.total(inbox.left):
        room_bytes = team.alltoall(inbox.room_bytes())
        pieces = team.together(functools.partial(sender.pieces, room_bytes, deadline_s))
        received = _swap(team, pieces)
        page = team.together(functools.partial(_take_in, inbox, received))
        if page is not None:
            yield page


class _Sender:
    """Where this rank stands in sending its run."""

    def __init__(self, rank: int, run: Run, cuts: I64) -> None:
        self._run = run
        self._next = cuts.copy()
        self._stops = np.append(cuts[1:], len(run))
        self._first = rank

    @property
    def left(self) -> I64:
        """Events for each receiver: int64, shape (size,)."""
        return self._stops - self._next

    def pieces(self, room_bytes: I64, deadline_s: float | None) -> list[Piece]:
        """Read what is sent in this round, a piece for each receiver that has room; begin where it ended."""
        if deadline_s is not None and time.monotonic() > deadline_s:
            raise ReplayTimeoutError("the replay did not finish before its deadline")
        size = len(room_bytes)
        pieces = [NOTHING] * size
        served = np.flatnonzero((self.left > 0) & (room_bytes > 0))
        left_bytes = ROUND_BYTES
        for number in sorted(served.tolist(), key=lambda receiver: (receiver - self._first) % size):
            if left_bytes <= 0:
                break
            limit_bytes = min(int(room_bytes[number]), max(1, ROUND_BYTES // len(served)), left_bytes)
            piece = self._run.piece(int(self._next[number]), int(self._stops[number]), limit_bytes)
            pieces[number] = piece
            self._next[number] += len(piece)
            left_bytes -= piece.size_bytes
            self._first = number + 1
        return pieces


def _swap(team: Team, pieces: Sequence[Piece]) -> list[Piece]:
    """Send piece i to rank i; return the pieces from all ranks, in rank order. The own piece stays here."""
    sent = [NOTHING if rank == team.rank else piece for rank, piece in enumerate(pieces)]
    words = [piece.words() for piece in sent]
    counts = np.array(
        [[len(p), len(w), len(p.payload.data)] for p, w in zip(sent, words, strict=True)], np.int64
    )
    incoming = team.alltoall(counts)
    data = np.frombuffer(b"".join([piece.payload.data for piece in sent]), np.uint8)
    came = team.alltoallv(np.concatenate(words), counts[:, 1], incoming[:, 1])
    view = team.alltoallv(data, counts[:, 2], incoming[:, 2]).data
    received, word, byte = [], 0, 0
    for events, words_count, payload_bytes in incoming.tolist():
        rows = came[word : word + words_count].reshape(-1, max(events, 1))
        if events:
            payload = Payload(rows[3], view[byte : byte + payload_bytes])
            received.append(Piece(Columns(*rows[:3]), payload, *(rows[4:] if len(rows) > 4 else [None])))
        else:
            received.append(NOTHING)
        word, byte = word + words_count, byte + payload_bytes
    received[team.rank] = pieces[team.rank]
    return received


def _take_in(inbox: Inbox, received: Sequence[Piece]) -> MemoryPage | None:
    for sender, piece in enumerate(received):
        inbox.receive(sender, piece)
    return inbox.merge()


def _merge(pieces: Sequence[Piece]) -> MemoryPage:
    """Merge pieces into one page. Each is in order; the pieces of a sender follow each other."""
    if len(pieces) == 1:
        # its memory holds what came from the other senders too
        return _page(*pieces[0].copy())
    keys, client_ids, sequences = (
        np.concatenate([piece.columns[number] for piece in pieces]) for number in range(3)
    )
    order = story_order(keys, client_ids, sequences)
    columns = Columns(keys[order], client_ids[order], sequences[order])
    payload = Payload.join([piece.payload for piece in pieces]).take(order)
    windows_ns = times = None
    if any(piece.windows_ns is not None for piece in pieces):
        windows = [_unknown(len(p)) if p.windows_ns is None else p.windows_ns for p in pieces]
        windows_ns = np.concatenate(windows)[order]
    if pieces[0].times is not None:
        times = np.concatenate([piece.times for piece in pieces if piece.times is not None])[order]
    return _page(columns, payload, windows_ns, times)


def _page(columns: Columns, payload: Payload, windows_ns: U64 | None, times: U64 | None) -> MemoryPage:
    keys, client_ids, sequences = columns
    if times is None:
        return MemoryPage(keys, client_ids, sequences, payload, windows_ns)
    return MemoryPage(times, client_ids, sequences, payload, windows_ns, aligned=keys)


def _unknown(count: int) -> U64:
    return np.full(count, _UNKNOWN_NS, np.uint64)
