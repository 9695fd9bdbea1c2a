"""Where the ranks of a job keep their stories: in a directory that all hosts share, or in a deployment.

Rank 0 chooses the place (`choose`) and tells the others. What it is only matters for three questions: how a client
gets there, how a rank proves that it sees what rank 0 sees, and what can be told of a story's clients before anything
is read.
"""

from __future__ import annotations

import abc
import contextlib
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chronolog_hpc import clientlib
from chronolog_hpc.clientlib import (
    FILE_PROTOCOL,
    PORTAL_VARIABLE,
    STORE_VARIABLE,
    Client,
    ClientFile,
    ClientPortalServiceConf,
    ClientQueryServiceConf,
    ErrorCode,
    InvalidArgumentError,
    NotFoundError,
    StoreError,
    StoryFiles,
)

Conf = tuple[ClientPortalServiceConf, ClientQueryServiceConf]
"""How a client of ChronoLog reaches its services."""


class Place(abc.ABC):
    """Where stories are; the same for all ranks of a job."""

    @property
    @abc.abstractmethod
    def store(self) -> Path | None:
        """Directory of the store, absolute; None in a deployment."""

    @abc.abstractmethod
    def seen_from_here(self) -> Place:
        """Return the place as this rank's own environment has it."""

    @abc.abstractmethod
    def open_client(self, **options: Any) -> Client:
        """Return a connected client; `options` as for `Client`.

        Raises:
            ChronoLogError: the place cannot be used.
        """

    @abc.abstractmethod
    def mark(self) -> str:
        """Leave something that nobody can guess, and return its name."""

    @abc.abstractmethod
    def has_mark(self, mark: str) -> bool:
        """Tell whether a mark is there, without making anything."""

    @abc.abstractmethod
    def remove_mark(self, mark: str) -> None:
        """Take a mark away."""

    @abc.abstractmethod
    def clients(self, chronicle: str, story: str) -> list[ClientFile]:
        """Return the clients that ever wrote to a story, sorted by id, with what can be told of them at once.

        Raises:
            NotFoundError: there is no such story.
            NotAStoreError: there is no store.
        """

    @abc.abstractmethod
    def described(self, chronicle: str, story: str, share: Sequence[ClientFile]) -> list[ClientFile]:
        """Return host and size of some of the clients; dealt out to the ranks, because each may cost an open.

        Raises:
            StoreError: a client's file is not there.
        """

    @abc.abstractmethod
    def require(self, chronicle: str, story: str, client_ids: Sequence[int]) -> None:
        """Make sure that this rank sees the events of some clients.

        Raises:
            StoreError: it does not.
        """


@dataclass(frozen=True)
class Directory(Place):
    """A store directory on a file system that all hosts share.

    Attributes:
        path: absolute.
    """

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def store(self) -> Path:
        return self.path

    def seen_from_here(self) -> Directory:
        return Directory(clientlib.store_directory(self.path)[0])  # its own CHRONOLOG_STORE comes first

    def open_client(self, **options: Any) -> Client:
        return clientlib.open_client(self.path, **options)

    def mark(self) -> str:
        name = f".session-{secrets.token_hex(16)}"
        try:
            os.close(os.open(self.path / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise StoreError(self.path, f"no file can be made there: {error.strerror}") from error
        return name

    def has_mark(self, mark: str) -> bool:
        return os.path.exists(self.path / mark)

    def remove_mark(self, mark: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self.path / mark)

    def clients(self, chronicle: str, story: str) -> list[ClientFile]:
        return [ClientFile(number, "", 0) for number in self._files(chronicle, story).client_ids()]

    def described(self, chronicle: str, story: str, share: Sequence[ClientFile]) -> list[ClientFile]:
        return self._files(chronicle, story).describe([client.client_id for client in share])

    def require(self, chronicle: str, story: str, client_ids: Sequence[int]) -> None:
        self._files(chronicle, story).require(client_ids)

    def _files(self, chronicle: str, story: str) -> StoryFiles:
        return StoryFiles(self.path, chronicle, story)


@dataclass(frozen=True)
class Deployment(Place):
    """A deployment of ChronoLog, which hosts need no directory for.

    Attributes:
        conf: how its services are reached.
    """

    conf: Conf

    def __str__(self) -> str:
        return f"{self.conf[0].proto}://{clientlib.service_address(self.conf[0])}"

    @property
    def store(self) -> None:
        return None

    def seen_from_here(self) -> Deployment:
        return self

    def open_client(self, **options: Any) -> Client:
        client = Client(*self.conf, **options)
        clientlib.check(client, client.Connect())
        return client

    def mark(self) -> str:
        name = f".session-{secrets.token_hex(16)}"
        with self.open_client() as client:
            clientlib.check(client, client.CreateChronicle(name))
        return name

    def has_mark(self, mark: str) -> bool:
        with self.open_client() as client, contextlib.suppress(NotFoundError):
            client.chronicle_attributes(mark)
            return True
        return False

    def remove_mark(self, mark: str) -> None:
        with self.open_client() as client:
            clientlib.check(client, client.DestroyChronicle(mark), ErrorCode.CL_ERR_NOT_EXIST)

    def clients(self, chronicle: str, story: str) -> list[ClientFile]:
        with self.open_client() as client:
            events = client.snapshot(chronicle, story)
            found = client.clients(chronicle, story)
        return [
            ClientFile(number, str(description.get("host", "")), events.get(number, 0))
            for number, description in sorted(found.items())
        ]

    def described(self, chronicle: str, story: str, share: Sequence[ClientFile]) -> list[ClientFile]:
        return list(share)

    def require(self, chronicle: str, story: str, client_ids: Sequence[int]) -> None:
        """Do nothing: the player answers for all keepers, or says which one is away."""


def choose(store: str | os.PathLike[str] | None, conf: Conf | None) -> tuple[Place, bool]:
    """Return the place that environment and arguments choose, and whether anybody chose it.

    CHRONOLOG_STORE comes first, as for every client; then `store` or `conf`; then the deployment of CHRONOLOG_PORTAL;
    then `chronolog_store` in the working directory.

    Raises:
        InvalidArgumentError: `store` and `conf` are given both.
        ChronoLogError: there is no such path.
    """
    if store is not None and conf is not None:
        raise InvalidArgumentError(
            f"store={os.fspath(store)!r} and conf={conf[0].ip}:{conf[0].port} are two places for one story: give one"
        )
    if os.environ.get(STORE_VARIABLE) or store is not None:
        return Directory(clientlib.store_directory(store)[0]), True
    if conf is None and os.environ.get(PORTAL_VARIABLE):
        conf = ClientPortalServiceConf(), ClientQueryServiceConf()
    if conf is None:
        return Directory(clientlib.store_directory()[0]), False
    if conf[0].proto == FILE_PROTOCOL:
        return Directory(clientlib.store_directory(conf[0].ip)[0]), True
    return Deployment(conf), True
