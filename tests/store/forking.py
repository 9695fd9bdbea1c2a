"""Children of this process, and what each side logs through a handle."""

import contextlib
import faulthandler
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from py_chronolog_client.client import StoryHandle

CHILD_TIMEOUT_S = 60


class Fork:
    """A child, and a pipe on which it reports how it ended. A child that hangs shows where, and dies."""

    def __init__(self) -> None:
        self._reads, writes = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(writes)
        else:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            faulthandler.register(signal.SIGALRM, file=sys.__stderr__, chain=True)
            signal.alarm(CHILD_TIMEOUT_S)
            self._writes = writes

    def end(self, work: Callable[[], object]) -> NoReturn:
        """Do the rest of the work, in the child; report its result, and end without any clean-up."""
        try:
            result = work()
            with os.fdopen(self._writes, "wb") as pipe:
                pickle.dump(result, pipe)
            os._exit(0)
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
            os._exit(1)

    def result(self) -> Any:
        """Wait, in the parent, for what the child has to say."""
        with os.fdopen(self._reads, "rb") as pipe:
            data = pipe.read()
        assert os.waitpid(self.pid, 0) == (self.pid, 0)
        return pickle.loads(data)


def in_child(work: Callable[[], object]) -> Fork:
    """Do `work` in a child."""
    fork = Fork()
    if not fork.pid:
        fork.end(work)
    return fork


@contextlib.contextmanager
def forking() -> Iterator[list[Fork]]:
    """Yield where to note forks that come from anywhere in the block. A child must not leave it."""
    forks: list[Fork] = []
    try:
        yield forks
    finally:
        if forks and not forks[-1].pid:
            traceback.print_exc(file=sys.__stderr__)
            os._exit(1)


class Side:
    """What one process logs through a handle."""

    def __init__(self, handle: StoryHandle, name: str) -> None:
        self.handle = handle
        self.name = name
        self.told: list[tuple[int, bytes]] = []

    def log(self, count: int = 1) -> None:
        for _ in range(count):
            number = len(self.told)
            record = f"{self.name} {number} ".encode() + b"x" * (number * 41 % 200)
            time_ns = self.handle.log_event(record.decode())
            assert time_ns
            self.told.append((time_ns, record))

    def more(self, name: str, count: int = 30) -> tuple[int, list[tuple[int, bytes]]]:
        """Log under another name; return the client id and what was told."""
        self.name, self.told = name, []
        self.log(count)
        return self.handle.client_id, self.told


def flush_while_a_view_lives_on(side: Side) -> None:
    """Flush, with the tail in use by somebody: a child cannot unmap it then."""
    views = []
    with contextlib.suppress(ValueError):  # a child that is forked before this has nothing to look at
        views.append(memoryview(side.handle._writer._own.tail.mapping))  # type: ignore[attr-defined]
    side.handle.flush()
    views.clear()


CALLS: dict[str, tuple[int, Callable[[Side], object]]] = {
    "append": (3, Side.log),
    "append that rolls": (16, Side.log),
    "flush": (5, lambda side: side.handle.flush()),
    "flush while a view lives on": (5, flush_while_a_view_lives_on),
    "close": (5, lambda side: side.handle._writer.close()),
}
"""How many events are logged before a call that is then interrupted, and the call."""
