"""The command: quick help, helpful refusals by rank 0 alone, and the question whether there is an MPI job."""

from __future__ import annotations

import subprocess
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from chronolog_hpc import cli
from chronolog_hpc.cli.arguments import size_bytes, whole_number
from chronolog_hpc.cli.launch import Launch, detect
from tests.support import launch, processes
from tests.support.requirements import require

HEAVY = ("numpy", "mpi4py", "msgpack", "py_chronolog_client", "asyncio", "importlib.metadata", "tempfile")
LITTLE = ("--events", "50", "--baseline-rounds", "0")

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def alone(*args: object, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command without a launcher."""
    return processes.run([sys.executable, "-m", "chronolog_hpc", *map(str, args)], timeout=60, env=env)


@pytest.fixture
def on_ranks() -> Run:
    """Return `on_ranks(n, *args)`: run the command under mpiexec, as a user does."""
    require("mpi", launch.mpi_problem())

    def run(n: int, *args: object, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        argv = [*launch.mpiexec(), "-n", str(n), sys.executable, "-m", "chronolog_hpc", *map(str, args)]
        return processes.run(argv, timeout=60, env=env)

    return run


# -- help ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [("--help",), ("bench", "--help")])
def test_help_imports_nothing_heavy(args: tuple[str, ...]) -> None:
    program = "import sys; from chronolog_hpc.cli import main; code = main(sys.argv[1:]); print(*sys.modules); sys.exit(code)"
    done = processes.run([sys.executable, "-c", program, *args], timeout=60)
    assert done.returncode == 0, done.stderr
    imported = set(done.stdout.splitlines()[-1].split())
    assert "chronolog_hpc.cli" in imported
    assert not imported & set(HEAVY)


def test_help_of_the_program_reads_no_heavy_file() -> None:
    done = processes.run([sys.executable, "-X", "importtime", "-m", "chronolog_hpc", "--help"], timeout=60)
    assert done.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "chronolog_hpc.cli.bench" in imported
    assert not [name for name in imported if name.split(".")[0] in {"numpy", "mpi4py", "py_chronolog_client"}]


def test_help_names_the_commands_and_the_units() -> None:
    assert "bench" in alone("--help").stdout
    text = alone("bench", "--help").stdout
    for option in ("events", "size", "story", "payload", "batch", "store", "json", "seed"):
        assert f"--{option} " in text
    assert "KiB" in text


def test_version() -> None:
    done = alone("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("chronolog ")


def test_help_and_version_are_said_once(on_ranks: Run) -> None:
    assert on_ranks(2, "--version").stdout.count("chronolog ") == 1
    assert on_ranks(2, "bench", "--help").stdout.count("usage:") == 1


# -- refusals ------------------------------------------------------------------------------------------------


def refusals(directory: Path) -> dict[str, tuple[tuple[str, ...], str]]:
    """Return bad arguments, and what the sentence about them must say."""
    (directory / "empty").touch()
    (directory / "there.json").write_text("mine")
    (directory / "other").mkdir()
    (directory / "other" / "file").touch()
    at = str(directory)
    return {
        "no command": ((), "COMMAND"),
        "unknown command": (("benhc",), "benhc"),
        "unknown option": (("bench", "--evnets", "3"), "--evnets"),
        "abbreviated option": (("bench", "--event", "3"), "--event"),
        "no events": (("bench", "--events", "0"), "--events"),
        "negative events": (("bench", "--events", "-3"), "--events"),
        "events that are no number": (("bench", "--events", "many"), "'many'"),
        "no size": (("bench", "--size", "0"), "--size 0"),
        "size too large": (("bench", "--size", "65MiB"), "67108864"),
        "size with an unknown unit": (("bench", "--size", "3elephants"), "4KiB"),
        "story": (("bench", "--story", "mine"), "per-rank"),
        "batch": (("bench", "--batch", "0"), "--batch"),
        "batch too large": (("bench", "--batch", "131072", "--size", "1MiB"), "--batch"),
        "seed": (("bench", "--seed", "-1"), "--seed"),
        "payload missing": (("bench", "--payload", f"{at}/nothing"), "No such file"),
        "payload empty": (("bench", "--payload", f"{at}/empty"), "is empty"),
        "payload a directory": (("bench", "--payload", at), "directory"),
        "payload with size": (("bench", "--payload", f"{at}/empty", "--size", "3"), "--size"),
        "json there": (("bench", "--json", f"{at}/there.json"), "never overwritten"),
        "json without directory": (("bench", "--json", f"{at}/no/file.json"), "No such file"),
        "json a directory": (("bench", "--json", at), at),
        "no store": (("bench", "--store", f"{at}/other"), "no ChronoLog store"),
        "store a file": (("bench", "--store", f"{at}/empty"), "a file"),
    }


def assert_refused(done: subprocess.CompletedProcess[str], words: str) -> None:
    assert done.returncode == cli.USAGE, processes.describe(done)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("chronolog")
    assert words in done.stderr


def test_what_cannot_be_done_is_said_in_one_line(tmp_path: Path, capsys: Any) -> None:
    for name, (args, words) in refusals(tmp_path).items():
        code = cli.main(args)
        said = capsys.readouterr()
        assert_refused(subprocess.CompletedProcess([name], code, said.out, said.err), words)
    assert (tmp_path / "there.json").read_text() == "mine"


@pytest.mark.parametrize(
    "name",
    ["unknown command", "no events", "payload missing", "json there", "json without directory", "no store"],
)
def test_all_ranks_refuse_and_one_says_why(on_ranks: Run, tmp_path: Path, name: str) -> None:
    args, words = refusals(tmp_path)[name]
    assert_refused(on_ranks(2, *args), words)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("128", 128), ("128B", 128), ("4KiB", 4096), ("64MiB", 64 << 20), ("1GiB", 1 << 30), ("4kB", 4000), ("2 MiB", 2 << 20),
     ("1_000", 1000), ("4k", 4096)],
)  # fmt: skip
def test_sizes(text: str, expected: int) -> None:
    assert size_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "KiB", "-4", "4.5", "1TiB", "0x10", "1 2", "4KiBB", "٣"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="is no size"):
        size_bytes(text)


def test_whole_numbers_have_bounds() -> None:
    convert = whole_number(2, 5)
    assert [convert("2"), convert("5")] == [2, 5]
    for text in ("1", "6", "2.0", "two", ""):
        with pytest.raises(ArgumentTypeError):
            convert(text)


# -- alone or not --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Launch(0, 1, None)),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, Launch(0, 1, None)),
        ({"PMI_RANK": "2", "PMI_SIZE": "4"}, Launch(2, 4, "PMI_RANK")),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "PMIX_RANK": "1"}, Launch(1, 2, "OMPI_COMM_WORLD_RANK")),
        ({"PMIX_RANK": "3"}, Launch(3, None, "PMIX_RANK")),
        ({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8"}, Launch(5, 8, "SLURM_PROCID")),
        ({"PMI_RANK": "x", "PMI_SIZE": "4"}, Launch(0, 1, None)),
    ],
)  # fmt: skip
def test_who_has_started_this_process(environment: dict[str, str], expected: Launch) -> None:
    assert detect(environment) == expected
    assert detect(environment).alone == (expected.size == 1)


@pytest.fixture
def without_mpi(tmp_path: Path) -> dict[str, str]:
    """Return an environment in which mpi4py cannot be imported."""
    package = tmp_path / "blocked" / "mpi4py"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('mpi4py is blocked')\n")
    return {"PYTHONPATH": f"{package.parent}:{processes.ROOT}"}


def test_alone_no_mpi_is_needed(without_mpi: dict[str, str]) -> None:
    done = alone("bench", *LITTLE, env=without_mpi)
    assert done.returncode == 0, processes.describe(done)
    assert "# env.mpi: none" in done.stdout


def test_with_a_launcher_missing_mpi_names_the_extra(without_mpi: dict[str, str]) -> None:
    for rank, said in (("0", True), ("1", False)):
        done = alone("bench", *LITTLE, env={**without_mpi, "PMI_RANK": rank, "PMI_SIZE": "2"})
        assert done.returncode == cli.USAGE
        assert ("chronolog-hpc[mpi]" in done.stderr) == said
        assert done.stderr.count("\n") == said


def test_a_launcher_of_another_mpi_is_noticed(on_ranks: Run) -> None:
    done = on_ranks(1, "bench", *LITTLE, env={"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "3"})
    assert_refused(done, "MPI sees 1")


def test_main_can_be_called(capsys: Any) -> None:
    assert cli.main(["bench", "--events", "0"]) == cli.USAGE
    assert cli.main(["--help"]) == 0
    assert "usage: chronolog" in capsys.readouterr().out
