"""What the training benchmark trains: a model of the real architecture with random weights, and rows of real lengths.

Speed and memory do not depend on the values, so nothing is downloaded. A row, made of words that are one token each:

    {"instruction": "baab caab …", "input": "", "output": "<think>\nbaab …\n</think>\n\ndaab …"}
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
import string
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from bench.lengths import ANSWER, THOUGHT
from recipe import UserError

# The sizes in the public config.json of Qwen/Qwen2.5-7B (DeepSeek-R1-Distill-Qwen-7B has the same), Qwen/Qwen2.5-1.5B
# and Qwen/Qwen3-0.6B; `demo` is recipes/demo's, whose widths are multiples of 32, as bitsandbytes needs.
_QWEN2 = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu", "rms_norm_eps": 1e-6}
_QWEN2 |= {"rope_theta": 1e6, "max_position_embeddings": 32768, "dtype": "bfloat16", "initializer_range": 0.02}
_QWEN3 = _QWEN2 | {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "max_position_embeddings": 40960}


def _sizes(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocabulary: int, tied: bool) -> dict:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
    }


MODELS: dict[str, dict[str, Any]] = {
    "demo": _QWEN2 | _sizes(128, 384, 3, 4, 2, 2112, False) | {"dtype": "float32"},
    "qwen2.5-7b": _QWEN2 | _sizes(3584, 18944, 28, 28, 4, 152064, False),
    "qwen2.5-1.5b": _QWEN2 | _sizes(1536, 8960, 28, 12, 2, 151936, True),
    "qwen3-0.6b": _QWEN3 | _sizes(1024, 3072, 28, 16, 8, 151936, True) | {"head_dim": 128},
}

# LLaMA-Factory's template, by the tokens that tell it; what the template adds to a row's words, in tokens.
TEMPLATES = {
    "deepseekr1": ("<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
    "qwen3": ("<|im_start|>", "<|im_end|>"),
}
OTHER = ("<unk>", "user", "assistant")  # and what the templates write as plain words
ADDED = {"deepseekr1": 6, "qwen3": 8, "qwen": 26}
PAD = "<|endoftext|>"

BLOCK = 1_048_573  # weights drawn once and repeated; a prime, so that no two rows of a matrix are equal
SHARD = 2e9  # bytes of a safetensors file


def words(count: int) -> Iterator[str]:
    """`count` different words of four letters or more."""
    for size in range(4, 9):
        for letters in itertools.islice(itertools.product(string.ascii_lowercase, repeat=size), count):
            yield "".join(letters)[::-1]
        count = max(count - 26**size, 0)


def build_tokenizer(vocabulary: int, template: str) -> PreTrainedTokenizerFast:
    """A tokenizer of exactly `vocabulary` entries, in which a word is a token; white space is none."""
    special = [*TEMPLATES[template], PAD]
    tags = ["<think>", "</think>"]
    known = [*special, *tags, *OTHER]
    entries = [*known, *words(vocabulary - len(known))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(entries)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in tags])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=special[0] if template == "deepseekr1" else None,
        eos_token=special[-2],
        pad_token=PAD,
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def template_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """The LLaMA-Factory template that a tokenizer's special tokens belong to."""
    known = tokenizer.get_vocab()
    if "<｜Assistant｜>" in known:
        return "deepseekr1"
    if "<|im_start|>" in known:
        return "qwen3" if "<think>" in known else "qwen"
    raise UserError("--model-path: neither <｜Assistant｜> nor <|im_start|> in its vocabulary; use a Qwen model")


def one_token_words(tokenizer: PreTrainedTokenizerBase, count: int = 4096) -> list[str]:
    """`count` words that are one token each after a space, the same ones each time."""
    names = sorted(name.removeprefix("Ġ") for name in tokenizer.get_vocab() if name.removeprefix("Ġ").isalpha())
    plain = [name for name in names if name.isascii() and name.islower() and len(name) > 3][: 8 * count]
    ids = tokenizer([f" {name}" for name in plain], add_special_tokens=False)["input_ids"]
    found = [name for name, tokens in zip(plain, ids, strict=True) if len(tokens) == 1][:count]
    if len(found) < 100:
        raise UserError("--model-path: its tokenizer has no hundred English words of one token to make rows of")
    return found


