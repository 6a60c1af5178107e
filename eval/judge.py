"""An AI judge: does an answer satisfy its instruction, and which of two answers follows it better?

    export OPENAI_API_KEY=…
    python -m eval.judge recipes/medcot/judge.yaml base_url=https://… model=…

Reads the answers of two arms, answers-base.jsonl and answers-tuned.jsonl; writes judge/verdicts.jsonl, one row a
prompt, in which A is the first arm and B the second, whichever was shown first:

    {"id": "6b1f…", "arms": ["base", "tuned"], "answers": "90ab…", "characters": [212, 340], "empty": ["", ""],
     "absolute": [{"judge": "qwen-max", "verdicts": ["fail", "pass"], "reasons": ["没有就医提醒", "都做到了"]}],
     "pairwise": [{"judge": "qwen-max", "verdicts": ["B>A", "A=B"], "result": "tie", "reasons": ["…", "…"]}],
     "journal": ["3d0c…", …]}

absolute    of A and of B: `pass`, `fail` or `error`
pairwise    with A shown first and with B shown first: one of VERDICTS or `error`; `result` is what both come to for B
answers     a hash of the prompt and both answers as they were shown, `characters` their lengths
empty       why an answer was shown as none: `unclosed` (its thought), `truncated`, `empty`; one that `failed` to come
            is not shown at all, and its verdicts are errors

A reply without a verdict is asked for again, `tries` times in all; then it is an error, neither a tie nor left out.
Every outcome goes into judge/journal.jsonl as it comes: kill this at any instant and start it again, and what was
answered is not asked again.
"""

from __future__ import annotations

import html
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from chat.ask import ask_missing, key_of
from chat.client import Question, Settings, read_key
from chat.journal import Journal
from chat.reading import read_object
from preprocess.records import content_id, read_rows, record_id, text_field, to_json, write_jsonl
from preprocess.think import TAG, split
from recipe import UserError, atomic, main, read_text

Row = dict[str, Any]

TRACKS = ("absolute", "pairwise")
VERDICTS = ("A≫B", "A>B", "A=B", "both-bad", "B>A", "B≫A")
RESULTS = ("win", "tie", "loss", "both_bad", "inconsistent", "error")
WHOLE = ("stop", "", None)  # finish reasons of what was not cut
FAILED = "failed"  # the finish reason of an answer that never came: no fault of the model's, so nothing to judge
# Beyond these bounds a judge is called unreliable.
MIN_CONSISTENCY = 0.6
FIRST_POSITION = (0.4, 0.6)
MAX_LOST = 0.05  # share of answers shown as none, or of verdicts that are errors


@dataclass(frozen=True, kw_only=True)
class Judge:
    """The keys of judge.yaml.

    `output` is the folder of answers-<arm>.jsonl; of the two `arms` the first is the one to compare with. Several
    `model`s are several judges at the same `base_url`. The prompts are Jinja2 files: both get `prompt`, `checks`,
    `show_thoughts`, `fence` (a word that is in none of the texts) and `attempt` (0 at first); the absolute one an
    `answer`, the pairwise one `answers`, each with `label`, `text` and `thought`. `win_and_tie` is what a win in one
    order and none in the other come to: `tie` or `win`. `tries` are for a verdict, `max_tries` for any reply.
    """

    output: str
    model: str | list[str]
    base_url: str | list[str]
    arms: list[str] = field(default_factory=lambda: ["base", "tuned"])
    tracks: list[str] = field(default_factory=lambda: list(TRACKS))
    absolute_prompt: str = "eval/prompts/judge_absolute.j2"
    pairwise_prompt: str = "eval/prompts/judge_pairwise.j2"
    show_thoughts: bool = False
    win_and_tie: str = "tie"
    tries: int = 3
    temperature: float = 0.0
    max_tokens: int = 4096
    api_key_env: str = "OPENAI_API_KEY"
    api_key_file: str = ""
    concurrency: int = 16
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    stream: bool = False
    max_tries: int = 10
    retry_seconds: float = 7200.0
    outage_seconds: float = 600.0
    connect_timeout: float = 4.0
    first_token_timeout: float = 1800.0
    timeout: float = 3600.0

    @property
    def models(self) -> list[str]:
        return [self.model] if isinstance(self.model, str) else self.model

    def client(self) -> Settings:
        names = {each.name for each in fields(Settings)} - {"model"}
        return Settings(model=self.models[0], **{name: getattr(self, name) for name in names})


