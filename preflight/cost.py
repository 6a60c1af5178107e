"""What a run will cost: steps, tokens, floating-point operations, memory, disk. Arithmetic only, no torch.

Every figure is an estimate from the formula in its function's docstring; `bench/train.py` measures the same things.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

GIB = 2**30
CONTEXT = 1.2e9  # bytes: CUDA context, kernels, allocator's slack
NF4_BYTES = 0.516  # 4 bits, and 0.127 bits of doubly quantised scales a weight

# Dense bf16 tensor peak with fp32 accumulation, in FLOP/s, from the makers' data sheets.
PEAKS = {
    "RTX 3090": 71.0e12,
    "RTX 4090": 165.2e12,
    "RTX 5090": 209.5e12,
    "L20": 119.5e12,
    "L40S": 362.0e12,
    "A10": 125.0e12,
    "A100": 312.0e12,
    "A800": 312.0e12,
    "H20": 148.0e12,
    "H100": 989.5e12,
    "H200": 989.5e12,
    "H800": 989.5e12,
}


@dataclass(frozen=True)
class Architecture:
    """The sizes of a dense decoder (Llama, Mistral, Qwen2, Qwen3 …), as its config.json names them."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool

    @property
    def linear(self) -> int:
        """Weights in the layers' seven projections: what NF4 quantises and what `lora_target: all` adapts."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head(self) -> int:
        """Weights of the output head; the embedding has as many, and is the same ones where tied."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        return self.linear + self.head * (1 if self.tied else 2)

    def lora(self, rank: int) -> int:
        """Weights of a LoRA on all seven projections: rank · (inputs + outputs) of each."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = 2 * (self.hidden + query) + 2 * (self.hidden + key)
        return self.layers * rank * (attention + 3 * (self.hidden + self.intermediate))


def read_architecture(config: dict[str, Any]) -> Architecture | None:
    """The sizes from a model's config.json; None for what these formulas do not cover (experts, vision, other keys)."""
    if any("expert" in key or key in ("vision_config", "text_config") for key in config):
        return None
    try:
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        return Architecture(
            hidden=hidden,
            intermediate=config["intermediate_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or hidden // heads,
            vocabulary=config["vocab_size"],
            tied=bool(config.get("tie_word_embeddings", False)),
        )
    except (KeyError, TypeError, ZeroDivisionError):
        return None


def flops_per_token(model: Architecture, length: float, trainable: int, full: bool, recompute: bool) -> float:
    """Floating-point operations to train on one token of a row of `length` tokens.

    A multiply-add is 2. Forward 2·(linear + head); backward the same for the inputs' gradients and, in full tuning,
    once more for the weights'; checkpointing runs the layers' forward again. Causal attention is 2·layers·heads·
    head_dim·length forward and twice that backward. LoRA: 6 a weight, and 2 more where it is run again.
    Model FLOPs (for MFU) are those with `recompute=False`.
    """
    weights, again = model.linear + model.head, int(recompute)
    attention = 2 * model.layers * model.heads * model.head_dim * length
    adapter = 0 if full else trainable * (6 + 2 * again)
    return 2 * weights * (3 if full else 2) + 2 * model.linear * again + attention * (3 + again) + adapter


@dataclass(frozen=True)
class Engine:
    """How the step is computed, as far as memory goes."""

    bits: int = 16  # of the frozen base: 4, 8 or 16
    full: bool = False
    unsloth: bool = False  # checkpoints offloaded to the host, fused cross-entropy, no fp32 copies
    fused_loss: bool = False  # Unsloth or Liger: the logits are never whole
    checkpointing: bool = True
    pure_bf16: bool = False


def memory(model: Architecture, tokens: int, trainable: int, engine: Engine) -> dict[str, float]:
    """Bytes on the card for a micro-batch of `tokens` (padding included), by purpose; their sum is the peak.

    weights       linear · 0.516 (NF4), 1 (8 bit) or 2; embedding and head 2; all 4 in full tuning (2 with pure_bf16)
    optimiser     trainable · 16 for LoRA (fp32 weight, gradient, two moments); full: 12 more a weight (6 pure_bf16)
    activations   one layer's, 2·tokens·(3·intermediate + 11·hidden), times the layers without checkpointing;
                  plain PEFT keeps fp32 inputs of each LoRA besides, 4·tokens·(6·hidden + intermediate)
    checkpoints   2·tokens·hidden·layers; none where Unsloth moves them to the host
    logits        10·tokens·vocabulary (bf16, fp32 and its gradient); none where the loss is fused
    context       1.2e9
    """
    embedding = model.parameters - model.linear
    kept = 1 if engine.checkpointing else model.layers
    layer = 2 * tokens * (3 * model.intermediate + 11 * model.hidden)
    copies = 0 if engine.unsloth or engine.full else 4 * tokens * (6 * model.hidden + model.intermediate)
    if engine.full:
        weights, optimiser = model.parameters * (2 if engine.pure_bf16 else 4), model.parameters * 12
        optimiser = model.parameters * 6 if engine.pure_bf16 else optimiser
    else:
        weights = model.linear * {4: NF4_BYTES, 8: 1.0}.get(engine.bits, 2.0) + embedding * 2
        optimiser = trainable * 16
    return {
        "weights": weights,
        "optimiser": optimiser,
        "activations": kept * (layer + copies),
        "checkpoints": 0 if engine.unsloth or not engine.checkpointing else 2 * tokens * model.hidden * model.layers,
        "logits": 0 if engine.fused_loss or engine.unsloth else 10 * tokens * model.vocabulary,
        "context": CONTEXT,
    }


def steps(
    rows: int,
    batch: int,
    accumulation: int,
    epochs: float,
    max_steps: int = -1,
    cards: int = 1,
    drop_last: bool = False,
) -> int:
    """Optimiser steps of a run, as transformers counts them: the last, smaller group of an epoch is a step too."""
    if max_steps > 0:
        return max_steps
    batches = rows // (batch * cards) if drop_last else math.ceil(rows / (batch * cards))
    return math.ceil(epochs * max(math.ceil(batches / accumulation), 1))


def micro_batches(
    lengths: Sequence[int], batch: int, grouped: bool, accumulation: int = 1, seed: int = 42
) -> list[np.ndarray]:
    """The rows' lengths as an epoch's micro-batches: shuffled, or in transformers' length groups.

    (Groups are made within 50 steps' rows, batch · accumulation each, of shuffled rows, longest first.)
    """
    shuffled = np.random.default_rng(seed).permutation(np.asarray(lengths))
    if grouped:
        step = batch * accumulation
        mega = step * min(max(len(shuffled) // (step * 4), 1), 50)
        shuffled = np.concatenate([-np.sort(-shuffled[i : i + mega]) for i in range(0, len(shuffled), mega)])
    return [shuffled[i : i + batch] for i in range(0, len(shuffled), batch)]


def padding_efficiency(batches: Sequence[np.ndarray], multiple: int = 8) -> float:
    """Real tokens over computed ones, where each micro-batch is padded to its longest row, to a multiple of 8."""
    padded = sum(len(batch) * math.ceil(batch.max() / multiple) * multiple for batch in batches)
    return float(sum(batch.sum() for batch in batches) / padded)


def hours(tokens: float, flops: float, peak: float, utilisation: float) -> float:
    """tokens · flops-per-token / (peak · utilisation) / 3600, `tokens` being those computed, padding included."""
    return tokens * flops / (peak * utilisation) / 3600


def checkpoint_bytes(model: Architecture, trainable: int, full: bool) -> float:
    """One checkpoint: the trained weights (fp32 for LoRA, bf16 for full tuning) and two fp32 moments of each."""
    return model.parameters * 10 if full else trainable * 12


def peak_of(card: str) -> float | None:
    """The data-sheet peak of a card by the name that the driver gives it, e.g. `NVIDIA GeForce RTX 4090`."""
    words = card.replace("-", " ").split()
    for name in sorted(PEAKS, key=len, reverse=True):
        if name in card and name.split()[-1] in words:
            return PEAKS[name]
    return None


def read_config(model: str | Path) -> dict[str, Any]:
    """The config.json of a model folder, or {} where there is none that can be read."""
    try:
        config = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
