"""All keepers of a deployment and its grapher as one reader: each is asked its part of the question.

The visor says which keepers may have events of a story. One of them that knows nothing of the story yet has none. One
that does not answer makes the question fail, with its name: an answer is never silently less than what there is. Only
a follower is told what the others have meanwhile: his cursor says what he is still to get.

Events go from keepers to the grapher, so keepers are asked first. Each says where the events of its clients begin in
its answer, and from then on has open what it needs. What is wanted and lies before that was handed over: that, and
nothing else, the grapher is asked for. So no event is in two answers, whatever is handed over meanwhile.
"""

from __future__ import annotations

import copy
import functools
import logging
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from typing import Any, NamedTuple, TypeVar

from chronolog_hpc.services.sources import Pages, Source
from py_chronolog_client.engine.base import MAX_TIME_NS, ScanReport, Snapshot
from py_chronolog_client.engine.connection import Address, Connection, Connections
from py_chronolog_client.engine.merged import merge_clients, merge_pages, merge_reports, merge_snapshots
from py_chronolog_client.engine.remote_reader import Following, RemoteReader
from py_chronolog_client.errors import NotConnectedError, NotFoundError, ReplayTimeoutError
from py_chronolog_client.page import Page
from py_chronolog_client.wire import messages
from py_chronolog_client.wire.handshake import SERVICE_NAME, Identity

T = TypeVar("T")

logger = logging.getLogger("chronolog_hpc.services")


class News(NamedTuple):
    """What there is behind a follower's cursor."""

    first: Page | None
    """None: nothing."""
    pages: Pages
    """The others; to be closed by who does not take them all."""
    marks: list[dict[int, int]]
    """The next cursor of each keeper, when all pages are taken."""
    away: NotConnectedError | ReplayTimeoutError | None
    """Why not everybody could be asked."""
    asked: Sources | None
    """None: the visor is away."""

    def next_cursor(self, cursor: Snapshot) -> dict[int, int]:
        """Return the cursor behind all pages, when they are taken."""
        return merge_snapshots([cursor, *self.marks])

    @property
    def is_partial(self) -> bool:
        """Whether a keeper is away, or has never heard of the story."""
        return self.away is not None or any(keeper.is_silent for keeper in self.keepers)

    @property
    def keepers(self) -> Sequence[Source]:
        """Who was asked first."""
        return self.asked.keepers if self.asked else ()


class Sources(NamedTuple):
    """Who may have events of a story."""

    keepers: Sequence[Source]
    grapher: Source


class Bell(NamedTuple):
    """A question that hangs at a keeper until he has something."""

    keeper: Source
    question: Following


