"""A keeper or the grapher, asked about one story: what it answers, or why it does not.

Who does not know the story has nothing of it, unless the story is gone altogether. Who does not answer makes the
question fail, with his name.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

from py_chronolog_client.engine.base import ScanReport, Snapshot
from py_chronolog_client.engine.connection import Address
from py_chronolog_client.engine.remote_reader import Following, RemoteReader
from py_chronolog_client.errors import NotConnectedError, NotFoundError, ReplayTimeoutError
from py_chronolog_client.page import Page

Pages = Generator[Page, None, None]


class Source:
    """One keeper, or the grapher, that is asked about one story.

    Attributes:
        address: where it listens; port 0 if it is away, and its node is all that is known.
        is_silent: whether it turned out to be away, or never to have heard of the story.
    """

    def __init__(
        self,
        address: Address,
        title: str,
        reader: RemoteReader,
        story: tuple[str, str, int],
        is_current: Callable[[], bool],
        deadline_s: float | None,
    ) -> None:
        """Prepare to ask.

        Args:
            address: as the attribute.
            title: "ChronoKeeper" or "ChronoGrapher".
            reader: asks there.
            story: names of the chronicle and the story, and its uid.
            is_current: tells whether the story is still the one that was meant.
            deadline_s: by time.monotonic().
        """
        self.address = address
        self._title = title
        self._reader = reader
        self._chronicle, self._story, self._uid = story
        self._is_current = is_current
        self._deadline_s = deadline_s
        self.is_silent = False

    def snapshot(self) -> Snapshot:
        try:
            return self._reader.snapshot(self._chronicle, self._story, self._uid)
        except (NotFoundError, NotConnectedError) as error:
            self._require_that_it_has_nothing(error)
        return {}

    def clients(self) -> dict[int, dict[str, Any]]:
        try:
            return self._reader.clients(self._chronicle, self._story, self._uid)
        except (NotFoundError, NotConnectedError) as error:
            self._require_that_it_has_nothing(error)
        return {}

    def scan(self, start_ns: int, end_ns: int, **options: Any) -> Pages:
        left_s = None if self._deadline_s is None else self._deadline_s - time.monotonic()
        return self._pages(
            self._reader.scan(
                self._chronicle, self._story, start_ns, end_ns, uid=self._uid, timeout_s=left_s, **options
            )
        )

    def follow(self, cursor: Snapshot, marks: dict[int, int], starts: dict[int, int]) -> Pages:
        return self._pages(
            self._reader.follow_pages(
                self._chronicle, self._story, cursor, 0.0, marks, uid=self._uid, starts=starts
            )
        )

    def ask_to_follow(self, cursor: Snapshot, timeout_s: float) -> Following:
        return self._reader.ask_to_follow(self._chronicle, self._story, cursor, timeout_s, uid=self._uid)

    def answer(self, question: Following, marks: dict[int, int], starts: dict[int, int]) -> Pages:
        return self._pages(question.pages(marks, starts))

    def handed_over(
        self,
        until: Mapping[int, int],
        start_ns: int,
        end_ns: int,
        since: Snapshot,
        aligned: bool,
        report: ScanReport,
    ) -> Pages:
        """Deliver what keepers have handed over of some clients, up to where their own answers begin."""
        if not until:
            return
        yield from self.scan(
            start_ns,
            end_ns,
            clients=list(until),
            snapshot=until,
            since=since,
            aligned=aligned,
            report=report,
            starts={},
        )
        if self.is_silent:
            report.missing += sum(mark - since.get(client_id, 0) for client_id, mark in until.items())

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
        """Return if one that answers with this error has nothing of the story.

        Raises:
            NotFoundError: the story has been destroyed.
            NotConnectedError: it is away, or does not speak the protocol.
            ReplayTimeoutError: that took until the deadline.
        """
        self.is_silent = True
        if isinstance(error, NotFoundError):
            if not self._is_current():
                raise error
            return
        if self._deadline_s is not None and time.monotonic() > self._deadline_s:
            raise ReplayTimeoutError(f"the {self._title} at {self._name} does not answer in time") from error
        raise NotConnectedError(
            f"the {self._title} at {self._name}, which may have events of the story {self._story!r:.200}, is away "
            f"({error}): start it again, or wait until it is back"
        ) from error

    @property
    def _name(self) -> str:
        return str(self.address) if self.address.port else self.address.host
