"""A service never outlives the process that looks after it.

The kernel sees to it (prctl PR_SET_PDEATHSIG), so it holds however the parent ends, and whatever the child is doing.
The signal is SIGKILL: what a keeper has acknowledged is journalled, so nothing waits for a graceful end, and nothing
could come to stand in its way.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Let the kernel kill this process when its parent ends; end at once if it has ended already.

    Args:
        parent: pid of the process that has started this one, in its main thread.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        code = ctypes.get_errno()
        raise OSError(code, f"prctl(PR_SET_PDEATHSIG): {os.strerror(code)}")
    if os.getppid() != parent:
        sys.exit(1)
