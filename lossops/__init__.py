"""lossops: fused losses for PyTorch. One kernel pass computes the loss and its gradient.

>>> import torch, lossops
>>> predicted = torch.tensor([1.0, 2.0], requires_grad=True)
>>> loss = lossops.functional.huber_loss(predicted, torch.tensor([1.5, 5.0]))
>>> loss.backward()
>>> predicted.grad
tensor([-0.2500, -0.5000])
"""

from lossops import functional, nn
from lossops import scripting as _scripting  # noqa: F401  (prepares what torch.jit.script compiles)
from lossops.core.backends import backend
from lossops.core.labels import label_checks
from lossops.info import info
from lossops.patching import use_in_torch, use_in_torch_always

__all__ = [
    "backend",
    "functional",
    "info",
    "label_checks",
    "nn",
    "use_in_torch",
    "use_in_torch_always",
]
__version__ = "0.1.0"
