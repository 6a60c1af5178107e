"""The loss of distillation from a stored top-k teacher, position by position, without a batch's logits ever existing.

    loss = alpha · T² · D(teacher, student) + (1 − alpha) · cross-entropy

T² keeps the gradient's size when T changes (Hinton, Vinyals, Dean 2015). D is, by `direction`, forward KL(teacher‖
student), reverse KL(student‖teacher), or `jensen-shannon`: the mean of both to their mixture (Lin 1991). Logits are
raised to fp32 first, and nothing is reduced here: a caller divides the sum, as the trainer does.

**Temperature.** The teacher was asked at t (1, as a rule), and p^(t/T) normalised is what it would have said at T. That
needs the log-probabilities of all V tokens, and k are stored. The m = V − k others are taken as equal, e^tail / m each:
exact for k = V, for T = t and for equal others, else the largest mass that they could have for T > t, the smallest for
T < t (t/T is the exponent of a concave or a convex function). At T = 4 and V = 150,000 that is most of the mass.

**Tail**, what becomes of the others:

bucket       they are one more token, on both sides. No more than the divergence over all V tokens, and as much where
             student and teacher share the others' proportions (log-sum inequality); at T ≠ t, of the teacher above.
renormalise  only the k count: both sides are normalised over them, p̂ = p / Σ_k p and q̂ = q / Σ_k q, and D(p̂, q̂) is
             taken. The others' mass is never learnt; top-k alone is a biased teacher (Anshumann et al. 2025, "Sparse
             Logit Sampling", ACL).
ignore       the k terms of D alone, p and q as they are. It can be negative; what it pulls the others to is nothing.

A teacher's mass below e^−50 counts as e^−50: rounded to nothing, it would make the reverse KL infinite.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn.functional import cross_entropy

from recipe import UserError

DIRECTIONS = ("forward", "reverse", "jensen-shannon")
TAILS = ("bucket", "renormalise", "ignore")
FLOOR = -50.0
ABSENT = -1e4  # the log-probability in a column that doesn't count; −∞ would have no gradient
CHUNK = {"cpu": 1 << 22, "cuda": 1 << 25}  # logits at a time: 16 and 128 MiB in fp32


@dataclass(frozen=True)
class Loss:
    """The loss's keys; `asked` is the temperature at which the teacher was asked. UserError for what can't be meant."""

    temperature: float = 1.0
    alpha: float = 0.5
    direction: str = "forward"
    tail: str = "bucket"
    asked: float = 1.0

    def __post_init__(self) -> None:
        for key in ("temperature", "asked"):
            if not 0 < getattr(self, key) <= 1000:  # NaN, too
                raise UserError(f"{key}: expected a number above 0 and at most 1000, got {getattr(self, key)}")
        if not 0 <= self.alpha <= 1:
            raise UserError(f"alpha: expected the share of the teacher, 0 to 1, got {self.alpha}")
        for key, choices in (("direction", DIRECTIONS), ("tail", TAILS)):
            if getattr(self, key) not in choices:
                raise UserError(f"{key}: expected one of {', '.join(choices)}, got {getattr(self, key)!r}")


class Teacher(NamedTuple):
    """The teacher at n positions: `ids` (n, k) int64, −1 where there is no token, the likeliest first; `logprobs`
    (n, k) natural logarithms; `tail` (n,), that of the mass outside the k. A position of −1 alone has no teacher."""

    ids: torch.Tensor
    logprobs: torch.Tensor
    tail: torch.Tensor

    def known(self) -> torch.Tensor:
        return (self.ids >= 0).any(-1)


class Figures(NamedTuple):
    """At n positions, (n,) each: cross-entropy and T²·D in nats (0 without a teacher), and whether the student's
    likeliest token is the teacher's (False without one)."""

    ce: torch.Tensor
    kl: torch.Tensor
    agrees: torch.Tensor


def figures(logits: torch.Tensor, targets: torch.Tensor, teacher: Teacher, loss: Loss) -> Figures:
    """The terms of the loss from logits (n, V) in fp32 or more, and the labels `targets` (n,).

    >>> teacher = Teacher(torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.5]]).log(), torch.tensor([-torch.inf]))
    >>> float(figures(torch.tensor([[1.0, 1.0]]), torch.tensor([0]), teacher, Loss()).ce)
    0.6931471824645996
    """
    known = teacher.known()
    best = logits.detach().gather(1, teacher.ids[:, :1].clamp(min=0))[:, 0]
    agrees = known & (best >= logits.detach().amax(-1))
    kl = divergence(logits, teacher, loss) * loss.temperature**2
    return Figures(cross_entropy(logits, targets, reduction="none"), torch.where(known, kl, 0), agrees)


def divergence(logits: torch.Tensor, teacher: Teacher, loss: Loss) -> torch.Tensor:
    """D(teacher, student) at `loss.temperature`, (n,) nats, from logits (n, V); not yet times T²."""
    size, present = logits.shape[-1], teacher.ids >= 0
    # What is left of V tokens is few numbers, but their differences at a high temperature are too small for fp32.
    p = _tempered(teacher, present, size, loss)
    if loss.tail == "renormalise":
        q = logits.gather(1, teacher.ids.clamp(min=0)).double() / loss.temperature
        p, q = (_normalised(side, present) for side in (p[:, :-1], q))
        return _divergence(p, q, present, loss.direction).to(logits.dtype)
    top, others = _Split.apply(logits, teacher.ids, loss.temperature)
    q = torch.cat([top.double() / loss.temperature, others[:, None]], -1)
    columns = torch.cat([present, present.sum(-1, keepdim=True) < size], -1)
    p, q = (_normalised(side, columns) for side in (p, q))
    if loss.tail == "ignore":
        p, q, columns = p[:, :-1], q[:, :-1], present
    return _divergence(p, q, columns, loss.direction).to(logits.dtype)


