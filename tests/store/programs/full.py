"""What a client does when there is no room: run as a program, in a tmpfs that is small (see tests/store/test_full.py).

Arguments: the name of a function below, the directory to work in, and the function's other arguments. Every function
checks what it sees, because nothing of a tmpfs is left for others.
"""

import mmap
import os
import pathlib
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from py_chronolog_client import (
    Client,
    ClientPortalServiceConf,
    ClientQueryServiceConf,
    EventList,
    StoryHandle,
)
from py_chronolog_client.engine.base import Durability
from py_chronolog_client.store.tail import TAIL_BYTES
from tests.store.writing import (
    CHRONICLE,
    SMALL_CAPACITY,
    STORY,
    acquire,
    check,
    connect,
    files,
    read,
    small_tails,
)
from tests.support import processes
from tests.support.tracing import run_injected

REFUSALS = 500
FILLER_BYTES = 3 * 2**19
DEADLINE_S = 20.0


class Account:
    """What a handle was given, and what it answered."""

    def __init__(self, handle: StoryHandle, name: str = "") -> None:
        self.handle = handle
        self.attempted: list[bytes] = []
        self.returned: list[tuple[int, bytes]] = []
        self.refused = 0
        self._name = name

    def log(self, kind: str = "log_event", size_bytes: int = 50) -> bool:
        """Log by one call; return whether it was accepted."""
        count = 200 if kind == "log_events" else 1
        size_bytes = 300_000 if kind == "big" else size_bytes
        first = len(self.attempted)
        records = [
            f"{self._name}{first + number}:".encode().ljust(size_bytes, b"x") for number in range(count)
        ]
        self.attempted += records
        handle = self.handle
        time_ns = handle.log_events(records) if kind == "log_events" else handle.log_event(records[0])
        if time_ns:
            self.returned += [(time_ns, record) for record in records]
        else:
            self.refused += count
        return bool(time_ns)

    def until_refused(self, kind: str, times: int = 1) -> None:
        for _ in range(times):
            while self.log(kind):
                pass

    def until_accepted(self, kind: str) -> None:
        """Log on; there is room again, so it must be taken soon, without opening anything anew."""
        deadline_s = time.monotonic() + DEADLINE_S
        while not self.log(kind):
            assert time.monotonic() < deadline_s, "there is room, and events are still refused"

    def balance(self, *reasons: str) -> None:
        """Check that every event is counted once, as logged or as lost for one of the reasons."""
        statistics = self.handle.statistics()
        assert statistics.logged == len(self.returned), statistics
        assert sum(statistics.lost.values()) == self.refused, statistics
        assert statistics.logged + sum(statistics.lost.values()) == len(self.attempted)
        assert set(statistics.lost) <= set(reasons), statistics

    def check(self, store: pathlib.Path, *others: "Account") -> None:
        """Check what a reader finds."""
        accounts = [self, *others]
        found = read(store)
        returned = [event for account in accounts for event in account.returned]
        assert len(found) == len(returned)
        check(found, returned)


def fill(root: pathlib.Path) -> pathlib.Path:
    """Take some room that can be given back."""
    filler = root / "filler"
    filler.write_bytes(b"x" * FILLER_BYTES)
    return filler


def grow(root: pathlib.Path) -> None:
    """Make the tmpfs large."""
    subprocess.run(["mount", "-o", "remount,size=64m,nr_inodes=10000", "tmpfs", root], check=True)


def leave(client: Client, store: pathlib.Path) -> None:
    """Release the story and make sure that it is nobody's, and that only what belongs there is there."""
    assert client.ReleaseStory(CHRONICLE, STORY) == 0, client.last_error
    assert {path.suffix for path in files(store)} == {".log"}, files(store)
    assert not list(store.rglob(".*")), list(store.rglob(".*"))


# -- a disk that gets full --


def fills(root: pathlib.Path, kind: str, durability: Durability) -> None:
    """Log until the disk is full and beyond, make room, and log on."""
    store, filler = root / "store", fill(root)
    with connect(store, durability) as client:
        account = Account(acquire(client))
        account.until_refused(kind, REFUSALS if kind == "log_event" else 20)
        account.balance("ENOSPC")
        account.check(store)
        if durability == "node":
            assert account.handle.flush() == account.handle.statistics().acknowledged
            assert account.handle.statistics().acknowledged < len(account.returned)
        filler.unlink()
        account.until_accepted(kind)
        assert all(account.log() for _ in range(300))
        assert account.handle.flush() == len(account.returned)
        account.balance("ENOSPC")
        account.check(store)
        leave(client, store)
    account.check(store)


