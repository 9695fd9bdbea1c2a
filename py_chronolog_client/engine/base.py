"""The contract between a `Client` and whatever keeps its events.

An engine has a catalog (chronicles, stories, their attributes), opens writers, and answers questions about
stories. Several engines keep one contract, and one suite (`py_chronolog_client.testing`) holds them to it:

* **A writer** belongs to one client id and one story. `log_event` returns a timestamp once the event survives
  the death of the process, or 0 if the engine refused it; a refusal is counted with its reason. Events of one
  writer are numbered 0, 1, 2, ... (the *sequence*, 64 bits) and their times never decrease.
* **Acknowledged** is a sequence number: all events below it have reached the durability that the writer was
  opened with. An engine may acknowledge at once (a file) or later (a network); `flush` waits for it.
* **Order** is (time, client id, sequence), everywhere.
* **A snapshot** is one high-water mark for each client: the sequence number behind its last event. A scan
  takes it when it starts and delivers exactly the events below it, whatever is written or merged meanwhile.
* **A cursor** of `follow` is a snapshot too, never a time: an event that arrives late is still delivered
  once.
* **Capabilities** are asked for, never guessed from a type.

Ranges of time are `[start_ns, end_ns]`, both ends included.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from py_chronolog_client.clock import Clock
from py_chronolog_client.errors import DamageError, InvalidArgumentError

if TYPE_CHECKING:
    from py_chronolog_client.page import Page

Snapshot = Mapping[int, int]
"""client id -> the sequence number behind its last event."""

Durability = Literal["process", "node"]
"""What an acknowledged event survives: the death of its process, or also a power cut of its node."""

MAX_TIME_NS = 2**64 - 1
MAX_DESCRIPTION_BYTES = 512 * 2**10
"""What a client says of itself takes no more than this as msgpack."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do beyond the ChronoLog API."""

    batches: bool = True
    """`log_events` costs less than as many `log_event`."""
    survives_kill: bool = True
    """An event whose `log_event` returned is replayed although its process was killed at once, without anybody's doing."""
    node_durability: bool = True
    """Writers may be opened with durability "node"."""
    clock_injection: bool = True
    """Writers take their times from a given clock and keep its model."""


@dataclass(frozen=True, slots=True)
class WriterStatistics:
    """What became of the events that were given to a writer."""

    logged: int
    """Events that were accepted."""
    acknowledged: int
    """Of those, how many have reached the durability that was asked for."""
    lost: Mapping[str, int] = field(default_factory=dict)
    """Events that were refused: reason -> number. Each of them was answered with 0. Under the reason "deleted" also
    those that were accepted, if somebody has deleted them since."""

    @property
    def backlog(self) -> int:
        """Events that are accepted and not yet acknowledged."""
        return self.logged - self.acknowledged


@dataclass(frozen=True, slots=True)
class WriterOptions:
    """How a writer is opened."""

    client_id: int
    """0 to 2**63 - 1, unique among all clients that ever write to the story."""
    clock: Clock
    durability: Durability = "process"
    description: Mapping[str, Any] = field(default_factory=dict)
    """Kept with the story for `Engine.clients`, for instance rank, size and job; see `checked_description`."""
    first_sequence: int = 0
    """Number of the first event. A client that was closed may come back to a story with the number behind its last
    event, unless that is 0; its times then go on from where they were. For a new client any number will do."""


