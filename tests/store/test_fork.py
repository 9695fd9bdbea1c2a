"""After a fork the parent's events are the parent's, and the child is a client of its own, wherever the fork came."""

import itertools
import json
import multiprocessing
import pathlib
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

import pytest

from py_chronolog_client.client import Client
from py_chronolog_client.store.appender import Appender
from tests.store.forking import CALLS, CHILD_TIMEOUT_S, Fork, Side, forking, in_child
from tests.store.opcodes import Interruption, Thrown, at
from tests.store.programs import forked
from tests.store.writing import CHRONICLE, STORY, acquire, check, connect, files, read, small
from tests.support import processes
from tests.support.counts import SOAKING, soak

__all__ = ["small"]

PROGRAM = pathlib.Path(forked.__file__)

# -- whole programs --


LIVES = list(itertools.product(("fork", "multiprocessing"), ("return", "sys.exit", "os._exit", "SIGKILL")))
CHILDREN = [(*life, "logs") for life in LIVES]
SILENT_CHILDREN = [(*life, "silent") for life in LIVES]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("beginning", "ending", "logging"), [*CHILDREN, *(SILENT_CHILDREN if SOAKING else SILENT_CHILDREN[::5])]
)
def test_a_child_is_a_client_of_its_own(
    tmp_path: pathlib.Path, beginning: str, ending: str, logging: str
) -> None:
    store = tmp_path / "store"
    done = processes.run([sys.executable, str(PROGRAM), str(store), beginning, ending, logging], timeout=60)
    assert done.returncode == 0, processes.describe(done)
    sides = {name: (pid, told) for name, pid, told in map(json.loads, done.stdout.splitlines())}
    assert set(sides) == {"parent", "child"}
    with connect(store) as client:
        found = read(store)
        check(found, [(time_ns, record.encode()) for _, told in sides.values() for time_ns, record in told])
        ids = {
            description["pid"]: client_id
            for client_id, description in client.clients(CHRONICLE, STORY).items()
        }
        parent_pid, parent_told = sides["parent"]
        child_pid, child_told = sides["child"]
        assert len(child_told) == (forked.EVENTS if logging == "logs" else 0)
        for pid, told in ((parent_pid, parent_told), (child_pid, child_told)):
            own = [event for event in found if event.client_id == ids.get(pid)]
            assert [(event.time_ns, event.record.decode()) for event in own] == [tuple(item) for item in told]
        if logging == "logs":
            description = client.clients(CHRONICLE, STORY)[ids[child_pid]]
            assert description["parent_client_id"] == ids[parent_pid]
        else:
            assert set(ids) == {parent_pid}
            assert [path.suffix for path in files(store)] == [".log"]
        assert client.DestroyStory(CHRONICLE, STORY) == 0, client.last_error


@pytest.mark.slow
def test_a_spawned_process_that_connects_is_a_client_like_any_other(tmp_path: pathlib.Path) -> None:
    store = tmp_path / "store"
    context = multiprocessing.get_context("spawn")
    with connect(store) as client:
        side = Side(acquire(client), "parent")
        side.log(30)
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=spawned, args=(store, sender))
        process.start()
        sender.close()
        assert receiver.poll(CHILD_TIMEOUT_S)
        spawned_id, told = receiver.recv()
        process.join(CHILD_TIMEOUT_S)
        assert process.exitcode == 0
        side.log(30)
        check_client(store, side.handle.client_id, side.told)
        check_client(store, spawned_id, told)
        clients = client.clients(CHRONICLE, STORY)
        assert clients.keys() == {side.handle.client_id, spawned_id}
        assert "parent_client_id" not in clients[spawned_id]
        assert clients[spawned_id]["pid"] == process.pid


def spawned(store: pathlib.Path, answers: Connection) -> None:
    with connect(store) as client:
        answers.send(Side(acquire(client), "").more("spawned"))


# -- in this process --


def check_client(
    store: pathlib.Path, client_id: int, told: list[tuple[int, bytes]], *others: bytes
) -> list[tuple[int, bytes]]:
    """Check that the events of a client are exactly what was told, and perhaps one of some others; return them."""
    found = read(store, clients=[client_id])
    check(found, told, [record for _, record in told] + list(others))
    assert len(told) <= len(found) <= len(told) + 1
    return [(event.time_ns, event.record) for event in found]


