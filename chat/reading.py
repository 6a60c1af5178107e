"""The JSON object that a teacher was asked for, read out of what it replied; rather none than a wrong one.

    >>> read_object("好的：\\n```json\\n{'diseases': '肺炎', 'reason': '发热3天',}\\n```", ("reason", "diseases"))
    Reading(value={'reason': '发热3天', 'diseases': '肺炎'}, method='repaired:commas+quotes', fault='')
    >>> read_object('{"diseases": "肺炎", "reason": "发热3', ("reason", "diseases"))
    Reading(value=None, method='', fault='truncated')

**What is read.** In what follows the thought, each object that stands by itself, from its own opening to its own
closing brace, as JSON, or as JSON with the faults of REPAIRS. No text is ever ended on the teacher's behalf, and none
is read in one that does not end; a brace may be missing where all texts are there and the server says `stop`.
Texts are kept to the character, but for white space at their ends (a backslash and an n stay two characters).

**Which object.** The one that has all keys. Where several have them and differ, none, whatever is said before each; the
format said again (`...`, `<disease>`, the keys' names) is none of them. An object that is cut or broken or lacks a
key is not overruled by one before it, nor is one read that the words behind it correct or take back.

**Headed text** (`诊断：…` and `诊断依据：…`, `diseases: …` and `reason: …`, tables, XML tags), where there is none:
read if each heading is there once, no line could belong to anything else, and the last text has an end: a tag, a quote,
a fence, a full stop; of mere names, the server's `stop`. None is a proof: cut there, with a server that says `stop`,
such text can't be told from a whole one. A caller who can't have that refuses the method `headed`.
"""

from __future__ import annotations

import html
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import Any

from preprocess.think import TAG

FAULTS = {
    "empty": "nothing but white space, or nothing after the thought",
    "unclosed_thought": "a thought is opened and never closed: what it holds are drafts",
    "truncated": "something is opened or announced and does not come to its end, or the server says that it cut",
    "no_object": "no object, or a web page",
    "not_json": "an object that can't be read, or only by guessing",
    "missing_key": "one of the keys is not there, or has nothing under it, or a placeholder (`...`, `<disease>`)",
    "wrong_type": "a key whose value is neither text nor a list of texts",
    "ambiguous": "several objects or values that differ, or one that is a draft or taken back",
}
REPAIRS = {
    "closing": "no closing brace, in plain JSON, and the server says `stop`",
    "commas": "one too many at the end, one missing before a key, or a semicolon for it",
    "comments": "// …, # … and /* … */ between the values",
    "encoded": "a level of backslashes too many (JSON in a JSON string), or HTML's &quot; for each quote",
    "escapes": "a backslash before a character that has no escape: kept, save before an apostrophe; LaTeX's",
    "frame": "quotes, colons or commas that are missing, too many or others, around texts that hold none",
    "inner_quotes": "quotes in a text without their backslash: in pairs around something, and the text's end is sure",
    "keys": "keys without quotes",
    "literals": "None, True, NaN and their like",
    "newlines": "line breaks and other control characters in a text: kept",
    "opening": "no opening brace, but a first key: the prompt had it",
    "quotes": '\'…\', “…”, 「…」, ＂…＂, """…""" for quotes',
    "width": "full-width brackets, colons and commas",
}
ALIASES = {"疾病名称": "diseases", "诊断": "diseases", "诊断依据": "reason"}
WRAPPERS = (
    *("data", "result", "results", "output", "response", "answer", "json", "arguments", "final", "final_answer"),
    *("properties", "choices", "message", "content"),  # a schema filled in, a whole chat completion
    *("数据", "结果", "输出", "答案", "最终答案", "最终结果", "最终诊断", "诊断结果"),
)
# Where a reply is not plain JSON, one with more than that is no answer.
MAX_OBJECTS = 200
MAX_VALUES = 2000
MAX_DEPTH = 32
MAX_INNER_QUOTES = 100  # in one text

Names = Mapping[str, str]  # a key as a teacher may write it, in small letters -> the key that was asked for

_INVISIBLE = "\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
_EDGES = _INVISIBLE + "".join(char for char in map(chr, range(0x3001)) if char.isspace())
_PAGE = re.compile(r"<(?:!doctype|html|head|body|\?xml)\b", re.IGNORECASE)
_THOUGHT = re.compile(
    rf"{TAG.pattern}|◁/?think▷|</?(?:reasoning|thoughts?|analysis|scratchpad|reflection)>", re.IGNORECASE
)
_THINKING = re.compile(r"##[ \t]{0,4}Thinking[ \t]{0,4}\n")
_FINAL_RESPONSE = re.compile(r"\n##[ \t]{0,4}Final Response[ \t]{0,4}\n")
# What stands behind it is no reply, but turns that the model goes on to make up.
_END_OF_TURN = re.compile(r"<\|(?:im_end|endoftext|end_of_text|eot_id)\|>|</s>|<｜end▁of▁sentence｜>|<end_of_turn>")
_HTML = re.compile(r"[^{｛]*+\{\s*&quot;")
_FIRST_KEY = re.compile(r'"([^"\\]{1,100})"\s*[:：]')


