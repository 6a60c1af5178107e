from __future__ import annotations

import doctest
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from preprocess import alpaca, delicate, diagnosis, healthai, medical_o1, medical_r1, sharegpt, sources
from preprocess.records import Record, content_id, read_rows
from preprocess.sources import READERS, read_records, recognise
from recipe import UserError
from tests.conftest import ROOT

LABELS = ["性别", "年龄", "主诉", "现病史", "既往史", "个人史", "过敏史", "婚育史", "流行病史", "体格检查", "辅助检查"]
PATIENT = "性别: 女\n年龄: 34\n主诉: 夜间咳嗽3周\n现病史: 平卧加重\n既往史: 体健\n个人史: \n过敏史: \n婚育史: "


def patient(**values: str) -> str:
    """A record of the full layout with these values."""
    values = {"性别": "女", "年龄": "34", "主诉": "夜间咳嗽3周", "现病史": "平卧加重"} | values
    return "\n".join(f"{label}: {values.get(label, '')}" for label in LABELS)


O1 = {"Question": "夜里咳嗽三周？", "Complex_CoT": "躺下加重……", "Response": "先排除哮喘。"}
R1 = {
    "question": "小腿胀痛查什么？",
    "reasoning (reasoning_content)": "久站加重……",
    "response (content)": "先做静脉超声。",
}
DELICATE = {
    "instruction": "试述补铁原则。",
    "question": "医生，铁剂吃多久？",
    "think": "嗯，用户问疗程……\n",
    "answer": "正常后再吃三到六个月。",
    "metrics": {"quality_f1": 0.95},
}
CONVERTED = {
    "instruction": "你是一个医学专家。",
    "input": "医生，铁剂吃多久？",
    "output": "<think>嗯，用户问疗程……\n</think> \n 正常后再吃三到六个月。",
}
UNLABELLED = {"id": 17, "feature_content": PATIENT}
LABELLED = {"id": 17, "diseases": "咳嗽变异性哮喘", "reason": "夜间咳嗽3周。", "feature_content": PATIENT}
BINGLI = {"id": 17, "bingli_json": "诊断：哮喘\n诊断依据：夜间咳嗽。", "feature_content": PATIENT}
WRAPPED = {
    "id": 17,
    "original_content": PATIENT,
    "prompt": "请诊断。",
    "response": '{"reason": "夜间咳嗽。"}',
    "full_text": "请诊断。\n…",
    "structured_result": {"reason": "夜间咳嗽。", "diseases": "哮喘", "feature_content": "咳嗽3周"},
    "reason": "夜间咳嗽。",
    "diseases": "哮喘",
    "feature_content": "咳嗽3周",
}
ALPACA = {"instruction": "判断是否异常。", "input": "血钾 2.9 mmol/L", "output": "<think>低于3.5</think>\n血钾偏低。"}
SHAREGPT = {
    "conversations": [
        {"from": "human", "value": "发热38.2℃，要吃退烧药吗？"},
        {"from": "gpt", "value": "<think>\n看精神\n</think>\n\n先观察。"},
    ]
}
MESSAGES = {
    "messages": [
        {"role": "system", "content": "你是儿科医生。"},
        {"role": "user", "content": "发热38.2℃，要吃退烧药吗？"},
        {"role": "assistant", "content": "先观察。", "reasoning_content": "看精神"},
    ]
}
KINDS = [
    *(("medical_o1", O1), ("medical_r1", R1), ("delicate", DELICATE), ("delicate", CONVERTED)),
    *(("healthai", UNLABELLED), ("diagnosis", LABELLED), ("diagnosis", BINGLI), ("diagnosis", WRAPPED)),
    *(("alpaca", ALPACA), ("sharegpt", SHAREGPT), ("sharegpt", MESSAGES)),
]
EACH_KIND = pytest.mark.parametrize("kind, row", KINDS, ids=[f"{kind}-{i}" for i, (kind, _) in enumerate(KINDS)])


def odd(record: Record) -> list[str]:
    return record.meta.get("oddities", [])


def label(**changes: Any) -> Record:
    return diagnosis.to_record(LABELLED | changes, "p")


# --- kinds


@EACH_KIND
def test_the_kind_shows_in_the_keys_whatever_their_order_and_company(kind: str, row: dict) -> None:
    assert recognise(row, "p") == recognise(dict(reversed(row.items())), "p") == kind
    if row is not CONVERTED:
        assert recognise(row | {"id": 1, "score": 0.5}, "p") == kind


def test_medical_o1_with_the_exam_keys_is_medical_o1() -> None:
    exam = {"question": "?", "options": {"A": "甲"}, "answer_idx": "A", "answer": "甲", "Ground-True Answer": "甲"}
    assert recognise(exam | O1, "p") == "medical_o1"
    assert medical_o1.to_record(exam | O1, "p").meta == exam


