"""One connection of a service: bytes in, requests out, with a deadline, a limit or a pause for everything.

A session reads straight into the frame decoder. Requests that have arrived wait in a queue; when it is full the
socket is not read, so a peer that sends faster than it is served is stopped by TCP. `send` waits while the peer does
not read. So what a connection costs in memory does not depend on what the peer does.

A session ends when the peer has ended it and everything that had arrived is answered, when the peer says what the
protocol does not allow, or when the server stops. A peer that is sent away is told why first: the session goes on
reading for a moment, and forgets what it reads, because closing a socket with unread bytes would take the last words
back.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from chronolog_hpc.services.tls import Channel
from py_chronolog_client.errors import ChronoLogError, NotAuthorizedError, ProtocolError
from py_chronolog_client.wire import messages
from py_chronolog_client.wire.failures import failure_of
from py_chronolog_client.wire.frames import FrameDecoder, frame_bytes
from py_chronolog_client.wire.handshake import ServiceHandshake
from py_chronolog_client.wire.messages import Failure, Message

if TYPE_CHECKING:
    from chronolog_hpc.services.server import Server

HANDSHAKE_S = 5.0
"""A peer that has not proven who it is by then is sent away."""
LINGER_S = 2.0
"""So long a peer that is sent away, or a socket that is closed, may take to read the last words."""

_QUEUE_BYTES = 2**20
_QUEUE_FRAMES = 256
_FRAME_BYTES = 1024
_UNSENT_BYTES = 2**18
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}

logger = logging.getLogger("chronolog_hpc.services")

Body = bytes | bytearray


class GoneError(Exception):
    """The peer has ended the connection."""


class Session(asyncio.BufferedProtocol):
    """One connection.

    Attributes:
        peer: the peer's address, for sentences.
        name: who the peer is, once that is proven; "" before.
        counts: how often what has happened in this service.
        is_open: whether the peer is there and the server is not stopping; an answer that takes long looks at it.
        waiting_bytes: about what requests take that have arrived and are not begun.
    """

    def __init__(self, server: Server) -> None:
        self.peer = "?"
        self.name = ""
        self.is_open = True
        self.task: asyncio.Task[None] | None = None
        self.counts = server.counts
        self._server = server
        self._decoder = FrameDecoder()
        self._channel = None if server.tls is None else Channel(server.tls)
        self._frames: deque[tuple[Message, Body]] = deque()
        self.waiting_bytes = 0
        self._fault: ChronoLogError | None = None
        self._deaf = self._leaving = self._peer_ended = False
        self._changed = asyncio.Event()
        self._gone = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._sending = asyncio.Lock()

    def __str__(self) -> str:
        return f"{self.peer} ({self.name or 'unknown'})"

    # -- what a service uses --

    @property
    def waiting_requests(self) -> int:
        """How many requests have arrived and are not begun."""
        return len(self._frames)

    async def send(self, message: Message, body: Sequence[bytes | bytearray | memoryview] = ()) -> None:
        """Send a message; return when nearly all of it is with the kernel.

        Several tasks may send at the same time.

        Args:
            message: what to say.
            body: pieces of the bulk that goes with it; they must not change until this returns.

        Raises:
            GoneError: the peer is gone; let it through, it ends the session.
        """
        views = [memoryview(piece).cast("B") for piece in body if len(piece)]
        body_bytes = sum(view.nbytes for view in views)
        head = frame_bytes(messages.encode(message), body_bytes)
        self.counts["bytes_out"] += len(head) + body_bytes
        async with self._sending:
            for view in (memoryview(head), *views):
                for start in range(0, view.nbytes, _UNSENT_BYTES):
                    if self._gone.is_set() or self._leaving or self._transport.is_closing():
                        raise GoneError(f"{self} is gone")
                    piece = view[start : start + _UNSENT_BYTES]
                    self._transport.write(piece if self._channel is None else self._channel.seal(piece))
                    await self._writable.wait()

    def log(self, level: int, sentence: str) -> None:
        """Write to the log, with the name of the peer."""
        logger.log(level, "%s: %s", self, sentence)

    def close(self) -> None:
        """Take no more requests; the session ends when those that have arrived are answered."""
        self.is_open = False
        self._changed.set()
        self._pace()

    def abort(self) -> None:
        """End at once."""
        self.close()
        self._frames.clear()
        self._transport.abort()

    # -- what the event loop calls --

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_UNSENT_BYTES)
        host, port = (self._transport.get_extra_info("peername") or ("?", 0))[:2]
        self.peer = f"{host}:{port}"
        _notice_a_dead_peer(self._transport.get_extra_info("socket"))
        if self._server.welcomes(self):
            self.task = asyncio.create_task(self._run())
        else:
            self._deaf = True
            self._transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._deaf:
            return memoryview(bytearray(_UNSENT_BYTES))
        return self._decoder.buffer() if self._channel is None else self._channel.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        self.counts["bytes_in"] += nbytes
        if self._deaf:
            return
        try:
            news = self._hear(nbytes) if self._channel is None else self._decrypt(self._channel, nbytes)
        except ProtocolError as error:
            self._fault, self._deaf, news = error, True, True
        if news:
            self._changed.set()
            self._pace()

    def _hear(self, nbytes: int) -> bool:
        """Take note of bytes in the decoder's buffer; return whether they complete a request."""
        frame = self._decoder.advance(nbytes)
        if frame is None:
            return False
        self._frames.append((messages.decode(frame.head, has_body=bool(frame.body)), frame.body))
        self.waiting_bytes += _FRAME_BYTES + len(frame.body)
        return True

    def _decrypt(self, channel: Channel, nbytes: int) -> bool:
        """Take note of bytes in the channel's buffer; return whether they complete a request."""
        if not channel.receive(nbytes):
            self._channel = None  # the last words are for somebody without TLS
            raise ProtocolError(
                "this service speaks TLS only: copy run/certificate.pem from the deployment, and name it in "
                "CHRONOLOG_CERTIFICATE"
            )
        news = False
        try:
            while count := channel.read_into(self._decoder.buffer()):
                news = self._hear(count) or news
        finally:
            self._transport.write(channel.unsent())
        if count is not None:
            self.eof_received()
        return news

    def eof_received(self) -> bool:
        self._peer_ended = self._deaf = True
        self.close()
        return not self._leaving  # what has arrived is still answered

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        self._channel = None  # 40 KiB that would wait for the garbage collector
        self._gone.set()
        self._changed.set()
        self._writable.set()
        if self.task is None:
            self._server.forget(self)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # -- the life of a session --

    async def _run(self) -> None:
        try:
            await self._serve()
            self._say_goodbye()
            self._transport.close()  # when all that was said is with the kernel
            await self._until_gone()
        except GoneError as error:
            self.log(logging.DEBUG, str(error))
        except ChronoLogError as error:
            unauthorized = isinstance(error, NotAuthorizedError)
            self.counts["connections_unauthorized" if unauthorized else "connections_rejected"] += 1
            self.log(logging.WARNING, f"sent away: {error}")
            await self._send_away(failure_of(error))
        finally:
            self._transport.abort()
            self._server.forget(self)

    async def _serve(self) -> None:
        try:
            await asyncio.wait_for(self._greet(), HANDSHAKE_S)
        except asyncio.TimeoutError:
            raise ProtocolError(f"the peer did not say who it is within {HANDSHAKE_S:g} s") from None
        self._server.knows(self)
        try:
            while (request := await self._next()) is not None:
                await self._answer(*request)
        finally:
            self.is_open = False
            await self._server.service.ended(self)

    async def _greet(self) -> None:
        tls = self._server.tls
        binding = b"" if tls is None else tls.binding
        handshake = ServiceHandshake(self._server.service.role, self._server.tokens, binding)
        while not self.name:
            request = await self._next()
            if request is None:
                raise GoneError(f"{self} has ended before it said who it is")
            answer = handshake.receive(request[0])
            self.name = handshake.name or ""
            if self.name:
                self._decoder.limits = self._server.service.limits
            await self.send(answer)

    async def _next(self) -> tuple[Message, Body] | None:
        """Return the next request, or None where there will be none."""
        while not self._frames:
            if self._fault is not None:
                raise self._fault
            if not self.is_open:
                return None
            self._changed.clear()
            await self._changed.wait()
        message, body = self._frames.popleft()
        self.waiting_bytes -= _FRAME_BYTES + len(body)
        self._pace()
        return message, body

    async def _answer(self, message: Message, body: Body) -> None:
        self.counts["requests"] += 1
        try:
            await self._server.answer(self, message, body)
        except (GoneError, ProtocolError):
            raise
        except (ChronoLogError, OSError) as error:
            self.counts["requests_failed"] += 1
            self.log(logging.INFO, f"{type(message).__name__} failed: {error}")
            await self.send(failure_of(error))
        except Exception as error:
            self.counts["requests_failed"] += 1
            logger.exception("%s: a defect in answering %s", self, type(message).__name__)
            await self.send(failure_of(error))

    async def _send_away(self, failure: Failure) -> None:
        """Tell the peer why, and give it a moment to read that."""
        self._deaf = True
        if self._channel is not None and not self._channel.is_open:
            return
        with suppress(GoneError, asyncio.TimeoutError):
            await asyncio.wait_for(self.send(failure), LINGER_S)
            self._leaving = True
            self._say_goodbye()
            self._transport.write_eof()
            if not self._peer_ended:
                self._transport.resume_reading()
                await self._until_gone()

    def _say_goodbye(self) -> None:
        if self._channel is not None:
            self._transport.write(self._channel.goodbye())

    async def _until_gone(self) -> None:
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._gone.wait(), LINGER_S)

    def _pace(self) -> None:
        """Read from the socket as long as there is room for requests."""
        if self._gone.is_set() or self._transport.is_closing():
            return
        full = self.waiting_bytes > _QUEUE_BYTES or len(self._frames) > _QUEUE_FRAMES
        if full or not self.is_open or self._fault is not None:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()


def _notice_a_dead_peer(connected: socket.socket) -> None:
    """Let the kernel find out when the machine of a silent peer is gone."""
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            with suppress(OSError):
                connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
