"""Plots of the losses, of training, and of the measurements."""

from __future__ import annotations

import contextlib
import itertools
import statistics
from pathlib import Path
from typing import Any

import torch

from benchmarks.claims.curves import Curve, plain
from lossops.specs.elementwise import SPECS
from lossops.verify import optional

# The palette of Okabe and Ito, which is safe for colour-blind readers.
PALETTE = ("#0072B2", "#D55E00", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#000000", "#999999")
COLORS = {spec.name: PALETTE[i % len(PALETTE)] for i, spec in enumerate(SPECS)}
INK, QUIET = "#222222", "#8a8a8a"
WRONG = "corrupted"  # the kind of labels
DPI = 160

_STYLE = {
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.labelcolor": INK,
    "axes.edgecolor": QUIET,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.7,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 2,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
}


@contextlib.contextmanager
def canvas(path: Path, columns: int, title: str, width: float = 4.6, height: float = 3.5):
    """A row of axes under a title, saved as PNG at the end."""
    matplotlib = optional("matplotlib")
    matplotlib.use("Agg")
    pyplot = optional("matplotlib.pyplot")
    with matplotlib.rc_context(_STYLE):
        figure, axes = pyplot.subplots(
            1, columns, figsize=(width * columns, height), squeeze=False, layout="constrained"
        )
        figure.get_layout_engine().set(wspace=0.06)
        figure.suptitle(title, x=0.008, ha="left", fontsize=12.5, fontweight="bold")
        try:
            yield axes[0]
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=DPI)
        finally:
            pyplot.close(figure)


def legend_below(axes: Any, handles: Any = None) -> None:
    """A legend below the figure, where it does not cover the curves."""
    figure = axes.figure
    if handles is None:
        handles, _ = axes.get_legend_handles_labels()
    figure.legend(handles=handles, loc="outside lower left", ncols=min(len(handles), 6))


HUBER_5 = Curve.of("huber_loss", "Huber, δ = 5", delta=5.0)
HUBER_1 = Curve.of("huber_loss", "Huber, δ = 1", delta=1.0)
MSE, L1, LOG_COSH = (Curve.of(name) for name in ("mse_loss", "l1_loss", "log_cosh_loss"))
_DASHES = {HUBER_5.label: (4, 2)}

FOUR = (MSE, L1, HUBER_1, LOG_COSH)
DERIVATIVES = "derivatives"
# name, title, curves, range of the predictions around the truth
PICTURES: tuple[tuple[str, str, tuple[Curve, ...], float], ...] = (
    ("losses", "Four regression losses around the truth Y = 0", FOUR, 4),
    ("mse_l1", "MSE grows with the square of the error, L1 in proportion to it", (MSE, L1), 3),
    ("mse_huber", "Huber bends from a parabola into a line where |d| = δ",
     (MSE, HUBER_1, HUBER_5), 8),
    ("mse_huber_log_cosh", "log-cosh follows Huber, without its seam", (MSE, HUBER_1, LOG_COSH), 4),
    (DERIVATIVES, "Only log-cosh is smooth in both derivatives and bounded in the first", FOUR, 4),
)  # fmt: skip


def draw_losses(folder: Path) -> list[tuple[str, str]]:
    """Plots the regression losses, computed by lossops' own kernels. Returns (file, caption)
    pairs."""
    drawn = []
    for name, title, curves, reach in PICTURES:
        path = folder / f"{name}.png"
        orders = {0: "loss", 1: "derivative"}
        if name == DERIVATIVES:
            orders = {1: "first derivative", 2: "second derivative"}
        with canvas(path, 2, title) as both:
            for axes, (order, what) in zip(both, orders.items(), strict=True):
                _draw(axes, curves, reach, order, what)
            if name == DERIVATIVES:
                both[0].set_ylim(-3, 3)
            legend_below(both[0])
        drawn.append((path.name, f"{title}: {' and '.join(orders.values())}."))
    return drawn


