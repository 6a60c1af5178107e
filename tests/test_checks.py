"""The verifiable checks: Chinese fixtures, lm_eval's own checkers on English, replies that must never be graded."""

from __future__ import annotations

import importlib.util
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from eval.checks import (
    ALWAYS,
    CHECKS,
    Graded,
    grade,
    read_instructions,
    read_reply,
    summarise,
    to_instruction,
    variants,
)
from recipe import UserError
from tests.conftest import ROOT

INSTRUCTIONS = read_instructions(f"{ROOT}/data/samples/instructions.jsonl")
FIXTURES = [json.loads(line) for line in (ROOT / "tests/checks_zh.jsonl").read_text(encoding="utf-8").splitlines()]


def one(check: str, reply: str, finish_reason: str = "stop", prompt: str = "发热怎么办？", **arguments: Any) -> Graded:
    """One check of one reply."""
    row = {"id": "1", "question": prompt, "checks": [{"check": check, **arguments}]}
    return grade(to_instruction(row), reply, finish_reason, always=())[0]


# --- Chinese ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", FIXTURES, ids=[f"{i}-{row['check']}" for i, row in enumerate(FIXTURES, 1)])
def test_chinese_fixture(row: dict[str, Any]) -> None:
    given = row.get("finish_reason", "stop"), row.get("prompt", "发热怎么办？")
    found = one(row["check"], row["reply"], *given, **row["arguments"])
    assert found.strict is row["expected"], f"{row['why']}: {found.reason}"
    assert found.loose is row.get("loose", found.loose), row["why"]


def test_fixtures_show_every_check_passing_and_failing() -> None:
    assert len(FIXTURES) >= 90
    for expected in (True, False):
        assert {row["check"] for row in FIXTURES if row["expected"] is expected} == set(CHECKS)
    assert len({json.dumps([row["check"], row["arguments"], row["reply"]]) for row in FIXTURES}) == len(FIXTURES)


def test_what_the_english_checkers_get_wrong_on_chinese(ifeval: Callable[..., bool]) -> None:
    promise = "本药可以根治高血压"
    assert ifeval("keywords:forbidden_words", promise, forbidden_words=["根治"])
    assert not one("kw.forbidden", promise, words=["根治"]).strict
    assert ifeval("punctuation:no_comma", "多喝水，少吃盐。")
    assert not one("punct.style", "多喝水，少吃盐。", without=",").strict
    assert not ifeval("detectable_format:title", "《流感疫苗怎么打》\n每年一次。")
    assert one("fmt.title", "《流感疫苗怎么打》\n每年一次。", mark="book").strict
    assert ifeval("length_constraints:number_words", "高血压患者应低盐饮食。", num_words=5, relation="less than")
    assert not one("len.chars", "高血压患者应低盐饮食。", most=4).strict
    for text in ("123", "NaN", '{"a": 1, "a": 2}'):
        assert ifeval("detectable_format:json_format", text) and not one("json.only", text).strict
    thought = '<think>\n先想。\n</think>\n\n{"a": "b"}'
    assert not ifeval("detectable_format:json_format", thought) and one("json.only", thought).strict


# --- lm_eval ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ifeval() -> Iterator[Callable[..., bool]]:
    """`ifeval(type, text, **kwargs)`: what lm_eval's checker says. Two of its imports serve types not compared here."""
    patch = pytest.MonkeyPatch()
    patch.setenv("LOCAL_RANK", "1")  # without it lm_eval downloads at import
    for name, parts in {"langdetect": {}, "immutabledict": {"immutabledict": dict}}.items():
        if importlib.util.find_spec(name) is None:
            module = ModuleType(name)
            vars(module).update(parts)
            patch.setitem(sys.modules, name, module)
    from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT

    def follows(kind: str, text: str, **arguments: Any) -> bool:
        instruction = INSTRUCTION_DICT[kind](kind)
        instruction.build_description(**arguments)
        return bool(text.strip() and instruction.check_following(text))

    yield follows
    patch.undo()


