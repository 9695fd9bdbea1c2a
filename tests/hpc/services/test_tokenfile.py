"""A token file that is changed under a service that runs."""

import os
import pathlib
import time
from collections.abc import Callable

import pytest

from chronolog_hpc.services import tokenfile
from chronolog_hpc.services.tokenfile import TokenFile
from py_chronolog_client.engine.connection import Connection
from py_chronolog_client.errors import NotAuthorizedError
from py_chronolog_client.tokens import new_secret, write_tokens
from py_chronolog_client.wire import messages
from py_chronolog_client.wire.handshake import SERVICE_NAME, Identity
from tests.hpc.services.deploying import ALICE, BOB, deployed, until

EVE = "eve"
Change = Callable[[pathlib.Path, dict[str, bytes]], object]


def replace(path: pathlib.Path, tokens: dict[str, bytes]) -> None:
    """Put another file into the place of a token file, as most editors do."""
    new = path.with_suffix(".new")
    write_tokens(new, tokens)
    os.replace(new, path)


def rewrite(path: pathlib.Path, tokens: dict[str, bytes]) -> None:
    """Write into the file itself."""
    path.write_text("".join(f"{name}:{secret.hex()}\n" for name, secret in tokens.items()))


@pytest.mark.parametrize(("change", "later_s"), [(replace, 0), (rewrite, 0), (replace, 100)])
def test_a_change_is_seen_at_once(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, change: Change, later_s: int
) -> None:
    """Also one of the same size, within the same tick of the file system's clock."""
    now_s = time.time() + later_s
    monkeypatch.setattr(tokenfile.time, "time", lambda: now_s)
    secrets = {SERVICE_NAME: new_secret(), ALICE: new_secret()}
    path = tmp_path / "tokens"
    write_tokens(path, secrets)
    tokens = TokenFile(path)
    for _ in range(50):
        secrets[ALICE] = new_secret()
        change(path, secrets)
        assert tokens[ALICE] == secrets[ALICE]
    secrets[EVE] = secrets.pop(ALICE)
    change(path, secrets)
    assert (tokens.get(ALICE), tokens.get(EVE)) == (None, secrets[EVE])
    assert dict(tokens) == secrets


def test_a_file_that_stays_as_it_is_is_not_read_again(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tokens(tmp_path / "tokens", {SERVICE_NAME: new_secret()})
    now_s = time.time() + 100
    monkeypatch.setattr(tokenfile.time, "time", lambda: now_s)
    tokens = TokenFile(tmp_path / "tokens")
    monkeypatch.setattr(tokenfile, "read_tokens", None)
    assert [len(tokens[SERVICE_NAME]) for _ in range(3)] == [32] * 3


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda path: path.unlink(), "cannot be read"),
        (lambda path: path.chmod(0o644), "others may read"),
        (lambda path: path.write_text("half a li"), "line 1"),
        (lambda path: path.write_text(f"{EVE}:{'0' * 64}\n"), "no line for 'service'"),
    ],
)
def test_a_file_that_makes_no_sense_changes_nothing(
    tmp_path: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[pathlib.Path], object],
    sentence: str,
) -> None:
    """The log says it once; when the file is mended, it counts again."""
    path = tmp_path / "tokens"
    secrets = {SERVICE_NAME: new_secret(), ALICE: new_secret()}
    write_tokens(path, secrets)
    tokens = TokenFile(path)
    spoil(path)
    for _ in range(3):
        assert tokens.get(ALICE) == secrets[ALICE]
        assert EVE not in tokens
    assert [sentence in record.message for record in caplog.records] == [True]
    secrets[ALICE] = new_secret()
    replace(path, secrets)
    assert tokens[ALICE] == secrets[ALICE]


@pytest.mark.slow
def test_who_is_added_comes_in_and_who_is_removed_does_not(tmp_path: pathlib.Path) -> None:
    """Without a restart; who is in stays in."""
    with deployed(tmp_path / "d") as deployment:
        bob = deployment.connect(deployment.visor, BOB)
        eve = Identity(EVE, new_secret())
        with pytest.raises(NotAuthorizedError):
            Connection(deployment.visor.address, eve, "visor")
        del deployment.secrets[BOB]
        replace(deployment.tokens, {**deployment.secrets, EVE: eve.secret})
        Connection(deployment.visor.address, eve, "visor").close()
        with pytest.raises(NotAuthorizedError):
            Connection(deployment.visor.address, Identity(BOB, new_secret()), "visor")
        bob.ask(messages.ListChronicles(), messages.Names)
        until(lambda: "tokens has changed: 5 names" in deployment.visor.log)
