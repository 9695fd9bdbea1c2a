"""The embedded engine keeps the contract, alone and against a model."""

import tempfile
from pathlib import Path

from hypothesis import settings

from py_chronolog_client.engine.base import Engine
from py_chronolog_client.engine.embedded import EmbeddedEngine
from py_chronolog_client.testing.contract import EngineContract
from py_chronolog_client.testing.model import engine_state_machine
from tests.support.counts import soak


class TestEmbedded(EngineContract):
    """Every sentence of the contract, on a store directory."""

    page_events = 2**18
    record_limit_bytes = 64 * 2**20
    between_processes = True

    def make_engine(self) -> Engine:
        return EmbeddedEngine(self.directory / "store")

    def reopen(self, engine: Engine) -> Engine:
        assert isinstance(engine, EmbeddedEngine)
        return EmbeddedEngine(engine.directory)

    def damage(self, engine: Engine, chronicle: str, story: str, client_id: int) -> bool:
        assert isinstance(engine, EmbeddedEngine)
        (path,) = engine.directory.glob(f"chronicles/*/stories/*/{client_id:016x}.log")
        data = bytearray(path.read_bytes())
        data[data.index(b"CLOGBLK1", 128) + 128] ^= 1
        path.write_bytes(data)
        return True


_stores = tempfile.TemporaryDirectory(prefix="chronolog-")


def _make() -> Engine:
    return EmbeddedEngine(Path(tempfile.mkdtemp(dir=_stores.name)) / "store")


def _reopen(engine: Engine) -> Engine:
    assert isinstance(engine, EmbeddedEngine)
    return EmbeddedEngine(engine.directory)


TestModel = engine_state_machine(_make, _reopen).TestCase
TestModel.settings = settings(max_examples=soak(25, 400), stateful_step_count=30, deadline=None)
