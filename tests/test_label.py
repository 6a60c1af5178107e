"""`make label` as a person runs it, a process of its own, against a teacher that misbehaves, another one."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from chat.journal import verify
from chat.logprobs import Reader
from preprocess.records import read_rows
from preprocess.sources import read_records
from tests.conftest import ROOT
from tests.teacher import Teacher, teacher

KEY = "sk-planted-0123456789abcdef"
SAMPLES = ROOT / "data/samples/camp_data_step_1_without_answer.jsonl"
FAST = ["connect_timeout=1", "first_token_timeout=2", "timeout=4", "concurrency=8"]


def command(out: Path, server: Teacher | None, *overrides: str, recipe: str = "healthai") -> list[str]:
    at = [f"base_url={server.base_url}"] if server else []
    keys = [f"input={SAMPLES}", f"output={out}", "model=teacher", "response_format=none", *at, *FAST, *overrides]
    return [sys.executable, "-m", "preprocess.label", f"recipes/{recipe}/label.yaml", *keys]


def run(*arguments: object, **keywords: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OPENAI_API_KEY": KEY}
    line = command(*arguments, **keywords)
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def start(*arguments: object) -> subprocess.Popen[str]:
    environment, pipe = os.environ | {"OPENAI_API_KEY": KEY}, subprocess.PIPE
    return subprocess.Popen(command(*arguments), cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


def lines(path: Path) -> list[dict]:
    return [row for _, row in read_rows(str(path))] if path.stat().st_size else []


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    with teacher() as server:
        done = run(out, server)
    assert done.returncode == 0, done.stderr
    return out


def test_every_record_is_labelled_once_in_order_and_make_data_reads_it(undisturbed: Path) -> None:
    ids = [record.id for _, record in read_records(str(SAMPLES))]
    labelled, failed = lines(undisturbed / "labelled.jsonl"), lines(undisturbed / "failed.jsonl")
    assert len(labelled) + len(failed) == len(ids) and len(labelled) >= 0.8 * len(ids)
    assert [str(row["id"]) for row in labelled] == [id_ for id_ in ids if id_ in {str(row["id"]) for row in labelled}]
    assert list(labelled[0])[:4] == ["id", "reason", "diseases", "feature_content"] and labelled[0]["reasoning_content"]
    made = [record for _, record in read_records(str(undisturbed / "labelled.jsonl"))]
    assert all(record.source == "diagnosis" and record.think and record.answer for record in made)
    summary = json.loads((undisturbed / "summary.json").read_text(encoding="utf-8"))
    assert summary["records"] == len(ids) == summary["labelled"] + sum(summary["failed_records"].values())
    assert summary["left"] == 0 and summary["thought_from"] == {"reasoning_content": summary["answered"]}


def prove(folder: Path) -> None:
    outputs = [str(folder / name) for name in ("labelled.jsonl", "failed.jsonl")]
    _, findings = verify(str(folder / "journal.jsonl"), outputs, str(folder / "summary.json"))
    assert not any(findings.values()), findings


def test_the_journal_proves_outputs_and_summary(undisturbed: Path) -> None:
    prove(undisturbed)


def test_a_disturbed_run_writes_the_same_bytes_and_asks_nothing_twice(undisturbed: Path, tmp_path: Path) -> None:
    with teacher(faults=0.3, retry_after=0.2, drip=0.5) as server:
        done = run(tmp_path, server)
        again = server.stats()["by_request"]
        assert done.returncode == 0, done.stderr
        before = server.stats()["requests"]
        assert run(tmp_path, server).returncode == 0 and server.stats()["requests"] == before
    assert max(again.values()) <= 2  # an answer that was cut on its way counts as given there
    for name in ("labelled.jsonl", "failed.jsonl"):
        assert (tmp_path / name).read_bytes() == (undisturbed / name).read_bytes()


@pytest.mark.parametrize("kills", [4, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_at_any_moment_it_goes_on_and_writes_the_same_bytes(
    undisturbed: Path, tmp_path: Path, kills: int
) -> None:
    rng = random.Random(kills)
    with teacher(latency=0.4, faults=0.2, retry_after=0.2, drip=0.5) as server:
        for _ in range(kills):
            process = start(tmp_path, server)
            time.sleep(rng.uniform(0.5, 2.5))
            process.send_signal(signal.SIGKILL)
            process.wait()
        done = run(tmp_path, server)
        answered = server.stats()["by_request"]
    assert done.returncode == 0, done.stderr
    prove(tmp_path)
    for name in ("labelled.jsonl", "failed.jsonl"):
        assert (tmp_path / name).read_bytes() == (undisturbed / name).read_bytes()
    assert sum(answered.values()) - len(answered) <= 8 * (kills + 1)


def test_ctrl_c_says_how_to_go_on_and_loses_nothing(tmp_path: Path) -> None:
    with teacher(latency=0.5) as server:
        process = start(tmp_path, server, "concurrency=2")
        while not server.stats()["answers"]:
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        begin = time.monotonic()
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 1 and time.monotonic() - begin < 20
    assert "left (interrupted); run it again to go on" in errors and "Traceback" not in errors
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert summary["answered"] >= 1 and summary["left"] >= 1
    assert summary["records"] == summary["labelled"] + sum(summary["failed_records"].values()) + summary["left"]


@pytest.mark.parametrize(
    "options, overrides, words",
    [
        ({"key": "another"}, [], "OPENAI_API_KEY"),
        ({"models": "r1"}, [], "teacher"),
        ({"account": "balance"}, [], "Insufficient Balance"),
    ],
)
def test_what_no_question_can_go_round_ends_soon_in_one_line(
    tmp_path: Path, options: dict[str, str], overrides: list[str], words: str
) -> None:
    with teacher(**options) as server:
        done = run(tmp_path, server, *overrides)
        assert server.stats()["requests"] <= 5
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith("error: ") and words in last and "Traceback" not in done.stderr
    assert KEY not in done.stderr + done.stdout


def test_a_cap_is_not_passed_and_what_is_left_is_said(tmp_path: Path) -> None:
    with teacher(latency=0.05) as server:
        done = run(tmp_path, server, "max_total_tokens=6000", "max_tokens=400")
        assert done.returncode == 1 and "left (max_total_tokens)" in done.stderr
        summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
        assert 3000 < summary["prompt_tokens"] + summary["completion_tokens"] <= 6000
        assert run(tmp_path, server, "max_tokens=400").returncode == 0


def test_the_key_is_in_nothing_that_is_written_or_printed(tmp_path: Path) -> None:
    with teacher(key=KEY, leak=True, faults=0.4, kinds="500,html,429,half,drop") as server:
        done = run(tmp_path, server, "limit=12")
    assert done.returncode == 0, done.stderr
    for path in tmp_path.rglob("*"):
        assert KEY not in path.read_text(encoding="utf-8")
    assert KEY not in done.stdout + done.stderr


def test_plain_questions_get_a_thought_and_an_answer(tmp_path: Path, write: Callable) -> None:
    questions = ["夜里咳嗽三周，躺下加重，是什么？", "孩子发热两天，要吃退烧药吗？"]
    source = write("questions.jsonl", "".join(json.dumps({"question": text}) + "\n" for text in questions))
    for thought in ("inline", "reasoning", "closing"):
        with teacher(style="cot", thought=thought) as server:
            done = run(tmp_path / thought, server, f"input={source}", "min_characters=2", recipe="medcot")
        assert done.returncode == 0, done.stderr
        rows = lines(tmp_path / thought / "labelled.jsonl")
        assert [row["Question"] for row in rows] == questions and all(row["Complex_CoT"] for row in rows)
        assert all("think>" not in row["Response"] for row in rows)


def test_of_several_samples_the_majority_is_taken_or_none(tmp_path: Path) -> None:
    with teacher() as server:
        done = run(tmp_path, server, "n=3", "seed=1", "temperature=0.7", "limit=12", "min_agreement=0.6")
    assert done.returncode == 0, done.stderr
    rows, failed = lines(tmp_path / "labelled.jsonl"), lines(tmp_path / "failed.jsonl")
    assert len(rows) + len(failed) == 12 and all(row["agreement"] >= 0.6 for row in rows)
    assert {row["failed"] for row in failed} <= {"agreement", "evidence", "language", "length"}
    assert len(lines(tmp_path / "journal.jsonl")) == 36


def test_cut_and_malformed_replies_never_become_records(tmp_path: Path) -> None:
    with teacher(truncated=0.3, malformed=0.3) as server:
        done = run(tmp_path, server, "limit=40")
    assert done.returncode == 0, done.stderr
    rows, failed = lines(tmp_path / "labelled.jsonl"), lines(tmp_path / "failed.jsonl")
    assert len(rows) + len(failed) == 40 and {"truncated"} <= {row["failed"] for row in failed}
    assert all(row["journal"] for row in failed) and any(row["replies"] for row in failed)
    assert all(row["reason"] and row["diseases"] for row in rows)
    prove(tmp_path)


def test_a_dry_run_sends_nothing_and_writes_nothing(tmp_path: Path) -> None:
    with teacher() as server:
        done = run(tmp_path / "out", server, "dry_run=true", "usd_in=1", "usd_out=2")
        assert server.stats()["requests"] == 0
    assert done.returncode == 0 and "66 records, 66 questions" in done.stdout and "$" in done.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["kind=x"], "kind: unknown 'x'; expected one of diagnosis, cot"),
        (["gates=[x]"], "gates: unknown 'x'"),
        (['base_url=""'], "base_url: name the teacher's address"),
        (['model=""'], "model: name the teacher"),
        (["n=0"], "n: expected 1 to 64, got 0"),
        (["n=2", "temperature=0"], "n: several answers at temperature 0"),
        (["max_usd=5"], "max_usd: needs the prices"),
        (["prompt=none.j2"], "none.j2: no such file"),
        (["kind=cot", "response_format=auto"], "response_format: holds diagnoses to their schema"),
        (["timeout=.nan"], "timeout must be a number of more than 0"),
        (["min_characters=9", "max_characters=5"], "min_characters: 9 is more than max_characters"),
        (["tokenizer=none"], "tokenizer: none is no folder"),
        (["input=[]"], "input: name a file"),
    ],
)
def test_settings_are_checked(tmp_path: Path, overrides: list[str], message: str) -> None:
    done = run(tmp_path / "out", None, "base_url=http://127.0.0.1:9/v1", *overrides)
    assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_top_logprobs_are_kept_packed_by_the_journals_key(tmp_path: Path) -> None:
    with teacher(token_ids="asked") as server:
        overrides = ("limit=3", "top_logprobs=5", "token_ids=true")
        assert run(tmp_path, server, *overrides).returncode == 0
        kept = (tmp_path / "answers.logprobs").read_bytes()
        assert run(tmp_path, server, *overrides).returncode == 0 and server.stats()["requests"] == 3
    reader, entries = Reader(tmp_path / "answers.logprobs"), lines(tmp_path / "journal.jsonl")
    assert (tmp_path / "answers.logprobs").read_bytes() == kept and set(reader) == {one["key"] for one in entries}
    for entry in entries:
        assert reader[entry["key"]].ids.shape == (entry["reply"]["logprobs"], 5) and not reader[entry["key"]].escaped
    assert Reader(tmp_path / "answers.logprobs").header["model"] == "teacher"


def test_a_verifier_has_the_last_word(tmp_path: Path) -> None:
    with teacher(models="teacher,judge") as server:
        done = run(tmp_path, server, "limit=20", "verifier=judge", "gates=[schema]")
    assert done.returncode == 0, done.stderr
    rows, failed = lines(tmp_path / "labelled.jsonl"), lines(tmp_path / "failed.jsonl")
    assert len(rows) + len(failed) == 20 and rows
    assert {(row["failed"], row["what"]) for row in failed} == {("verifier", '{"supported": "否"}')}
    asked = Counter(entry["asked"]["model"] for entry in lines(tmp_path / "journal.jsonl"))
    assert asked == {"teacher": 20, "judge": 20}
    prove(tmp_path)


def test_a_row_of_servers_shares_the_work(tmp_path: Path) -> None:
    with teacher(latency=0.2) as one, teacher(latency=0.2) as two:
        done = run(tmp_path, None, f"base_url=[{one.base_url},{two.base_url}]")
        shares = [server.stats()["answers"] for server in (one, two)]
    assert done.returncode == 0, done.stderr
    assert sum(shares) == 66 and min(shares) > 20


def test_a_disk_that_fills_is_one_line_and_the_next_run_goes_on(undisturbed: Path, tmp_path: Path) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    environment = os.environ | {"OPENAI_API_KEY": KEY}
    with teacher(latency=0.05) as server:
        full = subprocess.run(
            command(tmp_path, server), cwd=ROOT, env=environment, preexec_fn=limited, capture_output=True, text=True
        )
        said = full.stderr.strip().splitlines()[-1]
        assert (
            full.returncode == 1 and said.startswith("error: ") and "journal.jsonl" in said and "File too large" in said
        )
        assert "Traceback" not in full.stderr
        kept = len(lines(tmp_path / "journal.jsonl"))
        assert 10 < kept < 66
        assert run(tmp_path, server).returncode == 0
        assert server.stats()["answers"] <= 66 + 3 * 8  # in flight, not taken yet, and on their way to the disk
    for name in ("labelled.jsonl", "failed.jsonl"):
        assert (tmp_path / name).read_bytes() == (undisturbed / name).read_bytes()


def test_the_summary_goes_to_wandb(tmp_path: Path) -> None:
    environment = os.environ | {"OPENAI_API_KEY": KEY, "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path)}
    with teacher() as server:
        line = command(tmp_path / "out", server, "limit=3", "report_to=wandb")
        done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (run_file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert b"labelled" in run_file.read_bytes() and KEY.encode() not in run_file.read_bytes()


def test_labels_from_elsewhere_are_not_overwritten(tmp_path: Path) -> None:
    mine = tmp_path / "labelled.jsonl"
    mine.write_text(
        '{"id": 1, "reason": "咳嗽", "diseases": "感冒", "feature_content": "主诉: 咳嗽"}\n', encoding="utf-8"
    )
    before = mine.read_bytes()
    with teacher() as server:
        done = run(tmp_path, server, "limit=2")
        assert server.stats()["requests"] == 0
    assert done.returncode == 1 and "labelled.jsonl:1: was not written from" in done.stderr
    assert mine.read_bytes() == before


def test_a_run_that_got_nothing_leaves_what_was_written(undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "out")
    with teacher(models="another") as server:
        done = run(tmp_path / "out", server, "temperature=0.9")
    assert done.returncode == 1 and "does not exist" in done.stderr
    for path in undisturbed.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_questions_without_an_answer_are_said_and_asked_again(tmp_path: Path) -> None:
    with teacher(faults=0.5, kinds="500", max_faults=99) as server:
        done = run(tmp_path, server, "limit=12", "max_tries=1")
        assert done.returncode == 1 and "questions have no answer (server " in done.stderr
        server.set(faults=0.0)
        assert run(tmp_path, server, "limit=12").returncode == 0
    assert len(lines(tmp_path / "labelled.jsonl")) + len(lines(tmp_path / "failed.jsonl")) == 12
    prove(tmp_path)


def test_tokens_are_counted_where_the_server_does_not(tmp_path: Path) -> None:
    with teacher(usage=False) as server:
        done = run(tmp_path, server, "max_total_tokens=6000", "max_tokens=400")
        assert done.returncode == 1 and "left (max_total_tokens); raise it to go on" in done.stderr
        told = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
        assert 3000 < told["prompt_tokens"] + told["completion_tokens"] <= 6000
        before = server.stats()["requests"]
        assert run(tmp_path, server, "max_total_tokens=6000", "max_tokens=400").returncode == 1
        assert server.stats()["requests"] == before


@pytest.mark.slow
def test_hours_end_a_run_that_hangs(tmp_path: Path) -> None:
    with teacher(latency=60) as server:
        begin = time.monotonic()
        done = run(tmp_path, server, "max_hours=0.0003", "timeout=90", "first_token_timeout=90")
    assert done.returncode == 1 and "left (max_hours)" in done.stderr and time.monotonic() - begin < 40


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)])
def test_other_signals_end_it_as_ctrl_c_does(tmp_path: Path, number: signal.Signals) -> None:
    with teacher(latency=0.5) as server:
        process = start(tmp_path, server, "concurrency=2")
        while not server.stats()["answers"]:
            time.sleep(0.1)
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 1 and "left (interrupted)" in errors
    prove(tmp_path)
