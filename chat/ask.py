"""Ask what a journal does not hold yet; each outcome is on the disk before it counts.

with Journal("answers.journal.jsonl", secrets=[key]) as journal:
    ask_missing(settings, key, journal, questions, "answers")
    text = journal.get(key_of(question))["reply"]["text"]
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterable, Iterator
from typing import Any

from chat import journal as journals
from chat.budget import Budget, Cost
from chat.client import Client, Failure, Question, Reply, Settings
from chat.journal import Journal
from chat.panel import Panel
from recipe import UserError

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def key_of(question: Question) -> str:
    """The journal's key of a question."""
    return journals.key_of(question.asked, question.id, question.sample)


def entry_of(question: Question, outcome: Reply | Failure) -> dict[str, Any]:
    """The journal's line of an outcome, without log-probabilities; `raw` only where it is not the text."""
    values = {name: value for name, value in vars(outcome).items() if name != "logprobs"}
    if isinstance(outcome, Reply) and outcome.raw == outcome.text:
        del values["raw"]
    entry = {"key": key_of(question), "ok": isinstance(outcome, Reply), "id": question.id, "sample": question.sample}
    entry |= {"asked": question.asked, "reply" if entry["ok"] else "error": values}
    used = journals.tokens_of(entry)
    return entry | {"spent": [sum(pair) for pair in zip(used, outcome.lost_tokens, strict=True)]}


def ask_missing(settings: Settings, key: str, journal: Journal, questions: Iterable[Question], title: str) -> None:
    """Ask each question that the journal does not answer, once.

    A question that gets no answer is a failed line of the journal, no error; the next call asks it again. Raises
    UserError where the run ended early: no server can answer, the disk is full, Ctrl-C.
    """
    missing = [question for question in questions if key_of(question) not in journal]
    if missing:
        asyncio.run(_ask(settings, key, journal, missing, title))


async def _ask(settings: Settings, key: str, journal: Journal, missing: list[Question], title: str) -> None:
    loop, error = asyncio.get_running_loop(), None
    try:
        async with Client(settings, key) as client:
            for number in STOPPING:
                loop.add_signal_handler(number, client.stop)
            with Panel(title, Budget(), len(missing)) as panel:
                panel.asked, panel.errors = len(missing), client.errors
                async with asyncio.TaskGroup() as keeping:  # what comes while the disk is busy is written together
                    async for question, outcome in client.ask_all(missing):
                        keeping.create_task(_keep(journal, question, outcome, panel))
                        panel.flying = client.in_flight
    except* UserError as group:
        error = next(leaves(group))
    finally:
        for number in STOPPING:
            loop.remove_signal_handler(number)
    if error:
        raise error
    if panel.answered + panel.failed < len(missing):
        raise UserError(f"{journal.path}: interrupted; what was answered is in it, the same command goes on")


async def _keep(journal: Journal, question: Question, outcome: Reply | Failure, panel: Panel) -> None:
    entry = entry_of(question, outcome)
    await journal.add(entry)
    panel.count(failed=not entry["ok"])
    panel.budget.settle(Cost(0, 0), Cost(*journals.tokens_of(entry)))


def leaves(group: BaseExceptionGroup[UserError]) -> Iterator[UserError]:
    """The errors of a group, however deep."""
    for one in group.exceptions:
        yield from leaves(one) if isinstance(one, BaseExceptionGroup) else (one,)
