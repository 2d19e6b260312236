"""torch.func, torch.compile, autocast and modules of the losses over rows of class scores."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from conftest import DEVICE, expect_ops, expect_softmax_kernels, make, needs_kernels, ran, raw_ops
from softmax_losses import CASES, LABEL_LOSSES, Case, each_softmax_case, leaves, scaled_ulps
from test_transforms import TRANSFORMS as ELEMENTWISE_TRANSFORMS

import lossops
from lossops import functional, nn

# With respect to the input; those with respect to both are for distributions.
TRANSFORMS = {
    "grad": lambda f, x, y: torch.func.grad(f)(x, y),
    "vmap": lambda f, x, y: torch.vmap(f)(x, y),
    "vmap of one": lambda f, x, y: torch.vmap(f, in_dims=(0, None))(x, y[0]),
    "vmap over the last": lambda f, x, y: torch.vmap(f, in_dims=(-1, -1))(
        x.movedim(0, -1), y.movedim(0, -1)
    ),
    "vmap of grad": lambda f, x, y: torch.vmap(torch.func.grad(f))(x, y),
    "grad of vmap": lambda f, x, y: torch.func.grad(lambda a: torch.vmap(f)(a, y).sum())(x),
    "jvp": lambda f, x, y: torch.func.jvp(lambda a: f(a, y), (x,), (x.cos(),)),
    "jvp of grad": lambda f, x, y: torch.func.jvp(
        torch.func.grad(lambda a: f(a, y)), (x,), (x.cos(),)
    ),
    "jacrev": lambda f, x, y: torch.func.jacrev(f)(x, y),
    "jacfwd": lambda f, x, y: torch.func.jacfwd(f)(x, y),
    "hessian": lambda f, x, y: torch.func.hessian(f)(x, y),
    "vmap of hessian": lambda f, x, y: torch.vmap(torch.func.hessian(f))(x, y),
    "third": lambda f, x, y: torch.func.jacfwd(torch.func.hessian(f))(x[0, 0], y[0, 0]),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@each_softmax_case
def test_transform(case, transform):
    """The input is a batch of batches: under vmap, the inner batch has its classes in dimension
    1."""
    x, y, kwargs = case.tensors((2 * 3, 4))
    x, y = x.unflatten(0, (2, 3)), y.unflatten(0, (2, 3))
    if not case.soft:  # if all were ignored, the loss would be NaN
        ignored = kwargs.get("ignore_index", -100)
        y = torch.where(y == ignored, (ignored + 1) % 4, y)
        if case.ignored:
            y[:, 1] = ignored

    def flat(function):
        """Merges two batch dimensions outside vmap, and makes a single row a batch of one."""

        def call(input, target):
            input = input.reshape(-1, 4)
            target = target.reshape(-1, 4) if case.soft else target.reshape(-1)
            return function(input, target, **kwargs)

        return call

    found = TRANSFORMS[transform](flat(case), x, y)
    expected = TRANSFORMS[transform](flat(case.truth), x, y)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "transform", ["grad of both", "jvp", "jvp of grad", "vmap of grad", "hessian"]
)
@pytest.mark.parametrize("case", [case for case in CASES if case.soft], ids=lambda case: case.id)
def test_transform_of_both(case, transform):
    x, y, kwargs = case.tensors((3, 4))
    if transform.startswith("vmap"):
        x, y = x[None].repeat(2, 1, 1), y[None].repeat(2, 1, 1)
    run = ELEMENTWISE_TRANSFORMS[transform]
    if transform.startswith("jvp"):  # with arbitrary tangents, whose sums are not restricted

        def run(f, x, y):
            function = torch.func.grad(f) if "grad" in transform else f
            return torch.func.jvp(function, (x, y), (x.cos(), y.sin()))

    found = run(lambda a, b: case(a, b, **kwargs), x, y)
    torch.testing.assert_close(found, run(lambda a, b: case.truth(a, b, **kwargs), x, y))


def test_vmap_over_weights_and_outputs():
    x = make.randn(3, 6, 5, dtype=torch.float64)
    y = torch.randint(5, (3, 6), device=DEVICE)
    w = make.rand(3, 5, dtype=torch.float64) + 0.2

    def loss(x, y, w):
        return functional.cross_entropy(x, y, w, return_lse=True, return_entropy=True)

    found = torch.vmap(loss)(x, y, w)
    for i in range(3):
        for batch, one in zip(found, loss(x[i], y[i], w[i]), strict=True):
            torch.testing.assert_close(batch[i], one)


def test_per_sample_gradients():
    """The usual recipe: vmap of grad through a model."""
    model = torch.nn.Linear(4, 3).double().to(DEVICE)
    x = make.randn(5, 4, dtype=torch.float64)
    y = torch.randint(3, (5,), device=DEVICE)
    params = {name: p.detach() for name, p in model.named_parameters()}

    def loss(params, x, y):
        out = torch.func.functional_call(model, params, (x[None],))
        return functional.cross_entropy(out, y[None])

    found = torch.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(params, x, y)
    for i in range(5):
        expected = torch.func.grad(loss)(params, x[i], y[i])
        for name in params:
            torch.testing.assert_close(found[name][i], expected[name])


# ---------------------------------------------------------------------------------------------
# torch.compile.


def compiled(function, dynamic):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, dynamic=dynamic)


# Compiling takes seconds, so several losses share a function.
COMPILED = {
    "cross_entropy": [case for case in CASES if case.name == "cross_entropy"],
    "labels": [c for c in CASES if c.name in LABEL_LOSSES and c.name != "cross_entropy"],
    "divergences": [
        case for case in CASES if case.soft and not case.kwargs and case.name != "cross_entropy"
    ],
    "divergences and options": [
        case for case in CASES if "divergence" in case.name and (case.kwargs or not case.soft)
    ],
}


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("group", COMPILED)
def test_compile(group, dynamic):
    """fullgraph with inductor, forward and backward. fullgraph forbids graph breaks."""
    cases = COMPILED[group]
    kwargs = [case.tensors((2, 7), torch.float32)[2] for case in cases]

    def step(*tensors):
        losses = []
        for case, options, x, y in zip(cases, kwargs, tensors[::2], tensors[1::2], strict=True):
            losses.append(case(x * 1, y, **options) * 3)
            losses.append(case(x, y, "none", **options).square().mean())
        return losses

    fast = compiled(step, dynamic)
    for rows in (8, 12):
        drawn = [t for case in cases for t in case.tensors((rows, 7), torch.float32)[:2]]
        results = []
        for function in (fast, step):
            tensors = [t.clone().requires_grad_(t.is_floating_point()) for t in drawn]
            losses = function(*tensors)
            sum(losses).backward()
            results.append([*losses, *(t.grad for t in tensors if t.requires_grad)])
        torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


def test_compile_all_outputs_and_options():
    def step(x, y, w, n):
        loss, lse, entropy, accuracy = functional.cross_entropy(
            x * 1, y, w, label_smoothing=0.1, z_loss=1e-3, softcap=5.0, temperature=0.9,
            normalizer=n, empty="zero", return_lse=True, return_entropy=True,
            return_accuracy=True,
        )  # fmt: skip
        return (
            loss + lse.square().mean() - entropy.mean() + accuracy.sum()
            + functional.log_prob_of(x, y).sum()
            + functional.cross_entropy(x * 2, y, inplace=True)
        )  # fmt: skip

    x = make.randn(6, 5)
    y = torch.randint(5, (6,), device=DEVICE)
    arguments = y, make.rand(5), make.tensor(17.0)
    results = []
    for function in (compiled(step, None), step):
        (leaf,) = leaves(x)
        value = function(leaf, *arguments)
        value.backward()
        results.append((value.detach(), leaf.grad))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


def test_no_graph_break():
    def step(x, y):
        return functional.cross_entropy(x * 1, y) + functional.kl_divergence(x, x.detach().flip(0))

    torch._dynamo.reset()
    x = make.randn(6, 5, requires_grad=True)
    explained = torch._dynamo.explain(step)(x, torch.randint(5, (6,), device=DEVICE))
    assert explained.graph_break_count == 0
    assert explained.graph_count == 1


@needs_kernels
@pytest.mark.parametrize("name", ["cross_entropy", "kl_divergence"])
def test_compiled_code_calls_the_kernels(name):
    seen = {"forward": [], "backward": []}

    def look(which):
        def compile(graph, inputs):
            seen[which] += [n.target for n in graph.graph.nodes if n.op == "call_function"]
            return graph.forward

        return compile

    from torch._dynamo.backends.common import aot_autograd

    torch._dynamo.reset()
    loss = torch.compile(
        lambda x, y: getattr(functional, name)(x, y),
        backend=aot_autograd(fw_compiler=look("forward"), bw_compiler=look("backward")),
        fullgraph=True,
    )
    x = make.randn(8, 5, requires_grad=True)
    y = torch.randint(5, (8,), device=DEVICE)
    loss(x, y if name == "cross_entropy" else make.randn(8, 5)).backward()
    assert raw_ops().softmax_forward.default in seen["forward"]
    assert not [t for t in seen["forward"] if "log_softmax" in str(t)]
    assert raw_ops().softmax_backward.default not in seen["backward"]  # it is a multiplication


@pytest.mark.parametrize("transform", ["grad", "vmap", "vmap of grad", "jvp", "hessian"])
def test_compiled_transform(transform):
    x = make.randn(2, 3, 4, dtype=torch.float64)
    y = torch.randint(4, (2, 3), device=DEVICE)

    def loss(x, y):
        return functional.cross_entropy(x.reshape(-1, 4), y.reshape(-1), label_smoothing=0.1)

    def run(x, y):
        return TRANSFORMS[transform](loss, x, y)

    torch.testing.assert_close(compiled(run, None)(x, y), run(x, y))


# ---------------------------------------------------------------------------------------------
# Autocast, tensors without data, subclasses, modules.


@needs_kernels
@each_softmax_case
def test_autocast(case):
    """As in torch: float32 result, gradient in the tensor's dtype. But no float32 copy is made."""
    x, y, kwargs = case.tensors((9, 7), torch.bfloat16)
    (leaf,) = leaves(x)
    with torch.autocast(DEVICE.type, torch.bfloat16), expect_ops() as names:
        value = case(leaf, y, **kwargs)
        value.backward()
    assert value.dtype == torch.float32
    assert leaf.grad.dtype == torch.bfloat16
    assert not [name for name in ran(names, "aten::") if "copy" in name], names
    assert scaled_ulps(value, case.truth(x, y, **kwargs), 1.0) <= 16


