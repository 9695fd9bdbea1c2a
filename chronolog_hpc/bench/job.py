"""The main job: every rank logs into a story, the job replays it in order, and checks that it is the same."""

from __future__ import annotations

import dataclasses
import statistics
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING, Any

from chronolog_hpc import streams
from chronolog_hpc.bench import baseline, environment, phases, report
from chronolog_hpc.bench.fields import FIELDS, nest
from chronolog_hpc.bench.progress import Progress
from chronolog_hpc.bench.ranks import Ranks
from chronolog_hpc.bench.records import GeneratedRecords, PayloadRecords, Records, read_payload
from chronolog_hpc.bench.spec import MAX_BATCH_BYTES, Spec, SpecError
from chronolog_hpc.bench.verify import Verdict, verify
from chronolog_hpc.bench.workspace import Workspace, workspace
from chronolog_hpc.clientlib import store_path

if TYPE_CHECKING:
    from mpi4py import MPI

DONE = 0
FAILED = 1
NOT_VERIFIED = 3

EVENT_BYTES = 24
"""The least memory that an event takes when it is replayed: time, client id and sequence number."""


def run(spec: Spec, comm: MPI.Comm | None, command: str = "") -> int:
    """Run the main job and report on rank 0.

    Collective: over `comm`; synchronises.

    Args:
        spec: what to do.
        comm: all ranks; None to run alone, without MPI.
        command: the command line, for the report.

    Returns:
        The exit code, the same on all ranks: 0 done, 1 the report or the results could not be written, 3 the
        verification failed.

    Raises:
        SpecError: on all ranks, if it cannot be done as asked.
        RunError: on all ranks, if it was begun and cannot go on.
    """
    ranks = Ranks(comm)
    progress = Progress(enabled=ranks.first)
    _check_json_path(ranks, spec)
    records = _records(ranks, spec)
    ranks.agree(_too_much(ranks, spec, records))
    ranks.synchronise()
    try:
        with workspace(ranks, spec.store) as work:
            result, verdict = _measure(ranks, spec, work, records, progress, command)
            refused = _refused(result, work)
    finally:
        progress.clear()
    code = DONE if verdict.good else NOT_VERIFIED
    if ranks.first and _report(spec, result, [*refused, *verdict.examples]) and verdict.good:
        code = FAILED
    return ranks.from_first(code)


def _refused(result: dict[str, Any], work: Workspace) -> list[str]:
    """Return a sentence on the events that the store did not take, if there are any."""
    lost: Counter[str] = Counter()
    for entry in result["write"]["per_rank"]:
        lost.update(entry["lost"])
    sentence = phases.refusal(lost, "write phase", work)
    return [] if sentence is None else [sentence]


def _check_json_path(ranks: Ranks, spec: Spec) -> None:
    """Let rank 0 see whether results can be kept, before anybody works for them."""
    problem = None
    if ranks.first and spec.json is not None:
        try:
            report.check_json_path(spec.json)
        except SpecError as error:
            problem = str(error)
    ranks.agree(problem)


def _records(ranks: Ranks, spec: Spec) -> Records:
    """Return what will be logged. A payload file is read by rank 0."""
    if spec.payload is None:
        return GeneratedRecords(spec.seed, spec.size_bytes)
    data, problem = b"", None
    if ranks.first:
        try:
            data = read_payload(spec.payload)
        except SpecError as error:
            problem = str(error)
    ranks.agree(problem)
    return PayloadRecords(ranks.from_first(data))


def _too_much(ranks: Ranks, spec: Spec, records: Records) -> str | None:
    """Return why this rank's host can never do what is asked for, or None."""
    batch_bytes = spec.batch * records.mean_bytes
    if batch_bytes > MAX_BATCH_BYTES:
        return (
            f"--batch {spec.batch} of records of {records.mean_bytes} bytes has {batch_bytes} bytes, over the limit "
            f"of {MAX_BATCH_BYTES}: reduce one of them"
        )
    here = ranks.hosts.count(ranks.hosts[ranks.rank])
    needed_bytes = spec.events * here * EVENT_BYTES
    memory_bytes = environment.memory_bytes_of_host()
    if needed_bytes > memory_bytes:
        return (
            f"--events {spec.events} needs {needed_bytes} bytes of memory for the replay alone, and "
            f"{ranks.hosts[ranks.rank]} has {memory_bytes} (number of its ranks: {here}): ask for fewer events"
        )
    return None


