"""A second implementation of the store format, from docs/format.md alone: nothing of `py_chronolog_client` is imported.

It is slow and plain on purpose. What it writes, the package must replay; what the package writes, it must
understand, byte by byte: it checks every field that the document fixes, and complains about the rest.
"""

import dataclasses
import hashlib
import itertools
import os
import pathlib
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgpack

Row = tuple[int, int, int, bytes]
"""Time, client id, sequence number, record. Rows sort in story order."""

CLOCK = struct.Struct("<QqqdQd")
SYSTEM_CLOCK = CLOCK.pack(0, 0, 0, 0.0, 2**64 - 1, 0.0)
BLOCK = struct.Struct("<8sIIQQIIIIQQQQ48s")
TAIL = struct.Struct("<8sIIQQQQQQ16s")
CHUNK = struct.Struct("<8sIIQQIIIII12s")
PAGE = struct.Struct("<QQIII3BBIIII")
EVENTS, RECORD = 1, 2
OPENED_NS = 5
MARKER = "ChronoLog store\nformat 1\nbyte-order little\nmode 0600\n"


class FormatError(Exception):
    """The bytes are not what the document says."""


def require(condition: object, sentence: str) -> None:
    if not condition:
        raise FormatError(sentence)


# -- writing --


def block(
    kind: int,
    client_id: int,
    first_sequence: int,
    times: Sequence[int],
    ends: Sequence[int],
    payload: bytes,
    *,
    origin: int = 0,
    clock: bytes = SYSTEM_CLOCK,
) -> bytes:
    """Return a block, whatever is in it."""
    count = len(times)
    columns = struct.pack(f"<{2 * count}Q", *times, *ends)
    first_time, last_time = (times[0], times[-1]) if count else (0, 0)
    fields: list[Any] = [kind, client_id, first_sequence, count, zlib.crc32(columns), zlib.crc32(payload), 0]
    fields += [len(payload), origin, first_time, last_time, clock]
    header = BLOCK.pack(b"CLOGBLK1", 0, *fields)
    header = header[:8] + struct.pack("<I", zlib.crc32(header[12:])) + header[12:]
    whole = header + columns + payload
    return whole + bytes(-len(whole) % 64)


def events_block(
    client_id: int, first_sequence: int, events: Sequence[tuple[int, bytes]], *, origin: int = 0, **more: Any
) -> bytes:
    """Return an events block of (time, record)."""
    ends, end = [], origin
    for _, record in events:
        end += len(record)
        ends.append(end)
    payload = b"".join(record for _, record in events)
    times = [time for time, _ in events]
    return block(EVENTS, client_id, first_sequence, times, ends, payload, origin=origin, **more)


def record_block(client_id: int, next_sequence: int, fields: Mapping[str, Any]) -> bytes:
    """Return a record block."""
    return block(RECORD, client_id, next_sequence, [], [], msgpack.packb(dict(fields)))


def client_record(client_id: int, first_sequence: int = 0, **more: Any) -> bytes:
    """Return the first block of a segment."""
    fields = {
        "type": "client",
        "client_id": client_id,
        "first_sequence": first_sequence,
        "host": "node-17",
        "boot_id": "11111111-2222-4333-8444-555555555555",
        "pid_namespace": "pid:[4026531836]",
        "pid": 4711,
        "pid_start": 815,
        "uid": 1000,
        "user": "ada",
        "program": "simulation",
        "opened_ns": OPENED_NS,
    }
    return record_block(client_id, first_sequence, {**fields, **more})


def close_record(client_id: int, next_sequence: int, **more: Any) -> bytes:
    """Return the last block of a segment that was closed."""
    fields = {
        "type": "close",
        "reason": "released",
        "closed_ns": 6,
        "next_sequence": next_sequence,
        "lost": {},
    }
    return record_block(client_id, next_sequence, {**fields, **more})


