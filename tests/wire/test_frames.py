"""Frames come out as they went in, however the bytes are cut, and no size is believed before it is checked."""

import random
import socket
import struct
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from py_chronolog_client.errors import InvalidArgumentError, ProtocolError
from py_chronolog_client.wire.frames import (
    FULL,
    GREETING,
    MAX_BODY_BYTES,
    MAX_GREETING_BYTES,
    MAX_HEAD_BYTES,
    Frame,
    FrameDecoder,
    Limits,
    frame_bytes,
)
from tests.support.counts import soak
from tests.wire.feeding import feed, peak_bytes

SMALL = Limits(40, 90)
FRAMES = st.lists(
    st.tuples(st.binary(min_size=1, max_size=40), st.binary(max_size=90)), min_size=1, max_size=6
)


def stream(frames: list[tuple[bytes, bytes]]) -> bytes:
    return b"".join(frame_bytes(head, len(body)) + body for head, body in frames)


def prefix(head_bytes: int, body_bytes: int) -> bytes:
    return struct.pack("<II", head_bytes, body_bytes)


# -- cutting --


def test_the_bytes_of_a_frame() -> None:
    assert stream([(b"head", b"body")]) == b"\4\0\0\0\4\0\0\0headbody"
    assert stream([(b"head", b"")]) == b"\4\0\0\0\0\0\0\0head"


@given(FRAMES)
def test_byte_by_byte(frames: list[tuple[bytes, bytes]]) -> None:
    decoder = FrameDecoder(SMALL)
    assert list(feed(decoder, stream(frames), iter(lambda: 1, 0))) == frames
    assert not decoder.in_frame


@given(FRAMES, st.randoms(use_true_random=False))
def test_cut_anyhow(frames: list[tuple[bytes, bytes]], chance: random.Random) -> None:
    sizes = iter(lambda: chance.randint(1, 60), 0)
    assert list(feed(FrameDecoder(SMALL), stream(frames), sizes)) == frames


def test_split_at_every_place() -> None:
    frames = [(b"one", b"first"), (b"two", b""), (b"three", b"third")]
    data = stream(frames)
    borders = {len(stream(frames[:count])) for count in range(4)}
    for place in range(len(data) + 1):
        decoder = FrameDecoder(SMALL)
        before = list(feed(decoder, data[:place]))
        assert decoder.in_frame == (place not in borders)
        assert before + list(feed(decoder, data[place:])) == frames


def test_a_frame_is_given_as_soon_as_it_is_there() -> None:
    decoder = FrameDecoder(SMALL)
    data = stream([(b"head", b"body"), (b"h", b"")])
    sizes = iter(lambda: 1, 0)
    assert list(feed(decoder, data[:15], sizes)) == []
    assert list(feed(decoder, data[15:16], sizes)) == [(b"head", b"body")]
    assert list(feed(decoder, data[16:24], sizes)) == []
    assert list(feed(decoder, data[24:], sizes)) == [(b"h", b"")]


def test_what_was_given_does_not_change_when_more_comes() -> None:
    decoder = FrameDecoder(SMALL)
    frames = list(feed(decoder, stream([(b"one", b"first"), (b"two", b"other")])))
    assert frames == [(b"one", b"first"), (b"two", b"other")]
    assert isinstance(frames[0].head, bytes), "it may be kept, and be the key of a dict"


def test_it_asks_for_no_byte_of_the_next_frame() -> None:
    """Otherwise limits that change between two frames would come too late for bytes that have been read."""
    decoder = FrameDecoder(SMALL)
    asked = []
    for byte in stream([(b"head", b"body")]):
        asked.append(len(decoder.buffer()))
        decoder.buffer()[0] = byte
        decoder.advance(1)
    assert asked == [*range(8, 0, -1), *range(4, 0, -1), *range(4, 0, -1)]


def test_over_a_real_socket() -> None:
    chance = random.Random(4)
    frames = [(chance.randbytes(size + 1), chance.randbytes(size * 1000)) for size in (0, 1, 100, 3000, 7, 0)]
    left, right = socket.socketpair()
    with left, right:
        right.settimeout(30)
        sender = threading.Thread(target=left.sendall, args=[stream(frames)])
        sender.start()
        decoder, found = FrameDecoder(FULL), []
        while len(found) < len(frames):
            frame = decoder.advance(right.recv_into(decoder.buffer()))
            if frame is not None:
                found.append(frame)
        sender.join()
    assert found == frames


# -- limits --


@pytest.mark.parametrize(
    ("limits", "head_bytes", "body_bytes"),
    [
        (GREETING, MAX_GREETING_BYTES, 0),
        (FULL, MAX_HEAD_BYTES, 0),
        (FULL, 1, MAX_BODY_BYTES),
        (SMALL, 40, 90),
        (SMALL, 1, 90),
        (SMALL, 40, 0),
    ],
)
def test_at_the_limit(limits: Limits, head_bytes: int, body_bytes: int) -> None:
    decoder = FrameDecoder(limits)
    assert list(feed(decoder, prefix(head_bytes, body_bytes))) == []
    assert decoder.in_frame
    body = bytes(min(body_bytes, 2**22))  # whoever wants 144 MiB gets there as well as with 4
    list(feed(decoder, bytes(head_bytes) + body))
    assert decoder.in_frame == (len(body) < body_bytes)


