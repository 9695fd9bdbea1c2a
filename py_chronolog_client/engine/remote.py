"""The remote engine: stories kept by a deployment of ChronoVisor, ChronoKeepers and ChronoPlayer.

A writer appends to a spool first, an embedded store on this machine, so `log_event` costs and promises what it does
there: it never waits for the network, and what it returned survives the death of the process. A thread, the shipper,
brings the spool to a keeper. What a keeper has journalled is acknowledged, and every reader sees it from then on.

Everything about the catalog is asked of the visor, everything about events of the player.
"""

from __future__ import annotations

import atexit
import logging
import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from py_chronolog_client.clock import Clock
from py_chronolog_client.engine.base import (
    MAX_TIME_NS,
    Capabilities,
    Engine,
    ScanReport,
    Snapshot,
    Writer,
    WriterOptions,
    WriterStatistics,
)
from py_chronolog_client.engine.connection import Address, Connection
from py_chronolog_client.engine.embedded import EmbeddedEngine
from py_chronolog_client.engine.orphans import spooled_name
from py_chronolog_client.engine.remote_catalog import RemoteCatalog, checked_attributes
from py_chronolog_client.engine.shipment import Shipment
from py_chronolog_client.engine.shipper import Shipper, wait_until
from py_chronolog_client.engine.spool import open_spool, spool_directory
from py_chronolog_client.errors import (
    ChronicleExistsError,
    ClosedError,
    NoPlayersError,
    NotConnectedError,
)
from py_chronolog_client.records import MISSING
from py_chronolog_client.wire.handshake import Identity

if TYPE_CHECKING:
    from pathlib import Path

    from py_chronolog_client.engine.remote_reader import RemoteReader
    from py_chronolog_client.page import Page
    from py_chronolog_client.store.appender import Appender

INTRODUCE_S = 2.0
"""Acquiring a story waits so long for the keeper, so that readers find the client; later it is found later."""
EXIT_S = 10.0
"""The end of a program waits so long for what is not shipped yet."""
FLUSH_S = 60.0
"""A flush without a time-out, and a release, wait so long for a keeper."""

logger = logging.getLogger("py_chronolog_client")


