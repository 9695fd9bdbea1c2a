"""Whatever dies between a client and its keeper, every event that was logged is there once, and in order."""

import os
import pathlib
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from py_chronolog_client.clock import SystemClock
from py_chronolog_client.engine.base import Writer, WriterOptions
from py_chronolog_client.engine.connection import Connection
from py_chronolog_client.engine.remote import RemoteEngine
from py_chronolog_client.engine.shipment import WINDOW_BLOCKS
from py_chronolog_client.errors import AcquiredError
from py_chronolog_client.identity import new_client_id
from py_chronolog_client.tokens import new_secret, write_tokens
from py_chronolog_client.wire import messages
from py_chronolog_client.wire.handshake import SERVICE_NAME
from py_chronolog_client.wire.messages import unpack_ids
from tests.store.writing import seeded
from tests.support import processes
from tests.support.counts import soak
from tests.support.launch import python_argv
from tests.support.services import Deployment, deployed, eventually

CHRONICLE, STORY = "chronicle", "story"


@pytest.fixture
def deployment(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployment]:
    with deployed(tmp_path / "d", monkeypatch) as running:
        yield running


@pytest.fixture
def engine(deployment: Deployment) -> Iterator[RemoteEngine]:
    engine = deployment.engine()
    engine.create_chronicle(CHRONICLE, {})
    yield engine
    engine.close()


def open_writer(engine: RemoteEngine) -> Writer:
    return engine.open_writer(CHRONICLE, STORY, {}, WriterOptions(new_client_id(), SystemClock()))


def records(engine: RemoteEngine) -> list[bytes]:
    pages = list(engine.scan(CHRONICLE, STORY, verify=True))
    for page in pages:
        assert (page.times[1:] >= page.times[:-1]).all()
    return [record for page in pages for record in page.records()]


def spooled(deployment: Deployment) -> list[pathlib.Path]:
    return [path for path in (deployment.directory / "spool").rglob("*") if path.suffix in (".log", ".tail")]


PROGRAM = """
    import os, signal
    from py_chronolog_client import Client, ClientPortalServiceConf, ClientQueryServiceConf
    client = Client(ClientPortalServiceConf("ofi+sockets", "127.0.0.1", {port}, 55))
    assert client.Connect() == 0, client.last_error
    assert client.CreateChronicle({chronicle!r}) in (0, -6)
    code, handle = client.AcquireStory({chronicle!r}, {story!r}, {{}}, 0)
    assert code == 0, client.last_error
    {meanwhile}
    for number in range(20_000):
        assert handle.log_event(f"{{number}}")
    {end}
"""


def run_client(deployment: Deployment, end: str, meanwhile: str = "") -> int:
    port = deployment.visor.address.port
    code = PROGRAM.format(port=port, chronicle=CHRONICLE, story=STORY, meanwhile=meanwhile, end=end)
    argv = [sys.executable, "-B", *python_argv("-c", code)]
    done = processes.run(argv, timeout=60, env=deployment.environment())
    assert "Traceback" not in done.stderr or "KeyboardInterrupt" in done.stderr, processes.describe(done)
    return done.returncode


def leave_something_behind(deployment: Deployment) -> None:
    """Let a client be killed whose keeper has stopped to listen."""
    keeper = deployment.keepers[0]
    stop = f"os.kill({keeper.process.pid}, signal.SIGSTOP)"
    assert run_client(deployment, "os.kill(os.getpid(), signal.SIGKILL)", stop) == -9
    assert spooled(deployment)
    keeper.signal(signal.SIGCONT)


def test_what_a_killed_client_left_is_shipped_by_the_next_one(
    deployment: Deployment, engine: RemoteEngine
) -> None:
    leave_something_behind(deployment)
    writer = open_writer(engine)
    eventually(lambda: len(records(engine)) == 20_000)
    assert records(engine) == [b"%d" % number for number in range(20_000)]
    writer.close()
    engine.close()
    eventually(lambda: not spooled(deployment))


def test_a_program_that_ends_without_a_word_has_shipped_everything(
    deployment: Deployment, engine: RemoteEngine
) -> None:
    assert run_client(deployment, "pass") == 0
    assert len(records(engine)) == 20_000
    assert not spooled(deployment)


