"""A folder that `transformers serve` can answer from as `llamafactory-cli api` would: 16-bit weights, the same prompts.

An adapter is merged into its base by `llamafactory-cli export`, which takes as much disk and memory as the base in 16
bits; base and whole models are only linked to. Each gets a tokenizer with the chat template of LLaMA-Factory's own
`template`, held against LLaMA-Factory's token ids on every prompt that will be asked.
"""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from chat.server import beside
from eval.arms import Arm
from recipe import UserError, check_model, read_yaml

KEPT = ("model_name_or_path", "template", "finetuning_type", "trust_remote_code", "rope_scaling", "enable_thinking")
OF_TOKENIZERS = ("tokenizer*", "chat_template*", "special_tokens_map.json", "vocab.json", "merges.txt")
Messages = list[dict[str, str]]


def folder_of(arm: Arm, recipe: str, place: Path, asked: Sequence[Messages]) -> Path:
    """Make `place`, the folder to serve for an arm of a serve.yaml; raises UserError where prompts would differ."""
    values = {key: value for key, value in read_yaml(recipe)[0].items() if key in KEPT}
    if arm.kind == "model":
        values["model_name_or_path"] = arm.place
    check_model(recipe, str(values.get("model_name_or_path", "")))
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    tokenizer = _tokenizer(values, recipe, asked)
    weights = Path(values["model_name_or_path"])
    if arm.kind == "adapter":
        weights = place / "merged"
        _merge(values | {"adapter_name_or_path": arm.place, "export_dir": str(weights)}, place / "export.log")
    for file in weights.iterdir():
        if file.is_file() and not any(file.match(pattern) for pattern in OF_TOKENIZERS):
            (place / file.name).symlink_to(file.resolve())
    tokenizer.save_pretrained(place)
    return place


def dtype_of(recipe: str) -> str:
    """The precision of the base in its own folder, for all arms: what is merged is stored in 16 bits, but may be
    computed in 32, as a tiny base is."""
    config = Path(str(read_yaml(recipe)[0].get("model_name_or_path"))) / "config.json"
    told = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    return str(told.get("dtype") or told.get("torch_dtype") or "auto")


def _merge(values: dict[str, Any], log: Path) -> None:
    values |= {"export_size": 5, "export_device": "cpu"}
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as recipe, open(log, "wb") as output:
        yaml.safe_dump(values, recipe)
        recipe.flush()
        command = [beside("llamafactory-cli"), "export", recipe.name]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
    if done.returncode:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise UserError(f"{log}: llamafactory-cli export ended with code {done.returncode}: {' '.join(last)[:300]}")


def _tokenizer(values: dict[str, Any], recipe: str, asked: Sequence[Messages]) -> Any:
    """The model's tokenizer with LLaMA-Factory's template; UserError names a prompt that it would spell otherwise."""
    from llamafactory.data import get_template_and_fix_tokenizer
    from llamafactory.hparams import get_infer_args
    from llamafactory.model import load_tokenizer
    from transformers.utils.logging import set_verbosity_warning

    set_verbosity_warning()
    logging.getLogger("llamafactory").setLevel(logging.WARNING)
    model, data, *_ = get_infer_args(values)
    tokenizer = load_tokenizer(model)["tokenizer"]
    template = get_template_and_fix_tokenizer(tokenizer, data)
    template.replace_jinja_template = True
    template.fix_jinja_template(tokenizer)
    for messages in asked:
        system = messages[0]["content"] if messages[0]["role"] == "system" else None
        turns = [message for message in messages if message["role"] != "system"]
        expected, _ = template.encode_oneturn(tokenizer, [*turns, {"role": "assistant", "content": ""}], system)
        given = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        if given != expected:
            raise UserError(
                f"{recipe}: template {data.template}: transformers would ask {messages[-1]['content'][:30]!r} with "
                f"{len(given)} tokens, LLaMA-Factory with {len(expected)}, or others; leave out engine=transformers"
            )
    return tokenizer
