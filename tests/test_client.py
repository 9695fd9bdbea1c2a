"""The ChronoLog client API on a directory: every row of the table of return codes, names, types, life cycles."""

import ast
import inspect
import logging
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import py_chronolog_client as chronolog
from py_chronolog_client import (
    Client,
    ClientPortalServiceConf,
    ClientQueryServiceConf,
    ErrorCode,
    Event,
    EventList,
    RecordTooLargeError,
    StoryHandle,
)
from py_chronolog_client.errors import (
    AcquiredError,
    ChronoLogError,
    InvalidArgumentError,
    NotConnectedError,
    NotFoundError,
    NotReaderError,
)
from py_chronolog_client.store.format import MAX_RECORD_BYTES
from py_chronolog_client.store.root import name_hash
from py_chronolog_client.testing.manual_clock import ManualClock
from tests.support import processes
from tests.support.counts import soak

EVERYTHING = (0, 2**64 - 1)
PACKAGE = processes.ROOT / "py_chronolog_client"


class Maker:
    """Makes clients of one store, which is all that they share."""

    def __init__(self, store: pathlib.Path) -> None:
        self.portal = ClientPortalServiceConf("file", str(store), 0, 0)
        self._made: list[Client] = []

    def __call__(self, *, connect: bool = True, reader: bool = True, **more: Any) -> Client:
        queries = [ClientQueryServiceConf()] * reader
        client = Client(self.portal, *queries, **more)
        self._made.append(client)
        if connect:
            assert client.Connect() == 0
        return client

    def close(self) -> None:
        for client in self._made:
            client.Disconnect()


@pytest.fixture
def make(tmp_path: pathlib.Path) -> Iterator[Maker]:
    maker = Maker(tmp_path / "store")
    yield maker
    maker.close()


@pytest.fixture
def client(make: Maker) -> Client:
    """A connected client that reads and writes, and the chronicle "c"."""
    client = make()
    assert client.CreateChronicle("c", {}, 0) == 0
    return client


def acquire(client: Client, story: str = "s", chronicle: str = "c") -> StoryHandle:
    code, handle = client.AcquireStory(chronicle, story, {}, 1)
    assert code == 0, client.last_error
    assert handle is not None
    return handle


def replay(
    client: Client, story: str = "s", chronicle: str = "c", bounds: tuple[int, int] = EVERYTHING
) -> EventList:
    series = EventList()
    assert client.ReplayStory(chronicle, story, *bounds, series) == 0, client.last_error
    return series


def records(client: Client, story: str = "s", chronicle: str = "c") -> list[bytes]:
    return [event.record_bytes() for event in replay(client, story, chronicle)]


# -- the table of return codes, row by row --


def test_disconnect_without_connect_and_twice(make: Maker) -> None:
    client = make(connect=False)
    assert client.Disconnect() == 0
    assert client.Connect() == 0
    assert [client.Disconnect(), client.Disconnect()] == [0, 0]


def test_connect_twice_and_on_a_second_client(make: Maker) -> None:
    first, second = make(), make()
    assert [first.Connect(), second.Connect()] == [0, 0]


@pytest.mark.parametrize("proto", ["ofi+sockets", "ofi+tcp", "no such protocol"])
def test_connect_without_an_engine(proto: str) -> None:
    client = Client(ClientPortalServiceConf(proto, "127.0.0.1", 5555, 55))
    assert client.Connect() == -8
    assert isinstance(client.last_error, NotConnectedError)
    assert "CHRONOLOG_STORE" in str(client.last_error)


UNCONNECTED = [
    (lambda c: c.AcquireStory("c", "s", {}, 0), (-8, None)),
    (lambda c: c.CreateChronicle("c", {}, 0), -8),
    (lambda c: c.DestroyChronicle("c"), -8),
    (lambda c: c.DestroyStory("c", "s"), -8),
    (lambda c: c.CreateChronicle("", {}, 0), -2),
    (lambda c: c.DestroyChronicle(""), -2),
    (lambda c: c.DestroyStory("", "s"), -2),
    (lambda c: c.DestroyStory("c", ""), -2),
    (lambda c: c.AcquireStory("", "s", {}, 0), (-2, None)),
    (lambda c: c.AcquireStory("c", "", {}, 0), (-2, None)),
    (lambda c: c.ReleaseStory("c", "s"), -5),
    (lambda c: c.ReleaseStory("", ""), -2),
    (lambda c: c.ReplayStory("c", "s", 0, 1, EventList()), -8),
]


@pytest.mark.parametrize(("call", "expected"), UNCONNECTED)
@pytest.mark.parametrize("before", ["never connected", "disconnected"])
def test_before_connect(make: Maker, call: Any, expected: Any, before: str) -> None:
    client = make(connect=before == "disconnected")
    client.Disconnect()
    assert call(client) == expected


CONNECTED = [
    (lambda c: c.CreateChronicle("new", {}, 0), 0),
    (lambda c: c.CreateChronicle("c", {}, 0), -6),
    (lambda c: c.CreateChronicle("", {}, 0), -2),
    (lambda c: c.DestroyChronicle("c"), 0),
    (lambda c: c.DestroyChronicle("missing"), -3),
    (lambda c: c.DestroyChronicle(""), -2),
    (lambda c: c.DestroyStory("c", "missing"), -3),
    (lambda c: c.DestroyStory("missing", "s"), -3),
    (lambda c: c.DestroyStory("c", ""), -2),
    (lambda c: c.DestroyStory("", "s"), -2),
    (lambda c: c.ReleaseStory("c", "s"), -5),
    (lambda c: c.ReleaseStory("missing", "s"), -5),
    (lambda c: c.ReleaseStory("c", ""), -2),
    (lambda c: c.ReleaseStory("", "s"), -2),
    (lambda c: c.AcquireStory("missing", "s", {}, 0), (-3, None)),
    (lambda c: c.AcquireStory("c", "", {}, 0), (-2, None)),
    (lambda c: c.AcquireStory("", "s", {}, 0), (-2, None)),
    (lambda c: c.ReplayStory("c", "missing", *EVERYTHING, EventList()), -3),
    (lambda c: c.ReplayStory("missing", "s", *EVERYTHING, EventList()), -3),
    (lambda c: c.ReplayStory("c", "", *EVERYTHING, EventList()), -2),
    (lambda c: c.ReplayStory("", "s", *EVERYTHING, EventList()), -2),
    (lambda c: c.ReplayStory("c", "missing", 2, 1, EventList()), -2),
]


