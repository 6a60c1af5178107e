"""Intervals, tests and agreement for before against after: pure functions, with the prompt as the unit of chance.

An interval is `{"value": …, "low": …, "high": …}` at 95 %, or None where the figure is not defined. Scores come as
one list a prompt, with every check, order, judge and rater of that prompt in it, each between 0 (fail, loss) and 1
(pass, win; a tie is ½). A prompt with an empty list has nothing that applies.

    >>> share([[1, 1, 0], [1], [0, 1]])["value"]
    0.6666666666666666

The bootstrap draws whole prompts, multinomially, with a fixed seed. Its ends are the expanded percentiles of
Hesterberg (2015), "What Teachers Should Know About the Bootstrap", The American Statistician 69: plain percentiles
are too narrow by √((n − 1) / n) and use the normal's quantile where Student's belongs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

Interval = dict[str, float]
Scores = Sequence[Sequence[float]]
Ratings = Sequence[Sequence[Hashable]]

ROUNDS = 10_000
Z = 1.959963984540054  # the normal's 97.5 % quantile
DRAWS = 1 << 17  # rows drawn at a time: few enough for a processor's cache
FEW = 100  # different rows, up to which their counts are drawn instead
MIN_BOTH = 10  # prompts with both labels; from fewer, the spread of human − AI can't be told


def wilson(hits: float, n: float, z: float = Z) -> Interval:
    """The score interval of a share, hits out of n > 0 (Wilson 1927, JASA 22); stays sensible at 0 and at n."""
    centre, spread = hits + z * z / 2, z * math.sqrt(max(hits * (n - hits) / n, 0.0) + z * z / 4)
    low, high = (centre - spread) / (n + z * z), (centre + spread) / (n + z * z)
    return {"value": hits / n, "low": max(0.0, low), "high": min(1.0, high)}


def share(scores: Scores) -> Interval | None:
    """The mean over all scores, with an interval clustered by prompt; None without any score.

    Wilson's interval at the effective sample size, p(1 − p) / variance between prompts (after Korn and Graubard 1998,
    Survey Methodology 24), with Student's quantile: near 0 and 1 the bootstrap is too narrow. With fewer than
    about five prompts on the rarer side this one is narrow too. Where no prompt differs, each counts as one trial.
    """
    sums, counts = _totals(scores).T
    n, total = int(np.count_nonzero(counts)), float(counts.sum())
    if not n:
        return None
    value = float(sums.sum()) / total
    variance = float(((sums - value * counts) ** 2).sum()) / total**2 * n / max(n - 1, 1)
    return _score_interval(value, variance, n, n - 1)


def _totals(scores: Scores) -> np.ndarray:
    """(prompts, 2): the sum and the number of each prompt's scores."""
    return np.array([(sum(prompt), len(prompt)) for prompt in scores], dtype=float).reshape(-1, 2)


def _score_interval(value: float, variance: float, n: int, df: int) -> Interval:
    """Wilson's interval of a mean of scores whose variance is known from n prompts with df degrees of freedom."""
    value = min(max(value, 0.0), 1.0)
    if value in (0, 1) or variance < 1e-12:
        return wilson(value * n, n)
    effective = value * (1 - value) / variance
    return wilson(value * effective, effective, _student(df)) | {"value": value}


