"""What logging costs beside the least that a program could do: append records to a plain buffered file.

The baseline is a closure that reads `time.time_ns()` and writes `record.encode()` into a file with a buffer
of 1 MiB. It is measured in the same run, on the same file system, with the same records and the same loop
as `log_event`, and so is `log_events`; closing the file and `flush` are inside. How the three are made
comparable:

* Every measurement goes into a fresh file or story, which is removed before the next one: page cache that
  is touched for the first time costs several times as much as recycled memory, in a virtual machine above
  all.
* One round is done first and forgotten. Then each round measures all three, in another order than the last.
* A round's figure is the time of its slowest rank; what is reported is the median over the rounds of the
  ratio within one round, with its smallest and largest value, because a ratio of two neighbours in time
  suffers least from what else the machine does.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chronolog_hpc.bench.phases import ROUND_BYTES, batches, require_stored
from chronolog_hpc.bench.ranks import RunError
from chronolog_hpc.bench.spec import BASELINE_BATCH
from chronolog_hpc.bench.workspace import CHRONICLE
from chronolog_hpc.session import open_story

if TYPE_CHECKING:
    from pathlib import Path

    from chronolog_hpc.bench.progress import Progress
    from chronolog_hpc.bench.ranks import Ranks
    from chronolog_hpc.bench.records import Records
    from chronolog_hpc.bench.spec import Spec
    from chronolog_hpc.bench.workspace import Workspace

BUFFER_BYTES = 2**20
POOL_EVENTS = 2**16

SUBJECTS = ("raw", "log_event", "log_events")


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of several rounds."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise the values of all rounds."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Comparison:
    """The baseline and what was measured against it; times in ns per event."""

    events: int
    """Events in each measurement, per rank."""
    batch: int
    """Batch of `log_events`."""
    rounds: int
    raw_ns: Spread
    log_event_ns: Spread
    log_events_ns: Spread
    log_event_ratio: Spread
    log_events_ratio: Spread


def open_raw(path: str | Path) -> tuple[Callable[[str], int], Callable[[], None]]:
    """Open the baseline's file; return its `log`, which returns a time like `log_event`, and its `close`."""
    file = open(path, "wb", buffering=BUFFER_BYTES)  # noqa: SIM115  closed by the second of what is returned
    write, now = file.write, time.time_ns

    def log(record: str) -> int:
        time_ns = now()
        write(record.encode())
        return time_ns

    return log, file.close


def compare(ranks: Ranks, spec: Spec, work: Workspace, records: Records, progress: Progress) -> Comparison:
    """Measure the baseline, `log_event` and `log_events` against each other.

    Collective: over the ranks; synchronises.
    """
    batch = spec.batch if spec.batch > 1 else BASELINE_BATCH
    pool_events = max(1, min(POOL_EVENTS, spec.events, ROUND_BYTES // records.mean_bytes))
    pool = [
        text if isinstance(text, str) else text.decode(errors="replace")  # the baseline takes text
        for text in records.texts(ranks.rank, range(pool_events))
    ]
    found: dict[str, list[float]] = {name: [] for name in SUBJECTS}
    for number in range(spec.baseline_rounds + 1):
        progress.say("compare with a plain file", number, spec.baseline_rounds + 1)
        shift = number % len(SUBJECTS)
        order = SUBJECTS[shift:] + SUBJECTS[:shift]
        for name in order if number % 2 else reversed(order):  # all six orders take turns
            seconds = _measure(ranks, work, name, pool, spec.events, batch)
            if number:  # the first round is the warm-up
                found[name].append(max(ranks.all(seconds)) * 1e9 / spec.events)
    ratios = {
        name: [ours / raw for ours, raw in zip(found[name], found["raw"], strict=True)]
        for name in SUBJECTS[1:]
    }
    return Comparison(
        spec.events,
        batch,
        spec.baseline_rounds,
        *(Spread.of(found[name]) for name in SUBJECTS),
        *(Spread.of(ratios[name]) for name in SUBJECTS[1:]),
    )


def _measure(ranks: Ranks, work: Workspace, name: str, pool: Sequence[str], events: int, batch: int) -> float:
    """Log `events` records, taking the pool again and again; return this rank's seconds."""
    arguments: Sequence[Any] = batches(pool, batch) if name == "log_events" else pool
    whole, rest = divmod(events, len(pool))
    turns = [arguments] * whole + [batches(pool[:rest], batch) if name == "log_events" else pool[:rest]]
    if name == "raw":
        path = work.scratch / f"raw-{ranks.rank}"
        log, close = open_raw(path)
        seconds = _timed(ranks, log, turns, close)
        path.unlink()
        return seconds
    with open_story(
        ranks.comm,
        CHRONICLE,
        f"compare-{name}",
        per_rank=True,
        store=work.scratch_store,
        clock=ranks.story_clock,
    ) as story:
        call: Callable[[Any], int] = story.log_event if name == "log_event" else story.log_events
        seconds = _timed(ranks, call, turns, story.flush)
        own = story.story
    require_stored(ranks, story, f"comparison of {name}", work)
    work.destroy_scratch_story(own)
    return seconds


def _timed(
    ranks: Ranks, call: Callable[[Any], object], turns: Sequence[Sequence[Any]], end: Callable[[], object]
) -> float:
    problem = None
    ranks.barrier()
    start_ns = time.perf_counter_ns()
    try:
        for turn in turns:
            for argument in turn:
                call(argument)
        end()
    except OSError as error:  # of the plain file
        problem = f"the plain file to compare with: {error.strerror}: make room, or leave it out (--baseline-rounds 0)"
    seconds = (time.perf_counter_ns() - start_ns) * 1e-9
    ranks.agree(problem, RunError)
    return seconds
