"""One process serves a directory; who was killed does not keep it."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from chronolog_hpc.services.tenancy import Tenancy
from py_chronolog_client.errors import AcquiredError
from py_chronolog_client.store.root import StoreRoot
from tests.support import processes

PROGRAM = """
import sys
from chronolog_hpc.services.tenancy import Tenancy
from py_chronolog_client.errors import AcquiredError
from py_chronolog_client.store.root import StoreRoot

root = StoreRoot.open(sys.argv[1], create=False)
print("ready", flush=True)
sys.stdin.readline()
try:
    Tenancy(root)
    print("mine", flush=True)
    sys.stdin.readline()
except AcquiredError as error:
    print(error, flush=True)
"""


@pytest.fixture
def root(tmp_path: pathlib.Path) -> StoreRoot:
    return StoreRoot.open(tmp_path / "store", create=True)


def tenants(root: StoreRoot) -> list[pathlib.Path]:
    return list(root.path.glob("tenant-*"))


def test_one_at_a_time(root: StoreRoot) -> None:
    first = Tenancy(root)
    with pytest.raises(AcquiredError, match=f"is served by process {os.getpid()}"):
        Tenancy(root)
    assert len(tenants(root)) == 1
    first.end()
    Tenancy(root).end()
    assert not tenants(root)


def test_the_dead_are_cleared_away(root: StoreRoot) -> None:
    (root.path / "tenant-junk").write_bytes(b"no map")
    with pytest.raises(AcquiredError, match="an unknown process"):
        Tenancy(root)
    os.utime(root.path / "tenant-junk", (1, 1))  # its lease is over
    Tenancy(root).end()
    assert not tenants(root)


@pytest.mark.slow
def test_of_many_at_once_at_most_one_gets_it_and_kills_leave_nothing(root: StoreRoot) -> None:
    argv = [sys.executable, "-c", PROGRAM, str(root.path)]
    environment = processes.child_environment()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    for _ in range(2):
        candidates = [subprocess.Popen(argv, env=environment, **pipes) for _ in range(4)]
        try:
            for candidate in candidates:
                assert candidate.stdout.readline() == "ready\n"
            for candidate in candidates:
                candidate.stdin.write("\n")
                candidate.stdin.flush()
            said = [candidate.stdout.readline() for candidate in candidates]
            assert said.count("mine\n") <= 1
            assert all("is served by process" in line for line in said if line != "mine\n")
        finally:
            for candidate in candidates:
                candidate.send_signal(signal.SIGKILL)
                candidate.communicate()
    Tenancy(root).end()
    assert not tenants(root)
