"""The command line: ``python -m lossops info | verify | bench | kernels | plot | report``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lossops
from lossops.report import MissingExtraError, machine
from lossops.report.occupancy import ARCHITECTURES, MULTIPROCESSORS
from lossops.report.others_verify import OTHERS
from lossops.report.progress import progress
from lossops.report.tables import Table, show
from lossops.specs.elementwise import SPECS
from lossops.specs.softmax import ROW_SPECS
from lossops.specs.vectors import VECTOR_SPECS

_RESULTS = Path("benchmarks/results")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not hasattr(options, "run"):
        parser.print_help()
        return 2
    try:
        return options.run(options)
    except MissingExtraError as error:
        print(f"lossops: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lossops",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Losses for PyTorch as one fused kernel pass: loss and gradient together.",
        epilog=(
            "start with:\n"
            "  python -m lossops info               what is installed, and what can run here\n"
            "  python -m lossops verify             is every loss right on this machine?\n"
            "  python -m lossops bench --quick      a first look at speed\n"
            "  python -m lossops kernels            what the GPU kernels compile to\n\n"
            "exit status: 0 all well, 1 a check failed or something needed is missing, 2 usage"
        ),
    )
    commands = parser.add_subparsers(title="commands", metavar="command")
    _add_info(commands)
    _add_verify(commands)
    _add_bench(commands)
    _add_kernels(commands)
    _add_plot(commands)
    _add_report(commands)
    return parser


def _command(commands, name: str, run, summary: str, description: str, examples: str):
    parser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write the result as JSON, to FILE or else to standard output instead of tables",
    )


def _add_losses(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--loss",
        action="append",
        choices=[row.name for row in (*SPECS, *ROW_SPECS, *VECTOR_SPECS, *OTHERS)],
        help="this loss only; may be given several times (default: all)",
    )


def _wanted(options: argparse.Namespace) -> tuple[tuple, tuple, tuple, tuple]:
    """Elementwise losses, losses over rows of class scores, over rows of vectors, and the others,
    which have no kernels and are not measured."""
    families = (SPECS, ROW_SPECS, VECTOR_SPECS, OTHERS)
    if not options.loss:
        return families
    return tuple(tuple(row for row in family if row.name in options.loss) for family in families)


def _deliver(result: Any, tables: list[Table], destination: str | None) -> None:
    """As tables, or as JSON where a machine reads."""
    if destination == "-":
        print(json.dumps(result, indent=1, default=str))
        return
    for table in tables:
        show(table)
    if destination:
        machine.write(result, Path(destination))


def _add_info(commands) -> None:
    parser = _command(
        commands, "info", _info, "what is installed and what can run here",
        "Versions, processor, how the compiled kernels were built, and which backends run on which "
        "device.\nLook here first when a loss is slower than expected: the reference backend means "
        "that the\ncompiled kernels are missing, and why.",
        "  python -m lossops info\n  python -m lossops info --json",
    )  # fmt: skip
    _add_json(parser)


def _info(options: argparse.Namespace) -> int:
    facts = lossops.info()
    table = Table("lossops", ("what", "is"), labels=2)
    for key, value in _flat(facts):
        table.add(key, value)
    _deliver(facts, [table], options.json)
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
    parser = _command(
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
    _add_losses(parser)
    parser.add_argument("--full", action="store_true", help="ten million values: minutes")
    parser.add_argument("--seed", type=int, default=0, help="of the random values (default: 0)")
    _add_json(parser)


def _verify(options: argparse.Namespace) -> int:
    from lossops.report import verify_all

    families = _wanted(options)
    with progress("verifying", verify_all.pieces(families)) as advance:
        result = verify_all.verify_families(families, advance, options.full, options.seed)
    tables, failures = verify_all.tables(result), verify_all.failures(result)
    _deliver(machine.stamp() | result, [table for table in tables if table.rows], options.json)
    for failure in failures:
        print(f"FAIL {failure}", file=sys.stderr)
    return 0 if result["passed"] else 1


def _add_bench(commands) -> None:
    parser = _command(
        commands, "bench", _bench, "how fast, how small, how exact beside torch?",
        "Measures each loss beside torch eager, torch.compile and the floor, a torch.add or mul\n"
        "that moves the same bytes: training steps with the allocator as it comes and with memory\n"
        "kept warm, bfloat16, tiny tensors, peak memory, accuracy. Contenders take turns, numbers\n"
        "are medians, targets stand beside them. Nothing here is a pass or a failure: a missed\n"
        "target does not change the exit status.",
        "  python -m lossops bench                  about nine minutes on two cores\n"
        "  python -m lossops bench --quick --loss mse_loss\n"
        "  python -m lossops bench --part step --part tiny\n"
        "  python -m lossops bench --save           to benchmarks/results/<machine>/<date>.json",
    )  # fmt: skip
    _add_losses(parser)
    parser.add_argument(
        "--part",
        action="append",
        choices=("step", "half", "tiny", "memory", "accuracy"),
        help="measure this only; may be given several times (default: all)",
    )
    parser.add_argument("--quick", action="store_true", help="small tensors: to try it out")
    parser.add_argument("--save", action="store_true", help="write a result file per machine")
    parser.add_argument(
        "--out", type=Path, default=_RESULTS, help=f"the folder for --save (default: {_RESULTS})"
    )
    _add_json(parser)


def _bench(options: argparse.Namespace) -> int:
    from lossops.report import bench, bench_all

    families, parts = _wanted(options), options.part or bench.PARTS
    with progress("measuring", bench_all.pieces(families, parts)) as advance:
        found = bench_all.bench_families(families, advance, options.quick, parts)
    result = machine.stamp() | {"quick": options.quick} | found
    if not found["bench"]:
        print(
            "lossops: nothing was measured: no such part, or losses without kernels",
            file=sys.stderr,
        )
    _deliver(result, bench_all.tables(found), options.json)
    if options.save:
        print(f"saved {machine.save(result, options.out)}", file=sys.stderr)
    return 0


def _add_kernels(commands) -> None:
    parser = _command(
        commands, "kernels", _kernels, "what compilers make of the GPU kernels; no GPU needed",
        "Compiles the CUDA kernels of a checkout with nvcc, and the Triton kernels, and shows the\n"
        "registers, shared memory, spills, occupancy and widths of memory accesses of each. A\n"
        "kernel that spills registers, or one of the main paths that does not move 16 bytes at a\n"
        "time, is a problem, and the exit status is 1 then. Takes minutes the first time, and\n"
        "seconds for as long as no kernel changes.",
        "  python -m lossops kernels\n"
        "  python -m lossops kernels --arch 90 --loss huber_loss --all\n"
        "  python -m lossops kernels --json kernels.json",
    )  # fmt: skip
    _add_losses(parser)
    parser.add_argument(
        "--arch",
        action="append",
        choices=tuple(MULTIPROCESSORS),
        help="compile for this architecture only; may be given several times "
        f"(default: {', '.join(ARCHITECTURES)})",
    )
    parser.add_argument("--all", action="store_true", help="a row for each kernel of each loss")
    _add_json(parser)


def _kernels(options: argparse.Namespace) -> int:
    from lossops.report import kernel_tables, kernels, kernels_triton

    architectures = tuple(dict.fromkeys(options.arch or ARCHITECTURES))
    wanted, rows, vectors, _ = _wanted(options)
    over_rows = (
        kernels.of_rows(rows) + kernels.of_vectors(vectors)
        if options.loss
        else kernels_triton.OVER_ROWS
    )
    result = kernels.survey(architectures, wanted, over_rows, progress)
    _deliver(result, kernel_tables.tables(result, options.all), options.json)
    for engine, reason in result["missing"].items():
        print(f"lossops: no {kernel_tables.TITLES[engine]}: {reason}", file=sys.stderr)
    for problem in result["problems"]:
        print(f"FAIL {problem}", file=sys.stderr)
    return 0 if result["kernels"] and not result["problems"] else 1


def _add_plot(commands) -> None:
    parser = _command(
        commands, "plot", _plot, "draw the losses and their derivatives",
        "Draws the regression losses with their first and second derivatives, and classification\n"
        "losses for hard and for soft labels, as computed by lossops' own kernels, into PNG files.",
        "  python -m lossops plot\n  python -m lossops plot --out pictures",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("plots"), help="folder (default: plots)")


def _plot(options: argparse.Namespace) -> int:
    from lossops.report import classification_plots, plots

    drawn = plots.draw_losses(options.out) + classification_plots.draw_losses(options.out)
    for file, caption in drawn:
        print(f"{options.out / file}  {caption}")
    return 0


def _add_report(commands) -> None:
    parser = _command(
        commands, "report", _report, "train, verify, measure and draw; one page about it all",
        "Trains on real data with each loss, verifies, measures, draws, and writes index.html,\n"
        "its pictures and report.json into a folder. Takes about twelve minutes.",
        "  python -m lossops report\n  python -m lossops report --out /tmp/report --quick",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder (default: report)")
    parser.add_argument("--quick", action="store_true", help="small everything: to try it out")


def _report(options: argparse.Namespace) -> int:
    from lossops.report import build

    result = build.build(options.out, options.quick)
    seconds = ", ".join(f"{part} {s:.0f} s" for part, s in result["seconds"].items())
    print(f"{options.out / 'index.html'} ({seconds})")
    return 0 if result["verify"]["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
