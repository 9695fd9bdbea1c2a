"""The keeper over the wire: what is acknowledged is there once and in order, whenever it is killed."""

import pathlib
import random
import select
import threading
import time
from collections.abc import Iterator

import pytest

from py_chronolog_client.engine.connection import Connection
from py_chronolog_client.engine.remote_reader import RemoteReader
from py_chronolog_client.errors import (
    ErrorCode,
    InvalidArgumentError,
    NotConnectedError,
    NotFoundError,
    ReplayTimeoutError,
)
from py_chronolog_client.testing.contract.base import rows_of
from py_chronolog_client.wire import messages
from py_chronolog_client.wire.handshake import SERVICE_NAME
from tests.hpc.services.deploying import (
    CHRONICLE,
    DEADLINE_S,
    STORY,
    Deployment,
    acquire,
    deployed,
    open_stream,
    ship,
    until,
    until_acquired,
)
from tests.store import independent, reading
from tests.store.shipping import Client
from tests.support.counts import soak

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployed(tmp_path_factory.mktemp("keeper") / "d", "n0") as running:
        visor = running.connect(running.visor)
        visor.ask(messages.CreateChronicle(CHRONICLE, {}), messages.Done)
        until_acquired(visor, 0, "first")
        yield running


def new_stream(
    deployment: Deployment, story: str, client_id: int, *, durable: bool = False
) -> tuple[Connection, messages.Acquired]:
    """Return a connection to the keeper on which stream 1 of a client is open."""
    visor = deployment.connect(deployment.visor)
    acquired = acquire(visor, client_id, story)
    connection = deployment.connect(deployment.running[1])
    open_stream(connection, acquired, client_id, durable=durable, story=story)
    return connection, acquired


def reader_of(deployment: Deployment) -> RemoteReader:
    return RemoteReader(lambda: deployment.connect(deployment.running[1], SERVICE_NAME))


class Sender(threading.Thread):
    """Ships a client's blocks, pipelined, over one connection after another, until all are acknowledged.

    Attributes:
        acknowledged: all events below this number are, by the keeper's word.
        lost: how often a connection was lost.
    """

    def __init__(self, deployment: Deployment, client: Client, *, durable: bool) -> None:
        super().__init__(daemon=True)
        self.deployment, self.client, self.durable = deployment, client, durable
        self.acknowledged = self.lost = 0
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            while not self._attempt():
                self.lost += 1
                time.sleep(0.01)
        except BaseException as error:
            self.error = error

    def _attempt(self) -> bool:
        try:
            visor = self.deployment.connect(self.deployment.visor)
            acquired = until_acquired(visor, self.client.client_id)
            connection = self.deployment.connect(self.deployment.at(acquired.keeper_port))
            opened = open_stream(connection, acquired, self.client.client_id, durable=self.durable)
            assert opened.sequence >= self.acknowledged, "what was acknowledged is gone"
            self._ship(connection, opened)
        except NotConnectedError:
            return False
        visor.ask(messages.Release(CHRONICLE, STORY, self.client.client_id), messages.Done)
        return True

    def _ship(self, connection: Connection, opened: messages.Opened) -> None:
        due = 0
        for block in self.client.blocks_from(opened.sequence, has_client=not opened.empty):
            connection.send(messages.Block(1), [block])
            due += 1
            while due and select.select([connection], [], [], 0 if due < 32 else DEADLINE_S)[0]:
                due -= self._hear(connection)
        while due:
            due -= self._hear(connection)

    def _hear(self, connection: Connection) -> int:
        answer, _ = connection.receive(time.monotonic() + DEADLINE_S)
        assert isinstance(answer, messages.Ack), answer
        assert answer.sequence >= self.acknowledged, "answers come in order"
        self.acknowledged = answer.sequence
        return 1


