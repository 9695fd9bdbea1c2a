"""Failing together, failing alone, and waiting asleep."""

import json
import pickle
import subprocess
import sys
import time

import pytest

from chronolog_hpc import mpi as ranks
from chronolog_hpc.clientlib import DamageError, NotFoundError, RecordTooLargeError, StoreError
from tests.hpc.test_clientlib import blocking, python
from tests.support.launch import Mpi

GUARDED = """
    import sys, time
    from mpi4py import MPI
    from chronolog_hpc import guard
    from chronolog_hpc.mpi import Team
    comm, kind = MPI.COMM_WORLD, sys.argv[1]
    with guard(comm):
        if kind == "collective":
            with Team(comm) as team:
                team.together(lambda: 1 / (comm.rank - 1))
        if kind == "group" and comm.rank:
            with Team(comm.Split(1)) as team:  # of which rank 0 of the job is no member
                team.together(lambda: 1 / (team.rank - 1))
        if kind == "group":
            comm.Split(0)
        if comm.rank == 1:
            if kind == "error":
                raise ValueError("rank one is ill")
            if kind == "exit":
                sys.exit(3)
            if kind == "message":
                sys.exit("a last word")
            if kind == "interrupt":
                raise KeyboardInterrupt
        comm.Barrier()
        if kind == "clean":
            sys.exit(0)
        if kind == "all":
            sys.exit(4)
"""


def guarded(mpi: Mpi, kind: str) -> subprocess.CompletedProcess[str]:
    start_s = time.monotonic()
    done = mpi(3, "-c", GUARDED, kind, timeout=30, check=False)
    assert time.monotonic() - start_s < 15  # the others did not wait for the time-out
    return done


def test_an_exception_on_one_rank_ends_the_job_with_its_traceback(mpi: Mpi) -> None:
    done = guarded(mpi, "error")
    assert done.returncode == 1
    assert "chronolog: rank 1 of 3 on " in done.stderr
    assert "ValueError: rank one is ill" in done.stderr
    assert done.stderr.count("Traceback") == 1


@pytest.mark.parametrize(
    ("kind", "code", "said"),
    [
        ("exit", 3, "ends the job with exit code 3"),
        ("message", 1, "ends the job with exit code 1: a last word"),
        ("interrupt", 130, "chronolog: rank 1 of 3 on "),
        ("all", 4, "ends the job with exit code 4"),
    ],
)
def test_the_exit_code_says_why(mpi: Mpi, kind: str, code: int, said: str) -> None:
    done = guarded(mpi, kind)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert ("was interrupted" in done.stderr) == (kind == "interrupt")


def test_a_clean_exit_is_left_alone(mpi: Mpi) -> None:
    done = guarded(mpi, "clean")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("kind", ["collective", "group"])
def test_an_error_of_all_ranks_is_printed_by_one(mpi: Mpi, kind: str) -> None:
    done = guarded(mpi, kind)
    assert done.returncode == 1
    assert done.stderr.count("ZeroDivisionError: rank 1 on ") == 1


def test_one_rank_alone_keeps_its_exception() -> None:
    with pytest.raises(ValueError, match="mine"), ranks.guard(None):
        raise ValueError("mine")
    with pytest.raises(ValueError, match="mine"), ranks.Team(None) as team:
        team.agree(ValueError("mine"))
    team = ranks.Team(None)
    assert (team.rank, team.size, team.comm) == (0, 1, None)
    assert team.together(lambda: 5) == team.from_root(lambda: 5) == team.bcast(5) == team.total(5) == 5
    assert team.allgather(5) == [5]
    team.barrier()
    team.leave(None)