def _report(spec: Spec, result: dict[str, Any], remarks: list[str]) -> bool:
    """Write file, report and remarks; return whether file or report could not be written."""
    problems = []
    if spec.json is not None:
        try:
            report.write_json(spec.json, result)
        except OSError as error:
            problems.append(f"--json {spec.json} was not written: {error.strerror}")
    problem = streams.publish(f"{report.text(result)}\n")
    if problem is not None:
        problems.append(problem)
    for sentence in filter(None, [*remarks, *problems]):
        streams.complain(f"chronolog bench: {sentence}")
    return bool(problems)


def _measure(
    ranks: Ranks, spec: Spec, work: Workspace, records: Records, progress: Progress, command: str
) -> tuple[dict[str, Any], Verdict]:
    """Run all phases; return the result as it stands in the JSON, and the verdict."""
    env = environment.describe(ranks, str(work.scratch), command)
    progress.say("warm up")
    phases.warm_up(ranks, work, records)
    progress.say("latency")
    latency, calls = phases.latency(ranks, spec, work, records)
    compared = baseline.compare(ranks, spec, work, records, progress) if spec.baseline_rounds else None
    with closing(phases.TimesFile()) as times:
        written = phases.write(ranks, spec, work, records, times, progress)
        progress.say("replay")
        replayed = phases.replay(ranks, spec.story, work, written.story)
        verdict = verify(ranks, spec, records, written, replayed.events, progress)
    written_bytes = sum(entry["bytes"] for entry in written.per_rank)
    events = spec.events * ranks.size
    values = {
        "write.events": events,
        "write.bytes": written_bytes,
        "write.seconds": written.seconds,
        "write.events_per_s": events / written.seconds,
        "write.bytes_per_s": written_bytes / written.seconds,
        **{f"write.latency_ns.{name}": value for name, value in latency.summary_ns().items()},
        "replay.seconds": replayed.columns_s,
        "replay.events": verdict.replayed,
        "replay.events_per_s": verdict.replayed / replayed.columns_s,
        "replay.objects_per_s": verdict.replayed / replayed.objects_s,
        **{
            f"verified.{name}": getattr(verdict, name)
            for name in ("expected", "replayed", "missing", "duplicated", "out_of_order", "corrupted")
        },
    }
    tree = nest({figure.key: values[figure.key] for figure in FIELDS})
    tree["write"]["per_rank"] = written.per_rank
    tree["clock"] = _clock(ranks)
    if compared is not None:
        tree["baseline"] = dataclasses.asdict(compared)
    return {"schema": report.SCHEMA, "spec": _echo(spec, records, calls), "env": env, **tree}, verdict


def _clock(ranks: Ranks) -> dict[str, Any]:
    """Return how far the ranks' common time line can be trusted."""
    report = ranks.clock.report()
    knots = [knot for rank in report["per_rank"] for knot in rank["knots"]]
    halves = [rank["knots"][-1]["half_ns"] for rank in report["per_rank"]]
    return {
        "clocks": report["clocks"],
        "synchronisations": len(ranks.clock.knots),
        "sync_seconds": round(max(knot["seconds"] for knot in knots), 9),
        "window_ns": {"median": statistics.median(halves), "max": max(halves)},
        "elapsed_half_ns": ranks.elapsed_half_ns,
        "warnings": report["warnings"],
    }


def _echo(spec: Spec, records: Records, latency_calls: int) -> dict[str, Any]:
    """Return the parameters as the report names them, with what was chosen for those that were left open."""
    payload = isinstance(records, PayloadRecords)
    return {
        "events_per_rank": spec.events,
        "size_bytes": None if payload else spec.size_bytes,
        "story": spec.story,
        "payload": spec.payload,
        "payload_lines": len(records) if isinstance(records, PayloadRecords) else None,
        "batch": spec.batch,
        "store": None if spec.store is None else str(store_path(spec.store)),
        "json": spec.json,
        "seed": spec.seed,
        "latency_calls_per_rank": latency_calls,
        "baseline_rounds": spec.baseline_rounds,
    }