@pytest.mark.parametrize(
    ("prepare", "number", "code", "is_shipped"),
    [
        ("pass", signal.SIGTERM, -signal.SIGTERM, False),
        ("signal.signal(signal.SIGTERM, lambda *anything: exit(7))", signal.SIGTERM, 7, True),
        ("pass", signal.SIGINT, -signal.SIGINT, True),
        ("import atexit; atexit.register(os._exit, 5)", signal.SIGINT, 5, False),
    ],
    ids=["killed", "exits", "interrupted", "without a goodbye"],
)
def test_what_a_signal_leaves_to_others_and_what_not(
    deployment: Deployment, engine: RemoteEngine, prepare: str, number: int, code: int, is_shipped: bool
) -> None:
    """Whoever ends as Python ends ships what he has; what others leave is shipped by `chronolog drain`."""
    assert run_client(deployment, f"os.kill(os.getpid(), {int(number)})", prepare) == code
    assert not (is_shipped and spooled(deployment))
    assert run_drain(deployment, 30.0) == (0, "")
    assert not spooled(deployment)
    assert len(records(engine)) == 20_000


def test_nobody_waits_for_a_keeper_that_is_away(deployment: Deployment, engine: RemoteEngine) -> None:
    writer = open_writer(engine)
    writer.log_event("before")
    assert writer.flush() == 1
    deployment.keepers[0].kill()
    for number in range(1000):
        assert writer.log_event(str(number))
    assert writer.flush(timeout_s=0.2) == 1
    assert writer.statistics().backlog == 1000
    deployment.keepers[0].start()
    assert writer.flush() == 1001
    assert writer.statistics().backlog == 0
    assert records(engine) == [b"before", *(b"%d" % number for number in range(1000))]
    writer.close()


@pytest.mark.timeout(120)
def test_who_is_not_let_in_for_a_while_and_whose_ticket_is_of_no_use_any_more_goes_on(
    deployment: Deployment, engine: RemoteEngine
) -> None:
    """The services come back with another secret, and at first without the client's name."""
    writer = open_writer(engine)
    writer.log_event("before")
    assert writer.flush() == 1
    for role in reversed(deployment.roles):
        role.kill()
    services = {SERVICE_NAME: new_secret()}
    deployment.tokens.unlink()
    write_tokens(deployment.tokens, services)
    for role in (*deployment.keepers, deployment.visor):  # a keeper is asked with the old ticket first
        role.start()
    writer.log_event("between")
    assert writer.flush(timeout_s=1.0) == 1
    deployment.tokens.unlink()
    write_tokens(deployment.tokens, services | dict([deployment.identity[:2]]))
    writer.log_event("after")
    assert writer.flush() == 3
    assert writer.statistics().lost == {}
    writer.close()


