"""krisfu/delicate_medical_r1_data (ModelScope): a patient's question, a long thought, a short answer.

One row in, as it is published. `instruction` is the textbook task that the question was made from, no system prompt:

    {"instruction": "试述缺铁性贫血的补铁原则。",
     "question": "医生，我贫血在吃铁剂，吃多久才能停？",
     "think": "嗯，用户问的是补铁的疗程……\\n", "answer": "血红蛋白正常后还要再吃三到六个月……",
     "metrics": {"quality_f1": 0.95}}

One Record out:

    Record(id="5d0e…", source="delicate", system="", question="医生，我贫血在吃铁剂，吃多久才能停？",
           think="嗯，用户问的是补铁的疗程……", answer="血红蛋白正常后还要再吃三到六个月……",
           meta={"instruction": "试述缺铁性贫血的补铁原则。", "metrics": {"quality_f1": 0.95}})

One row in, as Zeyi-Lin's script converts it (`*_format.jsonl`); here `instruction` is the system prompt:

    {"instruction": "你是一个医学专家……", "input": "医生，我贫血在吃铁剂，吃多久才能停？",
     "output": "<think>嗯，用户问的是补铁的疗程……\\n</think> \\n 血红蛋白正常后……"}
"""

from __future__ import annotations

from typing import Any

from preprocess.alpaca import read_output
from preprocess.records import Record, optional_field, record_id, rest, text_field

KEYS = ("question", "think", "answer")
CONVERTED_KEYS = ("instruction", "input", "output")
PROVIDED = "提供的答案"


def is_converted(row: dict[str, Any]) -> bool:
    """Whether a row has the converted form: alpaca's keys, told apart by how the script joins thought and answer."""
    output = row.get("output") if row.keys() == set(CONVERTED_KEYS) else None
    return isinstance(output, str) and output.startswith("<think>") and "</think> \n " in output


def to_record(row: dict[str, Any], place: str) -> Record:
    """One row of either form as a Record. Oddities:

    provided_answer    the thought speaks of an answer that it was given (提供的答案), and the model won't see
    thought_…          a fault of `preprocess.think.split`
    """
    if "output" in row:
        system, question = optional_field(row, "instruction", place), text_field(row, "input", place)
        think, answer, odd = read_output(text_field(row, "output", place))
        used = CONVERTED_KEYS
    else:
        question, think, answer = (text_field(row, key, place) for key in KEYS)
        system, odd, used = "", [], KEYS
    meta = rest(row, *used, oddities=odd + ["provided_answer"] * (PROVIDED in think))
    return Record(record_id(row, place, question, think, answer), "delicate", system, question, think, answer, meta)
