"""A data set's card: where it is from, what went in and out and why, how long it is, what was found in it.

The Markdown and the page say the same; the page draws the lengths. Running twice gives the same bytes.
"""

from __future__ import annotations

import io
import re
from array import array
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from preprocess.clean import EXPLAINED, excerpt
from preprocess.data import Data
from preprocess.normalise import HAN_CHAR
from preprocess.privacy import KINDS
from preprocess.records import Record
from preprocess.sources import READERS
from preprocess.steps import Item, defects

EXAMPLES = 3  # of each reason
SHOWN = 160  # characters of a text in an example
CLUSTERS = 20  # the largest ones
PARTS = ("question", "think", "answer")
EXPLANATIONS: dict[str, str] = EXPLAINED | {
    "duplicate": "同一提问，仅形式不同；保留第一条 the same question but for form; the first is kept",
    "contaminated": "含有评测文件中某题的大部分 holds most of an evaluation file's question",
    "too_long": "超过 cutoff_len，回答会被截断 longer than cutoff_len, which would cut the answer",
    "near_duplicate": "与保留的某条几乎相同 nearly the same question as one that is kept",
    "near_eval": "训练提问与留出的太近 a training question too near a held-out one",
    "agreement": "教师的几次回答分歧太大 a teacher's samples disagree more than min_agreement allows",
    "over_share": "超出该来源的份额 more of its source than its share",
    "encoding": "修复了编码 a broken encoding was mended",
    "nfc": "统一为 Unicode NFC brought to Unicode NFC",
    "control": "去掉不可见的控制字符 invisible control characters were removed",
    "punctuation": "汉字之间的半角标点改为全角 ASCII punctuation between Han characters made full-width",
    "reverted": "保持原样：否则数字或单位会变 left as it was, else a number or a unit would change",
    "diagnosis_cut": "病历末尾的诊断已剪下，留作弱参考 the diagnosis at the record's end was cut: the weak reference",
    **{kind: f"{names[0]} {names[1].lower()}" for kind, names in KINDS.items()},
    "masked": "身份信息已遮盖 identifiers were masked",
}


class Card:
    """What a card is made of, gathered record by record; four integers are kept for each that is kept."""

    def __init__(self, data: Data) -> None:
        self.data = data
        self.tokenizer = ""
        self.lengths: dict[str, array[int]] = {part: array("i") for part in (*PARTS, "tokens")}
        self.examples: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.dropped: Counter[str] = Counter()
        self.flags: Counter[str] = Counter()
        self.changed: Counter[str] = Counter()
        self.identifiers: Counter[str] = Counter()
        self.against: Counter[str] = Counter()  # evaluation file -> records that touch it
        self.files: dict[int, Counter[str]] = defaultdict(Counter)  # number of an input -> sides
        self.han = self.characters = 0
        self.sources: set[str] = set()

    def add(self, side: str, item: Item) -> None:
        """`side` is train, eval or dropped."""
        record: Record = item.record
        self.sources.add(record.source)
        self.files[item.file][side] += 1
        self.changed.update(item.changed)
        self.identifiers.update(kind for _, kind, _, _ in item.identifiers)
        for name in [item.reason] if side == "dropped" else defects(item):
            if len(self.examples[name]) < EXAMPLES:
                self.examples[name].append(_example(item, name))
        if side == "dropped":
            self.dropped[item.reason] += 1
            if item.reason == "contaminated":
                self.against[item.evidence["file"]] += 1
            return
        self.flags.update(item.flags)
        for part in PARTS:
            self.lengths[part].append(len(getattr(record, part)))
        self.lengths["tokens"].append(item.tokens)
        if item.tokens:
            self.tokenizer = Path(self.data.tokenizer).name
        self.han += len(HAN_CHAR.findall(record.question))
        self.characters += len(record.question)

    def facts(self, summary: dict[str, Any], clusters: list[dict[str, Any]]) -> dict[str, Any]:
        """Everything that a template shows."""
        measured = {name: values for name, values in self.lengths.items() if any(values)}
        largest = sorted(clusters, key=lambda cluster: -_size(cluster))[:CLUSTERS]
        return {
            "dataset": self.data.dataset,
            "summary": summary,
            "sources": [(name, READERS[name]) for name in sorted(self.sources)],
            "files": [(given["file"], self.files[number]) for number, given in enumerate(summary["inputs"])],
            "han": self.han / max(self.characters, 1),
            "explained": EXPLANATIONS,
            "examples": {name: self.examples[name] for name in sorted(self.examples)},
            "percentiles": {name: percentiles(values) for name, values in measured.items()},
            "clusters": [_shown_cluster(cluster) for cluster in largest],
            "charts": {name: Markup(histogram(values)) for name, values in measured.items()},
        }

    def markdown(self, summary: dict[str, Any], clusters: list[dict[str, Any]]) -> str:
        return _templates(escape=False).get_template("card.md").render(self.facts(summary, clusters))

    def html(self, summary: dict[str, Any], clusters: list[dict[str, Any]]) -> str:
        return _templates(escape=True).get_template("card.html").render(self.facts(summary, clusters))


def _templates(escape: bool) -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    options = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    environment = jinja2.Environment(loader=loader, autoescape=escape, undefined=jinja2.StrictUndefined, **options)
    environment.filters["cell"] = _cell
    environment.filters["n"] = "{:,}".format
    return environment


def _cell(text: Any) -> str:
    """Foreign text in Markdown: no line, table, tag, link or heading comes of it."""
    return re.sub(r"([\\`*_\[\]#|!<>~])", r"\\\1", " ".join(str(text).split()))


def _example(item: Item, name: str) -> dict[str, Any]:
    phrase = excerpt(name, item.record)
    texts = {part: _shown(getattr(item.record, part)) for part in PARTS if getattr(item.record, part)}
    evidence = {key: Path(value).name if key in ("kept", "held_out", "file") else value
                for key, value in item.evidence.items()}  # fmt: skip
    return {
        "place": Path(item.place).name,
        "evidence": evidence | ({"found": phrase} if phrase else {}),
        "texts": texts,
    }


def _size(cluster: dict[str, Any]) -> int:
    return len(cluster["kept"]) + len(cluster["dropped"])


def _shown_cluster(cluster: dict[str, Any]) -> dict[str, Any]:
    names = {side: [Path(place).name for place in cluster[side][:4]] for side in ("kept", "dropped")}
    return {"size": _size(cluster), "more": len(cluster["dropped"]) > 4, **names}


def _shown(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 1]}…"


def percentiles(values: array[int]) -> dict[str, int]:
    """Minimum, 5, 50, 95 and 99 %, maximum, and the mean."""
    numbers = np.asarray(values)
    cuts = np.percentile(numbers, [0, 5, 50, 95, 99, 100])
    return dict(zip(("min", "p5", "p50", "p95", "p99", "max"), map(round, cuts), strict=True)) | {
        "mean": round(float(numbers.mean()))
    }


def histogram(values: array[int]) -> str:
    """A histogram as an `<svg>` element, the longest 1 % in its last bar; no words, the page has fonts for them."""
    numbers = np.asarray(values)
    top = max(float(np.percentile(numbers, 99)), 1.0)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "medcot", "font.family": "sans-serif"}):
        figure = Figure(figsize=(4.2, 2.4), layout="constrained")
        axes = figure.add_subplot()
        axes.hist(np.minimum(numbers, top), bins=40, color="#0b6e6e")
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25, axis="y")
        axes.spines[["top", "right"]].set_visible(False)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    return text[text.index("<svg") :].rstrip()
