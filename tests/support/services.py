"""Real services of a deployment, as processes on the loopback interface."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pytest

from py_chronolog_client.engine.connection import Address
from py_chronolog_client.engine.remote import RemoteEngine
from py_chronolog_client.errors import ChronoLogError
from py_chronolog_client.page import Page
from py_chronolog_client.tokens import new_secret, write_tokens
from py_chronolog_client.wire.handshake import SERVICE_NAME, Identity
from tests.support import processes

READY_S = 30.0
USER = "ada"
GRACE_S = 0.5
"""Who was killed holds his stories for so long."""
SERVICES, HASTY = "chronolog_hpc.services", "tests.hpc.programs.hasty"
"""What is run as a service."""


class Role:
    """One service, which can be killed and started again at the same address."""

    def __init__(
        self, role: str, directory: pathlib.Path, tokens: pathlib.Path, *more: object, module: str = SERVICES
    ) -> None:
        self.role, self.directory, self.tokens, self.more = role, directory, tokens, more
        self.module = module
        self.log = directory.parent / f"{directory.name}.log"
        self.address = Address("127.0.0.1", 0)
        self.start()

    def start(self) -> None:
        argv = [sys.executable, "-m", self.module, self.role, "--directory", self.directory]
        argv += ["--host", "127.0.0.1", "--port", self.address.port, "--tokens", self.tokens, *self.more]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [str(word) for word in argv],
                stdout=subprocess.PIPE,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=processes.child_environment(),
            )
        self.address = self._wait_until_ready()

    def _wait_until_ready(self) -> Address:
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], READY_S)[0], f"not ready: {self.said()}"
        line = os.read(self.process.stdout.fileno(), 4096).decode()
        found = re.search(r"listening on ([0-9.]+):([0-9]+)", line)
        assert found, f"{line!r}: {self.said()}"
        return Address(found[1], int(found[2]))

    def said(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.process.kill()
        self._end()

    def stop(self) -> int:
        """End it with SIGTERM; return its exit status."""
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        return self._end()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def _end(self) -> int:
        try:
            status = self.process.wait(READY_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"{self.role} did not end: {self.said()}") from None
        assert self.process.stdout is not None
        self.process.stdout.close()
        return status


class Deployment:
    """A visor, keepers and a player below a directory, and a grapher for which everything is soon due."""

    def __init__(
        self,
        directory: pathlib.Path,
        keepers: int = 1,
        *,
        player: bool = True,
        grapher: bool = False,
        identity: Identity | None = None,
    ) -> None:
        self.directory = directory
        self.module = HASTY if grapher else SERVICES
        directory.mkdir()
        self.tokens = directory / "tokens"
        self.identity = identity or Identity(USER, new_secret())
        self.services = Identity(SERVICE_NAME, new_secret())
        write_tokens(self.tokens, dict([self.services[:2], self.identity[:2]]))
        self.roles: list[Role] = []
        self.visor = self.start("visor", "--grace", GRACE_S)
        self.grapher = self.start("grapher", *self._visor(), "--node", "n0") if grapher else None
        self.keepers = [self.start_keeper(number) for number in range(keepers)]
        self.player = self.start("player", *self._visor()) if player else None

    def start(self, role: str, *more: object, name: str = "") -> Role:
        started = Role(role, self.directory / (name or role), self.tokens, *more, module=self.module)
        self.roles.append(started)
        return started

    def start_keeper(self, number: int) -> Role:
        return self.start("keeper", *self._visor(), "--node", f"n{number}", name=f"keeper-{number}")

    def _visor(self) -> tuple[object, ...]:
        return "--visor", str(self.visor.address)

    def engine(self) -> RemoteEngine:
        player = None if self.player is None else self.player.address
        return RemoteEngine(self.visor.address, player, self.identity)

    def environment(self) -> dict[str, str]:
        """Return what a client program needs to find its way."""
        return {
            "CHRONOLOG_TOKEN_FILE": str(self.tokens),
            "CHRONOLOG_SPOOL": str(self.directory / "spool"),
        }

    def addresses(self) -> dict[str, str]:
        """Return the environment under which programs find it that name no address, or another one."""
        assert self.player is not None
        return {
            "CHRONOLOG_PORTAL": str(self.visor.address),
            "CHRONOLOG_QUERY": str(self.player.address),
        }

    def stop(self) -> None:
        for role in reversed(self.roles):
            if role.process.poll() is None:
                with contextlib.suppress(AssertionError):
                    role.stop()


@contextlib.contextmanager
def deployed(
    directory: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    keepers: int = 1,
    identity: Identity | None = None,
    *,
    grapher: bool = False,
) -> Iterator[Deployment]:
    """Run a deployment, and let the clients of this process find it."""
    deployment = Deployment(directory, keepers, grapher=grapher, identity=identity)
    for name, value in deployment.environment().items():
        monkeypatch.setenv(name, value)
    try:
        yield deployment
    finally:
        deployment.stop()


@contextlib.contextmanager
def engine_of(deployment: Deployment) -> Iterator[RemoteEngine]:
    engine = deployment.engine()
    try:
        yield engine
    finally:
        engine.close()


def require_gapless(pages: Iterable[Page]) -> dict[int, int]:
    """Make sure that pages are in order and miss nothing before their end; return each client's number of events."""
    counts: dict[int, int] = {}
    last = np.zeros((3, 0), np.uint64)
    for page in pages:
        events = np.stack([page.times, page.client_ids, page.sequences])
        joined = np.concatenate([last, events], axis=1)
        assert np.array_equal(np.lexsort(joined[::-1]), np.arange(joined.shape[1]))
        last = events[:, -1:]
        for client_id in np.unique(page.client_ids).tolist():
            start, sequences = counts.get(client_id, 0), page.sequences[page.client_ids == client_id]
            counts[client_id] = start + len(sequences)
            assert np.array_equal(sequences, np.arange(start, counts[client_id])), (
                client_id,
                start,
                sequences,
            )
    return counts


def answers(question: Callable[[], object]) -> bool:
    """Return what a question is answered with; false while somebody is away."""
    try:
        return bool(question())
    except ChronoLogError:
        return False


def eventually(holds: object, timeout_s: float = 30.0) -> None:
    """Wait until something holds; fail if it does not."""
    assert callable(holds)
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it does not come to hold"
        time.sleep(0.01)
