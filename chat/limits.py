"""How fast one server may be asked: what the user set, and what its refusals teach. No clock, no sleep, no socket:
whoever calls brings the time, in seconds of any clock that only goes forward.

    limiter = Limiter(concurrency=64)
    if not limiter.wait(now):            # 0.0: ask now; math.inf: when an answer has come
        permit = limiter.take(now)
        limiter.ok(permit, later)        # or .refused(…), or .failed(…)

A refusal is a 429, a 503 or a time-out. Single ones are the question's own matter: it waits and is asked again. When
more are refused than chance explains, all wait as long as Retry-After says, and the limit is estimated:

    a rate          the answers that were let in, by the time they took; for a 429, or where Retry-After is given
    a concurrency   what is in flight, but no less than half of before; for the rest, and where no rate fits

The next dozen goes out at 0.6 of that. A server at its limit refuses none of them; one that refuses whatever the load
goes on, and then that share is taken as given and the limit is dropped. A limit that holds grows back: slowly at first,
then faster.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

TRIAL = 12, 36  # questions at least and at most, after a cut
TRIAL_PACE = 0.6
IN_A_ROW, IN_A_TRIAL = 4, 6  # refusals of questions sent one after the other
TOLERATED = 0.02  # share of refusals
BROKEN, UNREACHABLE = 1, 3  # weight of a failure; a server with DOWN in a row rests
DOWN = 9
LONGEST_REST = 30.0  # seconds


class Bucket:
    """So much a minute, evenly; what is taken may exceed what is there, then the next one waits for the debt.

    No 60 seconds see more than `per_minute` takes of 1.0; 0 is no limit.
    """

    def __init__(self, per_minute: float) -> None:
        self.size = max(1.0, per_minute / 240)
        self.per_second = (per_minute - self.size + 1) / 60 if per_minute else 0.0
        self.level, self.at = self.size, 0.0

    def wait(self, now: float) -> float:
        """Seconds until one may be taken."""
        if not self.per_second:
            return 0.0
        self.level = min(self.size, self.level + (now - self.at) * self.per_second)
        self.at = now
        return max(0.0, (1.0 - self.level) / self.per_second)

    def take(self, amount: float) -> None:
        """Less than nothing gives back."""
        self.level -= amount


@dataclass(slots=True)
class Permit:
    """One question that may go out: when, which one it is, after which cut, and the tokens reserved for it."""

    at: float
    number: int
    cut: int
    trial: bool
    tokens: float = 0.0


class Limiter:
    """What one server may be asked at a time. `most` is the highest concurrency; `ceiling` may be set below it."""

    def __init__(self, concurrency: int, requests_per_minute: float = 0, tokens_per_minute: float = 0) -> None:
        self.most = self.ceiling = concurrency
        self.requests, self.tokens = Bucket(requests_per_minute), Bucket(tokens_per_minute)
        self.in_flight = 0
        self.latency = 0.0  # seconds of an answer, a running mean
        self.usual_tokens = 0.0  # of a question with its answer, likewise
        self.window = float(concurrency)  # the concurrency that is allowed
        self.rate = math.inf  # questions a second, as estimated at the last cut
        self.noise = 0.0  # share of refusals that has nothing to do with the load
        self.not_before = 0.0  # nothing goes out until then
        self.failures, self.rest = 0, 1.0
        self._delay = 0.05  # seconds until a refusal comes, a running mean
        self._numbers = self._last_refused = self._row = self._cuts = 0
        self._fruitless = 0  # cuts since the last answer
        self._trial = self._trial_left = self._trial_refused = self._trial_sent_at = 0
        self._measured = 0.0
        self._let_in = 0
        self._on_trial = self._by_rate = False
        self._sampled, self._sampled_refused = 0.0, 0.0  # in trials, the latest ones
        self._begin(0.0)

    # --- asking -------------------------------------------------------------------------------------------------------

    def wait(self, now: float) -> float:
        """Seconds until the next question may go out; infinite if that needs an answer to come first."""
        self._advance(now)
        if self.in_flight >= self.room:
            return math.inf
        wait = max(0.0, self.not_before - now)
        if self.rate < math.inf and self._level < 1:
            wait += (1 - self._level) / self._pace(now)
        return max(wait, self.requests.wait(now), self.tokens.wait(now))

    def take(self, now: float) -> Permit:
        """A question goes out. Ask `wait` before."""
        self._advance(now)
        self._level -= 1
        self.in_flight += 1
        self.requests.take(1)
        self._numbers += 1
        self._sent += 1
        self._recent += 1
        if self._recent >= 128:
            self._recent, self._recent_refused = self._recent / 2, self._recent_refused / 2
        permit = Permit(now, self._numbers, self._cuts, self._trial_left > 0)
        if permit.trial:
            self._trial_left, self._trial_sent_at = self._trial_left - 1, now
        return permit

    def reserve(self, permit: Permit, tokens: float) -> None:
        """Set tokens aside for a question that goes out: its `tokens`, or what questions usually cost here."""
        permit.tokens = self.usual_tokens or tokens
        self.tokens.take(permit.tokens)

    # --- what came of it ----------------------------------------------------------------------------------------------

    def ok(self, permit: Permit, now: float, tokens: float = 0.0) -> None:
        """An answer came, for so many tokens."""
        self._release(permit, tokens or permit.tokens)
        self.failures, self.rest, self._fruitless = 0, 1.0, 0
        self._answered += 1
        self.latency += (now - permit.at - self.latency) * (0.1 if self.latency else 1.0)
        if tokens:
            self.usual_tokens += (tokens - self.usual_tokens) * (0.1 if self.usual_tokens else 1.0)
        self.window = min(self.most, self.window + self._answered / (8 * self.window**2))

    def failed(self, permit: Permit, now: float, weight: int = BROKEN) -> None:
        """Something else came, or nothing. After DOWN of these in a row the server rests, and is then asked singly."""
        self._release(permit, 0.0)
        self.failures += weight
        if self.down and self.in_flight == 0:
            self.not_before, self.rest = now + self.rest, min(2 * self.rest, LONGEST_REST)

    def dropped(self, permit: Permit) -> None:
        """The question did not go out after all, or is no longer awaited."""
        self._release(permit, 0.0)

    def refused(self, permit: Permit, now: float, retry_after: float = 0.0, rate: bool = True) -> None:
        """It was refused for now: `retry_after` is in seconds, 0 for none; `rate` whether a rate limit is likely."""
        self._release(permit, 0.0)
        self._delay += 0.2 * (min(now - permit.at, 1.0) - self._delay)
        self._row = self._row + 1 if permit.number == self._last_refused + 1 else 1
        self._last_refused = permit.number
        if permit.cut < self._cuts:  # of the same burst; the estimate took it for an answer
            if permit.cut == self._cuts - 1 and self._estimated:
                self._let_in -= 1
                self._estimate()
            return
        self._sent_refused += 1
        self._recent_refused += 1
        if permit.trial:
            self._trial_refused += 1
        elif self.rate == math.inf and self.noise and self._recent > 32:
            self.noise = max(self.noise, min(2 * self._measured, self._recent_refused / self._recent))
        row = max(IN_A_TRIAL if permit.trial else IN_A_ROW, math.log(1e-4) / math.log(self.noise) if self.noise else 0)
        if self._row >= row or (not permit.trial and self._exceeds_chance(self._recent, self._recent_refused)):
            self._cut(now, retry_after, rate)

    @property
    def down(self) -> bool:
        return self.failures >= DOWN

    # --- the estimate -------------------------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """How many may be in flight."""
        if self.down:
            return 1
        half = self._on_trial and not self._by_rate
        return max(1, min(self.ceiling, int(self.window * (TRIAL_PACE if half else 1.0))))

    def _release(self, permit: Permit, tokens: float) -> None:
        self.in_flight -= 1
        self.tokens.take(tokens - permit.tokens)

    def _begin(self, now: float) -> None:
        """Count anew, from a cut or from its end."""
        self._since = self._at = self._grows_from = now
        self._level, self._allowed = 1.0, 0.0  # questions: that may go out at once, that might have gone out
        self._sent = self._sent_refused = self._answered = 0
        self._recent = self._recent_refused = 0.0  # the last hundred or so
        self._estimated = False

    def _pace(self, now: float) -> float:
        """Questions a second: a little below the estimate, then up, in the long run with the cube of the time."""
        if self._on_trial and self._by_rate:
            return self.rate * TRIAL_PACE
        time = max(0.0, now - self._grows_from) / self._horizon
        return self.rate * (0.97 + 0.03 * time + max(0.0, time - 1) ** 3)

    def _advance(self, now: float) -> None:
        if self._on_trial and not self._trial_left and now > self._trial_sent_at + 3 * self._delay:
            self._end_trial(now)
        if self.rate < math.inf:
            pace = self._pace(now)
            gained = pace * max(0.0, now - max(self._at, self.not_before))
            self._level = min(max(1.5, 0.05 * pace), self._level + gained)
            self._allowed += gained
        self._at = now

    def _exceeds_chance(self, sent: float, refused: float) -> bool:
        """Whether so many refusals are more than the tolerated or the known share explains (three sigma, and one)."""
        expected = max(TOLERATED, 1.2 * self.noise) * sent
        return refused > expected + 3 * math.sqrt(expected) + 2

    def _cut(self, now: float, retry_after: float, rate: bool) -> None:
        self._evidence = (0.0, 1.0) if self._on_trial else (self._recent, self._recent_refused)
        self._by_rate, self._half = rate, self.window / 2
        if rate:
            self._let_in = self._sent - self._sent_refused
            self._unit = max(1.0, retry_after)  # seconds that the server counts in, as far as one can tell
            span = max(now - self._since, self._unit)
            grown = math.sqrt(0.9 * self._pace(now) / self._allowed / span) if 5 < self._allowed < math.inf else 0.0
            first = self.rate == math.inf
            self._shares = (1 / self._unit, 0.0) if first else (max(1 / span, grown), self.rate / 2)
            if not first and (self._let_in <= 1 or span > 2 * self.latency > 0):
                self.window = max(self.in_flight, self._half, 1.0)
            self._horizon = min(20.0, max(2.0, self._let_in / 2)) * self._unit
        self._estimate()
        if rate or self._fruitless:
            self.not_before = now + max(retry_after, min(0.5 * 2**self._fruitless, LONGEST_REST))
        self._fruitless += 1
        sent, refused = self._evidence
        self._trial = min(max(TRIAL[0], round(2.5 * sent / refused)), TRIAL[1])
        self._on_trial, self._trial_left, self._trial_refused = True, self._trial, 0
        self._cuts += 1
        self._row = 0
        self._begin(now)
        self._estimated = True

    def _estimate(self) -> None:
        """The concurrency, from what is in flight; or the rate, from what was let in: by the time since the last cut
        (the first time: by the server's unit), by the pace that it took at the end. No less than half of before."""
        if self._by_rate:
            share, least = self._shares
            self.rate = max(max(self._let_in, 1) * share, least)
        else:
            self.window = max(self.in_flight, self._half, 1.0)

    def _end_trial(self, now: float) -> None:
        self._on_trial, self._grows_from = False, now
        if self._trial_refused > 0.45 * self._trial:
            self._cut(now, 0.0, self._by_rate)
            return
        self._sampled += self._trial
        self._sampled_refused += self._trial_refused
        self.noise = self._measured = self._sampled_refused / self._sampled if self._sampled_refused >= 1 else 0.0
        if self._sampled >= 48:
            self._sampled, self._sampled_refused = self._sampled / 2, self._sampled_refused / 2
        if self.noise and not self._exceeds_chance(*self._evidence):
            self.rate, self.window = math.inf, float(self.most)
            self._cuts += 1
            self._begin(now)
