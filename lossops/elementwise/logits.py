"""Binary losses of logits, exported by :mod:`lossops.functional`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.modules.loss import _Loss

from lossops.core.arguments import Range, autocasts, legacy_reduction, not_negative
from lossops.core.declaration import LossModule, described, public
from lossops.core.transforms import transforms_active
from lossops.elementwise.call import elementwise_loss
from lossops.elementwise.probabilities import SMOOTHING, broadcasts_to, differ, expanded, product

__all__ = [
    "BCEWithLogitsLoss",
    "SigmoidFocalLoss",
    "binary_cross_entropy_with_logits",
    "sigmoid_focal_loss",
]

_ALPHA = Range("at most 1", lambda alpha: alpha <= 1, (1.5,))


_POS_WEIGHT = Range("at least 0", lambda pos_weight: pos_weight >= 0, (-1.0,))


@public(label_smoothing=SMOOTHING)
@described(
    kernel="bce_with_logits", formula="p y softplus(-x) + (1 - y) softplus(x)",
    samples=({}, {"pos_weight": 3.0}, {"label_smoothing": 0.1, "pos_weight": 0.4}),
    params=lambda kwargs: (kwargs.get("pos_weight", 1.0), kwargs.get("label_smoothing", 0.0)),
    domains=("number", "label"), other_shapes="raises", expands_weight=True,
    source="Good, Rational Decisions, 1952",
)  # fmt: skip
def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | float | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""Binary cross entropy of logits: ``w (p y softplus(-x) + (1 - y) softplus(x))``.

    Use it for binary or multi-label classification, with the logits of the model as input.

    Correct at infinite logits: an infinite logit that agrees with the target has loss 0, where
    torch returns NaN, and the gradient with respect to ``input`` is finite.

    Args:
        input: x, the logits, of any shape.
        target: y, usually between 0 and 1, of the same shape as ``input``.
        weight: w, of a shape that broadcasts to ``input``. A mean still divides by the number of
            elements, as in torch.
        size_average, reduce: deprecated, see ``reduction``.
        reduction: "none", "mean", "sum" or "sample", see :mod:`lossops.functional`.
        pos_weight: p, the weight of the positive class: a number, or a tensor of a shape that
            broadcasts to ``input``. The loss is differentiable with respect to a tensor that
            requires grad.
        label_smoothing: s in [0, 1]; y becomes ``y (1 - s) + s/2``. torch has no such option here.

    Returns:
        The loss: a scalar, or a tensor of the same shape as ``input`` for "none", of shape (B,) for
        "sample".

    Raises:
        ValueError: if ``input`` and ``target`` differ in size, ``weight`` or ``pos_weight`` does
            not broadcast to them, ``pos_weight`` is a negative number, ``reduction`` is not one of
            these, or ``label_smoothing`` is not in [0, 1].
        NotImplementedError: if the tensors are not floating point.
        RuntimeError: if the tensors are on different devices.
        TypeError: if ``label_smoothing`` is not a number, or ``pos_weight`` is neither a number nor
            a tensor.

    Follows :func:`torch.nn.functional.binary_cross_entropy_with_logits`.

    Example:
        >>> import torch, lossops.functional as F
        >>> F.binary_cross_entropy_with_logits(torch.tensor([0.0, torch.inf]), torch.ones(2))
        tensor(0.3466)
    """
    reduction = legacy_reduction(size_average, reduce, reduction)
    _refuse_another_size(input, target)
    weight = expanded(weight, input)
    pos_weight = _pos_weight(pos_weight)
    if isinstance(pos_weight, Tensor) and isinstance(target, Tensor) and isinstance(input, Tensor):
        return _with_a_weight_per_element(
            input, target, weight, reduction, pos_weight, label_smoothing
        )
    return elementwise_loss(
        "bce_with_logits", input, target, weight, reduction, (pos_weight, label_smoothing),
        divides_by_weight=False,
    )  # fmt: skip


