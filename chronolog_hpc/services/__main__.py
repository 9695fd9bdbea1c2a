"""`python -m chronolog_hpc.services ROLE ...` runs one service in the foreground."""

from __future__ import annotations

import argparse
import asyncio
import logging
import resource
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from chronolog_hpc import streams
from chronolog_hpc.services.configuration import Log
from chronolog_hpc.services.lifeline import die_with
from chronolog_hpc.services.logfile import LogFile
from chronolog_hpc.services.memory import keep_buffers
from chronolog_hpc.services.policy import PACE, Pace
from chronolog_hpc.services.server import Server, Service
from chronolog_hpc.services.tls import ServiceTls
from chronolog_hpc.services.tokenfile import TokenFile
from chronolog_hpc.services.visor import GRACE_S
from py_chronolog_client.engine.connection import Address
from py_chronolog_client.errors import ChronoLogError
from py_chronolog_client.wire.handshake import SERVICE_NAME, Identity

ROLES = ("visor", "grapher", "keeper", "player")
USAGE = 2


def main(arguments: Sequence[str] | None = None, pace: Pace = PACE) -> int:
    """Run a service until it is told to stop; return the exit code.

    Args:
        arguments: in the place of those of the command line.
        pace: when a keeper hands over, and a grapher merges.
    """
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.parent is not None:
        die_with(args.parent)
    if args.role != "visor" and args.visor is None:
        parser.error(f"a {args.role} needs --visor HOST:PORT")
    if args.role != "player" and args.directory is None:
        parser.error(f"a {args.role} needs --directory")
    streams.prepare()
    keep_buffers()
    try:
        log = LogFile(args.log, args.log_bytes, args.logs_kept) if args.log else logging.StreamHandler()
    except OSError as error:
        parser.error(f"{args.log}: it cannot be logged there: {error.strerror}")
    logging.basicConfig(
        handlers=[log], level=args.log_level, format=f"%(asctime)s {args.role} %(levelname)s %(message)s"
    )
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        asyncio.run(_serve(args, pace))
    except (ChronoLogError, OSError) as error:
        streams.complain(f"{parser.prog}: {error}")
        return USAGE
    return 0


def parse_address(text: str) -> Address:
    """Return the address that HOST:PORT or [HOST]:PORT means.

    Raises:
        ArgumentTypeError: it means none.
    """
    try:
        return Address.of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


async def _serve(args: argparse.Namespace, pace: Pace) -> None:
    tokens = TokenFile(args.tokens)
    tls = None if args.tls is None else ServiceTls(args.tls)
    identity = Identity(SERVICE_NAME, tokens[SERVICE_NAME], "" if tls is None else tls.certificate)
    server = Server(_service(args, identity, pace), tokens, tls)
    address = await server.listen(args.host, args.port)
    print(f"{args.role} listening on {address}", flush=True)  # noqa: T201  whoever started it waits for this line
    await server.run()


def _service(args: argparse.Namespace, identity: Identity, pace: Pace) -> Service:
    match args.role:
        case "visor":
            from chronolog_hpc.services.visor import Visor

            return Visor(args.directory, identity, args.grace)
        case "player":
            from chronolog_hpc.services.player import Player

            return Player(args.node, args.visor, identity)
        case "grapher":
            from chronolog_hpc.services.grapher import Grapher

            return Grapher(args.directory, args.node, args.visor, identity, pace)
        case _:
            from chronolog_hpc.services.keeper import Keeper

            return Keeper(args.directory, args.node, args.visor, identity, pace)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m chronolog_hpc.services", description="Run one service.")
    parser.add_argument("role", choices=ROLES)
    parser.add_argument(
        "--directory", type=Path, help="of the store of a visor, grapher or keeper; made if missing"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at, by which others reach it (%(default)s)"
    )
    parser.add_argument("--port", type=int, default=0, help="0 for any that is free (%(default)s)")
    parser.add_argument("--tokens", type=Path, required=True, help="file of names and secrets, mode 0600")
    parser.add_argument(
        "--tls", type=Path, metavar="FILE", help="its certificate and key in PEM; without it there is no TLS"
    )
    parser.add_argument("--visor", type=parse_address, metavar="HOST:PORT", help="where the visor listens")
    parser.add_argument(
        "--node", default=socket.gethostname(), help="name of the machine, for its keeper (%(default)s)"
    )
    parser.add_argument(
        "--grace",
        type=float,
        default=GRACE_S,
        metavar="SECONDS",
        help="how long an acquisition outlives its connection (%(default)s)",
    )
    parser.add_argument(
        "--parent", type=int, metavar="PID", help="of the process that starts this one: die with it"
    )
    parser.add_argument("--log", type=Path, metavar="FILE", help="log there, not to standard error")
    parser.add_argument(
        "--log-bytes",
        type=int,
        default=Log().size_bytes,
        help="beyond that FILE becomes FILE.1 (%(default)s)",
    )
    parser.add_argument(
        "--logs-kept", type=int, default=Log().kept, help="so many old files are kept (%(default)s)"
    )
    parser.add_argument("--log-level", default="INFO", help="DEBUG, INFO, WARNING or ERROR (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
