from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from eval.charts import CURVES, read_history
from eval.report import to_markdown, to_page
from eval.run import data_counts, read_answers, score_thoughts, wilson
from preprocess.records import sha256_file, to_json, write_jsonl
from recipe import UserError

RATIO = {"value": 0.8, "low": 0.7, "high": 0.9}
PART = {"base": 500.0, "tuned": 400.0, "ratio": RATIO, "tokens": 1000}
METRICS = {
    "perplexity": PART
    | {"samples": 2, "improved": 2, "skipped": [], "segments": {"think": PART, "answer": PART}, "ids_sha256": "0" * 64},
    "data": {
        "read": 3,
        "train": 1,
        "eval": 1,
        "dropped": {"duplicate": 1},
        "inputs": [{"file": "a", "sha256": "1" * 64}],
    },
    "training": {"steps": 20, "epochs": 2.0, "loss_first": 5.0, "loss_last": 4.0},
    "made_from": {
        "train": "t.yaml",
        "train_sha256": "2" * 64,
        "dataset": "d",
        "adapter": "a",
        "adapter_sha256": "3" * 64,
        "versions": {"torch": "2"},
    },
}
HISTORY = [{"step": s, "epoch": s / 10, "loss": 5 - s / 20, "learning_rate": 1e-3, "grad_norm": 1.0} for s in (10, 20)]
HOSTILE = "<think>\n<script>alert(1)</script>\n</think>\n\n<img src=x onerror=alert(2)>\"'&"


def row(answer: str, **changes: object) -> dict:
    return {"id": "1", "prompt": "头痛？", "answer": answer, "finish_reason": "stop", "adapter_sha256": None} | changes


def answers(base: str = "答", tuned: str = "<think>\n想\n</think>\n\n答") -> dict[str, list[dict]]:
    return {"base": [row(base)], "tuned": [row(tuned)]}


def render(both: dict[str, list[dict]]) -> str:
    metrics = METRICS | ({"thought_well_formed": score_thoughts(both)} if both else {})
    return to_page(metrics, both, HISTORY)


def test_the_page_shows_the_result_and_five_charts() -> None:
    page = render(answers())
    assert "500.0 → 400.0" in page and "[0.700, 0.900]" in page and "0 % → 100 %" in page
    assert page.count("<svg") == len(CURVES) == 5 and all(title in page for title in CURVES.values())
    assert "头痛？" in page and "duplicate 1" in page


