"""Runs the fuzzer. If a call fails, prints how to repeat it and exits with 1."""

from __future__ import annotations

import argparse
import secrets
import sys
import time


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--first", type=int, default=0, help="the number of the first call")
    parser.add_argument("--seconds", type=float, default=None, help="stop after so long")
    parser.add_argument("--what", default="all", choices=("all", "raw", "public"))
    parser.add_argument("--namespace", default="lossops", help="of the raw ops: lossops_triton")
    parser.add_argument("--path", help="where to import lossops from")
    parser.add_argument("--failures", type=int, default=1, help="stop after so many")
    parser.add_argument("--show", action="store_true", help="print each call before it is made")
    options = parser.parse_args()
    if options.path:
        sys.path.insert(0, options.path)
    from .run import run

    seed = secrets.randbits(31) if options.seed is None else options.seed
    begin = time.monotonic()
    counts = run(seed, **{k: v for k, v in vars(options).items() if k not in ("seed", "path")})
    print(f"seed {seed}: {counts} in {time.monotonic() - begin:.0f} s", flush=True)
    return int(counts.wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
