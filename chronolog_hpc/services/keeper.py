"""ChronoKeeper: takes in the events of many clients, and answers questions about what it has.

Blocks that arrive are checked and written in threads, so that neither a disk nor a large block stops the event loop; a
session waits for its own block only. A durable stream is answered when a sync has brought the block to the device: all
blocks of a client that arrive during one sync share the next.

What a client has finished goes on to the grapher (`handing`). The keeper seals segments for that: it alone knows
whether a sender is writing to one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from chronolog_hpc.services.handing import Handing, Place
from chronolog_hpc.services.policy import PACE, Pace
from chronolog_hpc.services.questions import Follower, send_all, unchanged
from chronolog_hpc.services.session import Body, GoneError, Session
from chronolog_hpc.services.storing import StoreService
from chronolog_hpc.services.tickets import Passage, require_ticket
from py_chronolog_client.engine.connection import Address
from py_chronolog_client.errors import (
    ChronoLogError,
    InvalidArgumentError,
    NotFoundError,
    ProtocolError,
    StoreError,
)
from py_chronolog_client.store.intake import Intake
from py_chronolog_client.wire import messages
from py_chronolog_client.wire.failures import refusal_of
from py_chronolog_client.wire.handshake import Identity
from py_chronolog_client.wire.messages import Message, unpack_marks

_LOOK_S = 1.0
"""So often a follower to whom nothing happens is looked at: he may be gone."""


@dataclass(eq=False, slots=True)
class _Entry:
    """An intake that is open, and who waits for its next sync."""

    intake: Intake
    streams: int = 0
    counted: int = 0
    """How many of the events that it took were counted."""
    is_retired: bool = False
    """Whether its story was destroyed."""
    waiting: deque[tuple[_Stream, int]] = field(default_factory=deque)
    """What is to be acknowledged when it is on the device."""
    syncing: asyncio.Task[None] | None = None


@dataclass(eq=False, slots=True)
class _Stream:
    """One client's way through one connection."""

    session: Session
    number: int
    place: Place
    entry: _Entry
    durable: bool
    is_over: bool = False


