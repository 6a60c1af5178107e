"""The kinds of files that are read: how a row shows its kind, who reads it, where it comes from.

>>> recognise({"id": 17, "feature_content": "性别: 女…"}, "records.jsonl:1")
'healthai'
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preprocess import alpaca, delicate, diagnosis, healthai, medical_o1, medical_r1, question, sharegpt
from preprocess.document import MAX_CHARACTERS
from preprocess.records import Record, open_text, read_rows
from recipe import UserError

Keys = tuple[str, ...]
QUESTION_KEYS = (
    *("question", "Question", "exam_question", "problem", "query", "prompt", "instruction", "input", "text"),
    *("messages", "conversations"),
)


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
    "question": Reader(
        question.to_record,
        tuple((key,) for key in question.KEYS),  # and nothing that could be an answer
        "plain questions without an answer",
    ),
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
    if question.is_plain(row):
        return "question"
    shown = (
        name
        for name, reader in READERS.items()
        if name != "question" and any(row.keys() >= set(shape) for shape in reader.shapes)
    )
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
        # A converted row among alpaca rows is one of them: both readers read both.
        alike = {first, _kind(row)} <= {"alpaca", "delicate"} and "output" in row
        if not kind and not alike and _kind(row) not in (first, ""):
            what = f"a row of kind {_kind(row)} (keys {_keys(row)}) in a file of kind {first}"
            raise UserError(f"{place}: {what}; keep one kind a file, or name the kind as source")
        yield place, READERS[first].to_record(row, place)


def _shapes(reader: Reader) -> str:
    return " or ".join(", ".join(shape) for shape in reader.shapes)


def _keys(row: dict[str, Any]) -> str:
    return ", ".join(map(repr, list(row)[:12])) or "(none)"


def questions_of(path: str) -> Iterator[str]:
    """The questions of an evaluation file (JSON, JSONL, CSV or Parquet), as its kind's reader gives them, or what
    stands under the first of QUESTION_KEYS.

    Raises UserError for a row without one, for a file without a row, and as `read_rows` does.
    """
    empty = True
    for place, row in _table_rows(path):
        yield _question(row, place)
        empty = False
    if empty:
        raise UserError(f"{path}: no question in it; name an evaluation file, or leave it out of decontaminate")


def _question(row: dict[str, Any], place: str) -> str:
    if kind := _kind(row):
        with suppress(UserError):  # a row that can't be learned from still has a question
            if asked := READERS[kind].to_record(row, place).question:
                return asked
    if text := next((text for key in QUESTION_KEYS if (text := _user_text(row.get(key)))), ""):
        return text
    raise UserError(f"{place}: no question; the row has {_keys(row)}, expected one of {', '.join(QUESTION_KEYS)}")


def _user_text(value: Any) -> str:
    """The text under a key; of a dialogue, what the user says."""
    if isinstance(value, list):
        turns = [turn for turn in value if isinstance(turn, dict)]
        said = (turn for turn in turns if (turn.get("role") or turn.get("from")) in ("user", "human"))
        value = "\n".join(str(turn.get("content") or turn.get("value") or "") for turn in said)
    return value.strip() if isinstance(value, str) else ""


def _table_rows(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) of any evaluation file."""
    if path.lower().endswith(".csv"):
        yield from _csv_rows(path)
    elif path.lower().endswith(".parquet"):
        yield from _parquet_rows(path)
    else:
        yield from read_rows(path)


def _csv_rows(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(MAX_CHARACTERS)
    with open_text(path) as file:
        try:
            yield from ((f"{path}: row {number}", row) for number, row in enumerate(csv.DictReader(file), 1))
        except csv.Error as error:
            raise UserError(f"{path}: not CSV ({error})") from None


def _parquet_rows(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    if not Path(path).is_file():
        raise UserError(f"{path}: {'is a folder; name a file' if Path(path).is_dir() else 'no such file'}")
    try:
        groups = pyarrow.parquet.ParquetFile(path).iter_batches()
        rows = (row for group in groups for row in group.to_pylist())
        yield from ((f"{path}: row {number}", row) for number, row in enumerate(rows, 1))
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path}: not a Parquet file ({error})") from None
