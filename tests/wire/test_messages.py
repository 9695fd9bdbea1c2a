"""Messages round trip, and nothing else than a message is taken for one, nor costs much memory."""

import random
import struct
from typing import Annotated, Any, get_args, get_origin

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from py_chronolog_client.errors import InvalidArgumentError, ProtocolError
from py_chronolog_client.wire import messages
from py_chronolog_client.wire.frames import FULL, MAX_HEAD_BYTES, FrameDecoder, frame_bytes
from py_chronolog_client.wire.heads import MAX_ITEMS
from py_chronolog_client.wire.messages import (
    Acquired,
    Attributes,
    Block,
    Failure,
    Follow,
    Marks,
    Message,
    Names,
    Page,
    Welcome,
    decode,
    encode,
    pack_ids,
    pack_marks,
    unpack_ids,
    unpack_marks,
)
from tests.support.counts import soak
from tests.wire import independent
from tests.wire.feeding import (
    EXAMPLES,
    KINDS,
    U64,
    decoded,
    example_of,
    feed,
    hints,
    messages_of,
    peak_bytes,
    values,
)

BODY = b"bulk"
MESSAGES = st.one_of([messages_of(kind) for kind in KINDS])


def said_by(message: Message) -> dict[str, Any]:
    return {
        "type": type(message).__name__,
        **{name: getattr(message, name) for name in hints(type(message))},
    }


def refused(head: bytes, sentence: str | None = None, *, has_body: bool = False) -> None:
    with pytest.raises(ProtocolError, match=sentence):
        decode(head, has_body=has_body)


FIELDS = [
    pytest.param(example, name, hint, id=f"{type(example).__name__}.{name}")
    for example in EXAMPLES
    for name, hint in hints(type(example)).items()
]


# -- round trips --


@pytest.mark.parametrize("kind", KINDS)
@given(st.data())
def test_round_trip(kind: type[Message], data: st.DataObject) -> None:
    message = data.draw(messages_of(kind))
    body = BODY if kind.has_body else b""
    frame = frame_bytes(encode(message), len(body)) + body
    assert frame == independent.frame(said_by(message), body), "not what docs/protocol.md says"
    assert decoded(frame) == message


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: type(example).__name__)
def test_numbers_and_texts_may_be_longer_than_they_need_to_be(example: Message) -> None:
    """Other writers of msgpack do not look for the shortest form."""
    said = said_by(example)
    head = b"\xdf" + struct.pack(">I", len(said))
    head += b"".join(longest(name) + longest(value) for name, value in said.items())
    assert decode(head, has_body=example.has_body) == example


def longest(value: Any) -> bytes:
    """Return the longest msgpack of a value."""
    if isinstance(value, bool):
        return msgpack.packb(value)
    if isinstance(value, int):
        return b"\xd3" + struct.pack(">q", value) if value < 2**63 else b"\xcf" + struct.pack(">Q", value)
    size = struct.pack(">I", len(value))
    if isinstance(value, str):
        return b"\xdb" + struct.pack(">I", len(value.encode())) + value.encode()
    if isinstance(value, bytes):
        return b"\xc6" + size + value
    if isinstance(value, list):
        return b"\xdd" + size + b"".join(map(longest, value))
    return b"\xdf" + size + b"".join(longest(text) for item in value.items() for text in item)


@pytest.mark.parametrize("hint", [int, messages.Code, messages.Port, messages.Milliseconds])
def test_the_limits_of_numbers(hint: Any) -> None:
    kind, name = {
        int: (Page, "count"),
        messages.Code: (Failure, "code"),
        messages.Port: (Acquired, "keeper_port"),
        messages.Milliseconds: (Follow, "timeout_ms"),
    }[hint]
    numbers = get_args(hint)[1] if get_origin(hint) is Annotated else range(2**64)
    said = said_by(example_of(kind))
    for number in (numbers[0], numbers[-1]):
        message = kind(**{**{key: said[key] for key in hints(kind)}, name: number})
        assert decode(encode(message), has_body=kind.has_body) == message
    for number in (numbers[0] - 1, numbers[-1] + 1):
        message = kind(**{**{key: said[key] for key in hints(kind)}, name: number})
        with pytest.raises(InvalidArgumentError, match=f"{name}={number}, which is not a number from"):
            encode(message)
        if -(2**63) <= number < 2**64:
            refused(msgpack.packb({**said, name: number}), "was expected", has_body=kind.has_body)


