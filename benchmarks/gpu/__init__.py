"""What ``make gpu`` does: builds, tests, checks and measures lossops on a GPU, part by part.

A part is a process of its own with a time limit, which writes what it finds as JSON lines while it
works. So a part that crashes or hangs costs nothing but itself, and what it had found is kept.
"""
