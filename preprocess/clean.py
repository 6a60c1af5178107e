"""What keeps a record out of the training data, one named reason each, tried in this order."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from ftfy.badness import is_bad

from preprocess.records import Record
from preprocess.think import has_tag

_HALF_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_PUNCTUATION = re.compile(r"[\s,!?;:\"'、。“”‘’…]|(?<!\d)\.|\.(?!\d)")


def is_mojibake(text: str) -> bool:
    """Bytes read in the wrong encoding, or already lost (U+FFFD, and 锟斤拷, which is U+FFFD read as GBK)."""
    return "\ufffd" in text or "锟斤拷" in text or is_bad(text)


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
    """What two questions have in common when they are the same but for form: white space, case, full width and
    sentence punctuation don't count; signs, decimals and superscripts do (HBsAg(+) is not HBsAg(-), 3.5 not 35).

    For comparison alone; stored text is never changed by it.
    """
    text = unicodedata.normalize("NFC", question).translate(_HALF_WIDTH).casefold()
    return _PUNCTUATION.sub("", text) or question
