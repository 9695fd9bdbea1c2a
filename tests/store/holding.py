"""Clients that hold stories, other processes, and ways to stop one at any system call."""

import contextlib
import json
import multiprocessing
import os
import pathlib
import queue
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from py_chronolog_client.errors import ChronoLogError
from py_chronolog_client.store import owner
from py_chronolog_client.store.catalog import Catalog
from py_chronolog_client.store.format import TAIL_CLOSED, TAIL_STATE_OFFSET, TailHeader, encode_record
from py_chronolog_client.store.root import StoreRoot
from tests.support import processes

DEADLINE_S = 20.0
NOBODY = 65534
ELSEWHERE = {"host": "elsewhere", "boot_id": "11111111-2222-4333-8444-555555555555"}

_spawn = multiprocessing.get_context("spawn")


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for a condition, and fail when it does not come true."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.001)


def open_catalog(path: str | os.PathLike[str], patience_s: float = 10.0) -> Catalog:
    return Catalog(StoreRoot.open(path, create=True), patience_s=patience_s)


# -- clients ---


def make_segment(
    directory: pathlib.Path, client_id: int, description: dict[str, Any] | None = None
) -> pathlib.Path:
    fields = owner.describe_process() if description is None else description
    path = directory / f"{client_id:016x}.log"
    path.write_bytes(encode_record(client_id, 0, {**fields, "type": "client", "client_id": client_id}))
    return path


def make_tail(directory: pathlib.Path, client_id: int) -> pathlib.Path:
    data = bytearray(8192)
    header = TailHeader.layout(client_id, len(data), 16, owner.boot_id()).pack()
    data[: len(header)] = header
    making = directory / f".{client_id:016x}.tail"
    making.write_bytes(data)
    return making.rename(directory / f"{client_id:016x}.tail")


def hold(directory: pathlib.Path, client_id: int, description: dict[str, Any] | None = None) -> None:
    """Make the files of a client, by default of one in this process."""
    make_segment(directory, client_id, description)
    make_tail(directory, client_id)


def close_tail(directory: pathlib.Path, client_id: int) -> None:
    with open(directory / f"{client_id:016x}.tail", "r+b") as file:
        file.seek(TAIL_STATE_OFFSET + 8)
        file.write(TAIL_CLOSED.to_bytes(8, "little"))


def acquire(catalog: Catalog, chronicle: str, story: str, client_id: int) -> pathlib.Path | None:
    """Acquire a story as a client does; return its directory, or None if it was destroyed meanwhile."""
    directory = None
    try:
        directory = catalog.ensure_story(chronicle, story, {})
        hold(directory, client_id)
        catalog.confirm_acquisition(directory, client_id)
    except (LookupError, FileNotFoundError):
        if directory is not None:
            release(directory, client_id)
            (directory / f"{client_id:016x}.log").unlink(missing_ok=True)
        return None
    return directory


def release(directory: pathlib.Path, client_id: int) -> None:
    (directory / f"{client_id:016x}.tail").unlink(missing_ok=True)


def has_files(directory: pathlib.Path, client_id: int) -> bool:
    return {f"{client_id:016x}.log", f"{client_id:016x}.tail"} <= set(os.listdir(directory))


def error_of(action: Callable[[], object]) -> type[ChronoLogError] | None:
    """Return the type of this package's error that an action raises, if any."""
    try:
        action()
    except ChronoLogError as error:
        return type(error)
    return None


# -- processes ---


def as_nobody(function: Callable[[], object]) -> object:
    """Run a function in a process that may do nothing special, and return its result, by way of JSON."""
    return as_user(NOBODY, NOBODY, function)


def as_user(uid: int, gid: int, function: Callable[[], object]) -> object:
    """Run a function in a process of another user, which dies then, and return its result, by way of JSON."""
    owner.describe_process()  # loads what another user perhaps may not
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            os.write(writing, json.dumps(function()).encode())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        data = file.read()
    os.waitpid(pid, 0)
    result: object = json.loads(data)
    return result


@contextlib.contextmanager
def running(code: str, *args: object) -> Iterator[subprocess.Popen[str]]:
    """Run a program that prints a line when it is ready; it is killed at the end of the block."""
    argv = [sys.executable, "-c", textwrap.dedent(code), *map(str, args)]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, text=True, env=processes.child_environment()
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline()
            yield process
        finally:
            process.kill()


def race(*targets: tuple[Callable[..., Any], Any], busy_s: float = 0.0) -> list[Any]:
    """Run `function(barrier, *args)` of all targets at once, each in a process; return their results.

    Args:
        busy_s: how long a function is known to be busy.
    """
    barrier = _spawn.Barrier(len(targets))
    results: Any = _spawn.Queue()
    started = [
        _spawn.Process(target=_report, args=(results, number, barrier, function, args), daemon=True)
        for number, (function, args) in enumerate(targets)
    ]
    try:
        for process in started:
            process.start()
        found: dict[int, Any] = {}
        while len(found) < len(targets):
            try:
                number, result = results.get(timeout=busy_s + DEADLINE_S)
            except queue.Empty:
                raise AssertionError(f"no result of {set(range(len(targets))) - set(found)}") from None
            found[number] = result
        for process in started:
            process.join(DEADLINE_S)
    finally:
        for process in started:
            process.kill()
            process.join()
            process.close()
        results.close()
    failures = [result for result in found.values() if isinstance(result, Exception)]
    assert not failures, failures
    return [found[number] for number in range(len(targets))]


def _report(results: Any, number: int, barrier: Any, function: Callable[..., Any], args: Any) -> None:
    try:
        results.put((number, function(barrier, *args)))
    except Exception as error:
        results.put((number, error))


# -- interruptions ---


def interrupted(action: Callable[[], object], at: int, interruption: Callable[[], object]) -> int:
    """Run `action`, and `interruption` just before its system call number `at`; return how many it made.

    What counts is every call into the modules `posix` and `_io`, so every place is met where another process
    could come in between. The interruption may itself be interrupted: it has a thread of its own.
    """
    calls = 0
    failures: list[BaseException] = []

    def interrupt() -> None:
        try:
            interruption()
        except BaseException as error:
            failures.append(error)

    def watch(_frame: object, event: str, function: Any) -> None:
        nonlocal calls
        if event == "c_call" and function.__module__ in ("posix", "_io"):
            if calls == at:
                thread = threading.Thread(target=interrupt)
                thread.start()
                thread.join()
            calls += 1

    sys.setprofile(watch)
    try:
        action()
    finally:
        sys.setprofile(None)
    for failure in failures:
        raise failure
    return calls


def killed(action: Callable[[], object], at: int) -> bool:
    """Run `action` in a process that dies before its system call number `at`; return whether it has."""
    pid = os.fork()
    if not pid:
        try:
            interrupted(action, at, lambda: os.kill(os.getpid(), signal.SIGKILL))
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])
