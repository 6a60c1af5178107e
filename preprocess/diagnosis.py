"""Patient records that a teacher has labelled (HealthAI's `train_labeled_by_*.jsonl` and what became of it).

One row in, its keys in any order; as in the official example, a backslash and an n stand for a line break:

    {"id": 17, "diseases": "咳嗽变异性哮喘", "reason": "1. 夜间咳嗽3周；\\\\n2. 支气管激发试验阳性。",
     "feature_content": "性别: 女\\n年龄: 34\\n主诉: 夜间咳嗽3周\\n…"}

One Record out, its answer JSON with the reason first, so that the student argues before it decides:

    Record(id="17", source="diagnosis", system="", question="性别: 女\\n年龄: 34\\n主诉: 夜间咳嗽3周\\n…", think="",
           answer='{"reason": "1. 夜间咳嗽3周；\\\\n2. 支气管激发试验阳性。", "diseases": "咳嗽变异性哮喘"}',
           meta={"id": 17, "diseases": "咳嗽变异性哮喘", "reason": "1. 夜间咳嗽3周；\\n2. 支气管激发试验阳性。",
                 "fields": {"性别": "女", "年龄": "34", …}, "oddities": ["literal_newline"]})

`think` is the teacher's own reasoning, where the row has it: under `think`, `reasoning_content` or `reasoning`, or in
tags in `response` or `raw_output`. Read as well: the first version's `bingli_json` instead of the two labels, and the
wrapper's records, whose `feature_content` is the teacher's echo and whose record is `original_content`.

A label that can't be learned from (UNUSABLE) gives a Record without an answer, its raw labels in `meta`.
"""

from __future__ import annotations

import json
import re
import unicodedata
from itertools import repeat
from typing import Any

from preprocess.healthai import describe
from preprocess.records import Record, own_thought, record_id, rest, text_field, to_json
from preprocess.think import split
from recipe import UserError

LABELS = ("diseases", "reason")
UNUSABLE = ("no_label", "parse_failure", "fallback_label", "unreadable_label")
# What HealthAI's scripts write as the disease of a reply that they could not read.
FALLBACKS = ("需要进一步检查", "解析失败", "处理失败", "处理错误")

_LITERAL_NEWLINE = re.compile(r"(?:\\r)?\\n(?:(?![a-z])|(?=p[HCO]))")  # \npH is a line break, \nu and C:\new are not
_DISEASES_HEADING = re.compile(r"诊断\W{0,4}[:：]")
_REASON_HEADING = re.compile(r"诊断依据\W{0,4}[:：]")
_LABEL_LINE = re.compile(r"^[^\w\n]{0,8}(?:diseases|reason)[^\w\n]{0,8}[:：]", re.MULTILINE | re.IGNORECASE)
_SEX = re.compile(r"\A[男女]性?[，,、:：\s]\s*")
_QUALIFIERS = re.compile(r"[（(][^（()）]*[)）]|\d{1,2}\s?[.、．]")
_BRACKETED = re.compile(r"\([^()]*\)|\[[^\[\]]*\]")
_NUMBERING = re.compile(r"(?:^|(?<=[\s;,、。]))(?:\(\d{1,2}\)|\d{1,2}\s*(?:[、:)]|\.(?!\d)))")
_CIRCLED = re.compile("[①-⑳]")
_DOUBT = re.compile(r"\?|可能性?大?$|待(?:查|排|诊)$|^考虑|^疑似")
_SEPARATORS = re.compile(r"[；;，,、\n]")
_CONTRASTS = frozenset("上下左右前后内外急慢大小轻重多少高低男女早晚正反双单一二三四甲乙丙丁")


def to_record(row: dict[str, Any], place: str) -> Record:
    """One labelled record; UserError names the place and the key where one is missing or the record is no string."""
    key = "original_content" if "original_content" in row else "feature_content"
    question = text_field(row, key, place)
    given = read_bingli(row["bingli_json"], place) if "bingli_json" in row else row
    if missing := [label for label in LABELS if label not in given]:
        raise UserError(f"{place}: key {missing[0]!r} is missing; the row has {', '.join(map(repr, row))}")
    think, thought_key = read_thought(row, place)
    texts = {label: to_text(given[label]) for label in LABELS}
    labels = {label: _LITERAL_NEWLINE.sub("\n", text or "") for label, text in texts.items()}
    echo = row.get("feature_content", question)
    found = label_oddities(texts, labels, question) | {
        "label_list": any(isinstance(given[label], list) for label in LABELS),
        "replacement_character": any("\ufffd" in text for text in (*labels.values(), question, think)),
        "echo_differs": key == "original_content" and str(echo).strip() != question,
    }
    odd = [name for name, is_so in found.items() if is_so]
    usable = not set(odd) & set(UNUSABLE)
    answer = to_json({label: labels[label] for label in reversed(LABELS)}) if usable else ""
    fields, record_odd = describe(row[key])
    meta = rest(row, key, thought_key, oddities=odd + record_odd)
    meta |= (labels if usable else {label: given[label] for label in LABELS}) | {"fields": fields}
    id_ = record_id(row, place, question, think, answer)
    return Record(id_, "diagnosis", "", question, think, answer, meta)


