"""Measure models against the first of them, and write one report.

    python -m eval.run recipes/demo/eval.yaml

Reads the held-out set, the arms' weights, and, where they are there, the answers of `eval.predict`, the verdicts of
`eval.judge` and the votes of `eval.review`; writes index.html, report.md, metrics.json and samples.jsonl to the output
folder. The same inputs give the same bytes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from eval import judge, score
from eval.arms import Arm, read_arms, weights_of
from eval.charts import read_history
from eval.checks import Graded
from eval.overlap import overlap
from eval.perplexity import compare
from eval.report import summary_lines, to_markdown, to_page
from eval.track import TRACKERS, track
from preprocess.records import read_rows, sha256_file, text_field, to_json
from preprocess.register import dataset_file
from recipe import UserError, main, read_text, read_yaml, write_all

PACKAGES = ("llamafactory", "torch", "transformers", "peft", "bitsandbytes")
TEXTS = ("id", "prompt", "think", "answer", "raw", "finish_reason", "asked", "weights")


@dataclass(frozen=True)
class Eval:
    """The keys of eval.yaml.

    `train` is the recipe that was trained, `dataset` a registered held-out set, `arms` as in `eval.arms`; without them,
    the base and what `train` wrote. `references` names a file of other diagnoses than the data set's, by id, which the
    answers are scored against as well. `train_rows` scores an equal number of training rows, too, to show the gap.
    `report_to` is none, wandb or swanlab.
    """

    train: str
    dataset: str
    output: str
    arms: list[str] = field(default_factory=list)
    batch_tokens: int = 0
    references: str = ""
    train_rows: bool = True
    limit: int = 0
    report_to: str = "none"
    dataset_dir: str = "."


def arms_of(settings: Eval) -> list[Arm]:
    """The recipe's arms, or the base and the adapter that it trained."""
    return read_arms(settings.arms or ["base", f"tuned={read_yaml(settings.train)[0].get('output_dir', '')}"])


def read_answers(folder: str, arms: Sequence[Arm], base: str) -> dict[str, list[dict[str, Any]]]:
    """The answers of all arms, {} if none were generated. `base` is the model that adapters are put on.

    Raises UserError that names the first thing that differs: an arm without answers, other prompts, other sampling, or
    weights that are not the arm's any more.
    """
    files = {arm.name: Path(folder) / f"answers-{arm.name}.jsonl" for arm in arms}
    missing = [file for file in files.values() if not file.exists()]
    if len(missing) == len(files):
        return {}
    if missing:
        raise UserError(f"{missing[0]}: no such file, but other arms have answers; run `make predict` for all arms")
    answers = {name: [_answer(row, place) for place, row in read_rows(str(file))] for name, file in files.items()}
    (first, rows), *others = answers.items()
    for name, others_rows in others:
        if len(others_rows) != len(rows):
            raise UserError(f"{files[name]}: {len(others_rows)} answers, {files[first]} has {len(rows)}; predict again")
        for number, (one, other) in enumerate(zip(rows, others_rows, strict=True), 1):
            if differ := [key for key in ("id", "prompt", "asked") if one[key] != other[key]]:
                what = {"asked": "sampling or messages"}.get(differ[0], differ[0])
                raise UserError(
                    f"{files[name]}:{number}: another {what} than in {files[first]}; run `make predict` again"
                )
    engines = {name: rows[0].get("engine") for name, rows in answers.items() if rows and rows[0].get("engine")}
    if len(set(engines.values())) > 1:
        told = ", ".join(f"{name} by {engine}" for name, engine in engines.items())
        raise UserError(f"{folder}: the arms were served by different engines ({told}); run `make predict` again")
    for arm in arms:
        if {row["weights"] for row in answers[arm.name]} - {weights_of(arm, base)}:
            place = arm.model or arm.place or base
            raise UserError(
                f"{files[arm.name]}: made with other weights than those of {place}; run `make predict` again"
            )
    return answers


def _answer(row: dict[str, Any], place: str) -> dict[str, Any]:
    for key in TEXTS:
        if key not in row:
            raise UserError(f"{place}: key {key!r} is missing; run `make predict` again")
        text_field(row, key, place)
    if type(row.get("tokens")) not in (int, type(None)) or not isinstance(row.get("checks", []), list):
        raise UserError(f"{place}: not a row of `make predict`; run it again")
    return {"reference": "", "tokens": None} | row


def _served(row: dict[str, Any]) -> dict[str, Any]:
    """What served an arm, and with what sampling."""
    return {"engine": row.get("engine") or "elsewhere"} | (row.get("sampling") or {})


def read_settings(folder: Path) -> dict[str, Any]:
    """What the verdicts hang on, as the judge left it."""
    path = folder / "judge/settings.json"
    return json.loads(read_text(path)) if path.exists() else {}


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


