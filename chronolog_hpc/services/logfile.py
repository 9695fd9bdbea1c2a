"""A log file that cannot fill a disk: beyond a size it becomes FILE.1, and the oldest of these goes.

It is always the file of its name: one that was moved away or deleted, by logrotate for instance, is begun anew with
the next line. What is written to standard error without `logging`, by an interpreter that crashes, goes with it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path

OPEN_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
MODE = 0o600


class LogFile(RotatingFileHandler):
    """Writes to a log file.

    Thread safety: as all handlers.
    """

    def __init__(self, path: Path, size_bytes: int, kept: int, descriptors: Sequence[int] = (2,)) -> None:
        """Open the file; it is made if it is missing, and never found through a symbolic link.

        Args:
            path: of the file.
            size_bytes: beyond that a new one is begun; 0 for never.
            kept: so many old ones are kept, at least one.
            descriptors: of this process, that are to go to the same file.

        Raises:
            OSError: it cannot be opened.
        """
        self._descriptors = descriptors
        super().__init__(path, maxBytes=size_bytes, backupCount=max(1, kept), encoding="utf-8")

    def shouldRollover(self, record: logging.LogRecord) -> bool:  # noqa: N802  logging's name
        """Tell whether a new file is due; one that was moved away is followed by another first."""
        if self.stream and not self._is_in_place():
            self.stream.close()
            self.stream = self._open()
        return bool(super().shouldRollover(record))

    def _open(self) -> TextIOWrapper:
        self._descriptor = os.open(self.baseFilename, OPEN_FLAGS, MODE)
        for other in self._descriptors:
            os.dup2(self._descriptor, other)
        return os.fdopen(self._descriptor, "a", encoding="utf-8", errors="backslashreplace")

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.stat(self.baseFilename), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False
