import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from typing import Any

import pytest

from py_chronolog_client.store import owner
from py_chronolog_client.store.format import decode_map, encode_record
from py_chronolog_client.store.owner import LEASE_S, Heartbeat, describe_process, is_alive
from tests.store.holding import DEADLINE_S, ELSEWHERE, as_nobody, running, wait_until
from tests.support import processes
from tests.support.requirements import require

STAY = "import time; print('ready', flush=True); time.sleep(600)"


@pytest.fixture
def fresh(tmp_path: pathlib.Path) -> pathlib.Path:
    """A file that was touched just now."""
    path = tmp_path / "segment.log"
    path.touch()
    return path


@pytest.fixture
def stale(tmp_path: pathlib.Path) -> pathlib.Path:
    """A file whose lease is over."""
    path = tmp_path / "old.log"
    path.touch()
    age(path, LEASE_S + 1)
    return path


def age(path: pathlib.Path, age_s: float) -> None:
    """Let a file look as if it was touched `age_s` ago, by the clock of its file system."""
    os.utime(path)
    time_ns = path.stat().st_mtime_ns - int(age_s * 1e9)
    os.utime(path, ns=(time_ns, time_ns))


def described_by(process: subprocess.Popen[Any]) -> dict[str, object]:
    """Return the description of a running program, from outside."""
    stat = pathlib.Path(f"/proc/{process.pid}/stat").read_text()
    return {**describe_process(), "pid": process.pid, "pid_start": int(stat.rpartition(")")[2].split()[19])}


# -- what a process says of itself ---


def test_a_process_describes_itself() -> None:
    said = describe_process()
    assert set(said) == {"host", "boot_id", "pid_namespace", "pid", "pid_start", "uid", "user", "program"}
    assert (said["pid"], said["uid"], said["host"]) == (os.getpid(), os.getuid(), socket.gethostname())
    assert uuid.UUID(str(said["boot_id"])).bytes == owner.boot_id()
    assert said["pid_namespace"] == os.readlink("/proc/self/ns/pid")
    ticks = os.sysconf("SC_CLK_TCK")
    assert 0 < int(said["pid_start"]) <= time.clock_gettime(time.CLOCK_BOOTTIME) * ticks
    assert decode_map(encode_record(1, 0, dict(said))[128:].rstrip(b"\0")) == said


def test_descriptions_are_copies() -> None:
    describe_process()["pid"] = 0
    assert describe_process()["pid"] == os.getpid()


def test_a_forked_child_is_somebody_else(fresh: pathlib.Path) -> None:
    parent = describe_process()
    pid = os.fork()
    if not pid:
        said = describe_process()
        good = (
            said["pid"] == os.getpid() != parent["pid"] and is_alive(said, fresh) and is_alive(parent, fresh)
        )
        os._exit(0 if good else 1)
    assert os.waitpid(pid, 0)[1] == 0


def test_names_that_are_no_unicode_can_be_stored() -> None:
    code = "import sys; sys.argv = ['x\\udcff']; from py_chronolog_client.store import owner, format; "
    code += "format.encode_record(1, 0, owner.describe_process()); print(owner.describe_process()['user'])"
    for variable in ("LOGNAME", "USER"):
        environment = {**processes.child_environment(), variable: "m\udcfcller"}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, env=environment, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr


def test_a_command_with_parentheses_and_blanks_in_its_name(tmp_path: pathlib.Path) -> None:
    program = tmp_path / "a) Z (b c"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([str(program), "600"]) as process:
        try:
            name = pathlib.Path(f"/proc/{process.pid}/comm")
            wait_until(lambda: name.read_text() == "a) Z (b c\n")
            assert is_alive(described_by(process), tmp_path)
        finally:
            process.kill()


# -- the same boot and pid namespace ---


def test_this_process_is_alive(stale: pathlib.Path) -> None:
    assert is_alive(describe_process(), stale)


def test_a_killed_process_is_dead_also_as_a_zombie(fresh: pathlib.Path) -> None:
    with running(STAY) as process:
        said = described_by(process)
        assert is_alive(said, fresh)
        process.kill()
        stat = pathlib.Path(f"/proc/{process.pid}/stat")
        wait_until(lambda: " Z " in stat.read_text())
        assert not is_alive(said, fresh), "a zombie"
        process.wait()
        assert not is_alive(said, fresh), "nobody"


def test_a_stopped_process_is_alive(stale: pathlib.Path) -> None:
    with running(STAY) as process:
        process.send_signal(signal.SIGSTOP)
        assert is_alive(described_by(process), stale)


