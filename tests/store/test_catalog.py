import io
import logging
import os
import pathlib
import random
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from py_chronolog_client.errors import (
    AcquiredError,
    ChronicleExistsError,
    DamageError,
    InvalidArgumentError,
    NotAStoreError,
    NotAuthorizedError,
    NotFoundError,
    StoreError,
)
from py_chronolog_client.store import acquisition, files, owner
from py_chronolog_client.store.catalog import MAX_META_BYTES, Catalog
from py_chronolog_client.store.owner import LEASE_S, describe_process
from py_chronolog_client.store.records import MAX_RECORD_BLOCK_BYTES, read_client_record
from py_chronolog_client.store.root import StoreRoot, name_hash
from tests.store.holding import (
    DEADLINE_S,
    ELSEWHERE,
    NOBODY,
    acquire,
    as_nobody,
    close_tail,
    error_of,
    has_files,
    hold,
    interrupted,
    killed,
    make_segment,
    make_tail,
    open_catalog,
    race,
    release,
    running,
)
from tests.support.counts import soak

NAMES = [
    "plain",
    "with/slash",
    "../..",
    ".",
    "..",
    ".hidden",
    "nul\0inside",
    " ",
    "\n",
    "meta",
    "x" * 5000,
    "Zeitreihe \N{SNOWMAN}",
    "cafe\N{COMBINING ACUTE ACCENT}",
    "caf\N{LATIN SMALL LETTER E WITH ACUTE}",
]


@pytest.fixture
def catalog(tmp_path: pathlib.Path) -> Catalog:
    return open_catalog(tmp_path / "store", patience_s=0.02)


@pytest.fixture
def story(catalog: Catalog) -> pathlib.Path:
    """The directory of the story "s" of the chronicle "c"."""
    catalog.create_chronicle("c", {})
    return catalog.ensure_story("c", "s", {})


def expire(path: pathlib.Path) -> None:
    os.utime(path)
    time_ns = path.stat().st_mtime_ns - int((LEASE_S + 1) * 1e9)
    os.utime(path, ns=(time_ns, time_ns))


# -- chronicles and stories ---


def test_a_chronicle_is_what_it_was_created_as(catalog: Catalog) -> None:
    assert catalog.chronicles() == []
    catalog.create_chronicle("c", {"tier": "hot", "": ""})
    assert catalog.chronicles() == ["c"]
    assert catalog.chronicle_attributes("c") == {"tier": "hot", "": ""}
    with pytest.raises(ChronicleExistsError, match="'c' exists already"):
        catalog.create_chronicle("c", {"other": "attributes"})
    assert catalog.chronicle_attributes("c") == {"tier": "hot", "": ""}
    assert open_catalog(catalog.root.path).chronicles() == ["c"]


def test_a_story_keeps_the_attributes_of_its_first_acquisition(catalog: Catalog) -> None:
    catalog.create_chronicle("c", {})
    assert catalog.stories("c") == []
    directory = catalog.ensure_story("c", "s", {"a": "1"})
    assert catalog.ensure_story("c", "s", {"a": "2"}) == catalog.story_directory("c", "s") == directory
    assert catalog.story_attributes("c", "s") == {"a": "1"}
    assert catalog.stories("c") == ["s"]


def test_when_a_story_was_created(tmp_path: pathlib.Path) -> None:
    """By the clock that the catalog was given; whoever makes the story again makes another."""
    times = iter(range(100, 200))
    catalog = Catalog(StoreRoot.open(tmp_path / "store", create=True), clock_ns=lambda: next(times))
    catalog.create_chronicle("c", {})
    with pytest.raises(NotFoundError):
        catalog.story_created_ns("c", "s")
    catalog.ensure_story("c", "s", {})
    first = catalog.story_created_ns("c", "s")
    catalog.ensure_story("c", "s", {})
    assert catalog.story_created_ns("c", "s") == first
    catalog.destroy_story("c", "s")
    catalog.ensure_story("c", "s", {})
    assert 200 > catalog.story_created_ns("c", "s") > first >= 100


def test_what_is_not_there_is_not_found(catalog: Catalog) -> None:
    catalog.create_chronicle("c", {})
    for action in (
        lambda: catalog.chronicle_attributes("no"),
        lambda: catalog.stories("no"),
        lambda: catalog.ensure_story("no", "s", {}),
        lambda: catalog.story_directory("no", "s"),
        lambda: catalog.story_attributes("no", "s"),
        lambda: catalog.destroy_chronicle("no"),
        lambda: catalog.destroy_story("no", "s"),
    ):
        with pytest.raises(NotFoundError, match="the chronicle 'no' does not exist"):
            action()
    for action in (
        lambda: catalog.story_directory("c", "no"),
        lambda: catalog.story_attributes("c", "no"),
        lambda: catalog.destroy_story("c", "no"),
    ):
        with pytest.raises(NotFoundError, match="the story 'no' of the chronicle 'c' does not exist"):
            action()
    assert catalog.stories("c") == []


