"""Where a benchmark works: the store of the main story, and a scratch directory on the same file system.

The scratch directory takes everything that is only needed to measure (the baseline's files, a store for
warm-up, latency and comparison stories), and also the main story where no store was asked for. It is
removed at the end, however the end comes: by a process that does nothing but wait for the end of rank 0. A
store that was asked for receives nothing but its story.
"""

from __future__ import annotations

import logging
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from chronolog_hpc.bench.ranks import Ranks
from chronolog_hpc.bench.spec import SpecError
from chronolog_hpc.clientlib import STORE_VARIABLE, ChronoLogError, open_client, store_path

CHRONICLE = "chronolog-bench"

_JANITOR = """
import shutil, sys, time, os
sys.stdin.read()
for attempt in range(100):
    shutil.rmtree(sys.argv[1], ignore_errors=True)
    if not os.path.exists(sys.argv[1]):
        break
    time.sleep(0.05)  # other ranks may still be making files
"""


@dataclass(frozen=True)
class Workspace:
    """The places of one run, the same on all ranks."""

    store: str
    """Directory of the store of the main story."""
    story: str
    """Fresh name of the main story."""
    scratch: Path
    """Directory for everything else."""

    @property
    def scratch_store(self) -> str:
        """Directory of the store for stories that are only measured."""
        return str(self.scratch / "store")

    def destroy_scratch_story(self, story: str) -> None:
        """Remove a story of the scratch store, to recycle its memory in the page cache."""
        with open_client(Path(self.scratch_store)) as client:
            client.DestroyStory(CHRONICLE, story)


@contextmanager
def _quiet_client() -> Iterator[None]:
    """Keep the client from logging an error that is about to be said anyway."""
    client_logger = logging.getLogger("py_chronolog_client")
    client_logger.disabled = True
    try:
        yield
    finally:
        client_logger.disabled = False


@contextmanager
def workspace(ranks: Ranks, store: str | None) -> Iterator[Workspace]:
    """Make the places of a run and remove what is not asked for.

    Collective: over the ranks; synchronises.

    Args:
        ranks: all of them.
        store: directory of a store that is kept; None for a fresh one.

    Raises:
        SpecError: on all ranks, if the store cannot be used.
    """
    overridden = os.environ.pop(STORE_VARIABLE, None)
    try:
        ranks.agree(_temporary_problem(ranks))
        made = _make(ranks, store) if ranks.first else ""
        places = ranks.from_first(made)
        if isinstance(places, str):
            raise SpecError(places)
        with ExitStack() as stack:
            if ranks.first:
                stack.callback(Janitor(places.scratch).close)
            ranks.agree(
                None
                if places.scratch.is_dir()
                else f"{ranks.describe_rank(ranks.rank)} does not see {places.scratch}, which "
                f"{ranks.describe_rank(0)} has made: give --store a directory that all hosts share"
            )
            yield places
            ranks.barrier()
    finally:
        if overridden is not None:
            os.environ[STORE_VARIABLE] = overridden


def _make(ranks: Ranks, store: str | None) -> Workspace | str:
    """Make store and scratch directory on rank 0; return them, or what is wrong."""
    story = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"
    prefix = ".chronolog-bench-"
    try:
        if store is None:
            parent = tempfile.gettempdir() if ranks.on_one_host else os.getcwd()
            scratch = Path(tempfile.mkdtemp(prefix=prefix[1:], dir=parent))
            return Workspace(str(scratch / "store"), story, scratch)
        directory = store_path(store)
        with _quiet_client():
            open_client(directory).Disconnect()
        return Workspace(str(directory), story, Path(tempfile.mkdtemp(prefix=prefix, dir=directory)))
    except ChronoLogError as error:
        return f"--store: {error}"
    except OSError as error:
        place = error.filename or "the working directory"
        return f"no temporary directory can be made, {place}: {error.strerror}: give --store DIR"


def _temporary_problem(ranks: Ranks) -> str | None:
    """Return why this rank has no place for temporary files, or None. Python would take another in silence."""
    chosen = os.environ.get("TMPDIR")
    try:
        found = tempfile.gettempdir()
    except OSError as error:
        return f"{ranks.describe_rank(ranks.rank)}: {error.strerror}: set TMPDIR to a directory with room"
    if chosen and os.path.abspath(chosen) != os.path.abspath(found):
        return (
            f"TMPDIR={chosen}: {ranks.describe_rank(ranks.rank)} cannot make files there: name a directory with "
            "room, or unset the variable"
        )
    return None


class Janitor:
    """A process that removes a directory as soon as this process closes it, or dies in whatever way."""

    def __init__(self, directory: Path) -> None:
        self._process = subprocess.Popen(  # noqa: S603  our own interpreter and words
            [sys.executable, "-I", "-S", "-c", _JANITOR, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # what ends the ranks shall not end it
        )

    def close(self) -> None:
        """Return when the directory is removed."""
        self._process.communicate()  # closes its standard input, for which it waits
