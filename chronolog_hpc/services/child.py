"""A service as a child process: started, watched, and started again at the same address when it dies.

Its standard output says once where it listens; its standard error is its log, a file that it writes and bounds itself, so
a parent that is stopped or slow never holds it up. The parent reads the file after it, and passes on what is a problem.
"""

from __future__ import annotations

import logging
import math
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import chronolog_hpc
from chronolog_hpc.clientlib import StoreError
from chronolog_hpc.services import logfile
from chronolog_hpc.services.rundir import Process, RunDirectory
from py_chronolog_client.engine.connection import Address

READY_S = 60.0
"""A service that does not listen by then is killed and started again."""
STEADY_S = 60.0
"""One that has lived so long is started again at once; others after a pause that doubles."""
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 30.0

_READ_BYTES = 2**16
_LEVELS = {"off": "CRITICAL"}
_LOG_LINE = re.compile(r"\S+ \S+ [a-z]+ (?P<level>[A-Z]+) ")
_LISTENING = re.compile(rb"\w+ listening on \S+:(?P<port>\d+)\n")

logger = logging.getLogger("chronolog_hpc.deployment")


class Role(NamedTuple):
    """What a service is to be."""

    name: str
    address: Address
    """Where it listens, at first perhaps with port 0."""
    option: str
    """What chooses its port."""
    store: Path
    """Directory of its store."""
    log: Path
    level: str
    log_bytes: int
    """Beyond that another log is begun; 0 for never."""
    logs_kept: int


