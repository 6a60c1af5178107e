"""What a teacher is asked: prompts filled from files, in a sandbox, and the body of the request."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256

import pytest

from preprocess.ask import Asker, Label, check
from preprocess.given import given, is_local, survey
from preprocess.records import Record
from recipe import UserError
from tests.conftest import ROOT

RECORD = Record("17", "healthai", "", "主诉: 夜间咳嗽3周", "", "", {"fields": {"性别": "女", "主诉": "夜间咳嗽3周"}})
SETTINGS = Label("rows.jsonl", "out", "prompt.j2", "r1", "http://127.0.0.1:8000/v1", temperature=0.5, max_tokens=99)


@pytest.fixture
def asker(write: Callable) -> Callable[..., Asker]:
    def make(prompt: str, response_format: str = "none", examples: Sequence[Record] = (), **settings: object) -> Asker:
        return Asker(replace(SETTINGS, prompt=write("prompt.j2", prompt), **settings), "r1", response_format, examples)

    return make


def test_a_prompt_is_filled_with_the_question_and_a_records_fields(asker: Callable) -> None:
    (question,) = asker("{{ fields['性别'] }}，{{ question }}").questions(RECORD)
    assert (question.id, question.sample) == ("17", 0)
    assert question.asked == {
        "model": "r1",
        "messages": [{"role": "user", "content": "女，主诉: 夜间咳嗽3周"}],
        "temperature": 0.5,
        "top_p": 0.95,
        "max_tokens": 99,
    }


def test_system_prompt_and_answered_examples_come_before(asker: Callable) -> None:
    answer = json.dumps({"reason": "流涕2天", "diseases": "感冒"}, ensure_ascii=False)
    example = Record("1", "diagnosis", "", "主诉: 流涕2天", "", answer, {})
    (question,) = asker("{{ question }}", examples=[example], system="你是医生。").questions(RECORD)
    assert [message["role"] for message in question.asked["messages"]] == ["system", "user", "assistant", "user"]
    assert question.asked["messages"][1]["content"] == "主诉: 流涕2天"
    assert question.asked["messages"][2]["content"] == answer
    with pytest.raises(UserError, match="record 1 has no answer; leave it out"):
        asker("{{ question }}", examples=[replace(example, answer="")])


def test_a_records_own_system_prompt_comes_before_the_recipes(asker: Callable) -> None:
    (question,) = asker("{{ question }}", system="你是医生。").questions(replace(RECORD, system="你是药师。"))
    assert question.asked["messages"][0]["content"] == "你是药师。"


def test_samples_differ_by_number_and_seed(asker: Callable) -> None:
    questions = asker("{{ question }}", n=3, seed=7).questions(RECORD)
    assert [(one.sample, one.asked["seed"]) for one in questions] == [(0, 7), (1, 8), (2, 9)]


def test_a_schema_and_log_probabilities_are_asked_for_where_they_are_wanted(asker: Callable) -> None:
    (question,) = asker("{{ question }}", "json_schema", top_logprobs=20, token_ids=True).questions(RECORD)
    schema = question.asked["response_format"]["json_schema"]["schema"]
    assert list(schema["properties"]) == ["reason", "diseases"] and schema["additionalProperties"] is False
    assert (question.asked["logprobs"], question.asked["top_logprobs"]) == (True, 20)
    assert question.asked["return_tokens_as_token_ids"] is True


def test_a_repair_shows_the_reply_and_its_fault_once(asker: Callable) -> None:
    made = asker("{{ question }}")
    (question,) = made.questions(RECORD)
    reply = {"text": '{"reason": "咳嗽3周"}', "finish_reason": "stop"}
    repair = made.repair_of(question, reply)
    assert repair and repair.asked["messages"][1] == {"role": "assistant", "content": reply["text"]}
    assert "缺少要求的键" in repair.asked["messages"][2]["content"]
    assert made.repair_of(repair, reply) is None
    assert made.repair_of(question, {"text": '{"reason": "咳嗽', "finish_reason": "length"}) is None
    assert (
        "没有写完"
        in made.repair_of(question, {"text": '{"reason": "咳嗽', "finish_reason": "stop"}).asked["messages"][2][
            "content"
        ]
    )
    assert made.repair_of(question, {"text": '{"reason": "咳", "diseases": "感冒"}', "finish_reason": "stop"}) is None
    assert asker("{{ question }}", repair=False).repair_of(question, reply) is None


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("{{ question }", r"prompt\.j2:1: .*mend the prompt"),
        ("{{ 病历 }}", r"prompt\.j2: UndefinedError: '病历' is undefined; known: question, fields"),
        ("{{ fields['身高'] }}", r"prompt\.j2: .*身高.*; known: question, fields"),
        ("{{ question.__class__.__mro__ }}", r"prompt\.j2: .*unsafe"),
        ("{{ 1 / 0 }}", r"prompt\.j2: ZeroDivisionError"),
        ("{{ fields.clear() }}", r"prompt\.j2: .*"),
    ],
)
def test_a_prompt_that_can_not_be_filled_is_one_line(asker: Callable, prompt: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        asker(prompt).questions(RECORD)
    assert "\n" not in str(error.value)


def test_the_prompts_are_known_by_name_and_hash(asker: Callable) -> None:
    made = asker("你好 {{ question }}")
    assert made.prompts[made.settings.prompt] == sha256("你好 {{ question }}".encode()).hexdigest()


TEXT = "性别: 女\n年龄: 34\n主诉: 夜间咳嗽3周\n现病史: 患者姓名：王小明，电话13912345678\n辅助检查: 无诊断:1、哮喘"


def test_no_identifier_and_no_diagnosis_leaves_by_any_door(asker: Callable, write: Callable) -> None:
    """The question, the fields, and the examples."""
    source = write("rows.jsonl", json.dumps({"id": 1, "feature_content": TEXT}, ensure_ascii=False) + "\n")
    for url, local in (("https://api.example.com/v1", False), ("http://127.0.0.1:1/v1", True)):
        settings = replace(SETTINGS, input=source, base_url=url)
        (one,) = given(settings, survey(settings)[1])
        made = asker("{{ question }} {{ fields }}", examples=[replace(one.shown, answer="{}")])
        sent = made.questions(one.shown)[0].asked["messages"]
        for message in (sent[0], sent[2]):
            assert ("王小明" in message["content"]) == local == ("13912345678" in message["content"])
            assert "哮喘" not in message["content"] and message["content"].count("夜间咳嗽3周") == 2
        assert ("王小明" in one.record.question) == local and "哮喘" in one.record.question


def test_records_that_stand_twice_or_are_empty_are_not_asked(write: Callable) -> None:
    rows = [
        '{"id": 1, "question": "发热怎么办？"}',
        '{"id": 2, "question": " "}',
        '{"id": 1, "question": "发热怎么办？"}',
    ]
    settings = replace(SETTINGS, input=write("rows.jsonl", "\n".join(rows)), kind="cot")
    total, repeated = survey(settings)
    assert total == 3 and [one.skip for one in given(settings, repeated)] == ["", "no_text", "duplicate"]


@pytest.mark.parametrize(
    ("rows", "kind", "message"),
    [
        (
            ['{"id": 1, "question": "发热？"}', '{"id": 1, "question": "咳嗽？"}'],
            "cot",
            r":2: id '1' has another text at .*:1;",
        ),
        (['{"id": 1, "question": "发热？"}', "{}"], "cot", r"rows\.jsonl:2: "),
        (
            ['{"id": 1, "question": "发热？"}'],
            "diagnosis",
            r":1: no patient record \(question\); kind: diagnosis is not for it",
        ),
        (['{"id": 1, "feature_content": "主诉: 咳"}'], "cot", r":1: a patient record; kind: cot is not for it"),
    ],
)
def test_what_can_not_be_asked_is_said_before_anything_is(
    write: Callable, rows: list[str], kind: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        survey(replace(SETTINGS, input=write("rows.jsonl", "\n".join(rows)), kind=kind))


def test_the_options_of_a_choice_are_asked(write: Callable) -> None:
    row = {"question": "最可能的诊断？", "options": {"A": "感冒", "B": "肺炎"}}
    settings = replace(SETTINGS, input=write("rows.jsonl", json.dumps(row, ensure_ascii=False)), kind="cot")
    (one,) = given(settings, frozenset())
    assert one.shown.question == "最可能的诊断？\nA. 感冒\nB. 肺炎"


@pytest.mark.parametrize("name", ["diagnosis", "cot", "verify", "repair"])
def test_our_own_prompts_can_be_filled(name: str) -> None:
    made = Asker(replace(SETTINGS, prompt=str(ROOT / f"preprocess/prompts/{name}.j2")), "r1", "none")
    filled = made.template.render(question="主诉: 咳嗽", answer="感冒", fault="缺少要求的键", id="1", fields={})
    assert "咳嗽" in filled or name == "repair"


@pytest.mark.parametrize(
    ("base_url", "local"),
    [
        ("http://127.0.0.1:8000/v1", True),
        ("http://[::1]:8000/v1", True),
        ("http://localhost:11434/v1", True),
        ("https://api.example.com/v1", False),
        (["http://127.0.0.1:8000/v1", "http://10.0.0.7:8000/v1"], False),
        ("http://127.0.0.1.example.com/v1", False),
    ],
)
def test_a_record_may_stay_as_it_is_only_on_this_machine(base_url: str | list[str], local: bool) -> None:
    settings = replace(SETTINGS, base_url=base_url)
    check(settings)
    assert is_local(settings) is local and is_local(replace(settings, local=True))
