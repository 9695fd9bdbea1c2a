"""The appender: one client's writer to one story.

The fast path is `appends` in tail.py (read its essay first). This module is what happens around it: every
call that the fast path cannot serve claims the tail, lets the journal do its work alone, and publishes a new
fast path. The work may be undone at any moment by somebody who needs the tail more urgently (a signal handler,
say); then it has not happened, and is done again.
"""

from __future__ import annotations

import atexit
import errno
import logging
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Sequence, Sized
from contextlib import suppress
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from py_chronolog_client.clock import Clock
from py_chronolog_client.engine.base import Writer, WriterOptions, WriterStatistics
from py_chronolog_client.errors import ChronoLogError, ClosedError
from py_chronolog_client.identity import new_client_id
from py_chronolog_client.records import MISSING, Record, encode, encode_batch, pieces, the_one
from py_chronolog_client.store.apart import apart
from py_chronolog_client.store.catalog import Catalog
from py_chronolog_client.store.format import MAX_PAYLOAD_BYTES, MAX_RECORD_BYTES
from py_chronolog_client.store.journal import Journal, claim_in
from py_chronolog_client.store.losses import Losses
from py_chronolog_client.store.rights import is_own, is_revocation
from py_chronolog_client.store.tail import Claim

logger = logging.getLogger("py_chronolog_client")

_DELETED = "deleted"
_POLITENESS_S = 0.1
_HANDOVER_S = 0.01
_BLOCK_EVENTS = 2**17


