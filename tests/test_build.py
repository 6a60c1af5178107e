from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from preprocess.build import Data, build, is_eval, to_row
from preprocess.clean import fault, question_key
from preprocess.records import Record, content_id, read_rows
from preprocess.register import registry_text
from preprocess.think import split
from recipe import UserError
from tests.conftest import ROOT, ROWS

GOOD = Record("1", "s", "", "头痛？", "先问时间。", "去门诊。")


def data(tmp_path: Path, file: str, **changes: object) -> Data:
    settings = Data(file, "medical_o1", "t", str(tmp_path / "out"), eval_share=0.4, dataset_dir=str(tmp_path))
    return replace(settings, **changes)


def read(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_row_is_alpaca_with_the_thought_in_the_output() -> None:
    assert to_row(replace(GOOD, system="你是医生。")) == {
        "id": "1",
        "system": "你是医生。",
        "instruction": "头痛？",
        "input": "",
        "output": "<think>\n先问时间。\n</think>\n\n去门诊。",
    }
    assert to_row(GOOD, think_from="none")["output"] == "去门诊。"


@pytest.mark.parametrize(
    "change, reason",
    [
        ({}, ""),
        ({"question": ""}, "empty_question"),
        ({"answer": ""}, "empty_answer"),
        ({"think": ""}, "empty_thought"),
        ({"think": "<think>先问时间"}, "stray_tag"),
        ({"answer": "去</think>门诊"}, "stray_tag"),
        ({"answer": "去\ufffd门诊"}, "mojibake"),
        ({"think": "头痛先问时间。".encode().decode("latin-1")}, "mojibake"),
        ({"think": "WBC 12.3×10⁹/L，PaO₂ 60 mmHg，“好”…… café"}, ""),
    ],
)
def test_faults(change: dict, reason: str) -> None:
    assert fault(replace(GOOD, **change)) == reason


def test_question_key_ignores_form_not_content() -> None:
    assert question_key("ＣＴ 检查，\n要紧吗？") == question_key("ct检查要紧吗")
    for one, other in [
        ("HBsAg(+)？", "HBsAg(-)？"),
        ("血钾3.5", "血钾35"),
        ("收缩压>140", "收缩压<140"),
        ("10⁹/L", "109/L"),
    ]:
        assert question_key(one) != question_key(other)
    assert question_key("？") == "？"


def test_sides_depend_on_the_question_alone() -> None:
    questions = [f"第{i}个问题" for i in range(4000)]
    first = [is_eval(q, 0.1) for q in questions]
    assert first == [is_eval(f" {q}？", 0.1) for q in questions]
    assert 0.08 < sum(first) / len(first) < 0.12
    assert all(is_eval(q, 0.2) for q, held in zip(questions, first, strict=True) if held)
    assert not any(is_eval(q, 0.0) for q in questions)


def test_counts_add_up_and_each_drop_has_its_place(tmp_path: Path, write: Callable) -> None:
    bad = [{**ROWS[0], "Question": f" {ROWS[0]['Question']} "}, {**ROWS[1], "Question": "新", "Complex_CoT": ""}]
    source = write("rows.json", ROWS + bad)
    build(data(tmp_path, source))
    out = tmp_path / "out"
    counts = json.loads((out / "counts.json").read_text(encoding="utf-8"))
    assert counts["read"] == 10 and counts["dropped"] == {"duplicate": 1, "empty_thought": 1}
    assert counts["train"] == len(read(out / "train.json")) and counts["eval"] == len(read(out / "eval.json"))
    assert counts["train"] + counts["eval"] + 2 == 10
    dropped = [row for _, row in read_rows(str(out / "dropped.jsonl"))]
    assert [(row["place"], row["reason"]) for row in dropped] == [
        (f"{source}: item 9", "duplicate"),
        (f"{source}: item 10", "empty_thought"),
    ]
    assert dropped[0]["first"] == f"{source}: item 1"


def test_two_runs_give_the_same_bytes(tmp_path: Path, write: Callable) -> None:
    settings = data(tmp_path, write("rows.json", ROWS))
    build(settings)
    first = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} | {
        "info": (tmp_path / "dataset_info.json").read_bytes()
    }
    build(settings)
    assert first == {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} | {
        "info": (tmp_path / "dataset_info.json").read_bytes()
    }


