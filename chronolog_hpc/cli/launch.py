"""Whether a launcher has started this process as one of several ranks, told from the environment alone.

MPI is imported only when there is a launcher: a command that runs alone needs none. And before MPI is
there, the environment knows already which rank may speak.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

_LAUNCHERS = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),  # Open MPI's mpirun
    ("PMI_RANK", "PMI_SIZE"),  # MPICH's mpiexec (Hydra), srun --mpi=pmi2, Cray
    ("PMIX_RANK", None),  # srun --mpi=pmix, PRRTE
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),  # MVAPICH's mpirun_rsh
    ("PALS_RANKID", None),  # HPE's aprun and mpiexec
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),  # srun; a batch script has no number of tasks of a step
)


class Launch(NamedTuple):
    """What a launcher says of this process."""

    rank: int
    """0 where it runs alone."""
    size: int | None
    """Number of ranks; 1 where it runs alone; None where the launcher does not say."""
    variable: str | None
    """Environment variable that told; None where it runs alone."""

    @property
    def alone(self) -> bool:
        """Whether this is the only rank, so that no MPI is needed."""
        return self.size == 1


def detect(environment: Mapping[str, str] | None = None) -> Launch:
    """Return what the environment (None: this process's) says of the launcher."""
    env = os.environ if environment is None else environment
    for rank_variable, size_variable in _LAUNCHERS:
        rank = env.get(rank_variable, "")
        size = None if size_variable is None else env.get(size_variable, "")
        if rank.isdecimal() and (size is None or size.isdecimal()):
            return Launch(int(rank), None if size is None else int(size), rank_variable)
    return Launch(0, 1, None)
