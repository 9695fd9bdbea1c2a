"""What a deployment does when its processes are killed, when it is told to end, and when it cannot begin."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from chronolog_hpc.clientlib import InvalidArgumentError
from chronolog_hpc.services.configuration import Configuration, Log
from chronolog_hpc.services.deployment import ROLES, plan
from chronolog_hpc.services.rundir import GRAPHER, KEEPER, PLAYER, VISOR, Process, RunDirectory
from py_chronolog_client.engine.connection import Address
from tests.hpc.services.running import FREE, Up, kill, up
from tests.store.holding import wait_until
from tests.support import processes
from tests.support.counts import soak

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A deployment for tests that leave it as they found it."""
    with up(tmp_path_factory.mktemp("shared") / "deployment") as started:
        yield started


# -- while it runs --


@pytest.mark.parametrize("role", ROLES)
def test_a_service_that_is_killed_is_started_again_at_its_address(shared: Up, role: str) -> None:
    before = shared.find(role)
    kill(before)
    after = shared.find(role, after=before)
    assert (after.host, after.port) == (before.host, before.port)
    wait_until(lambda: f"the {role} listens at 127.0.0.1:{after.port} again (pid {after.pid})" in shared.err)
    assert f"the {role} (pid {before.pid}) was ended by SIGKILL; it is started again in" in shared.err
    names = [process.role for process in shared.run.processes()]
    assert sorted(names) == ["grapher", "keeper", "player", "up", "visor"]


def test_a_service_that_is_told_to_end_by_somebody_else_is_started_again(shared: Up) -> None:
    before = shared.find(PLAYER)
    os.kill(before.pid, signal.SIGTERM)
    wait_until(lambda: f"the player (pid {before.pid}) has ended with exit code 0" in shared.err)
    assert shared.find(PLAYER, after=before).port == before.port


def test_a_second_one_is_refused_in_the_same_directory_and_not_beside_it(shared: Up, tmp_path: Path) -> None:
    second = Up(shared.directory, *FREE)
    assert second.process.wait(60) == 2
    assert re.search(r"up \(pid \d+ on .*\) runs here already: 'chronolog status' shows it", second.err)
    assert shared.find(VISOR)
    with up(tmp_path / "beside") as beside:
        assert beside.find(VISOR).port != shared.find(VISOR).port
        assert beside.run.provide_tokens() != shared.run.provide_tokens()
        assert beside.end() == 0


