"""The report: what stands in it, that it adds up, and that no text of a model's does anything in it."""

from __future__ import annotations

import base64
import json
import random
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval import judge, report, review, score
from eval.arms import Arm
from eval.charts import CURVES, read_history
from eval.report import (
    Tally,
    alerts,
    cards,
    embedded,
    flags,
    label,
    ledger,
    signs,
    summary_lines,
    summary_rows,
    thinned,
    to_markdown,
    to_page,
    viewer,
)
from eval.run import data_counts, read_answers, samples, scores_of
from eval.statistics import paired_ratio, sign_test
from eval.track import scalars, table, track
from preprocess.records import to_json, write_jsonl
from preprocess.think import join
from recipe import UserError
from tests.test_review import CHROMIUM, Browser, Tab

Row = dict[str, Any]
WORDS = [
    "先看起病急缓和伴随症状",
    "近三天受凉后出现",
    "夜间平卧时加重",
    "体温最高三十八度五",
    "痰由白变黄",
    "没有胸痛和咯血",
    "心电图未见缺血改变",
    "血压一百五十二比九十六",
    "餐后两小时血糖偏高",
    "既往有慢性阻塞性肺疾病",
    "首先要排除急性冠脉综合征",
    "其次考虑社区获得性肺炎",
    "建议完善胸部影像和血常规",
    "如果出现呼吸困难请立即就医",
    "用药前请咨询医生",
    "饮食清淡并注意休息",
    "两周后复查肝肾功能",
    "这些线索不支持肿瘤",
    "需要和支气管哮喘鉴别",
    "请不要自行停药",
    "体重半年下降约五公斤",
    "家族里没有类似病史",
]
DISEASES = [
    "高血压2级",
    "2型糖尿病",
    "社区获得性肺炎",
    "慢性阻塞性肺疾病",
    "急性胃炎",
    "支气管哮喘",
    "缺铁性贫血",
    "脑梗死",
]


def prose(rng: random.Random, characters: int) -> str:
    """Invented Chinese of about so many characters."""
    text = ""
    while len(text) < characters:
        text += rng.choice(WORDS) + rng.choice("，，。；")
    return text