@pytest.mark.parametrize("output", ["<think>\n想\n</think>\n\n答", "答", "<think>想</think>\n答", None])
def test_alpaca_keys_in_another_spelling_are_alpaca(output: object) -> None:
    assert recognise(CONVERTED | {"output": output}, "p") == "alpaca"


@pytest.mark.parametrize("row", [{"text": "…"}, {}, {"Question": "?", "Response": "!"}, {"prompt": "?", "chosen": "!"}])
def test_an_unknown_kind_is_refused_with_the_keys_seen_and_the_kinds_known(row: dict) -> None:
    with pytest.raises(UserError, match=r"^p: unknown kind of row with the keys ") as error:
        recognise(row, "p")
    assert all(repr(key) in str(error.value) for key in row) and all(name in str(error.value) for name in READERS)
    assert "\n" not in str(error.value)


@EACH_KIND
def test_a_file_is_read_by_its_kind(write: Callable, kind: str, row: dict) -> None:
    path = write("rows.jsonl", json.dumps(row) + "\n" + json.dumps(row, ensure_ascii=False))
    (first, one), (second, two) = read_records(path)
    assert (first, second) == (f"{path}:1", f"{path}:2") and one == two == READERS[kind].to_record(row, "p")
    assert one.source == kind and list(read_records(path, kind)) == [(first, one), (second, two)]


def test_a_file_of_two_kinds_names_the_first_row_that_differs(write: Callable) -> None:
    path = write("rows.json", [UNLABELLED, UNLABELLED, LABELLED, ALPACA])
    with pytest.raises(
        UserError, match=r"item 3: a row of kind diagnosis \(keys 'id'.*in a file of kind healthai; keep"
    ):
        list(read_records(path))


def test_a_row_that_lost_a_key_is_named_with_that_key(write: Callable) -> None:
    with pytest.raises(UserError, match=r"item 2: key 'Complex_CoT' is missing; the row has 'Question', 'Response'"):
        list(read_records(write("rows.json", [O1, {key: O1[key] for key in ("Question", "Response")}])))


def test_a_named_kind_is_not_guessed(write: Callable) -> None:
    path = write("rows.json", [LABELLED, UNLABELLED])
    assert [record.source for _, record in read_records(path, "healthai")] == ["healthai"] * 2
    assert [r.system for _, r in read_records(write("a.json", [CONVERTED]), "alpaca")] == [""]
    with pytest.raises(UserError, match="source: unknown kind 'x'; known: medical_o1, "):
        list(read_records(path, "x"))


def test_the_licences_are_stated_where_they_are_known() -> None:
    assert {name: reader.licence for name, reader in READERS.items() if reader.licence} == {
        "medical_o1": "Apache-2.0",
        "medical_r1": "Apache-2.0",
    }
    assert all(reader.what and reader.shapes for reader in READERS.values())


# --- questions, thoughts and answers


def test_medical_o1_and_medical_r1() -> None:
    record = medical_r1.to_record(R1 | {"lang": "zh"}, "p")
    assert record == Record(
        content_id(*R1.values()), "medical_r1", "", *(R1[key] for key in medical_r1.KEYS), {"lang": "zh"}
    )
    assert medical_o1.to_record(O1, "p") == Record(content_id(*O1.values()), "medical_o1", "", *O1.values(), {})


def test_delicates_instruction_is_no_system_prompt() -> None:
    record = delicate.to_record(DELICATE, "p")
    assert (record.system, record.question) == ("", "医生，铁剂吃多久？")
    assert (record.think, record.answer) == ("嗯，用户问疗程……", "正常后再吃三到六个月。")
    assert record.meta == {"instruction": "试述补铁原则。", "metrics": {"quality_f1": 0.95}}


def test_delicate_converted_is_the_same_record_with_a_system_prompt() -> None:
    raw, converted = delicate.to_record(DELICATE, "p"), delicate.to_record(CONVERTED, "p")
    assert (converted.id, converted.think, converted.answer) == (raw.id, raw.think, raw.answer)
    assert converted.system == "你是一个医学专家。" and converted.meta == {}


@pytest.mark.parametrize("row, key", [(DELICATE, "think"), (CONVERTED, "output")])
def test_a_thought_that_cites_a_provided_answer_is_flagged(row: dict, key: str) -> None:
    record = delicate.to_record(row | {key: row[key].replace("疗程", "疗程，用户提供的答案说")}, "p")
    assert odd(record) == ["provided_answer"] and record.answer


def test_an_alpaca_row() -> None:
    record = alpaca.to_record(ALPACA | {"system": "你是检验科医生。", "history": [], "tag": 1}, "p")
    assert record.question == "判断是否异常。\n血钾 2.9 mmol/L" and record.system == "你是检验科医生。"
    assert (record.think, record.answer, record.meta) == ("低于3.5", "血钾偏低。", {"history": [], "tag": 1})


