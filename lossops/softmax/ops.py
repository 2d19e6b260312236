"""The raw ops of the losses over rows of class scores: schemas, contract, results without data.

``input`` has its classes in dimension ``dim``; what is left without it
is the shape of the rows. ``target`` has the shape of the rows and holds class indices (int64, int32
or uint8) where ``target_form`` is "labels"; otherwise it has the shape of ``input``. ``form`` and
``target_form`` say what the numbers of a row are: "logits", "log_probs" or "probs". ``keep_dims``
counts the leading dimensions of the rows' shape that a reduction keeps, none of them behind the
classes. ``params`` are (temperature, softcap, label_smoothing, z_loss, p0, p1), the last two being
the loss's own; a softcap of 0 is none.

Logits are first made z = cap tanh(input / cap) / temperature, and from these
lse = log sum_c exp z_c, log q_c = z_c - lse, and the entropy H = -sum_c q_c log q_c; of a target,
so log p_c. Log-probabilities and probabilities are taken as they are. With w the class weights:

*Label losses* ("cross_entropy", "focal", "poly") of a label y: w_y f(-log q_y). The linear one:
-sum_c t_c log q_c, with t_c = w_c ((1 - label_smoothing) p_c + label_smoothing / C), where p is the
target ("probs"), or 1 for the label and 0 for the others. To that z_loss lse² is added.
*Divergences* ("kl", "reverse_kl", "jensen_shannon", "l1_distribution", "total_variation",
"soft_cross_entropy"): sum_c f(p_c, q_c), a label being p = 1 for its class.

The options of one kind of losses are 0 for the others: a softcap, and z_loss, of label losses of
logits; label_smoothing of "cross_entropy". Class weights are of label losses.

A row whose label is ``ignore_index`` has loss 0, of which the gradients are 0, and does not count;
its lse and entropy are those of any row. A label out of range raises IndexError on the CPU; on a
GPU its row's loss is NaN and the gradients of that are 0. A mean over labels divides by the sum of
their weights (for "focal", their number) unless ``normalizer`` (0-d, or of the kept dimensions'
shape) is given; over other targets by the number of rows. ``one_if_none``: by 1 where that is 0.

``softmax_forward``
    the reduced loss; per row, where ``output_mask`` asks for them (label losses of logits only),
    lse, H and, of labels, whether no class has a higher logit (1 or 0; 0 for rows that do not
    count); the denominator of the mean over labels, for the other ops to be given as
    ``normalizer``; and the gradients by input and target for ``grad_output == 1`` (only where
    nothing is kept).
``softmax_forward_``
    the same, with the gradient by input written over ``input``; none by target.
``softmax_backward``
    the gradients for ``grad_output`` and, where given, the rows' ``grad_lse`` and ``grad_entropy``.
``softmax_backward_``
    the same for ``grad_output`` alone, written over ``grads``; does nothing where it, one number
    read on the device, is 1. Gradients are rescaled by ``elementwise_rescale_``.
"""

from __future__ import annotations

from collections.abc import Callable

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
from lossops.core.library import PARAMS, accumulator, declare, empty_like
from lossops.softmax.reference import DIVERGENCES, LABEL_LOSSES

FORMS = ("logits", "log_probs", "probs")
_ROWS_READ = "Tensor target, Tensor? class_weight, Tensor? normalizer"
_ROWS = (
    f"str loss, int dim, str form, str target_form, {PARAMS}, int ignore_index, "
    "bool one_if_none, str reduction, int keep_dims"
)


def rows_shape(input: Tensor, dim: int) -> tuple:
    """The shape of what there is one of per row."""
    return (*input.shape[:dim], *input.shape[dim + 1 :])


def check_softmax(
    input, target, class_weight, normalizer, loss, dim, form, target_form, params, ignore_index,
    one_if_none, reduction, keep_dims,
) -> tuple:  # fmt: skip
    """Returns the shape of the loss."""
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
    numbers = (0,) * 6 if isinstance(params, Tensor) else params  # as the op looks at them itself
    _, softcap, label_smoothing, z_loss, *_ = numbers
    require(
        label_smoothing == 0 or loss == "cross_entropy",
        lambda: f"loss {loss!r} takes no label_smoothing",
    )
    require(
        softcap == z_loss == 0 or (of_labels and form == "logits"),
        lambda: "softcap and z_loss are for label losses of logits",
    )
    kept = rows[: keep_dims if reduction != "none" else 0]
    check_number_or("normalizer", normalizer, kept, "the loss")
    return rows if reduction == "none" else kept


