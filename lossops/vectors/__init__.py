"""Losses over rows of one to three vectors."""

from lossops.vectors import ops as _ops  # noqa: F401  (declares the raw ops)
