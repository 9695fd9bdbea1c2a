"""Run a Python program on MPI ranks for a test."""

import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Protocol

import pytest

from tests.support import processes


class Mpi(Protocol):
    """The `mpi` fixture; see `mpi_run` for the arguments."""

    def __call__(
        self,
        n: int,
        *args: object,
        timeout: float = ...,
        env: Mapping[str, str] | None = ...,
        cwd: str | os.PathLike[str] | None = ...,
        check: bool = ...,
        domains: Sequence[Sequence[str]] = ...,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program on `n` ranks."""


def mpiexec() -> list[str]:
    """Return the command that starts ranks: $MPIEXEC, else this Python's neighbour, else PATH's, else []."""
    if chosen := os.environ.get("MPIEXEC"):
        return shlex.split(chosen)
    neighbour = pathlib.Path(sys.executable).with_name("mpiexec")
    found = str(neighbour) if neighbour.exists() else shutil.which("mpiexec")
    return [found] if found else []


def mpi_problem() -> str | None:
    """Return why no MPI program can be started here, or None if one can."""
    if find_spec("mpi4py") is None:
        return "mpi4py is not installed: pip install 'chronolog-hpc[mpi]'"
    if not mpiexec():
        return "there is no mpiexec: pip install mpich, or set MPIEXEC"
    return None


def python_argv(*args: object) -> list[str]:
    """Return arguments for Python as strings; code after -c may be indented like the test around it."""
    argv = [str(a) for a in args]
    if len(argv) > 1 and argv[0] == "-c":
        argv[1] = textwrap.dedent(argv[1])
    return argv


def mpi_run(
    n: int,
    *args: object,
    timeout: float = 60,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    check: bool = True,
    domains: Sequence[Sequence[str]] = ((),),
) -> subprocess.CompletedProcess[str]:
    """Run a Python program on `n` ranks, as `python -m mpi4py`, so that a rank that raises ends the job.

    Args:
        n: Number of ranks.
        args: `"script.py", ...` or `"-m", "module", ...` or `"-c", "code", ...`, then its arguments.
        timeout: Limit in seconds, after which all ranks are killed and the test fails.
        env: Variables to add to the environment.
        cwd: Working directory.
        check: Fail the test if the exit status is not 0.
        domains: Command prefixes; under each of them run `n` ranks.

    Returns:
        The exit status of mpiexec, and what the ranks wrote to stdout and to stderr, in no fixed order of
        ranks; a line stays whole if it is written by one call, as `print` does with one flush per line.
    """
    program = [sys.executable, "-m", "mpi4py", *python_argv(*args)]
    parts = [["-n", str(n), *domain, *program] for domain in domains]
    argv = [*mpiexec(), *parts[0], *(word for part in parts[1:] for word in (":", *part))]
    try:
        done = processes.run(argv, timeout=timeout, env=env, cwd=cwd)
    except processes.RunTimeoutError as error:
        pytest.fail(f"{n} ranks {error}")
    if check and done.returncode:
        pytest.fail(f"{n} ranks: {processes.describe(done)}")
    return done
