"""This machine: its cards, its packages, its disk."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preflight import REFUSED, WARNED, Finding, Recipe
from preflight.cost import GIB, read_config
from preflight.rules import Machine
from recipe import UserError, read_text

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Gpu:
    name: str
    bytes: int
    free: int


def gpus() -> list[Gpu]:
    """The NVIDIA cards that this process may use, by nvidia-smi; none where the driver or the tool is missing."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        if not visible.strip() or visible.startswith("-"):
            return []
        command.append(f"--id={visible}")
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
        rows = [line.rsplit(",", 2) for line in lines if line.strip()]
        return [Gpu(name.strip(), int(total) * 2**20, int(free) * 2**20) for name, total, free in rows]
    except (OSError, ValueError, subprocess.SubprocessError):
        return []


def describe(recipe: Recipe, cards: list[Gpu]) -> Machine:
    config = read_config(os.path.expanduser(str(recipe.model_name_or_path or "")))
    return Machine(
        gpu=bool(cards),
        avx512_bf16="avx512_bf16" in _cpu_flags(),
        cards=len(cards),
        model_type=str(config.get("model_type", "")),
        quantised=bool(config.get("quantization_config")),
        zero=_zero_stage(recipe.deepspeed),
    )


def _cpu_flags() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _zero_stage(deepspeed: Any) -> int:
    try:
        text = Path(deepspeed).read_text(encoding="utf-8") if isinstance(deepspeed, str) else ""
        config = json.loads(text) if text else deepspeed or {}
        return int(config["zero_optimization"]["stage"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


NEEDED = {
    "use_unsloth": "unsloth",
    "quantization_bit": "bitsandbytes",
    "enable_liger_kernel": "liger-kernel",
    "deepspeed": "deepspeed",
    "use_swanlab": "swanlab",
    "use_galore": "galore-torch",
    "use_apollo": "apollo-torch",
    "use_badam": "badam",
    "use_adam_mini": "adam-mini",
    "use_kt": "kt-kernel",
}


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_packages(recipe: Recipe) -> Iterator[Finding]:
    """Packages that the keys need, and the installed versions against the tested set."""
    for key, package in NEEDED.items():
        if getattr(recipe, key) and not version(package):
            what = f"{key} needs {package}, which is not installed here"
            yield recipe.find(WARNED, key, what, f"pip install {package}, where the run is")
    try:
        lines = read_text(ROOT / "requirements.txt").splitlines()
    except UserError:
        return
    pins = dict(re.findall(r"^([\w-]+)==(\S+)", line)[0] for line in lines if re.match(r"[\w-]+==", line))
    others = [f"{name} {version(name)}, not {pin}" for name, pin in pins.items() if version(name) not in (None, pin)]
    if others:
        what = f"not the tested set: {'; '.join(others)}"
        yield Finding(WARNED, recipe.path, what, "pip install -r requirements.txt -c constraints.txt")


def check_disk(recipe: Recipe, checkpoint: float, steps: int) -> Iterator[Finding]:
    """Room for the checkpoints that are kept at once, and the one being written."""
    if recipe.save_strategy in ("no", False) or not recipe.output_dir:
        return
    every = recipe.save_steps or 500
    written = max(1, int(steps / (every if every >= 1 else max(every * steps, 1))))
    kept = min(recipe.save_total_limit or written, written) + 1
    folder = Path(os.path.expanduser(str(recipe.output_dir))).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if kept * checkpoint > free:
        what = f"{kept} checkpoints of {checkpoint / GIB:.1f} GiB, and {free / GIB:.1f} GiB are free"
        yield recipe.find(
            REFUSED, "output_dir save_total_limit", what, "save_total_limit: 1, or an output_dir elsewhere"
        )