@dataclass(frozen=True)
class Reading:
    """The keys that were asked for, each a text or a list of texts, and how they were read; or None, and why not.

    method  json                      the object as it is, and nothing else
            fenced, embedded          in a code fence, in other text
            repaired:commas+quotes    with these faults (REPAIRS), in alphabetical order
            headed                    no object, but the keys as headings or tags
    fault   one of FAULTS where `value` is None, else empty
    """

    value: dict[str, str | list[str]] | None = None
    method: str = ""
    fault: str = ""


def read_object(
    text: str, keys: Sequence[str], finish_reason: str = "stop", aliases: Mapping[str, str] = ALIASES
) -> Reading:
    """The object with these `keys` in a reply, in whatever case the keys are written, or under their `aliases`.

    `finish_reason` is the server's: unless it is "stop" (or "", not known), the reply was cut, and an object is taken
    only where nothing follows it. No text raises an error; the time is linear in its length.
    """
    names = {_plain(key): key for key in keys} | {_plain(key): name for key, name in aliases.items() if name in keys}
    cut = finish_reason not in ("stop", "")
    reading = _read(text.strip(_EDGES), keys, names, cut, stopped=finish_reason == "stop")
    return Reading(fault="truncated") if cut and reading.value is None else reading


def _read(text: str, keys: Sequence[str], names: Names, cut: bool, stopped: bool) -> Reading:
    if not text:
        return Reading(fault="empty")
    if _PAGE.match(text):
        return Reading(fault="no_object")
    answer = _after_thought(text)
    if answer is None:
        return Reading(fault="unclosed_thought")
    if not cut and not (_END_OF_TURN.search(answer) and _is_object(answer)):
        answer = _END_OF_TURN.split(answer, maxsplit=1)[0]
    answer, repairs = _laid_bare(answer.strip(_EDGES), names)
    if not answer:
        return Reading(fault="empty")
    found = _merged(answer, _objects(answer), keys, names)
    if stopped and found and found[-1].fault == "truncated":
        found[-1] = _closed(answer, found[-1], names)
    for one in found:
        one.repairs |= repairs
        if not one.fault:
            one.value, one.fault = _take(one.value, keys, names)
        if not one.fault:
            _mend_escapes(one)
    if found:
        reading = _choose(answer, found, cut)
    elif cut:
        return Reading(fault="truncated")
    else:
        reading = _read_tagged(answer, keys, names) or _read_headed(answer, keys, names, stopped)
    framed = not cut and reading.fault in ("no_object", "not_json", "truncated")
    return (framed and _read_framed(answer, keys, names)) or reading


def _laid_bare(text: str, names: Names) -> tuple[str, set[str]]:
    """The text out of what encloses every line or quote of it, with the brace that the prompt had; and the repairs."""
    repairs = set()
    if text.startswith(">") and all(line.startswith(">") for line in text.splitlines() if line.strip()):
        text = re.sub(r"^> ?", "", text, flags=re.MULTILINE)
    if '"' not in text and _HTML.match(text):
        text, repairs = html.unescape(text), {"encoded"}
    first = _FIRST_KEY.match(text)
    if first and _plain(first[1]) in names:
        return "{" + text, repairs | {"opening"}
    return text, repairs


def _after_thought(text: str) -> str | None:
    """What stands after the last thought; None if that one is not closed.

    Stricter than `think.split`, which takes for the answer what stands before a thought, too, and all from the first
    closing tag on: either may hold a draft. A tag in a text of the object is none.
    """
    tags = list(_THOUGHT.finditer(text))
    if not tags:
        if not _THINKING.match(text):
            return text
        *_, last = (None, *_FINAL_RESPONSE.finditer(text))
        return text[last.end() :] if last else None
    first = next((tag.end() for tag in tags if "/" in tag[0]), 0)
    whole = (part for part in (text, text[first:]) if _is_object(part))
    return next(whole, text[tags[-1].end() :] if "/" in tags[-1][0] else None)


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


# --- the objects in a text ---

