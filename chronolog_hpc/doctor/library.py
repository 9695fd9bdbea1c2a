"""The MPI library: which one it is, and whether it starts at all.

A library that cannot be initialised ends its process. A doctor that runs alone therefore lets a child do it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from chronolog_hpc.doctor.finding import Unfit
from chronolog_hpc.mpi import MpiMissingError, library_name, load_mpi, srun_plugin

if TYPE_CHECKING:
    from chronolog_hpc.slurm import JobEnvironment

_CHILD_S = 60.0
_OF_LAUNCHERS = ("PMI_", "PMIX_", "OMPI_COMM_", "MV2_COMM_", "PALS_")


class Library(NamedTuple):
    """The MPI library that programs use here."""

    name: str
    abi: str
    """What mpi4py was compiled for; empty if for this very library."""
    file: str
    """Where it is; empty where that cannot be told."""
    mpi4py: str
    """Version."""
    plugin: str
    """The plugin of srun that it understands."""


def find(environment: JobEnvironment) -> Library:
    """Initialise MPI, in a child where this process is alone, and return which library it is.

    Raises:
        MpiMissingError: there is none.
        Unfit: it does not start.
    """
    return _of_a_child() if environment.alone else _of_this_process()


def _of_this_process() -> Library:
    mpi = load_mpi()
    import mpi4py

    words = Path(mpi.__file__).name.split(".")
    abi = words[1] if words[1] in ("mpich", "openmpi", "mpiabi") else ""
    return Library(library_name(), abi, _loaded(), mpi4py.__version__, srun_plugin())


def _of_a_child() -> Library:
    program = f"import sys; sys.path[:] = {sys.path!r}; from chronolog_hpc.doctor.library import tell; tell()"
    env = {name: value for name, value in os.environ.items() if not name.startswith(_OF_LAUNCHERS)}
    try:
        done = subprocess.run(  # noqa: S603  this very program
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_CHILD_S,
            env=env,
            check=False,
        )
    except subprocess.TimeoutExpired as problem:
        raise Unfit(f"it has not started within {_CHILD_S:.0f} s") from problem
    said = [line.strip() for line in (*done.stdout.splitlines(), *done.stderr.splitlines()) if line.strip()]
    try:
        told = json.loads(done.stdout.splitlines()[-1])  # some libraries warn on standard output
    except (IndexError, ValueError):
        raise Unfit(f"it does not start, exit code {done.returncode}, and says {said[-1:]}") from None
    if "missing" in told:
        raise MpiMissingError(told["missing"])
    return Library(**told)


def tell() -> None:
    """Print which library it is, as JSON, in the last line: what the child does."""
    try:
        told = _of_this_process()._asdict()
    except MpiMissingError as problem:
        told = {"missing": str(problem)}
    sys.stdout.write(f"{json.dumps(told)}\n")


def _loaded() -> str:
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return ""
    match = re.search(r"(/\S*/libmpi(?:ch|_abi)?\.so\S*)", maps)
    return "" if match is None else match[1]
