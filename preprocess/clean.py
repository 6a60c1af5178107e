"""What can be wrong with a record, by name: what its reader found, and what is found in its texts here.

`data.yaml` says which of these names drop a record (`drop: […]`); the others are counted and shown, and it stays.
Nothing here changes a record.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

from preprocess import healthai
from preprocess.normalise import HAN, is_mojibake
from preprocess.records import Record
from preprocess.think import TAG, has_tag

_HALF_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_PUNCTUATION = re.compile(r"[\s,!?;:\"'、。“”‘’…]|(?<!\d)\.|\.(?!\d)")
_WORDS = re.compile(f"[{HAN}]|[^\\W\\d_{HAN}]+")

THINKING = ("medical_o1", "medical_r1", "delicate")  # sources that promise a thought in every row
SHORT_THOUGHT = 20  # characters
AROUND = 15  # characters shown on both sides of what was found
LEAKED = 13  # characters of an answer that stands in its question whole
# A thought of LONG characters that shares less of its answer's pairs of characters (words) than this is flagged: none
# of 241 real rows; with thoughts swapped between rows, 99 in 100 English and 52 in 100 Chinese ones.
LONG, SHARED = 300, 0.08

_PROVIDED = re.compile(
    r"(?:提供的?|给出的|已经?给出了?|给定的?)(?:标准|参考|正确)?答案|(?<!没有)(?<![无非])(?:标准|参考)答案(?=[里中给提说])"
    r"|\b(?:provided|given|reference|supplied) answer|\banswer (?:(?:that|which) was )?(?:provided|given|supplied)\b",
    re.IGNORECASE,
)
_HTML = re.compile(
    r"<(?:br|p|div|span|b|i|a|img|table|tr|td|li|ul|font|script)\b[^<>]{0,200}/?>|&(?:nbsp|lt|gt|amp);", re.IGNORECASE
)
_JSON_RESIDUE = re.compile(r'"(?:Complex_CoT|Response|Question|reasoning_content|role)"\s*:')


def _texts(record: Record) -> tuple[str, str, str]:
    return record.question, record.think, record.answer


def _answer_in_question(record: Record) -> bool:
    return len(record.answer) >= LEAKED and record.answer in record.question


def _off_answer(record: Record) -> bool:
    pairs = _pairs(record.answer) if len(record.think) >= LONG else set()
    return len(pairs) >= 20 and len(pairs & _pairs(record.think)) < SHARED * len(pairs)


def _pairs(text: str) -> set[tuple[str, str]]:
    return set(pairwise(_WORDS.findall(text.casefold())))


_PATTERNS = {
    "stray_tag": TAG,
    "mojibake": re.compile("\ufffd|锟斤拷"),
    "provided_answer": _PROVIDED,
    "json_residue": _JSON_RESIDUE,
    "html": _HTML,
    "fence": re.compile("```"),
}


class Check(NamedTuple):
    what: str
    found: Callable[[Record], bool]


# Without these a row can't be written, or not be taken apart again: they drop a record whatever `drop` says.
NEEDED: dict[str, Check] = {
    "unlabelled": Check("a patient record that no teacher has labelled", lambda r: r.source == "healthai"),
    "empty_question": Check("no question", lambda r: not r.question),
    "empty_answer": Check("no answer", lambda r: not r.answer),
    "stray_tag": Check("a thought tag inside a text", lambda r: any(map(has_tag, _texts(r)))),
}
CHECKS: dict[str, Check] = NEEDED | {
    "empty_thought": Check(
        "no thought, from a source that promises one", lambda r: not r.think and r.source in THINKING
    ),
    "mojibake": Check("characters lost or in the wrong encoding", lambda r: any(map(is_mojibake, _texts(r)))),
    "provided_answer": Check(
        "the thought cites an answer it was given, which the student never sees",
        lambda r: bool(_PROVIDED.search(r.think)),
    ),
    "answer_in_question": Check("the answer stands in the question", _answer_in_question),
    "thought_is_answer": Check("thought and answer are the same", lambda r: bool(r.think) and r.think == r.answer),
    "short_thought": Check(f"a thought under {SHORT_THOUGHT} characters", lambda r: 0 < len(r.think) < SHORT_THOUGHT),
    "off_answer": Check("the thought shares next to nothing with the answer", _off_answer),
    "json_residue": Check("keys of a prompt's JSON in a text", lambda r: any(map(_JSON_RESIDUE.search, _texts(r)))),
    "html": Check("HTML in a text", lambda r: any(map(_HTML.search, _texts(r)))),
    "fence": Check("a Markdown code fence in a text", lambda r: any("```" in text for text in _texts(r))),
}
# What readers find; each name is explained where its reader's ODDITIES are.
ODDITIES: dict[str, str] = {
    "no_label": "the teacher's reply gave no label",
    "parse_failure": "the teacher's reply could not be read, its raw text stands where the reason should",
    "fallback_label": "a script's stopgap phrase stands where the disease should",
    "unreadable_label": "a label that is neither text nor a list of it",
    "not_one_turn": "a dialogue of several turns, or with tools",
    "thought_unclosed": "a thought that is opened and never closed",
    "thought_repeated": "thought tags in a thought or an answer",
    "thought_unopened": "a thought without its opening tag; it is read",
    "thought_leading": "text before the thought; it opens the answer",
    "runaway_reason": "a reason that goes on and on",
    "no_reason": "a disease without a reason",
    "literal_newline": "a backslash and an n for a line break in a label; mended",
    "sex_prefix": "the patient's sex before the disease",
    "comma_joined": "diseases joined by commas",
    "misspelt_disease": "a disease one character off what the record says",
    "label_list": "a label that was a list; joined by ；",
    "replacement_character": "a lost character (U+FFFD) in a label or its record",
    "echo_differs": "the teacher's echo of the record is not the record",
    "other_layout": "none of the contest's three layouts",
    "repeated_label": "a field's label stands twice",
    "several_lines": "a field of several lines",
    "inner_label": "something like a label inside a field",
    "sex_spelled_out": "男性 or 女性 for 男 or 女",
    "sex_unknown": "no sex that can be read",
    "negative_age": "an age below 0",
    "age_zero": "an age of 0",
    "child": "an age of 0 to 13",
    "age_unknown": "no age that can be read",
    "placeholder": "a placeholder instead of a blank",
    "form_text": "a form's own words",
    "trailing_space": "white space at the end of a field",
    "covid_screening": "boilerplate of COVID screening",
    "diagnosis_tail": "a diagnosis at the record's end",
}
# Of these, what says nothing against the record as training data: what was mended, and what patients are like.
HARMLESS = frozenset(healthai.ODDITIES) | {"literal_newline", "label_list", "comma_joined", "thought_unopened"}
EXPLAINED: dict[str, str] = {name: check.what for name, check in CHECKS.items()} | ODDITIES
# What is dropped unless `drop` says otherwise, in the order in which one reason is named for a record with several.
DROPPED = (
    *("no_label", "parse_failure", "fallback_label", "unreadable_label", "not_one_turn", "thought_unclosed"),
    *("thought_repeated", "runaway_reason", *NEEDED),
    *("empty_thought", "mojibake", "provided_answer", "answer_in_question", "thought_is_answer"),
)


def faults(record: Record) -> list[str]:
    """All that is odd or wrong with `record`, by name, what may drop it first."""
    found = {name for name, check in CHECKS.items() if check.found(record)}
    return [name for name in _ORDER if name in found or name in record.meta.get("oddities", ())]


_ORDER = tuple(dict.fromkeys([*DROPPED, *EXPLAINED]))


def excerpt(name: str, record: Record) -> str:
    """What was found, with a few characters around it; empty for what has no one place."""
    pattern = _PATTERNS.get(name)
    for text in _texts(record) if pattern else ():
        if match := pattern.search(text):
            return " ".join(text[max(match.start() - AROUND, 0) : match.end() + AROUND].split())
    return ""


def question_key(question: str) -> str:
    """What two questions have in common when they are the same but for form: white space, case, full width and
    sentence punctuation don't count; signs, decimals and superscripts do (HBsAg(+) is not HBsAg(-), 3.5 not 35).

    For comparison alone; stored text is never changed by it.
    """
    text = unicodedata.normalize("NFC", question).translate(_HALF_WIDTH).casefold()
    return _PUNCTUATION.sub("", text) or question
