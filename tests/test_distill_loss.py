"""The loss against a plain reference: full softmax, float64, probabilities instead of logarithms."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from distill.loss import DIRECTIONS, TAILS, Loss, Teacher, chunked, divergence, figures
from recipe import UserError

N, V = 48, 40
TEMPERATURES = (0.5, 1.0, 2.0, 4.0, 8.0)
KS = (1, 2, 7, V - 1, V)


def teacher_of(logits: torch.Tensor, k: int, asked: float = 1.0) -> Teacher:
    """What a pack would hold of a teacher's logits (n, V), without its rounding."""
    told = (logits.double() / asked).log_softmax(-1)
    logprobs, ids = told.sort(-1, descending=True)
    return Teacher(ids[:, :k], logprobs[:, :k].float(), logprobs[:, k:].logsumexp(-1).float())


def reference(logits: torch.Tensor, teacher: Teacher, loss: Loss) -> torch.Tensor:
    """D (n,), float64, from whole distributions."""
    n, size = logits.shape
    k = teacher.ids.shape[1]
    others = teacher.tail.double().exp() / max(size - k, 1)
    p = others[:, None].expand(n, size).clone().scatter_(1, teacher.ids, teacher.logprobs.double().exp())
    p = p ** (loss.asked / loss.temperature)
    p = p / p.sum(-1, keepdim=True)
    q = (logits.double() / loss.temperature).softmax(-1)
    top_p, top_q = p.gather(1, teacher.ids), q.gather(1, teacher.ids)
    if loss.tail == "bucket" and k < size:
        top_p, top_q = (torch.cat([top, 1 - top.sum(-1, keepdim=True)], -1) for top in (top_p, top_q))
    if loss.tail == "renormalise":
        top_p, top_q = (top / top.sum(-1, keepdim=True) for top in (top_p, top_q))
    if loss.direction == "forward":
        return (top_p * (top_p / top_q).log()).sum(-1)
    if loss.direction == "reverse":
        return (top_q * (top_q / top_p).log()).sum(-1)
    middle = (top_p + top_q) / 2
    return ((top_p * (top_p / middle).log() + top_q * (top_q / middle).log()) / 2).sum(-1)


