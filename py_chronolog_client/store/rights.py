"""Rights that can be taken away: what epochs (tail.py) and pens (pen.py) have in common.

A right is a set of memoryviews without which its holder can write nothing. Taking it away is releasing them;
the holder learns it by a ValueError out of the very call that would have written. So an error has to be told
apart from one that a signal handler has thrown into the same call: by who raised it.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

PATIENCE_S = 5.0
"""How long a call waits for another thread that is inside a system call, before its event is refused."""

_POLL_S = 0.001
_PACKAGE = __name__.partition(".")[0] + ".store."
_HELPERS = frozenset({"contextlib", "genericpath", "os", "pathlib", "posixpath"})


class Right(Protocol):
    """What can be taken away."""

    def revoke(self) -> None:
        """Make every further use fail.

        Raises:
            BufferError: another thread is inside a system call with it; it will come back.
        """
        ...


RightT = TypeVar("RightT", bound=Right)


def supplant(
    rights: dict[RightT, None],
    new: RightT,
    before_use: Callable[[RightT], None] = lambda right: None,
) -> None:
    """Put a right in the place of all others: register it, revoke the others, prepare it, and only then forget them.

    Raises:
        OSError: another thread is stuck in a system call with one of them.
    """
    rights[new] = None
    others = [right for right in list(rights) if right is not new]
    deadline = time.monotonic() + PATIENCE_S
    for other in others:
        while True:
            try:
                other.revoke()
                break
            except BufferError:
                if time.monotonic() > deadline:
                    rights.pop(new, None)
                    raise OSError(errno.EBUSY, "another call is stuck in the file system") from None
                time.sleep(_POLL_S)
    before_use(new)
    for other in others:
        rights.pop(other, None)


def is_revocation(error: BaseException) -> bool:
    """Tell whether an error says that a right of its thrower, or the whole mapping, has been taken away."""
    taken = "released memoryview" in str(error) or "mmap closed" in str(error)
    return taken and isinstance(error, ValueError) and is_own(error)


def is_own(error: BaseException) -> bool:
    """Tell an error of the store from one that a signal handler threw into it: its raiser is a function of here."""
    trace, raiser = error.__traceback__, _PACKAGE
    while trace is not None:
        name = str(trace.tb_frame.f_globals.get("__name__", ""))
        if name.partition(".")[0] not in _HELPERS:
            raiser = name
        trace = trace.tb_next
    return raiser.startswith(_PACKAGE)
