from __future__ import annotations

from dataclasses import replace

import pytest

from preprocess import diagnosis, healthai
from preprocess.clean import CHECKS, DROPPED, EXPLAINED, ODDITIES, excerpt, faults, question_key
from preprocess.records import Record

GOOD = Record(
    "1", "medical_o1", "", "头痛三天，要紧吗？", "先问时间，再看有没有发热，最后想颈部是否强直。", "去神经内科门诊。"
)
LONG = "先问起病的时间，再看伴随的症状，然后想最常见的原因，最后排除危险的病。" * 10


@pytest.mark.parametrize(
    "change, names",
    [
        ({}, []),
        ({"question": ""}, ["empty_question"]),
        ({"answer": ""}, ["empty_answer"]),
        ({"think": ""}, ["empty_thought"]),
        ({"think": "", "source": "alpaca"}, []),
        ({"source": "healthai", "answer": ""}, ["unlabelled", "empty_answer"]),
        ({"think": f"<think>{GOOD.think}"}, ["stray_tag"]),
        ({"answer": "去</think>门诊"}, ["stray_tag"]),
        ({"question": "< THINKING >头痛"}, ["stray_tag"]),
        ({"answer": "## Thinking\n想\n## Final Response\n去门诊"}, ["stray_tag"]),
        ({"answer": "去\ufffd门诊"}, ["mojibake"]),
        ({"think": GOOD.think.encode().decode("latin-1")}, ["mojibake"]),
        ({"think": f"{GOOD.think}WBC 12.3×10⁹/L，PaO₂ 60 mmHg，“好”…… café"}, []),
        ({"think": f"{GOOD.think}不过用户提供的答案里没有提到。"}, ["provided_answer"]),
        ({"think": f"{GOOD.think}问题中已经给出答案。"}, ["provided_answer"]),
        ({"think": f"{GOOD.think}根据标准答案里的要点。"}, ["provided_answer"]),
        ({"think": f"{GOOD.think} The provided answer says so."}, ["provided_answer"]),
        ({"think": f"{GOOD.think} The answer that was given is B."}, ["provided_answer"]),
        ({"think": f"{GOOD.think}这里没有标准答案，先给出答案再解释。"}, []),
        ({"think": f"{GOOD.think} What answer should be provided?"}, []),
        (
            {"question": "诊断是偏头痛伴先兆，请到门诊复查吗？", "answer": "偏头痛伴先兆，请到门诊复查"},
            ["answer_in_question"],
        ),
        ({"question": "是颈椎病吗？", "answer": "是颈椎病"}, []),
        ({"answer": GOOD.think}, ["thought_is_answer"]),
        ({"think": "想想。"}, ["short_thought"]),
        ({"think": LONG, "answer": "补铁要吃到血红蛋白正常以后三到六个月，同时查明失血部位并且处理。"}, ["off_answer"]),
        ({"think": LONG, "answer": "先问起病的时间，再看伴随的症状，排除危险的病，最后去门诊复查血常规。"}, []),
        ({"answer": '好。"Response": "去门诊"'}, ["json_residue"]),
        ({"answer": "去<br/>门诊"}, ["html"]),
        ({"answer": "收缩压<140，舒张压>90，p<a"}, []),
        ({"answer": "```json\n{}\n```"}, ["fence"]),
        (
            {"meta": {"oddities": ["child", "thought_unclosed"]}, "answer": ""},
            ["thought_unclosed", "empty_answer", "child"],
        ),
    ],
)
def test_what_is_found(change: dict, names: list[str]) -> None:
    assert faults(replace(GOOD, **change)) == names


def test_what_was_found_is_shown_with_what_stands_around_it() -> None:
    record = replace(
        GOOD,
        think="前面的十五个字以外还有别的话，" * 3 + "不过用户提供的答案里没有提到\n这些，可能需要确认，还有更多的话",
    )
    assert excerpt("provided_answer", record) == "五个字以外还有别的话，不过用户提供的答案里没有提到 这些，可能需要确认"
    assert excerpt("empty_thought", record) == "" == excerpt("html", record)


def test_every_name_that_a_reader_gives_is_explained() -> None:
    labels = diagnosis.label_oddities({"diseases": "", "reason": ""}, {"diseases": "", "reason": ""}, "")
    named = {*labels, *healthai.ODDITIES, *diagnosis.UNUSABLE, "label_list", "echo_differs", "replacement_character"}
    named |= {"not_one_turn", *(f"thought_{fault}" for fault in ("unclosed", "unopened", "leading", "repeated"))}
    assert named == set(ODDITIES)
    assert set(DROPPED) <= set(EXPLAINED) and set(CHECKS) <= set(EXPLAINED)


def test_question_key_ignores_form_not_content() -> None:
    assert question_key("ＣＴ 检查，\n要紧吗？") == question_key("ct检查要紧吗")
    for one, other in [
        ("HBsAg(+)？", "HBsAg(-)？"),
        ("血钾3.5", "血钾35"),
        ("收缩压>140", "收缩压<140"),
        ("10⁹/L", "109/L"),
        ("发热3、4天", "发热34天"),
        ("2 50 mg", "250 mg"),
        ("1:160", "1160"),
        ("1，5 mg", "15 mg"),
    ]:
        assert question_key(one) != question_key(other)
    assert question_key("发热3 、 4天") == question_key("发热３、4天。") and question_key("？") == "？"
