"""The order of a story, (key, client id, sequence), on columns.

A key is a time, or an aligned time. Whoever merges runs of several origins needs two things: what comes before a
place in the order, and the order of runs that lie side by side.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from py_chronolog_client.page import U64


def around(columns: Sequence[U64], place: Iterable[int | np.uint64]) -> tuple[int, int]:
    """Return how many events are before a place in the order, and how many are not behind it.

    Args:
        columns: keys, client ids and sequence numbers of a run in order: uint64, shape (n,) each.
        place: a key, a client id and a sequence number.
    """
    start, stop = 0, len(columns[0])
    for column, value in zip(columns, place, strict=True):
        part = column[start:stop]
        stop = start + int(np.searchsorted(part, np.uint64(value), "right"))
        start += int(np.searchsorted(part, np.uint64(value)))
    return start, stop


def story_order(keys: U64, client_ids: U64, sequences: U64) -> npt.NDArray[np.intp]:
    """Return the numbers of the events in the order of the story: intp, shape (n,).

    Runs that are in order themselves and lie one behind the other are merged fast. Most keys are unique, so
    client ids and sequence numbers are looked at only where keys are equal.

    Args:
        keys: uint64, shape (n,).
        client_ids: uint64, shape (n,).
        sequences: uint64, shape (n,).
    """
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    equal = ordered[1:] == ordered[:-1]
    if equal.any():
        tied = np.flatnonzero(np.append(equal, False) | np.insert(equal, 0, False))
        numbers = order[tied]
        order[tied] = numbers[np.lexsort((sequences[numbers], client_ids[numbers], ordered[tied]))]
    return order
