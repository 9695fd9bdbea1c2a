"""What the batch system and the launcher say of this process, told from the environment alone, without MPI.

There are two worlds. The *job* belongs to a batch system: Slurm, PBS, LSF or Flux. The *rank* belongs to whoever has
started the ranks: mpiexec, or srun with a plugin that speaks PMI or PMIx. They meet only under srun. mpiexec in a
batch script has srun start one proxy for each node, and all ranks inherit the variables of their proxy: so
SLURM_PROCID, SLURM_LOCALID and SLURM_NTASKS are not of ranks. They are believed where no launcher of MPI speaks, or
where it says the same.

A serial program in a batch script sees SLURM_NTASKS as well; only the tasks of a step have SLURM_STEP_NUM_TASKS.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, final

from chronolog_hpc.hostlist import expand


class _Launcher(NamedTuple):
    """The variables by which the ranks of a launcher know themselves."""

    rank: str
    size: str | None = None
    local_rank: str | None = None


_LAUNCHERS = (
    _Launcher(
        "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"
    ),  # Open MPI's mpirun
    _Launcher(
        "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"
    ),  # MPICH's and Intel's mpiexec, srun --mpi=pmi2, Cray
    _Launcher("PMIX_RANK"),  # srun --mpi=pmix, PRRTE
    _Launcher(
        "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK"
    ),  # MVAPICH's mpirun_rsh
    _Launcher("PALS_RANKID", None, "PALS_LOCAL_RANKID"),  # HPE's aprun and mpiexec
)
_JOBS = {"slurm": "SLURM_JOB_ID", "pbs": "PBS_JOBID", "lsf": "LSB_JOBID", "flux": "FLUX_JOB_ID"}
_ARRAY_TASKS = {"slurm": "SLURM_ARRAY_TASK_ID", "pbs": "PBS_ARRAY_INDEX", "lsf": "LSB_JOBINDEX"}
_SCRATCH = ("SLURM_TMPDIR", "PBS_JOBFS", "TMPDIR")


@final
class JobEnvironment:
    """The job, the step and the rank that this process is, as its environment says.

    What the environment does not say, or says in a way that cannot be understood, is None or empty: it is
    somebody else's, and no reason to fail.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        """Take a copy of an environment; None for this process's own."""
        self._variables = dict(os.environ if environment is None else environment)

    def __repr__(self) -> str:
        facts = (f"{name}={value!r}" for name, value in self.facts().items())
        return f"JobEnvironment({', '.join(facts)})"

    def facts(self) -> dict[str, Any]:
        """Return the properties that say something, by name; nodes as a list and paths as text, for JSON."""
        found = {name: getattr(self, name) for name in _FACTS}
        if self.nodes:
            found["nodes"] = list(self.nodes)
        if self.scratch is not None:
            found["scratch"] = str(self.scratch)
        return {name: value for name, value in found.items() if value not in (None, "", ())}

    # -- the job --

    @property
    def scheduler(self) -> str:
        """The batch system: "slurm", "pbs", "lsf" or "flux"; empty without one."""
        return next((name for name, variable in _JOBS.items() if self._text(variable)), "")

    @property
    def job(self) -> str:
        """Id of the job, which every task of an array has for itself; empty without a batch system."""
        return self._text(_JOBS.get(self.scheduler))

    @property
    def array_job(self) -> str:
        """Id that all tasks of a Slurm array share; empty without an array."""
        return self._text("SLURM_ARRAY_JOB_ID")

    @property
    def array_task(self) -> int | None:
        """Number of this task of an array; None without an array."""
        task = self._number(_ARRAY_TASKS.get(self.scheduler))
        return None if self.scheduler == "lsf" and not task else task  # LSF counts from 1

    @property
    def restarts(self) -> int:
        """How often Slurm has put the job back into the queue and started it again."""
        return self._number("SLURM_RESTART_COUNT") or 0

    @cached_property
    def nodes(self) -> tuple[str, ...]:
        """Names of the nodes of the job, each once; empty where nobody says them."""
        if self.scheduler == "slurm":
            try:
                return tuple(dict.fromkeys(expand(self._text("SLURM_JOB_NODELIST"))))
            except ValueError:
                return ()
        if self.scheduler == "pbs":
            try:
                return tuple(dict.fromkeys(Path(self._text("PBS_NODEFILE")).read_text().split()))
            except (OSError, ValueError):
                return ()
        return tuple(dict.fromkeys(self._text("LSB_MCPU_HOSTS").split()[::2]))

    @property
    def node_count(self) -> int | None:
        """Number of nodes of the job."""
        return self._number("SLURM_JOB_NUM_NODES") or len(self.nodes) or None

    @property
    def node(self) -> str:
        """Name that Slurm has for this node, which may not be its host name; empty without Slurm."""
        return self._text("SLURMD_NODENAME")

    @property
    def scratch(self) -> Path | None:
        """Directory for temporary files of the job; None where nobody names one."""
        return next((Path(text) for text in map(self._text, _SCRATCH) if text), None)

    # -- the step --

    @property
    def step(self) -> str:
        """Number of this step of srun; empty in a batch script and without Slurm."""
        return self._text("SLURM_STEP_ID")

    @property
    def task(self) -> int | None:
        """Number of this task in its step, which is the rank only under srun; None outside of a step."""
        return None if self.tasks is None else self._number("SLURM_PROCID")

    @property
    def tasks(self) -> int | None:
        """Number of tasks of the step; None outside of one."""
        return self._number("SLURM_STEP_NUM_TASKS")

    @property
    def cpus_per_task(self) -> int | None:
        """Processors for each task, if that was asked for."""
        return self._number("SLURM_CPUS_PER_TASK")

    @property
    def plugin(self) -> str:
        """The plugin of srun's `--mpi=` for this step, "none" where it has none; empty outside of a step."""
        return "" if self.tasks is None else self._text("SLURM_MPI_TYPE") or "none"

    # -- the rank --

    @property
    def launcher(self) -> str:
        """The variable by which this process knows that it was started as a rank or a task; empty if it was not."""
        if self._launcher is not None:
            return self._launcher.rank
        return "" if self.tasks is None else "SLURM_STEP_NUM_TASKS"

    @property
    def rank(self) -> int | None:
        """Rank in MPI_COMM_WORLD, as the launcher of MPI says; None where none does."""
        return None if self._launcher is None else self._number(self._launcher.rank)

    @property
    def size(self) -> int | None:
        """How many ranks were asked for: 1 where this process runs alone, None where nobody says it."""
        if self._launcher is None:
            return self.tasks or 1
        if self._launcher.size is not None:
            return self._number(self._launcher.size)
        return self.tasks if self.rank == self.task else None

    @property
    def local_rank(self) -> int | None:
        """Number of this rank among those of its node; None where nobody says it."""
        said = None if self._launcher is None else self._number(self._launcher.local_rank)
        return self._number("SLURM_LOCALID") if said is None and self.under_srun else said

    @property
    def under_srun(self) -> bool:
        """Whether the tasks of the step are the ranks: srun has started them, and no mpiexec in between."""
        return self.tasks is not None and self.size == self.tasks and self.rank in (None, self.task)

    @property
    def alone(self) -> bool:
        """Whether this is the only rank, so that no MPI is needed."""
        return self.size == 1

    @property
    def speaks(self) -> bool:
        """Whether this process may speak for all that were started with it, as far as can be told without MPI."""
        return not (self.rank if self.rank is not None else self.task)

    @cached_property
    def _launcher(self) -> _Launcher | None:
        for launcher in _LAUNCHERS:
            sized = launcher.size is None or self._number(launcher.size) is not None
            if sized and self._number(launcher.rank) is not None:
                return launcher
        return None

    def _text(self, variable: str | None) -> str:
        return "" if variable is None else self._variables.get(variable, "")

    def _number(self, variable: str | None) -> int | None:
        text = self._text(variable)
        return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else None


_FACTS = (
    *("scheduler", "job", "array_job", "array_task", "restarts", "nodes", "node_count", "node", "scratch"),
    *("step", "task", "tasks", "cpus_per_task", "plugin", "launcher", "rank", "size", "local_rank"),
)