@pytest.mark.parametrize(("call", "expected"), CONNECTED)
def test_connected(client: Client, call: Any, expected: Any) -> None:
    assert call(client) == expected
    code = expected[0] if isinstance(expected, tuple) else expected
    if code:
        assert client.last_error is not None
        assert client.last_error.code == code
        assert str(client.last_error)


def test_codes_are_error_codes_and_ints(client: Client) -> None:
    code = client.CreateChronicle("c")
    assert code is ErrorCode.CL_ERR_CHRONICLE_EXISTS
    assert isinstance(code, int)
    assert code == -6


def test_destroying_what_is_acquired(client: Client, make: Maker) -> None:
    handle = acquire(client)
    other = make()
    for who in (client, other):
        assert who.DestroyStory("c", "s") == -4
        assert isinstance(who.last_error, AcquiredError)
        assert who.DestroyChronicle("c") == -4
    assert handle.log_event("still there")
    assert client.ReleaseStory("c", "s") == 0
    assert records(other) == [b"still there"]
    assert other.DestroyStory("c", "s") == 0
    assert other.DestroyStory("c", "s") == -3
    assert client.DestroyChronicle("c") == 0


HOLDER = """
    import sys, time, py_chronolog_client as chronolog
    client = chronolog.Client(chronolog.ClientPortalServiceConf("file", sys.argv[1], 0, 0))
    assert client.Connect() == 0
    code, handle = client.AcquireStory("c", "s")
    assert code == 0 and handle.log_event("last words")
    print("holding", flush=True)
    time.sleep(60)
"""


def test_a_client_that_was_killed_holds_nothing(client: Client, tmp_path: pathlib.Path) -> None:
    import textwrap

    argv = [sys.executable, "-c", textwrap.dedent(HOLDER), str(tmp_path / "store")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=processes.child_environment()) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"holding\n"
            assert client.DestroyStory("c", "s") == -4
        finally:
            holder.kill()
    assert records(client) == [b"last words"]
    assert acquire(client).log_event("next")
    assert client.ReleaseStory("c", "s") == 0
    assert client.DestroyStory("c", "s") == 0


def test_acquiring_twice_gives_the_same_handle(client: Client) -> None:
    handle = acquire(client)
    assert client.AcquireStory("c", "s", {}, 0) == (0, handle)
    assert client.ReleaseStory("c", "s") == 0
    assert client.ReleaseStory("c", "s") == -5


def test_two_clients_hold_one_story(client: Client, make: Maker) -> None:
    """Upstream shares one handle in a process, and lets one client's release silence the other."""
    other = make()
    one, two = acquire(client), acquire(other)
    assert one is not two
    assert one.client_id != two.client_id
    assert one.log_event("one")
    assert client.ReleaseStory("c", "s") == 0
    assert two.log_event("two")
    assert other.ReleaseStory("c", "s") == 0
    assert sorted(records(client)) == [b"one", b"two"]
    assert {event.client_id() for event in replay(client)} == {one.client_id, two.client_id}


def test_disconnect_with_stories_acquired_flushes_and_releases(client: Client, make: Maker) -> None:
    handles = [acquire(client, story) for story in ("s", "t")]
    for handle in handles:
        assert handle.log_event("kept")
    assert client.Disconnect() == 0
    assert [handle.log_event("late") for handle in handles] == [0, 0]
    other = make()
    assert [records(other, story) for story in ("s", "t")] == [[b"kept"], [b"kept"]]
    assert client.Connect() == 0
    assert acquire(client).log_event("again")
    assert client.ReleaseStory("c", "s") == 0
    assert [other.DestroyStory("c", story) for story in ("s", "t")] == [0, 0]


def test_a_writer_does_not_read(make: Maker) -> None:
    for connect in (False, True):
        writer = make(reader=False, connect=connect)
        series = EventList()
        assert writer.ReplayStory("c", "s", 0, 1, series) == -11
        assert isinstance(writer.last_error, NotReaderError)
        assert writer.ReplayStory("c", "s", 2, 1, series) == -11
        assert len(series) == 0
    assert writer.CreateChronicle("c") == 0
    with pytest.raises(NotReaderError):
        list(writer.replay("c", "s"))
    with pytest.raises(NotReaderError):
        writer.follow("c", "s", {}, 0)
    reader = make()  # also when a writer came first in the process
    acquire(reader)
    assert replay(reader) == EventList()


def test_a_replay_needs_no_acquisition(client: Client, make: Maker) -> None:
    handle = acquire(client)
    handle.log_event("x")
    for who in (client, make()):
        assert records(who) == [b"x"], "while a client holds it"
    client.ReleaseStory("c", "s")
    assert records(client) == [b"x"], "and after it was released"


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "bounds", [(0, 0), (5, 5), (0, 9), (31, 2**64 - 1), (11, 14), (2**64 - 1, 2**64 - 1)]
)
def test_an_empty_range_is_0_at_once(make: Maker, bounds: tuple[int, int]) -> None:
    clock = ManualClock(10)
    client = make(clock=clock)
    client.CreateChronicle("c")
    handle = acquire(client)
    assert replay(client, bounds=bounds) == EventList(), "a story without events"
    for clock.now_ns in (10, 15, 20, 30):
        handle.log_event("x")
    assert replay(client, bounds=bounds) == EventList()


