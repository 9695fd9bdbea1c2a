"""The contract of an engine as one pytest class.

    class TestMyEngine(EngineContract):
        def make_engine(self):
            return MyEngine(self.directory / "store")

        def reopen(self, engine):
            return MyEngine(self.directory / "store")

`self.directory` is a fresh directory for every test. What an engine does not claim in its capabilities is
skipped. The hooks and sizes that a subclass may give beside `make_engine` are those of `ContractBase`. An
engine that needs pytest fixtures, a server for instance, takes them in a fixture of its own with
`autouse=True`, which sets attributes of `self`.

The suite stands on two things that follow from the contract: what is acknowledged is seen by every scan that
starts afterwards, and a writer makes every time from the clock that it was given.
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite(
    *(
        f"{__name__}.{part}"
        for part in ("base", "catalog", "writers", "reading", "following", "concurrency", "threads")
    )
)

from py_chronolog_client.testing.contract.base import Probe, Row, rows_of  # noqa: E402
from py_chronolog_client.testing.contract.catalog import CatalogContract  # noqa: E402
from py_chronolog_client.testing.contract.concurrency import ConcurrencyContract  # noqa: E402
from py_chronolog_client.testing.contract.following import FollowContract  # noqa: E402
from py_chronolog_client.testing.contract.reading import ReadContract  # noqa: E402
from py_chronolog_client.testing.contract.writers import WriterContract  # noqa: E402

__all__ = ["EngineContract", "Probe", "Row", "rows_of"]


class EngineContract(CatalogContract, WriterContract, ReadContract, FollowContract, ConcurrencyContract):
    """All behaviour of `py_chronolog_client.engine.base`."""
