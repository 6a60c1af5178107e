"""What a teacher is asked about a record: the keys of label.yaml, the prompt files, the request's body."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from chat.client import Question, Settings
from chat.reading import Reading, read_object
from preprocess.data import files_of
from preprocess.gates import GATES, Gates
from preprocess.records import Record
from preprocess.sources import READERS
from recipe import UserError, read_text

KINDS = ("diagnosis", "cot")
KEYS = ("reason", "diseases")
# What a model can mend when it is told; a reply that was cut or never came is asked for anew, or not at all.
FAULTS = {
    "no_object": "里面没有 JSON 对象",
    "not_json": "里面的 JSON 不完整或格式有误",
    "truncated": "里面的 JSON 没有写完",
    "missing_key": "缺少要求的键",
    "ambiguous": "里面有几个不同的 JSON 对象，或者后来又更正了",
    "wrong_type": "键的值不是文本",
}
FORMATS = ("none", "json_object", "json_schema", "auto")
VERIFIED = -1  # instead of a sample's number, in the verifier's questions
LOCAL = ("127.0.0.1", "localhost", "::1")
SCHEMA: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {
        "name": "diagnosis",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"reason": {"type": "string"}, "diseases": {"type": "string"}},
            "required": ["reason", "diseases"],
            "additionalProperties": False,
        },
    },
}


@dataclass(frozen=True)
class Label:
    """What `python -m preprocess.label` is asked for.

    `prompt` is a Jinja2 file that gets `question` and a patient record's `fields`; `examples` a file of answered
    records, shown before it. `n` answers a record, of which the majority must agree (`min_agreement`). `serve` names a
    serve.yaml, whose model then answers on this machine. Identifiers are masked unless the server is `local`.
    Money is counted at `usd_in` and `usd_out` a million tokens; a run stops before it passes `max_usd`,
    `max_total_tokens`, and at `max_hours` of its own, 0 being no cap, and says what is left. `api_key_env` names the
    variable that holds the key, `api_key_file` a file outside the repository. `dry_run` shows three filled prompts and
    the price.
    `top_logprobs` of each token are kept in answers.logprobs, by the ids that the server tells (`token_ids`: vLLM does)
    or that `tokenizer`, the teacher's folder, has for them. `gates` are those of `preprocess.gates`, with their bounds.
    """

    input: str | list[str]
    output: str
    prompt: str
    model: str = ""
    base_url: str | list[str] = ""
    serve: str = ""
    local: bool = False
    kind: str = "diagnosis"
    source: str = "auto"
    system: str = ""
    examples: str = ""
    n: int = 1
    temperature: float = 0.6
    top_p: float = 0.95
    max_tokens: int = 4096
    seed: int = -1
    top_logprobs: int = 0
    token_ids: bool = False
    response_format: str = "none"
    repair: bool = True
    gates: list[str] = field(default_factory=lambda: [*GATES, "agreement"])
    language: str = "zh"
    thought: str = "optional"
    min_characters: int = 2
    max_characters: int = 4000
    min_evidence: float = 0.2
    min_agreement: float = 0.5
    verifier: str = ""
    verifier_prompt: str = "preprocess/prompts/verify.j2"
    max_usd: float = 0.0
    max_total_tokens: int = 0
    max_hours: float = 0.0
    usd_in: float = 0.0
    usd_out: float = 0.0
    concurrency: int = 16
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    stream: bool = False
    max_tries: int = 10
    retry_seconds: float = 7200.0
    outage_seconds: float = 600.0
    connect_timeout: float = 4.0
    first_token_timeout: float = 1800.0
    timeout: float = 3600.0
    api_key_env: str = "OPENAI_API_KEY"
    api_key_file: str = ""
    tokenizer: str = ""
    limit: int = 0
    dry_run: bool = False
    report_to: str = "none"

    @property
    def inputs(self) -> list[str]:
        """The files to read (`preprocess.data.files_of`)."""
        return files_of([self.input] if isinstance(self.input, str) else self.input)

    @property
    def urls(self) -> list[str]:
        return [url for url in ([self.base_url] if isinstance(self.base_url, str) else self.base_url) if url]

    @property
    def bounds(self) -> Gates:
        return Gates(**{each.name: getattr(self, each.name) for each in fields(Gates)})

    def client(self, urls: list[str], model: str) -> Settings:
        """The client's part of the keys, for these servers."""
        names = {each.name for each in fields(Settings)} & {each.name for each in fields(self)}
        return Settings(**{name: getattr(self, name) for name in names} | {"base_url": urls, "model": model})