class Appender(Writer):
    """Writes the events of one client. See `Writer` for the contract.

    Thread safety: everything, from any thread, signal handler or forked child. In a child the events go to a
    client of its own.

    Dropped without `close`, it is closed when the garbage collector finds it, with a ResourceWarning.

    Durability: an event whose `log_event` returned survives the death of its process. With durability "node"
    the events below the number that `flush` returned survive a power cut too.
    """

    def __init__(
        self, catalog: Catalog, directory: Path, options: WriterOptions, tail_directory: Path | None = None
    ) -> None:
        """Acquire the story in `directory` for a new client."""
        self._catalog = catalog
        self._directory = directory
        self._tail_directory = tail_directory
        self._options = options
        self._politeness = threading.Lock()
        self._losses = Losses()
        self._encode: Callable[[Any], bytes] = str.encode
        self._bell: Callable[[], None] | None = None
        self._closed = self._released = False
        self.log_event, self._publish = _fast_path(self._resume)  # type: ignore[method-assign]
        self._journals: dict[int, Journal] = {}
        self._maker_pid = os.getpid()
        _writers.add(self)
        try:
            self._open(options.client_id, options.clock)
        except BaseException:
            _writers.discard(self)
            raise

    # -- the contract --

    @property
    def client_id(self) -> int:
        if self._own.pid != os.getpid():
            self._transact(lambda own, claim: 0)
        return self._own.client_id

    def log_event(self, event_string: str | bytes = MISSING, log_string: str | bytes | None = None) -> int:
        raise AssertionError("replaced by the fast path of each appender")  # pragma: no cover

    def log_events(self, batch: Sequence[str | bytes]) -> int:
        return self._append(*encode_batch(batch, MAX_RECORD_BYTES))

    def flush(self, timeout_s: float | None = None) -> int:
        try:
            self._transact(self._flush)
        except ClosedError:
            pass
        except OSError as error:
            if not is_own(error):
                raise
            if error.errno != errno.ESTALE:  # of which the segment has told
                logger.warning(
                    "%s: flush failed, the events stay in the tail: %s", self._own.tail.path, error
                )
            if self._is_orphan():
                return 0
        return self._own.first_sequence + self.statistics().acknowledged

    def use_clock(self, clock: Clock) -> None:
        def operation(own: Journal, claim: Claim) -> int:
            own.use_clock(claim, clock)
            return 0

        self._transact(operation)

    def statistics(self) -> WriterStatistics:
        try:
            next_sequence = self._transact(Journal.count)
        except ClosedError:
            next_sequence = self._own.next_sequence
        except OSError as error:
            if not (is_own(error) and self._is_orphan()):
                raise
            return WriterStatistics(0, 0, self._losses.by_reason())
        acknowledged = next_sequence if self._options.durability == "process" else self._own.acknowledged
        first, lost = self._own.first_sequence, self._losses.by_reason()
        if any(segment.deleted for segment in self._own.segments):
            lost[_DELETED] = lost.get(_DELETED, 0) + next_sequence - first
        return WriterStatistics(next_sequence - first, acknowledged - first, lost)

    def close(self, reason: str = "released") -> None:
        if self._own.pid == os.getpid():
            try:
                self._transact(lambda own, claim: self._say_goodbye(own, claim, reason))
            except ClosedError:
                return
            self._released = True
            self._own.let_go()
        self._closed = self._released = True

    def ring(self, bell: Callable[[], None]) -> None:
        """Call `bell` once, as soon as there is something that was not there when this was called.

        The fast path pays nothing for that: the next event takes another way. An exception that a signal handler throws
        at the wrong moment can swallow the call until the event after that.

        Args:
            bell: is called by whoever logs, from a signal handler too.
        """
        self._bell = bell
        self._publish(self._first_send, self._encode)

    def __del__(self) -> None:
        own = vars(self).get(
            "_own"
        )  # nothing was opened if it is not there; in a child the files are the parent's
        if own is None or self._released or own.pid != os.getpid():
            return
        self.close("dropped")
        warnings.warn(
            f"a handle of client {own.client_id:016x} was dropped without ReleaseStory or Disconnect; its events are "
            f"kept, and the story was released: {own.tail.path.parent}",
            ResourceWarning,
            source=self,
            stacklevel=2,
        )

    # -- opening and closing --

    def _open(self, parent_client_id: int, clock: Clock) -> None:
        """Open the files of a client of this process: the one of the options where the appender was made, else a new one."""
        while True:
            journal = apart(lambda: self._make_journal(parent_client_id, clock), Journal.discard)
            if journal is not None:
                winner = self._journals.setdefault(journal.pid, journal)
                if journal.pid == os.getpid():
                    break
                journal.let_go()  # a signal handler has forked: this is the parent's
        claim = Claim(next(iter(journal.epochs)), 0)
        if winner is not journal:  # a signal handler has come in between, and has opened one as well
            journal.discard()
        self._own = winner
        self._free(claim)

    def _make_journal(self, parent_client_id: int, clock: Clock) -> Journal:
        options = self._options
        client_id, description, first = options.client_id, options.description, options.first_sequence
        if os.getpid() != self._maker_pid:
            client_id, first = new_client_id(), 0
            description = {**description, "parent_client_id": parent_client_id}
        return Journal(
            self._catalog, self._directory, self._tail_directory, client_id, description, clock, first
        )

    def _say_goodbye(self, own: Journal, claim: Claim, reason: str) -> int:
        """Move everything to blocks, note the reason, and remove the tail; keep it where the file system refuses.

        Closing comes first: who claims the tail from now on appends nothing, and who did so just before has
        revoked this claim, so that the next step fails and everything is done again, with his events.
        """
        self._closed = True
        try:
            self._flush(own, claim)
            own.renew(claim)
            own.next_sequence = own.count(claim)
            own.write_goodbye(reason, self._losses.by_reason(), durable=self._options.durability == "node")
            own.tail.remove()
        except OSError as error:
            if not is_own(error):
                raise
            own.next_sequence = own.count(claim)
            if error.errno == errno.ESTALE:  # of which the segment has told
                own.tail.remove()
                return 0
            logger.warning("%s: closed, but this tail stays, with the last events: %s", own.tail.path, error)
            own.tail.mark_closed(claim.epoch)
        return 0

    def after_fork_in_child(self) -> None:
        """Make everything that was inherited useless; the next call opens a client of this process."""
        self._politeness = threading.Lock()
        self._losses = Losses()
        self._bell = None
        self._released = self._closed
        for journal in self._journals.values():
            journal.let_go()
        self._journals = {}

    # -- the way of a call that the fast path cannot serve --

    def _resume(self, event_string: Record, log_string: Record | None, trouble: Exception) -> int:
        """Do a `log_event` whose fast path raised `trouble`."""
        if not is_own(trouble):
            raise trouble
        claim = claim_in(trouble)
        try:
            record = encode(the_one(event_string, log_string), MAX_RECORD_BYTES)
        except BaseException:
            if claim is not None:
                self._free(claim)
            raise
        if isinstance(trouble, TypeError):  # not the kind that the fast path takes: it has not seen it
            if type(event_string) is bytes:
                self._encode = _text_or_bytes
            try:
                return self._first_send(record)
            except (StopIteration, ValueError) as again:
                if not is_own(again):
                    raise
                claim = claim_in(again)
        return self._append(record, (record,), claim)

    def _first_send(self, record: bytes) -> int:
        """Append an event after which others take the fast path as it is now, and ring the bell."""
        self._publish(self._send, self._encode)
        time_ns = self._send(record)
        self._ring()
        return time_ns

    def _ring(self) -> None:
        bell, self._bell = self._bell, None
        if bell is not None:
            bell()

    def _append(self, payload: bytes, records: Sequence[Sized], claim: Claim | None = None) -> int:
        left = len(records)

        def operation(own: Journal, claim: Claim) -> int:
            nonlocal left
            own.renew(claim)
            time_ns = own.now()
            done = len(records) - left
            for piece, its_records in pieces(payload, records, done, _BLOCK_EVENTS, MAX_PAYLOAD_BYTES):
                if self._closed:
                    self._losses.add("closed", left)
                    return 0
                time_ns = own.put(claim, piece, its_records)
                left -= len(its_records)
            return time_ns

        try:
            return self._transact(operation, claim)
        except (OSError, ChronoLogError) as error:
            if not is_own(error):
                raise
            self._losses.add(_reason(error), left)
        return 0

    def _flush(self, own: Journal, claim: Claim) -> int:
        """Move the tail to a block and, for durability "node", bring it to the device."""
        own.ask_again()
        own.roll(claim)
        own.note_models()
        if self._options.durability == "node":
            own.sync()
        return 0

    def _transact(self, operation: Callable[[Journal, Claim], int], claim: Claim | None = None) -> int:
        """Run `operation` with the tail of this process to itself, again whenever it was revoked before it was done.

        Threads queue up for that, but only out of politeness: who interrupted his own thread in here must not
        wait at all.
        """
        queue, interrupting = self._politeness, _is_running(Appender._transact.__code__)
        polite = False
        try:
            if not interrupting:
                polite = queue.acquire(timeout=_POLITENESS_S)
                if not polite:  # its holder takes long, or was interrupted for good just before the release
                    self._politeness = threading.Lock()
            while True:
                if self._released:
                    raise ClosedError(f"{self._own.segments[0].path}: this handle was released")
                if self._own.pid != os.getpid():
                    self._open(self._own.client_id, self._own.clock)
                    claim = None
                try:
                    claim = self._own.claim(claim, 0.0 if interrupting else _HANDOVER_S)
                    result = operation(self._own, claim)
                except BaseException as error:
                    if is_revocation(error) or self._is_in_vain(error):
                        continue
                    if claim is not None:
                        self._recover(claim)
                    raise
                self._free(claim)
                return result
        finally:
            if polite:
                queue.release()

    def _is_orphan(self) -> bool:
        """Tell whether this is a forked child that found no room for a client of its own, and has stored nothing."""
        return self._own.pid != os.getpid()

    def _is_in_vain(self, error: BaseException) -> bool:
        """Tell whether an operation failed because its files were closed meanwhile."""
        useless = self._released or self._own.pid != os.getpid()
        return useless and isinstance(error, OSError) and is_own(error)

    def _recover(self, claim: Claim) -> None:
        """Let the fast path go on after an operation that broke off anywhere; if this does too, the next call does it."""
        with suppress(OSError, ValueError):
            claim.slot = self._own.settle(claim.epoch)
            self._free(claim)

    def _free(self, claim: Claim) -> None:
        """Let the fast path go on behind the last event."""
        try:
            send = self._own.fast_path(claim)
        except ValueError as error:
            if is_revocation(error):
                return  # whoever did it has let the fast path go on
            raise
        if not self._closed:
            self._send = send
            self._publish(send, self._encode)
        self._ring()


