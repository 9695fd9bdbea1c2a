"""How soon an event is visible: from the return of `log_event` to another process having it in hand."""

from __future__ import annotations

import os
import time
from typing import Any

from benchmarks import workloads

_NAP_S = 0.05


def measure(
    directory: str | os.PathLike[str], story: str, events: int, gap_ms: float, *, asleep: bool
) -> list[int]:
    """Follow a story that another process writes.

    Args:
        directory: of the store.
        story: a new one.
        events: to log and to wait for.
        gap_ms: mean time between two events.
        asleep: wait inside `follow`, as a viewer does; otherwise ask again and again, which shows the store
            alone.

    Returns:
        For each event the ns from the return of its `log_event` to its delivery; 0 if it was delivered even
        before.
    """
    seen_ns: list[int] = []
    with workloads.new_client(directory) as client:
        writer = workloads.start("trickle", directory, story, events, gap_ms)
        workloads.answer(writer)
        cursor: Any = {}
        _, cursor = client.follow(
            workloads.CHRONICLE, story, cursor, 0
        )  # whatever is imported and opened only once
        workloads.say(writer)
        while len(seen_ns) < events:
            pages, cursor = client.follow(workloads.CHRONICLE, story, cursor, _NAP_S if asleep else 0)
            now_ns = time.monotonic_ns()
            seen_ns += [now_ns] * sum(map(len, pages))
        returned_ns = workloads.answer(writer)["returned_ns"]
        workloads.end(writer)
    return [max(0, seen - returned) for seen, returned in zip(seen_ns, returned_ns, strict=True)]


def quantiles(values: list[int]) -> dict[str, int]:
    """Return p50, p99 and max."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return {"p50": ordered[last // 2], "p99": ordered[round(last * 0.99)], "max": ordered[last]}
