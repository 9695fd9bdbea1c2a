"""Certificates of tests, made with openssl."""

import pathlib
import shutil
import subprocess
from typing import NamedTuple

from tests.support.requirements import require


class Certificate(NamedTuple):
    """A certificate that nobody else has issued."""

    with_key: pathlib.Path
    """Of a file in PEM with its key."""
    alone: str
    """In PEM."""


def made(directory: pathlib.Path, name: str = "tls", days: int = 2) -> Certificate:
    """Make a certificate for some days from now on; -1: it has expired."""
    require("openssl", None if shutil.which("openssl") else "there is no openssl on the PATH")
    key, request = directory / f"{name}.key", directory / f"{name}.csr"
    new = "req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -batch"
    openssl(*new.split(), "-subj", f"/CN={name}", "-keyout", key, "-out", request)
    alone = openssl("x509", "-req", "-in", request, "-signkey", key, "-days", days)
    path = directory / f"{name}.pem"
    path.write_text(alone + key.read_text())
    return Certificate(path, alone)


def openssl(*arguments: object) -> str:
    """Run openssl; return what it says."""
    argv = ["openssl", *map(str, arguments)]
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout
