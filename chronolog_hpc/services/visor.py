"""ChronoVisor: the catalog of a deployment, and who holds which story; `members` knows where all others are.

Names and attributes are in a store directory like any other, without events; what else has to survive a restart is in
the ledger beside it.

An acquisition belongs to the connection over which it was asked for. When that ends without a release, it lapses
after a grace time, within which a client that has lost its connection, or its visor, acquires again.

A story's uid is the time of its creation there. A keeper that learns of a story with a higher uid forgets the one it
had under that name.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from chronolog_hpc.services.ledger import Debt, Home, Ledger, Story
from chronolog_hpc.services.members import Members
from chronolog_hpc.services.permissions import Permissions, Right, owned
from chronolog_hpc.services.policy import Policy
from chronolog_hpc.services.rundir import KEEPER, PLAYER
from chronolog_hpc.services.server import Service
from chronolog_hpc.services.session import Body, Session
from chronolog_hpc.services.tenancy import Tenancy
from chronolog_hpc.services.tickets import Passage, ticket_for
from py_chronolog_client.engine.connection import Address
from py_chronolog_client.errors import (
    AcquiredError,
    InvalidArgumentError,
    NoKeepersError,
    NotAcquiredError,
    NotAuthorizedError,
    NotFoundError,
)
from py_chronolog_client.store.catalog import Catalog
from py_chronolog_client.store.root import StoreRoot
from py_chronolog_client.wire import messages
from py_chronolog_client.wire.handshake import SERVICE_NAME, Identity
from py_chronolog_client.wire.messages import Message

GRACE_S = 10.0
"""An acquisition outlives its connection by so long, and a visor's restart."""

_NAMES_BYTES = 2**20

logger = logging.getLogger("chronolog_hpc.services")


class _Hold(NamedTuple):
    """A client that holds a story."""

    story: Story
    client_id: int


