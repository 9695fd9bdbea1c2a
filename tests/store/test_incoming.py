"""What came before is known, also when the segments with it are gone; the rest of what may come is in the tests of intakes."""

import pathlib

import pytest

from py_chronolog_client.errors import InvalidArgumentError
from py_chronolog_client.store.incoming import Incoming
from tests.store import independent

CLIENT = 7
CLOCK = {"type": "clock", "first_sequence": 0, "models": bytes(48)}
EVENTS = independent.events_block(CLIENT, 0, [(10, b"one"), (11, b"two")])
BEFORE = [independent.client_record(CLIENT), EVENTS, independent.record_block(CLIENT, 1, CLOCK)]
HERE = [
    independent.close_record(CLIENT, 2),
    independent.client_record(CLIENT, 2, opened_ns=9),
    independent.record_block(CLIENT, 2, {"type": "invented later"}),
]
ROLL = independent.roll_record(CLIENT, 2)


def come(blocks: list[bytes], **known: int) -> Incoming:
    incoming = Incoming(pathlib.Path("7.log"), CLIENT, **known)
    for block in blocks:
        arrival = incoming.checked(block)
        incoming.require(arrival)
        incoming.note(arrival)
    return incoming


def split(data: bytes) -> list[bytes]:
    """Return the blocks one after another."""
    blocks, offset = [], 0
    while offset < len(data):
        _, stop = independent.read_block(data, offset)
        blocks.append(data[offset:stop])
        offset = stop
    return blocks


@pytest.mark.parametrize("here", range(len(HERE) + 1))
def test_a_segment_behind_a_sealed_one_says_all_that_has_to_be_known(here: int) -> None:
    sealed = come([*BEFORE, *HERE[:here], *([] if here == 1 else [ROLL])])
    first, *repeated = split(sealed.beginning())
    assert repeated == [BEFORE[2], *HERE[:here]]
    fields = independent.read_block(first, 0)[0].fields
    assert fields == {**independent.read_block(BEFORE[0], 0)[0].fields, "first_sequence": 2, "follows_ns": 11}
    sealed.follow()
    for incoming in (sealed, come([first, *repeated], records_from=2)):
        assert (incoming.sequence, incoming.is_closed, incoming.has_events) == (2, here == 1, False)
        assert all(incoming.has(incoming.checked(block)) for block in [*BEFORE, *HERE[:here]])
        assert not any(incoming.has(incoming.checked(block)) for block in HERE[here:])
        assert incoming.beginning() == sealed.beginning()
        with pytest.raises(InvalidArgumentError, match="before the client's" if here == 1 else "earlier"):
            incoming.require(incoming.checked(independent.events_block(CLIENT, 2, [(10, b"")])))


def test_nothing_comes_behind_the_end_of_a_sealed_segment() -> None:
    incoming = come([*BEFORE, ROLL])
    assert (incoming.is_rolled, incoming.is_closed, incoming.has_events) == (True, False, True)
    for block in [*HERE, independent.events_block(CLIENT, 2, [(20, b"")])]:
        with pytest.raises(InvalidArgumentError, match="behind the end of a sealed segment"):
            incoming.require(incoming.checked(block))


def test_it_is_known_when_a_client_has_spoken_of_its_clock() -> None:
    for count, expected in ((1, False), (2, False), (3, True)):
        assert come(BEFORE[:count]).is_synchronised is expected
    assert not come([*BEFORE, HERE[0]]).is_synchronised