def check(settings: Judge) -> None:
    """UserError that names the first key whose value can't be meant."""
    if not settings.models or len(set(settings.models)) < len(settings.models) or not all(settings.models):
        raise UserError("model: name a judge as its server calls it, or several, each once")
    if not settings.tracks or not set(settings.tracks) <= set(TRACKS):
        raise UserError(f"tracks: expected names out of {', '.join(TRACKS)}, got {settings.tracks}")
    if settings.win_and_tie not in ("tie", "win"):
        raise UserError(f"win_and_tie: expected tie or win, got {settings.win_and_tie!r}")
    for name, least, most in (("tries", 1, 10), ("temperature", 0, 2), ("max_tokens", 1, 10**6)):
        if not least <= getattr(settings, name) <= most:
            raise UserError(f"{name}: expected {least} to {most}, got {getattr(settings, name)}")


# --- what is shown ----------------------------------------------------------------------------------------------------

# What a server may take for the end of a turn, though it stands in a text.
_CONTROL_TOKEN = re.compile(
    r"<(?=\|[^<>|\s]{1,40}\|>|｜[^<>｜]{1,40}｜>|/?s>|(?:start|end)_of_turn>|</?SYS>>)|\[(?=/?INST\])"
)


class Answer(NamedTuple):
    """An answer as a judge sees it; `empty` says why `text` is "", where it is."""

    text: str
    thought: str
    empty: str


def shown(row: Row, show_thoughts: bool = False) -> Answer:
    """The answer of a row without its thought; none, and no thought, where either was cut.

    >>> shown({"answer": "<think>先想想", "finish_reason": "length"}, show_thoughts=True)
    Answer(text='', thought='', empty='unclosed')
    """
    parts, finish = split(row["answer"]), row.get("finish_reason")
    if "unclosed" in (parts.fault, finish):
        return Answer("", "", "unclosed")
    if finish not in WHOLE:
        return Answer("", "", FAILED if finish == FAILED else "truncated")
    if not parts.answer:
        return Answer("", "", "empty")
    return Answer(parts.answer, (row.get("think") or parts.think) if show_thoughts else "", "")


def fence(*texts: str) -> str:
    """16 hex digits that are in none of `texts` and always the same for them: nothing in a text can end its block."""
    words = (content_id(str(salt), *map(_writable, texts)) for salt in count())
    return next(word for word in words if not any(word in text for text in texts))


def _writable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


@dataclass(frozen=True)
class Pair:
    """The two arms' answers to one prompt; `checks` are what it demands in words (eval.checks sees to the others)."""

    id: str
    prompt: str
    checks: tuple[str, ...]
    answers: tuple[Answer, Answer]

    @property
    def hash(self) -> str:
        return content_id(*map(_writable, (self.prompt, *(answer.text for answer in self.answers))))


def paired(arms: Mapping[str, Sequence[Row]], show_thoughts: bool = False) -> list[Pair]:
    """The answers of two arms, side by side; UserError that names the first row in which their prompts differ."""
    if len(arms) != 2:
        raise UserError(f"arms: expected two, got {', '.join(arms) or 'none'}")
    (one, first), (two, second) = arms.items()
    if len(first) != len(second):
        raise UserError(f"arm {one} has {len(first)} answers, arm {two} {len(second)}; ask both the same prompts")
    pairs, seen = [], set()
    for number, (a, b) in enumerate(zip(first, second, strict=True), 1):
        for name in ("id", "prompt"):
            if a[name] != b[name]:
                what = f"{name} is {str(a[name])[:40]!r} in arm {one} and {str(b[name])[:40]!r} in arm {two}"
                raise UserError(f"answer {number}: {what}; ask both the same prompts, in the same order")
        if a["id"] in seen:
            raise UserError(f"answer {number}: id {a['id']} is there twice; each prompt needs its own")
        seen.add(a["id"])
        checks = tuple(each for each in a.get("checks") or () if isinstance(each, str))
        pairs.append(Pair(str(a["id"]), a["prompt"], checks, (shown(a, show_thoughts), shown(b, show_thoughts))))
    return pairs


