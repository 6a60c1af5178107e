"""Ask a teacher once per record, and never lose an answer.

    export OPENAI_API_KEY=…
    python -m preprocess.label recipes/healthai/label.yaml base_url=https://… model=… limit=100 dry_run=true

`kind: diagnosis` asks for `{"reason", "diseases"}` of a patient record; a row of labelled.jsonl:

    {"id": 17, "reason": "1. 夜间咳嗽3周……", "diseases": "咳嗽变异性哮喘", "feature_content": "性别: 女\\n……",
     "reasoning_content": "平卧加重……", "journal": "6b1f…"}

`kind: cot` asks a plain question; a row:

    {"id": "17", "Question": "夜里咳嗽三周……", "Complex_CoT": "躺下加重……", "Response": "要先排除……",
     "journal": "6b1f…"}

Every outcome goes into journal.jsonl as it comes, keyed by all that was asked. Kill this at any instant and start it
again: what was answered is not asked again, and changing the prompt or the sampling asks only what changed.
labelled.jsonl and failed.jsonl are written from the journal, in the order of the input, each record once.
"""

from __future__ import annotations

import asyncio
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm import tqdm

from chat.budget import Budget, Cost, estimate
from chat.client import Client, Failure, Question, Reply, Settings, read_key
from chat.journal import Journal, key_of
from chat.panel import Panel
from chat.reading import read_object
from chat.server import serve
from preprocess.ask import Asker, Label, check, is_local, records, text_of
from preprocess.choose import Choice, Outcome, choose
from preprocess.gates import EXPLAINED
from preprocess.lengths import Lengths
from preprocess.records import Record, sha256_file, to_json
from recipe import UserError, atomic, main, read_text, staged

SHOWN = 3  # prompts of a dry run
NOT_ASKED = "its turn did not come; the same command goes on"
PLACES = ("input", "output", "base_url", "serve", "api_key_env", "api_key_file", "tokenizer", "prompt", "examples")


def label(settings: Label) -> None:
    """Run label.yaml: ask what the journal does not hold yet, then write what it holds."""
    check(settings)
    if settings.dry_run:
        dry_run(settings)
        return
    Asker(settings, settings.model, "none")  # a prompt that can't be filled is said before anything is begun
    out = Path(settings.output)
    with ExitStack() as stack:
        urls, key, model = settings.urls, "", settings.model
        if settings.serve:
            server = stack.enter_context(serve(settings.serve, log=str(out / "server.log")))
            urls, key, model = [server.base_url], server.api_key, model or server.model
        at = settings.client(urls, model)
        key = key or read_key(at)
        journal = stack.enter_context(Journal(out / "journal.jsonl", secrets=[key]))
        run = Run(settings, journal, model)
        error = asyncio.run(run.ask(at, key))
        summary = write(run, out)
    report(settings, summary)
    if error:
        raise error
    if summary["left"]:
        raise UserError(
            f"{summary['left']} of {summary['records']} records are left ({run.stopped}); run it again to go on"
        )


