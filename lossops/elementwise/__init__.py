"""Elementwise losses: one value for each pair of an input and a target element."""

from lossops.elementwise import ops as _ops  # noqa: F401  (declares the raw ops)