def _draw(axes: Any, curves: tuple[Curve, ...], reach: float, order: int, what: str) -> None:
    for curve in curves:
        for sides in _pieces(curve, reach, order):
            axes.plot(
                sides,
                curve.derivatives(sides)[order],
                color=COLORS[curve.spec.name],
                linewidth=3.6 if curve is L1 and order else 2,  # stays visible under Huber's
                dashes=_DASHES.get(curve.label, (None, None)),
                label=curve.label if sides[0] == -reach else None,
            )
    axes.set_title(what)
    axes.set_xlabel("prediction Ŷ")
    axes.axhline(0, color=QUIET, linewidth=0.7, zorder=0.5)
    if order < 2:
        end = torch.tensor([float(reach)])
        tallest = max(curve.derivatives(end)[order].item() for curve in curves[1:])
        axes.set_ylim(*((-0.05 * tallest, 1.6 * tallest), (-1.9 * tallest, 1.9 * tallest))[order])


def _pieces(curve: Curve, reach: float, order: int) -> list[torch.Tensor]:
    """The range of predictions, split at jumps, so that a jump is not drawn as a steep line."""
    cuts = [-reach, reach]
    if order >= curve.spec.differentiable or (order == 2 and curve.kwargs):
        kinks = curve.spec.kinks({**curve.spec.defaults, **curve.kwargs})
        cuts = [-reach, *(k for k in kinks if abs(k) < reach), reach]
    tiny = 1e-9
    pairs = itertools.pairwise(cuts)
    return [
        torch.linspace(
            a + (tiny if a > -reach else 0), b - (tiny if b < reach else 0), 801,
            dtype=torch.float64,
        )
        for a, b in pairs
    ]  # fmt: skip


def draw_outlier_fit(path: Path, fit: dict[str, Any]) -> tuple[str, str]:
    """Plots the outlier experiment: one curve per loss, fitted to data with some wrong points."""
    off = {name: found["mean_error"] for name, found in fit["fits"].items()}
    title = (
        f"Wrong measurements pull MSE {off['mse_loss']:.2f} off the truth, "
        f"Huber {off['huber_loss']:.2f}, L1 {off['l1_loss']:.2f}"
    )
    wrong = set(fit["wrong"])
    with canvas(path, 1, title, width=8.4, height=4.6) as (axes,):
        for name, indices, style in (
            ("measurement", [i for i in range(len(fit["x"])) if i not in wrong],
             {"color": "#b5b5b5", "marker": "o", "s": 13}),
            ("wrong measurement", sorted(wrong), {"color": INK, "marker": "x", "s": 26, "lw": 1.2}),
        ):  # fmt: skip
            xs, ys = ([fit[k][i] for i in indices] for k in "xy")
            axes.scatter(xs, ys, label=name, **style)
        axes.plot(fit["x"], fit["truth"], color=QUIET, linewidth=1.3, dashes=(2, 2), label="truth")
        for name in ("mse_loss", "l1_loss", "huber_loss", "log_cosh_loss"):
            fitted = fit["fits"][name]
            label = f"{plain(name)}, off by {fitted['mean_error']:.2f}"
            axes.plot(fit["x"], fitted["fit"], color=COLORS[name], label=label)
        axes.set_xlabel("x")
        handles, _ = axes.get_legend_handles_labels()
        axes.figure.legend(handles=handles, loc="outside right center")
    return path.name, f"{title}. One fit per loss; distances are mean distances from the truth."


def draw_training(path: Path, rows: list[dict[str, Any]], every: int) -> tuple[str, str]:
    """Test errors on real data, with true and with corrupted labels."""
    rises = {
        row["loss"]: statistics.fmean(row[WRONG]["mae"]) / statistics.fmean(row["clean"]["mae"]) - 1
        for row in rows
    }
    title = (
        "Real data: 10% wrong labels raise the test error of MSE by "
        f"{100 * rises['mse_loss']:.0f}%, of L1 by {100 * rises['l1_loss']:.0f}%"
    )
    bars = [
        (plain(row["loss"]), COLORS[row["loss"]], row["clean"]["mae"], row[WRONG]["mae"])
        for row in rows
    ]
    curves = [
        (plain(row["loss"]), COLORS[row["loss"]], (3, 2) if row["loss"] in _COINCIDE else None,
         row[WRONG]["mae_by_step"])
        for row in rows
    ]  # fmt: skip
    with mislabeled(path, title, bars, curves, every, "10%", "test error (MAE)") as (left, right):
        left.set_xlim(0)
        right.set_ylim(0)
    return path.name, f"{title}. Diabetes set; means over the splits, bars: standard deviation."