def test_start_after_end_is_an_invalid_argument(client: Client) -> None:
    acquire(client)
    assert client.ReplayStory("c", "s", 2, 1, EventList()) == -2
    assert "start" in str(client.last_error)


def test_both_ends_are_included(make: Maker) -> None:
    clock = ManualClock(1)
    client = make(clock=clock)
    client.CreateChronicle("c")
    handle = acquire(client)
    for clock.now_ns in (10, 20, 20, 30):
        handle.log_event(str(clock.now_ns))
    for bounds, expected in [
        ((10, 30), 4),
        ((11, 29), 2),
        ((20, 20), 2),
        ((30, 2**64 - 1), 1),
        ((0, 10), 1),
        ((30, 30), 1),
    ]:
        assert len(replay(client, bounds=bounds)) == expected


@pytest.mark.parametrize("wrong", [-1, 2**64, 1.0, "1", None, b"1"])
@pytest.mark.parametrize("place", ["start", "end"])
def test_times_that_are_none(client: Client, place: str, wrong: Any) -> None:
    acquire(client)
    bounds = {"start": 0, "end": 1, place: wrong}
    with pytest.raises(TypeError, match=place):
        client.ReplayStory("c", "s", event_series=EventList(), **bounds)


def test_times_of_numpy_are_times(client: Client) -> None:
    acquire(client).log_event("x")
    times = replay(client).times
    assert len(replay(client, bounds=(times[0], np.uint64(2**64 - 1)))) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [[], None, (), "x", Event()])
def test_a_replay_fills_an_event_list_only(client: Client, wrong: Any) -> None:
    acquire(client)
    with pytest.raises(TypeError, match="EventList"):
        client.ReplayStory("c", "s", 0, 1, wrong)


def test_a_replay_appends(client: Client) -> None:
    handle = acquire(client)
    for number in range(15):
        handle.log_event(str(number))
    series = EventList()
    for expected in (15, 30):
        assert client.ReplayStory("c", "s", *EVERYTHING, series) == 0
        assert len(series) == expected
    mixed = EventList([Event(1, 2, 3, "mine")])
    client.ReplayStory("c", "s", *EVERYTHING, mixed)
    assert len(mixed) == 16


def test_log_event_returns_the_time_of_the_event(client: Client) -> None:
    handle = acquire(client)
    times = [handle.log_event(f"{number}") for number in range(100)]
    assert all(type(time_ns) is int for time_ns in times)
    assert [event.time() for event in replay(client)] == times == sorted(times)


RECORDS = [
    "",
    "text",
    "naïve",
    "日本語",
    "😀",
    "a\0b",
    "\0",
    "\n\r\t",
    b"",
    b"\xff\xfe",
    b"\0\0",
    bytearray(b"ab"),
    memoryview(b"cd"),
]


@pytest.mark.parametrize("way", ["positional", "event_string", "log_string", "batch"])
def test_every_record_comes_back(client: Client, way: str) -> None:
    handle = acquire(client)
    for record in RECORDS:
        if way == "positional":
            assert handle.log_event(record)
        elif way == "batch":
            assert handle.log_events([record])
        else:
            assert handle.log_event(**{way: record})
    expected = [record.encode() if isinstance(record, str) else bytes(record) for record in RECORDS]
    series = replay(client)
    assert [event.record_bytes() for event in series] == expected
    assert [event.log_record() for event in series[:8]] == RECORDS[:8]
    with pytest.raises(UnicodeDecodeError):
        series[RECORDS.index(b"\xff\xfe")].log_record()


@given(st.text() | st.binary())
@settings(max_examples=soak(100, 2000))
def test_any_text_and_any_bytes(record: str | bytes) -> None:
    handle, client = shared_story()
    time_ns = handle.log_event(record)
    series = replay(client, bounds=(time_ns, 2**64 - 1))
    assert series[-1].record_bytes() == (record.encode() if isinstance(record, str) else record)
    if isinstance(record, str):
        assert series[-1].log_record() == record


_shared: list[tuple[StoryHandle, Client]] = []
_shared_directory = tempfile.TemporaryDirectory(prefix="chronolog-")


def shared_story() -> tuple[StoryHandle, Client]:
    """Return one story for all examples of a property."""
    if not _shared:
        client = Maker(pathlib.Path(_shared_directory.name) / "store")()
        client.CreateChronicle("c")
        _shared.append((acquire(client), client))
    return _shared[0]


@pytest.fixture(autouse=True, scope="module")
def _close_shared() -> Iterator[None]:
    yield
    for _, client in _shared:
        client.DestroyChronicle("c")
        client.Disconnect()


@pytest.mark.parametrize("wrong", [None, 1, 2.5, ["x"], {"x": 1}, object(), "\ud800", "a\udfffz"])
def test_what_is_no_record_is_a_type_error_and_appends_nothing(client: Client, wrong: Any) -> None:
    handle = acquire(client)
    handle.log_event("before")
    for action in (
        lambda: handle.log_event(wrong),
        lambda: handle.log_event(event_string=wrong),
        lambda: handle.log_events([wrong]),
        lambda: handle.log_events(["good", wrong, "good"]),
    ):
        with pytest.raises(TypeError):
            action()
    if wrong is not None:
        with pytest.raises(TypeError):
            handle.log_event(log_string=wrong)
    handle.log_event("after")
    assert records(client) == [b"before", b"after"]
    assert handle.statistics().lost == {}