class Keepers:
    """What the keepers and the grapher know of stories.

    Thread safety: everything.
    """

    def __init__(self, visor: Address, identity: Identity) -> None:
        """Learn from a visor where they are.

        Args:
            visor: where it listens.
            identity: of the services.
        """
        self._identity = identity
        self._asker = SERVICE_NAME
        self._visor = Connections(lambda: self._connect(visor, "visor"))
        self._readers: dict[tuple[Address, str], RemoteReader] = {}
        self._connections: weakref.WeakSet[Connection] = weakref.WeakSet()

    def on_behalf_of(self, reader: str) -> Keepers:
        """Return the same keepers, which say only what somebody may read, by his name; others get NotAuthorizedError."""
        same = copy.copy(self)
        same._asker = reader
        return same

    def snapshot(self, chronicle: str, story: str, uid: int) -> Snapshot:
        """Return the present high-water mark of every client."""
        answers = _at_once([keeper.snapshot for keeper in self._located(chronicle, story, uid).keepers])
        return merge_snapshots(answers)

    def clients(self, chronicle: str, story: str, uid: int) -> dict[int, dict[str, Any]]:
        """Return what each client of a story said of itself."""
        answers = _at_once([keeper.clients for keeper in self._located(chronicle, story, uid).keepers])
        return merge_clients(answers)

    def scan(
        self,
        chronicle: str,
        story: str,
        start_ns: int = 0,
        end_ns: int = MAX_TIME_NS,
        *,
        uid: int,
        clients: Sequence[int] | None,
        snapshot: Snapshot | None,
        since: Snapshot | None,
        timeout_s: float | None = None,
        aligned: bool,
        report: ScanReport,
        starts: dict[int, int],
    ) -> Iterator[Page]:
        """Deliver events as `Engine.scan` does."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        located = self._located(chronicle, story, uid, deadline_s)
        reports = [ScanReport() for _ in located.keepers]
        begins: dict[int, int] = {}
        scans = [
            keeper.scan(
                start_ns,
                end_ns,
                clients=clients,
                snapshot=snapshot,
                since=since,
                aligned=aligned,
                report=found,
                starts=begins,
            )
            for keeper, found in zip(located.keepers, reports, strict=True)
        ]

        def handed_over() -> Pages:
            until = _handed_over(begins, clients, since or {}, snapshot)
            return located.grapher.handed_over(until, start_ns, end_ns, since or {}, aligned, report)

        for page in _merged(scans, handed_over):
            yield page
            if deadline_s is not None and time.monotonic() > deadline_s:
                raise ReplayTimeoutError("the replay did not finish before its deadline")
        merge_reports(reports, report)

    def news(self, chronicle: str, story: str, uid: int, cursor: Snapshot) -> News:
        """Return what there is behind a follower's cursor, without waiting."""
        try:
            asked = self._located(chronicle, story, uid)
        except NotConnectedError as error:
            return _no_news(error, None)
        marks: list[dict[int, int]] = [{} for _ in asked.keepers]
        begins: dict[int, int] = {}
        answers = [
            keeper.follow(cursor, own, begins) for keeper, own in zip(asked.keepers, marks, strict=True)
        ]
        return _news(asked, answers, marks, begins, cursor)

    def bells(self, news: News, cursor: Snapshot, timeout_s: float) -> list[Bell]:
        """Ask those who had no news to say when they have some, or the time is over.

        A keeper that is silent or away has no bell. The caller closes the questions.
        """
        bells = []
        for keeper in news.keepers:
            if not keeper.is_silent:
                with suppress(NotConnectedError):
                    bells.append(Bell(keeper, keeper.ask_to_follow(cursor, timeout_s)))
        return bells

    def rung(self, news: News, bells: Sequence[Bell], cursor: Snapshot) -> News:
        """Return what those say whose bells have rung."""
        if news.asked is None:
            return news
        marks: list[dict[int, int]] = [{} for _ in bells]
        begins: dict[int, int] = {}
        answers = [
            bell.keeper.answer(bell.question, own, begins) for bell, own in zip(bells, marks, strict=True)
        ]
        asked = Sources([bell.keeper for bell in bells], news.asked.grapher)
        return _news(asked, answers, marks, begins, cursor)

    def close(self) -> None:
        """End all connections, also those over which something is being asked."""
        for connection in list(self._connections):
            connection.close()

    def _connect(self, address: Address, service: str) -> Connection:
        if not address.port:
            raise NotConnectedError("it is not registered with the visor")
        connection = Connection(address, self._identity, service)
        self._connections.add(connection)
        return connection

    def _located(self, chronicle: str, story: str, uid: int, deadline_s: float | None = None) -> Sources:
        """Return who may have events of a story, ready to be asked about it.

        Raises:
            NotFoundError: there is no such story.
            NotAuthorizedError: who asks may not read it.
            NotConnectedError: the visor is away.
        """
        question = messages.Locate(chronicle, story, self._asker)
        locate = functools.partial(self._visor.ask, question, messages.Located)
        located = locate()
        if uid not in (0, located.uid):
            raise NotFoundError(f"the story {story!r:.200} was destroyed, and made again")

        def source(address: str, service: str) -> Source:
            where = Address.of(address)
            reader = self._reader(where, service)
            return Source(
                where,
                f"Chrono{service.capitalize()}",
                reader,
                (chronicle, story, located.uid),
                lambda: locate().uid == located.uid,
                deadline_s,
            )

        return Sources(
            [source(address, "keeper") for address in located.keepers],
            source(located.grapher or "nowhere:0", "grapher"),
        )

    def _reader(self, address: Address, service: str) -> RemoteReader:
        if (address, service) not in self._readers:
            self._readers[address, service] = RemoteReader(lambda: self._connect(address, service))
        return self._readers[address, service]


