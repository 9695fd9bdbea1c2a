"""Questions about stories, answered message by message.

Each answer is an iterator that does its work when it is asked for the next message. So whoever sends them decides how
far it runs ahead, and what is not sent is not made.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from itertools import chain
from typing import Any, Protocol

import msgpack

from chronolog_hpc.services.session import Session
from chronolog_hpc.services.stories import Stories
from py_chronolog_client.engine.base import MAX_TIME_NS, ScanReport, Snapshot
from py_chronolog_client.errors import InvalidArgumentError
from py_chronolog_client.page import MemoryPage, Page
from py_chronolog_client.store.storylog import StoryLog
from py_chronolog_client.wire import messages
from py_chronolog_client.wire.messages import Message, pack_marks, unpack_ids, unpack_marks
from py_chronolog_client.wire.pages import MAX_PAGE_BYTES, pack_page

_FIRST_EVENTS, _GROWTH = 256, 8
_COLUMNS_BYTES = 48
"""Of one event in an aligned page."""

Answer = tuple[Message, list[bytes | memoryview]]

logger = logging.getLogger("chronolog_hpc.services")


class Reader(Protocol):
    """Who knows of stories: the store of a service, or all keepers together. What its methods do is said in `Engine`."""

    def clients(self, chronicle: str, story: str, uid: int) -> dict[int, dict[str, Any]]: ...

    def scan(
        self,
        chronicle: str,
        story: str,
        start_ns: int,
        end_ns: int,
        *,
        uid: int,
        clients: Sequence[int] | None,
        snapshot: Snapshot | None,
        since: Snapshot | None,
        timeout_s: float | None,
        aligned: bool,
        report: ScanReport,
        starts: dict[int, int],
    ) -> Iterator[Page]:
        """Deliver events, all of them checked; `starts` is filled before the first page."""
        ...


def described(reader: Reader, question: messages.ListClients) -> Iterator[Answer]:
    """Answer what the clients of a story say of themselves."""
    for client_id, description in reader.clients(question.chronicle, question.story, question.uid).items():
        yield messages.Description(client_id), [msgpack.packb(description)]
    yield messages.Done(), []


def scanned(reader: Reader, question: messages.Scan) -> Iterator[Answer]:
    """Answer a scan. The records of a page travel with it, so they are always checked before."""
    if not 0 <= question.start_ns <= MAX_TIME_NS or not 0 <= question.end_ns <= MAX_TIME_NS:
        raise InvalidArgumentError(
            f"no times lie between {question.start_ns} and {question.end_ns} ns: give 0 to 2**64 - 1"
        )
    report = ScanReport()
    starts: dict[int, int] = {}
    pages = reader.scan(
        question.chronicle,
        question.story,
        question.start_ns,
        question.end_ns,
        uid=question.uid,
        clients=None if question.every_client else unpack_ids(question.clients),
        snapshot=None if question.until_now else unpack_marks(question.until),
        since=unpack_marks(question.since),
        timeout_s=question.timeout_ms / 1000 or None,
        aligned=question.aligned,
        report=report,
        starts=starts,
    )
    first = next(pages, None)
    yield from begun(question, starts)
    if first is not None:
        yield from packed(chain([first], pages))
    for damage in report.damages:
        yield messages.Damaged(damage.path, damage.offset, damage.reason), []
    yield messages.ScanEnd(report.missing, report.disbelieved, report.unseen), []


def unchanged(question: messages.Follow) -> Iterator[Answer]:
    """Answer a follower for whom there is nothing new."""
    yield from begun(question, {})
    yield messages.Marks(question.cursor), []


def begun(question: messages.Scan | messages.Follow, starts: Snapshot) -> Iterator[Answer]:
    """Begin the answer to a service: where the events of each client begin in it, if not with its first."""
    if question.uid:
        yield messages.Starts(pack_marks({client: mark for client, mark in starts.items() if mark})), []


async def send_all(session: Session, answers: Iterator[Answer], pool: Executor) -> None:
    """Send what an iterator yields; while one message goes, the next is made in a thread of `pool`.

    What was begun is sent to its end also when the server stops, as far as its patience reaches.
    """
    loop = asyncio.get_running_loop()

    def make() -> asyncio.Future[Answer | None]:
        return loop.run_in_executor(pool, next, answers, None)

    coming = make()
    try:
        while (answer := await coming) is not None:
            coming = make()
            await session.send(*answer)
            if isinstance(answer[0], messages.Page):
                session.counts["events_out"] += answer[0].count
    finally:
        await asyncio.wait([coming])
        if not coming.cancelled():
            coming.exception()
        if isinstance(answers, Generator):
            await loop.run_in_executor(pool, answers.close)


class Follower:
    """The story that a session follows, as it was when the session asked last."""

    def __init__(self, stories: Stories) -> None:
        self._stories = stories
        self._story: tuple[str, str, int] | None = None
        self._said: set[str] = set()

    def news(self, question: messages.Follow, cursor: Snapshot) -> Iterator[Answer] | None:
        """Return the answer to a follower, or None if there is nothing behind his cursor."""
        directory = self._stories.find(question.chronicle, question.story, question.uid)
        story = question.chronicle, question.story, self._stories.uid(question.chronicle, question.story)
        if story != self._story:
            self._log = StoryLog(directory)
            self._story = story
        report = ScanReport()
        self._log.refresh(report)
        marks = self._log.snapshot()
        self._say(report)
        if all(mark <= cursor.get(client_id, 0) for client_id, mark in marks.items()):
            return None
        return self._answer(question, cursor, marks)

    def _answer(self, question: messages.Follow, cursor: Snapshot, marks: Snapshot) -> Iterator[Answer]:
        report = ScanReport()
        yield from begun(question, self._log.starts())
        yield from packed(self._log.pages(0, MAX_TIME_NS, cursor, marks, report, verify=True))
        self._say(report)
        yield messages.Marks(pack_marks({**cursor, **marks})), []

    def _say(self, report: ScanReport) -> None:
        """Warn of what a follower does not get, once."""
        for sentence in {*report.left_out(), *map(str, report.damages)} - self._said:
            self._said.add(sentence)
            logger.warning("following: %s", sentence)


def packed(pages: Iterable[Page]) -> Iterator[Answer]:
    """Yield the messages that carry pages.

    Records are fetched a few at a time: as many as those before let expect to fit a message.
    """
    step = _FIRST_EVENTS
    for page in pages:
        windows_ns = page.windows_ns()
        start = 0
        while start < len(page):
            payload = page.payload(start, start + step)
            cut = slice(start, start + len(payload))
            aligned = None if page.aligned is None else page.aligned[cut]
            columns = page.times[cut], page.client_ids[cut], page.sequences[cut]
            yield from pack_page(MemoryPage(*columns, payload, windows_ns[cut], aligned))
            start += len(payload)
            part_bytes = len(payload) * _COLUMNS_BYTES + len(payload.data)
            fitting = len(payload) * MAX_PAGE_BYTES // part_bytes
            step = max(1, min(_GROWTH * step, fitting))