def test_log_event_takes_exactly_one_record(client: Client) -> None:
    handle = acquire(client)
    for call in (
        lambda: handle.log_event(),  # type: ignore[call-arg]
        lambda: handle.log_event("a", "b"),
        lambda: handle.log_event(event_string="a", log_string="b"),
        lambda: handle.log_event("a", "b", "c"),  # type: ignore[call-arg]
        lambda: handle.log_event(text="a"),  # type: ignore[call-arg]
        lambda: handle.log_events("one record"),
        lambda: handle.log_events(b"one record"),
        lambda: handle.log_events(5),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError):
            call()
    assert records(client) == []


def test_the_limit_of_a_record_is_64_mib(client: Client) -> None:
    handle = acquire(client)
    assert MAX_RECORD_BYTES == 64 << 20
    largest = bytes(MAX_RECORD_BYTES - 1) + b"!"
    assert handle.log_event(largest)
    assert handle.log_event("x" * (MAX_RECORD_BYTES - 2) + "é")
    for action in (
        lambda: handle.log_event(bytes(MAX_RECORD_BYTES + 1)),
        lambda: handle.log_event("x" * (MAX_RECORD_BYTES - 1) + "é"),
        lambda: handle.log_events(["small", bytes(MAX_RECORD_BYTES + 1)]),
    ):
        with pytest.raises(RecordTooLargeError) as caught:
            action()
        assert (caught.value.size_bytes, caught.value.limit_bytes) == (MAX_RECORD_BYTES + 1, MAX_RECORD_BYTES)
    assert handle.log_event("and on")
    series = replay(client)
    assert len(series) == 3
    assert series[0].record_bytes() == largest
    assert series[1].log_record().endswith("xé")
    assert len(series[1].record_bytes()) == MAX_RECORD_BYTES


def test_after_release_log_event_returns_0_counts_and_warns_once(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    handle = acquire(client)
    log = handle.log_event
    assert log("before")
    assert client.ReleaseStory("c", "s") == 0
    with caplog.at_level(logging.WARNING):
        assert [log("a"), handle.log_event("b"), handle.log_events(["c", "d"]), log(b"e")] == [0, 0, 0, 0]
    statistics = handle.statistics()
    assert (statistics.logged, statistics.acknowledged, statistics.backlog) == (1, 1, 0)
    assert sum(statistics.lost.values()) == 5
    assert len([record for record in caplog.records if "refused" in record.message]) == 1
    with pytest.raises(TypeError):
        handle.log_event(None)  # type: ignore[arg-type]
    assert handle.flush() == 1
    assert records(client) == [b"before"]


# -- shapes of calls: 2.x with attrs and flags, 3.x without, by name --


@pytest.mark.parametrize(
    "arguments",
    [(), ({},), ({}, 0), ({"tier": "hot"}, 7), (None, 1)],
    ids=["3.x", "attrs only", "2.x", "2.x with attrs and flags", "None"],
)
def test_attrs_and_flags_may_be_left_out(make: Maker, arguments: tuple) -> None:
    client = make()
    expected = dict(arguments[0] or {}) if arguments else {}
    assert client.CreateChronicle("c", *arguments) == 0
    assert client.chronicle_attributes("c") == expected
    code, handle = client.AcquireStory("c", "s", *arguments)
    assert code == 0
    assert handle is not None
    assert client.story_attributes("c", "s") == expected


def test_everything_by_name(make: Maker) -> None:
    client = make()
    assert client.CreateChronicle(flags=1, attrs={"a": "b"}, chronicle_name="c") == 0
    code, handle = client.AcquireStory(story_name="s", chronicle_name="c", flags=2, attrs={})
    assert code == 0
    assert handle is not None
    assert handle.log_event(log_string="x")
    series = EventList()
    assert (
        client.ReplayStory(event_series=series, end=2**64 - 1, start=0, story_name="s", chronicle_name="c")
        == 0
    )
    assert len(series) == 1
    assert client.ReleaseStory(story_name="s", chronicle_name="c") == 0
    assert client.DestroyStory(story_name="s", chronicle_name="c") == 0
    assert client.DestroyChronicle(chronicle_name="c") == 0


SIGNATURES = {
    "Connect": "(self) -> 'int'",
    "Disconnect": "(self) -> 'int'",
    "CreateChronicle": "chronicle_name attrs flags",
    "DestroyChronicle": "chronicle_name",
    "AcquireStory": "chronicle_name story_name attrs flags",
    "ReleaseStory": "chronicle_name story_name",
    "DestroyStory": "chronicle_name story_name",
    "ReplayStory": "chronicle_name story_name start end event_series",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_names_of_parameters_are_those_of_the_specification(name: str) -> None:
    parameters = list(inspect.signature(getattr(Client, name)).parameters)[1:]
    assert parameters == ([] if SIGNATURES[name].startswith("(") else SIGNATURES[name].split())


@pytest.mark.parametrize("wrong", [{"a": 1}, {1: "a"}, {"a": None}, [("a", "b")], "ab", 1, {"a": b"b"}])
def test_attrs_are_text_by_text(client: Client, wrong: Any) -> None:
    with pytest.raises(TypeError, match="attrs"):
        client.CreateChronicle("d", wrong, 0)
    with pytest.raises(TypeError, match="attrs"):
        client.AcquireStory("c", "s", wrong, 0)
    assert client.ShowChronicles() == ["c"]
    assert client.ShowStories("c") == []


@pytest.mark.parametrize("wrong", ["1", None, 1.0])
def test_flags_are_a_number(client: Client, wrong: Any) -> None:
    with pytest.raises(TypeError, match="flags"):
        client.CreateChronicle("d", {}, wrong)
    with pytest.raises(TypeError, match="flags"):
        client.AcquireStory("c", "s", {}, wrong)


@pytest.mark.parametrize("wrong", [None, 1, b"bytes", ["c"]])
def test_names_are_text(client: Client, wrong: Any) -> None:
    for call in (
        lambda: client.CreateChronicle(wrong),
        lambda: client.DestroyChronicle(wrong),
        lambda: client.AcquireStory(wrong, "s"),
        lambda: client.AcquireStory("c", wrong),
        lambda: client.ReleaseStory("c", wrong),
        lambda: client.DestroyStory("c", wrong),
        lambda: client.ReplayStory("c", wrong, 0, 1, EventList()),
    ):
        with pytest.raises(TypeError):
            call()


# -- names --

NAMES = [
    "a/b",
    "/",
    "..",
    ".",
    "dot.name",
    " ",
    "a\0b",
    "\n",
    "日本語 😀",
    "x" * 4096,
    "é" * 4096,
    "CON",
    "a" * 255 + "/",
    "-rf *",
]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name[:12]))
def test_any_name(make: Maker, name: str, tmp_path: pathlib.Path) -> None:
    client = make()
    assert client.CreateChronicle(name, {name: name}) == 0
    assert client.CreateChronicle(name) == -6
    handle = acquire(client, name, name)
    handle.log_event(name)
    assert client.ShowChronicles() == [name]
    assert client.ShowStories(name) == [name]
    assert client.chronicle_attributes(name) == {name: name}
    assert records(make(), name, name) == [name.encode()]
    assert client.ReleaseStory(name, name) == 0
    assert client.DestroyStory(name, name) == 0
    assert client.DestroyChronicle(name) == 0
    assert os.listdir(tmp_path) == ["store"]


