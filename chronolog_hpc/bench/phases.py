"""The phases of the main job: write, latency, replay; each a function over all ranks that returns figures.

How time is taken:

* **Write.** The records of a round (at most 262144 events or 64 MiB) are made before the round's clock
  starts, so memory does not grow with the number of events and making records is not measured. Between two
  barriers each rank then calls `log_event` for all of them, in the loop `array("Q", map(log_event,
  records))`: it runs in C, and keeps the returned times at 8 bytes each. The loop itself costs about as
  much as `for record in records: log_event(record)` and is not subtracted. `flush` is inside the last
  round. The seconds of a round are its last end minus its first start over all ranks, on their common time
  line (docs/clock.md); the seconds of the
  phase are the sum over its rounds (one round for up to 262144 small events). Returned times go to an
  unlinked temporary file after each round.
* **Latency** is a pass of its own, with two clock readings around each call; it goes through many
  roll-overs of the tail, whose cost is what the high percentiles show. The overhead of the clock is
  reported beside it and not subtracted.
* **Replay.** Between two barriers all ranks replay together and look at every column; then, between two
  other barriers, each iterates over its slice as Event objects, which reads the records.

The warm-up, the latency pass and the comparison with a plain file come before the write phase, and their stories are
removed: the write phase then finds imported modules and page cache that was touched before, run after run.
"""

from __future__ import annotations

import tempfile
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from chronolog_hpc.bench.environment import memory_bytes
from chronolog_hpc.bench.histogram import Histogram
from chronolog_hpc.bench.ranks import RunError, this_process
from chronolog_hpc.bench.spec import StoryMode
from chronolog_hpc.bench.workspace import CHRONICLE
from chronolog_hpc.replay import replay_story
from chronolog_hpc.session import RankStory, open_story

if TYPE_CHECKING:
    import numpy.typing as npt

    from chronolog_hpc.bench.progress import Progress
    from chronolog_hpc.bench.ranks import Ranks
    from chronolog_hpc.bench.records import Records
    from chronolog_hpc.bench.spec import Spec
    from chronolog_hpc.bench.workspace import Workspace
    from chronolog_hpc.clientlib import EventList

T = TypeVar("T")

ROUND_EVENTS = 2**18
ROUND_BYTES = 64 * 2**20
WARM_UP_EVENTS = 2**14
LATENCY_CALLS = 2**16
LATENCY_BYTES = 64 * 2**20
LEAST_LATENCY_CALLS = 32

Span = tuple[int, int]
"""Start and end of something on one rank, in ns of its raw clock."""


