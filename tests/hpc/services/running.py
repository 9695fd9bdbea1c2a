"""Deployments of a test: `chronolog up` as a process, found and judged by its run directory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from chronolog_hpc.services.rundir import Process, RunDirectory
from tests.store.holding import wait_until
from tests.support import processes

FREE = ("--port", "0", "--query-port", "0")
END_S = 60

Sentences = Callable[[], str]


def chronolog(
    *args: object, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    argv = [sys.executable, "-m", "chronolog_hpc", *map(str, args)]
    return processes.run(argv, timeout=60, env=env, cwd=cwd)


class Up:
    """A `chronolog up` that a test has started.

    Attributes:
        directory: of the deployment.
        process: that looks after the services.
    """

    def __init__(self, directory: Path, *options: object) -> None:
        self.directory = directory
        self._said = directory.with_suffix(".out"), directory.with_suffix(".err")
        argv = [sys.executable, "-m", "chronolog_hpc", "up", "--directory", directory, *options]
        with open(self._said[0], "w") as out, open(self._said[1], "w") as err:
            self.process = subprocess.Popen(
                list(map(str, argv)),
                env=processes.child_environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def out(self) -> str:
        return self._said[0].read_text()

    @property
    def err(self) -> str:
        return self._said[1].read_text()

    @property
    def run(self) -> RunDirectory:
        return RunDirectory(self.directory)

    def ready(self) -> Up:
        """Wait until it says how it is used."""
        wait_until(lambda: "logs are in" in self.out or self.process.poll() is not None)
        assert self.process.poll() is None, self.err
        return self

    def find(self, role: str, *, after: Process | None = None) -> Process:
        """Return the living process of a role, as soon as there is one, and it is another than `after`."""
        found: list[Process] = []

        def look() -> bool:
            process = self.run.find(role)
            found[:] = [process] if process and (after is None or process.pid != after.pid) else []
            return bool(found)

        wait_until(look)
        return found[0]

    def end(self, number: int = signal.SIGTERM) -> int:
        """Let it end; return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(END_S)

    def close(self) -> None:
        """End it if it has not ended."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(END_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait(END_S)


@contextmanager
def up(directory: Path, *options: object) -> Iterator[Up]:
    """A deployment that is ready, for the time of the block."""
    started = Up(directory, *(options or FREE))
    try:
        yield started.ready()
    finally:
        started.close()


def kill(process: Process) -> None:
    """Kill a process that the deployment of this test has started."""
    os.kill(process.pid, signal.SIGKILL)
