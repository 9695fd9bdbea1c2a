"""`chronolog up`, `status` and `down`: as a user starts, asks and ends a deployment, alone and under mpiexec."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from chronolog_hpc import cli
from chronolog_hpc.services.configuration import Configuration
from chronolog_hpc.services.deployment import ROLES, plan
from chronolog_hpc.services.rundir import GRAPHER, KEEPER, PLAYER, VISOR, RunDirectory
from tests.hpc.services.running import FREE, chronolog, up
from tests.store.holding import wait_until
from tests.support import certificates, launch, namespaces, processes
from tests.support.counts import soak
from tests.support.launch import Mpi
from tests.support.requirements import require

HEAVY = {"numpy", "mpi4py", "msgpack", "py_chronolog_client", "asyncio", "subprocess"}

# A program as it is written for the compiled client: the addresses are in it, and nothing of this project.
PROGRAM = """
    import sys
    import py_chronolog_client

    portal = py_chronolog_client.ClientPortalServiceConf("ofi+sockets", "127.0.0.1", int(sys.argv[1]), 55)
    query = py_chronolog_client.ClientQueryServiceConf("ofi+sockets", "127.0.0.1", int(sys.argv[2]), 57)
    client = py_chronolog_client.Client(portal, query)
    assert client.Connect() == 0, client.last_error
    client.CreateChronicle("lab", {}, 1)
    code, handle = client.AcquireStory("lab", "furnace", {}, 1)
    assert code == 0
    for number in range(1000):
        handle.log_event(f"{sys.argv[3]} {number}")
    assert client.ReleaseStory("lab", "furnace") == 0
    events = py_chronolog_client.EventList()
    assert client.ReplayStory("lab", "furnace", 1, 2**63, events) == 0
    print(len(events), *(event.log_record() for event in (events[0], events[-1])), sep=", ")
    assert client.Disconnect() == 0
"""


def run_program(run: RunDirectory, spool: Path, word: str) -> str:
    ports = [process.port for role in (VISOR, PLAYER) if (process := run.find(role))]
    env = {"CHRONOLOG_TOKEN_FILE": str(run.tokens), "CHRONOLOG_SPOOL": str(spool)}
    env["CHRONOLOG_CERTIFICATE"] = str(run.certificate) if run.has_tls else ""
    argv = [sys.executable, "-c", textwrap.dedent(PROGRAM), *map(str, ports), word]
    done = processes.run(argv, timeout=60, env=env)
    assert done.returncode == 0, processes.describe(done)
    return done.stdout


@pytest.mark.parametrize("command", ["up", "status", "down"])
def test_help_imports_nothing_heavy(command: str) -> None:
    program = "import sys; from chronolog_hpc.cli import main; code = main(sys.argv[1:]); print(*sys.modules)"
    done = processes.run([sys.executable, "-c", program, command, "--help"], timeout=60)
    assert "--directory DIR" in done.stdout
    assert "exit codes" in done.stdout
    assert not HEAVY & set(done.stdout.splitlines()[-1].split())


# -- a deployment in the background --


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A directory whose deployment is ended after the test."""
    yield tmp_path / "deployment"
    if (tmp_path / "deployment" / "run").exists():
        done = chronolog("down", "--directory", tmp_path / "deployment")
        assert done.returncode == 0, done.stderr


def background(directory: Path, *options: object) -> subprocess.CompletedProcess[str]:
    return chronolog("up", "--background", "--directory", directory, *(options or FREE))


