"""The shipper: a thread that brings what the spool holds to the keepers, whatever happens to them.

It owns all that needs a conversation: the portal of the visor, where stories are acquired and released for as long as
the connection lives, and a link to each keeper. The application's threads only hand it shipments and look at what has
become of them. Where the visor or a keeper is away it tries again and again; nobody waits for that but who has asked
for a flush, and for no longer than he said.

It also ships what clients of dead processes have left in the spool (`orphans`).
"""

from __future__ import annotations

import logging
import math
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from py_chronolog_client.engine.connection import Address, readable
from py_chronolog_client.engine.embedded import EmbeddedEngine
from py_chronolog_client.engine.orphans import Orphan, claim, is_dead, orphans
from py_chronolog_client.engine.portal import RETRY_S, Portal
from py_chronolog_client.engine.shipment import Link, Shipment
from py_chronolog_client.errors import ChronoLogError, NoKeepersError, NotConnectedError
from py_chronolog_client.wire import messages
from py_chronolog_client.wire.handshake import Identity

_PAUSE_S = 0.1
"""So often the thread looks around when nothing happens: whether it is time to try something again."""
_CHECK_S = 0.5
"""So often clients that say when they have written are looked at all the same."""
_ADOPT_EVERY_S = 5.0
_POLL_S, _LONGEST_POLL_S = 0.0005, 0.05
_ACQUIRE_S = 10.0
_RELEASE_S = 2.0

logger = logging.getLogger("py_chronolog_client")


