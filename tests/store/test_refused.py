"""A system call that fails costs what it was asked for and nothing else, whichever it is and whenever.

`programs/refused.py` does everything that a client can do, and again what fails; strace lets calls fail.
"""

import itertools
import json
import os
import pathlib
from unittest import mock

import pytest

from py_chronolog_client.engine.base import ScanReport
from py_chronolog_client.engine.embedded import EmbeddedEngine
from py_chronolog_client.store import owner
from tests.store.programs import refused
from tests.store.writing import CHRONICLE, STORY, check, connect, files, read
from tests.support import processes
from tests.support.counts import SOAKING
from tests.support.tracing import run_injected

PROGRAM = pathlib.Path(refused.__file__)
ERRORS = ("EIO", "ENOSPC", "EDQUOT")
CALLS = {
    "pwritev,pwritev2": (range(1, 36), (4, 16)),
    "fdatasync": (range(1, 12), (1, 4)),
    "fsync": (range(1, 28), (6, 12)),
    "pwrite64": (range(1, 7), (1,)),
    "pread64": (range(3, 22), (8,)),  # the first two are of the loader
    "fallocate": (range(1, 4), (2,)),
    "linkat": (range(1, 7), (3,)),
    "symlink": (range(1, 4), (1,)),
    "unlink": (range(1, 11), (3,)),
    "mkdir": (range(1, 9), (5,)),
    "rename": (range(1, 5), (2,)),
    "write": (range(1, 6), (2,)),
}
"""Which calls fail: all that the program makes on its store, and those of `make test`."""
CASES = [
    (call, when, error)
    for call, (every, some) in CALLS.items()
    for when, error in (
        itertools.product(every, ERRORS) if SOAKING else zip(some, itertools.cycle(ERRORS), strict=False)
    )
]

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("call", "when", "error"), CASES)
def test_one_call_fails(tmp_path: pathlib.Path, call: str, when: int, error: str) -> None:
    store, tails = tmp_path / "store", tmp_path / "tails"
    tails.mkdir()
    env = {"CHRONOLOG_TAIL_DIR": str(tails)} if call == "symlink" else {}
    done = run_injected(f"{call}:error={error}:when={when}", PROGRAM, store, env=env)
    assert done.returncode == 0, processes.describe(done)
    told = json.loads(done.stdout)
    found = read(store)
    assert len(found) == len(told["returned"])
    check(found, [(time_ns, record.encode()) for time_ns, record in told["returned"]])
    if call == "unlink":  # what was to be removed stays, under a name that nobody looks at
        assert not told["failed"]
    else:
        left = [path for path in tmp_path.rglob("*") if path.name.startswith(".")]
        assert not left, left
    with connect(store) as client:
        assert client.DestroyStory(CHRONICLE, STORY) == 0, client.last_error


SYNCS = """
import json, os, sys
from tests.store.programs.full import Account
from tests.store.writing import acquire, connect, files, small_tails

small_tails()
account = Account(acquire(connect(sys.argv[1], "node")))
flushes = []
for _ in range(4):
    assert all(account.log() for _ in range(30))
    acknowledged = account.handle.flush()
    assert account.handle.statistics().acknowledged == acknowledged
    flushes.append((acknowledged, len(account.returned), [path.stat().st_size for path in files(sys.argv[1], "*.log")]))
account.balance()
print(json.dumps([flushes, [(time_ns, record.decode()) for time_ns, record in account.returned]]), flush=True)
os._exit(0)
"""
ANOTHER_BOOT = b"\xa5" * 16


SYNC_CASES = [
    ("fdatasync:error=EIO:when=2", [30, 60, 90, 120]),
    ("fdatasync:error=ENOSPC:when=2..3", [30, 30, 90, 120]),
    ("fdatasync:error=EDQUOT:when=3+", [30, 60, 60, 60]),
    ("fsync:error=EIO:when=10", [30, 60, 90, 120]),
    ("fsync:error=EIO:when=10+6", [0, 0, 0, 0]),  # the directory, each time that the new name is there
]
"""What fails, and what each of four flushes may acknowledge."""
MORE_SYNC_CASES = [
    ("fdatasync:error=EIO:when=1", [30, 60, 90, 120]),
    ("fdatasync:error=EIO:when=2..4", [30, 30, 30, 120]),
    ("fdatasync:error=EIO:when=1+", [0, 0, 0, 0]),
    ("fsync:error=EIO:when=10+", [0, 0, 0, 0]),
]


@pytest.mark.parametrize(
    ("injection", "acknowledged"), SYNC_CASES + MORE_SYNC_CASES if SOAKING else SYNC_CASES
)
def test_nothing_is_acknowledged_that_was_not_synced(
    tmp_path: pathlib.Path, injection: str, acknowledged: list[int]
) -> None:
    store = tmp_path / "store"
    done = run_injected(injection, "-c", SYNCS, store)
    assert done.returncode == 0, processes.describe(done)
    flushes, told = json.loads(done.stdout)
    returned = [(time_ns, record.encode()) for time_ns, record in told]
    assert [flush[0] for flush in flushes] == acknowledged
    assert [flush[1] for flush in flushes] == [30, 60, 90, 120]
    check(read(store), returned)  # as long as the machine runs nothing is missing
    assert not list(store.rglob(".*"))

    # The power is cut. Of a segment whose sync failed only that is left which was synced before.
    segments = sorted(files(store, "*.log"), key=lambda path: len(path.name))
    assert len(segments) <= 2 or injection.startswith("fsync"), "every attempt leaves a segment"
    healthy = itertools.takewhile(lambda flush: flush[0] == flush[1] and len(flush[2]) == 1, flushes)
    kept_bytes = [max((flush[2][0] for flush in healthy), default=0)] + [0] * len(segments)
    for place, segment in enumerate(segments):
        if place < len(segments) - 1 or not place:
            with open(segment, "r+b") as file:
                lost_bytes = os.fstat(file.fileno()).st_size - kept_bytes[place]
                file.seek(kept_bytes[place])
                file.write(bytes(lost_bytes))
    report = ScanReport()
    with mock.patch.object(owner, "boot_id", lambda: ANOTHER_BOOT):
        pages = list(EmbeddedEngine(store, create=False).scan(CHRONICLE, STORY, verify=True, report=report))
    found = {
        (time_ns, record)
        for page in pages
        for time_ns, record in zip(page.times.tolist(), page.records(), strict=True)
    }
    assert found <= set(returned)
    assert found >= set(returned[: acknowledged[-1]])