def check(settings: Label) -> None:
    """UserError that names the first key whose value can't be meant."""
    for name, known in (
        ("kind", KINDS),
        ("source", ("auto", *READERS)),
        ("response_format", FORMATS),
        ("language", ("zh", "en", "any")),
        ("thought", ("required", "optional", "none")),
        ("report_to", ("none", "wandb")),
    ):
        if (value := getattr(settings, name)) not in known:
            raise UserError(f"{name}: unknown {value!r}; expected one of {', '.join(known)}")
    if unknown := [name for name in settings.gates if name not in (*GATES, "agreement")]:
        raise UserError(f"gates: unknown {unknown[0]!r}; expected names out of {', '.join(GATES)}, agreement")
    for name, least, most in (
        *(("n", 1, 64), ("max_tokens", 1, 10**6), ("temperature", 0, 2), ("top_p", 0, 1), ("min_evidence", 0, 1)),
        *(("min_agreement", 0, 1), ("limit", 0, 2**31), ("top_logprobs", 0, 20), ("concurrency", 1, 4096)),
        *(("seed", -1, 2**31), ("min_characters", 0, 10**6), ("max_characters", 1, 10**6)),
        *((name, 0, float("inf")) for name in ("max_usd", "max_total_tokens", "max_hours", "usd_in", "usd_out")),
    ):
        if not least <= getattr(settings, name) <= most:
            raise UserError(f"{name}: expected {least} to {most}, got {getattr(settings, name)}")
    if not settings.inputs:
        raise UserError("input: name a file, a folder, or several of them")
    named = [settings.input] if isinstance(settings.input, str) else settings.input
    if Path(settings.output).resolve() in {Path(path).resolve() for path in named}:
        raise UserError(
            f"output: {settings.output} is also the input; what is written would be read; name another folder"
        )
    if settings.kind == "cot" and settings.response_format != "none":
        raise UserError("response_format: holds diagnoses to their schema; kind: cot asks for plain text, leave it out")
    if settings.min_characters > settings.max_characters:
        raise UserError(f"min_characters: {settings.min_characters} is more than max_characters")
    if settings.tokenizer and not Path(settings.tokenizer).expanduser().is_dir():
        raise UserError(f"tokenizer: {settings.tokenizer} is no folder; name the teacher's, or leave the key out")
    if settings.max_usd and not settings.usd_in + settings.usd_out:
        raise UserError("max_usd: needs the prices, usd_in and usd_out, in dollars for a million tokens")
    if bool(settings.urls) == bool(settings.serve):
        raise UserError(
            "base_url: name the teacher's address (…/v1), or `serve` for a model of this machine; one of both"
        )
    if not settings.model and not settings.serve:
        raise UserError("model: name the teacher as its server calls it")
    for url in settings.urls:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise UserError(f"base_url: {url!r} is no address; expected http(s)://…/v1")
    if settings.n > 1 and not settings.temperature:
        raise UserError("n: several answers at temperature 0 are one answer; set a temperature")


def read(reply: dict[str, Any], kind: str) -> Reading:
    """The object in a reply; of plain text an empty reading without a fault."""
    return Reading(None, "text", "") if kind == "cot" else _read(reply["text"], reply["finish_reason"])


@lru_cache(256)  # a record's replies are looked at by its repair, its outcome and its gates, one after the other
def _read(text: str, finish_reason: str) -> Reading:
    return read_object(text, KEYS, finish_reason)


