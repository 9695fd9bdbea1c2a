"""Stores that formats 1 and 2 made long ago, and those of the future: what is read, passed over, and refused."""

import os
import pathlib
import shutil

import msgpack
import pytest

import py_chronolog_client as chronolog
from py_chronolog_client.engine.base import ScanReport, WriterOptions
from py_chronolog_client.engine.embedded import EmbeddedEngine
from py_chronolog_client.errors import NotAStoreError, StoreVersionError
from py_chronolog_client.store.storylog import StoryLog
from py_chronolog_client.testing.contract.base import rows_of
from py_chronolog_client.testing.manual_clock import ManualClock
from tests.golden import make
from tests.store import independent, reading

FILES = {version: make.files(store) for version, store in make.STORES.items()}


@pytest.fixture(params=make.STORES)
def version(request: pytest.FixtureRequest) -> int:
    """The format of the golden store."""
    return int(request.param)


@pytest.fixture
def golden(tmp_path: pathlib.Path, version: int) -> pathlib.Path:
    """A copy of the golden store that a test may change."""
    store = tmp_path / "golden"
    shutil.copytree(make.STORES[version], store)
    return store


def scan(store: pathlib.Path) -> tuple[list[independent.Row], ScanReport]:
    engine = EmbeddedEngine(store, create=False)
    report = ScanReport()
    rows = rows_of(engine.scan(make.CHRONICLE, make.STORY, verify=True, report=report))
    engine.close()
    return rows, report


def story(store: pathlib.Path) -> pathlib.Path:
    (directory,) = store.glob("chronicles/*/stories/*")
    return directory


def test_it_is_small_and_nothing_has_changed_it(version: int) -> None:
    assert sum(map(len, FILES[version].values())) < 10_000
    assert len(FILES[version]) == {1: 7, 2: 8}[version]


def test_it_is_still_made_byte_by_byte(tmp_path: pathlib.Path, version: int) -> None:
    make.make(tmp_path / "again", version)
    assert make.files(tmp_path / "again") == FILES[version]


@pytest.mark.parametrize("trusted", [False, True])
def test_it_replays_exactly(monkeypatch: pytest.MonkeyPatch, version: int, trusted: bool) -> None:
    monkeypatch.setenv("CHRONOLOG_TRUST_TAILS", str(int(trusted)))
    rows, report = scan(make.STORES[version])  # where it is: reading writes nothing
    assert rows == make.rows(with_tail=trusted)
    assert (report.damages, report.missing) == ([], 0)
    assert report.disbelieved == (0 if trusted else len(make.SECOND_TAIL))
    assert make.files(make.STORES[version]) == FILES[version]


def test_the_client_says_how_many_events_it_does_not_believe(caplog: pytest.LogCaptureFixture) -> None:
    conf = chronolog.ClientPortalServiceConf("file", str(make.GOLDEN), 0, 0)
    series = chronolog.EventList()
    with chronolog.Client(conf, chronolog.ClientQueryServiceConf()) as client:
        assert client.ReplayStory(make.CHRONICLE, make.STORY, 0, 2**64 - 1, series) == 0
    assert len(series) == len(make.rows(with_tail=False))
    assert f"the newest {len(make.SECOND_TAIL)} events" in caplog.text


def test_a_deployment_whose_events_were_handed_over(tmp_path: pathlib.Path) -> None:
    """Made long ago and today: what is at the keeper, what at the grapher, and what has expired."""
    make.make_deployment(tmp_path / "again")
    assert make.files(tmp_path / "again") == make.files(make.DEPLOYMENT)
    before = make.files(make.DEPLOYMENT)
    rows = make.rows(with_tail=False)
    expected = {
        "keeper": [row for row in rows if row[1] == 1 and row[2] >= 4],
        "grapher": [
            row for row in rows if (row[1] == 1 and 2 <= row[2] < 4) or row[:2] == (make.SECOND[0][0], 2)
        ],
    }
    for name, store in ((name, make.DEPLOYMENT / name) for name in expected):
        assert scan(store) == (expected[name], ScanReport())
        assert independent.read_store(store, bytes(16)) == {(make.CHRONICLE, make.STORY): expected[name]}
        log = StoryLog(story(store))
        log.refresh(ScanReport())
        assert log.starts() == ({1: 4, 2: make.SECOND_BEGIN + 1} if name == "keeper" else {1: 0, 2: 0})
        assert log.snapshot() == {1: 7 if name == "keeper" else 4, 2: make.SECOND_BEGIN + 1}
    assert make.files(make.DEPLOYMENT) == before


