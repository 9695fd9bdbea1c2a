"""ChronoKeeper: takes in the events of many clients, and answers questions about what it has.

Its store is a directory like any other. Blocks that arrive are checked and written in threads, so that neither a disk
nor a large block stops the event loop; a session waits for its own block only. A durable stream is answered when a
sync has brought the block to the device: all blocks of a client that arrive during one sync share the next.

A part of an answer is made when the one before the last has gone to the kernel. So a reader that is slow, or never
reads, costs the memory of two parts, and no thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, NamedTuple, TypeVar

from chronolog_hpc.services.questions import Follower, described, scanned, send_all
from chronolog_hpc.services.registration import Registration
from chronolog_hpc.services.server import Service
from chronolog_hpc.services.session import Body, GoneError, Session
from chronolog_hpc.services.tenancy import Tenancy
from py_chronolog_client.engine.connection import Address
from py_chronolog_client.engine.embedded import EmbeddedEngine
from py_chronolog_client.errors import (
    ChronicleExistsError,
    ChronoLogError,
    InvalidArgumentError,
    NotFoundError,
    ProtocolError,
)
from py_chronolog_client.store.catalog import Catalog
from py_chronolog_client.store.intake import Intake
from py_chronolog_client.store.root import StoreRoot
from py_chronolog_client.wire import messages
from py_chronolog_client.wire.failures import failure_of
from py_chronolog_client.wire.frames import FULL, Limits
from py_chronolog_client.wire.handshake import Identity
from py_chronolog_client.wire.messages import Message, pack_marks, unpack_marks

UID = "uid"
"""Name of the attribute under which a keeper keeps a story's uid."""

_WRITERS, _READERS = 8, 8
_LOOK_S = 1.0
"""So often a follower to whom nothing happens is looked at: he may be gone."""

logger = logging.getLogger("chronolog_hpc.services")

T = TypeVar("T")


class _Place(NamedTuple):
    """Where a client's blocks go: its own segment of one story, also when a later story has the same name."""

    chronicle: str
    story: str
    uid: int
    client_id: int

    def __str__(self) -> str:
        return f"client {self.client_id:016x} of story {self.story!r:.200} of {self.chronicle!r:.200}"


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
    place: _Place
    entry: _Entry
    durable: bool
    is_over: bool = False


