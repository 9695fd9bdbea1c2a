"""What the grapher does with what it has: it merges segments into chunks, and deletes what has expired.

A thread looks every second whether of some story there is enough to merge, or for long enough, for the story's policy.
Now and then it deletes what is older than a story's retention. Readers go on meanwhile, and so do keepers that hand
over.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from chronolog_hpc.services.policy import Pace, Policy
from chronolog_hpc.services.stories import Stories
from py_chronolog_client.errors import ChronoLogError, NotFoundError
from py_chronolog_client.store.compaction import compact
from py_chronolog_client.store.retention import expire

logger = logging.getLogger("chronolog_hpc.services")

_Story = tuple[str, str, int]


class _Segments(NamedTuple):
    """What of a story is not merged yet."""

    policy: Policy
    size_bytes: int
    since_s: float


class Tending:
    """Merges and deletes what is due until it is stopped."""

    def __init__(self, stories: Stories, pace: Pace) -> None:
        """Begin in a thread, with what was left when the grapher ended."""
        self._stories = stories
        self._pace = pace
        self._lock = threading.Lock()
        self._unmerged: dict[_Story, _Segments] = {}
        self._expiring: set[_Story] = set()
        self._failed: set[_Story] = set()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chronolog-tending", daemon=True)
        self._thread.start()

    def note(self, story: _Story, size_bytes: int) -> None:
        """Take note that a segment of a story has come.

        Raises:
            ChronoLogError: the story cannot be read.
        """
        with self._lock:
            before = self._unmerged.get(story)
            if before is None:
                policy = Policy.of(self._stories.catalog.story_attributes(*story[:2]))
                before = _Segments(policy, 0, time.monotonic())
                if policy.retention_s is not None:
                    self._expiring.add(story)
            self._unmerged[story] = before._replace(size_bytes=before.size_bytes + size_bytes)

    def stop(self) -> None:
        """Finish what is being done, and end."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        for story in self._stories:
            self._tend(story, self._find_segments)
        expired_s = time.monotonic()
        while not self._stopped.wait(self._pace.look_s):
            for story in self._due():
                self._tend(story, self._merge)
            if time.monotonic() - expired_s >= self._pace.expire_s:
                expired_s = time.monotonic()
                failed, self._failed = self._failed, set()
                for story in failed:
                    self._tend(story, self._find_segments)
                for story in list(self._expiring):
                    self._tend(story, self._expire)

    def _due(self) -> list[_Story]:
        """Return the stories whose segments are to be merged now, and take them from the list."""
        with self._lock:
            due = [story for story, segments in self._unmerged.items() if self._is_due(segments)]
            for story in due:
                del self._unmerged[story]
        return due

    def _is_due(self, segments: _Segments) -> bool:
        tier = self._pace.tiers[segments.policy.tier]
        age_s = time.monotonic() - segments.since_s
        return segments.size_bytes >= tier.merge_bytes or age_s >= tier.merge_s

    def _tend(self, story: _Story, action: Callable[[_Story, Path], None]) -> None:
        """Do something for a story, unless the grapher ends or the story is gone; what fails is tried again later."""
        if self._stopped.is_set():
            return
        try:
            action(story, self._stories.find(*story))
        except (NotFoundError, FileNotFoundError):
            self._expiring.discard(story)
        except (ChronoLogError, OSError) as error:
            self._failed.add(story)
            logger.warning("the story %r of %r stays as it is for now: %s", story[1], story[0], error)

    def _find_segments(self, story: _Story, directory: Path) -> None:
        self.note(story, sum(path.stat().st_size for path in directory.glob("*.log")))

    def _merge(self, story: _Story, directory: Path) -> None:
        """Merge the segments of a story, and small chunks with them."""
        policy = Policy.of(self._stories.catalog.story_attributes(*story[:2]))
        while (chunk := compact(self._stories.root, directory, policy.span_ns)) is not None:
            logger.info(
                "segments of %d clients of the story %r and %d chunks are merged into a chunk of %d events, %d bytes",
                len(chunk.client_ids),
                story[1],
                chunk.chunks,
                chunk.events,
                chunk.size_bytes,
            )

    def _expire(self, story: _Story, directory: Path) -> None:
        """Delete what has expired of a story."""
        retention_s = Policy.of(self._stories.catalog.story_attributes(*story[:2])).retention_s
        assert retention_s is not None
        expired = expire(self._stories.root, directory, time.time_ns() - retention_s * 10**9)
        if expired.events:
            logger.info(
                "%d events (%d bytes) of the story %r have expired, and are deleted",
                expired.events,
                expired.size_bytes,
                story[1],
            )
