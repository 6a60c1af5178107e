from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from datetime import date

import pytest

from bench.identifiers import negatives, planted, score, wilson
from preprocess.privacy import FIELDS, KINDS, find, find_all, is_id_card, mask, mask_all, mask_record, passes_luhn, scan
from preprocess.records import Record

NOTE = (
    "姓名：王小明　性别：男　住院号：0012345\n身份证号：11010519491231002X，联系电话：138 0013 8000。\n"
    "患者王小明因胸痛2小时入院，WBC 13.6×10⁹/L。家属李秀英签字。"
)


def kinds(text: str) -> list[tuple[str, str]]:
    return [(finding.kind, finding.text) for finding in find(text)]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("患者姓名：王小明", [("name", "王小明")]),
        ("姓　名：王　伟　性别：男", [("name", "王　伟")]),
        ("患者欧阳建国，男，67岁，因胸闷入院", [("name", "欧阳建国")]),
        ("联系人：阿依古丽·买买提（妻子）", [("name", "阿依古丽·买买提")]),
        ("医师签名：李强/王芳", [("name", "李强"), ("name", "王芳")]),
        ("请心内科李建国主任会诊", [("name", "李建国")]),
        ("张女士，45岁", [("name", "张")]),
        ("Name: O'Neil, Sean", [("name", "O'Neil, Sean")]),
        ("Mr. Smith and Mrs. Mary-Jane García-López", [("name", "Smith"), ("name", "Mary-Jane García-López")]),
        ("Attending: Dr. J. Patel", [("name", "J. Patel")]),
        ("身份证 110105 19491231 002X", [("id_card", "110105 19491231 002X")]),
        ("电话：（0755）8888 6666转801", [("phone", "（0755）8888 6666转801")]),
        ("手机+86-138-0013-8000", [("phone", "+86-138-0013-8000")]),
        ("Call (212) 555-0142 ext. 7", [("phone", "(212) 555-0142 ext. 7")]),
        ("住院号：ZY-2023-00123", [("record_number", "ZY-2023-00123")]),
        ("MRN# 445566", [("record_number", "445566")]),
        (
            "住址：江苏省南京市鼓楼区中山路321号5栋2单元301室，已婚",
            [("address", "江苏省南京市鼓楼区中山路321号5栋2单元301室")],
        ),
        ("lives at 12 Oak Street, Apt 4B, Boston, MA 02115.", [("address", "12 Oak Street, Apt 4B, Boston, MA 02115")]),
        ("邮箱：li.ming+x@mail.example.com。", [("email", "li.ming+x@mail.example.com")]),
        ("出生日期：1978年3月5日", [("birth_date", "1978年3月5日")]),
        ("DOB: 5-Mar-1978", [("birth_date", "5-Mar-1978")]),
        ("1963年7月8日出生于外地", [("birth_date", "1963年7月8日")]),
        ("护照号：E12345678", [("passport", "E12345678")]),
        ("银行卡 4111 1111 1111 1111", [("bank_card", "4111 1111 1111 1111")]),
        ("微信：wx_123456；QQ：123456789", [("account", "wx_123456"), ("account", "123456789")]),
        ("驾车（粤A·12345）追尾", [("plate", "粤A·12345")]),
        ("姓名,电话\n王小明,13800138000", [("name", "王小明"), ("phone", "13800138000")]),
        ("住院号码：\n0012345", [("record_number", "0012345")]),
    ],
)
def test_what_is_found(text: str, expected: list[tuple[str, str]]) -> None:
    assert kinds(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "患者高热3天，白细胞13.6×10^9/L，血压138/86mmHg，入院日期2023-05-06。",
        "患者安静，常于夜间发作，明显加重；医生：方便的话明天复查。患者：好的，谢谢。",
        "标本号：13800138000，条码号110105194912310021，HBV-DNA 13800138000 IU/ml。",
        "患者服何首乌、黄连素、金水宝后腹泻；马来酸依那普利10mg，云南白药外用。",
        "出生体重3250g，生于2015年？13C呼气试验DOB 21.5‰；I10.x05，国药准字H20051234。",
        "转自某市人民医院3号楼，床号：12，湖南省邵阳市人，张**已签字。",
        "Patient: Denies chest pain. Drug name: Lisinopril. MS Contin 15 mg, MR angiography, Crohn's disease.",
        "Mother: Breast Cancer at age 50. Seen by Cardiology on 05/06/2023; BP 142/88, SpO2 94 %.",
    ],
)
def test_what_is_no_identifier(text: str) -> None:
    assert kinds(text) == []


