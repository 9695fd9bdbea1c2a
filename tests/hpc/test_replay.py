"""Collective replay, on real ranks: the joined slices are the story."""

import json
import pathlib
import subprocess
import sys
import time
from typing import Any

import pytest

from chronolog_hpc.clientlib import ClientFile
from chronolog_hpc.replay import deal
from tests.support import processes
from tests.support.launch import Mpi

PROGRAM = pathlib.Path(__file__).parent / "programs" / "replays.py"


def run(mpi: Mpi, ranks: int, *arguments: object, **options: Any) -> Any:
    return json.loads(mpi(ranks, PROGRAM, *arguments, timeout=120, **options).stdout)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_the_joined_slices_are_the_serial_replay(mpi: Mpi, tmp_path: pathlib.Path, ranks: int) -> None:
    lengths = run(mpi, ranks, "slices", tmp_path)  # which compares every byte
    assert sum(lengths["colliding"]) == 1000 * ranks
    assert sum(lengths["skewed"]) == 5000 + 20 * (ranks - 1)
    assert sum(lengths["empty"]) == 0
    assert sum(lengths["one event"]) == 1
    assert sum(lengths["big"]) == 6 * ranks
    assert all(max(counts) - min(counts) <= 1 for counts in lengths.values())


def test_groups_and_single_ranks_replay_on_their_own(mpi: Mpi, tmp_path: pathlib.Path) -> None:
    done = mpi(4, PROGRAM, "groups", tmp_path, timeout=60)
    assert done.stdout.split() == ["400"] * 4


@pytest.mark.slow
def test_opens_per_rank_do_not_grow_with_the_number_of_ranks(mpi: Mpi, tmp_path: pathlib.Path) -> None:
    for ranks in (2, 4, 8):
        told = run(mpi, ranks, "opens", tmp_path / str(ranks))
        for opened, read in told:
            assert opened <= 16
            assert read <= 3  # described, opened, and looked for a second segment
        assert sum(read for _, read in told) <= 3 * ranks


def test_a_story_can_be_replayed_while_another_job_writes(mpi: Mpi, tmp_path: pathlib.Path) -> None:
    code = """
import sys, time
from chronolog_hpc import open_story
with open_story(None, "c", "growing", store=sys.argv[1]) as story:
    number = 0
    while number < 1_000_000:
        story.log_event(f"event {number}")
        number += 1
        if number == 5000:
            print("go on", flush=True)
        if number % 50 == 0:
            time.sleep(0.001)
"""
    argv = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(argv, env=processes.child_environment(), stdout=subprocess.PIPE) as writer:
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline()
            assert run(mpi, 3, "growing", tmp_path, 5000) >= 5000
        finally:
            writer.kill()


def test_errors_are_raised_on_all_ranks(mpi: Mpi, tmp_path: pathlib.Path) -> None:
    expected = {
        "no story": ("NotFoundError", "'nothing'"),
        "no chronicle": ("NotFoundError", "'nothing'"),
        "no store": ("NotAStoreError", "store-missing"),
        "range": ("InvalidArgumentError", "starts at 2, after its end 1"),
        "negative": ("InvalidArgumentError", "start -1 is not between"),
        "no number": ("TypeError", "start is a time"),
        "root": ("InvalidArgumentError", "root 3"),
        "disagreement": ("InvalidArgumentError", "story='damaged'"),
        "damage": ("DamageError", "damaged at byte"),
        "no time": ("ReplayTimeoutError", "deadline"),
        "another store": ("StoreError", "another rank sees this file"),
    }
    told = run(mpi, 3, "errors", tmp_path / "store")
    assert told.keys() == expected.keys()
    for name, (kind, said) in expected.items():
        for found, sentence in told[name]:
            assert (name, found) == (name, kind)
            assert said in sentence


def test_an_error_that_nobody_expects_ends_the_job(mpi: Mpi, tmp_path: pathlib.Path) -> None:
    start_s = time.monotonic()
    done = mpi(3, PROGRAM, "unexpected", tmp_path, timeout=30, check=False)
    assert time.monotonic() - start_s < 15
    assert done.returncode == 1
    assert "chronolog: rank 1 of 3 on " in done.stderr
    assert "a bolt from the blue" in done.stderr


def test_clients_are_dealt_to_their_own_hosts_by_size() -> None:
    hosts = ["a", "a", "b", "b"]
    files = [ClientFile(number, "ab"[number % 2], 1000 * (number + 1)) for number in range(8)]
    dealt = deal(files, hosts)
    assert sorted(client_id for ids in dealt for client_id in ids) == list(range(8))
    assert all(len(ids) == 2 for ids in dealt)
    assert all(
        {files[number].host for number in ids} == {host} for ids, host in zip(dealt, hosts, strict=True)
    )
    assert sorted(dealt[:2]) == [[0, 6], [2, 4]]  # large and small together


def test_no_rank_is_dealt_more_than_its_share() -> None:
    files = [ClientFile(number, "a", 10**9 if number == 0 else number) for number in range(10)]
    dealt = deal(files, ["a", "b", "c"])
    assert sorted(map(len, dealt)) == [3, 3, 4]
    assert deal([], ["a", "b"]) == [[], []]
    assert deal(files[:1], ["b", "c"]) == [[0], []]
