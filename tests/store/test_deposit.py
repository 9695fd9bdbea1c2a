"""A sealed segment arrives whole and as it was, or not at all, whatever comes, and whoever dies."""

import errno
import os
import pathlib
import random
from functools import partial

import pytest

from py_chronolog_client.errors import InvalidArgumentError
from py_chronolog_client.store.deposit import Deposit, Deposits
from tests.store import holding, independent, reading
from tests.store.handing import Sender, Stores, names
from tests.store.test_intake import failing
from tests.support.counts import soak

CLIENT = 7
EVENTS = [(10, b"one"), (11, b"two"), (11, b"three")]
LATER = [(11, b""), (12, b"five"), (90, b"six")]
BLOCKS = [
    independent.client_record(CLIENT),
    independent.events_block(CLIENT, 0, EVENTS),
    independent.roll_record(CLIENT, 3),
]


@pytest.fixture
def stores(tmp_path: pathlib.Path) -> Stores:
    return Stores(tmp_path)


def deposited(stores: Stores, blocks: list[bytes], client_id: int = CLIENT) -> int:
    deposit = stores.deposits.open(client_id)
    for block in blocks:
        deposit.append(block)
    return deposit.publish()


def found(stores: Stores) -> reading.Found:
    return reading.replay(stores.grapher_root.path)


def refused(deposit: Deposit, block: bytes, match: str) -> None:
    with pytest.raises(InvalidArgumentError, match=match):
        deposit.append(block)


def test_it_appears_whole_and_bytes_as_they_were(stores: Stores) -> None:
    deposit = stores.deposits.open(CLIENT)
    assert deposit.sequence == 0
    for block in BLOCKS:
        deposit.append(bytearray(block))
        assert found(stores).rows == []
        assert names(stores.grapher, ".log") == []
    assert deposit.publish() == 3
    assert names(stores.grapher, "") == [f"{CLIENT:016x}.log"]
    assert reading.segment(stores.grapher, CLIENT).read_bytes() == b"".join(BLOCKS)
    assert found(stores) == (reading.rows(CLIENT, 0, EVENTS), reading.ScanReport())
    for deposits in (stores.deposits, Deposits(stores.grapher_root, stores.grapher)):
        assert deposits.open(CLIENT).sequence == 3


def test_the_next_one_is_that_of_a_client_that_came_back(stores: Stores) -> None:
    deposited(stores, BLOCKS)
    later = [
        independent.client_record(CLIENT, 3, follows_ns=11),
        independent.events_block(CLIENT, 3, LATER),
        independent.close_record(CLIENT, 6),
    ]
    assert deposited(stores, later) == 6
    path = reading.segment(stores.grapher, CLIENT, 1)
    assert path.read_bytes() == b"".join([independent.client_record(CLIENT, 3), *later[1:]])
    assert found(stores) == (reading.rows(CLIENT, 0, EVENTS + LATER), reading.ScanReport())
    reading.segment(stores.grapher, CLIENT).unlink()  # without that key, this is noticed
    assert found(stores).places


def test_it_is_taken_once(stores: Stores) -> None:
    first, second = stores.deposits.open(CLIENT), stores.deposits.open(CLIENT)
    for block in BLOCKS:
        first.append(block)
        second.append(block)
    assert first.publish() == 3
    with pytest.raises(InvalidArgumentError, match="another deposit of client 0000000000000007 was first"):
        second.publish()
    for blocks in (BLOCKS, [BLOCKS[0], *BLOCKS]):
        assert deposited(stores, blocks) == 3
    assert names(stores.grapher, "") == [f"{CLIENT:016x}.log"]
    assert not list(stores.grapher.glob(".tmp-*"))


def test_what_is_missing_before_it_is_reported_by_readers(stores: Stores) -> None:
    deposited(stores, BLOCKS)
    assert deposited(stores, [independent.client_record(CLIENT, 5, follows_ns=20),
                              independent.events_block(CLIENT, 5, [(20, b"")]),
                              independent.roll_record(CLIENT, 6)]) == 6  # fmt: skip
    rows, report = found(stores)
    assert len(rows) == 4
    assert report.missing == 2


def test_what_is_no_sealed_segment_does_not_appear(stores: Stores) -> None:
    for count in range(len(BLOCKS)):
        with pytest.raises(InvalidArgumentError, match="its last record is no 'roll' and no 'close'"):
            deposited(stores, BLOCKS[:count])
    deposit = stores.deposits.open(CLIENT)
    refused(deposit, BLOCKS[1], "before the client's record")
    refused(deposit, BLOCKS[2], "before the client's")
    deposit.append(BLOCKS[0])
    refused(deposit, independent.client_record(CLIENT, opened_ns=9), "has not left")
    refused(deposit, independent.events_block(CLIENT, 1, EVENTS), "events 0 to 0 are missing")
    refused(deposit, independent.roll_record(CLIENT, 1), "before event 1, not 0")
    refused(
        deposit, independent.record_block(CLIENT, 0, {"type": "roll", "next_sequence": 1}), "another place"
    )
    deposit.append(BLOCKS[1])
    deposit.append(BLOCKS[2])
    refused(deposit, independent.events_block(CLIENT, 3, EVENTS), "behind the end")
    refused(deposit, independent.close_record(CLIENT, 3), "behind the end")
    deposit.abandon()
    deposit.abandon()
    assert names(stores.grapher, "") == []
    assert not list(stores.grapher.glob(".tmp-*"))


