"""Every key known to LLaMA-Factory's argument classes, of the right type, one of its choices, in a sane range."""

from __future__ import annotations

import difflib
import enum
import functools
import os
import tempfile
import types
import typing
from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import Any

from preflight import REFUSED, UNCHECKED, WARNED, Finding, Recipe

# What older tutorials, other trainers and transformers 4 write, and what LLaMA-Factory 0.9.5 wants.
RENAMED = {
    "group_by_length": "write `train_sampling_strategy: group_by_length`",
    "evaluation_strategy": "write `eval_strategy`",
    "save_safetensors": "delete it: safetensors are what is written",
    "include_tokens_per_second": "write `include_num_input_tokens_seen: non_padding`",
    "no_cuda": "write `use_cpu: true`",
    "use_mps_device": "delete it",
    "fp16_backend": "delete it; `fp16: true` or `bf16: true` is enough",
    "half_precision_backend": "delete it; `fp16: true` or `bf16: true` is enough",
    "logging_dir": "delete it; set TENSORBOARD_LOGGING_DIR in the environment",
    "per_gpu_train_batch_size": "write `per_device_train_batch_size`",
    "batch_size": "write `per_device_train_batch_size`",
    "epochs": "write `num_train_epochs`",
    "lr": "write `learning_rate`",
    "max_seq_length": "write `cutoff_len`",
    "max_length": "write `cutoff_len`",
    "lora_r": "write `lora_rank`",
    "lora_target_modules": "write `lora_target`",
    "target_modules": "write `lora_target`",
    "load_in_4bit": "write `quantization_bit: 4`",
    "load_in_8bit": "write `quantization_bit: 8`",
    "use_flash_attn": "write `flash_attn: fa2`",
    "ray_run_name": "delete it: ray_num_workers, ray_init_kwargs, master_addr and master_port are all there is",
    "ray_storage_path": "delete it: ray_num_workers, ray_init_kwargs, master_addr and master_port are all there is",
    "placement_strategy": "delete it: ray_num_workers, ray_init_kwargs, master_addr and master_port are all there is",
    "resources_per_worker": "delete it: ray_num_workers, ray_init_kwargs, master_addr and master_port are all there is",
}
MEGATRON = "tensor_model_parallel_size pipeline_model_parallel_size expert_model_parallel_size recompute_granularity"
V1 = "train_dataset dist_config kernel_config peft_config optim_config sample_backend batching_strategy"

# key: (lowest, highest); for those in ABOVE_ZERO, 0 itself is not allowed.
RANGES: dict[str, tuple[float, float]] = {
    "learning_rate": (0, 1),
    "num_train_epochs": (0, 1000),
    "per_device_train_batch_size": (1, 4096),
    "per_device_eval_batch_size": (1, 4096),
    "gradient_accumulation_steps": (1, 65536),
    "cutoff_len": (8, 10_000_000),
    "lora_rank": (1, 8192),
    "lora_alpha": (1, 65536),
    "lora_dropout": (0, 0.99),
    "max_samples": (1, 10**12),
    "val_size": (0, 10**9),
    "weight_decay": (0, 1),
    "max_grad_norm": (0, 10**6),
    "warmup_ratio": (0, 1),
    "warmup_steps": (0, 10**9),
    "logging_steps": (0, 10**9),
    "save_steps": (0, 10**9),
    "eval_steps": (0, 10**9),
    "save_total_limit": (-1, 10**6),
    "preprocessing_num_workers": (1, 1024),
    "preprocessing_batch_size": (1, 10**9),
    "dataloader_num_workers": (0, 1024),
    "neftune_noise_alpha": (0, 1000),
    "label_smoothing_factor": (0, 0.99),
    "adam_beta1": (0, 0.9999999),
    "adam_beta2": (0, 0.9999999),
    "pref_beta": (0, 1000),
    "ray_num_workers": (1, 65536),
}
ABOVE_ZERO = {"learning_rate", "num_train_epochs", "logging_steps", "save_steps", "eval_steps", "pref_beta"}


