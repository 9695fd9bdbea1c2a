"""The grapher with real keepers: events move from one to the other, and nobody who reads or writes notices."""

import itertools
import pathlib
import random
import threading
import time
from collections.abc import Iterator, Mapping

import numpy as np
import pytest

from py_chronolog_client.clock import SystemClock
from py_chronolog_client.engine.base import Engine, ScanReport, Writer, WriterOptions
from py_chronolog_client.engine.connection import Connection
from py_chronolog_client.errors import ChronoLogError, InvalidArgumentError, NotConnectedError, NotFoundError
from py_chronolog_client.store.archive import Archive
from py_chronolog_client.testing.contract.base import rows_of
from py_chronolog_client.tokens import read_tokens
from py_chronolog_client.wire import messages
from py_chronolog_client.wire.failures import error_of
from py_chronolog_client.wire.handshake import SERVICE_NAME, Identity
from tests.store import independent
from tests.store.shipping import Client
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
PATIENCE_S = 20.0
COLD, HOT = {"TieringPolicy": "Cold"}, {"TieringPolicy": "Hot"}

_numbers = itertools.count()


@pytest.fixture(scope="module")
def _deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with (
        pytest.MonkeyPatch.context() as environment,
        deployed(tmp_path_factory.mktemp("g") / "d", environment, keepers=2, grapher=True) as running,
    ):
        yield running


@pytest.fixture
def deployment(_deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployment]:
    """Run a grapher, two keepers and a player, all of whom live at the beginning of a test."""
    for name, value in _deployment.environment().items():
        monkeypatch.setenv(name, value)
    for role in _deployment.roles:
        if role.process.poll() is not None:
            role.start()
    yield _deployment
    for role in _deployment.roles:
        assert "Traceback" not in role.log.read_text(), role.log.read_text()


@pytest.fixture
def engine(deployment: Deployment) -> Iterator[Engine]:
    with engine_of(deployment) as made:
        yield made


@pytest.fixture
def chronicle(engine: Engine) -> str:
    name = f"chronicle {next(_numbers)}"
    engine.create_chronicle(name, {})
    return name


def open_writer(
    engine: Engine,
    chronicle: str,
    client_id: int,
    attributes: Mapping[str, str] | None = None,
    first_sequence: int = 0,
    story: str = STORY,
) -> Writer:
    options = WriterOptions(client_id, SystemClock(), first_sequence=first_sequence)
    return engine.open_writer(chronicle, story, attributes or {}, options)


def write(writer: Writer, events: int) -> None:
    """Log some events, and wait until a keeper has them."""
    writer.log_events([b"%0100d" % number for number in range(events)])
    writer.flush(PATIENCE_S)


def grapher_of(deployment: Deployment) -> Role:
    assert deployment.grapher is not None
    return deployment.grapher


def directory_at(role: Role, chronicle: str, story: str = STORY) -> pathlib.Path:
    stories = role.directory / "chronicles" / independent.name_hash(chronicle) / "stories"
    return stories / independent.name_hash(story)


def files_at(role: Role, chronicle: str, story: str = STORY, *, suffix: str = ".log") -> list[pathlib.Path]:
    return sorted(directory_at(role, chronicle, story).glob(f"[!.]*{suffix}"))


def chunk_events_at(role: Role, chronicle: str, story: str = STORY) -> dict[int, int]:
    """Return how many events of each client a service has in chunks."""
    names = [path.name for path in files_at(role, chronicle, story, suffix=".chunk")]
    clients = Archive(directory_at(role, chronicle, story), names).clients
    return {
        client_id: sum(held.end_sequence - held.first_sequence for held in several)
        for client_id, several in clients.items()
    }


def events_at(role: Role, chronicle: str, story: str = STORY) -> int:
    """Return how many events a service has in segments; one while a block is being written."""
    count = 0
    for path in files_at(role, chronicle, story):
        client_id = int(path.name.partition(".")[0], 16)
        try:
            blocks = independent.read_segment(path.read_bytes(), client_id)
        except independent.FormatError:
            return 1
        except FileNotFoundError:
            continue
        count += sum(len(block.times) for block in blocks)
    return count