def _student(df: int) -> float:
    """The 97.5 % quantile of Student's t (Abramowitz and Stegun 26.7.5), 0.1 % off at 4 degrees of freedom."""
    terms = (
        (Z**3 + Z) / 4,
        (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96,
        (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384,
        (79 * Z**9 + 776 * Z**7 + 1482 * Z**5 - 1920 * Z**3 - 945 * Z) / 92160,
    )
    return Z + sum(term / max(df, 1) ** power for power, term in enumerate(terms, 1))


def bootstrap(
    rows: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], rounds: int = ROUNDS, seed: int = 0
) -> Interval | None:
    """The interval of a statistic of column sums, rows resampled; the order of the rows does not matter.

    `rows` is (prompts, columns); `statistic` maps sums (…, columns) to (…). A round in which it is undefined (0/0) is
    left out. None where the statistic itself is undefined, or an end of its interval infinite. Rows that are all alike,
    or a single one, show no spread: low = high.
    """
    kinds, counts = np.unique(np.asarray(rows, dtype=float), axis=0, return_counts=True)
    n = int(counts.sum())
    tail = math.erfc(_student(n - 1) * math.sqrt(n / max(n - 1, 1) / 2)) / 2  # the normal's, beyond −t √(n / (n − 1))
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        value = float(statistic(counts @ kinds))
        if not math.isfinite(value):
            return None
        low, high = np.nanquantile(statistic(_resampled(kinds, counts, rounds, seed)), [tail, 1 - tail])
    return {"value": value, "low": float(low), "high": float(high)} if np.isfinite([low, high]).all() else None


def _resampled(kinds: np.ndarray, counts: np.ndarray, rounds: int, seed: int) -> np.ndarray:
    """(rounds, columns): column sums of n rows drawn with replacement; kinds[i] is there counts[i] times."""
    random, n = np.random.default_rng(seed), int(counts.sum())
    if len(kinds) <= min(n / 8, FEW):  # pass or fail, win or tie: a round is a few binomial draws
        return random.multinomial(n, counts / n, size=rounds) @ kinds
    columns = [np.repeat(column, counts) for column in kinds.T]
    sums, step = np.empty((rounds, len(columns))), max(1, DRAWS // n)
    for begin in range(0, rounds, step):
        drawn = random.integers(0, n, (min(step, rounds - begin), n), dtype=np.uint32).astype(np.intp)
        for column, values in enumerate(columns):
            sums[begin : begin + step, column] = values.take(drawn, mode="clip").sum(axis=1)  # clip: no second check
    return sums


def paired_ratio(
    base: np.ndarray, tuned: np.ndarray, tokens: np.ndarray, rounds: int = ROUNDS, seed: int = 0
) -> Interval | None:
    """Perplexity after / before, exp(Σ(NLL_tuned − NLL_base) / Σtokens), over rows; both arms are drawn together.

    An interval wholly below 1 says the tuned model fits better.
    """
    ratio = bootstrap(np.column_stack([tuned - base, tokens]), lambda s: s[..., 0] / s[..., 1], rounds, seed)
    return ratio and {end: math.exp(value) for end, value in ratio.items()}


def difference(before: Scores, after: Scores, rounds: int = ROUNDS, seed: int = 0) -> Interval | None:
    """Mean score after − before, the same prompts in the same order.

    Where all prompts moved alike the bootstrap sees no spread. Then as many may be otherwise as Wilson's interval of
    0 out of n allows, h: the ends are theirs at the worst, value ± h of the way to −1 and to 1.
    """
    gap = bootstrap(_paired(before, after), lambda s: s[..., 2] / s[..., 3] - s[..., 0] / s[..., 1], rounds, seed)
    if not gap or gap["low"] < gap["high"]:
        return gap
    value, unseen = gap["value"], _unseen(sum(bool(len(one)) for one in before))
    return gap | {"low": value - unseen * (1 + value), "high": value + unseen * (1 - value)}


def _unseen(n: int) -> float:
    """The share of prompts that may be unlike n ≥ 1 which are all alike."""
    return wilson(0, n)["high"]


def relative_gain(before: Scores, after: Scores, rounds: int = ROUNDS, seed: int = 0) -> Interval | None:
    """(p₁ − p₀) / p₀ of the mean scores; None where p₀ is 0, or so rare that the upper end is infinite.

    Without any spread, the ends of `difference` over p₀.
    """
    rows = _paired(before, after)
    gain = bootstrap(rows, lambda s: (s[..., 2] / s[..., 3]) / (s[..., 0] / s[..., 1]) - 1, rounds, seed)
    if not gain or gain["low"] < gain["high"]:
        return gain
    gap, sums = difference(before, after, rounds, seed), rows.sum(axis=0)
    return gain | {end: float(gap[end] * sums[1] / sums[0]) for end in ("low", "high")}


def _paired(before: Scores, after: Scores) -> np.ndarray:
    if len(before) != len(after):
        raise ValueError(f"{len(before)} prompts before, {len(after)} after: expected the same prompts")
    return np.hstack([_totals(before), _totals(after)])


def win_rate(scores: Scores, rounds: int = ROUNDS, seed: int = 0) -> Interval | None:
    """The mean of win 1, tie ½, loss 0 over prompts; 2 × win rate − 1 is the net win, (wins − losses) / n.

    Where no prompt differs from the others, and the bootstrap sees no spread, it is `share`.
    """
    rate = bootstrap(_totals(scores), lambda s: s[..., 0] / s[..., 1], rounds, seed)
    return share(scores) if rate and rate["low"] == rate["high"] else rate


def sign_test(gained: int, lost: int) -> float:
    """Exact two-sided p of gained against lost at even odds; ties don't count.

    On wins and losses it is the sign test; on the prompts that pass on one side only, McNemar's exact test.
    """
    n, term, tail = gained + lost, 1, 1
    for k in range(min(gained, lost)):
        term = term * (n - k) // (k + 1)
        tail += term
    return min(1.0, 2 * tail / 2**n)


def half_width(interval: Interval, n: int, prompts: int) -> float:
    """The ± to expect of a figure from so many prompts, by its interval from n of them: it shrinks with √n."""
    return (interval["high"] - interval["low"]) / 2 * math.sqrt(n / prompts)


def agreement(ratings: Ratings, rounds: int = ROUNDS, seed: int = 0) -> dict[str, Any]:
    """How far raters agree on labels: one list an item, one place a rater, None where a rater gave none.

    {"items": with two labels or more, "raw": …, "kappa": …, "alpha": …, "ac1": …}, each an interval over items or None.
    """
    return {
        "items": sum(len(_given(item)) > 1 for item in ratings),
        "raw": raw_agreement(ratings),
        "kappa": cohen_kappa(ratings, rounds, seed),
        "alpha": krippendorff_alpha(ratings, rounds, seed),
        "ac1": gwet_ac1(ratings, rounds, seed),
    }


def raw_agreement(ratings: Ratings) -> Interval | None:
    """The share of pairs of raters that agree, averaged over items with two labels or more."""
    counts = _label_counts(ratings)
    return share([[agreed] for agreed in _agreeing_pairs(counts[counts.sum(axis=1) > 1])])


def cohen_kappa(ratings: Ratings, rounds: int = ROUNDS, seed: int = 0) -> Interval | None:
    """Cohen's κ (1960) of two raters, over the items that both rated; None for more raters, or without variation."""
    if any(len(item) != 2 for item in ratings):
        return None
    pairs = [item for item in ratings if len(_given(item)) == 2]
    q, codes = _codes(pairs)
    cells = np.zeros((len(pairs), q * q))
    for row, (first, second) in zip(cells, codes, strict=True):
        row[first * q + second] = 1

    def parts(s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        table = s.reshape(*s.shape[:-1], q, q)
        n = s.sum(axis=-1)
        observed = np.trace(table, axis1=-2, axis2=-1) / n
        return observed, (table.sum(axis=-1) * table.sum(axis=-2)).sum(axis=-1) / n**2

    return _beyond_chance(cells, parts, rounds, seed) if pairs else None


def krippendorff_alpha(ratings: Ratings, rounds: int = ROUNDS, seed: int = 0) -> Interval | None:
    """Krippendorff's α for names (2011, "Computing Krippendorff's Alpha-Reliability"); None without variation."""
    counts = _label_counts(ratings)
    counts = counts[counts.sum(axis=1) > 1]
    given = counts.sum(axis=1)
    disagreement = (given**2 - (counts**2).sum(axis=1)) / (given - 1)

    def parts(s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        labels = s[..., 1:]
        n = labels.sum(axis=-1)
        return 1 - s[..., 0] / n, 1 - (n**2 - (labels**2).sum(axis=-1)) / (n * (n - 1))

    return _beyond_chance(np.column_stack([disagreement, counts]), parts, rounds, seed) if len(counts) else None


def gwet_ac1(ratings: Ratings, rounds: int = ROUNDS, seed: int = 0) -> Interval | None:
    """Gwet's AC1 (2008, British J. Math. Stat. Psychology 61) over the labels that occur; None where that is one.

    Unlike κ and α it stays high where nearly all items get the same label.
    """
    counts = _label_counts(ratings)
    given = counts.sum(axis=1)
    counts, several = counts[given > 0], given[given > 0] > 1
    q = counts.shape[1]
    if q < 2 or not several.any():
        return None
    agreed = np.where(several, _agreeing_pairs(counts), 0)

    def parts(s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shares = s[..., 2:] / s[..., 2:].sum(axis=-1, keepdims=True)
        return s[..., 0] / s[..., 1], (shares * (1 - shares)).sum(axis=-1) / (q - 1)

    rows = np.column_stack([agreed, several, counts / counts.sum(axis=1, keepdims=True)])
    return _beyond_chance(rows, parts, rounds, seed)


def _beyond_chance(
    rows: np.ndarray, parts: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], rounds: int, seed: int
) -> Interval | None:
    """1 − (1 − observed) / (1 − expected) of the `parts` of column sums. Where the bootstrap sees no spread, as many
    items may agree otherwise as `_unseen` says."""

    def coefficient(observed: np.ndarray, expected: np.ndarray) -> np.ndarray:
        return 1 - (1 - observed) / (1 - expected)

    found = bootstrap(rows, lambda s: coefficient(*parts(s)), rounds, seed)
    if not found or found["low"] < found["high"]:
        return found
    observed, expected = (float(part) for part in parts(rows.sum(axis=0)))
    ends = {"low": max(0.0, observed - _unseen(len(rows))), "high": min(1.0, observed + _unseen(len(rows)))}
    return found | {end: float(coefficient(value, expected)) for end, value in ends.items()}


def _given(item: Sequence[Hashable]) -> list[Hashable]:
    return [label for label in item if label is not None]


def _codes(ratings: Ratings) -> tuple[int, list[list[int]]]:
    """The number of labels that occur, and the number of its label in the place of each that was given."""
    numbers: dict[Hashable, int] = {}
    codes = [[numbers.setdefault(label, len(numbers)) for label in _given(item)] for item in ratings]
    return len(numbers), codes


def _label_counts(ratings: Ratings) -> np.ndarray:
    """(items, labels): how many raters gave each label."""
    q, codes = _codes(ratings)
    return np.array([np.bincount(item, minlength=q) for item in codes], dtype=float).reshape(len(codes), q)


def _agreeing_pairs(counts: np.ndarray) -> np.ndarray:
    """Of each item's pairs of ratings, the share that agree; 0 where there is no pair."""
    given = counts.sum(axis=1)
    return (counts * (counts - 1)).sum(axis=1) / np.maximum(given * (given - 1), 1)


def prediction_powered(ai: Sequence[float | None], human: Sequence[float | None]) -> dict[str, Any]:
    """AI only, human only, and both together, from a score between 0 and 1 a prompt of each, None where there is none.

        joint = mean(human) − λ · (mean(AI where both) − mean(AI everywhere))

    λ = 1 is the prediction-powered mean of Angelopoulos et al. (2023, Science 382): the AI mean corrected by what
    human and AI differ where both spoke. Here λ is the slope of human on AI, which makes the interval shortest (PPI++,
    Angelopoulos, Duchi and Zrnic 2023, arXiv:2311.01453): a judge that tells nothing gets 0 and human labels stand
    alone. The prompts with a human label must be drawn at random from those with an AI label.

    {"ai", "human", "joint": intervals or None, "prompts_ai", "prompts_human", "prompts_both": counts, "weight": λ}.
    """
    paired = [(a, h) for a, h in zip(ai, human, strict=True) if a is not None and h is not None]
    alone = np.array([a for a, h in zip(ai, human, strict=True) if a is not None and h is None], dtype=float)
    labels = {
        name: [[score] for score in scores if score is not None] for name, scores in (("ai", ai), ("human", human))
    }
    joint, weight = _joint(np.array(paired, dtype=float), alone) if len(paired) >= MIN_BOTH else (None, None)
    return {
        **{name: share(scores) for name, scores in labels.items()},
        "joint": joint,
        "prompts_ai": len(labels["ai"]),
        "prompts_human": len(labels["human"]),
        "prompts_both": len(paired),
        "weight": weight,
    }


def _joint(paired: np.ndarray, alone: np.ndarray) -> tuple[Interval, float]:
    """The estimate and λ from (prompts, 2) AI and human scores, and the AI scores of the other prompts.

    The doubly rated prompts are part of "everywhere": the weight on the two separate means is λ · share of the others.
    """
    f, y = paired.T
    n, others = len(y), len(alone)
    slope = float(np.cov(f, y)[0, 1] / f.var(ddof=1)) if others > 1 and f.var() > 0 else 0.0
    used = slope * others / (n + others)
    value, variance = y.mean(), (y - used * f).var(ddof=2) / n
    if used:
        value, variance = value - used * (f.mean() - alone.mean()), variance + used**2 * alone.var(ddof=1) / others
    return _score_interval(float(value), float(variance), n, n - 2), slope
