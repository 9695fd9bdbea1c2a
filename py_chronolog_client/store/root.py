"""The store directory and its marker: nothing is made, changed or removed where no marker stands.

A store is a directory with the marker `CHRONOLOG` (docs/format.md, "The directory"). Many processes may
create it at the same moment on a parallel file system: each writes a marker under a name of its own and
links it to the final name, which works for exactly one of them, and then everybody reads the one that is
there. The permission bits of all files of a store are chosen when it is created and stand in the marker, so
that they depend on nobody's umask.
"""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path

from py_chronolog_client.errors import (
    DamageError,
    InvalidArgumentError,
    NotAStoreError,
    NotConnectedError,
    StoreError,
    StoreVersionError,
)
from py_chronolog_client.store import files
from py_chronolog_client.store.format import FORMAT, NEW_FORMAT

MARKER = "CHRONOLOG"
DEFAULT_MODE = 0o600

_TITLE = "ChronoLog store"
_MODE = re.compile(r"(?:0o?)?([0-7]{3})")
_MODE_VARIABLE = "CHRONOLOG_MODE"
_TRUST_VARIABLE = "CHRONOLOG_TRUST_TAILS"
_MARKER_LIMIT_BYTES = 4096


class StoreRoot:
    """A store directory with a marker that this software understands.

    Attributes:
        path: the directory, absolute.
        format: the version of its format.
        chronicles: where the chronicles are; missing until the first is created.
        trash: where destroyed stories and chronicles go; missing until the first is destroyed.
        file_mode: permission bits of files.
        directory_mode: permission bits of directories: a class that may read may search, and where the
            group may read, what is made in a directory belongs to the directory's group.
        segment_limit_bytes: how much space a segment may take on the disk before its writer refuses events; None: any.
    """

    def __init__(self, path: Path, file_mode: int, format_number: int) -> None:
        self.segment_limit_bytes: int | None = None
        self.path = path
        self.format = format_number
        self.chronicles = path / "chronicles"
        self.trash = path / "trash"
        self.file_mode = file_mode
        self.directory_mode = _directory_mode(file_mode)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, create: bool, new_format: int = NEW_FORMAT) -> StoreRoot:
        """Open a store.

        A store that is there is opened without writing anything, also with `create`.

        Args:
            path: the directory.
            create: make the directory and the marker where they are missing. The directory above it must be
                there: otherwise a mistyped path would become a new store.
            new_format: of a store that is created.

        Raises:
            InvalidArgumentError: no such path is possible, or CHRONOLOG_MODE is none.
            NotConnectedError: the directory above it is missing (with `create`).
            NotAStoreError: the directory has no marker, or (with `create`) holds something else.
            StoreVersionError: a newer release has written the store.
            NotAuthorizedError: this user may not read, or not create, it.
            StoreError: the path is no directory, or its file system failed.
        """
        directory = store_path(path)
        with files.os_errors(directory):
            root = cls._existing(directory)
            if root is None and create:
                root = cls._create(directory, new_format)
        if root is None:
            raise NotAStoreError(
                directory,
                f"no ChronoLog store, there is no file {MARKER} in it: check the path, or open it for "
                "writing, which creates one",
            )
        return root

    @classmethod
    def _existing(cls, directory: Path) -> StoreRoot | None:
        """Read the marker, or return None where there is none."""
        marker = directory / MARKER
        try:
            data = files.read_file(marker, _MARKER_LIMIT_BYTES)
        except FileNotFoundError:
            return None
        except NotADirectoryError as error:
            raise StoreError(directory, "this is a file; a store is a directory") from error
        except DamageError as error:
            raise NotAStoreError(
                directory, f"the marker {MARKER} cannot be understood: {error.reason}"
            ) from error
        return cls(directory, *_parse_marker(directory, data))

    @classmethod
    def _create(cls, directory: Path, new_format: int) -> StoreRoot:
        """Make directory and marker, or find the marker that somebody else has just made.

        Durability: the store is on the device.
        """
        new = cls(directory, mode_from_environment(), new_format)
        try:
            new.make_directory(directory)
            made = True
        except FileExistsError:
            made = False
        except FileNotFoundError as error:
            raise NotConnectedError(
                f"{directory}: there is no directory {directory.parent} to make this store in: check the path, "
                "or make that directory"
            ) from error
        if any(not name.startswith(files.TEMPORARY) for name in os.listdir(directory)):
            present = cls._existing(directory)
            if present is not None:
                return present
            raise NotAStoreError(
                directory,
                "this directory holds something else and no ChronoLog store: choose an empty or a new one",
            )
        marker = f"{_TITLE}\nformat {new.format}\nbyte-order little\nmode {new.file_mode:04o}\n"
        files.publish_file(directory / MARKER, marker.encode("ascii"), new.file_mode, sync=True)
        if made:
            with suppress(PermissionError):  # in a directory that we may search and not read
                files.sync_directory(directory.parent)
        present = cls._existing(directory)
        if present is None:
            raise StoreError(directory, "somebody removed the store while it was created: try again")
        return present

    def require_marker(self) -> None:
        """Check that this is still a store, before something is removed.

        Raises:
            NotAStoreError: the marker is gone.
        """
        with files.os_errors(self.path):
            if self._existing(self.path) is None:
                raise NotAStoreError(self.path, f"the marker {MARKER} is gone, so nothing is removed here")

    def create_file(self, path: str | os.PathLike[str], flags: int) -> int:
        """Create a file that must not exist, with the mode of this store; return its descriptor.

        Args:
            path: the file.
            flags: of open(2), for instance os.O_RDWR; O_CREAT, O_EXCL, O_CLOEXEC and O_NOFOLLOW are added.

        Raises:
            OSError: as open(2).
        """
        return files.create_file(path, flags, self.file_mode)

    def make_directory(self, path: str | os.PathLike[str]) -> None:
        """Make a directory that must not exist, with the mode of this store.

        Raises:
            OSError: as mkdir(2).
        """
        files.make_directory(path, self.directory_mode)

    def ensure_directory(self, path: str | os.PathLike[str]) -> None:
        """Make a directory with the mode of this store, unless it exists.

        Raises:
            OSError: as mkdir(2).
        """
        with suppress(FileExistsError):
            self.make_directory(path)