def await_archived(deployment: Deployment, chronicle: str, story: str = STORY) -> None:
    """Wait until no keeper has any events of a story, and the grapher has only chunks."""
    eventually(
        lambda: (
            not any(events_at(keeper, chronicle, story) for keeper in deployment.keepers)
            and not files_at(grapher_of(deployment), chronicle, story)
            and files_at(grapher_of(deployment), chronicle, story, suffix=".chunk")
        )
    )


class Readers:
    """Threads that scan and follow a story for as long as a block lasts; what they find wrong is raised at its end."""

    def __init__(self, deployment: Deployment, chronicle: str) -> None:
        self.scans = self.follows = 0
        self.followed: dict[int, int] = {}
        self._deployment, self._chronicle = deployment, chronicle
        self._stop = threading.Event()
        self._wrong: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._guarded, args=(loop,)) for loop in (self._scan, self._follow)
        ]

    def __enter__(self) -> "Readers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * PATIENCE_S)
        if self._wrong:
            raise self._wrong[0]

    def _guarded(self, loop: object) -> None:
        assert callable(loop)
        with engine_of(self._deployment) as engine:
            while not self._stop.is_set():
                try:
                    loop(engine)
                except ChronoLogError:
                    self._stop.wait(0.01)  # somebody is away
                except BaseException as error:
                    self._wrong.append(error)
                    return

    def _scan(self, engine: Engine) -> None:
        report = ScanReport()
        before = engine.snapshot(self._chronicle, STORY)
        counts = require_gapless(
            engine.scan(
                self._chronicle, STORY, report=report, aligned=bool(self.scans % 2), timeout_s=PATIENCE_S
            )
        )
        assert report == ScanReport(), (report, report.damages)
        assert all(counts.get(client_id, 0) >= mark for client_id, mark in before.items()), (before, counts)
        self.scans += 1

    def _follow(self, engine: Engine) -> None:
        pages, cursor = engine.follow(self._chronicle, STORY, self.followed, 0.2)
        new = np.concatenate(
            [np.zeros((2, 0), np.uint64), *(np.stack([p.client_ids, p.sequences]) for p in pages)], 1
        )
        for client_id in np.unique(new[0]).tolist():
            start, sequences = self.followed.get(client_id, 0), new[1][new[0] == client_id]
            assert np.array_equal(sequences, np.arange(start, start + len(sequences))), (
                client_id,
                start,
                sequences,
            )
            assert cursor[client_id] == start + len(sequences)
        self.followed = dict(cursor)
        self.follows += 1


# -- events that move --


def test_readers_see_every_event_once_while_it_moves(
    deployment: Deployment, engine: Engine, chronicle: str
) -> None:
    """From keepers to the grapher, there from segments to chunks; clients leave and come back meanwhile."""
    logged = dict.fromkeys((1, 2, 3, 4), 0)
    writers = {client: open_writer(engine, chronicle, client, COLD) for client in logged}
    with Readers(deployment, chronicle) as readers:
        for turn in range(soak(12, 200)):
            for client_id, writer in writers.items():
                write(writer, 500)
                logged[client_id] += 500
            client_id = 1 + turn % 4
            writers[client_id].close()
            writers[client_id] = open_writer(engine, chronicle, client_id, COLD, logged[client_id])
        for writer in writers.values():
            writer.close()
        await_archived(deployment, chronicle)
        eventually(lambda: readers.followed == logged)
        scans = readers.scans
        eventually(lambda: readers.scans > scans + 1)
    assert require_gapless(engine.scan(chronicle, STORY)) == logged
    assert require_gapless(engine.scan(chronicle, STORY, aligned=True)) == logged
    assert engine.snapshot(chronicle, STORY) == logged
    clients = engine.clients(chronicle, STORY)
    assert list(clients) == list(logged)
    assert all(description["pid"] for description in clients.values())


