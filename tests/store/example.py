"""The worked examples of docs/format.md: a segment and a chunk as the package writes them, all fixed, as hex dumps.

Run as a program it prints the examples, to be put into the document.
"""

import pathlib
import sys
import tempfile
from unittest import mock

from py_chronolog_client.engine.base import WriterOptions
from py_chronolog_client.engine.embedded import EmbeddedEngine
from py_chronolog_client.store import owner
from py_chronolog_client.store.compaction import compact
from py_chronolog_client.store.root import StoreRoot
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


def chunk() -> bytes:
    """Let the package write two clients' events, merge them, and return the chunk."""
    clock = ManualClock(FIRST_NS)
    with (
        tempfile.TemporaryDirectory() as store,
        mock.patch.object(owner, "describe_process", dict),
    ):
        engine = EmbeddedEngine(store, new_format=2)
        engine.create_chronicle("c", {})
        writers = [engine.open_writer("c", "s", {}, WriterOptions(number, clock)) for number in (1, 2)]
        for writer, record in zip([*writers, writers[0]], ("hello", "wörld", ""), strict=True):
            clock.now_ns += 1000
            writer.log_event(record)
        for writer in writers:
            writer.close()
        done = compact(StoreRoot.open(store, create=False), engine.story_directory("c", "s"))
        assert done is not None
        return done.path.read_bytes()


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
    return _lines(data, fields)


def dump_chunk() -> str:
    """Return the chunk as lines of offset, bytes and meaning."""
    data = chunk()
    clients_at = int.from_bytes(data[24:32], "little")
    index_at = clients_at + int.from_bytes(data[32:36], "little")
    header = [
        (0, 'magic "CLOGCHK1"'),
        (8, "header_crc"),
        (12, "reserved"),
        (16, "events 3"),
        (24, f"clients_offset {clients_at}"),
        (32, f"clients_bytes {index_at - clients_at}"),
        (36, f"clients_size {index_at - clients_at}: not packed"),
        (40, "clients_crc"),
        (44, "page_count 1"),
        (48, "index_crc"),
        (52, "reserved"),
        (64, "table: number 0 in the list of clients"),
        (68, "table: number 1"),
        (72, "table: 2 events"),
        (76, "table: 1 event"),
        (80, "table: first sequence number 0"),
        (88, "table: first sequence number 0"),
        (96, "times: lowest bytes of 0, 1000, 1000"),
        (99, "times: second bytes"),
        (102, "places 0, 1, 0"),
        (105, "sizes 5, 6, 0"),
        (108, 'payload: "hello" "wörld" ""'),
        (clients_at, "clients: a msgpack array"),
    ]
    names = ["first_time", "last_time", "events 3", "clients 2", f"columns_bytes {108 - 64}: not packed"]
    names += [
        "widths 2, 1, 1",
        "reserved",
        "columns_crc",
        "payload_bytes 11",
        "payload_size 11: not packed",
        "payload_crc",
    ]
    places = (0, 8, 16, 20, 24, 28, 31, 32, 36, 40, 44)
    return _lines(
        data, [*header, *((index_at + at, f"page: {name}") for at, name in zip(places, names, strict=True))]
    )


def _lines(data: bytes, fields: list[tuple[int, str]]) -> str:
    lines = []
    for (start, meaning), (stop, _) in zip(fields, [*fields[1:], (len(data), "")], strict=True):
        for at in range(start, stop, 16):
            piece = data[at : min(at + 16, stop)]
            text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in piece)
            said = meaning if at == start else ""
            if "msgpack" in meaning:
                said = f"{text:16}  {said}".rstrip()
            lines.append(f"{at:04x}  {piece.hex(' '):47}  {said}".rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(f"{dump()}\n\n{dump_chunk()}\n")
