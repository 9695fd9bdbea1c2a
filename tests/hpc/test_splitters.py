"""Exact cuts through many sorted runs, without MPI: the ranks are played by a list."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronolog_hpc import splitters
from chronolog_hpc.splitters import I64, Columns, narrow, sample_places


def find_cuts(runs: list[Columns], targets: list[int], most_rounds: int = 20) -> tuple[list[I64], int]:
    """Play `splitters.find_cuts` on all ranks at once; return their cuts and the number of rounds."""
    size = len(runs)
    lows = [np.zeros(size, np.int64) for _ in runs]
    highs = [np.full(size, len(run.times), np.int64) for run in runs]
    for rounds in range(1, most_rounds):
        rows = [splitters._tell(*rank) for rank in zip(runs, lows, highs, strict=True)]
        pivots = []
        for cut, target in enumerate(targets):
            told = np.stack([row[cut] for row in rows])
            counts = told[:, 1].astype(np.int64)
            keys = told[:, 2:].reshape(size, splitters.SAMPLES, 3)
            samples = [
                row[: min(splitters.SAMPLES, int(count))] for row, count in zip(keys, counts, strict=True)
            ]
            pivots.append(splitters._encode(narrow(target, told[:, 0].astype(np.int64), counts, samples)))
        done = [splitters._apply(*rank, np.stack(pivots)) for rank in zip(runs, lows, highs, strict=True)]
        assert len(set(done)) == 1
        if done[0]:
            return lows, rounds
    raise AssertionError(f"no end after {most_rounds} rounds")


def a_run(rng: random.Random, rank: int, size: int, count: int, last_time: int) -> Columns:
    """Make the run of a rank that reads three clients."""
    keys = sorted((rng.randrange(last_time + 1), rng.randrange(3) * size + rank) for _ in range(count))
    numbers: dict[int, int] = {}
    rows = []
    for time, client_id in keys:
        numbers[client_id] = numbers.get(client_id, -1) + 1
        rows.append((time, client_id, numbers[client_id]))
    table = np.array(rows, np.uint64).reshape(-1, 3)
    return Columns(*(np.ascontiguousarray(column) for column in table.T))


def keys_of(run: Columns) -> list[tuple[int, ...]]:
    return list(zip(*(column.tolist() for column in run), strict=True))


@given(
    st.randoms(use_true_random=False),
    st.lists(st.sampled_from([0, 1, 2, 63, 64, 65, 300, 3000]), min_size=1, max_size=7),
    st.sampled_from([0, 3, 1000, 2**63]),
)
def test_every_slice_has_exactly_its_events(rng: random.Random, counts: list[int], last_time: int) -> None:
    size = len(counts)
    runs = [a_run(rng, rank, size, count, last_time) for rank, count in enumerate(counts)]
    total = sum(counts)
    targets = [cut * total // size for cut in range(size)]
    cuts, rounds = find_cuts(runs, targets)
    assert rounds <= 6
    story = sorted(key for run in runs for key in keys_of(run))
    for cut, target in enumerate(targets):
        before = [
            key for run, places in zip(runs, cuts, strict=True) for key in keys_of(run)[: int(places[cut])]
        ]
        assert sorted(before) == story[:target]


@pytest.mark.slow
def test_long_runs_take_few_rounds() -> None:
    rng = np.random.default_rng(1)
    runs = []
    for rank in range(4):
        times = np.sort(rng.integers(0, 2**60, 2**20 if rank else 2**14).astype(np.uint64))
        count = len(times)
        runs.append(Columns(times, np.full(count, rank, np.uint64), np.arange(count, dtype=np.uint64)))
    total = sum(len(run.times) for run in runs)
    targets = [cut * total // 4 for cut in range(4)]
    cuts, rounds = find_cuts(runs, targets)
    assert rounds <= 6
    assert [sum(int(places[cut]) for places in cuts) for cut in range(4)] == targets


def test_places_of_keys_and_samples() -> None:
    times, ids, numbers = [1, 5, 5, 5, 5, 9], [3, 1, 1, 2, 2, 0], [0, 4, 5, 0, 1, 9]
    run = Columns(*(np.array(column, np.uint64) for column in (times, ids, numbers)))
    for place in range(6):
        key = run.take(np.array([place]))[0]
        assert (run.before(key), run.up_to(key)) == (place, place + 1)
    assert run.before(np.array([5, 1, 6], np.uint64)) == run.up_to(np.array([5, 1, 6], np.uint64)) == 3
    assert run.before(np.array([99, 0, 0], np.uint64)) == 6
    assert sample_places(10, 4).tolist() == [0, 2, 5, 7]
    assert sample_places(0, 0).tolist() == []