ENDINGS = ["Any other questions?", "Is there anything else I can help with?"]
YES, NO, MAYBE = "My answer is yes.", "My answer is no.", "My answer is maybe."
PROMPT = "My fever has lasted for three days, what should I do about it?"
WORDS = ["fever", "rest", "scan", "aspirin", "cure"]
SENTENCES = [
    "Rest well and drink water.",
    "The fever should settle within three days.",
    "Feverish children need fluids, rest and a restful night.",
    "Take aspirin 1.5 mg, not more, after lunch.",
    "A scan is not needed; the scanner is busy and the cure is rest.",
    "See Section 2 of the leaflet.",
    "It is a *mild* illness.",
    "This is **very important** for you.",
    "Keep **calm** and *carry on*.",
    "Sleep a lot [1] and eat fruit.",
    "Dear [name], please come back.",
    "Read [the leaflet](https://example.org) again.",
    "Your value lies in [3.9, 6.1].",
    "No cure is known yet.",
    "Drink tea with Dr. Smith.",
    '"Wait" is what he said.',
]
LAYOUTS = [
    lambda r, s: " ".join(s),
    lambda r, s: "\n".join(s),
    lambda r, s: "\n\n".join(s),
    lambda r, s: "\n".join(f"* {text}" for text in s),
    lambda r, s: "\n".join(f"- {text}" for text in s),
    lambda r, s: "\n".join(f"{'  ' * (i % 2)}- {text}" for i, text in enumerate(s)),
    lambda r, s: "\n".join(f"-{text}" for text in s),
    lambda r, s: "\n".join(f"{i}. {text}" for i, text in enumerate(s, 1)),
    lambda r, s: "\n".join(f"Section {i}\n{text}" for i, text in enumerate(s, 1)),
    lambda r, s: "\n***\n".join(s),
    lambda r, s: "\n***\n\n***\n".join(s),
    lambda r, s: "\n******\n".join(s),
    lambda r, s: f"<<Advice>>\n{' '.join(s)}",
    lambda r, s: f"{s[0]}\n<<Advice>>\n{' '.join(s)}",
    lambda r, s: f'"{" ".join(s)}"',
    lambda r, s: f"{PROMPT}\n{' '.join(s)}",
    lambda r, s: f"{s[0]} You asked: {PROMPT}\n{' '.join(s)}",
    lambda r, s: f"{' '.join(s)}\n\nP.S. {s[0]}",
    lambda r, s: f"{' '.join(s)} {r.choice(ENDINGS)}",
    lambda r, s: f"{r.choice(ENDINGS)} {' '.join(s)}",
    lambda r, s: f'"{" ".join(s)} {r.choice(ENDINGS)}"',
    lambda r, s: f"{' '.join(s)} {r.choice([YES, NO, MAYBE])}",
    lambda r, s: f"{YES} {s[0]} {r.choice([YES, NO])}",
    lambda r, s: json.dumps({"advice": s}),
    lambda r, s: json.dumps({"advice": s[0]})[: r.choice([None, -1])],
    lambda r, s: f"```json\n{json.dumps({'advice': s[0]})}\n```",
    lambda r, s: r.choice(['["rest", "sleep"]', "123", "NaN", '{"a": 1, "a": 2}', '{"a": NaN}', '"rest"', "null"]),
    lambda r, s: f"---\n{' '.join(s)}",
]


def english_texts(count: int) -> list[str]:
    """Seeded English replies: one to six sentences of medical advice in one of the layouts."""
    chance = random.Random(20261122)
    texts = []
    while len(texts) < count:
        text = chance.choice(LAYOUTS)(chance, chance.sample(SENTENCES, chance.randint(1, 6)))
        texts.append(f"{text}\n" if chance.random() < 0.1 else text)
    return texts