def write_rows(folder: Path, lengths: np.ndarray, model: Path, seed: int = 42) -> str:
    """Alpaca rows of `lengths` tokens each (template included), registered as `bench`; returns the template's name.

    With a real model's tokenizer a row is a few tokens longer, since white space counts there.
    """
    tokenizer = AutoTokenizer.from_pretrained(model)
    template, pool = template_of(tokenizer), np.array(one_token_words(tokenizer))
    random, added = np.random.default_rng(seed), ADDED[template]

    def row(length: int) -> dict[str, str]:
        thought, answer = max(round(length * THOUGHT), 1), max(round(length * ANSWER), 1)
        drawn = random.choice(pool, max(length - added, thought + answer + 1)).tolist()
        question = len(drawn) - thought - answer
        parts = drawn[:question], drawn[question : question + thought], drawn[question + thought :]
        asked, reason, told = (" ".join(part) for part in parts)
        return {"instruction": asked, "input": "", "output": f"<think>\n{reason}\n</think>\n\n{told}"}

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.json").write_text(json.dumps([row(int(length)) for length in lengths]), encoding="utf-8")
    (folder / "dataset_info.json").write_text('{"bench": {"file_name": "bench.json"}}', encoding="utf-8")
    return template


def weight_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of each weight that a checkpoint of this architecture holds, in the model's own order."""
    import torch

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    tied = config["tie_word_embeddings"]
    return {n: tuple(w.shape) for n, w in model.state_dict().items() if not (tied and n == "lm_head.weight")}


def weight_bytes(shapes: dict[str, tuple[int, ...]]) -> int:
    """Bytes of all weights in bf16."""
    return sum(2 * math.prod(shape) for shape in shapes.values())


def write_model(folder: Path, config: dict[str, Any]) -> None:
    """A model folder as the hub has them: bf16 safetensors in shards, config.json, tokenizer; kept if already there.

    Weights are normal with standard deviation 0.02 (norms 1, biases 0), written from one block of 2 MB.
    """
    text = json.dumps(config, indent=1)
    if (folder / "config.json").exists() and (folder / "config.json").read_text(encoding="utf-8") == text:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shapes = weight_shapes(config)
    free, needed = shutil.disk_usage(folder).free, weight_bytes(shapes)
    if free < needed * 1.02:
        sizes = f"{needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} free"
        raise UserError(f"{folder}: {sizes}; name a folder on another disk with --work")
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    for name, shape in shapes.items():
        if shards[-1] and weight_bytes(shards[-1]) + 2 * math.prod(shape) > SHARD:
            shards.append({})
        shards[-1][name] = shape
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(folder / file, shard)
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": needed}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    template = "qwen3" if config["model_type"] == "qwen3" else "deepseekr1"
    build_tokenizer(config["vocab_size"], template).save_pretrained(folder)
    (folder / "config.json").write_text(text, encoding="utf-8")  # last: its presence says that the rest is there


def _write_shard(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """The safetensors format by hand (length, JSON header, data): its library wants all tensors in memory at once."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    normal = np.random.default_rng(42).normal(0, 0.02, BLOCK).astype(np.float32)
    block = (normal.view(np.uint32) >> 16).astype(np.uint16).tobytes()  # bf16 is the upper half of fp32
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            if name.endswith("norm.weight"):
                file.write(b"\x80\x3f" * math.prod(shape))
            elif name.endswith(".bias"):
                file.write(bytes(2 * math.prod(shape)))
            else:
                whole, rest = divmod(2 * math.prod(shape), len(block))
                for _ in range(whole):
                    file.write(block)
                file.write(block[:rest])