@pytest.mark.parametrize("count", [0, 1, 15, 16, MAX_ITEMS - 1, MAX_ITEMS])
def test_as_many_items_as_may_be(count: int) -> None:
    for message in (
        Names([f"{number}" for number in range(count)], True),
        Attributes({f"{number}": "" for number in range(count)}),
    ):
        assert decode(encode(message)) == message


def test_more_items_than_may_be() -> None:
    texts = [f"{number}" for number in range(MAX_ITEMS + 1)]
    for message in (Names(texts, True), Attributes(dict.fromkeys(texts, ""))):
        with pytest.raises(InvalidArgumentError, match=f"of up to {MAX_ITEMS} texts"):
            encode(message)
        refused(msgpack.packb(said_by(message)), f"{MAX_ITEMS + 1}, over the limit of {MAX_ITEMS}")


@pytest.mark.parametrize(
    "message",
    [
        Welcome(b"", "lone \udc80 surrogate"),
        Names(["fine", "\udfff"], False),
        Attributes({"\ud800": ""}),
        Attributes({"": "\ud800"}),
        Attributes({"a": 1}),  # type: ignore[dict-item]
        Names([b""], False),  # type: ignore[list-item]
        Welcome("", "text where bytes belong"),  # type: ignore[arg-type]
        Page(True, True),
        Page(1.0, True),  # type: ignore[arg-type]
        Page(1, 1),  # type: ignore[arg-type]
    ],
    ids=repr,
)
def test_what_cannot_be_said_is_an_error_of_who_says_it(message: Message) -> None:
    with pytest.raises(InvalidArgumentError, match=type(message).__name__):
        encode(message)


# -- what is none --


@pytest.mark.parametrize(("example", "name", "hint"), FIELDS)
def test_fields_of_another_type(example: Message, name: str, hint: Any) -> None:
    number = hint is int or get_origin(hint) is Annotated
    others: list[tuple[Any, Any]] = [
        (str, "text"),
        (str, ""),
        (bytes, b"bytes"),
        (bool, True),
        (list[str], []),
        (list[str], ["text"]),
        (dict[str, str], {}),
        (dict[str, str], {"a": "b"}),
        (None, None),
        (None, 1.5),
        (None, 0.0),
        (None, [1]),
        (None, ["a", b"b"]),
        (None, [None]),
        (None, {"a": 1}),
        (None, {1: "a"}),
        (None, {"a": {}}),
        (None, msgpack.Timestamp(5)),
        (None, msgpack.ExtType(5, b"ext")),
        (None, -(2**63)),
    ]
    others += [] if number else [(None, 7)]
    for other, value in others:
        if other != hint:
            refused(msgpack.packb({**said_by(example), name: value}), has_body=example.has_body)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: type(example).__name__)
def test_fields_that_are_missing_too_many_or_elsewhere(example: Message) -> None:
    said, body = said_by(example), example.has_body
    kind = type(example).__name__
    refused(msgpack.packb({**said, "later": 1}), f"{kind} with other fields than", has_body=body)
    for name in said:
        less = {key: value for key, value in said.items() if key != name}
        refused(msgpack.packb(less), has_body=body)
        refused(msgpack.packb({**less, name + "_": said[name]}), has_body=body)
        if name != list(said)[-1]:
            refused(msgpack.packb({**less, name: said[name]}), "where it belongs", has_body=body)
    pairs = [msgpack.packb(name) + msgpack.packb(value) for name, value in said.items()]
    for place, again in enumerate(pairs):  # once more, in place of another, and behind all
        refused(bytes([0x80 | len(pairs)]) + b"".join([*pairs[:place], again, *pairs[place:]]), has_body=body)
        if len(pairs) < 15:
            refused(bytes([0x81 + len(pairs)]) + b"".join([*pairs, again]), has_body=body)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: type(example).__name__)
def test_heads_that_are_cut_or_too_long(example: Message) -> None:
    head = encode(example)
    for size in range(len(head)):
        refused(head[:size], has_body=example.has_body)
    for more in (b"\0", b"\xc0", head):
        refused(head + more, "more bytes than it needs", has_body=example.has_body)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: type(example).__name__)