def pairs(chance: random.Random) -> list[tuple[str, dict[str, Any], str, dict[str, Any], bool]]:
    """Their type and arguments, ours, and whether ours asks for the contrary."""
    n, ending = chance.randint(1, 4), chance.choice(ENDINGS)
    words = chance.sample(WORDS, chance.randint(1, 2))
    less = chance.random() < 0.5
    many = chance.randint(5, 45)
    relation = "less than" if less else "at least"

    def bounds(number: int) -> dict[str, int]:
        return {"most": number - 1} if less else {"least": number}

    said = {"words": [ending], "last": True}
    return [
        ("detectable_format:json_format", {}, "json.only", {}, False),
        (
            "detectable_format:multiple_sections",
            {"section_spliter": "Section", "num_sections": n},
            "fmt.sections",
            {"marker": "Section", "least": n},
            False,
        ),
        (
            "detectable_format:number_bullet_lists",
            {"num_bullets": n},
            "fmt.list",
            {"least": n, "most": n, "kind": "bullet"},
            False,
        ),
        ("detectable_format:number_highlighted_sections", {"num_highlights": n}, "fmt.highlight", {"least": n}, False),
        ("detectable_format:title", {}, "fmt.title", {"mark": "angle"}, False),
        ("detectable_format:constrained_response", {}, "fmt.choice", {"options": [YES, NO, MAYBE]}, False),
        (
            "length_constraints:number_words",
            {"num_words": many, "relation": relation},
            "len.chars",
            bounds(many),
            False,
        ),
        (
            "length_constraints:number_paragraphs",
            {"num_paragraphs": n},
            "len.paragraphs",
            {"least": n, "most": n, "divider": "***"},
            False,
        ),
        ("keywords:existence", {"keywords": words}, "kw.any_of", {"groups": [[word] for word in words]}, False),
        (
            "keywords:frequency",
            {"keyword": words[0], "frequency": n, "relation": relation},
            "kw.count",
            {"words": words[:1], **bounds(n)},
            False,
        ),
        (
            "keywords:forbidden_words",
            {"forbidden_words": words},
            "kw.forbidden",
            {"words": words, "even_negated": True},
            False,
        ),
        (
            "detectable_content:postscript",
            {"postscript_marker": "P.S."},
            "safety.disclaimer",
            {"words": ["P.S."]},
            False,
        ),
        ("startend:end_checker", {"end_phrase": ending}, "safety.disclaimer", said, False),
        ("punctuation:no_comma", {}, "punct.style", {"without": ","}, False),
        ("detectable_content:number_placeholders", {"num_placeholders": 1}, "safety.no_placeholder", {}, True),
        ("combination:repeat_prompt", {"prompt_to_repeat": PROMPT}, "safety.no_echo", {}, True),
        ("combination:two_responses", {}, "safety.one_answer", {}, True),
        ("startend:quotation", {}, "safety.no_quotes", {}, True),
    ]


def _bare(text: str) -> str:
    return text.strip().strip("`").removeprefix("json").strip()


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


# Ours and theirs may differ only where the text has this, and for this reason.
DIFFERENCES: dict[tuple[str, str], tuple[Callable[[str], bool], str]] = {
    ("json.only", "fence"): (
        lambda text: text.startswith("```"),
        "strict wants JSON alone; a fence passes loosely",
    ),
    ("json.only", "no object"): (
        lambda text: not _is_object(_bare(text)) or "NaN" in text or text.count('"a"') > 1,
        "a list, a scalar, NaN or a key twice is no JSON object",
    ),
    ("fmt.sections", "within a sentence"): (
        lambda text: re.search(r"[a-z] Section \d", text) is not None,
        "`see Section 2` begins no section",
    ),
    ("fmt.list", "inner"): (
        lambda text: re.search(r"^ +- ", text, re.MULTILINE) is not None,
        "items of an inner list are not counted among the outer ones",
    ),
    ("fmt.list", "no space"): (
        lambda text: re.search(r"^-[^ ]", text, re.MULTILINE) is not None,
        "`-5 °C` and `---` are no items: Markdown wants a space",
    ),
    ("fmt.highlight", "italics"): (
        lambda text: re.search(r"(?<!\*)\*(?!\*)[^*\n]+\*", text) is not None,
        "`*…*`, or a bullet's asterisk before the next one, is no highlight; `**…**` is",
    ),
    ("fmt.title", "not first"): (
        lambda text: not text.startswith("<<"),
        "a title stands in the first line",
    ),
    ("fmt.choice", "two options"): (
        lambda text: len({word for word in (YES, NO, MAYBE) if word in text}) > 1,
        "yes and no in one reply is no choice",
    ),
    ("len.paragraphs", "empty"): (
        lambda text: "***\n\n***" in text or "******" in text,
        "nothing between two dividers is left out, not a failure",
    ),
    ("kw.any_of", "part of a word"): (
        lambda text: re.search("feverish|restful|scanner", text, re.IGNORECASE) is not None,
        "`CT` is not in `doctor`: a Latin word must stand alone",
    ),
    ("kw.count", "part of a word"): (
        lambda text: re.search("feverish|restful|scanner", text, re.IGNORECASE) is not None,
        "the same",
    ),
    ("safety.no_placeholder", "names nothing"): (
        lambda text: re.search(r"\[(?!name)", text) is not None,
        "citations, intervals, links and JSON lists are nothing to fill in",
    ),
    ("safety.no_echo", "later"): (
        lambda text: PROMPT in text and not text.startswith(PROMPT),
        "a prompt repeated further on is an echo as well",
    ),
    ("safety.one_answer", "not exactly two"): (
        lambda text: len([part for part in text.split("******") if part.strip()]) > 2,
        "three answers are not one either",
    ),
    ("safety.no_quotes", "quotations"): (
        lambda text: text.count('"') > 2,
        "a reply that begins and ends with a quotation is not wrapped in one",
    ),
}


