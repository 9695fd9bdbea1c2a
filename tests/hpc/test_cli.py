"""The command: quick help, helpful refusals by rank 0 alone, and the question whether there is an MPI job."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from chronolog_hpc import cli
from chronolog_hpc.cli.arguments import size_bytes, whole_number
from tests.store.holding import as_nobody
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
        "batch too large": (("bench", "--batch", "131072", "--size", "1MiB"), "limit of 134217728"),
        "events for no memory": (("bench", "--events", "281474976710656"), "bytes of memory"),
        "size of many digits": (("bench", "--size", "9" * 5000), "is no size"),
        "events of many digits": (("bench", "--events", "9" * 5000), "is no whole number"),
        "an argument too many": (("bench", "more"), "more (see chronolog bench --help)"),
        "seed": (("bench", "--seed", "-1"), "--seed"),
        "payload missing": (("bench", "--payload", f"{at}/nothing"), "No such file"),
        "payload empty": (("bench", "--payload", f"{at}/empty"), "is empty"),
        "payload a directory": (("bench", "--payload", at), "directory"),
        "payload with size": (("bench", "--payload", f"{at}/empty", "--size", "3"), "--size"),
        "json there": (("bench", "--json", f"{at}/there.json"), "never overwritten"),
        "json without directory": (("bench", "--json", f"{at}/no/file.json"), "No such file"),
        "json a directory": (("bench", "--json", at), at),
        "json in a directory to be": (("bench", "--json", f"{at}/new/"), "Is a directory"),
        "json with a long name": (("bench", "--json", f"{at}/{'a' * 300}"), "File name too long"),
        "json on standard output": (("bench", "--json", "-"), "give a name"),
        "store in no directory": (("bench", "--store", f"{at}/no/store"), f"there is no directory {at}/no"),
        "store in the home of nobody": (
            ("bench", "--store", "~nobody.of.that.name/s"),
            "make that directory",
        ),
        "no path": (("bench", "--store", ""), "is no path"),
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
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "other", "there.json"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_what_others_keep_closed_is_said_in_one_line() -> None:
    def attempts(directory: Path) -> list[list[object]]:
        said = []
        os.chdir(directory)
        for args in (["--store", "store"], ["--json", "result.json"], ["--payload", "secret"], []):
            tempfile.tempdir = None
            os.environ["TMPDIR"] = str(directory if not args else "/tmp")
            with contextlib.redirect_stderr(io.StringIO()) as stderr:
                said.append([cli.main(["bench", *args]), stderr.getvalue()])
        return said

    with tempfile.TemporaryDirectory() as name:  # not below a directory that only root may search
        Path(name).chmod(0o755)
        secret = Path(name) / "secret"
        secret.touch(0o600)
        found = as_nobody(lambda: attempts(Path(name)))
        assert isinstance(found, list)
        for (code, line), words in zip(found, ("--store", "--json", "--payload", "TMPDIR"), strict=True):
            assert_refused(subprocess.CompletedProcess([], code, "", line), words)
        assert os.listdir(name) == ["secret"]


@pytest.mark.parametrize(
    "name",
    ["unknown command", "no events", "payload missing", "json there", "events for no memory", "no store"],
)
def test_all_ranks_refuse_and_one_says_why(on_ranks: Run, tmp_path: Path, name: str) -> None:
    args, words = refusals(tmp_path)[name]
    assert_refused(on_ranks(2, *args), words)


VARIABLES = {
    "CHRONOLOG_MODE": "999",
    "CHRONOLOG_TAIL_DIR": "/nonexistent",
    "CHRONOLOG_TRUST_TAILS": "maybe",
    "TMPDIR": "/nonexistent",
}


@pytest.mark.parametrize("name", VARIABLES)
def test_a_variable_that_makes_no_sense(on_ranks: Run, tmp_path: Path, name: str) -> None:
    env = {"TMPDIR": str(tmp_path), name: VARIABLES[name]}
    words = f"{name}={VARIABLES[name]}: "
    assert_refused(alone("bench", *LITTLE, env=env), words)
    assert_refused(on_ranks(2, "bench", *LITTLE, env=env), words)
    assert list(tmp_path.iterdir()) == []


def test_a_variable_that_makes_no_sense_on_one_rank(on_ranks: Run, tmp_path: Path) -> None:
    program = """
        import os, sys
        if os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK")) == "1":
            os.environ["CHRONOLOG_TAIL_DIR"] = "/nonexistent"
        from chronolog_hpc.cli import main
        sys.exit(main())
    """
    argv = [*launch.mpiexec(), "-n", "2", sys.executable, *launch.python_argv("-c", program)]
    done = processes.run([*argv, "bench", *LITTLE], timeout=60, env={"TMPDIR": str(tmp_path)})
    assert_refused(done, "CHRONOLOG_TAIL_DIR=/nonexistent")
    assert "rank 1 on " in done.stderr


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


# -- places and streams --------------------------------------------------------------------------------------


def assert_verified(done: subprocess.CompletedProcess[str], stderr: str = "") -> None:
    assert done.returncode == 0, processes.describe(done)
    assert done.stdout.endswith("events are replayed exactly as they were logged\n")
    assert done.stderr == stderr


@pytest.mark.slow
@pytest.mark.parametrize("options", [("-O",), ("-OO",), ("-bb", "-W", "error", "-X", "dev"), ("-I",)])
def test_ways_to_start_python(options: tuple[str, ...]) -> None:
    program = f"import sys; sys.path.insert(0, {str(processes.ROOT)!r}); from chronolog_hpc.cli import main; sys.exit(main())"
    assert_verified(processes.run([sys.executable, *options, "-c", program, "bench", *LITTLE], timeout=60))


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 8])
def test_as_many_ranks_as_the_user_likes(on_ranks: Run, ranks: int) -> None:
    assert_verified(on_ranks(ranks, "bench", *LITTLE))


def shell(script: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script in which `$BENCH` is a small benchmark and `$CHRONOLOG` the command."""
    command = f"{sys.executable} -m chronolog_hpc"
    words = {"CHRONOLOG": command, "BENCH": f"{command} bench {' '.join(LITTLE)}"}
    return processes.run(["bash", "-c", script], timeout=60, env={**words, **env})


