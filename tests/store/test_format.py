"""The store format against a second implementation of docs/format.md, in both directions, byte by byte."""

import os
import pathlib
import struct
import tempfile

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from py_chronolog_client.clock import ClockModel
from py_chronolog_client.engine.base import WriterOptions
from py_chronolog_client.engine.embedded import EmbeddedEngine
from py_chronolog_client.store import format as layout
from py_chronolog_client.store import owner
from py_chronolog_client.store.catalog import Catalog
from py_chronolog_client.store.root import StoreRoot
from py_chronolog_client.testing.manual_clock import ManualClock
from tests.store import example, independent, reading
from tests.store.independent import FormatError

U64 = st.integers(0, 2**64 - 1)
TIMES = st.sampled_from([0, 1, 7, 8, 2**32, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1]) | U64
RECORDS = st.sampled_from([b"", b"\0", b"\0\0\0", "wörld".encode(), b"\xff\xfe"]) | st.binary(max_size=80)
FIRST_SEQUENCES = st.sampled_from([0, 0, 1, 2**31 - 1, 2**32 - 2, 2**32 - 1, 2**53 + 1, 2**63])
CLIENT_IDS = st.sampled_from([0, 1, 7, 2**32, 2**63 - 1, 2**63, 2**64 - 1])
FLOATS = st.floats(-1e-3, 1e-3)
CLOCKS = st.builds(independent.CLOCK.pack, U64, st.just(1), st.just(2), FLOATS, U64, FLOATS)


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, list[list[tuple[int, bytes]]]]:
    """Draw the first sequence number and the events of a client in blocks, the last of which may be empty."""
    records = draw(st.lists(st.lists(RECORDS, min_size=1, max_size=6), max_size=5))
    times = iter(sorted(draw(TIMES) for block in records for _ in block))
    return draw(FIRST_SEQUENCES), [[(next(times), record) for record in block] for block in records]


STATES = st.sampled_from(["closed", "open", "recycled", "not recycled", "half in a block", "not removed"])