class TimesFile:
    """The times that `log_event` returned on this rank, in an unlinked file: they are not in memory."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="chronolog-bench-times-")  # noqa: SIM115  closed by `close`
        self._count = 0

    def close(self) -> None:
        """Let go of the file, and with it of its content."""
        self._file.close()

    def append(self, times: array[int], repeated: Sequence[int] | None = None) -> str | None:
        """Add times; with `repeated`, each as often as that says. Return why that was not possible, or None."""
        column = np.frombuffer(times, np.uint64)
        if repeated is not None:
            column = np.repeat(column, repeated)
        try:
            self._file.write(column.tobytes())
            self._file.flush()
        except OSError as error:
            return (
                f"{tempfile.gettempdir()}: {error.strerror}: make room there for 8 bytes per event, or set TMPDIR "
                "to a larger directory"
            )
        self._count += len(column)
        return None

    def read(self) -> npt.NDArray[np.uint64]:
        """Return all times as one array, uint64, shape (n,), mapped and not read."""
        return np.memmap(self._file, np.uint64, "r", shape=(self._count,))


@dataclass
class Written:
    """What the write phase measured; the same on all ranks except for `times` and `story`."""

    seconds: float
    story: str
    times: TimesFile
    per_rank: list[dict[str, Any]]
    client_ids: list[int]


def rounds(count: int, mean_bytes: int, batch: int) -> Iterator[range]:
    """Cut `count` events into rounds of bounded memory that hold whole batches."""
    limit = max(1, min(ROUND_EVENTS, ROUND_BYTES // mean_bytes))
    limit = max(batch, limit // batch * batch)
    for start in range(0, count, limit):
        yield range(start, min(start + limit, count))


def batches(records: Sequence[T], size: int) -> list[Sequence[T]]:
    """Cut records into batches; the last may be smaller."""
    return [records[start : start + size] for start in range(0, len(records), size)]


def refusal(lost: Mapping[str, int], what: str, work: Workspace) -> str | None:
    """Return the sentence about events that were refused; None if none was."""
    if not lost:
        return None
    reasons = ", ".join(f"{reason} {count}" for reason, count in lost.items())
    return (
        f"{sum(lost.values())} events of the {what} could not be stored ({reasons}): make room in "
        f"{work.scratch.parent}, or name a directory on a larger file system with --store"
    )


def require_stored(ranks: Ranks, story: RankStory, what: str, work: Workspace) -> None:
    """Go on if every event of all ranks was stored: what refusals cost is no figure.

    Collective: over the ranks; synchronises.

    Raises:
        RunError: on all ranks.
    """
    lost = ranks.sum(Counter(story.statistics().lost))
    ranks.agree(refusal(lost, what, work), RunError)


def warm_up(ranks: Ranks, work: Workspace, records: Records) -> None:
    """Open, log, replay and remove a little, so that no measured phase does anything for the first time.

    Collective: over the ranks.
    """
    count = min(WARM_UP_EVENTS, max(1, ROUND_BYTES // records.mean_bytes // 4))
    with open_story(
        ranks.comm, CHRONICLE, "warm-up", store=work.scratch_store, clock=ranks.story_clock
    ) as story:
        for record in records.texts(ranks.rank, range(count)):
            story.log_event(record)
    require_stored(ranks, story, "warm-up", work)
    for _ in replay_story(ranks.comm, CHRONICLE, "warm-up", store=work.scratch_store):
        pass
    ranks.barrier()
    if ranks.first:
        work.destroy_scratch_story("warm-up")


def write(
    ranks: Ranks, spec: Spec, work: Workspace, records: Records, times: TimesFile, progress: Progress
) -> Written:
    """Log the events of the main story.

    Collective: over the ranks; synchronises.
    """
    seconds, own_ns, memory = 0.0, 0, [memory_bytes()]
    per_rank_story = spec.story == "per-rank"
    with open_story(
        ranks.comm,
        CHRONICLE,
        work.story,
        per_rank=per_rank_story,
        store=work.store,
        clock=ranks.story_clock,
    ) as story:
        for numbers in rounds(spec.events, records.mean_bytes, spec.batch):
            texts = records.texts(ranks.rank, numbers)
            flush = story.flush if numbers.stop == spec.events else None
            span, returned = _log_round(ranks, story, texts, spec.batch, flush)
            seconds += ranks.elapsed_s(*span)
            own_ns += span[1] - span[0]
            memory.append(memory_bytes())
            sizes = None if spec.batch == 1 else [len(batch) for batch in batches(texts, spec.batch)]
            ranks.agree(times.append(returned, sizes), RunError)
            del texts, returned  # before the next round makes its own
            progress.say("write", numbers.stop, spec.events)
        statistics = story.statistics()
        client_id, name = story.client_id, story.story
    per_rank = ranks.all(
        {
            "rank": ranks.rank,
            **this_process(),
            "client_id": client_id,
            "story": name,
            "events": statistics.logged,
            "lost": dict(statistics.lost),
            "bytes": records.total_bytes(ranks.rank, spec.events),
            "seconds": own_ns * 1e-9,
            "events_per_s": spec.events / max(own_ns * 1e-9, 1e-9),
            "anonymous_before_bytes": memory[0]["anonymous"],
            "anonymous_peak_bytes": max((m["anonymous"] or 0 for m in memory), default=0) or None,
            "high_water_bytes": memory[-1]["high_water"],
        }
    )
    return Written(seconds, name, times, per_rank, [entry["client_id"] for entry in per_rank])


def _log_round(
    ranks: Ranks,
    story: RankStory,
    texts: Sequence[str | bytes],
    batch: int,
    flush: Callable[[], object] | None,
) -> tuple[Span, array[int]]:
    """Log prepared records between two barriers; return when, and the times that came back."""
    call: Callable[[Any], int] = story.log_event if batch == 1 else story.log_events
    arguments: Sequence[Any] = texts if batch == 1 else batches(texts, batch)
    clock = ranks.clock.raw
    ranks.barrier()
    start_ns = clock()
    returned = array("Q", map(call, arguments))
    if flush is not None:
        flush()
    end_ns = clock()
    ranks.barrier()
    return (start_ns, end_ns), returned


def latency(ranks: Ranks, spec: Spec, work: Workspace, records: Records) -> tuple[Histogram, int]:
    """Measure every call in a story of its own; return the durations of all ranks, and the calls of each.

    Collective: over the ranks; synchronises.
    """
    call_bytes = records.mean_bytes * spec.batch
    calls = max(LEAST_LATENCY_CALLS, min(LATENCY_CALLS, LATENCY_BYTES // call_bytes))
    pool_events = min(calls * spec.batch, max(spec.batch, LATENCY_BYTES // 4 // records.mean_bytes))
    texts = records.texts(ranks.rank, range(pool_events))
    arguments: Sequence[Any] = texts if spec.batch == 1 else batches(texts, spec.batch)
    samples_ns = array("Q")
    keep, clock = samples_ns.append, time.perf_counter_ns
    per_rank_story = spec.story == "per-rank"
    with open_story(
        ranks.comm,
        CHRONICLE,
        "latency",
        per_rank=per_rank_story,
        store=work.scratch_store,
        clock=ranks.story_clock,
    ) as story:
        call: Callable[[Any], int] = story.log_event if spec.batch == 1 else story.log_events
        ranks.barrier()
        while len(samples_ns) < calls:
            for argument in arguments[: calls - len(samples_ns)]:
                start_ns = clock()
                call(argument)
                keep(clock() - start_ns)
        ranks.barrier()
        own = story.story
    require_stored(ranks, story, "latency pass", work)
    if per_rank_story or ranks.first:
        work.destroy_scratch_story(own)
    histogram = Histogram()
    histogram.add(np.frombuffer(samples_ns, np.uint64))
    return ranks.sum(histogram), calls


@dataclass
class Replayed:
    """What the replay phase measured, and this rank's slice of the story."""

    columns_s: float
    objects_s: float
    events: EventList = field(repr=False)


def replay(ranks: Ranks, mode: StoryMode, work: Workspace, story: str) -> Replayed:
    """Replay the story of all ranks together, or each rank its own.

    Collective: over the ranks; synchronises.
    """
    comm = None if mode == "per-rank" else ranks.comm
    clock = ranks.clock.raw
    ranks.barrier()
    start_ns = clock()
    events = replay_story(comm, CHRONICLE, story, store=work.store)
    for column in (events.times, events.client_ids, events.indexes):
        len(column)
    columns_s = ranks.elapsed_s(start_ns, clock())
    ranks.barrier()
    start_ns = clock()
    for _ in events:
        pass
    objects_s = ranks.elapsed_s(start_ns, clock())
    return Replayed(columns_s, objects_s, events)
