"""Start a program for a test and never leave any of it behind.

A time-out has to end the whole tree. The process group is not enough for that: MPICH's Hydra starts its proxy
and every rank in a session of its own, and a rank that ignores SIGTERM outlives a killed mpiexec. Therefore
each run carries a token in its environment, which all descendants inherit, and the kill looks for the token
in /proc; nothing that this run has not started can carry it.
"""

import contextlib
import os
import pathlib
import secrets
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence

ROOT = pathlib.Path(__file__).resolve().parents[2]

TOKEN_NAME = "CHRONOLOG_TEST_RUN"
TERM_GRACE_S = 3.0
KILL_GRACE_S = 10.0

# Set by an enclosing MPI launcher, Slurm step or pytest, they would make a child join that one instead of ours.
FOREIGN_JOB = ("PMI_", "PMIX_", "OMPI_COMM", "SLURM_", "PYTEST_")

# One thread per rank, and an Open MPI that runs as root on fewer cores than ranks, without noise.
DEFAULTS = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_osc": "^ucx",
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}


class RunTimeoutError(Exception):
    """A program was still running at its time limit, and has been killed with all its descendants."""

    def __init__(self, argv: Sequence[str], timeout_s: float, stdout: str, stderr: str) -> None:
        """Keep what the program had written until then."""
        super().__init__(f"still running after {timeout_s:g} s: {' '.join(argv)}\n{tail(stdout, stderr)}")
        self.stdout = stdout
        self.stderr = stderr


def describe(done: subprocess.CompletedProcess[str]) -> str:
    """Return the exit status and the ends of both outputs, for a failure message."""
    return f"exit status {done.returncode}\n{tail(done.stdout, done.stderr)}"


def tail(stdout: str, stderr: str, limit: int = 8000) -> str:
    """Return the ends of both outputs under a heading each, for a failure message."""
    return "\n".join(
        f"-- {name}\n{text[-limit:]}" for name, text in (("stdout", stdout), ("stderr", stderr)) if text
    )


def child_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment without a foreign MPI job or test run, with this checkout importable.

    Output is buffered by lines or more, whatever PYTHONUNBUFFERED says here: ranks share one pipe, and
    unbuffered, the words of their lines mix.

    Args:
        extra: Variables that are added last.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN_JOB)}
    env.pop("PYTHONUNBUFFERED", None)
    env.update(DEFAULTS)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), env.get("PYTHONPATH"))))
    env.update(extra or {})
    return env


def run(
    argv: Sequence[str],
    *,
    timeout: float,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end in a session of its own, with no standard input.

    Args:
        argv: The program and its arguments.
        timeout: Limit in seconds.
        env: Variables to add to `child_environment()`.
        cwd: Working directory, by default the current one.

    Returns:
        The exit status, stdout and stderr as text.

    Raises:
        RunTimeoutError: The limit has passed. The program got SIGTERM, and what was left of it SIGKILL.
    """
    token = secrets.token_hex(16)
    process = subprocess.Popen(
        list(argv),
        env={**child_environment(env), TOKEN_NAME: token},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    timed_out = False
    try:
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            timed_out = True
            process.terminate()  # a launcher passes this on to its ranks and cleans up behind them
            try:
                stdout, stderr = process.communicate(timeout=TERM_GRACE_S)
            except subprocess.TimeoutExpired:
                _kill_tree(process, token)
                stdout, stderr = process.communicate()
    except BaseException:  # Ctrl-C, or the time limit of the whole test
        _kill_tree(process, token)
        process.communicate()
        raise
    if timed_out:
        _kill_tree(process, token)  # what the program itself has left behind
        raise RunTimeoutError(argv, timeout, stdout, stderr)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def _kill_tree(process: subprocess.Popen[str], token: str) -> None:
    """SIGKILL the process group and whatever carries the token, until all is gone."""
    if process.returncode is None:  # not yet reaped, so that the number is still its own
        os.killpg(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + KILL_GRACE_S
    while (left := bearers(token)) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def bearers(token: str) -> list[int]:
    """Return the pids of the living processes with this token in their environment; none without a /proc."""
    mark = f"{TOKEN_NAME}={token}".encode()
    pids = []
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes()  # empty for a zombie
        except OSError:
            continue  # gone meanwhile, or another user's
        if mark in environment.split(b"\0"):
            pids.append(int(entry.name))
    return pids
