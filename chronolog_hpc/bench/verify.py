"""The check of a replay against what was logged: every byte, client id, time and position, without exception.

Each event goes two ways. The rank that has replayed it makes its record again, from the rank and number of
the event, and compares every byte. The rank that has logged it is told its sequence number and time; it
compares the time with the one that `log_event` returned then, and keeps a tally of its events, which tells
the missing from the doubled. Both go in chunks, so that memory does not grow with the number of events
except for the tally: two bytes for each event that the rank has logged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from chronolog_hpc.bench.phases import Written
    from chronolog_hpc.bench.progress import Progress
    from chronolog_hpc.bench.ranks import Ranks
    from chronolog_hpc.bench.records import Records
    from chronolog_hpc.bench.spec import Spec
    from chronolog_hpc.clientlib import EventList

    U64 = npt.NDArray[np.uint64]

CHUNK_EVENTS = 2**17
CHUNK_BYTES = 64 * 2**20
_EXAMPLES = 3

Key = tuple[int, int, int]
"""Time, client id, sequence number: the order of a story."""


@dataclass
class Verdict:
    """What a verification found.

    Attributes:
        expected: events that were given to `log_event`.
        replayed: events that the replay delivered.
        missing: events that it did not deliver, or that `log_event` had refused.
        duplicated: deliveries of an event that had been delivered before.
        out_of_order: events that come before their predecessor.
        corrupted: deliveries with another record or time than was logged, or of an event that nobody has
            logged.
        examples: sentences about some of what was found.
    """

    expected: int = 0
    replayed: int = 0
    missing: int = 0
    duplicated: int = 0
    out_of_order: int = 0
    corrupted: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether the replay is what was logged."""
        return self.expected == self.replayed and not (
            self.missing or self.duplicated or self.out_of_order or self.corrupted
        )

    def __add__(self, other: Verdict) -> Verdict:
        """Return the verdict on both: what MPI's SUM does with objects."""
        both = Verdict(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))
        del both.examples[_EXAMPLES:]
        return both

    def note(self, sentence: str) -> None:
        """Keep an example, if there are not enough of them."""
        if len(self.examples) < _EXAMPLES:
            self.examples.append(sentence)


class Delivery(NamedTuple):
    """Events of one client that some rank has replayed: its report to the rank that has logged them."""

    sequences: U64
    times: U64
    altered: npt.NDArray[np.bool_]
    """Whether the record is not the one that was logged."""


class Attempts:
    """Which of a rank's events became which sequence number: in their order, without those refused."""

    def __init__(self, times: U64) -> None:
        """Take the returned times of all events of the rank: uint64, shape (n,), 0 for a refused one."""
        self.refused = np.flatnonzero(times == 0)
        self.accepted = len(times) - len(self.refused)
        self._before = self.refused - np.arange(len(self.refused))

    def of(self, sequences: U64) -> npt.NDArray[np.int64]:
        """Return the numbers of the events with these sequence numbers: int64, shape (n,)."""
        known = np.minimum(sequences, np.uint64(2**62)).astype(np.int64)
        return known if not len(self._before) else known + np.searchsorted(self._before, known, "right")


class Tally:
    """What this rank has logged, and how often each event has been delivered."""

    def __init__(self, times: U64) -> None:
        """Take the returned times of all events of this rank."""
        self._times = times
        self._attempts = Attempts(times)
        self._delivered = np.zeros(self._attempts.accepted, np.uint16)

    def enter(self, delivery: Delivery, rank: int, verdict: Verdict) -> None:
        """Enter deliveries of this rank's events; count those that are corrupted."""
        known = delivery.sequences < np.uint64(self._attempts.accepted)
        sequences = delivery.sequences[known]
        times = self._times[self._attempts.of(sequences)]
        moved = times != delivery.times[known]
        bad = delivery.altered[known] | moved
        verdict.corrupted += int(bad.sum()) + int((~known).sum())
        for place in np.flatnonzero(moved)[:_EXAMPLES]:
            verdict.note(
                f"event {sequences[place]} of rank {rank} was logged at {times[place]} and replayed at "
                f"{delivery.times[known][place]}"
            )
        for sequence in delivery.sequences[~known][:_EXAMPLES]:
            verdict.note(f"event {sequence} of rank {rank} was replayed and never logged")
        np.add.at(self._delivered, sequences.astype(np.int64), 1)

    def close(self, rank: int, verdict: Verdict) -> None:
        """Count what was never delivered, or more than once."""
        verdict.expected += len(self._times)
        lost = np.flatnonzero(self._delivered == 0)
        verdict.missing += len(lost) + len(self._attempts.refused)
        verdict.duplicated += int((self._delivered[self._delivered > 1].astype(np.int64) - 1).sum())
        if len(self._attempts.refused):
            verdict.note(f"log_event refused {len(self._attempts.refused)} events of rank {rank}")
        for sequence in lost[:_EXAMPLES]:
            verdict.note(f"event {sequence} of rank {rank} was not replayed")
        for sequence in np.flatnonzero(self._delivered > 1)[:_EXAMPLES]:
            verdict.note(f"event {sequence} of rank {rank} was replayed {self._delivered[sequence]} times")


