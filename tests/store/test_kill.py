"""Whatever a writer dies of, and wherever: what had returned is there, once, whole, and the story is nobody's."""

import itertools
import os
import pathlib
import random
import signal
import subprocess
import sys

import pytest

from py_chronolog_client.client import Client
from tests.store.programs import killed
from tests.store.writing import CHRONICLE, STORY, Logged, acquire, check, connect, files, read, seeded
from tests.support import processes
from tests.support.counts import SOAKING, soak
from tests.support.requirements import require
from tests.support.tracing import run_injected, strace_problem

PROGRAM = pathlib.Path(killed.__file__)
DEADLINE_S = 60.0


def start(store: pathlib.Path, seed: int, pipe: int) -> subprocess.Popen[bytes]:
    argv = [sys.executable, str(PROGRAM), str(store), str(seed), "0", str(pipe)]
    return subprocess.Popen(argv, env=processes.child_environment(), pass_fds=[pipe])


def notes(data: bytes) -> list[tuple[int, int, int]]:
    """Return (first record, number of records, time) of every call that had returned."""
    whole = len(data) - len(data) % killed.NOTE.size
    return list(killed.NOTE.iter_unpack(data[:whole]))


def check_survivors(store: pathlib.Path, seed: int, data: bytes, found: list[Logged]) -> None:
    """Check what was found against the calls that had returned, and the one that was running."""
    told = notes(data)
    told_records = sum(count for _, count, _ in told)
    records: list[bytes] = []
    running: list[bytes] = []
    for _, more in killed.calls(seed):
        if len(records) >= told_records and more:
            running = more
            break
        records += more
    returned = [
        (time_ns, record) for first, count, time_ns in told for record in records[first : first + count]
    ]
    assert len(returned) == told_records
    check(found, returned, records + running)
    assert len(found) in (told_records, told_records + len(running)), "a batch was torn apart"


def check_afterwards(store: pathlib.Path) -> None:
    """Check that a new client can acquire the story, log, and destroy it."""
    with connect(store) as client:
        before = len(read(store)) if STORY in client.ShowStories(CHRONICLE) else 0
        handle = acquire(client)
        assert handle.log_event("after the end")
        assert len(read(store)) == before + 1
        assert client.ReleaseStory(CHRONICLE, STORY) == 0
        assert client.DestroyStory(CHRONICLE, STORY) == 0, client.last_error
        assert not files(store)


class Follower:
    """A reader that is there before, during and after."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.cursor: dict[int, int] = {}
        self.found: list[Logged] = []

    def step(self) -> None:
        pages, cursor = self.client.follow(CHRONICLE, STORY, self.cursor, 0)
        self.cursor = dict(cursor)
        for page in pages:
            columns = page.times.tolist(), page.client_ids.tolist(), page.sequences.tolist(), page.records()
            self.found += map(Logged, *columns)


def kill_at_random(store: pathlib.Path, random: random.Random) -> None:
    """Start a writer, follow it, kill it somewhere, and check what is left."""
    seed, patience = random.randrange(2**32), random.randrange(400)
    reader, writer = os.pipe()
    with connect(store) as client:
        process = start(store, seed, writer)
        os.close(writer)
        try:
            data, follower = b"", Follower(client)
            while len(data) < patience * killed.NOTE.size:
                more = os.read(reader, 4096)
                assert more, "the writer has died of itself"
                data += more
                follower.step()
        finally:
            process.kill()
            assert process.wait(DEADLINE_S) == -signal.SIGKILL
        while more := os.read(reader, 4096):
            data += more
        os.close(reader)
        if not data and STORY not in client.ShowStories(CHRONICLE):
            return
        follower.step()
        found = read(store)
        check_survivors(store, seed, data, found)
        assert sorted(follower.found) == found
    check_afterwards(store)


@pytest.mark.slow
@pytest.mark.timeout(soak(120, 900))
def test_sigkill_at_a_random_moment(tmp_path: pathlib.Path) -> None:
    random = seeded("sigkill")
    for number in range(soak(15, 200)):
        kill_at_random(tmp_path / str(number), random)


# -- at every system call that changes something --

SEED, COUNT = 7, 40
CALLS = {
    "pwritev,pwritev2": (1, 2, 3, 5, 11),
    "pwrite64": (1, 2),
    "fallocate": (1,),
    "rename": (1, 2),
    "linkat": (2,),
    "unlink": (2, 3, 4),
    "mkdir": (5,),
}
"""System calls that change a store, and at which of them the program is killed under `make test`."""


def killed_at(store: pathlib.Path, call: str, when: int) -> bool:
    """Kill the program at a system call, and check what is left; return whether it got that far."""
    data_path = store.with_suffix(".notes")
    descriptor = os.open(data_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    code = f"""if True:
        import _thread, os, runpy, sys

        def no_thread(*_):  # strace counts the calls of each thread on its own, so there is to be only one
            raise RuntimeError

        _thread.start_new_thread = no_thread
        sys.argv[4] = str(os.open(sys.argv[4], os.O_WRONLY | os.O_APPEND))
        runpy.run_path({str(PROGRAM)!r}, run_name='__main__')
    """
    os.close(descriptor)
    done = run_injected(f"{call}:signal=SIGKILL:when={when}", "-c", code, store, SEED, COUNT, data_path)
    if done.returncode == 0:
        return False
    assert done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), processes.describe(done)
    if list(store.glob("chronicles/*/stories/[!.]*/meta")):
        check_survivors(store, SEED, data_path.read_bytes(), read(store))
    check_afterwards(store)
    return True


@pytest.mark.slow
@pytest.mark.timeout(soak(120, 900))
@pytest.mark.parametrize("call", CALLS)
def test_sigkill_at_a_system_call(tmp_path: pathlib.Path, call: str) -> None:
    require("strace", strace_problem())
    numbers = itertools.count(1) if SOAKING else iter(CALLS[call])
    killed = [
        number for number in itertools.takewhile(lambda n: killed_at(tmp_path / str(n), call, n), numbers)
    ]
    assert len(killed) >= len(CALLS[call])
