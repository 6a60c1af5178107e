"""What a run may cost: tokens, money and hours, each reserved before a question is sent and settled by its reply.

budget = Budget(max_tokens=1_000_000, max_usd=20.0, usd_in=0.5, usd_out=2.0)
if not budget.exceeded_by(cost := Cost(800, 4096)):  # on top of all that is out
    budget.reserve(cost)
    budget.settle(cost, Cost(790, 350))
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import NamedTuple


class Cost(NamedTuple):
    """Tokens of a question, as estimated or as the server counted them."""

    prompt: int
    completion: int


@dataclass
class Budget:
    """Caps, 0 where there is none; `usd_in` and `usd_out` are dollars for a million tokens. `spent` is what earlier
    runs and this one have used, `out` what is reserved for questions on their way."""

    max_tokens: int = 0
    max_usd: float = 0.0
    max_hours: float = 0.0
    usd_in: float = 0.0
    usd_out: float = 0.0
    spent: list[int] = field(default_factory=lambda: [0, 0])
    out: list[int] = field(default_factory=lambda: [0, 0])
    begun: float = field(default_factory=time.monotonic)

    def usd(self, prompt: float, completion: float) -> float:
        return (prompt * self.usd_in + completion * self.usd_out) / 1e6

    def exceeded_by(self, cost: Cost) -> str:
        """The cap that would be passed if this were spent on top of all that is out, or an empty string."""
        prompt, completion = (sum(parts) for parts in zip(self.spent, self.out, cost, strict=True))
        if self.max_tokens and prompt + completion > self.max_tokens:
            return "max_total_tokens"
        if self.max_usd and self.usd(prompt, completion) > self.max_usd:
            return "max_usd"
        if self.max_hours and time.monotonic() - self.begun > 3600 * self.max_hours:
            return "max_hours"
        return ""

    def reserve(self, cost: Cost) -> None:
        self.out = [a + b for a, b in zip(self.out, cost, strict=True)]

    def settle(self, reserved: Cost, used: Cost) -> None:
        """Give back what was reserved, and count what was used."""
        self.out = [a - b for a, b in zip(self.out, reserved, strict=True)]
        self.spent = [a + b for a, b in zip(self.spent, used, strict=True)]


def estimate(text: str) -> int:
    """Tokens of a text without its tokenizer, rather too many: one a character beyond Latin-1, one for three others."""
    wide = sum(char > "\u00ff" for char in text)
    return wide + (len(text) - wide + 2) // 3