class RemoteEngine(Engine):
    """Stories of a deployment.

    Thread safety: everything. A forked child has connections of its own.

    Attributes:
        visor: address of the ChronoVisor's portal.
    """

    capabilities = Capabilities(survives_kill=False)  # in the spool it does, until the next client ships it

    def __init__(self, visor: Address, player: Address | None, identity: Identity) -> None:
        """Find the visor.

        Args:
            visor: address of the ChronoVisor's portal.
            player: address of the ChronoPlayer; None for a client that only writes.
            identity: who this is.

        Raises:
            NotConnectedError: nobody answers there.
            NotAuthorizedError: the visor knows nobody of that name with that secret.
            ProtocolVersionError: it speaks another version of the protocol.
        """
        self.visor = visor
        self._player = player
        self._identity = identity
        self._closed = False
        self._catalog = RemoteCatalog(lambda: Connection(visor, identity, "visor"))
        self._catalog.greet()
        self._open_reader: RemoteReader | None = None
        self._spool: EmbeddedEngine | None = None
        self._shipper: Shipper | None = None
        self._shipped: list[Shipment] = []
        _engines.add(self)

    # -- the catalog --

    def create_chronicle(self, chronicle: str, attributes: Mapping[str, str]) -> None:
        self._open_catalog.create_chronicle(chronicle, attributes)

    def destroy_chronicle(self, chronicle: str) -> None:
        self._open_catalog.destroy_chronicle(chronicle)

    def chronicles(self) -> list[str]:
        return self._open_catalog.chronicles()

    def chronicle_attributes(self, chronicle: str) -> dict[str, str]:
        return self._open_catalog.chronicle_attributes(chronicle)

    def destroy_story(self, chronicle: str, story: str) -> None:
        self._open_catalog.destroy_story(chronicle, story)

    def stories(self, chronicle: str) -> list[str]:
        return self._open_catalog.stories(chronicle)

    def story_attributes(self, chronicle: str, story: str) -> dict[str, str]:
        return self._open_catalog.story_attributes(chronicle, story)

    # -- writing --

    def open_writer(
        self, chronicle: str, story: str, attributes: Mapping[str, str], options: WriterOptions
    ) -> Writer:
        shipment = self.ship(chronicle, story, attributes, options.client_id, options)
        spool = self._open_spool()
        place = spooled_name(shipment.uid, story)
        try:
            with suppress(ChronicleExistsError):
                spool.create_chronicle(chronicle, {})
            writer = spool.open_writer(chronicle, place, {}, options)
        except BaseException:
            shipment.error = ClosedError("nothing was logged")
            raise
        self.begin(shipment, spool.story_directory(chronicle, place), writer)
        wait_until(lambda: shipment.introduced or shipment.error is not None, INTRODUCE_S)
        return RemoteWriter(self, writer, shipment, options)

    def ship(
        self,
        chronicle: str,
        story: str,
        attributes: Mapping[str, str],
        client_id: int,
        options: WriterOptions,
    ) -> Shipment:
        """Acquire a story for a client of this process; its events are shipped as soon as the shipment begins."""
        if self._closed:
            raise ClosedError("the engine was closed")
        shipment = Shipment(
            chronicle, story, checked_attributes(attributes), client_id, durable=options.durability == "node"
        )
        self.shipper().acquire(shipment)
        self._shipped.append(shipment)
        return shipment

    def begin(self, shipment: Shipment, directory: Path, writer: Appender) -> None:
        """Ship what a client of this process writes in `directory`, of the spool."""
        shipper, known = self.shipper(), weakref.ref(writer)

        def listen() -> None:
            if (writer := known()) is not None:
                writer.ring(lambda: shipper.hurry(shipment))

        shipment.begin(directory, listen)
        shipper.wake()

    def shipper(self) -> Shipper:
        """Return the shipper of this process."""
        if self._shipper is None:
            self._shipper = Shipper(self.visor, self._identity, self._open_spool())
        return self._shipper

    def _open_spool(self) -> EmbeddedEngine:
        if self._spool is None:
            self._spool = open_spool(self.visor)
        return self._spool

    # -- reading --

    def clients(self, chronicle: str, story: str) -> dict[int, dict[str, Any]]:
        return self._reader.clients(chronicle, story)

    def snapshot(self, chronicle: str, story: str) -> Snapshot:
        return self._reader.snapshot(chronicle, story)

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
        return self._reader.scan(
            chronicle,
            story,
            start_ns,
            end_ns,
            clients=clients,
            snapshot=snapshot,
            since=since,
            timeout_s=timeout_s,
            verify=verify,
            aligned=aligned,
            report=report,
        )

    def follow(
        self, chronicle: str, story: str, cursor: Snapshot, timeout_s: float
    ) -> tuple[list[Page], Snapshot]:
        return self._reader.follow(chronicle, story, cursor, timeout_s)

    # -- the end --

    def close(self) -> None:
        self._closed = True
        if self._shipper is not None:
            self._shipper.stop()
            self._shipper = None
        for shipment in self._shipped:
            if shipment.done and shipment.error is None and shipment.outbox is not None:
                shipment.outbox.remove()
        self._shipped = []
        self._catalog.close()
        if self._open_reader is not None:
            self._open_reader.close()
        if self._spool is not None:
            self._spool.close()

    def finish(self) -> None:
        """Ship what is left at the end of the program, when all writers are closed."""
        if self._shipper is not None:
            self._shipper.wake()
            left = [shipment for shipment in self._shipped if shipment.error is None]
            if not wait_until(lambda: all(shipment.done for shipment in left), EXIT_S):
                logger.warning("the program ends, and %s", _left_in(self.visor))
            self.close()

    def after_fork_in_child(self) -> None:
        """Leave the parent's connections to the parent."""
        if self._shipper is not None:
            self._shipper.forget()
        self._shipper = None
        self._shipped = []

    @property
    def _open_catalog(self) -> RemoteCatalog:
        if self._closed:
            raise ClosedError("the engine was closed")
        return self._catalog

    @property
    def _reader(self) -> RemoteReader:
        from py_chronolog_client.engine.remote_reader import RemoteReader

        if self._closed:
            raise ClosedError("the engine was closed")
        player = self._player
        if player is None:
            raise NoPlayersError("this client has no query service: make it with a ClientQueryServiceConf")
        if self._open_reader is None:
            self._open_reader = RemoteReader(lambda: _player_at(player, self._identity))
        return self._open_reader