_GAP = rf"(?:[\s{_INVISIBLE}]++|\\[nrt]|(?://|\#)[^\n]{{0,200}}\n|/\*.{{0,200}}?\*/)*+"  # between two tokens
_QUOTED = (
    r"""(?:"(?:[^"\\]|\\.){0,100}"|'[^'\\]{0,100}'|“[^”“]{0,100}[”“]|‘[^’]{0,100}’"""
    r"""|[「『＂＇`][^」』＂＇`]{0,100}[」』＂＇`])"""
)
_KEY = rf"(?:{_QUOTED}|[\w.\-]{{1,64}}){_GAP}[:：]"
_COMMA = "[,，;；、]"
_BETWEEN = re.compile(_GAP, re.DOTALL)
# What stands behind the quote that ends a key, a value in an object, a value in a list.
_AFTER_KEY = re.compile(rf"{_GAP}[:：]", re.DOTALL)
_AFTER_VALUE = re.compile(rf"{_GAP}(?:[}}｝]|{_COMMA}{_GAP}(?:[}}｝]|{_KEY}))|\s{_GAP}{_QUOTED}{_GAP}[:：]", re.DOTALL)
_AFTER_ITEM = re.compile(rf"{_GAP}(?:[\]］]|{_COMMA}{_GAP}[\]］\"'“‘「『＂＇`\[［{{｛])", re.DOTALL)

_OPENING = re.compile(rf"[{{｛]|[\[［](?={_GAP}[{{｛])", re.DOTALL)
_BRACE = re.compile("([{｛])|[}｝]")
_BRACKET = re.compile(r"([\[［])|[\]］]")
_WIDE = {"｛": "{", "｝": "}", "［": "[", "］": "]", "：": ":", "，": ",", "；": ",", "、": ",", ";": ","}
_QUOTES = {ends[0]: ends for ends in ('"', "'", "＂", "＇", "`", "“”", "”", "‘’", "’", "「」", "『』")}  # opening: ends
_UP_TO = {opening: re.compile(rf"(?:[^{ends}\\]++|\\.)*+[{ends}]", re.DOTALL) for opening, ends in _QUOTES.items()}
_BARE_KEY = re.compile(r"[\w.\-]{1,64}")
_LITERAL = re.compile(r"(?:null|none|true|false|nan|undefined|-?infinity|[-+.]?\d[\d.eE+-]{0,40}%?)\b", re.IGNORECASE)
_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})|\\(.)", re.DOTALL)
_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"} | {char: char for char in "\"'\\/"}
_CONTROL = re.compile(r"[\x00-\x1f]")
_JOINTS = " \t\n+,，、;；/|&"
_JOINING = ("", "或", "或者", "和", "及", "与", "以及", "and", "or")  # what joins two texts is no quotation
_ENCODED = re.compile(r"[{\[](?:[\s{\[]|\\[nrt]){0,100}\\{1,100}\"")
_ENCODED_TEXT = re.compile(r'(?:[^"\\]|\\.)*+', re.DOTALL)
# An object given up in the middle of a text: a line that announces the next, as it never stands in a text of JSON.
_ANEW = re.compile(r"\n[ \t]{0,8}\n[^\n{}｛｝\"'“”]{2,60}[:：]\s{0,8}(?:```\w{0,20}\s{0,8})?(?=\{)")
_ENDED = re.compile(r"[}｝]|[\"'”’」』＂]\s*\Z")
_NOTHING = re.compile(rf"[\s{_INVISIBLE}`~]*")  # white space, and the end of a fence

_CONFLICT = object()  # the value of a key that an object has twice, with two values


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for key, value in pairs:
        row[key] = _CONFLICT if key in row and row[key] != value else value
    return row


_DECODER = json.JSONDecoder(object_pairs_hook=_once)


@dataclass
class _Found:
    """An object that stands from `begin` to `end` of a text; with a fault, the place of one that can't be read."""

    begin: int
    end: int
    value: Any = None
    repairs: set[str] = field(default_factory=set)
    fault: str = ""


class _Broken(Exception):
    """What is read is no object, not even one with the known faults."""


class _Cut(Exception):
    """The text ends inside an object."""


def _objects(text: str) -> list[_Found]:
    """Every object, or list of objects, that stands by itself; any may be broken, the last one cut."""
    found: list[_Found] = []
    at, values_left = 0, MAX_VALUES
    for _ in range(MAX_OBJECTS):
        opening = _OPENING.search(text, at)
        if opening is None:
            return found
        begin = opening.start()
        parser = _Parser(text, begin, values_left)
        try:
            value = parser.top()
            at = parser.at
            found.append(_Found(begin, at, value, parser.repairs))
        except (_Cut, _Broken) as error:
            cut = isinstance(error, _Cut)
            if not (cut or parser.members):  # a brace in prose
                at = begin + 1
                continue
            anew = _ANEW.search(text, begin)
            if anew and not _ENDED.search(text, begin, anew.start()):
                at = anew.end()
                continue
            at = len(text) if cut else max(parser.at, _balanced_end(text, begin))
            found.append(_Found(begin, at, fault="truncated" if cut else "not_json"))
        values_left = parser.values_left
    return [*found, _Found(at, len(text), fault="not_json")]


