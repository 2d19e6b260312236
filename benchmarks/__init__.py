"""Benchmarks of lossops and their results. Not part of the installed package."""
