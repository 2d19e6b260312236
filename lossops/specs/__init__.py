"""One row per loss. Tests, documentation, benchmarks and verify loop over these rows."""

from lossops.specs.elementwise import SPECS
from lossops.specs.others import OTHERS
from lossops.specs.softmax import ROW_SPECS
from lossops.specs.vectors import VECTOR_SPECS

# Elementwise, over rows of class scores, over rows of vectors, and without kernels of their own.
FAMILIES = (SPECS, ROW_SPECS, VECTOR_SPECS, OTHERS)
LOSSES = tuple(row for family in FAMILIES for row in family)
