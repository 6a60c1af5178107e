"""The real rows' lengths, and the order in which a short run sees a fair sample of an epoch. Arithmetic only."""

from __future__ import annotations

import itertools
import math
from statistics import NormalDist

import numpy as np

from preflight.cost import micro_batches
from recipe import UserError

# Lengths of the medical-o1 (zh) rows, in tokens, tags included, by a third party's audit of 10,000 of its rows:
# mean 567, p50 554, p95 790, p99 899, max 1356; 20,171 rows. A lognormal of the same median and mean fits them.
ROWS, MEAN, MEDIAN, MAXIMUM = 20_171, 567, 554, 1356
SIGMA = math.sqrt(2 * math.log(MEAN / MEDIAN))
THOUGHT, ANSWER = 316 / MEAN, 168 / MEAN  # shares of a row; the rest is the question

WARM_UP = 3  # optimiser steps that are left out: the longest, the shortest and a middle one


def draw_lengths(rows: int = ROWS, seed: int = 42) -> np.ndarray:
    """`rows` lengths in tokens: the lognormal's own quantiles, shuffled, so that a small sample has the moments too."""
    top = NormalDist().cdf(math.log(MAXIMUM / MEDIAN) / SIGMA)
    scores = [NormalDist().inv_cdf((row + 0.5) / rows * top) for row in range(rows)]
    lengths = np.rint(MEDIAN * np.exp(SIGMA * np.array(scores))).astype(int)
    return np.random.default_rng(seed).permutation(lengths)


def arrange(lengths: np.ndarray, batch: int, accumulation: int, grouped: bool, steps: int) -> list[np.ndarray]:
    """The lengths of the first `steps` optimiser steps, so chosen that any number of them is a fair sample.

    An epoch's steps are made as transformers makes them (random, or grouped by length), ranked by their tokens, and
    taken in golden-ratio order, which covers the ranks evenly; first come the longest, the shortest and the middle
    step, as warm-up, so that a batch that does not fit fails at once.
    """
    rows = batch * accumulation
    epoch = [step for step in micro_batches(lengths, rows, grouped) if len(step) == rows]
    if not epoch:
        raise UserError(f"--batch {batch} x --accumulation {accumulation}: more than an epoch's {len(lengths)} rows")
    ranked = sorted(epoch, key=lambda step: int(step.max()) if grouped else int(step.sum()))
    golden = np.argsort(np.argsort([index * 0.6180339887 % 1 for index in range(len(ranked))]))
    longest = max(range(len(ranked)), key=lambda index: int(ranked[index].max()))
    order = [longest, 0, len(ranked) // 2, *golden]
    return [ranked[index] for index, _ in zip(itertools.cycle(order), range(steps), strict=False)]
