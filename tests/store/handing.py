"""A keeper's store, a grapher's, and clients who send to the one while it hands over to the other."""

import os
import pathlib
from collections.abc import Iterator

from py_chronolog_client.engine.base import MAX_TIME_NS, ScanReport, Snapshot
from py_chronolog_client.store.compaction import compact
from py_chronolog_client.store.deposit import Deposits
from py_chronolog_client.store.handover import Sealed, sealed
from py_chronolog_client.store.intake import Intake
from py_chronolog_client.store.root import StoreRoot
from py_chronolog_client.store.storylog import StoryLog
from py_chronolog_client.testing.contract.base import Row, rows_of
from tests.store import independent

CHRONICLE, STORY = "c", "s"


class Sender:
    """A client, and all that it has ever sent, in order."""

    def __init__(self, client_id: int) -> None:
        self.client_id = client_id
        self.blocks = [independent.client_record(client_id, rank=client_id)]
        self.rows: list[Row] = []
        self.is_here = True
        self.time_ns = 1000
        self.since = 0

    def log(self, count: int, step: int = 1) -> None:
        events = []
        for _ in range(count):
            self.time_ns += step
            record = b"%d %d" % (self.client_id, len(self.rows))
            self.rows.append((self.time_ns, self.client_id, len(self.rows), record))
            events.append((self.time_ns, record))
        first = len(self.rows) - count
        self.blocks.append(independent.events_block(self.client_id, first, events))

    def say_of_the_clock(self) -> None:
        fields = {"type": "clock", "first_sequence": self.since, "models": bytes(48 * (len(self.blocks) % 5))}
        self.blocks.append(independent.record_block(self.client_id, len(self.rows), fields))

    def leave(self) -> None:
        self.is_here = False
        closed_ns = 10**6 + len(self.blocks)
        self.blocks.append(independent.close_record(self.client_id, len(self.rows), closed_ns=closed_ns))

    def come_back(self) -> None:
        self.is_here, self.since = True, len(self.rows)
        opened_ns = 10**6 + len(self.blocks)  # two records are never the same
        record = independent.client_record(
            self.client_id, len(self.rows), opened_ns=opened_ns, rank=self.client_id
        )
        self.blocks.append(record)


class Stores:
    """The two stores, with what two processes know of them: `restart` makes them forget."""

    def __init__(self, path: pathlib.Path) -> None:
        self.keeper = independent.make_story(path / "keeper", CHRONICLE, STORY)
        self.grapher = independent.make_story(path / "grapher", CHRONICLE, STORY, 2)
        self.keeper_root = StoreRoot.open(path / "keeper", create=False)
        self.grapher_root = StoreRoot.open(path / "grapher", create=False)
        self.restart()

    def restart(self) -> None:
        for intake in getattr(self, "intakes", {}).values():
            intake.close()
        self.intakes: dict[int, Intake] = {}
        self.deposits = Deposits(self.grapher_root, self.grapher)

    def intake(self, client_id: int) -> Intake:
        if client_id not in self.intakes:
            self.intakes[client_id] = Intake(self.keeper_root, self.keeper, client_id)
        return self.intakes[client_id]

    def send(self, sender: Sender, start: int = 0) -> None:
        """Send what a sender sends that begins again: records, also known ones, and the events that are not there."""
        intake = self.intake(sender.client_id)
        for block in sender.blocks[0 if intake.is_empty else start :]:
            header = independent.read_block(block, 0)[0]
            if not header.times or header.first_sequence + len(header.times) > intake.sequence:
                intake.append(block)
        assert intake.sequence == len(sender.rows)

    def handing(self) -> Iterator[None]:
        """Hand over everything that is sealed, step by step."""
        for part in sealed(self.keeper):
            yield from self.hand_over(part)

    def hand_over(self, part: Sealed) -> Iterator[None]:
        deposit = self.deposits.open(part.client_id)
        if deposit.sequence < part.end_sequence:
            for block in part.blocks():
                yield
                deposit.append(block)
            yield
            deposit.publish()
        yield
        part.remove()

    def compact(self) -> None:
        compact(self.grapher_root, self.grapher)


class Question:
    """A question to the keeper, and later to the grapher, about the events behind some marks."""

    def __init__(self, stores: Stores, since: Snapshot | None = None, log: StoryLog | None = None) -> None:
        self._stores = stores
        self._since = since or {}
        self._log = log or StoryLog(stores.keeper)
        self.report = ScanReport()
        self._log.refresh(self.report)
        self.starts, self.marks = self._log.starts(), self._log.snapshot()

    def answer(self, log: StoryLog | None = None) -> list[Row]:
        """Return what both have, which must be undamaged and in no way twice."""
        rows = rows_of(self._log.pages(0, MAX_TIME_NS, self._since, self.marks, self.report, verify=True))
        log = log or StoryLog(self._stores.grapher)
        log.refresh(self.report)
        until = {client_id: start for client_id, start in self.starts.items() if start}
        rows += rows_of(log.pages(0, MAX_TIME_NS, self._since, until, self.report, verify=True))
        assert (self.report.damages, self.report.missing) == ([], 0)
        assert not self.report.left_out()
        return sorted(rows)


def independently(stores: Stores, boot_id: bytes) -> set[Row]:
    """Return what another reader finds in both stores together."""
    return {
        row
        for directory in (stores.keeper, stores.grapher)
        for row in independent.read_story(directory, boot_id)
    }


def names(directory: pathlib.Path, suffix: str) -> list[str]:
    return sorted(name for name in os.listdir(directory) if name.endswith(suffix) and name != "meta")