class Run:
    """One run over the records: what is asked, what it costs, and why it stopped before its end, if it did."""

    def __init__(self, settings: Label, journal: Journal, model: str) -> None:
        self.settings, self.journal, self.model = settings, journal, model
        caps = (settings.max_total_tokens, settings.max_usd, settings.max_hours)
        self.budget = Budget(*caps, settings.usd_in, settings.usd_out)
        self.lengths = Lengths(settings.tokenizer, 0)
        self.asker = Asker(settings, model, "none")
        self.stopped = ""
        self.again: deque[Question] = deque()  # questions that a reply has raised
        self.out: dict[str, Cost] = {}  # by key, what is reserved for a question on its way
        self.held: Question | None = None  # the first question that could pass a cap

    async def ask(self, at: Settings, key: str) -> UserError | None:
        """Ask all that is missing; the error that ended it early, if one did."""
        loop = asyncio.get_running_loop()
        try:
            self._count_spent()
            async with Client(at, key) as client:
                loop.add_signal_handler(signal.SIGINT, self._interrupt, client)
                self.asker = Asker(self.settings, self.model, await self._response_format(client))
                await self._ask_all(client, "label", self.questions)
                if self.settings.verifier and not self.stopped:
                    await self._ask_all(client, "verify", self.verifications)
        except UserError as error:
            self.stopped = self.stopped or "an error"
            return error
        finally:
            loop.remove_signal_handler(signal.SIGINT)
        return None

    def _interrupt(self, client: Client) -> None:
        self.stopped = "interrupted"
        client.stop()

    def _count_spent(self) -> None:
        """What earlier runs have used counts against the caps."""
        for entry in self.journal:
            self.budget.settle(Cost(0, 0), _usage(entry.get("reply") or entry["error"]) or Cost(0, 0))

    async def _response_format(self, client: Client) -> str:
        """What `auto` stands for: asked of the server once, and kept, so that the questions stay the same."""
        if self.settings.response_format != "auto":
            return self.settings.response_format
        kept = Path(self.settings.output) / "response_format"
        if not kept.exists():
            found = "json_schema" if await client.supports_schema(self.model) else "none"
            with atomic(kept) as file:
                file.write(found + "\n")
        return read_text(kept).strip()

    def questions(self) -> Iterator[Question]:
        """Every question of every record, in order."""
        for _, _, shown in records(self.settings):
            yield from self.asker.questions(shown)

    def verifications(self) -> Iterator[Question]:
        """The verifier's question about every answer that has been chosen."""
        for _, record, shown in records(self.settings):
            choice = choose(record, shown.question, self.outcomes(shown), self.settings)
            if choice.row:
                yield self.asker.verify(shown, choice.answer)

    async def _ask_all(self, client: Client, title: str, questions: Callable[[], Iterator[Question]]) -> None:
        """In rounds: one ends when a cap would be passed, and what its replies did not use is for the next."""
        missing = sum(key(one) not in self.journal for one in questions())
        rest = questions()
        with Panel(title, missing, self.budget) as panel:
            asked = -1
            while not self.stopped and asked != panel.asked:
                asked = panel.asked
                async for question, outcome in client.ask_all(self._affordable(rest, panel)):
                    await self._keep(question, outcome)
                    panel.count(outcome.kind if isinstance(outcome, Failure) else "")
                    panel.flying = client.in_flight
        if self.held and not self.stopped:
            self.stopped = self.budget.exceeded_by(self._cost(self.held))

    def _affordable(self, rest: Iterator[Question], panel: Panel) -> Iterator[Question]:
        """What is not answered yet and what the replies raise, up to the first question that could pass a cap."""
        while question := self._next(rest):
            cost = self._cost(question)
            if self.budget.exceeded_by(cost):
                self.held = question
                return
            self.budget.reserve(cost)
            self.out[key(question)] = cost
            panel.asked += 1
            yield question

    def _next(self, rest: Iterator[Question]) -> Question | None:
        while question := self.held or (self.again.popleft() if self.again else next(rest, None)):
            self.held = None
            if key(question) not in self.journal:
                return question
            self._follow(question, self.journal.get(key(question))["reply"])
        return None

    def _cost(self, question: Question) -> Cost:
        return Cost(self._tokens(text_of(question)), question.asked["max_tokens"])

    async def _keep(self, question: Question, outcome: Reply | Failure) -> None:
        """An outcome, into the journal before anything else is done with it."""
        entry = {"key": key(question), "ok": isinstance(outcome, Reply), "id": question.id, "sample": question.sample}
        values = asdict(outcome)
        await self.journal.add(entry | {"asked": question.asked, ("reply" if entry["ok"] else "error"): values})
        text = f"{values.get('think', '')}{values.get('text', '')}"
        reserved = self.out.pop(entry["key"])
        used = _usage(values) or (Cost(reserved.prompt, self._tokens(text)) if entry["ok"] else Cost(0, 0))
        self.budget.settle(reserved, used)
        if entry["ok"]:
            self._follow(question, values)

    def _follow(self, question: Question, reply: dict[str, Any]) -> None:
        """The repair of a whole reply that can't be read; of a repair there is none."""
        if repair := self.asker.repair_of(question, reply):
            self.again.append(repair)

    def _tokens(self, text: str) -> int:
        return self.lengths.count([text])[0] or estimate(text)

    def outcomes(self, shown: Record) -> list[Outcome]:
        """What the journal holds about each sample of a record, repaired where that was tried."""
        return [self.outcome(question) for question in self.asker.questions(shown)]

    def outcome(self, question: Question) -> Outcome:
        if key(question) not in self.journal:
            error = self.failures.get(key(question), {"kind": "not_asked", "message": NOT_ASKED})
            return Outcome(key(question), None, error["kind"], error["message"])
        reply = self.journal.get(key(question))["reply"]
        repair = self.asker.repair_of(question, reply)
        if repair and key(repair) in self.journal:
            return Outcome(key(repair), self.journal.get(key(repair))["reply"])
        return Outcome(key(question), reply)

    @cached_property
    def failures(self) -> dict[str, dict[str, Any]]:
        """The last failure of each question; asked for when nothing is asked any more."""
        return {entry["key"]: entry["error"] for entry in self.journal if not entry["ok"]}