def test_names_of_every_kind_are_kept(catalog: Catalog) -> None:
    for name in NAMES:
        catalog.create_chronicle(name, {})
    catalog = open_catalog(catalog.root.path)
    assert catalog.chronicles() == sorted(NAMES)
    for name in NAMES:
        catalog.ensure_story("plain", name, {"name": name})
    assert catalog.stories("plain") == sorted(NAMES)
    for name in NAMES:
        assert catalog.story_attributes("plain", name) == {"name": name}
        catalog.destroy_story("plain", name)
        catalog.destroy_chronicle(name) if name != "plain" else None
    assert (catalog.stories("plain"), catalog.chronicles()) == ([], ["plain"])


@pytest.mark.parametrize("name", ["", "\ud800", 5, None, b"bytes"])
def test_impossible_names(catalog: Catalog, name: Any) -> None:
    catalog.create_chronicle("c", {})
    for action in (
        lambda: catalog.create_chronicle(name, {}),
        lambda: catalog.ensure_story(name, "s", {}),
        lambda: catalog.ensure_story("c", name, {}),
        lambda: catalog.story_directory("c", name),
        lambda: catalog.destroy_story("c", name),
        lambda: catalog.destroy_chronicle(name),
        lambda: catalog.stories(name),
    ):
        with pytest.raises(InvalidArgumentError if isinstance(name, str) else TypeError):
            action()


@pytest.mark.parametrize(
    "attributes", [{1: "x"}, {"x": 1}, {"x": b""}, {"x": None}, None, [("a", "b")], "ab"]
)
def test_attributes_are_text_by_text(catalog: Catalog, attributes: Any) -> None:
    with pytest.raises(TypeError, match="dict of str to str"):
        catalog.create_chronicle("c", attributes)
    assert catalog.chronicles() == []


def test_attributes_have_limits(catalog: Catalog) -> None:
    with pytest.raises(InvalidArgumentError, match="over the limit"):
        catalog.create_chronicle("c", {"x": "x" * MAX_META_BYTES})
    with pytest.raises(InvalidArgumentError, match="no Unicode text"):
        catalog.create_chronicle("c", {"x": "\udfff"})
    catalog.create_chronicle("c", {"x": "x" * (MAX_META_BYTES - 100)})
    assert len(catalog.chronicle_attributes("c")["x"]) == MAX_META_BYTES - 100


