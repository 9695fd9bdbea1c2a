"""What clients do when memory or descriptors are short: run as a program, which may limit itself (see test_full.py).

Arguments: the name of a function below, the directory of the store, and the function's other arguments.
"""

import os
import pathlib
import resource
import sys
from collections.abc import Callable

from py_chronolog_client import Client, EventList
from tests.store.programs.full import Account, connect_as_far_as_possible
from tests.store.writing import CHRONICLE, STORY, acquire, check, connect, files, read, small_tails

ALWAYS = 2**64 - 1
CLIENTS = 300
FEW_FILES = 64
GROWTH_BYTES = 3 * 2**20
"""How much memory a writer may take for reasons that have nothing to do with the number of events."""


def memory_bytes(name: str) -> int:
    """Return a figure of /proc/self/status."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


def read_bytes() -> int:
    """Return how many bytes this process has read."""
    return int(pathlib.Path("/proc/self/io").read_text().split()[1])


def set_soft_limit(which: int, value: int) -> None:
    resource.setrlimit(which, (value, resource.getrlimit(which)[1]))


# -- memory --


def writes(store: pathlib.Path, kind: str, few: str, many: str) -> None:
    """Log `few` events, look at the memory, log until there are `many`, and look again."""
    with connect(store) as client:
        handle = acquire(client)
        batch = [f"{number} {'x' * 50}" for number in range(1000)]

        def log(count: int) -> None:
            for _ in range(count // len(batch)):
                if kind == "log_events":
                    assert handle.log_events(batch)
                else:
                    for record in batch:
                        assert handle.log_event(record)

        log(int(few))
        before_bytes = memory_bytes("RssAnon")
        log(int(many) - int(few))
        grown_bytes = memory_bytes("RssAnon") - before_bytes
        assert handle.statistics().logged == int(many)
        assert grown_bytes < GROWTH_BYTES, f"{grown_bytes} bytes more for {int(many) - int(few)} events"


def refuses(store: pathlib.Path, few: str, many: str) -> None:
    """The same for events that are refused, which must be cheap as well."""
    with connect(store) as client:
        handle = acquire(client)
        while handle.log_event("x" * 1000):
            if handle.statistics().logged == 1:
                (segment,) = files(store, "*.log")
                set_soft_limit(resource.RLIMIT_FSIZE, segment.stat().st_size + 2**19)  # half a block
        for _ in range(int(few)):
            handle.log_event("x" * 1000)
        before_bytes, read_before_bytes = memory_bytes("RssAnon"), read_bytes()
        for _ in range(int(many) - int(few)):
            handle.log_event("x" * 1000)
        looked_bytes = (read_bytes() - read_before_bytes) // (int(many) - int(few))
        assert looked_bytes < 2**17, (
            f"each refusal reads {looked_bytes} bytes, as if it looked for what was written"
        )
        grown_bytes = memory_bytes("RssAnon") - before_bytes
        assert handle.statistics().lost == {"EFBIG": int(many) + 1}
        assert grown_bytes < GROWTH_BYTES, f"{grown_bytes} bytes more for {int(many) - int(few)} events"


def replays(store: pathlib.Path, limit: str) -> None:
    """Replay with more and more memory: it is too little, which is a MemoryError, or it is enough."""
    which = getattr(resource, limit)
    with connect(store) as client:
        count = 0
        for _ in range(4):
            with connect(store) as writer:
                handle = acquire(writer)
                for _ in range(8):
                    assert handle.log_events(["x" * 8] * 65536)
                    count += 65536
                assert writer.ReleaseStory(CHRONICLE, STORY) == 0

        def replay() -> int:
            events = EventList()
            assert client.ReplayStory(CHRONICLE, STORY, 0, ALWAYS, events) == 0, client.last_error
            return len(events)

        def read_pages() -> int:
            return sum(map(len, client.replay(CHRONICLE, STORY, verify=True)))

        def attempt(action: Callable[[], int]) -> bool:
            try:
                assert action() == count
            except MemoryError:
                return False
            return True

        used_bytes = memory_bytes({"RLIMIT_AS": "VmSize", "RLIMIT_DATA": "VmData"}[limit])
        warm_up(store.with_name("warm-up"))
        results = []
        for more_bytes in (0, 2**22, 2**25, 2**26, 2**27, 2**29):
            set_soft_limit(which, used_bytes + more_bytes)
            results.append((attempt(replay), attempt(read_pages)))
            set_soft_limit(which, resource.getrlimit(which)[1])
        assert results[0][0] is False, "this limit limits nothing"
        assert results[-1] == (True, True), results
        assert replay() == count
        first_replay, first_pages = (
            [whole for whole in column].index(True) for column in zip(*results, strict=True)
        )
        assert first_pages <= first_replay, "pages are there to take less memory"


def warm_up(store: pathlib.Path) -> None:
    """Import and start what a replay needs, so that the limit meets the replay only."""
    with connect(store) as client:
        acquire(client).log_event("x")
        assert client.ReplayStory(CHRONICLE, STORY, 0, ALWAYS, EventList()) == 0


# -- descriptors --


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def has_many_clients(store: pathlib.Path) -> None:
    """Log as many clients at once, and replay their story with few descriptors."""
    small_tails()
    before = open_files()
    clients = [connect(store) for _ in range(CLIENTS)]
    accounts = [Account(acquire(client), f"{number}:") for number, client in enumerate(clients)]
    for _ in range(3):
        for account in accounts:
            assert account.log()
    accounts[0].check(store, *accounts[1:])
    for client in clients:
        assert client.Disconnect() == 0, client.last_error
    assert open_files() == before, "descriptors are left open"

    set_soft_limit(resource.RLIMIT_NOFILE, FEW_FILES)
    accounts[0].check(store, *accounts[1:])  # which raises the limit as far as this process may
    resource.setrlimit(resource.RLIMIT_NOFILE, (FEW_FILES, FEW_FILES))
    with connect(store) as client:
        for _ in range(3):
            events = EventList()
            assert client.ReplayStory(CHRONICLE, STORY, 0, ALWAYS, events) == -1
            assert str(client.last_error).endswith(
                "too many open files: a replay opens one for each client of the story while its EventList lives, and "
                f"the limit is {FEW_FILES}: "
                "raise it (ulimit -n)"
            )
            assert open_files() == before, "a replay that failed leaves descriptors open"
        one = list(client.clients(CHRONICLE, STORY))[:1]
        assert sum(map(len, client.replay(CHRONICLE, STORY, clients=one))) == 3


def runs_out_of_descriptors(store: pathlib.Path) -> None:
    """Acquire until there are no descriptors; what is acquired goes on, and what is not leaves nothing."""
    small_tails()
    resource.setrlimit(resource.RLIMIT_NOFILE, (FEW_FILES, FEW_FILES))
    held: list[tuple[Client, Account]] = []
    while not isinstance(client := connect_as_far_as_possible(store), str):
        held.append((client, Account(acquire(client), f"{len(held)}:")))
    assert len(held) > FEW_FILES // 3
    assert "Too many open files: raise the limit on open files (ulimit -n), or release stories" in client, (
        client
    )
    assert isinstance(connect_as_far_as_possible(store), str)
    for _, account in held:
        while len(account.returned) < 100:  # several blocks
            assert account.log()
        assert account.log("big")
        assert account.handle.flush() == len(account.returned)
        account.balance()
    released, _ = held[0]
    assert released.Disconnect() == 0, released.last_error
    client = connect_as_far_as_possible(store)
    assert isinstance(client, Client), client
    held.append((client, Account(acquire(client), "last:")))
    assert held[-1][1].log()
    for client, _ in held:
        assert client.Disconnect() == 0, client.last_error
    found = read(store)
    check(found, [event for _, account in held for event in account.returned])
    assert not [path for path in store.rglob("*") if path.name.startswith(".") or path.suffix == ".tail"]
    assert len(files(store, "*.log")) == len(held)


if __name__ == "__main__":
    globals()[sys.argv[1]](pathlib.Path(sys.argv[2]), *sys.argv[3:])
