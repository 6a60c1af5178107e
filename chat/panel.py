"""What a long run shows: a live panel in a terminal, a plain line now and then where the output is piped."""

from __future__ import annotations

import sys
import time
from collections import Counter
from contextlib import AbstractContextManager
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from chat.budget import Budget

EVERY = 10.0  # seconds between plain lines


class Panel(AbstractContextManager["Panel"]):
    """Counts of a run; of `total` questions (0: not known), `known` were answered before. A reply may
    raise one more: its repair."""

    def __init__(self, title: str, budget: Budget, total: int = 0) -> None:
        self.title, self.budget, self.total = title, budget, total
        self.known = self.raised = self.answered = self.failed = self.asked = self.flying = 0
        self.errors: Counter[str] = Counter()  # tries that came to nothing, by kind
        self.begun = self.said = time.monotonic()
        self.console = Console(file=sys.stderr)
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=None), TextColumn("{task.percentage:.0f} %")
        )
        self.task = self.bar.add_task(title, total=None)
        self.live = Live(get_renderable=self._shown, console=self.console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Panel:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self.console.is_terminal:
            self.live.stop()
        elif self.asked:
            self.say()

    def count(self, failed: bool) -> None:
        """One outcome."""
        self.answered += not failed
        self.failed += failed
        self.bar.update(self.task, completed=self.known + self.answered + self.failed, total=self.questions or None)
        if not self.console.is_terminal and time.monotonic() - self.said > EVERY:
            self.say()

    @property
    def questions(self) -> int:
        """All of them, those of replies included; 0 where they are not known."""
        return self.total + self.raised if self.total else 0

    def say(self) -> None:
        self.said = time.monotonic()
        print(
            f"{self.title}: {', '.join(f'{name} {value}' for name, value in self.figures().items())}", file=sys.stderr
        )

    def figures(self) -> dict[str, str]:
        done, seconds = self.answered + self.failed, time.monotonic() - self.begun
        speed = done / seconds if seconds > 0 else 0.0
        prompt, completion = self.budget.spent
        figures = {
            "answered": f"{self.answered:,}" + (f", {self.known:,} before" if self.known else ""),
            "of": f"{self.questions:,}" if self.total else "…",
            "failed": f"{self.failed:,}",
            "in flight": f"{self.flying:,}",
            "per second": f"{speed:.1f}",
            "tokens": f"{prompt:,} in, {completion:,} out",
            "left": _clock((self.questions - self.known - done) / speed) if speed and self.total else "…",
        }
        if self.budget.usd_in or self.budget.usd_out:
            figures["cost"] = f"${self.budget.usd(prompt, completion):,.2f}"
        if self.errors:
            figures["tried again"] = ", ".join(f"{kind} {number}" for kind, number in self.errors.most_common())
        return figures

    def _shown(self) -> Group:
        table = Table.grid(padding=(0, 2))
        for name, value in self.figures().items():
            table.add_row(name, value)
        return Group(self.bar, table)


def _clock(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"
