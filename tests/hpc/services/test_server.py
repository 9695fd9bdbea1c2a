"""Connections that are silent, slow, rude or gone: they end, they are counted, and others do not notice."""

import contextlib
import os
import pathlib
import random
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator

import pytest

from py_chronolog_client.engine.connection import Connection
from py_chronolog_client.errors import ErrorCode, NotConnectedError
from py_chronolog_client.tokens import new_secret, write_tokens
from py_chronolog_client.wire import messages
from py_chronolog_client.wire.frames import MAX_HEAD_BYTES, PREFIX, FrameDecoder
from py_chronolog_client.wire.handshake import Identity
from tests.hpc.services.deploying import ALICE, DEADLINE_S, Deployment, ServiceProcess, deployed, plain, until
from tests.support import processes
from tests.support.counts import soak

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployed(tmp_path_factory.mktemp("server") / "d") as running:
        yield running


def is_served(connection: Connection) -> bool:
    """Ask something, within two seconds."""
    return isinstance(connection.ask(messages.ListChronicles(), messages.Names, 2.0), messages.Names)


def last_words(connected: socket.socket) -> list[messages.Message]:
    """Return what the peer says until it ends the connection."""
    decoder, found = FrameDecoder(), []
    with contextlib.suppress(ConnectionError):
        while count := connected.recv_into(decoder.buffer()):
            frame = decoder.advance(count)
            if frame is not None:
                found.append(messages.decode(frame.head))
    return found


def test_silent_connections_do_not_disturb(deployment: Deployment, sockets: list[socket.socket]) -> None:
    """Some hundreds that never speak, or stop in the middle of a greeting: the oldest go when others come."""
    known = deployment.connect(deployment.visor)
    for number in range(soak(400, 1500)):
        silent = plain(deployment.visor.address, sockets)
        silent.send(b"\x40\0\0\0"[: number % 5])
    assert is_served(known)
    for _ in range(5):
        assert is_served(deployment.connect(deployment.visor))
    began_s = time.monotonic()
    assert last_words(sockets[0]) == []
    assert time.monotonic() - began_s < 2, "the oldest went when the 257th came"
    failure = last_words(sockets[-1])[-1]
    assert isinstance(failure, messages.Failure)
    assert "within 5 s" in failure.sentence


def test_garbage_and_sizes_beyond_the_limits_end_the_connection(
    deployment: Deployment, sockets: list[socket.socket]
) -> None:
    """Before anybody has said who he is; memory is not taken for what is not allowed."""
    assert deployment.visor.terminate() == 0
    deployment.start_visor()
    before = deployment.visor.memory_bytes()
    numbers = random.Random(1)
    hello = messages.encode(messages.Hello(1, ALICE, bytes(32)))
    rude = [
        PREFIX.pack(513, 0),
        PREFIX.pack(0, 0),
        PREFIX.pack(len(hello), 1) + hello,
        PREFIX.pack(2**32 - 1, 2**32 - 1),
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + numbers.randbytes(500),
        PREFIX.pack(5, 0) + b"\xdf\xff\xff\xff\xff",
        PREFIX.pack(500, 0) + b"\x91" * 500,
        PREFIX.pack(len(hello), 0) + hello.replace(b"Hello", b"Hullo"),
        struct.pack("<II", len(m := messages.encode(messages.ListChronicles())), 0) + m,
    ]
    rude += [struct.pack("<II", 64, 0) + numbers.randbytes(64) for _ in range(soak(25, 5000))]
    for data in rude:
        connected = plain(deployment.visor.address, sockets)
        connected.sendall(data + numbers.randbytes(numbers.randrange(10_000)))
        (failure,) = last_words(connected)
        assert isinstance(failure, messages.Failure)
        assert failure.code == ErrorCode.CL_ERR_NO_CONNECTION
        connected.close()
    assert is_served(deployment.connect(deployment.visor))
    assert deployment.visor.memory_bytes() < before + 2**24
    assert deployment.visor.terminate() == 0
    assert f"connections_rejected {len(rude)}" in deployment.visor.log
    deployment.start_visor()


def test_garbage_of_somebody_known_ends_his_connection_only(deployment: Deployment) -> None:
    other = deployment.connect(deployment.visor)
    for data in (
        PREFIX.pack(MAX_HEAD_BYTES + 1, 0),
        PREFIX.pack(5, 1),  # a visor takes no bulk
        PREFIX.pack(3, 0) + b"abc",
        PREFIX.pack(len(m := messages.encode(messages.Block(1))), 0) + m,
    ):
        rude = deployment.connect(deployment.visor)
        rude._socket.sendall(data)
        failure, _ = rude.receive(time.monotonic() + DEADLINE_S)
        assert isinstance(failure, messages.Failure)
        assert failure.code == ErrorCode.CL_ERR_NO_CONNECTION
        until(lambda: not rude.is_alive())
    assert is_served(other)
    assert deployment.visor.log.count("(alice): sent away") == 4


