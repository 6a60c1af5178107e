"""The limiter against models of servers, in simulated time: what a limit costs, and what a false one would."""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from chat.limits import DOWN, UNREACHABLE, Bucket, Limiter

Server = Callable[[float, int], bool]  # whether it takes a question: the time, and how many it is answering


def rate_limit(rate: float, burst: float) -> Server:
    """A token bucket, full at first."""
    level, at = burst, 0.0

    def takes(now: float, _: int) -> bool:
        nonlocal level, at
        level, at = min(burst, level + (now - at) * rate), now
        taken = level >= 1
        level -= taken
        return taken

    return takes


def sliding_window(rate: float, seconds: float = 1.0) -> Server:
    """No more than rate * seconds in any span of so many seconds."""
    times: deque[float] = deque()

    def takes(now: float, _: int) -> bool:
        while times and times[0] <= now - seconds:
            times.popleft()
        taken = len(times) < rate * seconds
        if taken:
            times.append(now)
        return taken

    return takes


def refuses(share: float, seed: int) -> Server:
    """So many at random, whatever the load."""
    dice = random.Random(seed)
    return lambda now, answering: dice.random() >= share


def concurrency_limit(most: int) -> Server:
    return lambda now, answering: answering < most


@dataclass
class Run:
    """What a simulation came to: seconds, questions refused, and those in all."""

    seconds: float
    refused: int
    sent: int


def simulate(
    server: Server, questions: int = 1280, concurrency: int = 64, latency: float = 1.0, retry_after: float = 1.0
) -> Run:
    """Ask until all are answered. A question takes a millisecond to send; a refusal comes after three."""
    limiter, dice = Limiter(concurrency), random.Random(0)
    events: list[tuple[float, int, str, object]] = [(0.0, 0, "go", None)]
    number = answering = answered = refused = sent = 0
    again, left, free_at = 0, questions, 0.0
    now = 0.0

    def later(seconds: float, kind: str, permit: object = None) -> None:
        nonlocal number
        number += 1
        heapq.heappush(events, (now + seconds, number, kind, permit))

    while answered < questions:
        now, _, kind, permit = heapq.heappop(events)
        if kind == "arrives":
            if server(now, answering):
                answering += 1
                later(latency * dice.uniform(0.9, 1.1), "answer", permit)
            else:
                later(0.002, "refusal", permit)
        elif kind == "answer":
            answering, answered = answering - 1, answered + 1
            limiter.ok(permit, now)
        elif kind == "refusal":
            refused += 1
            limiter.refused(permit, now, retry_after, rate=True)
            later(retry_after + dice.uniform(0, 0.5), "again")
        again += kind == "again"
        if not again + left:
            continue
        wait = max(limiter.wait(now), free_at - now)
        if wait > 0:
            if wait < math.inf and not any(event[2] == "go" and event[0] <= now + wait for event in events[:4]):
                later(wait + 1e-6, "go")
            continue
        again, left = (again - 1, left) if again else (0, left - 1)
        sent, free_at = sent + 1, now + 0.001
        later(0.001, "arrives", limiter.take(now))
        later(0.001, "go")
    return Run(now, refused, sent)


def test_a_server_without_limits_is_asked_as_much_as_the_concurrency_allows() -> None:
    run = simulate(lambda now, answering: answering < 64)
    assert run.refused == 0
    assert run.seconds < 1.08 * 1280 / 64


@pytest.mark.parametrize("latency", [0.2, 1.0, 2.0])
def test_a_rate_is_found_at_its_first_refusals_and_kept(latency: float) -> None:
    run = simulate(rate_limit(30, burst=30), latency=latency)
    assert 1280 / run.seconds > 0.92 * 30
    assert run.refused < 0.05 * run.sent


