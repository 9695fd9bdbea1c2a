"""What the parsers of all commands share: errors of one sentence, sizes with units, the version."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from chronolog_hpc import streams

USAGE = 2
"""Exit code for what cannot be done as asked."""

SIZE_HELP = "bytes, or with a unit: 128, 4KiB, 64MiB (KiB, MiB, GiB are powers of 1024; kB, MB, GB of 1000)"

_LONGEST_MESSAGE = 400
_LONGEST_S = 86_400.0
_SIZE = re.compile(r"([0-9][0-9_]*)\s*([a-zA-Z]*)")
_MOST_DIGITS = 30
_UNIT_BYTES = {"": 1, "b": 1}
for _power, _letter in enumerate("kmg", start=1):
    _UNIT_BYTES |= {f"{_letter}ib": 1024**_power, _letter: 1024**_power, f"{_letter}b": 1000**_power}


class Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one sentence, without a page of usage before it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        """Make a parser without abbreviations: a script that uses them breaks when an option is added."""
        super().__init__(*args, **{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the arguments and exit with code 2."""
        if len(message) > _LONGEST_MESSAGE:
            half = _LONGEST_MESSAGE // 2
            message = f"{message[:half]}...{message[-half:]}"
        self.exit(USAGE, f"{self.prog}: {message} (see {self.prog} --help)\n")


class ShowVersion(argparse.Action):
    """Print the version and exit; it is looked up only when somebody asks."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:  # noqa: A002  argparse
        """Make an option without a value."""
        super().__init__(
            option_strings, dest=argparse.SUPPRESS, default=argparse.SUPPRESS, nargs=0, help=help
        )

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> NoReturn:
        """Print the version and exit."""
        from chronolog_hpc import __version__

        problem = streams.publish(f"chronolog {__version__}\n")
        parser.exit(0 if problem is None else 1, f"{parser.prog}: {problem}\n" if problem else None)


def size_bytes(text: str) -> int:
    """Return the number of bytes that `text` names: 128, 4KiB, 64MiB."""
    match = _SIZE.fullmatch(text.strip())
    unit = match[2].lower() if match else None
    if match is None or unit not in _UNIT_BYTES or len(match[1]) > _MOST_DIGITS:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write 128, 4KiB or 64MiB")
    return int(match[1]) * _UNIT_BYTES[unit]


def whole_number(minimum: int, maximum: int) -> Callable[[str], int]:
    """Return a converter of arguments that takes whole numbers from `minimum` to `maximum`, both included."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
        if not minimum <= value <= maximum:
            raise argparse.ArgumentTypeError(f"{text} is not between {minimum} and {maximum}")
        return value

    return convert


def seconds(text: str) -> float:
    """Return the number of seconds that `text` names, at most a day."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= _LONGEST_S:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 to {_LONGEST_S:.0f}")
    return value