@pytest.mark.parametrize("empty", [{}, {"instruction": ""}, {"instruction": None, "system": None}])
def test_medcots_rows_have_no_instruction(empty: dict) -> None:
    record = alpaca.to_record({"input": "头痛？", "output": "<think>\n想\n</think>\n答"} | empty, "p")
    assert (record.system, record.question, record.think, record.answer) == ("", "头痛？", "想", "答")


@pytest.mark.parametrize(
    "output, think, answer, oddities",
    [
        ("答", "", "答", []),
        ("<think>想</think>答", "想", "答", []),
        ("<THINKING>想</THINKING> \n 答", "想", "答", []),
        ("## Thinking\n想\n## Final Response\n答", "想", "答", []),
        ("想</think>答", "想", "答", ["thought_unopened"]),
        ("<think>想", "想", "", ["thought_unclosed"]),
        ("先说<think>想</think>答", "想", "先说\n\n答", ["thought_leading"]),
        ("<think>想</think>答<think>再想</think>又答", "想", "答<think>再想</think>又答", ["thought_repeated"]),
    ],
)
def test_every_spelling_of_a_thought(output: str, think: str, answer: str, oddities: list[str]) -> None:
    one = alpaca.to_record({"instruction": "问", "output": output}, "p")
    turns = [{"from": "human", "value": "问"}, {"from": "gpt", "value": output}]
    two = sharegpt.to_record({"conversations": turns}, "p")
    for record in (one, two):
        assert (record.think, record.answer, odd(record)) == (think, answer, oddities)


@pytest.mark.parametrize("key", ["think", "reasoning_content", "reasoning"])
def test_a_thought_under_a_key_of_its_own(key: str) -> None:
    for record in (
        alpaca.to_record({"instruction": "问", "output": "答", key: " 想\n"}, "p"),
        sharegpt.to_record({"messages": [turn("user", "问"), turn("assistant", "答") | {key: "想"}]}, "p"),
    ):
        assert (record.think, record.answer, record.meta) == ("想", "答", {})
    assert label(**{key: "先看时间。"}).think == "先看时间。" and key not in label(**{key: "先看时间。"}).meta


def turn(role: str, content: object) -> dict[str, object]:
    return {"role": role, "content": content}


def test_openai_messages_with_a_system_turn() -> None:
    record = sharegpt.to_record(MESSAGES, "p")
    assert (record.system, record.question) == ("你是儿科医生。", "发热38.2℃，要吃退烧药吗？")
    assert (record.think, record.answer, record.meta) == ("看精神", "先观察。", {})
    assert sharegpt.to_record(MESSAGES | {"system": "用中文。"}, "p").system == "用中文。\n你是儿科医生。"


@pytest.mark.parametrize(
    "roles",
    [
        ["user", "assistant"] * 2,
        ["user"],
        ["assistant"],
        [],
        ["user", "tool", "assistant"],
        ["user", "user"],
        ["system"],
    ],
)
def test_what_is_not_one_turn_has_no_answer_and_says_why(roles: list[str]) -> None:
    row = {"messages": [turn(role, f"话{i}") for i, role in enumerate(roles)], "id": 3}
    record = sharegpt.to_record(row, "p")
    assert odd(record) == ["not_one_turn"] and record.answer == record.think == ""
    assert record.meta["messages"] == row["messages"] and record.id == "3"


def test_alpaca_with_a_history_is_not_one_turn() -> None:
    row = ALPACA | {"history": [["问", "答"]]}
    record = alpaca.to_record(row, "p")
    assert record.meta == row | {"oddities": ["not_one_turn"]} and record.answer == ""


# --- patient records


@pytest.mark.parametrize("labels", [LABELS, LABELS[:8], [*LABELS[:8], "体格检查"]])
def test_the_three_layouts(labels: list[str]) -> None:
    text = "\n".join(f"{name}: {name}的值" for name in labels)
    assert healthai.split_fields(text) == {name: f"{name}的值" for name in labels}
    assert "other_layout" not in healthai.describe(text)[1]


def test_a_value_spans_lines_and_its_lines_may_look_like_labels() -> None:
    check = "外阴: 已婚式\n宫颈: 光滑\n附件: 未及包块\n\n心电图：窦性心律"
    record = healthai.to_record({"id": 1, "feature_content": patient(体格检查=check, 辅助检查="无")}, "p")
    assert record.meta["fields"]["体格检查"] == check and record.meta["fields"]["辅助检查"] == "无"
    assert odd(record) == ["several_lines", "inner_label"] and list(record.meta["fields"]) == LABELS


def test_full_width_colons_and_missing_spaces_part_labels_too() -> None:
    assert healthai.split_fields("性别：女\n年龄:34\n主诉： 咳嗽") == {"性别": "女", "年龄": "34", "主诉": "咳嗽"}


