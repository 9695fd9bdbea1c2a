"""Messages: what a frame's head says, as one class for each kind.

A head is one msgpack map with the key "type", the name of the class, and a key for each field. `decode` believes
nothing: every field must be there and of the type that the class says, and nothing else may be. So whoever gets
a message can use its fields without looking twice.

Client ids with sequence numbers or without travel as packed u64 (`pack_marks`, `pack_ids`): a story may have a
hundred thousand clients.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar, get_type_hints

import msgpack

from py_chronolog_client.errors import ProtocolError

PROTOCOL = 1
"""Version of the protocol; peers with different ones do not talk."""
NONCE_BYTES = 32
MAC_BYTES = 32

_MAX_ITEMS = 2**16
_LARGEST = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Message:
    """What all messages have in common."""

    has_body: ClassVar[bool] = False
    """Whether bulk follows the head."""


# -- the handshake --


@dataclass(frozen=True, slots=True)
class Hello(Message):
    """Client to service, first of all. This message is the same in all versions of the protocol."""

    protocol: int
    name: str
    nonce: bytes


@dataclass(frozen=True, slots=True)
class Challenge(Message):
    """Service to client."""

    nonce: bytes


@dataclass(frozen=True, slots=True)
class Proof(Message):
    """Client to service: it knows the secret of its name."""

    mac: bytes


@dataclass(frozen=True, slots=True)
class Welcome(Message):
    """Service to client: it knows that secret too."""

    mac: bytes
    service: str


# -- answers that many requests have --


@dataclass(frozen=True, slots=True)
class Done(Message):
    """It was done."""


@dataclass(frozen=True, slots=True)
class Failure(Message):
    """It could not be done: a ChronoLog code, and a sentence."""

    code: int
    sentence: str


@dataclass(frozen=True, slots=True)
class Names(Message):
    """Names, sorted; more of them follow in another message."""

    names: list[str]
    more: bool


@dataclass(frozen=True, slots=True)
class Attributes(Message):
    """What a chronicle or story was created with."""

    attributes: dict[str, str]


@dataclass(frozen=True, slots=True)
class Marks(Message):
    """A snapshot of a story."""

    marks: bytes


# -- to the visor --


@dataclass(frozen=True, slots=True)
class CreateChronicle(Message):
    """Answered with Done."""

    chronicle: str
    attributes: dict[str, str]


@dataclass(frozen=True, slots=True)
class DestroyChronicle(Message):
    """Answered with Done."""

    chronicle: str


@dataclass(frozen=True, slots=True)
class ListChronicles(Message):
    """Answered with Names."""


@dataclass(frozen=True, slots=True)
class ChronicleAttributes(Message):
    """Answered with Attributes."""

    chronicle: str


@dataclass(frozen=True, slots=True)
class DestroyStory(Message):
    """Answered with Done."""

    chronicle: str
    story: str


@dataclass(frozen=True, slots=True)
class ListStories(Message):
    """Answered with Names."""

    chronicle: str


@dataclass(frozen=True, slots=True)
class StoryAttributes(Message):
    """Answered with Attributes."""

    chronicle: str
    story: str


@dataclass(frozen=True, slots=True)
class Acquire(Message):
    """A client acquires a story for as long as this connection lives. Answered with Acquired."""

    chronicle: str
    story: str
    attributes: dict[str, str]
    client_id: int
    host: str


@dataclass(frozen=True, slots=True)
class Acquired(Message):
    """Where the client's events go."""

    uid: int
    """The story's: another story that has its name later has another."""
    keeper_host: str
    keeper_port: int


@dataclass(frozen=True, slots=True)
class Release(Message):
    """A client gives a story up. Answered with Done."""

    chronicle: str
    story: str
    client_id: int


@dataclass(frozen=True, slots=True)
class Locate(Message):
    """Services only: ask where a story's events are. Answered with Located."""

    chronicle: str
    story: str


@dataclass(frozen=True, slots=True)
class Located(Message):
    """The story's uid, and "host:port" of every keeper that may have events of it; "node:0" of one that is away."""

    uid: int
    keepers: list[str]


@dataclass(frozen=True, slots=True)
class Register(Message):
    """Services only: a keeper or player says where it is, for as long as this connection lives.

    Answered with Done; before that the visor may tell a keeper to Drop what was destroyed while it was away.
    """

    service: str
    node: str
    host: str
    port: int


# -- to a keeper --


@dataclass(frozen=True, slots=True)
class Open(Message):
    """A sender begins to ship a client's events. Answered with Opened."""

    stream: int
    """Number by which this connection names it from now on."""
    uid: int
    chronicle: str
    story: str
    client_id: int
    durable: bool
    """Whether acknowledged events must survive a power cut."""


@dataclass(frozen=True, slots=True)
class Opened(Message):
    """The keeper has everything below `sequence`; send what follows."""

    stream: int
    sequence: int
    empty: bool
    """Whether it has not even the client's first record."""


@dataclass(frozen=True, slots=True)
class Block(Message):
    """The body is a block as on disk (docs/format.md). Answered with Ack, in order, when it is journalled."""

    has_body: ClassVar[bool] = True
    stream: int


@dataclass(frozen=True, slots=True)
class Ack(Message):
    """All events below `sequence` are journalled."""

    stream: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Refused(Message):
    """A block was not journalled, nor will be those behind it; the stream is over."""

    stream: int
    code: int
    sentence: str


@dataclass(frozen=True, slots=True)
class Drop(Message):
    """The visor to a keeper that registers or has: forget a story, or where `story` is empty all. Answered with Done."""

    chronicle: str
    story: str
    uid: int
    """A story with a higher one was made later, and stays."""


