"""Three hosts with a keeper each, and a cable that is pulled out in the middle of logging."""

import contextlib
import subprocess
import sys
import textwrap
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from chronolog_hpc.services.rundir import KEEPER, PLAYER, VISOR, RunDirectory
from tests.store.holding import wait_until
from tests.support import processes
from tests.support.cluster import Cluster, cluster
from tests.support.counts import soak

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

CUT_S = soak(3.0, 40.0)
"""In soak so long that the kernel gives connections up."""

# Logs until the file `stop` is there; says now and then how far it is, and in the end how far it came.
CLIENT = """
    import sys, time
    from pathlib import Path
    from py_chronolog_client import Client, ClientPortalServiceConf, ClientQueryServiceConf

    directory, name = Path(sys.argv[1]), sys.argv[2]
    client = Client(ClientPortalServiceConf(), ClientQueryServiceConf())
    assert client.Connect() == 0, client.last_error
    assert client.CreateChronicle("c") in (0, -6)
    code, handle = client.AcquireStory("c", "s", {}, 0)
    assert code == 0, client.last_error
    count, say_at = 0, 0.0
    while not (directory / "stop").exists():
        for _ in range(20):
            assert handle.log_event(f"{name} {count}")
            count += 1
        time.sleep(0.005)
        if time.monotonic() > say_at:
            (directory / f"{name}.making").write_text(str(count))
            (directory / f"{name}.making").rename(directory / f"{name}.count")
            say_at = time.monotonic() + 0.05
    assert client.ReleaseStory("c", "s") == 0
    print(count)
"""

READER = """
    from py_chronolog_client import Client, ClientPortalServiceConf, ClientQueryServiceConf, EventList

    client = Client(ClientPortalServiceConf(), ClientQueryServiceConf())
    assert client.Connect() == 0, client.last_error
    events = EventList()
    assert client.ReplayStory("c", "s", 1, 2**63, events) == 0, client.last_error
    for event in events:
        print(event.log_record())
"""


class Site:
    """A deployment over the hosts of a cluster, whose first has visor and player, and all a keeper."""

    def __init__(self, hosts: Cluster, directory: Path) -> None:
        self.hosts = hosts
        self.directory = directory
        self.started: list[subprocess.Popen[str]] = []
        self.run = RunDirectory(directory / "deployment", create=True)
        first, *others = hosts.hosts
        self._start(first)
        wait_until(lambda: {(role, first) for role in (VISOR, KEEPER, PLAYER)} <= self._listening())
        for host in others:
            self._start(host, "--role", "keeper")
        wait_until(lambda: {(KEEPER, host) for host in hosts.hosts} <= self._listening())
        listening = {process.role: f"{process.host}:{process.port}" for process in self.run.processes()}
        self.environment = {
            "CHRONOLOG_PORTAL": listening[VISOR],
            "CHRONOLOG_QUERY": listening[PLAYER],
            "CHRONOLOG_TOKEN_FILE": str(self.run.tokens),
        }

    def _start(self, host: str, *options: str) -> None:
        with open(self.directory / f"up-{host}.err", "w") as err:
            self.started.append(
                self.hosts.start(
                    host, sys.executable, "-m", "chronolog_hpc", "up", "--directory", self.run.deployment,
                    "--host", f"10.77.0.{host[1:]}", "--insecure-network", "--port", 0, "--query-port", 0, *options,
                    stdout=subprocess.DEVNULL, stderr=err,
                )
            )  # fmt: skip

    def _listening(self) -> set[tuple[str, str]]:
        return {(process.role, process.node) for process in self.run.processes()}

    def start_client(self, host: str, name: str, *, guest: bool) -> subprocess.Popen[str]:
        """Start a client; a guest says another host name, so that the visor gives it any keeper."""
        argv = [sys.executable, "-c", textwrap.dedent(CLIENT), str(self.directory), name]
        if guest:
            argv = ["unshare", "--uts", "sh", "-c", 'hostname guest && exec "$@"', "sh", *argv]
        spool = self.directory / f"spool-{host}"
        spool.mkdir(exist_ok=True)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        env = {**self.environment, "CHRONOLOG_SPOOL": str(spool)}
        return self.hosts.start(host, *argv, env=env, **pipes)

    def counts(self, names: list[str]) -> dict[str, int]:
        return {name: int((self.directory / f"{name}.count").read_text()) for name in names}


@contextlib.contextmanager
def _ended(started: list[subprocess.Popen[str]]) -> Iterator[None]:
    try:
        yield
    finally:
        for each in started:
            each.kill()
            each.communicate()


def test_a_cable_that_is_pulled_out_in_the_middle_of_logging(tmp_path: Path) -> None:
    with cluster(tmp_path / "c", 3) as hosts:
        site = Site(hosts, tmp_path)
        clients = {
            f"{host}-{kind}": site.start_client(host, f"{host}-{kind}", guest=kind == "guest")
            for host in hosts.hosts
            for kind in ("local", "guest")
        }
        with _ended([*clients.values(), *site.started]):
            names = list(clients)
            wait_until(lambda: all((tmp_path / f"{name}.count").exists() for name in names))
            services = {process.pid for process in site.run.processes()}
            for host in hosts.hosts[1:] if soak(0, 1) else hosts.hosts[1:2]:
                hosts.cable(host, "down")
                cut_s = time.monotonic()
                before = site.counts(names)
                wait_until(lambda: all(site.counts(names)[name] > before[name] + 500 for name in names))
                time.sleep(max(0.0, cut_s + CUT_S - time.monotonic()))  # so long it is out
                hosts.cable(host, "up")
                before = site.counts(names)
                wait_until(lambda: all(site.counts(names)[name] > before[name] + 500 for name in names))
            (tmp_path / "stop").touch()
            logged = {}
            for name, client in clients.items():
                out, err = client.communicate(timeout=90)
                assert client.returncode == 0, err
                assert "still in the spool" not in err
                logged[name] = int(out)
            assert {process.pid for process in site.run.processes()} == services, (
                "no process was started again"
            )
            read = hosts.run("h3", sys.executable, "-c", textwrap.dedent(READER), env=site.environment)
            assert read.returncode == 0, processes.describe(read)
            found: dict[str, list[int]] = defaultdict(list)
            for line in read.stdout.splitlines():
                name, number = line.split()
                found[name].append(int(number))
            assert found == {name: list(range(count)) for name, count in logged.items()}
            stores = [path for path in site.run.deployment.glob("keeper-*") if any(path.rglob("*.log"))]
            assert len(stores) == 3