class Shipper:
    """Ships what is handed to it, in a thread of its own.

    Thread safety: everything, also from a signal handler: nothing waits for a lock.

    Attributes:
        problems: client id of a dead process, or a child -> why nothing was shipped when that was tried last.
    """

    def __init__(self, visor: Address, identity: Identity, spool: EmbeddedEngine) -> None:
        """Start the thread; nothing is connected before there is something to ship.

        Args:
            visor: address of the ChronoVisor's portal.
            identity: who this is.
            spool: where the events are.
        """
        self._address = visor
        self._identity = identity
        self._spool = spool
        self._check_at_s = 0.0
        self.problems: dict[int, ChronoLogError] = {}
        self._shipments: list[Shipment] = []
        self._links: dict[Address, Link] = {}
        self._adopt_at_s = 0.0
        self._stopping = False
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._portal = Portal(visor, identity, self.wake)
        self._thread = threading.Thread(target=self._run, name="chronolog-shipper", daemon=True)
        self._thread.start()

    # -- for the application's threads --

    def acquire(self, shipment: Shipment, timeout_s: float = _ACQUIRE_S) -> None:
        """Let the visor give the story to the shipment's client.

        Raises:
            ChronoLogError: it does not.
        """
        self._shipments.append(shipment)
        self.wake()
        if not wait_until(lambda: shipment.address is not None or shipment.error is not None, timeout_s):
            shipment.error = NotConnectedError(f"the visor at {self._address} does not answer in time")
        if shipment.error is not None:
            raise shipment.error

    def hurry(self, shipment: Shipment) -> None:
        """Ship at once what there is of one client."""
        shipment.look_at_s = 0.0
        self.wake()

    def has_given_up(self, client_id: int) -> bool:
        """Tell whether nothing more of such a client is shipped; `problems` has the reason."""
        known = any(shipment.client_id == client_id for shipment in self._shipments)
        return client_id in self.problems and not known

    def wake(self) -> None:
        """Look at once whether there is something to do."""
        with suppress(OSError):  # it is awake if its ear is full
            self._wake_in.send(b"\0")

    def stop(self) -> None:
        """End the thread and all connections. What is not shipped stays in the spool."""
        self._stopping = True
        self.wake()
        self._thread.join()
        self._wake_in.close()
        self._wake_out.close()

    def forget(self) -> None:
        """Close what a forked child has inherited."""
        for link in self._links.values():
            link.close()
        self._portal.forget()
        self._wake_in.close()
        self._wake_out.close()

    # -- the thread --

    def _run(self) -> None:
        while not self._stopping:
            look_at_s = math.inf
            try:
                look_at_s = self._turn()
            except Exception:  # a defect here must not be the end of all shipping
                logger.exception("the shipper goes on after an error")
            self._sleep(min(max(0.0, look_at_s - time.monotonic()), _PAUSE_S))
        for link in self._links.values():
            link.close()
        self._portal.stop()

    def _sleep(self, pause_s: float) -> None:
        ears = [self._wake_out.fileno()]
        ears += [number for link in self._links.values() if (number := link.fileno()) is not None]
        if readable(ears, pause_s):
            with suppress(BlockingIOError):
                self._wake_out.recv(4096)

    def _turn(self) -> float:
        """Do what can be done without waiting for anybody; return when to look again, by time.monotonic()."""
        self._check()
        for shipment in list(self._shipments):
            if shipment.said is None or shipment.said is not self._portal.connection:
                self._place(shipment)
        look_at_s = math.inf
        for link in list(self._links.values()):
            look_at_s = min(look_at_s, link.turn())
            if link.failed:  # it may be elsewhere by now
                for shipment in link.shipments.values():
                    shipment.said = None
        for shipment in list(self._shipments):
            if shipment.is_over or shipment.error is not None:
                self._finish(shipment)
        if time.monotonic() >= self._adopt_at_s:
            self._adopt()
        return look_at_s

    def _place(self, shipment: Shipment) -> None:
        """Let the visor give the story to a shipment, and put it on the link to its keeper when that is answered."""
        question = shipment.acquiring
        if question is None:
            if time.monotonic() >= shipment.retry_at_s:
                shipment.retry_at_s = time.monotonic() + RETRY_S
                shipment.acquiring = self._portal.ask(
                    messages.Acquire(
                        shipment.chronicle,
                        shipment.story,
                        shipment.attributes,
                        shipment.client_id,
                        socket.gethostname(),
                        shipment.uid,
                    )
                )
            return
        if not question.is_done:
            return
        shipment.acquiring = None
        if question.error is not None:
            # A visor that cannot be reached, or lets nobody in, may do so later, and a keeper may come.
            final = question.connection is not None and not isinstance(question.error, NoKeepersError)
            self._refuse(shipment, question.error, final=final)
        acquired = question.acquired
        if acquired is None:
            return
        self.problems.pop(shipment.client_id, None)
        shipment.said, shipment.uid, shipment.ticket = question.connection, acquired.uid, acquired.ticket
        address = Address(acquired.keeper_host, acquired.keeper_port)
        if shipment.address != address:
            self._take_off(shipment)
            self._links.setdefault(address, Link(address, self._identity)).add(shipment)
            shipment.address = address

    def _refuse(self, shipment: Shipment, error: ChronoLogError, *, final: bool) -> None:
        """Note that a story was not acquired: for good if nobody has written yet, or nothing will change it."""
        if shipment.adopted:
            self.problems[shipment.client_id] = error
        if shipment.outbox is None or final:
            shipment.error = error

    def _finish(self, shipment: Shipment) -> None:
        """Release the story of a shipment that is over; where the visor stays away, it does so itself after a while."""
        now_s = time.monotonic()
        if not shipment.over_at_s:
            shipment.over_at_s, shipment.retry_at_s = now_s, 0.0
        if shipment.acquiring is not None:
            shipment.acquiring.is_off = True
            if not shipment.acquiring.is_done:
                return
            self._place(shipment)
        waits = now_s < shipment.over_at_s + _RELEASE_S
        if shipment.uid and not self._is_released(shipment, now_s) and waits:
            return
        if shipment.adopted and shipment.error is not None:
            self.problems[shipment.client_id] = shipment.error
        self._shipments.remove(shipment)
        self._take_off(shipment)
        if shipment.adopted and shipment.error is None and shipment.outbox is not None:
            shipment.outbox.remove()
        shipment.done = True

    def _is_released(self, shipment: Shipment, now_s: float) -> bool:
        """Give a story up; tell whether the visor has answered that."""
        question = shipment.releasing
        if question is None:
            if now_s >= shipment.retry_at_s:
                release = messages.Release(shipment.chronicle, shipment.story, shipment.client_id)
                shipment.releasing = self._portal.ask(release)
            return False
        if not question.is_done:
            return False
        if question.connection is None:
            shipment.releasing, shipment.retry_at_s = None, now_s + RETRY_S
            return False
        if question.error is not None:
            logger.debug("client %016x had lost its story before: %s", shipment.client_id, question.error)
        return True

    def _take_off(self, shipment: Shipment) -> None:
        for address, link in list(self._links.items()):
            link.remove(shipment)
            if not link.shipments:
                link.close()
                del self._links[address]

    def _check(self) -> None:
        """Look at all clients, whatever they have said."""
        if time.monotonic() >= self._check_at_s:
            self._check_at_s = time.monotonic() + _CHECK_S
            for shipment in self._shipments:
                shipment.look_at_s = 0.0

    # -- the dead --

    def _adopt(self) -> None:
        """Ship what dead processes have left in the stories that are shipped, and what children write."""
        self._adopt_at_s = time.monotonic() + _ADOPT_EVERY_S
        for shipment in self._shipments:
            if shipment.adopted and not shipment.is_orphan and shipment.outbox is not None:
                shipment.is_orphan = is_dead(shipment.outbox.directory, shipment.client_id)
                shipment.is_idle = False  # what it wrote before it died may not have been seen
        for orphan in orphans(self._spool, {shipment.client_id for shipment in self._shipments}):
            if claim(orphan):
                self._shipments.append(_adopted(orphan))


def _adopted(orphan: Orphan) -> Shipment:
    shipment = Shipment(orphan.chronicle, orphan.story, {}, orphan.client_id, durable=True, adopted=True)
    shipment.uid, shipment.is_orphan = orphan.uid, orphan.is_dead
    shipment.begin(orphan.directory)
    return shipment


def wait_until(holds: Callable[[], bool], timeout_s: float, every_s: float = _POLL_S) -> bool:
    """Wait for something that another thread does, without a lock; return whether it is done.

    The longer it takes, the less often that is asked: many threads that wait must not keep it from being done.
    """
    start_s = time.monotonic()
    while not holds():
        waited_s = time.monotonic() - start_s
        if waited_s >= timeout_s:
            return False
        time.sleep(min(max(every_s, waited_s / 8), timeout_s - waited_s, _LONGEST_POLL_S))
    return True