TOGETHER = """
    import json
    from mpi4py import MPI
    from chronolog_hpc.clientlib import DamageError, InvalidArgumentError, NotFoundError, RecordTooLargeError
    from chronolog_hpc.mpi import Team
    comm = MPI.COMM_WORLD

    class Odd(Exception):
        def __init__(self, one, two):
            super().__init__(one)

    errors = [
        NotFoundError("no story"), DamageError("/store/file", 64, "rotten"), RecordTooLargeError(9, 8), Odd(1, 2),
        ValueError("bad"), OSError(28, "no space", "/store"), MemoryError(),
    ]
    told = []
    with Team(comm) as team:
        for number, error in enumerate(errors):
            def act():
                if comm.rank == number % comm.size:
                    raise error
            try:
                team.together(act)
            except Exception as raised:
                told.append([type(raised).__name__, str(raised), getattr(raised, "offset", None)])
        assert team.from_root(lambda: comm.rank) == 0
        assert team.together(lambda: comm.rank) == comm.rank
        assert team.total(comm.rank) == sum(range(comm.size))
        try:
            team.from_root(lambda: 1 / 0)
        except ZeroDivisionError as raised:
            told.append([type(raised).__name__, str(raised), None])
    try:
        Team(MPI.COMM_NULL)
    except InvalidArgumentError as raised:
        told.append([type(raised).__name__, str(raised), None])
    told = comm.gather(told)
    if comm.rank == 0:
        print(json.dumps(told))
"""


def test_what_fails_on_one_rank_is_raised_on_all(mpi: Mpi) -> None:
    told = json.loads(mpi(3, "-c", TOGETHER, timeout=30).stdout)
    kinds = ["NotFoundError", "DamageError", "RecordTooLargeError", "RankError", "ValueError", "OSError"]
    kinds += ["MemoryError", "ZeroDivisionError", "InvalidArgumentError"]
    for rank, errors in enumerate(told):
        found = [kind for kind, _, _ in errors]
        assert found == ([*kinds[:3], "RankError", *kinds[4:]])
        assert errors[1][2] == 64
        for number, (_, sentence, _) in enumerate(errors[:5]):
            raiser = number % 3
            assert sentence.startswith(f"rank {raiser} on ") == (
                rank != raiser or kinds[number] == "RankError"
            )
        assert "no story" in errors[0][1]
        assert "damaged at byte 64: rotten" in errors[1][1]


IDLE = """
    import time
    from mpi4py import MPI
    from chronolog_hpc.mpi import Team, barrier
    comm = MPI.COMM_WORLD
    comm.Barrier()
    with Team(comm) as team:
        start_s = time.process_time()
        if comm.rank == 0:
            time.sleep(1)
        barrier(comm)
        if comm.rank == 0:
            time.sleep(1)
        team.agree(None)
        used_s = team.allgather(time.process_time() - start_s)
    if comm.rank == 0:
        print(max(used_s))
"""


@pytest.mark.slow
def test_who_waits_sleeps(mpi: Mpi) -> None:
    assert float(mpi(4, "-c", IDLE, timeout=30).stdout) < 1.0  # of two seconds


def test_a_missing_mpi_names_the_extra() -> None:
    done = python("import chronolog_hpc.mpi; chronolog_hpc.mpi.load_mpi()", before=blocking("mpi4py"))
    assert 'pip install "chronolog-hpc[mpi]"' in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "error",
    [
        NotFoundError("x"),
        StoreError("/p", "y"),
        DamageError("/p", 1, "z"),
        RecordTooLargeError(2, 1),
        KeyError("k"),
    ],
)
def test_an_error_travels_with_its_attributes(error: Exception) -> None:
    packed = pickle.loads(pickle.dumps(ranks._pack(error)))
    there = ranks._unpack(packed, 7)
    assert type(there) is type(error)
    assert str(error).strip("'") in str(there)
    assert "rank 7 on " in str(there)
    assert vars(there) == vars(error)


def test_an_error_of_an_unknown_kind_is_told() -> None:
    class Local(Exception):
        pass

    there = ranks._unpack(ranks._pack(Local("secret")), 7)
    assert isinstance(there, ranks.RankError)
    assert "Local: secret" in str(there)


def test_exit_codes_fit_into_a_byte() -> None:
    assert ranks._exit_code(SystemExit(256)) == 1
    assert ranks._exit_code(SystemExit(7)) == 7
    assert ranks._exit_code(ValueError()) == 1
    assert not ranks.is_clean_exit(SystemExit(1))
    assert ranks.is_clean_exit(SystemExit(None))
    assert sys.modules.keys().isdisjoint({"mpi4py.MPI"})  # pytest itself is no rank