def _merged(text: str, found: list[_Found], keys: Sequence[str], names: Names) -> list[_Found]:
    """The objects, or one that has all keys where each has one and nothing stands between them."""
    given = [pair for one in found if isinstance(one.value, dict) and len(one.value) == 1 for pair in one.value.items()]
    if not len(given) == len(found) == len(keys) > 1 or {names.get(_plain(key)) for key, _ in given} != set(keys):
        return found
    if any(text[one.end : other.begin].strip(", \t\r\n") for one, other in pairwise(found)):
        return found
    return [_Found(found[0].begin, found[-1].end, _once(given), set.union(*(one.repairs for one in found)))]


def _closed(text: str, cut: _Found, names: Names) -> _Found:
    """The object that lacks nothing but its closing brace, in plain JSON; one of the keys must be its own."""
    try:
        value = _DECODER.decode(text[cut.begin :].rstrip("`~ \t\r\n") + "}")
    except (ValueError, RecursionError):
        return cut
    own = isinstance(value, dict) and any(_plain(key) in names for key in value)
    return _Found(cut.begin, cut.end, value, {"closing"}) if own else cut


def _balanced_end(text: str, begin: int) -> int:
    """The end of a broken object by its braces alone (of a list by its brackets), or of the text."""
    depth = 0
    for brace in (_BRACE if text[begin] in "{｛" else _BRACKET).finditer(text, begin):
        depth += 1 if brace[1] else -1
        if depth == 0:
            return brace.end()
    return len(text)


