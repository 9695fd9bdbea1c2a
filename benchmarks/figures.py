"""The promised figures, each beside what was measured: `python -m benchmarks.figures`.

Everything is measured at full size by default (2 million events for writing, 10 million for replay). A
ratio is taken between neighbours in time and reported as the median of several, with the smallest and the
largest; a replay is always the first call of a fresh process. Memory is sampled from outside, in a run of
its own, so that sampling slows down no figure. Nothing is asserted: the exit code says only whether
everything could be measured.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import visibility, workloads
from benchmarks.network import Running, archive, crowd, deployment, idle_shares, latencies, settle, sink


@dataclass(frozen=True)
class Figure:
    """One promise."""

    name: str
    measured: Sequence[float]
    """One value, or those of all rounds."""
    wanted: float | None
    """None: only to be known."""
    unit: str
    at_least: bool = False
    note: str = ""

    @property
    def median(self) -> float:
        """What is compared with the promise."""
        return statistics.median(self.measured)

    @property
    def kept(self) -> bool:
        """Whether the promise is kept."""
        if self.wanted is None:
            return True
        return self.median >= self.wanted if self.at_least else self.median <= self.wanted

    def row(self) -> tuple[str, ...]:
        """Return the cells of the table."""
        shown = _spread(self.measured) if len(self.measured) > 1 else _number(self.median)
        if self.wanted is None:
            return self.name, shown, "-", self.unit, "-", "-", self.note
        wanted = f"{'>=' if self.at_least else '<='} {_number(self.wanted)}"
        ratio = f"{self.median / self.wanted:.2f}" if self.wanted else "-"
        return self.name, shown, wanted, self.unit, ratio, "yes" if self.kept else "NO", self.note


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    events: int
    replay_events: int
    rounds: int
    visible_events: int
    crowd_events: int
    idle_s: float


def _number(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:.2f}M"
    return f"{value:.4g}"


def _spread(values: Sequence[float]) -> str:
    return f"{_number(statistics.median(values))} ({_number(min(values))}..{_number(max(values))})"


# -- writing -----------------------------------------------------------------------------------------------


def _bench(scratch: Path, *options: object, ranks: int = 0) -> dict[str, Any]:
    """Run `chronolog bench`, on ranks or alone; return its JSON."""
    from tests.support.processes import child_environment

    path = scratch / f"bench-{time.monotonic_ns()}.json"
    start = [*_mpiexec(), "-n", str(ranks)] if ranks else []
    argv = [*start, sys.executable, "-m", "chronolog_hpc", "bench", "--json", str(path), *map(str, options)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=child_environment())
    if done.returncode:
        raise RuntimeError(f"{shlex.join(argv)} has ended with {done.returncode}: {done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def _mpiexec() -> list[str]:
    from tests.support.launch import mpiexec

    return mpiexec()


def overhead(sizes: Sizes, scratch: Path) -> Iterator[Figure]:
    """Measure log_event and log_events against the raw buffered file, one process."""
    found = _bench(scratch, "--events", sizes.events, "--baseline-rounds", sizes.rounds)["baseline"]
    for name, wanted in (("log_event", 2.0), ("log_events", 0.6)):
        ratio, ns = found[f"{name}_ratio"], found[f"{name}_ns"]["median"]
        note = f"{ns:.0f} ns against {found['raw_ns']['median']:.0f} ns"
        if name == "log_events":
            note += f", batches of {found['batch']}"
        yield Figure(
            f"{name} / raw file", [ratio["min"], ratio["median"], ratio["max"]], wanted, "x", note=note
        )


def scaling(sizes: Sizes, scratch: Path) -> Iterator[Figure]:
    """Measure what two ranks write against what one writes, and whether memory grows with the events.

    What the machine makes of a second core is measured beside it, with plain files: a second virtual core may
    be much less than a core. Both are timed in one piece; the rounds of the write phase, each as long as its
    slower rank, add up the pauses of both cores.
    """
    if not _mpiexec():
        return
    found: dict[str, list[float]] = {"log_event": [], "raw": [], "write phase": []}
    peaks = {}
    for _ in range(sizes.rounds):
        one, two = (
            _bench(scratch, "--events", sizes.events, "--baseline-rounds", 3, ranks=ranks) for ranks in (1, 2)
        )
        for name in ("log_event", "raw"):
            ns = [run["baseline"][f"{name}_ns"]["median"] for run in (one, two)]
            found[name].append(2 * ns[0] / ns[1])
        found["write phase"].append(two["write"]["events_per_s"] / one["write"]["events_per_s"])
    note = f"plain files {_spread(found['raw'])}, write phase of the bench {_spread(found['write phase'])}"
    yield Figure("write, 2 ranks / 1 rank", found["log_event"], 1.8, "x", at_least=True, note=note)
    for events in (sizes.events // 2, sizes.events * 2):
        write = _bench(scratch, "--events", events, "--baseline-rounds", 0, ranks=2)["write"]
        peaks[events] = max(entry["anonymous_peak_bytes"] or 0 for entry in write["per_rank"])
    (few, small), (many, large) = peaks.items()
    note = (
        f"peak {small / 2**20:.1f} MiB at {_number(few)} events, {large / 2**20:.1f} MiB at {_number(many)}"
    )
    yield Figure(
        "anonymous memory per event", [max(0, large - small) / (many - few)], 0.05, "bytes", note=note
    )


# -- replay ------------------------------------------------------------------------------------------------


def replay(sizes: Sizes, scratch: Path) -> Iterator[Figure]:
    """Measure the first replay in a fresh process, and a range of 1 % of the story."""
    store, story = scratch / "store", "of-several"
    workloads.fill(store, story, sizes.replay_events)
    runs = [_first_replay(store, story) for _ in range(sizes.rounds)]
    events = runs[0]["events"]
    note = f"{_number(events)} events of {workloads.CLIENTS} clients, first call, import of numpy included"
    yield Figure(
        "replay as columns",
        [events / run["columns_s"] for run in runs],
        15e6,
        "events/s",
        at_least=True,
        note=note,
    )
    rates = [events / run["objects_s"] for run in runs]
    yield Figure(
        "replay as Event objects", rates, 1e6, "events/s", at_least=True, note="iterating, records read"
    )
    watched = _first_replay(store, story, watch=True)
    grown, columns = (watched[name] / 2**20 for name in ("grown_bytes", "columns_bytes"))
    note = f"{grown:.0f} MiB for {columns:.0f} MiB, sampled every ms"
    yield Figure(
        "anonymous memory / columns",
        [watched["grown_bytes"] / max(1, watched["columns_bytes"])],
        1.5,
        "x",
        note=note,
    )
    whole = runs[0]
    part = _first_replay(store, story, *whole["one_percent_ns"])
    share = part["events"] / events
    for what, name in (("bytes", "read_bytes"), ("parts of blocks", "parts")):
        note = f"{part[name]} of {whole[name]} {what} for {100 * share:.2f} % of the events, records included"
        yield Figure(
            f"1 % range: {what} read",
            [100 * part[name] / max(1, whole[name])],
            100 * share * 1.5,
            "%",
            note=note,
        )


def _first_replay(store: Path, story: str, *bounds_ns: int, watch: bool = False) -> dict[str, Any]:
    """Replay in a fresh process; with `watch`, sample its memory."""
    process = workloads.start("replay", store, story, *bounds_ns)
    workloads.answer(process)
    before = _anonymous_bytes(process.pid)
    workloads.say(process)
    peak = before
    while watch and not select.select([process.stdout], [], [], 0.001)[0]:
        peak = max(peak, _anonymous_bytes(process.pid))
    found = workloads.answer(process)
    workloads.say(process)
    found |= workloads.answer(process)
    workloads.end(process)
    return {**found, "grown_bytes": peak - before}


def _anonymous_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


# -- visibility --------------------------------------------------------------------------------------------


def visible(sizes: Sizes, scratch: Path) -> Iterator[Figure]:
    """Measure from the return of log_event to the delivery in another process."""
    for asleep, name in ((False, "asking"), (True, "waiting in follow")):
        delays_ns = visibility.measure(scratch / "visible", name, sizes.visible_events, 2.0, asleep=asleep)
        found = visibility.quantiles(delays_ns)
        note = f"p50 {found['p50'] / 1e3:.0f}, max {found['max'] / 1e3:.0f} us, {len(delays_ns)} events"
        yield Figure(f"visible to a reader {name}, p99", [found["p99"] / 1e3], 1000, "us", note=note)


# -- clocks ------------------------------------------------------------------------------------------------


def clock(sizes: Sizes, scratch: Path) -> Iterator[Figure]:
    """Measure now() against time.time_ns(), bulk correction, and log_event under a clock that was measured."""
    import numpy as np

    from benchmarks import clocks

    calls = sizes.events // 2
    synced = clocks.measured()
    raw = np.arange(calls, dtype=np.int64) * 1000 + time.monotonic_ns()
    found: dict[str, list[float]] = {"now": [], "correct": [], "shared": [], "measured": []}
    for _ in range(sizes.rounds):
        ns = {name: _ns(calls, clocks.call_often, now, calls) for name, now in clocks.nows().items()}
        found["now"].append(ns["measured"] / ns["time_ns"])
        found["correct"].append(_ns(calls, synced.correct, raw))
        turns = workloads.turns(workloads.pool(), calls)
        logged = {}
        for name, of_story in clocks.for_stories().items():
            with workloads.new_client(scratch / name, clock=of_story) as client:
                stories = workloads.Stories(client, "log_event", turns)
                logged[name] = _ns(calls, workloads.log_all, *stories.setup()[0])
                stories.destroy()
        for name in ("shared", "measured"):
            found[name].append(logged[name] / logged["system"])
    yield Figure("now() / time.time_ns()", found["now"], 2.2, "x", note="of a clock that was measured")
    yield Figure("correct, bulk", found["correct"], 12, "ns/stamp", note=f"{_number(calls)} stamps at once")
    note = f"of a rank that reads rank 0's clock: {_spread(found['shared'])}"
    yield Figure("log_event, measured / system clock", found["measured"], 1.3, "x", note=note)


def _ns(count: int, call: Callable[..., object], *arguments: object) -> float:
    start_ns = time.perf_counter_ns()
    call(*arguments)
    return (time.perf_counter_ns() - start_ns) / count


# -- a deployment ------------------------------------------------------------------------------------------


_BATCH = 1000
_CLIENTS, _PROCESSES = 200, 8


def network(sizes: Sizes, scratch: Path) -> Iterator[Figure]:
    """Measure a deployment on this machine: replay, taking in, the cost of log_event, freshness."""
    with deployment(scratch) as running:
        place = running.place
        yield from _replayed(sizes, scratch, place)
        yield from _taken_in(sizes, running)
        settle(running)
        yield Figure("log_event, deployment / store", _cost_of_shipping(sizes, scratch, place), 1.2, "x")
        yield from _slowest_calls(sizes, scratch, place)
        settle(running)
        delays_ns = visibility.measure(place, "visible", sizes.visible_events, 2.0, asleep=True)
        found = visibility.quantiles(delays_ns)
        note = f"p50 {found['p50'] / 1e6:.1f}, max {found['max'] / 1e6:.1f} ms, {len(delays_ns)} events"
        yield Figure("visible through the network, p99", [found["p99"] / 1e6], 20, "ms", note=note)
        yield from _many_and_idle(sizes, running)


def _replayed(sizes: Sizes, scratch: Path, place: str) -> Iterator[Figure]:
    """Measure replays of what the grapher has, in segments and in a chunk, in turn."""
    events = 2 * sizes.events
    archive(scratch, place, events)
    rates: dict[str, list[float]] = {"segments": [], "chunks": []}
    for _ in range(sizes.rounds):
        for story, found in rates.items():
            run = _first_replay(Path(place), story)
            found.append(run["events"] / run["columns_s"])
    note = f"{_number(events)} events of 2 clients, from the grapher's segments, records included"
    yield Figure("replay through the player", rates["segments"], 3e6, "events/s", at_least=True, note=note)
    ratios = [chunks / segments for segments, chunks in zip(*rates.values(), strict=True)]
    note = f"{_spread(rates['chunks'])} events/s from a chunk"
    yield Figure("the same, chunk / segments", ratios, None, "x", note=note)


def _taken_in(sizes: Sizes, running: Running) -> Iterator[Figure]:
    """Measure what one keeper takes in, between rounds of a socket that is fed by the same two loops."""
    events = 2 * sizes.events
    rates: dict[int, list[float]] = {1: [], _BATCH: []}
    sunk = []
    for number in range(sizes.rounds):
        for batch, found in rates.items():
            story = f"taken-{number}" if batch == 1 else f"batches-{number}"
            settle(running)
            found.append(events / workloads.fill(running.place, story, events, clients=2, batch=batch))
        sunk.append(events / sink(events, 2))
    for batch, name in ((1, "taken in by one keeper"), (_BATCH, f"the same, in batches of {_BATCH}")):
        note = "from the first event of two clients to the end of both, everything released"
        yield Figure(name, rates[batch], 1.5e6, "events/s", at_least=True, note=note)
        note = "which takes time_ns() and encode() of each event from two processes over sockets with buffers of 1 MiB"
        ratios = [rate / of_sink for rate, of_sink in zip(rates[batch], sunk, strict=True)]
        yield Figure(f"{name} / bare TCP sink", ratios, 0.5, "x", at_least=True, note=note)


def _slowest_calls(sizes: Sizes, scratch: Path, place: str) -> Iterator[Figure]:
    """Measure what the sender does to the slowest calls of log_event: while it works, and when it has to be woken."""
    for name, events, gap_s in (
        ("in a loop", sizes.events // 2, 0.0),
        ("each ms", sizes.visible_events, 1e-3),
        ("after silence", sizes.visible_events // 20 + 1, 0.03),
    ):
        found: dict[str, list[dict[str, float]]] = {"store": [], "deployment": []}
        for number in range(sizes.rounds):
            for kind, where in (("store", scratch / "store"), ("deployment", place)):
                found[kind].append(latencies(where, f"latency {name} {number}", events, gap_s))
        ratios = [
            shipped["p99.9"] / alone["p99.9"]
            for shipped, alone in zip(found["deployment"], found["store"], strict=True)
        ]
        quantiles = {
            kind: "/".join(_number(statistics.median(run[at] for run in runs)) for at in runs[0])
            for kind, runs in found.items()
        }
        note = f"p50/p99/p99.9/max {quantiles['deployment']} us against {quantiles['store']}"
        yield Figure(f"log_event {name}, p99.9, deployment / store", ratios, None, "x", note=note)


def _many_and_idle(sizes: Sizes, running: Running) -> Iterator[Figure]:
    """Measure many clients at once, and what nothing costs."""
    seconds = crowd(running.place, _CLIENTS, _PROCESSES, sizes.crowd_events)
    note = f"in {_PROCESSES} processes, {sizes.crowd_events} events each, {seconds:.1f} s until all is journalled and released"
    yield Figure(
        "clients that connect, acquire and log at once", [_CLIENTS], _CLIENTS, "", at_least=True, note=note
    )
    settle(running)
    for handles in (1, 25):
        shares = idle_shares(running, handles, sizes.idle_s)
        note = ", ".join(f"{role} {100 * share:.2f}" for role, share in shares.items())
        name = f"idle, {handles} {'story' if handles == 1 else 'stories'} acquired: busiest process"
        yield Figure(name, [100 * max(shares.values())], 1, "% of a core", note=note)


def tls(sizes: Sizes, scratch: Path) -> Iterator[Figure]:
    """Measure what TLS costs: a deployment with it beside one without, round by round."""
    events = 2 * sizes.events
    rates: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for number in range(sizes.rounds):
        for with_tls, before in rates.items():
            place = scratch / f"{number}-{with_tls}"
            place.mkdir()
            with deployment(place, tls=with_tls) as running:
                taken = events / workloads.fill(running.place, "taken", events, clients=2)
                replayed = _first_replay(running.place, "taken")
                before.append((taken, replayed["events"] / replayed["columns_s"]))
            shutil.rmtree(place)
    taken, replayed = (
        [sealed[kind] / clear[kind] for clear, sealed in zip(*rates.values(), strict=True)]
        for kind in range(2)
    )
    yield Figure("taken in with TLS / without", taken, 0.5, "x", at_least=True)
    yield Figure("replay through the player with TLS / without", replayed, 0.5, "x", at_least=True)


def _cost_of_shipping(sizes: Sizes, scratch: Path, place: str) -> list[float]:
    """Return what a call of log_event takes in a deployment, relative to a store, without what flush waits for."""
    turns = workloads.turns(workloads.pool(), sizes.events // 2)
    ratios = []
    for _ in range(sizes.rounds):
        ns = []
        for where in (scratch / "store", place):
            with workloads.new_client(where) as client:
                stories = workloads.Stories(client, "log_event", turns)
                (call, its_turns, flush), _ = stories.setup()
                ns.append(_ns(1, workloads.log_all, call, its_turns, lambda: None))
                flush()
                stories.destroy()
        ratios.append(ns[1] / ns[0])
    return ratios


# -- the table ---------------------------------------------------------------------------------------------

PARTS = {
    "overhead": overhead,
    "scaling": scaling,
    "replay": replay,
    "visible": visible,
    "clock": clock,
    "network": network,
    "tls": tls,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.figures", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument(
        "--events", type=int, default=2_000_000, help="events of each rank (default: %(default)s)"
    )
    parser.add_argument("--replay-events", type=int, default=10_000_000, help="(default: %(default)s)")
    parser.add_argument("--visible-events", type=int, default=1000, help="(default: %(default)s)")
    parser.add_argument(
        "--crowd-events", type=int, default=1000, help="of each of 200 clients (default: %(default)s)"
    )
    parser.add_argument(
        "--idle-seconds", type=float, default=10.0, help="for which nothing happens (default: %(default)s)"
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="of everything that is repeated (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    unknown = [part for part in args.parts if part not in PARTS]
    if (
        unknown
        or min(args.events, args.replay_events // workloads.CLIENTS, args.visible_events) < 1
        or min(args.rounds, args.crowd_events) < 1
        or args.idle_seconds <= 0
    ):
        parser.error(f"there is no part {unknown[0]}" if unknown else "every number is at least 1")
    sizes = Sizes(
        args.events,
        args.replay_events,
        args.rounds,
        args.visible_events,
        args.crowd_events,
        args.idle_seconds,
    )
    rows = [("figure", "median (min..max)", "wanted", "unit", "ratio", "kept", "")]
    disturbances = []
    for name in args.parts or PARTS:
        scratch = Path(tempfile.mkdtemp(prefix="chronolog-figures-"))
        before = _cpu_s(), time.monotonic()
        try:
            rows += [figure.row() for figure in PARTS[name](sizes, scratch)]
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        others = max(0.0, (_cpu_s() - before[0]) / (time.monotonic() - before[1]))
        disturbances.append(f"{others:.2f} during {name}")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"cores that other processes used, of {os.cpu_count()}: {', '.join(disturbances)}")
    return 0


def _cpu_s() -> float:
    """Return the CPU time that all processes of the machine have used, without this one and its children."""
    ticks = list(map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9]))
    busy_s = (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf(
        "SC_CLK_TCK"
    )  # without idle and waiting for disks
    return busy_s - sum(os.times()[:4])


if __name__ == "__main__":
    sys.exit(main())
