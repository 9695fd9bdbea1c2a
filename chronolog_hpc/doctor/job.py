"""The job: the MPI library, whether the ranks see each other, and what srun needs to start them."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING

from chronolog_hpc.doctor.finding import Finding, Unfit, error, ok, told, warning
from chronolog_hpc.doctor.library import Library, find
from chronolog_hpc.mpi import LonelyRankError, MpiMissingError, require_company

if TYPE_CHECKING:
    from mpi4py import MPI

    from chronolog_hpc.slurm import JobEnvironment

_SRUN_S = 20.0


def findings(environment: JobEnvironment, comm: MPI.Comm | None) -> list[Finding]:
    """Check the job that this process belongs to.

    Args:
        environment: what is said of the job.
        comm: all ranks that MPI sees; None without MPI.
    """
    library = None
    try:
        library = find(environment)
        finding = _described(library)
    except MpiMissingError as problem:
        finding = told("MPI library", problem, "warning" if environment.alone else "error")
    except Unfit as problem:
        finding = error(
            "MPI library", str(problem), "see what it needs: limits below, /dev/shm, its own documentation"
        )
    return [finding, ranks(environment, comm), slurm(environment, library)]


def _described(library: Library) -> Finding:
    """Tell which MPI library there is, and through which ABI it is spoken to."""
    abi = f"its ABI {library.abi}" if library.abi else "the ABI that it was compiled for"
    where = f": {library.file}" if library.file else ""
    return ok("MPI library", f"{library.name}, through mpi4py {library.mpi4py} and {abi}{where}")


def ranks(environment: JobEnvironment, comm: MPI.Comm | None) -> Finding:
    """Compare the ranks that MPI sees with those that were asked for."""
    if comm is None:
        if environment.alone:
            return ok("ranks", "this process is alone, as it was started")
        return error(
            "ranks",
            f"{environment.launcher} says that several ranks were started, and there is no MPI to connect them",
            "see MPI library",
        )
    try:
        require_company()
    except LonelyRankError as problem:
        return error("ranks", problem.found, problem.fix)
    if environment.size is None:
        return ok("ranks", f"MPI sees {comm.size}; the launcher does not say how many it has started")
    if environment.size != comm.size:
        return error(
            "ranks",
            f"the launcher has started {environment.size} and MPI sees {comm.size}",
            "start them with the launcher that belongs to this MPI library",
        )
    return ok("ranks", f"MPI sees {comm.size}, as were asked for")


def slurm(environment: JobEnvironment, library: Library | None) -> Finding:
    """Tell with which plugin srun starts programs of this MPI library, and whether it has it."""
    srun = shutil.which("srun")
    if srun is None:
        if environment.scheduler == "slurm":
            return warning("Slurm", f"job {environment.job}, and no srun in PATH", "start ranks with mpiexec")
        return ok("Slurm", "not here")
    try:
        listed = subprocess.run(  # noqa: S603  of this node's Slurm
            [srun, "--mpi=list"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SRUN_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        return warning("Slurm", f"{srun} cannot be asked ({problem})", "start ranks with mpiexec")
    said = f"{listed.stdout}\n{listed.stderr}".strip() or "nothing"
    if listed.returncode:
        return warning(
            "Slurm", f"{srun} --mpi=list failed and says {said.splitlines()[-1]}", "start ranks with mpiexec"
        )
    plugins = sorted(set(re.findall(r"^(?:srun:)?\s+(\w+)$", said, re.MULTILINE)))
    here = f"job {environment.job}, " if environment.scheduler == "slurm" else ""
    found = f"{here}srun has --mpi={'|'.join(plugins)}"
    if library is None:
        return ok("Slurm", found)
    if library.plugin not in plugins:
        return warning(
            "Slurm", f"{found}, and {library.name} needs {library.plugin}", "start ranks with mpiexec"
        )
    return ok("Slurm", f"{found}; start ranks with srun --mpi={library.plugin}")
