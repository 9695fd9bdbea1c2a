"""Both sides prove that they know a secret, and nothing that was overheard, guessed or reflected proves anything."""

import hashlib
import secrets

import pytest
from hypothesis import given
from hypothesis import strategies as st

from py_chronolog_client.errors import (
    ChronoLogError,
    ErrorCode,
    NotAuthorizedError,
    ProtocolError,
    ProtocolVersionError,
)
from py_chronolog_client.wire import handshake
from py_chronolog_client.wire.failures import error_of, failure_of
from py_chronolog_client.wire.frames import GREETING, MAX_GREETING_BYTES, FrameDecoder, frame_bytes
from py_chronolog_client.wire.handshake import MAX_NAME_BYTES, ClientHandshake, ServiceHandshake
from py_chronolog_client.wire.messages import (
    MAC_BYTES,
    NONCE_BYTES,
    PROTOCOL,
    Challenge,
    Done,
    Failure,
    Hello,
    Message,
    Proof,
    Scan,
    Welcome,
    decode,
    encode,
)
from tests.wire import independent
from tests.wire.feeding import EXAMPLES, feed

NAME = "ada"
SECRET = bytes(range(32))
OTHER = bytes(32)
TOKENS = {NAME: SECRET, "bob": OTHER}


def greet(client: ClientHandshake, service: ServiceHandshake) -> str:
    """Let both sides talk to the end; return which service it is."""
    proof = client.answer(service.receive(client.hello))
    return client.finish(service.receive(proof))


def refusal(service: ServiceHandshake, message: Message) -> Failure:
    """Return what a service says before it ends the connection."""
    with pytest.raises(ChronoLogError) as caught:
        service.receive(message)
    assert service.name is None
    return failure_of(caught.value)


# -- who knows the secret comes in --


@given(
    st.text(max_size=30), st.binary(min_size=32, max_size=32), st.text(max_size=20), st.binary(max_size=40)
)
def test_both_sides_know_each_other(name: str, secret: bytes, role: str, binding: bytes) -> None:
    service = ServiceHandshake(role, {name: secret}, binding)
    assert service.name is None
    assert greet(ClientHandshake(name, secret, binding), service) == role
    assert service.name == name


def test_through_bytes_one_at_a_time() -> None:
    client, service = ClientHandshake(NAME, SECRET), ServiceHandshake("visor", TOKENS)
    decoders = FrameDecoder(), FrameDecoder()

    def crossing(message: Message, decoder: FrameDecoder) -> Message:
        data = frame_bytes(encode(message))
        (frame,) = feed(decoder, data, iter(lambda: 1, 0))
        return decode(frame.head)

    challenge = service.receive(crossing(client.hello, decoders[0]))
    proof = client.answer(crossing(challenge, decoders[1]))
    welcome = service.receive(crossing(proof, decoders[0]))
    assert client.finish(crossing(welcome, decoders[1])) == "visor"


@given(st.text(max_size=20), st.text(max_size=20), st.binary(max_size=40))
def test_the_macs_are_those_of_the_document(name: str, role: str, binding: bytes) -> None:
    client = ClientHandshake(name, SECRET, binding)
    service = ServiceHandshake(role, {name: SECRET}, binding)
    challenge = service.receive(client.hello)
    assert isinstance(challenge, Challenge)
    said = name, client.hello.nonce, challenge.nonce, binding
    proof = client.answer(challenge)
    assert proof.mac == independent.mac(SECRET, b"client", *said)
    welcome = service.receive(proof)
    assert welcome == Welcome(independent.mac(SECRET, b"service " + role.encode(), *said), role)


def test_nonces_are_new_for_each_connection() -> None:
    clients = {ClientHandshake(NAME, SECRET).hello.nonce for _ in range(100)}
    services = set()
    for _ in range(100):
        challenge = ServiceHandshake("visor", TOKENS).receive(Hello(PROTOCOL, NAME, bytes(32)))
        assert isinstance(challenge, Challenge)
        services.add(challenge.nonce)
    assert len(clients | services) == 200
    assert {len(nonce) for nonce in clients | services} == {NONCE_BYTES}


def test_no_secret_travels() -> None:
    client, service = ClientHandshake(NAME, SECRET), ServiceHandshake("visor", TOKENS)
    challenge = service.receive(client.hello)
    proof = client.answer(challenge)
    said = b"".join(map(encode, (client.hello, challenge, proof, service.receive(proof))))
    for derived in (SECRET, hashlib.sha256(SECRET).digest(), SECRET.hex().encode(), SECRET[:8]):
        assert derived not in said


# -- who does not, does not --


