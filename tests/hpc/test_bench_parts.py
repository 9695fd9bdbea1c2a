"""The parts of the benchmark that need no ranks: records, histogram, verification, report, progress."""

from __future__ import annotations

import io
import json
import os
from array import array
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronolog_hpc.bench import report
from chronolog_hpc.bench.baseline import Spread, open_raw
from chronolog_hpc.bench.fields import FIELDS, look_up, nest
from chronolog_hpc.bench.histogram import Histogram
from chronolog_hpc.bench.phases import TimesFile, Written, batches, rounds
from chronolog_hpc.bench.progress import Progress
from chronolog_hpc.bench.ranks import Ranks
from chronolog_hpc.bench.records import GeneratedRecords, PayloadRecords, Records, read_payload
from chronolog_hpc.bench.spec import Spec, SpecError
from chronolog_hpc.bench.verify import Attempts, Verdict, joints_out_of_order, verify
from chronolog_hpc.clientlib import Event, EventList

CLIENT = 77
SILENT = Progress(io.StringIO())


# -- records -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size_bytes", [1, 7, 36, 37, 38, 128, 4096, 70000, 200_000])
def test_generated_records_have_their_size_to_the_byte(size_bytes: int) -> None:
    records = GeneratedRecords(3, size_bytes)
    texts = records.texts(5, range(10, 20))
    assert [len(text) for text in records.encoded(5, range(10, 20))] == [size_bytes] * 10
    assert [str(text).encode() for text in texts] == records.encoded(5, range(10, 20))
    assert records.total_bytes(5, 10) == 10 * size_bytes


def test_generated_records_differ_by_seed_rank_and_number_and_are_the_same_again() -> None:
    keys = [(seed, rank) for seed in (0, 1, 2**64 - 1) for rank in (0, 1, 9999)]
    made = [text for seed, rank in keys for text in GeneratedRecords(seed, 128).texts(rank, range(500))]
    again = [text for seed, rank in keys for text in GeneratedRecords(seed, 128).texts(rank, range(500))]
    assert made == again
    assert len(set(made)) == len(made)


@given(
    st.lists(st.binary(max_size=6).filter(lambda line: b"\n" not in line), min_size=1, max_size=9),
    st.booleans(),
)
def test_payload_records_are_the_lines(lines: list[bytes], newline_at_end: bool) -> None:
    data = b"\n".join(lines) + (b"\n" if newline_at_end or not lines[-1] else b"")
    records = PayloadRecords(data)
    assert len(records) == len(lines)
    for rank in (0, 1, 5):
        expected = [lines[(rank + number) % len(lines)] for number in range(25)]
        assert records.encoded(rank, range(25)) == expected
        texts = records.texts(rank, range(25))
        assert [text.encode() if isinstance(text, str) else text for text in texts] == expected
        assert records.total_bytes(rank, 25) == sum(map(len, expected))


def test_a_line_of_a_payload_is_text_where_it_is_utf_8() -> None:
    kinds = [type(text) for text in PayloadRecords("héß\n".encode() + b"\xff\xfe\n\n").texts(0, range(3))]
    assert kinds == [str, bytes, str]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(None, "No such file"), (b"", "is empty"), (b"x" * (64 * 2**20 + 1), "no record")],
)
def test_unusable_payload_files(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    path = tmp_path / "payload"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SpecError, match=sentence):
        read_payload(str(path))
    with pytest.raises(SpecError, match="directory"):
        read_payload(str(tmp_path))


def test_a_payload_from_a_pipe_has_a_limit_too() -> None:
    with pytest.raises(SpecError, match=r"/dev/zero has more than 268435456 bytes"):
        read_payload("/dev/zero")


# -- rounds, times, durations --------------------------------------------------------------------------------