@pytest.mark.slow
def test_a_program_for_the_compiled_client_logs_and_replays_and_finds_it_all_again(directory: Path) -> None:
    done = background(directory)
    assert done.returncode == 0, done.stderr
    run = RunDirectory(directory)
    visor, player = run.find(VISOR), run.find(PLAYER)
    assert visor
    assert player
    assert f"export CHRONOLOG_TOKEN_FILE={run.tokens}" in done.stdout
    assert f"export CHRONOLOG_PORTAL=127.0.0.1:{visor.port}" in done.stdout
    assert f"export CHRONOLOG_QUERY=127.0.0.1:{player.port}" in done.stdout
    spool = directory.parent / "spool"
    spool.mkdir()
    assert run_program(run, spool, "hot") == "1000, hot 0, hot 999\n"
    those, tokens = run.processes(), run.provide_tokens()
    for process in those:
        if process.role == "up":
            os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: not any(map(run.is_alive, those)))  # no service outlives its parent
    assert background(directory, "--port", visor.port, "--query-port", player.port).returncode == 0
    assert run.provide_tokens() == tokens
    assert run_program(run, spool, "cold") == "2000, hot 0, cold 999\n"


@pytest.mark.slow
def test_with_tls_programs_need_the_certificate(directory: Path) -> None:
    """What was made with TLS keeps it, whoever starts it; and any address will do."""
    certificates.made(directory.parent)
    options = ("--role", "visor", "--port", "0", "--directory", directory)
    done = chronolog("up", "--background", "--tls", *options)
    assert done.returncode == 0, done.stderr
    run = RunDirectory(directory)
    assert f"export CHRONOLOG_CERTIFICATE={run.certificate}" in done.stdout
    assert chronolog("down", "--directory", directory).returncode == 0
    done = background(directory)
    assert done.returncode == 0, done.stderr
    spool = directory.parent / "spool"
    spool.mkdir()
    assert run_program(run, spool, "sealed") == "1000, sealed 0, sealed 999\n"
    assert plan(run, ROLES, Configuration(), host="192.0.2.7", ports={})[0].address.host == "192.0.2.7"


@pytest.mark.slow
def test_a_copy_is_a_backup_and_drains_at_its_end(directory: Path) -> None:
    spool = directory.parent / "spool"
    spool.mkdir()
    with up(directory) as started:
        assert run_program(started.run, spool, "before") == "1000, before 0, before 999\n"
        assert started.end() == 0
    shutil.copytree(directory, directory.parent / "backup", symlinks=True)
    with up(directory.parent / "backup", *FREE, "--drain", "20") as restored:
        assert run_program(restored.run, spool, "after") == "2000, before 0, after 999\n"
        assert restored.end() == 0
        assert "not shipped" not in restored.err


@pytest.mark.slow
def test_status_and_down(directory: Path) -> None:
    assert background(directory).returncode == 0
    told = chronolog("status", "--directory", directory, "--json")
    assert told.returncode == 0
    found = json.loads(told.stdout)
    assert found.keys() == {"directory", "alive", "processes", "spools"}
    assert found["alive"] is True
    assert sorted(process["role"] for process in found["processes"]) == [
        "grapher",
        "keeper",
        "player",
        "up",
        "visor",
    ]
    for process in found["processes"]:
        assert process.keys() == {
            "role", "node", "host", "port", "pid", "alive", "answers", "uptime_s", "rss_bytes", "connections", "counters",
            "rates_per_s", "version",
        }  # fmt: skip
        assert process["alive"] is True
        assert process["rss_bytes"] > 2**20
        assert 0 <= process["uptime_s"] < 600
        assert process["role"] == "up" or (process["host"], process["connections"] >= 0) == (
            "127.0.0.1",
            True,
        )
    shown = chronolog("status", "--directory", directory)
    assert shown.returncode == 0
    assert shown.stdout.startswith("role     node")
    assert shown.stdout.count("alive") == 5

    run = RunDirectory(directory)
    those = run.processes()
    assert chronolog("down", "--directory", directory).returncode == 0
    assert not any(map(run.is_alive, those))
    assert [path.name for path in (directory / "run").iterdir()] == ["tokens"]
    nothing = chronolog("status", "--directory", directory)
    assert (nothing.returncode, nothing.stdout) == (1, f"nothing runs in {directory}\n")
    assert chronolog("down", "--directory", directory).returncode == 0


