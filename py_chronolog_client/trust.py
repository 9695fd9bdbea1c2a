"""Whom a client believes: the certificates in the file that the environment names.

With such a file every connection is TLS, and nobody is spoken to in the clear; without one none is. The file holds the
certificate of the deployment, or of whoever has issued it, in PEM; it is no secret.
"""

from __future__ import annotations

import os
from pathlib import Path

from py_chronolog_client.errors import InvalidArgumentError, NotAuthorizedError

CERTIFICATE_VARIABLE = "CHRONOLOG_CERTIFICATE"
"""Environment variable that names the file."""
MAX_CERTIFICATES_BYTES = 2**20


def trusted_certificates() -> str:
    """Return the certificates, in PEM, one of which every service must have; "" for connections without TLS.

    Raises:
        NotAuthorizedError: the file cannot be read.
        InvalidArgumentError: it has no certificate.
    """
    path = os.environ.get(CERTIFICATE_VARIABLE)
    return read_certificates(Path(path).expanduser()) if path else ""


def read_certificates(path: Path) -> str:
    """Return the certificates in a file.

    Raises:
        NotAuthorizedError: it cannot be read.
        InvalidArgumentError: it has none.
    """
    import ssl

    try:
        with open(path, "rb") as file:
            text = file.read(MAX_CERTIFICATES_BYTES).decode("ascii", "ignore")
    except OSError as error:
        raise NotAuthorizedError(
            f"{path}: the certificate cannot be read ({error.strerror}): copy it from the deployment, where it is "
            f"run/certificate.pem, or name another in {CERTIFICATE_VARIABLE}, or unset that where there is no TLS"
        ) from error
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (ssl.SSLError, ValueError) as error:
        raise InvalidArgumentError(
            f"{path}: there is no certificate in PEM in it: copy run/certificate.pem from the deployment again"
        ) from error
    return text
