"""Questions about stories, asked over the network: of a ChronoPlayer, and by it of the ChronoKeepers.

Every question goes over a connection of its own, which is kept for the next one. A scan that is given up in the
middle ends its connection: nothing else would stop the pages that are under way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from typing import Any

from py_chronolog_client.engine.base import MAX_TIME_NS, ScanReport, Snapshot
from py_chronolog_client.engine.connection import (
    CONNECT_S,
    Body,
    Connection,
    Connections,
    NoAnswerError,
    raise_failure,
)
from py_chronolog_client.errors import (
    DamageError,
    ProtocolError,
    ReplayTimeoutError,
)
from py_chronolog_client.page import Page
from py_chronolog_client.store.format import decode_map
from py_chronolog_client.wire import messages
from py_chronolog_client.wire.messages import Message, expect, pack_ids, pack_marks, unpack_marks
from py_chronolog_client.wire.pages import unpack_page

SILENCE_S = 180.0
"""A replay without a time-out of its own waits so long for its next page."""
_LATE_S = CONNECT_S
"""So much later than its own deadline an answer may come."""
_LONGEST_MS = 2**40


class RemoteReader:
    """What a player or keeper knows of stories.

    Thread safety: everything; each thread's question has a connection of its own.
    """

    def __init__(self, connect: Callable[[], Connection]) -> None:
        """Ask over the connections that `connect` makes."""
        self._connections = Connections(connect)

    def snapshot(self, chronicle: str, story: str, uid: int = 0) -> Snapshot:
        """Return the present high-water mark of every client."""
        with self._connections.asking(messages.TakeSnapshot(chronicle, story, uid)) as connection:
            return unpack_marks(expect(_answer(connection)[0], messages.Marks).marks)

    def clients(self, chronicle: str, story: str, uid: int = 0) -> dict[int, dict[str, Any]]:
        """Return what each client of a story said of itself."""
        found = {}
        with self._connections.asking(messages.ListClients(chronicle, story, uid)) as connection:
            while not isinstance((answer := _answer(connection))[0], messages.Done):
                described = expect(answer[0], messages.Description)
                found[described.client_id] = _description(answer[1])
        return found

    def scan(
        self,
        chronicle: str,
        story: str,
        start_ns: int = 0,
        end_ns: int = MAX_TIME_NS,
        *,
        clients: Sequence[int] | None = None,
        snapshot: Snapshot | None = None,
        since: Snapshot | None = None,
        timeout_s: float | None = None,
        verify: bool = False,
        aligned: bool = False,
        report: ScanReport | None = None,
        uid: int = 0,
        starts: dict[int, int] | None = None,
    ) -> Iterator[Page]:
        """Deliver events as `Engine.scan` does; where a uid is named, `starts` is filled before the first page."""
        question = messages.Scan(
            chronicle,
            story,
            uid,
            start_ns,
            end_ns,
            pack_ids(clients or ()),
            clients is None,
            pack_marks(snapshot or {}),
            snapshot is None,
            pack_marks(since or {}),
            _milliseconds(timeout_s),
            verify,
            aligned,
        )
        found = ScanReport() if report is None else report
        before = len(found.damages)
        with self._connections.asking(question) as connection:
            deadline = None if timeout_s is None else time.monotonic() + timeout_s + _LATE_S
            answer = _begun(connection, deadline, uid, starts)
            while not isinstance(end := answer[0], messages.ScanEnd):
                if isinstance(answer[0], messages.Damaged):
                    found.damages.append(DamageError(answer[0].path, answer[0].offset, answer[0].reason))
                else:
                    yield unpack_page(expect(answer[0], messages.Page), answer[1])
                answer = _answer(connection, deadline)
            found.missing += end.missing
            found.disbelieved += end.disbelieved
            found.unseen += end.unseen
        if report is None and found.damages[before:]:
            raise found.damages[before]

    def follow(
        self, chronicle: str, story: str, cursor: Snapshot, timeout_s: float
    ) -> tuple[list[Page], Snapshot]:
        """Wait for events beyond `cursor` as `Engine.follow` does."""
        marks: dict[int, int] = {}
        pages = list(self.follow_pages(chronicle, story, cursor, timeout_s, marks))
        return pages, marks

    def follow_pages(
        self,
        chronicle: str,
        story: str,
        cursor: Snapshot,
        timeout_s: float,
        marks: dict[int, int],
        *,
        uid: int = 0,
        starts: dict[int, int] | None = None,
    ) -> Iterator[Page]:
        """Deliver what `follow` returns page by page; at the end `marks` is filled with the next cursor.

        Where a uid is named, `starts` is filled before the first page.
        """
        yield from self.ask_to_follow(chronicle, story, cursor, timeout_s, uid=uid).pages(marks, starts)

    def ask_to_follow(
        self, chronicle: str, story: str, cursor: Snapshot, timeout_s: float, *, uid: int = 0
    ) -> Following:
        """Ask what `follow_pages` asks; the answer is read when there is one."""
        timeout_ms = min(round(1000 * timeout_s), _LONGEST_MS)
        question = messages.Follow(chronicle, story, uid, pack_marks(cursor), timeout_ms)
        return Following(self._connections.asking(question), time.monotonic() + timeout_s + _LATE_S, uid)

    def close(self) -> None:
        """End the idle connections."""
        self._connections.close()


class Following:
    """A follower's question that was asked."""

    def __init__(self, asking: AbstractContextManager[Connection], deadline_s: float, uid: int) -> None:
        self._asking = ExitStack()
        self._connection = self._asking.enter_context(asking)
        self._deadline_s = deadline_s
        self._uid = uid

    def fileno(self) -> int:
        """Return the descriptor on which the answer comes."""
        return self._connection.fileno()

    def pages(self, marks: dict[int, int], starts: dict[int, int] | None = None) -> Iterator[Page]:
        """Deliver the answer, which fills `starts` at its beginning where a uid was named, and `marks` at its end."""
        with self._asking:
            answer = _begun(self._connection, self._deadline_s, self._uid, starts)
            while isinstance(answer[0], messages.Page):
                yield unpack_page(answer[0], answer[1])
                answer = _answer(self._connection, self._deadline_s)
            marks.update(unpack_marks(expect(answer[0], messages.Marks).marks))

    def close(self) -> None:
        """Give up an answer that was not read to its end: its connection ends."""
        with suppress(GeneratorExit), self._asking:
            raise GeneratorExit


def _begun(
    connection: Connection, deadline: float | None, uid: int, starts: dict[int, int] | None
) -> tuple[Message, Body]:
    """Return the first part of an answer, behind the `Starts` of one about a uid."""
    answer = _answer(connection, deadline)
    if not uid:
        return answer
    assert starts is not None
    starts.update(unpack_marks(expect(answer[0], messages.Starts).marks))
    return _answer(connection, deadline)


def _answer(connection: Connection, deadline: float | None = None) -> tuple[Message, Body]:
    """Return the next message of an answer; raise what it tells of."""
    try:
        answer = connection.receive(time.monotonic() + SILENCE_S if deadline is None else deadline)
    except NoAnswerError as error:
        raise ReplayTimeoutError(str(error)) from error
    raise_failure(answer[0])
    return answer


def _description(body: Body) -> dict[str, Any]:
    try:
        return decode_map(bytes(body))
    except ValueError as error:
        raise ProtocolError(f"a description that is none: {error}") from error


def _milliseconds(timeout_s: float | None) -> int:
    """Return a time-out as messages give it: 0 for none, else at least 1."""
    return 0 if timeout_s is None else min(max(1, round(1000 * timeout_s)), _LONGEST_MS)
