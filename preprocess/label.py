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
import sys
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from chat.budget import Budget, Cost, estimate
from chat.client import Client, Failure, Question, Reply, Settings, Stopped, read_key
from chat.journal import Figures, Journal, key_of, tokens_of
from chat.logprobs import Writer
from chat.panel import Panel
from chat.reading import read_object
from chat.server import serve
from preprocess.ask import Asker, Label, check, inputs, is_local, records, text_of
from preprocess.choose import Choice, Outcome, choose
from preprocess.gates import EXPLAINED
from preprocess.lengths import Lengths
from preprocess.records import Record, read_rows, sha256_file, to_json
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
        check_labelled(out / "labelled.jsonl", journal)
        run = Run(settings, journal, model)
        if settings.top_logprobs:
            where = (out / "answers.logprobs", settings.tokenizer, model, settings.top_logprobs)
            run.logprobs = stack.enter_context(Writer(*where))
        error = asyncio.run(run.ask(at, key))
        summary = write(run, out)
    report(settings, summary)
    if error:
        raise error
    if summary["left"]:
        raise UserError(
            f"{summary['left']} of {summary['records']} records are left ({run.stopped}); run it again to go on"
        )


def check_labelled(path: Path, journal: Journal) -> None:
    """UserError for rows that this journal did not bring: they would be overwritten."""
    if path.exists() and path.stat().st_size:
        place, row = next(read_rows(str(path)))
        if str(row.get("journal")) not in journal:
            raise UserError(f"{place}: was not written from {journal.path}; move it away, or name another output")


class Run:
    """One run over the records: what is asked, what it costs, and why it stopped before its end, if it did."""

    def __init__(self, settings: Label, journal: Journal, model: str) -> None:
        self.settings, self.journal, self.model = settings, journal, model
        caps = (settings.max_total_tokens, settings.max_usd, settings.max_hours)
        self.budget = Budget(*caps, settings.usd_in, settings.usd_out)
        self.lengths = Lengths(settings.tokenizer, 0)
        self.response_format = settings.response_format
        kept = Path(settings.output) / "response_format"
        if settings.response_format == "auto" and kept.exists():
            self.response_format = read_text(kept).strip()
        self.asker = Asker(settings, model, self.response_format)
        self.failures: dict[str, dict[str, Any]] = {}  # by key, the last one; read when nothing is asked any more
        self.logprobs: Writer | None = None
        self.writing = ThreadPoolExecutor(1)  # a Writer is for one thread
        self.stopped = ""
        self.again: deque[Question] = deque()  # questions that a reply has raised
        self.out: dict[str, Cost] = {}  # by key, what is reserved for a question on its way
        self.held: Question | None = None  # the first question that could pass a cap

    async def ask(self, at: Settings, key: str) -> UserError | None:
        """Ask all that is missing; the error that ended it early, if one did."""
        loop, error = asyncio.get_running_loop(), None
        try:
            self._count_spent()
            async with Client(at, key) as client:
                loop.add_signal_handler(signal.SIGINT, self._interrupt, client)
                await self._choose_format(client)
                with Panel("label", self.budget) as panel:
                    counting = asyncio.create_task(self._count(panel))
                    await self._ask_all(client, panel, self.questions())
                    counting.cancel()
                if self.settings.verifier and not self.stopped:
                    with Panel("verify", self.budget) as panel:
                        await self._ask_all(client, panel, self.verifications())
        except* UserError as group:
            self.stopped = self.stopped or "an error"
            error = next(_leaves(group))
        except* Stopped:
            pass
        finally:
            loop.remove_signal_handler(signal.SIGINT)
        return error

    def _interrupt(self, client: Client) -> None:
        self.stopped = "interrupted"
        client.stop()

    def _count_spent(self) -> None:
        """What earlier runs have used counts against the caps."""
        if self.budget.max_tokens or self.budget.max_usd:
            for entry in self.journal:
                self.budget.settle(Cost(0, 0), Cost(*tokens_of(entry)))

    async def _choose_format(self, client: Client) -> None:
        """What `auto` stands for: asked of the server once, and kept, so that the questions stay the same."""
        if self.response_format == "auto":
            self.response_format = "json_schema" if await client.supports_schema(self.model) else "none"
            with atomic(Path(self.settings.output) / "response_format") as file:
                file.write(self.response_format + "\n")
            self.asker = Asker(self.settings, self.model, self.response_format)

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

    async def _ask_all(self, client: Client, panel: Panel, rest: Iterator[Question]) -> None:
        """In rounds: one ends when a cap would be passed, and what its replies did not use is for the next."""
        asked, panel.errors = -1, client.errors
        while not self.stopped and asked != panel.asked:
            asked = panel.asked
            async with asyncio.TaskGroup() as keeping:  # what comes while the disk is busy is written together
                async for question, outcome in client.ask_all(self._affordable(rest, panel)):
                    keeping.create_task(self._keep(question, outcome, panel))
                    panel.flying = client.in_flight
        if self.held and not self.stopped:
            self.stopped = self.budget.exceeded_by(self._cost(self.held))

    def _affordable(self, rest: Iterator[Question], panel: Panel) -> Iterator[Question]:
        """What is not answered yet and what the replies raise, up to the first question that could pass a cap."""
        while question := self._next(rest, panel):
            cost = self._cost(question)
            if self.budget.exceeded_by(cost):
                self.held = question
                return
            self.budget.reserve(cost)
            self.out[key(question)] = cost
            panel.asked += 1
            yield question

    async def _count(self, panel: Panel) -> None:
        """The number of questions, beside the first answers: large inputs take a while to read."""
        panel.total = await asyncio.to_thread(count_records, self.settings) * self.settings.n

    def _next(self, rest: Iterator[Question], panel: Panel) -> Question | None:
        while question := self.held or (self.again.popleft() if self.again else next(rest, None)):
            self.held = None
            if key(question) not in self.journal:
                return question
            panel.known += 1
            self._follow(question, self.journal.get(key(question))["reply"], panel)
        return None

    def _cost(self, question: Question) -> Cost:
        return Cost(self._tokens(text_of(question)), question.asked["max_tokens"])

    async def _keep(self, question: Question, outcome: Reply | Failure, panel: Panel) -> None:
        """An outcome, into the journal before anything else is done with it."""
        entry = {"key": key(question), "ok": isinstance(outcome, Reply), "id": question.id, "sample": question.sample}
        values = vars(outcome).copy()
        if isinstance(outcome, Reply):
            values["logprobs"] = await self._keep_logprobs(entry["key"], outcome.logprobs)
            if not self.logprobs:
                del values["logprobs"]
            if outcome.raw == outcome.text:
                del values["raw"]
        await self.journal.add(entry | {"asked": question.asked, ("reply" if entry["ok"] else "error"): values})
        text = f"{values.get('think', '')}{values.get('text', '')}"
        reserved = self.out.pop(entry["key"])
        told = Cost(*tokens_of({"reply": values}))
        used = told if any(told) or not entry["ok"] else Cost(reserved.prompt, self._tokens(text))
        self.budget.settle(reserved, used)
        panel.count(failed=not entry["ok"])
        if entry["ok"]:
            self._follow(question, values, panel)

    async def _keep_logprobs(self, key: str, content: list[dict[str, Any]] | None) -> int:
        """Packed into a file of their own, before the journal's line; the number of positions kept."""
        if not (self.logprobs and content):
            return 0
        try:
            await asyncio.get_running_loop().run_in_executor(self.writing, self.logprobs.append, key, content)
        except ValueError as error:
            print(f"{self.logprobs.path}: answer {key}: {error}; its log-probabilities are not kept", file=sys.stderr)
            return 0
        return len(content)

    def _follow(self, question: Question, reply: dict[str, Any], panel: Panel) -> None:
        """The repair of a whole reply that can't be read; of a repair there is none."""
        if repair := self.asker.repair_of(question, reply):
            panel.raised += 1
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

    def read_journal(self) -> Figures:
        """What its lines add up to, all runs together."""
        figures = Figures()
        for entry in self.journal:
            figures.count(entry)
            if not entry["ok"]:
                self.failures[entry["key"]] = entry["error"]
        figures.failed.update(e["kind"] for key, e in self.failures.items() if key not in self.journal)
        return figures


