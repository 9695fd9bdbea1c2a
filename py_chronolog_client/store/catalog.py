"""The chronicles and stories of a store: directories that appear whole, and leave by one rename.

A chronicle or story is prepared under a temporary name, with its `meta` inside, and renamed to its final
name. A directory cannot be renamed onto one that is not empty, so of several creators exactly one succeeds.
What a creator that died left behind has a name that begins with a dot, and nobody looks at it. How a story
is destroyed while others acquire it is told in `acquisition`.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgpack

from py_chronolog_client.errors import (
    AcquiredError,
    ChronicleExistsError,
    DamageError,
    InvalidArgumentError,
    NotFoundError,
)
from py_chronolog_client.store import acquisition, files
from py_chronolog_client.store.census import Known, census, client_ids
from py_chronolog_client.store.format import decode_map
from py_chronolog_client.store.root import StoreRoot, check_name, name_hash

MAX_META_BYTES = 2**20
"""Name and attributes of a chronicle or story together take no more than this."""
PATIENCE_S = 10.0
"""How long is waited for a destroyer, which needs milliseconds."""

_META = "meta"
_STORIES = "stories"
_HASH = re.compile(r"[0-9a-f]{32}")
_TRIES = 100

_log = logging.getLogger("py_chronolog_client")


class Meta(NamedTuple):
    """What a chronicle or story says of itself."""

    name: str
    attributes: dict[str, str]
    created_ns: int


class Catalog:
    """The chronicles and stories of one store.

    Thread safety: everything; all state is in the file system.

    Attributes:
        root: the store.
    """

    def __init__(
        self,
        root: StoreRoot,
        *,
        patience_s: float = PATIENCE_S,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Look at a store.

        Args:
            root: the store.
            patience_s: how long to wait for another destroyer.
            clock_ns: says when a chronicle or story was created.
        """
        self.root = root
        self._clock_ns = clock_ns
        self._patience_s = patience_s
        self._reported: set[str] = set()

    # -- chronicles --

    def create_chronicle(self, name: str, attributes: Mapping[str, str]) -> None:
        """Create a chronicle; of several creators exactly one succeeds.

        Durability: on the device.

        Raises:
            ChronicleExistsError: somebody has created it before.
            InvalidArgumentError: no such name or attributes are possible.
            NotAuthorizedError: this user may not write to the store.
        """
        meta = _encode_meta(name, attributes, self._clock_ns())
        with files.os_errors(self.root.path):
            self.root.ensure_directory(self.root.chronicles)
            if not self._create(self._chronicle(name), meta, _STORIES):
                raise ChronicleExistsError(f"the chronicle {name!r:.200} exists already")

    def destroy_chronicle(self, name: str) -> None:
        """Remove a chronicle with its stories.

        Raises:
            NotFoundError: there is no such chronicle.
            AcquiredError: a living client holds one of its stories.
            NotAuthorizedError: this user may not write to the store.
        """
        directory = self._chronicle(name)
        self._destroy(directory, f"the chronicle {name!r:.200}", self._all(directory / _STORIES))

    def chronicles(self) -> list[str]:
        """Return the names of all chronicles, sorted.

        One whose meta is damaged or cannot be read is reported to the log, once, instead.
        """
        with files.os_errors(self.root.chronicles):
            return self._names(self.root.chronicles)

    def chronicle_attributes(self, name: str) -> dict[str, str]:
        """Return the attributes that a chronicle was created with.

        Raises:
            NotFoundError: there is no such chronicle.
            DamageError: its `meta` cannot be believed.
        """
        directory = self._chronicle(name)
        with files.os_errors(directory):
            self._require(directory, f"the chronicle {name!r:.200}")
            return _read_meta(directory).attributes

    # -- stories --

    def ensure_story(self, chronicle: str, story: str, attributes: Mapping[str, str]) -> Path:
        """Return the directory of a story, which is created with `attributes` if it is not there.

        The story may be destroyed at any moment until a client has its files in it and has called
        `confirm_acquisition`.

        Durability: on the device.

        Raises:
            NotFoundError: there is no such chronicle.
            InvalidArgumentError: no such name or attributes are possible.
            NotAuthorizedError: this user may not write to the store.
        """
        meta = _encode_meta(story, attributes, self._clock_ns())
        chronicle_directory = self._chronicle(chronicle)
        directory = chronicle_directory / _STORIES / name_hash(story)
        with files.os_errors(directory):
            for _ in range(_TRIES):
                self._require(chronicle_directory, f"the chronicle {chronicle!r:.200}")
                if directory.is_dir():
                    return directory
                with suppress(FileNotFoundError):  # somebody destroys the chronicle
                    self._create(directory, meta)
                    try:
                        acquisition.await_destroyers([chronicle_directory], self._patience_s)
                    except NotFoundError as error:
                        raise NotFoundError(f"the chronicle {chronicle!r:.200} goes: {error}") from error
        raise NotFoundError(f"story {story!r:.200} of {chronicle!r:.200} is destroyed as often as it is made")

    def story_directory(self, chronicle: str, story: str) -> Path:
        """Return the directory of a story.

        Raises:
            NotFoundError: there is no such story, or no such chronicle.
        """
        chronicle_directory = self._chronicle(chronicle)
        directory = chronicle_directory / _STORIES / name_hash(story)
        with files.os_errors(directory):
            self._require(chronicle_directory, f"the chronicle {chronicle!r:.200}")
            self._require(directory, f"the story {story!r:.200} of the chronicle {chronicle!r:.200}")
        return directory

    def stories(self, chronicle: str) -> list[str]:
        """Return the names of all stories, sorted.

        One whose meta is damaged or cannot be read is reported to the log, once, instead.

        Raises:
            NotFoundError: there is no such chronicle.
        """
        directory = self._chronicle(chronicle)
        with files.os_errors(directory):
            self._require(directory, f"the chronicle {chronicle!r:.200}")
            return self._names(directory / _STORIES)

    def story_attributes(self, chronicle: str, story: str) -> dict[str, str]:
        """Return the attributes that a story was created with.

        Raises:
            NotFoundError: there is no such story, or no such chronicle.
            DamageError: its `meta` cannot be believed.
        """
        directory = self.story_directory(chronicle, story)
        with files.os_errors(directory):
            return _read_meta(directory).attributes

    def story_created_ns(self, chronicle: str, story: str) -> int:
        """Return when a story was created.

        Raises:
            NotFoundError: there is no such story, or no such chronicle.
            DamageError: its `meta` cannot be believed.
        """
        directory = self.story_directory(chronicle, story)
        with files.os_errors(directory):
            return _read_meta(directory).created_ns

    def destroy_story(self, chronicle: str, story: str) -> None:
        """Remove a story with its events.

        Raises:
            NotFoundError: there is no such story, or no such chronicle.
            AcquiredError: a living client holds it.
            NotAuthorizedError: this user may not write to the store.
        """
        directory = self.story_directory(chronicle, story)
        self._destroy(directory, f"the story {story!r:.200} of the chronicle {chronicle!r:.200}", [directory])

    # -- clients --

    def clients(self, story_directory: Path) -> list[int]:
        """Return the ids of all clients that ever wrote to a story, sorted.

        Raises:
            NotFoundError: the story is gone.
        """
        with files.os_errors(story_directory), _gone_is_not_found(story_directory):
            return client_ids(story_directory)

    def census(self, story_directory: Path, wanted: Collection[int] | None = None) -> dict[int, Known]:
        """Return what is known of the clients of a story, of all or only of those that are wanted, by rising client id.

        Raises:
            NotFoundError: the story is gone.
        """
        with files.os_errors(story_directory), _gone_is_not_found(story_directory):
            return census(story_directory, wanted)

    def holders(self, story_directory: Path) -> list[dict[str, Any]]:
        """Return the descriptions of the living clients that hold a story; each has at least `client_id`."""
        with files.os_errors(story_directory):
            return acquisition.holders(story_directory)

    def confirm_acquisition(self, story_directory: Path, client_id: int) -> None:
        """Make sure that nobody destroys a story under a client that has just made segment and tail there.

        If this fails, the client removes both and begins again with `ensure_story`, which creates the story
        anew.

        Args:
            story_directory: what `ensure_story` returned.
            client_id: whose files they are.

        Raises:
            NotFoundError: the story or its chronicle is gone, or will be.
        """
        with files.os_errors(story_directory):
            acquisition.confirm(story_directory, client_id, self._patience_s)

    # -- how it is done --

    def _chronicle(self, name: str) -> Path:
        return self.root.chronicles / name_hash(name)

    def _create(self, directory: Path, meta: bytes, *inner: str) -> bool:
        """Let a directory with its meta appear whole; return whether this call has done it."""
        if directory.is_dir():
            return False
        making = files.temporary_beside(directory)
        self.root.make_directory(making)
        try:
            files.write_file(making / _META, meta, self.root.file_mode, sync=True)
            for name in inner:
                self.root.make_directory(making / name)
            files.sync_directory(making)
            os.rename(making, directory)
        except BaseException as error:
            shutil.rmtree(making, ignore_errors=True)
            if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            raise
        files.sync_directory(directory.parent)
        return True

    def _require(self, directory: Path, what: str) -> None:
        """Raise NotFoundError unless the directory is there."""
        try:
            if stat.S_ISDIR(os.stat(directory).st_mode):
                return
        except (FileNotFoundError, NotADirectoryError):
            pass
        raise NotFoundError(f"{what} does not exist in the store {self.root.path}")

    def _all(self, directory: Path) -> Iterator[Path]:
        """Find the chronicles or stories in a directory, when it is iterated."""
        try:
            names = os.listdir(directory)
        except FileNotFoundError:
            return
        yield from (directory / name for name in sorted(names) if _HASH.fullmatch(name))

    def _names(self, directory: Path) -> list[str]:
        """Return the names of the chronicles or stories in a directory, without those that cannot be read."""
        names = []
        for entry in self._all(directory):
            try:
                names.append(_read_meta(entry).name)
            except (FileNotFoundError, NotADirectoryError):
                continue  # destroyed meanwhile
            except OSError as error:  # DamageError is one
                if entry.name not in self._reported:
                    self._reported.add(entry.name)
                    _log.warning("left out of a listing: %s", _sentence(error, entry))
        return sorted(names)

    def _destroy(self, directory: Path, what: str, stories: Iterable[Path]) -> None:
        """Remove a chronicle or story whose tails are in `stories`, unless one of them is held."""
        with files.os_errors(directory):
            self.root.require_marker()
            self._require(directory, what)
            self.root.ensure_directory(self.root.trash)
            trash = os.open(self.root.trash, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                parent = os.open(directory.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    self._move_away(directory, what, stories, parent, trash)
                finally:
                    os.close(parent)
                self._sweep(trash)
            except FileNotFoundError as error:
                raise NotFoundError(f"somebody else has destroyed {what}") from error
            finally:
                os.close(trash)

    def _move_away(
        self, directory: Path, what: str, stories: Iterable[Path], parent: int, trash: int
    ) -> None:
        """Rename a directory into the trash as `acquisition` demands it."""
        with acquisition.claimed(self.root, directory, self._patience_s) as claim:
            relative_claim = claim.relative_to(directory.parent)
            for story in stories:
                os.utime(relative_claim, dir_fd=parent)
                try:
                    holders = acquisition.holders(story)
                except (FileNotFoundError, NotADirectoryError):
                    continue  # destroyed meanwhile
                if holders:
                    raise AcquiredError(
                        f"{what} is acquired by {acquisition.named(holders[0])}: "
                        "release it there, or end that process"
                    )
            os.utime(relative_claim, dir_fd=parent)
            os.rename(directory.name, files.unique_name(), src_dir_fd=parent, dst_dir_fd=trash)

    def _sweep(self, trash: int) -> None:
        """Delete what is in the trash, also of destroyers that died: nobody can come back to it."""
        if not os.path.samestat(os.fstat(trash), os.lstat(self.root.trash)):
            return
        for name in os.listdir(trash):
            if _HASH.fullmatch(name):
                shutil.rmtree(self.root.trash / name, ignore_errors=True)


@contextmanager
def _gone_is_not_found(story_directory: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise NotFoundError(f"{story_directory}: the story has just been destroyed") from error


def _sentence(error: OSError, directory: Path) -> str:
    """Return what is wrong with the meta of a chronicle or story."""
    return str(error) if isinstance(error, DamageError) else f"{directory / _META}: {error.strerror}"


def _encode_meta(name: str, attributes: Mapping[str, str], created_ns: int) -> bytes:
    """Return the meta of a new chronicle or story.

    Raises:
        TypeError: the attributes are no map of str to str.
        InvalidArgumentError: they are no Unicode text, or too long.
    """
    check_name(name)
    if not isinstance(attributes, Mapping):
        raise TypeError(f"attributes must be a dict of str to str, not {type(attributes).__name__}")
    if not all(isinstance(text, str) for item in attributes.items() for text in item):
        raise TypeError("attributes must be a dict of str to str, and one of them is not")
    try:
        data: bytes = msgpack.packb({"name": name, "attributes": dict(attributes), "created_ns": created_ns})
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(f"an attribute is no Unicode text: {error.reason}") from error
    if len(data) > MAX_META_BYTES:
        raise InvalidArgumentError(
            f"name and attributes take {len(data)} bytes, over the limit of {MAX_META_BYTES}"
        )
    return data


def _read_meta(directory: Path) -> Meta:
    """Read the meta of a chronicle or story.

    Raises:
        DamageError: it cannot be believed.
        OSError: the directory is not there, or cannot be read.
    """
    path = directory / _META
    try:
        fields = decode_map(files.read_file(path, MAX_META_BYTES))
    except FileNotFoundError as error:
        os.stat(directory)
        raise DamageError(path, 0, "the file is missing") from error
    except ValueError as error:
        raise DamageError(path, 0, str(error)) from error
    name, attributes, created_ns = (fields.get(key) for key in Meta._fields)
    if not isinstance(name, str) or not name or name_hash(name) != directory.name:
        raise DamageError(path, 0, "the name in it is not the one that its directory stands for")
    if not isinstance(attributes, dict) or not all(isinstance(text, str) for text in attributes.values()):
        raise DamageError(path, 0, "the attributes in it are no map of text to text")
    if not isinstance(created_ns, int):
        raise DamageError(path, 0, "the time of its creation is missing")
    return Meta(name, attributes, created_ns)
