from __future__ import annotations

import json
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from preprocess.medical_o1 import to_record
from preprocess.records import MAX_CHARACTERS, content_id, read_rows, text_field, write_jsonl
from recipe import UserError, atomic, write_all

ROW = {"Question": "头痛？", "Complex_CoT": "先问时间。", "Response": "去门诊。"}


@pytest.mark.parametrize(
    "content",
    [
        [ROW, ROW],
        json.dumps(ROW, ensure_ascii=False) + "\n" + json.dumps(ROW) + "\n",
        {"metadata": {"n": 2}, "data": [ROW, ROW]},
        json.dumps({"metadata": {}, "data": [ROW, ROW]}, indent=2),
        "\ufeff" + json.dumps([ROW, ROW]),
        json.dumps(ROW) + "\r\n\r\n" + json.dumps(ROW) + "\r\n",
    ],
    ids=["list", "jsonl", "wrapper", "wrapper on lines", "byte order mark", "CRLF and a blank line"],
)
def test_every_container_is_read(write: Callable, content: object) -> None:
    assert [row for _, row in read_rows(write("rows.json", content))] == [ROW, ROW]


def test_places_name_the_line_or_the_item(write: Callable) -> None:
    lines = write("a.jsonl", json.dumps(ROW) + "\n\n" + json.dumps(ROW))
    assert [place for place, _ in read_rows(lines)] == [f"{lines}:1", f"{lines}:3"]
    items = write("a.json", [ROW, ROW])
    assert [place for place, _ in read_rows(items)] == [f"{items}: item 1", f"{items}: item 2"]


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "the file is empty"),
        (" \n", "the file is empty"),
        ('[{"a": 1},\n{"a": }]', ":2: not valid JSON"),
        ('{"a": 1}\n{"a": \n', ":2: not a JSON object"),
        ('{"a": 1}\n[1]\n', ":2: not a JSON object"),
        ('"text"', "expected a JSON list, JSONL, or an object"),
        ('[{"a": 1}, 7]', "item 2: expected a JSON object, got int"),
        ("[" * 100_000, "nested too deeply"),
        ('[{"a": NaN}]', "item 1: holds NaN"),
        ('[{"a": 1, "x": "\\ud800"}]', "item 1: holds a lone surrogate"),
        ('[{"a": ' + "9" * 5000 + "}]", "not valid JSON"),
        ('{"a": \n{"a": 1}\n', ":1: not a JSON object"),
        ("头痛三天，没有发热。".encode("gb18030"), "is not UTF-8; convert it first"),
        ('{"a": 1}\n{"a": "' + "长" * MAX_CHARACTERS + '"}', ":2: the line has 4,000,009 characters"),
    ],
)
def test_a_broken_file_is_named_with_its_place(write: Callable, content: object, message: str) -> None:
    path = write("rows.json", content)
    with pytest.raises(UserError) as error:
        list(read_rows(path))
    assert str(error.value).startswith(path) and message in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        list(read_rows(f"{tmp_path}/none.json"))
    with pytest.raises(UserError, match="is a folder"):
        list(read_rows(str(tmp_path)))


@pytest.mark.parametrize(
    "row, message",
    [
        ({"question": "?"}, "key 'Question' is missing; the row has 'question'"),
        ({}, "the row has no keys"),
        (ROW | {"Response": ["a"]}, "Response must be a string, got list"),
        (ROW | {"Response": None}, "Response must be a string, got NoneType"),
        (ROW | {"Complex_CoT": "想\ud800"}, "Complex_CoT holds a lone surrogate at character 1"),
        (ROW | {"Complex_CoT": "想" * (MAX_CHARACTERS + 1)}, "Complex_CoT has 4,000,001 characters"),
    ],
)
def test_a_wrong_row_is_named_with_its_key(row: dict, message: str) -> None:
    with pytest.raises(UserError, match=r"^rows\.json: item 3: ") as error:
        to_record(row, "rows.json: item 3")
    assert message in str(error.value)


def test_medical_o1_keeps_text_to_the_character_and_other_keys() -> None:
    row = {"Question": " a\u00a0b 10⁹/L？\n", "Complex_CoT": "一\n\n二  三", "Response": "“好”…", "answer_idx": "D"}
    record = to_record(row, "x")
    assert (record.question, record.think, record.answer) == ("a\u00a0b 10⁹/L？", "一\n\n二  三", "“好”…")
    assert record.meta == {"answer_idx": "D"} and record.source == "medical_o1"


def test_an_id_depends_on_the_content_alone() -> None:
    assert content_id("甲", "乙") == content_id("甲", "乙") != content_id("甲乙", "")
    assert to_record(ROW, "a").id == to_record(dict(reversed(ROW.items())), "b").id


def test_text_field_strips_the_ends_only() -> None:
    assert text_field({"a": "\u3000x y\n"}, "a", "p") == "x y"


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [{"a": "旧"}])

    def rows() -> object:
        yield {"a": "新"}
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="could not be written"):
        write_jsonl(path, rows())
    assert path.read_text(encoding="utf-8") == '{"a": "旧"}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_write_that_the_disk_refuses_is_one_line_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("旧", encoding="utf-8")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with (
            pytest.raises(UserError, match=r"a\.txt: could not be written .*; nothing was changed"),
            atomic(path) as file,
        ):
            file.write("新" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text(encoding="utf-8") == "旧" and list(tmp_path.iterdir()) == [path]


def test_several_files_are_replaced_all_or_none(tmp_path: Path) -> None:
    write_all({tmp_path / "a": "旧", tmp_path / "b": "旧"})
    (tmp_path / "c").mkdir()
    with pytest.raises(UserError, match=r"c: is no file"):
        write_all({tmp_path / "a": "新", tmp_path / "b": "新", tmp_path / "c": "新"})
    with pytest.raises(UserError, match=r"b: could not be written"):
        write_all({tmp_path / "a": "新", tmp_path / "b": "\ud800"})
    assert {p.name for p in tmp_path.iterdir()} == {"a", "b", "c"}
    assert {(tmp_path / name).read_text(encoding="utf-8") for name in "ab"} == {"旧"}
