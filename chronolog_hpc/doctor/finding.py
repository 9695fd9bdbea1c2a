"""What a check has found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

Level = Literal["ok", "warning", "error"]


class Finding(NamedTuple):
    """What one check has found, and what to do about it."""

    check: str
    level: Level
    found: str
    todo: str = ""
    """Empty where all is well."""


class Unfit(Exception):  # noqa: N818  no error of the software: what was tried has another result than it should
    """Something was done without an error and has the wrong result; says which."""


def ok(check: str, found: str) -> Finding:
    """Return that all is well."""
    return Finding(check, "ok", found)


def warning(check: str, found: str, todo: str) -> Finding:
    """Return that something will be slower, smaller or less certain than it could be."""
    return Finding(check, "warning", found, todo)


def error(check: str, found: str, todo: str) -> Finding:
    """Return that something will not work."""
    return Finding(check, "error", found, todo)


def told(check: str, problem: Exception, level: Level = "error") -> Finding:
    """Return what an error of this software says; its sentence ends in what to do."""
    found, _, todo = str(problem).rpartition(": ")
    return Finding(check, level, found, todo)


def tried(check: str, trial: Callable[[], str], level: Level, todo: str) -> Finding:
    """Try something.

    Args:
        check: its name.
        trial: does it, and returns what was found; raises OSError or `Unfit`.
        level: of its failure.
        todo: about its failure.
    """
    try:
        return ok(check, trial())
    except OSError as problem:
        return Finding(check, level, f"{problem.strerror or problem}", todo)
    except Unfit as problem:
        return Finding(check, level, str(problem), todo)