def store_path(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path of a store; `~` is the home directory, as in a shell.

    Raises:
        InvalidArgumentError: no such path is possible.
        StoreError: it is relative, and the working directory is gone.
    """
    text = os.fsdecode(path)
    if not text or "\0" in text:
        raise InvalidArgumentError(f"{text!r} is no path of a store: give a directory")
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise InvalidArgumentError(f"{text!r} is no directory name: it has a lone surrogate") from None
    try:
        return Path(os.path.abspath(os.path.expanduser(text)))
    except FileNotFoundError as error:
        raise StoreError(
            text, "the working directory was removed: change to another, or give an absolute path"
        ) from error


def trusts_tails() -> bool:
    """Return whether CHRONOLOG_TRUST_TAILS says that tails of another boot were not torn.

    Raises:
        InvalidArgumentError: it says neither yes nor no.
    """
    text = os.environ.get(_TRUST_VARIABLE, "")
    if text not in ("", "0", "1"):
        raise InvalidArgumentError(f"{_TRUST_VARIABLE}={text}: give 1 or 0, or unset the variable")
    return text == "1"


def mode_from_environment() -> int:
    """Return the permission bits of files that CHRONOLOG_MODE asks for, by default 0600.

    Raises:
        InvalidArgumentError: it is no such mode.
    """
    text = os.environ.get(_MODE_VARIABLE, "")
    if not text:
        return DEFAULT_MODE
    mode = _parse_mode(text)
    if mode is None:
        raise InvalidArgumentError(
            f"{_MODE_VARIABLE}={text}: give the permission bits of files in octal, where the owner may read "
            "and write, nobody may execute, and whoever may write may read; for instance 0600, 0640 or 0660"
        )
    return mode


def check_name(name: str) -> bytes:
    """Check the name of a chronicle or story and return it in UTF-8.

    Every text is a name: slashes, dots, NUL, any length. In the store it is only ever seen as a hash.

    Raises:
        TypeError: it is no str.
        InvalidArgumentError: it is empty, or no Unicode text (it has lone surrogates).
    """
    if not isinstance(name, str):
        raise TypeError(f"a name must be str, not {type(name).__name__}")
    if not name:
        raise InvalidArgumentError("a name must not be empty")
    try:
        return name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(f"the name {name[:100]!r} is no Unicode text: {error.reason}") from error


def name_hash(name: str) -> str:
    """Return the name of a directory in the store: 32 hexadecimal digits of the SHA-256 of the true name."""
    return hashlib.sha256(check_name(name)).hexdigest()[:32]


def _parse_marker(directory: Path, data: bytes) -> tuple[int, int]:
    """Return mode and format in the marker, or raise if this software may not touch the store."""
    lines = data.decode("utf-8", "replace").splitlines()
    if not lines or lines[0] != _TITLE:
        raise NotAStoreError(directory, f"the file {MARKER} in it is no marker of a ChronoLog store")
    fields = dict(line.split(" ", 1) for line in lines[1:] if " " in line)
    version = fields.get("format", "")
    if not re.fullmatch(r"[1-9][0-9]{0,8}", version):
        raise NotAStoreError(directory, f"the marker {MARKER} does not say which format the store has")
    if int(version) > FORMAT:
        raise StoreVersionError(
            directory,
            f"the store has format {version}, this release knows formats up to {FORMAT}: install a newer one",
        )
    byte_order = fields.get("byte-order", "")
    if byte_order != "little":
        raise NotAStoreError(
            directory, f"the store has byte order {byte_order[:20]!r}; this software reads 'little' only"
        )
    mode = _parse_mode(fields.get("mode", f"{DEFAULT_MODE:04o}"))
    if mode is None:
        raise NotAStoreError(
            directory, f"the marker {MARKER} holds the mode {fields['mode'][:20]!r}, which is none"
        )
    return mode, int(version)


def _parse_mode(text: str) -> int | None:
    """Read permission bits of files; None where they make no sense for a store."""
    match = _MODE.fullmatch(text)
    if match is None:
        return None
    mode = int(match[1], 8)
    writable_unread = any((mode >> shift) & 0o6 == 0o2 for shift in (3, 0))
    return mode if mode & 0o711 == DEFAULT_MODE and not writable_unread else None


def _directory_mode(file_mode: int) -> int:
    """Return the mode of directories that goes with a mode of files."""
    search = (file_mode & 0o444) >> 2
    return file_mode | search | (0o2000 if file_mode & 0o040 else 0)
