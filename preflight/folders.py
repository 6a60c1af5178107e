"""Model and adapter folders, and other files that a recipe names: there, whole, and made for one another.

Nothing is loaded: a weights file counts as whole by its header and its size, a torch file by its zip directory.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from preflight import REFUSED, WARNED, Finding, Recipe
from preflight.cost import read_config
from preflight.rules import hub

WEIGHTS = ("model.safetensors", "adapter_model.safetensors", "pytorch_model.bin", "adapter_model.bin")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def fault_of(path: Path) -> str:
    """What is wrong with a weights or state file, "" if it looks whole: header, size, central directory."""
    try:
        size = path.stat().st_size
        if path.suffix == ".safetensors":
            return _safetensors_fault(path, size)
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix in (".pt", ".pth", ".bin") and not path.name.startswith("training_args"):
            with zipfile.ZipFile(path) as archive:
                archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    except (OSError, ValueError, zipfile.BadZipFile, StopIteration, RuntimeError) as error:
        return (
            f"{path.name} is cut or unreadable ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        )
    return ""


def _safetensors_fault(path: Path, size: int) -> str:
    header = safetensors_header(path)
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    with open(path, "rb") as file:
        expected = 8 + int.from_bytes(file.read(8), "little") + end
    return "" if size == expected else f"{path.name} has {size:,} bytes, its header says {expected:,}"


def safetensors_header(path: Path) -> dict[str, dict[str, Any]]:
    """Tensor name -> dtype, shape, data_offsets; ValueError for anything but a safetensors file."""
    with open(path, "rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if start.startswith(b"version "):
            raise ValueError("a Git LFS pointer, not the file itself; run `git lfs pull`")
        if len(start) < 8 or length > 100_000_000:
            raise ValueError("no safetensors header")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header


def weight_faults(folder: Path) -> list[str]:
    """What is missing or cut among a folder's weights; the index is believed about which files there must be."""
    for name in INDEXES:
        if (folder / name).exists():
            try:
                files = sorted(set(json.loads((folder / name).read_text(encoding="utf-8"))["weight_map"].values()))
            except (OSError, ValueError, KeyError, AttributeError):
                return [f"{name} is cut or unreadable"]
            missing = [file for file in files if not (folder / file).exists()]
            return [f"{file} is missing" for file in missing] or _faults(folder / file for file in files)
    found = [folder / name for name in WEIGHTS if (folder / name).exists()]
    return _faults(found) if found else ["no weights (model.safetensors)"]


def _faults(paths: Iterable[Path]) -> list[str]:
    return [fault for path in paths if (fault := fault_of(path))]


def check_model(recipe: Recipe) -> Iterator[Finding]:
    """The model folder: there, whole, with a tokenizer, long enough for cutoff_len."""
    name = str(recipe.model_name_or_path or "")
    folder = Path(os.path.expanduser(name))
    if not name:
        yield recipe.find(REFUSED, "model_name_or_path", "no model is named", "write model_name_or_path: <folder>")
    elif not folder.is_dir():
        if name.startswith((".", "/", "~", "models/", "saves/")) or name.count("/") != 1:
            yield recipe.find(
                REFUSED, "model_name_or_path", f"no folder {name}", "put the model there, or train it first"
            )
        else:
            what = f"model_name_or_path: {name} is a hub id: its revision may change, and it needs a network"
            yield recipe.find(WARNED, "model_name_or_path", what, "download it and name the folder")
    else:
        faults = weight_faults(folder)
        if not (folder / "config.json").exists():
            faults.append("no config.json")
        elif not {"model_type", "auto_map"} & read_config(folder).keys():
            faults.append("config.json is cut, or names no model_type")
        if not any((folder / file).exists() for file in ("tokenizer.json", "tokenizer.model", "vocab.json")):
            faults.append("no tokenizer.json")
        for fault in faults:
            remedy = "copy or download the folder again; is it still being written?"
            yield recipe.find(REFUSED, "model_name_or_path", f"{name}: {fault}", remedy)
        yield from _check_lengths(recipe, read_config(folder))
        yield from _check_targets(recipe, folder)


def _check_lengths(recipe: Recipe, config: dict[str, Any]) -> Iterator[Finding]:
    most = config.get("max_position_embeddings")
    numbers = isinstance(most, int) and isinstance(recipe.cutoff_len, int)
    if numbers and recipe.cutoff_len > most and not recipe.rope_scaling:
        what = f"cutoff_len {recipe.cutoff_len} is more than the model's {most} positions"
        yield recipe.find(REFUSED, "cutoff_len", what, f"write cutoff_len: {most} or less, or rope_scaling")


