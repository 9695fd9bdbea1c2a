"""Standard streams that may be closed, full, broken, or not know all characters: speaking never fails."""

from __future__ import annotations

import contextlib
import io
import os
import sys


def prepare() -> None:
    """Make the standard streams safe to write any text to.

    A closed one leads to the null device from now on: otherwise the next file that is opened, perhaps a
    story's, would get its number. Characters that the terminal does not know are shown as escapes.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the smallest free number, which is this one
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  until the process ends
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def complain(sentence: str) -> None:
    """Write a line to standard error, if anybody can hear it."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"{sentence}\n")
        sys.stderr.flush()


def publish(text: str) -> str | None:
    """Write all that is due to standard output, and at its end `text`; return what is wrong, or None.

    Somebody who has stopped reading, like `head`, is told nothing: the answer is the empty string.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        with contextlib.suppress(OSError, ValueError):
            descriptor = os.open(os.devnull, os.O_WRONLY)
            os.dup2(descriptor, sys.stdout.fileno())  # the rest, which Python will try to write at its end
            os.close(descriptor)
        if isinstance(error, BrokenPipeError):
            return ""
        return f"standard output cannot be written: {error.strerror}"
    return None
