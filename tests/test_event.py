"""An event: its defaults, getters, equality, order, hash, repr and pickle."""

import copy
import pickle
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from py_chronolog_client import Event
from py_chronolog_client.event import make_events

U64 = st.integers(0, 2**64 - 1)
ARGUMENTS = st.tuples(U64, U64, U64, st.text() | st.binary())


def test_defaults() -> None:
    event = Event()
    assert (event.time(), event.client_id(), event.index(), event.log_record()) == (0, 0, 0, "")
    assert event == Event(0, 0, 0, "") == Event(event_time=0, client_id=0, index=0, log_record="")


def test_by_position_and_by_name() -> None:
    event = Event(1, 2, 3, "four")
    assert event == Event(log_record="four", index=3, client_id=2, event_time=1)
    assert (event.time(), event.client_id(), event.index(), event.log_record()) == (1, 2, 3, "four")
    assert (event.sequence(), event.record_bytes()) == (3, b"four")
    for wrong in ({"time": 1}, {"record": ""}, {"sequence": 1}):
        with pytest.raises(TypeError):
            Event(**wrong)
    with pytest.raises(TypeError):
        Event(1, 2, 3, "four", 5)  # type: ignore[call-arg]


def test_the_index_is_32_bits_and_the_sequence_is_not() -> None:
    for number in (0, 2**32 - 1, 2**32, 2**32 + 5, 2**64 - 1):
        event = Event(0, 0, number)
        assert event.sequence() == number
        assert event.index() == number % 2**32


@pytest.mark.parametrize("place", range(3))
def test_numbers_have_64_bits(place: int) -> None:
    name = ("event_time", "client_id", "index")[place]
    for good in (0, 2**64 - 1):
        Event(**{name: good})
    for bad in (-1, 2**64):
        with pytest.raises(ValueError, match=name):
            Event(**{name: bad})
    for wrong in (1.0, "1", None, b"1"):
        with pytest.raises(TypeError, match=name):
            Event(**{name: wrong})


@pytest.mark.parametrize("wrong", [None, 1, 2.5, ["x"], "\ud800", "a\udfffb"])
def test_records_are_text_or_bytes(wrong: object) -> None:
    with pytest.raises(TypeError, match="log_record"):
        Event(log_record=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("record", ["", "x", "naïve", "a\0b", "😀", "\n", "x" * 100_000])
def test_text_and_its_utf8_are_the_same_record(record: str) -> None:
    event = Event(1, 2, 3, record)
    assert event.log_record() == record
    assert event.record_bytes() == record.encode()
    assert event == Event(1, 2, 3, record.encode())


def test_bytes_that_are_no_text() -> None:
    event = Event(log_record=b"\xff\xfe")
    assert event.record_bytes() == b"\xff\xfe"
    with pytest.raises(UnicodeDecodeError):
        event.log_record()
    assert "\\xff" in repr(event)


@given(ARGUMENTS, ARGUMENTS)
def test_equality_order_and_hash_are_those_of_a_tuple(one: tuple, two: tuple) -> None:
    def key(arguments: tuple) -> tuple:
        *numbers, record = arguments
        return (*numbers, record.encode() if isinstance(record, str) else record)

    a, b = Event(*one), Event(*two)
    assert (a == b) == (key(one) == key(two))
    assert (a != b) == (key(one) != key(two))
    assert (a < b) == (key(one) < key(two))
    assert (a <= b) == (key(one) <= key(two))
    assert (a > b) == (key(one) > key(two))
    assert (a >= b) == (key(one) >= key(two))
    assert a == Event(*one)
    assert hash(a) == hash(Event(*one))
    assert len({a, b, Event(*one)}) == len({key(one), key(two)})


def test_order_is_time_client_sequence_record() -> None:
    events = [Event(*numbers, record) for *numbers, record in product((0, 1), (0, 1), (0, 2**32), ("", "x"))]
    assert sorted(reversed(events)) == events  # noqa: C414 - the order must not depend on the input


def test_an_event_is_not_something_else() -> None:
    for other in ((0, 0, 0, b""), None, 0, ""):
        assert Event() != other
        with pytest.raises(TypeError):
            _ = Event() < other


@given(ARGUMENTS)
def test_repr_and_pickle(arguments: tuple) -> None:
    event = Event(*arguments)
    for twin in (pickle.loads(pickle.dumps(event)), copy.copy(event), copy.deepcopy(event)):
        assert twin == event
        assert twin.sequence() == event.sequence()
    if isinstance(arguments[3], str):
        assert eval(repr(event)) == event


def test_an_event_has_no_other_attributes() -> None:
    with pytest.raises(AttributeError):
        Event().colour = "blue"  # type: ignore[attr-defined]


def test_many_at_once() -> None:
    events = make_events([1, 2], [3, 4], [5, 6], [b"a", b"b"])
    assert events == [Event(1, 3, 5, "a"), Event(2, 4, 6, b"b")]
    with pytest.raises(ValueError, match="zip"):
        make_events([1], [2], [3], [])
