"""The one door to `py_chronolog_client`: everything in `chronolog_hpc` takes the client's names from here.

ChronoLog's own compiled client has the same name as the package that comes with this one. Where it is found
first on the path, it hides ours; then importing this module raises an error that names the file which is in
the way.

Beside the names it has what a rank needs of a store: where it is (`store_directory`), a client there
(`open_client`), the error behind a code of the API (`check`), and the files of single clients (`StoryFiles`).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

PACKAGE = "py_chronolog_client"
DEFAULT_STORE = "chronolog_store"
"""Directory of the store, below the working directory, where nothing is configured."""

_PROOF = "eventlist"


class ForeignClientError(ImportError):
    """Another `py_chronolog_client` hides the one that `chronolog_hpc` needs.

    Attributes:
        path: file or directory of the other one; None if there is none at all.
    """


def check_is_ours() -> None:
    """Make sure that `py_chronolog_client` is the one that comes with this package, without running another.

    Raises:
        ForeignClientError: it is another one, or there is none.
    """
    ours = Path(__file__).resolve().parent.parent / PACKAGE
    loaded = sys.modules.get(PACKAGE)
    spec = importlib.util.find_spec(PACKAGE) if loaded is None else loaded.__spec__
    origin = spec.origin if spec is not None else getattr(loaded, "__file__", None)
    if spec is not None and spec.submodule_search_locations is not None:
        locations = list(spec.submodule_search_locations)
        if any(os.path.isfile(os.path.join(location, f"{_PROOF}.py")) for location in locations):
            return
        origin = origin or (locations[0] if locations else None)
    if origin is None and loaded is None:
        raise ForeignClientError(
            f'there is no {PACKAGE}, which comes with chronolog-hpc: pip install "chronolog-hpc"',
            name=PACKAGE,
        )
    raise ForeignClientError(
        f"{origin}: this {PACKAGE} is not the one that comes with chronolog-hpc, and hides it (ChronoLog's "
        f"compiled client has the same name): take it out of PYTHONPATH and sys.path, or put {ours.parent} "
        "before it",
        name=PACKAGE,
        path=None if origin is None else os.fspath(origin),
    )


check_is_ours()

from py_chronolog_client import (  # noqa: E402  only after the check
    ChronoLogError,
    Client,
    ClientPortalServiceConf,
    ClientQueryServiceConf,
    ErrorCode,
    Event,
    EventList,
    RecordTooLargeError,
    StoryHandle,
)
from py_chronolog_client.clock import (  # noqa: E402
    TOLERANCE_NS,
    WANDER,
    Clock,
    ClockModel,
    Reading,
    SystemClock,
    offset_to_utc,
)
from py_chronolog_client.conf import (  # noqa: E402
    FILE_PROTOCOL,
    PORTAL_VARIABLE,
    STORE_VARIABLE,
    service_address,
)
from py_chronolog_client.engine.base import (  # noqa: E402
    MAX_TIME_NS,
    Durability,
    ScanReport,
    Snapshot,
    WriterStatistics,
)
from py_chronolog_client.errors import (  # noqa: E402
    DamageError,
    InvalidArgumentError,
    NotAStoreError,
    NotAuthorizedError,
    NotConnectedError,
    NotFoundError,
    ReplayTimeoutError,
    StoreError,
)
from py_chronolog_client.store.root import store_path  # noqa: E402

if TYPE_CHECKING:
    from py_chronolog_client.engine.draining import drain
    from py_chronolog_client.engine.embedded import tail_directory
    from py_chronolog_client.engine.spool import spool_base
    from py_chronolog_client.order import around, story_order
    from py_chronolog_client.page import U64, MemoryPage, Page, Payload
    from py_chronolog_client.store.catalog import Catalog
    from py_chronolog_client.store.census import Known
    from py_chronolog_client.store.files import punch_hole
    from py_chronolog_client.store.tail import TAIL_BYTES
    from py_chronolog_client.timeline import correct, surprise

__all__ = [
    "FILE_PROTOCOL",
    "PORTAL_VARIABLE",
    "STORE_VARIABLE",
    "ChronoLogError",
    "Client",
    "ClientFile",
    "ClientPortalServiceConf",
    "ClientQueryServiceConf",
    "Clock",
    "ClockModel",
    "DamageError",
    "Durability",
    "ErrorCode",
    "Event",
    "EventList",
    "ForeignClientError",
    "InvalidArgumentError",
    "MAX_TIME_NS",
    "MemoryPage",
    "NotAStoreError",
    "NotAuthorizedError",
    "NotConnectedError",
    "NotFoundError",
    "Page",
    "Payload",
    "Reading",
    "RecordTooLargeError",
    "ReplayTimeoutError",
    "ScanReport",
    "Snapshot",
    "StoreError",
    "StoryFiles",
    "StoryHandle",
    "SystemClock",
    "U64",
    "TAIL_BYTES",
    "TOLERANCE_NS",
    "WANDER",
    "WriterStatistics",
    "acquire",
    "around",
    "check",
    "check_is_ours",
    "correct",
    "drain",
    "offset_to_utc",
    "open_client",
    "punch_hole",
    "release",
    "require_store",
    "service_address",
    "spool_base",
    "store_directory",
    "store_path",
    "story_order",
    "surprise",
    "tail_directory",
]

_HOMES = {
    **dict.fromkeys(("Page", "MemoryPage", "Payload", "U64"), "page"),
    **dict.fromkeys(("around", "story_order"), "order"),
    **dict.fromkeys(("correct", "surprise"), "timeline"),
    "drain": "engine.draining",
    "spool_base": "engine.spool",
    "tail_directory": "engine.embedded",
    "punch_hole": "store.files",
    "TAIL_BYTES": "store.tail",
}


def __getattr__(name: str) -> Any:
    """Fetch the names that cost something, numpy above all, when they are asked for."""
    if name == "__version__":
        return importlib.import_module(PACKAGE).__version__
    if name in _HOMES:
        return getattr(importlib.import_module(f"{PACKAGE}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def store_directory(store: str | os.PathLike[str] | None = None) -> tuple[Path, bool]:
    """Return the absolute path of the store, and whether anybody chose it.

    CHRONOLOG_STORE comes first, as for every client; then `store`; then `chronolog_store` in the working
    directory.

    Raises:
        ChronoLogError: there is no such path.
    """
    chosen = os.environ.get(STORE_VARIABLE) or store
    return store_path(chosen or DEFAULT_STORE), bool(chosen)


def require_store(directory: Path) -> None:
    """Make sure that a store is there, before a client that only reads would create one.

    Raises:
        NotAStoreError: there is none.
    """
    from py_chronolog_client.store.root import StoreRoot

    StoreRoot.open(directory, create=False)


def open_client(directory: Path, **options: Any) -> Client:
    """Return a connected client on a store directory; `options` as for `Client`.

    Raises:
        ChronoLogError: the store cannot be used.
    """
    portal = ClientPortalServiceConf(FILE_PROTOCOL, os.fspath(directory), 0, 0)
    client = Client(portal, ClientQueryServiceConf(FILE_PROTOCOL, os.fspath(directory), 0, 0), **options)
    check(client, client.Connect())
    return client


def check(client: Client, code: int, *accepted: ErrorCode) -> int:
    """Return a code of the ChronoLog API if it is 0 or accepted; otherwise raise what it stands for."""
    if code == ErrorCode.CL_SUCCESS or code in accepted:
        return code
    raise client.last_error or ChronoLogError(f"ChronoLog error {ErrorCode(code).name} ({code})")


def acquire(client: Client, chronicle: str, story: str, attrs: Mapping[str, str] | None) -> StoryHandle:
    """Acquire a story.

    Raises:
        NotFoundError: there is no such chronicle.
        ChronoLogError: the store refuses.
    """
    code, handle = client.AcquireStory(chronicle, story, attrs)
    check(client, code)
    if handle is None:
        raise ChronoLogError(f"story {story!r} of {chronicle!r} was acquired, and there is no handle to it")
    return handle


def release(handle: StoryHandle, reason: str) -> None:
    """Flush and give a story up, and note why."""
    handle._writer.close(reason)  # the API has no word for a reason


class ClientFile(NamedTuple):
    """What can be told of a client of a story without reading its events."""

    client_id: int
    host: str
    """Where it ran; empty if that cannot be told."""
    size: int
    """Bytes of its files, or its events where those are somebody else's: to compare clients of a story with."""


