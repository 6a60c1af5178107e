"""Identifiers in Chinese and English clinical text: found, masked, and reported without repeating them.

    >>> mask("患者姓名：王小明，电话 138 0013 8000。复诊时王小明诉胸闷。")[0]
    '患者姓名：[姓名]，电话 [电话]。复诊时[姓名]诉胸闷。'
    >>> mask("Mr. Smith, MRN: 00123456, Hb 142 g/L.")
    ('Mr. [NAME], MRN: [RECORD NUMBER], Hb 142 g/L.', Counter({'name': 1, 'record_number': 1}))

Found: names (after a label, a role or a title, before a title, next to sex, age or a number, under a table's heading,
between marks where they read as a name, and wherever a name found so stands again), ID card numbers, phones, record
numbers, addresses, e-mail, dates of birth to the month, passports, bank cards, accounts (WeChat, QQ), licence plates;
in prose, forms, tables, CSV, JSON, XML, HL7's PID segment and DICOM dumps.

Left alone, on purpose: values, doses and codes; dates of visits, tests and operations; ages and years of birth; a place
no finer than a district, unless a label calls it an address; hospitals, departments, beds; numbers of specimens,
orders, batches, trials; a clinician's bare surname (王主任); what is masked already (张**, 李某).

These are rules, not a judge. A name that nothing around it gives away is not found, nor, in prose, is one that is also
a common word (高兴, 向前). `bench/identifiers.py` has the figures, and how far they fell on notes of a shape unseen.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import date
from typing import NamedTuple

from preprocess.records import Record

# What stands in the place of each kind. Findings that overlap become one, named by the longer, then the earlier here.
KINDS: dict[str, tuple[str, str]] = {
    "id_card": ("身份证号", "ID NUMBER"),
    "passport": ("护照号", "PASSPORT"),
    "bank_card": ("银行卡号", "BANK CARD"),
    "record_number": ("病历号", "RECORD NUMBER"),
    "birth_date": ("出生日期", "BIRTH DATE"),
    "email": ("邮箱", "EMAIL"),
    "phone": ("电话", "PHONE"),
    "account": ("账号", "ACCOUNT"),
    "plate": ("车牌号", "PLATE"),
    "address": ("住址", "ADDRESS"),
    "name": ("姓名", "NAME"),
}
_RANK = {kind: rank for rank, kind in enumerate(KINDS)}
FIELDS = ("system", "question", "think", "answer")


class Finding(NamedTuple):
    """One identifier; `text` is the original's, from `start` to `end`."""

    kind: str
    start: int
    end: int
    text: str


class Place(NamedTuple):
    """Where an identifier stands: what a report may say of it."""

    record: str
    field: str
    kind: str
    start: int
    end: int


Span = tuple[str, int, int]  # kind, start, end


def _words(text: str) -> list[str]:
    return text.split()


# --- what callers use -------------------------------------------------------------------------------------------------


def find(text: str) -> list[Finding]:
    """Every identifier in `text`, in order; none overlaps another."""
    return find_all([text])[0]


def find_all(texts: Sequence[str]) -> list[list[Finding]]:
    """`find` for the texts of one record: a name that one of them gives away is found in all."""
    folds = [_fold(text) for text in texts]
    spans = [list(_spans(fold)) for fold, _ in folds]
    names = {
        _key(fold[start:end])
        for (fold, _), found in zip(folds, spans, strict=True)
        for kind, start, end in found
        if kind == "name"
    }
    if names:
        for (fold, _), found in zip(folds, spans, strict=True):
            found += _again(fold, names)
    return [_findings(text, origin, found) for text, (_, origin), found in zip(texts, folds, spans, strict=True)]


def mask(text: str) -> tuple[str, Counter[str]]:
    """`text` with each identifier replaced by its kind, in the script around it, and how many of each kind were.

    The second, third … different identifier of a kind is numbered: [姓名], [姓名2]. Masking twice is masking once.
    """
    masked, counts = mask_all([text])
    return masked[0], counts


def mask_all(texts: Sequence[str]) -> tuple[list[str], Counter[str]]:
    """`mask` for the texts of one record: the same identifier gets the same number in all of them."""
    texts, counts = list(texts), Counter()
    numbers = _numbers_in_use(texts)
    # A replacement may lay bare what its neighbour hid; no finding holds a mask, so this ends.
    while any(found := find_all(texts)):
        counts.update(finding.kind for findings in found for finding in findings)
        texts = [_replaced(text, findings, numbers) for text, findings in zip(texts, found, strict=True)]
    return texts, counts


def mask_record(record: Record) -> tuple[Record, Counter[str]]:
    """The record with its text fields masked together; `id`, `source` and `meta` stay as they are."""
    texts, counts = mask_all([getattr(record, field) for field in FIELDS])
    return (replace(record, **dict(zip(FIELDS, texts, strict=True))) if counts else record), counts


def scan(records: Iterable[Record]) -> Iterator[Place]:
    """Where identifiers stand, never what they are; `Counter(place.kind for place in scan(records))` counts them."""
    for record in records:
        name = mask(record.id)[0]  # an id can be an identifier too
        for field, findings in zip(FIELDS, find_all([getattr(record, field) for field in FIELDS]), strict=True):
            yield from (Place(name, field, finding.kind, finding.start, finding.end) for finding in findings)


# --- from spans to findings and masks ---------------------------------------------------------------------------------


def _findings(text: str, origin: list[int] | None, spans: list[Span]) -> list[Finding]:
    """The spans in order, overlapping ones joined, at the offsets of the original text."""
    joined: list[Span] = []
    for span in sorted(
        (span for span in spans if span[1] < span[2]), key=lambda span: (span[1], -span[2], _RANK[span[0]])
    ):
        if joined and span[1] < joined[-1][2]:
            last = joined.pop()
            kind = min(last, span, key=lambda one: (one[1] - one[2], _RANK[one[0]]))[0]
            span = (kind, last[1], max(last[2], span[2]))
        joined.append(span)
    if origin is not None:
        joined = [(kind, origin[start], origin[end - 1] + 1) for kind, start, end in joined]
    return [Finding(kind, start, end, text[start:end]) for kind, start, end in joined]


_MASK = re.compile(rf"\[({'|'.join(name for pair in KINDS.values() for name in pair)})(\d{{0,6}})\]")
_MASKED = re.compile(rf"{_MASK.pattern}(?![:：])")
_KIND_OF = {name: kind for kind, pair in KINDS.items() for name in pair}
_HAN_OR_LETTER = re.compile(r"([\u3400-\u9fff])|[A-Za-z]")
_HAN_OR_DIGIT = re.compile(r"[\u3400-\u9fff\U00020000-\U000323af0-9]")


def _numbers_in_use(texts: Sequence[str]) -> dict[str, dict[str, int]]:
    """{kind: {identifier: number}}, with a place taken for every mask that the texts hold already."""
    numbers: dict[str, dict[str, int]] = {kind: {} for kind in KINDS}
    for text in texts:
        for name, number in _MASK.findall(text):
            taken = numbers[_KIND_OF[name]]
            for value in range(len(taken) + 1, min(int(number or 1), 9999) + 1):
                taken[f"[{value}]"] = value
    return numbers


def _replaced(text: str, findings: list[Finding], numbers: dict[str, dict[str, int]]) -> str:
    pieces, last = [], 0
    for kind, start, end, found in findings:
        taken = numbers[kind]
        number = taken.setdefault(_key(_fold(found)[0]), len(taken) + 1)
        label = KINDS[kind][_is_english(text, start, end)]
        pieces += [text[last:start], f"[{label}{number if number > 1 else ''}]"]
        last = end
    return "".join([*pieces, text[last:]])


def _is_english(text: str, start: int, end: int) -> bool:
    """Whether the letters around the span (or, failing that, in it) are Latin alone."""
    around = text[max(0, start - 40) : start] + " " + text[end : end + 40]
    for context in (around, text[start:end]):
        scripts = {bool(match[1]) for match in _HAN_OR_LETTER.finditer(context)}
        if scripts:
            return scripts == {False}
    return False


def _key(found: str) -> str:
    """What two spellings of one identifier have in common."""
    if _HAN_OR_DIGIT.search(found):
        return re.sub(r"[\s\-–—()（）]", "", found)
    return " ".join(found.split())


# --- text as the patterns see it --------------------------------------------------------------------------------------

_HAN = "\u3400-\u9fff\U00020000-\U000323af"
_ODD = re.compile(
    r"[\u00ad\u200b-\u200f\u2060\ufeff\uff10-\uff19\uff21-\uff3a\uff41-\uff5a\uff0b\uff0d\uff0e\uff20\u2116\u2121"
    r"\u2f00-\u2fdf\uf900-\ufaff\U0001d400-\U0001d7ff]"
)


def _fold(text: str) -> tuple[str, list[int] | None]:
    """The text in the widths that the patterns expect, and where each of its characters stood (None: where it stands).

    NFKC, character by character, less what is invisible; superscripts stay, else 10⁹ would read 109. Full-width
    punctuation is left to the patterns, so that ordinary Chinese needs no map.
    """
    if not _ODD.search(text):
        return text, None
    pieces = [_FOLDED[char] for char in text]
    return "".join(pieces), [place for place, piece in enumerate(pieces) for _ in piece]


class _Folded(dict[str, str]):
    def __missing__(self, char: str) -> str:
        raised = unicodedata.decomposition(char).startswith(("<super>", "<sub>", "<fraction>"))
        folded = char if raised else unicodedata.normalize("NFKC", char)
        self[char] = "" if unicodedata.category(char) == "Cf" else folded
        return self[char]


_FOLDED = _Folded()


def _lower(text: str) -> str:
    """Lower case of the same length (İ would become two characters)."""
    lower = text.lower()
    return lower if len(lower) == len(text) else "".join(char.lower()[:1] for char in text)


def _any_of(words: Iterable[str]) -> str:
    """A pattern for the longest of `words` that stands here, as a trie: hundreds of words cost little more than one."""
    tails: dict[str, set[str]] = {}
    words = set(words)
    for word in words - {""}:
        tails.setdefault(word[0], set()).add(word[1:])
    branches = [re.escape(head) + _any_of(tail) for head, tail in sorted(tails.items())]
    if "" not in words:
        return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"
    return f"(?:{'|'.join(branches)})?" if branches else ""


def _spans(text: str) -> Iterator[Span]:
    """What each rule finds, in any order, overlaps and all."""
    yield from _labelled(text)
    yield from _numbers(text)
    yield from _addresses(text)
    yield from _chinese_names(text)
    yield from _english_names(text)
    if "(00" in text:
        yield from ((_DICOM[match[1]], *match.span(2)) for match in _DICOM_TAG.finditer(text))
    if ") was born" in text:
        yield from (("record_number", *match.span(1)) for match in _OF_THE_BORN.finditer(text))
    if "@" in text:
        yield from (("email", *match.span()) for match in _EMAIL.finditer(text))
    if "车" in text:
        yield from (("plate", *match.span()) for match in _PLATE.finditer(text))
    if _BIRTH.search(text):
        yield from (("birth_date", *match.span(1)) for match in _BORN.finditer(text))


