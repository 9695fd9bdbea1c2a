"""The worked example of docs/format.md: a segment as the package writes it, with everything fixed, as a hex dump.

Run as a program it prints the example, to be put into the document.
"""

import pathlib
import sys
import tempfile
from unittest import mock

from py_chronolog_client.engine.base import WriterOptions
from py_chronolog_client.engine.embedded import EmbeddedEngine
from py_chronolog_client.store import owner
from py_chronolog_client.testing.manual_clock import ManualClock
from tests.store import independent

DOCUMENT = pathlib.Path(__file__).resolve().parents[2] / "docs" / "format.md"
CLIENT_ID = 0x1122334455667788
FIRST_NS = 1_700_000_000_000_000_000
PROCESS = {
    "host": "n7",
    "boot_id": "11111111-2222-4333-8444-555555555555",
    "pid_namespace": "pid:[4026531836]",
    "pid": 4711,
    "pid_start": 815,
    "uid": 1000,
    "user": "ada",
    "program": "sim",
}


def segment() -> bytes:
    """Let the package write two events and return the segment."""
    clock = ManualClock(FIRST_NS)
    with (
        tempfile.TemporaryDirectory() as store,
        mock.patch.object(owner, "describe_process", lambda: PROCESS),
    ):
        engine = EmbeddedEngine(store)
        engine.create_chronicle("c", {})
        writer = engine.open_writer("c", "s", {}, WriterOptions(CLIENT_ID, clock))
        for record in ("hello", "wörld"):
            clock.now_ns += 1000
            writer.log_event(record)
        writer.flush()
        (path,) = pathlib.Path(store).glob(f"chronicles/*/stories/*/{CLIENT_ID:016x}.log")
        data = path.read_bytes()
        writer.close()
    return data


def _fields(data: bytes, start: int) -> list[tuple[int, str]]:
    """Return (offset, meaning) of the fields of the block at `start`."""
    block, _ = independent.read_block(data, start)
    count, payload_bytes = len(block.times), int.from_bytes(data[start + 48 : start + 56], "little")
    header = [
        (0, 'magic "CLOGBLK1"'),
        (8, "header_crc"),
        (12, f"kind {block.kind}: {'events' if block.kind == 1 else 'record'}"),
        (16, f"client_id {block.client_id:#x}"),
        (24, f"first_sequence {block.first_sequence}"),
        (32, f"count {count}"),
        (36, "columns_crc"),
        (40, "payload_crc"),
        (44, "reserved"),
        (48, f"payload_bytes {payload_bytes}"),
        (56, f"origin {int.from_bytes(data[start + 56 : start + 64], 'little')}"),
        (64, f"first_time {block.times[0] if count else 0}"),
        (72, f"last_time {block.times[-1] if count else 0}"),
    ]
    names = ("model_id", "base_ns", "offset_ns", "rate", "window_ns", "window_rate")
    header += [
        (80 + 8 * place, f"clock: {name} {'unknown' if name == 'window_ns' else value}")
        for place, (name, value) in enumerate(zip(names, block.clock, strict=True))
    ]
    at = 128
    for column in ("times", "ends"):
        for place in range(count):
            header.append((at, f"{column}[{place}]"))
            at += 8
    what = "payload: " + (" ".join(f'"{record.decode()}"' for record in block.records) or "a msgpack map")
    header.append((at, what))
    if -(at + payload_bytes) % 64:
        header.append((at + payload_bytes, "padding"))
    return [(start + offset, meaning) for offset, meaning in header]


def dump() -> str:
    """Return the segment as lines of offset, bytes and meaning."""
    data = segment()
    fields: list[tuple[int, str]] = []
    offset = 0
    while offset < len(data):
        fields += _fields(data, offset)
        _, offset = independent.read_block(data, offset)
    lines = []
    for (start, meaning), (stop, _) in zip(fields, [*fields[1:], (len(data), "")], strict=True):
        for at in range(start, stop, 16):
            piece = data[at : min(at + 16, stop)]
            text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in piece)
            said = meaning if at == start else ""
            if meaning == "payload: a msgpack map":
                said = f"{text:16}  {said}".rstrip()
            lines.append(f"{at:04x}  {piece.hex(' '):47}  {said}".rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(dump() + "\n")
