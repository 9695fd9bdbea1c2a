"""Bytes into a decoder, in pieces; messages drawn from the type hints of their classes."""

import dataclasses
import itertools
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from hypothesis import strategies as st

from py_chronolog_client.wire import messages
from py_chronolog_client.wire.frames import FULL, Frame, FrameDecoder

U64 = st.sampled_from([0, 1, 127, 128, 2**16, 2**32 - 1, 2**63, 2**64 - 1]) | st.integers(0, 2**64 - 1)
KINDS = sorted(messages.KINDS.values(), key=lambda kind: kind.__name__)


def feed(
    decoder: FrameDecoder, data: bytes, sizes: Iterable[int] = itertools.repeat(2**30)
) -> Iterator[Frame]:
    """Write bytes into a decoder, as many at a time as `sizes` say and it asks for; yield the frames."""
    turns = iter(sizes)
    left = memoryview(data)
    while left:
        buffer = decoder.buffer()
        count = min(len(buffer), len(left), next(turns))
        buffer[:count] = left[:count]
        left = left[count:]
        frame = decoder.advance(count)
        if frame is not None:
            yield frame


def decoded(data: bytes) -> messages.Message:
    """Return the message of the one frame in `data`."""
    (frame,) = feed(FrameDecoder(FULL), data)
    return messages.decode(frame.head, has_body=bool(frame.body))


def hints(kind: type[messages.Message]) -> dict[str, Any]:
    """Return the type hint of each field."""
    found = get_type_hints(kind, include_extras=True)
    return {field.name: found[field.name] for field in dataclasses.fields(kind)}


def values(hint: Any) -> st.SearchStrategy:
    """Draw what a field may hold."""
    if get_origin(hint) is Annotated:
        numbers = get_args(hint)[1]
        return st.sampled_from([numbers[0], numbers[-1]]) | st.integers(numbers[0], numbers[-1])
    return {
        str: st.text(max_size=40),
        bytes: st.binary(max_size=300),
        bool: st.booleans(),
        int: U64,
        list[str]: st.lists(st.text(max_size=20), max_size=20),
        dict[str, str]: st.dictionaries(st.text(max_size=20), st.text(max_size=20), max_size=20),
    }[hint]


def messages_of(kind: type[messages.Message]) -> st.SearchStrategy:
    return st.builds(kind, **{name: values(hint) for name, hint in hints(kind).items()})


def peak_bytes(action: Callable[[], object]) -> int:
    """Return how much memory an action takes at most."""
    action()  # what it imports and caches is not its own
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        action()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def example_of(kind: type[messages.Message]) -> messages.Message:
    simple: dict[Any, Any] = {str: "text", bytes: b"bytes", bool: True, int: 5}
    simple |= {list[str]: ["a", "b"], dict[str, str]: {"a": "b"}}
    return kind(**{name: simple.get(hint, 7) for name, hint in hints(kind).items()})


EXAMPLES = [example_of(kind) for kind in KINDS]
