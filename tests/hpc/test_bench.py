"""The main job, run as a user runs it: alone and under mpiexec, with every option, and ended in every way."""

from __future__ import annotations

import json
import math
import os
import pty
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chronolog_hpc.bench.workspace import CHRONICLE
from chronolog_hpc.clientlib import EventList, open_client
from tests.store.holding import wait_until
from tests.support import launch, namespaces, processes
from tests.support.domains import clock_domains
from tests.support.requirements import require

EVENTS = 700
QUICK = ("--events", EVENTS, "--baseline-rounds", 0)
REAL_LOGS = processes.ROOT.parent / "shared" / "data"

Bench = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def places(tmp_path: Path) -> Iterator[Path]:
    """Return a directory in which the benchmark has to put its temporary files, and see to it that none is left."""
    directory = tmp_path / "temporary"
    directory.mkdir()
    yield directory
    deadline_s = time.monotonic() + 10  # after a rank was killed, the directory is removed a moment later
    while os.listdir(directory) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert os.listdir(directory) == []


def argv_for(ranks: int) -> list[str]:
    """Return the command that starts Python on so many ranks; 0 for none, without a launcher."""
    if not ranks:
        return [sys.executable]
    require("mpi", launch.mpi_problem())
    return [*launch.mpiexec(), "-n", str(ranks), sys.executable]


