"""What is too old goes, is counted, and is not missed; what is left is what it was, whoever dies, comes back or reads."""

import itertools
import pathlib
from functools import partial

import pytest

from py_chronolog_client.engine.base import ScanReport
from py_chronolog_client.errors import InvalidArgumentError, NotFoundError
from py_chronolog_client.store import owner
from py_chronolog_client.store.chunkformat import chunk_names
from py_chronolog_client.store.retention import Expired, expire
from py_chronolog_client.store.root import StoreRoot
from py_chronolog_client.store.storylog import StoryLog
from tests.store import holding, independent
from tests.store.test_compaction import Store, make_store
from tests.support.counts import soak


def late(store: Store) -> int:
    """Return a time behind everything."""
    return store.clock.now_ns + 1


def cut(store: Store, gone: dict[int, int]) -> None:
    """Compare everything with what was logged from certain events on."""
    left = sorted(row for row in store.rows if row[2] >= gone.get(row[1], 0))
    assert store.replay() == left
    assert independent.read_story(store.story, owner.boot_id()) == left
    assert store.engine.snapshot("c", "s") == store.ends
    described = store.engine.clients("c", "s")
    assert {client_id: said["rank"] for client_id, said in described.items()} == {n: n for n in store.ends}


@pytest.fixture
def store(tmp_path: pathlib.Path) -> Store:
    return make_store(tmp_path / "store")


@pytest.mark.parametrize("merged", [False, True])
def test_what_is_old_goes_and_is_counted(store: Store, merged: bool) -> None:
    store.close(1)
    store.close(2)
    if merged:
        assert store.compact() is not None
    last = max(row[0] for row in store.rows if row[1] in (1, 2))
    size_bytes = sum(path.stat().st_size for path in store.story.iterdir() if path.name != "meta")
    kept_bytes = sum(path.stat().st_size for path in store.story.glob(f"{3:016x}.*"))
    if merged:
        assert expire(store.root, store.story, last) == Expired(0, 0)
        cut(store, {})
    assert expire(store.root, store.story, last + 1) == Expired(20, size_bytes - kept_bytes)
    cut(store, {1: 10, 2: 10})
    assert expire(store.root, store.story, late(store)) == Expired(0, 0)  # client 3 goes on
    assert len(chunk_names(store.story)) == 1
    store.open(1)  # as the same client, behind what has expired
    store.log(1)
    store.close(1)
    cut(store, {1: 10, 2: 10})
    assert f"{1:016x}.1.log" in store.names(".log")
    assert store.compact() is not None
    cut(store, {1: 10, 2: 10})
    store.close(3)
    assert expire(store.root, store.story, late(store)).events == 11
    cut(store, store.ends)
    assert store.names() == [*chunk_names(store.story)]
    assert len(store.names()) == 1


def test_a_client_that_came_back_loses_only_what_is_old(store: Store) -> None:
    for client_id in (1, 2, 3):
        store.close(client_id)
    old = late(store)
    store.open(1)
    store.log(1, step=1000)
    store.close(1)
    assert expire(store.root, store.story, old).events == 30
    cut(store, {1: 10, 2: 10, 3: 10})
    store.compact()
    cut(store, {1: 10, 2: 10, 3: 10})
    assert expire(store.root, store.story, late(store)).events == 1
    cut(store, store.ends)


def test_later_events_wait_for_earlier_ones(tmp_path: pathlib.Path) -> None:
    store = Store(tmp_path / "store")
    store.open(1)
    store.log(1)
    store.close(1)
    store.open(2)
    store.log(2, step=1000)
    store.close(2)
    store.compact()  # as young as client 2
    store.open(1)
    store.clock.now_ns -= 900
    store.log(1)
    store.close(1)
    store.compact()
    young = max(row[0] for row in store.rows)
    assert expire(store.root, store.story, young) == Expired(0, 0)
    cut(store, {})
    assert expire(store.root, store.story, young + 1).events == 3
    cut(store, store.ends)


def test_a_mark_beyond_the_end_is_missing_and_what_has_expired_is_not(store: Store) -> None:
    for client_id in (1, 2, 3):
        store.close(client_id)
    expire(store.root, store.story, late(store))
    log, report = StoryLog(store.story), ScanReport()
    log.refresh(report)
    assert list(log.pages(0, 2**64 - 1, {}, {1: 10, 2: 12, 9: 4}, report)) == []
    assert report.missing == 2 + 4
    assert len(report.damages) == 2


def test_only_where_it_can_be_said(tmp_path: pathlib.Path) -> None:
    directory = independent.make_story(tmp_path / "store", "c", "s")
    with pytest.raises(InvalidArgumentError, match="format 1 holds no chunks"):
        expire(StoreRoot.open(tmp_path / "store", create=False), directory, 5)
    store = Store(tmp_path / "other")
    directory = store.story
    store.engine.destroy_story("c", "s")
    with pytest.raises(NotFoundError):
        expire(store.root, directory, 5)


def test_a_damaged_segment_stays_and_so_does_what_is_behind_it(store: Store) -> None:
    for client_id in (1, 2, 3):
        store.close(client_id)
    path = store.story / f"{2:016x}.log"
    data = bytearray(path.read_bytes())
    data[data.index(b"CLOGBLK1", 64) + 9] ^= 1
    path.write_bytes(data)
    assert expire(store.root, store.story, late(store)).events == 20
    assert path.exists()


@pytest.mark.slow
@pytest.mark.timeout(soak(60, 900))
def test_a_death_before_every_step(tmp_path: pathlib.Path) -> None:
    """Before the chunk that says it, nothing has expired; behind it, everything; and the next one tidies up."""
    for at in itertools.count(0, soak(29, 1)):
        store = make_store(tmp_path / f"store-{at}")
        store.close(1)
        store.compact()
        store.close(2)
        store.close(3)
        died = holding.killed(partial(expire, store.root, store.story, late(store)), at)
        has_expired = not store.replay()
        cut(store, store.ends if has_expired else {})
        assert has_expired or died
        expired = expire(store.root, store.story, late(store))
        assert expired.events == (0 if has_expired else 30)
        cut(store, store.ends)
        assert [name for name in store.names() if name[0] != "."] == [*chunk_names(store.story)]
        if not died:
            assert at > 29
            break
