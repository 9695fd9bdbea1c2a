"""What a time costs: now(), bulk correction, and log_event under the clocks that a story may have."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import clocks, workloads


@pytest.mark.parametrize("kind", ["time_ns", "shared", "measured"])
def test_now(rounds: Any, kind: str) -> None:
    rounds(clocks.call_often, setup=lambda: ((clocks.nows()[kind], workloads.EVENTS), {}))


def test_correct(rounds: Any) -> None:
    clock = clocks.measured()
    raw = np.arange(workloads.EVENTS, dtype=np.int64) * 1000 + time.monotonic_ns()
    rounds(clock.correct, setup=lambda: ((raw,), {}))


@pytest.mark.parametrize("kind", ["system", "shared", "measured"])
def test_log_event(tmp_path: Path, rounds: Any, kind: str) -> None:
    clock = clocks.for_stories()[kind]
    with workloads.new_client(tmp_path / "store", clock=clock) as client:
        turns = workloads.turns(workloads.pool(), workloads.EVENTS)
        rounds(workloads.log_all, setup=workloads.Stories(client, "log_event", turns).setup)
