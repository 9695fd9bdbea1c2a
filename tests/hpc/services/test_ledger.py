"""What a visor remembers: nothing that was saved is forgotten, wherever its file ends, and nothing else is believed."""

import asyncio
import errno
import os
import pathlib

import pytest

from chronolog_hpc.services import ledger as ledgers
from chronolog_hpc.services.ledger import ARCHIVE, LEDGER, Debt, Home, Ledger, Story
from py_chronolog_client.store.root import StoreRoot

ONE, OTHER, ELSEWHERE = Story("c", "s"), Story("c", "t"), Story("d", "s")


@pytest.fixture
def root(tmp_path: pathlib.Path) -> StoreRoot:
    return StoreRoot.open(tmp_path / "store", create=True)


def fill(ledger: Ledger) -> None:
    ledger.note_acquired(ONE, 1, Home("n0", "ada"), 10)
    ledger.note_acquired(ONE, 2, Home("n1", "ada"), 10)
    ledger.note_acquired(OTHER, 3, Home("n0", "ada"), 11)
    ledger.note_acquired(ELSEWHERE, 2**63 - 1, Home("n1", "ada"), 12)
    ledger.note_released(ONE, 1)
    ledger.note_released(OTHER, 3)
    ledger.note_released(OTHER, 3)


def state(ledger: Ledger) -> tuple[object, ...]:
    holders = {story: set(clients) for story, clients in ledger.holders.items() if clients}
    debts = {node: list(owed) for node, owed in ledger.debts.items() if owed}
    return holders, {story: dict(homes) for story, homes in ledger.homes.items()}, debts, ledger.last_uid


def reopened(root: StoreRoot) -> Ledger:
    ledger = Ledger(root)
    ledger.close()
    return ledger


def test_what_is_saved_is_remembered(root: StoreRoot) -> None:
    ledger = Ledger(root)
    fill(ledger)
    asyncio.run(ledger.saved())
    ledger.close()
    n0, n1 = Home("n0", "ada"), Home("n1", "ada")
    homes = {ONE: {1: n0, 2: n1}, OTHER: {3: n0}, ELSEWHERE: {2**63 - 1: n1}}
    for _ in range(3):
        assert state(reopened(root)) == ({ONE: {2}, ELSEWHERE: {2**63 - 1}}, homes, {}, 12)


def test_who_has_to_forget_what(root: StoreRoot) -> None:
    """Those who have events of it, until they have said that it is done."""
    ledger = Ledger(root)
    fill(ledger)
    ledger.note_destroyed(ONE, 10)
    ledger.note_destroyed(Story("c", ""), 12)
    ledger.note_dropped("n1", Debt("c", "s", 10))
    ledger.note_dropped("n1", Debt("c", "s", 10))
    expected = {"n0": [Debt("c", "s", 10), Debt("c", "", 12)]}
    assert state(ledger)[1:3] == ({ELSEWHERE: {2**63 - 1: Home("n1", "ada")}}, expected)
    asyncio.run(ledger.saved())
    ledger.close()
    assert state(reopened(root)) == state(ledger)


def test_the_grapher_may_have_everything_and_moves_with_what_it_has_to_forget(root: StoreRoot) -> None:
    ledger = Ledger(root)
    fill(ledger)
    assert ledger.grapher == ""
    ledger.note_grapher("n0")
    ledger.note_destroyed(ELSEWHERE, 12)
    ledger.note_grapher("n1")
    ledger.note_destroyed(ONE, 10)
    ledger.note_dropped("n1", Debt(*ELSEWHERE, 12))
    debts = {"n0": [Debt(*ONE, 10)], "n1": [Debt(*ONE, 10)], ARCHIVE: [Debt(*ELSEWHERE, 12), Debt(*ONE, 10)]}
    assert state(ledger)[2] == debts
    asyncio.run(ledger.saved())
    ledger.close()
    again = reopened(root)
    assert (again.grapher, state(again)) == ("n1", state(ledger))


def test_uids_always_rise(root: StoreRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the clock is set back while the visor is away, and where the newest story was destroyed."""
    ledger = Ledger(root)
    uid = max(ledger.next_uid() for _ in range(100))
    ledger.note_acquired(ONE, 1, Home("n0", "ada"), uid)
    ledger.note_destroyed(ONE, uid)
    asyncio.run(ledger.saved())
    ledger.close()
    monkeypatch.setattr(ledgers.time, "time_ns", lambda: 5)
    ledger = reopened(root)
    assert [ledger.next_uid(), ledger.next_uid()] == [uid + 1, uid + 2]


def test_every_truncation_leaves_what_was_saved_before(root: StoreRoot) -> None:
    ledger = Ledger(root)
    path = root.path / LEDGER
    states, sizes = [state(ledger)], [path.stat().st_size]
    for number in range(4):
        ledger.note_acquired(ONE, number, Home("n0", "ada"), number)
        asyncio.run(ledger.saved())
        states.append(state(ledger))
        sizes.append(path.stat().st_size)
    ledger.close()
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        saved = sum(size <= length for size in sizes) - 1
        found = state(reopened(root))
        assert found in (states[max(saved, 0)], states[min(saved + 1, 4)])  # zeros at the end may be missing
    for place in range(0, sizes[1], 5):
        data = bytearray(whole)
        data[place] ^= 1
        path.write_bytes(data)
        assert set(reopened(root).holders[ONE]) >= {1, 2, 3}, "what is damaged costs itself"


def test_a_full_disk_is_told_and_tried_again(root: StoreRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(root)
    fill(ledger)
    with monkeypatch.context() as patch:

        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(ledgers, "write_whole", full)
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            asyncio.run(ledger.saved())
    ledger.note_acquired(OTHER, 4, Home("n0", "ada"), 13)
    asyncio.run(ledger.saved())
    ledger.close()
    assert state(reopened(root)) == state(ledger)


def test_those_who_wait_share_a_sync(root: StoreRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(root)
    syncs = []
    real = os.fdatasync
    monkeypatch.setattr(ledgers.os, "fdatasync", lambda number: (syncs.append(number), real(number)))

    async def acquire(number: int) -> None:
        ledger.note_acquired(ONE, number, Home("n0", "ada"), 1)
        await ledger.saved()

    async def all_at_once() -> None:
        await asyncio.gather(*map(acquire, range(500)))

    asyncio.run(all_at_once())
    ledger.close()
    assert len(syncs) <= 2
    assert reopened(root).holders[ONE] == set(range(500))
