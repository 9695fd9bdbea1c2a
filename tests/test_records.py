"""What may be logged, and the bytes that stand for it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from py_chronolog_client.errors import RecordTooLargeError
from py_chronolog_client.records import MISSING, encode, encode_batch, pieces, the_one

RECORDS = st.text(max_size=8) | st.binary(max_size=8)
NO_RECORDS = [None, 1, 2.5, ["x"], object(), "\ud800", "a\udcffb"]
LIMIT = 100


def as_bytes(record: str | bytes) -> bytes:
    return record.encode() if isinstance(record, str) else record


@given(st.text() | st.binary())
def test_text_is_its_utf8_and_bytes_are_bytes(record: str | bytes) -> None:
    data = encode(record, 10**6)
    assert data == as_bytes(record)
    assert type(data) is bytes


@pytest.mark.parametrize("record", [bytearray(b"ab"), memoryview(b"ab"), memoryview(b"a_b_")[::2]])
def test_other_kinds_of_bytes(record: bytearray | memoryview) -> None:
    assert encode(record, LIMIT) == b"ab"


@pytest.mark.parametrize("record", NO_RECORDS)
def test_what_is_no_record(record: object) -> None:
    with pytest.raises(TypeError):
        encode(record, LIMIT)  # type: ignore[arg-type]
    for batch in ([record], ["good", record], [b"good", record, "good"], (record,)):
        with pytest.raises(TypeError):
            encode_batch(batch, LIMIT)  # type: ignore[arg-type]


def test_the_limit_counts_bytes() -> None:
    for record in ("x" * LIMIT, "é" * (LIMIT // 2), bytes(LIMIT)):
        assert len(encode(record, LIMIT)) == LIMIT
        assert list(map(len, encode_batch([record, record], LIMIT)[1])) == [LIMIT, LIMIT]
    for record in ("x" * (LIMIT + 1), "é" * (LIMIT // 2 + 1), bytes(LIMIT + 1)):
        size_bytes = len(as_bytes(record))
        for action in (
            lambda record=record: encode(record, LIMIT),
            lambda record=record: encode_batch([record], LIMIT),
        ):
            with pytest.raises(RecordTooLargeError) as caught:
                action()
            assert (caught.value.size_bytes, caught.value.limit_bytes) == (size_bytes, LIMIT)


@given(st.lists(RECORDS))
def test_a_batch_is_its_records(batch: list[str | bytes]) -> None:
    for form in (batch, tuple(batch), iter(batch)):
        payload, records = encode_batch(form, LIMIT)
        assert payload == b"".join(map(as_bytes, batch))
        assert list(map(len, records)) == [len(as_bytes(record)) for record in batch]


def test_a_batch_may_change_after_it_was_encoded() -> None:
    batch = ["ab", "c"]
    _, records = encode_batch(batch, LIMIT)
    batch[0] = "longer"
    assert list(map(len, records)) == [2, 1]


@pytest.mark.parametrize("batch", ["text", b"bytes", bytearray(b"x"), memoryview(b"x")])
def test_a_batch_is_not_one_record(batch: object) -> None:
    with pytest.raises(TypeError, match="a sequence of records, not one record"):
        encode_batch(batch, LIMIT)  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", [None, 5, {"a": "b"}, {"a"}])
def test_a_batch_is_a_sequence(batch: object) -> None:
    with pytest.raises(TypeError):
        encode_batch(batch, LIMIT)  # type: ignore[arg-type]


@given(st.lists(RECORDS), st.integers(0, 60), st.integers(1, 9), st.integers(32, 64))
def test_pieces_are_the_rest_of_a_batch_within_both_limits(
    batch: list[str | bytes], start: int, limit_events: int, limit_bytes: int
) -> None:
    payload, encoded = encode_batch(batch, LIMIT)
    start = min(start, len(batch))
    records = []
    found = [
        (piece, list(map(len, its_records)))
        for piece, its_records in pieces(payload, encoded, start, limit_events, limit_bytes)
    ]
    for piece, piece_sizes in found:
        assert len(piece) == sum(piece_sizes) <= limit_bytes
        assert len(piece_sizes) <= limit_events
        offset = 0
        for size_bytes in piece_sizes:
            records.append(piece[offset : offset + size_bytes])
            offset += size_bytes
    assert records == [as_bytes(record) for record in batch[start:]]
    assert all(piece_sizes for _, piece_sizes in found) or not batch


def test_one_of_the_two_names() -> None:
    assert the_one("a", None) == "a"
    assert the_one("a", MISSING) == "a"
    assert the_one(MISSING, "b") == "b"
    assert the_one(MISSING, b"") == b""
    with pytest.raises(TypeError, match="none was given"):
        the_one(MISSING, None)
    with pytest.raises(TypeError, match="two were given"):
        the_one("a", "b")
