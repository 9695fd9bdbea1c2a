"""Where the ranks of a job keep their stories."""

import json
import pathlib

import pytest

from chronolog_hpc.clientlib import ClientPortalServiceConf, ClientQueryServiceConf, InvalidArgumentError
from chronolog_hpc.places import Deployment, Directory, choose
from tests.support.launch import Mpi
from tests.support.services import deployed

PROGRAM = pathlib.Path(__file__).parent / "programs" / "places.py"
EVENTS = 500
CONF = ClientPortalServiceConf(), ClientQueryServiceConf()


@pytest.fixture(autouse=True)
def nothing_is_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    for name in ("CHRONOLOG_STORE", "CHRONOLOG_PORTAL", "CHRONOLOG_QUERY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def test_what_environment_and_arguments_choose(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    there = tmp_path / "there"
    assert choose(None, None) == (Directory(tmp_path / "chronolog_store"), False)
    assert choose(there, None) == (Directory(there), True)
    assert choose(None, CONF) == (Deployment(CONF), True)
    in_files = ClientPortalServiceConf("file", str(there), 0, 0), CONF[1]
    assert choose(None, in_files) == (Directory(there), True)
    with pytest.raises(InvalidArgumentError, match=r"two places for one story: give one"):
        choose(there, CONF)
    monkeypatch.setenv("CHRONOLOG_PORTAL", "127.0.0.1:1")
    assert choose(None, None) == (Deployment(CONF), True)
    assert choose(there, None) == (Directory(there), True)
    monkeypatch.setenv("CHRONOLOG_STORE", str(tmp_path / "first"))
    assert choose(None, CONF) == choose(there, None) == (Directory(tmp_path / "first"), True)


@pytest.mark.parametrize("ranks", [1, 3])
def test_ranks_log_into_a_deployment_and_replay_their_slices(
    mpi: Mpi, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, ranks: int
) -> None:
    with deployed(tmp_path / "d", monkeypatch, keepers=2) as deployment:
        told = json.loads(mpi(ranks, PROGRAM, "shared", timeout=120, env=deployment.addresses()).stdout)
    assert [where for where, _ in told] == [None] * ranks
    slices = [events for _, events in told]
    assert max(map(len, slices)) - min(map(len, slices)) <= 1
    joined = [(client_id & (2**24 - 1), record) for events in slices for client_id, record in events]
    for rank in range(ranks):
        own = [record for of, record in joined if of == rank]
        assert own == [f"{rank} {number}" for number in range(EVENTS)]
    assert len(joined) == EVENTS * ranks


def test_a_rank_that_reaches_another_deployment_is_told_so(
    mpi: Mpi, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    with (
        deployed(tmp_path / "one", monkeypatch) as one,
        deployed(tmp_path / "two", monkeypatch, identity=one.identity) as two,
    ):
        program = "apart", two.addresses()["CHRONOLOG_PORTAL"]
        told = json.loads(mpi(2, PROGRAM, *program, timeout=120, env=one.addresses()).stdout)
    for sentence in told:
        assert f"ofi+sockets://{two.visor.address}: rank 1 on" in sentence
        assert "does not see here the deployment that rank 0" in sentence
