"""A client's log: every number once, from blocks or the tail, also while the writer moves events between two looks."""

import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from py_chronolog_client.engine.base import ScanReport
from py_chronolog_client.errors import DamageError
from py_chronolog_client.store import clientlog, owner
from py_chronolog_client.store.clientlog import ClientLog
from tests.store import independent
from tests.store.reading import segment, tail

CLIENT_ID = 9
Event = tuple[int, bytes]


def write_tail(directory: pathlib.Path, base: int, events: list[Event]) -> None:
    path = tail(directory, CLIENT_ID)
    making = path.with_suffix(".making")
    making.write_bytes(independent.tail(CLIENT_ID, base, events, owner.boot_id(), capacity=32))
    making.replace(path)


def records_of(log: ClientLog) -> dict[int, bytes]:
    """Return sequence number -> record of everything that there is."""
    numbers = [n for s in log.stretches(0, 2**64) for n in range(s.first_sequence, s.end_sequence)]
    return dict(zip(numbers, log.payload(np.array(numbers, np.uint64)).records(), strict=True))


def looked(directory: pathlib.Path, numbers: tuple[int, ...] = (0,)) -> tuple[ClientLog, ScanReport]:
    log, report = ClientLog(directory, CLIENT_ID), ScanReport()
    log.refresh(numbers, report)
    return log, report


# -- a writer that does things between the looks of a reader --