def _fast_path(
    resume: Callable[[Record, Record | None, Exception], int],
) -> tuple[Callable[..., int], Callable[[Callable[[bytes], int], Callable[[Any], bytes]], None]]:
    """Return `log_event`, and the function that tells it where the events go from now on, and what kind they are."""
    send: Callable[[bytes], int]
    encode: Callable[[Any], bytes]

    def log_event(event_string: str | bytes = MISSING, log_string: str | bytes | None = None) -> int:
        try:
            if log_string is None:
                return send(encode(event_string))
            return resume(event_string, log_string, TypeError())
        except (StopIteration, ValueError, TypeError) as trouble:
            return resume(event_string, log_string, trouble)

    def publish(new_send: Callable[[bytes], int], new_encode: Callable[[Any], bytes]) -> None:
        nonlocal send, encode
        send, encode = new_send, new_encode

    log_event.__doc__ = Writer.log_event.__doc__
    return log_event, publish


def _text_or_bytes(record: str | bytes) -> bytes:
    """Stand in for `str.encode`, at the price of a call, where a client has once logged bytes."""
    return record if type(record) is bytes else str.encode(record)  # type: ignore[arg-type]


def _reason(error: OSError | ChronoLogError) -> str:
    """Return what `statistics` calls the reason of a refusal."""
    if isinstance(error, OSError) and error.errno == errno.ESTALE:
        return _DELETED
    if isinstance(error, OSError):
        return errno.errorcode.get(error.errno or 0, "EIO")
    return "closed" if isinstance(error, ClosedError) else "story gone"


def _is_running(code: CodeType) -> bool:
    """Tell whether the caller was called, however indirectly, by `code`: from a signal handler, say."""
    here: FrameType | None = sys._getframe(2)
    while here is not None and here.f_code is not code:
        here = here.f_back
    return here is not None


_writers: weakref.WeakSet[Appender] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for writer in list(_writers):
        writer.after_fork_in_child()


def _at_exit() -> None:
    for writer in list(_writers):
        writer.close("exit")


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_at_exit)
