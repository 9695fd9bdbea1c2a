"""What the parts of the contract suite stand on: hooks of the engine under test, a probe into a story."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from py_chronolog_client.clock import Clock, SystemClock
from py_chronolog_client.engine.base import Durability, Engine, Snapshot, Writer, WriterOptions
from py_chronolog_client.errors import ChronicleExistsError
from py_chronolog_client.page import Page
from py_chronolog_client.testing.manual_clock import ManualClock

Row = tuple[int, int, int, bytes]
"""An event: time, client id, sequence, record. Rows sort in story order."""

CHRONICLE = "chronicle"
STORY = "story"


def check_page(page: Page) -> None:
    """Assert what holds for every page: its columns, their types, their order."""
    assert len(page) > 0, "an engine delivers no empty pages"
    for column in (page.times, page.keys, page.client_ids, page.sequences, page.windows_ns()):
        assert column.dtype == np.uint64
        assert column.shape == (len(page),)
    assert page.indexes.dtype == np.uint32
    assert page.indexes.tolist() == (page.sequences & np.uint64(2**32 - 1)).tolist()
    assert np.all(page.keys[1:] >= page.keys[:-1])


def rows_of(pages: Iterable[Page]) -> list[Row]:
    """Check pages and return their events as rows, in the order of delivery."""
    rows: list[Row] = []
    for page in pages:
        check_page(page)
        records = page.records()
        assert all(type(record) is bytes for record in records)
        columns = (page.times.tolist(), page.client_ids.tolist(), page.sequences.tolist())
        rows += zip(*columns, records, strict=True)
    return rows


def without_owner(attributes: Mapping[str, str]) -> dict[str, str]:
    """Return attributes without the owner that an engine may add."""
    return {name: text for name, text in attributes.items() if name != "owner"}


@dataclass
class Probe:
    """One story of the engine under test, and short ways to write and read it.

    Attributes:
        engine: the engine under test.
        page_events: the largest number of events that the engine puts into a page.
    """

    engine: Engine
    page_events: int = 65536
    _clock: ManualClock = field(default_factory=lambda: ManualClock(1))
    _writers: list[Writer] = field(default_factory=list)
    _engines: list[Engine] = field(default_factory=list)

    @property
    def clock(self) -> ManualClock:
        """The clock of all writers. Skips the test where the engine takes times from elsewhere."""
        if not self.engine.capabilities.clock_injection:
            pytest.skip("the engine does not take times from a given clock")
        return self._clock

    def options(
        self,
        client_id: int = 1,
        *,
        clock: Clock | None = None,
        durability: Durability = "process",
        description: Mapping[str, Any] | None = None,
        first_sequence: int = 0,
    ) -> WriterOptions:
        """Return options for a writer; without a clock of its own it gets that of the probe."""
        if not self.engine.capabilities.clock_injection:
            clock = SystemClock()
        return WriterOptions(client_id, clock or self._clock, durability, description or {}, first_sequence)

    def open(
        self,
        client_id: int = 1,
        *,
        chronicle: str = CHRONICLE,
        story: str = STORY,
        attributes: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Writer:
        """Open a writer, creating the chronicle if it is not there; `options` as for `Probe.options`."""
        self.create(chronicle)
        writer = self.engine.open_writer(
            chronicle, story, attributes or {}, self.options(client_id, **options)
        )
        self._writers.append(writer)
        return writer

    def create(self, chronicle: str = CHRONICLE) -> None:
        """Create a chronicle if it is not there."""
        if chronicle not in self.engine.chronicles():
            with suppress(ChronicleExistsError):  # a thread of the test was quicker
                self.engine.create_chronicle(chronicle, {})

    def pages(self, start_ns: int = 0, end_ns: int = 2**64 - 1, **arguments: Any) -> Iterator[Page]:
        """Start a scan of the story."""
        return self.engine.scan(CHRONICLE, STORY, start_ns, end_ns, **arguments)

    def rows(self, start_ns: int = 0, end_ns: int = 2**64 - 1, **arguments: Any) -> list[Row]:
        """Scan the story and return its rows."""
        return rows_of(self.pages(start_ns, end_ns, **arguments))

    def records(self, **arguments: Any) -> list[bytes]:
        """Scan the story and return the records alone."""
        return [record for _, _, _, record in self.rows(**arguments)]

    def snapshot(self) -> Snapshot:
        """Take a snapshot of the story."""
        return self.engine.snapshot(CHRONICLE, STORY)

    def follow(self, cursor: Snapshot, timeout_s: float = 0.0) -> tuple[list[Row], Snapshot]:
        """Follow the story once; return rows and the next cursor."""
        pages, next_cursor = self.engine.follow(CHRONICLE, STORY, cursor, timeout_s)
        return rows_of(pages), next_cursor

    def with_engine(self, engine: Engine | None) -> Probe:
        """Return a probe into the same story through another engine; skip the test where there is none."""
        if engine is None:
            pytest.skip("the engine cannot be opened again on the same data")
        self._engines.append(engine)
        return Probe(engine, self.page_events, self._clock)

    def close_writers(self) -> None:
        """Close all writers."""
        for writer in self._writers:
            writer.close()

    def close(self) -> None:
        """Close all writers and engines."""
        self.close_writers()
        for engine in (*self._engines, self.engine):
            engine.close()


class ContractBase(ABC):
    """The hooks that a subclass gives, and the fixture that all tests use.

    Attributes:
        directory: a fresh directory for every test.
        page_events: the largest number of events that the engine puts into a page.
        record_limit_bytes: the largest record that the engine accepts; None: do not test the limit.
        between_processes: whether engines in several processes reach the same data through `reopen`.
    """

    directory: Path
    page_events: int = 65536
    record_limit_bytes: int | None = None
    between_processes: bool = False

    @abstractmethod
    def make_engine(self) -> Engine:
        """Return an engine without chronicles."""

    def reopen(self, engine: Engine) -> Engine | None:
        """Return another engine on the data of `engine`, which stays open; None if there is no such thing."""
        return None

    def damage(self, engine: Engine, chronicle: str, story: str, client_id: int) -> bool:
        """Damage at least one event of a client, whose writer was closed; return False if that cannot be."""
        return False

    @pytest.fixture
    def probe(self, tmp_path: Path) -> Iterator[Probe]:
        """A probe into the story of a fresh engine."""
        self.directory = tmp_path
        probe = Probe(self.make_engine(), self.page_events)
        yield probe
        probe.close()
