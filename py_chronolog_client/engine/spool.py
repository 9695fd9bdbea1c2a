"""The spool: where the events of this machine's clients wait until a keeper has them.

A directory on a file system of this machine with a store in it for each deployment, which the visor's address names.
"""

from __future__ import annotations

import os
from pathlib import Path

from py_chronolog_client.engine.connection import Address
from py_chronolog_client.engine.embedded import EmbeddedEngine
from py_chronolog_client.errors import InvalidArgumentError

SPOOL_VARIABLE = "CHRONOLOG_SPOOL"
"""Environment variable that names the directory."""
DEFAULT_SPOOL = "~/.chronolog/spool"
LIMIT_VARIABLE = "CHRONOLOG_SPOOL_LIMIT"
"""Environment variable: how many bytes of a client's events wait in the spool before new ones are refused."""
DEFAULT_LIMIT_BYTES = 4 * 2**30


def spool_directory(visor: Address) -> Path:
    """Return the directory of the spool for a deployment."""
    return spool_base() / f"{visor.host}_{visor.port}"


def open_spool(visor: Address) -> EmbeddedEngine:
    """Open the spool for a deployment; it is made if it is missing.

    Raises:
        InvalidArgumentError: CHRONOLOG_SPOOL_LIMIT is no number of bytes.
        ChronoLogError: the directory cannot be used.
    """
    directory = spool_directory(visor)
    directory.parent.mkdir(mode=0o700, parents=not os.environ.get(SPOOL_VARIABLE), exist_ok=True)
    return EmbeddedEngine(directory, segment_limit_bytes=_limit_bytes())


def deployments() -> list[Address]:
    """Return the visors of all deployments that have a spool on this machine."""
    found = []
    for path in sorted(spool_base().glob("*_*")):
        host, _, port = path.name.rpartition("_")
        if port.isdecimal():
            found.append(Address(host, int(port)))
    return found


def spool_base() -> Path:
    """Return the directory that holds the spools of all deployments; it may be missing."""
    return Path(os.environ.get(SPOOL_VARIABLE) or DEFAULT_SPOOL).expanduser()


def _limit_bytes() -> int:
    value = os.environ.get(LIMIT_VARIABLE) or str(DEFAULT_LIMIT_BYTES)
    if not value.isdecimal() or not int(value):
        raise InvalidArgumentError(f"{LIMIT_VARIABLE}={value}: give a number of bytes, or unset the variable")
    return int(value)
