"""The raw ops of the losses over rows of class scores: schemas, contract and fake results.

``input`` has its classes in dimension ``dim``. Its shape without ``dim`` is the shape of the rows.
If ``target_form`` is "labels", ``target`` has the shape of the rows and holds class indices (int64,
int32 or uint8); otherwise it has the shape of ``input``. ``form`` and ``target_form`` state what a
row contains: "logits", "log_probs" or "probs". ``keep_dims`` is the number of leading dimensions of
the rows' shape that a reduction keeps; all of them precede the class dimension. ``params`` are
(temperature, softcap, label_smoothing, z_loss, p0, p1), where p0 and p1 belong to the particular
loss. A softcap of 0 means none.

Logits are first transformed to z = cap tanh(input / cap) / temperature. Then
lse = log sum_c exp z_c, log q_c = z_c - lse, and the entropy is H = -sum_c q_c log q_c. log p_c of
a target is computed in the same way. Log-probabilities and probabilities are used unchanged. w are
the class weights.

*Label losses* ("cross_entropy", "focal", "poly"), for a label y: w_y f(-log q_y). "cross_entropy",
which is linear, is -sum_c t_c log q_c with t_c = w_c ((1 - label_smoothing) p_c +
label_smoothing / C), where p is the target ("probs"), or 1 for the label and 0 for other classes.
z_loss lse² is added to the loss.
*Divergences* ("kl", "reverse_kl", "jensen_shannon", "l1_distribution", "total_variation",
"soft_cross_entropy"): sum_c f(p_c, q_c). A label means p = 1 for its class.

Options that a loss does not support must be 0: softcap and z_loss are for label losses of logits,
label_smoothing is for "cross_entropy". Only label losses take class weights.

A row whose label is ``ignore_index`` has loss 0 and gradients 0 of that loss, and does not count;
its lse and entropy are computed as for any other row. A label out of range raises IndexError on the
CPU; on a GPU the loss of its row is NaN, and the gradients of that loss are 0. A mean over labels
divides by the sum of their weights (for "focal", by their number), or by ``normalizer`` (0-d, or of
the shape of the kept dimensions) if given. A mean over other targets divides by the number of rows.
If ``one_if_none``, a denominator of 0 is replaced by 1.

``softmax_forward``
    Returns the reduced loss; the per-row outputs that ``output_mask`` requests (label losses of
    logits only), which are lse, H and, for labels, 1 if no class has a higher logit than the label
    and 0 otherwise or if the row does not count; the denominator of a mean over labels, which the
    other ops take as ``normalizer``; and the gradients by input and target for ``grad_output == 1``
    (only if the loss is a single number).
``softmax_forward_``
    The same, but writes the gradient by input over ``input``. There is none by target.
``softmax_backward``
    Returns the gradients for ``grad_output`` and, if given, the per-row ``grad_lse`` and
    ``grad_entropy``.
``softmax_backward_``
    The same for ``grad_output`` alone, written over ``grads``. Does nothing if ``grad_output``, a
    single number that is read on the device, is 1. (``elementwise_rescale_`` rescales gradients.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from lossops.core.contract import (
    KERNEL_DTYPES,
    LABEL_DTYPES,
    check_between,
    check_dtype,
    check_gradients,
    check_gradients_come,
    check_mask,
    check_number_or,
    check_reduction,
    check_shape,
    check_single,
    check_tensors,
    require,
)
from lossops.core.library import Params, accumulator, declare, empty_like, in_schema
from lossops.softmax.reference import DIVERGENCES, LABEL_LOSSES

FORMS = ("logits", "log_probs", "probs")
_ROWS_READ = "Tensor target, Tensor? class_weight, Tensor? normalizer"


class SoftmaxArguments(NamedTuple):
    """The arguments that the ops share, other than tensors."""

    loss: str
    dim: int  # class dimension
    form: str
    target_form: str
    params: Params
    ignore_index: int
    one_if_none: bool
    reduction: str  # "none", "mean" or "sum"
    keep_dims: int  # number of leading dimensions that a reduction keeps

    @property
    def gives_a_number(self) -> bool:
        return self.keep_dims == 0 and self.reduction != "none"

    @property
    def has_row_outputs(self) -> bool:
        """Whether rows have a log-sum-exp and an entropy."""
        return self.loss in LABEL_LOSSES and self.form == "logits"


_ROWS = in_schema(SoftmaxArguments)


def rows_shape(input: Tensor, dim: int) -> tuple:
    """The shape of per-row outputs."""
    return (*input.shape[:dim], *input.shape[dim + 1 :])


def check_softmax(input, target, class_weight, normalizer, call: SoftmaxArguments) -> tuple:
    """Checks a call and returns the shape of the loss."""
    loss, dim, form, target_form, params, _, _, reduction, keep_dims = call
    require(
        0 <= dim < input.dim(),
        lambda: f"dim should be between 0 and {input.dim() - 1}, got {dim}",
    )
    check_reduction(reduction)
    check_between("keep_dims", keep_dims, dim)
    require(len(params) == 6, lambda: f"a softmax loss takes 6 parameters, got {len(params)}")
    of_labels = loss in LABEL_LOSSES
    require(of_labels or loss in DIVERGENCES, lambda: f"unknown softmax loss {loss!r}")
    labels = target_form == "labels"
    forms = FORMS[:2] if of_labels else FORMS
    require(form in forms, lambda: f"form of {loss!r} should be one of {forms}, got {form!r}")
    forms = ("labels", *(FORMS if not of_labels else FORMS[2:] if loss == "cross_entropy" else ()))
    require(
        target_form in forms,
        lambda: f"target_form of {loss!r} should be one of {forms}, got {target_form!r}",
    )
    check_tensors(input.device, input=input, class_weight=class_weight, normalizer=normalizer)
    check_tensors(input.device, LABEL_DTYPES if labels else KERNEL_DTYPES, target=target)
    rows = rows_shape(input, dim)
    check_shape("target", target, rows if labels else input.shape, "rows" if labels else "input")
    if class_weight is not None:
        check_shape("class_weight", class_weight, input.shape[dim : dim + 1], "the classes")
        require(of_labels, lambda: f"loss {loss!r} takes no class_weight")
    numbers = (0,) * 6 if isinstance(params, Tensor) else params  # the op checks their values
    _, softcap, label_smoothing, z_loss, *_ = numbers
    require(
        label_smoothing == 0 or loss == "cross_entropy",
        lambda: f"loss {loss!r} takes no label_smoothing",
    )
    require(
        softcap == z_loss == 0 or call.has_row_outputs,
        lambda: "softcap and z_loss are for label losses of logits",
    )
    kept = rows[: keep_dims if reduction != "none" else 0]
    check_number_or("normalizer", normalizer, kept, "the loss")
    return rows if reduction == "none" else kept


def _softmax_values(
    input, target, class_weight, normalizer, call, out_dtype, extras
) -> Callable[[], tuple]:
    """Checks a call that returns the loss and the per-row outputs that its mask requests."""
    shape = check_softmax(input, target, class_weight, normalizer, call)
    check_dtype("out_dtype", out_dtype)
    require(
        not any(extras) or call.has_row_outputs,
        lambda: "lse, entropy and accuracy are those of a label loss of logits",
    )
    labels = call.target_form == "labels"
    require(not extras[2] or labels, lambda: "accuracy is that of labels")
    counts = call.reduction == "mean" and normalizer is None and labels
    extra = accumulator(input.dtype)

    def make() -> tuple:
        per_row = (
            input.new_empty(rows_shape(input, call.dim), dtype=extra) if wanted else None
            for wanted in extras
        )
        denominator = input.new_empty(shape, dtype=extra) if counts else None
        return input.new_empty(shape, dtype=out_dtype), *per_row, denominator

    return make


def _softmax_forward(input, target, class_weight, normalizer, call, out_dtype, output_mask):
    require(len(output_mask) == 5, lambda: "output_mask should have 5 entries")
    tensors = (input, target, class_weight, normalizer)
    values = _softmax_values(*tensors, call, out_dtype, output_mask[:3])
    check_mask(output_mask[3:], (input, target))
    check_gradients_come(output_mask[3:], call.gives_a_number)
    return lambda: (*values(), *empty_like((input, target), output_mask[3:]))


def _softmax_forward_(input, target, class_weight, normalizer, call, out_dtype, output_mask):
    require(len(output_mask) == 3, lambda: "output_mask should have 3 entries")
    check_gradients_come([True], call.gives_a_number)
    return _softmax_values(input, target, class_weight, normalizer, call, out_dtype, output_mask)


def _check_upstream(
    grad_output, grad_lse, grad_entropy, input, target, class_weight, normalizer, call
) -> None:
    shape = check_softmax(input, target, class_weight, normalizer, call)
    upstream = {"grad_output": grad_output, "grad_lse": grad_lse, "grad_entropy": grad_entropy}
    check_tensors(input.device, **upstream)
    check_number_or("grad_output", grad_output, shape, "the loss")
    for name in ("grad_lse", "grad_entropy"):
        check_number_or(name, upstream[name], rows_shape(input, call.dim), "rows")
    require(
        grad_lse is grad_entropy is None or call.has_row_outputs,
        lambda: "grad_lse and grad_entropy are of a label loss of logits",
    )
    require(
        any(tensor is not None for tensor in upstream.values()),
        lambda: "softmax_backward needs a gradient of the loss, of lse or of the entropy",
    )
    require(
        call.reduction != "mean" or call.target_form != "labels" or normalizer is not None,
        lambda: (
            "the gradients of a mean over labels need its denominator, which softmax_forward "
            "gives, as normalizer"
        ),
    )


def _softmax_backward(
    grad_output, grad_lse, grad_entropy, input, target, class_weight, normalizer, call, output_mask
):
    tensors = (input, target, class_weight, normalizer)
    _check_upstream(grad_output, grad_lse, grad_entropy, *tensors, call)
    check_mask(output_mask, (input, target))
    return lambda: empty_like((input, target), output_mask)


def _softmax_backward_(
    grads, grad_output, input, target, class_weight, normalizer, call, output_mask
):
    check_single(grad_output)
    tensors = (input, target, class_weight, normalizer)
    _check_upstream(grad_output, None, None, *tensors, call)
    check_gradients(grads, output_mask, (input, target))
    return lambda: None


declare(
    "softmax_forward",
    _softmax_forward,
    f"(Tensor input, {_ROWS_READ}, {_ROWS}, ScalarType out_dtype, bool[5] output_mask) "
    "-> (Tensor, Tensor?, Tensor?, Tensor?, Tensor?, Tensor?, Tensor?)",
    SoftmaxArguments,
)
declare(
    "softmax_forward_",
    _softmax_forward_,
    f"(Tensor(a!) input, {_ROWS_READ}, {_ROWS}, ScalarType out_dtype, bool[3] output_mask) "
    "-> (Tensor, Tensor?, Tensor?, Tensor?, Tensor?)",
    SoftmaxArguments,
)
declare(
    "softmax_backward",
    _softmax_backward,
    "(Tensor? grad_output, Tensor? grad_lse, Tensor? grad_entropy, "
    f"Tensor input, {_ROWS_READ}, {_ROWS}, bool[2] output_mask) -> (Tensor, Tensor)",
    SoftmaxArguments,
)
declare(
    "softmax_backward_",
    _softmax_backward_,
    f"(Tensor(a!)[] grads, Tensor grad_output, Tensor input, {_ROWS_READ}, {_ROWS}, "
    "bool[2] output_mask) -> ()",
    SoftmaxArguments,
)