def key(question: Question) -> str:
    return key_of(question.asked, question.id, question.sample)


def _usage(values: dict[str, Any]) -> Cost | None:
    usage = values.get("usage") or {}
    return Cost(usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0) if usage else None


def verified(run: Run, record: Record, shown: Record, choice: Choice) -> Choice:
    """The choice, if the verifier supports it or none was named; else the reason."""
    if not choice.row or not run.settings.verifier:
        return choice
    outcome = run.outcome(run.asker.verify(shown, choice.answer))
    if not outcome.reply:
        return Choice(None, outcome.failure, f"verifier: {outcome.message}")
    found = read_object(outcome.reply["text"], ("supported",), outcome.reply["finish_reason"])
    verdict = str(found.value["supported"]).strip() if found.value else ""
    return choice if verdict in ("是", "yes", "true") else Choice(None, "verifier", verdict or found.fault)


def write(run: Run, out: Path) -> dict[str, Any]:
    """labelled.jsonl, failed.jsonl and summary.json, all or none, from the journal alone."""
    reasons: Counter[str] = Counter()
    with staged([out / name for name in ("labelled.jsonl", "failed.jsonl", "summary.json")]) as files:
        count = 0
        for place, record, shown in tqdm(records(run.settings), desc="writing", unit=" records", disable=None):
            count += 1
            outcomes = run.outcomes(shown)
            choice = verified(run, record, shown, choose(record, shown.question, outcomes, run.settings))
            if choice.row:
                files[0].write(to_json(choice.row) + "\n")
            else:
                reasons[choice.reason] += 1
                files[1].write(to_json(_failed(place, record, choice, outcomes)) + "\n")
        summary = summarise(run, count, reasons)
        files[2].write(to_json(summary, indent=1) + "\n")
    return summary


def _failed(place: str, record: Record, choice: Choice, outcomes: list[Outcome]) -> dict[str, Any]:
    replies = [{"journal": one.key, "text": one.reply["raw"]} for one in outcomes if one.reply]
    what = choice.message or EXPLAINED.get(choice.reason, "")
    return {"place": place, "id": record.id, "reason": choice.reason, "what": what, "replies": replies}


