"""Services with TLS: everything goes through it, and who is in the way, mistaken or rude is told so and gets nowhere."""

import contextlib
import pathlib
import random
import socket
import ssl
import threading
import time
from collections.abc import Iterator

import pytest

from chronolog_hpc.services.tls import Channel, ServiceTls
from py_chronolog_client.engine.connection import Address, Connection
from py_chronolog_client.engine.remote_reader import RemoteReader
from py_chronolog_client.engine.tls import client_context
from py_chronolog_client.errors import (
    ErrorCode,
    InvalidArgumentError,
    NotAuthorizedError,
    NotConnectedError,
    ProtocolError,
)
from py_chronolog_client.testing.contract.base import rows_of
from py_chronolog_client.wire import messages
from py_chronolog_client.wire.frames import PREFIX, FrameDecoder, frame_bytes
from py_chronolog_client.wire.handshake import Identity, ServiceHandshake
from tests.hpc.services.deploying import (
    ALICE,
    CHRONICLE,
    DEADLINE_S,
    STORY,
    Deployment,
    deployed,
    open_stream,
    plain,
    until,
    until_acquired,
)
from tests.store.shipping import Client
from tests.support import certificates
from tests.support.certificates import Certificate
from tests.support.counts import soak

HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
"""How a greeting of TLS begins."""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return certificates.made(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return certificates.made(tmp_path_factory.mktemp("other"))


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory, certificate: Certificate) -> Iterator[Deployment]:
    """A visor, a keeper and a player with TLS, and a chronicle."""
    with deployed(tmp_path_factory.mktemp("tls") / "d", "n0", certificate=certificate) as running:
        running.start_player()
        visor = running.connect(running.visor)
        visor.ask(messages.CreateChronicle(CHRONICLE, {}), messages.Done)
        until_acquired(visor, 0, "first")
        yield running


def is_served(connection: Connection) -> bool:
    return isinstance(connection.ask(messages.ListChronicles(), messages.Names), messages.Names)