@dataclass
class _Parser:
    """Reads one value from `at` on and leaves `at` behind it: JSON, or JSON with faults that it notes in `repairs`.

    Raises _Cut where the text ends first, _Broken where it can't go on. `members` counts the keys that had a colon.
    """

    text: str
    at: int
    values_left: int
    members: int = 0
    repairs: set[str] = field(default_factory=set)

    def top(self) -> Any:
        try:
            value, self.at = _DECODER.raw_decode(self.text, self.at)
            return value
        except (ValueError, RecursionError):
            return self._encoded() if _ENCODED.match(self.text, self.at) else self._value(0, _AFTER_VALUE)

    def _encoded(self) -> Any:
        """An object whose quotes all have a backslash; with a quote before it, it must have one behind it."""
        begin, self.members = self.at, 1
        end = _ENCODED_TEXT.match(self.text, begin).end()
        quoted = self.text.endswith('"', 0, begin)
        if quoted and end == len(self.text):
            raise _Cut
        try:
            inner = json.JSONDecoder(strict=False).decode(f'"{self.text[begin:end]}"')
        except ValueError:
            raise _Cut if end == len(self.text) else _Broken from None
        self.at = end + quoted
        parser = _Parser(inner, 0, self.values_left)
        try:
            value = parser.top()
        finally:
            self.values_left = parser.values_left
        if not _NOTHING.fullmatch(inner, parser.at):
            raise _Broken
        self.repairs |= parser.repairs | {"encoded"}
        return value

    def _peek(self) -> str:
        """The next character that is neither white space nor comment; a full-width one as its plain counterpart."""
        gap = _BETWEEN.match(self.text, self.at)
        if "/" in gap[0] or "#" in gap[0]:
            self.repairs.add("comments")
        if "\\" in gap[0]:
            self.repairs.add("encoded")
        self.at = gap.end()
        if self.at == len(self.text) or self.text.startswith("/*", self.at):
            raise _Cut
        char = self.text[self.at]
        return _WIDE.get(char, char)

    def _step(self) -> None:
        char = self.text[self.at]
        if char in _WIDE:
            self.repairs.add("commas" if char == ";" else "width")
        self.at += 1

    def _value(self, depth: int, after: re.Pattern[str]) -> Any:
        char = self._peek()
        self.values_left -= 1
        if self.values_left < 0 or depth > MAX_DEPTH:
            raise _Broken
        if char == "{":
            return self._object(depth)
        if char == "[":
            return self._list(depth)
        if char in _QUOTES:
            return self._string(after)
        literal = _LITERAL.match(self.text, self.at)
        if literal is None:
            raise _Broken
        if literal[0] not in ("null", "true", "false") and not literal[0][0].isdigit():
            self.repairs.add("literals")
        self.at = literal.end()
        return None  # whichever it is, it is no text

    def _object(self, depth: int) -> dict[str, Any]:
        self._step()
        pairs = []
        while self._peek() != "}":
            key = self._key()
            if self._peek() != ":":
                raise _Broken
            self._step()
            self.members += 1
            pairs.append((key, self._value(depth + 1, _AFTER_VALUE)))
            self._separator("}")
        self._step()
        return _once(pairs)

    def _list(self, depth: int) -> list[Any]:
        self._step()
        items = []
        while self._peek() != "]":
            items.append(self._value(depth + 1, _AFTER_ITEM))
            self._separator("]")
        self._step()
        return items

    def _separator(self, closing: str) -> None:
        char = self._peek()
        if char == closing:
            return
        if char == ",":
            self._step()
            if self._peek() == closing:
                self.repairs.add("commas")
        elif closing == "}":  # a key must follow
            self.repairs.add("commas")
        else:
            raise _Broken

    def _key(self) -> str:
        if self._peek() in _QUOTES:
            return self._string(_AFTER_KEY)
        key = _BARE_KEY.match(self.text, self.at)
        if key is None:
            raise _Broken
        self.repairs.add("keys")
        self.at = key.end()
        return key[0]

    def _string(self, after: re.Pattern[str]) -> str:
        """A text up to the first quote with `after` behind it; quotes before that one belong to the text."""
        text, begin = self.text, self.at + 1
        opening = text[self.at]
        if text.startswith(opening * 3, self.at):
            return self._tripled(after)
        inner: list[int] = []
        while True:
            up_to = _UP_TO[opening].match(text, inner[-1] + 1 if inner else begin)
            if up_to is None:
                raise _Cut
            if after.match(text, up_to.end()):
                break
            if after is _AFTER_KEY or len(inner) == MAX_INNER_QUOTES:
                raise _Broken
            inner.append(up_to.end() - 1)
        self.at = up_to.end()
        if opening != '"':
            self.repairs.add("quotes")
        if inner := [quote for quote in inner if not self._is_apostrophe(quote)]:
            if len(inner) % 2 or not all(map(self._is_quotation, inner[::2], inner[1::2])):
                raise _Broken
            self.repairs.add("inner_quotes")
        *parts, last = (text[start:end] for start, end in pairwise([begin, *inner, self.at - 1]))
        # Two backslashes before a quote in the text: one was meant.
        return self._unescape("".join(part.removesuffix("\\\\") for part in parts) + last)

    def _tripled(self, after: re.Pattern[str]) -> str:
        begin = self.at + 3
        end = self.text.find(self.text[self.at : begin], begin)
        if end < 0:
            raise _Cut
        if not after.match(self.text, end + 3):
            raise _Broken
        self.at = end + 3
        self.repairs.add("quotes")
        return self._unescape(self.text[begin:end])

    def _is_apostrophe(self, at: int) -> bool:
        before, quote, behind = self.text[at - 1 : at + 2]
        return quote in "'’" and (before + behind).isascii() and before.isalpha() and behind.isalpha()

    def _is_quotation(self, begin: int, end: int) -> bool:
        """Whether the quotes at `begin` and `end` quote something, or end one text and begin the next.

        `"自述"喘憋"三天"` is one text with a quotation; `"感冒" 或 "肺炎"` and `"a"或"b"` are two.
        """
        between = self.text[begin + 1 : end]
        return (
            between == between.strip()
            and between.strip(_JOINTS).lower() not in _JOINING
            and not _BRACE.search(between)
            and not any(_AFTER_KEY.match(self.text, quote + 1) for quote in (begin, end))
        )

    def _unescape(self, raw: str) -> str:
        if _CONTROL.search(raw):
            self.repairs.add("newlines")
        return _ESCAPE.sub(self._escaped, raw) if "\\" in raw else raw

    def _escaped(self, escape: re.Match[str]) -> str:
        code, char = escape.groups()
        if code:
            return chr(int(code, 16))
        if char in "\n\r" or (char == "u" and not re.match("[g-zG-Z]", escape.string[escape.end() :][:1])):
            raise _Broken
        if char not in _ESCAPES or char == "'":
            self.repairs.add("escapes")
        return _ESCAPES.get(char, f"\\{char}")


# --- what an object holds ---

_PLACEHOLDER = re.compile(r"[.…·]*|[<＜][^<>＜＞]{1,60}[>＞]|string|str|字符串")


def _plain(key: str) -> str:
    """A key as keys are compared."""
    visible = "".join(char for char in key if unicodedata.category(char) != "Cf")
    return unicodedata.normalize("NFKC", visible).strip(" \t\r\n*`").casefold()


