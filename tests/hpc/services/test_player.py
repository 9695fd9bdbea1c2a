"""The player with real keepers: one order over all of them, and what becomes of readers when processes end."""

import contextlib
import itertools
import os
import pathlib
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from chronolog_hpc.services import player
from py_chronolog_client.clock import SystemClock
from py_chronolog_client.engine.base import Engine, ScanReport, Snapshot, Writer, WriterOptions
from py_chronolog_client.engine.connection import Connection
from py_chronolog_client.engine.remote_reader import RemoteReader
from py_chronolog_client.errors import (
    ChronoLogError,
    NotConnectedError,
    NotFoundError,
    ReplayTimeoutError,
)
from py_chronolog_client.page import Page
from py_chronolog_client.testing.contract.base import Row, rows_of
from py_chronolog_client.testing.manual_clock import ManualClock
from py_chronolog_client.wire import messages
from tests.support.counts import soak
from tests.support.services import (
    Deployment,
    Role,
    answers,
    deployed,
    engine_of,
    eventually,
    require_gapless,
)

pytestmark = pytest.mark.slow

STORY = "story"
CLIENTS = range(1, 7)
PATIENCE_S = 20.0

_numbers = itertools.count()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Run two keepers and a player that no test ends."""
    with (
        pytest.MonkeyPatch.context() as environment,
        deployed(tmp_path_factory.mktemp("shared") / "d", environment, keepers=2) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def _mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with (
        pytest.MonkeyPatch.context() as environment,
        deployed(tmp_path_factory.mktemp("own") / "d", environment, keepers=2) as running,
    ):
        yield running


@pytest.fixture
def own(_mortal: Deployment, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    """Run two keepers and a player that the test may end."""
    for name, value in _mortal.environment().items():
        monkeypatch.setenv(name, value)
    for role in _mortal.roles:
        if role.process.poll() is not None:
            role.start()
    return _mortal


@pytest.fixture
def engine(shared: Deployment) -> Iterator[Engine]:
    with engine_of(shared) as made:
        yield made


@pytest.fixture
def chronicle(engine: Engine) -> str:
    return new_chronicle(engine)


def new_chronicle(engine: Engine) -> str:
    name = f"chronicle {next(_numbers)}"
    engine.create_chronicle(name, {})
    return name


def open_writer(engine: Engine, chronicle: str, client_id: int, **options: object) -> Writer:
    clock = options.pop("clock", SystemClock())
    return engine.open_writer(chronicle, STORY, {}, WriterOptions(client_id, clock, **options))  # type: ignore[arg-type]


def write_story(engine: Engine, chronicle: str, seed: int = 1) -> list[Row]:
    """Write events of six clients, many of them at the same times; return the rows of the story."""
    numbers, clock, rows = random.Random(seed), ManualClock(1), list[Row]()
    writers = [open_writer(engine, chronicle, client, clock=clock) for client in CLIENTS]
    counts = dict.fromkeys(CLIENTS, 0)
    for _ in range(300):
        clock.now_ns += numbers.choice([0, 0, 1, 1000])
        writer = numbers.choice(writers)
        batch = [numbers.randbytes(numbers.randrange(40)) for _ in range(numbers.randrange(1, 5))]
        writer.log_events(batch)
        for record in batch:
            rows.append((clock.now_ns, writer.client_id, counts[writer.client_id], record))
            counts[writer.client_id] += 1
        if numbers.random() < 0.1:
            writer.flush()
    for writer in writers:
        writer.close()
    return sorted(rows)


def write_much(engine: Engine, chronicle: str, events: int = 100_000) -> list[Writer]:
    """Write many events of 128 bytes of two clients, who have different keepers."""
    writers = [open_writer(engine, chronicle, client) for client in (1, 2)]
    for start in range(0, events, 1000):
        batch = [b"%0128d" % number for number in range(start, start + 1000)]
        for writer in writers:
            writer.log_events(batch)
    for writer in writers:
        assert writer.flush(PATIENCE_S) == events
    return writers


def asking(deployment: Deployment, role: Role) -> RemoteReader:
    identity = deployment.services if role.role == "keeper" else deployment.identity
    return RemoteReader(lambda: Connection(role.address, identity, role.role))


def damage(role: Role, client_id: int) -> None:
    """Damage the record FRAGILE of a client, in the story that was made last."""
    paths = role.directory.glob(f"chronicles/*/stories/*/{client_id:016x}.log")
    path = max(paths, key=lambda found: found.stat().st_ctime_ns)
    data = bytearray(path.read_bytes())
    data[data.index(b"FRAGILE")] ^= 1
    path.write_bytes(data)


def spent_s(role: Role) -> float:
    """Return the processor time of a process."""
    fields = pathlib.Path(f"/proc/{role.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# -- one order --


def test_one_order_over_clients_of_two_keepers(shared: Deployment, engine: Engine, chronicle: str) -> None:
    rows = write_story(engine, chronicle)
    at_keepers = []
    for role in shared.keepers:
        reader = asking(shared, role)
        at_keepers.append(dict(reader.snapshot(chronicle, STORY)))
        reader.close()
    assert [sorted(marks) for marks in at_keepers] == [[2, 4, 6], [1, 3, 5]]
    assert rows_of(engine.scan(chronicle, STORY)) == rows
    assert rows_of(engine.scan(chronicle, STORY, aligned=True)) == rows
    assert engine.snapshot(chronicle, STORY) == at_keepers[0] | at_keepers[1]
    assert list(engine.clients(chronicle, STORY)) == list(CLIENTS)
    start, end = rows[100][0], rows[400][0]
    assert rows_of(engine.scan(chronicle, STORY, start, end)) == [
        row for row in rows if start <= row[0] <= end
    ]
    some = (1, 2, 5, 99)
    assert rows_of(engine.scan(chronicle, STORY, clients=some)) == [row for row in rows if row[1] in some]
    assert rows_of(engine.scan(chronicle, STORY, clients=[])) == []
    since, until = {1: 10, 2: 20, 6: 1}, {1: 30, 2: 25, 3: 7, 4: 0}
    wanted = [row for row in rows if since.get(row[1], 0) <= row[2] < until.get(row[1], 0)]
    assert rows_of(engine.scan(chronicle, STORY, since=since, snapshot=until)) == wanted
    assert rows_of(iter(engine.follow(chronicle, STORY, since, 0.0)[0])) == [
        row for row in rows if since.get(row[1], 0) <= row[2]
    ]


def test_damage_at_both_keepers_is_reported_once_each(
    shared: Deployment, engine: Engine, chronicle: str
) -> None:
    for client_id in (1, 2):
        writer = open_writer(engine, chronicle, client_id)
        writer.log_events(["a", "FRAGILE"])
        writer.flush()
        writer.log_event("whole")
        writer.close()
    for role, client_id in zip(shared.keepers, (2, 1), strict=True):
        damage(role, client_id)
    report = ScanReport()
    assert [row[3] for row in rows_of(engine.scan(chronicle, STORY, report=report))] == [b"whole"] * 2
    assert len(report.damages) == 2
    assert report.missing == 4


def test_a_story_without_events_and_one_that_is_gone(engine: Engine, chronicle: str) -> None:
    writer = open_writer(engine, chronicle, 1)
    assert rows_of(engine.scan(chronicle, STORY)) == []
    assert engine.follow(chronicle, STORY, {}, 0.0)[0] == []
    writer.close()
    engine.destroy_story(chronicle, STORY)
    for question in (
        lambda: list(engine.scan(chronicle, STORY)),
        lambda: engine.snapshot(chronicle, STORY),
        lambda: engine.clients(chronicle, STORY),
        lambda: engine.follow(chronicle, STORY, {}, 0.0),
    ):
        with pytest.raises(NotFoundError):
            question()


def test_a_story_that_is_made_again_has_nothing_of_the_old_one(engine: Engine, chronicle: str) -> None:
    write_story(engine, chronicle)
    engine.destroy_story(chronicle, STORY)
    writer = open_writer(engine, chronicle, 7)
    writer.log_event("new")
    writer.flush()
    assert [row[3] for row in rows_of(engine.scan(chronicle, STORY))] == [b"new"]
    writer.close()


def test_scans_while_clients_write(engine: Engine, chronicle: str) -> None:
    writers = [open_writer(engine, chronicle, client_id) for client_id in (1, 2, 3)]
    stop = threading.Event()
    flushed: dict[int, int] = {}

    def write(writer: Writer) -> None:
        for _ in range(soak(30, 1000)):
            writer.log_events([b"x" * 50] * 1000)
            flushed[writer.client_id] = writer.flush(PATIENCE_S)
            if stop.is_set():
                return

    threads = [threading.Thread(target=write, args=(writer,)) for writer in writers]
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads):
            before = dict(flushed)
            counts = require_gapless(engine.scan(chronicle, STORY))
            assert all(counts.get(client_id, 0) >= mark for client_id, mark in before.items())
            marks = engine.snapshot(chronicle, STORY)
            counts = require_gapless(engine.scan(chronicle, STORY, snapshot=marks))
            assert counts == {client_id: mark for client_id, mark in marks.items() if mark}
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE_S)
    for writer in writers:
        writer.close()
    assert require_gapless(engine.scan(chronicle, STORY)) == flushed


# -- following --


def test_a_follower_wakes_up_for_either_keeper(engine: Engine, chronicle: str) -> None:
    writers = [open_writer(engine, chronicle, client_id) for client_id in (1, 2)]
    cursor: Snapshot = {}
    rounds, began_s = soak(20, 1000), time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        for number in range(rounds):
            following = pool.submit(engine.follow, chronicle, STORY, cursor, PATIENCE_S)
            if number % 3:
                eventually(lambda: following.running())
            writer = writers[number % 2]
            writer.log_event(str(number))
            writer.flush()
            pages, cursor = following.result(PATIENCE_S)
            assert [row[3] for row in rows_of(iter(pages))] == [str(number).encode()]
    assert time.monotonic() - began_s < rounds * player.BELL_S / 4
    assert cursor == engine.snapshot(chronicle, STORY)
    for writer in writers:
        writer.close()


def acquire(deployment: Deployment, chronicle: str, client_id: int) -> Connection:
    """Acquire a story, so that a keeper may have events of it, and let the keeper not know; return what holds it."""
    visor = Connection(deployment.visor.address, deployment.identity, "visor")
    visor.ask(messages.Acquire(chronicle, STORY, {}, client_id, "", 0), messages.Acquired)
    return visor


def test_a_keeper_that_has_never_heard_of_the_story_has_nothing(
    shared: Deployment, engine: Engine, chronicle: str
) -> None:
    holder = acquire(shared, chronicle, 2)
    assert rows_of(engine.scan(chronicle, STORY)) == []
    assert (engine.snapshot(chronicle, STORY), engine.clients(chronicle, STORY)) == ({}, {})
    first = open_writer(engine, chronicle, 1)
    first.log_event("first")
    first.flush()
    pages, cursor = engine.follow(chronicle, STORY, {}, PATIENCE_S)
    assert [row[3] for row in rows_of(iter(pages))] == [b"first"]
    assert shared.player is not None
    before_s, began_s = spent_s(shared.player), time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(engine.follow, chronicle, STORY, cursor, PATIENCE_S)
        assert not wait([following], 1.0).done
        assert spent_s(shared.player) - before_s < 0.3
        second = open_writer(engine, chronicle, 2)
        second.log_event("second")
        second.flush()
        pages, _ = following.result(PATIENCE_S)
    assert [row[3] for row in rows_of(iter(pages))] == [b"second"]
    assert time.monotonic() - began_s < player.BELL_S / 2
    holder.close()
    for writer in (first, second):
        writer.close()


def test_a_follower_waits_no_longer_than_he_may(engine: Engine, chronicle: str) -> None:
    open_writer(engine, chronicle, 1).close()
    began_s = time.monotonic()
    assert engine.follow(chronicle, STORY, {}, 0.3)[0] == []
    assert 0.25 < time.monotonic() - began_s < PATIENCE_S


def test_a_follower_gets_the_others_events_while_a_keeper_is_away(own: Deployment) -> None:
    with engine_of(own) as engine:
        name = new_chronicle(engine)
        writers = {client_id: open_writer(engine, name, client_id) for client_id in (1, 2)}
        for writer in writers.values():
            writer.log_event("there")
            writer.flush()
        cursor = engine.snapshot(name, STORY)
        own.keepers[0].kill()
        writers[1].log_event("other")
        writers[1].flush()
        pages, cursor = engine.follow(name, STORY, cursor, PATIENCE_S)
        assert [row[3] for row in rows_of(iter(pages))] == [b"other"]
        with pytest.raises(NotConnectedError, match="ChronoKeeper"):
            engine.follow(name, STORY, cursor, 0.1)
        writers[2].log_event("late")
        with ThreadPoolExecutor(1) as pool:
            following = pool.submit(engine.follow, name, STORY, cursor, PATIENCE_S)
            own.keepers[0].start()
            pages, _ = following.result(PATIENCE_S)
        assert [row[3] for row in rows_of(iter(pages))] == [b"late"]
        for writer in writers.values():
            writer.close()


def test_a_follower_passes_events_that_nobody_can_read_any_more(
    shared: Deployment, engine: Engine, chronicle: str
) -> None:
    writer = open_writer(engine, chronicle, 1)
    cursor = engine.snapshot(chronicle, STORY)
    for record in ("FRAGILE", "whole"):
        writer.log_event(record)
        writer.flush()
    damage(shared.keepers[1], 1)
    pages, cursor = engine.follow(chronicle, STORY, cursor, PATIENCE_S)
    assert [row[3] for row in rows_of(iter(pages))] == [b"whole"]
    assert cursor == {1: 2}
    writer.close()


# -- many and slow readers --


def peak_bytes(role: Role) -> int:
    """Return the most that a process has ever had in memory."""
    status = pathlib.Path(f"/proc/{role.process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    return 1024 * int(found[1])


def test_many_readers_and_slow_ones_at_once(shared: Deployment, engine: Engine, chronicle: str) -> None:
    events, readers = 300_000, 5
    writers = write_much(engine, chronicle, events)
    assert shared.player is not None
    before_bytes = peak_bytes(shared.player)
    slow = asking(shared, shared.player)
    scans = [slow.scan(chronicle, STORY) for _ in range(readers)]
    begun = [next(scan) for scan in scans]

    def count() -> int:
        with engine_of(shared) as other:
            return sum(map(len, other.scan(chronicle, STORY)))

    with ThreadPoolExecutor(readers) as pool:
        counts = [pool.submit(count) for _ in range(readers)]
        assert [done.result(PATIENCE_S) for done in counts] == [2 * events] * readers
    story_bytes = 2 * events * 128
    assert peak_bytes(shared.player) - before_bytes < readers * story_bytes / 2
    assert require_gapless(itertools.chain(begun[:1], scans[0])) == {1: events, 2: events}
    for scan in scans:
        scan.close()  # type: ignore[attr-defined]
    slow.close()
    for writer in writers:
        writer.close()


def test_more_silent_readers_than_threads(shared: Deployment, engine: Engine, chronicle: str) -> None:
    writers = write_much(engine, chronicle, 10_000)
    assert shared.player is not None
    question = messages.Scan(chronicle, STORY, 0, 0, 2**64 - 1, b"", True, b"", True, b"", 0, True, False)
    silent = [Connection(shared.player.address, shared.identity, "player") for _ in range(80)]
    for connection in silent:
        connection.send(question)
    assert require_gapless(engine.scan(chronicle, STORY)) == {1: 10_000, 2: 10_000}
    for connection in silent:
        connection.close()
    for writer in writers:
        writer.close()


# -- deadlines, and processes that end --


def test_a_replay_is_over_at_its_deadline(engine: Engine, chronicle: str) -> None:
    writers = write_much(engine, chronicle)
    with pytest.raises(ReplayTimeoutError):
        list(engine.scan(chronicle, STORY, timeout_s=0.001))
    assert require_gapless(engine.scan(chronicle, STORY, timeout_s=PATIENCE_S)) == {1: 100_000, 2: 100_000}
    for writer in writers:
        writer.close()


def test_a_keeper_that_is_away_fails_every_question_by_name(own: Deployment) -> None:
    with engine_of(own) as engine:
        name = new_chronicle(engine)
        rows = write_story(engine, name)
        own.keepers[1].kill()
        questions = (
            lambda: list(engine.scan(name, STORY)),
            lambda: engine.snapshot(name, STORY),
            lambda: engine.clients(name, STORY),
        )
        for question in questions:
            with pytest.raises(
                NotConnectedError, match=f"ChronoKeeper at (n1|{own.keepers[1].address}).* is away"
            ):
                question()
        eventually(lambda: "ChronoKeeper at n1" in sentence_of(questions[1]))
        assert "not registered" in sentence_of(questions[0])
        own.keepers[1].start()
        eventually(lambda: answers(lambda: rows_of(engine.scan(name, STORY)) == rows))


def test_a_keeper_that_hangs_is_a_time_out_and_does_not_keep_the_player_from_stopping(
    own: Deployment,
) -> None:
    assert own.player is not None
    with engine_of(own) as engine, ThreadPoolExecutor(1) as pool, ThreadPoolExecutor(4) as others:
        name = new_chronicle(engine)
        rows = write_story(engine, name)
        assert rows_of(engine.scan(name, STORY)) == rows
        own.keepers[1].signal(signal.SIGSTOP)
        try:
            replay = pool.submit(lambda: list(engine.scan(name, STORY)))
            for late in [
                others.submit(lambda: list(engine.scan(name, STORY, timeout_s=0.01))) for _ in range(4)
            ]:
                with pytest.raises(ReplayTimeoutError):
                    late.result(PATIENCE_S)
            assert not replay.done()
            began_s = time.monotonic()
            assert own.player.stop() == 0
            assert time.monotonic() - began_s < PATIENCE_S / 2
            with pytest.raises(NotConnectedError):
                replay.result(PATIENCE_S)
        finally:
            own.keepers[1].signal(signal.SIGCONT)
        own.player.start()
        eventually(lambda: answers(lambda: rows_of(engine.scan(name, STORY)) == rows))


def sentence_of(question: Callable[[], object]) -> str:
    with pytest.raises(NotConnectedError) as caught:
        question()
    return str(caught.value)


def test_what_was_in_order_before_a_keeper_died_is_delivered(own: Deployment) -> None:
    with engine_of(own) as engine:
        name = new_chronicle(engine)
        writers = write_much(engine, name, 100_000)
        delivered: list[Page] = []

        def replay() -> Iterator[Page]:
            for page in engine.scan(name, STORY):
                if not delivered:
                    own.keepers[0].kill()
                delivered.append(page)
                yield page

        with pytest.raises(NotConnectedError, match="ChronoKeeper"):
            require_gapless(replay())
        assert 0 < sum(map(len, delivered)) < 200_000
        own.keepers[0].start()
        eventually(
            lambda: answers(lambda: require_gapless(engine.scan(name, STORY)) == {1: 100_000, 2: 100_000})
        )
        for writer in writers:
            writer.close()


@pytest.mark.timeout(1800)
def test_anybody_may_be_killed_and_comes_back_without_help(own: Deployment) -> None:
    assert own.player is not None
    numbers = random.Random(5)
    with engine_of(own) as engine:
        name = new_chronicle(engine)
        writers = [open_writer(engine, name, client_id) for client_id in (1, 2)]
        stop, logged = threading.Event(), {1: 0, 2: 0}

        def write(writer: Writer) -> None:
            while not stop.is_set():
                writer.log_events([b"x" * 100] * 10)
                logged[writer.client_id] += 10
                stop.wait(0.01)

        threads = [threading.Thread(target=write, args=(writer,)) for writer in writers]
        for thread in threads:
            thread.start()
        try:
            for number in range(soak(4, 200)):
                victim = (own.player, *own.keepers, own.visor)[number % 4]
                killer = threading.Timer(numbers.random() * 0.05, victim.kill)
                killer.start()
                while killer.is_alive():
                    with contextlib.suppress(ChronoLogError):
                        require_gapless(engine.scan(name, STORY, timeout_s=PATIENCE_S))
                killer.join()
                victim.start()
                before = dict(logged)
                eventually(
                    lambda before=before: answers(
                        lambda: all(
                            require_gapless(engine.scan(name, STORY)).get(client_id, 0) >= mark
                            for client_id, mark in before.items()
                        )
                    )
                )
        finally:
            stop.set()
            for thread in threads:
                thread.join(PATIENCE_S)
        for writer in writers:
            writer.close()
        assert require_gapless(engine.scan(name, STORY)) == logged