def test_everything_else_in_it(version: int) -> None:
    engine = EmbeddedEngine(make.STORES[version], create=False)
    assert engine.chronicles() == ["empty", make.CHRONICLE]
    assert engine.stories("empty") == []
    assert engine.stories(make.CHRONICLE) == [make.STORY]
    assert engine.chronicle_attributes(make.CHRONICLE) == {"tier": "gold"}
    assert engine.story_attributes(make.CHRONICLE, make.STORY) == {"ünicode": "😀"}
    clients = engine.clients(make.CHRONICLE, make.STORY)
    assert {
        number: (said["rank"], said["host"], said["first_sequence"]) for number, said in clients.items()
    } == {
        1: (0, "node-17", 0),
        2: (1, "node-17", make.SECOND_BEGIN),
    }
    assert engine.snapshot(make.CHRONICLE, make.STORY) == {1: 7, 2: make.SECOND_BEGIN + len(make.SECOND)}
    pages = list(engine.scan(make.CHRONICLE, make.STORY))
    assert {window for page in pages for window in page.windows_ns().tolist()} == {
        251
    }  # 250 and the drift, rounded up
    engine.close()


def test_the_second_implementation_agrees(version: int) -> None:
    stories = independent.read_store(make.STORES[version], make.BOOT_ID)
    assert stories == {(make.CHRONICLE, make.STORY): make.rows(with_tail=True)}


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize("marker", ["format 3", "format 10\nonly the future knows"])
def test_a_newer_format_is_refused_by_everybody(
    golden: pathlib.Path, version: int, marker: str, create: bool
) -> None:
    text = (golden / "CHRONOLOG").read_text()
    (golden / "CHRONOLOG").write_text(text.replace(f"format {version}", marker))
    before = make.files(golden)
    with pytest.raises(
        StoreVersionError, match=r"the store has format \d+, this release knows formats up to 2: install"
    ) as caught:
        EmbeddedEngine(golden, create=create)
    assert caught.value.path == str(golden)
    conf = chronolog.ClientPortalServiceConf("file", str(golden), 0, 0)
    for query in (None, chronolog.ClientQueryServiceConf()):
        client = chronolog.Client(conf, query)
        assert client.Connect() == -1
        assert isinstance(client.last_error, StoreVersionError)
        assert client.CreateChronicle("c") == -8
    assert make.files(golden) == before


def test_another_byte_order_is_refused(golden: pathlib.Path) -> None:
    text = (golden / "CHRONOLOG").read_text()
    (golden / "CHRONOLOG").write_text(text.replace("byte-order little", "byte-order big"))
    for create in (False, True):
        with pytest.raises(NotAStoreError, match="byte order 'big'; this software reads 'little' only"):
            EmbeddedEngine(golden, create=create)


def test_what_the_future_adds_is_passed_over(golden: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown lines in the marker, keys in maps, kinds and types of blocks, files and directories."""
    monkeypatch.setenv("CHRONOLOG_TRUST_TAILS", "1")
    with open(golden / "CHRONOLOG", "a") as marker:
        marker.write("compression none\n")
    for path in golden.rglob("meta"):
        path.write_bytes(msgpack.packb({**msgpack.unpackb(path.read_bytes()), "retention": {"days": [3]}}))
    directory = story(golden)
    segment = reading.segment(directory, 2)
    data = segment.read_bytes()
    (client, *_) = independent.read_segment(data, 2)
    more = independent.record_block(
        2, make.SECOND_BEGIN, {**client.fields, "colour": None, "nested": [{"a": b"b"}]}
    )
    first_block = independent.read_block(data, 0)[1]
    unknown = independent.block(2**32 - 1, 2, 99, [5, 1], [7, 3], b"columns of another meaning")
    later = independent.record_block(2, make.SECOND_BEGIN, {"type": "invented later", "first_sequence": "?"})
    segment.write_bytes(more + unknown + later + data[first_block:] + unknown)
    (directory / "index").write_bytes(b"CLOGIDX1")
    (directory / "0000000000000002.sums").write_bytes(b"")
    (directory / ".tmp-0123").mkdir()
    (golden / "chronicles" / "index").write_text("")
    rows, report = scan(golden)
    assert rows == make.rows(with_tail=True)
    assert (report.damages, report.missing) == ([], 0)


def test_an_old_store_is_written_to(golden: pathlib.Path, version: int) -> None:
    engine = EmbeddedEngine(golden)
    late = ManualClock(make.CREATED_NS + 2**41)
    writer = engine.open_writer(make.CHRONICLE, make.STORY, {}, WriterOptions(9, late))
    assert writer.log_event("today") == late.now_ns
    writer.close()
    engine.create_chronicle("new", {})
    assert engine.chronicles() == ["empty", make.CHRONICLE, "new"]
    engine.close()
    rows, report = scan(golden)
    assert rows == [*make.rows(with_tail=False), (late.now_ns, 9, 0, b"today")]
    assert report.damages == []
    assert {name: data for name, data in make.files(golden).items() if name in FILES[version]} == FILES[
        version
    ]


def test_a_copy_that_may_only_be_read(golden: pathlib.Path) -> None:
    for path in [golden, *golden.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        times = {path: path.stat().st_mtime_ns for path in [golden, *golden.rglob("*")]}
        assert scan(golden)[0] == make.rows(with_tail=False)
        assert {path: path.stat().st_mtime_ns for path in [golden, *golden.rglob("*")]} == times
    finally:
        for path in [golden, *golden.rglob("*")]:
            if path.is_dir():
                os.chmod(path, 0o755)