class StoryFiles:
    """The files of a story, by client.

    `Client.clients` and `Client.snapshot` open every file of a story. Here a rank asks only for its share.
    """

    def __init__(self, directory: Path, chronicle: str, story: str) -> None:
        """Find a story.

        Args:
            directory: of the store.
            chronicle: name.
            story: name.

        Raises:
            NotFoundError: there is no such story.
            NotAStoreError: there is no store.
        """
        from py_chronolog_client.store.catalog import Catalog
        from py_chronolog_client.store.root import StoreRoot

        self._catalog: Catalog = Catalog(StoreRoot.open(directory, create=False))
        self._directory = self._catalog.story_directory(chronicle, story)

    def client_ids(self) -> list[int]:
        """Return the ids of all clients that ever wrote to the story, sorted."""
        return self._catalog.clients(self._directory)

    def describe(self, client_ids: Sequence[int]) -> list[ClientFile]:
        """Return host and size of some clients; one open per client.

        Raises:
            StoreError: a client's file is not there.
        """
        found = self._census(client_ids)
        return [
            ClientFile(
                client_id, str(found[client_id].description.get("host", "")), found[client_id].size_bytes
            )
            for client_id in client_ids
        ]

    def require(self, client_ids: Sequence[int]) -> None:
        """Make sure that this process sees the files of some clients.

        Raises:
            StoreError: one is not there.
        """
        self._census(client_ids)

    def _census(self, client_ids: Sequence[int]) -> Mapping[int, Known]:
        found = self._catalog.census(self._directory, set(client_ids))
        for client_id in client_ids:
            if client_id not in found:
                raise StoreError(
                    self._directory / f"{client_id:016x}.log",
                    "another rank sees this file, and this one does not: use a store on a file system that all "
                    "hosts share",
                )
        return found
