"""The remote engine keeps the contract, with real services at the other end."""

import pathlib
from collections.abc import Iterator

import pytest

from py_chronolog_client.engine.base import Engine
from py_chronolog_client.engine.remote import RemoteEngine
from py_chronolog_client.errors import AcquiredError, NotFoundError
from py_chronolog_client.testing.contract import EngineContract
from tests.support.services import Deployment, deployed, eventually


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    directory = tmp_path_factory.mktemp("deployment") / "d"
    with pytest.MonkeyPatch.context() as environment, deployed(directory, environment) as running:
        yield running


def destroy_everything(engine: Engine) -> None:
    """Destroy all chronicles; who was killed holds his stories for a while."""

    def destroyed(chronicle: str) -> bool:
        try:
            engine.destroy_chronicle(chronicle)
        except AcquiredError:
            return False
        except NotFoundError:
            return True
        return True

    for chronicle in engine.chronicles():
        eventually(lambda chronicle=chronicle: destroyed(chronicle))


class TestRemote(EngineContract):
    """Every sentence of the contract, through a visor, a keeper and a player."""

    page_events = 2**18
    between_processes = True
    deployment: Deployment

    @pytest.fixture(autouse=True)
    def use(self, deployment: Deployment) -> None:
        self.deployment = deployment

    def make_engine(self) -> Engine:
        engine = self.deployment.engine()
        destroy_everything(engine)
        return engine

    def reopen(self, engine: Engine) -> Engine:
        assert isinstance(engine, RemoteEngine)
        return self.deployment.engine()

    def damage(self, engine: Engine, chronicle: str, story: str, client_id: int) -> bool:
        (path,) = self._segments(client_id)
        data = bytearray(path.read_bytes())
        data[data.index(b"CLOGBLK1", 128) + 128] ^= 1
        path.write_bytes(data)
        return True

    def _segments(self, client_id: int) -> list[pathlib.Path]:
        keeper = self.deployment.keepers[0].directory
        return list(keeper.glob(f"chronicles/*/stories/*/{client_id:016x}.log"))
