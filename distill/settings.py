"""The keys of distill.yaml: one file for the teacher's distributions (`make teach`) and for the training that uses them
(`make distill`)."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from preflight import Recipe, read_recipe
from preflight.keys import schema
from recipe import UserError, load


@dataclass(frozen=True)
class Distill:
    """What `python -m distill.score` and `python -m distill.train` are asked for.

    `train` is a LLaMA-Factory recipe: its data set, template and `cutoff_len` say which tokens the teacher is asked
    about, and all of it how the student is trained. `pack` is the folder of the teacher's distributions: the `k`
    likeliest tokens of each response position and the mass of the rest.

    The teacher is a model's folder, `teacher`, read in 4 or 8 bits where `teacher_quantization_bit` says so, with a
    LoRA `teacher_adapter` on it; `batch_tokens` is how many tokens it reads at once, padding included (0: by the
    device), `limit` the first rows alone (0: all). Or it has answered already: `logprobs` names the label step's
    answers.logprobs, and `teacher` then the folder of its tokenizer, where that isn't the student's; at least
    `min_match` of its tokens must be tokens of the student. `logprobs_temperature` is what the server's
    log-probabilities include: 1 for raw ones, vLLM's default, whatever was sampled at; the sampling's temperature for
    `--logprobs-mode processed_logprobs`.

    `temperature`, `alpha`, `direction` and `tail` are the loss's (`distill.loss`), the four weights those of its tokens
    (`distill.weights`). `overrides` are keys of the LLaMA-Factory recipe that are otherwise here: `use_unsloth=false`.
    """

    train: str
    pack: str
    teacher: str = ""
    teacher_adapter: str = ""
    teacher_quantization_bit: int = 0
    logprobs: str = ""
    min_match: float = 0.9
    logprobs_temperature: float = 1.0
    k: int = 20
    batch_tokens: int = 0
    limit: int = 0
    temperature: float = 1.0
    alpha: float = 0.5
    direction: str = "forward"
    tail: str = "bucket"
    weight_thought: float = 1.0
    weight_answer: float = 1.0
    weight_markup: float = 1.0
    weight_json: float = 1.0
    overrides: list[str] = field(default_factory=list)

    def of_training(self) -> dict[str, Any]:
        """The keys that a resumed training must share with the one that wrote the checkpoint."""
        names = ("pack", "k", "temperature", "alpha", "direction", "tail")
        weights = ("weight_thought", "weight_answer", "weight_markup", "weight_json")
        return {name: getattr(self, name) for name in (*names, *weights)}


KEYS = tuple(field.name for field in fields(Distill))


def load_distill(path: str, overrides: Sequence[str] = ()) -> Distill:
    """A distill.yaml with overrides: of a key that it has its own, any other the LLaMA-Factory recipe's.

    Those join `overrides`, behind the file's; the last of a key counts.
    """
    mine = [item for item in overrides if item.partition("=")[0] in KEYS]
    settings = load(Distill, path, mine)
    if not settings.pack:
        raise UserError(f"{path}: pack: name the folder of the teacher's distributions")
    return replace(settings, overrides=[*settings.overrides, *(item for item in overrides if item not in mine)])


def read_train(train: str, overrides: Sequence[str] = ()) -> Recipe:
    """A LLaMA-Factory recipe with its overrides; UserError for one of a key that neither of the two files has."""
    recipe, known = read_recipe(train, list(overrides)), schema(training=True)
    if {"train", "pack"} <= recipe.values.keys():
        raise UserError(f"train: {train} is a distill.yaml itself; name the LLaMA-Factory recipe, e.g. a train.yaml")
    if strange := next((key for key, *_ in (item.partition("=") for item in overrides) if key not in known), ""):
        close = difflib.get_close_matches(strange, [*KEYS, *known], n=1)
        what = f"did you mean {close[0]}?" if close else "distill.train --help and llamafactory-cli train -h list them"
        raise UserError(f"{recipe.place(strange)}: no key of distill.yaml, nor of LLaMA-Factory; {what}")
    return recipe


def check_teacher(settings: Distill) -> None:
    """UserError that names the first key of the teacher's whose value can't be meant."""
    if not (settings.teacher or settings.logprobs):
        raise UserError("distill: no teacher; name a model's folder, teacher=…, or the label step's file, logprobs=…")
    if settings.logprobs and (settings.teacher_adapter or settings.teacher_quantization_bit):
        raise UserError("logprobs: the answers are there already; leave out the other keys of a local teacher")
    if settings.teacher_quantization_bit not in (0, 4, 8):
        raise UserError(f"teacher_quantization_bit: expected 0, 4 or 8, got {settings.teacher_quantization_bit}")
    if not 0 < settings.logprobs_temperature <= 100:
        raise UserError(f"logprobs_temperature: expected a number above 0, got {settings.logprobs_temperature}")
    for key, low, high in (("k", 1, 2**20), ("batch_tokens", 0, 2**31), ("limit", 0, 2**31), ("min_match", 0, 1)):
        if not low <= getattr(settings, key) <= high:
            raise UserError(f"{key}: expected {low} to {high}, got {getattr(settings, key)}")
