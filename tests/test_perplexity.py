"""Outside oracles for the perplexity: a uniform model, lm_eval's HFLM, the Hugging Face Trainer, LLaMA-Factory."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from eval.arms import Arm
from eval.perplexity import (
    BLOCKS,
    batches,
    check_head,
    compare,
    figures,
    head_nll,
    load_model,
    perplexity,
    sums,
    token_counts,
    token_nll,
    windows,
)
from eval.tokens import SEGMENTS, Row, ids_hash, load_rows, read_arguments, segments, to_row
from preprocess.think import CLOSE, OPEN
from recipe import UserError

BASE = Arm("base", "base")


def made(count: int, start: int = 2, end: int = 6) -> list[Row]:
    """Rows of token ids below 5, without a meaning."""
    draw = np.random.default_rng(0)
    parts = ("think", *["answer"] * (end - start - 2), "end")
    return [Row(str(i), tuple(draw.integers(0, 5, end).tolist()), start, end, parts, 9, 3) for i in range(count)]


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
    model, rows = copy.deepcopy(tiny.model), rows[:40]
    model.get_output_embeddings().weight.data.zero_()
    nll, tokens = sums(rows, token_nll(model, rows)), token_counts(rows)
    for name in ("all", *SEGMENTS):
        assert perplexity(nll[name], tokens[name]) == pytest.approx(model.config.vocab_size, rel=1e-5)


@pytest.mark.parametrize(
    "batch_size", [pytest.param(1, marks=pytest.mark.slow), 4, pytest.param(16, marks=pytest.mark.slow)]
)
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
    ours = -sums(rows, token_nll(tiny.model, rows, batch_size * 200))["all"]
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


def test_neither_batches_nor_order_matter(tiny: SimpleNamespace, rows: list[Row]) -> None:
    some, tokens = rows[:33], token_counts(rows[:33])["all"]
    one = token_nll(tiny.model, some, 1)
    values = [perplexity(sums(some, one)["all"], tokens)]
    longest = max(len(row.ids) for row in some)
    for budget in (2 * longest, 8 * longest, 0):
        scores = token_nll(tiny.model, some, budget)
        for mine, theirs in zip(scores, one, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=2e-5, atol=2e-6)
        values.append(perplexity(sums(some, scores)["all"], tokens))
    turned = token_nll(tiny.model, some[::-1])[::-1]
    values.append(perplexity(sums(some, turned)["all"], tokens))
    print(f"\nperplexity by batch and order: relative spread {max(values) / min(values) - 1:.1e}")
    assert max(values) / min(values) - 1 <= 1e-6


def test_batches_keep_to_their_budget(rows: list[Row]) -> None:
    pieces = [(index, window) for index, row in enumerate(rows) for window in windows(row, 10_000)]
    made = list(batches(pieces, 600))
    assert sorted(piece for batch in made for piece in batch) == sorted(pieces)
    widths = [max(last - 1 - begin for _, (begin, _, last) in batch) for batch in made]
    assert widths == sorted(widths, reverse=True)
    assert all(len(batch) * width <= 600 or len(batch) == 1 for batch, width in zip(made, widths, strict=True))
    assert all((len(batch) + 1) * width > 600 for batch, width in zip(made[:-1], widths, strict=False))
    assert [len(batch) for batch in batches(pieces, 1)] == [1] * len(rows)


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
    with pytest.raises(UserError, match="row a: expected a prompt and one response"):
        to_row("a", ids[: row.end - 1], labels[: row.end - 1], tiny.tokenizer, stops)
    with pytest.raises(UserError, match="row a: expected a prompt and one response"):
        to_row("a", ids + ids, labels + labels, tiny.tokenizer, stops)


# --- the head


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
def test_blocks_of_logits_are_the_whole(wrapped: bool, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BLOCKS, "cpu", (7, 11))
    monkeypatch.setattr("eval.perplexity.WHOLE", 300)
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 101, bias=bias)
    hidden, targets = torch.randn(30, 16), torch.arange(30) * 3 % 101
    expected = torch.nn.functional.cross_entropy(head(hidden).double(), targets, reduction="none")
    module = type("Wrapped", (torch.nn.Linear,), {})(16, 101, bias=bias) if wrapped else head
    module.load_state_dict(head.state_dict())
    with torch.inference_mode():
        nll = head_nll(module, hidden, targets)
    assert nll.dtype == torch.float64
    np.testing.assert_allclose(nll.detach(), expected.detach(), rtol=1e-6)


def test_a_bigram_table_has_its_closed_form(tiny: SimpleNamespace) -> None:
    """The decoder gives each token's own one-hot state; the head is a table of log p(next | token)."""
    table = torch.distributions.Dirichlet(torch.ones(5)).sample((5,)).log()

    class Bigram(torch.nn.Module):
        device, config = torch.device("cpu"), tiny.model.config

        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(5, 5, bias=False)
            self.head.weight.data = table.T.contiguous()

        def get_output_embeddings(self) -> torch.nn.Module:
            return self.head

        def get_decoder(self) -> Callable:
            return lambda input_ids, use_cache: SimpleNamespace(
                last_hidden_state=torch.nn.functional.one_hot(input_ids, 5).float()
            )

        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
            return SimpleNamespace(logits=self.head(self.get_decoder()(input_ids, use_cache).last_hidden_state))

    rows = made(50)
    expected = [-sum(table[a, b].item() for a, b in zip(row.ids[1:], row.ids[2:], strict=False)) for row in rows]
    nll = sums(rows, token_nll(Bigram(), rows))["all"]
    np.testing.assert_allclose(nll, expected, rtol=1e-6)