class Keeper(StoreService):
    """The keeper of a node."""

    role = "keeper"
    is_last = False

    def __init__(
        self, directory: Path, node: str, visor: Address, identity: Identity, pace: Pace = PACE
    ) -> None:
        """Open the store of the keeper, as `StoreService` does.

        Args:
            directory: of the store.
            node: name of the machine.
            visor: where it listens.
            identity: of the services.
            pace: when events are handed over.
        """
        super().__init__(directory, node, visor, identity)
        self._pace = pace
        self._opening = asyncio.Lock()
        self._entries: dict[Place, _Entry] = {}
        self._streams: dict[Session, dict[int, _Stream]] = {}
        self._followers: dict[Session, Follower] = {}
        self._ears: dict[tuple[str, str], set[asyncio.Event]] = {}

    async def started(self, address: Address) -> None:
        await super().started(address)
        self._handing = Handing(self._stories, self._visor, self._identity, self._seal_when_told, self._pace)

    async def ended(self, session: Session) -> None:
        self._followers.pop(session, None)
        for stream in self._streams.pop(session, {}).values():
            await self._leave(stream)

    async def stopping(self) -> None:
        await asyncio.to_thread(self._handing.stop)

    def levels(self) -> dict[str, int]:
        return {
            "streams": sum(map(len, self._streams.values())),
            "waiting_for_sync": sum(len(entry.waiting) for entry in self._entries.values()),
        }

    async def answer(self, session: Session, message: Message, body: Body) -> None:
        match message:
            case messages.Block(number):
                stream = self._streams.get(session, {}).get(number)
                if stream is None:
                    raise ProtocolError(f"a block on stream {number}, which was never opened")
                if not stream.is_over:  # otherwise it was sent before the sender knew that
                    await self._take(stream, body)
            case messages.Open():
                await self._open(session, message)
            case messages.Follow():
                self.require_service(session, message)
                await self._follow(session, message)
            case _:
                await super().answer(session, message, body)

    # -- taking in --

    async def _open(self, session: Session, message: messages.Open) -> None:
        """Begin a stream; where that fails, the stream is over before it has begun."""
        streams = self._streams.setdefault(session, {})
        if (before := streams.pop(message.stream, None)) is not None:
            await self._leave(before)
        place = Place(message.chronicle, message.story, message.uid, message.client_id)
        try:
            require_ticket(message.ticket, Passage(session.name, *place), self._identity)
            entry = await self._enter(place, self._made)
        except (ChronoLogError, OSError) as error:
            session.log(logging.WARNING, f"{place} is not opened: {error}")
            await session.send(refusal_of(message.stream, error))
            return
        stream = streams[message.stream] = _Stream(session, message.stream, place, entry, message.durable)
        try:
            sequence = entry.intake.sequence
            if message.durable:
                sequence = await self._write(entry.intake.sync)
        except (ChronoLogError, OSError) as error:
            await self._refuse(stream, error)
            return
        await session.send(messages.Opened(message.stream, sequence, entry.intake.is_empty))

    async def _enter(self, place: Place, directory_of: Callable[[Place], Path]) -> _Entry:
        """Return the one intake of a client, opened in a directory if need be."""
        async with self._opening:
            entry = self._entries.get(place)
            if entry is None:
                await self._retire(place.chronicle, place.story, place.uid - 1)
                intake = await self._write(
                    lambda: Intake(self._stories.root, directory_of(place), place.client_id)
                )
                entry = self._entries[place] = _Entry(intake)
            entry.streams += 1
            return entry

    def _made(self, place: Place) -> Path:
        """Return the directory of a story, which is made if it is not there."""
        if not 0 <= place.client_id < 2**63:
            raise InvalidArgumentError(
                f"{place.client_id} is no client id: it is not between 0 and 2**63 - 1"
            )
        return self._stories.make(place.chronicle, place.story, place.uid, {})

    def _found(self, place: Place) -> Path:
        return self._stories.find(place.chronicle, place.story, place.uid)

    async def _take(self, stream: _Stream, body: Body) -> None:
        """Write a block, and acknowledge it as the stream demands."""
        entry = stream.entry
        try:
            sequence = await self._write(lambda: entry.intake.append(body))
        except (ChronoLogError, OSError) as error:
            await self._refuse(stream, error)
            return
        self._handing.note(stream.place)
        taken = entry.intake.taken
        stream.session.counts["events_in"] += taken - entry.counted
        entry.counted = taken
        for ear in self._ears.get((stream.place.chronicle, stream.place.story), ()):
            ear.set()
        if not stream.durable:
            await stream.session.send(messages.Ack(stream.number, sequence))
            return
        entry.waiting.append((stream, sequence))
        if entry.syncing is None:
            entry.syncing = asyncio.create_task(self._sync(entry))

    async def _sync(self, entry: _Entry) -> None:
        """Acknowledge all that waits; what arrives during a sync waits for the next."""
        while entry.waiting:
            shared = list(entry.waiting)
            entry.waiting.clear()
            try:
                await self._write(entry.intake.sync)
            except (ChronoLogError, OSError) as error:
                for stream, _ in shared:
                    await self._refuse(stream, error)
                continue
            for stream, sequence in shared:
                if not stream.is_over:
                    with contextlib.suppress(GoneError):
                        await stream.session.send(messages.Ack(stream.number, sequence))
        entry.syncing = None

    async def _refuse(self, stream: _Stream, error: Exception) -> None:
        """Say that a block is not taken, once: those behind it were sent before the sender knew."""
        if stream.is_over:
            return
        stream.is_over = True
        stream.session.counts["blocks_refused"] += 1
        if stream.entry.is_retired:
            error = NotFoundError(f"the story {stream.place.story!r:.200} was destroyed")
        elif isinstance(error, OSError) and not isinstance(error, ChronoLogError):
            reason = f"the keeper of {self._node} cannot write there: {error.strerror or error}"
            error = StoreError(self._stories.root.path, reason)
        stream.session.log(logging.WARNING, f"a block of {stream.place} is refused: {error}")
        with contextlib.suppress(GoneError):
            await stream.session.send(refusal_of(stream.number, error))

    async def _leave(self, stream: _Stream) -> None:
        """End a stream; its intake is closed with the last one."""
        if stream.entry.syncing is not None:
            await stream.entry.syncing
        self._let_go(stream.place, stream.entry)

    def _let_go(self, place: Place, entry: _Entry) -> None:
        entry.streams -= 1
        if not entry.streams:
            if self._entries.get(place) is entry:
                del self._entries[place]
            entry.intake.close()

    # -- handing over --

    def _seal_when_told(self, place: Place) -> None:
        """Seal what a client has written so far, in the thread that hands it over.

        Raises:
            NotFoundError: the story is gone.
        """
        asyncio.run_coroutine_threadsafe(self._seal(place), self._loop).result()

    async def _seal(self, place: Place) -> None:
        entry = await self._enter(place, self._found)
        try:
            await self._write(entry.intake.roll)
        finally:
            self._let_go(place, entry)

    # -- forgetting --

    async def _drop(self, drop: messages.Drop) -> None:
        async with self._opening:
            await self._retire(drop.chronicle, drop.story, drop.uid)
            await self._write(lambda: self._stories.forget(drop))

    async def _retire(self, chronicle: str, story: str, uid: int) -> None:
        """Let nothing more come into a story, or all of a chronicle, with this uid or a lower one."""
        for place, entry in list(self._entries.items()):
            if place.chronicle == chronicle and story in ("", place.story) and place.uid <= uid:
                del self._entries[place]
                entry.is_retired = True
                await self._write(entry.intake.close)

    # -- answering --

    async def _follow(self, session: Session, question: messages.Follow) -> None:
        """Answer as soon as there is something new; a follower to whom nothing happens costs no thread."""
        cursor = unpack_marks(question.cursor)
        follower = self._followers.setdefault(session, Follower(self._stories))
        deadline_s = self._loop.time() + question.timeout_ms / 1000
        story, ear = (question.chronicle, question.story), asyncio.Event()
        self._ears.setdefault(story, set()).add(ear)
        try:
            while (answer := await self._read(lambda: follower.news(question, cursor))) is None:
                left_s = deadline_s - self._loop.time()
                if left_s <= 0 or not session.is_open:
                    answer = unchanged(question)
                    break
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(ear.wait(), min(left_s, _LOOK_S))
                ear.clear()
        finally:
            self._ears[story].discard(ear)
            if not self._ears[story]:
                del self._ears[story]
        await send_all(session, answer, self._readers)