def _news(
    asked: Sources,
    answers: Sequence[Pages],
    marks: list[dict[int, int]],
    begins: Mapping[int, int],
    cursor: Snapshot,
) -> News:
    """Return what keepers say, and before it what they have handed over."""
    away: list[NotConnectedError | ReplayTimeoutError] = []

    def handed_over() -> Pages:
        report = ScanReport()
        until = _handed_over(begins, None, cursor, None)
        yield from asked.grapher.handed_over(until, 0, MAX_TIME_NS, cursor, False, report)
        for sentence in (*report.left_out(), *map(str, report.damages)):
            logger.warning("following: %s", sentence)

    pages = _merged([_noting(answer, away) for answer in answers], handed_over)
    try:
        first = next(pages, None)
    except (NotConnectedError, ReplayTimeoutError) as error:
        return _no_news(error, asked)
    return News(first, pages, marks, away[0] if away else None, asked)


def _no_news(away: NotConnectedError | ReplayTimeoutError, asked: Sources | None) -> News:
    return News(None, _nothing(), [], away, asked)


def _handed_over(
    begins: Mapping[int, int], clients: Collection[int] | None, since: Snapshot, snapshot: Snapshot | None
) -> dict[int, int]:
    """Return up to where events of each client are wanted that its keeper has handed over.

    Args:
        begins: where each client begins at its keeper.
        clients: whose events are wanted; None: everybody's.
        since: from where on.
        snapshot: up to where; None: all of them.
    """
    until = {
        client_id: begin if snapshot is None else min(begin, snapshot.get(client_id, 0))
        for client_id, begin in begins.items()
        if clients is None or client_id in clients
    }
    return {client_id: mark for client_id, mark in until.items() if mark > since.get(client_id, 0)}


def _merged(answers: Sequence[Pages], handed_over: Callable[[], Pages]) -> Pages:
    """Merge the answers of several keepers, who begin at the same time, and what is asked of the grapher then."""
    with ExitStack() as stack:
        for answer in answers:
            stack.enter_context(closing(answer))
        firsts = _at_once([functools.partial(next, answer, None) for answer in answers])
        rest = stack.enter_context(closing(handed_over()))
        first = next(rest, None)
        sources = [*zip(firsts, answers, strict=True), (first, rest)]
        yield from merge_pages([_resumed(*source) for source in sources if source[0] is not None])


def _resumed(first: Page | None, rest: Pages) -> Pages:
    if first is not None:
        yield first
    yield from rest


def _nothing() -> Pages:
    yield from ()


def _noting(pages: Pages, away: list[NotConnectedError | ReplayTimeoutError]) -> Pages:
    """Yield pages; from a keeper that is away none, and note why."""
    with closing(pages):
        try:
            first = next(pages, None)
        except (NotConnectedError, ReplayTimeoutError) as error:
            away.append(error)
            return
        if first is not None:
            yield first
            yield from pages


def _at_once(actions: Sequence[Callable[[], T]]) -> list[T]:
    """Do several things at the same time; return what they return when all of them are done."""
    if len(actions) < 2:
        return [action() for action in actions]
    with ThreadPoolExecutor(len(actions), "chronolog-ask") as pool:
        doing = [pool.submit(action) for action in actions]
    return [done.result() for done in doing]
