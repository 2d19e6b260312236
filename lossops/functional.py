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

# ruff: noqa: F403
from __future__ import annotations

from lossops.elementwise.likelihoods import *
from lossops.elementwise.logits import *
from lossops.elementwise.margins import *
from lossops.elementwise.probabilities import *
from lossops.elementwise.regression import *
from lossops.linear.cross_entropy import *
from lossops.sequences import *
from lossops.softmax.classification import *
from lossops.softmax.divergences import *
from lossops.softmax.log_probs import *
from lossops.vectors.hinges import *
from lossops.vectors.pairs import *
from lossops.vectors.regions import *

__all__ = sorted(name for name, value in list(globals().items()) if hasattr(value, "ranges"))
for _name in [name for name, value in globals().items() if isinstance(value, type)]:
    del globals()[_name]  # the modules, which are in lossops.nn
