"""The certificate of a deployment: made once, replaced when somebody gives another, and never half there."""

import os
import ssl
import stat
import threading
from pathlib import Path

import pytest

from chronolog_hpc.clientlib import InvalidArgumentError
from chronolog_hpc.services.certificate import Given, provide_certificate
from chronolog_hpc.services.rundir import RunDirectory
from chronolog_hpc.services.tls import ServiceTls
from tests.support import certificates


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "deployment", create=True)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def given(directory: Path, name: str = "tls", days: int = 2) -> Given:
    made = certificates.made(directory, name, days)
    alone = directory / f"{name}.alone"
    alone.write_text(made.alone)
    return Given(alone, directory / f"{name}.key")


def test_without_being_asked_for_there_is_none(run: RunDirectory) -> None:
    provide_certificate(run, wanted=False, given=None)
    assert not run.has_tls
    assert list(run.path.iterdir()) == []


def test_it_is_made_once_and_stays(run: RunDirectory) -> None:
    certificates.made(run.deployment)  # skips where there is no openssl
    for wanted in (True, True, False):
        provide_certificate(run, wanted=wanted, given=None)
        made = run.tls.read_bytes(), run.certificate.read_text()
        assert made == (run.tls.read_bytes(), ServiceTls(run.tls).certificate)
    assert (mode(run.tls), mode(run.certificate)) == (0o600, 0o644)
    assert sorted(path.name for path in run.path.iterdir()) == ["certificate.pem", "tls.pem"]
    assert "PRIVATE" not in run.certificate.read_text()


def test_of_several_that_make_one_at_the_same_time_all_use_the_same(run: RunDirectory) -> None:
    certificates.made(run.deployment)
    threads = [
        threading.Thread(target=provide_certificate, args=(run,), kwargs={"wanted": True, "given": None})
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ServiceTls(run.tls).certificate == run.certificate.read_text()
    assert sorted(path.name for path in run.path.iterdir()) == ["certificate.pem", "tls.pem"]


def test_a_certificate_of_the_user_takes_the_place_of_another(run: RunDirectory, tmp_path: Path) -> None:
    """Also behind symbolic links, as renewing programs keep them."""
    first, second = given(tmp_path, "first"), given(tmp_path, "second")
    link = tmp_path / "link"
    link.symlink_to(second.certificate)
    for each in (first, second, Given(link, second.key)):
        provide_certificate(run, wanted=False, given=each)
        assert run.certificate.read_text() == each.certificate.read_text()
    assert mode(run.tls) == 0o600


def test_one_of_no_use_changes_nothing(run: RunDirectory, tmp_path: Path) -> None:
    good, foreign, expired = given(tmp_path, "a"), given(tmp_path, "b"), given(tmp_path, "c", -1)
    provide_certificate(run, wanted=False, given=good)
    before = run.tls.read_bytes()
    for bad, sentence in (
        (Given(good.certificate, foreign.key), f"{good.certificate}: there is no key"),
        (Given(good.key, good.key), f"{good.key}: there is no certificate"),
        (Given(tmp_path / "missing", good.key), "missing: the file cannot be read: No such file"),
        (expired, rf"{expired.certificate}: no client would trust .*expired"),
    ):
        with pytest.raises(InvalidArgumentError, match=sentence):
            provide_certificate(run, wanted=True, given=bad)
        assert run.tls.read_bytes() == before
    assert sorted(path.name for path in run.path.iterdir()) == ["certificate.pem", "tls.pem"]


def test_without_openssl_the_user_is_told_what_else_there_is(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    with pytest.raises(InvalidArgumentError, match=r"no command 'openssl'.*--tls-certificate and --tls-key"):
        provide_certificate(run, wanted=True, given=None)
    assert not run.has_tls


def test_a_certificate_that_somebody_has_issued(run: RunDirectory, tmp_path: Path) -> None:
    """With those of its issuers behind it; clients may trust it alone."""
    from py_chronolog_client.engine.tls import client_context

    issuer, own = given(tmp_path, "issuer"), given(tmp_path, "own")
    made = tmp_path / "issued"
    arguments = ("-req", "-in", tmp_path / "own.csr", "-CA", issuer.certificate, "-CAkey", issuer.key)
    made.write_text(
        certificates.openssl("x509", *arguments, "-CAcreateserial", "-days", 2)
        + issuer.certificate.read_text()
    )
    provide_certificate(run, wanted=False, given=Given(made, own.key))
    for trusted in (run.certificate, issuer.certificate):
        there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = client_context(trusted.read_text()).wrap_bio(back, there)
        service = ServiceTls(run.tls).context.wrap_bio(there, back, server_side=True)
        for side in (client, service):
            with pytest.raises(ssl.SSLWantReadError):
                side.do_handshake()
        client.do_handshake()
