"""The contract of a scan: which events, in which order, in which pages."""

from __future__ import annotations

import random
import time
from contextlib import suppress
from itertools import product

import numpy as np
import pytest

from py_chronolog_client.clock import UNKNOWN_WINDOW_NS, ClockModel
from py_chronolog_client.engine.base import MAX_TIME_NS, ScanReport
from py_chronolog_client.errors import DamageError, ReplayTimeoutError
from py_chronolog_client.page import Page
from py_chronolog_client.testing.contract.base import CHRONICLE, STORY, ContractBase, Probe, Row, rows_of
from py_chronolog_client.testing.manual_clock import ManualClock

_BATCH = 500


def write_colliding(probe: Probe, seed: int = 1, calls: int = 300) -> list[Row]:
    """Log events of five clients at few times, in a disorder, and return them in story order."""
    clock = probe.clock
    chance = random.Random(seed)
    writers = [probe.open(client_id) for client_id in (7, 2**40, 0, 3, 2**63 - 1)]
    expected: list[Row] = []
    sequences = dict.fromkeys((writer.client_id for writer in writers), 0)
    for number in range(calls):
        writer = chance.choice(writers)
        clock.now_ns = 1_000 + number // 30 + chance.randrange(4)
        batch = [b"%d.%d" % (number, part) for part in range(chance.choice((1, 1, 1, 3)))]
        time_ns = writer.log_event(batch[0]) if len(batch) == 1 else writer.log_events(batch)
        for record in batch:
            expected.append((time_ns, writer.client_id, sequences[writer.client_id], record))
            sequences[writer.client_id] += 1
        if chance.random() < 0.02:
            writer.flush()
    for writer in writers:
        writer.flush()
    return sorted(expected)


def fill_pages(probe: Probe, step_ns: int = 1) -> int:
    """Log more events of three clients than two pages hold, in batches `step_ns` apart; return how many."""
    clock = probe.clock
    writers = [probe.open(client_id) for client_id in range(3)]
    calls = 2 * probe.page_events // 3 // _BATCH + 1
    for call in range(calls):
        batch = [b"%d" % sequence for sequence in range(call * _BATCH, (call + 1) * _BATCH)]
        for writer in writers:
            clock.now_ns += step_ns
            writer.log_events(batch)
    for writer in writers:
        writer.flush()
    return 3 * calls * _BATCH


def columns_of(pages: list[Page]) -> list[np.ndarray[tuple[int], np.dtype[np.uint64]]]:
    """Return the concatenated times, client ids and sequences."""
    return [
        np.concatenate([getattr(page, name) for page in pages])
        for name in ("times", "client_ids", "sequences")
    ]


