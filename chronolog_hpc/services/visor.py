"""ChronoVisor: the catalog of a deployment, who holds which story, and where keepers, grapher and players are.

Names and attributes are in a store directory like any other, without events; what else has to survive a restart is in
the ledger beside it.

An acquisition belongs to the connection over which it was asked for. When that ends without a release, it lapses
after a grace time, within which a client that has lost its connection, or its visor, acquires again.

A story's uid is the time of its creation there. A keeper that learns of a story with a higher uid forgets the one it
had under that name. Who has to forget what is remembered until he has said that it is done.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from chronolog_hpc.services.ledger import ARCHIVE, Debt, Home, Ledger, Story
from chronolog_hpc.services.permissions import Permissions, Right, owned
from chronolog_hpc.services.policy import Policy
from chronolog_hpc.services.server import Service
from chronolog_hpc.services.session import Body, GoneError, Session
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

_PATIENCE_S = 1.5
"""So long somebody who needs a keeper waits for one that is known and away: restarting takes less."""
_SETTLING_S = 5.0
"""So long after its start a visor waits for keepers that somebody wants to read from."""
_NAMES_BYTES = 2**20
_KEEPER, _GRAPHER, _PLAYER = "keeper", "grapher", "player"

logger = logging.getLogger("chronolog_hpc.services")


class _Hold(NamedTuple):
    """A client that holds a story."""

    story: Story
    client_id: int


@dataclass(eq=False, slots=True)
class _Member:
    """A keeper, grapher or player, from its registration to the end of its connection."""

    session: Session
    service: str
    node: str
    address: Address
    asked: deque[tuple[Debt, asyncio.Future[None]]] = field(default_factory=deque)
    """What it has to forget; it was told the first."""

    @property
    def debtor(self) -> str:
        """Under which name it owes something in the ledger: players never do."""
        return {_KEEPER: self.node, _GRAPHER: ARCHIVE}.get(self.service, "")


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
        self._members_changed = asyncio.Condition()
        self._members: dict[tuple[str, str], _Member] = {}
        self._member_of: dict[Session, _Member] = {}
        self._holds: dict[_Hold, Session | None] = {}
        self._holds_of: dict[Session, set[_Hold]] = {}
        self._lapses: dict[_Hold, asyncio.TimerHandle] = {}
        self._background: set[asyncio.Task[None]] = set()

    async def started(self, address: Address) -> None:
        self._started_s = asyncio.get_running_loop().time()
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
        member = self._member_of.pop(session, None)
        if member is not None:
            for _, answered in member.asked:
                answered.cancel()
            if self._members.get((member.service, member.node)) is member:
                del self._members[member.service, member.node]
                logger.info("the %s of %s at %s is gone", member.service, member.node, member.address)

    def levels(self) -> dict[str, int]:
        services = [service for service, _ in self._members]
        return {
            "acquired": len(self._holds),
            "keepers": services.count(_KEEPER),
            "players": services.count(_PLAYER),
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
                await self._register(session, message)
            case messages.Done() | messages.Failure() if session in self._member_of:
                await self._hear(self._member_of[session], message)
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
        keeper = await self._keeper_for(hold, message.host)
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
        debt = Debt(*story, uid)
        answers = [
            await self._ask_to_forget(member, debt)
            for member in list(self._member_of.values())
            if debt in self._ledger.debts.get(member.debtor, [])
        ]
        if answers:
            await asyncio.wait(answers, timeout=_PATIENCE_S)

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

    # -- keepers, grapher and players --

    async def _register(self, session: Session, message: messages.Register) -> None:
        if message.service not in (_KEEPER, _GRAPHER, _PLAYER):
            raise InvalidArgumentError(
                f"a {message.service!r:.40} cannot register: only keepers, graphers and players do"
            )
        address = Address(message.host, message.port)
        member = _Member(session, message.service, message.node, address)
        self._member_of[session] = member
        if member.service == _GRAPHER and member.node != self._ledger.grapher:
            self._ledger.note_grapher(member.node)
            await self._ledger.saved()
        for debt in list(self._ledger.debts.get(member.debtor, [])):
            await self._ask_to_forget(member, debt)
        if not member.asked:
            await self._welcome(member)

    async def _ask_to_forget(self, member: _Member, debt: Debt) -> asyncio.Future[None]:
        """Tell a member to forget something; return what is done when it has answered."""
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        member.asked.append((debt, answered))
        if len(member.asked) == 1:
            await self._ask_next(member)
        return answered

    async def _ask_next(self, member: _Member) -> None:
        """Tell a member to forget one thing: it is told the next when it has answered."""
        with suppress(GoneError):  # it is told again when it registers
            await member.session.send(messages.Drop(*member.asked[0][0]))

    async def _hear(self, member: _Member, answer: Message) -> None:
        """Take note of a member's answer to the oldest Drop."""
        if not member.asked:
            raise self.unknown(answer)
        debt, answered = member.asked.popleft()
        if isinstance(answer, messages.Done):
            self._ledger.note_dropped(member.debtor, debt)
            await self._ledger.saved()
        else:
            member.session.log(logging.WARNING, f"has not forgotten {debt.name!r:.200}: {answer}")
        if not answered.done():
            answered.set_result(None)
        if member.asked:
            await self._ask_next(member)
        elif self._members.get((member.service, member.node)) is not member:
            await self._welcome(member)

    async def _welcome(self, member: _Member) -> None:
        """Let a member that has nothing more to forget be found."""
        self._members[member.service, member.node] = member
        logger.info("the %s of %s is at %s", member.service, member.node, member.address)
        await member.session.send(messages.Done())
        async with self._members_changed:
            self._members_changed.notify_all()

    async def _keeper_for(self, hold: _Hold, host: str) -> _Member:
        """Return the keeper of a client: where it has events, else on its host, else one that its id chooses.

        Raises:
            NoKeepersError: it is away.
        """
        home = self._ledger.homes.get(hold.story, {}).get(hold.client_id)

        def found() -> _Member | None:
            if home is not None:
                return self._members.get((_KEEPER, home.node))
            nodes = sorted(node for service, node in self._members if service == _KEEPER)
            if not nodes:
                return None
            return self._members[_KEEPER, host if host in nodes else nodes[hold.client_id % len(nodes)]]

        if hold not in self._holds and self._ledger.homes:
            await self._wait_for_members(lambda: found() is not None, _PATIENCE_S)
        keeper = found()
        if keeper is None:
            raise NoKeepersError(
                "there is no ChronoKeeper: start one ('chronolog status' shows what runs)"
                if home is None
                else f"the ChronoKeeper of {home.node}, which has the events of this client, is away: start it again"
            )
        return keeper

    async def _locate(self, story: Story) -> messages.Located:
        uid = await asyncio.to_thread(self._catalog.story_created_ns, *story)
        attributes = await asyncio.to_thread(self._attributes, story)
        nodes = sorted({home.node for home in self._ledger.homes.get(story, {}).values()})
        wanted = [(_KEEPER, node) for node in nodes]
        if self._ledger.grapher:
            wanted.append((_GRAPHER, self._ledger.grapher))
        left_s = self._started_s + _SETTLING_S - asyncio.get_running_loop().time()
        if left_s > 0:
            await self._wait_for_members(
                lambda: all(member in self._members for member in wanted), min(left_s, _PATIENCE_S)
            )
        found = {service: list[str]() for service in (_KEEPER, _GRAPHER)}
        for service, node in wanted:
            member = self._members.get((service, node))
            found[service].append(str(member.address if member else Address(node, 0)))
        return messages.Located(uid, found[_KEEPER], "".join(found[_GRAPHER]), attributes)

    def _attributes(self, story: Story) -> dict[str, str]:
        """Return the attributes of a story, and those of its chronicle that it has not itself."""
        of_chronicle = self._catalog.chronicle_attributes(story.chronicle)
        return {**of_chronicle, **self._catalog.story_attributes(*story)}

    async def _wait_for_members(self, is_there: Callable[[], bool], timeout_s: float) -> None:
        """Wait until somebody is registered, but not for ever."""

        async def wait() -> None:
            async with self._members_changed:
                await self._members_changed.wait_for(is_there)

        try:
            await asyncio.wait_for(wait(), timeout_s)
        except asyncio.TimeoutError:
            return


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
