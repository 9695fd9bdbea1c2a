"""A whole deployment: on this machine, in the background, or over the nodes of a job.

Under a launcher the first rank of each node has a `Deployment` of its own: on rank 0's node the visor, the grapher, the
player and a keeper, elsewhere a keeper. Where the visor listens travels over MPI; everything else is in the deployment's
directory, which all nodes share. The other ranks sleep until the end. A rank that is told to end tells rank 0, and
rank 0 all others.
"""

from __future__ import annotations

import hashlib
import logging
import os
import signal
from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from chronolog_hpc import streams
from chronolog_hpc.clientlib import ChronoLogError, InvalidArgumentError
from chronolog_hpc.mpi import Team, load_mpi, wait
from chronolog_hpc.services.certificate import Given, provide_certificate
from chronolog_hpc.services.child import Role
from chronolog_hpc.services.configuration import Configuration, Log, read_configuration
from chronolog_hpc.services.deployment import ROLES, Deployment, log_directory, plan
from chronolog_hpc.services.listening import is_loopback
from chronolog_hpc.services.logfile import LogFile
from chronolog_hpc.services.rundir import GRAPHER, KEEPER, PLAYER, VISOR, RunDirectory, wait_until
from py_chronolog_client.conf import PORTAL_VARIABLE, QUERY_VARIABLE
from py_chronolog_client.engine.connection import Address
from py_chronolog_client.store import owner
from py_chronolog_client.tokens import TOKEN_VARIABLE, own_identity
from py_chronolog_client.trust import CERTIFICATE_VARIABLE

if TYPE_CHECKING:
    from mpi4py import MPI

    from chronolog_hpc.services.metrics import Metrics

_OTHERS = (GRAPHER, KEEPER, PLAYER)
_SHARED_S = 60.0
_TICK_S, _ALONE_TICK_S = 0.1, 0.5
_READY = b"ready"

logger = logging.getLogger("chronolog_hpc.deployment")


@dataclass(frozen=True)
class Wishes:
    """What `chronolog up` was asked for; None: what the configuration file says, or the default."""

    directory: str
    configuration: str | None = None
    host: str | None = None
    port: int | None = None
    query_port: int | None = None
    insecure_network: bool = False
    tls: bool = False
    certificate: Given | None = None
    drain_s: float = 0.0
    """So long the end waits for what is in the spools of the nodes."""
    metrics_port: int | None = None
    """On loopback; None: no metrics."""
    background: bool = False
    role: str | None = None
    """The only role to run; None for all."""


def launch(wishes: Wishes, comm: MPI.Comm | None) -> int:
    """Run a deployment until it is told to end; return the exit code.

    Collective: over `comm`; synchronises at the beginning and at the end.

    Raises:
        InvalidArgumentError: what is asked for cannot be.
        ChronoLogError: a service does not start.
    """
    if wishes.background and (comm is None or comm.size == 1):
        return _in_background(lambda ready: _run(wishes, None, ready))
    return _run(wishes, comm, lambda run: None)


def _run(wishes: Wishes, comm: MPI.Comm | None, ready: Callable[[RunDirectory], None]) -> int:
    _log_to(logging.StreamHandler())
    with Team(comm) as team:
        node = str(owner.describe_process()["host"])
        nodes = team.allgather(node)
        configuration = team.from_root(lambda: _configuration(wishes))
        run = _shared_directory(team, wishes)
        roles = team.together(lambda: _roles(wishes, run, configuration, nodes, team.rank))
        with ExitStack() as stack:
            deployment = team.together(
                lambda: stack.enter_context(Deployment(run, roles, wishes.metrics_port))
            )
            team.together(lambda: deployment.start([VISOR]))
            visor = team.from_root(lambda: deployment.addresses.get(VISOR) or _visor_in(run))
            team.together(lambda: deployment.start(_OTHERS, visor))
            listening = [
                (name, place, address)
                for place, services in team.allgather((node, deployment.addresses))
                for name, address in services.items()
            ]
            if team.rank == 0:
                streams.publish(_summary(run, listening, deployment.metrics))
            ready(run)
            end = _End(team)
            deployment.watch(end.has_come, _TICK_S if team.size > 1 else _ALONE_TICK_S)
            end.announce()
            if wishes.drain_s:
                _drain(team, deployment, visor, run, wishes.drain_s)
        end.conclude()
        return 1 if team.total(not deployment.ended_well) else 0


