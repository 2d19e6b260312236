"""Claims about the regression losses, each tested by a measurement."""

from __future__ import annotations

import math
import operator
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.claims.curves import differentiability, plain
from lossops.verify.tables import Table, number, verdict

Row = dict[str, Any]
ROBUST = ("l1_loss", "huber_loss", "log_cosh_loss")


@dataclass(frozen=True)
class Finding:
    """A claim, how it was tested, and the result."""

    claim: str
    test: str
    measured: str
    confirmed: bool


def findings(training: list[Row], convergence: list[Row]) -> list[dict[str, Any]]:
    """Tests all claims about the regression losses."""
    by_loss = {row["loss"]: row for row in training}
    steps = {row["loss"]: [n or math.inf for n in row["steps"]] for row in convergence}
    return [
        asdict(finding)
        for finding in (
            _more_sensitive(by_loss),
            *(_robust(by_loss, loss) for loss in ROBUST),
            _alike(by_loss),
            _faster(steps, "MSE converges faster than L1", "mse_loss", "l1_loss", 1.0),
            _slowest(steps),
            _faster(steps, "Huber is fast like MSE", "huber_loss", "mse_loss", 1.25),
            _faster(steps, "log-cosh is fast like MSE", "log_cosh_loss", "mse_loss", 1.25),
            *_smoothness(),
        )
    ]


def _rise(row: Row) -> list[float]:
    """How much corrupted labels raise the test error, for each seed."""
    return list(map(operator.sub, row["corrupted"]["mae"], row["clean"]["mae"]))


def margin(ours: list[float], theirs: list[float]) -> tuple[float, float]:
    """The mean difference and its standard error, in a paired comparison: both losses saw the same
    splits and the same wrong labels."""
    values = list(map(operator.sub, ours, theirs))
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return statistics.fmean(values), error


def _more_sensitive(rows: dict[str, Row]) -> Finding:
    rises = _rise(rows["mse_loss"])
    mean, error = min(margin(rises, _rise(rows[loss])) for loss in ROBUST)
    rise = statistics.fmean(rises)
    return Finding(
        "MSE is more sensitive to outliers",
        "its test error rises by more than that of L1, Huber and log-cosh (by two standard errors)",
        f"+{rise:.1f} MAE, {mean:.1f} ± {error:.1f} more than the nearest of them",
        mean > 2 * error,
    )


def _robust(rows: dict[str, Row], loss: str) -> Finding:
    clean = statistics.fmean(rows[loss]["clean"]["mae"])
    corrupted = statistics.fmean(rows[loss]["corrupted"]["mae"])
    return Finding(
        f"{plain(loss)} is robust to outliers",
        "10% of the training labels ten times too large raise its test error by less than a tenth",
        f"MAE {clean:.1f} → {corrupted:.1f}, {100 * (corrupted / clean - 1):+.0f}%",
        corrupted < 1.1 * clean,
    )


def _alike(rows: dict[str, Row]) -> Finding:
    differences = [
        abs(statistics.fmean(rows["huber_loss"][y]["mae"]) /
            statistics.fmean(rows["log_cosh_loss"][y]["mae"]) - 1)
        for y in ("clean", "corrupted")
    ]  # fmt: skip
    return Finding(
        "log-cosh is like Huber",
        "their test errors differ by less than 5%, with true and with corrupted labels",
        f"{100 * differences[0]:.1f}% and {100 * differences[1]:.1f}%",
        max(differences) < 0.05,
    )


WITHIN = "to within 1%, 0.1% and 0.01% of the minimum"


def _faster(
    steps: dict[str, list[float]], claim: str, fast: str, slow: str, allowed: float
) -> Finding:
    goal = "in fewer steps than" if allowed == 1 else f"in at most {allowed:g} times the steps of"
    test = f"gradient descent, each at its best rate, arrives {goal} {plain(slow)}, {WITHIN}"
    return faster(claim, test, zip(steps[fast], steps[slow], strict=True), allowed)


def faster(claim: str, test: str, pairs: Iterable[tuple[float, float]], allowed=1.0) -> Finding:
    """A claim about numbers of steps, which is confirmed only if it holds for every goal."""
    pairs = list(pairs)
    return Finding(
        claim,
        test,
        "; ".join(f"{_steps(fast)} steps to {_steps(slow)}" for fast, slow in pairs),
        all(fast < slow if allowed == 1 else fast <= allowed * slow for fast, slow in pairs),
    )


def _steps(count: float) -> str:
    return "too many" if math.isinf(count) else f"{count:g}"


def _slowest(steps: dict[str, list[float]]) -> Finding:
    others = [steps[loss] for loss in ("mse_loss", "huber_loss", "log_cosh_loss")]
    pairs = [(n, rest) for n, *rest in zip(steps["l1_loss"], *others, strict=True)]
    return Finding(
        "L1 converges more slowly",
        f"than each of MSE, Huber and log-cosh, {WITHIN}",
        "; ".join(f"{_steps(n)} steps to {', '.join(map(_steps, rest))}" for n, rest in pairs),
        all(n > max(rest) for n, rest in pairs),
    )


def _smoothness() -> list[Finding]:
    claimed = {
        "l1_loss": (0, "is not differentiable at 0"),
        "huber_loss": (1, "is differentiable once everywhere"),
        "log_cosh_loss": (2, "is differentiable twice everywhere"),
    }
    jumps = {row["loss"]: row for row in differentiability()}
    made = []
    for loss, (times, words) in claimed.items():
        first, second = jumps[loss]["jumps"][1:]
        made.append(
            Finding(
                f"{plain(loss)} {words}",
                "derivatives by the kernels, on both sides of every kink",
                f"first jumps by {number(first, 1)}, second by {number(second, 1)}",
                jumps[loss]["times"] == times,
            )
        )
    return made


def tables(training: list[Row], convergence: list[Row]) -> list[Table]:
    """A table of the test errors, which decide some of the claims."""
    seeds = len(training[0]["clean"]["mae"])
    errors = Table(
        "Test error on the diabetes set, mean ± standard deviation",
        ("loss", "clean MAE", "clean RMSE", "corrupted MAE", "corrupted RMSE", "rise of MAE",
         "steps to converge"),
        note=f"A linear model on {seeds} random splits, the same for every loss, in the units of "
        "the target. Corrupted: 10% of the training labels are ten times too large; the test "
        "labels are always true. Steps: of gradient descent at the best of 17 rates, to within "
        "1%, 0.1% and 0.01% of the least training loss.",
    )  # fmt: skip
    steps = {row["loss"]: row["steps"] for row in convergence}
    for row in training:
        clean, corrupted = (statistics.fmean(row[y]["mae"]) for y in ("clean", "corrupted"))
        cells = [
            f"{statistics.fmean(v):.1f} ± {statistics.pstdev(v):.1f}"
            for y in ("clean", "corrupted")
            for v in (row[y]["mae"], row[y]["rmse"])
        ]
        taken = ", ".join(number(n, 0) for n in steps.get(row["loss"], [None]))
        errors.add(plain(row["loss"]), *cells, f"{100 * (corrupted / clean - 1):+.0f}%", taken)
    return [errors]


def table(found: list[Row]) -> Table:
    """A table of the claims and their outcomes."""
    claims = Table(
        "What is claimed of the losses", ("claim", "test", "measured", "outcome"), labels=4
    )
    for row in found:
        outcome = verdict(row["confirmed"], "confirmed", "not confirmed")
        claims.add(row["claim"], row["test"], row["measured"], outcome)
    return claims
