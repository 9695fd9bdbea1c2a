"""A connection to a service of a deployment: a blocking socket that speaks the protocol of `wire`.

One thread uses a connection at a time. Whoever asks gets an answer, an error of the tree in `errors`, or, where the
peer is gone or says what the protocol does not allow, NotConnectedError; then the connection is of no use any more.
"""

from __future__ import annotations

import math
import os
import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

from py_chronolog_client.errors import ChronoLogError, NotConnectedError
from py_chronolog_client.wire import messages
from py_chronolog_client.wire.failures import error_of
from py_chronolog_client.wire.frames import FULL, FrameDecoder, frame_bytes
from py_chronolog_client.wire.handshake import ClientHandshake, Identity
from py_chronolog_client.wire.messages import Failure, M, Message, expect

CONNECT_S = 5.0
"""A service that does not answer a greeting for so long is not there."""
SEND_S = 10.0
"""A peer that takes nothing for so long is gone."""
ANSWER_S = 30.0
"""So long a request may take that names no time-out of its own."""

_SILENCE_S, _PROBE_S, _PROBES = 10, 5, 3

Body = bytes | bytearray


class Address(NamedTuple):
    """Where a service listens."""

    host: str
    port: int

    @classmethod
    def of(cls, text: str) -> Address:
        """Return the address that HOST:PORT or [HOST]:PORT means.

        Raises:
            ValueError: it means none.
        """
        host, _, port = text.rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65535:
            raise ValueError(f"{text!r} is not HOST:PORT")
        return cls(host.removeprefix("[").removesuffix("]"), int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class NoAnswerError(NotConnectedError):
    """The peer is there, or was a moment ago, and does not answer in time."""


class Connection:
    """A connection over which both sides have proven who they are.

    Attributes:
        address: of the peer.
    """

    def __init__(
        self, address: Address, identity: Identity, service: str, timeout_s: float = CONNECT_S
    ) -> None:
        """Connect and greet.

        Args:
            address: where the service listens.
            identity: who this is.
            service: which one it has to be: "visor", "keeper", "grapher", "player".
            timeout_s: how long all that may take.

        Raises:
            NotConnectedError: nobody answers there, or not as docs/protocol.md says, or another service.
            NotAuthorizedError: one side does not know the secret of that name, or has a certificate that is not trusted.
            ProtocolVersionError: the service speaks another version.
        """
        self.address = address
        self._pid = os.getpid()
        self._decoder = FrameDecoder()
        self._unread_bytes: Callable[[], int] = int
        deadline = time.monotonic() + timeout_s
        self._socket = _connected(address, timeout_s)
        try:
            _notice_a_dead_peer(self._socket)
            binding = self._secure(identity.trusted, deadline) if identity.trusted else b""
            handshake = ClientHandshake(identity.name, identity.secret, binding)
            self.send(handshake.hello)
            self.send(handshake.answer(self.receive(deadline)[0]))
            found = handshake.finish(self.receive(deadline)[0])
            if found != service:
                raise NotConnectedError(
                    f"at {address} is the {found} of the deployment, not its {service}: check the port"
                )
            self._decoder.limits = FULL
        except BaseException:
            self.close()
            raise

    def _secure(self, trusted: str, deadline: float) -> bytes:
        """Speak TLS from now on; return what binds the handshake to it."""
        from py_chronolog_client.engine import tls

        self._socket.settimeout(max(1e-6, deadline - time.monotonic()))
        try:
            self._socket = connected = tls.secured(self._socket, trusted, self.address)
        except ChronoLogError:
            raise
        except OSError as error:
            raise self._lost(error) from error
        self._unread_bytes = connected.pending
        return tls.binding_of(connected)

    def fileno(self) -> int:
        """Return the descriptor, for select(2)."""
        return self._socket.fileno()

    @property
    def is_ours(self) -> bool:
        """Whether this process made the connection: a forked child must not speak on it."""
        return self._pid == os.getpid()

    def send(self, message: Message, body: Sequence[bytes | bytearray | memoryview] = ()) -> None:
        """Send a message; wait until the kernel has taken it.

        Args:
            message: what to say.
            body: pieces of the bulk that goes with it.

        Raises:
            NotConnectedError: the peer is gone.
        """
        views = [memoryview(piece).cast("B") for piece in body if len(piece)]
        head = frame_bytes(messages.encode(message), sum(view.nbytes for view in views))
        left = [memoryview(head), *views]
        try:
            self._socket.settimeout(SEND_S)
            while left:
                sent = self._socket.sendmsg(left)
                while left and sent >= left[0].nbytes:
                    sent -= left.pop(0).nbytes
                if left:
                    left[0] = left[0][sent:]
        except OSError as error:
            raise self._lost(error) from error

    def receive(self, deadline: float | None = None) -> tuple[Message, Body]:
        """Return the next message and its body.

        Args:
            deadline: by time.monotonic(); None to wait for as long as the peer lives.

        Raises:
            NoAnswerError: the peer says nothing until the deadline.
            NotConnectedError: the peer is gone.
        """
        frame = None
        while frame is None:
            try:
                self._socket.settimeout(None if deadline is None else max(1e-6, deadline - time.monotonic()))
                count = self._socket.recv_into(self._decoder.buffer())
            except TimeoutError as error:
                raise NoAnswerError(f"the service at {self.address} does not answer in time") from error
            except OSError as error:
                raise self._lost(error) from error
            if not count:
                raise NotConnectedError(f"the service at {self.address} has ended the connection")
            frame = self._decoder.advance(count)
        message = messages.decode(frame.head, has_body=bool(frame.body))
        return message, frame.body

    def ask(self, message: Message, kind: type[M], timeout_s: float = ANSWER_S) -> M:
        """Return the one answer to a request.

        Raises:
            ChronoLogError: the service could not do it.
            NotConnectedError: it is gone, or does not answer in time.
        """
        self.send(message)
        answer, _ = self.receive(time.monotonic() + timeout_s)
        raise_failure(answer)
        return expect(answer, kind)

    def has_news(self) -> bool:
        """Tell whether something has come that was not received yet, or the peer has ended the connection."""
        return bool(self._unread_bytes()) or readable([self.fileno()], 0.0)

    def is_alive(self) -> bool:
        """Tell whether the peer, which owes no answer, has neither ended the connection nor said anything."""
        try:
            self._socket.settimeout(0.0)
            self._socket.recv_into(bytearray(1))
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def close(self) -> None:
        """End the connection. In a forked child only the child's descriptor of it is closed."""
        if self.is_ours:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _lost(self, error: OSError) -> NotConnectedError:
        return NotConnectedError(f"the connection to the service at {self.address} is lost: {_reason(error)}")


class Connections:
    """Connections to one service, each for one question at a time.

    Thread safety: everything. A connection whose answer was not read to its end is closed: nothing else would stop what
    is under way.
    """

    def __init__(self, connect: Callable[[], Connection]) -> None:
        """Use the connections that `connect` makes."""
        self._connect = connect
        self._idle: list[Connection] = []

    @contextmanager
    def asking(self, question: Message) -> Iterator[Connection]:
        """Ask over a connection that nobody else uses meanwhile; the block reads the whole answer."""
        connection = self._take() or self._connect()
        try:
            connection.send(question)
            yield connection
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)

    def ask(self, question: Message, kind: type[M]) -> M:
        """Return the one answer to a question.

        Raises:
            ChronoLogError: the service could not do it.
        """
        with self.asking(question) as connection:
            answer, _ = connection.receive(time.monotonic() + ANSWER_S)
            if not isinstance(answer, Failure):
                return expect(answer, kind)
        raise error_of(answer)

    def greet(self) -> None:
        """Make sure that the service is there."""
        self._idle.append(self._take() or self._connect())

    def close(self) -> None:
        """End the idle connections."""
        while self._idle:
            self._idle.pop().close()

    def _take(self) -> Connection | None:
        """Return an idle connection whose peer is still there, if there is one."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_ours and connection.is_alive():
                return connection
            connection.close()
        return None


def require_listener(address: Address) -> None:
    """Make sure that somebody listens there, before anything else is asked for.

    Raises:
        NotConnectedError: nobody does.
    """
    _connected(address, CONNECT_S).close()


def readable(descriptors: Iterable[int], timeout_s: float) -> bool:
    """Wait until something can be read from one of some descriptors; tell whether it can."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(math.ceil(1000 * timeout_s)))


def raise_failure(message: Message) -> None:
    """Raise the error that a peer has told of, if this is what it tells."""
    if isinstance(message, Failure):
        raise error_of(message)


def _connected(address: Address, timeout_s: float) -> socket.socket:
    try:
        return socket.create_connection(address, timeout_s)
    except OSError as error:
        raise NotConnectedError(
            f"nothing answers at {address} ({_reason(error)}): is the deployment up ('chronolog status'), and is this its "
            "address?"
        ) from error


def _reason(error: OSError) -> str:
    return "no answer in time" if isinstance(error, TimeoutError) else error.strerror or str(error)


def _notice_a_dead_peer(connected: socket.socket) -> None:
    """Send small messages at once, and let the kernel find out when the peer's machine is gone."""
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", _SILENCE_S),
        ("TCP_KEEPINTVL", _PROBE_S),
        ("TCP_KEEPCNT", _PROBES),
        ("TCP_USER_TIMEOUT", 1000 * (_SILENCE_S + _PROBES * _PROBE_S)),
    ):
        if hasattr(socket, name):
            with suppress(OSError):
                connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