@pytest.mark.slow
def test_down_when_something_is_dead_already(directory: Path) -> None:
    with up(directory) as started:
        started.process.kill()
        started.process.wait()
        wait_until(lambda: started.run.find(VISOR) is None)
        told = json.loads(chronolog("status", "--directory", directory, "--json").stdout)
        assert [process["alive"] for process in told["processes"]] == [False] * 5
        assert told["processes"][0]["rss_bytes"] is None
        done = chronolog("down", "--directory", directory)
        assert (done.returncode, done.stderr) == (0, "")
        assert started.run.processes() == []


@pytest.mark.slow
def test_down_ends_what_is_being_started_again_and_status_counts_it_as_dead(directory: Path) -> None:
    with up(directory) as started:
        keeper = started.find(KEEPER)
        os.kill(keeper.pid, signal.SIGSTOP)  # so that it is not started again while the test looks
        os.kill(started.process.pid, signal.SIGSTOP)
        os.kill(keeper.pid, signal.SIGKILL)
        wait_until(lambda: not started.run.is_alive(keeper))
        told = chronolog("status", "--directory", directory)
        assert told.returncode == 1
        assert told.stdout.count("dead") == 1
        os.kill(started.process.pid, signal.SIGCONT)
        assert chronolog("down", "--directory", directory).returncode == 0
        assert started.process.wait(60) == 0


def test_what_is_somebody_elses_is_said_and_left_alone(directory: Path) -> None:
    run = RunDirectory(directory, create=True)
    here = {"pid": os.getpid(), "pid_start": 0, "pid_namespace": "elsewhere", "host": "", "port": 0}
    there = {"role": "up", "node": "far", "boot_id": "", "started_ns": 0, "version": "1", "runs": ["visor"]}
    (run.path / "up-far-1.json").write_text(json.dumps({**here, **there}))
    told = json.loads(chronolog("status", "--directory", directory, "--json").stdout)
    assert [(row["role"], row["alive"], row["rss_bytes"]) for row in told["processes"]] == [
        ("up", True, None),
        ("visor", False, None),
    ]
    done = chronolog("down", "--directory", directory)
    assert done.returncode == 1
    assert f"up (pid {os.getpid()} on far) still runs: run 'chronolog down' on far" in done.stderr
    (run.path / "up-far-1.json").unlink()


# -- what cannot be --


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.json").write_text('{"clock": {}\n  "chrono_visor": {}}')
    (tmp_path / "typo.json").write_text('{"chrono_vizor": {}}')
    (tmp_path / "far.json").write_text(
        '{"chrono_visor": {"VisorClientPortalService": {"rpc": {"service_ip": "192.0.2.1", "service_base_port": 1}}}}'
    )
    (tmp_path / "open" / "run").mkdir(0o755, parents=True)
    (tmp_path / "open").chmod(0o700)
    new = ("--directory", tmp_path / "new")
    asked: list[tuple[tuple[object, ...], str]] = [
        (("up", *new, "--config", tmp_path / "no.json"), "No such file"),
        (("up", *new, "--config", tmp_path / "broken.json"), "broken.json: no JSON at line 2, column 3"),
        (("up", *new, "--config", tmp_path / "typo.json"), "did you mean 'chrono_visor'?"),
        (("up", *new, "--config", tmp_path / "far.json"), "192.0.2.1 is no loopback address"),
        (("up", *new, "--config", tmp_path / "far.json", "--host", "0.0.0.0"), "stands for all addresses"),
        (("up", *new, "--host", "192.0.2.1", "--insecure-network", *FREE), "cannot listen there"),
        (("up", *new, "--tls-certificate", tmp_path / "no.pem"), "go together"),
        (("up", *new, "--tls-certificate", tmp_path / "no", "--tls-key", tmp_path / "no"), "No such file"),
        (("up", *new, "--port", "70000"), "--port"),
        (("up", *new, "--role", "grapher"), "--role"),
        (("up", *new, "--role", "keeper"), "no visor runs there"),
        (("up", "--directory", tmp_path / "no" / "new"), "make it first"),
        (("up", "--directory", tmp_path / "open"), "mode 0755"),
        (("up", "--directory", tmp_path / "typo.json"), "must be a directory"),
        (("status", "--directory", tmp_path / "none"), "'chronolog up' starts one"),
        (("down", "--directory", tmp_path / "none"), "'chronolog up' starts one"),
    ]
    for args, words in asked:
        assert cli.main(list(map(str, args))) == cli.USAGE, args
        said = capsys.readouterr()
        assert words in said.err
        assert said.err.count("\n") == 1
        assert not said.out


