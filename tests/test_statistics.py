"""Outside oracles (scipy, sklearn, nltk, published tables) and simulations that count how often an interval holds."""

from __future__ import annotations

import math
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from eval.statistics import (
    Interval,
    agreement,
    bootstrap,
    cohen_kappa,
    difference,
    gwet_ac1,
    half_width,
    krippendorff_alpha,
    paired_ratio,
    prediction_powered,
    relative_gain,
    share,
    sign_test,
    wilson,
    win_rate,
)


def width(interval: Interval) -> float:
    return interval["high"] - interval["low"]


def mean(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / sums[..., 1]


def pass_counts(both: int, lost: int, gained: int, neither: int) -> tuple[list[list[int]], list[list[int]]]:
    before = [[1]] * both + [[1]] * lost + [[0]] * gained + [[0]] * neither
    after = [[1]] * both + [[0]] * lost + [[1]] * gained + [[0]] * neither
    return before, after


@pytest.mark.parametrize("hits, n", [(0, 7), (1, 7), (7, 7), (59, 100), (82, 100), (300, 300), (1, 1)])
def test_wilson_is_scipys(hits: int, n: int) -> None:
    theirs = stats.binomtest(hits, n).proportion_ci(method="wilson")
    ours = wilson(hits, n)
    assert [ours["value"], ours["low"], ours["high"]] == pytest.approx([hits / n, theirs.low, theirs.high], abs=1e-12)


def test_the_sign_test_is_scipys() -> None:
    for gained, lost in [(0, 0), (1, 0), (5, 0), (58, 19), (28, 5), (7, 7), (300, 251), (6_000, 4_000)]:
        theirs = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
        assert sign_test(gained, lost) == sign_test(lost, gained) == pytest.approx(theirs, rel=1e-9)
    for gain in range(1, 30):  # more prompts that moved by chance, a larger p: what the claim card relies on
        p = [sign_test(gain + lost, lost) for lost in range(60)]
        assert p == sorted(p)


def test_the_bootstrap_of_a_mean_is_the_t_interval() -> None:
    for n in (12, 40, 500):
        values = np.random.default_rng(n).normal(5, 2, n)
        interval = bootstrap(np.column_stack([values, np.ones(n)]), mean)
        theirs = stats.t.interval(0.95, n - 1, values.mean(), stats.sem(values))
        assert interval["value"] == pytest.approx(values.mean())
        assert [interval["low"], interval["high"]] == pytest.approx(theirs, abs=0.05 * (theirs[1] - theirs[0]))


def test_drawing_counts_and_drawing_rows_is_the_same_bootstrap() -> None:
    scores = np.repeat([1.0, 0.5, 0.0], [60, 80, 60])
    counted = bootstrap(np.column_stack([scores, np.ones(200)]), mean)
    drawn = bootstrap(np.column_stack([scores + np.arange(200) * 1e-9, np.ones(200)]), mean)  # no two rows alike
    assert list(counted.values()) == pytest.approx(list(drawn.values()), abs=3e-3)


def test_the_interval_depends_on_the_rows_and_the_seed_alone() -> None:
    random = np.random.default_rng(1)
    base, tokens = random.normal(300, 40, 700), random.integers(50, 150, 700).astype(float)
    tuned = base - random.normal(20, 10, 700)
    ratio, order = paired_ratio(base, tuned, tokens, 2000), random.permutation(700)
    assert ratio == paired_ratio(base, tuned, tokens, 2000)
    assert ratio == paired_ratio(base[order], tuned[order], tokens[order], 2000)
    assert ratio != paired_ratio(base, tuned, tokens, 2000, seed=1)
    assert ratio["low"] < ratio["value"] < ratio["high"] < 1


def test_the_ratio_by_hand() -> None:
    base, tuned, tokens = np.array([4.0, 2.0]), np.array([2.0, 1.0]), np.array([2.0, 1.0])
    ratio = paired_ratio(base, tuned, tokens, rounds=200)
    assert ratio == dict.fromkeys(("value", "low", "high"), math.exp(-1))
    assert paired_ratio(base, tuned, np.zeros(2), rounds=200) is None


def test_memory_does_not_grow_with_the_rounds() -> None:
    random = np.random.default_rng(0)
    base, tuned, tokens = random.normal(size=(3, 10_000))
    tracemalloc.start()
    paired_ratio(base, tuned, tokens**2, rounds=400)  # held whole, the counts were 32 MB
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6


def test_a_share_is_clustered_by_prompt() -> None:
    prompts = [[1, 1, 1], [0, 0, 0], [1, 1, 1], [1, 1, 1], [0, 0, 0], []] * 20
    copies, single = share(prompts), share([prompt[:1] for prompt in prompts])
    assert list(copies.values()) == pytest.approx(list(single.values()))  # three copies of a check tell nothing new
    assert width(copies) > 1.6 * width(wilson(180, 300))
    assert copies["value"] == pytest.approx(0.6)
    uneven = share([[1, 1, 1, 0], [0]])
    assert uneven["value"] == pytest.approx(3 / 5)  # over checks, not over prompts
    assert share([[1]] * 59 + [[0]] * 41)["low"] == pytest.approx(wilson(59, 100)["low"], abs=0.005)


def test_a_share_is_defined_at_its_ends_and_without_scores() -> None:
    assert share([[1, 1]] * 100) == wilson(100, 100)
    assert share([[0]] * 100) == wilson(0, 100)
    assert share([]) is share([[], []]) is None
    assert share([[1]])["low"] < 0.3


def test_gains_by_hand() -> None:
    before, after = pass_counts(54, 5, 28, 13)
    assert difference(before, after)["value"] == pytest.approx(0.23)
    assert relative_gain(before, after)["value"] == pytest.approx(23 / 59)
    error = math.sqrt((33 / 100 - 0.23**2) / 99)
    assert width(difference(before, after)) == pytest.approx(2 * 1.984 * error, rel=0.06)
    scores = ([[1, 0], [1], []], [[1, 1], [0], []])
    assert difference(*scores)["value"] == 0 and relative_gain(*scores)["value"] == 0
    with pytest.raises(ValueError, match="2 prompts before, 3 after"):
        difference([[1], [0]], after[:3])


def test_pairing_tightens_a_gain() -> None:
    close, far = pass_counts(59, 0, 23, 18), pass_counts(41, 18, 41, 0)
    assert width(relative_gain(*close)) < 0.7 * width(relative_gain(*far))


def test_a_relative_gain_needs_passes_before() -> None:
    assert relative_gain(*pass_counts(0, 0, 30, 70)) is None
    assert relative_gain(*pass_counts(1, 1, 30, 68)) is None  # in 13 % of the rounds nothing passes before
    assert relative_gain(*pass_counts(5, 5, 30, 60))["value"] == pytest.approx(2.5)


def test_a_win_rate_without_spread_still_has_an_interval() -> None:
    assert win_rate([[1.0]] * 58 + [[0.5]] * 23 + [[0.0]] * 19)["value"] == pytest.approx(0.695)
    assert win_rate([[1.0, 1.0]] * 40) == wilson(40, 40)
    always_first = win_rate([[1.0, 0.0]] * 40)  # each win is lost again in the other order
    assert always_first["value"] == 0.5 and always_first["low"] < 0.4


def test_the_half_width_shrinks_with_the_root_of_n() -> None:
    small, large = (share([[1]] * (6 * k) + [[0]] * (4 * k)) for k in (10, 40))
    assert half_width(small, 100, 400) == pytest.approx(width(large) / 2, rel=0.03)


ABSTRACTORS = [[a, b] for (a, b), n in {"EE": 13, "AA": 20, "AN": 7, "NA": 4, "NN": 56}.items() for _ in range(n)]
FOUR_RATERS = ("11 1", "2232", "3333", "3333", "2222", "1234", "4444", "1121", "2222", " 555", "  11", "  3 ")


def test_agreement_is_that_of_published_tables() -> None:
    # Gwet's irrCAC documentation: cont3x3abstractors and, with gaps, cac.raw4raters (Krippendorff's own example)
    two = agreement(ABSTRACTORS, rounds=500)
    assert [two[name]["value"] for name in ("raw", "kappa", "ac1", "alpha")] == pytest.approx(
        [0.89, 0.7964094, 0.8493305, 0.7972585], abs=5e-8
    )
    # its 95 % intervals by the delta method: κ 0.680 to 0.913, AC1 0.764 to 0.935, α 0.680 to 0.914
    for name, ends in {"kappa": (0.680, 0.913), "ac1": (0.764, 0.935), "alpha": (0.680, 0.914)}.items():
        assert (two[name]["low"], two[name]["high"]) == pytest.approx(ends, abs=0.03)
    four = agreement([[None if label == " " else label for label in item] for item in FOUR_RATERS], rounds=500)
    assert four["items"] == 11 and four["kappa"] is None
    assert [four[name]["value"] for name in ("raw", "ac1", "alpha")] == pytest.approx(
        [0.8181818, 0.77544, 0.74342], abs=5e-6
    )


def test_agreement_is_sklearns_and_nltks() -> None:
    cohen_kappa_score = pytest.importorskip("sklearn.metrics").cohen_kappa_score
    task = pytest.importorskip("nltk.metrics.agreement").AnnotationTask
    random, kappas, alphas = np.random.default_rng(0), 0, 0
    for _ in range(1000):
        items, raters, labels = random.integers(4, 40), random.integers(2, 5), random.integers(1, 5)
        truth = random.integers(0, labels, (items, 1))
        table = np.where(random.random((items, raters)) < 0.6, truth, random.integers(0, labels, (items, raters)))
        pairs = [[f"病{a}", f"病{b}"] for a, b in table[:, :2]]
        ours = cohen_kappa(pairs, rounds=20)
        with warnings.catch_warnings(action="ignore"):  # it warns where it gives NaN
            theirs = cohen_kappa_score(*zip(*pairs, strict=True))
        assert math.isnan(theirs) if ours is None else abs(ours["value"] - theirs) <= 1e-10
        kappas += ours is not None
        gaps = random.random((items, raters)) < 0.2
        ratings = [
            [None if gap else int(x) for x, gap in zip(*row, strict=True)] for row in zip(table, gaps, strict=True)
        ]
        ours = krippendorff_alpha(ratings, rounds=20)
        if ours is not None:
            given = [(f"r{r}", i, x) for i, item in enumerate(ratings) for r, x in enumerate(item) if x is not None]
            assert abs(ours["value"] - task(given).alpha()) <= 1e-10
            alphas += 1
    print(f"\n1,000 random tables: κ defined in {kappas}, α in {alphas}, all within 1e-10")
    assert min(kappas, alphas) > 600


def test_raters_without_variation_have_raw_agreement_alone() -> None:
    same = agreement([["通过", "通过"]] * 30, rounds=200)
    assert same == {"items": 30, "raw": wilson(30, 30), "kappa": None, "alpha": None, "ac1": None}
    one_constant = agreement([["a", "a"]] * 20 + [["a", "b"]] * 10, rounds=200)
    assert one_constant["kappa"]["value"] == 0 and one_constant["raw"]["value"] == pytest.approx(2 / 3)
    for nothing in ([], [[None, None]], [["a", None], [None, "b"]]):
        assert agreement(nothing) == {"items": 0, **dict.fromkeys(("raw", "kappa", "alpha", "ac1"))}


def test_ac1_stays_high_where_kappa_falls() -> None:
    ratings = [["a", "a"]] * 92 + [["a", "b"]] * 4 + [["b", "a"]] * 4  # 92 % agree, on one label
    assert cohen_kappa(ratings, 100)["value"] < 0 and gwet_ac1(ratings, 100)["value"] > 0.9


def judged(
    random: np.random.Generator, n: int, bias: float = 0.12, noise: float = 0.15
) -> tuple[np.ndarray, np.ndarray]:
    """True scores (loss, tie and win .25, .25, .5) and a judge that errs at random and leans to a win."""
    truth = random.choice([0, 0.5, 1], n, p=[0.25, 0.25, 0.5])
    judge = np.where(random.random(n) < noise, random.choice([0, 0.5, 1], n), truth)
    return truth, np.where(random.random(n) < bias, 1, judge)


def test_the_joint_estimate_is_its_formula() -> None:
    truth, judge = judged(np.random.default_rng(0), 300)
    result = prediction_powered(list(judge), [*truth[:80], *[None] * 220])
    slope = np.polyfit(judge[:80], truth[:80], 1)[0]
    assert result["weight"] == pytest.approx(slope)
    expected = truth[:80].mean() - slope * (judge[:80].mean() - judge.mean())
    assert result["joint"]["value"] == pytest.approx(expected)
    assert width(result["joint"]) < width(result["human"])
    assert result["human"] == share(truth[:80, None]) and result["ai"] == share(judge[:, None])
    assert (result["prompts_ai"], result["prompts_human"], result["prompts_both"]) == (300, 80, 80)


def test_the_joint_estimate_at_its_ends() -> None:
    random = np.random.default_rng(0)
    judge = random.choice([0.0, 0.5, 1.0], 300)
    perfect = prediction_powered(list(judge), [*judge[:80], *[None] * 220])
    assert perfect["joint"]["value"] == pytest.approx(judge.mean()) and perfect["weight"] == pytest.approx(1)
    assert width(perfect["joint"]) == pytest.approx(width(perfect["ai"]), rel=0.1)
    human = random.choice([0.0, 1.0], 80)
    for ai in ([1.0] * 300, [*random.choice([0.0, 1.0], 80), *[None] * 220]):  # tells nothing; nothing beyond
        useless = prediction_powered(ai, [*human, *[None] * 220])
        assert useless["weight"] == 0 and useless["joint"]["value"] == pytest.approx(useless["human"]["value"])
        assert width(useless["joint"]) == pytest.approx(width(useless["human"]), rel=0.03)
    few = prediction_powered([1.0, 0.0, None], [1.0, None, 0.0])
    assert few["joint"] is None and few["weight"] is None and few["prompts_both"] == 1
    assert few["human"]["value"] == 0.5 and prediction_powered([], [])["human"] is None


# How often the intervals hold: data are drawn from a population whose figure is known.


def coverage(
    simulations: int, truth: dict[str, float], make: Callable[[np.random.Generator], dict[str, Interval]]
) -> dict[str, tuple[float, float]]:
    """{name: (share of intervals that hold the truth, mean width)}"""
    held, widths = Counter(), Counter()
    for number in range(simulations):
        for name, interval in make(np.random.default_rng([6, number])).items():
            held[name] += interval["low"] <= truth[name] <= interval["high"]
            widths[name] += width(interval)
    return {name: (held[name] / simulations, widths[name] / simulations) for name in widths}


def show(title: str, result: dict[str, tuple[float, float]]) -> None:
    print(
        f"\n{title}: " + ", ".join(f"{name} {100 * c:.1f} % (width {w:.4f})" for name, (c, w) in result.items()), end=""
    )


def nll_pairs(random: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """NLL before and after and tokens of n rows: perplexity about 5.1 to 3.1, the NLLs a token correlated at .97."""
    tokens = np.exp(random.normal(5.5, 0.6, n)).round() + 10
    base = random.normal(math.log(5.1), 0.35, n)
    return base * tokens, (0.695 * base + random.normal(0, 0.06, n)) * tokens, tokens


def passes(random: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of n prompts, 59 % pass before, 82 % after, 53.7 % both times."""
    return pass_counts(*random.multinomial(n, [0.537, 0.053, 0.283, 0.127]))


def paired(n: int, rounds: int) -> Callable[[np.random.Generator], dict[str, Interval]]:
    def make(random: np.random.Generator) -> dict[str, Interval]:
        base, tuned, tokens = nll_pairs(random, n)
        before, after = passes(random, n)
        return {
            "perplexity ratio": paired_ratio(base, tuned, tokens, rounds),
            "relative gain": relative_gain(before, after, rounds),
            "absolute gain": difference(before, after, rounds),
        }

    return make


PAIRED = {"perplexity ratio": math.exp(-0.305 * math.log(5.1)), "relative gain": 23 / 59, "absolute gain": 0.23}


def votes(n: int, rounds: int) -> Callable[[np.random.Generator], dict[str, Interval]]:
    """Two judges, each in both orders, correlated by prompt at .7; a strong verdict counts three times."""

    def make(random: np.random.Generator) -> dict[str, Interval]:
        leaning = math.sqrt(0.7) * random.normal(size=(n, 1)) + math.sqrt(0.3) * random.normal(size=(n, 4))
        level = np.searchsorted(stats.norm.ppf([0.1, 0.25, 0.5, 0.75]), leaning)
        score, times = np.array([0, 0, 0.5, 1, 1])[level], np.array([3, 1, 1, 1, 3])[level]
        prompts = [[s for s, t in zip(*row, strict=True) for _ in range(t)] for row in zip(score, times, strict=True)]
        rows = np.column_stack([np.repeat(score, times.ravel()), np.ones(times.sum())])
        return {
            "win rate": win_rate(prompts, rounds),
            "share": share(prompts),
            "rows alone": bootstrap(rows, mean, rounds),
        }

    return make


WIN_RATE = (0.25 * 0.5 + 0.25 + 3 * 0.25) / (3 * 0.1 + 0.15 + 0.25 + 0.25 + 3 * 0.25)
VOTES = dict.fromkeys(("win rate", "share", "rows alone"), WIN_RATE)


def joint(random: np.random.Generator) -> dict[str, Interval]:
    truth, judge = judged(random, 300)
    result = prediction_powered(list(judge), [*truth[:80], *[None] * 220])
    return {name: result[name] for name in ("ai", "human", "joint")}


JOINT = dict.fromkeys(("ai", "human", "joint"), 0.625)


def test_intervals_hold_in_a_short_simulation() -> None:
    for found in (
        coverage(150, PAIRED, paired(100, 300)),
        {"win rate": coverage(150, VOTES, votes(100, 300))["win rate"]},
        {"joint": coverage(300, JOINT, joint)["joint"]},
    ):
        for name, (share_held, _) in found.items():
            assert 0.9 <= share_held <= 0.99, name


@pytest.mark.slow
@pytest.mark.parametrize("n", [100, 300])
def test_paired_intervals_hold(n: int) -> None:
    found = coverage(2000, PAIRED, paired(n, 1000))
    show(f"n = {n}, 2,000 simulations", found)
    assert all(0.93 <= held <= 0.97 for held, _ in found.values())


@pytest.mark.slow
def test_pairing_halves_the_width_of_a_perplexity_ratio() -> None:
    base, tuned, tokens = nll_pairs(np.random.default_rng(0), 300)
    assert np.corrcoef(base / tokens, tuned / tokens)[0, 1] >= 0.9
    alone = [bootstrap(np.column_stack([nll, tokens]), mean) for nll in (base, tuned)]
    unpaired = math.hypot(*(width(interval) for interval in alone))
    ratio = paired_ratio(base, tuned, tokens)
    narrower = math.log(ratio["high"] / ratio["low"]) / unpaired
    print(f"\nwidth of ln ratio, paired / unpaired: {narrower:.2f}", end="")
    assert narrower <= 0.5


@pytest.mark.slow
@pytest.mark.parametrize("n", [100, 300])
def test_win_rate_intervals_hold(n: int) -> None:
    found = coverage(1000, VOTES, votes(n, 1000))
    show(f"n = {n}, 2 judges × 2 orders, strong verdicts, 1,000 simulations", found)
    assert found["win rate"][0] >= 0.93 and found["share"][0] >= 0.93
    assert found["rows alone"][0] < 0.85


@pytest.mark.slow
@pytest.mark.parametrize("n, passing, bar", [(120, 0.7, 0.93), (120, 0.95, 0.93), (100, 0.97, 0.92)])
def test_clustered_shares_hold_near_one(n: int, passing: float, bar: float) -> None:
    def make(random: np.random.Generator) -> dict[str, Interval]:
        checks, chance = random.integers(1, 5, n), random.beta(passing * 2, (1 - passing) * 2, n)
        hits = random.binomial(checks, chance)
        prompts = [[1] * hit + [0] * (count - hit) for hit, count in zip(hits, checks, strict=True)]
        return {"share": share(prompts), "bootstrap": win_rate(prompts, 1000)}

    found = coverage(2000, {"share": passing, "bootstrap": passing}, make)
    show(f"{passing:.0%} of 1 to 4 checks of {n} prompts, 2,000 simulations", found)
    assert bar <= found["share"][0] <= 0.97
    assert found["share"][0] > found["bootstrap"][0] - 0.005


@pytest.mark.slow
def test_agreement_intervals_hold() -> None:
    def make(random: np.random.Generator) -> dict[str, Any]:
        truth = random.random((100, 1)) < 0.5
        ratings = np.where(random.random((100, 2)) < 0.1, ~truth, truth).tolist()
        found = agreement(ratings, rounds=1000)
        return {name: found[name] for name in ("raw", "kappa", "alpha", "ac1")}

    found = coverage(1000, {"raw": 0.82, "kappa": 0.64, "alpha": 0.64, "ac1": 0.64}, make)
    show("agreement of two raters on 100 items, 1,000 simulations", found)
    assert all(held >= 0.92 for held, _ in found.values())


@pytest.mark.slow
def test_joint_intervals_hold_and_are_shorter() -> None:
    found = coverage(2000, JOINT, joint)
    show("300 AI, 80 human, 2,000 simulations", found)
    narrower = found["joint"][1] / found["human"][1]
    print(f"; joint / human width {narrower:.2f}", end="")
    assert found["joint"][0] >= 0.92 and found["human"][0] >= 0.92
    assert narrower <= 0.8
    assert found["ai"][0] < 0.8
