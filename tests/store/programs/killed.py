"""Log with everything that a handle has, and tell over a pipe what has returned, until somebody kills this.

Arguments: directory of the store, seed, number of calls (0: without end), descriptor of the pipe.
"""

import itertools
import os
import random
import struct
import sys
from collections.abc import Iterator

from tests.store import writing

NOTE = struct.Struct("<QQQ")
"""What is told of each call that has returned: number of its first record, how many records it has, its time."""

Call = tuple[str, list[bytes]]


def calls(seed: int) -> Iterator[Call]:
    """Yield what is called, with the records: always the same for a seed."""
    numbers = random.Random(seed)
    names = itertools.count()

    def record(size_bytes: int) -> bytes:
        return f"{next(names)}:".encode() + numbers.randbytes(size_bytes)

    while True:
        kind = numbers.choices(("log_event", "log_events", "big", "flush"), (80, 10, 3, 7))[0]
        if kind == "log_event":
            yield kind, [record(numbers.randrange(200))]
        elif kind == "log_events":
            yield kind, [record(numbers.randrange(100)) for _ in range(numbers.randrange(1, 40))]
        elif kind == "big":
            yield kind, [record(numbers.randrange(4000, 20_000))]
        else:
            yield kind, []


def main(store: str, seed: int, count: int, pipe: int) -> None:
    writing.small_tails()
    client = writing.connect(store)
    handle = writing.acquire(client)
    first = 0
    for kind, records in itertools.islice(calls(seed), count or None):
        if kind == "flush":
            handle.flush()
            continue
        time_ns = handle.log_events(records) if kind == "log_events" else handle.log_event(records[0])
        assert time_ns
        os.write(pipe, NOTE.pack(first, len(records), time_ns))
        first += len(records)
    assert client.Disconnect() == 0, client.last_error


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
