"""One client's events on their way from the spool to a keeper, and the link on which they travel.

A shipment is filled by the application, which writes to the spool, and emptied by the shipper's thread. Between them
there are only attributes that one side sets and the other reads: a signal handler that logs or flushes may have
interrupted anybody, and must wait for no lock.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

from py_chronolog_client.engine.connection import Address, Connection
from py_chronolog_client.engine.portal import RETRY_S, Question
from py_chronolog_client.errors import ChronoLogError, DamageError, ErrorCode, NotConnectedError
from py_chronolog_client.store.outbox import Outbox
from py_chronolog_client.wire import messages
from py_chronolog_client.wire.failures import error_of
from py_chronolog_client.wire.handshake import Identity
from py_chronolog_client.wire.messages import Message

WINDOW_BYTES = 16 * 2**20
"""So much may be under way on a link without an answer."""
WINDOW_BLOCKS = 32
"""So many blocks of one client may be: what it logs while a keeper is busy shares the next one."""
GATHER_S = 0.004
"""Events that come one after another are gathered for so long."""
_AWAKE_S = 0.02
"""A client that has written nothing for so long is asked to say when it does."""
_UNTOLD_S = 0.01
"""So often another process's client is looked at, which cannot say that."""
_CONNECT_S = 2.0
_REFUSALS = 5
_PERHAPS = (ErrorCode.CL_ERR_INVALID_ARG, ErrorCode.CL_ERR_NOT_AUTHORIZED)
"""So often a block is sent again that was refused so."""

logger = logging.getLogger("py_chronolog_client")


class Shipment:
    """What is shipped of one client of one story.

    Attributes:
        chronicle: where the story is.
        story: its name.
        attributes: with which the story is made if it is not there.
        client_id: whose events.
        durable: whether an acknowledged event must survive a power cut of the keeper.
        adopted: whether the client is another process's, which is dead or a child of this one.
        is_orphan: whether that process is known to be dead, so that nothing will come any more.
        is_idle: whether there was nothing to send, and no answer to wait for.
        keeps_all: whether the file system of the spool cannot give space back.
        uid: of the story, once the visor has said it.
        address: of the keeper, likewise.
        ticket: to be shown to the keeper, likewise.
        outbox: what is to be sent, once there are files.
        listen: lets `look_at_s` be set to 0.0 after the client's next event; None where another process writes.
        look_at_s: before that the outbox is left alone, by time.monotonic(); inf: until the client says something.
        active_at_s: when there was something in it last.
        introduced: whether the keeper knows the client: from then on readers find it in the story.
        acknowledged: all events below this number are journalled by the keeper.
        error: why nothing can be shipped any more.
        done: whether everything is there, the client's goodbye too, and the story is given up.
        said: the connection to the visor over which the story was acquired last.
        acquiring: what the visor was asked to give, and has not answered.
        releasing: what it was asked to take back, likewise.
        retry_at_s: before that the visor is not asked again, by time.monotonic().
        over_at_s: when it was first found to be over; 0.0 before.
        refusals: how often the keeper has refused a block since the last that it took.
        in_flight: sizes of the blocks that were sent and not acknowledged.
    """

    def __init__(
        self,
        chronicle: str,
        story: str,
        attributes: Mapping[str, str],
        client_id: int,
        *,
        durable: bool,
        adopted: bool = False,
    ) -> None:
        self.chronicle = chronicle
        self.story = story
        self.attributes = dict(attributes)
        self.client_id = client_id
        self.durable = durable
        self.adopted = adopted
        self.introduced = self.is_orphan = self.is_idle = self.keeps_all = False
        self.uid = 0
        self.address: Address | None = None
        self.ticket = b""
        self.outbox: Outbox | None = None
        self.listen: Callable[[], None] | None = None
        self.look_at_s = self.active_at_s = 0.0
        self.acknowledged = self.refusals = 0
        self.error: ChronoLogError | None = None
        self.done = False
        self.said: Connection | None = None
        self.acquiring: Question | None = None
        self.releasing: Question | None = None
        self.retry_at_s = self.over_at_s = 0.0
        self.in_flight: deque[int] = deque()

    def begin(self, directory: Path, listen: Callable[[], None] | None = None) -> None:
        """Ship what the client writes in `directory`, a story's of the spool."""
        self.listen = listen
        self.outbox = Outbox(directory, self.client_id)

    @property
    def is_over(self) -> bool:
        """Whether everything is acknowledged, and nothing will come any more."""
        if self.outbox is None:
            return False
        return (self.outbox.ended and not self.in_flight) or (self.is_orphan and self.is_idle)


