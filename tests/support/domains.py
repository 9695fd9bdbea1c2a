"""Several clock domains on one machine: time namespaces, whose CLOCK_MONOTONIC differs, as hosts' do."""

import contextlib
import functools
import os
import shutil
import subprocess
from collections.abc import Iterator

from tests.support import processes
from tests.support.requirements import require

_HOLD = "echo $$; exec cat"


@functools.cache
def _ways() -> tuple[list[str], list[str]] | None:
    """Return how a time namespace is made and entered here, or None if it cannot be."""
    if not (shutil.which("unshare") and shutil.which("nsenter")):
        return None
    as_root = ["unshare", "--time"], ["nsenter", "--time"]
    as_user = (
        ["unshare", "--user", "--map-root-user", "--time"],
        ["nsenter", "--user", "--preserve-credentials", "--time"],
    )
    for make, enter in (as_root, as_user) if os.geteuid() == 0 else (as_user,):
        if processes.run([*make, "--monotonic", "5", "--fork", "true"], timeout=30).returncode == 0:
            return make, enter
    return None


def domains_problem() -> str | None:
    """Return why there can be no time namespaces here, or None if there can."""
    if _ways():
        return None
    return "time namespaces cannot be used: they need Linux 5.6, util-linux 2.38, and root or user namespaces"


@contextlib.contextmanager
def clock_domains(*offsets_s: int) -> Iterator[list[list[str]]]:
    """Yield a command prefix for each domain, under which CLOCK_MONOTONIC is ahead by so many seconds.

    Skips the test where that cannot be.
    """
    require("namespaces", domains_problem())
    ways = _ways()
    assert ways is not None
    make, enter = ways
    with contextlib.ExitStack() as stack:
        prefixes = []
        for offset_s in offsets_s:
            argv = [*make, f"--monotonic={offset_s}", "--fork", "sh", "-c", _HOLD]
            holder = stack.enter_context(
                subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )  # ends when its standard input does, at the end of this block
            assert holder.stdout is not None
            prefixes.append([*enter, "--target", holder.stdout.readline().strip(), "--"])
        yield prefixes