# --- numbers, dates, addresses ----------------------------------------------------------------------------------------

_GAP = "[-–—‐‑ ]"  # between the groups of a number
_AREA = r"0(?:10|2[0-57-9]|[3-9]\d\d)"
_MOBILE = rf"(?:[(（]?(?:\+|00)?86[)）]?{_GAP}?)?1[3-9]\d(?:{_GAP}?\d{{4}}{_GAP}?\d{{4}}|\d{_GAP}\d{{3}}{_GAP}\d{{4}})"
_LANDLINE = (
    rf"(?:(?:[(（]{_AREA}[)）]{_GAP}?|{_AREA}{_GAP}|(?:\+|00)86{_GAP}?0?(?:10|2[0-57-9]|[3-9]\d\d){_GAP})"
    rf"[2-8]\d{{2,3}}{_GAP}?\d{{4}}(?:-\d{{1,4}}(?!\d))?|{_AREA}[2-8]\d{{6,7}}(?:-\d{{1,4}}(?!\d))?)"
)
_AMERICAN = r"(?:\+?1[-. ])?(?:\([2-9]\d\d\)[ -]?|(?!400|800)[2-9]\d\d[-. ])[2-9]\d\d[-. ]\d{4}"
_ABROAD = r"\+[1-9]\d{0,2}[- ]\(?\d{1,4}\)?(?:[- ]?\d{2,4}){2,4}"
_EXTENSION = r"(?:\s?(?:转|分机|ext\.?|x)\s?\d{1,6}(?!\d))?"
_QUANTITY = r"\s?(?:copies|拷贝|IU|U/|/m?[lL]|[×xX^*]\s?10|%|m[lLg]|[un]g|pg|[次个元万份例])"
_PHONE = re.compile(
    rf"(?<![\dA-Za-z.#_+-])(?:{_MOBILE}|{_LANDLINE}|{_AMERICAN}|{_ABROAD}){_EXTENSION}(?![\d_]|[-.]\d|{_QUANTITY})"
)
_LONG = re.compile(r"\d(?:[-–—‐‑ ()（）.]{0,2}\d){8,}")  # where the slower patterns are worth trying
_ID_CARD = re.compile(r"(?<!\d)[1-9](?:[- ]?\d){16}[- ]?[\dXx](?!\d)|(?<!\d)[1-9]\d{14}(?!\d)")
_BANK_CARD = re.compile(
    r"(?<![\dA-Za-z.-])(?:\d{16,19}|\d{4}([- ])\d{4}\1\d{4}\1\d{4}(?:\1\d{1,3})?)(?![\dA-Za-z]|[-.]\d)"
)
_PROVINCES = {
    *range(11, 16), *range(21, 24), *range(31, 38), *range(41, 47), *range(50, 55), *range(61, 66), 71, 81, 82, 83
}  # fmt: skip
_OF_A_THING = re.compile(
    r"(?:标本|样[本品]|条形?码|检验|化验|流水|批|医嘱|申请|报告|发票|收据|序列|订|处方|货|设备|仪器|试剂|耗材"
    r"|物料|备案|注册"
    r"|测试|伦理|项目|课题|试?管|编|采血|国药准字\w?|specimen|sample|accession|barcode|lot|batch|serial|order"
    r"|catalog(?:ue)?|ref"
    r"|invoice|device|reagent|tube|kit|pmid|isbn|nct|doi|protocol)"
    r"\s?[单条]?(?:编号|号码|号|码|id|no\.?|number|code)?[\s:：=#.为是]*$",
    re.IGNORECASE,
)


def _numbers(text: str) -> Iterator[Span]:
    for digits in _LONG.finditer(text):
        start, end = max(0, digits.start() - 8), digits.end() + 16
        for match in _ID_CARD.finditer(text, start, end):
            number = re.sub("[- ]", "", match[0])
            if is_id_card(number) and (len(number) == 18 or not _of_a_thing(text, match.start())):
                yield "id_card", *match.span()
        for match in _PHONE.finditer(text, start, end):
            if not _of_a_thing(text, match.start()):
                yield "phone", *match.span()
        for match in _BANK_CARD.finditer(text, start, end):
            number = re.sub("[- ]", "", match[0])
            issued = number.startswith("62") or (len(number) == 16 and re.match("4|5[1-5]", number))
            if issued and passes_luhn(number) and not _of_a_thing(text, match.start()):
                yield "bank_card", *match.span()


def _of_a_thing(text: str, start: int) -> bool:
    """Whether the number at `start` is labelled as that of a specimen, an order, a batch …, however it looks."""
    return _OF_A_THING.search(text, max(0, start - 20), start) is not None


def is_id_card(number: str) -> bool:
    """A mainland ID card number: 18 characters with a province, a birth date and a check digit (ISO 7064 MOD 11-2), or
    the 15 digits issued until 1999, which have no check digit."""
    birth = number[6:14] if len(number) == 18 else "19" + number[6:12]
    if len(number) not in (15, 18) or int(number[:2]) not in _PROVINCES or not _is_date(birth):
        return False
    weighted = sum(int(digit) * pow(2, 17 - place, 11) for place, digit in enumerate(number[:17]))
    return len(number) == 15 or "10X98765432"[weighted % 11] == number[17].upper()


def passes_luhn(number: str) -> bool:
    """Whether the check digit is that of a bank card (ISO/IEC 7812)."""
    doubled = (int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(number)))
    return sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0


def _is_date(digits: str) -> bool:
    try:
        return 1850 <= date(int(digits[:4]), int(digits[4:6]), int(digits[6:])).year <= 2100
    except ValueError:
        return False


_MONTH_NAME = (
    "(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?"
    "|Nov(?:ember)?|Dec(?:ember)?)"
)
_YEAR, _MONTH, _DAY = r"(?:18|19|20)\d\d", r"(?:1[0-2]|0?[1-9])", r"(?:3[01]|[12]\d|0?[1-9])"
_NUMERAL = "[〇零○一二三四五六七八九十正冬腊初廿卅]"
_DATE = (
    rf"(?:{_YEAR}\s?[-/.年—–]\s?{_MONTH}\s?[-/.月—–]\s?{_DAY}(?!\d)(?:\s?[日号])?"
    rf"|{_YEAR}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?!\d)"
    rf"|{_NUMERAL}{{4}}年{_NUMERAL}{{1,3}}月{_NUMERAL}{{1,3}}[日号]?)"
)
_MONTH_ONLY = rf"{_YEAR}\s?[-/.年]\s?{_MONTH}(?![\d.])月?"
_BIRTH_DATE = re.compile(
    rf"(?:[农阴阳公]历|on\s)?\s?(?:{_DATE}|{_YEAR}年{_NUMERAL}{{1,3}}月{_NUMERAL}{{1,3}}[日号]?"
    rf"|\d{{1,2}}\s?[-/.]\s?\d{{1,2}}\s?[-/.]\s?(?:{_YEAR}|\d\d)(?!\d)"
    rf"|\d\d\s?[-/.年]\s?{_MONTH}\s?[-/.月]\s?{_DAY}(?!\d)(?:\s?[日号])?"
    rf"|(?:the\s)?{_DAY}(?:st|nd|rd|th)?[-\s/]?(?:\sof)?\s?{_MONTH_NAME}\.?[-,\s/]{{1,2}}(?:{_YEAR}|\d\d)(?!\d)"
    rf"|{_MONTH_NAME}\.?[-\s/]{{1,2}}{_DAY}(?:st|nd|rd|th)?,?[-\s/]{_YEAR}(?!\d)"
    rf"|{_YEAR}[-\s/]{_MONTH_NAME}\.?[-\s/]{_DAY}(?!\d)|{_MONTH_ONLY}|\d\d年{_MONTH}月|{_MONTH_NAME}\.?,?\s{_YEAR})"
    r"(?:[ T]\d\d?:\d\d(?::\d\d)?)?",
    re.IGNORECASE,
)
_BORN = re.compile(
    rf"(?<!\d)({_DATE}|{_MONTH_ONLY})(?:\s?\d{{1,2}}[:：时点]\d{{0,2}}分?)?[^\d\n。；，,;]{{0,10}}?"
    r"(?:出生(?![体史缺地证])|生人|生(?=[的。；，,;)）]|\s|$)|的(?=，住)|顺产|剖宫产)"
)
_BIRTH = re.compile(r"生(?<=[0-9日月号出]生)|产一[男女]婴|的，住")
_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9_%+][A-Za-z0-9._%+-]{0,63}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){0,6}"
    r"\.[A-Za-z]{2,24}(?![A-Za-z0-9])"
)
_PLATE = re.compile(
    r"(?<![A-Za-z0-9])[京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼][A-HJ-NP-Z][·• "
    r"]?(?=(?:[A-Z]?\d){3})"
    r"[A-HJ-NP-Z0-9]{4,5}[A-HJ-NP-Z0-9挂学警港澳](?![A-Za-z0-9])"
)

