"""Measure a tuned model against its base and write one report.

    python -m eval.run recipes/demo/eval.yaml

Reads the adapter, the held-out set, and the answers of `eval.predict` where they are there; writes index.html,
report.md, metrics.json and samples.jsonl to the output folder. The same inputs give the same bytes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from eval.charts import read_history
from eval.perplexity import compare
from eval.predict import adapter_hash
from eval.report import summary_lines, to_markdown, to_page
from preprocess.records import read_rows, sha256_file, text_field, to_json
from preprocess.register import dataset_file
from preprocess.think import well_formed
from recipe import UserError, main, read_text, write_all

PACKAGES = ("llamafactory", "torch", "transformers", "peft", "bitsandbytes")
ARMS = ("base", "tuned")


@dataclass(frozen=True)
class Eval:
    """The keys of eval.yaml: `train` is the recipe that made `adapter`, `dataset` a registered held-out set."""

    train: str
    adapter: str
    dataset: str
    output: str
    batch_size: int = 8
    bootstrap: int = 10_000
    limit: int = 0
    dataset_dir: str = "."


def wilson(hits: int, n: int, z: float = 1.959964) -> dict[str, float]:
    """The 95 % Wilson score interval of a share, hits out of n (Wilson 1927); stays sensible at 0 and n."""
    centre, spread = hits + z * z / 2, z * (hits * (n - hits) / n + z * z / 4) ** 0.5
    low, high = (centre - spread) / (n + z * z), (centre + spread) / (n + z * z)
    return {"low": max(0.0, low), "high": min(1.0, high)}


def read_answers(folder: str, adapter: str) -> dict[str, list[dict[str, Any]]]:
    """The answers of both arms, {} if none were generated; UserError unless both answer the same prompts and the
    tuned ones came from this very adapter."""
    files = {arm: Path(folder) / f"answers-{arm}.jsonl" for arm in ARMS}
    there = [arm for arm in ARMS if files[arm].exists()]
    if not there:
        return {}
    if len(there) == 1:
        raise UserError(f"{folder}: only answers-{there[0]}.jsonl is there; run `make predict` for both arms")
    answers = {arm: [_answer(row, place) for place, row in read_rows(str(file))] for arm, file in files.items()}
    base, tuned = ([(row["id"], row["prompt"]) for row in answers[arm]] for arm in ARMS)
    if base != tuned:
        raise UserError(f"{folder}: the two answer files differ in id or prompt; run `make predict` again")
    if {row["adapter_sha256"] for row in answers["tuned"]} != {adapter_hash(adapter)}:
        raise UserError(f"{files['tuned']}: made with another adapter than {adapter}; run `make predict` again")
    return answers


def _answer(row: dict[str, Any], place: str) -> dict[str, Any]:
    for key in ("id", "prompt", "answer", "finish_reason"):
        text_field(row, key, place)
    if "adapter_sha256" not in row:
        raise UserError(f"{place}: key 'adapter_sha256' is missing; run `make predict` again")
    return row


def score_thoughts(answers: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The share of completions with one closed, non-empty thought and then a non-empty answer, by arm."""
    n = len(answers["base"])
    hits = {arm: sum(well_formed(row["answer"]) for row in answers[arm]) for arm in ARMS}
    shares = {arm: hits[arm] / n for arm in ARMS}
    return shares | {"prompts": n, "counts": hits, "intervals": {arm: wilson(hits[arm], n) for arm in ARMS}}


def training_summary(history: list[dict[str, float]]) -> dict[str, float]:
    """Where the run began and ended."""
    first, last = history[0], history[-1]
    return {"steps": last["step"], "epochs": last["epoch"], "loss_first": first["loss"], "loss_last": last["loss"]}


def data_counts(dataset: str, dataset_dir: str) -> dict[str, Any]:
    """The counts that `make data` left beside the data set, {} for a set from elsewhere."""
    path = dataset_file(dataset, dataset_dir).parent / "counts.json"
    if not path.exists():
        return {}
    try:
        counts = json.loads(read_text(path))
        out = counts["train"] + counts["eval"] + sum(counts["dropped"].values())
        whole = counts["read"] == out and all({"file", "sha256"} <= given.keys() for given in counts["inputs"])
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise UserError(f"{path}: expected the counts that `make data` wrote, read = train + eval + dropped")
    return counts


def run(settings: Eval) -> None:
    """Run eval.yaml and print the result; every file is written at the end, all or none."""
    if settings.batch_size < 1 or settings.bootstrap < 100 or settings.limit < 0:
        raise UserError("expected batch_size >= 1, bootstrap >= 100 rounds and limit >= 0 (0: all)")
    data = data_counts(settings.dataset, settings.dataset_dir)
    history = read_history(settings.adapter)
    answers = read_answers(settings.output, settings.adapter)
    perplexity = compare(
        settings.train, settings.adapter, settings.dataset, settings.batch_size, settings.bootstrap, settings.limit
    )
    rows = perplexity.pop("rows")
    metrics = {
        "perplexity": perplexity,
        **({"thought_well_formed": score_thoughts(answers)} if answers else {}),
        "data": data,
        "training": training_summary(history),
        "made_from": {
            "train": settings.train,
            "train_sha256": sha256_file(settings.train),
            "dataset": settings.dataset,
            "adapter": settings.adapter,
            "adapter_sha256": adapter_hash(settings.adapter),
            "versions": {name: version(name) for name in PACKAGES},
        },
    }
    output = Path(settings.output)
    write_all(
        {
            output / "samples.jsonl": "".join(to_json(row) + "\n" for row in rows),
            output / "metrics.json": to_json(metrics, indent=1) + "\n",
            output / "index.html": to_page(metrics, answers, history),
            output / "report.md": to_markdown(metrics),
        }
    )
    print("\n".join(summary_lines(metrics)))
    print(f"report: {output / 'index.html'}")


if __name__ == "__main__":
    main(Eval, run, __doc__)