@pytest.mark.parametrize(
    ("limits", "head_bytes", "body_bytes", "sentence"),
    [
        (GREETING, MAX_GREETING_BYTES + 1, 0, "head of 513 bytes is not between 1 and 512"),
        (GREETING, 1, 1, "body of 1 bytes is over the limit of 0"),
        (FULL, MAX_HEAD_BYTES + 1, 0, "not between 1 and 2097152"),
        (FULL, 1, MAX_BODY_BYTES + 1, f"over the limit of {MAX_BODY_BYTES}"),
        (FULL, 0, 0, "head of 0 bytes"),
        (FULL, 0, 5, "head of 0 bytes"),
        (FULL, 2**32 - 1, 2**32 - 1, "head of 4294967295"),
        (SMALL, 41, 0, "not between 1 and 40"),
        (SMALL, 1, 91, "over the limit of 90"),
    ],
)
def test_beyond_the_limit(limits: Limits, head_bytes: int, body_bytes: int, sentence: str) -> None:
    decoder = FrameDecoder(limits)
    with pytest.raises(ProtocolError, match=sentence):
        list(feed(decoder, prefix(head_bytes, body_bytes)))
    for _ in range(2):
        with pytest.raises(ProtocolError, match=sentence):
            decoder.buffer()  # nothing can come behind it
        with pytest.raises(ProtocolError, match=sentence):
            decoder.advance(1)


@pytest.mark.parametrize(
    "greeting", [b"GET / HTTP/1.1\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n", b"\x16\x03\x01\x02\0"]
)
def test_other_protocols_are_noticed_by_their_first_bytes(greeting: bytes) -> None:
    with pytest.raises(ProtocolError, match="the peer does not speak this protocol"):
        list(feed(FrameDecoder(), greeting.ljust(8, b"\0")))


def test_limits_may_change_between_two_frames() -> None:
    decoder = FrameDecoder()
    assert list(feed(decoder, stream([(b"hello", b"")]))) == [(b"hello", b"")]
    decoder.limits = SMALL
    assert list(feed(decoder, stream([(b"block", b"bulk")]))) == [(b"block", b"bulk")]
    decoder.limits = GREETING
    with pytest.raises(ProtocolError):
        list(feed(decoder, stream([(b"block", b"bulk")])))


@pytest.mark.parametrize(
    ("head_bytes", "body_bytes"), [(0, 0), (MAX_HEAD_BYTES + 1, 0), (1, MAX_BODY_BYTES + 1)]
)
def test_nothing_is_said_that_nobody_would_accept(head_bytes: int, body_bytes: int) -> None:
    with pytest.raises(InvalidArgumentError, match=r"shorten names or attributes, or ask for less at once"):
        frame_bytes(bytes(head_bytes), body_bytes)
    assert frame_bytes(b"h", MAX_BODY_BYTES) == prefix(1, MAX_BODY_BYTES) + b"h"
    assert len(frame_bytes(bytes(MAX_HEAD_BYTES))) == 8 + MAX_HEAD_BYTES


# -- memory --


def test_who_only_announces_a_large_body_gets_little_memory() -> None:
    def announce() -> None:
        decoder = FrameDecoder(FULL)
        list(feed(decoder, prefix(1, MAX_BODY_BYTES) + b"h"))
        assert decoder.buffer()

    assert peak_bytes(announce) < 1.1 * 2**20


@pytest.mark.parametrize("piece_bytes", [2**14, 2**20 - 1, 2**20, 2**23])
def test_memory_is_taken_as_bytes_arrive(piece_bytes: int) -> None:
    """Twice what has come, and once more what is added."""
    body = random.Random(piece_bytes).randbytes(9 * 2**20 + 5)
    arrived = 6 * 2**20

    def receive(count: int) -> list[Frame]:
        decoder = FrameDecoder(FULL)
        sizes = iter(lambda: piece_bytes, 0)
        return list(feed(decoder, prefix(1, len(body)) + b"h" + body[:count], sizes))

    assert peak_bytes(lambda: receive(arrived)) < 3.1 * arrived + len(body)
    assert receive(len(body)) == [(b"h", body)]


def test_a_buffer_is_good_until_the_next_bytes() -> None:
    decoder = FrameDecoder(SMALL)
    buffer = decoder.buffer()
    decoder.advance(1)
    with pytest.raises(ValueError, match="released"):
        len(buffer)


# -- garbage --


def test_random_bytes() -> None:
    chance = random.Random(random.randrange(2**32))
    refused = 0
    for _ in range(soak(3000, 1_000_000)):
        limits = chance.choice([GREETING, SMALL, FULL])
        data = bytearray(chance.randbytes(chance.randrange(100)))
        for place in range(2, min(8, len(data)), 4):  # sizes that may be right
            data[place : place + 2] = b"\0\0" if chance.random() < 0.8 else data[place : place + 2]
        try:
            for head, body in feed(FrameDecoder(limits), bytes(data)):
                assert 0 < len(head) <= limits.head_bytes
                assert len(body) <= limits.body_bytes
        except ProtocolError:
            refused += 1
    assert refused
