"""Score the diagnoses of a model against a teacher's: disease names as sets, the reason by its characters.

    >>> one = score('{"reason": "夜间口渴。", "diseases": "考虑Ⅱ型糖尿病；高血压病2级（高危）"}', "stop",
    ...             {"diseases": "1. 2型糖尿病；2. 高血压2级", "reason": "夜间口渴三周。"}, "主诉: 夜间口渴三周")
    >>> {name: (tier.tp, len(tier.predicted), len(tier.expected)) for name, tier in one.tiers.items()}
    {'strict': (0, 2, 2), 'normalised': (1, 2, 2), 'alias': (2, 2, 2)}

**What is read.** The JSON object with both keys, as `chat.reading` finds it behind the thought. A reply without one
(prose, headed text), one that was cut (`finish_reason` length) and one whose thought is left open are empty predictions
and stay in every denominator. Two empty sets agree: F1, Jaccard and main diagnosis are 1. What is ruled out
(`排除X`, `X除外`, `不考虑X`) is no name, in any tier.

**Tiers.** Each is more lenient than the one before; none stands for another.

strict      the names as they are written, cut apart at ，、；/| and line breaks outside brackets, without numbering;
            a head that two names share is given to both: 急、慢性胃炎 is 急性胃炎 and 慢性胃炎 (1、2型糖尿病 is item 1)
normalised  one width and case, no spaces; Ⅱ型, II型 and 二型 are 2型 (级, 期, 度 and 类 likewise), 右侧 is 右. Doubt
            (考虑, 疑似, 可能, ？, 待查) is taken off and kept apart. A和B, A及B, A伴B and A合并B are two names where
            both halves are terms.
alias       names that mean the same (aliases.tsv), whole or as the end or beginning of a longer one. What stands in
            brackets, stages and risks (2级, Ⅲ期, 高危), degrees (轻度) and sides qualify a name; of two names that
            differ in nothing else, one must say no more than the other: 高血压 is 高血压2级, 高血压1级 is not. Types
            (2型), 急性, 慢性, 良性 and 恶性 belong to the name itself, wherever they stand.

**Reason.** ROUGE-L is the F1 of the longest common subsequence of characters, white space left out. A finding is a
piece of the record's text between two punctuation marks (sex, age and epidemic history are none); it is cited where at
least half of its pairs of neighbouring characters stand in the reason, and evidence recall is the share that is.
`grounded` looks the other way, at the share of the reason's pairs that stand in the record. Both see words, not sense:
不考虑肺炎 is as good as 考虑肺炎. `contradicted` says that the reason rules out in so many words (不考虑, 已排除) what
the diagnosis names.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from chat.reading import Reading, read_object
from preprocess.diagnosis import FALLBACKS, to_text
from preprocess.gates import evidence, pairs
from preprocess.healthai import cut_diagnosis, split_fields
from preprocess.think import split
from recipe import UserError, read_text

KEYS = ("reason", "diseases")
TIERS = ("strict", "normalised", "alias")
TABLE = Path(__file__).with_name("aliases.tsv")
MAX_CHARACTERS = 20_000  # that are compared of a diagnosis or a reason
MAX_NAMES = 200  # of one diagnosis
MAX_NAME = 100  # characters; a longer one is compared as it stands


@dataclass(frozen=True)
class Name:
    """A disease as it is compared.

    normalised  in one spelling, with its brackets
    preferred   what the table calls it, without what qualifies it
    qualifiers  sides, stages, degrees and what else stood in brackets
    doubt       the words of doubt that were taken off, "" for none
    """

    normalised: str
    preferred: str
    qualifiers: frozenset[str] = frozenset()
    doubt: str = ""


@dataclass(frozen=True)
class Tier:
    """The names of one record in one tier, in the order in which they are named, and the pairs that are the same."""

    predicted: tuple[str, ...]
    expected: tuple[str, ...]
    matched: tuple[tuple[str, str], ...]
    main: bool  # whether the first names are the same

    @property
    def tp(self) -> int:
        return len(self.matched)

    @property
    def f1(self) -> float:
        return ratio(2 * self.tp, len(self.predicted) + len(self.expected))

    @property
    def jaccard(self) -> float:
        return ratio(self.tp, len(self.predicted) + len(self.expected) - self.tp)

    @property
    def exact(self) -> bool:
        return self.tp == len(self.predicted) == len(self.expected)


@dataclass(frozen=True)
class Score:
    """One answer against its reference; `fault` is why the prediction is empty (`chat.reading.FAULTS`), or ""."""

    fault: str
    method: str  # how the object was read, see chat.reading.Reading
    tiers: dict[str, Tier]
    doubt: dict[str, str] = field(default_factory=dict)  # a predicted name, normalised -> its words of doubt
    rouge_l: float = 0.0
    grounded: float = 0.0
    findings: int = 0
    cited: int = 0  # of the findings, by the reason
    cited_by_reference: int = 0
    contradicted: bool = False


def score(prediction: str, finish_reason: str, reference: Mapping[str, Any] | str, record: str) -> Score:
    """Compare a whole completion (thought and all) with `reference`: a row with diseases and reason, or such JSON text.

    `record` is the patient's record as the model was shown it; a diagnosis at its tail is no finding.
    Raises UserError for a reference that can't be read.
    """
    reading = _read(prediction, finish_reason)
    predicted = {key: to_text((reading.value or {}).get(key)) or "" for key in KEYS}
    expected = _reference(reference)
    written = [cut_apart(labels["diseases"]) for labels in (predicted, expected)]
    names = [_distinct(name for text in texts for name in normalise(text)) for texts in written]
    tiers = {
        "strict": _equal(*written),
        "normalised": _equal(*([name.normalised for name in side] for side in names)),
        "alias": _alike(*names),
    }
    stated = [pairs(finding) for finding in findings(record)]
    return Score(
        reading.fault,
        reading.method,
        tiers,
        {name.normalised: name.doubt for name in names[0] if name.doubt},
        rouge_l(predicted["reason"], expected["reason"]),
        evidence(predicted["reason"][:MAX_CHARACTERS], record) if predicted["reason"] else 0.0,
        len(stated),
        _cited(stated, predicted["reason"]),
        _cited(stated, expected["reason"]),
        _contradicts(predicted["reason"], names[0]),
    )


def _read(text: str, finish_reason: str) -> Reading:
    """The object in a completion; headed text is none."""
    parts = split(text)
    if finish_reason == "length":
        return Reading(fault="truncated")
    if parts.fault == "unclosed":
        return Reading(fault="unclosed_thought")
    found = read_object(parts.answer, KEYS, "stop" if finish_reason == "eos" else finish_reason)
    return Reading(fault="headed") if found.method == "headed" else found


def _reference(given: Mapping[str, Any] | str) -> dict[str, str]:
    try:
        row = json.loads(split(given).answer) if isinstance(given, str) else given
        texts = {key: to_text(row[key]) for key in KEYS}
    except (ValueError, KeyError, TypeError, RecursionError):
        texts = {key: None for key in KEYS}
    if None in texts.values():
        raise UserError(f"reference {str(given)[:60]!r}: expected diseases and reason; name a set of kind diagnosis")
    return {key: text or "" for key, text in texts.items()}


# --- names as they are written ---

_OPEN, _SHUT = r"\[(（［【〔", r"\])）］】〕"
_PART = rf"[^{_OPEN}{_SHUT}]"
_BRACKETED = rf"[{_OPEN}]((?:{_PART}++|[{_OPEN}]{_PART}*+[{_SHUT}])*+)[{_SHUT}]"  # with brackets of one level in it
_STAGE = r"(?:心功能|nyha|killip|ckd|分级|分期)*\s?g?(?:\d|[Ⅰ-Ⅵ]|[iv]{1,3}|[一二三四五六])[abc]?[级期类]"
_RISK = "(?:极高|很高|高|中|低)危组?"
_ASIDE = rf"\s{{0,3}}(?:{_RISK}|{_STAGE}|[轻中重]度|[左右双]侧)\s{{0,3}}(?:[，,、；;|｜。\n\r]|$)"  # 高血压2级，高危
_SEPARATOR = re.compile(
    rf"{_BRACKETED}|(?P<cut>[；;|｜。\n\r]|[，,、](?!{_ASIDE})|\\[nr](?![a-z])|[/／](?![0-9A-Za-z])"
    r"|(?<=待查|查因|待诊)[:：]|(?<=[?？])(?=[一-鿿]))",
    re.IGNORECASE,
)
_NUMBER = r"(?:[、)）]|[.．](?!\d(?![型级期度])))"  # what stands behind the number of an item; 1.2型糖尿病 is item 1
_ENUMERATOR = re.compile(
    rf"(?:^|(?<=[\s；;，,、。|｜]))(?:(?:\d{{1,2}}|[一二三四五六七八九十]{{1,2}})\s?{_NUMBER}|\d{{1,2}}\s?[:：])"
    r"|[(（](?:\d{1,2}|[一二三四五六七八九十]{1,2})[)）]|[①-⒛]",
    re.MULTILINE,
)
_HEADING = re.compile(
    r"(?:初步|主要|次要|其他|临床|入院|出院|最终|最后|西医|中医|第[一二三四])?诊断(?:为|是|结果)?\s?[:：]"
)
_SEX = re.compile(r"^[男女]性?(?:[:：\s]\s*|$)")
_EDGES = " \t　.．·・。,，、;；:：-－—*#\"'“”‘’`"
_NOTHING = frozenset(("", "无", "暂无", "没有", "不详", "未见异常", "无异常", "正常", "none", "男", "女", *FALLBACKS))
_EXCLUDED = re.compile(
    r"^(?:已|可|可以|基本|暂|目前|暂时)*(?:排除|除外|不考虑|不支持|否认)|(?<![不待能需以要])(?:排除|除外|不考虑)[)）]?$"
)


def cut_apart(diseases: str) -> list[str]:
    """The names of a `diseases` text as they are written, each once, in order; without numbers and what is ruled out.

    >>> cut_apart("1. 肺炎（右肺，下叶）；2、２型糖尿病？，排除肺结核")
    ['肺炎（右肺，下叶）', '２型糖尿病？']
    """
    text = "\n".join(map(_unnumbered, _HEADING.split(diseases[:MAX_CHARACTERS])))
    text = _ENUMERATOR.sub("\n", text)
    cuts = [match.span() for match in _SEPARATOR.finditer(text) if match["cut"] is not None]
    ends = pairwise([0, *(place for cut in cuts for place in cut), len(text)])
    parts = [text[begin:end].strip(_EDGES) for begin, end in list(ends)[::2]]
    parts = _share_heads(parts, [text[begin:end] for begin, end in cuts])
    names = (_SEX.sub("", part).strip(_EDGES) for part in parts)
    kept = (name for name in names if name not in _NOTHING and not name.isdigit() and not _EXCLUDED.search(name))
    return list(dict.fromkeys(kept))[:MAX_NAMES]


_SAID = (
    "(?:(?:初步|高度|目前|暂|已|可|基本|不|不能|未|待|需)*(?:考虑|疑似|怀疑|可能|排除|除外|不支持|否认|诊断)[为是]?)?"
)
_ELIDED = tuple(  # what may stand alone before 、, its opposite behind it, and what they end in
    (re.compile(f"({_SAID})({side})({end})?", re.IGNORECASE), re.compile(f"({side})({end})(?=.)", re.IGNORECASE))
    for side, end in (
        ("亚?急|慢", "性"),
        ("[左右]", "侧?"),
        ("[上中下]", ""),
        ("[内外]", ""),
        ("[甲乙丙丁戊]", "型"),
        (r"(?:\d|[Ⅰ-Ⅵ]|[iv]{1,3}|[一二三四五六])型", ""),  # not 1 alone: it would be the number of an item
    )
)


def _with_head(one: str, other: str) -> tuple[str, str]:
    """`one` with the head that `other` has ("" where it shares none), and what is said of both (考虑, 排除).

    >>> _with_head("考虑急", "慢性胃炎")
    ('考虑急性胃炎', '考虑')
    """
    for alone, opposite in _ELIDED if len(other) <= MAX_NAME else ():
        mine, theirs = alone.fullmatch(one), opposite.match(other)
        if mine and theirs and mine[2] != theirs[1]:
            return one + ("" if mine[3] else theirs[2]) + other[theirs.end() :], mine[1]
    return "", ""


def _share_heads(parts: Sequence[str], cuts: Sequence[str]) -> list[str]:
    """Names and the marks that cut them apart, each name with the head that it shares with the next."""
    shared, end = list(parts), len(parts)
    for at in range(len(parts) - 2, -1, -1):
        whole, said = _with_head(shared[at], shared[at + 1]) if cuts[at] in "、,，/／" else ("", "")
        if not whole:
            end = at + 1
            continue
        shared[at] = whole
        if said:
            shared[at + 1 : end] = [said + part for part in shared[at + 1 : end]]
    return shared


def _unnumbered(text: str) -> str:
    """A list that is numbered from 1 on, with nothing between its items (1、胃炎2、贫血), as one line for each."""
    first = re.match(rf"\s*1\s?({_NUMBER})", text)
    if not first:
        return text
    behind = re.escape(first[1]) + (r"(?!\d(?![型级期度]))" if first[1] in ".．" else "")
    lines, at = [], first.end()
    for number in range(2, 100):
        following = re.compile(rf"(?<![\d.]){number}\s?{behind}").search(text, at)
        if not following:
            break
        lines.append(text[at : following.start()])
        at = following.end()
    return "\n".join([*lines, text[at:]])


# --- one spelling ---

_WIDTHS = str.maketrans(
    {**dict.fromkeys("[{【〔「", "("), **dict.fromkeys("]}】〕」", ")"), **dict.fromkeys("–—‐−", "-")}
)
_DOUBT = re.compile(
    r"^(?:初步|首先|目前|临床|高度|暂|多)*(?:考虑|疑似|怀疑|疑诊|疑(?!病)|拟诊|可能|不(?:能)?(?:除外|排除)|待(?:排除?|除外)"
    r"|(?:需|应|建议|注意|进一步)+(?:排除|除外))(?:的|为|是|系|有|诊断)?[:：]?"
    r"|\(?(?:\?|可能性?较?大?|(?:原因)?待(?:查|诊|排除?|除外)|不(?:能)?(?:除外|排除)|查因|疑似|考虑|拟诊)\)?$"
)
_SPACE = re.compile(r"(?<![a-z])\s+|\s+(?![a-z])")
_NUMERALS = {"i": "1", "ii": "2", "iii": "3", "iv": "4", "v": "5", "vi": "6"} | dict(
    zip("一二三四五六", "123456", strict=True)
)
_NUMERAL = "(iii|ii|iv|i|vi|v|[一二三四五六])"
_TYPE = re.compile(
    rf"(?<![a-z一二三四五六七八九十百第]){_NUMERAL}(?=[abc]?(?:[-~至](?:{_NUMERAL}|\d)[abc]?)?[型级期度类])"
)
_SIDE = re.compile("(?<=[左右双])侧")


def normalise(written: str) -> list[Name]:
    """A name as it is compared; two of A和B, where both are terms.

    >>> [(name.normalised, name.doubt) for name in normalise("疑似Ⅱ 型糖尿病伴高血压病（２级）")]
    [('2型糖尿病', '疑似'), ('高血压病(2级)', '疑似')]
    """
    text = unicodedata.normalize("NFKC", written).casefold().translate(_WIDTHS)
    text = "".join(char for char in text if unicodedata.category(char) != "Cf")
    if len(text) > MAX_NAME:
        return [Name(text, text)]
    doubts = []
    while (found := _DOUBT.search(text)) and found[0] != text:
        doubts.append(found[0].strip("()"))
        text = (text[: found.start()] + text[found.end() :]).strip(_EDGES)
    return [Name(term, *_meaning(term), " ".join(doubts)) for term in _terms(text) if term]


def _in_one_spelling(text: str) -> str:
    text = _TYPE.sub(lambda numeral: _NUMERALS[numeral[1]], _SPACE.sub("", text))
    return _SIDE.sub("", text).strip(_EDGES)


_JOINT = re.compile(rf"{_BRACKETED}|(?P<cut>以及|伴[有发]?|合并|并(?!发症)发?|和|及|与|[/+]|\s+)")
_TERM = re.compile(
    r".(?:病|症|炎|癌|瘤|疹|癣|疣|疮|痛|风|疝|痔|瘘|结石|结核|梗[死塞]|梗阻|栓塞|血栓|出血|综合[征症]|障碍|感染|息肉|囊肿"
    r"|骨折|不全|衰竭|亢进|减退|低下|增生|溃疡|贫血|高血压|中毒|狭窄|硬化|曲张|脱位|脱垂|突出|滑脱|积[液水]|畸形|缺损"
    r"|麻痹|休克|紊乱|失调|缺乏|损伤|坏死)$"
)
_NO_TERM = re.compile("(?:并发症|合并症|后遗症|炎症|疾病|^.?性?病)$")


def _terms(text: str) -> list[str]:
    whole = _in_one_spelling(text)
    if _look_up(whole):
        return [whole]
    for joint in _JOINT.finditer(text):
        left, right = text[: joint.start()], text[joint.end() :]
        if joint["cut"] in ("以及", "和", "及", "与", "/") and (first := _with_head(left.strip(), right.strip())[0]):
            return [_in_one_spelling(first), *_terms(right)]
        if joint["cut"] and _is_term(left) and _is_term(right):
            return [_in_one_spelling(left), *_terms(right)]
    return [whole]


def _is_term(text: str) -> bool:
    name, _ = _unqualified(re.sub(_BRACKETED, "", _in_one_spelling(text)))
    return bool(_look_up(name)) or (bool(_TERM.search(name)) and not _NO_TERM.search(name))


# --- one meaning ---

_SPELLINGS = {
    "梗塞": "梗死",
    "返流": "反流",
    "粘膜": "黏膜",
    "粘液": "黏液",
    "综合症": "综合征",
    "机能": "功能",
    "植物神经": "自主神经",
    "糖尿病性": "糖尿病",
    "后遗症期": "后遗症",
    "食道": "食管",
    "头疼": "头痛",
    "疤痕": "瘢痕",
    "椎间盘膨隆": "椎间盘膨出",
}
_SPELLING = re.compile("|".join(_SPELLINGS))
_GRADE = re.compile(
    r"[,、]?(?:(?:心功能|nyha|killip|who|分级|分期|[:\s])*g?(\d[abc]?(?:[-~至]\d[abc]?)?[级期类])"
    r"|(极高|很高|高|中|低)危组?)$"
)
_BEFORE = re.compile(
    r"(?:(\d[abc]?[级期])|([轻中重]度)|([左右双])(?![心室房束主旋位相胎重向角]|[前后]分支|前降支|回旋支))(?=..)"
)
_FRONT = re.compile("(?:[0-9a-z甲乙丙丁戊]型|[0-9]度|亚?急性|慢性|良性|恶性)")
_TYPE_BEHIND = re.compile(r"(.{2,}?)([0-9a-c甲乙丙丁戊]型|[0-9]度)")


def same(one: Name, other: Name) -> bool:
    """Whether two names mean one disease, and one of them has no qualifier that the other lacks.

    >>> one, *others = (normalise(name)[0] for name in ("高血压2级", "高血压病2级（高危）", "高血压病", "高血压1级"))
    >>> [same(one, other) for other in others]
    [True, True, False]
    """
    fewer, more = sorted((one.qualifiers, other.qualifiers), key=len)
    return one.preferred == other.preferred and fewer <= more


@cache
def aliases(path: Path = TABLE) -> dict[str, str]:
    """The table: each form, as names are looked up, with its preferred one. UserError for a form in two lines."""
    table: dict[str, str] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        forms = [_spelt(form) for form in line.split("\t") if form.strip() and not line.startswith("#")]
        for form in forms:
            if table.setdefault(form, forms[0]) != forms[0]:
                raise UserError(f"{path}:{number}: {form!r} means {table[form]!r} as well; keep it in one line")
    return table


def _spelt(form: str) -> str:
    text = unicodedata.normalize("NFKC", form).casefold().translate(_WIDTHS)
    return _SPELLING.sub(lambda found: _SPELLINGS[found[0]], _in_one_spelling(text))


def _look_up(name: str) -> str:
    """What the table calls a name, with or without 症 at its end; "" for one that it doesn't have."""
    table, name = aliases(), _SPELLING.sub(lambda found: _SPELLINGS[found[0]], name)
    return table.get(name) or table.get(f"{name}症") or (name.endswith("症") and table.get(name[:-1])) or ""