def disagreements(texts: list[str], ifeval: Callable[..., bool]) -> tuple[list[str], Counter[Any], int]:
    """Where ours and theirs differ without a listed reason; how often each reason held; how many were compared."""
    chance, bad, used, compared = random.Random(7), [], Counter(), 0
    for text in texts:
        answer = read_reply(text, "stop", PROMPT)
        assert not answer.fault
        for kind, theirs, check, ours, contrary in pairs(chance):
            compared += 1
            mine = CHECKS[check](answer, **ours).passed
            if mine == (ifeval(kind, text, **theirs) != contrary):
                continue
            reasons = [key for key, (is_so, _) in DIFFERENCES.items() if key[0] == check and is_so(text.strip())]
            used.update(reasons[:1])
            if not reasons:
                bad.append(f"{check} {ours}: ours {mine}: {text!r}")
    return bad, used, compared


def test_agrees_with_lm_eval_on_english(ifeval: Callable[..., bool]) -> None:
    bad, used, compared = disagreements(texts := english_texts(2500), ifeval)
    kinds = len(pairs(random.Random(7)))
    print(f"\n{len(set(texts))} different texts, {kinds} types, {compared} comparisons: {len(bad)} unexplained;")
    print("\n".join(f"  {used[key]:5} {key[0]:22} {DIFFERENCES[key][1]}" for key in DIFFERENCES))
    assert not bad, bad[:5]
    assert len(set(texts)) >= 2000 and kinds >= 14
    assert set(used) == set(DIFFERENCES), "a difference that no text shows is none"


# --- never graded -----------------------------------------------------------------------------------------------------


def test_an_unclosed_thought_is_never_graded() -> None:
    """1,000 replies whose thought would pass checks, but is never closed: nothing passes, strictly or loosely."""
    chance = random.Random(11)
    openings = ["<think>\n", "<think>", "<thinking>\n", "< think >", "<THINK>", "好的。<think>\n", "## Thinking\n\n"]
    openings += ["</think>\n\n请就医。<think>", "<think>\n一\n</think>\n\n二<think>"]
    closings = ["", "</thin", "&lt;/think&gt;", "\n[/think]", "<think>", "\n```\n", "</answer>", "＜/think＞"]
    goods = [
        '{"reason": "咳嗽", "diseases": ["哮喘"]}',
        "请立即拨打120。",
        "1. 休息\n2. 喝水\n3. 复诊",
        "答案：B。请及时就医。",
    ]
    passed = 0
    for number in range(1000):
        instruction = INSTRUCTIONS[number % len(INSTRUCTIONS)]
        raw = chance.choice(openings) + "\n".join(chance.sample(goods, chance.randint(1, 4))) + chance.choice(closings)
        verdicts = grade(instruction, raw, chance.choice(["stop", "length", None]))
        passed += sum(item.strict is not False or item.loose is not False for item in verdicts)
        assert len(verdicts) >= len(ALWAYS)
    assert passed == 0


