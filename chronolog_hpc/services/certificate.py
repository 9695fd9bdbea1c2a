"""The certificate of a deployment: made with OpenSSL or given by the user, and kept in the run directory.

    DIR/run/tls.pem             the certificate with its key, for the services
    DIR/run/certificate.pem     the certificate, for those who trust it

Where the first file is, all services of the deployment speak TLS, whoever starts them. It appears whole, and the second
is made of it.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from chronolog_hpc.clientlib import ChronoLogError, InvalidArgumentError
from chronolog_hpc.services.rundir import RunDirectory
from chronolog_hpc.services.tls import ServiceTls
from py_chronolog_client.store import files

_DAYS = 3650
_MAKE_S = 60.0


class Given(NamedTuple):
    """A certificate that the user has."""

    certificate: Path
    """In PEM; certificates of those who have issued it may follow."""
    key: Path
    """In PEM, without a passphrase."""


def provide_certificate(run: RunDirectory, *, wanted: bool, given: Given | None) -> None:
    """Let a deployment have a certificate if it is to have one, or has one already.

    Args:
        run: of the deployment.
        wanted: whether one is made where there is none.
        given: is put into the place of any that is there.

    Raises:
        InvalidArgumentError: the certificate is of no use, or none can be made.
    """
    if given is not None:
        _put(run, _read(given.certificate) + _read(given.key), given.certificate, replace=True)
    elif wanted and not run.has_tls:
        _put(run, _made(), run.tls, replace=False)
    if run.has_tls:
        shown = files.temporary_beside(run.certificate)
        files.write_file(shown, ServiceTls(run.tls).certificate.encode(), 0o644)
        os.replace(shown, run.certificate)


def _put(run: RunDirectory, data: bytes, name: Path, *, replace: bool) -> None:
    making = files.temporary_beside(run.tls)
    files.write_file(making, data, 0o600)
    try:
        ServiceTls(making, name)
        if replace:
            os.replace(making, run.tls)
        else:
            with suppress(FileExistsError):  # somebody has made one at the same time
                files.appear(making, run.tls)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(making)


def _made() -> bytes:
    """Return a new key and a certificate that nobody else has issued."""
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -batch -subj /CN=ChronoLog"
    )
    try:
        done = subprocess.run(  # noqa: S603  these words and no others
            [*command.split(), "-days", str(_DAYS), "-keyout", "-"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=_MAKE_S,
        )
    except FileNotFoundError as error:
        raise InvalidArgumentError(
            "there is no command 'openssl' on the PATH, which makes certificates: install it, or give a certificate with "
            "--tls-certificate and --tls-key"
        ) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ChronoLogError(f"openssl does not make a certificate: {error}") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["it does not say why"]
        raise ChronoLogError(f"openssl does not make a certificate: {said[-1]}")
    return done.stdout


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes() + b"\n"
    except OSError as error:
        raise InvalidArgumentError(f"{path}: the file cannot be read: {error.strerror}") from error