def _meaning(text: str) -> tuple[str, frozenset[str]]:
    """The preferred name of a normalised one, and what qualifies it."""
    if known := _look_up(text):
        return known, frozenset()
    asides = [part for found in re.finditer(_BRACKETED, text) for part in re.split("[,、;()]", found[1]) if part]
    fronts = [aside for aside in asides if _FRONT.fullmatch(aside)]
    base, qualifiers = _unqualified("".join(fronts) + re.sub(_BRACKETED, "", text))
    if not base:
        return text, frozenset()
    preferred = _preferred(base)
    for aside in asides:
        if aside in fronts:
            continue
        name, more = _unqualified(aside)
        qualifiers |= more
        if name and _preferred(name) != preferred:
            qualifiers.add(_preferred(name))
    return preferred, frozenset(qualifiers)


def _unqualified(name: str) -> tuple[str, set[str]]:
    """A name without the sides, stages and degrees before and behind it, and these; its type comes first."""
    qualifiers = set()
    for _ in range(8):
        if _look_up(name):
            break
        if found := _GRADE.search(name):
            qualifiers.add(found[1] or found[2].replace("很高", "极高") + "危")
            name = name[: found.start()]
        elif found := _BEFORE.match(name):
            qualifiers.add(found[0])
            name = name[found.end() :]
        elif found := _TYPE_BEHIND.fullmatch(name):
            name = found[2] + found[1]
        elif name in ("左", "右", "双"):
            return "", qualifiers | {name}
        else:
            break
    return name, qualifiers