@each_softmax_case
def test_meta_tensors(case):
    x, y, kwargs = case.tensors((6, 4, 3), torch.bfloat16)
    kwargs = {k: v.to("meta") if torch.is_tensor(v) else v for k, v in kwargs.items()}
    x, y = x.to("meta"), y.to("meta")
    for reduction, shape in (("none", (6, 3)), ("mean", ()), ("sum", ()), ("sample", (6,))):
        value = case(x, y, reduction, **kwargs)
        assert value.shape == shape
        assert value.device.type == "meta"
        assert value.dtype == torch.bfloat16


@each_softmax_case
def test_fake_tensors(case):
    from torch._subclasses.fake_tensor import FakeTensorMode

    x, y, kwargs = case.tensors((6, 4), torch.float32)
    with FakeTensorMode() as mode:
        x, y = mode.from_tensor(x), mode.from_tensor(y)
        kwargs = {k: mode.from_tensor(v) if torch.is_tensor(v) else v for k, v in kwargs.items()}
        x.requires_grad_()
        loss = case(x, y, **kwargs)
        loss.backward()
        assert loss.shape == ()
        assert x.grad.shape == x.shape
        with lossops.backend("reference"):  # which looks at the labels if they have values
            assert case(x, y, **kwargs).shape == ()


@each_softmax_case
def test_torch_function_override(case):
    calls = []

    class Wrapped(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            calls.append(getattr(func, "__name__", ""))
            return super().__torch_function__(func, types, args, kwargs or {})

    x, y, kwargs = case.tensors((6, 4), torch.float32)
    value = case(x.as_subclass(Wrapped), y, **kwargs)
    assert isinstance(value, Wrapped)
    assert case.name in calls
    torch.testing.assert_close(value.as_subclass(torch.Tensor), case(x, y, **kwargs))


@each_softmax_case
def test_module(case):
    x, y, kwargs = case.tensors((6, 5), torch.float32)
    for reduction in ("mean", "sum", "none", "sample"):
        module = case.function.module(**kwargs, **case.forms, reduction=reduction)
        expected = case(x, y, reduction, **kwargs)
        saved = pickle.loads(pickle.dumps(module))
        for other in (module, copy.deepcopy(module), saved):
            torch.testing.assert_close(other(x, y), expected, rtol=0, atol=0, equal_nan=True)
        tensors = {k for k, v in kwargs.items() if torch.is_tensor(v)}
        assert len(module.state_dict()) == len(tensors)
        if tensors:
            assert module.double().state_dict().popitem()[1].dtype == torch.float64
    assert repr(module) == repr(saved)
    normalizer = 7.0
    module = case.function.module(**kwargs, **case.forms)
    torch.testing.assert_close(
        module(x, y, normalizer=normalizer), case(x, y, normalizer=normalizer, **kwargs)
    )


@pytest.mark.parametrize("name", ["CrossEntropyLoss", "NLLLoss"])
def test_module_is_torchs(name):
    """The same arguments, attributes and state. A state dict of torch's module can be loaded."""
    own, torchs = getattr(nn, name), getattr(torch.nn, name)
    assert issubclass(own, torchs)
    options = {"ignore_index": 2, "reduction": "sum"}
    if name == "CrossEntropyLoss":
        options["label_smoothing"] = 0.25
    weight = make.rand(5)
    ours, theirs = own(weight.clone(), **options), torchs(weight, **options)
    for attribute in ("reduction", *options):
        assert getattr(ours, attribute) == getattr(theirs, attribute)
    assert ours.extra_repr() == theirs.extra_repr()
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    ours.load_state_dict(torchs(make.rand(5), **options).state_dict())
    assert not torch.equal(ours.weight, weight)
    assert own().weight is None
    assert own().state_dict() == {}
    with pytest.warns(UserWarning, match="size_average and reduce args will be deprecated"):
        assert own(size_average=False).reduction == "sum"


def test_modules_return_what_their_functions_do():
    x, y = make.randn(4, 3), make.tensor([0, 2, 1, 1])
    asked = {"return_lse": True, "return_entropy": True, "return_accuracy": True}
    found = nn.CrossEntropyLoss(**asked)(x, y)
    assert len(found) == 4
    torch.testing.assert_close(found, functional.cross_entropy(x, y, **asked), rtol=0, atol=0)
    none = torch.full((4,), -100, device=DEVICE)
    assert nn.NLLLoss(empty="zero")(x, none) == 0
    assert nn.NLLLoss()(x, none).isnan()


def test_training_with_modules():
    """As a drop-in replacement: after a few steps, both have the same weights."""
    x = make.randn(32, 6)
    y = torch.randint(4, (32,), device=DEVICE)
    results = []
    for loss in (nn.CrossEntropyLoss(label_smoothing=0.1), torch.nn.CrossEntropyLoss(
        label_smoothing=0.1
    )):  # fmt: skip
        torch.manual_seed(0)
        model = torch.nn.Linear(6, 4).to(DEVICE)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(5):
            optimizer.zero_grad()
            loss(model(x), y).backward()
            optimizer.step()
        results.append(model.weight.detach())
    torch.testing.assert_close(*results)


@needs_kernels
@pytest.mark.parametrize("target_form", ["labels", "probs"])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_opcheck(target_form, reduction):
    x = make.rand(4, 5)
    y = torch.randint(5, (4,), device=DEVICE) if target_form == "labels" else make.rand(4, 5)
    soft, scalar = target_form != "labels", reduction == "mean"
    call = (
        "cross_entropy", 1, "logits", target_form, [1.0, 0.0, 0.1, 1e-3, 0.0, 0.0], -100, False,
        reduction, 0,
    )  # fmt: skip
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    ops, w, n = raw_ops(), make.rand(5), make.tensor(3.0)
    mask = [True, True, not soft, scalar, scalar and soft]
    torch.library.opcheck(
        ops.softmax_forward, (x, y, w, None, *call, torch.float32, mask), test_utils=tests
    )
    g = make.rand(()) if scalar else make.rand(4)
    cotangents = g, make.rand(4), make.rand(4)
    torch.library.opcheck(
        ops.softmax_backward, (*cotangents, x, y, w, n, *call, [True, soft]), test_utils=tests
    )
    if scalar:
        arguments = (x.clone(), y, w, None, *call, torch.float32, mask[:3])
        torch.library.opcheck(ops.softmax_forward_, arguments, test_utils=("test_schema",))
        arguments = ([x.clone()], g, x, y, w, n, *call, [True, False])
        torch.library.opcheck(ops.softmax_backward_, arguments, test_utils=("test_schema",))


@needs_kernels
def test_raw_ops_refuse_to_be_differentiated():
    x = make.randn(4, 5, requires_grad=True)
    call = ("kl", 1, "logits", "logits", [1.0, 0.0, 0.0, 0.0, 0.0, 0.0], -100, False, "sum", 0)
    value, *_ = raw_ops().softmax_forward(
        x, make.randn(4, 5), None, None, *call, torch.float32, [False] * 5
    )
    with pytest.raises(RuntimeError, match=r"not implemented|does not require grad"):
        value.backward()


def test_kernels_run_under_no_grad():
    case = Case("cross_entropy")
    x, y, _ = case.tensors((6, 5), torch.float32)
    with torch.inference_mode(), expect_softmax_kernels("forward"):
        case(x, y)