def to_text(value: Any) -> str | None:
    """A label as one string; a list is joined by the official example's `；`. None: neither text nor a list of it."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = "；".join(filter(None, map(str.strip, value)))
    if not isinstance(value, str | None):
        return None
    return (value or "").strip()


def label_oddities(texts: dict[str, str | None], labels: dict[str, str], question: str) -> dict[str, bool]:
    """Name -> whether it is so, the UNUSABLE ones first; `labels` are the `texts` with their line breaks mended."""
    diseases, reason = (labels[label] for label in LABELS)
    unreadable = None in texts.values()
    names = [name.strip() for name in _SEPARATORS.split(_QUALIFIERS.sub("", _SEX.sub("", diseases)))]
    return {
        "unreadable_label": unreadable,
        "no_label": not (diseases or reason or unreadable),
        "parse_failure": not diseases and bool(reason) and not unreadable,
        "fallback_label": diseases in FALLBACKS,
        "no_reason": bool(diseases) and not reason,
        "literal_newline": not unreadable and texts != labels,
        "runaway_reason": _is_runaway(reason),
        "sex_prefix": _SEX.match(diseases) is not None,
        "comma_joined": len(names) > len(re.split("[；;\n]", diseases)),
        "misspelt_disease": any(map(is_misspelt, names[:20], repeat(f"{question}\n{reason}"))),
    }


def _is_runaway(reason: str) -> bool:
    """Whether a reason goes on with labels of its own, or says one line three times."""
    lines = [line for line in map(str.strip, reason.split("\n")) if len(line) >= 10]
    return _LABEL_LINE.search(reason) is not None or len(lines) - len(set(lines)) >= 2


def is_misspelt(name: str, text: str) -> bool:
    """Whether `text` holds, instead of `name`, a term that is one Chinese character off (and no contrast: 左 for 右).

    >>> is_misspelt("督丸炎", "双侧睾丸坠胀，考虑睾丸炎")
    True
    """
    if not 3 <= len(name) <= 40 or name in text:
        return False
    half = len(name) // 2
    starts = [match.start() for match in re.finditer(re.escape(name[:half]), text)]
    starts += [match.start() - half for match in re.finditer(re.escape(name[half:]), text)]
    terms = {text[start : start + len(name)] for start in starts if 0 <= start <= len(text) - len(name)}
    return any(_is_one_off(name, term) for term in terms)


def _is_one_off(name: str, term: str) -> bool:
    pairs = [pair for pair in zip(name, term, strict=True) if pair[0] != pair[1]]
    return len(pairs) == 1 and all("一" <= char <= "鿿" for char in pairs[0]) and not set(pairs[0]) <= _CONTRASTS


def read_thought(row: dict[str, Any], place: str) -> tuple[str, str]:
    """The teacher's reasoning, and the key that holds it alone, if one does."""
    thought, key = own_thought(row, place)
    replies = (row[reply] for reply in ("response", "raw_output") if isinstance(row.get(reply), str))
    return thought or next(filter(None, (split(reply).think for reply in replies)), ""), key


def read_bingli(value: Any, place: str) -> dict[str, Any]:
    """The labels of a `bingli_json`: an object, its JSON, text headed 诊断 and 诊断依据, or a reply that failed."""
    if not isinstance(value, str | dict):
        raise UserError(f"{place}: bingli_json must be a string or an object, got {type(value).__name__}")
    reply = value if isinstance(value, str) else to_json(value)
    try:
        found = json.loads(reply)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict):
        labels = {"diseases": found.get("诊断"), "reason": found.get("诊断依据")} | found
        if labels["diseases"]:
            return labels
    head = _REASON_HEADING.search(reply)
    before = _DISEASES_HEADING.search(reply, 0, head.start()) if head else None
    if not before:
        return {"diseases": "", "reason": reply}
    diseases, reason = reply[before.end() : head.start()], reply[head.end() :]
    return {"diseases": diseases.strip(" *#\n"), "reason": reason.strip(" *#\n")}


def disease_names(diseases: str) -> frozenset[str]:
    """The names in a `diseases` string as they are compared: without sex, numbering, brackets, stages and doubt.

    >>> sorted(disease_names("1. 慢性支气管炎（急性加重期）；2、２型糖尿病？"))
    ['2型糖尿病', '慢性支气管炎']
    """
    text = unicodedata.normalize("NFKC", _CIRCLED.sub(";", diseases)).casefold()
    text = _BRACKETED.sub("", _NUMBERING.sub(";", _SEX.sub("", text)))
    names = (_DOUBT.sub("", part.strip()).strip(" .。·-") for part in re.split(r"[;,、\n]|/(?![0-9a-z])", text))
    return frozenset(name for name in names if name)