@lru_cache(100_000)
def _preferred(name: str) -> str:
    """What the table calls a name, or its longest ending, or else its longest beginning; a 症 at the end is dropped."""
    name = _SPELLING.sub(lambda found: _SPELLINGS[found[0]], name)
    for begin in range(len(name) - 1 if len(name) > 1 else 1):
        known = _look_up(name[begin:])
        if known and not _inside_word(name, begin):
            before = aliases().get(name[:begin], name[:begin])
            whole = known if known.startswith(before) else before + known
            return _look_up(whole) or whole
    for end in range(len(name) - 1, 1, -1):
        known = aliases().get(name[:end])
        if known and not _inside_word(name, end):
            return known + name[end:]
    return name[:-1] if len(name) > 3 and name.endswith("症") else name


def _inside_word(text: str, at: int) -> bool:
    """Whether a cut at `at` would go through a word of Latin letters."""
    return 0 < at < len(text) and text[at - 1 : at + 1].isascii() and text[at - 1 : at + 1].isalnum()


# --- two sets ---


def _distinct(names: Iterable[Name]) -> list[Name]:
    first: dict[str, Name] = {}
    for name in names:
        first.setdefault(name.normalised, name)
    return list(first.values())


def _equal(predicted: Sequence[str], expected: Sequence[str]) -> Tier:
    both = tuple((name, name) for name in predicted if name in set(expected))
    return Tier(tuple(predicted), tuple(expected), both, predicted[:1] == expected[:1])


