"""What a build leaves: rows, what was dropped, found and changed, the counts, the card, the registry; all or none."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TextIO

from preprocess.card import Card
from preprocess.data import FILES, Data
from preprocess.records import Record, content_id, sha256_file, to_json
from preprocess.register import entry, locked, registry_text
from preprocess.steps import Item, times, to_row
from recipe import UserError, staged

PLACES = ("input", "output", "dataset_dir", "dataset", "decontaminate", "tokenizer")  # settings that name places


def write(
    data: Data, items: Iterator[tuple[str, Item]], clusters: list[dict[str, Any]], questions: dict[str, int]
) -> dict[str, Any]:
    """Write all files of a build and the registry, and return the counts; a file that would be empty goes.

    `questions` is, by evaluation file, how many it holds.
    """
    out = Path(data.output)
    with locked(data.dataset_dir), staged([*(out / name for name in FILES), registry_of(data)]) as files:
        texts = dict(zip(FILES, files, strict=False))
        rows = Rows(data, {name: texts[name] for name in FILES if name.endswith((".json", ".jsonl"))})
        card = Card(data)
        for side, item in items:
            rows.add(side, item)
            card.add(side, item)
        for cluster in clusters:
            rows.lists["clusters.jsonl"].add(cluster)
        _expect_rows(data, rows.counts, card.dropped)
        digests = rows.close()
        summary = summarise(data, rows, card, len(clusters), digests, questions)
        texts["counts.json"].write(to_json(summary, indent=1) + "\n")
        texts["card.md"].write(card.markdown(summary, clusters))
        texts["card.html"].write(card.html(summary, clusters))
        files[-1].write(registry(data, bool(rows.counts["eval"])))
    for name in rows.lists.keys() - digests.keys() - {"dropped.jsonl"}:
        (out / name).unlink(missing_ok=True)
    return summary


class Rows:
    """The lists that are written item by item, and how many of each went in."""

    def __init__(self, data: Data, files: dict[str, TextIO]) -> None:
        self.data, self.counts = data, Counter[str]()
        self.ids: dict[int, int] = {}  # by an id's hash, how many rows were renamed for it
        self.lists = {
            name: JsonFile(file, name.endswith(".json")) for name, file in files.items() if name != "counts.json"
        }

    def add(self, side: str, item: Item) -> None:
        record = item.record
        self.counts[side] += 1
        if side == "dropped":
            self._line("dropped", item, {"reason": item.reason, **item.evidence, "record": record})
        else:
            record = self._with_own_id(record)
            row, count = to_row(record, self.data.think_from), times(item, self.data) if side == "train" else 1
            self.counts["repeated"] += count - 1
            for _ in range(count):
                self.lists[f"{side}.json"].add(row)
        for field, kind, start, end in item.identifiers:
            found = {"side": side, "field": field, "kind": kind, "start": start, "end": end}
            self._line("identifiers", item, found)
        if names := record.meta.get("weak_reference"):
            self._line("weak_reference", item, {"id": record.id, "side": side, "diseases": names})

    def _line(self, name: str, item: Item, values: dict[str, Any]) -> None:
        self.lists[f"{name}.jsonl"].add({"place": item.place, **values})

    def _with_own_id(self, record: Record) -> Record:
        """The record, under an id that no row before it has: a second 17 becomes 17-2."""
        id_, number = record.id, self.ids.get(_hash(record.id), 0)
        while _hash(id_) in self.ids:
            number += 1
            id_ = f"{record.id}-{number + 1}"
        self.ids[_hash(record.id)] = number
        self.ids.setdefault(_hash(id_), 0)
        self.counts["renamed"] += id_ != record.id
        return replace(record, id=id_)

    def close(self) -> dict[str, str]:
        """End the lists; the SHA-256 of each that holds something, by file name."""
        return {name: list_.close() for name, list_ in self.lists.items() if list_.rows}


def _hash(id_: str) -> int:
    return int(content_id(id_), 16)


class JsonFile:
    """A JSON list with a row a line, or JSONL, written row by row."""

    def __init__(self, file: TextIO, brackets: bool) -> None:
        self.file, self.brackets, self.rows, self.digest = file, brackets, 0, hashlib.sha256()

    def add(self, row: Any) -> None:
        text = to_json(row)
        self._write((",\n " if self.rows else "[\n ") + text if self.brackets else f"{text}\n")
        self.rows += 1

    def close(self) -> str:
        if self.brackets:
            self._write("\n]\n")
        return self.digest.hexdigest()

    def _write(self, text: str) -> None:
        self.file.write(text)
        self.digest.update(text.encode())


def _expect_rows(data: Data, counts: Counter[str], dropped: Counter[str]) -> None:
    if counts["train"] and (counts["eval"] or not data.eval_share):
        return
    what = f"{counts['train']} rows to train on and {counts['eval']} held out, after {counts['dropped']} dropped"
    todo = "expected at least one of each (more records, or another eval_share)"
    if dropped["unlabelled"] == counts["dropped"] > 0:
        todo = "these records have no label yet; let a teacher label them first, then name its file as input"
    reasons = ", ".join(f"{name} {number}" for name, number in sorted(dropped.items()))
    raise UserError(f"{', '.join(data.inputs)}: {what}{f' ({reasons})' * bool(reasons)}; {todo}")


def summarise(
    data: Data, rows: Rows, card: Card, clusters: int, digests: dict[str, str], questions: dict[str, int]
) -> dict[str, Any]:
    """counts.json: `read` is the sum of `train`, `eval` and `dropped`; `repeated` rows come on top."""
    counts = rows.counts
    return {
        "read": counts["train"] + counts["eval"] + counts["dropped"],
        **{name: counts[name] for name in ("train", "eval", "repeated", "renamed")},
        **{name: dict(sorted(getattr(card, name).items())) for name in ("dropped", "flags", "changed", "identifiers")},
        "near_duplicate_clusters": clusters,
        "sources": sorted(card.sources),
        "tokenizer": card.tokenizer,
        "inputs": [_file(path) for path in data.inputs],
        "decontaminated_against": [
            _file(path) | {"questions": questions[path], "records": card.against[path]} for path in data.decontaminate
        ],
        "outputs": digests,
        "settings": {name: value for name, value in asdict(data).items() if name not in PLACES},
    }


def _file(path: str) -> dict[str, str]:
    return {"file": Path(path).name, "sha256": sha256_file(path)}


def registry_of(data: Data) -> Path:
    return Path(data.dataset_dir) / "dataset_info.json"


def registry(data: Data, held_out: bool) -> str:
    """The registry with this build's entries; without held-out rows an earlier entry of theirs goes."""
    names = {f"{data.dataset}_train": entry(Path(data.output) / "train.json", data.dataset_dir)}
    if data.num_samples:
        names[f"{data.dataset}_train"]["num_samples"] = data.num_samples
    if held_out:
        names[f"{data.dataset}_eval"] = entry(Path(data.output) / "eval.json", data.dataset_dir)
    return registry_text(names, data.dataset_dir, () if held_out else (f"{data.dataset}_eval",))
