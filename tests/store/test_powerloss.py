"""Power cuts: a model of what they may leave, and the real thing on a file system that is shut down."""

import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from unittest import mock

import pytest

from py_chronolog_client.engine.base import Writer, WriterOptions
from py_chronolog_client.engine.embedded import EmbeddedEngine
from py_chronolog_client.errors import ChronoLogError
from py_chronolog_client.store import journal, owner, segment
from py_chronolog_client.store.stretch import BlockStretch
from py_chronolog_client.testing.manual_clock import ManualClock
from tests.store import independent, reading
from tests.store.powermodel import PowerModel
from tests.support import processes
from tests.support.counts import soak

ANOTHER_BOOT = b"\x5a" * 16
SMALL_CAPACITY = journal.RESERVE_EVENTS + 24
SMALL_BYTES = 4096 + 16 * SMALL_CAPACITY + journal.RESERVE_BYTES + 8192
SEED = random.SystemRandom().randrange(2**32)


class Job:
    """Clients that write to a story step by step, all of it with durability "node".

    Attributes:
        truth: everything that was ever logged.
        promised: what a flush said is on the device.
    """

    def __init__(self, store: pathlib.Path, model: PowerModel, chance: random.Random) -> None:
        self._model = model
        self._chance = chance
        self._clock = ManualClock(1_000)
        self._engine = EmbeddedEngine(store)
        self._engine.create_chronicle(reading.CHRONICLE, {})
        self._writers: dict[int, Writer] = {}
        self._rows: dict[int, list[independent.Row]] = {}
        self.truth: set[independent.Row] = set()
        self.promised: set[independent.Row] = set()

    def open(self, client_id: int) -> None:
        options = WriterOptions(
            client_id, self._clock, "node", first_sequence=len(self._rows.setdefault(client_id, []))
        )
        self._writers[client_id] = self._engine.open_writer(reading.CHRONICLE, reading.STORY, {}, options)

    def step(self, client_id: int) -> None:
        chance, writer, rows = self._chance, self._writers[client_id], self._rows[client_id]
        self._clock.now_ns += chance.randrange(3)
        action = chance.choices(["log", "batch", "large", "flush", "fail", "back"], [8, 3, 1, 3, 1, 1])[0]
        records: list[str | bytes] = []
        if action == "log":
            records = [chance.randbytes(chance.choice([0, 1, 30, 300, 5000]))]
            time_ns = writer.log_event(records[0])
        elif action in ("batch", "large"):
            count, size = chance.choice(
                [(3, 400), (30, 3), (500, 1), (2, 9000)] if action == "batch" else [(3, 30_000)]
            )
            records = [chance.randbytes(size) for _ in range(count)]
            time_ns = writer.log_events(records)
        if records:
            assert time_ns
        for record in records:
            assert isinstance(record, bytes)
            rows.append((time_ns, client_id, len(rows), record))
            self.truth.add(rows[-1])
        if action == "fail":
            self._model.fail_next_sync()
        if action in ("flush", "fail"):
            self.promised.update(rows[: writer.flush()])
        if action == "back" and rows:  # a client that wrote nothing comes back as another one
            writer.close()
            self.promised.update(rows)
            self.open(client_id)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._engine.close()


def check(store: pathlib.Path, job: Job, context: str) -> None:
    """Replay what a power cut has left, on a machine that was booted since."""
    with mock.patch.object(owner, "boot_id", lambda: ANOTHER_BOOT):
        try:
            found = reading.replay(store)
        except ChronoLogError as error:
            assert not job.promised, f"{error!r}, {context}"
            return
    rows = set(found.rows)
    assert len(rows) == len(found.rows), f"an event twice, {context}"
    wrong = rows - job.truth
    assert not wrong, f"torn: {sorted(wrong)[:2]}, {context}"
    lost = job.promised - rows
    assert not lost, f"{len(lost)} promised events are gone, for instance {sorted(lost)[:1]}, {context}"


def cut_power_often(directory: pathlib.Path, seed: int, steps: int, cuts: int) -> int:
    """Write for `steps` steps and look at `cuts` things that a power cut may leave after each; return how many."""
    chance = random.Random(seed)
    watched = directory / "watched"
    watched.mkdir()
    model, number = PowerModel(watched), 0
    with (
        mock.patch.object(journal, "TAIL_CAPACITY", SMALL_CAPACITY),
        mock.patch.object(journal, "TAIL_BYTES", SMALL_BYTES),
        model.watching(),
    ):
        job = Job(watched / "store", model, chance)
        try:
            for client_id in (1, 2):
                job.open(client_id)
            for step in range(steps):
                job.step(chance.choice([1, 2]))
                model.observe()
                exhaustive = 2 ** model.uncertain_pages()
                for cut in range(min(cuts, exhaustive)):
                    left = directory / "left"
                    model.leave(left, random.Random(f"{seed} {step} {cut}"))
                    check(left / "store", job, f"seed {seed}, step {step}, cut {cut}")
                    shutil.rmtree(left)
                    number += 1
        finally:
            job.close()
            model.close()
    assert model.syncs > 5
    assert job.promised
    return number


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("round_number", range(soak(3, 20)))
def test_whatever_a_power_cut_leaves(tmp_path: pathlib.Path, round_number: int) -> None:
    assert cut_power_often(tmp_path, SEED + round_number, steps=soak(60, 100), cuts=soak(8, 20)) > 100


