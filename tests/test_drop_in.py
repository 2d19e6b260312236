"""lossops as a replacement for torch: modules, functions, and the losses without kernels."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import warnings
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as torch_functional
from conftest import DEVICE, make
from torch.testing._internal.common_modules import module_db

from lossops import functional, nn

MODULES = {
    info.module_cls.__name__: info for info in module_db if info.module_cls.__name__ in nn.__all__
}
each_module = pytest.mark.parametrize("name", MODULES)


def test_every_loss_module_is_here():
    has_no_loss_of_its_own = {"AdaptiveLogSoftmaxWithLoss", "NLLLoss2d"}
    losses = {name for name in dir(torch.nn) if name.endswith("Loss")} - has_no_loss_of_its_own
    assert losses <= set(nn.__all__)
    no_samples = {"LinearCrossEntropyLoss", "TripletMarginLoss", "TripletMarginWithDistanceLoss"}
    assert losses - no_samples <= set(MODULES)


def inputs_of(name: str, dtype: torch.dtype):
    info = MODULES[name]
    yield from info.module_inputs_func(
        info, device=DEVICE.type, dtype=dtype, requires_grad=True, training=True
    )


def forward(module, arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return module(*arguments.args, **arguments.kwargs)


@each_module
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_modules(name, dtype):
    """torch's samples for its modules, with the class replaced. Modules are also pickled and
    copied."""
    if dtype not in MODULES[name].dtypes:
        pytest.skip(f"torch has no samples of {name} in {dtype}")
    seen = 0
    for sample in inputs_of(name, dtype):
        seen += 1
        arguments = sample.constructor_input
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = MODULES[name].module_cls(*arguments.args, **arguments.kwargs)
            module = getattr(nn, name)(*arguments.args, **arguments.kwargs)
        module.load_state_dict(theirs.state_dict())
        for each in (theirs, module):
            each.to(device=DEVICE, dtype=dtype)
        expected = forward(theirs, sample.forward_input)
        close = (
            {"rtol": 1e-11, "atol": 1e-12}
            if dtype == torch.float64
            else {"rtol": 2e-5, "atol": 1e-5}
        )
        variants = [module, copy.deepcopy(module)]
        if not any(callable(v) for v in arguments.kwargs.values()):  # lambdas cannot be pickled
            variants.append(pickle.loads(pickle.dumps(module)))
        for each in variants:
            got = forward(each, sample.forward_input)
            torch.testing.assert_close(got, expected, equal_nan=True, **close)
        assert isinstance(repr(module), str)
    assert seen


def made(name: str) -> torch.nn.Module:
    arguments = {"FocalLoss": (make.rand(3),), "LinearCrossEntropyLoss": (4, 3)}
    return getattr(nn, name)(*arguments.get(name, ()))


@pytest.mark.parametrize("name", nn.__all__)
def test_saved_modules_are_loaded(name):
    """Modules survive torch.load with its default of weights only, including changes made to them
    after construction."""
    module = made(name)
    module.eval().requires_grad_(False).double()
    module.reduction = "sum"
    module.register_buffer("more", make.rand(2))
    file = io.BytesIO()
    torch.save({"alone": module, "in a model": torch.nn.Sequential(made(name))}, file)
    file.seek(0)
    with torch.serialization.safe_globals([torch.nn.Sequential]):
        found = torch.load(file, weights_only=True)
    (inner,) = found["in a model"]
    for other, original in ((found["alone"], module), (inner, made(name))):
        assert type(other) is type(original)
        assert repr(other) == repr(original)
        assert other.training == original.training
        assert other.state_dict().keys() == original.state_dict().keys()
        assert vars(other).keys() == vars(original).keys()
    torch.testing.assert_close(found["alone"].state_dict(), module.state_dict())


def test_options_of_saved_modules():
    file = io.BytesIO()
    torch.save(nn.BCEWithLogitsLoss(make.rand(3), pos_weight=2.0, label_smoothing=0.1), file)
    file.seek(0)
    found = torch.load(file, weights_only=True)
    assert (found.pos_weight, found.label_smoothing) == (2.0, 0.1)
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=2)
        file = io.BytesIO()
        torch.save(nn.LinearCrossEntropyLoss(4, 3, options=options), file)
        file.seek(0)
        assert torch.load(file, weights_only=True).options == options


# ---------------------------------------------------------------------------------------------
# The losses that are formulas in plain torch.


def labels(*shape, classes):
    return torch.randint(classes, shape, device=DEVICE)


def signs(*shape):
    return make.randn(*shape).sign()


def _with(function, *fixed, **options):
    """The loss as a function of its first tensors, with the others fixed."""
    return lambda *moving, **more: function(*moving, *fixed, **options, **more)


# name: the tensors to differentiate with respect to, and a function of them.
CASES = {
    "soft_margin": lambda: ([make.randn(4, 3), make.randn(4, 3)], functional.soft_margin_loss),
    "hinge_embedding": lambda: (
        [make.randn(4, 3)], _with(functional.hinge_embedding_loss, signs(4, 3))
    ),
    "margin_ranking": lambda: (
        [make.randn(5), make.randn(5)], _with(functional.margin_ranking_loss, signs(5), 0.3)
    ),
    "multi_margin": lambda: (
        [make.randn(4, 6)],
        _with(functional.multi_margin_loss, labels(4, classes=6), 2, 1.0, make.rand(6).double()),
    ),
    "multilabel_margin": lambda: (
        [make.randn(4, 6)],
        _with(functional.multilabel_margin_loss, make.tensor([[3, 0, -1, 1, 2, 2]] * 4)),
    ),
    "multilabel_soft_margin": lambda: (
        [make.randn(4, 6), make.rand(4, 6)], functional.multilabel_soft_margin_loss
    ),
    "poisson_nll": lambda: (
        [make.randn(4, 3), make.rand(4, 3) + 1.5], _with(functional.poisson_nll_loss, full=True)
    ),
    "poisson_nll of counts": lambda: (
        [make.rand(4, 3) + 0.5, make.rand(4, 3)],
        _with(functional.poisson_nll_loss, log_input=False),
    ),
    "gaussian_nll": lambda: (
        [make.randn(4, 3), make.randn(4, 3), make.rand(4, 1) + 0.5], functional.gaussian_nll_loss
    ),
    "cosine_embedding": lambda: (
        [make.randn(5, 4), make.randn(5, 4)],
        _with(functional.cosine_embedding_loss, signs(5), -0.5),
    ),
    "triplet_margin": lambda: (
        [make.randn(5, 4), make.randn(5, 4), make.randn(5, 4)],
        _with(functional.triplet_margin_loss, margin=3.0, swap=True),
    ),
    "triplet_margin_with_distance": lambda: (
        [make.randn(5, 4), make.randn(5, 4), make.randn(5, 4)],
        _with(functional.triplet_margin_with_distance_loss, margin=3.0),
    ),
    "dice": lambda: (
        [make.randn(3, 2, 4, 5), make.rand(3, 2, 4, 5), make.rand(3, 2, 4, 5)],
        lambda x, y, w, **more: functional.dice_loss(x, y, weight=w, **more),
    ),
    "tversky": lambda: (
        [0.1 + 0.8 * make.rand(3, 7), make.rand(3, 7)],
        _with(functional.tversky_loss, alpha=0.3, beta=0.8, input_form="probs", smooth=0.5),
    ),
    "linear_cross_entropy": lambda: (
        [make.randn(5, 4), make.randn(6, 4)],
        _with(
            functional.linear_cross_entropy, labels(5, classes=6), label_smoothing=0.1, z_loss=0.01,
            softcap=3.0,
        ),
    ),
    "linear_cross_entropy, two rows at a time": lambda: (
        [make.randn(5, 4), make.randn(6, 4)],
        _with(
            functional.linear_cross_entropy, labels(5, classes=6), label_smoothing=0.1, z_loss=0.01,
            softcap=3.0, options=SimpleNamespace(batch_chunk_size=2),
        ),
    ),
}  # fmt: skip
each_formula = pytest.mark.parametrize("name", CASES)
each_reduction = pytest.mark.parametrize("reduction", ["none", "mean", "sum", "sample"])


def case(name: str):
    tensors, function = CASES[name]()
    return [t.double().requires_grad_() for t in tensors], function


@each_formula
@each_reduction
def test_gradcheck(name, reduction):
    moving, function = case(name)

    def loss(*tensors):
        return function(*tensors, reduction=reduction)

    batched = {"check_batched_grad": True, "check_batched_forward_grad": True}
    assert torch.autograd.gradcheck(loss, moving, check_forward_ad=True, **batched)
    assert torch.autograd.gradgradcheck(loss, moving, check_fwd_over_rev=True)


@each_formula
def test_transforms(name):
    """vmap of gradients, and forward over reverse, compared with loops over torch.autograd."""
    moving, function = case(name)
    x, *rest = (t.detach() for t in moving)
    xs = torch.stack([x, x + 0.1, x - 0.2])

    def loss(x):
        return function(x, *rest, reduction="sum")

    batched = torch.func.vmap(torch.func.grad(loss))(xs)
    for one, each in zip(batched, xs, strict=True):
        leaf = each.clone().requires_grad_()
        torch.testing.assert_close(one, torch.autograd.grad(loss(leaf), leaf)[0])
    hessian = torch.func.hessian(loss)(x)
    expected = torch.autograd.functional.hessian(loss, x)
    torch.testing.assert_close(hessian, expected)
    torch.testing.assert_close(torch.func.jacfwd(torch.func.jacrev(loss))(x), expected)


@each_formula
def test_compiles_to_one_graph(name):
    moving, function = case(name)
    torch._dynamo.reset()

    def loss(*tensors):
        return function(*tensors, reduction="mean")

    compiled = torch.compile(loss, fullgraph=True, dynamic=True)
    for _ in range(2):
        tensors = [t.detach().float().requires_grad_() for t in moving]
        expected, got = loss(*tensors), compiled(*tensors)
        torch.testing.assert_close(got, expected)
        for one, other in zip(
            torch.autograd.grad(got, tensors), torch.autograd.grad(expected, tensors), strict=True
        ):
            torch.testing.assert_close(one, other)


@each_formula
def test_autocast(name):
    moving, function = case(name)
    halves = [t.detach().bfloat16().requires_grad_() for t in moving]
    with torch.autocast(DEVICE.type, torch.bfloat16):
        loss = function(*halves)
    # On the CPU, torch does not widen its formulas that are written in Python.
    narrow = {"gaussian_nll", "triplet_margin_with_distance", "multilabel_soft_margin"}
    kept = name in narrow and DEVICE.type == "cpu"
    assert loss.dtype == (torch.bfloat16 if kept else torch.float32)
    loss.backward()
    assert all(t.grad.dtype == torch.bfloat16 for t in halves)


@each_formula
def test_samples_are_rows_averaged(name):
    moving, function = case(name)
    none, sample = function(*moving, reduction="none"), function(*moving, reduction="sample")
    torch.testing.assert_close(sample, none.reshape(none.shape[0], -1).mean(1))
    with pytest.raises(ValueError, match="not a valid value for reduction"):
        function(*moving, reduction="average")


def test_limits():
    """Values at which torch's formulas overflow."""
    x = make.tensor([-1000.0, 1000.0], requires_grad=True)
    loss = functional.soft_margin_loss(x, make.tensor([1.0, 1.0]), reduction="none")
    torch.testing.assert_close(loss, make.tensor([1000.0, 0.0]))
    loss.sum().backward()
    torch.testing.assert_close(x.grad, make.tensor([-1.0, 0.0]))
    target = make.tensor([0.0, 0.5, 3.0], requires_grad=True)
    functional.poisson_nll_loss(make.zeros(3), target, full=True).backward()
    assert target.grad.isfinite().all()