def verify(
    ranks: Ranks, spec: Spec, records: Records, written: Written, events: EventList, progress: Progress
) -> Verdict:
    """Compare everything that was replayed with everything that was logged.

    Collective: over the ranks; synchronises.

    Args:
        ranks: all of them.
        spec: of the run.
        records: what was logged.
        written: client ids of all ranks, and the times that `log_event` returned on this one.
        events: this rank's slice of the replay, or its own story.
        progress: is told how far it is.

    Returns:
        The verdict on the whole, on all ranks.
    """
    own_times = written.times.read()
    tally, attempts = Tally(own_times), ranks.all(Attempts(own_times))
    checker = Checker(written.client_ids, records, attempts, Verdict(replayed=len(events)))
    chunk = max(1, min(CHUNK_EVENTS, CHUNK_BYTES // records.mean_bytes))
    slices = _chunks(events, chunk)
    for number in range(max(ranks.all(-(-len(events) // chunk)))):
        deliveries = checker.check(*next(slices)) if number * chunk < len(events) else checker.nothing()
        for delivery in ranks.exchange(deliveries):
            tally.enter(delivery, ranks.rank, checker.verdict)
        progress.say("verify", min((number + 1) * chunk, len(events)), len(events))
    tally.close(ranks.rank, checker.verdict)
    if spec.story == "shared":
        ends = ranks.all((checker.first, checker.last))
        if ranks.first:
            checker.verdict.out_of_order += joints_out_of_order(ends)
    return ranks.sum(checker.verdict)


class Checker:
    """Checks order and records of what this rank has replayed; who has logged it checks the rest.

    Attributes:
        verdict: what was found so far.
        first: key of the first event, or None.
        last: key of the last event, or None.
    """

    def __init__(
        self, client_ids: list[int], records: Records, attempts: list[Attempts], verdict: Verdict
    ) -> None:
        """Prepare to check.

        Args:
            client_ids: of each rank.
            records: what was logged.
            attempts: of each rank.
            verdict: where to count.
        """
        self._client_ids = client_ids
        self._records = records
        self._attempts = attempts
        self.verdict = verdict
        self.first: Key | None = None
        self.last: Key | None = None

    def nothing(self) -> list[Delivery]:
        """Return a report on no event to each rank."""
        none = np.empty(0, np.uint64)
        return [Delivery(none, none, np.empty(0, np.bool_)) for _ in self._client_ids]

    def check(self, times: U64, client_ids: U64, sequences: U64, found: list[bytes]) -> list[Delivery]:
        """Check consecutive events of the replay; return the report to each rank."""
        self._check_order(times, client_ids, sequences)
        deliveries = self.nothing()
        foreign = np.ones(len(times), np.bool_)
        for rank, client_id in enumerate(self._client_ids):
            places = np.flatnonzero(client_ids == np.uint64(client_id))
            if len(places):
                foreign[places] = False
                altered = self._altered(rank, sequences[places], [found[place] for place in places.tolist()])
                deliveries[rank] = Delivery(sequences[places], times[places], altered)
        if foreign.any():
            self.verdict.corrupted += int(foreign.sum())
            self.verdict.note(
                f"an event of client {client_ids[foreign][0]} was replayed, which is no rank of this job"
            )
        return deliveries

    def _altered(self, rank: int, sequences: U64, found: list[bytes]) -> npt.NDArray[np.bool_]:
        expected = self._records.encoded(rank, self._attempts[rank].of(sequences).tolist())
        if found == expected:
            return np.zeros(len(found), np.bool_)
        altered = np.array([ours != theirs for ours, theirs in zip(found, expected, strict=True)])
        for place in np.flatnonzero(altered)[:_EXAMPLES]:
            self.verdict.note(
                f"event {sequences[place]} of rank {rank} has the record {_shown(found[place])}, logged was "
                f"{_shown(expected[place])}"
            )
        return altered

    def _check_order(self, times: U64, client_ids: U64, sequences: U64) -> None:
        if not len(times):
            return
        keys = [(int(times[i]), int(client_ids[i]), int(sequences[i])) for i in (0, -1)]
        if self.last is not None and keys[0] < self.last:
            self.verdict.out_of_order += 1
        self.first, self.last = self.first or keys[0], keys[1]
        later = sequences[1:] >= sequences[:-1]
        for column in (client_ids, times):
            later = (column[1:] > column[:-1]) | ((column[1:] == column[:-1]) & later)
        self.verdict.out_of_order += int((~later).sum())
        for place in np.flatnonzero(~later)[:_EXAMPLES]:
            self.verdict.note(f"an event at {times[place + 1]} was replayed after one at {times[place]}")


def joints_out_of_order(ends: list[tuple[Key | None, Key | None]]) -> int:
    """Count the slices that begin before the end of the one before, given first and last key of each."""
    wrong, before = 0, None
    for first, last in ends:
        if first is None:
            continue
        wrong += before is not None and first < before
        before = last
    return wrong


def _chunks(events: EventList, size: int) -> Iterator[tuple[U64, U64, U64, list[bytes]]]:
    times, client_ids, sequences, records = (
        events.times,
        events.client_ids,
        events.sequences,
        events.records(),
    )
    for start in range(0, len(events), size):
        part = slice(start, start + size)
        yield times[part], client_ids[part], sequences[part], list(islice(records, size))


def _shown(record: bytes) -> str:
    return repr(record if len(record) <= 60 else record[:60] + b"...")
