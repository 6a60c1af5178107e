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
import json
import os
import re
import sys
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from chat.ask import STOPPING, entry_of, key_of, leaves
from chat.budget import Budget, Cost, estimate
from chat.client import Client, Failure, Question, Reply, Settings, Stopped, read_key
from chat.journal import Figures, Journal, tokens_of
from chat.logprobs import Writer
from chat.panel import Panel
from chat.server import serve
from preprocess.ask import Asker, Label, check, text_of
from preprocess.choose import Choice, Outcome, choose
from preprocess.gates import EXPLAINED
from preprocess.given import Given, given, inputs, is_local, shown, survey
from preprocess.lengths import Lengths
from preprocess.records import Record, read_rows, sha256_file, to_json
from preprocess.sources import read_records
from recipe import UserError, atomic, main, read_text, staged

SHOWN = 3  # prompts of a dry run
BREATH = 32  # known answers that are looked at before others go on
MOST_RAW = 20_000  # characters of a reply in failed.jsonl; the journal has all of it
FINAL = ("refused_request", "fatal")  # failures that asking again won't mend
VERDICT = re.compile(r"supported\W{1,8}(是|否|yes|no|true|false)", re.IGNORECASE)
SUPPORTED = ("是", "yes", "true")
NOT_ASKED = "its turn did not come; the same command goes on"
PLACES = ("input", "output", "base_url", "serve", "api_key_env", "api_key_file", "tokenizer", "prompt", "examples")


def label(settings: Label) -> None:
    """Run label.yaml: ask what the journal does not hold yet, then write what it holds."""
    check(settings)
    if settings.dry_run:
        dry_run(settings)
        return
    urls, model, out = settings.urls, settings.model, Path(settings.output)
    key = "" if settings.serve else read_key(settings.client(urls, model))
    try_out(settings)
    total, repeated = survey(settings)
    with Journal(out / "journal.jsonl", secrets=[key]) as journal, ExitStack() as stack:
        check_labelled(out / "labelled.jsonl", journal)
        if settings.serve:
            server = stack.enter_context(serve(settings.serve, log=str(out / "server.log")))
            urls, key, model = [server.base_url], server.api_key, model or server.model
        run = Run(settings, journal, model, total, repeated)
        if settings.top_logprobs:
            where = (out / "answers.logprobs", settings.tokenizer, model, settings.top_logprobs)
            run.logprobs = stack.enter_context(Writer(*where))
        answered = len(journal)
        error = asyncio.run(run.ask(settings.client(urls, model), key))
        if error and len(journal) == answered:
            raise error  # nothing is new: what was written before stays
        try:
            summary = write(run, out)
        except UserError as other:
            raise error or other from None
    if run.without_logprobs:
        print(
            f"{run.without_logprobs} answers came without log-probabilities; can the server give them?", file=sys.stderr
        )
    report(settings, summary)
    conclude(run, summary, error)


def try_out(settings: Label) -> None:
    """UserError for a prompt or an example that can't be used, or a wandb without a key, before anything is begun."""
    asker = _asker(settings, settings.model, "none")
    for _, record in islice(inputs(settings), 1):
        asker.try_out(shown(record, is_local(settings))[1])
    if settings.report_to == "wandb":
        check_wandb()


def check_wandb() -> None:
    import wandb

    if os.environ.get("WANDB_MODE") not in ("offline", "disabled", "dryrun") and not wandb.api.api_key:
        raise UserError("report_to: wandb has no key here; run `wandb login`, or set WANDB_MODE=offline")


def _asker(settings: Label, model: str, response_format: str) -> Asker:
    read = read_records(settings.examples) if settings.examples else ()
    examples = [shown(record, is_local(settings))[1] for _, record in read]
    asker = Asker(settings, model, response_format, examples)
    if settings.examples:
        asker.prompts[settings.examples] = sha256_file(settings.examples)
    return asker


def conclude(run: Run, summary: dict[str, Any], error: UserError | None) -> None:
    """UserError where there is something left to do, with what to do."""
    if error:
        raise error
    if summary["left"]:
        how = "raise it to go on" if run.stopped.startswith("max_") else "run it again to go on"
        raise UserError(f"{summary['left']} of {summary['records']} records are left ({run.stopped}); {how}")
    if again := {kind: number for kind, number in summary["failed"].items() if kind not in FINAL}:
        raise UserError(f"{sum(again.values())} questions have no answer ({_listed(again)}); run it again to ask them")