@pytest.mark.parametrize(
    ("name", "secret"),
    [(NAME, OTHER), (NAME, b""), (NAME, SECRET[:-1]), ("eve", SECRET), ("", b""), ("bob", SECRET)],
)
def test_a_wrong_secret_and_an_unknown_name(name: str, secret: bytes) -> None:
    """The client is told the same, at the same step; of its name it learns nothing."""
    client, service = ClientHandshake(name, secret), ServiceHandshake("visor", TOKENS)
    challenge = service.receive(client.hello)
    assert isinstance(challenge, Challenge)
    failure = refusal(service, client.answer(challenge))
    assert failure == Failure(
        ErrorCode.CL_ERR_NOT_AUTHORIZED,
        "unknown name or wrong secret: look into the token files of both sides",
    )
    with pytest.raises(NotAuthorizedError, match="unknown name or wrong secret"):
        client.finish(failure)


@pytest.mark.parametrize("mac", [b"", bytes(32), bytes(31), bytes(33), SECRET, b"x" * 400], ids=len)
def test_an_unknown_name_has_no_secret_that_could_be_guessed(mac: bytes) -> None:
    service = ServiceHandshake("visor", {})
    service.receive(Hello(PROTOCOL, "eve", bytes(NONCE_BYTES)))
    assert refusal(service, Proof(mac)).code == ErrorCode.CL_ERR_NOT_AUTHORIZED