def test_a_half_precision_model_is_not_scored_in_half_precision(tiny: SimpleNamespace, rows: list[Row]) -> None:
    some = [
        dataclasses.replace(row, ids=row.ids[: row.start + 30], end=row.start + 30, segments=row.segments[:30])
        for row in rows[:120]
    ]
    nll = sums(some, token_nll(copy.deepcopy(tiny.model).bfloat16(), some))["all"]
    values = np.exp(nll / token_counts(some)["all"])
    print(f"\nbf16 model: {len(set(values))} different perplexities of {len(some)} rows")
    assert len(set(values)) >= 119
    exact = np.exp(sums(some, token_nll(tiny.model, some))["all"] / token_counts(some)["all"])
    np.testing.assert_allclose(values, exact, rtol=0.02)


def test_logits_that_are_capped_behind_the_head_are_refused(rows: list[Row]) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma2Config(**sizes, num_key_value_heads=2, head_dim=16, vocab_size=1024, final_logit_softcapping=0.5)
    with pytest.raises(UserError, match="Gemma2ForCausalLM: it scales or caps"):
        check_head(Gemma2ForCausalLM(config).eval(), rows[0])


# --- windows


@pytest.mark.parametrize("context", [8, 9, 40, 100, 1000])
def test_each_token_is_scored_once_and_sees_what_it_should(rows: list[Row], context: int) -> None:
    for row in rows:
        found = windows(row, context)
        assert [first for _, first, _ in found] == [row.start, *[last for *_, last in found[:-1]]]
        assert found[-1][2] == row.end
        for begin, first, last in found:
            assert first < last and last - 1 - begin <= context
            assert begin == 0 or first - begin >= context // 2
        assert row.end - 1 > context or found == [(0, row.start, row.end)]


def test_windows_against_each_token_scored_alone(tiny: SimpleNamespace, rows: list[Row]) -> None:
    row, context = max(rows, key=lambda row: len(row.ids)), 48
    assert row.end > 3 * context
    nll = token_nll(tiny.model, [row], context=context)[0]
    for i, token in enumerate(range(row.start, row.end)):
        begin = 0
        while token - begin > context:  # the first window, half a context apart, that holds all it sees
            begin += context // 2
        with torch.inference_mode():
            logits = tiny.model(torch.tensor([row.ids[begin:token]])).logits[0, -1]
        assert nll[i] == pytest.approx(-logits.log_softmax(-1)[row.ids[token]].item(), rel=2e-5, abs=2e-6)


# --- what is made of the scores