def test_names_that_differ_in_little_are_different(client: Client) -> None:
    names = ["s", "S", "s ", " s", "s\0", "s/", "ſ", "\u00e9", "e\u0301"]
    for name in names:
        acquire(client, name).log_event(name)
    assert client.ShowStories("c") == sorted(names)
    for name in names:
        assert records(client, name) == [name.encode()]


@pytest.mark.parametrize("name", ["\ud800", "a\udfff"])
def test_lone_surrogates_are_no_names(client: Client, name: str) -> None:
    assert client.CreateChronicle(name) == -2
    assert client.AcquireStory("c", name) == (-2, None)
    assert client.DestroyStory("c", name) == -2
    assert client.ReplayStory("c", name, 0, 1, EventList()) == -2


def test_listings(client: Client, make: Maker) -> None:
    assert client.ShowStories("c") == []
    for name in ("z", "a", "m"):
        client.CreateChronicle(name)
        acquire(client, name)
    assert make().ShowChronicles() == ["a", "c", "m", "z"]
    assert client.ShowStories("c") == ["a", "m", "z"]
    with pytest.raises(NotFoundError):
        client.ShowStories("missing")
    with pytest.raises(NotFoundError):
        client.chronicle_attributes("missing")
    with pytest.raises(NotFoundError):
        client.story_attributes("c", "missing")
    client.Disconnect()
    for call in (client.ShowChronicles, lambda: client.ShowStories("c"), lambda: client.clients("c", "a")):
        with pytest.raises(NotConnectedError):
            call()


def test_attributes_are_those_of_the_creation(client: Client, make: Maker) -> None:
    attributes = {"tier": "hot", "": "empty key", "ünicode": "😀", "long": "x" * 10_000}
    assert client.CreateChronicle("d", attributes) == 0
    assert client.CreateChronicle("d", {"other": "x"}) == -6
    code, _ = client.AcquireStory("d", "s", attributes)
    assert code == 0
    code, _ = make().AcquireStory("d", "s", {"other": "x"})
    assert code == 0
    assert client.chronicle_attributes("d") == client.story_attributes("d", "s") == attributes


# -- life cycles --


def test_a_story_is_acquired_again_and_again(client: Client) -> None:
    """Also without an event in between; a client that has logged keeps its id and goes on with its numbers."""
    for count in (0, 0, 2, 0, 1, 3, 0):
        handle = acquire(client)
        for number in range(count):
            assert handle.log_event(f"{number}")
        assert client.ReleaseStory("c", "s") == 0
    series = replay(client)
    assert [event.index() for event in series] == list(range(6))
    assert len(set(series.client_ids.tolist())) == 1
    assert client.DestroyStory("c", "s") == 0
    assert acquire(client).log_event("anew")
    assert [event.index() for event in replay(client)] == [0]


def test_a_story_that_somebody_else_destroyed_is_made_anew(client: Client, make: Maker) -> None:
    acquire(client).log_event("old")
    client.ReleaseStory("c", "s")
    assert make().DestroyStory("c", "s") == 0
    assert acquire(client).log_event("new")
    assert records(client) == [b"new"]
    assert client.ReleaseStory("c", "s") == 0


def test_numbers_are_per_story_and_client_and_begin_at_0(client: Client, make: Maker) -> None:
    other = make()
    handles = [acquire(client, "s"), acquire(client, "t"), acquire(other, "s")]
    for _ in range(3):
        for handle in handles:
            handle.log_event("x")
    for story in ("s", "t"):
        series = replay(client, story)
        for client_id in set(series.client_ids.tolist()):
            assert series.indexes[series.client_ids == client_id].tolist() == [0, 1, 2]


def test_client_ids(make: Maker) -> None:
    assert make(client_id=7)._client_id == 7
    client = make(client_id=2**63 - 1)
    client.CreateChronicle("c")
    handle = acquire(client)
    handle.log_event("x")
    assert handle.client_id == replay(client)[0].client_id() == 2**63 - 1
    for wrong in (-1, 2**63):
        with pytest.raises(InvalidArgumentError, match="client_id"):
            make(client_id=wrong)
    for wrong in ("7", 7.0):
        with pytest.raises(TypeError, match="client_id"):
            make(client_id=wrong)
    assert len({make()._client_id for _ in range(50)}) == 50


