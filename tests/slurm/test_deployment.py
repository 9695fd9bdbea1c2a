"""`slurm/deployment.sbatch` under a real Slurm: however the job ends, the nodes are released when everything is shipped."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from py_chronolog_client.engine.embedded import EmbeddedEngine
from tests.store.holding import wait_until
from tests.support import processes
from tests.support.cluster import Cluster, cluster, slurm_problem
from tests.support.counts import SOAKING
from tests.support.requirements import require

SCRIPT = processes.ROOT / "slurm" / "deployment.sbatch"
NODES = 2
pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

# Logs until it is told to end, or has logged enough, and dies without a word to the spool.
PROGRAM = """
    import os, signal, sys, time
    from pathlib import Path
    from py_chronolog_client import Client, ClientPortalServiceConf, ClientQueryServiceConf

    client = Client(ClientPortalServiceConf(), ClientQueryServiceConf())
    assert client.Connect() == 0, client.last_error
    assert client.CreateChronicle("job") in (0, -6)
    code, handle = client.AcquireStory("job", "s", {}, 0)
    assert code == 0, client.last_error
    rank, told = os.environ["SLURM_PROCID"], []
    signal.signal(signal.SIGTERM, lambda *anything: told.append(1))
    count = 0
    while not told and count < int(sys.argv[2]):
        assert handle.log_event(f"{rank} {count}")
        count += 1
        if count == 1000:
            Path(sys.argv[1], f"logging-{rank}").touch()
        time.sleep(0.0001)
    Path(sys.argv[1], f"logged-{rank}").write_text(str(count))
    if sys.argv[3] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Cluster]:
    require("slurm", slurm_problem())
    with cluster(tmp_path / "c", NODES) as hosts:
        hosts.start_slurm(cpus=4)
        yield hosts


def submit(slurm: Cluster, directory: Path, *arguments: object) -> str:
    (directory / "program.py").write_text(textwrap.dedent(PROGRAM))
    submitted = slurm.run(
        "h1", "sbatch", "--parsable", f"--nodes={NODES}", "--time=10", f"--chdir={directory}", "--output=job.out", SCRIPT,
        "srun", "--overlap", f"--nodes={NODES}", f"--ntasks={NODES}", sys.executable, directory / "program.py", *arguments,
        env={"CHRONOLOG_HOST": "eth0", "TMPDIR": str(directory)},
    )  # fmt: skip
    assert submitted.returncode == 0, processes.describe(submitted)
    return submitted.stdout.strip()


def state(slurm: Cluster, job: str) -> str:
    shown = slurm.run("h1", "scontrol", "show", "job", job).stdout
    found = re.search(r"JobState=(\w+)", shown)
    assert found, shown
    return found[1]


def wait_for(slurm: Cluster, job: str) -> str:
    """Wait until no process of the job is left; return how it ended."""
    for _ in range(9):
        try:
            wait_until(lambda: not slurm.run("h1", "squeue", "--noheader", f"--jobs={job}").stdout.strip())
            break
        except AssertionError:
            continue
    return state(slurm, job)


def assert_all_there(directory: Path, job: str) -> None:
    """Every event that was logged is in the keepers' stores, once and in order, and nothing in the spool."""
    found: dict[str, list[int]] = defaultdict(list)
    for store in (directory / f"chronolog-{job}").glob("keeper-*"):
        engine = EmbeddedEngine(store)
        for page in engine.scan("job", "s", verify=True) if engine.chronicles() else ():
            for record in page.records():
                rank, number = record.decode().split()
                found[rank].append(int(number))
        engine.close()
    for rank in range(NODES):
        assert found[str(rank)] == list(range(int((directory / f"logged-{rank}").read_text())))
    spool = directory / f"chronolog-spool-{job}"
    assert not [path for path in spool.rglob("*") if path.suffix in (".log", ".tail")]


def test_told_to_end_the_program_ends_its_way_and_everything_is_shipped(
    slurm: Cluster, tmp_path: Path
) -> None:
    job = submit(slurm, tmp_path, tmp_path, 10**9, "killed")
    try:
        wait_until(lambda: all((tmp_path / f"logging-{rank}").exists() for rank in range(NODES)))
        slurm.run("h1", "scancel", "--batch", "--signal=TERM", job)
        assert wait_for(slurm, job) == "FAILED"
        assert_all_there(tmp_path, job)
    except BaseException:
        print((tmp_path / "job.out").read_text())
        raise
    said = (tmp_path / "job.out").read_text()
    assert "is up: visor 10.77.0.1:" in said
    assert "told to end after" in said
    assert "not shipped" not in said


@pytest.mark.skipif(not SOAKING, reason="only with CHRONOLOG_SOAK=1 (make soak)")
def test_a_program_that_ends_and_plain_scancel(slurm: Cluster, tmp_path: Path) -> None:
    job = submit(slurm, tmp_path, tmp_path, 5000, "well")
    assert wait_for(slurm, job) == "COMPLETED"
    assert_all_there(tmp_path, job)
    for path in tmp_path.glob("logg*"):
        path.unlink()
    job = submit(slurm, tmp_path, tmp_path, 10**9, "killed")
    wait_until(lambda: all((tmp_path / f"logging-{rank}").exists() for rank in range(NODES)))
    slurm.run("h1", "scancel", job)
    assert wait_for(slurm, job) == "CANCELLED"
    assert_all_there(tmp_path, job)


# -- without Slurm --


def test_what_it_would_do_and_what_is_missing() -> None:
    def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        return processes.run(["bash", str(SCRIPT), *arguments], timeout=30, env=env)

    shown = run("srun", "a program", DRY_RUN="1", CHRONOLOG_HOST="ib0")
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["srun", "srun", "srun", "chronolog"]
    assert " chronolog up --directory " in lines[1]
    assert lines[2] == "srun a\\ program "
    for done, words in (
        (run("x", DRY_RUN="1"), "set CHRONOLOG_HOST"),
        (run(), "name the program"),
        (run("x"), "submit it with sbatch"),
    ):
        assert done.returncode == 2
        assert words in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.skipif(
    shutil.which("shellcheck") is None, reason="shellcheck is not installed (apt install shellcheck)"
)
def test_shellcheck_has_nothing_to_say() -> None:
    scripts = [SCRIPT, processes.ROOT / "tests" / "support" / "cluster.sh"]
    done = processes.run(["shellcheck", *map(os.fspath, scripts)], timeout=60)
    assert done.returncode == 0, done.stdout
