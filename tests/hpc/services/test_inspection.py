"""What `chronolog status` and the metrics tell of a deployment is what happened there, also when somebody is silent."""

import os
import signal
import subprocess
import sys
import textwrap
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chronolog_hpc.services.inspection import inspect
from chronolog_hpc.services.rundir import KEEPER, PLAYER, UP, VISOR
from py_chronolog_client.engine.connection import Connection
from py_chronolog_client.errors import NotAuthorizedError
from py_chronolog_client.wire import messages
from py_chronolog_client.wire.handshake import Identity
from tests.hpc.services.deploying import ALICE, deployed
from tests.hpc.services.running import FREE, Up, chronolog, kill, up
from tests.hpc.services.test_metrics import samples
from tests.store.holding import wait_until
from tests.support import processes

pytestmark = pytest.mark.slow

# Logs, and waits for words: what it writes later stays in the spool while the keeper is stopped.
PROGRAM = """
    import sys
    from py_chronolog_client import Client, ClientPortalServiceConf, ClientQueryServiceConf, EventList

    visor, player, story = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    client = Client(
        ClientPortalServiceConf("ofi+sockets", "127.0.0.1", visor, 55),
        ClientQueryServiceConf("ofi+sockets", "127.0.0.1", player, 57),
    )
    assert client.Connect() == 0, client.last_error
    client.CreateChronicle("c")
    code, handle = client.AcquireStory("c", story, {}, 0)
    assert code == 0
    for number in range(3000):
        handle.log_event(f"event {number}")
    assert handle.flush() == 3000
    events = EventList()
    assert client.ReplayStory("c", story, 1, 2**63, events) == 0 and len(events) == 3000
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(500):
        handle.log_event(f"late {number}")
    print("logged", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Up]:
    (tmp_path / "spool").mkdir()
    monkeypatch.setenv("CHRONOLOG_SPOOL", str(tmp_path / "spool"))
    with up(tmp_path / "deployment", *FREE, "--metrics-port", "0") as running:
        yield running


def rows(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["role"]: row for row in found["processes"]}


def scraped(started: Up) -> dict[tuple[str, str, str], float]:
    address = started.find(UP)
    with urllib.request.urlopen(f"http://{address.host}:{address.port}/metrics", timeout=30) as answer:
        return samples(answer.read().decode())


def start_client(started: Up, story: str) -> subprocess.Popen[str]:
    ports = [str(started.find(role).port) for role in (VISOR, PLAYER)]
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), *ports, story],
        env=processes.child_environment({"CHRONOLOG_TOKEN_FILE": str(started.run.tokens)}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_what_happened_and_what_waits(started: Up) -> None:
    keeper = started.find(KEEPER)
    client = start_client(started, "s")
    assert client.stdin
    assert client.stdout
    try:
        assert client.stdout.readline() == "ready\n"
        found = inspect(started.run)
        told = rows(found)
        assert found["alive"]
        assert told[KEEPER]["counters"]["events_in"] == 3000
        assert told[PLAYER]["counters"]["events_out"] == 3000
        assert told[KEEPER]["counters"]["streams"] == 1
        assert told[KEEPER]["rates_per_s"]["events_in"] > 0
        assert told[KEEPER]["counters"]["bytes_in"] > 3000 * len("event 0")
        assert {name: told[VISOR]["counters"][name] for name in ("acquired", "keepers", "players")} == {
            "acquired": 1, "keepers": 1, "players": 1,
        }  # fmt: skip
        (spool,) = found["spools"]
        assert (spool["known"], spool["clients"], spool["events"], spool["orphans"]) == (True, 1, 0, [])
        read = scraped(started)
        assert read["chronolog_events_in_total", "keeper", keeper.node] == 3000
        assert read["chronolog_spool_clients", spool["directory"], ""] == 1

        os.kill(keeper.pid, signal.SIGSTOP)
        client.stdin.write("\n")
        client.stdin.flush()
        assert client.stdout.readline() == "logged\n"
        client.kill()
        client.wait()
        shown = chronolog("status", "--directory", started.directory)
        assert shown.returncode == 1
        (line,) = (line for line in shown.stdout.splitlines() if line.startswith("keeper"))
        assert "silent" in line
        assert "at most 3500 events" in shown.stdout
    finally:
        kill(keeper)  # with what the kernel has taken for it
        client.kill()
        client.communicate()
    started.find(KEEPER, after=keeper)
    wait_until(lambda: inspect(started.run)["spools"][0]["known"])
    (spool,) = inspect(started.run)["spools"]
    (orphan,) = spool["orphans"]
    assert spool["known"]
    assert (orphan["chronicle"], orphan["story"], orphan["events"]) == ("c", "s", 500)
    env = {"CHRONOLOG_TOKEN_FILE": str(started.run.tokens)}
    assert chronolog("drain", env=env).returncode == 0
    assert inspect(started.run)["spools"][0]["clients"] == 0
    assert rows(inspect(started.run))[KEEPER]["counters"]["events_in"] == 500

    client = start_client(started, "shipped")
    assert client.stdout
    assert client.stdout.readline() == "ready\n"
    client.kill()
    client.communicate()
    (spool,) = inspect(started.run)["spools"]
    assert (spool["known"], spool["clients"], spool["events"], spool["orphans"]) == (True, 1, 0, [])


def test_counters_are_for_services_only(tmp_path: Path) -> None:
    with deployed(tmp_path / "d", "n0") as running:
        for service in running.running:
            stranger = Connection(service.address, Identity(ALICE, running.secrets[ALICE]), service.role)
            with pytest.raises(NotAuthorizedError, match="ReadCounters is for the services"):
                stranger.ask(messages.ReadCounters(), messages.Counters)
            stranger.close()
            friend = running.connect(service, "service")
            told = friend.ask(messages.ReadCounters(), messages.Counters)
            now = dict(zip(told.names, messages.unpack_ids(told.now), strict=True))
            assert now["requests_failed"] == 1
            assert now["requests"] >= 2
            assert now["rss_bytes"] > 2**20


def test_a_spool_is_found_under_all_names_of_the_visor(started: Up, tmp_path: Path) -> None:
    visor = started.find(VISOR)
    (tmp_path / "spool" / f"localhost_{visor.port}").mkdir()
    (tmp_path / "spool" / f"127.0.0.1_{visor.port + 1}").mkdir()
    (tmp_path / "spool" / f"no-such-host.invalid_{visor.port}").mkdir()
    found = inspect(started.run)["spools"]
    assert [Path(spool["directory"]).name for spool in found] == [f"localhost_{visor.port}"]
