"""Run a program under strace, which makes its system calls fail, or kills it at one of them."""

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping

from tests.support import processes
from tests.support.launch import python_argv
from tests.support.requirements import require


@functools.cache
def strace_problem() -> str | None:
    """Return why no system call can be tampered with here, or None if it can."""
    strace = shutil.which("strace")
    if strace is None:
        return "strace is not installed (apt install strace)"
    done = processes.run([*_command("getppid:error=EIO"), "true"], timeout=30)
    if done.returncode:
        return f"strace cannot trace here: {(done.stderr or 'no reason given').strip()[-200:]}"
    return None


def _command(*injections: str) -> list[str]:
    calls = ",".join(injection.partition(":")[0] for injection in injections)
    inject = [part for injection in injections for part in ("-e", f"inject={injection}")]
    return ["strace", "-f", "-qq", "-o", os.devnull, "-e", f"trace={calls}", *inject]


def run_injected(
    injections: str | list[str], *args: object, timeout: float = 60, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a Python program whose system calls are tampered with, and skip the test where that cannot be.

    Args:
        injections: of strace(1), for instance `"pwritev:error=EIO:when=3"` or `"pwritev:signal=SIGKILL:when=3"`.
        args: `"script.py", ...` or `"-m", "module", ...` or `"-c", "code", ...`, then its arguments.
        timeout: limit in seconds.
        env: variables to add to the environment.

    Returns:
        The exit status (negative: a signal), stdout and stderr of the program.
    """
    require("strace", strace_problem())
    chosen = [injections] if isinstance(injections, str) else injections
    argv = [*_command(*chosen), sys.executable, *python_argv(*args)]
    return processes.run(argv, timeout=timeout, env=env)