def test_every_mutation_is_refused_or_makes_no_difference(stores: Stores) -> None:
    """Of a bit, of a length, and of the order of the blocks: nothing that was not sent appears."""
    numbers = random.Random(3)
    for _ in range(soak(300, 20_000)):
        blocks = [bytearray(block) for block in BLOCKS]
        block = numbers.choice(blocks)
        how = numbers.randrange(4)
        if how == 0:
            block[numbers.randrange(len(block))] ^= 1 << numbers.randrange(8)
        elif how == 1:
            del block[numbers.randrange(len(block)) :]
        elif how == 2:
            block += bytes(64)
        else:
            numbers.shuffle(blocks)
        deposit = stores.deposits.open(CLIENT)
        if blocks != BLOCKS:
            with pytest.raises(InvalidArgumentError):
                for each in blocks:
                    deposit.append(each)
        deposit.abandon()
    assert names(stores.grapher, "") == []
    assert deposited(stores, BLOCKS) == 3


@pytest.mark.parametrize("name", ["pwritev", "fdatasync", "link", "fsync"])
def test_a_failing_disk_leaves_nothing(stores: Stores, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for times in range(1, 8):
        has_failed = failing(monkeypatch, name, errno.EIO, times=times)
        while not has_failed():
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                deposited(stores, BLOCKS)
            assert names(stores.grapher, "") == []
        monkeypatch.undo()
    assert deposited(stores, BLOCKS) == 3
    assert not found(stores).report.damages


def test_many_clients_and_a_store_that_merges(stores: Stores) -> None:
    for round_ in range(3):
        for client_id in range(1, 6):
            sequence = stores.deposits.open(client_id).sequence
            blocks = [
                independent.client_record(client_id, sequence, follows_ns=10 * round_),
                independent.events_block(client_id, sequence, [(10 * round_ + 10, b"%d" % round_)]),
                independent.roll_record(client_id, sequence + 1),
            ]
            assert deposited(stores, blocks, client_id) == round_ + 1
        if round_ != 1:
            stores.compact()
            assert names(stores.grapher, ".log") == []
        rows, report = found(stores)
        assert len(rows) == 5 * (round_ + 1)
        assert not report.damages
        stores.restart()


def test_only_in_a_store_that_can_merge(stores: Stores) -> None:
    with pytest.raises(InvalidArgumentError, match="format 1 cannot merge what is deposited"):
        Deposits(stores.keeper_root, stores.keeper)


def test_a_story_that_is_destroyed_takes_nothing(tmp_path: pathlib.Path) -> None:
    stores = Stores(tmp_path)
    deposit = stores.deposits.open(CLIENT)
    for block in BLOCKS[:2]:
        deposit.append(block)
    stores.grapher.rename(tmp_path / "away")
    deposit.append(BLOCKS[2])
    with pytest.raises(FileNotFoundError):
        deposit.publish()
    assert names(tmp_path / "away", ".log") == []


@pytest.mark.slow
@pytest.mark.timeout(soak(60, 900))
def test_a_death_before_every_step(tmp_path: pathlib.Path) -> None:
    """Of the grapher, from the first block to its answer: it is there or it is not, and the next process takes it."""
    at, died = 0, True
    while died:
        stores = Stores(tmp_path / f"{at}")
        died = holding.killed(partial(deposited, stores, BLOCKS), at)
        is_there = bool(found(stores).rows)
        assert found(stores) == (reading.rows(CLIENT, 0, EVENTS) if is_there else [], reading.ScanReport())
        stores.restart()
        assert not list(stores.grapher.glob(".tmp-*.deposit"))
        assert stores.deposits.open(CLIENT).sequence == (3 if is_there else 0)
        assert deposited(stores, BLOCKS) == 3
        assert found(stores) == (reading.rows(CLIENT, 0, EVENTS), reading.ScanReport())
        at += soak(3, 1)
    assert is_there


def test_a_keeper_dies_between_the_grapher_s_answer_and_its_own_deletion(stores: Stores) -> None:
    sender = Sender(CLIENT)
    sender.log(3)
    stores.send(sender)
    stores.intake(CLIENT).roll()
    handing = stores.handing()
    before = names(stores.keeper, ".log")
    while names(stores.grapher, ".log") == []:
        next(handing)
    assert names(stores.keeper, ".log") == before
    stores.restart()
    size_bytes = reading.segment(stores.grapher, CLIENT).stat().st_size
    for _ in stores.handing():
        pass
    assert names(stores.keeper, ".log") == before[:1]
    assert reading.segment(stores.grapher, CLIENT).stat().st_size == size_bytes
