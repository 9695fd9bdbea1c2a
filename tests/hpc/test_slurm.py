"""What the environment says of job and rank; ranks that do not see each other are told so, with the fix."""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronolog_hpc.slurm import JobEnvironment
from tests.support import launch, processes
from tests.support.cluster import Cluster, cluster, slurm_problem
from tests.support.requirements import require

# As Slurm 22.05 sets them: `sbatch -N2 -n4 --array=3`, then in it `srun --mpi=pmi2`, and MPICH's mpiexec.
BATCH = {
    "SLURM_JOB_ID": "31", "SLURM_ARRAY_JOB_ID": "28", "SLURM_ARRAY_TASK_ID": "3", "SLURM_JOB_NODELIST": "h[1-2]",
    "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURMD_NODENAME": "h1",
}  # fmt: skip
STEP = BATCH | {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}
SRUN = STEP | {"SLURM_MPI_TYPE": "pmi2", "PMI_RANK": "3", "PMI_SIZE": "4"}
MPIEXEC = STEP | {
    "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_MPI_TYPE": "pmi2",
    "PMI_RANK": "1", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1",
}  # fmt: skip


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, {"rank": None, "size": 1, "launcher": "", "speaks": True, "local_rank": None}),
        (BATCH, {"rank": None, "size": 1, "task": None, "tasks": None, "step": "", "plugin": "", "local_rank": None}),
        (STEP, {"rank": None, "size": 4, "task": 3, "plugin": "none", "speaks": False, "local_rank": 1, "under_srun": True}),
        (SRUN, {"rank": 3, "size": 4, "task": 3, "plugin": "pmi2", "launcher": "PMI_RANK", "local_rank": 1}),
        (MPIEXEC, {"rank": 1, "size": 4, "task": 0, "speaks": False, "local_rank": 1, "under_srun": False}),
        (STEP | {"PMIX_RANK": "3"}, {"rank": 3, "size": 4, "under_srun": True}),
        (STEP | {"PMIX_RANK": "2"}, {"rank": 2, "size": None, "under_srun": False, "local_rank": None}),
        (STEP | {"PMI_RANK": "0", "PMI_SIZE": "1"}, {"rank": 0, "size": 1, "under_srun": False}),
        ({"PMI_RANK": "2", "PMI_SIZE": "4"}, {"rank": 2, "size": 4, "launcher": "PMI_RANK", "speaks": False}),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "0", "PMIX_RANK": "1"},
         {"rank": 1, "size": 2, "local_rank": 0, "launcher": "OMPI_COMM_WORLD_RANK"}),
        ({"PMIX_RANK": "3"}, {"rank": 3, "size": None, "launcher": "PMIX_RANK"}),
        ({"PALS_RANKID": "0", "PALS_LOCAL_RANKID": "0"}, {"rank": 0, "size": None, "local_rank": 0, "speaks": True}),
        ({"PMI_RANK": "x", "PMI_SIZE": "4"}, {"rank": None, "size": 1}),
    ],
)  # fmt: skip
def test_who_has_started_this_process(variables: dict[str, str], expected: dict[str, object]) -> None:
    environment = JobEnvironment(variables)
    assert {name: getattr(environment, name) for name in expected} == expected
    assert environment.alone == (environment.size == 1)


def test_the_job(tmp_path: Path) -> None:
    slurm = JobEnvironment(SRUN | {"SLURM_RESTART_COUNT": "2", "SLURM_TMPDIR": "/local/31", "TMPDIR": "/tmp"})
    assert (slurm.scheduler, slurm.job, slurm.array_job, slurm.array_task, slurm.restarts) == (
        "slurm",
        "31",
        "28",
        3,
        2,
    )
    assert (slurm.nodes, slurm.node_count, slurm.node, slurm.scratch) == (
        ("h1", "h2"),
        2,
        "h1",
        Path("/local/31"),
    )
    shown = repr(slurm)
    assert shown.startswith(
        "JobEnvironment(scheduler='slurm', job='31', array_job='28', array_task=3, restarts=2, nodes="
    )
    assert slurm.facts()["scratch"] == "/local/31"

    nodes = tmp_path / "nodes"
    nodes.write_text("p1\np1\np2\np2\n")
    pbs = JobEnvironment(
        {"PBS_JOBID": "9.head", "PBS_ARRAY_INDEX": "0", "PBS_NODEFILE": str(nodes), "TMPDIR": "/t"}
    )
    assert (pbs.job, pbs.array_task, pbs.nodes, pbs.node_count, pbs.scratch) == (
        "9.head",
        0,
        ("p1", "p2"),
        2,
        Path("/t"),
    )
    lsf = JobEnvironment({"LSB_JOBID": "5", "LSB_JOBINDEX": "0", "LSB_MCPU_HOSTS": "a 4 b 4"})
    assert (lsf.scheduler, lsf.job, lsf.array_task, lsf.nodes) == ("lsf", "5", None, ("a", "b"))
    assert JobEnvironment({"FLUX_JOB_ID": "f1"}).job == "f1"
    nobody = JobEnvironment({})
    assert (nobody.job, nobody.restarts, nobody.nodes, nobody.node_count, nobody.scratch) == (
        "",
        0,
        (),
        None,
        None,
    )
    assert repr(nobody) == "JobEnvironment(restarts=0, size=1)"


