"""Fixtures of the tests of services."""

import socket
from collections.abc import Iterator

import pytest


@pytest.fixture
def sockets() -> Iterator[list[socket.socket]]:
    """Return a list of sockets that are closed at the end."""
    made: list[socket.socket] = []
    yield made
    for each in made:
        each.close()
