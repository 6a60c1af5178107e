"""One page that shows a result: index.html, with everything inside it; report.md, a table to paste; lines to print.

`metrics` is metrics.json and `samples` the rows of samples.jsonl, as `eval.run` makes them; any part may be absent. A
sample may also carry what judge and raters said of its first two answers, A the first:

    "judge": {"absolute": […], "pairwise": […]}                      as in judge/verdicts.jsonl
    "votes": [{"rater", "vote", "tags", "comment"}, …]               as in votes.jsonl

Model text is data to the page: jinja2 escapes what stands in its HTML, its script puts texts into place as text only, a
content security policy lets no other script run and nothing be fetched, and control characters are spelled out.
"""

from __future__ import annotations

import base64
import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup, escape

from chat.text import visible
from eval.charts import curves
from preprocess.records import to_json
from preprocess.think import split

Row = dict[str, Any]
Histories = Mapping[str, Sequence[Mapping[str, float]]]

SEGMENTS = {"think": "思考 thought", "markup": "标签 markup", "answer": "回答 answer", "end": "结束符 end token"}
TIERS = {"strict": "逐字 strict", "normalised": "规范化 normalised", "alias": "别名 alias"}
REFERENCES = {"diagnosis": ("", ""), "diagnosis_weak": ("（弱参考）", " (weak references)")}  # key of metrics: names
RESULTS = {  # of a pair, in the order of the bar, as the second arm sees it
    "win": "胜 win",
    "tie": "平 tie",
    "both_bad": "都不行 both bad",
    "inconsistent": "两序不一致 inconsistent",
    "loss": "负 loss",
}
SCORES = {"A≫B": 0.0, "A>B": 0.0, "A=B": 0.5, "both-bad": 0.5, "B>A": 1.0, "B≫A": 1.0}
FORMAT = ("think", "json", "answer")  # families of checks that tell whether the form is broken

_ENGLISH = re.compile(r"(?<=[^\x00-\x7f]) (?=[A-Za-z“(][^\u3000-\uffef]*$)")  # where a label's English begins

MOST_CHARACTERS, LEAST_CHARACTERS = 20_000, 200  # of a text in the page, by what there is room for
BYTES_AN_ANSWER = 4_000  # of the page, on average, and of 600 answers at least: 2.4 MB
FEW = 10  # items, from which on a change is called better or worse
MANY = 0.05  # share of cut answers that is worth an alarm
POINTS = 2_000  # of a scatter or a curve; of more, every second, third, …


# --- the figures as words ---------------------------------------------------------------------------------------------


def number(value: float | None) -> str:
    """A perplexity: four digits, more or less."""
    if value is None:
        return "—"
    return f"{value:,.{0 if value >= 10_000 else 1 if value >= 100 else 2 if value >= 10 else 3}f}"


def percent(value: float | None, digits: int = 0) -> str:
    return "—" if value is None else f"{100 * value:.{digits}f} %"


def ends(interval: Mapping[str, float] | None, form: str = ".3f", scale: float = 1.0) -> str:
    """`[low, high]` of a 95 % interval, "" without one."""
    return f"[{scale * interval['low']:{form}}, {scale * interval['high']:{form}}]" if interval else ""


def share(interval: Mapping[str, float] | None) -> str:
    """`59 % [49, 68]`."""
    return f"{percent(interval['value'])} {ends(interval, '.0f', 100)}" if interval else "—"


def points(change: Mapping[str, float] | None) -> str:
    """`+23 pp [+12, +34]`, of shares."""
    return f"{100 * change['value']:+.0f} pp {ends(change, '+.0f', 100)}" if change else "—"


def chance(p: float) -> str:
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.4f}"


def others(metrics: Mapping[str, Any]) -> list[str]:
    return list(metrics["arms"][1:])


