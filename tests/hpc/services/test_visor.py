"""The visor over the wire: the catalog, who holds what, and what a restart must not change."""

import contextlib
import itertools
import pathlib
import random
import threading
import time
from collections.abc import Iterator

import pytest

from py_chronolog_client.engine.connection import Connection
from py_chronolog_client.errors import (
    AcquiredError,
    ChronicleExistsError,
    InvalidArgumentError,
    NoKeepersError,
    NotAcquiredError,
    NotAuthorizedError,
    NotConnectedError,
    NotFoundError,
    ProtocolVersionError,
)
from py_chronolog_client.wire import messages
from py_chronolog_client.wire.handshake import SERVICE_NAME, Identity
from py_chronolog_client.wire.messages import Message
from tests.hpc.services.deploying import (
    ALICE,
    BOB,
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
from tests.store import reading
from tests.store.shipping import Client
from tests.support.counts import soak

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployed(tmp_path_factory.mktemp("visor") / "d", "n0") as running:
        yield running


def do(connection: Connection, request: Message) -> None:
    connection.ask(request, messages.Done)


def names(connection: Connection, request: Message) -> list[str]:
    connection.send(request)
    found: list[str] = []
    while True:
        answer, _ = connection.receive()
        assert isinstance(answer, messages.Names)
        found += answer.names
        if not answer.more:
            return found


def test_the_catalog(deployment: Deployment) -> None:
    visor = deployment.connect(deployment.visor)
    do(visor, messages.CreateChronicle(CHRONICLE, {"a": "ä"}))
    assert names(visor, messages.ListChronicles()) == [CHRONICLE]
    assert visor.ask(messages.ChronicleAttributes(CHRONICLE), messages.Attributes).attributes == {
        "a": "ä",
        "owner": ALICE,
    }
    assert names(visor, messages.ListStories(CHRONICLE)) == []
    acquired = until_acquired(visor, 7)
    assert names(visor, messages.ListStories(CHRONICLE)) == [STORY]
    assert visor.ask(messages.StoryAttributes(CHRONICLE, STORY), messages.Attributes).attributes == {
        "owner": ALICE
    }
    assert acquired == acquire(visor, 7), "acquiring twice is acquiring once"
    for request, error in (
        (messages.CreateChronicle(CHRONICLE, {}), ChronicleExistsError),
        (messages.CreateChronicle("", {}), InvalidArgumentError),
        (messages.ListStories("x"), NotFoundError),
        (messages.DestroyStory(CHRONICLE, "x"), NotFoundError),
        (messages.DestroyStory(CHRONICLE, ""), InvalidArgumentError),
        (messages.DestroyStory(CHRONICLE, STORY), AcquiredError),
        (messages.DestroyChronicle(CHRONICLE), AcquiredError),
        (messages.Release(CHRONICLE, STORY, 8), NotAcquiredError),
        (messages.Acquire("x", STORY, {}, 7, "", 0), NotFoundError),
        (messages.Acquire(CHRONICLE, STORY, {}, 2**63, "", 0), InvalidArgumentError),
        (messages.Acquire(CHRONICLE, "x", {"Retention": "soon"}, 7, "", 0), InvalidArgumentError),
        (messages.CreateChronicle("x", {"TieringPolicy": "warm"}), InvalidArgumentError),
        (messages.Locate(CHRONICLE, STORY, ALICE), NotAuthorizedError),
        (messages.Register("keeper", "n1", "127.0.0.1", 1), NotAuthorizedError),
    ):
        with pytest.raises(error):
            do(visor, request)
    do(visor, messages.Release(CHRONICLE, STORY, 7))
    do(visor, messages.DestroyStory(CHRONICLE, STORY))
    do(visor, messages.DestroyChronicle(CHRONICLE))
    assert names(visor, messages.ListChronicles()) == []


def test_long_lists_come_in_parts(deployment: Deployment) -> None:
    visor = deployment.connect(deployment.visor)
    made = sorted(f"{number:04}" + "n" * 500_000 for number in range(7))
    for name in made:
        do(visor, messages.CreateChronicle(name, {}))
    assert names(visor, messages.ListChronicles()) == made
    for name in made:
        do(visor, messages.DestroyChronicle(name))


def test_without_a_keeper_nothing_is_acquired(tmp_path: pathlib.Path) -> None:
    with deployed(tmp_path / "d") as deployment:
        visor = deployment.connect(deployment.visor)
        do(visor, messages.CreateChronicle(CHRONICLE, {}))
        with pytest.raises(NoKeepersError):
            acquire(visor, 1)
        assert names(visor, messages.ListStories(CHRONICLE)) == []


def test_a_wrong_secret_an_unknown_name_and_another_version(deployment: Deployment) -> None:
    address = deployment.visor.address
    for identity in (
        Identity("alice", bytes(32)),
        Identity("nobody", bytes(32)),
        Identity(BOB, deployment.secrets["alice"]),
    ):
        with pytest.raises(NotAuthorizedError):
            Connection(address, identity, "visor")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("py_chronolog_client.wire.handshake.PROTOCOL", messages.PROTOCOL + 1)
        with pytest.raises(ProtocolVersionError, match="install the same release"):
            deployment.connect(deployment.visor)
    deployment.connect(deployment.visor, BOB).ask(messages.ListChronicles(), messages.Names)
    until(lambda: deployment.visor.log.count("(unknown): sent away") == 4)


def test_a_restart_keeps_everything(tmp_path: pathlib.Path) -> None:
    """Names, attributes, who holds what for the grace time, and where a client's events are."""
    with deployed(tmp_path / "d", "n0", "n1", "n2", grace_s=1.0) as deployment:
        visor = deployment.connect(deployment.visor)
        do(visor, messages.CreateChronicle(CHRONICLE, {"k": "v"}))
        service = deployment.connect(deployment.visor, SERVICE_NAME)
        acquired = {number: until_acquired(visor, number) for number in (10, 11, 12)}
        located = service.ask(messages.Locate(CHRONICLE, STORY, ALICE), messages.Located)
        do(visor, messages.Release(CHRONICLE, STORY, 12))
        deployment.visor.kill()
        deployment.start_visor()
        visor = deployment.connect(deployment.visor)
        assert visor.ask(messages.ChronicleAttributes(CHRONICLE), messages.Attributes).attributes == {
            "k": "v",
            "owner": ALICE,
        }
        with pytest.raises(AcquiredError):
            do(visor, messages.DestroyStory(CHRONICLE, STORY))
        assert until_acquired(visor, 10) == acquired[10]
        service = deployment.connect(deployment.visor, SERVICE_NAME)
        assert service.ask(messages.Locate(CHRONICLE, STORY, ALICE), messages.Located) == located
        until(lambda: "client 000000000000000b has lost the story" in deployment.visor.log)
        assert "client 000000000000000a has lost" not in deployment.visor.log
        assert acquire(visor, 12) == acquired[12], "it has events at a keeper"
        for number in (10, 12):
            do(visor, messages.Release(CHRONICLE, STORY, number))
        do(visor, messages.DestroyStory(CHRONICLE, STORY))
        again = acquire(visor, 13)
        assert again.uid > acquired[10].uid


def test_an_acquisition_lapses_with_its_connection_unless_the_client_comes_back(
    tmp_path: pathlib.Path,
) -> None:
    with deployed(tmp_path / "d", "n0", grace_s=0.5) as deployment:
        first, second = deployment.connect(deployment.visor), deployment.connect(deployment.visor)
        do(first, messages.CreateChronicle(CHRONICLE, {}))
        until_acquired(first, 1)
        acquire(first, 2)
        first.close()
        acquire(second, 2)
        with pytest.raises(AcquiredError, match=r"000000000000000[12]"):
            do(second, messages.DestroyStory(CHRONICLE, STORY))
        until(lambda: "client 0000000000000001 has lost the story" in deployment.visor.log)
        with pytest.raises(AcquiredError, match="0000000000000002"):
            do(second, messages.DestroyStory(CHRONICLE, STORY))
        with pytest.raises(NotAcquiredError):
            do(second, messages.Release(CHRONICLE, STORY, 1))
        do(second, messages.Release(CHRONICLE, STORY, 2))
        do(second, messages.DestroyStory(CHRONICLE, STORY))


def test_which_keeper(tmp_path: pathlib.Path) -> None:
    """The one on the client's host; else the one that its id chooses; always the one that has its events."""
    with deployed(tmp_path / "d", "n0", "n1") as deployment:
        n0, n1 = (service.address for service in deployment.running[1:])
        visor = deployment.connect(deployment.visor)
        do(visor, messages.CreateChronicle(CHRONICLE, {}))
        until(lambda: all(f"the keeper of {node} is at" in deployment.visor.log for node in ("n0", "n1")))
        for client_id, host, keeper in ((0, "n1", n1), (1, "n0", n0), (2, "", n0), (3, "elsewhere", n1)):
            found = acquire(visor, client_id, host=host)
            assert (found.keeper_host, found.keeper_port) == keeper
        do(visor, messages.Release(CHRONICLE, STORY, 0))
        assert acquire(visor, 0, host="n0").keeper_port == n1.port
        service = deployment.connect(deployment.visor, SERVICE_NAME)
        located = service.ask(messages.Locate(CHRONICLE, STORY, ALICE), messages.Located)
        assert located.keepers == [str(n0), str(n1)]
        deployment.running[2].kill()
        until(lambda: "the keeper of n1 at" in deployment.visor.log)
        do(visor, messages.Release(CHRONICLE, STORY, 0))
        with pytest.raises(NoKeepersError, match="n1"):
            acquire(visor, 0, host="n0")
        assert service.ask(messages.Locate(CHRONICLE, STORY, ALICE), messages.Located).keepers == [
            str(n0),
            "n1:0",
        ]


@pytest.mark.parametrize("away", [False, True])
def test_keepers_forget_what_is_destroyed(tmp_path: pathlib.Path, away: bool) -> None:
    """Also when they, or the visor, are away when it happens; what is made later under the name stays."""
    with deployed(tmp_path / "d", "n0") as deployment:
        keeper = deployment.running[1]
        visor = deployment.connect(deployment.visor)
        do(visor, messages.CreateChronicle(CHRONICLE, {}))
        for story in (STORY, "kept"):
            acquired = until_acquired(visor, 1, story)
            stream = deployment.connect(keeper)
            open_stream(stream, acquired, 1, story=story)
            for block in Client(1, 1, 3).blocks_from(0, has_client=False):
                ship(stream, 1, block)
            do(visor, messages.Release(CHRONICLE, story, 1))
        directories = list(deployment.store().glob("chronicles/*/stories/*/*.log"))
        assert len(directories) == 2
        if away:
            keeper.kill()
            until(lambda: "the keeper of n0 at" in deployment.visor.log)
        do(visor, messages.DestroyStory(CHRONICLE, STORY))
        if away:
            deployment.visor.kill()
            deployment.start_visor()
            deployment.start_keeper("n0")
        until(lambda: len(list(deployment.store().glob("chronicles/*/stories/*/*.log"))) == 1)
        visor = deployment.connect(deployment.visor)
        until_acquired(visor, 1, "kept")


def test_what_a_keeper_cannot_forget_now_it_is_told_again(tmp_path: pathlib.Path) -> None:
    """Each time it registers, one thing after the other, until it has said that it is done."""
    with deployed(tmp_path / "d") as deployment:

        def register() -> Connection:
            keeper = deployment.connect(deployment.visor, SERVICE_NAME)
            keeper.send(messages.Register("keeper", "n9", "127.0.0.1", 9))
            return keeper

        def hear(keeper: Connection, answer: Message | None = None) -> Message:
            said, _ = keeper.receive(time.monotonic() + DEADLINE_S)
            if answer is not None:
                keeper.send(answer)
            return said

        keeper, visor = register(), deployment.connect(deployment.visor)
        assert hear(keeper) == messages.Done()
        do(visor, messages.CreateChronicle(CHRONICLE, {}))
        drops = []
        for story in ("a", "b"):
            uid = acquire(visor, 1, story).uid
            drops.append(messages.Drop(CHRONICLE, story, uid))
            do(visor, messages.Release(CHRONICLE, story, 1))
        visor.send(messages.DestroyStory(CHRONICLE, "a"))
        assert hear(keeper, messages.Failure(-1, "the disk is on fire")) == drops[0]
        assert hear(visor) == messages.Done()
        keeper.close()
        until(lambda: "the keeper of n9 at" in deployment.visor.log)
        do(visor, messages.DestroyStory(CHRONICLE, "b"))
        keeper = register()
        assert hear(keeper, messages.Failure(-1, "still")) == drops[0]
        assert hear(keeper, messages.Done()) == drops[1]
        assert hear(keeper) == messages.Done()
        deployment.visor.kill()
        deployment.start_visor()
        keeper = register()
        assert hear(keeper, messages.Done()) == drops[0]
        assert hear(keeper) == messages.Done()
        keeper.close()
        assert hear(register()) == messages.Done()


def test_the_grapher_is_named_and_forgets_what_is_destroyed(tmp_path: pathlib.Path) -> None:
    """Also what it may have of stories of a keeper on its node, which has debts of its own."""
    with deployed(tmp_path / "d", "n0") as deployment:
        visor = deployment.connect(deployment.visor)
        service = deployment.connect(deployment.visor, SERVICE_NAME)
        do(visor, messages.CreateChronicle(CHRONICLE, {"TieringPolicy": "Hot", "a": "chronicle's"}))
        request = messages.Acquire(CHRONICLE, STORY, {"a": "story's"}, 1, "", 0)
        until_acquired(visor, 1, "other")
        uid = visor.ask(request, messages.Acquired).uid
        located = service.ask(messages.Locate(CHRONICLE, STORY, ALICE), messages.Located)
        assert located.grapher == ""
        assert located.attributes == {"TieringPolicy": "Hot", "a": "story's", "owner": ALICE}

        def register() -> Connection:
            grapher = deployment.connect(deployment.visor, SERVICE_NAME)
            grapher.send(messages.Register("grapher", "n0", "127.0.0.1", 9))
            return grapher

        grapher = register()
        assert grapher.receive(time.monotonic() + DEADLINE_S)[0] == messages.Done()
        located = service.ask(messages.Locate(CHRONICLE, STORY, ALICE), messages.Located)
        assert (located.grapher, located.keepers) == ("127.0.0.1:9", [str(deployment.running[1].address)])
        grapher.close()
        until(lambda: "the grapher of n0 at" in deployment.visor.log)
        assert service.ask(messages.Locate(CHRONICLE, STORY, ALICE), messages.Located).grapher == "n0:0"
        do(visor, messages.Release(CHRONICLE, STORY, 1))
        do(visor, messages.DestroyStory(CHRONICLE, STORY))
        deployment.visor.kill()
        deployment.start_visor()
        grapher = register()
        drop, _ = grapher.receive(time.monotonic() + DEADLINE_S)
        assert drop == messages.Drop(CHRONICLE, STORY, uid)
        grapher.send(messages.Done())
        assert grapher.receive(time.monotonic() + DEADLINE_S)[0] == messages.Done()
        visor = deployment.connect(deployment.visor)
        with pytest.raises(NotAuthorizedError):
            do(visor, messages.Register("grapher", "n1", "127.0.0.1", 1))


def test_a_keeper_asked_with_another_uid_forgets_the_older_story(deployment: Deployment) -> None:
    visor, keeper = deployment.connect(deployment.visor), deployment.running[1]
    do(visor, messages.CreateChronicle(CHRONICLE, {}))
    acquired = until_acquired(visor, 1)
    stream = deployment.connect(keeper)
    open_stream(stream, acquired, 1)
    blocks = list(Client(1, 1, 3).blocks_from(0, has_client=False))
    ship(stream, 1, blocks[0])
    newer = messages.Acquired(acquired.uid + 5, *keeper.address, b"")
    other = deployment.connect(keeper, SERVICE_NAME)
    assert open_stream(other, newer, 2) == messages.Opened(1, 0, True)
    stream.send(messages.Block(1), [blocks[1]])
    refused, _ = stream.receive()
    assert isinstance(refused, messages.Refused)
    assert refused.code == NotFoundError.code, refused
    stream.send(messages.Open(1, acquired.uid, CHRONICLE, STORY, 1, False, acquired.ticket))
    refused, _ = stream.receive()
    assert isinstance(refused, messages.Refused)
    assert refused.code == NotFoundError.code, refused
    for block in Client(2, 2, 3).blocks_from(0, has_client=False):
        ship(other, 1, block)
    assert reading.replay(deployment.store()).rows == Client(2, 2, 3).rows


@pytest.mark.timeout(soak(60, 1800))
def test_sigkill_at_random_moments_under_requests(tmp_path: pathlib.Path) -> None:
    """What was answered holds in the next life, and what was not answered is there whole or not at all."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    numbers = random.Random(seed)
    held: dict[str, set[int]] = {}
    gone: set[str] = set()
    """stories that may be there or not: nobody was told"""
    with deployed(tmp_path / "d", "n0", grace_s=60) as deployment:
        do(deployment.connect(deployment.visor), messages.CreateChronicle(CHRONICLE, {}))
        for life in range(soak(3, 50)):
            visor = deployment.connect(deployment.visor)
            until_acquired(visor, 0, f"{life}")
            held[f"{life}"] = {0}
            timer = threading.Timer(numbers.random() * 0.5, deployment.visor.process.kill)
            timer.start()
            asked: tuple[str, int] | None = None
            with contextlib.suppress(NotConnectedError):
                for client_id in itertools.count(1):
                    story = f"{life}.{client_id // 3}"
                    asked = story, client_id
                    acquire(visor, client_id, story)
                    held.setdefault(story, set()).add(client_id)
                    if numbers.random() < 0.3:
                        held[story].discard(client_id)
                        do(visor, messages.Release(CHRONICLE, story, client_id))
                    if not held[story]:
                        gone.add(story)
                        del held[story]
                        do(visor, messages.DestroyStory(CHRONICLE, story))
                        gone.discard(story)
            timer.join()
            deployment.visor.kill()
            deployment.start_visor()
            visor = deployment.connect(deployment.visor)
            there = set(names(visor, messages.ListStories(CHRONICLE)))
            assert asked is not None
            gone.add(asked[0])
            assert {story for story, clients in held.items() if clients} <= there
            assert there <= {*held, *gone}
            for story in numbers.sample(sorted(held), min(20, len(held))):
                if held[story] and story != asked[0]:
                    with pytest.raises(AcquiredError):
                        do(visor, messages.DestroyStory(CHRONICLE, story))


def test_a_story_that_was_made_again_is_another(tmp_path: pathlib.Path) -> None:
    with deployed(tmp_path / "d") as deployment:
        deployment.start_keeper()
        visor = deployment.connect(deployment.visor)
        do(visor, messages.CreateChronicle(CHRONICLE, {}))
        uid = until_acquired(visor, 7).uid
        do(visor, messages.Release(CHRONICLE, STORY, 7))
        assert acquire(visor, 7, uid=uid).uid == uid
        do(visor, messages.Release(CHRONICLE, STORY, 7))
        do(visor, messages.DestroyStory(CHRONICLE, STORY))
        with pytest.raises(NotFoundError):
            acquire(visor, 7, uid=uid)
        assert names(visor, messages.ListStories(CHRONICLE)) == []
        assert acquire(visor, 7).uid > uid
        with pytest.raises(NotFoundError, match="another was made under its name"):
            acquire(visor, 7, uid=uid)