class BCEWithLogitsLoss(
    LossModule, torch.nn.BCEWithLogitsLoss, function=binary_cross_entropy_with_logits
):
    """Binary cross entropy of logits; see
    :func:`lossops.functional.binary_cross_entropy_with_logits`.

    Args:
        weight, size_average, reduce, reduction: as in :class:`torch.nn.BCEWithLogitsLoss`.
        pos_weight: a tensor, as in torch, or a number.
        label_smoothing: between 0 and 1.
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average=None,
        reduce=None,
        reduction: str = "mean",
        pos_weight: Tensor | float | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        tensor = pos_weight if isinstance(pos_weight, Tensor) else None
        super().__init__(weight, size_average, reduce, reduction, tensor)
        if tensor is None and pos_weight is not None:
            del self._buffers["pos_weight"]
            self.pos_weight = pos_weight
        self.label_smoothing = label_smoothing

    def forward(self, input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        return binary_cross_entropy_with_logits(
            input, target, product(self.weight, weight), reduction=self.reduction,
            pos_weight=self.pos_weight, label_smoothing=self.label_smoothing,
        )  # fmt: skip


def _pos_weight(pos_weight) -> float | Tensor:
    """Converts ``pos_weight`` to a number, which the kernels accept, if that needs no device sync
    and no gradient."""
    if pos_weight is None:
        return 1.0
    if isinstance(pos_weight, Tensor):
        known = pos_weight.numel() == 1 and pos_weight.device.type == "cpu"
        followed = pos_weight.requires_grad or transforms_active() or type(pos_weight) is not Tensor
        if not known or followed or torch.compiler.is_compiling():
            return pos_weight
        return float(pos_weight)
    return _POS_WEIGHT("binary_cross_entropy_with_logits", "pos_weight", pos_weight)


def _with_a_weight_per_element(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    pos_weight: Tensor,
    smoothing: float,
) -> Tensor:
    """The loss for a tensor ``pos_weight``.

    p y softplus(-x) + (1 - y) softplus(x) equals v times the plain loss for the target p y / v,
    where v = p y + (1 - y). The kernels receive v as a weight, and autograd differentiates v.
    """
    if pos_weight.device != input.device and pos_weight.dim() == 0:
        pos_weight = pos_weight.to(input.device)
    if not broadcasts_to(pos_weight, input):
        raise ValueError(
            "pos_weight should broadcast to the shape of input. "
            f"Got pos_weight of shape {tuple(pos_weight.shape)}, input of shape "
            f"{tuple(input.shape)}"
        )
    dtype = torch.promote_types(input.dtype, target.dtype)
    wide = torch.promote_types(dtype, torch.float32)  # half-precision weights would lose digits
    y = target.to(wide)
    if smoothing:
        y = y * (1 - smoothing) + 0.5 * smoothing
    positive = pos_weight.to(wide) * y
    total = positive + (1 - y)
    nothing = total == 0  # neither class has any weight
    share = torch.where(nothing, y, positive / torch.where(nothing, 1.0, total))
    total = total.expand(input.shape)
    loss = elementwise_loss(
        "bce_with_logits", input, share, total if weight is None else total * weight, reduction,
        (1.0, 0.0), divides_by_weight=False,
    )  # fmt: skip
    if weight is not None:
        dtype = torch.promote_types(dtype, weight.dtype)
    return loss if autocasts(input.device.type) else loss.to(dtype)


@public(alpha=_ALPHA, gamma=not_negative)
@described(
    kernel="sigmoid_focal", formula="α_t (1 - p_t)^γ BCE(x, y), p = sigmoid(x)",
    samples=(
        {"alpha": 0.25, "gamma": 2.0}, {"alpha": -1.0, "gamma": 0.5}, {"alpha": 0.6, "gamma": 5.0},
    ),
    # The formula lacks the limits at infinity; tests/test_raw_ops.py covers them.
    domains=("number up to 50", "label"), other_shapes="raises", expands_weight=True,
    # 1 - p_t has an error of 1.5 eps, up to 3 units in the last place; its power γ times that.
    slack=lambda kwargs: 3 * kwargs["gamma"],
    source="Lin et al., Focal Loss for Dense Object Detection, 2017",
)  # fmt: skip
def sigmoid_focal_loss(
    input: Tensor,
    target: Tensor,
    alpha: float = 0.25,
    gamma: float = 2.0,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    r"""RetinaNet's focal loss of logits: ``w α_t (1 - p_t)^γ BCE(x, y)``.

    Use it for binary classification in which many easy examples would otherwise dominate the loss,
    as in dense object detection.

    Here ``p = sigmoid(x)``, ``p_t = p y + (1 - p)(1 - y)`` is the probability of the true class,
    and ``α_t = α y + (1 - α)(1 - y)``. Well-classified examples are down-weighted: γ = 2 divides
    the loss at p_t = 0.9 by 100. Accurate near p_t = 1 and correct at infinite logits.

    Args:
        input: x, the logits, of any shape.
        target: y, 0 or 1, or a soft target in between, of the same shape as ``input``.
        alpha: α ≤ 1, the weight of the positive class; the weight of the negative class is 1 - α. A
            negative number disables both weights.
        gamma: γ ≥ 0; 0 gives the weighted cross entropy.
        reduction: "none", "mean", "sum" or "sample", see :mod:`lossops.functional`. The default is
            "mean", as for the other losses; torchvision's is "none".
        weight: w, of a shape that broadcasts to ``input`` (torchvision has no weight here). A mean
            still divides by the number of elements.

    Returns:
        The loss: a scalar, or a tensor of the same shape as ``input`` for "none", of shape (B,) for
        "sample".

    Raises:
        ValueError: if ``input`` and ``target`` differ in size, ``weight`` does not broadcast to
            them, ``alpha`` is above 1, ``gamma`` is negative or infinite, or ``reduction`` is not
            one of these.
        NotImplementedError: if the tensors are not floating point.
        RuntimeError: if the tensors are on different devices.
        TypeError: if ``alpha`` or ``gamma`` is not a number.

    Source: Lin et al., Focal Loss for Dense Object Detection, 2017; torchvision's
    ``sigmoid_focal_loss``. torch itself has no such loss.

    Example:
        >>> import torch, lossops.functional as F
        >>> F.sigmoid_focal_loss(torch.tensor([0.0, 4.0]), torch.ones(2), reduction="none")
        tensor([4.3322e-02, 1.4679e-06])
    """
    _refuse_another_size(input, target)
    return elementwise_loss(
        "sigmoid_focal", input, target, expanded(weight, input), reduction, (alpha, gamma),
        divides_by_weight=False,
    )  # fmt: skip


class SigmoidFocalLoss(LossModule, _Loss, function=sigmoid_focal_loss):
    """RetinaNet's focal loss; see :func:`lossops.functional.sigmoid_focal_loss`.

    Args:
        alpha: the weight of the positive class, at most 1. A negative number means no weight.
        gamma: γ ≥ 0.
        reduction: "none", "mean", "sum" or "sample".
    """

    def __init__(self, alpha: float = 0.25, gamma: float = 2.0, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)
        self.alpha = alpha
        self.gamma = gamma


def _refuse_another_size(input, target) -> None:
    if differ(input, target):
        raise ValueError(
            f"Target size ({target.size()}) must be the same as input size ({input.size()})"
        )
