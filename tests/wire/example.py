"""The worked example of docs/protocol.md: a handshake and a request with fixed nonces and secret, as a hex dump.

Run as a program it prints the example, to be put into the document.
"""

import pathlib
import secrets
import sys
from unittest import mock

from py_chronolog_client.wire import messages
from py_chronolog_client.wire.frames import frame_bytes
from py_chronolog_client.wire.handshake import ClientHandshake, ServiceHandshake
from tests.wire import independent

DOCUMENT = pathlib.Path(__file__).resolve().parents[2] / "docs" / "protocol.md"
NAME = "ada"
SECRET = bytes(range(32))
CLIENT_NONCE = b"\xc1" * 32
SERVICE_NONCE = b"\x5e" * 32
REQUEST = messages.StoryAttributes("run", "steps")
ANSWER = messages.Attributes({"unit": "K"})


def said() -> list[tuple[str, bytes]]:
    """Let the package say the example; return who says which bytes."""
    with mock.patch.object(secrets, "token_bytes", lambda size: CLIENT_NONCE[:size]):
        client = ClientHandshake(NAME, SECRET)
    with mock.patch.object(secrets, "token_bytes", lambda size: SERVICE_NONCE[:size]):
        service = ServiceHandshake("visor", {NAME: SECRET})
    hello = client.hello
    challenge = service.receive(hello)
    proof = client.answer(challenge)
    welcome = service.receive(proof)
    assert client.finish(welcome) == "visor"
    conversation = [
        ("client", hello),
        ("service", challenge),
        ("client", proof),
        ("service", welcome),
        ("client", REQUEST),
        ("service", ANSWER),
    ]
    return [(who, frame_bytes(messages.encode(message))) for who, message in conversation]


def _lines(data: bytes, meaning: str, offset: int) -> list[str]:
    lines = []
    for at in range(0, len(data), 16):
        piece = data[at : at + 16]
        lines.append(f"{offset + at:04x}  {piece.hex(' '):47}  {meaning if not at else ''}".rstrip())
    return lines


def dump() -> str:
    """Return the conversation as lines of offset, bytes and meaning, and what is macced."""
    lines = []
    for who, data in said():
        fields = independent.fields(data)
        lines.append(f"-- {who}: {fields[2][2]} --")
        for start, stop, meaning in fields:
            lines += _lines(data[start:stop], meaning, start)
    nonces = CLIENT_NONCE, SERVICE_NONCE
    for title, words in (("Proof", b"client"), ("Welcome", b"service visor")):
        parts = independent.macced_parts(words, NAME, *nonces, b"")
        lines.append(f"-- macced with the secret 00 01 02 ... 1f for {title} --")
        offset = 0
        for data, meaning in parts:
            lines += _lines(data, meaning, offset)
            offset += len(data)
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(dump() + "\n")