def _alike(predicted: Sequence[Name], expected: Sequence[Name]) -> Tier:
    """The most pairs of the same disease that can be made, each name in one at most."""
    ours, theirs = _without_repeats(predicted), _without_repeats(expected)
    partner: dict[int, int] = {}  # of an expected name: the predicted one

    def pair(name: int, tried: set[int]) -> bool:
        for other, candidate in enumerate(theirs):
            if other not in tried and same(ours[name], candidate):
                tried.add(other)
                if other not in partner or pair(partner[other], tried):
                    partner[other] = name
                    return True
        return False

    for name in range(len(ours)):
        pair(name, set())
    matched = tuple((_shown(ours[one]), _shown(theirs[other])) for other, one in sorted(partner.items()))
    main = same(predicted[0], expected[0]) if predicted and expected else not (predicted or expected)
    return Tier(tuple(map(_shown, ours)), tuple(map(_shown, theirs)), matched, main)


def _without_repeats(names: Sequence[Name]) -> list[Name]:
    """Each disease once, with all that is said of it: of 高血压 and 高血压2级 the second."""
    once = list({(name.preferred, name.qualifiers): name for name in names}.values())
    return [
        name for name in once if not any(same(name, other) and name.qualifiers < other.qualifiers for other in once)
    ]


def _shown(name: Name) -> str:
    return name.preferred + (f"({','.join(sorted(name.qualifiers))})" if name.qualifiers else "")