def test_a_full_spool_refuses_events_and_counts_them(
    deployment: Deployment, engine: RemoteEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.close()
    monkeypatch.setenv("CHRONOLOG_SPOOL_LIMIT", str(4 * 2**20))
    engine = deployment.engine()
    writer = open_writer(engine)
    deployment.keepers[0].kill()
    accepted = sum(writer.log_event(b"x" * 100_000) > 0 for _ in range(200))
    assert 40 < accepted < 80
    assert dict(writer.statistics().lost) == {"EDQUOT": 200 - accepted}
    deployment.keepers[0].start()

    def has_room() -> bool:
        writer.flush(timeout_s=1.0)
        return writer.log_event("there is room again") > 0

    eventually(has_room)
    writer.close()
    assert len(records(engine)) == accepted + 1
    engine.close()


def counters(deployment: Deployment) -> dict[str, int]:
    connection = Connection(deployment.keepers[0].address, deployment.services, "keeper")
    told = connection.ask(messages.ReadCounters(), messages.Counters)
    connection.close()
    return dict(zip(told.names, unpack_ids(told.now), strict=True))


def test_what_is_logged_while_a_keeper_is_busy_shares_a_block(
    deployment: Deployment, engine: RemoteEngine
) -> None:
    writer = open_writer(engine)
    writer.log_event("before")
    assert writer.flush() == 1
    before = counters(deployment)
    deployment.keepers[0].signal(signal.SIGSTOP)
    try:
        logged = 1
        until_s = time.monotonic() + 1.0
        while time.monotonic() < until_s:
            assert writer.log_event("meanwhile")
            logged += 1
            time.sleep(0.002)  # so that each look of the shipper finds one or two
    finally:
        deployment.keepers[0].signal(signal.SIGCONT)
    assert writer.flush() == logged
    questions_and_rest = 8
    assert counters(deployment)["requests"] - before["requests"] <= WINDOW_BLOCKS + questions_and_rest
    writer.close()


def test_a_keeper_that_takes_nothing_is_asked_with_one_block_at_a_time(
    deployment: Deployment, engine: RemoteEngine, caplog: pytest.LogCaptureFixture
) -> None:
    keeper = deployment.keepers[0]
    limit = resource.RLIMIT_FSIZE
    free = resource.prlimit(keeper.process.pid, limit, (2**20, resource.RLIM_INFINITY))
    writer = open_writer(engine)
    logged = [b"%d" % number + b"x" * 100_000 for number in range(200)]
    assert all(map(writer.log_event, logged))

    def refused() -> int:
        return counters(deployment)["blocks_refused"]

    eventually(lambda: refused() >= 1)
    before = counters(deployment)
    eventually(lambda: refused() >= before["blocks_refused"] + 3)
    after = counters(deployment)
    times = after["blocks_refused"] - before["blocks_refused"] + 1
    assert after["bytes_in"] - before["bytes_in"] < times * 4 * 2**20
    assert any(f"{keeper.directory}: the keeper of n0 cannot write there" in line for line in caplog.messages)
    resource.prlimit(keeper.process.pid, limit, free)
    assert writer.flush() == len(logged)
    assert records(engine) == logged
    writer.close()


@pytest.mark.slow
@pytest.mark.timeout(soak(120, 1800))
@pytest.mark.parametrize("victim", ["keeper", "visor", "both"])
def test_services_are_killed_under_load(deployment: Deployment, engine: RemoteEngine, victim: str) -> None:
    chance = seeded("services are killed", 1)
    writers = [open_writer(engine) for _ in range(2)]
    victims = {"keeper": deployment.keepers, "visor": [deployment.visor]}
    victims["both"] = [*deployment.keepers, deployment.visor]
    logged: list[list[bytes]] = [[], []]
    for round_number in range(soak(4, 50)):
        until = time.monotonic() + chance.uniform(0.01, 0.2)
        _log_until(until, writers, logged, chance)
        for role in victims[victim]:
            role.kill()
        _log_until(time.monotonic() + chance.uniform(0.0, 0.1), writers, logged, chance)
        for role in victims[victim]:
            role.start()
        if round_number % 3 == 0:
            for writer, own in zip(writers, logged, strict=True):
                assert writer.flush() == len(own)
    for writer, own in zip(writers, logged, strict=True):
        assert writer.flush() == len(own)
        found = [
            record
            for page in engine.scan(CHRONICLE, STORY, clients=[writer.client_id], verify=True)
            for record in page.records()
        ]
        assert found == own
        writer.close()
    engine.destroy_story(CHRONICLE, STORY)


def _log_until(
    until_s: float, writers: list[Writer], logged: list[list[bytes]], chance: random.Random
) -> None:
    while time.monotonic() < until_s:
        for writer, own in zip(writers, logged, strict=True):
            batch = [b"%d" % (len(own) + place) for place in range(chance.randrange(1, 200))]
            assert writer.log_events(batch)
            own.extend(batch)
            own.append(b"%d" % len(own))
            assert writer.log_event(own[-1])


@pytest.mark.slow
@pytest.mark.timeout(soak(120, 1800))
def test_clients_are_killed_under_load(deployment: Deployment, engine: RemoteEngine) -> None:
    """What log_event has returned to them is there, once and in order, and all that is beyond is whole, too."""
    chance = seeded("clients are killed", 1)
    for_ever = """import itertools
    for number in itertools.count():
        assert handle.log_event(f"{os.getpid()} {number}")
        if not number % 50:
            os.write(1, b"%d\\n" % number)"""
    port = deployment.visor.address.port
    code = PROGRAM.format(port=port, chronicle=CHRONICLE, story=STORY, meanwhile=for_ever, end="")
    argv = [sys.executable, "-B", *python_argv("-c", code)]
    env = processes.child_environment(deployment.environment())
    returned: dict[int, int] = {}
    for _ in range(soak(2, 25)):
        pair = [subprocess.Popen(argv, env=env, stdout=subprocess.PIPE) for _ in range(2)]
        told = [client.stdout.readline() for client in pair if client.stdout is not None]
        time.sleep(chance.uniform(0.0, 0.3))
        for client, first in zip(pair, told, strict=True):
            client.kill()
            more, _ = client.communicate(timeout=30)
            *whole, _ = (first + more).split(b"\n")
            returned[client.pid] = int(whole[-1])
    assert run_drain(deployment, 60.0) == (0, "")
    assert not spooled(deployment)
    found: dict[int, list[int]] = {pid: [] for pid in returned}
    for record in records(engine):
        pid, number = map(int, record.split())
        found[pid].append(number)
    for pid, last in returned.items():
        assert found[pid] == list(range(len(found[pid])))
        assert len(found[pid]) > last


def test_a_forked_childs_events_are_shipped(deployment: Deployment, engine: RemoteEngine) -> None:
    writer = open_writer(engine)
    log = writer.log_event
    assert log("parent 1")
    for how in ("flush", "nothing"):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                assert log(f"child that does {how}")
                if how == "flush":
                    assert writer.flush() == 1
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
    assert log("parent 2")
    assert writer.flush() == 2
    eventually(lambda: len(records(engine)) == 4)
    assert set(records(engine)) == {
        b"parent 1",
        b"child that does flush",
        b"child that does nothing",
        b"parent 2",
    }
    writer.close()


def test_a_story_that_was_destroyed_and_made_again_gets_no_old_events(
    deployment: Deployment, engine: RemoteEngine
) -> None:
    leave_something_behind(deployment)
    destroy(engine)
    writer = open_writer(engine)
    writer.log_event("new")
    writer.flush()
    time_out = time.monotonic() + 1.0
    while time.monotonic() < time_out:
        assert records(engine) == [b"new"]
    writer.close()


def test_a_visor_that_hangs_holds_no_event_up(deployment: Deployment, engine: RemoteEngine) -> None:
    writer = open_writer(engine)
    options = WriterOptions(new_client_id(), SystemClock())
    with ThreadPoolExecutor(1) as pool:
        deployment.visor.signal(signal.SIGSTOP)
        try:
            opening = pool.submit(engine.open_writer, CHRONICLE, "another", {}, options)
            until_s = time.monotonic() + 1.0
            flushes = 0
            while time.monotonic() < until_s:
                flushes += 1
                assert writer.log_event("meanwhile")
                assert writer.flush(timeout_s=8.0) == flushes
        finally:
            deployment.visor.signal(signal.SIGCONT)
        other = opening.result(30.0)
    assert other.log_event("afterwards")
    assert other.flush() == 1
    for finished in (writer, other):
        finished.close()
    engine.destroy_story(CHRONICLE, STORY)


def destroy(engine: RemoteEngine) -> None:
    def destroyed() -> bool:
        try:
            engine.destroy_story(CHRONICLE, STORY)
        except AcquiredError:
            return False
        return True

    eventually(destroyed)


def run_drain(deployment: Deployment, timeout_s: float) -> tuple[int, str]:
    argv = [sys.executable, "-m", "chronolog_hpc", "drain", "--timeout", str(timeout_s)]
    done = processes.run(argv, timeout=60, env=deployment.environment())
    assert "Traceback" not in done.stderr, processes.describe(done)
    return done.returncode, done.stdout


def test_drain_ships_what_is_left_and_names_what_it_cannot(
    deployment: Deployment, engine: RemoteEngine
) -> None:
    assert run_drain(deployment, 5.0) == (0, ""), "nothing is left"
    leave_something_behind(deployment)
    deployment.keepers[0].kill()
    code, said = run_drain(deployment, 0.5)
    assert code == 1
    assert said.startswith("not shipped: client ")
    assert repr(STORY) in said
    deployment.keepers[0].start()
    assert run_drain(deployment, 30.0) == (0, "")
    assert records(engine) == [b"%d" % number for number in range(20_000)]
    assert not spooled(deployment)


def test_drain_says_why_something_stays_and_does_not_wait_for_what_will_not_happen(
    deployment: Deployment, engine: RemoteEngine
) -> None:
    leave_something_behind(deployment)
    address = deployment.visor.address
    deployment.visor.kill()
    code, said = run_drain(deployment, 0.5)
    assert (code, f"nothing answers at {address}" in said) == (1, True), said
    deployment.visor.start()
    destroy(engine)
    began_s = time.monotonic()
    code, said = run_drain(deployment, 50.0)
    assert (code, f": the story '{STORY}' of the chronicle" in said) == (1, True), said
    assert time.monotonic() - began_s < 40.0