def test_a_known_label_out_of_its_order_is_a_value() -> None:
    text = patient(体格检查="腹软\n主诉: 同前")
    fields, oddities = healthai.describe(text)
    assert (fields["主诉"], fields["体格检查"]) == ("夜间咳嗽3周", "腹软\n主诉: 同前")
    assert "repeated_label" in oddities and "other_layout" not in oddities


@pytest.mark.parametrize("text", ["咳嗽三周，夜间加重。", "主诉: 咳嗽", PATIENT.replace("年龄: 34\n", "")])
def test_another_layout_is_said_to_be_one(text: str) -> None:
    assert "other_layout" in healthai.describe(text)[1]


@pytest.mark.parametrize(
    "values, expected",
    [
        ({}, []),
        ({"性别": "男性"}, ["sex_spelled_out"]),
        ({"性别": "女性 "}, ["sex_spelled_out", "trailing_space"]),
        ({"性别": "未知"}, ["sex_unknown"]),
        ({"年龄": "-1971"}, ["negative_age"]),
        ({"年龄": "0"}, ["age_zero", "child"]),
        ({"年龄": "13"}, ["child"]),
        ({"年龄": "14"}, []),
        ({"年龄": "3岁"}, ["child"]),
        ({"年龄": "5月"}, ["age_unknown"]),
        ({"年龄": "9" * 5000}, ["age_unknown"]),
        ({"既往史": "-"}, ["placeholder"]),
        ({"既往史": "。"}, ["placeholder"]),
        ({"主诉": "咳嗽持续时间时间单位"}, ["placeholder"]),
        ({"既往史": "无"}, []),
        ({"辅助检查": "WBC（-）"}, []),
        ({"主诉": "[预问诊主诉]"}, ["form_text"]),
        ({"体格检查": "WBC 12.1[H]"}, []),
        ({"现病史": "咳嗽 "}, ["trailing_space"]),
        ({"既往史": "否认近14天内与新型冠状病毒感染者有接触史"}, ["covid_screening"]),
        ({"既往史": "近两周无境外旅居史"}, ["covid_screening"]),
        ({"流行病史": "无聚集性发病"}, ["covid_screening"]),
        ({"个人史": "久居本地，无疫区、疫情、疫水接触史"}, []),
        ({"个人史": "有新型冠状病毒疫苗接种史，共3针"}, []),
        ({"现病史": "新冠感染后咳嗽半月"}, []),
        ({"辅助检查": "无诊断:1、哮喘"}, ["diagnosis_tail"]),
        ({"体格检查": "双肺清。诊断:1、哮喘2、鼻炎"}, ["diagnosis_tail"]),
        ({"辅助检查": "常规心电诊断:1.窦性心律"}, []),
        ({"现病史": "外院诊断：鼻炎"}, []),
    ],
)
def test_oddities_of_a_patient_record(values: dict, expected: list[str]) -> None:
    text = patient(**values)
    record = healthai.to_record({"id": "a", "feature_content": text}, "p")
    assert odd(record) == expected and record.question == text.strip()
    assert (record.think, record.answer, record.system) == ("", "", "")
    assert ("oddities" in record.meta) == bool(expected)


@pytest.mark.parametrize(
    "tail, names",
    [
        ("诊断:1、哮喘", ["哮喘"]),
        ("诊断:1、2型糖尿病2、高血压", ["2型糖尿病", "高血压"]),
        ("诊断:1、高血压病3级2、L4、5椎间盘突出；3、失眠。", ["高血压病3级", "L4、5椎间盘突出", "失眠"]),
        (
            "诊断:" + "".join(f"{i}、病{chr(0x7532 + i)}" for i in range(1, 13)),
            [f"病{chr(0x7532 + i)}" for i in range(1, 13)],
        ),
        ("诊断:1、脑梗塞诊断:1、糖尿病2、高血压", ["脑梗塞", "糖尿病", "高血压"]),
        ("", []),
    ],
)
def test_the_diagnoses_at_the_tail_can_be_cut(tail: str, names: list[str]) -> None:
    text = patient(体格检查="双肺清。" + tail)
    assert healthai.cut_diagnosis(text) == (patient(体格检查="双肺清。"), names)


# --- labelled records


def test_a_labelled_record() -> None:
    record = label()
    assert record.id == "17" and record.question == PATIENT.strip() and record.think == ""
    assert record.answer == '{"reason": "夜间咳嗽3周。", "diseases": "咳嗽变异性哮喘"}'
    assert record.meta["reason"] == "夜间咳嗽3周。" and record.meta["fields"]["主诉"] == "夜间咳嗽3周"
    assert "feature_content" not in record.meta and odd(record) == []


def test_an_answer_is_json_whatever_the_reason_holds() -> None:
    reason = '他说"痛"，\t见 C:\\new 与\n{"a": 1}'
    record = label(reason=reason)
    assert list(json.loads(record.answer).items()) == [("reason", reason), ("diseases", "咳嗽变异性哮喘")]