def test_the_check_digit_is_that_of_iso_7064() -> None:
    """Against the definition (the weighted sum is 1 modulo 11), for every last character."""
    draw = random.Random(0)
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2, 1)
    for _ in range(300):
        born = date.fromordinal(draw.randint(date(1900, 1, 1).toordinal(), date(2020, 1, 1).toordinal()))
        body = f"44{draw.randint(0, 9999):04}{born:%Y%m%d}{draw.randint(0, 999):03}"
        for last in "0123456789X":
            values = [10 if char == "X" else int(char) for char in body + last]
            total = sum(value * weight for value, weight in zip(values, weights, strict=True))
            assert is_id_card(body + last) == (total % 11 == 1)


@pytest.mark.parametrize("number", ["110105194902310029", "000105194912310028", "44010119900", "110105491331002"])
def test_an_impossible_number_is_no_id_card(number: str) -> None:
    assert not is_id_card(number)


def test_luhn_is_that_of_known_cards() -> None:
    assert all(map(passes_luhn, ["4111111111111111", "5555555555554444", "378282246310005", "79927398713"]))
    assert not any(passes_luhn(f"7992739871{digit}") for digit in "0124567890")


def test_masks_keep_the_record_readable() -> None:
    masked, counts = mask(NOTE)
    assert masked == (
        "姓名：[姓名]　性别：男　住院号：[病历号]\n身份证号：[身份证号]，联系电话：[电话]。\n"
        "患者[姓名]因胸痛2小时入院，WBC 13.6×10⁹/L。家属[姓名2]签字。"
    )
    assert counts == Counter(name=3, record_number=1, id_card=1, phone=1)
    assert mask("Mr. Smith, MRN: 00123456. Mrs. Jones called; Smith slept.")[0] == (
        "Mr. [NAME], MRN: [RECORD NUMBER]. Mrs. [NAME2] called; [NAME] slept."
    )


def test_a_name_found_in_one_text_of_a_record_is_masked_in_all() -> None:
    assert mask_all(["姓名：赵雪琴", "考虑赵雪琴的病史"])[0] == ["姓名：[姓名]", "考虑[姓名]的病史"]
    record = Record("1", "s", "", "姓名：赵雪琴，胸痛", "赵雪琴可能是心绞痛", "先查心电图", {"k": "v"})
    masked, counts = mask_record(record)
    assert (masked.question, masked.think, masked.answer) == ("姓名：[姓名]，胸痛", "[姓名]可能是心绞痛", "先查心电图")
    assert counts == Counter(name=2) and masked.meta == record.meta
    assert mask_record(Record("2", "s", "", "胸痛", "", "查心电图"))[1] == Counter()


def test_numbers_go_on_after_masks_that_are_there() -> None:
    assert mask("家属[姓名]与[姓名2]；联系人：王小明")[0] == "家属[姓名]与[姓名2]；联系人：[姓名3]"


@pytest.mark.parametrize(
    "text, found",
    [
        ("电话：１３８００１３８０００。", "１３８００１３８０００"),
        ("😀姓名：王小明😀", "王小明"),
        ("𠮷姓名：𠮷王小明"[1:], None),
        ("手机138\u200b0013\u200b8000", "138\u200b0013\u200b8000"),
        ("Mr. Jose\u0301 Alva\u0301rez slept", "Jose\u0301 Alva\u0301rez"),
        ("邮箱：ｌｉ．ｍｉｎｇ＠ｍａｉｌ．ｃｏｍ", "ｌｉ．ｍｉｎｇ＠ｍａｉｌ．ｃｏｍ"),
        ("№ ㎎ 10⁹ 住院号：０１２３４５", "０１２３４５"),
        ("İİ MRN: 1234567", "1234567"),
    ],
)
def test_offsets_are_those_of_the_original(text: str, found: str | None) -> None:
    findings = find(text)
    assert all(text[one.start : one.end] == one.text for one in findings)
    if found is not None:
        assert [one.text for one in findings] == [found]


