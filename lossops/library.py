"""The raw ops: their schemas and what they compute.

Every backend that is a kernel implements the same ops in a namespace of its own (``lossops`` for
C++ and CUDA C++, ``lossops_triton`` for Triton), so the schemas stand here, once, and exist even
where the compiled extension does not.

Contract of all elementwise ops: ``input``, ``target``, ``weight`` and the tangents have one shape,
broadcast by the caller (stride 0 is fine), and floating dtypes that may differ. ``keep_dims`` is
the number of leading dimensions a reduction keeps: 0 for a scalar, 1 for one number per sample.
``reduction`` is "none", "mean" or "sum"; with "none", ``keep_dims`` is ignored. ``normalizer``
(0-d, or of the kept dimensions' shape) replaces the mean's denominator. ``output_mask`` says which
of the outputs are wanted; the others are None. Those of forward passes are Tensor? in the schemas,
as programs compiled ahead of time need it, and others Tensor, as the vmap behind
``torch.autograd.grad(is_grads_batched=True)`` does.

With L_i = w_i f(x_i, y_i) and s the reduction's factor (1, 1/n or 1/normalizer):

``elementwise_forward``
    the reduced loss, and the gradients for ``grad_output == 1`` (only where nothing is kept).
``elementwise_backward``
    g s w f_x, g s w f_y, g s f.
``elementwise_backward_``
    the same, written over ``grads``; does nothing where ``grad_output``, one number read on the
    device, is 1.
``elementwise_rescale_``
    multiplies ``grads`` by ``grad_output``, one number read on the device; does nothing where it
    is 1.
``elementwise_double_backward``
    with the tangents (a, b, c) of (input, target, weight), missing ones being 0: the derivative of
    the reduced loss in their direction, the reduction of w (a f_x + b f_y) + c f; and the
    derivatives of g s (w (a f_x + b f_y) + c f) by input, target and weight. ``output_mask`` has
    four entries, the first for the directional derivative, which does not contain g.

Contract of all softmax ops: ``input`` has its classes in dimension ``dim``; what is left without it
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

Contract of both vector ops: ``vectors`` are one to three tensors of one dtype and of the shape
(rows, length); ``label`` and ``row_weight``, which multiplies a row's loss, are numbers or have one
per row, but that lists of labels have the shape of the vectors. A mean is over the rows. With x, y
and z the vectors of a row, and ``params`` in brackets:

"cosine_embedding" (margin)
    c = x·y / sqrt((x·x + 1e-12) (y·y + 1e-12)); of a label 1 it is 1 - c, of -1 max(0, c - margin),
    of others 0
"triplet_margin", "triplet_margin_l1" (margin, swap, epsilon)
    max(0, |x - y + epsilon| - |x - z + epsilon| + margin) of Euclidean norms, or of sums of
    absolute values; with ``swap`` not 0, the lesser of the second and |y - z + epsilon|
"multi_margin", "multi_margin_squared" (margin)
    sum_(c != label) max(0, margin - x_label + x_c)^p / length, p being 1 or 2; labels are indices.
    One out of range is a RuntimeError on the CPU; on a GPU it makes its row's loss NaN, the
    gradients of which are 0
"tversky_of_logits", "tversky" (alpha, beta, s)
    1 - (TP + s) / (TP + alpha FP + beta FN + s), with p the sigmoid of x or x itself, and
    TP = sum p y, FP = sum p (1 - y), FN = sum (1 - p) y
"multilabel_margin" ()
    sum_y sum_c max(0, 1 - x_y + x_c) / length over the row's labels y, which are listed before the
    first number below 0, and the indices c that are not. Indices out of range as of "multi_margin";
    what is behind the end of a list is looked at on the CPU alone, and must be -1 or an index there

``vectors_forward``
    the loss, and the gradients by the vectors that ``output_mask`` asks for, for
    ``grad_output == 1`` (only where the loss is a single number).
``vectors_backward``
    the gradients for ``grad_output``, of the shape of the loss.

Every op with ``params`` has a twin, ``…_tensor_params``, that takes them as a tensor on the CPU.
``torch.compile`` makes a symbol of a number that changes from call to call, and a list of numbers
would bind a graph to their values.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NATIVE = "lossops"
TRITON = "lossops_triton"

_PARAMS = "float[] params"
_CALL = f"str loss, {_PARAMS}, str reduction, int keep_dims"
_ROWS_READ = "Tensor target, Tensor? class_weight, Tensor? normalizer"
_ROWS = (
    f"str loss, int dim, str form, str target_form, {_PARAMS}, int ignore_index, "
    "bool one_if_none, str reduction, int keep_dims"
)
_VECTORS_READ = (
    f"Tensor[] vectors, Tensor? label, Tensor? row_weight, str loss, {_PARAMS}, str reduction"
)

SCHEMAS = {
    "elementwise_forward": (
        "(Tensor input, Tensor target, Tensor? weight, Tensor? normalizer, "
        f"{_CALL}, ScalarType out_dtype, bool[3] output_mask) "
        "-> (Tensor, Tensor?, Tensor?, Tensor?)"
    ),
    "elementwise_backward": (
        "(Tensor grad_output, Tensor input, Tensor target, Tensor? weight, Tensor? normalizer, "
        f"{_CALL}, bool[3] output_mask) -> (Tensor, Tensor, Tensor)"
    ),
    "elementwise_backward_": (
        "(Tensor(a!)[] grads, Tensor grad_output, Tensor input, Tensor target, Tensor? weight, "
        f"Tensor? normalizer, {_CALL}, bool[3] output_mask) -> ()"
    ),
    "elementwise_rescale_": "(Tensor(a!)[] grads, Tensor grad_output) -> ()",
    "elementwise_double_backward": (
        "(Tensor? grad_output, Tensor input, Tensor target, Tensor? weight, Tensor? normalizer, "
        "Tensor? tangent_input, Tensor? tangent_target, Tensor? tangent_weight, "
        f"{_CALL}, ScalarType out_dtype, bool[4] output_mask) "
        "-> (Tensor, Tensor, Tensor, Tensor)"
    ),
    "softmax_forward": (
        f"(Tensor input, {_ROWS_READ}, {_ROWS}, ScalarType out_dtype, bool[5] output_mask) "
        "-> (Tensor, Tensor?, Tensor?, Tensor?, Tensor?, Tensor?, Tensor?)"
    ),
    "softmax_forward_": (
        f"(Tensor(a!) input, {_ROWS_READ}, {_ROWS}, ScalarType out_dtype, bool[3] output_mask) "
        "-> (Tensor, Tensor?, Tensor?, Tensor?, Tensor?)"
    ),
    "softmax_backward": (
        "(Tensor? grad_output, Tensor? grad_lse, Tensor? grad_entropy, "
        f"Tensor input, {_ROWS_READ}, {_ROWS}, bool[2] output_mask) -> (Tensor, Tensor)"
    ),
    "softmax_backward_": (
        f"(Tensor(a!)[] grads, Tensor grad_output, Tensor input, {_ROWS_READ}, {_ROWS}, "
        "bool[2] output_mask) -> ()"
    ),
    "vectors_forward": (
        f"({_VECTORS_READ}, ScalarType out_dtype, bool[3] output_mask) "
        "-> (Tensor, Tensor?, Tensor?, Tensor?)"
    ),
    "vectors_backward": (
        f"(Tensor grad_output, {_VECTORS_READ}, bool[3] output_mask) -> (Tensor, Tensor, Tensor)"
    ),
}


class VectorSignature(NamedTuple):
    """What a loss over rows of vectors takes."""

    vectors: int  # of a row
    params: int
    label: str = ""  # of a row: a "number", an "index", or a "list" of indices


VECTOR_SIGNATURES = {
    "cosine_embedding": VectorSignature(2, 1, "number"),
    "triplet_margin": VectorSignature(3, 3),
    "triplet_margin_l1": VectorSignature(3, 3),
    "multi_margin": VectorSignature(1, 1, "index"),
    "multi_margin_squared": VectorSignature(1, 1, "index"),
    "tversky_of_logits": VectorSignature(2, 3),
    "tversky": VectorSignature(2, 3),
    "multilabel_margin": VectorSignature(1, 0, "list"),
}


def loss_shape(input: Tensor, reduction: str, keep_dims: int) -> tuple:
    """The shape of the loss over an input of this shape."""
    return tuple(input.shape if reduction == "none" else input.shape[:keep_dims])


def rows_shape(input: Tensor, dim: int) -> tuple:
    """The shape of what there is one of per row."""
    return (*input.shape[:dim], *input.shape[dim + 1 :])


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype of what a row has besides its loss: lse, entropy, accuracy, denominators."""
    return torch.float64 if dtype == torch.float64 else torch.float32


