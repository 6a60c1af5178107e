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
from preprocess.think import TAG, has_tag, joinable

_HALF_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_PUNCTUATION = re.compile(r"[\s,.!?;:\"'、。“”‘’…]+")
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
    "unlabelled": Check(
        "还没有教师的回答 not answered by a teacher yet", lambda r: r.source in ("healthai", "question")
    ),
    "empty_question": Check("没有提问 no question", lambda r: not r.question),
    "empty_answer": Check("没有回答 no answer", lambda r: not r.answer),
    "stray_tag": Check(
        "文本里有思考标签 a thought tag inside a text",
        lambda r: has_tag(r.question) or not joinable(r.think, r.answer),
    ),
}
CHECKS: dict[str, Check] = NEEDED | {
    "empty_thought": Check(
        "来源应有思考却没有 no thought, from a source that promises one", lambda r: not r.think and r.source in THINKING
    ),
    "mojibake": Check(
        "丢失字符或编码错误 characters lost or in the wrong encoding", lambda r: any(map(is_mojibake, _texts(r)))
    ),
    "provided_answer": Check(
        "思考引用了学生看不到的“提供的答案” the thought cites an answer it was given, which the student never sees",
        lambda r: bool(_PROVIDED.search(r.think)),
    ),
    "answer_in_question": Check("答案就在提问里 the answer stands in the question", _answer_in_question),
    "thought_is_answer": Check(
        "思考与回答相同 thought and answer are the same", lambda r: bool(r.think) and r.think == r.answer
    ),
    "short_thought": Check(
        f"思考不足 {SHORT_THOUGHT} 字 a thought under {SHORT_THOUGHT} characters",
        lambda r: 0 < len(r.think) < SHORT_THOUGHT,
    ),
    "off_answer": Check("思考与回答几乎没有共同内容 the thought shares next to nothing with the answer", _off_answer),
    "json_residue": Check(
        "文本里残留 JSON 键 keys of a prompt's JSON in a text", lambda r: any(map(_JSON_RESIDUE.search, _texts(r)))
    ),
    "html": Check("文本里有 HTML HTML in a text", lambda r: any(map(_HTML.search, _texts(r)))),
    "fence": Check(
        "文本里有 Markdown 代码栏 a Markdown code fence in a text", lambda r: any("```" in text for text in _texts(r))
    ),
}
# What readers find; each name is explained where its reader's ODDITIES are.
ODDITIES: dict[str, str] = {
    "no_label": "教师没有给出标签 the teacher's reply gave no label",
    "parse_failure": "无法解析的回复被当成了依据 a reply that could not be read stands for the reason",
    "fallback_label": "疾病处是脚本的占位语 a script's stopgap phrase stands where the disease should",
    "unreadable_label": "标签既不是文本也不是文本列表 a label that is neither text nor a list of it",
    "not_one_turn": "多轮对话或带工具 a dialogue of several turns, or with tools",
    "thought_unclosed": "思考没有闭合 a thought that is opened and never closed",
    "thought_repeated": "思考或回答里还有思考标签 thought tags in a thought or an answer",
    "thought_unopened": "思考缺少起始标签，照读 a thought without its opening tag; it is read",
    "thought_leading": "思考之前有文字，并入回答 text before the thought; it opens the answer",
    "runaway_reason": "依据不停重复 a reason that goes on and on",
    "no_reason": "有疾病而没有依据 a disease without a reason",
    "literal_newline": "标签里用 \\n 两个字符换行，已改 a backslash and an n for a line break in a label; mended",
    "sex_prefix": "疾病前带有性别 the patient's sex before the disease",
    "comma_joined": "疾病用逗号连接 diseases joined by commas",
    "misspelt_disease": "病名与病历差一个字 a disease one character off what the record says",
    "label_list": "标签原是列表，已用；连接 a label that was a list; joined by ；",
    "replacement_character": "标签或病历里有丢失的字符（U+FFFD） a lost character (U+FFFD) in a label or its record",
    "echo_differs": "教师复述的病历与原文不同 the teacher's echo of the record is not the record",
    "other_layout": "不是比赛的三种版式 none of the contest's three layouts",
    "repeated_label": "同一字段名出现两次 a field's label stands twice",
    "several_lines": "字段跨多行 a field of several lines",
    "inner_label": "字段里有像字段名的文字 something like a label inside a field",
    "sex_spelled_out": "性别写作男性、女性 男性 or 女性 for 男 or 女",
    "sex_unknown": "读不出性别 no sex that can be read",
    "negative_age": "年龄为负 an age below 0",
    "age_zero": "年龄为 0 an age of 0",
    "child": "0 到 13 岁 an age of 0 to 13",
    "age_unknown": "读不出年龄 no age that can be read",
    "placeholder": "用占位符代替空白 a placeholder instead of a blank",
    "form_text": "表单自带文字 a form's own words",
    "trailing_space": "字段末尾有空白 white space at the end of a field",
    "covid_screening": "新冠筛查套话 boilerplate of COVID screening",
    "diagnosis_tail": "病历末尾带诊断 a diagnosis at the record's end",
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
    sentence punctuation don't count; signs, superscripts and what stands between two digits do (HBsAg(+) is not
    HBsAg(-), 3.5 not 35, 发热3、4天 not 发热34天).

    For comparison alone; stored text is never changed by it.
    """
    text = unicodedata.normalize("NFC", question).translate(_HALF_WIDTH).casefold()
    return _PUNCTUATION.sub(_between_digits, text) or question


def _between_digits(match: re.Match[str]) -> str:
    text, (begin, end) = match.string, match.span()
    inside = begin > 0 and end < len(text) and text[begin - 1].isdigit() and text[end].isdigit()
    return (match[0].strip()[:1] or " ") if inside else ""
