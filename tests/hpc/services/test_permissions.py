"""Who may do what: the attributes alone, and every operation of every service for every kind of name."""

import contextlib
import pathlib
import time
from collections.abc import Callable, Iterator

import pytest

from chronolog_hpc.services.permissions import Permissions, Right, owned
from py_chronolog_client.engine.connection import Connection
from py_chronolog_client.engine.remote import RemoteEngine
from py_chronolog_client.errors import AcquiredError, NotAuthorizedError
from py_chronolog_client.store.catalog import Catalog
from py_chronolog_client.store.root import StoreRoot
from py_chronolog_client.wire import messages
from py_chronolog_client.wire.failures import error_of
from py_chronolog_client.wire.handshake import SERVICE_NAME, Identity
from tests.hpc.services.deploying import (
    ALICE,
    BOB,
    CAROL,
    CHRONICLE,
    DAVE,
    DEADLINE_S,
    STORY,
    USERS,
    Deployment,
    acquire,
    deployed,
    until_acquired,
)

OWN, READ, WRITE, SEE = Right
NOBODY, READERS, WRITERS = set[str](), {ALICE, BOB}, {ALICE, CAROL}
SEERS = {ALICE, BOB, CAROL}
ALL = set(USERS)
SHARED = {"readers": BOB, "writers": CAROL}
CLIENTS = {name: number for number, name in enumerate((*USERS, SERVICE_NAME), 1)}


# -- what attributes mean --


@pytest.mark.parametrize(
    ("of_chronicle", "of_story", "allowed"),
    [
        ({}, {}, {OWN: {ALICE}, READ: ALL, WRITE: {ALICE}, SEE: ALL}),
        (SHARED, {}, {OWN: {ALICE}, READ: READERS, WRITE: WRITERS, SEE: SEERS}),
        (SHARED, {"readers": "dave , carol"}, {READ: {ALICE, CAROL, DAVE}, WRITE: WRITERS}),
        (SHARED, {"writers": ""}, {READ: READERS, WRITE: {ALICE}}),
        ({"writers": "*"}, {}, {OWN: {ALICE}, WRITE: ALL}),
        ({"owner": BOB}, {}, {OWN: {ALICE, BOB}, WRITE: {ALICE, BOB}}),
        ({}, {"owner": BOB, "readers": ""}, {OWN: {ALICE, BOB}, READ: {ALICE, BOB}}),
        ({"owner": "alic,*x"}, {"owner": "ALICE", "readers": "ali,bobby"}, dict.fromkeys(Right, NOBODY)),
    ],
)
def test_what_attributes_allow(
    tmp_path: pathlib.Path,
    of_chronicle: dict[str, str],
    of_story: dict[str, str],
    allowed: dict[Right, set[str]],
) -> None:
    """Both are created by Alice."""
    catalog = Catalog(StoreRoot.open(tmp_path / "store", create=True))
    catalog.create_chronicle(CHRONICLE, owned(of_chronicle, ALICE))
    catalog.ensure_story(CHRONICLE, STORY, owned(of_story, ALICE))
    permissions = Permissions(catalog)

    def may(name: str, right: Right) -> bool:
        try:
            permissions.require(name, right, CHRONICLE, STORY)
        except NotAuthorizedError as error:
            assert repr(name) in str(error)
            return False
        return True

    for right, names in allowed.items():
        assert {name for name in USERS if may(name, right)} == names, right
        assert may(SERVICE_NAME, right)


def test_what_has_no_owner_is_everybodys(tmp_path: pathlib.Path) -> None:
    """Also a story that was made in a chronicle from before there were owners is."""
    catalog = Catalog(StoreRoot.open(tmp_path / "store", create=True))
    catalog.create_chronicle(CHRONICLE, {})
    permissions = Permissions(catalog)
    permissions.require_acquisition(DAVE, CHRONICLE, STORY, owned({}, DAVE))
    catalog.ensure_story(CHRONICLE, STORY, owned({}, ALICE))
    for right in Right:
        permissions.require(BOB, right, CHRONICLE)
        permissions.require(BOB, right, CHRONICLE, STORY)


