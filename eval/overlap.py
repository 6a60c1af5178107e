"""Held-out questions that stand in the training rows: on those, no score says what the model would do with others.

`make data` keeps the two apart; sets that were made elsewhere need not be. A question counts as found where a training
row holds most of it, as `preprocess.contamination` tells: by runs of 13 characters, boilerplate left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from preprocess.contamination import Guard
from preprocess.records import read_rows
from preprocess.register import dataset_file, read_registry
from recipe import UserError, read_yaml


def overlap(train: str, dataset: str, dataset_dir: str = ".") -> dict[str, Any]:
    """`{"held_out": questions, "training_rows": rows, "found": ids of the questions that one of them holds}`.

    `{"not_counted": why}` where a set can't be read so: a conversation, one on a hub, no question in it.
    """
    try:
        sets = str(read_yaml(train)[0].get("dataset") or "").split(",")
        ids, questions = zip(*_questions(dataset, dataset_dir), strict=True)
        rows = sum(1 for _ in _texts(sets, dataset_dir))
        guard = Guard({dataset: questions}, ordinary=_texts(sets, dataset_dir))
        hits = {hit.number for hit in guard.check_all(_texts(sets, dataset_dir)) if hit}
    except (UserError, ValueError) as error:
        return {"not_counted": str(error)}
    return {"held_out": len(ids), "training_rows": rows, "found": [ids[number] for number in sorted(hits)]}


def _questions(dataset: str, dataset_dir: str) -> Iterator[tuple[str, str]]:
    columns = read_registry(dataset_dir).get(dataset, {}).get("columns", {})
    names = columns.get("prompt", "instruction"), columns.get("query", "input")
    for number, (place, row) in enumerate(read_rows(str(dataset_file(dataset, dataset_dir)))):
        parts = [row.get(name) for name in names]
        question = "\n".join(part for part in parts if isinstance(part, str) and part)
        if not question:
            raise UserError(f"{place}: no question under {names[0]!r}")
        yield str(row.get("id", number)), question


def _texts(sets: list[str], dataset_dir: str) -> Iterator[str]:
    for name in sets:
        for _, row in read_rows(str(dataset_file(name.strip(), dataset_dir))):
            yield "\n".join(_strings({key: value for key, value in row.items() if key != "id"}))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)
