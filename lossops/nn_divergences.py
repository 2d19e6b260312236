"""Modules of the losses between two distributions; public as part of :mod:`lossops.nn`."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn.modules.loss import _Loss

from lossops import functional as F

__all__ = [
    "JSDivergenceLoss",
    "KLDivergenceLoss",
    "L1DistributionLoss",
    "SoftCrossEntropyLoss",
    "TotalVariationLoss",
]


class _DivergenceLoss(_Loss):
    """A loss between two distributions per row.

    Args:
        input_form, target_form, dim, temperature, ignore_index: as for the function.
        reduction: "none", "mean", "sum" or "sample".
    """

    _function: Callable[..., Tensor]

    def __init__(
        self,
        *,
        input_form: str = "logits",
        target_form: str | None = None,
        dim: int | None = None,
        temperature: float = 1.0,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction=reduction)
        self.input_form = input_form
        self.target_form = target_form
        self.dim = dim
        self.temperature = temperature
        self.ignore_index = ignore_index

    def _options(self) -> dict[str, object]:
        names = ("input_form", "target_form", "dim", "temperature", "ignore_index", "reduction")
        return {name: getattr(self, name) for name in names}

    def forward(
        self, input: Tensor, target: Tensor, normalizer: float | Tensor | None = None
    ) -> Tensor:
        return type(self)._function(input, target, normalizer=normalizer, **self._options())


class KLDivergenceLoss(_DivergenceLoss):
    """Kullback-Leibler divergence; see :func:`lossops.functional.kl_divergence`.

    Args:
        reverse: compute KL(Q ‖ P), where Q is the input, instead of KL(P ‖ Q).
        input_form, target_form, dim, temperature, ignore_index: as for the function.
        reduction: "none", "mean", "sum" or "sample".
    """

    _function = staticmethod(F.kl_divergence)

    def __init__(self, *, reverse: bool = False, **options) -> None:
        super().__init__(**options)
        self.reverse = reverse

    def _options(self) -> dict[str, object]:
        return super()._options() | {"reverse": self.reverse}


class JSDivergenceLoss(_DivergenceLoss):
    """Jensen-Shannon divergence; see :func:`lossops.functional.js_divergence`."""

    _function = staticmethod(F.js_divergence)


class TotalVariationLoss(_DivergenceLoss):
    """Total variation distance; see :func:`lossops.functional.total_variation`."""

    _function = staticmethod(F.total_variation)


class L1DistributionLoss(_DivergenceLoss):
    """L1 distance of two distributions; see :func:`lossops.functional.l1_distribution_loss`."""

    _function = staticmethod(F.l1_distribution_loss)


class SoftCrossEntropyLoss(_DivergenceLoss):
    """Cross entropy of two distributions; see :func:`lossops.functional.soft_cross_entropy`."""

    _function = staticmethod(F.soft_cross_entropy)
