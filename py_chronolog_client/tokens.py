"""The token file: names and their secrets, by which clients and services of a deployment know each other.

Lines of `name:secret`; the name is the identity, the secret 64 hexadecimal digits. Empty lines and those that begin
with # mean nothing. Whoever can read the file can be anybody in it, so it is refused where others than its owner
could have written or read it, and a symbolic link is never followed: on a login node somebody else could have put it
there.
"""

from __future__ import annotations

import errno
import getpass
import os
import re
import secrets
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from py_chronolog_client.errors import InvalidArgumentError, NotAuthorizedError
from py_chronolog_client.trust import trusted_certificates
from py_chronolog_client.wire.handshake import MAX_NAME_BYTES, SERVICE_NAME, Identity

TOKEN_VARIABLE = "CHRONOLOG_TOKEN_FILE"  # noqa: S105  a name, no secret
"""Environment variable that names the token file."""
SECRET_BYTES = 32
MAX_TOKENS_BYTES = 2**20

_SECRET = re.compile(rf"[0-9a-fA-F]{{{2 * SECRET_BYTES}}}")


def new_secret() -> bytes:
    """Return a secret that nobody else has."""
    return secrets.token_bytes(SECRET_BYTES)


def token_path() -> Path:
    """Return where a client looks for its token file: what the environment names, or `~/.chronolog/tokens`."""
    return Path(os.environ.get(TOKEN_VARIABLE) or "~/.chronolog/tokens").expanduser()


def read_tokens(path: Path) -> dict[str, bytes]:
    """Return the secret of each name in a token file, in its order.

    Raises:
        NotAuthorizedError: the file is not there, or others could have read or written it.
        InvalidArgumentError: a line in it is no name with its secret, or the file is too large.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotAuthorizedError(
                f"{path}: the token file is a symbolic link, which somebody else could have put there: name the file "
                f"itself in {TOKEN_VARIABLE}"
            ) from error
        raise NotAuthorizedError(
            f"{path}: the token file cannot be read ({error.strerror}): copy it from the deployment, mode 0600, or name "
            f"another in {TOKEN_VARIABLE}"
        ) from error
    try:
        _require_private(path, os.fstat(descriptor))
    except NotAuthorizedError:
        os.close(descriptor)
        raise
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(MAX_TOKENS_BYTES + 1)
    if len(data) > MAX_TOKENS_BYTES:
        raise InvalidArgumentError(f"{path}: the token file is over the limit of {MAX_TOKENS_BYTES} bytes")
    return _parsed(path, data)


def own_identity(path: Path | None = None) -> Identity:
    """Return who this client is, of the names in its token file the user's own, or else the first, and whom it trusts.

    Args:
        path: of the file; None for where a client looks.

    Raises:
        NotAuthorizedError: there is no token file, or nobody in it that a client could be, or no certificate.
        InvalidArgumentError: one of them makes no sense.
    """
    path = path or token_path()
    tokens = {name: secret for name, secret in read_tokens(path).items() if name != SERVICE_NAME}
    if not tokens:
        raise NotAuthorizedError(f"{path}: the token file has no name for a client")
    name = next(iter(tokens))
    with suppress(KeyError, OSError):  # a user without a name
        name = user if (user := getpass.getuser()) in tokens else name
    return Identity(name, tokens[name], trusted_certificates())


def write_tokens(path: Path, tokens: Mapping[str, bytes]) -> None:
    """Make a token file, mode 0600.

    Raises:
        FileExistsError: there is one.
        InvalidArgumentError: a name or secret cannot stand in it.
    """
    for name, secret in tokens.items():
        if not _is_name(name):
            raise InvalidArgumentError(
                f"{name!r:.200} cannot be a name in a token file: it has 1 to {MAX_NAME_BYTES} bytes, all printable, no "
                "space at its ends and no # at its beginning"
            )
        if len(secret) != SECRET_BYTES:
            raise InvalidArgumentError(f"the secret of {name!r} has not {SECRET_BYTES} bytes")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o600), "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o600)
        file.writelines(f"{name}:{secret.hex()}\n" for name, secret in tokens.items())


def _require_private(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise NotAuthorizedError(f"{path}: the token file is no regular file")
    if status.st_uid not in (os.geteuid(), 0):
        raise NotAuthorizedError(f"{path}: the token file belongs to user {status.st_uid}, not to this one")
    if status.st_mode & 0o077:
        raise NotAuthorizedError(
            f"{path}: others may read or write the token file (mode {stat.S_IMODE(status.st_mode):04o}): chmod 600, and "
            "make new secrets"
        )


def _parsed(path: Path, data: bytes) -> dict[str, bytes]:
    tokens: dict[str, bytes] = {}
    for number, line in enumerate(data.split(b"\n"), 1):
        text = line.decode("utf-8", "surrogateescape").strip()
        if not text or text.startswith("#"):
            continue
        name, _, secret = text.rpartition(":")
        if not _is_name(name) or not _SECRET.fullmatch(secret):
            raise InvalidArgumentError(
                f"{path}: line {number} is not NAME:SECRET with a secret of {2 * SECRET_BYTES} hexadecimal digits"
            )
        if name in tokens:
            raise InvalidArgumentError(
                f"{path}: line {number} names {name!r} again: remove one of its secrets"
            )
        tokens[name] = bytes.fromhex(secret)
    return tokens


def _is_name(name: str) -> bool:
    return (
        name.isprintable()
        and name == name.strip()
        and not name.startswith("#")
        and 1 <= len(name.encode()) <= MAX_NAME_BYTES
    )
