from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chat.scenarios import read_scenarios
from preprocess.build import Data, build, is_eval, to_row
from preprocess.data import files_of
from preprocess.records import Record, content_id, read_rows
from preprocess.register import registry_text
from preprocess.steps import Item, Spool, first_pass
from preprocess.think import split
from preprocess.write import Rows
from recipe import UserError
from tests.conftest import ROOT, ROWS

GOOD = Record("1", "s", "", "头痛？", "先问时间。", "去门诊。")


def data(tmp_path: Path, file: str, **changes: object) -> Data:
    settings = Data(file, "t", str(tmp_path / "out"), eval_share=0.4, dataset_dir=str(tmp_path))
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
    assert dropped[0]["kept"] == f"{source}: item 1"


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
        ({"source": "x"}, "source: unknown 'x'; expected one of auto, medical_o1"),
        ({"think_from": "x"}, "think_from: unknown 'x'; expected one of thought, reason, none"),
        ({"privacy": "x"}, "privacy: unknown 'x'; expected one of none, report, mask"),
        ({"drop": ["x"]}, "drop: unknown 'x'; expected names out of"),
        ({"near_duplicates": 0.5}, r"near_duplicates: expected 0 \(off\) or a similarity from 0.7 to 1, got 0.5"),
        ({"upsample": 0}, "upsample: expected 1 or more, got 0"),
        ({"shares": [1.0, 2.0]}, "shares: expected a number above 0 for each of the 1 inputs"),
        ({"input": []}, "input: expected a file"),
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
    assert counts["dropped"] == {"duplicate": 2, "empty_thought": 1, "mojibake": 1, "stray_tag": 1}
    assert counts["train"] + counts["eval"] == 241 and counts["changed"] == {"encoding": 1}
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


def counts_of(settings: Data) -> dict[str, Any]:
    build(settings)
    return json.loads((Path(settings.output) / "counts.json").read_text(encoding="utf-8"))


def lines(path: Path) -> list[dict]:
    return [row for _, row in read_rows(str(path))]


TOPICS = (
    *("咳嗽三周夜里加重，平卧时喘，要查什么？", "右下腹痛半天，从肚脐转过去，伴恶心，怎么办？"),
    *("孩子发热两天，耳朵痛，抓耳哭闹，是中耳炎吗？", "老人起床时头晕，站起来眼前发黑，血压偏低。"),
    *("孕二十八周，空腹血糖偏高，饮食上要注意什么？", "膝盖上下楼痛五年，阴天加重，能不能跑步？"),
    *("甲状腺结节四类，穿刺之前要停抗凝药吗？", "手指晨僵一小时，几个关节对称肿，查类风湿吗？"),
)


def asked(questions: Sequence[str]) -> list[dict]:
    return [
        {"Question": question, "Complex_CoT": f"先想：{question}再看检查。", "Response": f"答：{question[:6]}去门诊。"}
        for question in questions
    ]


def test_a_near_duplicate_goes_and_the_one_with_fewer_defects_and_the_longer_thought_stays(
    tmp_path: Path, write: Callable
) -> None:
    question = f"{TOPICS[0]}另外，{TOPICS[3]}"
    rows = asked([question, *TOPICS[1:]])
    better = {**rows[0], "Question": question.replace("要查什么", "要查些什么"), "Complex_CoT": "再想想。" * 20}
    worse = {**better, "Question": better["Question"].replace("眼前发黑", "眼睛发黑"), "Response": "去<br>门诊。"}
    source = write("rows.json", [*rows, better, worse])
    counts = counts_of(data(tmp_path, source, near_eval=False))
    assert counts["dropped"] == {"near_duplicate": 2} and counts["near_duplicate_clusters"] == 1
    dropped = lines(tmp_path / "out/dropped.jsonl")
    assert [row["place"] for row in dropped] == [f"{source}: item 1", f"{source}: item 10"]
    assert all(row["kept"] == f"{source}: item 9" and 0.7 <= row["jaccard"] < 1 for row in dropped)
    (cluster,) = lines(tmp_path / "out/clusters.jsonl")
    assert cluster["kept"] == [f"{source}: item 9"] and len(cluster["pairs"]) == 2
    counts = counts_of(data(tmp_path, source, near_eval=False, near_duplicates=0.0))
    assert counts["dropped"] == {} and not (tmp_path / "out/clusters.jsonl").exists()