class Child:
    """A service that runs as long as its parent wants.

    Attributes:
        role: what it is.
        address: where it listens; its port is 0 until it has listened for the first time.
        is_ready: whether it listens.
        failure: why it has ended last, in a sentence; "" if it never has.
    """

    def __init__(self, role: Role, run: RunDirectory) -> None:
        self.role = role
        self.address = role.address
        self.is_ready = False
        self.failure = ""
        self._run = run
        self._visor: Address | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._published: Process | None = None
        self._log = _LogReader(role.log)
        self._said = b""
        self._started_s = 0.0
        self._due_s = math.inf
        self._pause_s = 0.0

    @property
    def pid(self) -> int | None:
        """Number of the process, if there is one."""
        return None if self._process is None else self._process.pid

    @property
    def ready_descriptor(self) -> int | None:
        """What can be read from as soon as the process says that it listens."""
        if self._process is None or self.is_ready:
            return None
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def start(self, visor: Address | None) -> None:
        """Start the process.

        Args:
            visor: where the visor listens; None for the visor itself.

        Raises:
            StoreError: its log cannot be written.
            OSError: there can be no process.
        """
        self._visor = visor
        self._said = b""
        self._started_s = time.monotonic()
        try:
            log = os.open(self.role.log, logfile.OPEN_FLAGS, logfile.MODE)
        except OSError as error:
            raise StoreError(
                self.role.log, f"the {self.role.name} cannot log there: {error.strerror}"
            ) from error
        try:
            self._process = subprocess.Popen(  # noqa: S603  this Python, and what `plan` says
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=self._run.deployment,
                env=_environment(),
                start_new_session=True,  # Ctrl-C is for the parent, which ends its children in order
            )
        finally:
            os.close(log)
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)

    def look(self) -> None:
        """Take note of what has happened to the process, and start it again when that is due."""
        self._log.tell(self.role.name)
        now_s = time.monotonic()
        if self._process is None:
            if now_s >= self._due_s:
                try:
                    self.start(self._visor)
                except OSError as error:
                    self._fail(f"cannot be started: {error}")
            return
        if not self.is_ready:
            self._hear()
        code = self._process.poll()
        if code is not None:
            self._reap()
            self._log.tell(self.role.name)
            self._fail(f"(pid {self._process.pid}) {self._how(code)}")
            self._process = None
        elif not self.is_ready and now_s - self._started_s > READY_S:
            logger.warning("the %s does not listen after %g s, and is killed", self.role.name, READY_S)
            self.signal(signal.SIGKILL)

    def signal(self, number: int) -> None:
        """Send the process a signal, if there is one."""
        if self._process is not None:
            self._process.send_signal(number)

    def has_ended(self) -> bool:
        """Tell whether there is no process; for one that was told to end, in the place of `look`."""
        if self._process is None:
            return True
        if self._process.poll() is None:
            return False
        self._reap()
        self._log.tell(self.role.name)
        self._process = None
        return True

    def forget(self) -> None:
        """Remove the file in the run directory."""
        if self._published is not None:
            self._run.remove(self._published)
            self._published = None

    def _command(self) -> list[str]:
        host, port = self.address
        options = {
            "--directory": self.role.store,
            "--host": host,
            "--port": port,
            "--tokens": self._run.tokens,
            "--log": self.role.log,
            "--log-bytes": self.role.log_bytes,
            "--logs-kept": self.role.logs_kept,
            "--log-level": _LEVELS.get(self.role.level, self.role.level.upper()),
            "--parent": os.getpid(),
        }
        if self._visor is not None:
            options["--visor"] = self._visor
        if self._run.has_tls:
            options["--tls"] = self._run.tls
        words = [str(word) for option in options.items() for word in option]
        return [sys.executable, "-m", "chronolog_hpc.services", self.role.name, *words]

    def _hear(self) -> None:
        """Read where the process listens, if it has said so."""
        assert self._process is not None
        assert self._process.stdout is not None
        with suppress(BlockingIOError):
            self._said += os.read(self._process.stdout.fileno(), _READ_BYTES)
        match = _LISTENING.search(self._said)
        if match is None:
            return
        self.address = self.address._replace(port=int(match["port"]))
        self.is_ready = True
        again = self._published is not None
        self._publish(Process.running(self.role.name, self._process.pid, self.address))
        if again:
            logger.info("the %s listens at %s again (pid %d)", self.role.name, self.address, self.pid)

    def _publish(self, process: Process) -> None:
        self.forget()
        self._published = process
        try:
            self._run.publish(process)
        except OSError as error:  # a full disk; the service is needed all the more
            logger.warning("%s is not shown by 'chronolog status': %s", process, error)

    def _reap(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        self._process.stdout.close()
        self.is_ready = False

    def _how(self, code: int) -> str:
        if code >= 0:
            words = (
                f"; its log {self.role.log} ends with: {self._log.last_line}" if self._log.last_line else ""
            )
            return f"has ended with exit code {code}{words}"
        return f"was ended by {signal.Signals(-code).name if -code < signal.SIGRTMIN else f'signal {-code}'}"

    def _fail(self, how: str) -> None:
        lived_s = time.monotonic() - self._started_s
        longer_s = min(max(2 * self._pause_s, SHORTEST_PAUSE_S), LONGEST_PAUSE_S)
        self._pause_s = SHORTEST_PAUSE_S if lived_s >= STEADY_S else longer_s
        self._due_s = time.monotonic() + self._pause_s
        self.failure = f"the {self.role.name} {how}"
        if self._published is not None:
            logger.warning("%s; it is started again in %g s", self.failure, self._pause_s)


class _LogReader:
    """Reads what a process adds to its log, and passes on what is a problem.

    Attributes:
        last_line: what was added last.
    """

    def __init__(self, path: Path) -> None:
        self.last_line = ""
        self._path = path
        self._part = b""
        self._descriptor: int | None = None
        self._follow()
        self._offset = path.stat().st_size if path.exists() else 0

    def tell(self, name: str) -> None:
        """Pass on the problems since the last time; of very much only the end."""
        self._read(name)
        if self._follow():
            self._read(name)

    def _follow(self) -> bool:
        """Go on in the file that has the name now, if that is another one: tell whether it is."""
        with suppress(OSError):  # there may be none for a moment
            there = os.stat(self._path)
            if self._descriptor is None or not os.path.samestat(there, os.fstat(self._descriptor)):
                descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
                if self._descriptor is not None:
                    os.close(self._descriptor)
                self._descriptor, self._offset = descriptor, 0
                return True
        return False

    def _read(self, name: str) -> None:
        if self._descriptor is None:
            return
        size = os.fstat(self._descriptor).st_size
        begin = max(
            self._offset if self._offset <= size else 0, size - _READ_BYTES
        )  # it may have been made shorter
        data = os.pread(self._descriptor, _READ_BYTES, begin)
        self._offset = begin + len(data)
        *lines, self._part = (self._part + data).split(b"\n")
        for line in lines:
            text = line.decode("utf-8", "replace")
            self.last_line = text
            match = _LOG_LINE.match(text)
            if match is None or match["level"] not in {"DEBUG", "INFO"}:
                logger.warning("%s: %s", name, text if match is None else text[match.start("level") :])


def _environment() -> dict[str, str]:
    """Return the environment of a service: this package is found there even where it is not installed."""
    root = str(Path(chronolog_hpc.__file__).parent.parent)
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path}
