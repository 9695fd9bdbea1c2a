"""Tickets: what a visor has allowed to a writer, in a form that a keeper believes without asking.

A keeper takes events in also when the visor is away, and knows no attributes. So whoever acquires a story gets a ticket
for it, which he shows to the keeper: an HMAC, with the secret of the deployment's services, over who may ship which
client's events to which story. It is worth nothing to anybody else, because a keeper knows who asks. Attributes never
change, and a story that is made again has another uid, so a ticket needs no end.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import NamedTuple

from py_chronolog_client.errors import NotAuthorizedError
from py_chronolog_client.wire.handshake import SERVICE_NAME, Identity

_WORDS = b"chronolog ticket "


class Passage(NamedTuple):
    """What a ticket is for."""

    name: str
    """Who ships."""
    chronicle: str
    story: str
    uid: int
    """The story's."""
    client_id: int
    """Whose events."""


def ticket_for(passage: Passage, services: Identity) -> bytes:
    """Return the ticket; `services` is the identity of the deployment's services."""
    said = (part if isinstance(part, str) else f"{part:x}" for part in passage)
    parts = b"".join(len(part).to_bytes(4, "little") + part for part in map(str.encode, said))
    return hmac.new(services.secret, _WORDS + parts, hashlib.sha256).digest()


def require_ticket(ticket: bytes, passage: Passage, services: Identity) -> None:
    """Make sure that a visor has given this ticket; services need none.

    Raises:
        NotAuthorizedError: it has not.
    """
    if passage.name != SERVICE_NAME and not hmac.compare_digest(ticket, ticket_for(passage, services)):
        raise NotAuthorizedError(
            f"{passage.name!r:.200} shows no ticket of this deployment's visor for client {passage.client_id:016x} of the "
            f"story {passage.story!r:.200}: acquire the story again"
        )
