from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterable
from pathlib import Path

import pytest

from bench.near import EN, ZH, edited, fill, jaccard_of, record, repunctuated, with_datasketch
from preprocess import near
from preprocess.contamination import Guard
from preprocess.near import Cluster, Forest, Index, are_opposed, key_of, markers
from preprocess.records import read_rows


def clusters_of(texts: Iterable[str], threshold: float = 0.7, **options: bool) -> list[Cluster]:
    index = Index(**options)
    index.add(texts)
    return index.clusters(threshold)


def members(clusters: list[Cluster]) -> list[tuple[int, ...]]:
    return [cluster.members for cluster in clusters]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Chinese and English records, every third with a copy that was changed a little or much."""
    rng = random.Random(3)
    first = [record(rng, words, rng.choice((20, 80, 300, 900)), 0.3) for words in (ZH, EN) for _ in range(90)]
    changed = [edited(rng, text, rng.choice((0.003, 0.01, 0.02, 0.04))) for text in first[::3] * 2]
    mixed = [*first, *changed, *map(str.upper, first[::7])]
    rng.shuffle(mixed)
    return mixed


@pytest.mark.parametrize(
    "text, key",
    [
        ("发热，咳嗽。 3天！", "发热咳嗽3天"),
        ("ＡＬＴ　５６ Ｕ／Ｌ", "alt56u/l"),
        ("HBsAg(+)，HBeAg（－）", "hbsag+hbeag-"),
        ("血钾 3.5 mmol/L、1，2", "血钾3.5mmol/l1,2"),
        ("12.3×10⁹/L PaO₂ Na⁺ ½片", "12.3×10⁹/l pao2na+½片"),
        ("體溫38℃，乾薑、頭髮、以後", "体温38°c干姜头发以后"),
        ("Follow-up  of\nCOVID-19, don’t", "follow up of covid19don t"),
        ("−3 ℃ 与 2020-7-14", "-3°c与2020-7-14"),
        ("cafe\u0301 \ufb01ne", "café fine"),
        ("①3天 Ⅱ型", "①3天ii型"),
        ("\ud800𠮷\U0010ffff\0", "𠮷"),
        ("", ""),
        (" 。，\n", ""),
    ],
)
def test_the_key_forgets_form_and_keeps_what_was_measured(text: str, key: str) -> None:
    assert key_of(text) == key


def test_the_keys_of_many_are_the_keys_of_each(texts: list[str]) -> None:
    codes, ends = near.keys_of(texts)
    assert near.as_text(codes) == list(map(key_of, texts)) and len(ends) == len(texts)


@pytest.mark.parametrize(
    "one, other",
    [
        ("口服三天", "口服3天"),
        ("5 毫克，12 次/分", "5mg，十二次/分钟"),
        ("HBsAg 阳性", "HBsAg（+）"),
        ("糖尿病Ⅱ型", "糖尿病2型"),
        ("6,500/mm3 for 3 days", "6500/mm3 for 3 d"),
        ("20 µg", "20 μg"),
        ("左肺；体温36.5℃", "体温36.5度，左肺".replace("度", "℃")),
        ("3天左右", "3天上下"),
    ],
)
def test_one_finding_has_one_marker_however_it_is_written(one: str, other: str) -> None:
    assert markers(key_of(one)) == markers(key_of(other)) != []


LONG = (
    "患者因反复上腹部隐痛就诊，查体腹软，剑突下轻压痛，无反跳痛，肝脾肋下未触及，胃镜见慢性浅表性胃炎，{}，嘱规律饮食。"
)


@pytest.mark.parametrize(
    "one, other",
    [
        ("幽门螺杆菌(+)", "幽门螺杆菌(-)"),
        ("幽门螺杆菌阳性", "幽门螺杆菌阴性"),
        ("奥美拉唑20mg", "奥美拉唑20g"),
        ("奥美拉唑20 mg once", "奥美拉唑20 g once"),
        ("奥美拉唑2.0mg", "奥美拉唑20mg"),
        ("血小板150×10⁹/L", "血小板150×109/L"),
        ("血小板150×10⁹/L", "血小板150×10⁶/L"),
        ("左侧明显", "右侧明显"),
        ("口服三天", "口服两天"),
        ("心功能Ⅱ级", "心功能Ⅲ级"),
        ("CA199>37", "CA199<37"),
        ("剩余碱-3.5", "剩余碱3.5"),
        ("每日2次", "每周2次"),
    ],
)
def test_records_that_differ_in_a_figure_or_a_sign_are_no_duplicates(one: str, other: str) -> None:
    pair = [LONG.format(one), LONG.format(other)]
    assert clusters_of(pair) == []
    assert members(clusters_of(pair, digits_matter=False)) == [(0, 1)]


@pytest.fixture(scope="module")
def near_pairs(texts: list[str]) -> list[tuple[int, int, float]]:
    """All pairs with a Jaccard similarity of 0.7 and more, by comparing all with all."""
    keys = list(map(key_of, texts))
    sets = [{key[i : i + near.N] for i in range(max(1, len(key) - near.N + 1))} for key in keys]
    common = ((a, b, len(sets[a] & sets[b])) for a, b in itertools.combinations(range(len(texts)), 2))
    found = ((a, b, both / (len(sets[a]) + len(sets[b]) - both)) for a, b, both in common)
    return [pair for pair in found if pair[2] >= 0.7]


def connected(size: int, pairs: Iterable[tuple]) -> list[tuple[int, ...]]:
    forest = Forest(size)
    for first, second, *_ in pairs:
        forest.join(first, second)
    groups: dict[int, list[int]] = {}
    for number in range(size):
        groups.setdefault(forest.root(number), []).append(number)
    return [tuple(group) for group in groups.values() if len(group) > 1]


@pytest.mark.parametrize("threshold", [0.7, 0.85, 1.0])
@pytest.mark.parametrize("digits_matter", [True, False])
def test_clusters_are_what_comparing_all_with_all_finds(
    texts: list[str], near_pairs: list[tuple[int, int, float]], threshold: float, digits_matter: bool
) -> None:
    marks = [markers(key_of(text)) for text in texts]
    wanted = [(a, b) for a, b, j in near_pairs if j >= threshold and (marks[a] == marks[b] or not digits_matter)]
    found = clusters_of(texts, threshold, digits_matter=digits_matter)
    assert members(found) == connected(len(texts), wanted) != []
    exact = {(a, b): j for a, b, j in near_pairs}
    for cluster in found:
        assert len(cluster.pairs) == len(cluster.members) - 1
        assert all(pair.jaccard == exact[pair[:2]] for pair in cluster.pairs)


def test_datasketch_finds_the_same(texts: list[str]) -> None:
    pytest.importorskip("datasketch")
    pairs = with_datasketch(texts, 0.7, hashed=True)
    assert connected(len(texts), pairs) == members(clusters_of(texts)) != []


def test_threads_and_portions_change_nothing(texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    once = repr(clusters_of(texts))
    monkeypatch.setattr(near, "BATCH", 3000)
    for threads in (1, 2, 7):
        monkeypatch.setattr(near, "THREADS", threads)
        monkeypatch.setattr(near, "_FOLD", near.Fold())  # all characters are new again
        index = Index()
        index.add(texts[:50])
        index.clusters()
        index.add(iter(texts[50:]))
        assert repr(index.clusters()) == repr(index.clusters()) == once


def test_short_and_empty_texts_do_not_fall_together() -> None:
    short = ["", "", " ", "。", "？！", "发热", "发热。", "头痛", "咳", "咳嗽", "发热3天", "发热5天", "A+", "A-", "a+"]
    assert members(clusters_of(short)) == [(5, 6), (12, 14)]
    rng = random.Random(0)
    words = sorted({"".join(rng.choices("发热头痛咳嗽气短胸闷腹泻呕吐", k=rng.randrange(1, 8))) for _ in range(3000)})
    assert clusters_of(words) == []


def test_traditional_full_width_and_capitals_are_the_same_text() -> None:
    same = [
        "患者头发脱落，以后复查ALT 56U/L",
        "患者頭髮脫落，以後復查ALT 56U/L",
        "患者头发脱落,以后复查ａｌｔ　５６Ｕ／Ｌ。",
    ]
    assert members(clusters_of(same)) == [(0, 1, 2)]


def test_a_text_of_a_million_characters_is_compared() -> None:
    rng = random.Random(1)
    long = record(rng, ZH, 1_000_000)
    found = clusters_of(["短", long, record(rng, ZH, 300), long.replace("患者", "病人"), "\n" + long])
    assert members(found) == [(1, 3, 4)] and (1, 4, 1.0) in found[0].pairs


def test_many_copies_and_many_forms_stay_fast() -> None:
    """Neither ten thousand copies nor three thousand forms that differ in a figure are compared all with all."""
    forms = [LONG.format(f"血压{i % 70 + 90}/{i // 70 + 40}mmHg") for i in range(3000)]
    assert members(clusters_of([LONG] * 10_000 + forms)) == [tuple(range(10_000))]


def test_memory_a_text_is_as_stated(texts: list[str]) -> None:
    index = Index()
    index.add(texts * 4)
    index.clusters()
    columns = [index._ends, index._sums, index._bits, *index._bands]
    used = sum(column.whole().nbytes for column in columns) + index._marks.nbytes
    assert used == len(index) * Index.BYTES + 8  # one place more than texts


def test_of_a_chain_the_ends_both_stay() -> None:
    words = [f"第{name}段写着各不相同的内容{name}{name}。" for name in "甲乙丙丁戊己庚辛壬癸子丑寅卯辰巳"]
    chain = ["".join(words[i : i + 12]) for i in (0, 2, 4)]
    index = Index()
    index.add(chain)
    (cluster,) = index.clusters()
    assert jaccard_of(chain[0], chain[2]) < 0.7 <= jaccard_of(chain[0], chain[1])
    assert [number for number, _ in index.surplus(cluster, rank=lambda number: number)] == [1]
    assert [number for number, _ in index.surplus(cluster, rank=lambda number: -number)] == [1]
    dropped = index.surplus(cluster, rank=lambda number: number != 1)
    assert [number for number, _ in dropped] == [0, 2] and dropped[0][1].jaccard >= 0.7


@pytest.mark.parametrize(
    "one, other, opposed",
    [
        ("患者无发热，血钾升高，要紧吗", "患者有发热，血钾升高，要紧吗", True),
        ("血钾升高的原因", "血钾降低的原因", True),
        ("首选什么药物", "禁用什么药物", True),
        ("The patient denies fever today", "The patient reports fever today", True),
        ("Potassium increased after the drug", "Potassium decreased after the drug", True),
        ("要查什么？", "要查些什么？", False),
        ("咳嗽三周，夜里加重", "咳嗽三周夜间加重", False),
        ("医生您好，咳嗽三周", "医生您好，我不知道该挂哪个科室的号，咳嗽三周", False),
        ("What tests are needed?", "What tests do I need?", False),
    ],
)
def test_texts_that_say_the_opposite(one: str, other: str, opposed: bool) -> None:
    assert are_opposed(one, other) is are_opposed(other, one) is opposed


def test_a_threshold_below_the_bands_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected 0.7 to 1, got 0.5"):
        clusters_of(["发热"], 0.5)


# Decontamination


@pytest.fixture(scope="module")
def items() -> dict[str, list[str]]:
    rng = random.Random(5)
    return {name: [fill(rng, words, rng.choice(words["item"])) for _ in range(150)] for name, words in LANGUAGES}


@pytest.fixture(scope="module")
def ordinary() -> list[str]:
    rng = random.Random(6)
    return [record(rng, words, 400, 0.3) for _, words in LANGUAGES for _ in range(400)]


LANGUAGES = [("zh", ZH), ("en", EN)]


def test_leaks_are_found_and_named(items: dict[str, list[str]], ordinary: list[str]) -> None:
    rng = random.Random(7)
    guard = Guard(items, ordinary)
    changes = {
        "exact": lambda text: text,
        "prefix": lambda text: f"请回答：{text}答案如下。",
        "punctuation": lambda text: repunctuated(rng, text),
        "edited": lambda text: edited(rng, text, 0.03),
    }
    for (file, texts), (name, change) in itertools.product(items.items(), changes.items()):
        hits = list(guard.check_all(map(change, texts)))
        found = sum(hit is not None for hit in hits)
        assert found == len(texts) if name != "edited" else found >= 0.97 * len(texts), (file, name)
        right = sum(hit is not None and hit[:2] == (file, number) for number, hit in enumerate(hits))
        assert right >= 0.97 * found
        assert all(hit is None or (hit.run in key_of(texts[hit.number]) and hit.coverage > 0.5) for hit in hits)
    assert (
        guard.check(items["zh"][3]) == next(guard.check_all([items["zh"][3]])) == ("zh", 3, 1.0, key_of(items["zh"][3]))
    )


def test_ordinary_records_and_boilerplate_are_not_flagged(items: dict[str, list[str]], ordinary: list[str]) -> None:
    rng = random.Random(8)
    guard = Guard(items, ordinary)
    others = [record(rng, words, 600, 0.3) for _, words in LANGUAGES for _ in range(200)]
    assert sum(hit is not None for hit in guard.check_all(others)) <= 4
    assert not any(
        guard.check_all([*ZH["boilerplate"], *EN["boilerplate"], "", "患者", "What is the most likely diagnosis?"])
    )


def test_boilerplate_around_an_item_does_not_flag_its_neighbours() -> None:
    rng = random.Random(9)
    form = "".join(ZH["boilerplate"])
    held, rest = ([record(rng, ZH, 40, 0) + form for _ in range(count)] for count in (20, 300))
    guard = Guard({"held": held}, rest)
    assert not any(guard.check_all(rest))
    assert all(guard.check_all(held)) and all(guard.check_all("另：" + text for text in held))


def test_an_item_that_is_a_common_phrase_and_a_few_words_is_known_by_its_words() -> None:
    rng = random.Random(11)
    phrase = max(ZH["boilerplate"], key=len)
    rest = [record(rng, ZH, 60, 0) + phrase + record(rng, ZH, 60, 0) for _ in range(200)]
    item = f"{phrase}右下腹持续隐痛伴低热。"
    guard = Guard({"exam": [item]}, [*rest, item])
    assert not any(guard.check_all(rest))
    assert guard.check(f"请看：{item}怎么办？") == ("exam", 0, 1.0, key_of(item))


def test_an_item_that_leaks_many_times_is_no_boilerplate(items: dict[str, list[str]]) -> None:
    rng = random.Random(10)
    leaks = [items["zh"][0] + record(rng, ZH, 300, 0) for _ in range(40)]
    assert all(Guard(items, leaks).check_all(leaks))


def test_short_items_must_be_the_whole_text() -> None:
    guard = Guard({"quiz": ["", "痛风首选药物？", "“痛风首选药物”", "肺炎"]})
    assert guard.check("痛风 首选药物") == ("quiz", 1, 1.0, "痛风首选药物")
    assert guard.check("肺炎。") == ("quiz", 3, 1.0, "肺炎")
    assert guard.check("患者痛风首选药物是什么，肺炎呢") is None and guard.check("") is None
    assert Guard({}).check("痛风") is None


@pytest.mark.skipif("REAL_DATA" not in os.environ, reason="REAL_DATA names no folder with the real files")
def test_equal_real_records_are_in_one_cluster() -> None:
    (path,) = Path(os.environ["REAL_DATA"]).glob("*camp_data_step_1_without_answer.jsonl")
    texts = [row["feature_content"] for _, row in read_rows(str(path))]
    home = {number: cluster.members[0] for cluster in clusters_of(texts) for number in cluster.members}
    first: dict[str, int] = {}
    for number, text in enumerate(texts):
        assert first.setdefault(key_of(text), number) == number or home[number] == home[first[key_of(text)]]
    assert len(first) < len(texts)