def roll_record(client_id: int, next_sequence: int) -> bytes:
    """Return the last block of a sealed segment whose client goes on in the next one."""
    return record_block(client_id, next_sequence, {"type": "roll", "next_sequence": next_sequence})


def tail(
    client_id: int,
    base: int,
    events: Sequence[tuple[int, bytes]],
    boot_id: bytes,
    *,
    capacity: int = 8,
    tail_bytes: int = 8192,
    state: int = 0,
    clock: bytes = SYSTEM_CLOCK,
    gap_bytes: int = 0,
) -> bytearray:
    """Return a tail; with `gap_bytes` its areas do not follow each other closely."""
    times_offset = 4096 + gap_bytes
    ends_offset = times_offset + 8 * capacity + gap_bytes
    payload_offset = ends_offset + 8 * capacity + gap_bytes
    header = TAIL.pack(
        b"CLOGTAL1", 0, 0, client_id, capacity, times_offset, ends_offset, payload_offset, tail_bytes, boot_id
    )
    data = bytearray(tail_bytes)
    data[: len(header)] = header
    data[8:12] = struct.pack("<I", zlib.crc32(header[12:]))
    data[256:272] = struct.pack("<QQ", base, state)
    data[272:320] = clock
    end = payload_offset
    for slot, (time, record) in enumerate(events):
        data[end : end + len(record)] = record
        end += len(record)
        data[times_offset + 8 * slot : times_offset + 8 * slot + 8] = struct.pack("<Q", time)
        data[ends_offset + 8 * slot : ends_offset + 8 * slot + 8] = struct.pack("<Q", end)
    require(len(data) == tail_bytes and len(events) <= capacity, "the events do not fit the tail")
    return data


