"""How a deployment is ended from outside: by the processes that its run directory names, never by a name.

Those that look after others are told to end, and end their children in order. A process is held by
a descriptor before its start time is looked at, so the signal cannot reach somebody who has got its number since.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress

from chronolog_hpc.services.rundir import UP, Process, RunDirectory, wait_until

END_S = 95.0
"""Longer than a deployment needs to kill, one after another, four services that do not end."""


def end(run: RunDirectory, timeout_s: float = END_S) -> list[str]:
    """End what runs on this machine, wait until it is gone, and remove the files of the dead.

    Args:
        run: of the deployment.
        timeout_s: longest time to wait.

    Returns:
        A sentence for each process that may still be alive.
    """
    told = [process for process in run.processes() if process.is_here and run.is_alive(process)]
    _end(run, [process for process in told if process.role == UP], timeout_s)
    _end(run, told, timeout_s)
    run.sweep()
    left = []
    for process in run.processes():
        remedy = "kill -KILL ends it" if process.is_here else f"run 'chronolog down' on {process.node}"
        left.append(f"{process} still runs: {remedy}")
    return left


def _end(run: RunDirectory, processes: list[Process], timeout_s: float) -> None:
    for process in processes:
        _tell(run, process)
    wait_until(lambda: not any(map(run.is_alive, processes)), timeout_s)


def _tell(run: RunDirectory, process: Process) -> None:
    with suppress(ProcessLookupError):
        descriptor = os.pidfd_open(process.pid)
        try:
            if run.is_alive(process):
                signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        finally:
            os.close(descriptor)
