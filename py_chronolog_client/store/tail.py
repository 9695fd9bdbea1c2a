"""The tail: a small shared mapping that holds a client's newest events, and the right to write to it.

Appending must survive a SIGKILL at any instruction, cost no system call, and stay right when it is interrupted:
by another thread, by a signal handler that logs, by an exception that a handler throws between any two
bytecodes, by a fork. There is no lock that could be waited for in a signal handler, so interruption is made
harmless instead of impossible:

* All memory that an append touches is reached through the `memoryview`s of an **epoch**. A view can be
  *released*, and from then on every use of it raises ValueError, inside one C call, before a byte moves.
  Releasing the views of an epoch therefore **revokes** it: whatever code still holds it, at whatever bytecode
  it was stopped, can write nothing more.
* At most one epoch may write. Whoever needs the tail and cannot have the present epoch makes a new one: it
  registers its own, then revokes all others, and only then looks at the mapping to learn where the events
  end. The mapping is the truth; positions in local variables are hints. Whoever was interrupted meets a
  released view, and tries again in the new epoch.
* An event exists from the store of its end offset, one aligned 8-byte store through a view cast to "Q" and
  the last thing that an append does with its epoch. So an append that fails has not happened, and trying
  again cannot double it.
* The fast path is a generator, `appends`: CPython refuses to enter a running generator, so two appends never
  run in one epoch at a time, and finding that out costs nothing. *Ending* the generator is the claim to its
  epoch: only one caller can do it.

The same mechanism serves a full tail (the generator ends), a flush, a batch, a fork (the child revokes what
it inherited) and the close. It rests on the GIL: `memoryview.release` and the stores must each be one
uninterrupted step.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path

from py_chronolog_client.clock import ClockModel, ReadingOver
from py_chronolog_client.errors import InvalidArgumentError
from py_chronolog_client.store.files import appear, temporary_beside
from py_chronolog_client.store.format import (
    TAIL_CLOSED,
    TAIL_FILE_OFFSET,
    TAIL_STATE_BYTES,
    TAIL_STATE_OFFSET,
    TailHeader,
    TailState,
)
from py_chronolog_client.store.rights import is_own
from py_chronolog_client.store.root import StoreRoot

TAIL_BYTES = 2**20
"""Size of a tail. Its pages count as memory of the job where the tail lies on tmpfs."""
TAIL_CAPACITY = 2**13
"""Number of events that a tail holds at most."""
RESERVE_EVENTS = 2**9
RESERVE_BYTES = 2**16
"""What only urgent claims may use, so that a signal handler that logs need not wait for a block to be written."""

_STEP = 2**8
_BASE_WORD = TAIL_STATE_OFFSET // 8
_STATE_WORD = _BASE_WORD + 1
_CLOCK = slice(TAIL_STATE_OFFSET + 16, TAIL_STATE_OFFSET + TAIL_STATE_BYTES)


class Epoch:
    """The right to write to a tail, until it is revoked.

    Attributes:
        times: the index column of times, "Q".
        ends: the index column of end offsets, "Q"; storing into it commits.
        memory: the whole mapping, bytes; an index is an offset in the file.
        room: `memory` without the reserve; storing a record that does not fit fails.
        words: the whole mapping, "Q".
        token: an empty view; a system call that is given it fails once the epoch is revoked.
        run: the generator of the fast path; whoever ends it has claimed the epoch.
    """

    __slots__ = ("ends", "memory", "room", "run", "times", "token", "words")

    def __init__(self, tail: Tail) -> None:
        layout = tail.layout
        self.memory = memoryview(tail.mapping)
        self.words = self.memory.cast("Q")
        self.times = self.words[layout.times_offset // 8 :][: layout.capacity]
        self.ends = self.words[layout.ends_offset // 8 :][: layout.capacity]
        self.room = self.memory[: layout.tail_bytes - RESERVE_BYTES]
        self.token = memoryview(b"")
        self.run: Appends | None = None

    def revoke(self) -> None:
        """Make every further use of this epoch fail.

        Raises:
            BufferError: another thread is inside a system call with one of the views; it will come back.
        """
        self.ends.release()
        self.times.release()
        self.words.release()
        self.room.release()
        self.memory.release()
        self.token.release()

    @property
    def revoked(self) -> bool:
        """Whether somebody has begun to revoke this epoch."""
        try:
            return not len(self.ends)
        except ValueError as error:
            if not is_own(error):
                raise
            return True


class Claim:
    """An epoch in which only the holder may write, and its first free slot (or one before it).

    An urgent claim was got by revoking somebody who may be moving the tail to a block; its holder may use the
    reserve.
    """

    __slots__ = ("epoch", "slot", "urgent")

    def __init__(self, epoch: Epoch, slot: int, urgent: bool = False) -> None:
        self.epoch = epoch
        self.slot = slot
        self.urgent = urgent


Appends = Generator[int, bytes, Claim]


class Handover(Exception):  # noqa: N818 - a request to a generator, never an error
    """Thrown into `appends` to end it between two events."""


def appends(
    epoch: Epoch, free: int, capacity: int, end: int, tick: Callable[[], int], offset_ns: int
) -> Appends:
    """Append every record that is sent, and yield its time: the fast path.

    Ends when it is thrown `Handover`, when slots, payload or the time of the reading have run out, or when its
    epoch is revoked, and then returns the claim. The record that was sent at that moment is not stored.

    Args:
        epoch: the right to write.
        free: first free slot.
        capacity: number of slots that may be used.
        end: offset in the file behind the last record.
        tick: the reading's, from `Reading.bounded`.
        offset_ns: the reading's offset.
    """
    room, times, ends = epoch.room, epoch.times, epoch.ends
    time_ns, slot = 0, free
    try:
        for slot in range(free, capacity):
            record = yield time_ns
            start = end
            end += len(record)
            room[start:end] = record
            times[slot] = time_ns = tick() + offset_ns
            ends[slot] = end
        yield time_ns
    except (Handover, ReadingOver):
        pass
    except ValueError as error:
        if not is_own(error):
            raise
    return Claim(epoch, slot)


class Tail:
    """The mapped file. Knows the layout and the order of stores; who may write is the epochs' affair."""

    def __init__(
        self, root: StoreRoot, path: Path, directory: Path | None, layout: TailHeader, state: TailState
    ) -> None:
        """Make the file and reserve its space.

        Args:
            root: the store.
            path: its name in the story.
            directory: where the file really lies, on a node-local file system; None for `path` itself.
            layout: the constant part of its header.
            state: the changing part of its header.

        Raises:
            InvalidArgumentError: there is a tail of this client already.
            OSError: there is no room, or the file system refuses.
        """
        self.layout = layout
        self.path = path
        self._real_path = path if directory is None else directory / f"{path.parent.name}-{path.name}"
        making = temporary_beside(self._real_path)
        descriptor = root.create_file(making, os.O_RDWR)
        try:
            reserve(descriptor, layout.tail_bytes)
            os.pwrite(descriptor, layout.pack(), 0)
            inode = os.fstat(descriptor).st_ino % 2**64
            os.pwrite(descriptor, inode.to_bytes(8, "little"), TAIL_FILE_OFFSET)
            os.pwrite(descriptor, state.pack(), TAIL_STATE_OFFSET)
            self.mapping = mmap.mmap(descriptor, layout.tail_bytes)
            appear(making, self._real_path)
            if directory is not None:
                self._link_from(path)
        except FileExistsError:
            raise InvalidArgumentError(
                f"{path}: the tail of this client still holds events: take a new client id"
            ) from None
        finally:
            os.close(descriptor)
            with suppress(OSError):  # it is harmless under this name
                os.unlink(making)
        self._no_ends = bytes(8 * layout.capacity)
        self._known = (-1, 0)

    def _link_from(self, path: Path) -> None:
        try:
            os.symlink(self._real_path, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(self._real_path)
            raise

    def base(self, epoch: Epoch) -> int:
        """Return the sequence number of slot 0."""
        return epoch.words[_BASE_WORD]

    def first_free(self, epoch: Epoch, hint: int = 0) -> int:
        """Return the first slot that is not committed; all slots before `hint` are known to be."""
        ends, capacity = epoch.ends, self.layout.capacity
        known_base, known_slot = self._known
        if known_slot > hint and known_base == self.base(epoch):
            hint = known_slot
        while hint < capacity and ends[hint]:
            committed = ends[hint : hint + _STEP].tolist()
            hint += committed.index(0) if 0 in committed else len(committed)
        self._known = self.base(epoch), hint
        return hint

    def end(self, epoch: Epoch, slot: int) -> int:
        """Return the offset behind the last record before `slot`."""
        return epoch.ends[slot - 1] if slot else self.layout.payload_offset

    def model(self, epoch: Epoch) -> ClockModel:
        """Return the clock model of the present generation."""
        return ClockModel.unpack(epoch.memory[_CLOCK])

    def clear(self, epoch: Epoch, slot: int) -> None:
        """Forget what an interrupted batch left in the slots from `slot` on."""
        offset = self.layout.ends_offset
        epoch.memory[offset + 8 * slot : offset + 8 * self.layout.capacity] = self._no_ends[8 * slot :]

    def recycle(self, epoch: Epoch, base: int, model: ClockModel) -> None:
        """Start a new generation whose slot 0 has the sequence number `base`."""
        epoch.ends[0] = 0
        self.clear(epoch, 0)
        epoch.memory[_CLOCK] = model.pack()
        epoch.words[_BASE_WORD] = base

    def mark_closed(self, epoch: Epoch) -> None:
        """Say that nobody holds the story through this tail any more, though it still holds events."""
        epoch.words[_STATE_WORD] = TAIL_CLOSED

    def unmap(self) -> None:
        """Let go of the mapping, after all epochs are revoked."""
        self.mapping.close()

    def remove(self) -> None:
        """Delete the file."""
        for path in {self._real_path, self.path}:
            with suppress(FileNotFoundError):
                os.unlink(path)


def reserve(descriptor: int, size_bytes: int) -> None:
    """Allocate every block of a new file, so that no later store can fail for want of room.

    A store into a hole of a full file system is a SIGBUS. Where the file system cannot allocate, zeros are
    written.
    """
    try:
        os.posix_fallocate(descriptor, 0, size_bytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        zeros = bytes(2**16)
        for offset in range(0, size_bytes, len(zeros)):
            written = os.pwrite(descriptor, zeros[: size_bytes - offset], offset)
            if written < min(len(zeros), size_bytes - offset):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
