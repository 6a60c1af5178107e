from __future__ import annotations

import random

import pytest

from preprocess.think import CLOSE, OPEN, has_tag, join, split, well_formed


def test_join_writes_the_one_spelling() -> None:
    assert join("先查血常规。", "去门诊。") == "<think>\n先查血常规。\n</think>\n\n去门诊。"
    assert join("  想\n", "\n答 ") == "<think>\n想\n</think>\n\n答"


def test_an_empty_thought_gives_the_answer_alone() -> None:
    assert join(" \n", "去门诊。") == "去门诊。"


@pytest.mark.parametrize(
    "think, answer",
    [
        ("见 </think> 处", "答"),
        ("想", "写作 <think>"),
        ("想", "< / THINK >"),
        ("", "## Thinking\na\n## Final Response\nb"),
    ],
)
def test_join_refuses_what_could_not_be_taken_apart(think: str, answer: str) -> None:
    with pytest.raises(ValueError, match="tag"):
        join(think, answer)


@pytest.mark.parametrize(
    "text",
    [
        "<think>\n想\n</think>\n\n答",  # ours
        "<think>\n想\n</think>\n答",  # the MedCoT-7B report's
        "<think>想\n</think> \n 答",  # the converted delicate_medical_r1 files'
        "<think>想</think>答",
        "  <THINK> 想 </Think>\r\n答\n",
        "<thinking>想</thinking>答",
        "## Thinking\n\n想\n\n## Final Response\n\n答",  # HuatuoGPT-o1's
    ],
)
def test_every_spelling_is_read(text: str) -> None:
    parts = split(text)
    assert (parts.think, parts.answer, parts.fault) == ("想", "答", "")


@pytest.mark.parametrize(
    "text, think, answer, fault",
    [
        ("答", "", "答", ""),
        ("想</think>答", "想", "答", "unopened"),
        ("<think>想，还没想完", "想，还没想完", "", "unclosed"),
        ("答<think>想", "想", "", "unclosed"),
        ("先答<think>想</think>后答", "想", "先答\n\n后答", "leading"),
        ("<think>想<think>再想</think>答</think>完", "想<think>再想", "答</think>完", "repeated"),
        ("<think>想</think>标签是 </think> 吗", "想", "标签是 </think> 吗", "repeated"),
        ("</think><think>答", "", "<think>答", "repeated"),
        ("", "", "", ""),
    ],
)
def test_faults_are_named(text: str, think: str, answer: str, fault: str) -> None:
    parts = split(text)
    assert (parts.think, parts.answer, parts.fault) == (think, answer, fault)


def test_an_unclosed_thought_is_no_answer() -> None:
    assert split("<think>可能是肺炎，建议").answer == ""


@pytest.mark.parametrize(
    "text, good",
    [
        ("<think>\n想\n</think>\n\n答", True),
        ("<think>\n\n</think>\n\n答", False),
        ("<think>\n想\n</think>\n\n ", False),
        ("<think>想", False),
        ("想</think>答", False),
        ("答", False),
        ("先答<think>想</think>答", False),
        ("<think>想</think><think>想</think>答", False),
        ("<think>\u200b</think>答", False),
        ("<think>想</think>\ufeff\u200b", False),
    ],
)
def test_well_formed(text: str, good: bool) -> None:
    assert well_formed(text) is good


def test_whatever_is_joined_is_split_again() -> None:
    draw = random.Random(0)
    pieces = ["血压", "<", ">", "/think", "think>", "\n", "\n\n", " ", "10⁹/L", "　", "a<b", "😀", "## Thinking"]
    for _ in range(2000):
        think, answer = ("".join(draw.choices(pieces, k=draw.randint(1, 8))) for _ in range(2))
        if has_tag(think) or has_tag(answer) or not think.strip() or not answer.strip():
            continue
        parts = split(join(think, answer))
        assert (parts.think, parts.answer, parts.fault) == (think.strip(), answer.strip(), "")


def test_thought_words_are_llamafactorys() -> None:
    from llamafactory.data.template import TEMPLATES

    assert TEMPLATES["qwen3"].thought_words == (OPEN, CLOSE)
    assert TEMPLATES["deepseekr1"].thought_words == (OPEN, CLOSE)
