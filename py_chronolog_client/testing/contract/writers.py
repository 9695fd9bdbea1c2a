"""The contract of a writer: what it takes, how events are numbered and timed, what becomes of them."""

from __future__ import annotations

from typing import Any

import pytest

from py_chronolog_client.clock import UNKNOWN_WINDOW_NS, ClockModel, SystemClock
from py_chronolog_client.errors import ChronoLogError, InvalidArgumentError, RecordTooLargeError
from py_chronolog_client.testing.contract.base import CHRONICLE, STORY, ContractBase, Probe, rows_of
from py_chronolog_client.testing.manual_clock import ManualClock

RECORDS: list[str | bytes] = [
    "text",
    "",
    b"",
    b"bytes",
    b"\0",
    "nul\0in the middle\0",
    "line\nline\r\n",
    "\u00fcml\u00e4ut \U0001f4dc",
    bytes(range(256)),
    b"\xff\xfe not UTF-8",
    b"x" * 100_000,
    "",
]
NO_RECORDS: list[Any] = [None, 1, 1.5, True, ["text"], object(), "\ud800", "half a pair \udfff."]


class WriterContract(ContractBase):
    """What a writer promises."""

    def test_records_come_back_byte_for_byte(self, probe: Probe) -> None:
        writer = probe.open()
        for record in RECORDS:
            assert writer.log_event(record) > 0
        writer.flush()
        expected = [record.encode() if isinstance(record, str) else record for record in RECORDS]
        assert probe.records() == expected

    def test_records_of_a_batch_come_back_byte_for_byte(self, probe: Probe) -> None:
        writer = probe.open()
        writer.log_events(RECORDS)
        writer.log_events(tuple(RECORDS))
        writer.flush()
        expected = [record.encode() if isinstance(record, str) else record for record in RECORDS]
        assert probe.records() == expected * 2

    def test_the_record_has_both_of_its_names(self, probe: Probe) -> None:
        writer = probe.open()
        assert writer.log_event(event_string="first") > 0
        assert writer.log_event(log_string=b"second") > 0
        writer.flush()
        assert probe.records() == [b"first", b"second"]

    def test_exactly_one_record_is_given(self, probe: Probe) -> None:
        writer = probe.open()
        call: Any = writer.log_event
        with pytest.raises(TypeError):
            call()
        with pytest.raises(TypeError):
            call("one", log_string="two")
        with pytest.raises(TypeError):
            call(event_string="one", log_string="two")
        with pytest.raises(TypeError):
            call("one", "two")
        with pytest.raises(TypeError):
            call(record="one")
        writer.flush()
        assert probe.rows() == []

    @pytest.mark.parametrize("position", range(len(NO_RECORDS)))
    def test_what_is_no_record_is_a_type_error_and_appends_nothing(self, probe: Probe, position: int) -> None:
        wrong = NO_RECORDS[position]
        writer = probe.open()
        call: Any = writer.log_event
        with pytest.raises(TypeError):
            call(wrong)
        with pytest.raises(TypeError):
            call(log_string=wrong)
        with pytest.raises(TypeError):
            writer.log_events(["good", wrong])
        with pytest.raises(TypeError):
            writer.log_events([wrong, b"good"])
        writer.log_event("next")
        writer.flush()
        assert [(sequence, record) for _, _, sequence, record in probe.rows()] == [(0, b"next")]
        statistics = writer.statistics()
        assert (statistics.logged, dict(statistics.lost)) == (1, {})

    def test_a_record_over_the_limit_is_refused(self, probe: Probe) -> None:
        limit_bytes = self.record_limit_bytes
        if limit_bytes is None:
            pytest.skip("record_limit_bytes is not given")
        writer = probe.open()
        with pytest.raises(RecordTooLargeError) as caught:
            writer.log_event(b"x" * (limit_bytes + 1))
        assert (caught.value.size_bytes, caught.value.limit_bytes) == (limit_bytes + 1, limit_bytes)
        with pytest.raises(RecordTooLargeError):
            writer.log_event("\u00e9" * (limit_bytes // 2 + 1))
        with pytest.raises(RecordTooLargeError):
            writer.log_events(["small", b"x" * (limit_bytes + 1)])
        assert writer.log_event(b"x" * limit_bytes) > 0
        assert writer.log_event("next") > 0
        writer.flush()
        assert [(row[2], len(row[3])) for row in probe.rows()] == [(0, limit_bytes), (1, 4)]

    def test_events_are_numbered_from_zero(self, probe: Probe) -> None:
        first, second = probe.open(1), probe.open(2)
        first.log_event("a")
        second.log_events(["b", "c"])
        first.log_events(["d", "e"])
        first.log_event("f")
        first.flush()
        second.flush()
        numbers = {(client_id, record): sequence for _, client_id, sequence, record in probe.rows()}
        assert numbers == {
            (1, b"a"): 0,
            (1, b"d"): 1,
            (1, b"e"): 2,
            (1, b"f"): 3,
            (2, b"b"): 0,
            (2, b"c"): 1,
        }

    def test_sequences_are_64_bits_and_indexes_their_low_32(self, probe: Probe) -> None:
        first = 2**32 - 3
        writer = probe.open(first_sequence=first)
        for number in range(4):
            writer.log_event(str(number))
        writer.log_events(["4", "5"])
        assert writer.flush() == first + 6
        assert [(row[2], row[3]) for row in probe.rows()] == [(first + n, b"%d" % n) for n in range(6)]
        indexes = [index for page in probe.pages() for index in page.indexes.tolist()]
        assert indexes == [2**32 - 3, 2**32 - 2, 2**32 - 1, 0, 1, 2]
        assert probe.snapshot()[1] == first + 6
        assert [row[2] for row in probe.rows(since={1: 2**32 - 1}, snapshot={1: 2**32 + 1})] == [
            2**32 - 1,
            2**32,
        ]
        statistics = writer.statistics()
        assert (statistics.logged, statistics.acknowledged) == (6, 6)

    def test_a_client_comes_back_and_goes_on(self, probe: Probe) -> None:
        clock = probe.clock
        first = 2**32 - 2
        for visit in range(4):
            clock.now_ns = (1_000, 400, 2_000, 1_999)[
                visit
            ]  # perhaps another clock, or one that was set back
            writer = probe.open(5, first_sequence=first + visit, description={"visit": visit})
            assert writer.statistics().logged == 0
            assert writer.log_event(str(visit)) == (1_000, 1_000, 2_000, 2_000)[visit]
            assert writer.flush() == first + visit + 1
            assert writer.statistics().logged == writer.statistics().acknowledged == 1
            with pytest.raises(InvalidArgumentError):
                probe.open(5, first_sequence=first + visit + 1)  # it has not gone
            writer.close()
        assert [row[1:] for row in probe.rows()] == [(5, first + n, b"%d" % n) for n in range(4)]
        assert probe.snapshot() == {5: first + 4}
        assert probe.engine.clients(CHRONICLE, STORY)[5]["visit"] == 0

    def test_a_client_comes_back_with_the_number_at_which_it_left_and_no_other(self, probe: Probe) -> None:
        writer = probe.open(5)
        writer.log_events(["a", "b", "c"])
        writer.close()
        for wrong in (0, 1, 2, 4, 2**32 + 3):
            with pytest.raises(InvalidArgumentError):
                probe.open(5, first_sequence=wrong)
        writer = probe.open(5, first_sequence=3)
        writer.log_event("d")
        writer.close()
        assert probe.records() == [b"a", b"b", b"c", b"d"]

    def test_log_event_returns_the_time_of_the_event(self, probe: Probe) -> None:
        writer = probe.open()
        returned = [writer.log_event(str(number)) for number in range(50)]
        writer.flush()
        assert [row[0] for row in probe.rows()] == returned == sorted(returned)

    def test_times_never_decrease(self, probe: Probe) -> None:
        clock = probe.clock
        writer = probe.open()
        returned = []
        for now_ns in (100, 100, 70, 99, 150, 1, 149, 150, 2**63, 5):
            clock.now_ns = now_ns
            returned.append(writer.log_event("event"))
        assert returned == [100, 100, 100, 100, 150, 150, 150, 150, 2**63, 2**63]
        assert writer.log_events(["batch"]) == 2**63
        writer.flush()
        assert [row[0] for row in probe.rows()] == [*returned, 2**63]

    def test_times_never_decrease_under_another_clock(self, probe: Probe) -> None:
        clock = probe.clock
        clock.now_ns = 1_000
        writer = probe.open()
        returned = [writer.log_event("event")]
        late = ManualClock(400)
        writer.use_clock(late)
        returned.append(writer.log_event("event"))
        late.now_ns = 2_000
        returned.append(writer.log_event("event"))
        clock.now_ns = 9_000
        returned.append(writer.log_event("event"))
        assert returned == [1_000, 1_000, 2_000, 2_000]
        writer.flush()
        assert [row[0] for row in probe.rows()] == returned

    def test_a_reading_that_is_over_is_renewed(self, probe: Probe) -> None:
        clock = ManualClock(1_000, ClockModel(model_id=1, window_ns=10))
        clock.until = 1_500
        writer = probe.open(clock=clock)
        returned = [writer.log_event("a")]
        clock.now_ns, clock.until, clock.model = 1_500, 3_000, ClockModel(model_id=2, window_ns=99)
        returned.append(writer.log_event("b"))
        clock.now_ns = 1_501
        returned.append(writer.log_event("c"))
        clock.now_ns, clock.until = 3_001, 9_000
        returned += [writer.log_events(["d", "e"]), writer.log_event("f")]
        writer.flush()
        assert returned == [1_000, 1_500, 1_501, 3_001, 3_001]
        windows = [int(window) for page in probe.pages() for window in page.windows_ns()]
        assert windows == [10, 10, 99, 99, 99, 99]

    def test_times_never_decrease_under_the_clock_of_the_system(self, probe: Probe) -> None:
        writer = probe.open()
        returned = [writer.log_event("event") for _ in range(1_000)]
        assert returned == sorted(returned)

    def test_the_model_of_the_clock_is_kept(self, probe: Probe) -> None:
        known = ManualClock(probe.clock.now_ns, ClockModel(model_id=1, window_ns=1_500))
        better = ManualClock(probe.clock.now_ns, ClockModel(model_id=2, window_ns=300))
        writer = probe.open(clock=known)
        writer.log_events(["a", "b"])
        writer.use_clock(better)
        writer.log_event("c")
        writer.use_clock(probe.clock)
        writer.log_event("d")
        writer.flush()
        windows_ns = [window_ns for page in probe.pages() for window_ns in page.windows_ns().tolist()]
        assert windows_ns == [1_500, 1_500, 300, UNKNOWN_WINDOW_NS]

    def test_a_batch_has_one_time(self, probe: Probe) -> None:
        writer = probe.open(clock=SystemClock())
        before_ns = writer.log_event("before")
        time_ns = writer.log_events([str(number) for number in range(20)])
        after_ns = writer.log_event("after")
        assert before_ns <= time_ns <= after_ns
        writer.flush()
        assert [row[0] for row in probe.rows()] == [before_ns, *[time_ns] * 20, after_ns]
        assert [row[2] for row in probe.rows()] == list(range(22))

    def test_an_empty_batch_appends_nothing(self, probe: Probe) -> None:
        writer = probe.open()
        before_ns = writer.log_event("before")
        empty_ns = writer.log_events([])
        after_ns = writer.log_event("after")
        assert before_ns <= empty_ns <= after_ns
        assert writer.statistics().logged == 2
        assert writer.flush() == 2
        assert probe.records() == [b"before", b"after"]

    def test_every_client_id_is_a_client(self, probe: Probe) -> None:
        client_ids = [2**63 - 1, 0, 2**32, 2**31, 1]
        for client_id in client_ids:
            writer = probe.open(client_id)
            assert writer.client_id == client_id
            writer.log_event(str(client_id))
            writer.flush()
        assert sorted((row[1], row[3]) for row in probe.rows()) == [
            (client_id, b"%d" % client_id) for client_id in sorted(client_ids)
        ]
        assert {client_id: probe.snapshot()[client_id] for client_id in client_ids} == dict.fromkeys(
            client_ids, 1
        )

    def test_what_clients_say_of_themselves_is_kept(self, probe: Probe) -> None:
        said = {
            3: {"rank": 3, "size": 8, "job": "1234", "nodes": ["n1", "n2"], "load": 0.5, "blob": b"\0\xff"},
            2**40: {"rank": 4, "nested": {"a": {"b": None}}, "flag": True},
        }
        for client_id, description in said.items():
            probe.open(client_id, description=description)
        for _ in range(2):
            clients = probe.engine.clients(CHRONICLE, STORY)
            assert clients.keys() == said.keys()
            for client_id, description in said.items():
                assert description.items() <= clients[client_id].items()
            probe.close_writers()

    def test_statistics_tell_what_became_of_events(self, probe: Probe) -> None:
        writer = probe.open(first_sequence=100)
        statistics = writer.statistics()
        assert (statistics.logged, statistics.acknowledged, statistics.backlog) == (0, 0, 0)
        assert writer.flush() == 100
        writer.log_event("a")
        writer.log_events(["b", "c"])
        statistics = writer.statistics()
        assert statistics.logged == 3
        assert 0 <= statistics.acknowledged <= 3
        assert statistics.backlog == 3 - statistics.acknowledged
        assert writer.flush() == 103
        statistics = writer.statistics()
        assert (statistics.logged, statistics.acknowledged, statistics.backlog) == (3, 3, 0)
        assert dict(statistics.lost) == {}

    def test_flush_waits_no_longer_than_it_may(self, probe: Probe) -> None:
        writer = probe.open()
        writer.log_events(["a", "b"])
        assert 0 <= writer.flush(timeout_s=0.0) <= 2
        assert writer.flush(timeout_s=60.0) == 2
        assert writer.flush() == 2

    def test_acknowledged_events_are_readable(self, probe: Probe) -> None:
        writer = probe.open()
        for number in range(20):
            writer.log_event(str(number))
            acknowledged = writer.flush() if number % 3 == 2 else writer.statistics().acknowledged
            assert probe.snapshot().get(1, 0) >= acknowledged
            assert len(probe.rows()) >= acknowledged

    def test_close_flushes(self, probe: Probe) -> None:
        writer = probe.open()
        writer.log_event("a")
        writer.log_events(["b", "c"])
        writer.close("the end of the job")
        assert probe.records() == [b"a", b"b", b"c"]
        statistics = writer.statistics()
        assert (statistics.logged, statistics.acknowledged, statistics.backlog) == (3, 3, 0)

    def test_closing_twice_does_nothing(self, probe: Probe) -> None:
        writer = probe.open()
        writer.log_event("a")
        writer.close()
        writer.close("again")
        assert writer.flush() == 1
        assert probe.records() == [b"a"]

    def test_events_for_a_closed_writer_are_refused_and_counted(self, probe: Probe) -> None:
        writer = probe.open()
        writer.log_event("a")
        writer.close()
        assert writer.log_event("late") == 0
        assert writer.log_event(log_string=b"late") == 0
        assert writer.log_events(["late", "late", "late"]) == 0
        statistics = writer.statistics()
        assert (statistics.logged, statistics.acknowledged) == (1, 1)
        assert dict(statistics.lost) == {"closed": 5}
        assert probe.records() == [b"a"]

    def test_a_story_is_written_by_one_client_after_another(self, probe: Probe) -> None:
        for client_id in (5, 3, 4):
            writer = probe.open(client_id)
            writer.log_event(str(client_id))
            writer.close()
        assert sorted(probe.records()) == [b"3", b"4", b"5"]

    def test_stories_do_not_mix(self, probe: Probe) -> None:
        writers = [probe.open(1, story=story) for story in ("one", "two")]
        for number, writer in enumerate(writers * 2):
            writer.log_event(str(number))
        for writer in writers:
            writer.flush()
        for story, expected in (("one", [b"0", b"2"]), ("two", [b"1", b"3"])):
            assert [row[3] for row in rows_of(probe.engine.scan(CHRONICLE, story))] == expected

    def test_durability_node_is_offered_or_refused(self, probe: Probe) -> None:
        if probe.engine.capabilities.node_durability:
            writer = probe.open(durability="node")
            writer.log_event("a")
            writer.log_events(["b", "c"])
            assert writer.flush() == 3
            assert writer.statistics().backlog == 0
            assert probe.records() == [b"a", b"b", b"c"]
        else:
            with pytest.raises(ChronoLogError):
                probe.open(durability="node")

    def test_another_engine_reads_what_was_acknowledged(self, probe: Probe) -> None:
        other = probe.with_engine(self.reopen(probe.engine))
        writer = probe.open(description={"rank": 7})
        for number in range(20):
            writer.log_event(str(number))
            if number % 5 == 4:
                writer.flush()
                assert other.records() == [b"%d" % n for n in range(number + 1)]
        assert other.engine.clients(CHRONICLE, STORY)[1]["rank"] == 7
        assert other.snapshot() == probe.snapshot()
