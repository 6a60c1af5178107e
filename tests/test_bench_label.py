"""bench.label's own counting: a benchmark that can't see a loss proves nothing."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.label import examined, is_same, respelled
from bench.label_runs import patient, peak_of, spread
from chat.logprobs import pack
from preprocess.records import to_json
from tests.teacher import RECORD, logprobs


def write(path: Path, rows: list[dict], tail: str = "") -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(to_json(row) + "\n" for row in rows) + tail, encoding="utf-8")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """An input of four records, a killed run's folder and an undisturbed run's, both whole."""
    rows = [{"id": number, "reason": "咳嗽"} for number in range(4)]
    write(tmp_path / "records.jsonl", rows)
    for name in ("out", "calm"):
        write(tmp_path / name / "labelled.jsonl", rows[:3])
        write(tmp_path / name / "failed.jsonl", rows[3:])
        write(tmp_path / name / "journal.jsonl", [{"key": str(number), "ok": True} for number in range(4)])
    return tmp_path / "records.jsonl", tmp_path / "out", tmp_path / "calm"


def counts(folders: tuple[Path, Path, Path]) -> list[int]:
    found = examined(*folders)
    return [found[name] for name in ("lost", "twice", "unreadable", "torn", "same")]


def test_a_whole_run_has_nothing_wrong(folders: tuple[Path, Path, Path]) -> None:
    assert counts(folders) == [0, 0, 0, 0, True]


def test_what_a_kill_could_spoil_is_seen(folders: tuple[Path, Path, Path]) -> None:
    out = folders[1]
    write(out / "labelled.jsonl", [{"id": 0}, {"id": 1}, {"id": 1}], tail='{"id": 2')
    write(out / "journal.jsonl", [{"key": "0", "ok": True}, {"key": "0", "ok": True}, {"key": "1", "ok": False}] * 2)
    write(out / "journal.jsonl.torn", [], tail='{"key": \n{"ke\n')
    assert counts(folders) == [1, 2, 1, 2, False]  # record 2 lost; record 1 and the key 0 twice
    assert examined(*folders)["verify"] != 0


def test_an_answer_that_was_refused_and_asked_again_is_not_twice(folders: tuple[Path, Path, Path]) -> None:
    write(folders[1] / "journal.jsonl", [{"key": "0", "ok": False}, {"key": "0", "ok": True}])
    assert counts(folders)[1] == 0


def test_a_spread_is_the_median_and_its_ends() -> None:
    assert spread([0.02, 0.01, 0.05]) == "+2.0% (+1.0% to +5.0%)"
    assert spread([7.0], "{:.1f}") == "7.0"


def test_peak_memory_is_the_childs_own_and_outlives_what_was_freed() -> None:
    held = bytearray(400 << 20)
    held[:: 1 << 12] = b"x" * len(held[:: 1 << 12])  # this process has more than the child
    code = "import time; x = bytearray(b'x') * (150 << 20); del x; time.sleep(0.3)"
    seconds, mib = peak_of(subprocess.Popen([sys.executable, "-c", code]))
    assert 150 < mib < 190 and 0.3 < seconds < 10


def test_a_patient_record_has_the_fields_that_the_teacher_quotes() -> None:
    texts = [patient(random.Random(seed)) for seed in range(30)]
    assert all(len(RECORD.findall(text)) == 7 for text in texts) and len(set(texts)) == 30
    assert 1_200 < np.mean([len(text.encode()) for text in texts]) < 1_800


def test_a_packed_answer_is_held_against_every_value() -> None:
    rng, ids = random.Random(1), {bytes([number, number]): number for number in range(200)}
    plain = logprobs("夜间咳嗽三周", 20, True)["content"]
    spelled = [respelled(rng.sample(list(ids), 21), token) for token in plain]
    for content, known in ((plain, {}), (spelled, ids)):
        found = pack(content, 20, known)
        assert is_same(found, content, known)
        for change in ("logprob", "token"):
            alternatives = content[2]["top_logprobs"]
            other = alternatives[0] | ({"logprob": -99.0} if change == "logprob" else alternatives[1])
            altered = [*content]
            altered[2] = content[2] | {"top_logprobs": [other, *alternatives[1:]]}
            assert not is_same(found, altered, known)