def test_the_two_characters_backslash_n_become_a_line_break() -> None:
    record = label(reason=r"1. 咳嗽；\n2. pH 7.2；\r\n3. 系数$\nu$与$\neq$")
    assert json.loads(record.answer)["reason"] == "1. 咳嗽；\n2. pH 7.2；\n3. 系数$\\nu$与$\\neq$"
    assert odd(record) == ["literal_newline"] and record.meta["reason"] == json.loads(record.answer)["reason"]
    assert odd(label(reason="1. 咳嗽；\n2. 夜间。")) == []


@pytest.mark.parametrize(
    "changes, oddity",
    [
        ({"diseases": "", "reason": ""}, "no_label"),
        ({"diseases": None, "reason": " "}, "no_label"),
        ({"diseases": [], "reason": []}, "no_label"),
        ({"diseases": "", "reason": '```json\n{"diseases": "哮喘", "reason": "夜间咳\\n嗽"}\n```'}, "parse_failure"),
        ({"diseases": "需要进一步检查", "reason": "回复全文"}, "fallback_label"),
        ({"diseases": "解析失败", "reason": "回复全文"}, "fallback_label"),
        ({"diseases": {"主": "哮喘"}, "reason": "夜间咳嗽"}, "unreadable_label"),
        ({"diseases": "哮喘", "reason": 3}, "unreadable_label"),
        ({"diseases": [{"name": "哮喘"}], "reason": "夜间咳嗽"}, "unreadable_label"),
    ],
)
def test_a_label_that_cannot_be_learned_from_is_no_answer(changes: dict, oddity: str) -> None:
    record = label(**changes)
    assert oddity in odd(record) and oddity in diagnosis.UNUSABLE and record.answer == ""
    assert len(set(odd(record)) & set(diagnosis.UNUSABLE)) == 1
    assert {key: record.meta[key] for key in changes} == changes


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"diseases": ["哮喘", " 鼻炎 ", ""]}, ["label_list"]),
        ({"reason": ["夜间咳嗽", "平卧加重"]}, ["label_list"]),
        ({"reason": ""}, ["no_reason"]),
        ({"reason": "平卧加重。\n\ndiseases: 鼻炎\nreason: 咳嗽"}, ["runaway_reason"]),
        ({"reason": "**diseases**：鼻炎"}, ["runaway_reason"]),
        ({"reason": "夜间咳嗽平卧时加重。\n" * 3}, ["runaway_reason"]),
        ({"reason": "夜间咳嗽平卧时加重。\n" * 2}, []),
        ({"reason": "�者夜间咳嗽"}, ["replacement_character"]),
        ({"diseases": "哮�"}, ["replacement_character"]),
        ({"diseases": "女性，支气管哮喘"}, ["sex_prefix"]),
        ({"diseases": "男 睾丸炎"}, ["sex_prefix"]),
        ({"diseases": "女性不孕症"}, []),
        ({"diseases": "哮喘，鼻炎"}, ["comma_joined"]),
        ({"diseases": "哮喘、鼻炎"}, ["comma_joined"]),
        ({"diseases": "1. 哮喘；2. 高血压（1级，低危）；3、失眠"}, []),
        ({"diseases": "哮喘\\n鼻炎"}, ["literal_newline"]),
        ({"diseases": "气管哮湍", "reason": "考虑气管哮喘"}, ["misspelt_disease"]),
        ({"diseases": "急性支气管炎", "reason": "不是慢性支气管炎"}, []),
        ({"diseases": "2型糖尿病", "reason": "不是1型糖尿病"}, []),
        ({"diseases": "哮湍", "reason": "哮喘"}, []),
    ],
)
def test_oddities_of_a_label(changes: dict, expected: list[str]) -> None:
    record = label(**changes)
    assert odd(record) == expected and record.answer
    assert isinstance(record.meta["reason"], str) and isinstance(record.meta["diseases"], str)


def test_a_list_of_diseases_becomes_one_string() -> None:
    assert json.loads(label(diseases=["哮喘", " 鼻炎 ", ""]).answer)["diseases"] == "哮喘；鼻炎"


def test_the_oddities_of_record_and_label_stand_together() -> None:
    record = label(diseases="女性，哮喘", feature_content=patient(年龄="-1", 辅助检查="诊断:1、哮喘"))
    assert odd(record) == ["sex_prefix", "negative_age", "diagnosis_tail"]


def test_a_wrapped_record_is_about_the_patient_not_about_the_echo() -> None:
    record = diagnosis.to_record(WRAPPED, "p")
    assert record.question == PATIENT.strip() and odd(record) == ["echo_differs"]
    assert record.answer == '{"reason": "夜间咳嗽。", "diseases": "哮喘"}'
    assert record.meta["feature_content"] == "咳嗽3周" and record.meta["prompt"] == "请诊断。"
    assert odd(diagnosis.to_record(WRAPPED | {"feature_content": PATIENT + " "}, "p")) == []


