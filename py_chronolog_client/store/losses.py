"""Counting the events that were refused, exactly, even from signal handlers and many threads."""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque

logger = logging.getLogger("py_chronolog_client")

_FOLD_AT = 1024


class Losses:
    """Numbers of refused events by reason.

    Thread safety: everything. Adding is one append to a deque, which nothing can interrupt half-way; who can
    take the lock without waiting folds the deque into totals.
    """

    def __init__(self) -> None:
        self._added: deque[tuple[str, int]] = deque()
        self._totals: Counter[str] = Counter()
        self._folding = threading.Lock()
        self._warned = False

    def add(self, reason: str, count: int) -> None:
        """Count `count` events as refused; the first time, say so in the log."""
        if not count:
            return
        self._added.append((reason, count))
        if len(self._added) > _FOLD_AT:
            self._fold()
        if not self._warned:
            self._warned = True
            logger.warning(
                "events are being refused (%s): log_event returns 0, statistics() counts them, this is said once",
                reason,
            )

    def by_reason(self) -> dict[str, int]:
        """Return the number of refused events for each reason."""
        self._fold()
        totals = self._totals.copy()
        for reason, count in list(self._added):
            totals[reason] += count
        return dict(totals)

    def _fold(self) -> None:
        if not self._folding.acquire(blocking=False):
            return
        try:
            while self._added:
                reason, count = self._added.popleft()
                self._totals[reason] += count
        finally:
            self._folding.release()
