"""`chronolog clock` on real ranks."""

import json
import pathlib

import pytest

from tests.support.launch import Mpi


def test_a_report_of_injected_faults(mpi: Mpi, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "clock.json"
    options = ("clock", "--seconds", "0.5", "--inject", "1000000000,50", "--json", path)
    said = mpi(3, "-m", "chronolog_hpc", *options, timeout=60)
    result = json.loads(path.read_text())
    assert (result["ranks"], result["clocks"], result["covered_fraction"]) == (3, 3, 1.0)
    assert [rank["rank"] for rank in result["per_rank"]] == [0, 1, 2]
    assert 0 < result["sync_seconds"] < 30
    for name in ("after_sync", "after_wait", "interpolated"):
        error = result["true_error_ns"][name]
        assert 0 <= error["median"] <= error["p99"] <= error["max"]
    assert result["true_error_ns"]["interpolated"]["max"] <= result["window_ns"]["max"]
    (check,) = result["checks"]
    assert check["agrees"]
    assert (sorted(check["ranks"]), check["measured"]) == ([1, 2], False), "rank 0 has measured both"
    assert check["half_ns"] > 0
    for warning in result["warnings"]:
        assert f"warning: {warning}" in said.stdout
    assert "times whose window held the truth" in said.stdout
    again = mpi(2, "-m", "chronolog_hpc", *options, timeout=60, check=False)
    assert again.returncode == 2
    assert again.stderr.count("never overwritten") == 1


def test_rank_0_does_not_make_the_windows_look_narrower(mpi: Mpi, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "clock.json"
    options = ("--seconds", "0", "--inject", "1000,50", "--json", path)
    mpi(2, "-m", "chronolog_hpc", "clock", *options, timeout=60)
    result = json.loads(path.read_text())
    assert result["checks"][0]["measured"]
    narrowest = min(knot["half_ns"] for knot in result["per_rank"][1]["knots"])
    assert result["window_ns"]["median"] >= narrowest > 0


def test_ranks_of_one_host_share_their_clock(mpi: Mpi) -> None:
    said = mpi(2, "-m", "chronolog_hpc", "clock", "--seconds", "0", timeout=60)
    assert "# ranks: 2, clocks: 1" in said.stdout
    assert "true error" not in said.stdout


def test_without_mpi(mpi: Mpi) -> None:
    said = mpi(1, "-m", "chronolog_hpc", "clock", "--seconds", "0", timeout=60)
    assert "# ranks: 1, clocks: 1" in said.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("--seconds", "-1"),
        ("--seconds", "nan"),
        ("--inject", "1e9,50"),
        ("--inject", "5"),
        ("--inject", "5,1000"),
        ("--json", "/nowhere/at/all.json"),
    ],
)
def test_bad_arguments(mpi: Mpi, arguments: tuple[str, str]) -> None:
    done = mpi(2, "-m", "chronolog_hpc", "clock", *arguments, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.count("chronolog clock: ") == 1, done.stderr
    assert "Traceback" not in done.stderr