_PROVINCE_NAMES = _any_of(
    _words(
        "北京 天津 上海 重庆 河北 山西 辽宁 吉林 黑龙江 江苏 浙江 安徽 福建 江西 山东 河南 湖北 湖南 广东 海南 "
        "四川 贵州 云南 "
        "陕西 甘肃 青海 台湾 内蒙古 广西 西藏 宁夏 新疆 香港 澳门"
    )
)
_PLACE_END = _any_of(
    _words(
        "省 市 区 县 旗 盟 自治区 自治州 自治县 地区 特别行政区 开发区 街道 街道办 办事处 镇 乡 村 屯 庄 社区 "
        "小区 新村 花园 家园 公寓 "
        "大厦 广场 大街 大道 路 街 胡同 巷 弄 里 苑 园 城 府 湾 坊 宿舍 家属院 大院 校区 段 寓 村委会 居委会 "
        "村民小组 小组 社 组 队 户 门 楼 号楼 "
        "号院 号 号门 栋 幢 座 单元 室 层"
    )
)
_PLACE = (
    rf"(?>(?:[ ]?(?:(?![的了因患病症诊就伴我术痛热医])[{_HAN}A-Za-z0-9·\-—#]){{0,12}}?[ ]?{_PLACE_END}"
    rf"(?:[(（][^()（）\n]{{1,12}}[)）])?){{1,12}}(?:\d{{1,5}}(?:-\d{{1,4}}){{0,3}}(?![\d.%年月日岁天周次]))?)"
)
_ADDRESS = re.compile(
    rf"(?:家住|现住|居住于|居住在|居于|住在|住于|住(?!院)|户籍在|来自|迁至|搬至|位于|现居|出车至|出诊至|家在"
    rf"|送至)(?:于|在)?\s?({_PLACE})"
    rf"|(?={_PROVINCE_NAMES})({_PLACE})|(?<![{_HAN}])(?=[{_HAN}]{{2,8}}?(?:[市区县镇乡村路街巷弄]"
    rf"|\d{{1,3}}(?:栋|幢|号楼)))({_PLACE})"
)
_NUMBERED = "[0-9A-Za-z一二三四五六七八九十甲乙丙] ?(?:号|栋|幢|弄|单元|室|组|队|社|座|户)"
_DETAIL = re.compile(
    "[号栋幢弄室组队座户社元区寓园里苑城府居舍院地路街巷道村镇乡屯庄]"
    r"(?:(?<=[0-9A-Za-z一二三四五六七八九十甲乙丙][号栋幢弄室组队座户社])|(?<=[0-9] [号栋幢室])|(?<=单元)"
    r"|(?<=[路街巷道])(?=\d)|(?<=[区寓园里苑城府居舍院地])(?=\d{1,3}-\d)|(?<=[村镇乡屯庄]))"
)
_EXACT = re.compile(
    rf"[路街道巷弄里村镇乡区园苑城庄同县厦寓院洲].*?{_NUMBERED}|[省市县区州旗].*?(?:[镇乡村屯庄]|街道)"
    rf"|[路街巷道]\d|[区寓园里苑城府居舍院地]\d+-\d|[镇乡].{{1,8}}村"
)
_STREET_WORD = (
    "(?:Street|St|Avenue|Ave|Road|Rd|Lane|Ln|Drive|Dr(?!\\.? [A-Z])|Boulevard|Blvd|Court|Ct|Way|Place|Pl"
    "|Terrace|Square|Sq"
    "|Parkway|Pkwy|Highway|Hwy|Crescent|Close|Circle|Cir|Trail|Row|Alley|Gardens|Mews|Walk|Hill|Grove)"
)
_ROOM = r"(?:Apt|Apartment|Unit|Suite|Ste|Flat|Floor|Room|Rm|Building|Bldg|Block|\#)\.?[ ]?\#?[\w-]{1,6}"
_COMPASS = "(?:[NSEW]{1,2}|North|South|East|West)"
_NO_PLACE = "(?!(?:He|She|His|Her|They|The|Tel|Phone|Mobile|MRN|DOB|Age|Mr|Mrs|Ms|Dr|Patient|Email|Denies|Reports)\\b)"
_TOWN = (
    rf"(?:,[ ]{_NO_PLACE}[A-Z][A-Za-z.’'-]*(?!\w)(?:[ ][A-Z][A-Za-z.’'-]*(?!\w)){{0,2}}){{0,4}}"
    r"(?:,?[ ](?:\d{5,6}(?:-\d{4})?|[A-Z]{1,2}\d[A-Z\d]?[ ]\d[A-Z]{2})\b)?"
)
_STREET = re.compile(
    rf"(?<![\w.$#/-])(?:{_ROOM},[ ]){{0,3}}(?:No\.?[ ]?)?\d{{1,5}}[A-Za-z]?(?:-\d{{1,5}})?,?[ ](?:{_COMPASS}\.?[ ])?"
    rf"(?:(?!(?:{_MONTH_NAME}|{_STREET_WORD})\b)(?:[A-Z][A-Za-z’'-]+|\d{{1,3}}(?:st|nd|rd|th))[ ]|St\.[ "
    rf"](?=[A-Z])){{1,4}}?"
    rf"{_STREET_WORD}\b\.?(?:,?[ ](?:{_COMPASS}\b|{_ROOM})){{0,3}}{_TOWN}"
    rf"|\bP\.?[ ]?O\.?[ ]Box[ ]\d+{_TOWN}"
)
_NEXT_LABEL = re.compile(
    rf"\s{{2,}}|\s*(?:[{_HAN}]{{2,6}}[:：]|(?:联系)?(?:电话|方式)|手机|邮编|邮政编码|联系人|性别|年龄|职业"
    rf"|工作单位|民族|身份证|诊疗卡|就诊卡|住院号|病案号|门诊号|病历号|入院|病史|婚姻|邮箱|电子|收件人"
    rf"|联系邮箱|[(（［](?:电|E|邮|联))"
    rf"|[,.]?\s+(?:[A-Z][A-Za-z ]{{1,20}}:|(?i:phone|tel|mobile|mrn|dob|age|sex|email|zip)\b)|[.]\s+[A-Z][a-z]+\s[a-z]"
)


def _addresses(text: str) -> Iterator[Span]:
    if not text.isascii() and _DETAIL.search(text):
        for match in _ADDRESS.finditer(text):
            if _EXACT.search(text, *match.span(match.lastindex)):
                yield "address", *match.span(match.lastindex)
    if _HOUSE.search(text):
        yield from (("address", *match.span()) for match in _STREET.finditer(text))


_HOUSE = re.compile(r"[0-9B](?:[A-Za-z]?,? (?:[A-Z]|\d{1,3}[a-z])|ox \d)")


_ADDRESS_TEXT = re.compile(r"[^，。；;\n\t|｜<>\[\]【】［］\"”*]{4,120}")


def _read_address(text: str, start: int) -> int:
    """Where the address that begins after a label ends, or `start` if there is none."""
    if street := _STREET.match(text, start):
        return street.end()
    value = _ADDRESS_TEXT.match(text, start)
    if not value:
        return start
    following = _NEXT_LABEL.search(text, start + 1, value.end())
    end = following.start() if following else value.end()
    found = text[start:end].rstrip(" ,、.\"”'")
    likely = re.search(rf"[{_HAN}]{_PLACE_END}|{_NUMBERED}", found) or re.search(r"\d.*[A-Z]|[A-Z].*\d", found)
    return start + len(found) if likely and found not in _GROUPS else start


_DICOM = {"0010,0010": "name", "0008,0090": "name", "0010,0020": "record_number", "0010,0030": "birth_date"}
_DICOM_TAG = re.compile(r"\((0010,00[123]0|0008,0090)\) [A-Z]{2} \[([^\[\]\n]+)\]")
_OF_THE_BORN = re.compile(r"\(([A-Z]{0,3}-?\d[\dA-Z/ -]{3,14})\) was born")


# --- names ------------------------------------------------------------------------------------------------------------

