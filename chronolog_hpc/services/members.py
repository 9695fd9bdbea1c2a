"""The keepers, graphers and players of a deployment, as its visor knows them: who is where, and who has to forget what.

A member is registered for as long as its connection lives. What was destroyed while it was away it has to forget
before anybody finds it; the ledger remembers that until it has said that it is done.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from chronolog_hpc.services.ledger import ARCHIVE, Debt, Ledger, Story
from chronolog_hpc.services.rundir import GRAPHER, KEEPER, PLAYER
from chronolog_hpc.services.session import GoneError, Session
from py_chronolog_client.engine.connection import Address
from py_chronolog_client.errors import InvalidArgumentError, NoKeepersError
from py_chronolog_client.wire import messages
from py_chronolog_client.wire.messages import Message

_PATIENCE_S = 1.5
"""So long somebody who needs a keeper waits for one that is known and away: restarting takes less."""
_SETTLING_S = 5.0
"""So long after its start a visor waits for keepers that somebody wants to read from."""

logger = logging.getLogger("chronolog_hpc.services")


@dataclass(eq=False, slots=True)
class Member:
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
        return {KEEPER: self.node, GRAPHER: ARCHIVE}.get(self.service, "")


class Members:
    """Who is registered, and may be found."""

    def __init__(self, ledger: Ledger) -> None:
        """Use the ledger of a visor, which knows who has whose events, and who owes what."""
        self._ledger = ledger
        self._changed = asyncio.Condition()
        self._found: dict[tuple[str, str], Member] = {}
        self._of_session: dict[Session, Member] = {}

    def begin(self) -> None:
        """Take note that the visor has started now: others need a moment to come back."""
        self._started_s = asyncio.get_running_loop().time()

    def count(self, service: str) -> int:
        """Return how many of a role may be found."""
        return sum(known == service for known, _ in self._found)

    async def register(self, session: Session, message: messages.Register) -> None:
        """Take a member in; it may be found when it has forgotten what was destroyed while it was away.

        Raises:
            InvalidArgumentError: it is of no role that can be.
        """
        if message.service not in (KEEPER, GRAPHER, PLAYER):
            raise InvalidArgumentError(
                f"a {message.service!r:.40} cannot register: only keepers, graphers and players do"
            )
        member = Member(session, message.service, message.node, Address(message.host, message.port))
        self._of_session[session] = member
        if member.service == GRAPHER and member.node != self._ledger.grapher:
            self._ledger.note_grapher(member.node)
            await self._ledger.saved()
        for debt in list(self._ledger.debts.get(member.debtor, [])):
            await self._ask_to_forget(member, debt)
        if not member.asked:
            await self._welcome(member)

    def gone(self, session: Session) -> None:
        """Take note that a connection has ended, of a member perhaps."""
        member = self._of_session.pop(session, None)
        if member is None:
            return
        for _, answered in member.asked:
            answered.cancel()
        if self._found.get((member.service, member.node)) is member:
            del self._found[member.service, member.node]
            logger.info("the %s of %s at %s is gone", member.service, member.node, member.address)

    async def forget(self, debt: Debt) -> None:
        """Tell all who owe it to forget something, and wait a moment until they have."""
        answers = [
            await self._ask_to_forget(member, debt)
            for member in list(self._of_session.values())
            if debt in self._ledger.debts.get(member.debtor, [])
        ]
        if answers:
            await asyncio.wait(answers, timeout=_PATIENCE_S)

    def owes_answer(self, session: Session) -> bool:
        """Tell whether a session is of a member that was told to forget something."""
        member = self._of_session.get(session)
        return member is not None and bool(member.asked)

    async def hear(self, session: Session, answer: Message) -> None:
        """Take note of a member's answer to the oldest Drop."""
        member = self._of_session[session]
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
        elif self._found.get((member.service, member.node)) is not member:
            await self._welcome(member)

    async def keeper_for(self, story: Story, client_id: int, host: str, *, patiently: bool) -> Member:
        """Return the keeper of a client: where it has events, else on its host, else one that its id chooses.

        Args:
            story: which it writes to.
            client_id: the client.
            host: its host.
            patiently: whether to wait a moment for a keeper that is known and away.

        Raises:
            NoKeepersError: it is away.
        """
        home = self._ledger.homes.get(story, {}).get(client_id)

        def found() -> Member | None:
            if home is not None:
                return self._found.get((KEEPER, home.node))
            nodes = sorted(node for service, node in self._found if service == KEEPER)
            if not nodes:
                return None
            return self._found[KEEPER, host if host in nodes else nodes[client_id % len(nodes)]]

        if patiently and self._ledger.homes:
            await self._wait(lambda: found() is not None, _PATIENCE_S)
        keeper = found()
        if keeper is None:
            raise NoKeepersError(
                "there is no ChronoKeeper: start one ('chronolog status' shows what runs)"
                if home is None
                else f"the ChronoKeeper of {home.node}, which has the events of this client, is away: start it again"
            )
        return keeper

    async def holding(self, story: Story) -> tuple[list[str], str]:
        """Return the addresses of the keepers that may have events of a story, and that of the grapher.

        One that is away has port 0; the grapher's address is empty where there never was one.
        """
        nodes = sorted({home.node for home in self._ledger.homes.get(story, {}).values()})
        wanted = [(KEEPER, node) for node in nodes]
        if self._ledger.grapher:
            wanted.append((GRAPHER, self._ledger.grapher))
        left_s = self._started_s + _SETTLING_S - asyncio.get_running_loop().time()
        if left_s > 0:
            await self._wait(
                lambda: all(member in self._found for member in wanted), min(left_s, _PATIENCE_S)
            )
        addresses = {service: list[str]() for service in (KEEPER, GRAPHER)}
        for service, node in wanted:
            member = self._found.get((service, node))
            addresses[service].append(str(member.address if member else Address(node, 0)))
        return addresses[KEEPER], "".join(addresses[GRAPHER])

    async def _ask_to_forget(self, member: Member, debt: Debt) -> asyncio.Future[None]:
        """Tell a member to forget something; return what is done when it has answered."""
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        member.asked.append((debt, answered))
        if len(member.asked) == 1:
            await self._ask_next(member)
        return answered

    async def _ask_next(self, member: Member) -> None:
        """Tell a member to forget one thing: it is told the next when it has answered."""
        with suppress(GoneError):  # it is told again when it registers
            await member.session.send(messages.Drop(*member.asked[0][0]))

    async def _welcome(self, member: Member) -> None:
        """Let a member that has nothing more to forget be found."""
        self._found[member.service, member.node] = member
        logger.info("the %s of %s is at %s", member.service, member.node, member.address)
        await member.session.send(messages.Done())
        async with self._changed:
            self._changed.notify_all()

    async def _wait(self, is_there: Callable[[], bool], timeout_s: float) -> None:
        """Wait until somebody is registered, but not for ever."""

        async def wait() -> None:
            async with self._changed:
                await self._changed.wait_for(is_there)

        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(wait(), timeout_s)