def test_figures_by_hand() -> None:
    parts = ("think", "markup", "answer", "end")
    rows = [Row(name, (1,) * 5, 1, 5, parts, 6, 2) for name in "ab"]
    base = [np.array([1.0, 2.0, 3.0, 2.0]), np.array([1.0, 1.0, 1.0, 1.0])]
    tuned = [np.array([1.0, 1.0, 1.0, 1.0]), np.array([1.0, 0.0, 1.0, 2.0])]
    result = figures(rows, {"前": base, "后": tuned}, rounds=200)
    assert result["前"] == pytest.approx(math.exp(12 / 8)) and result["后"] == pytest.approx(math.exp(1))
    assert result["ratio"]["value"] == pytest.approx(math.exp(-0.5)) and set(result["ratio"]) == {
        "value",
        "low",
        "high",
    }
    assert {key: result["ratios"]["后"][key] for key in ("improved", "worse", "p")} == {
        "improved": 1,
        "worse": 0,
        "p": 1,
    }
    assert result["per_sample"]["geometric"]["前"] == pytest.approx(math.exp((2 + 1) / 2))
    assert result["per_sample"]["arithmetic"]["前"] == pytest.approx((math.exp(2) + math.exp(1)) / 2)
    assert result["bits_per_byte"]["前"] == pytest.approx(9 / math.log(2) / 12)  # without the end token's 2 + 1 nats
    assert result["bits_per_character"]["后"] == pytest.approx(5 / math.log(2) / 4)
    assert {name: part["share"] for name, part in result["segments"].items()} == dict.fromkeys(SEGMENTS, 0.25)
    assert result["segments"]["end"]["前"] == pytest.approx(math.exp(1.5))
    assert result["segments"]["markup"]["ratios"]["后"]["improved"] == 2 and result["without"] == {
        "think": [],
        "answer": [],
    }
    for row in result["rows"]:
        for arm in ("前", "后"):
            assert sum(part[arm] for part in row["segments"].values()) == pytest.approx(row["nll"][arm], abs=1e-9)


def test_a_row_without_a_thought_is_listed() -> None:
    row = Row("无", (1, 2, 3), 1, 3, ("answer", "end"), 3, 1)
    result = figures([row], {"base": [np.array([1.0, 1.0])]})
    assert result["without"] == {"think": ["无"], "answer": []} and result["ratio"] is None
    assert set(result["segments"]) == {"answer", "end"}


# --- arms


@pytest.fixture(scope="module")
def folders(tiny: SimpleNamespace) -> Path:
    """A second adapter, the first one merged, a model of its own, and one whose tokenizer knows other merges."""
    from peft import PeftModel
    from safetensors.torch import load_file, save_file

    from recipes.demo.build_model import build_tokenizer

    root = tiny.root / "arms"
    shutil.copytree(tiny.adapter, root / "second")
    weights = root / "second/adapter_model.safetensors"
    save_file({name: -2 * w if "lora_B" in name else w for name, w in load_file(weights).items()}, weights)
    tiny.tokenizer.save_pretrained(root / "second")
    merged = PeftModel.from_pretrained(copy.deepcopy(tiny.model), tiny.adapter).merge_and_unload()
    full = copy.deepcopy(tiny.model).bfloat16()
    full.get_output_embeddings().weight.data *= 1.5
    for name, model in (("merged", merged), ("full", full), ("other", full)):
        model.save_pretrained(root / name)
        tiny.tokenizer.save_pretrained(root / name)
    build_tokenizer(["咳嗽三周，夜里加重。"], 400).save_pretrained(root / "other")
    return root


