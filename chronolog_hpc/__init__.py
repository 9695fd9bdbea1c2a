"""ChronoLog for MPI jobs: every rank logs into one story, and the job reads it back in order.

Importing this package imports neither MPI nor numpy; a name is fetched from its module when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chronolog_hpc.clocksync import SyncedClock as SyncedClock
    from chronolog_hpc.clocksync import before as before
    from chronolog_hpc.mpi import guard as guard
    from chronolog_hpc.replay import replay_story as replay_story
    from chronolog_hpc.session import ClientInfo as ClientInfo
    from chronolog_hpc.session import RankStory as RankStory
    from chronolog_hpc.session import describe_clients as describe_clients
    from chronolog_hpc.session import open_story as open_story

    __version__: str

_HOMES = {
    "ClientInfo": "session",
    "RankStory": "session",
    "SyncedClock": "clocksync",
    "before": "clocksync",
    "describe_clients": "session",
    "guard": "mpi",
    "open_story": "session",
    "replay_story": "replay",
    "__version__": "clientlib",
}

__all__ = [
    "ClientInfo",
    "RankStory",
    "SyncedClock",
    "before",
    "describe_clients",
    "guard",
    "open_story",
    "replay_story",
]


def __getattr__(name: str) -> Any:
    """Fetch a public name, or the version of the installed distribution."""
    if name in _HOMES:
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
