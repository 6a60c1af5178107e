"""ShareGPT's `conversations` and OpenAI's `messages`, one question and one answer each, with or without a thought.

One row in (or `{"messages": [{"role": "user", "content": "…"}, …]}`; a system turn, or a `system` key):

    {"conversations": [{"from": "human", "value": "孩子发热38.2℃，要吃退烧药吗？"},
                       {"from": "gpt", "value": "<think>\\n看精神和月龄……\\n</think>\\n\\n精神好可以先观察……"}]}

One Record out:

    Record(id="90ab…", source="sharegpt", system="", question="孩子发热38.2℃，要吃退烧药吗？",
           think="看精神和月龄……", answer="精神好可以先观察……", meta={})
"""

from __future__ import annotations

from typing import Any

from preprocess.alpaca import read_output
from preprocess.records import Record, optional_field, own_thought, record_id, rest, text_field
from recipe import UserError

ROLES = {"human": "user", "gpt": "assistant"}  # ShareGPT's words for OpenAI's
SHAPES = {"conversations": ("from", "value"), "messages": ("role", "content")}


def to_record(row: dict[str, Any], place: str) -> Record:
    """One row as a Record. Oddities:

    not_one_turn    not one question and one answer (more turns, tools): it has no answer, and `meta` the whole row
    thought_…       a fault of `preprocess.think.split`
    """
    shape, turns = read_turns(row, place)
    system = optional_field(row, "system", place)
    if turns and turns[0][0] == "system":
        system = "\n".join(filter(None, (system, turns.pop(0)[1])))
    texts = [text for _, text, _ in turns]
    if [role for role, _, _ in turns] != ["user", "assistant"]:
        question = next((text for role, text, _ in turns if role == "user"), "")
        meta = rest(row, oddities=["not_one_turn"])
        return Record(record_id(row, place, *texts), "sharegpt", system, question, "", "", meta)
    think, answer, odd = read_output(texts[1], turns[1][2])
    meta = rest(row, shape, "system", oddities=odd)
    return Record(record_id(row, place, texts[0], think, answer), "sharegpt", system, texts[0], think, answer, meta)


def read_turns(row: dict[str, Any], place: str) -> tuple[str, list[tuple[str, str, str]]]:
    """The key of the dialogue, and its turns as (role, text, thought); UserError names the turn that is none."""
    shape = next((key for key in SHAPES if key in row), "")
    if not isinstance(row.get(shape), list):
        what = f"got {type(row[shape]).__name__}" if shape else f"the row has {', '.join(map(repr, row)) or 'no keys'}"
        raise UserError(f"{place}: expected a list of turns under 'conversations' or 'messages'; {what}")
    role, text = SHAPES[shape]
    turns = []
    for number, turn in enumerate(row[shape], 1):
        where = f"{place}: {shape}, turn {number}"
        if not isinstance(turn, dict):
            raise UserError(f"{where}: expected an object, got {type(turn).__name__}")
        name = text_field(turn, role, where)
        turns.append((ROLES.get(name, name), optional_field(turn, text, where), own_thought(turn, where)[0]))
    return shape, turns
