"""One line that says how far a benchmark is, on a terminal and nowhere else: a log file gets none of it."""

from __future__ import annotations

import sys
import time
from typing import TextIO

_INTERVAL_S = 0.1


class Progress:
    """A line on a terminal that is written over and removed at the end."""

    def __init__(self, stream: TextIO | None = None, *, enabled: bool = True) -> None:
        """Write to `stream` (None: standard error) if it is a terminal and `enabled`."""
        self._stream = sys.stderr if stream is None else stream
        self._enabled = enabled and self._stream.isatty()
        self._due_s = 0.0
        self._width = 0

    def say(self, phase: str, done: int = 0, total: int = 0) -> None:
        """Show the phase and how much of it is done, at most ten times a second."""
        if not self._enabled or (0 < done < total and time.monotonic() < self._due_s):
            return
        self._due_s = time.monotonic() + _INTERVAL_S
        text = f"{phase} {100 * done // total:3d} %" if total else phase
        self._stream.write(f"\r{text:<{self._width}}")
        self._stream.flush()
        self._width = len(text)

    def clear(self) -> None:
        """Remove the line."""
        if self._width:
            self._stream.write(f"\r{'':<{self._width}}\r")
            self._stream.flush()
            self._width = 0