def test_a_working_directory_that_was_removed(tmp_path: Path) -> None:
    leave = f"mkdir {tmp_path}/gone && cd {tmp_path}/gone && rmdir {tmp_path}/gone && exec $BENCH"
    assert_verified(shell(leave))
    assert_refused(shell(f"{leave} --store store"), "working directory was removed")
    assert_refused(shell(f"{leave} --json results"), "No such file")


def test_paths_begin_at_home(tmp_path: Path) -> None:
    assert_verified(shell("$BENCH --store=~/store --json=~/results.json", HOME=str(tmp_path)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.json", "store"]
    assert_verified(shell("unset HOME; exec $BENCH"))


def test_nobody_listens(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    gone = shell(f"$BENCH --json {results} | true; exit ${{PIPESTATUS[0]}}")
    assert (gone.returncode, gone.stderr) == (1, "")
    assert json.loads(results.read_text())["verified"]["missing"] == 0
    full = shell("$BENCH >/dev/full")
    assert (full.returncode, full.stderr.count("\n")) == (1, 1)
    assert "standard output cannot be written: No space left on device" in full.stderr
    for option in ("--help", "--version"):
        full = shell(f"$CHRONOLOG {option} >/dev/full")
        assert (full.returncode, full.stderr.count("\n")) == (1, 1), full.stderr
    assert_verified(shell("$BENCH 2>&-"))
    assert_verified(shell("$BENCH 2>/dev/full"))
    for closed in (">&-", ">&- 2>&- <&-"):
        silent = shell(f"$BENCH {closed}")
        assert (silent.returncode, silent.stdout, silent.stderr) == (0, "", "")
    assert shell("$BENCH --events 0 >&- 2>&- <&-").returncode == cli.USAGE


def test_a_terminal_that_knows_ascii_only(tmp_path: Path) -> None:
    plain = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    results = tmp_path / "results.json"
    done = shell(f"$BENCH --store {tmp_path}/störe --json {results}", **plain)
    assert_verified(done)
    assert f"# spec.store: {tmp_path}/st\\" in done.stdout.replace("'", "").replace("\\\\", "\\")
    assert json.loads(results.read_text())["spec"]["store"].startswith(f"{tmp_path}/st")
    assert_refused(shell(f"$BENCH --store {tmp_path}/nö/store", **plain), "there is no directory")
    assert (tmp_path / "störe" / "CHRONOLOG").exists()


def test_too_little_memory_is_said_in_one_line() -> None:
    program = """
        import resource, sys
        from chronolog_hpc.bench import environment, job
        from chronolog_hpc.cli import main
        pages = int(open("/proc/self/statm").read().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, [pages * resource.getpagesize() + (48 << 20)] * 2)
        sys.exit(main(["bench", "--events", "1000000", "--baseline-rounds", "0"]))
    """
    done = processes.run([sys.executable, *launch.python_argv("-c", program)], timeout=60)
    assert (done.returncode, done.stdout) == (1, ""), processes.describe(done)
    assert done.stderr == (
        "chronolog bench: there is not enough memory: ask for fewer or smaller events, or start fewer ranks\n"
    )


def test_a_broken_installation_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("raise ModuleNotFoundError('No module named numpy')")
    done = alone("bench", *LITTLE, env={"PYTHONPATH": f"{tmp_path}:{processes.ROOT}"})
    assert_refused(
        done, f"No module named numpy: install it for the Python that runs this command, {sys.executable}"
    )
    (tmp_path / "numpy.py").rename(tmp_path / "py_chronolog_client.py")
    argv = [sys.executable, "-m", "chronolog_hpc", "bench", *LITTLE]
    path = {"PYTHONPATH": f"{tmp_path}:{processes.ROOT}"}
    assert_refused(
        processes.run(argv, timeout=60, env=path, cwd="/"), "hides it"
    )  # -m puts that before the path


def test_main_can_be_called(capsys: Any) -> None:
    assert cli.main(["bench", "--events", "0"]) == cli.USAGE
    assert cli.main(["--help"]) == 0
    assert "usage: chronolog" in capsys.readouterr().out