class Relay:
    """A man in the middle: takes connections with a certificate of his own, and passes everything on."""

    def __init__(self, target: Address, own: Certificate | None, trusted: str) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = Address(*self._listener.getsockname()[:2])
        self._target, self._own, self._trusted = target, own, trusted
        self._sockets: list[socket.socket] = [self._listener]
        self.passed_on = 0
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, service = self._listener.accept()[0], socket.create_connection(self._target)
                self._sockets += [client, service]
                with contextlib.suppress(OSError):
                    self._join(client, service)

    def _join(self, client: socket.socket, service: socket.socket) -> None:
        if self._own is not None:
            client = ServiceTls(self._own.with_key).context.wrap_socket(client, server_side=True)
            service = client_context(self._trusted).wrap_socket(service)
        self._sockets += [client, service]
        for one, another in ((client, service), (service, client)):
            threading.Thread(target=self._pass_on, args=(one, another), daemon=True).start()

    def _pass_on(self, one: socket.socket, another: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                self.passed_on += len(data)
                another.sendall(data)
            another.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for each in self._sockets:
            each.close()


# -- it works --


@pytest.mark.slow
def test_everything_goes_through_tls(secured: Deployment) -> None:
    """Blocks of all sizes to a keeper, registered over TLS; pages of all sizes back through the player."""
    client = Client(7, 1, soak(60, 500), record_bytes=20_000)
    visor = secured.connect(secured.visor)
    acquired = until_acquired(visor, 7)
    keeper = secured.connect(secured.running[1])
    opened = open_stream(keeper, acquired, 7)
    due = 0
    for block in client.blocks_from(opened.sequence, has_client=False):
        keeper.send(messages.Block(1), [block[:100], block[100:]])
        due += 1
        while keeper.has_news():
            assert isinstance(keeper.receive()[0], messages.Ack)
            due -= 1
    while due:
        assert isinstance(keeper.receive(time.monotonic() + DEADLINE_S)[0], messages.Ack)
        due -= 1
    assert not keeper.has_news()
    assert keeper.is_alive()
    player = secured.running[2]
    reader = RemoteReader(lambda: secured.connect(player))
    assert rows_of(reader.scan(CHRONICLE, STORY)) == client.rows
    pages, marks = reader.follow(CHRONICLE, STORY, {}, 10.0)
    assert (rows_of(pages), marks) == (client.rows, {7: len(client.events)})


@pytest.mark.slow
def test_what_a_record_of_tls_holds_beyond_a_message_is_heard(certificate: Certificate) -> None:
    """Where the service's side puts several messages into one, nothing is left in the kernel to look at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            tls = ServiceTls(certificate.with_key)
            with (
                listener.accept()[0] as accepted,
                tls.context.wrap_socket(accepted, server_side=True) as wrapped,
            ):
                handshake = ServiceHandshake("visor", {ALICE: bytes(32)}, tls.binding)
                decoder = FrameDecoder()
                while handshake.name is None:
                    frame = decoder.advance(wrapped.recv_into(decoder.buffer()))
                    if frame is not None:
                        answer = handshake.receive(messages.decode(frame.head))
                        wrapped.sendall(frame_bytes(messages.encode(answer)))
                wrapped.sendall(frame_bytes(messages.encode(messages.Ack(1, 2))) * 3)
                wrapped.recv(1)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        address = Address(*listener.getsockname()[:2])
        connection = Connection(address, Identity(ALICE, bytes(32), certificate.alone), "visor")
        for _ in range(3):
            until(connection.has_news)
            assert connection.receive()[0] == messages.Ack(1, 2)
        assert not connection.has_news()
        connection.close()
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


def test_a_channel_is_fed_byte_by_byte(certificate: Certificate) -> None:
    """It says as soon as it can what the peer has said, that it has ended, and nothing else."""
    tls = ServiceTls(certificate.with_key)
    channel, buffer = Channel(tls), memoryview(bytearray(5))
    to_client, to_service = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context(certificate.alone).wrap_bio(to_client, to_service)
    heard, ends = bytearray(), 0

    def pass_on() -> None:
        nonlocal ends
        for byte in to_service.read():
            tls.scratch[0] = byte
            assert channel.receive(1)
            while count := channel.read_into(buffer):
                heard.extend(buffer[:count])
            ends += count == 0
        to_client.write(channel.unsent())

    while not channel.is_open:
        with contextlib.suppress(ssl.SSLWantReadError):
            client.do_handshake()
        pass_on()
    assert heard == b""
    for said in (b"a", bytes(40_000), b"the end"):
        client.write(said)
        pass_on()
        assert heard == said
        heard.clear()
        answer = bytearray()
        to_client.write(channel.seal(memoryview(said)))
        while len(answer) < len(said):
            answer += client.read(65536)
        assert answer == said
    assert ends == 0
    with pytest.raises(ssl.SSLWantReadError):
        client.unwrap()
    pass_on()
    assert ends == 1
    to_client.write(channel.goodbye())
    client.unwrap()


# -- who is in the way --


@pytest.mark.slow
def test_a_man_in_the_middle_with_another_certificate(secured: Deployment, other: Certificate) -> None:
    relay = Relay(secured.visor.address, other, secured.identity().trusted)
    try:
        with pytest.raises(
            NotAuthorizedError, match=r"is not to be trusted .*this is somebody else"
        ) as caught:
            Connection(relay.address, secured.identity(), "visor")
        assert str(relay.address) in str(caught.value)
        assert relay.passed_on == 0, "not even the name"
    finally:
        relay.close()


@pytest.mark.slow
def test_a_man_in_the_middle_whom_the_client_trusts(secured: Deployment, other: Certificate) -> None:
    """Both sides of the handshake are bound to the certificate that they know."""
    trusted = secured.identity().trusted + other.alone
    identity = secured.identity()._replace(trusted=trusted)
    Connection(secured.visor.address, identity, "visor").close()
    relay = Relay(secured.visor.address, other, trusted)
    try:
        with pytest.raises(NotAuthorizedError, match="goes through somebody with another certificate"):
            Connection(relay.address, identity, "visor")
        assert relay.passed_on > 0
    finally:
        relay.close()
    until(lambda: "(unknown): sent away: unknown name or wrong secret" in secured.visor.log)


@pytest.mark.slow
def test_a_tunnel_is_none_in_the_middle(secured: Deployment) -> None:
    relay = Relay(secured.visor.address, None, "")
    try:
        with contextlib.closing(Connection(relay.address, secured.identity(), "visor")) as connection:
            assert is_served(connection)
    finally:
        relay.close()


@pytest.mark.slow
def test_a_client_with_an_expired_certificate_to_trust(tmp_path: pathlib.Path) -> None:
    expired = certificates.made(tmp_path, days=-1)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(expired.with_key)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError), listener.accept()[0] as accepted:
                context.wrap_socket(accepted, server_side=True).recv(1)

        threading.Thread(target=serve, daemon=True).start()
        address = Address(*listener.getsockname()[:2])
        with pytest.raises(NotAuthorizedError, match="certificate has expired"):
            Connection(address, Identity(ALICE, bytes(32), expired.alone), "visor")


# -- who is mistaken --


@pytest.mark.slow
def test_a_client_without_tls(secured: Deployment) -> None:
    with pytest.raises(NotConnectedError, match=r"speaks TLS only: .*CHRONOLOG_CERTIFICATE") as caught:
        Connection(secured.visor.address, secured.identity()._replace(trusted=""), "visor")
    assert caught.value.code == ErrorCode.CL_ERR_NO_CONNECTION
    until(lambda: "(unknown): sent away: this service speaks TLS only" in secured.visor.log)


@pytest.mark.slow
def test_a_service_without_tls(tmp_path: pathlib.Path, certificate: Certificate) -> None:
    with deployed(tmp_path / "d") as clear:
        identity = clear.identity()._replace(trusted=certificate.alone)
        with pytest.raises(
            ProtocolError, match=r"does not speak TLS .*unset CHRONOLOG_CERTIFICATE"
        ) as caught:
            Connection(clear.visor.address, identity, "visor")
        assert caught.value.code == ErrorCode.CL_ERR_NO_CONNECTION
        until(lambda: "a greeting of TLS, which is not spoken here" in clear.visor.log)


def test_a_service_that_says_nothing_or_ends(certificate: Certificate) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = Address(*listener.getsockname()[:2])
        identity = Identity(ALICE, bytes(32), certificate.alone)
        with pytest.raises(NotConnectedError, match="no answer in time"):
            Connection(address, identity, "visor", timeout_s=0.1)
        listener.accept()[0].close()
        thread = threading.Thread(target=lambda: listener.accept()[0].close(), daemon=True)
        thread.start()
        with pytest.raises(NotConnectedError, match=f"connection to the service at {address} is lost"):
            Connection(address, identity, "visor", timeout_s=DEADLINE_S)


def spoiled(directory: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Yield files that are no certificate with its key, and what is said of them."""
    good, foreign = certificates.made(directory, "a"), certificates.made(directory, "b")
    key = foreign.with_key.read_text().replace(foreign.alone, "")
    yield good.alone, "no key for the certificate"
    yield key, "no certificate in PEM"
    yield good.alone + key, "no key for the certificate, or one with a passphrase .*MISMATCH"
    yield good.alone.replace("MII", "MI!") + key, "no key for the certificate"
    yield "", "no certificate in PEM"
    yield certificates.made(directory, "c", days=-1).with_key.read_text(), "no client would trust.*expired"


def test_files_that_are_no_certificate_with_its_key(tmp_path: pathlib.Path) -> None:
    for number, (text, sentence) in enumerate(spoiled(tmp_path)):
        path = tmp_path / f"{number}"
        path.write_text(text)
        with pytest.raises(InvalidArgumentError, match=f"{path}: .*{sentence}"):
            ServiceTls(path)
    with pytest.raises(InvalidArgumentError, match="cannot be read: No such file"):
        ServiceTls(tmp_path / "missing")


# -- who is rude --


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_garbage_and_greetings_that_never_end(secured: Deployment, sockets: list[socket.socket]) -> None:
    """They are counted and limited like those that say nothing in the clear; others are served meanwhile."""
    known, visor = secured.connect(secured.visor), secured.visor
    numbers = random.Random(1)
    for number in range(soak(40, 5000)):
        start = (b"", HELLO, HELLO[:3], b"\x15\x03\x03\0\x02\x02\x28")[number % 4]
        connected = plain(visor.address, sockets)
        connected.sendall(start + numbers.randbytes(numbers.randrange(1, 3000)))
        if number % 4 == 0:
            connected.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):
                while connected.recv(65536):
                    pass
    before = visor.memory_bytes()
    for number in range(soak(300, 1500)):
        connected = plain(visor.address, sockets)
        connected.sendall(HELLO[: number % (1 + len(HELLO))])
    assert is_served(known)
    assert is_served(secured.connect(visor))
    began_s = time.monotonic()
    with contextlib.suppress(ConnectionError):
        assert sockets[-290].recv(1) == b"", "the oldest went when the 257th came"
    assert time.monotonic() - began_s < 2
    sockets[-1].settimeout(DEADLINE_S)
    with contextlib.suppress(ConnectionError):
        while sockets[-1].recv(65536):
            pass
    assert time.monotonic() - began_s < 2 * DEADLINE_S
    assert visor.memory_bytes() < before + 2**25
    assert is_served(known)


@pytest.mark.slow
def test_garbage_behind_the_handshake_ends_that_connection_only(secured: Deployment) -> None:
    others = secured.connect(secured.visor)
    for data in (b"garbage", b"\x17\x03\x03\x00\x20" + bytes(32), b"\x17\x03\x03\xff\xff"):
        rude = secured.connect(secured.visor)
        socket.socket.sendall(rude._socket, data)
        until(lambda rude=rude: not rude.is_alive())
        assert is_served(others)
    rude = secured.connect(secured.visor)
    rude._socket.sendall(PREFIX.pack(2**31, 0))
    failure, _ = rude.receive(time.monotonic() + DEADLINE_S)
    assert isinstance(failure, messages.Failure)
    assert failure.code == ErrorCode.CL_ERR_NO_CONNECTION
    until(lambda: not rude.is_alive())
    assert secured.visor.log.count("(alice): sent away: there is no TLS with this peer") >= 2