@contextlib.contextmanager
def mislabeled(
    path: Path,
    title: str,
    bars: list[tuple[str, str, list[float], list[float]]],
    curves: list[tuple[str, str, tuple[int, int] | None, list[float]]],
    every: int,
    share: str,
    result: str,
    **size: float,
):
    """Left the means with true labels (open circles) and with wrong ones: name, colour and values
    of each loss. Right the results while training on wrong labels: name, colour, dashes and values
    after every so many steps."""
    with canvas(path, 2, title, **size) as (left, right):
        for place, (_, color, clean, wrong) in enumerate(bars):
            ends = statistics.fmean(clean), statistics.fmean(wrong)
            left.plot(ends, [place, place], color=color, linewidth=1.5, zorder=1)
            spread = statistics.pstdev(wrong)
            left.errorbar(ends[1], place, xerr=spread, color=color, elinewidth=1, zorder=1)
            left.scatter(ends[:1], [place], s=46, facecolor="white", edgecolor=color, linewidth=1.6)
            left.scatter(ends[1:], [place], s=46, color=color)
        left.set_yticks(range(len(bars)), [name for name, *_ in bars])
        left.invert_yaxis()
        left.grid(visible=False, axis="y")
        left.margins(y=0.1)
        left.set_title(f"true labels (open) → {share} wrong labels (filled)")
        left.set_xlabel(result)
        for name, color, dashes, values in curves:
            steps = range(0, every * len(values), every)
            right.plot(steps, values, color=color, dashes=dashes or (None, None), label=name)
        right.set_title("while training on wrong labels")
        right.set_xlabel("training step")
        right.set_ylabel(result)
        yield left, right
        legend_below(right)


# Smooth L1 with β = 1 equals Huber with δ = 1, and quantile with q = ½ is half of L1. Dashes keep
# both lines of a pair visible.
_COINCIDE = {"huber_loss", "quantile_loss"}


_LONGEST = 8.0  # in multiples of the floor; longer bars would leave the others no room


def draw_bench(folder: Path, rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Times of a training step in multiples of the floor, with warm memory if that was measured."""
    drawn = []
    for file, kinds, over, floor in (
        ("bench.png", ("step",), "", "one fresh torch.add"),
        ("bench_rows.png", ("rows_step", "vectors_step"), " over rows", "a fresh torch.mul or add"),
    ):
        steps = [row for row in rows if row["kind"] in kinds]
        steps = [row for row in steps if row["memory"] == "warm"] or steps
        if steps:
            title = f"A training step{over}, in multiples of {floor}"
            names = [
                "\n".join([plain(row["loss"]), *([row["case"]] if "case" in row else [])])
                for row in steps
            ]
            draw_bars(folder / file, steps, names, title)
            memory = "warm memory" if steps[0]["memory"] == "warm" else "memory as it comes"
            caption = f"{title} (the line), which moves the same bytes: float32, forward and "
            drawn.append((file, f"{caption}backward, {memory}."))
    return drawn


def draw_bars(path: Path, rows: list[dict[str, Any]], names: list[str], title: str) -> None:
    """Times of steps in multiples of their floors. Contenders that were not measured are left
    out."""
    contenders = [
        name
        for name in ("lossops", "triton", "compile", "eager")
        if any(name in row["ms"] for row in rows)
    ]
    colors = {"lossops": "#0072B2", "triton": "#56B4E9", "compile": "#b9b9b9", "eager": "#808080"}
    words = {"compile": "torch.compile", "eager": "torch eager"}
    thickness = 0.8 / len(contenders)
    with canvas(path, 1, title, width=8.4, height=0.9 + 0.62 * len(rows)) as (axes,):
        for i, name in enumerate(contenders):
            measured = [(k, row["ms"]) for k, row in enumerate(rows) if name in row["ms"]]
            values = [ms[name] / ms["floor"] for _, ms in measured]
            places = [k + (i - (len(contenders) - 1) / 2) * thickness for k, _ in measured]
            shown = [min(value, _LONGEST) for value in values]
            bars = axes.barh(places, shown, 0.9 * thickness, color=colors[name],
                             label=words.get(name, name))  # fmt: skip
            labels = [f"{v:.1f}" + (" (cut)" if v > _LONGEST else "") for v in values]
            axes.bar_label(bars, labels, padding=3, fontsize=8)
        axes.axvline(1, color=INK, linewidth=1)
        axes.set_yticks(range(len(rows)), names)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlim(0)
        axes.margins(x=0.08)
        legend_below(axes)
