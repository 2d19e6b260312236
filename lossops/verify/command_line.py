"""Code shared by the commands of ``python -m lossops`` and ``python -m benchmarks``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lossops.specs import FAMILIES, LOSSES
from lossops.verify import MissingExtraError, machine
from lossops.verify.tables import Table, show


def run(name: str, description: str, epilog: str, add: Sequence[Callable], arguments=None) -> int:
    """Runs one of the commands that the functions in ``add`` add to a parser. Returns the exit
    status."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {name}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=description,
        epilog=epilog,
    )
    commands = parser.add_subparsers(title="commands", metavar="command")
    for one in add:
        one(commands)
    options = parser.parse_args(arguments)
    if not hasattr(options, "run"):
        parser.print_help()
        return 2
    try:
        return options.run(options)
    except MissingExtraError as error:
        print(f"lossops: {error}", file=sys.stderr)
        return 1


def command(commands, name: str, run, summary: str, description: str, examples: str):
    parser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write the result as JSON, to FILE or else to standard output instead of tables",
    )


def add_losses(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--loss",
        action="append",
        choices=[row.name for row in LOSSES],
        help="this loss only; may be given several times (default: all)",
    )


def wanted_losses(options: argparse.Namespace) -> tuple[tuple, tuple, tuple, tuple]:
    """The requested losses: elementwise, over rows of class scores, over rows of vectors, and the
    others, which have no kernels and are not measured."""
    if not options.loss:
        return FAMILIES
    return tuple(tuple(row for row in family if row.name in options.loss) for family in FAMILIES)


def deliver(result: Any, tables: list[Table], destination: str | None) -> None:
    """Prints the tables, or JSON if ``destination`` is "-". Any other destination is a file that
    the JSON is written to as well."""
    if destination == "-":
        print(json.dumps(result, indent=1, default=str))
        return
    for table in tables:
        show(table)
    if destination:
        machine.write(result, Path(destination))
