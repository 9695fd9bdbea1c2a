"""What waits in the spool of this machine for a keeper, client by client."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from py_chronolog_client.engine.connection import Address
from py_chronolog_client.engine.embedded import EmbeddedEngine
from py_chronolog_client.engine.orphans import is_dead
from py_chronolog_client.engine.spool import deployments, spool_directory
from py_chronolog_client.errors import ChronoLogError
from py_chronolog_client.store.arrears import Arrears, arrears
from py_chronolog_client.store.outbox import clients_in

Marks = Mapping[int, int]
"""Client id -> sequence number behind the last of its events that a keeper has."""


class Waiting(NamedTuple):
    """A client that has files in the spool.

    Attributes:
        chronicle: where its story is.
        story: the story.
        client_id: the client.
        is_dead: whether its process is dead: somebody else has to ship what is left of it.
        left: what a keeper does not have.
    """

    chronicle: str
    story: str
    client_id: int
    is_dead: bool
    left: Arrears


def spools_of(visor: Address) -> list[Path]:
    """Return the directories of the spools of a deployment: programs may know its visor by several names."""
    numeric = _numeric(visor.host)
    return [
        spool_directory(known)
        for known in deployments()
        if known.port == visor.port and (known.host == visor.host or _numeric(known.host) & numeric)
    ]


def clients_waiting(engine: EmbeddedEngine) -> Iterator[tuple[str, str, Path, int]]:
    """Yield chronicle, story, directory and id of each client that has files in an open spool."""
    for chronicle in engine.chronicles():
        for name in engine.stories(chronicle):
            with suppress(ChronoLogError):  # it is destroyed at this moment
                directory = engine.story_directory(chronicle, name)
                for client_id in clients_in(directory):
                    yield chronicle, name.partition(" ")[2], directory, client_id


def backlog(spool: Path, marks: Callable[[str, str], Marks]) -> Iterator[Waiting]:
    """Yield the clients that have files in a spool.

    Args:
        spool: its directory.
        marks: returns what keepers have of a chronicle's story; for clients that are not in it, all is counted.

    Raises:
        ChronoLogError: the spool cannot be used.
    """
    engine = EmbeddedEngine(spool)
    known: dict[tuple[str, str], Marks] = {}
    try:
        for chronicle, story, directory, client_id in clients_waiting(engine):
            if (chronicle, story) not in known:
                known[chronicle, story] = marks(chronicle, story)
            with suppress(ChronoLogError, OSError):  # it is shipped and removed at this moment
                left = arrears(directory, client_id, known[chronicle, story].get(client_id, 0))
                yield Waiting(chronicle, story, client_id, is_dead(directory, client_id), left)
    finally:
        engine.close()


def _numeric(host: str) -> set[str]:
    """Return the numeric addresses of a host; none where it is not known here."""
    try:
        return {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return set()
