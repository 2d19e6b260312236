"""Part two of the comparison with torch: its criterion tests, and its losses written in plain
Python."""

from __future__ import annotations

import inspect

import pytest
import torch
from conftest import DEVICE, cpu_only
from torch.testing._internal import common_nn
from torch.testing._internal.common_methods_invocations import op_db

import lossops
from lossops import functional, nn

pytestmark = [cpu_only, pytest.mark.filterwarnings("ignore")]

CRITERIONS = {test["fullname"]: test for test in common_nn.criterion_tests}
# Modules made of a loss and a fixed target, under the name of the loss.
MODULES = {
    test["fullname"]: test
    for test in common_nn.get_new_module_tests()
    if "loss" in test.get("fullname", "").lower() and "reference_fn" in test
}
FUNCTIONS = {
    "KLDivLoss": "kl_div", "NLLLoss": "nll_loss", "NLLLossNd": "nll_loss",
    "SmoothL1Loss": "smooth_l1_loss", "HuberLoss": "huber_loss",
    "MultiLabelMarginLoss": "multilabel_margin_loss", "HingeEmbeddingLoss": "hinge_embedding_loss",
    "SoftMarginLoss": "soft_margin_loss", "MultiMarginLoss": "multi_margin_loss",
    "CosineEmbeddingLoss": "cosine_embedding_loss", "TripletMarginLoss": "triplet_margin_loss",
    "MarginRankingLoss": "margin_ranking_loss", "CTCLoss": "ctc_loss",
    "CrossEntropyLoss": "cross_entropy", "LinearCrossEntropyLoss": "linear_cross_entropy",
}  # fmt: skip
if not hasattr(torch.nn, "LinearCrossEntropyLoss"):  # before torch 2.13
    del FUNCTIONS["LinearCrossEntropyLoss"]
# This option of kl_div, which is in the samples below, has a reference of its own.
OTHERS = {"KLDivLoss_log_target"}


def numbers(test, what: str):
    if f"{what}_fn" in test:
        return test[f"{what}_fn"]()
    if what in test:
        return test[what]
    return torch.rand(test[f"{what}_size"], dtype=test.get("default_dtype"))


def test_nothing_is_left_out():
    assert set(common_nn.loss_reference_fns) == set(FUNCTIONS) | OTHERS
    assert len(CRITERIONS) >= 48
    assert len(MODULES) >= 40


@pytest.mark.parametrize("name", CRITERIONS)
def test_criterions(name):
    """A sample without a batch dimension is a batch of one."""
    test = CRITERIONS[name]
    theirs = test["constructor"]()
    ours = getattr(nn, type(theirs).__name__)(reduction=theirs.reduction)
    input, target = numbers(test, "input"), numbers(test, "target")
    inputs = input if isinstance(input, tuple) else (input,)
    wanted = test["reference_fn"](input, target, theirs)
    torch.testing.assert_close(ours(*inputs, target), wanted)
    with lossops.use_in_torch():
        torch.testing.assert_close(theirs(*inputs, target), wanted)


@pytest.mark.parametrize("name", MODULES)
def test_modules(name):
    test = MODULES[name]
    module, input = test["constructor"](), numbers(test, "input")
    with lossops.use_in_torch():
        found = module(input)
    parameters = len(inspect.signature(test["reference_fn"]).parameters)
    wanted = test["reference_fn"](*(input, [], module)[:parameters])
    torch.testing.assert_close(found, torch.as_tensor(wanted, dtype=found.dtype))


# Limitations of the references: the numbers of input dimensions that they support.
DIMENSIONS = {"NLLLoss": (2,), "NLLLossNd": (3, 4, 5), "CosineEmbeddingLoss": (2,)}


def arguments(name: str, sample) -> tuple[tuple, dict] | None:
    """The sample in the form that the reference accepts, or None if it does not."""
    given, options = (sample.input, *sample.args), dict(sample.kwargs)
    if sample.input.dim() not in DIMENSIONS.get(name, range(9)):
        return None
    if name == "HingeEmbeddingLoss":  # labels must be 1 and -1
        given = (given[0], torch.where(given[1] > 0, 1.0, -1.0), *given[2:])
    if not options.get("zero_infinity", True):
        del options["zero_infinity"]
    try:
        inspect.signature(common_nn.loss_reference_fns[name]).bind(*given, **options)
    except TypeError:  # an option that the reference lacks
        return None
    return given, options


@pytest.mark.parametrize("name", FUNCTIONS)
def test_references(name):
    """Every sample that torch's reference accepts."""
    reference, compared = common_nn.loss_reference_fns[name], 0
    for op in (op for op in op_db if op.name == f"nn.functional.{FUNCTIONS[name]}"):
        for sample in op.sample_inputs(DEVICE.type, torch.float64, requires_grad=False):
            if (taken := arguments(name, sample)) is None:
                continue
            given, options = taken
            found = getattr(functional, FUNCTIONS[name])(*given, **options)
            wanted = torch.as_tensor(reference(*given, **options), dtype=found.dtype)
            torch.testing.assert_close(found, wanted)
            compared += 1
    assert compared