def kind(recipe: Recipe) -> str:
    """`export`, `serve` or `train`, by the keys that only one of them has."""
    if "export_dir" in recipe.values:
        return "export"
    train = {"output_dir", "do_train", "do_eval", "do_predict", "learning_rate", "per_device_train_batch_size"}
    serve = "infer_backend" in recipe.values or os.path.basename(recipe.path) == "serve.yaml"
    return "train" if train & recipe.values.keys() or not serve else "serve"


def other_system(recipe: Recipe) -> Finding | None:
    """A recipe for LLaMA-Factory's Megatron or v1 trainers, whose keys are not in the classes that are checked."""
    for keys, variable in ((MEGATRON, "USE_MCA=1"), (V1, "USE_V1=1")):
        if found := next((key for key in keys.split() if key in recipe.values), None):
            what = f"`{found}` belongs to another trainer of LLaMA-Factory's, started with {variable}"
            return recipe.find(UNCHECKED, found, what, "nothing here checks its keys; start with a few steps")
    return None


@functools.cache
def schema(training: bool) -> dict[str, tuple[Any, Any]]:
    """Key -> (type, default) of LLaMA-Factory's argument classes; importing them takes seconds."""
    from llamafactory.hparams import parser

    known = {}
    for cls in parser._TRAIN_ARGS if training else parser._INFER_ARGS:
        hints = typing.get_type_hints(cls)
        for field in fields(cls):
            if field.init:
                default = field.default_factory() if field.default_factory is not MISSING else field.default
                known[field.name] = (hints[field.name], None if default is MISSING else default)
    return known


def check_keys(recipe: Recipe) -> Iterator[Finding]:
    """Unknown keys, wrong types, wrong choices, values out of range, secrets and things that are not resolved."""
    known = schema(kind(recipe) == "train")
    recipe.defaults = {key: default for key, (_, default) in known.items()}
    for key, value in recipe.values.items():
        if key not in known:
            yield _unknown(recipe, key, known)
        elif isinstance(value, str) and "${" in value:
            yield recipe.find(REFUSED, key, f"{key}: LLaMA-Factory does not resolve ${{…}}", "write the value out")
        elif value is not None and isinstance(value, TEXT_OR_MORE.get(key, types.NoneType)):
            continue
        elif value is not None and (expected := mismatch(value, known[key][0])):
            yield recipe.find(REFUSED, key, f"{key} must be {expected}, got {value!r}", _retype(key, value, expected))
        elif value is None and types.NoneType not in typing.get_args(known[key][0]) and known[key][1] is not None:
            what = f"{key}: null takes the place of the default, {known[key][1]!r}, and is none of its values"
            yield recipe.find(REFUSED, key, what, "delete the key")
        elif value is not None and key in RANGES and not _in_range(key, value):
            low, high = RANGES[key]
            above = "above" if key in ABOVE_ZERO else "at least"
            what = f"{key}: {value} is out of range"
            yield recipe.find(REFUSED, key, what, f"write a number {above} {low:g} and at most {high:g}")
        elif value and (key.endswith(("_token", "api_key", "_secret", "webhook_url")) and isinstance(value, str)):
            what = f"{key}: a secret in a file, which wandb and the training log may copy"
            yield recipe.find(REFUSED, key, what, "delete it, and set it in the environment: HF_TOKEN, SWANLAB_API_KEY")
        elif key == "report_to" and (unknown := _unknown_trackers(value)):
            what = f"report_to: transformers knows no tracker {', '.join(unknown)}"
            yield recipe.find(REFUSED, key, what, "write wandb, tensorboard, swanlab or none")


def _unknown(recipe: Recipe, key: str, known: dict[str, Any]) -> Finding:
    if key in RENAMED:
        return recipe.find(REFUSED, key, f"unknown key `{key}`", RENAMED[key])
    if key in schema(True) or key in schema(False):
        return recipe.find(REFUSED, key, f"`{key}` is no key of a {kind(recipe)} recipe", "delete it")
    close = difflib.get_close_matches(key, known, n=1)
    remedy = f"did you mean `{close[0]}`?" if close else "delete it; `llamafactory-cli train -h` lists the keys"
    return recipe.find(REFUSED, key, f"unknown key `{key}`", remedy)


