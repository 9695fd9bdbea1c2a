"""Addresses of this machine: which there are, which are safe, and which are taken."""

import socket

import pytest

from chronolog_hpc.clientlib import InvalidArgumentError
from chronolog_hpc.services.listening import is_loopback, require_free, require_safe, resolve
from py_chronolog_client.engine.connection import Address


@pytest.mark.parametrize(
    ("named", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.9", "127.0.0.9"),
        ("localhost", "127.0.0.1"),
        ("lo", "127.0.0.1"),
        ("::1", "::1"),
        ("192.0.2.1", "192.0.2.1"),
    ],
)
def test_what_a_name_stands_for(named: str, address: str) -> None:
    assert resolve(named) == address


@pytest.mark.parametrize("named", ["0.0.0.0", "::", "0"])
def test_no_address_stands_for_all(named: str) -> None:
    with pytest.raises(InvalidArgumentError, match="stands for all addresses"):
        resolve(named)


@pytest.mark.parametrize("named", ["x" * 300, "a..b", "", "127.0.0.1:5555"])
def test_what_is_no_name_is_said(named: str) -> None:
    with pytest.raises(InvalidArgumentError, match="is no address, name or network interface here"):
        resolve(named)


def test_what_others_reach_is_accepted_only_when_asked_for() -> None:
    for safe in ("127.0.0.1", "127.3.2.1", "::1"):
        assert is_loopback(safe)
        require_safe(safe, is_secured=False)
    for far in ("192.0.2.1", "10.0.0.1", "fd00::2"):
        assert not is_loopback(far)
        require_safe(far, is_secured=True)
        with pytest.raises(InvalidArgumentError, match=r"read all events.*take over a connection"):
            require_safe(far, is_secured=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_taken_port(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        taken = Address(host, listener.getsockname()[1])
        with pytest.raises(InvalidArgumentError, match=f":{taken.port}: cannot listen there .*with --port"):
            require_free(taken, "--port")
    require_free(taken, "--port")
    require_free(Address(host, 0), "--port")


def test_an_address_of_another_machine() -> None:
    with pytest.raises(InvalidArgumentError, match="another address with --host"):
        require_free(Address("192.0.2.1", 0), "--port")
