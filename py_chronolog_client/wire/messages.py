"""Messages: what a frame's head says, as one class for each kind.

A head is one msgpack map: the key "type" with the name of the class, then a key for each field, in their order.
`decode` believes nothing: every field must be there and of the type that the class says, and nothing else may be. So
whoever gets a message can use its fields without looking twice.

Client ids with sequence numbers or without travel as packed u64 (`pack_marks`, `pack_ids`): a story may have a
hundred thousand clients.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, ClassVar, TypeVar, get_type_hints

import msgpack

from py_chronolog_client.errors import InvalidArgumentError, ProtocolError
from py_chronolog_client.wire.heads import HeadReader, Kind

PROTOCOL = 1
"""Version of the protocol; peers with different ones do not talk."""
NONCE_BYTES = 32
MAC_BYTES = 32

Code = Annotated[int, range(-(2**31), 2**31)]
"""A ChronoLog code. All other numbers are u64, but for these two."""
Port = Annotated[int, range(1, 2**16)]
Milliseconds = Annotated[int, range(2**40 + 1)]
"""A time-out; 0: none."""


@dataclass(frozen=True, slots=True)
class Message:
    """What all messages have in common."""

    has_body: ClassVar[bool] = False
    """Whether bulk follows the head: then at least one byte of it."""


# -- the handshake --


@dataclass(frozen=True, slots=True)
class Hello(Message):
    """Client to service, first of all. This message and Failure are the same in all versions of the protocol."""

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

    code: Code
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
    uid: int
    """0: the story is made if it is not there; otherwise only the one with this uid will do."""


@dataclass(frozen=True, slots=True)
class Acquired(Message):
    """Where the client's events go."""

    uid: int
    """The story's: another story that has its name later has another."""
    keeper_host: str
    keeper_port: Port
    ticket: bytes
    """For Open: that this visor has allowed it."""


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
    reader: str
    """Who is to read them, and must be allowed to."""


@dataclass(frozen=True, slots=True)
class Located(Message):
    """The story's uid, and "host:port" of every keeper that may have events of it; "node:0" of one that is away."""

    uid: int
    keepers: list[str]
    grapher: str
    """Likewise; "" where the deployment has none."""
    attributes: dict[str, str]
    """The story's, and those of its chronicle that it has not itself."""


@dataclass(frozen=True, slots=True)
class Register(Message):
    """Services only: a keeper, grapher or player says where it is, for as long as this connection lives.

    Answered with Done; before that the visor may tell a keeper or grapher to Drop what was destroyed while it was away.
    """

    service: str
    node: str
    host: str
    port: Port


# -- to a keeper or grapher --


@dataclass(frozen=True, slots=True)
class Open(Message):
    """A sender begins to ship a client's events, or a keeper a segment of them to a grapher. Answered with Opened."""

    stream: int
    """Number by which this connection names it from now on."""
    uid: int
    chronicle: str
    story: str
    client_id: int
    durable: bool
    """Whether acknowledged events must survive a power cut."""
    ticket: bytes
    """From Acquired; services need none."""


@dataclass(frozen=True, slots=True)
class Opened(Message):
    """Everything below `sequence` is there; send what follows."""

    stream: int
    sequence: int
    empty: bool
    """Whether not even the client's first record is."""


@dataclass(frozen=True, slots=True)
class Block(Message):
    """The body is a block as on disk (docs/format.md).

    A keeper answers with Ack, in order, when it is journalled; a grapher waits for Seal.
    """

    has_body: ClassVar[bool] = True
    stream: int


@dataclass(frozen=True, slots=True)
class Seal(Message):
    """A keeper to a grapher: these blocks are a whole segment. Answered with Ack when it is on the device."""

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
    code: Code
    sentence: str


@dataclass(frozen=True, slots=True)
class Drop(Message):
    """The visor to a keeper or grapher that registers or has: forget a story, or where `story` is empty all of them.

    Answered with Done.
    """

    chronicle: str
    story: str
    uid: int
    """A story with a higher one was made later, and stays."""


# -- to a keeper, grapher or player --