@pytest.mark.parametrize("key", ["response", "raw_output"])
def test_the_teachers_reasoning_is_the_thought(key: str) -> None:
    reply = '<think>\n平卧加重……\n</think>\n{"reason": "夜间咳嗽。"}'
    record = label(**{key: reply})
    assert record.think == "平卧加重……" and record.meta[key] == reply and odd(record) == []


@pytest.mark.parametrize(
    "value",
    [
        "诊断：哮喘\n诊断依据：夜间咳嗽。",
        "**诊断**：哮喘\n\n**诊断依据**：\n夜间咳嗽。",
        '{"诊断": "哮喘", "诊断依据": "夜间咳嗽。"}',
        {"diseases": "哮喘", "reason": "夜间咳嗽。"},
        '{"reason": ["夜间咳嗽。"], "diseases": ["哮喘"]}',
    ],
)
def test_the_bingli_json_form(value: object) -> None:
    record = diagnosis.to_record(BINGLI | {"bingli_json": value}, "p")
    assert record.answer == '{"reason": "夜间咳嗽。", "diseases": "哮喘"}' and record.meta["bingli_json"] == value


@pytest.mark.parametrize(
    "value", ["患者可能是哮喘。", "诊断：哮喘", "[1]", "{}", {"病名": "哮喘"}, "诊断依据：咳嗽。诊断：哮喘"]
)
def test_a_bingli_json_that_says_nothing_readable_is_a_parse_failure(value: object) -> None:
    record = diagnosis.to_record(BINGLI | {"bingli_json": value}, "p")
    assert odd(record)[0] == "parse_failure" and record.answer == "" and record.meta["bingli_json"] == value


# --- bad rows, and rows that are only nasty


@pytest.mark.parametrize(
    "kind, row, key",
    [
        *[("medical_o1", O1, key) for key in O1],
        *[("medical_r1", R1, key) for key in R1],
        *[("delicate", DELICATE, key) for key in ("question", "think", "answer")],
        *[("delicate", CONVERTED, key) for key in ("input", "output")],
        *[("healthai", UNLABELLED, "feature_content"), ("diagnosis", LABELLED, "feature_content")],
        *[
            ("diagnosis", WRAPPED, "original_content"),
            ("diagnosis", BINGLI, "bingli_json"),
            ("alpaca", ALPACA, "output"),
        ],
        *[("sharegpt", SHAREGPT, "conversations"), ("sharegpt", MESSAGES, "messages")],
    ],
)
@pytest.mark.parametrize("value", [7, None, True, 1.5])
def test_a_text_that_is_none_is_named_with_its_place_and_key(kind: str, row: dict, key: str, value: object) -> None:
    with pytest.raises(UserError, match=r"^rows\.json: item 3: ") as error:
        READERS[kind].to_record(row | {key: value}, "rows.json: item 3")
    assert key in str(error.value) and f"got {type(value).__name__}" in str(error.value)


@pytest.mark.parametrize(
    "kind, row, message",
    [
        ("healthai", {"id": 1}, "key 'feature_content' is missing; the row has 'id'"),
        ("diagnosis", {"id": 1, "diseases": "哮喘", "reason": "咳嗽"}, "key 'feature_content' is missing"),
        (
            "diagnosis",
            {"feature_content": PATIENT, "diseases": "哮喘"},
            "key 'reason' is missing; the row has 'feature_",
        ),
        ("delicate", {"question": "问", "think": "想"}, "key 'answer' is missing"),
        ("alpaca", {"output": "答"}, "key 'instruction' is missing; the row has 'output'"),
        ("alpaca", {"instruction": ["问"], "output": "答"}, "instruction must be a string, got list"),
        ("alpaca", {"instruction": "问", "output": "答", "reasoning": 7}, "reasoning must be a string, got int"),
        ("sharegpt", {"id": 1}, "expected a list of turns under 'conversations' or 'messages'; the row has 'id'"),
    ],
)
def test_a_missing_key_is_named(kind: str, row: dict, message: str) -> None:
    with pytest.raises(UserError) as error:
        READERS[kind].to_record(row, "rows.json: item 3")
    assert str(error.value).startswith("rows.json: item 3: ") and message in str(error.value)


@pytest.mark.parametrize(
    "turns, message",
    [
        ([7], "conversations, turn 1: expected an object, got int"),
        ([{"value": "问"}], "conversations, turn 1: key 'from' is missing"),
        ([{"from": "human", "value": "问"}, {"from": "gpt", "value": 7}], "turn 2: value must be a string, got int"),
    ],
)
def test_a_bad_turn_is_named(turns: list, message: str) -> None:
    with pytest.raises(UserError, match=f"^p: .*{message}"):
        sharegpt.to_record({"conversations": turns}, "p")


