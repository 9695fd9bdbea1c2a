"""The remote engine keeps the contract while events move to a grapher, and there into chunks, as soon as they come."""

from collections.abc import Iterator

import pytest

from py_chronolog_client.engine.base import Engine
from tests.engine import test_remote
from tests.support.counts import SOAKING
from tests.support.services import Deployment, deployed

if not SOAKING:
    pytest.skip("takes as long as the contract itself: make soak", allow_module_level=True)


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    directory = tmp_path_factory.mktemp("archive") / "d"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("CHRONOLOG_TEST_PACE", "now")
        with deployed(directory, environment, grapher=True) as running:
            yield running


class TestRemoteWithArchive(test_remote.TestRemote):
    """Every sentence of the contract, through a visor, a keeper, a grapher and a player."""

    def damage(self, engine: Engine, chronicle: str, story: str, client_id: int) -> bool:
        return False  # where its events are changes from moment to moment
