"""`chronolog status`: who runs in a deployment."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from chronolog_hpc import streams
from chronolog_hpc.cli.up import add_directory

if TYPE_CHECKING:
    from mpi4py import MPI

    from chronolog_hpc.cli.outcome import Job

_DESCRIPTION = """\
Show the processes of a deployment, from the files in its run directory and from what the kernel says of them."""

_EPILOG = """\
exit codes: 0 all are alive, 1 one is dead, or none is there, 2 there is no such deployment"""

_HEADINGS = ("role", "node", "address", "pid", "state", "uptime", "memory", "connections")


def register(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the parser of this command."""
    parser = commands.add_parser(
        "status",
        help="show the processes of a deployment",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_directory(parser)
    parser.add_argument("--json", action="store_true", help="print an object, for programs")
    parser.set_defaults(parser=parser, prepare=prepare)


def prepare(args: argparse.Namespace) -> Job:
    """Return the look at the deployment that was asked for."""
    from chronolog_hpc.mpi import Team
    from chronolog_hpc.services.inspection import inspect
    from chronolog_hpc.services.rundir import RunDirectory

    def tell() -> bool:
        found = inspect(RunDirectory(args.directory))
        problem = streams.publish(json.dumps(found, indent=1) + "\n" if args.json else _text(found))
        if problem:
            raise OSError(problem)
        return bool(found["alive"])

    def job(comm: MPI.Comm | None) -> int:
        with Team(comm) as team:
            return 0 if team.from_root(tell) else 1

    return job


def _text(found: dict[str, Any]) -> str:
    if not found["processes"]:
        return f"nothing runs in {found['directory']}\n"
    rows = [_HEADINGS, *(_row(process) for process in found["processes"])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join(lines) + "\n"


def _row(process: dict[str, Any]) -> tuple[str, ...]:
    host, rss = process["host"], process["rss_bytes"]
    values = (
        process["role"],
        process["node"],
        None
        if host is None
        else f"[{host}]:{process['port']}"
        if ":" in host
        else f"{host}:{process['port']}",
        process["pid"],
        "alive" if process["alive"] else "dead",
        None if process["uptime_s"] is None else _duration(process["uptime_s"]),
        None if rss is None else f"{rss / 2**20:.1f} MiB",
        process["connections"],
    )
    return tuple("-" if value is None else str(value) for value in values)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days} d {hours:02}:{minutes:02}:{seconds:02}" if days else f"{hours}:{minutes:02}:{seconds:02}"