NASTY = {
    "control characters": "咳嗽\x00\x07\x1b[31m\x7f\u200b\u202e三周",
    "HTML": "<script>alert('咳')</script><b>发热</b>&nbsp;<br/>",
    "fences": '```json\n{"diseases": "哮喘"}\n```',
    "nested tags": "<think><think>想</think></think><THINK>又想</think>",
    "only tags": "<think></think>",
    "a long thought": "咳" * 350_000,
    "a long line of breaks": "\n" * 300_000,
    "a long line of digits": "1" * 300_000,
    "a long line of headings": "诊断:" * 100_000,
    "a long line of brackets": "（[" * 100_000,
    "a long line of rules": "-\n" * 100_000,
    "a long line of weeks": "近14天内新冠" * 50_000,
    "a long line of literal breaks": "\\n" * 100_000,
}


def planted(value: Any, text: str) -> Any:
    """The row with `text` in the middle of every string but the names of roles."""
    if isinstance(value, dict):
        return {key: item if key in ("from", "role") else planted(item, text) for key, item in value.items()}
    if isinstance(value, list):
        return [planted(item, text) for item in value]
    return f"{value[:2]}{text}{value[2:]}" if isinstance(value, str) else value


@pytest.mark.parametrize("nasty", NASTY)
@EACH_KIND
def test_a_nasty_text_is_read_whole_and_soon(kind: str, row: dict, nasty: str) -> None:
    text, began = NASTY[nasty], time.process_time()
    record = READERS[kind].to_record(planted(row, text), "p")
    assert time.process_time() - began < 2
    assert text in record.question
    if kind in ("medical_o1", "medical_r1") or row is DELICATE:
        assert text in record.think and text in record.answer
    if kind == "diagnosis" and row is not BINGLI and "literal" not in nasty:
        assert text in json.loads(record.answer)["reason"]


# --- what the repository itself holds


@pytest.mark.parametrize("module", [sources, healthai, diagnosis])
def test_the_examples_in_the_docstrings(module: Any) -> None:
    assert doctest.testmod(module).failed == 0 < doctest.testmod(module).attempted


@pytest.mark.parametrize(
    "name, kind",
    [
        ("medical_o1_sft.json", "medical_o1"),
        ("camp_data_step_1_without_answer.jsonl", "healthai"),
        ("train_labeled.jsonl", "diagnosis"),
    ],
)
def test_the_samples_are_read_whole(name: str, kind: str) -> None:
    path = str(ROOT / "data/samples" / name)
    records = [record for _, record in read_records(path)]
    assert {record.source for record in records} == {kind} and len(records) == len(list(read_rows(path)))
    assert not any("other_layout" in odd(record) for record in records)


# --- the real files: each record accounted for, each oddity of formats.md counted a second way

REAL = pytest.mark.skipif("REAL_DATA" not in os.environ, reason="REAL_DATA=dir with the public files is not set")


def real(name: str) -> tuple[list[dict], list[Record], Counter[str]]:
    """The rows as json alone reads them, the Records, and how often each oddity was found."""
    (path,) = Path(os.environ["REAL_DATA"]).glob(name)
    text = path.read_text(encoding="utf-8")
    rows = json.loads(text) if text[0] == "[" else [json.loads(line) for line in text.splitlines()]
    records = [record for _, record in read_records(str(path))]
    assert len(records) == len(rows)
    return rows, records, Counter(name for record in records for name in odd(record))


@REAL
def test_real_medical_o1() -> None:
    rows, records, found = real("medical_o1_sft.json")
    assert not found and {record.source for record in records} == {"medical_o1"}
    for row, record in zip(rows, records, strict=True):
        assert [record.question, record.think, record.answer] == [row[key].strip() for key in medical_o1.KEYS]
        assert row == record.meta | {key: row[key] for key in medical_o1.KEYS} and len(record.meta) == 6
    assert len({record.id for record in records}) == len(rows)


@REAL
def test_real_delicate() -> None:
    rows, records, found = real("delicate_medical_r1_val.jsonl")
    assert found == {"provided_answer": sum("提供的答案" in row["think"] for row in rows)} and found.total() > 0
    for row, record in zip(rows, records, strict=True):
        texts = [row[key].strip() for key in delicate.KEYS]
        assert [record.system, record.question, record.think, record.answer] == ["", *texts]
        assert record.meta["instruction"] == row["instruction"] != record.question
        converted = {"instruction": "你是医学专家。", "input": row["question"]}
        converted["output"] = f"<think>{row['think']}</think> \n {row['answer']}"
        again = delicate.to_record(converted, "p")
        assert recognise(converted, "p") == "delicate" and again.system == "你是医学专家。"
        assert (again.id, again.think, again.answer) == (record.id, record.think, record.answer)


