"""Draining: ship what dead clients have left on this machine, without being a client."""

from __future__ import annotations

import time

from py_chronolog_client.engine.connection import Address
from py_chronolog_client.engine.orphans import Orphan, orphans
from py_chronolog_client.engine.shipper import Shipper, wait_until
from py_chronolog_client.engine.spool import deployments, open_spool
from py_chronolog_client.tokens import own_identity

_LOOK_EVERY_S = 0.05


def drain(timeout_s: float) -> list[Orphan]:
    """Ship what is left in all spools of this machine; return whose events are still there after `timeout_s`.

    Raises:
        NotAuthorizedError: there is no token file.
        ChronoLogError: a spool cannot be used.
    """
    deadline = time.monotonic() + timeout_s
    return [orphan for visor in deployments() for orphan in _drain(visor, deadline)]


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
