"""How a keeper hands its clients' events over to the grapher.

A thread looks every second at the clients of whom something has come since they were handed over last. What is due by
the story's policy is sealed: from then on the client goes on in another segment, and the sealed one never changes
again. It is shipped block by block, and deleted here when the grapher has said that it is on its device. So a death on
either side, or a lost connection, costs nothing but doing it again: the grapher says how far it has a client.

Where there is no grapher, or it is away, nothing is sealed and everything stays here, for as long as that takes. Senders
notice nothing of any of this.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from chronolog_hpc.services.policy import Pace, Policy
from chronolog_hpc.services.stories import Stories
from py_chronolog_client.engine.connection import Address, Connection
from py_chronolog_client.errors import ChronoLogError, NotConnectedError, NotFoundError
from py_chronolog_client.store import acquisition
from py_chronolog_client.store.handover import Sealed, sealed
from py_chronolog_client.store.records import read_client_record, read_close_record
from py_chronolog_client.wire import messages
from py_chronolog_client.wire.failures import error_of
from py_chronolog_client.wire.handshake import SERVICE_NAME, Identity
from py_chronolog_client.wire.messages import M, expect

_LONGEST_PAUSE = 30
"""Between two attempts, in ordinary pauses."""
_ASIDE_S = 60.0
"""A client whose segment cannot be handed over is left alone for so long."""
_AT_ONCE = 256
"""So many clients are sealed before the first of them is shipped."""
_ANSWER_S = 60.0
_STREAM = 1

logger = logging.getLogger("chronolog_hpc.services")


class Place(NamedTuple):
    """Where a client's blocks go: its own segments of one story, also when a later story has the same name."""

    chronicle: str
    story: str
    uid: int
    client_id: int

    def __str__(self) -> str:
        return f"client {self.client_id:016x} of story {self.story!r:.200} of {self.chronicle!r:.200}"


_Story = tuple[str, str, int]


