"""A segment: a file of one client to which blocks are appended, and what a failed sync does to it.

Every write goes to an offset that the caller knows, never to the file's own position: writing the same block
to the same place again is harmless, and a block that came out short is written over by the next attempt.

A file that somebody deletes can still be written to, and nobody will ever read it. So the number of its names
is looked at before each block.

A failed fdatasync is final: the kernel may have dropped the pages and will report success from then on. So a
segment that failed once is never trusted again: its blocks since the last good sync are copied to a
successor, which is synced instead. The successor is made under a name that readers ignore, and gets the next
number when all that is done: what has a number is never removed.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from py_chronolog_client.errors import DamageError, InvalidArgumentError
from py_chronolog_client.store.blocks import complete_block
from py_chronolog_client.store.files import appear, sync_directory, temporary_beside
from py_chronolog_client.store.format import HEADER_BYTES, BlockHeader
from py_chronolog_client.store.records import read_close_record
from py_chronolog_client.store.root import StoreRoot

_COPY_BYTES = 2**20

logger = logging.getLogger("py_chronolog_client")


class Segment:
    """One segment file that this process made, or goes on with.

    Attributes:
        path: its name.
        descriptor: its descriptor, open for reading and writing; -1 when it is closed.
        start: offset behind its first block, the client record.
        number: 0 for `<client>.log`, then 1, 2, ...
        closed_ns: when the client left, if it has come back; no event is before that.
        deleted: whether it has been noticed that somebody has deleted the file.
    """

    descriptor = -1

    def __init__(
        self, root: StoreRoot, path: Path, first_block: bytes, number: int = 0, *, returning: bool = False
    ) -> None:
        """Create a segment, which appears with its first block or not at all.

        Args:
            root: the store.
            path: name of the client's first segment, `<client>.log`.
            first_block: the client record.
            number: 0 for `path` itself.
            returning: go on in the client's last segment, if it has one.

        Raises:
            InvalidArgumentError: there is such a segment, and the client is not `returning`, or has not left it
                with the number with which it returns.
        """
        self._describe(root, path, first_block, number)
        self._is_new = not (returning and self.path.exists())
        if not self._is_new:
            self._go_on()
        else:
            self._create()

    def _describe(self, root: StoreRoot, path: Path, first_block: bytes, number: int) -> None:
        self._root = root
        self._first_block = first_block
        self._first_path = path
        self._synced = 0
        self._failed = False
        self.number = number
        self.closed_ns = 0
        self.deleted = False
        self.path = _numbered(path, number)

    @classmethod
    def reopened(cls, root: StoreRoot, path: Path, number: int, client_id: int) -> Segment:
        """Open a segment that is there and that nobody else writes to any more.

        Args:
            root: the store.
            path: name of the client's first segment, `<client>.log`.
            number: 0 for `path` itself.
            client_id: whose it is.

        Raises:
            DamageError: it does not begin with a whole block of this client.
            OSError: it cannot be opened.
        """
        segment = cls.__new__(cls)
        segment._describe(root, path, b"", number)
        segment._is_new = False
        segment.descriptor = os.open(segment.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            header = complete_block(segment.descriptor, 0, client_id)
            if header is None or os.fstat(segment.descriptor).st_size < header.block_bytes:
                raise DamageError(segment.path, 0, "this is no segment of this client, or it was cut short")
            segment.start = header.block_bytes
            segment._first_block = os.pread(segment.descriptor, header.block_bytes, 0)
        except BaseException:
            segment.close()
            raise
        return segment

    def _create(self) -> None:
        making = temporary_beside(self.path)
        self.descriptor = self._root.create_file(making, os.O_RDWR)
        try:
            self.start = write_whole(self.descriptor, [self._first_block], 0)
            appear(making, self.path)
        except FileExistsError:
            self.close()
            raise InvalidArgumentError(
                f"{self.path}: this client id is taken, every client has its own"
            ) from None
        except BaseException:
            self.close()
            raise
        finally:
            with suppress(OSError):  # it is harmless under this name
                os.unlink(making)

    def _go_on(self) -> None:
        while (following := _numbered(self._first_path, self.number + 1)).exists():
            self.number, self.path = self.number + 1, following
        self.descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            header = BlockHeader.unpack(self._first_block[:HEADER_BYTES])
            assert header is not None
            closing = read_close_record(self.descriptor, header.client_id)
            self.closed_ns = require_that_it_left(self.path, closing, header.first_sequence)
            end = os.fstat(self.descriptor).st_size
            self.start = end + self.write([self._first_block], end)
        except BaseException:
            self.close()
            raise

    def write(self, pieces: Sequence[bytes | bytearray | memoryview], offset: int) -> int:
        """Write `pieces` one after another at `offset`; return their size.

        Raises:
            OSError: the file system refused, or (ESTALE) nobody would ever read them.
        """
        self.require_name()
        return write_whole(self.descriptor, pieces, offset)

    def require_room(self) -> None:
        """Make sure that the file may take more space on the disk.

        Raises:
            OSError: it has taken what the store allows (EDQUOT).
        """
        limit_bytes = self._root.segment_limit_bytes
        if limit_bytes is not None and os.fstat(self.descriptor).st_blocks * 512 > limit_bytes:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(self.path))

    def require_name(self) -> None:
        """Make sure that the file can still be found.

        Raises:
            OSError: it was deleted (ESTALE, as network file systems say it).
        """
        try:
            if os.fstat(self.descriptor).st_nlink:
                return
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
        if not self.deleted:
            self.deleted = True
            logger.warning(
                "%s: somebody has deleted this file: all events of this client are lost, and new ones are refused",
                self.path,
            )
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(self.path))

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

    def successor(self, end: int, is_wanted: Callable[[], bool]) -> tuple[Segment, int] | None:
        """Make the next segment, with the blocks of this one from the last good sync up to `end`.

        Durability: its bytes are on the device, its name is after `sync`.

        Args:
            end: offset behind the last block.
            is_wanted: tells, at the last moment, whether the caller may still go on in it.

        Returns:
            The segment and the offset behind its blocks, or None if it is not wanted any more.

        Raises:
            OSError: it failed as well.
        """
        successor = Segment(self._root, temporary_beside(self._first_path), self._first_block)
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
            if successor.become(self._first_path, self.number + 1, is_wanted):
                return successor, target
        except BaseException:
            successor.discard()
            raise
        successor.discard()
        return None

    def become(self, first_path: Path, number: int, is_wanted: Callable[[], bool] = lambda: True) -> bool:
        """Appear, if the file still has a name that readers ignore, as the client's segment with the first free number.

        Durability: the name is on the device after `sync`.

        Args:
            first_path: name of the client's first segment, `<client>.log`.
            number: the first number to be tried.
            is_wanted: tells, at the last moment, whether the caller may still go on in it.

        Returns:
            Whether it has appeared: not if it was not wanted.

        Raises:
            OSError: it cannot.
        """
        making = self.path
        while is_wanted():
            path = _numbered(first_path, number)
            try:
                appear(making, path)
            except FileExistsError:
                number += 1
                continue
            self._first_path, self.path, self.number = first_path, path, number
            self._synced = 0  # its new name is not on the device yet
            with suppress(OSError):
                os.unlink(making)
            return True
        return False

    def discard(self) -> None:
        """Give up a file that never came into use: delete it, if it was made here."""
        self.close()
        if self._is_new:
            with suppress(OSError):
                os.unlink(self.path)

    def close(self) -> None:
        """Close the file. Doing it twice is harmless, also where the second time interrupts the first."""
        descriptor = vars(self).pop(
            "descriptor", -1
        )  # taken in one step: its number may soon be another file's
        if descriptor >= 0:
            os.close(descriptor)


def require_that_it_left(path: Path, closing: Mapping[str, Any] | None, first_sequence: int) -> int:
    """Make sure that a client that comes back has left; return when, in ns.

    Args:
        path: its last segment.
        closing: its close record, if there is one.
        first_sequence: the number with which it comes back.

    Raises:
        InvalidArgumentError: it has not left, or with another number.
    """
    if closing is None:
        raise InvalidArgumentError(f"{path}: this client is not closed: take a new client id")
    if closing.get("next_sequence") != first_sequence:
        raise InvalidArgumentError(
            f"{path}: this client was closed before event {closing.get('next_sequence')} and cannot come "
            f"back with event {first_sequence}: go on with that one, or take a new client id"
        )
    closed_ns = closing.get("closed_ns")
    return closed_ns if isinstance(closed_ns, int) else 0


def _numbered(path: Path, number: int) -> Path:
    return path.with_suffix(f".{number}.log") if number else path


def write_whole(descriptor: int, pieces: Sequence[bytes | bytearray | memoryview], offset: int) -> int:
    """Write `pieces` one after another at `offset`; return their size.

    A file system may take less than it was given because a signal came, or because it is full. Only in the
    second case does the same call not get further when it is made again, from the beginning.

    Raises:
        OSError: the file system took less. What it took is no whole block and is written over later.
    """
    size_bytes = sum(memoryview(piece).nbytes for piece in pieces)
    taken_bytes = -1
    while (now_bytes := os.pwritev(descriptor, pieces, offset)) < size_bytes:
        if now_bytes <= taken_bytes:
            limit_bytes = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
            reason = errno.EFBIG if 0 <= limit_bytes < offset + size_bytes else errno.ENOSPC
            raise OSError(reason, os.strerror(reason))
        taken_bytes = now_bytes
    return size_bytes
