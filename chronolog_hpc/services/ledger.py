"""The ledger: what a visor remembers beside its catalog, also when it is killed.

Who has acquired what, which keeper has whose events, where the grapher is, and who has still to forget what. It is a
file of record blocks (docs/format.md) that is only ever appended to, and written anew, short, when a visor starts.
What is noted is in memory at once and on the device after `saved`; whatever was noted meanwhile shares one sync.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from py_chronolog_client.store.blocks import complete_block, find_header, read_exactly
from py_chronolog_client.store.files import sync_directory, temporary_beside
from py_chronolog_client.store.format import ALIGNMENT, HEADER_BYTES, decode_map, encode_record
from py_chronolog_client.store.root import StoreRoot
from py_chronolog_client.store.segment import write_whole

LEDGER = "ledger"
ARCHIVE = "/grapher"
"""In the place of a node, for what the grapher has to forget: no host has such a name, and the archive may move."""

_NOBODY = 0

logger = logging.getLogger("chronolog_hpc.services")


class Story(NamedTuple):
    """A story by its names."""

    chronicle: str
    name: str


class Debt(NamedTuple):
    """What a keeper or the grapher has to forget: a story, or all of a chronicle where `name` is empty, up to a uid."""

    chronicle: str
    name: str
    uid: int


class Home(NamedTuple):
    """Where a client's events are, and whose client it is."""

    node: str
    """Of the keeper."""
    name: str
    """Who has acquired the story first with this client; "" in a ledger that did not say so: anybody."""


