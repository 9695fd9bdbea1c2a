"""A second implementation of docs/protocol.md, written from the document: nothing of the package is used here."""

import hashlib
import hmac
import json
import struct

import msgpack
import numpy as np


def frame(message: dict, body: bytes = b"") -> bytes:
    head = msgpack.packb(message)
    return struct.pack("<II", len(head), len(body)) + head + body


def macced_parts(
    words: bytes, name: str, client_nonce: bytes, service_nonce: bytes, binding: bytes
) -> list[tuple[bytes, str]]:
    """Return the pieces of what is macced, with their meaning."""
    parts = [
        (words, "who speaks"),
        (b"1", "protocol"),
        (name.encode(), "name"),
        (client_nonce, "nonce of Hello"),
        (service_nonce, "nonce of Challenge"),
        (binding, "binding"),
    ]
    pieces = [(b"chronolog handshake ", "the words in front")]
    for part, meaning in parts:
        pieces.append((struct.pack("<I", len(part)), f"size of: {meaning}"))
        if part:
            pieces.append((part, meaning))
    return pieces


def mac(secret: bytes, words: bytes, name: str, *said: bytes) -> bytes:
    data = b"".join(piece for piece, _ in macced_parts(words, name, *said))
    return hmac.new(secret, data, hashlib.sha256).digest()


def fields(data: bytes) -> list[tuple[int, int, str]]:
    """Return (start, stop, meaning) of the parts of a frame without a body."""
    head_bytes, body_bytes = struct.unpack_from("<II", data)
    assert len(data) == 8 + head_bytes, "one frame"
    found = [
        (0, 8, f"a head of {head_bytes} bytes, a body of {body_bytes}"),
        (8, 9, f"a map of {data[8] & 15}"),
    ]
    reader = msgpack.Unpacker()
    reader.feed(data[8:])
    for _ in range(reader.read_map_header()):
        start = reader.tell()
        key = reader.unpack()
        value = reader.unpack()
        said = f"{len(value)} bytes" if isinstance(value, bytes) else json.dumps(value)
        meaning = value if key == "type" else f"{key}: {said}"
        found.append((8 + start, 8 + reader.tell(), meaning))
    return found


def page_body(
    rows: list[tuple[int, int, int, bytes]], windows: list[int], aligned: list[int] | None = None
) -> bytes:
    """Return the body that carries rows of (time, client id, sequence, record)."""
    ends = np.cumsum([len(row[3]) for row in rows], dtype="<u8")
    columns = [[row[place] for row in rows] for place in range(3)]
    columns += [ends.tolist(), windows, *([] if aligned is None else [aligned])]
    data = b"".join(np.array(column, "<u8").tobytes() for column in columns)
    return data + b"".join(row[3] for row in rows)
