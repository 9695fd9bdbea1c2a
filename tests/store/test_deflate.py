"""Packing: what is packed comes back, what does not pay is left alone, and nothing larger than was said is made."""

import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from py_chronolog_client.store import deflate


@given(st.integers(0, 20_000), st.sampled_from([1, 3, 256]))
def test_round_trips(size: int, kinds: int) -> None:
    data = bytes(random.Random(size).choices(range(kinds), k=size))
    packed = deflate.pack(data)
    assert deflate.unpack(bytes(packed), size) == data
    assert (packed is data) == (size < 4096 or kinds == 256)


def test_any_zlib_stream_is_understood() -> None:
    for level in range(10):
        packed = zlib.compress(b"abc" * 4000, level)
        assert deflate.unpack(packed, 12_000) == b"abc" * 4000


@pytest.mark.parametrize("size", [1, 11_999, 12_001, 2**40])
def test_another_size(size: int) -> None:
    with pytest.raises(ValueError, match="another size"):
        deflate.unpack(zlib.compress(b"abc" * 4000), size)


@pytest.mark.parametrize(
    "change", [lambda data: data[:-1], lambda data: data + b"x", lambda data: data[:-1] + b"x"]
)
def test_damaged_streams(change: object) -> None:
    packed = zlib.compress(b"abc" * 4000)
    with pytest.raises(ValueError):  # noqa: PT011  the library's words
        deflate.unpack(change(packed), 12_000)  # type: ignore[operator]
