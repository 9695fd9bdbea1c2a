"""The run directory of a deployment: the tokens, and a file for each process, by which everybody finds it.

    DIR/run/                        mode 0700: who is in it is in the deployment
        tokens                      made on first use, with the names `service` and the user's
        tls.pem certificate.pem     where there is TLS: a certificate with its key, and without
        visor.json grapher.json player.json      who runs, where it listens
        keeper-NODE-PID.json
        up-NODE-PID.json            a `chronolog up`, and which roles it looks after

A file appears whole, and is removed when its process has ended. What a killed process has left behind is told from
the truth by `store.owner`: on the same machine by asking the kernel, elsewhere by whether somebody still touches it.
There is no lock: who begins publishes what it wants to run first and looks for others then, so of two that begin at
the same time at least one sees the other.
"""

from __future__ import annotations

import getpass
import json
import os
import stat
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from chronolog_hpc.clientlib import ChronoLogError, DamageError, InvalidArgumentError, NotAuthorizedError
from py_chronolog_client.engine.connection import Address
from py_chronolog_client.store import files, owner
from py_chronolog_client.tokens import new_secret, read_tokens, write_tokens
from py_chronolog_client.trust import read_certificates
from py_chronolog_client.wire.handshake import SERVICE_NAME, Identity

UP = "up"
"""What a process is that starts others and looks after them."""
VISOR, GRAPHER, KEEPER, PLAYER = "visor", "grapher", "keeper", "player"
"""The roles: every node may have one keeper, and the whole deployment one of each other."""
RUN_DIRECTORY = "run"

_FILE_BYTES = 2**16
_LEAVING_S = 5.0
_PAUSE_S = 0.02


@dataclass(frozen=True)
class Process:
    """One process of a deployment, as its file says it."""

    role: str
    node: str
    host: str
    """Where it listens; "" for one that does not."""
    port: int
    pid: int
    pid_start: int
    pid_namespace: str
    boot_id: str
    started_ns: int
    version: str
    runs: tuple[str, ...] = ()
    """The roles that an `up` looks after."""

    @classmethod
    def running(
        cls, role: str, pid: int, address: Address | None = None, runs: Iterable[str] = ()
    ) -> Process:
        """Describe a process of this machine."""
        from chronolog_hpc import __version__

        own = owner.describe_process()
        host, port = address or ("", 0)
        return cls(
            role,
            str(own["host"]),
            host,
            port,
            pid,
            owner.started_ticks(pid),
            str(own["pid_namespace"]),
            str(own["boot_id"]),
            time.time_ns(),
            __version__,
            tuple(runs),
        )

    def __str__(self) -> str:
        return f"{self.role} (pid {self.pid} on {self.node})"

    @property
    def is_here(self) -> bool:
        """Whether this process could send it a signal: same machine, same names of processes."""
        own = owner.describe_process()
        return (self.boot_id, self.pid_namespace) == (own["boot_id"], own["pid_namespace"])

    def is_in_the_way_of(self, roles: Iterable[str]) -> bool:
        """Tell whether this machine cannot run some roles of a deployment as long as this one lives."""
        here = self.node == owner.describe_process()["host"]
        own = set(self.runs or (self.role,))
        return any(role in own and (here or role != KEEPER) for role in roles)