def _take(value: Any, keys: Sequence[str], names: Names) -> tuple[dict[str, str | list[str]] | None, str]:
    """The `keys` out of an object, a list of one, or a wrapper like {"data": …}; or None and a fault.

    The fault is "unrelated" where none of the keys is there, "skeleton" where none has a value.
    """
    for _ in range(8):
        if isinstance(value, dict):
            plain = [(_plain(key), item) for key, item in value.items()]
            given = [(names[key], item) for key, item in plain if key in names]
            if given:
                return _checked(_once(given), keys, names)
            inner = [item for key, item in plain if key in WRAPPERS]
            others = [item for key, item in plain if key not in WRAPPERS and isinstance(item, dict)]
            if inner and any(_plain(key) in names for item in others for key in item):
                return None, "ambiguous"
            value = inner[0] if len(inner) == 1 else None
        elif isinstance(value, list) and value:
            if any(item != value[0] for item in value):
                return None, "ambiguous"
            value = value[0]
        elif isinstance(value, str):
            try:
                value = _DECODER.decode(value)
            except (ValueError, RecursionError):
                break
    return None, "unrelated"


def _checked(given: dict[str, Any], keys: Sequence[str], names: Names) -> tuple[dict[str, str | list[str]] | None, str]:
    if any(key not in given for key in keys):
        return None, "missing_key"
    if all(isinstance(given[key], str) and _is_placeholder(given[key].strip(), names) for key in keys):
        return None, "skeleton"
    taken: dict[str, str | list[str]] = {}
    for key in keys:
        value = given[key]
        if value is _CONFLICT:
            return None, "ambiguous"
        texts = value if isinstance(value, list) else [value]
        if not all(isinstance(text, str) for text in texts):
            return None, "wrong_type"
        texts = [text.strip() for text in texts]
        if not texts or any(_is_placeholder(text, names) for text in texts):
            return None, "missing_key"
        try:
            texts = list(map(_joined, texts))
        except UnicodeDecodeError:
            return None, "not_json"
        taken[key] = texts if isinstance(value, list) else texts[0]
    return taken, ""


def _is_placeholder(text: str, names: Names) -> bool:
    """Whether a skeleton holds this instead of a value; its own key's name, for one, or several with numbers."""
    parts = re.split("[、；;，,]", text[:100])
    return bool(_PLACEHOLDER.fullmatch(text)) or all(_plain(part.rstrip("0123456789")) in names for part in parts)