class ClientMachine(RuleBasedStateMachine):
    """A client appends, rolls, dies in the middle of a roll, closes and comes back; a reader looks now and then."""

    directory: pathlib.Path

    @initialize(first=st.sampled_from([0, 3, 2**32 - 2]))
    def begin(self, first: int) -> None:
        self.first = self.base = first
        self.time = 1_000
        self.blocks: list[Event] = []
        self.tail: list[Event] = []
        self.last = 0
        self.open = True
        for number in range(9):
            segment(self.directory, CLIENT_ID, number).unlink(missing_ok=True)
        self.write(independent.client_record(CLIENT_ID, first))
        write_tail(self.directory, first, [])
        self.log = ClientLog(self.directory, CLIENT_ID)

    @property
    def truth(self) -> dict[int, bytes]:
        return {self.first + place: record for place, (_, record) in enumerate(self.blocks + self.tail)}

    @property
    def end(self) -> int:
        return self.first + len(self.blocks) + len(self.tail)

    def write(self, data: bytes) -> None:
        with segment(self.directory, CLIENT_ID, self.last).open("ab") as file:
            file.write(data)

    @rule(count=st.integers(0, 3), step=st.integers(0, 2))
    def append(self, count: int, step: int) -> None:
        if self.open and len(self.tail) + count <= 32:
            for _ in range(count):
                self.time += step
                self.tail.append((self.time, b"%d" % self.end))
            write_tail(self.directory, self.base, self.tail)

    @rule(recycled=st.booleans(), half_a_block=st.booleans())
    def roll(self, recycled: bool, half_a_block: bool) -> None:
        """Move the tail to a block; without recycling the events are in both, as after a death in between."""
        if not self.open or not self.tail:
            return
        block = independent.events_block(CLIENT_ID, self.base, self.tail)
        if half_a_block:
            self.write(block[: len(block) // 2])
            self.look()
            size = len(block) // 2
            with segment(self.directory, CLIENT_ID, self.last).open("r+b") as file:
                file.seek(-size, 2)
                file.write(block)
        else:
            self.write(block)
        if not recycled:
            self.look()
        self.base = self.end
        self.blocks += self.tail
        self.tail = []
        write_tail(self.directory, self.base, [])

    @rule()
    def go_on_in_a_successor(self) -> None:
        """A sync has failed: the next segment repeats what an earlier one has."""
        if self.open and self.last < 8:
            self.last += 1
            data = independent.client_record(CLIENT_ID, self.first)
            if self.blocks:
                data += independent.events_block(CLIENT_ID, self.first, self.blocks)
            self.write(data)

    @rule(looks=st.booleans())
    def close_and_come_back(self, looks: bool) -> None:
        if self.open:
            self.roll(True, False)
            self.write(independent.close_record(CLIENT_ID, self.end))
            tail(self.directory, CLIENT_ID).unlink()
            self.open = False
        if looks:
            self.look()
        self.write(independent.client_record(CLIENT_ID, self.end))
        self.base = self.end
        write_tail(self.directory, self.base, [])
        self.open = True

    @rule()
    def look(self) -> None:
        report = ScanReport()
        self.log.refresh(range(self.last + 1), report)
        assert (report.damages, report.missing, report.disbelieved, report.unseen) == ([], 0, 0, 0)
        assert records_of(self.log) == self.truth
        assert self.log.end_sequence == self.end

    @invariant()
    def a_new_reader_finds_the_same(self) -> None:
        if hasattr(self, "log"):
            log, report = looked(self.directory, tuple(range(self.last + 1)))
            assert report.damages == []
            assert records_of(log) == self.truth


def test_whatever_the_writer_does_between_looks(tmp_path: pathlib.Path) -> None:
    class Machine(ClientMachine):
        directory = tmp_path

    run_state_machine_as_test(Machine, settings=settings(stateful_step_count=15))


# -- seams, gaps, numbers --


@given(
    base=st.integers(0, 6),
    blocks=st.integers(0, 6),
    in_tail=st.integers(0, 6),
    first=st.sampled_from([0, 2**32 - 3]),
)
def test_the_seam_between_blocks_and_tail(
    tmp_path_factory: pytest.TempPathFactory, base: int, blocks: int, in_tail: int, first: int
) -> None:
    """Where the tail begins before the end of the blocks its events are taken once; where behind, there is a gap."""
    directory = tmp_path_factory.mktemp("story")
    events = [(10 + number // 2, b"%d" % number) for number in range(20)]
    data = independent.client_record(CLIENT_ID, first)
    data += b"".join(independent.events_block(CLIENT_ID, first + n, [events[n]]) for n in range(blocks))
    segment(directory, CLIENT_ID).write_bytes(data)
    write_tail(directory, first + base, events[base : base + in_tail])
    log, report = looked(directory)
    here = {*range(blocks), *range(base, base + in_tail)}
    end = max(blocks, base + in_tail)
    assert records_of(log) == {first + number: b"%d" % number for number in here}
    assert log.end_sequence == first + end
    assert report.missing == end - len(here)
    assert len(report.damages) == (report.missing > 0)
    for number in set(range(end)) - here:
        with pytest.raises(DamageError, match=f"event {first + number} is missing"):
            log.span_of(first + number)
    with pytest.raises(DamageError, match="is missing"):
        log.span_of(first + end)


def test_parts_of_a_log(tmp_path: pathlib.Path) -> None:
    data = independent.client_record(CLIENT_ID)
    for first in (0, 3, 6):
        data += independent.events_block(
            CLIENT_ID, first, [(first + n, b"%d" % (first + n)) for n in range(3)]
        )
    segment(tmp_path, CLIENT_ID).write_bytes(data + independent.close_record(CLIENT_ID, 9))
    log, report = looked(tmp_path)
    assert report.damages == []
    for start in range(10):
        for stop in range(start + 1, 11):
            found = [s.first_sequence for s in log.stretches(start, stop)]
            assert found == [first for first in (0, 3, 6) if first < stop and first + 3 > start]
    some = np.array([1, 2, 5, 6, 8], np.uint64)
    assert log.payload(some).records() == [b"1", b"2", b"5", b"6", b"8"]
    assert log.windows_ns(some, some).tolist() == [2**64 - 1] * 5


def test_a_client_that_wrote_nothing(tmp_path: pathlib.Path) -> None:
    segment(tmp_path, CLIENT_ID).write_bytes(independent.client_record(CLIENT_ID, 5))
    log, report = looked(tmp_path)
    assert (log.end_sequence, log.stretches(0, 2**64), report.damages) == (5, [], [])
    assert log.description["pid"] == 4711
    assert log.closing is None
    with segment(tmp_path, CLIENT_ID).open("ab") as file:
        file.write(independent.close_record(CLIENT_ID, 5))
    log.refresh([0], report)
    assert report.damages == []
    assert log.closing is not None


def test_a_log_that_is_closed_is_not_read_again(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = independent.client_record(CLIENT_ID) + independent.events_block(CLIENT_ID, 0, [(1, b"a")])
    segment(tmp_path, CLIENT_ID).write_bytes(data + independent.close_record(CLIENT_ID, 1))
    log, report = looked(tmp_path)
    monkeypatch.setattr(clientlog, "read_header", None)
    monkeypatch.setattr(clientlog, "copy_tail", None)
    log.refresh([0], report)
    assert records_of(log) == {0: b"a"}


def test_a_tail_with_times_before_those_of_the_blocks(tmp_path: pathlib.Path) -> None:
    data = independent.client_record(CLIENT_ID) + independent.events_block(CLIENT_ID, 0, [(10, b"a")])
    segment(tmp_path, CLIENT_ID).write_bytes(data)
    write_tail(tmp_path, 1, [(9, b"b")])
    log, report = looked(tmp_path)
    assert records_of(log) == {0: b"a"}
    assert report.damages[0].reason == "its times are before those of the blocks"
    assert report.missing == 1


def test_the_largest_numbers(tmp_path: pathlib.Path) -> None:
    first = 2**64 - 3
    events = [(0, b"a"), (2**63 - 1, b"b")]
    data = independent.client_record(CLIENT_ID, first) + independent.events_block(CLIENT_ID, first, events)
    segment(tmp_path, CLIENT_ID).write_bytes(data + independent.close_record(CLIENT_ID, 2**64 - 1))
    log, report = looked(tmp_path)
    assert report.damages == []
    assert records_of(log) == {first: b"a", first + 1: b"b"}


def test_a_link_to_a_tail_that_is_not_here_is_counted_until_the_client_closes(tmp_path: pathlib.Path) -> None:
    segment(tmp_path, CLIENT_ID).write_bytes(independent.client_record(CLIENT_ID))
    tail(tmp_path, CLIENT_ID).symlink_to("/nowhere/at/all")
    log, report = looked(tmp_path)
    assert (report.unseen, report.damages) == (1, [])
    tail(tmp_path, CLIENT_ID).unlink()
    with segment(tmp_path, CLIENT_ID).open("ab") as file:
        file.write(independent.close_record(CLIENT_ID, 0))
    later = ScanReport()
    log.refresh([0], later)
    assert (later.unseen, later.damages) == (0, [])
