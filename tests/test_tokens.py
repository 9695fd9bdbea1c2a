"""A token file is believed only where nobody else can have read or written it, and every line of it makes sense."""

import contextlib
import getpass
import os
import pathlib
import stat
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from py_chronolog_client import tokens
from py_chronolog_client.errors import InvalidArgumentError, NotAuthorizedError
from py_chronolog_client.tokens import (
    MAX_TOKENS_BYTES,
    SECRET_BYTES,
    TOKEN_VARIABLE,
    new_secret,
    own_identity,
    read_tokens,
    token_path,
    write_tokens,
)
from py_chronolog_client.wire.handshake import MAX_NAME_BYTES, SERVICE_NAME
from tests.store.holding import NOBODY, as_user

SECRET = bytes(range(32))
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "tokens"


@pytest.fixture
def shared() -> Iterator[pathlib.Path]:
    """Make a directory in which everybody may make files, as in /tmp."""
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        directory.chmod(0o1777)
        yield directory


def write(path: pathlib.Path, text: str | bytes, mode: int = 0o600) -> pathlib.Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    return path


def error_of_reading(path: pathlib.Path) -> str:
    """Return what reading says, also in another process."""
    try:
        return repr(list(read_tokens(path)))
    except (NotAuthorizedError, InvalidArgumentError) as error:
        return f"{type(error).__name__}: {error}"


# -- there and back --

NAMES = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=30).filter(
    lambda name: not name.startswith("#") and name.isprintable()
)


