"""The implementation of ``make gpu``: builds, tests, checks and measures lossops on a GPU.

The work is split into parts. Each part is a separate process with a time limit, which writes its
results as JSON lines while it works. A part that crashes or hangs does not affect the others, and
its results so far are kept.
"""
