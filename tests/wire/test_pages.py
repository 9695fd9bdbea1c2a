"""Pages arrive as they were sent, in bodies of bounded size, and a body that is no page is refused."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from py_chronolog_client.errors import ProtocolError
from py_chronolog_client.page import MemoryPage, Page, Payload
from py_chronolog_client.wire import messages
from py_chronolog_client.wire.frames import FULL, MAX_BODY_BYTES, FrameDecoder, frame_bytes
from py_chronolog_client.wire.pages import MAX_PAGE_BYTES, pack_page, unpack_page
from tests.support.counts import soak
from tests.wire import independent
from tests.wire.feeding import U64, feed, peak_bytes

Row = tuple[int, int, int, bytes]
UNKNOWN_NS = 2**64 - 1
ROWS = st.lists(
    st.tuples(U64, U64, U64, st.sampled_from([b"", b"\0"]) | st.binary(max_size=40)),
    min_size=1,
    max_size=12,
    unique_by=lambda row: row[:3],
).map(sorted)


def column(values: list[int]) -> np.ndarray:
    return np.array(values, np.uint64)


def page_of(rows: list[Row], windows: list[int] | None = None, aligned: list[int] | None = None) -> Page:
    return MemoryPage(
        *(column([row[place] for row in rows]) for place in range(3)),
        Payload.of([row[3] for row in rows]),
        None if windows is None else column(windows),
        None if aligned is None else column(aligned),
    )


def rows_of(page: Page) -> list[Row]:
    columns = (page.times, page.client_ids, page.sequences)
    return list(zip(*(values.tolist() for values in columns), page.records(), strict=True))


def sent(page: Page) -> list[Page]:
    """Return what arrives of a page, by way of frames."""
    decoder, arrived = FrameDecoder(FULL), []
    for message, body in pack_page(page):
        data = b"".join(body)
        (frame,) = feed(decoder, frame_bytes(messages.encode(message), len(data)) + data)
        found = messages.decode(frame.head, has_body=bool(frame.body))
        assert isinstance(found, messages.Page)
        arrived.append(unpack_page(found, frame.body))
    return arrived


# -- there and back --


@given(ROWS, st.booleans(), st.data())
def test_a_page(rows: list[Row], is_aligned: bool, data: st.DataObject) -> None:
    windows = data.draw(st.lists(U64, min_size=len(rows), max_size=len(rows)))
    aligned = None
    if is_aligned:
        times = data.draw(st.lists(U64, min_size=len(rows), max_size=len(rows), unique=True))
        aligned = sorted(times)
    page = page_of(rows, windows, aligned)
    ((message, body),) = pack_page(page)
    assert message == messages.Page(len(rows), is_aligned)
    assert b"".join(body) == independent.page_body(rows, windows, aligned), "not what docs/protocol.md says"
    (found,) = sent(page)
    assert rows_of(found) == rows
    assert found.windows_ns().tolist() == windows
    assert (found.aligned is None) == (aligned is None)
    if aligned is not None:
        assert found.keys.tolist() == aligned


def test_an_aligned_page_is_in_the_order_of_its_aligned_times() -> None:
    rows = [(5, 1, 1, b"a"), (3, 2, 1, b"b"), (4, 1, 2, b"c")]
    (found,) = sent(page_of(rows, aligned=[1, 2, 3]))
    assert rows_of(found) == rows


def test_a_page_of_the_systems_clock() -> None:
    (found,) = sent(page_of([(1, 2, 3, b"x")]))
    assert found.windows_ns().tolist() == [UNKNOWN_NS]


def test_no_events_are_no_message() -> None:
    assert list(pack_page(page_of([]))) == []


def test_empty_records() -> None:
    rows: list[Row] = [(1, 1, number, b"") for number in range(1000)]
    (found,) = sent(page_of(rows))
    assert rows_of(found) == rows


def test_columns_that_lie_apart_in_memory() -> None:
    table = np.arange(60, dtype=np.uint64).reshape(20, 3)
    page = MemoryPage(table[:, 0], table[:, 1], table[:, 2], Payload.of([b"r"] * 20))
    (found,) = sent(page)
    assert rows_of(found) == [(*row, b"r") for row in table.tolist()]


# -- large pages --


@pytest.mark.parametrize("record_bytes", [0, 1, 1000, 3 * 2**20, MAX_PAGE_BYTES - 48, MAX_PAGE_BYTES])
def test_a_large_page_is_cut(record_bytes: int) -> None:
    count = 2 * MAX_PAGE_BYTES // (48 + record_bytes) + 3
    data = np.resize(np.frombuffer(np.random.default_rng(1).bytes(1000), np.uint8), count * record_bytes).data
    ends = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(record_bytes)
    numbers = np.arange(count, dtype=np.uint64)
    page = MemoryPage(numbers, numbers, numbers, Payload(ends, data), numbers, numbers)
    sizes = [sum(len(piece) for piece in body) for _, body in pack_page(page)]
    assert len(sizes) > 1
    assert all(size <= max(MAX_PAGE_BYTES, 48 + record_bytes) for size in sizes)
    assert all(size + 48 + record_bytes > MAX_PAGE_BYTES for size in sizes[:-1]), "cut where there was room"
    arrived = sent(page)
    assert np.array_equal(np.concatenate([found.sequences for found in arrived]), numbers)
    assert np.array_equal(np.concatenate([found.aligned for found in arrived]), numbers)
    assert b"".join(bytes(found.payload().data) for found in arrived) == bytes(data)


def test_small_records_beside_large_ones() -> None:
    sizes = [0, 5, MAX_PAGE_BYTES + 1, 0, 0, MAX_PAGE_BYTES - 40, 1, 2 * MAX_PAGE_BYTES, 0]
    rows: list[Row] = [(1, 1, number, b"x" * size) for number, size in enumerate(sizes)]
    arrived = sent(page_of(rows))
    assert [row for found in arrived for row in rows_of(found)] == rows
    assert [len(found) for found in arrived] == [2, 1, 2, 1, 1, 1, 1]


def test_the_largest_record_fits_a_body() -> None:
    largest = 64 * 2**20
    page = MemoryPage(*[column([1])] * 3, Payload(column([largest]), bytes(largest)), None, column([1]))
    ((_, body),) = pack_page(page)
    assert sum(len(piece) for piece in body) == largest + 48 <= MAX_BODY_BYTES


# -- copies --


def received(count: int = 100, record_bytes: int = 10) -> tuple[messages.Page, bytearray]:
    rows: list[Row] = [(number, 1, number, b"r" * record_bytes) for number in range(count)]
    return messages.Page(count, True), bytearray(
        independent.page_body(rows, list(range(count)), list(range(count)))
    )


def test_nothing_that_was_received_is_copied() -> None:
    message, body = received()
    page = unpack_page(message, body)
    memory = np.frombuffer(body, np.uint8)
    assert page.aligned is not None
    payload = page.payload()
    for values in (page.times, page.client_ids, page.sequences, page.windows_ns(), page.aligned):
        assert np.shares_memory(values, memory)
    assert np.shares_memory(np.frombuffer(payload.data, np.uint8), memory)
    large, body = received(1000, 4000)
    assert peak_bytes(lambda: unpack_page(large, body)) < 100_000 < len(body)


def test_nothing_that_was_received_can_be_written_through() -> None:
    message, body = received()
    page = unpack_page(message, body)
    assert page.aligned is not None
    for values in (page.times, page.client_ids, page.sequences, page.windows_ns(), page.aligned):
        with pytest.raises(ValueError, match="read-only"):
            values[0] = 1
    assert memoryview(page.payload().data).readonly


def test_what_is_sent_is_not_copied_either() -> None:
    records = b"x" * 1000
    page = MemoryPage(*[column([1])] * 3, Payload(column([1000]), records))
    ((_, body),) = pack_page(page)
    assert np.shares_memory(np.frombuffer(body[-1], np.uint8), np.frombuffer(records, np.uint8))
    assert np.shares_memory(np.frombuffer(body[0], np.uint8), page.times.view(np.uint8))


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bodies_of_every_kind(kind: type) -> None:
    message, body = received(3)
    assert len(unpack_page(message, kind(body))) == 3


# -- bodies that are none --

GOOD = [(10, 1, 0, b"one"), (10, 1, 1, b""), (10, 2, 0, b"three"), (11, 1, 2, b"4")]


def refused(message: messages.Page, body: bytes) -> None:
    with pytest.raises(ProtocolError, match="a page"):
        unpack_page(message, body)


def good_body(aligned: bool = False) -> bytearray:
    return bytearray(independent.page_body(GOOD, [0] * 4, [5, 5, 5, 6] if aligned else None))


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 6, 2**31, 2**61, 2**64 - 1])
def test_a_count_that_does_not_fit(count: int, aligned: bool) -> None:
    assert len(unpack_page(messages.Page(4, aligned), good_body(aligned))) == 4
    refused(messages.Page(count, aligned), good_body(aligned))


@pytest.mark.parametrize("aligned", [False, True])
def test_columns_that_are_not_those_that_were_announced(aligned: bool) -> None:
    refused(messages.Page(4, not aligned), good_body(aligned))


def test_bodies_of_every_other_length() -> None:
    body = good_body()
    for size in range(len(body)):
        refused(messages.Page(4, False), body[:size])
    for more in range(1, 70):
        refused(messages.Page(4, False), body + bytes(more))


@pytest.mark.parametrize(
    "ends",
    [
        [3, 3, 8, 10],  # beyond the body
        [3, 3, 8, 8],  # short of it
        [3, 9, 8, 9],  # decreasing
        [10, 3, 8, 9],
        [3, 3, 2**64 - 1, 9],
        [2**63, 2**63, 2**63, 2**63],
        [3, 3, 8, 2**64 - 1],
        [0, 0, 0, 0],
    ],
)
def test_ends_that_make_no_sense(ends: list[int]) -> None:
    body = good_body()
    struct.pack_into("<4Q", body, 3 * 4 * 8, *ends)
    refused(messages.Page(4, False), body)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize(
    "order", [(1, 0, 2, 3), (0, 2, 1, 3), (3, 0, 1, 2), (0, 1, 3, 2), (0, 0, 2, 3), (0, 1, 2, 2)]
)
def test_events_out_of_order(order: tuple[int, ...], aligned: bool) -> None:
    """By time, by client id and by sequence; an event that comes twice too."""
    rows = [GOOD[place] for place in order]
    keys = [[5, 5, 5, 6][place] for place in order]
    refused(messages.Page(4, aligned), independent.page_body(rows, [0] * 4, keys if aligned else None))


def test_random_bodies_are_pages_or_errors() -> None:
    chance = np.random.default_rng()
    for _ in range(soak(2000, 200_000)):
        body = bytearray(good_body(aligned := bool(chance.integers(2))))
        for place in chance.integers(len(body), size=chance.integers(1, 4)):
            body[place] = chance.integers(256)
        try:
            page = unpack_page(messages.Page(4, aligned), body)
        except ProtocolError:
            continue
        assert len(page.records()) == 4
        assert sum(map(len, page.records())) == 9
