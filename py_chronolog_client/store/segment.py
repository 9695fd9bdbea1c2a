"""A segment: a file of one client to which blocks are appended, and what a failed sync does to it.

Every write goes to an offset that the caller knows, never to the file's own position: writing the same block
to the same place again is harmless, and a block that came out short is written over by the next attempt.

A failed fdatasync is final: the kernel may have dropped the pages and will report success from then on. So a
segment that failed once is never trusted again: its blocks since the last good sync are copied to a
successor, which is synced instead.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from py_chronolog_client.errors import InvalidArgumentError
from py_chronolog_client.store.files import sync_directory
from py_chronolog_client.store.root import StoreRoot

_COPY_BYTES = 2**20


class Segment:
    """One segment file that this process made.

    Attributes:
        path: its name.
        descriptor: its descriptor, open for reading and writing.
        start: offset behind its first block, the client record.
        number: 0 for `<client>.log`, then 1, 2, ...
    """

    def __init__(
        self, root: StoreRoot, path: Path, first_block: bytes, number: int = 0, *, returning: bool = False
    ) -> None:
        """Create a segment.

        Args:
            root: the store.
            path: name of the client's first segment, `<client>.log`.
            first_block: the client record.
            number: 0 for `path` itself.
            returning: the client may have segments already; take the first number from `number` on that is free.

        Raises:
            InvalidArgumentError: there is such a segment, and the client is not `returning`.
        """
        self._root = root
        self._first_block = first_block
        self._first_path = path
        self._synced = 0
        self._failed = False
        self.start = len(first_block)
        while True:
            self.number = number
            self.path = path.with_suffix(f".{number}.log") if number else path
            try:
                self.descriptor = root.create_file(self.path, os.O_RDWR)
                break
            except FileExistsError:
                if not returning:
                    raise InvalidArgumentError(
                        f"{path}: this client id is taken, every client has its own"
                    ) from None
                number += 1
        try:
            write_whole(self.descriptor, [first_block], 0)
        except BaseException:
            self.discard()
            raise

    def sync(self, end: int) -> None:
        """Bring the file, up to offset `end`, and the names that lead to it to the device.

        Raises:
            OSError: nothing more can be promised for this file.
        """
        if self._failed:
            raise OSError(errno.EIO, "an earlier sync of this file failed", str(self.path))
        try:
            os.fdatasync(self.descriptor)
            if not self._synced:
                directory = self.path.parent
                while directory != self._root.path.parent:
                    sync_directory(directory)
                    directory = directory.parent
        except OSError:
            self._failed = True
            raise
        self._synced = end

    def successor(self, end: int) -> tuple[Segment, int]:
        """Make the next segment, with the blocks of this one from the last good sync up to `end`, and sync it.

        Returns:
            The segment and the offset behind its blocks.

        Raises:
            OSError: it failed as well.
        """
        number = self.number + 1
        successor = Segment(self._root, self._first_path, self._first_block, number, returning=True)
        try:
            source, target = max(self._synced, self.start), successor.start
            while source < end:
                piece = os.pread(self.descriptor, min(_COPY_BYTES, end - source), source)
                if not piece:
                    raise OSError(errno.EIO, os.strerror(errno.EIO), str(self.path))
                write_whole(successor.descriptor, [piece], target)
                source += len(piece)
                target += len(piece)
            successor.sync(target)
        except BaseException:
            successor.discard()
            raise
        return successor, target

    def discard(self) -> None:
        """Delete a file that never came into use."""
        self.close()
        with suppress(FileNotFoundError):
            os.unlink(self.path)

    def close(self) -> None:
        """Close the file. Doing it twice is harmless."""
        descriptor, self.descriptor = self.descriptor, -1  # its number may soon be another file's
        if descriptor >= 0:
            os.close(descriptor)


def write_whole(descriptor: int, pieces: Sequence[bytes | bytearray | memoryview], offset: int) -> int:
    """Write `pieces` one after another at `offset` in one system call; return their size.

    Raises:
        OSError: the file system took less. What it took is no whole block and is written over later.
    """
    size_bytes = sum(memoryview(piece).nbytes for piece in pieces)
    if os.pwritev(descriptor, pieces, offset) < size_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return size_bytes
