"""A teacher's distributions over the very tokens that LLaMA-Factory trains on, against plain forward passes."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from chat.logprobs import PAD
from distill.pack import Pack, check, read_vocabulary, row_key, verify
from distill.score import Row, distributions, head_top, load_rows, meta_of, read_recipe, score
from distill.settings import Distill
from eval.perplexity import BLOCKS
from recipe import UserError
from tests.conftest import ROOT

Arrays = dict[str, SimpleNamespace]


@pytest.fixture(scope="module")
def rows(tiny: SimpleNamespace) -> list[Row]:
    return load_rows(read_recipe(tiny.recipe))[0]


@pytest.fixture
def settings(tiny: SimpleNamespace, tmp_path: Path) -> Distill:
    return Distill(train=tiny.recipe, pack=f"{tmp_path}/pack", teacher=f"{tiny.root}/model", limit=24)


def recipe(tiny: SimpleNamespace, path: Path, **keys: Any) -> str:
    """The tiny recipe with other keys; None takes a key away."""
    values = yaml.safe_load(Path(tiny.recipe).read_text(encoding="utf-8")) | keys
    path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
    return str(path)


def plain(model: torch.nn.Module, row: Row) -> torch.Tensor:
    """log p, float64 [n, vocabulary], of everything at each label, by one forward pass over the whole row."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0].double()
    return logits.log_softmax(-1)[torch.tensor(row.scored) - 1]


@pytest.fixture
def unrounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is scored, before it is rounded to fp16."""
    names = ("ids", "logprobs", "tail", "chosen", "chosen_logprob")
    monkeypatch.setattr(
        "distill.score.to_positions", lambda *values: SimpleNamespace(**dict(zip(names, values, strict=True)))
    )


def scored(model: torch.nn.Module, rows: list[Row], k: int = 20, **keywords: int) -> Arrays:
    return {key: found for batch in distributions(model, rows, k, **keywords) for key, found in batch}


# --- the token ids


def trained_on(train: str, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, list[int]]]:
    """The data set that LLaMA-Factory's own workflow hands to its trainer."""
    import llamafactory.train.sft.workflow as workflow
    from llamafactory.hparams import get_train_args

    class Reached(Exception):
        pass

    def trainer(**keywords: Any) -> None:
        raise Reached(keywords["train_dataset"])

    monkeypatch.setattr(workflow, "CustomSeq2SeqTrainer", trainer)
    with pytest.raises(Reached) as reached:
        workflow.run_sft(*get_train_args(yaml.safe_load(Path(train).read_text(encoding="utf-8"))))
    return list(reached.value.args[0])