@pytest.mark.slow
def test_one_that_cannot_start_in_the_background_says_why_where_it_was_asked_for(directory: Path) -> None:
    directory.mkdir(0o700)
    (directory / "visor").touch()
    done = background(directory)
    assert done.returncode == 1
    assert "chronolog up: the visor (pid " in done.stderr
    assert RunDirectory(directory).processes() == []


@pytest.mark.slow
def test_a_configuration_and_the_default_directory(tmp_path: Path) -> None:
    conf = {
        "chrono_visor": {
            "VisorClientPortalService": {"rpc": {"protocol_conf": "ofi+tcp", "service_base_port": 0}},
            "Monitoring": {"monitor": {"type": "file", "file": "../visor_log.txt", "level": "debug"}},
        },
        "chrono_keeper": {"Extractors": {"story_files_dir": str(tmp_path / "stories")}},
        "chrono_player": {"PlaybackQueryService": {"rpc": {"service_base_port": 0}}},
    }
    (tmp_path / "conf.json").write_text(json.dumps(conf))
    done = chronolog("up", "--background", "--config", "conf.json", cwd=tmp_path)
    try:
        assert done.returncode == 0, done.stderr
        assert "conf.json: ofi+tcp: all services of this deployment speak TCP" in done.stderr
        directory = tmp_path / "chronolog_deployment"
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert (directory / "log" / "visor_log.txt").exists()
        assert chronolog("status", cwd=tmp_path).returncode == 0
    finally:
        assert chronolog("down", cwd=tmp_path).returncode == 0


# -- over the ranks of a job --


