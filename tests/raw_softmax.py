"""The contract of the raw softmax ops, for checking any backend: random arguments, and the expected
results in float64 from the reference."""

from __future__ import annotations

import math

import raw_ops
import torch
from raw_ops import FLOAT32, FLOAT64

from lossops.core.formulas import reduce
from lossops.core.library import accumulator
from lossops.softmax import reference as softmax_reference
from lossops.softmax.reference import DIVERGENCES, LABEL_LOSSES

LOSSES = [*LABEL_LOSSES, *DIVERGENCES]
# Hyperparameters other than the defaults, because 1 would hide a factor.
OWN_PARAMS = {loss: (0.75, 0.0) for loss in LABEL_LOSSES if loss != "cross_entropy"}
OWN_PARAMS["focal"] = (1.75, 0.0)
IGNORED = -100
OPTIONS = {
    "temperature": 1.0, "softcap": 0.0, "smoothing": 0.0, "z_loss": 0.0, "ignore_index": IGNORED,
    "one_if_none": False,
}  # fmt: skip


class Case:
    """Random arguments of the raw softmax ops, and the expected results.

    ``rows`` is the shape of the rows, and ``dim`` the position of the class dimension.
    """

    def __init__(
        self, backend, rows, classes, loss="cross_entropy", *, dim=None, dtypes=(FLOAT32, FLOAT32),
        form="logits", target_form="labels", reduction="mean", keep_dims=0, weighted=False,
        ignored=0.0, normalizer=None, out_dtype=None, labels=torch.int64, spread=2.0, **options,
    ):  # fmt: skip
        self.backend, self.loss = backend, loss
        self.dim = len(rows) if dim is None else dim
        self.form, self.target_form = form, target_form
        self.reduction, self.keep_dims = reduction, keep_dims
        self.normalizer = normalizer
        assert not set(options) - set(OPTIONS), options
        self.options = OPTIONS | options
        self.draw = raw_ops.generator()
        shape = (*rows[: self.dim], classes, *rows[self.dim :])
        x_dtype, y_dtype = dtypes
        self.input = self.numbers(shape, form, spread).to(x_dtype)
        if target_form == "labels":
            self.target = torch.randint(0, max(classes, 1), rows, generator=self.draw)
            if ignored:
                skipped = torch.rand(rows, generator=self.draw) < ignored
                self.target = torch.where(skipped, self.options["ignore_index"], self.target)
            self.target = self.target.to(labels)
            self.out_dtype = out_dtype or x_dtype
        else:
            self.target = self.numbers(shape, target_form, spread).to(y_dtype)
            self.out_dtype = out_dtype or torch.promote_types(*dtypes)
        self.class_weight = None
        if weighted:
            self.class_weight = torch.rand(classes, generator=self.draw).to(x_dtype) + 0.25
        extra = accumulator(x_dtype)
        kept = rows if reduction == "none" else rows[:keep_dims]
        self.grad_output = self.normal(kept).to(self.out_dtype)
        self.grad_lse = self.grad_entropy = None
        if self.has_extras:
            self.grad_lse, self.grad_entropy = (self.normal(rows).to(extra) for _ in range(2))

    def normal(self, shape):
        return torch.randn(shape, generator=self.draw, dtype=FLOAT64)

    def numbers(self, shape, form, spread):
        scores = spread * self.normal(shape)
        if form == "logits":
            return scores
        return (scores.softmax if form == "probs" else scores.log_softmax)(self.dim)

    def counts(self):
        """The rows that have a valid label."""
        classes = self.input.shape[self.dim]
        target = self.target.long()  # in uint8, -100 would be 156
        return (target >= 0) & (target < classes) & (target != self.options["ignore_index"])

    @property
    def params(self):
        o = self.options
        own = OWN_PARAMS.get(self.loss, (0.0, 0.0))
        return [o["temperature"], o["softcap"], o["smoothing"], o["z_loss"], *own]

    @property
    def call(self):
        return (
            self.loss, self.dim, self.form, self.target_form, self.params,
            self.options["ignore_index"], self.options["one_if_none"], self.reduction,
            self.keep_dims,
        )  # fmt: skip

    @property
    def read(self):
        return self.target, self.class_weight, self.normalizer

    @property
    def scalar(self):
        return self.reduction != "none" and self.keep_dims == 0

    def read_again(self):
        """The arguments for the ops that follow softmax_forward. They take the denominator of the
        mean."""
        target, class_weight, normalizer = self.read
        if self.counted:
            normalizer = self.forward([False] * 5)[4]
        return target, class_weight, normalizer

    @property
    def counted(self):
        """Whether softmax_forward counts the labels."""
        return self.reduction == "mean" and self.normalizer is None and not self.soft

    @property
    def has_extras(self):
        """Whether rows have a log-sum-exp, an entropy and an accuracy."""
        return self.form == "logits" and self.loss in LABEL_LOSSES

    @property
    def soft(self):
        return self.target_form != "labels"

    def to_device(self):
        for name in (
            "input", "target", "class_weight", "normalizer", "grad_output", "grad_lse",
            "grad_entropy",
        ):  # fmt: skip
            tensor = getattr(self, name)
            if tensor is not None:
                setattr(self, name, tensor.to(self.backend.device))
        return self

    # Results of the kernels.

    def forward(self, mask=None):
        """Loss, lse, entropy, accuracy, denominator, and the two gradients."""
        if mask is None:
            extras = self.has_extras
            mask = [
                extras,
                extras,
                extras and not self.soft,
                self.scalar,
                self.scalar and self.soft,
            ]
        return self.backend.ops.softmax_forward(
            self.input, *self.read, *self.call, self.out_dtype, mask
        )

    def forward_(self, input, mask=(False, False, False)):
        """The same, overwriting ``input``, without gradients."""
        return self.backend.ops.softmax_forward_(
            input, *self.read, *self.call, self.out_dtype, list(mask)
        )

    def backward(self, mask=None, **changes):
        grads = {
            "grad_output": self.grad_output, "grad_lse": self.grad_lse,
            "grad_entropy": self.grad_entropy,
        } | changes  # fmt: skip
        mask = [True, self.soft] if mask is None else mask
        return self.backend.ops.softmax_backward(
            *grads.values(), self.input, *self.read_again(), *self.call, mask
        )

    def backward_(self, grads, mask=None):
        mask = [True, self.soft] if mask is None else mask
        self.backend.ops.softmax_backward_(
            grads, self.grad_output, self.input, *self.read_again(), *self.call, mask
        )

    # Expected results.

    def rows(self, input, target):
        weight = None if self.class_weight is None else self.class_weight.double()
        normalizer = None if self.normalizer is None else self.normalizer.double()
        return softmax_reference.softmax(
            input, target, weight, normalizer, *self.call, out_dtype=FLOAT64
        )

    def truth(self, grad_output=None, grad_lse=None, grad_entropy=None):
        """The results of the rows, and the gradients of input and target (None for labels)."""
        leaves = [self.input.detach().double().clone().requires_grad_()]
        target = self.target
        if self.soft:
            target = target.detach().double().clone().requires_grad_()
            leaves.append(target)
        rows = self.rows(leaves[0], target)
        total = torch.zeros((), dtype=FLOAT64, device=self.input.device)
        for output, grad in (
            (rows.loss, grad_output), (rows.lse, grad_lse), (rows.entropy, grad_entropy),
        ):  # fmt: skip
            if grad is not None:
                total = total + (output * grad.double()).sum()
        grads = [torch.zeros_like(leaf) for leaf in leaves]
        if total.requires_grad:
            grads = torch.autograd.grad(total, leaves, materialize_grads=True)
        rows = softmax_reference.Rows(*(t.detach() for t in rows))
        return rows, *grads, *[None] * (2 - len(grads))

    # Allowed errors.

    def check(self):
        """Checks all results of softmax_forward and softmax_backward."""
        self.to_device()
        errors = Errors(self)
        rows, *ones = self.truth(torch.ones_like(self.grad_output))
        loss, lse, entropy, accuracy, denominator, *grads = self.forward()
        assert loss.dtype == self.out_dtype
        self.compare("loss", loss, rows.loss, errors.loss())
        for name, got, expected, error in (
            ("lse", lse, rows.lse, errors.lse), ("entropy", entropy, rows.entropy, errors.entropy),
        ):  # fmt: skip
            assert (got is not None) == self.has_extras, name
            if got is not None:
                assert got.dtype == accumulator(self.input.dtype)
                self.compare(name, got, expected, error)
        self.check_accuracy(accuracy, rows.accuracy)
        self.check_denominator(denominator)
        if self.scalar:
            one = torch.ones_like(self.grad_output)
            self.compare_gradients(grads, ones, errors.gradients(one, None, None))
        else:
            assert grads == [None, None]
        given = self.grad_output, self.grad_lse, self.grad_entropy
        _, *expected = self.truth(*given)
        self.compare_gradients(self.backward(), expected, errors.gradients(*given))
        return self

    def check_accuracy(self, got, expected):
        assert (got is not None) == (self.has_extras and not self.soft)
        if got is None or not self.input.numel():
            return
        assert got.shape == expected.shape
        assert set(got.unique().tolist()) <= {0.0, 1.0}
        # Two logits that are equal in float32 need not be equal here.
        scores = self.input.detach().double()
        safe = torch.where(self.counts(), self.target, 0).long().unsqueeze(self.dim)
        own, best = scores.gather(self.dim, safe).squeeze(self.dim), scores.amax(self.dim)
        clear = (own == best) | (best - own > 1e-4) | best.isnan()
        assert torch.equal(got[clear].double(), expected[clear].double())

    def units(self):
        """The denominator of a mean over labels."""
        units = self.counts().double()
        if self.class_weight is not None and self.loss in softmax_reference.DIVIDES_BY_WEIGHT:
            safe = torch.where(self.counts(), self.target, 0).long()
            units = units * self.class_weight.double()[safe]
        return reduce(units, "sum", self.keep_dims)

    def check_denominator(self, got):
        assert (got is not None) == self.counted
        if not self.counted:
            return
        expected = self.units()
        if self.options["one_if_none"]:
            expected = torch.where(expected == 0, 1.0, expected)
        assert got.dtype == accumulator(self.input.dtype)
        self.compare("denominator", got, expected, expected)

    def compare_gradients(self, got, expected, errors):
        for name, tensor, truth, error, operand in zip(
            ("grad_input", "grad_target"), got, expected, errors, (self.input, self.target),
            strict=True,
        ):  # fmt: skip
            if truth is None:
                assert tensor is None
                continue
            assert tensor.dtype == operand.dtype
            assert tensor.stride() == torch.empty_like(operand).stride()
            self.compare(name, tensor, truth, error)

    def compare(self, name, got, expected, error):
        double = FLOAT64 in (self.input.dtype, self.out_dtype)
        compute = torch.finfo(FLOAT64 if double else FLOAT32)
        described = {k: v for k, v in self.options.items() if v != OPTIONS[k]}
        what = f"{name} of {self.call[:4]} {described}"
        error = 8 * (expected.abs() + error + compute.tiny / compute.eps)
        raw_ops.compare(what, self.backend, got, expected, error, double)


