"""Log, fork, and log on both sides; print what each side was told.

Arguments: directory of the store; how the child begins: fork, multiprocessing; how it ends: return, sys.exit, os._exit,
SIGKILL; whether it logs: logs, silent.
"""

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable

from tests.store import writing

EVENTS = 40


def main(store: str, beginning: str, ending: str, logging: str) -> None:
    writing.small_tails()
    client = writing.connect(store)
    handle = writing.acquire(client)
    log = handle.log_event
    told: list[tuple[int, str]] = []

    def attempt(name: str, count: int) -> None:
        for number in range(count):
            record = f"{name} {number} " + "x" * (number * 37 % 300)
            told.append((log(record), record))

    def child() -> None:
        told.clear()
        if logging == "logs":
            attempt("child", EVENTS)
            assert handle.client_id != parent_id
        print(json.dumps(["child", os.getpid(), told]), flush=True)
        if ending == "os._exit":
            os._exit(0)
        if ending == "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        if ending == "sys.exit":
            sys.exit(0)

    attempt("before", 21)
    parent_id = handle.client_id
    finish = start(beginning, child)
    if finish is None:
        return
    attempt("after", 21)
    finish()
    attempt("end", 5)
    assert handle.client_id == parent_id
    print(json.dumps(["parent", os.getpid(), told]), flush=True)
    assert client.Disconnect() == 0, client.last_error


def start(beginning: str, child: Callable[[], None]) -> Callable[[], object] | None:
    """Start a child; return how to wait for its end, or None in a child that is to return from `main`."""
    if beginning == "multiprocessing":
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        return process.join
    pid = os.fork()
    if pid:
        return lambda: os.waitpid(pid, 0)
    child()
    return None


if __name__ == "__main__":
    main(*sys.argv[1:])