def test_a_training_question_too_near_a_held_out_one_goes(tmp_path: Path, write: Callable) -> None:
    pairs = [(topic, f"您好，想问一下：{topic}") for topic in TOPICS]
    split_ = [pair for pair in pairs if is_eval(pair[0], 0.4) != is_eval(pair[1], 0.4)]
    assert split_
    source = write("rows.json", asked([question for pair in pairs for question in pair]))
    counts = counts_of(data(tmp_path, source, near_duplicates=0.0))
    assert counts["dropped"] == {"near_eval": len(split_)}
    held = {row["instruction"] for row in read(tmp_path / "out/eval.json")}
    for row in lines(tmp_path / "out/dropped.jsonl"):
        assert row["held_out"].startswith(source) and row["coverage"] >= 0.7 and row["run"] in row["item_text"]
        assert not is_eval(row["record"]["question"], 0.4)
    assert all(is_eval(question, 0.4) for question in held)
    assert counts_of(data(tmp_path, source, near_duplicates=0.0, near_eval=False))["dropped"] == {}


def parquet(questions: list[str]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"Question": questions, "Answer": ["A"] * len(questions)}), file)
    return file.getvalue()


EXAM = [f"某医院门诊：{TOPICS[0]}请选择最合适的一项。", "下列哪一项不属于心力衰竭的常见诱因，以及它的处理原则是什么？"]
EVALUATIONS = {
    "exam.jsonl": "".join(json.dumps({"question": text, "options": {"A": "x"}}) + "\n" for text in EXAM),
    "exam.json": [{"exam_question": text} for text in EXAM],
    "exam.csv": "id,Question\n" + "".join(f'{number},"{text}"\n' for number, text in enumerate(EXAM)),
    "exam.parquet": parquet(EXAM),
    "chat.json": [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "A"}]} for text in EXAM
    ],
}


