"""The submission: asked as trained, every record once and in order, whatever kills it; and the proof of the file."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from eval.predict import Predict, of_dataset
from eval.submission import check, check_file, files_of, read_labels, rows_of, submit
from preprocess.build import build
from preprocess.data import Data
from preprocess.records import read_rows, to_json
from recipe import UserError, load
from tests.conftest import ROOT
from tests.teacher import Teacher, teacher

Row = dict[str, Any]
DATA = f"{ROOT}/recipes/healthai/data.yaml"
SERVE = f"{ROOT}/recipes/healthai/serve.yaml"
SAMPLES = f"{ROOT}/data/samples"
REAL = pytest.mark.skipif("REAL_DATA" not in os.environ, reason="REAL_DATA=dir with the competition's file is not set")
# Those that come at once, and those that a try of few seconds sees the end of.
KINDS = "429,429_seconds,500,503,drop,cut,half,empty,html,type,error"


def jsonl(rows: list[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def settings_of(server: Teacher, tmp_path: Path, records: str | list[str], **changes: Any) -> Predict:
    """The recipe's predict.yaml, with a server as the tuned arm."""
    made = load(Predict, f"{ROOT}/recipes/healthai/predict.yaml")
    changes = {"serve": SERVE, "data": DATA, "records": records, "output": f"{tmp_path}/out"} | changes
    return replace(made, arms=["base", f"tuned={server.base_url}#teacher"], **changes)


def read(tmp_path: Path, name: str = "predict_output.jsonl") -> list[Row]:
    return [json.loads(line) for line in (tmp_path / "out" / name).read_text(encoding="utf-8").split("\n") if line]


def patient(number: int) -> Row:
    text = (
        f"性别: 女\n年龄: {20 + number % 60}\n主诉: 第{number}次咳嗽{number}天\n现病史: 夜间发热，咳白痰\n既往史: 无 \n"
    )
    return {"id": 3001 + number, "feature_content": text}


def said(reason: str, diseases: str) -> str:
    return json.dumps({"reason": reason, "diseases": diseases}, ensure_ascii=False)


def answered_twice(server: Teacher) -> int:
    times = server.stats()["times_answered"]
    return sum((int(number) - 1) * count for number, count in times.items())


# --- what is asked ---


@pytest.mark.parametrize("privacy", ["report", "mask"])
def test_a_record_is_asked_in_the_words_that_it_was_trained_in(tmp_path: Path, write: Callable, privacy: str) -> None:
    texts = [
        "性别: 女\n年龄: 34\n主诉: 咳嗽,发热3天 \n现病史: 平卧加重\r\n既往史: -\n过敏史: \n",
        "性别: 男\n年龄: 51\n主诉: 多饮多尿\n现病史: 空腹血糖11.2mmol/L\n辅助检查: 无诊断:1、2型糖尿病2、高血压",
        " 性别: 男性\n年龄: -1\n主诉: 头晕\n现病史: 联系电话13812345678，血压180/110mmHg。\n体格检查: 宫颈: 光滑\n",
    ]
    texts += [f"性别: 女\n年龄: {30 + i}\n主诉: {what}\n现病史: 无" for i, what in enumerate(["腹痛", "皮疹", "失眠"])]
    labelled = [{"id": i, "diseases": "病", "reason": "据", "feature_content": text} for i, text in enumerate(texts)]
    file, info = write("labelled.jsonl", jsonl(labelled)), str(tmp_path)
    data = replace(
        load(Data, DATA), input=file, output=f"{tmp_path}/data", dataset_dir=info, privacy=privacy, eval_share=0.0
    )
    build(replace(data, near_duplicates=0.0, tokenizer="", think_from="none"))
    rows = read_rows(f"{tmp_path}/data/train.json")
    trained = {row["id"]: of_dataset(row, place)["messages"] for place, row in rows}
    recipe = write(
        "data.yaml", Path(DATA).read_text(encoding="utf-8").replace("privacy: report", f"privacy: {privacy}")
    )
    records = [{"id": row["id"], "feature_content": row["feature_content"]} for row in labelled]
    with teacher(keep=10) as server:
        settings = settings_of(server, tmp_path, write("records.jsonl", jsonl(records)), response_format="none")
        submit(replace(settings, data=recipe))
        asked = [body["messages"] for body in server.stats()["bodies"]]
    assert len(trained) == 6 and sorted(map(to_json, asked)) == sorted(map(to_json, trained.values()))
    assert all(message["content"] for messages in asked for message in messages)
    assert "诊断:1" not in to_json(asked) and ("13812345678" in to_json(asked)) == (privacy == "report")


