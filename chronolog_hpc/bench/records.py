"""The records that a benchmark logs: cheap to make, different for every event, and made again to verify it.

A record depends on nothing but the seed, the rank and the number of the event, so any rank can say what any
other has logged. A generated record begins with these three numbers in hexadecimal digits; the rest is a
stretch of random text that starts elsewhere for every event, so that bytes which stray from one record into
another are noticed. A record too short for the numbers has only the text: it is the same for several
events, and then time and sequence number tell them apart.
"""

from __future__ import annotations

import base64
import random
from abc import ABC, abstractmethod
from collections.abc import Iterable
from itertools import accumulate

from chronolog_hpc.bench.spec import MAX_PAYLOAD_FILE_BYTES, MAX_SIZE_BYTES, SpecError

_TEXT_CHARACTERS = 2**16
_STRIDE = 40503
_RANK_STRIDE = 7919


class Records(ABC):
    """What each rank logs."""

    @abstractmethod
    def texts(self, rank: int, numbers: Iterable[int]) -> list[str | bytes]:
        """Return the records of these events of a rank, as they are given to `log_event`."""

    def encoded(self, rank: int, numbers: Iterable[int]) -> list[bytes]:
        """Return the records of these events of a rank, as they must be replayed."""
        return [text.encode() if isinstance(text, str) else text for text in self.texts(rank, numbers)]

    @abstractmethod
    def total_bytes(self, rank: int, count: int) -> int:
        """Return the size of the first `count` records of a rank."""

    @property
    @abstractmethod
    def mean_bytes(self) -> int:
        """Size of a record, rounded up."""


class GeneratedRecords(Records):
    """Records of one size, made from seed, rank and number."""

    def __init__(self, seed: int, size_bytes: int) -> None:
        """Make the text that records are cut from.

        Args:
            seed: 0 to 2**64 - 1.
            size_bytes: of each record.
        """
        self._seed = seed
        self._size_bytes = size_bytes
        head_bytes = len(self._head(0, 0))
        self._with_head = size_bytes >= head_bytes
        self._text_bytes = size_bytes - head_bytes if self._with_head else size_bytes
        random_bytes = random.Random(seed).randbytes(_TEXT_CHARACTERS * 3 // 4)
        text = base64.b64encode(random_bytes).decode()
        self._text = text * (2 + self._text_bytes // len(text))

    def _head(self, rank: int, number: int) -> str:
        return f"{self._seed:016x}{rank:08x}{number:012x} "

    def texts(self, rank: int, numbers: Iterable[int]) -> list[str | bytes]:
        """Return the records of these events of a rank, as they are given to `log_event`."""
        text, size, shift, mask = self._text, self._text_bytes, rank * _RANK_STRIDE, _TEXT_CHARACTERS - 1
        if not self._with_head:
            starts = [(number * _STRIDE + shift) & mask for number in numbers]
            return [text[start : start + size] for start in starts]
        head = f"{self._seed:016x}{rank:08x}"
        return [
            f"{head}{number:012x} {text[(start := (number * _STRIDE + shift) & mask) : start + size]}"
            for number in numbers
        ]

    def total_bytes(self, rank: int, count: int) -> int:
        """Return the size of the first `count` records of a rank."""
        return self._size_bytes * count

    @property
    def mean_bytes(self) -> int:
        """Size of a record, rounded up, at least 1."""
        return self._size_bytes


class PayloadRecords(Records):
    """The lines of a file, again and again; each rank begins one line later than the one before it.

    A line is logged as text where it is UTF-8, else as the bytes that it is; without its newline. Empty
    lines are records too.
    """

    def __init__(self, data: bytes) -> None:
        """Cut the file into lines; `data` is not empty."""
        lines = data.split(b"\n")
        if not lines[-1]:
            lines.pop()
        self._lines = lines
        self._texts = [_text(line) for line in lines]
        self._ends = [0, *accumulate(map(len, lines))]

    def __len__(self) -> int:
        return len(self._lines)

    def texts(self, rank: int, numbers: Iterable[int]) -> list[str | bytes]:
        """Return the records of these events of a rank, as they are given to `log_event`."""
        texts, count = self._texts, len(self._texts)
        return [texts[(rank + number) % count] for number in numbers]

    def encoded(self, rank: int, numbers: Iterable[int]) -> list[bytes]:
        """Return the lines themselves."""
        lines, count = self._lines, len(self._lines)
        return [lines[(rank + number) % count] for number in numbers]

    def total_bytes(self, rank: int, count: int) -> int:
        """Return the size of the first `count` records of a rank."""
        return self._bytes_before(rank + count) - self._bytes_before(rank)

    def _bytes_before(self, number: int) -> int:
        rounds, rest = divmod(number, len(self._lines))
        return rounds * self._ends[-1] + self._ends[rest]

    @property
    def mean_bytes(self) -> int:
        """Size of a record, rounded up, at least 1."""
        return max(1, -(-self._ends[-1] // len(self._lines)))


def read_payload(path: str) -> bytes:
    """Return the content of a payload file.

    Raises:
        SpecError: it cannot be read, is empty, or is too large.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_PAYLOAD_FILE_BYTES + 1)  # a pipe did not tell its size before
        if len(data) > MAX_PAYLOAD_FILE_BYTES:
            raise SpecError(
                f"--payload {path} has more than {MAX_PAYLOAD_FILE_BYTES} bytes, which is the limit: use a part of "
                "it (head -c)"
            )
    except OSError as error:
        raise SpecError(f"--payload {path} cannot be read: {error.strerror}") from error
    if not data:
        raise SpecError(f"--payload {path} is empty: give a file with at least one line")
    if max(map(len, data.split(b"\n"))) > MAX_SIZE_BYTES:
        raise SpecError(
            f"--payload {path} has a line of more than {MAX_SIZE_BYTES} bytes, which no record can hold: give a file "
            "with shorter lines"
        )
    return data


def _text(line: bytes) -> str | bytes:
    try:
        return line.decode()
    except UnicodeDecodeError:
        return line