# In each of these questions `uid` says which story is meant; 0: whichever has the name.


@dataclass(frozen=True, slots=True)
class TakeSnapshot(Message):
    """Answered with Marks."""

    chronicle: str
    story: str
    uid: int


@dataclass(frozen=True, slots=True)
class ListClients(Message):
    """Answered with Description for each client, then Done."""

    chronicle: str
    story: str
    uid: int


@dataclass(frozen=True, slots=True)
class Description(Message):
    """The body is what a client says of itself, a msgpack map."""

    has_body: ClassVar[bool] = True
    client_id: int


@dataclass(frozen=True, slots=True)
class Scan(Message):
    """Answered with Page for each page, then ScanEnd; where it names a uid, with Starts before."""

    chronicle: str
    story: str
    uid: int
    start_ns: int
    end_ns: int
    clients: bytes
    every_client: bool
    until: bytes
    until_now: bool
    since: bytes
    timeout_ms: Milliseconds
    verify: bool
    aligned: bool


@dataclass(frozen=True, slots=True)
class Starts(Message):
    """The events of each client below its mark are not in this answer: they were handed over."""

    marks: bytes


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
    """Answered with Page for each page, then Marks, the next cursor; where it names a uid, with Starts before."""

    chronicle: str
    story: str
    uid: int
    cursor: bytes
    timeout_ms: Milliseconds


# -- to any service --


@dataclass(frozen=True, slots=True)
class ReadCounters(Message):
    """Services only. Answered with Counters."""


@dataclass(frozen=True, slots=True)
class Counters(Message):
    """What a service has counted, by name; which names there are is not part of the protocol."""

    names: list[str]
    now: bytes
    """One u64 for each name."""
    before: bytes
    """The same, as they were a while ago."""
    interval_ms: Milliseconds
    """How long ago that was."""


M = TypeVar("M", bound=Message)
KINDS: dict[str, type[Message]] = {kind.__name__: kind for kind in Message.__subclasses__()}
_FIELDS = {
    kind: {
        field.name: Kind.of(get_type_hints(kind, include_extras=True)[field.name]) for field in fields(kind)
    }
    for kind in KINDS.values()
}


def encode(message: Message) -> bytes:
    """Return the head that says `message`.

    Raises:
        InvalidArgumentError: a field has a value that cannot be said.
    """
    kind = type(message)
    said: dict[str, object] = {"type": kind.__name__}
    for name, allowed in _FIELDS[kind].items():
        said[name] = value = getattr(message, name)
        if not allowed.fits(value):
            raise InvalidArgumentError(f"{kind.__name__} with {name}={value!r:.100}, which is not {allowed}")
    head: bytes = msgpack.packb(said)
    return head


def decode(head: bytes, *, has_body: bool = False) -> Message:
    """Return what a head says.

    Args:
        head: of a frame.
        has_body: whether the frame has a body.

    Raises:
        ProtocolError: it says nothing that this version knows.
    """
    reader = HeadReader(head)
    size = reader.map_size()
    reader.key("type")
    kind = KINDS.get(reader.value(Kind(str)))
    if kind is None:
        raise ProtocolError("a message of an unknown type")
    expected = _FIELDS[kind]
    if size != 1 + len(expected):
        raise ProtocolError(
            f"a message {kind.__name__} with other fields than {', '.join(expected) or 'none'}"
        )
    said = {}
    for name, allowed in expected.items():
        reader.key(name)
        said[name] = reader.value(allowed)
    reader.end()
    if has_body != kind.has_body:
        raise ProtocolError(f"a message {kind.__name__} {'with' if has_body else 'without'} a body")
    return kind(**said)


def expect(message: Message, kind: type[M]) -> M:
    """Return `message` as one of `kind`.

    Raises:
        ProtocolError: it is of another.
    """
    if not isinstance(message, kind):
        raise ProtocolError(f"a message {type(message).__name__} where {kind.__name__} was expected")
    return message


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
    marks = dict(zip(numbers[::2], numbers[1::2], strict=True))
    if 2 * len(marks) != len(numbers):
        raise ProtocolError("marks that name a client twice")
    return marks


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
