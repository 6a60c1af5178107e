"""HealthAI 2025 (competition.pkucxpl.com), step 1 and step 2: patient records without a label; no licence is stated.

One row in (step 2 continues the ids of step 1):

    {"id": 17, "feature_content": "性别: 女性\\n年龄: 34\\n主诉: 夜间咳嗽3周\\n现病史: 平卧加重\\n既往史: -\\n…"}

One Record out, with nothing to learn from yet; a teacher labels it (`make label`):

    Record(id="17", source="healthai", system="", question="性别: 女性\\n年龄: 34\\n主诉: 夜间咳嗽3周\\n…",
           think="", answer="",
           meta={"id": 17, "oddities": ["sex_spelled_out", "placeholder"],
                 "fields": {"性别": "女性", "年龄": "34", "主诉": "夜间咳嗽3周", …, "婚育史": ""}})
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from preprocess.records import Record, record_id, rest, text_field

LABELS = ("性别", "年龄", "主诉", "现病史", "既往史", "个人史", "过敏史", "婚育史", "流行病史", "体格检查", "辅助检查")
LAYOUTS = (LABELS, LABELS[:8], (*LABELS[:8], "体格检查"))

_LABEL = re.compile(rf"^({'|'.join(LABELS)})[:：] ?", re.MULTILINE)
_INNER_LABEL = re.compile(r"\n[一-鿿]{1,6}[:：]")
_AGE = re.compile(r"-?\d{1,5}(?=岁?\Z)")
_FORM = re.compile(r"\[(?:预问诊\w+|其他|有无|既往病史|流行病学史|辅助检查结果|体温|脉搏|呼吸|收缩压|舒张压|体重)\]")
_SCREENING = re.compile(
    r"(?:新冠|新型冠状|风险地?区|病例报告|境外|海外|疫区(?!、疫情))[^\n]{0,60}?(?:接触|旅行|旅、?居|居住|密接|流行病)"
    r"|(?:28|21|14|7)天内[^\n]{0,60}?(?:接触|旅行|旅、?居|居住|聚集)|聚集性(?:发病|病例|发热)|密切接触者"
)
_TAIL = re.compile(r"诊断[:：] ?(?=1、)(.+)$", re.MULTILINE)

Fields = dict[str, str]
ODDITIES: dict[str, Callable[[str, Fields], bool]] = {
    "other_layout": lambda text, fields: tuple(fields) not in LAYOUTS,
    "repeated_label": lambda text, fields: len(_LABEL.findall(text)) > len(fields),
    "several_lines": lambda text, fields: any("\n" in value.strip() for value in fields.values()),
    "inner_label": lambda text, fields: any(_INNER_LABEL.search(value) for value in fields.values()),
    "sex_spelled_out": lambda text, fields: _stripped(fields, "性别") in ("男性", "女性"),
    "sex_unknown": lambda text, fields: _stripped(fields, "性别") not in ("男", "女", "男性", "女性"),
    "negative_age": lambda text, fields: (age(fields) or 0) < 0,
    "age_zero": lambda text, fields: age(fields) == 0,
    "child": lambda text, fields: age(fields) in range(14),
    "age_unknown": lambda text, fields: age(fields) is None,
    "placeholder": lambda text, fields: any(_is_placeholder(value.strip()) for value in fields.values()),
    "form_text": lambda text, fields: _FORM.search(text) is not None,
    "trailing_space": lambda text, fields: any(value.rstrip("\n") != value.rstrip() for value in fields.values()),
    "covid_screening": lambda text, fields: _SCREENING.search(text) is not None,
    "diagnosis_tail": lambda text, fields: _TAIL.search(text) is not None,
}


def to_record(row: dict[str, Any], place: str) -> Record:
    """One patient record; the question is its text as it stands, the names in ODDITIES say what to expect of it."""
    question = text_field(row, "feature_content", place)
    fields, odd = describe(row["feature_content"])
    meta = rest(row, "feature_content", oddities=odd) | {"fields": fields}
    return Record(record_id(row, place, question), "healthai", "", question, "", "", meta)


def describe(text: str) -> tuple[Fields, list[str]]:
    """The fields of a patient record, their values stripped, and the names of its oddities."""
    fields = split_fields(text)
    odd = [name for name, found in ODDITIES.items() if found(text, fields)]
    return {label: value.strip() for label, value in fields.items()}, odd


def split_fields(text: str) -> Fields:
    """Label -> value, split at the eleven known labels alone, in their order: 宫颈: on a line of its own is a value.

    >>> split_fields("性别: 女\\n年龄: 34\\n体格检查: 外阴: 已婚式\\n宫颈: 光滑")
    {'性别': '女', '年龄': '34', '体格检查': '外阴: 已婚式\\n宫颈: 光滑'}
    """
    marks: list[re.Match[str]] = []
    for mark in _LABEL.finditer(text):
        if not marks or LABELS.index(mark[1]) > LABELS.index(marks[-1][1]):
            marks.append(mark)
    ends = [*(mark.start() - 1 for mark in marks[1:]), len(text)]
    return {mark[1]: text[mark.end() : end] for mark, end in zip(marks, ends, strict=False)}


def age(fields: Fields) -> int | None:
    """The age as it is written, negative ones too (a bad date of birth); None where it is no number of years."""
    match = _AGE.match(_stripped(fields, "年龄"))
    return int(match[0]) if match else None


def cut_diagnosis(text: str) -> tuple[str, list[str]]:
    """A patient record without the diagnoses at its tail, and these: left in, a model only has to copy them.

    >>> cut_diagnosis("辅助检查: 无诊断:1、2型糖尿病2、高血压")
    ('辅助检查: 无', ['2型糖尿病', '高血压'])
    """
    tail = _TAIL.search(text)
    return (text[: tail.start()] + text[tail.end() :], _numbered(tail[1])) if tail else (text, [])


def _numbered(text: str) -> list[str]:
    """The names in 1、X2、Y; a list that stands in a list follows it."""
    text, *more = re.split(r"诊断[:：] ?(?=1、)", text)
    names, number = [], 1
    rest_ = text.removeprefix("1、")
    while rest_:
        number += 1
        name, _, rest_ = rest_.partition(f"{number}、")
        names.append(name.strip(" ;；，,。"))
    return [name for name in names if name] + [name for each in more for name in _numbered(each)]


def _stripped(fields: Fields, label: str) -> str:
    return fields.get(label, "").strip()


def _is_placeholder(value: str) -> bool:
    """`-`, `。`, `/`, or a form's own words for a duration: something that stands there and says nothing."""
    return "持续时间时间单位" in value or (value != "" and not any(map(str.isalnum, value)))