def checked_description(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a description will be when it is read, a copy; every engine can keep it.

    Args:
        description: names with values of None, bool, int, float, str, bytes, lists, and dicts with text keys.

    Raises:
        TypeError: it is no such map.
        InvalidArgumentError: a number or the whole is too large, or a text has a lone surrogate.
    """
    if not isinstance(description, Mapping):
        raise TypeError(f"description is a dict, not {type(description).__name__}")
    import msgpack

    kept: dict[str, Any] = {}
    size_bytes = 0
    for name, value in description.items():
        if not isinstance(name, str):
            raise TypeError(f"description has the key {name!r:.100}: keys are text")
        try:
            packed: bytes = msgpack.packb({name: value})
            size_bytes += len(packed)
            kept |= msgpack.unpackb(packed, strict_map_key=True, max_ext_len=0)
        except (ValueError, OverflowError) as error:
            raise InvalidArgumentError(f"description[{name!r:.100}] cannot be kept: {error}") from error
        except TypeError as error:
            raise TypeError(
                f"description[{name!r:.100}] cannot be kept: {error}: give text, bytes, numbers, lists or dicts"
            ) from error
    if size_bytes > MAX_DESCRIPTION_BYTES:
        raise InvalidArgumentError(
            f"description takes {size_bytes} bytes as msgpack, over the limit of {MAX_DESCRIPTION_BYTES}: shorten it"
        )
    return kept


class Writer(ABC):
    """Appends the events of one client to one story.

    Thread safety: all methods may be called from any thread, and from a signal handler that interrupted one
    of them. After a fork, the child's calls go to a client of its own.
    """

    @property
    @abstractmethod
    def client_id(self) -> int:
        """The client id of the events that this process logs."""

    @abstractmethod
    def log_event(self, event_string: str | bytes = ..., log_string: str | bytes | None = None) -> int:
        """Append one event and return its time in ns, or 0 if it was refused.

        The parameter has both of the names that ChronoLog uses; give one of them.

        Raises:
            TypeError: the record is neither text (without lone surrogates) nor bytes.
            RecordTooLargeError: the record is over the limit of the engine.
        """

    @abstractmethod
    def log_events(self, batch: Sequence[str | bytes]) -> int:
        """Append a batch under one timestamp and return it, or 0 if the batch was refused.

        Readers see a batch that fits one block whole or not at all.
        """

    @abstractmethod
    def flush(self, timeout_s: float | None = None) -> int:
        """Bring all events to the durability of this writer; return the acknowledged sequence number."""

    @abstractmethod
    def use_clock(self, clock: Clock) -> None:
        """Take times from `clock` from now on. They still never decrease."""

    @abstractmethod
    def statistics(self) -> WriterStatistics:
        """Return what became of the events so far."""

    @abstractmethod
    def close(self, reason: str = "released") -> None:
        """Flush, note the reason with the story, and give the story up. Closing twice does nothing."""


@dataclass(slots=True)
class ScanReport:
    """What a scan found wrong, filled while it runs."""

    damages: list[DamageError] = field(default_factory=list)
    """Places in the store that could not be believed."""
    missing: int = 0
    """Events that are known to have been there and could not be delivered."""
    disbelieved: int = 0
    """Newest events that may be torn, so they were left out: of clients of another machine that a reboot may have
    torn, in a store that was copied while it was written, or on a processor whose memory this machine cannot order."""
    unseen: int = 0
    """Clients that did not close and whose newest events lie where this machine cannot look."""

    def left_out(self) -> list[str]:
        """Return a sentence for each kind of events that are not damaged and were not delivered either."""
        sentences = []
        if self.disbelieved:
            sentences.append(
                f"the newest {self.disbelieved} events of clients on another machine, from before a reboot, in a copied "
                "store, or on a kernel without membarrier(2), are left out: they may be torn; set CHRONOLOG_TRUST_TAILS=1 "
                "if the store was copied when nobody wrote to it, from a machine that did not lose power"
            )
        if self.unseen:
            sentences.append(
                f"the tails of {self.unseen} clients cannot be seen from this machine, so their newest events are left "
                "out: read on the machine where they lie, or after the clients have flushed or closed"
            )
        return sentences

    def caught(self, error: DamageError) -> None:
        """Note a damage, without the frames that its traceback would keep alive, and their files open."""
        error.__cause__ = error.__context__ = None
        self.damages.append(error.with_traceback(None))


class Engine(ABC):
    """A place that keeps stories. Errors are raised from the tree in `py_chronolog_client.errors`."""

    capabilities: Capabilities

    @abstractmethod
    def create_chronicle(self, chronicle: str, attributes: Mapping[str, str]) -> None:
        """Create a chronicle; of several creators exactly one succeeds, the others get ChronicleExistsError."""

    @abstractmethod
    def destroy_chronicle(self, chronicle: str) -> None:
        """Remove a chronicle with its stories, unless one of them is acquired."""

    @abstractmethod
    def chronicles(self) -> list[str]:
        """Return the names of all chronicles, sorted."""

    @abstractmethod
    def chronicle_attributes(self, chronicle: str) -> dict[str, str]:
        """Return the attributes that a chronicle was created with, and its `owner` if the engine knows him."""

    @abstractmethod
    def destroy_story(self, chronicle: str, story: str) -> None:
        """Remove a story with its events, unless it is acquired."""

    @abstractmethod
    def stories(self, chronicle: str) -> list[str]:
        """Return the names of the stories of a chronicle, sorted."""

    @abstractmethod
    def story_attributes(self, chronicle: str, story: str) -> dict[str, str]:
        """Return the attributes that a story was created with, and its `owner` if the engine knows him."""

    @abstractmethod
    def open_writer(
        self, chronicle: str, story: str, attributes: Mapping[str, str], options: WriterOptions
    ) -> Writer:
        """Acquire a story for one client, creating the story (not the chronicle) if it is not there."""

    @abstractmethod
    def clients(self, chronicle: str, story: str) -> dict[int, dict[str, Any]]:
        """Return what each client of a story said of itself: client id -> description."""

    @abstractmethod
    def snapshot(self, chronicle: str, story: str) -> Snapshot:
        """Return the present high-water mark of every client."""

    @abstractmethod
    def scan(
        self,
        chronicle: str,
        story: str,
        start_ns: int = 0,
        end_ns: int = MAX_TIME_NS,
        *,
        clients: Sequence[int] | None = None,
        snapshot: Snapshot | None = None,
        since: Snapshot | None = None,
        timeout_s: float | None = None,
        verify: bool = False,
        aligned: bool = False,
        report: ScanReport | None = None,
    ) -> Iterator[Page]:
        """Deliver the events of `[start_ns, end_ns]` in order, in pages of bounded size.

        Nobody ever gets a record whose checksum does not hold: records are checked when `Page.records`
        fetches them (DamageError), or with `verify` before a page is delivered, which then leaves damaged
        ones out.

        Args:
            start_ns: first time, included.
            end_ns: last time, included.
            clients: only these client ids; None for all.
            snapshot: deliver only events below these marks; None takes a snapshot now.
            since: deliver only events at or above these marks.
            timeout_s: raise ReplayTimeoutError when the scan takes longer.
            verify: check the records of every page before it is delivered.
            aligned: put every event where all synchronisations of its clock, also later ones, say that it belongs:
                range and order are those of `Page.aligned`.
            report: filled with what was found wrong; without it, DamageError is raised at the end.
        """

    @abstractmethod
    def follow(
        self, chronicle: str, story: str, cursor: Snapshot, timeout_s: float
    ) -> tuple[list[Page], Snapshot]:
        """Wait until there are events beyond `cursor`, or `timeout_s` is over; return them and the next cursor.

        What is found wrong goes to the log, once.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the engine. Writers are closed by their owners before."""
