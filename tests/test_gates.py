from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from preprocess.gates import EXPLAINED, GATES, Candidate, Gates, evidence, gate

RECORD = "性别: 女\n年龄: 34\n主诉: 夜间咳嗽3周\n现病史: 平卧加重，无发热，支气管激发试验阳性"
VALUE = {"reason": "夜间咳嗽3周，平卧加重，支气管激发试验阳性", "diseases": "咳嗽变异性哮喘"}
GOOD = Candidate("\n".join(VALUE.values()), "先想哮喘和反流。", "stop", VALUE, RECORD)


@pytest.mark.parametrize(
    "change, bounds, name",
    [
        ({}, {}, ""),
        ({"finish_reason": "length"}, {}, "truncated"),
        ({"finish_reason": "content_filter"}, {}, "filtered"),
        ({"think": ""}, {"thought": "required"}, "thought"),
        ({}, {"thought": "none"}, "thought"),
        ({"think": ""}, {}, ""),
        ({"answer": " "}, {}, "empty"),
        ({"answer": "肺炎</think>"}, {}, "stray_tag"),
        ({"answer": "作为一个AI语言模型，我不能诊断。", "value": None}, {}, "refusal"),
        ({"answer": "很抱歉，我无法为您提供具体的诊断，请就医。", "value": None}, {}, "refusal"),
        ({"answer": "I'm sorry, but I can't help with that.", "value": None}, {}, "refusal"),
        ({"answer": "I’m sorry, but I can’t assist with that.", "value": None}, {"language": "en"}, "refusal"),
        ({"answer": "很抱歉，我不能回答这个问题。", "value": None}, {}, "refusal"),
        ({"answer": "对不起，这个问题我没法回答", "value": None}, {}, "refusal"),
        ({"answer": "患者无法提供既往史，考虑哮喘。", "value": None}, {}, ""),
        ({"answer": "根据目前资料无法作出明确诊断，建议完善肺功能检查。", "value": None}, {}, ""),
        ({"answer": "I'm sorry to hear about your cough. It may be asthma.", "value": None}, {"language": "en"}, ""),
        ({"value": None, "fault": "no_object"}, {}, "schema"),
        ({"value": VALUE | {"diseases": "需要进一步检查"}}, {}, "fallback_label"),
        ({"value": VALUE | {"diseases": [" "]}}, {}, "fallback_label"),
        ({"value": VALUE | {"diseases": "-"}}, {}, "fallback_label"),
        ({"value": VALUE | {"diseases": "1. 无"}}, {}, "fallback_label"),
        ({"value": VALUE | {"diseases": "无痛性甲状腺炎"}}, {}, ""),
        ({"answer": "咳嗽\ufffd哮喘"}, {}, "mojibake"),
        ({"think": "先想\x1b[2J哮喘"}, {}, "mojibake"),
        ({"answer": "咳嗽\u202e哮喘"}, {}, "mojibake"),
        ({"answer": "Cough variant asthma, nocturnal cough for three weeks"}, {}, "language"),
        ({"answer": "Cough variant asthma"}, {"language": "en"}, ""),
        ({}, {"language": "en"}, "language"),
        ({"answer": "Бронхиальная астма"}, {"language": "en"}, "language"),
        ({"answer": "Бронхиальная астма"}, {"language": "any"}, ""),
        ({"think": "想" * 100_001}, {}, "length"),
        ({}, {"max_characters": 10}, "length"),
        ({"value": VALUE | {"reason": "双下肢水肿，尿蛋白阳性，血压升高"}}, {}, "evidence"),
        ({"value": VALUE | {"reason": ["夜间咳嗽3周", "平卧加重"]}}, {}, ""),
        ({"finish_reason": "length"}, {"gates": ["schema"]}, ""),
    ],
)
def test_the_first_gate_that_fails_is_named(change: dict[str, Any], bounds: dict[str, Any], name: str) -> None:
    assert gate(replace(GOOD, **change), Gates(**bounds)) == name


def test_evidence_is_the_share_of_the_reasons_pairs_that_stand_in_the_record() -> None:
    assert evidence("夜间咳嗽", "主诉: 夜间咳嗽3周") == 1.0
    assert evidence("夜间发热", "夜间咳嗽") == pytest.approx(1 / 3)
    assert evidence("x", "y") == 1.0 and evidence("血压", "") == 0.0


def test_every_gate_is_explained() -> None:
    assert set(GATES) < set(EXPLAINED)
