"""Interrupt a call at a chosen bytecode, as a signal handler could: deterministic, and finer than any real signal."""

import dis
import gc
import sys
from collections.abc import Callable
from types import CodeType, FrameType, TracebackType
from typing import Any


class Thrown(Exception):
    """What a handler throws out of the call that it has interrupted."""


class Interruption:
    """Calls `action` at chosen bytecodes of what this thread runs inside `with`.

    The action runs as a signal handler would: above the interrupted frame, before the bytecode. What it
    raises comes out of that bytecode. It is not interrupted itself. Bytecodes of this file's callers do not count,
    those of every other module do.

    Attributes:
        count: how many bytecodes have run.
        fired: how often the action was called.
        where: the place where it was called last.
    """

    def __init__(
        self, action: Callable[[], object], due: Callable[[int], bool], *, where_signals_are: bool = False
    ) -> None:
        """Prepare it.

        Args:
            action: what the handler does.
            due: tells for the number of a bytecode, from 1, whether the action comes before it.
            where_signals_are: count only bytecodes before which CPython looks for signals: at the start of a function,
                behind a call, and at the end of a loop's body.
        """
        self.count = 0
        self.fired = 0
        self.where = ""
        self._action = action
        self._due = due
        self._own = {__file__, sys._getframe(1).f_code.co_filename}
        self._before: Any = None
        self._collects = True
        self._where_signals_are = where_signals_are
        self._codes: dict[CodeType, bytes] = {}
        self._last: dict[FrameType, str] = {}

    def __enter__(self) -> "Interruption":
        self._collects = gc.isenabled()
        gc.disable()  # what is thrown into a destructor is lost
        self._before = sys.gettrace()
        sys.settrace(self._enter_frame)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.settrace(self._before)
        self._last.clear()
        if self._collects:
            gc.enable()

    def _enter_frame(self, frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename in self._own:
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self._step

    def _step(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "exception" and self._where_signals_are:
            self._last[frame] = ""  # behind a call that has failed CPython does not look for signals
        if event == "opcode" and (not self._where_signals_are or self._looks_for_signals(frame)):
            self.count += 1
            if self._due(self.count):
                self.fired += 1
                self.where = f"{frame.f_code.co_name}, line {frame.f_lineno} of {frame.f_code.co_filename}"
                self._action()
        return self._step

    def _looks_for_signals(self, frame: FrameType) -> bool:
        code = frame.f_code
        if code not in self._codes:
            self._codes[code] = code.co_code
        name = dis.opname[self._codes[code][frame.f_lasti]]
        last = self._last.get(frame, "")
        self._last[frame] = name
        return name == "RESUME" or name.startswith("JUMP_BACKWARD") or last.startswith(("CALL", "PRECALL"))


def at(number: int) -> Callable[[int], bool]:
    """Say that the action comes before this one bytecode."""
    return lambda count: count == number