def reply(rng: random.Random, row: Row, skill: float) -> Row:
    """An answer in the form of `eval.predict`; the skilful one thinks, and keeps to what was asked, more often."""
    think = prose(rng, rng.randint(300, 740)) if rng.random() < skill else ""
    if row["kind"] == "diagnosis":
        names = json.loads(row["reference"])["diseases"] if rng.random() < skill else rng.sample(DISEASES, 2)
        answer = to_json({"reason": prose(rng, 120), "diseases": names})
        answer = answer if rng.random() < skill + 0.2 else answer[:-9]
    else:
        answer = prose(rng, rng.randint(200, 360))
        answer = f"诊断：{answer}\n依据：{prose(rng, 60)}\n建议：{prose(rng, 60)}" if rng.random() < skill else answer
    cut = rng.random() > 0.9 + 0.1 * skill
    raw = f"<think>\n{think}" if cut and think else join(think, answer) if think else answer
    given = {"think": think, "answer": "" if cut and think else answer, "raw": raw}
    return row | given | {"finish_reason": "length" if cut else "stop", "tokens": len(raw) * 2 // 3, "model": "tiny"}


def write_example(folder: Path, n: int = 300, arms: tuple[str, ...] = ("base", "tuned"), seed: int = 0) -> None:
    """Answers of n prompts by each arm, an AI judge's verdicts on the first two and the votes of two raters on some."""
    rng = random.Random(seed)
    rows: list[Row] = []
    for i in range(n):
        kind = ("plain", "checks", "diagnosis")[i % 3]
        reference = {"reason": prose(rng, 120), "diseases": rng.sample(DISEASES, 2)}
        row = {
            "id": f"{kind}-{i:03}",
            "kind": kind,
            "prompt": prose(rng, 70) + "该怎么办？",
            "asked": "0",
            "weights": "0",
        }
        row["reference"] = to_json(reference) if kind == "diagnosis" else join(prose(rng, 500), prose(rng, 280))
        if kind == "checks":
            row["checks"] = [
                {"check": "fmt.sections", "titles": ["诊断", "依据", "建议"]},
                {"check": "len.chars", "most": 460},
            ]
        rows.append(row)
    answers = {arm: [reply(rng, row, 0.35 + 0.4 * i) for row in rows] for i, arm in enumerate(arms)}
    if n:
        for arm in arms[1:]:
            answers[arm][-1] |= {"finish_reason": "failed", "think": "", "answer": "", "raw": ""}
    for arm, each in answers.items():
        write_jsonl(folder / f"answers-{arm}.jsonl", each)
    both = {arm: score.answered_by_all(answers)[arm] for arm in arms[:2]}
    (folder / "judge").mkdir()
    write_jsonl(folder / "judge/verdicts.jsonl", [verdict(rng, pair, arms) for pair in judge.paired(both)])
    shared = [pair for pair in review.read_pairs(str(folder), arms[:2])][: n // 3]
    write_jsonl(folder / "votes.jsonl", [vote(rng, pair, rater) for pair in shared for rater in ("王医生", "李医生")])


def verdict(rng: random.Random, pair: judge.Pair, arms: tuple[str, ...]) -> Row:
    words = (
        ["B>A", rng.choice(["B>A", "B≫A", "A>B"])] if rng.random() < 0.6 else rng.choices(["A>B", "A=B", "B>A"], k=2)
    )
    words = ["error", "error"] if rng.random() < 0.02 else words
    why = [prose(rng, 30)] * 2
    return {
        "id": pair.id,
        "arms": list(arms[:2]),
        "answers": pair.hash,
        "characters": [len(answer.text) for answer in pair.answers],
        "empty": ["", ""],
        "absolute": [{"judge": "AI-1", "verdicts": rng.choices(["pass", "fail"], [3, 2], k=2), "reasons": why}],
        "pairwise": [{"judge": "AI-1", "verdicts": words, "result": judge.resolve(*words), "reasons": why}],
    }


def vote(rng: random.Random, pair: review.Pair, rater: str) -> Row:
    word = rng.choices(["B≫A", "B>A", "A=B", "A>B", "both-bad"], [2, 5, 2, 2, 1])[0]
    said = {
        "tags": ["safer"],
        "comment": "更稳妥" if rng.random() < 0.2 else "",
        "seconds": 20.0,
        "at": "2026-11-22T08:00:00Z",
    }
    given = {"id": pair.id, "pair": pair.key, "rater": rater, "vote": word, "verdict": "", "pressed": word}
    return given | {"order": ["base", "tuned"]} | said


def perplexity(rng: random.Random, ids: list[str], arms: list[str]) -> tuple[Row, list[Row]]:
    """The "perplexity" part of metrics.json and its rows, invented."""
    rows = []
    for name in ids:
        tokens, hardness = rng.randint(120, 900), rng.uniform(1.2, 2.0)
        nll = {arm: tokens * max(0.05, hardness - 0.45 * i + rng.gauss(0, 0.12)) for i, arm in enumerate(arms)}
        rows.append({"id": name, "tokens": tokens, "nll": nll})
    parts = {
        name: _part(rows, arms, shift)
        for name, shift in {"think": 0.1, "markup": -0.9, "answer": -0.2, "end": -1.0}.items()
    }
    whole = _part(rows, arms, 0.0)
    means = {arm: whole[arm] for arm in arms}
    return whole | {
        "samples": len(rows),
        "skipped": ["太长-1"],
        "windowed": ["plain-003"],
        "not_scored": {},
        "per_sample": {"geometric": means, "arithmetic": means},
        "bits_per_byte": {arm: value / 9 for arm, value in means.items()},
        "bits_per_character": {arm: value / 3 for arm, value in means.items()},
        "segments": parts,
        "train": {arm: value * 0.93 for arm, value in means.items()} | {"samples": len(rows), "tokens": 1},
        "ids_sha256": "0" * 64,
    }, rows


def _part(rows: list[Row], arms: list[str], shift: float) -> Row:
    tokens = np.array([row["tokens"] for row in rows])
    nll = {arm: np.array([row["nll"][arm] for row in rows]) + shift * tokens for arm in arms}
    ratios = {}
    for arm in arms[1:]:
        better, worse = int((nll[arm] < nll[arms[0]]).sum()), int((nll[arm] > nll[arms[0]]).sum())
        ratio = paired_ratio(nll[arms[0]], nll[arm], tokens)
        ratios[arm] = ratio | {"improved": better, "worse": worse, "p": sign_test(better, worse)}
    ppl = {arm: float(np.exp(values.sum() / tokens.sum())) for arm, values in nll.items()}
    return ppl | {"tokens": int(tokens.sum()), "ratio": ratios[arms[1]], "ratios": ratios}


def lines(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def scored(folder: Path, arms: list[str], seed: int = 0) -> tuple[Row, list[Row]]:
    """metrics and samples of an example, by the functions that `eval.run` uses."""
    answers = {arm: lines(folder / f"answers-{arm}.jsonl") for arm in arms}
    scores, prompts = scores_of(answers, folder)
    ids = [row["id"] for row in answers[arms[0]]]
    part, rows = perplexity(random.Random(seed), [*ids, *(f"more-{i}" for i in range(9))], arms)
    found = samples(prompts, rows)
    return {"arms": arms, "perplexity": part, **scores} | REST, found


REST: Row = {
    "data": {
        "read": 350,
        "train": 300,
        "eval": 38,
        "dropped": {"duplicate": 8, "empty_think": 4},
        "inputs": [{"file": "data/samples/medical_o1_sft.json", "sha256": "1" * 64}],
    },
    "training": {"tuned": {"steps": 200, "epochs": 2.0, "loss_first": 5.0, "loss_last": 4.0}},
    "made_from": {
        "train": "recipes/demo/train.yaml",
        "train_sha256": "2" * 64,
        "dataset": "demo_eval",
        "arms": {"base": "", "tuned": "saves/demo"},
        "weights": {"tuned": "3" * 64},
        "versions": {"torch": "2", "peft": "1"},
    },
}
HISTORY = [
    {"step": s, "epoch": s / 10, "loss": 5 - s / 20, "learning_rate": 1e-3, "grad_norm": 1.0 + s % 3}
    for s in range(1, 21)
]

ARMS = ["base", "tuned"]
HOSTILE = [
    "</script><script>document.title='hacked'</script>",
    "<!--<script>alert(1)</script>-->",
    "<img src=http://outside.invalid/a.png onerror=document.title='hacked'>",
    "![x](http://outside.invalid/b.png) [点我](javascript:document.title='hacked') | a | b |\n|---|---|",
    "<style>*{display:none}</style><iframe src=//outside.invalid></iframe><base href=//outside.invalid>",
    "\x1b[31m红色\x1b[0m \x1b]8;;http://outside.invalid\x07链接 \x9b2J \0 \x7f",
    "\u202e倒着写\u202c \u2066隔离\u2069 \u200f \U000e0041",
    '"}]}; {{ 7 * 7 }} {% raw %} ${1} `x` \\u003c \\" \u2028',
    "# " * 500 + "*" * 5000 + "\n" * 5000 + "[" * 5000,
]


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> tuple[Row, list[Row]]:
    """300 pairs with all there is."""
    folder = tmp_path_factory.mktemp("example")
    write_example(folder)
    return scored(folder, ARMS)


@pytest.fixture(scope="module")
def page(example: tuple[Row, list[Row]]) -> str:
    return to_page(*example, {"tuned": HISTORY, "base": []})


def hostile() -> tuple[Row, list[Row]]:
    """Every text that somebody else wrote is an attack."""
    word = " ".join(HOSTILE)
    side = {
        "think": word,
        "answer": word,
        "finish_reason": "stop",
        "tokens": 1,
        "checks": [["kw.any_of", False, False, word]],
    }
    side["diagnosis"] = {"f1": 0.0, "fault": "", "predicted": [word], "expected": [word]}
    found = [
        {"id": text, "prompt": text + word, "reference": text, "arms": {arm: side | {"answer": text} for arm in ARMS}}
        for text in HOSTILE
    ]
    for sample in found:
        one = {"judge": word, "verdicts": ["A>B", "B>A"], "result": "inconsistent", "reasons": [word, word]}
        sample["judge"] = {"pairwise": [one], "absolute": []}
        sample["votes"] = [{"rater": word, "vote": "A>B", "tags": [word], "comment": word}]
        sample["scored"] = {"tokens": 9, "nll": {"base": 9.0, "tuned": 8.0}}
    found[0]["arms"] = {arm: side | {"answer": "<b>长</b>" * 150_000} for arm in ARMS}
    part, _ = perplexity(random.Random(0), ["1", "2"], ARMS)
    counts = {"prompts": 9, "answered": 8, "failed": 1, "cut": 0}
    metrics = {"arms": ARMS, "perplexity": part | {"skipped": HOSTILE, "not_scored": {"x": word}}} | REST
    metrics |= {"answers": dict.fromkeys(ARMS, counts), "made_from": {"dataset": word, "arms": {"base": word}}}
    return metrics, found


@pytest.fixture(scope="module")
def attacked() -> str:
    return to_page(*hostile(), {})


class Page(HTMLParser):
    """What a page really opens: its tags with their attributes, and the text of each script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script" and data.strip():
            self.scripts.append(data)


# --- what stands in it ------------------------------------------------------------------------------------------------


def test_each_figure_stands_in_page_table_and_terminal(example: tuple[Row, list[Row]], page: str) -> None:
    metrics, _ = example
    ratio = metrics["perplexity"]["ratio"]
    interval = f"× {ratio['value']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"
    for text in (page, to_markdown(metrics), "\n".join(summary_lines(metrics))):
        assert interval in text
        assert all(row.change in text and row.n in text for row in summary_rows(metrics))
    names = " ".join(row.name for row in summary_rows(metrics))
    for name in (
        "whole response",
        "answer alone",
        "well-formed",
        "instructions followed",
        "strict",
        "alias",
        "raters",
        "joint",
    ):
        assert name in names
    assert page.count("data-id=") == 309 and all(title in page for title in CURVES.values())
    assert all(reading["label"].split()[0] in page for reading in metrics["claim"]["readings"].values())


def test_the_demo_s_rows_look_as_in_the_readme() -> None:
    part = {"base": 467.61, "tuned": 288.31, "tokens": 6134, "ratio": {"value": 0.6166, "low": 0.569, "high": 0.6702}}
    metrics = {"arms": ARMS, "perplexity": part | {"samples": 37, "segments": {"answer": part | {"tokens": 2852}}}}
    metrics["thought_well_formed"] = {
        "base": 0.0,
        "tuned": 34 / 37,
        "prompts": 37,
        "counts": {"base": 0, "tuned": 34},
        "intervals": {
            "base": {"value": 0.0, "low": 0.0, "high": 0.094},
            "tuned": {"value": 34 / 37, "low": 0.787, "high": 0.972},
        },
    }
    assert [row[1:] for row in summary_rows(metrics)] == [
        ("467.6", "288.3", "× 0.617 [0.569, 0.670]", "37 rows, 6,134 tokens"),
        ("467.6", "288.3", "× 0.617 [0.569, 0.670]", "2,852 tokens"),
        ("0 % [0, 9]", "92 % [79, 97]", "+92 pp", "37 prompts"),
    ]
    assert "288.3" in to_page(metrics, [], {})


def test_markdown_is_one_table_and_a_list_of_what_went_in(example: tuple[Row, list[Row]]) -> None:
    metrics, _ = example
    lines = to_markdown(metrics).splitlines()
    rows = lines[: lines.index("")]
    assert len({line.count("|") for line in rows}) == 1 and len(rows) == 2 + len(summary_rows(metrics))
    assert "- 可比较的提问 prompts compared: 300 = 299 + 1 (所有模型都答了 answered by every arm)" in lines


def test_everything_that_went_in_is_accounted_for(example: tuple[Row, list[Row]], page: str) -> None:
    metrics, _ = example
    tallies = {tally.part: tally for tally in ledger(metrics)}
    assert all(tally.adds_up for tally in tallies.values())
    assert tallies["留出样本 held-out rows"][2:5] == (310, 309, 1) and "太长-1" in page and "plain-003" in page
    assert tallies["回答 answers, tuned"][2:5] == (300, 299, 1)
    assert sum(tallies["AI 评判 verdicts, 成对 pairwise"][3:5]) == 299
    top = page[: page.index("<nav")]
    assert all(
        f"<b>{tally.given:,}</b> = {tally.scored:,} + {tally.left:,}" in top
        for tally in tallies.values()
        if tally.section != "instructions"
    )


def test_what_does_not_add_up_and_who_can_not_be_believed_is_said_first(example: tuple[Row, list[Row]]) -> None:
    metrics, _ = example
    assert not Tally("", "", 3, 1, 1).adds_up
    broken = metrics | {"answers": {"base": {"prompts": 9, "answered": 7, "failed": 1, "cut": 7}}}
    judged = broken | {"judge": metrics["judge"] | {"warnings": ["always A"]}}
    said = alerts(judged)
    assert [text.split()[0] for text in said] == ["AI", "数目对不上", "base:", "base:"] and "9 = 7 + 1" in said[1]
    page = to_page(judged, [], {})
    assert page.index("always A") < page.index("<nav") and page.count("always A") == 2
    alone = {name: part for name, part in judged.items() if name not in ("votes", "joint")}
    (entry,) = next(card.entries for card in cards(alone) if card.title.startswith("胜率"))
    assert entry.side == "" and entry.lines[0].startswith("⚠")
    assert "! AI 评审不可靠 Judge: always A" in summary_lines(judged) and "always A" in to_markdown(judged)


@pytest.mark.parametrize(
    "missing",
    [
        ("perplexity",),
        ("judge", "joint"),
        ("votes", "joint"),
        ("diagnosis",),
        ("instructions", "claim"),
        ("answers", "thought_well_formed", "instructions", "diagnosis", "judge", "votes", "joint", "claim"),
        ("data", "training", "made_from"),
    ],
)
def test_any_part_may_be_missing(example: tuple[Row, list[Row]], missing: tuple[str, ...]) -> None:
    metrics, found = example
    some = {name: part for name, part in metrics.items() if name not in missing}
    keep = [] if "answers" in missing else found[:5]
    page = to_page(some, keep, {})
    sections = {
        "perplexity": "s-perplexity",
        "diagnosis": "s-diagnosis",
        "instructions": "s-instructions",
        "claim": "s-claim",
    }
    for name, anchor in sections.items():
        assert (f'id="{anchor}"' in page) == (f'href="#{anchor}"' in page) == (name in some)
    assert ('id="s-judge"' in page) == bool({"judge", "votes"} & some.keys()) and ('id="data"' in page) == bool(keep)
    assert to_markdown(some) and summary_lines(some) is not None


def test_what_is_undefined_is_said_so(example: tuple[Row, list[Row]]) -> None:
    metrics, found = example
    agreement = dict.fromkeys(("raw", "kappa", "alpha", "ac1")) | {"items": 0}
    joint = metrics["joint"] | {"joint": None, "weight": None, "agreement": agreement}
    part = metrics["perplexity"] | {"ratio": None, "ratios": {"tuned": dict.fromkeys(("value", "low", "high"))}}
    part |= {
        "not_scored": {"tuned": "a server"},
        "train": {"not_scored": "no file"},
        "without": {"think": ["7"], "answer": []},
    }
    asked = json.loads(to_json(metrics["instructions"]))
    asked["changes"]["tuned"]["difference"] = None
    some = metrics | {"joint": joint, "perplexity": part, "instructions": asked}
    page = to_page(some, found[:2], {})
    assert "无定义 undefined" in page and "no file" in page and "a server" in page and "Perplexity ratio" not in page


def test_of_several_arms_each_stands_against_the_first(tmp_path: Path) -> None:
    arms = ["base", "lora", "full"]
    write_example(tmp_path, 9, tuple(arms))
    metrics, found = scored(tmp_path, arms)
    names = [row.name for row in summary_rows(metrics)]
    assert sum(name.endswith("· lora") for name in names) > sum(name.endswith("· full") for name in names) > 4
    assert {card.title.split()[0]: [entry.arm for entry in card.entries] for card in cards(metrics)}[
        "困惑度之比"
    ] == arms[1:]
    data = viewer(metrics, found)
    assert all(len(pair["arms"]) == 3 and {"lora", "full"} == pair["signs"].keys() for pair in data["pairs"])
    assert to_page(metrics, found, {"lora": HISTORY, "full": HISTORY}).count("Training loss") == 2


# --- the viewer -------------------------------------------------------------------------------------------------------


def sample(before: list[bool], after: list[bool], **more: Any) -> Row:
    sides = {
        arm: {
            "think": "",
            "answer": "答",
            "finish_reason": "stop",
            "checks": [[f"len.{i}", ok, ok, ""] for i, ok in enumerate(each)],
        }
        for arm, each in zip(ARMS, (before, after), strict=True)
    }
    return {"id": "1", "prompt": "问", "arms": sides} | more


def test_signs_say_who_finds_the_tuned_answer_worse() -> None:
    one = sample([True, True], [True, False], scored={"tokens": 10, "nll": {"base": 20.0, "tuned": 10.0}})
    one["judge"] = {"pairwise": [{"result": "win"}, {"result": "inconsistent"}, {"result": "error"}]}
    one["votes"] = [{"vote": "A≫B"}, {"vote": "both-bad"}]
    assert signs(one, *ARMS, True) == {"checks": -0.5, "judge": 0.25, "human": -0.25, "nll": 1.0}
    assert signs(one, *ARMS, False) == {"checks": -0.5, "nll": 1.0}
    assert flags(one, "tuned", signs(one, *ARMS, True)) == ["worse", "split", "failed"]
    assert flags(one, "base", {"nll": -1.0}) == ["worse"] and flags(one, "base", {"nll": -1.0, "checks": 0.0}) == []
    cut = sample([True], [True])
    cut["arms"]["tuned"]["finish_reason"] = "length"
    assert flags(cut, "tuned", {}) == ["format"]
    cut["arms"]["base"]["checks"] = [["think.well_formed", False, False, "empty"]]
    assert flags(cut, "base", {}) == ["format", "failed"]


def test_long_texts_are_cut_where_there_is_no_room_and_say_so() -> None:
    short = sample([True], [True]) | {"id": "short"}
    long = sample([True], [True])
    long["arms"]["tuned"]["answer"] = "长" * 1_000_000
    pairs = viewer({"arms": ARMS}, [short, long])["pairs"]
    assert pairs[0]["arms"][1]["answer"] == "答"
    assert (
        pairs[1]["arms"][1]["answer"].startswith("长" * 20_000 + "\n⟨") and "980,000" in pairs[1]["arms"][1]["answer"]
    )
    many = [sample([True], [True]) | {"id": str(i), "prompt": "长文" * 5000} for i in range(300)]
    page = to_page({"arms": ARMS}, many, {})
    assert 2_300_000 < len(page.encode()) < 3_000_000 and page.count("more characters: samples.jsonl") == 300


def test_a_model_that_scores_no_number_is_no_point(example: tuple[Row, list[Row]]) -> None:
    metrics, found = example
    broken = [row | {"scored": {"tokens": 9, "nll": {"base": 9.0, "tuned": float("nan")}}} for row in found[:3]]
    none = {"tuned": float("nan"), "ratio": dict.fromkeys(("value", "low", "high"), float("nan")), "ratios": {}}
    page = to_page(metrics | {"perplexity": metrics["perplexity"] | none}, broken, {})
    data = json.loads(Page(page).scripts[0], parse_constant=pytest.fail)
    assert len(data["pairs"]) == 3 and "data-id=" not in page and "Perplexity ratio" not in page


def test_labels_part_where_the_english_begins() -> None:
    assert label("诊断 F1，逐字 diagnosis F1, strict").startswith('诊断 F1，逐字 <span class="en" lang="en">diagnosis')
    assert label("回答 <b>") == "回答 &lt;b&gt;" and label("a b") == "a b"


def test_a_curve_keeps_its_last_point() -> None:
    assert thinned(range(10), 4) == [0, 3, 6, 9] and thinned([], 4) == [] and len(thinned(range(4001))) <= 2000


# --- bytes ------------------------------------------------------------------------------------------------------------


def test_the_same_input_gives_the_same_bytes(example: tuple[Row, list[Row]], page: str) -> None:
    metrics, found = json.loads(to_json(example))
    assert to_page(metrics, found, {"tuned": HISTORY, "base": []}) == page
    assert to_markdown(metrics) == to_markdown(example[0])


def test_300_pairs_are_less_than_3_megabytes(page: str) -> None:
    assert len(page.encode()) < 3_000_000


# --- text that attacks ------------------------------------------------------------------------------------------------


def test_the_page_asks_nothing_of_the_network_and_runs_one_script(page: str, attacked: str) -> None:
    for text in (page, attacked):
        parsed = Page(text)
        links = [
            value for _, attrs in parsed.tags for name, value in attrs.items() if name in ("src", "href", "xlink:href")
        ]
        assert all(link.startswith(("#", "data:,")) for link in links) and "@import" not in text
        assert not re.search(r"url\((?!#)", text[: text.index('id="data"')])
        (policy,) = [attrs["content"] for tag, attrs in parsed.tags if tag == "meta" and "http-equiv" in attrs]
        data, script = parsed.scripts
        assert json.loads(data)["arms"] == ARMS
        digest = base64.b64encode(sha256(script.encode()).digest()).decode()
        assert policy.startswith("default-src 'none'") and f"script-src 'sha256-{digest}'" in policy
        tags = {tag for tag, _ in parsed.tags}
        assert not tags & {"img", "iframe", "base", "form", "object", "embed"}
        assert not [name for _, attrs in parsed.tags for name in attrs if name.startswith("on")]


def test_hostile_text_is_spelled_out_everywhere(attacked: str) -> None:
    metrics, _ = hostile()
    for text in (attacked, to_markdown(metrics), "\n".join(summary_lines(metrics))):
        assert not set("\x1b\0\x7f\x9b\u202e\u2066\u200f\u2028\U000e0041") & set(text)
    markdown = re.sub(r"`[^`]*`", "", to_markdown(metrics))  # code is shown as it stands
    assert len(markdown.splitlines()) < 40 and "\n# " not in markdown
    assert "![" not in markdown and not re.search(r"(?<!\\)<", markdown)


def test_json_in_the_page_can_not_end_its_element() -> None:
    value = {"a": "</script><!-- <script> & \u2028 头痛"}
    text = embedded(value)
    assert not set("<>&") & set(text) and json.loads(text) == value


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if not CHROMIUM:
        pytest.skip("no Chromium on PATH")
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@contextmanager
def opened(browser: Browser, file: Path, **look: Any) -> Iterator[Tab]:
    """The file in a tab; at the end nothing was fetched, thrown or complained of."""
    browser.events.clear()
    tab = browser.tab(file.as_uri(), **look)
    tab.wait("document.readyState === 'complete' && document.querySelector('#pair h3')")
    yield tab
    tab.js("new Promise((done) => setTimeout(done, 300))")
    named = {name: [event["params"] for event in browser.events if event["method"] == name] for name in WATCHED}
    urls = [event["request"]["url"] for event in named.pop("Network.requestWillBeSent")]
    assert {url.partition("#")[0] for url in urls} <= {file.as_uri(), "data:,"}
    assert not any(named.values()), named


FRAMES = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"  # a click hits what is drawn
WATCHED = (
    *("Network.requestWillBeSent", "Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"),
    "Page.javascriptDialogOpening",
)


@pytest.mark.slow
def test_in_chromium_hostile_text_does_nothing(browser: Browser, attacked: str, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(attacked, encoding="utf-8")
    with opened(browser, tmp_path / "index.html") as tab:
        tab.key("t")
        tab.key("d")
        seen = set()
        for _ in HOSTILE:
            seen.add(tab.text("#pair .mono"))
            assert tab.js("document.querySelectorAll('#pair, #list').length") == 2
            tags = "#pair, #list, .alarm, #s-made".replace(",", " :is(script, img, iframe, style, base, a),")
            assert tab.js(f"document.querySelectorAll('{tags} :is(script, img, iframe, style, base, a)').length") == 0
            tab.key("j")
        assert len(seen) == len(HOSTILE)
        assert tab.js("document.title").startswith("微调前后") and tab.js("document.scripts.length") == 2
        assert tab.js("document.documentElement.scrollWidth") <= 1280


@pytest.mark.slow
def test_in_chromium_the_viewer_is_read_by_keys_filters_search_and_links(
    browser: Browser, example: tuple[Row, list[Row]], page: str, tmp_path: Path
) -> None:
    file = tmp_path / "index.html"
    file.write_text(page, encoding="utf-8")
    with opened(browser, file) as tab:
        signs_ = [pair["signs"]["tuned"] for pair in viewer(*example)["pairs"]]
        worst = min(sum((v > 0) - (v < 0) for name, v in each.items() if name != "nll") for each in signs_)
        assert tab.js("document.querySelectorAll('#list li:first-child .down').length") == -worst
        first = tab.text("#pair .mono")
        tab.key("j")
        second = tab.text("#pair .mono")
        assert second.startswith("2 / 299") and tab.js("decodeURIComponent(location.hash)") == "#" + second.split()[-1]
        tab.key("k")
        assert tab.text("#pair .mono") == first
        tab.js(f"document.querySelector('#tools').scrollIntoView({{block: 'center'}}), {FRAMES}")
        tab.click("[data-filter=split]")
        split = sum("split" in pair["flags"].get("tuned", ()) for pair in viewer(*example)["pairs"])
        tab.wait(f"document.querySelectorAll('#list li').length === {split}")
        assert 0 < split < 299
        tab.click("[data-filter=all]")
        tab.type("#tools input", "PLAIN-042")
        tab.wait("document.querySelectorAll('#list li').length === 1")
        assert "plain-042" in tab.text("#pair .mono")
        tab.key("j")  # typed, not acted on
        assert tab.js("document.querySelector('#tools input').value") == "PLAIN-042j"
        assert "No prompt matches" in tab.text("#pair")
    with opened(browser, file.with_name("index.html")) as tab:
        tab.js("location.hash = 'checks-100'")
        tab.wait("document.querySelector('#pair .mono').innerText.endsWith('checks-100')")
        tab.js("document.querySelector('circle.link').dispatchEvent(new MouseEvent('click', { bubbles: true }))")
        tab.wait("!document.querySelector('#pair .mono').innerText.endsWith('checks-100')")


@pytest.mark.slow
def test_in_chromium_the_marked_differences_are_the_difference(browser: Browser, tmp_path: Path) -> None:
    rng = random.Random(0)
    texts = [("患者男，58岁，反复上腹痛半年😀。建议胃镜。", "患者女，58岁，反复上腹痛两年😀。建议尽快做胃镜检查。")]
    texts += [tuple("".join(rng.choices("甲乙丙😀", k=rng.randint(1, 60))) for _ in ARMS) for _ in range(30)]
    found = [sample([True], [True]) | {"id": str(i)} for i in range(len(texts))]
    for one, pair in zip(found, texts, strict=True):
        for arm, text in zip(ARMS, pair, strict=True):
            one["arms"][arm] |= {"answer": text}
    (tmp_path / "index.html").write_text(to_page({"arms": ARMS}, found, {}), encoding="utf-8")
    with opened(browser, tmp_path / "index.html") as tab:
        tab.key("d")
        for i, pair in enumerate(texts):
            parts = tab.js(
                "[...document.querySelectorAll('.sides > section > .text-box')]"
                ".map((box) => [...box.childNodes].map((node) => [node.nodeName, node.textContent]))"
            )
            assert tuple("".join(text for _, text in side) for side in parts) == pair
            same = ["".join(text for name, text in side if name == "#text") for side in parts]
            marked = [[text for name, text in side if name != "#text"] for side in parts]
            assert same[0] == same[1]
            if not i:
                assert marked == [["男", "半"], ["女", "两", "尽快做", "检查"]]
            tab.key("j")


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_in_chromium_it_fits(browser: Browser, page: str, tmp_path: Path, width: int, dark: bool) -> None:
    (tmp_path / "index.html").write_text(page, encoding="utf-8")
    with opened(browser, tmp_path / "index.html", width=width, dark=dark) as tab:
        assert tab.js("document.documentElement.scrollWidth") == width
        lightness = tab.js("parseInt(getComputedStyle(document.body).backgroundColor.match(/[0-9]+/)[0])")
        assert (lightness < 60) == dark
        narrow = "[...document.querySelectorAll('.sides > *')].map((one) => one.getBoundingClientRect().left)"
        assert (len(set(tab.js(narrow))) == 1) == (width == 390)


# --- trackers ---------------------------------------------------------------------------------------------------------


def test_the_scalars_are_the_figures_and_the_table_has_a_row_a_prompt(example: tuple[Row, list[Row]]) -> None:
    metrics, found = example
    numbers = scalars(metrics)
    assert numbers["perplexity/ratio/value"] == metrics["perplexity"]["ratio"]["value"]
    assert numbers["judge/pairwise/win"] == metrics["judge"]["pairwise"]["win"] and len(numbers) < 400
    assert not any(path.startswith(("made_from", "data")) or "/checks/" in path for path in numbers)
    columns, rows = table(ARMS, found)
    assert len(rows) == 299 and {len(row) for row in rows} == {len(columns)} and "tuned: answer" in columns


def test_a_tracker_is_one_that_there_is() -> None:
    track({"arms": ARMS}, [], "none")
    with pytest.raises(UserError, match="expected one of none, wandb, swanlab"):
        track({"arms": ARMS}, [], "tensorboard")


@pytest.mark.slow
def test_wandb_offline_gets_the_scalars_and_one_table(
    example: tuple[Row, list[Row]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    track(*example, "wandb")
    (file,) = tmp_path.glob("wandb/offline-run-*/files/media/table/*.table.json")
    written = json.loads(file.read_text(encoding="utf-8"))
    assert len(written["data"]) == 299
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


@pytest.mark.slow
def test_swanlab_gets_the_scalars(
    example: tuple[Row, list[Row]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SWANLAB_SAVE_DIR", str(tmp_path / "home"))
    monkeypatch.delenv("SWANLAB_MODE", raising=False)
    metrics = {"arms": ARMS, "perplexity": {"ratio": {"value": 0.6, "low": 0.5, "high": 0.7}}}
    track(metrics, example[1], "swanlab")
    logs = [
        json.loads(file.read_text(encoding="utf-8")) for file in tmp_path.glob("swanlog/run-*/logs/*/_summary.json")
    ]
    assert len(logs) == 3


@pytest.mark.slow
def test_a_tracker_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_PROJECT", "no/such#name")
    with pytest.raises(UserError, match=r"^wandb: .*; the report is written") as caught:
        track({"arms": ARMS}, [], "wandb")
    assert "\n" not in str(caught.value)


# --- what eval.run reads ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "counts", ["{", '{"read": 1}', '{"read": 9, "train": 1, "eval": 1, "dropped": {}, "inputs": [{}]}']
)
def test_counts_that_do_not_add_up_are_refused(tmp_path: Path, counts: str) -> None:
    (tmp_path / "dataset_info.json").write_text('{"a": {"file_name": "a.json"}}')
    assert data_counts("a", str(tmp_path)) == {}
    (tmp_path / "counts.json").write_text(counts)
    with pytest.raises(UserError, match=r"counts\.json: expected the counts"):
        data_counts("a", str(tmp_path))


@pytest.mark.parametrize(
    "state",
    [
        {"log_history": None},
        {"log_history": [1]},
        {"log_history": [{"loss": 1.0}]},
        {},
        [],
        {"log_history": []},
        {"log_history": [{"eval_loss": 1.0}]},
    ],
)
def test_a_run_without_history_is_named(tmp_path: Path, state: object) -> None:
    (tmp_path / "trainer_state.json").write_text(to_json(state))
    with pytest.raises(UserError, match=r"trainer_state\.json"):
        read_history(tmp_path)


def test_history_is_the_logged_steps(tmp_path: Path) -> None:
    text = json.dumps({"log_history": [*HISTORY, {"step": 20, "eval_loss": 4.0}]})
    (tmp_path / "trainer_state.json").write_text(text)
    assert read_history(tmp_path) == HISTORY


def test_answers_of_all_arms_belong_together(tmp_path: Path) -> None:
    write_example(tmp_path, 3)
    arms = [Arm("base", "base"), Arm("tuned", "server", "http://127.0.0.1/v1", "0")]

    def read(folder: Path = tmp_path, base: str = "0") -> dict[str, list[Row]]:
        return read_answers(str(folder), arms, base)

    assert len(read()["tuned"]) == 3 and read(tmp_path / "none") == {}
    with pytest.raises(UserError, match=r"base\.jsonl: made with other weights than those of models/other"):
        read(base="models/other")
    rows = lines(tmp_path / "answers-tuned.jsonl")
    for change, message in (
        ({"prompt": "别的"}, "tuned.jsonl:2: another prompt"),
        ({"asked": "1"}, "another sampling"),
        ({"weights": "1"}, "tuned.jsonl: made with other weights than those of 0"),
        ({"tokens": "x"}, "tuned\\.jsonl:2: not a row of `make predict`"),
    ):
        write_jsonl(tmp_path / "answers-tuned.jsonl", [rows[0], rows[1] | change, rows[2]])
        with pytest.raises(UserError, match=message):
            read()
    write_jsonl(tmp_path / "answers-tuned.jsonl", rows[:2])
    with pytest.raises(UserError, match="2 answers"):
        read()
    (tmp_path / "answers-tuned.jsonl").unlink()
    with pytest.raises(UserError, match="no such file, but other arms have answers"):
        read()


# --- what judge and raters said, by hand


def said(folder: Path, verdicts: list[Row], votes: Sequence[Row] = (), failed: tuple[str, ...] = ()) -> Row:
    """What `score.reviewed` and `score.claim` make of verdicts and votes on ten prompts, without a page."""
    folder.mkdir(exist_ok=True)
    (folder / "judge").mkdir(exist_ok=True)
    answers = {
        arm: [
            {"id": f"p{i}", "prompt": f"问{i}", "answer": f"{arm}{i}", "raw": f"{arm}{i}", "tokens": 3, "reference": ""}
            | {"finish_reason": "failed" if f"p{i}" in failed and arm == "tuned" else "stop", "model": "m"}
            for i in range(10)
        ]
        for arm in ("base", "tuned")
    }
    for arm, rows in answers.items():
        write_jsonl(folder / f"answers-{arm}.jsonl", rows)
    hashes = {pair.id: pair.hash for pair in judge.paired(answers)}
    keys = {pair.id: pair.key for pair in review.read_pairs(str(folder), ["base", "tuned"])}
    whole = {"arms": ["base", "tuned"], "characters": [5, 6], "empty": ["", ""]}
    write_jsonl(
        folder / "judge/verdicts.jsonl", [{"answers": hashes[row["id"]]} | whole | row for row in verdicts]
    ) if verdicts else None
    given = [{"pair": keys.get(vote["id"], "0"), "verdict": "", "at": f"{n:04}"} | vote for n, vote in enumerate(votes)]
    write_jsonl(folder / "votes.jsonl", given) if votes else None
    kept = score.answered_by_all(answers)
    found, *_ = score.reviewed(folder, answers, kept)
    return found | {"claim": score.claim(found)}


def one_verdict(i: int, result: str, passes: str = "pf", judge_: str = "j") -> Row:
    """Judge `judge_` on prompt i: `result` of the pair, and of each answer p or f."""
    words = {"win": ["B>A", "B>A"], "loss": ["A>B", "A>B"], "tie": ["A=B", "A=B"]}[result]
    full = [{"p": "pass", "f": "fail"}[letter] for letter in passes]
    named = {"judge": judge_, "reasons": ["", ""]}
    return {
        "id": f"p{i}",
        "absolute": [named | {"verdicts": full}],
        "pairwise": [named | {"verdicts": words, "result": result}],
    }


RESULTS_BY_HAND = ["win"] * 6 + ["tie"] * 2 + ["loss"] * 2


def test_several_judges_and_raters_are_one_voice_a_prompt(tmp_path: Path) -> None:
    single = [one_verdict(i, result) for i, result in enumerate(RESULTS_BY_HAND)]
    triple = [
        row | {track: [row[track][0] | {"judge": name} for name in "jkl"] for track in ("absolute", "pairwise")}
        for row in single
    ]
    votes = [
        {"id": f"p{i}", "rater": rater, "vote": {"win": "B>A", "tie": "A=B", "loss": "A>B"}[result]}
        for i, result in enumerate(RESULTS_BY_HAND)
        for rater in "甲乙丙"
    ]
    one, three = said(tmp_path / "1", single), said(tmp_path / "3", triple, votes)
    assert one["judge"]["win_rate"] == three["judge"]["win_rate"] == three["votes"]["win_rate"]
    assert one["claim"]["readings"]["net_win"] == three["claim"]["readings"]["net_win"]
    assert one["claim"]["readings"]["net_win"]["n"] == 10 and three["votes"]["by_prompt"]["win"] == 6
    assert three["joint"]["human"] == three["votes"]["win_rate"] and three["joint"]["ai"] == one["judge"]["win_rate"]
    assert three["joint"]["agreement"]["raw"]["value"] == 1


def test_passes_are_those_of_most_judges(tmp_path: Path) -> None:
    rows = []
    for i in range(10):
        row = one_verdict(i, "tie", "fp")
        row["absolute"] += [
            one_verdict(i, "tie", words, name)["absolute"][0] for name, words in (("k", "ff"), ("l", "fp"))
        ]
        rows.append(row)
    found = said(tmp_path, rows)
    change = found["judge"]["changes"]["tuned"]
    assert (change["gained"], change["lost"], change["n"], change["difference"]["value"]) == (10, 0, 10, 1.0)
    assert change["difference"]["low"] < 0.6  # ten prompts that moved alike are no certainty
    assert found["claim"]["passed_by"] == "judge" and found["claim"]["readings"]["absolute_gain"]["value"] == 1


def test_verdicts_go_with_their_prompts_in_any_order(tmp_path: Path) -> None:
    verdicts = [one_verdict(i, result) for i, result in enumerate(RESULTS_BY_HAND)]
    votes = [
        {"id": f"p{i}", "rater": "甲", "vote": {"win": "B>A", "tie": "A=B", "loss": "A>B"}[result]}
        for i, result in enumerate(RESULTS_BY_HAND)
    ]
    assert said(tmp_path, verdicts[::-1], votes)["joint"]["agreement"]["raw"]["value"] == 1


def test_a_failed_answer_leaves_its_prompt_out_and_no_more(tmp_path: Path) -> None:
    verdicts = [one_verdict(i, result) for i, result in enumerate(RESULTS_BY_HAND)]
    votes = [{"id": f"p{i}", "rater": "甲", "vote": "B>A"} for i in range(10)]
    found = said(tmp_path, verdicts, votes, failed=("p0", "p9"))
    assert found["judge"]["prompts"] == 8 and found["votes"]["prompts"] == 8
    assert found["votes"]["on_other_answers"] == 2
    metrics = {"arms": ["base", "tuned"]} | found
    assert all(tally.adds_up for tally in ledger(metrics))
    assert any("2 票投给了别的回答" in alert for alert in alerts(metrics))


@pytest.mark.parametrize("track", ["absolute", "pairwise"])
def test_one_track_of_the_judge_is_enough(tmp_path: Path, track: str) -> None:
    verdicts = [one_verdict(i, result) for i, result in enumerate(RESULTS_BY_HAND)]
    for row in verdicts:
        del row[track]
    metrics = {"arms": ["base", "tuned"]} | said(tmp_path, verdicts)
    names = [row.name for row in summary_rows(metrics)]
    assert [("win rate" in name) for name in names] == [track == "absolute"]
    assert to_page(metrics, [], {}) and metrics["claim"].get("won_by") == (None if track == "pairwise" else "judge")


@pytest.mark.parametrize(
    "row",
    [{"id": "p0"}, {"arms": 1}, {"absolute": [{"judge": "j"}]}, {"pairwise": [{"judge": "j", "verdicts": ["x", "y"]}]}],
)
def test_a_row_that_is_no_verdict_is_one_line(tmp_path: Path, row: Row) -> None:
    with pytest.raises(UserError, match=r"verdicts\.jsonl:1: not a row of verdicts; run the judge again"):
        judge.check_row(
            {"id": "p0", "arms": ["a"], "answers": "", "characters": [1], "empty": []} | row, "verdicts.jsonl:1"
        )


def test_verdicts_on_other_arms_say_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"verdicts on base and other, but base and tuned .*arms=\[base,tuned\]"):
        said(tmp_path, [one_verdict(0, "win") | {"arms": ["base", "other"]}])


def test_a_judge_of_the_arms_own_model_is_told(tmp_path: Path) -> None:
    found = said(tmp_path, [one_verdict(i, "win", judge_="qwen/M") for i in range(10)])
    assert any("judges itself" in warning for warning in found["judge"]["warnings"])


def test_few_items_are_neither_better_nor_worse(tmp_path: Path) -> None:
    few = {"value": 1.0, "low": 0.5, "high": 1.0}
    assert report._side(few, 0, 9) == "" and report._side(few, 0, 10) == "good"