def test_a_bad_row_leaves_everything_as_it_was(tmp_path: Path, write: Callable) -> None:
    build(data(tmp_path, write("rows.json", ROWS)))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.name != "rows.json"}
    with pytest.raises(UserError, match="item 9: key 'Question' is missing"):
        build(data(tmp_path, write("rows.json", [*ROWS, {"q": 1}])))
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.name != "rows.json"}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"source": "x"}, "source: unknown kind 'x'; known: medical_o1"),
        ({"think_from": "x"}, "think_from: expected one of"),
        ({"eval_share": 1.0}, "eval_share: expected a share"),
        ({"limit": -1}, "limit: expected"),
        ({"eval_share": float("nan")}, "eval_share: expected a share"),
        ({"dataset": "a,b"}, "dataset: expected a name"),
        ({"dataset_dir": "none"}, "dataset_dir: no folder none"),
        ({"limit": 1}, "rows to train on and"),
    ],
)
def test_settings_are_checked(tmp_path: Path, write: Callable, change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(data(tmp_path, write("rows.json", ROWS), **change))
    assert not (tmp_path / "out").exists()


def test_without_held_out_rows_an_earlier_eval_set_goes(tmp_path: Path, write: Callable) -> None:
    settings = data(tmp_path, write("rows.json", ROWS))
    build(settings)
    build(replace(settings, eval_share=0.0))
    assert not (tmp_path / "out/eval.json").exists() and len(read(tmp_path / "out/train.json")) == len(ROWS)
    assert list(json.loads((tmp_path / "dataset_info.json").read_text())) == ["t_train"]


def test_a_build_does_not_eat_its_input(tmp_path: Path, write: Callable) -> None:
    source = write("out/train.json", ROWS)
    with pytest.raises(UserError, match="would be overwritten by its own output"):
        build(data(tmp_path, source))
    assert read(Path(source)) == ROWS


def test_two_builds_at_once_lose_no_entry(tmp_path: Path, write: Callable) -> None:
    source = write("rows.json", ROWS)
    recipe = write("data.yaml", f"input: {source}\nsource: medical_o1\neval_share: 0.4\ndataset_dir: {tmp_path}\n")
    names = [f"d{i}" for i in range(6)]
    runs = [
        subprocess.Popen(
            [sys.executable, "-m", "preprocess.build", recipe, f"dataset={name}", f"output={tmp_path}/{name}"], cwd=ROOT
        )
        for name in names
    ]
    assert [run.wait() for run in runs] == [0] * 6
    assert len(json.loads((tmp_path / "dataset_info.json").read_text())) == 12


def test_registering_is_idempotent_sorted_and_leaves_others_alone(tmp_path: Path) -> None:
    path = tmp_path / "dataset_info.json"
    foreign = {"file_name": "z.json", "columns": {"prompt": "q"}}
    path.write_text(json.dumps({"zz": foreign, "b": {"file_name": "old"}}))
    once = registry_text({"b": {"file_name": "医.json"}}, tmp_path)
    path.write_text(once)
    assert registry_text({"b": {"file_name": "医.json"}}, tmp_path) == once and once.isascii()
    registry = json.loads(once)
    assert list(registry) == ["b", "zz"] and registry["zz"] == foreign and registry["b"]["file_name"] == "医.json"


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_broken_registry_stops_the_build_before_anything_is_written(
    tmp_path: Path, write: Callable, content: str
) -> None:
    write("dataset_info.json", content)
    with pytest.raises(UserError, match=r"dataset_info\.json"):
        build(data(tmp_path, write("rows.json", ROWS)))
    assert not (tmp_path / "out").exists() and (tmp_path / "dataset_info.json").read_text() == content


def test_the_committed_registry_is_what_the_recipes_write() -> None:
    registry = json.loads((ROOT / "dataset_info.json").read_text())
    for name in ("demo", "demo_base", "medcot"):
        assert {f"{name}_train", f"{name}_eval"} <= registry.keys()


def test_the_samples_are_what_the_readme_says(tmp_path: Path) -> None:
    source = str(ROOT / "data/samples/medical_o1_sft.json")
    build(data(tmp_path, source, eval_share=0.15))
    counts = json.loads((tmp_path / "out/counts.json").read_text(encoding="utf-8"))
    assert counts["dropped"] == {"duplicate": 2, "empty_thought": 1, "mojibake": 2, "stray_tag": 1}
    assert counts["train"] + counts["eval"] == 240
    scenarios = [row["scenario"] for _, row in read_rows(source)]
    assert len(set(scenarios)) == 10 and min(map(scenarios.count, set(scenarios))) >= 16


def five_grams(text: str) -> set[str]:
    text = "".join(text.split())
    return {text[i : i + 5] for i in range(len(text) - 4)}


@pytest.mark.parametrize("name, planted", [("medical_o1_sft.json", 2), ("camp_data_step_1_without_answer.jsonl", 0)])
def test_no_two_sample_rows_are_alike(name: str, planted: int) -> None:
    rows = [row for _, row in read_rows(str(ROOT / "data/samples" / name))]
    grams = [five_grams("".join(str(row.get(k, "")) for k in (*ROWS[0], "feature_content"))) for row in rows]
    alike = [(a, b) for i, a in enumerate(grams) for b in grams[:i] if len(a & b) > 0.5 * len(a | b)]
    assert len(alike) == planted


def test_the_patient_records_have_the_three_layouts() -> None:
    base = ["性别", "年龄", "主诉", "现病史", "既往史", "个人史", "过敏史", "婚育史"]
    labels = [*base, "流行病史", "体格检查", "辅助检查"]
    layouts = [labels, base, [*base, "体格检查"]]
    rows = [row for _, row in read_rows(str(ROOT / "data/samples/camp_data_step_1_without_answer.jsonl"))]
    assert len(rows) >= 60 and [row["id"] for row in rows] == list(range(len(rows)))
    found = []
    for row in rows:
        lines = [line.partition(": ") for line in row["feature_content"].split("\n")]
        found.append([head for head, colon, _ in lines if colon and head in labels])
    assert all(layout in layouts for layout in found) and all(layout in found for layout in layouts)
    labelled = [row for _, row in read_rows(str(ROOT / "data/samples/train_labeled.jsonl"))]
    contents = {row["id"]: row["feature_content"] for row in rows}
    assert len(labelled) >= 40 and all(contents[row["id"]] == row["feature_content"] for row in labelled)


@pytest.mark.skipif("REAL_DATA" not in os.environ, reason="REAL_DATA=dir with medical_o1_sft.json is not set")
def test_the_real_medical_o1_records(tmp_path: Path) -> None:
    source = f"{os.environ['REAL_DATA']}/medical_o1_sft.json"
    rows = [row for _, row in read_rows(source)]
    build(data(tmp_path, source, eval_share=0.1))
    counts = json.loads((tmp_path / "out/counts.json").read_text(encoding="utf-8"))
    assert counts["read"] == len(rows) == counts["train"] + counts["eval"] and not counts["dropped"]
    made = {r["id"]: r for name in ("train", "eval") for r in read(tmp_path / f"out/{name}.json")}
    for row in rows:
        texts = [row[key].strip() for key in ("Question", "Complex_CoT", "Response")]
        out = made[content_id(*texts)]
        assert out["instruction"] == texts[0]
        assert out["output"] == f"<think>\n{texts[1]}\n</think>\n\n{texts[2]}"
        assert split(out["output"]).fault == ""
