"""Make the golden store of a format: `python -m tests.golden.make FORMAT DIRECTORY`; of a deployment with FORMAT 0.

What it makes must stay readable for ever, so `tests/golden/v1`, `v2` and `deployment` were made once and are never made
again; tests compare what this program makes today with them, byte by byte. A new format gets a directory of its own.

All formats hold the same events. In that of format 2, the first part of client 1 is in a chunk. In the deployment, the first
events of both clients were handed over from a keeper's store to a grapher's, where the very first have expired; client 1 has
left a stub at the keeper and come back to it.
"""

import contextlib
import itertools
import pathlib
import sys
import tempfile
from collections.abc import Iterator
from unittest import mock

from py_chronolog_client.clock import ClockModel
from py_chronolog_client.engine.base import WriterOptions
from py_chronolog_client.engine.embedded import EmbeddedEngine
from py_chronolog_client.store import files as files_module
from py_chronolog_client.store import owner
from py_chronolog_client.store.catalog import Catalog
from py_chronolog_client.store.compaction import compact
from py_chronolog_client.store.deposit import Deposits
from py_chronolog_client.store.format import TAIL_OPEN, TAIL_STATE_OFFSET, TailHeader, TailState
from py_chronolog_client.store.handover import sealed
from py_chronolog_client.store.intake import Intake
from py_chronolog_client.store.outbox import Outbox
from py_chronolog_client.store.retention import expire
from py_chronolog_client.store.root import StoreRoot
from py_chronolog_client.testing.manual_clock import ManualClock

STORES = {version: pathlib.Path(__file__).with_name(f"v{version}") for version in (1, 2)}
GOLDEN = STORES[1]
DEPLOYMENT = pathlib.Path(__file__).with_name("deployment")
CHRONICLE, STORY = "golden/chronicle", "störy . 1"
BOOT_ID = bytes.fromhex("11111111222243338444555555555555")
CREATED_NS = 1_700_000_000_000_000_000
PROCESS = {
    "host": "node-17",
    "boot_id": "11111111-2222-4333-8444-555555555555",
    "pid_namespace": "pid:[4026531836]",
    "pid": 4711,
    "pid_start": 815,
    "uid": 1000,
    "user": "ada",
    "program": "simulation",
}
MODEL = ClockModel(
    model_id=3, base_ns=10, offset_ns=CREATED_NS - 10, rate=1e-6, window_ns=250, window_rate=1e-9
)

FIRST = [
    (CREATED_NS + 1, b"start"),
    (CREATED_NS + 1, b""),
    (CREATED_NS + 5, "naïve — text".encode()),
    (CREATED_NS + 5, b"\0\xff\x80 no text\0"),
    (CREATED_NS + 9, b"a batch"),
    (CREATED_NS + 9, b"of two"),
    (CREATED_NS + 20, b"after a pause"),
]
"""Events of client 1, who released the story, came back for the last one and released it again."""
SECOND = [(CREATED_NS + 3, b"second"), (CREATED_NS + 5, b"of the second"), (CREATED_NS + 2000, b"x" * 300)]
"""Events of client 2 that are in blocks; it began at 2**32 - 2."""
SECOND_TAIL = [(CREATED_NS + 2001, b"newest"), (CREATED_NS + 2**40, b"the very newest")]
"""Events of client 2 that its death left in its tail."""
SECOND_BEGIN = 2**32 - 2


def rows(*, with_tail: bool) -> list[tuple[int, int, int, bytes]]:
    """Return what a replay of the golden store delivers."""
    second = SECOND + (SECOND_TAIL if with_tail else [])
    return sorted(
        [(time, 1, number, record) for number, (time, record) in enumerate(FIRST)]
        + [(time, 2, number, record) for number, (time, record) in enumerate(second, SECOND_BEGIN)]
    )


def make(directory: pathlib.Path, version: int = 1) -> None:
    """Make the store of a format."""
    with _as_then():
        engine = EmbeddedEngine(directory, new_format=version)
        engine.create_chronicle(CHRONICLE, {"tier": "gold"})
        clock = ManualClock(CREATED_NS, MODEL)
        first = engine.open_writer(
            CHRONICLE, STORY, {"ünicode": "😀"}, WriterOptions(1, clock, description={"rank": 0})
        )
        for time_ns, record in FIRST[:4]:
            clock.now_ns = time_ns
            first.log_event(record)
            if record == b"":
                first.flush()
        clock.now_ns = FIRST[4][0]
        first.log_events([record for _, record in FIRST[4:6]])
        first.close()
        if version >= 2:
            with _as_then(2**64):
                compact(StoreRoot.open(directory, create=False), engine.story_directory(CHRONICLE, STORY))
        clock.now_ns = FIRST[6][0]
        first = engine.open_writer(CHRONICLE, STORY, {}, WriterOptions(1, clock, first_sequence=6))
        first.log_event(FIRST[6][1])
        first.close()

        options = WriterOptions(2, clock, description={"rank": 1, "job": "4242"}, first_sequence=SECOND_BEGIN)
        clock.now_ns = 0
        second = engine.open_writer(CHRONICLE, STORY, {}, options)
        for time_ns, record in SECOND:
            clock.now_ns = time_ns
            second.log_event(record)
            second.flush()
        (segment,) = directory.glob(f"chronicles/*/stories/*/{2:016x}.log")
        data = segment.read_bytes()
        second.close()
        engine.close()
        segment.write_bytes(data)  # as its death leaves it: without a close record, with a tail
        _write_tail(segment.with_suffix(".tail"))
        engine = EmbeddedEngine(directory)
        engine.create_chronicle("empty", {})
        engine.close()


