"""What the file system of a directory can do, tried in a directory of our own in it, which is removed again."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from chronolog_hpc.clientlib import TAIL_BYTES, punch_hole
from chronolog_hpc.doctor.finding import Finding, Unfit, error, ok, tried, warning

_NEW = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
_LITTLE_BYTES = 2**30
_FEW_FILES = 10_000
_FILES_OF_A_CLIENT = 8
_ELSEWHERE = "choose a directory on another file system"


@contextlib.contextmanager
def trial_directory(place: Path) -> Iterator[Path]:
    """Make a directory in `place` for the time of the block.

    Raises:
        OSError: none can be made there.
    """
    path = Path(tempfile.mkdtemp(prefix=".chronolog-doctor-", dir=place))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def exclusive_creation(directory: Path) -> Finding:
    """Make a file with O_EXCL twice."""

    def trial() -> str:
        os.close(os.open(directory / "exclusive", _NEW, 0o600))
        try:
            os.close(os.open(directory / "exclusive", _NEW, 0o600))
        except FileExistsError:
            return "O_EXCL makes a file once"
        raise Unfit("O_EXCL makes a file that is there already")

    return tried("exclusive creation", trial, "error", _ELSEWHERE)


def hard_links(directory: Path) -> Finding:
    """Give a file a second name."""

    def trial() -> str:
        os.close(os.open(directory / "linked", _NEW, 0o600))
        os.link(directory / "linked", directory / "link")
        if os.stat(directory / "link").st_nlink != 2:
            raise Unfit("a file with two names counts one")
        return "a file can have two names"

    todo = "start jobs that create the same store or story one after the other: a file cannot appear exactly once here"
    return tried("hard links", trial, "warning", todo)


def renaming(directory: Path) -> Finding:
    """Rename a directory over an empty one, which works, and over a full one, which must not."""

    def trial() -> str:
        full, empty, moved = (directory / name for name in ("full", "empty", "moved"))
        for path in (full, empty, moved):
            path.mkdir()
        (full / "file").touch()
        os.rename(moved, empty)
        try:
            os.rename(empty, full)
        except OSError as problem:
            if problem.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return "a directory replaces an empty one, and no full one"
            raise
        raise Unfit("a directory replaces one that is not empty")

    return tried("renaming", trial, "error", _ELSEWHERE)


def mapping(directory: Path) -> Finding:
    """Write through a shared mapping and through the file; each must see what the other wrote."""

    def trial() -> str:
        with _file(directory, "mapped") as descriptor:
            _fill(descriptor, b"\0")
            with mmap.mmap(descriptor, TAIL_BYTES) as mapped:
                mapped[8:16] = b"\1" * 8
                os.pwrite(descriptor, b"\2" * 8, TAIL_BYTES - 8)
                if os.pread(descriptor, 8, 8) != b"\1" * 8 or mapped[-8:] != b"\2" * 8:
                    raise Unfit("a mapping and its file do not show the same bytes")
        return "a shared mapping and its file show the same bytes"

    return tried(
        "mmap", trial, "error", f"set CHRONOLOG_TAIL_DIR to a directory of this node, or {_ELSEWHERE}"
    )


def reservation(directory: Path) -> Finding:
    """Reserve the space of a tail without writing it."""

    def trial() -> str:
        with _file(directory, "reserved") as descriptor:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.fallocate(descriptor, 0, ctypes.c_int64(0), ctypes.c_int64(TAIL_BYTES)):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
            if os.fstat(descriptor).st_blocks * 512 < TAIL_BYTES:
                raise Unfit("fallocate succeeds and reserves nothing")
        return "fallocate reserves space"

    return tried(
        "fallocate",
        trial,
        "warning",
        "set CHRONOLOG_TAIL_DIR to a directory of this node: here tails are written out, and where zeros are compressed a "
        "full disk may kill a writer",
    )


def hole_punching(directory: Path) -> Finding:
    """Give the space of a part of a file back."""

    def trial() -> str:
        with _file(directory, "punched") as descriptor:
            _fill(descriptor, b"\1")
            punch_hole(directory / "punched", 0, TAIL_BYTES)
            if os.pread(descriptor, TAIL_BYTES, 0) != bytes(TAIL_BYTES):
                raise Unfit("a hole does not read as zeros")
        return "space can be given back"

    return tried(
        "hole punching",
        trial,
        "warning",
        "give spools more room: they keep what is shipped until their clients end",
    )


def space(place: Path, ranks: int) -> Finding:
    """Tell whether there is room for the tails of some ranks, and for their events."""
    try:
        status = os.statvfs(place)
    except OSError as problem:
        return error("free space", str(problem), _ELSEWHERE)
    if not status.f_blocks:
        return ok("free space", "the file system has no size")
    free_bytes = status.f_bavail * status.f_frsize
    found = f"{_size(free_bytes)} in {place}"
    return _enough("free space", found, free_bytes, ranks * TAIL_BYTES, _LITTLE_BYTES, "make room there")


def inodes(place: Path, ranks: int) -> Finding:
    """Tell whether there is room for the files of some ranks."""
    try:
        status = os.statvfs(place)
    except OSError as problem:
        return error("inodes", str(problem), _ELSEWHERE)
    if not status.f_files:
        return ok("inodes", "the file system does not limit the number of files")
    fitting = status.f_favail if status.f_favail < _FEW_FILES else f"more than {_FEW_FILES}"
    found = f"{fitting} new files fit in {place}"
    return _enough(
        "inodes", found, status.f_favail, ranks * _FILES_OF_A_CLIENT, _FEW_FILES, "delete files there"
    )


def _enough(check: str, found: str, free: int, least: int, little: int, todo: str) -> Finding:
    if free >= little:
        return ok(check, found)
    return (error if free < least else warning)(check, found, f"{todo}, or {_ELSEWHERE}")


@contextlib.contextmanager
def _file(directory: Path, name: str) -> Iterator[int]:
    descriptor = os.open(directory / name, _NEW, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _fill(descriptor: int, byte: bytes) -> None:
    """Write the bytes of a tail; a store into a mapping of what a full disk has not taken would be a SIGBUS."""
    written = 0
    while written < TAIL_BYTES:  # what is written in part fails at the next attempt, and says why
        written += os.pwrite(descriptor, byte * (TAIL_BYTES - written), written)


def _size(size_bytes: float) -> str:
    for unit in ("KiB", "MiB", "GiB"):
        size_bytes /= 1024
        if size_bytes < 1024:
            return f"{size_bytes:.1f} {unit}"
    return f"{size_bytes / 1024:.1f} TiB"


TRIALS = (exclusive_creation, hard_links, renaming, mapping, reservation, hole_punching)
"""What is tried in a directory for a store."""
