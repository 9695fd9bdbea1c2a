"""Where a client finds its engine: the two service configurations, and what overrides them.

The configuration, not the code, chooses the engine:

1. `CHRONOLOG_STORE=DIR` in the environment: the embedded engine in DIR, whatever the program says;
2. the protocol "file": the embedded engine in the directory that the `ip` field names;
3. anything else is a deployment on the network, at the addresses of the program, unless `CHRONOLOG_PORTAL=HOST:PORT` and
   `CHRONOLOG_QUERY=HOST:PORT` say where the services of this job are.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from py_chronolog_client.engine.base import Engine
from py_chronolog_client.errors import InvalidArgumentError, NotConnectedError

if TYPE_CHECKING:
    from py_chronolog_client.engine.connection import Address

STORE_VARIABLE = "CHRONOLOG_STORE"
"""Environment variable that names the directory of a store."""

PORTAL_VARIABLE = "CHRONOLOG_PORTAL"
"""Environment variable with the address of the ChronoVisor, "HOST:PORT"."""

QUERY_VARIABLE = "CHRONOLOG_QUERY"
"""Environment variable with the address of the ChronoPlayer, "HOST:PORT"."""

FILE_PROTOCOL = "file"
"""Protocol that means: the `ip` field is the directory of a store."""

_MAX_PORT = 65535


@dataclass(frozen=True)
class _ServiceConf:
    proto: str
    ip: str
    port: int
    provider_id: int

    def __post_init__(self) -> None:
        for name in ("proto", "ip"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise TypeError(f"{name} is a text, not {type(value).__name__}")
            if not value:
                raise InvalidArgumentError(f"{name} is empty")
        for name in ("port", "provider_id"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name} is a whole number, not {type(value).__name__}")
            if not 0 <= value <= _MAX_PORT:
                raise InvalidArgumentError(f"{name} {value} is not between 0 and {_MAX_PORT}")


@dataclass(frozen=True)
class ClientPortalServiceConf(_ServiceConf):
    """How to reach the ChronoVisor portal service.

    Attributes:
        proto: transport protocol; "file" selects a store directory.
        ip: address of the service; with "file" the directory.
        port: 0 to 65535.
        provider_id: 0 to 65535.
    """

    proto: str = "ofi+sockets"
    ip: str = "127.0.0.1"
    port: int = 5555
    provider_id: int = 55


@dataclass(frozen=True)
class ClientQueryServiceConf(_ServiceConf):
    """How to reach the ChronoPlayer query service; only a client that replays needs one.

    Attributes:
        proto: transport protocol; with "file" the portal's directory is read.
        ip: address of the service.
        port: 0 to 65535.
        provider_id: 0 to 65535.
    """

    proto: str = "ofi+sockets"
    ip: str = "127.0.0.1"
    port: int = 5557
    provider_id: int = 57


def open_engine(portal: ClientPortalServiceConf, query: ClientQueryServiceConf | None = None) -> Engine:
    """Open the engine that environment and configuration choose.

    Args:
        portal: where stories are written.
        query: where they are replayed, in a deployment; None for a client that only writes.

    Raises:
        NotConnectedError: it is not there.
        ChronoLogError: it is there and cannot be used.
    """
    directory = os.environ.get(STORE_VARIABLE) or (portal.ip if portal.proto == FILE_PROTOCOL else None)
    if directory is not None:
        from py_chronolog_client.engine.embedded import EmbeddedEngine

        return EmbeddedEngine(directory)
    from py_chronolog_client.engine.connection import require_listener
    from py_chronolog_client.engine.remote import RemoteEngine
    from py_chronolog_client.tokens import own_identity

    visor = service_address(portal)
    player = None if query is None else service_address(query)
    try:
        require_listener(visor)
        return RemoteEngine(visor, player, own_identity())
    except NotConnectedError as error:
        raise NotConnectedError(
            f"no ChronoLog service at {portal.proto}://{visor}: {error}; to keep stories in a directory "
            f'instead, set {STORE_VARIABLE}=DIR, or use ClientPortalServiceConf("{FILE_PROTOCOL}", DIR, 0, 0)'
        ) from error


def service_address(conf: ClientPortalServiceConf | ClientQueryServiceConf) -> Address:
    """Return where a service is: where the environment says, or else the program.

    Raises:
        InvalidArgumentError: the environment says no address.
    """
    from py_chronolog_client.engine.connection import Address

    variable = PORTAL_VARIABLE if isinstance(conf, ClientPortalServiceConf) else QUERY_VARIABLE
    text = os.environ.get(variable)
    if not text:
        return Address(conf.ip, conf.port)
    try:
        return Address.of(text)
    except ValueError:
        raise InvalidArgumentError(f"{variable}={text!r:.100} is no address: give HOST:PORT") from None
