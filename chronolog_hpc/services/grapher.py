"""ChronoGrapher: the archive of a deployment. Keepers hand sealed segments over to it, and it merges them into chunks.

A segment that arrives is written beside the story's files, and appears among them when it is whole and on the device;
only then does the keeper hear that it may delete its own. Before it is let in, the visor is asked whether the story is
still there, and what holds for it: no story is archived that was destroyed while its segments were on their way, for
what is destroyed after the visor has answered is forgotten behind the same lock.

What becomes of segments then is the affair of `tending`.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from pathlib import Path

from chronolog_hpc.services.handing import Place
from chronolog_hpc.services.policy import PACE, RETENTION, TIERING, Pace
from chronolog_hpc.services.session import Body, Session
from chronolog_hpc.services.storing import StoreService
from chronolog_hpc.services.tending import Tending
from py_chronolog_client.engine.connection import Address, Connection, Connections
from py_chronolog_client.errors import ChronoLogError, NotFoundError, ProtocolError
from py_chronolog_client.store.deposit import Deposit, Deposits
from py_chronolog_client.wire import messages
from py_chronolog_client.wire.failures import refusal_of
from py_chronolog_client.wire.handshake import SERVICE_NAME, Identity
from py_chronolog_client.wire.messages import Message


@dataclass(eq=False, slots=True)
class _Stream:
    """A segment on its way in."""

    place: Place
    deposit: Deposit
    size_bytes: int = 0
    is_over: bool = False
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Whoever has it may do something with the deposit."""


class Grapher(StoreService):
    """The grapher of a deployment."""

    role = "grapher"
    is_last = True

    def __init__(
        self, directory: Path, node: str, visor: Address, identity: Identity, pace: Pace = PACE
    ) -> None:
        """Open the archive, as `StoreService` does.

        Args:
            directory: of the store.
            node: name of the machine.
            visor: where it listens.
            identity: of the services.
            pace: when segments are merged, and when it is looked for what has expired.
        """
        super().__init__(directory, node, visor, identity)
        self._pace = pace
        self._registry = Connections(lambda: Connection(visor, identity, "visor"))
        self._changing = asyncio.Lock()
        self._streams: dict[tuple[Session, int], _Stream] = {}
        self._deposits: dict[tuple[str, str, int], Deposits] = {}

    async def started(self, address: Address) -> None:
        await super().started(address)
        self._tending = Tending(self._stories, self._pace)

    async def stopped(self) -> None:
        await asyncio.to_thread(self._tending.stop)
        await super().stopped()
        self._registry.close()

    def levels(self) -> dict[str, int]:
        return {"streams": len(self._streams)}

    async def ended(self, session: Session) -> None:
        async with self._changing:
            for key in [key for key in self._streams if key[0] is session]:
                await self._abandon(key)

    async def answer(self, session: Session, message: Message, body: Body) -> None:
        match message:
            case messages.Open():
                self.require_service(session, message)
                await self._open(session, message)
            case messages.Block(number):
                await self._take(session, number, body)
            case messages.Seal(number):
                await self._publish(session, number)
            case _:
                await super().answer(session, message, body)

    # -- taking in --

    async def _open(self, session: Session, message: messages.Open) -> None:
        place = Place(message.chronicle, message.story, message.uid, message.client_id)
        async with self._changing:
            for key, stream in list(self._streams.items()):
                if key == (session, message.stream) or stream.place == place:
                    await self._abandon(key)
            try:
                deposit = await self._write(lambda: self._deposit(place))
            except (ChronoLogError, OSError) as error:
                session.log(logging.WARNING, f"{place} is not opened: {error}")
                await session.send(refusal_of(message.stream, error))
                return
            self._streams[session, message.stream] = _Stream(place, deposit)
        await session.send(messages.Opened(message.stream, deposit.sequence, False))

    def _deposit(self, place: Place) -> Deposit:
        located = self._registry.ask(
            messages.Locate(place.chronicle, place.story, SERVICE_NAME), messages.Located
        )
        if located.uid != place.uid:
            raise NotFoundError(f"the story {place.story!r:.200} was destroyed, and made again")
        policy = {
            name: located.attributes[name] for name in (TIERING, RETENTION) if name in located.attributes
        }
        directory = self._stories.make(*place[:3], policy)
        if place[:3] not in self._deposits:
            self._deposits[place[:3]] = Deposits(self._stories.root, directory)
        return self._deposits[place[:3]].open(place.client_id)

    async def _take(self, session: Session, number: int, body: Body) -> None:
        stream = self._stream(session, number)
        async with stream.writing:
            if stream.is_over:  # it was sent before the keeper knew that
                return
            stream.size_bytes += len(body)
            try:
                await self._write(lambda: stream.deposit.append(body))
            except (ChronoLogError, OSError) as error:
                await self._refuse(session, number, stream, error)

    async def _publish(self, session: Session, number: int) -> None:
        """Let a segment appear that has come to its end."""
        stream = self._stream(session, number)
        try:
            async with self._changing:
                if stream.is_over:
                    return
                stream.is_over = True
                sequence = await self._write(stream.deposit.publish)
            await self._write(lambda: self._tending.note(stream.place[:3], stream.size_bytes))
        except (ChronoLogError, OSError) as error:
            await self._refuse(session, number, stream, error)
            return
        await session.send(messages.Ack(number, sequence))

    def _stream(self, session: Session, number: int) -> _Stream:
        stream = self._streams.get((session, number))
        if stream is None:
            raise ProtocolError(f"a block on stream {number}, which was never opened")
        return stream

    async def _refuse(self, session: Session, number: int, stream: _Stream, error: Exception) -> None:
        stream.is_over = True
        session.log(logging.WARNING, f"a segment of {stream.place} is refused: {error}")
        await session.send(refusal_of(number, error))

    async def _abandon(self, key: tuple[Session, int]) -> None:
        stream = self._streams.pop(key)
        async with stream.writing:
            stream.is_over = True
            await self._write(stream.deposit.abandon)

    async def _drop(self, drop: messages.Drop) -> None:
        async with self._changing:
            for key, stream in list(self._streams.items()):
                if _covers(drop, stream.place[:3]):
                    await self._abandon(key)
            for story in [story for story in self._deposits if _covers(drop, story)]:
                del self._deposits[story]
            await self._write(lambda: self._stories.forget(drop))


def _covers(drop: messages.Drop, story: tuple[str, str, int]) -> bool:
    chronicle, name, uid = story
    return chronicle == drop.chronicle and drop.story in ("", name) and uid <= drop.uid
