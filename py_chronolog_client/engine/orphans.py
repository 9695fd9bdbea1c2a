"""Clients whose events lie in the spool and who ship nothing themselves, because their process is dead.

Whoever writes next through the same spool ships what they left, or `chronolog drain` does. A claim beside the
client's files keeps a node's many processes from doing that at once; two that do it all the same do no harm, as a
keeper takes every event once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgpack

from py_chronolog_client.engine.embedded import EmbeddedEngine
from py_chronolog_client.errors import ChronoLogError
from py_chronolog_client.store import files, owner
from py_chronolog_client.store.format import decode_map
from py_chronolog_client.store.outbox import clients_in
from py_chronolog_client.store.records import read_client_record

_CLAIM_LIMIT_BYTES = 2**16
_CLAIM_MODE = 0o600


class Orphan(NamedTuple):
    """A client that needs somebody to ship its events.

    Attributes:
        chronicle: where its story is.
        story: the story.
        uid: of the story in the deployment.
        client_id: the client.
        directory: of the spool, with its files.
        is_dead: whether its process is dead; otherwise it is a child of this process that may have no shipper.
    """

    chronicle: str
    story: str
    uid: int
    client_id: int
    directory: Path
    is_dead: bool


def spooled_name(uid: int, story: str) -> str:
    """Return the name that a story has in the spool: one that is made again under its name is another."""
    return f"{uid} {story}"


def orphans(spool: EmbeddedEngine, known: set[int]) -> Iterator[Orphan]:
    """Find the clients of the spool that nobody ships.

    Args:
        spool: all stories in it are looked at.
        known: clients that this process ships.
    """
    for chronicle in spool.chronicles():
        for name in spool.stories(chronicle):
            uid, _, story = name.partition(" ")
            with suppress(ChronoLogError):  # it is destroyed at this moment
                directory = spool.story_directory(chronicle, name)
                for client_id in set(clients_in(directory)) - known:
                    description = _description(directory, client_id)
                    is_dead = not owner.is_alive(description, _segment(directory, client_id))
                    if description and (is_dead or description.get("parent_client_id") in known):
                        yield Orphan(chronicle, story, int(uid), client_id, directory, is_dead)


def is_dead(directory: Path, client_id: int) -> bool:
    """Tell whether the process of a client is dead."""
    description = _description(directory, client_id)
    return bool(description) and not owner.is_alive(description, _segment(directory, client_id))


def claim(orphan: Orphan) -> bool:
    """Take it upon this process to ship an orphan; return False if somebody else alive has done so."""
    path = orphan.directory / f"{orphan.client_id:016x}.claim"
    for _ in range(2):
        if files.publish_file(path, msgpack.packb(owner.describe_process()), _CLAIM_MODE):
            return True
        with suppress(OSError, ValueError):
            claimant = decode_map(files.read_file(path, _CLAIM_LIMIT_BYTES))
            if claimant.get("pid") == os.getpid() or owner.is_alive(claimant, path):
                return False
        with suppress(FileNotFoundError):
            path.unlink()
    return False


def _segment(directory: Path, client_id: int) -> Path:
    return directory / f"{client_id:016x}.log"


def _description(directory: Path, client_id: int) -> dict[str, object]:
    return read_client_record(_segment(directory, client_id), client_id) or {}