@pytest.mark.parametrize(("role", "option"), [(VISOR, "--port"), (PLAYER, "--query-port")])
def test_a_port_that_is_taken_is_named(tmp_path: Path, role: str, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        ports = {"--port": 0, "--query-port": 0, option: port}
        refused = Up(tmp_path / "deployment", *(word for item in ports.items() for word in item))
        assert refused.process.wait(60) == 2
    assert f"127.0.0.1:{port}: cannot listen there (Address already in use)" in refused.err
    assert f"with {option}" in refused.err
    assert refused.run.processes() == []


def test_a_problem_in_a_log_is_told(shared: Up) -> None:
    visor = shared.find(VISOR)
    with socket.create_connection((visor.host, visor.port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")
        host, port = stranger.getsockname()
        wait_until(lambda: re.search(rf"visor: WARNING {re.escape(host)}:{port}", shared.err))
    assert f"{host}:{port}" in (shared.directory / "log" / "visor.log").read_text()
    assert " INFO " not in shared.err


def test_a_log_that_is_moved_away_or_full_is_told_of_all_the_same(tmp_path: Path) -> None:
    bounded = {"monitor": {"type": "file", "file": "v.log", "filesize": 2000, "filenum": 2}}
    (tmp_path / "conf.json").write_text(json.dumps({"chrono_visor": {"Monitoring": bounded}}))
    with up(tmp_path / "deployment", *FREE, "--config", tmp_path / "conf.json") as started:
        logs, visor = started.directory / "log", started.find(VISOR)

        def be_rude(times: int = 1) -> str:
            for _ in range(times):
                with socket.create_connection((visor.host, visor.port)) as stranger:
                    name = "{}:{}".format(*stranger.getsockname())
                    stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")
                    while stranger.recv(1000):
                        pass
            wait_until(lambda: name in started.err)
            return name

        be_rude()
        (logs / "v.log").rename(logs / "moved")
        assert be_rude() in (logs / "v.log").read_text()
        be_rude(50)
        assert (logs / "v.log.2").exists()
        assert all(path.stat().st_size < 2500 for path in logs.glob("v.log*"))
        assert not (logs / "v.log.3").exists()


# -- its end --


def children(started: Up) -> list[Process]:
    return [started.find(role) for role in ROLES]


def assert_gone(started: Up, those: list[Process]) -> None:
    wait_until(lambda: not any(Path(f"/proc/{process.pid}").exists() for process in those))
    assert [path.name for path in started.run.path.iterdir()] == ["tokens"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM][: soak(1, 3)])
def test_it_ends_in_order_when_told_to(tmp_path: Path, number: signal.Signals) -> None:
    with up(tmp_path / "deployment") as started:
        those = children(started)
        assert started.end(number) == 0, started.err
        assert_gone(started, those)
    logs = started.directory / "log"
    ends = [next(logs.glob(f"{role}*.log")).read_text().splitlines()[-1] for role in ROLES]
    assert all("stopped" in line for line in ends)
    stamps = [" ".join(line.split()[:2]) for line in ends]
    assert stamps == sorted(stamps, reverse=True)


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with up(tmp_path / "deployment") as started:
        those = children(started)
        keeper = started.find(KEEPER)
        os.kill(keeper.pid, signal.SIGSTOP)
        started.process.terminate()
        player = next(process for process in those if process.role == PLAYER)
        wait_until(lambda: not started.run.is_alive(player))
        started.process.terminate()
        assert started.process.wait(15) == 1
        assert f"the keeper (pid {keeper.pid}) is killed: a second signal came" in started.err
        assert_gone(started, those)


def test_a_service_whose_parent_is_another_ends_at_once(tmp_path: Path) -> None:
    argv = ["-m", "chronolog_hpc.services", VISOR, "--directory", tmp_path / "v", "--tokens", tmp_path / "t"]
    done = processes.run([sys.executable, *map(str, argv), "--parent", "1"], timeout=60)
    assert done.returncode == 1
    assert not done.stdout


# -- its beginning --


def test_a_service_that_cannot_start_ends_the_beginning(tmp_path: Path) -> None:
    directory = tmp_path / "deployment"
    directory.mkdir(0o700)
    (directory / "visor").write_text("no store")
    refused = Up(directory, *FREE)
    assert refused.process.wait(60) == 1
    log = directory / "log" / "visor.log"
    assert "the visor (pid " in refused.err
    assert f"has ended with exit code 2; its log {log} ends with: " in refused.err
    assert refused.run.processes() == []


def test_told_to_end_before_it_is_ready(tmp_path: Path) -> None:
    started = Up(tmp_path / "deployment", *FREE)
    try:
        wait_until(lambda: (started.directory / "log" / "visor.log").exists())
        assert started.end() in (0, 1)
        assert started.run.processes() == []
    finally:
        started.close()


def test_roles_may_run_apart_and_find_their_visor(tmp_path: Path) -> None:
    directory = tmp_path / "deployment"
    early = Up(directory, "--role", KEEPER)
    assert early.process.wait(60) == 2
    assert "no visor runs there: start it first" in early.err
    with up(directory, "--role", VISOR, "--port", 0) as visor, up(directory, "--role", KEEPER) as keeper:
        where = visor.find(VISOR)
        log = next((directory / "log").glob("keeper-*.log"))
        wait_until(lambda: f"registered with the visor at 127.0.0.1:{where.port}" in log.read_text())
        assert keeper.find(KEEPER)
        assert len(keeper.run.processes()) == 4
        assert keeper.end() == 0
        assert {process.role for process in visor.run.processes()} == {"up", VISOR}


# -- what is to be where --


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "deployment", create=True)


NO_PORTS: dict[str, int | None] = {VISOR: None, PLAYER: None}


def test_without_a_word_everything_is_as_chronolog_has_it(run: RunDirectory) -> None:
    node = socket.gethostname()
    visor, grapher, keeper, player = plan(run, ROLES, Configuration(), ports=NO_PORTS)
    assert [role.address for role in (visor, grapher, keeper, player)] == [
        Address("127.0.0.1", 5555),
        Address("127.0.0.1", 0),
        Address("127.0.0.1", 0),
        Address("127.0.0.1", 5557),
    ]
    assert visor.store == run.deployment / "visor"
    assert grapher.store == run.deployment / "grapher"
    assert keeper.store == run.deployment / f"keeper-{node}"
    assert keeper.log == run.deployment / "log" / f"keeper-{node}.log"
    assert player.log == run.deployment / "log" / "player.log"
    assert {role.level for role in (visor, grapher, keeper, player)} == {"info"}


def test_options_come_before_the_configuration(run: RunDirectory) -> None:
    said = Configuration(
        portal=Address("localhost", 1),
        recording=Address("127.0.0.1", 2),
        query=Address("127.0.0.1", 3),
        logs={VISOR: Log("debug", Path("v.log")), KEEPER: Log("off", Path("/logs/k.log"))},
        draining=Address("127.0.0.1", 4),
        story_files={KEEPER: Path("/scratch"), GRAPHER: Path("/archive")},
    )
    visor, grapher, keeper, player = plan(run, ROLES, said, ports=NO_PORTS)
    assert [role.address.port for role in (visor, grapher, keeper, player)] == [1, 4, 2, 3]
    assert visor.address.host == "127.0.0.1"
    assert (visor.log, visor.level) == (run.deployment / "log" / "v.log", "debug")
    assert (keeper.log, keeper.level) == (Path("/logs/k.log"), "off")
    assert keeper.store.parent == Path("/scratch")
    assert grapher.store == Path("/archive/grapher")
    roles = plan(run, ROLES, said, host="127.0.0.5", ports={VISOR: 0, PLAYER: 9})
    assert [role.address for role in roles] == [
        Address("127.0.0.5", 0),
        Address("127.0.0.5", 4),
        Address("127.0.0.5", 2),
        Address("127.0.0.5", 9),
    ]


def test_an_address_in_the_configuration_is_no_safer_than_one_on_the_command_line(run: RunDirectory) -> None:
    far = Configuration(query=Address("192.0.2.7", 3))
    with pytest.raises(
        InvalidArgumentError, match=r"192\.0\.2\.7 is no loopback address.*--insecure-network"
    ):
        plan(run, ROLES, far, ports=NO_PORTS)
    assert plan(run, ROLES, far, ports=NO_PORTS, insecure_network=True)[3].address.host == "192.0.2.7"
