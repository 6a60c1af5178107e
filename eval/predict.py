"""Ask base and tuned model the same questions, through `llamafactory-cli api` and the OpenAI client.

    python -m eval.predict recipes/demo/predict.yaml limit=4

The tuned model is the one of serve.yaml; the base is the same without its adapter. One line out per question, in
answers-base.jsonl and answers-tuned.jsonl, in the order of the data set:

    {"id": "6b1f…", "prompt": "夜里咳嗽三周……", "reference": "<think>\\n……", "answer": "<think>\\n……",
     "finish_reason": "stop", "completion_tokens": 122, "adapter_sha256": "9f2c…"}
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import openai
from tqdm import tqdm

from chat.server import Server, serve
from preprocess.records import read_rows, sha256_file, write_jsonl
from preprocess.register import dataset_file
from recipe import UserError, main, read_yaml


@dataclass(frozen=True)
class Predict:
    """The keys of predict.yaml; `limit` asks only the first questions (0: all)."""

    serve: str
    dataset: str
    output: str
    limit: int = 0
    max_tokens: int = 1024
    temperature: float = 0.0
    dataset_dir: str = "."


def prompts(dataset: str, dataset_dir: str, limit: int = 0) -> list[dict[str, Any]]:
    """The questions of a registered alpaca set: id, messages, and the answer that stands there."""
    rows = read_rows(str(dataset_file(dataset, dataset_dir)))
    return [_prompt(row, place) for place, row in islice(rows, limit or None)]


def _prompt(row: dict[str, Any], place: str) -> dict[str, Any]:
    if not {"id", "instruction", "input", "output"} <= row.keys():
        raise UserError(f"{place}: expected a row of `make data` (id, instruction, input, output)")
    question = "\n".join(filter(None, (row["instruction"], row["input"])))
    system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    messages = [*system, {"role": "user", "content": question}]
    return {"id": row["id"], "prompt": question, "messages": messages, "reference": row["output"]}


def answers(
    server: Server, questions: list[dict[str, Any]], predict: Predict, label: str, adapter_sha256: str | None
) -> Iterator[dict[str, Any]]:
    """Ask one question after the other; the raw completion is kept, thought and all."""
    client = server.client()
    for question in tqdm(questions, desc=label, unit=" answers", disable=None):
        try:
            reply = client.chat.completions.create(
                model=server.model,
                messages=question["messages"],
                temperature=predict.temperature,
                max_tokens=predict.max_tokens,
            )
        except openai.APIError as error:
            raise UserError(f"{label}: question {question['id']}: the server failed ({error})") from None
        yield {
            "id": question["id"],
            "prompt": question["prompt"],
            "reference": question["reference"],
            "answer": reply.choices[0].message.content or "",
            "finish_reason": reply.choices[0].finish_reason,
            "completion_tokens": reply.usage.completion_tokens if reply.usage else None,
            "adapter_sha256": adapter_sha256,
        }


def adapter_hash(adapter: str) -> str:
    """The SHA-256 of an adapter's weights; UserError where there are none."""
    path = Path(adapter) / "adapter_model.safetensors"
    if not path.exists():
        raise UserError(f"{path}: no such file; expected a trained LoRA adapter (`make train`)")
    return sha256_file(path)


def run(predict: Predict) -> None:
    """Run predict.yaml: both arms, one file each, written when the arm is complete."""
    if predict.limit < 0 or predict.max_tokens < 1 or predict.temperature < 0:
        raise UserError("expected limit >= 0 (0: all), max_tokens >= 1 and temperature >= 0")
    values, _ = read_yaml(predict.serve)
    if not values.get("adapter_name_or_path"):
        raise UserError(f"{predict.serve}: no adapter_name_or_path; expected the tuned adapter, the base is without it")
    adapter = adapter_hash(values["adapter_name_or_path"])
    questions = prompts(predict.dataset, predict.dataset_dir, predict.limit)
    for arm, overrides, sha256 in (("base", ["adapter_name_or_path=null"], None), ("tuned", [], adapter)):
        out = Path(predict.output) / f"answers-{arm}.jsonl"
        with serve(predict.serve, overrides, log=f"{predict.output}/server-{arm}.log") as server:
            write_jsonl(out, answers(server, questions, predict, f"{arm:5} answers", sha256))
        print(f"{out}: {len(questions)} answers")


if __name__ == "__main__":
    main(Predict, run, __doc__)
