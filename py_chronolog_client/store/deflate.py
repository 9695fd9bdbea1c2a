"""Packing parts of a chunk in zlib's format, with the fastest library at hand, and unpacking them within bounds.

ISA-L, which the extra `fast` brings, packs text four times as fast as zlib and unpacks it twice as fast. The levels are
those behind which more time saves little space.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import zlib as library
else:
    try:
        from isal import isal_zlib as library
    except ImportError:
        import zlib as library

_LEVEL = 1 if library.__name__ == "zlib" else 2
_WORTH = 7 / 8
"""What does not become shorter than this is kept as it is: it is read faster."""
_SMALL_BYTES = 4096
"""So is what is shorter than this: file systems give out space in such pieces."""


def pack(data: bytes | memoryview) -> bytes | memoryview:
    """Return the data packed, or as they are where that does not pay: then, and only then, the length is the same."""
    if len(data) < _SMALL_BYTES:
        return data
    packed: bytes = library.compress(data, _LEVEL)
    return packed if len(packed) <= _WORTH * len(data) else data


def unpack(data: bytes, size_bytes: int) -> bytes:
    """Return what was packed.

    Args:
        data: what `pack` returned.
        size_bytes: length of what it was given; no more than this is allocated.

    Raises:
        ValueError: that is not what it was given.
    """
    if len(data) == size_bytes:
        return data
    unpacker = library.decompressobj()
    try:
        unpacked: bytes = unpacker.decompress(data, size_bytes)
    except library.error as error:
        raise ValueError(str(error)) from error
    if len(unpacked) != size_bytes or not unpacker.eof or unpacker.unused_data:
        raise ValueError("packed data of another size")
    return unpacked
