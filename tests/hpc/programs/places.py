"""Ranks that log into one story of a deployment and replay it."""

import json
import os
import sys

from mpi4py import MPI

from chronolog_hpc import open_story, replay_story
from chronolog_hpc.clientlib import ChronoLogError, ClientPortalServiceConf, ClientQueryServiceConf

EVENTS = 500
comm = MPI.COMM_WORLD


def told(value: object) -> None:
    everything = comm.gather(value)
    if comm.rank == 0:
        print(json.dumps(everything))


def shared() -> None:
    """All ranks log under the addresses of the environment, and get their slices."""
    with open_story(comm, "c", "s") as story:
        for number in range(EVENTS):
            story.log_event(f"{comm.rank} {number}")
        where = story.store
    events = replay_story(comm, "c", "s")
    told([where, [[event.client_id(), event.log_record()] for event in events]])


def apart(visor: str) -> None:
    """Rank 0 reaches one deployment, the others another one; all under the same address."""
    if comm.rank:
        os.environ["CHRONOLOG_PORTAL"] = visor
    conf = ClientPortalServiceConf(), ClientQueryServiceConf()
    try:
        with open_story(comm, "c", "s", conf=conf) as story:
            story.log_event("never")
    except ChronoLogError as error:
        told(str(error))


globals()[sys.argv[1]](*sys.argv[2:])
