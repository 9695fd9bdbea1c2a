"""Where a service may listen: addresses of this machine, which of them are safe, and which ports are free."""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct

from chronolog_hpc.clientlib import InvalidArgumentError
from py_chronolog_client.engine.connection import Address

LOOPBACK = "127.0.0.1"

_SIOCGIFADDR = 0x8915


def resolve(host: str) -> str:
    """Return the numeric address that a name, an address or a network interface of this machine stands for.

    Raises:
        InvalidArgumentError: there is no such thing here, or it stands for all addresses.
    """
    if host in (name for _, name in socket.if_nameindex()):
        return _address_of_interface(host)
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "this is no name"
        raise InvalidArgumentError(
            f"{host!r} is no address, name or network interface here ({reason})"
        ) from error
    address = str(min(found, key=lambda entry: entry[0] != socket.AF_INET)[4][0])
    if ipaddress.ip_address(address).is_unspecified:
        raise InvalidArgumentError(
            f"{host} stands for all addresses of this machine, and clients must be told one: name it, or a network "
            "interface"
        )
    return address


def is_loopback(address: str) -> bool:
    """Tell whether only this machine can reach an address."""
    return ipaddress.ip_address(address).is_loopback


def require_safe(address: str, *, is_secured: bool) -> None:
    """Make sure that an address is only reached from this machine, or that there is TLS or nobody wants it.

    Raises:
        InvalidArgumentError: it is reached from elsewhere.
    """
    if is_secured or is_loopback(address):
        return
    raise InvalidArgumentError(
        f"{address} is no loopback address, and there is no TLS: whoever sees the network can read all events and "
        "names, and can take over a connection after its handshake (secrets of tokens are never sent); add --tls, or "
        "--insecure-network if that network is yours alone"
    )


def require_free(address: Address, option: str) -> None:
    """Make sure that nobody listens at an address of this machine.

    Args:
        address: with port 0 for any that is free.
        option: of the command, that chooses the port.

    Raises:
        InvalidArgumentError: it is taken, or this machine has no such address.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError as error:
            raise InvalidArgumentError(
                f"{address}: cannot listen there ({error.strerror}): choose another port with {option}, 0 for any that is "
                "free, or another address with --host"
            ) from error


def _address_of_interface(name: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            answer = fcntl.ioctl(any_socket, _SIOCGIFADDR, struct.pack("256s", name.encode()))
        except OSError as error:
            raise InvalidArgumentError(
                f"the network interface {name} has no IPv4 address on {socket.gethostname()} ({error.strerror})"
            ) from error
    return socket.inet_ntoa(answer[20:24])
