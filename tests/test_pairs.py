"""Votes and verdicts become pairs that LLaMA-Factory trains on; what nobody decided does not."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chat.server import beside
from eval.judge import paired, read_answers
from eval.pairs import Pairs, decide, preferences, results_of, run, spelled
from eval.review import read_pairs
from preprocess.register import read_registry
from preprocess.think import split, well_formed
from recipe import UserError
from tests.conftest import ROOT

ARMS = ("base", "tuned")


def answer(id_: str, text: str, think: str = "先想想", **more: Any) -> dict[str, Any]:
    row = {"id": id_, "prompt": f"{id_}：夜里咳嗽，怎么办？", "reference": "", "think": think, "answer": text}
    return row | {"finish_reason": "stop"} | more


def two(n: int) -> dict[str, list[dict[str, Any]]]:
    return {arm: [answer(f"p{i}", f"{arm} 的第{i}个回答") for i in range(n)] for arm in ARMS}


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Pairs]:
    """Write answers, verdicts and votes, and return the settings that name them."""

    def _write(lines: dict[str, list[dict[str, Any]]]) -> Path:
        for name, rows in lines.items():
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path

    def _folder(
        arms: dict[str, list[dict[str, Any]]],
        results: dict[str, list[str]] | None = None,
        votes: list[tuple[str, str, str]] | None = None,
    ) -> Pairs:
        lines = {f"answers-{arm}.jsonl": rows for arm, rows in arms.items()}
        settings = Pairs(answers=str(tmp_path), output=f"{tmp_path}/out", dataset="p", dataset_dir=str(tmp_path))
        if results is not None:
            settings = replace(settings, verdicts=f"{tmp_path}/verdicts.jsonl")
            lines["verdicts.jsonl"] = [
                {"id": pair.id, "answers": pair.hash, "pairwise": [{"result": result} for result in results[pair.id]]}
                for pair in paired(arms)
                if pair.id in results
            ]
        if votes is not None:
            settings = replace(settings, votes=f"{tmp_path}/votes.jsonl")
            keys = {pair.id: pair.key for pair in read_pairs(str(_write(lines)), ARMS)}
            lines["votes.jsonl"] = [
                {"id": id_, "pair": keys[id_], "rater": rater, "vote": vote, "verdict": "", "at": f"{i:04}"}
                for i, (rater, id_, vote) in enumerate(votes)
            ]
        _write(lines)
        return settings

    return _folder


def written(settings: Pairs) -> list[dict[str, Any]]:
    return json.loads(Path(settings.output, "preferences.json").read_text(encoding="utf-8"))


def test_wins_and_losses_become_rows_in_the_order_of_the_answers(folder: Callable, capsys: Any) -> None:
    results = ["win", "tie", "loss", "both_bad", "inconsistent", "error", "win"]
    settings = folder(two(8), {f"p{i}": [result] for i, result in enumerate(results)})
    run(settings)
    assert [row["id"] for row in written(settings)] == ["p0", "p2", "p6"]
    assert written(settings)[1] == {
        "id": "p2",
        "system": "",
        "instruction": "p2：夜里咳嗽，怎么办？",
        "input": "",
        "chosen": "<think>\n先想想\n</think>\n\nbase 的第2个回答",
        "rejected": "<think>\n先想想\n</think>\n\ntuned 的第2个回答",
    }
    told = capsys.readouterr().out
    assert "3 pairs of 8 prompts, 0 by votes, 3 by judges" in told
    assert told.strip().endswith("left out: both_bad 1, error 1, inconsistent 1, not_judged 1, tie 1")


def test_a_majority_of_the_raters_wins_over_the_judge(folder: Callable, capsys: Any) -> None:
    votes = [(rater, "p0", vote) for rater, vote in (("王", "A>B"), ("李", "A≫B"), ("赵", "B>A"))]
    votes += [("王", "p1", "A>B"), ("李", "p1", "B>A"), ("王", "p2", "A=B"), ("王", "p3", "both-bad")]
    votes += [("王", "p4", "B≫A"), ("王", "p4", "undo"), ("李", "p5", "skip"), ("王", "p6", "B>A")]
    settings = folder(two(7), {f"p{i}": ["win"] for i in range(7)}, votes)
    run(settings)
    chosen = {row["id"]: row["chosen"].split()[-2] for row in written(settings)}
    assert chosen == {"p0": "base", "p4": "tuned", "p5": "tuned", "p6": "tuned"}
    told = capsys.readouterr().out
    assert "2 by votes, 2 by judges; left out: both_bad 1, no_majority 1, tie 1" in told


def test_votes_or_verdicts_alone_will_do_and_votes_on_other_answers_do_not(folder: Callable, capsys: Any) -> None:
    settings = folder(two(2), None, [("王", "p0", "B>A"), ("王", "p1", "B>A")])
    run(settings)
    assert len(written(settings)) == 2
    path = Path(settings.answers, "answers-tuned.jsonl")
    path.write_text(path.read_text(encoding="utf-8").replace("第1个", "另一个"), encoding="utf-8")
    run(settings)
    assert [row["id"] for row in written(settings)] == ["p0"]
    assert "1 votes were given on other answers and don't count" in capsys.readouterr().out


@pytest.mark.parametrize(
    "votes, judged, result",
    [
        ([], [], "not_judged"),
        ([], ["error"], "error"),
        ([], ["error", "win"], "win"),
        ([], ["win", "loss"], "no_majority"),
        ([], ["win", "win", "inconsistent"], "win"),
        (["tie"], ["win", "win"], "tie"),
        (["loss", "win"], ["win"], "no_majority"),
        (["loss", "loss", "win"], ["win"], "loss"),
    ],
)
def test_who_decides(votes: list[str], judged: list[str], result: str) -> None:
    assert decide(votes, judged) == result


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize(
    "changes, why",
    [
        ({"answer": "", "think": "想到一半", "finish_reason": "unclosed"}, "unclosed"),
        ({"answer": "<think>想到一半", "think": ""}, "unclosed"),
        ({"answer": "去门诊，最好", "finish_reason": "length"}, "truncated"),
        ({"answer": "  "}, "empty"),
        ({"answer": "去<think>想</think>门诊"}, "stray_tag"),
        ({"think": "想</think>想"}, "stray_tag"),
    ],
)
def test_a_pair_with_an_answer_that_is_not_whole_is_left_out(arm: str, changes: dict[str, str], why: str) -> None:
    arms = two(2)
    arms[arm][1] |= changes
    rows, counts = preferences(arms, {}, {"p0": ["win"], "p1": ["win"]})
    assert [row["id"] for row in rows] == ["p0"] and counts["left_out"] == {why: 1}
    assert counts["prompts"] == 2 == counts["by_judges"] + counts["by_votes"] + sum(counts["left_out"].values())


def test_equal_texts_are_left_out_and_single_thoughts_counted() -> None:
    arms = two(3)
    arms["tuned"][0] = arms["base"][0]
    arms["tuned"][1] |= {"think": ""}
    rows, counts = preferences(arms, {}, {f"p{i}": ["win"] for i in range(3)})
    assert counts["left_out"] == {"same_text": 1} and counts["one_thought"] == 1 and len(rows) == 2


@pytest.mark.parametrize(
    "row, text",
    [
        ({"think": "想", "answer": "答"}, "<think>\n想\n</think>\n\n答"),
        ({"think": "", "answer": "<thinking>想</thinking>答"}, "<think>\n想\n</think>\n\n答"),
        ({"answer": "想</think>\n答"}, "<think>\n想\n</think>\n\n答"),
        ({"think": "", "answer": "答"}, "答"),
    ],
)
def test_thoughts_are_spelled_as_in_training(row: dict[str, str], text: str) -> None:
    assert spelled(row) == text and (well_formed(text) or not split(text).think)


def test_the_entry_is_the_one_of_medcot_dpo_and_the_bytes_are_always_the_same(folder: Callable) -> None:
    settings = folder(two(3), {f"p{i}": ["win"] for i in range(3)})
    registry = Path(settings.dataset_dir, "dataset_info.json")
    registry.write_text('{"other": {"file_name": "other.json"}}', encoding="utf-8")
    run(settings)
    first = Path(settings.output, "preferences.json").read_bytes(), registry.read_bytes()
    run(settings)
    assert (Path(settings.output, "preferences.json").read_bytes(), registry.read_bytes()) == first
    made, ours = read_registry(settings.dataset_dir), read_registry(ROOT)["medcot_dpo_train"]
    assert made.keys() == {"other", "p_train"}
    assert made["p_train"] == ours | {"file_name": "out/preferences.json"}
    assert list(made["p_train"]) == list(ours) and list(made["p_train"]["columns"]) == list(ours["columns"])


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: replace(s, verdicts=""), "no verdicts and no votes: `make judge` or `make review` first"),
        (lambda s: replace(s, arms=["base"]), "arms: expected two, got base"),
        (lambda s: replace(s, verdicts="none.jsonl"), "no none.jsonl and no votes: `make judge`"),
        (lambda s: _put(s, "answers", "0" * 16), "verdicts.jsonl:1: the verdicts on p0 were given on other answers"),
        (lambda s: _put(s, "id", "p9"), "verdicts.jsonl:1: the verdicts on p9 were given on other answers"),
        (lambda s: _put(s, "pairwise", [{"result": "A"}]), "verdicts.jsonl:1: pairwise: expected a `result` out of"),
        (lambda s: _put(s, "pairwise", [{"result": "tie"}]), "of 1 prompts none is decided with two whole answers"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(folder: Callable, change: Callable, message: str) -> None:
    settings = change(folder(two(1), {"p0": ["win"]}))
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        run(settings)
    assert "\n" not in str(caught.value)
    assert not Path(settings.output).exists() and not Path(settings.dataset_dir, "dataset_info.json").exists()


def _put(settings: Pairs, key: str, value: Any) -> Pairs:
    row = json.loads(Path(settings.verdicts).read_text(encoding="utf-8")) | {key: value}
    Path(settings.verdicts).write_text(json.dumps(row), encoding="utf-8")
    return settings


def test_votes_are_read_in_each_spelling_or_refused() -> None:
    votes = [{"id": "p0", "rater": "王", "vote": vote} for vote in ("B≫A", "B>>A", "both-bad", "A=B", "A>B")]
    assert results_of(votes) == {"p0": ["win", "win", "both_bad", "tie", "loss"]}
    with pytest.raises(UserError, match="vote of 王 on p0: '甲': expected one of A≫B"):
        results_of([votes[0] | {"vote": "甲"}])


def test_answers_without_an_id_get_one(write: Callable) -> None:
    path = write("answers.jsonl", '{"prompt": "咳嗽？", "answer": "休息"}\n')
    assert re.fullmatch("[0-9a-f]{16}", read_answers(path)[0]["id"])


@pytest.mark.slow
def test_preflight_finds_nothing_and_dpo_starts_at_ln_2(folder: Callable, tiny: SimpleNamespace) -> None:
    settings = folder(two(8), {f"p{i}": ["win" if i % 2 else "loss"] for i in range(8)})
    run(settings)
    model, adapter, out = f"{tiny.root}/model", f"{tiny.root}/adapter", Path(settings.answers, "saves")
    overrides = [f"model_name_or_path={model}", f"ref_model={model}", f"adapter_name_or_path={adapter}"]
    overrides += [f"ref_model_adapters={adapter}", "quantization_bit=null", "ref_model_quantization_bit=null"]
    overrides += ["dataset=p_train", f"dataset_dir={settings.dataset_dir}", f"output_dir={out}", "report_to=none"]
    overrides += ["val_size=0", "eval_strategy='no'", "bf16=false", "use_cpu=true", "max_steps=2", "logging_steps=1"]
    overrides += ["gradient_accumulation_steps=1", "preprocessing_num_workers=1"]
    for command in ([sys.executable, "-m", "preflight"], [beside("llamafactory-cli"), "train"]):
        line = [*command, "recipes/medcot_dpo/train.yaml", *overrides]
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        assert "nothing refused" in done.stdout or out.exists()
    first = json.loads((out / "trainer_state.json").read_text(encoding="utf-8"))["log_history"][0]
    assert abs(first["loss"] - math.log(2)) < 0.01 and abs(first["rewards/margins"]) < 0.05