def test_the_page_asks_nothing_of_the_network() -> None:
    page = render(answers())
    links = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)|url\(([^)]*)\)""", page)
    assert all(target.startswith("#") for pair in links for target in pair if target)
    assert "<script" not in page and "@import" not in page


def test_what_a_model_writes_is_inert() -> None:
    page = render(answers(base=HOSTILE, tuned=HOSTILE))
    assert "<script" not in page and "<img" not in page and "&lt;img src=x" in page


def test_the_same_inputs_give_the_same_bytes() -> None:
    assert render(answers()) == render(answers()) and to_markdown(METRICS) == to_markdown(METRICS)


def test_without_answers_the_page_says_nothing_of_them() -> None:
    page = render({})
    assert "Well-formed" not in page and "side by side" not in page


def test_markdown_is_a_table() -> None:
    lines = to_markdown(METRICS).splitlines()
    assert len({line.count("|") for line in lines[:5]}) == 1 and "× 0.800 [0.700, 0.900]" in lines[2]


def test_empty_and_unclosed_thoughts_count_as_wrong() -> None:
    both = {
        "base": [row("<think>\n\n</think>\n\n答"), row("<think>想"), row(""), row("答")],
        "tuned": [row("<think>\n想\n</think>\n\n答")] * 3 + [row("<think>\n想\n</think>\n\n")],
    }
    score = score_thoughts(both)
    assert score["counts"] == {"base": 0, "tuned": 3} and (score["base"], score["tuned"]) == (0.0, 0.75)


def test_wilson_against_known_values() -> None:
    # Newcombe 1998, table I: 81/263 and 15/148, score method without continuity correction.
    assert (round(wilson(81, 263)["low"], 4), round(wilson(81, 263)["high"], 4)) == (0.2553, 0.3662)
    assert (round(wilson(15, 148)["low"], 4), round(wilson(15, 148)["high"], 4)) == (0.0624, 0.1605)
    assert wilson(0, 20)["low"] == 0.0 and wilson(20, 20)["high"] == 1.0


def adapter(folder: Path, content: bytes = b"weights") -> str:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(content)
    return sha256_file(folder / "adapter_model.safetensors")


def test_answers_must_belong_together_and_to_the_adapter(tmp_path: Path) -> None:
    sha256 = adapter(tmp_path / "saves")
    assert read_answers(str(tmp_path), str(tmp_path / "saves")) == {}
    write_jsonl(tmp_path / "answers-base.jsonl", [row("a")])
    with pytest.raises(UserError, match=r"only answers-base\.jsonl"):
        read_answers(str(tmp_path), str(tmp_path / "saves"))
    write_jsonl(tmp_path / "answers-tuned.jsonl", [row("a", id="2", adapter_sha256=sha256)])
    with pytest.raises(UserError, match="differ in id or prompt"):
        read_answers(str(tmp_path), str(tmp_path / "saves"))
    write_jsonl(tmp_path / "answers-tuned.jsonl", [row("a", adapter_sha256=sha256)])
    assert len(read_answers(str(tmp_path), str(tmp_path / "saves"))["tuned"]) == 1
    adapter(tmp_path / "saves", b"other weights")
    with pytest.raises(UserError, match="made with another adapter"):
        read_answers(str(tmp_path), str(tmp_path / "saves"))


@pytest.mark.parametrize("key", ["id", "prompt", "answer", "finish_reason", "adapter_sha256"])
def test_an_answer_without_a_key_is_named(tmp_path: Path, key: str) -> None:
    sha256 = adapter(tmp_path / "saves")
    write_jsonl(tmp_path / "answers-base.jsonl", [row("a")])
    broken = {name: value for name, value in row("a", adapter_sha256=sha256).items() if name != key}
    write_jsonl(tmp_path / "answers-tuned.jsonl", [broken])
    with pytest.raises(UserError, match=rf"answers-tuned\.jsonl:1: key '{key}' is missing"):
        read_answers(str(tmp_path), str(tmp_path / "saves"))


@pytest.mark.parametrize(
    "counts", ["{", '{"read": 1}', '{"read": 9, "train": 1, "eval": 1, "dropped": {}, "inputs": [{}]}']
)
def test_counts_that_do_not_add_up_are_refused(tmp_path: Path, counts: str) -> None:
    (tmp_path / "dataset_info.json").write_text('{"a": {"file_name": "a.json"}}')
    assert data_counts("a", str(tmp_path)) == {}
    (tmp_path / "counts.json").write_text(counts)
    with pytest.raises(UserError, match=r"counts\.json: expected the counts"):
        data_counts("a", str(tmp_path))


@pytest.mark.parametrize(
    "state",
    [
        {"log_history": None},
        {"log_history": [1]},
        {"log_history": [{"loss": 1.0}]},
        {},
        [],
        {"log_history": []},
        {"log_history": [{"eval_loss": 1.0}]},
    ],
)
def test_a_run_without_history_is_named(tmp_path: Path, state: object) -> None:
    (tmp_path / "trainer_state.json").write_text(to_json(state))
    with pytest.raises(UserError, match=r"trainer_state\.json"):
        read_history(tmp_path)


def test_history_is_the_logged_steps(tmp_path: Path) -> None:
    text = json.dumps({"log_history": [*HISTORY, {"step": 20, "eval_loss": 4.0}]})
    (tmp_path / "trainer_state.json").write_text(text)
    assert read_history(tmp_path) == HISTORY
