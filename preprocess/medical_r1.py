"""FreedomIntelligence/Medical-R1-Distill-Data, English and Chinese (Apache-2.0): what DeepSeek-R1's API gave.

One row in (other keys are kept in `meta`):

    {"question": "久站后小腿胀痛，要做什么检查？",
     "reasoning (reasoning_content)": "久站加重，先想静脉回流……",
     "response (content)": "先做下肢静脉超声……"}

One Record out:

    Record(id="c0a4…", source="medical_r1", system="", question="久站后小腿胀痛，要做什么检查？",
           think="久站加重，先想静脉回流……", answer="先做下肢静脉超声……", meta={})
"""

from __future__ import annotations

from typing import Any

from preprocess.records import Record, record_id, rest, text_field

KEYS = ("question", "reasoning (reasoning_content)", "response (content)")


def to_record(row: dict[str, Any], place: str) -> Record:
    """One row as a Record; UserError names the place and the key where a key is missing or no string."""
    question, think, answer = (text_field(row, key, place) for key in KEYS)
    id_ = record_id(row, place, question, think, answer)
    return Record(id_, "medical_r1", "", question, think, answer, rest(row, *KEYS))