def _drain(
    team: Team, deployment: Deployment, visor: Address | None, run: RunDirectory, timeout_s: float
) -> None:
    """Ship what the spools of all nodes hold while their services still live; say what stays.

    Collective: synchronises, so that no keeper ends before others have shipped to it.
    """
    given_up = Event()
    with ThreadPoolExecutor(1, "chronolog-drain") as pool:
        if deployment.children and visor is not None:
            drained = pool.submit(_drain_here, visor, run, timeout_s, given_up)
            deployment.watch(drained.done, _TICK_S, signals=2)
            given_up.set()
        if team.comm is not None:
            everywhere = team.comm.Ibarrier()
            deployment.watch(everywhere.Test, _TICK_S, signals=2)
            wait(everywhere)


def _drain_here(visor: Address, run: RunDirectory, timeout_s: float, given_up: Event) -> None:
    from py_chronolog_client.engine.draining import drain_before_end  # with it comes numpy

    try:
        left = drain_before_end(
            visor, own_identity(run.tokens)._replace(trusted=run.trusted()), timeout_s, given_up.is_set
        )
    except (ChronoLogError, OSError) as error:
        logger.warning("the spool is not drained: %s", error)
        return
    for client, why in left:
        logger.warning(
            "not shipped: client %016x of story %r of %r, whose process %s: at most %d events%s",
            client.client_id,
            client.story,
            client.chronicle,
            "is dead" if client.is_dead else "lives",
            client.left.events,
            why and f": {why}",
        )


class _End:
    """How all ranks come to know that it is over: rank 0 says so, when it or any other was told to end."""

    def __init__(self, team: Team) -> None:
        self._team = team
        self._word = array("b", [0])
        self._told: MPI.Request | None = None
        self._heard: MPI.Request | None = None
        if team.comm is not None and team.rank:
            self._heard = team.comm.Ibcast(self._word)

    def has_come(self) -> bool:
        """Tell whether this rank knows of another that it is over."""
        if self._heard is not None:
            return self._heard.Test()
        return self._team.comm is not None and self._team.comm.Iprobe(load_mpi().ANY_SOURCE)

    def announce(self) -> None:
        """Say that it is over."""
        if self._team.comm is None:
            return
        if not self._team.rank:
            self._heard = self._team.comm.Ibcast(self._word)
        elif not self.has_come():
            self._told = self._team.comm.Isend(array("b", [0]), 0)

    def conclude(self) -> None:
        """Wait until all ranks know it.

        Collective: synchronises.
        """
        if self._heard is not None:
            wait(self._heard)
        told = self._team.total(self._told is not None)
        if self._team.comm is not None and not self._team.rank:
            for _ in range(told):
                self._team.comm.Recv(array("b", [0]), load_mpi().ANY_SOURCE)
        if self._told is not None:
            wait(self._told)


def _configuration(wishes: Wishes) -> Configuration:
    if wishes.configuration is None:
        return Configuration()
    configuration = read_configuration(Path(wishes.configuration))
    for note in configuration.notes:
        logger.info("%s: %s", wishes.configuration, note)
    return configuration


def _shared_directory(team: Team, wishes: Wishes) -> RunDirectory:
    """Return the run directory with its tokens and certificate, which rank 0 makes and all others see."""
    directory = wishes.directory

    def make() -> bytes:
        run = RunDirectory(directory, create=True)
        provide_certificate(run, wanted=wishes.tls, given=wishes.certificate)
        return _digest(run)

    expected = team.from_root(make)

    def is_seen() -> bool:
        try:
            return _digest(RunDirectory(directory)) == expected
        except ChronoLogError:
            return False  # a network file system may show it later

    def find() -> RunDirectory:
        if not wait_until(is_seen, _SHARED_S):
            raise InvalidArgumentError(
                f"{Path(directory).absolute()}: on this node this is not the directory that rank 0 sees: use one with "
                "--directory that all nodes of the job share"
            )
        return RunDirectory(directory)

    return team.together(find)


