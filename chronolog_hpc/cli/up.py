"""`chronolog up`: a deployment as a command."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chronolog_hpc.cli.arguments import seconds, whole_number

if TYPE_CHECKING:
    from chronolog_hpc.cli.outcome import Job

DEFAULT_DIRECTORY = "chronolog_deployment"
ROLES = ("visor", "grapher", "keeper", "player")

_DESCRIPTION = """\
Start a ChronoLog deployment: a ChronoVisor, a ChronoGrapher, a ChronoKeeper and a ChronoPlayer, and look after them
until Ctrl-C, SIGTERM or "chronolog down". Programs written for ChronoLog use it unchanged; CHRONOLOG_TOKEN_FILE tells
them DIR/run/tokens. Under mpiexec or srun it spans the nodes of the job: visor, grapher and player run on the
first rank's node, and a keeper on each."""

_EPILOG = """\
exit codes: 0 ended as asked, 1 failed, 2 cannot be done as asked"""


def register(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the parser of this command."""
    parser = commands.add_parser(
        "up",
        help="start a deployment over the network",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_directory(parser)
    parser.add_argument(
        "--config", metavar="FILE", type=os.path.expanduser,
        help="a JSON configuration file of ChronoLog (docs/operations.md)",
    )  # fmt: skip
    parser.add_argument(
        "--host", metavar="ADDRESS",
        help="address or name to listen at, or network interface, such as eth0: needed over several nodes, each of "
        "which listens at its own address on it (default: what FILE says, or 127.0.0.1)",
    )  # fmt: skip
    parser.add_argument(
        "--port", metavar="P", type=whole_number(0, 65535),
        help="of the visor; 0 for any that is free (default: what FILE says, or 5555)",
    )  # fmt: skip
    parser.add_argument(
        "--query-port", metavar="P", type=whole_number(0, 65535),
        help="of the player; 0 for any that is free (default: what FILE says, or 5557)",
    )  # fmt: skip
    parser.add_argument(
        "--insecure-network", action="store_true",
        help="accept an address that others can reach without TLS, so that they can read all events",
    )  # fmt: skip
    parser.add_argument(
        "--tls", action="store_true",
        help="speak TLS, with a certificate in DIR/run that openssl makes if there is none; programs need "
        "CHRONOLOG_CERTIFICATE then",
    )  # fmt: skip
    parser.add_argument(
        "--tls-certificate", metavar="FILE", type=os.path.expanduser,
        help="speak TLS with this certificate, in PEM, which is copied to DIR/run with its key",
    )  # fmt: skip
    parser.add_argument(
        "--tls-key", metavar="FILE", type=os.path.expanduser, help="its key, in PEM, without a passphrase"
    )  # fmt: skip
    parser.add_argument(
        "--drain", metavar="S", type=seconds, default=0.0,
        help="at the end ship first what this user's programs have left on each node, and wait for those that live, for so "
        "long (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--metrics-port", metavar="P", type=whole_number(0, 65535),
        help="serve metrics for Prometheus there, on loopback of each node; 0 for any that is free (default: none)",
    )  # fmt: skip
    parser.add_argument(
        "--background", action="store_true", help="return when everything is ready, and leave it running"
    )
    parser.add_argument("--role", choices=ROLES, help="run this role only; the others find the visor in DIR")
    parser.set_defaults(parser=parser, prepare=prepare)


def add_directory(parser: argparse.ArgumentParser) -> None:
    """Add the option that names a deployment."""
    parser.add_argument(
        "--directory", metavar="DIR", type=os.path.expanduser, default=DEFAULT_DIRECTORY,
        help="of the deployment (default: ./%(default)s)",
    )  # fmt: skip


def prepare(args: argparse.Namespace) -> Job:
    """Return the deployment that was asked for."""
    from chronolog_hpc.services.certificate import Given
    from chronolog_hpc.services.launching import Wishes, launch

    if (args.tls_certificate is None) != (args.tls_key is None):
        args.parser.error("--tls-certificate and --tls-key go together: give both, or --tls alone")
    given = None if args.tls_key is None else Given(Path(args.tls_certificate), Path(args.tls_key))
    wishes = Wishes(
        directory=args.directory,
        configuration=args.config,
        host=args.host,
        port=args.port,
        query_port=args.query_port,
        insecure_network=args.insecure_network,
        tls=args.tls,
        certificate=given,
        drain_s=args.drain,
        metrics_port=args.metrics_port,
        background=args.background,
        role=args.role,
    )
    return lambda comm: launch(wishes, comm)