def _softmax_values(input, target, *call) -> Callable[[], tuple]:
    """Checks a call that gives the loss and, as its mask says, what there is per row."""
    *call, out_dtype, extras = call
    shape = check_softmax(input, target, *call)
    _, normalizer, loss, dim, form, target_form, *_, reduction, _ = call
    check_dtype("out_dtype", out_dtype)
    require(
        not any(extras) or (loss in LABEL_LOSSES and form == "logits"),
        lambda: "lse, entropy and accuracy are those of a label loss of logits",
    )
    require(not extras[2] or target_form == "labels", lambda: "accuracy is that of labels")
    counts = reduction == "mean" and normalizer is None and target_form == "labels"
    extra = accumulator(input.dtype)

    def make() -> tuple:
        per_row = (
            input.new_empty(rows_shape(input, dim), dtype=extra) if wanted else None
            for wanted in extras
        )
        denominator = input.new_empty(shape, dtype=extra) if counts else None
        return input.new_empty(shape, dtype=out_dtype), *per_row, denominator

    return make


def _softmax_forward(input, target, *call):
    *call, reduction, keep_dims, out_dtype, output_mask = call
    require(len(output_mask) == 5, lambda: "output_mask should have 5 entries")
    values = _softmax_values(input, target, *call, reduction, keep_dims, out_dtype, output_mask[:3])
    check_mask(output_mask[3:], (input, target))
    check_gradients_come(output_mask[3:], reduction, keep_dims)
    return lambda: (*values(), *empty_like((input, target), output_mask[3:]))


def _softmax_forward_(input, target, *call):
    *_, reduction, keep_dims, _, output_mask = call
    require(len(output_mask) == 3, lambda: "output_mask should have 3 entries")
    check_gradients_come([True], reduction, keep_dims)
    return _softmax_values(input, target, *call)


def _check_upstream(grad_output, grad_lse, grad_entropy, input, target, call) -> None:
    shape = check_softmax(input, target, *call)
    _, normalizer, loss, dim, form, target_form, *_, reduction, _ = call
    upstream = {"grad_output": grad_output, "grad_lse": grad_lse, "grad_entropy": grad_entropy}
    check_tensors(input.device, **upstream)
    check_number_or("grad_output", grad_output, shape, "the loss")
    for name in ("grad_lse", "grad_entropy"):
        check_number_or(name, upstream[name], rows_shape(input, dim), "rows")
    require(
        grad_lse is grad_entropy is None or (loss in LABEL_LOSSES and form == "logits"),
        lambda: "grad_lse and grad_entropy are of a label loss of logits",
    )
    require(
        any(tensor is not None for tensor in upstream.values()),
        lambda: "softmax_backward needs a gradient of the loss, of lse or of the entropy",
    )
    require(
        reduction != "mean" or target_form != "labels" or normalizer is not None,
        lambda: (
            "the gradients of a mean over labels need its denominator, which softmax_forward "
            "gives, as normalizer"
        ),
    )


def _softmax_backward(grad_output, grad_lse, grad_entropy, input, target, *call):
    *call, output_mask = call
    _check_upstream(grad_output, grad_lse, grad_entropy, input, target, call)
    check_mask(output_mask, (input, target))
    return lambda: empty_like((input, target), output_mask)


def _softmax_backward_(grads, grad_output, input, target, *call):
    *call, output_mask = call
    check_single(grad_output)
    _check_upstream(grad_output, None, None, input, target, call)
    check_gradients(grads, output_mask, (input, target))
    return lambda: None


declare(
    "softmax_forward",
    _softmax_forward,
    f"(Tensor input, {_ROWS_READ}, {_ROWS}, ScalarType out_dtype, bool[5] output_mask) "
    "-> (Tensor, Tensor?, Tensor?, Tensor?, Tensor?, Tensor?, Tensor?)",
)
declare(
    "softmax_forward_",
    _softmax_forward_,
    f"(Tensor(a!) input, {_ROWS_READ}, {_ROWS}, ScalarType out_dtype, bool[3] output_mask) "
    "-> (Tensor, Tensor?, Tensor?, Tensor?, Tensor?)",
)
declare(
    "softmax_backward",
    _softmax_backward,
    "(Tensor? grad_output, Tensor? grad_lse, Tensor? grad_entropy, "
    f"Tensor input, {_ROWS_READ}, {_ROWS}, bool[2] output_mask) -> (Tensor, Tensor)",
)
declare(
    "softmax_backward_",
    _softmax_backward_,
    f"(Tensor(a!)[] grads, Tensor grad_output, Tensor input, {_ROWS_READ}, {_ROWS}, "
    "bool[2] output_mask) -> ()",
)
