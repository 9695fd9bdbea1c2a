"""What a service frees stays with it for the next page, whichever thread makes that."""

import sys

from tests.support import processes

BUFFERS, BUFFER_BYTES = 8, 8 * 2**20

PROGRAM = f"""
import pathlib, re, sys, threading
from chronolog_hpc.services.memory import keep_buffers

if sys.argv[1] == "kept":
    keep_buffers()


def use():
    buffers = [b"x" * {BUFFER_BYTES} for _ in range({BUFFERS})]


for _ in range(4):
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
status = pathlib.Path("/proc/self/status").read_text()
print(1024 * int(re.search(r"VmRSS:\\s+(\\d+) kB", status)[1]))
"""
"""Prints what the process has in memory after it has freed everything."""


def resident_bytes(how: str) -> int:
    done = processes.run([sys.executable, "-c", PROGRAM, how], timeout=60)
    assert done.returncode == 0, processes.describe(done)
    return int(done.stdout)


def test_what_was_freed_is_kept_once() -> None:
    kept_bytes = resident_bytes("kept") - resident_bytes("by default")
    assert BUFFERS * BUFFER_BYTES / 2 < kept_bytes < 2 * BUFFERS * BUFFER_BYTES