def _check_targets(recipe: Recipe, folder: Path) -> Iterator[Finding]:
    """Module names in lora_target and additional_target, against the names in the weights."""
    try:
        files = [path for path in sorted(folder.glob("*.safetensors"))][:1]
        names = {part for path in files for tensor in safetensors_header(path) for part in tensor.split(".")}
    except (OSError, ValueError):
        return
    for key in ("lora_target", "additional_target"):
        asked = [name for name in recipe.names(key) if name != "all"] if key in recipe.values else []
        unknown = [name for name in asked if not set(name.split(".")) <= names and name != "lm_head"]
        if names and unknown and recipe.finetuning_type == "lora":
            what = f"{key}: the model has no module {', '.join(unknown)}"
            yield recipe.find(REFUSED, key, what, "write `all`, or names such as q_proj,v_proj")


def check_adapter(recipe: Recipe) -> Iterator[Finding]:
    """Each adapter folder: there, whole, made for this base and of its sizes."""
    config = read_config(os.path.expanduser(str(recipe.model_name_or_path or "")))
    for name in recipe.names("adapter_name_or_path"):
        folder, key = Path(os.path.expanduser(name)), "adapter_name_or_path"
        if not folder.is_dir():
            if not hub(name) or name.count("/") != 1 or name.startswith("saves/"):
                yield recipe.find(REFUSED, key, f"no adapter folder {name}", "train it first, or correct the path")
            continue
        faults = weight_faults(folder)
        try:
            settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            settings, faults = {}, ["no adapter_config.json: is it an adapter?", *faults]
        for fault in faults:
            yield recipe.find(REFUSED, key, f"{name}: {fault}", "train it again, or name a whole checkpoint of it")
        if not faults:
            yield from _check_base(recipe, name, folder, settings, config)


def _check_base(
    recipe: Recipe, name: str, folder: Path, settings: dict[str, Any], config: dict[str, Any]
) -> Iterator[Finding]:
    key, hidden = "adapter_name_or_path", config.get("hidden_size")
    trained = str(settings.get("base_model_name_or_path") or "")
    shapes = {
        entry["shape"][1]
        for path in folder.glob("adapter_model.safetensors")
        for tensor, entry in safetensors_header(path).items()
        if tensor.endswith(("q_proj.lora_A.weight", "k_proj.lora_A.weight", "gate_proj.lora_A.weight"))
    }
    if hidden and shapes and shapes != {hidden}:
        what = f"{name} is an adapter for another base: hidden size {shapes.pop()}, this model's is {hidden}"
        yield recipe.find(REFUSED, key, what, f"name its own base ({trained or 'not recorded'}), or another adapter")
    elif trained and os.path.basename(trained.rstrip("/")) != os.path.basename(
        os.path.normpath(str(recipe.model_name_or_path))
    ):
        what = f"{name} was trained on {trained}, not on {recipe.model_name_or_path}"
        yield recipe.find(WARNED, key, what, "name the base that it was trained on")
    if settings.get("r") and "lora_rank" in recipe.values and settings["r"] != recipe.lora_rank and recipe.do_train:
        what = f"lora_rank: {recipe.lora_rank} is not heeded: the adapter that is trained on has rank {settings['r']}"
        yield recipe.find(WARNED, "lora_rank", what, f"write lora_rank: {settings['r']}")


def check_files(recipe: Recipe) -> Iterator[Finding]:
    """Other files that a recipe names."""
    for key in ("deepspeed", "new_special_tokens_config", "resume_from_checkpoint", "ref_model", "reward_model"):
        value = getattr(recipe, key)
        local = isinstance(value, str) and (
            value.endswith((".json", ".yaml")) or value.startswith((".", "/", "saves/"))
        )
        if not local or value in ("true", "True"):
            continue
        if not os.path.exists(os.path.expanduser(value)):
            yield recipe.find(REFUSED, key, f"{key}: no file or folder {value}", "correct the path, or delete the key")
        elif value.endswith(".json") and (fault := fault_of(Path(os.path.expanduser(value)))):
            yield recipe.find(REFUSED, key, f"{key}: {fault}", "mend it: it must be a JSON object")