def test_a_part_of_a_story_that_is_archived(deployment: Deployment, engine: Engine, chronicle: str) -> None:
    """Ranges of time and of sequence numbers, some clients, and a snapshot: as if nothing had moved."""
    for client_id in (1, 2):
        writer = open_writer(engine, chronicle, client_id, COLD)
        write(writer, 300)
        writer.close()
    rows = rows_of(engine.scan(chronicle, STORY))
    await_archived(deployment, chronicle)
    writer = open_writer(engine, chronicle, 1, COLD, 300)
    write(writer, 100)
    rows += [row for row in rows_of(engine.scan(chronicle, STORY, since={1: 300, 2: 300}))]
    assert len(rows) == 700
    assert rows_of(engine.scan(chronicle, STORY)) == rows
    start, end = rows[100][0], rows[650][0]
    assert rows_of(engine.scan(chronicle, STORY, start, end)) == [r for r in rows if start <= r[0] <= end]
    assert rows_of(engine.scan(chronicle, STORY, clients=[2])) == [r for r in rows if r[1] == 2]
    since, until = {1: 250}, {1: 350, 2: 10}
    wanted = [r for r in rows if since.get(r[1], 0) <= r[2] < until[r[1]]]
    assert rows_of(engine.scan(chronicle, STORY, since=since, snapshot=until)) == wanted
    pages, cursor = engine.follow(chronicle, STORY, {1: 290, 2: 300}, 0.0)
    assert [r[2] for r in rows_of(iter(pages))] == list(range(290, 400))
    assert cursor == {1: 400, 2: 300}
    writer.close()


def test_a_story_that_is_destroyed_is_gone_from_the_archive(
    deployment: Deployment, engine: Engine, chronicle: str
) -> None:
    writer = open_writer(engine, chronicle, 1, COLD)
    write(writer, 100)
    writer.close()
    await_archived(deployment, chronicle)
    engine.destroy_story(chronicle, STORY)
    eventually(lambda: not directory_at(grapher_of(deployment), chronicle).exists())
    writer = open_writer(engine, chronicle, 1, COLD)
    write(writer, 3)
    writer.close()
    assert require_gapless(engine.scan(chronicle, STORY)) == {1: 3}
    await_archived(deployment, chronicle)
    assert require_gapless(engine.scan(chronicle, STORY)) == {1: 3}
    engine.destroy_chronicle(chronicle)
    eventually(lambda: not directory_at(grapher_of(deployment), chronicle).exists())


# -- who is away --


def test_without_the_grapher_only_what_it_has_cannot_be_read(
    deployment: Deployment, engine: Engine, chronicle: str
) -> None:
    writer = open_writer(engine, chronicle, 1, COLD)
    write(writer, 100)
    eventually(lambda: files_at(grapher_of(deployment), chronicle, suffix=".chunk"))
    grapher_of(deployment).kill()
    write(writer, 100)
    assert [row[2] for row in rows_of(engine.scan(chronicle, STORY, since={1: 100}))] == list(range(100, 200))
    for question in (
        lambda: list(engine.scan(chronicle, STORY)),
        lambda: engine.follow(chronicle, STORY, {}, 0.0),
    ):
        eventually(lambda question=question: "ChronoGrapher at n0, which may have" in sentence_of(question))
    other = open_writer(engine, chronicle, 1, story="other")
    write(other, 10)
    assert require_gapless(engine.scan(chronicle, "other")) == {1: 10}
    for each in (writer, other):
        each.close()
    assert sorted(engine.snapshot(chronicle, STORY).items()) == [(1, 200)]
    grapher_of(deployment).start()
    eventually(lambda: answers(lambda: require_gapless(engine.scan(chronicle, STORY)) == {1: 200}))
    await_archived(deployment, chronicle)
    assert require_gapless(engine.scan(chronicle, STORY)) == {1: 200}


def sentence_of(question: object) -> str:
    assert callable(question)
    with pytest.raises(NotConnectedError) as caught:
        question()
    return str(caught.value)


