"""Stage two of healthai: what the samples' agreement weighs, whose side a question is on, and the second references."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval import score
from eval.report import ledger, summary_rows, to_markdown, to_page
from eval.run import scores_of
from preprocess.ask import Label
from preprocess.build import build
from preprocess.choose import Outcome, choose
from preprocess.data import Data
from preprocess.records import Record, to_json
from preprocess.steps import Item, times
from recipe import UserError, load
from tests.conftest import ROOT

Row = dict[str, Any]
SIGNS = ["咳嗽", "发热", "腹痛", "皮疹", "失眠", "头晕", "腰痛", "胸闷", "耳鸣", "呕吐", "便血", "消瘦"]


def labelled(number: int, **more: Any) -> Row:
    what = f"{SIGNS[number % 12]}{number}天"
    text = f"性别: 女\n年龄: {20 + number}\n主诉: {what}\n现病史: 第{number}次来诊\n辅助检查: 无{more.pop('tail', '')}"
    reason = f"1. 主诉{what}，起病急，病程短，多见于上呼吸道感染；2. 第{number}次来诊，此前检查无异常，不支持其他疾病。"
    return {"id": number, "reason": reason, "diseases": "上感", "feature_content": text} | more


def recipe(name: str, tmp_path: Path, file: str, **changes: Any) -> Data:
    made = load(Data, f"{ROOT}/recipes/{name}/data.yaml")
    places = {"input": file, "output": f"{tmp_path}/{name}", "dataset_dir": str(tmp_path), "tokenizer": ""}
    return replace(made, near_duplicates=0.0, near_eval=False, **places, **changes)


def rows_of(tmp_path: Path, name: str, side: str) -> list[Row]:
    return json.loads((tmp_path / name / f"{side}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("privacy", ["report", "mask"])
def test_rows_weigh_as_much_as_the_samples_agree(tmp_path: Path, write: Callable, privacy: str) -> None:
    shares = [0.2, 0.4, 0.6, 0.8, 1.0]
    rows = [labelled(number, agreement=shares[number % 5]) for number in range(60)] + [labelled(60)]
    rows[4] |= {"diseases": "男，上感"}  # all agree, and something else speaks against it
    build(recipe("healthai_distill", tmp_path, write("rows.json", rows), privacy=privacy))
    sides = {
        side: Counter(row["id"] for row in rows_of(tmp_path, "healthai_distill", side)) for side in ("train", "eval")
    }
    for row in rows:
        times = {0.6: 1, 0.8: 2, 1.0: 3}.get(row.get("agreement", 1.0), 0) if row["id"] != 4 else 1
        held_out = sides["eval"][str(row["id"])]
        assert (sides["train"][str(row["id"])], held_out) in ((times, 0), (0, min(times, 1))), row
    dropped = [json.loads(line) for line in (tmp_path / "healthai_distill/dropped.jsonl").open(encoding="utf-8")]
    assert len(dropped) == 24 and {(row["reason"], row["agreement"]) for row in dropped} == {
        ("agreement", 0.2),
        ("agreement", 0.4),
    }
    counts = json.loads((tmp_path / "healthai_distill/counts.json").read_text(encoding="utf-8"))
    assert counts["dropped"] == {"agreement": 24} and counts["read"] == counts["train"] + counts["eval"] + 24
    assert counts["train"] + counts["repeated"] == sides["train"].total()
    with pytest.raises(UserError, match="min_agreement: expected a share from 0 to 1, got 60"):
        build(recipe("healthai_distill", tmp_path, write("rows.json", rows), min_agreement=60.0))


def test_an_agreement_of_three_decimals_weighs_as_the_share_that_it_is() -> None:
    def written(said: int, samples: int, bar: float, upsample: int) -> int:
        record = Record("1", "diagnosis", "", "问", "", "答", {"agreement": round(said / samples, 3)})
        return times(Item("", record), Data("", "d", "o", upsample=upsample, min_agreement=bar))

    assert [written(said, 6, 0.667, 3) for said in (4, 5, 6)] == [1, 2, 3]
    assert [written(said, 9, 0.333, 7) for said in (3, 4, 6, 8, 9)] == [1, 2, 4, 6, 7]
    assert [written(said, 5, 0.0, 2) for said in (0, 4, 5)] == [1, 1, 2] and written(5, 5, 1.0, 4) == 4


def test_a_question_is_on_the_same_side_in_both_stages(tmp_path: Path, write: Callable) -> None:
    """Whatever else is labelled, in whatever order, and with the diagnosis at its end or without."""
    first = [labelled(number, tail="诊断:1、上感2、咽炎") for number in range(80)]
    second = [labelled(number, agreement=0.8, diseases="咽炎") for number in reversed(range(40, 160))]
    build(recipe("healthai", tmp_path, write("first.json", first)))
    build(recipe("healthai_distill", tmp_path, write("second.json", second)))
    one = {side: {row["id"] for row in rows_of(tmp_path, "healthai", side)} for side in ("train", "eval")}
    two = {side: {row["id"] for row in rows_of(tmp_path, "healthai_distill", side)} for side in ("train", "eval")}
    both = {str(number) for number in range(40, 80)}
    assert one["eval"] & both and one["train"] & both
    assert all(one[side] & both == two[side] & both for side in ("train", "eval"))
    assert not one["eval"] & two["train"] and not two["eval"] & one["train"]


def test_the_label_is_the_majoritys_and_its_reason_the_best_supported() -> None:
    settings = load(Label, f"{ROOT}/recipes/healthai_distill/label.yaml", ["base_url=http://127.0.0.1:1/v1", "model=m"])
    assert (settings.n, settings.temperature) == (5, 0.7)
    text = "性别: 女\n年龄: 34\n主诉: 夜间咳嗽3周\n现病史: 平卧加重，无发热"
    record = Record("17", "healthai", "", text, "", "", {"id": 17, "fields": {}})
    said = [
        ("夜间咳嗽", "肺炎"),
        ("咳嗽多见于感染，夜间咳嗽", "哮喘"),
        ("夜间咳嗽3周，平卧加重", "1. 哮喘"),
        ("", "哮喘"),
        ("无", ""),
    ]

    def reply(reason: str, diseases: str) -> Row:
        text = to_json({"reason": reason, "diseases": diseases})
        return {"text": text, "think": "", "finish_reason": "stop", "think_from": "", "usage": {}}

    outcomes = [Outcome(f"key{number}", reply(*pair)) for number, pair in enumerate(said)]
    choice = choose(record, text, outcomes, settings)
    assert choice.row and (choice.row["diseases"], choice.row["reason"]) == ("1. 哮喘", "夜间咳嗽3周，平卧加重")
    assert choice.row["agreement"] == 0.4  # of five: two can't be read
    tied = choose(record, text, [outcomes[0], outcomes[0], outcomes[1], outcomes[2], outcomes[4]], settings)
    assert (tied.row, tied.reason) == (None, "agreement")


def answers(names: list[str], references: list[str]) -> list[Row]:
    return [
        {
            "id": str(number),
            "prompt": f"性别: 女\n主诉: {SIGNS[number]}",
            "finish_reason": "stop",
            "think": "",
            "tokens": 9,
        }
        | {"answer": text, "raw": text, "reference": to_json({"reason": "据", "diseases": reference})}
        for number, (name, reference) in enumerate(zip(names, references, strict=True))
        for text in [to_json({"reason": "据", "diseases": name})]
    ]


def test_answers_are_scored_against_both_references_each_with_its_own_n(tmp_path: Path, write: Callable) -> None:
    teacher = ["肺炎", "胃炎", "2型糖尿病", "贫血", "湿疹"]
    weak = [
        ("0", "eval", ["哮喘"]),
        ("2", "eval", ["２型糖尿病", "高血压"]),
        ("4", "dropped", ["湿疹"]),
        ("9", "train", ["痔"]),
    ]
    rows = [{"place": "x:1", "id": id_, "side": side, "diseases": names} for id_, side, names in weak]
    file = write("weak_reference.jsonl", "".join(to_json(row) + "\n" for row in rows))
    arms = {
        "base": answers(["感冒", "感冒", "2型糖尿病", "贫血", "湿疹"], teacher),
        "tuned": answers(["哮喘", "胃炎", "2型糖尿病；高血压病", "贫血", "湿疹"], teacher),
    }
    scores, _ = scores_of(arms, tmp_path, file)
    known, found = scores["diagnosis"], scores["diagnosis_weak"]
    assert (known["prompts"], found["prompts"]) == (5, 2)
    assert [known["arms"][arm]["tiers"]["strict"]["tp"] for arm in arms] == [3, 4]
    assert [found["arms"][arm]["tiers"]["alias"]["tp"] for arm in arms] == [1, 3]
    assert [found["arms"][arm]["tiers"]["strict"]["tp"] for arm in arms] == [0, 1]
    assert found["changes"]["tuned"]["alias"]["value"] == pytest.approx(1 - 2 / 5)
    assert "reason" not in found["arms"]["base"] and len(found["references_sha256"]) == 64
    without, _ = scores_of(arms, tmp_path)
    assert "diagnosis_weak" not in without and without["diagnosis"] == known
    metrics = {"arms": list(arms), **scores}
    shown = [row for row in summary_rows(metrics) if "weak references" in row.name]
    assert [(row.name.split("，")[1], row.n) for row in shown][2] == (
        "别名 diagnosis F1 (weak references), alias",
        "2 prompts",
    )
    assert [(tally.given, tally.scored, tally.left) for tally in ledger(metrics) if "弱参考" in tally.part] == [
        (5, 2, 3)
    ]
    page, text = to_page(metrics, [], {}), to_markdown(metrics)
    assert page.count("<th>档 tier</th>") == 2 and "弱参考" in page and "弱参考" in text
    plain = to_page({"arms": list(arms), **without}, [], {})
    assert plain.count("<th>档 tier</th>") == 1 and "弱参考" not in plain
    for bad in ({"id": "0", "diseases": "哮喘"}, {"diseases": ["哮喘"]}):
        with pytest.raises(UserError, match=r"bad.jsonl:1: expected id and a list of diseases"):
            score.read_names(write("bad.jsonl", to_json(bad)))
