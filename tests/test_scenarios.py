"""The scenarios of the assistant: as named everywhere, an eleventh by one entry, a wrong one refused with its place."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from chat.scenarios import Scenario, by_number, find, of_question, read_scenarios
from recipe import UserError
from tests.conftest import ROOT

FILE = ROOT / "recipes/assistant/scenarios.yaml"
IDS = ["diagnosis", "treatment", "prevention", "education", "emergency", "nutrition", "mental_health", "pediatric"]
IDS += ["geriatric", "women_health"]


@pytest.fixture(scope="module")
def scenarios() -> dict[str, Scenario]:
    return read_scenarios(str(FILE))


def test_the_ten_have_their_numbers_and_ids(scenarios: dict[str, Scenario]) -> None:
    assert [(one.number, one.id) for one in by_number(scenarios)] == list(enumerate(IDS, 1))


@pytest.mark.parametrize(
    ("name", "id_"),
    [
        ("pediatrics", "pediatric"),
        ("geriatrics", "geriatric"),
        ("womens_health", "women_health"),
        (8, "pediatric"),
        (" 10 ", "women_health"),
        ("儿科咨询", "pediatric"),
        ("Mental_Health", "mental_health"),
    ],
)
def test_an_id_a_number_an_alias_or_a_name_finds_it(scenarios: dict[str, Scenario], name: str | int, id_: str) -> None:
    assert find(scenarios, name).id == id_


@pytest.mark.parametrize("name", ["dentistry", "11", "", "8.0", "１１"])
def test_an_unknown_one_is_refused_with_the_list(scenarios: dict[str, Scenario], name: str) -> None:
    with pytest.raises(UserError, match=r"1 diagnosis, .*10 women_health") as error:
        find(scenarios, name)
    assert repr(name) in str(error.value) and "\n" not in str(error.value)


def test_each_says_all_that_it_should(scenarios: dict[str, Scenario]) -> None:
    for one in scenarios.values():
        assert len(one.questions) == 3 and one.notes and one.specialty
        assert "不" in one.prompt and one.prompt.startswith("你是一名") and "提问者的语言" in one.prompt


def test_every_sample_question_is_of_its_own_scenario(scenarios: dict[str, Scenario]) -> None:
    for one in scenarios.values():
        assert [of_question(scenarios, question).id for question in one.questions] == [one.id] * 3


@pytest.mark.parametrize(
    ("question", "id_"),
    [
        ("最近头晕", "diagnosis"),
        ("", "diagnosis"),
        ("孩子误服了降压药，怎么急救？", "pediatric"),  # the later entry
        ("My son has a fever", "pediatric"),
        ("What is the reason for this? A common person asks.", "diagnosis"),  # no `son` in them
        ("PREGNANT and vomiting", "women_health"),
    ],
)
def test_a_question_is_of_the_last_entry_that_has_a_keyword(
    scenarios: dict[str, Scenario], question: str, id_: str
) -> None:
    assert of_question(scenarios, question).id == id_


def test_an_eleventh_is_one_entry(write: Callable[..., str]) -> None:
    entry = "dental:\n  number: 11\n  zh: 口腔\n  en: Teeth\n  specialty: 口腔医学\n"
    entry += "  prompt: 你是牙医。\n  keywords: [牙]\n"
    eleven = read_scenarios(write("eleven.yaml", FILE.read_text(encoding="utf-8") + entry))
    assert (
        len(eleven) == 11 and find(eleven, 11).prompt == "你是牙医。" and of_question(eleven, "孩子牙疼").id == "dental"
    )


DIAGNOSIS = "diagnosis:\n  number: 1\n  zh: 症\n  en: d\n  specialty: s\n  prompt: p\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (DIAGNOSIS.replace("  prompt: p\n", ""), r"s\.yaml:1: scenario 'diagnosis': prompt: expected a text, got None"),
        (DIAGNOSIS + "  colour: red\n", r"s\.yaml:1: scenario 'diagnosis': unknown key 'colour'; known: number, "),
        (DIAGNOSIS.replace("number: 1", "number: 0"), r"number: expected a whole number of 1 or more, got 0"),
        (DIAGNOSIS.replace("number: 1", "number: yes"), r"number: expected a whole number of 1 or more, got True"),
        (DIAGNOSIS + "  notes: 一条\n", r"notes: expected a list of texts, got '一条'"),
        (DIAGNOSIS + DIAGNOSIS, r"s\.yaml:7: key 'diagnosis' is there twice"),
        (DIAGNOSIS + DIAGNOSIS.replace("diagnosis:", "two:"), r"s\.yaml:7: scenario 'two': '1' is a name or number of"),
        (DIAGNOSIS + "two words:\n  number: 2\n", r"s\.yaml:7: scenario 'two words': expected an id of small letters"),
        (DIAGNOSIS + "two: 2\n", r"s\.yaml:7: scenario 'two': expected the keys number, zh, en"),
        (DIAGNOSIS.replace("diagnosis:", "other:"), r"s\.yaml: no scenario 'diagnosis'"),
        ("- id: diagnosis\n", r"s\.yaml: expected `key: value` lines"),
    ],
)
def test_a_wrong_file_is_one_line_that_says_where(write: Callable[..., str], text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read_scenarios(write("s.yaml", text))
    assert "\n" not in str(error.value)


def test_reading_them_needs_no_torch() -> None:
    code = f"import sys; from chat.scenarios import read_scenarios; read_scenarios({str(FILE)!r})\n"
    code += "sys.exit(bool({'torch', 'transformers', 'openai'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_sample_batch_asks_in_all_ten(scenarios: dict[str, Scenario]) -> None:
    rows = json.loads((ROOT / "data/samples/sample_questions.json").read_text(encoding="utf-8"))
    assert {find(scenarios, row["scenario"]).id for row in rows} == set(IDS) and len(rows) == 20
    assert sum(not re.search("[一-鿿]", row["question"]) for row in rows) == 2
    assert all(row.keys() <= {"question", "scenario", "max_tokens"} for row in rows)


def test_a_prompt_is_one_line_without_a_tag(scenarios: dict[str, Scenario]) -> None:
    for one in scenarios.values():
        assert one.prompt == one.prompt.strip() and "<" not in one.prompt and "\n" not in one.prompt


@pytest.mark.skipif("REAL_DATA" not in os.environ, reason="REAL_DATA=dir is not set")
def test_real_questions_fall_into_several(scenarios: dict[str, Scenario]) -> None:
    lines = (Path(os.environ["REAL_DATA"]) / "delicate_medical_r1_val.jsonl").read_text(encoding="utf-8").splitlines()
    found = [of_question(scenarios, json.loads(line)["question"]).id for line in lines]
    assert len(set(found)) >= 8 and max(map(found.count, set(found))) < 0.7 * len(found)