def trust_again(failed: segment.Segment, end: int) -> tuple[segment.Segment, int]:
    """Go on in a segment whose sync has failed."""
    failed._failed = False
    return failed, end


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "name", "replacement"),
    [
        (os, "fdatasync", lambda descriptor: None),
        (segment, "sync_directory", lambda directory: None),
        (BlockStretch, "check", lambda self: None),
        (segment.Segment, "successor", lambda self, end, is_wanted: trust_again(self, end)),
    ],
    ids=[
        "no fdatasync",
        "no sync of names",
        "no checksum of records",
        "a failed sync is believed the second time",
    ],
)
def test_the_model_notices(tmp_path: pathlib.Path, target: object, name: str, replacement: object) -> None:
    """Mutations that must turn the test above red, in a few rounds at most."""

    @contextmanager
    def broken() -> Iterator[None]:
        with mock.patch.object(target, name, replacement):
            yield

    watching = PowerModel.watching

    @contextmanager
    def watching_first(self: PowerModel) -> Iterator[None]:
        with watching(self), broken():
            yield

    with mock.patch.object(PowerModel, "watching", watching_first):
        for round_number in range(20):
            directory = tmp_path / str(round_number)
            directory.mkdir()
            try:
                cut_power_often(directory, SEED + round_number, steps=60, cuts=6)
            except AssertionError as error:
                assert any(word in str(error) for word in ("torn", "gone", "does not exist")), error
                return
    pytest.fail(f"nothing was noticed, seed {SEED}")


def test_a_tail_of_another_boot_is_counted_and_left_out(tmp_path: pathlib.Path) -> None:
    engine = EmbeddedEngine(tmp_path / "store")
    engine.create_chronicle(reading.CHRONICLE, {})
    writer = engine.open_writer(
        reading.CHRONICLE, reading.STORY, {}, WriterOptions(1, ManualClock(5), "node")
    )
    writer.log_event("on the device")
    assert writer.flush() == 1
    writer.log_event("in memory")
    with mock.patch.object(owner, "boot_id", lambda: ANOTHER_BOOT):
        found = reading.replay(tmp_path / "store")
        assert [row[3] for row in found.rows] == [b"on the device"]
        assert (found.report.disbelieved, found.report.missing, found.report.damages) == (1, 0, [])
        with mock.patch.dict(os.environ, {"CHRONOLOG_TRUST_TAILS": "1"}):
            found = reading.replay(tmp_path / "store")
            assert [row[3] for row in found.rows] == [b"on the device", b"in memory"]
            assert found.report.disbelieved == 0
    assert len(reading.replay(tmp_path / "store").rows) == 2
    writer.close()


# -- the real thing --

PROGRAM = pathlib.Path(__file__).with_name("programs") / "powercut.py"


@cache
def power_cut_problem() -> str | None:
    """Return why no power can be cut here, or None if it can."""
    if os.geteuid() != 0:
        return "only root may mount a loop device and shut its file system down"
    for command in ("unshare", "mount", "mkfs.ext4"):
        if not shutil.which(command):
            return f"there is no {command}: install util-linux and e2fsprogs"
    with tempfile.TemporaryDirectory() as directory:
        try:
            done = run_power_cuts(pathlib.Path(directory), 0, 0)
        except processes.RunTimeoutError:
            return "mounting a loop device does not come to an end here"
    return (
        None
        if done.returncode == 0
        else f"a loop device cannot be mounted here: {done.stderr.strip()[-200:]}"
    )


def run_power_cuts(
    directory: pathlib.Path, cycles: int, seed: int, *defects: str
) -> subprocess.CompletedProcess[str]:
    arguments = map(str, (PROGRAM, directory, cycles, seed, *defects))
    return processes.run(["unshare", "--mount", sys.executable, *arguments], timeout=60 + 5 * cycles)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_real_power_cuts(tmp_path: pathlib.Path) -> None:
    """The ioctl that shuts a file system down drops everything that was not synced, as a power cut does."""
    if problem := power_cut_problem():
        pytest.skip(problem)
    cycles = soak(5, 50)
    done = run_power_cuts(tmp_path, cycles, SEED)
    assert done.returncode == 0, f"seed {SEED}: {processes.describe(done)}"
    assert done.stdout.count("promised") == cycles, done.stdout
    assert not pathlib.Path(tmp_path / "mounted" / "store").exists(), "the mount is private"


@pytest.mark.slow
def test_real_power_cuts_notice_that_nothing_is_synced(tmp_path: pathlib.Path) -> None:
    if problem := power_cut_problem():
        pytest.skip(problem)
    done = run_power_cuts(tmp_path, 20, SEED, "nosync")
    assert done.returncode != 0, done.stdout
    assert "were promised" in done.stderr, f"seed {SEED}: {processes.describe(done)}"
