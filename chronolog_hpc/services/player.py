"""ChronoPlayer: answers questions about stories whose events are on several keepers, and in the grapher's archive.

It keeps nothing: every answer is made of those of the others while it is sent. A page is made when the one before it
has gone to the kernel, and they do the same, so a reader that is slow, or never reads, costs a page of each of them.

A follower is told what all keepers have, in order. Where they have nothing a question hangs at each of them, and he is
told what the first one answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from typing import TypeVar

from chronolog_hpc.services.keepers import Bell, Keepers, News
from chronolog_hpc.services.questions import Answer, begun, described, packed, scanned, send_all, unchanged
from chronolog_hpc.services.registration import Registration
from chronolog_hpc.services.server import Service
from chronolog_hpc.services.session import Body, Session
from py_chronolog_client.engine.base import Snapshot
from py_chronolog_client.engine.connection import Address
from py_chronolog_client.wire import messages
from py_chronolog_client.wire.handshake import Identity
from py_chronolog_client.wire.messages import Message, pack_marks, unpack_marks

_READERS = 64
BELL_S = 10.0
"""So long questions hang at keepers; then they are asked again, and keepers that are new too."""
_AWAY_S = 0.2
"""So often a keeper that is away, or has never heard of the story, is asked again."""
_LOOK_S = 1.0
"""So often a follower to whom nothing happens is looked at: he may be gone."""

T = TypeVar("T")


class Player(Service):
    """A player of a deployment."""

    role = "player"

    def __init__(self, node: str, visor: Address, identity: Identity) -> None:
        """Prepare to answer.

        Args:
            node: name of the machine.
            visor: where it listens.
            identity: of the services.
        """
        self._node = node
        self._visor = visor
        self._identity = identity
        self._keepers = Keepers(visor, identity)
        self._readers = ThreadPoolExecutor(_READERS, "chronolog-play")

    async def started(self, address: Address) -> None:
        self._loop = asyncio.get_running_loop()
        register = messages.Register(self.role, self._node, *address)
        self._registration = Registration(self._visor, self._identity, register)

    async def stopping(self) -> None:
        self._registration.stop()
        self._keepers.close()

    async def stopped(self) -> None:
        self._readers.shutdown(cancel_futures=True)

    async def answer(self, session: Session, message: Message, body: Body) -> None:
        keepers = self._keepers.on_behalf_of(session.name)
        match message:
            case messages.TakeSnapshot(chronicle, story, uid):
                marks = await self._read(lambda: keepers.snapshot(chronicle, story, uid))
                await session.send(messages.Marks(pack_marks(marks)))
            case messages.ListClients():
                await send_all(session, described(keepers, message), self._readers)
            case messages.Scan():
                await send_all(session, scanned(keepers, message), self._readers)
            case messages.Follow():
                await self._follow(session, message, keepers)
            case _:
                raise self.unknown(message)

    async def _follow(self, session: Session, question: messages.Follow, keepers: Keepers) -> None:
        """Answer as soon as one keeper has something new; wait for keepers that are away as long as there is time."""
        story, cursor = (question.chronicle, question.story, question.uid), unpack_marks(question.cursor)
        deadline_s = self._loop.time() + question.timeout_ms / 1000
        while True:
            news = await self._read(lambda: keepers.news(*story, cursor))
            if await self._tell(session, question, news, cursor):
                return
            left_s = deadline_s - self._loop.time()
            if left_s <= 0 or not session.is_open:
                break
            pause_s = min(left_s, _AWAY_S if news.is_partial else BELL_S)
            if await self._tell_later(session, question, keepers, news, cursor, pause_s):
                return
        if news.away is not None:
            raise news.away
        await send_all(session, unchanged(question), self._readers)

    async def _tell(self, session: Session, question: messages.Follow, news: News, cursor: Snapshot) -> bool:
        """Answer a follower, if there is something new."""
        try:
            if news.first is None and news.next_cursor(cursor) == cursor:
                return False
            await send_all(session, _told(question, news, cursor), self._readers)
            return True
        finally:
            await self._read(news.pages.close)

    async def _tell_later(
        self,
        session: Session,
        question: messages.Follow,
        keepers: Keepers,
        news: News,
        cursor: Snapshot,
        timeout_s: float,
    ) -> bool:
        """Answer as soon as a keeper has something new; a follower to whom nothing happens costs no thread."""
        bells = await self._read(lambda: keepers.bells(news, cursor, timeout_s))
        try:
            rung = await self._first_rung(session, bells, timeout_s)
            later = await self._read(lambda: keepers.rung(news, rung, cursor))
            return await self._tell(session, question, later, cursor)
        finally:
            for bell in bells:
                bell.question.close()

    async def _first_rung(self, session: Session, bells: list[Bell], timeout_s: float) -> list[Bell]:
        """Return the bells that ring first; none if the time is over, or the session."""
        deadline_s = self._loop.time() + timeout_s
        rung: list[Bell] = []
        has_rung = asyncio.Event()

        def ring(bell: Bell) -> None:
            self._loop.remove_reader(bell.question.fileno())
            rung.append(bell)
            has_rung.set()

        try:
            for bell in bells:
                self._loop.add_reader(bell.question.fileno(), ring, bell)
            while session.is_open and not rung and (left_s := deadline_s - self._loop.time()) > 0:
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(has_rung.wait(), min(left_s, _LOOK_S))
        finally:
            for bell in bells:
                self._loop.remove_reader(bell.question.fileno())
        return rung

    async def _read(self, action: Callable[[], T]) -> T:
        return await self._loop.run_in_executor(self._readers, action)


def _told(question: messages.Follow, news: News, cursor: Snapshot) -> Iterator[Answer]:
    """Answer a follower."""
    yield from begun(question, {})
    if news.first is not None:
        yield from packed(chain([news.first], news.pages))
    yield messages.Marks(pack_marks(news.next_cursor(cursor))), []
