"""What Prometheus gets is what its own parser reads, and no client of the endpoint disturbs another."""

import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from chronolog_hpc.services import metrics
from chronolog_hpc.services.counting import LEVELS, TOTALS
from chronolog_hpc.services.metrics import Metrics, exposition
from py_chronolog_client.errors import InvalidArgumentError, StoreError

NASTY = 'a "node" of\nC:\\new \udcff é'


def process(role: str, node: str = "n", **said: Any) -> dict[str, Any]:
    counters = {name: number for number, name in enumerate([*TOTALS, *LEVELS])}
    row = {"role": role, "node": node, "alive": True, "answers": True, "uptime_s": 1.5, "counters": counters}
    return {**row, **said}


def found() -> dict[str, Any]:
    silent = {"answers": False, "counters": {}}
    dead = {"alive": False, "answers": None, "uptime_s": None, "counters": {}}
    orphan = {"client_id": "1", "chronicle": "c", "story": "s", "events": 2, "bytes": 3}
    return {
        "processes": [
            process("up", answers=None, counters={}),
            process("up", answers=None, counters={}),
            process("visor", NASTY),
            process("keeper", "k", **dead),
            process("keeper", "k"),
            process("keeper", "silent", **silent),
            process("player", **dead),
        ],
        "spools": [{"directory": NASTY, "clients": 4, "events": 5, "bytes": 6, "orphans": [orphan]}],
    }


def samples(text: str) -> dict[tuple[str, str, str], float]:
    """Return (name, role or directory, node) -> value."""
    read: dict[tuple[str, str, str], float] = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        assert family.type in ("counter", "gauge")
        for sample in family.samples:
            labels = sample.labels
            place = (
                sample.name,
                labels.get("role", "") or labels.get("directory", ""),
                labels.get("node", ""),
            )
            assert place not in read, "the same labels twice"
            read[place] = sample.value
    return read


def test_it_is_what_prometheus_reads() -> None:
    read = samples(exposition(found()))
    nasty = NASTY.replace("\udcff", "?")
    assert read["chronolog_process_up", "visor", nasty] == 1
    assert read["chronolog_process_up", "keeper", "k"] == 1
    assert read["chronolog_process_up", "keeper", "silent"] == 0
    assert read["chronolog_process_up", "player", "n"] == 0
    assert ("chronolog_process_up", "up", "n") not in read
    assert read["chronolog_uptime_seconds", "visor", nasty] == 1.5
    for number, name in enumerate(TOTALS):
        assert read[f"chronolog_{name}_total", "visor", nasty] == number
        assert (f"chronolog_{name}_total", "keeper", "silent") not in read
    for number, name in enumerate(LEVELS, len(TOTALS)):
        assert read[f"chronolog_{name}", "visor", nasty] == number
    for name, number in {"clients": 4, "orphans": 1, "events": 5, "bytes": 6}.items():
        assert read[f"chronolog_spool_{name}", nasty, ""] == number


# -- over HTTP --


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Metrics]:
    monkeypatch.setattr(metrics, "CLIENT_S", 0.5)
    server = Metrics(0, found)
    server.start()
    yield server
    server.close()


def get(server: Metrics, path: str = "/metrics", method: str = "GET") -> tuple[int, str, Any]:
    request = urllib.request.Request(f"http://{server.address}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode(), answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), error.headers


def raw(server: Metrics, said: bytes) -> bytes:
    with socket.create_connection(server.address, 10) as connected:
        connected.sendall(said)
        heard = b""
        while piece := connected.recv(65536):
            heard += piece
        return heard


def test_get_and_head_of_one_page(served: Metrics) -> None:
    status, page, headers = get(served)
    assert status == 200
    assert page == exposition(found())
    assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert get(served, "/metrics?x=y")[:2] == (200, page)
    status, nothing, headers = get(served, method="HEAD")
    assert (status, nothing, int(headers["Content-Length"])) == (200, "", len(page.encode()))
    assert get(served, "/")[0] == 404
    status, _, headers = get(served, method="POST")
    assert (status, headers["Allow"]) == (405, "GET, HEAD")
    assert raw(served, b"GET /metrics HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(
    "said",
    [b"\r\n\r\n", b"GET\r\n\r\n", b"GET /metrics\r\n\r\n", b"\x00\xff\x16\x03\r\n\r\n", b"GET /metrics SMTP/1.1\r\n\r\n"],
)  # fmt: skip
def test_garbage_is_a_bad_request(served: Metrics, said: bytes) -> None:
    assert raw(served, said).startswith(b"HTTP/1.1 400 Bad Request\r\n")


def test_a_request_that_is_too_long(served: Metrics) -> None:
    assert raw(served, b"GET /metrics HTTP/1.1\r\nx: " + b"y" * 60_000).startswith(b"HTTP/1.1 431 ")


@pytest.mark.slow
def test_who_says_nothing_is_sent_away_and_others_are_served(served: Metrics) -> None:
    silent = [socket.create_connection(served.address, 10) for _ in range(metrics.MAX_CLIENTS - 1)]
    silent[0].sendall(b"GET /metr")
    try:
        assert get(served)[0] == 200
        many = [socket.create_connection(served.address, 10) for _ in range(4 * metrics.MAX_CLIENTS)]
        for connected in [*silent, *many]:
            try:
                assert connected.recv(100) == b""
            except ConnectionError:
                pass
            connected.close()
        assert get(served)[0] == 200
    finally:
        for connected in silent:
            connected.close()


def test_numbers_are_asked_for_once_in_a_while_and_what_fails_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics, "FRESH_S", 600.0)
    asked: list[float] = []

    def read() -> dict[str, Any]:
        asked.append(time.monotonic())
        if len(asked) == 1:
            raise StoreError("/there", "cannot be read")
        return found()

    server = Metrics(0, read)
    server.start()
    try:
        status, page, _ = get(server)
        assert (status, "cannot be read" in page) == (500, True)
        assert [get(server)[0] for _ in range(3)] == [200] * 3
        assert len(asked) == 2
        with pytest.raises(InvalidArgumentError, match="--metrics-port"):
            Metrics(server.address.port, read)
    finally:
        server.close()


def test_one_that_was_never_started_lets_go_of_its_port() -> None:
    first = Metrics(0, found)
    first.close()
    Metrics(first.address.port, found).close()