@pytest.mark.timeout(soak(60, 3600))
@pytest.mark.parametrize("victims", ["grapher", "keepers"])
def test_sigkill_at_random_moments_of_a_hand_over(
    deployment: Deployment, engine: Engine, chronicle: str, victims: str
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    numbers = random.Random(seed)
    logged = {1: 0, 2: 0}
    writers = {client: open_writer(engine, chronicle, client, COLD) for client in logged}
    stop = threading.Event()

    def log() -> None:
        while not stop.wait(0.02):
            for client_id, writer in list(writers.items()):
                writer.log_events([b"x" * 200] * 20)
                logged[client_id] += 20

    thread = threading.Thread(target=log)
    thread.start()
    try:
        with Readers(deployment, chronicle):
            for number in range(soak(2, 50)):
                roles = [grapher_of(deployment)] if victims == "grapher" else deployment.keepers
                victim = roles[number % len(roles)]
                time.sleep(numbers.random() * 0.4)  # the moment is the subject
                victim.kill()
                victim.start()
                before = dict(logged)
                eventually(lambda before=before: answers(lambda: has_all(engine, chronicle, before)))
    finally:
        stop.set()
        thread.join(PATIENCE_S)
    for writer in writers.values():
        writer.close()
    await_archived(deployment, chronicle)
    assert require_gapless(engine.scan(chronicle, STORY)) == logged


def has_all(engine: Engine, chronicle: str, marks: Mapping[int, int]) -> bool:
    counts = require_gapless(engine.scan(chronicle, STORY, timeout_s=PATIENCE_S))
    return all(counts.get(client_id, 0) >= mark for client_id, mark in marks.items())


# -- policies --


def test_hot_normal_and_cold(deployment: Deployment, engine: Engine, chronicle: str) -> None:
    """An open client's events leave the keeper at once, after a while, or not; and become a chunk likewise."""
    grapher = grapher_of(deployment)
    policies = {"cold": COLD, "normal": {}, "hot": HOT}
    writers = {name: open_writer(engine, chronicle, 1, policies[name], story=name) for name in policies}
    for writer in writers.values():
        write(writer, 100)

    def there(name: str) -> tuple[int, bool]:
        """Return how many events are in the grapher's segments, and whether there is a chunk."""
        return events_at(grapher, chronicle, name), bool(files_at(grapher, chronicle, name, suffix=".chunk"))

    eventually(lambda: there("cold") == (0, True))
    eventually(lambda: there("normal") == (100, False))
    eventually(lambda: there("normal") == (0, True))
    assert there("hot") == (0, False)
    for writer in writers.values():
        writer.close()
    eventually(lambda: there("hot") == (100, False))
    assert require_gapless(engine.scan(chronicle, "hot")) == {1: 100}
    write(late := open_writer(engine, chronicle, 2, story="cold"), 100)
    eventually(lambda: chunk_events_at(grapher, chronicle, "cold") == {1: 100, 2: 100})
    late.close()
    assert there("hot") == (100, False), "hot segments stay as they are"
    assert require_gapless(engine.scan(chronicle, "cold")) == {1: 100, 2: 100}


def test_a_policy_that_is_none_is_refused(engine: Engine, chronicle: str) -> None:
    with pytest.raises(InvalidArgumentError, match="TieringPolicy is 'warm', not one of hot, normal, cold"):
        engine.create_chronicle(f"{chronicle}, warm", {"TieringPolicy": "warm"})
    with pytest.raises(InvalidArgumentError, match="Retention is 'long', not a number of seconds"):
        open_writer(engine, chronicle, 1, {"Retention": "long"})
    assert engine.stories(chronicle) == []


def test_what_is_older_than_its_retention_expires(
    deployment: Deployment, engine: Engine, chronicle: str
) -> None:
    """And is not missing; what comes later is there, and so is what is kept for ever."""
    kept = open_writer(engine, chronicle, 1, COLD, story="kept")
    writer = open_writer(engine, chronicle, 1, {**COLD, "Retention": "1s"})
    for each in (kept, writer):
        write(each, 100)
    eventually(lambda: answers(lambda: require_nothing_is_missing(engine, chronicle) == 0))
    assert "100 events" in grapher_of(deployment).said()
    assert "have expired" in grapher_of(deployment).said()
    write(writer, 10)
    report = ScanReport()
    found = [row[2] for row in rows_of(engine.scan(chronicle, STORY, report=report))]
    assert found == list(range(100, 110))
    assert report == ScanReport()
    for each in (kept, writer):
        each.close()
    assert require_gapless(engine.scan(chronicle, "kept")) == {1: 100}


def require_nothing_is_missing(engine: Engine, chronicle: str) -> int:
    """Return how many events there are of the story."""
    report = ScanReport()
    count = sum(map(len, engine.scan(chronicle, STORY, report=report)))
    assert report == ScanReport()
    return count


# -- a segment on its way --


def service(deployment: Deployment) -> Connection:
    identity = Identity(SERVICE_NAME, read_tokens(deployment.tokens)[SERVICE_NAME])
    return Connection(grapher_of(deployment).address, identity, "grapher")


def hand_over(
    connection: Connection,
    chronicle: str,
    uid: int,
    blocks: list[bytes],
    *,
    client_id: int = 1,
    seal: bool = True,
) -> messages.Message:
    """Send a segment of a client; return the last answer."""
    connection.send(messages.Open(1, uid, chronicle, STORY, client_id, True, b""))
    answer, _ = connection.receive(time.monotonic() + PATIENCE_S)
    if isinstance(answer, messages.Opened):
        for block in blocks:
            connection.send(messages.Block(1), [block])
        if seal:
            connection.send(messages.Seal(1))
            answer, _ = connection.receive(time.monotonic() + PATIENCE_S)
    return answer


def test_a_segment_is_taken_whole_or_not_at_all(
    deployment: Deployment, engine: Engine, chronicle: str
) -> None:
    visor = Connection(deployment.visor.address, deployment.identity, "visor")
    uid = visor.ask(messages.Acquire(chronicle, STORY, HOT, 1, "", 0), messages.Acquired).uid
    client = Client(1, 1, 20)
    blocks = list(client.blocks_from(0, has_client=False))
    first = service(deployment)
    assert hand_over(first, chronicle, uid, blocks[:5], seal=False) == messages.Opened(1, 0, False)
    first.close()
    second = service(deployment)
    for wrong in (blocks[:-1], [blocks[0], *blocks[2:]], [blocks[0], bytes(200), *blocks[1:]]):
        answer = hand_over(second, chronicle, uid, wrong)
        assert isinstance(answer, messages.Refused)
        assert isinstance(error_of(answer), InvalidArgumentError), answer
        assert files_at(grapher_of(deployment), chronicle) == []
    end = len(client.events)
    assert hand_over(second, chronicle, uid, blocks) == messages.Ack(1, end)
    second.send(messages.Open(1, uid, chronicle, STORY, 1, True, b""))
    assert second.receive(time.monotonic() + PATIENCE_S)[0] == messages.Opened(1, end, False)
    assert events_at(grapher_of(deployment), chronicle) == end
    late = list(Client(2, 2, 3).blocks_from(0, has_client=False))
    begun = service(deployment)
    hand_over(begun, chronicle, uid, late[:2], client_id=2, seal=False)
    assert hand_over(second, chronicle, uid, late, client_id=2) == messages.Ack(
        1, len(Client(2, 2, 3).events)
    )
    begun.send(messages.Seal(1))
    assert isinstance(begun.receive(time.monotonic() + PATIENCE_S)[0], messages.Failure), (
        "the newer one counts"
    )
    begun.close()
    answer = hand_over(second, chronicle, uid + 1, blocks)
    assert isinstance(answer, messages.Refused)
    assert isinstance(error_of(answer), NotFoundError)
    second.close()
    own = Connection(grapher_of(deployment).address, deployment.identity, "grapher")
    assert isinstance(hand_over(own, chronicle, uid, blocks), messages.Failure), "only services hand over"
    own.close()
    visor.close()
