"""A fuzzer of the raw ops and of the public functions: ``python -m tests.fuzz --help``.

Calls are valid ones (:mod:`.raw`, :mod:`.public`), of which arguments are made wrong, odd or
hostile (:mod:`.hostile`), and judged (:mod:`.judge`): whatever is refused is refused in Python's
words and without a trace; whatever is accepted is right.
"""
