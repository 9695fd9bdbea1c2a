"""Damaged, cut and foreign files: never a wrong event, never a crash, and damage costs only what it touches."""

import json
import os
import pathlib
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import textwrap
import time
import zlib
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import py_chronolog_client as chronolog
from py_chronolog_client.engine.embedded import EmbeddedEngine
from py_chronolog_client.errors import DamageError, NotFoundError, StoreError
from py_chronolog_client.store import blocks, owner
from tests.store import independent, reading
from tests.support import processes
from tests.support.counts import soak

BLOCKS = [
    [(10, b"one"), (10, b""), (12, b"three \0")],
    [(12, b"four"), (13, "fünf".encode())],
    [(20, b"six" * 30)],
]
"""The events of client 1, which is damaged."""
OTHER = [(11, b"other"), (12, b"another")]
"""Events of client 2, to which nothing may ever happen."""
NEWEST = [(21, b"seven"), (22, b""), (22, b"nine")]
"""What is in the tail of client 1, in the tests that have one."""
ALL = [event for block in BLOCKS for event in block]
ROWS = reading.rows(1, 0, ALL)
OTHER_ROWS = reading.rows(2, 0, OTHER)
SEGMENT = reading.closed(1, BLOCKS)
UNCLOSED = SEGMENT[: -len(independent.close_record(1, len(ALL)))]
TAIL = bytes(independent.tail(1, len(ALL), NEWEST, owner.boot_id(), capacity=4, tail_bytes=4096 + 64 + 16))
SEED = random.SystemRandom().randrange(2**32)


def bounds(segment: bytes) -> list[tuple[int, int]]:
    """Return where the blocks of a segment begin and end."""
    found, offset = [], 0
    while offset < len(segment):
        _, end = independent.read_block(segment, offset)
        found.append((offset, end))
        offset = end
    return found


BOUNDS = bounds(SEGMENT)
"""The client record, three blocks of events, the close record."""


@pytest.fixture
def store(tmp_path: pathlib.Path) -> pathlib.Path:
    return make_store(tmp_path / "store")


def make_store(path: pathlib.Path) -> pathlib.Path:
    """Make a store with two closed clients."""
    directory = reading.make_story(path)
    reading.segment(directory, 1).write_bytes(SEGMENT)
    reading.segment(directory, 2).write_bytes(reading.closed(2, [OTHER]))
    return path


def story(store: pathlib.Path) -> pathlib.Path:
    (directory,) = store.glob("chronicles/*/stories/*")
    return directory


def own(found: reading.Found) -> list[independent.Row]:
    """Return what is there of client 1, after making sure that client 2 is complete."""
    assert [row for row in found.rows if row[1] != 1] == OTHER_ROWS, "another client suffers"
    return [row for row in found.rows if row[1] == 1]


def sample(count: int, reduced: int) -> list[int]:
    """Return all numbers below `count` in soak, else some of them, chosen anew each time."""
    if soak(0, 1) or count <= reduced:
        return list(range(count))
    return sorted(random.Random(SEED).sample(range(count), reduced))


def survivors(lost: set[int], blocks: list[list[tuple[int, bytes]]] = BLOCKS) -> list[independent.Row]:
    """Return the rows of the blocks that are not lost."""
    found, sequence = [], 0
    for number, events in enumerate(blocks):
        if number not in lost:
            found += reading.rows(1, sequence, events)
        sequence += len(events)
    return found


# -- one bit, in every place --


def test_any_bit_of_a_segment(store: pathlib.Path) -> None:
    path = reading.segment(story(store), 1)
    data = bytearray(SEGMENT)
    for bit in sample(8 * len(data), 1500):
        place = bit // 8
        data[place] ^= 1 << bit % 8
        path.write_bytes(data)
        data[place] ^= 1 << bit % 8
        found = reading.replay(store)
        (touched,) = (number for number, (start, stop) in enumerate(BOUNDS) if start <= place < stop)
        context = f"bit {bit % 8} of byte {place} in block {touched}, seed {SEED}"
        start, _ = BOUNDS[touched]
        size = int.from_bytes(SEGMENT[start + 48 : start + 56], "little")
        count = int.from_bytes(SEGMENT[start + 32 : start + 36], "little")
        if place >= start + 128 + 16 * count + size:
            assert own(found) == ROWS, f"the padding means nothing: {context}"
            assert found.report.damages == [], f"the padding means nothing: {context}"
            continue
        assert own(found) == survivors({touched - 1}), context
        assert found.report.damages, f"nothing is said: {context}"
        assert all(isinstance(damage, DamageError) for damage in found.report.damages)
        assert all(pathlib.Path(damage.path) == path for damage in found.report.damages), context
        if touched < len(BOUNDS) - 1:  # a damaged close record is a missing end
            assert found.places[0] == (path.name, start), context
        if 1 <= touched <= len(BLOCKS):
            assert found.report.missing == len(BLOCKS[touched - 1]), context
        else:
            assert found.report.missing == 0, context