def test_superscripts_are_no_digits() -> None:
    assert kinds("计数 1380013800⁹ 个") == []


def test_findings_are_ordered_apart_and_the_same_every_time() -> None:
    for text, _ in planted(120):
        findings = find(text)
        assert findings == find(text)
        assert all(one.start < one.end for one in findings)
        assert all(one.end <= two.start for one, two in itertools.pairwise(findings))


PIECES = (
    "姓名：|王小明|患者|张三|，|。|\n| |13800138000|11010519491231002X|[姓名]|[NAME]|Name: |John Smith|Mr. "
    "|住院号|0012345|地址：|中山路3号"
    "|北京市海淀区|女士|主任|@|a.b@c.com|1980年5月6日|出生|：|😀|\u200b|é|e\u0301|１２３|0755-|88886666"
    "|[电话2]|DOB|05/06/1980|男|45岁|/|、|("
    "|)|微信|abc_123|Dr. |O'Neil|+86|-|住|号|3栋|12 Oak Street, Boston|京A12345|车|𠮷|\ud800|İ|№|10⁹|㎎|\t||"
)


def test_masking_twice_is_masking_once_and_nothing_else_changes() -> None:
    draw = random.Random(7)
    texts = ["".join(draw.choices(PIECES.split("|"), k=draw.randint(1, 14))) for _ in range(1500)]
    for text in [*texts, *(text for text, _ in planted(100))]:
        masked, counts = mask(text)
        assert mask(masked) == (masked, Counter()) and find(masked) == []
        if not counts:
            assert masked == text


def test_what_lies_between_the_identifiers_stays() -> None:
    for text, _ in planted(60):
        edges = [0, *itertools.chain.from_iterable((one.start, one.end) for one in find(text)), None]
        between = [text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]
        masked = mask(text)[0]
        pattern = r"\[[^\[\]]+\]".join(map(re.escape, between))
        assert re.fullmatch(pattern, masked), (text, masked)


def test_a_report_says_where_and_never_what() -> None:
    records = [
        Record("r1", "s", "", NOTE, "", "已告知王小明"),
        Record("13800138000", "s", "", "电话13800138000", "", "好"),
    ]
    places = list(scan(records))
    assert [(place.record, place.field, place.kind) for place in places[-2:]] == [
        ("r1", "answer", "name"),
        ("[电话]", "question", "phone"),
    ]
    assert Counter(place.kind for place in places) == Counter(name=4, record_number=1, id_card=1, phone=2)
    secrets = [
        one.text for record in records for found in find_all([getattr(record, key) for key in FIELDS]) for one in found
    ]
    assert not any(secret in repr(places) for secret in secrets)


@pytest.mark.parametrize(
    "text",
    [
        "1" * 10**6,
        "患者" * 500_000,
        "王" * 10**6,
        "１" * 10**6,
        "a" * 10**6,
        "13800138000" * 90_000,
        "1-" * 500_000,
        "北京市" * 330_000,
    ],
    ids=["digits", "patient", "surname", "full-width", "latin", "phones", "dashes", "places"],
)
def test_a_megabyte_comes_to_an_end(text: str) -> None:
    """A pattern that tries all ways would not come back; how long it takes is `bench.identifiers`'s to say."""
    assert all(text[found.start : found.end] == found.text for found in find(text))


def test_the_planted_are_found_and_the_rest_is_left_alone() -> None:
    counts = score(planted(400) + negatives(400))
    assert set(counts) == set(KINDS)
    for kind, row in counts.items():
        assert row["found"] / row["planted"] >= 0.98, kind
        assert row["false"] / row["findings"] <= 0.02, kind


def test_wilson_is_the_textbooks() -> None:
    low, high = wilson(8, 10)
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)
