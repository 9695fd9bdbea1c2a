"""A client or handle that is dropped and not released: its events are kept, nothing stays open, and it is said."""

import gc
import os
import pathlib
import sys
import warnings
from collections.abc import Iterator

import pytest

from tests.store.forking import CALLS, Side, in_child
from tests.store.opcodes import Interruption, at
from tests.store.writing import CHRONICLE, STORY, acquire, check, connect, files, read, small
from tests.support import processes
from tests.support.counts import soak

__all__ = ["small"]


@pytest.fixture(autouse=True)
def collected_when_asked() -> Iterator[None]:
    """Garbage is collected when a test says so, and not before."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def log_and_drop(store: pathlib.Path, name: str = "dropped", count: int = 20) -> list[tuple[int, bytes]]:
    """Log through a client of which nothing is left but garbage."""
    side = Side(acquire(connect(store)), name)
    side.log(count)
    return side.told


def collect() -> list[str]:
    """Collect the garbage; return what is warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        gc.collect()
    return [str(warning.message) for warning in caught if warning.category is ResourceWarning]


def opened() -> dict[str, str]:
    """Return what this process has open or mapped, below no matter which directory."""
    descriptors = {name: f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")}
    links = {name: os.readlink(path) for name, path in descriptors.items() if os.path.lexists(path)}
    with open("/proc/self/maps", encoding="utf-8") as maps:
        return links | {line.split()[0]: line.split()[-1] for line in maps if ".tail" in line}


def below(store: pathlib.Path) -> list[str]:
    return [path for path in opened().values() if path.startswith(str(store))]


def test_what_was_dropped_is_kept_and_released_and_said(tmp_path: pathlib.Path, small: None) -> None:
    store = tmp_path / "store"
    gc.collect()
    told = log_and_drop(store)
    assert below(store), "there is nothing to let go"
    (said,) = collect()
    assert "dropped without ReleaseStory or Disconnect" in said
    assert str(store) in said
    assert not below(store)
    assert [path.suffix for path in files(store)] == [".log"]
    check(read(store), told, [record for _, record in told])
    with connect(store) as client:
        assert client.DestroyStory(CHRONICLE, STORY) == 0, client.last_error


def test_who_keeps_the_method_keeps_the_story(tmp_path: pathlib.Path) -> None:
    store = tmp_path / "store"
    log = acquire(connect(store)).log_event
    assert collect() == []
    assert log("still there")
    assert [event.record for event in read(store)] == [b"still there"]
    del log
    assert len(collect()) == 1


@pytest.mark.parametrize("end", ["release", "disconnect", "with"])
def test_nothing_is_said_of_what_was_given_up(tmp_path: pathlib.Path, end: str) -> None:
    client = connect(tmp_path / "store")
    handle = acquire(client)
    handle.log_event("x")
    if end == "release":
        client.ReleaseStory(CHRONICLE, STORY)
    elif end == "disconnect":
        client.Disconnect()
    else:
        with handle:
            pass
    del client, handle
    assert collect() == []
    assert not below(tmp_path)


def test_what_a_child_drops_stays_its_parents(tmp_path: pathlib.Path, small: None) -> None:
    store = tmp_path / "store"
    sides = [Side(acquire(connect(store)), "parent")]
    sides[0].log(5)

    def child() -> tuple[list[str], list[tuple[int, bytes]]]:
        sides.clear()
        said = collect()
        return said, log_and_drop(store, "child")

    said, told_by_child = in_child(child).result()
    assert said == []
    side = sides.pop()
    side.log(20)
    told = side.told
    check(read(store), told + told_by_child)
    assert len(read(store)) == len(told) + len(told_by_child)
    del side
    assert len(collect()) == 1


@pytest.mark.slow
@pytest.mark.timeout(soak(120, 1800))
@pytest.mark.parametrize("call", CALLS)
def test_collected_at_every_bytecode_of_a_call(tmp_path: pathlib.Path, small: None, call: str) -> None:
    prepared, operate = CALLS[call]
    number, step = 1, soak({"append": 13}.get(call, 211), 11)
    said: list[str] = []
    fired = True
    while fired:
        store = tmp_path / str(number)
        told = log_and_drop(store)
        with connect(store) as client:
            side = Side(acquire(client), "kept")
            side.log(prepared)
            with Interruption(lambda said=said: said.extend(collect()), at(number)) as interruption:
                operate(side)
            if call != "close":
                side.log(20)
            fired = bool(interruption.fired)
            assert len(said) == fired
            check(read(store), told + side.told)
            assert len(read(store)) == len(told + side.told)
        said.clear()
        number += step
    assert len(collect()) == 1  # what the last turn, which was not interrupted, has dropped
    collect()  # what hung on that
    assert not below(tmp_path)


def test_a_program_that_ends_without_releasing_loses_nothing(tmp_path: pathlib.Path) -> None:
    store = tmp_path / "store"
    code = (
        "import sys; from tests.store.writing import acquire, connect\n"
        "client = connect(sys.argv[1]); handle = acquire(client)\n"
        "[handle.log_event(str(number)) for number in range(100)]"
    )
    done = processes.run([sys.executable, "-Walways", "-c", code, str(store)], timeout=60)
    assert (done.returncode, done.stderr) == (0, ""), processes.describe(done)
    assert [event.record for event in read(store)] == [str(number).encode() for number in range(100)]
    assert [path.suffix for path in files(store)] == [".log"]