# By how common they are; the traditional forms at the end.
_SURNAMES = (
    "王李张刘陈杨黄赵吴周徐孙马朱胡郭何高林罗郑梁谢宋唐许韩冯邓曹彭曾肖萧田董袁潘于蒋蔡余杜叶程苏魏吕丁任沈姚卢姜"
    "崔钟谭陆汪范金石廖贾夏韦付傅方白邹孟熊秦邱江尹薛闫阎段雷侯龙史陶黎赖洪贺顾毛郝龚邵万钱严覃武戴莫孔向汤温常康施文牛"
    "樊葛邢安齐易乔伍庞颜倪庄聂章鲁岳翟殷詹申欧耿关兰焦俞左柳甘祝包宁尚符舒阮柯纪梅童凌毕单季裴霍涂成苗谷盛曲翁冉"
    "骆蓝路游辛靳管柴蒙鲍华喻祁蒲房滕屈饶解牟艾尤阳时穆农司卓古吉缪简车项连芦麦褚娄窦戚岑景党宫费卜冷晏席卫米柏宗"
    "瞿桂全佟应臧闵苟邬边卞姬师仇栾隋商刁沙荣巫寇桑郎甄丛仲虞敖巩明佘池查麻苑迟邝官封谈匡鞠惠荆乐冀郁胥南班储原栗"
    "燕楚鄢劳谌奚皮粟冼蔺楼盘满闻位厉伊仝区郜海阚花权强帅屠豆朴盖练廉禹井祖漆巴丰支卿国狄平计索宣晋相初门云容敬来"
    "扈晁芮都普阙浦戈伏鹿薄邸雍辜羊阿乌母裘亓修邰赫杭况那宿鲜印逯隆茹诸战慕危玉银亢嵇公哈湛宾戎勾茅利呼居揭干但尉"
    "冶斯元束檀衣信展阴昝智幸奉植衡富尧闭东逄郗暴隗宓訾仉郄靖佀笪和净钭闾昌庾浮糜苌戢郇菅巢贡張劉陳楊黃趙吳"
    "孫馬鄭謝許韓馮鄧蕭蔣葉蘇盧鍾譚陸賈韋鄒賀顧龔錢嚴湯龍莊顏齊喬龐倫聶魯歐關蘭單紀連蘆費衛應邊師叢鄔閔閻遲談儲圍"
    "藍羅呂萬"
)
_COMPOUND = _words(
    "东方 欧阳 司马 上官 诸葛 夏侯 皇甫 尉迟 公孙 慕容 令狐 宇文 长孙 司徒 司空 端木 独孤 南宫 申屠 淳于 轩辕 "
    "钟离 呼延 赫连 澹台 濮阳 拓跋 歐陽 司馬 諸葛 長孫"
)
# Surnames that are more often words, and the given-name characters that make words of them.
_DOUBTFUL = frozenset(
    "常于方毛万向安易关左包单成路管房解时古车项连党冷米全应边栾隋商刁沙荣巫寇桑郎甄丛仲敖巩明佘池查麻苑迟邝官封谈匡"
    "鞠惠荆乐冀郁胥南班储原栗燕楚鄢劳谌奚皮粟冼蔺楼盘满闻位厉伊仝区郜海阚花权强帅屠豆朴盖练廉禹井祖漆巴丰支卿国狄"
    "平计索宣晋相初门云容敬来扈晁芮都普阙浦戈伏鹿薄邸雍辜羊阿乌母裘亓修邰赫杭况那宿鲜印逯隆茹诸战慕危玉银亢嵇公哈"
    "湛宾戎勾茅利呼居揭干但尉冶斯元束檀衣信展阴昝智幸奉植衡富尧闭东逄郗暴隗宓訾仉郄靖佀笪和净钭闾昌庾浮糜苌"
    "戢郇菅巢贡"
)
_EVERYDAY = frozenset(
    "衡一万三上世东中义之乐人代化北本生天少大小平年广开成新方日时明月有来正水永治理用直相知社科空立第美能自行西言"
    "记谈起近进重长问间阳阴青静音高力功先才多好同合名向心意念想容易气热体内外面头手工作品位里南边路线段门口家园地"
    "法规定则思常可以果实红白黄黑绿色干净然后前会议学校课程"
)
# What parents choose from; a name in prose is made of these.
_GIVEN = frozenset(
    "犇有复美援跃进长来招弟二群锡延沪革朝翰豪若香焦发旋佑继梓川茜亦学少子娜芷诗改东方火羽呷晗翠博钦宋木民素水根京"
    "津渝冀晋豫鲁鄂湘粤贵秋仁福定敬仲权登业庭秉戈桓立然微可依沫茹芯蕴熹璃琉澍骞淏喻桉柠汐汝渲漾珞粲缇羡苓莞葳蒽蓁"
    "苡裳诣谚赟轲迦钥铄锴锟闵雍霈韶颀颐飏骐鸢珅栀棠槿樾橙歆沅沄泠湉焓煦爔珣琀瑀祺筱翘聿胤萤菀衍邈锜阅颢馥麓栓锁拴"
    "仓粮满杏枝妞财仕甫勤俭家林华淳维岗嵩甜鹰屏佰沣珉炯炀秭竣纾舟菱蒲蕙薰虔裴谕赓辕迅郦酉钏铨锃鞠颉飚驹骢鲲鹞一丁"
    "万三上世中丰丹丽义乐云五亚亭亮人仙令仪任伊伍伟传伦伯佐作佩佳侃侠俊保信修倩倪健偲傲儒允元兆先光克全兰关兴兵典"
    "兹养内冉军农冠冬冰冲决冶冷净凌凝凡凤凯凰刚利则力功加劲勃勇勉勋包化北千升卉卓南卫印卿厚原友双叔叶合吉同名向君"
    "启周和咏品哲唐唯善喆喜嘉园国圆圣圭地坚坤坦垚城培基堂堃增墨士声壮夏多大天太夫夷奇奎奕好如妃妍妙妤妮妹姗姝姣姿"
    "威娅娇娟娣娥娴婉婕婧婵婷媚媛嫒嫣嫦存孜孝宁宇守安宏宗官宜宝实宣宪宸宾寅富寒寿尉小尔尧尚展山岐岑岚岩岭岳峥峰峻"
    "崇崎崧嵘州巍工巧己巴帅希帆师常平年幸广庄庆庚应康廉廷建开强弘弛彤彦彧彩彪彬彭影彰彻征律德心志忠念忻怀怡思恂恋"
    "恒恩恬恭悠悦情惜惟惠意愉愚慈慎慕慧懋懿成才承技抒拓振捷掌揆敏文斌斐斓斯新旖旗旦旭时旺昀昂昆昊昌明易昔星映春昭"
    "是昱显晁晏晓晔晖晚晟晨普景晴晶智暄暖曙曜曦曼月朋望朗本朱朴杉材村杜杨杭杰松枚果枫柏染柔柯柱柳标栋栩树格桂桃桐"
    "桑桥梁梅梦棋森植椿楚楠楷榆榕槐樱欣欢歌正武殊殿毅永汉江池汪汶沁沂沐沙沛河治沿泉泓法波泰泳泽洁洋洪洲浩浪海涛涵"
    "润淇淑淞深淼清渊温渺游湄源溢溪滢滨漪漫潇潍潞潮澄澈澎澔澜澳瀚灏灵灿炎炜炫炳烁烈烨焕焘焱煊煌煜照熙熠燕爱爽牧特"
    "玉玖玘玛玟玥玫玮环现玲玺珂珈珊珍珏珑珠珩班珺琅理琛琦琨琪琬琰琳琴琼瑄瑕瑗瑛瑜瑞瑟瑶瑾璇璋璐璟璠璧生用田甲申畅"
    "留白百皓益盈盛盟直相真睿知石砚硕碧磊礼社祎祖祝祥祯禄禧禹禾秀科秦程稳穆童端竹笑笛笙筠简算箐籽粟精紫红纪纬纯纲"
    "纳纶练绍经绮绿缘翀翊翎翔翼耀耘聪肃胜胡能臣自至舒舜航良艳艺艾节芃芊芝芙芬芮花芳芸苏苑苒英苹茂范茉茗茵荃荣荷莉"
    "莎莲莹菁菊菡菲萌萍萱萸落葆葵蒙蓉蓓蓝蔓蔚蔷蕊蕾薇藜藤虎虹蝶融行衡裕西观言誉论评诏诚语诺谊谦谨谱贝贞贤贺赋赛赞"
    "赫起超越轩轶辉辰边达运远连迪迎逸道遥遵邦郁郡采里重野金鑫钊钧钰钱铁铃铎铖铠铭银铮锋锐锦镇镜问闯闻闽阔阳陆陵隆"
    "雁雄雅雨雪雯雷震霁霄霆霏霖霜霞露青靓靖静鞍韦音韬韵顺颂预领颖颜风飒飞馨马驰骁骏骥高鱼鲜鸣鸿鹃鹏鹤鹭麒麟黎黛鼎"
    "龄龙偉國華強軍麗傑濤蘭鳳龍飛鴻鵬榮紅蓮葉瑩嬌婭嫻傳倫儀優億興養農寶實憲賓壽堯師廣慶應開彌徹恆愛懷戰揚時書會業"
    "東楊樂樹橋權歡澤潔濱灣煥燁爾環瑋現璽畫盧禮禎穎穩筆節純紹維綱緯聖聰肅舉藝蔣蘇蘊術觀誠語誼論謙賢貞貴賀賜賽輝達"
    "遠運適鄭錦鋒鋼鎮鏡鐵閣關陽雲靈靜韻順領頌題顏風馬駿魯鶴黃點齊"
)
_NEVER_GIVEN = frozenset(
    "的了在不无未会性别女岁号室院病医患者我你他她它们这那哪什么吗呢吧啊呀哦嗯很最更就都也还又再只被把给让对从往以"
    "及或而但因所由等下左右前后外间低入出住诊疗药术症痛热肿血尿便压呼吸咳嗽痰胸腹头脚手肢肝肾肺胃肠脾胆骨皮肤检查"
    "验测量服注射脉每次日分秒已曾疑似考虑议需要请告联系电话签字姓某具体详见记录报结异"
)
_MANLY = frozenset(_words("胜男 亚男 若男 冠男 如男 超男 赛男 似男 圣男 一男 楠男"))
# Words that look like a name: surname and given-name characters.
_WORDS = frozenset(
    _words(
        "康忻 周内有 雷沙吉兰 史上 周来自 周余来 冷藏 周阴道 成员 方案 毕业生 商品粮 关节炎 蒲地蓝 安达唐 施慧达 "
        "曾应用 高成本 徐长卿 戈登征 易坦静 房水清 阴道畅 阴道炎 成人和 曾服用 羊水清 宫高正 雷诺现 吉林 余天 戴镜 "
        "杜仲 黄精 权重 吉兰 初潮 闭合 毕业 伊朗 房水 平顺 宫高 白发 原来 利用 农业 居中 居家 修复 隆起 薄荷 白芷 "
        "白果 白花 黄水 丰满 曲线 冷水 陆续 何如 何时发 雷诺 黄连素 技师 江苏 浙江 河南 河北 湖南 湖北 山东 山西 "
        "江西 陕西 云南 海南 广东 广西 福建 安徽 贵州 四川 甘肃 青海 宁夏 上海 天津 北京 重庆 长沙 长春 南昌 西安 "
        "海口 春天 秋天 夏天 冬天 春季 早晨 清晨 凌晨 安全 安静 安宁 安康 安慰 安心 平安 高明 高兴 高龄 高热 高血 "
        "高度 高温 高声 高大 高中 高低 黄金 黄连 黄芪 黄疸 黄昏 白天 白领 白班 白净 白云 白马 常年 常用 常有 常见 "
        "常青 方便 方向 方法 方正 时常 时有 时间 时而 时光 成年 成人 成长 成功 成果 文静 文化 文明 和平 和气 平时 "
        "平静 平稳 平常 平民 平和 温和 温暖 温度 温柔 冷静 严重 严格 严肃 严明 明显 明天 明确 明亮 明白 全国 全年 "
        "全天 全程 全部 全家 单纯 单位 单一 单元 强烈 强化 强大 强直 丰富 应当 应用 应有 相信 相关 相同 相应 连年 "
        "连夜 连连 连声 向上 向前 向来 从事 从容 从来 从小 于今 于是 曾经 曾有 曾用 曾在 曾于 曾因 曾服 曾患 元旦 "
        "国庆 中秋 春节 季节 初中 初一 万一 万元 左边 左侧 右边 关节 关心 关中 金额 金银 石子 石化 钱财 花生 花粉 "
        "花钱 马上 车祸 路上 路边 家中 家里 毛发 毛巾 项目 计算 计划 党员 管理 商人 农民 农村 农田 干部 干净 干预 "
        "干农 官兵 卫生 卫士 司机 师傅 战士 武汉 南京 沈阳 苏州 江南 江北 东北 东南 东西 东方 华北 华东 华中 华南 "
        "康复 宁静 乐观 乐意 满意 满月 尚可 尚有 尚好 尚能 尚无 幸福 幸好 幸运 富有 易感 易怒 易激 解决 解开 屈曲 "
        "支持 支气 信心 信任 修养 权益 利益 闻及 闻名 郑重 谈话 谈论 谈起 谢绝 谢谢 祝福 包括 包好 包块 祖父 祖母 "
        "祖国 童年 晋级 门人 门上 房子 房中 楼上 楼下 来信 来自 那天 那时 那里 那边 那日 那年 母亲 公司 公安 公园 "
        "公开 公里 公民 公元 甘油 麦粒 麻木 麻醉 皮肤 曲张 水肿 水平 步行 广泛 钢琴 空腹 空军 海鲜 海军 汤圆 牛奶 "
        "鱼油 双侧 双肺 都有 都好 晚上 阴影 阴道 阴天 雷雨 雷声 双方 双手 双眼 双耳 双足 双膝 宗教 宣传 宣教 费用 "
        "费力 席地 位于 宿舍 居民 居多 居住 束带 揭开 展开 植树 奉献 储存 班长 班上 施行 施工 游泳 鲜红 鲜血 古代 "
        "原因 原先 原有 原发 任意 任何 任务 尤其 艾灸 艾草 谷物 米饭 米粉 麦片 茶水 红润 红肿 梅花 桂花 兰花 荷花 "
        "芦荟 柴胡 葛根 钟表 项链 符合 穆斯林 闭目 闭经 寿命 经济 经常 经年 何时 何人 何故 何以 何种 何处 何首乌 "
        "余年 余万 余可 余无 余良 余好 余同 余正常 许多 许久 许可 钱包 顾虑 顾及 盛夏 盛大 盘旋 盘子 曲折 曲直 荣誉 "
        "贺岁 金黄 金属 龙虾 莫名 莫非 莫大 庄重 庄严 章程 纪念 纪录 段时间 段落 范围 程度 程序 贾第 齐全 伍用 邢台 "
        "柳州 柳絮 景观 景色 景象 束缚 宫内 宫颈 宫缩 宫外 宫口 宫底 巫婆 辛苦 辛辣 王浆 王老吉 李子 杏仁 张口 张力 "
        "张嘴 张开 周一 周二 周三 周四 周五 周六 周日 周末 周年 周期 周边 周围 周身 吴茱萸 徐缓 孙子 孙女 马应龙 "
        "马来酸 朱红 胡须 胡言 林间 郭公 罗红霉素 梁柱 宋朝 唐氏 唐朝 邓小平 韩国 冯氏 程控 曹操 田间 田地 田野 石膏 "
        "石淋 石斛 金水宝 金银花 白云山 华法林 华氏 方能 方可 方知 方才 于术 云南白药 安宫 牛黄 同意 向家属 向医 "
        "沙星 沙坦 路途 路人 全身 全力 全文 全新 单人 单独 党内 公道 公平 公益 农用 利尿 力竭 严寒 严谨 严峻 平卧 "
        "平躺 平坦 平平 平日 平生 温水 温热 高原 高山 高处 高空 高贵 高新 高端 常理 常态 常规 常温 方言 华人 华夏 "
        "时刻 时时 时节 时期 时代 石头 任职 车子 车上 车间 连同 向东 向南 向西 向北 甘草 甘心 白银 白金 白化 白内 "
        "杭州 兰州 温州 郑州 徐州 常州 惠州 荆州 高州 金华 安阳 安庆 东莞 华山 黄山 黄河 黄海 黄冈 黄石 江山 江阴 "
        "泰山 海外 宁波 国外 国内 国产 国道 文山 乐山 乐园 庆幸 云山 石家庄 商丘 成都 马山 祁阳 祁东 邵阳 岳阳 衡阳 "
        "益阳 贵阳 洛阳 咸阳 信阳 濮阳 南阳 阳光 阳春 阳泉 阳江 阳新 强力 强行 凌云 应城 应急 应力 单行"
    )
)
_NO_NAMES = frozenset(
    _words(
        "符合 年龄 性别 单位 盖章 时间 方式 高血压 日期 意见 保密 匿名 同前 本人 家属 患者 家长 不祥 缺失 空白 未知 "
        "信息 签名 盖章 民族 职业 出生 年月 婚姻 籍贯 电话 地址 住址 身份证 身份 如图 附后 略去 隐去 隐私 脱敏 某某 "
        "测试 单位 工作 关系 联系 科别 床号 汉族 已婚 未婚 学生 农民 工人 职员 退休 儿童 婴儿 新生儿 老年 成人 "
        "无名氏"
    )
)
# What may follow a name without a mark between.
_FOLLOWERS = _words(
    "倒地 遵 交班 接班 收 补充 均 外出 看 卧床 症状 好转 睡眠 记得 突发 协助 随诊 老师 如 到场 辗转 心率 夜间 晨 "
    "午 治 继续 性别 男 女 年龄 出生 生日 生于 民族 汉族 回族 职业 婚姻 婚育 已婚 未婚 科 病区 病房 床 住院 门诊 "
    "病案 病历 登记 身份 证件 电话 手机 联系 住址 地址 家庭 家住 现住 户籍 籍贯 工作 单位 与 关系 日期 时间 诊断 "
    "主诉 主因 入院 出院 先生 女士 小姐 太太 同志 主任 副主任 副教授 主治 医师 医生 大夫 护士 护师 教授 签 因 于 "
    "自 在 今 昨 已 诉 称 述 患 曾 有 无 系 为 是 即 及 和 的 之 家属 本人 代 确认 陪 由 术 神志 病情 目前 一般 "
    "现 近 既往 否认 查体 复查 就诊 来院 来诊 前来 转 经 行 反复 再次 拟 需 要求 拒绝 同意 表示 说 问 感 觉 出现 "
    "意识 精神 情绪 步行 平车 轮椅 被 体温 血压 发热 仍 未 不 能 可 向 到 去 来 后 前 等 也 还 又 再 从 对 将 把 "
    "给 让 请 约 每 长期 常年 平素 至 生命 呼吸 胸 腹 头 咳 发 第 末次 口服 服 自述 随 回 身高 体重 身份证 共同 "
    "一起 一同 送 带 急诊 要求保守 要求出院 如病情 目前一般 精神可 陪同 交代病情 均在场 在场 同病室 外出检查 "
    "反复沟通 症状好转 睡眠尚可 已缴费 照护 的丈夫 的妻子 的母亲 的父亲 的爱人 的儿子 的女儿 的报告 的检查结果 "
    "的家属 明日手术 看的"
)
# What patients and doctors do, in records: a name stands before.
_ACTS = _words(
    "随诊 交班 接班 拒绝 要求保守 要求出院 如病情 目前一般 突发 卧床 到场 补充 精神可 陪同 交代病情 均在场 在场 "
    "同病室 外出检查 反复沟通 同意 症状好转 睡眠尚可 自述 已缴费 来院 照护 的丈夫 的妻子 的母亲 的父亲 的爱人 "
    "的儿子 的女儿 的报告 的检查结果 的家属 明日手术 看的"
)
# Tibetan, Mongolian, Yi and Uyghur names, alone or one after another.
_UNITS = _words(
    "尼玛 央金 其木格 苏日娜 高娃 德吉 央宗 卓玛 扎西 次仁 格桑 梅朵 洛桑 丹增 旺堆 巴桑 旦增 拉姆 多吉 达瓦 "
    "次旦 平措 索朗 边巴 普布 顿珠 桑吉 仁青 才让 白玛 强巴 曲扎 曲珍 巴图 乌云 斯琴 娜仁 那仁 萨仁 图雅 托娅 "
    "格日勒 朝鲁 苏和 宝音 阿古拉 吉克 阿优 沙马 阿苦 木呷 日呷 子哈 买买提 艾合买提 阿依古丽 古丽 吐尔逊 热合曼 "
    "玉素甫 依明 阿卜杜拉"
)
# Capitalised words that stand where a name could and are none.
_NO_NAME = frozenset(
    _words(
        "arbor birthdate callback mrn attn mr mrs ms miss mx dr prof rev sir madam dear male female age aged sex "
        "gender dob date birth born id no number phone tel telephone mobile cell email e-mail address room ward bed "
        "department dept clinic hospital service services unit team center centre medical medicine surgery surgical "
        "cardiology oncology neurology nephrology urology gastroenterology radiology pathology pediatrics "
        "paediatrics psychiatry dermatology orthopedics orthopaedics emergency intensive care icu er ed ent patient "
        "patients physician physicians doctor doctors nurse nurses nursing practitioner attending resident history "
        "chief complaint complaints present presenting diagnosis allergies allergy medications medication denies "
        "reports states presents presented complains admitted admission discharged discharge seen yes not none "
        "unknown unidentified anonymous n/a na unspecified self same see the this that these those a an he she they "
        "his her their it its i we you your my our on in at of and or but for with without from to by as if then "
        "there here who what when where why how which do does did can could will would should may might must has "
        "have had is was are were been be being md rn np pa phd bsn mph hispanic white black asian caucasian african "
        "american european indian chinese latino alert awake oriented stable well good fair poor normal abnormal "
        "negative positive pain acute chronic severe mild moderate hypertension diabetes type cancer breast chest "
        "lung heart liver renal kidney blood pressure pulse temperature weight height bmi hr bp rr temp spo2 left "
        "right upper lower bilateral father mother wife husband son daughter brother sister spouse partner friend "
        "guardian caregiver parent parents family next kin contact insurance policy account status marital married "
        "single widowed divorced occupation race ethnicity language religion january february march july august "
        "september october november december monday tuesday wednesday thursday friday saturday sunday today "
        "yesterday tomorrow hello hi thanks thank sorry okay ok sure please yeah plan assessment impression "
        "objective subjective review systems exam examination physical laboratory labs imaging procedure procedures "
        "treatment therapy follow follow-up notes note report summary record records chart signature signed time "
        "page name first last middle full given surname initials street road avenue lane drive boulevard disease "
        "syndrome infection fever cough headache nausea vomiting dyspnea stroke myocardial infarction asthma copd "
        "pneumonia sepsis arthritis alive deceased dead living old year years month months week weeks day days hour "
        "hours newborn infant child adult elderly teenager woman man girl boy lady gentleman baby general primary "
        "consultant specialist surgeon assistant technician manager social worker director professor officer staff "
        "group associates university college school medicare medicaid aspirin metformin lisinopril insulin warfarin "
        "heparin atorvastatin ii iii iv stage grade class level score scale test tests result results sample "
        "specimen value reference range units dose daily tablet tablets capsule mg ml"
    )
)
_GIVEN_NAMES = frozenset(
    _words(
        "rose june zhiqiang jianguo guoqiang meiling xiuying yuting xiaohong xiaoyan jianhua zhigang haiyan lili "
        "jian guo xiao yu ting chantal jean rafael grant lihua haoran raj faith hope april grace siobhan olga kwame "
        "yuki will xiaoming ngozi marek agnieszka hiroshi ivan aoife zoë chloë björn lucía josé astrid eugene harold "
        "mildred gladys james john robert michael william david richard joseph thomas charles christopher daniel "
        "matthew anthony mark donald steven paul andrew joshua kenneth kevin brian george edward ronald timothy "
        "jason jeffrey ryan jacob gary nicholas eric jonathan stephen larry justin scott brandon benjamin samuel "
        "gregory frank alexander raymond patrick jack dennis jerry tyler aaron jose henry adam douglas nathan peter "
        "zachary kyle walter jeremy ethan carl keith roger gerald christian terry sean arthur austin noah lawrence "
        "jesse joe bryan billy jordan albert dylan bruce willie gabriel alan juan logan wayne ralph roy randy "
        "vincent russell louis philip bobby johnny bradley mary patricia jennifer linda elizabeth barbara susan "
        "jessica sarah karen lisa nancy betty sandra margaret ashley kimberly emily donna michelle carol amanda "
        "melissa deborah stephanie dorothy rebecca sharon laura cynthia amy kathleen angela shirley brenda emma anna "
        "pamela nicole samantha katherine christine helen debra rachel carolyn janet maria catherine heather diane "
        "olivia julie joyce victoria ruth virginia lauren kelly christina joan evelyn judith andrea hannah megan "
        "cheryl jacqueline martha madison teresa gloria sara janice ann kathryn abigail sophia frances alice judy "
        "isabella julia amber denise danielle marilyn beverly charlotte natalie theresa diana brittany doris kayla "
        "alexis lori marie tiffany ellen claire fiona ian hugh graham simon nigel oliver harry charlie liam mason "
        "lucas ella mia ava chloe lily sophie lucy molly rosa carmen ana luis carlos miguel pedro antonio jorge "
        "ahmed mohammed muhammad ali fatima omar hassan aisha priya anil sanjay wei ming jing li yan ying hui xin "
        "min jun lei tao hao lin mei fang hong hua ping wang zhang chen liu zhao yang huang wu zhou xu sun ma zhu hu "
        "he luo"
    )
)
_SURNAME = re.compile(rf"{_any_of(_COMPOUND)}|[{_SURNAMES}]")
_DOTTED = re.compile(rf"[{_HAN}]{{1,10}}(?:[·•・‧][{_HAN}]{{1,10}}){{1,3}}")
_SPACED = re.compile(rf"[{_SURNAMES}][ 　]{{1,3}}[{_HAN}](?:[ 　]{{1,3}}[{_HAN}])?(?![{_HAN}])")
_TRANSLITERATED = re.compile(rf"{_any_of(_UNITS)}({_any_of(_UNITS)}){{0,2}}")
_ALL_HAN = re.compile(rf"[{_HAN}]+")
_NAME_ENDS = re.compile(rf"(?![{_HAN}])|{_any_of(_FOLLOWERS)}")
_RUN = re.compile(rf"[{_HAN}]{{2,6}}(?![{_HAN}])|[{_HAN}]{{2,4}}?(?={_any_of(_FOLLOWERS)})")
_SECONDS = _GIVEN.union(_SURNAMES, "".join(_COMPOUND), "".join(_UNITS))
_LASTS = "".join(sorted(_SECONDS))
_PERSON_AHEAD = re.compile(
    rf"[，,、(（ \t](?<=[{_LASTS}][{_LASTS}].) ?(?:[男女]|生于|出生|住院|住 院|病人ID|病案号|病历号|门诊号|就诊|登记号"
    rf"|证件|身份证|[1-6]\d{{5}}(?:19|20)|电话|手机|MRN|工号|(?:19|20)\d\d ?[-/.年] ?\d|1[3-9]\d[- ]?\d{{4}}"
    rf"|[（(]?\+?86|夫妻|父子|母子|母女|父女|兄弟|姐妹|同事|朋友|(?<=[（(])(?:[\u4e00-\u9fff]{{1,10}}科"
    rf"|ICU)[)）]|\d{{1,3}} ?岁|(?<=[（(])(?:患者|[之其])|妻子|丈夫|[父母]亲|儿子|配偶|家属|本人)"
    rf"|[男女]\d{{1,3}} ?岁"
)
_SEX_AHEAD = re.compile(r"[，,、(（ \t] ?(?:[男女]性?[，,、；;)） \t]|\d{1,3} ?岁|性别)")
_ACTING = frozenset([*_ACTS, "（章）"])
_DOT = re.compile("[·•・‧]")
_TITLE = re.compile(
    f"{'|'.join(_ACTS)}|（章）|先生|女士|小姐|太太|主任|副主任|主治医|住院医|医师|医生|教授|副教授|护士|护师|大夫"
)
_FOREIGN = re.compile(
    rf"(?<![{_HAN}])[{_HAN}]{{1,6}}(?:[·•・‧][{_HAN}]{{2,6}}?(?:(?={_any_of(_FOLLOWERS)})|(?![{_HAN}])))+"
)
_PAIR = re.compile(rf"(?<![{_HAN}])([{_HAN}]{{2,4}})/([{_HAN}]{{2,4}})(?![{_HAN}])")
_LINE_STARTS = frozenset(["", "\n", " ", "　", "\t", "（", "("])
_ENDS_LINE = re.compile(r"[ 　\t）)]*(?:\n|\r|$)")
_LINE_TO = re.compile(r"(?:^|\n)[ 　\t（(—-]*(?:\d{4}[-/.年]\d\d?[-/.月]\d\d?日?[ 　])?$")
_BED = re.compile(r"床(?<=\d床)[ 　:：，]{0,2}|@")
_ADDRESSED = {"先生", "女士", "小姐", "太太"}
_MAY_PRECEDE = frozenset("者人儿属科室院部组经由请与向及和是叫找给生士任授长师诉")
_FREQUENT = frozenset(_SURNAMES[:230])
_COMMON = frozenset(_SURNAMES[:120]) - _DOUBTFUL
_COMPOUNDED = frozenset(name[0] for name in _COMPOUND)
_MOST = frozenset(_SURNAMES[:300]).difference(_DOUBTFUL).union(_COMPOUNDED)
_FIRSTS = frozenset(_SURNAMES).union(_COMPOUNDED, (name[0] for name in _UNITS))
_ALONE = re.compile(rf"[{_SURNAMES}{''.join(sorted(_COMPOUNDED))}](?<![{_HAN}0-9].)(?=[{_LASTS}])")

