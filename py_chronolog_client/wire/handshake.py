"""The handshake: both sides prove that they know the secret behind a name, and no secret travels.

    client                                service
    Hello(protocol, name, nonce)   ──▶
                                   ◀──    Challenge(nonce)
    Proof(mac)                     ──▶
                                   ◀──    Welcome(mac, service)      or Failure(-9)

Both macs are HMAC-SHA256 with the secret of `name` over everything that was said, and over what the connection
itself is (`binding`: with TLS the service's certificate). The words in front keep one side's from being the
other's: who reflects a challenge proves nothing. The nonces are new for each connection, so what was overheard
is worth nothing on the next. An unknown name is answered like a wrong secret, at the same step.

A greeting can be tried once: after any error the machine is over, and the next guess needs a new connection with
new nonces.

Each side is a small machine that is given messages and returns messages; it reads no clock and no socket.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Mapping
from typing import NamedTuple

from py_chronolog_client.errors import NotAuthorizedError, ProtocolError, ProtocolVersionError
from py_chronolog_client.wire.failures import error_of
from py_chronolog_client.wire.messages import (
    MAC_BYTES,
    NONCE_BYTES,
    PROTOCOL,
    Challenge,
    Failure,
    Hello,
    Message,
    Proof,
    Welcome,
    expect,
)

MAX_NAME_BYTES = 128
"""Longest name in UTF-8."""
SERVICE_NAME = "service"
"""The name under which the services of a deployment know each other."""


class Identity(NamedTuple):
    """Who speaks, the secret that proves it, and to whom."""

    name: str
    secret: bytes
    trusted: str = ""
    """Certificates in PEM, one of which every service must have; "": there is no TLS."""


_REFUSAL = "unknown name or wrong secret: look into the token files of both sides"
_REFUSAL_WITH_TLS = f"{_REFUSAL}; or the connection goes through somebody with another certificate"


class ClientHandshake:
    """The client's side: send `hello`, then what `answer` returns, then give `finish` the last message."""

    def __init__(self, name: str, secret: bytes, binding: bytes = b"") -> None:
        """Begin to speak as `name`.

        Args:
            name: whose secret is known.
            secret: the secret.
            binding: what the connection is; both sides see the same.
        """
        self.hello = Hello(PROTOCOL, name, secrets.token_bytes(NONCE_BYTES))
        self._secret = secret
        self._binding = binding
        self._challenge = Challenge(b"")

    def answer(self, message: Message) -> Proof:
        """Return the proof that a challenge asks for.

        Raises:
            ChronoLogError: the service refuses; ProtocolVersionError if it speaks another version.
            ProtocolError: this is no challenge.
        """
        _raise_failure(message)
        self._challenge = expect(message, Challenge)
        if len(self._challenge.nonce) != NONCE_BYTES:
            raise ProtocolError(f"a challenge without a nonce of {NONCE_BYTES} bytes")
        return Proof(_mac(b"client", self._secret, self.hello, self._challenge, self._binding))

    def finish(self, message: Message) -> str:
        """Return which service this is, which has proven that it knows the secret too.

        Raises:
            NotAuthorizedError: the service refuses, or knows no secret.
        """
        _raise_failure(message)
        welcome = expect(message, Welcome)
        service = welcome.service.encode()
        mac = _mac(b"service " + service, self._secret, self.hello, self._challenge, self._binding)
        if not hmac.compare_digest(mac, welcome.mac):
            raise NotAuthorizedError(
                f"what answers does not know the secret of {self.hello.name!r}: "
                "it is not the deployment of this token file"
            )
        return welcome.service


class ServiceHandshake:
    """The service's side: give it each message, send what it returns; when `name` is set, it is over.

    Attributes:
        name: who the client is, once that is proven.
    """

    def __init__(self, service: str, tokens: Mapping[str, bytes], binding: bytes = b"") -> None:
        """Wait for a client.

        Args:
            service: what this is: "visor", "keeper", ...
            tokens: name -> secret; is asked when the client has said its name.
            binding: what the connection is; both sides see the same.
        """
        self.name: str | None = None
        self._service = service
        self._tokens = tokens
        self._binding = binding
        self._hello = Hello(PROTOCOL, "", b"")
        self._challenge = Challenge(secrets.token_bytes(NONCE_BYTES))
        self._step: Callable[[Message], Message] = self._hear_hello

    def receive(self, message: Message) -> Message:
        """Return the answer to a message.

        Raises:
            ProtocolVersionError: the client speaks another version.
            NotAuthorizedError: the client knows no secret of that name.
            ProtocolError: it says something else, or the handshake is over.
        """
        step, self._step = self._step, _hear_nothing
        return step(message)

    def _hear_hello(self, message: Message) -> Challenge:
        self._hello = expect(message, Hello)
        if self._hello.protocol != PROTOCOL:
            raise ProtocolVersionError(
                f"this service speaks version {PROTOCOL} of the protocol, and the client version {self._hello.protocol}: "
                "install the same release of chronolog-hpc on both sides"
            )
        if len(self._hello.nonce) != NONCE_BYTES:
            raise ProtocolError(f"a greeting without a nonce of {NONCE_BYTES} bytes")
        if len(self._hello.name.encode()) > MAX_NAME_BYTES:
            raise ProtocolError(f"a greeting with a name of more than {MAX_NAME_BYTES} bytes")
        self._step = self._hear_proof
        return self._challenge

    def _hear_proof(self, message: Message) -> Welcome:
        proof = expect(message, Proof)
        nobodys = secrets.token_bytes(MAC_BYTES)
        secret = self._tokens.get(self._hello.name, nobodys)
        expected = _mac(b"client", secret, self._hello, self._challenge, self._binding)
        if not hmac.compare_digest(expected, proof.mac):
            raise NotAuthorizedError(_REFUSAL_WITH_TLS if self._binding else _REFUSAL)
        self.name = self._hello.name
        words = b"service " + self._service.encode()
        return Welcome(_mac(words, secret, self._hello, self._challenge, self._binding), self._service)


def _hear_nothing(message: Message) -> Message:
    raise ProtocolError(f"a message {type(message).__name__} to a handshake that is over")


def _raise_failure(message: Message) -> None:
    if isinstance(message, Failure):
        raise error_of(message)


def _mac(words: bytes, secret: bytes, hello: Hello, challenge: Challenge, binding: bytes) -> bytes:
    parts = (words, str(hello.protocol).encode(), hello.name.encode(), hello.nonce, challenge.nonce, binding)
    said = b"".join(len(part).to_bytes(4, "little") + part for part in parts)
    return hmac.new(secret, b"chronolog handshake " + said, hashlib.sha256).digest()