@pytest.mark.parametrize("form", ["logits", "probs"])
def test_overlap_of_regions(form):
    """Compared with the definition. Also dice loss as a special case of Tversky loss, a single
    region, and an empty one."""
    x, y = make.randn(3, 2, 4, 5).double(), make.rand(3, 2, 4, 5).round().double()
    p = torch.sigmoid(x)
    x = p if form == "probs" else x
    true = 1 - (2 * (p * y).sum((2, 3)) + 0.7) / (p.sum((2, 3)) + y.sum((2, 3)) + 0.7)
    found = functional.dice_loss(x, y.bool(), input_form=form, smooth=0.7, reduction="none")
    torch.testing.assert_close(found, true)
    hits, wrong, missed = ((a * b).sum((2, 3)) for a, b in ((p, y), (p, 1 - y), (1 - p, y)))
    true = 1 - (hits + 0.7) / (hits + 0.3 * wrong + 0.8 * missed + 0.7)
    options = {"alpha": 0.3, "beta": 0.8, "input_form": form, "smooth": 0.7}
    found = functional.tversky_loss(x, y, **options, reduction="none")
    torch.testing.assert_close(found, true)
    sample = functional.tversky_loss(x, y, **options, reduction="sample")
    torch.testing.assert_close(sample, true.mean(1))
    module = nn.TverskyLoss(0.3, 0.8, form, 0.7, "sum")
    torch.testing.assert_close(module(x, y), true.sum())
    twice = functional.tversky_loss(
        x, y, weight=make.full(x.shape, 2.0), **options | {"smooth": 1.4}
    )
    torch.testing.assert_close(twice, true.mean())
    empty = make.full((2, 5), 0.0 if form == "probs" else -100.0)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        loss = nn.DiceLoss(form)(empty.to(dtype), make.zeros(2, 5))
        assert loss.item() < 1e-6
    with pytest.raises(ValueError, match="target should have the shape of input"):
        functional.dice_loss(x, y[0])
    with pytest.raises(ValueError, match="input_form should be logits or probs"):
        functional.tversky_loss(x, y, input_form="log_probs")