def setting(seed: int = 0, n: int = N, size: int = V) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Student's logits, teacher's, targets and weights; the student is like the teacher, but not very."""
    made = torch.Generator().manual_seed(seed)
    teacher = 2 * torch.randn(n, size, generator=made)
    logits = teacher + 1.5 * torch.randn(n, size, generator=made)
    return logits, teacher, torch.randint(size, (n,), generator=made), torch.rand(n, generator=made) * 3


def losses(alpha: float = 0.7) -> Iterator[Loss]:
    for temperature, direction, tail in itertools.product(TEMPERATURES, DIRECTIONS, TAILS):
        yield Loss(temperature, alpha, direction, tail)


def expected(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, teacher: Teacher, loss: Loss) -> float:
    """The whole loss, float64."""
    ce = -logits.double().log_softmax(-1).gather(1, targets[:, None])[:, 0]
    kl = loss.temperature**2 * reference(logits, teacher, loss)
    return float((weights.double() * (loss.alpha * kl + (1 - loss.alpha) * ce)).sum())


def head_of(logits: torch.Tensor) -> tuple[torch.nn.Linear, torch.Tensor]:
    """A head and hidden states that give these very logits."""
    head = torch.nn.Linear(logits.shape[1], logits.shape[1], bias=False, dtype=logits.dtype)
    head.weight.data = torch.eye(logits.shape[1], dtype=logits.dtype)
    return head, logits.clone().requires_grad_()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("k", KS)
def test_fp32_is_the_reference_to_1e_6(k: int, weighted: bool) -> None:
    logits, told, targets, weights = setting()
    weights = weights if weighted else torch.ones(N)
    teacher, worst = teacher_of(told, k), 0.0
    for loss in (*losses(), *losses(alpha=1.0)):
        wanted = expected(logits, targets, weights, teacher, loss)
        head, hidden = head_of(logits)
        total, _ = chunked(head, hidden, targets, weights, teacher, loss, rows=7)
        worst = max(worst, abs(total.item() - wanted) / max(abs(wanted), 1e-9))  # one token renormalised: 0
    print(f"\nk {k}, weights {weighted}: {worst:.1e}")
    assert worst <= 1e-6


@pytest.mark.parametrize("k", KS)
def test_bf16_is_the_reference_to_5e_3(k: int) -> None:
    logits, told, targets, weights = setting()
    teacher, worst = teacher_of(told, k), 0.0
    for loss in losses():
        wanted = expected(logits, targets, weights, teacher, loss)
        head, hidden = head_of(logits.bfloat16())
        total, _ = chunked(head, hidden, targets, weights, teacher, loss)
        worst = max(worst, abs(total.item() - wanted) / max(abs(wanted), 1e-9))  # one token renormalised: 0
    print(f"\nk {k}: {worst:.1e}")
    assert worst <= 5e-3


@pytest.mark.parametrize("k", [1, 4, 9])
@pytest.mark.parametrize("tail", TAILS)
def test_gradients_are_those_of_finite_differences(tail: str, k: int) -> None:
    _, told, targets, weights = setting(n=3, size=9)
    teacher = Teacher(*(part if part.dtype == torch.int64 else part.double() for part in teacher_of(told, k)))
    head = torch.nn.Linear(2, 9, bias=False, dtype=torch.float64)
    hidden = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    for temperature, direction in [(2.0, name) for name in DIRECTIONS] + [(0.5, "forward"), (8.0, "reverse")]:
        loss = Loss(temperature, 0.7, direction, tail)

        def total(hidden: torch.Tensor, weight: torch.Tensor, loss: Loss = loss) -> torch.Tensor:
            head.weight = weight
            return chunked(head, hidden, targets, weights.double(), teacher, loss, rows=2)[0]

        assert torch.autograd.gradcheck(total, (hidden, torch.nn.Parameter(head.weight.detach().clone())))


def test_the_whole_vocabulary_at_temperature_1_is_the_exact_kl() -> None:
    logits, told, _, _ = setting()
    p, q = told.double().log_softmax(-1), logits.double().log_softmax(-1)
    whole = teacher_of(told, V)
    exact = {"forward": (p.exp() * (p - q)).sum(-1), "reverse": (q.exp() * (q - p)).sum(-1)}
    for direction, tail in itertools.product(exact, TAILS):
        found = divergence(logits, whole, Loss(1.0, 1.0, direction, tail))
        assert torch.allclose(found.double(), exact[direction], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_bucket_is_a_lower_bound_that_rises_with_k(direction: str) -> None:
    logits, told, _, _ = setting()
    loss = Loss(1.0, 1.0, direction)
    rising = [divergence(logits, teacher_of(told, k), loss) for k in (*KS, V)]
    for few, more in itertools.pairwise(rising):
        assert (few <= more + 1e-6).all()


@pytest.mark.parametrize("asked", [0.7, 1.0, 2.0])
def test_a_teacher_is_tempered_as_its_logits_would_be(asked: float) -> None:
    logits, told, _, _ = setting()
    for temperature in TEMPERATURES:
        loss = Loss(temperature, 1.0, asked=asked)
        p, q = (told.double() / temperature).log_softmax(-1), (logits.double() / temperature).log_softmax(-1)
        found = divergence(logits, teacher_of(told, V, asked), loss).double()
        assert torch.allclose(found, (p.exp() * (p - q)).sum(-1), rtol=1e-4, atol=1e-5)


def test_a_tail_of_equal_tokens_is_tempered_exactly() -> None:
    logits, told, _, _ = setting()
    teacher = teacher_of(told, 6)
    told = (teacher.tail.exp() / (V - 6)).log()[:, None].expand(N, V).scatter(1, teacher.ids, teacher.logprobs)
    for temperature in TEMPERATURES:
        few = divergence(logits, teacher, Loss(temperature, 1.0))
        all_ = divergence(logits, teacher_of(told, V), Loss(temperature, 1.0))
        assert (few <= all_ + 1e-6).all()
        mine = Teacher(teacher.ids, teacher.logprobs, teacher.tail)
        assert torch.allclose(few.double(), reference(logits, mine, Loss(temperature, 1.0)), rtol=1e-4, atol=1e-6)


def test_ids_that_are_absent_count_for_nothing() -> None:
    logits, told, targets, _ = setting()
    teacher, gap = teacher_of(told, 3), torch.full((N, 2), -1)
    nothing = torch.zeros(N, 2)
    padded = Teacher(torch.cat([teacher.ids, gap], -1), torch.cat([teacher.logprobs, nothing], -1), teacher.tail)
    for loss in losses():
        plain = figures(logits, targets, teacher, loss)
        assert torch.allclose(figures(logits, targets, padded, loss).kl, plain.kl, rtol=1e-5, atol=1e-6)


def test_a_position_without_a_teacher_has_its_whole_cross_entropy() -> None:
    logits, told, targets, weights = setting()
    teacher = teacher_of(told, 4)
    ids = teacher.ids.clone()
    ids[::2] = -1
    for loss in losses():
        head, hidden = head_of(logits)
        total, found = chunked(head, hidden, targets, weights, teacher._replace(ids=ids), loss)
        share = torch.where(torch.arange(N) % 2 == 0, 0, loss.alpha)
        assert torch.allclose(total, (weights * (share * found.kl + (1 - share) * found.ce)).sum())
        assert not found.kl[::2].any() and not found.agrees[::2].any() and hidden.grad is None
        total.backward()
        assert hidden.grad.isfinite().all()


def test_agreement_is_of_the_likeliest_tokens() -> None:
    logits, told, targets, _ = setting()
    found = figures(logits, targets, teacher_of(told, 4), Loss()).agrees
    assert torch.equal(found, logits.argmax(-1) == told.argmax(-1)) and 0 < found.sum() < N


def test_a_tail_that_was_rounded_to_nothing_stays_finite() -> None:
    logits, told, targets, _ = setting()
    teacher = teacher_of(told, 4)._replace(tail=torch.full((N,), -torch.inf))
    for loss in losses():
        logits.grad = None
        kl = figures(logits.requires_grad_(), targets, teacher, loss).kl
        kl.sum().backward()
        assert kl.isfinite().all() and logits.grad.isfinite().all()


def test_extreme_logits_stay_finite() -> None:
    logits, told, targets, _ = setting()
    for scale, loss in itertools.product((1e3, 1e4), losses()):
        wide = (scale * logits).requires_grad_()
        kl = figures(wide, targets, teacher_of(told, 4), loss).kl
        kl.sum().backward()
        assert kl.isfinite().all() and wide.grad.isfinite().all()


class Largest(TorchDispatchMode):
    """The most elements of any tensor that is made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else (made,):
            if isinstance(one, torch.Tensor):
                self.elements = max(self.elements, one.numel())
        return made