def _joined(text: str) -> str:
    """The halves of a character that came as two escapes made one; UnicodeDecodeError for a half alone."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")


# A JSON escape that was the head of a command of LaTeX: surely, and perhaps, in a text that has such commands.
_EATEN = re.compile(
    r"[\b\f](?=[a-zA-Z])|\t(?=(?:imes|heta|au|ext(?:bf|it|rm)?|riangle|herefore)(?![a-z]))"
    r"|\n(?=(?:eq|abla|otin)(?![a-z]))|\r(?=(?:ightarrow|ho)(?![a-z]))"
)
_PERHAPS_EATEN = re.compile(r"[\b\f]|[\t\r](?=[a-z])|\n(?=(?:[eiu]|e[gwa]\w*|ot|leq|geq|sim)(?![a-z]))")
_HEADS = {"\b": "\\b", "\f": "\\f", "\t": "\\t", "\n": "\\n", "\r": "\\r"}


def _mend_escapes(one: _Found) -> None:
    """Give the texts of an object back the commands of LaTeX that JSON took for escapes; a fault where in doubt."""
    for key, value in one.value.items():
        texts = value if isinstance(value, list) else [value]
        mended = [_EATEN.sub(lambda eaten: _HEADS[eaten[0]], text) for text in texts]
        if mended != texts:
            one.repairs.add("escapes")
            one.value[key] = mended if isinstance(value, list) else mended[0]
        if any(_PERHAPS_EATEN.search(text) for text in mended if set("$\\\b\f").intersection(text)):
            one.fault = "not_json"


# --- which object counts ---

_FENCE = re.compile(r"(?:```|~~~)[ \t]{0,8}\w{0,20}\s*\Z")
_DRAFT = re.compile(
    r"(?:草稿|初稿|草案|示例|样例|\bdraft|\bexample)[\s:：*]*(?:(?:```|~~~)\w{0,20}\s*)?\Z", re.IGNORECASE
)
# What says, behind the last object, that another one was to follow; that it doesn't count.
_ANNOUNCED = re.compile(r"[:：][\s`~]*\Z|(?:```|~~~)\w+\s*\Z")
_TAKEN_BACK = re.compile(
    r"[更订修]正|[应改]为|应改|应该是|(?<!\w)不对[，。！]|等一下|等等，|作废|撤[回销]|有误|忽略(?:以上|上面|上述|前面)"
    r"|(?:以上|上面|上述|刚才|前面).{0,12}(?:不对|错)|\bwait\b|\bdisregard|\bignore th|\bscratch that"
    r"|\bon second thought|\babove (?:is|was) (?:wrong|incorrect)|\bcorrection|\bretract"
    r"|\bshould (?:have been|read|instead)\b|\bshould be (?!\w+(?:ed|en)\b)",
    re.IGNORECASE,
)
_CLAUSE = re.compile(r"[^，。！？；\n]+[，。！？；]?")
_CONDITION = re.compile(r"(?<!例)如(?![下上此前])|若|是否|\bif\b", re.IGNORECASE)
# The end of an object whose begin was taken for a whole one: "写"{"a"}"的意思"}.
_STRAY_END = re.compile(r"[\"'”’」』＂]\s*+[,，]?\s*+[}｝]")
_ELLIPSIS = re.compile(r":\s*(?:\.{3}|…|<)")  # in a format that is no JSON
_QUOTE_OR_BRACE = re.compile(r"[\"'”’」』＂}｝]")


def _choose(text: str, found: list[_Found], cut: bool) -> Reading:
    """The one object that counts, by the rules at the head of this file."""
    related = [one for one in found if one.fault not in ("unrelated", "skeleton")]
    if not related:
        return Reading(fault="missing_key")
    *others, chosen = related
    if chosen.fault:
        return Reading(fault=chosen.fault)
    if any(one.value != chosen.value for one in others if not one.fault):
        return Reading(fault="ambiguous")
    if any(one.fault == "not_json" and not _ELLIPSIS.search(text, one.begin, one.end) for one in others):
        return Reading(fault="not_json")
    if _ANNOUNCED.search(text, chosen.end) or (cut and not _NOTHING.fullmatch(text, chosen.end)):
        return Reading(fault="truncated")
    if _DRAFT.search(text[max(0, chosen.begin - 80) : chosen.begin]) or _is_taken_back(text[chosen.end :]):
        return Reading(fault="ambiguous")
    unsure = "inner_quotes" in chosen.repairs or any(one.fault == "not_json" for one in found)
    if (_QUOTE_OR_BRACE if unsure else _STRAY_END).search(text, found[-1].end):
        return Reading(fault="not_json")
    return Reading(chosen.value, _method(text, chosen))


def _is_taken_back(behind: str) -> bool:
    """Whether what stands behind an object corrects or withdraws it; "如有误，请指出" does not."""
    return any(_TAKEN_BACK.search(clause) and not _CONDITION.search(clause) for clause in _CLAUSE.findall(behind))


def _method(text: str, chosen: _Found) -> str:
    if chosen.repairs:
        return f"repaired:{'+'.join(sorted(chosen.repairs))}"
    if (chosen.begin, chosen.end) == (0, len(text)):
        return "json"
    return "fenced" if _FENCE.search(text, max(0, chosen.begin - 40), chosen.begin) else "embedded"


# --- headed text ---

_FENCE_LINE = re.compile(r"^[ \t]{0,8}(?:```|~~~)[^\n`]{0,40}$", re.MULTILINE)
_SENTENCE_END = re.compile(r"(?:[。！？!?．]|(?<![\d.])\.)[”’」』）)\"'*]{0,3}\Z")
_GOES_ON = re.compile(r"[，。,.]|[、；;：:（(和及与伴]\Z")  # prose, or more names
_LIST_ITEM = re.compile(r"\s*(?:[(（]?\d{1,2}\s?[.、．)）]|[-*•·①-⑳])")


def _read_tagged(text: str, keys: Sequence[str], names: Names) -> Reading | None:
    """The texts between <reason> and </reason> and so on; None where there are no such tags."""
    tag = re.compile(rf"<(/?)({'|'.join(map(re.escape, names))})>", re.IGNORECASE | re.ASCII)
    tags = list(islice(tag.finditer(text), 2 * len(keys) + 1))
    if not tags:
        return None
    taken = {}
    for opening, closing in zip(tags[::2], tags[1::2], strict=False):
        if opening[1] or not closing[1] or opening[2] != closing[2]:
            return Reading(fault="ambiguous")
        taken[names[_plain(opening[2])]] = text[opening.end() : closing.start()].strip()
    if len(tags) % 2:
        return Reading(fault="truncated")
    return _headed(taken, keys, names)


def _headed(taken: dict[str, Any], keys: Sequence[str], names: Names) -> Reading:
    value, fault = _checked(taken, keys, names)
    return Reading(value, "headed" if value else "", "missing_key" if fault == "skeleton" else fault)


def _read_columns(text: str, keys: Sequence[str], names: Names) -> Reading | None:
    """The cells under the keys in a table with one row below its head; None if the text is no such table."""
    lines = [line.strip() for line in text.split("\n", maxsplit=3)]
    if len(lines) != 3 or not all(line.startswith("|") and line.endswith("|") for line in lines):
        return None
    head, rule, row = ([cell.strip() for cell in line[1:-1].split("|")] for line in lines)
    if not len(head) == len(rule) == len(row) or set("".join(rule)) - set(":-"):
        return None
    given = [(names[_plain(name)], cell) for name, cell in zip(head, row, strict=True) if _plain(name) in names]
    return _headed(_once(given), keys, names)


def _read_headed(text: str, keys: Sequence[str], names: Names, stopped: bool) -> Reading:
    """The texts under the keys as headings, each there once, the last one with an end."""
    heading = re.compile(
        rf"(?:^|(?<=[;；]))[ \t#*>\-•【|]{{0,8}}({'|'.join(map(re.escape, names))})"
        r"(?:[ \t*】]{0,4}[:：=|][ \t*]{0,4}|】|\*{0,2}[ \t]{0,4}$)",
        re.IGNORECASE | re.MULTILINE | re.ASCII,
    )
    fences = [fence.end() for fence in _FENCE_LINE.finditer(text)]
    if len(fences) % 2:
        return Reading(fault="truncated")
    ended = fences[-1:] == [len(text)]
    text = _FENCE_LINE.sub("", text).strip()
    if columns := _read_columns(text, keys, names):
        return columns
    headings = list(islice(heading.finditer(text), len(keys) + 1))
    if not headings:
        return Reading(fault="no_object")
    taken = {}
    for one, following in pairwise([*headings, None]):
        part = text[one.end() : following.start() if following else len(text)].strip(" \t\r\n*")
        quote = "|" if "|" in one[0] else part[:1]
        if quote in ("|", '"', "'"):
            part, end, behind = part.removeprefix(quote).partition(quote)
            if not end or behind:
                return Reading(fault="truncated")
            ended = ended or not following
        taken[names[_plain(one[1])]] = part.strip()
    reading = _headed(taken, keys, names)
    if reading.fault:
        return reading
    if len(headings) > len(keys) or _BRACE.search(text) or not all(map(_is_one_piece, taken.values())):
        return Reading(fault="ambiguous")
    last = taken[names[_plain(headings[-1][1])]]
    quoted = any(text[one.end() :].lstrip(" \t\r\n*")[:1] in ("'", '"') for one in headings)
    in_brackets = len(re.findall("[（(]", last)) != len(re.findall("[）)]", last))
    named = stopped and not (quoted or in_brackets or _GOES_ON.search(last))
    return reading if ended or named or _SENTENCE_END.search(text) else Reading(fault="truncated")


def _is_one_piece(text: str) -> bool:
    """Whether all lines belong together: one line, or a list; what else stands on further lines may be anything."""
    return all(map(_LIST_ITEM.match, text.split("\n")[1:]))


# --- an object whose quotes, colons or commas are wrong ---

_MARKS = "\"'“”‘’＂＇「」『』"
_FRAMED_TEXT = re.compile(rf"([{_MARKS}]?)([^{_MARKS}{{}}｛｝\[\]\\\n]*)([{_MARKS}]?)")
_FURTHER_KEY = re.compile(r"[,，;；]\s{0,8}\w{1,64}\s{0,8}[:：=]|//|/\*|#")


def _read_framed(text: str, keys: Sequence[str], names: Names) -> Reading | None:
    """The texts of an object that is the whole reply, and has the keys once each and no others; else None.

    The texts hold no quote, brace or backslash, so that each of these can but belong to the frame.
    """
    text = _FENCE_LINE.sub("", text).strip()
    if text[:1] not in ("{", "｛") or text[-1:] not in ("}", "｝"):
        return None
    body = text[1:-1]
    if body.count('"') == 2 * body.count('""'):  # doubled, as CSV has them
        body = body.replace('""', '"')
    key = rf"(?:\A|[,，;；\n])[ \t*{_MARKS}]{{0,20}}({'|'.join(map(re.escape, names))})"
    key += rf"(?:[\s*{_MARKS}]{{0,8}}[:：=]|[{_MARKS}]\s{{1,4}}(?=[{_MARKS}]))"
    before, *parts = re.split(key, body, flags=re.IGNORECASE | re.ASCII)
    if before.strip() or len(parts) != 2 * len(keys):
        return None
    given = []
    for name, part in zip(parts[::2], parts[1::2], strict=True):
        held = _FRAMED_TEXT.fullmatch(part.strip(" \t\r\n,，"))
        if not held or _FURTHER_KEY.search(held[2]) or _LITERAL.fullmatch(held[2].strip()):
            return None
        given.append((names[_plain(name)], held[2].strip()))
    ended = not held[1] or (held[3] and held[3] in _QUOTES[held[1]])
    if not ended and not part.rstrip(" \t").endswith("\n"):  # the brace may be in a text that was cut
        return None
    value, _ = _checked(_once(given), keys, names)
    return Reading(value, "repaired:frame") if value else None