PROSE, ROLE, TITLE, LABEL, NAME = range(5)  # how surely a name stands here, by the place alone


def _han_name(text: str, start: int, trust: int) -> int:
    """Where the Chinese name that starts here ends; `start` if there is none.

    PROSE   患者王小明诉…   surname and given-name characters, no common word
    ROLE    患者：王小明，  the same, and an end
    TITLE   高原主任        as ROLE, common words too
    LABEL   签名：王小明    a surname, nothing that no name holds, an end
    NAME    姓名：买买提    nothing that no name holds, an end
    """
    if match := _DOTTED.match(text, start):
        return match.end()
    if trust >= ROLE and (match := _SPACED.match(text, start)):
        return match.end()
    if surname := _SURNAME.match(text, start):
        given = surname.end()
        sizes = (3, 2, 1) if {text[start], text[given : given + 1]} <= _COMMON else (2, 1)
        ends = [given + size for size in sizes if _is_name(text, start, given, given + size, trust)]
        for end in ends:
            if _NAME_ENDS.match(text, end):
                return end
        if trust == PROSE and given + 2 in ends and (given - start > 1 or text[start] not in _DOUBTFUL):
            return given + 2
    if (match := _TRANSLITERATED.match(text, start)) and _NAME_ENDS.match(text, match.end()):
        return match.end()
    if trust == NAME and (match := _RUN.match(text, start)):
        return match.end() if match[0] not in _NO_NAMES and not _NEVER_GIVEN.intersection(match[0]) else start
    return start


