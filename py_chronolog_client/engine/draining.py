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


def drain(timeout_s: float) -> list[tuple[Orphan, str]]:
    """Ship what is left in all spools of this machine, for at most `timeout_s`.

    Returns:
        Whose events are still there, and why: "" where there was just no time.

    Raises:
        NotAuthorizedError: there is no token file.
        ChronoLogError: a spool cannot be used.
    """
    deadline = time.monotonic() + timeout_s
    return [left for visor in deployments() for left in _drain(visor, deadline)]


def drain_before_end(
    visor: Address, identity: Identity, timeout_s: float, is_given_up: Callable[[], bool]
) -> list[tuple[Waiting, str]]:
    """Ship what this machine's spools hold for a deployment that is about to end.

    Clients that live are waited for, as they may be ending too.

    Args:
        visor: of the deployment.
        identity: who ships.
        timeout_s: how long to try.
        is_given_up: whether there is no time any more.

    Returns:
        Whose events may still be there, and why, as `drain` does.

    Raises:
        ChronoLogError: a spool cannot be used.
    """
    deadline = time.monotonic() + timeout_s
    left: list[tuple[Waiting, str]] = []
    for path in spools_of(visor):
        spool = EmbeddedEngine(path)
        shipper = Shipper(visor, identity, spool)

        def is_over(spool: EmbeddedEngine = spool, shipper: Shipper = shipper) -> bool:
            waiting = (client_id for *_, client_id in clients_waiting(spool))
            return is_given_up() or all(map(shipper.has_given_up, waiting))

        try:
            wait_until(is_over, deadline - time.monotonic(), _LOOK_EVERY_S)
        finally:
            shipper.stop()
            spool.close()
        waiting = backlog(path, lambda chronicle, story: {})
        left += [(client, _why(shipper, client.client_id)) for client in waiting]
    return left


def _drain(visor: Address, deadline: float) -> list[tuple[Orphan, str]]:
    spool = open_spool(visor)

    def left() -> list[Orphan]:
        return list(orphans(spool, set()))

    if not left():
        return []
    shipper = Shipper(visor, own_identity(), spool)

    def is_over() -> bool:
        return all(shipper.has_given_up(orphan.client_id) for orphan in left())

    try:
        wait_until(is_over, deadline - time.monotonic(), _LOOK_EVERY_S)
    finally:
        shipper.stop()
    return [(orphan, _why(shipper, orphan.client_id)) for orphan in left()]


def _why(shipper: Shipper, client_id: int) -> str:
    return str(shipper.problems.get(client_id, ""))
