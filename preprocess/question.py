"""Plain questions without an answer yet; a teacher answers them (`make label`).

One row in:

    {"question": "夜里咳嗽三周，躺下加重，是什么？", "options": {"A": "感冒", "B": "哮喘"}}

One Record out:

    Record(id="2f9a…", source="question", system="", question="夜里咳嗽三周，躺下加重，是什么？",
           think="", answer="", meta={"options": {"A": "感冒", "B": "哮喘"}})
"""

from __future__ import annotations

from typing import Any

from preprocess.records import Record, optional_field, record_id, rest, text_field

KEYS = ("question", "Question", "prompt")
ASIDE = {"id", "system", "scenario", "source", "options"}


def is_plain(row: dict[str, Any]) -> bool:
    """Whether a row asks and has nothing that could be an answer."""
    return len(row.keys() - ASIDE) == 1 and any(key in row for key in KEYS)


def to_record(row: dict[str, Any], place: str) -> Record:
    """One row as a Record; the question stands under the first of KEYS that the row has."""
    key = next((key for key in KEYS if key in row), KEYS[0])
    question = text_field(row, key, place)
    system = optional_field(row, "system", place)
    return Record(record_id(row, place, question), "question", system, question, "", "", rest(row, key, "system"))
