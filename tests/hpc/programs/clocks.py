"""Synchronised clocks on several ranks; the first argument says what is done. Rank 0 prints what came out as JSON."""

import json
import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from mpi4py import MPI

from chronolog_hpc.clientlib import ClockModel
from chronolog_hpc.clocksync import OFFSET_ONLY, Effort, SyncedClock, before
from chronolog_hpc.clocksync.check import check_pairs
from chronolog_hpc.clocksync.raw import RawClock, faulty_clock, system_clock
from chronolog_hpc.mpi import guard
from chronolog_hpc.replay import replay_story
from chronolog_hpc.session import open_story

comm = MPI.COMM_WORLD
EVENTS = 4000
SHORT = Effort(bursts=10, exchanges=50, span_s=0.2)


def show(value: Any) -> None:
    gathered = comm.gather(value)
    if comm.rank == 0:
        print(json.dumps(gathered))


def faulty(seed: int) -> SyncedClock:
    """Return a clock whose raw times are off by up to 1 s and 50 ppm, on every rank by something else."""
    chance = random.Random(f"{seed} {comm.rank}")
    source = faulty_clock(chance.randrange(-(10**9), 10**9), chance.uniform(-50, 50))
    return SyncedClock(comm, source=source, effort=SHORT)


def errors(clock: SyncedClock, monotonic: list[int]) -> tuple[Any, Any]:
    """Return how wrong the clock is at times of CLOCK_MONOTONIC, and its windows, in ns."""
    raw = np.array([clock.source.of_monotonic(time_ns) for time_ns in monotonic], np.int64)
    times, halves = clock.correct(raw)
    true = comm.bcast([clock.source.of_monotonic(time_ns) + clock.origin_ns for time_ns in monotonic])
    return np.abs(times - np.array(true, np.int64)), halves


def faults(seed: str, wait_s: str) -> None:
    """Compare with the truth after the synchronisation, after a wait, and interpolated."""
    clock = faulty(int(seed))
    first = clock.sync("start")
    moments = [comm.bcast(time.monotonic_ns())]
    found = {"after_sync": errors(clock, moments)}
    now_ns, (earliest_ns, latest_ns) = clock.now(), clock.window()
    time.sleep(float(wait_s))
    moments.append(comm.bcast(time.monotonic_ns()))
    found["after_wait"] = errors(clock, moments[1:])
    clock.sync("end")
    chance = random.Random(seed)
    found["interpolated"] = errors(clock, [chance.randrange(*moments) for _ in range(1000)])
    told = {
        name: [float(np.median(error)), int(error.max()), int(halves.max()), bool(np.all(error <= halves))]
        for name, (error, halves) in found.items()
    }
    near = earliest_ns - 10**9 < now_ns < latest_ns
    report = clock.report()
    clock.close()
    show([told, near, first.bursts, first.shared, first.degraded, report["clocks"], report["ranks"]])


def shared() -> None:
    """Ranks that read the same clock have nothing to measure."""
    clock = SyncedClock(comm)
    knots = [clock.sync("start"), clock.sync("end")]
    raw = np.array([clock.raw() for _ in range(100)], np.int64)
    times, halves = clock.correct(raw)
    show(
        [
            [knot.bursts for knot in knots],
            bool(np.all(times == raw + clock.origin_ns)),
            int(halves.max()),
            clock.leaders,
            abs(clock.now() - time.time_ns()) < 10**9,
        ]
    )
    clock.close()


def lied(rank: str) -> None:
    """A rank whose clock is another one claims to read the same: the proof must refuse it."""
    truth = system_clock()
    source = truth if comm.rank != int(rank) else faulty_clock(10**6, 0)._replace(identity=truth.identity)
    clock = SyncedClock(comm, source=source, effort=SHORT)
    clock.sync()
    show(clock.leaders)
    clock.close()


