"""The benchmarks still run: every suite with tiny counts, and the table of the promised figures."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.support import processes

TINY = {"CHRONOLOG_BENCH_EVENTS": "400"}


@pytest.mark.slow
def test_suites_run_and_report_ns_per_event_and_what_a_range_reads(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    argv = [sys.executable, "-m", "pytest", processes.ROOT / "benchmarks", "-q", "-p", "no:cacheprovider"]
    argv += ["--basetemp", tmp_path / "suites", "--benchmark-json", path]
    done = processes.run(list(map(str, argv)), timeout=120, env=TINY, cwd=processes.ROOT)
    assert done.returncode == 0, processes.describe(done)
    found = {entry["name"]: entry["extra_info"] for entry in json.loads(path.read_text())["benchmarks"]}
    for name in ("test_raw_baseline", "test_log_event[text]", "test_log_events[1000]", "test_columns[4]"):
        assert found[name]["ns_per_event"] > 0
    assert set(found["test_one_percent"]["read"]) == {"events", "read_bytes", "reads", "parts"}
    assert found["test_write_to_visible[asking]"]["delay_ns"]["max"] > 0


@pytest.mark.slow
def test_the_table_of_figures(tmp_path: Path) -> None:
    sizes = ["--events", "2000", "--replay-events", "8000", "--visible-events", "20", "--rounds", "1"]
    sizes += ["--crowd-events", "20", "--idle-seconds", "0.2"]
    argv = [sys.executable, "-m", "benchmarks.figures", *sizes]
    done = processes.run(argv, timeout=120, cwd=processes.ROOT, env={"TMPDIR": str(tmp_path)})
    assert done.returncode == 0, processes.describe(done)
    rows = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert rows[0].split()[:2] == ["figure", "median"]
    for figure in (
        "log_event / raw file",
        "log_events / raw file",
        "replay as columns",
        "1 % range: bytes read",
        "taken in by one keeper",
        "replay through the player",
        "clients that connect, acquire and log at once 200",
        "log_event each ms, p99.9, deployment / store",
        "idle, 25 stories acquired",
    ):
        assert any(row.startswith(figure) for row in rows), figure
    assert list(tmp_path.iterdir()) == []


def test_figures_refuse_nonsense() -> None:
    for options in (["nothing"], ["--events", "0"], ["--replay-events", "3"]):
        done = processes.run(
            [sys.executable, "-m", "benchmarks.figures", *options], timeout=60, cwd=processes.ROOT
        )
        assert done.returncode == 2