def test_a_process_whose_first_thread_has_ended_is_alive(stale: pathlib.Path) -> None:
    code = """
        import ctypes, threading, time
        threading.Thread(target=time.sleep, args=(600,)).start()
        print("ready", flush=True)
        ctypes.CDLL(None).pthread_exit(None)
    """
    with running(code) as process:
        said = described_by(process)
        stat = pathlib.Path(f"/proc/{process.pid}/stat")
        wait_until(lambda: " Z " in stat.read_text())
        assert is_alive(said, stale)


def test_a_number_that_somebody_else_has_got_is_dead(fresh: pathlib.Path) -> None:
    said = describe_process()
    assert not is_alive({**said, "pid_start": int(said["pid_start"]) - 1}, fresh)


def test_without_a_start_time_the_lease_decides(fresh: pathlib.Path, stale: pathlib.Path) -> None:
    said = {**describe_process(), "pid_start": 0}
    assert is_alive(said, fresh)
    assert not is_alive(said, stale)


def test_a_process_that_cannot_be_seen_is_judged_by_its_lease(
    fresh: pathlib.Path, stale: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(STAY) as process:
        said = described_by(process)
        monkeypatch.setattr(owner, "_status", lambda _pid: None)  # as under hidepid=2
        assert is_alive(said, fresh)
        assert not is_alive(said, stale)
        process.kill()
        process.wait()
        assert not is_alive(said, fresh), "that a process does not exist is never hidden"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_users_process_is_alive_too() -> None:
    said = describe_process()
    assert as_nobody(lambda: is_alive(said, "/missing")) is True
    assert as_nobody(lambda: is_alive({**said, "pid_start": 1}, "/missing")) is False


# -- other places ---


def test_another_host_is_judged_by_its_lease(fresh: pathlib.Path, stale: pathlib.Path) -> None:
    said = {**describe_process(), **ELSEWHERE}
    assert is_alive(said, fresh)
    assert not is_alive(said, stale)
    age(stale, LEASE_S - 30)
    assert is_alive(said, stale)
    age(stale, -1000)
    assert is_alive(said, stale)


def test_the_lease_does_not_follow_links(fresh: pathlib.Path, stale: pathlib.Path) -> None:
    link = fresh.with_name("link")
    link.symlink_to(stale)
    assert is_alive({**describe_process(), **ELSEWHERE}, link)


def test_the_machine_was_booted_since(fresh: pathlib.Path) -> None:
    assert not is_alive({**describe_process(), "boot_id": ELSEWHERE["boot_id"]}, fresh)


def test_a_host_without_a_name_of_its_own_proves_nothing(
    fresh: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = {**describe_process(), "host": "localhost"}
    monkeypatch.setattr(owner, "_process", lambda _pid: here)
    assert is_alive({**here, "boot_id": ELSEWHERE["boot_id"]}, fresh)


def test_without_boot_ids_the_lease_decides(
    fresh: pathlib.Path, stale: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = {**describe_process(), "boot_id": str(uuid.UUID(int=0))}
    monkeypatch.setattr(owner, "_process", lambda _pid: here)
    for said in (here, {**here, **ELSEWHERE}):
        assert is_alive(said, fresh)
        assert not is_alive(said, stale)


@pytest.mark.parametrize(
    "damage",
    [
        dict.fromkeys(describe_process()),
        {"pid": "1"},
        {"pid": -1},
        {"pid": 0},
        {"pid": 2**64},
        {"pid": True},
        {"pid": 1.5},
        {"pid_start": "x"},
        {"boot_id": 17},
        {"boot_id": ""},
        {"boot_id": "x"},
        {"boot_id": [1]},
        {"pid_namespace": {}},
        {"pid_namespace": b""},
        {"host": 5, "boot_id": "x"},
    ],
)
def test_damaged_descriptions_are_judged_by_the_lease(
    fresh: pathlib.Path, stale: pathlib.Path, damage: dict[str, object]
) -> None:
    said = {**describe_process(), **damage}
    assert is_alive(said, fresh)
    assert not is_alive(said, stale)
    assert not is_alive({}, stale)


def test_what_cannot_be_judged_is_alive(tmp_path: pathlib.Path) -> None:
    assert is_alive({}, tmp_path / "missing" / "segment.log")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_in_a_store_that_is_read_only_everybody_elsewhere_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "_clocks", {})
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        directory.chmod(0o755)
        (directory / "old.log").touch()
        age(directory / "old.log", LEASE_S + 1)
        assert as_nobody(lambda: is_alive(ELSEWHERE, directory / "old.log")) is True
        assert os.listdir(directory) == ["old.log"]
        assert not is_alive(ELSEWHERE, directory / "old.log")
        assert os.listdir(directory) == ["old.log"]


def test_another_pid_namespace_is_judged_by_its_lease(
    namespace: tuple[str, ...], fresh: pathlib.Path, stale: pathlib.Path
) -> None:
    inside = [*namespace, "--pid", "--fork", "--kill-child", sys.executable, "-c"]
    code = """if True:
        import json, os, sys, time
        from py_chronolog_client.store.owner import describe_process, is_alive
        said = describe_process()
        pid = os.fork()
        if not pid:
            time.sleep(600)
        child = {**said, "pid": pid}
        answers = [is_alive(child, sys.argv[1])]
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        answers.append(is_alive(child, sys.argv[1]))
        outer = json.loads(sys.argv[2])
        answers += [is_alive(outer, sys.argv[1]), is_alive(outer, sys.argv[3])]
        print(json.dumps([said, answers]))
    """
    done = processes.run(
        [*inside, code, str(fresh), json.dumps(describe_process()), str(stale)], timeout=DEADLINE_S
    )
    if done.returncode:
        require("namespaces", f"there are no pid namespaces here: {done.stderr}")
    said, answers = json.loads(done.stdout)
    assert said["boot_id"] == describe_process()["boot_id"]
    assert said["pid_namespace"] != describe_process()["pid_namespace"]
    assert said["pid"] == 1
    # Its /proc is that of the outer namespace, where the same numbers are other processes.
    assert answers == [True, False, True, False]
    assert is_alive(said, fresh)
    assert not is_alive(said, stale)


# -- the heartbeat ---


def beats(path: pathlib.Path) -> bool:
    return path.stat().st_mtime_ns > 0


def still(path: pathlib.Path) -> None:
    os.utime(path, ns=(0, 0))


def threads() -> int:
    return sum(thread.name == "chronolog-heartbeat" for thread in threading.enumerate())


def test_watched_files_are_touched(tmp_path: pathlib.Path) -> None:
    before = threads()
    heart = Heartbeat(interval_s=0.005)
    paths = [tmp_path / str(number) for number in range(3)]
    for path in paths:
        path.touch()
        heart.watch(path)
    assert threads() == before + 1
    for _ in range(2):
        for path in paths:
            still(path)
        wait_until(lambda: all(map(beats, paths)))
    heart.unwatch(paths[0])
    heart.unwatch(paths[0])

    def left_alone() -> bool:
        still(paths[0])
        still(paths[1])
        wait_until(lambda: beats(paths[1]))
        return not beats(paths[0])

    wait_until(left_alone)  # one beat may have been under way
    for path in paths:
        heart.unwatch(path)
    wait_until(lambda: threads() == before)
    heart.watch(paths[2])
    still(paths[2])
    wait_until(lambda: beats(paths[2]))
    heart.unwatch(paths[2])
    wait_until(lambda: threads() == before)


def test_it_stops_when_it_is_told_and_not_at_the_next_beat(fresh: pathlib.Path) -> None:
    before = threads()
    heart = Heartbeat(interval_s=1e6)
    heart.watch(fresh)
    still(fresh)
    heart.unwatch(fresh)
    wait_until(lambda: threads() == before)
    assert not beats(fresh)


def test_what_is_gone_is_forgotten(fresh: pathlib.Path, stale: pathlib.Path) -> None:
    before = threads()
    heart = Heartbeat(interval_s=0.001)
    heart.watch(fresh)
    fresh.unlink()
    wait_until(lambda: threads() == before)
    heart.watch(stale)
    still(stale)
    wait_until(lambda: beats(stale))
    heart.unwatch(stale)


def test_paths_do_not_depend_on_the_working_directory(
    fresh: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heart = Heartbeat(interval_s=0.001)
    monkeypatch.chdir(fresh.parent)
    still(fresh)
    heart.watch(fresh.name)
    monkeypatch.chdir("/")
    wait_until(lambda: beats(fresh))
    monkeypatch.chdir(fresh.parent)
    heart.unwatch(fresh.name)


def test_a_forked_child_has_a_heart_of_its_own(fresh: pathlib.Path, stale: pathlib.Path) -> None:
    heart = Heartbeat(interval_s=0.001)
    heart.watch(fresh)
    pid = os.fork()
    if not pid:
        try:
            assert not heart._paths
            heart.unwatch(fresh)
            heart.watch(stale)
            still(stale)
            wait_until(lambda: beats(stale))
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    still(fresh)
    wait_until(lambda: beats(fresh))
    heart.unwatch(fresh)


def test_without_threads_there_is_a_warning_only(
    fresh: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    heart = Heartbeat()
    heart.watch(fresh)
    assert "no heartbeat" in caplog.text
    heart.unwatch(fresh)


def test_a_process_ends_with_its_heart_beating(fresh: pathlib.Path) -> None:
    code = f"from py_chronolog_client.store import owner; owner.heartbeat.watch({str(fresh)!r})"
    done = processes.run([sys.executable, "-c", code], timeout=DEADLINE_S)
    assert (done.returncode, done.stderr) == (0, "")
