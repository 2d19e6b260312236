"""One row per elementwise loss, which describes it for tests, benchmarks, plots and documentation.

The rows come from the declarations of the losses (:func:`lossops.core.declaration.described`). The
library itself never reads them. A declared loss is part of all tests, benchmarks, plots and tables.
"""

from __future__ import annotations

from lossops.elementwise import likelihoods, logits, margins, probabilities, regression
from lossops.specs.spec import Spec

SPECS: tuple[Spec, ...] = tuple(
    Spec(**{"name": function.__name__, "function_itself": function, **row})
    for module in (regression, probabilities, logits, margins, likelihoods)
    for function in vars(module).values()
    if getattr(function, "__module__", "") == module.__name__
    for row in getattr(function, "rows", ())
)

# The losses that compare a prediction with a measurement.
REGRESSION = tuple(row for row in SPECS if row.regression)


def spec(name: str) -> Spec:
    """The row of a loss, by its name in ``lossops.functional``."""
    for row in SPECS:
        if row.name == name:
            return row
    raise KeyError(f"no loss named {name!r}; there are {', '.join(row.name for row in SPECS)}")
