"""The command line of benchmarks/gpu.sh."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.part import ROOT
from benchmarks.gpu.run import PARTS, Options, Part, environment, run


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 success, 1 something failed or is missing, 2 usage error."""
    parser = _parser()
    given = parser.parse_args(arguments)
    out = (given.caller / given.out).absolute()
    options = Options(out, given.dry, given.again, tuple(given.tests))
    missing = [] if options.dry else _missing()
    if missing:
        print("There is no GPU to run on:" if len(missing) == 1 else "Missing:", file=sys.stderr)
        for line in missing:
            print(f"  {line}", file=sys.stderr)
        print(
            "PYTHON=… chooses a Python that has torch with CUDA; --dry tries everything without a "
            "GPU.",
            file=sys.stderr,
        )
        return 1
    signal.signal(signal.SIGTERM, _interrupt)
    return run(given.parts, options)


def _interrupt(*_) -> None:
    raise KeyboardInterrupt  # ends the running part


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bash benchmarks/gpu.sh",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Builds, tests, checks and measures lossops on this machine's GPU, in less\n"
        "than nine minutes. Nothing is downloaded.",
        epilog="""\
parts:
  build         compiles the extension
  tests_native  the tests on the device, by the CUDA C++ kernels
  tests_triton  the tests on the device, by the Triton kernels
  sanitizer     memcheck, racecheck, initcheck and synccheck over every kernel
  measure       time, bandwidth and memory beside torch eager, torch.compile and, where they are
                installed, other libraries

A part that has finished is not run again, unless the sources changed or --again says so; one that
ran out of time is. OUT_DIR gets a file per part, result.json with all of it, and run.log. Results
of a GPU are also kept in benchmarks/results, and shown in benchmarks/README.md.

exit status: 0 all well, 1 a part failed or a GPU is missing, 2 usage

examples:
  bash benchmarks/gpu.sh build/gpu
  PYTHON=python3.12 bash benchmarks/gpu.sh /tmp/gpu --parts build,measure
  bash benchmarks/gpu.sh /tmp/dry --dry
""",
    )
    parser.add_argument("out", type=Path, metavar="OUT_DIR", help="where everything goes")
    parser.add_argument(
        "--from", dest="caller", type=Path, default=Path.cwd(), help=argparse.SUPPRESS
    )
    parser.add_argument(
        "--dry",
        action="store_true",
        help="the same code on the CPU with tiny tensors: to try it out, not to measure",
    )
    parser.add_argument(
        "--parts",
        type=_parts,
        default=PARTS,
        metavar="A,B",
        help="these only, separated by commas (default: all)",
    )
    parser.add_argument("--again", action="store_true", help="also what has finished before")
    parser.add_argument(
        "--tests", nargs="+", default=(), metavar="TEST", help="instead of all (default: tests)"
    )
    return parser


def _parts(text: str) -> tuple[Part, ...]:
    names = [part.name for part in PARTS]
    for name in text.split(","):
        if name not in names:
            raise argparse.ArgumentTypeError(f"no part {name!r}; there are {', '.join(names)}")
    return tuple(part for part in PARTS if part.name in text.split(","))


def _missing() -> list[str]:
    """What is missing. Checked in another process, so that this one holds no GPU memory during the
    measurements."""
    command = [sys.executable, "-m", "benchmarks.gpu.machine"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment())
    if done.returncode:
        return [f"torch cannot be used: {done.stderr.strip()[-500:]}"]
    return json.loads(done.stdout.splitlines()[-1])["missing"]


if __name__ == "__main__":
    sys.exit(main())
