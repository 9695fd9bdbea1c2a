"""Acquiring and destroying meet without locks: this is the handshake, and the reason why it is right.

How it works
------------
Three facts about file systems are used, all of them POSIX: a rename is atomic; a directory can be renamed
onto another only if that one is missing or *empty*; and a directory that is opened after something was made
in it shows it.

**A client** that acquires makes its segment and its tail in the story's directory, *then* looks for
destroyers of the story and of its chronicle (`confirm`). **A destroyer** makes a claim, *then* looks for
tails of living owners (`holders`). So whoever looks second sees the other, and it cannot happen that both
see nothing. If both see each other, the destroyer gives up and the client waits until it has. A destroyer
never waits while it holds a claim, so this ends.

**A claim** is the file `destroying/<id>`, where `<id>` is never used again, in a directory `destroying` of
which there is one. The claim is prepared in a temporary directory, which is then renamed to `destroying`.
Two things follow:

* At most one claim exists: over a directory that holds one, the rename fails.
* A claim whose owner is dead can be removed by anybody at any time, by its own name. Were `destroying`
  itself the claim, a slow process could remove the claim of the *next* destroyer by that name, and a client
  would not see it. What is left, an empty `destroying`, is nobody's, and the next rename goes over it.

**The story leaves** by a rename into the trash. Only the holder of the claim may do that, and the name that
it renames still means the directory with its claim: it opens the parent directory first, touches its claim
*through that descriptor*, and renames through it. Within that parent the name can change its meaning only
by the doing of another holder of a claim in the same directory, of whom there is none; and when the
chronicle around it is destroyed, the parent moves away with its descriptor, so that no new story of the
same name can be hit. The touch fails if others have taken the destroyer for dead and removed its claim;
then it stops.

**Every interleaving.** Let the client's tail be complete at T and its look begin at L > T; the claim be
there from C, the destroyer's look begin at D > C, its rename happen at R > D. If T < D, the tail is seen,
and there is no R. If T > D, then C < D < T < L: at L the claim is there, or it has ended, by R or because
the destroyer gave up or died. The client waits for that end. If the destroyer gave up or is dead, nobody
will rename, and the client is right to stay. After R it does not find its files at the path any more, and
gives up.

That last check has to be for the names of both files. The tail may have been made in a directory that was in
the trash already; or the segment in the old directory, and the tail in a new one of the same name. The client
id in the names is unique, so the files can be nobody else's. The number of the directory's inode would not
do: a file system gives it to the next directory at once.

For a chronicle the claim is in the chronicle's directory, and the destroyer looks into every story that it
finds after C. A story that appears later has no tail before that, so T > C, and its client sees the claim.

**The limit of this** is the lease (`owner.is_alive`): a process on another machine that was stopped for
longer than the lease counts as dead while it is not. A client stopped so loses its story. A destroyer
stopped so finds its claim gone, unless it was stopped exactly between the touch and the rename, where it
has touched its claim a moment ago.

A network file system may cache what a directory holds (NFS). Opening the directory makes it ask the server,
so both look only after they have opened the directories that matter, from above to below.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgpack

from py_chronolog_client.errors import AcquiredError, DamageError, NotFoundError
from py_chronolog_client.store import files, owner
from py_chronolog_client.store.format import (
    TAIL_CLOSED,
    TAIL_STATE_BYTES,
    TAIL_STATE_OFFSET,
    TailHeader,
    TailState,
    decode_map,
)
from py_chronolog_client.store.records import read_client_record
from py_chronolog_client.store.root import StoreRoot

DESTROYING = "destroying"
MERGING = "merging"
"""The same kind of claim, to the sole right to merge the segments of a story into chunks."""

_SEGMENT = re.compile(r"([0-9a-f]{16})(?:\.([1-9][0-9]{0,8}))?\.log")
_TAIL = re.compile(r"([0-9a-f]{16})\.tail")
_CLAIM_LIMIT_BYTES = 2**16
_FIRST_PAUSE_S = 0.001
_LONGEST_PAUSE_S = 0.05


def clients(story_directory: Path) -> list[int]:
    """Return the ids of all clients that have a segment in a story, sorted.

    Raises:
        OSError: the directory cannot be read.
    """
    return sorted(_segments(os.listdir(story_directory)))


def segments(story_directory: Path) -> dict[int, list[int]]:
    """Return the numbers of the segments of every client, rising: 0 is `<client>.log`.

    Raises:
        OSError: the directory cannot be read.
    """
    numbers: dict[int, list[int]] = {}
    for match in map(_SEGMENT.fullmatch, os.listdir(story_directory)):
        if match:
            numbers.setdefault(int(match[1], 16), []).append(int(match[2] or 0))
    return {client_id: sorted(numbers[client_id]) for client_id in sorted(numbers)}


def tails(story_directory: Path) -> set[int]:
    """Return the ids of all clients that have a tail in a story.

    Raises:
        OSError: the directory cannot be read.
    """
    return {int(match[1], 16) for match in map(_TAIL.fullmatch, os.listdir(story_directory)) if match}


def segment_path(story_directory: Path, client_id: int, number: int) -> Path:
    """Return the name of a segment: 0 is `<client>.log`."""
    return story_directory / (f"{client_id:016x}.{number}.log" if number else f"{client_id:016x}.log")


def holders(story_directory: Path) -> list[dict[str, Any]]:
    """Return what the living clients that hold a story say of themselves, by client id.

    A client whose description cannot be read counts as living until its lease is over, and is described by
    its `client_id` alone.

    Raises:
        OSError: the directory cannot be read.
    """
    names = os.listdir(story_directory)
    tails = sorted(int(match[1], 16) for match in map(_TAIL.fullmatch, names) if match)
    segments = _segments(names) if tails else {}
    found = (_holder(story_directory, client_id, segments.get(client_id, [])) for client_id in tails)
    return [holder for holder in found if holder is not None]


def confirm(story_directory: Path, client_id: int, patience_s: float) -> None:
    """Make sure, for a client whose segment and tail are made, that nobody destroys the story under it.

    Args:
        story_directory: where the client has made its files.
        client_id: whose files they are.
        patience_s: how long to wait for a destroyer that has to give up.

    Raises:
        NotFoundError: the story or its chronicle is gone, or will be.
        OSError: the directories cannot be read.
    """
    await_destroyers((story_directory.parent.parent, story_directory), patience_s)
    is_made = os.path.lexists(story_directory / f"{client_id:016x}.tail")
    if not is_made or client_id not in clients(story_directory):
        raise NotFoundError(
            f"{story_directory}: the story was destroyed while it was acquired: acquire it again"
        )


def await_destroyers(directories: Iterable[Path], patience_s: float) -> None:
    """Wait until nobody alive has a claim to one of the directories; they may be gone then.

    Raises:
        NotFoundError: somebody still has one after `patience_s`.
        OSError: the directories cannot be read.
    """
    pauses = _pauses(patience_s)
    for directory in directories:
        while (destroyer := living_destroyer(directory)) is not None:
            if not next(pauses):
                raise NotFoundError(
                    f"{directory}: {named(destroyer)} is destroying it and does not come to an end"
                )


def living_destroyer(directory: Path, kind: str = DESTROYING) -> dict[str, Any] | None:
    """Return who destroys (or merges) a story or chronicle, or None; claims of dead destroyers are removed.

    Raises:
        OSError: the directory cannot be read.
    """
    for name in _claims(directory, kind):
        path = directory / kind / name
        description = {} if name.startswith(".") else _read_claim(path)
        if description is None:
            continue
        if not name.startswith(".") and owner.is_alive(description, path):
            return description
        with suppress(OSError):
            os.unlink(path)
    with suppress(OSError):
        os.rmdir(directory / kind)
    return None


@contextmanager
def claimed(root: StoreRoot, directory: Path, patience_s: float, kind: str = DESTROYING) -> Iterator[Path]:
    """Hold the claim to a story or chronicle, which is the sole right to rename it away (or to merge its segments).

    Args:
        root: the store.
        directory: the story or chronicle.
        patience_s: how long to wait for another destroyer.
        kind: `DESTROYING` or `MERGING`.

    Yields:
        The file that is the claim, to be touched from time to time.

    Raises:
        NotFoundError: the directory is gone.
        AcquiredError: another destroyer does not come to an end.
        OSError: the claim cannot be made.
    """
    name = files.unique_name()
    claim = directory / kind / name
    making = directory / f"{files.TEMPORARY}{name}"
    try:
        try:
            root.make_directory(making)
            files.write_file(making / name, msgpack.packb(owner.describe_process()), root.file_mode)
            _rename_when_free(making, directory, patience_s, kind)
        except FileNotFoundError as error:
            raise NotFoundError(f"{directory}: somebody else has destroyed it") from error
        yield claim
    finally:
        shutil.rmtree(making, ignore_errors=True)
        with suppress(OSError):
            os.unlink(claim)
            os.rmdir(claim.parent)


def named(description: Mapping[str, Any]) -> str:
    """Return a few words that tell an owner from others."""
    client_id = description.get("client_id")
    client = f"client {client_id:016x}, " if isinstance(client_id, int) else ""
    if "pid" not in description:
        return f"{client}an unknown process"
    words = {key: str(description.get(key, "?"))[:100] for key in ("pid", "host", "user")}
    return f"{client}process {words['pid']} on {words['host']} of user {words['user']}"


def _segments(names: Iterable[str]) -> dict[int, list[str]]:
    """Return the segments of every client, newest first."""
    numbered: dict[int, list[tuple[int, str]]] = {}
    for match in map(_SEGMENT.fullmatch, names):
        if match:
            numbered.setdefault(int(match[1], 16), []).append((int(match[2] or 0), match[0]))
    return {client_id: [name for _, name in sorted(own, reverse=True)] for client_id, own in numbered.items()}


def _holder(story_directory: Path, client_id: int, segments: list[str]) -> dict[str, Any] | None:
    """Return the description of a client that has a tail, or None if it holds the story no longer."""
    tail = story_directory / f"{client_id:016x}.tail"
    if _is_closed(tail, client_id):
        return None
    paths = [story_directory / name for name in segments]
    records = (read_client_record(path, client_id) for path in paths)
    description = next((record for record in records if record is not None), {})
    if not owner.is_alive(description, _newest(paths) or tail) or not os.path.lexists(tail):
        return None
    return {**description, "client_id": client_id}


def _is_closed(tail: Path, client_id: int) -> bool:
    """Tell whether a tail can be read and says that nobody holds it."""
    try:
        descriptor = os.open(tail, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False  # perhaps a link to another machine's file system
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return False
        data = os.pread(descriptor, TAIL_STATE_OFFSET + TAIL_STATE_BYTES, 0)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    header = TailHeader.unpack(data)
    if header is None or header.client_id != client_id or len(data) < TAIL_STATE_OFFSET + TAIL_STATE_BYTES:
        return False
    return TailState.unpack(data[TAIL_STATE_OFFSET:]).state == TAIL_CLOSED


def _newest(paths: Iterable[Path]) -> Path | None:
    """Return the path that was touched last."""
    times: dict[Path, int] = {}
    for path in paths:
        with suppress(OSError):
            times[path] = os.lstat(path).st_mtime_ns
    return max(times, key=times.__getitem__, default=None)


def _claims(directory: Path, kind: str) -> list[str]:
    """Return the names in the `destroying` or `merging` of a directory."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    opened: list[int] = []
    try:
        # Step by step: opening a directory is what makes NFS ask the server which names it has.
        opened.append(os.open(directory.parent, flags))
        opened.append(os.open(directory.name, flags, dir_fd=opened[-1]))
        opened.append(os.open(kind, flags | os.O_NOFOLLOW, dir_fd=opened[-1]))
        return os.listdir(opened[-1])
    except FileNotFoundError:
        return []
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _read_claim(path: Path) -> dict[str, Any] | None:
    """Return who made a claim; {} where that cannot be read, None where the claim is gone."""
    try:
        return decode_map(files.read_file(path, _CLAIM_LIMIT_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (DamageError, OSError, ValueError):
        return {}


def _rename_when_free(making: Path, directory: Path, patience_s: float, kind: str) -> None:
    """Rename a prepared claim to its name as soon as nobody alive has one there."""
    pauses = _pauses(patience_s)
    while True:
        destroyer = living_destroyer(directory, kind)
        if destroyer is None:
            try:
                os.rename(making, directory / kind)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            else:
                return
        if not next(pauses):
            raise AcquiredError(f"{directory}: {named(destroyer or {})} is already {kind} it")


def _pauses(patience_s: float) -> Iterator[bool]:
    """Sleep at each step, a little longer each time; True until `patience_s` is over."""
    deadline_s = time.monotonic() + patience_s
    pause_s = _FIRST_PAUSE_S
    while (left_s := deadline_s - time.monotonic()) > 0:
        time.sleep(min(pause_s, left_s))
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        yield True
    while True:
        yield False
