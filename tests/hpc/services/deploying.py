"""What the tests of services share: services as processes, a deployment of them, and clients that speak the protocol."""

import contextlib
import pathlib
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from py_chronolog_client.engine.connection import Address, Connection
from py_chronolog_client.errors import NoKeepersError
from py_chronolog_client.tokens import new_secret, write_tokens
from py_chronolog_client.wire import messages
from py_chronolog_client.wire.handshake import SERVICE_NAME, Identity
from tests.support import processes
from tests.support.certificates import Certificate

DEADLINE_S = 20.0
ALICE, BOB, CAROL, DAVE = USERS = "alice", "bob", "carol", "dave"
CHRONICLE, STORY = "c", "s"

T = TypeVar("T")


class ServiceProcess:
    """A service that runs until the test ends it."""

    def __init__(
        self, role: str, *arguments: object, env: dict[str, str] | None = None, prefix: tuple[str, ...] = ()
    ) -> None:
        self.role = role
        argv = [*prefix, sys.executable, "-m", "chronolog_hpc.services", role, *map(str, arguments)]
        self.process = subprocess.Popen(
            argv,
            env=processes.child_environment(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pid = self.process.pid
        self.said: list[str] = []
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._hear, args=(stream, hears), daemon=True)
            for stream, hears in (
                (self.process.stdout, self._lines.put),
                (self.process.stderr, self.said.append),
            )
        ]
        for thread in self._threads:
            thread.start()
        try:
            line = self._lines.get(timeout=DEADLINE_S)
        except queue.Empty:
            self.end()
            raise AssertionError(f"the {role} does not listen: {self.log}") from None
        assert line.startswith(f"{role} listening on "), (line, self.log)
        host, _, port = line.split()[-1].rpartition(":")
        self.address = Address(host, int(port))

    def _hear(self, stream: Any, hears: Callable[[str], object]) -> None:
        for line in stream:
            hears(line)
        hears("")

    @property
    def log(self) -> str:
        return "".join(self.said)

    def terminate(self) -> int:
        self.process.terminate()
        return self.wait()

    def kill(self) -> None:
        self.process.kill()
        assert self.wait() == -signal.SIGKILL

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.wait()

    def wait(self) -> int:
        code = self.process.wait(DEADLINE_S)
        for thread in self._threads:
            thread.join(DEADLINE_S)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        return code

    def memory_bytes(self) -> int:
        """Return the most that the process has ever had in memory."""
        for line in pathlib.Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no VmHWM")


class Deployment:
    """A visor and keepers, restarted in their directories and at their ports, with the tokens of some users."""

    def __init__(
        self, directory: pathlib.Path, grace_s: float = 10.0, certificate: Certificate | None = None
    ) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.tokens = directory / "tokens"
        self.secrets = {name: new_secret() for name in (SERVICE_NAME, *USERS)}
        write_tokens(self.tokens, self.secrets)
        self.grace_s = grace_s
        self.certificate = certificate
        self.running: list[ServiceProcess] = []
        self.connections: list[Connection] = []
        self.visor_port = 0

    def start_visor(self) -> ServiceProcess:
        visor = self._start(
            "visor",
            "--grace",
            self.grace_s,
            "--directory",
            self.directory / "visor",
            "--port",
            self.visor_port,
        )
        self.visor_port = visor.address.port
        self.visor = visor
        return visor

    def start_keeper(
        self, node: str = "n0", *, env: dict[str, str] | None = None, prefix: tuple[str, ...] = ()
    ) -> ServiceProcess:
        arguments = (
            "--directory",
            self.store(node),
            "--node",
            node,
            "--visor",
            f"127.0.0.1:{self.visor_port}",
        )
        return self._start("keeper", *arguments, env=env, prefix=prefix)

    def start_grapher(self) -> ServiceProcess:
        visor = ("--visor", f"127.0.0.1:{self.visor_port}")
        return self._start("grapher", "--directory", self.directory / "grapher", "--node", "n0", *visor)

    def start_player(self) -> ServiceProcess:
        return self._start("player", "--visor", f"127.0.0.1:{self.visor_port}")

    def store(self, node: str = "n0") -> pathlib.Path:
        return self.directory / f"keeper-{node}"

    def _start(self, role: str, *arguments: object, **options: Any) -> ServiceProcess:
        tls = () if self.certificate is None else ("--tls", self.certificate.with_key)
        service = ServiceProcess(role, "--tokens", self.tokens, *tls, *arguments, **options)
        self.running.append(service)
        return service

    def at(self, port: int) -> ServiceProcess:
        """Return the service that listens at a port; the visor may know of it before the test does."""
        return until(
            lambda: next((service for service in self.running if service.address.port == port), None)
        )

    def connect(self, service: ServiceProcess, name: str = ALICE) -> Connection:
        connection = Connection(service.address, self.identity(name), service.role)
        self.connections.append(connection)
        return connection

    def identity(self, name: str = ALICE) -> Identity:
        trusted = "" if self.certificate is None else self.certificate.alone
        return Identity(name, self.secrets[name], trusted)

    def close(self) -> None:
        for connection in self.connections:
            connection.close()
        for service in self.running:
            if service.process.returncode is None:
                service.end()
            assert "Traceback" not in service.log, service.log


@contextlib.contextmanager
def deployed(
    directory: pathlib.Path, *nodes: str, grace_s: float = 10.0, certificate: Certificate | None = None
) -> Iterator[Deployment]:
    """Run a visor, and a keeper for each node."""
    deployment = Deployment(directory, grace_s, certificate)
    try:
        deployment.start_visor()
        for node in nodes:
            deployment.start_keeper(node)
        yield deployment
    finally:
        deployment.close()


def until(what: Callable[[], T], deadline_s: float = DEADLINE_S) -> T:
    """Ask again until the answer is true, or does not raise an error of the network; return it."""
    deadline = time.monotonic() + deadline_s
    while True:
        try:
            answer = what()
            if answer:
                return answer
        except ConnectionError:
            answer = None
        assert time.monotonic() < deadline, f"{what} is still {answer!r}"
        time.sleep(0.01)


def acquire(
    connection: Connection, client_id: int, story: str = STORY, host: str = "", uid: int = 0
) -> messages.Acquired:
    request = messages.Acquire(CHRONICLE, story, {}, client_id, host, uid)
    return connection.ask(request, messages.Acquired)


def plain(address: Address, made: list[socket.socket]) -> socket.socket:
    """Connect without a word; the socket is added to the fixture `sockets`, which closes it."""
    connected = socket.create_connection(address, DEADLINE_S)
    made.append(connected)
    return connected


def until_acquired(connection: Connection, client_id: int, story: str = STORY) -> messages.Acquired:
    """Acquire as soon as there is a keeper."""

    def attempt() -> messages.Acquired | None:
        try:
            return acquire(connection, client_id, story)
        except NoKeepersError:
            return None

    return until(attempt)


def open_stream(
    connection: Connection,
    acquired: messages.Acquired,
    client_id: int,
    *,
    stream: int = 1,
    durable: bool = False,
    story: str = STORY,
) -> messages.Opened:
    request = messages.Open(stream, acquired.uid, CHRONICLE, story, client_id, durable, acquired.ticket)
    return connection.ask(request, messages.Opened)


def ship(connection: Connection, stream: int, block: bytes) -> int:
    """Ship one block and return what is acknowledged."""
    connection.send(messages.Block(stream), [block])
    answer, _ = connection.receive(time.monotonic() + DEADLINE_S)
    assert isinstance(answer, messages.Ack), answer
    assert answer.stream == stream
    return answer.sequence