class Errors:
    """Bounds of the rounding errors, in eps of the compute dtype. They consist of the sizes of the
    terms, and of the effect of an error in log q or log p, which is proportional to the numbers
    that these are computed from.

    The classes are the last dimension here.
    """

    def __init__(self, case: Case):
        self.case, o = case, case.options
        own = OWN_PARAMS.get(case.loss, (0.0, 0.0))[: case.loss in OWN_PARAMS]
        x = case.input.detach().double().movedim(case.dim, -1)
        self.slope = torch.ones_like(x)
        z = x
        if case.form == "logits":
            if o["softcap"]:
                self.slope = 1 - torch.tanh(x / o["softcap"]).square()
                z = o["softcap"] * torch.tanh(x / o["softcap"])
            z = z / o["temperature"]
        rounded = o["softcap"] != 0 or o["temperature"] != 1
        log_q, self.q, self.e_q, self.lse, self.entropy, h = self.distribution(
            z, case.form, rounded
        )
        self.log_q, self.h, self.true_lse = log_q, h, z.logsumexp(-1)

        linear = case.loss == "cross_entropy"
        log_q = log_q.clone().requires_grad_()
        log_p = self.e_p = self.p = None
        counts = 1.0
        if case.target_form == "labels":
            counts = case.counts().double()
            safe = torch.where(case.counts(), case.target, 0).long()
            p = torch.nn.functional.one_hot(safe, x.shape[-1]).double()
            self.e_p = torch.zeros_like(p)
            if case.loss in DIVERGENCES:
                log_p = torch.where(p == 0, -math.inf, 0.0)
        else:
            y = case.target.detach().double().movedim(case.dim, -1)
            y = y / o["temperature"] if case.target_form == "logits" else y
            warm = o["temperature"] != 1
            log_p, _, self.e_p, *_ = self.distribution(y, case.target_form, warm)
            log_p = log_p.clone().requires_grad_()
            p = log_p.exp()
        self.p = p.detach()
        if case.loss in DIVERGENCES:
            terms = DIVERGENCES[case.loss](p, log_p, log_q.exp(), log_q)
        else:
            weight = torch.ones(x.shape[-1], dtype=FLOAT64, device=x.device)
            if case.class_weight is not None:
                weight = case.class_weight.double()
            t = p
            if o["smoothing"]:
                t = (1 - o["smoothing"]) * p + o["smoothing"] / x.shape[-1]
            f = -log_q if linear else LABEL_LOSSES[case.loss](-log_q, *own)
            terms = torch.where(t == 0, 0.0, weight * t * f)
        terms = terms * (counts.unsqueeze(-1) if torch.is_tensor(counts) else counts)

        leaves = [log_q] + ([log_p] if log_p is not None and log_p.requires_grad else [])
        firsts = torch.autograd.grad(terms.sum(), leaves, create_graph=True, materialize_grads=True)
        errors = [self.e_q, self.e_p]
        self.firsts, self.first_errors = [], []
        for first in firsts:
            error = first.detach().abs()
            if first.requires_grad:
                seconds = torch.autograd.grad(
                    first.sum(), leaves, retain_graph=True, materialize_grads=True
                )
                for second, e in zip(seconds, errors, strict=False):
                    error = error + torch.where(e == 0, 0.0, second.abs() * e)
            self.firsts.append(first.detach())
            self.first_errors.append(error)
        if case.loss in ("l1_distribution", "total_variation"):
            self.allow_either_sign()
        self.terms = terms.detach().abs().sum(-1)
        for first, e in zip(self.firsts, errors, strict=False):
            self.terms = self.terms + torch.where(e == 0, 0.0, first.abs() * e).sum(-1)
        if case.loss == "jensen_shannon":  # its truth is a difference of logarithms in float64
            double = FLOAT64 in (case.input.dtype, case.out_dtype)
            share = torch.finfo(FLOAT64).eps / torch.finfo(FLOAT64 if double else FLOAT32).eps
            for side, log in ((self.p, log_p), (self.q, log_q)):
                sizes = torch.where(side == 0, 0.0, side * log.detach().abs())
                self.terms = self.terms + share * sizes.sum(-1)
        # The term z_loss lse².
        self.counts = counts
        lse, z_loss = self.true_lse.abs(), abs(o["z_loss"]) * counts
        if case.loss in LABEL_LOSSES and o["z_loss"]:
            self.terms = self.terms + z_loss * lse * (lse + 2 * self.lse)
            self.by_lse = 2 * z_loss * lse
            self.by_lse_error = 2 * z_loss * (lse + self.lse)
        else:
            self.by_lse = self.by_lse_error = torch.zeros_like(lse)

    def distribution(self, z, form, rounded):
        """log q and q; the error of log q, which is the relative error of q; the errors of lse and
        H; and the sum of the entropy's terms without their signs."""
        if form == "probs":
            log_q, q = z.log(), z
        elif form == "log_probs":
            log_q, q = z, z.exp()
        else:
            log_q, q = z.log_softmax(-1), z.softmax(-1)
        parts = torch.where(q == 0, 0.0, -q * log_q)
        h = parts.sum(-1)
        if form != "logits":
            e = torch.where(q == 0, 0.0, 1 + log_q.abs())  # 0 is exact
            return log_q, q, e, h, h, h
        best = z.amax(-1, keepdim=True) if z.shape[-1] else z.sum(-1, keepdim=True)
        lse = z.logsumexp(-1)
        base = 1 + h
        if rounded:
            base = base + 4 * (q * z.abs()).sum(-1)
        e = (best - z) + (lse.unsqueeze(-1) - best) + base.unsqueeze(-1)
        if rounded:
            e = e + 4 * z.abs()
        entropy = ((parts + q) * (1 + e)).sum(-1)
        return log_q, q, e, lse.abs() + base, entropy, h

    def allow_either_sign(self):
        """If p and q are equal up to rounding, the derivative of |p - q| may have either sign."""
        q, p = self.q, self.p
        double = FLOAT64 in (self.case.input.dtype, self.case.out_dtype)
        eps = torch.finfo(FLOAT64 if double else FLOAT32).eps
        tie = (p - q).abs() <= 16 * eps * (p * (1 + self.e_p) + q * (1 + self.e_q))
        sizes = [q, p]
        self.first_errors = [
            error + torch.where(tie, 2 * size / eps, 0.0)
            for error, size in zip(self.first_errors, sizes, strict=False)
        ]

    def loss(self):
        case = self.case
        normalizer = self.denominator()
        if case.reduction == "none":
            return self.terms
        return 2 * reduce(self.terms, "sum", case.keep_dims) / normalizer.abs()

    def denominator(self):
        case = self.case
        one = torch.ones((), dtype=FLOAT64, device=case.input.device)
        if case.reduction == "none":
            return one
        if case.normalizer is not None:
            return case.normalizer.double()
        if case.reduction == "sum":
            return one
        if case.soft:
            return one * max(math.prod(self.terms.shape[case.keep_dims :]), 1)
        total = case.units()
        return torch.where(total == 0, 1.0, total)

    def gradients(self, grad_output, grad_lse, grad_entropy):
        case, o = self.case, self.case.options
        factor = (grad_output.double() / self.denominator()).abs()
        if case.reduction != "none":
            factor = factor.reshape(factor.shape + (1,) * (self.terms.dim() - factor.dim()))
        factor = factor.expand(self.terms.shape).unsqueeze(-1)
        size, error = self.through(0, case.form, self.q, self.e_q)
        if case.form == "logits":
            by_lse = self.by_lse.unsqueeze(-1) * self.q
            error = error + by_lse * (1 + self.e_q) + self.by_lse_error.unsqueeze(-1) * self.q
            size = size + by_lse
        size, error = factor * size, factor * error
        if grad_lse is not None:
            grad = grad_lse.double().abs().unsqueeze(-1) * self.q
            size, error = size + grad, error + grad * (1 + self.e_q)
        if grad_entropy is not None:
            grad = grad_entropy.double().abs().unsqueeze(-1) * self.q
            wide = torch.where(self.q == 0, 0.0, self.log_q.abs()) + 1
            size = size + grad * (wide + self.h.unsqueeze(-1))
            error = error + grad * ((wide + self.h.unsqueeze(-1)) * (1 + self.e_q) + self.e_q)
            error = error + grad * self.entropy.unsqueeze(-1)
        if case.form == "logits":
            error = (error * self.slope + size * (o["softcap"] != 0)) / o["temperature"]
        errors = [error.movedim(-1, case.dim)]
        if not case.soft:
            return errors[0], None
        if case.loss in LABEL_LOSSES:  # with respect to p itself, which may be 0
            weight = 1.0 if case.class_weight is None else case.class_weight.double().abs()
            by_p = weight * (self.log_q.abs() + self.e_q)
        else:
            _, by_p = self.through(1, case.target_form, self.p, self.e_p)
            if case.target_form == "logits":
                by_p = by_p / o["temperature"]
        errors.append((factor * by_p).movedim(-1, case.dim))
        return errors

    def through(self, which, form, q, e):
        """Size and error of the derivative with respect to a row's values, from that with respect
        to log q."""
        first, error = self.firsts[which].abs(), self.first_errors[which]
        if form == "log_probs":
            return first, error
        if form == "probs":
            return first / q, error / q
        total = first.sum(-1, keepdim=True)
        size = first + q * total
        return size, error + q * error.sum(-1, keepdim=True) + q * (1 + e) * total