# --- the reason ---

_CLAUSE = re.compile(r"[，,。；;、？?！!\n]")
_INNER_LABEL = re.compile(r"^\s*[一-鿿]{2,6}[:：]")
_NOT_FINDINGS = ("性别", "年龄", "流行病史")
_RULED_OUT = re.compile(r"(?:不考虑|不支持|(?<![不未无])(?:可以?|已经?|基本)(?:排除|除外)了?)(?:为|是|有|诊断)?")


def lcs(one: str, other: str) -> int:
    """The length of the longest common subsequence; all of a row in one integer (Crochemore et al. 2001).

    >>> lcs("夜间咳嗽三周", "咳嗽已三周")
    4
    """
    places: dict[str, int] = {}
    for place, char in enumerate(one):
        places[char] = places.get(char, 0) | 1 << place
    full = (1 << len(one)) - 1
    row = full
    for char in other:
        common = row & places.get(char, 0)
        row = ((row + common) | (row - common)) & full
    return len(one) - row.bit_count()


def rouge_l(prediction: str, reference: str) -> float:
    """ROUGE-L of two texts, 0 to 1, by characters (NFKC, without white space); 1 for two empty ones.

    Beyond MAX_CHARACTERS of either, nothing is found, but it counts: the result is then a lower bound.
    """
    one, other = ("".join(unicodedata.normalize("NFKC", text).split()) for text in (prediction, reference))
    return ratio(2 * lcs(one[:MAX_CHARACTERS], other[:MAX_CHARACTERS]), len(one) + len(other))