class Asker:
    """Turns records into questions; `prompts` is, by file, the hash of each prompt that is used.

    `examples` are answered records as they are shown. Raises UserError for a prompt that can't be filled.
    """

    def __init__(self, settings: Label, model: str, response_format: str, examples: Sequence[Record] = ()) -> None:
        self.settings, self.model, self.response_format = settings, model, response_format
        self.prompts: dict[str, str] = {}
        self.template = self._template(settings.prompt)
        self.repair_template = self._template(str(Path(__file__).parent / "prompts/repair.j2"))
        self.verify_template = self._template(settings.verifier_prompt) if settings.verifier else None
        self.examples = [message for record in examples for message in self._example(record)]

    def _template(self, path: str) -> jinja2.Template:
        text = read_text(path)
        if not text.strip():
            raise UserError(f"{path}: is empty; expected a prompt")
        self.prompts[path] = sha256(text.encode()).hexdigest()
        try:
            template = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined).from_string(text)
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"{path}:{error.lineno}: {error.message}; mend the prompt") from None
        template.filename = path
        return template

    def _fill(self, template: jinja2.Template, **values: Any) -> str:
        try:
            return template.render(**values).strip()
        except Exception as error:  # a template can raise whatever Python can
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            raise UserError(f"{template.filename}: {said}; known: {', '.join(values)}") from None

    def _example(self, record: Record) -> Iterator[dict[str, str]]:
        if not record.answer:
            raise UserError(f"{self.settings.examples}: record {record.id} has no answer; leave it out")
        yield {"role": "user", "content": self._prompt(record)}
        yield {"role": "assistant", "content": record.answer}

    def _prompt(self, record: Record) -> str:
        return self._fill(self.template, question=record.question, fields=record.meta.get("fields", {}))

    def try_out(self, record: Record) -> None:
        """UserError for any of the prompts that can't be filled, before anything is paid for."""
        question = self.questions(record)[0]
        self.repair(question, "", "")
        if self.verify_template:
            self.verify(record, "")

    def questions(self, record: Record) -> list[Question]:
        """The questions of a record, one a sample."""
        said = record.system or self.settings.system
        system = [{"role": "system", "content": said}] if said else []
        messages = [*system, *self.examples, {"role": "user", "content": self._prompt(record)}]
        return [self._question(record.id, sample, messages) for sample in range(self.settings.n)]

    def repair(self, question: Question, reply: str, fault: str) -> Question:
        """The one round trip that shows a model why its reply could not be read."""
        asked = self._fill(self.repair_template, fault=fault)
        messages = [
            *question.asked["messages"],
            {"role": "assistant", "content": reply},
            {"role": "user", "content": asked},
        ]
        return self._question(question.id, question.sample, messages)

    def repair_of(self, question: Question, reply: dict[str, Any]) -> Question | None:
        """The repair of a whole reply that holds no object, where it was asked for; a repair has none itself."""
        messages = question.asked["messages"]
        is_repair = len(messages) > (messages[0]["role"] == "system") + len(self.examples) + 1
        if not self.settings.repair or question.sample == VERIFIED or is_repair:
            return None
        fault = read(reply, self.settings.kind).fault
        if fault not in FAULTS or (fault == "truncated" and reply["finish_reason"] != "stop"):
            return None
        return self.repair(question, reply["text"], FAULTS[fault])

    def verify(self, record: Record, answer: str) -> Question:
        """The verifier's question about an answer that has passed all other gates."""
        assert self.verify_template is not None
        content = self._fill(self.verify_template, question=record.question, answer=answer)
        asked = {
            "model": self.settings.verifier,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0.0,
        }
        return Question(record.id, VERIFIED, asked | {"max_tokens": self.settings.max_tokens})

    def _question(self, id_: str, sample: int, messages: list[dict[str, str]]) -> Question:
        one = self.settings
        asked: dict[str, Any] = {"model": self.model, "messages": messages, "temperature": one.temperature}
        asked |= {"top_p": one.top_p, "max_tokens": one.max_tokens}
        if one.seed >= 0:
            asked["seed"] = one.seed + sample
        if one.top_logprobs:
            asked |= {"logprobs": True, "top_logprobs": one.top_logprobs}
            asked |= {"return_tokens_as_token_ids": True} if one.token_ids else {}
        if self.response_format == "json_schema":
            asked["response_format"] = SCHEMA
        elif self.response_format == "json_object":
            asked["response_format"] = {"type": "json_object"}
        return Question(id_, sample, asked)


def text_of(question: Question) -> str:
    """All that a question sends, for an estimate of its tokens."""
    return "\n".join(message["content"] for message in question.asked["messages"])
