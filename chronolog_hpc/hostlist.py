"""Lists of hosts in Slurm's short form, written out: `n[1-2,07-08],login` is n1, n2, n07, n08 and login."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product

MAX_HOSTS = 2**20
"""More than any machine has; a mistyped range must not fill the memory."""

_TERM = re.compile(r"(?:[^\s,\[\]]|\[[^\s\[\]]+\])+")
_PIECE = re.compile(r"\[([^\]]+)\]|([^\[]+)")
_RANGE = re.compile(r"([0-9]+)-([0-9]+)", re.ASCII)
_WORD = re.compile(r"[^\s,-]+")


def expand(text: str) -> list[str]:
    """Return the hosts of a list, in its order; one that is there twice is there twice.

    Brackets hold numbers, ranges of numbers, and words; a number with leading zeros keeps its width, and so does
    a range whose first number has some. A name may have several brackets: the last one counts fastest.

    Raises:
        ValueError: this is no list of hosts, or one of more than `MAX_HOSTS`.
    """
    hosts: list[str] = []
    position = 0
    while position < len(text):
        match = _TERM.match(text, position)
        if match is None or text[match.end() : match.end() + 1] not in ("", ","):
            raise ValueError(f"{text!r:.200} is no list of hosts: write n1,n[3-5],gpu[01-16]")
        hosts += _names(match[0], MAX_HOSTS - len(hosts))
        position = match.end() + 1
    if text.endswith(","):
        raise ValueError(f"{text!r:.200} is no list of hosts: it ends in a comma")
    return hosts


def _names(term: str, room: int) -> Iterator[str]:
    """Return the names that a term without commas outside of brackets stands for, at most `room`."""
    choices = []
    count = 1
    for brackets, literal in _PIECE.findall(term):
        ranges = [_range(entry) for entry in brackets.split(",")] if brackets else []
        count *= sum(len(numbers) for numbers, _ in ranges) + (not ranges)
        if count > room:
            raise ValueError(f"{term!r:.200} stands for more than {MAX_HOSTS} hosts")
        choices.append(
            [f"{name:0{width}}" if width else str(name) for numbers, width in ranges for name in numbers]
            or [literal]
        )
    return map("".join, product(*choices))


def _range(entry: str) -> tuple[range | tuple[str], int]:
    """Return what an entry of a bracket stands for, and the width to which numbers are filled with zeros."""
    match = _RANGE.fullmatch(entry)
    if match is not None and int(match[1]) <= int(match[2]):
        return range(int(match[1]), int(match[2]) + 1), len(match[1])
    if _WORD.fullmatch(entry):
        return (entry,), 0
    raise ValueError(f"[{entry:.200}] is no range of hosts: write [1-4], [01-16] or [1,3,5]")
