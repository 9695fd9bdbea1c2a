"""TLS on the client's side: which services are believed, and a socket that a Connection uses like a plain one.

A service is believed if its certificate is one of the trusted ones, or was issued by one of them. Names in certificates
mean nothing: services are reached by address, at any port, through tunnels. Who a service is is proven by the
handshake behind TLS, which is bound to the certificate that this side has seen.
"""

from __future__ import annotations

import functools
import hashlib
import socket
import ssl
from collections.abc import Sequence
from typing import Any

from py_chronolog_client.errors import NotAuthorizedError, ProtocolError
from py_chronolog_client.trust import CERTIFICATE_VARIABLE

_PIECE_BYTES = 2**18
"""So much has to be sent within one time-out."""


class TlsSocket(ssl.SSLSocket):
    """A TLS connection with the calls of a plain socket that it lacks."""

    def sendmsg(self, buffers: Sequence[memoryview], *_: Any) -> int:  # type: ignore[override]  # refused there
        """Send some of the bytes, at least of the first buffer; return how many."""
        return self.send(buffers[0][:_PIECE_BYTES])

    def recv_into(self, buffer: Any, *_: Any) -> int:
        """Receive as a plain socket does, also where it must not wait and there is nothing."""
        try:
            return super().recv_into(buffer)
        except ssl.SSLWantReadError as error:
            raise BlockingIOError(str(error)) from error


def secured(connected: socket.socket, trusted: str, peer: object) -> TlsSocket:
    """Return a connection that is secured, within the time-out of the one that it takes the place of.

    Args:
        connected: to a service that speaks TLS.
        trusted: certificates in PEM.
        peer: for sentences.

    Raises:
        NotAuthorizedError: the certificate of the service is not trusted.
        ProtocolError: it does not speak TLS.
        OSError: it is gone, or does not answer in time.
    """
    try:
        made = client_context(trusted).wrap_socket(connected)
    except ssl.SSLCertVerificationError as error:
        raise NotAuthorizedError(
            f"the certificate of what answers at {peer} is not to be trusted ({error.verify_message}): the deployment has a "
            f"new one, which is to be copied to the file that {CERTIFICATE_VARIABLE} names, or this is somebody else"
        ) from error
    except ssl.SSLEOFError as error:
        raise ConnectionResetError("ended during the TLS handshake") from error
    except ssl.SSLError as error:
        raise ProtocolError(
            f"what answers at {peer} does not speak TLS ({error.reason}): if the deployment runs without it, unset "
            f"{CERTIFICATE_VARIABLE}"
        ) from error
    assert isinstance(made, TlsSocket)
    return made


def binding_of(connection: TlsSocket) -> bytes:
    """Return what both ends know of a connection: the SHA-256 of the service's certificate."""
    return hashlib.sha256(connection.getpeercert(binary_form=True) or b"").digest()


@functools.lru_cache(maxsize=8)
def client_context(trusted: str) -> ssl.SSLContext:
    """Return how to speak to services with one of these certificates."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_flags |= (
        ssl.VERIFY_X509_PARTIAL_CHAIN
    )  # a certificate that somebody else has issued may be trusted alone
    context.load_verify_locations(cadata=trusted)
    context.sslsocket_class = TlsSocket
    return context
