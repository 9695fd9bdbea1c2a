"""Only one process at a time serves a directory: two would write to the same files.

No file is locked (docs/architecture.md). Whoever comes announces himself first, by a file that describes his
process, and looks second: if somebody who lives is there too, he goes. Of two who come at the same moment both may
go, and never none.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import msgpack

from py_chronolog_client.errors import AcquiredError, ChronoLogError
from py_chronolog_client.store import owner
from py_chronolog_client.store.acquisition import named
from py_chronolog_client.store.files import publish_file, read_file, unique_name
from py_chronolog_client.store.format import decode_map
from py_chronolog_client.store.root import StoreRoot

_PREFIX = "tenant-"
_LIMIT_BYTES = 2**16


class Tenancy:
    """The sole right of this process to serve a store."""

    def __init__(self, root: StoreRoot) -> None:
        """Take it.

        Raises:
            AcquiredError: another process has it.
            OSError: the directory cannot be written.
        """
        self._path = root.path / f"{_PREFIX}{unique_name()}"
        publish_file(self._path, msgpack.packb(owner.describe_process()), root.file_mode)
        owner.heartbeat.watch(self._path)
        for path in root.path.glob(f"{_PREFIX}*"):
            if path != self._path:
                self._require_dead(path, root)

    def end(self) -> None:
        """Give it up."""
        owner.heartbeat.unwatch(self._path)
        with suppress(OSError):
            os.unlink(self._path)

    def _require_dead(self, path: Path, root: StoreRoot) -> None:
        """Remove what a dead process has left."""
        try:
            description = decode_map(read_file(path, _LIMIT_BYTES))
        except FileNotFoundError:
            return
        except (ChronoLogError, ValueError):
            description = {}
        if owner.is_alive(description, path):
            self.end()
            raise AcquiredError(f"{root.path} is served by {named(description)}: end that first")
        with suppress(OSError):
            os.unlink(path)
