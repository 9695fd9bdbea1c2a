"""The contract of the catalog: chronicles, stories, their attributes, who may destroy what."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from py_chronolog_client.engine.base import Engine
from py_chronolog_client.errors import (
    AcquiredError,
    ChronicleExistsError,
    ClosedError,
    InvalidArgumentError,
    NotFoundError,
)
from py_chronolog_client.testing.contract.base import CHRONICLE, STORY, ContractBase, Probe, without_owner
from py_chronolog_client.testing.contract.threads import running

ODD_NAMES = [
    "/",
    ".",
    "..",
    "../../escape",
    "a/b",
    "a",
    "A",
    " a",
    "a ",
    "a\0b",
    "a\nb",
    "~",
    "-rf",
    "*",
    "name.with.dots",
    "\u00e9",
    "e\u0301",
    "\U0001f4dc",
    "x" * 4096,
    "x" * 4095 + "y",
]

_READS: list[Callable[[Engine, str, str], object]] = [
    lambda engine, chronicle, story: engine.story_attributes(chronicle, story),
    lambda engine, chronicle, story: engine.destroy_story(chronicle, story),
    lambda engine, chronicle, story: engine.clients(chronicle, story),
    lambda engine, chronicle, story: engine.snapshot(chronicle, story),
    lambda engine, chronicle, story: list(engine.scan(chronicle, story)),
    lambda engine, chronicle, story: engine.follow(chronicle, story, {}, 0.0),
]


class CatalogContract(ContractBase):
    """What an engine knows beside events."""

    def test_a_new_engine_has_no_chronicles(self, probe: Probe) -> None:
        assert probe.engine.chronicles() == []

    def test_chronicles_are_listed_sorted(self, probe: Probe) -> None:
        for name in ("b", "a", "c", "B"):
            probe.engine.create_chronicle(name, {})
        assert probe.engine.chronicles() == ["B", "a", "b", "c"]

    def test_stories_are_listed_sorted(self, probe: Probe) -> None:
        probe.engine.create_chronicle(CHRONICLE, {})
        assert probe.engine.stories(CHRONICLE) == []
        for client_id, name in enumerate(("b", "a", "c", "B")):
            probe.open(client_id, story=name)
        assert probe.engine.stories(CHRONICLE) == ["B", "a", "b", "c"]

    def test_creating_twice_raises_and_changes_nothing(self, probe: Probe) -> None:
        probe.engine.create_chronicle(CHRONICLE, {"made": "first"})
        with pytest.raises(ChronicleExistsError):
            probe.engine.create_chronicle(CHRONICLE, {"made": "second"})
        assert without_owner(probe.engine.chronicle_attributes(CHRONICLE)) == {"made": "first"}

    def test_of_several_creators_exactly_one_succeeds(self, probe: Probe) -> None:
        outcomes: list[str] = []

        def create(number: int) -> None:
            try:
                probe.engine.create_chronicle(CHRONICLE, {"made": str(number)})
                outcomes.append(str(number))
            except ChronicleExistsError:
                outcomes.append("exists")

        with running(*(lambda number=number: create(number) for number in range(6))):
            pass
        assert outcomes.count("exists") == 5
        (winner,) = (outcome for outcome in outcomes if outcome != "exists")
        assert without_owner(probe.engine.chronicle_attributes(CHRONICLE)) == {"made": winner}

    def test_chronicle_attributes_are_kept_as_they_were_given(self, probe: Probe) -> None:
        given = {"tier": "fast", "\u00e9": "\U0001f4dc", "empty": "", "": "nameless"}
        attributes = dict(given)
        probe.engine.create_chronicle(CHRONICLE, attributes)
        attributes["tier"] = "changed by the caller"
        probe.engine.chronicle_attributes(CHRONICLE)["tier"] = "changed by a reader"
        assert without_owner(probe.engine.chronicle_attributes(CHRONICLE)) == given

    def test_story_attributes_are_those_of_its_creation(self, probe: Probe) -> None:
        attributes = {"made": "first"}
        probe.open(1, attributes=attributes)
        attributes["made"] = "changed by the caller"
        probe.open(2, attributes={"made": "second"})
        probe.engine.story_attributes(CHRONICLE, STORY)["made"] = "changed by a reader"
        assert without_owner(probe.engine.story_attributes(CHRONICLE, STORY)) == {"made": "first"}

    def test_opening_a_writer_does_not_create_the_chronicle(self, probe: Probe) -> None:
        with pytest.raises(NotFoundError):
            probe.engine.open_writer(CHRONICLE, STORY, {}, probe.options())
        assert probe.engine.chronicles() == []

    def test_any_name_is_a_name(self, probe: Probe) -> None:
        for number, name in enumerate(ODD_NAMES):
            probe.engine.create_chronicle(name, {"number": str(number)})
            writer = probe.open(number, chronicle=name, story=name)
            writer.log_event(str(number))
            writer.close()
        assert probe.engine.chronicles() == sorted(ODD_NAMES)
        for number, name in enumerate(ODD_NAMES):
            assert without_owner(probe.engine.chronicle_attributes(name)) == {"number": str(number)}
            assert probe.engine.stories(name) == [name]
            (page,) = probe.engine.scan(name, name)
            assert page.records() == [b"%d" % number]

    def test_any_names_share_a_chronicle(self, probe: Probe) -> None:
        for number, name in enumerate(ODD_NAMES):
            writer = probe.open(number, story=name)
            writer.log_event(name)
            writer.close()
        assert probe.engine.stories(CHRONICLE) == sorted(ODD_NAMES)
        for name in ODD_NAMES:
            (page,) = probe.engine.scan(CHRONICLE, name)
            assert page.records() == [name.encode()]

    @pytest.mark.parametrize("name", ["", "\ud800"], ids=["empty", "surrogate"])
    def test_a_name_that_is_no_name_is_refused(self, probe: Probe, name: str) -> None:
        probe.engine.create_chronicle(CHRONICLE, {})
        with pytest.raises(InvalidArgumentError):
            probe.engine.create_chronicle(name, {})
        with pytest.raises(InvalidArgumentError):
            probe.engine.destroy_chronicle(name)
        with pytest.raises(InvalidArgumentError):
            probe.engine.open_writer(name, STORY, {}, probe.options())
        with pytest.raises(InvalidArgumentError):
            probe.engine.open_writer(CHRONICLE, name, {}, probe.options())
        with pytest.raises(InvalidArgumentError):
            probe.engine.destroy_story(name, STORY)
        with pytest.raises(InvalidArgumentError):
            probe.engine.destroy_story(CHRONICLE, name)
        assert probe.engine.chronicles() == [CHRONICLE]
        assert probe.engine.stories(CHRONICLE) == []

    def test_a_missing_chronicle_is_not_found(self, probe: Probe) -> None:
        with pytest.raises(NotFoundError):
            probe.engine.destroy_chronicle("missing")
        with pytest.raises(NotFoundError):
            probe.engine.chronicle_attributes("missing")
        with pytest.raises(NotFoundError):
            probe.engine.stories("missing")

    @pytest.mark.parametrize("call", range(len(_READS)))
    def test_a_missing_story_is_not_found(self, probe: Probe, call: int) -> None:
        probe.engine.create_chronicle(CHRONICLE, {})
        for chronicle in ("missing", CHRONICLE):
            with pytest.raises(NotFoundError):
                _READS[call](probe.engine, chronicle, "missing")
        assert probe.engine.stories(CHRONICLE) == [], "asking for a story must not create it"

    def test_a_destroyed_story_is_gone_with_its_events(self, probe: Probe) -> None:
        writer = probe.open(1, attributes={"made": "first"})
        writer.log_event("old")
        writer.close()
        probe.open(2, story="other")
        probe.engine.destroy_story(CHRONICLE, STORY)
        assert probe.engine.stories(CHRONICLE) == ["other"]
        for call in _READS:
            with pytest.raises(NotFoundError):
                call(probe.engine, CHRONICLE, STORY)
        again = probe.open(1, attributes={"made": "again"})
        assert without_owner(probe.engine.story_attributes(CHRONICLE, STORY)) == {"made": "again"}
        assert probe.rows() == []
        again.log_event("new")
        again.close()
        assert probe.records() == [b"new"]

    def test_a_destroyed_chronicle_is_gone_with_its_stories(self, probe: Probe) -> None:
        for client_id, story in enumerate(("one", "two")):
            writer = probe.open(client_id, story=story)
            writer.log_event("old")
            writer.close()
        probe.engine.destroy_chronicle(CHRONICLE)
        assert probe.engine.chronicles() == []
        with pytest.raises(NotFoundError):
            list(probe.engine.scan(CHRONICLE, "one"))
        probe.engine.create_chronicle(CHRONICLE, {"made": "again"})
        assert probe.engine.stories(CHRONICLE) == []
        assert without_owner(probe.engine.chronicle_attributes(CHRONICLE)) == {"made": "again"}

    def test_an_acquired_story_is_not_destroyed(self, probe: Probe) -> None:
        first, second = probe.open(1), probe.open(2)
        for _ in range(2):
            with pytest.raises(AcquiredError):
                probe.engine.destroy_story(CHRONICLE, STORY)
            with pytest.raises(AcquiredError):
                probe.engine.destroy_chronicle(CHRONICLE)
            first.close()  # the second client holds it still
        assert probe.engine.stories(CHRONICLE) == [STORY]
        assert second.log_event("kept") > 0
        second.close()
        assert probe.records() == [b"kept"]
        probe.engine.destroy_story(CHRONICLE, STORY)
        probe.engine.destroy_chronicle(CHRONICLE)
        assert probe.engine.chronicles() == []

    def test_another_engine_sees_the_same_catalog(self, probe: Probe) -> None:
        other = probe.with_engine(self.reopen(probe.engine))
        writer = probe.open(attributes={"made": "here"})
        assert other.engine.chronicles() == [CHRONICLE]
        assert other.engine.stories(CHRONICLE) == [STORY]
        assert without_owner(other.engine.story_attributes(CHRONICLE, STORY)) == {"made": "here"}
        with pytest.raises(ChronicleExistsError):
            other.engine.create_chronicle(CHRONICLE, {})
        with pytest.raises(AcquiredError):
            other.engine.destroy_chronicle(CHRONICLE)
        writer.close()
        other.engine.destroy_chronicle(CHRONICLE)
        assert probe.engine.chronicles() == []

    def test_a_closed_engine_says_so(self, probe: Probe) -> None:
        probe.open().close()
        probe.engine.close()
        probe.engine.close()
        with pytest.raises(ClosedError):
            probe.engine.chronicles()
        with pytest.raises(ClosedError):
            probe.engine.create_chronicle("late", {})
        with pytest.raises(ClosedError):
            list(probe.engine.scan(CHRONICLE, STORY))