def test_all_arms_are_scored_as_each_alone(
    tiny: SimpleNamespace, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import PeftModel

    loaded: list[weakref.ref] = []

    def load(*arguments: Any) -> Any:
        assert all(model() is None for model in loaded)  # one at a time
        model = load_model(*arguments)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr("eval.perplexity.load_model", load)
    arms = [
        *(Arm("full", "model", f"{folders}/full"), Arm("tuned", "adapter", tiny.adapter), BASE),
        *(Arm("二", "adapter", f"{folders}/second"), Arm("merged", "model", f"{folders}/merged")),
        Arm("teacher", "server", "http://127.0.0.1:9/v1", "deepseek-chat"),
    ]
    result = compare(tiny.recipe, arms, "tiny_eval", rounds=200, limit=6)
    rows = load_rows(read_arguments(tiny.recipe, "tiny_eval"), limit=6)[0]
    tokens = token_counts(rows)["all"]

    def alone(model: Any) -> float:
        return perplexity(sums(rows, token_nll(model, rows))["all"], tokens)

    def adapted(place: str) -> Any:
        return PeftModel.from_pretrained(copy.deepcopy(tiny.model), place).eval().get_base_model()

    assert len(loaded) == 3
    full = type(tiny.model).from_pretrained(folders / "full", dtype="auto").eval()
    assert full.dtype == torch.bfloat16
    expected = {"full": full, "tuned": adapted(tiny.adapter), "base": tiny.model, "二": adapted(f"{folders}/second")}
    assert {arm: result[arm] for arm in expected} == pytest.approx({n: alone(m) for n, m in expected.items()}, rel=1e-6)
    assert result["merged"] == pytest.approx(result["tuned"], rel=1e-4)
    assert list(result["ratios"]) == ["tuned", "base", "二", "merged"] and list(result["not_scored"]) == ["teacher"]
    assert result["ratio"]["value"] == pytest.approx(result["tuned"] / result["full"])
    assert result["ratios"]["base"]["improved"] + result["ratios"]["base"]["worse"] == len(rows)
    assert result["samples"] == len(rows) == len(result["rows"]) and result["skipped"] == result["windowed"] == []
    assert sum(part["tokens"] for part in result["segments"].values()) == result["tokens"] == tokens.sum()
    assert sum(part["share"] for part in result["segments"].values()) == pytest.approx(1)
    assert result["ids_sha256"] == ids_hash(rows)
    json.dumps(result, allow_nan=False)


def test_training_rows_show_the_gap(tiny: SimpleNamespace) -> None:
    result = compare(tiny.recipe, [BASE], "tiny_eval", rounds=100, limit=12)
    sample = load_rows(read_arguments(tiny.recipe), sample=12)[0]
    assert result["samples"] == 12 and result["ratios"] == {}
    expected = perplexity(sums(sample, token_nll(tiny.model, sample))["all"], tokens := token_counts(sample)["all"])
    assert result["train"] == {"base": pytest.approx(expected, rel=1e-6), "samples": 12, "tokens": tokens.sum()}


def test_a_sample_is_the_same_whatever_the_order(tiny: SimpleNamespace, rows: list[Row]) -> None:
    some = load_rows(read_arguments(tiny.recipe, "tiny_train"), sample=20)[0]
    by_id = {row.id: row for row in rows}
    assert len(some) == 20 and all(by_id[row.id] == row for row in some)
    turned = json.loads((tiny.root / "data/train.json").read_text(encoding="utf-8"))[::-1]
    (tiny.root / "data/turned.json").write_text(json.dumps(turned), encoding="utf-8")
    registry = json.loads((tiny.root / "dataset_info.json").read_text())
    registry["turned"] = registry["tiny_train"] | {"file_name": "data/turned.json", "num_samples": 3}
    (tiny.root / "turned").mkdir()
    (tiny.root / "turned/data").symlink_to(tiny.root / "data")
    (tiny.root / "turned/dataset_info.json").write_text(json.dumps(registry))
    arguments = read_arguments(tiny.recipe, "tiny_eval,turned")
    arguments.data.dataset_dir = str(tiny.root / "turned")
    both = load_rows(arguments, sample=10_000)[0]
    assert len(both) == len(rows) + len(load_rows(read_arguments(tiny.recipe, "tiny_eval"))[0])
    arguments.data.dataset = ["turned"]
    assert load_rows(arguments, sample=20)[0] == some


def test_training_data_that_can_not_be_scored_is_told(tiny: SimpleNamespace, recipe_with: Callable[..., str]) -> None:
    """A recipe of preferences, in the manner of recipes/medcot_dpo."""
    registry = json.loads((tiny.root / "dataset_info.json").read_text())
    entry = {"file_name": "pairs.json", "ranking": True}
    entry["columns"] = {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}
    (tiny.root / "pairs.json").write_text(json.dumps([{"instruction": "咳嗽", "chosen": "就诊", "rejected": "不用"}]))
    (tiny.root / "dataset_info.json").write_text(json.dumps(registry | {"pairs": entry}))
    train = recipe_with("dpo", stage="dpo", dataset="pairs", pref_beta=0.1, ref_model=f"{tiny.root}/model")
    result = compare(train, [BASE], "tiny_eval", rounds=100, limit=4)
    assert result["samples"] == 4 and "pairs: LLaMA-Factory does not read it" in result["train"]["not_scored"]


@pytest.fixture
def recipe_with(tiny: SimpleNamespace) -> Callable[..., str]:
    """The tiny recipe with other values, in a file of its own."""

    def _write(name: str, **values: Any) -> str:
        import yaml

        path = tiny.root / f"{name}.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(Path(tiny.recipe).read_text(encoding="utf-8")) | values))
        return str(path)

    return _write


def test_rows_beyond_the_smallest_context_are_windowed_for_all(
    tiny: SimpleNamespace, folders: Path, recipe_with: Callable[..., str]
) -> None:
    rows = load_rows(read_arguments(tiny.recipe, "tiny_eval"), limit=12)[0]
    context = sorted(len(row.ids) for row in rows)[-5]
    shutil.copytree(folders / "full", tiny.root / "small", dirs_exist_ok=True)
    config = json.loads((tiny.root / "small/config.json").read_text())
    (tiny.root / "small/config.json").write_text(json.dumps(config | {"max_position_embeddings": context}))
    arms = [BASE, Arm("small", "model", f"{tiny.root}/small")]
    result = compare(tiny.recipe, arms, "tiny_eval", rounds=100, limit=12, train_rows=False)
    assert result["train"] == {"not_scored": "switched off"}
    assert result["windowed"] == [row.id for row in rows if row.end - 1 > context] != []
    assert result["samples"] == len(rows) and result["context"] == context and result["skipped"] == []
    nll = sums(rows, token_nll(tiny.model, rows, context=context))["all"]
    assert result["base"] == pytest.approx(perplexity(nll, token_counts(rows)["all"]), rel=1e-6)


def test_positions_would_be_stretched_as_in_training(tiny: SimpleNamespace) -> None:
    """LLaMA-Factory takes the factor of rope_scaling from the cut-off, which scoring lifts."""
    arguments = read_arguments(tiny.recipe)
    assert arguments.model.model_max_length == 512 < arguments.data.cutoff_len


@pytest.mark.slow
def test_four_bits_are_scored_in_four_bits(tiny: SimpleNamespace, recipe_with: Callable[..., str]) -> None:
    train = recipe_with("bits", quantization_bit=4)
    arms = [BASE, Arm("tuned", "adapter", tiny.adapter), Arm("float", "model", f"{tiny.root}/model")]
    result = compare(train, arms, "tiny_eval", rounds=100, limit=8, train_rows=False)
    plain = compare(tiny.recipe, arms[:2], "tiny_eval", rounds=100, limit=8, train_rows=False)
    assert result["float"] == pytest.approx(plain["base"], rel=1e-6)
    for arm in ("base", "tuned"):
        assert result[arm] == pytest.approx(plain[arm], rel=0.1) and result[arm] != pytest.approx(plain[arm], rel=1e-5)


# --- what is refused


def test_another_tokenizer_is_refused_by_row_and_field(tiny: SimpleNamespace, folders: Path) -> None:
    row = load_rows(read_arguments(tiny.recipe, "tiny_eval"))[0][0]
    with pytest.raises(UserError, match=f"^other: row {row.id}: its own tokenizer gives other `ids`"):
        compare(tiny.recipe, [BASE, Arm("other", "model", f"{folders}/other")], "tiny_eval")


def test_an_adapter_that_changes_nothing_is_refused(tiny: SimpleNamespace) -> None:
    from peft import LoraConfig, get_peft_model

    place = tiny.root / "idle"
    get_peft_model(copy.deepcopy(tiny.model), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(place)
    with pytest.raises(UserError, match="base and idle score every row exactly alike"):
        compare(tiny.recipe, [BASE, Arm("idle", "adapter", str(place))], "tiny_eval", limit=3, train_rows=False)


def test_an_adapter_of_another_model_is_refused(tiny: SimpleNamespace) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny.adapter, tiny.root / "misfit")
    weights = tiny.root / "misfit/adapter_model.safetensors"
    save_file({name: w[..., : w.shape[-1] // 2].contiguous() for name, w in load_file(weights).items()}, weights)
    with pytest.raises(
        UserError, match=r"misfit: .*/misfit does not fit .*/model; was it trained on it\?.*size mismatch"
    ):
        compare(tiny.recipe, [Arm("misfit", "adapter", f"{tiny.root}/misfit")], "tiny_eval", limit=3, train_rows=False)


def test_an_adapter_leaves_nothing_behind(tiny: SimpleNamespace) -> None:
    """Its own copy of the head stayed in the model, and the base was scored with it."""
    tuned = Arm("tuned", "adapter", tiny.adapter)
    first, after = (
        compare(tiny.recipe, arms, "tiny_eval", rounds=100, limit=4, train_rows=False)
        for arms in ([BASE, tuned], [tuned, BASE])
    )
    assert first["base"] == after["base"] and first["tuned"] == after["tuned"] != first["base"]


def test_servers_alone_are_refused(tiny: SimpleNamespace) -> None:
    with pytest.raises(UserError, match="arms: none is a folder"):
        compare(tiny.recipe, [Arm("t", "server", "http://127.0.0.1", "m")], "tiny_eval")


def test_a_data_set_that_is_not_there_is_named(tiny: SimpleNamespace) -> None:
    with pytest.raises(UserError, match="other: not registered"):
        compare(tiny.recipe, [BASE], "other")


def test_a_recipe_that_llamafactory_refuses_is_one_line(tiny: SimpleNamespace) -> None:
    (tiny.root / "bad.yaml").write_text((tiny.root / "train.yaml").read_text(encoding="utf-8") + "lora_rnak: 3\n")
    with pytest.raises(UserError, match=r"bad\.yaml: LLaMA-Factory refuses it: .*lora_rnak"):
        read_arguments(f"{tiny.root}/bad.yaml", "tiny_eval")


# --- LLaMA-Factory's own evaluation


@pytest.mark.slow
def test_llamafactorys_eval_loss_at_batch_size_one_is_the_geometric_mean(tiny: SimpleNamespace, tmp_path: Path) -> None:
    import yaml
    from llamafactory.train.tuner import run_exp
    from peft import PeftModel
    from safetensors.torch import load_file, save_file

    # A surer model, so that rows differ and the means fall apart.
    shutil.copytree(tiny.adapter, tmp_path / "sure")
    weights = tmp_path / "sure/adapter_model.safetensors"
    save_file({name: 6 * w if "lm_head" in name else w for name, w in load_file(weights).items()}, weights)
    values = yaml.safe_load(Path(tiny.recipe).read_text(encoding="utf-8"))
    values |= {"do_train": False, "do_eval": True, "per_device_eval_batch_size": 1, "use_cpu": True, "dataset": None}
    run_exp(values | {"adapter_name_or_path": f"{tmp_path}/sure", "output_dir": f"{tmp_path}/out"})
    loss = json.loads((tmp_path / "out/eval_results.json").read_text())["eval_loss"]
    # It scores the newline behind the end token, too.
    rows = [
        dataclasses.replace(row, end=len(row.ids), segments=(*row.segments, "end"))
        for row in load_rows(read_arguments(tiny.recipe, "tiny_eval"))[0]
    ]
    model = PeftModel.from_pretrained(copy.deepcopy(tiny.model), tmp_path / "sure").eval().get_base_model()
    result = figures(rows, {"tuned": token_nll(model, rows)})
    means = result["per_sample"]
    print(f"\nexp(eval_loss) {math.exp(loss):.3f}, {means}, by token {result['tuned']:.3f}")
    assert math.exp(loss) == pytest.approx(means["geometric"]["tuned"], rel=1e-6)
    assert math.exp(loss) != pytest.approx(result["tuned"], rel=1e-4)