def test_step_2_is_taken_where_it_is_and_step_1_stands_in(tmp_path: Path, write: Callable) -> None:
    with pytest.raises(UserError, match=r"has no .*step_2.* and no .*step_1.*; put the competition's file there"):
        files_of(str(tmp_path))
    one = write("20250208_camp_data_step_1_without_answer.jsonl", jsonl([patient(0)]))
    assert files_of(str(tmp_path)) == [one]
    two = write("20250312_camp_data_step_2_without_answer.jsonl", jsonl([patient(1), patient(2)]))
    assert files_of(str(tmp_path)) == [two] and files_of([str(tmp_path), one]) == [two, one]
    assert [row["id"] for _, row in rows_of([one, two], limit=2)] == [3001, 3002]
    for row, fault in (
        ({"feature_content": "性别: 女"}, "key 'id' is missing"),
        ({"id": 1}, "key 'feature_content' is missing"),
        ({"id": 1, "feature_content": ["性别"]}, "feature_content must be a string, got list"),
        ({"id": [1], "feature_content": "性别: 女"}, "id must be a string or a whole number"),
    ):
        with pytest.raises(UserError, match=rf"bad.jsonl:1: {fault}"):
            rows_of(write("bad.jsonl", jsonl([row])))
    with pytest.raises(UserError, match="records: name the competition's records"):
        files_of("")


