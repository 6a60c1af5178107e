"""Plain alpaca rows, with or without a thought in the output; MedCoT's `{input, output}` rows, too.

One row in (the thought in any spelling that `preprocess.think` reads, or under `think` or `reasoning_content`):

    {"instruction": "判断化验单是否异常。", "input": "血钾 2.9 mmol/L，血钠 140 mmol/L",
     "output": "<think>血钾低于3.5……</think>\\n血钾偏低，血钠正常。", "system": "你是检验科医生。"}

One Record out; the question is joined as LLaMA-Factory joins it:

    Record(id="e81b…", source="alpaca", system="你是检验科医生。",
           question="判断化验单是否异常。\\n血钾 2.9 mmol/L，血钠 140 mmol/L",
           think="血钾低于3.5……", answer="血钾偏低，血钠正常。", meta={})
"""

from __future__ import annotations

from typing import Any

from preprocess.records import Record, optional_field, own_thought, record_id, rest, text_field
from preprocess.think import split
from recipe import UserError

PROMPT_KEYS = ("instruction", "input", "system")


def to_record(row: dict[str, Any], place: str) -> Record:
    """One row as a Record. Oddities:

    not_one_turn    there is a `history`: a Record holds one turn, so it has no answer, and `meta` the whole row
    thought_…       a fault of `preprocess.think.split`
    """
    if not row.keys() & {"instruction", "input"}:
        raise UserError(f"{place}: key 'instruction' is missing; the row has {', '.join(map(repr, row))}")
    instruction, input_, system = (optional_field(row, key, place) for key in PROMPT_KEYS)
    question = "\n".join(filter(None, (instruction, input_)))
    output = text_field(row, "output", place)
    if row.get("history"):
        meta = rest(row, oddities=["not_one_turn"])
        return Record(record_id(row, place, question, output), "alpaca", system, question, "", "", meta)
    thought, key = own_thought(row, place)
    think, answer, odd = read_output(output, thought)
    meta = rest(row, *PROMPT_KEYS, "output", key, oddities=odd)
    return Record(record_id(row, place, question, think, answer), "alpaca", system, question, think, answer, meta)


def read_output(output: str, thought: str = "") -> tuple[str, str, list[str]]:
    """(think, answer, oddities) of an output, whose thought came with it or stands in it in any spelling."""
    if thought:
        return thought, output, []
    parts = split(output)
    return parts.think, parts.answer, [f"thought_{parts.fault}"] if parts.fault else []