class Visor(Service):
    """The visor of a deployment."""

    role = "visor"

    def __init__(self, directory: Path, identity: Identity, grace_s: float = GRACE_S) -> None:
        """Open the store of the visor, which is made if it is not there.

        Args:
            directory: of the store.
            identity: of the services.
            grace_s: how long an acquisition outlives its connection.

        Raises:
            ChronoLogError: the directory cannot be used.
        """
        root = StoreRoot.open(directory, create=True)
        self._tenancy = Tenancy(root)
        self._ledger = Ledger(root)
        self._catalog = Catalog(root, clock_ns=self._ledger.next_uid)
        self._permissions = Permissions(self._catalog)
        self._identity = identity
        self._grace_s = grace_s
        self._changing = asyncio.Lock()
        self._members = Members(self._ledger)
        self._holds: dict[_Hold, Session | None] = {}
        self._holds_of: dict[Session, set[_Hold]] = {}
        self._lapses: dict[_Hold, asyncio.TimerHandle] = {}
        self._background: set[asyncio.Task[None]] = set()

    async def started(self, address: Address) -> None:
        self._members.begin()
        await asyncio.to_thread(self._forget_what_is_gone)
        for story, holders in self._ledger.holders.items():
            for client_id in holders:
                self._let_lapse(_Hold(story, client_id))
        await self._ledger.saved()

    async def stopped(self) -> None:
        for lapse in self._lapses.values():
            lapse.cancel()
        await self._ledger.saved()
        self._ledger.close()
        self._tenancy.end()

    async def ended(self, session: Session) -> None:
        for hold in self._holds_of.pop(session, set()):
            self._let_lapse(hold)
        self._members.gone(session)

    def levels(self) -> dict[str, int]:
        return {
            "acquired": len(self._holds),
            "keepers": self._members.count(KEEPER),
            "players": self._members.count(PLAYER),
        }

    async def answer(self, session: Session, message: Message, body: Body) -> None:  # noqa: C901  one case a request
        catalog = self._catalog
        match message:
            case messages.CreateChronicle(chronicle, attributes):
                Policy.of(attributes)
                attributes = owned(attributes, session.name)
                await asyncio.to_thread(catalog.create_chronicle, chronicle, attributes)
                await session.send(messages.Done())
            case messages.DestroyChronicle(chronicle):
                await self._destroy(session.name, Story(chronicle, ""))
                await session.send(messages.Done())
            case messages.DestroyStory(chronicle, story):
                await self._destroy(session.name, _named(chronicle, story))
                await session.send(messages.Done())
            case messages.ListChronicles():
                await _send_names(session, await asyncio.to_thread(catalog.chronicles))
            case messages.ListStories(chronicle):
                await self._require(session.name, Right.SEE, chronicle)
                await _send_names(session, await asyncio.to_thread(catalog.stories, chronicle))
            case messages.ChronicleAttributes(chronicle):
                await self._require(session.name, Right.SEE, chronicle)
                attributes = await asyncio.to_thread(catalog.chronicle_attributes, chronicle)
                await session.send(messages.Attributes(attributes))
            case messages.StoryAttributes(chronicle, story):
                await self._require(session.name, Right.SEE, chronicle, story)
                attributes = await asyncio.to_thread(catalog.story_attributes, chronicle, story)
                await session.send(messages.Attributes(attributes))
            case messages.Acquire():
                await session.send(await self._acquire(session, message))
            case messages.Release():
                await self._release(session.name, message)
                await session.send(messages.Done())
            case messages.Locate(chronicle, story, reader):
                self.require_service(session, message)
                await self._require(reader, Right.READ, chronicle, story)
                await session.send(await self._locate(Story(chronicle, story)))
            case messages.Register():
                self.require_service(session, message)
                await self._members.register(session, message)
            case messages.Done() | messages.Failure() if self._members.owes_answer(session):
                await self._members.hear(session, message)
            case _:
                raise self.unknown(message)

    async def _require(self, name: str, right: Right, chronicle: str, story: str = "") -> None:
        await asyncio.to_thread(self._permissions.require, name, right, chronicle, story)

    # -- who holds what --

    async def _acquire(self, session: Session, message: messages.Acquire) -> messages.Acquired:
        hold = _Hold(_named(message.chronicle, message.story), message.client_id)
        if not 0 <= hold.client_id < 2**63:
            raise InvalidArgumentError(f"{hold.client_id} is no client id: it is not between 0 and 2**63 - 1")
        await asyncio.to_thread(self._catalog.chronicle_attributes, message.chronicle)
        keeper = await self._members.keeper_for(*hold, message.host, patiently=hold not in self._holds)
        async with self._changing:
            uid = await asyncio.to_thread(self._story_for, session.name, message)
            home = self._ledger.homes.get(hold.story, {}).get(hold.client_id, Home(keeper.node, session.name))
            _require_own(session.name, home, hold)
            if home.node != keeper.node:
                raise NoKeepersError(
                    "another keeper was given to this client at the same moment: acquire again"
                )
            self._hold(hold, session)
            if hold.client_id not in self._ledger.holders.get(hold.story, set()):
                self._ledger.note_acquired(*hold, home, uid)
        await self._ledger.saved()
        passage = Passage(session.name, *hold.story, uid, hold.client_id)
        return messages.Acquired(uid, *keeper.address, ticket_for(passage, self._identity))

    def _story_for(self, name: str, message: messages.Acquire) -> int:
        """Return the uid of the story that somebody acquires, which is made if any will do."""
        attributes = owned(message.attributes, name)
        self._permissions.require_acquisition(name, message.chronicle, message.story, attributes)
        if not message.uid:
            Policy.of(attributes)
            self._catalog.ensure_story(message.chronicle, message.story, attributes)
        uid = self._catalog.story_created_ns(message.chronicle, message.story)
        if message.uid not in (0, uid):
            raise NotFoundError(
                f"the story {message.story!r:.200} was destroyed, and another was made under its name"
            )
        return uid

    def _hold(self, hold: _Hold, session: Session) -> None:
        """Let a client hold a story for as long as a session lives."""
        if hold in self._lapses:
            self._lapses.pop(hold).cancel()
        before = self._holds.get(hold)
        if before is not None:
            self._holds_of.get(before, set()).discard(hold)
        self._holds[hold] = session
        if session.is_open:
            self._holds_of.setdefault(session, set()).add(hold)
        else:
            self._let_lapse(hold)

    async def _release(self, name: str, message: messages.Release) -> None:
        hold = _Hold(Story(message.chronicle, message.story), message.client_id)
        if hold not in self._holds:
            raise NotAcquiredError(
                f"client {hold.client_id:016x} does not hold the story {hold.story.name!r:.200}"
            )
        _require_own(name, self._ledger.homes[hold.story][hold.client_id], hold)
        self._give_up(hold)
        await self._ledger.saved()

    def _give_up(self, hold: _Hold) -> None:
        session = self._holds.pop(hold)
        if session is not None:
            self._holds_of.get(session, set()).discard(hold)
        if hold in self._lapses:
            self._lapses.pop(hold).cancel()
        self._ledger.note_released(*hold)

    def _let_lapse(self, hold: _Hold) -> None:
        """Give a client some time to acquire again."""
        self._holds[hold] = None
        loop = asyncio.get_running_loop()
        self._lapses[hold] = loop.call_later(self._grace_s, self._lapse, hold)

    def _lapse(self, hold: _Hold) -> None:
        logger.info(
            "client %016x has lost the story %r: it did not come back", hold.client_id, hold.story.name
        )
        self._give_up(hold)
        task = asyncio.ensure_future(self._save())
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _save(self) -> None:
        try:
            await self._ledger.saved()
        except OSError as error:
            logger.error("the ledger cannot be written, which is tried again with the next entry: %s", error)

    # -- destroying --

    async def _destroy(self, name: str, story: Story) -> None:
        async with self._changing:
            await self._require(name, Right.OWN, *story)
            holder = next((hold for hold in self._holds if _covers(story, hold.story)), None)
            if holder is not None:
                session = self._holds[holder]
                raise AcquiredError(
                    f"the story {holder.story.name!r:.200} of the chronicle {story.chronicle!r:.200} is acquired by "
                    f"client {holder.client_id:016x} at {session or 'a lost connection'}: release it there, or end that "
                    "process"
                )
            uid = await asyncio.to_thread(self._remove, story)
            self._ledger.note_destroyed(story, uid)
        await self._ledger.saved()
        await self._members.forget(Debt(*story, uid))

    def _remove(self, story: Story) -> int:
        """Remove a story, or a chronicle, from the catalog; return the highest uid that may have been in it."""
        if not story.name:
            self._catalog.destroy_chronicle(story.chronicle)
            return self._ledger.last_uid
        uid = self._catalog.story_created_ns(*story)
        self._catalog.destroy_story(*story)
        return uid

    def _forget_what_is_gone(self) -> None:
        """Finish what a visor that was killed had begun: a story is destroyed in the catalog first."""
        for story in list(self._ledger.homes):
            try:
                self._catalog.story_directory(*story)
            except NotFoundError:
                self._ledger.note_destroyed(story, self._ledger.last_uid)

    async def _locate(self, story: Story) -> messages.Located:
        uid = await asyncio.to_thread(self._catalog.story_created_ns, *story)
        attributes = await asyncio.to_thread(self._attributes, story)
        keepers, grapher = await self._members.holding(story)
        return messages.Located(uid, keepers, grapher, attributes)

    def _attributes(self, story: Story) -> dict[str, str]:
        """Return the attributes of a story, and those of its chronicle that it has not itself."""
        of_chronicle = self._catalog.chronicle_attributes(story.chronicle)
        return {**of_chronicle, **self._catalog.story_attributes(*story)}


