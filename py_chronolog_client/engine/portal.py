"""The visor's portal, for somebody who must not wait for it: a thread that asks it one question after another.

A visor that is away is noticed at once, and one whose machine hangs, or to which a cable is cut, after seconds.
Whoever asks goes on meanwhile, and is woken when his question is answered.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

from py_chronolog_client.engine.connection import Address, Connection
from py_chronolog_client.errors import ChronoLogError, NotConnectedError
from py_chronolog_client.wire import messages
from py_chronolog_client.wire.handshake import Identity

RETRY_S = 0.25
"""Whoever could not be reached is left alone for so long."""

_CHECK_S = 0.5
"""So often it is looked at whether an idle connection has ended."""
_ANSWER_S = 10.0

logger = logging.getLogger("py_chronolog_client")

Request = messages.Acquire | messages.Release


class Question:
    """What is asked, and what became of it.

    Attributes:
        request: what is asked.
        is_off: set by whoever does not want to know any more: it is not asked then if it was not yet.
        is_done: whether nothing more will come of it.
        connection: over which it was answered; None where it was not.
        acquired: the answer to an `Acquire`.
        error: what the visor has answered instead, or why it could not be asked.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.is_off = self.is_done = False
        self.connection: Connection | None = None
        self.acquired: messages.Acquired | None = None
        self.error: ChronoLogError | None = None


class Portal:
    """A connection to the visor that is made when somebody asks, and again when it was lost.

    Attributes:
        connection: the present one: what was acquired over it is held for as long as it is this one.
    """

    def __init__(self, address: Address, identity: Identity, wake: Callable[[], None]) -> None:
        """Start the thread.

        Args:
            address: of the visor.
            identity: who this is.
            wake: is called when a question is done, or the connection is lost.
        """
        self.connection: Connection | None = None
        self._address = address
        self._identity = identity
        self._wake = wake
        self._away: ChronoLogError | None = None
        self._retry_at_s = 0.0
        self._stopping = False
        self._questions: queue.SimpleQueue[Question | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="chronolog-portal", daemon=True)
        self._thread.start()

    def ask(self, request: Request) -> Question:
        """Ask after everything that was asked before; the question says later what was answered."""
        question = Question(request)
        self._questions.put(question)
        return question

    def stop(self) -> None:
        """End the thread and the connection; what is not answered never will be."""
        self._stopping = True
        self._questions.put(None)
        self.forget()
        self._thread.join()
        self.forget()

    def forget(self) -> None:
        """Close the connection; in a forked child what was inherited of it."""
        connection = self.connection
        if connection is not None:
            connection.close()

    def _run(self) -> None:
        while not self._stopping:
            try:
                question = self._questions.get(timeout=_CHECK_S)
            except queue.Empty:
                if self.connection is not None and not self.connection.is_alive():
                    self._lose()
                    self._wake()
                continue
            if question is not None:
                try:
                    self._answer(question)
                except Exception:  # a defect here must not be the end of all questions
                    logger.exception("the portal goes on after an error")
                question.is_done = True
                self._wake()

    def _answer(self, question: Question) -> None:
        if question.is_off:
            return
        try:
            connection = self._connected()
        except ChronoLogError as error:
            question.error = error
            return
        try:
            if isinstance(question.request, messages.Acquire):
                question.acquired = connection.ask(question.request, messages.Acquired, _ANSWER_S)
            else:
                connection.ask(question.request, messages.Done, _ANSWER_S)
        except NotConnectedError as error:
            self._lose()
            question.error = error
            return
        except ChronoLogError as error:
            question.error = error
        question.connection = connection

    def _connected(self) -> Connection:
        if self.connection is None:
            if self._away is not None and time.monotonic() < self._retry_at_s:
                raise self._away
            try:
                self.connection = Connection(self._address, self._identity, "visor")
            except ChronoLogError as error:
                self._away, self._retry_at_s = error, time.monotonic() + RETRY_S
                raise
        return self.connection

    def _lose(self) -> None:
        if self.connection is not None:
            self.connection.close()
        self.connection = None
