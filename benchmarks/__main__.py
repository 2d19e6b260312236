"""The command line: ``python -m benchmarks bench | kernels | plot | report``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.kernels.occupancy import ARCHITECTURES, MULTIPROCESSORS
from lossops.verify import command_line, machine
from lossops.verify.command_line import add_json, add_losses, command, deliver, wanted_losses
from lossops.verify.progress import progress

_RESULTS = Path("benchmarks/results")
_EPILOG = """\
start with:
  python -m benchmarks bench --quick   a first look at speed
  python -m benchmarks kernels         what the GPU kernels compile to

exit status: 0 all well, 1 a check failed or something needed is missing, 2 usage"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status."""
    description = "Speed of the losses, what their kernels compile to, and pictures."
    commands = (_add_bench, _add_kernels, _add_plot, _add_report)
    return command_line.run("benchmarks", description, _EPILOG, commands, arguments)


def _add_bench(commands) -> None:
    parser = command(
        commands, "bench", _bench, "how fast, how small, how exact beside torch?",
        "Measures each loss beside torch eager, torch.compile and the floor, a torch.add or mul\n"
        "that moves the same bytes: training steps with the allocator as it comes and with memory\n"
        "kept warm, bfloat16, tiny tensors, peak memory, accuracy. Contenders take turns, numbers\n"
        "are medians, targets stand beside them. Nothing here is a pass or a failure: a missed\n"
        "target does not change the exit status.",
        "  python -m benchmarks bench                  about nine minutes on two cores\n"
        "  python -m benchmarks bench --quick --loss mse_loss\n"
        "  python -m benchmarks bench --part step --part tiny\n"
        "  python -m benchmarks bench --save           to benchmarks/results/<machine>/<date>.json",
    )  # fmt: skip
    add_losses(parser)
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
    add_json(parser)


def _bench(options: argparse.Namespace) -> int:
    from benchmarks.bench import families as bench

    families, parts = wanted_losses(options), options.part or bench.PARTS
    with progress("measuring", bench.pieces(families, parts)) as advance:
        found = bench.bench(families, advance, options.quick, parts)
    result = machine.stamp() | {"quick": options.quick} | found
    if not found["bench"]:
        print(
            "lossops: nothing was measured: no such part, or losses without kernels",
            file=sys.stderr,
        )
    deliver(result, bench.tables(found), options.json)
    if options.save:
        print(f"saved {machine.save(result, options.out)}", file=sys.stderr)
    return 0


def _add_kernels(commands) -> None:
    parser = command(
        commands, "kernels", _kernels, "what compilers make of the GPU kernels; no GPU needed",
        "Compiles the CUDA kernels of a checkout with nvcc, and the Triton kernels, and shows the\n"
        "registers, shared memory, spills, occupancy and widths of memory accesses of each. A\n"
        "kernel that spills registers, or one of the main paths that does not move 16 bytes at a\n"
        "time, is a problem, and the exit status is 1 then. Takes minutes the first time, and\n"
        "seconds for as long as no kernel changes.",
        "  python -m benchmarks kernels\n"
        "  python -m benchmarks kernels --arch 90 --loss huber_loss --all\n"
        "  python -m benchmarks kernels --json kernels.json",
    )  # fmt: skip
    add_losses(parser)
    parser.add_argument(
        "--arch",
        action="append",
        choices=tuple(MULTIPROCESSORS),
        help="compile for this architecture only; may be given several times "
        f"(default: {', '.join(ARCHITECTURES)})",
    )
    parser.add_argument("--all", action="store_true", help="a row for each kernel of each loss")
    add_json(parser)


def _kernels(options: argparse.Namespace) -> int:
    from benchmarks.kernels import survey as kernels
    from benchmarks.kernels import tables as kernel_tables
    from benchmarks.kernels import triton as kernels_triton

    architectures = tuple(dict.fromkeys(options.arch or ARCHITECTURES))
    wanted, rows, vectors, _ = wanted_losses(options)
    over_rows = (
        kernels.of_rows(rows) + kernels.of_vectors(vectors)
        if options.loss
        else kernels_triton.OVER_ROWS
    )
    result = kernels.survey(architectures, wanted, over_rows, progress)
    deliver(result, kernel_tables.tables(result, options.all), options.json)
    for engine, reason in result["missing"].items():
        print(f"lossops: no {kernel_tables.TITLES[engine]}: {reason}", file=sys.stderr)
    for problem in result["problems"]:
        print(f"FAIL {problem}", file=sys.stderr)
    return 0 if result["kernels"] and not result["problems"] else 1


def _add_plot(commands) -> None:
    parser = command(
        commands, "plot", _plot, "draw the losses and their derivatives",
        "Draws the regression losses with their first and second derivatives, and classification\n"
        "losses for hard and for soft labels, as computed by lossops' own kernels, into PNG files.",
        "  python -m benchmarks plot\n  python -m benchmarks plot --out pictures",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("plots"), help="folder (default: plots)")


def _plot(options: argparse.Namespace) -> int:
    from benchmarks.claims import classification_plots, plots

    drawn = plots.draw_losses(options.out) + classification_plots.draw_losses(options.out)
    for file, caption in drawn:
        print(f"{options.out / file}  {caption}")
    return 0


def _add_report(commands) -> None:
    parser = command(
        commands, "report", _report, "train, verify, measure and draw; one page about it all",
        "Trains on real data with each loss, verifies, measures, draws, and writes index.html,\n"
        "its pictures and report.json into a folder. Takes about twelve minutes.",
        "  python -m benchmarks report\n  python -m benchmarks report --out /tmp/report --quick",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder (default: report)")
    parser.add_argument("--quick", action="store_true", help="small everything: to try it out")


def _report(options: argparse.Namespace) -> int:
    from benchmarks.claims import report as build

    result = build.build(options.out, options.quick)
    seconds = ", ".join(f"{part} {s:.0f} s" for part, s in result["seconds"].items())
    print(f"{options.out / 'index.html'} ({seconds})")
    return 0 if result["verify"]["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