def scores_of(
    answers: dict[str, list[dict[str, Any]]], folder: Path, references: str = ""
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """All that the answers come to, for metrics.json, and a row a prompt that every arm has answered."""
    if not answers:
        return {}, []
    kept = score.answered_by_all(answers)
    first = next(iter(kept.values()))
    if not first:
        raise UserError(f"{folder}: no prompt was answered by every arm; run `make predict` again")
    grades = {arm: [score.graded(row) for row in rows] for arm, rows in kept.items()}
    diagnoses, each = score.diagnoses(kept)
    weak = score.diagnoses(kept, score.read_names(references))[0] if Path(references).is_file() else {}
    reviewed, verdicts, votes = score.reviewed(folder, answers, kept)
    found = {
        "answers": score.counts(answers),
        "thought_well_formed": score.thoughts(kept),
        "instructions": score.instructions(kept, grades),
        "diagnosis": diagnoses,
        "diagnosis_weak": weak and weak | {"references_sha256": sha256_file(references)},
        **reviewed,
    }
    found["claim"] = score.claim(found)
    arms = {
        arm: [_sample(*one) for one in zip(rows, grades[arm], each[arm], strict=True)] for arm, rows in kept.items()
    }
    words = _words(verdicts, votes)
    rows = [
        {name: row[name] for name in ("id", "prompt", "reference") if row.get(name)}
        | {"arms": {arm: arms[arm][i] for arm in arms}}
        | words.get(row["id"], {})
        for i, row in enumerate(first)
    ]
    return {name: figures for name, figures in found.items() if figures}, rows


def _words(verdicts: Sequence[dict[str, Any]], votes: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By prompt, what judges and raters said; raters by number, for the page is passed around."""
    said = {row["id"]: {"judge": {key: row[key] for key in judge.TRACKS if key in row}} for row in verdicts}
    raters = {rater: number for number, rater in enumerate(sorted({vote["rater"] for vote in votes}), 1)}
    for vote in votes:
        told = {"rater": raters[vote["rater"]]} | {key: vote.get(key) for key in ("vote", "tags", "comment")}
        said.setdefault(vote["id"], {}).setdefault("votes", []).append(told)
    return said


def _sample(row: dict[str, Any], grades: Sequence[Graded], diagnosis: Any) -> dict[str, Any]:
    """One reply with its verdicts, as the report shows it."""
    kept = {name: row[name] for name in ("think", "answer", "finish_reason", "tokens")}
    kept["checks"] = [list(grade) for grade in grades if grade.strict is not None]
    if diagnosis:
        tier = diagnosis.tiers["alias"]
        kept["diagnosis"] = {"f1": tier.f1, "predicted": list(tier.predicted), "expected": list(tier.expected)}
        kept["diagnosis"] |= {"fault": diagnosis.fault}
    return kept


def samples(prompts: Sequence[dict[str, Any]], scored: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The prompts, with the NLL of those that are held-out rows; then the rows that were scored and not asked."""
    nll = {row["id"]: {name: value for name, value in row.items() if name != "id"} for row in scored}
    rows = [row | ({"scored": nll.pop(row["id"])} if row["id"] in nll else {}) for row in prompts]
    return rows + [{"id": id_, "scored": each} for id_, each in nll.items()]


def run(settings: Eval) -> None:
    """Run eval.yaml and print the result; every file is written at the end, all or none."""
    if settings.batch_tokens < 0 or settings.limit < 0:
        raise UserError("expected batch_tokens >= 0 (0: by the device) and limit >= 0 (0: all)")
    if settings.report_to not in TRACKERS:
        raise UserError(f"report_to: expected one of {', '.join(TRACKERS)}, got {settings.report_to!r}")
    arms, output = arms_of(settings), Path(settings.output)
    data = data_counts(settings.dataset, settings.dataset_dir)
    trained = [arm for arm in arms if (Path(arm.place) / "trainer_state.json").exists()]
    histories = {arm.name: read_history(arm.place) for arm in trained}
    base = str(read_yaml(settings.train)[0].get("model_name_or_path", ""))
    answers = read_answers(settings.output, arms, base)
    if settings.references and not Path(settings.references).exists():  # no record had a diagnosis to cut
        print(f"{settings.references}: no such file; nothing is scored against it", file=sys.stderr)
    scores, prompts = scores_of(answers, output, settings.references)
    perplexity = compare(
        settings.train, arms, settings.dataset, settings.batch_tokens, settings.limit, settings.train_rows
    )
    rows = perplexity.pop("rows")
    metrics = {
        "arms": [arm.name for arm in arms],
        "perplexity": perplexity,
        **scores,
        "data": data,
        "overlap": overlap(settings.train, settings.dataset, settings.dataset_dir),
        "training": {name: training_summary(history) for name, history in histories.items() if history},
        "made_from": {
            "train": settings.train,
            "train_sha256": sha256_file(settings.train),
            "dataset": settings.dataset,
            "arms": {arm.name: arm.place for arm in arms},
            "weights": {arm.name: weights_of(arm, base) for arm in arms},
            "answers": {arm: _served(rows[0]) for arm, rows in answers.items() if rows},
            "judge": read_settings(output) if "judge" in scores else {},
            "limit": settings.limit,
            "versions": {name: version(name) for name in PACKAGES},
        },
    }
    found = samples(prompts, rows)
    write_all(
        {
            output / "samples.jsonl": "".join(to_json(row) + "\n" for row in found),
            output / "metrics.json": to_json(metrics, indent=1) + "\n",
            output / "index.html": to_page(metrics, found, histories),
            output / "report.md": to_markdown(metrics),
        }
    )
    print("\n".join(summary_lines(metrics)))
    print(f"report: {output / 'index.html'}")
    track(metrics, found, settings.report_to)


if __name__ == "__main__":
    main(Eval, run, __doc__)