@REAL
def test_real_patient_records() -> None:
    rows, records, found = real("*camp_data_step_1_without_answer.jsonl")
    texts = [row["feature_content"] for row in rows]
    for row, record in zip(rows, records, strict=True):
        assert (record.id, record.meta["id"]) == (str(row["id"]), row["id"])
        assert record.question == row["feature_content"].strip() and not record.answer
        rebuilt = "\n".join(f"{name}: {value}" for name, value in record.meta["fields"].items())
        assert re.sub(r"\s+", "", rebuilt) == re.sub(r"\s+", "", row["feature_content"])
    layouts = Counter(len(record.meta["fields"]) for record in records)
    tops = [[line.split(":")[0] for line in text.split("\n") if line.split(":")[0] in LABELS] for text in texts]
    assert layouts == Counter(map(len, tops)) and set(layouts) == {11, 8, 9}

    def count(pattern: str) -> int:
        return sum(re.search(pattern, text) is not None for text in texts)

    known = "|".join(LABELS)
    parts = [re.split(rf"(?m)^(?:{known}): ", text) for text in texts]
    screened = found.pop("covid_screening")
    ages = [int(text.split("\n")[1].removeprefix("年龄: ")) for text in texts]
    assert found == {
        "several_lines": sum(any("\n" in value.strip() for value in values) for values in parts),
        "inner_label": count(rf"\n(?!{known})[一-鿿]{{1,6}}[:：]"),
        "sex_spelled_out": count("^性别: [男女]性"),
        "negative_age": sum(age < 0 for age in ages),
        "age_zero": ages.count(0),
        "child": sum(0 <= age <= 13 for age in ages),
        "placeholder": count(r"持续时间时间单位|(?m:: *[-。/|·、（—）]+ *$)"),
        "form_text": count(
            r"\[预问诊|\[其他\]|\[有无\]|\[既往病史\]|\[流行病学史\]|\[辅助检查结果\]|\[体温\]|\[收缩压\]"
        ),
        "trailing_space": sum(any(re.search(r" \n*\Z", value) for value in values) for values in parts),
        "diagnosis_tail": count("诊断:1、"),
    }
    # Screening has no sharp edge (formats.md counts 43 % by a rule of its own): all that is, nothing that can't be.
    assert 0.40 < screened / len(rows) < 0.46
    for record in records:
        flagged = "covid_screening" in odd(record)
        assert flagged or not re.search(
            "旅行史或居住史|有病例报告社区|聚集性发病|感染者[^，。\n]*接触史", record.question
        )
        assert not flagged or re.search("新冠|冠状|风险|境外|海外|天内|疫区|疫情|聚集|密切接触", record.question)
    cut = [healthai.cut_diagnosis(text) for text in texts]
    assert sum(bool(names) for _, names in cut) == found["diagnosis_tail"] and not any(
        "诊断:1、" in text for text, _ in cut
    )
    assert (
        Counter(len(names) for _, names in cut)[1] > found["diagnosis_tail"] / 2 and max(len(n) for _, n in cut) == 12
    )
    assert len(texts) - len(set(texts)) == len(records) - len({record.question for record in records}) > 0


@REAL
def test_real_teacher_labels() -> None:
    rows, records, found = real("teacher_labelled_real.jsonl")
    by_name = {name: [record.id for record in records if name in odd(record)] for name in found}
    assert (
        by_name["no_label"] == [str(row["id"]) for row in rows if not row["diseases"] + row["reason"]] == ["22", "50"]
    )
    looping = [str(row["id"]) for row in rows if row["reason"].count("diseases:") > 1]
    assert by_name["runaway_reason"] == looping == ["6", "31", "56", "58"]
    lost = [str(row["id"]) for row in rows if "\ufffd" in row["reason"] + row["diseases"]]
    assert by_name["replacement_character"] == lost == ["8", "35", "43", "57"]
    assert by_name["sex_prefix"] == ["44"] and by_name["comma_joined"] == ["36"]
    assert by_name["misspelt_disease"] == ["12", "14", "52"]
    assert "parse_failure" not in found and "literal_newline" not in found
    for row, record in zip(rows, records, strict=True):
        assert record.question == row["feature_content"].strip() and record.think == ""
        if str(row["id"]) in by_name["no_label"]:
            assert record.answer == ""
        else:
            assert json.loads(record.answer) == {"reason": row["reason"].strip(), "diseases": row["diseases"].strip()}


@REAL
def test_real_example_output() -> None:
    rows, records, found = real("*example_output.jsonl")
    assert [record.id for record in records] == [str(row["id"]) for row in rows] == ["10001"] * 3
    assert found["literal_newline"] == sum("\\n" in row["reason"] for row in rows) == 2
    for row, record in zip(rows, records, strict=True):
        reason, diseases = json.loads(record.answer).values()
        assert (reason, diseases) == (row["reason"].replace("\\n", "\n"), row["diseases"])
