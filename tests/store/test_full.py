"""No room: every event is stored or counted, nothing that was stored suffers, and when there is room again all goes on.

The scenarios are functions of `programs/full.py`, which run in a tmpfs that is really full, or under a real limit.
"""

import pathlib
import sys

import pytest

from tests.store.programs import full
from tests.support import processes
from tests.support.counts import SOAKING
from tests.support.namespaces import run_in_tmpfs
from tests.support.requirements import require
from tests.support.tracing import strace_problem

PROGRAM = pathlib.Path(full.__file__)
DISK_BYTES = 5 * 2**20
ROOMY_BYTES = 16 * 2**20
FIRST_ROOM_FOR_A_STORY = 12
"""How many inodes a story takes with its tail, one of them only for a moment."""

pytestmark = pytest.mark.slow


def in_tmpfs(
    directory: pathlib.Path, size_bytes: int, scenario: str, *args: object, inodes: int | None = None
) -> None:
    """Run a scenario in a tmpfs."""
    root = directory / "disk"
    root.mkdir()
    run_in_tmpfs(root, size_bytes, PROGRAM, scenario, root, *args, inodes=inodes)


def under_a_limit(directory: pathlib.Path, scenario: str, *args: object) -> None:
    """Run a scenario that limits itself."""
    argv = [sys.executable, str(PROGRAM), scenario, str(directory), *map(str, args)]
    done = processes.run(argv, timeout=60)
    assert done.returncode == 0, processes.describe(done)


@pytest.mark.parametrize(
    ("kind", "durability"),
    [
        ("log_event", "process"),
        ("log_event", "node"),
        ("log_events", "node"),
        ("big", "process"),
    ],
)
def test_a_disk_that_gets_full(tmp_path: pathlib.Path, kind: str, durability: str) -> None:
    in_tmpfs(tmp_path, DISK_BYTES, "fills", kind, durability)


def test_flush_and_release_ask_a_disk_that_was_full_a_moment_ago(tmp_path: pathlib.Path) -> None:
    in_tmpfs(tmp_path, DISK_BYTES, "flushes_at_once")


def test_a_batch_that_fits_in_part_is_counted_in_part(tmp_path: pathlib.Path) -> None:
    in_tmpfs(tmp_path, DISK_BYTES, "refuses_a_batch_of_several_blocks")


def test_a_story_is_released_on_a_full_disk_and_acquired_later(tmp_path: pathlib.Path) -> None:
    in_tmpfs(tmp_path, DISK_BYTES, "releases")


def test_a_forked_child_without_room_for_a_tail(tmp_path: pathlib.Path) -> None:
    in_tmpfs(tmp_path, DISK_BYTES, "forks")


@pytest.mark.parametrize("inodes", range(2, FIRST_ROOM_FOR_A_STORY) if SOAKING else (2, 8))
def test_too_few_inodes_for_a_story(tmp_path: pathlib.Path, inodes: int) -> None:
    in_tmpfs(tmp_path, ROOMY_BYTES, "begins", "fails", inodes=inodes)


def test_just_enough_inodes_for_a_story(tmp_path: pathlib.Path) -> None:
    in_tmpfs(tmp_path, ROOMY_BYTES, "begins", "works", inodes=FIRST_ROOM_FOR_A_STORY)


@pytest.mark.parametrize(
    "size_bytes", (2**12, 2**13, 2**14, 2**15, 2**16, 2**20) if SOAKING else (2**12, 2**20)
)
def test_too_small_for_a_tail(tmp_path: pathlib.Path, size_bytes: int) -> None:
    in_tmpfs(tmp_path, size_bytes, "begins", "fails")


@pytest.mark.parametrize(
    ("what", "size_bytes", "inodes"),
    [("store", 2**19, None), ("store", ROOMY_BYTES, 1), ("tails", ROOMY_BYTES, 10)],
)
def test_store_and_tails_apart(
    tmp_path: pathlib.Path, what: str, size_bytes: int, inodes: int | None
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    in_tmpfs(tmp_path, size_bytes, "begins", "fails", elsewhere, what, inodes=inodes)


def test_a_reader_survives_holes_on_a_full_disk(tmp_path: pathlib.Path) -> None:
    in_tmpfs(tmp_path, DISK_BYTES, "reads_holes")


@pytest.mark.parametrize(
    ("size_bytes", "error"),
    [(4 * 2**20, "ENOSYS"), (900 * 2**10, "EOPNOTSUPP")]
    + ([(4 * 2**20, "EOPNOTSUPP"), (900 * 2**10, "ENOSYS")] if SOAKING else []),
)
def test_a_file_system_that_cannot_reserve(tmp_path: pathlib.Path, error: str, size_bytes: int) -> None:
    """The C library emulates the one and hands on the other, for which zeros are written here."""
    require("strace", strace_problem())
    in_tmpfs(tmp_path, size_bytes, "reserves", error)


@pytest.mark.parametrize("kind", ["log_event", "log_events", "big"] if SOAKING else ["log_events"])
def test_a_quota(tmp_path: pathlib.Path, kind: str) -> None:
    under_a_limit(tmp_path, "meets_a_quota", kind)


def test_a_quota_that_is_too_small_for_a_tail(tmp_path: pathlib.Path) -> None:
    under_a_limit(tmp_path, "has_a_quota_too_small_for_a_tail")


def test_a_client_comes_back_behind_an_append_that_failed(tmp_path: pathlib.Path) -> None:
    under_a_limit(tmp_path, "comes_back_behind_half_a_block")
