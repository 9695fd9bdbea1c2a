"""Doing something apart: in a thread of its own, so that neither an exception nor a fork comes into the middle of it.

Python runs signal handlers in the main thread, and a forked child has only the thread that forked. So whatever
a handler throws is thrown into a caller who waits, and a child that a handler forks is a copy of one who waits:
what is done apart is done once, by one process, and to its end.
"""

from __future__ import annotations

import _thread
import os
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_POLL_S = 0.01


def apart(action: Callable[[], T], undo: Callable[[T], object]) -> T | None:
    """Run `action` in a thread of its own and return its result; in a child that was forked meanwhile, None.

    Where no thread can be had (the interpreter is ending, a limit), it is run here.

    Args:
        action: what to do.
        undo: gets the result if a signal handler throws something into this call, so that nobody takes it.

    Raises:
        Exception: what `action` has raised.
    """
    results: list[T] = []
    errors: list[BaseException] = []
    ended: list[bool] = []
    pid, begun, done = os.getpid(), _thread.allocate_lock(), _thread.allocate_lock()
    done.acquire()

    def run() -> None:
        try:
            # Otherwise a handler has come just before the thread began: and has thrown something, or forked.
            if begun.acquire(blocking=False) and os.getpid() == pid:
                results.append(action())
        except BaseException as error:  # noqa: BLE001 - it is raised in the caller
            errors.append(error)
        finally:
            ended.append(True)
            done.release()

    def wait() -> bool:
        while not ended and os.getpid() == pid:  # in a child there is nobody who could end
            done.acquire(timeout=_POLL_S)
        return os.getpid() == pid

    try:
        try:
            # Not `threading.Thread`: its `start` waits for the thread, in a child that is forked meanwhile for ever.
            _thread.start_new_thread(run, ())
        except RuntimeError:
            run()
        is_here = wait()
    except BaseException:
        never_begins = begun.acquire(blocking=False)
        if not never_begins and wait() and results:
            undo(results.pop())
        raise
    if not is_here:
        return None
    if errors:
        raise errors.pop()
    return results[0]
