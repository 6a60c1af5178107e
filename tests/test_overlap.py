"""Held-out questions in the training rows: found in whole, with words around them, and inside a conversation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.overlap import overlap

COUGH = "患者女，六十二岁，夜里咳嗽三周，躺下加重，不发热，胸片未见异常，最可能的诊断是什么？"
KNEE = "患者男，二十五岁，打球时扭伤左膝，当时听到响声，两小时后肿胀明显，下一步做什么检查？"


def row(question: str, id_: str = "a") -> dict:
    return {"id": id_, "instruction": question, "input": "", "output": "<think>\n想\n</think>\n\n答"}


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    sets = {"held": [row(COUGH, "cough"), row(KNEE, "knee")], "rows": [row("感冒要不要吃抗生素？")]}
    Path("dataset_info.json").write_text(json.dumps({name: {"file_name": f"{name}.json"} for name in [*sets, "more"]}))
    for name, rows in sets.items():
        Path(f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    Path("train.yaml").write_text("dataset: rows, more\n")
    return tmp_path


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ([row("高血压患者可以喝咖啡吗？")], []),
        ([row(COUGH)], ["cough"]),
        ([row("以下是一道题。" + KNEE.replace("，", ",") + "请详细回答。")], ["knee"]),
        ([{"conversations": [{"from": "human", "value": COUGH}, {"from": "gpt", "value": "查胃镜"}]}], ["cough"]),
    ],
)
def test_a_question_that_was_trained_on_is_found(recipe: Path, rows: list, found: list[str]) -> None:
    Path("more.json").write_text(json.dumps(rows), encoding="utf-8")
    assert overlap("train.yaml", "held") == {"held_out": 2, "training_rows": 2, "found": found}


def test_what_cannot_be_read_is_said(recipe: Path) -> None:
    assert "more.json" in overlap("train.yaml", "held")["not_counted"]
    Path("train.yaml").write_text("dataset: elsewhere\n")
    assert "elsewhere: not registered" in overlap("train.yaml", "held")["not_counted"]