class Item(NamedTuple):
    """One thing that one judge is asked: about one answer, or about two in this order."""

    pair: Pair
    track: str
    judge: str
    answers: tuple[Answer, ...]

    @property
    def failed(self) -> bool:
        return any(answer.empty == FAILED for answer in self.answers)


class Asker:
    """Turns items into questions; `prompts` is, by file, the hash of each prompt that is used."""

    def __init__(self, settings: Judge) -> None:
        self.settings = settings
        self.prompts: dict[str, str] = {}
        self.files = {track: getattr(settings, f"{track}_prompt") for track in settings.tracks}
        self.templates = {track: self._template(file) for track, file in self.files.items()}

    def _template(self, path: str) -> jinja2.Template:
        text = read_text(path)
        self.prompts[Path(path).name] = sha256(text.encode()).hexdigest()
        try:
            return ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined).from_string(text)
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"{path}:{error.lineno}: {error.message}; mend the prompt") from None

    def items(self, pair: Pair) -> Iterator[tuple[Item, Item]]:
        """By judge and track, two each: of A and of B, or with A first and with B first."""
        a, b = pair.answers
        asked = {"absolute": ((a,), (b,)), "pairwise": ((a, b), (b, a))}
        for judge in self.settings.models:
            for track in self.settings.tracks:
                first, second = (Item(pair, track, judge, answers) for answers in asked[track])
                yield first, second

    def question(self, item: Item, attempt: int) -> Question:
        """The question of an item; a later attempt is one of its own."""
        prompt, *checks = map(_inert, (item.pair.prompt, *item.pair.checks))
        answers = [
            {"label": label, "text": _inert(answer.text), "thought": _inert(answer.thought)}
            for label, answer in zip("AB", item.answers, strict=False)
        ]
        texts = [prompt, *checks, *(answer[name] for answer in answers for name in ("text", "thought"))]
        values: dict[str, Any] = {"prompt": prompt, "checks": checks, "fence": fence(*texts), "attempt": attempt}
        values |= {"answer": answers[0]} if item.track == "absolute" else {"answers": answers}
        try:
            content = self.templates[item.track].render(**values, show_thoughts=self.settings.show_thoughts).strip()
        except (jinja2.TemplateError, TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{self.files[item.track]}: {error}; known: {', '.join(values)}, show_thoughts") from None
        asked = {"model": item.judge, "messages": [{"role": "user", "content": content}]}
        asked |= {"temperature": self.settings.temperature, "max_tokens": self.settings.max_tokens}
        return Question(item.pair.id, attempt, asked)


def _inert(text: str) -> str:
    return _CONTROL_TOKEN.sub(lambda found: f"{found[0]} ", text)


# --- what is asked ----------------------------------------------------------------------------------------------------


def judge(settings: Judge, arms: Mapping[str, Sequence[Row]], journal: str | Path) -> list[Row]:
    """The verdicts on two arms' answers, {name: rows}, one row a prompt; asks what `journal` does not hold yet.

    A row of an arm has `id`, `prompt`, `answer`, and may have `think`, `finish_reason` and `checks`. One journal does
    for several pairs of arms: what is the same question there is not asked again.
    Raises UserError where arms or settings do not fit, no server answers, or on Ctrl-C; the same call goes on.
    """
    check(settings)
    pairs, asker, at = paired(arms, settings.show_thoughts), Asker(settings), settings.client()
    key = read_key(at)
    with Journal(journal, secrets=[key]) as kept:
        left = [item for pair in pairs for both in asker.items(pair) for item in both if not item.failed]
        for attempt in range(settings.tries):
            questions = {key_of(question): question for question in (asker.question(item, attempt) for item in left)}
            ask_missing(at, key, kept, questions.values(), f"judge, attempt {attempt + 1}")
            left = [item for item in left if _unread(asker.question(item, attempt), item.track, kept)]
        failures = {entry["key"]: entry["error"] for entry in kept if not entry["ok"]}
        return [_row(asker, pair, list(arms), kept, failures) for pair in pairs]


def _unread(question: Question, track: str, journal: Journal) -> bool:
    """Whether there is a reply, and no verdict in it."""
    key = key_of(question)
    return key in journal and not _read(journal.get(key)["reply"], track).word


def _read(reply: Row, track: str) -> Verdict:
    return read_verdict(reply.get("raw", reply["text"]), reply["finish_reason"], track)


def _outcome(asker: Asker, item: Item, journal: Journal, failures: dict[str, Row]) -> tuple[Verdict, list[str]]:
    """The first verdict that was read, or `error` and why; and the keys of what was answered."""
    keys, verdict = [], Verdict("", "")
    if item.failed:
        return Verdict("error", "an answer failed"), keys
    for attempt in range(asker.settings.tries):
        key = key_of(asker.question(item, attempt))
        if key not in journal:
            return Verdict("error", "{kind}: {message}".format(**failures[key])), keys
        keys.append(key)
        verdict = _read(journal.get(key)["reply"], item.track)
        if verdict.word:
            return verdict, keys
    return Verdict("error", verdict.reason), keys


def _row(asker: Asker, pair: Pair, arms: list[str], journal: Journal, failures: dict[str, Row]) -> Row:
    row: Row = {"id": pair.id, "arms": arms, "answers": pair.hash}
    row["characters"] = [len(answer.text) for answer in pair.answers]
    row["empty"] = [answer.empty for answer in pair.answers]
    row |= {track: [] for track in asker.settings.tracks} | {"journal": []}
    for items in asker.items(pair):
        verdicts = []
        for item in items:
            verdict, keys = _outcome(asker, item, journal, failures)
            verdicts.append(verdict)
            row["journal"] += [key for key in keys if key not in row["journal"]]
        words = [verdict.word for verdict in verdicts]
        given: Row = {"judge": items[0].judge, "verdicts": words}
        if items[0].track == "pairwise":
            words[1] = mirrored(words[1])
            given["result"] = resolve(words[0], words[1], asker.settings.win_and_tie)
        row[items[0].track].append(given | {"reasons": [verdict.reason for verdict in verdicts]})
    return row


# --- what a verdict is ------------------------------------------------------------------------------------------------


class Verdict(NamedTuple):
    """A word of the track's menu with the judge's reason; or "", and why there is none."""

    word: str
    reason: str


def winner(verdict: str) -> str:
    """`A`, `B`, or "" for no winner."""
    return verdict[0] if set(verdict) & {">", "≫"} else ""


def mirrored(verdict: str) -> str:
    """The same verdict with the two answers' names exchanged."""
    return verdict.translate(str.maketrans("AB", "BA")) if winner(verdict) else verdict


def resolve(first: str, second: str, win_and_tie: str = "tie") -> str:
    """What the verdicts of both orders come to for B, one of RESULTS.

    >>> resolve("B>A", "B≫A"), resolve("B>A", "A=B"), resolve("B>A", "A>B")
    ('win', 'tie', 'inconsistent')
    """
    if "error" in (first, second):
        return "error"
    winners = {winner(first), winner(second)}
    if winners == {"A", "B"}:
        return "inconsistent"
    if winners == {""}:
        return "both_bad" if first == second == "both-bad" else "tie"
    if "" in winners and win_and_tie == "tie":
        return "tie"
    return "win" if "B" in winners else "loss"


_DECODER = json.JSONDecoder(strict=False)
_LAST = 8_000  # characters of a reply that are looked at
_ALIASES = dict.fromkeys(("final_verdict", "结论", "最终结论", "裁决", "判定", "评判"), "verdict")
_KEYS = ("verdict", *_ALIASES)
_KEY = re.compile(rf"(?:{'|'.join(_KEYS)})[\"'”’＂]?\s*[:：]", re.IGNORECASE)
_BRACE = re.compile(r"[{｛]")
_BEGUN = re.compile(r"[{｛]\s*[\"“＂]")
_FLAT = re.compile(r"[{｛][^{}｛｝]*[}｝]")
_QUOTATION = re.compile(r"“[^“”\n]*”|「[^「」\n]*」|『[^『』\n]*』|‘[^‘’\n]*’")
_NAME = r"(?:(?:回答|答案|answer|response|assistant)\s*)?"
_WORDS = {
    "absolute": r"(?:[不未]\s*)?(?:满足|通过|合格|符合)|pass(?:ed)?|fail(?:ed)?",
    "pairwise": rf"{_NAME}[AB](?:\s*(?:[<>＜＞]{{1,2}}|[≪≫=＝≈])\s*{_NAME}[AB])?|both[-_ ]?bad|tie|平局|平手|都不好",
}
_MARKED = re.compile(r"\[\[([^\[\]\n]{1,40})\]\]")
_LABELLED = {
    track: re.compile(
        r"(?:结论|裁决|判定|评判|verdict|judge?ment|winner)[\s*]{0,8}(?:是|为|is\b)?[\s*]{0,8}[:：]?[\s*`\"“「\[]{0,8}"
        rf"({words})(?=[\s*`\"”」\]]{{0,8}}(?:[。.!！;；(（]|$))",
        re.IGNORECASE | re.MULTILINE,
    )
    for track, words in _WORDS.items()
}
_AROUND = re.compile(r"[\s*_`\"'“”‘’「」『』\[\]()。.#\-]+")
_COMPARED = re.compile(rf"{_NAME}([ab])(>>|<<|==|[><≫≪=≈]){_NAME}([ab])")
_ALONE = re.compile(rf"{_NAME}([ab])(?:更好|较好|胜|胜出|better|isbetter|wins)?")
_SIGNS = {">>": "≫", "<<": "≪", "==": "=", "≈": "="}
_SPELLED = {
    "absolute": dict.fromkeys(("pass", "passed", "yes", "true", "是", "满足", "通过", "合格", "符合"), "pass")
    | dict.fromkeys(("fail", "failed", "no", "false", "否", "不满足", "未满足", "不通过", "未通过"), "fail")
    | dict.fromkeys(("不合格", "不符合"), "fail"),
    "pairwise": dict.fromkeys(("tie", "c", "平局", "平手", "相当", "一样好"), "A=B")
    | dict.fromkeys(("bothbad", "都不好", "都差", "两个都不好", "两个都差"), "both-bad"),
}


def read_verdict(content: str, finish_reason: str | None, track: str) -> Verdict:
    """The last verdict in what a judge said, thoughts apart; no text raises an error.

    Read are the JSON object that was asked for, also with the faults that `chat.reading` mends, `[[B]]`,
    `最终结论：B>A`, and a last line that is nothing else. Within “quotation marks” it is somebody else's. A last
    verdict that is cut or on no menu counts as none, whatever came before it.

    >>> read_verdict("初看 [[A]]；最终结论：[[B]]", "stop", "pairwise").word
    'B>A'
    """
    if finish_reason not in WHOLE:
        return Verdict("", f"cut: finish_reason is {finish_reason}")
    spoken = content[max((tag.end() for tag in TAG.finditer(content) if tag[1]), default=0) :]
    if TAG.search(spoken):
        return Verdict("", "a thought that is not closed")
    text = spoken[-_LAST:].strip()
    objects = list(_objects(text))
    taken = [(begin, end) for begin, end, _, _ in objects] + [found.span() for found in _QUOTATION.finditer(text)]
    found = [(begin, value, reason) for begin, end, value, reason in objects if not _inside(begin, end, taken)]
    for marked in (_MARKED, _LABELLED[track]):
        found += [(one.start(), one[1], "") for one in marked.finditer(text) if not _inside(*one.span(), taken)]
    if found:
        _, value, reason = max(found, key=lambda one: one[0])
        word = "" if value is None else canonical(value, track)
        fault = "a broken verdict" if value is None else f"off the menu: {str(value)[:60]!r}"
        return Verdict(word, reason if word else fault)
    line = text.splitlines()[-1] if text else ""
    word = canonical(line, track)
    if word and not _ALONE.fullmatch(_bare(line)):
        return Verdict(word, "")
    return Verdict("", f"no verdict: {text[-60:]!r}" if text else "an empty reply")


def _inside(begin: int, end: int, taken: list[tuple[int, int]]) -> bool:
    return any(first <= begin and end <= last and (first, last) != (begin, end) for first, last in taken)


def _objects(text: str) -> Iterator[tuple[int, int, Any, str]]:
    """Begin, end, verdict and reason of each object that has, or seems to have, a verdict; None for a broken one."""
    at, last_key = 0, max((key.start() for key in _KEY.finditer(text)), default=-1)
    while brace := _BRACE.search(text, at):
        begin = at = brace.start()
        at += 1
        try:
            value, end = _DECODER.raw_decode(text, begin)
        except (ValueError, RecursionError):
            flat = _FLAT.match(text, begin)
            if not flat and (begin < last_key or _BEGUN.match(text, begin)):  # it does not end, or holds another one
                yield begin, at, None, ""
            if not flat or not _KEY.search(flat[0]):
                continue
            read = read_object(flat[0], ("verdict",), aliases=_ALIASES).value
            yield begin, flat.end(), read and read["verdict"], ""
            at = flat.end()
            continue
        at = end
        for one in (value, *(part for part in value.values() if isinstance(part, dict))):
            plain = {key.strip().casefold(): part for key, part in one.items()}
            if named := [plain[key] for key in _KEYS if key in plain]:
                yield begin, end, named[0], str(plain.get("reason") or plain.get("理由") or "")
                break


def _bare(value: Any) -> str:
    """As spellings are compared: half width, small letters, nothing around it."""
    return _AROUND.sub("", unicodedata.normalize("NFKC", html.unescape(str(value)))).casefold()


def canonical(value: Any, track: str = "pairwise") -> str:
    """The word of the track's menu that a spelling stands for, or "".

    >>> canonical("A>>B"), canonical("回答 B 更好"), canonical("both bad"), canonical("通过", "absolute")
    ('A≫B', 'B>A', 'both-bad', 'pass')
    """
    bare = _bare(value)
    if track == "absolute" or bare in _SPELLED[track]:
        return _SPELLED[track].get(bare, "")
    if alone := _ALONE.fullmatch(bare):
        return "A>B" if alone[1] == "a" else "B>A"
    compared = _COMPARED.fullmatch(bare)
    if not compared or compared[1] == compared[3]:
        return ""
    sign, first = _SIGNS.get(compared[2], compared[2]), compared[1].upper()
    if sign in "<≪":
        sign, first = {"<": ">", "≪": "≫"}[sign], compared[3].upper()
    return "A=B" if sign == "=" else f"{first}{sign}{'AB'[first == 'A']}"


# --- the figures ------------------------------------------------------------------------------------------------------

_SCORES = {"win": 1.0, "loss": 0.0}


def summarise(rows: Sequence[Row], models: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The figures of all judges together and of each, with warnings in words; `models` are the arms' own, by name.

    Counts are of judge and prompt: of n pairs, win + tie + loss + both_bad + inconsistent + error = n. In the win rate
    of the second arm a tie, both-bad and an inconsistent pair are half a win each, an error is no part of it.

    consistency         share of the pairs in which both orders name the same winner, or none
    first_position      share of the verdicts with a winner that name the answer shown first; 0.5 without a bias
    longer_wins         share of the won and lost pairs that the longer answer won
    length_balanced     the win rate where the second arm's answer is longer, and where it is shorter, in equal parts
    """
    if not rows:
        raise UserError("no verdicts to add up")
    arms, judges = rows[0]["arms"], _judges(rows)
    figures: dict[str, Any] = {"arms": arms, "prompts": len(rows), **_figures(rows, judges)}
    figures["empty"] = {
        arm: dict(sorted(Counter(row["empty"][i] for row in rows if row["empty"][i]).items()))
        for i, arm in enumerate(arms)
    }
    figures["judges"] = {name: _figures(rows, [name]) for name in judges}
    figures["self_judging"] = [
        {"judge": name, "arm": arm} for name in judges for arm, model in (models or {}).items() if _same(name, model)
    ]
    return figures | {"warnings": list(_warnings(figures))}


def scores(rows: Sequence[Row]) -> dict[str, list[list[float]]]:
    """What a bootstrap draws prompts from: of each row, in order, one number a judge; [] where none gave a verdict.

    pairwise    the second arm's: 1 for a win, 0 for a loss, 0.5 for any other result
    first       1 for a pass of the first arm's answer, 0 for a fail; a judge without a verdict on either is left out
    second      the same of the second arm's answer
    """
    found: dict[str, list[list[float]]] = {"pairwise": [], "first": [], "second": []}
    for row in rows:
        results = [one["result"] for one in row.get("pairwise", ())]
        found["pairwise"].append([_SCORES.get(result, 0.5) for result in results if result != "error"])
        words = [one["verdicts"] for one in row.get("absolute", ()) if "error" not in one["verdicts"]]
        for i, name in enumerate(("first", "second")):
            found[name].append([float(each[i] == "pass") for each in words])
    return found


def _judges(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(one["judge"] for row in rows for track in TRACKS for one in row.get(track, ())))


def _figures(rows: Sequence[Row], judges: list[str]) -> dict[str, Any]:
    given = {
        track: [(row, one) for row in rows for one in row.get(track, ()) if one["judge"] in judges] for track in TRACKS
    }
    return {"absolute": _absolute(given["absolute"]), "pairwise": _pairwise(given["pairwise"])}


def _absolute(given: list[tuple[Row, Row]]) -> dict[str, Any]:
    """Passes of both arms, of the prompts in which both have a verdict; the errors are of either."""
    read = [one["verdicts"] for _, one in given if "error" not in one["verdicts"]]
    table = Counter(map(tuple, read))
    passed = [sum(words[i] == "pass" for words in read) for i in (0, 1)]
    return {
        "n": len(given),
        "scored": len(read),
        "error": len(given) - len(read),
        "passed": passed,
        "pass_rate": [_share(hits, len(read)) for hits in passed],
        "only_first": table["pass", "fail"],
        "only_second": table["fail", "pass"],
    }


def _pairwise(given: list[tuple[Row, Row]]) -> dict[str, Any]:
    results = Counter(one["result"] for _, one in given)
    scored = len(given) - results["error"]
    both = [one["verdicts"] for _, one in given if one["result"] != "error"]
    first = [winner(one["verdicts"][i]) == "AB"[i] for _, one in given for i in (0, 1) if winner(one["verdicts"][i])]
    decided = [(row["characters"], one["result"]) for row, one in given if one["result"] in ("win", "loss")]
    longer = [(b > a) == (result == "win") for (a, b), result in decided if a != b]
    halves = [[one["result"] for row, one in given if _longer(row) == side] for side in (0, 1)]
    balanced = [rate for half in halves if (rate := _win_rate(Counter(half))) is not None]
    return {
        "n": len(given),
        "scored": scored,
        **{name: results[name] for name in RESULTS},
        "win_rate": _win_rate(results),
        "net_win": _share(results["win"] - results["loss"], scored),
        "consistency": _share(sum(winner(a) == winner(b) for a, b in both), len(both)),
        "first_position": _share(sum(first), len(first)),
        "first_position_n": len(first),
        "longer_wins": _share(sum(longer), len(longer)),
        "longer_wins_n": len(longer),
        "length_balanced": sum(balanced) / 2 if len(balanced) == 2 else None,
    }


def _longer(row: Row) -> int | None:
    """Which answer is longer, 0 or 1; None for neither."""
    a, b = row["characters"]
    return None if a == b else int(b > a)


def _win_rate(results: Counter[str]) -> float | None:
    scored = results.total() - results["error"]
    return _share(results["win"] + (scored - results["win"] - results["loss"]) / 2, scored)


def _share(hits: float, n: int) -> float | None:
    return hits / n if n else None


def _same(one: str, other: str) -> bool:
    """Whether two names are one model's: `Qwen/Qwen3-8B` and `models/qwen3-8b` are."""
    return Path(one).name.casefold() == Path(other).name.casefold()


def _warnings(figures: dict[str, Any]) -> Iterator[str]:
    for name, one in figures["judges"].items():
        pairwise, absolute = one["pairwise"], one["absolute"]
        if (share := pairwise["consistency"]) is not None and share < MIN_CONSISTENCY:
            what = f"consistency is {share:.0%} of {pairwise['scored']} pairs, below {MIN_CONSISTENCY:.0%}"
            yield f"judge {name}: {what}: its verdict hangs on the order of the answers; don't believe its win rate"
        share, n = pairwise["first_position"], pairwise["first_position_n"]
        # Two standard errors, so that a handful of verdicts is no bias.
        if n and not FIRST_POSITION[0] <= share <= FIRST_POSITION[1] and abs(share - 0.5) > n**-0.5:
            place = "first" if share > 0.5 else "second"
            what = f"{max(share, 1 - share):.0%} of its {n} decided verdicts are for the answer shown {place}"
            yield f"judge {name}: position bias: {what}; take another judge or another prompt"
        for track, each in (("pairwise", pairwise), ("absolute", absolute)):
            if each["error"] > MAX_LOST * each["n"]:
                yield f"judge {name}: {track}: {each['error']} of {each['n']} have no verdict; see the journal"
    for one in figures["self_judging"]:
        yield f"judge {one['judge']} is the model of arm {one['arm']}: it judges itself; take another one"
    for arm, reasons in figures["empty"].items():
        if sum(reasons.values()) > MAX_LOST * figures["prompts"]:
            said = ", ".join(f"{name} {number}" for name, number in reasons.items())
            what = f"{sum(reasons.values())} of {figures['prompts']} answers were shown as none ({said})"
            yield f"arm {arm}: {what}; if they were cut, raise max_tokens of the answers"


def lines(figures: dict[str, Any]) -> list[str]:
    """The figures for a terminal, a line each; the warnings last."""
    first, second = figures["arms"]
    told = []
    for name, one in figures["judges"].items():
        if (given := one["absolute"])["n"]:
            rates = [f"{arm} {_percent(rate)}" for arm, rate in zip((first, second), given["pass_rate"], strict=True)]
            told.append(f"{name}: passes: {', '.join(rates)} of {given['scored']}; errors {given['error']}")
        if (given := one["pairwise"])["n"]:
            counts = ", ".join(f"{result.replace('_', '-')} {given[result]}" for result in RESULTS)
            told.append(f"{name}: {second} against {first}: {counts}, of {given['n']} pairs")
            names = ("win_rate", "length_balanced", "consistency", "first_position", "longer_wins")
            shares = (f"{share.replace('_', ' ')} {_percent(given[share])}" for share in names)
            told.append(f"{name}: {', '.join(shares)}")
    return told + [f"WARNING: {warning}" for warning in figures["warnings"]]


def _percent(share: float | None) -> str:
    return "undefined" if share is None else f"{share:.1%}"


def made_from(settings: Judge) -> dict[str, Any]:
    """What the verdicts hang on, for the report: the judges, the prompts' hashes by file, the rules."""
    names = ("show_thoughts", "win_and_tie", "tries", "temperature", "max_tokens")
    return {"judges": settings.models, "prompts": Asker(settings).prompts} | {
        name: getattr(settings, name) for name in names
    }


def check_row(row: Row, place: str) -> Row:
    """A row of verdicts.jsonl as it came; UserError where it is none."""
    try:
        whole = {"id": str, "arms": list, "answers": str, "characters": list, "empty": list}
        fits = all(isinstance(row[name], kind) for name, kind in whole.items()) and len(row["characters"]) == 2
        for track in TRACKS:
            for one in row.get(track, ()):
                fits &= isinstance(one["judge"], str) and len(one["verdicts"]) == 2
                fits &= track == "absolute" or one["result"] in RESULTS
    except (KeyError, TypeError):
        fits = False
    if not fits:
        raise UserError(f"{place}: not a row of verdicts; run the judge again")
    return row


def read_answers(path: str | Path) -> list[Row]:
    """The rows of an answers file, each with an id; UserError where one is no answer."""
    rows = []
    for place, row in read_rows(str(path)):
        for name in ("prompt", "answer"):
            text_field(row, name, place)
        rows.append(row | {"id": record_id(row, place, row["prompt"])})
    return rows


def run(settings: Judge) -> None:
    """Run judge.yaml and print the figures."""
    check(settings)
    arms = {arm: read_answers(Path(settings.output) / f"answers-{arm}.jsonl") for arm in settings.arms}
    folder = Path(settings.output) / "judge"
    rows = judge(settings, arms, folder / "journal.jsonl")
    write_jsonl(folder / "verdicts.jsonl", rows)
    with atomic(folder / "settings.json") as file:
        file.write(to_json(made_from(settings), indent=1) + "\n")
    models = {arm: str(answers[0].get("model") or "") for arm, answers in arms.items() if answers}
    print("\n".join(lines(summarise(rows, models))))


if __name__ == "__main__":
    main(Judge, run, __doc__)