def groups() -> None:
    """Two ranks each read the same faulty clock: one of them is measured, both have its model."""
    pair = comm.rank // 2
    base_ns = comm.bcast(time.monotonic_ns())
    source = faulty_clock(pair * 10**8, pair * 10.0)
    offset_ns = source.of_monotonic(base_ns)
    offset_ns = comm.allgather(offset_ns)[2 * pair] - offset_ns
    drift = faulty_clock(pair * 10**8 + offset_ns, 0.0)._replace(identity=f"pair {pair}")
    clock = SyncedClock(comm, source=drift, effort=SHORT)
    clock.sync()
    show([clock.leader, clock.models[0].pack().hex()])
    clock.close()


def subset() -> None:
    """The odd ranks have a clock of their own, in the reverse order of their ranks."""
    half = comm.Split(comm.rank % 2, -comm.rank)
    clock = SyncedClock(half, effort=SHORT, share=False)
    clock.sync()
    show([half.rank, clock.report()["ranks"]])
    clock.close()


def alone() -> None:
    """One rank, and no communicator at all."""
    shown = []
    for one in (MPI.COMM_SELF, None):
        with SyncedClock(one) as clock:
            try:
                clock.now()
            except ValueError as error:
                shown.append(str(error))
            clock.sync()
            time_ns = clock.now()
            shown.append(clock.window()[0] >= time_ns and not clock.maybe_resync(3600))
    show(shown)


def back(step_ns: str) -> None:
    """A resync that finds the clock far ahead: time stands still, and goes on."""
    clock = faulty(1)
    clock.sync()
    ahead = clock.models[0]
    clock._steer(ahead.__class__(9, ahead.base_ns, ahead.offset_ns + int(step_ns), ahead.rate, 0, 0.0))
    times = [clock.now() for _ in range(1000)]
    ahead_ns = 0
    while ahead_ns <= 0:  # the model before goes on for a millisecond
        times.append(clock.now())
        ahead_ns = times[-1] - clock.window()[1]
    stood_ns = times[-1]
    clock._steer(ahead)
    behind = False
    while not behind:
        times.append(clock.now())
        behind = clock.window()[0] > stood_ns
    times += [clock.now() for _ in range(1000)]
    show([times == sorted(times), ahead_ns > 0, times[-1] > stood_ns])


def threads() -> None:
    """Threads read the time while all ranks synchronise again and again, with windows that let it jump."""
    clock = faulty(6)
    clock.sync()
    steps: list[int] = []
    done = threading.Event()

    def read_on() -> None:
        last_ns = 0
        while not done.is_set():
            time_ns = clock.now()
            if time_ns < last_ns:
                steps.append(last_ns - time_ns)
            last_ns = time_ns

    readers = [threading.Thread(target=read_on) for _ in range(2 if comm.rank else 0)]
    sys.setswitchinterval(1e-4)
    for reader in readers:
        reader.start()
    end_s = time.monotonic() + 3
    while comm.bcast(time.monotonic() < end_s):
        clock.sync("again", Effort(bursts=1, exchanges=10, span_s=0.0, timeout_s=0.1))
    done.set()
    for reader in readers:
        reader.join()
    show([len(clock.knots) > 3, steps])
    clock.close()


