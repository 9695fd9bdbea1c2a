"""All keepers of a deployment as one reader: each is asked the same question, and their answers are merged.

The visor says which keepers may have events of a story. One of them that knows nothing of the story yet has none. One
that does not answer makes the question fail, with its name: an answer is never silently less than what there is. Only
a follower is told what the others have meanwhile: his cursor says what he is still to get.
"""

from __future__ import annotations

import copy
import functools
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from typing import Any, NamedTuple, TypeVar

from py_chronolog_client.engine.base import MAX_TIME_NS, ScanReport, Snapshot
from py_chronolog_client.engine.connection import Address, Connection, Connections
from py_chronolog_client.engine.merged import merge_clients, merge_pages, merge_reports, merge_snapshots
from py_chronolog_client.engine.remote_reader import RemoteReader
from py_chronolog_client.errors import NotConnectedError, NotFoundError, ReplayTimeoutError
from py_chronolog_client.page import Page
from py_chronolog_client.wire import messages
from py_chronolog_client.wire.handshake import SERVICE_NAME, Identity

T = TypeVar("T")
Pages = Generator[Page, None, None]


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
    silent: set[Address]
    """Keepers that are away, or have never heard of the story."""

    def next_cursor(self, cursor: Snapshot) -> dict[int, int]:
        """Return the cursor behind all pages, when they are taken."""
        return {**cursor, **merge_snapshots(self.marks)}


class Keepers:
    """What the keepers know of stories.

    Thread safety: everything.
    """

    def __init__(self, visor: Address, identity: Identity) -> None:
        """Learn from a visor where keepers are.

        Args:
            visor: where it listens.
            identity: of the services.
        """
        self._identity = identity
        self._asker = SERVICE_NAME
        self._visor = Connections(lambda: self._connect(visor, "visor"))
        self._readers: dict[Address, RemoteReader] = {}
        self._connections: weakref.WeakSet[Connection] = weakref.WeakSet()

    def on_behalf_of(self, reader: str) -> Keepers:
        """Return the same keepers, which say only what somebody may read, by his name; others get NotAuthorizedError."""
        same = copy.copy(self)
        same._asker = reader
        return same

    def snapshot(self, chronicle: str, story: str) -> Snapshot:
        """Return the present high-water mark of every client."""
        answers = _at_once([keeper.snapshot for keeper in self._located(chronicle, story)])
        return merge_snapshots([answer.result() for answer in answers])

    def clients(self, chronicle: str, story: str) -> dict[int, dict[str, Any]]:
        """Return what each client of a story said of itself."""
        answers = _at_once([keeper.clients for keeper in self._located(chronicle, story)])
        return merge_clients([answer.result() for answer in answers])

    def scan(
        self,
        chronicle: str,
        story: str,
        start_ns: int = 0,
        end_ns: int = MAX_TIME_NS,
        *,
        timeout_s: float | None = None,
        report: ScanReport,
        **options: Any,
    ) -> Iterator[Page]:
        """Deliver events as `Engine.scan` does, whose `options` these are."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        keepers = self._located(chronicle, story, deadline_s)
        reports = [ScanReport() for _ in keepers]
        scans = [
            keeper.scan(start_ns, end_ns, report=found, **options)
            for keeper, found in zip(keepers, reports, strict=True)
        ]
        for page in _merged(scans):
            yield page
            if deadline_s is not None and time.monotonic() > deadline_s:
                raise ReplayTimeoutError("the replay did not finish before its deadline")
        merge_reports(reports, report)

    def news(self, chronicle: str, story: str, cursor: Snapshot) -> News:
        """Return what there is behind a follower's cursor, without waiting."""
        away: list[NotConnectedError | ReplayTimeoutError] = []
        keepers: list[_Keeper] = []
        try:
            keepers = self._located(chronicle, story)
        except NotConnectedError as error:
            away.append(error)
        marks: list[dict[int, int]] = [{} for _ in keepers]
        pages = _merged(
            [_noting(keeper.follow(cursor, m), away) for keeper, m in zip(keepers, marks, strict=True)]
        )
        first = next(pages, None)
        silent = {keeper.address for keeper in keepers if keeper.is_silent}
        return News(first, pages, marks, away[0] if away else None, silent)

    def bells(
        self, chronicle: str, story: str, cursor: Snapshot, timeout_s: float, silent: set[Address]
    ) -> list[Connection]:
        """Return connections one of which becomes readable when there is something behind a cursor, or the time is over.

        A keeper that is `silent` or away has none. The caller closes them.
        """
        question = messages.Follow(
            chronicle, story, messages.pack_marks(cursor), max(1, round(1000 * timeout_s))
        )
        with ExitStack() as stack:
            bells = []
            with suppress(NotConnectedError):
                for keeper in self._located(chronicle, story):
                    if keeper.address in silent:
                        continue
                    with suppress(NotConnectedError):
                        bells.append(stack.enter_context(closing(self._connect(keeper.address, "keeper"))))
                        bells[-1].send(question)
            stack.pop_all()
            return bells

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

    def _located(self, chronicle: str, story: str, deadline_s: float | None = None) -> list[_Keeper]:
        """Return the keepers that may have events of a story, ready to be asked about it.

        Raises:
            NotFoundError: there is no such story.
            NotAuthorizedError: who asks may not read it.
            NotConnectedError: the visor is away.
        """
        question = messages.Locate(chronicle, story, self._asker)
        locate = functools.partial(self._visor.ask, question, messages.Located)
        located = locate()
        return [
            _Keeper(
                address,
                self._reader(address),
                (chronicle, story),
                lambda: locate().uid == located.uid,
                deadline_s,
            )
            for address in map(Address.of, located.keepers)
        ]

    def _reader(self, address: Address) -> RemoteReader:
        if address not in self._readers:
            self._readers[address] = RemoteReader(lambda: self._connect(address, "keeper"))
        return self._readers[address]


