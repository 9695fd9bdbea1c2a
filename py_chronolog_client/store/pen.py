"""The pen: the right to append blocks to a client's segments.

Like an epoch (tail.py) it can be revoked: every write carries the pen's own header buffer as an unsliced
view, so a pen whose view has been released cannot write, inside the one system call that would do it. A pen
that is in somebody's hands is never shared: who needs one meanwhile makes a new one, which first looks what
the old one has managed to write.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from py_chronolog_client.clock import ClockModel
from py_chronolog_client.store.blocks import complete_block
from py_chronolog_client.store.format import HEADER_BYTES, encode_record, events_header, padding
from py_chronolog_client.store.rights import is_own
from py_chronolog_client.store.segment import Segment


class Stored(NamedTuple):
    """How far the events of a client are in blocks."""

    sequence: int
    """Number of the first event that is in no block."""
    segment: Segment
    offset: int
    """Where the next block goes."""


class Pen:
    """The right to write blocks behind `stored`.

    Attributes:
        stored: how far the blocks go; None until it is known.
        busy: somebody has it in his hands.
        direct: somebody is writing a block whose events never were in the tail.
    """

    __slots__ = ("_header", "busy", "direct", "stored")

    def __init__(self, stored: Stored | None) -> None:
        self._header = memoryview(bytearray(HEADER_BYTES))
        self.stored = stored
        self.busy = stored is None
        self.direct = False

    def revoke(self) -> None:
        """Make every further write fail.

        Raises:
            BufferError: another thread is writing with it at this moment.
        """
        self._header.release()

    @property
    def revoked(self) -> bool:
        """Whether it has been revoked."""
        try:
            return not len(self._header)
        except ValueError as error:
            if not is_own(error):
                raise
            return True

    def write(
        self,
        client_id: int,
        times: memoryview,
        ends: memoryview,
        payload: memoryview,
        origin: int,
        clock: ClockModel,
        tokens: Sequence[memoryview] = (),
    ) -> None:
        """Append an events block.

        Args:
            client_id: whose events.
            times: "Q", times in ns.
            ends: "Q", where each record ends, counted as `origin` is.
            payload: the records.
            origin: what `ends` calls the start of the payload.
            clock: the model of the times.
            tokens: empty views; if one of them is released, nothing is written.

        Raises:
            OSError: the file system refused; `stored` is as before.
            ValueError: the pen or a token was revoked; nothing was written.
        """
        assert self.stored is not None
        sequence, segment, offset = self.stored
        segment.require_room()
        header = events_header(client_id, sequence, times, ends, payload, origin, clock)
        self._header[:] = header.pack()
        zeros = padding(HEADER_BYTES + header.columns_bytes + header.payload_bytes)
        pieces: list[bytes | memoryview] = [self._header, times, ends, payload, zeros, *tokens]
        self.stored = Stored(header.end_sequence, segment, offset + segment.write(pieces, offset))

    def write_record(self, client_id: int, fields: dict[str, object]) -> None:
        """Append a record block."""
        assert self.stored is not None
        sequence, segment, offset = self.stored
        block = encode_record(client_id, sequence, fields)
        self._header[:] = block[:HEADER_BYTES]
        size_bytes = segment.write([self._header, block[HEADER_BYTES:]], offset)
        self.stored = Stored(sequence, segment, offset + size_bytes)

    def look(self, stored: Stored, client_id: int) -> None:
        """Learn how far the blocks really go, from a place behind which at most what one call wrote can stand."""
        sequence, segment, offset = stored
        while header := complete_block(segment.descriptor, offset, client_id):
            if header.first_sequence != sequence:
                break
            offset += header.block_bytes
            sequence = header.end_sequence
        self.stored = Stored(sequence, segment, offset)
