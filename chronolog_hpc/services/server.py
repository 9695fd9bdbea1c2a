"""A service: what a role implements, and the server that runs it until it is told to stop.

A role is a subclass of `Service` with one method. It is called with one request after another of a session, and
sends its answers with `session.send`:

    class Echo(Service):
        role = "echo"

        async def answer(self, session, message, body):
            match message:
                case messages.ListChronicles():
                    await session.send(messages.Names(["one"], False))
                case _:
                    raise self.unknown(message)

What it raises becomes an answer: an error of the tree or an OSError is sent as a Failure and the session goes on; a
ProtocolError is sent and ends it; anything else is a defect, with a traceback in the log. The next request of a session
comes when `answer` has returned; other sessions are served meanwhile, so what may take long is done in a thread
(`asyncio.to_thread`). `session.name` is who asks, `session.is_open` turns false when an answer need not be finished.

    server = Server(Echo(), tokens)
    address = await server.listen("127.0.0.1", 0)
    await server.run()          # until SIGTERM, SIGINT or `server.stop()`

The server keeps few things: a cap on sessions, a cap on those that have not yet said who they are (the oldest of
them goes when another comes: who means it well is known within milliseconds), and counts, which it tells other
services when they ask.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import socket
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar

from chronolog_hpc.services.counting import TOTALS, Course, own_process
from chronolog_hpc.services.session import Body, Session
from chronolog_hpc.services.tls import ServiceTls
from py_chronolog_client.engine.connection import Address
from py_chronolog_client.errors import NotAuthorizedError, ProtocolError
from py_chronolog_client.wire import messages
from py_chronolog_client.wire.frames import MAX_HEAD_BYTES, Limits
from py_chronolog_client.wire.handshake import SERVICE_NAME
from py_chronolog_client.wire.messages import Message

MAX_SESSIONS = 4096
"""So many connections at once; half of the limit of open files, if that is less."""
MAX_UNKNOWN = 256
"""So many of them may not yet have said who they are."""
STOP_S = 10.0
"""So long what was begun may take when the server stops."""

_BACKLOG = 1024
_AT_ONCE = 4
"""So many connections are accepted at a time: each takes a file for some turns of the loop, also where it is refused."""

logger = logging.getLogger("chronolog_hpc.services")


class Service(ABC):
    """A role in a deployment.

    Attributes:
        role: its name on the wire: "visor", "keeper", "grapher", "player".
        limits: how large requests may be.
    """

    role: ClassVar[str]
    limits: ClassVar[Limits] = Limits(MAX_HEAD_BYTES, 0)

    @abstractmethod
    async def answer(self, session: Session, message: Message, body: Body) -> None:
        """Answer one request."""

    async def started(self, address: Address) -> None:  # noqa: B027  most roles have nothing to begin
        """Begin what goes on beside the requests; the server listens at `address`."""

    async def ended(self, session: Session) -> None:  # noqa: B027  most roles remember nothing of a session
        """Forget a session from which no more requests will come; answers that are due may still be sent."""

    async def stopping(self) -> None:  # noqa: B027  most roles wait for nobody
        """Let go of whoever is waited for; sessions take no more requests."""

    async def stopped(self) -> None:  # noqa: B027  most roles have nothing to finish
        """Finish what goes on beside the requests; all sessions have ended."""

    def levels(self) -> dict[str, int]:
        """Return what there is of something at this moment, by the names in `counting.LEVELS`."""
        return {}

    def require_service(self, session: Session, message: Message) -> None:
        """Make sure that a request comes from a service of this deployment.

        Raises:
            NotAuthorizedError: it does not.
        """
        if session.name != SERVICE_NAME:
            raise NotAuthorizedError(
                f"{type(message).__name__} is for the services of this deployment, and {session.name!r} is none"
            )

    def unknown(self, message: Message) -> ProtocolError:
        """Return the error for a request that is none of this role's."""
        return ProtocolError(f"this {self.role} does not answer {type(message).__name__}")


