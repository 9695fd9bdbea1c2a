"""The metrics of a deployment on one machine, for Prometheus: its text format 0.0.4 at http://127.0.0.1:PORT/metrics.

    metrics = Metrics(port, lambda: inspect(run, here_only=True))       # listens, with port 0 at any that is free
    metrics.start()                                                     # answers, in a thread of its own
    metrics.close()

The numbers are those of `chronolog status`, no older than `FRESH_S`, so no service is asked more often than that. There
is no HTTP here but GET and HEAD of one page, and a client has `CLIENT_S` for all that he wants: he may say nothing,
garbage or too much, and never read.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple

from chronolog_hpc.services.counting import LEVELS, TOTALS
from chronolog_hpc.services.listening import LOOPBACK, require_free
from chronolog_hpc.services.rundir import UP
from py_chronolog_client.engine.connection import Address
from py_chronolog_client.errors import ChronoLogError

CLIENT_S = 5.0
"""So long a client may take from his first byte to the last one of the answer."""
FRESH_S = 1.0
"""Numbers that are younger are not asked for again."""
MAX_CLIENTS = 16
"""So many clients at once; whoever comes then is sent away."""

OPTION = "--metrics-port"

_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_REQUEST_BYTES = 8192
_PREFIX = "chronolog_"

logger = logging.getLogger("chronolog_hpc.deployment")


class _Family(NamedTuple):
    """One metric, with a sample for each set of labels."""

    name: str
    kind: str
    """Of Prometheus: "counter" or "gauge"."""
    meaning: str
    samples: Sequence[tuple[Mapping[str, str], float]]


def exposition(found: Mapping[str, Any]) -> str:
    """Return in Prometheus's text format what `inspect` has found."""
    return "".join(map(_text, (*_of_processes(found["processes"]), *_of_spools(found["spools"]))))


def _of_processes(rows: Iterable[Mapping[str, Any]]) -> Iterator[_Family]:
    services = {(row["role"], row["node"]): row for row in sorted(rows, key=lambda row: bool(row["alive"]))}
    services = {place: row for place, row in services.items() if row["role"] != UP}

    def family(name: str, kind: str, meaning: str, value: Callable[[Mapping[str, Any]], Any]) -> _Family:
        values = [({"role": role, "node": node}, value(row)) for (role, node), row in services.items()]
        return _Family(name, kind, meaning, [(labels, told) for labels, told in values if told is not None])

    def counted(name: str) -> Callable[[Mapping[str, Any]], Any]:
        return lambda row: row["counters"].get(name)

    yield family(
        "process_up",
        "gauge",
        "Whether the process lives and answers.",
        lambda row: int(bool(row["answers"])),
    )
    yield family(
        "uptime_seconds", "gauge", "How long ago the process was started.", lambda row: row["uptime_s"]
    )
    for name, meaning in TOTALS.items():
        yield family(f"{name}_total", "counter", meaning, counted(name))
    for name, meaning in LEVELS.items():
        yield family(name, "gauge", meaning, counted(name))


def _of_spools(spools: Iterable[Mapping[str, Any]]) -> Iterator[_Family]:
    gauges: tuple[tuple[str, str, Callable[[Mapping[str, Any]], int]], ...] = (
        ("spool_clients", "Clients that have files in the spool.", lambda spool: spool["clients"]),
        (
            "spool_orphans",
            "Clients with events in the spool whose processes are dead: 'chronolog drain' ships them.",
            lambda spool: len(spool["orphans"]),
        ),
        ("spool_events", "Events in the spool that no keeper has.", lambda spool: spool["events"]),
        ("spool_bytes", "Bytes of events in the spool that no keeper has.", lambda spool: spool["bytes"]),
    )
    for name, meaning, value in gauges:
        samples = [({"directory": spool["directory"]}, value(spool)) for spool in spools]
        yield _Family(name, "gauge", meaning, samples)


def _text(family: _Family) -> str:
    if not family.samples:
        return ""
    name = _PREFIX + family.name
    meaning = family.meaning.replace("\\", r"\\").replace("\n", r"\n")
    lines = [f"# HELP {name} {meaning}", f"# TYPE {name} {family.kind}"]
    for labels, value in family.samples:
        said = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        lines.append(f"{name}{{{said}}} {value}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    text = text.encode("utf-8", "replace").decode()
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


class Metrics:
    """Answers whoever asks for metrics on this machine.

    Attributes:
        address: where it listens.
    """

    def __init__(self, port: int, read: Callable[[], Mapping[str, Any]]) -> None:
        """Listen.

        Args:
            port: on loopback; 0 for any that is free.
            read: returns what `inspect` does; is called in threads.

        Raises:
            InvalidArgumentError: the port is taken.
        """
        require_free(Address(LOOPBACK, port), OPTION)
        self._listener = socket.create_server((LOOPBACK, port))
        self.address = Address(*self._listener.getsockname())
        self._read = read
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        self._reading = asyncio.Lock()
        self._clients: set[asyncio.Task[None]] = set()
        self._page = b""
        self._fresh_until_s = 0.0
        self._thread = threading.Thread(target=self._run, name="chronolog-metrics", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Answer nobody any more."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._over.set)
            self._thread.join()
        else:
            self._listener.close()
            self._loop.close()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._welcome, sock=self._listener, limit=_REQUEST_BYTES)
        await self._over.wait()
        server.close()
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) >= MAX_CLIENTS:
            writer.transport.abort()
            return
        client = self._loop.create_task(self._attend(reader, writer))
        self._clients.add(client)
        client.add_done_callback(self._clients.discard)

    async def _attend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await asyncio.wait_for(self._answer(reader, writer), CLIENT_S)
        except (OSError, asyncio.TimeoutError, asyncio.IncompleteReadError):
            pass  # he is gone, or too slow
        finally:
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        status, page, is_head = HTTPStatus.BAD_REQUEST, b"this is no request for /metrics\n", False
        try:
            request = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        else:
            words = request.split(b"\r\n", 1)[0].split(b" ")
            if len(words) == 3 and words[2].startswith(b"HTTP/1."):
                is_head = words[0] == b"HEAD"
                status, page = await self._found(words[0], words[1])
        headers = [
            f"HTTP/1.1 {status.value} {status.phrase}",
            f"Content-Type: {_CONTENT_TYPE}",
            f"Content-Length: {len(page)}",
            "Connection: close",
        ]
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            headers.append("Allow: GET, HEAD")
        writer.transport.set_write_buffer_limits(high=0)  # `drain` waits until the kernel has all
        writer.write("\r\n".join([*headers, "", ""]).encode() + (b"" if is_head else page))
        await writer.drain()
        writer.write_eof()
        while await reader.read(_REQUEST_BYTES):  # unread bytes would take the answer back
            pass

    async def _found(self, method: bytes, target: bytes) -> tuple[HTTPStatus, bytes]:
        if target.partition(b"?")[0] != b"/metrics":
            return HTTPStatus.NOT_FOUND, b"there is only /metrics here\n"
        if method not in (b"GET", b"HEAD"):
            return HTTPStatus.METHOD_NOT_ALLOWED, b"there is only GET and HEAD here\n"
        async with self._reading:
            if time.monotonic() >= self._fresh_until_s:
                try:
                    self._page = exposition(await asyncio.to_thread(self._read)).encode()
                except (ChronoLogError, OSError) as error:
                    logger.warning("no metrics: %s", error)
                    return HTTPStatus.INTERNAL_SERVER_ERROR, f"{error}\n".encode()
                self._fresh_until_s = time.monotonic() + FRESH_S
            return HTTPStatus.OK, self._page