def _tempered(teacher: Teacher, present: torch.Tensor, size: int, loss: Loss) -> torch.Tensor:
    """(n, k + 1): the teacher's log-probabilities at the loss's temperature, not normalised; last, the tail's."""
    power = loss.asked / loss.temperature
    others = (size - present.sum(-1)).clamp(min=1).double()
    tail = power * teacher.tail.double() + (1 - power) * others.log()
    return torch.cat([power * teacher.logprobs.double(), tail[:, None]], -1)


def _normalised(values: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Log-probabilities over the columns that count."""
    return torch.where(columns, values, ABSENT).log_softmax(-1)


def _divergence(p: torch.Tensor, q: torch.Tensor, columns: torch.Tensor, direction: str) -> torch.Tensor:
    p = p.clamp(min=FLOOR)
    if direction == "forward":
        terms = p.exp() * (p - q)
    elif direction == "reverse":
        terms = q.exp() * (q - p)
    else:
        mixture = torch.logaddexp(p, q) - math.log(2)
        terms = (p.exp() * (p - mixture) + q.exp() * (q - mixture)) / 2
    return torch.where(columns, terms, 0).sum(-1)


class _Split(torch.autograd.Function):
    """Logits (n, V) -> those of `ids` (n, k), and the log-sum-exp (n,) of all others at T, float64; −1 is no token.

    The latter is summed up, as 1 − Σ_k q would cancel; written out, as autograd would keep more of the logits' size.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, logits: torch.Tensor, ids: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        slots = torch.where(ids < 0, ids.amax(-1, keepdim=True).clamp(min=0), ids)  # a token that is there already
        others = logits.scatter(1, slots, -torch.inf)
        peak = others.amax(-1, keepdim=True).clamp(min=torch.finfo(logits.dtype).min)
        others.sub_(peak).div_(temperature).exp_()
        total = others.sum(-1, keepdim=True)
        others.div_(total.clamp(min=torch.finfo(logits.dtype).tiny) * temperature)
        ctx.save_for_backward(others, slots)
        return logits.gather(1, slots), (total.double().log() + peak.double() / temperature)[:, 0]

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, top: torch.Tensor, others: torch.Tensor) -> tuple:
        slopes, slots = ctx.saved_tensors
        return (slopes * others[:, None].to(slopes.dtype)).scatter_add_(1, slots, top), None, None


def chunked(
    head: torch.nn.Module,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor,
    teacher: Teacher,
    loss: Loss,
    rows: int = 0,
) -> tuple[torch.Tensor, Figures]:
    """Σ weight · loss over n positions, a scalar with a gradient, and the figures, without.

    `head` turns hidden states (n, width) into logits, `rows` positions at a time (0: by the device); `weights` is (n,).
    A position without a teacher has the whole of its cross-entropy. Each chunk's gradient is taken at once, so that
    only (n, width) is kept for the backward pass, and the head is not run twice.
    """

    def evaluate(states: torch.Tensor, begin: int) -> tuple[torch.Tensor, Figures]:
        part = slice(begin, begin + len(states))
        logits = head(states)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        mine = Teacher(*(tensor[part] for tensor in teacher))
        found = figures(logits, targets[part], mine, loss)
        share = loss.alpha * mine.known()
        return (weights[part] * (share * found.kl + (1 - share) * found.ce)).sum(), found

    vocabulary = getattr(head, "out_features", None) or head.weight.shape[0]
    rows = rows or max(1, CHUNK.get(hidden.device.type, CHUNK["cuda"]) // vocabulary)
    trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
    total, *found = _Chunked.apply(evaluate, rows, hidden, *trained)
    return total, Figures(*found)


class _Chunked(torch.autograd.Function):
    """Sums `evaluate(states, begin)` over chunks of `hidden`; the gradients of both inputs are made on the way."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        evaluate: Callable[[torch.Tensor, int], tuple[torch.Tensor, Figures]],
        rows: int,
        hidden: torch.Tensor,
        *trained: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        wanted, total, found = any(ctx.needs_input_grad), 0, []
        # Sums of many chunks: in fp32, whatever the head is in.
        sums = [torch.zeros_like(one, dtype=torch.promote_types(one.dtype, torch.float32)) for one in trained]
        of_hidden = torch.empty_like(hidden) if wanted else None
        for begin in range(0, max(len(hidden), 1), rows):
            states = hidden[begin : begin + rows].detach().requires_grad_(wanted)
            with torch.set_grad_enabled(wanted):
                value, part = evaluate(states, begin)
            if wanted:
                of_states, *of_head = torch.autograd.grad(value, [states, *trained], allow_unused=True)
                of_hidden[begin : begin + rows] = of_states
                for held, new in zip(sums, of_head, strict=True):
                    held.add_(0 if new is None else new)
            total = total + value.detach()
            found.append([tensor.detach() for tensor in part])
        ctx.gradients = [of_hidden, *(held.to(one.dtype) for held, one in zip(sums, trained, strict=True))]
        columns = [torch.cat(column) for column in zip(*found, strict=True)]
        ctx.mark_non_differentiable(*columns)
        return total, *columns

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor, *_: torch.Tensor) -> tuple:
        # Multiplied in fp32: with fp16's loss scaling the factor itself may be more than fp16 holds.
        return None, None, *((held * gradient.to(torch.float32)).to(held.dtype) for held in ctx.gradients)