def findings(record: str) -> list[str]:
    """What a record states: its fields' texts between two punctuation marks, each once, with a pair of letters.

    >>> findings("性别: 女\\n年龄: 34\\n主诉: 夜间咳嗽3周，加重2天\\n体格检查: T: 36.5℃\\n辅助检查: 诊断:1、支气管炎")
    ['夜间咳嗽3周', '加重2天', 'T: 36.5℃']
    """
    text = cut_diagnosis(record)[0]
    fields = split_fields(text)
    texts = [value for label, value in fields.items() if label not in _NOT_FINDINGS] if fields else [text]
    clauses = (_INNER_LABEL.sub("", clause).strip() for value in texts for clause in _CLAUSE.split(value))
    return list(dict.fromkeys(clause for clause in clauses if pairs(clause)))


def _cited(stated: list[set[tuple[str, str]]], reason: str) -> int:
    given = pairs(reason[:MAX_CHARACTERS])
    return sum(2 * len(finding & given) >= len(finding) for finding in stated)


def _contradicts(reason: str, names: Sequence[Name]) -> bool:
    text = unicodedata.normalize("NFKC", reason[:MAX_CHARACTERS]).casefold()
    ruled_out = [text[found.end() :][:MAX_NAME] for found in _RULED_OUT.finditer(text)]
    plain = tuple(filter(None, (re.sub(_BRACKETED, "", name.normalised) for name in names)))
    return any(rest.startswith(plain) for rest in ruled_out)


