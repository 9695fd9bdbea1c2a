"""Heads: msgpack of which only what a message can hold is ever read.

A head is one map: first the key "type" with the name of a message, then its fields in their order. Whoever reads
knows which value comes next, and what that cannot begin with is not read on. So nothing nests, no key comes twice,
and a head takes about as much memory as its bytes, whatever they say: msgpack that is read for its own sake takes
seventy times that for a list of empty maps.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple, TypeVar, get_args, get_origin

import msgpack

from py_chronolog_client.errors import ProtocolError

MAX_ITEMS = 2**16
"""Most texts in a list, and most pairs in a map."""

T = TypeVar("T")

_FIRST_BYTES = {
    str: frozenset([*range(0xA0, 0xC0), 0xD9, 0xDA, 0xDB]),
    bytes: frozenset([0xC4, 0xC5, 0xC6]),
    bool: frozenset([0xC2, 0xC3]),
    int: frozenset([*range(0x80), *range(0xCC, 0xD4), *range(0xE0, 0x100)]),
    list: frozenset([*range(0x90, 0xA0), 0xDC, 0xDD]),
    dict: frozenset([*range(0x80, 0x90), 0xDE, 0xDF]),
}
_U64 = range(2**64)


class Kind(NamedTuple):
    """What a value may be: one of the six types of values, and of numbers which ones."""

    type: type
    numbers: range = _U64

    @classmethod
    def of(cls, hint: Any) -> Kind:
        """Return what a type hint allows: str, bytes, bool, int, Annotated[int, range], list[str] or dict[str, str]."""
        if get_origin(hint) is Annotated:
            return cls(*get_args(hint))
        return cls(get_origin(hint) or hint)

    def __str__(self) -> str:
        if self.type is int:
            return f"a number from {self.numbers[0]} to {self.numbers[-1]}"
        if self.type in (list, dict):
            return f"a {self.type.__name__} of up to {MAX_ITEMS} texts"
        return {str: "text", bytes: "bytes", bool: "true or false"}[self.type]

    def has(self, number: int) -> bool:
        """Tell whether a number is one of these; `in` would count up to a number that is an IntEnum."""
        return self.numbers[0] <= number <= self.numbers[-1]

    def fits(self, value: object) -> bool:
        """Tell whether a head can hold a value here."""
        if self.type is int:
            return isinstance(value, int) and not isinstance(value, bool) and self.has(value)
        if not isinstance(value, self.type):
            return False
        if isinstance(value, dict):
            return len(value) <= MAX_ITEMS and all(is_text(text) for item in value.items() for text in item)
        if isinstance(value, list):
            return len(value) <= MAX_ITEMS and all(map(is_text, value))
        return not isinstance(value, str) or is_text(value)


def is_text(value: object) -> bool:
    """Tell whether a value is text that has a UTF-8: without lone surrogates."""
    if not isinstance(value, str):
        return False
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


class HeadReader:
    """Reads a head from its beginning to its end; every method raises ProtocolError where it does not go on so."""

    def __init__(self, head: bytes) -> None:
        self._head = head
        self._unpacker = msgpack.Unpacker(max_buffer_size=len(head))
        self._unpacker.feed(head)

    def map_size(self) -> int:
        """Enter a map; return how many pairs it has."""
        return self._size(dict, self._unpacker.read_map_header)

    def key(self, name: str) -> None:
        """Read a key, which must be `name`."""
        if self._scalar(str) != name:
            raise ProtocolError(f"a message without {name} where it belongs")

    def value(self, kind: Kind) -> Any:
        """Read a value of a kind."""
        if kind.type is list:
            size = self._size(list, self._unpacker.read_array_header)
            return [self._scalar(str) for _ in range(size)]
        if kind.type is dict:
            size = self.map_size()
            pairs = {self._scalar(str): self._scalar(str) for _ in range(size)}
            if len(pairs) != size:
                raise ProtocolError("a message with a map that has a key twice")
            return pairs
        value: Any = self._scalar(kind.type)
        if kind.type is int and not kind.has(value):
            raise ProtocolError(f"a message with {value} where {kind} was expected")
        return value

    def end(self) -> None:
        """Make sure that nothing follows."""
        if self._unpacker.tell() != len(self._head):
            raise ProtocolError("a message with more bytes than it needs")

    def _scalar(self, wanted: type[T]) -> T:
        self._require(wanted)
        try:
            value: T = self._unpacker.unpack()
        except Exception as error:  # msgpack raises its own, ValueError and UnicodeDecodeError
            raise ProtocolError(f"a message that is no msgpack: {type(error).__name__}") from error
        return value

    def _size(self, wanted: type, read: Any) -> int:
        self._require(wanted)
        try:
            size: int = read()
        except Exception as error:
            raise ProtocolError(f"a message that is no msgpack: {type(error).__name__}") from error
        if size > MAX_ITEMS:
            raise ProtocolError(
                f"a message with a {wanted.__name__} of {size}, over the limit of {MAX_ITEMS}"
            )
        return size

    def _require(self, wanted: type) -> None:
        at = self._unpacker.tell()
        if at >= len(self._head):
            raise ProtocolError("a message that ends too early")
        if self._head[at] not in _FIRST_BYTES[wanted]:
            raise ProtocolError(
                f"a message with something else at byte {at} where {Kind(wanted)} was expected"
            )