def test_who_makes_a_story_that_he_may_not_write_to_does_not_make_it(tmp_path: pathlib.Path) -> None:
    catalog = Catalog(StoreRoot.open(tmp_path / "store", create=True))
    catalog.create_chronicle(CHRONICLE, owned(SHARED, ALICE))
    permissions = Permissions(catalog)
    permissions.require_acquisition(CAROL, CHRONICLE, STORY, owned({}, CAROL))
    with pytest.raises(NotAuthorizedError, match="the story"):
        permissions.require_acquisition(CAROL, CHRONICLE, STORY, owned({"writers": BOB}, ALICE))
    with pytest.raises(NotAuthorizedError, match="the chronicle"):
        permissions.require_acquisition(BOB, CHRONICLE, STORY, owned({}, BOB))


# -- what services do --


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A visor, a keeper, a player, a grapher, and Alice's story, which she holds."""
    with deployed(tmp_path_factory.mktemp("permissions") / "d", "n0") as running:
        running.start_player()
        running.start_grapher()
        visor = running.connect(running.visor)
        visor.ask(messages.CreateChronicle(CHRONICLE, SHARED), messages.Done)
        until_acquired(visor, 100)
        keeper = running.connect(running.running[1], SERVICE_NAME)
        uid = acquire(visor, 100).uid
        keeper.ask(messages.Open(1, uid, CHRONICLE, STORY, 100, False, b""), messages.Opened)
        yield running


def is_allowed(connection: Connection, request: messages.Message) -> bool:
    """Ask something; tell whether it is allowed, whatever else becomes of it."""
    connection.send(request)
    answer, _ = connection.receive(time.monotonic() + DEADLINE_S)
    if isinstance(answer, messages.Failure | messages.Refused):
        return not isinstance(error_of(answer), NotAuthorizedError)
    return True


def new_story(name: str) -> messages.Acquire:
    return messages.Acquire(CHRONICLE, f"by {name}", {}, 10 + CLIENTS[name], "", 0)


Request = Callable[[str], messages.Message]
SCAN = messages.Scan(CHRONICLE, STORY, 0, 0, 5, b"", True, b"", True, b"", 1000, False, False)
FOLLOW: Request = lambda name: messages.Follow(CHRONICLE, STORY, 0, b"", 0)  # noqa: E731  one of the lines below
QUESTIONS: list[Request] = [
    lambda name: messages.TakeSnapshot(CHRONICLE, STORY, 0),
    lambda name: messages.ListClients(CHRONICLE, STORY, 0),
    lambda name: SCAN,
    FOLLOW,
]
VISOR: list[tuple[Request, set[str]]] = [
    (lambda name: messages.CreateChronicle(f"of {name}", {}), ALL),
    (lambda name: messages.ListChronicles(), ALL),
    (lambda name: messages.ListStories(CHRONICLE), SEERS),
    (lambda name: messages.ChronicleAttributes(CHRONICLE), SEERS),
    (lambda name: messages.StoryAttributes(CHRONICLE, STORY), SEERS),
    (lambda name: messages.Acquire(CHRONICLE, STORY, {}, CLIENTS[name], "", 0), WRITERS),
    (new_story, WRITERS),
    (lambda name: messages.Acquire(CHRONICLE, STORY, {"writers": "*"}, 100, "", 0), {ALICE}),
    (lambda name: messages.Release(CHRONICLE, STORY, 100), {ALICE}),
    (lambda name: messages.DestroyStory(CHRONICLE, "by carol"), {ALICE, CAROL}),
    (lambda name: messages.DestroyStory(CHRONICLE, STORY), {ALICE}),
    (lambda name: messages.DestroyChronicle(CHRONICLE), {ALICE}),
    (lambda name: messages.Locate(CHRONICLE, STORY, ALICE), NOBODY),
    (lambda name: messages.Register("player", "n1", "127.0.0.1", 1), NOBODY),
]


@pytest.mark.slow
def test_every_operation_at_the_visor(deployment: Deployment) -> None:
    """Alice owns all of it, Bob may read, Carol may write; Alice asks last, and what she destroys is held or gone."""
    for number, (request, allowed) in enumerate(VISOR):
        for name in reversed(USERS):
            with contextlib.closing(deployment.connect(deployment.visor, name)) as connection:
                acquire(deployment.connections[0], 100)
                assert is_allowed(connection, request(name)) == (name in allowed), (number, name)


