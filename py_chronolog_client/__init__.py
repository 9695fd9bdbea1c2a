"""The ChronoLog client API in pure Python: chronicles hold stories, stories hold events.

Drop-in for the compiled `py_chronolog_client` by names, signatures and return codes; works on a directory,
with no server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from py_chronolog_client.client import Client, StoryHandle
from py_chronolog_client.conf import ClientPortalServiceConf, ClientQueryServiceConf
from py_chronolog_client.errors import ChronoLogError, ErrorCode, RecordTooLargeError
from py_chronolog_client.event import Event
from py_chronolog_client.eventlist import EventList

__all__ = [
    "ChronoLogError",
    "Client",
    "ClientPortalServiceConf",
    "ClientQueryServiceConf",
    "ErrorCode",
    "Event",
    "EventList",
    "RecordTooLargeError",
    "StoryHandle",
]

if TYPE_CHECKING:
    __version__: str


def __getattr__(name: str) -> Any:
    """Look up the version of the installed distribution, chronolog-hpc, when somebody asks for it."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("chronolog-hpc")
    except PackageNotFoundError:
        return "0+unknown"  # a checkout on PYTHONPATH
