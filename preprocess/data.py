"""The keys of data.yaml, and what they may be."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from chat.scenarios import read_scenarios
from preprocess.clean import DROPPED, EXPLAINED
from preprocess.sources import READERS
from recipe import UserError

THINK_FROM = ("thought", "reason", "none")
PRIVACY = ("none", "report", "mask")
HUBS_OWN = ("dataset_info.json", "dataset_infos.json", "configuration.json")
FILES = (
    *("train.json", "eval.json", "dropped.jsonl", "clusters.jsonl", "identifiers.jsonl", "weak_reference.jsonl"),
    *("card.md", "card.html", "counts.json"),
)


@dataclass(frozen=True)
class Data:
    """What `python -m preprocess.build` is asked for.

    `input` is a file, a folder, a pattern (raw/*.jsonl) or a list; `shares` are then the files' shares of the training
    rows. `source: auto` tells the kind of each by its keys. `think_from: reason` takes a teacher's reason where there
    is no thought, `none` writes answers alone. `system` is every row's system prompt; `scenarios`, a file of them
    (`chat.scenarios`), gives a row that has none the prompt of the scenario that it names, or its question's words do.
    `drop` names what drops a record, of what `preprocess.clean` knows; the rest is counted, and the record stays.
    `near_duplicates` is a Jaccard similarity, 0 is off. `decontaminate` names evaluation files. `eval_share` is the
    share of questions held out; `near_eval` drops what comes too near one of them. `cutoff_len` is in tokens of the
    model folder `tokenizer`; 0 is off. `upsample` is how often a training row of the best quality is written. Rows that
    carry an `agreement` (the share of a teacher's samples that say the same) are dropped below `min_agreement`, and
    written the more often the higher it is, up to `upsample` times. `num_samples` is LLaMA-Factory's own. `limit` reads
    the first rows of each file alone.
    """

    input: str | list[str]
    dataset: str
    output: str
    source: str = "auto"
    system: str = ""
    scenarios: str = ""
    think_from: str = "thought"
    normalise: bool = True
    cut_diagnosis: bool = True
    privacy: str = "none"
    drop: list[str] = field(default_factory=lambda: list(DROPPED))
    duplicates: bool = True
    near_duplicates: float = 0.7
    decontaminate: list[str] = field(default_factory=list)
    near_eval: bool = True
    tokenizer: str = ""
    cutoff_len: int = 0
    shares: list[float] = field(default_factory=list)
    upsample: int = 1
    min_agreement: float = 0.0
    eval_share: float = 0.1
    num_samples: int = 0
    limit: int = 0
    dataset_dir: str = "."

    @property
    def inputs(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input


def resolved(data: Data) -> Data:
    """The same with the files of each folder in its place, as they are now."""
    if os.path.realpath(data.output) in {os.path.realpath(path) for path in data.inputs if Path(path).is_dir()}:
        raise UserError(f"output: {data.output} is a folder to read from; what this build writes, the next would read")
    return replace(data, input=files_of(data.inputs))


def files_of(paths: Sequence[str]) -> list[str]:
    """The files that are named: a folder stands for those in it, a pattern (`raw/*step_1*.jsonl`) for those it fits."""
    return [file for path in paths for file in _files(path)]


def _files(path: str) -> list[str]:
    if Path(path).is_dir():
        return files_in(path)
    if Path(path).exists() or not glob.has_magic(path):
        return [path]
    if found := sorted(file for file in glob.glob(path) if Path(file).is_file()):
        return found
    raise UserError(f"input: no file fits {path}; put one there, or name it: input=…")


def files_in(folder: str) -> list[str]:
    """The JSON and JSONL files of a folder, sorted, but for a hub's own."""
    files = [
        path
        for path in sorted(Path(folder).iterdir())
        if path.is_file() and path.suffix in (".json", ".jsonl") and path.name[0] != "." and path.name not in HUBS_OWN
    ]
    if not files:
        raise UserError(f"input: no .json or .jsonl file in {folder}")
    return [str(path) for path in files]


def check(data: Data) -> None:
    """UserError that names the first key whose value can't be meant."""
    for name, value, known in (
        ("source", data.source, ("auto", *READERS)),
        ("think_from", data.think_from, THINK_FROM),
        ("privacy", data.privacy, PRIVACY),
    ):
        if value not in known:
            raise UserError(f"{name}: unknown {value!r}; expected one of {', '.join(known)}")
    if unknown := [name for name in data.drop if name not in EXPLAINED]:
        raise UserError(f"drop: unknown {unknown[0]!r}; expected names out of {', '.join(EXPLAINED)}")
    if not 0 <= data.eval_share < 1:  # also refuses nan
        raise UserError(f"eval_share: expected a share from 0 to below 1, got {data.eval_share}")
    if not 0 <= data.min_agreement <= 1:
        raise UserError(f"min_agreement: expected a share from 0 to 1, got {data.min_agreement}")
    if data.near_duplicates and not 0.7 <= data.near_duplicates <= 1:
        raise UserError(f"near_duplicates: expected 0 (off) or a similarity from 0.7 to 1, got {data.near_duplicates}")
    for name, least in (("limit", 0), ("cutoff_len", 0), ("num_samples", 0), ("upsample", 1)):
        if not least <= getattr(data, name) < 2**31:
            raise UserError(f"{name}: expected {least} or more, got {getattr(data, name)}")
    if data.scenarios:
        read_scenarios(data.scenarios)
    if data.system and data.scenarios:
        raise UserError("system: and scenarios: both name system prompts; leave one of them out")
    if data.shares and (len(data.shares) != len(data.inputs) or not all(0 < share < 2**31 for share in data.shares)):
        raise UserError(f"shares: expected a number above 0 for each of the {len(data.inputs)} inputs")
    if not re.fullmatch(r"[\w-]+", data.dataset):
        raise UserError(f"dataset: expected a name of letters, digits, _ and -, got {data.dataset!r}")
    _check_places(data)


def _check_places(data: Data) -> None:
    if not data.inputs or not all(data.inputs):
        raise UserError("input: expected a file, or a list of files")
    real = [os.path.realpath(path) for path in data.inputs]
    if twice := [path for path, place in zip(data.inputs, real, strict=True) if real.count(place) > 1]:
        raise UserError(f"input: {twice[0]} is named twice; `upsample` and `shares` give a file more weight")
    if not Path(data.dataset_dir).is_dir():
        raise UserError(f"dataset_dir: no folder {data.dataset_dir}")
    written = [*(f"{data.output}/{name}" for name in FILES), f"{data.dataset_dir}/dataset_info.json"]
    for path in [*data.inputs, *data.decontaminate]:
        if os.path.realpath(path) in map(os.path.realpath, written):
            raise UserError(f"{path}: would be overwritten by its own output; name another `output`")