class ReadContract(ContractBase):
    """What a scan promises."""

    def test_order_is_time_client_sequence(self, probe: Probe) -> None:
        clock = probe.clock
        high, low = probe.open(9), probe.open(2)
        for writer, now_ns, record in (
            (high, 100, "c"),
            (low, 100, "a"),
            (high, 100, "d"),
            (low, 100, "b"),
            (low, 101, "e"),
            (high, 105, "g"),
            (low, 103, "f"),
            (low, 106, "h"),
        ):
            clock.now_ns = now_ns
            writer.log_event(record)
        high.flush()
        low.flush()
        assert probe.rows() == [
            (100, 2, 0, b"a"),
            (100, 2, 1, b"b"),
            (100, 9, 0, b"c"),
            (100, 9, 1, b"d"),
            (101, 2, 2, b"e"),
            (103, 2, 3, b"f"),
            (105, 9, 2, b"g"),
            (106, 2, 4, b"h"),
        ]

    @pytest.mark.parametrize("seed", [1, 2, 3])
    def test_order_holds_for_colliding_times(self, probe: Probe, seed: int) -> None:
        assert write_colliding(probe, seed) == probe.rows()

    def test_a_range_includes_both_ends(self, probe: Probe) -> None:
        clock = probe.clock
        writer = probe.open()
        for now_ns in (100, 200, 200, 300):
            clock.now_ns = now_ns
            writer.log_event(str(now_ns))
        writer.flush()
        assert [row[0] for row in probe.rows(100, 300)] == [100, 200, 200, 300]
        assert [row[0] for row in probe.rows(100, 200)] == [100, 200, 200]
        assert [row[0] for row in probe.rows(200, 300)] == [200, 200, 300]
        assert [row[0] for row in probe.rows(200, 200)] == [200, 200]
        assert [row[0] for row in probe.rows(101, 299)] == [200, 200]
        assert [row[0] for row in probe.rows(300, 300)] == [300]
        assert [row[0] for row in probe.rows(0, 99)] == []

    def test_every_range_of_a_story(self, probe: Probe) -> None:
        expected = write_colliding(probe, calls=120)
        times = sorted({row[0] for row in expected})
        bounds = [0, times[0] - 1, *times, times[-1] + 1, MAX_TIME_NS]
        for start_ns, end_ns in product(bounds, bounds):
            within = [row for row in expected if start_ns <= row[0] <= end_ns]
            assert probe.rows(start_ns, end_ns) == within, (start_ns, end_ns)

    def test_the_largest_times_are_times(self, probe: Probe) -> None:
        clock = probe.clock
        writer = probe.open()
        times = [1, 2**53 + 1, 2**63 - 1, 2**63, 2**63 + 1, MAX_TIME_NS - 1, MAX_TIME_NS]
        for clock.now_ns in times:
            assert writer.log_event("event") == clock.now_ns
        writer.flush()
        assert [row[0] for row in probe.rows()] == times
        for time_ns in times:
            assert [row[0] for row in probe.rows(time_ns, time_ns)] == [time_ns]
        assert [row[0] for row in probe.rows(2**63)] == times[3:]

    def test_an_empty_range_ends_at_once(self, probe: Probe) -> None:
        clock = probe.clock
        writer = probe.open()
        started_s = time.monotonic()
        assert list(probe.pages()) == []
        for now_ns in (100, 300):
            clock.now_ns = now_ns
            writer.log_event("event")
        writer.flush()
        for start_ns, end_ns in (
            (0, 99),
            (101, 299),
            (301, MAX_TIME_NS),
            (300, 100),
            (200, 199),
            (MAX_TIME_NS, 0),
        ):
            assert list(probe.pages(start_ns, end_ns)) == []
        assert time.monotonic() - started_s < 5.0

    def test_only_the_given_clients_are_delivered(self, probe: Probe) -> None:
        expected = write_colliding(probe)
        for client_ids in ([7], [0, 2**63 - 1], [3, 7, 0], (2**40,), [99], [99, 7], []):
            assert probe.rows(clients=client_ids) == [row for row in expected if row[1] in client_ids]
        time_ns = expected[len(expected) // 2][0]
        assert probe.rows(time_ns, time_ns, clients=[7, 3]) == [
            row for row in expected if row[0] == time_ns and row[1] in (3, 7)
        ]
        assert probe.rows(clients=None) == expected

    def test_a_snapshot_stays_what_it_is(self, probe: Probe) -> None:
        before = write_colliding(probe)
        snapshot = probe.snapshot()
        assert {client: snapshot[client] for client in (0, 3)} == {
            client: sum(row[1] == client for row in before) for client in (0, 3)
        }
        copy = dict(snapshot)
        probe.clock.now_ns = 1_000
        late = probe.open(
            4
        )  # events in the middle of what is there, of a client that the snapshot does not know
        late.log_events(["late", "late"])
        late.flush()
        known = probe.open(5, first_sequence=10)
        known.log_event("late")
        known.close()
        assert probe.rows(snapshot=snapshot) == before
        assert dict(snapshot) == copy
        assert len(probe.rows()) == len(before) + 3

    def test_a_snapshot_cuts_the_events_of_a_client(self, probe: Probe) -> None:
        expected = write_colliding(probe)
        for marks in ({}, {7: 0}, {7: 5}, {7: 5, 0: 9}, {7: 10**9, 3: 1}, {99: 5}):
            assert probe.rows(snapshot=marks) == [row for row in expected if row[2] < marks.get(row[1], 0)]

    def test_a_running_scan_does_not_see_new_events(self, probe: Probe) -> None:
        clock = probe.clock
        total = fill_pages(probe)
        scan = probe.pages()
        pages = [next(scan)]
        late = probe.open(9)
        for now_ns in (clock.now_ns, clock.now_ns + 1):
            clock.now_ns = now_ns
            late.log_event("late")
            late.flush()
        pages += scan
        assert 9 not in columns_of(pages)[1]
        assert sum(map(len, pages)) == total

    def test_since_leaves_out_what_was_seen(self, probe: Probe) -> None:
        first = write_colliding(probe, calls=100)
        seen = probe.snapshot()
        probe.clock.now_ns = 1_000
        late = probe.open(4)
        late.log_events(["late", "later"])
        late.flush()
        now = probe.snapshot()
        assert [row[3] for row in probe.rows(since=seen)] == [b"late", b"later"]
        assert probe.rows(since=now) == []
        assert probe.rows(since={}) == probe.rows()
        assert probe.rows(since={}, snapshot=seen) == first
        assert probe.rows(since=seen, snapshot=seen) == []
        for marks in ({7: 3}, {7: 3, 0: 10**9}, {99: 1}):
            assert probe.rows(since=marks, snapshot=seen) == [
                row for row in first if row[2] >= marks.get(row[1], 0)
            ]

    def test_all_conditions_hold_together(self, probe: Probe) -> None:
        expected = write_colliding(probe)
        low, high = expected[50][0], expected[-50][0]
        since, snapshot = {7: 5, 3: 2}, {7: 40, 3: 30, 0: 20}
        assert probe.rows(low, high, clients=[7, 0], snapshot=snapshot, since=since) == [
            (time_ns, client_id, sequence, record)
            for time_ns, client_id, sequence, record in expected
            if low <= time_ns <= high
            and client_id in (7, 0)
            and since.get(client_id, 0) <= sequence < snapshot.get(client_id, 0)
        ]

    @pytest.mark.parametrize("step_ns", [1, 0], ids=["moving", "standing"])
    def test_pages_are_bounded_and_in_order_together(self, probe: Probe, step_ns: int) -> None:
        total = fill_pages(probe, step_ns)
        pages = list(probe.pages())
        assert all(0 < len(page) <= probe.page_events for page in pages)
        times, client_ids, sequences = columns_of(pages)
        assert len(times) == total
        order = np.lexsort((sequences, client_ids, times))
        assert np.array_equal(order, np.arange(total)), "not in the order (time, client id, sequence)"
        for client_id in range(3):
            assert np.array_equal(sequences[client_ids == client_id], np.arange(total // 3))
        page = pages[-1]
        assert page.records() == [b"%d" % sequence for sequence in page.sequences.tolist()]
        assert page.payload().records() == page.records(), "one client's records under another's keys"

    def test_records_of_a_page_are_fetched_in_slices(self, probe: Probe) -> None:
        writer = probe.open()
        writer.log_events(["zero", "", "two", b"three", "four"])
        writer.flush()
        writer.log_events(["five", "six"])
        writer.close()
        for page in probe.pages():
            whole = page.records()
            assert len(whole) == len(page)
            for start in range(len(page) + 1):
                assert page.records(start) == whole[start:]
                for stop in range(len(page) + 1):
                    assert page.records(start, stop) == whole[start:stop]
                    assert page.payload(start, stop).records() == whole[start:stop]

    def test_pages_stay_readable_after_the_scan(self, probe: Probe) -> None:
        expected = write_colliding(probe)
        pages = list(probe.pages())
        writer = probe.open(11)
        writer.log_events([b"x" * 100] * 100)
        writer.flush()
        probe.close_writers()
        assert rows_of(pages) == expected
        assert rows_of(pages) == expected

    def test_scans_are_independent(self, probe: Probe) -> None:
        expected = write_colliding(probe)
        one, two = probe.pages(), probe.pages(clients=[7])
        rows_two = rows_of([next(two)])
        rows_one = rows_of(one)
        rows_two += rows_of(two)
        assert rows_one == expected
        assert rows_two == [row for row in expected if row[1] == 7]
        abandoned = probe.pages()
        next(abandoned)
        del abandoned
        assert probe.rows() == expected

    def test_a_scan_keeps_its_deadline(self, probe: Probe) -> None:
        expected = write_colliding(probe)
        assert probe.rows(timeout_s=60.0) == expected
        for timeout_s in (0.0, 1e-9):
            with suppress(ReplayTimeoutError):
                assert probe.rows(timeout_s=timeout_s) == expected

    def test_a_deadline_ends_a_long_scan(self, probe: Probe) -> None:
        fill_pages(probe)
        scan = probe.pages(timeout_s=0.02)
        try:
            next(scan)
            time.sleep(0.03)
            remaining = sum(1 for _ in scan)
        except ReplayTimeoutError:
            return
        assert remaining <= 1, "the scan went on after its deadline"

    def test_a_sound_story_has_a_clean_report(self, probe: Probe) -> None:
        expected = write_colliding(probe)
        report = ScanReport()
        assert probe.rows(report=report) == expected
        assert (report.damages, report.missing, report.disbelieved) == ([], 0, 0)

    def test_damage_is_reported_or_raised_at_the_end(self, probe: Probe) -> None:
        for client_id in (1, 2):
            writer = probe.open(client_id)
            writer.log_events(["a", "b", "c"])
            writer.close()
        if not self.damage(probe.engine, CHRONICLE, STORY, 1):
            pytest.skip("the engine cannot be damaged")
        report = ScanReport()
        rows = probe.rows(report=report)
        assert [row[2] for row in rows if row[1] == 2] == [0, 1, 2], "the other client suffers"
        assert report.damages
        assert all(isinstance(damage, DamageError) for damage in report.damages)
        assert report.missing == 6 - len(rows) > 0
        delivered: list[Row] = []
        with pytest.raises(DamageError):
            delivered.extend(row for page in probe.pages() for row in rows_of([page]))
        assert delivered == rows
        clean = ScanReport()
        assert len(probe.rows(clients=[2], report=clean)) == 3
        assert (clean.damages, clean.missing) == ([], 0)

    def test_an_aligned_replay_interpolates_and_keeps_the_times(self, probe: Probe) -> None:
        first, second = ClockModel(1, 1_000, 0, 0.0, 10, 1e-1), ClockModel(2, 2_000, 100, 0.0, 30, 1e-3)
        clock, unknown = ManualClock(1_500, first), ManualClock(1_520)
        clock.models = [first]
        writer, other = probe.open(1, clock=clock), probe.open(2, clock=unknown)
        writer.log_event("half way")
        other.log_event("by the system's clock")
        clock.now_ns, clock.model = 2_100, second
        clock.models.append(second)
        writer.use_clock(clock)
        writer.log_events(["at the second synchronisation", "the same batch"])
        for each in (writer, other):
            each.close()
        assert [row[0] for row in probe.rows()] == [1_500, 1_520, 2_100, 2_100]
        pages = list(probe.pages(aligned=True))
        rows = [(page.keys.tolist(), page.times.tolist(), page.windows_ns().tolist()) for page in pages]
        keys, times, windows = ([value for row in rows for value in row[column]] for column in range(3))
        assert keys == [1_520, 1_550, 2_100, 2_100]
        assert times == [1_520, 1_500, 2_100, 2_100]
        assert windows[0] == UNKNOWN_WINDOW_NS
        assert 20 <= windows[1] <= 22
        assert windows[2] == windows[3]
        assert 30 <= windows[2] <= 31
        assert [row[0] for row in probe.rows(1_540, 2_000, aligned=True)] == [1_500], (
            "a range of aligned times"
        )
