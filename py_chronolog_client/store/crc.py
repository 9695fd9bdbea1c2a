"""The checksum of all blocks and headers: zlib's CRC-32, from the fastest library at hand.

Many systems' zlib makes about 4 GB/s of it, which is a tenth of the cost of a logged event; ISA-L, which the
extra `fast` brings, makes more than ten times as much of the same numbers.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

__all__ = ["CRC_LIBRARY", "crc32"]

if TYPE_CHECKING:
    from zlib import crc32
else:
    try:
        from isal.isal_zlib import crc32
    except ImportError:
        from zlib import crc32

CRC_LIBRARY = f"zlib {zlib.ZLIB_RUNTIME_VERSION}" if crc32 is zlib.crc32 else "isal"
"""Whose it is."""
