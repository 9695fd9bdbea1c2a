"""What a power cut may leave of a directory: the page-subset model.

POSIX promises nothing about what was not synced. So between two syncs of a file, each of its 4 KiB pages may be
on the device in any version that it had since (or not at all, which reads as zeros), its size may be any that it
had, and a page may be new in its first sectors only. Likewise a name is there, or under its old name, or not at
all, until its directory is synced. A sync that fails leaves this as it is, for ever: the kernel drops the pages.

The model watches a real directory, to which somebody writes step by step, and makes such leftovers of it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import random
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from unittest import mock

PAGE_BYTES = 4096
SECTOR_BYTES = 512


@dataclass
class _File:
    """A file: what is durable, and what it has been since."""

    descriptor: int
    """Keeps the number of the inode from being used again."""
    sizes: list[int] = field(default_factory=lambda: [0])
    """Sizes since the last sync, the durable one first."""
    pages: dict[int, list[bytes]] = field(default_factory=dict)
    """Number of a page -> its versions since the last sync, the durable one first."""
    failed: bool = False

    def observe(self) -> None:
        data = os.pread(self.descriptor, os.fstat(self.descriptor).st_size, 0)
        if len(data) != self.sizes[-1]:
            self.sizes.append(len(data))
        for number in range(-(-max(len(data), max(self.sizes)) // PAGE_BYTES)):
            page = data[number * PAGE_BYTES : (number + 1) * PAGE_BYTES].ljust(PAGE_BYTES, b"\0")
            versions = self.pages.setdefault(number, [bytes(PAGE_BYTES)])
            if versions[-1] != page:
                versions.append(page)

    def sync(self) -> None:
        self.observe()
        if not self.failed:
            self.sizes = self.sizes[-1:]
            self.pages = {number: versions[-1:] for number, versions in self.pages.items()}


@dataclass
class _Directory:
    """A directory: for every name the inodes that it has meant since the last sync, the durable one first."""

    names: dict[str, list[int | None]] = field(default_factory=dict)

    def observe(self, entries: dict[str, int]) -> None:
        for name in entries.keys() | self.names.keys():
            meant = self.names.setdefault(name, [None])
            if meant[-1] != entries.get(name):
                meant.append(entries.get(name))

    def sync(self) -> None:
        self.names = {name: meant[-1:] for name, meant in self.names.items()}


class PowerModel:
    """Watches a directory, in which there is nothing yet.

    Attributes:
        syncs: how many syncs of files and directories it has seen.
    """

    def __init__(self, directory: pathlib.Path) -> None:
        self._directory = directory
        self._inodes: dict[int, _File | _Directory] = {}
        self._fail_next = False
        self.syncs = 0
        self._root = directory.stat().st_ino
        self.observe()

    def close(self) -> None:
        for inode in self._inodes.values():
            if isinstance(inode, _File):
                os.close(inode.descriptor)

    def observe(self) -> None:
        """Note what the directory holds now."""
        self._observe(self._directory)

    def _observe(self, path: pathlib.Path) -> None:
        known = self._inodes.setdefault(path.stat().st_ino, _Directory())
        assert isinstance(known, _Directory)
        entries = {}
        for entry in os.scandir(path):
            inode = entry.inode()
            entries[entry.name] = inode
            if entry.is_dir():
                self._observe(pathlib.Path(entry.path))
            else:
                if inode not in self._inodes:
                    self._inodes[inode] = _File(os.open(entry.path, os.O_RDONLY))
                file = self._inodes[inode]
                assert isinstance(file, _File)
                file.observe()
        known.observe(entries)

    # -- what the writer syncs --

    def fail_next_sync(self) -> None:
        """Let the next sync of a file fail, as on a device that takes no more."""
        self._fail_next = True

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the syncs of this process."""

        def sync(descriptor: int) -> None:
            if problem := self._sync(descriptor):
                raise problem

        # The package tells errors of its own system calls from those that signal handlers throw by where they arise.
        sync = types.FunctionType(
            sync.__code__, {"__name__": "py_chronolog_client.store.device"}, closure=sync.__closure__
        )
        with mock.patch.object(os, "fsync", sync), mock.patch.object(os, "fdatasync", sync):
            yield

    def _sync(self, descriptor: int) -> OSError | None:
        self.observe()
        self.syncs += 1
        inode = self._inodes.get(os.fstat(descriptor).st_ino)
        if self._fail_next and isinstance(inode, _File):
            self._fail_next = False
            inode.failed = True
            return OSError(errno.EIO, os.strerror(errno.EIO))
        if inode is not None:  # else a directory above, or a file that was made meanwhile and has no name
            inode.sync()
        return None

    # -- what a power cut leaves --

    def uncertain_pages(self) -> int:
        """Return how many pages may or may not be on the device."""
        files = [inode for inode in self._inodes.values() if isinstance(inode, _File)]
        return sum(len(versions) > 1 for file in files for versions in file.pages.values())

    def leave(self, target: pathlib.Path, chance: random.Random) -> None:
        """Make a directory as a power cut at this moment may leave it.

        Args:
            target: made here.
            chance: decides. How much of the new is there is itself chosen by chance, so that nothing at all and
                everything are likely as well.
        """
        self._leave_directory(self._root, target, chance, chance.choice([0.0, 0.1, 0.5, 0.9, 1.0]), set())

    def _leave_directory(
        self, number: int, target: pathlib.Path, chance: random.Random, share: float, seen: set[int]
    ) -> None:
        target.mkdir()
        directory = self._inodes[number]
        assert isinstance(directory, _Directory)
        for name, meant in directory.names.items():
            inode = _choose(meant, chance, share)
            if inode is None or (inode in seen and isinstance(self._inodes[inode], _Directory)):
                continue  # a directory has one name only
            seen.add(inode)
            if isinstance(self._inodes[inode], _Directory):
                self._leave_directory(inode, target / name, chance, share, seen)
            else:
                self._leave_file(inode, target / name, chance, share)

    def _leave_file(self, number: int, target: pathlib.Path, chance: random.Random, share: float) -> None:
        file = self._inodes[number]
        assert isinstance(file, _File)
        size = _choose(file.sizes, chance, share)
        with open(target, "wb") as output:
            output.truncate(size)
            for place, versions in sorted(file.pages.items()):
                start = place * PAGE_BYTES
                page = _choose(versions, chance, share)
                if len(versions) > 1 and chance.random() < 0.1:
                    border = SECTOR_BYTES * chance.randrange(1, PAGE_BYTES // SECTOR_BYTES)
                    page = page[:border] + versions[0][border:]
                if start < size and page.strip(b"\0"):
                    output.seek(start)
                    output.write(page[: size - start])


def _choose(versions: list, chance: random.Random, share: float):  # type: ignore[no-untyped-def]
    """Return the newest version with the probability `share`, else any."""
    return versions[-1] if len(versions) == 1 or chance.random() < share else chance.choice(versions)
