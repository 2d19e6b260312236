"""The raw ops: how loss families declare them and how backends implement them.

Each kernel backend implements the same ops in its own namespace (``lossops`` for C++ and CUDA C++,
``lossops_triton`` for Triton). A family declares each op once, in its ``ops`` module, with a schema
and a function that checks the arguments of a call. The ops therefore exist even if the compiled
extension does not.

``output_mask`` selects which outputs an op computes; the others are None. In the schemas, optional
outputs of forward passes are ``Tensor?``, which programs compiled ahead of time require. Those of
other ops are ``Tensor``, which the vmap behind ``torch.autograd.grad(is_grads_batched=True)``
requires.

Each op with ``params`` has a variant, ``…_tensor_params``, that takes them as a CPU tensor.
``torch.compile`` represents a number that changes between calls as a symbol, and a list of numbers
would specialise the graph on their values.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, get_type_hints

import torch

from lossops.core.contract import check_memory, check_presence

NATIVE = "lossops"
TRITON = "lossops_triton"
Params = Sequence[float]  # the hyperparameters of a loss
_TYPES = {Params: "float[]"}  # as written in schemas, where they differ from Python's names
PARAMS = f"{_TYPES[Params]} params"


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the values other than the loss: lse, entropy, accuracy, denominators."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@functools.cache
def in_schema(arguments: type) -> str:
    """The fields of a NamedTuple, as arguments of an op."""
    fields = get_type_hints(arguments).items()
    return ", ".join(f"{_TYPES.get(kind) or kind.__name__} {name}" for name, kind in fields)


def empty_like(tensors, mask) -> tuple:
    """Allocates outputs shaped like the tensors; None where the mask is False."""
    pairs = zip(tensors, mask, strict=True)
    return tuple(torch.empty_like(tensor) if wanted else None for tensor, wanted in pairs)


class KernelOps:
    """The raw ops of one backend as attributes. They take hyperparameters as numbers, or as a
    tensor if ``tensor_params``."""

    def __init__(self, namespace: str, tensor_params: bool):
        self.namespace, self.tensor_params = namespace, tensor_params

    def add(self, name: str) -> None:
        ops, twin = getattr(torch.ops, self.namespace), f"{name}_tensor_params"
        op = getattr(ops, twin if self.tensor_params and hasattr(ops, twin) else name)
        setattr(self, name, op.default)


KERNEL_OPS = {
    (namespace, tensor_params): KernelOps(namespace, tensor_params)
    for namespace in (NATIVE, TRITON)
    for tensor_params in (False, True)
}
# Keeps the libraries alive: a Library unregisters its ops when it is garbage collected.
_libraries = [torch.library.Library(namespace, "DEF") for namespace in (NATIVE, TRITON)]


class Declaration(NamedTuple):
    """An op. ``check`` takes the arguments of a call and raises if they violate the contract. It
    returns a function that allocates the outputs without computing their values.

    ``shared`` is a NamedTuple of the arguments that all ops of a family have. Checks, and kernels
    in Python, take them as one argument.
    """

    check: Callable
    schema: str
    shared: type | None

    def packed(self, args: tuple) -> tuple:
        """The arguments of a call, with those that are shared as one."""
        if self.shared is None:
            return args
        first = self.schema.split(in_schema(self.shared))[0].count(",")
        end = first + len(self.shared._fields)
        return *args[:first], self.shared(*args[first:end]), *args[end:]


DECLARED: dict[str, Declaration] = {}
# The same for ops that are composed of those.
COMPOSED: dict[str, Declaration] = {}


def declare(name: str, check: Callable, schema: str, shared: type | None = None) -> None:
    """Declares an op in the namespace of every kernel backend."""
    DECLARED[name] = Declaration(check, schema, shared)
    for library in _libraries[:2]:
        _declare_in(library, name, DECLARED[name])
    for ops in KERNEL_OPS.values():
        ops.add(name)


def declare_all(namespace: str) -> None:
    """Declares the ops of all families in another namespace."""
    library = torch.library.Library(namespace, "DEF")
    for name, op in DECLARED.items():
        _declare_in(library, name, op)
    _libraries.append(library)


def _declare_in(library: torch.library.Library, name: str, op: Declaration) -> None:
    _define(library, name, op.schema)
    arguments = _arguments(library.ns, name)

    def fake(*args):
        check_presence(arguments, args)
        return op.check(*op.packed(args))()

    register_fake(library, name, fake)


def _define(library: torch.library.Library, name: str, schema: str) -> None:
    """Defines an op, and its ``…_tensor_params`` variant if it has hyperparameters."""
    library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    if PARAMS not in schema:
        return
    packet = getattr(getattr(torch.ops, library.ns), name)
    position = [argument.name for argument in packet.default._schema.arguments].index("params")

    def kernel(*args):
        params = args[position]
        if params.device.type != "cpu" or params.dim() != 1 or not params.is_floating_point():
            raise RuntimeError(
                "params should be floating point numbers in a row, on the CPU, got "
                f"{tuple(params.shape)} of {params.dtype} on {params.device}"
            )
        return packet.default(*args[:position], params.tolist(), *args[position + 1 :])

    twin = f"{name}_tensor_params"
    library.define(
        twin + schema.replace(PARAMS, "Tensor params"), tags=(torch.Tag.pt2_compliant_tag,)
    )
    library.impl(twin, kernel, "CompositeExplicitAutograd")


def register_fake(library: torch.library.Library, name: str, fake) -> None:
    """Registers the fake tensor implementation of an op and of its ``…_tensor_params`` variant."""
    for form in (name, f"{name}_tensor_params"):
        if hasattr(getattr(torch.ops, library.ns), form):
            torch.library.register_fake(f"{library.ns}::{form}", fake, lib=library)


def implement(namespace: str, name: str, device: str, kernel: Callable) -> None:
    """Registers a Python function as the kernel of an op for a device type. It takes the shared
    arguments as one."""
    library = torch.library.Library(namespace, "IMPL")
    library.impl(name, _checked(namespace, name, DECLARED[name], kernel), device.upper())
    _libraries.append(library)


def _checked(namespace: str, name: str, op: Declaration, kernel: Callable) -> Callable:
    """A kernel that is called only with arguments that satisfy the contract."""
    arguments = _arguments(namespace, name)

    def checked(*args):
        check_presence(arguments, args)
        packed = op.packed(args)
        op.check(*packed)
        check_memory(
            [(a.name, value, a.is_write) for a, value in zip(arguments, args, strict=True)]
        )
        return kernel(*packed)

    return checked


def _arguments(namespace: str, name: str) -> list[torch._C.Argument]:
    return getattr(getattr(torch.ops, namespace), name).default._schema.arguments


def compose(
    name: str, check: Callable, schema: str, kernel: Callable, backward=None, setup_context=None
) -> None:
    """Declares an op that is composed of other ops, for every device on which those run."""
    COMPOSED[name] = Declaration(check, schema, None)
    library, full = torch.library.Library(NATIVE, "FRAGMENT"), f"{NATIVE}::{name}"
    _declare_in(library, name, COMPOSED[name])
    library.impl(name, _checked(NATIVE, name, COMPOSED[name], kernel), "CompositeExplicitAutograd")

    def refuse(ctx, *grads):
        raise RuntimeError(f"derivative for {full} is not implemented")

    torch.library.register_autograd(
        full, backward or refuse, setup_context=setup_context, lib=library
    )
    _libraries.append(library)