@contextlib.contextmanager
def _as_then(first_name: int = 0) -> Iterator[None]:
    """Let all that depends on time, process or chance be what it was then."""
    numbers = itertools.count(first_name)
    with (
        mock.patch.object(owner, "describe_process", lambda: PROCESS),
        mock.patch.object(owner, "boot_id", lambda: BOOT_ID),
        mock.patch.dict(Catalog.__init__.__kwdefaults__, clock_ns=lambda: CREATED_NS),
        mock.patch.object(files_module, "unique_name", lambda: f"{next(numbers):032x}"),
        mock.patch.dict("os.environ", {"CHRONOLOG_MODE": "0644"}),
    ):
        yield


def make_deployment(directory: pathlib.Path) -> None:
    """Make the stores of a keeper and a grapher."""
    directory.mkdir()
    with _as_then(), tempfile.TemporaryDirectory() as spool:
        engine, clock = EmbeddedEngine(pathlib.Path(spool) / "spool"), ManualClock(CREATED_NS, MODEL)
        engine.create_chronicle(CHRONICLE, {})
        roots = [
            StoreRoot.open(directory / name, create=True, new_format=number)
            for name, number in (("keeper", 1), ("grapher", 2))
        ]
        stories = []
        for root in roots:
            Catalog(root).create_chronicle(CHRONICLE, {})
            stories.append(Catalog(root).ensure_story(CHRONICLE, STORY, {"uid": "3"}))
        deposits = Deposits(roots[1], stories[1])

        def log(
            client_id: int, events: list[tuple[int, bytes]], first: int, *, leaves: bool, seals: bool
        ) -> None:
            """Let a client come, log and perhaps leave; ship it, perhaps seal it and hand over what that gives."""
            clock.now_ns = events[0][0]
            options = WriterOptions(client_id, clock, description={"rank": client_id}, first_sequence=first)
            writer = engine.open_writer(CHRONICLE, STORY, {}, options)
            for clock.now_ns, record in events:
                writer.log_event(record)
            writer.flush()
            intake = Intake(roots[0], stories[0], client_id)
            outbox = Outbox(engine.story_directory(CHRONICLE, STORY), client_id)
            if leaves:
                writer.close()
            outbox.rewind(intake.sequence, has_client=not intake.is_empty)
            while pieces := outbox.take():
                intake.append(b"".join(pieces))
            if seals:
                intake.roll()
            intake.close()
            writer.close()

        def hand_over() -> None:
            for part in sealed(stories[0]):
                deposit = deposits.open(part.client_id)
                for block in part.blocks():
                    deposit.append(block)
                deposit.publish()
                part.remove()

        log(1, FIRST[:2], 0, leaves=True, seals=True)
        hand_over()
        compact(roots[1], stories[1])
        log(2, SECOND[:1], SECOND_BEGIN, leaves=False, seals=True)
        log(1, FIRST[2:4], 2, leaves=True, seals=True)
        hand_over()
        expire(roots[1], stories[1], SECOND[0][0])
        log(1, FIRST[4:], 4, leaves=True, seals=False)
        engine.close()


def _write_tail(path: pathlib.Path) -> None:
    layout = TailHeader.layout(2, 5120, 8, BOOT_ID)
    data = bytearray(layout.tail_bytes)
    data[:80] = layout.pack()
    data[TAIL_STATE_OFFSET : TAIL_STATE_OFFSET + 64] = TailState(
        SECOND_BEGIN + len(SECOND), TAIL_OPEN, MODEL
    ).pack()
    end = layout.payload_offset
    for slot, (time_ns, record) in enumerate(SECOND_TAIL):
        data[end : end + len(record)] = record
        end += len(record)
        for column, value in ((layout.times_offset, time_ns), (layout.ends_offset, end)):
            data[column + 8 * slot : column + 8 * slot + 8] = value.to_bytes(8, "little")
    path.write_bytes(data)


def files(directory: pathlib.Path) -> dict[str, bytes]:
    """Return the files of a store: path relative to it -> bytes."""
    found = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in found}


if __name__ == "__main__":
    if sys.argv[1] == "0":
        make_deployment(pathlib.Path(sys.argv[2]))
    else:
        make(pathlib.Path(sys.argv[2]), int(sys.argv[1]))
