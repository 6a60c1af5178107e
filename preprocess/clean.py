"""What keeps a record out of the training data, one named reason each, tried in this order."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

from ftfy.badness import is_bad

from preprocess.records import Record
from preprocess.think import has_tag


def is_mojibake(text: str) -> bool:
    """Bytes read in the wrong encoding, or already lost (U+FFFD)."""
    return "\ufffd" in text or is_bad(text)


FAULTS: dict[str, Callable[[Record], bool]] = {
    "empty_question": lambda record: not record.question,
    "empty_answer": lambda record: not record.answer,
    "empty_thought": lambda record: not record.think,
    "stray_tag": lambda record: has_tag(record.think) or has_tag(record.answer) or has_tag(record.question),
    "mojibake": lambda record: any(map(is_mojibake, (record.question, record.think, record.answer))),
}


def fault(record: Record) -> str:
    """The first reason to drop `record`, or an empty string."""
    return next((reason for reason, found in FAULTS.items() if found(record)), "")


def question_key(question: str) -> str:
    """What two questions have in common when they are the same: NFKC, case folded, letters and digits only.

    For comparison alone; NFKC turns 10⁹ into 109, so it never touches stored text.
    """
    folded = unicodedata.normalize("NFKC", question).casefold()
    return "".join(char for char in folded if char.isalnum()) or question
