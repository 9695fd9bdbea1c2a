"""Clocks whose readings are over after a while: only a new model ends a block, and only the writer notices."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from py_chronolog_client.clock import TOLERANCE_NS, ClockModel, Reading
from py_chronolog_client.engine.base import WriterOptions
from py_chronolog_client.engine.embedded import EmbeddedEngine
from tests.store.writing import CHRONICLE, STORY, files, read


class DriftingClock:
    """A raw clock that loses 1 ns in 1000, kept right by offsets that are good for 1000 ns."""

    models: Sequence[ClockModel] = ()

    def __init__(self) -> None:
        self.raw_ns = 10_000
        self.asked = 0
        self.model = ClockModel(1, 10_000, 500_000, 1e-3, 40, 0.0)

    def reading(self) -> Reading:
        self.asked += 1
        offset_ns = self.model.time_at(self.raw_ns) - self.raw_ns
        return Reading(lambda: self.raw_ns, offset_ns, self.model, steady=True, until=self.raw_ns + 1_000)


def blocks(store: pathlib.Path) -> int:
    (segment,) = files(store, "*.log")
    return segment.read_bytes().count(b"CLOGBLK1")


def windows(store: pathlib.Path) -> list[int]:
    engine = EmbeddedEngine(store, create=False)
    return [int(window) for page in engine.scan(CHRONICLE, STORY) for window in page.windows_ns()]


def test_offsets_are_refreshed_without_ending_a_block(tmp_path: pathlib.Path) -> None:
    engine, clock = EmbeddedEngine(tmp_path / "store"), DriftingClock()
    engine.create_chronicle(CHRONICLE, {})
    writer = engine.open_writer(CHRONICLE, STORY, {}, WriterOptions(1, clock))
    for number in range(1_000):
        clock.raw_ns += 100
        time_ns = writer.log_event(f"{number}")
        assert abs(time_ns - clock.model.time_at(clock.raw_ns)) <= 2
    assert 90 <= clock.asked <= 110
    assert blocks(tmp_path / "store") == 1, "the client record only"
    writer.flush()
    assert blocks(tmp_path / "store") == 2
    assert set(windows(tmp_path / "store")) == {40}
    writer.close()


@pytest.mark.parametrize("rate", [1e-3, -1e-3])
@pytest.mark.parametrize("relearned", [False, True])
def test_an_offset_that_is_long_over_is_used_for_nothing(
    tmp_path: pathlib.Path, rate: float, relearned: bool
) -> None:
    engine, clock = EmbeddedEngine(tmp_path / "store"), DriftingClock()
    clock.model = replace(clock.model, rate=rate)
    engine.create_chronicle(CHRONICLE, {})
    writer = engine.open_writer(CHRONICLE, STORY, {}, WriterOptions(1, clock))
    writer.log_event("before a long pause")
    clock.raw_ns += 10**9
    if relearned:
        clock.model = replace(clock.model, model_id=2, window_ns=50)
    for call in (writer.log_event, lambda record: writer.log_events([record])):
        time_ns = call("behind it")
        assert abs(time_ns - clock.model.time_at(clock.raw_ns)) <= 2
        clock.raw_ns += 10**9
    writer.close()
    assert windows(tmp_path / "store") == ([40, 50, 50] if relearned else [40] * 3)


def test_a_new_model_ends_the_block_and_a_step_back_is_part_of_the_window(tmp_path: pathlib.Path) -> None:
    engine, clock = EmbeddedEngine(tmp_path / "store"), DriftingClock()
    engine.create_chronicle(CHRONICLE, {})
    writer = engine.open_writer(CHRONICLE, STORY, {}, WriterOptions(1, clock))
    before_ns = writer.log_event("before")
    clock.raw_ns += 2_000
    clock.model = replace(clock.model, model_id=2, offset_ns=clock.model.offset_ns - 7_000)
    true_ns = clock.model.time_at(clock.raw_ns)
    stood_ns = writer.log_event("at the step")
    assert stood_ns == before_ns + 1_000 > true_ns, (
        "the last time by the old model, as the new one would go back"
    )
    assert blocks(tmp_path / "store") == 2
    clock.raw_ns += 900
    assert writer.log_event("it stands still") == stood_ns
    clock.raw_ns += 9_000
    after_ns = writer.log_event("it goes on")
    assert abs(after_ns - clock.model.time_at(clock.raw_ns)) <= 2
    writer.flush()
    assert blocks(tmp_path / "store") == 4
    assert windows(tmp_path / "store") == [40, *[40 + stood_ns - true_ns] * 2, 40]
    writer.close()


def test_a_window_is_not_wider_than_the_time_stood_still(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, clock = EmbeddedEngine(tmp_path / "store"), DriftingClock()
    engine.create_chronicle(CHRONICLE, {})
    writer = engine.open_writer(CHRONICLE, STORY, {}, WriterOptions(1, clock))
    writer.log_event("ahead")
    clock.raw_ns += 2_000
    clock.model = replace(clock.model, model_id=2, offset_ns=clock.model.offset_ns - 7_000)
    writer.log_event("it stands still")
    clock.raw_ns += 20_000
    with full_disk(monkeypatch):
        writer.log_event("it goes on, and there is no room to say so")
    writer.flush()
    clock.raw_ns += 10**6
    for number in range(100):
        clock.raw_ns += 300
        writer.log_event(f"{number}")
    writer.flush()
    assert windows(tmp_path / "store")[3:] == [40] * 100
    assert blocks(tmp_path / "store") == 4, "the client record, and three models"
    writer.close()


def test_events_of_a_client_that_never_noted_its_models_are_aligned_by_those_of_its_blocks(
    tmp_path: pathlib.Path,
) -> None:
    engine, clock = EmbeddedEngine(tmp_path / "store"), DriftingClock()
    clock.model = ClockModel(1, 10_000, 500_000, 0.0, 40, 1e-6)
    engine.create_chronicle(CHRONICLE, {})
    writer = engine.open_writer(CHRONICLE, STORY, {}, WriterOptions(1, clock))
    clock.raw_ns = 10_500
    logged_ns = writer.log_event("half way to the second synchronisation")
    clock.raw_ns = 12_000
    clock.model = ClockModel(2, 11_000, 500_020, 0.0, 40, 1e-6)
    writer.log_event("behind it")
    (page,) = engine.scan(CHRONICLE, STORY, aligned=True)
    assert page.times.tolist() == [logged_ns, 512_020]
    assert page.keys.tolist() == [logged_ns + 10, 512_020]
    assert all(40 <= window <= 43 for window in page.windows_ns().tolist())
    writer.close()


@contextlib.contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Refuse every write of the store, as a file system without room does."""

    def full(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    full.__globals__["__name__"], name = "py_chronolog_client.store.device", full.__globals__["__name__"]
    try:
        with monkeypatch.context() as patched:
            patched.setattr(os, "pwritev", full)
            yield
    finally:
        full.__globals__["__name__"] = name


def test_on_a_full_disk_the_old_reading_goes_on(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, clock = EmbeddedEngine(tmp_path / "store"), DriftingClock()
    engine.create_chronicle(CHRONICLE, {})
    writer = engine.open_writer(CHRONICLE, STORY, {}, WriterOptions(1, clock))
    returned = [writer.log_event("before")]
    clock.model = replace(clock.model, model_id=2, window_ns=5)
    with full_disk(monkeypatch):
        clock.raw_ns += 2_000
        returned.append(writer.log_event("while it is full"))
    assert all(returned)
    assert dict(writer.statistics().lost) == {}
    writer.close()
    found = read(tmp_path / "store")
    assert [event.record for event in found] == [b"before", b"while it is full"]


@pytest.mark.parametrize("rate", [1e-3, -1e-3])
def test_on_a_full_disk_the_old_offset_is_not_used_for_ever(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, rate: float
) -> None:
    engine, clock = EmbeddedEngine(tmp_path / "store"), DriftingClock()
    old = clock.model = replace(clock.model, rate=rate)
    engine.create_chronicle(CHRONICLE, {})
    writer = engine.open_writer(CHRONICLE, STORY, {}, WriterOptions(1, clock))
    writer.log_event("before")
    clock.model = replace(clock.model, model_id=2, rate=0.0, window_ns=5)
    with full_disk(monkeypatch):
        for number in range(50):
            clock.raw_ns += 700_000
            time_ns = writer.log_event(f"{number}")
            assert abs(time_ns - old.time_at(clock.raw_ns)) <= TOLERANCE_NS + 2, number
    assert dict(writer.statistics().lost) == {}
    writer.close()
    assert windows(tmp_path / "store") == [40] * 51, "those of the model under which the times were made"
