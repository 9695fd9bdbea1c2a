"""Run a program in a private mount namespace, where it has a small file system that it may fill.

Root gets a mount namespace; anyone else, and root in a container without CAP_SYS_ADMIN, gets a user namespace
with it. Mounts made there are invisible outside and vanish with the last process.
"""

import functools
import mmap
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping

import pytest

from tests.support import processes
from tests.support.launch import python_argv
from tests.support.requirements import require

_MOUNT = 'mount -t tmpfs -o "$1" tmpfs "$2" && shift 2 && exec "$@"'


@functools.cache
def namespace_command() -> tuple[str, ...]:
    """Return the `unshare ...` command here under which a tmpfs can be mounted, or () if there is none."""
    if not (shutil.which("unshare") and shutil.which("mount")):
        return ()
    as_user = ("unshare", "--user", "--map-root-user", "--mount")
    as_root = ("unshare", "--mount")
    with tempfile.TemporaryDirectory() as directory:
        for command in (as_root, as_user) if os.geteuid() == 0 else (as_user,):
            argv = [*command, "sh", "-c", _MOUNT, "sh", "size=64k", directory, "true"]
            if processes.run(argv, timeout=30).returncode == 0:
                return command
    return ()


def namespaces_problem() -> str | None:
    """Return why nothing can be mounted in a namespace here, or None if it can."""
    if namespace_command():
        return None
    return (
        "mount namespaces cannot be used: they need Linux, util-linux, and either root with CAP_SYS_ADMIN "
        "or user namespaces (sysctl kernel.unprivileged_userns_clone=1, user.max_user_namespaces)"
    )


def run_in_tmpfs(
    directory: str | os.PathLike[str],
    size_bytes: int,
    *args: object,
    inodes: int | None = None,
    timeout: float = 60,
    env: Mapping[str, str] | None = None,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run a Python program that sees an empty tmpfs at `directory`, and skip the test where that cannot be.

    The program may mount as well, for example `mount -o remount,size=2m tmpfs DIRECTORY` once it has met a
    full one. (Without the word `tmpfs`, mount repeats the old options, whose owner a user namespace does not
    know.) What the program leaves there is gone afterwards, so it has to check its files itself.

    Args:
        directory: An existing directory.
        size_bytes: Capacity, at least one page; the kernel rounds up to whole pages.
        args: `"script.py", ...` or `"-m", "module", ...` or `"-c", "code", ...`, then its arguments.
        inodes: How many files and directories fit, the root directory included; by default plenty.
        timeout: Limit in seconds, after which the program is killed and the test fails.
        env: Variables to add to the environment.
        check: Fail the test if the exit status is not 0.

    Returns:
        The exit status (negative: a signal), stdout and stderr.
    """
    if size_bytes < mmap.PAGESIZE or (inodes is not None and inodes < 1):
        raise ValueError(f"size_bytes={size_bytes}, inodes={inodes}: tmpfs takes 0 for no limit at all")
    if not pathlib.Path(directory).is_dir():
        raise NotADirectoryError(f"{directory} is no directory to mount on; make it first")
    require("namespaces", namespaces_problem())
    options = f"size={size_bytes}" + ("" if inodes is None else f",nr_inodes={inodes}")
    argv = [*namespace_command(), "sh", "-c", _MOUNT, "sh", options, os.fspath(directory)]
    try:
        done = processes.run([*argv, sys.executable, *python_argv(*args)], timeout=timeout, env=env)
    except processes.RunTimeoutError as error:
        pytest.fail(str(error))
    if check and done.returncode:
        pytest.fail(processes.describe(done))
    return done
