"""Who holds what, and is he alive: told from names of processes, never from locks.

A process describes itself by what the kernel says of it: boot, pid namespace, pid and start time. Whoever
runs under the same kernel and in the same pid namespace can ask whether exactly that process still exists.
For everybody else there is a lease: a living owner touches its file every `HEARTBEAT_S`, and who has not
done so for `LEASE_S`, by the clock of the file system itself, counts as dead. The question is always
answered "alive" where it cannot be answered.
"""

from __future__ import annotations

import functools
import getpass
import logging
import os
import queue
import secrets
import socket
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

HEARTBEAT_S = 60.0
"""How often a living owner touches its files."""
LEASE_S = 300.0
"""An owner that cannot be asked and has touched nothing for so long counts as dead."""

_NOWHERE = ("", "localhost", "localhost.localdomain")
_CLOCK_REUSE_S = 10.0

_log = logging.getLogger("py_chronolog_client")


def boot_id() -> bytes:
    """Return the 16 bytes of the UUID of this boot of this machine; zeros where there is none."""
    return _boot_uuid().bytes


def describe_process() -> dict[str, str | int]:
    """Return who this process is, as a `client` record says it (docs/format.md)."""
    uid = os.getuid()
    return {**_process(os.getpid()), "uid": uid, "user": _user(uid)}


def started_ticks(pid: int) -> int:
    """Return when another process started, as a description's `pid_start` says it; 0 if that cannot be seen."""
    status = _status(pid)
    return status.start_ticks if status else 0


def is_alive(description: Mapping[str, Any], touched_path: str | os.PathLike[str]) -> bool:
    """Tell whether the owner that described itself so may still be alive.

    Args:
        description: what the owner said of itself; anything, it comes from a file.
        touched_path: the file that the owner touches while it lives.
    """
    own = describe_process()
    host, boot, namespace = (description.get(key) for key in ("host", "boot_id", "pid_namespace"))
    if _is_boot(boot) and _is_boot(own["boot_id"]):
        if boot != own["boot_id"]:
            if isinstance(host, str) and host == own["host"] and host not in _NOWHERE:
                return False  # this machine has been booted since
        elif namespace and namespace == own["pid_namespace"]:
            lives = _process_lives(description.get("pid"), description.get("pid_start"))
            if lives is not None:
                return lives
    return _lease_holds(os.fspath(touched_path))


class Heartbeat:
    """Touches the files that this process holds, so that owners on other machines see a living lease.

    There is one for each process, `heartbeat`. It has a thread while it has something to watch. A forked
    child starts with nothing to watch.

    Thread safety: everything, also from a signal handler. Nothing here ever raises, and nothing is ever locked: what a
    handler throws into the middle of something would leave a lock to nobody.
    """

    def __init__(self, interval_s: float = HEARTBEAT_S) -> None:
        self._interval_s = interval_s
        self._start_over()
        os.register_at_fork(after_in_child=self._start_over)

    def _start_over(self) -> None:
        self._paths: dict[str, None] = {}
        self._emptied: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def watch(self, path: str | os.PathLike[str]) -> None:
        """Touch `path` from now on every interval; it has just been made or touched."""
        paths, emptied = self._paths, self._emptied  # a fork in here gives the child other ones
        paths[os.path.abspath(path)] = None
        if self._thread is not None and self._thread.is_alive():
            return
        thread = threading.Thread(
            target=self._run, args=(paths, emptied), name="chronolog-heartbeat", daemon=True
        )
        self._thread = thread
        try:
            thread.start()
        except RuntimeError as error:  # no more threads, or the interpreter is ending
            self._thread = None
            _log.warning("no heartbeat, so other hosts may take this process for dead: %s", error)

    def unwatch(self, path: str | os.PathLike[str]) -> None:
        """Leave `path` alone from now on."""
        paths, emptied = self._paths, self._emptied
        paths.pop(os.path.abspath(path), None)
        if not paths:
            emptied.put(None)

    def _run(self, paths: dict[str, None], emptied: queue.SimpleQueue[None]) -> None:
        """Touch the paths until there are none, or another thread has taken over.

        `watch` adds a path and then looks for a thread; this says that there is none and then looks for paths. So one
        of the two sees the other.
        """
        own = threading.current_thread()
        next_s = time.monotonic() + self._interval_s
        while self._thread is own:
            if not paths:
                self._thread = None
                if not paths:
                    return
                self._thread = own
            left_s = next_s - time.monotonic()
            if left_s > 0:
                with suppress(queue.Empty):
                    emptied.get(timeout=left_s)
                continue
            for path in list(paths):
                try:
                    os.utime(path)
                except FileNotFoundError:
                    self.unwatch(path)  # there is nothing to hold any more
                except OSError:
                    pass  # a full or failing file system: the lease is long enough to try again
            next_s = time.monotonic() + self._interval_s


