"""The emergency signs on phrasings, the warnings after an answer, and text that nobody would write.

The phrasings of four files were written without sight of the code and then used to mend it: at first sight it told 41
of 60 emergencies and 3 of 50 others (emergencies_blind), then 48 of 50 and 2 of 50 (emergencies_unseen), then, of
situations chosen because a list would miss them, 72 of 100 and 10 of 100 (emergencies_rare), and last, of what comes in
daily life, 46 of 50 and 5 of 50 (emergencies_common).
"""

from __future__ import annotations

import doctest
import json
import random
import time

import pytest

from chat import safety, wording
from chat.safety import emergency, language, notes, out_of_scope, signs
from tests.conftest import ROOT


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (ROOT / "tests" / name).read_text(encoding="utf-8").splitlines()]


OWN = [(row["text"], bool(row["sign"])) for row in rows("emergencies.jsonl")]
BLIND = [(row["text"], row["emergency"]) for row in rows("emergencies_blind.jsonl")]
UNSEEN = [(row["text"], row["emergency"]) for row in rows("emergencies_unseen.jsonl")]
RARE = [(row["text"], row["emergency"]) for row in rows("emergencies_rare.jsonl")]
COMMON = [(row["text"], row["emergency"]) for row in rows("emergencies_common.jsonl")]
EXAMPLES = [(sign, tongue) for sign in signs() for tongue in ("zh", "en")]
NAMES = [f"{sign.id}-{tongue}" for sign, tongue in EXAMPLES]


# --- signs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "half"), [("own", OWN), ("blind", BLIND), ("unseen", UNSEEN), ("rare", RARE), ("common", COMMON)]
)
def test_recall_and_false_alarms(name: str, half: list[tuple[str, bool]]) -> None:
    missed = [text for text, present in half if present and not emergency(text)]
    alarms = [text for text, present in half if not present and emergency(text)]
    present = sum(present for _, present in half)
    recall, false = 1 - len(missed) / present, len(alarms) / (len(half) - present)
    print(f"{name}: recall {recall:.3f} of {present}, false alarms {false:.3f} of {len(half) - present}")
    assert len(half) >= 90 and len({text for text, _ in half}) == len(half)
    assert recall >= 0.98, missed
    assert false <= 0.05, alarms


def test_the_sign_is_the_one_meant() -> None:
    wrong = [(row, found.id) for row in rows("emergencies.jsonl") if (found := emergency(row["text"]))]
    wrong = [(row["text"], row["sign"], found) for row, found in wrong if found != row["sign"]]
    assert not wrong


@pytest.mark.parametrize(("sign", "tongue"), EXAMPLES, ids=NAMES)
def test_every_sign_answers_its_example_and_not_its_denial(sign: safety.Sign, tongue: str) -> None:
    found = emergency(sign.example[tongue])
    assert found and found.id == sign.id
    notice = found.notice(tongue)
    assert sign.do[tongue] in notice and sign.name[tongue] in notice and "120" in notice
    assert notice.isascii() or tongue == "zh" or language(notice) == "en"
    no = "没有" if tongue == "zh" else "no "
    assert emergency("，".join(no + word for word in found.words)) is None


def test_self_harm_gets_the_support_line_and_somebody_beside_them() -> None:
    notice = emergency("我不想活了").notice("zh")
    assert all(word in notice for word in ("12356", "120", "110", "陪"))


@pytest.mark.parametrize(
    ("text", "sign"),
    [
        ("没有发烧，但是胸口疼，出冷汗", "heart"),
        ("男二十岁，胸口剧痛，出冷汗", "heart"),
        ("按《偏方》喝了农药，一直吐", "poisoning"),
        ("胸口不疼，也没出汗", None),
        ("胸痛没有，呼吸困难没有", None),
        ("胸痛没有缓解，还出冷汗", "heart"),
        ("三年前突然嘴歪、说话不清，现在已经恢复", None),
        ("三年前中过风，今天又嘴歪，说话不清", "stroke"),
        ("昨晚突然说话不清，半边麻，现在好了", "stroke"),
        ("如果突然胸痛大汗，应该怎么办", None),
        ("中风有哪些表现，比如嘴歪、说话不清吗", None),
        ("我爸嘴歪、说话不清，可能有哪些原因", "stroke"),
        ("患者，男，65岁，突发胸痛2小时伴大汗，最可能的诊断是什么", None),
        ("男，65岁，突发胸痛2小时，大汗，怎么办", "heart"),
        ("胸闷胸痛两年了，偶尔出汗", None),
        ("胸闷胸痛两年了，今天疼得厉害，大汗", "heart"),
        ("小说里的主角割腕了", None),
        ("打游戏的时候突然胸痛大汗", "heart"),
        ("No chest pain, sweating or nausea, but suddenly my speech is slurred", "stroke"),
        ("My father had a stroke ten years ago", None),
        ("I have chest pain and sweating, what are the causes?", "heart"),
        ("她說胸口痛、冒冷汗", "heart"),
    ],
)
def test_what_is_told_of_a_person_now(text: str, sign: str | None) -> None:
    found = emergency(text)
    assert (found.id if found else None) == sign


# --- after an answer --------------------------------------------------------------------------------------------------


