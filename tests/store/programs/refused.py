"""Do everything that a client can do, with any system call failing; tell what was answered, and never die of it.

Arguments: directory of the store. What fails is done again, so that one failure must not spoil what comes after it.
Prints a JSON object with `returned` (time and record of every accepted event), `failed` (codes that were not 0) and
`refused` (how many events were answered with 0).
"""

import _thread
import json
import pathlib
import sys
from collections.abc import Callable

from py_chronolog_client import Client, ClientPortalServiceConf, ClientQueryServiceConf, StoryHandle
from tests.store.programs.full import Account
from tests.store.writing import CHRONICLE, STORY, small_tails

TRIES = 3
OTHER = "other story"


def no_thread(*_: object) -> None:
    raise RuntimeError("strace counts the calls of each thread from 1, so that everything has to be in one")


def main(store: pathlib.Path) -> None:
    _thread.start_new_thread = no_thread  # for what is done apart; `threading` has its own
    small_tails()
    failed: list[int] = []
    refused = 0
    returned: list[tuple[int, bytes]] = []
    client = Client(
        ClientPortalServiceConf("file", str(store), 0, 0), ClientQueryServiceConf(), durability="node"
    )

    def again(call: Callable[[], int], *fine: int) -> None:
        for _ in range(TRIES):
            code = call()
            if code in (0, *fine):
                return
            failed.append(code)
            assert client.last_error is not None
        raise AssertionError(f"{code} again and again: {client.last_error}")

    def acquire(story: str) -> StoryHandle:
        handles: list[StoryHandle] = []

        def call() -> int:
            code, handle = client.AcquireStory(CHRONICLE, story)
            assert (handle is not None) == (code == 0)
            handles.extend([handle] if handle else [])
            return code

        again(call)
        return handles[0]

    again(client.Connect)
    again(lambda: client.CreateChronicle(CHRONICLE), -6)
    for turn in range(2):
        handle = acquire(STORY)
        account = Account(handle, f"{turn}:")
        for _ in range(2):
            for kind, count in (("log_event", 40), ("log_events", 1), ("big", 1), ("log_event", 20)):
                for _ in range(count):
                    account.log(kind)
            acknowledged = handle.flush()
            statistics = handle.statistics()
            assert statistics.logged == len(account.returned)
            assert statistics.acknowledged <= statistics.logged
            assert acknowledged >= statistics.acknowledged
        account.balance("EIO", "ENOSPC", "EDQUOT")
        assert client.ReleaseStory(CHRONICLE, STORY) == 0, client.last_error
        account.balance("EIO", "ENOSPC", "EDQUOT")
        returned += account.returned
        refused += account.refused
    acquire(OTHER).log_event("x")
    assert client.ReleaseStory(CHRONICLE, OTHER) == 0, client.last_error
    again(lambda: client.DestroyStory(CHRONICLE, OTHER), -3)
    assert client.Disconnect() == 0, client.last_error
    told = [(time_ns, record.decode()) for time_ns, record in returned]
    print(json.dumps({"returned": told, "failed": failed, "refused": refused}))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