heartbeat = Heartbeat()
"""The heartbeat of this process."""


class _Status(NamedTuple):
    """What /proc/<pid>/stat says of a process."""

    state: str
    threads: int
    start_ticks: int


def _status(pid: int | str) -> _Status | None:
    """Return the status of a process, or None if it cannot be seen."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
        fields = text[text.rindex(b")") + 1 :].split()  # the name before may hold blanks and parentheses
        return _Status(fields[0].decode("ascii"), int(fields[17]), int(fields[19]))
    except (OSError, ValueError, IndexError):
        return None


def _process_lives(pid: object, start_ticks: object) -> bool | None:
    """Tell whether a process of this pid namespace is still the one that started then; None: cannot tell."""
    if type(pid) is not int or type(start_ticks) is not int or not 0 < pid < 2**31:
        return None
    status = _status(pid) if _proc_is_ours() else None
    if status is not None:
        if start_ticks and status.start_ticks != start_ticks:
            return False  # the number has been given to somebody else
        if status.state in "ZX" and status.threads <= 1:
            return False  # a zombie; with more threads only the first of them has ended
        return True if start_ticks else None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return None
    return None  # /proc hides the processes of other users


def _proc_is_ours() -> bool:
    """Tell whether /proc shows the pid namespace of this process, and not the one outside."""
    try:
        return os.readlink("/proc/self") == str(os.getpid())
    except OSError:
        return False


def _lease_holds(path: str) -> bool:
    """Tell whether the file was touched within the lease, or that cannot be told."""
    try:
        status = os.lstat(path)
    except OSError:
        return True
    now_ns = _file_system_time_ns(os.path.dirname(path), status.st_dev)
    return now_ns is None or now_ns - status.st_mtime_ns <= LEASE_S * 1e9


_clocks: dict[int, tuple[int, int]] = {}
"""Device -> (time of its file system, CLOCK_MONOTONIC at that time), in ns."""


def _file_system_time_ns(directory: str, device: int) -> int | None:
    """Return the time that a file would get if it were touched now; None where nothing can be made."""
    now_ns = time.monotonic_ns()
    if device in _clocks:
        then_ns, monotonic_ns = _clocks[device]
        if now_ns - monotonic_ns < _CLOCK_REUSE_S * 1e9:
            return then_ns + now_ns - monotonic_ns
    path = os.path.join(directory, f".clock-{secrets.token_hex(8)}")
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError:
        return None
    try:
        os.utime(descriptor)
        time_ns = os.fstat(descriptor).st_mtime_ns
    except OSError:
        return None
    finally:
        os.close(descriptor)
        with suppress(OSError):
            os.unlink(path)
    _clocks[device] = (time_ns, now_ns)
    return time_ns


def _is_boot(text: object) -> bool:
    """Tell whether this is the id of a boot, and not of a machine that has none."""
    try:
        return isinstance(text, str) and uuid.UUID(text).int != 0
    except ValueError:
        return False


def _text(text: str) -> str:
    """Return what a name from outside says, as text that any encoding can hold."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")[:1024]


@functools.cache
def _boot_uuid() -> uuid.UUID:
    try:
        return uuid.UUID(Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip())
    except (OSError, ValueError):
        return uuid.UUID(int=0)


@functools.lru_cache(maxsize=1)
def _process(pid: int) -> dict[str, str | int]:
    """Return what does not change while a process lives."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    status = _status("self")
    arguments = getattr(sys, "argv", None) or [""]
    return {
        "host": _text(socket.gethostname()),
        "boot_id": str(_boot_uuid()),
        "pid_namespace": _text(namespace),
        "pid": pid,
        "pid_start": status.start_ticks if status else 0,
        "program": _text(str(arguments[0])),
    }


os.register_at_fork(after_in_child=_process.cache_clear)  # in a new pid namespace the number may be the same


@functools.lru_cache(maxsize=4)
def _user(uid: int) -> str:
    try:
        return _text(
            getpass.getuser()
        )  # the environment first: a whole job must not ask the directory service
    except (KeyError, OSError):
        return str(uid)
