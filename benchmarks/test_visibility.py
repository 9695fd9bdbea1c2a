"""How soon an event is visible to another process: to a reader that keeps asking, and to one that waits."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from benchmarks import visibility, workloads

EVENTS = min(max(workloads.EVENTS // 200, 20), 1000)


@pytest.mark.parametrize("asleep", [False, True], ids=["asking", "waiting"])
def test_write_to_visible(tmp_path: Path, benchmark: Any, asleep: bool) -> None:
    stories = (f"story-{number}" for number in itertools.count())
    delays_ns = benchmark.pedantic(
        lambda: visibility.measure(tmp_path, next(stories), EVENTS, 1.0, asleep=asleep), rounds=1
    )
    benchmark.extra_info["delay_ns"] = visibility.quantiles(delays_ns)
    assert len(delays_ns) == EVENTS