def test_a_client_id_that_is_taken(make: Maker) -> None:
    one, two = make(client_id=7), make(client_id=7)
    one.CreateChronicle("c")
    handle = acquire(one)
    handle.log_event("one")
    code, nothing = two.AcquireStory("c", "s")
    assert (code, nothing) == (-2, None)
    assert "taken" in str(two.last_error)
    assert handle.log_event("still")
    assert records(one) == [b"one", b"still"]


def test_a_client_says_who_it_is(make: Maker) -> None:
    client = make(description={"rank": 3, "job": "4711"})
    client.CreateChronicle("c")
    handle = acquire(client)
    (description,) = client.clients("c", "s").values()
    assert description["rank"] == 3
    assert description["job"] == "4711"
    assert description["pid"] == os.getpid()
    assert client.clients("c", "s").keys() == {handle.client_id}


@pytest.mark.parametrize(
    ("description", "kind", "said"),
    [
        ([1], TypeError, "description is a dict, not list"),
        ({1: "x"}, TypeError, "keys are text"),
        ({"a": np.int64(1)}, TypeError, r"description\['a'\] cannot be kept: .*numpy.int64"),
        ({"good": 1, "bad": object()}, TypeError, r"description\['bad'\]"),
        ({"a": {1: 2}}, InvalidArgumentError, r"description\['a'\]"),
        ({"a": 2**64}, InvalidArgumentError, r"description\['a'\]"),
        ({"a": "\ud800"}, InvalidArgumentError, r"description\['a'\]"),
        ({"a": "x" * 600_000}, InvalidArgumentError, "over the limit of 524288: shorten it"),
    ],
)
def test_a_description_that_cannot_be_kept_fails_at_once(
    make: Maker, description: Any, kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said):
        make(connect=False, description=description)


def test_a_description_is_kept_as_it_was(make: Maker) -> None:
    description = {"list": [1, (2.5, None)], "bytes": b"\xff", "deep": {"": True}, "large": "x" * 500_000}
    client = make(description=description)
    description["list"].append(object())  # type: ignore[attr-defined]
    client.CreateChronicle("c")
    acquire(client)
    (kept,) = client.clients("c", "s").values()
    expected = {"list": [1, [2.5, None]], "bytes": b"\xff", "deep": {"": True}, "large": "x" * 500_000}
    assert {name: kept[name] for name in expected} == expected


@pytest.mark.parametrize("attrs", [{"a": "\ud800"}, {"\ud800": "a"}, {"a": "x" * 2**20}])
def test_attributes_that_cannot_be_kept_are_an_invalid_argument(
    client: Client, attrs: dict[str, str]
) -> None:
    assert client.CreateChronicle("d", attrs) == -2
    assert "attribute" in str(client.last_error)
    assert client.AcquireStory("c", "s", attrs) == (-2, None)
    assert "attribute" in str(client.last_error)
    assert client.ShowChronicles() == ["c"]
    assert client.ShowStories("c") == []