@pytest.mark.parametrize("name", EVALUATIONS)
def test_what_touches_an_evaluation_file_goes_with_the_offending_pair_shown(
    tmp_path: Path, write: Callable, name: str
) -> None:
    exam = write(name, EVALUATIONS[name])
    source = write("rows.json", asked([*TOPICS[1:], f"老师，{EXAM[0]}"]))
    counts = counts_of(data(tmp_path, source, decontaminate=[exam]))
    assert counts["dropped"] == {"contaminated": 1} and counts["decontaminated_against"][0]["file"] == name
    (row,) = lines(tmp_path / "out/dropped.jsonl")
    assert (row["file"], row["item"], row["coverage"]) == (exam, 0, 1.0) and "夜里加重" in row["item_text"]
    assert row["place"] == f"{source}: item 8"


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("exam.json", [{"q": "?"}], r"exam.json: item 1: no question; the row has 'q', expected one of question, "),
        ("exam.parquet", b"PAR", r"exam.parquet: not a Parquet file"),
    ],
)
def test_an_evaluation_file_that_says_nothing_is_refused(
    tmp_path: Path, write: Callable, name: str, content: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        build(data(tmp_path, write("rows.json", asked(TOPICS)), decontaminate=[write(name, content)]))
    assert not (tmp_path / "out").exists()


def test_rows_that_the_students_tokenizer_finds_too_long_go(tmp_path: Path, write: Callable, tiny: Any) -> None:
    rows = asked(TOPICS)
    rows[3]["Complex_CoT"] += "再看一遍。" * 300
    source, model = write("rows.json", rows), f"{tiny.root}/model"
    counts = counts_of(data(tmp_path, source, tokenizer=model, cutoff_len=1000))
    assert counts["dropped"] == {"too_long": 1} and counts["tokenizer"] == "model"
    (dropped,) = lines(tmp_path / "out/dropped.jsonl")
    row = to_row(Record(**dropped["record"]))
    text = f"{row['system']}\n{row['instruction']}\n{row['output']}"
    assert dropped["tokens"] == len(tiny.tokenizer(text, add_special_tokens=False)["input_ids"])
    assert "tokens of the whole row by model" in (tmp_path / "out/card.md").read_text(encoding="utf-8")


def test_without_a_tokenizer_nothing_is_cut_and_it_is_said(
    tmp_path: Path, write: Callable, capsys: pytest.CaptureFixture
) -> None:
    source = write("rows.json", asked(TOPICS))
    counts = counts_of(data(tmp_path, source, tokenizer="models/none", cutoff_len=10))
    assert counts["dropped"] == {} and "in characters (no folder models/none)" in capsys.readouterr().out
    assert "no tokenizer was at hand" in (tmp_path / "out/card.md").read_text(encoding="utf-8")
    with pytest.raises(UserError, match=r"tokenizer: .*/tokenizer\.json: "):
        build(data(tmp_path, source, tokenizer=str(tmp_path), cutoff_len=10))


PERSON = "患者姓名：王小明，电话 13800138000，咳嗽三天，要紧吗？"


def test_identifiers_are_reported_without_being_repeated_or_masked_everywhere(tmp_path: Path, write: Callable) -> None:
    rows = [*asked(TOPICS), {**asked([PERSON])[0], "Complex_CoT": "", "note": "王小明"}]
    source = write("rows.json", rows)
    counts = counts_of(data(tmp_path, source, privacy="report"))
    assert counts["identifiers"] == {"name": 2, "phone": 1} and counts["dropped"] == {"empty_thought": 1}
    found = lines(tmp_path / "out/identifiers.jsonl")
    assert {
        "place": f"{source}: item 9",
        "side": "dropped",
        "field": "question",
        "kind": "name",
        "start": 5,
        "end": 8,
    } in found
    assert "王小明" not in (tmp_path / "out/identifiers.jsonl").read_text(encoding="utf-8")
    assert "王小明" in (tmp_path / "out/dropped.jsonl").read_text(encoding="utf-8")
    counts = counts_of(data(tmp_path, source, privacy="mask"))
    assert counts["changed"] == {"masked": 1} and counts["identifiers"] == {"name": 2, "phone": 1}
    for path in (tmp_path / "out").iterdir():
        assert not any(text in path.read_text(encoding="utf-8") for text in ("王小明", "13800138000")), path.name
    assert "[姓名]" in (tmp_path / "out/dropped.jsonl").read_text(encoding="utf-8")


PATIENT = "性别: 女\n年龄: 34\n主诉: 夜间咳嗽{}周\n现病史: 平卧加重\n既往史: 体健\n个人史: \n过敏史: \n婚育史: "


def patients(tail: str = "") -> list[dict]:
    return [
        {
            "id": i,
            "feature_content": PATIENT.format(i) + tail,
            "diseases": "哮喘",
            "reason": f"夜间咳嗽{i}周，平卧加重。",
        }
        for i in range(1, 13)
    ]


def test_a_diagnosis_at_the_tail_is_cut_and_kept_as_weak_reference(tmp_path: Path, write: Callable) -> None:
    rows = patients() + [{**row, "id": row["id"] + 100} for row in patients("\n辅助检查: 无诊断:1、哮喘2、鼻炎")]
    source = write("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    settings = data(tmp_path, source, duplicates=False, near_duplicates=0.0, near_eval=False)
    counts = counts_of(settings)
    assert counts["changed"] == {"diagnosis_cut": 12} and "diagnosis_tail" not in counts["flags"]
    weak = lines(tmp_path / "out/weak_reference.jsonl")
    assert len(weak) == 12 and weak[0]["diseases"] == ["哮喘", "鼻炎"]
    made = read(tmp_path / "out/train.json") + read(tmp_path / "out/eval.json")
    assert not any("诊断" in row["instruction"] for row in made)
    assert json.loads(made[0]["output"]) == {"reason": f"夜间咳嗽{made[0]['id']}周，平卧加重。", "diseases": "哮喘"}
    assert counts_of(replace(settings, cut_diagnosis=False))["flags"]["diagnosis_tail"] == 12


def test_a_reason_can_be_the_thought_but_none_takes_a_thoughts_place(tmp_path: Path, write: Callable) -> None:
    rows = patients()
    rows[0]["reasoning_content"] = "想了很久。"
    source = write("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    build(data(tmp_path, source, think_from="reason", near_duplicates=0.0, near_eval=False))
    made = {row["id"]: row["output"] for row in read(tmp_path / "out/train.json") + read(tmp_path / "out/eval.json")}
    assert split(made["1"]).think == "想了很久。" and split(made["2"]).think == "夜间咳嗽2周，平卧加重。"


def test_records_without_a_label_say_what_to_do(tmp_path: Path, write: Callable) -> None:
    rows = [{key: row[key] for key in ("id", "feature_content")} for row in patients()]
    with pytest.raises(
        UserError, match=r"12 dropped \(unlabelled 12\); these records have no label yet; let a teacher"
    ):
        build(data(tmp_path, write("rows.json", rows)))
    assert not (tmp_path / "out").exists()


def test_each_row_has_its_scenarios_prompt_to_the_character(tmp_path: Path, write: Callable) -> None:
    path = write("scenarios.yaml", (ROOT / "recipes/assistant/scenarios.yaml").read_text(encoding="utf-8"))
    known = read_scenarios(path)
    rows = [
        {"instruction": "我咳嗽三天,要紧吗？", "input": "", "output": "多喝水，三天不好去门诊。"},
        {"instruction": "医生，宝宝三岁，发热一天，要紧吗？", "input": "", "output": "先看精神和饮水。"},
        {"instruction": "老人睡不好怎么办？", "input": "", "output": "先看作息。", "scenario": "mental_health"},
        {"instruction": "血压多少算高？", "input": "", "output": "140/90以上。", "system": "你是社区医生。"},
    ]
    settings = data(tmp_path, write("rows.json", rows), scenarios=path, eval_share=0.0)
    build(settings)
    made = {row["instruction"]: row["system"] for row in json.loads((tmp_path / "out/train.json").read_text("utf-8"))}
    assert list(made.values()) == [
        known["diagnosis"].prompt,
        known["pediatric"].prompt,
        known["mental_health"].prompt,
        "你是社区医生。",
    ]
    with pytest.raises(UserError, match="leave one of them out"):
        build(replace(settings, system="x"))
    rows[0]["scenario"] = "surgery"
    with pytest.raises(UserError, match=r"more.json.*unknown scenario 'surgery'; expected one of 1 diagnosis"):
        build(replace(settings, input=write("more.json", rows)))


def test_several_sources_keep_their_shares_and_nothing_else_changes(tmp_path: Path, write: Callable) -> None:
    one = write("one.json", asked([f"第{i}号问题：{topic}" for i in range(6) for topic in TOPICS]))
    two = write("two.json", [{"instruction": f"请解释第{i}种药的用法", "output": f"用法{i}"} for i in range(20)])
    off = {"near_duplicates": 0.0, "near_eval": False, "eval_share": 0.2}
    whole = counts_of(data(tmp_path, one, input=[one, two], **off))
    assert whole["sources"] == ["alpaca", "medical_o1"] and len(whole["inputs"]) == 2
    everyone = {row["id"] for row in read(tmp_path / "out/train.json")}
    counts = counts_of(data(tmp_path, one, input=[one, two], shares=[0.25, 0.75], **off))
    train = read(tmp_path / "out/train.json")
    alpaca = sum(row["output"].startswith("用法") for row in train)
    assert len(train) == counts["train"] and abs(alpaca - 0.75 * len(train)) <= 1
    assert {row["id"] for row in train} < everyone and counts["eval"] == whole["eval"]
    assert counts["dropped"] == {"over_share": whole["train"] - counts["train"]}


def test_the_best_rows_are_written_again_and_counted(tmp_path: Path, write: Callable) -> None:
    keys = {"Question": "question", "Complex_CoT": "think", "Response": "answer"}
    rows = [{keys[key]: value for key, value in row.items()} for row in asked(TOPICS)]
    for number, row in enumerate(rows):
        row["metrics"] = {"quality_f1": 1.0 if number % 2 else 0.9}
    counts = counts_of(data(tmp_path, write("rows.json", rows), upsample=3))
    train = read(tmp_path / "out/train.json")
    best = sum(not is_eval(row["question"], 0.4) for row in rows[1::2])
    assert counts["repeated"] == 2 * best > 0 and len(train) == counts["train"] + counts["repeated"]
    assert counts["read"] == counts["train"] + counts["eval"] == len(rows)
    assert max(map([row["id"] for row in train].count, (row["id"] for row in train))) == 3


def test_an_id_that_is_there_already_gets_a_number(tmp_path: Path, write: Callable) -> None:
    rows = [
        {**row, "id": id_} for row, id_ in zip(asked(TOPICS), [1, "1", 1.0, "1-2", "a", None, "", "a"], strict=True)
    ]
    counts = counts_of(data(tmp_path, write("rows.json", rows)))
    made = [row["id"] for row in read(tmp_path / "out/train.json") + read(tmp_path / "out/eval.json")]
    assert (
        len(set(made)) == len(rows) and counts["renamed"] == 4 and {"1", "1-2", "1-3", "1-2-2", "a", "a-2"} <= set(made)
    )


def test_nasty_texts_are_kept_or_dropped_by_name(tmp_path: Path, write: Callable) -> None:
    rows = asked(TOPICS)
    rows[0]["Response"] = "去\x00门\x1f诊\u200b。"
    rows[1]["Response"] = "去门诊<script>alert(1)</script>|`x`\n# 题"
    rows[2]["Complex_CoT"] = "<think><think>想</think>"
    rows[3]["Complex_CoT"] = "想一想。" * 260_000
    rows[4]["Response"] = "```json\n{}\n```"
    counts = counts_of(data(tmp_path, write("rows.json", rows), drop=["html"]))
    assert counts["dropped"] == {"html": 1, "stray_tag": 1} and counts["changed"] == {"control": 1}
    assert counts["flags"] == {"fence": 1}
    made = read(tmp_path / "out/train.json") + read(tmp_path / "out/eval.json")
    assert any(row["output"].endswith("去门诊。") for row in made) and max(len(row["output"]) for row in made) > 10**6
    for name in ("card.html", "card.md"):
        assert "<script>alert" not in (tmp_path / "out" / name).read_text(encoding="utf-8")
    assert "\n# 题" not in (tmp_path / "out/card.md").read_text(encoding="utf-8")


def test_memory_does_not_grow_with_the_records(tmp_path: Path) -> None:
    def records(count: int) -> Iterator[Item]:
        for number in range(count):
            yield Item(f"f:{number}", Record(str(number), "alpaca", "", f"问题{number}", "想" * 20_000, f"答{number}"))

    peaks = []
    for count in (300, 1200):
        spool = Spool(tmp_path)
        tracemalloc.start()
        first_pass(data(tmp_path, "f", normalise=False), records(count), spool)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


def test_a_killed_build_leaves_the_previous_files_whole_and_the_next_one_clears_up(
    tmp_path: Path, write: Callable
) -> None:
    small, large = (
        write("small.json", asked(TOPICS)),
        write("large.json", asked([f"{i}：{t}" for i in range(300) for t in TOPICS])),
    )
    settings = data(tmp_path, small)
    build(settings)
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    recipe = write("data.yaml", f"input: {large}\ndataset: t\noutput: {tmp_path}/out\ndataset_dir: {tmp_path}\n")
    run = subprocess.Popen([sys.executable, "-m", "preprocess.build", recipe], cwd=ROOT, stderr=subprocess.DEVNULL)
    while not list((tmp_path / "out").glob(".build-*/records.jsonl")):
        assert run.poll() is None
    run.kill()
    run.wait()
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert list((tmp_path / "out").glob(".build-*"))
    build(settings)
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*")}


def test_the_card_shows_what_was_done(tmp_path: Path, write: Callable) -> None:
    rows = [*asked(TOPICS), {**asked(TOPICS[:1])[0], "Response": "别的答案。"}]
    build(data(tmp_path, write("rows.json", rows)))
    for name in ("card.md", "card.html"):
        card = (tmp_path / "out" / name).read_text(encoding="utf-8")
        for text in (
            "Apache-2.0",
            "duplicate",
            "the first is kept",
            "rows.json: item 9",
            "kept: rows.json: item 1",
            "p95",
        ):
            assert text in card, (name, text)
    assert card.count("<svg") == 3 and "http://www.w3.org" in card and "<script" not in card and "src=" not in card


@pytest.mark.parametrize("name, row", [("o1", {}), ("huatuo", {"question": "别的说法", "Ground-True Answer": "x"})])
def test_a_file_as_its_own_evaluation_file_leaves_nothing(
    tmp_path: Path, write: Callable, name: str, row: dict
) -> None:
    source = write("rows.json", [{**each, **row} for each in asked(TOPICS)])
    with pytest.raises(UserError, match=rf"0 rows to train on and 0 held out, after {len(TOPICS)} dropped"):
        build(data(tmp_path, source, decontaminate=[source]))


@pytest.mark.parametrize("name, content", [("e.json", []), ("e.csv", "question\n"), ("e.csv", "")])
def test_an_evaluation_file_without_a_question_is_refused(
    tmp_path: Path, write: Callable, name: str, content: Any
) -> None:
    with pytest.raises(UserError, match=r"e\.(json|csv): (no question in it|the file is empty|.*empty)"):
        build(data(tmp_path, write("rows.json", asked(TOPICS)), decontaminate=[write(name, content)]))


def test_a_question_in_the_thought_is_a_leak_too(tmp_path: Path, write: Callable) -> None:
    rows = asked(TOPICS)
    rows[2]["Complex_CoT"] += EXAM[0]
    exam = write("exam.json", [{"question": text} for text in EXAM])
    counts = counts_of(data(tmp_path, write("rows.json", rows), decontaminate=[exam]))
    assert counts["dropped"] == {"contaminated": 1}
    assert [(given["questions"], given["records"]) for given in counts["decontaminated_against"]] == [(2, 1)]


def test_of_equal_questions_the_best_is_kept_not_the_first(tmp_path: Path, write: Callable) -> None:
    rows = asked(TOPICS)
    poor = {**rows[0], "Complex_CoT": "想。", "Question": f" {rows[0]['Question']}"}
    source = write("rows.json", [poor, *rows])
    assert counts_of(data(tmp_path, source))["dropped"] == {"duplicate": 1}
    (row,) = lines(tmp_path / "out/dropped.jsonl")
    assert row["place"] == f"{source}: item 1" and row["kept"] == f"{source}: item 2" and row["same_answer"]


def test_near_duplicates_that_say_the_opposite_both_stay(tmp_path: Path, write: Callable) -> None:
    question = f"{TOPICS[0]}另外，{TOPICS[3]}目前体温正常，无发热，血钾升高。"
    turned = [question.replace("无发热", "有发热"), question.replace("升高", "降低")]
    counts = counts_of(data(tmp_path, write("rows.json", asked([question, *turned, *TOPICS[4:]])), near_eval=False))
    assert counts["dropped"] == {}


def test_masking_reaches_ids_and_all_that_came_along(tmp_path: Path, write: Callable) -> None:
    rows = [
        {**row, "id": f"1380013800{i}", "phone": "13800138000", "note": "患者姓名：王小明"}
        for i, row in enumerate(asked(TOPICS))
    ]
    turns = [{"role": "user", "content": text} for text in ("头痛。", "患者姓名：王小明，电话13800138000")]
    chat = write("chat.jsonl", json.dumps({"messages": turns, "id": "x"}))
    counts_of(data(tmp_path, "", input=[write("rows.json", rows), chat], privacy="mask"))
    for path in (tmp_path / "out").iterdir():
        assert not any(text in path.read_text(encoding="utf-8") for text in ("王小明", "1380013800")), path.name


def test_masking_changes_nothing_but_identifiers(tmp_path: Path, write: Callable) -> None:
    rows = [{**row, "metrics": {"quality_f1": 0.9}} for row in patients("\n辅助检查: 无诊断:1、哮喘2、鼻炎")]
    source = write("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    off = {"near_duplicates": 0.0, "near_eval": False, "upsample": 3}
    masked = counts_of(data(tmp_path, source, privacy="mask", **off))
    weak = lines(tmp_path / "out/weak_reference.jsonl")
    plain = counts_of(data(tmp_path, source, **off))
    assert len(weak) == 12 == len(lines(tmp_path / "out/weak_reference.jsonl"))
    assert masked["repeated"] == plain["repeated"] == 0 and masked["train"] == plain["train"]


def test_upsampled_rows_count_towards_the_shares(tmp_path: Path, write: Callable) -> None:
    good = write("good.json", asked([f"第{i}号问题：{topic}" for i in range(4) for topic in TOPICS]))
    rows = asked([f"题{i}：{topic}" for i in range(4) for topic in TOPICS])
    poor = write("poor.json", [{**row, "Complex_CoT": "想。"} for row in rows])
    off = {"near_duplicates": 0.0, "near_eval": False, "eval_share": 0.2}
    counts_of(data(tmp_path, good, input=[good, poor], shares=[0.5, 0.5], upsample=4, **off))
    train = read(tmp_path / "out/train.json")
    assert abs(sum(row["instruction"].startswith("题") for row in train) - len(train) / 2) <= 4


def test_a_pattern_names_the_files_that_it_fits(tmp_path: Path, write: Callable) -> None:
    for name in ("1_step_1.jsonl", "2_step_1.jsonl", "3_step_2.jsonl", "odd[1].json"):
        write(name, "[]")
    told = files_of([f"{tmp_path}/*step_1*.jsonl", f"{tmp_path}/odd[1].json", "none.json"])
    assert [Path(path).name for path in told] == ["1_step_1.jsonl", "2_step_1.jsonl", "odd[1].json", "none.json"]
    with pytest.raises(UserError, match=r"input: no file fits .*step_3\*; put one there, or name it"):
        files_of([f"{tmp_path}/*step_3*"])


def test_the_inputs_of_a_folder_are_its_data_files_and_never_the_outputs(tmp_path: Path, write: Callable) -> None:
    write("raw/a.json", asked(TOPICS[:4]))
    write("raw/b.jsonl", "".join(json.dumps(row) + "\n" for row in asked(TOPICS[4:])))
    for name in (".c.json", "d.json.bak", "dataset_infos.json", "e.txt"):
        write(f"raw/{name}", "{")
    (tmp_path / "raw/sub.json").mkdir()
    counts = counts_of(data(tmp_path, str(tmp_path / "raw")))
    assert [given["file"] for given in counts["inputs"]] == ["a.json", "b.jsonl"] and counts["read"] == 8
    with pytest.raises(UserError, match=r"output: .* is a folder to read from"):
        build(data(tmp_path, str(tmp_path / "raw"), output=str(tmp_path / "raw")))
    with pytest.raises(UserError, match=r"input: no \.json or \.jsonl file in"):
        build(data(tmp_path, str(tmp_path / "raw/sub.json")))


def test_many_rows_of_one_id_are_named_soon(tmp_path: Path) -> None:
    rows = Rows(data(tmp_path, "f"), {})
    record = Record("0", "alpaca", "", "问", "", "答")
    names = [rows._with_own_id(record).id for _ in range(50_000)]
    assert len(set(names)) == 50_000 and names[:2] == ["0", "0-2"]


def test_what_a_killed_process_left_behind_goes(tmp_path: Path, write: Callable) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = write(f"out/.train.json.{dead.pid}.tmp", "王小明")
    mine = write(
        f"out/.train.json.{os.getpid()}0.tmp" if Path(f"/proc/{os.getpid()}0").exists() else "out/keep.tmp", "x"
    )
    build(data(tmp_path, write("rows.json", asked(TOPICS))))
    assert not Path(left).exists() and Path(mine).exists()


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