def test_the_disclaimer_is_one_line_in_the_language_of_the_question_and_not_twice() -> None:
    assert len(notes("头痛怎么办", "多休息。", "diagnosis")) == 1
    assert language(notes("头痛怎么办", "多休息。", "diagnosis")[0]) == "zh"
    assert language(notes("What helps a headache?", "Rest.", "diagnosis")[0]) == "en"
    assert notes("头痛怎么办", "多休息。以上仅供参考，不能代替医生诊断。", "diagnosis") == []
    assert notes("Headache?", "Rest. This is not a substitute for a doctor.", "diagnosis") == []


@pytest.mark.parametrize(
    ("question", "answer", "scenario", "warned"),
    [
        ("孩子3岁发烧", "布洛芬每次5ml，每6小时一次。", "diagnosis", True),
        ("发烧吃什么药", "对乙酰氨基酚每次半片。", "pediatric", True),
        ("发烧吃什么药", "儿童每公斤10毫克。", "treatment", True),
        ("My 2 year old has a fever", "Give 120 mg every six hours.", "diagnosis", True),
        ("孩子3岁发烧", "布洛芬每次5ml，按体重计算，用前咨询医生。", "pediatric", False),
        ("孩子3岁发烧", "多喝水，观察精神。", "pediatric", False),
        ("我65岁，发烧", "对乙酰氨基酚每次500mg。", "treatment", False),
    ],
)
def test_a_childs_dose_is_warned_of(question: str, answer: str, scenario: str, warned: bool) -> None:
    text = "".join(notes(question, answer, scenario))
    assert ("剂量" in text or "dose" in text) is warned


@pytest.mark.parametrize(
    ("answer", "warned"),
    [
        ("这个方子可以根治糖尿病。", True),
        ("本品绝对安全，无副作用。", True),
        ("This is a guaranteed cure.", True),
        ("目前不能根治，但可以控制。", False),
        ("没有哪种药没有副作用吗？有的。", False),
        ("可行根治性切除术。", False),
        ("There is no guaranteed cure.", False),
    ],
)
def test_a_promise_is_warned_of(answer: str, warned: bool) -> None:
    text = "".join(notes("怎么治", answer, "treatment"))
    assert ("没有任何治疗能保证" in text) is warned


@pytest.mark.parametrize(
    ("answer", "warned"),
    [
        ("血压正常了就可以停药。", True),
        ("您可以自行减量。", True),
        ("You can stop taking your medication now.", True),
        ("不要自行停药。", False),
        ("不可以自行停药或减量。", False),
        ("是否可以停药请咨询医生。", False),
        ("出现皮疹应立即停药并就医。", False),
        ("Do not stop taking your medication.", False),
    ],
)
def test_stopping_a_medicine_is_warned_of(answer: str, warned: bool) -> None:
    text = "".join(notes("要吃多久", answer, "treatment"))
    assert ("不要自行停药" in text) is warned


@pytest.mark.parametrize(
    ("question", "line"),
    [
        ("帮我看看这张片子有没有问题", "看不到图片"),
        ("Is there a fracture on this x-ray?", "can't be seen"),
        ("能给我开点阿普唑仑吗", "不能开处方"),
        ("帮我开一张病假条", "病假条"),
        ("帮我写一段爬虫代码", "只回答医学"),
        ("CT报告提示肺结节6mm，要紧吗", ""),
        ("阿普唑仑长期吃有副作用吗，怎么停", ""),
        ("头痛三天怎么办", ""),
        ("天气变冷了关节疼", ""),
        ("What does an MRI show?", ""),
    ],
)
def test_what_cannot_be_answered(question: str, line: str) -> None:
    found = out_of_scope(question)
    assert (line in found and bool(found)) if line else found == ""


# --- hostile text -----------------------------------------------------------------------------------------------------


def test_any_text_ends_soon_without_an_exception() -> None:
    chance = random.Random(7)
    words = [part for sign in signs() for part in (*sign.example["zh"], *sign.example["en"].split())]
    texts = ["", " ", "\0", "\ud800", "。" * 99, "\U0001f4a9" * 99, "没有" * 999, "如果", "\n" * 9999]
    texts += ["".join(chr(chance.randrange(0x110000)) for _ in range(60)) for _ in range(100)]
    texts += ["".join(chance.choices(words, k=40)) for _ in range(100)]
    for text in texts:
        emergency(text), notes(text, text, "pediatric"), out_of_scope(text)


@pytest.mark.parametrize(
    "piece",
    [
        "胸",
        "胸口没有疼，",
        "no chest pain, ",
        "a",
        " ",
        "1",
        "没有",
        "我现在",
        "了。",
        "((((",
        "患者男岁",
        "摔",
        "孩子",
        "1岁",
        "can't ",
    ],
)
def test_a_megabyte_ends_soon(piece: str) -> None:
    text = piece * (1_000_000 // len(piece))
    start = time.process_time()
    emergency(text), notes(text, text, "pediatric"), out_of_scope(text)
    assert time.process_time() - start < 5


def test_the_ends_of_a_long_message_are_read() -> None:
    assert emergency("天气很好。" * 100_000 + "我胸口疼得厉害，出冷汗").id == "heart"


@pytest.mark.parametrize("module", [safety, wording])
def test_the_examples_of_the_docstrings(module: object) -> None:
    assert doctest.testmod(module).failed == 0