class Server:
    """Listens at an address and serves everybody who has a token.

    Attributes:
        service: what answers.
        tokens: name -> secret.
        tls: its certificate; None: it speaks in the clear.
        counts: how often what has happened, by the names in `counting.TOTALS`.
    """

    def __init__(self, service: Service, tokens: Mapping[str, bytes], tls: ServiceTls | None = None) -> None:
        self.service = service
        self.tokens = tokens
        self.tls = tls
        self.counts = Counter(dict.fromkeys(TOTALS, 0))
        self._course = Course(self._counters)
        self._sessions: set[Session] = set()
        self._unknown: dict[Session, None] = {}
        self._stopping = asyncio.Event()
        self._max_sessions = min(MAX_SESSIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)

    async def listen(self, host: str, port: int) -> Address:
        """Begin to listen; return where.

        Args:
            host: an address or name of this machine.
            port: 0 for any that is free.

        Raises:
            OSError: there is no such address here, or somebody else listens there.
        """
        self._course.begin()
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_log_trouble)
        for number in (signal.SIGTERM, signal.SIGINT):  # who hears where it listens may tell it to stop
            loop.add_signal_handler(number, self.stop)
        self._listener = await loop.create_server(lambda: Session(self), host, port, backlog=_AT_ONCE)
        for listening in self._listener.sockets:
            with socket.socket(fileno=os.dup(listening.fileno())) as same:
                same.listen(_BACKLOG)
        address = Address(*self._listener.sockets[0].getsockname()[:2])
        await self.service.started(address)
        return address

    async def run(self) -> None:
        """Serve until SIGTERM, SIGINT or `stop`; then finish what was begun."""
        await self._stopping.wait()
        self._listener.close()
        for session in list(self._sessions):
            session.close()
        await self.service.stopping()
        tasks = [session.task for session in self._sessions if session.task is not None]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=STOP_S)
            for session in list(self._sessions):
                session.log(logging.WARNING, f"was not served to the end in {STOP_S:g} s")
                session.abort()
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self.service.stopped()
        logger.info(
            "stopped: %s", ", ".join(f"{name} {count}" for name, count in sorted(self.counts.items()))
        )

    def stop(self) -> None:
        """Let `run` come to an end."""
        self._stopping.set()

    # -- what sessions ask --

    async def answer(self, session: Session, message: Message, body: Body) -> None:
        """Answer one request: what is the same in all roles here, and all else by the service."""
        if isinstance(message, messages.ReadCounters):
            self.service.require_service(session, message)
            await session.send(self._course.told())
        else:
            await self.service.answer(session, message, body)

    def welcomes(self, session: Session) -> bool:
        """Tell whether there is room for a new session, and make it if somebody does not say who he is."""
        self.counts["connections_accepted"] += 1
        if self._stopping.is_set() or len(self._sessions) >= self._max_sessions:
            self.counts["connections_refused"] += 1
            session.log(logging.WARNING, f"refused: there are {len(self._sessions)} connections already")
            return False
        if len(self._unknown) >= MAX_UNKNOWN:
            oldest = next(iter(self._unknown))
            del self._unknown[oldest]
            self.counts["connections_refused"] += 1
            oldest.abort()
        self._sessions.add(session)
        self._unknown[session] = None
        return True

    def knows(self, session: Session) -> None:
        """Take note that a session has proven who it is."""
        self._unknown.pop(session, None)
        session.log(logging.DEBUG, "connected")

    def forget(self, session: Session) -> None:
        """Take note that a session has ended."""
        self._sessions.discard(session)
        self._unknown.pop(session, None)

    def _counters(self) -> dict[str, int]:
        levels = {
            "connections": len(self._sessions),
            "connections_unknown": len(self._unknown),
            "waiting_requests": sum(session.waiting_requests for session in self._sessions),
            "waiting_bytes": sum(session.waiting_bytes for session in self._sessions),
        }
        return {**self.counts, **levels, **own_process(), **self.service.levels()}


def _log_trouble(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Say in one line what the event loop cannot do, such as accepting with no file left; the rest are defects."""
    error = context.get("exception")
    if isinstance(error, OSError):
        logger.error("%s: %s", context.get("message"), error)
    else:
        loop.default_exception_handler(context)