NAMES = st.sampled_from([*MPIEXEC, "PBS_NODEFILE", "PBS_JOBID", "LSB_MCPU_HOSTS", "PMIX_RANK"])


@given(st.dictionaries(NAMES, st.text("017x[]-,/\n\0é", max_size=6)))
def test_nonsense_is_no_reason_to_fail(variables: dict[str, str]) -> None:
    environment = JobEnvironment(variables)
    assert repr(environment)
    assert environment.size is None or environment.size >= 0
    assert environment.speaks in (True, False)


# -- ranks that do not see each other ------------------------------------------------------------------------

PROGRAM = """
    import sys
    from mpi4py import MPI
    from chronolog_hpc import open_story, replay_story
    from chronolog_hpc.mpi import LonelyRankError
    def write():
        with open_story(MPI.COMM_WORLD, "c", "s", store=sys.argv[1]):
            pass
    for use in (write, lambda: replay_story(MPI.COMM_WORLD, "c", "s", store=sys.argv[1])):
        try:
            use()
        except LonelyRankError as error:
            print(error, flush=True)
    with open_story(None, "c", "s", store=sys.argv[1]) as story:  # this one is meant to be alone
        assert story.log_event("x")
"""
COMMANDS = (["bench", "--events", "20", "--baseline-rounds", "0"], ["clock", "--seconds", "0"])
WORDS = "srun --mpi=none has started {} ranks and MPI sees 1, because "


@functools.cache
def plugin() -> str:
    """Return the plugin that this MPI library understands; asked in another process, for pytest is no rank."""
    argv = [sys.executable, "-c", "from chronolog_hpc.mpi import srun_plugin; print(srun_plugin())"]
    return processes.run(argv, timeout=60).stdout.strip()


def assert_lonely(done: subprocess.CompletedProcess[str], command: str, ranks: int) -> None:
    assert done.returncode == 2, processes.describe(done)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("srun:")]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(f"chronolog {command}: {WORDS.format(ranks)}")
    assert lines[0].endswith(f": use srun --mpi={plugin()}")


def test_alone_among_others_by_environment(tmp_path: Path) -> None:
    require("mpi", launch.mpi_problem())
    for arguments in COMMANDS:
        command = [sys.executable, "-m", "chronolog_hpc", *arguments]
        assert_lonely(processes.run(command, timeout=60, env={**STEP, "SLURM_PROCID": "0"}), arguments[0], 4)
    done = processes.run(command, timeout=60, env=STEP)  # task 3: one of them has said it
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")
    argv = [sys.executable, *launch.python_argv("-c", PROGRAM), str(tmp_path / "store")]
    done = processes.run(argv, timeout=60, env=STEP)
    assert done.returncode == 0, processes.describe(done)
    assert [line.startswith(WORDS.format(4)) for line in done.stdout.splitlines()] == [True, True]
    done = processes.run(argv, timeout=60, env=BATCH)  # a serial program in a batch script of four tasks
    assert (done.returncode, done.stdout) == (0, ""), processes.describe(done)


def test_a_communicator_of_one_rank_is_no_lonely_rank(mpi: launch.Mpi, tmp_path: Path) -> None:
    program = """
        import sys
        from mpi4py import MPI
        from chronolog_hpc import open_story
        with open_story(MPI.COMM_SELF, "c", f"s{MPI.COMM_WORLD.rank}", store=f"{sys.argv[1]}{MPI.COMM_WORLD.rank}") as story:
            assert story.size == 1 and story.log_event("x")
    """
    mpi(2, "-c", program, tmp_path / "store")


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Cluster]:
    require("mpi", launch.mpi_problem())
    require("slurm", slurm_problem())
    with cluster(tmp_path / "c", 2) as hosts:
        hosts.start_slurm(cpus=4)
        yield hosts


@pytest.mark.slow
def test_the_wrong_plugin_and_the_right_one(slurm: Cluster, tmp_path: Path) -> None:
    def srun(
        mpi: str, *command: object, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return slurm.run(
            "h1", "srun", "--nodes=2", "--ntasks=2", f"--mpi={mpi}", sys.executable, *command, env=env
        )

    assert_lonely(srun("none", "-m", "chronolog_hpc", *COMMANDS[0]), "bench", 2)
    doctor = srun(plugin(), "-m", "chronolog_hpc", "doctor", "--json", "--store", tmp_path / "store")
    assert doctor.returncode == 0, processes.describe(doctor)
    said = json.loads(doctor.stdout)
    findings = {finding["check"]: finding for finding in said["findings"]}
    assert (said["ranks"], said["nodes"], said["job"]["job"]) == (2, ["h1", "h2"], "2")
    assert findings["ranks"]["found"] == "MPI sees 2, as were asked for"
    assert findings["shared store"]["level"] == findings["Slurm"]["level"] == "ok"
    told = srun(plugin(), "-m", "chronolog_hpc", *COMMANDS[0], env={"TMPDIR": os.fspath(tmp_path)})
    assert told.returncode == 0, processes.describe(told)
    assert "# env.ranks: 2\n" in told.stdout
    assert f"# env.job: scheduler=slurm, job=3, node_count=2, plugin={plugin()}\n" in told.stdout
