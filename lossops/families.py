"""The families of losses that have kernels of their own, each a folder of this package."""

FAMILIES = ("elementwise", "softmax", "vectors")
