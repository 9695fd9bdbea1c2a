"""Draining: ship what dead clients have left on this machine, without being a client."""

from __future__ import annotations

import time
from collections.abc import Callable

from py_chronolog_client.engine.backlog import Waiting, backlog, clients_waiting, spools_of
from py_chronolog_client.engine.connection import Address
from py_chronolog_client.engine.embedded import EmbeddedEngine
from py_chronolog_client.engine.orphans import Orphan, orphans
from py_chronolog_client.engine.shipper import Shipper, wait_until
from py_chronolog_client.engine.spool import deployments, open_spool
from py_chronolog_client.tokens import own_identity
from py_chronolog_client.wire.handshake import Identity

_LOOK_EVERY_S = 0.05


def drain(timeout_s: float) -> list[Orphan]:
    """Ship what is left in all spools of this machine; return whose events are still there after `timeout_s`.

    Raises:
        NotAuthorizedError: there is no token file.
        ChronoLogError: a spool cannot be used.
    """
    deadline = time.monotonic() + timeout_s
    return [orphan for visor in deployments() for orphan in _drain(visor, deadline)]


def drain_before_end(
    visor: Address, identity: Identity, timeout_s: float, is_given_up: Callable[[], bool]
) -> list[Waiting]:
    """Ship what this machine's spools hold for a deployment that is about to end; return whose events may still be there.

    Clients that live are waited for, as they may be ending too.

    Args:
        visor: of the deployment.
        identity: who ships.
        timeout_s: how long to try.
        is_given_up: whether there is no time any more.

    Raises:
        ChronoLogError: a spool cannot be used.
    """
    deadline = time.monotonic() + timeout_s
    left: list[Waiting] = []
    for path in spools_of(visor):
        spool = EmbeddedEngine(path)
        shipper = Shipper(visor, identity, spool)

        def is_empty(spool: EmbeddedEngine = spool) -> bool:
            return is_given_up() or not any(clients_waiting(spool))

        try:
            wait_until(is_empty, deadline - time.monotonic(), _LOOK_EVERY_S)
        finally:
            shipper.stop()
            spool.close()
        left += backlog(path, lambda chronicle, story: {})
    return left


def _drain(visor: Address, deadline: float) -> list[Orphan]:
    spool = open_spool(visor)

    def left() -> list[Orphan]:
        return list(orphans(spool, set()))

    if left():
        shipper = Shipper(visor, own_identity(), spool)
        try:
            wait_until(lambda: not left(), deadline - time.monotonic(), _LOOK_EVERY_S)
        finally:
            shipper.stop()
    return left()
