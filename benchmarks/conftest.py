"""Fixtures of the benchmarks: a store that is gone afterwards, and rounds."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import workloads
from chronolog_hpc.clientlib import Client

ROUNDS = 5


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    """Return a connected client on a fresh store."""
    with workloads.new_client(tmp_path / "store") as client:
        yield client


@pytest.fixture
def rounds(benchmark: Any) -> Callable[..., Any]:
    """Return `rounds(work, events, setup)`: measure `work(*setup())` a few times, after a warm-up."""

    def run(
        work: Callable[..., Any],
        events: int = workloads.EVENTS,
        setup: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]] | None = None,
    ) -> Any:
        gc.collect()
        result = benchmark.pedantic(work, setup=setup, rounds=ROUNDS, warmup_rounds=1)
        benchmark.extra_info["events"] = events
        if benchmark.stats is not None:  # with --benchmark-disable there are none
            benchmark.extra_info["ns_per_event"] = benchmark.stats.stats.median * 1e9 / events
            benchmark.extra_info["events_per_s"] = events / benchmark.stats.stats.median
        return result

    return run
