"""What a teacher is asked: prompts filled from files, in a sandbox, and the body of the request."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256

import pytest

from preprocess.ask import Asker, Label, check, is_local
from preprocess.records import Record
from recipe import UserError
from tests.conftest import ROOT

RECORD = Record("17", "healthai", "", "主诉: 夜间咳嗽3周", "", "", {"fields": {"性别": "女", "主诉": "夜间咳嗽3周"}})
SETTINGS = Label("rows.jsonl", "out", "prompt.j2", "r1", "http://127.0.0.1:8000/v1", temperature=0.5, max_tokens=99)


@pytest.fixture
def asker(write: Callable) -> Callable[..., Asker]:
    def make(prompt: str, response_format: str = "none", **settings: object) -> Asker:
        return Asker(replace(SETTINGS, prompt=write("prompt.j2", prompt), **settings), "r1", response_format)

    return make


def test_a_prompt_is_filled_with_the_question_and_a_records_fields(asker: Callable) -> None:
    (question,) = asker("{{ fields['性别'] }}，{{ question }}（{{ id }}）").questions(RECORD)
    assert (question.id, question.sample) == ("17", 0)
    assert question.asked == {
        "model": "r1",
        "messages": [{"role": "user", "content": "女，主诉: 夜间咳嗽3周（17）"}],
        "temperature": 0.5,
        "top_p": 0.95,
        "max_tokens": 99,
    }


def test_system_prompt_and_answered_examples_come_before(asker: Callable, write: Callable) -> None:
    row = {"id": 1, "diseases": "感冒", "reason": "流涕2天", "feature_content": "主诉: 流涕2天"}
    examples = write("examples.jsonl", json.dumps(row, ensure_ascii=False) + "\n")
    (question,) = asker("{{ question }}", system="你是医生。", examples=examples).questions(RECORD)
    assert [message["role"] for message in question.asked["messages"]] == ["system", "user", "assistant", "user"]
    assert question.asked["messages"][1]["content"] == "主诉: 流涕2天"
    assert json.loads(question.asked["messages"][2]["content"]) == {"reason": "流涕2天", "diseases": "感冒"}


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
    assert made.repair_of(question, reply | {"finish_reason": "length"}) is None
    assert made.repair_of(question, {"text": '{"reason": "咳", "diseases": "感冒"}', "finish_reason": "stop"}) is None
    assert asker("{{ question }}", repair=False).repair_of(question, reply) is None


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("{{ question }", r"prompt\.j2:1: .*mend the prompt"),
        ("{{ 病历 }}", r"prompt\.j2: '病历' is undefined; known: question, id, fields"),
        ("{{ fields['身高'] }}", r"prompt\.j2: .*身高.*; known: question, id, fields"),
        ("{{ question.__class__.__mro__ }}", r"prompt\.j2: .*unsafe"),
        ("{{ fields.clear() }}", r"prompt\.j2: .*"),
    ],
)
def test_a_prompt_that_can_not_be_filled_is_one_line(asker: Callable, prompt: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        asker(prompt).questions(RECORD)
    assert "\n" not in str(error.value)


def test_the_prompts_are_known_by_name_and_hash(asker: Callable) -> None:
    assert asker("你好 {{ question }}").prompts["prompt.j2"] == sha256("你好 {{ question }}".encode()).hexdigest()


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