def check_labelled(path: Path, journal: Journal) -> None:
    """UserError for rows that this journal did not bring: they would be overwritten."""
    if path.exists() and path.stat().st_size:
        place, row = next(read_rows(str(path)))
        if str(row.get("journal")) not in journal:
            raise UserError(f"{place}: was not written from {journal.path}; move it away, or name another output")


class Run:
    """One run over the records: what is asked, what it costs, and why it stopped before its end, if it did."""

    def __init__(self, settings: Label, journal: Journal, model: str, total: int, repeated: frozenset[int]) -> None:
        self.settings, self.journal, self.model = settings, journal, model
        self.total, self.repeated = total, repeated
        caps = (settings.max_total_tokens, settings.max_usd, settings.max_hours)
        self.budget = Budget(*caps, settings.usd_in, settings.usd_out)
        self.lengths = Lengths(settings.tokenizer, 0)
        self.response_format = settings.response_format
        self.chosen = Path(settings.output) / "response_format.json"  # what `auto` stands for, of which model
        if settings.response_format == "auto" and self.chosen.exists():
            self.response_format = read_choice(self.chosen, model)
        self.asker = _asker(settings, model, self.response_format)
        self.failures: dict[str, dict[str, Any]] = {}  # by key, the last one; read when nothing is asked any more
        self.logprobs: Writer | None = None
        self.without_logprobs = 0
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
                for number in STOPPING:
                    loop.add_signal_handler(number, self._interrupt, client)
                if self.settings.max_hours:
                    loop.call_later(3600 * self.settings.max_hours, self._stop, client, "max_hours")
                await self._choose_format(client)
                with Panel("label", self.budget, self.total * self.settings.n) as panel:
                    await self._ask_all(client, panel, self.questions())
                if self.settings.verifier and not self.stopped:
                    with Panel("verify", self.budget) as panel:
                        await self._ask_all(client, panel, self.verifications())
                for url, said in client.refusing.items():
                    print(f"{url} was left out: {said}", file=sys.stderr)
        except* UserError as group:
            self.stopped = self.stopped or "an error"
            error = next(leaves(group))
        except* Stopped:
            pass
        finally:
            for number in STOPPING:
                loop.remove_signal_handler(number)
        return error

    def _interrupt(self, client: Client) -> None:
        """The first time what is in flight may be answered; the second time it is dropped."""
        if not self.stopped:
            print("stopping; what is in flight has 4 seconds", file=sys.stderr)
        self._stop(client, "interrupted", 0.0 if self.stopped else 4.0)

    def _stop(self, client: Client, why: str, grace: float = 4.0) -> None:
        self.stopped = self.stopped or why
        client.stop(grace)

    def _count_spent(self) -> None:
        """What earlier runs have used counts against the caps."""
        if self.budget.max_tokens or self.budget.max_usd:
            for entry in self.journal:
                self.budget.settle(Cost(0, 0), Cost(*tokens_of(entry)))

    async def _choose_format(self, client: Client) -> None:
        """What `auto` stands for: asked of the server once, and kept, so that the questions stay the same."""
        if self.response_format == "auto":
            self.response_format = "json_schema" if await client.supports_schema(self.model) else "none"
            with atomic(self.chosen) as file:
                file.write(to_json({"model": self.model, "response_format": self.response_format}) + "\n")
            self.asker = _asker(self.settings, self.model, self.response_format)

    def records(self) -> Iterator[Given]:
        return given(self.settings, self.repeated)

    def questions(self) -> Iterator[Question]:
        """Every question of every record, in order."""
        for one in self.records():
            if not one.skip:
                yield from self.asker.questions(one.shown)

    def verifications(self) -> Iterator[Question]:
        """The verifier's question about every answer that has been chosen."""
        for one in self.records():
            choice = (
                choose(one.record, one.shown.question, self.outcomes(one.shown), self.settings)
                if not one.skip
                else None
            )
            if choice and choice.row:
                yield self.asker.verify(one.shown, choice.answer)

    async def _ask_all(self, client: Client, panel: Panel, rest: Iterator[Question]) -> None:
        """In rounds: one ends when a cap would be passed, and what its replies did not use is for the next."""
        asked, panel.errors = -1, client.errors
        room = asyncio.Semaphore(self.settings.concurrency)  # answers that wait for a disk that is slow
        while not self.stopped and asked != panel.asked:
            asked = panel.asked
            async with asyncio.TaskGroup() as keeping:  # what comes while the disk is busy is written together
                async for question, outcome in client.ask_all(self._affordable(rest, panel)):
                    await room.acquire()
                    keeping.create_task(self._keep(question, outcome, panel)).add_done_callback(
                        lambda _: room.release()
                    )
                    panel.flying = client.in_flight
        if self.held and not self.stopped:
            self.stopped = self.budget.exceeded_by(self._cost(self.held))

    def _affordable(self, rest: Iterator[Question], panel: Panel) -> Iterator[Question | None]:
        """What is not answered yet and what the replies raise, up to the first question that could pass a cap; a None
        now and then, so that others go on meanwhile."""
        while question := self.held or (self.again.popleft() if self.again else next(rest, None)):
            self.held, name = None, key_of(question)
            if name in self.journal:
                panel.known += 1
                self._follow(question, self.journal.get(name)["reply"], panel)
                if panel.known % BREATH == 0:
                    yield None
                continue
            cost = self._cost(question)
            if self.budget.exceeded_by(cost):
                self.held = question
                return
            self.budget.reserve(cost)
            self.out[name] = cost
            panel.asked += 1
            yield question

    def _cost(self, question: Question) -> Cost:
        return Cost(self._tokens(text_of(question)), question.asked["max_tokens"])

    async def _keep(self, question: Question, outcome: Reply | Failure, panel: Panel) -> None:
        """An outcome, into the journal before anything else is done with it."""
        entry = entry_of(question, outcome)
        if isinstance(outcome, Reply) and self.logprobs:
            entry["reply"]["logprobs"] = await self._keep_logprobs(entry["key"], outcome.logprobs)
        reserved = self.out.pop(entry["key"])
        spent = self._spent(outcome, reserved)
        self.budget.settle(reserved, spent)
        await self.journal.add(entry | {"spent": list(spent)})
        panel.count(failed=not entry["ok"])
        if entry["ok"]:
            self._follow(question, entry["reply"], panel)

    def _spent(self, outcome: Reply | Failure, reserved: Cost) -> Cost:
        """What a question has cost, by the server's count or else the estimate, tries without an answer included."""
        used = Cost(0, 0)
        if isinstance(outcome, Reply):
            used = Cost(*tokens_of({"reply": {"usage": outcome.usage}}))
            used = used if any(used) else Cost(reserved.prompt, self._tokens(outcome.think + outcome.text))
        return Cost(*map(sum, zip(used, outcome.lost_tokens, strict=True)))

    async def _keep_logprobs(self, key: str, content: list[dict[str, Any]] | None) -> int:
        """Packed into a file of their own, before the journal's line; the number of positions kept."""
        if not (self.logprobs and content):
            self.without_logprobs += bool(self.logprobs)
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
        if key_of(question) not in self.journal:
            error = self.failures.get(key_of(question), {"kind": "not_asked", "message": NOT_ASKED})
            return Outcome(key_of(question), None, error["kind"], error["message"])
        reply = self.journal.get(key_of(question))["reply"]
        repair = self.asker.repair_of(question, reply)
        if repair and key_of(repair) in self.journal:
            return Outcome(key_of(repair), self.journal.get(key_of(repair))["reply"])
        return Outcome(key_of(question), reply)

    def read_journal(self) -> Figures:
        """What its lines add up to, all runs together."""
        figures = Figures()
        for entry in self.journal:
            figures.count(entry)
            if not entry["ok"]:
                self.failures[entry["key"]] = entry["error"]
        figures.failed.update(e["kind"] for key, e in self.failures.items() if key not in self.journal)
        return figures