# -- to a keeper or player --


@dataclass(frozen=True, slots=True)
class TakeSnapshot(Message):
    """Answered with Marks."""

    chronicle: str
    story: str


@dataclass(frozen=True, slots=True)
class ListClients(Message):
    """Answered with Description for each client, then Done."""

    chronicle: str
    story: str


@dataclass(frozen=True, slots=True)
class Description(Message):
    """The body is what a client says of itself, a msgpack map."""

    has_body: ClassVar[bool] = True
    client_id: int


@dataclass(frozen=True, slots=True)
class Scan(Message):
    """Answered with Page for each page, then ScanEnd."""

    chronicle: str
    story: str
    start_ns: int
    end_ns: int
    clients: bytes
    every_client: bool
    until: bytes
    until_now: bool
    since: bytes
    timeout_ms: int
    """0: none."""
    verify: bool
    aligned: bool


@dataclass(frozen=True, slots=True)
class Page(Message):
    """The body is a page (see `pages`)."""

    has_body: ClassVar[bool] = True
    count: int
    aligned: bool


@dataclass(frozen=True, slots=True)
class Damaged(Message):
    """A scan has met this."""

    path: str
    offset: int
    reason: str


@dataclass(frozen=True, slots=True)
class ScanEnd(Message):
    """All pages were sent."""

    missing: int
    disbelieved: int
    unseen: int


@dataclass(frozen=True, slots=True)
class Follow(Message):
    """Answered with Page for each page, then Marks, the next cursor."""

    chronicle: str
    story: str
    cursor: bytes
    timeout_ms: int


M = TypeVar("M", bound=Message)
KINDS: dict[str, type[Message]] = {kind.__name__: kind for kind in Message.__subclasses__()}
_FIELDS = {
    kind: {field.name: get_type_hints(kind)[field.name] for field in fields(kind)} for kind in KINDS.values()
}


def encode(message: Message) -> bytes:
    """Return the head that says `message`."""
    kind = type(message)
    head: bytes = msgpack.packb(
        {"type": kind.__name__, **{name: getattr(message, name) for name in _FIELDS[kind]}}
    )
    return head


def decode(head: bytes, *, has_body: bool = False) -> Message:
    """Return what a head says.

    Args:
        head: of a frame.
        has_body: whether the frame has a body.

    Raises:
        ProtocolError: it says nothing that this version knows.
    """
    try:
        said = msgpack.unpackb(
            head,
            strict_map_key=True,
            max_array_len=_MAX_ITEMS,
            max_map_len=_MAX_ITEMS,
            max_ext_len=0,
            raw=False,
        )
    except Exception as error:  # msgpack raises its own, ValueError, UnicodeDecodeError and StackError
        raise ProtocolError(f"a message that is no msgpack: {type(error).__name__}") from error
    kind = KINDS.get(said.pop("type", None)) if isinstance(said, dict) and _has_name(said) else None
    if kind is None:
        raise ProtocolError("a message of an unknown type")
    expected = _FIELDS[kind]
    if said.keys() != expected.keys():
        raise ProtocolError(
            f"a message {kind.__name__} with other fields than {', '.join(expected) or 'none'}"
        )
    for name, hint in expected.items():
        if not _CHECKS[str(hint)](said[name]):
            raise ProtocolError(f"a message {kind.__name__} whose {name} is not {_name(hint)}")
    if has_body and not kind.has_body:
        raise ProtocolError(f"a message {kind.__name__} with a body")
    return kind(**said)


def expect(message: Message, kind: type[M]) -> M:
    """Return `message` as one of `kind`.

    Raises:
        ProtocolError: it is of another.
    """
    if not isinstance(message, kind):
        raise ProtocolError(f"a message {type(message).__name__} where {kind.__name__} was expected")
    return message


def _has_name(said: dict[Any, Any]) -> bool:
    return isinstance(said.get("type"), str)


def _name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and str(hint) != "dict[str, str]" else str(hint)


def _is_text_map(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for item in value.items() for text in item)


_CHECKS = {
    str(str): lambda value: isinstance(value, str),
    str(bytes): lambda value: isinstance(value, bytes),
    str(bool): lambda value: isinstance(value, bool),
    str(int): lambda value: (
        isinstance(value, int) and not isinstance(value, bool) and -(2**31) <= value <= _LARGEST
    ),
    str(list[str]): lambda value: isinstance(value, list) and all(isinstance(text, str) for text in value),
    str(dict[str, str]): _is_text_map,
}


def pack_marks(marks: Mapping[int, int]) -> bytes:
    """Return client ids with their sequence numbers as packed u64 pairs."""
    return pack_ids(number for item in marks.items() for number in item)


def unpack_marks(data: bytes) -> dict[int, int]:
    """Read what `pack_marks` wrote.

    Raises:
        ProtocolError: it did not.
    """
    numbers = unpack_ids(data)
    if len(numbers) % 2:
        raise ProtocolError("marks that are no pairs")
    return dict(zip(numbers[::2], numbers[1::2], strict=True))


def pack_ids(ids: Iterable[int]) -> bytes:
    """Return client ids as packed u64."""
    numbers = list(ids)
    return struct.pack(f"<{len(numbers)}Q", *numbers)


def unpack_ids(data: bytes) -> tuple[int, ...]:
    """Read what `pack_ids` wrote.

    Raises:
        ProtocolError: it did not.
    """
    if len(data) % 8:
        raise ProtocolError("ids that are no whole numbers")
    return struct.unpack(f"<{len(data) // 8}Q", data)
