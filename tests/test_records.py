from __future__ import annotations

import io
import json
import random
import resource
import tracemalloc
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from preprocess import document
from preprocess.document import MAX_CHARACTERS
from preprocess.medical_o1 import to_record
from preprocess.records import Record, content_id, read_rows, record_id, text_field, to_json, write_jsonl
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
        '{"data": [\n' + json.dumps(ROW) + ",\n" + json.dumps(ROW) + '\n],\n"metadata": {"data": [1]}}',
        '{"data": [\n' + json.dumps(ROW) + "\n," + json.dumps(ROW) + "]}",
        "\n \n[" + json.dumps(ROW) + ",\n\n" + json.dumps(ROW) + "]\n\n",
    ],
    ids=[
        *("list", "jsonl", "wrapper", "wrapper on lines", "byte order mark", "CRLF and a blank line"),
        *("wrapper with its metadata last", "wrapper with an object on its second line", "blank lines around a list"),
    ],
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
        ('{"a": "' + "长" * MAX_CHARACTERS + '"}\n{"a": 1}', ":1: the line has 4,000,009 characters"),
        ('[{"a": 1},\n{"a": "' + "长" * MAX_CHARACTERS + '"}]', ": item 2: more than 4,000,000 characters"),
        ('[{"a": 1},\n{"a": "' + "长" * MAX_CHARACTERS * 2 + '"}]', ": item 2: more than 4,000,000 characters"),
        ('{"data": "' + "长" * MAX_CHARACTERS * 2 + '", "rows": []}', ":1: the line has 8,000,024 characters"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', ":1: not a JSON object (key 'c' is there twice)"),
        ('[{"a": 1, "a": 1}]', ": item 1: not valid JSON (key 'a' is there twice)"),
        ('{"data": [{"a": 1}],\n"data": []}', ":2: not valid JSON (key 'data' is there twice"),
        ('{"a":\n1}', "expected a JSON list, JSONL, or an object"),
        ('[{"a": 1}]\n[{"a": 2}]', ":2: not valid JSON (Extra data, column 1)"),
        ('[{"a": 1},\n {"a": "x', ":2: not valid JSON (Unterminated string starting at, column 8)"),
        ('{"a": 1}\n{"a": "\t"}', ":2: not a JSON object (Invalid control character at, column 8)"),
        ('{"a": 1}\n{"a": 1e999}', ":2: holds NaN, Infinity"),
        ('{"a": 1}\n' + "[" * 100_000, ":2: not a JSON object (nested too deeply)"),
        ('{"a": 1}\n{"a": ' + "9" * 5000 + "}", ":2: not a JSON object (Exceeds the limit"),
        ('{"a": 1}\n\0\0\0', ":2: not a JSON object (Expecting value"),
        (b"\xef\xbb\xbf" + b'{"a": "x"}\n' * 20_000 + b'{"a": "\xff"}', ": byte 220010 is not UTF-8"),
        (b"[" + b'{"a": "x"},' * 20_000 + b'{"a": "\xff"}]', ": byte 220008 is not UTF-8"),
        ('{"a": 1}'.encode("utf-16"), ": byte 0 is not UTF-8"),
    ],
)
def test_a_broken_file_is_named_with_its_place(write: Callable, content: object, message: str) -> None:
    path = write("rows.json", content)
    with pytest.raises(UserError) as error:
        list(read_rows(path))
    assert str(error.value).startswith(path) and message in str(error.value) and "\n" not in str(error.value)


def invented(draw: random.Random, depth: int = 0) -> Any:
    """Any JSON value, with strings that look like structure."""
    kind = draw.random()
    if depth > 2 or kind < 0.5:
        return draw.choice(["咳嗽\n", '"x\\",', '{"data": [', "\u2028😀", 0, 12, -3.5, 1e9, True, None])
    if kind < 0.7:
        return [invented(draw, depth + 1) for _ in range(draw.randint(0, 3))]
    return {f"{draw.choice('abc')}{i}": invented(draw, depth + 1) for i in range(draw.randint(0, 3))}


def damaged(draw: random.Random, text: str) -> str:
    at = draw.randrange(len(text))
    added = draw.choice(',:[]{}"\\ 1n')
    return draw.choice([text[:at] + text[at + 1 :], text[:at] + added + text[at:], text[:at]]) or " "


