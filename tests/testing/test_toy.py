"""The toy engine keeps the contract."""

from py_chronolog_client.testing import EngineContract, ToyEngine


class TestToyContract(EngineContract):
    page_events = 7
    record_limit_bytes = 2**20

    def make_engine(self):
        return ToyEngine()

    def reopen(self, engine):
        return engine.beside()

    def damage(self, engine, chronicle, story, client_id):
        engine.spoil(chronicle, story, client_id, 1)
        return True
