"""TLS on the side of a service, without I/O: what comes from the socket goes in, what goes to the socket comes out.

A session has a channel where its service has a certificate. Nothing else changes for it: its caps, its deadlines and
its last words hold from the first byte, also for peers that never finish the handshake of TLS, or begin none. Those
are told in the clear that there is TLS here.
"""

from __future__ import annotations

import hashlib
import re
import ssl
from contextlib import suppress
from pathlib import Path
from typing import cast

from py_chronolog_client.engine.tls import client_context
from py_chronolog_client.errors import InvalidArgumentError, ProtocolError

_SCRATCH_BYTES = 2**18
_HANDSHAKE_RECORD = 0x16
"""The first byte of TLS. No frame that is allowed there begins with it."""
_CERTIFICATE = re.compile("-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n?", re.DOTALL)


class ServiceTls:
    """What a service shows to its clients, and knows of every connection.

    Attributes:
        certificate: of the service, in PEM.
        binding: what both ends know of a connection.
        context: how to speak.
        scratch: where bytes from any socket go for a moment: they are taken out before the next ones come.
    """

    def __init__(self, path: Path, name: Path | None = None) -> None:
        """Read the certificate and its key.

        Args:
            path: of a file with both, in PEM; certificates of those who have issued it may follow it.
            name: of the file in sentences, if that is another.

        Raises:
            InvalidArgumentError: they are not there, do not belong together, or no client would believe them.
        """
        name = name or path
        try:
            text = path.read_text("ascii", "replace")
        except OSError as error:
            raise InvalidArgumentError(f"{name}: the certificate cannot be read: {error.strerror}") from error
        found = _CERTIFICATE.search(text)
        if found is None:
            raise InvalidArgumentError(f"{name}: there is no certificate in PEM in it")
        self.certificate = found[0]
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_3
        self.context.num_tickets = 0  # nobody comes back with one
        self.scratch = memoryview(bytearray(_SCRATCH_BYTES))
        try:
            self.context.load_cert_chain(path, password=lambda: "")
            self._try_out()
        except ssl.SSLCertVerificationError as error:
            raise InvalidArgumentError(
                f"{name}: no client would trust the certificate ({error.verify_message}): give a new one with "
                "--tls-certificate and --tls-key, or remove run/tls.pem and let --tls make one"
            ) from error
        except ssl.SSLError as error:
            raise InvalidArgumentError(
                f"{name}: there is no key for the certificate, or one with a passphrase ({error.reason or error})"
            ) from error
        self.binding = hashlib.sha256(ssl.PEM_cert_to_DER_cert(found[0])).digest()

    def _try_out(self) -> None:
        """Let a client come in: whatever is wrong with a certificate, clients would find it."""
        there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = client_context(self.certificate).wrap_bio(back, there)
        service = self.context.wrap_bio(there, back, server_side=True)
        for side in (client, service, client):
            with suppress(ssl.SSLWantReadError):
                side.do_handshake()


class Channel:
    """TLS of one connection.

    Attributes:
        is_open: whether both sides can speak.
    """

    def __init__(self, tls: ServiceTls) -> None:
        self.is_open = False
        self._scratch = tls.scratch
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = tls.context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._begun = False

    def buffer(self) -> memoryview:
        """Return where the next bytes from the socket go, until `receive`."""
        return self._scratch

    def receive(self, count: int) -> bool:
        """Take `count` bytes from the buffer; return False if the peer does not begin with TLS."""
        if not self._begun and self._scratch[0] != _HANDSHAKE_RECORD:
            return False
        self._begun = True
        self._incoming.write(self._scratch[:count])
        return True

    def read_into(self, buffer: memoryview) -> int | None:
        """Put what the peer has said into a buffer; return how many bytes, 0 at its end, None if the rest is still to come.

        Raises:
            ProtocolError: it is no TLS.
        """
        try:
            if not self.is_open:
                self._object.do_handshake()
                self.is_open = True
            return cast("int", self._object.read(len(buffer), buffer))
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLError as error:
            raise ProtocolError(f"there is no TLS with this peer: {error.reason or error}") from error

    def seal(self, piece: memoryview) -> bytes:
        """Return the bytes that tell the peer this."""
        while len(piece):
            piece = piece[self._object.write(piece) :]
        return self._outgoing.read()

    def unsent(self) -> bytes:
        """Return what TLS itself has to tell the peer."""
        return self._outgoing.read()

    def goodbye(self) -> bytes:
        """Return the bytes that tell the peer that nothing more comes."""
        with suppress(ssl.SSLError):
            self._object.unwrap()
        return self._outgoing.read()