class Handing:
    """Hands over what is due until it is stopped."""

    def __init__(
        self,
        stories: Stories,
        visor: Address,
        identity: Identity,
        seal: Callable[[Place], None],
        pace: Pace,
    ) -> None:
        """Begin in a thread, with what was left when the keeper ended.

        Args:
            stories: of the keeper.
            visor: where it listens.
            identity: of the services.
            seal: lets a client go on in another segment; called in that thread.
            pace: when something is due.
        """
        self._stories = stories
        self._visor = visor
        self._identity = identity
        self._seal = seal
        self._pace = pace
        self._since_s: dict[Place, float] = {}
        """Whose events are here, and since when; in the future for those who are set aside."""
        self._news: set[Place] = set()
        """Of whom something has come, or was left undone, since the last look."""
        self._policies: dict[_Story, Policy] = {}
        self._connections: dict[str, Connection] = {}
        self._stopped = threading.Event()
        self._pause_s = pace.look_s
        self._said: set[str] = set()
        self._saying: set[str] = set()
        """What is wrong since the last look."""
        self._thread = threading.Thread(target=self._run, name="chronolog-handing", daemon=True)
        self._thread.start()

    def note(self, place: Place) -> None:
        """Take note that something of a client has come."""
        self._since_s.setdefault(place, time.monotonic())
        self._news.add(place)

    def stop(self) -> None:
        """Leave what is being done as it is, and end."""
        self._stopped.set()
        self._hang_up()
        self._thread.join()

    # -- when --

    def _run(self) -> None:
        for story in self._stories:
            with suppress(NotFoundError, OSError):
                for client_id in _unfinished(self._stories.find(*story)):
                    self.note(Place(*story, client_id))
        while not self._stopped.wait(self._pause_s):
            try:
                self._look()
            except NotConnectedError as error:
                self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE * self._pace.look_s)
                self._say(f"everything stays here for now: {error}")
                self._hang_up()
            else:
                self._pause_s = self._pace.look_s
                self._said &= self._saying
            self._saying = set()
        self._hang_up()

    def _look(self) -> None:
        """Hand over what is due.

        Raises:
            NotConnectedError: the visor or the grapher is away.
        """
        places: dict[_Story, list[Place]] = {}
        for place in self._candidates():
            places.setdefault(place[:3], []).append(place)
        try:
            while places:
                story, own = next(iter(places.items()))
                try:
                    due = self._due(story, own)
                    for first in range(0, len(due), _AT_ONCE):
                        self._hand_over(story, due[first : first + _AT_ONCE])
                except (NotFoundError, FileNotFoundError):  # it is destroyed
                    self._policies.pop(story, None)
                    for place in own:
                        self._since_s.pop(place, None)
                except NotConnectedError:
                    raise
                except (ChronoLogError, OSError) as error:
                    self._news.update(own)
                    self._say(f"the story {story[1]!r:.200} stays here for now: {error}")
                del places[story]
        finally:
            for own in places.values():
                self._news.update(own)

    def _candidates(self) -> Iterator[Place]:
        """Yield the clients to look at: of whom something has come since the last time, or whose time has come."""
        news = {self._news.pop() for _ in range(len(self._news))}  # others only add to it
        for place, since_s in list(self._since_s.items()):
            age_s = time.monotonic() - since_s
            policy = self._policies.get(place[:3])
            if age_s < 0:
                self._news.add(place)
            elif place in news or (policy and age_s >= self._pace.tiers[policy.tier].seal_s):
                yield place

    def _due(self, story: _Story, places: list[Place]) -> list[Place]:
        """Return the clients of a story who have closed, or written enough, or for long enough."""
        policy = self._policies.get(story)
        if policy is None:
            policy = self._policies[story] = Policy.of(self._located(story).attributes)
        tier, directory = self._pace.tiers[policy.tier], self._stories.find(*story)
        tails, numbers = acquisition.tails(directory), acquisition.segments(directory)
        due = []
        for place in places:
            own = numbers.get(place.client_id, [0])
            path = acquisition.segment_path(directory, place.client_id, own[-1])
            if (
                place.client_id not in tails
                or len(own) > 1
                or time.monotonic() - self._since_s[place] >= tier.seal_s
                or path.stat().st_size >= tier.seal_bytes
            ):
                due.append(place)
        return due

    # -- how --

    def _hand_over(self, story: _Story, places: list[Place]) -> None:
        """Seal what has come of clients of whom nothing is sealed already, and ship all that is sealed."""
        self._grapher(story)  # or nothing is sealed
        directory = self._stories.find(*story)
        left = {place: self._since_s.pop(place) for place in places}  # what comes from now on is noted anew
        try:
            waiting = {segment.client_id for segment in sealed(directory)}
            for place in places:
                if place.client_id in waiting:
                    self.note(place)
                else:
                    with self._setting_aside(place):
                        self._seal(place)
            segments: dict[int, list[Sealed]] = {}
            for segment in sealed(directory):
                segments.setdefault(segment.client_id, []).append(segment)
            for place in places:
                with self._setting_aside(place):
                    for segment in segments.get(place.client_id, []):
                        self._ship(self._connections.get("grapher") or self._grapher(story), place, segment)
                del left[place]
        finally:
            self._since_s.update(left)
            self._news.update(left)

    def _ship(self, grapher: Connection, place: Place, segment: Sealed) -> None:
        """Bring a segment to the grapher, unless it has it, and delete it here."""
        chronicle, story, uid, client_id = place
        grapher.send(messages.Open(_STREAM, uid, chronicle, story, client_id, True, b""))
        opened = _answer(grapher, messages.Opened)
        if opened.sequence < segment.end_sequence:
            for block in segment.blocks():
                grapher.send(messages.Block(_STREAM), [block])
            grapher.send(messages.Seal(_STREAM))
            _answer(grapher, messages.Ack)
        segment.remove()

    @contextmanager
    def _setting_aside(self, place: Place) -> Iterator[None]:
        """Go on with others where a client's events cannot be handed over; they stay here."""
        try:
            yield
        except (NotConnectedError, NotFoundError, FileNotFoundError):
            raise
        except (ChronoLogError, OSError) as error:
            self._since_s[place] = time.monotonic() + _ASIDE_S
            self._say(
                f"the events of client {place.client_id:016x} of the story {place.story!r:.200} stay here for now: {error}"
            )
            self._hang_up()

    # -- whom --

    def _grapher(self, story: _Story) -> Connection:
        """Return the connection to the grapher.

        Raises:
            NotConnectedError: there is none, or it is away.
        """
        address = self._located(story).grapher
        if not address:
            raise NotConnectedError("there is no ChronoGrapher")
        where = Address.of(address)
        if not where.port:
            raise NotConnectedError(f"the ChronoGrapher of {where.host} is away")
        return self._connected("grapher", where)

    def _located(self, story: _Story) -> messages.Located:
        """Ask the visor about a story.

        Raises:
            NotFoundError: it is destroyed.
            NotConnectedError: the visor is away.
        """
        located = self._connected("visor", self._visor).ask(
            messages.Locate(story[0], story[1], SERVICE_NAME), messages.Located
        )
        if located.uid != story[2]:
            raise NotFoundError(f"the story {story[1]!r:.200} was destroyed, and made again")
        return located

    def _connected(self, service: str, address: Address) -> Connection:
        """Return the connection to a service, made again where it is lost."""
        connection = self._connections.get(service)
        if connection is None or connection.address != address or not connection.is_alive():
            if connection is not None:
                connection.close()
            connection = self._connections[service] = Connection(address, self._identity, service)
            if self._stopped.is_set():
                connection.close()
        return connection

    def _hang_up(self) -> None:
        """End the connections: there may be answers on them that nobody waits for any more."""
        for connection in list(self._connections.values()):
            connection.close()
        self._connections.clear()

    def _say(self, sentence: str) -> None:
        """Write to the log what was not so before."""
        self._saying.add(sentence)
        if sentence not in self._said:
            self._said.add(sentence)
            logger.warning("handing over: %s", sentence)


def _answer(connection: Connection, kind: type[M]) -> M:
    """Return the next answer; raise what it refuses."""
    answer, _ = connection.receive(time.monotonic() + _ANSWER_S)
    if isinstance(answer, messages.Refused | messages.Failure):
        raise error_of(answer)
    return expect(answer, kind)


def _unfinished(directory: Path) -> Iterator[int]:
    """Yield the clients of a story who have something that was not handed over."""
    for client_id, numbers in acquisition.segments(directory).items():
        path = acquisition.segment_path(directory, client_id, numbers[-1])
        opening = read_client_record(path, client_id)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            closing = read_close_record(descriptor, client_id)
        finally:
            os.close(descriptor)
        is_stub = opening and closing and opening["first_sequence"] == closing["next_sequence"]
        if len(numbers) > 1 or not is_stub:
            yield client_id