class Ledger:
    """The memory of a visor.

    Attributes:
        holders: story -> the clients that hold it.
        homes: story -> client -> where its events are.
        grapher: node of the grapher; "" where there never was one.
        debts: node -> what its keeper has to forget; `ARCHIVE` -> what the grapher has.
        last_uid: no story has a higher one.
    """

    def __init__(self, root: StoreRoot) -> None:
        """Read the ledger of a store, or begin one.

        Raises:
            OSError: it cannot be read or written.
        """
        self.holders: dict[Story, set[int]] = {}
        self.homes: dict[Story, dict[int, Home]] = {}
        self.grapher = ""
        self.debts: dict[str, list[Debt]] = {}
        self.last_uid = 0
        self._path = root.path / LEDGER
        self._unsaved: list[bytes] = []
        self._saving = asyncio.Lock()
        for entry in _entries(self._path):
            self._apply(entry)
        self._begin(root)

    # -- what is noted --

    def next_uid(self) -> int:
        """Return a uid that no story had before: the time, unless the clock was set back."""
        self.last_uid = max(time.time_ns(), self.last_uid + 1)
        return self.last_uid

    def note_acquired(self, story: Story, client_id: int, home: Home, uid: int) -> None:
        """A client holds a story, and its events have this home."""
        self._note("acquired", story, client_id=client_id, uid=uid, **home._asdict())

    def note_released(self, story: Story, client_id: int) -> None:
        """A client does not hold a story any more."""
        self._note("released", story, client_id=client_id)

    def note_grapher(self, node: str) -> None:
        """The grapher is on a node."""
        self._note("grapher", Story("", ""), node=node)

    def note_destroyed(self, story: Story, uid: int) -> None:
        """A story, or all of a chronicle where its name is empty, is destroyed up to a uid."""
        self._note("destroyed", story, uid=uid)

    def note_dropped(self, node: str, debt: Debt) -> None:
        """A keeper, or the grapher, has forgotten what it had to."""
        self._note("dropped", Story(debt.chronicle, debt.name), node=node, uid=debt.uid)

    async def saved(self) -> None:
        """Wait until all that was noted is on the device.

        Raises:
            OSError: it is not; the next call tries again.
        """
        async with self._saving:
            if self._unsaved:
                entries, self._unsaved = self._unsaved, []
                try:
                    await asyncio.to_thread(self._write, b"".join(entries))
                except BaseException:
                    self._unsaved[:0] = entries
                    raise

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)

    # -- how it is done --

    def _note(self, kind: str, story: Story, **fields: Any) -> None:
        entry = {"type": kind, "chronicle": story.chronicle, "story": story.name, **fields}
        self._apply(entry)
        self._unsaved.append(encode_record(_NOBODY, 0, entry))

    def _apply(self, entry: dict[str, Any]) -> None:
        story = Story(entry["chronicle"], entry["story"])
        self.last_uid = max(self.last_uid, entry.get("uid", 0))
        match entry["type"]:
            case "acquired":
                self.holders.setdefault(story, set()).add(entry["client_id"])
                self._settle(story, entry)
            case "home":
                self._settle(story, entry)
            case "released":
                self.holders.get(story, set()).discard(entry["client_id"])
            case "grapher":
                self.grapher = entry["node"]
            case "destroyed":
                self._forget(story, entry["uid"])
            case "owed":
                self.debts.setdefault(entry["node"], []).append(Debt(*story, entry["uid"]))
            case "dropped":
                debts = self.debts.get(entry["node"], [])
                if (debt := Debt(*story, entry["uid"])) in debts:
                    debts.remove(debt)

    def _settle(self, story: Story, entry: dict[str, Any]) -> None:
        home = Home(entry["node"], entry.get("name", ""))
        self.homes.setdefault(story, {})[entry["client_id"]] = home

    def _forget(self, destroyed: Story, uid: int) -> None:
        nodes = {ARCHIVE} if self.grapher else set()
        for story in (
            [destroyed] if destroyed.name else [s for s in self.homes if s[0] == destroyed.chronicle]
        ):
            nodes.update(home.node for home in self.homes.pop(story, {}).values())
            self.holders.pop(story, None)
        for node in nodes:
            self.debts.setdefault(node, []).append(Debt(*destroyed, uid))

    def _begin(self, root: StoreRoot) -> None:
        """Write a short ledger in the place of the long one."""
        making = temporary_beside(self._path)
        self._descriptor = root.create_file(making, os.O_RDWR)
        self._end = 0
        try:
            self._write(b"".join(encode_record(_NOBODY, 0, entry) for entry in self._state()))
            os.rename(making, self._path)
            sync_directory(root.path)
        except BaseException:
            os.close(self._descriptor)
            os.unlink(making)
            raise

    def _state(self) -> Iterator[dict[str, Any]]:
        """Yield the fewest entries that say what is remembered."""
        yield {"type": "uid", "chronicle": "", "story": "", "uid": self.last_uid}
        if self.grapher:
            yield {"type": "grapher", "chronicle": "", "story": "", "node": self.grapher}
        for node, debts in self.debts.items():
            for chronicle, name, uid in debts:
                yield {"type": "owed", "chronicle": chronicle, "story": name, "node": node, "uid": uid}
        for story, homes in self.homes.items():
            holders = self.holders.get(story, set())
            for client_id, home in homes.items():
                kind = "acquired" if client_id in holders else "home"
                names = {"chronicle": story.chronicle, "story": story.name}
                yield {"type": kind, **names, "client_id": client_id, **home._asdict()}

    def _write(self, data: bytes) -> None:
        size_bytes = write_whole(self._descriptor, [data], self._end)
        os.fdatasync(self._descriptor)
        self._end += size_bytes


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    """Yield what a ledger says; what is damaged is passed over, with a line in the log."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        size_bytes = os.fstat(descriptor).st_size
        offset: int | None = 0
        while offset is not None and offset < size_bytes:
            header = complete_block(descriptor, offset, _NOBODY)
            if header is not None:
                payload = read_exactly(descriptor, header.payload_bytes, offset + HEADER_BYTES)
                yield decode_map(payload or b"")
                offset += header.block_bytes
            else:
                damaged, offset = offset, find_header(descriptor, offset + ALIGNMENT, size_bytes, _NOBODY)
                if offset is not None:
                    logger.error("%s: damaged from byte %d to %d: passed over", path, damaged, offset)
    finally:
        os.close(descriptor)
