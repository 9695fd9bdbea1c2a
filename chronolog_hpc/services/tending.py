"""What the grapher does with what it has: it merges segments into chunks, and deletes what has expired.

A thread looks every second at the stories that segments have come of, and merges those of which there is enough, or
for long enough, for the story's policy. Now and then it deletes what is older than a story's retention. Readers go on
meanwhile, and so do keepers that hand over.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path

from chronolog_hpc.services.policy import Pace, Policy
from chronolog_hpc.services.stories import Stories
from py_chronolog_client.errors import ChronoLogError, NotFoundError
from py_chronolog_client.store.compaction import compact
from py_chronolog_client.store.retention import expire

logger = logging.getLogger("chronolog_hpc.services")

_Story = tuple[str, str, int]
_Action = Callable[[_Story, Path, Policy], bool]


class Tending:
    """Merges and deletes what is due until it is stopped."""

    def __init__(self, stories: Stories, pace: Pace) -> None:
        """Begin in a thread, with what was left when the grapher ended."""
        self._stories = stories
        self._pace = pace
        self._growing: dict[_Story, None] = {}
        """Stories of which segments have come."""
        self._expiring: dict[_Story, None] = {}
        """Stories whose events are not kept for ever, as far as is known."""
        self._failed: dict[_Story, None] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chronolog-tending", daemon=True)
        self._thread.start()

    def note(self, story: _Story) -> None:
        """Take note that a segment of a story has come."""
        self._growing[story] = self._expiring[story] = None

    def stop(self) -> None:
        """Finish what is being done, and end."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        for story in self._stories:
            self.note(story)
        expired_s = time.monotonic()
        while not self._stopped.wait(self._pace.look_s):
            for story in list(self._growing):
                self._tend(story, self._merge, self._growing)
            if time.monotonic() - expired_s >= self._pace.expire_s:
                expired_s = time.monotonic()
                while self._failed:
                    self.note(self._failed.popitem()[0])
                for story in list(self._expiring):
                    self._tend(story, self._expire, self._expiring)

    def _tend(self, story: _Story, action: _Action, those: dict[_Story, None]) -> None:
        """Do something for a story, unless the grapher ends; forget a story of which there is no more to do."""
        if self._stopped.is_set():
            return
        del those[story]
        try:
            directory = self._stories.find(*story)
            policy = Policy.of(self._stories.catalog.story_attributes(*story[:2]))
            if action(story, directory, policy):
                those[story] = None
        except (NotFoundError, FileNotFoundError):
            return  # it is destroyed
        except (ChronoLogError, OSError) as error:
            self._failed[story] = None
            logger.warning("the story %r of %r stays as it is for now: %s", story[1], story[0], error)

    def _merge(self, story: _Story, directory: Path, policy: Policy) -> bool:
        """Merge the segments of a story if that is due; tell whether it may be later."""
        tier = self._pace.tiers[policy.tier]
        status = [path.stat() for path in directory.glob("*.log")]
        if not status or tier.merge_s == math.inf:
            return False
        age_s = time.time() - min(each.st_mtime for each in status)
        if age_s < tier.merge_s and sum(each.st_size for each in status) < tier.merge_bytes:
            return True
        while (chunk := compact(self._stories.root, directory)) is not None:
            logger.info(
                "%d events of %d clients of the story %r are merged into a chunk of %d bytes",
                chunk.events,
                len(chunk.client_ids),
                story[1],
                chunk.size_bytes,
            )
        return False

    def _expire(self, story: _Story, directory: Path, policy: Policy) -> bool:
        """Delete what has expired of a story; tell whether something may expire later."""
        if policy.retention_s is None:
            return False
        expired = expire(self._stories.root, directory, time.time_ns() - policy.retention_s * 10**9)
        if expired.events:
            logger.info(
                "%d events (%d bytes) of the story %r have expired, and are deleted",
                expired.events,
                expired.size_bytes,
                story[1],
            )
        return True