def test_no_tensor_is_larger_than_a_chunk_of_logits_and_little_is_kept() -> None:
    n, width, size, rows = 64, 4, 500, 8
    _, told, targets, weights = setting(n=n, size=size)
    head, hidden = torch.nn.Linear(width, size), torch.randn(n, width, requires_grad=True)
    teacher, kept = teacher_of(told, 5), []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with Largest() as seen, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        total, _ = chunked(head, hidden, targets, weights, teacher, Loss(2.0), rows)
        total.backward()
    assert seen.elements == max(kept) == rows * size
    with Largest() as whole:
        figures(head(hidden), targets, teacher, Loss(2.0)).kl.sum().backward()
    assert whole.elements == n * size  # the counter sees them


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_do_not_change_loss_or_gradients(dtype: torch.dtype) -> None:
    n, width, size = 30, 8, 50
    _, told, targets, weights = setting(n=n, size=size)
    torch.manual_seed(0)
    head = torch.nn.Linear(width, size, dtype=dtype)
    states, teacher, seen = torch.randn(n, width, dtype=dtype), teacher_of(told, 5), []
    for rows in (1, 7, 1000):
        hidden = states.clone().requires_grad_()
        head.zero_grad()
        total, _ = chunked(head, hidden, targets, weights, teacher, Loss(2.0), rows)
        (total / 3).backward()
        seen.append((total.detach(), hidden.grad, head.weight.grad, head.bias.grad))
    for one, other in itertools.pairwise(seen):
        for a, b in zip(one, other, strict=True):
            assert a.dtype == b.dtype
            assert (a - b).norm() <= (1e-6 if dtype == torch.float32 else 1e-2) * a.norm()


def test_a_head_under_autocast_has_fp32_gradients_of_every_chunk() -> None:
    n, width, size = 30, 8, 50
    _, told, targets, weights = setting(n=n, size=size)
    torch.manual_seed(0)
    head, teacher = torch.nn.Linear(width, size, bias=False), teacher_of(told, 5)
    hidden, found = torch.randn(n, width, requires_grad=True), []
    for mixed in (False, True):
        head.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            total, _ = chunked(head, hidden, targets, weights, teacher, Loss(2.0), rows=4)
        total.backward()
        assert total.dtype == torch.float32
        found.append(head.weight.grad.clone())
    assert found[1].dtype == torch.float32
    assert (found[0] - found[1]).norm() / found[0].norm() < 2e-2


def test_no_position_at_all_is_a_loss_of_nothing() -> None:
    logits, told, targets, weights = (part[:0] for part in setting())
    head, hidden = head_of(logits)
    total, _ = chunked(head, hidden, targets, weights, teacher_of(told, 4), Loss())
    total.backward()
    assert total.item() == 0


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"temperature": 0.0}, "temperature: expected a number above 0"),
        ({"temperature": float("nan")}, "temperature: expected a number above 0"),
        ({"asked": 0.0}, "asked: expected a number above 0"),
        ({"alpha": 1.5}, "alpha: expected the share of the teacher, 0 to 1, got 1.5"),
        ({"alpha": float("nan")}, "alpha: expected"),
        ({"direction": "backward"}, "direction: expected one of forward, reverse, jensen-shannon, got 'backward'"),
        ({"tail": "drop"}, "tail: expected one of bucket, renormalise, ignore, got 'drop'"),
    ],
)
def test_what_can_not_be_meant_is_refused(keys: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Loss(**keys)