@pytest.mark.parametrize("server", [sliding_window(30), rate_limit(30, burst=60)])
def test_a_rate_is_found_however_the_server_counts(server: Server) -> None:
    run = simulate(server)
    assert 1280 / run.seconds > 0.88 * 30
    assert run.refused < 0.05 * run.sent


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("retry_after", [0.0, 1.0])
def test_refusals_whatever_the_load_do_not_slow_it_down_for_long(share: float, seed: int, retry_after: float) -> None:
    run = simulate(refuses(share, seed), retry_after=retry_after)
    assert run.seconds < 1.6 * 1280 / 64


def test_a_concurrency_limit_is_found() -> None:
    run = simulate(concurrency_limit(8), questions=400, latency=1.0)
    assert run.seconds < 1.45 * 400 / 8
    assert run.refused < 0.15 * run.sent


def test_it_grows_back_when_the_limit_is_lifted() -> None:
    slow, fast = rate_limit(20, burst=20), rate_limit(60, burst=60)
    run = simulate(lambda now, answering: slow(now, answering) if now < 20 else fast(now, answering), questions=2400)
    assert run.seconds < 1.4 * (20 + (2400 - 400) / 60)


def test_one_burst_of_refusals_is_one_cut() -> None:
    limiter = Limiter(64)
    permits = [limiter.take(0.0) for _ in range(64)]
    for permit in permits[32:]:
        limiter.refused(permit, 0.01, rate=False)
    assert limiter.window == 32
    assert limiter.in_flight == 32


def test_single_refusals_change_nothing() -> None:
    limiter = Limiter(64)
    for number in range(200):
        permit = limiter.take(number / 64)
        if number % 100 == 50:
            limiter.refused(permit, number / 64 + 0.01, retry_after=5.0)
        else:
            limiter.ok(permit, number / 64 + 0.02)
    assert limiter.wait(200 / 64) == 0.0
    assert limiter.room == 64


def test_all_wait_as_long_as_retry_after_says() -> None:
    limiter = Limiter(8)
    for permit in [limiter.take(0.0) for _ in range(8)]:
        limiter.refused(permit, 0.1, retry_after=7.0)
    assert 7.0 <= limiter.wait(0.1) < 9.0
    assert limiter.wait(5.0) > 2.0


def test_no_minute_sees_more_requests_than_were_allowed() -> None:
    for allowed in (1, 7, 60, 600, 6000):
        bucket, now, times = Bucket(allowed), 5.0, []
        while now < 200:
            now += bucket.wait(now) + 1e-9
            bucket.take(1.0)
            times.append(now)
        busiest = max(sum(begin <= at < begin + 60 - 1e-6 for at in times) for begin in times[:: len(times) // 50 + 1])
        assert 0.9 * allowed <= busiest <= allowed


def test_tokens_are_reserved_and_settled_by_what_was_used() -> None:
    limiter = Limiter(8, tokens_per_minute=6000)
    permit = limiter.take(0.0)
    limiter.reserve(permit, 600)
    assert limiter.wait(0.0) == pytest.approx(5.8, abs=0.5)
    limiter.ok(permit, 1.0, tokens=100)
    assert limiter.wait(1.0) == pytest.approx(0.0, abs=0.1)
    limiter.reserve(limiter.take(2.0), 600)  # what one has cost says more than the estimate
    assert limiter.tokens.level == pytest.approx(-75, abs=30)


def test_a_server_that_is_away_rests_and_is_then_asked_singly() -> None:
    limiter = Limiter(8)
    permits = [limiter.take(0.0) for _ in range(DOWN // UNREACHABLE)]
    for permit in permits:
        limiter.failed(permit, 0.1, UNREACHABLE)
    assert limiter.down
    assert limiter.wait(0.1) == pytest.approx(1.0)
    permit = limiter.take(1.2)
    assert limiter.wait(1.2) == math.inf
    limiter.failed(permit, 1.3)
    assert limiter.wait(1.3) == pytest.approx(2.0)
    limiter.ok(limiter.take(4.0), 4.1)
    assert not limiter.down
    assert limiter.wait(4.1) == 0.0
    assert limiter.room == 8
