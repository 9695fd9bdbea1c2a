"""The stories of a keeper or grapher: a store in which every story has the uid that the visor gave it.

A name may be another story's tomorrow. So whoever means one story says its uid, and gets that story or none. What was
destroyed is forgotten when the visor says so, or at the latest when a story with a higher uid comes under its name.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from py_chronolog_client.engine.base import MAX_TIME_NS, ScanReport, Snapshot
from py_chronolog_client.errors import ChronicleExistsError, NotFoundError
from py_chronolog_client.page import Page
from py_chronolog_client.store.catalog import Catalog
from py_chronolog_client.store.root import StoreRoot
from py_chronolog_client.store.storylog import StoryLog
from py_chronolog_client.wire import messages

UID = "uid"
"""Name of the attribute under which a story's uid is kept."""

logger = logging.getLogger("chronolog_hpc.services")


class Stories:
    """Stories by name and uid, and what is in them.

    Thread safety: everything, but a story is made and forgotten by one thread at a time.
    """

    def __init__(self, root: StoreRoot, *, is_last: bool) -> None:
        """Use a store.

        Args:
            root: the store.
            is_last: whether nobody else has what is asked for here, so that it is missing if it is not here.
        """
        self.root = root
        self._is_last = is_last
        self.catalog = Catalog(root)

    def __iter__(self) -> Iterator[tuple[str, str, int]]:
        """Yield (chronicle, story, uid) of all stories."""
        for chronicle in self.catalog.chronicles():
            with suppress(NotFoundError):
                for story in self.catalog.stories(chronicle):
                    with suppress(NotFoundError):
                        yield chronicle, story, self.uid(chronicle, story)

    def make(self, chronicle: str, story: str, uid: int, attributes: Mapping[str, str]) -> Path:
        """Return the directory of a story, which is made if it is not there; an older one of that name is forgotten.

        Raises:
            NotFoundError: there is a newer one.
        """
        self._forget(chronicle, story, uid - 1)
        with suppress(ChronicleExistsError):
            self.catalog.create_chronicle(chronicle, {})
        directory = self.catalog.ensure_story(chronicle, story, {**attributes, UID: str(uid)})
        self.find(chronicle, story, uid)
        return directory

    def find(self, chronicle: str, story: str, uid: int) -> Path:
        """Return the directory of a story.

        Args:
            chronicle: where it is.
            story: its name.
            uid: of the only one that will do; 0 for any.

        Raises:
            NotFoundError: it is not there.
        """
        directory = self.catalog.story_directory(chronicle, story)
        if uid not in (0, self.uid(chronicle, story)):
            raise NotFoundError(f"the story {story!r:.200} was destroyed, and made again")
        return directory

    def uid(self, chronicle: str, story: str) -> int:
        """Return the uid of a story; 0 where no visor has given it one.

        Raises:
            NotFoundError: it is not there.
        """
        text = self.catalog.story_attributes(chronicle, story).get(UID, "")
        return int(text) if text.isdecimal() else 0

    def forget(self, drop: messages.Drop) -> None:
        """Remove what the visor says was destroyed."""
        with suppress(NotFoundError):
            for story in [drop.story] if drop.story else self.catalog.stories(drop.chronicle):
                self._forget(drop.chronicle, story, drop.uid)

    def _forget(self, chronicle: str, story: str, uid: int) -> None:
        """Remove a story if it has this uid or a lower one."""
        with suppress(NotFoundError):
            if 0 < self.uid(chronicle, story) <= uid:
                self.catalog.destroy_story(chronicle, story)
                logger.info("the story %r of %r was destroyed, and is forgotten", story, chronicle)

    # -- what is in them --

    def snapshot(self, chronicle: str, story: str, uid: int) -> Snapshot:
        """Return the present high-water mark of every client."""
        return self._log(chronicle, story, uid, ScanReport()).snapshot()

    def clients(self, chronicle: str, story: str, uid: int) -> dict[int, dict[str, Any]]:
        """Return what each client of a story said of itself."""
        known = self.catalog.census(self.find(chronicle, story, uid))
        self.find(chronicle, story, uid)  # or it was destroyed meanwhile
        return {client_id: client.description for client_id, client in known.items()}

    def scan(
        self,
        chronicle: str,
        story: str,
        start_ns: int = 0,
        end_ns: int = MAX_TIME_NS,
        *,
        uid: int = 0,
        clients: Sequence[int] | None = None,
        snapshot: Snapshot | None = None,
        since: Snapshot | None = None,
        timeout_s: float | None = None,
        aligned: bool = False,
        report: ScanReport,
        starts: dict[int, int],
    ) -> Iterator[Page]:
        """Deliver events as `Engine.scan` does; before the first page `starts` is filled."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        log = self._log(chronicle, story, uid, report, clients)
        starts.update(log.starts())
        until = log.snapshot()
        if snapshot is not None and self._is_last:
            until = snapshot
        elif snapshot is not None:
            until = {client_id: min(mark, snapshot.get(client_id, 0)) for client_id, mark in until.items()}
        yield from log.pages(start_ns, end_ns, since or {}, until, report, deadline_s, True, aligned)

    def _log(
        self, chronicle: str, story: str, uid: int, report: ScanReport, clients: Sequence[int] | None = None
    ) -> StoryLog:
        log = StoryLog(self.find(chronicle, story, uid))
        log.refresh(report, clients)
        self.find(chronicle, story, uid)  # or what was read may be another's
        return log
