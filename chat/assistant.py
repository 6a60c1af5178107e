"""A medical assistant with thinking, in ten scenarios, on a checkpoint of one's own or any OpenAI-compatible server.

    python -m chat.assistant -c saves/assistant                            # talk to it; /help lists the commands
    python -m chat.assistant -q "奶奶最近老是忘事，怎么办？" -s geriatric     # one question
    python -m chat.assistant -b data/samples/sample_questions.json         # many; the same command goes on

    with MedicalAssistant("saves/assistant") as assistant:
        reply = assistant.ask_question("孩子三岁，发热38.5℃一天，怎么护理？", scenario_type="pediatric")
        print(reply)                    # warnings and disclaimer included; reply.answer, reply.thought are the model's
        for piece in assistant.stream("要不要去医院？", "pediatric", history=[reply]):
            print(piece.text, end="")

A checkpoint is a folder: an adapter, a merged model or a base model. It is served by `llamafactory-cli api` on this
machine, by the template and quantisation of a serve.yaml, and stopped at the end.
"""

from __future__ import annotations

import argparse
import json
import locale
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Any

import httpx2
import openai
from openai import Omit
from tokenizers import Tokenizer

from chat import safety
from chat.ask import ask_missing, key_of
from chat.client import FINISHED, BadReply, Question, Secret, Settings, error_of, is_local, read_key, read_reply
from chat.journal import Journal
from chat.scenarios import DEFAULT, Scenario, Scenarios, find, read_scenarios
from chat.server import serve
from chat.stream import Piece, Splitter, whole
from chat.terminal import Chat, stamp, write_list
from preprocess import think
from preprocess.records import read_rows, text_field
from recipe import UserError, check_model, one_line_errors, read_yaml

SERVE, SCENARIOS = "recipes/assistant/serve.yaml", "recipes/assistant/scenarios.yaml"
MAX_TOKENS, CONTEXT = 512, 8192
AROUND = 16  # tokens of a template around a message, at most
ADVICE = {
    401: "set a valid key in {key}",
    403: "see what the key in {key} is allowed to do",
    404: "see that base_url is the address up to and with /v1, and that the server has the model",
}
REASONING = ("reasoning_content", "reasoning")


@dataclass(frozen=True)
class Answer:
    """What came of a question; as a string, all that a person should read, the warnings first and last.

    notice          what to do at once, where the question tells of an emergency, or that it can't be answered here;
                    before the answer
    notes           warnings and the disclaimer; after the answer
    finish_reason   stop; length: cut at max_tokens; unclosed: the thought never ended; interrupted: by the user;
                    broken: by the server, which `error` tells of in one line
    left_out        earlier turns that no longer fitted into the context
    """

    question: str
    scenario: str
    answer: str
    thought: str = ""
    finish_reason: str = "stop"
    notice: str = ""
    notes: tuple[str, ...] = ()
    error: str = ""
    left_out: int = 0

    def __str__(self) -> str:
        return "\n\n".join(filter(None, (self.notice, self.answer, *self.notes)))


def notice_of(question: str) -> str:
    """What to do at once, in the question's language, or why it can't be answered here; "" for most questions."""
    found = safety.emergency(question)
    return found.notice(safety.language(question)) if found else safety.out_of_scope(question)


def notes_of(question: str, answer: str, scenario: str) -> tuple[str, ...]:
    """What has to be said after an answer."""
    return tuple(safety.notes(question, answer, scenario)) if answer else ()


class _Api(openai.OpenAI):
    """The official client, sending the key and the question, and nothing about this machine."""

    @property
    def default_headers(self) -> dict[str, str | Omit]:
        return {"Accept": "application/json", "Content-Type": "application/json"}