class RemoteWriter(Writer):
    """Appends to the spool, and waits for the keeper where that is asked for.

    Durability: an event whose `log_event` returned survives the death of its process, in the spool. What `flush`
    acknowledges is journalled by a keeper.
    """

    def __init__(
        self, engine: RemoteEngine, writer: Appender, shipment: Shipment, options: WriterOptions
    ) -> None:
        self._engine = engine
        self._writer = writer
        self._shipment = shipment
        self._options = options
        self.log_event = writer.log_event  # type: ignore[method-assign]

    @property
    def client_id(self) -> int:
        return self._writer.client_id

    def log_event(self, event_string: str | bytes = MISSING, log_string: str | bytes | None = None) -> int:
        raise AssertionError("replaced by that of the spool's writer")  # pragma: no cover

    def log_events(self, batch: Sequence[str | bytes]) -> int:
        return self._writer.log_events(batch)

    def flush(self, timeout_s: float | None = None) -> int:
        wanted = self._writer.flush()
        shipment = self._own_shipment()
        self._engine.shipper().hurry(shipment)
        wait_until(
            lambda: shipment.acknowledged >= wanted or shipment.error is not None,
            FLUSH_S if timeout_s is None else timeout_s,
        )
        return min(shipment.acknowledged, wanted)

    def use_clock(self, clock: Clock) -> None:
        self._writer.use_clock(clock)

    def statistics(self) -> WriterStatistics:
        told = self._writer.statistics()
        acknowledged = self._shipment.acknowledged - self._first_sequence
        return WriterStatistics(told.logged, min(max(0, acknowledged), told.logged), told.lost)

    def close(self, reason: str = "released") -> None:
        shipment = self._own_shipment()
        self._writer.close(reason)
        if shipment.done:
            return
        self._engine.shipper().hurry(shipment)
        if not wait_until(lambda: shipment.done, FLUSH_S) or shipment.error is not None:
            logger.warning(
                "client %016x of story %r is closed, and %s (%d of this client)",
                self.client_id,
                shipment.story,
                _left_in(self._engine.visor),
                self.statistics().backlog,
            )

    @property
    def _first_sequence(self) -> int:
        return self._options.first_sequence if self.client_id == self._options.client_id else 0

    def _own_shipment(self) -> Shipment:
        """Return the shipment of this process's client: a forked child has one of its own."""
        shipment, client_id = self._shipment, self.client_id
        if shipment.client_id != client_id:
            assert shipment.outbox is not None
            directory = shipment.outbox.directory
            self._shipment = self._engine.ship(
                shipment.chronicle, shipment.story, shipment.attributes, client_id, self._options
            )
            self._engine.begin(self._shipment, directory, self._writer)
        return self._shipment


def _left_in(visor: Address) -> str:
    return (
        f"events are still in the spool {spool_directory(visor)}: the next client that writes to this deployment on this "
        "machine ships them, or 'chronolog drain'"
    )


def _player_at(address: Address, identity: Identity) -> Connection:
    try:
        return Connection(address, identity, "player")
    except NotConnectedError as error:
        raise NoPlayersError(f"no ChronoPlayer: {error}") from error


_engines: weakref.WeakSet[RemoteEngine] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for engine in list(_engines):
        engine.after_fork_in_child()


def _at_exit() -> None:
    for engine in list(_engines):
        engine.finish()


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_at_exit)  # runs behind the appenders', which is registered later