@pytest.mark.parametrize("stretch", [1, 3, 50, 10**6])
def test_a_document_is_read_as_json_reads_it_wherever_it_is_cut(stretch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle is json.loads: the same rows, or the same words, line and column."""
    monkeypatch.setattr(document, "STRETCH", stretch)
    draw = random.Random(stretch)
    compared = 0
    for _ in range(600):
        rows = [{f"k{i}": invented(draw) for i in range(draw.randint(0, 3))} for _ in range(draw.randint(0, 4))]
        whole: Any = rows if draw.random() < 0.5 else {"m": invented(draw), "data": rows, "z": invented(draw)}
        text = json.dumps(whole, ensure_ascii=draw.random() < 0.5, indent=draw.choice([None, 1]))
        text = text if draw.random() < 0.4 else damaged(draw, text)
        try:
            found: Any = [row for _, row in document.items("f", io.StringIO(text))]
        except UserError as error:
            found = str(error)
        try:
            loaded = json.loads(text)
            expected = loaded.get("data") if isinstance(loaded, dict) else loaded
        except json.JSONDecodeError as error:
            expected = f"f:{error.lineno}: not valid JSON ({error.msg}, column {error.colno})"
        if isinstance(found, str) and ("expected a JSON" in found or "is there twice" in found):
            continue  # what json takes and this refuses
        assert found == expected, text
        compared += 1
    assert compared > 500


@pytest.mark.parametrize(
    "before, between, after", [("[", ",\n", "]"), ('{"m": 1, "data": [', ", ", "]}"), ("", "\n", "")]
)
def test_memory_does_not_grow_with_the_file(write: Callable, before: str, between: str, after: str) -> None:
    row = json.dumps({"Question": "咳" * 1000, "Response": "嗽" * 1000}, ensure_ascii=False)
    peaks = []
    for rows in (2500, 7500):
        path = write("rows", before + between.join([row] * rows) + after)
        tracemalloc.start()
        try:
            assert sum(1 for _ in read_rows(path)) == rows
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] < peaks[0] + 1_000_000 < 20_000_000 < Path(path).stat().st_size / 2


@pytest.mark.parametrize("content", ['[{"a": 1},\n{"a": 2}, nonsense', '{"a": 1}\n{"a": 2}\nnonsense'])
def test_no_more_is_read_than_is_asked_for(write: Callable, content: str) -> None:
    assert [row for _, row in islice(read_rows(write("rows", content)), 2)] == [{"a": 1}, {"a": 2}]


def test_jsonl_whose_rows_have_a_data_list_is_no_wrapper(write: Callable) -> None:
    row = {"data": [{"a": 1}]}
    assert [got for _, got in read_rows(write("a.jsonl", json.dumps(row) + "\n\n" + json.dumps(row)))] == [row, row]
    assert [got for _, got in read_rows(write("b.json", json.dumps(row) + "\n\n"))] == [{"a": 1}]


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


@pytest.mark.parametrize(
    "given, id_", [(17, "17"), ("17", "17"), (17.0, "17"), (" a/7 ", "a/7"), (0, "0"), (2**70, str(2**70)), (-1, "-1")]
)
def test_a_real_id_is_kept_as_a_string(given: object, id_: str) -> None:
    record = to_record(ROW | {"id": given}, "p")
    assert record.id == id_ and record.meta["id"] is given


def test_without_an_id_the_content_gives_one() -> None:
    assert {record_id({"id": nothing}, "p", "甲") for nothing in (None, "", " ")} == {content_id("甲")}
    assert record_id({}, "p", "甲") == content_id("甲")


@pytest.mark.parametrize("given", [True, 1.5, [1], {"a": 1}, float("inf")])
def test_an_id_of_another_type_is_refused(given: object) -> None:
    with pytest.raises(UserError, match="p: id must be a string or a whole number, got"):
        record_id({"id": given}, "p", "甲")


def test_a_record_is_written_as_an_object_with_all_its_fields() -> None:
    record = Record("1", "s", "", "问", "", "答", {"fields": {"性别": "女"}})
    texts = '"id": "1", "source": "s", "system": "", "question": "问", "think": "", "answer": "答"'
    assert to_json({"record": record}) == '{"record": {' + texts + ', "meta": {"fields": {"性别": "女"}}}}'


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
