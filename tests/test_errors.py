"""Rejected arguments, with exception types and messages, and without side effects."""

from __future__ import annotations

import contextlib
import inspect
import re
import warnings

import pytest
import torch
from conftest import each_spec, make, needs_kernels, pair, raw_ops

import lossops
from lossops import functional
from lossops.core import backends
from lossops.specs.softmax import ROW_SPECS
from lossops.specs.vectors import VECTOR_SPECS

RANGES = [
    pytest.param(name, hyperparameter, id=f"{name}-{hyperparameter}")
    for name in functional.__all__
    for hyperparameter in getattr(functional, name).ranges
]


LABELLED = {row.name for row in ROW_SPECS if not row.samples[0].soft}
LABELLED |= {row.name for row in VECTOR_SPECS if row.given == "index"}


def valid_call(name: str) -> dict:
    """The required arguments of a loss, in their order."""
    names = [
        p.name
        for p in inspect.signature(getattr(functional, name)).parameters.values()
        if p.default is p.empty
    ]
    found = {name: make.rand(4, 5) for name in names}
    if {"index", "target"} & found.keys():
        last = names[-1]
        if name in LABELLED or "linear_weight" in found:
            found[last] = make.arange(4)
        elif name == "cosine_embedding_loss":
            found[last] = make.ones(4)
    return found


def refuses(function, error, message, *tensors):
    """The call raises, its inputs are unchanged, and the next call works."""
    before = [t.clone() for t in tensors]
    with pytest.raises(error, match=message):
        function()
    for tensor, copy in zip(tensors, before, strict=True):
        assert torch.equal(tensor, copy)
    ones = make.ones(3, requires_grad=True)
    functional.mse_loss(ones, make.zeros(3)).backward()
    assert torch.equal(ones.grad, make.full((3,), 2 / 3))


@pytest.mark.parametrize(("name", "hyperparameter"), RANGES)
def test_hyperparameter(name, hyperparameter):
    """Values outside the declared range, by keyword and by position, and what is no number."""
    function, given = getattr(functional, name), valid_call(name)
    held = function.ranges[hyperparameter]
    tensors = [value for value in given.values() if isinstance(value, torch.Tensor)]
    function(*given.values())

    def calls(value):
        yield lambda: function(*given.values(), **{hyperparameter: value})
        parameters = inspect.signature(function).parameters
        if parameters[hyperparameter].kind is inspect.Parameter.KEYWORD_ONLY:
            return
        before = list(parameters)[: list(parameters).index(hyperparameter)]
        positional = [given[n] if n in given else parameters[n].default for n in before]
        rest = {n: given[n] for n in given if n not in before}
        yield lambda: function(*positional, value, **rest)

    for value in (*held.outside, float("nan")):
        message = held.message.format(
            function=name, name=hyperparameter, wanted=held.wanted, value=value
        )
        for call in calls(value):
            refuses(call, held.error, re.escape(message), *tensors)
    for call in calls(make.tensor(0.5, requires_grad=True)):
        refuses(call, TypeError, "not differentiable by it", *tensors)
    for other in ("1.0", make.tensor([0.5]), [0.5], *(() if held.optional else (None,))):
        for call in calls(other):
            refuses(call, TypeError, f"{hyperparameter} should be a number", *tensors)


@pytest.mark.parametrize("name", ["mse_loss", "cross_entropy", "linear_cross_entropy"])
def test_wrong_numbers_of_arguments(name):
    """As Python itself, also where a mode overrides the call."""
    function = getattr(functional, name)
    given = list(valid_call(name).values())
    for mode in (contextlib.nullcontext(), torch.overrides.BaseTorchFunctionMode()):
        with mode:
            function(*given)
            for call in (
                lambda: function(*given[:-1]),
                lambda: function(*given, reduction="mean", no_such_option=1),
                lambda: function(*given, input=given[0]),
                lambda: function(*given, *[None] * 20),
            ):
                with pytest.raises(TypeError, match=rf"{name}\(\)"):
                    call()


@each_spec
def test_reduction(spec):
    x, y = pair(spec, 4)
    others = ("batchmean",) if spec.public_name != "kl_div" else ()
    for bad in ("avg", "MEAN", *others, "", None, 3, ("mean",)):
        refuses(
            lambda bad=bad: spec.function(x, y, reduction=bad),
            ValueError,
            "^" + re.escape(f"{bad} is not a valid value for reduction"),
            x,
            y,
        )


@each_spec
def test_shapes(spec):
    x, w = pair(spec, 4)[0], make.ones(2)
    y = x[:3]
    if spec.other_shapes == "raises":
        refuses(lambda: spec.function(x, y), ValueError, r"[tT]arget size .* input size")
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            refuses(
                lambda: spec.function(x, y),
                RuntimeError,
                r"The size of tensor a \(4\) must match the size of tensor b \(3\)",
                x,
                y,
            )
    refuses(
        lambda: spec.function(x, x, weight=w),
        ValueError,
        r"Weights and input must have the same size. Got weight of shape \(2,\)",
        x,
        w,
    )
    scalar = make.tensor(1.0)
    if spec.expands_weight:
        one = make.tensor([2.0])
        doubled = spec.function(x, x.abs().clamp(max=1), weight=one, reduction="sum")
        plain = spec.function(x, x.abs().clamp(max=1), reduction="sum")
        torch.testing.assert_close(doubled, 2 * plain)
    refuses(
        lambda: spec.function(scalar, scalar, reduction="sample"),
        ValueError,
        "reduction='sample' needs a batch dimension",
        scalar,
    )