def flushes_at_once(root: pathlib.Path) -> None:
    """Flush and release ask the file system, whatever it said to an event a moment ago."""
    store, filler = root / "store", fill(root)
    with connect(store, "node") as client:
        account = Account(acquire(client))
        account.until_refused("log_event")
        filler.unlink()
        assert account.handle.flush() == len(account.returned)
        leave(client, store)
    account.check(store)


def refuses_a_batch_of_several_blocks(root: pathlib.Path) -> None:
    """Store what fits, and count the rest."""
    store = root / "store"
    with connect(store) as client:
        handle = acquire(client)
        records = [str(number) for number in range(400_000)]
        assert handle.log_events(records) == 0
        statistics = handle.statistics()
        assert set(statistics.lost) == {"ENOSPC"}
        assert statistics.logged + statistics.lost["ENOSPC"] == len(records)
        assert 0 < statistics.logged < len(records)
        found = read(store)
        assert [event.record.decode() for event in found] == records[: statistics.logged]


def releases(root: pathlib.Path) -> None:
    """Release on a full disk, come back when there is room, and lose nothing of either time."""
    store, filler = root / "store", fill(root)
    client = connect(store)
    before = Account(acquire(client), "before")
    before.until_refused("log_event", 10)
    assert client.ReleaseStory(CHRONICLE, STORY) == 0, client.last_error
    before.balance("ENOSPC")
    before.check(store)
    code, _ = client.AcquireStory(CHRONICLE, STORY)
    assert code == -1
    assert "No space left on device: make room there" in str(client.last_error)
    before.check(store)
    filler.unlink()
    grow(root)
    after = Account(acquire(client), "after")
    assert all(after.log() for _ in range(100))
    assert client.Disconnect() == 0, client.last_error
    before.check(store, after)
    with connect(store) as other:
        assert other.DestroyStory(CHRONICLE, STORY) == 0, other.last_error


def forks(root: pathlib.Path) -> None:
    """A child finds no room for a tail of its own, and says so; and again when there is room."""
    store, filler = root / "store", fill(root)
    client = connect(store)
    parent = Account(acquire(client), "parent")
    parent.until_refused("log_event")
    child = Account(parent.handle, "child")
    done, told = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            for _ in range(REFUSALS):
                assert not child.log()
            child.balance("ENOSPC")
            assert child.handle.flush() == 0
            filler.unlink()
            child.until_accepted("log_event")
            assert child.handle.flush() == 1
            child.balance("ENOSPC")
            os.write(told, child.returned[0][0].to_bytes(8, "little") + child.returned[0][1])
            client.Disconnect()
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    answer = os.read(done, 1000)
    child.returned = [(int.from_bytes(answer[:8], "little"), answer[8:])]
    parent.until_accepted("log_event")
    parent.balance("ENOSPC")
    assert client.Disconnect() == 0, client.last_error
    parent.check(store, child)


# -- a disk that is too small from the beginning --


def begins(root: pathlib.Path, fails: str, elsewhere: str = "", what: str = "") -> None:
    """Try everything that leads to a story; if it fails it leaves nothing, and with more room it works.

    `what` ("store" or "tails") lies `elsewhere`, where there is room.
    """
    store, tails = root / "store", root / "tails"
    if what:
        store, tails = (
            (pathlib.Path(elsewhere), root) if what == "store" else (store, pathlib.Path(elsewhere))
        )
        os.environ["CHRONOLOG_TAIL_DIR"] = str(tails)
    client = connect_as_far_as_possible(store)
    assert isinstance(client, str) == (fails == "fails"), client
    if isinstance(client, str):
        assert isinstance(connect_as_far_as_possible(store), str)
        assert "No space left on device: make room there" in client, client
        left = [*root.rglob("*"), *store.rglob("*"), *tails.rglob("*")]
        assert not [path for path in left if path.name.startswith(".") or path.suffix in (".log", ".tail")], (
            left
        )
        grow(root)
        client = connect_as_far_as_possible(store)
    assert isinstance(client, Client), client
    account = Account(acquire(client))
    assert account.log()
    assert client.Disconnect() == 0
    account.check(store)


def connect_as_far_as_possible(store: pathlib.Path) -> Client | str:
    """Return a client that holds the story, or what went wrong."""
    client = Client(ClientPortalServiceConf("file", str(store), 0, 0), ClientQueryServiceConf())
    codes = [client.Connect()]
    if codes == [0]:
        codes.append(client.CreateChronicle(CHRONICLE))
    if codes[1:] in ([0], [-6]):
        codes.append(client.AcquireStory(CHRONICLE, STORY)[0])
    if codes[-1] == 0:
        return client
    sentence = str(client.last_error)
    assert codes[-1] in (-1, -8), (codes, sentence)
    client.Disconnect()
    return sentence


