"""What is compared: profiles as LLaMA-Factory settings, the flags on top, and what is refused before it runs."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import Any

import yaml

from bench.lengths import MEAN, arrange, draw_lengths
from preflight.cost import CONTEXT, GIB
from recipe import UserError, read_yaml

ROOT = Path(__file__).parent.parent
BEST = "recipes/medcot/train.yaml"

COMMON = {
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "lora",
    "lora_rank": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "lora_target": "all",
    "quantization_bit": 4,
    "cutoff_len": 2048,
    "train_sampling_strategy": "group_by_length",
    "learning_rate": 1.0e-4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "bf16": True,
}
BATCH, ACCUMULATION = "per_device_train_batch_size", "gradient_accumulation_steps"
PROFILES: dict[str, dict[str, Any]] = {
    "peft": {BATCH: 8, ACCUMULATION: 6},
    "unsloth": {"use_unsloth": True, BATCH: 12, ACCUMULATION: 4},
    "packed": {
        "neat_packing": True,
        "enable_liger_kernel": True,
        "flash_attn": "sdpa",
        "cutoff_len": 4096,
        "train_sampling_strategy": "random",
        BATCH: 1,
        ACCUMULATION: 7,
    },
    # what the MedCoT-7B report states: 4-bit, Unsloth, rank 8, 24 x 2 rows of up to 2048 tokens, in random batches
    "report": {
        "use_unsloth": True,
        "lora_rank": 8,
        "lora_alpha": 16,
        "train_sampling_strategy": "random",
        BATCH: 24,
        ACCUMULATION: 2,
    },
    "best": {},  # what recipes/medcot/train.yaml says on the day of the run
}
# On a CPU a step is this small unless the flags say otherwise; there it is the harness that is tried, not a speed.
SMALL = {BATCH: 2, ACCUMULATION: 2}
SMALL_PACKED = {BATCH: 1, ACCUMULATION: 2, "cutoff_len": 1360}
# Of a recipe: where things lie, what is evaluated, saved and shown. The rest decides speed, and is taken over.
ELSEWHERE = (
    *("model_name_or_path", "dataset", "dataset_dir", "template", "preprocessing_num_workers", "max_samples"),
    *("output_dir", "run_name", "save_steps", "save_total_limit", "save_strategy", "logging_steps", "report_to"),
    *("plot_loss", "num_train_epochs", "max_steps", "val_size", "eval_dataset", "eval_strategy", "eval_steps"),
    *("per_device_eval_batch_size", "do_eval", "overwrite_output_dir", "resume_from_checkpoint"),
)


def has_gpu() -> bool:
    """Whether torch sees an NVIDIA GPU."""
    import torch

    return torch.cuda.is_available()


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def recipe_settings(path: str) -> dict[str, Any]:
    """A recipe's own settings, without those in ELSEWHERE."""
    values, _ = read_yaml(str(ROOT / path))
    return {key: value for key, value in values.items() if key not in ELSEWHERE}


def settings(options: argparse.Namespace, gpu: bool) -> dict[str, Any]:
    """LLaMA-Factory's arguments for a profile and the command line's flags; UserError for what cannot be measured."""
    if options.profile not in PROFILES:
        raise UserError(f"{options.profile!r}: no such profile; choose one of {', '.join(PROFILES)}")
    chosen = COMMON | (recipe_settings(BEST) if options.profile == "best" else PROFILES[options.profile])
    if not gpu:
        chosen |= SMALL_PACKED if chosen.get("neat_packing") else SMALL
    flags = {BATCH: options.batch, ACCUMULATION: options.accumulation, "cutoff_len": options.cutoff_len}
    chosen |= {key: value for key, value in flags.items() if value is not None}
    if options.attention:
        chosen["flash_attn"] = options.attention
    if options.group_by_length is not None:
        chosen["train_sampling_strategy"] = "group_by_length" if options.group_by_length else "random"
    chosen |= parse_overrides(options.overrides)
    check(options, chosen, gpu)
    if not gpu:
        chosen |= {"bf16": False, "use_cpu": True}
        chosen.pop("enable_liger_kernel", None)  # its kernels are CUDA's
    return chosen