def test_a_body_is_there_or_not(example: Message) -> None:
    wrong = "without" if example.has_body else "with"
    refused(encode(example), f"{type(example).__name__} {wrong} a body", has_body=not example.has_body)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\xc1",  # never used
        b"\xc0",
        b"\x80",
        b"\x90",
        b"\x91\x80",
        b"\x05",
        msgpack.packb("Done"),
        msgpack.packb(["type", "Done"]),
        msgpack.packb({"type": "Nonsense"}),
        msgpack.packb({"type": "done"}),
        msgpack.packb({"type": "Message"}),
        msgpack.packb({"type": ""}),
        msgpack.packb({"type": None}),
        msgpack.packb({"type": 5}),
        msgpack.packb({"type": ["Done"]}),
        msgpack.packb({"type": b"Done"}),
        msgpack.packb({b"type": "Done"}),
        msgpack.packb({0: "Done"}),
        msgpack.packb({"kind": "Done"}),
        b"\x81\xa4type\xa4Don",
        b"\x81\xa4type\xa4Don\xff",
        b"\x82\xa4type\xa4Done\xa4type\xa4Done",
        b"\xdf\xff\xff\xff\xff\xa4type\xa4Done",
        b"\xde\x00\x02\xa4type\xa4Done",
        b"\x81\xdb\xff\xff\xff\xfftype\xa4Done",
        b"\x81\xc7\x0c\xff" + bytes(12),
    ],
)
def test_no_message(head: bytes) -> None:
    refused(head)


@pytest.mark.parametrize(
    "text", [b"\xff", b"\xc3", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"a\xe2\x82"], ids=repr
)
def test_text_that_is_no_utf8(text: bytes) -> None:
    wrong = bytes([0xA0 | len(text)]) + text
    refused(b"\x82\xa4type\xb0DestroyChronicle\xa9chronicle" + wrong, "UnicodeDecodeError")
    refused(b"\x83\xa4type\xa5Names\xa5names\x91" + wrong + b"\xa4more\xc2", "UnicodeDecodeError")
    refused(b"\x82\xa4type\xaaAttributes\xaaattributes\x81" + wrong + b"\xa0", "UnicodeDecodeError")
    refused(b"\x82\xa4type\xaaAttributes\xaaattributes\x81\xa0" + wrong, "UnicodeDecodeError")


def test_an_attribute_that_comes_twice() -> None:
    refused(b"\x82\xa4type\xaaAttributes\xaaattributes\x82\xa1a\xa1b\xa1a\xa1c", "a key twice")


def test_expect() -> None:
    assert messages.expect(Block(1), Block) == Block(1)
    with pytest.raises(ProtocolError, match="a message Block where Page was expected"):
        messages.expect(Block(1), Page)


# -- garbage --


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Return bytes with some of them changed, taken away, put in or doubled."""
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 1, 2, 3, 10])):
        start = chance.randrange(len(changed) + 1)
        stop = min(len(changed), start + chance.choice([1, 1, 2, 4, 9]))
        match chance.randrange(5):
            case 0:
                changed[start:stop] = chance.randbytes(stop - start)
            case 1:
                del changed[start:stop]
            case 2:
                changed[start:start] = chance.randbytes(chance.choice([1, 2, 5]))
            case 3:
                changed[start:start] = changed[start:stop]
            case 4 if start < len(changed):
                changed[start] ^= 1 << chance.randrange(8)
    return bytes(changed)


def test_mutated_frames() -> None:
    """What comes out of a frame that was changed anyhow is a message again, or a ProtocolError."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    originals = [
        frame_bytes(encode(example), len(BODY) * example.has_body) + BODY * example.has_body
        for example in EXAMPLES
    ]
    messages_seen = errors = 0
    for _ in range(soak(6000, 1_000_000)):
        data = mutated(chance.choice(originals), chance)
        try:
            for frame in feed(FrameDecoder(FULL), data):
                message = decode(frame.head, has_body=bool(frame.body))
                assert decode(encode(message), has_body=message.has_body) == message, f"seed {seed}"
                messages_seen += 1
        except ProtocolError:
            errors += 1
    assert messages_seen
    assert errors


def test_random_heads() -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    for _ in range(soak(3000, 1_000_000)):
        head = chance.choice([b"", b"\x81\xa4type", b"\x83\xa4type\xa5Names"]) + chance.randbytes(
            chance.randrange(40)
        )
        try:
            decode(head)
        except ProtocolError:
            continue
        raise AssertionError(f"seed {seed}: {head!r} is a message")


@given(MESSAGES)
def test_a_bit_that_is_flipped(message: Message) -> None:
    head = encode(message)
    for place in range(min(len(head), soak(8, 200))):
        changed = bytearray(head)
        changed[place] ^= 1 << (place % 8)
        try:
            found = decode(bytes(changed), has_body=message.has_body)
        except ProtocolError:
            continue
        assert found != message


# -- memory --

FULL_HEAD = MAX_HEAD_BYTES
BOMB_BYTES = 4 * FULL_HEAD
"""What docs/protocol.md says a head of the largest size takes that holds what no message can hold."""
MESSAGE_BYTES = 16 * FULL_HEAD
"""And one that is a message, or might be one until its end."""


