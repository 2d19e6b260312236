"""The families of losses that have their own kernels. Each is a folder of this package."""

FAMILIES = ("elementwise", "softmax", "vectors")
