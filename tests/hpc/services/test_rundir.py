"""The run directory: who may be in it, what it says of processes, and that it believes no file of the dead."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from chronolog_hpc.clientlib import ChronoLogError, DamageError, InvalidArgumentError, NotAuthorizedError
from chronolog_hpc.services.rundir import KEEPER, PLAYER, UP, VISOR, Process, RunDirectory
from py_chronolog_client.engine.connection import Address
from py_chronolog_client.store import owner
from py_chronolog_client.tokens import read_tokens
from tests.store.holding import NOBODY, as_nobody

ADDRESS = Address("127.0.0.1", 5)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "deployment", create=True)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives as long as the test."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def killed() -> Process:
    """Return a process that was there a moment ago."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        described = Process.running(KEEPER, process.pid, ADDRESS)
        process.send_signal(signal.SIGKILL)
    return described


# -- the directory --


def test_it_is_made_for_its_owner_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        run = RunDirectory(tmp_path / "deployment", create=True)
    finally:
        os.umask(before)
    for path in (run.deployment, run.path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert RunDirectory(tmp_path / "deployment").path == run.path


def test_nothing_is_made_unless_asked_nor_far_from_where_something_is(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="there is no deployment: 'chronolog up' starts one"):
        RunDirectory(tmp_path / "deployment")
    with pytest.raises(InvalidArgumentError, match=r"there is no directory .*/no: make it first"):
        RunDirectory(tmp_path / "no" / "deployment", create=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", [0o750, 0o701, 0o777])
def test_a_run_directory_that_others_may_look_into_is_refused(run: RunDirectory, mode: int) -> None:
    run.path.chmod(mode)
    with pytest.raises(NotAuthorizedError, match=f"mode 0{mode:o}.*chmod 700"):
        RunDirectory(run.deployment, create=True)


def test_a_deployment_that_others_may_change_is_refused_and_one_they_may_see_is_not(
    run: RunDirectory,
) -> None:
    run.deployment.chmod(0o755)
    RunDirectory(run.deployment)
    run.deployment.chmod(0o775)
    with pytest.raises(NotAuthorizedError, match="chmod go-w"):
        RunDirectory(run.deployment)


def test_a_run_directory_is_no_link(run: RunDirectory, tmp_path: Path) -> None:
    run.path.rename(tmp_path / "elsewhere")
    run.path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotAuthorizedError, match="symbolic link"):
        RunDirectory(run.deployment, create=True)
    run.path.unlink()
    run.path.touch()
    with pytest.raises(NotAuthorizedError, match="must be a directory"):
        RunDirectory(run.deployment, create=True)


def test_a_link_to_a_deployment_is_followed_once(run: RunDirectory, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(run.deployment)
    assert RunDirectory(link).path == run.path


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_the_directory_of_somebody_else_is_refused(run: RunDirectory) -> None:
    os.chown(run.path, NOBODY, NOBODY)
    with pytest.raises(NotAuthorizedError, match=f"belongs to user {NOBODY}"):
        RunDirectory(run.deployment)


# -- tokens --


def test_tokens_are_made_once(run: RunDirectory) -> None:
    tokens = run.provide_tokens()
    assert len(tokens) == 2
    assert "service" in tokens
    assert stat.S_IMODE(run.tokens.stat().st_mode) == 0o600
    assert run.provide_tokens() == tokens == read_tokens(run.tokens)
    assert [path.name for path in run.path.iterdir()] == ["tokens"]


def test_whoever_is_first_makes_the_tokens_of_all(run: RunDirectory) -> None:
    found = []
    threads = [threading.Thread(target=lambda: found.append(run.provide_tokens())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [run.provide_tokens()] * 8


def test_tokens_without_a_service_and_tokens_of_all(run: RunDirectory) -> None:
    run.provide_tokens()
    run.tokens.write_text(f"ann:{'00' * 32}\n")
    with pytest.raises(InvalidArgumentError, match="service:SECRET"):
        run.provide_tokens()
    run.tokens.chmod(0o644)
    with pytest.raises(NotAuthorizedError, match="0644"):
        run.provide_tokens()
    run.tokens.unlink()
    run.tokens.symlink_to("/nowhere")
    with pytest.raises(NotAuthorizedError):
        run.provide_tokens()


# -- processes --


def test_a_process_is_found_while_it_lives(run: RunDirectory, sleeper: subprocess.Popen[bytes]) -> None:
    process = Process.running(VISOR, sleeper.pid, ADDRESS)
    run.publish(process)
    assert stat.S_IMODE((run.path / "visor.json").stat().st_mode) == 0o600
    assert run.processes() == [process]
    assert run.find(VISOR) == process
    assert run.find(PLAYER) is None
    assert process.is_here
    sleeper.kill()
    sleeper.wait()
    assert run.find(VISOR) is None
    assert run.sweep() == [process]
    assert run.processes() == []


def test_the_names_of_the_files(run: RunDirectory) -> None:
    own = [Process.running(role, os.getpid(), ADDRESS) for role in (VISOR, KEEPER, PLAYER, UP)]
    for process in own:
        run.publish(replace(process, node="a/b"))
    assert sorted(path.name for path in run.path.iterdir()) == [
        f"keeper-a_b-{os.getpid()}.json",
        "player.json",
        f"up-a_b-{os.getpid()}.json",
        "visor.json",
    ]


def test_a_number_that_somebody_else_has_got_is_not_believed(run: RunDirectory) -> None:
    own = Process.running(VISOR, os.getpid(), ADDRESS)
    assert run.is_alive(own)
    run.publish(replace(own, pid_start=own.pid_start - 1))
    assert run.find(VISOR) is None
    run.publish(replace(own, boot_id="11111111-2222-4333-8444-555555555555"))
    assert run.find(VISOR) is None


def test_a_process_elsewhere_lives_as_long_as_its_file_is_touched(run: RunDirectory) -> None:
    boot = "11111111-2222-4333-8444-555555555555"
    far = replace(Process.running(VISOR, 1, ADDRESS), node="elsewhere", boot_id=boot)
    run.publish(far)
    assert run.find(VISOR) == far
    assert not far.is_here
    long_ago = (run.path / "visor.json").stat().st_mtime - owner.LEASE_S - 1
    os.utime(run.path / "visor.json", (long_ago, long_ago))
    assert run.find(VISOR) is None


def test_the_file_of_a_successor_is_left_alone(run: RunDirectory) -> None:
    old, new = killed(), Process.running(VISOR, os.getpid(), ADDRESS)
    old = replace(old, role=VISOR)
    run.publish(old)
    run.publish(new)
    run.remove(old)
    assert run.processes() == [new]
    run.remove(new)
    run.remove(new)
    assert run.processes() == []


@pytest.mark.parametrize("text", ["", "{}", "[]", "3", "null", '{"role": "visor"}', "\xff"])
def test_a_file_that_is_none_is_named(run: RunDirectory, text: str) -> None:
    (run.path / "visor.json").write_text(text)
    with pytest.raises(DamageError, match=r"visor\.json.*describes no process"):
        run.processes()


def test_a_file_with_other_types_is_named(run: RunDirectory) -> None:
    for name, value in (("pid", "5"), ("pid", True), ("host", None), ("runs", 3), ("port", 1.5)):
        said = {**asdict(Process.running(VISOR, 5, ADDRESS)), name: value}
        (run.path / "visor.json").write_text(json.dumps(said))
        with pytest.raises(DamageError):
            run.processes()


# -- claims --


def test_of_two_that_want_the_same_the_second_is_refused(
    run: RunDirectory, sleeper: subprocess.Popen[bytes]
) -> None:
    run.claim(Process.running(UP, sleeper.pid, runs=(VISOR, KEEPER)))
    for roles in ((VISOR,), (KEEPER, PLAYER), (VISOR, KEEPER, PLAYER)):
        with pytest.raises(InvalidArgumentError, match=rf"up .pid {sleeper.pid} .* runs here already"):
            run.claim(Process.running(UP, os.getpid(), runs=roles))
    run.claim(Process.running(UP, os.getpid(), runs=(PLAYER,)))
    assert len(run.processes()) == 2


def test_every_node_may_have_a_keeper(run: RunDirectory) -> None:
    far = replace(Process.running(UP, 1, runs=(KEEPER,)), node="elsewhere", boot_id="")
    run.publish(far)
    own = Process.running(UP, os.getpid(), runs=(KEEPER,))
    run.claim(own)
    assert run.processes() == [far, own] or run.processes() == [own, far]
    run.publish(replace(far, runs=(KEEPER, VISOR)))
    with pytest.raises(InvalidArgumentError, match="elsewhere"):
        run.claim(Process.running(UP, os.getpid(), runs=(VISOR,)))


def test_who_claims_sweeps_the_dead_away(run: RunDirectory) -> None:
    dead = killed()
    run.publish(dead)
    run.publish(replace(dead, role=UP, runs=(VISOR,)))
    own = Process.running(UP, os.getpid(), runs=(VISOR, KEEPER))
    run.claim(own)
    assert run.processes() == [own]


def test_a_service_whose_parent_is_gone_is_in_the_way_as_long_as_it_lives(
    run: RunDirectory, sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chronolog_hpc.services.rundir._LEAVING_S", 0.1)
    run.publish(Process.running(VISOR, sleeper.pid, ADDRESS))
    with pytest.raises(InvalidArgumentError, match=r"visor .* runs here already"):
        run.claim(Process.running(UP, os.getpid(), runs=(VISOR,)))
    assert [process.role for process in run.processes()] == [VISOR]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_others_cannot_even_look(run: RunDirectory) -> None:
    def look() -> None:
        with pytest.raises(ChronoLogError):
            RunDirectory(run.deployment)

    as_nobody(look)