def conversations(folder: Path) -> None:
    """Two turns a row, registered as `turns`, in ShareGPT's form."""
    rows = [
        [{"from": who, "value": f"{text}{i}"} for who, text in zip(["human", "gpt"] * 2, "咳嗽发热", strict=True)]
        for i in range(20)
    ]
    (folder / "turns.json").write_text(json.dumps([{"conversations": row} for row in rows]), encoding="utf-8")
    path = folder / "dataset_info.json"
    registry = json.loads(path.read_text()) | {"turns": {"file_name": "turns.json", "formatting": "sharegpt"}}
    path.write_text(json.dumps(registry))


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"cutoff_len": 64},
        {"dataset": "tiny_train,turns", "val_size": 0.2, "eval_dataset": None, "max_samples": 50},
        {"dataset": "turns", "mask_history": True},
        {"template": "qwen"},
    ],
    ids=["as it is", "cut", "two sets, one split", "last turn", "another template"],
)
def test_the_rows_are_the_trainers(
    tiny: SimpleNamespace, tmp_path: Path, keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    conversations(tiny.root)
    train = recipe(tiny, tmp_path / "train.yaml", output_dir=str(tmp_path / "saves"), **keys)
    theirs = trained_on(train, monkeypatch)
    ours, tokenizer = load_rows(read_recipe(train))
    expected = {row_key(row["input_ids"], row["labels"]): row for row in theirs}
    assert {row.key for row in ours} == expected.keys() and len(ours) >= 16
    for row in ours:
        assert list(row.ids) == expected[row.key]["input_ids"] and list(row.labels) == expected[row.key]["labels"]
    if keys.get("cutoff_len"):
        assert max(len(row.ids) for row in ours) == 64
    if keys.get("dataset") == "turns":
        text = tokenizer.decode([ours[0].labels[place] for place in ours[0].scored])
        assert "热" in text and "嗽" not in text


# --- against plain forward passes


def agree(found: SimpleNamespace, logprobs: torch.Tensor, row: Row, k: int, close: float) -> None:
    values, ids = logprobs.sort(descending=True)
    gaps = (values[:, :k] - values[:, 1 : k + 1]).numpy() > 2 * close
    alone = gaps & np.concatenate([np.ones_like(gaps[:, :1]), gaps[:, :-1]], 1)
    assert alone.mean() > 0.95 and (found.ids == ids[:, :k].numpy())[alone].all()
    assert np.abs(found.logprobs - values[:, :k].numpy()).max() <= close
    assert np.abs(found.tail - values[:, k:].logsumexp(1).numpy()).max() <= close
    assert found.chosen.tolist() == [row.labels[place] for place in row.scored]
    own = logprobs.gather(1, torch.tensor(found.chosen)[:, None])[:, 0].numpy()
    assert np.abs(found.chosen_logprob - own).max() <= close


def test_scores_are_those_of_a_plain_forward_pass(tiny: SimpleNamespace, rows: list[Row], unrounded: None) -> None:
    exact, found = copy.deepcopy(tiny.model).double(), scored(tiny.model, rows[:40])
    assert len(found) == 40
    for row in rows[:40:2]:
        agree(found[row.key], plain(exact, row), row, 20, 1e-5)


@pytest.mark.parametrize("tokens", [1, 700, 100_000])
def test_a_batch_changes_nothing(tiny: SimpleNamespace, rows: list[Row], unrounded: None, tokens: int) -> None:
    mixed = random.Random(0).sample(rows[:40], 40)
    one, other = scored(tiny.model, rows[:40]), scored(tiny.model, mixed, batch_tokens=tokens)
    for row in rows[:40]:
        assert (one[row.key].ids == other[row.key].ids).mean() > 0.999
        for name in ("logprobs", "tail", "chosen_logprob"):
            np.testing.assert_allclose(getattr(one[row.key], name), getattr(other[row.key], name), atol=1e-5)


@pytest.mark.parametrize("k", [1, 20, 101, 90])
@pytest.mark.parametrize("size", [101, 90])
@pytest.mark.parametrize("wrapped", [False, True])
def test_blocks_of_logits_give_the_top_of_the_whole(
    wrapped: bool, size: int, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BLOCKS, "cpu", (7, 11))
    monkeypatch.setattr("distill.score.WHOLE", 300)
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 101)
    head.weight.data *= torch.linspace(0.1, 60, 101)[torch.randperm(101), None]  # tails down to e^-600
    hidden, targets = torch.randn(30, 16), torch.arange(30) * 3 % size
    module = type("Wrapped", (torch.nn.Linear,), {})(16, 101) if wrapped else head
    module.load_state_dict(head.state_dict())
    with torch.inference_mode():
        k = min(k, size)
        ids, logprobs, tail, label = head_top(module, hidden, targets, k, size)
        logits = head(hidden).double()[:, :size]
        values, expected = logits.log_softmax(-1).sort(descending=True)
    assert torch.equal(ids, expected[:, :k]) and tail.dtype == logprobs.dtype == torch.float64
    torch.testing.assert_close(logprobs, values[:, :k], rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(tail, values[:, k:].logsumexp(1), rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(label, logits.log_softmax(-1).gather(1, targets[:, None])[:, 0], rtol=1e-6, atol=1e-5)
    assert k == size or tail.min() < -40  # what 1 - Σp could not tell from nothing


def test_a_first_token_that_is_a_label_is_not_known(tiny: SimpleNamespace, rows: list[Row]) -> None:
    row = dataclasses.replace(rows[0], labels=rows[0].ids)
    found = scored(tiny.model, [row])[row.key]
    assert len(found.ids) == len(row.ids) and (found.ids[0] == PAD).all() and (found.ids[1:] != PAD).all()
    assert found.more["tail"][0] == 0


# --- the whole step


def packed(settings: Distill, model: torch.nn.Module, rows: list[Row], close: float) -> None:
    """That a pack holds what a model says of `rows`, to fp16 and `close`."""
    pack = Pack.open(settings.pack)
    assert len(pack) == len(rows)
    for row in rows:
        found, logprobs = pack.get(row.key), plain(model, row)
        values = logprobs.gather(1, torch.tensor(found.ids)).numpy()
        assert (np.abs(found.logprobs - values) <= np.abs(values) / 2048 + close).all()
        assert (values[:, -1] >= logprobs.sort(descending=True)[0][:, 19].numpy() - close).all()
    assert verify(settings.pack)["known"] == sum(len(row.scored) for row in rows)


def test_a_teacher_is_scored_once(
    tiny: SimpleNamespace,
    settings: Distill,
    rows: list[Row],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    score(dataclasses.replace(settings, limit=9))
    before = (Path(settings.pack) / "0.logprobs").read_bytes()
    score(settings)
    after = (Path(settings.pack) / "0.logprobs").read_bytes()
    assert after.startswith(before) and "24 rows; 9 are stored already" in capsys.readouterr().out
    packed(settings, tiny.model, rows[:24], 1e-5)
    monkeypatch.setattr("distill.score.load_model", None)  # nothing is left to score
    score(settings)
    assert (Path(settings.pack) / "0.logprobs").read_bytes() == after
    arguments, (_, tokenizer) = read_recipe(tiny.recipe), load_rows(read_recipe(tiny.recipe), 1)
    check(Pack.open(settings.pack).meta, meta_of(arguments.data, read_vocabulary(tokenizer), k=20, size=640))


def test_a_lora_teacher(tiny: SimpleNamespace, settings: Distill, rows: list[Row]) -> None:
    from peft import PeftModel

    score(dataclasses.replace(settings, teacher_adapter=tiny.adapter))
    teacher = PeftModel.from_pretrained(copy.deepcopy(tiny.model), tiny.adapter).eval()
    packed(settings, teacher, rows[:24], 1e-4)
    assert "model + adapter" in Pack.open(settings.pack).meta.teacher


@pytest.mark.parametrize("adapter", [False, True])
def test_a_4_bit_teacher(tiny: SimpleNamespace, settings: Distill, rows: list[Row], adapter: bool) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    given = tiny.adapter if adapter else ""
    score(dataclasses.replace(settings, teacher_quantization_bit=4, teacher_adapter=given))
    bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    teacher = AutoModelForCausalLM.from_pretrained(
        f"{tiny.root}/model", quantization_config=bits, dtype=torch.float32, device_map={"": "cpu"}
    ).eval()
    teacher = PeftModel.from_pretrained(teacher, tiny.adapter).eval() if adapter else teacher
    packed(settings, teacher, rows[:24], 1e-3)
    assert Pack.open(settings.pack).meta.teacher.endswith("(4 bits)")
    assert (plain(teacher, rows[0]) - plain(tiny.model, rows[0])).abs().max() > 0.01


def test_processes_share_the_rows(
    tiny: SimpleNamespace, settings: Distill, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank in ("1", "0"):
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": "4,6"}
        for name, value in told.items():
            monkeypatch.setenv(name, value)
        score(settings)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ("4", "6")[int(rank)]
    packed(settings, tiny.model, rows[:24], 1e-5)
    sizes = [len(file) for file in Pack.open(settings.pack).files]
    assert len(sizes) == 2 and min(sizes) > 4 and verify(settings.pack)["repeated"] == 0


# --- what is refused


@pytest.fixture
def broken(tiny: SimpleNamespace, tmp_path: Path) -> Iterator[Callable[[Callable[[Path], None]], str]]:
    """The tiny model in another folder, changed."""

    def _broken(change: Callable[[Path], None]) -> str:
        folder = tmp_path / "teacher"
        shutil.copytree(tiny.root / "model", folder)
        change(folder)
        return str(folder)

    yield _broken


def test_another_tokenizer_is_refused(settings: Distill, broken: Callable) -> None:
    def swap(folder: Path) -> None:
        path = folder / "tokenizer.json"
        values = json.loads(path.read_text(encoding="utf-8"))
        table = values["model"]["vocab"]
        table["，"], table["、"] = table.get("、", 0), table.get("，", 0)
        pair = sorted(table, key=table.get)[100:400]
        shifted = [table[name] for name in pair[1:] + pair[:1]]
        table |= dict(zip(pair, shifted, strict=True))
        path.write_text(json.dumps(values), encoding="utf-8")

    with pytest.raises(
        UserError, match=r"teacher: [\d.]+% of the .* tokens in the rows are the same ones in its token"
    ):
        score(dataclasses.replace(settings, teacher=broken(swap)))
    assert not Path(settings.pack).exists()


def test_a_context_that_is_too_short_is_refused(settings: Distill, broken: Callable) -> None:
    def shorten(folder: Path) -> None:
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(values | {"max_position_embeddings": 64}))

    with pytest.raises(UserError, match=r"teacher reads 64 tokens, a row has \d+; lower the recipe's cutoff_len"):
        score(dataclasses.replace(settings, teacher=broken(shorten)))


def test_nan_is_refused_and_not_stored(tiny: SimpleNamespace, settings: Distill, broken: Callable) -> None:
    def poison(folder: Path) -> None:
        model = copy.deepcopy(tiny.model)
        model.get_input_embeddings().weight.data[tiny.tokenizer.encode("咳")[0]] = torch.nan
        model.save_pretrained(folder)

    with pytest.raises(UserError, match="NaN"):
        score(dataclasses.replace(settings, teacher=broken(poison), batch_tokens=1, limit=0))
    for key in (pack := Pack.open(settings.pack)):
        assert not np.isnan(pack.get(key).logprobs).any()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"teacher": ""}, "no teacher; name a model's folder"),
        ({"teacher": "models/none"}, "teacher: no model in models/none"),
        ({"k": 641}, "k: 641 tokens a position are asked for, but the vocabulary has 640"),
        ({"k": 0}, "k: expected 1 to"),
        ({"teacher_quantization_bit": 3}, "teacher_quantization_bit: expected 0, 4 or 8, got 3"),
        ({"train": "none.yaml"}, "none.yaml: no such file"),
    ],
)
def test_settings_that_can_not_be_meant(settings: Distill, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        score(dataclasses.replace(settings, **keys))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"packing": True}, r"train.yaml:\d+: packing: rows that are packed can't be told apart; set it to false"),
        (
            {"train_on_prompt": True},
            r"train.yaml:\d+: train_on_prompt: `make distill` would refuse it; set it to false",
        ),
        ({"neat_packing": True}, r"train.yaml:\d+: neat_packing: rows that are packed"),
        ({"stage": "dpo"}, "stage 'dpo'; distributions are for stage: sft"),
        ({"dataset": "nowhere"}, "LLaMA-Factory does not read it"),
        ({"cutoff_len": 1}, "no row has a response that is trained on; is cutoff_len 1?"),
        ({"no_such_key": 1}, "LLaMA-Factory refuses it"),
    ],
)
def test_recipes_that_can_not_be_scored(
    tiny: SimpleNamespace, settings: Distill, tmp_path: Path, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        score(dataclasses.replace(settings, train=recipe(tiny, tmp_path / "train.yaml", **keys)))


def test_a_pack_of_other_settings_is_not_added_to(settings: Distill) -> None:
    score(dataclasses.replace(settings, limit=2))
    for keys, message in (
        ({"k": 5}, "made with k 20, now it is 5"),
        ({"teacher_quantization_bit": 4}, "model .* bits"),
    ):
        with pytest.raises(UserError, match=message):
            score(dataclasses.replace(settings, **keys))
    assert len(Pack.open(settings.pack)) == 2


@pytest.mark.slow
def test_kill_9_while_scoring(tiny: SimpleNamespace, settings: Distill, rows: list[Row], tmp_path: Path) -> None:
    path = tmp_path / "distill.yaml"
    values = dataclasses.asdict(settings) | {"batch_tokens": 1, "limit": 0}
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    line = [sys.executable, "-m", "distill.score", str(path)]
    shard = Path(settings.pack) / "0.logprobs"
    for kills in (20_000, 400_000):
        process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (shard.exists() and shard.stat().st_size > kills):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    subprocess.run(line, cwd=ROOT, check=True, capture_output=True, timeout=120)
    assert verify(settings.pack)["repeated"] == 0
    packed(settings, tiny.model, rows, 1e-5)
