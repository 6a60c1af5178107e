"""Turn a recipe's records into registered `<think>` training data.

    python -m preprocess.build recipes/medcot/data.yaml input=medical_o1_sft_Chinese.json

One alpaca row out, in train.json or eval.json of the output folder:

    {"id": "6b1f…", "system": "", "instruction": "夜里咳嗽三周……", "input": "",
     "output": "<think>\\n躺下加重提示……\\n</think>\\n\\n要先排除……"}

What does not become a row stands in dropped.jsonl with its reason; counts.json adds up.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from preprocess import medical_o1
from preprocess.clean import fault, question_key
from preprocess.records import Record, read_rows, sha256_file, to_json
from preprocess.register import entry, locked, read_registry, registry_text
from preprocess.think import join
from recipe import UserError, main, write_all

READERS: dict[str, Callable[[dict[str, Any], str], Record]] = {"medical_o1": medical_o1.to_record}
THINK_FROM = ("thought", "none")


@dataclass(frozen=True)
class Data:
    """The keys of data.yaml.

    `eval_share` is the share of questions held out; `limit` reads only the first rows (0: all); `think_from: none`
    writes answers without thoughts; `system` goes into every row; `dataset_dir` is where dataset_info.json is.
    """

    input: str
    source: str
    dataset: str
    output: str
    system: str = ""
    think_from: str = "thought"
    eval_share: float = 0.1
    limit: int = 0
    dataset_dir: str = "."


def to_row(record: Record, think_from: str = "thought") -> dict[str, str]:
    """One record as an alpaca row, the thought in the spelling that LLaMA-Factory's templates recognise."""
    think = record.think if think_from == "thought" else ""
    return {
        "id": record.id,
        "system": record.system,
        "instruction": record.question,
        "input": "",
        "output": join(think, record.answer),
    }


def is_eval(question: str, share: float) -> bool:
    """Whether a question is held out: by its own hash, so that it never changes sides when data is added."""
    digest = hashlib.sha256(question_key(question).encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def sort_out(placed: Iterator[tuple[str, Record]], share: float) -> tuple[list[Record], list[Record], list[dict]]:
    """Split records into (train, eval, dropped); a dropped one keeps its place and its reason."""
    train: list[Record] = []
    held_out: list[Record] = []
    dropped: list[dict] = []
    seen: dict[str, str] = {}
    for place, record in placed:
        key = question_key(record.question)
        reason, first = fault(record), seen.get(key)
        if not reason and first:
            reason = "duplicate"
        if reason:
            row = {"place": place, "reason": reason} | ({"first": first} if reason == "duplicate" else {})
            dropped.append(row | {"record": record})
            continue
        seen[key] = place
        (held_out if is_eval(record.question, share) else train).append(record)
    return train, held_out, dropped


def build(data: Data) -> None:
    """Run data.yaml: read, sort out, write, register; the registry is changed last."""
    _check(data)
    read_registry(data.dataset_dir)
    rows = islice(read_rows(data.input), data.limit or None)
    reader = READERS[data.source]
    rows = tqdm(rows, desc=data.input, unit=" rows", disable=None)
    records = ((place, _with_system(reader(row, place), data.system)) for place, row in rows)
    train, held_out, dropped = sort_out(records, data.eval_share)
    if not train or (data.eval_share and not held_out):
        raise UserError(
            f"{data.input}: {len(train)} rows to train on and {len(held_out)} held out, after {len(dropped)} dropped; "
            "expected at least one of each (more records, or another eval_share)"
        )
    counts = {
        "read": len(train) + len(held_out) + len(dropped),
        "train": len(train),
        "eval": len(held_out),
        "dropped": dict(sorted(Counter(row["reason"] for row in dropped).items())),
        "input": {"file": Path(data.input).name, "sha256": sha256_file(data.input)},
    }
    write(data, train, held_out, dropped, counts)
    _report(data, counts)


def _with_system(record: Record, system: str) -> Record:
    return replace(record, system=system) if system else record


def _check(data: Data) -> None:
    if data.source not in READERS:
        raise UserError(f"source: unknown kind {data.source!r}; known: {', '.join(READERS)}")
    if data.think_from not in THINK_FROM:
        raise UserError(f"think_from: expected one of {', '.join(THINK_FROM)}, got {data.think_from!r}")
    if not 0 <= data.eval_share < 1:  # also refuses nan
        raise UserError(f"eval_share: expected a share from 0 to below 1, got {data.eval_share}")
    if not 0 <= data.limit < 2**31:
        raise UserError(f"limit: expected 0 (all) or a number of rows, got {data.limit}")
    if not re.fullmatch(r"[\w-]+", data.dataset):
        raise UserError(f"dataset: expected a name of letters, digits, _ and -, got {data.dataset!r}")
    if not Path(data.dataset_dir).is_dir():
        raise UserError(f"dataset_dir: no folder {data.dataset_dir}")
    written = [f"{data.output}/{name}" for name in ("train.json", "eval.json", "dropped.jsonl", "counts.json")]
    if os.path.realpath(data.input) in map(os.path.realpath, [*written, f"{data.dataset_dir}/dataset_info.json"]):
        raise UserError(f"{data.input}: would be overwritten by its own output; name another `output`")


def write(data: Data, train: list[Record], held_out: list[Record], dropped: list[dict], counts: dict) -> None:
    """Write the files and the registry, all or none; without held-out rows an earlier eval set goes, too."""
    out = Path(data.output)
    sets = {"train": train} | ({"eval": held_out} if held_out else {})
    texts = {
        out / f"{name}.json": to_json([to_row(record, data.think_from) for record in records], indent=1) + "\n"
        for name, records in sets.items()
    }
    texts[out / "dropped.jsonl"] = "".join(to_json(row) + "\n" for row in dropped)
    texts[out / "counts.json"] = to_json(counts, indent=1) + "\n"
    names = {f"{data.dataset}_{name}": entry(out / f"{name}.json", data.dataset_dir) for name in sets}
    with locked(data.dataset_dir):
        gone = () if held_out else (f"{data.dataset}_eval",)
        texts[Path(data.dataset_dir) / "dataset_info.json"] = registry_text(names, data.dataset_dir, gone)
        write_all(texts)
        if not held_out:
            (out / "eval.json").unlink(missing_ok=True)


def _report(data: Data, counts: dict) -> None:
    reasons = ", ".join(f"{reason} {n}" for reason, n in counts["dropped"].items()) or "none"
    print(f"{data.input}: {counts['read']} rows read")
    print(f"  train    {counts['train']:>6}  {data.dataset}_train")
    print(f"  eval     {counts['eval']:>6}  {data.dataset + '_eval' if counts['eval'] else '(none held out)'}")
    print(f"  dropped  {sum(counts['dropped'].values()):>6}  {reasons}")
    print(f"  -> {data.output}/")


if __name__ == "__main__":
    main(Data, build, __doc__)
