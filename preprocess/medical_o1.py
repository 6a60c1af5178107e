"""FreedomIntelligence/medical-o1-reasoning-SFT (Apache-2.0): a question, a chain of thought, a response.

One row in (the same keys in all four files; other keys are kept in `meta`):

    {"Question": "夜里咳嗽三周，躺下加重，是什么？",
     "Complex_CoT": "躺下加重提示反流或哮喘……",
     "Response": "要先排除咳嗽变异性哮喘……"}

One Record out:

    Record(id="6b1f…", source="medical_o1", system="", question="夜里咳嗽三周，躺下加重，是什么？",
           think="躺下加重提示反流或哮喘……", answer="要先排除咳嗽变异性哮喘……", meta={})
"""

from __future__ import annotations

from typing import Any

from preprocess.records import Record, record_id, rest, text_field

KEYS = ("Question", "Complex_CoT", "Response")


def to_record(row: dict[str, Any], place: str) -> Record:
    """One row as a Record; UserError names the place and the key where a key is missing or no string."""
    question, think, answer = (text_field(row, key, place) for key in KEYS)
    id_ = record_id(row, place, question, think, answer)
    return Record(id_, "medical_o1", "", question, think, answer, rest(row, *KEYS))