def summarise(run: Run, count: int, reasons: Counter[str]) -> dict[str, Any]:
    """Records are labelled, failed for a reason, or left; the rest is of the journal, all runs together."""
    answered, kinds, methods, models = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    for entry in run.journal:
        if entry["ok"]:
            reply = entry["reply"]
            answered["answered"] += 1
            methods[reply["think_from"] or "none"] += 1
            models[f"{reply['model']} {reply['fingerprint'] or ''}".strip()] += 1
        else:
            answered["failed"] += 1
            kinds[entry["error"]["kind"]] += 1
        used = _usage(entry.get("reply") or entry["error"]) or Cost(0, 0)
        answered["prompt_tokens"] += used.prompt
        answered["completion_tokens"] += used.completion
    left = reasons.pop("not_asked", 0)
    cost = run.budget.usd(answered["prompt_tokens"], answered["completion_tokens"])
    return {
        "records": count,
        "labelled": count - left - sum(reasons.values()),
        "failed_records": dict(sorted(reasons.items())),
        "left": left,
        **{name: answered[name] for name in ("answered", "failed", "prompt_tokens", "completion_tokens")},
        "failures": dict(sorted(kinds.items())),
        "thought_from": dict(sorted(methods.items())),
        "teachers": dict(sorted(models.items())),
        "usd": round(cost, 4),
        "prompts": run.asker.prompts,
        "inputs": [{"file": Path(path).name, "sha256": sha256_file(path)} for path in run.settings.inputs],
        "settings": {name: value for name, value in asdict(run.settings).items() if name not in PLACES},
    }


def report(settings: Label, summary: dict[str, Any]) -> None:
    """Print what there is now, and where; to wandb as well, if that was chosen."""
    failed = ", ".join(f"{name} {number}" for name, number in summary["failed_records"].items()) or "none"
    tokens = f"{summary['prompt_tokens']:,} tokens in, {summary['completion_tokens']:,} out"
    print(f"{', '.join(settings.inputs)}: {summary['records']:,} records")
    print(f"  labelled {summary['labelled']:>7,}  thoughts: {_listed(summary['thought_from'])}")
    print(f"  failed   {sum(summary['failed_records'].values()):>7,}  {failed}")
    print(f"  left     {summary['left']:>7,}")
    print(
        f"  asked    {summary['answered'] + summary['failed']:>7,}  {tokens}"
        + (f", ${summary['usd']:,.2f}" * bool(summary["usd"]))
    )
    print(f"  -> {settings.output}/labelled.jsonl")
    if settings.report_to == "wandb":
        import wandb

        figures = {name: value for name, value in summary.items() if isinstance(value, int | float)}
        with wandb.init(
            project="medcot", job_type="label", name=Path(settings.output).name, config=summary["settings"]
        ) as run:
            run.summary.update(figures | {f"failed/{name}": n for name, n in summary["failed_records"].items()})


def _listed(numbers: dict[str, int]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in numbers.items()) or "none"


def dry_run(settings: Label) -> None:
    """Show the first filled prompts, and what the whole run would take; nothing is sent, nothing is written."""
    asker = Asker(settings, settings.model or "model", settings.response_format)
    lengths = Lengths(settings.tokenizer, 0)
    count = tokens = 0
    for _, _, shown in records(settings):
        count += 1
        for question in asker.questions(shown):
            text = text_of(question)
            tokens += lengths.count([text])[0] or estimate(text)
        if count <= SHOWN:
            print(f"--- {shown.id}\n{text}\n")
    asked, most = count * settings.n, count * settings.n * settings.max_tokens
    budget = Budget(usd_in=settings.usd_in, usd_out=settings.usd_out)
    how = "by the tokenizer" if lengths.tokenizer else "estimated by characters"
    print(f"{count:,} records, {asked:,} questions, {tokens:,} tokens in ({how}), at most {most:,} out")
    if settings.usd_in or settings.usd_out:
        print(f"${budget.usd(tokens, 0):,.2f} for the questions, at most ${budget.usd(tokens, most):,.2f} in all")
    print(f"masked: {'no, the server is local' if is_local(settings) else 'yes'}; nothing was sent")


if __name__ == "__main__":
    main(Label, label, __doc__)