_libraries = []  # a Library takes its ops with it when it is collected


def define(namespace: str) -> torch.library.Library:
    """Declares the ops in a namespace."""
    library = torch.library.Library(namespace, "DEF")
    for name, schema in SCHEMAS.items():
        _define(library, name, schema)
    _libraries.append(library)
    return library


def _define(library: torch.library.Library, name: str, schema: str) -> None:
    """Declares an op, and its twin where it has hyperparameters."""
    library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    if _PARAMS not in schema:
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
        twin + schema.replace(_PARAMS, "Tensor params"), tags=(torch.Tag.pt2_compliant_tag,)
    )
    library.impl(twin, kernel, "CompositeExplicitAutograd")


def register_fake(library: torch.library.Library, name: str, fake) -> None:
    """Says what an op, and its twin, gives on tensors without data."""
    for form in (name, f"{name}_tensor_params"):
        if hasattr(getattr(torch.ops, library.ns), form):
            torch.library.register_fake(f"{library.ns}::{form}", fake, lib=library)


def implement(namespace: str, name: str, device: str, kernel) -> None:
    """Registers a Python function as the kernel of a raw op on a device type."""
    library = torch.library.Library(namespace, "IMPL")
    library.impl(name, kernel, device.upper())
    _libraries.append(library)


def compose(name: str, schema: str, kernel, fake, backward=None, setup_context=None) -> None:
    """An op that is made of others, wherever these run."""
    library, full = torch.library.Library(NATIVE, "FRAGMENT"), f"{NATIVE}::{name}"
    _define(library, name, schema)
    register_fake(library, name, fake)
    library.impl(name, kernel, "CompositeExplicitAutograd")
    if backward is not None:
        torch.library.register_autograd(full, backward, setup_context=setup_context, lib=library)
    _libraries.append(library)