def filled(begin: bytes, unit: bytes) -> bytes:
    """Return a head of the largest size that begins so and repeats something."""
    return begin + unit * ((FULL_HEAD - len(begin)) // len(unit))


BEGINNINGS = {
    "the head": b"",
    "the type": b"\x81\xa4type",
    "a key": b"\x82\xa4type\xa5Names",
    "a list": b"\x83\xa4type\xa5Names\xa5names",
    "in a list": b"\x83\xa4type\xa5Names\xa5names\xdd\0\1\0\0",
    "a map": b"\x82\xa4type\xaaAttributes\xaaattributes",
    "in a map": b"\x82\xa4type\xaaAttributes\xaaattributes\xdf\0\1\0\0",
    "a text": b"\x82\xa4type\xb0DestroyChronicle\xa9chronicle",
    "bytes": b"\x82\xa4type\xa9Challenge\xa5nonce",
}
BOMBS = {
    "nested arrays": b"\x91",
    "nested arrays of 65535": b"\xdc\xff\xff",
    "nested arrays of 2**32 - 1": b"\xdd\xff\xff\xff\xff",
    "nested maps": b"\x81\xa0",
    "nested maps of 65535": b"\xde\xff\xff\xa0",
    "empty maps": b"\x80",
    "arrays of empty maps": b"\xdc\xff\xff" + b"\x80" * 65535,
    "empty arrays": b"\x90",
    "texts": b"\xa0",
    "numbers": b"\x05",
    "texts of 2**32 - 1": b"\xdb\xff\xff\xff\xff",
    "bytes of 2**32 - 1": b"\xc6\xff\xff\xff\xff",
    "extensions of 2**32 - 1": b"\xc9\xff\xff\xff\xff\x05",
}


@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_bombs(beginning: str) -> None:
    for name, unit in BOMBS.items():
        head = filled(BEGINNINGS[beginning], unit)
        taken = peak_bytes(lambda: refused(head))
        may_be_texts = beginning.startswith("in a ") and name in ("texts", "numbers")
        limit = MESSAGE_BYTES if may_be_texts else BOMB_BYTES
        assert taken < limit, f"{name} take {taken} bytes"


@pytest.mark.slow
@pytest.mark.parametrize(
    "message",
    [
        Names(["x" * 28] * MAX_ITEMS, False),
        Names(["x" * 24 + "\U0001f600"] * MAX_ITEMS, False),
        Attributes({f"{number:014}": "x" * 14 for number in range(MAX_ITEMS)}),
        Attributes({f"{number:05}xxxxx\U0001f600": "x" * 10 + "\U0001f600" for number in range(MAX_ITEMS)}),
        Welcome(b"", "x" * (FULL_HEAD - 60) + "\U0001f600"),
        Marks(bytes(FULL_HEAD - 60)),
    ],
    ids=["texts", "wide texts", "pairs", "wide pairs", "one wide text", "bytes"],
)
def test_what_the_largest_messages_take(message: Message) -> None:
    head = encode(message)
    assert 0.9 * FULL_HEAD < len(head) <= FULL_HEAD
    taken = peak_bytes(lambda: decode(head))
    assert taken < MESSAGE_BYTES


# -- marks and ids --


@given(st.dictionaries(U64, U64, max_size=30))
def test_marks(marks: dict[int, int]) -> None:
    data = pack_marks(marks)
    assert data == b"".join(struct.pack("<QQ", *item) for item in marks.items())
    assert unpack_marks(data) == marks
    assert unpack_ids(pack_ids(marks)) == tuple(marks)


@pytest.mark.parametrize("size", [1, 7, 8, 9, 15, 17, 24])
def test_marks_that_are_none(size: int) -> None:
    with pytest.raises(ProtocolError):
        unpack_marks(bytes(size))
    if size % 8:
        with pytest.raises(ProtocolError):
            unpack_ids(bytes(size))


def test_marks_that_name_a_client_twice() -> None:
    with pytest.raises(ProtocolError, match="twice"):
        unpack_marks(struct.pack("<QQQQ", 1, 2, 1, 3))


def test_the_values_that_are_drawn_are_those_that_fit() -> None:
    """The strategies of these tests know every hint there is."""
    for kind in KINDS:
        for hint in hints(kind).values():
            assert values(hint) is not None


def test_every_class_is_found_by_its_name() -> None:
    """Dataclasses with slots are made twice, and the first of each pair is a subclass too."""
    assert set(messages.KINDS) == {kind.__name__ for kind in Message.__subclasses__()}
    assert all(kind is getattr(messages, name) for name, kind in messages.KINDS.items())