class MedicalAssistant:
    """One model, to be asked many times, by several threads too. Close it, or use it as a context manager.

    checkpoint      a folder (adapter, merged or base model), the http address of a server up to and with /v1, or "":
                    the model that `serve` names
    serve           the serve.yaml that says how a folder is served: template, quantisation, an adapter's base
    model           a server's name for the model; else the only one that it has
    context         tokens of the longest prompt with its answer; less where the model takes less
    """

    def __init__(
        self,
        checkpoint: str = "",
        *,
        scenarios: str | Scenarios = SCENARIOS,
        serve: str = SERVE,
        model: str = "",
        api_key_env: str = "OPENAI_API_KEY",
        api_key_file: str = "",
        context: int = CONTEXT,
    ) -> None:
        self.scenarios = read_scenarios(scenarios) if isinstance(scenarios, str) else scenarios
        self.checkpoint, self.model, self.context = checkpoint, model, context
        self._serve, self._key_env, self._key_file = serve, api_key_env, api_key_file
        self._stack, self._api, self._loading = ExitStack(), None, Lock()
        self._thinks_first = False  # whether its prompt opens the thought: only the closing tag comes
        self._count: Tokenizer | None = None
        self._overrides: list[str] = []
        if not self.is_server:
            self._overrides, folder = _overrides(checkpoint, serve)
            self.model = f"{folder.name}-{_weights(folder)}"
            self._read_model(folder)

    def __enter__(self) -> MedicalAssistant:
        self.load_model()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_server(self) -> bool:
        return self.checkpoint.startswith(("http://", "https://"))

    def load_model(self) -> None:
        """Start the server of a folder, or ask a server for its models; whatever is asked first does it, too.

        Linux ends such a server with the thread that started it: load in the main thread what others will ask.
        Raises UserError where the model can't be loaded, the key is refused, or there are several models to choose.
        """
        with self._loading:
            if not self._api:
                self._load()

    def _load(self) -> None:
        notice_of("")  # its patterns are read before the first question waits for them
        if self.is_server:
            self._settings = Settings(
                base_url=self.checkpoint, model=self.model, api_key_env=self._key_env, api_key_file=self._key_file
            )
            self._key = read_key(self._settings)
        else:
            log = tempfile.NamedTemporaryFile(prefix="llamafactory-api-", suffix=".log", delete=False).name  # noqa: SIM115
            server = self._stack.enter_context(serve(self._serve, self._overrides, log, name=self.model))
            self._stack.callback(Path(log).unlink, missing_ok=True)
            # One at a time is all that LLaMA-Factory's own engine does; the second one waits at the door.
            self._settings = Settings(base_url=server.base_url, model=self.model, concurrency=2)
            self._key = Secret(server.api_key)
        url = self._settings.urls[0]
        timeout = openai.Timeout(600.0, connect=self._settings.connect_timeout)
        http = openai.DefaultHttpxClient(trust_env=not is_local(url), follow_redirects=False, timeout=timeout)
        self._api = self._stack.enter_context(_Api(base_url=url, api_key=self._key, timeout=timeout, http_client=http))
        if not self.model:
            try:
                self.model = self._only_model()
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Stop the server that was started; it may be loaded again."""
        self._api = None
        self._stack.close()

    # --- asking -------------------------------------------------------------------------------------------------------

    def ask_question(
        self,
        question: str,
        scenario_type: str | int = DEFAULT,
        max_tokens: int = MAX_TOKENS,
        history: Sequence[Answer] = (),
    ) -> Answer:
        """The whole answer. Raises UserError for an unknown scenario, and where the server has no answer."""
        scenario, notice = find(self.scenarios, scenario_type), notice_of(question)
        messages, left_out = self.messages(question, scenario, max_tokens, history)
        self.load_model()
        try:
            response = self._api.chat.completions.with_raw_response.create(
                model=self.model, messages=messages, max_tokens=max_tokens
            )
            reply = read_reply(response.headers.get("content-type", ""), response.content)
        except (openai.APIError, BadReply, httpx2.HTTPError, OSError) as error:
            raise UserError(self._said(error)) from None
        notes = notes_of(question, reply.text, scenario.id)
        said = (reply.text, reply.think, reply.finish_reason)
        return Answer(question, scenario.id, *said, notice=notice, notes=notes, left_out=left_out)

    def stream(
        self,
        question: str,
        scenario_type: str | int = DEFAULT,
        max_tokens: int = MAX_TOKENS,
        history: Sequence[Answer] = (),
    ) -> Stream:
        """The same piece by piece; nothing is asked before the first one is taken."""
        return Stream(self, question, find(self.scenarios, scenario_type), max_tokens, history)

    def ask_batch(self, questions: Sequence[dict[str, Any]], journal: str | Path) -> list[Answer]:
        """An answer to each of {question, scenario?, max_tokens?}, in their order, several at a time.

        What `journal` holds is not asked again: the same call goes on after whatever ended the last one. One without an
        answer has `finish_reason` failed and an `error`. Raises UserError for a question that is none, and where no
        question can be answered. Not from a running event loop (a notebook's): that has ask_question.
        """
        asked, requests, repeated = [], [], Counter()
        if self.is_server and not self.model:
            self.load_model()
        for number, row in enumerate(questions, 1):
            place = f"question {number}"
            text, (scenario, max_tokens) = text_field(row, "question", place), _checked(row, self.scenarios, place)
            try:
                messages, _ = self.messages(text, scenario, max_tokens)
            except UserError as error:
                raise UserError(f"{place}: {error}") from None
            asked.append((text, scenario))
            body = {"model": self.model, "messages": messages, "max_tokens": max_tokens}
            sample = repeated[key := json.dumps(body)]
            repeated[key] += 1
            requests.append(Question(scenario.id, sample, body))
        with Journal(journal) as kept:
            if any(key_of(request) not in kept for request in requests):
                self.load_model()
                ask_missing(self._settings, self._key, kept, requests, "questions")
            failed = {entry["key"]: entry["error"]["message"] for entry in kept if not entry["ok"]}
            return [
                _answer(text, scenario.id, kept, key_of(request), failed)
                for (text, scenario), request in zip(asked, requests, strict=True)
            ]

    def messages(
        self, question: str, scenario: Scenario, max_tokens: int, history: Sequence[Answer] = ()
    ) -> tuple[list[dict[str, str]], int]:
        """What is sent: the scenario's prompt, as many earlier turns as fit, without their thoughts, and the question;
        and how many turns were left out. UserError for a question that is empty or does not fit."""
        if not question.strip():
            raise UserError("the question is empty")
        ends = [{"role": "system", "content": scenario.prompt}, {"role": "user", "content": question}]
        room = self.context - max_tokens - sum(self.tokens(message["content"]) + AROUND for message in ends)
        if room < 0:
            fits = f"with max_tokens={max_tokens} the context of {self.context:,} tokens has no room for it"
            raise UserError(f"the question is about {self.tokens(question):,} tokens long: {fits}; shorten it")
        turns, left_out = [turn for turn in history if turn.answer], 0
        middle: list[dict[str, str]] = []
        for number, turn in enumerate(reversed(turns)):
            room -= self.tokens(turn.question) + self.tokens(turn.answer) + 2 * AROUND
            if room < 0:
                left_out = len(turns) - number
                break
            pair = ({"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.answer})
            middle[:0] = pair
        return [ends[0], *middle, ends[1]], left_out

    def tokens(self, text: str) -> int:
        """How many tokens a text has, by the model's own tokenizer; of a server's model a guess on the safe side."""
        return len(self._count.encode(text).ids) if self._count else len(text.encode(errors="replace")) // 3 + 1

    # --- the model ----------------------------------------------------------------------------------------------------

    def _read_model(self, folder: Path) -> None:
        """Its tokenizer and its longest context, where the folder says them."""
        with suppress(Exception):  # the tokenizer's errors are of no other class; its guess will do
            base = folder
            if not (folder / "config.json").is_file():
                base = Path(dict(item.split("=", 1) for item in self._overrides)["model_name_or_path"])
            config = json.loads((base / "config.json").read_text(encoding="utf-8"))
            self.context = min(self.context, int(config["max_position_embeddings"]))
            self._count = Tokenizer.from_file(str(base / "tokenizer.json"))

    def _only_model(self) -> str:
        try:
            models = [model.id for model in self._api.models.list()]
        except (openai.APIError, httpx2.HTTPError, OSError, ValueError, TypeError, AttributeError) as error:
            raise UserError(self._said(error)) from None
        if len(models) == 1:
            return models[0]
        listed = f"it has {', '.join(models[:8])}{', …' * (len(models) > 8)}" if models else "it names none"
        raise UserError(f"{self.checkpoint}: which model? {listed}; name one by --model")

    def _said(self, error: Exception) -> str:
        """An error in one line, in the server's own words and without the key, and what to do."""
        url, advice = self._settings.urls[0], ""
        if isinstance(error, openai.APIStatusError):
            said = f"HTTP {error.status_code}, {error_of(error.response.content)[0]}"
            advice = ADVICE.get(error.status_code, "").format(key=self._settings.key_place)
        elif isinstance(error, openai.APITimeoutError):
            said = "no byte for too long"
        else:
            said = str(error.__cause__ or error) or type(error).__name__
        if isinstance(error, openai.APIConnectionError) and not isinstance(error, openai.APITimeoutError):
            advice = "see that the server runs, and that this is its address"
        said = said.replace(self._key, "***") if len(self._key) > 7 else said
        return " ".join(f"{url}: {said[:500]}{'; ' * bool(advice)}{advice}".split())


class Stream:
    """An answer on its way: the pieces by iterating, once; what there is of it at any time by `answer`.

    A UserError while iterating means that nothing came of the question. A server that goes away in the middle ends the
    pieces, and `answer` has what came, with `finish_reason` broken.
    """

    def __init__(
        self,
        assistant: MedicalAssistant,
        question: str,
        scenario: Scenario,
        max_tokens: int,
        history: Sequence[Answer],
    ) -> None:
        self._assistant, self._question, self._scenario, self._max_tokens = assistant, question, scenario, max_tokens
        self._history, self._left_out = history, 0
        self._notice = notice_of(question)
        self._splitter = Splitter(inside=assistant._thinks_first)
        self._reasoning, self._finish, self._error = "", "", ""

    def __iter__(self) -> Iterator[Piece]:
        if self._notice:
            yield Piece("notice", self._notice)
        yield from self._pieces()
        self._assistant._thinks_first |= self._splitter.unopened
        for note in self.answer.notes:
            yield Piece("note", note)

    def _pieces(self) -> Iterator[Piece]:
        assistant, most = self._assistant, self._max_tokens
        messages, self._left_out = assistant.messages(self._question, self._scenario, most, self._history)
        assistant.load_model()
        try:
            with assistant._api.chat.completions.create(
                model=assistant.model, messages=messages, max_tokens=most, stream=True
            ) as chunks:
                for chunk in chunks:
                    yield from self._read(chunk)
            if not self._finish:
                raise EOFError("the stream ended before the answer did")
        except (openai.APIError, httpx2.HTTPError, OSError, ValueError, EOFError) as error:
            self._finish, self._error = "broken", assistant._said(error)
        yield from self._splitter.end()
        if self._error and not (self._reasoning or self._splitter.raw):
            raise UserError(self._error)

    def _read(self, chunk: Any) -> Iterator[Piece]:
        for choice in chunk.choices or ():
            delta = choice.delta
            reasoning = next((text for name in REASONING if (text := getattr(delta, name, None))), "")
            if isinstance(reasoning, str) and not self._splitter.raw.strip():
                shown = whole(reasoning if self._reasoning else reasoning.lstrip())
                self._reasoning += shown
                if shown:
                    yield Piece("thought", shown)
            if isinstance(delta.content, str) and delta.content:
                yield from self._splitter.feed(delta.content)
            self._finish = choice.finish_reason or self._finish

    def interrupt(self) -> None:
        """Say that the user wants no more of it."""
        self._finish = "interrupted"

    @property
    def answer(self) -> Answer:
        """What has come so far."""
        raw, finish = self._splitter.raw, FINISHED.get(self._finish.lower(), self._finish)
        parts = think.split(raw)
        text, thought = parts.answer, self._reasoning.strip() or parts.think
        if finish == "stop" and parts.fault == "unclosed":
            finish = "unclosed"
        if finish != "stop" and self._assistant._thinks_first and not think.has_tag(raw):  # cut before its closing tag
            text, thought = "", raw.strip()
        # LLaMA-Factory's server says `stop` of a streamed answer whatever ended it.
        if finish in ("stop", "unclosed") and not self._assistant.is_server:
            finish = "length" if self._assistant.tokens(raw) >= self._max_tokens - 2 else finish
        said = (self._question, self._scenario.id, text, thought, finish)
        notes = notes_of(self._question, text, self._scenario.id)
        return Answer(*said, notice=self._notice, notes=notes, error=self._error, left_out=self._left_out)


# --- checkpoints ------------------------------------------------------------------------------------------------------


def _overrides(checkpoint: str, serve: str) -> tuple[list[str], Path]:
    """What a serve.yaml needs to serve a checkpoint, and the folder of its weights; UserError where that is none."""
    values, _ = read_yaml(serve)
    base, adapter = str(values.get("model_name_or_path") or ""), str(values.get("adapter_name_or_path") or "")
    place, checkpoint = ("checkpoint", checkpoint) if checkpoint else (serve, adapter or base)
    folder = Path(checkpoint).expanduser()
    if (folder / "adapter_config.json").is_file():
        with suppress(OSError, ValueError, AttributeError):
            config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
            named = config.get("base_model_name_or_path")
            base = named if named and (Path(named) / "config.json").is_file() else base
        check_model(serve, base)
        return [f"model_name_or_path={base}", f"adapter_name_or_path={folder}"], folder
    if (folder / "config.json").is_file():
        return [f"model_name_or_path={folder}", "adapter_name_or_path=null"], folder
    if not folder.is_dir():
        raise UserError(f"{place}: no folder {checkpoint}; train it first (`make train`), or name another one by -c")
    raise UserError(f"{place}: {checkpoint} has no adapter_config.json and no config.json; name a model or an adapter")


def _weights(folder: Path) -> str:
    """What tells a folder's weights from those that were there before: of the files' sizes and times."""
    files = sorted(path for path in folder.glob("*") if path.suffix in (".safetensors", ".bin"))
    if not files:
        raise UserError(f"{folder}: no weights in it; expected a model or a trained LoRA adapter (`make train`)")
    told = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return sha256(json.dumps(told).encode()).hexdigest()[:12]


# --- batches ----------------------------------------------------------------------------------------------------------


def _checked(row: dict[str, Any], scenarios: Scenarios, place: str) -> tuple[Scenario, int]:
    """The scenario and max_tokens of a question; UserError with its place."""
    name = row.get("scenario")
    try:
        scenario = find(scenarios, DEFAULT if name is None else name)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
    max_tokens = row.get("max_tokens", MAX_TOKENS)
    if type(max_tokens) is not int or max_tokens < 1:
        raise UserError(f"{place}: max_tokens: expected a whole number of 1 or more, got {max_tokens!r}")
    return scenario, max_tokens


def _answer(question: str, scenario: str, journal: Journal, key: str, failed: dict[str, str]) -> Answer:
    notice = notice_of(question)
    if key not in journal:
        return Answer(question, scenario, "", "", "failed", notice, error=failed.get(key, "its turn did not come"))
    reply = journal.get(key)["reply"]
    said = (reply["text"], reply["think"], reply["finish_reason"])
    return Answer(question, scenario, *said, notice=notice, notes=notes_of(question, reply["text"], scenario))


def row_of(answer: Answer) -> dict[str, Any]:
    """A line of results: `response` is all that a person should read, the rest tells it apart."""
    row = {"question": answer.question, "scenario": answer.scenario, "response": str(answer)}
    row |= {"answer": answer.answer, "thought": answer.thought, "finish_reason": answer.finish_reason}
    return row | ({"error": answer.error} if answer.error else {})


def run_batch(assistant: MedicalAssistant, path: str, max_tokens: int) -> None:
    """Answer a file of questions into batch_results_<time>.json; UserError where some have no answer."""
    rows = []
    for place, row in read_rows(path):
        text_field(row, "question", place)
        _checked(row, assistant.scenarios, place)
        rows.append({"max_tokens": max_tokens} | row)
    if not rows:
        raise UserError(f'{path}: no questions in it; expected a list of {{"question": …, "scenario": …}}')
    answers = assistant.ask_batch(rows, Path(path).with_suffix(".journal.jsonl"))
    out = f"batch_results_{stamp()}.json"
    write_list(out, [row_of(answer) for answer in answers])
    failed = sum(answer.finish_reason == "failed" for answer in answers)
    cut = sum(answer.finish_reason in ("length", "unclosed") for answer in answers)
    print(f"{out}: {len(answers) - failed} answers, {cut} cut at max_tokens, {failed} failed")
    if failed:
        raise UserError(f"{failed} of {len(answers)} questions have no answer; the same command asks them again")


# --- the command line -------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m chat.assistant", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("-c", "--checkpoint", default="", help="a folder: adapter, merged or base model; else what --serve names")
    add("--base-url", default="", help="a server instead, the address up to and with /v1")
    add("--model", default="", help="its name for the model; else the only one that it has")
    add("--serve", default=SERVE, help=f"how a folder is served (default {SERVE})")
    add("-s", "--scenario", default=DEFAULT, help="id, number or alias (default diagnosis)")
    add("-q", "--question", help="one question, then end")
    add("-b", "--batch", metavar="FILE.json", help="a list of {question, scenario?, max_tokens?}")
    add(
        "-m", "--max-tokens", type=int, default=MAX_TOKENS, help=f"of an answer with its thought (default {MAX_TOKENS})"
    )
    add(
        "--context", type=int, default=CONTEXT, help=f"tokens of the longest prompt with its answer (default {CONTEXT})"
    )
    add("--save-history", action="store_true", help="the conversation into medical_conversation_<time>.json at the end")
    add("--scenarios", default=SCENARIOS, help=f"the scenarios (default {SCENARIOS})")
    add("--thought", choices=("show", "hide"), help="default: show in a terminal, hide where the output is piped")
    add("--language", choices=("zh", "en"), help="of menus and messages (default: by LANG)")
    add("--api-key-env", default="OPENAI_API_KEY", help="the variable that holds the server's key")
    add("--api-key-file", default="", help="a file outside this folder that holds it")
    given = parser.parse_args()
    if given.checkpoint and given.base_url:
        parser.error("name -c or --base-url, not both")
    if given.batch and given.question is not None:
        parser.error("name -q or -b, not both")
    if given.max_tokens < 1 or given.context < 1:
        parser.error("-m and --context: expected 1 or more")
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")
    with one_line_errors():
        if given.base_url:
            Settings(base_url=given.base_url, model=given.model)  # an address without http:// is no folder either
        assistant = MedicalAssistant(
            given.base_url or given.checkpoint,
            scenarios=given.scenarios,
            serve=given.serve,
            model=given.model,
            api_key_env=given.api_key_env,
            api_key_file=given.api_key_file,
            context=given.context,
        )
        scenario = find(assistant.scenarios, given.scenario)
        try:
            if given.batch:
                run_batch(assistant, given.batch, given.max_tokens)
            else:
                chat = Chat(assistant, scenario, given.max_tokens, given.language or _language(), given.thought)
                sys.exit(chat.run(given.question, given.save_history))
        finally:
            assistant.close()


def _language() -> str:
    told = next((os.environ[name] for name in ("LC_ALL", "LC_MESSAGES", "LANG") if os.environ.get(name)), "")
    return "zh" if told.startswith("zh") or (locale.getlocale()[0] or "").startswith("zh") else "en"


if __name__ == "__main__":
    main()