@pytest.mark.parametrize("held", [True, False])
def test_json_is_forced_where_the_server_can(
    tmp_path: Path, write: Callable, held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write("records.jsonl", jsonl([patient(0), patient(1)]))
    with teacher(keep=10, refuses="" if held else "response_format", style="diagnosis") as server:
        submit(settings_of(server, tmp_path, file))
        forms = [body.get("response_format", {}).get("type") for body in server.stats()["bodies"]]
        assert Counter(forms[1:]) == {"json_schema" if held else None: 2} and forms[0] == "json_schema"
        assert answered_twice(server) == 0
        server.reset()
        submit(settings_of(server, tmp_path, file))  # neither the server's abilities nor a record are asked about again
        assert server.stats()["requests"] == 0
        submit(settings_of(server, tmp_path, file, response_format="json_object" if held else "none"))
        assert server.stats()["answers"] == (2 if held else 0)


def test_what_leaves_the_machine_has_no_identifiers(
    tmp_path: Path, write: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    import eval.submission

    row = patient(0) | {"feature_content": "性别: 女\n年龄: 34\n主诉: 咳嗽\n现病史: 联系电话13812345678\n"}
    with teacher(keep=4) as server:
        settings = settings_of(server, tmp_path, write("records.jsonl", jsonl([row])), response_format="none")
        submit(settings)
        assert "13812345678" in server.stats()["bodies"][0]["messages"][-1]["content"]
        monkeypatch.setattr(eval.submission, "LOCAL", ())  # as if it were elsewhere
        submit(settings)
        assert "13812345678" not in server.stats()["bodies"][1]["messages"][-1]["content"]
    assert read(tmp_path)[0]["feature_content"] == row["feature_content"]


# --- what comes out ---


def test_the_official_form_to_the_character(tmp_path: Path, write: Callable) -> None:
    """The server says what it was asked, so that the records are the replies."""
    texts = [
        said("1. 咳嗽3周；\n2. 夜间加重。", "1. 肺炎；\n2. 高血压\n"),
        said('1. 咳嗽3周；\\n2. 他说“疼”，又说"痛" ', "肺炎（左）"),
        '```json\n{"reason": "血压142/78mmHg", "diseases": ["高血压", "皮炎"]}\n```',
        "主诉: 咳嗽，没有对象",
        said("𠮷野家\u2028路 half \\ud83d", "肺炎"),
        said("。", "；"),
    ]
    rows = [{"id": 10001, "feature_content": text, "more": 1} for text in texts]
    rows += [rows[0], {"id": "z-1", "feature_content": " \n"}]
    source = jsonl(rows).replace("142/78", "142\\/78")
    file = write("records.jsonl", source)
    with teacher(style="echo", thought="none") as server:
        settings = settings_of(server, tmp_path, file, response_format="none", tries=1)
        with pytest.raises(UserError, match=r"3 records .* \(2 replies not read, 0 not had, 1 without a text"):
            submit(settings)
        assert server.stats()["answers"] == 6  # the seventh is the first
    lines = (tmp_path / "out/predict_output.jsonl").read_bytes().decode().removesuffix("\n").split("\n")
    found = [json.loads(line) for line in lines]
    assert [list(row) for row in found] == [["id", "reason", "diseases", "feature_content"]] * 8
    assert [(row["id"], row["feature_content"]) for row in found] == [
        (row["id"], row["feature_content"]) for row in rows
    ]
    assert [(row["reason"], row["diseases"]) for row in found] == [
        ("1. 咳嗽3周；\\n2. 夜间加重。", "1. 肺炎；2. 高血压"),
        ('1. 咳嗽3周；\\n2. 他说“疼”，又说"痛"', "肺炎（左）"),
        ("血压142/78mmHg", "高血压；皮炎"),
        ("", ""),
        ("𠮷野家\\n路 half \\ud83d", "肺炎"),
        ("", ""),
        ("1. 咳嗽3周；\\n2. 夜间加重。", "1. 肺炎；2. 高血压"),
        ("", ""),
    ]
    assert [(row["place"], row["failed"], row["raw"]) for row in read(tmp_path, "predict_failed.jsonl")] == [
        (f"{file}:4", "no_object", texts[3]),
        (f"{file}:6", "missing_key", texts[5]),
        (f"{file}:8", "no_text", ""),
    ]


def test_half_a_character_is_no_answer() -> None:
    def labels(text: str) -> dict[str, str]:
        return read_labels({"text": text, "finish_reason": "stop"})[0]

    text = '{"reason": "咳嗽", "diseases": "肺炎"}'
    assert labels(text) == {"reason": "咳嗽", "diseases": "肺炎"}
    assert labels(text.replace("嗽", "嗽\\ud83d")) == labels(text.replace("炎", "炎\ud83d")) == {}


def test_what_failed_is_marked_and_asked_again_and_what_was_read_is_not(tmp_path: Path, write: Callable) -> None:
    rows = [patient(number) for number in range(20)]
    file = write("records.jsonl", jsonl(rows))
    with teacher(malformed=0.5, faults=0.1, kinds=KINDS, retry_after=0.05, seed=3, keep=500) as server:
        settings = settings_of(server, tmp_path, file, response_format="none", tries=2, timeout=5.0)
        with pytest.raises(UserError, match=r"replies not read, 0 not had, 0 without.* a higher tries=… for what"):
            submit(settings)
        empty = {row["id"] for row in read(tmp_path) if not row["reason"]}
        failed = read(tmp_path, "predict_failed.jsonl")
        assert 0 < len(empty) < 20 and {row["id"] for row in failed} == empty
        assert {row["failed"] for row in failed} <= {"truncated", "missing_key"}  # a cut object
        assert all(row["raw"].startswith("{") for row in failed)
        answers, bodies = server.stats()["answers"], server.stats()["bodies"]
        assert {body["temperature"] for body in bodies} == {0.0, 0.7} and answered_twice(server) == 0
        with pytest.raises(UserError, match="a higher tries"):  # the same command leaves them
            submit(settings)
        assert server.stats()["answers"] == answers
        submit(replace(settings, tries=30))
        assert answered_twice(server) == 0
    rows_out = read(tmp_path)
    assert [row["id"] for row in rows_out] == [row["id"] for row in rows]
    assert all(row["reason"] and row["diseases"] for row in rows_out) and read(tmp_path, "predict_failed.jsonl") == []


def test_a_server_without_an_answer_is_no_diagnosis_and_is_asked_again(tmp_path: Path, write: Callable) -> None:
    rows = [patient(number) for number in range(6)]
    file = write("records.jsonl", jsonl(rows))
    with teacher(refuses="seed", keep=20) as server:
        settings = settings_of(server, tmp_path, file, response_format="none", temperature=0.5)
        with pytest.raises(
            UserError, match=r"6 records .* \(0 replies not read, 6 not had, 0 .*the same command asks again"
        ):
            submit(settings)
        assert {row["failed"] for row in read(tmp_path, "predict_failed.jsonl")} == {"refused_request"}
        assert all(row["reason"] == row["diseases"] == "" for row in read(tmp_path))
        server.set(refuses="")
        submit(settings)
    assert all(row["diseases"] for row in read(tmp_path))


def test_wrong_settings_are_one_line(tmp_path: Path, write: Callable) -> None:
    file = write("records.jsonl", jsonl([patient(0)]))
    with teacher(key="sk-right-key") as server:
        settings = settings_of(server, tmp_path, file)
        for changes, fault in (
            ({"tries": 0}, "tries >= 1"),
            ({"records_limit": -1}, "records_limit >= 0"),
            ({"data": ""}, "data: name the data.yaml"),
            ({"records": ""}, "records: name the competition's records"),
            ({"response_format": "xml"}, "response_format: unknown 'xml'; expected one of none"),
            ({"arm": "tunde"}, "arm: unknown 'tunde'; expected one of base, tuned"),
        ):
            with pytest.raises(UserError, match=fault):
                submit(replace(settings, **changes))
        with pytest.raises(UserError, match="401"):
            submit(settings)
    assert not (tmp_path / "out/predict_output.jsonl").exists()


# --- killed ---


def start(settings: Predict, log: Path) -> subprocess.Popen:
    names = ("serve", "data", "output", "concurrency", "timeout", "response_format", "tries")
    overrides = [f"{name}={getattr(settings, name)}" for name in names]
    overrides += [f"arms=[{','.join(settings.arms)}]", f"records={settings.records}"]
    command = [sys.executable, "-m", "eval.submission", f"{ROOT}/recipes/healthai/predict.yaml", *overrides]
    return subprocess.Popen(command, cwd=ROOT, stdout=open(log, "a"), stderr=subprocess.STDOUT)


def lines_of(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def killed(settings: Predict, server: Teacher, kills: int, each: int, seed: int) -> tuple[list[int], float]:
    """Start, kill -9 when about `each` more lines are in the journal, `kills` times, then let it end.

    Returns for each kill how many answers the server has given that no journal line keeps, and the last run's seconds.
    """
    dice, out = random.Random(seed), Path(settings.output)
    journal, lost = out / "submission-tuned.journal.jsonl", []
    out.mkdir(parents=True)
    for _ in range(kills):
        process, goal = start(settings, out / "log"), lines_of(journal) + dice.randint(1, each)
        while lines_of(journal) < goal and process.poll() is None:
            time.sleep(0.01)
        time.sleep(dice.uniform(0, 0.02))
        assert process.poll() is None, (out / "log").read_text(encoding="utf-8")
        process.kill()
        process.wait()
        time.sleep(0.05)  # the server sees the connections go
        kept = sum(b'"ok": true' in line[:100] for line in journal.read_bytes().split(b"\n"))
        lost.append(server.stats()["answers"] - kept - sum(lost))
    began = time.monotonic()
    process = start(settings, out / "log")
    process.wait()
    assert process.returncode in (0, 1), (out / "log").read_text(encoding="utf-8")
    return lost, time.monotonic() - began


def expect_whole(settings: Predict, server: Teacher, rows: list[Row], lost: list[int]) -> None:
    """Every id once and in order; nothing asked twice but what the journal had not got when it was killed."""
    out = Path(settings.output)
    found = [json.loads(line) for line in (out / "predict_output.jsonl").read_bytes().decode().split("\n") if line]
    assert [(row["id"], row["feature_content"]) for row in found] == [(r["id"], r["feature_content"]) for r in rows]
    lines = [json.loads(line) for line in (out / "submission-tuned.journal.jsonl").read_bytes().split(b"\n") if line]
    keys = Counter(line["key"] for line in lines if line["ok"])
    assert set(keys.values()) == {1}
    stats = server.stats()
    assert stats["answers"] == len(keys) + sum(lost) and all(0 <= each <= settings.concurrency for each in lost)
    assert check_file(str(out / "predict_output.jsonl"), rows_of(settings.records)) == [
        number for number, row in enumerate(found, 1) if not row["reason"]
    ]


def test_killed_it_goes_on_and_asks_nothing_twice(tmp_path: Path, write: Callable) -> None:
    rows = [patient(number) for number in range(60)]
    file = write("records.jsonl", jsonl(rows))
    with teacher(latency=0.02, thought="inline") as server:
        settings = settings_of(server, tmp_path, file, concurrency=4, response_format="none")
        lost, _ = killed(settings, server, kills=1, each=40, seed=1)
        expect_whole(settings, server, rows, lost)
        assert server.stats()["answers"] == 60 + sum(lost)


@pytest.mark.slow
def test_killed_ten_times_among_faults(tmp_path: Path, write: Callable) -> None:
    rows = [patient(number) for number in range(200)]
    file = write("records.jsonl", jsonl(rows))
    with teacher(latency=0.05, jitter=0.9, faults=0.1, malformed=0.1, kinds=KINDS, retry_after=0.2) as server:
        settings = settings_of(server, tmp_path, file, concurrency=8, response_format="none", timeout=5.0)
        lost, _ = killed(settings, server, kills=10, each=30, seed=2)
        expect_whole(settings, server, rows, lost)


@pytest.mark.slow
@REAL
def test_2000_real_records_killed_ten_times_among_faults(tmp_path: Path) -> None:
    (file,) = Path(os.environ["REAL_DATA"]).glob("*camp_data_step_1_without_answer.jsonl")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
    kinds = f"{KINDS},hang,drip"
    with teacher(latency=0.1, jitter=0.9, faults=0.1, malformed=0.1, kinds=kinds, retry_after=0.2, drip=1.0) as server:
        settings = settings_of(server, tmp_path, str(file), concurrency=16, response_format="none", timeout=3.0)
        lost, seconds = killed(settings, server, kills=10, each=250, seed=7)
        expect_whole(settings, server, rows, lost)
        stats, out = server.stats(), Path(settings.output)
    told = (out / "log").read_text(encoding="utf-8").strip().split("\n")
    print(f"\n{len(rows)} records, 10 kills; answered and lost at each {lost}; last run {seconds:.0f} s; {told[-2:]}")
    print(f"server: {stats['outcomes']}, answered n times {stats['times_answered']}, faults {stats['faults']}")


@pytest.mark.slow
@REAL
def test_60_real_records_through_llamafactorys_server(tiny: SimpleNamespace, tmp_path: Path) -> None:
    values = yaml.safe_load((ROOT / "recipes/demo/serve.yaml").read_text(encoding="utf-8"))
    values |= {"model_name_or_path": f"{tiny.root}/model", "adapter_name_or_path": tiny.adapter}
    serve = tmp_path / "tiny" / "serve.yaml"
    serve.parent.mkdir()
    serve.write_text(yaml.safe_dump(values), encoding="utf-8")
    (file,) = Path(os.environ["REAL_DATA"]).glob("*camp_data_step_1_without_answer.jsonl")
    made = load(Predict, f"{ROOT}/recipes/healthai/predict.yaml")
    settings = replace(
        made,
        serve=str(serve),
        data=DATA,
        output=f"{tmp_path}/out",
        records=str(file),
        records_limit=60,
        max_tokens=24,
        tries=1,
    )
    began = time.monotonic()
    with pytest.raises(UserError, match="60 records have no answer"):  # a model of noise diagnoses nothing
        submit(settings)
    first = time.monotonic() - began
    lines = lines_of(tmp_path / "out/submission-tuned.journal.jsonl")
    with pytest.raises(UserError, match="a higher tries"):
        submit(settings)
    assert lines_of(tmp_path / "out/submission-tuned.journal.jsonl") == lines == 60
    rows = rows_of(str(file), 60)
    assert [row["id"] for row in read(tmp_path)] == [row["id"] for _, row in rows]
    assert check_file(f"{tmp_path}/out/predict_output.jsonl", rows) == list(range(1, 61))
    failed = Counter(row["failed"] for row in read(tmp_path, "predict_failed.jsonl"))
    print(f"\n60 records in {first:.1f} s, server and all; {dict(failed)}; again: nothing asked")


# --- the proof ---

GOOD: list[Row] = [
    {"id": 1, "reason": "1. 咳；\\n2. 痰", "diseases": "肺炎", "feature_content": '性别: 女\n主诉: "咳"/痰'},
    {"id": "2", "reason": "痛", "diseases": "1. 胃炎；2. 贫血（轻度）", "feature_content": "性别: 男\n"},
    {"id": 1, "reason": "", "diseases": "", "feature_content": "性别: 女"},
]
RECORDS = [(f"in.jsonl:{number}", row) for number, row in enumerate(GOOD, 1)]


def line(number: int, **changes: Any) -> str:
    return json.dumps(GOOD[number] | changes, ensure_ascii=False)


def test_a_good_file_is_good_in_any_json(write: Callable) -> None:
    assert check_file(write("a.jsonl", jsonl(GOOD)), RECORDS) == [3]
    escaped = "".join(json.dumps(row).replace("/", "\\/") + "\n" for row in GOOD)
    assert check_file(write("b.jsonl", escaped.removesuffix("\n")), RECORDS) == [3]


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        ([line(0), line(1)], ":3: is missing; expected id 1 of in.jsonl:3"),
        ([], ":1: is missing"),
        ([line(0), line(1), line(2), line(2)], ":4: id 1 is one line too many; expected 3"),
        ([line(1), line(0), line(2)], ":1: id '2'; expected 1 of in.jsonl:1"),
        ([line(0), line(1, id=2), line(2)], ":2: id 2; expected '2' of in.jsonl:2"),
        ([line(0, id=True), line(1), line(2)], ":1: id True; expected 1"),
        ([line(0, id=1.0), line(1), line(2)], ":1: id 1.0; expected 1"),
        ([line(0), line(1, feature_content="性别: 男"), line(2)], ":2: feature_content is not that of in.jsonl:2"),
        ([line(0), "", line(1), line(2)], ":2: not JSON"),
        ([line(0), line(1)[:-3]], ":2: not JSON"),
        (["[" * 100_000], ":1: not JSON"),
        ([f"[{line(0)}]"], ":1: no object; expected the keys id, reason, diseases, feature_content"),
        (["null"], ":1: no object"),
        (["{}"], ":1: no keys; expected the keys"),
        ([line(0, note="x")], ":1: id, reason, diseases, feature_content, note; expected the keys"),
        ([json.dumps(dict(reversed(GOOD[0].items())))], ":1: feature_content, diseases, reason, id; expected"),
        ([line(0)[:-1] + ', "id": 1}'], ":1: id, reason, diseases, feature_content, id; expected .* each once"),
        ([line(0, reason=["咳"])], ":1: reason is list; expected a string"),
        ([line(0, diseases=None)], ":1: diseases is NoneType; expected a string"),
        ([line(0, reason="1. 咳\n2. 痰")], ":1: reason holds a line break; expected a backslash and an n"),
        ([line(0, diseases="肺炎\u2028胃炎")], ":1: diseases holds a line break"),
        ([line(0, diseases="")], ":1: diseases is empty and the other is not"),
        ([line(0, reason="")], ":1: reason is empty and the other is not"),
        ([line(0, diseases=" ；")], ":1: diseases holds no letter"),
        ([line(0).replace("肺炎", "肺炎\\ud83d")], ":1: diseases holds .* half a character"),
    ],
)
def test_the_first_fault_is_named_with_its_line(write: Callable, lines: list[str], fault: str) -> None:
    with pytest.raises(UserError, match=f"^[^\n]*out.jsonl{fault}"):
        check_file(write("out.jsonl", "".join(one + "\n" for one in lines)), RECORDS)


def test_bytes_that_are_no_text_are_named(write: Callable) -> None:
    for content, fault in (
        (b"\xef\xbb\xbf" + jsonl(GOOD).encode(), ":1: begins with a byte order mark"),
        (jsonl(GOOD[:1]).encode() + jsonl(GOOD[1:]).encode("gb18030"), r":2: byte \d+ is not UTF-8"),
    ):
        with pytest.raises(UserError, match=fault):
            check_file(write("out.jsonl", content), RECORDS)
    with pytest.raises(UserError, match=r"missing.jsonl: No such file"):
        check_file("missing.jsonl", RECORDS)


def test_check_proves_any_file_alone(write: Callable, capsys: pytest.CaptureFixture) -> None:
    records = write("in.jsonl", jsonl([{key: row[key] for key in ("id", "feature_content")} for row in GOOD]))
    with pytest.raises(UserError, match=r"out.jsonl:3: reason and diseases are empty, as in 1 lines; ask again"):
        check([write("out.jsonl", jsonl(GOOD)), records])
    assert capsys.readouterr().out.endswith("3 records in order, 2 with a diagnosis, 1 without\n")
    whole = [GOOD[0], GOOD[1], GOOD[2] | {"reason": "咳", "diseases": "感冒"}]
    check([write("out.jsonl", jsonl(whole)), records])
    assert capsys.readouterr().out.endswith("3 records in order, 3 with a diagnosis, 0 without\n")
    command = [sys.executable, "-m", "eval.submission", "check", f"{SAMPLES}/none.jsonl", records]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (
        1,
        f"error: {SAMPLES}/none.jsonl: No such file or directory; name a file\n",
    )


@REAL
def test_the_official_example_is_in_the_form() -> None:
    (file,) = Path(os.environ["REAL_DATA"]).glob("*_example_output.jsonl")
    assert check_file(str(file), rows_of(str(file))) == []