def test_everything_has_the_mode_of_the_store(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHRONOLOG_MODE", "0640")
    catalog = open_catalog(tmp_path / "store")
    monkeypatch.delenv("CHRONOLOG_MODE")
    before = os.umask(0o077)
    try:
        catalog.create_chronicle("c", {})
        catalog.ensure_story("c", "s", {})
    finally:
        os.umask(before)
    modes = {path.is_dir(): path.stat().st_mode & 0o7777 for path in (tmp_path / "store").rglob("*")}
    assert modes == {True: 0o2750, False: 0o640}


def test_what_dead_creators_left_is_ignored(catalog: Catalog, story: pathlib.Path) -> None:
    for place in (catalog.root.chronicles, story.parent):
        (place / ".tmp-0123").mkdir()
        (place / ".tmp-0123" / "meta").write_bytes(b"half")
        (place / "README").touch()
    assert (catalog.chronicles(), catalog.stories("c")) == (["c"], ["s"])
    catalog.destroy_chronicle("c")


def test_a_creator_that_fails_leaves_nothing(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError, match="Input/output error"):
        catalog.create_chronicle("c", {})
    assert os.listdir(catalog.root.chronicles) == []


# -- damage ---


@pytest.mark.parametrize(
    ("meta", "reason"),
    [
        (None, "missing"),
        (b"", "no msgpack map"),
        (b"\xc1", "no msgpack map"),
        (b"\xdf\xff\xff\xff\xff", "no msgpack map"),
        (b"\x81" * 5000, "no msgpack map"),
        (msgpack.packb([1]), "no msgpack map"),
        (msgpack.packb({"name": "other", "attributes": {}, "created_ns": 1}), "not the one"),
        (msgpack.packb({"name": 7, "attributes": {}, "created_ns": 1}), "not the one"),
        (msgpack.packb({"name": "", "attributes": {}, "created_ns": 1}), "not the one"),
        (msgpack.packb({"name": "s", "attributes": [], "created_ns": 1}), "no map of text"),
        (msgpack.packb({"name": "s", "attributes": {"a": 1}, "created_ns": 1}), "no map of text"),
        (msgpack.packb({"name": "s", "attributes": {}}), "time of its creation"),
        (b"\x90" * (MAX_META_BYTES + 1), "longer than"),
    ],
)
def test_damaged_meta_is_named_and_left_out_of_listings(
    catalog: Catalog, story: pathlib.Path, caplog: pytest.LogCaptureFixture, meta: bytes | None, reason: str
) -> None:
    catalog.ensure_story("c", "sound", {})
    (story / "meta").unlink()
    if meta is not None:
        (story / "meta").write_bytes(meta)
    with pytest.raises(DamageError, match=reason) as caught:
        catalog.story_attributes("c", "s")
    assert caught.value.path == str(story / "meta")
    with caplog.at_level(logging.WARNING, logger="py_chronolog_client"):
        for _ in range(3):
            assert catalog.stories("c") == ["sound"]
    assert [str(story / "meta") in record.getMessage() for record in caplog.records] == [True]
    catalog.destroy_story("c", "s")
    assert not story.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_meta_that_may_not_be_read_is_named_and_left_out_of_listings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHRONOLOG_MODE", "0644")
    with tempfile.TemporaryDirectory() as name:  # not below a directory that only root may search
        pathlib.Path(name).chmod(0o755)
        catalog = open_catalog(pathlib.Path(name) / "store")
        catalog.create_chronicle("c", {})
        closed = catalog.ensure_story("c", "closed", {}) / "meta"
        catalog.ensure_story("c", "open", {})
        closed.chmod(0o600)

        def listing() -> list[str]:
            said = io.StringIO()
            handler = logging.StreamHandler(said)
            logging.getLogger("py_chronolog_client").addHandler(handler)
            return [*catalog.stories("c"), *said.getvalue().splitlines()]

        assert as_nobody(listing) == ["open", f"left out of a listing: {closed}: Permission denied"]


def test_damaged_chronicles_are_left_out_and_can_be_destroyed(
    catalog: Catalog, caplog: pytest.LogCaptureFixture
) -> None:
    catalog.create_chronicle("c", {})
    meta = catalog.root.chronicles / name_hash("c") / "meta"
    meta.unlink()
    meta.mkdir()
    with pytest.raises(DamageError, match="no regular file"):
        catalog.chronicle_attributes("c")
    assert catalog.chronicles() == []
    assert "left out of a listing" in caplog.text
    with pytest.raises(ChronicleExistsError):
        catalog.create_chronicle("c", {})
    catalog.destroy_chronicle("c")
    catalog.create_chronicle("c", {})


# -- clients and holders ---


def test_clients_are_told_by_their_segments(catalog: Catalog, story: pathlib.Path) -> None:
    for name in [
        "00000000000000ff.log",
        "00000000000000ff.1.log",
        "0000000000000001.12.log",
        "7fffffffffffffff.log",
        ".0000000000000002.log",
        "0000000000000003.tail",
        "00000000000000FF.log",
        "0000000000000004.0.log",
        "0000000000000005.01.log",
        "0000000000000006.log.bak",
        "6.log",
        "00000000000000007.log",
        "000000000000000\N{ARABIC-INDIC DIGIT EIGHT}.log",
        "notes.txt",
    ]:
        (story / name).touch()
    assert catalog.clients(story) == [1, 255, 2**63 - 1]
    with pytest.raises(NotFoundError):
        catalog.clients(story / "missing")


def test_a_holder_describes_itself(catalog: Catalog, story: pathlib.Path) -> None:
    assert catalog.holders(story) == []
    hold(story, 9)
    hold(story, 7, {**describe_process(), "rank": 3})
    seven, nine = catalog.holders(story)
    assert seven == {**describe_process(), "type": "client", "client_id": 7, "rank": 3}
    assert nine["client_id"] == 9


def test_a_closed_tail_is_nobodys(catalog: Catalog, story: pathlib.Path) -> None:
    hold(story, 7)
    close_tail(story, 7)
    assert catalog.holders(story) == []


def test_a_segment_without_a_tail_is_nobodys(catalog: Catalog, story: pathlib.Path) -> None:
    make_segment(story, 7)
    assert catalog.holders(story) == []
    assert catalog.clients(story) == [7]


def test_the_newest_segment_says_who_the_owner_is(catalog: Catalog, story: pathlib.Path) -> None:
    hold(story, 7, {**describe_process(), "pid_start": 1})
    assert catalog.holders(story) == []
    make_segment(story, 8).rename(story / f"{7:016x}.2.log")
    assert catalog.holders(story) == [], "that is another client's record"
    (story / f"{7:016x}.log").rename(story / f"{7:016x}.1.log")
    make_segment(story, 7).rename(story / f"{7:016x}.2.log")
    assert [holder["pid"] for holder in catalog.holders(story)] == [os.getpid()]


def test_the_lease_is_that_of_the_segment_touched_last(catalog: Catalog, story: pathlib.Path) -> None:
    hold(story, 7, {**describe_process(), **ELSEWHERE})
    first = story / f"{7:016x}.log"
    second = story / f"{7:016x}.1.log"
    shutil.copy(first, second)
    assert len(catalog.holders(story)) == 1
    expire(second)
    assert len(catalog.holders(story)) == 1
    expire(first)
    assert catalog.holders(story) == []
    os.utime(second)
    assert len(catalog.holders(story)) == 1


@pytest.mark.parametrize("damage", [None, b"", bytes(4096), "cut", "flip"])
def test_an_owner_that_cannot_be_read_has_the_lease_of_its_tail_or_segment(
    catalog: Catalog, story: pathlib.Path, damage: bytes | str | None
) -> None:
    tail = make_tail(story, 7)
    segment = make_segment(story, 7, {**describe_process(), "pid_start": 1})
    assert catalog.holders(story) == []
    data = segment.read_bytes()
    segment.unlink()
    if damage is not None:
        data = (
            data[:-70]
            if damage == "cut"
            else data[:140] + b"?" + data[141:]
            if damage == "flip"
            else bytes(0)
        )
        segment.write_bytes(damage if isinstance(damage, bytes) else data)
    assert catalog.holders(story) == [{"client_id": 7}]
    with pytest.raises(AcquiredError, match="client 0000000000000007, an unknown process"):
        catalog.destroy_story("c", "s")
    for path in (tail, segment):
        if path.exists():
            expire(path)
    assert catalog.holders(story) == []
    catalog.destroy_story("c", "s")


@pytest.mark.parametrize("damage", [b"", bytes(8192), b"x" * 100])
def test_a_tail_that_cannot_be_read_is_held_while_its_owner_lives(
    catalog: Catalog, story: pathlib.Path, damage: bytes
) -> None:
    hold(story, 7)
    close_tail(story, 7)
    (story / f"{7:016x}.tail").write_bytes(damage)
    assert len(catalog.holders(story)) == 1
    make_segment(story, 7, {**describe_process(), "pid_start": 1})
    assert catalog.holders(story) == []


def test_tails_may_be_elsewhere(catalog: Catalog, story: pathlib.Path, tmp_path: pathlib.Path) -> None:
    make_segment(story, 7)
    tail = make_tail(story, 7)
    tail.rename(tmp_path / "tail")
    tail.symlink_to(tmp_path / "tail")
    assert len(catalog.holders(story)) == 1
    (tmp_path / "tail").rename(tmp_path / "on another machine")
    assert len(catalog.holders(story)) == 1
    (tmp_path / "on another machine").rename(tmp_path / "tail")
    make_tail(tmp_path, 7).rename(tmp_path / "tail")
    close_tail_at = tmp_path / f"{7:016x}.tail"
    (tmp_path / "tail").rename(close_tail_at)
    close_tail(tmp_path, 7)
    close_tail_at.rename(tmp_path / "tail")
    assert catalog.holders(story) == []
    catalog.destroy_story("c", "s")
    assert (tmp_path / "tail").exists()


def test_odd_files_do_not_block(catalog: Catalog, story: pathlib.Path) -> None:
    os.mkfifo(story / f"{7:016x}.tail")
    os.mkfifo(story / f"{7:016x}.log")
    (story / f"{8:016x}.tail").mkdir()
    assert [holder["client_id"] for holder in catalog.holders(story)] == [7, 8]


def test_client_records_are_bounded(tmp_path: pathlib.Path) -> None:
    path = make_segment(tmp_path, 7)
    record = read_client_record(path, 7)
    assert record is not None
    assert record["pid"] == os.getpid()
    assert read_client_record(path, 8) is None
    assert read_client_record(tmp_path, 7) is None
    make_segment(tmp_path, 7, {"program": "x" * MAX_RECORD_BLOCK_BYTES})
    assert read_client_record(path, 7) is None


# -- destroying ---


def test_a_story_is_destroyed_with_its_events(catalog: Catalog, story: pathlib.Path) -> None:
    hold(story, 7)
    with pytest.raises(AcquiredError) as caught:
        catalog.destroy_story("c", "s")
    for word in ("the story 's'", "client 0000000000000007", f"process {os.getpid()}", "release it there"):
        assert word in str(caught.value)
    assert sorted(os.listdir(story)) == [f"{7:016x}.log", f"{7:016x}.tail", "meta"]
    release(story, 7)
    catalog.destroy_story("c", "s")
    assert catalog.stories("c") == []
    assert os.listdir(catalog.root.trash) == []
    with pytest.raises(NotFoundError):
        catalog.destroy_story("c", "s")


@pytest.mark.usefixtures("story")
def test_a_chronicle_is_destroyed_with_its_stories(catalog: Catalog) -> None:
    other = catalog.ensure_story("c", "other", {})
    hold(other, 7)
    with pytest.raises(AcquiredError, match="the chronicle 'c' is acquired by client 0000000000000007"):
        catalog.destroy_chronicle("c")
    assert catalog.stories("c") == ["other", "s"]
    close_tail(other, 7)
    catalog.destroy_chronicle("c")
    assert catalog.chronicles() == []
    assert os.listdir(catalog.root.trash) == []


def test_the_story_of_a_killed_client_can_be_destroyed(catalog: Catalog, story: pathlib.Path) -> None:
    code = """
        import pathlib, sys, time
        from tests.store.holding import hold
        hold(pathlib.Path(sys.argv[1]), 7)
        print("ready", flush=True)
        time.sleep(600)
    """
    with running(code, story) as process:
        with pytest.raises(AcquiredError, match=f"process {process.pid} on "):
            catalog.destroy_story("c", "s")
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(AcquiredError):
            catalog.destroy_chronicle("c")
        process.kill()
        process.wait()
        catalog.destroy_story("c", "s")
    assert not story.exists()


@pytest.mark.usefixtures("story")
def test_what_dead_destroyers_left_is_swept(catalog: Catalog, tmp_path: pathlib.Path) -> None:
    catalog.root.ensure_directory(catalog.root.trash)
    for name in (files.unique_name(), "something else"):
        (catalog.root.trash / name / "deep" / "down").mkdir(parents=True)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    link = catalog.root.trash / files.unique_name()
    link.symlink_to(tmp_path / "precious")
    catalog.destroy_story("c", "s")
    assert set(os.listdir(catalog.root.trash)) == {"something else", link.name}
    assert (tmp_path / "precious" / "file").exists()


def test_the_trash_is_not_a_link_to_somewhere(
    catalog: Catalog, story: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    precious = tmp_path / "elsewhere" / files.unique_name()
    precious.mkdir(parents=True)
    catalog.root.trash.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError):
        catalog.destroy_story("c", "s")
    assert precious.is_dir()
    assert story.is_dir()


def test_nothing_is_destroyed_where_no_marker_stands(catalog: Catalog, story: pathlib.Path) -> None:
    (catalog.root.path / "CHRONOLOG").unlink()
    with pytest.raises(NotAStoreError, match="nothing is removed"):
        catalog.destroy_story("c", "s")
    with pytest.raises(NotAStoreError, match="nothing is removed"):
        catalog.destroy_chronicle("c")
    assert story.is_dir()


# -- the handshake ---


def claim(directory: pathlib.Path, description: dict[str, Any] | None) -> pathlib.Path:
    """Make the claim of a destroyer."""
    path = directory / "destroying" / files.unique_name()
    path.parent.mkdir()
    path.write_bytes(b"" if description is None else msgpack.packb(description))
    return path


PLACES: list[Callable[[pathlib.Path], pathlib.Path]] = [
    lambda story: story,
    lambda story: story.parent.parent,
]
in_both_places = pytest.mark.parametrize("place", PLACES, ids=["story", "chronicle"])


def test_an_acquisition_needs_both_files_where_the_path_leads(catalog: Catalog, story: pathlib.Path) -> None:
    with pytest.raises(NotFoundError, match="acquire it again"):
        catalog.confirm_acquisition(story, 7)
    make_segment(story, 7)
    with pytest.raises(NotFoundError):
        catalog.confirm_acquisition(story, 7)
    make_tail(story, 7)
    catalog.confirm_acquisition(story, 7)
    story.rename(story.with_name("away"))
    with pytest.raises(NotFoundError):
        catalog.confirm_acquisition(story, 7)
    catalog.ensure_story("c", "s", {})
    make_tail(story, 7)
    with pytest.raises(NotFoundError):
        catalog.confirm_acquisition(story, 7)


@in_both_places
def test_a_living_destroyer_keeps_clients_out(
    catalog: Catalog, story: pathlib.Path, place: Callable[[pathlib.Path], pathlib.Path]
) -> None:
    hold(story, 7)
    path = claim(place(story), describe_process())
    with pytest.raises(NotFoundError, match=f"process {os.getpid()} on .* is destroying it"):
        catalog.confirm_acquisition(story, 7)
    assert path.exists()
    assert isinstance(acquisition.living_destroyer(place(story)), dict)


@in_both_places
def test_a_client_waits_for_a_destroyer_that_gives_up(
    catalog: Catalog, story: pathlib.Path, place: Callable[[pathlib.Path], pathlib.Path]
) -> None:
    catalog = open_catalog(catalog.root.path, patience_s=DEADLINE_S)
    hold(story, 7)
    path = claim(place(story), describe_process())
    timer = threading.Timer(0.02, path.unlink)
    timer.start()
    catalog.confirm_acquisition(story, 7)
    assert not path.exists()
    timer.join()


@in_both_places
@pytest.mark.parametrize(
    "dead", [{**describe_process(), "pid_start": 1}, {"boot_id": ELSEWHERE["boot_id"]}, {}, None]
)
def test_a_dead_destroyer_is_removed_by_whoever_meets_it(
    catalog: Catalog,
    story: pathlib.Path,
    place: Callable[[pathlib.Path], pathlib.Path],
    dead: dict[str, Any] | None,
) -> None:
    hold(story, 7)
    path = claim(place(story), dead)
    expire(path)
    catalog.confirm_acquisition(story, 7)
    assert not path.parent.exists()
    release(story, 7)
    expire(claim(place(story), dead))
    catalog.destroy_story("c", "s")
    catalog.destroy_chronicle("c")


def test_an_empty_claim_and_odd_files_in_it_are_nobodys(catalog: Catalog, story: pathlib.Path) -> None:
    (story / "destroying").mkdir()
    (story / "destroying" / ".clock-0123").touch()
    hold(story, 7)
    catalog.confirm_acquisition(story, 7)
    (story / "destroying").mkdir()
    release(story, 7)
    catalog.destroy_story("c", "s")


def test_a_second_destroyer_waits_and_then_says_so(catalog: Catalog, story: pathlib.Path) -> None:
    path = claim(story, describe_process())
    with pytest.raises(AcquiredError, match=f"process {os.getpid()} on .* is already destroying it"):
        catalog.destroy_story("c", "s")
    assert sorted(os.listdir(story)) == ["destroying", "meta"]
    timer = threading.Timer(0.02, path.unlink)
    timer.start()
    open_catalog(catalog.root.path, patience_s=DEADLINE_S).destroy_story("c", "s")
    timer.join()


def test_a_destroyer_whose_claim_was_taken_stops(
    catalog: Catalog, story: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holders = acquisition.holders

    def stalled(directory: pathlib.Path) -> list[dict[str, Any]]:
        found = holders(directory)
        (path,) = (directory / "destroying").iterdir()
        expire(path)
        path.write_bytes(b"")
        expire(path)
        assert acquire(catalog, "c", "s", 7)
        return found

    monkeypatch.setattr(acquisition, "holders", stalled)
    with pytest.raises(NotFoundError):
        catalog.destroy_story("c", "s")
    assert has_files(story, 7)


def test_a_new_story_is_not_made_in_a_chronicle_that_goes(catalog: Catalog, story: pathlib.Path) -> None:
    claim(story.parent.parent, describe_process())
    with pytest.raises(NotFoundError, match="the chronicle 'c'"):
        catalog.ensure_story("c", "new", {})


class Interruptions:
    """Lets one party act at every point of another's way, and checks what both have come to."""

    def __init__(self, path: pathlib.Path) -> None:
        self.catalog = open_catalog(path, patience_s=0.003)
        self.acquired: dict[int, pathlib.Path] = {}
        self.destroyed = 0
        self._client_id = 0

    def prepare(self) -> None:
        for client_id, directory in self.acquired.items():
            release(directory, client_id)
        self.acquired = {}
        error_of(lambda: self.catalog.create_chronicle("c", {}))
        self.catalog.ensure_story("c", "s", {})

    def acquire(self) -> None:
        self._client_id += 1
        client_id = self._client_id  # another party may acquire before this returns
        directory = acquire(self.catalog, "c", "s", client_id)
        if directory is not None:
            self.acquired[client_id] = directory

    def destroy_story(self) -> None:
        error = error_of(lambda: self.catalog.destroy_story("c", "s"))
        assert error in (None, AcquiredError, NotFoundError)
        self.destroyed += error is None

    def destroy_chronicle(self) -> None:
        error = error_of(lambda: self.catalog.destroy_chronicle("c"))
        assert error in (None, AcquiredError, NotFoundError)
        self.destroyed += error is None

    def begin_anew(self) -> None:
        """Destroy everything, create it again, and hold it."""
        self.destroy_chronicle()
        error_of(lambda: self.catalog.create_chronicle("c", {}))
        self.acquire()

    def replace(self) -> None:
        """Destroy the story and create it again without holding it."""
        self.destroy_story()
        error_of(lambda: self.catalog.ensure_story("c", "s", {}))

    def check(self) -> None:
        for client_id, directory in self.acquired.items():
            assert has_files(directory, client_id), "a living client's files are gone"


PARTIES = ["acquire", "destroy_story", "destroy_chronicle", "begin_anew", "replace"]


@pytest.mark.slow
@pytest.mark.parametrize("first", PARTIES)
@pytest.mark.parametrize("second", PARTIES)
def test_one_party_may_come_in_anywhere_on_the_way_of_another(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, first: str, second: str
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
    scene = Interruptions(tmp_path / "store")
    outcomes = set()
    scene.prepare()
    calls = interrupted(getattr(scene, first), -1, lambda: None)
    assert calls > 15
    for at in range(calls):
        scene.prepare()
        scene.destroyed = 0
        interrupted(getattr(scene, first), at, getattr(scene, second))
        scene.check()
        outcomes.add((len(scene.acquired), scene.destroyed))
    if {first, second} == {"acquire", "destroy_story"}:
        assert {(1, 0), (0, 1)} <= outcomes, "each of them wins somewhere"


@pytest.mark.slow
def test_a_third_party_may_come_in_as_well(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
    scene = Interruptions(tmp_path / "store")
    rng = random.Random(17)
    met = 0

    def third() -> None:
        nonlocal met
        met += 1
        getattr(scene, names[2])()

    def second() -> None:
        interrupted(getattr(scene, names[1]), inner, third)

    rounds = soak(300, 30_000)
    for _ in range(rounds):
        names = [rng.choice(PARTIES) for _ in range(3)]
        outer, inner = rng.randrange(80), rng.randrange(80)
        scene.prepare()
        interrupted(getattr(scene, names[0]), outer, second)
        scene.check()
    assert met > rounds / 10


@pytest.mark.slow
@pytest.mark.parametrize("action", ["destroy_story", "destroy_chronicle", "acquire"])
def test_one_party_may_die_anywhere(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
    scene = Interruptions(tmp_path / "store")
    at = 0
    scene.prepare()
    while killed(getattr(scene, action), at):
        assert len(scene.catalog.chronicles()) <= 1
        scene.prepare()
        scene.acquire()
        assert scene.acquired, "the dead keep nobody out"
        scene.check()
        release(*next((directory, client_id) for client_id, directory in scene.acquired.items()))
        scene.acquired = {}
        scene.destroy_story()
        assert scene.destroyed == 2 * at + 1
        scene.destroy_chronicle()
        assert scene.destroyed == 2 * at + 2
        assert os.listdir(scene.catalog.root.trash) == []
        assert scene.catalog.chronicles() == []
        scene.prepare()
        at += 1
    assert at > 15


# -- races of real processes ---


def create_things(barrier: Any, path: str, rounds: int) -> list[tuple[bool, int]]:
    catalog = open_catalog(path)
    found = []
    for number in range(rounds):
        barrier.wait()
        won = error_of(lambda name=str(number): catalog.create_chronicle(name, {})) is None  # type: ignore[misc]
        directory = catalog.ensure_story(str(number), "s", {})
        found.append((won, directory.stat().st_ino))
    return found


@pytest.mark.slow
def test_of_many_creators_exactly_one_succeeds(tmp_path: pathlib.Path) -> None:
    rounds = soak(25, 500)
    answers = race(*[(create_things, (str(tmp_path / "store"), rounds))] * 8)
    for found in zip(*answers, strict=True):
        assert sum(won for won, _ in found) == 1
        assert len({inode for _, inode in found}) == 1
    catalog = open_catalog(tmp_path / "store")
    assert catalog.chronicles() == sorted(map(str, range(rounds)))
    assert all(
        len(os.listdir(catalog.root.chronicles / name_hash(str(n)) / "stories")) == 1 for n in range(rounds)
    )


def acquire_often(barrier: Any, path: str, number: int, duration_s: float) -> dict[str, int]:
    catalog = open_catalog(path)
    rng = random.Random(number)
    counts = {"acquired": 0, "refused": 0, "violated": 0}
    barrier.wait()
    end_s = time.monotonic() + duration_s
    client_id = number << 32
    while time.monotonic() < end_s:
        client_id += 1
        error_of(lambda: catalog.create_chronicle("c", {}))
        directory = acquire(catalog, "c", "s", client_id)
        if directory is None:
            counts["refused"] += 1
            continue
        counts["acquired"] += 1
        held_until_s = time.monotonic() + rng.random() * 0.004
        while time.monotonic() < held_until_s:
            try:
                counts["violated"] += not has_files(directory, client_id)
            except FileNotFoundError:
                counts["violated"] += 1
        if rng.random() < 0.5:
            close_tail(directory, client_id)
        else:
            release(directory, client_id)
    return counts


def destroy_often(barrier: Any, path: str, number: int, duration_s: float) -> dict[str, int]:
    catalog = open_catalog(path)
    barrier.wait()
    end_s = time.monotonic() + duration_s
    counts = {"destroyed": 0, "refused": 0, "missing": 0}
    keys: dict[Any, str] = {None: "destroyed", AcquiredError: "refused", NotFoundError: "missing"}
    while time.monotonic() < end_s:
        action = catalog.destroy_chronicle if number % 2 else lambda name: catalog.destroy_story(name, "s")
        counts[keys[error_of(lambda action=action: action("c"))]] += 1  # type: ignore[misc]
        time.sleep(0.001)
    return counts


def destroy_and_die(barrier: Any, path: str, number: int, duration_s: float) -> dict[str, int]:
    catalog = open_catalog(path)
    rng = random.Random(number)
    barrier.wait()
    end_s = time.monotonic() + duration_s
    counts = {"died": 0}
    while time.monotonic() < end_s:
        action = (
            catalog.destroy_chronicle if rng.random() < 0.5 else lambda name: catalog.destroy_story(name, "s")
        )
        counts["died"] += killed(lambda action=action: error_of(lambda: action("c")), rng.randrange(100))  # type: ignore[misc]
    return counts


@pytest.mark.slow
def test_acquirers_and_destroyers_never_both_succeed(tmp_path: pathlib.Path) -> None:
    duration_s = soak(3, 120)
    path = str(tmp_path / "store")
    workers = [(acquire_often, 1), (acquire_often, 2), (acquire_often, 3)]
    workers += [(destroy_often, 4), (destroy_often, 5), (destroy_and_die, 6)]
    total: Counter[str] = Counter()
    for _ in range(8):  # on a busy machine one round may see too little of something
        for result in race(
            *((function, (path, number, duration_s)) for function, number in workers), busy_s=duration_s
        ):
            total.update(result)
        assert total["violated"] == 0
        if min(total[what] for what in ("acquired", "destroyed", "refused", "died")) > 5:
            break
    else:
        pytest.fail(f"too little has happened: {total}")
    catalog = open_catalog(path)
    assert acquire(catalog, "c", "s", 1) or error_of(lambda: catalog.create_chronicle("c", {})) is None


# -- without the right to write ---


def test_reading_writes_nothing(
    catalog: Catalog, story: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(story, 7)

    def refuse(*_args: object, **_named: object) -> None:
        raise AssertionError("this writes")

    for name in ("mkdir", "rename", "unlink", "rmdir", "link", "utime", "write", "chmod", "fchmod"):
        monkeypatch.setattr(os, name, refuse)
    opened = Catalog(StoreRoot.open(catalog.root.path, create=False))
    assert (opened.chronicles(), opened.stories("c")) == (["c"], ["s"])
    assert (opened.chronicle_attributes("c"), opened.story_attributes("c", "s")) == ({}, {})
    assert opened.clients(opened.story_directory("c", "s")) == [7]
    assert opened.ensure_story("c", "s", {}) == story
    assert len(opened.holders(story)) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_others_may_read_a_store_that_lets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHRONOLOG_MODE", "0644")
    monkeypatch.setattr(owner, "_clocks", {})
    with tempfile.TemporaryDirectory() as name:  # not below a directory that only root may search
        path = pathlib.Path(name)
        path.chmod(0o755)
        catalog = open_catalog(path / "store")
        catalog.create_chronicle("c", {"a": "b"})
        story = catalog.ensure_story("c", "s", {})
        hold(story, 7)
        hold(story, 8, {**describe_process(), **ELSEWHERE})
        expire(story / f"{8:016x}.log")

        def look() -> object:
            catalog = Catalog(StoreRoot.open(path / "store", create=True))
            refused = [
                error_of(lambda: catalog.create_chronicle("new", {})),
                error_of(lambda: catalog.ensure_story("c", "new", {})),
                error_of(lambda: catalog.destroy_story("c", "s")),
                error_of(lambda: catalog.destroy_chronicle("c")),
            ]
            seen = [catalog.chronicles(), catalog.stories("c"), catalog.chronicle_attributes("c")]
            holding = [holder["client_id"] for holder in catalog.holders(catalog.story_directory("c", "s"))]
            return [os.geteuid(), seen, holding, [error is NotAuthorizedError for error in refused]]

        seen = [["c"], ["s"], {"a": "b"}]
        assert as_nobody(look) == [NOBODY, seen, [7, 8], [True] * 4]
        assert sorted(os.listdir(path / "store")) == ["CHRONOLOG", "chronicles"]