@contextmanager
def job(start: Callable[[], Any], directory: Path) -> Iterator[Future[Any]]:
    """A deployment under a launcher, once it is ready; ended after the block."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(start)
        wait_until(lambda: future.done() or _is_up(directory))
        try:
            yield future
        finally:
            if not future.done():
                chronolog("down", "--directory", directory)


def _is_up(directory: Path) -> bool:
    return all(any((directory / "run").glob(name)) for name in ("grapher.json", "keeper-*", "player.json"))


@pytest.mark.slow
def test_under_mpiexec_there_is_one_deployment_and_down_ends_the_job(mpi: Mpi, directory: Path) -> None:
    options = ("up", "--directory", directory, *FREE)
    with job(lambda: mpi(2, "-m", "chronolog_hpc", *options, timeout=60, check=False), directory) as done:
        run = RunDirectory(directory)
        assert sorted(process.role for process in run.processes()) == [
            "grapher",
            "keeper",
            "player",
            "up",
            "visor",
        ]
        assert chronolog("status", "--directory", directory).returncode == 0
        assert chronolog("down", "--directory", directory).returncode == 0
        told = done.result(60)
    assert told.returncode == 0, processes.describe(told)
    assert told.stdout.count("ChronoLog deployment in") == 1
    assert run.processes() == []


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_job_and_its_services(mpi: Mpi, directory: Path) -> None:
    options = ("up", "--directory", directory, *FREE)
    with job(lambda: mpi(2, "-m", "chronolog_hpc", *options, timeout=60, check=False), directory) as done:
        run = RunDirectory(directory)
        (parent,) = (process for process in run.processes() if process.role == "up")
        os.kill(parent.pid, signal.SIGKILL)
        assert done.result(60).returncode != 0
        wait_until(lambda: not any(map(run.is_alive, run.processes())))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM][: soak(1, 2)])
def test_a_signal_to_the_launcher_ends_the_job(directory: Path, number: signal.Signals) -> None:
    require("mpi", launch.mpi_problem())
    argv = [*launch.mpiexec(), "-n", "2", sys.executable, "-m", "chronolog_hpc", "up", *FREE, "--directory"]
    launcher = subprocess.Popen(
        [*argv, str(directory)],
        env=processes.child_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_until(lambda: _is_up(directory))
        wait_until(lambda: chronolog("status", "--directory", directory).returncode == 0)
        launcher.send_signal(number)
        assert launcher.wait(60) == 0
        assert RunDirectory(directory).processes() == []
    finally:
        if launcher.poll() is None:
            launcher.kill()
            launcher.wait()


def test_what_is_for_one_process_is_refused_on_two(mpi: Mpi, directory: Path) -> None:
    for option in (("--background",), ("--role", "visor")):
        done = mpi(
            2, "-m", "chronolog_hpc", "up", "--directory", directory, *option, *FREE, timeout=60, check=False
        )
        assert done.returncode == 2, processes.describe(done)
        assert done.stderr.count("--role and --background are for one process") == 1


@pytest.fixture
def two_nodes(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return what runs `chronolog up` on two ranks with a host name each, in a network of its own with 10.77.0.1."""
    require("mpi", launch.mpi_problem())
    require("namespaces", namespaces.namespaces_problem())
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and iproute2")
    rank = f'hostname node$PMI_RANK && exec "{sys.executable}" -m chronolog_hpc up "$@"'
    script = (
        "ip link set lo up && ip address add 10.77.0.1/32 dev lo && "
        f"exec {' '.join(launch.mpiexec())} -n 2 unshare --uts sh -c '{rank}' sh \"$@\""
    )

    def run(*options: object) -> subprocess.CompletedProcess[str]:
        return processes.run(["unshare", "--net", "sh", "-c", script, "sh", *map(str, options)], timeout=60)

    return run


def test_nodes_that_cannot_reach_each_other_are_told_what_to_do(
    two_nodes: Callable[..., subprocess.CompletedProcess[str]], directory: Path
) -> None:
    done = two_nodes("--directory", directory, *FREE)
    assert done.returncode == 2, processes.describe(done)
    assert done.stderr.count("the 2 nodes of this job do not reach each other at 127.0.0.1") == 1
    assert "--host eth0" in done.stderr


@pytest.mark.slow
def test_every_node_has_a_keeper_and_any_of_them_may_end_the_job(
    two_nodes: Callable[..., subprocess.CompletedProcess[str]], directory: Path
) -> None:
    certificates.made(directory.parent)
    options = ("--directory", directory, "--host", "10.77.0.1", "--tls", *FREE)
    with job(lambda: two_nodes(*options), directory) as done:
        run = RunDirectory(directory)
        wait_until(lambda: done.done() or len(run.processes()) == 7)
        roles = sorted((process.role, process.node) for process in run.processes())
        nodes = ("node0", "node1")
        assert roles == [
            (GRAPHER, "node0"),
            *((KEEPER, node) for node in nodes), (PLAYER, "node0"), *(("up", node) for node in nodes), (VISOR, "node0"),
        ]  # fmt: skip
        log = directory / "log" / "visor.log"
        wait_until(lambda: all(f"keeper of {node}" in log.read_text() for node in nodes))
        parents = {process.node: process.pid for process in run.processes() if process.role == "up"}
        os.kill(parents["node1"], signal.SIGTERM)
        told = done.result(60)
    assert told.returncode == 0, processes.describe(told)
    assert "keeper  10.77.0.1" in told.stdout
    assert run.processes() == []
