"""Which certificates a client trusts."""

from pathlib import Path

import pytest

from py_chronolog_client.errors import InvalidArgumentError, NotAuthorizedError
from py_chronolog_client.tokens import new_secret, own_identity, write_tokens
from py_chronolog_client.trust import CERTIFICATE_VARIABLE, trusted_certificates
from tests.support import certificates


def test_without_the_variable_there_is_no_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (None, ""):
        if value is not None:
            monkeypatch.setenv(CERTIFICATE_VARIABLE, value)
        assert trusted_certificates() == ""


def test_the_identity_of_a_client_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tokens(tmp_path / "tokens", {"ada": new_secret()})
    two = certificates.made(tmp_path, "a").alone + certificates.made(tmp_path, "b").alone
    (tmp_path / "two.pem").write_text(two)
    monkeypatch.setenv("CHRONOLOG_TOKEN_FILE", str(tmp_path / "tokens"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(CERTIFICATE_VARIABLE, "~/two.pem")
    assert own_identity().trusted == two


@pytest.mark.parametrize(
    ("text", "error", "sentence"),
    [
        (None, NotAuthorizedError, r"trusted\.pem: the certificate cannot be read \(No such file"),
        (b"", InvalidArgumentError, r"trusted\.pem: there is no certificate in PEM"),
        (
            b"\xff\0-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            InvalidArgumentError,
            "no certificate",
        ),
        (b"-----BEGIN CERTIFICATE-----\nMI!\n", InvalidArgumentError, "no certificate"),
    ],
)
def test_a_file_that_has_none(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: bytes | None,
    error: type[Exception],
    sentence: str,
) -> None:
    path = tmp_path / "trusted.pem"
    if text is not None:
        path.write_bytes(text)
    monkeypatch.setenv(CERTIFICATE_VARIABLE, str(path))
    with pytest.raises(error, match=sentence):
        trusted_certificates()