def read_choice(path: Path, model: str) -> str:
    """What `auto` was found to stand for; `auto` again where that was another model's."""
    try:
        kept = json.loads(read_text(path))
        known = kept["model"] == model and kept["response_format"] in ("json_schema", "none")
    except (ValueError, LookupError, TypeError):
        known = False
    return kept["response_format"] if known else "auto"


def verified(run: Run, given: Given, choice: Choice) -> Choice:
    """The choice, if the verifier supports it or none was named; else the reason."""
    if not choice.row or not run.settings.verifier:
        return choice
    outcome = run.outcome(run.asker.verify(given.shown, choice.answer))
    if not outcome.reply:
        return Choice(None, outcome.failure, f"verifier: {outcome.message}")
    said = {word.casefold() in SUPPORTED for word in VERDICT.findall(outcome.reply["text"])}
    if len(said) != 1:
        return Choice(None, "verifier_unreadable", outcome.reply["text"][:200])
    return choice if said == {True} else Choice(None, "verifier", outcome.reply["text"][:200])


def write(run: Run, out: Path) -> dict[str, Any]:
    """labelled.jsonl, failed.jsonl and summary.json, all or none, from the journal alone."""
    figures, reasons, before = run.read_journal(), Counter[str](), _lines(out / "labelled.jsonl")
    with staged([out / name for name in ("labelled.jsonl", "failed.jsonl", "summary.json")]) as files:
        for one in tqdm(run.records(), desc="writing", total=run.total, unit=" records", disable=None):
            outcomes = [] if one.skip else run.outcomes(one.shown)
            choice = Choice(None, one.skip)
            if not one.skip:
                choice = verified(run, one, choose(one.record, one.shown.question, outcomes, run.settings))
            if choice.row:
                files[0].write(to_json(choice.row) + "\n")
            else:
                reasons[choice.reason] += 1
                files[1].write(to_json(_failed(run, one, choice, outcomes)) + "\n")
        summary = summarise(run, figures, reasons)
        files[2].write(to_json(summary, indent=1) + "\n")
    if summary["labelled"] < before:
        print(f"labelled.jsonl had {before:,} rows before; the journal still holds all answers", file=sys.stderr)
    return summary


