"""Sessions of several ranks; the first argument says what happens in them. Rank 0 prints what came out as JSON."""

import json
import logging
import os
import sys
import time
from typing import Any

from mpi4py import MPI

from chronolog_hpc import describe_clients, open_story
from chronolog_hpc.clientlib import ChronoLogError, EventList, SystemClock, open_client

comm = MPI.COMM_WORLD


def show(value: Any, over: MPI.Comm = comm) -> None:
    gathered = over.gather(value)
    if comm.rank == 0:
        print(json.dumps(gathered))


def replay(store: Any, story: str) -> list[tuple[int, int, int, str]]:
    events = EventList()
    with open_client(store) as client:
        assert client.ReplayStory("c", story, 0, 2**64 - 1, events) == 0
    return [(e.time(), e.client_id(), e.sequence(), e.log_record()) for e in events]


def shared(store: str) -> None:
    """All ranks log into one story, and each of them sees everything afterwards."""
    with open_story(
        comm, "c", "s", store=store, attrs={"made": "by us"}, description={"note": "hello"}
    ) as story:
        times = [story.log_event(f"{comm.rank} {number}") for number in range(100)]
        assert story.statistics().logged == 100
    seen = replay(story.store, "s")
    own = [event for event in seen if event[1] == story.client_id]
    assert [event[0] for event in own] == times
    assert [event[3] for event in own] == [f"{comm.rank} {number}" for number in range(100)]
    with open_client(story.store) as client:
        assert client.story_attributes("c", "s") == {"made": "by us"}
        info = describe_clients(client, "c", "s")[story.client_id]
    assert info.description["note"] == "hello"
    leftovers = [name for name in os.listdir(story.store) if name.startswith(".")]
    show(
        [
            story.client_id,
            len(seen),
            info.rank,
            info.size,
            info.pid == os.getpid(),
            info.job,
            info.attempt,
            leftovers,
        ]
    )


def per_rank(store: str) -> None:
    """Every rank logs into a story of its own."""
    with open_story(comm, "c", "s", per_rank=True, store=store) as story:
        story.log_event(f"rank {comm.rank}")
    show([story.story, [[event[3] for event in replay(store, f"s.{rank}")] for rank in range(comm.size)]])


def groups(store: str) -> None:
    """Halves of the job, single ranks and the whole job have sessions at the same time."""
    half = comm.Split(comm.rank % 2, comm.rank)
    with (
        open_story(comm, "c", "all", store=store) as all_story,
        open_story(half, "c", f"half{comm.rank % 2}", store=store) as half_story,
        open_story(MPI.COMM_SELF, "c", f"self{comm.rank}", store=store) as own_story,
    ):
        for story in (all_story, half_story, own_story):
            story.log_event(f"{comm.rank}")
    names = ["all", "half0", "half1", *(f"self{rank}" for rank in range(comm.size))]
    comm.Barrier()
    show(
        [
            [half_story.rank, half_story.size],
            [sorted(event[3] for event in replay(store, name)) for name in names],
        ]
    )


def default_store() -> None:
    """Nothing is configured, and every rank works in a directory of its own."""
    os.makedirs(f"cwd{comm.rank}", exist_ok=True)
    os.chdir(f"cwd{comm.rank}")
    stores = []
    for _ in range(2):
        with open_story(comm, "c", "s") as story:
            story.log_event("x")
        stores.append(os.fspath(story.store))
    show(stores)


def hidden_store(store: str) -> None:
    """The last rank is told of another store."""
    if comm.rank == comm.size - 1:
        os.environ["CHRONOLOG_STORE"] = f"{store}-elsewhere"
    refused(lambda: open_story(comm, "c", "s", store=store))


def bad(store: str, kind: str) -> None:
    """What is wrong on one rank is raised on all."""
    options: dict[str, Any] = {"store": store}
    if kind == "file":
        options["store"] = __file__
    if kind == "durability" and comm.rank == 1:
        options["durability"] = "forever"
    if kind == "description" and comm.rank == 1:
        options["description"] = {"strange": object()}
    refused(lambda: open_story(comm, "c", "" if kind == "name" else "s", **options))


def refused(session: Any) -> None:
    try:
        with session():
            raise AssertionError("this session must not open")
    except (ChronoLogError, ValueError, TypeError) as error:
        show([type(error).__name__, str(error)])


def one_raises(store: str) -> None:
    """One rank raises, while the others wait in a collective call or sleep."""
    with open_story(comm, "c", "s", store=store) as story:
        story.log_event(f"{comm.rank}")
        comm.Barrier()
        if comm.rank == 1:
            raise ValueError("rank one is ill")
        if comm.rank == 2:
            time.sleep(60)
        comm.Barrier()


def one_raises_and_others_leave(store: str) -> None:
    with open_story(comm, "c", "s", store=store) as story:
        story.log_event(f"{comm.rank}")
        if comm.rank == 1:
            raise ValueError("rank one is ill")


def all_raise(store: str) -> None:
    """All ranks raise, and each goes on with its own error."""
    try:
        with open_story(comm, "c", "s", store=store) as story:
            story.log_event(f"{comm.rank}")
            raise ValueError(f"rank {comm.rank}")
    except ValueError as error:
        told = str(error)
    show([told, len(replay(store, "s"))])


def exits(store: str) -> None:
    """sys.exit(0) inside a session closes it as its end does."""
    try:
        with open_story(comm, "c", "s", store=store) as story:
            story.log_event(f"{comm.rank}")
            sys.exit(0)
    except SystemExit:
        show(len(replay(store, "s")))


def losses(store: str) -> None:
    """Events that could not be stored are counted over all ranks."""
    logging.basicConfig(format="%(levelname)s %(message)s")
    with open_story(comm, "c", "s", store=store) as story:
        story.log_event("kept")
        if comm.rank:
            story.client.ReleaseStory("c", "s")
            for _ in range(comm.rank):
                assert story.log_event("too late") == 0
    show(dict(story.statistics().lost))


def differ(store: str, what: str) -> None:
    """The ranks do not ask for the same."""
    asked: dict[str, Any] = {"chronicle": "c", "story": "s", "store": store, "durability": "process"}
    if comm.rank:
        others = {"durability": "node", "store": f"{store}2", "clock": SystemClock()}
        asked[what] = others.get(what, "other")
    try:
        with open_story(comm, **asked):
            show("opened")
    except ValueError as error:
        show(str(error))


globals()[sys.argv[1]](*sys.argv[2:])