def ring(messages: str) -> None:
    """Messages go round a ring with stamps; a receive must never be before its send."""
    clock = faulty(2)
    clock.sync()
    right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    buffer, wrong, last = np.zeros(1, np.int64), 0, 0
    for _ in range(int(messages) // comm.size):
        sent = clock.hlc_send()
        comm.Sendrecv(np.array([sent], np.int64), right, recvbuf=buffer, source=left)
        received = clock.hlc_recv(int(buffer[0]))
        wrong += received <= int(buffer[0]) or not last < sent < received
        last = received
    show([wrong, clock.hlc.push_ns])
    clock.close()


def dies(rank: str) -> None:
    """A rank is killed in the middle of a synchronisation."""
    clock = faulty(3)
    if comm.rank == int(rank):
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        signal.signal(signal.SIGALRM, lambda number, frame: os.kill(os.getpid(), signal.SIGKILL))
    with guard(comm):
        clock.sync("never ends", Effort(bursts=10**6, span_s=3600.0, timeout_s=3600.0))


def differ(what: str) -> None:
    """The ranks do not mean the same synchronisation."""
    clock = faulty(8)
    try:
        if what == "number" and not comm.rank:
            clock.models.append(ClockModel())
        label = f"step {comm.rank}" if what == "label" else "step"
        clock.sync(label, Effort(exchanges=10 + comm.rank) if what == "effort" else SHORT)
    except ValueError as error:
        show([str(error), len(clock.knots)])
        clock.close()


def alone_in_a_story(store: str, how: str) -> None:
    """One rank synchronises, and the other does not."""
    with open_story(comm, "c", "s", store=store, clock=faulty(9)) as story:
        story.log_event("kept")
        if comm.rank == 1:
            assert isinstance(story.clock, SyncedClock)
            if how == "leaves":
                sys.exit(0)
            story.clock.sync("rank 1 alone")
        elif how == "leaves":
            story.clock.sync("without rank 1")  # type: ignore[union-attr]


def limited() -> None:
    """Time is up before anything is clean enough: the knot says so."""
    clock = faulty(4)
    knot = clock.sync("hasty", Effort(bursts=1000, exchanges=5, span_s=100.0, timeout_s=0.3))
    warned = clock.report()["warnings"]
    show([knot.degraded, any("clean" in warning for warning in warned), knot.seconds < 30])
    clock.close()


def resync() -> None:
    """`maybe_resync` is decided by rank 0, and narrows the slope."""
    clock = faulty(5)
    clock.sync()
    done = [clock.maybe_resync(3600)]
    time.sleep(0.5)
    done.append(clock.maybe_resync(0.1))
    narrow = clock.knots[-1].rate_half < 1e-4
    done.append(clock.maybe_resync(0.0, OFFSET_ONLY))
    show([done, narrow, len(clock.knots), clock.knots[-1].bursts])
    clock.close()


def crowded(share: str, names: str) -> None:
    """All ranks may use one core of their machine, whatever name each of them has for it."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if names == "other":
        socket.gethostname = lambda: f"node{comm.rank}"
    with SyncedClock(
        comm, effort=Effort(bursts=2, exchanges=5, span_s=0.0), share=share == "shared"
    ) as clock:
        clock.sync()
        about = [warning for warning in clock.report()["warnings"] if "cores" in warning]
        show([clock.in_turn, len(about), about[0]])


def closed(store: str) -> None:
    """What a closed clock can still do."""
    clock = faulty(10)
    clock.sync()
    clock.close()
    clock.close()
    said = []
    for call in (
        clock.sync,
        clock.maybe_resync,
        clock.report,
        lambda: check_pairs(clock),
        lambda: open_story(comm, "c", "s", store=store, clock=clock).__enter__(),
    ):
        try:
            call()
        except ValueError as error:
            said.append(str(error))
    show([said, clock.window()[0] <= clock.now() + 10**6])


def ordered() -> None:
    """`before` knows an order only where windows do not overlap."""
    show([before((1, 2), (3, 4)), before((3, 4), (1, 2)), before((1, 3), (3, 4)), before((1, 9), (3, 4))])


def domains() -> None:
    """Ranks in time namespaces: how far each is from rank 0 is known, so the truth is."""
    with open("/proc/self/timens_offsets", encoding="ascii") as offsets:
        seconds, ns = map(int, offsets.readline().split()[1:])
    ahead_ns = seconds * 10**9 + ns
    clock = SyncedClock(comm, effort=SHORT)
    knots = [clock.sync("start")]
    time.sleep(0.2)
    knots.append(clock.sync("end"))
    raw = np.linspace(knots[0].local_ns, knots[1].local_ns, 100).astype(np.int64)
    times, halves = clock.correct(raw)
    true = raw - ahead_ns + comm.bcast(ahead_ns) + clock.origin_ns
    covered = bool(np.all(np.abs(times - true) <= halves))
    show(
        [
            seconds,
            clock.leader,
            knots[0].shared,
            covered,
            int(halves.max()),
            abs(clock.now() - time.time_ns()),
        ]
    )
    clock.close()


def session(seed: str, store: str) -> None:
    """A story of ranks whose clocks are wrong: every window holds the truth, as logged and aligned."""
    clock = faulty(int(seed))
    first_event = comm.rank * 10**6
    called: dict[int, tuple[int, int]] = {}
    returned: list[int] = []
    with open_story(comm, "c", "s", store=store, clock=clock) as story:
        assert story.clock is clock
        for number in range(first_event, first_event + EVENTS):
            if number % 500 == 0:
                time.sleep(0.05)
            if number == first_event + EVENTS // 2:
                clock.sync("half way")
            start_ns = time.monotonic_ns()
            returned.append(story.log_event(str(number)))
            called[number] = start_ns, time.monotonic_ns()
    assert returned == sorted(returned)
    moments = {number: span for spans in comm.allgather(called) for number, span in spans.items()}
    fault = comm.bcast(clock.source.of_monotonic(0)), comm.bcast(clock.source.of_monotonic(10**15))
    told = []
    for aligned in (False, True):
        events = replay_story(comm, "c", "s", store=store, aligned=aligned)
        numbers = [int(event.log_record()) for event in events]
        times, halves = events.aligned_times.astype(np.int64), events.time_window_ns.astype(np.int64)
        spans = np.array([moments[number] for number in numbers], np.int64)
        low, high = (true_ns(spans[:, side], fault) + clock.origin_ns for side in (0, 1))
        logged = dict(zip(range(first_event, first_event + EVENTS), returned, strict=True))
        own = [
            event.time() == logged[number]
            for event, number in zip(events, numbers, strict=True)
            if number in logged
        ]
        told.append(
            [
                len(events),
                bool(np.all(times + halves >= low - 3) and np.all(times - halves <= high + 3)),  # 3: rounding
                bool(np.all(np.diff(times) >= 0)),
                all(own),
                int(halves.max()),
            ]
        )
    show(told)
    clock.close()


def jumps(store: str, jump_ns: str) -> None:
    """The clock of rank 1 jumps between two synchronisations of a story."""
    jumped_ns = 0

    def of_monotonic(monotonic_ns: int) -> int:
        return monotonic_ns + comm.rank * 10**9 + jumped_ns

    source = RawClock(lambda: of_monotonic(time.monotonic_ns()), f"rank {comm.rank}", of_monotonic)
    clock = SyncedClock(comm, source=source, effort=SHORT)
    called: dict[str, tuple[int, int]] = {}
    with open_story(comm, "c", "s", store=store, clock=clock) as story:

        def log(part: str, until: Callable[[], bool]) -> None:
            number = 0
            while number < 50 or not until():
                start_ns = time.monotonic_ns()
                story.log_event(f"{part} {number}")
                called[f"{part} {number}"] = start_ns, time.monotonic_ns()
                number += 1
                time.sleep(0.001)

        log("before the jump", lambda: True)
        jumped_ns = comm.rank * int(jump_ns)
        log("behind it", lambda: True)
        clock.sync("second", SHORT)
        log("known", lambda: clock.now() - clock.models[-1].time_at(clock.raw()) < 10**6)
    found: dict[str, list[int]] = {}
    if comm.rank == 1:
        events = replay_story(None, "c", "s", store=store, aligned=True)
        for event, time_ns, half_ns in zip(
            events, events.aligned_times.tolist(), events.time_window_ns.tolist(), strict=True
        ):
            if event.client_id() == story.client_id:
                early_ns, late_ns = (moment + clock.origin_ns for moment in called[event.log_record()])
                covered = early_ns - half_ns - 3 <= time_ns <= late_ns + half_ns + 3
                counts = found.setdefault(event.log_record().rpartition(" ")[0], [0, 0])
                counts[not covered] += 1
    show([found, [knot.consistent for knot in clock.knots]])
    clock.close()


def true_ns(monotonic: Any, fault: tuple[int, int]) -> Any:
    """Return what rank 0's wrong clock shows at times of CLOCK_MONOTONIC, given what it shows at 0 and at 10**15."""
    drift_ns = (fault[1] - fault[0]) - 10**15
    return monotonic + fault[0] + np.rint(monotonic * (drift_ns / 10**15)).astype(np.int64)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