def _is_name(text: str, start: int, given: int, end: int, trust: int) -> bool:
    """Whether text[start:end], whose surname ends at `given`, is a name, by what the place says."""
    name, chars, first = text[start:end], text[given:end], text[start]
    if len(chars) < end - given or name in _NO_NAMES or (chars[-1] == "男" and chars not in _MANLY):
        return False
    if trust >= LABEL or _SEX_AHEAD.match(text, end):
        return _ALL_HAN.fullmatch(chars) is not None and not _NEVER_GIVEN.intersection(chars)
    if name in _WORDS and not (trust == TITLE and first in _FREQUENT):
        return False
    apart = not _is_han(text[end : end + 1])
    if given - start == 1 and first in _DOUBTFUL:
        everyday = trust == PROSE and not (apart and first in _FREQUENT) and _EVERYDAY.intersection(chars)
        if everyday or {text[start : start + 2], chars} & _WORDS:
            return False
    two_surnames = chars[0] in _COMMON and _GIVEN.issuperset(chars[1:]) and (trust >= ROLE or apart)
    return two_surnames or _GIVEN.issuperset(chars)


def _chinese_names(text: str) -> Iterator[Span]:
    if text.isascii():
        return
    yield from _before_titles(text)
    yield from _between_marks(text)
    for match in _BED.finditer(text):
        yield "name", match.end(), _han_name(text, match.end(), PROSE)
    for match in _PERSON_AHEAD.finditer(text):
        end = match.start()
        for start in range(max(0, end - 4), end - 1):
            if _may_begin(text, start) and (_begins(text, start) or text[start - 1] == "由"):
                yield "name", start, end if _han_name(text, start, ROLE) == end else start
    for match in _TRANSLITERATED.finditer(text):
        if match[1] or (_begins(text, match.start()) and _NAME_ENDS.match(text, match.end())):
            yield "name", *match.span()
    if _DOT.search(text):
        yield from (("name", *match.span()) for match in _FOREIGN.finditer(text))


def _before_titles(text: str) -> Iterator[Span]:
    """王小明主任医师; 王小明拒绝手术; the 王 of 王女士."""
    for match in _TITLE.finditer(text):
        end = match.start() - (text[match.start() - 1 : match.start()] in {" ", "　"})
        trust = ROLE if match[0] in _ACTING else TITLE
        for start in range(max(0, end - 4), end - 1):
            sure = _begins(text, start) or text[start - 1] in _MAY_PRECEDE
            if _may_begin(text, start) and (sure or end - start > 2):
                found = _han_name(text, start, trust if sure else PROSE) == end
                yield "name", start, end if found else start
        if match[0] in _ADDRESSED and text[end - 1 : end] in _FIRSTS:
            sure = _begins(text, end - 1) or text[end - 2] in _MAY_PRECEDE
            yield "name", end - 1, end if sure else end - 1


def _between_marks(text: str) -> Iterator[Span]:
    """A run of three or four Han characters that reads as a name; one of two, if it has the line to itself."""
    for match in _ALONE.finditer(text):
        start, first = match.start(), match[0]
        if first not in _MOST and text[start - 1 : start] not in _LINE_STARTS:
            continue
        end = _han_name(text, start, ROLE)
        if end == start:
            continue
        around = text[start - 1 : start] + text[end : end + 1]
        long = end - start > 2 and first in _MOST and text[start : start + 2] not in _WORDS
        if (
            long
            or (first in _MOST and around in {"（）", "()", "，收"})
            or (_ENDS_LINE.match(text, end) and _LINE_TO.search(text, max(0, start - 24), start))
        ):
            yield "name", start, end
    if "/" in text:
        for match in _PAIR.finditer(text):
            if all(_han_name(text, start, ROLE) == end for start, end in (match.span(1), match.span(2))):
                yield from (("name", *match.span(1)), ("name", *match.span(2)))


def _may_begin(text: str, start: int) -> bool:
    """Whether the two characters that stand here can open a name: a quick look before the slow one."""
    return text[start] in _FIRSTS and text[start + 1] in _SECONDS


def _begins(text: str, start: int) -> bool:
    """Whether no Han character stands before."""
    return start == 0 or not _is_han(text[start - 1])


def _is_han(char: str) -> bool:
    return "\u3400" <= char <= "\u9fff" or "\U00020000" <= char < "\U00032400"