def test_integers_as_torch_takes_them():
    i, signs_of = make.tensor([1, 2, 3]), make.tensor([1, -1, 1])
    for name, arguments in (
        ("gaussian_nll_loss", (i, make.tensor([10.0, 20.0, 30.0]), 0.5)),
        ("gaussian_nll_loss", (i, i, 0.5)),
        ("poisson_nll_loss", (i, i)),
        ("margin_ranking_loss", (i, -i, -signs_of)),
        ("hinge_embedding_loss", (i, signs_of)),
    ):
        for reduction in ("none", "sum"):
            found, expected = (
                getattr(module, name)(*arguments, reduction=reduction)
                for module in (functional, torch_functional)
            )
            torch.testing.assert_close(found, expected, check_dtype=False)
    weight = make.tensor([10.0, 20.0, 30.0])
    found = functional.hinge_embedding_loss(i, signs_of, weight=weight, reduction="none")
    assert found.tolist() == [10, 0, 90]
    found = functional.margin_ranking_loss(i, -i, -signs_of, weight=weight, reduction="none")
    assert found.tolist() == [20, 0, 180]
    mean = functional.margin_ranking_loss(i, -i, -signs_of)  # the default margin is an integer
    torch.testing.assert_close(mean, torch_functional.margin_ranking_loss(i, -i, -signs_of))
    half, var = make.randn(50).bfloat16(), make.tensor(0.5).bfloat16()
    alone = functional.gaussian_nll_loss(half[0], half, var, reduction="none")
    whole = functional.gaussian_nll_loss(half[0].expand(50), half, var.expand(50), reduction="none")
    assert torch.equal(alone, whole)


def test_modules_take_what_torchs_take():
    """Wrong calls raise as Python itself does, and a module can be traced."""
    x, y = make.randn(3, 4), make.randn(3, 4)
    module = nn.SmoothL1Loss(beta=0.5)
    for call, message in (
        (lambda: module(x), "missing 1 required positional argument: 'target'"),
        (lambda: module(x, y, input=x), "multiple values for argument 'input'"),
        (lambda: module(x, y, size_average=False), "unexpected keyword argument 'size_average'"),
        (lambda: module(x, y, beta=1.0), "unexpected keyword argument 'beta'"),
        (lambda: module(x, y, None, None), "positional arguments but 5 were given"),
    ):
        with pytest.raises(TypeError, match=message):
            call()
    traced = torch.fx.symbolic_trace(module)
    torch.testing.assert_close(traced(x, y), functional.smooth_l1_loss(x, y, beta=0.5))


@pytest.mark.parametrize("name", functional.__all__)
def test_defaults_are_in_their_ranges(name):
    function = getattr(functional, name)
    for argument, allowed in function.ranges.items():
        default = inspect.signature(function).parameters[argument].default
        assert allowed(name, argument, default) == default
