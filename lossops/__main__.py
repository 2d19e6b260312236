"""The command line: ``python -m lossops info | verify``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import lossops
from lossops.verify import command_line, machine
from lossops.verify.command_line import add_json, add_losses, command, deliver, wanted_losses
from lossops.verify.progress import progress
from lossops.verify.tables import Table

_EPILOG = """\
start with:
  python -m lossops info               what is installed, and what can run here
  python -m lossops verify             is every loss right on this machine?

exit status: 0 all well, 1 a check failed or something needed is missing, 2 usage"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit status."""
    description = "Losses for PyTorch as one fused kernel pass: loss and gradient together."
    return command_line.run("lossops", description, _EPILOG, (_add_info, _add_verify), arguments)


def _add_info(commands) -> None:
    parser = command(
        commands, "info", _info, "what is installed and what can run here",
        "Versions, processor, how the compiled kernels were built, and which backends run on which "
        "device.\nLook here first when a loss is slower than expected: the reference backend means "
        "that the\ncompiled kernels are missing, and why.",
        "  python -m lossops info\n  python -m lossops info --json",
    )  # fmt: skip
    add_json(parser)


def _info(options: argparse.Namespace) -> int:
    facts = lossops.info()
    table = Table("lossops", ("what", "is"), labels=2)
    for key, value in _flat(facts):
        table.add(key, value)
    deliver(facts, [table], options.json)
    return 0


def _flat(facts: dict[str, Any], above: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, value in facts.items():
        name = f"{above}{key}".replace("_", " ")
        if isinstance(value, dict):
            rows += _flat(value, f"{name}, ")
        elif isinstance(value, list):
            rows.append((name, ", ".join(map(str, value)) or "none"))
        else:
            words = {None: "none", True: "yes", False: "no"}
            known = value is None or isinstance(value, bool)
            rows.append((name, words[value] if known else str(value)))
    return rows


def _add_verify(commands) -> None:
    parser = command(
        commands, "verify", _verify, "is every loss right, on every backend here?",
        "Holds each loss, on each backend and device of this machine, against a more exact truth:\n"
        "value and gradient in four dtypes over ordinary and adversarial numbers, reductions,\n"
        "second derivatives, gradcheck and gradgradcheck, and torch's own function. Also proves\n"
        "that the backend that was asked for is the one that ran.",
        "  python -m lossops verify\n"
        "  python -m lossops verify --loss huber_loss --loss log_cosh_loss\n"
        "  python -m lossops verify --full          ten million values per loss and dtype\n"
        "  python -m lossops verify --json verified.json",
    )  # fmt: skip
    add_losses(parser)
    parser.add_argument("--full", action="store_true", help="ten million values: minutes")
    parser.add_argument("--seed", type=int, default=0, help="of the random values (default: 0)")
    add_json(parser)


def _verify(options: argparse.Namespace) -> int:
    from lossops.verify import verifier

    wanted = [row for family in wanted_losses(options) for row in family]
    with progress("verifying", verifier.pieces(wanted)) as advance:
        result = verifier.verify(wanted, advance, options.full, options.seed)
    deliver(machine.stamp() | result, verifier.tables(result), options.json)
    for failure in verifier.failures(result):
        print(f"FAIL {failure}", file=sys.stderr)
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
