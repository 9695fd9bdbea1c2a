"""Memory and descriptors: a writer takes no more of them with the events it logs; where they are short, errors are clear.

The scenarios are functions of `programs/limits.py`.
"""

import pathlib
import sys

import pytest

from tests.store.programs import limits
from tests.support import processes
from tests.support.counts import soak

PROGRAM = pathlib.Path(limits.__file__)

pytestmark = pytest.mark.slow


def run(directory: pathlib.Path, scenario: str, *args: object) -> None:
    argv = [sys.executable, str(PROGRAM), scenario, str(directory / "store"), *map(str, args)]
    done = processes.run(argv, timeout=60)
    assert done.returncode == 0, processes.describe(done)


@pytest.mark.parametrize("kind", ["log_event", "log_events"])
def test_memory_does_not_grow_with_the_events(tmp_path: pathlib.Path, kind: str) -> None:
    run(tmp_path, "writes", kind, 200_000, soak(1_000_000, 5_000_000))


def test_memory_does_not_grow_with_the_refusals(tmp_path: pathlib.Path) -> None:
    run(tmp_path, "refuses", 5_000, soak(25_000, 300_000))


@pytest.mark.parametrize("limit", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_a_replay_with_too_little_memory(tmp_path: pathlib.Path, limit: str) -> None:
    run(tmp_path, "replays", limit)


def test_a_story_of_more_clients_than_descriptors(tmp_path: pathlib.Path) -> None:
    run(tmp_path, "has_many_clients")


def test_more_clients_than_descriptors(tmp_path: pathlib.Path) -> None:
    run(tmp_path, "runs_out_of_descriptors")
