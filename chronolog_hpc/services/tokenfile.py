"""The token file of a running service: what is changed in it holds for whoever comes next.

Whether it has changed is asked of the file system when somebody has to be known, so names are added, removed and given
other secrets without a restart. A file that makes no sense, or that others could have read, changes nothing: the log
says so once, and the names from before go on to be known. Connections that were accepted stay.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from py_chronolog_client.errors import ChronoLogError, NotAuthorizedError
from py_chronolog_client.tokens import read_tokens
from py_chronolog_client.wire.handshake import SERVICE_NAME

_STEADY_S = 2.0
"""A file that was changed so shortly before may be changed again with the same time."""

logger = logging.getLogger("chronolog_hpc.services")


class TokenFile(Mapping[str, bytes]):
    """Name -> secret, as the file says at present."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            NotAuthorizedError: it is not there, others could have read or written it, or it has no name for services.
            InvalidArgumentError: it makes no sense.
        """
        self._path = path
        self._seen = self._state()
        self._said = ""
        self._tokens = self._read()

    def __getitem__(self, name: str) -> bytes:
        state = self._state()
        if state is None or state != self._seen:
            self._seen = state
            self._refresh()
        return self._tokens[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tokens)

    def __len__(self) -> int:
        return len(self._tokens)

    def _state(self) -> tuple[int, ...] | None:
        """Return what changes when the file does; None where that cannot be told."""
        try:
            status = os.lstat(self._path)
        except OSError:
            return None
        if abs(time.time() - status.st_ctime) < _STEADY_S:
            return None
        return status.st_dev, status.st_ino, status.st_ctime_ns, status.st_size

    def _refresh(self) -> None:
        try:
            before, self._tokens = self._tokens, self._read()
        except (ChronoLogError, OSError) as error:
            self._say(f"{error}; the names from before go on to be known")
            return
        self._said = ""
        if before != self._tokens:
            logger.info("%s has changed: %d names are known", self._path, len(self._tokens))

    def _read(self) -> dict[str, bytes]:
        tokens = read_tokens(self._path)
        if SERVICE_NAME not in tokens:
            raise NotAuthorizedError(
                f"{self._path}: there is no line for {SERVICE_NAME!r}, by which services know each other: add one"
            )
        return tokens

    def _say(self, sentence: str) -> None:
        if sentence != self._said:
            self._said = sentence
            logger.warning("%s", sentence)
