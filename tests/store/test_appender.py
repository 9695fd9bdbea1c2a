"""Who waits for the next event of a writer is told of it once, whatever way the event takes."""

import pathlib
import sys
from collections.abc import Callable

import pytest

from py_chronolog_client.clock import SystemClock
from py_chronolog_client.engine.base import WriterOptions
from py_chronolog_client.engine.embedded import EmbeddedEngine
from py_chronolog_client.store.appender import Appender
from tests.store.writing import CHRONICLE, STORY, small  # noqa: F401  `small` is a fixture
from tests.support import processes
from tests.support.launch import python_argv

CLIENT_ID = 7


def opened(directory: pathlib.Path) -> tuple[EmbeddedEngine, Appender]:
    engine = EmbeddedEngine(directory / "store")
    engine.create_chronicle(CHRONICLE, {})
    return engine, engine.open_writer(CHRONICLE, STORY, {}, WriterOptions(CLIENT_ID, SystemClock()))


WAYS: dict[str, Callable[[Appender], object]] = {
    "text": lambda writer: writer.log_event("text"),
    "bytes": lambda writer: writer.log_event(b"bytes"),
    "by the other name": lambda writer: writer.log_event(log_string="text"),
    "a batch": lambda writer: writer.log_events(["one", "two"]),
    "what fits no tail": lambda writer: writer.log_event("x" * 2**20),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_bell_rings_once_when_the_event_is_there(tmp_path: pathlib.Path, way: str) -> None:
    engine, writer = opened(tmp_path)
    seen: list[int] = []
    for number in range(1, 4):
        writer.ring(lambda: seen.append(engine.snapshot(CHRONICLE, STORY)[CLIENT_ID]))
        assert len(seen) == number - 1
        WAYS[way](writer)
        assert len(seen) == number
        assert seen[-1] == writer.statistics().logged, "it rang before the event was there"
        WAYS[way](writer)
        assert len(seen) == number, "it rang twice"
    writer.close()
    engine.close()


@pytest.mark.usefixtures("small")
def test_no_event_is_lost_or_late_by_a_bell_that_is_hung_up_again_and_again(tmp_path: pathlib.Path) -> None:
    engine, writer = opened(tmp_path)
    rung: list[int] = []
    for number in range(300):
        writer.ring(lambda: rung.append(1))
        assert writer.log_event(str(number))
        assert len(rung) == number + 1
    writer.close()
    pages = list(engine.scan(CHRONICLE, STORY))
    assert [record for page in pages for record in page.records()] == [b"%d" % n for n in range(300)]
    engine.close()


def test_leaving_rings_the_bell(tmp_path: pathlib.Path) -> None:
    engine, writer = opened(tmp_path)
    rung: list[int] = []
    writer.ring(lambda: rung.append(1))
    writer.close()
    assert rung == [1]
    assert writer.log_event("too late") == 0
    engine.close()


def test_a_forked_child_does_not_ring_its_parents_bell(tmp_path: pathlib.Path) -> None:
    code = f"""
        import os, pathlib
        from tests.store.test_appender import opened
        engine, writer = opened(pathlib.Path({str(tmp_path)!r}))
        writer.ring(lambda: print("rung", flush=True))
        child = os.fork()
        writer.log_event("an event of " + ("the parent" if child else "the child"))
        if child:
            assert os.waitpid(child, 0)[1] == 0
    """
    done = processes.run([sys.executable, *python_argv("-c", code)], timeout=60)
    assert done.returncode == 0, processes.describe(done)
    assert done.stdout.split() == ["rung"]