_LABEL_ENDS = frozenset(":：#=")
_ALPHABET = frozenset("abcdefghijklmnopqrstuvwxyz0123456789")
_SURNAMES_TOO = frozenset(_words("he an white black young long may will page day king bishop"))
_UPPER = "".join(char for char in map(chr, range(0x41, 0x250)) if char.isupper())
_LETTER = "A-Za-z\u00c0-\u024f\ufb00-\ufb06\u0300-\u036f"
_WORD = rf"[{_UPPER}](?:[{_LETTER}]|[’'-](?=[{_LETTER}]))+"
_TOKEN = re.compile(
    rf"(?:(?:van|von|der|den|de|del|della|di|da|dos|la|le|el|al|bin|ibn)\s){{0,2}}(?:{_WORD}|[{_UPPER}](?:\."
    rf"|(?![A-Za-z0-9])))"
)
_SPACE = re.compile(r"[ \u00a0]{1,2}|\^")
_COMMA = re.compile(rf",[ ]?(?=[{_UPPER}])")
_FULL = rf"(?<![\w.’'-]){_WORD}(?:\s(?:{_WORD}|[A-Z]\.)){{1,3}}"
_AGED = re.compile(
    rf"({_FULL})(?=(?:,(?:\san?)?|\s(?:is|was)\san?)\s\d{{1,3}}[-\s]?(?:y/?o\b|y\.o\.|years?[-\s]old|year-old|yr))"
)
_QUALIFIED = re.compile(
    rf"({_FULL})(?=,?\s(?:M\.?D\b|R\.?N\b|D\.?O\b|N\.?P\b|PA-C\b|Ph\.?D\b|MBBS\b|MBChB\b|FACS\b|FRCP\b|FACP\b|LPN\b))"
)
_LAST_FIRST = re.compile(rf"(?<![\w.’'-])({_WORD}), ?({_WORD})(?: [{_UPPER}]\.?(?!\w))?")
_CAPITAL = re.compile(rf"[{_UPPER}][{_LETTER}]+")
_TWO_WORDS = re.compile(rf"[{_UPPER}][{_LETTER}’'-]+,? (?:[{_UPPER}]|d|v|l|al)")
_DOES = re.compile(
    r",? (?:is|was|has|had|presents?|presented|reports?|reported|denies|denied|complains|complained|came"
    r"|returned|underwent"
    r"|aged|states|stated|says|said|arrived|called|who)\b"
)


def _latin_name(text: str, start: int, trust: int) -> int:
    """Where the name in Latin letters that starts here ends; `start` if there is none.

    PROSE   his wife Mary Chen    a common given name first, or two words that then do something
    ROLE    Patient: Mary Chen    two words, none of which names anything else
    TITLE   Mrs. Chen             one will do
    LABEL   Signed: Chen, Mary    as ROLE, the surname first or last
    NAME    Name: Mary            one will do
    """
    words, place, end = [], start, start
    while len(words) < 4 and (match := _TOKEN.match(text, place)):
        word = match[0].split()[-1].rstrip(".").casefold()
        surname = (not words and trust != TITLE and word in _GIVEN_NAMES) or (
            word in _SURNAMES_TOO and (trust == TITLE or (words and words[0].split("-")[0] in _GIVEN_NAMES))
        )
        taken = len(word) > 1 and word in _NO_NAME and not surname
        if taken or text[match.end() : match.end() + 1] in _LABEL_ENDS:
            break
        words, end = [*words, word], match.end()
        gap = _SPACE.match(text, end) or (len(words) == 1 and trust >= LABEL and _COMMA.match(text, end))
        if not gap:
            break
        place = gap.end()
    if text[end - 2 : end] in {"'s", "’s"}:
        end -= 2
    if trust == PROSE:
        likely = words and (words[0].split("-")[0] in _GIVEN_NAMES or (len(words) > 1 and _DOES.match(text, end)))
        return end if likely else start
    needed = 1 if trust in (TITLE, NAME) else 2
    return end if len(words) >= needed and any(len(word) > 1 for word in words) else start


def _english_names(text: str) -> Iterator[Span]:
    if not _TWO_WORDS.search(text):
        return
    for match in itertools.chain(_AGED.finditer(text), _QUALIFIED.finditer(text)):
        if _latin_name(text, match.start(), ROLE) == match.end():
            yield "name", *match.span()
    for match in _CAPITAL.finditer(text):
        if match[0].casefold() in _GIVEN_NAMES and text[match.start() - 1 : match.start()].casefold() not in _ALPHABET:
            yield "name", match.start(), _latin_name(text, match.start(), ROLE)
    for match in _LAST_FIRST.finditer(text):
        last, first = match[1].casefold(), match[2].casefold().split("-")[0]
        if first in _GIVEN_NAMES and (last not in _NO_NAME or last in _SURNAMES_TOO):
            yield "name", *match.span()


def _again(text: str, names: set[str]) -> Iterator[Span]:
    """Where the names stand again: not inside a longer word, not as an eponym, as a common word only after a mark."""
    for name in names:
        start = text.find(name) if len(name) > 1 else -1
        while start >= 0:
            end = start + len(name)
            if _stands_alone(text, start, end, name in _WORDS):
                yield "name", start, end
            start = text.find(name, end)


def _stands_alone(text: str, start: int, end: int, word: bool) -> bool:
    if _is_han(text[start]):
        return not word or start == 0 or not _is_han(text[start - 1])
    inside = text[start - 1 : start].isalnum() or text[end : end + 1].isalnum()
    return not inside and not _EPONYM.match(text, end)


_EPONYM = re.compile(
    r"(?:['’]s)?[ -](?:disease|syndrome|sign|test|score|scale|palsy|criteria|classification|procedure|operation|reflex"
    r"|lymphoma|tumou?r|cell|method|fracture|manoeuvre|maneuver|stain|index|grade|formula|Hospital|Clinic|Ward|Street)",
    re.IGNORECASE,
)


# --- what stands after a label ----------------------------------------------------------------------------------------

_LABELS: dict[str, str] = {
    "NAME": "patientname|caller|姓名|姓 名|姓  名|姓　名|姓　　名|曾用名|patient name|patient's name|patient’s name"
    "|pt name|full name|legal name|name|names|first name"
    "|last name|given name|family name|surname|middle name|maiden name|preferred name|his name|her name|my "
    "name|mother's name"
    "|father's name|spouse name|guardian name|contact name|physician name|doctor name|provider name|nurse "
    "name|subscriber name"
    "|name of patient|name of guardian",
    "LABEL": "会诊专家|记录：|研究者：|受托人|委托人|参加人员|患者名单|复核|随访人|经办人|登记人|交班者|接班者|麻醉者"
    "|护士长|管床|麻醉：|麻醉:|器械：|巡回：|审核：|审核:|核对：|书写：|签发：|者：|者:|人：|人:|师：|师:"
    "|员：|员:|联系人|监护人|陪护人|代理人|委托人|签名|签字|签章|主刀|术者|第一助手|第二助手|一助|二助|三助"
    "|助手|护士长|户主|户名"
    "|re:|from:|to:|cc:|family contact|next of kin|nok|emergency contact|contact person|contact:|guardian"
    "|caregiver|spouse|signed by|signed|e-signed by"
    "|electronically signed by|dictated by|transcribed by|reviewed by|reported by|verified by|ordered by|performed by"
    "|interpreted by|authorized by|approved by|prepared by|seen by|referred by|requested by|witnessed by|recorded by"
    "|accompanied by|attending|attending physician|attending surgeon|referring physician|referring doctor|family doctor"
    "|primary care physician|primary care provider|primary physician|pcp|gp|consultant|surgeon|assistant "
    "surgeon|assistant"
    "|anesthesiologist|anaesthetist|resident:|fellow:|provider:|physician:|radiologist|pathologist|signature"
    "|witness|author"
    "|interpreter|informant|attn|clinician|therapist|social worker|case manager",
    "ROLE": "申请人|报警人|收件人|查看|本人|询请联系|联系|接听者为|之妻|之夫|之父|之母|受检者|尊敬的|其弟|其妹|其兄"
    "|其姐|其妹妹|监护人|我叫|我是|我爸|我妈|我儿子|我女儿|兹有|患者系|附件为|实习生|带教老师|审签|审核|调配"
    "|通知|反映|转给|主题：|家属姓名|陪护|邀请贵院|主管|登记|死者|伤者|来访者|求助者|受试者|患者|病人|患儿"
    "|产妇|孕妇|家属|家长|医生|医师|主任|护士|父亲|母亲|配偶|丈夫|妻子|爱人|儿子|女儿|其子|其女|其妻|其夫"
    "|其父|其母|其儿子|其女儿|其妻子|其丈夫|其父亲|其母亲|之子|之女|哥哥|姐姐|弟弟"
    "|妹妹|儿媳|女婿|孙子|孙女|同事|邻居|朋友|patient|pt|doctor|nurse|mother|father|wife|husband|son|daughter"
    "|sister|brother|partner"
    "|friend|neighbor|neighbour|aunt|uncle|niece|nephew|grandson|granddaughter|identified by name|by name",
    "TITLE": "mr|mrs|ms|mx|miss|dr|prof|professor",
    "id_card": "chinese id|chinese id card|id card no|身份证/护照|身份证|身份证号|身份证件|身份证件号|证件|证件号"
    "|公民身份|公民身份号|身份号|id card|identity card|national id|ssn"
    "|social security|social security number|id number|citizen id",
    "passport": "护照|护照号|通行证|通行证号|港澳通行证|台胞证|回乡证|居留证|passport",
    "bank_card": "银行卡|银行卡号|银行账号|银行账户|银行帐号|信用卡|开户账号|bank card|bank account|card number|credit "
    "card|debit card",
    "phone": "callback number|callback|ph|电话|手机|联系方式|座机|传真|致电|拨打|來電|電話|手機|tel|telephone|phone"
    "|phone number|mobile|mobile phone|cell|cell phone"
    "|cellphone|home phone|work phone|contact number|contact no|fax|call|whatsapp",
    "account": "微信|微信号|微信id|qq|qq号|wechat|wechat id|weixin",
    "birth_date": "patientbirthdate|出生日期更正为|dateofbirth|born in|出生日期|出生年月日|出生年月"
    "|出生时间|出生于|出生"
    "|生日|生于|诞生于|dob|d.o.b|d.o.b.|date of birth|birth date|birthdate|birthday|born|born on",
    "region": "户籍|户籍地|户籍所在地|户口所在地|居住地|常住地|现居住地|现居地|住所",
    "address": "住址|地址|address|home address|mailing address|home|residence|residing at|lives at|living "
    "at|resides at",
    "record_number": "mr#|hosp no|hosp. no|卡号|patientid|住院no|住院no.|id|就诊卡|诊疗卡|医保卡|社保卡"
    "|健康卡|mrn|mr no|mr "
    "number|medical record|medical record no|medical record number|med rec no|patient id|patient no|patient "
    "number"
    "|patient identifier|hospital id|hospital no|hospital number|chart|chart no|chart number|record no|record"
    " number|admission no|admission number"
    "|encounter|encounter no|encounter id|encounter number|visit no|visit id|visit number|case no|case number"
    "|account no|account number|acct|acct no|nhs|nhs no"
    "|nhs number|health card|health card no|insurance id|member id|policy no|policy number|medicare|medicare "
    "no|medicaid id|unit no|unit number|urn|uhid",
}
_RECORD_PREFIXES = _words(
    "住院 门诊 急诊 病案 病历 病例 住院病历 住院病案 门诊病历 就诊 就诊卡 诊疗 诊疗卡 挂号 登记 档案 健康档案"
    " 健康卡 医保 医保卡 医疗保险 "
    "社保 社保卡 患者 病人 体检 影像 放射 检查 超声 ct mr mri x线 x光 磁共振 内镜 透析 留观 随访 建档"
)
_RECORD_SUFFIXES = _words("号 号码 编号 id 卡号")
_GROUPS = {word: group for group, words in _LABELS.items() for word in words.split("|")}
_GROUPS |= {before + after: "record_number" for before in _RECORD_PREFIXES for after in _RECORD_SUFFIXES}
_LATIN_WORD = re.compile("[a-z]+")
_FIRST_WORDS = {_LATIN_WORD.match(word)[0] for word in _GROUPS if word[0].isascii()}
_HAN_STARTS, _HAN_SECONDS = ("".join({word[place] for word in _GROUPS if not word[0].isascii()}) for place in (0, 1))
_HAN_LABEL_START = re.compile(f"[{_HAN_STARTS}](?=[{_HAN_SECONDS}])")
_LABEL = re.compile(
    rf"{_any_of(word for word in _GROUPS if not word[0].isascii())}"
    rf"|{_any_of(word for word in _GROUPS if word[0].isascii())}(?![a-z])"
)
_SEPARATOR = re.compile(
    r"\.?(?:\s?(?:号码|编号|号|码|no\b\.?|number\b|id\b|\#))?(?:\s?[(（][^()（）\n\d]{1,12}[)）])?"
    r"[ \t　\"'”’】）)］\]》*_＿>…]{0,8}(?:</?\w{1,6}>)?(?:([:：=|｜]|[-–—](?= ))|为|是|叫|好像是|is\b)?"
    r"[ \t　\"'“‘「*_＿|(（…]{0,8}(?:</?\w{1,6}>)?"
)
_NEWLINE = re.compile(r"[ \t　]*\r?\n[ \t　|]{0,8}(?:[用患][户者][:：])?")
_SPREAD = re.compile(rf"[姓出病住身邮电门就联家地证手登](?:[ 　]{{1,3}}[{_HAN}]){{1,5}}")
_VALUES: dict[str, re.Pattern[str]] = {
    "id_card": re.compile(
        r"[1-9](?:[- ]?\d){16}[- ]?[\dXx](?!\d)|\d{15,18}(?!\d)|\d{3}-\d{2}-\d{4}(?!\d)"
        r"|[A-Z]{1,2}\d{6}[(（]?[\dA](?:[)）]|(?!\d))|[A-Z][1289]\d{8}(?!\d)"
    ),
    "passport": re.compile(r"[A-Za-z]{1,2}\d{6,9}(?!\d)|\d{8,9}(?!\d)"),
    "bank_card": re.compile(r"\d(?:[- ]?\d){11,18}(?!\d)"),
    "account": re.compile(r"[A-Za-z][\w-]{5,19}(?![\w-])|[1-9]\d{4,11}(?!\d)", re.ASCII),
    "birth_date": _BIRTH_DATE,
    "record_number": re.compile(
        r"(?:No\.?\s?|№|#\s?)?(?:\d{3} \d{3} \d{4}(?!\d)|[A-Z] \d{5,10}(?![A-Za-z0-9])"
        r"|[A-Za-z0-9]{1,30}(?:[-_/][A-Za-z0-9]{1,20}){0,5}(?![A-Za-z0-9]))",
        re.IGNORECASE,
    ),
    "phone": re.compile(
        rf"(?:{_MOBILE}|{_LANDLINE}|{_AMERICAN}|{_ABROAD}|[(（]?0\d{{2,4}}[)）]?[- ]?\d{{3,4}}[- "
        rf"]?\d{{3,4}}(?:-\d{{1,4}}(?!\d))?"
        rf"|[48]00[- ]?\d{{3,4}}[- ]?\d{{3,4}}|\(?\d{{3}}\)?[-. ]\d{{3}}[-. ]\d{{4}}|\d{{3,4}}[- ]\d{{4}}|\d{{7,13}})"
        rf"{_EXTENSION}(?!\d|[-.]\d)"
    ),
}
_OF_ANOTHER = re.compile("[&?]$|[a-z] $")  # drug name, study id, ?id=
_TRUST = {"NAME": NAME, "LABEL": LABEL, "ROLE": ROLE, "TITLE": TITLE}
_VISIT = re.compile(_DATE)
_AFTER_TITLE = re.compile(r"\.?[ \u00a0]{1,2}")


