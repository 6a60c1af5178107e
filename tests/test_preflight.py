"""Preflight finds planted mistakes, one at a time in a recipe that is otherwise right, and says what to do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from preflight import REFUSED, UNCHECKED, WARNED, Finding, cost, read_recipe
from preflight.__main__ import card_of, check
from preflight.checkpoints import checkpoint_fault, set_partial_aside
from preflight.keys import mismatch, schema
from preflight.machine import Gpu
from preprocess.think import join
from recipe import UserError
from tests.conftest import ROOT

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
    ({"eval_dataset": None, "do_eval": True}, REFUSED, "nothing to evaluate on"),
    ({"eval_dataset": "tiny_train"}, WARNED, "trained and evaluated on"),
    ({"interleave_probs": "0.5,0.5"}, REFUSED, "mix_strategy"),
    ({"stage": "dpo"}, REFUSED, "would drop"),
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
    assert any("203 rows" in fact for fact in run.facts) and any("1,224 of 2 rows" in fact for fact in run.facts)


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


def test_enough_mistakes_are_planted() -> None:
    assert sum(bool(grade) for _, grade, _ in PLANTED) >= 40
