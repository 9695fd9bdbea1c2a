"""The memory of a service: the buffers of one page are taken again for the next.

By default the C library gives large buffers back to the kernel when they are free, and each thread has a heap of its
own. A service that streams pages would spend half of its time on getting them again, and on their zeros.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_KEPT_BYTES = 2**28
_MAPPED_BYTES = 2**25


def keep_buffers() -> None:
    """Let this process keep what it frees, up to 256 MiB, in one heap; to be called before it has threads."""
    with suppress(AttributeError, OSError):  # another C library than glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _MAPPED_BYTES)
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_ARENA_MAX, 1)
