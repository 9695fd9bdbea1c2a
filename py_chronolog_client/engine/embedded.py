"""The embedded engine: a store directory, no server.

Writers append to files of their own, readers merge what they find. Nothing but the directory connects the
processes, so it works wherever they share a file system.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from py_chronolog_client.engine.base import (
    MAX_TIME_NS,
    Capabilities,
    Engine,
    ScanReport,
    Snapshot,
    WriterOptions,
)
from py_chronolog_client.errors import ClosedError, InvalidArgumentError, NotFoundError, StoreError
from py_chronolog_client.store.catalog import Catalog
from py_chronolog_client.store.files import os_errors
from py_chronolog_client.store.format import NEW_FORMAT
from py_chronolog_client.store.root import StoreRoot, trusts_tails

if TYPE_CHECKING:
    from py_chronolog_client.page import Page
    from py_chronolog_client.store.appender import Appender
    from py_chronolog_client.store.storylog import StoryLog

TAIL_DIRECTORY_VARIABLE = "CHRONOLOG_TAIL_DIR"
"""Where tails lie: a directory on a node-local file system. Unset: beside the segments."""

logger = logging.getLogger("py_chronolog_client")

_POLL_S = 0.0005
_TRIES = 100


class EmbeddedEngine(Engine):
    """Chronicles and stories in a directory.

    Thread safety: everything.
    """

    capabilities = Capabilities()

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        create: bool = True,
        new_format: int = NEW_FORMAT,
        segment_limit_bytes: int | None = None,
    ) -> None:
        """Open a store.

        Args:
            directory: of the store.
            create: make it if it is not there; otherwise it must be there, and is only read.
            new_format: of a store that is made; 2 for one whose segments will be merged into chunks.
            segment_limit_bytes: how much space a client may take on the disk before its events are refused.

        Raises:
            InvalidArgumentError: the path, CHRONOLOG_MODE or CHRONOLOG_TRUST_TAILS makes no sense.
            NotConnectedError: the directory above it is missing (with `create`).
            NotAStoreError: the directory holds something else, or (without `create`) no store.
            StoreVersionError: the store is newer than this software.
            NotAuthorizedError: this user may not use it.
        """
        trusts_tails()
        root = StoreRoot.open(directory, create=create, new_format=new_format)
        root.segment_limit_bytes = segment_limit_bytes
        self._open_catalog: Catalog | None = Catalog(root)
        self._directory = root.path
        self._followed: dict[tuple[str, str], tuple[Path, StoryLog]] = {}
        self._said: set[str] = set()

    @property
    def directory(self) -> Path:
        """The directory of the store."""
        return self._directory

    def create_chronicle(self, chronicle: str, attributes: Mapping[str, str]) -> None:
        self._catalog.create_chronicle(chronicle, attributes)

    def destroy_chronicle(self, chronicle: str) -> None:
        self._catalog.destroy_chronicle(chronicle)

    def chronicles(self) -> list[str]:
        return self._catalog.chronicles()

    def chronicle_attributes(self, chronicle: str) -> dict[str, str]:
        return self._catalog.chronicle_attributes(chronicle)

    def destroy_story(self, chronicle: str, story: str) -> None:
        self._catalog.destroy_story(chronicle, story)

    def stories(self, chronicle: str) -> list[str]:
        return self._catalog.stories(chronicle)

    def story_attributes(self, chronicle: str, story: str) -> dict[str, str]:
        return self._catalog.story_attributes(chronicle, story)

    def story_directory(self, chronicle: str, story: str) -> Path:
        """Return the directory of a story, for whoever reads the files of its clients himself."""
        return self._catalog.story_directory(chronicle, story)

    def open_writer(
        self, chronicle: str, story: str, attributes: Mapping[str, str], options: WriterOptions
    ) -> Appender:
        from py_chronolog_client.store.appender import Appender

        for _ in range(_TRIES):
            directory = self._catalog.ensure_story(chronicle, story, attributes)
            # Where somebody has destroyed the story meanwhile, it is made again, if the chronicle is there.
            with suppress(NotFoundError), os_errors(directory), _destroyed_is_missing():
                return Appender(self._catalog, directory, options, tail_directory())
        raise NotFoundError(f"story {story!r} of {chronicle!r} is destroyed as often as it is made: give up")

    def clients(self, chronicle: str, story: str) -> dict[int, dict[str, Any]]:
        directory = self._catalog.story_directory(chronicle, story)
        found = {client_id: known.description for client_id, known in self._catalog.census(directory).items()}
        self._catalog.story_directory(chronicle, story)  # or it was destroyed meanwhile
        return found

    def snapshot(self, chronicle: str, story: str) -> Snapshot:
        log = self._story_log(chronicle, story)
        log.refresh(ScanReport())
        return log.snapshot()

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
    ) -> Iterator[Page]:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        found = ScanReport() if report is None else report
        log = self._story_log(chronicle, story)
        log.refresh(found, clients)
        until = log.snapshot()
        if snapshot is not None:
            until = {client_id: min(mark, snapshot.get(client_id, 0)) for client_id, mark in until.items()}
        yield from log.pages(start_ns, end_ns, since or {}, until, found, deadline, verify, aligned)
        if report is None and found.damages:
            raise found.damages[0]

    def follow(
        self, chronicle: str, story: str, cursor: Snapshot, timeout_s: float
    ) -> tuple[list[Page], Snapshot]:
        deadline = time.monotonic() + timeout_s
        directory = self._catalog.story_directory(chronicle, story)
        known, log = self._followed.get((chronicle, story), (None, None))
        if log is None or known != directory:
            log = self._story_log(chronicle, story)
            self._followed = {(chronicle, story): (directory, log)}
            self._said = set()
        while True:
            report = ScanReport()
            log.refresh(report)
            marks = log.snapshot()
            pages = [page for page in log.pages(0, MAX_TIME_NS, cursor, marks, report) if len(page)]
            for sentence in report.left_out():
                self._say(f"{directory}: some events", f"{directory}: {sentence}")
            for damage in map(str, report.damages):
                self._say(damage, damage)
            if pages or time.monotonic() >= deadline:
                return pages, {**cursor, **marks}
            time.sleep(_POLL_S)

    def close(self) -> None:
        self._open_catalog = None
        self._followed = {}

    def _say(self, what: str, sentence: str) -> None:
        """Warn of something that a follower does not get, once."""
        if what not in self._said:
            self._said.add(what)
            logger.warning("following: %s", sentence)

    @property
    def _catalog(self) -> Catalog:
        if self._open_catalog is None:
            raise ClosedError("the engine was closed")
        return self._open_catalog

    def _story_log(self, chronicle: str, story: str) -> StoryLog:
        from py_chronolog_client.store.storylog import StoryLog

        return StoryLog(self._catalog.story_directory(chronicle, story))


@contextmanager
def _destroyed_is_missing() -> Iterator[None]:
    """Go on behind the block if a file in it was not found, or was deleted while it was open."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESTALE):
            raise


def tail_directory() -> Path | None:
    """Return the directory of `CHRONOLOG_TAIL_DIR`, or None where tails lie in the store.

    Raises:
        InvalidArgumentError: it names no directory in which files can be made.
        StoreError: it is full.
    """
    value = os.environ.get(TAIL_DIRECTORY_VARIABLE)
    if not value:
        return None
    directory = os.path.expanduser(value)
    if not os.path.isdir(directory):
        raise InvalidArgumentError(
            f"{TAIL_DIRECTORY_VARIABLE}={value}: no such directory, make it or unset the variable"
        )
    import tempfile

    try:
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(
                value, f"{error.strerror}: make room there, or unset {TAIL_DIRECTORY_VARIABLE}"
            ) from error
        raise InvalidArgumentError(
            f"{TAIL_DIRECTORY_VARIABLE}={value}: no file can be made there ({error.strerror}), name another directory "
            "or unset the variable"
        ) from error
    return Path(directory).resolve()