class Link:
    """The way to one keeper: a connection that is made again whenever it is lost, with a stream for each shipment.

    Attributes:
        address: of the keeper.
        shipments: stream number -> what is shipped on it.
        failed: whether the keeper could not be reached; cleared by whoever asks the visor where it is now.
    """

    def __init__(self, address: Address, identity: Identity) -> None:
        self.address = address
        self.shipments: dict[int, Shipment] = {}
        self.failed = False
        self._identity = identity
        self._connection: Connection | None = None
        self._opened: dict[int, messages.Opened] = {}
        self._ready: set[int] = set()
        self._again_at_s: dict[int, float] = {}
        self._retry_at_s = 0.0
        self._in_flight_bytes = 0
        self._next_stream = 0

    def add(self, shipment: Shipment) -> None:
        """Ship it from now on over this link."""
        self._next_stream += 1
        self.shipments[self._next_stream] = shipment
        if self._connection is not None:
            self._guarded(lambda connection: self._open(connection, self._next_stream))

    def remove(self, shipment: Shipment) -> None:
        """Ship it no more."""
        for stream in [stream for stream, other in self.shipments.items() if other is shipment]:
            self._take_back(stream, shipment)
            self._again_at_s.pop(stream, None)
            del self.shipments[stream]

    def fileno(self) -> int | None:
        """Return the descriptor on which answers come, or None where there is no connection."""
        return None if self._connection is None else self._connection.fileno()

    def turn(self) -> float:
        """Send what there is and hear what was answered.

        Returns:
            When to look again, by time.monotonic(), unless an answer comes before.
        """
        if self._connection is not None or self._connect():
            self._guarded(self._exchange)
        return min((self.shipments[stream].look_at_s for stream in self._ready), default=math.inf)

    def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _connect(self) -> bool:
        if time.monotonic() < self._retry_at_s:
            return False
        try:
            connection = Connection(self.address, self._identity, "keeper", _CONNECT_S)
        except ChronoLogError as error:
            self._lost(error)
            return False
        self._connection, self._in_flight_bytes = connection, 0
        for known in (self._opened, self._ready, self._again_at_s):
            known.clear()
        return self._guarded(self._open_all)

    def _guarded(self, action: Callable[[Connection], None]) -> bool:
        """Do something with the connection; return whether it is still there."""
        connection = self._connection
        assert connection is not None
        try:
            action(connection)
        except NotConnectedError as error:
            self._lost(error)
        return self._connection is not None

    def _lost(self, error: ChronoLogError) -> None:
        if not self.failed:
            logger.warning("events stay in the spool for now: %s", error)
        self.close()
        self._ready.clear()
        self.failed = True
        self._retry_at_s = time.monotonic() + RETRY_S

    def _open_all(self, connection: Connection) -> None:
        for stream in self.shipments:
            self._open(connection, stream)

    def _open(self, connection: Connection, stream: int) -> None:
        shipment = self.shipments[stream]
        shipment.in_flight.clear()
        connection.send(
            messages.Open(
                stream,
                shipment.uid,
                shipment.chronicle,
                shipment.story,
                shipment.client_id,
                shipment.durable,
                shipment.ticket,
            )
        )

    def _exchange(self, connection: Connection) -> None:
        self._listen(connection)
        self._begin_streams()
        now_s = time.monotonic()
        for stream in list(self._ready):
            shipment = self.shipments[stream]
            if shipment.look_at_s > now_s:
                continue
            shipment.look_at_s = now_s + GATHER_S
            if self._send_all(connection, stream, shipment) or not shipment.is_idle:
                shipment.active_at_s = now_s
            elif now_s > shipment.active_at_s + _AWAKE_S:
                self._rest(connection, stream, shipment, now_s)

    def _rest(self, connection: Connection, stream: int, shipment: Shipment, now_s: float) -> None:
        """Leave a client alone until it says that it has written something."""
        if shipment.listen is None:
            shipment.look_at_s = now_s + _UNTOLD_S
            return
        shipment.look_at_s = math.inf
        shipment.listen()
        if self._send_all(connection, stream, shipment):  # it came before the client was told to say so
            shipment.look_at_s = now_s + GATHER_S

    def _send_all(self, connection: Connection, stream: int, shipment: Shipment) -> bool:
        """Send all that there is, as far as there is room on the way; return whether there was something."""
        sent = False
        while self._has_room(shipment) and self._send_next(connection, stream, shipment):
            sent = True
        return sent

    def _has_room(self, shipment: Shipment) -> bool:
        """Tell whether another block may be sent; of what was refused only one, until the keeper takes it."""
        blocks = 1 if shipment.refusals else WINDOW_BLOCKS
        return self._in_flight_bytes < WINDOW_BYTES and len(shipment.in_flight) < blocks

    def _send_next(self, connection: Connection, stream: int, shipment: Shipment) -> bool:
        outbox = shipment.outbox
        if outbox is None:
            return False
        try:
            pieces = outbox.take()
        except DamageError as error:
            self._give_up(stream, shipment, error)
            return False
        shipment.is_idle = pieces is None and not shipment.in_flight and not outbox.holds_back
        if pieces is None:
            return False
        size_bytes = sum(memoryview(piece).nbytes for piece in pieces)
        shipment.in_flight.append(size_bytes)
        self._in_flight_bytes += size_bytes
        connection.send(messages.Block(stream), pieces)
        return True

    def _listen(self, connection: Connection) -> None:
        """Hear all that was answered, without waiting."""
        while connection.has_news():
            message, _ = connection.receive()
            self._hear(message)

    def _hear(self, message: Message) -> None:
        stream = getattr(message, "stream", 0)
        shipment = self.shipments.get(stream)
        if shipment is None:
            return  # of a shipment that was taken away meanwhile
        if isinstance(message, messages.Opened):
            self._opened[stream] = message
            shipment.acknowledged = max(shipment.acknowledged, message.sequence)
            shipment.introduced = shipment.introduced or not message.empty
            self.failed = False
        elif isinstance(message, messages.Ack):
            self._in_flight_bytes -= shipment.in_flight.popleft() if shipment.in_flight else 0
            shipment.acknowledged = max(shipment.acknowledged, message.sequence)
            shipment.introduced = True
            shipment.refusals = 0
            self._reclaim(shipment)
        elif isinstance(message, messages.Refused):
            self._refused(stream, shipment, error_of(message))

    def _reclaim(self, shipment: Shipment) -> None:
        assert shipment.outbox is not None
        try:
            shipment.outbox.reclaim(shipment.acknowledged)
        except OSError as error:
            if not shipment.keeps_all:
                logger.warning("the spool keeps what was shipped until its stories are released: %s", error)
            shipment.keeps_all = True

    def _begin_streams(self) -> None:
        """Send on the streams that are open from now on; open those again that were refused a while ago."""
        for stream, opened in list(self._opened.items()):
            outbox = self.shipments[stream].outbox
            if outbox is not None:
                outbox.rewind(opened.sequence, has_client=not opened.empty)
                del self._opened[stream]
                self._ready.add(stream)
                self.shipments[stream].look_at_s = 0.0
        for stream, at_s in list(self._again_at_s.items()):
            if time.monotonic() >= at_s:
                shipment = self.shipments[stream]
                self.remove(shipment)
                self.add(shipment)

    def _refused(self, stream: int, shipment: Shipment, error: ChronoLogError) -> None:
        """Begin again after a while: a disk may have room by then, and somebody else may have shipped a part.

        What is not helped by that is given up.
        """
        self._take_back(stream, shipment)
        shipment.refusals += 1
        mendable = error.code == ErrorCode.CL_ERR_UNKNOWN
        if error.code == ErrorCode.CL_ERR_NOT_AUTHORIZED:
            shipment.said = None  # the services have another secret now: the visor gives a new ticket
        if mendable or (error.code in _PERHAPS and shipment.refusals <= _REFUSALS):
            if shipment.refusals == 1:
                logger.warning("events stay in the spool for now: %s", error)
            self._again_at_s[stream] = time.monotonic() + RETRY_S
        else:
            self._give_up(stream, shipment, error)

    def _take_back(self, stream: int, shipment: Shipment) -> None:
        """Send nothing more on a stream, and expect no answers."""
        self._opened.pop(stream, None)
        self._ready.discard(stream)
        self._in_flight_bytes -= sum(shipment.in_flight)
        shipment.in_flight.clear()

    def _give_up(self, stream: int, shipment: Shipment, error: ChronoLogError) -> None:
        self._take_back(stream, shipment)
        shipment.error = error
        logger.error(
            "client %016x of story %r cannot be shipped any further: %s",
            shipment.client_id,
            shipment.story,
            error,
        )
