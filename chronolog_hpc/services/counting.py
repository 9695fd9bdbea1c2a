"""What a service counts: totals that only grow, and levels, what there is of something at a moment.

Counting costs an addition to a dictionary where something happens anyway. Every `SAMPLE_S` the numbers are noted, so
whoever asks is told them as they are and as they were 10 to 20 s ago, and a rate needs no second question.

The names here are those of `chronolog status --json`, and, with a prefix, of the metrics.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from py_chronolog_client.wire.messages import Counters, pack_ids

SAMPLE_S = 10.0

TOTALS = {
    "events_in": "Events that clients have shipped and that were journalled.",
    "events_out": "Events that were sent to readers.",
    "bytes_in": "Bytes received from all peers.",
    "bytes_out": "Bytes sent to all peers.",
    "requests": "Requests of peers who have said who they are; each block is one.",
    "requests_failed": "Requests that were answered with a failure.",
    "blocks_refused": "Blocks that were not journalled.",
    "connections_accepted": "Connections that were accepted.",
    "connections_refused": "Connections for which there was no room.",
    "connections_unauthorized": "Connections of peers who did not know the secret of their name.",
    "connections_rejected": "Connections that were ended because of what the peer said, or did not say in time.",
}
"""Name of a total -> what it counts, since the process was started."""

LEVELS = {
    "connections": "Connections that are open.",
    "connections_unknown": "Connections that are open and whose peers have not yet said who they are.",
    "waiting_requests": "Requests that have arrived and are not begun.",
    "waiting_bytes": "Memory that requests take which have arrived and are not begun.",
    "waiting_for_sync": "Blocks that are journalled and wait for the device.",
    "streams": "Clients whose events a keeper or the grapher takes in.",
    "acquired": "Stories times the clients that hold them.",
    "keepers": "Keepers that are registered.",
    "players": "Players that are registered.",
    "rss_bytes": "Resident memory.",
    "open_files": "Open files and sockets.",
}
"""Name of a level -> what there is."""


class Course:
    """The numbers of a service as they are and as they were."""

    def __init__(self, read: Callable[[], Mapping[str, int]]) -> None:
        """Remember what `read` returns; it is called in the event loop."""
        self._read = read
        self._samples: deque[tuple[float, Mapping[str, int]]] = deque(maxlen=2)

    def begin(self) -> None:
        """Note the numbers from now on, for as long as the event loop runs."""
        self._samples.append((time.monotonic(), self._read()))
        asyncio.get_running_loop().call_later(SAMPLE_S, self.begin)

    def told(self) -> Counters:
        """Return what the service says of itself."""
        now_s, now = time.monotonic(), self._read()
        before_s, before = self._samples[0]
        return Counters(
            list(now),
            pack_ids(now.values()),
            pack_ids(before.get(name, 0) for name in now),
            round(1000 * (now_s - before_s)),
        )


def own_process() -> dict[str, int]:
    """Return the levels of this process."""
    levels = {"rss_bytes": rss_bytes("self")}
    with suppress(OSError):
        levels["open_files"] = len(os.listdir("/proc/self/fd"))
    return {name: level for name, level in levels.items() if level is not None}


def rss_bytes(pid: int | str) -> int | None:
    """Return the resident memory of a process of this machine, or None if it is gone."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return None