class _Keeper:
    """One keeper that is asked about one story.

    Attributes:
        address: where it listens; port 0 if it is away, and its node is all that is known.
        is_silent: whether it turned out to be away, or never to have heard of the story.
    """

    def __init__(
        self,
        address: Address,
        reader: RemoteReader,
        story: tuple[str, str],
        is_current: Callable[[], bool],
        deadline_s: float | None,
    ) -> None:
        """Prepare to ask.

        Args:
            address: as the attribute.
            reader: asks there.
            story: names of the chronicle and the story.
            is_current: tells whether the story is still the one that was meant.
            deadline_s: by time.monotonic().
        """
        self.address = address
        self._reader = reader
        self._story = story
        self._is_current = is_current
        self._deadline_s = deadline_s
        self.is_silent = False

    def snapshot(self) -> Snapshot:
        try:
            return self._reader.snapshot(*self._story)
        except (NotFoundError, NotConnectedError) as error:
            self._require_that_it_has_nothing(error)
        return {}

    def clients(self) -> dict[int, dict[str, Any]]:
        try:
            return self._reader.clients(*self._story)
        except (NotFoundError, NotConnectedError) as error:
            self._require_that_it_has_nothing(error)
        return {}

    def scan(self, start_ns: int, end_ns: int, **options: Any) -> Pages:
        left_s = None if self._deadline_s is None else self._deadline_s - time.monotonic()
        return self._pages(self._reader.scan(*self._story, start_ns, end_ns, timeout_s=left_s, **options))

    def follow(self, cursor: Snapshot, marks: dict[int, int]) -> Pages:
        return self._pages(self._reader.follow_pages(*self._story, cursor, 0.0, marks))

    def _pages(self, pages: Iterator[Page]) -> Pages:
        has_answered = False
        try:
            for page in pages:
                has_answered = True
                yield page
        except (NotFoundError, NotConnectedError) as error:
            if has_answered and isinstance(error, NotFoundError):
                raise
            self._require_that_it_has_nothing(error)

    def _require_that_it_has_nothing(self, error: NotFoundError | NotConnectedError) -> None:
        """Return if a keeper that answers with this error has nothing of the story.

        Raises:
            NotFoundError: the story has been destroyed.
            NotConnectedError: the keeper is away, or does not speak the protocol.
            ReplayTimeoutError: that took until the deadline.
        """
        self.is_silent = True
        if isinstance(error, NotFoundError):
            if not self._is_current():
                raise error
            return
        if self._deadline_s is not None and time.monotonic() > self._deadline_s:
            raise ReplayTimeoutError(f"the ChronoKeeper at {self._name} does not answer in time") from error
        raise NotConnectedError(
            f"the ChronoKeeper at {self._name}, which may have events of the story {self._story[1]!r:.200}, is away "
            f"({error}): start it again, or wait until it is back"
        ) from error

    @property
    def _name(self) -> str:
        return str(self.address) if self.address.port else self.address.host


def _merged(answers: Sequence[Pages]) -> Pages:
    """Merge the answers of several keepers, who begin at the same time."""
    with ExitStack() as stack:
        for answer in answers:
            stack.enter_context(closing(answer))
        firsts = _at_once([functools.partial(next, answer, None) for answer in answers])
        yield from merge_pages([_resumed(*begun) for begun in zip(firsts, answers, strict=True)])


def _resumed(first: Future[Page | None], rest: Pages) -> Pages:
    page = first.result()
    if page is not None:
        yield page
        yield from rest


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


def _at_once(actions: Sequence[Callable[[], T]]) -> list[Future[T]]:
    """Do several things at the same time; return when all of them are done."""
    if not actions:
        return []
    with ThreadPoolExecutor(len(actions), "chronolog-ask") as pool:
        return [pool.submit(action) for action in actions]
