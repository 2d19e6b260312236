"""Regression losses: functions of the difference between input and target."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.modules.loss import _Loss

from lossops.core.arguments import Range, integer_or_complex, legacy_reduction, positive
from lossops.core.declaration import LossModule, described, public
from lossops.elementwise.call import elementwise_loss, l1_in_torch

__all__ = [
    "CharbonnierLoss",
    "HuberLoss",
    "L1Loss",
    "LogCoshLoss",
    "MSELoss",
    "QuantileLoss",
    "SmoothL1Loss",
    "charbonnier_loss",
    "huber_loss",
    "l1_loss",
    "log_cosh_loss",
    "mse_loss",
    "quantile_loss",
    "smooth_l1_loss",
]

# With torch's messages.
_BETA = Range(
    "at least 0", lambda beta: beta >= 0, (-1.0,), RuntimeError,
    "{function} does not support negative values for {name}. Got: {value}",
)  # fmt: skip
_DELTA = Range(
    "positive", lambda delta: delta > 0, (-1.0, 0.0), RuntimeError,
    "{function} does not support non-positive values for {name}. Got: {value}",
)  # fmt: skip
_QUANTILE = Range("above 0 and below 1", lambda quantile: 0 < quantile < 1, (-0.5, 0.0, 1.0, 1.5))


@public()
@described(
    kernel="mse", formula="d²", regression=True, divides_by_weight=True,
    source="Gauss, Theoria combinationis observationum, 1823",
)  # fmt: skip
def mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    r"""Squared error (L2): ``w (x - y)²``.

    Use it for regression when large errors should be penalised most.

    Args:
        input: x, the predictions, of any shape.
        target: y, the ground truth, of the same shape as ``input``. Other shapes broadcast, with a
            warning.
        size_average, reduce: deprecated, see ``reduction``.
        reduction: "none", "mean", "sum" or "sample", see :mod:`lossops.functional`.
        weight: w, of the same shape as ``input``. A mean then divides by Σw.

    Returns:
        The loss: a scalar, or a tensor of the broadcast shape for "none", of shape (B,) for
        "sample".

    Raises:
        ValueError: if ``reduction`` is not one of these, or ``weight`` does not have the shape of
            ``input``.
        NotImplementedError: if the tensors are not floating point.
        RuntimeError: if the shapes do not broadcast, or the tensors are on different devices.

    Follows :func:`torch.nn.functional.mse_loss`.

    Example:
        >>> import torch, lossops.functional as F
        >>> F.mse_loss(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.0]))
        tensor(5.)
    """
    reduction = legacy_reduction(size_average, reduce, reduction)
    return elementwise_loss("mse", input, target, weight, reduction)


class MSELoss(LossModule, torch.nn.MSELoss, function=mse_loss):
    """Squared error loss; see :func:`lossops.functional.mse_loss`."""


@public()
@described(
    kernel="l1", formula="|d|", regression=True, divides_by_weight=True,
    kinks=lambda kwargs: (0.0,), differentiable=1,
    source="Laplace, Mémoire sur la probabilité des causes, 1774",
)  # fmt: skip
def l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    r"""Absolute error (L1, MAE): ``w |x - y|``.

    Use it when outliers should not dominate the gradient.

    The derivative where x = y is 0.

    Args:
        input: x, the predictions, of any shape.
        target: y, the ground truth, of the same shape as ``input``. Other shapes broadcast, with a
            warning.
        size_average, reduce: deprecated, see ``reduction``.
        reduction: "none", "mean", "sum" or "sample", see :mod:`lossops.functional`.
        weight: w, of the same shape as ``input``. A mean then divides by Σw.

    Returns:
        The loss: a scalar, or a tensor of the broadcast shape for "none", of shape (B,) for
        "sample".

    Raises:
        ValueError: if ``reduction`` is not one of these, or ``weight`` does not have the shape of
            ``input``.
        RuntimeError: if the shapes do not broadcast, or the tensors are on different devices.

    Follows :func:`torch.nn.functional.l1_loss`; integer and complex tensors are passed on to it.

    Example:
        >>> import torch, lossops.functional as F
        >>> F.l1_loss(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.0]))
        tensor(2.)
    """
    reduction = legacy_reduction(size_average, reduce, reduction)
    if integer_or_complex(input, target):
        return l1_in_torch(input, target, weight, reduction)
    return elementwise_loss("l1", input, target, weight, reduction)


class L1Loss(LossModule, torch.nn.L1Loss, function=l1_loss):
    """Absolute error loss; see :func:`lossops.functional.l1_loss`."""


@public(beta=_BETA)
@described(
    kernel="smooth_l1", formula="½d²/β where |d| < β, else |d| - ½β",
    regression=True, divides_by_weight=True,
    samples=({"beta": 1.0}, {"beta": 0.3}, {"beta": 0.0}),
    kinks=lambda kwargs: (-kwargs["beta"], kwargs["beta"]),
    source="Girshick, Fast R-CNN, 2015",
)  # fmt: skip
def smooth_l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    beta: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    r"""Smooth L1 loss: with d = x - y, ``w ½d²/β`` where |d| < β, else ``w (|d| - ½β)``.

    Use it for an L1 loss whose gradient is continuous at 0, for example in bounding box regression.

    Args:
        input: x, the predictions, of any shape.
        target: y, the ground truth, of the same shape as ``input``. Other shapes broadcast, with a
            warning.
        size_average, reduce: deprecated, see ``reduction``.
        reduction: "none", "mean", "sum" or "sample", see :mod:`lossops.functional`.
        beta: the threshold β ≥ 0, in units of x; 0 gives the L1 loss.
        weight: w, of the same shape as ``input`` (torch has no weight here). A mean then divides by
            Σw.

    Returns:
        The loss: a scalar, or a tensor of the broadcast shape for "none", of shape (B,) for
        "sample".

    Raises:
        ValueError: if ``reduction`` is not one of these, or ``weight`` does not have the shape of
            ``input``.
        NotImplementedError: if the tensors are not floating point.
        RuntimeError: if ``beta`` is negative or NaN, the shapes do not broadcast, or the tensors
            are on different devices.
        TypeError: if ``beta`` is not a number.

    Follows :func:`torch.nn.functional.smooth_l1_loss`; Girshick, Fast R-CNN, 2015.

    Example:
        >>> import torch, lossops.functional as F
        >>> F.smooth_l1_loss(torch.tensor([0.5, 3.0]), torch.tensor([0.0, 0.0]), reduction="none")
        tensor([0.1250, 2.5000])
    """
    reduction = legacy_reduction(size_average, reduce, reduction)
    if beta == 0:
        return elementwise_loss("l1", input, target, weight, reduction)
    return elementwise_loss("smooth_l1", input, target, weight, reduction, (beta,))


class SmoothL1Loss(LossModule, torch.nn.SmoothL1Loss, function=smooth_l1_loss):
    """Smooth L1 loss; see :func:`lossops.functional.smooth_l1_loss`."""


@public(delta=_DELTA)
@described(
    kernel="huber", formula="½d² where |d| < δ, else δ(|d| - ½δ)", regression=True,
    samples=({"delta": 1.0}, {"delta": 0.3}, {"delta": 5.0}, {"delta": float("inf")}),
    kinks=lambda kwargs: (-kwargs["delta"], kwargs["delta"]) if kwargs["delta"] < 1e9 else (),
    source="Huber, Robust Estimation of a Location Parameter, 1964",
)  # fmt: skip
def huber_loss(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    delta: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    r"""Huber loss: with d = x - y, ``w ½d²`` where |d| < δ, else ``w δ(|d| - ½δ)``.

    Use it for a squared error in which outliers should not dominate the gradient.

    Args:
        input: x, the predictions, of any shape.
        target: y, the ground truth, of the same shape as ``input``. Other shapes broadcast, with a
            warning.
        reduction: "none", "mean", "sum" or "sample", see :mod:`lossops.functional`.
        delta: the threshold δ > 0, in units of x; infinity gives half the squared error.
        weight: w, of the same shape as ``input``. A mean still divides by the number of elements,
            as in torch for this loss.

    Returns:
        The loss: a scalar, or a tensor of the broadcast shape for "none", of shape (B,) for
        "sample". Mixed dtypes are promoted, where torch returns the dtype of ``input`` and fails in
        backward.

    Raises:
        ValueError: if ``reduction`` is not one of these, or ``weight`` does not have the shape of
            ``input``.
        NotImplementedError: if the tensors are not floating point.
        RuntimeError: if ``delta`` is not positive, the shapes do not broadcast, or the tensors
            are on different devices.
        TypeError: if ``delta`` is not a number.

    Follows :func:`torch.nn.functional.huber_loss`; Huber, Robust Estimation of a Location
    Parameter, 1964.

    Example:
        >>> import torch, lossops.functional as F
        >>> F.huber_loss(torch.tensor([0.5, 3.0]), torch.tensor([0.0, 0.0]), reduction="none")
        tensor([0.1250, 2.5000])
    """
    return elementwise_loss(
        "huber", input, target, weight, reduction, (delta,), divides_by_weight=False
    )


class HuberLoss(LossModule, torch.nn.HuberLoss, function=huber_loss):
    """Huber loss; see :func:`lossops.functional.huber_loss`."""


@public()
@described(
    kernel="log_cosh", formula="log(cosh(d))", regression=True, divides_by_weight=True,
    source="Saleh and Saleh, Statistical Properties of the log-cosh Loss Function, 2022",
)  # fmt: skip
def log_cosh_loss(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    r"""Log-cosh loss: with d = x - y, ``w log(cosh(d))``.

    Use it like a Huber loss when the loss should be smooth everywhere and have no threshold.

    The loss is close to ½d² near 0 and to |d| - log 2 far from 0. It is accurate for differences of
    every size: no cancellation at 1e-4 and no overflow at 1e4.

    Args:
        input: x, the predictions, of any shape.
        target: y, the ground truth, of the same shape as ``input``. Other shapes broadcast, with a
            warning.
        reduction: "none", "mean", "sum" or "sample", see :mod:`lossops.functional`.
        weight: w, of the same shape as ``input``. A mean then divides by Σw.

    Returns:
        The loss: a scalar, or a tensor of the broadcast shape for "none", of shape (B,) for
        "sample".

    Raises:
        ValueError: if ``reduction`` is not one of these, or ``weight`` does not have the shape of
            ``input``.
        NotImplementedError: if the tensors are not floating point.
        RuntimeError: if the shapes do not broadcast, or the tensors are on different devices.

    Source: Saleh and Saleh, Statistical Properties of the log-cosh Loss Function, 2022. torch has
    no such loss.

    Example:
        >>> import torch, lossops.functional as F
        >>> F.log_cosh_loss(torch.tensor([0.0, 100.0]), torch.tensor([0.0, 0.0]), reduction="none")
        tensor([ 0.0000, 99.3069])
    """
    return elementwise_loss("log_cosh", input, target, weight, reduction)


class LogCoshLoss(LossModule, _Loss, function=log_cosh_loss):
    """Log-cosh loss; see :func:`lossops.functional.log_cosh_loss`.

    Args:
        reduction: "none", "mean", "sum" or "sample".
    """

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)


@public(quantile=_QUANTILE)
@described(
    kernel="quantile", formula="(1 - q)d where d > 0, else -q d",
    regression=True, divides_by_weight=True,
    samples=({"quantile": 0.5}, {"quantile": 0.9}),
    params=lambda kwargs: (1.0 - kwargs["quantile"], kwargs["quantile"]),
    kinks=lambda kwargs: (0.0,), differentiable=1,
    source="Koenker and Bassett, Regression Quantiles, 1978",
)  # fmt: skip
def quantile_loss(
    input: Tensor,
    target: Tensor,
    quantile: float = 0.5,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    r"""Quantile (pinball) loss: with u = y - x, ``w max(q u, (q - 1) u)``.

    Use it to predict a quantile of the target instead of its mean, for example for prediction
    intervals. Its minimiser is the q-th quantile of y: q = 0.9 penalises a prediction that is too
    low nine times as much as one that is too high; q = 0.5 is half the L1 loss. The derivative
    where x = y is 0.

    Args:
        input: x, the predictions, of any shape.
        target: y, the ground truth, of the same shape as ``input``. Other shapes broadcast, with a
            warning.
        quantile: q, 0 < q < 1.
        reduction: "none", "mean", "sum" or "sample", see :mod:`lossops.functional`.
        weight: w, of the same shape as ``input``. A mean then divides by Σw.

    Returns:
        The loss: a scalar, or a tensor of the broadcast shape for "none", of shape (B,) for
        "sample".

    Raises:
        ValueError: if ``quantile`` is not between 0 and 1, ``reduction`` is not one of these, or
            ``weight`` does not have the shape of ``input``.
        NotImplementedError: if the tensors are not floating point.
        RuntimeError: if the shapes do not broadcast, or the tensors are on different devices.
        TypeError: if ``quantile`` is not a number.

    Source: Koenker and Bassett, Regression Quantiles, 1978. torch has no such loss.

    Example:
        >>> import torch, lossops.functional as F
        >>> F.quantile_loss(torch.zeros(2), torch.tensor([1.0, -1.0]), 0.9, reduction="none")
        tensor([0.9000, 0.1000])
    """
    return elementwise_loss(
        "quantile", input, target, weight, reduction, (1.0 - quantile, quantile)
    )


class QuantileLoss(LossModule, _Loss, function=quantile_loss):
    """Quantile (pinball) loss; see :func:`lossops.functional.quantile_loss`.

    Args:
        quantile: q, 0 < q < 1.
        reduction: "none", "mean", "sum" or "sample".
    """

    def __init__(self, quantile: float = 0.5, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)
        self.quantile = quantile


@public(epsilon=positive)
@described(
    kernel="charbonnier", formula="√(d² + ε²)", regression=True, divides_by_weight=True,
    samples=({"epsilon": 1e-3}, {"epsilon": 0.5}),
    source="Charbonnier et al., Deterministic Half-Quadratic Regularization, 1994",
)  # fmt: skip
def charbonnier_loss(
    input: Tensor,
    target: Tensor,
    epsilon: float = 1e-3,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    r"""Charbonnier loss: with d = x - y, ``w sqrt(d² + ε²)``.

    Use it as a smooth L1 loss, for example in image restoration, where it is common.

    It has derivatives of every order. It is quadratic near 0, where its value is ε, and linear far
    from 0.

    Args:
        input: x, the predictions, of any shape.
        target: y, the ground truth, of the same shape as ``input``. Other shapes broadcast, with a
            warning.
        epsilon: ε > 0. Clamped to at least 2⁻¹²⁶, the smallest normal number of float32.
        reduction: "none", "mean", "sum" or "sample", see :mod:`lossops.functional`.
        weight: w, of the same shape as ``input``. A mean then divides by Σw.

    Returns:
        The loss: a scalar, or a tensor of the broadcast shape for "none", of shape (B,) for
        "sample".

    Raises:
        ValueError: if ``epsilon`` is not positive and finite, ``reduction`` is not one of these, or
            ``weight`` does not have the shape of ``input``.
        NotImplementedError: if the tensors are not floating point.
        RuntimeError: if the shapes do not broadcast, or the tensors are on different devices.
        TypeError: if ``epsilon`` is not a number.

    Source: Charbonnier et al., Two Deterministic Half-Quadratic Regularization Algorithms for
    Computed Imaging, 1994. torch has no such loss.

    Example:
        >>> import torch, lossops.functional as F
        >>> F.charbonnier_loss(torch.tensor([0.0, 4.0]), torch.zeros(2), 3.0, reduction="none")
        tensor([3., 5.])
    """
    params = (max(epsilon, 2.0**-126),)
    return elementwise_loss("charbonnier", input, target, weight, reduction, params)


class CharbonnierLoss(LossModule, _Loss, function=charbonnier_loss):
    """Charbonnier loss; see :func:`lossops.functional.charbonnier_loss`.

    Args:
        epsilon: ε > 0.
        reduction: "none", "mean", "sum" or "sample".
    """

    def __init__(self, epsilon: float = 1e-3, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)
        self.epsilon = epsilon
