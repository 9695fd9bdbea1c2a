"""Payloads: what joining, cutting and reordering them does, against lists of records."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from py_chronolog_client.page import MemoryPage, Payload

RECORDS = st.lists(st.binary(max_size=12), max_size=30) | st.integers(0, 5).flatmap(
    lambda size_bytes: st.lists(st.binary(min_size=size_bytes, max_size=size_bytes), max_size=30)
)


@given(RECORDS)
def test_records_come_back(records: list[bytes]) -> None:
    payload = Payload.of(records)
    assert payload.records() == records
    assert len(payload) == len(records)
    assert payload.sizes().tolist() == [len(record) for record in records]


@given(RECORDS, st.data())
def test_a_part_is_a_slice_without_a_copy(records: list[bytes], data: st.DataObject) -> None:
    start, stop = sorted(data.draw(st.lists(st.integers(0, len(records)), min_size=2, max_size=2)))
    payload = Payload.of(records)
    part = payload.part(start, stop)
    assert part.records() == records[start:stop]
    if len(part.data):
        assert isinstance(part.data, memoryview)
        assert part.data.obj is payload.data
    again = part.part(0, len(part))
    assert again.records() == records[start:stop]


@given(st.lists(RECORDS, max_size=4))
def test_joined(several: list[list[bytes]]) -> None:
    joined = Payload.join([Payload.of(records) for records in several])
    assert joined.records() == [record for records in several for record in records]


@given(RECORDS, st.data())
def test_taken_in_any_order_some_twice_or_not_at_all(records: list[bytes], data: st.DataObject) -> None:
    places = st.integers(0, len(records) - 1)
    order = data.draw(st.lists(places, max_size=40)) if records else []
    taken = Payload.of(records).take(np.array(order, np.intp))
    assert taken.records() == [records[place] for place in order]


@given(RECORDS)
def test_a_part_can_be_reordered(records: list[bytes]) -> None:
    part = Payload.of([b"before", *records, b"behind"]).part(1, len(records) + 1)
    backwards = np.arange(len(records))[::-1]
    assert part.take(backwards).records() == records[::-1]


def test_a_page_in_memory() -> None:
    columns = [np.arange(3, dtype=np.uint64) for _ in range(3)]
    page = MemoryPage(*columns, Payload.of([b"a", b"", b"ccc"]))
    assert page.records() == [b"a", b"", b"ccc"]
    assert page.records(1) == [b"", b"ccc"]
    assert page.records(0, -1) == [b"a", b""]
    assert page.records(2, 1) == []
    assert page.payload(2).ends.tolist() == [3]
    assert page.windows_ns().tolist() == [2**64 - 1] * 3
