"""Losses with the names and signatures of ``torch.nn.functional``, and losses that torch lacks.

There are losses over elements, over rows of class scores and over vectors. Unless its docstring
says otherwise, a function computes the loss and its gradient in one fused pass over memory. Tensors
may be float64, float32, bfloat16 or float16, also mixed: the result has the promoted dtype (float32
under autocast), and each gradient has the dtype of its tensor. Computation is in float32 or wider.
All losses are differentiable to any order with respect to ``input``, ``weight`` and a ``target``
that is not a label. For losses over rows, higher-order derivatives and those by class weights are
not fused, but use formulas in plain torch.

All functions but :func:`log_prob_of` take a ``reduction``:

``"none"``    one number per element, or per row
``"mean"``    the mean over all of these, a scalar
``"sum"``     the sum over all of these, a scalar
``"sample"``  one number per sample of the batch: the mean over all dimensions but the first,
              a tensor of shape (B,)

:func:`kl_div` also takes "batchmean".
"""

from __future__ import annotations

from lossops.elementwise.likelihoods import gaussian_nll_loss, poisson_nll_loss
from lossops.elementwise.margins import (
    hinge_embedding_loss,
    margin_ranking_loss,
    multilabel_soft_margin_loss,
    soft_margin_loss,
)
from lossops.elementwise.probabilities import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    kl_div,
    sigmoid_focal_loss,
)
from lossops.elementwise.regression import (
    charbonnier_loss,
    huber_loss,
    l1_loss,
    log_cosh_loss,
    mse_loss,
    quantile_loss,
    smooth_l1_loss,
)
from lossops.linear.cross_entropy import linear_cross_entropy
from lossops.sequences import ctc_loss
from lossops.softmax.classification import (
    cross_entropy,
    focal_loss,
    log_prob_of,
    nll_loss,
    poly_loss,
)
from lossops.softmax.divergences import (
    js_divergence,
    kl_divergence,
    l1_distribution_loss,
    soft_cross_entropy,
    total_variation,
)
from lossops.vectors.hinges import multi_margin_loss, multilabel_margin_loss
from lossops.vectors.pairs import (
    cosine_embedding_loss,
    triplet_margin_loss,
    triplet_margin_with_distance_loss,
)
from lossops.vectors.regions import dice_loss, tversky_loss

__all__ = [
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "charbonnier_loss",
    "cosine_embedding_loss",
    "cross_entropy",
    "ctc_loss",
    "dice_loss",
    "focal_loss",
    "gaussian_nll_loss",
    "hinge_embedding_loss",
    "huber_loss",
    "js_divergence",
    "kl_div",
    "kl_divergence",
    "l1_distribution_loss",
    "l1_loss",
    "linear_cross_entropy",
    "log_cosh_loss",
    "log_prob_of",
    "margin_ranking_loss",
    "mse_loss",
    "multi_margin_loss",
    "multilabel_margin_loss",
    "multilabel_soft_margin_loss",
    "nll_loss",
    "poisson_nll_loss",
    "poly_loss",
    "quantile_loss",
    "sigmoid_focal_loss",
    "smooth_l1_loss",
    "soft_cross_entropy",
    "soft_margin_loss",
    "total_variation",
    "triplet_margin_loss",
    "triplet_margin_with_distance_loss",
    "tversky_loss",
]
