"""Sessions, on real ranks: opened by all or none, told apart, closed together."""

import json
import pathlib
import re
import time
from typing import Any

import pytest

from chronolog_hpc import describe_clients, open_story, replay_story
from chronolog_hpc.clientlib import EventList, open_client
from tests.support.launch import Mpi

PROGRAM = pathlib.Path(__file__).parent / "programs" / "sessions.py"


def run(mpi: Mpi, ranks: int, *arguments: object, **options: Any) -> Any:
    return json.loads(mpi(ranks, PROGRAM, *arguments, timeout=60, **options).stdout)


@pytest.mark.parametrize("ranks", [2, 4])
def test_all_ranks_log_into_one_story_that_all_see(mpi: Mpi, tmp_path: pathlib.Path, ranks: int) -> None:
    jobs = [
        run(mpi, ranks, "shared", tmp_path / "store", env=env) for env in ({}, {"SLURM_RESTART_COUNT": "2"})
    ]
    ids = [rank[0] for job in jobs for rank in job]
    assert len(set(ids)) == 2 * ranks  # unique in the job and across jobs
    for number, job in enumerate(jobs):
        assert len({client_id >> 24 for client_id, *_ in job}) == 1
        for rank, (client_id, seen, told_rank, size, own_pid, _, attempt, leftovers) in enumerate(job):
            assert (client_id & (2**24 - 1), told_rank, size) == (rank, rank, ranks)
            assert seen == 100 * ranks * (number + 1)
            assert own_pid
            assert attempt == 2 * number
            assert leftovers == []
    with open_client(tmp_path / "store") as client:
        found = describe_clients(client, "c", "s")
    assert found.keys() == set(ids)
    assert sorted(info.rank for info in found.values() if info.rank is not None) == sorted(
        [*range(ranks)] * 2
    )
    assert {info.description["mode"] for info in found.values()} == {"shared"}


def test_the_job_of_the_batch_system_is_kept(mpi: Mpi, tmp_path: pathlib.Path) -> None:
    job = run(mpi, 2, "shared", tmp_path / "store", env={"PBS_JOBID": "77.head"})
    assert {rank[5] for rank in job} == {"77.head"}


@pytest.mark.parametrize("ranks", [1, 3])
def test_every_rank_has_a_story_of_its_own(mpi: Mpi, tmp_path: pathlib.Path, ranks: int) -> None:
    told = run(mpi, ranks, "per_rank", tmp_path / "store")
    everything = [[f"rank {rank}"] for rank in range(ranks)]
    assert told == [[f"s.{rank}", everything] for rank in range(ranks)]


def test_groups_of_ranks_and_single_ranks_have_sessions(mpi: Mpi, tmp_path: pathlib.Path) -> None:
    told = run(mpi, 4, "groups", tmp_path / "store")
    assert [place for place, _ in told] == [[0, 2], [0, 2], [1, 2], [1, 2]]
    assert all(
        seen == [["0", "1", "2", "3"], ["0", "2"], ["1", "3"], ["0"], ["1"], ["2"], ["3"]] for _, seen in told
    )


def test_without_configuration_the_store_is_rank_0s_and_named_once(mpi: Mpi, tmp_path: pathlib.Path) -> None:
    done = mpi(3, PROGRAM, "default_store", cwd=tmp_path, timeout=60)
    store = str(tmp_path / "cwd0" / "chronolog_store")
    assert json.loads(done.stdout) == [[store, store]] * 3
    assert done.stderr == f"chronolog: store {store}\n"
    assert not (tmp_path / "cwd1" / "chronolog_store").exists()


@pytest.mark.slow
def test_a_rank_that_does_not_see_the_store_says_so_on_all(mpi: Mpi, tmp_path: pathlib.Path) -> None:
    told = run(mpi, 4, "hidden_store", tmp_path / "store")
    for kind, sentence in told:
        assert kind == "StoreError"
        assert f"{tmp_path / 'store-elsewhere'}: rank 3 on " in sentence
        assert (
            f"rank 0 on {sentence.split('rank 0 on ')[1].split()[0]} has opened at {tmp_path / 'store'}"
            in sentence
        )
    assert (
        sum(sentence.startswith("rank 3 on ") for _, sentence in told) == 3
    )  # the others say from whom they have it
    assert not (tmp_path / "store-elsewhere").exists()
    assert not list((tmp_path / "store").glob("chronicles/*/stories/*/*.tail"))  # nobody holds the story