@given(st.dictionaries(NAMES, st.binary(min_size=SECRET_BYTES, max_size=SECRET_BYTES), max_size=8))
def test_what_is_written_is_read(written: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / "tokens"
        write_tokens(path, written)
        assert list(read_tokens(path).items()) == list(written.items())


def test_the_lines_of_a_token_file(path: pathlib.Path) -> None:
    write_tokens(path, {"ada": SECRET, "a name:with a colon": bytes(32)})
    assert path.read_text() == f"ada:{SECRET.hex()}\na name:with a colon:{'00' * 32}\n"


def test_comments_empty_lines_and_upper_case(path: pathlib.Path) -> None:
    write(path, f"# who is who\n\n  \nada:{SECRET.hex().upper()}\r\n#bob:nothing\n  bob:{'0' * 64}  ")
    assert read_tokens(path) == {"ada": SECRET, "bob": bytes(32)}


def test_secrets_are_new() -> None:
    assert len({new_secret() for _ in range(100)}) == 100
    assert len(new_secret()) == SECRET_BYTES


@pytest.mark.parametrize("mask", [0, 0o022, 0o077, 0o777])
def test_it_is_made_for_its_owner_alone_whatever_the_umask(path: pathlib.Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_tokens(path, {"ada": SECRET})
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_tokens(path) == {"ada": SECRET}


def test_a_file_that_is_there_is_left_alone(path: pathlib.Path) -> None:
    write(path, "something")
    with pytest.raises(FileExistsError):
        write_tokens(path, {"ada": SECRET})
    assert path.read_text() == "something"


def test_no_file_is_made_through_a_symbolic_link(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for target in ("missing", "there"):
        (tmp_path / "there").write_text("precious")
        path.unlink(missing_ok=True)
        path.symlink_to(tmp_path / target)
        with pytest.raises(FileExistsError):
            write_tokens(path, {"ada": SECRET})
    assert (tmp_path / "there").read_text() == "precious"
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize(
    "name",
    ["", " ada", "ada ", "#ada", "a\nb:c", "a\rb", "a\0b", "\u2028", "\udc80", "x" * 129, "ö" * 65],
    ids=repr,
)
def test_names_that_could_not_be_read_again(path: pathlib.Path, name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot be a name in a token file"):
        write_tokens(path, {name: SECRET})
    with pytest.raises(InvalidArgumentError, match="the secret of 'ada' has not 32 bytes"):
        write_tokens(path, {"ada": SECRET[1:]})
    assert not path.exists()


def test_the_longest_name(path: pathlib.Path) -> None:
    write_tokens(path, {"ö" * (MAX_NAME_BYTES // 2): SECRET})
    assert read_tokens(path) == {"ö" * (MAX_NAME_BYTES // 2): SECRET}


# -- who may read and write it --


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o700])
def test_modes_of_the_owner_alone(path: pathlib.Path, mode: int) -> None:
    assert read_tokens(write(path, f"ada:{SECRET.hex()}\n", mode)) == {"ada": SECRET}


@pytest.mark.parametrize("bit", [0o040, 0o020, 0o010, 0o004, 0o002, 0o001, 0o077])
def test_modes_that_let_others_in(path: pathlib.Path, bit: int) -> None:
    write(path, f"ada:{SECRET.hex()}\n", 0o600 | bit)
    with pytest.raises(
        NotAuthorizedError, match=rf"{path}: others may .* \(mode {0o600 | bit:04o}\): chmod 600"
    ):
        read_tokens(path)


@as_root
def test_anothers_file_is_not_believed(shared: pathlib.Path) -> None:
    """Not even by root, who could read it; and another's cannot be read by anybody else."""
    theirs = write(shared / "theirs", f"ada:{SECRET.hex()}\n")
    os.chown(theirs, 4711, 4711)
    assert "belongs to user 4711, not to this one" in error_of_reading(theirs)
    mine = write(shared / "mine", f"ada:{SECRET.hex()}\n")
    os.chown(mine, NOBODY, NOBODY)
    assert as_user(NOBODY, NOBODY, lambda: error_of_reading(mine)) == "['ada']"
    said = str(as_user(NOBODY, NOBODY, lambda: error_of_reading(theirs)))
    assert said.startswith(f"NotAuthorizedError: {theirs}: the token file cannot be read (Permission denied)")


@as_root
def test_a_file_that_another_has_laid_out(shared: pathlib.Path) -> None:
    """With any mode that lets the victim read it, it is open to others or belongs to somebody else."""
    for mode in (0o644, 0o666, 0o604):
        bait = write(shared / f"{mode:o}", f"ada:{SECRET.hex()}\n", mode)
        os.chown(bait, 4711, 4711)
        said = str(as_user(NOBODY, NOBODY, lambda: error_of_reading(bait)))
        assert "belongs to user 4711, not to this one" in said


@as_root
def test_a_symbolic_link_in_a_directory_of_all(shared: pathlib.Path) -> None:
    mine = write(shared / "mine", f"ada:{SECRET.hex()}\n")
    os.chown(mine, NOBODY, NOBODY)
    link = shared / "tokens"
    as_user(4711, 4711, lambda: link.symlink_to(mine))
    said = str(as_user(NOBODY, NOBODY, lambda: error_of_reading(link)))
    assert said.startswith(f"NotAuthorizedError: {link}: the token file is a symbolic link")


@pytest.mark.parametrize("what", ["directory", "fifo", "missing", "dangling", "link"])
@pytest.mark.timeout(20)
def test_what_is_no_regular_file(path: pathlib.Path, tmp_path: pathlib.Path, what: str) -> None:
    match what:
        case "directory":
            path.mkdir(mode=0o700)
        case "fifo":
            os.mkfifo(path, 0o600)  # who opens it without care waits for ever
        case "dangling":
            path.symlink_to(tmp_path / "nothing")
        case "link":
            path.symlink_to(write(tmp_path / "file", f"ada:{SECRET.hex()}\n"))
    with pytest.raises(NotAuthorizedError, match=str(path)):
        read_tokens(path)


def test_a_missing_file_says_what_to_do(path: pathlib.Path) -> None:
    said = error_of_reading(path)
    assert "No such file or directory" in said
    assert f"copy it from the deployment, mode 0600, or name another in {TOKEN_VARIABLE}" in said


# -- what stands in it --


@pytest.mark.parametrize(
    "line",
    [
        "ada",
        "ada:",
        ":" + "0" * 64,
        "ada:" + "0" * 63,
        "ada:" + "0" * 65,
        "ada:" + "0" * 66,
        "ada:" + "g" * 64,
        "ada:" + "00 " * 32,
        "ada:" + "٠" * 64,
        "0" * 64,
        f"{'x' * 129}:{'0' * 64}",
        f"a\0b:{'0' * 64}",
        f"ada :{'0' * 64}",
        f"a\u2028b:{'0' * 64}",
        b"a\xff:" + b"0" * 64,
    ],
    ids=repr,
)
def test_a_bad_line_is_named_by_its_number(path: pathlib.Path, line: str | bytes) -> None:
    data = line if isinstance(line, bytes) else line.encode()
    write(path, b"# who\n" + f"eve:{SECRET.hex()}\n\n".encode() + data + b"\n")
    said = error_of_reading(path)
    assert said.startswith(f"InvalidArgumentError: {path}: line 4 is not NAME:SECRET"), said
    assert SECRET.hex() not in said


def test_a_secret_is_never_told(path: pathlib.Path) -> None:
    said = error_of_reading(write(path, f"ada:{SECRET.hex()}x\n"))
    assert SECRET.hex()[:8] not in said


def test_a_name_that_comes_twice(path: pathlib.Path) -> None:
    write(path, f"ada:{SECRET.hex()}\nbob:{'0' * 64}\nada:{'0' * 64}\n")
    with pytest.raises(
        InvalidArgumentError, match=f"{path}: line 3 names 'ada' again: remove one of its secrets"
    ):
        read_tokens(path)


def test_a_file_that_is_too_large(path: pathlib.Path) -> None:
    line = f"ada:{SECRET.hex()}\n".encode()
    assert read_tokens(write(path, line.rjust(MAX_TOKENS_BYTES, b"\n"))) == {"ada": SECRET}
    write(path, line.rjust(MAX_TOKENS_BYTES + 1, b"\n"))
    with pytest.raises(InvalidArgumentError, match=f"over the limit of {MAX_TOKENS_BYTES} bytes"):
        read_tokens(path)


# -- who this is --


@contextlib.contextmanager
def called(name: str | None) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
            patch.delenv(variable, raising=False)
        if name is not None:
            patch.setenv("LOGNAME", name)
        yield


def test_where_a_client_looks(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert token_path() == tmp_path / ".chronolog" / "tokens"
    for value in ("~/elsewhere", str(tmp_path / "elsewhere")):
        monkeypatch.setenv(TOKEN_VARIABLE, value)
        assert token_path() == tmp_path / "elsewhere"
    monkeypatch.setenv(TOKEN_VARIABLE, "")
    assert token_path() == tmp_path / ".chronolog" / "tokens"


def test_a_client_is_its_user_or_the_first(monkeypatch: pytest.MonkeyPatch, path: pathlib.Path) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, str(path))
    write_tokens(path, {SERVICE_NAME: bytes(32), "ada": SECRET, "bob": bytes(32)})
    for user, name in (("bob", "bob"), ("ada", "ada"), ("eve", "ada"), (SERVICE_NAME, "ada")):
        with called(user):
            assert own_identity().name == name
    with called("ada"):
        assert own_identity().secret == SECRET


def test_nobody_that_a_client_could_be(monkeypatch: pytest.MonkeyPatch, path: pathlib.Path) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, str(path))
    write_tokens(path, {SERVICE_NAME: SECRET})
    with pytest.raises(NotAuthorizedError, match="has no name for a client"):
        own_identity()


@as_root
def test_a_user_without_a_name(monkeypatch: pytest.MonkeyPatch, shared: pathlib.Path) -> None:
    """As in many containers: no line in /etc/passwd and no variable."""
    path = shared / "tokens"
    monkeypatch.setenv(TOKEN_VARIABLE, str(path))
    write_tokens(path, {"ada": SECRET})
    os.chown(path, 54321, 54321)
    assert getpass and tokens, "imported now: another user perhaps may not"
    with called(None):
        assert as_user(54321, 54321, lambda: own_identity().name) == "ada"
