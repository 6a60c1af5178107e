"""Every arm answers the same prompts, each once: through a server of its own, or one that is there already.

    python -m eval.predict recipes/demo/predict.yaml limit=4

Asked are the questions of a registered data set and, if named, a file of instructions with their checks. Arms are
those of `eval.arms`; what is no server elsewhere answers through `llamafactory-cli api` and serve.yaml. What was
answered is in answers-<arm>.journal.jsonl and is never asked again, unless the weights, the prompt or the sampling
changed. One line out a prompt, in answers-<arm>.jsonl, in the order of the prompts:

    {"id": "6b1f…", "prompt": "夜里咳嗽三周……", "reference": "<think>\\n……", "think": "躺下加重……", "answer": "先查……",
     "raw": "<think>\\n躺下加重……\\n</think>\\n\\n先查……", "finish_reason": "stop", "tokens": 122, "weights": "9f2c…",
     "engine": "llamafactory", "asked": "0c51…", "journal": "77ab…"}

`asked` is the hash of what all arms must share (messages and sampling), `weights` that of the arm's own, `engine` what
served it here ("" of an arm elsewhere); `sampling` and `model` say both in words. A prompt that got no answer has
`finish_reason: failed` and says why under `error`; the same command asks it again.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

from chat.ask import ask_missing, key_of
from chat.client import Question, Settings, read_key
from chat.journal import Journal
from chat.server import serve, serve_batches
from eval.arms import Arm, read_arms, weights_of
from preprocess import think
from preprocess.records import read_rows, text_field, to_json, write_jsonl
from preprocess.register import dataset_file
from recipe import UserError, main, read_yaml

ENGINES = ("llamafactory", "transformers")
NO_ANSWER = {"kind": "not_asked", "message": "its turn did not come"}


@dataclass(frozen=True)
class Predict:
    """The keys of predict.yaml.

    `serve` names a serve.yaml, `dataset` a registered set, `instructions` a file of {"id", "question", "checks"};
    `limit` takes so many of each (0: all): the first of the set, and from all over the instructions. `arms` are the
    base and what is compared with it; without them, the base and the adapter of serve.yaml. `base_url` names a server
    that knows the arms that are folders by their names (vLLM with --enable-lora, say); else one is started for each:
    by LLaMA-Factory, which answers one prompt at a time, or by `engine: transformers`, many at a time and from 16-bit
    weights (`eval.batched`). Of `eval.submission` alone: `records`, `data` (the data.yaml that the model was trained
    by), `arm` (which one hands in; the last, if none is named), `response_format` (as in label.yaml), `tries` (of a
    record whose reply can't be read), `records_limit`. The rest is sampling, and how the servers are asked.
    """

    serve: str
    dataset: str
    output: str
    instructions: str = ""
    arms: list[str] = field(default_factory=list)
    base_url: str = ""
    engine: str = "llamafactory"
    limit: int = 0
    records: str | list[str] = ""
    data: str = ""
    arm: str = ""
    response_format: str = "auto"
    tries: int = 3
    records_limit: int = 0
    max_tokens: int = 1024
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    concurrency: int = 16
    timeout: float = 3600.0
    api_key_env: str = "OPENAI_API_KEY"
    api_key_file: str = ""
    dataset_dir: str = "."


def prompts(settings: Predict) -> list[dict[str, Any]]:
    """What is asked: rows of id, prompt, messages and reference, those of the instructions with their checks."""
    read = read_rows(str(dataset_file(settings.dataset, settings.dataset_dir)))
    rows = [of_dataset(row, place) for place, row in islice(read, settings.limit or None)]
    if settings.instructions:
        asked = [_of_instruction(row, place) for place, row in read_rows(settings.instructions)]
        few = min(settings.limit or len(asked), len(asked))
        rows += [asked[i * len(asked) // few] for i in range(few)]  # such a file is in order of subjects
    if len({row["id"] for row in rows}) < len(rows):
        raise UserError(
            f"{settings.dataset}, {settings.instructions or '-'}: an id stands there twice; expected one each"
        )
    return rows


def of_dataset(row: dict[str, Any], place: str) -> dict[str, Any]:
    """A row of train.json or eval.json as it is asked, in the messages that LLaMA-Factory trains it in."""
    if not {"id", "instruction", "input", "output"} <= row.keys():
        raise UserError(f"{place}: expected a row of `make data` (id, instruction, input, output)")
    question = "\n".join(filter(None, (row["instruction"], row["input"])))
    return _prompt(row["id"], row.get("system") or "", question) | {"reference": row["output"]}


def _of_instruction(row: dict[str, Any], place: str) -> dict[str, Any]:
    question = text_field(row, "question", place)
    if not isinstance(row.get("checks"), list):
        raise UserError(f"{place}: expected an instruction (id, question, checks)")
    return _prompt(text_field(row, "id", place), "", question) | {"reference": "", "checks": row["checks"]}


def _prompt(id_: str, system: str, question: str) -> dict[str, Any]:
    messages = [{"role": "system", "content": system}] if system else []
    told = {"id": str(id_), "prompt": question, "messages": [*messages, {"role": "user", "content": question}]}
    return told | ({"system": system} if system else {})


def arms_of(settings: Predict) -> list[Arm]:
    """The recipe's arms, or the base and the adapter of serve.yaml."""
    adapter = read_yaml(settings.serve)[0].get("adapter_name_or_path")
    if not settings.arms and not adapter:
        raise UserError(f"{settings.serve}: no adapter_name_or_path; expected the tuned adapter, or arms: [base, …]")
    return read_arms(settings.arms or ["base", f"tuned={adapter}"])


def questions(rows: list[dict[str, Any]], settings: Predict, model: str, weights: str) -> list[Question]:
    """The requests, one a prompt; the model's name and weights tell the journal what was answered already."""
    body = {"model": model, **sampling(settings)}
    return [Question(f"{row['id']} {weights[:16]}", 0, body | {"messages": row["messages"]}) for row in rows]


def sampling(settings: Predict) -> dict[str, Any]:
    """What every arm is asked with, beside its messages."""
    found = {"temperature": settings.temperature, "top_p": settings.top_p, "max_tokens": settings.max_tokens}
    return found | ({"seed": settings.seed} if settings.temperature else {})


def base_of(settings: Predict) -> str:
    """The model that adapters are put on."""
    return str(read_yaml(settings.serve)[0].get("model_name_or_path"))


def check_engine(settings: Predict) -> None:
    """UserError for an engine that there is none of."""
    if settings.engine not in ENGINES:
        raise UserError(f"engine: expected one of {', '.join(ENGINES)}, got {settings.engine!r}")


def engine_of(arm: Arm, settings: Predict) -> str:
    """What serves an arm: one of ENGINES here, `server` for one that is there already, "" for an arm elsewhere."""
    return "" if arm.model else "server" if settings.base_url else settings.engine


def model_of(arm: Arm, settings: Predict, weights: str) -> str:
    """The name under which an arm's server knows it; one that we start is named after the weights."""
    if arm.model or settings.base_url:
        return arm.model or arm.name
    return f"{Path(settings.serve).parent.name}-{weights[:12]}" + "-16bit" * (settings.engine == "transformers")


def url_of(arm: Arm, settings: Predict) -> str:
    """The address of the server that is there already, or an empty string."""
    return arm.place if arm.kind == "server" else settings.base_url


@contextmanager
def server_of(arm: Arm, settings: Predict, model: str, rows: list[dict[str, Any]]) -> Iterator[tuple[Settings, str]]:
    """Where an arm answers `rows`, and the key for it; a server is started where no address is named."""
    url = url_of(arm, settings)
    common = {"model": model, "timeout": settings.timeout}
    common |= {"api_key_env": settings.api_key_env, "api_key_file": settings.api_key_file}
    if url:
        at = Settings(base_url=url, concurrency=settings.concurrency, **common)
        yield at, read_key(at)
        return
    log = f"{settings.output}/server-{arm.name}.log"
    if settings.engine == "transformers":
        from eval.batched import dtype_of, folder_of

        folder = Path(settings.output) / ".serve"
        try:
            folder_of(arm, settings.serve, folder, [row["messages"] for row in rows])
            with serve_batches(str(folder), log, dtype=dtype_of(settings.serve)) as server:
                yield Settings(base_url=server.base_url, concurrency=settings.concurrency, **common), server.api_key
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return
    with serve(settings.serve, arm.overrides, log, name=model) as server:
        # One at a time is all that LLaMA-Factory's own engine does; the second one waits at the door.
        yield Settings(base_url=server.base_url, concurrency=2, **common), server.api_key


def answer(arm: Arm, rows: list[dict[str, Any]], settings: Predict) -> int:
    """Ask one arm what its journal lacks, write its answers, and return how many prompts have none."""
    base, engine = base_of(settings), engine_of(arm, settings)
    weights = weights_of(arm, base)
    model = model_of(arm, settings, weights)
    asked = questions(rows, settings, model, weights)
    told = {"weights": weights, "engine": engine, "sampling": sampling(settings)}
    told["model"] = arm.model or Path(arm.place if arm.kind == "model" else base).name
    out = Path(settings.output)
    with Journal(out / f"answers-{arm.name}.journal.jsonl") as journal:
        if any(key_of(question) not in journal for question in asked):
            with server_of(arm, settings, model, rows) as (at, key):
                ask_missing(at, key, journal, asked, f"{arm.name} answers")
        failures = {entry["key"]: entry["error"] for entry in journal if not entry["ok"]}
        found = [
            _row(row, question, journal, failures, prefilled=engine in ("", "server")) | told
            for row, question in zip(rows, asked, strict=True)
        ]
    write_jsonl(out / f"answers-{arm.name}.jsonl", found)
    failed = sum("error" in row for row in found)
    cut = sum(row["finish_reason"] == "length" for row in found)
    print(f"{out}/answers-{arm.name}.jsonl: {len(found) - failed} answers, {cut} cut at max_tokens, {failed} failed")
    return failed


def _row(
    row: dict[str, Any], question: Question, journal: Journal, failures: dict[str, Any], prefilled: bool
) -> dict[str, Any]:
    """A line out. `prefilled`: of a server elsewhere, a closing tag alone says that its template opened the thought."""
    told = {name: row[name] for name in ("id", "system", "prompt", "reference", "checks") if name in row}
    shared = {name: value for name, value in question.asked.items() if name != "model"}
    told["asked"] = sha256(to_json(shared).encode()).hexdigest()
    key = key_of(question)
    if key not in journal:
        error = failures.get(key, NO_ANSWER)
        return told | {"think": "", "answer": "", "raw": "", "finish_reason": "failed", "error": error["message"]}
    reply = journal.get(key)["reply"]
    raw = reply.get("raw", reply["text"])
    if prefilled and reply["think_from"] == "closing_tag":
        raw = f"<think>\n{raw}"
    if reply["think_from"] in ("reasoning", "reasoning_content"):  # in our spelling, as the others give it themselves
        raw = think.join(reply["think"], raw)
    told |= {"think": reply["think"], "answer": reply["text"], "raw": raw, "finish_reason": reply["finish_reason"]}
    return told | {"tokens": reply["usage"].get("completion_tokens"), "journal": key}


def run(settings: Predict) -> None:
    """Run predict.yaml, one arm after the other."""
    check_engine(settings)
    if settings.limit < 0 or settings.max_tokens < 1 or settings.temperature < 0:
        raise UserError("expected limit >= 0 (0: all), max_tokens >= 1 and temperature >= 0")
    rows, arms = prompts(settings), arms_of(settings)
    if failed := sum(answer(arm, rows, settings) for arm in arms):
        raise UserError(f"{failed} of {len(rows) * len(arms)} prompts have no answer; the same command asks them again")


if __name__ == "__main__":
    main(Predict, run, __doc__)
