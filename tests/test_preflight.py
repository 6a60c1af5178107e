"""Preflight finds planted mistakes, one at a time in a recipe that is otherwise right, and says what to do."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from preflight import REFUSED, UNCHECKED, WARNED, Finding, cost, read_recipe
from preflight.__main__ import card_of, check
from preflight.checkpoints import checkpoint_fault, set_partial_aside
from preflight.data import Encoder, Rows, check_rows
from preflight.keys import check_keys, schema
from preflight.machine import Gpu
from preflight.rules import Machine, check_rules
from tests.conftest import ROOT
from tests.test_recipes import THEIRS

# What is changed in a good recipe (None deletes a key), the grade, and words of what must be said.
UNSLOTH = {"use_unsloth": True, "quantization_bit": 4}
PLANTED: list[tuple[dict[str, Any], str, str]] = [
    # keys, types, choices, ranges
    ({"lora_rnak": 8}, REFUSED, "did you mean `lora_rank`"),
    ({"group_by_length": True}, REFUSED, "train_sampling_strategy: group_by_length"),
    ({"evaluation_strategy": "steps"}, REFUSED, "write `eval_strategy`"),
    ({"save_safetensors": True}, REFUSED, "delete it"),
    ({"no_cuda": True}, REFUSED, "use_cpu: true"),
    ({"max_seq_length": 2048}, REFUSED, "cutoff_len"),
    ({"load_in_4bit": True}, REFUSED, "quantization_bit: 4"),
    ({"resources_per_worker": {"GPU": 1}}, REFUSED, "ray_num_workers, ray_init_kwargs"),
    ({"export_legacy_format": False}, "", ""),  # a key of the model arguments: no mistake
    ({"lora_rank": "eight"}, REFUSED, "a whole number"),
    ({"lora_rank": 8.5}, REFUSED, "a whole number"),
    ({"learning_rate": "1e-4 "}, REFUSED, "learning_rate must be a number"),
    ({"use_rslora": "true"}, REFUSED, "without quotes"),
    ({"eval_strategy": False}, REFUSED, 'quote the word: `eval_strategy: "no"`'),
    ({"finetuning_type": "qlora"}, REFUSED, "one of 'lora'"),
    ({"stage": "sfft"}, REFUSED, "one of"),
    ({"lr_scheduler_type": "cosin"}, REFUSED, "one of"),
    ({"optim": "adam8bit"}, REFUSED, "one of"),
    ({"flash_attn": "flash"}, REFUSED, "one of"),
    ({"learning_rate": 0.0}, REFUSED, "out of range"),
    ({"learning_rate": -1e-4}, REFUSED, "out of range"),
    ({"max_samples": -1}, REFUSED, "out of range"),
    ({"gradient_accumulation_steps": 0}, REFUSED, "out of range"),
    ({"lora_dropout": 1.5}, REFUSED, "out of range"),
    ({"output_dir": "saves/${run_name}"}, REFUSED, "does not resolve"),
    ({"hf_hub_token": "hf_x"}, REFUSED, "a secret in a file"),
    ({"swanlab_api_key": "x"}, REFUSED, "a secret in a file"),
    # Unsloth
    ({**UNSLOTH, "neat_packing": True}, REFUSED, "drops the mask"),
    ({**UNSLOTH, "packing": True}, REFUSED, "ids are cut"),
    ({"use_unsloth": True, "quantization_bit": 8}, REFUSED, "loaded in 16 bit"),
    ({**UNSLOTH, "model_name_or_path": "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"}, REFUSED, "repository of its own"),
    ({**UNSLOTH, "cutoff_len": 510}, REFUSED, "multiple of 8"),
    ({**UNSLOTH, "enable_liger_kernel": True}, REFUSED, "keep one"),
    ({**UNSLOTH, "deepspeed": "zero.json"}, REFUSED, "Unsloth with DeepSpeed"),
    ({**UNSLOTH, "use_unsloth_gc": True}, REFUSED, "delete use_unsloth_gc"),
    ({**UNSLOTH, "disable_gradient_checkpointing": True}, REFUSED, "delete disable_gradient_checkpointing"),
    ({**UNSLOTH, "use_dft_loss": True}, REFUSED, "whole logits"),
    ({**UNSLOTH, "compute_accuracy": True}, REFUSED, "whole logits"),
    ({**UNSLOTH, "predict_with_generate": True}, REFUSED, "make predict"),
    ({**UNSLOTH, "pissa_init": True}, REFUSED, "silently ignored"),
    ({**UNSLOTH, "double_quantization": False}, REFUSED, "Unsloth ignores"),
    ({**UNSLOTH, "model_revision": "v2"}, REFUSED, "Unsloth ignores model_revision"),
    ({**UNSLOTH, "lora_dropout": 0.1}, WARNED, "lora_dropout: 0.0"),
    # packing, attention, kernels
    ({"packing": True}, REFUSED, "neat_packing: true"),
    ({"neat_packing": True, "cutoff_len": 250}, REFUSED, "multiple of 8"),
    ({"neat_packing": True, "flash_attn": "fa2", "per_device_train_batch_size": 2}, REFUSED, "one packed row"),
    ({"flash_attn": "fa3"}, REFUSED, "NotImplementedError"),
    ({"enable_liger_kernel": True, "use_liger_kernel": True}, REFUSED, "patch the model twice"),
    # quantisation and adapters
    ({"use_dora": True, "quantization_bit": 4}, REFUSED, "use_dora"),
    ({"pissa_init": True, "quantization_bit": 4}, REFUSED, "pissa_init"),
    ({"quantization_bit": 4, "finetuning_type": "full"}, REFUSED, "finetuning_type: lora"),
    ({"quantization_bit": 3}, REFUSED, "4 and 8 bits"),
    ({"quantization_bit": 4, "create_new_adapter": True}, REFUSED, "create_new_adapter"),
    ({"quantization_bit": 4, "adapter_name_or_path": "a,b"}, REFUSED, "takes one adapter"),
    ({"adapter_name_or_path": "saves/none"}, REFUSED, "no adapter folder"),
    ({"adapter_name_or_path": "a", "finetuning_type": "full"}, REFUSED, "finetuning_type: lora"),
    ({"resize_vocab": True, "quantization_bit": 4}, REFUSED, "resize_vocab"),
    ({"lora_target": "q_prj,v_proj"}, REFUSED, "no module q_prj"),
    # losses
    ({"use_asft_loss": True}, REFUSED, "ref_model"),
    ({"use_dft_loss": True, "use_eaft_loss": True}, REFUSED, "keep one"),
    ({"train_on_prompt": True, "mask_history": True}, REFUSED, "exclude each other"),
    # data
    ({"dataset": "tiny_trian"}, REFUSED, "did you mean tiny_train?"),
    ({"dataset": None}, REFUSED, "no data set"),
    ({"dataset_dir": "nowhere"}, REFUSED, "nowhere/dataset_info.json"),
    ({"streaming": True}, REFUSED, "max_steps"),
    ({"val_size": 0.1}, REFUSED, "exclude each other"),
    ({"val_size": 1, "eval_dataset": None}, REFUSED, "all of the rows, not as one"),
    ({"val_size": 5000, "eval_dataset": None}, REFUSED, "none is left to train on"),
    ({"eval_dataset": None, "do_eval": True}, REFUSED, "nothing to evaluate on"),
    ({"eval_dataset": "tiny_train"}, WARNED, "trained and evaluated on"),
    ({"interleave_probs": "0.5,0.5"}, REFUSED, "mix_strategy"),
    ({"stage": "dpo"}, REFUSED, "needs pairs"),
    ({"cutoff_len": 104}, REFUSED, "would lose the end"),
    ({"enable_thinking": False}, REFUSED, "removes the thought"),
    ({"template": "qwen4"}, REFUSED, "unknown to LLaMA-Factory"),
    ({"template": "llama3"}, REFUSED, "adds tokens"),
    # training
    ({"do_train": False, "do_eval": False}, REFUSED, "do_train: true"),
    ({"fp16": True, "bf16": True}, REFUSED, "exclude each other"),
    ({"warmup_ratio": 0.1}, REFUSED, "only one of them counts"),
    ({"warmup_steps": 500, "max_steps": 100}, REFUSED, "never reached"),
    ({"load_best_model_at_end": True}, REFUSED, "equal eval_strategy and save_strategy"),
    ({"save_steps": 5000}, WARNED, "no checkpoint to resume from"),
    ({"logging_steps": 5000}, WARNED, "no loss is ever logged"),
    ({"overwrite_output_dir": True}, WARNED, "starts over"),
    ({"save_only_model": True}, WARNED, "fresh one without a word"),
    ({"learning_rate": 0.05}, WARNED, "diverges"),
    ({"report_to": "wandbb"}, REFUSED, "report_to"),
    ({"use_swanlab": True}, REFUSED, "swanlab login"),
    ({"deepspeed": "no/zero.json"}, REFUSED, "no file or folder"),
    ({"resume_from_checkpoint": "saves/none/checkpoint-9"}, REFUSED, "no file or folder"),
    # model
    ({"model_name_or_path": "models/none"}, REFUSED, "no folder models/none"),
    ({"model_name_or_path": "Qwen/Qwen3-0.6B"}, WARNED, "hub id"),
    ({"cutoff_len": 100000}, REFUSED, "positions"),
]


@pytest.fixture(scope="module")
def good(tiny: SimpleNamespace) -> dict[str, Any]:
    return yaml.safe_load(Path(tiny.recipe).read_text(encoding="utf-8"))


@pytest.fixture
def run(tmp_path: Path, good: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Finding]]:
    """Check the good recipe with some keys changed; paths in it are absolute, the working folder is the repository."""
    for name in ("SWANLAB_API_KEY", "USE_RAY", "FORCE_TORCHRUN", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SWANLAB_SAVE_DIR", str(tmp_path))
    monkeypatch.chdir(ROOT)

    def _run(changes: dict[str, Any] | None = None, gpus: list[Gpu] | None = None, **card: Any) -> list[Finding]:
        values = {**good, "output_dir": str(tmp_path / "saves"), **(changes or {})}
        path = tmp_path / "train.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in values.items() if v is not None}, sort_keys=False))
        options = Namespace(**{"card": None, "memory_gib": None} | card)
        findings, _run.facts = check(read_recipe(str(path), []), gpus or [], card_of(options, gpus or []), 0.4)
        return findings

    return _run


def refused(findings: list[Finding]) -> list[str]:
    return [f"{finding.what}; {finding.remedy}" for finding in findings if finding.grade == REFUSED]


def test_the_good_recipe_is_not_refused(run: Callable) -> None:
    assert refused(run()) == []
    assert any("204 rows" in fact for fact in run.facts) and any("1,224 of 2 rows" in fact for fact in run.facts)


@pytest.mark.parametrize(("changes", "grade", "words"), PLANTED, ids=lambda value: str(value)[:60])
def test_a_planted_mistake_is_found(run: Callable, changes: dict[str, Any], grade: str, words: str) -> None:
    findings = run(changes)
    if not grade:
        assert refused(findings) == []
        return
    said = [f for f in findings if f.grade == grade and words in f"{f.what}; {f.remedy}"]
    assert said, "\n".join(f"{f.grade} {f.what}; {f.remedy}" for f in findings)
    assert said[0].remedy
    given = [key for key, value in changes.items() if value is not None]
    if given and not words.startswith("no data"):
        assert said[0].place.startswith(str(Path(said[0].place).parent)) and ":" in said[0].place


@pytest.mark.parametrize("path", THEIRS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_our_own_recipes_are_right(path: Path) -> None:
    recipe = read_recipe(str(path), [])
    findings = [*check_keys(recipe), *check_rules(recipe, Machine(gpu=True, cards=1))]
    assert refused(findings) == []


def test_enough_mistakes_are_planted() -> None:
    assert sum(bool(grade) for _, grade, _ in PLANTED) >= 80


# --- data ----------------------------------------------------------------------------------------------------------

GOOD = {
    "id": "a",
    "system": "",
    "instruction": "咳嗽三周？",
    "input": "",
    "output": "<think>\n先想反流。\n</think>\n\n查肺功能。",
}
ROW_FAULTS: list[tuple[dict[str, Any], str, str]] = [
    ({"output": "<think>\n先想反流。\n</think>\n查肺功能。"}, REFUSED, "thought is not written"),
    ({"output": "<think>先想反流。</think> \n 查肺功能。"}, REFUSED, "thought is not written"),
    ({"output": "<think>\n先想反流。"}, REFUSED, "thought is not written"),
    ({"output": "<think>\n先想反流。\n</think>\n\n"}, REFUSED, "no answer in 1 of 2 rows (z)"),
    ({"output": "查肺功能。"}, WARNED, "1 of 2 answers have no thought"),
    ({"output": 5}, REFUSED, "would drop 1 of 2 rows (z)"),
    ({"output": None}, REFUSED, "would drop 1 of 2 rows (z)"),
    (
        {"output": "<think>\n" + "很长的想法" * 400 + "\n</think>\n\n好。"},
        REFUSED,
        "1 of 2 rows (z) would lose the end",
    ),
]


@pytest.fixture
def with_rows(run: Callable, tmp_path: Path, good: dict[str, Any]) -> Callable[..., list[Finding]]:
    """Check the good recipe on other training rows."""

    def _check(rows: Any, entry: dict[str, Any] | None = None, **changes: Any) -> list[Finding]:
        columns = {"prompt": "instruction", "query": "input", "response": "output", "system": "system"}
        text = rows if isinstance(rows, str) else json.dumps(rows, ensure_ascii=False)
        (tmp_path / "rows.json").write_text(text, encoding="utf-8")
        registry = {"mine": {"file_name": "rows.json", "columns": columns, **(entry or {})}}
        (tmp_path / "dataset_info.json").write_text(json.dumps(registry), encoding="utf-8")
        sets = {"dataset": "mine", "eval_dataset": None, "do_eval": None, "dataset_dir": str(tmp_path)}
        return run({**sets, **changes})

    return _check


@pytest.mark.parametrize(("fault", "grade", "words"), ROW_FAULTS, ids=lambda value: str(value)[:40])
def test_a_planted_row_is_found(with_rows: Callable, fault: dict[str, Any], grade: str, words: str) -> None:
    findings = with_rows([GOOD, GOOD | {"id": "z", "instruction": "胸痛？"} | fault])
    assert any(f.grade == grade and words in f.what for f in findings), [f.what for f in findings]


def test_good_rows_are_not_refused(with_rows: Callable) -> None:
    assert refused(with_rows([GOOD, GOOD | {"id": "b"}])) == []


def test_a_column_that_is_not_there(with_rows: Callable) -> None:
    findings = with_rows([{"input": "咳嗽？", "output": "好。"}])
    assert any("KeyError 'instruction'" in text and "columns" in text for text in refused(findings))


@pytest.mark.parametrize(
    ("text", "words"), [("", "empty"), ("[]", "holds no rows"), ("[{]", "not valid JSON"), ('["a"]', "a JSON object")]
)
def test_a_file_that_is_no_data_set(with_rows: Callable, text: str, words: str) -> None:
    assert any(words in said for said in refused(with_rows(text)))


def test_questions_of_the_evaluation_that_are_trained_on(run: Callable, tiny: SimpleNamespace, tmp_path: Path) -> None:
    rows = json.loads((tiny.root / "data/train.json").read_text(encoding="utf-8"))[:3]
    (tmp_path / "leak.json").write_text(json.dumps(rows), encoding="utf-8")
    registry = json.loads((tiny.root / "dataset_info.json").read_text())
    entries = {name: entry | {"file_name": str(tiny.root / entry["file_name"])} for name, entry in registry.items()}
    entries["leak"] = entries["tiny_eval"] | {"file_name": str(tmp_path / "leak.json")}
    (tmp_path / "dataset_info.json").write_text(json.dumps(entries))
    findings = run({"dataset_dir": str(tmp_path), "eval_dataset": "leak"})
    assert any(f.grade == WARNED and "in the training data too are 3 of 3" in f.what for f in findings)


def test_lengths_are_llamafactorys_own(tiny: SimpleNamespace) -> None:
    from llamafactory.data.processor import SupervisedDatasetProcessor

    recipe = read_recipe(tiny.recipe, ["cutoff_len=100000"])
    recipe.defaults = {key: default for key, (_, default) in schema(True).items()}
    encoder = Encoder(recipe)
    rows = json.loads((tiny.root / "data/train.json").read_text(encoding="utf-8"))
    rows[3]["system"] = "你是医生。"
    rows[5]["output"] = "没有想法的回答。"
    entry = json.loads((tiny.root / "dataset_info.json").read_text())["tiny_train"]
    part = Rows("tiny_train", "dataset", entry, [(row["id"], row) for row in rows])
    lengths, _ = check_rows(recipe, encoder, part, {})
    processor = SupervisedDatasetProcessor(encoder.template, encoder.tokenizer, None, encoder.data)
    convert = encoder.converter("tiny_train")
    for row, length in zip(rows, lengths, strict=True):
        done = convert(row)
        ids, _ = processor._encode_data_example(done["_prompt"], done["_response"], done["_system"], "", [], [], [])
        assert abs(len(ids) - length) <= 2  # texts counted alone may merge otherwise at their ends
    assert sum(lengths) / len(lengths) > 50


# --- folders and checkpoints -----------------------------------------------------------------------------------------


def cut(path: Path, keep: float = 0.6) -> None:
    os.truncate(path, int(path.stat().st_size * keep))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: cut(folder / "model.safetensors"), "its header says"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no weights"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer.json"),
        (
            lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
            "Git LFS pointer",
        ),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text(
                '{"weight_map": {"a": "model-00001-of-00002.safetensors"}}'
            ),
            "model-00001-of-00002.safetensors is missing",
        ),
    ],
)
def test_a_model_folder_that_is_not_whole(
    run: Callable, tiny: SimpleNamespace, tmp_path: Path, damage: Callable, words: str
) -> None:
    shutil.copytree(tiny.root / "model", tmp_path / "model")
    damage(tmp_path / "model")
    assert any(words in said for said in refused(run({"model_name_or_path": str(tmp_path / "model")})))


def test_an_adapter_for_another_base(run: Callable, tiny: SimpleNamespace, tmp_path: Path) -> None:
    shutil.copytree(tiny.root / "model", tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    (tmp_path / "model/config.json").write_text(json.dumps(config | {"hidden_size": config["hidden_size"] * 2}))
    findings = run({"model_name_or_path": str(tmp_path / "model"), "adapter_name_or_path": tiny.adapter})
    assert any("an adapter for another base" in said for said in refused(findings))
    assert not any("another base" in said for said in refused(run({"adapter_name_or_path": tiny.adapter})))


def checkpoint(output: Path, step: int) -> Path:
    """A checkpoint as transformers writes one, with files of the real kinds."""
    import torch
    from safetensors.torch import save_file

    folder = output / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    save_file({"a": torch.ones(64, 64)}, folder / "adapter_model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"a": torch.ones(64, 64)}, folder / name)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return folder


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "trainer_state.json").unlink(),
        lambda folder: cut(folder / "trainer_state.json"),
        lambda folder: cut(folder / "adapter_model.safetensors"),
        lambda folder: cut(folder / "optimizer.pt"),
        lambda folder: cut(folder / "optimizer.pt", 0.999),
        lambda folder: (folder / "rng_state.pth").unlink(),
        lambda folder: (folder / "trainer_state.json").write_text('{"global_step": 3}'),
    ],
)
def test_a_half_written_checkpoint_is_moved_aside(tmp_path: Path, damage: Callable) -> None:
    for step in (20, 100):
        assert checkpoint_fault(checkpoint(tmp_path, step)) == ""
    damage(tmp_path / "checkpoint-100")
    (moved,) = set_partial_aside(tmp_path)
    assert moved.name == "half-checkpoint-100.partial" and moved.is_dir()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("checkpoint")] == ["checkpoint-20"]
    assert set_partial_aside(tmp_path) == []


def test_an_older_half_and_an_editor_are_let_alone(run: Callable, tmp_path: Path) -> None:
    for step in (20, 40):
        checkpoint(tmp_path / "saves", step)
    (tmp_path / "saves/checkpoint-20/optimizer.pt").unlink()
    script = [sys.executable, "-c", "import time; time.sleep(60)"]
    process = subprocess.Popen([*script, "vim", str(tmp_path / "train.yaml"), "llamafactory"])
    try:
        findings = run()
    finally:
        process.kill()
        process.wait()
    assert not any("half written" in f.what or "is training into" in f.what for f in findings)
    assert (tmp_path / "saves/checkpoint-20").is_dir()


def test_a_folder_is_the_same_however_it_is_written(with_rows: Callable, tmp_path: Path, good: dict[str, Any]) -> None:
    rows = [GOOD, GOOD | {"id": "b", "instruction": "胸痛？"}]
    assert refused(with_rows(rows)) == []
    checkpoint(tmp_path / "saves", 1)
    assert refused(with_rows(rows, model_name_or_path=good["model_name_or_path"] + "/", dataset=" mine")) == []
    assert any("lora_alpha was" in said for said in refused(with_rows(rows, lora_alpha=1)))


@pytest.mark.parametrize("text", ["{}", "{", ""])
def test_a_tokenizer_that_is_cut(run: Callable, tiny: SimpleNamespace, tmp_path: Path, text: str) -> None:
    shutil.copytree(tiny.root / "model", tmp_path / "model")
    (tmp_path / "model/tokenizer.json").write_text(text)
    assert any(
        "can't load the tokenizer" in said for said in refused(run({"model_name_or_path": str(tmp_path / "model")}))
    )


def test_transformers_neither_resumes_from_nor_deletes_what_was_moved_aside(tmp_path: Path) -> None:
    from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints

    for step in (20, 40, 60):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-60/trainer_state.json").unlink()
    set_partial_aside(tmp_path)
    assert get_last_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-40")
    rotate_checkpoints(output_dir=str(tmp_path), save_total_limit=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("checkpoint-20", "checkpoint-40", "half-checkpoint-60.partial")
    ]


def test_a_run_goes_on_only_with_the_data_and_settings_it_began_with(with_rows: Callable, tmp_path: Path) -> None:
    rows = [GOOD, GOOD | {"id": "b", "instruction": "胸痛？"}]
    assert refused(with_rows(rows)) == []
    checkpoint(tmp_path / "saves", 1)
    assert refused(with_rows(rows)) == []
    (said,) = refused(with_rows([*rows, GOOD | {"id": "c", "instruction": "气短？"}]))
    assert "mine has changed since" in said
    (said,) = refused(with_rows(rows, per_device_train_batch_size=1))
    assert said.startswith("per_device_train_batch_size was 2 when")
    assert refused(with_rows(rows, logging_steps=1)) == []


def test_what_a_resumed_run_takes_from_the_checkpoint(with_rows: Callable, tmp_path: Path) -> None:
    rows = [GOOD, GOOD | {"id": "b", "instruction": "胸痛？"}]
    with_rows(rows)
    last = checkpoint(tmp_path / "saves", 1)
    found = [f for f in with_rows(rows, learning_rate=3e-5) if "is not heeded" in f.what]
    assert [f.grade for f in found] == [WARNED] and f"{last} goes on with its own, 0.0015" in found[0].what
    (last / "optimizer.pt").unlink()
    assert not any("is not heeded" in f.what for f in with_rows(rows, learning_rate=3e-5))


def test_a_run_that_has_no_step_left(with_rows: Callable, tmp_path: Path) -> None:
    rows = [GOOD, GOOD | {"id": "b", "instruction": "胸痛？"}]
    with_rows(rows)
    state = {"global_step": 2, "max_steps": 2, "num_train_epochs": 2}
    (checkpoint(tmp_path / "saves", 2) / "trainer_state.json").write_text(json.dumps(state))
    finished = "checkpoint-2 is the last of 2 steps"
    assert any(f.grade == WARNED and finished in f.what for f in with_rows(rows, num_train_epochs=2))
    assert any(f.grade == WARNED and finished in f.what for f in with_rows(rows, max_steps=2))
    for longer in ({"num_train_epochs": 3}, {"num_train_epochs": 2.5}, {"max_steps": 3}):
        assert not any(finished in f.what for f in with_rows(rows, **longer))


def test_a_checkpoint_from_before_starting_over_is_not_gone_on_from(with_rows: Callable, tmp_path: Path) -> None:
    rows = [GOOD, GOOD | {"id": "b", "instruction": "胸痛？"}]
    with_rows(rows)
    checkpoint(tmp_path / "saves", 60)
    told = [f.what for f in with_rows(rows, overwrite_output_dir=True) if f.grade == WARNED]
    assert any("checkpoint-60 and what else there is of an earlier run stays" in what for what in told)
    checkpoint(tmp_path / "saves", 20)
    assert any("checkpoint-60 is of the run before overwrite_output_dir" in what for what in refused(with_rows(rows)))
    shutil.rmtree(tmp_path / "saves/checkpoint-60")
    assert refused(with_rows(rows)) == []


def test_wandb_in_a_list_of_trackers(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preflight.rules.wandb_ready", lambda: False)
    for trackers in ("wandb", ["tensorboard", "wandb"]):
        assert any("wandb without a key" in f.what for f in run({"report_to": trackers}))


def test_names_may_be_a_list(run: Callable) -> None:
    assert refused(run({"dataset": ["tiny_train"], "lora_target": ["q_proj", "v_proj"]})) == []
    assert any("did you mean tiny_train?" in said for said in refused(run({"dataset": ["tiny_train", "tiny_trian"]})))


def test_token_ids_that_are_kept_are_not_checked(run: Callable, tmp_path: Path) -> None:
    (tmp_path / "tokens").mkdir()
    keys = {"tokenized_path": str(tmp_path / "tokens"), "dataset": "gone"}
    assert any("gone is not registered" in said for said in refused(run(keys)))
    (tmp_path / "tokens/dataset_dict.json").write_text("{}")
    assert any(f.grade == UNCHECKED and "trains on the token ids in" in f.what for f in run(keys))
    assert refused(run(keys)) == []


def test_a_finished_folder_without_checkpoints(run: Callable, tiny: SimpleNamespace, tmp_path: Path) -> None:
    shutil.copytree(tiny.adapter, tmp_path / "saves")
    assert any("refuses to train over it" in said for said in refused(run()))


def test_a_checkpoint_of_unknown_data_is_not_checked(run: Callable, tmp_path: Path) -> None:
    checkpoint(tmp_path / "saves", 1)
    assert any(f.grade == UNCHECKED and "nothing is recorded" in f.what for f in run())


def test_two_runs_into_one_folder(run: Callable, tmp_path: Path) -> None:
    (tmp_path / "saves").mkdir()
    words = [
        sys.executable,
        "-c",
        "import time; time.sleep(60)",
        "llamafactory-cli",
        "train",
        f"output_dir={tmp_path}/saves",
    ]
    process = subprocess.Popen(words)
    try:
        assert any(f"process {process.pid} is training into" in said for said in refused(run()))
    finally:
        process.kill()
        process.wait()


# --- cost ------------------------------------------------------------------------------------------------------------

QWEN_7B = {
    **{"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28},
    **{"num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False},
}


def test_the_7b_in_numbers() -> None:
    model = cost.read_architecture(QWEN_7B)
    assert (model.parameters, model.lora(8)) == (7_615_283_200, 20_185_088)  # biases and norms left out
    with_recompute = cost.flops_per_token(model, 567, model.lora(8), full=False, recompute=True)
    assert with_recompute == pytest.approx(42.0e9, rel=0.01)
    assert cost.flops_per_token(model, 567, model.lora(8), False, False) == pytest.approx(28.8e9, rel=0.01)
    engine = cost.Engine(bits=4, unsloth=True)
    assert sum(cost.memory(model, 24 * 2048, model.lora(8), engine).values()) == pytest.approx(16.4e9, rel=0.02)
    assert cost.hours(25_000 * 567, with_recompute, cost.PEAKS["RTX 4090"], 0.4) == pytest.approx(2.5, rel=0.01)


def test_parameters_are_those_of_the_model(tiny: SimpleNamespace) -> None:
    model = cost.read_architecture(tiny.model.config.to_dict())
    matrices = sum(weight.numel() for weight in tiny.model.parameters() if weight.ndim == 2)
    assert model.parameters == matrices


def test_steps_and_padding_by_hand() -> None:
    assert cost.steps(203, 2, 1, 12.0) == 1224 and cost.steps(10, 4, 2, 1.0) == 2 and cost.steps(10, 4, 2, 9, 7) == 7
    assert cost.padding_efficiency(cost.micro_batches([8, 16], 2, grouped=False)) == 24 / 32
    lengths = [8] * 1000 + [800] * 1000
    grouped, shuffled = (cost.padding_efficiency(cost.micro_batches(lengths, 10, flag)) for flag in (True, False))
    assert grouped > 0.98 and shuffled < 0.7


@pytest.mark.parametrize(
    ("changes", "steps"),  # as LLaMA-Factory's own runs of the same 203 rows counted them
    [
        ({}, 26),
        ({"gradient_accumulation_steps": 3}, 9),
        ({"gradient_accumulation_steps": 4, "num_train_epochs": 2.5}, 18),
        ({"num_train_epochs": 0.3}, 8),
        ({"val_size": 50}, 20),
        ({"max_samples": 50}, 7),
        ({"dataloader_drop_last": True}, 25),
        ({"dataset": "tiny_train,tiny_train"}, 26),
    ],
    ids=str,
)
def test_steps_are_those_of_real_runs(run: Callable, changes: dict[str, Any], steps: int) -> None:
    plain = {"num_train_epochs": 1.0, "per_device_train_batch_size": 8, "eval_dataset": None, "do_eval": None}
    run(plain | changes)
    assert any(fact.startswith(f"steps    {steps} of ") for fact in run.facts), run.facts


def test_packed_rows_are_counted_as_datasets_hands_them_out(tiny: SimpleNamespace) -> None:
    from preflight.estimate import _map_batches

    recipe = read_recipe(tiny.recipe, ["preprocessing_num_workers=4", "preprocessing_batch_size=20"])
    recipe.defaults = {key: default for key, (_, default) in schema(True).items()}
    parts = [len(part) for part in _map_batches(recipe, list(range(203)))]
    assert parts == [20, 20, 11, 20, 20, 11, 20, 20, 11, 20, 20, 10]  # shards of 51, 51, 51 and 50 rows


def test_cards_by_their_drivers_names() -> None:
    assert cost.peak_of("NVIDIA GeForce RTX 4090") == 165.2e12 and cost.peak_of("NVIDIA H200") == 989.5e12
    assert cost.peak_of("NVIDIA A100-SXM4-80GB") == 312.0e12 and cost.peak_of("AMD Instinct") is None


def test_a_batch_that_does_not_fit_the_card(run: Callable, tiny: SimpleNamespace, tmp_path: Path) -> None:
    from transformers import Qwen2Config

    shutil.copytree(tiny.root / "model", tmp_path / "model")
    Qwen2Config(**QWEN_7B).save_pretrained(tmp_path / "model")
    big = {"model_name_or_path": str(tmp_path / "model"), "use_cpu": None, "quantization_bit": 4}
    big |= {"finetuning_type": "lora", "additional_target": None, "disable_gradient_checkpointing": None}
    big["per_device_train_batch_size"] = 96
    card = Gpu("NVIDIA GeForce RTX 4090", 24 * cost.GIB, 24 * cost.GIB)
    assert any(
        "GiB are needed" in said and "per_device_train_batch_size: 48" in said for said in refused(run(big, [card]))
    )
    assert any(fact.startswith("time ") and "165 TFLOP/s" in fact for fact in run.facts)
    assert not any("GiB are needed" in said for said in refused(run(big)))  # the card is assumed: a warning
    assert any(
        "GiB are needed" in said for said in refused(run(big | {"per_device_train_batch_size": 8}, memory_gib=6.0))
    )


# --- the command ---


def test_the_command_on_the_demo_recipe(tiny: SimpleNamespace, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "preflight", tiny.recipe, f"output_dir={tmp_path}/saves"]
    good = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (good.returncode, good.stderr) == (0, "") and good.stdout.endswith(": nothing refused\n")
    bad = subprocess.run([*command, "lora_rnak=4"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert bad.returncode == 1 and "refused     override 'lora_rnak=4': unknown key" in bad.stdout


def test_a_file_that_is_no_recipe(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "preflight", str(tmp_path / "none.yaml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr == f"error: {tmp_path}/none.yaml: no such file\n"


@pytest.mark.skipif(
    "LLAMAFACTORY_SOURCE" not in os.environ, reason="LLAMAFACTORY_SOURCE=dir: its source, with examples/"
)
def test_no_false_alarm_on_llamafactorys_own_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """From this folder their paths can't be looked at; all else is. One file does not run with the tested set."""
    from transformers import HfArgumentParser

    monkeypatch.chdir(ROOT)
    paths = sorted(Path(os.environ["LLAMAFACTORY_SOURCE"]).glob("examples/**/*.yaml"))
    recipes = [path for path in paths if "accelerate" not in path.parts and "multi_tokens" not in path.parts]
    assert len(recipes) >= 50
    alarms = []
    for path in recipes:
        with contextlib.redirect_stdout(io.StringIO()):
            findings, _ = check(read_recipe(str(path), []), [], card_of(Namespace(card=None, memory_gib=None), []), 0.4)
        alarms += [(path, said) for said in refused(findings)]
    print(f"{len(recipes)} examples, {len(alarms)} refused")
    for path, _ in alarms:  # what is refused, LLaMA-Factory's own parser refuses too
        from llamafactory.hparams import parser

        with pytest.raises(ValueError, match="not used"):
            HfArgumentParser(parser._TRAIN_ARGS).parse_dict(yaml.safe_load(path.read_text()) | {"use_cpu": True})
    assert len(alarms) <= 1
