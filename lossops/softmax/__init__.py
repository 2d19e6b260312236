"""Losses over rows of class scores, with a label or a distribution per row."""

from lossops.softmax import ops as _ops  # noqa: F401  (declares the raw ops)