def _labelled(text: str) -> Iterator[Span]:
    lower, done = _lower(text).replace("_", " "), 0
    starts = []
    if not _FIRST_WORDS.isdisjoint(_LATIN_WORD.findall(lower)):
        starts = [match.start() for match in _LATIN_WORD.finditer(lower) if match[0] in _FIRST_WORDS]
    if not text.isascii():
        starts = sorted(starts + [match.start() for match in _HAN_LABEL_START.finditer(lower)])
        for match in _SPREAD.finditer(lower):
            word = re.sub("[ 　]", "", match[0])
            if word in _GROUPS:
                yield from _after_label(text, lower, word, match.start(), match.end())
    dotted = _DOT.search(text)
    for start in starts:
        label = _LABEL.match(lower, start) if start >= done else None
        if label is None or (start and lower[start - 1] == "[" and _MASKED.match(text, start - 1)):
            continue
        done, word = label.end(), label[0]
        follows = lower[done : done + 1]
        # Most of what follows 患者 is no name: a quick look before the slow one.
        if _GROUPS[word] != "ROLE" or not _is_han(follows) or dotted or follows in _FIRSTS:
            yield from _after_label(text, lower, word, start, done)
    if "\n" in text and ("\t" in text or "|" in text or _TIGHT_COMMA.search(text)):
        yield from _tables(text, lower)


def _after_label(text: str, lower: str, label: str, begin: int, end: int) -> Iterator[Span]:
    """What the label that stands at `begin` announces."""
    group = _GROUPS[label]
    if label in ("name", "id") and _OF_ANOTHER.search(lower, max(0, begin - 2), begin):
        return
    if group == "ROLE" and lower[end : end + 1] in {"（", "("}:
        stop = _han_name(text, end + 1, ROLE)
        if text[stop : stop + 1] in {"）", ")"}:
            yield "name", end + 1, stop
            return
    gap = _SEPARATOR.match(lower, end)
    start, trust = gap.end(), _TRUST.get(group, NAME)
    if trust == TITLE:
        gap = _AFTER_TITLE.match(text, end)
        shouted = text[begin:end].isupper() and end - begin < 5  # MS Contin, MR angiography, but MR. SMITH
        if not gap or not text[begin].isupper() or (shouted and gap[0][0] != "."):
            return
        start = gap.end()
    elif trust < NAME or group == "NAME":
        trust = _trust(label, trust, gap, label[-1] in ":：")
    newline = None if group in ("ROLE", "TITLE") else _NEWLINE.match(lower, start)
    if newline and (gap[1] or group in _VALUES or begin == 0 or lower[begin - 1] == "\n"):
        start = newline.end()
    kind, start, stop = _read(text, group, start, trust)
    if newline and kind == "name" and text[stop : stop + 1] not in ("", " ", "\r", "\n", "\t", "　"):
        return
    if group == "record_number" and not _is_record_number(text[start:stop], label):
        return
    if group in ("address", "region") and not gap[1] and not _EXACT.search(text, start, stop):
        return
    while stop > start:
        yield kind, start, stop
        start = stop + 1 if kind == "name" and text[stop : stop + 1] in {"/", "、"} else stop
        stop = _han_name(text, start, LABEL) if start > stop else start


def _trust(label: str, trust: int, gap: re.Match[str], colon: bool) -> int:
    """How much a label is worth without its colon."""
    if gap[1] or colon:
        return LABEL if label == "医师" else trust
    if label.isascii():
        return LABEL if trust == NAME or label.endswith(" by") else PROSE
    glued = gap.end() == gap.start()
    if trust == NAME:
        return LABEL if glued else NAME
    return PROSE if glued or trust == ROLE else LABEL


def _read(text: str, group: str, start: int, trust: int) -> Span:
    """The value of that group which begins at `start`, as a span; an empty one if there is none."""
    if group in ("address", "region"):
        end = _read_address(text, start)
        return "address", start, end if group == "address" or _EXACT.search(text, start, end) else start
    if group in _TRUST:
        read = _han_name if _is_han(text[start : start + 1]) else _latin_name
        return "name", start, read(text, start, trust)
    value = _VALUES[group].match(text, start)
    return (group, *value.span()) if value else (group, start, start)


def _is_record_number(value: str, label: str) -> bool:
    digits = sum(map(str.isdigit, value))
    return digits >= (4 if label.isascii() else 3) and not _VISIT.fullmatch(value) and not _TRIAL.match(value)


_TRIAL = re.compile("NCT|ChiCTR|ISRCTN")
_BARE = re.compile(r"^[\s\"'*]+|[(（].*|[\s\"'*:：]+$|(?<=[\u3400-\u9fff])[ 　]+")
_PATIENT = {3: "record_number", 5: "NAME", 7: "birth_date", 11: "address", 13: "phone"}  # HL7's PID segment


_TIGHT_COMMA = re.compile(r",(?<=[^\d\s],)(?=[^\d\s])")
_PLAIN = frozenset(_words("性别 年龄 科室 床号 入院诊断 诊断 婚姻 职业 民族 sex age room ward bed diagnosis"))


def _group(cell: str) -> str | None:
    """The group of the label that the cell ends with, if it holds nothing else but a word before."""
    word = _BARE.sub("", cell) if len(cell) < 32 else ""
    endings = (word[place:] for place in range(len(word)) if place == 0 or not word[place - 1 : place + 1].isascii())
    return next((_GROUPS[ending] for ending in endings if ending in _GROUPS), "" if word in _PLAIN else None)


def _tables(text: str, lower: str) -> Iterator[Span]:
    """The cells under a row of labels, and the fields of an HL7 patient segment."""
    separator, groups, offset = "", [], 0
    for line in lower.splitlines(keepends=True):
        mark = next((mark for mark in "\t|," if mark in line), "")
        cells = re.split(r",(?! \d)" if mark == "," else re.escape(mark), line) if mark else []
        found = [_group(cell) for cell in cells]
        if len(cells) > 1 and any(found) and len(cells) - found.count(None) > 1:
            separator, groups = mark, found
        elif line.startswith("pid|"):
            yield from _cells(text, offset, cells, [_PATIENT.get(place) for place in range(len(cells))])
        elif groups and mark == separator and len(cells) >= len(groups):
            yield from _cells(text, offset, cells, groups)
        elif groups and line.strip():
            groups = []
        offset += len(line)


def _cells(text: str, offset: int, cells: list[str], groups: list[str | None]) -> Iterator[Span]:
    for cell, group in zip(cells, groups, strict=False):
        start, end = offset + len(cell) - len(cell.lstrip(' "')), offset + len(cell.rstrip())
        if group and start < end:
            kind, start, stop = _read(text, group, start, NAME if group in _TRUST else LABEL)
            if kind == "name" and "^" in cell:
                stop = offset + len(cell.rstrip("^ "))
            if start < stop <= end:
                yield kind, start, stop
        offset += len(cell) + 1