class Keeper(Service):
    """The keeper of a node."""

    role = "keeper"
    limits: ClassVar[Limits] = FULL

    def __init__(self, directory: Path, node: str, visor: Address, identity: Identity) -> None:
        """Open the store of the keeper, which is made if it is not there.

        Raises:
            ChronoLogError: the directory cannot be used.
        """
        root = StoreRoot.open(directory, create=True)
        self._tenancy = Tenancy(root)
        self._engine = EmbeddedEngine(directory)
        self._catalog = Catalog(root)
        self._node = node
        self._visor = visor
        self._identity = identity
        self._writers = ThreadPoolExecutor(_WRITERS, "chronolog-intake")
        self._readers = ThreadPoolExecutor(_READERS, "chronolog-scan")
        self._opening = asyncio.Lock()
        self._entries: dict[_Place, _Entry] = {}
        self._streams: dict[Session, dict[int, _Stream]] = {}
        self._followers: dict[Session, Follower] = {}
        self._ears: dict[tuple[str, str], set[asyncio.Event]] = {}

    async def started(self, address: Address) -> None:
        self._loop = asyncio.get_running_loop()
        register = messages.Register(self.role, self._node, *address)
        self._registration = Registration(self._visor, self._identity, register, self._drop_when_told)

    async def ended(self, session: Session) -> None:
        self._followers.pop(session, None)
        for stream in self._streams.pop(session, {}).values():
            await self._leave(stream)

    async def stopped(self) -> None:
        self._registration.stop()
        self._writers.shutdown()
        self._readers.shutdown(cancel_futures=True)
        self._engine.close()
        self._tenancy.end()

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
            case messages.TakeSnapshot(chronicle, story):
                marks = await self._read(lambda: self._engine.snapshot(chronicle, story))
                await session.send(messages.Marks(pack_marks(marks)))
            case messages.ListClients():
                await send_all(session, described(self._engine, message), self._readers)
            case messages.Scan():
                await send_all(session, scanned(self._engine, message), self._readers)
            case messages.Follow():
                await self._follow(session, message)
            case _:
                raise self.unknown(message)

    # -- taking in --

    async def _open(self, session: Session, message: messages.Open) -> None:
        """Begin a stream; where that fails, the stream is over before it has begun."""
        streams = self._streams.setdefault(session, {})
        if (before := streams.pop(message.stream, None)) is not None:
            await self._leave(before)
        place = _Place(message.chronicle, message.story, message.uid, message.client_id)
        try:
            entry = await self._enter(place)
        except (ChronoLogError, OSError) as error:
            session.log(logging.WARNING, f"{place} is not opened: {error}")
            await session.send(_refused(message.stream, error))
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

    async def _enter(self, place: _Place) -> _Entry:
        """Return the one intake of a client, opened if need be."""
        async with self._opening:
            entry = self._entries.get(place)
            if entry is None:
                await self._retire(place.chronicle, place.story, place.uid - 1)
                intake = await self._write(lambda: self._opened_intake(place))
                entry = self._entries[place] = _Entry(intake)
            entry.streams += 1
            return entry

    def _opened_intake(self, place: _Place) -> Intake:
        if not 0 <= place.client_id < 2**63:
            raise InvalidArgumentError(
                f"{place.client_id} is no client id: it is not between 0 and 2**63 - 1"
            )
        self._forget_older(place.chronicle, place.story, place.uid - 1)
        with contextlib.suppress(ChronicleExistsError):
            self._catalog.create_chronicle(place.chronicle, {})
        directory = self._catalog.ensure_story(place.chronicle, place.story, {UID: str(place.uid)})
        if self._uid(place.chronicle, place.story) != place.uid:
            raise NotFoundError(f"the story {place.story!r:.200} was destroyed, and made again")
        return Intake(self._catalog.root, directory, place.client_id)

    async def _take(self, stream: _Stream, body: Body) -> None:
        """Write a block, and acknowledge it as the stream demands."""
        entry = stream.entry
        try:
            sequence = await self._write(lambda: entry.intake.append(body))
        except (ChronoLogError, OSError) as error:
            await self._refuse(stream, error)
            return
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
        stream.session.log(logging.WARNING, f"a block of {stream.place} is refused: {error}")
        with contextlib.suppress(GoneError):
            await stream.session.send(_refused(stream.number, error))

    async def _leave(self, stream: _Stream) -> None:
        """End a stream; its intake is closed with the last one."""
        entry = stream.entry
        if entry.syncing is not None:
            await entry.syncing
        entry.streams -= 1
        if not entry.streams:
            if self._entries.get(stream.place) is entry:
                del self._entries[stream.place]
            entry.intake.close()

    async def _write(self, action: Callable[[], T]) -> T:
        return await self._loop.run_in_executor(self._writers, action)

    # -- forgetting --

    def _drop_when_told(self, drop: messages.Drop) -> None:
        """Forget what the visor says, in the thread of the registration."""
        asyncio.run_coroutine_threadsafe(self._drop(drop), self._loop).result()

    async def _drop(self, drop: messages.Drop) -> None:
        async with self._opening:
            await self._retire(drop.chronicle, drop.story, drop.uid)
            await self._write(lambda: self._forget(drop))

    async def _retire(self, chronicle: str, story: str, uid: int) -> None:
        """Let nothing more come into a story, or all of a chronicle, with this uid or a lower one."""
        for place, entry in list(self._entries.items()):
            if place.chronicle == chronicle and story in ("", place.story) and place.uid <= uid:
                del self._entries[place]
                entry.is_retired = True
                await self._write(entry.intake.close)

    def _forget(self, drop: messages.Drop) -> None:
        with contextlib.suppress(NotFoundError):
            for story in [drop.story] if drop.story else self._catalog.stories(drop.chronicle):
                self._forget_older(drop.chronicle, story, drop.uid)

    def _forget_older(self, chronicle: str, story: str, uid: int) -> None:
        """Remove a story if it has this uid or a lower one."""
        with contextlib.suppress(NotFoundError):
            own = self._uid(chronicle, story)
            if own is not None and own <= uid:
                self._catalog.destroy_story(chronicle, story)
                logger.info("the story %r of %r was destroyed, and is forgotten", story, chronicle)

    def _uid(self, chronicle: str, story: str) -> int | None:
        """Return the uid of a story, or None where no keeper has made it."""
        text = self._catalog.story_attributes(chronicle, story).get(UID, "")
        return int(text) if text.isdecimal() else None

    # -- answering --

    async def _read(self, action: Callable[[], T]) -> T:
        return await self._loop.run_in_executor(self._readers, action)

    async def _follow(self, session: Session, question: messages.Follow) -> None:
        """Answer as soon as there is something new; a follower to whom nothing happens costs no thread."""
        cursor = unpack_marks(question.cursor)
        follower = self._followers.setdefault(session, Follower(self._catalog))
        deadline_s = self._loop.time() + question.timeout_ms / 1000
        story, ear = (question.chronicle, question.story), asyncio.Event()
        self._ears.setdefault(story, set()).add(ear)
        try:
            while (answer := await self._read(lambda: follower.news(question, cursor))) is None:
                left_s = deadline_s - self._loop.time()
                if left_s <= 0 or not session.is_open:
                    await session.send(messages.Marks(question.cursor))
                    return
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(ear.wait(), min(left_s, _LOOK_S))
                ear.clear()
        finally:
            self._ears[story].discard(ear)
            if not self._ears[story]:
                del self._ears[story]
        await send_all(session, answer, self._readers)


def _refused(stream: int, error: Exception) -> messages.Refused:
    failure = failure_of(error)
    return messages.Refused(stream, failure.code, failure.sentence)