# -- readers --


def reads_holes(root: pathlib.Path) -> None:
    """Replay a story whose files have holes, on a disk that has not one page left."""
    store = root / "store"
    with connect(store) as client:
        account = Account(acquire(client))
        assert all(account.log() for _ in range(100))
        account.handle.flush()
        (segment,), (tail,) = files(store, "*.log"), files(store, "*.tail")
        os.truncate(segment, 2**22)
        copied = root / tail.name
        copied.write_bytes(tail.read_bytes()[:4096])
        os.truncate(copied, TAIL_BYTES)
        os.rename(copied, tail)  # its index is a hole now
        hole = root / "hole"
        hole.touch()
        os.truncate(hole, 2**20)
        take_all(root / "filler")
        assert dies_of_sigbus(lambda: mmap.mmap(os.open(hole, os.O_RDONLY), 0, prot=mmap.PROT_READ)[2**19])
        account.check(store)
        assert client.ReplayStory(CHRONICLE, STORY, 0, 2**64 - 1, EventList()) == 0, client.last_error


def take_all(path: pathlib.Path) -> None:
    with open(path, "wb", buffering=0) as file:
        for size_bytes in (2**16, 1):
            try:
                while file.write(b"x" * size_bytes):
                    pass
            except OSError:
                pass


def dies_of_sigbus(action: Callable[[], object]) -> bool:
    pid = os.fork()
    if not pid:
        try:
            action()
        finally:
            os._exit(0)
    return os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGBUS


# -- file systems that cannot reserve --


def reserves(root: pathlib.Path, error: str) -> None:
    """Where fallocate is not known, the tail is written out: it has all its blocks, or there is none."""
    store = root / "store"
    fits = os.statvfs(root).f_bavail * os.statvfs(root).f_bsize > 2 * TAIL_BYTES
    done = run_injected(f"fallocate:error={error}", __file__, "acquires", str(store), str(int(fits)))
    assert done.returncode == 0, processes.describe(done)


def acquires(store: pathlib.Path, fits: str) -> None:
    client = connect_as_far_as_possible(store)
    if fits == "1":
        assert isinstance(client, Client), client
        (tail,) = files(store, "*.tail")
        assert tail.stat().st_blocks * 512 >= TAIL_BYTES
        take_all(store.parent / "filler")
        account = Account(acquire(client))
        account.until_refused("log_event")  # not killed by SIGBUS
        assert len(account.returned) > 5000
        account.balance("ENOSPC")
        account.check(store)
    else:
        assert isinstance(client, str)
        assert "No space left on device" in client
        assert not files(store)


# -- a quota --


def meets_a_quota(root: pathlib.Path, kind: str) -> None:
    """The same with a limit on the size of files, which is then raised."""
    store, limit_bytes = root / "store", 3 * 2**20
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    with connect(store) as client:
        account = Account(acquire(client))
        account.until_refused(kind, 20)
        account.balance("EFBIG")
        account.check(store)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        account.until_accepted(kind)
        assert account.handle.flush() == len(account.returned)
        leave(client, store)
    account.check(store)


def has_a_quota_too_small_for_a_tail(root: pathlib.Path) -> None:
    store = root / "store"
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    with connect(store) as client:
        assert client.AcquireStory(CHRONICLE, STORY) == (-1, None)
        assert "File too large: raise the limit on the size of files" in str(client.last_error)
        assert not files(store)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        account = Account(acquire(client))
        assert account.log()
        leave(client, store)
    account.check(store)


def comes_back_behind_half_a_block(root: pathlib.Path) -> None:
    """Coming back fails with a part of a block written: that is no damage, and coming back again works."""
    store = root / "store"
    small_tails()
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    accounts: list[Account] = []
    with connect(store) as client:
        for more_bytes in (1, 64, 130, 300):
            account = Account(acquire(client), f"{more_bytes}:")
            accounts.append(account)
            assert all(account.log() for _ in range(10 * SMALL_CAPACITY))
            (segment,) = files(store, f"{account.handle.client_id:016x}.log")
            leave(client, store)
            resource.setrlimit(resource.RLIMIT_FSIZE, (segment.stat().st_size + more_bytes, hard))
            assert client.AcquireStory(CHRONICLE, STORY)[0] == -1
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            account.check(store, *accounts[:-1])


if __name__ == "__main__":
    globals()[sys.argv[1]](pathlib.Path(sys.argv[2]), *sys.argv[3:])