def _unknown_trackers(value: Any) -> list[str]:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    names = value if isinstance(value, list) else [value]
    return [str(name) for name in names if name not in (None, "none", "all") and name not in INTEGRATION_TO_CALLBACK]


def _retype(key: str, value: Any, expected: str) -> str:
    if value is False and "'no'" in expected:
        return f'quote the word: `{key}: "no"`'
    if isinstance(value, str) and value.lower() in ("true", "false", "yes", "no"):
        return f"write {key}: {str(value.lower() in ('true', 'yes')).lower()}, without quotes"
    return f"write it as {expected}"


def _in_range(key: str, value: Any) -> bool:
    low, high = RANGES[key]
    return isinstance(value, int | float) and low <= value <= high and not (value == low and key in ABOVE_ZERO)


TEXT_OR_MORE = {"resume_from_checkpoint": bool}  # annotated as text, and taken by transformers as true, too


def mismatch(value: Any, hint: Any) -> str | None:
    """What was expected, where `value` isn't of the annotated type; LLaMA-Factory's own parser doesn't look."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    enums = [option for option in options if isinstance(option, type) and issubclass(option, enum.Enum)]
    if enums:  # `IntervalStrategy | str` is a choice, not any text
        options = enums
    if any(_fits(value, option) for option in options):
        return None
    return " or ".join(_name(option) for option in options if option is not types.NoneType)


def _fits(value: Any, option: Any) -> bool:
    origin = typing.get_origin(option) or option
    if origin is typing.Literal:
        return value in typing.get_args(option) and not isinstance(value, bool)
    if isinstance(origin, type) and issubclass(origin, enum.Enum):
        return value in [member.value for member in origin]
    if origin in (typing.Any, types.NoneType) or not isinstance(origin, type):
        return origin is typing.Any
    if isinstance(value, bool):
        return origin is bool
    return isinstance(value, int | float) if origin is float else isinstance(value, origin)


def _name(option: Any) -> str:
    if typing.get_origin(option) is typing.Literal:
        return "one of " + ", ".join(repr(choice) for choice in typing.get_args(option))
    if isinstance(option, type) and issubclass(option, enum.Enum):
        return "one of " + ", ".join(repr(member.value) for member in option)
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list"}
    return words.get(typing.get_origin(option) or option, str(option))


# What this machine may lack, and the one that trains may have; and what would change this process or ask the network.
ELSEWHERE = {
    "deepspeed": None,
    "use_unsloth": False,
    "enable_liger_kernel": False,
    "use_kt": False,
    "use_galore": False,
    "use_apollo": False,
    "use_badam": False,
    "use_adam_mini": False,
    "mixture_of_depths": None,
    "use_swanlab": False,
    "fp8": False,
    "fp8_enable_fsdp_float8_all_gather": False,
    "tf32": None,
    "report_to": "none",
    "push_to_hub": False,
    "resume_from_checkpoint": None,
    "infer_backend": "huggingface",
    "ray_init_kwargs": None,
}
NO_GPU = {"use_cpu": True, "fp16": False, "pure_bf16": False}


def check_by_llamafactory(recipe: Recipe, gpu: bool) -> Iterator[Finding]:
    """LLaMA-Factory's and transformers' own checks of how the keys go together, without what depends on the machine."""
    from llamafactory.hparams import get_infer_args, get_train_args

    training = kind(recipe) == "train"
    known = schema(training)
    values = {key: value for key, value in recipe.values.items() if key in known}
    values |= {key: value for key, value in ELSEWHERE.items() if key in values and key in known}
    if training:
        values |= {"output_dir": os.path.join(tempfile.gettempdir(), "preflight-none"), **({} if gpu else NO_GPU)}
    try:
        (get_train_args if training else get_infer_args)(values)
    except Exception as error:  # whatever it raises here, it would raise when training starts
        text = " ".join(str(error).split())[:300]
        keys = " ".join(key for key in recipe.values if key in text)
        missing = isinstance(error, ImportError)
        remedy = "install it where the run is" if missing else "change what it names; LLaMA-Factory would stop here"
        yield recipe.find(WARNED if missing else REFUSED, keys, f"LLaMA-Factory: {text}", remedy)
