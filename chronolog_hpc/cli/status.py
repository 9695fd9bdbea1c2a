"""`chronolog status`: who runs in a deployment, what it does, and what waits."""

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
Show the processes of a deployment, what they do, and what waits in the spools of this user on this machine. Rates are of the
last 10 to 20 seconds; --json has all counters, which docs/operations.md explains."""

_EPILOG = """\
exit codes: 0 all are alive and answer, 1 one is dead or silent, or none is there, 2 there is no such deployment"""

_HEADINGS = (
    *("role", "node", "address", "pid", "state", "uptime", "memory", "connections"),
    *("events/s in", "events/s out", "bytes/s in", "bytes/s out", "waiting"),
)


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
    for spool in found["spools"]:
        lines += _spool(spool) if spool["clients"] else []
    return "\n".join(lines) + "\n"


def _row(process: dict[str, Any]) -> tuple[str, ...]:
    counters, rates = process["counters"], process["rates_per_s"]
    values = (
        process["role"],
        process["node"],
        _address(process["host"], process["port"]),
        process["pid"],
        "dead" if not process["alive"] else "silent" if process["answers"] is False else "alive",
        None if process["uptime_s"] is None else _duration(process["uptime_s"]),
        _size(process["rss_bytes"]),
        process["connections"],
        _number(rates.get("events_in")),
        _number(rates.get("events_out")),
        _size(rates.get("bytes_in")),
        _size(rates.get("bytes_out")),
        _size(counters.get("waiting_bytes")),
    )
    return tuple("-" if value is None else str(value) for value in values)


def _spool(spool: dict[str, Any]) -> list[str]:
    """Return the lines about a spool: what waits there, and for whom nobody ships it."""
    most = "" if spool["known"] else "at most "
    lines = [f"spool {spool['directory']}: {spool['clients']} clients, {most}{_left(spool)} not shipped"]
    lines += [
        f"  client {orphan['client_id']} of story {orphan['story']!r} of {orphan['chronicle']!r} is dead: {most}"
        f"{_left(orphan)} not shipped: 'chronolog drain' ships them, or says why not"
        for orphan in spool["orphans"]
    ]
    return lines


def _left(what: dict[str, Any]) -> str:
    return f"{what['events']} events ({_size(what['bytes'])})"


def _address(host: str | None, port: int) -> str | None:
    if host is None:
        return None
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.0f}"


def _size(size_bytes: float | None) -> str | None:
    if size_bytes is None:
        return None
    for unit in ("B", "KiB", "MiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} GiB"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days} d {hours:02}:{minutes:02}:{seconds:02}" if days else f"{hours}:{minutes:02}:{seconds:02}"
