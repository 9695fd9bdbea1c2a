"""The contract of `follow`: every event once, however late it comes."""

from __future__ import annotations

import time

from py_chronolog_client.engine.base import Snapshot
from py_chronolog_client.testing.contract.base import ContractBase, Probe, Row
from py_chronolog_client.testing.contract.threads import running

_PATIENCE_S = 30.0


class FollowContract(ContractBase):
    """What following a story promises."""

    def test_following_starts_with_what_is_there(self, probe: Probe) -> None:
        writer = probe.open()
        writer.log_events(["a", "b"])
        writer.flush()
        rows, cursor = probe.follow({})
        assert [row[3] for row in rows] == [b"a", b"b"]
        assert cursor[1] == 2
        rows, again = probe.follow(cursor)
        assert rows == []
        assert again[1] == 2

    def test_following_from_a_snapshot_gives_what_came_after(self, probe: Probe) -> None:
        writer = probe.open()
        writer.log_event("before")
        writer.flush()
        cursor = probe.snapshot()
        writer.log_events(["after", "later"])
        writer.flush()
        rows, _ = probe.follow(cursor)
        assert [row[3] for row in rows] == [b"after", b"later"]

    def test_a_cursor_is_a_snapshot(self, probe: Probe) -> None:
        cursor: Snapshot = {}
        first, second = probe.open(1), probe.open(2)
        for number in range(6):
            writer = (first, second)[number % 2]
            writer.log_events([str(number), str(number)])
            writer.flush()
            before, before_copy = cursor, dict(cursor)
            rows, cursor = probe.follow(cursor)
            assert before == before_copy, "the cursor that was given must not change"
            assert rows == probe.rows(since=before, snapshot=cursor)
            assert len(rows) == 2
        assert len(probe.rows(snapshot=cursor)) == 12

    def test_following_waits_no_longer_than_it_may(self, probe: Probe) -> None:
        probe.open().flush()
        started_s = time.monotonic()
        rows, cursor = probe.follow({}, timeout_s=0.05)
        waited_s = time.monotonic() - started_s
        assert rows == []
        assert 0.03 <= waited_s < 5.0
        assert all(mark == 0 for mark in cursor.values())

    def test_following_wakes_up_for_an_event(self, probe: Probe) -> None:
        writer = probe.open()

        def write() -> None:
            time.sleep(0.05)
            writer.log_event("woken")
            writer.flush()

        started_s = time.monotonic()
        with running(write):
            rows, _ = probe.follow({}, timeout_s=_PATIENCE_S)
        assert [row[3] for row in rows] == [b"woken"]
        assert time.monotonic() - started_s < _PATIENCE_S / 2

    def test_a_late_event_with_an_old_time_is_delivered_once(self, probe: Probe) -> None:
        clock = probe.clock
        prompt, late = probe.open(1), probe.open(2)
        clock.now_ns = 5_000
        prompt.log_event("prompt")
        prompt.flush()
        rows, cursor = probe.follow({})
        assert [row[3] for row in rows] == [b"prompt"]
        clock.now_ns = 1_000
        late.log_event("late")
        late.flush()
        later = probe.open(3)  # a client that the cursor has never heard of
        later.log_event("later")
        later.flush()
        rows, cursor = probe.follow(cursor)
        assert rows == [(1_000, 2, 0, b"late"), (1_000, 3, 0, b"later")]
        assert probe.follow(cursor)[0] == []

    def test_each_delivery_is_in_order(self, probe: Probe) -> None:
        clock = probe.clock
        for client_id, now_ns in ((5, 300), (4, 100), (3, 300), (2, 200)):
            writer = probe.open(client_id)
            clock.now_ns = now_ns
            writer.log_events(["a"] * 5)
            writer.flush()
        rows, _ = probe.follow({})
        assert len(rows) == 20
        assert rows == sorted(rows)

    def test_every_event_is_delivered_once_while_a_thread_writes(self, probe: Probe) -> None:
        clock = probe.clock
        clock.now_ns = 10_000
        writers = [probe.open(client_id) for client_id in (1, 2, 3)]
        calls = 120
        total = calls + calls // 4 * 2

        def write() -> None:
            for number in range(calls):
                clock.now_ns = 10_000 + (number * 7) % 50 - number  # mostly backwards
                writers[number % 3].log_event(str(number))
                if number % 4 == 0:
                    writers[number % 3].log_events([f"{number}.0", f"{number}.1"])
                if number % 10 == 9:
                    for writer in writers:
                        writer.flush()
                    time.sleep(0.0005)
            for writer in writers:
                writer.flush()

        seen: list[Row] = []
        cursor: Snapshot = {}
        with running(write) as is_done:
            while not is_done() and len(seen) <= total:
                rows, cursor = probe.follow(cursor, timeout_s=0.01)
                seen += rows
        rows, cursor = probe.follow(cursor)
        while rows and len(seen) <= total:
            seen += rows
            rows, cursor = probe.follow(cursor)
        assert len({row[1:3] for row in seen}) == len(seen), "an event was delivered twice"
        assert len(seen) == total
        assert sorted(seen) == probe.rows()