@each_spec
def test_types(spec):
    x = make.randn(4)
    for bad, name in (([1.0, 2.0], "list"), (None, "NoneType"), (1.0, "float")):
        for args, argument in (((bad, x), "input"), ((x, bad), "target")):
            refuses(
                lambda args=args: spec.function(*args),
                TypeError,
                f"{argument} should be a Tensor, got {name}",
                x,
            )
    refuses(
        lambda: spec.function(x, x, weight=2.0), TypeError, "weight should be a Tensor, got float"
    )


@each_spec
def test_dtypes(spec):
    if spec.name == "l1_loss":
        integers, complexes = make.arange(4), make.randn(4, dtype=torch.complex64)
        assert spec.function(integers, integers + 2, reduction="sum").item() == 8
        rows = spec.function(complexes, complexes + 3, reduction="sample")
        torch.testing.assert_close(rows, make.full((4,), 3.0))
        assert spec.function(
            complexes[:0, None], complexes[:0, None], reduction="sample"
        ).shape == (0,)
        with pytest.raises(ValueError, match="needs a batch dimension"):
            spec.function(complexes[0], complexes[0], reduction="sample")
        assert spec.function(complexes, complexes + 3).item() == pytest.approx(3)
    else:
        integers = (torch.int64, torch.bool, torch.uint8)
        for bad in () if spec.takes_integers else (torch.complex64, *integers):
            x = make.ones(4).to(bad)
            error = spec.integers if not bad.is_complex else NotImplementedError
            words = "Integral inputs not supported" if error is RuntimeError else "got torch"
            refuses(lambda x=x: spec.function(x, x), error, words, x)
    tiny = make.ones(4).to(torch.float8_e4m3fn)
    with pytest.raises(NotImplementedError, match="should be float64, float32, bfloat16 or"):
        spec.function(tiny, tiny)


@each_spec
def test_devices_and_layouts(spec):
    x = make.randn(4)
    refuses(
        lambda: spec.function(x, torch.empty(4, device="meta")),
        RuntimeError,
        "expected all tensors to be on the same device, "
        f"but found target on meta and input on {x.device}",
        x,
    )
    refuses(
        lambda: spec.function(x.to_sparse(), x),
        NotImplementedError,
        "input should be a dense tensor, got layout torch.sparse_coo",
        x,
    )


@each_spec
def test_deprecated_arguments_warn_and_work(spec):
    function = spec.public
    x, y = pair(spec, 4)
    tensors = (x, torch.zeros_like(x), y) if spec.takes_a_difference else (x, y)
    if "size_average" not in inspect.signature(function).parameters:
        with pytest.raises(TypeError, match="unexpected keyword argument"):
            function(*tensors, size_average=False)
        return
    for old, new in (({"size_average": False}, "sum"), ({"reduce": False}, "none")):
        with pytest.warns(UserWarning, match="size_average and reduce args will be deprecated"):
            found = function(*tensors, **old, **spec.defaults)
        assert torch.equal(found, function(*tensors, reduction=new, **spec.defaults))


@each_spec
def test_signature_is_torchs(spec):
    if spec.torch_function is None:
        return
    ours, theirs = (
        list(inspect.signature(getattr(library, spec.public_name)).parameters.values())
        for library in (lossops.functional, torch.nn.functional)
    )
    for own, other in zip(ours, theirs, strict=False):
        assert (own.name, own.default, own.kind) == (other.name, other.default, other.kind)
    assert len(ours) >= len(theirs)


def test_backend_names():
    with (
        pytest.raises(ValueError, match="should be one of native, triton, reference, got 'cuda'"),
        lossops.backend("cuda"),
    ):
        pass
    if "triton" in backends.backends_for("cpu"):  # as in Triton's interpreter
        return
    x = torch.randn(3, device="cpu")
    with (
        lossops.backend("triton"),
        pytest.raises(RuntimeError, match="'triton' was asked for and cannot run on cpu tensors"),
    ):
        functional.mse_loss(x, x)


@needs_kernels
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "mae"}, "unknown elementwise loss 'mae'"),
        ({"params": (1.0,)}, "params of loss 'mse'"),
        ({"reduction": "avg"}, "reduction should be none, mean or sum"),
        ({"keep_dims": 3}, "keep_dims should be between 0 and 1, got 3"),
        ({"target": make.ones(5)}, r"target should have the shape of input"),
        ({"input": make.ones(4, dtype=torch.int32)}, "input should be float64, float32"),
        ({"output_mask": (True, False, True)}, "gradient of weight, which is not given"),
    ],
)
def test_raw_op(change, message):
    call = {
        "input": make.ones(4), "target": make.ones(4), "weight": None, "normalizer": None,
        "loss": "mse", "params": (), "reduction": "mean", "keep_dims": 0,
        "out_dtype": torch.float32, "output_mask": (False, False, False),
    }  # fmt: skip
    with pytest.raises((RuntimeError, NotImplementedError), match=message):
        raw_ops().elementwise_forward(**{**call, **change})
