"""Somebody deletes a store, a story or a segment under a living writer: nothing of it is silent."""

import logging
import os
import pathlib
import shutil
from collections.abc import Callable

import pytest

from py_chronolog_client.client import Client, StoryHandle
from tests.store.writing import CHRONICLE, STORY, acquire, connect, files, read, small

__all__ = ["small"]

SENTENCE = "somebody has deleted this file: all events of this client are lost"


@pytest.fixture
def store(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "store"


@pytest.fixture(params=["process", "node"])
def client(store: pathlib.Path, request: pytest.FixtureRequest) -> Client:
    return connect(store, request.param)


def delete_store(store: pathlib.Path) -> None:
    shutil.rmtree(store)


def delete_story(store: pathlib.Path) -> None:
    shutil.rmtree(files(store, "*.log")[0].parent)


def delete_segment(store: pathlib.Path) -> None:
    files(store, "*.log")[0].unlink()


def log_until_refused(handle: StoryHandle) -> int:
    """Log until a tail is full, and return how many events were accepted."""
    for count in range(1000):
        if not handle.log_event(f"late {count}"):
            return count
    raise AssertionError("nothing is refused")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if SENTENCE in record.getMessage()]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("delete", [delete_store, delete_story, delete_segment])
def test_it_is_noticed_when_the_tail_is_full(
    store: pathlib.Path,
    client: Client,
    delete: Callable[[pathlib.Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    handle = acquire(client)
    for number in range(40):  # some in blocks, some in the tail
        assert handle.log_event(f"{number}")
    delete(store)
    late = log_until_refused(handle)
    assert handle.log_events(["a", "b"]) == 0
    statistics = handle.statistics()
    assert statistics.logged == 40 + late
    assert statistics.lost == {"deleted": 40 + late + 3}
    assert len(warnings(caplog)) == 1
    handle.flush()
    assert client.Disconnect() == 0
    assert handle.statistics().lost == {"deleted": 40 + late + 3}
    assert len(warnings(caplog)) == 1, "said once"
    assert "stay in the tail" not in caplog.text
    assert files(store) == []


@pytest.mark.parametrize("delete", [delete_store, delete_story, delete_segment])
@pytest.mark.parametrize("in_blocks", [True, False])
def test_it_is_noticed_at_a_flush(
    store: pathlib.Path,
    client: Client,
    delete: Callable[[pathlib.Path], None],
    in_blocks: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    handle = acquire(client)
    assert handle.log_event("an event")
    if in_blocks:
        handle.flush()
    delete(store)
    assert handle.statistics().lost == {}
    handle.flush()
    assert handle.statistics().lost == {"deleted": 1}
    assert len(warnings(caplog)) == 1
    assert client.Disconnect() == 0


@pytest.mark.parametrize("delete", [delete_store, delete_story, delete_segment])
@pytest.mark.parametrize("in_blocks", [True, False])
def test_it_is_noticed_at_the_close(
    store: pathlib.Path,
    client: Client,
    delete: Callable[[pathlib.Path], None],
    in_blocks: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    handle = acquire(client)
    assert handle.log_event("an event")
    if in_blocks:
        handle.flush()
    delete(store)
    assert client.Disconnect() == 0
    assert handle.statistics().lost == {"deleted": 1}
    assert len(warnings(caplog)) == 1
    assert files(store) == []


def test_a_tail_elsewhere_is_not_left_behind(
    store: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tails = tmp_path / "tails"
    tails.mkdir()
    monkeypatch.setenv("CHRONOLOG_TAIL_DIR", str(tails))
    client = connect(store)
    handle = acquire(client)
    assert handle.log_event("an event")
    assert len(os.listdir(tails)) == 1
    delete_store(store)
    client.Disconnect()
    assert os.listdir(tails) == []


def test_a_new_acquisition_writes_where_events_are_found(store: pathlib.Path, client: Client) -> None:
    acquire(client).log_event("gone")
    delete_story(store)
    assert client.ReleaseStory(CHRONICLE, STORY) == 0
    handle = acquire(client)
    assert handle.log_event("here")
    handle.flush()
    assert [event.record for event in read(store)] == [b"here"]
    assert handle.statistics().lost == {}
    assert client.Disconnect() == 0


def test_a_lost_tail_alone_costs_nothing(
    store: pathlib.Path, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    handle = acquire(client)
    assert handle.log_event("an event")
    files(store, "*.tail")[0].unlink()
    assert client.Disconnect() == 0
    assert handle.statistics().lost == {}
    assert [event.record for event in read(store)] == [b"an event"]
    assert caplog.text == ""


def test_other_clients_are_unaffected(store: pathlib.Path, client: Client) -> None:
    handle, other = acquire(client), connect(store)
    assert handle.log_event("deleted")
    segment = files(store, "*.log")[0]
    kept = acquire(other)
    assert kept.log_event("kept")
    segment.unlink()
    handle.flush()
    kept.flush()
    assert (handle.statistics().lost, kept.statistics().lost) == ({"deleted": 1}, {})
    other.Disconnect()
    client.Disconnect()
    assert [event.record for event in read(store)] == [b"kept"]