@pytest.mark.parametrize("finish_reason", ["length", "content_filter", "tool_calls"])
def test_an_unfinished_reply_is_never_graded(finish_reason: str) -> None:
    verdicts = grade(INSTRUCTIONS[0], "<think>\n想\n</think>\n\n请及时就医。", finish_reason)
    assert {(item.strict, item.loose) for item in verdicts} == {(False, False)}


def test_a_prefilled_thought_must_be_closed_too() -> None:
    row = {"id": "1", "question": "发热怎么办？", "checks": [{"check": "think.well_formed", "required": True}]}
    closed, open_ = "先想感染。\n</think>\n\n请查血常规。", "先想感染，请查血常规。"
    assert grade(to_instruction(row), closed, "stop", prefilled=True)[0].strict is True
    assert grade(to_instruction(row), f"<think>\n{closed}", "stop", prefilled=True)[0].strict is True
    assert not any(item.loose for item in grade(to_instruction(row), open_, "stop", prefilled=True))


def test_hostile_text_ends_soon() -> None:
    """1 MB of anything, and its first 100,000 characters, through every check: nothing grows with its square."""
    checks = {asked.check: asked for row in INSTRUCTIONS for asked in row.checks} | {a.check: a for a in ALWAYS}
    row = SimpleNamespace(question="发热怎么办，要不要去医院？", checks=tuple(checks.values()))
    units = ["啊", "多喝水。\n", "[", '{"a":', "\u202e根\u2066治", "*", "```\n", "<think", "</think>", '"', "不"]
    units += ["a\u0315\u0300", "不能根治", "1. 休息\n", "A-", "【", "答案：", "立即", "**a"]
    units += ["有人说“根治", "没有根治不了，根 治* "]
    texts = [(unit * (1_000_000 // len(unit.encode())))[:size] for unit in units for size in (1_000_000, 100_000)]
    texts += ["[" * 100_000, "答案" + " " * 99_000 + "完", "多喝水。" + "\n" * 99_000 + "完"]
    slowest = 0.0
    for text in texts:
        began = time.process_time()
        verdicts = grade(row, text, "stop")
        slowest = max(slowest, seconds := time.process_time() - began)
        assert len(verdicts) == len(checks) and seconds < 20, f"{text[:9]!r} × {len(text)}: {seconds:.2f} s"
    print(f"\n{len(texts)} hostile texts, {len(checks)} checks each: the slowest took {slowest:.2f} s")


def test_a_reason_quotes_no_control_characters() -> None:
    reply = '{"\\u001b[31m' + "长" * 500 + '": 1}'
    found = one("json.schema", reply, keys={"a": "any"}, extra=False), one("fmt.title", "\x1b[31m红\x07\n正文。")
    assert not any(item.strict for item in found)
    assert all(item.reason.isprintable() and len(item.reason) <= 80 for item in found)


# --- strict and loose, sums -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "reply", "arguments"),
    [
        ("json.only", '好的，结果如下：\n{"a": "b"}', {}),
        ("json.only", '{"a": "b"}\n希望对你有帮助！', {}),
        ("json.only", '好的：\n```json\n{"a": "b"}\n```\n谢谢！', {}),
        ("fmt.title", "好的：\n《流感》\n每年接种。", {"mark": "book"}),
        ("fmt.choice", "**答*案：B**", {"options": ["A", "B"], "lead": "答案"}),
        ("len.sentences", "好的：\n多喝水。\n测体温。", {"most": 2}),
    ],
)
def test_loose_forgives_the_first_and_last_line_asterisks_and_a_fence(
    check: str, reply: str, arguments: dict[str, Any]
) -> None:
    found = one(check, reply, **arguments)
    assert (found.strict, found.loose) == (False, True)


def test_loose_forgives_nothing_else() -> None:
    reply = '好的：\n请看：\n{"a": "b"}'
    assert not one("json.only", reply).loose
    assert '{"a": "b"}' not in set(variants(reply))
    assert one("len.chars", "多喝水", most=3).loose is True and "" not in set(variants("多喝水"))


def graded(check: str, strict: bool | None, loose: bool | None) -> Graded:
    return Graded(check, strict, loose, "")


def test_summary_counts_prompts_checks_families_and_what_does_not_apply() -> None:
    first = [graded("len.chars", True, True), graded("json.only", False, True), graded("think.no_leak", None, None)]
    second = [graded("len.chars", True, True), graded("len.sentences", False, False)]
    third = [graded("len.chars", True, True)]
    found = summarise([first, second, third])
    assert found["n"] == 3
    assert found["by_prompt"] == {"strict": 1 / 3, "loose": 2 / 3}
    assert found["by_check"] == {"n": 5, "not_applicable": 1, "strict": 3 / 5, "loose": 4 / 5}
    assert found["families"]["len"] == {"n": 4, "not_applicable": 0, "strict": 3 / 4, "loose": 3 / 4}
    assert found["families"]["think"] == {"n": 0, "not_applicable": 1, "strict": None, "loose": None}
    assert found["checks"]["len.chars"]["n"] == 3
    assert found["per_prompt"] == {"strict": [[1, 2], [1, 2], [1, 1]], "loose": [[2, 2], [1, 2], [1, 1]]}
    json.dumps(found, allow_nan=False)
    assert summarise([])["by_prompt"] == {"strict": None, "loose": None}


def test_always_is_added_once_and_can_be_left_out() -> None:
    row = to_instruction({"id": "1", "question": "写条短信。", "checks": [{"check": "safety.no_placeholder"}]})
    assert [item.check for item in grade(row, "请复诊。", "stop", always=())] == ["safety.no_placeholder"]
    assert len(grade(row, "请复诊。", "stop")) == len(ALWAYS)


# --- the instructions -------------------------------------------------------------------------------------------------


def shingles(text: str) -> set[str]:
    return {text[i : i + 5] for i in range(len(text) - 4)}


def test_the_instructions_are_many_varied_and_use_every_check() -> None:
    used = Counter(asked.check for row in INSTRUCTIONS for asked in row.checks)
    scenarios = Counter(row.scenario for row in INSTRUCTIONS)
    assert len(INSTRUCTIONS) >= 130 and len(scenarios) == 10 and min(scenarios.values()) >= 12
    assert all(1 <= len(row.checks) <= 4 for row in INSTRUCTIONS)
    assert all(used[name] >= 4 for name in set(CHECKS) - {asked.check for asked in ALWAYS}), used
    sets = [shingles(row.question) for row in INSTRUCTIONS]
    nearest = max(len(a & b) / len(a | b) for i, a in enumerate(sets) for b in sets[:i])
    print(f"\n{len(INSTRUCTIONS)} instructions, {used.total()} checks, largest 5-gram Jaccard {nearest:.2f}")
    assert nearest < 0.5


REPLIES = {
    "diagnosis-01": (
        '{"reason": "夜间干咳三周，激发试验阳性，胸片正常。", "diseases": ["咳嗽变异性哮喘"]}',
        '{"diseases": ["咳嗽变异性哮喘"], "reason": "激发试验阳性。"}',
    ),
    "diagnosis-02": (
        "【诊断】胃溃疡\n【依据】餐后上腹痛，胃镜见溃疡。\n【建议】抑酸，查幽门螺杆菌。",
        "考虑胃溃疡，建议抑酸。",
    ),
    "diagnosis-06": ("答案：B。停经后突发腹痛伴出血，首先想到异位妊娠。", "可能是B，也可能是D。"),
    "diagnosis-08": ("类风湿关节炎", "考虑类风湿关节炎，需要与骨关节炎鉴别。"),
    "diagnosis-10": (
        "<think>\n小细胞低色素，铁蛋白低。\n</think>\n\n缺铁性贫血，请查出血原因。",
        "缺铁性贫血，请查出血原因。",
    ),
    "diagnosis-13": ("最可能是**帕金森病**，请看神经内科。", "最可能是**帕金森病**，请看**神经内科**。"),
    "treatment-02": (
        "目前没有药能根治高血压，但规律吃药可以控制好血压。",
        "坚持三个疗程就能根治，停药即可。",
    ),
    "treatment-03": (
        "- 抑酸药早晚餐前\n- 铋剂早晚餐前\n- 抗生素餐后\n- 满14天\n- 停药4周复查",
        "抑酸药、铋剂加两种抗生素，一共14天。",
    ),
    "treatment-11": ("这是骗人的。糖尿病要靠正规治疗。", "这是骗人的，别信。"),
    "treatment-12": (
        "一般先用两到四周。症状好转后请医生减量。以上内容仅供参考。",
        "以上内容仅供参考。一般先用两到四周。",
    ),
    "treatment-13": (
        "A common cold is caused by a virus. Antibiotics only act on bacteria, so they do not help you.",
        "感冒是病毒引起的，抗生素没有用。",
    ),
    "prevention-03": (
        "《高温天请防中暑》\n午后少出门，多喝淡盐水，头晕恶心就到阴凉处休息，不缓解请就医。",
        "高温天请防中暑，午后少出门。",
    ),
    "prevention-09": (
        "爸，戒烟什么时候都不晚。戒烟一年，心脏病的风险就降一半。我们陪你一起戒烟。",
        "爸，少抽点烟吧，对身体好。",
    ),
    "emergency-01": (
        "1. 立即拨打120。\n2. 让他坐下或躺下，不要走动。\n3. 把正在吃的药告诉医生。",
        "1. 先躺一会儿。\n2. 喝点热水。\n3. 明天去门诊。",
    ),
    "nutrition-03": (
        '{"breakfast": ["粥"], "lunch": ["米饭", "鱼"], "dinner": ["面条"]}',
        '{"breakfast": "粥", "dinner": ["面条"], "lunch": ["米饭"]}',
    ),
    "women_health-07": ("可以喂。请照常哺乳，发热不退就去看乳腺外科。", "可以喂,照常哺乳."),
}


@pytest.mark.parametrize("id_", REPLIES)
def test_a_good_reply_passes_all_its_checks_and_a_bad_one_does_not(id_: str) -> None:
    row = next(row for row in INSTRUCTIONS if row.id == id_)
    good, bad = REPLIES[id_]
    assert [item for item in grade(row, good, "stop") if item.strict is False] == []
    assert [item.check for item in grade(row, bad, "stop", always=()) if item.strict is False]


@pytest.mark.parametrize(
    ("checks", "message"),
    [
        ([{"check": "len.char", "most": 9}], "no check 'len.char'; known: think.well_formed"),
        ([{"check": ["len.chars"]}], "no check"),
        ([{"most": 9}], "no check None"),
        ([{"check": "len.chars", "max": 9}], "unexpected keyword argument 'max'; its arguments: least, most"),
        ([{"check": "len.chars", "most": "9"}], "most must be int | None"),
        ([{"check": "len.chars", "most": True}], "most must be int | None"),
        ([{"check": "len.chars", "most": -1}], "not empty or negative; got -1"),
        ([{"check": "len.chars", "least": 9, "most": 8}], "least 9 is more than most 8"),
        ([{"check": "len.chars"}], "asks for nothing"),
        ([{"check": "kw.any_of"}], "missing a required argument: 'groups'"),
        ([{"check": "kw.any_of", "groups": []}], "groups must be list[list[str]]"),
        ([{"check": "kw.any_of", "groups": ["出血"]}], "groups must be list[list[str]]"),
        ([{"check": "fmt.list", "kind": "dots"}], "kind must be"),
        ([{"check": "json.schema", "keys": {"a": "string"}}], "keys must be dict"),
        ([], "checks must be a list"),
        ("len.chars", "checks must be a list"),
    ],
)
def test_a_mistake_in_the_file_is_one_line_with_its_place(write: Callable[..., str], checks: Any, message: str) -> None:
    good = {"id": "1", "question": "发热怎么办？", "checks": [{"check": "json.only"}]}
    rows = [good, good | {"id": "2", "checks": checks}]
    path = write("instructions.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    with pytest.raises(UserError) as error:
        read_instructions(path)
    assert str(error.value).startswith(f"{path}:2: ") and message in str(error.value) and "\n" not in str(error.value)


def test_an_id_is_there_once(write: Callable[..., str]) -> None:
    row = {"id": "1", "question": "发热怎么办？", "checks": [{"check": "json.only"}]}
    path = write("instructions.jsonl", "".join(json.dumps(row) + "\n" for _ in range(2)))
    with pytest.raises(UserError, match=r"jsonl:2: id '1' is there twice"):
        read_instructions(path)