def test_every_bit_of_the_clients_mac() -> None:
    for bit in range(8 * MAC_BYTES):
        client, service = ClientHandshake(NAME, SECRET), ServiceHandshake("visor", TOKENS)
        mac = bytearray(client.answer(service.receive(client.hello)).mac)
        mac[bit // 8] ^= 1 << bit % 8
        assert refusal(service, Proof(bytes(mac))).code == ErrorCode.CL_ERR_NOT_AUTHORIZED


def test_every_bit_of_the_services_mac() -> None:
    client, service = ClientHandshake(NAME, SECRET), ServiceHandshake("visor", TOKENS)
    welcome = service.receive(client.answer(service.receive(client.hello)))
    assert isinstance(welcome, Welcome)
    for bit in range(8 * MAC_BYTES):
        mac = bytearray(welcome.mac)
        mac[bit // 8] ^= 1 << bit % 8
        with pytest.raises(NotAuthorizedError, match="does not know the secret of 'ada'"):
            client.finish(Welcome(bytes(mac), welcome.service))
    assert client.finish(welcome) == "visor"


@pytest.mark.parametrize("size", [0, 1, 16, 31])
def test_a_beginning_of_a_mac_is_none(size: int) -> None:
    client, service = ClientHandshake(NAME, SECRET), ServiceHandshake("visor", TOKENS)
    proof = client.answer(service.receive(client.hello))
    assert refusal(service, Proof(proof.mac[:size])).code == ErrorCode.CL_ERR_NOT_AUTHORIZED


def test_a_service_that_does_not_know_the_secret() -> None:
    """It can only make up a mac; the client says so, and has said nothing else yet."""
    client = ClientHandshake(NAME, SECRET)
    client.answer(Challenge(secrets.token_bytes(NONCE_BYTES)))
    with pytest.raises(NotAuthorizedError, match="it is not the deployment of this token file"):
        client.finish(Welcome(secrets.token_bytes(MAC_BYTES), "visor"))


def test_a_service_of_another_deployment_refuses() -> None:
    client, service = ClientHandshake(NAME, SECRET), ServiceHandshake("visor", {NAME: OTHER})
    assert (
        refusal(service, client.answer(service.receive(client.hello))).code == ErrorCode.CL_ERR_NOT_AUTHORIZED
    )


def test_a_service_that_calls_itself_something_else() -> None:
    client, service = ClientHandshake(NAME, SECRET), ServiceHandshake("keeper", TOKENS)
    welcome = service.receive(client.answer(service.receive(client.hello)))
    assert isinstance(welcome, Welcome)
    with pytest.raises(NotAuthorizedError):
        client.finish(Welcome(welcome.mac, "visor"))


# -- who has listened, or stands in between --


def test_a_reflected_mac() -> None:
    """A service without the secret gives the client its own mac, and its own nonce, back."""
    client = ClientHandshake(NAME, SECRET)
    proof = client.answer(Challenge(client.hello.nonce))
    for service in ("visor", "client", "", "service"):
        with pytest.raises(NotAuthorizedError):
            client.finish(Welcome(proof.mac, service))


def test_a_reflected_challenge() -> None:
    """Who wants in lets the service itself, as a client elsewhere, answer the challenge: the words tell them apart."""
    service = ServiceHandshake("visor", TOKENS)
    hello = Hello(PROTOCOL, NAME, bytes(NONCE_BYTES))
    challenge = service.receive(hello)
    assert isinstance(challenge, Challenge)
    said = NAME, hello.nonce, challenge.nonce, b""
    for words in (b"service visor", b"service", b"service ", b"", b"client ", b"Client"):
        again = ServiceHandshake("visor", TOKENS)
        again._challenge = challenge
        again.receive(hello)
        mac = independent.mac(SECRET, words, *said)
        assert refusal(again, Proof(mac)).code == ErrorCode.CL_ERR_NOT_AUTHORIZED
    assert service.receive(Proof(independent.mac(SECRET, b"client", *said)))


def test_what_was_overheard_is_worth_nothing_on_the_next_connection() -> None:
    client, service = ClientHandshake(NAME, SECRET), ServiceHandshake("visor", TOKENS)
    challenge = service.receive(client.hello)
    proof = client.answer(challenge)
    welcome = service.receive(proof)
    assert isinstance(welcome, Welcome)
    again = ServiceHandshake("visor", TOKENS)
    again.receive(client.hello)
    assert refusal(again, proof).code == ErrorCode.CL_ERR_NOT_AUTHORIZED
    deceived = ClientHandshake(NAME, SECRET)
    assert isinstance(challenge, Challenge)
    deceived.answer(challenge)
    with pytest.raises(NotAuthorizedError):
        deceived.finish(welcome)


@pytest.mark.parametrize("name", ["", "a", "ada ", "Ada", "adab", "bob"])
def test_a_proof_is_for_one_name(name: str) -> None:
    """Also where two names have the same secret."""
    client = ClientHandshake(NAME, SECRET)
    service = ServiceHandshake("visor", {NAME: SECRET, name: SECRET})
    challenge = service.receive(Hello(PROTOCOL, name, client.hello.nonce))
    assert refusal(service, client.answer(challenge)).code == ErrorCode.CL_ERR_NOT_AUTHORIZED


def test_whoever_relays_is_found_by_the_binding() -> None:
    """Without one (no TLS) he is not, and reads and writes what follows: docs/protocol.md says so."""
    assert greet(ClientHandshake(NAME, SECRET), ServiceHandshake("visor", TOKENS)) == "visor"
    seen_by_client, seen_by_service = b"certificate of whoever relays", b"certificate of the service"
    client = ClientHandshake(NAME, SECRET, seen_by_client)
    service = ServiceHandshake("visor", TOKENS, seen_by_service)
    proof = client.answer(service.receive(client.hello))
    assert refusal(service, proof).code == ErrorCode.CL_ERR_NOT_AUTHORIZED


@pytest.mark.parametrize(("ours", "theirs"), [(b"", b"\0"), (b"a", b"b"), (b"a", b""), (b"ab", b"a")])
def test_another_binding(ours: bytes, theirs: bytes) -> None:
    client, service = ClientHandshake(NAME, SECRET, ours), ServiceHandshake("visor", TOKENS, theirs)
    assert (
        refusal(service, client.answer(service.receive(client.hello))).code == ErrorCode.CL_ERR_NOT_AUTHORIZED
    )


# -- versions --


@pytest.mark.parametrize("version", [0, PROTOCOL + 1, 2**64 - 1])
def test_another_version_is_said_on_both_sides(version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "PROTOCOL", version)
    client = ClientHandshake(NAME, SECRET)
    monkeypatch.undo()
    failure = refusal(ServiceHandshake("visor", TOKENS), client.hello)
    assert failure.code == ErrorCode.CL_ERR_PROTOCOL_VERSION_MISMATCH == -13
    with pytest.raises(
        ProtocolVersionError, match=f"speaks version 1 .* and the client version {version}:"
    ) as caught:
        client.answer(decode(encode(failure)))
    assert caught.value.code == -13


def test_the_greeting_is_frozen() -> None:
    """These bytes open every connection of every version, and these refuse it."""
    hello = bytes.fromhex(
        "84a474797065a548656c6c6fa870726f746f636f6c01a46e616d65a3616461a56e6f6e6365c420"
    ) + bytes(32)
    assert encode(Hello(1, "ada", bytes(32))) == hello
    failure = bytes.fromhex("83a474797065a74661696c757265a4636f6465f3a873656e74656e6365a26e6f")
    assert encode(Failure(-13, "no")) == failure


# -- what is no handshake --


@pytest.mark.parametrize(
    "message", [m for m in EXAMPLES if not isinstance(m, Hello)], ids=lambda m: type(m).__name__
)
def test_something_else_than_a_greeting(message: Message) -> None:
    assert refusal(ServiceHandshake("visor", TOKENS), message).code == ErrorCode.CL_ERR_NO_CONNECTION


@pytest.mark.parametrize(
    "message", [m for m in EXAMPLES if not isinstance(m, Proof)], ids=lambda m: type(m).__name__
)
def test_something_else_than_a_proof(message: Message) -> None:
    service = ServiceHandshake("visor", TOKENS)
    service.receive(Hello(PROTOCOL, NAME, bytes(NONCE_BYTES)))
    assert refusal(service, message).code == ErrorCode.CL_ERR_NO_CONNECTION


@pytest.mark.parametrize(
    ("name", "nonce"),
    [
        (NAME, b""),
        (NAME, bytes(NONCE_BYTES - 1)),
        (NAME, bytes(NONCE_BYTES + 1)),
        ("x" * (MAX_NAME_BYTES + 1), bytes(NONCE_BYTES)),
        ("ö" * (MAX_NAME_BYTES // 2 + 1), bytes(NONCE_BYTES)),
    ],
)
def test_greetings_that_are_too_long_or_short(name: str, nonce: bytes) -> None:
    failure = refusal(ServiceHandshake("visor", TOKENS), Hello(PROTOCOL, name, nonce))
    assert failure.code == ErrorCode.CL_ERR_NO_CONNECTION


def test_the_longest_name() -> None:
    name = "ö" * (MAX_NAME_BYTES // 2)
    client = ClientHandshake(name, SECRET)
    assert len(encode(client.hello)) <= MAX_GREETING_BYTES
    assert greet(client, ServiceHandshake("visor", {name: SECRET})) == "visor"


@pytest.mark.parametrize(
    "message", [Challenge(b""), Challenge(bytes(31)), Challenge(bytes(33)), Done(), Welcome(b"", "")]
)
def test_something_else_than_a_challenge(message: Message) -> None:
    with pytest.raises(ProtocolError):
        ClientHandshake(NAME, SECRET).answer(message)


def test_something_else_than_a_welcome() -> None:
    client = ClientHandshake(NAME, SECRET)
    client.answer(Challenge(bytes(NONCE_BYTES)))
    with pytest.raises(ProtocolError, match="a message Done where Welcome was expected"):
        client.finish(Done())


def test_a_handshake_is_over_after_its_first_error() -> None:
    """Otherwise a peer could guess on and on at the same challenge."""
    client, service = ClientHandshake(NAME, SECRET), ServiceHandshake("visor", TOKENS)
    proof = client.answer(service.receive(client.hello))
    refusal(service, Proof(bytes(MAC_BYTES)))
    for message in (proof, client.hello):
        assert refusal(service, message).sentence.endswith("to a handshake that is over")
    service = ServiceHandshake("visor", TOKENS)
    refusal(service, Hello(PROTOCOL + 1, NAME, bytes(NONCE_BYTES)))
    assert refusal(service, client.hello).sentence.endswith("to a handshake that is over")


def test_a_handshake_is_over_after_its_end() -> None:
    client, service = ClientHandshake(NAME, SECRET), ServiceHandshake("visor", TOKENS)
    proof = client.answer(service.receive(client.hello))
    service.receive(proof)
    for message in (proof, client.hello):
        with pytest.raises(ProtocolError, match="over"):
            service.receive(message)
    assert service.name == NAME


def test_all_that_is_said_before_both_know_each_other_fits_a_greeting() -> None:
    """Also every refusal: a client that cannot read it does not know why."""
    sentences = [str(NotAuthorizedError(handshake._REFUSAL))]
    for message in [*EXAMPLES, Hello(2**64 - 1, NAME, bytes(NONCE_BYTES)), Hello(PROTOCOL, NAME, b"")]:
        sentences.append(refusal(ServiceHandshake("visor", TOKENS), message).sentence)
        for head in (encode(message)[:-1], encode(message) + b"\0", b"\xde\xff\xff" + encode(message)[1:]):
            with pytest.raises(ProtocolError) as caught:
                decode(head, has_body=message.has_body)
            sentences.append(str(caught.value))
    with pytest.raises(ProtocolError) as caught:
        list(feed(FrameDecoder(GREETING), b"\xff" * 8))
    sentences.append(str(caught.value))
    longest = max(sentences, key=len)
    assert len(encode(Failure(-13, longest))) <= MAX_GREETING_BYTES
    assert str(error_of(Failure(-13, longest))) == longest
    assert any(Scan.__name__ in sentence for sentence in sentences)