def test_any_bit_of_a_tail(store: pathlib.Path) -> None:
    """A tail has no checksum over its events (docs/format.md says why), so only its effects are bounded."""
    directory = story(store)
    reading.segment(directory, 1).write_bytes(UNCLOSED)
    path = reading.tail(directory, 1)
    data = bytearray(TAIL)
    begin, end = 4096, len(TAIL)
    places = [*range(80), *range(256, 320), *range(begin, end)]
    in_header = set(range(8, 12)) | set(range(12, 80)) | set(range(8))
    for bit in sample(8 * len(places), 500):
        place = places[bit // 8]
        data[place] ^= 1 << bit % 8
        path.write_bytes(data)
        data[place] ^= 1 << bit % 8
        found = reading.replay(store)
        context = f"bit {bit % 8} of byte {place}, seed {SEED}"
        rows = own(found)
        if place in in_header:
            assert rows == ROWS, context
            assert found.places == [(path.name, 0)], context
        elif not 256 <= place < 264:  # all but the number of its first event
            assert [row for row in rows if row[2] < len(ALL)] == ROWS, context
            assert len(rows) <= len(ROWS) + 4, context
            if 264 <= place < 320:
                assert rows == ROWS + reading.rows(1, len(ALL), NEWEST), context
        assert len(rows) <= len(ROWS) + 4, context
        if found.report.missing:
            assert found.report.damages, context


@pytest.mark.parametrize("which", ["story", "chronicle"])
def test_any_bit_of_a_meta(store: pathlib.Path, which: str) -> None:
    directory = story(store) if which == "story" else story(store).parent.parent
    path = directory / "meta"
    data = bytearray(path.read_bytes())
    true_names = {"story": reading.STORY, "chronicle": reading.CHRONICLE}
    for bit in sample(8 * len(data), 200):
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        data[bit // 8] ^= 1 << bit % 8
        assert own(reading.replay(store)) == ROWS, "the events do not depend on it"
        engine = EmbeddedEngine(store, create=False)
        names = engine.stories(reading.CHRONICLE) if which == "story" else engine.chronicles()
        assert names in ([], [true_names[which]]), "never a wrong name"
        try:
            if which == "story":
                engine.story_attributes(reading.CHRONICLE, reading.STORY)
            else:
                engine.chronicle_attributes(reading.CHRONICLE)
        except DamageError as error:
            assert pathlib.Path(error.path) == path
            assert names == []
        engine.close()


def test_any_bit_of_the_marker(store: pathlib.Path) -> None:
    path = store / "CHRONOLOG"
    data = bytearray(path.read_bytes())
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        data[bit // 8] ^= 1 << bit % 8
        try:
            assert own(reading.replay(store)) == ROWS
        except StoreError as error:
            assert error.path == str(store), f"bit {bit}"


# -- cut off --


def test_a_segment_cut_anywhere(store: pathlib.Path) -> None:
    """A closed segment that has lost its end is noticed, except where nothing but a client's birth is left."""
    path = reading.segment(story(store), 1)
    born = BOUNDS[0][1]
    for length in range(len(SEGMENT)):
        path.write_bytes(SEGMENT[:length])
        found = reading.replay(store)
        whole = sum(stop <= length for _, stop in BOUNDS[1 : 1 + len(BLOCKS)])
        assert own(found) == survivors(set(range(whole, len(BLOCKS)))), f"cut at {length}"
        if length > born:
            (begin,) = (start for start, stop in BOUNDS if start <= length < stop)
            assert found.places == [(path.name, begin)], f"cut at {length}"
            assert "neither a close record nor a tail" in str(found.report.damages[0])
        elif length < born:
            assert found.places == [(path.name, 0)], f"cut at {length}"
        else:
            assert found.places == [], f"cut at {length}: perhaps a client that is just being made"


def test_a_segment_cut_under_a_tail(store: pathlib.Path) -> None:
    directory = story(store)
    path = reading.segment(directory, 1)
    reading.tail(directory, 1).write_bytes(TAIL)
    newest = reading.rows(1, len(ALL), NEWEST)
    for length in range(len(UNCLOSED) + 1):
        path.write_bytes(UNCLOSED[:length])
        found = reading.replay(store)
        whole = sum(stop <= length for _, stop in BOUNDS[1 : 1 + len(BLOCKS)])
        kept = survivors(set(range(whole, len(BLOCKS))))
        assert own(found) == kept + newest, f"cut at {length}"
        assert found.report.missing == len(ALL) - len(kept), f"cut at {length}"
        assert bool(found.report.damages) == (whole < len(BLOCKS)), f"cut at {length}"


def test_a_tail_cut_anywhere(store: pathlib.Path) -> None:
    directory = story(store)
    reading.segment(directory, 1).write_bytes(UNCLOSED)
    path = reading.tail(directory, 1)
    for length in [*range(330), *range(330, len(TAIL), 64), *range(len(TAIL) - 70, len(TAIL))]:
        path.write_bytes(TAIL[:length])
        found = reading.replay(store)
        assert own(found) == ROWS
        assert found.places == [(path.name, 0)], f"cut at {length}"


@pytest.mark.parametrize("name", ["meta", "CHRONOLOG"])
def test_small_files_cut_anywhere(store: pathlib.Path, name: str) -> None:
    path = store / name if name == "CHRONOLOG" else story(store) / name
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        if name == "meta":
            assert own(reading.replay(store)) == ROWS
            engine = EmbeddedEngine(store, create=False)
            assert engine.stories(reading.CHRONICLE) == []
            with pytest.raises(DamageError) as damage:
                engine.story_attributes(reading.CHRONICLE, reading.STORY)
            assert damage.value.path == str(path)
            engine.close()
            continue
        try:
            assert own(reading.replay(store)) == ROWS  # only the mode, which has a default, is gone
            assert length >= data.index(b"mode") - 1
        except StoreError as error:
            assert error.path == str(store)


# -- the wrong things in the right place --


def foreign_file(path: pathlib.Path) -> None:
    path.write_bytes(b"\x7fELF\2\1\1" + bytes(range(256)) * 20)


def empty_file(path: pathlib.Path) -> None:
    path.write_bytes(b"")


def zeros(path: pathlib.Path) -> None:
    path.write_bytes(bytes(9000))


def fifo(path: pathlib.Path) -> None:
    os.mkfifo(path)


def loop(path: pathlib.Path) -> None:
    path.symlink_to(path.name)


FOREIGN = [foreign_file, empty_file, zeros, fifo, loop, pathlib.Path.mkdir]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("make", FOREIGN, ids=lambda make: make.__name__)
@pytest.mark.parametrize("suffix", [".log", ".tail", ".1.log"])
def test_something_else_in_the_place_of(
    store: pathlib.Path, make: Callable[[pathlib.Path], None], suffix: str
) -> None:
    directory = story(store)
    if suffix == ".tail":
        reading.segment(directory, 1).write_bytes(UNCLOSED)
    path = directory / f"{1:016x}{suffix}"
    path.unlink(missing_ok=True)
    make(path)
    found = reading.replay(store)
    assert own(found) == ([] if suffix == ".log" else ROWS)
    assert found.places == [(path.name, 0)]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("make", FOREIGN, ids=lambda make: make.__name__)
@pytest.mark.parametrize("name", ["meta", "CHRONOLOG"])
def test_something_else_in_the_place_of_a_small_file(
    store: pathlib.Path, make: Callable[[pathlib.Path], None], name: str
) -> None:
    path = store / name if name == "CHRONOLOG" else story(store) / name
    path.unlink()
    make(path)
    if name == "meta":
        assert own(reading.replay(store)) == ROWS
        engine = EmbeddedEngine(store, create=False)
        assert engine.stories(reading.CHRONICLE) == []
        engine.close()
    else:
        with pytest.raises(StoreError, match=str(store)):
            reading.replay(store)


def test_names_that_mean_nothing_are_passed_over(store: pathlib.Path) -> None:
    directory = story(store)
    for name in [
        "notes.log",
        "1.log",
        f"{1:016X}.LOG",
        f"{1:016x}.01.log",
        f".{1:016x}.tail",
        f"{1:017x}.log",
        "core",
    ]:
        foreign_file(directory / name)
    found = reading.replay(store)
    assert own(found) == ROWS
    assert found.report.damages == []


def test_swapped_segments(store: pathlib.Path) -> None:
    directory = story(store)
    one, two = (reading.segment(directory, client_id) for client_id in (1, 2))
    one.rename(directory / "x")
    two.rename(one)
    (directory / "x").rename(two)
    found = reading.replay(store)
    assert found.rows == [], "no event under another client's id"
    assert sorted(found.places) == [(one.name, 0), (two.name, 0)]


def test_the_tail_of_another_client(store: pathlib.Path) -> None:
    directory = story(store)
    reading.segment(directory, 1).write_bytes(UNCLOSED)
    other = independent.tail(3, len(ALL), NEWEST, owner.boot_id())
    reading.tail(directory, 1).write_bytes(other)
    found = reading.replay(store)
    assert own(found) == ROWS
    assert found.places == [(reading.tail(directory, 1).name, 16)]
    assert "another client" in str(found.report.damages[0])


def test_the_segment_of_another_story(store: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A whole segment under its own name is believed: a store is a directory that people copy files into."""
    directory = story(store)
    reading.segment(directory, 5).write_bytes(reading.closed(5, [[(15, b"copied")]]))
    assert reading.replay(store).rows == sorted(ROWS + OTHER_ROWS + [(15, 5, 0, b"copied")])


# -- more or less than there was --

PIECES = [SEGMENT[start:stop] for start, stop in BOUNDS]
GARBAGE = [
    bytes(64),
    b"\xff" * 640,
    b"CLOGBLK1" + bytes(120),
    PIECES[1][:64],
    independent.events_block(2, 0, OTHER),
]


@pytest.mark.parametrize(
    "garbage", GARBAGE, ids=["zeros", "ones", "a magic", "half a header", "another client's block"]
)
@pytest.mark.parametrize("place", range(1, len(PIECES)))
def test_garbage_between_blocks(store: pathlib.Path, place: int, garbage: bytes) -> None:
    path = reading.segment(story(store), 1)
    front = b"".join(PIECES[:place])
    path.write_bytes(front + garbage + b"".join(PIECES[place:]))
    found = reading.replay(store)
    assert own(found) == ROWS, "nothing was lost"
    assert found.places == [(path.name, len(front))]
    assert found.report.missing == 0


@pytest.mark.parametrize("place", range(1, len(PIECES)))
def test_garbage_that_moves_the_blocks_off_their_grid_costs_them(store: pathlib.Path, place: int) -> None:
    path = reading.segment(story(store), 1)
    path.write_bytes(b"".join(PIECES[:place]) + b"\1" * 7 + b"".join(PIECES[place:]))
    found = reading.replay(store)
    assert own(found) == survivors(set(range(place - 1, len(BLOCKS))))
    assert found.report.damages


@pytest.mark.parametrize("again", [1, 2, 3])
@pytest.mark.parametrize("place", range(1, len(PIECES)))
def test_duplicated_blocks_are_taken_once(store: pathlib.Path, place: int, again: int) -> None:
    path = reading.segment(story(store), 1)
    path.write_bytes(b"".join(PIECES[:place]) + PIECES[again] + b"".join(PIECES[place:]))
    found = reading.replay(store)
    assert own(found) == ROWS
    assert found.report.damages == []


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_a_block_that_is_gone_is_a_gap(store: pathlib.Path, missing: int) -> None:
    path = reading.segment(story(store), 1)
    path.write_bytes(b"".join(piece for number, piece in enumerate(PIECES) if number != missing))
    found = reading.replay(store)
    assert own(found) == survivors({missing - 1})
    assert found.report.missing == len(BLOCKS[missing - 1])
    assert "are missing" in str(found.report.damages[0])


def test_a_shuffled_segment(store: pathlib.Path) -> None:
    path = reading.segment(story(store), 1)
    path.write_bytes(PIECES[0] + PIECES[3] + PIECES[1] + PIECES[2] + PIECES[4])
    assert own(reading.replay(store)) == ROWS


def test_a_missing_first_segment(store: pathlib.Path) -> None:
    directory = story(store)
    reading.segment(directory, 1).write_bytes(reading.closed(1, BLOCKS[:1]))
    reading.segment(directory, 1, 1).write_bytes(reading.closed(1, BLOCKS[1:], first_sequence=len(BLOCKS[0])))
    assert own(reading.replay(store)) == ROWS
    empty_file(reading.segment(directory, 1))
    found = reading.replay(store)
    assert own(found) == survivors({0})
    assert found.report.missing == len(BLOCKS[0])


# -- headers that ask for much --


def header_of(block: bytes, **fields: int) -> bytes:
    """Return a block with other numbers in its header, whose checksum holds."""
    names = "magic crc kind client first count columns payload reserved payload_bytes origin first_time last_time clock"
    values = dict(zip(names.split(), independent.BLOCK.unpack(block[:128]), strict=True))
    header = independent.BLOCK.pack(*{**values, **fields}.values())
    return header[:8] + struct.pack("<I", zlib.crc32(header[12:])) + header[12:] + block[128:]


BOMBS = [
    {"count": 2**32 - 1},
    {"count": 2**20},
    {"count": 2**20 + 1},
    {"payload_bytes": 2**64 - 1},
    {"payload_bytes": 2**27},
    {"payload_bytes": 2**63},
    {"count": 2**32 - 1, "payload_bytes": 2**64 - 1},
    {"first": 2**64 - 1},
    {"first": 2**64 - 3},
    {"first": 2**63},
    {"origin": 2**64 - 1},
    {"first_time": 2**64 - 1, "last_time": 0},
    {"count": 0, "payload_bytes": 0},
    {"count": 1},
    {"kind": 0},
    {"kind": 2},
]

BOUNDED = """
    import json, resource, sys
    from tests.store import reading
    from py_chronolog_client.store import storylog, tailcopy
    import pathlib, concurrent.futures.thread
    pages = int(open("/proc/self/statm").read().split()[0])
    limit = pages * resource.getpagesize() + int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for store in sys.argv[2:]:
        found = reading.replay(pathlib.Path(store))
        print(json.dumps([[[t, c, s, r.hex()] for t, c, s, r in found.rows], found.places, found.report.missing]))
"""


def replay_bounded(
    stores: list[pathlib.Path], room_bytes: int = 64 << 20
) -> Iterator[tuple[list, list, int]]:
    """Replay stores in a process that may use little more memory than it starts with."""
    argv = [sys.executable, "-c", textwrap.dedent(BOUNDED), str(room_bytes), *map(str, stores)]
    done = processes.run(argv, timeout=60, env={"OPENBLAS_NUM_THREADS": "1"})
    assert done.returncode == 0, processes.describe(done)
    for line in done.stdout.splitlines():
        rows, places, missing = json.loads(line)
        yield [(t, c, s, bytes.fromhex(r)) for t, c, s, r in rows], places, missing


@pytest.mark.slow
@pytest.mark.parametrize("sparse", [False, True], ids=["short", "sparse"])
def test_headers_that_ask_for_much(tmp_path: pathlib.Path, sparse: bool) -> None:
    """Also in a file that is as large as the header says, but holds nothing."""
    bombs = [bomb for bomb in BOMBS if not sparse or {"count", "payload_bytes"} & bomb.keys()]
    stores = [make_store(tmp_path / str(number)) for number in range(len(bombs))]
    for bomb, store in zip(bombs, stores, strict=True):
        path = reading.segment(story(store), 1)
        path.write_bytes(PIECES[0] + PIECES[1] + header_of(PIECES[2], **bomb) + PIECES[3] + PIECES[4])
        if sparse:
            os.truncate(path, 2**28 if bomb.get("payload_bytes") == 2**27 else 2**25)
    for bomb, (rows, places, _) in zip(bombs, replay_bounded(stores), strict=True):
        assert set(rows) <= set(ROWS + OTHER_ROWS), f"a wrong event of {bomb}"
        assert set(OTHER_ROWS) | set(survivors({1, 2})) <= set(rows), bomb
        assert places or bomb.get("kind") == 0, f"nothing is said of {bomb}"


@pytest.mark.slow
def test_tails_that_ask_for_much(tmp_path: pathlib.Path) -> None:
    changes: list[tuple[int, int]] = []  # offset of a word, value
    changes += [
        (offset, value) for offset in (24, 32, 40, 48, 56) for value in (0, 1, 2**22, 2**26, 2**63, 2**64 - 1)
    ]
    changes += [(256, value) for value in (2**63, 2**64 - 1, 2**64 - 3)]
    changes += [(4096 + 32 + 8 * slot, value) for slot in range(3) for value in (1, 4096, 2**40, 2**64 - 1)]
    stores = []
    for number, (offset, value) in enumerate(changes):
        store = make_store(tmp_path / str(number))
        reading.segment(story(store), 1).write_bytes(UNCLOSED)
        data = bytearray(TAIL)
        data[offset : offset + 8] = struct.pack("<Q", value)
        data[8:12] = struct.pack("<I", zlib.crc32(data[12:80]))
        reading.tail(story(store), 1).write_bytes(data)
        stores.append(store)
    for change, (rows, places, _) in zip(changes, replay_bounded(stores), strict=True):
        assert {row for row in rows if row[2] < len(ALL)} == set(ROWS + OTHER_ROWS), change
        assert len(rows) <= len(ROWS + OTHER_ROWS + NEWEST), change
        assert places or change[0] in (24, 48), change


@pytest.mark.slow
def test_a_long_stretch_of_garbage_is_searched_quickly(store: pathlib.Path) -> None:
    path = reading.segment(story(store), 1)
    garbage = (b"CLOGBLK1" * 8 + b"x" * 1024) * 60_000  # 65 MB with as many magics as possible
    path.write_bytes(
        PIECES[0] + PIECES[1] + garbage[: len(garbage) // 64 * 64] + PIECES[2] + PIECES[3] + PIECES[4]
    )
    began_s = time.monotonic()
    found = reading.replay(store)
    assert own(found) == ROWS
    assert len(found.report.damages) == 1
    assert time.monotonic() - began_s < 20


def test_the_search_crosses_the_borders_of_its_pieces(
    store: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "_SEARCH_BYTES", 256)
    path = reading.segment(story(store), 1)
    for length in range(64, 1024, 64):
        path.write_bytes(PIECES[0] + PIECES[1] + b"\7" * length + PIECES[2] + PIECES[3] + PIECES[4])
        found = reading.replay(store)
        assert own(found) == ROWS
        assert found.places == [(path.name, BOUNDS[2][0])]


# -- anything at all --

EDITS = st.lists(
    st.tuples(st.just("flip"), st.integers(0, 2**20), st.integers(1, 255))
    | st.tuples(st.just("cut"), st.integers(0, 2**20), st.integers(0, 300))
    | st.tuples(st.just("insert"), st.integers(0, 2**20), st.binary(max_size=200))
    | st.tuples(st.just("zero"), st.integers(0, 2**20), st.integers(0, 300))
    | st.tuples(st.just("repeat"), st.integers(0, 2**20), st.integers(0, 600)),
    min_size=1,
    max_size=6,
)


def edit(data: bytes, edits: list) -> bytes:
    for kind, where, what in edits:
        place = where % (len(data) + 1)
        if kind == "flip" and place < len(data):
            data = data[:place] + bytes([data[place] ^ what]) + data[place + 1 :]
        elif kind == "cut":
            data = data[:place] + data[place + what :]
        elif kind == "insert":
            data = data[:place] + what + data[place:]
        elif kind == "zero":
            data = data[:place] + bytes(len(data[place : place + what])) + data[place + what :]
        elif kind == "repeat":
            data = data[:place] + data[place : place + what] * 2 + data[place + what :]
    return data


@given(EDITS, st.booleans())
@settings(max_examples=soak(150, 5000))
def test_mutated_segments(edits: list, verify: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        store = make_store(pathlib.Path(name))
        reading.segment(story(store), 1).write_bytes(edit(SEGMENT, edits))
        try:
            found = reading.replay(store, verify=verify)
        except DamageError:  # of Page.records, without verify
            assert not verify
            return
        rows = own(found)
        assert set(rows) <= set(ROWS)
        assert len(rows) == len(set(rows))
        if rows and rows != ROWS:
            assert found.report.damages, "a loss that nobody hears of"


@given(EDITS)
@settings(max_examples=soak(100, 3000))
def test_mutated_tails(edits: list) -> None:
    with tempfile.TemporaryDirectory() as name:
        store = make_store(pathlib.Path(name))
        reading.segment(story(store), 1).write_bytes(UNCLOSED)
        reading.tail(story(store), 1).write_bytes(edit(TAIL, edits))
        own(reading.replay(store))


@given(st.binary(max_size=2000), st.sampled_from([".log", ".tail", ".1.log"]))
def test_any_bytes(data: bytes, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        store = make_store(pathlib.Path(name))
        (story(store) / f"{1:016x}{suffix}").write_bytes(data)
        assert own(reading.replay(store)) == ([] if suffix == ".log" else ROWS)


# -- what the API makes of it --


@pytest.fixture
def client(store: pathlib.Path) -> Iterator[chronolog.Client]:
    conf = chronolog.ClientPortalServiceConf("file", str(store), 0, 0)
    client = chronolog.Client(conf, chronolog.ClientQueryServiceConf())
    assert client.Connect() == 0
    yield client
    client.Disconnect()


def damage_payload(store: pathlib.Path, block: int = 2) -> pathlib.Path:
    path = reading.segment(story(store), 1)
    data = bytearray(path.read_bytes())
    start, _ = BOUNDS[block]
    data[start + 128 + 16 * len(BLOCKS[block - 1])] ^= 0x20
    path.write_bytes(data)
    return path


def test_replay_story_delivers_everything_else(store: pathlib.Path, client: chronolog.Client) -> None:
    path = damage_payload(store)
    series = chronolog.EventList()
    assert client.ReplayStory(reading.CHRONICLE, reading.STORY, 0, 2**64 - 1, series) == -1
    expected = sorted(survivors({1}) + OTHER_ROWS)
    assert [(e.time(), e.client_id(), e.sequence(), e.record_bytes()) for e in series] == expected
    (damage,) = series.damages
    assert client.last_error is damage
    assert (damage.path, damage.offset) == (str(path), BOUNDS[2][0])
    assert str(path) in str(damage) and str(BOUNDS[2][0]) in str(damage)
    assert "checksum of the payload" in damage.reason


def test_damages_of_several_replays_add_up_until_the_list_is_cleared(
    store: pathlib.Path, client: chronolog.Client
) -> None:
    damage_payload(store)
    series = chronolog.EventList()
    for _ in range(2):
        assert client.ReplayStory(reading.CHRONICLE, reading.STORY, 0, 100, series) == -1
    assert len(series.damages) == 2
    series.clear()
    assert series.damages == []


def test_damage_outside_of_the_range_is_nobodys_business(
    store: pathlib.Path, client: chronolog.Client
) -> None:
    damage_payload(store, 2)
    for start, end in ((0, 11), (14, 100)):
        series = chronolog.EventList()
        assert client.ReplayStory(reading.CHRONICLE, reading.STORY, start, end, series) == 0
        assert [e.time() for e in series] == [
            row[0] for row in sorted(ROWS + OTHER_ROWS) if start <= row[0] <= end
        ]


def test_another_story_is_unaffected(store: pathlib.Path, client: chronolog.Client) -> None:
    damage_payload(store)
    other = independent.make_story(store, reading.CHRONICLE, "another story")
    reading.segment(other, 1).write_bytes(SEGMENT)
    series = chronolog.EventList()
    assert client.ReplayStory(reading.CHRONICLE, "another story", 0, 2**64 - 1, series) == 0
    assert len(series) == len(ALL)


def test_pages_raise_where_records_are_fetched(store: pathlib.Path, client: chronolog.Client) -> None:
    """Without `verify` the columns of a damaged payload are delivered, and its records never."""
    damage_payload(store)
    (page,) = client.replay(reading.CHRONICLE, reading.STORY)
    rows = sorted(ROWS + OTHER_ROWS)
    assert page.times.tolist() == [row[0] for row in rows]
    with pytest.raises(DamageError, match="checksum of the payload"):
        page.records()
    lost = {row[2] for row in ROWS} - {row[2] for row in survivors({1})}
    for place, row in enumerate(rows):
        if row[1] == 1 and row[2] in lost:
            with pytest.raises(DamageError):
                page.records(place, place + 1)
        else:
            assert page.records(place, place + 1) == [row[3]]


def test_pages_say_so_at_the_end_where_columns_are_damaged(
    store: pathlib.Path, client: chronolog.Client
) -> None:
    path = reading.segment(story(store), 1)
    data = bytearray(SEGMENT)
    data[BOUNDS[2][0] + 130] ^= 1
    path.write_bytes(data)
    rows = []
    with pytest.raises(DamageError, match="index columns"):
        for page in client.replay(reading.CHRONICLE, reading.STORY):
            rows += page.sequences[page.client_ids == 1].tolist()
    assert rows == [row[2] for row in survivors({1})]


@pytest.mark.parametrize("column", ["times", "ends", "payload"])
def test_a_file_that_changes_after_its_page_was_made(
    store: pathlib.Path, client: chronolog.Client, column: str
) -> None:
    (page,) = client.replay(reading.CHRONICLE, reading.STORY)
    path = reading.segment(story(store), 1)
    start, stop = BOUNDS[1]
    at = start + 128 + {"times": 0, "ends": 24, "payload": 48}[column]
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(b"\xff" * (24 if column != "payload" else 4))
    rows = sorted(ROWS + OTHER_ROWS)
    for place, row in enumerate(rows):
        if row in survivors({1, 2}) and column != "times":
            with pytest.raises(DamageError):
                page.records(place, place + 1)
        else:
            assert page.records(place, place + 1) == [row[3]]


def test_a_file_that_is_cut_after_its_page_was_made(store: pathlib.Path, client: chronolog.Client) -> None:
    (page,) = client.replay(reading.CHRONICLE, reading.STORY)
    os.truncate(reading.segment(story(store), 1), BOUNDS[2][0] + 128)
    with pytest.raises(DamageError, match="the file ends inside the block"):
        page.records()


def test_a_story_that_is_destroyed_after_its_page_was_made(
    store: pathlib.Path, client: chronolog.Client
) -> None:
    (page,) = client.replay(reading.CHRONICLE, reading.STORY)
    assert client.DestroyStory(reading.CHRONICLE, reading.STORY) == 0
    assert page.records() == [row[3] for row in sorted(ROWS + OTHER_ROWS)]
    assert client.ReplayStory(reading.CHRONICLE, reading.STORY, 0, 1, chronolog.EventList()) == -3


def test_a_story_that_vanishes_while_a_replay_begins(
    store: pathlib.Path, client: chronolog.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    listdir = os.listdir

    def vanish(path: os.PathLike[str]) -> list[str]:
        shutil.rmtree(path, ignore_errors=True)
        return listdir(path)

    monkeypatch.setattr(os, "listdir", vanish)
    assert client.ReplayStory(reading.CHRONICLE, reading.STORY, 0, 1, chronolog.EventList()) == -3
    assert isinstance(client.last_error, NotFoundError)


# -- a device that does not answer --


@pytest.mark.parametrize("failing", ["header", "columns", "payload"])
def test_a_read_error_names_the_place(
    store: pathlib.Path, client: chronolog.Client, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = reading.segment(story(store), 1)
    inode = path.stat().st_ino
    start, _ = BOUNDS[2]
    at = start + {"header": 0, "columns": 128, "payload": 128 + 32}[failing]
    pread, preadv = os.pread, os.preadv

    def fail_at(descriptor: int, offset: int, size: int) -> None:
        if os.fstat(descriptor).st_ino == inode and offset <= at < offset + size:
            raise OSError(5, os.strerror(5))

    def failing_pread(descriptor: int, size: int, offset: int) -> bytes:
        fail_at(descriptor, offset, size)
        return pread(descriptor, size, offset)

    def failing_preadv(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        fail_at(descriptor, offset, sum(map(len, buffers)))
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "pread", failing_pread)
    monkeypatch.setattr(os, "preadv", failing_preadv)
    series = chronolog.EventList()
    assert client.ReplayStory(reading.CHRONICLE, reading.STORY, 0, 2**64 - 1, series) == -1
    assert "cannot be read: Input/output error" in str(series.damages[0])
    assert (series.damages[0].path, series.damages[0].offset) == (str(path), start)
    assert series.damages[0].__cause__ is series.damages[0].__traceback__ is None, (
        "they would keep files open"
    )
    rows = [(e.time(), e.client_id(), e.sequence(), e.record_bytes()) for e in series]
    kept = survivors({1, 2} if failing == "header" else {1})
    assert rows == sorted(kept + OTHER_ROWS), "what is behind an unreadable header cannot be found"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_segment_that_this_user_may_not_read() -> None:
    with tempfile.TemporaryDirectory() as name:
        store = make_store(pathlib.Path(name))
        for path in [store, *store.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        reading.segment(story(store), 1).chmod(0o600)
        code = f"from tests.store import reading; import pathlib; print(reading.replay(pathlib.Path({name!r})).report.damages)"
        argv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-c", code]
        if (
            shutil.which("setpriv") is None
            or subprocess.run([*argv[:4], "true"], capture_output=True).returncode  # noqa: PLW1510 - the exit code is what is tested
        ):
            pytest.skip("setpriv does not work here")
        done = processes.run(argv, timeout=30, env={"PYTHONDONTWRITEBYTECODE": "1"})
        if "PermissionError" in done.stderr or "ModuleNotFoundError" in done.stderr:
            pytest.skip("another user cannot reach this checkout")
        assert "Permission denied" in done.stdout, processes.describe(done)


def test_a_damage_that_is_kept_keeps_no_file_open(store: pathlib.Path, client: chronolog.Client) -> None:
    """An error keeps the frames through which it went, and they keep what they were working with."""
    directory = story(store)
    foreign_file(reading.tail(directory, 1))
    damage_payload(store)
    before = len(os.listdir("/proc/self/fd"))
    series = chronolog.EventList()
    assert client.ReplayStory(reading.CHRONICLE, reading.STORY, 0, 10, series) == -1
    assert series.damages
    assert client.last_error is series.damages[0]
    del series[:]
    assert len(os.listdir("/proc/self/fd")) == before