def ratio_of(part: Mapping[str, Any], arm: str, metrics: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The arm's perplexity over the first's, with its interval; None where one of them was not scored."""
    first, second, *_ = metrics["arms"]
    ratio = part.get("ratios", {}).get(arm) or (part.get("ratio") if arm == second else None)
    known = ratio and ratio["value"] is not None and math.isfinite(ratio["value"])
    return ratio if known and {first, arm} <= part.keys() else None


def label(text: str) -> Markup:
    """`困惑度 Perplexity` with the English smaller."""
    zh, *en = (escape(visible(part)) for part in _ENGLISH.split(text, maxsplit=1))
    return Markup(f'{zh} <span class="en" lang="en">{en[0]}</span>') if en else zh


# --- the table --------------------------------------------------------------------------------------------------------


class Figure(NamedTuple):
    """A line of the result: before, after, and the change with its 95 % interval."""

    name: str
    before: str
    after: str
    change: str
    n: str


def summary_rows(metrics: Mapping[str, Any]) -> list[Figure]:
    """The result, for the page, the table and the terminal: each arm against the first."""
    rows: list[Figure] = []
    for arm in others(metrics):
        found = [*_perplexity_rows(metrics, arm), *_answer_rows(metrics, arm)]
        if arm == metrics["arms"][1]:
            found += _reviewed_rows(metrics)
        rows += [row._replace(name=f"{row.name} · {arm}") for row in found] if len(others(metrics)) > 1 else found
    return rows


def _perplexity_rows(metrics: Mapping[str, Any], arm: str) -> list[Figure]:
    part, first = metrics.get("perplexity") or {}, metrics["arms"][0]
    parts = [("困惑度，全部回复 perplexity, whole response", part, f"{part.get('samples')} rows, ")]
    parts += [("困惑度，仅回答 perplexity, answer alone", part.get("segments", {}).get("answer", {}), "")]
    rows = []
    for name, one, counted in parts:
        if ratio := ratio_of(one, arm, metrics):
            change = f"× {ratio['value']:.3f} {ends(ratio)}"
            rows.append(
                Figure(name, number(one[first]), number(one[arm]), change, f"{counted}{one['tokens']:,} tokens")
            )
    return rows


def _answer_rows(metrics: Mapping[str, Any], arm: str) -> list[Figure]:
    first, rows = metrics["arms"][0], []
    if thoughts := metrics.get("thought_well_formed"):
        change = thoughts.get("changes", {}).get(arm, {}).get("difference")
        text = points(change) if change else f"{100 * (thoughts[arm] - thoughts[first]):+.0f} pp"
        sides = (share(thoughts["intervals"][side]) for side in (first, arm))
        rows.append(Figure("思考格式正确 well-formed thoughts", *sides, text, f"{thoughts['prompts']} prompts"))
    if asked := metrics.get("instructions"):
        change, sides = asked["changes"][arm], [asked["arms"][side]["by_prompt"]["strict"] for side in (first, arm)]
        name = "指令逐题全部通过 instructions followed, by prompt"
        rows.append(Figure(name, *map(share, sides), points(change["difference"]), f"{change['n']} prompts"))
    for key, (zh, en) in REFERENCES.items():
        diagnosis = metrics.get(key, {})
        for tier, name in TIERS.items() if diagnosis else ():
            before, after = (diagnosis["arms"][side]["tiers"][tier]["f1"] for side in (first, arm))
            change = diagnosis["changes"][arm][tier]
            text = f"{change['value']:+.3f} {ends(change, '+.3f')}" if change else "—"
            title = "诊断 F1{}，{} diagnosis F1{}, {}".format(zh, name.split(" ")[0], en, name.split(" ")[1])
            rows.append(Figure(title, f"{before:.3f}", f"{after:.3f}", text, f"{diagnosis['prompts']} prompts"))
    return rows


def _reviewed_rows(metrics: Mapping[str, Any]) -> list[Figure]:
    """Judge and raters, who compare the first two arms."""
    rows = []
    if judge := metrics.get("judge"):
        for change in list(judge.get("changes", {}).values())[:1]:
            sides = (percent((change["both"] + change[name]) / change["n"]) for name in ("lost", "gained"))
            name = "满足指令，AI 评审 instruction satisfied, AI judge"
            rows.append(Figure(name, *sides, points(change["difference"]), f"{change['n']} prompts"))
        if judge.get("win_rate"):
            name = "胜率，AI 评审 win rate, AI judge"
            rows.append(_won(name, judge, f"{judge['pairwise']['scored']} verdicts"))
    if (votes := metrics.get("votes")) and votes.get("win_rate"):
        rows.append(_won("胜率，人工 win rate, raters", votes, f"{votes['votes']} votes"))
    if joint := metrics.get("joint"):
        n = f"{joint['prompts_human']} by raters, {joint['prompts_ai']} by the judge"
        text = share(joint["joint"]) if joint["joint"] else "—（双评题太少 too few rated by both）"
        rows.append(Figure("胜率，人机联合 win rate, joint", "—", text, "", n))
    return rows


def _won(name: str, said: Mapping[str, Any], n: str) -> Figure:
    counts = said["by_prompt"]
    won = "胜:负 won:lost {win} : {loss}".format(**counts)
    return Figure(name, "—", share(said["win_rate"]), won, f"{sum(counts.values())} prompts, {n}")


# --- what went in -----------------------------------------------------------------------------------------------------


class Tally(NamedTuple):
    """Where the items of a part went: given = scored + left, or the page says so in red."""

    section: str
    part: str
    given: int
    scored: int
    left: int
    notes: str = ""
    where: str = ""

    @property
    def adds_up(self) -> bool:
        return self.given == self.scored + self.left

    def __str__(self) -> str:
        notes = f" ({self.notes})" if self.notes else ""
        return f"{self.part}: {self.given:,} = {self.scored:,} + {self.left:,}{notes}"


def ledger(metrics: Mapping[str, Any]) -> list[Tally]:
    """How many items went into each part, were scored, and were not, and where those are."""
    return [
        *_data_tally(metrics),
        *_overlap_tally(metrics),
        *_perplexity_tally(metrics),
        *_answers_tally(metrics),
        *_reviewed_tally(metrics),
    ]


def _data_tally(metrics: Mapping[str, Any]) -> list[Tally]:
    data = metrics.get("data")
    if not data:
        return []
    dropped, kept = data["dropped"], f"训练 train {data['train']}, 留出 held out {data['eval']}"
    notes = ", ".join([kept, *(f"{reason} {count}" for reason, count in dropped.items())])
    total = sum(dropped.values())
    return [Tally("data", "数据 records", data["read"], data["train"] + data["eval"], total, notes, "dropped.jsonl")]


def _overlap_tally(metrics: Mapping[str, Any]) -> list[Tally]:
    told = metrics.get("overlap")
    if not told:
        return []
    part = "训练集里没有的留出问题 held-out questions not in the training rows"
    if why := told.get("not_counted"):
        return [Tally("data", part, 0, 0, 0, f"未比对 not compared: {why}")]
    n, found = told["held_out"], told["found"]
    return [Tally("data", part, n, n - len(found), len(found), _some(found), "metrics.json" if found else "")]


def _perplexity_tally(metrics: Mapping[str, Any]) -> list[Tally]:
    part = metrics.get("perplexity")
    if not part:
        return []
    n, skipped, windowed = part["samples"], part.get("skipped", []), part.get("windowed", [])
    notes = [f"分窗 windowed {len(windowed)}: {_some(windowed)}"] * bool(windowed)
    notes += [f"未计 left out: {_some(skipped)}"] * bool(skipped)
    for name, ids in part.get("without", {}).items():
        notes += [f"没有 without {SEGMENTS[name]} {len(ids)}: {_some(ids)}"] * bool(ids)
    left, where = len(skipped), "metrics.json" if notes else ""
    if limit := metrics.get("made_from", {}).get("limit"):
        notes.append(f"只取前几条 the first ones only: limit={limit}")
    tallies = [Tally("perplexity", "留出样本 held-out rows", n + left, n, left, "; ".join(notes), where)]
    for arm, why in part.get("not_scored", {}).items():
        tallies.append(Tally("perplexity", f"留出样本 held-out rows, {arm}", n, 0, n, str(why)))
    if train := part.get("train"):
        n, why = train.get("samples", 0), str(train.get("not_scored", ""))
        tallies.append(Tally("perplexity", "训练样本 training rows", n, n, 0, why))
    return tallies


def _some(ids: Sequence[str], most: int = 8) -> str:
    more = f" … 共 {len(ids)} in all" if len(ids) > most else ""
    return ", ".join(map(str, ids[:most])) + more


def _answers_tally(metrics: Mapping[str, Any]) -> list[Tally]:
    tallies = []
    for arm, counts in metrics.get("answers", {}).items():
        items = (counts[name] for name in ("prompts", "answered", "failed"))
        notes = f"截断 cut {counts['cut']}" if counts["cut"] else ""
        tallies.append(Tally("answers", f"回答 answers, {arm}", *items, notes, f"answers-{arm}.jsonl"))
    if not (thoughts := metrics.get("thought_well_formed")):
        return tallies
    prompts, paired = max((tally.given for tally in tallies), default=thoughts["prompts"]), thoughts["prompts"]
    every = "所有模型都答了 answered by every arm"
    tallies.append(Tally("answers", "可比较的提问 prompts compared", prompts, paired, prompts - paired, every))
    if asked := metrics.get("instructions"):
        n = asked["prompts"]
        notes = f"未点名检查 naming no check {paired - n}" if paired > n else ""
        tallies.append(Tally("instructions", "指令 prompts with checks", paired, n, paired - n, notes))
        for arm, figures in asked["arms"].items():
            counts = figures["by_check"]
            n, none = counts["n"], counts["not_applicable"]
            notes = f"不适用 not applicable {none}" if none else ""
            tallies.append(Tally("instructions", f"检查 checks, {arm}", n + none, n, none, notes, "samples.jsonl"))
    if diagnosis := metrics.get("diagnosis"):
        n = diagnosis["prompts"]
        faults = [
            f"{arm}: 无法读出、按空计 unreadable, counted as empty {figures['n'] - figures['read']}"
            for arm, figures in diagnosis["arms"].items()
            if figures["n"] > figures["read"]
        ]
        notes = [f"参考不是诊断 reference is no diagnosis {paired - n}"] * (paired > n) + faults
        part = "诊断 prompts with a diagnosis"
        tallies.append(
            Tally("diagnosis", part, paired, n, paired - n, "; ".join(notes), "samples.jsonl" if faults else "")
        )
    if weak := metrics.get("diagnosis_weak"):
        n, part = weak["prompts"], "弱参考 prompts with a weak reference"
        notes = f"没有弱参考 without a weak reference {paired - n}" if paired > n else ""
        tallies.append(Tally("diagnosis", part, paired, n, paired - n, notes))
    return tallies


def _reviewed_tally(metrics: Mapping[str, Any]) -> list[Tally]:
    paired = metrics.get("thought_well_formed", {}).get("prompts")
    tallies = []
    if judge := metrics.get("judge"):
        n, given = judge["prompts"], paired or judge["prompts"]
        tallies.append(Tally("judge", "AI 评审的提问 prompts judged", given, n, given - n))
        for track, name in (("absolute", "逐答 absolute"), ("pairwise", "成对 pairwise")):
            counts = judge[track]
            notes = f"{RESULTS['inconsistent']} {counts['inconsistent']}" if counts.get("inconsistent") else ""
            where = "judge/journal.jsonl" if counts["error"] else ""
            if counts["n"]:
                items = (counts[name] for name in ("n", "scored", "error"))
                tallies.append(Tally("judge", f"AI 评判 verdicts, {name}", *items, notes, where))
    if votes := metrics.get("votes"):
        n, given = votes["prompts"], paired or votes["prompts"]
        notes = f"{votes['votes']} 票 votes, {votes['raters']} 人 raters"
        if stale := votes.get("on_other_answers"):
            notes += f", 另有 {stale} 票投给别的回答、不计 more on other answers, not counted"
        tallies.append(Tally("judge", "人工评审的提问 prompts voted on", given, n, given - n, notes, "votes.jsonl"))
    return tallies


def alerts(metrics: Mapping[str, Any]) -> list[str]:
    """What must be read before the figures: a judge not to be believed, items that are missing."""
    found = [f"AI 评审不可靠 Judge: {warning}" for warning in metrics.get("judge", {}).get("warnings", [])]
    found += [f"数目对不上 Does not add up: {tally}" for tally in ledger(metrics) if not tally.adds_up]
    if stale := metrics.get("votes", {}).get("on_other_answers"):
        found.append(f"{stale} 票投给了别的回答，不计 votes were given on other answers and don't count")
    if trained_on := metrics.get("overlap", {}).get("found"):
        among = f"{len(trained_on)} / {metrics['overlap']['held_out']}"
        found.append(f"{among} 个留出问题就在训练集里 held-out questions stand in the training rows")
    for arm, counts in metrics.get("answers", {}).items():
        if counts["failed"]:
            found.append(f"{arm}: {counts['failed']} / {counts['prompts']} 个提问没有回答 prompts got no answer")
        if counts["cut"] > MANY * counts["answered"]:
            found.append(f"{arm}: {counts['cut']} / {counts['answered']} 个回答被截断 answers were cut at the limit")
    return found


# --- table and lines --------------------------------------------------------------------------------------------------


def summary_lines(metrics: Mapping[str, Any]) -> list[str]:
    """The result for a terminal, the alerts last."""
    lines = [f"{row.name}: {row.before} -> {row.after}  {row.change}  ({row.n})" for row in summary_rows(metrics)]
    return [_one_line(line) for line in lines + [f"! {alert}" for alert in alerts(metrics)]]


def _one_line(text: str) -> str:
    return " ".join(visible(text).split())


def _cell(text: str) -> str:
    """Text as a table's cell, or a line, of Markdown: nothing in it is markup."""
    for mark in "\\`*_[]<>|#":
        text = text.replace(mark, f"\\{mark}")
    return _one_line(text)


def to_markdown(metrics: Mapping[str, Any]) -> str:
    """report.md: the table, what went in and was left out, and what it was computed from."""
    lines = ["| figure | before | after | change, 95 % interval | n |", "|---|---|---|---|---|"]
    lines += [f"| {' | '.join(map(_one_line, row))} |" for row in summary_rows(metrics)]
    lines += [f"\n**⚠ {_cell(alert)}**" for alert in alerts(metrics)]
    lines += ["", "进入 = 计入 + 未计 · in = scored + left out:", ""]
    lines += [f"- {_cell(str(tally))}{f'; {_cell(tally.where)}' if tally.where else ''}" for tally in ledger(metrics)]
    made = [f"{_cell(name)} `{_one_line(value).replace('`', '')}`" for name, value in made_from(metrics)]
    return "\n".join([*lines, "", "Made from: " + ", ".join(made) + ".", ""])


def made_from(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of all that the result hangs on: recipes, weights, data, token ids, versions."""
    found = _leaves(metrics.get("made_from", {}))
    if ids := metrics.get("perplexity", {}).get("ids_sha256"):
        found.append(("token ids sha256", ids))
    for given in (metrics.get("data") or {}).get("inputs", ()):
        found.append((f"input {given['file']} sha256", given["sha256"]))
    for arm, run in metrics.get("training", {}).items():
        found.append(
            (f"training {arm}", "{steps} steps, {epochs} epochs, loss {loss_first} → {loss_last}".format(**run))
        )
    return [(name, value) for name, value in found if value]


def _leaves(value: Any, name: str = "") -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [leaf for key, part in value.items() for leaf in _leaves(part, f"{name} {key}".strip())]
    if isinstance(value, list):
        return [(name, ", ".join(map(str, value)))]
    return [(name, "" if value is None else str(value))]


# --- drawing ----------------------------------------------------------------------------------------------------------
# Widths are in per cent and text stands outside, so that the page can be any width; colours are the style sheet's.


def _svg(body: str, attributes: str) -> Markup:
    return Markup(f'<svg {attributes} role="img">{body}</svg>')


def bar(value: float | None, whole: float, arm: int) -> Markup:
    """A bar of `value` on a scale from 0 to `whole`, in the colour of an arm."""
    known = value is not None and math.isfinite(value) and whole > 0
    width = max(0.0, min(100.0, 100 * value / whole)) if known else 0.0
    body = (
        '<rect class="rail" width="100%" height="10" rx="2"/>'
        f'<rect class="arm{arm}" width="{width:.2f}%" height="10" rx="2"/>'
    )
    return _svg(body, 'class="bar" height="10"')


def strip(interval: Mapping[str, float] | None, null: float, log: bool = False) -> Markup:
    """A 95 % interval with its value, and the line of no change in the middle."""
    if not interval or (log and interval["low"] <= 0):
        return Markup("")
    scale = math.log if log else float
    value, low, high = (scale(interval[name]) - scale(null) for name in ("value", "low", "high"))
    reach = 1.15 * max(abs(low), abs(high), abs(value), 0.05)
    at = [f"{50 + 50 * x / reach:.2f}%" for x in (value, low, high)]
    body = (
        '<line class="rail" x1="0" x2="100%" y1="9" y2="9"/><line class="null" x1="50%" x2="50%" y1="1" y2="17"/>'
        f'<line class="span" x1="{at[1]}" x2="{at[2]}" y1="9" y2="9"/><circle class="dot" cx="{at[0]}" cy="9" r="5"/>'
    )
    return _svg(body, 'class="strip" height="18"')


def stacked(counts: Mapping[str, int]) -> Markup:
    """The counts of RESULTS as parts of one bar, in their order."""
    shown = {name: counts.get(name, 0) for name in RESULTS}
    total, at, body = sum(shown.values()), 0.0, ""
    for name, count in shown.items():
        width = 100 * count / total if total else 0.0
        body += f'<rect class="{name}" x="{at:.3f}%" width="{width:.3f}%" height="28"/>' if count else ""
        at += width
    return _svg(body, 'class="stacked" height="28"')


def _step(span: float, steps: int) -> float:
    """A round distance between ticks: 1, 2 or 5 times a power of ten."""
    raw = span / steps if span > 0 else 1.0
    power = 10 ** math.floor(math.log10(raw))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)


def _ticks(low: float, high: float, steps: int) -> list[float]:
    step = _step(high - low, steps)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


_PLOT = 'class="plot" viewBox="0 0 350 330"'


def scatter(pairs: Sequence[tuple[str, float, float]]) -> Markup:
    """(id, before, after) in nats a token: below the diagonal is better."""
    values = [value for _, *both in pairs for value in both]
    margin = 0.05 * (max(values) - min(values)) or 0.1
    low, high = min(values) - margin, max(values) + margin

    def place(value: float) -> float:
        return 300 * (value - low) / (high - low)

    parts = []
    for tick in _ticks(low, high, 5):
        x, y = 40 + place(tick), 308 - place(tick)
        parts += [_line("grid", x, 8, x, 308), _line("grid", 40, y, 340, y)]
        parts += [_text(x, 323, "middle", f"{tick:g}"), _text(34, y + 4, "end", f"{tick:g}")]
    parts.append(_line("null", 40, 308, 340, 8))
    for name, before, after in pairs:
        side, x, y = "good" if after < before else "bad", 40 + place(before), 308 - place(after)
        id_ = escape(visible(name))
        parts.append(f'<circle class="{side}" cx="{x:.1f}" cy="{y:.1f}" r="3.5" data-id="{id_}"/>')
    return _svg("".join(parts), _PLOT)


def histogram(pairs: Sequence[tuple[str, float, float]]) -> Markup:
    """How many of (id, before, after) changed by how much, in nats a token; 0 is an edge between two bars."""
    changes = [after - before for _, before, after in pairs]
    step = _step(max(*changes, 0.0) - min(*changes, 0.0), 24)
    places = [math.floor(change / step) for change in changes]
    first, last = min(*places, -1), max(*places, 0)
    bins = Counter(places)
    width, most = 320 / (last - first + 1), max(bins.values())

    def left(place: float) -> float:
        return 20 + (place - first) * width

    parts = [_line("axis", 20, 308, 340, 308), _line("null", left(0), 14, left(0), 308)]
    for place, n in sorted(bins.items()):
        side, height = "good" if place < 0 else "bad", 280 * n / most
        parts.append(
            f'<rect class="{side}" x="{left(place) + 0.5:.1f}" y="{308 - height:.1f}" width="{width - 1:.1f}" '
            f'height="{height:.1f}"/>'
        )
        if n == most and all(bins[earlier] < n for earlier in range(first, place)):
            parts.append(_text(left(place + 0.5), 302 - height, "middle", str(n)))
    ticks = _ticks(first * step, (last + 1) * step, 5)
    parts += [_text(left(tick / step), 323, "middle", f"{tick:+g}" if tick else "0") for tick in ticks]
    return _svg("".join(parts), _PLOT)


def thinned(rows: Sequence[Any], most: int = POINTS) -> list[Any]:
    """Every n-th of so many, so that `most` are left at most; the last among them."""
    step = -(-len(rows) // most) if rows else 1
    return list(rows[::-1][::step][::-1])


# --- the cards --------------------------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """One comparison on a card: `side` is good, bad or even, by whether the interval leaves the line of no change."""

    arm: str
    value: str
    interval: str
    strip: Markup
    side: str
    lines: list[str]


class Card(NamedTuple):
    title: str
    entries: list[Entry]


def _side(interval: Mapping[str, float] | None, null: float, n: int, less_is_better: bool = False) -> str:
    """good, bad, or even; "" from fewer than FEW items, on which no interval is to be relied."""
    if not interval or n < FEW:
        return ""
    if interval["low"] <= null <= interval["high"]:
        return "even"
    return "good" if (interval["high"] < null) == less_is_better else "bad"


def cards(metrics: Mapping[str, Any]) -> list[Card]:
    """The headlines that there are figures for."""
    made = [
        ("困惑度之比 Perplexity ratio", _ratio_entry),
        ("指令全部通过 Instructions followed", _instructions_entry),
        ("胜率 Win rate", _win_entry),
        ("诊断 Diagnosis F1", _diagnosis_entry),
        ("思考格式正确 Well-formed thoughts", _thoughts_entry),
    ]
    found = [Card(title, [one for arm in others(metrics) if (one := entry(metrics, arm))]) for title, entry in made]
    return [card for card in found if card.entries]


def _ratio_entry(metrics: Mapping[str, Any], arm: str) -> Entry | None:
    part, first = metrics.get("perplexity") or {}, metrics["arms"][0]
    if not (ratio := ratio_of(part, arm, metrics)):
        return None
    lines = [
        f"{number(part[first])} → {number(part[arm])}",
        f"{part['samples']} 条 rows · {part['tokens']:,} 词元 tokens",
    ]
    if "improved" in ratio:
        lines.append(f"{ratio['improved']} 条变好 better, {ratio['worse']} 条变差 worse · {chance(ratio['p'])}")
    sign = strip(ratio, 1, log=True)
    return Entry(
        arm, f"× {ratio['value']:.3f}", ends(ratio), sign, _side(ratio, 1, part["samples"], less_is_better=True), lines
    )


def _difference(arm: str, change: Mapping[str, float] | None, n: int, lines: list[str]) -> Entry:
    value = f"{100 * change['value']:+.0f} pp" if change else "—"
    return Entry(arm, value, ends(change, "+.0f", 100), strip(change, 0), _side(change, 0, n), lines)


def _instructions_entry(metrics: Mapping[str, Any], arm: str) -> Entry | None:
    if not (asked := metrics.get("instructions")):
        return None
    change = asked["changes"][arm]
    sides = [share(asked["arms"][side]["by_prompt"]["strict"]) for side in (metrics["arms"][0], arm)]
    moved = f"{change['gained']} 题变过 gained, {change['lost']} 题变不过 lost · {chance(change['p'])}"
    return _difference(
        arm, change["difference"], change["n"], [" → ".join(sides), f"{change['n']} 题 prompts, 严格 strict", moved]
    )


def _thoughts_entry(metrics: Mapping[str, Any], arm: str) -> Entry | None:
    if not (thoughts := metrics.get("thought_well_formed")):
        return None
    first, change = metrics["arms"][0], thoughts.get("changes", {}).get(arm, {}).get("difference")
    sides = " → ".join(share(thoughts["intervals"][side]) for side in (first, arm))
    counts = f"{thoughts['counts'][first]} → {thoughts['counts'][arm]} / {thoughts['prompts']} 题 prompts"
    entry = _difference(arm, change, thoughts["prompts"], [sides, counts])
    return entry if change else entry._replace(value=f"{100 * (thoughts[arm] - thoughts[first]):+.0f} pp")


def _diagnosis_entry(metrics: Mapping[str, Any], arm: str) -> Entry | None:
    if not (diagnosis := metrics.get("diagnosis")):
        return None
    sides = [diagnosis["arms"][side]["tiers"] for side in (metrics["arms"][0], arm)]
    lines = [f"{name}: {' → '.join(format(side[tier]['f1'], '.3f') for side in sides)}" for tier, name in TIERS.items()]
    change = diagnosis["changes"][arm]["normalised"]
    value = f"{change['value']:+.3f}" if change else "—"
    lines.append(f"{diagnosis['prompts']} 题 prompts, 规范化一档 the middle tier")
    return Entry(arm, value, ends(change, "+.3f"), strip(change, 0), _side(change, 0, diagnosis["prompts"]), lines)


def _win_entry(metrics: Mapping[str, Any], arm: str) -> Entry | None:
    judge, votes, joint = (metrics.get(name) or {} for name in ("judge", "votes", "joint"))
    rates = [
        (joint.get("joint"), "人机联合 raters and judge"),
        (votes.get("win_rate"), "人工 raters") if not judge else (judge.get("win_rate"), "AI 评审 judge"),
    ]
    rate, who = next(((rate, who) for rate, who in rates if rate), (None, ""))
    if not rate or arm != metrics["arms"][1]:
        return None
    lines = [f"{who} · {metrics['arms'][1]} 对 against {metrics['arms'][0]}"]
    for name, said in (("AI", judge), ("人工 raters", votes)):
        if said.get("win_rate"):
            lines.append("{}: {win} 胜 won, {tie} 平 tied, {loss} 负 lost".format(name, **said["by_prompt"]))
    doubted = bool(judge.get("warnings")) and rate is judge.get("win_rate")  # raters correct it, where there are any
    lines = ["⚠ AI 评审不可靠，见上 don't rely on this judge"] * doubted + lines
    n = joint.get("prompts_human") if rate is joint.get("joint") else sum((judge or votes)["by_prompt"].values())
    side = "" if doubted else _side(rate, 0.5, n)
    return Entry(arm, percent(rate["value"], 1), ends(rate, ".0f", 100) + " %", strip(rate, 0.5), side, lines)


# --- the viewer -------------------------------------------------------------------------------------------------------


def nats(sample: Row, arm: str) -> float | None:
    """−log p a token of the held-out response under an arm; None where it was not scored, or is no number."""
    scored = sample.get("scored", {})
    nll = scored.get("nll", {}).get(arm)
    return None if nll is None or not math.isfinite(nll) else nll / scored["tokens"]


def signs(sample: Row, first: str, arm: str, reviewed: bool) -> dict[str, float]:
    """Where `arm` is better (> 0) or worse (< 0) than `first` on one prompt, by each that says so.

    checks      share of the checks passed, strictly
    judge       the win of the AI judges, −½ to ½; human: the raters'; both only where `reviewed`, of the first two arms
    f1          of the diagnosis
    nll         nats a token
    """
    found: dict[str, float] = {}
    before, after = sample["arms"][first], sample["arms"][arm]
    passed = [[check[1] for check in side.get("checks", ())] for side in (before, after)]
    if all(passed):
        found["checks"] = sum(passed[1]) / len(passed[1]) - sum(passed[0]) / len(passed[0])
    if reviewed:
        results = [one["result"] for one in sample.get("judge", {}).get("pairwise", ()) if one["result"] != "error"]
        scores = {
            "judge": [{"win": 1.0, "loss": 0.0}.get(result, 0.5) for result in results],
            "human": [SCORES[vote["vote"]] for vote in sample.get("votes", ())],
        }
        found |= {name: sum(each) / len(each) - 0.5 for name, each in scores.items() if each}
    if "diagnosis" in before and "diagnosis" in after:
        found["f1"] = after["diagnosis"]["f1"] - before["diagnosis"]["f1"]
    nll = nats(sample, first), nats(sample, arm)
    if None not in nll:
        found["nll"] = nll[0] - nll[1]
    return {name: round(value, 4) for name, value in found.items()}


def flags(sample: Row, arm: str, signs: Mapping[str, float]) -> list[str]:
    """What a reader may filter by: worse, split (judge and raters differ), format (broken), failed (a check)."""
    side = sample["arms"][arm]
    failed = [check[0] for check in side.get("checks", ()) if not check[1]]
    told = [value for name, value in signs.items() if name != "nll"] or list(signs.values())
    judged, voted = (signs.get(name) for name in ("judge", "human"))
    holds = {
        "worse": any(value < 0 for value in told),
        "split": judged is not None and voted is not None and (judged > 0) - (judged < 0) != (voted > 0) - (voted < 0),
        "format": side["finish_reason"] == "length" or any(name.partition(".")[0] in FORMAT for name in failed),
        "failed": bool(failed),
    }
    return [name for name, held in holds.items() if held]


def viewer(metrics: Mapping[str, Any], samples: Sequence[Row]) -> Row:
    """What the page's script shows: the pairs with their signs and flags, texts cut where there is no room."""
    arms = metrics["arms"]
    asked = [sample for sample in samples if "arms" in sample]
    names = sorted(
        {check[0] for sample in asked for side in sample["arms"].values() for check in side.get("checks", ())}
    )
    room = BYTES_AN_ANSWER * len(arms) * max(300, len(asked))
    caps = range(LEAST_CHARACTERS, MOST_CHARACTERS + 1)
    most = MOST_CHARACTERS
    if asked and _size(asked, arms, names, most) > room:
        most = caps[max(0, bisect_right(caps, room, key=lambda cap: _size(asked, arms, names, cap)) - 1)]
    return {"arms": arms, "checks": names, "pairs": [_pair(sample, arms, names, most) for sample in asked]}


def _size(asked: Sequence[Row], arms: Sequence[str], names: Sequence[str], most: int) -> int:
    return sum(len(embedded(_pair(sample, arms, names, most)).encode()) for sample in asked)


def _pair(sample: Row, arms: Sequence[str], names: Sequence[str], most: int) -> Row:
    def text(value: str) -> str:
        more = len(value) - most
        note = f"\n⟨还有 {more:,} 个字符 more characters: samples.jsonl⟩"
        return visible(value[:most]) + (note if more > 0 else "")

    pair: Row = {"id": visible(str(sample["id"])), "prompt": text(sample.get("prompt", "")), "arms": []}
    if sample.get("reference"):
        pair["reference"] = text(split(str(sample["reference"])).answer)
    for arm in arms:
        side = sample["arms"][arm]
        shown = {
            "think": text(side["think"]),
            "answer": text(side["answer"]),
            "finish": visible(side["finish_reason"] or ""),
        }
        shown["tokens"] = side.get("tokens")
        shown["passed"] = [names.index(check[0]) for check in side.get("checks", ()) if check[1]]
        shown["failed"] = [
            [names.index(name), bool(loose), visible(reason[:200])]
            for name, strict, loose, reason in side.get("checks", ())
            if not strict
        ]
        if found := side.get("diagnosis"):
            shown["diagnosis"] = {"f1": round(found["f1"], 4), "fault": found["fault"]} | {
                name: text("；".join(map(str, found[name]))) for name in ("predicted", "expected")
            }
        if (nll := nats(sample, arm)) is not None:
            shown["nll"] = round(nll, 4)
        pair["arms"].append(shown)
    said = {arm: signs(sample, arms[0], arm, arm == arms[1]) for arm in arms[1:]}
    pair["signs"], pair["flags"] = said, {arm: flags(sample, arm, each) for arm, each in said.items()}
    pair["judge"] = [
        [
            visible(one["judge"]),
            track,
            one["verdicts"],
            one.get("result", ""),
            [visible(why[:300]) for why in one.get("reasons", ())],
        ]
        for track in ("pairwise", "absolute")
        for one in sample.get("judge", {}).get(track, ())
    ]
    pair["votes"] = [
        [
            visible(str(vote["rater"])),
            vote["vote"],
            [visible(tag) for tag in vote.get("tags", ())],
            text(vote.get("comment", "")),
        ]
        for vote in sample.get("votes", ())
    ]
    return {name: value for name, value in pair.items() if value or name == "arms"}


def embedded(value: Any) -> Markup:
    """JSON that may stand in a <script> element: nothing in it can end the element or begin a comment."""
    return Markup(to_json(value).replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


# --- the page ---------------------------------------------------------------------------------------------------------


def to_page(metrics: Mapping[str, Any], samples: Sequence[Row], histories: Histories) -> str:
    """index.html: figures, curves and answers in one file that asks nothing of the network."""
    folder = Path(__file__).parent
    script = (folder / "report.js").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    first = metrics["arms"][0]
    part = metrics.get("perplexity") or {}
    parts = {"all": part} | part.get("segments", {}) if part else {}
    logs = [math.log(one[arm]) for one in parts.values() for arm in metrics["arms"] if one.get(arm)]
    changes = {arm: _nll_pairs(samples, first, arm) for arm in others(metrics)}
    words = (chance, ends, label, number, percent, ratio_of, share)
    drawings = (bar, histogram, scatter, stacked, strip, thinned)
    return environment.get_template("report.html").render(
        {function.__name__: function for function in (*words, *drawings)},
        metrics=metrics,
        arms=metrics["arms"],
        others=others(metrics),
        cards=cards(metrics),
        rows=summary_rows(metrics),
        ledger=ledger(metrics),
        alerts=alerts(metrics),
        changes={arm: pairs for arm, pairs in changes.items() if pairs},
        curves={
            arm: {title: Markup(svg) for title, svg in curves(thinned(list(history))).items()}
            for arm, history in histories.items()
            if history
        },
        made_from=made_from(metrics),
        parts=parts,
        whole=max(filter(math.isfinite, logs), default=1.0),
        segments={"all": "全部回复 whole response"} | SEGMENTS,
        results=RESULTS,
        tiers=TIERS,
        log=math.log,
        pairs=sum("arms" in sample for sample in samples),
        only_scored=sum("arms" not in sample for sample in samples),
        blob=embedded(viewer(metrics, samples)),
        style=Markup((folder / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(sha256(script.encode()).digest()).decode(),
    )


def _nll_pairs(samples: Sequence[Row], first: str, arm: str) -> list[tuple[str, float, float]]:
    """(id, nats a token of the first arm, of this one) of each row that both have scored."""
    found = [(str(sample["id"]), nats(sample, first), nats(sample, arm)) for sample in samples]
    return [pair for pair in found if None not in pair]
