"""Resuming: which checkpoints are whole, and whether the run that would go on is the one that wrote them.

LLaMA-Factory goes on from the highest-numbered checkpoint, even where it is half written.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from preflight import REFUSED, UNCHECKED, WARNED, Finding, Recipe
from preflight.folders import INDEXES, WEIGHTS, fault_of, weight_faults
from preprocess.records import sha256_file
from recipe import UserError, atomic

RECORD = "preflight.json"  # beside the checkpoints: what they were trained on

# Keys that a resumed run must share with the one that wrote the checkpoint; the rest may change.
KEPT = (
    *("model_name_or_path", "adapter_name_or_path", "template", "default_system", "cutoff_len", "stage", "seed"),
    *(
        "finetuning_type",
        "quantization_bit",
        "lora_rank",
        "lora_alpha",
        "lora_target",
        "use_rslora",
        "additional_target",
    ),
    *("dataset", "max_samples", "val_size", "packing", "neat_packing", "train_sampling_strategy", "data_seed", "optim"),
    *(
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "enable_thinking",
        "train_on_prompt",
        "mask_history",
    ),
    "distill",
)
# Keys that a resumed run takes from the checkpoint's optimizer.pt, whatever the recipe says.
STORED = ("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon")


def checkpoints(output_dir: Path) -> list[Path]:
    """The `checkpoint-N` folders, lowest N first."""
    found = [path for path in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-[0-9]+", path.name)]
    return sorted((path for path in found if path.is_dir()), key=lambda path: int(path.name.split("-")[1]))


def checkpoint_fault(checkpoint: Path) -> str:
    """Why a checkpoint can't be resumed from, "" if it can.

    transformers writes trainer_state.json last, so a killed run leaves a folder without it; cut files come from full
    disks and copies. Optimiser, scheduler and random state are there together, or (save_only_model) not at all.
    """
    state = checkpoint / "trainer_state.json"
    if not state.exists():
        return "trainer_state.json, the last file of a checkpoint, is missing"
    try:
        if json.loads(state.read_text(encoding="utf-8"))["global_step"] != int(checkpoint.name.split("-")[1]):
            return "trainer_state.json is of another step"
    except (OSError, ValueError, KeyError, TypeError):
        return "trainer_state.json is cut"
    sharded = (
        any(checkpoint.glob("global_step*")) or any(checkpoint.glob("*_fsdp*")) or any(checkpoint.glob("optimizer_*"))
    )
    if sharded:
        return ""
    if faults := weight_faults(checkpoint):
        return faults[0]
    parts = [[*checkpoint.glob(name)] for name in ("optimizer.pt", "scheduler.pt", "rng_state*.pth")]
    if any(parts) and not all(parts):
        return "optimizer.pt, scheduler.pt and rng_state.pth are not all there"
    return next(iter(filter(None, map(fault_of, (path for group in parts for path in group)))), "")


def training_now(output_dir: Path) -> int | None:
    """The process id of a `llamafactory-cli train` that writes to this folder, as far as /proc tells."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if int(entry.name) != os.getpid() and _output_of(words, (entry / "cwd").resolve()) == output_dir.resolve():
                return int(entry.name)
        except (OSError, ValueError, RuntimeError, IndexError, UserError):
            continue
    return None


def _output_of(words: list[str], folder: Path) -> Path | None:
    """Where a command trains into: the override counts before the recipe; None for any other command."""
    if "distill.train" in words:
        return _output_of_distill([word for word in words[words.index("distill.train") + 1 :] if word], folder)
    launchers = ("launcher.py", "llamafactory.launcher")
    programs = [Path(word).name for word in words if Path(word).name in ("llamafactory-cli", "lmf", *launchers)]
    if not programs or ("train" not in words and programs[0] not in launchers):
        return None
    for word in words:
        if word.startswith(("output_dir=", "--output_dir=")):
            return (folder / word.partition("=")[2].strip("'\"")).resolve()
    for word in words:
        if word.endswith((".yaml", ".yml")):
            text = (folder / word).read_text(encoding="utf-8")
            if match := re.search(r"^[\"']?output_dir[\"']?\s*:\s*([^#\n]+)", text, re.MULTILINE):
                return (folder / match[1].strip().strip("'\"")).resolve()
    return None


def _output_of_distill(words: list[str], folder: Path) -> Path | None:
    """The same of `python -m distill.train`, whose recipe names another one."""
    from distill.settings import load_distill

    settings = load_distill(str(folder / words[0]), words[1:])
    return _output_of(["llamafactory-cli", "train", settings.train, *reversed(settings.overrides)], folder)


def set_partial_aside(output_dir: Path) -> list[Path]:
    """Rename each checkpoint above the last whole one, so that the run goes on from that; older ones are let alone.

    Not `checkpoint-N.partial`: transformers would count and delete that as one of save_total_limit's.
    """
    moved = []
    for checkpoint in reversed(checkpoints(output_dir)):
        if not checkpoint_fault(checkpoint):
            break
        target, number = output_dir / f"half-{checkpoint.name}.partial", 2
        while target.exists():
            target, number = output_dir / f"half-{checkpoint.name}.{number}.partial", number + 1
        checkpoint.rename(target)
        moved.append(target)
    return moved


