"""Small files of a store: they appear whole or not at all, with the store's mode, and are read with a bound.

Nothing here asks who may do what; that is for the catalog.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from py_chronolog_client.errors import ChronoLogError, DamageError, NotAuthorizedError, StoreError

TEMPORARY = ".tmp-"
"""Names that begin so are being made; those of dead makers are harmless."""

_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # of fallocate(2)
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK})
_NOT_ALLOWED = frozenset({errno.EPERM, errno.EACCES, errno.EROFS})
_MORE_ROOM = "make room there, or use a directory on another file system"
_REMEDIES = {
    errno.ENOSPC: _MORE_ROOM,
    errno.EDQUOT: _MORE_ROOM,
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EMFILE: "raise the limit on open files (ulimit -n), or release stories",
    errno.ENFILE: "too many files are open on this machine",
}


@contextmanager
def os_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an OSError of the operating system into one of this package's errors.

    Args:
        path: named where the error itself names nothing.

    Raises:
        NotAuthorizedError: the file system refused this user, or is mounted read-only.
        StoreError: any other OSError.
    """
    try:
        yield
    except ChronoLogError:
        raise
    except OSError as error:
        named = isinstance(error.filename, str) and os.path.isabs(error.filename)
        about = error.filename if named else os.fspath(path)
        remedy = _REMEDIES.get(error.errno or 0)
        reason = (error.strerror or str(error)) + (f": {remedy}" if remedy else "")
        if error.errno in _NOT_ALLOWED:
            raise NotAuthorizedError(
                f"{about}: {reason}: ask the owner of the store for access (CHRONOLOG_MODE sets who has it "
                "when a store is created)"
            ) from error
        raise StoreError(about, reason) from error


def unique_name() -> str:
    """Return 32 hexadecimal digits that nobody else will ever use as a name."""
    return secrets.token_hex(16)


def temporary_beside(path: Path) -> Path:
    """Return an unused name in the same directory, which readers ignore."""
    return path.with_name(f"{TEMPORARY}{unique_name()}")


def create_file(path: str | os.PathLike[str], flags: int, mode: int) -> int:
    """Create a file that must not exist, with exactly `mode` whatever the umask; return its descriptor.

    Args:
        path: the file; a symbolic link there is refused too.
        flags: of open(2), for instance os.O_RDWR.
        mode: permission bits.

    Raises:
        OSError: as open(2).
    """
    flags |= os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, mode)
    try:
        if stat.S_IMODE(os.fstat(descriptor).st_mode) != mode:
            os.fchmod(descriptor, mode)
    except BaseException:
        os.close(descriptor)
        os.unlink(path)
        raise
    return descriptor


def make_directory(path: str | os.PathLike[str], mode: int) -> None:
    """Make a directory that must not exist, with exactly `mode` whatever the umask.

    Raises:
        OSError: as mkdir(2).
    """
    os.mkdir(path, mode & 0o777)
    try:
        # Through a descriptor: somebody who may write here could swap the name for a link to a directory of ours.
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if stat.S_IMODE(os.fstat(descriptor).st_mode) != mode:
                os.fchmod(descriptor, mode)
        finally:
            os.close(descriptor)
    except BaseException:
        with suppress(OSError):
            os.rmdir(path)
        raise


def write_file(path: str | os.PathLike[str], data: bytes, mode: int, *, sync: bool = False) -> None:
    """Create a file that nobody else looks at yet, and write it.

    Durability: with `sync` its bytes are on the device; its name is there after `sync_directory`.

    Raises:
        OSError: it exists, or cannot be written whole; then it is removed.
    """
    descriptor = create_file(path, os.O_WRONLY, mode)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            if sync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except BaseException:
        os.unlink(path)
        raise


def appear(making: Path, path: Path) -> None:
    """Let a file that is made appear at `path`, if nothing is there; it keeps its old name too where there are hard links.

    Where the file system has none, it is renamed, whatever is there.

    Raises:
        FileExistsError: something is there.
    """
    try:
        os.link(making, path, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        os.rename(making, path)


def publish_file(path: Path, data: bytes, mode: int, *, sync: bool = False) -> bool:
    """Let a file appear whole at `path`; of several who try exactly one succeeds, the others return False.

    Where the file system has no hard links the last one wins instead, and all of them succeed.

    Durability: with `sync` file and name are on the device.

    Raises:
        OSError: it cannot be written.
    """
    making = temporary_beside(path)
    write_file(making, data, mode, sync=sync)
    try:
        try:
            appear(making, path)
        except FileExistsError:
            # A network file system may have done it and lost the answer.
            if not os.path.samestat(os.lstat(path), os.lstat(making)):
                return False
        if sync:
            sync_directory(path.parent)
        return True
    finally:
        with suppress(OSError):
            os.unlink(making)


def punch_hole(path: str | os.PathLike[str], start: int, stop: int) -> None:
    """Give the space of a part of a file back to the file system: it reads as zeros, and the file keeps its size.

    Raises:
        OSError: the file system cannot (EOPNOTSUPP).
    """
    import ctypes

    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        offset, size_bytes = ctypes.c_int64(start), ctypes.c_int64(stop - start)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.fallocate(descriptor, _KEEP_SIZE | _PUNCH_HOLE, offset, size_bytes) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), os.fspath(path))
    finally:
        os.close(descriptor)


def sync_directory(directory: str | os.PathLike[str]) -> None:
    """Bring the names in a directory to the device."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: str | os.PathLike[str]) -> None:
    """Bring the bytes of a file to the device."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


def read_file(path: str | os.PathLike[str], limit_bytes: int) -> bytes:
    """Read a small regular file whole.

    Raises:
        DamageError: it is over the limit, or no regular file.
        OSError: it cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise DamageError(path, 0, "this is no regular file") from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise DamageError(path, 0, "this is no regular file")
        data = bytearray()
        while piece := os.read(descriptor, limit_bytes + 1 - len(data)):
            data += piece
    finally:
        os.close(descriptor)
    if len(data) > limit_bytes:
        raise DamageError(path, limit_bytes, f"longer than the {limit_bytes} bytes that such a file may have")
    return bytes(data)