def _leaves(group: BaseExceptionGroup) -> Iterator[UserError]:
    for one in group.exceptions:
        yield from _leaves(one) if isinstance(one, BaseExceptionGroup) else (one,)


def key(question: Question) -> str:
    return key_of(question.asked, question.id, question.sample)


def count_records(settings: Label) -> int:
    return sum(1 for _ in inputs(settings))


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
    figures, reasons = run.read_journal(), Counter[str]()
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
        summary = summarise(run, figures, count, reasons)
        files[2].write(to_json(summary, indent=1) + "\n")
    return summary


def _failed(place: str, record: Record, choice: Choice, outcomes: list[Outcome]) -> dict[str, Any]:
    replied = [one for one in outcomes if one.reply]
    row = {"place": place, "id": record.meta.get("id", record.id), "failed": choice.reason}
    row["what"] = choice.message or EXPLAINED.get(choice.reason, "")
    row["replies"] = [one.reply.get("raw", one.reply["text"]) for one in replied if one.reply]
    return row | {"journal": [one.key for one in replied] or None}


def summarise(run: Run, figures: Figures, count: int, reasons: Counter[str]) -> dict[str, Any]:
    """Records are labelled, failed for a reason, or left; the rest is of the journal, all runs together."""
    left = reasons.pop("not_asked", 0)
    return {
        "records": count,
        "labelled": count - left - sum(reasons.values()),
        "failed_records": dict(sorted(reasons.items())),
        "left": left,
        "answered": figures.answered,
        "failed": dict(sorted(figures.failed.items())),
        "prompt_tokens": figures.prompt_tokens,
        "completion_tokens": figures.completion_tokens,
        "thought_from": dict(sorted(figures.thought_from.items())),
        "teachers": dict(sorted(figures.teachers.items())),
        "usd": round(run.budget.usd(figures.prompt_tokens, figures.completion_tokens), 4),
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
    print(f"  answered {summary['answered']:>7,}  {tokens}" + (f", ${summary['usd']:,.2f}" * bool(summary["usd"])))
    print(f"  -> {settings.output}: labelled.jsonl, failed.jsonl, summary.json, journal.jsonl")
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