# --- all records ---


def ratio(part: float, whole: float) -> float:
    """part / whole; 1 for nothing out of nothing."""
    return part / whole if whole else 1.0


def per_record(scores: Sequence[Score], tier: str) -> dict[str, np.ndarray]:
    """What a bootstrap by record resamples, one number a record, in their order.

    Micro figures are ratios of sums: precision tp / predicted, recall tp / expected, F1 2 tp / (predicted + expected),
    evidence recall cited / findings. `f1`, `jaccard`, `exact`, `main` and `rouge_l` are averaged.
    """
    sets = [one.tiers[tier] for one in scores]
    columns: dict[str, list[float]] = {
        "tp": [one.tp for one in sets],
        "predicted": [len(one.predicted) for one in sets],
        "expected": [len(one.expected) for one in sets],
        **{key: [float(getattr(one, key)) for one in sets] for key in ("f1", "jaccard", "exact", "main")},
        **{key: [getattr(one, key) for one in scores] for key in ("cited", "findings", "rouge_l")},
    }
    return {name: np.array(column, dtype=np.float64) for name, column in columns.items()}


def summarise(scores: Sequence[Score]) -> dict[str, Any]:
    """Counts and figures over all records, for metrics.json; UserError where there are none."""
    if not scores:
        raise UserError("no answer to score; run `make predict` first")
    n = len(scores)
    stated = sum(one.findings for one in scores)
    return {
        "n": n,
        "read": sum(not one.fault for one in scores),
        "faults": dict(sorted(Counter(one.fault for one in scores if one.fault).items())),
        "methods": dict(sorted(Counter(one.method.split(":")[0] for one in scores if one.method).items())),
        "tiers": {name: _figures([one.tiers[name] for one in scores]) for name in TIERS},
        "doubted": sum(len(one.doubt) for one in scores),
        "reason": {
            "rouge_l": sum(one.rouge_l for one in scores) / n,
            "findings": stated,
            "evidence_recall": ratio(sum(one.cited for one in scores), stated),
            "evidence_recall_of_references": ratio(sum(one.cited_by_reference for one in scores), stated),
            "grounded": sum(one.grounded for one in scores) / n,
            "contradicted": sum(one.contradicted for one in scores),
        },
    }


def _figures(tiers: Sequence[Tier]) -> dict[str, float]:
    tp, predicted, expected = (
        sum(counts) for counts in zip(*((t.tp, len(t.predicted), len(t.expected)) for t in tiers), strict=True)
    )
    empty = float(not predicted and not expected)
    means = {
        "macro_f1": [one.f1 for one in tiers],
        "jaccard": [one.jaccard for one in tiers],
        "exact": [one.exact for one in tiers],
        "main": [one.main for one in tiers],
    }
    return {
        "tp": tp,
        "predicted": predicted,
        "expected": expected,
        "precision": tp / predicted if predicted else empty,
        "recall": tp / expected if expected else empty,
        "f1": ratio(2 * tp, predicted + expected),
        **{name: sum(values) / len(tiers) for name, values in means.items()},
    }
