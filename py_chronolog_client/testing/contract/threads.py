"""Threads of a test: they start together, take turns often, and what goes wrong in them fails the test."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def frequent_switches() -> Iterator[None]:
    """Let threads take turns as often as the interpreter can."""
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(interval_s)


@contextmanager
def running(*targets: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Run all at the same time as the body; give a function that tells whether they are done.

    At the end wait for them, and raise the first exception of them.
    """
    errors: list[BaseException] = []
    start = threading.Barrier(len(targets))

    def guarded(target: Callable[[], None]) -> None:
        start.wait()
        try:
            target()
        except BaseException as error:  # noqa: BLE001  raised again by the thread that waits
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(target,)) for target in targets]
    with frequent_switches():
        for thread in threads:
            thread.start()
        try:
            yield lambda: not any(thread.is_alive() for thread in threads)
        finally:
            for thread in threads:
                thread.join()
            if errors:
                raise errors[0]