class RunDirectory:
    """The run directory of a deployment.

    Attributes:
        deployment: the deployment's directory.
        path: of the run directory.
        tokens: path of the token file.
        tls: path of the certificate with its key.
        certificate: path of the certificate alone.
    """

    def __init__(self, deployment: str | os.PathLike[str], *, create: bool = False) -> None:
        """Find the run directory of a deployment.

        Args:
            deployment: the deployment's directory.
            create: make what is missing, but not the directory above.

        Raises:
            InvalidArgumentError: there is none, and none can be made.
            NotAuthorizedError: others than its owner could use it, or this user could not.
        """
        self.deployment = Path(os.path.realpath(os.path.expanduser(deployment)))
        self.path = self.deployment / RUN_DIRECTORY
        self.tokens = self.path / "tokens"
        self.tls = self.path / "tls.pem"
        self.certificate = self.path / "certificate.pem"
        for directory in (self.deployment, self.path):
            if create:
                _make(directory)
            _require_own(directory, private=directory is self.path)

    def provide_tokens(self) -> dict[str, bytes]:
        """Return name -> secret, made if this is the first time.

        Raises:
            NotAuthorizedError: others could have read or written the file.
            InvalidArgumentError: it has no name for services.
        """
        if not os.path.lexists(self.tokens):
            making = files.temporary_beside(self.tokens)
            write_tokens(making, {SERVICE_NAME: new_secret(), getpass.getuser(): new_secret()})
            try:
                with suppress(FileExistsError):
                    files.appear(making, self.tokens)
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(making)
        tokens = read_tokens(self.tokens)
        if SERVICE_NAME not in tokens:
            raise InvalidArgumentError(
                f"{self.tokens}: there is no line {SERVICE_NAME}:SECRET, by which services know each other: add one, or "
                "remove the file, and a new one is made"
            )
        return tokens

    @property
    def has_tls(self) -> bool:
        """Whether the services of the deployment speak TLS."""
        return os.path.lexists(self.tls)

    def trusted(self) -> str:
        """Return the certificate that every service of the deployment has, in PEM; "" where there is no TLS.

        Raises:
            NotAuthorizedError: it cannot be read.
            InvalidArgumentError: it is none.
        """
        return read_certificates(self.certificate) if self.has_tls else ""

    def service_identity(self) -> Identity:
        """Return who the services are to each other.

        Raises:
            ChronoLogError: token file or certificate cannot be used.
        """
        return Identity(SERVICE_NAME, self.provide_tokens()[SERVICE_NAME], self.trusted())

    def publish(self, process: Process) -> None:
        """Let everybody know of a process of this machine; its file is touched as long as this process lives."""
        path = self._file_of(process)
        making = files.temporary_beside(path)
        files.write_file(making, json.dumps(asdict(process), indent=1).encode() + b"\n", 0o600)
        os.replace(making, path)
        owner.heartbeat.watch(path)

    def remove(self, process: Process) -> None:
        """Remove the file of a process, unless it is another's by now."""
        path = self._file_of(process)
        owner.heartbeat.unwatch(path)
        with suppress(FileNotFoundError):
            if _read(path) == process:
                os.unlink(path)

    def processes(self) -> list[Process]:
        """Return who has a file, those that look after others first.

        Raises:
            DamageError: a file that is none.
        """
        found = []
        for path in sorted(self.path.glob("*.json")):
            with suppress(FileNotFoundError):
                found.append(_read(path))
        return sorted(found, key=lambda process: process.role != UP)

    def find(self, role: str) -> Process | None:
        """Return the living process of a role, if there is one."""
        alive = (process for process in self.processes() if process.role == role and self.is_alive(process))
        return next(alive, None)

    def is_alive(self, process: Process) -> bool:
        """Tell whether a process may still be alive."""
        return owner.is_alive({**asdict(process), "host": process.node}, self._file_of(process))

    def sweep(self) -> list[Process]:
        """Remove the files of the dead, and return whose they were."""
        dead = [process for process in self.processes() if not self.is_alive(process)]
        for process in dead:
            self.remove(process)
        return dead

    def claim(self, up: Process) -> None:
        """Publish that a process looks after some roles from now on.

        Raises:
            InvalidArgumentError: somebody else does.
        """
        self.publish(up)
        try:
            others = [other for other in self.processes() if other != up and other.is_in_the_way_of(up.runs)]
            for other in others:
                if other.role == UP and self.is_alive(other):
                    raise self._in_the_way(other)
            # Those whose parent was killed are being killed by the kernel.
            alive = [other for other in others if self.is_alive(other)]
            if not wait_until(lambda: not any(map(self.is_alive, alive)), _LEAVING_S):
                raise self._in_the_way(next(filter(self.is_alive, alive), alive[0]))
            self.sweep()
        except BaseException:
            self.remove(up)
            raise

    def _in_the_way(self, other: Process) -> InvalidArgumentError:
        return InvalidArgumentError(
            f"{self.deployment}: {other} runs here already: 'chronolog status' shows it, 'chronolog down' ends it, and "
            "--directory names another deployment"
        )

    def _file_of(self, process: Process) -> Path:
        name = process.role
        if process.role in (UP, KEEPER):
            name += f"-{process.node}-{process.pid}"
        return self.path / f"{name.replace('/', '_')}.json"


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Wait for a condition; tell whether it came true in time."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(_PAUSE_S)
    return True


def _make(directory: Path) -> None:
    try:
        files.make_directory(directory, 0o700)
    except FileExistsError:
        pass
    except FileNotFoundError as error:
        raise InvalidArgumentError(
            f"{directory}: there is no directory {directory.parent}: make it first"
        ) from error
    except OSError as error:
        raise ChronoLogError(f"{directory}: the directory cannot be made: {error.strerror}") from error


def _require_own(directory: Path, *, private: bool) -> None:
    """Make sure that nobody but its owner can change what is in a directory, nor see it if that is private."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise InvalidArgumentError(
            f"{directory}: there is no deployment: 'chronolog up' starts one, and --directory names another"
        ) from error
    except NotADirectoryError as error:
        raise NotAuthorizedError(
            f"{directory}: this is a symbolic link or a file, and must be a directory: remove it"
        ) from error
    except OSError as error:
        raise NotAuthorizedError(f"{directory}: the directory cannot be opened: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid != os.geteuid():
        raise NotAuthorizedError(
            f"{directory}: the directory belongs to user {status.st_uid}, not to this one"
        )
    if mode & (0o077 if private else 0o022):
        raise NotAuthorizedError(
            f"{directory}: others may {'look into' if private else 'change'} the directory (mode {mode:04o}): chmod "
            f"{'700' if private else 'go-w'}, and use it only if nobody has been there"
        )


def _read(path: Path) -> Process:
    try:
        said: Any = json.loads(files.read_file(path, _FILE_BYTES))
        process = Process(**{**said, "runs": tuple(said["runs"])})
    except (ValueError, TypeError, KeyError) as error:
        raise DamageError(path, 0, "this describes no process: remove it if nothing runs here") from error
    kinds = {"str": str, "int": int, "tuple[str, ...]": tuple}
    if not all(type(getattr(process, item.name)) is kinds[str(item.type)] for item in fields(Process)):
        raise DamageError(path, 0, "this describes no process: remove it if nothing runs here")
    return process
