"""A keeper, grapher or player makes itself known to its visor, for as long as both live.

The registration is a connection that stays open. When it ends, for whatever reason, it is made again, for ever: the
services of a deployment may be started and restarted in any order. Over the same connection the visor says which
stories were destroyed, so it never has to reach anybody.

It has a thread of its own, with the blocking connection that clients use: nothing else has to be answered there.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from py_chronolog_client.engine.connection import Address, Connection, raise_failure
from py_chronolog_client.errors import ChronoLogError, ProtocolError
from py_chronolog_client.wire import messages
from py_chronolog_client.wire.failures import failure_of
from py_chronolog_client.wire.handshake import Identity
from py_chronolog_client.wire.messages import Message

_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 0.5

logger = logging.getLogger("chronolog_hpc.services")


class Registration:
    """Registers a service with its visor until it is stopped."""

    def __init__(
        self,
        visor: Address,
        identity: Identity,
        register: messages.Register,
        drop: Callable[[messages.Drop], None] | None = None,
    ) -> None:
        """Begin in a thread.

        Args:
            visor: where it listens.
            identity: of the services.
            register: who registers, and where it listens.
            drop: forgets a story, in that thread; None for a service that keeps none.
        """
        self._visor = visor
        self._identity = identity
        self._register = register
        self._drop = drop
        self._connection: Connection | None = None
        self._stopped = threading.Event()
        self._said = ""
        self._pause_s = _SHORTEST_PAUSE_S
        self._thread = threading.Thread(target=self._run, name="chronolog-registration", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the registration."""
        self._stopped.set()
        connection = self._connection
        if connection is not None:
            connection.close()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                connection = Connection(self._visor, self._identity, "visor")
                try:
                    self._connection = connection
                    self._stay(connection)
                finally:
                    self._connection = None
                    connection.close()
            except ChronoLogError as error:
                if not self._stopped.is_set():
                    self._say(logging.WARNING, f"not registered with the visor at {self._visor}: {error}")
            self._stopped.wait(self._pause_s)
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)

    def _stay(self, connection: Connection) -> None:
        """Register, and do what the visor says until it ends the connection."""
        connection.send(self._register)
        while not self._stopped.is_set():
            message, _ = connection.receive()
            raise_failure(message)
            if isinstance(message, messages.Drop) and self._drop is not None:
                connection.send(self._dropped(message, self._drop))
            elif isinstance(message, messages.Done):
                self._pause_s = _SHORTEST_PAUSE_S
                self._say(logging.INFO, f"registered with the visor at {self._visor}")
            else:
                raise ProtocolError(f"a visor does not say {type(message).__name__} here")

    def _dropped(self, message: messages.Drop, drop: Callable[[messages.Drop], None]) -> Message:
        """Forget a story; return the answer: what fails now is asked again at the next registration."""
        try:
            drop(message)
        except (ChronoLogError, OSError) as error:
            logger.error("story %r of %r is not dropped: %s", message.story, message.chronicle, error)
            return failure_of(error)
        return messages.Done()

    def _say(self, level: int, sentence: str) -> None:
        """Write to the log what has not just been said."""
        if sentence != self._said:
            self._said = sentence
            logger.log(level, "%s", sentence)
