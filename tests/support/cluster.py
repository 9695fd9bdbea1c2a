"""A make-believe cluster of several hosts on this machine, and Slurm on it; `cluster.sh` says how it is made."""

import contextlib
import functools
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping

from tests.support import processes
from tests.support.requirements import require

_SCRIPT = pathlib.Path(__file__).with_name("cluster.sh")
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


@functools.cache
def cluster_problem() -> str | None:
    """Return why there can be no hosts here, or None if there can."""
    missing = [name for name in ("unshare", "nsenter", "ip") if shutil.which(name, path=_PATH) is None]
    if missing:
        return f"there is no {', '.join(missing)} (apt install util-linux iproute2)"
    if os.geteuid() != 0:
        return "a cluster of namespaces has to be made by root"
    probe = [
        "unshare",
        "--net",
        "--uts",
        "--mount",
        "--ipc",
        "--pid",
        "--fork",
        "--mount-proc",
        "ip",
        "link",
        "add",
    ]
    done = processes.run([*probe, "br0", "type", "bridge"], timeout=30, env={"PATH": _PATH})
    return None if done.returncode == 0 else f"no network namespace with a bridge: {done.stderr.strip()}"


@functools.cache
def slurm_problem() -> str | None:
    """Return why there can be no Slurm here, or None if there can."""
    daemons = ("munged", "slurmctld", "slurmd", "sbatch")
    missing = [name for name in daemons if shutil.which(name, path=_PATH) is None]
    if missing:
        return f"there is no {', '.join(missing)} (apt install slurm-wlm munge)"
    return cluster_problem()


class Cluster:
    """Hosts h1 to hN, which share all directories but /dev/shm."""

    def __init__(self, directory: pathlib.Path, count: int) -> None:
        self.directory = directory
        self.hosts = [f"h{number}" for number in range(1, count + 1)]

    def command(self, host: str, *argv: object) -> list[str]:
        """Return the command that runs a program on a host."""
        return ["bash", str(_SCRIPT), "exec", str(self.directory), host, *map(str, argv)]

    def run(
        self, host: str, *argv: object, env: Mapping[str, str] | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a program on a host to its end."""
        return processes.run(
            self.command(host, *argv), timeout=timeout, env={**self._environment, **(env or {})}
        )

    def start(
        self, host: str, *argv: object, env: Mapping[str, str] | None = None, **options: object
    ) -> subprocess.Popen[str]:
        """Start a program on a host; it dies with the cluster at the latest."""
        return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
            self.command(host, *argv),
            env=processes.child_environment({**self._environment, **(env or {})}),
            stdin=subprocess.DEVNULL,
            text=True,
            **options,
        )

    def cable(self, host: str, state: str) -> None:
        """Pull the cable of a host out ("down"), or put it back ("up")."""
        self._do("link", host, state)

    def start_slurm(self, cpus: int) -> None:
        """Start Slurm with `cpus` on each host."""
        self._do("slurm", len(self.hosts), cpus)

    @property
    def _environment(self) -> dict[str, str]:
        beside = pathlib.Path(sys.executable).parent
        return {"PATH": f"{beside}:{_PATH}", "SLURM_CONF": str(self.directory / "slurm" / "slurm.conf")}

    def _do(self, command: str, *arguments: object) -> None:
        argv = ["bash", str(_SCRIPT), command, str(self.directory), *map(str, arguments)]
        done = processes.run(argv, timeout=60)
        assert done.returncode == 0, processes.describe(done)


@contextlib.contextmanager
def cluster(directory: pathlib.Path, count: int) -> Iterator[Cluster]:
    """A cluster for the time of the block; skips the test where there can be none."""
    require("namespaces", cluster_problem())
    directory.mkdir()
    made = Cluster(directory, count)
    try:
        made._do("up", count)
        yield made
    finally:
        made._do("down")
