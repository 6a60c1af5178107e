"""Outside oracles for the perplexity: a uniform model, lm_eval's HFLM, the Hugging Face Trainer."""

from __future__ import annotations

import copy
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from eval.perplexity import (
    SEGMENTS,
    Row,
    compare,
    ids_hash,
    load_rows,
    paired_ratio,
    perplexity,
    read_arguments,
    segments,
    sums,
    to_row,
    token_counts,
    token_nll,
)
from preprocess.think import CLOSE, OPEN
from recipe import UserError


@pytest.fixture(scope="module")
def rows(tiny: SimpleNamespace) -> list[Row]:
    return load_rows(read_arguments(tiny.recipe, "tiny_train"))[0]


def test_the_scored_text_is_the_response_and_its_end_token(tiny: SimpleNamespace, rows: list[Row]) -> None:
    made = json.loads((tiny.root / "data/train.json").read_text(encoding="utf-8"))
    assert [row.id for row in rows] == [row["id"] for row in made] and len(rows) >= 200
    for row, source in zip(rows, made, strict=True):
        prompt, response = (
            tiny.tokenizer.decode(row.ids[: row.start]),
            tiny.tokenizer.decode(row.ids[row.start : row.end]),
        )
        assert prompt == f"<|im_start|>user\n{source['instruction']}<|im_end|>\n<|im_start|>assistant\n"
        assert response == source["output"] + "<|im_end|>"
        assert tiny.tokenizer.decode(row.ids[row.end :]) == "\n"  # LLaMA-Factory trains on it, nobody scores it


def test_segments_are_the_thought_and_the_answer(tiny: SimpleNamespace, rows: list[Row]) -> None:
    for row in rows:
        scored = list(zip(row.ids[row.start : row.end], row.segments, strict=True))
        text = {name: tiny.tokenizer.decode([token for token, s in scored if s == name]) for name in SEGMENTS}
        assert text["end"] == "<|im_end|>"
        assert OPEN + text["think"] + CLOSE + text["answer"] == tiny.tokenizer.decode(row.ids[row.start : row.end - 1])