def _digest(run: RunDirectory) -> bytes:
    certificate = run.tls.read_bytes() if run.has_tls else b""
    return hashlib.sha256(repr(run.provide_tokens()).encode() + certificate).digest()


def _roles(
    wishes: Wishes, run: RunDirectory, configuration: Configuration, nodes: list[str], rank: int
) -> list[Role]:
    """Return what this rank looks after."""
    names: tuple[str, ...] = ()
    if len(nodes) > 1 and (wishes.role is not None or wishes.background):
        raise InvalidArgumentError(
            f"--role and --background are for one process, and the launcher has started {len(nodes)}: leave them out; each "
            "node has what it needs, and the launcher itself can be put into the background"
        )
    if wishes.role is not None:
        names = (wishes.role,)
    elif nodes.index(nodes[rank]) == rank:
        names = (KEEPER,) if rank else ROLES
    roles = plan(
        run,
        names,
        configuration,
        host=wishes.host,
        ports={VISOR: wishes.port, PLAYER: wishes.query_port},
        insecure_network=wishes.insecure_network,
    )
    count = len(set(nodes))
    if count > 1 and any(is_loopback(role.address.host) for role in roles):
        raise InvalidArgumentError(
            f"the {count} nodes of this job do not reach each other at {roles[0].address.host}: name the network interface "
            "that connects them with --host, for instance --host eth0 ('ip -brief address' lists them), and add --tls"
        )
    return roles


def _visor_in(run: RunDirectory) -> Address:
    """Return where the visor of a deployment listens that others have started."""
    visor = run.find(VISOR)
    if visor is None:
        raise InvalidArgumentError(
            f"{run.deployment}: no visor runs there: start it first, 'chronolog up --role visor'"
        )
    return Address(visor.host, visor.port)


def _summary(run: RunDirectory, listening: list[tuple[str, str, Address]], metrics: Metrics | None) -> str:
    """Return what a user needs to know."""
    lines = [f"ChronoLog deployment in {run.deployment}"]
    lines += [f"  {name:<8}{address!s:<24}{node}" for name, node, address in listening]
    lines += ["programs use it with", f"  export {TOKEN_VARIABLE}={run.tokens}"]
    if run.has_tls:
        lines.append(f"  export {CERTIFICATE_VARIABLE}={run.certificate}")
    places = {name: address for name, _, address in listening}
    lines += [
        f"  export {variable}={places[name]}"
        for name, variable in ((VISOR, PORTAL_VARIABLE), (PLAYER, QUERY_VARIABLE))
        if name in places
    ]
    if metrics is not None:
        lines.append(f"metrics of this machine are at http://{metrics.address}/metrics")
    lines.append(f"logs are in {log_directory(run)}; Ctrl-C or 'chronolog down' ends it")
    return "\n".join(lines) + "\n"


def _log_to(handler: logging.Handler) -> None:
    """Log what happens to the deployment with a handler, and nowhere else."""
    logging.basicConfig(
        handlers=[handler], level=logging.INFO, format="%(asctime)s chronolog up: %(message)s", force=True
    )


def _in_background(run: Callable[[Callable[[RunDirectory], None]], int]) -> int:
    """Run something in a process that outlives this one; return 0 when it is ready, or its exit code.

    Until it is ready it speaks to the same terminal.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        try:
            if os.read(reader, len(_READY)) == _READY:
                return 0
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        except KeyboardInterrupt:
            os.kill(pid, signal.SIGTERM)
            os.waitpid(pid, 0)
            raise
        return code if code > 0 else 1
    os.close(reader)
    os.setsid()

    def leave(directory: RunDirectory) -> None:
        path, bounds = log_directory(directory) / "up.log", Log()
        _log_to(LogFile(path, bounds.size_bytes, bounds.kept, descriptors=(1, 2)))
        nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.write(writer, _READY)
        os.close(writer)

    return run(leave)