@pytest.fixture
def store(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "store"


@pytest.fixture
def client(store: pathlib.Path, small: None) -> Iterator[Client]:
    with connect(store) as client:
        yield client
        assert client.ReleaseStory(CHRONICLE, STORY) == 0
        assert client.DestroyStory(CHRONICLE, STORY) == 0, client.last_error  # no child holds it any more


@pytest.mark.parametrize("silent", [False, True])
def test_a_child_of_a_child(store: pathlib.Path, client: Client, silent: bool) -> None:
    side = Side(acquire(client), "parent")
    side.log(30)

    def child() -> tuple[Any, Any]:
        own = None if silent else side.more("child")
        grandchild = in_child(lambda: side.more("grandchild")).result()
        if own is not None:
            side.told = own[1]
            side.name = "child again"
            side.log(30)
        return own, grandchild

    own, grandchild = in_child(child).result()
    side.log(30)
    check_client(store, side.handle.client_id, side.told)
    check_client(store, *grandchild)
    clients = client.clients(CHRONICLE, STORY)
    if own is not None:
        check_client(store, *own)
        assert clients[own[0]]["parent_client_id"] == side.handle.client_id
    assert clients[grandchild[0]]["parent_client_id"] == (own or [side.handle.client_id])[0]
    assert len(clients) == (2 if silent else 3)


def test_a_child_counts_its_own_losses(store: pathlib.Path, client: Client) -> None:
    side = Side(acquire(client), "parent")
    assert isinstance(side.handle._writer, Appender)
    side.handle._writer._losses.add("ENOSPC", 3)

    def child() -> object:
        side.more("child", 2)
        return side.handle.statistics()

    statistics = in_child(child).result()
    assert (statistics.logged, statistics.lost) == (2, {})
    assert side.handle.statistics().lost == {"ENOSPC": 3}


@pytest.mark.slow
@pytest.mark.parametrize("forker", ["main thread", "other thread"])
def test_fork_while_threads_log(store: pathlib.Path, client: Client, forker: str) -> None:
    handle = acquire(client)
    sides = [Side(handle, f"thread {number}") for number in range(4)]
    children: list[tuple[int, list[tuple[int, bytes]]]] = []
    stop = threading.Event()

    def work(side: Side) -> None:
        while not stop.is_set():
            side.log()

    def fork() -> None:
        try:
            for number in range(soak(10, 300)):
                own = Side(handle, f"forker {number}")
                own.log(3)
                sides.append(own)
                children.append(in_child(lambda n=number: Side(handle, "").more(f"child {n}")).result())
        finally:
            stop.set()

    threads = [threading.Thread(target=work, args=(side,)) for side in sides]
    if forker == "other thread":
        threads.append(threading.Thread(target=fork))
    for thread in threads:
        thread.start()
    if forker == "main thread":
        fork()
    for thread in threads:
        thread.join()
    assert len(children) == soak(10, 300)
    told = [item for side in sides for item in side.told]
    assert sorted(check_client(store, handle.client_id, told)) == sorted(told)
    for child in children:
        assert check_client(store, *child) == child[1]
    assert set(client.clients(CHRONICLE, STORY)) == {
        handle.client_id,
        *(child_id for child_id, _ in children),
    }


@pytest.mark.slow
def test_fork_in_a_signal_handler(store: pathlib.Path, client: Client) -> None:
    side = Side(acquire(client), "parent")
    forks_left = soak(30, 500)

    def rearm() -> None:
        # Once at a time, so that no handler interrupts another; and of processor time, which the time limit does not use.
        signal.setitimer(signal.ITIMER_PROF, 0.001)

    def handler(number: int, frame: FrameType | None) -> None:
        nonlocal forks_left
        forks_left -= 1
        forks.append(Fork())
        if forks[-1].pid and forks_left:
            rearm()

    before = signal.signal(signal.SIGPROF, handler)
    try:
        with forking() as forks:
            rearm()
            while forks_left or not forks[-1].pid:
                side.log()
                if forks and not forks[-1].pid:  # we are the child, back from an interrupted call
                    last = side.told[-1]
                    forks[-1].end(lambda: (last, side.more("child")))
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    of_parent = set(check_client(store, side.handle.client_id, side.told))
    for fork in forks:
        last, (child_id, told) = fork.result()
        check_child(store, of_parent, child_id, told, last)


def check_child(
    store: pathlib.Path,
    of_parent: set[tuple[int, bytes]],
    child_id: int,
    told: list[tuple[int, bytes]],
    interrupted: tuple[int, bytes],
) -> None:
    """Check the events of a child that came out of an interrupted call; that event is the parent's or its own."""
    of_child = check_client(store, child_id, told, interrupted[1])
    assert interrupted in of_parent.union(of_child)


@pytest.mark.slow
@pytest.mark.timeout(soak(120, 1800))
@pytest.mark.parametrize("call", CALLS)
def test_fork_at_every_bytecode(store: pathlib.Path, small: None, call: str) -> None:
    number, step = 1, soak({"append": 5}.get(call, 89), 7)
    prepared, operate = CALLS[call]
    with connect(store) as client:
        while True:
            side = Side(acquire(client), f"parent {number}")
            side.log(prepared)
            with forking() as forks:
                with Interruption(lambda forks=forks: forks.append(Fork()), at(number)) as interruption:
                    operate(side)
                if forks and not forks[0].pid:
                    forks[0].end(lambda side=side: (side.told[-1], after_fork(side, call, number)))
            own_id = side.handle.client_id
            if call != "close":
                side.log(20)
            if forks:
                last, (child_id, told) = forks[0].result()
                of_parent = set(check_client(store, own_id, side.told))
                if told:
                    check_child(store, of_parent, child_id, told, last)
            client.ReleaseStory(CHRONICLE, STORY)
            check_client(store, own_id, side.told)
            if not interruption.fired:
                break
            assert client.DestroyStory(CHRONICLE, STORY) == 0, client.last_error
            number += step
        assert number > 1


def after_fork(side: Side, call: str, number: int) -> tuple[int, list[tuple[int, bytes]]]:
    """Go on in a child that came out of an interrupted call."""
    if call == "close":
        assert side.handle.log_event("too late") == 0
        return 0, []
    return side.more(f"child {number}")


@pytest.mark.slow
@pytest.mark.timeout(soak(120, 1800))
@pytest.mark.parametrize("action", ["logs", "raises", "forks"])
def test_the_first_event_of_a_child_interrupted_at_every_bytecode(
    store: pathlib.Path, client: Client, action: str
) -> None:
    side = Side(acquire(client), "parent")
    side.log(3)
    number, step = 1, soak(149, 11)
    while True:
        fired, results = in_child(lambda n=number: interrupted_child(side, action, n)).result()
        for child_id, told, interrupted in results:
            check_client(store, child_id, told, interrupted)
        if not fired:
            break
        number += step
    check_client(store, side.handle.client_id, side.told)


def interrupted_child(
    side: Side, action: str, number: int
) -> tuple[int, list[tuple[int, list[tuple[int, bytes]], bytes]]]:
    """Log a first event, interrupt that, and go on; return whether it was interrupted, and what was told."""
    side.name, side.told = f"child {number}", []
    grandchildren: list[Fork] = []

    def interrupt() -> None:
        if action == "logs":
            inner = Side(side.handle, f"handler {number}")
            inner.log(20)
            side.told += inner.told
        elif action == "raises":
            raise Thrown
        else:
            grandchildren.append(Fork())

    interrupted = f"interrupted {number}".encode()
    interruption = Interruption(interrupt, at(number))
    try:
        with interruption:
            time_ns = side.handle.log_event(interrupted.decode())
        assert time_ns, (interruption.where, side.handle.statistics())
        assert time_ns, (interruption.where, side.handle.statistics())
        side.told.append((time_ns, interrupted))
    except Thrown:
        pass
    if grandchildren and not grandchildren[0].pid:
        side.told = []
        grandchildren[0].end(lambda: side.more(f"grandchild {number}"))
    side.log(20)
    results = [(side.handle.client_id, side.told, interrupted)]
    results += [(*grandchild.result(), interrupted) for grandchild in grandchildren]
    side.handle._writer.close()
    return interruption.fired, results
