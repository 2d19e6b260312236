"""Loss modules: subclasses of those in ``torch.nn``, and modules that torch lacks.

Most ``forward`` methods take the optional ``weight`` of their function in
:mod:`lossops.functional`; those of cross entropy, its relatives and divergences take
``normalizer`` instead. ``reduction`` may also be "sample".
"""

# ruff: noqa: F403
from __future__ import annotations

import torch

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

__all__ = sorted(
    name
    for name, value in list(globals().items())
    if isinstance(value, type) and issubclass(value, torch.nn.Module)
)

for _name in __all__:
    globals()[_name].__module__ = __name__  # where pickles look for the class
for _name in [name for name, value in globals().items() if hasattr(value, "ranges")]:
    del globals()[_name]  # the functions, which are in lossops.functional

# Classes that torch.load may construct by default (weights_only=True): our modules, and the torch
# classes that some of them hold. Loading them only copies attributes and runs no other code.
_HELD = ("Linear", "PairwiseDistance", "LinearCrossEntropyOptions")  # the last: in newer torch only
torch.serialization.add_safe_globals(
    [globals()[name] for name in __all__]
    + [getattr(torch.nn, name) for name in _HELD if hasattr(torch.nn, name)]
)