@given(
    st.dictionaries(CLIENT_IDS, st.tuples(histories(), STATES, CLOCKS, U64), min_size=1, max_size=4),
    st.data(),
)
def test_what_others_write_is_replayed(clients: dict, data: st.DataObject) -> None:
    expected = []
    with tempfile.TemporaryDirectory() as name:
        store = pathlib.Path(name)
        directory = reading.make_story(store)
        for client_id, ((first, blocks), state, clock, origin) in clients.items():
            expected += reading.rows(client_id, first, [event for block in blocks for event in block])
            in_blocks, in_tail = (
                blocks,
                blocks[-1] if blocks and state not in ("recycled", "not removed") else [],
            )
            if state == "open":
                in_blocks = blocks[:-1]
            elif state == "half in a block" and in_tail:
                in_blocks = [*blocks[:-1], in_tail[: len(in_tail) // 2]]
            segment, sequence = independent.client_record(client_id, first, rank=3, later={"a": [1]}), first
            for block in in_blocks:
                if block:
                    more = {"origin": origin >> 8, "clock": clock}
                    segment += independent.events_block(client_id, sequence, block, **more)
                    sequence += len(block)
                if data.draw(st.booleans()):  # an unknown kind, and a record between events
                    segment += independent.block(
                        77, client_id, 5, [1, 2], [3, 4], b"from the future", clock=clock
                    )
                    segment += independent.record_block(client_id, sequence, {"type": "later", "a": [1.5]})
                    models = {"first_sequence": first, "models": clock * 3, "later": None}
                    segment += independent.record_block(client_id, sequence, {"type": "clock", **models})
            if state in ("closed", "not removed"):
                segment += independent.close_record(client_id, sequence)
            elif state != "half in a block":
                segment += data.draw(
                    st.sampled_from([b"", b"\0" * 100, b"CLOGBLK1" + b"\1" * 200])
                )  # unfinished
            if state != "closed":
                base = first + sum(map(len, blocks)) - len(in_tail)
                more = {"clock": clock, "state": int(state == "not removed"), "gap_bytes": 24}
                tail = independent.tail(client_id, base, in_tail, owner.boot_id(), **more)
                reading.tail(directory, client_id).write_bytes(tail)
            reading.segment(directory, client_id).write_bytes(segment)
        found = reading.replay(store)
        assert found.rows == sorted(expected)
        assert (found.report.damages, found.report.missing, found.report.disbelieved) == ([], 0, 0)
        assert independent.read_store(store, owner.boot_id()) == {("c", "s"): found.rows}


ACTIONS = st.lists(
    st.tuples(st.integers(0, 1), st.just("log"), st.text(max_size=20) | st.binary(max_size=20))
    | st.tuples(
        st.integers(0, 1), st.just("batch"), st.lists(st.text(max_size=5) | st.binary(max_size=5), max_size=9)
    )
    | st.tuples(st.integers(0, 1), st.just("many"), st.integers(1, 8000))
    | st.tuples(st.integers(0, 1), st.just("large"), st.integers(100_000, 1_200_000))
    | st.tuples(st.integers(0, 1), st.sampled_from(["flush", "clock", "close", "forward"]), st.none()),
    max_size=12,
)


@given(ACTIONS, st.sampled_from([0, 0, 2**32 - 3]), st.sampled_from([1_000, 2**63 - 5, 2**64 - 200]))
def test_what_we_write_is_understood_by_others(actions: list, first: int, now_ns: int) -> None:
    expected: list[independent.Row] = []
    with tempfile.TemporaryDirectory() as name:
        store = pathlib.Path(name) / "store"
        engine = EmbeddedEngine(store)
        engine.create_chronicle("c/ä", {"k": "v"})
        clock = ManualClock(now_ns, ClockModel(9, 1, 2, 1e-6, 3, 1e-9))
        ids = (3, 2**63 - 1)
        options = [WriterOptions(client_id, clock, first_sequence=first) for client_id in ids]
        writers = [engine.open_writer("c/ä", "s", {"colour": "red"}, option) for option in options]
        numbers, is_open = [first, first], [True, True]

        def check() -> None:
            assert independent.read_store(store, owner.boot_id()) == {("c/ä", "s"): sorted(expected)}

        for which, action, value in actions:
            records: list[str | bytes] = []
            if action == "log":
                records, time_ns = [value], writers[which].log_event(value)
            elif action in ("batch", "many", "large"):
                records = (
                    value if action == "batch" else ["m"] * value if action == "many" else [b"L" * value]
                )
                time_ns = writers[which].log_events(records)
            elif action == "flush":
                writers[which].flush()
            elif action == "clock" and is_open[which]:
                writers[which].use_clock(ManualClock(clock.now_ns, ClockModel(10)))
            elif action == "close":
                writers[which].close()
                is_open[which] = False
            elif action == "forward":
                clock.now_ns += 3
            if is_open[which]:
                for record in records:
                    data = record.encode() if isinstance(record, str) else record
                    expected.append((time_ns, ids[which], numbers[which], data))
                    numbers[which] += 1
        check()
        for writer in writers:
            writer.close()
        check()
        engine.close()


@given(st.builds(layout.BlockHeader, kind=st.integers(0, 2**32 - 1), client_id=U64, first_sequence=st.integers(0, 2**63),
                 count=st.integers(0, 2**20), columns_crc=st.integers(0, 2**32 - 1), payload_crc=st.integers(0, 2**32 - 1),
                 payload_bytes=st.integers(0, 2**27), origin=st.integers(0, 2**63), first_time=U64, last_time=U64,
                 clock=st.builds(ClockModel, U64, st.integers(-(2**63), 2**63 - 1), st.just(-4), FLOATS, U64, FLOATS)))  # fmt: skip  # noqa: E501
def test_headers_are_where_the_document_says(header: layout.BlockHeader) -> None:
    data = header.pack()
    assert len(data) == layout.HEADER_BYTES == 128
    magic, _, *fields, clock = independent.BLOCK.unpack(data)
    assert magic == b"CLOGBLK1"
    assert fields == [*header[:6], 0, *header[6:10]]
    model = header.clock
    assert independent.CLOCK.unpack(clock) == (
        model.model_id, model.base_ns, model.offset_ns, model.rate, model.window_ns, model.window_rate,
    )  # fmt: skip
    assert layout.BlockHeader.unpack(data) == header
    for place in range(128):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        assert layout.BlockHeader.unpack(bytes(damaged)) is None
        assert layout.BlockHeader.unpack(data[:place]) is None


@pytest.mark.parametrize(
    "change",
    [
        {"count": 2**20 + 1},
        {"payload_bytes": 2**27 + 1},
        {"first_sequence": 2**64 - 3, "count": 3},
        {"origin": 2**64 - 1, "payload_bytes": 1},
    ],
    ids=str,
)
def test_a_header_beyond_the_limits_is_none(change: dict[str, int]) -> None:
    header = layout.BlockHeader(1, 2, 3, 1, 5, 6, 7, 8, 9, 10, ClockModel())
    assert layout.BlockHeader.unpack(header.pack()) == header
    assert layout.BlockHeader.unpack(header._replace(**change).pack()) is None


def test_tail_headers_are_where_the_document_says() -> None:
    header = layout.TailHeader(1, 8, 4096, 4096 + 64, 4096 + 128, 8192, bytes(range(16)))
    data = header.pack()
    magic, _, reserved, *fields = independent.TAIL.unpack(data)
    assert (magic, reserved, tuple(fields)) == (b"CLOGTAL1", 0, tuple(header))
    assert layout.TailHeader.unpack(data) == header
    for place in range(80):
        damaged = bytearray(data)
        damaged[place] ^= 0x10
        assert layout.TailHeader.unpack(bytes(damaged)) is None
        assert layout.TailHeader.unpack(data[:place]) is None
    state = layout.TailState(5, 1, ClockModel(1, -2, 3, 0.5, 6, 0.25))
    assert state.pack() == struct.pack("<QQ", 5, 1) + independent.CLOCK.pack(1, -2, 3, 0.5, 6, 0.25)
    assert layout.TailState.unpack(state.pack()) == state


@pytest.mark.parametrize(
    "change",
    [
        {"capacity": 0},
        {"capacity": 2**40},
        {"times_offset": 4088},
        {"times_offset": 4100},
        {"ends_offset": 4096 + 56},
        {"ends_offset": 4096 + 68},
        {"payload_offset": 4096 + 120},
        {"payload_offset": 8192},
        {"tail_bytes": 2**26 + 8},
        {"ends_offset": 2**64 - 8},
    ],
    ids=str,
)
def test_a_tail_that_cannot_be_is_none(change: dict[str, int]) -> None:
    header = layout.TailHeader(1, 8, 4096, 4096 + 64, 4096 + 128, 8192, bytes(16))
    assert layout.TailHeader.unpack(header.pack()) == header
    assert layout.TailHeader.unpack(header._replace(**change).pack()) is None


@given(
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**63),
    st.dictionaries(st.text(max_size=9), TIMES | st.text(max_size=9)),
)
def test_record_blocks_are_the_same_bytes(client_id: int, sequence: int, fields: dict) -> None:
    fields["type"] = "client"
    assert layout.encode_record(client_id, sequence, fields) == independent.record_block(
        client_id, sequence, fields
    )


@given(st.lists(st.tuples(TIMES, RECORDS), min_size=1, max_size=20), FIRST_SEQUENCES, CLOCKS)
def test_what_we_write_as_a_block_is_the_same_bytes(
    events: list[tuple[int, bytes]], first: int, clock: bytes
) -> None:
    events = list(zip(sorted(time for time, _ in events), (record for _, record in events), strict=True))
    with tempfile.TemporaryDirectory() as name:
        from py_chronolog_client.store.pen import Pen, Stored
        from py_chronolog_client.store.segment import Segment

        root = StoreRoot.open(name, create=True)
        segment = Segment(root, pathlib.Path(name) / f"{5:016x}.log", independent.client_record(5, first))
        pen = Pen(Stored(first, segment, segment.start))
        ends, end = [], 100
        for _, record in events:
            end += len(record)
            ends.append(end)
        columns = [memoryview(np.array(column, np.uint64)) for column in ([time for time, _ in events], ends)]
        payload = memoryview(b"".join(record for _, record in events))
        pen.write(5, *columns, payload, 100, ClockModel.unpack(clock))
        written = segment.path.read_bytes()
        segment.close()
    expected = independent.events_block(5, first, events, origin=100, clock=clock)
    assert written == independent.client_record(5, first) + expected


def test_an_aged_store_with_everything(tmp_path: pathlib.Path) -> None:
    """Stories that were acquired again, batches of a block of their own, a tail elsewhere: all as documented."""
    store = tmp_path / "store"
    tails = tmp_path / "tails"
    tails.mkdir()
    engine = EmbeddedEngine(store)
    engine.create_chronicle("c", {})
    os.environ["CHRONOLOG_TAIL_DIR"] = str(tails)
    try:
        clock = ManualClock(50)
        for round_number in range(3):
            options = WriterOptions(4, clock, first_sequence=3 * round_number)
            writer = engine.open_writer("c", "s", {}, options)
            writer.log_events(["a", b"", "c" * 2_000_000])
            writer.close()
            clock.now_ns += 1
        writer = engine.open_writer("c", "s", {}, WriterOptions(4, clock, first_sequence=9))
        writer.log_event("last")
        assert len(os.listdir(tails)) == 1
        rows = independent.read_store(store, owner.boot_id())["c", "s"]
        assert [row[2] for row in rows] == list(range(10))
        (directory,) = store.glob("chronicles/*/stories/*")
        assert set(os.listdir(directory)) == {f"{4:016x}.log", f"{4:016x}.tail", "meta"}
        writer.close()
        assert os.listdir(tails) == []
        assert independent.read_store(store, owner.boot_id())["c", "s"] == reading.replay(store).rows == rows
    finally:
        del os.environ["CHRONOLOG_TAIL_DIR"]
        engine.close()


def test_meta_and_names(tmp_path: pathlib.Path) -> None:
    catalog = Catalog(StoreRoot.open(tmp_path, create=True))
    catalog.create_chronicle("ä/.\0", {"k": "v"})
    (path,) = tmp_path.glob("chronicles/*/meta")
    assert path.parent.name == independent.name_hash("ä/.\0")
    fields = msgpack.unpackb(path.read_bytes())
    assert (fields["name"], fields["attributes"]) == ("ä/.\0", {"k": "v"})
    assert (tmp_path / "CHRONOLOG").read_text() == independent.MARKER


def test_the_worked_example_is_what_is_written() -> None:
    document = example.DOCUMENT.read_text()
    for dump in (example.dump(), example.dump_chunk()):
        assert f"```text\n{dump}\n```" in document, (
            "run python -m tests.store.example and put it into docs/format.md"
        )


def test_the_worked_example_can_be_read() -> None:
    data = example.segment()
    record, events = independent.read_segment(data, example.CLIENT_ID)
    assert record.fields == {**example.PROCESS, "type": "client", "client_id": example.CLIENT_ID, "first_sequence": 0,
                             "opened_ns": example.FIRST_NS}  # fmt: skip
    assert list(zip(events.times, events.records, strict=True)) == [
        (example.FIRST_NS + 1000, b"hello"),
        (example.FIRST_NS + 2000, "wörld".encode()),
    ]
    assert data == layout.encode_record(example.CLIENT_ID, 0, record.fields) + data[0x180:]


@pytest.mark.parametrize("place", [0, 9, 12, 44, 130, 200, 0x180 + 50, 0x200, 0x210, 0x220, 0x23F])
def test_the_second_implementation_notices_damage(place: int) -> None:
    data = bytearray(example.segment())
    data[place] ^= 4
    with pytest.raises(FormatError):
        independent.read_segment(
            bytes(data) + independent.close_record(example.CLIENT_ID, 2), example.CLIENT_ID
        )