def _lines(path: Path) -> int:
    with open(path, "rb") if path.exists() else open(os.devnull, "rb") as file:
        return sum(1 for _ in file)


def _failed(run: Run, given: Given, choice: Choice, outcomes: list[Outcome]) -> dict[str, Any]:
    row = {"place": given.place, "id": given.record.meta.get("id", given.record.id), "failed": choice.reason}
    row["what"] = choice.message or EXPLAINED.get(choice.reason, "")
    replies = [one.reply.get("raw", one.reply["text"]) for one in outcomes if one.reply]
    replies += [run.failures[one.key]["raw"] for one in outcomes if not one.reply and one.key in run.failures]
    row["replies"] = [reply[:MOST_RAW] for reply in replies if reply]
    return row | {"journal": [one.key for one in outcomes if one.reply] or None}


def summarise(run: Run, figures: Figures, reasons: Counter[str]) -> dict[str, Any]:
    """Records are labelled, failed for a reason, or left; the rest is of the journal, all runs together."""
    left = reasons.pop("not_asked", 0)
    return {
        "records": run.total,
        "labelled": run.total - left - sum(reasons.values()),
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
    if summary["left"]:
        print(f"  left     {summary['left']:>7,}")
    print(f"  answered {summary['answered']:>7,}  {tokens}" + (f", ${summary['usd']:,.2f}" * bool(summary["usd"])))
    print(f"  -> {settings.output}: labelled.jsonl, failed.jsonl, summary.json, journal.jsonl")
    if settings.report_to == "wandb":
        import wandb

        figures = {name: value for name, value in summary.items() if isinstance(value, int | float)}
        figures |= {f"failed/{name}": number for name, number in summary["failed_records"].items()}
        named = {"project": "medcot", "job_type": "label", "name": Path(settings.output).name}
        with wandb.init(**named, config=summary["settings"]) as run:
            run.summary.update(figures)


def _listed(numbers: dict[str, int]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in numbers.items()) or "none"


def dry_run(settings: Label) -> None:
    """Show the first filled prompts, and what the whole run would take; nothing is sent, nothing is written."""
    asker, lengths = (
        _asker(settings, settings.model or "model", settings.response_format),
        Lengths(settings.tokenizer, 0),
    )
    total, repeated = survey(settings)
    asked = tokens = 0
    for one in given(settings, repeated):
        for question in [] if one.skip else asker.questions(one.shown):
            text, asked = text_of(question), asked + 1
            tokens += lengths.count([text])[0] or estimate(text)
            if asked <= SHOWN:
                print(f"--- {one.place}\n{text}\n")
    most, budget = asked * settings.max_tokens, Budget(usd_in=settings.usd_in, usd_out=settings.usd_out)
    how = "by the tokenizer" if lengths.tokenizer else "estimated by characters"
    print(f"{total:,} records, {asked:,} questions, {tokens:,} tokens in ({how}), at most {most:,} out")
    if settings.usd_in or settings.usd_out:
        print(f"${budget.usd(tokens, 0):,.2f} for the questions, at most ${budget.usd(tokens, most):,.2f} in all")
    if settings.verifier or settings.repair:
        print("not priced: repairs and the verifier's questions, which depend on the answers")
    print(f"masked: {'no, the server is local' if is_local(settings) else 'yes'}; nothing was sent")


if __name__ == "__main__":
    main(Label, label, __doc__)
