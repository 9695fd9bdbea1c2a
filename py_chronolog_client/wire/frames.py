"""Frames: a stream of bytes cut into messages, with a limit on every size.

A frame is two numbers, a *head* and a *body* (docs/protocol.md, "Frames"). The head says what the message is,
in msgpack; the body is bulk that travels as it is: a block as on disk, or a page of columns.

The decoder asks for bytes instead of being given them: whoever reads from a socket reads straight into
`FrameDecoder.buffer`, so a block is copied once, by the kernel. A size is checked before memory is taken for it, and
memory is taken as bytes arrive: who only announces a large body gets little of it.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from py_chronolog_client.errors import InvalidArgumentError, ProtocolError
from py_chronolog_client.store.format import HEADER_BYTES, MAX_BLOCK_EVENTS, MAX_PAYLOAD_BYTES, padded

PREFIX = struct.Struct("<II")

MAX_GREETING_BYTES = 512
"""Largest head before both sides know each other; there is no body then."""
MAX_HEAD_BYTES = 2 * 2**20
"""Largest head afterwards."""
MAX_BODY_BYTES = padded(HEADER_BYTES + 16 * MAX_BLOCK_EVENTS + MAX_PAYLOAD_BYTES)
"""Largest body afterwards: a block."""

_TLS = 0x0316
"""How TLS begins, read as a number."""
_FIRST_BYTES = 8 * 2**20
"""Memory that is taken for a part of a frame before any of it has come: a page, or all but the largest blocks, at once."""


class Frame(NamedTuple):
    """A message before anybody has looked into it."""

    head: bytes
    body: bytearray | bytes


class Limits(NamedTuple):
    """How large the parts of a frame may be, in bytes."""

    head_bytes: int
    body_bytes: int


GREETING = Limits(MAX_GREETING_BYTES, 0)
"""Before both sides know each other."""
FULL = Limits(MAX_HEAD_BYTES, MAX_BODY_BYTES)
"""Afterwards."""


def frame_bytes(head: bytes, body_bytes: int = 0) -> bytes:
    """Return what stands before a body of `body_bytes`.

    Raises:
        InvalidArgumentError: no peer would accept it.
    """
    if problem := _problem(len(head), body_bytes, FULL):
        raise InvalidArgumentError(f"{problem}: shorten names or attributes, or ask for less at once")
    return PREFIX.pack(len(head), body_bytes) + head


class FrameDecoder:
    """Cuts bytes into frames.

    Write the next bytes into `buffer()`, say how many with `advance`, and take the frame that it may return:

        count = socket.recv_into(decoder.buffer())
        frame = decoder.advance(count)

    Attributes:
        limits: how large the next frame may be; may be changed between two frames.
    """

    def __init__(self, limits: Limits = GREETING) -> None:
        self.limits = limits
        self._problem: str | None = None
        self._begin()

    def _begin(self) -> None:
        self._parts: list[bytearray] = []
        self._body_bytes = 0
        self._want(PREFIX.size)

    def _want(self, size_bytes: int) -> None:
        self._part = bytearray(min(size_bytes, _FIRST_BYTES))
        self._part_bytes = size_bytes
        self._view = memoryview(self._part)

    def _want_more(self) -> None:
        """Make room for as much again as has come."""
        filled = len(self._part)
        self._part += bytes(min(self._part_bytes - filled, filled))
        self._view = memoryview(self._part)[filled:]

    @property
    def in_frame(self) -> bool:
        """Whether a frame has begun and is not complete: a stream that ends here was cut."""
        return bool(self._parts) or len(self._view) < PREFIX.size

    def buffer(self) -> memoryview:
        """Return where the next bytes go; never empty, and good until `advance`.

        Raises:
            ProtocolError: `advance` has raised it before.
        """
        self._require_sense()
        return self._view

    def advance(self, count: int) -> Frame | None:
        """Take note that `count` bytes were written into `buffer()`; return the frame that they complete.

        Raises:
            ProtocolError: the frame is larger than the limits allow, or has no head. No other can come behind it.
        """
        self._require_sense()
        filled, self._view = self._view, self._view[count:]
        filled.release()
        if len(self._view):
            return None
        self._view.release()
        if len(self._part) < self._part_bytes:
            self._want_more()
            return None
        self._parts.append(self._part)
        if len(self._parts) == 1:
            head_bytes, self._body_bytes = PREFIX.unpack(self._part)
            self._problem = _problem(head_bytes, self._body_bytes, self.limits)
            self._require_sense()
            self._want(head_bytes)
            return None
        if len(self._parts) == 2 and self._body_bytes:
            self._want(self._body_bytes)
            return None
        head, body = self._parts[1], self._parts[2] if self._body_bytes else b""
        self._begin()
        return Frame(bytes(head), body)

    def _require_sense(self) -> None:
        if self._problem is not None:
            raise ProtocolError(
                f"{self._problem}: the peer does not speak this protocol, or says this too early"
            )


def _problem(head_bytes: int, body_bytes: int, limits: Limits) -> str | None:
    if not 0 < head_bytes <= limits.head_bytes:
        if head_bytes & 0xFFFF == _TLS:
            return "a greeting of TLS, which is not spoken here"
        return f"a message head of {head_bytes} bytes is not between 1 and {limits.head_bytes}"
    if body_bytes > limits.body_bytes:
        return f"a message body of {body_bytes} bytes is over the limit of {limits.body_bytes}"
    return None