@pytest.fixture
def bench(places: Path) -> Bench:
    """Return `bench(ranks, *options)`: run `chronolog bench`; `program=` runs another main program."""

    def run(
        ranks: int,
        *options: object,
        program: str = "",
        code: int | None = 0,
        env: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        start = ["-c", program] if program else ["-m", "chronolog_hpc"]
        argv = [*argv_for(ranks), *start, "bench", *map(str, options)]
        done = processes.run(argv, timeout=100, env={"TMPDIR": str(places), **(env or {})})
        assert code is None or done.returncode == code, processes.describe(done)
        return done

    return run


@pytest.fixture
def result(bench: Bench, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Return `result(ranks, *options)`: run `chronolog bench` and return its JSON."""

    def run(ranks: int, *options: object) -> dict[str, Any]:
        path = tmp_path / f"result-{ranks}-{time.monotonic_ns()}.json"
        bench(ranks, *QUICK, "--json", path, *options)
        loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return loaded

    return run


def assert_verified(found: dict[str, Any], ranks: int, events: int = EVENTS) -> None:
    assert found["verified"] == {
        "expected": ranks * events,
        "replayed": ranks * events,
        "missing": 0,
        "duplicated": 0,
        "out_of_order": 0,
        "corrupted": 0,
    }


# -- the report ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [0, 1, 2, 4])
def test_the_json_has_the_keys_and_the_arithmetic(result: Callable[..., dict[str, Any]], ranks: int) -> None:
    found = result(ranks, "--size", 128)
    ranks = max(1, ranks)
    assert list(found) == ["schema", "spec", "env", "write", "replay", "verified", "clock"]
    write, replay = found["write"], found["replay"]
    assert set(write) == {
        "events", "bytes", "seconds", "events_per_s", "bytes_per_s", "latency_ns", "per_rank"
    }  # fmt: skip
    assert list(write["latency_ns"]) == ["p50", "p90", "p99", "p99_9", "max"]
    assert list(replay) == ["seconds", "events", "events_per_s", "objects_per_s"]
    assert_verified(found, ranks)
    assert found["spec"]["events_per_rank"] == EVENTS
    assert found["env"]["ranks"] == ranks
    assert write["events"] == replay["events"] == ranks * EVENTS
    assert write["bytes"] == ranks * EVENTS * 128
    assert math.isclose(write["events_per_s"], write["events"] / write["seconds"])
    assert math.isclose(write["bytes_per_s"], write["bytes"] / write["seconds"])
    assert math.isclose(replay["events_per_s"], replay["events"] / replay["seconds"])
    assert sorted(write["latency_ns"].values()) == list(write["latency_ns"].values())
    per_rank = write["per_rank"]
    assert [entry["rank"] for entry in per_rank] == list(range(ranks))
    assert (
        len({entry["client_id"] for entry in per_rank}) == len({entry["pid"] for entry in per_rank}) == ranks
    )
    assert sum(entry["events"] for entry in per_rank) == write["events"]
    assert sum(entry["bytes"] for entry in per_rank) == write["bytes"]
    assert all(entry["seconds"] <= write["seconds"] + 1e-9 for entry in per_rank)
    assert all(entry["anonymous_peak_bytes"] > 0 for entry in per_rank)


@pytest.mark.slow
def test_the_text_echoes_parameters_and_names_units(bench: Bench) -> None:
    done = bench(2, "--events", 300, "--baseline-rounds", 2, "--size", "1KiB", "--seed", 5)
    lines = done.stdout.splitlines()
    header = [line for line in lines if line.startswith("#")]
    figures = [line for line in lines if not line.startswith("#")]
    assert lines[0].startswith("# chronolog bench")
    for words in ("spec.events_per_rank: 300", "spec.size_bytes: 1024", "spec.seed: 5", "env.ranks: 2"):
        assert f"# {words}" in header
    for label in (
        "write rate",
        "latency p99.9",
        "replay rate",
        "log_event / raw",
        "log_events / raw",
        "events/s of a rank",
    ):
        assert any(line.startswith(label) for line in figures), label
    assert figures[-1] == "verified: all 600 events are replayed exactly as they were logged"
    assert done.stderr == ""


# -- options -------------------------------------------------------------------------------------------------

OPTIONS = {
    "one byte": ("--size", 1),
    "no room for the numbers": ("--size", 36),
    "several tails": ("--size", "16KiB"),
    "larger than a tail": ("--size", "2MiB", "--events", 5),
    "batches": ("--batch", 100),
    "a batch of all": ("--batch", 2000),
    "a story per rank": ("--story", "per-rank"),
    "a story per rank in batches": ("--story", "per-rank", "--batch", 7),
    "one event": ("--events", 1),
    "a seed": ("--seed", 2**64 - 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_options(result: Callable[..., dict[str, Any]], options: tuple[object, ...]) -> None:
    found = result(2, *options)
    assert_verified(found, 2, found["spec"]["events_per_rank"])
    given = dict(zip(options[::2], options[1::2], strict=True))
    assert found["spec"]["batch"] == given.get("--batch", 1)
    assert found["spec"]["story"] == given.get("--story", "shared")
    assert found["spec"]["seed"] == given.get("--seed", 0)


@pytest.mark.slow
def test_the_comparison_with_a_plain_file(result: Callable[..., dict[str, Any]]) -> None:
    compared = result(2, "--baseline-rounds", 3, "--events", 500)["baseline"]
    assert (compared["events"], compared["rounds"], compared["batch"]) == (500, 3, 1000)
    for name in ("raw_ns", "log_event_ns", "log_events_ns", "log_event_ratio", "log_events_ratio"):
        assert 0 < compared[name]["min"] <= compared[name]["median"] <= compared[name]["max"]


LINES = [
    b"plain",
    "Grüße, 世界 🜚".encode(),
    b"",
    b"\xff\xfe not UTF-8 \x80",
    b"\0 and \r",
    b"",
    b"tail \xc3",
]


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3])
def test_a_payload_is_logged_byte_by_byte(
    result: Callable[..., dict[str, Any]], tmp_path: Path, batch: int
) -> None:
    payload, store = tmp_path / "lines.log", tmp_path / "store"
    payload.write_bytes(b"\n".join(LINES))
    found = result(2, "--payload", payload, "--events", 20, "--store", store, "--batch", batch)
    assert_verified(found, 2, 20)
    assert found["spec"]["payload_lines"] == len(LINES)
    assert found["spec"]["size_bytes"] is None
    logged = [LINES[(rank + number) % len(LINES)] for rank in range(2) for number in range(20)]
    assert found["write"]["bytes"] == sum(map(len, logged))
    assert sorted(stored_records(store)) == sorted(logged)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["BGL_2k.log", "HPC_2k.log"])
def test_logs_of_real_supercomputers(
    result: Callable[..., dict[str, Any]], tmp_path: Path, name: str
) -> None:
    path, store = REAL_LOGS / name, tmp_path / "store"
    if not path.exists():
        pytest.skip(f"{name} is not in {REAL_LOGS}")
    lines = path.read_bytes().removesuffix(b"\n").split(b"\n")
    found = result(4, "--payload", path, "--events", len(lines), "--store", store)
    assert_verified(found, 4, len(lines))
    assert sorted(stored_records(store)) == sorted(4 * lines)


def stored_records(store: Path) -> list[bytes]:
    """Return the records of the one story that the benchmark has left in a store."""
    with open_client(store) as client:
        (story,) = client.ShowStories(CHRONICLE)
        events = EventList()
        assert client.ReplayStory(CHRONICLE, story, 0, 2**64 - 1, events) == 0
        return list(events.records())


@pytest.mark.slow
def test_a_store_keeps_each_run_as_a_story_of_its_own(bench: Bench, tmp_path: Path) -> None:
    store = tmp_path / "store"
    for _ in range(2):
        bench(2, *QUICK, "--store", store)
    with open_client(store) as client:
        assert client.ShowChronicles() == [CHRONICLE]
        stories = client.ShowStories(CHRONICLE)
        assert len(stories) == 2
        for story in stories:
            events = EventList()
            assert client.ReplayStory(CHRONICLE, story, 0, 2**64 - 1, events) == 0
            assert len(events) == 2 * EVENTS
    assert [path.name for path in store.iterdir() if path.name.startswith(".")] == []


@pytest.mark.slow
def test_the_store_of_the_environment_is_left_alone(bench: Bench, tmp_path: Path) -> None:
    other = tmp_path / "not this one"
    bench(2, *QUICK, env={"CHRONOLOG_STORE": str(other)})
    assert not other.exists()


SEVERAL_HOSTS = """
import os, socket, sys
socket.gethostname = lambda: "host" + os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK", ""))
from chronolog_hpc.cli import main
sys.exit(main())
"""


@pytest.mark.slow
def test_several_hosts_share_the_working_directory(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    done = bench(2, *QUICK, "--json", tmp_path / "result.json", program=SEVERAL_HOSTS)
    assert "verified: all" in done.stdout
    env = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))["env"]
    assert env["hosts"] == ["host0", "host1"]
    assert list(work.iterdir()) == []


def test_hosts_whose_clocks_differ_share_a_time_line(mpi: launch.Mpi, tmp_path: Path) -> None:
    argv = ["-m", "chronolog_hpc", "bench", *QUICK, "--json", tmp_path / "result.json"]
    with clock_domains(0, 5000) as domains:
        done = mpi(1, *argv, timeout=100, domains=domains)
    assert "verified: all" in done.stdout
    found = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    clock = found["clock"]
    assert clock["clocks"] == 2
    assert 0 < clock["window_ns"]["max"] < 1_000_000
    assert 0 < clock["elapsed_half_ns"] < 100_000_000
    assert found["write"]["seconds"] < 60, "and not 5000 s"


# -- how it ends ---------------------------------------------------------------------------------------------

LOSE_ONE = """
import sys
from chronolog_hpc.bench import phases
from chronolog_hpc.clientlib import EventList

whole = phases.replay_story

def without_the_last(comm, *args, **options):
    events = whole(comm, *args, **options)
    last = comm is None or comm.Get_rank() == comm.Get_size() - 1
    return events[:-1] if last else events

phases.replay_story = without_the_last
from chronolog_hpc.cli import main
sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [0, 2, 4])
def test_a_failed_verification_exits_3_and_says_what_is_wrong(
    bench: Bench, tmp_path: Path, ranks: int
) -> None:
    path = tmp_path / "result.json"
    done = bench(ranks, *QUICK, "--json", path, program=LOSE_ONE, code=3)
    assert f"VERIFICATION FAILED: {max(1, ranks) * EVENTS} expected" in done.stdout
    assert "was not replayed" in done.stderr
    found = json.loads(path.read_text(encoding="utf-8"))["verified"]
    assert (found["missing"], found["expected"] - found["replayed"]) == (1, 1)


RAISE = """
import sys
from chronolog_hpc.bench import {module}
from mpi4py import MPI

def fail(*args, **options):
    if MPI.COMM_WORLD.rank == {rank}:
        raise RuntimeError("a rank has failed")
    return original(*args, **options)

original, {module}.{name} = {module}.{name}, fail
from chronolog_hpc.cli import main
sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "name"), [("phases", "_log_round"), ("job", "verify"), ("phases", "replay_story")]
)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_fails_ends_the_job_and_leaves_nothing(
    bench: Bench, tmp_path: Path, module: str, name: str, rank: int
) -> None:
    path = tmp_path / "result.json"
    program = RAISE.format(module=module, name=name, rank=rank)
    done = bench(2, *QUICK, "--json", path, program=program, code=None)
    assert done.returncode != 0
    assert "RuntimeError: a rank has failed" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)],
)
@pytest.mark.parametrize("ranks", [0, 2])
def test_a_signal_leaves_nothing(places: Path, tmp_path: Path, number: int, code: int, ranks: int) -> None:
    path, token = tmp_path / "result.json", secrets.token_hex(16)
    argv = [*argv_for(ranks), "-m", "chronolog_hpc", "bench", "--events", str(5 * 10**7), "--json", str(path)]
    process = subprocess.Popen(
        argv,
        env=processes.child_environment({"TMPDIR": str(places), processes.TOKEN_NAME: token}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Who starts the tests in the background of a shell has it ignored, by all that they start too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  one thread
    )
    try:
        deadline_s = time.monotonic() + 30
        while not list(places.glob("*/store/*/*/stories/*/*.log")) and time.monotonic() < deadline_s:
            time.sleep(0.02)
        assert list(places.glob("*/store/*/*/stories/*/*.log"))
        # A terminal sends Ctrl-C to the whole group.
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        _, stderr = process.communicate(timeout=30)
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if not ranks:
        assert process.returncode == code
    assert process.returncode != 0
    assert "Traceback" not in stderr
    if number == signal.SIGINT:
        assert 1 <= stderr.count("interrupted\n") <= max(1, ranks)
        assert stderr.count("\n") <= 2 * max(1, ranks), "a word of ours and one of MPI_Abort"
    assert not path.exists()
    wait_until(lambda: not processes.bearers(token))


@pytest.mark.slow
def test_a_full_disk_is_a_failed_verification(places: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ("--events", 100_000, "--baseline-rounds", 0, "--store", disk / "store")
    done = namespaces.run_in_tmpfs(
        disk, 12 << 20, "-m", "chronolog_hpc", "bench", *options, env={"TMPDIR": str(places)}, check=False
    )
    assert done.returncode == 3, processes.describe(done)
    assert "log_event refused" in done.stderr
    assert "VERIFICATION FAILED: 100000 expected" in done.stdout
    assert "0 duplicated, 0 out of order, 0 corrupted" in done.stdout
    lost = re.search(
        r"chronolog bench: (\d+) events of the write phase could not be stored \(ENOSPC (\d+)\)", done.stderr
    )
    assert lost is not None, done.stderr
    assert lost[1] == lost[2]
    assert f" {lost[1]} missing" in done.stdout


def bench_on_a_small_disk(
    directory: Path, size_bytes: int, ranks: int, *options: object, temporary: Path | None = None
) -> str:
    """Run `chronolog bench` where it finds no room, and return the one sentence that it says."""
    disk = directory / "disk"
    disk.mkdir()
    argv = [*argv_for(ranks), "-m", "chronolog_hpc", "bench", *map(str, options)]
    program = f"import os; os.execvp({argv[0]!r}, {argv!r})"
    env = {"TMPDIR": str(temporary or disk)}
    done = namespaces.run_in_tmpfs(disk, size_bytes, "-c", program, env=env, check=False)
    assert done.returncode == 1, processes.describe(done)
    assert "Traceback" not in done.stderr
    (sentence,) = (line for line in done.stderr.splitlines() if line.startswith("chronolog bench: "))
    return sentence


MIB = 2**20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "size_bytes", "rounds", "sentence"),
    [
        (0, MIB // 2, 0, "No space left on device: make room there"),
        (2, 2 * MIB, 0, "rank 1 on .*: No space left on device: make room there"),
        (
            0,
            6 * MIB,
            0,
            r"[0-9]+ events of the latency pass could not be stored \(ENOSPC [0-9]+\): make room",
        ),
        (
            2,
            12 * MIB,
            0,
            r"[0-9]+ events of the latency pass could not be stored \(ENOSPC [0-9]+\): make room",
        ),
        (
            2,
            24 * MIB,
            1,
            r"[0-9]+ events of the comparison of log_events? could not be stored \(ENOSPC [0-9]+\)",
        ),
    ],
)
def test_a_disk_without_room(
    places: Path, tmp_path: Path, ranks: int, size_bytes: int, rounds: int, sentence: str
) -> None:
    options = ("--events", 300_000, "--baseline-rounds", rounds, "--store", tmp_path / "disk" / "store")
    assert re.search(sentence, bench_on_a_small_disk(tmp_path, size_bytes, ranks, *options, temporary=places))


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [0, 2])
def test_no_room_for_the_times_that_are_checked(tmp_path: Path, ranks: int) -> None:
    options = ("--events", 50_000, "--baseline-rounds", 0, "--store", tmp_path / "store")
    sentence = bench_on_a_small_disk(tmp_path, MIB // 16, ranks, *options)
    assert f"{tmp_path / 'disk'}: No space left on device: make room there for 8 bytes per event" in sentence


# -- progress ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_progress_on_a_terminal_only(bench: Bench, places: Path) -> None:
    assert "\r" not in bench(0, *QUICK).stderr
    leader, follower = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "chronolog_hpc", "bench", *map(str, QUICK)],
            env=processes.child_environment({"TMPDIR": str(places)}),
            stdout=subprocess.PIPE,
            stderr=follower,
            text=True,
        )
        stdout, _ = process.communicate(timeout=60)
        shown = os.read(leader, 65536).decode()
    finally:
        os.close(leader)
        os.close(follower)
    assert process.returncode == 0
    assert "\r" not in stdout
    assert "\rwrite 100 %" in shown
    assert shown.endswith("\r"), "the line is removed at the end"