def test_requests_that_nobody_waits_for_and_answers_that_nobody_reads(deployment: Deployment) -> None:
    """A peer that sends and never reads is stopped by TCP, and costs the service a bounded amount of memory."""
    visor = deployment.connect(deployment.visor)
    made = [f"{number}" * 1000 for number in range(50)]
    for name in made:
        visor.ask(messages.CreateChronicle(name, {}), messages.Done)
    before = deployment.visor.memory_bytes()
    greedy = deployment.connect(deployment.visor)
    greedy._socket.settimeout(0.3)
    data = PREFIX.pack(len(m := messages.encode(messages.ListChronicles())), 0) + m
    with pytest.raises(TimeoutError):
        for _ in range(1000):
            greedy._socket.sendall(data * 1000)
    assert set(made) <= set(visor.ask(messages.ListChronicles(), messages.Names).names)
    assert deployment.visor.memory_bytes() < before + 2**24
    greedy.close()


def test_every_file_is_in_use(tmp_path: pathlib.Path, sockets: list[socket.socket]) -> None:
    """With no descriptor left, the service goes on with those that are connected, and does not spin."""
    tokens = tmp_path / "tokens"
    secret = new_secret()
    write_tokens(tokens, {"service": secret, ALICE: secret})
    limit = ("prlimit", "--nofile=96:96")
    visor = ServiceProcess("visor", "--tokens", tokens, "--directory", tmp_path / "v", prefix=limit)
    try:
        known = Connection(visor.address, Identity(ALICE, secret), "visor")
        sockets.append(known._socket)
        for _ in range(100):
            plain(visor.address, sockets)
        assert is_served(known)
        until(lambda: visor.log.count("connections already") > 0)
        used = cpu_s(visor.pid)
        time.sleep(0.5)
        assert cpu_s(visor.pid) - used < 0.25
        for each in sockets:
            each.close()

        def serves_again() -> bool:
            with contextlib.closing(
                Connection(visor.address, Identity(ALICE, secret), "visor")
            ) as connection:
                return is_served(connection)

        until(serves_again)
    finally:
        visor.end()


def cpu_s(pid: int) -> float:
    """Return the time that a process has used a processor."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_graceful_stop(tmp_path: pathlib.Path, number: signal.Signals) -> None:
    """What was begun is answered, then all connections end, and the exit code is 0."""
    with deployed(tmp_path / "d") as deployment:
        visor, idle = (deployment.connect(deployment.visor) for _ in range(2))
        for _ in range(100):
            visor.send(messages.CreateChronicle("c", {}))
        assert isinstance(visor.receive()[0], messages.Done)
        os.kill(deployment.visor.pid, number)
        with pytest.raises(NotConnectedError):
            while True:
                assert isinstance(visor.receive(time.monotonic() + DEADLINE_S)[0], messages.Failure)
        until(lambda: not idle.is_alive())
        assert deployment.visor.wait() == 0
        deployment.start_visor()
        visor = deployment.connect(deployment.visor)
        assert visor.ask(messages.ListChronicles(), messages.Names).names == ["c"]


def test_it_listens_where_it_is_told(deployment: Deployment) -> None:
    """On the loopback interface alone, unless told otherwise."""
    port = f"{deployment.visor.address.port:04X}"
    lines = pathlib.Path("/proc/net/tcp").read_text() + pathlib.Path("/proc/net/tcp6").read_text()
    listening = [line.split()[1] for line in lines.splitlines() if line.split()[3] == "0A"]
    assert [place for place in listening if place.endswith(f":{port}")] == [f"0100007F:{port}"]


def test_what_a_user_can_mend_is_one_sentence(deployment: Deployment, tmp_path: pathlib.Path) -> None:
    open_to_all = tmp_path / "open"
    write_tokens(open_to_all, {"service": new_secret()})
    open_to_all.chmod(0o644)
    alone = tmp_path / "alone"
    write_tokens(alone, {ALICE: new_secret()})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    good = ("--tokens", deployment.tokens)
    wrong: list[tuple[tuple[object, ...], str]] = [
        (("visor", *good, "--directory", tmp_path / "full"), "holds something else"),
        (("visor", *good, "--directory", deployment.directory / "visor"), "is served by process"),
        (("visor", *good, "--directory", tmp_path / "v", "--port", deployment.visor.address.port), "in use"),
        (("visor", "--tokens", open_to_all, "--directory", tmp_path / "x"), "chmod 600"),
        (("visor", "--tokens", alone, "--directory", tmp_path / "x"), "no line for 'service'"),
        (("keeper", *good, "--directory", tmp_path / "k"), "needs --visor"),
        (("keeper", *good, "--directory", tmp_path / "k", "--visor", "here"), "is not HOST:PORT"),
    ]
    for arguments, words in wrong:
        done = processes.run(
            [sys.executable, "-m", "chronolog_hpc.services", *map(str, arguments)], timeout=30
        )
        assert done.returncode == 2, done
        assert words in done.stderr.splitlines()[-1], done
        assert done.stdout == ""
        assert "Traceback" not in done.stderr