def test_junk_in_the_store_is_reported_and_others_are_listed(
    client: Client, make: Maker, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    client.CreateChronicle("d")
    for story in ("a", "b"):
        acquire(client, story)
    metas = [tmp_path / "store" / "chronicles" / name_hash("c") / "stories" / name_hash("a") / "meta"]
    metas += [tmp_path / "store" / "chronicles" / name_hash("d") / "meta"]
    for meta in metas:
        meta.write_bytes(b"junk")
    reader = make()
    with caplog.at_level(logging.WARNING, logger="py_chronolog_client"):
        assert reader.ShowStories("c") == ["b"]
        assert reader.ShowChronicles() == ["c"]
    for meta, record in zip(metas, caplog.records, strict=True):
        assert f"{meta}: damaged at byte 0: no msgpack map" in record.getMessage()


def test_a_mistyped_path_is_no_connection(tmp_path: pathlib.Path) -> None:
    client = Client(ClientPortalServiceConf("file", str(tmp_path / "no" / "such" / "store"), 0, 0))
    assert client.Connect() == -8
    assert f"there is no directory {tmp_path / 'no' / 'such'}" in str(client.last_error)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("CHRONOLOG_MODE", "999", "0640"),
        ("CHRONOLOG_MODE", "0444", "0640"),
        ("CHRONOLOG_TRUST_TAILS", "maybe", "give 1 or 0"),
        ("CHRONOLOG_STORE", "/dev/null/store", "this is a file"),
        ("CHRONOLOG_STORE", "no/such/store", "there is no directory"),
    ],
)
def test_variables_that_make_no_sense(
    make: Maker, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    monkeypatch.setenv(variable, value)
    client = make(connect=False)
    assert client.Connect() < 0
    assert said in str(client.last_error)
    assert value in str(client.last_error)


@pytest.mark.parametrize("value", ["/nonexistent", "/dev/null", "/proc"])
def test_a_directory_for_tails_that_is_none(
    client: Client, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("CHRONOLOG_TAIL_DIR", value)
    assert client.AcquireStory("c", "s") == (-2, None)
    assert f"CHRONOLOG_TAIL_DIR={value}" in str(client.last_error)
    assert "unset the variable" in str(client.last_error)


def test_a_tilde_in_variables(
    client: Client, make: Maker, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "tails").mkdir()
    monkeypatch.setenv("CHRONOLOG_TAIL_DIR", "~/tails")
    assert acquire(client).log_event("x")
    assert len(os.listdir(tmp_path / "tails")) == 1
    monkeypatch.setenv("CHRONOLOG_STORE", "~/other")
    make()
    assert (tmp_path / "other" / "CHRONOLOG").exists()


def test_context_managers(make: Maker) -> None:
    with make(connect=False) as client:
        assert client.CreateChronicle("c") == 0
        with acquire(client) as handle:
            assert handle.log_event("inside")
        assert handle.log_event("outside") == 0
        assert client.ReleaseStory("c", "s") == -5
        with acquire(client) as handle:
            client.ReleaseStory("c", "s")
        with pytest.raises(ZeroDivisionError), acquire(client) as handle:
            handle.log_event("kept")
            raise ZeroDivisionError
        assert client.ReleaseStory("c", "s") == -5
        assert records(client) == [b"inside", b"kept"]
        held = acquire(client)
    assert held.log_event("late") == 0
    assert client.CreateChronicle("d") == -8


def test_a_client_that_cannot_connect_raises_in_with() -> None:
    with pytest.raises(NotConnectedError), Client(ClientPortalServiceConf()):
        pytest.fail("there is no engine")  # pragma: no cover


def test_constructors(make: Maker, tmp_path: pathlib.Path) -> None:
    portal, query = ClientPortalServiceConf("file", str(tmp_path / "x"), 0, 0), ClientQueryServiceConf()
    Client(portal), Client(portal, query), Client(portal_conf=portal, query_conf=query), Client(portal, None)
    assert not (tmp_path / "x").exists(), "nothing is made before Connect"
    for arguments in ((), (query,), (portal, portal), ("file",), (portal, query, 7)):
        with pytest.raises(TypeError):
            Client(*arguments)
    with pytest.raises(InvalidArgumentError, match="durability"):
        Client(portal, durability="forever")  # type: ignore[arg-type]


def test_a_handle_is_made_by_a_client_only() -> None:
    with pytest.raises(TypeError):
        StoryHandle()  # type: ignore[call-arg]


def test_batches(client: Client) -> None:
    handle = acquire(client)
    time_ns = handle.log_events(["a", b"b", "", "ü"])
    assert time_ns
    assert handle.log_events(("c",)) >= time_ns
    assert handle.log_events(iter(["d"]))  # type: ignore[arg-type]
    empty_ns = handle.log_events([])
    assert empty_ns >= time_ns, "nothing was refused"
    series = replay(client)
    assert [event.record_bytes() for event in series] == [b"a", b"b", b"", "ü".encode(), b"c", b"d"]
    assert {event.time() for event in series[:4]} == {time_ns}
    large = [f"{number}" for number in range(300_000)]
    assert handle.log_events(large)
    assert [event.log_record() for event in replay(client)[6:]] == large


def test_statistics_and_flush(make: Maker) -> None:
    client = make(durability="node")
    client.CreateChronicle("c")
    handle = acquire(client)
    handle.log_events(["a", "b"])
    statistics = handle.statistics()
    assert (statistics.logged, statistics.acknowledged, statistics.backlog, statistics.lost) == (2, 0, 2, {})
    assert handle.flush() == 2
    assert handle.flush(timeout_s=1.0) == 2
    assert handle.statistics().backlog == 0


def test_pages_snapshots_and_following(client: Client) -> None:
    handle = acquire(client)
    handle.log_events(["a", "b"])
    snapshot = client.snapshot("c", "s")
    assert snapshot == {handle.client_id: 2}
    handle.log_event("c")
    pages = list(client.replay("c", "s", snapshot=snapshot))
    assert [record for page in pages for record in page.records()] == [b"a", b"b"]
    pages, cursor = client.follow("c", "s", snapshot, 0.0)
    assert [record for page in pages for record in page.records()] == [b"c"]
    assert client.follow("c", "s", cursor, 0.0) == ([], cursor)
    with pytest.raises(InvalidArgumentError):
        list(client.replay("c", "s", 2, 1))
    with pytest.raises(NotFoundError):
        list(client.replay("c", "missing"))
    with pytest.raises(NotFoundError):
        client.snapshot("c", "missing")


def test_another_clock(client: Client) -> None:
    handle = acquire(client)
    first_ns = handle.log_event("system")
    clock = ManualClock(first_ns + 10**12)
    handle.use_clock(clock)
    assert handle.log_event("manual") == clock.now_ns
    clock.now_ns = 5
    assert handle.log_event("back") == first_ns + 10**12


@pytest.mark.timeout(60)
def test_many_threads_acquire_log_and_release(client: Client) -> None:
    errors: list[BaseException] = []
    rounds = soak(10, 100)

    def work(story: str) -> None:
        try:
            for number in range(rounds):
                handle = acquire(client, story)
                assert handle.log_event(f"{number}")
                assert client.ReleaseStory("c", story) == 0
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(f"story {number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for number in range(4):
        assert records(client, f"story {number}") == [b"%d" % n for n in range(rounds)]


def test_a_store_that_only_may_be_read(client: Client, make: Maker, tmp_path: pathlib.Path) -> None:
    acquire(client).log_event("x")
    client.ReleaseStory("c", "s")
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(tmp_path / "store"), str(copy)], check=True)
    subprocess.run(["chmod", "-R", "a-w", str(copy)], check=True)
    try:
        with Client(ClientPortalServiceConf("file", str(copy), 0, 0), ClientQueryServiceConf()) as reader:
            assert records(reader) == [b"x"]
    finally:
        subprocess.run(["chmod", "-R", "u+w", str(copy)], check=True)


def test_the_examples_of_upstream(make: Maker) -> None:
    client = make(connect=False)
    assert client.AcquireStory("py_chronicle", "my_story", {}, 1) == (-8, None)
    assert client.Connect() == 0
    assert client.CreateChronicle("py_chronicle", {}, 1) == 0
    code, handle = client.AcquireStory("py_chronicle", "my_story", {}, 1)
    assert code == 0
    assert handle is not None
    for text in ("py_event", "py_event.1", "py_event.2", "py_event.3"):
        handle.log_event(text)
    assert client.ReleaseStory("py_chronicle", "my_story") == 0
    reader = make()
    series = EventList()
    assert reader.ReplayStory("py_chronicle", "my_story", 1, 2**63, series) == 0
    assert [event.log_record() for event in series] == ["py_event", "py_event.1", "py_event.2", "py_event.3"]
    assert client.Disconnect() == 0


# -- forks --


def test_a_forked_child_is_a_client_of_its_own(client: Client) -> None:
    """The same Client object, in parent and child, acquires a story that neither held at the fork."""
    child = os.fork()
    if not child:
        code = 1
        try:
            handle = acquire(client)
            code = not (handle.log_event("child") and client.ReleaseStory("c", "s") == 0)
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert status == 0
    assert acquire(client).log_event("parent")
    series = replay(client)
    assert sorted(event.log_record() for event in series) == ["child", "parent"]
    assert len(set(series.client_ids.tolist())) == 2


def test_a_forked_child_releases_and_acquires_again(client: Client) -> None:
    """What the child does with the name of its parent's client must not touch the parent's events."""
    handle = acquire(client)
    for number in range(5):
        handle.log_event(f"parent {number}")
    child = os.fork()
    if not child:
        code = 1
        try:
            handle.log_event("child 0")
            assert client.ReleaseStory("c", "s") == 0
            again = acquire(client)
            assert again.client_id != handle.client_id or again.log_event("child 1")
            assert again.log_event("child 2")
            assert client.ReleaseStory("c", "s") == 0
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert status == 0
    assert handle.log_event("parent 5")
    parents = [event for event in replay(client) if event.client_id() == handle.client_id]
    assert [event.log_record() for event in parents] == [f"parent {number}" for number in range(6)]
    assert client.ReleaseStory("c", "s") == 0
    assert {b"child 0", b"child 2"} <= set(records(client))


# -- what may be imported and called --


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    import textwrap

    return processes.run([sys.executable, "-c", textwrap.dedent(code)], timeout=60)


def test_writing_imports_no_numpy() -> None:
    done = run_python("""
        import sys, tempfile
        import py_chronolog_client as chronolog
        assert "numpy" not in sys.modules, "import"
        with tempfile.TemporaryDirectory() as directory:
            portal = chronolog.ClientPortalServiceConf("file", directory + "/store", 0, 0)
            with chronolog.Client(portal, chronolog.ClientQueryServiceConf()) as client:
                assert client.CreateChronicle("c") == 0
                with client.AcquireStory("c", "s")[1] as handle:
                    handle.log_event("x")
                    handle.log_events(["y"] * 20_000)
                    handle.flush()
                    handle.statistics()
                assert client.ShowStories("c") == ["s"]
                chronolog.EventList([chronolog.Event()])
                assert client.DestroyStory("c", "s") == 0
        loaded = {name.partition(".")[0] for name in sys.modules}
        assert not loaded & {"numpy", "mpi4py", "asyncio", "multiprocessing", "concurrent"}, loaded
    """)
    assert done.returncode == 0, processes.describe(done)


MODULES = sorted(PACKAGE.rglob("*.py"))
SHIPPED = [path for path in MODULES if "testing" not in path.parts]


def calls(path: pathlib.Path) -> set[str]:
    """Return the names of all attributes and functions that a module mentions."""
    tree = ast.parse(path.read_text())
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    imported = {
        alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    return attributes | imported | {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def imports(path: pathlib.Path) -> set[str]:
    """Return the packages that a module imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level
            found.add(str(node.module).partition(".")[0])
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_client_knows_nothing_of_mpi(path: pathlib.Path) -> None:
    assert not imports(path) & {"mpi4py", "chronolog_hpc"}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_dependencies_are_numpy_and_msgpack(path: pathlib.Path) -> None:
    optional = {"isal"} if path.name in ("crc.py", "deflate.py") else set()
    assert imports(path) <= {*sys.stdlib_module_names, "numpy", "msgpack", "py_chronolog_client", *optional}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_words_in_shared_memory_are_stored_at_once(path: pathlib.Path) -> None:
    """CPython clears the target of `pack_into` before it packs: a reader of a live tail would see 0, and a writer that is
    killed in between would leave it there, which ends the events of its tail before those that were acknowledged.
    """
    assert "pack_into" not in calls(path)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_is_ever_made_shorter_or_longer_without_its_blocks(path: pathlib.Path) -> None:
    """A file that shrinks kills whoever has it mapped (SIGBUS), and one that is grown by ftruncate has holes, into which a
    store on a full file system does the same.
    """
    assert not calls(path) & {"truncate", "ftruncate"}


@pytest.mark.parametrize("value", ["x", -1, float("nan"), b"1"])
def test_a_timeout_is_a_number_of_seconds(client: Client, value: Any) -> None:
    handle = acquire(client)
    for call in (
        handle.flush,
        lambda timeout_s: client.replay("c", "s", timeout_s=timeout_s),
        lambda timeout_s: client.follow("c", "s", {}, timeout_s),
    ):
        with pytest.raises(InvalidArgumentError, match="timeout_s is a number of seconds, at least 0, not"):
            call(value)


def test_the_public_names() -> None:
    assert set(chronolog.__all__) >= {
        "Client", "ClientPortalServiceConf", "ClientQueryServiceConf", "ErrorCode", "Event", "EventList", "StoryHandle",
    }  # fmt: skip
    for name in chronolog.__all__:
        assert getattr(chronolog, name).__doc__
    assert chronolog.__version__[0].isdigit()
    with pytest.raises(AttributeError, match="nothing"):
        chronolog.nothing  # noqa: B018
    assert issubclass(RecordTooLargeError, ChronoLogError)
