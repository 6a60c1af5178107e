"""The kinds of files that are read: how a row shows its kind, who reads it, where it comes from.

>>> recognise({"id": 17, "feature_content": "性别: 女…"}, "records.jsonl:1")
'healthai'
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from preprocess import alpaca, delicate, diagnosis, healthai, medical_o1, medical_r1, question, sharegpt
from preprocess.records import Record, read_rows
from recipe import UserError

Keys = tuple[str, ...]


@dataclass(frozen=True)
class Reader:
    """A kind of file: `shapes` are the sets of keys, any of which shows it; an unknown licence is an empty string."""

    to_record: Callable[[dict[str, Any], str], Record]
    shapes: tuple[Keys, ...]
    what: str
    where: str = ""
    licence: str = ""


# Asked in this order: the first whose keys are all there reads the row, whatever other keys it has.
READERS: dict[str, Reader] = {
    "medical_o1": Reader(
        medical_o1.to_record,
        (medical_o1.KEYS,),
        "medical-o1-reasoning-SFT: exam-like questions, thoughts and answers by GPT-4o; en, zh, en_mix, zh_mix",
        "https://huggingface.co/datasets/FreedomIntelligence/medical-o1-reasoning-SFT",
        "Apache-2.0",
    ),
    "medical_r1": Reader(
        medical_r1.to_record,
        (medical_r1.KEYS,),
        "Medical-R1-Distill-Data: questions of medical-o1, thoughts and answers by DeepSeek-R1; en, zh",
        "https://huggingface.co/datasets/FreedomIntelligence/Medical-R1-Distill-Data",
        "Apache-2.0",
    ),
    "delicate": Reader(
        delicate.to_record,
        (delicate.KEYS,),  # and the converted form, which has alpaca's keys
        "delicate_medical_r1_data: patients' questions, long thoughts, short answers; zh",
        "https://modelscope.cn/datasets/krisfu/delicate_medical_r1_data",
    ),
    "diagnosis": Reader(
        diagnosis.to_record,
        (diagnosis.LABELS, ("bingli_json", "feature_content")),
        "patient records with a teacher's diagnosis and reason; zh. What may be done with it: as the records' "
        "source and the teacher's terms say",
    ),
    "healthai": Reader(
        healthai.to_record,
        (("feature_content",),),
        "HealthAI 2025, step 1 and 2: patient records without a label; zh. The contest's rules apply",
        "https://competition.pkucxpl.com/",
    ),
    "sharegpt": Reader(
        sharegpt.to_record, tuple((key,) for key in sharegpt.SHAPES), "ShareGPT or OpenAI messages, one turn"
    ),
    "alpaca": Reader(alpaca.to_record, (("input", "output"), ("instruction", "output")), "alpaca rows, one turn"),
    "question": Reader(question.to_record, tuple((key,) for key in question.KEYS), "plain questions without an answer"),
}


def recognise(row: dict[str, Any], place: str) -> str:
    """The kind of a row, a key of READERS; UserError with the keys seen and the kinds known where it has none."""
    if name := _kind(row):
        return name
    kinds = "; ".join(f"{name} ({_shapes(reader)})" for name, reader in READERS.items())
    raise UserError(f"{place}: unknown kind of row with the keys {_keys(row)}; known: {kinds}")


def _kind(row: dict[str, Any]) -> str:
    if delicate.is_converted(row):
        return "delicate"
    shown = (name for name, reader in READERS.items() if any(row.keys() >= set(shape) for shape in reader.shapes))
    return next(shown, "")


def read_records(path: str, kind: str = "") -> Iterator[tuple[str, Record]]:
    """Yield (place, Record) for every row of a file. Without a `kind` the first row shows it, and the others must, too.

    Raises UserError for an unknown kind, for the first row of another kind, and as `read_rows` and the reader do.
    """
    if kind and kind not in READERS:
        raise UserError(f"source: unknown kind {kind!r}; known: {', '.join(READERS)}")
    first = kind
    for place, row in read_rows(path):
        first = first or recognise(row, place)
        if not kind and _kind(row) not in (first, ""):
            what = f"a row of kind {_kind(row)} (keys {_keys(row)}) in a file of kind {first}"
            raise UserError(f"{place}: {what}; keep one kind a file, or name the kind as source")
        yield place, READERS[first].to_record(row, place)


def _shapes(reader: Reader) -> str:
    return " or ".join(", ".join(shape) for shape in reader.shapes)


def _keys(row: dict[str, Any]) -> str:
    return ", ".join(map(repr, list(row)[:12])) or "(none)"
