"""What a teacher's reply must be to become training data: one named gate each, asked in this order.

    >>> gate(Candidate("我是AI，无法提供诊断。", "", "stop", None, "性别: 女…"), Gates())
    'refusal'

A reply that fails one gate is kept in failed.jsonl with the gate's name; it never reaches the training set.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from preprocess.diagnosis import FALLBACKS, disease_names
from preprocess.normalise import HAN_CHAR, is_mojibake
from preprocess.think import has_tag

_CAN_NOT = r"(?:不能|无法|没法|没办法|不便)"
_REFUSAL = re.compile(
    r"作为(?:一个|一名)?(?:AI|人工智能|(?:大)?语言模型)|我(?:只)?是(?:一个|一款)?(?:AI|人工智能|(?:大)?语言模型)"
    rf"|(?:抱歉|对不起)[^。！？]{{0,15}}{_CAN_NOT}|我{_CAN_NOT}(?:为您|为你|给您|直接|对此)?(?:回答|提供|给出|协助|讨论)"
    rf"|(?:这个|该|此类)问题我?{_CAN_NOT}"
    r"|\bas an? (?:ai|(?:large )?language model)\b|\bi['’]?m sorry,? but i (?:can|am)|\bi am unable to\b"
    r"|\bi (?:can['’]?t|cannot|won['’]?t) (?:help|assist|provide|answer|diagnose|comply)\b",
    re.IGNORECASE,
)
# What comes instead of a disease; and what turns the text around it, or is none.
_NO_DISEASE = {"", "-", "无", "未知", "不详", "待查", "未见异常", "n/a", "none", "null", "unknown"}
_CONTROL = re.compile("[\0-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]")
MOST_THOUGHT = 100_000  # characters: more is a model that does not stop
_LETTER = re.compile(r"[^\W\d_]")
_ASCII = re.compile("[A-Za-z]")
_PAIRED = re.compile(r"[^\W_]")


@dataclass(frozen=True)
class Gates:
    """Which gates are asked, and their bounds; lengths in characters, evidence and agreement are shares."""

    gates: list[str] = field(default_factory=lambda: list(GATES))
    language: str = "zh"
    thought: str = "optional"  # required, optional, none
    min_characters: int = 2
    max_characters: int = 4000
    min_evidence: float = 0.2


@dataclass(frozen=True)
class Candidate:
    """A reply as it is judged: the answer's text, the thought, why it ended, the object read of it (None for plain
    text), and the question that was asked."""

    answer: str
    think: str
    finish_reason: str
    value: dict[str, Any] | None
    question: str
    fault: str = ""  # why no object could be read; "" where none was wanted or it was


def _language(candidate: Candidate, bounds: Gates) -> bool:
    letters = _LETTER.findall(candidate.answer)
    known = HAN_CHAR.findall(candidate.answer) if bounds.language == "zh" else _ASCII.findall(candidate.answer)
    return bounds.language != "any" and len(known) < {"zh": 0.5, "en": 0.9}[bounds.language] * len(letters)


def _thought(candidate: Candidate, bounds: Gates) -> bool:
    return {"required": not candidate.think, "none": bool(candidate.think)}.get(bounds.thought, False)


def pairs(text: str) -> set[tuple[str, str]]:
    """The pairs of neighbouring letters and digits of a text, whatever stands between them."""
    return set(pairwise(_PAIRED.findall(text.casefold())))


def evidence(text: str, record: str) -> float:
    """The share of a text's pairs of characters that stand in the record, 1 for a text of fewer than two."""
    of_text = pairs(text)
    return len(of_text & pairs(record)) / len(of_text) if of_text else 1.0


def _unsupported(candidate: Candidate, bounds: Gates) -> bool:
    if candidate.value is None:
        return False
    return evidence(_text(candidate.value.get("reason", "")), candidate.question) < bounds.min_evidence


def _is_fallback(candidate: Candidate, _: Gates) -> bool:
    if candidate.value is None:
        return False
    names = disease_names(_text(candidate.value.get("diseases", "")))
    return names <= _NO_DISEASE or not names.isdisjoint(FALLBACKS)


def _text(value: Any) -> str:
    return "；".join(map(str, value)) if isinstance(value, list) else str(value)


GATES: dict[str, Callable[[Candidate, Gates], bool]] = {
    "truncated": lambda c, _: c.finish_reason == "length",
    "filtered": lambda c, _: c.finish_reason not in ("stop", "length", "eos", ""),
    "thought": _thought,
    "empty": lambda c, _: not c.answer.strip(),
    "stray_tag": lambda c, _: has_tag(c.answer) or has_tag(c.think),
    "refusal": lambda c, _: _REFUSAL.search(c.answer[:200]) is not None,
    "schema": lambda c, _: bool(c.fault),
    "fallback_label": _is_fallback,
    "mojibake": lambda c, _: any(is_mojibake(text) or _CONTROL.search(text) for text in (c.answer, c.think)),
    "language": _language,
    "length": lambda c, b: not b.min_characters <= len(c.answer) <= b.max_characters or len(c.think) > MOST_THOUGHT,
    "evidence": _unsupported,
}
EXPLAINED = {
    "truncated": "the reply was cut at max_tokens",
    "filtered": "the server stopped the reply",
    "thought": "no thought where one is required, or one where none is wanted",
    "empty": "no answer",
    "stray_tag": "a thought tag inside thought or answer",
    "refusal": "the teacher refuses",
    "schema": "no JSON object with reason and diseases could be read",
    "fallback_label": "no disease, or a stopgap phrase",
    "mojibake": "broken characters, or such that control a screen",
    "language": "another language",
    "length": "too short or too long",
    "evidence": "the reason is not in the record",
    "agreement": "the samples disagree",
    "verifier": "the verifier finds it unsupported",
    "verifier_unreadable": "the verifier says neither yes nor no",
    "duplicate": "the same record stands before it",
    "no_text": "there is nothing to ask about",
}


def gate(candidate: Candidate, bounds: Gates) -> str:
    """The first gate that the candidate fails, or an empty string."""
    return next((name for name in GATES if name in bounds.gates and GATES[name](candidate, bounds)), "")
