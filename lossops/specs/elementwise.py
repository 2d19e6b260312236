"""One row per elementwise loss, which describes it for tests, benchmarks, plots and documentation.

The library itself never reads these rows. A new row adds a loss to all tests, benchmarks, plots and
tables.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as torch_functional
from torch import Tensor

from lossops import nn
from lossops.elementwise.call import broadcast_loss
from lossops.specs.spec import Spec

# The argument is halved, so that results stay off the boundary in half precision, too.


def _probability(x: Tensor) -> Tensor:
    return torch.sigmoid(0.5 * x)


def _log_probability(x: Tensor) -> Tensor:
    return torch.nn.functional.logsigmoid(0.5 * x)


def _fold_into_unit(x: Tensor) -> Tensor:
    """|x| or 1/|x|: covers every exponent up to that of 1, and both ends of the interval."""
    z = x.abs()
    return torch.where(z > 1, 1 / z, z)


def _fold_label(x: Tensor) -> Tensor:
    """Maps to as many hard labels as soft ones."""
    return torch.where(x.abs() > 1, (x > 0).to(x.dtype), x.abs())


def _off(x: Tensor, *points: float) -> Tensor:
    """Moves numbers away from points where a derivative jumps."""
    for point in points:
        x = torch.where((x - point).abs() < 0.05, x + 0.1, x)
    return x


def _sign(x: Tensor) -> Tensor:
    return torch.where(x > 0, 1.0, -1.0).to(x.dtype)


# Losses that torch lacks, as its users write them.


def _log_cosh(input: Tensor, target: Tensor) -> Tensor:
    z = (input - target).abs()
    return z + torch_functional.softplus(-2 * z) - math.log(2)


def _quantile(input: Tensor, target: Tensor, above: float, below: float) -> Tensor:
    d = input - target
    return torch.where(d > 0, above * d, -below * d)


def _charbonnier(input: Tensor, target: Tensor, epsilon: float) -> Tensor:
    return ((input - target).square() + epsilon**2).sqrt()


def _sigmoid_focal(input: Tensor, target: Tensor, alpha: float, gamma: float) -> Tensor:
    """The formula of torchvision."""
    p = torch.sigmoid(input)
    cross = torch_functional.binary_cross_entropy_with_logits(input, target, reduction="none")
    p_t = p * target + (1 - p) * (1 - target)
    loss = cross * (1 - p_t) ** gamma
    if alpha >= 0:
        loss = (alpha * target + (1 - alpha) * (1 - target)) * loss
    return loss


# Two losses take three tensors. Their kernels take the difference of the first two as input.


def _margin_ranking(
    input: Tensor, target: Tensor, margin: float = 0.0, reduction="mean", weight=None
) -> Tensor:
    return broadcast_loss("margin_ranking", input, target, weight, reduction, margin)


def _margin_ranking_in_torch(input: Tensor, target: Tensor, **kwargs) -> Tensor:
    return torch_functional.margin_ranking_loss(input, torch.zeros_like(input), target, **kwargs)


def _gaussian(
    input: Tensor, target: Tensor, eps: float = 1e-6, full=False, reduction="mean", weight=None
) -> Tensor:
    params = _gaussian_params({"eps": eps, "full": full})
    return broadcast_loss("gaussian", input, target, weight, reduction, *params)


def _gaussian_params(kwargs: dict) -> tuple[float, ...]:
    return kwargs["eps"], 0.5 * math.log(2 * math.pi) if kwargs.get("full") else 0.0


def _gaussian_in_torch(input: Tensor, target: Tensor, **kwargs) -> Tensor:
    return torch_functional.gaussian_nll_loss(input, torch.zeros_like(input), target, **kwargs)


def _with_smoothing(
    input: Tensor, target: Tensor, label_smoothing: float = 0.0, **kwargs
) -> tuple[Tensor, Tensor, dict]:
    if label_smoothing:
        target = target * (1 - label_smoothing) + 0.5 * label_smoothing
    if "pos_weight" in kwargs:
        kwargs["pos_weight"] = torch.as_tensor(kwargs["pos_weight"]).to(input)
    return input, target, kwargs


_SMOOTHING_REFUSED = (
    ({"label_smoothing": -0.1}, ValueError, "label_smoothing should be between 0.0 and 1.0"),
    ({"label_smoothing": 1.5}, ValueError, "label_smoothing should be between 0.0 and 1.0"),
    ({"label_smoothing": float("nan")}, ValueError, "label_smoothing should be between"),
    ({"label_smoothing": "much"}, TypeError, "label_smoothing should be a number"),
)

_regression = functools.partial(Spec, regression=True, divides_by_weight=True)

SPECS: tuple[Spec, ...] = (
    _regression(
        name="mse_loss",
        kernel="mse",
        module=nn.MSELoss,
        formula="d²",
        source="Gauss, Theoria combinationis observationum, 1823",
    ),
    _regression(
        name="l1_loss",
        kernel="l1",
        module=nn.L1Loss,
        formula="|d|",
        kinks=lambda kwargs: (0.0,),
        differentiable=1,
        source="Laplace, Mémoire sur la probabilité des causes, 1774",
    ),
    _regression(
        name="smooth_l1_loss",
        kernel="smooth_l1",
        module=nn.SmoothL1Loss,
        formula="½d²/β where |d| < β, else |d| - ½β",
        samples=({"beta": 1.0}, {"beta": 0.3}, {"beta": 0.0}),
        kinks=lambda kwargs: (-kwargs["beta"], kwargs["beta"]),
        source="Girshick, Fast R-CNN, 2015",
        refused=(
            ({"beta": -1.0}, RuntimeError, "negative values for beta"),
            ({"beta": float("nan")}, RuntimeError, "negative values for beta"),
            ({"beta": "wide"}, TypeError, "beta should be a number"),
        ),
    ),
    _regression(
        name="huber_loss",
        kernel="huber",
        module=nn.HuberLoss,
        formula="½d² where |d| < δ, else δ(|d| - ½δ)",
        samples=({"delta": 1.0}, {"delta": 0.3}, {"delta": 5.0}, {"delta": float("inf")}),
        kinks=lambda kwargs: (
            () if math.isinf(kwargs["delta"]) else (-kwargs["delta"], kwargs["delta"])
        ),
        divides_by_weight=False,
        source="Huber, Robust Estimation of a Location Parameter, 1964",
        refused=(
            ({"delta": 0.0}, RuntimeError, "non-positive values for delta"),
            ({"delta": -1.0}, RuntimeError, "non-positive values for delta"),
            ({"delta": float("nan")}, RuntimeError, "non-positive values for delta"),
            ({"delta": "wide"}, TypeError, "delta should be a number"),
        ),
    ),
    _regression(
        name="log_cosh_loss",
        kernel="log_cosh",
        users_formula=_log_cosh,
        module=nn.LogCoshLoss,
        formula="log(cosh(d))",
        source="Saleh and Saleh, Statistical Properties of the log-cosh Loss Function, 2022",
    ),
    _regression(
        name="quantile_loss",
        kernel="quantile",
        module=nn.QuantileLoss,
        formula="(1 - q)d where d > 0, else -q d",
        samples=({"quantile": 0.5}, {"quantile": 0.9}),
        params=lambda kwargs: (1.0 - kwargs["quantile"], kwargs["quantile"]),
        kinks=lambda kwargs: (0.0,),
        differentiable=1,
        users_formula=_quantile,
        source="Koenker and Bassett, Regression Quantiles, 1978",
        refused=(
            ({"quantile": 0.0}, ValueError, "quantile should be between 0 and 1"),
            ({"quantile": 1.0}, ValueError, "quantile should be between 0 and 1"),
            ({"quantile": float("nan")}, ValueError, "quantile should be between 0 and 1"),
            ({"quantile": "high"}, TypeError, "quantile should be a number"),
        ),
    ),
    _regression(
        name="charbonnier_loss",
        kernel="charbonnier",
        users_formula=_charbonnier,
        module=nn.CharbonnierLoss,
        formula="√(d² + ε²)",
        samples=({"epsilon": 1e-3}, {"epsilon": 0.5}),
        source="Charbonnier et al., Deterministic Half-Quadratic Regularization, 1994",
        refused=(
            ({"epsilon": 0.0}, ValueError, "epsilon should be positive and finite"),
            ({"epsilon": float("inf")}, ValueError, "epsilon should be positive and finite"),
            ({"epsilon": float("nan")}, ValueError, "epsilon should be positive and finite"),
            ({"epsilon": "small"}, TypeError, "epsilon should be a number"),
        ),
    ),
    Spec(
        name="kl_div",
        kernel="kl_div",
        module=nn.KLDivLoss,
        formula="y (log y - x)",
        source="Kullback and Leibler, On Information and Sufficiency, 1951",
        inner=lambda x, y: (_log_probability(x), _probability(y)),
        folded=lambda x, y: (-x.abs(), _fold_into_unit(y)),
        other_shapes="broadcasts",
        slope_without_input=True,
        integers=RuntimeError,
    ),
    Spec(
        name="kl_div_log_target",
        called="kl_div",
        kernel="kl_div_log_target",
        module=nn.KLDivLoss,
        formula="eʸ (y - x)",
        samples=({"log_target": True},),
        params=lambda kwargs: (),
        source="Kullback and Leibler, On Information and Sufficiency, 1951",
        inner=lambda x, y: (_log_probability(x), _log_probability(y)),
        folded=lambda x, y: (-x.abs(), -y.abs()),
        other_shapes="broadcasts",
        slope_without_input=True,
        integers=RuntimeError,
    ),
    Spec(
        name="binary_cross_entropy",
        kernel="bce",
        module=nn.BCELoss,
        formula="-y log x - (1 - y) log(1 - x)",
        samples=({}, {"label_smoothing": 0.1}),
        params=lambda kwargs: (kwargs.get("label_smoothing", 0.0),),
        source="Good, Rational Decisions, 1952",
        inner=lambda x, y: (_probability(x), _probability(y)),
        folded=lambda x, y: (_fold_into_unit(x), _fold_label(y)),
        other_shapes="raises",
        expands_weight=True,
        refused=_SMOOTHING_REFUSED,
        for_torch=_with_smoothing,
    ),
    Spec(
        name="binary_cross_entropy_with_logits",
        kernel="bce_with_logits",
        module=nn.BCEWithLogitsLoss,
        formula="p y softplus(-x) + (1 - y) softplus(x)",
        samples=({}, {"pos_weight": 3.0}, {"label_smoothing": 0.1, "pos_weight": 0.4}),
        params=lambda kwargs: (kwargs.get("pos_weight", 1.0), kwargs.get("label_smoothing", 0.0)),
        source="Good, Rational Decisions, 1952",
        inner=lambda x, y: (x, _probability(y)),
        folded=lambda x, y: (x, _fold_label(y)),
        other_shapes="raises",
        expands_weight=True,
        refused=_SMOOTHING_REFUSED,
        for_torch=_with_smoothing,
    ),
    Spec(
        name="sigmoid_focal_loss",
        kernel="sigmoid_focal",
        users_formula=_sigmoid_focal,
        module=nn.SigmoidFocalLoss,
        formula="α_t (1 - p_t)^γ BCE(x, y), p = sigmoid(x)",
        samples=(
            {"alpha": 0.25, "gamma": 2.0},
            {"alpha": -1.0, "gamma": 0.5},
            {"alpha": 0.6, "gamma": 5.0},
        ),
        # 1 - p_t has an error of 1.5 eps, up to 3 units in the last place; its power γ times that.
        slack=lambda kwargs: 3 * kwargs["gamma"],
        source="Lin et al., Focal Loss for Dense Object Detection, 2017",
        inner=lambda x, y: (x, _probability(y)),
        # The formula lacks the limits at infinity; tests/test_raw_ops.py covers them.
        folded=lambda x, y: (torch.where(x.isinf(), x.sign() * 50, x), _fold_label(y)),
        other_shapes="raises",
        expands_weight=True,
        refused=(
            ({"alpha": 1.5}, ValueError, "alpha should be at most 1"),
            ({"alpha": float("nan")}, ValueError, "alpha should be at most 1"),
            ({"gamma": -1.0}, ValueError, "gamma should be at least 0"),
            ({"gamma": float("nan")}, ValueError, "gamma should be at least 0"),
            ({"gamma": "hard"}, TypeError, "gamma should be a number"),
        ),
    ),
    Spec(
        name="soft_margin_loss",
        kernel="soft_margin",
        module=nn.SoftMarginLoss,
        formula="log(1 + exp(-x y))",
        source="Cox, The Regression Analysis of Binary Sequences, 1958",
        inner=lambda x, y: (x, _sign(y)),
        folded=lambda x, y: (x, _sign(y)),
        other_shapes="broadcasts",
    ),
    Spec(
        name="hinge_embedding_loss",
        kernel="hinge_embedding",
        module=nn.HingeEmbeddingLoss,
        formula="x where y is 1, max(0, m - x) where it is -1",
        samples=({"margin": 1.0}, {"margin": 0.3}),
        differentiable=1,
        source="Hadsell, Chopra and LeCun, Learning an Invariant Mapping, 2006",
        inner=lambda x, y: (_off(x.abs(), 1.0, 0.3), _sign(y)),
        folded=lambda x, y: (x, _sign(y)),
        other_shapes="broadcasts",
        takes_integers=True,
        refused=(({"margin": "wide"}, TypeError, "margin should be a number"),),
    ),
    Spec(
        name="margin_ranking_loss",
        kernel="margin_ranking",
        module=nn.MarginRankingLoss,
        formula="max(0, m - y (x₁ - x₂))",
        samples=({"margin": 0.0}, {"margin": 0.5}),
        source="Herbrich, Graepel and Obermayer, Large Margin Rank Boundaries, 2000",
        through=_margin_ranking,
        through_torch=_margin_ranking_in_torch,
        inner=lambda x, y: (_off(x, -0.5, 0.0, 0.5), _sign(y)),
        folded=lambda x, y: (x, _sign(y)),
        other_shapes="broadcasts",
        slope_without_input=True,
    ),
    Spec(
        name="poisson_nll_loss",
        kernel="poisson_log",
        module=nn.PoissonNLLLoss,
        formula="eˣ - y x",
        samples=({}, {"full": True}),
        params=lambda kwargs: (float(kwargs.get("full", False)),),
        source="Nelder and Wedderburn, Generalized Linear Models, 1972",
        # The bounds keep exp(x), and sums of some thousand values, in the range of float16.
        takes_integers=True,
        inner=lambda x, y: (0.5 * x, y.abs()),
        folded=lambda x, y: (torch.where(x.isfinite(), x.clamp_max(10), x), y.abs()),
        other_shapes="broadcasts",
        refused=(({"eps": "small"}, TypeError, "eps should be a number"),),
    ),
    Spec(
        name="poisson_nll_loss_of_counts",
        called="poisson_nll_loss",
        kernel="poisson",
        module=nn.PoissonNLLLoss,
        formula="x - y log(x + ε)",
        samples=(
            {"log_input": False, "eps": 1e-8},
            {"log_input": False, "eps": 0.5, "full": True},
        ),
        params=lambda kwargs: (kwargs["eps"], float(kwargs.get("full", False))),
        source="Nelder and Wedderburn, Generalized Linear Models, 1972",
        takes_integers=True,
        inner=lambda x, y: (x.abs() + 0.1, y.abs()),
        folded=lambda x, y: (x.abs(), y.abs()),
        other_shapes="broadcasts",
    ),
    Spec(
        name="gaussian_nll_loss",
        kernel="gaussian",
        module=nn.GaussianNLLLoss,
        formula="½ (log v + (x - y)²/v)",
        samples=({"eps": 1e-6}, {"eps": 0.01, "full": True}),
        params=_gaussian_params,
        source="Nix and Weigend, Estimating the Mean and Variance, 1994",
        through=_gaussian,
        through_torch=_gaussian_in_torch,
        inner=lambda x, y: (x, (0.5 * y).exp()),
        # The bounds keep x² / v in the range of float16.
        folded=lambda x, y: (
            torch.where(x.isfinite() & (y.abs() < 1), x.clamp(-0.2, 0.2), x),
            y.abs(),
        ),
        other_shapes="broadcasts",
    ),
)

# The losses that compare a prediction with a measurement.
REGRESSION = tuple(row for row in SPECS if row.regression)


def spec(name: str) -> Spec:
    """The row of a loss, by its name in ``lossops.functional``."""
    for row in SPECS:
        if row.name == name:
            return row
    raise KeyError(f"no loss named {name!r}; there are {', '.join(row.name for row in SPECS)}")