def name_hash(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8")).hexdigest()[:32]


def meta(name: str, attributes: Mapping[str, str] | None = None, **more: Any) -> bytes:
    """Return the bytes of a `meta`."""
    packed: bytes = msgpack.packb(
        {"name": name, "attributes": dict(attributes or {}), "created_ns": 7, **more}
    )
    return packed


def make_story(store: pathlib.Path, chronicle: str, story: str, version: int = 1) -> pathlib.Path:
    """Make a store, a chronicle and a story where they are missing; return the story's directory."""
    directory = store / "chronicles" / name_hash(chronicle) / "stories" / name_hash(story)
    directory.mkdir(parents=True, exist_ok=True)
    (store / "CHRONOLOG").write_text(MARKER.replace("format 1", f"format {version}"))
    (directory.parent.parent / "meta").write_bytes(meta(chronicle))
    (directory / "meta").write_bytes(meta(story, {"colour": "blue"}))
    return directory


@dataclasses.dataclass
class Merged:
    """What a chunk holds of a client: events from `first_sequence` on, and the records of its segments."""

    client_id: int
    first_sequence: int
    events: list[tuple[int, bytes]]
    segments: int = 1
    records: list[tuple[int, dict[str, Any]]] = dataclasses.field(default_factory=list)
    expired: bool = False

    def __post_init__(self) -> None:
        """Give a client without records those that it would have."""
        end = self.first_sequence + len(self.events)
        client = {"type": "client", "client_id": self.client_id, "first_sequence": self.first_sequence}
        close = {"type": "close", "reason": "released", "closed_ns": 6, "next_sequence": end, "lost": {}}
        self.records = self.records or [(self.first_sequence, client), (end, close)]


def chunk_rows(clients: Sequence[Merged]) -> list[Row]:
    """Return the events of a chunk, in order."""
    return sorted(
        (time, each.client_id, each.first_sequence + place, record)
        for each in clients
        for place, (time, record) in enumerate(each.events)
    )


def chunk(clients: Sequence[Merged], *, page_events: int = 3, packed: bool = False) -> bytes:
    """Return a chunk, in pages of a few events; packed wherever that makes it shorter, or nowhere."""

    def stored(data: bytes) -> bytes:
        return min(data, zlib.compress(data), key=len) if packed else data

    clients = sorted(clients, key=lambda each: each.client_id)
    numbers = {each.client_id: number for number, each in enumerate(clients)}
    rows = chunk_rows(clients)
    pages, entries = b"", b""
    for start in range(0, len(rows), page_events):
        page = rows[start : start + page_events]
        ids = sorted({row[1] for row in page})
        sequences = {client_id: [row[2] for row in page if row[1] == client_id] for client_id in ids}
        table = struct.pack(f"<{len(ids)}I", *(numbers[client_id] for client_id in ids))
        table += struct.pack(f"<{len(ids)}I", *(len(sequences[client_id]) for client_id in ids))
        table += struct.pack(f"<{len(ids)}Q", *(sequences[client_id][0] for client_id in ids))
        times = [row[0] for row in page]
        values = [
            [0, *(after - before for before, after in itertools.pairwise(times))],
            [ids.index(row[1]) for row in page],
            [len(row[3]) for row in page],
        ]
        widths = [(max(column).bit_length() + 7) // 8 for column in values]
        planes = [
            bytes(value >> 8 * plane & 255 for value in column)
            for column, width in zip(values, widths, strict=True)
            for plane in range(width)
        ]
        payload = b"".join(row[3] for row in page)
        columns, records = stored(table + b"".join(planes)), stored(payload)
        fields = [times[0], times[-1], len(page), len(ids), len(columns), *widths, 0, zlib.crc32(columns)]
        entries += PAGE.pack(*fields, len(records), len(payload), zlib.crc32(records))
        pages += columns + records
    maps = [
        {
            "client_id": each.client_id,
            "first_sequence": each.first_sequence,
            "count": len(each.events),
            "segments": each.segments,
            "records": [(number, msgpack.packb(fields)) for number, fields in each.records],
            "clocks": [(each.first_sequence, each.events[0][0], each.events[-1][0], SYSTEM_CLOCK)]
            if each.events
            else [],
            **({"expired": True} if each.expired else {}),
        }
        for each in clients
    ]
    listed = msgpack.packb(maps)
    stored_list = stored(listed)
    fields = [len(rows), 64 + len(pages), len(stored_list), len(listed), zlib.crc32(stored_list)]
    header = CHUNK.pack(b"CLOGCHK1", 0, 0, *fields, len(entries) // 48, zlib.crc32(entries), bytes(12))
    header = header[:8] + struct.pack("<I", zlib.crc32(header[12:])) + header[12:]
    return header + pages + stored_list + entries


# -- reading --


@dataclasses.dataclass
class Block:
    """A block whose checksums hold."""

    offset: int
    kind: int
    client_id: int
    first_sequence: int
    times: list[int]
    records: list[bytes]
    fields: dict[str, Any]
    clock: tuple[Any, ...]


def read_block(data: bytes, offset: int) -> tuple[Block, int]:
    """Return the block at `offset` and the offset of the next, or raise FormatError."""
    require(offset % 64 == 0, "a block starts at a multiple of 64")
    header = data[offset : offset + 128]
    require(len(header) == 128, "the file ends in a header")
    magic, header_crc, kind, client_id, first, count, columns_crc, payload_crc, reserved, *more = (
        BLOCK.unpack(header)
    )
    payload_bytes, origin, first_time, last_time, clock = more
    require(magic == b"CLOGBLK1", "no magic")
    require(header_crc == zlib.crc32(header[12:]), "the checksum of the header does not hold")
    require(reserved == 0, "reserved is not 0")
    require(payload_bytes <= 128 << 20 and count <= 1 << 20, "over a limit")
    columns = data[offset + 128 : offset + 128 + 16 * count]
    payload = data[offset + 128 + 16 * count :][:payload_bytes]
    require(len(columns) == 16 * count and len(payload) == payload_bytes, "the file ends in a block")
    require(columns_crc == zlib.crc32(columns), "the checksum of the columns does not hold")
    require(payload_crc == zlib.crc32(payload), "the checksum of the payload does not hold")
    words = struct.unpack(f"<{2 * count}Q", columns)
    times, ends = list(words[:count]), list(words[count:])
    end = offset + 128 + 16 * count + payload_bytes
    padding = data[end : end + -end % 64]
    require(padding == bytes(-end % 64), "the padding is not zeros")
    records, fields = [], {}
    if kind == EVENTS:
        require(count, "an events block without events")
        require(times == sorted(times), "times decrease")
        require((times[0], times[-1]) == (first_time, last_time), "first or last time is wrong")
        require(ends[-1] - origin == payload_bytes, "the last end is not the end of the payload")
        start = origin
        for stop in ends:
            require(start <= stop, "ends decrease")
            records.append(payload[start - origin : stop - origin])
            require(len(records[-1]) <= 64 << 20, "a record is too large")
            start = stop
    elif kind == RECORD:
        require(count == 0 and columns_crc == 0, "a record block with events")
        fields = msgpack.unpackb(payload)
        require(isinstance(fields, dict) and isinstance(fields["type"], str), "no map with a type")
    return Block(offset, kind, client_id, first, times, records, fields, CLOCK.unpack(clock)), end + len(
        padding
    )


def read_segment(data: bytes, client_id: int) -> list[Block]:
    """Return the blocks of a sound segment, of which the last append may be unfinished."""
    blocks, offset = [], 0
    while offset < len(data):
        try:
            found, offset = read_block(data, offset)
        except FormatError:
            require(
                not any(_is_block(data, at) for at in range(offset + 64, len(data), 64)),
                f"damage at {offset}",
            )
            break
        require(found.client_id == client_id, "another client's block")
        blocks.append(found)
    require(blocks and blocks[0].fields.get("type") == "client", "the first block is no client record")
    require(blocks[0].fields["first_sequence"] == blocks[0].first_sequence, "two first sequence numbers")
    require(blocks[0].fields["client_id"] == client_id, "the client record names another client")
    return blocks


def _is_block(data: bytes, offset: int) -> bool:
    try:
        read_block(data, offset)
    except FormatError:
        return False
    return True


@dataclasses.dataclass
class Tail:
    """What a tail says."""

    client_id: int
    boot_id: bytes
    base: int
    state: int
    events: list[tuple[int, bytes]]
    clock: tuple[Any, ...]


def read_tail(data: bytes) -> Tail:
    """Read a tail that nobody writes to."""
    magic, crc, reserved, client_id, capacity, times_at, ends_at, payload_at, tail_bytes, boot_id = (
        TAIL.unpack_from(data)
    )
    require(magic == b"CLOGTAL1", "no magic")
    require(crc == zlib.crc32(data[12:80]), "the checksum of the header does not hold")
    require(reserved == 0, "reserved is not 0")
    require(tail_bytes == len(data) <= 64 << 20, "not the size that the header says")
    require(
        4096 <= times_at <= times_at + 8 * capacity <= ends_at <= ends_at + 8 * capacity <= payload_at,
        "layout",
    )
    base, state = struct.unpack_from("<QQ", data, 256)
    times = struct.unpack_from(f"<{capacity}Q", data, times_at)
    ends = struct.unpack_from(f"<{capacity}Q", data, ends_at)
    events, start = [], payload_at
    for time, stop in zip(times, ends, strict=True):
        if stop == 0:
            break
        require(start <= stop <= tail_bytes, "an end leaves the file")
        events.append((time, bytes(data[start:stop])))
        start = stop
    return Tail(client_id, boot_id, base, state, events, CLOCK.unpack_from(data, 272))


def _stored(data: bytes, crc: int, size: int) -> bytes:
    """Return what was stored, packed or not."""
    require(zlib.crc32(data) == crc, "the checksum of a part does not hold")
    data = data if len(data) == size else zlib.decompress(data)
    require(len(data) == size, "a part has another size")
    return data


def read_chunk(data: bytes) -> list[Merged]:
    """Return what a chunk holds of every client, and complain about everything that is odd."""
    magic, header_crc, reserved, events, clients_at, *more = CHUNK.unpack_from(data)
    clients_bytes, clients_size, clients_crc, page_count, index_crc, zeros = more
    require(magic == b"CLOGCHK1" and reserved == 0 and zeros == bytes(12), "no chunk")
    require(header_crc == zlib.crc32(data[12:64]), "the checksum of the header does not hold")
    index_at = clients_at + clients_bytes
    require(len(data) == index_at + 48 * page_count, "another size")
    index = data[index_at:]
    require(index_crc == zlib.crc32(index), "the checksum of the list of pages does not hold")
    listed = msgpack.unpackb(_stored(data[clients_at:index_at], clients_crc, clients_size))
    found = [
        Merged(
            fields["client_id"],
            fields["first_sequence"],
            [],
            fields["segments"],
            expired=fields.get("expired", False),
        )
        for fields in listed
    ]
    require(
        [each.client_id for each in found] == sorted({each.client_id for each in found}), "order of clients"
    )
    rows: list[Row] = []
    offset = 64
    for entry in PAGE.iter_unpack(index):
        first, last, count, clients, columns_bytes, *widths, zero, columns_crc, records_bytes, size, crc = (
            entry
        )
        columns = data[offset : offset + columns_bytes]
        records = _stored(data[offset + columns_bytes :][:records_bytes], crc, size)
        offset += columns_bytes + records_bytes
        columns = _stored(columns, columns_crc, 16 * clients + count * sum(widths))
        numbers = struct.unpack_from(f"<{clients}I", columns)
        counts = struct.unpack_from(f"<{clients}I", columns, 4 * clients)
        following = list(struct.unpack_from(f"<{clients}Q", columns, 8 * clients))
        require(list(numbers) == sorted(set(numbers)) and min(counts) >= 1 and zero == 0, "the table")
        at, values = 16 * clients, []
        for width in widths:
            planes = [columns[at + plane * count :][:count] for plane in range(width)]
            values.append(
                [sum(plane[row] << 8 * power for power, plane in enumerate(planes)) for row in range(count)]
            )
            at += width * count
        time, end = first, 0
        for delta, place, length in zip(*values, strict=True):
            time += delta
            client = found[numbers[place]]
            require(following[place] == client.first_sequence + len(client.events), "a gap in a chunk")
            rows.append((time, client.client_id, following[place], records[end : end + length]))
            client.events.append((time, rows[-1][3]))
            following[place] += 1
            end += length
        require((time, end) == (last, size) and sum(counts) == count, "a page contradicts its entry")
    require(offset == clients_at and len(rows) == events, "the pages do not fill the chunk")
    require(rows == sorted(rows), "not in the order of the story")
    for fields, client in zip(listed, found, strict=True):
        client.records = [(number, msgpack.unpackb(packed)) for number, packed in fields["records"]]
        require(len(client.events) == fields["count"], "another count")
        require(not (client.expired and client.events), "events of a client that has expired")
        starts = [start for start, *_ in fields["clocks"]]
        require(
            starts == sorted(set(starts)) and starts[:1] == [client.first_sequence][: len(client.events)],
            "clocks",
        )
        stops = [*starts[1:], client.first_sequence + len(client.events)][: len(starts)]
        for (start, first, last, model), stop in zip(fields["clocks"], stops, strict=True):
            own = client.events[start - client.first_sequence : stop - client.first_sequence]
            require((own[0][0], own[-1][0], len(model)) == (first, last, 48), "times of a clock")
    return found


def read_story(directory: pathlib.Path, boot_id: bytes) -> list[Row]:
    """Return the events of a story that nobody writes to, and complain about everything that is odd."""
    require(
        msgpack.unpackb((directory / "meta").read_bytes()).keys() >= {"name", "attributes", "created_ns"},
        "meta",
    )
    rows: list[Row] = []
    names = sorted(name for name in os.listdir(directory) if not name.startswith("."))
    chunks = {name: read_chunk((directory / name).read_bytes()) for name in names if name.endswith(".chunk")}
    for name, clients in chunks.items():
        first_time = min((row[0] for row in chunk_rows(clients)), default=0)
        require(len(name) == 55 and name.startswith(f"{first_time:016x}-"), "another name")
    in_chunks = {f"{each.client_id:016x}" for clients in chunks.values() for each in clients}
    for client in sorted({name[:16] for name in names if name.endswith((".log", ".tail"))} | in_chunks):
        client_id, found = int(client, 16), {}
        merged = [each for clients in chunks.values() for each in clients if each.client_id == client_id]
        merged.sort(key=lambda each: each.first_sequence)
        number = first_number = max((each.segments for each in merged), default=0)
        expired = max((each.first_sequence for each in merged if each.expired), default=0)
        number = first_number = _behind_sealed(directory, client, first_number)
        closed, expected = bool(merged), max(expired, merged[0].first_sequence) if merged else 0
        for each in merged:
            for place, event in enumerate(each.events):
                if each.first_sequence + place >= expired:
                    require(found.setdefault(each.first_sequence + place, event) == event, "two truths")
        while (path := directory / (f"{client}.{number}.log" if number else f"{client}.log")).exists():
            for item in read_segment(path.read_bytes(), client_id):
                if number == first_number and not merged and not item.offset:
                    expected = item.first_sequence
                kind = item.fields.get("type")
                closed = kind in ("close", "client", "roll") or (closed and item.kind != EVENTS)
                for place, event in enumerate(
                    zip(item.times, item.records, strict=True) if item.records else ()
                ):
                    require(found.setdefault(item.first_sequence + place, event) == event, "two truths")
            number += 1
        require(number > first_number or merged, "no segment")
        if f"{client}.tail" in names:
            last = read_tail((directory / f"{client}.tail").read_bytes())
            require(last.client_id == client_id, "another client's tail")
            if last.boot_id == boot_id:
                for place, event in enumerate(last.events):
                    require(found.setdefault(last.base + place, event) == event, "two truths")
        else:
            require(closed, "events, and neither a tail nor a close record")
        require(sorted(found) == list(range(expected, expected + len(found))), "a gap")
        times = [found[sequence][0] for sequence in sorted(found)]
        require(times == sorted(times), "times decrease")
        rows += [(time, client_id, sequence, record) for sequence, (time, record) in found.items()]
    return sorted(rows)


def _behind_sealed(directory: pathlib.Path, client: str, first: int) -> int:
    """Return the number of the first segment that counts; those before `first` are in chunks."""
    names = [path.name.split(".") for path in directory.glob(f"{client}*.log")]
    numbers = sorted(int(parts[1]) if len(parts) == 3 else 0 for parts in names)
    numbers = [number for number in numbers if number >= first]
    missing = set(range(first, max(numbers, default=first))) - set(numbers)
    for number in numbers:
        path = directory / (f"{client}.{number}.log" if number else f"{client}.log")
        if missing and number > max(missing) and "follows_ns" in read_block(path.read_bytes(), 0)[0].fields:
            return number
    return first


def read_store(store: pathlib.Path, boot_id: bytes) -> dict[tuple[str, str], list[Row]]:
    """Return the events of every story of a store that nobody writes to: (chronicle, story) -> rows."""
    lines = (store / "CHRONOLOG").read_text().splitlines()
    require(lines[0] == "ChronoLog store", "no marker")
    require("byte-order little" in lines and {"format 1", "format 2"} & set(lines), "another format")
    stories = {}
    for directory in (store / "chronicles").glob("*/stories/*"):
        names = [_name(directory.parent.parent), _name(directory)]
        stories[names[0], names[1]] = read_story(directory, boot_id)
    return stories


def _name(directory: pathlib.Path) -> str:
    name = msgpack.unpackb((directory / "meta").read_bytes())["name"]
    require(isinstance(name, str) and name_hash(name) == directory.name, "a name that is not its directory's")
    return str(name)