@pytest.mark.timeout(soak(60, 1800))
def test_sigkill_at_random_moments_under_streams_of_blocks(tmp_path: pathlib.Path) -> None:
    """Every acknowledged event is there at once, and in the end all are, once and in order."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    numbers = random.Random(seed)
    with deployed(tmp_path / "d", "n0") as deployment:
        visor = deployment.connect(deployment.visor)
        visor.ask(messages.CreateChronicle(CHRONICLE, {}), messages.Done)
        clients = [Client(number, seed + number, soak(1500, 20_000)) for number in range(3)]
        senders = [Sender(deployment, client, durable=client.client_id == 2) for client in clients]
        for _ in range(soak(3, 50)):
            known = [sender.acknowledged for sender in senders]
            patience = numbers.randrange(1, 2000)
            until(
                lambda: (
                    any(s.acknowledged > k + patience for s, k in zip(senders, known, strict=True))
                    or not any(s.is_alive() for s in senders)
                )
            )
            deployment.running[-1].kill()
            known = [sender.acknowledged for sender in senders]
            found = reading.replay(deployment.store()).rows
            for client, count in zip(clients, known, strict=True):
                own = [row for row in found if row[1] == client.client_id]
                assert own == client.rows[: len(own)], "in order, and once"
                assert len(own) >= count, "what was acknowledged is gone"
            deployment.start_keeper("n0")
        for sender in senders:
            while sender.is_alive():
                known_before = sender.acknowledged
                sender.join(DEADLINE_S)
                assert sender.acknowledged > known_before or not sender.is_alive(), "it does not go on"
            assert sender.error is None
        found = reading.replay(deployment.store())
        assert found.rows == sorted(row for client in clients for row in client.rows)
        assert not found.report.damages
        assert sum(sender.lost for sender in senders) > 0
        assert not list(deployment.store().glob("**/*.tail")), "all have said goodbye"


def test_refusals_end_a_stream_and_not_the_connection(deployment: Deployment) -> None:
    client = Client(3, 3, 5)
    blocks = list(client.blocks_from(0, has_client=False))
    connection, acquired = new_stream(deployment, "refusals", 3)
    for stream in (2, 3):
        assert open_stream(connection, acquired, 3, stream=stream, story="refusals").empty
    for stream, block in (
        (1, blocks[2]),
        (1, blocks[0]),
        (2, blocks[0]),
        (3, blocks[0]),
        (3, bytes(300)),
        (3, blocks[1]),
        (2, blocks[1]),
    ):
        connection.send(messages.Block(stream), [block])
    answers = [connection.receive(time.monotonic() + DEADLINE_S)[0] for _ in range(5)]
    refused = [answer for answer in answers if isinstance(answer, messages.Refused)]
    assert [answer.stream for answer in refused] == [1, 3]
    assert {answer.code for answer in refused} == {InvalidArgumentError.code}
    assert [answer.stream for answer in answers if isinstance(answer, messages.Ack)] == [2, 3, 2]
    opened = open_stream(connection, acquired, 3, stream=1, story="refusals")
    assert opened == messages.Opened(1, client.blocks[1][0], False)
    for block in client.blocks_from(opened.sequence, has_client=True):
        ship(connection, 1, block)
    assert rows_of(reader_of(deployment).scan(CHRONICLE, "refusals")) == client.rows


def test_a_block_on_no_stream_and_a_foreign_client(deployment: Deployment) -> None:
    connection, acquired = new_stream(deployment, "foreign", 4)
    connection.send(messages.Block(1), [independent.client_record(5)])
    refused, _ = connection.receive(time.monotonic() + DEADLINE_S)
    assert isinstance(refused, messages.Refused)
    connection = deployment.connect(deployment.running[1], SERVICE_NAME)
    connection.send(messages.Open(2, acquired.uid, CHRONICLE, "foreign", 2**63, False, b""))
    refused, _ = connection.receive(time.monotonic() + DEADLINE_S)
    assert isinstance(refused, messages.Refused)
    assert refused.code == ErrorCode.CL_ERR_INVALID_ARG
    connection.send(messages.Block(7), [b"x"])
    failure, _ = connection.receive(time.monotonic() + DEADLINE_S)
    assert isinstance(failure, messages.Failure)
    until(lambda: not connection.is_alive())


def test_durable_streams_share_syncs(deployment: Deployment) -> None:
    """Each block is acknowledged, in order; with the last everything is on the device."""
    client = Client(6, 6, 200)
    connection, _ = new_stream(deployment, "durable", 6, durable=True)
    blocks = list(client.blocks_from(0, has_client=False))
    for block in blocks:
        connection.send(messages.Block(1), [block])
    acks = [connection.receive(time.monotonic() + DEADLINE_S)[0] for _ in blocks]
    assert [ack.sequence for ack in acks if isinstance(ack, messages.Ack)] == [
        0,
        *(first for first, _ in client.blocks[1:]),
        len(client.events),
        len(client.events),
    ]


def test_two_senders_of_one_client(deployment: Deployment) -> None:
    """Every event is there once, whoever brings it first."""
    client = Client(7, 7, 300)
    connections = [new_stream(deployment, "two", 7)[0] for _ in range(2)]
    blocks = list(client.blocks_from(0, has_client=False))

    def send(connection: Connection) -> None:
        for block in blocks:
            connection.send(messages.Block(1), [block])

    senders = [threading.Thread(target=send, args=[connection]) for connection in connections]
    for sender in senders:
        sender.start()
    for connection in connections:
        for _ in blocks:
            assert isinstance(connection.receive(time.monotonic() + DEADLINE_S)[0], messages.Ack)
    for sender in senders:
        sender.join()
    assert rows_of(reader_of(deployment).scan(CHRONICLE, "two")) == client.rows


def test_questions(deployment: Deployment) -> None:
    """Snapshot, clients, scans of every kind, and following, while a client writes."""
    client = Client(8, 8, 30)
    connection, _ = new_stream(deployment, "questions", 8)
    blocks = list(client.blocks_from(0, has_client=False))
    reader = reader_of(deployment)
    for block in blocks[:-5]:
        ship(connection, 1, block)
    count = client.blocks[-4][0]
    assert reader.snapshot(CHRONICLE, "questions") == {8: count}
    assert reader.clients(CHRONICLE, "questions")[8]["program"] == "simulation"
    assert rows_of(reader.scan(CHRONICLE, "questions")) == client.rows[:count]
    start, end = client.events[20][0], client.events[90][0]
    between = [row for row in client.rows[:count] if start <= row[0] <= end]
    assert rows_of(reader.scan(CHRONICLE, "questions", start, end, verify=True)) == between
    part = reader.scan(CHRONICLE, "questions", clients=[8, 9], since={8: 10}, snapshot={8: 50})
    assert rows_of(part) == client.rows[10:50]
    assert rows_of(reader.scan(CHRONICLE, "questions", clients=[9])) == []
    pages, cursor = reader.follow(CHRONICLE, "questions", {8: 5}, 5)
    assert (rows_of(pages), cursor) == (client.rows[5:count], {8: count})
    assert reader.follow(CHRONICLE, "questions", cursor, 0.05) == ([], cursor)
    late = threading.Timer(0.1, ship, [connection, 1, blocks[-5]])
    late.start()
    pages, cursor = reader.follow(CHRONICLE, "questions", cursor, DEADLINE_S)
    late.join()
    assert rows_of(pages) == client.rows[count : cursor[8]]
    assert cursor[8] > count
    for story in ("none", ""):
        for ask in (reader.snapshot, reader.clients):
            with pytest.raises((NotFoundError, InvalidArgumentError)):
                ask(CHRONICLE, story)
    with pytest.raises(NotFoundError):
        list(reader.scan("none", "questions"))
    with pytest.raises(InvalidArgumentError):
        list(reader.scan(CHRONICLE, "questions", start_ns=-1))
    reader.close()


def test_a_slow_reader_costs_a_bounded_amount_of_memory(deployment: Deployment) -> None:
    """Some that stop in the middle of a long scan, or go away, while others read and write."""
    record_bytes, events, count = 2000, 500, 80
    connection, _ = new_stream(deployment, "large", 9)
    ship(connection, 1, independent.client_record(9))
    record = bytes(record_bytes)
    for number in range(count):
        logged = [(number, record)] * events
        ship(connection, 1, independent.events_block(9, number * events, logged))
    ship(connection, 1, independent.close_record(9, count * events))
    keeper = deployment.running[1]
    reader = reader_of(deployment)
    total = sum(len(page) for page in reader.scan(CHRONICLE, "large"))
    assert total == count * events
    before = keeper.memory_bytes()
    threads = len(list(pathlib.Path(f"/proc/{keeper.pid}/task").iterdir()))
    slow = [iter(reader_of(deployment).scan(CHRONICLE, "large")) for _ in range(10)]
    assert all(len(next(pages)) for pages in slow)
    assert sum(len(page) for page in reader.scan(CHRONICLE, "large")) == total
    assert keeper.memory_bytes() - before < 10 * 40 * 2**20, "a page for each"
    for pages in slow[:5]:
        pages.close()  # type: ignore[attr-defined]
    for pages in slow[5:]:
        assert sum(len(page) for page in pages) < total
    assert len(list(pathlib.Path(f"/proc/{keeper.pid}/task").iterdir())) < threads + 60
    with pytest.raises(ReplayTimeoutError):
        list(reader.scan(CHRONICLE, "large", timeout_s=0.001))
    reader.close()


def test_a_full_disk_is_a_refusal(tmp_path: pathlib.Path) -> None:
    """And the stream goes on when it is opened again and there is room."""
    limit = 200_000
    with deployed(tmp_path / "d") as deployment:
        keeper = deployment.start_keeper("n0", prefix=("prlimit", f"--fsize={limit}"))
        visor = deployment.connect(deployment.visor)
        visor.ask(messages.CreateChronicle(CHRONICLE, {}), messages.Done)
        acquired = until_acquired(visor, 1)
        connection = deployment.connect(keeper)
        client = Client(1, 1, 200)
        opened = open_stream(connection, acquired, 1)
        acknowledged = 0
        for block in client.blocks_from(0, has_client=False):
            connection.send(messages.Block(1), [block])
            answer, _ = connection.receive(time.monotonic() + DEADLINE_S)
            if isinstance(answer, messages.Refused):
                break
            assert isinstance(answer, messages.Ack)
            acknowledged = answer.sequence
        assert answer.code == ErrorCode.CL_ERR_UNKNOWN
        assert "too large" in answer.sentence
        opened = open_stream(connection, acquired, 1)
        assert opened == messages.Opened(1, acknowledged, False)
        keeper.kill()
        assert reading.replay(deployment.store()).rows == client.rows[:acknowledged]
        keeper = deployment.start_keeper("n0")
        connection = deployment.connect(keeper)
        opened = open_stream(connection, acquired, 1)
        assert opened == messages.Opened(1, acknowledged, False)
        for block in client.blocks_from(acknowledged, has_client=True):
            ship(connection, 1, block)
        assert reading.replay(deployment.store()).rows == client.rows


def test_services_may_be_started_in_any_order(tmp_path: pathlib.Path) -> None:
    """Keepers before their visor, and a visor that is killed and comes back under them."""
    with deployed(tmp_path / "d", "n0", "n1") as deployment:
        visor = deployment.connect(deployment.visor)
        visor.ask(messages.CreateChronicle(CHRONICLE, {}), messages.Done)
        first = until_acquired(visor, 1)
        deployment.visor.kill()
        deployment.running[1].kill()
        deployment.start_keeper("n0")
        connection = deployment.connect(deployment.running[-1])
        open_stream(connection, first, 1)
        ship(connection, 1, independent.client_record(1))
        deployment.start_visor()
        visor, service = (deployment.connect(deployment.visor, name) for name in ("alice", SERVICE_NAME))
        until(lambda: all(f"the keeper of {node} is at" in deployment.visor.log for node in ("n0", "n1")))
        again = until_acquired(visor, 1)
        assert again.uid == first.uid
        located = service.ask(messages.Locate(CHRONICLE, STORY, SERVICE_NAME), messages.Located)
        assert located.keepers == [f"{again.keeper_host}:{again.keeper_port}"]


def test_two_deployments_side_by_side(tmp_path: pathlib.Path) -> None:
    """Names of one are not known in the other, nor its tokens, nor its services."""
    with deployed(tmp_path / "d", "n0") as one, deployed(tmp_path / "e", "n0") as other:
        for deployment in (one, other):
            visor = deployment.connect(deployment.visor)
            visor.ask(messages.CreateChronicle(CHRONICLE, {}), messages.Done)
            acquired = until_acquired(visor, 1)
            connection = deployment.connect(deployment.running[1])
            open_stream(connection, acquired, 1)
            client = Client(1, 1 if deployment is one else 2, 5)
            for block in client.blocks_from(0, has_client=False):
                ship(connection, 1, block)
        assert reading.replay(one.store()).rows == Client(1, 1, 5).rows
        assert reading.replay(other.store()).rows == Client(1, 2, 5).rows
        with pytest.raises(Exception, match="wrong secret"):
            one.connect(other.visor)
        lost = one._start(
            "keeper",
            "--directory",
            one.directory / "keeper-x",
            "--node",
            "x",
            "--visor",
            str(other.visor.address),
        )
        until(lambda: "wrong secret" in lost.log)


def test_whoever_names_a_uid_is_told_of_that_story_and_where_its_clients_begin(
    deployment: Deployment,
) -> None:
    client = Client(5, 5, 10)
    stream, acquired = new_stream(deployment, "named", 5)
    for block in client.blocks_from(0, has_client=False):
        ship(stream, 1, block)
    reader, end = reader_of(deployment), len(client.events)
    for uid in (0, acquired.uid):
        starts: dict[int, int] = {}
        marks: dict[int, int] = {}
        assert reader.snapshot(CHRONICLE, "named", uid) == {5: end}
        assert list(reader.clients(CHRONICLE, "named", uid)) == [5]
        assert rows_of(reader.scan(CHRONICLE, "named", uid=uid, starts=starts)) == client.rows
        pages = reader.follow_pages(CHRONICLE, "named", {}, 0.0, marks, uid=uid, starts=starts)
        assert (rows_of(pages), marks) == (client.rows, {5: end})
        assert starts == {}, "nothing was handed over"
        assert list(reader.follow_pages(CHRONICLE, "named", marks, 0.0, {}, uid=uid, starts={})) == []
    other = acquired.uid + 1
    for question in (
        lambda: reader.snapshot(CHRONICLE, "named", other),
        lambda: reader.clients(CHRONICLE, "named", other),
        lambda: list(reader.scan(CHRONICLE, "named", uid=other, starts={})),
        lambda: list(reader.follow_pages(CHRONICLE, "named", {}, 0.0, {}, uid=other, starts={})),
    ):
        with pytest.raises(NotFoundError):
            question()
