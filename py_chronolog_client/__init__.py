"""The ChronoLog client API in pure Python: chronicles hold stories, stories hold events.

Drop-in for the compiled `py_chronolog_client` by names, signatures and return codes; works on a directory,
with no server.
"""

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
