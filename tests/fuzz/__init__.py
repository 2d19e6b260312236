"""A fuzzer of the raw ops and of the public functions: ``python -m tests.fuzz --help``.

It generates valid calls (:mod:`.raw`, :mod:`.public`), makes some arguments wrong, odd or hostile
(:mod:`.hostile`), and judges the outcome (:mod:`.judge`): a rejected call raises a Python error and
has no side effects, and an accepted call gives correct results.
"""