def check_output(recipe: Recipe, data: dict[str, str], refused: bool) -> Iterator[Finding]:
    """What the output folder already holds: half-written checkpoints, a finished run, one of other data or settings.

    Of a recipe that is refused already nothing is moved.
    """
    output = Path(os.path.expanduser(str(recipe.output_dir or "")))
    if not recipe.do_train or not recipe.output_dir:
        return
    if not output.exists():
        return
    if not output.is_dir() or not os.access(output, os.W_OK):
        yield recipe.find(REFUSED, "output_dir", f"{output} is no folder that can be written to", "name another")
        return
    if process := training_now(output):
        what = f"process {process} is training into {output}: two runs would overwrite each other's checkpoints"
        yield recipe.find(REFUSED, "output_dir", what, "wait for it, stop it, or name another output_dir")
        return
    for moved in set_partial_aside(output) if recipe.stage != "ppo" and not refused else ():
        what = f"{moved.name.removeprefix('half-').removesuffix('.partial')} was half written; it is now {moved}"
        yield recipe.find(
            WARNED, "output_dir", what, "nothing: the run goes on from the last whole one; delete it when you like"
        )
    whole = checkpoints(output)
    if recipe.overwrite_output_dir and whole:
        what = f"{whole[-1]} and what else there is of an earlier run stays, and counts for save_total_limit"
        yield recipe.find(WARNED, "overwrite_output_dir", what, f"delete them first: rm -r {output}/checkpoint-*")
    if recipe.overwrite_output_dir or recipe.resume_from_checkpoint:
        return
    if not whole:
        if any((output / name).exists() for name in (*WEIGHTS, *INDEXES)):
            what = f"{output} holds a model and no checkpoint: LLaMA-Factory refuses to train over it"
            yield recipe.find(REFUSED, "output_dir", what, "name another output_dir, or add overwrite_output_dir=true")
        return
    yield from _check_record(recipe, output, whole[-1], data)


def _check_record(recipe: Recipe, output: Path, last: Path, data: dict[str, str]) -> Iterator[Finding]:
    """A checkpoint is gone on from only with the data and the settings that it was written with."""
    try:
        record = json.loads((output / RECORD).read_text(encoding="utf-8"))
        before, keys, earlier = dict(record["data"]), dict(record["keys"]), dict(record.get("earlier", {}))
    except (OSError, ValueError, KeyError, TypeError):
        what = f"{last}: nothing is recorded about the data it was trained on"
        yield recipe.find(UNCHECKED, "output_dir", what, "make sure that data and settings are the same")
        return
    start_over = f"name another output_dir, or delete {output} to start over"
    if _written(last) == earlier.get(last.name, -1):
        what = f"{last} is of the run before overwrite_output_dir started over: this one would go on from there"
        yield recipe.find(REFUSED, "output_dir", what, f"delete it: rm -r {last}")
        return
    for name in sorted(before.keys() | data.keys()):
        if name in before and name in data and before[name] != data[name]:
            what = f"{name} has changed since {last}: the run would skip rows it has never seen"
            yield recipe.find(REFUSED, "dataset", what, f"bring the old file back; or {start_over}")
    for key in KEPT:
        now = _kept(recipe, key)
        if key in keys and keys[key] != now:
            what = f"{key} was {keys.get(key)} when {last} was written, and is {now}"
            yield recipe.find(REFUSED, key, what, f"write it as it was; or {start_over}")
    for key in STORED if (last / "optimizer.pt").exists() else ():
        if key in keys and keys[key] != (now := _kept(recipe, key)):
            what = f"{key}: {now} is not heeded: {last} goes on with its own, {keys[key]}"
            yield recipe.find(WARNED, key, what, f"write it as it was; or {start_over}")
    yield from _check_finished(recipe, last)


def _check_finished(recipe: Recipe, last: Path) -> Iterator[Finding]:
    """A run that has no step left ends at once, and LLaMA-Factory writes its results anew, of no steps."""
    if checkpoint_fault(last):
        return
    state = json.loads((last / "trainer_state.json").read_text(encoding="utf-8"))
    key = "max_steps" if (recipe.max_steps or 0) > 0 else "num_train_epochs"
    if getattr(recipe, key) == state.get(key) and state["global_step"] >= state.get("max_steps", float("inf")):
        what = f"{last} is the last of {state['max_steps']} steps: nothing is left to train"
        yield recipe.find(WARNED, f"{key} output_dir", what, f"raise {key}; or nothing, the model is there")


def _written(checkpoint: Path) -> int:
    """When a checkpoint's last file was written, in nanoseconds."""
    state = checkpoint / "trainer_state.json"
    return state.stat().st_mtime_ns if state.exists() else 0


def _kept(recipe: Recipe, key: str) -> Any:
    """A value to compare: names without their blanks, and a folder however it is written."""
    value = getattr(recipe, key)
    if key == "distill":
        return value and value.of_training()
    if key in ("model_name_or_path", "adapter_name_or_path") and isinstance(value, str) and os.path.isdir(value):
        return os.path.relpath(value)
    return recipe.names(key) if key == "dataset" else value


def fingerprints(files: dict[str, Path]) -> dict[str, str]:
    """The SHA-256 of each data file that is there."""
    return {name: sha256_file(path) for name, path in files.items() if path.is_file()}


def remember(recipe: Recipe, data: dict[str, str]) -> None:
    """Write beside the checkpoints-to-be what they will be trained on, for the next check to compare."""
    output = Path(os.path.expanduser(str(recipe.output_dir)))
    if checkpoints(output) and not recipe.overwrite_output_dir:
        return
    earlier = {path.name: _written(path) for path in checkpoints(output) if not checkpoint_fault(path)}
    with atomic(output / RECORD) as file:
        keys = {key: _kept(recipe, key) for key in (*KEPT, *STORED)}
        record = {"data": data, "keys": keys, "earlier": earlier}
        json.dump(record, file, ensure_ascii=False, indent=1, default=str)
