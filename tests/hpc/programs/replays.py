"""Collective replays; the first argument says of what. Rank 0 prints what came out as JSON."""

import itertools
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from mpi4py import MPI

from chronolog_hpc import exchange, open_story, replay_story, splitters
from chronolog_hpc.clientlib import ChronoLogError, ClockModel, EventList, acquire, open_client
from py_chronolog_client.clock import Reading

comm = MPI.COMM_WORLD
store = sys.argv[2]


class Ticks:
    """A clock that repeats every time a number of times."""

    models = ()

    def __init__(self, repeats: int = 1, start: int = 0, window_ns: int | None = None) -> None:
        self.times: Iterator[int] = (start + number // repeats for number in itertools.count())
        self.model = ClockModel() if window_ns is None else ClockModel(5, 0, 0, 0.0, window_ns)

    def reading(self) -> Reading:
        return Reading(self.times.__next__, 0, self.model)


def write(story: str, records: Sequence[str | bytes], clock: Ticks, **options: Any) -> None:
    with open_story(comm, "c", story, store=store, clock=clock, **options) as opened:
        for record in records:
            assert opened.log_event(record) or not clock.model.model_id


def table(events: EventList) -> tuple[Any, ...]:
    columns = (events.times, events.client_ids, events.sequences, events.time_window_ns)
    return *(column.tolist() for column in columns), list(events.records())


def serial(story: str, start: int = 0, end: int = 2**64 - 1) -> tuple[Any, ...]:
    events = EventList()
    with open_client(store) as client:
        assert client.ReplayStory("c", story, start, end, events) == 0
    return table(events)


def compare(story: str, **options: Any) -> list[int]:
    """Compare the joined slices with the serial replay, byte for byte; return the lengths of the slices."""
    root = options.get("root")
    slices = comm.gather(table(replay_story(comm, "c", story, store=store, **options)))
    lengths: list[int] = []
    if comm.rank == 0:
        joined = tuple(list(itertools.chain.from_iterable(parts)) for parts in zip(*slices, strict=True))
        expected = serial(story, options.get("start", 0), options.get("end", 2**64 - 1))
        lengths = [len(part[0]) for part in slices]
        for name, here, there in zip(
            ("times", "ids", "sequences", "windows", "records"), joined, expected, strict=True
        ):
            assert here == there, (story, options, name)
        total = len(expected[0])
        if root is None:
            assert max(lengths) - min(lengths) <= 1, (story, lengths)
        else:
            assert lengths == [total if rank == root else 0 for rank in range(comm.size)]
    return comm.bcast(lengths)


def slices() -> None:
    """Stories of all kinds, in rounds of all sizes."""
    rng = random.Random(comm.rank)
    texts = [f"{comm.rank} {number} " + "x" * rng.randrange(40) for number in range(1000)]
    write("plain", texts, Ticks(1, rng.randrange(1000)))
    write("colliding", texts, Ticks(200))
    write("one time", texts, Ticks(10**9))
    write("skewed", [f"{comm.rank} {number}" for number in range(20 if comm.rank else 5000)], Ticks(3))
    write("one after the other", texts[:500], Ticks(2, 10**6 * comm.rank))
    write("empty records", [""] * 500, Ticks(7))
    write("same size", [f"{number:08}" for number in range(700)], Ticks(5))
    write("bytes", [rng.randbytes(rng.randrange(20)) for _ in range(300)], Ticks(5, 1))
    write("empty", [], Ticks())
    write("one event", ["alone"] if comm.rank == comm.size - 1 else [], Ticks(1, 77))
    write("few", ["first"] if comm.rank < 2 else [], Ticks(1, 77))
    write("windows", texts[:100], Ticks(3, 5, 1000 + comm.rank if comm.rank != 1 else None))
    big = [rng.randbytes(size) for size in (10, 5_000_000, 0, 100, 1_000_000, 30)]
    write("big", big, Ticks(2, comm.rank))
    with open_story(comm, "c", "batches", store=store, clock=Ticks(2)) as story:
        for number in range(20):
            story.log_events([f"{comm.rank} {number} {place}" for place in range(rng.randrange(60))])
    for number in range(5):  # more clients than ranks
        write("again and again", texts[number * 20 : number * 20 + 30 * comm.rank], Ticks(5, number))
    stories = [
        "plain",
        "colliding",
        "one time",
        "skewed",
        "one after the other",
        "empty records",
        "same size",
        "bytes",
    ]
    stories += ["empty", "one event", "few", "windows", "batches", "again and again"]
    lengths = {story: compare(story) for story in [*stories, "big"]}
    for root in range(comm.size):
        compare("colliding", root=root)
    compare("big", root=comm.size - 1)
    for start, end in ((0, 0), (500, 500), (3, 8), (2, 2**64 - 1), (10**15, 2**64 - 1)):
        for story in ("plain", "colliding", "one time"):
            compare(story, start=start, end=end)
    for exchange.ROUND_BYTES, some in (
        (1, ["few", "one event"]),
        (1500, ["windows", "batches"]),
        (25_000, stories),
    ):
        for story in some:
            compare(story)
    exchange.ROUND_BYTES = 1_000_000
    compare("big")
    if comm.rank == 0:
        print(json.dumps(lengths))


def groups() -> None:
    """Every rank and every half of the job replays on its own."""
    write("s", [f"{comm.rank} {number}" for number in range(100)], Ticks(2))
    expected = serial("s")
    half = comm.Split(comm.rank % 2, comm.rank)
    assert table(replay_story(MPI.COMM_SELF, "c", "s", store=store)) == expected
    assert table(replay_story(None, "c", "s", store=store, root=0)) == expected
    counts = half.allreduce(len(replay_story(half, "c", "s", store=store)))
    assert counts == len(expected[0])
    print(json.dumps(counts), flush=True)


def opens() -> None:
    """Count the files of the store that each rank opens, with one client for each rank."""
    write("s", [f"{comm.rank} {number}" for number in range(1000)], Ticks(2))
    opened: list[str] = []
    counting = False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if counting and event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
            path = os.fsdecode(arguments[0])
            if path.startswith(store):
                opened.append(path)

    sys.addaudithook(hook)
    replay_story(comm, "c", "s", store=store)
    comm.Barrier()
    opened.clear()
    counting = True
    replay_story(comm, "c", "s", store=store)
    counting = False
    read = {path for path in opened if path.endswith(".log")}
    told = comm.gather([len(opened), len(read)])
    if comm.rank == 0:
        print(json.dumps(told))


def growing(start: str) -> None:
    """Another process writes all the time: what was there before is there, and nothing twice or out of order."""
    for _ in range(3):
        events = replay_story(comm, "c", "growing", store=store)
        sequences = comm.gather(events.sequences)
        if comm.rank == 0:
            joined = np.concatenate(sequences)
            assert np.array_equal(joined, np.arange(len(joined)))
            assert len(joined) >= int(start)
        assert [event.log_record() for event in events] == [
            f"event {number}" for number in events.sequences.tolist()
        ]
    if comm.rank == 0:
        print(json.dumps(len(joined)))


def errors() -> None:
    """Everything that can be wrong is raised on all ranks."""
    write("s", [f"{comm.rank} {number}" * 10 for number in range(2000)], Ticks(2))
    write("damaged", [f"{comm.rank} {number}" * 10 for number in range(2000)], Ticks(2))
    last = comm.rank == comm.size - 1
    if comm.rank == 0:
        with open_client(store) as client:
            ids = sorted(client.clients("c", "damaged"))
        damage(ids[1])
    comm.Barrier()
    events = replay_story(comm, "c", "damaged", store=store, allow_damage=True)
    assert comm.allreduce(len(events)) == 2000 * (comm.size - 1)
    assert len(events.damages) == 1
    assert f"{ids[1]:016x}" in events.damages[0].path if comm.rank == 0 else events.damages[0].offset > 0
    cases: dict[str, Callable[[], object]] = {
        "no story": lambda: replay_story(comm, "c", "nothing", store=store),
        "no chronicle": lambda: replay_story(comm, "nothing", "s", store=store),
        "no store": lambda: replay_story(comm, "c", "s", store=f"{store}-missing"),
        "range": lambda: replay_story(comm, "c", "s", store=store, start=2, end=1),
        "negative": lambda: replay_story(comm, "c", "s", store=store, start=-1),
        "no number": lambda: replay_story(comm, "c", "s", store=store, start="now"),  # type: ignore[arg-type]
        "root": lambda: replay_story(comm, "c", "s", store=store, root=comm.size),
        "disagreement": lambda: replay_story(comm, "c", "s" if last else "damaged", store=store),
        "damage": lambda: replay_story(comm, "c", "damaged", store=store),
        "no time": lambda: replay_story(comm, "c", "s", store=store, timeout_s=0.0),
        "another store": another_store,
    }
    told = {name: comm.gather(attempt(case)) for name, case in cases.items()}
    assert comm.allreduce(len(replay_story(comm, "c", "s", store=store))) == 2000 * comm.size
    if comm.rank == 0:
        assert not os.path.exists(f"{store}-missing")
        print(json.dumps(told))


def another_store() -> object:
    """The last rank is told of a store that has the same story, with other clients."""
    elsewhere = f"{store}-elsewhere"
    if comm.rank == comm.size - 1:
        with open_client(elsewhere) as client:
            client.CreateChronicle("c")
            acquire(client, "c", "s", None).log_event("elsewhere")
        os.environ["CHRONOLOG_STORE"] = elsewhere
    try:
        return replay_story(comm, "c", "s", store=store)
    finally:
        os.environ.pop("CHRONOLOG_STORE", None)


def damage(client_id: int) -> None:
    """Flip a bit in the middle of a client's file."""
    for directory, _, names in os.walk(store):
        if f"{client_id:016x}.log" in names:
            with open(f"{directory}/{client_id:016x}.log", "r+b") as file:
                middle = os.fstat(file.fileno()).st_size // 2
                file.seek(middle)
                byte = file.read(1)[0] ^ 1
                file.seek(middle)
                file.write(bytes([byte]))


def attempt(action: Callable[[], object]) -> list[str]:
    try:
        action()
    except (ChronoLogError, TypeError) as error:
        return [type(error).__name__, str(error)]
    return ["nothing", ""]


def unexpected() -> None:
    """What nobody has thought of, on one rank alone, ends the job instead of hanging."""
    write("s", ["x"], Ticks())
    if comm.rank == 1:

        def broken(*_: object) -> None:
            raise RuntimeError("a bolt from the blue")

        splitters.narrow = broken  # type: ignore[assignment]
    replay_story(comm, "c", "s", store=store)
    time.sleep(60)


globals()[sys.argv[1]](*sys.argv[3:])