@pytest.mark.slow
def test_every_question_to_the_player_the_keeper_and_the_grapher(deployment: Deployment) -> None:
    """A player tells readers; a keeper or grapher that is asked directly tells services only."""
    _, keeper, player, grapher = deployment.running
    acquire(deployment.connections[0], 100)
    for request in QUESTIONS:
        for name in (*USERS, SERVICE_NAME):
            for service, allowed in (
                (player, {*READERS, SERVICE_NAME}),
                (keeper, {SERVICE_NAME}),
                (grapher, {SERVICE_NAME}),
            ):
                if service is grapher and request is FOLLOW:
                    continue  # nobody asks a grapher that
                with contextlib.closing(deployment.connect(service, name)) as connection:
                    question = request(name)
                    assert is_allowed(connection, question) == (name in allowed), (question, name)


@pytest.mark.slow
def test_a_keeper_takes_events_for_tickets_only(deployment: Deployment) -> None:
    """A ticket is for one name, one story, one client."""
    keeper, grapher = deployment.running[1], deployment.running[3]
    visor = deployment.connect(deployment.visor, CAROL)
    mine = acquire(visor, 200)
    other = acquire(visor, 201, "other")
    for ticket, name, story, uid, client_id, allowed in (
        (mine.ticket, CAROL, STORY, mine.uid, 200, True),
        (b"", CAROL, STORY, mine.uid, 200, False),
        (mine.ticket, ALICE, STORY, mine.uid, 200, False),
        (mine.ticket, DAVE, STORY, mine.uid, 200, False),
        (mine.ticket, CAROL, STORY, mine.uid, 100, False),
        (mine.ticket, CAROL, STORY, mine.uid + 1, 200, False),
        (other.ticket, CAROL, STORY, mine.uid, 200, False),
        (mine.ticket, CAROL, "other", other.uid, 201, False),
        (mine.ticket, CAROL, "never made", mine.uid, 200, False),
        (b"", SERVICE_NAME, STORY, mine.uid, 200, True),
    ):
        connection = deployment.connect(keeper, name)
        request = messages.Open(1, uid, CHRONICLE, story, client_id, False, ticket)
        assert is_allowed(connection, request) == allowed, request
    to_grapher = messages.Open(1, mine.uid, CHRONICLE, STORY, 200, True, mine.ticket)
    assert not is_allowed(deployment.connect(grapher, CAROL), to_grapher)
    assert "never made" not in str(list(deployment.store().rglob("meta")))


@pytest.mark.slow
def test_a_client_stays_its_names_when_the_visor_is_killed(tmp_path: pathlib.Path) -> None:
    """Nobody else takes it over, releases it, or destroys what it holds."""
    with deployed(tmp_path / "d", "n0") as deployment:
        visor = deployment.connect(deployment.visor)
        visor.ask(messages.CreateChronicle(CHRONICLE, {"writers": "*"}), messages.Done)
        before = until_acquired(visor, 1)
        deployment.visor.kill()
        deployment.start_visor()
        other = deployment.connect(deployment.visor, BOB)
        with pytest.raises(NotAuthorizedError, match="belongs to 'alice'"):
            until_acquired(other, 1)
        with pytest.raises(NotAuthorizedError, match="belongs to 'alice'"):
            other.ask(messages.Release(CHRONICLE, STORY, 1), messages.Done)
        visor = deployment.connect(deployment.visor)
        assert acquire(visor, 1) == before
        with pytest.raises(AcquiredError):
            visor.ask(messages.DestroyStory(CHRONICLE, STORY), messages.Done)


@pytest.mark.slow
def test_a_program_sees_the_code_and_the_reason(deployment: Deployment) -> None:
    player = deployment.running[2]
    identity = Identity(DAVE, deployment.secrets[DAVE])
    engine = RemoteEngine(deployment.visor.address, player.address, identity)
    with (
        contextlib.closing(engine),
        pytest.raises(NotAuthorizedError, match="'dave' may not read the story 's'"),
    ):
        list(engine.scan(CHRONICLE, STORY))