@pytest.mark.parametrize(
    ("kind", "error", "said"),
    [
        ("file", "StoreError", "sessions.py"),
        ("name", "InvalidArgumentError", "name"),
        ("durability", "InvalidArgumentError", "forever"),
        ("description", "TypeError", "object"),
    ],
)
def test_what_is_wrong_on_one_rank_is_raised_on_all(
    mpi: Mpi, tmp_path: pathlib.Path, kind: str, error: str, said: str
) -> None:
    for found, sentence in run(mpi, 2, "bad", tmp_path / "store", kind):
        assert found == error
        assert said in sentence
    assert not list(tmp_path.glob("store/chronicles/*/stories/*/*.tail"))


@pytest.mark.parametrize("how", ["one_raises", "one_raises_and_others_leave"])
def test_an_exception_on_one_rank_ends_the_job(mpi: Mpi, tmp_path: pathlib.Path, how: str) -> None:
    start_s = time.monotonic()
    done = mpi(3, PROGRAM, how, tmp_path / "store", timeout=30, check=False)
    assert time.monotonic() - start_s < 15
    assert done.returncode == 1
    assert re.search(r"chronolog: rank 1 of 3 on .* ends the job, because of\nTraceback", done.stderr)
    assert done.stderr.count("ValueError: rank one is ill") == 1
    events = EventList()
    with open_client(tmp_path / "store") as client:
        assert client.ReplayStory("c", "s", 0, 2**64 - 1, events) == 0
        if how == "one_raises":  # nothing is lost, and the story is given up
            assert sorted(event.log_record() for event in events) == ["0", "1", "2"]
        deadline_s = time.monotonic() + 10
        while client.DestroyStory("c", "s"):  # mpiexec may return before all that it has killed are gone
            assert time.monotonic() < deadline_s
            time.sleep(0.05)


def test_if_all_ranks_raise_each_goes_on_with_its_own_error(mpi: Mpi, tmp_path: pathlib.Path) -> None:
    assert run(mpi, 3, "all_raise", tmp_path / "store") == [[f"rank {rank}", 3] for rank in range(3)]


def test_leaving_with_exit_code_0_is_an_end_like_any_other(mpi: Mpi, tmp_path: pathlib.Path) -> None:
    assert run(mpi, 2, "exits", tmp_path / "store") == [2, 2]


def test_lost_events_of_all_ranks_are_reported_once(mpi: Mpi, tmp_path: pathlib.Path) -> None:
    done = mpi(3, PROGRAM, "losses", tmp_path / "store", timeout=60)
    lost = json.loads(done.stdout)
    assert [sum(rank.values()) for rank in lost] == [0, 1, 2]
    reports = [line for line in done.stderr.splitlines() if "could not be stored" in line]
    assert len(reports) == 1
    assert reports[0].startswith("WARNING 3 events on 2 of 3 ranks could not be stored in story 's' of 'c' (")


def test_alone_an_exception_goes_its_way_and_the_story_is_released(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    def session() -> None:
        with open_story(None, "c", "s", store=tmp_path) as story:
            story.log_event("kept")
            story.client.ReleaseStory("c", "s")
            story.log_event("lost")
            raise ValueError("alone")

    with pytest.raises(ValueError, match="alone"):
        session()
    assert [event.log_record() for event in replay_story(None, "c", "s", store=tmp_path)] == ["kept"]
    assert "1 events on 1 of 1 ranks could not be stored in story 's' of 'c'" in caplog.text


def test_the_reason_of_a_release_is_kept(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="alone"), open_story(None, "c", "s", store=tmp_path):
        raise ValueError("alone")
    (segment,) = tmp_path.glob("chronicles/*/stories/*/*.log")
    assert b"exception" in segment.read_bytes()


def test_the_environments_store_is_used_and_said_to_be(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CHRONOLOG_STORE", str(tmp_path / "environment"))
    with open_story(None, "c", "s", store=tmp_path / "argument") as story:
        assert story.store == tmp_path / "environment"
    assert "is used instead of the store" in caplog.text
    assert not (tmp_path / "argument").exists()


@pytest.mark.parametrize("what", ["chronicle", "story", "store", "durability", "clock"])
def test_ranks_that_do_not_agree_open_nothing(mpi: Mpi, tmp_path: pathlib.Path, what: str) -> None:
    said = run(mpi, 2, "differ", tmp_path / "store", what)
    assert all("all ranks must open the same: rank 0 opens" in sentence for sentence in said)
    assert not list((tmp_path / "store").glob("chronicles/*/stories/*/*.log"))