def _named(chronicle: str, story: str) -> Story:
    """Return a story by its names; the empty name would mean all stories."""
    if not story:
        raise InvalidArgumentError("a name must not be empty")
    return Story(chronicle, story)


def _require_own(name: str, home: Home, hold: _Hold) -> None:
    """Make sure that a client is of this name, or that a service asks."""
    if name not in (home.name or name, SERVICE_NAME):
        raise NotAuthorizedError(
            f"client {hold.client_id:016x} of the story {hold.story.name!r:.200} belongs to {home.name!r:.200}, and "
            f"{name!r:.200} is another: every name has clients of its own"
        )


def _covers(destroyed: Story, story: Story) -> bool:
    return destroyed.chronicle == story.chronicle and destroyed.name in ("", story.name)


async def _send_names(session: Session, names: list[str]) -> None:
    """Send names in as many messages as they need."""
    parts = list(_parts(names))
    for number, part in enumerate(parts, 1):
        await session.send(messages.Names(part, number < len(parts)))


def _parts(names: list[str]) -> Iterator[list[str]]:
    """Cut a list of names where they would become too long for a message; there is at least one part."""
    part: list[str] = []
    left_bytes = _NAMES_BYTES
    for name in names:
        cost_bytes = 2**5 + len(name.encode())
        if part and cost_bytes > left_bytes:
            yield part
            part, left_bytes = [], _NAMES_BYTES
        part.append(name)
        left_bytes -= cost_bytes
    yield part