def test_a_token_across_a_boundary_is_markup() -> None:
    text = "<think>\n想。\n</think>\n\n答"
    offsets = [(0, 7), (7, 9), (9, 11), (11, 19), (19, 21), (21, 22)]
    assert segments(text, offsets) == ("markup", "markup", "markup", "markup", "markup", "answer")
    assert segments("答。", [(0, 1), (1, 2)]) == ("answer", "answer")


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary(tiny: SimpleNamespace, rows: list[Row]) -> None:
    model = copy.deepcopy(tiny.model)
    model.get_output_embeddings().weight.data.zero_()
    nll, tokens = sums(rows, token_nll(model, rows, 16)), token_counts(rows)
    for name in ("all", *SEGMENTS):
        assert perplexity(nll[name], tokens[name]) == pytest.approx(model.config.vocab_size, rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_log_probabilities_are_those_of_lm_eval(
    tiny: SimpleNamespace, rows: list[Row], batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")  # without it lm_eval downloads at import
    from lm_eval.models.huggingface import HFLM

    oracle = HFLM(pretrained=tiny.model, tokenizer=tiny.tokenizer, batch_size=batch_size, max_length=4096)
    # By ids: its string form moves the newline at the prompt's end into the response.
    requests = [
        ((row.id, str(row.start)), list(row.ids[: row.start]), list(row.ids[row.start : row.end])) for row in rows
    ]
    theirs = np.array([total for total, _ in oracle._loglikelihood_tokens(requests, disable_tqdm=True)])
    ours = -sums(rows, token_nll(tiny.model, rows, batch_size))["all"]
    difference = np.abs(ours / theirs - 1)
    print(f"\nlm_eval HFLM, {len(rows)} pairs, batch {batch_size}: largest relative difference {difference.max():.1e}")
    assert difference.max() <= 1e-6
    assert abs(ours.sum() / theirs.sum() - 1) <= 1e-6


def test_the_trainers_loss_is_the_same_arithmetic(tiny: SimpleNamespace, rows: list[Row]) -> None:
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    rows = rows[:24]
    items = [
        {"input_ids": list(r.ids), "labels": [t if r.start <= i < r.end else -100 for i, t in enumerate(r.ids)]}
        for r in rows
    ]
    nll, tokens = sums(rows, token_nll(tiny.model, rows))["all"], token_counts(rows)["all"]

    def eval_loss(batch_size: int) -> float:
        arguments = TrainingArguments(
            str(tiny.root / "trainer"), per_device_eval_batch_size=batch_size, use_cpu=True, report_to="none"
        )
        collator = DataCollatorForSeq2Seq(tiny.tokenizer, padding=True)
        return Trainer(tiny.model, arguments, collator, eval_dataset=items).evaluate()["eval_loss"]

    assert math.exp(eval_loss(len(rows))) == pytest.approx(perplexity(nll, tokens), rel=1e-5)
    assert math.exp(eval_loss(1)) == pytest.approx(math.exp(np.mean(nll / tokens)), rel=1e-5)


def test_neither_batch_size_nor_order_matters(tiny: SimpleNamespace, rows: list[Row]) -> None:
    one = token_nll(tiny.model, rows[:40], 1)
    for batch_size in (2, 8, 32):
        for mine, theirs in zip(token_nll(tiny.model, rows[:40], batch_size), one, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=2e-5, atol=2e-6)
    turned = token_nll(tiny.model, rows[:40][::-1], 8)[::-1]
    tokens = token_counts(rows[:40])["all"]
    values = [perplexity(sums(rows[:40], nll)["all"], tokens) for nll in (one, turned)]
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_padding_on_either_side_gives_the_same_score(tiny: SimpleNamespace, rows: list[Row]) -> None:
    row = rows[0]
    alone = token_nll(tiny.model, [row])[0]
    width = len(row.ids) + 9
    ids, mask = torch.zeros(1, width, dtype=torch.long), torch.zeros(1, width, dtype=torch.long)
    ids[0, 9:], mask[0, 9:] = torch.tensor(row.ids), 1
    with torch.inference_mode():
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = tiny.model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[0, 9:]
    theirs = torch.nn.functional.cross_entropy(
        logits[row.start - 1 : row.end - 1], torch.tensor(row.ids[row.start : row.end]), reduction="none"
    )
    np.testing.assert_allclose(alone, theirs.numpy(), rtol=2e-5, atol=2e-6)


def test_segments_add_up(tiny: SimpleNamespace, rows: list[Row]) -> None:
    nll = token_nll(tiny.model, rows[:20])
    parts = sums(rows[:20], nll)
    np.testing.assert_allclose(sum(parts[name] for name in SEGMENTS), parts["all"], rtol=1e-12)
    np.testing.assert_allclose(parts["all"], [values.sum() for values in nll], rtol=1e-12)
    counts = token_counts(rows[:20])
    assert (counts["think"] > 0).all() and (counts["answer"] > 0).all() and (counts["end"] == 1).all()


def test_nothing_is_cut_at_the_recipes_cutoff(tiny: SimpleNamespace, rows: list[Row]) -> None:
    text = (tiny.root / "train.yaml").read_text(encoding="utf-8").replace("cutoff_len: 512", "cutoff_len: 64")
    (tiny.root / "short.yaml").write_text(text, encoding="utf-8")
    assert ids_hash(load_rows(read_arguments(f"{tiny.root}/short.yaml", "tiny_train"))[0]) == ids_hash(rows)


def test_a_row_that_can_not_be_scored_is_named(tiny: SimpleNamespace, rows: list[Row]) -> None:
    row, stops = rows[0], {tiny.tokenizer.eos_token_id}
    ids = list(row.ids)
    labels = [token if row.start <= i else -100 for i, token in enumerate(ids)]
    assert to_row("a", ids, labels, tiny.tokenizer, stops).segments == row.segments
    with pytest.raises(UserError, match="row a: expected one response"):
        to_row("a", ids[: row.end - 1], labels[: row.end - 1], tiny.tokenizer, stops)
    with pytest.raises(UserError, match="row a: expected one response"):
        to_row("a", ids + ids, labels + labels, tiny.tokenizer, stops)


def test_ratio_by_hand() -> None:
    base, tuned, tokens = np.array([4.0, 2.0]), np.array([2.0, 1.0]), np.array([2.0, 1.0])
    ratio = paired_ratio(base, tuned, tokens, rounds=200)
    assert ratio["value"] == pytest.approx(math.exp(-1)) and ratio["low"] == ratio["high"] == ratio["value"]
    same = paired_ratio(base, base, tokens, rounds=200)
    assert same == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_the_interval_is_reproducible_and_holds_the_value() -> None:
    draw = np.random.default_rng(1)
    base, tokens = draw.normal(300, 40, 60), draw.integers(50, 150, 60).astype(float)
    tuned = base - draw.normal(20, 10, 60)
    ratio = paired_ratio(base, tuned, tokens)
    assert ratio == paired_ratio(base, tuned, tokens)
    assert ratio["low"] < ratio["value"] < ratio["high"] < 1


def test_base_and_tuned_share_ids_and_model(tiny: SimpleNamespace) -> None:
    result = compare(tiny.recipe, tiny.adapter, "tiny_eval", batch_size=8, rounds=500)
    rows = load_rows(read_arguments(tiny.recipe, "tiny_eval"))[0]
    nll, tokens = sums(rows, token_nll(tiny.model, rows))["all"], token_counts(rows)["all"]
    assert result["base"] == pytest.approx(perplexity(nll, tokens), rel=1e-5)
    assert result["tuned"] != pytest.approx(result["base"], rel=1e-3)
    assert result["ratio"]["value"] == pytest.approx(result["tuned"] / result["base"])
    assert result["samples"] == len(rows) == len(result["rows"]) and result["skipped"] == []
    assert sum(part["tokens"] for part in result["segments"].values()) == result["tokens"] == tokens.sum()
    assert result["ids_sha256"] == ids_hash(rows)


def test_a_row_beyond_the_models_context_is_listed_not_cut(tiny: SimpleNamespace) -> None:
    import shutil

    rows = load_rows(read_arguments(tiny.recipe, "tiny_eval"))[0]
    context = sorted(len(row.ids) for row in rows)[-3]
    shutil.copytree(tiny.root / "model", tiny.root / "small", dirs_exist_ok=True)
    config = json.loads((tiny.root / "small/config.json").read_text())
    (tiny.root / "small/config.json").write_text(json.dumps(config | {"max_position_embeddings": context}))
    text = (tiny.root / "train.yaml").read_text(encoding="utf-8").replace(f"{tiny.root}/model", f"{tiny.root}/small")
    (tiny.root / "small.yaml").write_text(text, encoding="utf-8")
    result = compare(f"{tiny.root}/small.yaml", tiny.adapter, "tiny_eval", batch_size=8, rounds=100)
    assert result["skipped"] == [row.id for row in rows if len(row.ids) > context] != []
    assert result["samples"] + len(result["skipped"]) == len(rows)


@pytest.mark.parametrize(
    "adapter, dataset, message",
    [("none", "tiny_eval", "no adapter_config.json"), ("adapter", "other", "other: not registered")],
)
def test_what_is_missing_is_named(tiny: SimpleNamespace, adapter: str, dataset: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        compare(tiny.recipe, f"{tiny.root}/{adapter}", dataset, batch_size=8, rounds=10)


def test_a_recipe_that_llamafactory_refuses_is_one_line(tiny: SimpleNamespace) -> None:
    (tiny.root / "bad.yaml").write_text((tiny.root / "train.yaml").read_text(encoding="utf-8") + "lora_rnak: 3\n")
    with pytest.raises(UserError, match=r"bad\.yaml: LLaMA-Factory refuses it: .*lora_rnak"):
        read_arguments(f"{tiny.root}/bad.yaml", "tiny_eval")
