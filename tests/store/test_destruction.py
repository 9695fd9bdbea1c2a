"""What those see who read or acquire a story at the moment when somebody destroys it."""

from __future__ import annotations

import errno
import os
import pathlib
from collections.abc import Callable
from unittest import mock

import pytest

from py_chronolog_client.engine.base import ScanReport, WriterOptions
from py_chronolog_client.engine.embedded import EmbeddedEngine
from py_chronolog_client.errors import NotFoundError
from py_chronolog_client.store import acquisition
from py_chronolog_client.store.segment import Segment
from py_chronolog_client.testing.manual_clock import ManualClock
from tests.store.writing import CHRONICLE, STORY, files

CLOCK = ManualClock()


@pytest.fixture
def engine(tmp_path: pathlib.Path) -> EmbeddedEngine:
    engine = EmbeddedEngine(tmp_path / "store")
    engine.create_chronicle(CHRONICLE, {})
    log(engine, 1)
    log(engine, 2)
    return engine


def log(engine: EmbeddedEngine, client_id: int) -> None:
    writer = engine.open_writer(CHRONICLE, STORY, {}, WriterOptions(client_id, CLOCK))
    writer.log_event(f"of {client_id}")
    writer.close()


def after_the_listing(
    name: str, action: Callable[[], object]
) -> mock._patch[Callable[[pathlib.Path], object]]:
    """Let `action` happen once, between a listing of the story's directory and what is done with it."""
    listing, pending = getattr(acquisition, name), [action]

    def listed(directory: pathlib.Path) -> object:
        found = listing(directory)
        if pending:
            pending.pop()()
        return found

    return mock.patch.object(acquisition, name, listed)


def scan(engine: EmbeddedEngine) -> tuple[list[bytes], ScanReport]:
    report = ScanReport()
    pages = engine.scan(CHRONICLE, STORY, verify=True, report=report)
    return [record for page in pages for record in page.records()], report


def test_a_replay_of_a_story_that_is_destroyed_meanwhile(engine: EmbeddedEngine) -> None:
    with (
        after_the_listing("segments", lambda: engine.destroy_story(CHRONICLE, STORY)),
        pytest.raises(NotFoundError),
    ):
        scan(engine)


def test_a_replay_of_a_story_that_is_destroyed_and_made_anew_meanwhile(engine: EmbeddedEngine) -> None:
    def again() -> None:
        engine.destroy_story(CHRONICLE, STORY)
        log(engine, 3)

    with after_the_listing("segments", again):
        try:
            found, report = scan(engine)
        except NotFoundError:
            return
    assert found in ([], [b"of 3"]), "its inode was used again: it is the new story, or empty"
    assert not report.damages


def test_a_client_that_gives_up_meanwhile_is_no_damage(engine: EmbeddedEngine) -> None:
    with after_the_listing(
        "segments", lambda: [path.unlink() for path in files(engine.directory, f"{2:016x}.*")]
    ):
        found, report = scan(engine)
    assert (found, report.damages) == ([b"of 1"], [])


def test_a_segment_that_is_missing_for_good_is_damage(engine: EmbeddedEngine) -> None:
    (path,) = files(engine.directory, f"{2:016x}.log")
    path.rename(path.with_name(f"{2:016x}.3.log"))
    found, report = scan(engine)
    assert found[0] == b"of 1"
    assert [damage.reason for damage in report.damages][:3] == ["this segment is missing"] * 3


def test_clients_of_a_story_that_is_destroyed_meanwhile(engine: EmbeddedEngine) -> None:
    with (
        after_the_listing("segments", lambda: engine.destroy_story(CHRONICLE, STORY)),
        pytest.raises(NotFoundError),
    ):
        engine.clients(CHRONICLE, STORY)


def test_a_story_that_is_destroyed_while_it_is_made_is_made_again(engine: EmbeddedEngine) -> None:
    make, pending = acquisition.await_destroyers, [True]

    def awaited(directories: list[pathlib.Path], patience_s: float) -> None:
        if pending:
            pending.pop()
            engine.destroy_story(CHRONICLE, "other")
        make(directories, patience_s)

    with mock.patch.object(acquisition, "await_destroyers", awaited):
        writer = engine.open_writer(CHRONICLE, "other", {}, WriterOptions(9, CLOCK))
    assert not pending
    assert writer.log_event("here")
    writer.close()


def test_a_segment_that_is_deleted_while_it_is_opened_is_made_again(engine: EmbeddedEngine) -> None:
    made, pending = Segment.__init__, [True]

    def deleted(self: Segment, *arguments: object, **options: object) -> None:
        made(self, *arguments, **options)  # type: ignore[arg-type]
        if pending:
            pending.pop()
            engine.destroy_story(CHRONICLE, STORY)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(self.path))

    with mock.patch.object(Segment, "__init__", deleted):
        log(engine, 7)
    assert scan(engine)[0] == [b"of 7"]


def test_without_its_chronicle_no_story_is_made_again(engine: EmbeddedEngine) -> None:
    engine.destroy_chronicle(CHRONICLE)
    with pytest.raises(NotFoundError, match=r"the chronicle 'c[a-z]*' does not exist"):
        engine.open_writer(CHRONICLE, STORY, {}, WriterOptions(9, CLOCK))