def parse_overrides(items: list[str]) -> dict[str, Any]:
    """`key=value` arguments as a dict, values read as YAML."""
    out = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or key in ELSEWHERE:
            raise UserError(f"{item!r}: expected key=value, a LLaMA-Factory setting that bench does not set itself")
        try:
            out[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UserError(f"{item!r}: the value is not valid YAML") from None
    return out


def check(options: argparse.Namespace, chosen: dict[str, Any], gpu: bool) -> None:
    """Refuse, in one line, what would fail after minutes or measure something else than it says."""
    numbers = {"--batch": chosen[BATCH], "--accumulation": chosen[ACCUMULATION], "--steps": options.steps}
    numbers |= {"--seconds": options.seconds, "--cutoff-len": chosen["cutoff_len"]}
    numbers |= {"--memory-gib": options.memory_gib, "--card-peak": options.card_peak}
    for flag, value in numbers.items():
        if value is not None and not (isinstance(value, int | float) and value > 0):
            raise UserError(f"{flag} {value}: must be a number above 0")
    if chosen["cutoff_len"] % 8:
        raise UserError(f"--cutoff-len {chosen['cutoff_len']}: must be a multiple of 8 (batches are padded to it)")
    packed, unsloth = chosen.get("neat_packing") or chosen.get("packing"), chosen.get("use_unsloth")
    if packed and chosen["train_sampling_strategy"] == "group_by_length":
        raise UserError("--group-by-length: packed rows are of one length; leave it out")
    if packed and unsloth:
        raise UserError("packing with Unsloth mixes the samples of a row; measure one of them")
    if unsloth and not (gpu and installed("unsloth")):
        raise UserError(f"profile {options.profile}: Unsloth needs an NVIDIA GPU and its package; use peft here")
    if chosen.get("flash_attn") == "fa2" and not (gpu and installed("flash_attn")):
        raise UserError("--attention fa2: the flash-attn package (or a GPU) is missing; use --attention sdpa")
    if chosen.get("flash_attn") == "fa2" and packed and chosen[BATCH] != 1:
        raise UserError("--attention fa2: LLaMA-Factory packs with it at --batch 1 only; raise --cutoff-len instead")
    if gpu and chosen.get("enable_liger_kernel") and not installed("liger_kernel"):
        raise UserError("enable_liger_kernel: liger-kernel is missing; install it or add enable_liger_kernel=false")
    if options.memory_gib and not gpu:
        raise UserError("--memory-gib caps a GPU's memory, and there is no GPU here; leave it out")
    if options.memory_gib and options.memory_gib * GIB <= 2 * CONTEXT:
        raise UserError(
            f"--memory-gib {options.memory_gib:g}: the CUDA context alone takes {CONTEXT / GIB:.1f} GiB of it"
        )


def arguments(chosen: dict[str, Any], model: str, template: str, work: Path, steps: int) -> dict[str, Any]:
    """What LLaMA-Factory gets: the settings, the places, `steps` steps in the order of the file (see `arrange`)."""
    sequential = {} if chosen.get("neat_packing") else {"train_sampling_strategy": "sequential"}
    places = {"model_name_or_path": model, "template": template, "dataset": "bench", "dataset_dir": str(work / "data")}
    quiet = {"save_strategy": "no", "logging_steps": 1, "report_to": "none", "overwrite_cache": True}
    output = {"output_dir": str(work / "out"), "overwrite_output_dir": True, "max_steps": steps}
    return chosen | places | output | quiet | sequential


def row_lengths(chosen: dict[str, Any], steps: int) -> list[Any]:
    """The lengths of the rows to write, step by step; for packing, enough random ones to fill its rows."""
    batch, accumulation = chosen[BATCH], chosen[ACCUMULATION]
    if not chosen.get("neat_packing"):
        grouped = chosen["train_sampling_strategy"] == "group_by_length"
        return arrange(draw_lengths(), batch, accumulation, grouped, steps)
    rows = int(steps * batch * accumulation * chosen["cutoff_len"] / MEAN * 1.1) + batch
    return [draw_lengths(rows)]
