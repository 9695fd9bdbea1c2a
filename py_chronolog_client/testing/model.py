"""A hypothesis state machine that compares an engine with a plain list.

    TestMyEngine = engine_state_machine(make_engine).TestCase

The model of a story is a list of rows (time, client id, sequence, record), sorted. The engine may
acknowledge late, so the model does not say which events are read, only in which bounds: a snapshot must lie
between what was acknowledged and what was logged. Given the snapshot, a scan has exactly one right answer.

The clocks are `ManualClock`s whose times repeat and go back, so the engine must take times from given
clocks. An event may get a time that its clock has shown since the writer was opened, because the engine may
look at the clock when nothing is logged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from py_chronolog_client.engine.base import MAX_TIME_NS, Engine, Snapshot, Writer, WriterOptions
from py_chronolog_client.errors import AcquiredError, ChronicleExistsError, NotFoundError
from py_chronolog_client.testing.contract.base import Row, rows_of
from py_chronolog_client.testing.manual_clock import ManualClock

_Item = TypeVar("_Item")

NAMES = st.sampled_from(["a", "b/.."])
CLIENT_IDS = (3, 0, 2**63 - 1, 1, 2**32, 7, 2**31, 5, 11, 2)
FIRST_SEQUENCES = st.sampled_from([0, 0, 0, 1, 2**32 - 2])
TIMES_NS = st.sampled_from([*range(1_000, 1_008), 2**63])
MARKS = st.integers(0, 6) | st.sampled_from([2**32 - 1, 2**32, 2**40])
RECORDS = st.sampled_from(["", b"", b"\0", b"\xff"]) | st.text(max_size=5) | st.binary(max_size=5)
NO_RECORDS = st.sampled_from([None, 1, 2.5, "\ud800", ["text"]])


@dataclass
class _Client:
    """What a client has logged to a story."""

    client_id: int
    first_sequence: int
    writer: Writer
    clock: ManualClock
    latest_ns: int
    """The latest time that its clocks have shown it."""
    rows: list[Row] = field(default_factory=list)
    acknowledged: int = 0
    earlier: int = 0
    """How many of the rows were logged before the client came back, through another writer."""
    lost: int = 0
    is_open: bool = True

    @property
    def end_sequence(self) -> int:
        return self.first_sequence + len(self.rows)

    def add(self, records: list[str | bytes], time_ns: int) -> None:
        """Note the answer to a call that logged records, or was refused because the writer is closed."""
        if not self.is_open:
            assert time_ns == 0 or not records
            self.lost += len(records)
            return
        earliest_ns = max(self.clock.now_ns, self.rows[-1][0] if self.rows else 0)
        assert earliest_ns <= time_ns <= max(self.latest_ns, earliest_ns)
        for record in records:
            data = record.encode() if isinstance(record, str) else record
            self.rows.append((time_ns, self.client_id, self.end_sequence, data))


@dataclass
class _Story:
    """What was logged to a story, and what was asked of it."""

    chronicle: str
    name: str
    clients: dict[int, _Client] = field(default_factory=dict)
    snapshots: list[Snapshot] = field(default_factory=list)
    cursor: Snapshot = field(default_factory=dict)

    def is_acquired(self) -> bool:
        return any(client.is_open for client in self.clients.values())

    def rows(self, snapshot: Snapshot, since: Snapshot | None = None) -> list[Row]:
        """Return the rows from the marks of `since` to below those of `snapshot`, in story order."""
        since = since or {}
        return sorted(
            row
            for client in self.clients.values()
            for row in client.rows
            if since.get(client.client_id, 0) <= row[2] < snapshot.get(client.client_id, 0)
        )


class EngineMachine(RuleBasedStateMachine):
    """Does what clients do, and compares. Subclasses may add rules of their own engine.

    Attributes:
        engine: the engine under test.
    """

    def __init__(self, make_engine: Callable[[], Engine], reopen: Callable[[Engine], Engine | None]) -> None:
        """Start with a fresh engine."""
        super().__init__()
        self.engine = make_engine()
        self._reopen = reopen
        self._clocks = [ManualClock(1_000), ManualClock(1_003)]
        self._catalog: dict[str, dict[str, _Story]] = {}

    # -- what the rules choose from --------------------------------------------------------------------------

    def _stories(self) -> list[_Story]:
        return [story for stories in self._catalog.values() for story in stories.values()]

    def _clients(self) -> list[_Client]:
        return [client for story in self._stories() for client in story.clients.values()]

    def _has_stories(self) -> bool:
        return bool(self._stories())

    def _has_clients(self) -> bool:
        return bool(self._clients())

    def _choose_client(self, data: st.DataObject) -> _Client:
        """Choose a client, rarely one that is closed."""
        clients = self._clients()
        is_open = [client for client in clients if client.is_open]
        return self._choose(data, is_open * 4 + clients)

    def _choose(self, data: st.DataObject, items: list[_Item]) -> _Item:
        return items[data.draw(st.integers(0, len(items) - 1))]

    def _snapshot(self, story: _Story, engine: Engine | None = None) -> Snapshot:
        """Take a snapshot and check that it is one that there may be."""
        snapshot = (engine or self.engine).snapshot(story.chronicle, story.name)
        assert snapshot.keys() <= story.clients.keys()
        for client in story.clients.values():
            mark = snapshot.get(client.client_id, client.first_sequence)
            if client.rows:
                assert client.first_sequence + client.acknowledged <= mark <= client.end_sequence
        return snapshot

    # -- the catalog -----------------------------------------------------------------------------------------

    @initialize(first_sequence=FIRST_SEQUENCES, times_ns=st.lists(TIMES_NS, max_size=5))
    def start(self, first_sequence: int, times_ns: list[int]) -> None:
        """Begin with two clients of one story that have logged a little, at times that collide."""
        self.create("a")
        self.open("a", "a", 0, first_sequence)
        self.open("a", "a", 1, 0)
        for time_ns in times_ns:
            for clock, client in enumerate(self._clients()):
                self.set_clock(clock, time_ns)
                client.add(["early"], client.writer.log_event("early"))
        for client in self._clients():
            self._flush(client)

    @rule(chronicle=NAMES)
    def create(self, chronicle: str) -> None:
        """Create a chronicle."""
        if chronicle in self._catalog:
            with pytest.raises(ChronicleExistsError):
                self.engine.create_chronicle(chronicle, {})
        else:
            self.engine.create_chronicle(chronicle, {})
            self._catalog[chronicle] = {}

    @rule(chronicle=NAMES)
    def destroy_chronicle(self, chronicle: str) -> None:
        """Destroy a chronicle."""
        stories = self._catalog.get(chronicle)
        if stories is None:
            with pytest.raises(NotFoundError):
                self.engine.destroy_chronicle(chronicle)
        elif any(story.is_acquired() for story in stories.values()):
            with pytest.raises(AcquiredError):
                self.engine.destroy_chronicle(chronicle)
        else:
            self.engine.destroy_chronicle(chronicle)
            del self._catalog[chronicle]

    @rule(chronicle=NAMES, name=NAMES)
    def destroy_story(self, chronicle: str, name: str) -> None:
        """Destroy a story."""
        story = self._catalog.get(chronicle, {}).get(name)
        if story is None:
            with pytest.raises(NotFoundError):
                self.engine.destroy_story(chronicle, name)
        elif story.is_acquired():
            with pytest.raises(AcquiredError):
                self.engine.destroy_story(chronicle, name)
        else:
            self.engine.destroy_story(chronicle, name)
            del self._catalog[chronicle][name]

    @rule(chronicle=NAMES, name=NAMES, clock=st.integers(0, 1), first_sequence=FIRST_SEQUENCES)
    def open(self, chronicle: str, name: str, clock: int, first_sequence: int) -> None:
        """Open a writer for a client that is new to the story."""
        stories = self._catalog.get(chronicle)
        known = {} if stories is None or name not in stories else stories[name].clients
        free = [client_id for client_id in CLIENT_IDS if client_id not in known]
        if not free:
            return
        options = WriterOptions(free[0], self._clocks[clock], first_sequence=first_sequence)
        if stories is None:
            with pytest.raises(NotFoundError):
                self.engine.open_writer(chronicle, name, {}, options)
            return
        writer = self.engine.open_writer(chronicle, name, {}, options)
        story = stories.setdefault(name, _Story(chronicle, name))
        now_ns = self._clocks[clock].now_ns
        story.clients[free[0]] = _Client(free[0], first_sequence, writer, self._clocks[clock], now_ns)

    # -- writing ---------------------------------------------------------------------------------------------

    @rule(clock=st.integers(0, 1), now_ns=TIMES_NS)
    def set_clock(self, clock: int, now_ns: int) -> None:
        """Set a clock forward or back."""
        self._clocks[clock].now_ns = now_ns
        for client in self._clients():
            if client.clock is self._clocks[clock]:
                client.latest_ns = max(client.latest_ns, now_ns)

    @precondition(_has_clients)
    @rule(data=st.data(), record=RECORDS)
    def log(self, data: st.DataObject, record: str | bytes) -> None:
        """Log an event."""
        client = self._choose_client(data)
        client.add([record], client.writer.log_event(record))

    @precondition(_has_clients)
    @rule(data=st.data(), batch=st.lists(RECORDS, max_size=10))
    def log_batch(self, data: st.DataObject, batch: list[str | bytes]) -> None:
        """Log a batch."""
        client = self._choose_client(data)
        client.add(batch, client.writer.log_events(batch))

    @precondition(_has_clients)
    @rule(data=st.data(), wrong=NO_RECORDS)
    def log_what_is_no_record(self, data: st.DataObject, wrong: Any) -> None:
        """Log what cannot be logged."""
        writer = self._choose_client(data).writer
        with pytest.raises(TypeError):
            writer.log_event(wrong)
        with pytest.raises(TypeError):
            writer.log_events(["good", wrong])

    @precondition(_has_clients)
    @rule(data=st.data(), clock=st.integers(0, 1))
    def use_clock(self, data: st.DataObject, clock: int) -> None:
        """Give a writer another clock."""
        client = self._choose_client(data)
        if client.is_open:
            client.clock = self._clocks[clock]
            client.latest_ns = max(client.latest_ns, client.clock.now_ns)
            client.writer.use_clock(client.clock)

    @precondition(_has_clients)
    @rule(data=st.data())
    def flush(self, data: st.DataObject) -> None:
        """Flush a writer."""
        self._flush(self._choose_client(data))

    @precondition(_has_clients)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        """Close a writer, perhaps again."""
        self._close(self._choose_client(data))

    @precondition(_has_clients)
    @rule(data=st.data(), clock=st.integers(0, 1))
    def open_again(self, data: st.DataObject, clock: int) -> None:
        """Close a writer and open one for the next client of the same story."""
        story = self._choose(data, [story for story in self._stories() if story.clients])
        self._close(self._choose(data, list(story.clients.values())))
        self.open(story.chronicle, story.name, clock, 0)

    @precondition(_has_clients)
    @rule(data=st.data(), clock=st.integers(0, 1))
    def come_back(self, data: st.DataObject, clock: int) -> None:
        """Close a writer and go on as the same client, perhaps by another clock."""
        story = self._choose(data, [story for story in self._stories() if story.clients])
        client = self._choose(data, list(story.clients.values()))
        self._close(client)
        if client.end_sequence:
            client.clock = self._clocks[clock]
            options = WriterOptions(client.client_id, client.clock, first_sequence=client.end_sequence)
            client.writer = self.engine.open_writer(story.chronicle, story.name, {}, options)
            client.latest_ns = max(client.latest_ns, client.clock.now_ns)
            client.earlier, client.lost, client.is_open = len(client.rows), 0, True

    @rule()
    def restart(self) -> None:
        """Close everything and go on with another engine on the same data."""
        for client in self._clients():
            self._close(client)
        other = self._reopen(self.engine)
        if other is not None:
            self.engine.close()
            self.engine = other

    def _flush(self, client: _Client) -> None:
        assert client.writer.flush() == client.end_sequence
        client.acknowledged = len(client.rows)

    def _close(self, client: _Client) -> None:
        client.writer.close()
        client.is_open = False
        client.acknowledged = len(client.rows)

    # -- reading ---------------------------------------------------------------------------------------------

    @precondition(_has_stories)
    @rule(data=st.data())
    def scan_range(self, data: st.DataObject) -> None:
        """Scan a range of time that begins and ends at events, beside them, or at the ends of time."""
        story = self._choose(data, self._stories())
        times = {row[0] for client in story.clients.values() for row in client.rows}
        beside = {time_ns + step for time_ns in times for step in (-1, 1)}
        bounds = [*sorted(times), 0, MAX_TIME_NS, *sorted(beside)]
        start_ns, end_ns = self._choose(data, bounds), self._choose(data, bounds)
        rows = rows_of(self.engine.scan(story.chronicle, story.name, start_ns, end_ns))
        expected = story.rows(self._snapshot(story))
        assert rows == [row for row in expected if start_ns <= row[0] <= end_ns]

    @precondition(_has_stories)
    @rule(
        data=st.data(),
        clients=st.none() | st.lists(st.sampled_from(CLIENT_IDS), unique=True),
        since=st.none() | st.dictionaries(st.sampled_from(CLIENT_IDS), MARKS),
        until=st.none() | st.dictionaries(st.sampled_from(CLIENT_IDS), MARKS),
    )
    def scan_marks(
        self, data: st.DataObject, clients: list[int] | None, since: Snapshot | None, until: Snapshot | None
    ) -> None:
        """Scan some clients between marks."""
        story = self._choose(data, self._stories())
        now = self._snapshot(story)
        end = now if until is None else {c: min(mark, now.get(c, 0)) for c, mark in until.items()}
        expected = [row for row in story.rows(end, since) if clients is None or row[1] in clients]
        pages = self.engine.scan(story.chronicle, story.name, clients=clients, since=since, snapshot=until)
        assert rows_of(pages) == expected

    @precondition(_has_stories)
    @rule(data=st.data())
    def take_snapshot(self, data: st.DataObject) -> None:
        """Take a snapshot and keep it for `scan_snapshot`."""
        story = self._choose(data, self._stories())
        story.snapshots.append(self._snapshot(story))

    @precondition(lambda self: any(story.snapshots for story in self._stories()))
    @rule(data=st.data())
    def scan_snapshot(self, data: st.DataObject) -> None:
        """Scan a snapshot that was taken some time ago."""
        story = self._choose(data, [story for story in self._stories() if story.snapshots])
        snapshot = self._choose(data, story.snapshots)
        assert rows_of(self.engine.scan(story.chronicle, story.name, snapshot=snapshot)) == story.rows(
            snapshot
        )

    @precondition(_has_stories)
    @rule(data=st.data())
    def follow(self, data: st.DataObject) -> None:
        """Follow a story one step."""
        self._follow(self._choose(data, self._stories()))

    @precondition(_has_stories)
    @rule(data=st.data())
    def follow_to_the_end(self, data: st.DataObject) -> None:
        """Flush all clients of a story and follow it until nothing comes."""
        story = self._choose(data, self._stories())
        for client in story.clients.values():
            self._flush(client)
        while self._follow(story):
            pass
        assert story.rows(story.cursor) == story.rows(dict.fromkeys(CLIENT_IDS, MAX_TIME_NS))

    def _follow(self, story: _Story) -> bool:
        pages, cursor = self.engine.follow(story.chronicle, story.name, story.cursor, 0.0)
        rows = rows_of(pages)
        assert rows == story.rows(cursor, story.cursor)
        assert all(cursor.get(client, 0) >= mark for client, mark in story.cursor.items())
        story.cursor = cursor
        return bool(rows)

    @precondition(_has_stories)
    @rule(data=st.data())
    def look_through_another_engine(self, data: st.DataObject) -> None:
        """Scan through another engine on the same data."""
        other = self._reopen(self.engine)
        if other is not None:
            story = self._choose(data, self._stories())
            snapshot = self._snapshot(story, other)
            assert rows_of(other.scan(story.chronicle, story.name)) == story.rows(snapshot)
            other.close()

    # -- always ----------------------------------------------------------------------------------------------

    @invariant()
    def the_catalog_is_right(self) -> None:
        """Compare all names."""
        assert self.engine.chronicles() == sorted(self._catalog)
        for chronicle, stories in self._catalog.items():
            assert self.engine.stories(chronicle) == sorted(stories)

    @invariant()
    def statistics_are_right(self) -> None:
        """Compare what became of events."""
        for client in self._clients():
            statistics = client.writer.statistics()
            acknowledged = client.earlier + statistics.acknowledged
            assert client.earlier + statistics.logged == len(client.rows)
            assert client.acknowledged <= acknowledged <= len(client.rows)
            assert sum(statistics.lost.values()) == client.lost
            client.acknowledged = acknowledged

    def teardown(self) -> None:
        """Close everything."""
        for client in self._clients():
            client.writer.close()
        self.engine.close()


def engine_state_machine(
    make_engine: Callable[[], Engine], reopen: Callable[[Engine], Engine | None] | None = None
) -> type[EngineMachine]:
    """Return a state machine; its `TestCase` is what pytest and unittest run.

    Args:
        make_engine: makes an engine without chronicles, one for every example.
        reopen: makes another engine on the data of the given one, as in `EngineContract`.
    """

    class Machine(EngineMachine):
        def __init__(self) -> None:
            super().__init__(make_engine, reopen or (lambda _: None))

    Machine.__name__ = Machine.__qualname__ = "EngineMachine"
    return Machine
