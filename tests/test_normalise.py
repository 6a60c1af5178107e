"""Normalising changes how a text is written, never a number, a unit, a sign or a letter's case."""

from __future__ import annotations

import unicodedata

import pytest

from preprocess.normalise import is_mojibake, measures, normalise, read_as_gbk


@pytest.mark.parametrize(
    ("text", "expected", "done"),
    [
        ("咳嗽,夜间加重;气短", "咳嗽，夜间加重；气短", ("punctuation",)),
        ("血糖 11.2mmol/L,夜间口渴", "血糖 11.2mmol/L,夜间口渴", ()),  # a value on one side: left alone
        ("性别: 男", "性别: 男", ()),
        ("咳嗽\u200b三天\x07", "咳嗽三天", ("control",)),
        ("一行\r\n二行", "一行\n二行", ("control",)),
        ("一行\x0b二行\x0c三行\u2028四行", "一行\n二行\n三行\n四行", ("control",)),
        (unicodedata.normalize("NFD", "café"), "café", ("nfc",)),
        ("发热三天".encode().decode("gb18030"), "发热三天", ("encoding",)),
        ("发热，三天".encode().decode("latin-1"), "发热，三天", ("encoding",)),
        ("“好”，ＣＴ１次！…", "“好”，ＣＴ１次！…", ()),
    ],
)
def test_what_is_changed(text: str, expected: str, done: tuple[str, ...]) -> None:
    assert normalise(text) == (expected, done)
    assert normalise(expected) == (expected, ())


@pytest.mark.parametrize(
    "text",
    [
        "WBC 12.3×10⁹/L",
        "½片，每日３次",
        "PaO₂ 60mmHg",
        "Na⁺ 140",
        "5 mg 与 5 Mg",
        "HBsAg(+)，HBeAg(-)",
        "300\u212a",
        "37℃",
    ],
)
def test_numbers_and_units_stay(text: str) -> None:
    changed, _ = normalise(text)
    assert measures(changed) == measures(text) and measures(text)
    assert changed == unicodedata.normalize("NFC", text)


def test_two_numbers_never_become_one() -> None:
    assert normalise("血压120\x0b80") == ("血压120\n80", ("control",))
    assert normalise("5\u200b10 mg,口服") == ("5\u200b10 mg,口服", ("reverted",))


def test_good_chinese_is_not_taken_for_gbk() -> None:
    for text in ("发热三天，先查血常规。", "患者男，45岁，因反复上腹痛半年入院。", "abc", "", "发热"):
        assert read_as_gbk(text) is None


def test_lost_characters_are_told_but_not_made_up() -> None:
    assert is_mojibake("去\ufffd门诊") and is_mojibake("锟斤拷") and not is_mojibake("β受体阻滞剂 5 µg")
    assert normalise("去\ufffd门诊") == ("去\ufffd门诊", ())