@given(st.integers(1, 3000000), st.integers(1, 2**26), st.integers(1, 2**17))
def test_rounds_hold_whole_batches_in_bounded_memory(count: int, mean_bytes: int, batch: int) -> None:
    count = min(count, 50 * batch + 7, 2**27 // mean_bytes + 3 * batch)
    made = list(rounds(count, mean_bytes, batch))
    assert [number for cut in made for number in (cut.start, cut.stop)][1:-1] == [
        cut.stop for cut in made[:-1] for _ in range(2)
    ]
    assert (made[0].start, made[-1].stop) == (0, count)
    for cut in made[:-1]:
        assert len(cut) % batch == 0
        assert len(cut) <= max(batch, min(2**18, 64 * 2**20 // mean_bytes))


def test_times_of_batches_are_repeated() -> None:
    with closing(TimesFile()) as times:
        times.append(array("Q", [1, 2, 3]))
        times.append(array("Q", [10, 20]), [3, 1])
        assert times.read().tolist() == [1, 2, 3, 10, 10, 10, 20]
    assert batches([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4], [5]]


@given(st.lists(st.integers(0, 2**44 - 1), min_size=1, max_size=200))
def test_percentiles_are_never_low_and_less_than_one_percent_high(values: list[int]) -> None:
    histogram = Histogram()
    half = len(values) // 2
    other = Histogram()
    histogram.add(np.array(values[:half], np.uint64))
    other.add(np.array(values[half:], np.uint64))
    both = histogram + other
    ordered = sorted(values)
    for fraction in (0.5, 0.9, 0.99, 0.999, 1.0):
        exact = ordered[max(1, -(-round(fraction * 1000) * len(values) // 1000)) - 1]
        assert exact <= both.percentile_ns(fraction) <= exact * 1.008
    assert both.summary_ns()["max"] == ordered[-1]


def test_an_empty_histogram_says_zero() -> None:
    assert set(Histogram().summary_ns().values()) == {0}


def test_the_baseline_writes_what_it_is_given(tmp_path: Path) -> None:
    log, close = open_raw(tmp_path / "raw")
    times = [log("é"), log(""), log("abc")]
    close()
    assert (tmp_path / "raw").read_text() == "éabc"
    assert times == sorted(times)
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)


# -- verification --------------------------------------------------------------------------------------------


def verdict_on(
    events: list[tuple[int, int, int, bytes]], times: list[int], records: Records | None = None
) -> Verdict:
    """Return the verdict on these events of a job of one rank that has logged at these times."""
    with closing(TimesFile()) as file:
        file.append(array("Q", times))
        written = Written(1.0, "story", file, [], [CLIENT])
        replayed = EventList([Event(*event) for event in events])
        records = records or GeneratedRecords(0, 64)
        return verify(Ranks(None), Spec(events=len(times)), records, written, replayed, SILENT)


def logged(times: list[int]) -> list[tuple[int, int, int, bytes]]:
    """Return the events as they should be replayed."""
    records = GeneratedRecords(0, 64).encoded(0, range(len(times)))
    accepted = [(time, record) for time, record in zip(times, records, strict=True) if time]
    return [(time, CLIENT, number, record) for number, (time, record) in enumerate(accepted)]


TIMES = [100, 100, 101, 105, 105, 105, 110, 111]


def counts(verdict: Verdict) -> tuple[int, int, int, int]:
    return verdict.missing, verdict.duplicated, verdict.out_of_order, verdict.corrupted


def test_what_was_logged_is_verified() -> None:
    verdict = verdict_on(logged(TIMES), TIMES)
    assert verdict.good
    assert counts(verdict) == (0, 0, 0, 0)
    assert (verdict.expected, verdict.replayed, verdict.examples) == (8, 8, [])


def _without(events: list[Any]) -> list[Any]:
    return events[:3] + events[4:]


def _doubled(events: list[Any]) -> list[Any]:
    return [*events[:4], events[3], *events[4:]]


def _swapped(events: list[Any]) -> list[Any]:
    return [*events[:2], events[3], events[2], *events[4:]]


def _swapped_at_one_time(events: list[Any]) -> list[Any]:
    return [*events[:3], events[4], events[3], *events[5:]]


def _changed(place: int, value: Any) -> Any:
    def change(events: list[Any]) -> list[Any]:
        event = list(events[3])
        event[place] = value(event[place]) if callable(value) else value
        return [*events[:3], tuple(event), *events[4:]]

    return change


def _records_swapped(events: list[Any]) -> list[Any]:
    third, fourth = events[2], events[3]
    return [*events[:2], (*third[:3], fourth[3]), (*fourth[:3], third[3]), *events[4:]]


TAMPERED = {
    "missing": (_without, (1, 0, 0, 0), "event 3 of rank 0 was not replayed"),
    "doubled": (_doubled, (0, 1, 0, 0), "event 3 of rank 0 was replayed 2 times"),
    "swapped": (_swapped, (0, 0, 1, 0), "was replayed after one at"),
    "swapped at one time": (_swapped_at_one_time, (0, 0, 1, 0), "was replayed after one at"),
    "altered byte": (_changed(3, lambda r: r[:-1] + b"#"), (0, 0, 0, 1), "event 3 of rank 0 has the record"),
    "cut record": (_changed(3, lambda r: r[:-1]), (0, 0, 0, 1), "has the record"),
    "empty record": (_changed(3, b""), (0, 0, 0, 1), "has the record"),
    "other time": (_changed(0, 104), (0, 0, 0, 1), "was logged at 105 and replayed at 104"),
    "other client": (_changed(1, 78), (1, 0, 1, 1), "client 78"),
    "number that was never used": (_changed(2, 2**40), (1, 0, 1, 1), "never logged"),
    "records swapped": (_records_swapped, (0, 0, 0, 2), "has the record"),
}


@pytest.mark.parametrize(("tamper", "expected", "sentence"), TAMPERED.values(), ids=TAMPERED.keys())
def test_verification_finds(tamper: Any, expected: tuple[int, int, int, int], sentence: str) -> None:
    verdict = verdict_on(tamper(logged(TIMES)), TIMES)
    assert counts(verdict) == expected
    assert not verdict.good
    assert any(sentence in example for example in verdict.examples), verdict.examples


def test_tampering_is_found_beyond_the_first_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chronolog_hpc.bench.verify.CHUNK_EVENTS", 3)
    assert verdict_on(logged(TIMES), TIMES).good
    assert counts(verdict_on(_swapped(logged(TIMES)), TIMES)) == (0, 0, 1, 0), (
        "the swapped ones are in two chunks"
    )


def test_refused_events_are_missing_and_no_other_is_blamed() -> None:
    times = [100, 0, 0, 105, 0, 107]
    verdict = verdict_on(logged(times), times)
    assert counts(verdict) == (3, 0, 0, 0)
    assert (verdict.expected, verdict.replayed) == (6, 3)
    assert not verdict.good
    assert "refused 3 events" in verdict.examples[0]


@given(st.lists(st.booleans(), max_size=40))
def test_attempts_follow_the_accepted(accepted: list[bool]) -> None:
    attempts = Attempts(np.array(accepted, np.uint64))
    wanted = [number for number, yes in enumerate(accepted) if yes]
    assert attempts.accepted == len(wanted)
    assert attempts.of(np.arange(len(wanted), dtype=np.uint64)).tolist() == wanted


def test_joints_between_slices() -> None:
    slices = [((1, 0, 0), (5, 0, 0)), (None, None), ((5, 0, 1), (7, 1, 0)), ((6, 0, 0), (9, 0, 0))]
    assert joints_out_of_order(slices) == 1


def test_verdicts_of_ranks_add_up() -> None:
    both = Verdict(1, 2, 3, 4, 5, 6, ["a", "b"]) + Verdict(10, 20, 30, 40, 50, 60, ["c", "d"])
    assert both == Verdict(11, 22, 33, 44, 55, 66, ["a", "b", "c"])


# -- spec, report, progress ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [{"events": 0}, {"size_bytes": 0}, {"size_bytes": 2**26 + 1}, {"batch": 0}, {"seed": -1}, {"store": ""},
     {"payload": "a\0b"}, {"baseline_rounds": -1}],
)  # fmt: skip
def test_a_spec_refuses_nonsense(wrong: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=r"^--"):
        Spec(**wrong)


def test_every_field_has_a_place_of_its_own() -> None:
    tree = nest({field.key: number for number, field in enumerate(FIELDS)})
    assert [look_up(tree, field.key) for field in FIELDS] == list(range(len(FIELDS)))
    assert [field.text(12345678.9 / field.scale) for field in FIELDS[:1]] == ["12 345 679"]


def test_results_are_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    report.check_json_path(str(path))
    assert list(tmp_path.iterdir()) == []
    report.write_json(str(path), {"schema": "é"})
    with pytest.raises(SpecError, match="never overwritten"):
        report.check_json_path(str(path))
    with pytest.raises(FileExistsError):
        report.write_json(str(path), {"schema": "other"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"schema": "é"}


def test_results_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    with pytest.raises(TypeError):
        report.write_json(str(path), {"schema": "é" * 100_000, "spec": object()})
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_no_unicode_are_results_too(tmp_path: Path) -> None:
    path, name = tmp_path / "result.json", os.fsdecode(b"store-\xff")
    report.write_json(str(path), {"spec": {"store": name}})
    assert json.loads(path.read_text(encoding="utf-8")) == {"spec": {"store": name}}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_one_line_that_disappears() -> None:
    terminal = Terminal()
    progress = Progress(terminal)
    progress.say("write", 1, 2)
    progress.say("replay")
    progress.clear()
    progress.clear()
    assert terminal.getvalue() == "\rwrite  50 %\rreplay     \r      \r"


def test_no_progress_where_nobody_looks() -> None:
    stream = io.StringIO()
    for progress in (Progress(stream), Progress(Terminal(), enabled=False)):
        progress.say("write", 1, 2)
        progress.clear()
    assert stream.getvalue() == ""
