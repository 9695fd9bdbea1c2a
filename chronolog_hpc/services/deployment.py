"""The services of a deployment on one machine, as children of one process that looks after them.

    with Deployment(run, roles) as deployment:      # nobody else runs these roles, and their ports are free
        deployment.start(["visor"])
        deployment.start(["grapher", "keeper", "player"])      # listen when this returns
        deployment.watch()                          # until SIGTERM, SIGINT or SIGHUP
    # the player, the keeper, the grapher, the visor have ended, in this order

A child that dies is started again at its address, after a pause that grows as long as it dies soon. A second signal
ends all at once: what is acknowledged is journalled, and nothing more is promised.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from chronolog_hpc.clientlib import ChronoLogError
from chronolog_hpc.services.child import Child, Role
from chronolog_hpc.services.configuration import Configuration, Log
from chronolog_hpc.services.listening import LOOPBACK, require_free, require_safe, resolve
from chronolog_hpc.services.rundir import GRAPHER, KEEPER, PLAYER, UP, VISOR, Process, RunDirectory
from py_chronolog_client.engine.connection import Address
from py_chronolog_client.store import files, owner

if TYPE_CHECKING:
    from chronolog_hpc.services.metrics import Metrics

ROLES = (VISOR, GRAPHER, KEEPER, PLAYER)
"""All roles, in the order in which they are started; they are ended in the other."""
STOP_S = 20.0
"""A child that has not ended so long after it was told to is killed."""

_PORTS = {VISOR: 5555, GRAPHER: 0, KEEPER: 0, PLAYER: 5557}
_TICK_S = 0.5

logger = logging.getLogger("chronolog_hpc.deployment")


class StartError(ChronoLogError):
    """A service did not come to listen."""


def plan(
    run: RunDirectory,
    names: Sequence[str],
    configuration: Configuration,
    *,
    host: str | None = None,
    ports: dict[str, int | None],
    insecure_network: bool = False,
) -> list[Role]:
    """Return what some roles of a deployment are to be on this machine.

    Args:
        run: of the deployment.
        names: of the roles.
        configuration: what the configuration file says.
        host: address, name or network interface, in the place of what the configuration says.
        ports: role -> port, or None for what the configuration says.
        insecure_network: whether addresses that others can reach are accepted without TLS.

    Raises:
        InvalidArgumentError: an address that is none, or must not be used.
    """
    node = str(owner.describe_process()["host"]).replace("/", "_")
    addresses = {
        VISOR: configuration.portal,
        GRAPHER: configuration.draining,
        KEEPER: configuration.recording,
        PLAYER: configuration.query,
    }
    options = {
        VISOR: "--port",
        GRAPHER: "chrono_grapher.KeeperGrapherDrainService in the configuration",
        KEEPER: "chrono_keeper.KeeperRecordingService in the configuration",
        PLAYER: "--query-port",
    }
    roles = []
    for name in names:
        said = addresses[name]
        where = host or (said or configuration.portal or Address(LOOPBACK, 0)).host
        given = ports.get(name)
        port = given if given is not None else said.port if said is not None else _PORTS[name]
        address = resolve(where)
        require_safe(address, is_secured=run.has_tls or insecure_network)
        own = f"{name}-{node}" if name == KEEPER else name
        log = configuration.logs.get(name, Log())
        stores = configuration.story_files.get(name)
        roles.append(
            Role(
                name,
                Address(address, port),
                options[name],
                (stores or run.deployment) / own,
                log_directory(run) / (log.file or f"{own}.log"),
                log.level,
                log.size_bytes,
                log.kept,
            )
        )
    return roles


def log_directory(run: RunDirectory) -> Path:
    """Return where the processes of a deployment log."""
    return run.deployment / "log"


class Deployment:
    """Looks after some services.

    Attributes:
        children: the services, in the order of `ROLES`.
        ended_well: whether all of them have ended when they were told to.
        metrics: what serves their metrics, if somebody wanted that.
    """

    def __init__(self, run: RunDirectory, roles: Sequence[Role], metrics_port: int | None = None) -> None:
        """Plan to look after `roles`, and to serve metrics at a port of loopback, unless that is None."""
        self.children = [Child(role, run) for role in sorted(roles, key=lambda role: ROLES.index(role.name))]
        self.ended_well = True
        self.metrics: Metrics | None = None
        self._run = run
        self._metrics_port = metrics_port
        self._signals = _Signals()

    def __enter__(self) -> Deployment:
        """Take the roles.

        Raises:
            InvalidArgumentError: somebody else has one of them, or a port.
        """
        with suppress(FileExistsError):
            files.make_directory(log_directory(self._run), 0o700)
        runs = [child.role.name for child in self.children]
        with ExitStack() as undo:
            if self.children and self._metrics_port is not None:
                self.metrics = _metrics(self._run, self._metrics_port)
                undo.callback(self.metrics.close)
            address = self.metrics.address if self.metrics else None
            self._up = Process.running(UP, os.getpid(), address, runs)
            if self.children:
                self._run.claim(self._up)
            undo.callback(self._run.remove, self._up)
            for child in self.children:
                require_free(child.address, child.role.option)
            self._signals.__enter__()
            undo.pop_all()
        if self.metrics is not None:
            self.metrics.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.metrics is not None:
                self.metrics.close()
            for child in reversed(self.children):
                self._end(child)
        finally:
            for child in self.children:
                child.signal(signal.SIGKILL)
                child.forget()
            self._run.remove(self._up)
            self._signals.__exit__()

    @property
    def addresses(self) -> dict[str, Address]:
        """Role -> where it listens."""
        return {child.role.name: child.address for child in self.children}

    def start(self, names: Iterable[str], visor: Address | None = None) -> None:
        """Start those of some services that are here, and wait until they listen.

        Args:
            names: of the roles.
            visor: where the visor listens.

        Raises:
            StartError: one does not come to listen.
        """
        children = [child for child in self.children if child.role.name in names]
        for child in children:
            child.start(visor)
        while not all(child.is_ready for child in children):
            self._signals.wait([child.ready_descriptor for child in children], _TICK_S)
            for child in self.children:
                child.look()
                if child.failure:
                    raise StartError(child.failure)
            if self._signals.count:
                raise StartError("stopped before all services were ready")

    def watch(
        self, is_over: Callable[[], bool] = lambda: False, tick_s: float = _TICK_S, signals: int = 1
    ) -> None:
        """Keep the services alive until a signal says that it is over.

        Args:
            is_over: is asked every `tick_s` as well.
            tick_s: longest time between two looks.
            signals: how many have to have come.
        """
        while self._signals.count < signals and not is_over():
            self._signals.wait([child.ready_descriptor for child in self.children], tick_s)
            for child in self.children:
                child.look()

    def _end(self, child: Child) -> None:
        """End a child, patiently unless somebody says again that it is over."""
        child.signal(signal.SIGTERM)
        deadline_s = time.monotonic() + STOP_S
        while not child.has_ended():
            impatient = self._signals.count > 1
            if impatient or time.monotonic() >= deadline_s:
                why = "a second signal came" if impatient else f"it has not ended in {STOP_S:g} s"
                logger.warning("the %s (pid %s) is killed: %s", child.role.name, child.pid, why)
                self.ended_well = False
                child.signal(signal.SIGKILL)
                deadline_s = time.monotonic() + STOP_S
                while not child.has_ended() and time.monotonic() < deadline_s:
                    self._signals.wait([], _TICK_S)
                return
            self._signals.wait([], _TICK_S)


def _metrics(run: RunDirectory, port: int) -> Metrics:
    from chronolog_hpc.services.inspection import inspect  # with it comes numpy
    from chronolog_hpc.services.metrics import Metrics

    return Metrics(port, lambda: inspect(run, here_only=True))


class _Signals:
    """Counts the signals that say that it is over, and wakes up for them and for the end of a child.

    Attributes:
        count: how many came.
    """

    def __init__(self) -> None:
        self.count = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakeup_before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                self._before[number] = signal.signal(number, self._take)
        self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda number, frame: None)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._reader)
        os.close(self._writer)

    def wait(self, descriptors: Iterable[int | None], timeout_s: float) -> None:
        """Wait for a signal, or something to read."""
        awaited = [descriptor for descriptor in descriptors if descriptor is not None]
        select.select([self._reader, *awaited], [], [], timeout_s)
        with suppress(BlockingIOError):
            os.read(self._reader, 1024)

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
