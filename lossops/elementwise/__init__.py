"""Elementwise losses: a number per pair of numbers."""

from lossops.elementwise import ops as _ops  # noqa: F401  (declares the raw ops)
