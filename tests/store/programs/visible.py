"""Log what is asked for on standard input, line by line, and answer with the number of events once the call has returned.

Arguments: directory of the store. Lines: `event`, `batch`, `big`, `flush`, `clock`, `stop`; or a number: that many
events at full speed, with an answer after each.
"""

import sys

from py_chronolog_client.clock import SystemClock
from tests.store import writing


def record(number: int) -> bytes:
    return f"{number}:".encode() + b"x" * (number * 7919 % 150)


def main(store: str) -> None:
    writing.small_tails()
    client = writing.connect(store)
    handle = writing.acquire(client)
    count = 0

    def answer() -> None:
        sys.stdout.write(f"{count}\n")
        sys.stdout.flush()

    answer()
    for line in sys.stdin:
        order = line.strip()
        if order.isdecimal():
            for _ in range(int(order)):
                assert handle.log_event(record(count))
                count += 1
                answer()
            continue
        if order == "event":
            assert handle.log_event(record(count))
            count += 1
        elif order in ("batch", "big"):
            size = 5 if order == "batch" else 100
            assert handle.log_events([record(number) for number in range(count, count + size)])
            count += size
        elif order == "flush":
            handle.flush()
        elif order == "clock":
            handle.use_clock(SystemClock())
        elif order == "stop":
            assert client.Disconnect() == 0
        answer()


if __name__ == "__main__":
    main(sys.argv[1])
