"""The toy engine keeps the contract, and does what it is told."""

from __future__ import annotations

from typing import Any

import pytest

from py_chronolog_client.engine.base import Engine, ScanReport, WriterOptions
from py_chronolog_client.errors import ChronoLogError, InvalidArgumentError, RecordTooLargeError
from py_chronolog_client.testing import EngineContract, ManualClock, ToyEngine


class TestToyContract(EngineContract):
    page_events = 7
    record_limit_bytes = 2**20

    def make_engine(self) -> Engine:
        return ToyEngine()

    def reopen(self, engine: Engine) -> Engine:
        assert isinstance(engine, ToyEngine)
        return engine.beside()

    def damage(self, engine: Engine, chronicle: str, story: str, client_id: int) -> bool:
        assert isinstance(engine, ToyEngine)
        engine.spoil(chronicle, story, client_id, 1)
        return True


class TestToyContractWithOtherSizes(TestToyContract):
    """Pages of one event, and a small limit."""

    page_events = 1
    record_limit_bytes = 100_000

    def make_engine(self) -> Engine:
        return ToyEngine(page_events=1, record_limit_bytes=100_000)


@pytest.fixture
def engine() -> ToyEngine:
    engine = ToyEngine()
    engine.create_chronicle("c", {})
    return engine


def open_writer(engine: ToyEngine, client_id: int = 1, **options: Any) -> Any:
    return engine.open_writer("c", "s", {}, WriterOptions(client_id, ManualClock(10), **options))


def records(engine: ToyEngine, **arguments: Any) -> list[bytes]:
    return [record for page in engine.scan("c", "s", **arguments) for record in page.records()]


def test_events_are_read_when_they_are_acknowledged(engine: ToyEngine) -> None:
    writer = open_writer(engine)
    for number in range(4):
        writer.log_event(str(number))
    assert writer.statistics().backlog == 4
    assert records(engine) == []
    assert engine.snapshot("c", "s") == {1: 0}
    engine.deliver(1)
    assert writer.statistics().backlog == 3
    assert records(engine) == [b"0"]
    engine.deliver(2)
    assert records(engine) == [b"0", b"1", b"2"]
    engine.deliver()
    assert writer.statistics().backlog == 0
    assert engine.snapshot("c", "s") == {1: 4}


def test_a_batch_is_delivered_whole(engine: ToyEngine) -> None:
    writer = open_writer(engine)
    writer.log_event("first")
    writer.log_events(["a", "b", "c"])
    writer.log_event("last")
    engine.deliver(2)
    assert records(engine) == [b"first", b"a", b"b", b"c"]
    engine.deliver(100)
    assert records(engine)[-1] == b"last"


def test_delivery_and_flush_are_per_writer(engine: ToyEngine) -> None:
    first, second = open_writer(engine, 1), open_writer(engine, 2)
    for writer in (first, second):
        writer.log_event("a")
        writer.log_event("b")
    first.flush()
    assert engine.snapshot("c", "s") == {1: 2, 2: 0}
    engine.deliver(1)
    assert engine.snapshot("c", "s") == {1: 2, 2: 1}


def test_it_refuses_when_it_is_told_to(engine: ToyEngine) -> None:
    writer = open_writer(engine)
    assert writer.log_event("before") == 10
    engine.refuse("disk full")
    assert writer.log_event("refused") == 0
    assert writer.log_events(["refused", "refused"]) == 0
    engine.refuse("no network")
    assert writer.log_event("refused") == 0
    engine.refuse(None)
    assert writer.log_event("after") == 10
    statistics = writer.statistics()
    assert statistics.logged == 2
    assert statistics.lost == {"disk full": 3, "no network": 1}
    assert writer.flush() == 2
    assert records(engine) == [b"before", b"after"]


def test_it_loses_events_when_it_is_told_to(engine: ToyEngine) -> None:
    writer = open_writer(engine)
    writer.log_events(["a", "b", "c"])
    writer.close()
    engine.spoil("c", "s", 1, 1)
    report = ScanReport()
    assert records(engine, report=report) == [b"a", b"c"]
    assert report.missing == len(report.damages) == 1
    assert report.damages[0].offset == 1


def test_engines_beside_each_other_share_their_stories(engine: ToyEngine) -> None:
    other = engine.beside()
    writer = open_writer(engine)
    writer.log_event("a")
    other.deliver()
    engine.close()
    assert records(other) == [b"a"]


def test_records_have_a_limit() -> None:
    engine = ToyEngine(record_limit_bytes=3)
    engine.create_chronicle("c", {})
    writer = open_writer(engine)
    assert writer.log_event("abc") > 0
    with pytest.raises(RecordTooLargeError, match="4 bytes is over the limit of 3 bytes"):
        writer.log_event(b"abcd")


@pytest.mark.parametrize("client_id", [-1, 2**63])
def test_client_ids_have_limits(engine: ToyEngine, client_id: int) -> None:
    with pytest.raises(InvalidArgumentError):
        open_writer(engine, client_id)


def test_a_client_id_belongs_to_one_client_of_a_story(engine: ToyEngine) -> None:
    open_writer(engine).close()
    with pytest.raises(InvalidArgumentError, match="take a new id"):
        open_writer(engine)
    engine.destroy_story("c", "s")
    open_writer(engine)


def test_it_offers_no_durability_of_the_node(engine: ToyEngine) -> None:
    with pytest.raises(ChronoLogError):
        open_writer(engine, durability="node")
    assert engine.stories("c") == []


def test_the_reason_of_a_close_is_noted(engine: ToyEngine) -> None:
    writer = open_writer(engine, description={"rank": 1})
    assert engine.clients("c", "s") == {1: {"rank": 1}}
    writer.close("time limit")
    writer.close("again")
    assert engine.clients("c", "s") == {1: {"rank": 1, "close_reason": "time limit"}}
