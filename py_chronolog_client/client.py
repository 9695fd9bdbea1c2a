"""The ChronoLog client API: `Client` and `StoryHandle`.

Names, signatures and return codes are ChronoLog's (2.x, and 3.x where `attrs` and `flags` are left out);
methods in snake_case, `ShowChronicles` and `ShowStories` are extensions. A method that returns a code never
raises for what a code exists for; `last_error` has the sentence. Arguments of a wrong type are a TypeError,
as in the compiled library.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, SupportsFloat, SupportsIndex

from py_chronolog_client.clock import Clock, SystemClock
from py_chronolog_client.conf import ClientPortalServiceConf, ClientQueryServiceConf, open_engine
from py_chronolog_client.engine.base import (
    MAX_TIME_NS,
    Durability,
    Engine,
    ScanReport,
    Snapshot,
    Writer,
    WriterOptions,
    WriterStatistics,
    checked_description,
)
from py_chronolog_client.errors import (
    AcquiredError,
    ChronoLogError,
    ErrorCode,
    InvalidArgumentError,
    NotAcquiredError,
    NotConnectedError,
    NotReaderError,
)
from py_chronolog_client.eventlist import EventList
from py_chronolog_client.identity import new_client_id

if TYPE_CHECKING:
    from py_chronolog_client.page import Page

logger = logging.getLogger("py_chronolog_client")


class StoryHandle:
    """The right to log into a story, from `Client.AcquireStory`.

    As a context manager it releases the story at the end.

    Attributes:
        log_event: append one event and return its time in ns since 1970 UTC, or 0 if it was refused (and
            counted, see `statistics`). Takes text or bytes, as `event_string` or `log_string`.
    """

    def __init__(self, writer: Writer, release: Callable[[], object]) -> None:
        self._writer = writer
        self._release = release
        self.log_event = writer.log_event

    @property
    def client_id(self) -> int:
        """The client id that the events of this process carry."""
        return self._writer.client_id

    def log_events(self, batch: Sequence[str | bytes]) -> int:
        """Append a batch of records under one time and return it, or 0 if the batch was refused.

        Durability: as `log_event`. Readers see a batch of up to 131072 events and 128 MiB whole or not at
        all.

        Raises:
            TypeError: an item is no record; nothing is logged then.
            RecordTooLargeError: an item is over the limit of 64 MiB.
        """
        return self._writer.log_events(batch)

    def flush(self, timeout_s: float | None = None) -> int:
        """Bring all events to the durability that the client asked for; return the acknowledged sequence number."""
        return self._writer.flush(_seconds(timeout_s))

    def statistics(self) -> WriterStatistics:
        """Return how many events were logged, are acknowledged, and were lost for which reason."""
        return self._writer.statistics()

    def use_clock(self, clock: Clock) -> None:
        """Take the times of all events from now on from another clock."""
        self._writer.use_clock(clock)

    def __enter__(self) -> StoryHandle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()


class Client:
    """A client of ChronoLog.

    `Client(portal_conf)` only writes; `Client(portal_conf, query_conf)` also replays. Each object is a client
    of its own, with a client id of its own. As a context manager it connects and disconnects.

    Thread safety: everything, except that one story is acquired and released by one thread at a time.

    Attributes:
        last_error: what the last code other than 0 stands for, or None.
    """

    def __init__(
        self,
        portal_conf: ClientPortalServiceConf,
        query_conf: ClientQueryServiceConf | None = None,
        *,
        client_id: int | None = None,
        clock: Clock | None = None,
        durability: Durability = "process",
        description: Mapping[str, Any] | None = None,
    ) -> None:
        """Make a client; `Connect` reaches out.

        Args:
            portal_conf: where stories are written.
            query_conf: where they are replayed; None for a client that only writes.
            client_id: 0 to 2**63 - 1, unique among all clients of the stories it writes; None for a random
            one.
            clock: where times come from; None for the system's.
            durability: what an acknowledged event survives: the death of its "process", or a power cut of its
            "node".
            description: kept with the client's events, for `clients`: names with values of None, bool, int,
            float, str, bytes, lists and dicts, at most 512 KiB in all.

        Raises:
            TypeError: an argument is of a wrong type.
            InvalidArgumentError: an argument is out of its range.
        """
        if not isinstance(portal_conf, ClientPortalServiceConf):
            raise TypeError(f"portal_conf is a ClientPortalServiceConf, not {type(portal_conf).__name__}")
        if query_conf is not None and not isinstance(query_conf, ClientQueryServiceConf):
            raise TypeError(f"query_conf is a ClientQueryServiceConf, not {type(query_conf).__name__}")
        if client_id is not None and not isinstance(client_id, int):
            raise TypeError(f"client_id is a whole number, not {type(client_id).__name__}")
        if client_id is not None and not 0 <= client_id < 2**63:
            raise InvalidArgumentError(f"client_id {client_id} is not between 0 and 2**63 - 1")
        if durability not in ("process", "node"):
            raise InvalidArgumentError(f'durability {durability!r} is neither "process" nor "node"')
        self.last_error: ChronoLogError | None = None
        self._portal_conf = portal_conf
        self._query_conf = query_conf
        self._client_id = new_client_id() if client_id is None else client_id
        self._clock = clock
        self._durability: Durability = durability
        self._description = checked_description({} if description is None else description)
        self._engine: Engine | None = None
        self._handles: dict[tuple[str, str], tuple[Writer, StoryHandle, WriterOptions | None]] = {}
        self._released: dict[tuple[str, str], tuple[int, int]] = {}
        self._process = os.getpid()

    # -- connection --

    def Connect(self) -> int:
        """Reach the engine; 0, also when connected already, or -8 if there is none.

        A store directory is made where it is missing, but not the directory above it: that is -8 too.
        """

        def connect() -> None:
            if self._engine is None:
                self._engine = open_engine(self._portal_conf, self._query_conf)
                self._clock = self._clock or SystemClock()

        return self._code(connect)

    def Disconnect(self) -> int:
        """Release all stories and let the engine go; 0, also when not connected."""

        def disconnect() -> None:
            for key in list(self._handles):
                self._close(key, "disconnected")
            if self._engine is not None:
                self._engine.close()
            self._engine = None

        return self._code(disconnect)

    def __enter__(self) -> Client:
        if self.Connect() != ErrorCode.CL_SUCCESS:
            assert self.last_error is not None
            raise self.last_error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.Disconnect()

    # -- chronicles --

    def CreateChronicle(
        self, chronicle_name: str, attrs: Mapping[str, str] | None = None, flags: int = 0
    ) -> int:
        """Create a chronicle; 0, or -6 if there is one of that name."""
        attributes = _attributes(attrs, flags)
        return self._code(lambda: self._named(chronicle_name).create_chronicle(chronicle_name, attributes))

    def DestroyChronicle(self, chronicle_name: str) -> int:
        """Remove a chronicle and its stories; 0, -3 if it is not there, -4 if one of its stories is acquired."""
        return self._code(lambda: self._named(chronicle_name).destroy_chronicle(chronicle_name))

    def ShowChronicles(self) -> list[str]:
        """Return the names of all chronicles, sorted.

        One whose name cannot be read is left out, with a warning that says where the damage is.
        """
        return self._connected().chronicles()

    def chronicle_attributes(self, chronicle_name: str) -> dict[str, str]:
        """Return the attributes that a chronicle was created with."""
        return self._connected().chronicle_attributes(chronicle_name)

    # -- stories --

    def AcquireStory(
        self, chronicle_name: str, story_name: str, attrs: Mapping[str, str] | None = None, flags: int = 0
    ) -> tuple[int, StoryHandle | None]:
        """Get the right to log into a story, which is created if it is not there.

        Returns:
            (0, handle); the same handle if this client has it already; (-3, None) if there is no such
            chronicle.
        """
        attributes = _attributes(attrs, flags)
        key = (chronicle_name, story_name)
        handles: list[StoryHandle] = []

        def acquire() -> None:
            engine = self._named(chronicle_name, story_name)
            self._notice_fork()
            if key not in self._handles:
                assert self._clock is not None
                client_id, first = self._released.get(key, (self._client_id, 0))
                options = WriterOptions(
                    client_id, self._clock, self._durability, self._description, first_sequence=first
                )
                try:
                    writer = engine.open_writer(chronicle_name, story_name, attributes, options)
                except InvalidArgumentError:
                    if key not in self._released:
                        raise
                    # The old id has logged nothing, or still has events in its tail because the disk was full.
                    options = replace(options, client_id=new_client_id(), first_sequence=0)
                    writer = engine.open_writer(chronicle_name, story_name, attributes, options)
                handle = StoryHandle(writer, lambda: self.ReleaseStory(*key))
                self._handles[key] = writer, handle, options
            handles.append(self._handles[key][1])

        code = self._code(acquire)
        return code, handles[0] if handles else None

    def ReleaseStory(self, chronicle_name: str, story_name: str) -> int:
        """Flush and give a story up; 0, or -5 if this client does not hold it."""

        def release() -> None:
            _check_names(chronicle_name, story_name)
            key = (chronicle_name, story_name)
            if key not in self._handles:
                raise NotAcquiredError(
                    f"story {story_name!r} of {chronicle_name!r} is not acquired by this client"
                )
            self._close(key, "released")

        return self._code(release)

    def _close(self, key: tuple[str, str], reason: str) -> None:
        self._notice_fork()
        writer, _, options = self._handles.pop(key)
        writer.close(reason)
        if options is not None:
            self._released[key] = options.client_id, options.first_sequence + writer.statistics().logged

    def _notice_fork(self) -> None:
        """Become a client of its own after a fork: the parent goes on with the old id."""
        if self._process != os.getpid():
            self._process = os.getpid()
            self._client_id = new_client_id()
            self._released = {}
            self._handles = {
                key: (writer, handle, None) for key, (writer, handle, _) in self._handles.items()
            }

    def DestroyStory(self, chronicle_name: str, story_name: str) -> int:
        """Remove a story with its events; 0, -3 if it is not there, -4 if a living client holds it."""

        def destroy() -> None:
            engine = self._named(chronicle_name, story_name)
            if (chronicle_name, story_name) in self._handles:
                raise AcquiredError(f"story {story_name!r} of {chronicle_name!r} is acquired by this client")
            engine.destroy_story(chronicle_name, story_name)
            self._released.pop((chronicle_name, story_name), None)

        return self._code(destroy)

    def ShowStories(self, chronicle_name: str) -> list[str]:
        """Return the names of the stories of a chronicle, sorted.

        One whose name cannot be read is left out, with a warning that says where the damage is.
        """
        return self._connected().stories(chronicle_name)

    def story_attributes(self, chronicle_name: str, story_name: str) -> dict[str, str]:
        """Return the attributes that a story was created with."""
        return self._connected().story_attributes(chronicle_name, story_name)

    def clients(self, chronicle_name: str, story_name: str) -> dict[int, dict[str, Any]]:
        """Return what is known of each client that ever wrote to a story: client id -> host, pid, rank, job, ..."""
        return self._connected().clients(chronicle_name, story_name)

    # -- replay --

    def ReplayStory(
        self, chronicle_name: str, story_name: str, start: int, end: int, event_series: EventList
    ) -> int:
        """Append the events of a story with times in `[start, end]`, both included, to `event_series`, in order.

        The story need not be acquired, and may be written to meanwhile: what was logged before the call is
        there.

        Returns:
            0; -11 if the client has no query service; -3 if there is no such story; -2 if start > end; -12 at
            a time-out; -1 if a part of the store is damaged: all other events are delivered and
            `event_series.damages` says where.
        """
        if not isinstance(event_series, EventList):
            raise TypeError(f"event_series is an EventList, not {type(event_series).__name__}")
        start, end = _time("start", start), _time("end", end)

        def replay() -> None:
            report = ScanReport()
            for page in self.replay(chronicle_name, story_name, start, end, verify=True, report=report):
                event_series.add_page(page)
            event_series.damages += report.damages
            for sentence in report.left_out():
                logger.warning("story %r of %r: %s", story_name, chronicle_name, sentence)
            if report.damages:
                raise report.damages[0]

        return self._code(replay)

    def replay(
        self,
        chronicle_name: str,
        story_name: str,
        start: int = 0,
        end: int = MAX_TIME_NS,
        *,
        clients: Sequence[int] | None = None,
        snapshot: Snapshot | None = None,
        since: Snapshot | None = None,
        timeout_s: float | None = None,
        verify: bool = False,
        aligned: bool = False,
        report: ScanReport | None = None,
    ) -> Iterator[Page]:
        """Yield the events of a story in order, as pages of columns, in bounded memory. An extension of the ChronoLog API.

        Arguments as for `Engine.scan`; errors are raised.
        """
        if self._query_conf is None:
            raise NotReaderError("this client only writes: make it with a ClientQueryServiceConf to replay")
        engine = self._named(chronicle_name, story_name)
        if start > end:
            raise InvalidArgumentError(f"the range starts at {start}, after its end {end}")
        return engine.scan(
            chronicle_name,
            story_name,
            start,
            end,
            clients=clients,
            snapshot=snapshot,
            since=since,
            timeout_s=_seconds(timeout_s),
            verify=verify,
            aligned=aligned,
            report=report,
        )

    def snapshot(self, chronicle_name: str, story_name: str) -> Snapshot:
        """Return the present high-water mark of every client of a story, for `replay` and `follow`."""
        return self._named(chronicle_name, story_name).snapshot(chronicle_name, story_name)

    def follow(
        self, chronicle_name: str, story_name: str, cursor: Snapshot, timeout_s: float
    ) -> tuple[list[Page], Snapshot]:
        """Wait up to `timeout_s` for events beyond `cursor` ({} for the beginning); return them and the next cursor."""
        if self._query_conf is None:
            raise NotReaderError(
                "this client only writes: make it with a ClientQueryServiceConf to follow a story"
            )
        return self._named(chronicle_name, story_name).follow(
            chronicle_name, story_name, cursor, _seconds(timeout_s)
        )

    # -- between codes and errors --

    def _code(self, action: Callable[[], None]) -> int:
        try:
            action()
        except ChronoLogError as error:
            self.last_error = error.with_traceback(None)  # whose frames would keep pages and files
            if error.code == ErrorCode.CL_ERR_UNKNOWN:
                logger.error("%s", error)
            return error.code
        except OSError as error:
            self.last_error = ChronoLogError(str(error))
            logger.error("%s", error)
            return ErrorCode.CL_ERR_UNKNOWN
        return ErrorCode.CL_SUCCESS

    def _connected(self) -> Engine:
        if self._engine is None:
            raise NotConnectedError("not connected: call Connect() first")
        return self._engine

    def _named(self, *names: str) -> Engine:
        _check_names(*names)
        return self._connected()


def _time(name: str, value: SupportsIndex) -> int:
    """Return a time as an int; numpy's integers are times too."""
    time_ns = value.__index__() if hasattr(value, "__index__") else -1
    if not 0 <= time_ns <= MAX_TIME_NS:
        raise TypeError(f"{name} is a time, a whole number from 0 to 2**64 - 1, not {value!r}")
    return time_ns


def _seconds(value: Any) -> Any:
    """Return a time-out as it is, if it is one."""
    if value is not None and (not isinstance(value, SupportsFloat) or not float(value) >= 0):
        raise InvalidArgumentError(f"timeout_s is a number of seconds, at least 0, not {value!r}")
    return value


def _check_names(*names: str) -> None:
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"a name is a text, not {type(name).__name__}")
        if not name:
            raise InvalidArgumentError("a name is empty")


def _attributes(attrs: Mapping[str, str] | None, flags: int) -> Mapping[str, str]:
    if not isinstance(flags, int):
        raise TypeError(f"flags is a whole number, not {type(flags).__name__}")
    if attrs is not None and not isinstance(attrs, Mapping):
        raise TypeError(f"attrs is a dict of str to str, not {type(attrs).__name__}")
    for item in (attrs or {}).items():
        if not all(isinstance(text, str) for text in item):
            raise TypeError(f"attrs is a dict of str to str, and has {item!r}")
    return attrs or {}
